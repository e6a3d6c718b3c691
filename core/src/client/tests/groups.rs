//! Histories of R10 as the client sees them: groups made and changed offline, regions that lack them, refusals.

use prost::Message as _;

use super::*;
use crate::entry::Stamp;
use crate::kinds::{ADD, CELL, CREATE, REMOVE};
use crate::membership::Role;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn make(d: &mut Device, members: &[&str]) -> ConvId {
    let members: Vec<_> = members.iter().map(|m| user(m)).collect();
    d.act(|m, now| m.create_group(now, "team", &members, GroupOptions::default(), 1)).unwrap()
}

fn say(d: &mut Device, id: ConvId, text: &str) -> MessageId {
    d.act(|m, now| m.send(now, id, 0, Bytes::copy_from_slice(text.as_bytes()), 1)).unwrap()
}

fn names(d: &Device, id: ConvId) -> Vec<(String, bool)> {
    let group = d.machine.group(id).unwrap();
    group.members.into_iter().map(|m| (m.user.to_string(), m.pending)).collect()
}

fn cut(seq: u64) -> Heads {
    Heads::from([(origin(1), seq)])
}

fn ack_with_cut(d: &mut Device, conn: ConnNo, req: u32, at: Place) {
    d.frame(conn, req, Read::Ack(Ack { cut: cut(at.seq), ..ack_of(at, None) }));
}

/// A membership entry of another.
fn fact(who: &str, n: u64, at: Place, kind: u32, body: Vec<u8>) -> Entry {
    let stamp = crate::kinds::is_membership(kind).then(|| Arc::new(Stamp { cut: cut(at.seq), receipt: [4; 16] }));
    let body = Bytes::from(body);
    Entry { kind, body_hash: body_hash(&body), body, stamp, peer: None, ..entry(who, "i", n, at, "") }
}

fn member(name: &str, role: u32, generation: u64) -> v1::GroupMember {
    v1::GroupMember { user: name.to_owned(), role, generation }
}

fn created(who: &str, members: &[&str]) -> Entry {
    let members = members.iter().map(|m| member(m, u32::from(*m == who), 1)).collect();
    let create = v1::GroupCreate { members, title: "theirs".into(), ..v1::GroupCreate::default() };
    fact(who, 1, place(10, 1, 1), CREATE, create.encode_to_vec())
}

fn added(who: &str, n: u64, at: Place, name: &str, generation: u64) -> Entry {
    let add = v1::GroupAdd { members: vec![member(name, 0, generation)], history: false };
    fact(who, n, at, ADD, add.encode_to_vec())
}

fn group_push(id: ConvId, entries: Vec<Entry>, prev: u64, rev: u64) -> Read {
    Read::Push(group_push_of(id, entries, prev, rev))
}

fn group_push_of(id: ConvId, entries: Vec<Entry>, prev: u64, rev: u64) -> Push {
    let push = push_of(entries, &[], prev, rev);
    let heads = push.entries.iter().map(|e| (e.place.origin, e.place.seq)).collect();
    Push { conversation: id, peer: None, heads, ..push }
}

#[test]
fn a_group_of_501_is_refused_before_anything_is_kept() {
    let mut d = Device::new(setup("alice"));
    let users: Vec<_> = (0..500).map(|n| user(&format!("u{n}"))).collect();
    let refused = |d: &mut Device, members: &[UserId]| {
        d.act(|m, now| m.create_group(now, "crowd", members, GroupOptions::default(), 1))
    };
    let why = refused(&mut d, &users).unwrap_err();
    assert_eq!(why, GroupRefused::Full);
    assert_eq!(why.to_string(), "a group has at most 500 members");
    assert_eq!(d.machine.waiting(), (0, 0));
    // With the creator 500, and named twice he counts once.
    let many = [&users[..499], &users[..9]].concat();
    let id = refused(&mut d, &many).unwrap();
    assert_eq!(names(&d, id).len(), 500);
    let add = d.act(|m, now| m.group_add(now, id, &users[499..], false, 1));
    assert_eq!(add, Err(GroupRefused::Full));
    assert_eq!(d.machine.waiting().0, 1, "the creation alone");
}

#[test]
fn a_group_is_made_and_written_to_offline_and_all_of_it_goes_out_in_order() {
    let mut d = Device::new(setup("alice"));
    let id = make(&mut d, &["bob", "carol", "bob"]);
    say(&mut d, id, "hello");
    assert_eq!(names(&d, id), [("alice".into(), true), ("bob".into(), true), ("carol".into(), true)]);
    d.crash(setup("alice"));
    assert_eq!(d.machine.group(id).unwrap().title, "team");
    let conn = d.connect(1, 0);
    let sends = d.sends();
    assert_eq!(sends.iter().map(|(_, s)| (s.n, s.kind)).collect::<Vec<_>>(), [(1, CREATE), (2, 0)]);
    assert!(sends.iter().all(|(_, s)| s.named.is_none() && s.peer.is_none() && s.conversation == id));
    ack_with_cut(&mut d, conn, sends[0].0, place(10, 1, 1));
    ack_with_cut(&mut d, conn, sends[1].0, place(11, 1, 2));
    assert_eq!(names(&d, id), [("alice".into(), false), ("bob".into(), false), ("carol".into(), false)]);
    let alice = d.machine.group(id).unwrap().members[0].clone();
    assert_eq!((alice.role, alice.generation), (Role::Admin, 1));
    d.crash(setup("alice"));
    assert_eq!(names(&d, id).len(), 3, "what was acked is folded from the store");
}

