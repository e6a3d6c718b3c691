//! Groups over three regions (R10): who may write, who reads how far, and what a region that lacks a change of
//! members does.

use super::*;
use crate::codes::Code;
use crate::edge_api::{MembershipOffer, Named};
use crate::kinds::{ADD, CELL, CREATE, REMOVE, ROLE};
use prost::Message;

const NONCE: [u8; 16] = [3; 16];

fn group() -> ConvId {
    ConvId::group(&user("alice"), &NONCE)
}

fn members(of: &[(&str, u64, u32)]) -> Vec<v1::GroupMember> {
    let member = |(user, generation, role): &(&str, u64, u32)| v1::GroupMember {
        user: (*user).to_owned(),
        generation: *generation,
        role: *role,
    };
    of.iter().map(member).collect()
}

fn text(n: u64) -> SendRequest {
    SendRequest { conversation: group(), peer: None, floor: 1, ..message(n) }
}

fn change(n: u64, kind: u32, body: &impl Message) -> SendRequest {
    SendRequest { kind, body: body.encode_to_vec().into(), ..text(n) }
}

fn create(of: &[(&str, u64, u32)]) -> SendRequest {
    let body = v1::GroupCreate {
        members: members(of),
        title: "lunch".to_owned(),
        members_add: false,
        nonce: Bytes::copy_from_slice(&NONCE),
    };
    change(1, CREATE, &body)
}

fn add(n: u64, of: &[(&str, u64, u32)], history: bool) -> SendRequest {
    change(n, ADD, &v1::GroupAdd { members: members(of), history })
}

fn remove(n: u64, of: &[(&str, u64, u32)]) -> SendRequest {
    change(n, REMOVE, &v1::GroupRemove { members: members(of) })
}

const FOUNDERS: [(&str, u64, u32); 3] = [("alice", 1, 1), ("bob", 1, 1), ("carol", 1, 0)];

impl World {
    fn take(&mut self, c: Conn, send: SendRequest) -> Ack {
        let n = send.n;
        self.post(c, send);
        self.settle();
        self.ack(c, n)
    }

    fn refused(&mut self, c: Conn, send: SendRequest) -> Code {
        let before = self.told(c).errors().len();
        self.post(c, send);
        self.settle();
        let errors = self.told(c).errors();
        assert_eq!(errors.len(), before + 1, "one refusal: {:?}", self.told(c));
        Code::from_u32(errors[before]).unwrap()
    }

    /// The entry behind an ack, as its members hold it.
    fn held(&mut self, region: Region, ack: &Ack) -> Arc<Entry> {
        let log = &self.core(region).disk.logs[&(group(), ack.place.origin)];
        log[usize::try_from(ack.place.seq).unwrap() - 1].clone()
    }

    fn present(&mut self, region: Region) -> Vec<String> {
        let state = self.core(region).disk.state(group());
        let present = state
            .fold
            .group()
            .into_iter()
            .flat_map(crate::membership::Membership::users)
            .filter(|(_, m)| m.is_present());
        present.map(|(u, _)| u.to_string()).collect()
    }

    /// What a pull of one whole log gives: bodies, and gaps with their reasons.
    fn pull(&mut self, c: Conn, origin: Origin, to: u64) -> (Vec<String>, Vec<(u64, u64, v1::gap::Reason)>) {
        let before = self.told(c).pages.len();
        let pull = v1::PullEntries {
            conversation: Bytes::copy_from_slice(&group().0),
            origin: Some(origin.into()),
            from: 1,
            to,
            limit: 0,
            backwards: false,
        };
        self.frame(c, 77, v1::frame::Body::Pull(pull));
        let pages = self.told(c).pages[before..].to_vec();
        let name = |e: &Arc<Entry>| match e.kind {
            0 => String::from_utf8_lossy(&e.body).into_owned(),
            kind => format!("kind {kind}"),
        };
        let entries = pages.iter().flat_map(|p| &p.entries).map(name).collect();
        (entries, pages.iter().flat_map(|p| p.gaps.clone()).collect())
    }
}

/// An offer of a membership entry, as any member that holds it makes it.
fn offered(entry: &Entry) -> SendRequest {
    let stamp = entry.stamp.as_ref().expect("a membership entry");
    SendRequest {
        n: entry.by.n,
        kind: entry.kind,
        body: entry.body.clone(),
        offer: Some((entry.display_key(), Bytes::copy_from_slice(&stamp.receipt))),
        membership: Some(Box::new(MembershipOffer {
            author: (entry.by.user.clone(), entry.by.install.clone()),
            cut: stamp.cut.clone(),
        })),
        ..text(entry.by.n)
    }
}

fn naming(send: SendRequest, entry: &Entry) -> SendRequest {
    SendRequest { named: Some(Box::new(Named { place: entry.place, by: entry.by.clone() })), ..send }
}

