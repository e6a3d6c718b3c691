use super::*;
use crate::ids::InstallId;
use proptest::prelude::*;

const REGIONS: u8 = 3;
const USERS: [&str; 5] = ["ann", "ben", "cat", "dan", "eve"];

fn user(i: usize) -> UserId {
    UserId::new(USERS[i % USERS.len()]).unwrap()
}

fn named(i: usize, generation: u64, role: u32) -> v1::GroupMember {
    v1::GroupMember { user: USERS[i % USERS.len()].to_owned(), role, generation }
}

/// A membership entry on its way.
#[derive(Clone, Debug)]
struct Sent {
    place: Place,
    /// Its display key: an offered copy has that of the first.
    at: Place,
    by: Identity,
    cut: Heads,
    own: Own,
}

impl Sent {
    fn apply_to(&self, membership: &mut Membership) {
        membership.apply(Change { at: self.at, by: &self.by, cut: &self.cut, own: &self.own });
    }

    fn named(&self) -> &[v1::GroupMember] {
        match &self.own {
            Own::Create(create) => &create.members,
            Own::Add(add) => &add.members,
            Own::Remove(remove) => &remove.members,
            Own::Role(role) => &role.members,
            _ => &[],
        }
    }
}

/// A region: its membership, its heads, and what it lacks of the others, which arrives in any order that keeps
/// each log's own.
#[derive(Clone, Debug, Default)]
struct Region {
    membership: Membership,
    heads: Heads,
    hlc: u64,
}

fn origin(region: u8) -> Origin {
    Origin { region, era: 1 }
}

impl Region {
    fn write(&mut self, region: u8, by: usize, own: Own) -> Sent {
        let n = self.heads.get(&origin(region)).copied().unwrap_or(0) + 1;
        let install = InstallId::new(&format!("r{region}")).unwrap();
        self.sequence(region, Identity { user: user(by), install, n }, own, None)
    }

    /// `first`: what an earlier ack said, for an offer.
    fn sequence(&mut self, region: u8, by: Identity, own: Own, first: Option<(Place, Heads)>) -> Sent {
        let head = self.heads.entry(origin(region)).or_default();
        *head += 1;
        self.hlc += 1;
        let place = Place { hlc: self.hlc, origin: origin(region), seq: *head };
        let (at, cut) = first.unwrap_or_else(|| (place, self.heads.clone()));
        let sent = Sent { place, at, by, cut, own };
        sent.apply_to(&mut self.membership);
        sent
    }

