//! Histories of R8, R9, R11 and R16 as the client sees them: marks, comparing rows, settings, devices, erasure,
//! tokens.

use prost::Message as _;

use super::*;
use crate::edge_api::RowState;
use crate::kinds::{CELL, ERASE, ERASE_MINE};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn found<T>(d: &mut Device, pick: impl Fn(Body) -> Option<T>) -> Option<(u32, T)> {
    d.frames().into_iter().find_map(|f| Some((f.req, pick(f.body?)?)))
}

fn mark_of(body: Body) -> Option<v1::Mark> {
    if let Body::Mark(mark) = body { Some(mark) } else { None }
}

fn hashes_of(body: Body) -> Option<v1::RowHashes> {
    if let Body::RowHashes(hashes) = body { Some(hashes) } else { None }
}

/// Connected, with one message of bob, and the cursor of region 1 at rev 1.
fn with_a_message() -> (Device, ConnNo) {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let pull = found(&mut d, |b| matches!(b, Body::PullRows(_)).then_some(())).unwrap().0;
    d.body(conn, pull, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    d.frame(conn, 0, push(vec![bob(1, place(10, 1, 1), "a")], &[(origin(1), 1)], 0, 1));
    d.frames();
    (d, conn)
}

#[test]
fn a_mark_is_kept_until_it_is_durable_and_the_newest_is_sent_alone() {
    let (mut d, conn) = with_a_message();
    assert_eq!((d.book.unread(chat()), d.machine.unread_is_exact(chat())), (1, true));
    d.act(|m, now| m.mark_read(now, chat(), None));
    assert_eq!(d.book.unread(chat()), 0);
    let (first, mark) = found(&mut d, mark_of).expect("a mark");
    assert_eq!(mark.read[0].seq, 1);
    for seq in 2..5 {
        d.frame(conn, 0, push(vec![bob(seq, place(10 + seq, 1, seq), "b")], &[(origin(1), seq)], seq - 1, seq));
        d.act(|m, now| m.mark_read(now, chat(), None));
    }
    assert!(found(&mut d, mark_of).is_none(), "one is on the way");
    d.act(|m, now| m.ended(now, conn, &Failure::Network("cut".into())));
    d.crash(setup("alice"));
    let conn = d.connect(1, 4);
    let (again, mark) = found(&mut d, mark_of).expect("kept over a restart");
    assert_eq!(mark.read[0].seq, 4);
    d.body(conn, again, Body::Marked(v1::Marked {}));
    d.body(conn, first + 1000, Body::Marked(v1::Marked {}));
    assert!(found(&mut d, mark_of).is_none(), "durable");
    // A region that knows less is told again.
    let mut less = push_of(vec![], &[], 4, 5);
    less.row = Some(Box::new(RowState { read: Heads::from([(origin(1), 2)]), ..RowState::default() }));
    d.frame(conn, 0, Read::Push(less));
    assert_eq!(found(&mut d, mark_of).expect("less than is known").1.read[0].seq, 4);
}

#[test]
fn what_another_device_has_read_is_read_here_and_a_mark_that_is_refused_waits() {
    let (mut d, conn) = with_a_message();
    let mut told = push_of(vec![], &[], 1, 2);
    told.row = Some(Box::new(RowState {
        read: Heads::from([(origin(1), 1)]),
        peer_read: Heads::from([(origin(1), 7)]),
        ..RowState::default()
    }));
    d.frame(conn, 0, Read::Push(told));
    assert_eq!(d.book.unread(chat()), 0);
    assert!(d.events.contains(&Event::Read { conversation: chat() }));
    assert!(d.events.contains(&Event::PeerRead { conversation: chat() }));
    assert_eq!(d.machine.peer_read(chat()), Heads::from([(origin(1), 7)]));
    assert!(found(&mut d, mark_of).is_none(), "that region knows");
    d.frame(conn, 0, push(vec![bob(2, place(11, 1, 2), "b")], &[(origin(1), 2)], 2, 3));
    d.act(|m, now| m.mark_read(now, chat(), None));
    let (req, _) = found(&mut d, mark_of).unwrap();
    d.error(conn, req, Code::UnknownConversation, 1000);
    assert!(found(&mut d, mark_of).is_none());
    d.pass(ms(1100));
    assert!(found(&mut d, mark_of).is_some());
}

#[test]
fn unread_is_at_least_the_servers_number_while_heads_tell_of_more_than_is_held() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 5);
    let pull = found(&mut d, |b| matches!(b, Body::PullRows(_)).then_some(())).unwrap().0;
    let mut told = rows(&[(origin(1), 9)], None, Some(cursor(1, 5)), true);
    told.rows[0].unread = 9;
    d.body(conn, pull, Body::Rows(told));
    assert_eq!(d.machine.unread(chat(), d.book.unread(chat())), (9, false));
    let entries: Vec<_> = (1..=9).map(|n| bob(n, place(10 + n, 1, n), "x")).collect();
    let pull = found(&mut d, |b| matches!(b, Body::Pull(_)).then_some(())).unwrap().0;
    d.body(conn, pull, Body::Page(page(origin(1), &entries, vec![], true)));
    assert_eq!(d.machine.unread(chat(), d.book.unread(chat())), (9, true));
    let upto = d.book.upto(chat(), place(14, 1, 4));
    d.act(|m, now| m.mark_read(now, chat(), Some(&upto)));
    assert_eq!(d.machine.unread(chat(), d.book.unread(chat())), (5, true));
}