#[test]
fn a_group_message_reaches_every_member_in_every_region() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let others = [w.connect(US, 2, "bob", "pc"), w.connect(AP, 3, "carol", "tab"), w.connect(EU, 4, "carol", "phone")];
    w.take(alice, create(&FOUNDERS));
    w.take(alice, text(2));
    for c in others {
        let pushed: Vec<_> = w.told(c).pushes.iter().flat_map(|p| p.entries.clone()).map(|e| e.kind).collect();
        assert_eq!(pushed, [CREATE, 0]);
    }
    assert_eq!([EU, US, AP].map(|r| w.present(r).len()), [3, 3, 3]);
    let stranger = w.connect(EU, 5, "mallory", "pc");
    assert_eq!(w.refused(stranger, text(1)), Code::NotMember);
    let forged = SendRequest { conversation: group(), ..create(&[("mallory", 1, 1)]) };
    assert_eq!(w.refused(stranger, forged), Code::BadChange, "only its creator can create under this id");
}

#[test]
fn kick_and_promote_at_once_in_two_regions_end_in_the_same_members() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    w.take(alice, create(&FOUNDERS));
    w.unlink(EU, US);
    w.take(alice, remove(2, &[("carol", 1, 0)]));
    w.take(bob, SendRequest { floor: 1, ..change(1, ROLE, &v1::GroupRole { members: members(&[("carol", 1, 1)]) }) });
    w.link(EU, US);
    w.pass(Duration::from_secs(10));
    for region in [EU, US, AP] {
        assert_eq!(w.present(region), ["alice", "bob"]);
    }
}

#[test]
fn a_removed_member_reads_up_to_his_cut_and_is_pushed_nothing_more() {
    let mut w = World::new();
    let (alice, carol) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "carol", "tab"));
    let origin = w.take(alice, create(&FOUNDERS)).place.origin;
    w.take(alice, text(2));
    w.take(alice, remove(3, &[("carol", 1, 0)]));
    w.told(carol).pushes.clear();
    w.take(alice, text(4));
    assert!(w.told(carol).pushes.iter().all(|p| p.entries.is_empty()), "{:?}", w.told(carol).pushes);
    let (read, gaps) = w.pull(carol, origin, 4);
    assert_eq!(read, ["kind 16", "m2", "kind 18"], "the removal itself is the last he reads");
    assert_eq!(gaps, [(4, 4, v1::gap::Reason::NoAccess)]);
    assert_eq!(w.refused(carol, text(1)), Code::NotMember);
    w.pass(Duration::from_secs(3));
    let row = w.core(US).disk.rows[&(user("carol"), group())].clone();
    assert_eq!((row.state, row.heads), (1, [(origin, 3)].into()));
    // Added again, without what was written meanwhile.
    w.take(alice, add(5, &[("carol", 2, 0)], false));
    w.take(alice, text(6));
    let (read, gaps) = w.pull(carol, origin, 6);
    assert_eq!((read, gaps), (vec!["kind 17".to_owned(), "m6".to_owned()], vec![(1, 4, v1::gap::Reason::NoAccess)]));
    let push = w.told(carol).pushes.iter().rev().find_map(|p| p.row.clone()).expect("the row changed");
    assert_eq!((push.state, push.generation, push.from), (0, 2, [(origin, 4)].into()));
}

#[test]
fn add_in_one_region_send_in_another_is_behind_until_the_add_is_offered() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let created = w.take(alice, create(&FOUNDERS));
    w.unlink(EU, US);
    w.unlink(EU, AP);
    let added = w.take(alice, add(2, &[("dave", 1, 0)], true));
    let added = w.held(EU, &added);
    assert_eq!(created.cut, [(created.place.origin, 1)].into());
    // Dave was in EU, has the add, and goes to US.
    let dave = w.connect(US, 9, "dave", "pc");
    assert_eq!(w.refused(dave, naming(text(1), &added)), Code::Behind);
    let forged = SendRequest {
        membership: Some(Box::new(MembershipOffer {
            author: (user("alice"), install("phone")),
            cut: [(added.place.origin, 99)].into(),
        })),
        ..offered(&added)
    };
    assert_eq!(w.refused(dave, forged), Code::NotAllowed, "the receipt covers the cut");
    let taken = w.take(dave, offered(&added));
    assert_eq!(taken.first, Some(added.place), "it keeps its place");
    w.take(dave, naming(text(1), &added));
    assert_eq!(w.present(US), ["alice", "bob", "carol", "dave"]);
    w.link(EU, US);
    w.link(EU, AP);
    w.pass(Duration::from_secs(10));
    for region in [EU, US, AP] {
        assert_eq!(w.present(region), ["alice", "bob", "carol", "dave"]);
        let state = w.core(region).disk.state(group());
        assert_eq!(state.fold.group().unwrap().member(&user("dave")).unwrap().generation, 1);
    }
}