    fn take(&mut self, sent: &Sent) {
        assert_eq!(sent.place.seq, self.heads.get(&sent.place.origin).copied().unwrap_or(0) + 1);
        self.heads.insert(sent.place.origin, sent.place.seq);
        self.hlc = self.hlc.max(sent.place.hlc);
        sent.apply_to(&mut self.membership);
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A user of a region changes something.
    Write { region: u8, by: usize, what: u8, about: usize, role: u32, history: bool },
    /// A message without effect on the members: moves the heads.
    Text { region: u8 },
    /// The next entry of one log arrives in another region.
    Deliver { from: u8, to: u8 },
    /// A region that lacks an entry is sent it again: as if for the first time, or offered with the receipt of its
    /// ack.
    Again { from: u8, to: u8, offer: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..REGIONS, 0..5usize, 0..3u8, 0..5usize, 0..2u32, any::<bool>())
        .prop_map(|(region, by, what, about, role, history)| Step::Write { region, by, what, about, role, history });
    let text = (0..REGIONS).prop_map(|region| Step::Text { region });
    let deliver = (0..REGIONS, 0..REGIONS).prop_map(|(from, to)| Step::Deliver { from, to });
    let again = (0..REGIONS, 0..REGIONS, any::<bool>()).prop_map(|(from, to, offer)| Step::Again { from, to, offer });
    proptest::collection::vec(prop_oneof![6 => write, 2 => text, 8 => deliver, 1 => again], 1..80)
}

fn change(membership: &Membership, what: u8, about: usize, role: u32, history: bool) -> Own {
    let generation = membership.next_generation(&user(about));
    match what {
        0 => Own::Add(v1::GroupAdd { members: vec![named(about, generation, role)], history }),
        1 => Own::Remove(v1::GroupRemove { members: vec![named(about, generation.max(2) - 1, 0)] }),
        _ => Own::Role(v1::GroupRole { members: vec![named(about, generation.max(2) - 1, role)] }),
    }
}

fn created() -> (Vec<Region>, Vec<Vec<Sent>>) {
    let mut regions = vec![Region::default(); usize::from(REGIONS)];
    let members = vec![named(0, 1, 1), named(1, 1, 1), named(2, 1, 0)];
    let create = Own::Create(v1::GroupCreate { members, members_add: true, ..v1::GroupCreate::default() });
    let first = regions[0].write(0, 0, create);
    for region in &mut regions[1..] {
        region.take(&first);
    }
    (regions, vec![vec![first], Vec::new(), Vec::new()])
}

/// Takes the steps, then delivers what is left: all regions hold everything.
fn play(steps: Vec<Step>) -> (Vec<Region>, Vec<Vec<Sent>>) {
    let (mut regions, mut logs) = created();
    let next = |regions: &[Region], logs: &[Vec<Sent>], from: u8, to: u8| {
        let next = regions[usize::from(to)].heads.get(&origin(from)).copied().unwrap_or(0);
        logs[usize::from(from)].get(usize::try_from(next).unwrap()).cloned()
    };
    for step in steps {
        match step {
            Step::Write { region, by, what, about, role, history } => {
                let here = &mut regions[usize::from(region)];
                let own = change(&here.membership, what, about, role, history);
                if here.membership.is_present(&user(by)) && here.membership.authorize(&user(by), &own).is_ok() {
                    let sent = here.write(region, by, own);
                    logs[usize::from(region)].push(sent);
                }
            }
            Step::Text { region } => {
                // A change that says nothing stands for a message: it only moves the heads.
                let sent = regions[usize::from(region)].write(region, 0, Own::EraseMine);
                logs[usize::from(region)].push(sent);
            }
            Step::Deliver { from, to } => {
                if let Some(sent) = next(&regions, &logs, from, to) {
                    regions[usize::from(to)].take(&sent);
                }
            }
            Step::Again { from, to, offer } => {
                if let Some(sent) = next(&regions, &logs, from, to).filter(|s| s.own != Own::EraseMine) {
                    let first = offer.then(|| (sent.at, sent.cut.clone()));
                    let copy = regions[usize::from(to)].sequence(to, sent.by, sent.own, first);
                    logs[usize::from(to)].push(copy);
                }
            }
        }
    }
    for from in 0..REGIONS {
        for to in 0..REGIONS {
            while let Some(sent) = next(&regions, &logs, from, to) {
                regions[usize::from(to)].take(&sent);
            }
        }
    }
    (regions, logs)
}

/// What the entries say of a user, all of them looked at anew: his newest generation, whether he is in, whether he is
/// an admin, and what he may read.
struct Standing<'a> {
    generation: u64,
    naming: Vec<(&'a Sent, u32)>,
}

impl<'a> Standing<'a> {
    fn of(name: &str, all: &[&'a Sent]) -> Option<Self> {
        let named = |sent: &'a Sent| sent.named().iter().find(|m| m.user == name).map(|m| (sent, m));
        let generation = all.iter().filter_map(|s| named(s)).map(|(_, m)| m.generation).max()?;
        let naming = all.iter().filter_map(|s| named(s)).filter(|(_, m)| m.generation == generation);
        Some(Self { generation, naming: naming.map(|(s, m)| (s, m.role)).collect() })
    }

    fn adds(&self) -> impl Iterator<Item = &Sent> {
        self.naming.iter().map(|(s, _)| *s).filter(|s| matches!(s.own, Own::Create(_) | Own::Add(_)))
    }

    fn removals(&self) -> impl Iterator<Item = &Sent> {
        self.naming.iter().map(|(s, _)| *s).filter(|s| matches!(s.own, Own::Remove(_)))
    }

    fn is_present(&self) -> bool {
        self.adds().count() > 0 && self.removals().count() == 0
    }

    fn is_admin(&self) -> bool {
        let roles = self.naming.iter().filter(|(s, _)| !matches!(s.own, Own::Remove(_)));
        // A copy of a change is no later change.
        let copies = |of: &Sent| self.naming.iter().filter(|(s, _)| s.by == of.by).map(|(s, _)| s.at).min();
        roles.map(|(s, role)| (copies(s), *role)).max().is_some_and(|(_, role)| role == 1)
    }

    /// Some add lets him, and if he was removed, some removal does not keep him from it.
    fn may_read(&self, of: Origin, seq: u64) -> bool {
        let upto = |heads: &Heads| heads.get(&of).copied().unwrap_or(0);
        let lets = |add: &Sent| match &add.own {
            Own::Add(v1::GroupAdd { history: false, .. }) => {
                seq > upto(&add.cut) || (of, seq) == (add.at.origin, add.at.seq)
            }
            _ => true,
        };
        self.adds().any(lets)
            && (self.removals().count() == 0 || self.removals().any(|removal| seq <= upto(&removal.cut)))
    }
}

proptest! {
    /// Concurrent changes in three regions, delivered in any order, some of them twice under other places, end in the
    /// same members everywhere, and on a device that gets them in any order; and everybody may read exactly what
    /// his newest membership says: nothing past the largest cut of its removals, and all up to that.
    #[test]
    fn concurrent_changes_end_in_the_same_members_and_nobody_reads_past_his_cut(steps in steps(), order: u64) {
        let (regions, logs) = play(steps);
        prop_assert_eq!(&regions[0].membership, &regions[1].membership);
        prop_assert_eq!(&regions[0].membership, &regions[2].membership);

        let mut shuffled: Vec<&Sent> = logs.iter().flatten().chain(logs[1].iter()).collect();
        let number = |s: &Sent| (s.place.seq << 8) + u64::from(s.place.origin.region);
        shuffled.sort_by_key(|s| (number(s) ^ order).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut device = Membership::default();
        shuffled.iter().for_each(|sent| sent.apply_to(&mut device));
        prop_assert_eq!(&regions[0].membership, &device);

        let all: Vec<&Sent> = logs.iter().flatten().filter(|s| !s.named().is_empty()).collect();
        let members = &regions[0].membership;
        let mut present = 0;
        for (i, name) in USERS.iter().enumerate() {
            let Some(expected) = Standing::of(name, &all) else {
                prop_assert!(members.member(&user(i)).is_none());
                continue;
            };
            let member = members.member(&user(i)).unwrap();
            prop_assert_eq!(member.generation, expected.generation);
            prop_assert_eq!(members.is_present(&user(i)), expected.is_present());
            present += usize::from(expected.is_present());
            if expected.is_present() {
                prop_assert_eq!(members.is_admin(&user(i)), expected.is_admin());
            }
            let clipped = member.clip(&regions[0].heads);
            for (of, head) in &regions[0].heads {
                for seq in 1..=*head {
                    prop_assert_eq!(member.may_read(*of, seq), expected.may_read(*of, seq), "{} of {:?} for {}", seq, of, name);
                }
                let readable = (1..=*head).rev().find(|seq| expected.may_read(*of, *seq));
                let told = clipped.get(of).copied().unwrap_or(0);
                prop_assert!(readable.is_none_or(|seq| seq == told), "{} is told of {}, reads up to {:?}", name, told, readable);
                let cut = expected.removals().map(|s| s.cut.get(of).copied().unwrap_or(0)).max();
                prop_assert!(cut.is_none_or(|cut| told <= cut));
            }
        }
        prop_assert_eq!(members.present(), present);
        let newest = all.iter().map(|s| (s.at, s.by.clone())).max();
        prop_assert_eq!(members.newest(), newest.as_ref());
    }

    #[test]
    fn a_checkpoint_holds_all_of_it_and_any_bytes_are_one_or_none(steps in steps(), junk: Vec<u8>) {
        let (mut regions, _) = created();
        for step in steps {
            if let Step::Write { by, what, about, role, history, .. } = step {
                let own = change(&regions[0].membership, what, about, role, history);
                regions[0].write(0, by, own);
            }
        }
        let mut bytes = Vec::new();
        regions[0].membership.encode(&mut bytes);
        let mut b = bytes::Bytes::from(bytes);
        prop_assert_eq!(Membership::decode(&mut b), Some(regions[0].membership.clone()));
        prop_assert!(b.is_empty());
        let _membership_or_none = Membership::decode(&mut bytes::Bytes::from(junk));
    }
}

#[test]
fn a_promotion_written_while_he_was_kicked_does_not_bring_him_back() {
    let (mut regions, _) = created();
    let kick = Own::Remove(v1::GroupRemove { members: vec![named(2, 1, 0)] });
    let promote = Own::Role(v1::GroupRole { members: vec![named(2, 1, 1)] });
    let kicked = regions[0].write(0, 0, kick);
    let promoted = regions[1].write(1, 1, promote);
    regions[0].take(&promoted);
    regions[1].take(&kicked);
    regions[2].take(&promoted);
    regions[2].take(&kicked);
    for region in &regions {
        assert!(!region.membership.is_present(&user(2)));
        assert_eq!(region.membership, regions[0].membership);
    }
}

#[test]
fn an_add_that_is_sequenced_again_in_another_region_is_the_same_membership() {
    let (mut regions, _) = created();
    let add = Own::Add(v1::GroupAdd { members: vec![named(3, 1, 0)], history: false });
    let first = regions[0].write(0, 0, add.clone());
    // Its ack was lost; the region it went to next sequenced the same add, and both copies arrive everywhere.
    let second = regions[1].write(1, 0, add);
    regions[0].take(&second);
    regions[1].take(&first);
    assert_eq!(regions[0].membership.member(&user(3)).unwrap().generation, 1);
    assert!(regions[0].membership.is_present(&user(3)) && regions[1].membership.is_present(&user(3)));
}

#[test]
fn who_is_added_later_reads_from_there_or_all_as_the_add_says() {
    let (mut regions, _) = created();
    let region = &mut regions[0];
    region.write(0, 0, Own::EraseMine); // stands for a message
    region.write(0, 0, Own::Add(v1::GroupAdd { members: vec![named(3, 1, 0)], history: false }));
    region.write(0, 0, Own::Add(v1::GroupAdd { members: vec![named(4, 1, 0)], history: true }));
    let (from_there, all) = (region.membership.member(&user(3)).unwrap(), region.membership.member(&user(4)).unwrap());
    let reads = |m: &Member| (1..=4).filter(|seq| m.may_read(origin(0), *seq)).collect::<Vec<_>>();
    assert_eq!((reads(from_there), reads(all)), (vec![3, 4], vec![1, 2, 3, 4]));
}

#[test]
fn authority_is_the_admins_unless_there_is_none() {
    let (mut regions, _) = created();
    let region = &mut regions[0];
    let kick = Own::Remove(v1::GroupRemove { members: vec![named(1, 1, 0)] });
    assert_eq!(region.membership.authorize(&user(2), &kick).unwrap_err().code, Code::NotAllowed);
    assert_eq!(region.membership.authorize(&user(0), &kick), Ok(()));
    let leave = |i| Own::Remove(v1::GroupRemove { members: vec![named(i, 1, 0)] });
    assert_eq!(region.membership.authorize(&user(2), &leave(2)), Ok(()));
    region.write(0, 0, leave(0));
    region.write(0, 1, leave(1));
    let promote = Own::Role(v1::GroupRole { members: vec![named(2, 1, 1)] });
    assert_eq!(region.membership.authorize(&user(2), &promote), Ok(()));
    let stranger = Own::Role(v1::GroupRole { members: vec![named(4, 1, 1)] });
    assert_eq!(region.membership.authorize(&user(2), &stranger).unwrap_err().code, Code::BadChange);
    let stale = Own::Add(v1::GroupAdd { members: vec![named(1, 1, 0)], history: true });
    assert_eq!(region.membership.authorize(&user(2), &stale).unwrap_err().code, Code::BadChange);
    let many = (0..500).map(|i| v1::GroupMember { user: format!("u{i}"), role: 0, generation: 1 }).collect();
    let crowd = Own::Add(v1::GroupAdd { members: many, history: true });
    assert_eq!(region.membership.authorize(&user(2), &crowd).unwrap_err().code, Code::GroupFull);
}