#[test]
fn a_region_never_visited_is_compared_with_and_the_cursor_comes_with_the_last_part() {
    let (mut d, conn) = with_a_message();
    d.act(|m, now| m.ended(now, conn, &Failure::Network("gone".into())));
    d.pass(ms(300));
    assert!(d.connects.last().unwrap().3.compare);
    let conn = d.connects.last().unwrap().0;
    let welcome = v1::Welcome {
        version: 1,
        cursor: Some(cursor(2, 40).into()),
        direct_salt: Bytes::from_static(SALT),
        rows: Some(v1::Rows::default()),
        ..v1::Welcome::default()
    };
    d.body(conn, 1, Body::Welcome(welcome));
    let frames = d.frames();
    assert!(!frames.iter().any(|f| matches!(f.body, Some(Body::PullRows(_)))), "no full list");
    let (req, hashes) =
        frames.into_iter().find_map(|f| Some((f.req, f.body.and_then(hashes_of)?))).expect("hashes instead");
    assert_eq!((hashes.total, hashes.buckets.len(), hashes.first_bucket), (64, 64, 0));
    assert_eq!(hashes.buckets.iter().filter(|h| **h != 0).count(), 1, "one row was told");
    // A push meanwhile moves no cursor and asks for nothing.
    d.frame(conn, 0, push(vec![bob(5, place(50, 2, 1), "new")], &[(origin(2), 1)], 40, 41));
    assert!(!d.frames().iter().any(|f| matches!(f.body, Some(Body::PullRows(_)))));
    let part = |next, last| v1::Rows {
        next_bucket: next,
        ..rows(&[(origin(1), 1), (origin(2), 1)], None, Some(cursor(2, 40)), last)
    };
    d.body(conn, req, Body::Rows(part(30, false)));
    assert!(!d.book.image().cursors.contains_key(&2), "not before the last part");
    let (req, second) = found(&mut d, hashes_of).unwrap();
    assert_eq!((second.first_bucket, second.buckets.len()), (30, 34));
    assert_eq!(second.at, Some(cursor(2, 40).into()));
    d.body(conn, req, Body::Rows(part(0, false)));
    assert_eq!(d.book.image().cursors[&2], cursor(2, 40));
    let above = found(&mut d, |b| if let Body::PullRows(p) = b { p.above } else { None });
    assert_eq!(above.expect("what changed since").1, cursor(2, 40).into());
}

#[test]
fn a_server_that_does_not_compare_is_asked_for_all_rows_and_a_crash_begins_anew() {
    let (mut d, _) = with_a_message();
    for refuses in [false, true] {
        d.crash(setup("alice"));
        d.connect(2, 9);
        let conn = d.connects.last().unwrap().0;
        // This helper's Welcome has no rows field at all: an older server.
        let asked = found(&mut d, |b| matches!(b, Body::PullRows(_)).then_some(()));
        assert!(asked.is_some());
        if refuses {
            d.act(|m, now| m.compare(now, false, false));
            let (req, _) = found(&mut d, hashes_of).unwrap();
            d.error(conn, req, Code::WrongMoment, 0);
            let again = found(&mut d, |b| matches!(b, Body::PullRows(_)).then_some(()));
            assert!(again.is_some(), "all rows, where they can't be compared");
        }
    }
}