#[test]
fn a_creation_whose_region_is_lost_is_offered_by_any_member() {
    let mut w = World::new();
    w.unlink(EU, US);
    w.unlink(EU, AP);
    let alice = w.connect(EU, 1, "alice", "phone");
    let created = w.take(alice, create(&FOUNDERS));
    let created = w.held(EU, &created);
    w.kill(EU);
    let bob = w.connect(US, 2, "bob", "pc"); // was in EU before, and holds the creation
    assert_eq!(w.refused(bob, naming(text(1), &created)), Code::Behind);
    assert_eq!(w.refused(bob, text(1)), Code::UnknownConversation);
    w.take(bob, offered(&created));
    w.take(bob, naming(text(1), &created));
    w.pass(Duration::from_secs(5));
    assert_eq!(w.present(AP), ["alice", "bob", "carol"]);
}

#[test]
fn a_message_that_arrives_before_the_creation_is_shown_once_that_came() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    w.unlink(EU, AP);
    w.take(alice, create(&FOUNDERS));
    let sent = w.take(bob, text(1));
    let carol = w.connect(AP, 3, "carol", "tab");
    w.told(carol).pushes.clear();
    w.pass(Duration::from_secs(10)); // US relays the creation
    assert_eq!(w.present(AP), ["alice", "bob", "carol"]);
    let row = w.core(AP).disk.rows[&(user("carol"), group())].clone();
    assert_eq!(row.heads.get(&sent.place.origin), Some(&1));
}

#[test]
fn a_change_that_is_not_allowed_is_refused_where_it_is_sequenced() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let carol = w.connect(US, 3, "carol", "tab");
    w.take(alice, create(&FOUNDERS));
    assert_eq!(w.refused(carol, remove(1, &[("bob", 1, 0)])), Code::NotAllowed);
    assert_eq!(w.refused(carol, add(1, &[("dave", 1, 0)], true)), Code::NotAllowed);
    assert_eq!(w.refused(carol, change(1, ADD, &v1::GroupAdd::default())), Code::BadChange);
    assert_eq!(w.refused(carol, SendRequest { kind: 60, ..text(1) }), Code::BadChange);
    w.take(carol, remove(1, &[("carol", 1, 0)]));
    assert_eq!(w.present(EU), ["alice", "bob"], "whoever wants to leave may");
}

#[test]
fn a_restart_has_the_same_members_from_its_checkpoint() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.take(alice, create(&FOUNDERS));
    w.take(alice, remove(2, &[("carol", 1, 0)]));
    for n in 3..300 {
        w.take(alice, text(n));
    }
    w.pass(Duration::from_secs(5));
    w.take(alice, text(300)); // its commit syncs what lies before it
    assert!(w.core(EU).disk.checkpoints.contains_key(&group()));
    w.kill(EU);
    w.start(EU);
    let alice = w.connect(EU, 2, "alice", "phone");
    w.take(alice, text(301));
    assert_eq!(w.present(EU), ["alice", "bob"]);
}

#[test]
fn members_and_cells_are_told_to_who_cannot_read_all_entries() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.take(alice, create(&FOUNDERS));
    let title = v1::Cell { key: "title".to_owned(), value: Bytes::from_static(b"dinner") };
    w.take(alice, change(2, crate::kinds::CELL, &title));
    w.take(alice, add(3, &[("dave", 1, 0)], false));
    let dave = w.connect(US, 9, "dave", "pc");
    w.frame(dave, 5, v1::frame::Body::PullCells(v1::PullCells { conversation: Bytes::copy_from_slice(&group().0) }));
    let cells = w.told(dave).frames.iter().find_map(|f| match &f.body {
        Some(v1::frame::Body::Cells(cells)) => Some(cells.clone()),
        _ => None,
    });
    let cells = cells.expect("an answer");
    let names: Vec<_> = cells.members.iter().map(|m| (m.user.as_str(), m.role)).collect();
    assert_eq!(names, [("alice", 1), ("bob", 1), ("carol", 0), ("dave", 0)]);
    assert_eq!(
        cells.cells.iter().map(|c| (c.key.as_str(), &c.value[..])).collect::<Vec<_>>(),
        [("title", &b"dinner"[..])]
    );
}