#[test]
fn a_region_that_lacks_the_group_is_given_it_once_and_then_gets_what_it_refused() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let id = make(&mut d, &["bob"]);
    let req = d.sends().remove(0).0;
    ack_with_cut(&mut d, conn, req, place(10, 1, 1));
    d.frame(conn, 0, group_push(id, vec![added("bob", 1, place(20, 1, 2), "carol", 1)], 0, 1));
    d.act(|m, now| m.ended(now, conn, &Failure::Network("gone".into())));
    d.pass(ms(300));
    let conn = d.welcome(2, 0);
    say(&mut d, id, "here too");
    let (req, send) = d.sends().remove(0);
    assert_eq!(send.named.as_ref().map(|n| n.by.user.clone()), Some(user("bob")), "the newest change that is held");
    d.error(conn, req, Code::UnknownConversation, 0);
    let given = d.sends();
    assert_eq!(given.iter().map(|(_, s)| s.kind).collect::<Vec<_>>(), [CREATE, ADD], "the creation first");
    let add = &given[1].1;
    assert_eq!(add.membership.as_ref().map(|m| m.author.0.clone()), Some(user("bob")), "another's entry");
    assert_eq!(add.offer, Some((place(20, 1, 2), Bytes::copy_from_slice(&[4; 16]))));
    assert_eq!(add.membership.as_ref().map(|m| m.cut.clone()), Some(cut(2)));
    for (req, s) in given {
        let at = place(30, 2, s.n);
        d.frame(conn, req, Read::Ack(ack_of(at, s.offer.map(|(k, _)| k))));
    }
    let (req, again) = d.sends().remove(0);
    assert_eq!((again.n, &again.body[..]), (2, &b"here too"[..]));
    assert!(d.machine.conversations().count() == 1, "answers to what others wrote are no own messages");
    // It still refuses: it waits for something else, and is not given the same again at once.
    d.error(conn, req, Code::Behind, 0);
    assert!(d.sends().is_empty());
    d.pass(ms(1500));
    let repeated = d.sends();
    assert!(repeated.iter().all(|(_, s)| s.kind == 0) && repeated.len() < 6, "{}", repeated.len());
}

#[test]
fn what_region_refuses_a_change_is_undone_and_nothing_waits_for_it() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let id = make(&mut d, &["bob"]);
    let req = d.sends().remove(0).0;
    ack_with_cut(&mut d, conn, req, place(10, 1, 1));
    d.act(|m, now| m.group_add(now, id, &[user("carol")], false, 1)).unwrap();
    let text = say(&mut d, id, "welcome");
    assert_eq!(names(&d, id)[2], ("carol".into(), true));
    let sends = d.sends();
    d.error(conn, sends[0].0, Code::NotAllowed, 0);
    assert_eq!(names(&d, id).len(), 2, "as if it had never been");
    assert!(d.events.iter().any(|e| matches!(e, Event::ChangeRefused { kind: ADD, .. })));
    d.error(conn, sends[1].0, Code::OutOfOrder, 0);
    d.pass(ms(200));
    let (req, send) = d.sends().remove(0);
    assert_eq!((send.n, send.floor), (3, 3));
    ack_with_cut(&mut d, conn, req, place(12, 1, 2));
    assert_eq!(d.state(text), MessageState::Sent);
}

#[test]
fn a_refusal_is_final_only_where_no_other_store_can_have_taken_the_message() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let id = make(&mut d, &["bob"]);
    let req = d.sends().remove(0).0;
    ack_with_cut(&mut d, conn, req, place(10, 1, 1));
    let text = say(&mut d, id, "am I in?");
    d.sends();
    // The answer is lost with the connection; another region does not let him in.
    d.act(|m, now| m.ended(now, conn, &Failure::Network("gone".into())));
    d.crash(setup("alice"));
    let conn = { d.connect(2, 0) };
    let (req, _) = d.sends().remove(0);
    d.error(conn, req, Code::NotMember, 0);
    assert_eq!(d.state(text), MessageState::Unknown(Code::NotMember as u32));
    // Back in the first region, it is asked again, and it knows.
    d.act(|m, now| m.ended(now, conn, &Failure::Network("gone".into())));
    d.pass(ms(400));
    let conn = d.welcome(1, 0);
    let (req, again) = d.sends().remove(0);
    assert_eq!(&again.body[..], b"am I in?");
    ack_with_cut(&mut d, conn, req, place(11, 1, 2));
    assert_eq!(d.state(text), MessageState::Sent);
    // Refused where it was tried and nowhere else: that is final.
    let other = say(&mut d, id, "and now?");
    let (req, _) = d.sends().remove(0);
    d.error(conn, req, Code::NotMember, 0);
    assert_eq!(d.state(other), MessageState::Failed(Code::NotMember as u32));
}