#[test]
fn settings_are_cells_of_the_own_log_and_the_newest_writer_wins() {
    let (mut d, conn) = with_a_message();
    d.act(|m, now| m.block(now, &user("bob"), true, 1)).unwrap();
    assert!(d.machine.is_blocked(&user("bob")), "at once");
    assert_eq!(d.book.unread(chat()), 0, "nothing of his is unread");
    let (req, send) = d.sends().remove(0);
    let own = ConvId::own(SALT, &user("alice"));
    assert_eq!((send.conversation, send.kind, send.peer), (own, CELL, Some(user("alice"))));
    d.ack(conn, req, place(20, 1, 1), None);
    assert!(d.machine.is_blocked(&user("bob")));
    // Another device lifted it later, and that arrives with a copy of an older writing.
    let cell =
        |value: &'static [u8]| v1::Cell { key: "block/bob".into(), value: Bytes::from_static(value) }.encode_to_vec();
    let at = |n, hlc, region, seq, value| {
        let body = Bytes::from(cell(value));
        Arc::new(Entry {
            kind: CELL,
            body_hash: body_hash(&body),
            body,
            peer: Some(user("alice")),
            ..entry("alice", "tablet", n, place(hlc, region, seq), "")
        })
    };
    let lifted = Push {
        conversation: own,
        peer: Some(user("alice")),
        entries: vec![at(2, 30, 1, 2, b""), at(1, 15, 2, 1, b"\x08\x01")],
        heads: Heads::from([(origin(1), 2), (origin(2), 1)]),
        prev_rev: Rev(1),
        rev: Rev(2),
        row: None,
    };
    d.frame(conn, 0, Read::Push(lifted));
    assert!(!d.machine.is_blocked(&user("bob")));
    d.crash(setup("alice"));
    assert!(!d.machine.is_blocked(&user("bob")) && d.machine.blocked().is_empty());
    assert_eq!(d.act(|m, now| m.block(now, &user("alice"), true, 1)), Err(SetRefused::Oneself));
}

#[test]
fn a_copy_of_a_cell_counts_at_its_lowest_place() {
    let (mut d, conn) = with_a_message();
    let own = ConvId::own(SALT, &user("alice"));
    let muted = |until_ms| v1::MuteCell { until_ms }.encode_to_vec().into();
    let key = format!("mute/{}", chat());
    let at = |install: &str, place, until| {
        let body = Bytes::from(v1::Cell { key: key.clone(), value: muted(until) }.encode_to_vec());
        let by = entry("alice", install, 1, place, "");
        Arc::new(Entry { kind: CELL, body_hash: body_hash(&body), body, peer: Some(user("alice")), ..by })
    };
    let told = |entries: Vec<_>, prev| {
        let heads = entries.iter().map(|e: &Arc<Entry>| (e.place.origin, e.place.seq)).collect();
        let peer = Some(user("alice"));
        Read::Push(Push { conversation: own, peer, entries, heads, prev_rev: Rev(prev), rev: Rev(prev + 1), row: None })
    };
    d.frame(conn, 0, told(vec![at("x", place(90, 1, 1), 5), at("y", place(70, 1, 2), 7)], 1));
    assert_eq!(d.machine.muted_until(chat()), 5);
    // The first one's lower copy: it was set before the other.
    d.frame(conn, 0, told(vec![at("x", place(50, 2, 1), 5)], 2));
    assert_eq!(d.machine.muted_until(chat()), 7);
    d.crash(setup("alice"));
    assert_eq!(d.machine.muted_until(chat()), 7);
}