#[test]
fn a_change_that_is_sequenced_again_in_another_region_is_no_later_change() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    w.take(alice, create(&FOUNDERS));
    w.pass(Duration::from_secs(2));
    w.unlink(EU, US);
    w.unlink(EU, AP);
    let title = |n, text: &'static str| {
        change(n, CELL, &v1::Cell { key: "title".to_owned(), value: Bytes::from_static(text.as_bytes()) })
    };
    let role = |n, role| change(n, ROLE, &v1::GroupRole { members: members(&[("carol", 1, role)]) });
    w.take(alice, title(2, "hers"));
    w.take(alice, role(3, 1));
    w.pass(Duration::from_secs(1));
    w.take(bob, title(1, "his"));
    w.take(bob, role(2, 0));
    w.pass(Duration::from_secs(1));
    // Her acks were lost, and she sends both again where they are not known.
    let again = w.connect(US, 3, "alice", "phone");
    w.take(again, title(2, "hers"));
    w.take(again, role(3, 1));
    w.link(EU, US);
    w.link(EU, AP);
    w.pass(Duration::from_secs(10));
    for region in [EU, US, AP] {
        let state = w.core(region).disk.state(group());
        assert_eq!(state.fold.cell("title").map(|t| &t[..]), Some(&b"his"[..]), "region {region}");
        assert!(!state.fold.group().unwrap().is_admin(&user("carol")), "region {region}");
    }
}

/// The group's row as a page tells it.
fn row_in(rows: &v1::Rows) -> Option<crate::store::RowRecord> {
    let table = crate::wire::compact::TableReader::new(rows.origins.clone(), &rows.senders).unwrap();
    let row = rows.rows.iter().find(|r| r.conversation == group().0[..])?;
    let heads = |told| table.heads(told).unwrap();
    Some(crate::store::RowRecord {
        heads: heads(&row.heads),
        read: heads(&row.read),
        from: heads(&row.from),
        state: row.state,
        generation: row.generation,
        ..Default::default()
    })
}

impl World {
    /// Carol's row of the group, as a device without any is told it at a region that it comes to.
    fn row_at_first(&mut self, region: Region, conn: u64) -> crate::store::RowRecord {
        let c = self.hello(region, conn, "carol", &format!("i{conn}"), v1::Hello::default());
        row_in(self.told(c).welcome().rows.as_ref().unwrap()).expect("a row of the group")
    }

    /// What a device that was told this row of the group elsewhere is told when it compares.
    fn compared(
        &mut self,
        region: Region,
        conn: u64,
        row: &crate::store::RowRecord,
    ) -> Option<crate::store::RowRecord> {
        let hello = v1::Hello { compare: true, ..v1::Hello::default() };
        let c = self.hello(region, conn, "carol", &format!("i{conn}"), hello);
        let view = crate::buckets::RowView {
            conversation: group(),
            heads: &row.heads,
            read: &row.read,
            peer_read: &row.peer_read,
            from: &row.from,
            state: row.state,
            generation: row.generation,
        };
        let sums = crate::buckets::sums([view].into_iter(), crate::buckets::FEW);
        let hashes = v1::RowHashes { buckets: sums, total: 64, first_bucket: 0, at: None };
        self.frame(c, 5, v1::frame::Body::RowHashes(hashes));
        self.told(c).rows().last().and_then(row_in)
    }
}

#[test]
fn a_device_of_a_removed_member_hears_in_the_next_region_what_the_first_one_lacked() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    let eu = w.take(alice, create(&FOUNDERS)).place.origin;
    w.unlink(US, AP);
    let us = w.take(bob, text(1)).place.origin;
    w.take(alice, remove(2, &[("carol", 1, 0)]));
    let first = w.row_at_first(AP, 3);
    assert_eq!((first.state, &first.heads), (crate::buckets::LEFT, &[(eu, 2)].into()), "the removal came first");
    let told = w.compared(EU, 4, &first).expect("what was written before the removal is for her");
    assert_eq!(told.heads, [(eu, 2), (us, 1)].into());
    assert_eq!(w.compared(US, 5, &told).map(|row| row.heads), None, "nothing differs any more");
}

#[test]
fn a_device_of_a_removed_member_hears_in_the_next_region_what_she_has_read() {
    let mut w = World::new();
    let (alice, carol) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "carol", "pc"));
    let eu = w.take(alice, create(&FOUNDERS)).place.origin;
    w.take(alice, remove(2, &[("carol", 1, 0)]));
    w.unlink(EU, AP);
    w.unlink(US, AP);
    let read = vec![v1::OriginHead { origin: Some(eu.into()), seq: 2 }];
    w.frame(carol, 9, v1::frame::Body::Mark(v1::Mark { conversation: Bytes::copy_from_slice(&group().0), read }));
    w.pass(Duration::from_secs(2));
    let first = w.row_at_first(AP, 3);
    assert_eq!((first.state, first.read.len()), (crate::buckets::LEFT, 0));
    let told = w.compared(EU, 4, &first).expect("the mark is news");
    assert_eq!(told.read, [(eu, 2)].into());
}