#[test]
fn changes_of_others_arrive_in_any_order_and_removal_is_final_within_a_generation() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let id = ConvId([5; 16]);
    let remove = v1::GroupRemove { members: vec![member("carol", 0, 1)] };
    let removed = fact("bob", 3, place(30, 1, 3), REMOVE, remove.encode_to_vec());
    let title = v1::Cell { key: "title".into(), value: Bytes::from_static(b"new") };
    let titled = fact("bob", 4, place(40, 1, 4), CELL, title.encode_to_vec());
    let all = vec![titled, removed, added("bob", 2, place(20, 1, 2), "carol", 1), created("bob", &["bob", "alice"])];
    d.frame(conn, 0, group_push(id, all, 0, 1));
    assert_eq!(names(&d, id), [("alice".into(), false), ("bob".into(), false)]);
    assert_eq!(d.machine.group(id).unwrap().title, "new");
    assert!(d.act(|m, now| m.group_title(now, id, "mine", 1)).is_err(), "no admin");
    assert!(d.machine.unread_is_exact(id));
    assert_eq!(d.book.unread(id), 0, "changes are not messages");
    d.crash(setup("alice"));
    assert_eq!(names(&d, id).len(), 2);
}

#[test]
fn who_was_removed_reads_up_to_his_cut_and_can_not_send() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let id = ConvId([5; 16]);
    d.frame(conn, 0, group_push(id, vec![created("bob", &["bob", "alice"])], 0, 1));
    let mut push = group_push_of(id, Vec::new(), 1, 2);
    push.row = Some(Box::new(crate::edge_api::RowState { state: 1, generation: 1, ..Default::default() }));
    d.frame(conn, 0, Read::Push(push));
    let refused = d.act(|m, now| m.send(now, id, 0, Bytes::from_static(b"x"), 1));
    assert_eq!(refused, Err(SendRefused::Left(id)));
    assert!(d.machine.conversations().any(super::super::data::ConversationRecord::has_left));
    assert!(d.act(|m, now| m.group_leave(now, id, 1)).is_err());
}

#[test]
fn nothing_below_the_membership_is_asked_for_and_the_servers_fold_fills_in_who_is_there() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 5);
    let pull = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap();
    let id = ConvId([5; 16]);
    let mut table = Table::default();
    let row = v1::Row {
        conversation: Bytes::copy_from_slice(&id.0),
        heads: table.heads(&cut(9)),
        from: table.heads(&cut(7)),
        generation: 1,
        ..v1::Row::default()
    };
    let upto = Some(cursor(1, 5).into());
    let rows = v1::Rows { origins: table.wire_origins, rows: vec![row], upto, last: true, ..v1::Rows::default() };
    d.body(conn, pull.req, Body::Rows(rows));
    let frames = d.frames();
    let pulls: Vec<_> = frames
        .iter()
        .filter_map(|f| match &f.body {
            Some(Body::Pull(p)) => Some((f.req, p.from, p.to)),
            _ => None,
        })
        .collect();
    assert_eq!(pulls.iter().map(|p| (p.1, p.2)).collect::<Vec<_>>(), [(8, 9)]);
    let mut table = Table::default();
    let entries: Vec<_> = [added("bob", 8, place(80, 1, 8), "alice", 1), entry("bob", "i", 9, place(90, 1, 9), "hi")]
        .iter()
        .map(|e| table.entry(e))
        .collect();
    let page = v1::Page {
        conversation: Bytes::copy_from_slice(&id.0),
        origin: Some(origin(1).into()),
        entries,
        last: true,
        origins: table.wire_origins,
        senders: table.wire_senders,
        ..v1::Page::default()
    };
    d.body(conn, pulls[0].0, Body::Page(page));
    assert!(d.machine.unread_is_exact(id) && d.machine.reached_start(id));
    let frames = d.frames();
    let asked = frames.iter().find(|f| matches!(f.body, Some(Body::PullCells(_)))).expect("who else is there?");
    let cells = v1::Cells {
        conversation: Bytes::copy_from_slice(&id.0),
        members: ["alice", "bob", "dan"]
            .iter()
            .map(|u| v1::MemberState { user: (*u).to_owned(), role: u32::from(*u == "bob"), generation: 1 })
            .collect(),
        cells: vec![v1::FoldedCell {
            key: "title".into(),
            value: Bytes::from_static(b"old team"),
            at: Some(place(10, 1, 1).into()),
        }],
        upto: crate::wire::compact::origin_heads_to_wire(&cut(9)),
        ..v1::Cells::default()
    };
    d.body(conn, asked.req, Body::Cells(cells));
    assert_eq!(names(&d, id).len(), 3);
    assert_eq!(d.machine.group(id).unwrap().title, "old team");
    assert!(!d.frames().iter().any(|f| matches!(f.body, Some(Body::PullCells(_)))), "asked once");
    d.crash(setup("alice"));
    assert_eq!(names(&d, id).len(), 3);
}