#[test]
fn a_device_writes_its_cell_once_and_a_kicked_one_stays_away() {
    let named = Setup { device: "phone".into(), ..setup("alice") };
    let mut d = Device::new(named.clone());
    let conn = d.connect(1, 0);
    let pull = found(&mut d, |b| matches!(b, Body::PullRows(_)).then_some(())).unwrap().0;
    d.body(conn, pull, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    let (req, send) = d.sends().remove(0);
    let cell = v1::Cell::decode(send.body).unwrap();
    assert_eq!(cell.key, "device/phone");
    assert_eq!(v1::DeviceCell::decode(cell.value).unwrap().name, "phone");
    d.ack(conn, req, place(20, 1, 1), None);
    d.crash(named);
    let conn = d.connect(1, 0);
    d.pass(ms(50));
    assert!(d.sends().is_empty(), "it is there");
    assert_eq!(d.machine.devices().len(), 1);
    d.body(conn, 0, Body::Error(crate::codes::Refusal::new(Code::Kicked, "stolen").to_wire()));
    assert!(d.events.iter().any(|e| matches!(e, Event::Kicked { code: 34, .. })));
    d.pass(Duration::from_secs(60));
    assert_eq!(d.machine.connection(), ConnectionState::Offline);
    assert_eq!(d.machine.devices().len(), 1, "it keeps its data");
}

#[test]
fn a_removed_device_is_told_why_however_its_connection_ends() {
    let kicked = Event::Kicked { code: 34, message: "stolen".into() };
    let refusal = crate::codes::Refusal::new(Code::Kicked, "stolen");
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let (code, retry) = (Code::Kicked as u32, Code::Kicked.retry());
    let closed = Failure::Refused { code, retry, after: Duration::ZERO, message: "stolen".into() };
    d.act(|m, now| m.ended(now, conn, &closed));
    assert!(d.events.contains(&kicked), "closed while connected");
    d.events.clear();
    d.connects.clear();
    d.act(Machine::connect);
    let conn = d.connects[0].0;
    d.body(conn, 0, Body::Error(refusal.to_wire()));
    assert!(d.events.contains(&kicked), "refused while connecting");
    assert_eq!(d.machine.connection(), ConnectionState::Offline);
}

#[test]
fn a_row_that_only_pushes_told_of_is_the_plain_row_of_a_member_when_it_is_compared() {
    let (d, _) = with_a_message();
    let image = d.book.image();
    let told = image.conversations[&chat()].record.told().expect("told by a push");
    assert_eq!((told.state, told.generation), (0, 1), "servers push a new row's state only where it is not plain");
}

#[test]
fn a_token_is_renewed_before_its_end_without_a_drop_and_again_after_a_refusal() {
    let mut d = Device::new(setup("alice"));
    d.connect(1, 0);
    let conn = d.connects.last().unwrap().0;
    d.act(|m, now| m.ended(now, conn, &Failure::Network("cut".into())));
    d.pass(ms(300));
    let conn = d.connects.last().unwrap().0;
    let welcome = v1::Welcome {
        version: 1,
        cursor: Some(cursor(1, 0).into()),
        wall_ms: 1_000_000,
        token_expires_ms: 1_000_000 + 40_000,
        ..v1::Welcome::default()
    };
    d.body(conn, 1, Body::Welcome(welcome));
    let token_of = |b| if let Body::Token(t) = b { Some(t.token) } else { None };
    for round in 0..3 {
        let begin = d.now;
        while d.tokens.is_empty() {
            d.pass(ms(100));
            // Whatever is asked is answered, so that the connection lives.
            for f in d.frames() {
                if let Some(Body::Ping(p)) = f.body {
                    d.body(conn, f.req, Body::Pong(v1::Pong { echo: p.echo, ..v1::Pong::default() }));
                } else if let Some(Body::PullRows(_)) = f.body {
                    d.body(conn, f.req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
                }
            }
            assert!(d.now - begin < Duration::from_secs(48), "before its end");
        }
        d.tokens.clear();
        d.act(|m, now| m.token(now, Some(format!("fresh-{round}"))));
        let (req, token) = found(&mut d, token_of).unwrap();
        assert_eq!(token, format!("fresh-{round}"));
        if round == 1 {
            d.error(conn, req, Code::TokenInvalid, 0);
        } else {
            d.body(conn, req, Body::TokenTaken(v1::TokenTaken { token_expires_ms: 1_000_000 + 80_000 }));
        }
    }
    assert!(!d.closed.contains(&conn), "the session lives on");
}

#[test]
fn an_erasure_takes_the_body_and_those_of_copies_that_come_later() {
    let (mut d, conn) = with_a_message();
    let by = Identity { user: user("bob"), install: InstallId::new("b").unwrap(), n: 1 };
    let author = Some(v1::Author { user: "bob".into(), install: "b".into() });
    let body = Bytes::from(v1::Erase { author, n: 1 }.encode_to_vec());
    let erase = Entry { kind: ERASE, body_hash: body_hash(&body), body, ..bob(2, place(30, 1, 2), "") };
    d.frame(conn, 0, push(vec![erase], &[(origin(1), 2)], 1, 2));
    assert!(d.changes.iter().any(|c| c.what == Placed::Erased));
    let of_bob = |d: &Device| {
        let all = d.book.timeline(chat(), 0, 99);
        all.into_iter().filter(|m| m.by == by).map(|m| (m.body.len(), m.erased)).collect::<Vec<_>>()
    };
    assert_eq!(of_bob(&d), [(0, true)]);
    assert_eq!(d.book.unread(chat()), 0);
    d.crash(setup("alice"));
    let conn = d.connect(1, 2);
    d.frame(conn, 0, push(vec![bob(1, place(5, 2, 1), "a")], &[(origin(2), 1)], 2, 3));
    assert_eq!(of_bob(&d), [(0, true)], "one message, without its body");
    // An erasure can come first.
    let by9 = v1::Author { user: "bob".into(), install: "b".into() };
    let body = Bytes::from(v1::Erase { author: Some(by9), n: 9 }.encode_to_vec());
    let erase = Entry { kind: ERASE, body_hash: body_hash(&body), body, ..bob(3, place(40, 1, 3), "") };
    d.frame(conn, 0, push(vec![erase, bob(9, place(39, 1, 4), "late")], &[(origin(1), 4)], 3, 4));
    assert!(d.book.timeline(chat(), 0, 99).iter().all(|m| &m.body[..] != b"late"));
}

#[test]
fn what_was_never_transmitted_is_withdrawn_and_what_was_is_erased_behind_itself() {
    let mut d = Device::new(setup("alice"));
    let first = d.send("unsent");
    let message = d.book.message(first).unwrap();
    assert_eq!(d.act(|m, now| m.erase(now, &message, 1)), Ok(Erased::Withdrawn));
    assert!(d.book.message(first).is_none());
    let conn = d.connect(1, 0);
    let sent = d.send("sent");
    let (req, send) = d.sends().remove(0);
    let message = d.book.message(sent).unwrap();
    assert!(matches!(d.act(|m, now| m.erase(now, &message, 1)), Ok(Erased::Asked(_))));
    let (erase, asked) = d.sends().remove(0);
    assert_eq!((asked.kind, asked.n), (ERASE, send.n + 1), "behind it");
    assert_eq!(&d.book.message(sent).unwrap().body[..], b"sent", "kept until it is acked");
    d.ack(conn, req, place(10, 1, 1), None);
    d.ack(conn, erase, place(11, 1, 2), None);
    let gone = d.book.message(sent).unwrap();
    assert!(gone.erased && gone.body.is_empty());
    assert!(d.book.image().outgoing.iter().all(|o| o.record.id != sent), "offered no more");
    d.crash(setup("alice"));
    let others = Message { by: bob(1, place(1, 1, 1), "").by, erased: false, ..gone };
    assert_eq!(d.act(|m, now| m.erase(now, &others, 1)), Err(EraseRefused::NotAllowed));
}

#[test]
fn all_that_one_wrote_goes_but_not_what_comes_after() {
    let (mut d, conn) = with_a_message();
    let old = d.send("old");
    let req = d.sends().remove(0).0;
    d.ack(conn, req, place(20, 1, 2), None);
    d.act(|m, now| m.erase_my_messages(now, chat(), 1)).unwrap();
    let (req, send) = d.sends().remove(0);
    assert_eq!(send.kind, ERASE_MINE);
    d.ack(conn, req, place(30, 1, 3), None);
    let new = d.send("new");
    let req = d.sends().remove(0).0;
    d.ack(conn, req, place(40, 1, 4), None);
    assert!(d.book.message(old).unwrap().erased && !d.book.message(new).unwrap().erased);
    assert!(d.book.timeline(chat(), 0, 99).iter().any(|m| &m.body[..] == b"a"), "others' stay");
}
