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
    at: Place,
    by: Identity,
    cut: Heads,
    own: Own,
}

impl Sent {
    fn apply_to(&self, membership: &mut Membership) {
        membership.apply(Change { at: self.at, by: &self.by, cut: &self.cut, own: &self.own });
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
        let head = self.heads.entry(origin(region)).or_default();
        *head += 1;
        self.hlc += 1;
        let at = Place { hlc: self.hlc, origin: origin(region), seq: *head };
        let install = InstallId::new(&format!("r{region}")).unwrap();
        let sent = Sent { at, by: Identity { user: user(by), install, n: at.seq }, cut: self.heads.clone(), own };
        sent.apply_to(&mut self.membership);
        sent
    }

    fn take(&mut self, sent: &Sent) {
        assert_eq!(sent.at.seq, self.heads.get(&sent.at.origin).copied().unwrap_or(0) + 1);
        self.heads.insert(sent.at.origin, sent.at.seq);
        self.hlc = self.hlc.max(sent.at.hlc);
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
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..REGIONS, 0..5usize, 0..3u8, 0..5usize, 0..2u32, any::<bool>())
        .prop_map(|(region, by, what, about, role, history)| Step::Write { region, by, what, about, role, history });
    let text = (0..REGIONS).prop_map(|region| Step::Text { region });
    let deliver = (0..REGIONS, 0..REGIONS).prop_map(|(from, to)| Step::Deliver { from, to });
    proptest::collection::vec(prop_oneof![3 => write, 1 => text, 4 => deliver], 1..80)
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

proptest! {
    /// Concurrent changes in three regions, delivered in any order, end in the same members everywhere; and no
    /// region lets a removed member read past the largest cut of the removals of his generation.
    #[test]
    fn concurrent_changes_end_in_the_same_members_and_nobody_reads_past_his_cut(steps in steps()) {
        let (mut regions, mut logs) = created();
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
                    let next = regions[usize::from(to)].heads.get(&origin(from)).copied().unwrap_or(0);
                    if let Some(sent) = logs[usize::from(from)].get(usize::try_from(next).unwrap()).cloned() {
                        regions[usize::from(to)].take(&sent);
                    }
                }
            }
        }
        for from in 0..REGIONS {
            for region in &mut regions {
                let have = region.heads.get(&origin(from)).copied().unwrap_or(0);
                for sent in &logs[usize::from(from)][usize::try_from(have).unwrap()..] {
                    region.take(sent);
                }
            }
        }
        prop_assert_eq!(&regions[0].membership, &regions[1].membership);
        prop_assert_eq!(&regions[0].membership, &regions[2].membership);

        let all = &regions[0].membership;
        for (i, name) in USERS.iter().enumerate() {
            let Some(member) = all.member(&user(i)) else { continue };
            let mut bound: Option<Heads> = None;
            for sent in logs.iter().flatten() {
                let Own::Remove(remove) = &sent.own else { continue };
                if remove.members.iter().any(|m| m.user == *name && m.generation == member.generation) {
                    let bound = bound.get_or_insert_with(Heads::new);
                    for (origin, seq) in &sent.cut {
                        let at = bound.entry(*origin).or_default();
                        *at = (*at).max(*seq);
                    }
                }
            }
            prop_assert_eq!(member.is_present(), member.added && bound.is_none());
            if let Some(bound) = bound {
                for (origin, head) in &regions[0].heads {
                    for seq in 1..=*head {
                        let past = seq > bound.get(origin).copied().unwrap_or(0);
                        prop_assert!(!(past && member.may_read(*origin, seq)));
                    }
                }
                let clipped = member.clip(&regions[0].heads);
                prop_assert!(clipped.iter().all(|(o, seq)| bound.get(o).is_some_and(|b| seq <= b)));
            }
        }
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
    let second = Sent { cut: [(origin(1), 1)].into(), ..regions[1].write(1, 0, add) };
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
