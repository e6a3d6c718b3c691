//! Histories of R3, R4, R5, R7, R9 and R14 as the client sees them.

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_message_is_stored_before_it_is_sent_and_stays_until_a_second_region_has_it() {
    let mut d = Device::new(setup("alice"));
    let id = d.send("hi");
    assert_eq!(d.shown(), ["hi"], "offline: in the store, at the end");
    let conn = d.connect(1, 0);
    let (req, send) = d.sends().remove(0);
    assert_eq!((send.n, send.floor, send.peer), (1, 1, Some(user("bob"))));
    assert_eq!(send.conversation, chat(), "the salt came with the Welcome");
    d.ack(conn, req, place(10, 1, 1), None);
    assert_eq!(d.state(id), MessageState::Sent);
    assert!(d.events.contains(&Event::Sent { conversation: chat(), id }));
    d.stable(conn, origin(1), 0, false);
    assert_eq!(d.state(id), MessageState::Sent);
    d.stable(conn, origin(1), 1, false);
    assert_eq!(d.state(id), MessageState::Stable);
    assert!(d.events.contains(&Event::Stable { conversation: chat(), id, regions: 2 }));
    assert_eq!(d.machine.waiting(), (0, 0));
    assert!(d.book.image().outgoing.is_empty());
}

#[test]
fn an_ack_lost_with_its_connection_is_asked_for_again_under_the_same_identity() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.send("one");
    let first = d.sends().remove(0).1;
    d.act(|m, now| m.ended(now, conn, &Failure::Network("cut".into())));
    d.pass(ms(200));
    let conn = d.welcome(1, 0);
    let (req, again) = d.sends().remove(0);
    assert_eq!((first.n, &first.body), (again.n, &again.body));
    d.ack(conn, req, place(10, 1, 1), None);
    assert!(d.sends().is_empty());
    assert_eq!(d.shown(), ["one"]);
}

#[test]
fn an_ack_tells_of_earlier_acks_that_were_lost() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let (one, two) = (d.send("one"), d.send("two"));
    let reqs: Vec<_> = d.sends().iter().map(|(r, _)| *r).collect();
    let held = HeldAck { n: 1, place: place(10, 1, 1), first: None, receipt: [3; 16], cut: Heads::new() };
    let ack = Ack { also: vec![held], ..ack_of(place(11, 1, 2), None) };
    d.frame(conn, reqs[1], Read::Ack(ack));
    assert_eq!((d.state(one), d.state(two)), (MessageState::Sent, MessageState::Sent));
}

#[test]
fn a_crash_at_any_moment_keeps_identity_and_order() {
    let mut d = Device::new(setup("alice"));
    d.connect(1, 0);
    let ids: Vec<_> = (0..5).map(|i| d.send(&format!("m{i}"))).collect();
    let before: Vec<_> = d.sends().into_iter().map(|(_, s)| (s.n, s.body)).collect();
    d.crash(setup("alice"));
    let conn = d.connect(1, 0);
    let sends = d.sends();
    assert_eq!(before, sends.iter().map(|(_, s)| (s.n, s.body.clone())).collect::<Vec<_>>());
    for (i, (req, _)) in sends.into_iter().enumerate() {
        let i = i as u64;
        d.ack(conn, req, place(10 + i, 1, 1 + i), None);
    }
    assert_eq!(d.shown(), ["m0", "m1", "m2", "m3", "m4"]);
    d.crash(setup("alice"));
    assert_eq!(d.shown(), ["m0", "m1", "m2", "m3", "m4"]);
    assert!(ids.iter().all(|id| d.state(*id) == MessageState::Sent));
    let next = d.send("m5");
    assert!(!ids.contains(&next));
    assert_eq!(d.book.image().outgoing.last().unwrap().record.n, 6);
}

#[test]
fn m10_acked_its_region_dies_and_m11_goes_elsewhere_before_m10_is_offered_again() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let ten = d.send("m10");
    let req = d.sends().remove(0).0;
    d.ack(conn, req, place(10, 1, 1), None);
    d.act(|m, now| m.ended(now, conn, &Failure::Network("gone".into())));
    d.pass(ms(300));
    let conn = d.welcome(2, 0);
    assert_eq!(d.connects.last().unwrap().3.unstable.len(), 1, "the Hello names what is unstable");
    let eleven = d.send("m11");
    let (req, send) = d.sends().remove(0);
    assert!(send.seen_hlc >= 10 && send.floor == 2, "m10 is acked");
    d.ack(conn, req, place(20, 2, 1), None);
    d.stable(conn, origin(1), 0, true);
    assert!(d.events.contains(&Event::ReOffered { conversation: chat(), count: 1 }));
    let (req, offer) = d.sends().remove(0);
    assert_eq!(offer.n, 1);
    assert_eq!(offer.offer, Some((place(10, 1, 1), Bytes::copy_from_slice(&[9; 16]))), "with its key and receipt");
    d.stable(conn, origin(1), 0, true);
    assert!(d.sends().is_empty(), "offered once");
    d.ack(conn, req, place(21, 2, 2), Some(place(10, 1, 1)));
    assert_eq!(d.shown(), ["m10", "m11"], "it keeps its place");
    d.stable(conn, origin(2), 2, false);
    assert_eq!((d.state(ten), d.state(eleven)), (MessageState::Stable, MessageState::Stable));
}

#[test]
fn a_copy_that_does_not_hold_the_lowest_key_releases_nothing() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let id = d.send("x");
    let req = d.sends().remove(0).0;
    d.ack(conn, req, place(10, 1, 1), None);
    // A copy with a higher key comes from region 2, where an un-acked resend was sequenced before.
    let copy = entry("alice", "phone", 1, place(15, 2, 1), "x");
    d.frame(conn, 0, push(vec![copy], &[(origin(1), 1), (origin(2), 1)], 0, 1));
    d.stable(conn, origin(2), 1, false);
    assert_eq!(d.state(id), MessageState::Sent, "region 1 can still lose the copy that is shown");
    d.stable(conn, origin(1), 1, false);
    assert_eq!(d.state(id), MessageState::Stable);
    assert_eq!(d.shown(), ["x"], "shown once");
}

#[test]
fn two_copies_of_one_identity_are_shown_once_at_the_lowest_key_and_moved_is_told() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.frame(conn, 0, push(vec![bob(1, place(50, 1, 1), "a"), bob(2, place(60, 1, 2), "b")], &[(origin(1), 2)], 0, 1));
    assert_eq!(d.shown(), ["a", "b"]);
    assert_eq!(d.changes.iter().filter(|c| c.what == Placed::Appended).count(), 2);
    d.changes.clear();
    d.frame(conn, 0, push(vec![bob(2, place(40, 2, 1), "b")], &[(origin(1), 2), (origin(2), 1)], 1, 2));
    assert_eq!(d.shown(), ["b", "a"]);
    assert_eq!(d.changes.len(), 1);
    assert_eq!(d.changes[0].what, Placed::Moved { after: None });
    // The same again, and once more after a restart: nothing new is shown.
    d.changes.clear();
    d.crash(setup("alice"));
    let conn = d.connect(1, 2);
    d.frame(conn, 0, push(vec![bob(2, place(70, 3, 1), "b")], &[(origin(3), 1)], 2, 3));
    assert_eq!(d.shown(), ["b", "a"]);
    assert!(d.changes.is_empty());
}

#[test]
fn copies_with_different_bodies_are_two_messages() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.frame(
        conn,
        0,
        push(vec![bob(1, place(50, 1, 1), "a"), bob(1, place(60, 2, 1), "b")], &[(origin(1), 1), (origin(2), 1)], 0, 1),
    );
    assert_eq!(d.shown(), ["a", "b"]);
}

#[test]
fn a_late_entry_is_inserted_where_it_belongs_and_named_after_its_predecessor() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.frame(conn, 0, push(vec![bob(1, place(10, 1, 1), "a"), bob(3, place(30, 1, 2), "c")], &[(origin(1), 2)], 0, 1));
    let first = d.changes[0].id;
    d.changes.clear();
    d.frame(conn, 0, push(vec![bob(2, place(20, 2, 1), "b")], &[(origin(2), 1)], 1, 2));
    assert_eq!(d.shown(), ["a", "b", "c"]);
    assert_eq!(d.changes[0].what, Placed::Inserted { after: Some(first) });
}

#[test]
fn a_push_after_a_dropped_push_does_not_move_the_cursor_and_rows_are_pulled() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 5);
    let pull = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).expect("first rows");
    d.body(conn, pull.req, Body::Rows(rows(&[(origin(1), 1)], None, Some(cursor(1, 5)), true)));
    assert_eq!(d.book.image().cursors[&1], cursor(1, 5));
    d.frames();
    // rev 6 is lost on the way; rev 7 comes.
    d.frame(conn, 0, push(vec![bob(3, place(30, 1, 3), "3")], &[(origin(1), 3)], 6, 7));
    assert_eq!(d.book.image().cursors[&1], cursor(1, 5), "it would hide what rev 6 was about");
    let frames = d.frames();
    let Some(Body::PullRows(pull)) =
        frames.iter().find_map(|f| f.body.clone().filter(|b| matches!(b, Body::PullRows(_))))
    else {
        panic!("{frames:?}")
    };
    assert_eq!(pull.above, Some(cursor(1, 5).into()));
    assert!(frames.iter().any(|f| matches!(&f.body, Some(Body::Pull(p)) if p.from == 2 && p.to == 2)), "{frames:?}");
}

#[test]
fn a_push_from_the_cursor_moves_it_and_is_acked_once_within_100_ms() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let pull = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap();
    d.body(conn, pull.req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    d.frame(conn, 0, push(vec![bob(1, place(10, 1, 1), "a")], &[(origin(1), 1)], 0, 1));
    d.frame(conn, 0, push(vec![bob(2, place(11, 1, 2), "b")], &[(origin(1), 2)], 1, 2));
    assert_eq!(d.book.image().cursors[&1], cursor(1, 2));
    let acks = |d: &mut Device| {
        d.frames().into_iter().filter(|f| matches!(f.body, Some(Body::PushAck(v1::PushAck { rev: 2 })))).count()
    };
    assert_eq!(acks(&mut d), 0);
    d.pass(ms(100));
    assert_eq!(acks(&mut d), 1);
}

#[test]
fn a_preview_shows_messages_and_never_moves_the_cursor() {
    let mut d = Device::new(setup("alice"));
    d.act(Machine::connect);
    d.act(|m, now| m.token(now, Some("t".into())));
    let conn = d.connects.last().unwrap().0;
    let mut table = Table::default();
    let e = table.entry(&bob(9, place(90, 1, 9), "newest"));
    let mut preview = rows(&[(origin(1), 9)], None, Some(cursor(1, 99)), true);
    preview.preview = true;
    preview.rows[0].inline = vec![e];
    preview.senders = table.wire_senders;
    let welcome = v1::Welcome {
        version: 1,
        cursor: Some(cursor(1, 99).into()),
        direct_salt: Bytes::from_static(SALT),
        rows: Some(preview),
        ..v1::Welcome::default()
    };
    d.body(conn, 1, Body::Welcome(welcome));
    assert_eq!(d.shown(), ["newest"]);
    assert!(d.book.image().cursors.is_empty());
    assert!(d.frames().iter().any(|f| matches!(&f.body, Some(Body::PullRows(p)) if p.above.is_none())));
}

#[test]
fn a_page_of_rows_moves_the_cursor_only_if_it_follows() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 9);
    let pull = |d: &mut Device| {
        d.frames().into_iter().rev().find(|f| matches!(f.body, Some(Body::PullRows(_)))).map(|f| f.req)
    };
    let req = pull(&mut d).unwrap();
    d.body(conn, req, Body::Rows(rows(&[(origin(1), 1)], None, Some(cursor(1, 4)), false)));
    assert_eq!(d.book.image().cursors[&1], cursor(1, 4));
    let req = pull(&mut d).expect("the next page");
    // Changes after 6: what changed between 4 and 6 would be hidden.
    d.body(conn, req, Body::Rows(rows(&[(origin(1), 3)], Some(cursor(1, 6)), Some(cursor(1, 9)), true)));
    assert_eq!(d.book.image().cursors[&1], cursor(1, 4));
    // A cursor of another era is none.
    let other = Cursor { store: Origin { region: 1, era: 8 }, rev: Rev(9) };
    d.frame(conn, 0, Read::Other(v1::Frame::new(0, Body::Rows(rows(&[], None, Some(other), true)))));
    assert_eq!(d.book.image().cursors[&1], cursor(1, 4));
}

#[test]
fn only_a_server_that_says_so_takes_a_cursor_back() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 50);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[], None, Some(cursor(1, 50)), true)));
    let mut back = rows(&[(origin(1), 1)], None, Some(cursor(1, 3)), true);
    d.frame(conn, 0, Read::Other(v1::Frame::new(0, Body::Rows(back.clone()))));
    assert_eq!(d.book.image().cursors[&1], cursor(1, 50));
    d.body(conn, 0, Body::Advance(v1::Advance { rev: 51 }));
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    back.reset = v1::CursorReset::FromTheFuture as i32;
    d.body(conn, req, Body::Rows(back));
    assert_eq!(d.book.image().cursors[&1], cursor(1, 3));
}

#[test]
fn what_is_told_is_pulled_newest_first_and_a_gap_ends_the_wait() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.frame(conn, 0, push(vec![bob(1, place(10, 1, 1), "1")], &[(origin(1), 1)], 0, 1));
    d.frames();
    d.frame(conn, 0, push(vec![], &[(origin(1), 4)], 1, 2));
    let frame = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::Pull(_)))).unwrap();
    let Some(Body::Pull(pull)) = &frame.body else { panic!() };
    assert_eq!((pull.from, pull.to), (2, 4));
    d.body(conn, frame.req, Body::Page(page(origin(1), &[bob(4, place(40, 1, 4), "4")], vec![], false)));
    let gap = v1::Gap { from: 2, to: 3, reason: v1::gap::Reason::NotHere as i32 };
    d.body(conn, frame.req, Body::Page(page(origin(1), &[], vec![gap], true)));
    assert_eq!(d.shown(), ["1", "4"]);
    assert!(!d.frames().iter().any(|f| matches!(f.body, Some(Body::Pull(_)))), "not at once");
    assert!(!d.machine.unread_is_exact(chat()));
    d.pass(Duration::from_millis(1100));
    let frame = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::Pull(_)))).expect("but later");
    let gap = v1::Gap { from: 2, to: 3, reason: v1::gap::Reason::Lost as i32 };
    d.body(conn, frame.req, Body::Page(page(origin(1), &[], vec![gap], true)));
    let lost = Event::Gap { conversation: chat(), origin: origin(1), from: 2, to: 3, reason: v1::gap::Reason::Lost };
    assert!(d.events.contains(&lost));
    assert!(d.machine.unread_is_exact(chat()));
    // Lost is a status: a tail that turns up later is shown.
    d.frame(conn, 0, push(vec![bob(2, place(20, 1, 2), "2")], &[(origin(1), 4)], 2, 3));
    assert_eq!(d.shown(), ["1", "2", "4"]);
}

#[test]
fn a_conversation_seen_for_the_first_time_is_pulled_from_its_end_and_paged_back() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 1);
    let req = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap().req;
    d.body(conn, req, Body::Rows(rows(&[(origin(1), 130)], None, Some(cursor(1, 1)), true)));
    let serve = |d: &mut Device| {
        let frame = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::Pull(_)))).expect("a pull");
        let Some(Body::Pull(p)) = &frame.body else { panic!() };
        let (from, to) = (p.from, p.to);
        let entries: Vec<_> = (from..=to).map(|n| bob(n, place(n * 10, 1, n), &n.to_string())).collect();
        d.body(conn, frame.req, Body::Page(page(origin(1), &entries, vec![], true)));
        (from, to)
    };
    assert_eq!(serve(&mut d), (81, 130));
    assert_eq!((d.shown().len(), d.shown()[0].as_str()), (50, "81"));
    assert!(!d.machine.reached_start(chat()));
    assert!(!d.act(|m, now| m.page_back(now, chat(), 60)));
    assert_eq!(serve(&mut d), (21, 80));
    assert!(!d.act(|m, now| m.page_back(now, chat(), 60)));
    assert_eq!(serve(&mut d), (1, 20));
    assert_eq!(d.shown().len(), 130);
    assert!(d.machine.reached_start(chat()));
    assert!(d.act(|m, now| m.page_back(now, chat(), 60)));
}

#[test]
fn unread_counts_what_others_sent_above_the_mark_once_each() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let other_device = entry("alice", "tablet", 1, place(12, 1, 3), "mine");
    let all = vec![bob(1, place(10, 1, 1), "a"), bob(2, place(11, 1, 2), "b"), other_device];
    d.frame(conn, 0, push(all, &[(origin(1), 3)], 0, 1));
    assert_eq!(d.book.unread(chat()), 2);
    assert!(d.machine.unread_is_exact(chat()));
    d.act(|m, now| m.mark_read(now, chat(), None));
    assert_eq!(d.book.unread(chat()), 0);
    // A re-offered copy of what was read, and something new.
    d.frame(conn, 0, push(vec![bob(2, place(30, 2, 1), "b"), bob(3, place(31, 2, 2), "c")], &[(origin(2), 2)], 1, 2));
    assert_eq!(d.book.unread(chat()), 1);
    d.crash(setup("alice"));
    assert_eq!(d.book.unread(chat()), 1);
}

#[test]
fn a_refusal_for_good_stops_what_follows_until_it_is_discarded() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let (bad, next) = (d.send("bad"), d.send("next"));
    let sends = d.sends();
    d.error(conn, sends[0].0, Code::NotMember, 0);
    d.error(conn, sends[1].0, Code::OutOfOrder, 0);
    assert_eq!(d.state(bad), MessageState::Failed(Code::NotMember as u32));
    d.pass(ms(900));
    assert!(d.sends().is_empty(), "held back, visibly");
    d.alive(conn);
    assert!(d.act(|m, now| m.discard(now, next)).is_err(), "it may have been sent");
    d.act(|m, now| m.discard(now, bad)).unwrap();
    let (req, send) = d.sends().remove(0);
    assert_eq!((send.n, send.floor), (2, 2));
    d.ack(conn, req, place(10, 1, 1), None);
    assert_eq!(d.shown(), ["next"]);
}

#[test]
fn a_failed_message_can_be_tried_again_and_keeps_its_identity() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let id = d.send("x");
    let (req, first) = d.sends().remove(0);
    d.error(conn, req, Code::NotMember, 0);
    d.act(|m, now| m.retry(now, id)).unwrap();
    let (req, again) = d.sends().remove(0);
    assert_eq!(first.n, again.n);
    d.ack(conn, req, place(10, 1, 1), None);
    assert_eq!(d.state(id), MessageState::Sent);
}

#[test]
fn a_rate_limit_pauses_the_whole_window_once_and_order_is_kept() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    for i in 0..10 {
        d.send(&i.to_string());
    }
    for (i, (req, _)) in d.sends().into_iter().enumerate() {
        let (code, after) = if i == 0 { (Code::RateLimited, 150) } else { (Code::OutOfOrder, 0) };
        d.error(conn, req, code, after);
    }
    d.pass(ms(149));
    assert!(d.sends().is_empty());
    d.pass(ms(2));
    assert_eq!(d.sends().iter().map(|(_, s)| s.n).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
}

#[test]
fn who_is_refused_for_load_comes_back_when_told_with_one_message_and_then_with_the_rest() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    for i in 0..5 {
        d.send(&i.to_string());
    }
    for (req, _) in d.sends() {
        d.error(conn, req, Code::Overloaded, 2_000);
    }
    d.pass(ms(1_999));
    d.alive(conn);
    assert!(d.sends().is_empty());
    d.pass(ms(2));
    let again = d.sends();
    assert_eq!(again.iter().map(|(_, s)| (s.n, s.floor)).collect::<Vec<_>>(), [(1, 1)], "one asks");
    d.error(conn, again[0].0, Code::Overloaded, 300);
    d.pass(ms(299));
    d.alive(conn);
    assert!(d.sends().is_empty());
    d.pass(ms(2));
    let (req, _) = d.sends().remove(0);
    d.ack(conn, req, place(10, 1, 1), None);
    assert_eq!(d.sends().iter().map(|(_, s)| (s.n, s.floor)).collect::<Vec<_>>(), [(2, 2), (3, 2), (4, 2), (5, 2)]);
}

#[test]
fn a_region_that_is_behind_is_offered_what_it_lacks_and_told_the_peer() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.send("one");
    let req = d.sends().remove(0).0;
    d.ack(conn, req, place(10, 1, 1), None);
    d.send("two");
    let (req, send) = d.sends().remove(0);
    assert_eq!(send.peer, None, "the region has acked something of it");
    d.error(conn, req, Code::UnknownConversation, 0);
    d.pass(ms(250));
    let sends = d.sends();
    let two = sends.iter().find(|(_, s)| s.n == 2).unwrap();
    assert_eq!(two.1.peer, Some(user("bob")));
    assert!(sends.iter().any(|(_, s)| s.n == 1 && s.offer.is_some()));
}

#[test]
fn an_identity_that_is_taken_gets_a_new_install_id_once_nothing_is_open() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let (one, two) = (d.send("one"), d.send("two"));
    let sends = d.sends();
    d.error(conn, sends[0].0, Code::IdentityConflict, 0);
    let three = d.send("three");
    assert!(d.sends().is_empty(), "two is open: it may be durable under the old identity");
    d.ack(conn, sends[1].0, place(20, 1, 2), None);
    assert_eq!(d.state(two), MessageState::Sent);
    let image = d.book.image();
    assert_ne!(image.install.as_str(), "phone");
    let of = |id| image.outgoing.iter().find(|o| o.record.id == id).unwrap().record.clone();
    assert_eq!((of(one).n, of(three).n), (1, 2));
    assert_eq!((&of(one).install, &of(three).install), (&image.install, &image.install));
    assert_eq!(of(two).install.as_str(), "phone", "what was acked keeps its identity");
    // A new connection speaks for the new id.
    let hello = &d.connects.last().unwrap().3;
    assert_eq!(hello.install, image.install.as_str());
    d.welcome(1, 0);
    assert_eq!(d.sends().iter().map(|(_, s)| s.n).collect::<Vec<_>>(), [1, 2]);
    assert!(d.closed.contains(&conn));
}

#[test]
fn after_a_restored_backup_old_messages_go_first_under_their_old_install() {
    let mut d = Device::new(setup("alice"));
    d.send("learns the salt");
    let conn = d.connect(1, 0);
    let req = d.sends().remove(0).0;
    d.ack(conn, req, place(5, 1, 1), None);
    d.stable(conn, origin(1), 1, false);
    let old = d.send("old");
    d.book.set_install(InstallId::new("phone-2").unwrap(), true);
    d.crash(setup("alice"));
    let new = d.send("new");
    let conn = d.connect(1, 0);
    assert_eq!(d.connects.last().unwrap().3.install, "phone");
    let sends = d.sends();
    assert_eq!((sends.len(), sends[0].1.n, &sends[0].1.body[..]), (1, 2, &b"old"[..]));
    d.ack(conn, sends[0].0, place(10, 1, 2), None);
    assert_eq!(d.connects.last().unwrap().3.install, "phone-2");
    let conn = d.welcome(1, 0);
    let sends = d.sends();
    assert_eq!((sends.len(), sends[0].1.n), (1, 1));
    d.ack(conn, sends[0].0, place(11, 1, 3), None);
    assert_eq!((d.state(old), d.state(new)), (MessageState::Sent, MessageState::Sent));
    assert_eq!(d.shown(), ["learns the salt", "old", "new"]);
}

#[test]
fn an_own_message_pushed_from_another_region_is_no_ack() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let id = d.send("x");
    let req = d.sends().remove(0).0;
    let copy = entry("alice", "phone", 1, place(15, 2, 1), "x");
    d.frame(conn, 0, push(vec![copy], &[(origin(2), 1)], 0, 1));
    assert_eq!(d.state(id), MessageState::Queued, "no receipt: it could not be offered again");
    assert_eq!(d.shown(), ["x"]);
    d.ack(conn, req, place(15, 2, 1), None);
    assert_eq!(d.state(id), MessageState::Sent);
    assert_eq!(d.shown(), ["x"]);
}

#[test]
fn a_receipt_that_was_refused_makes_the_fresh_place_count() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let id = d.send("x");
    let req = d.sends().remove(0).0;
    d.ack(conn, req, place(10, 1, 1), None);
    d.stable(conn, origin(1), 0, true);
    let req = d.sends().remove(0).0;
    d.frame(conn, req, Read::Ack(Ack { receipt_refused: true, ..ack_of(place(30, 2, 1), None) }));
    d.stable(conn, origin(2), 1, false);
    assert_eq!(d.state(id), MessageState::Stable);
}

#[test]
fn stability_is_asked_for_soon_and_again_every_five_seconds() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.send("x");
    let req = d.sends().remove(0).0;
    d.ack(conn, req, place(10, 1, 1), None);
    let asked = |d: &mut Device| d.frames().iter().filter(|f| matches!(f.body, Some(Body::Unstable(_)))).count();
    d.pass(ms(60));
    assert_eq!(asked(&mut d), 1);
    for _ in 0..2 {
        let echo = u32::MAX;
        d.body(conn, 0, Body::Pong(v1::Pong { echo, ..v1::Pong::default() }));
        d.pass(Duration::from_secs(5));
        assert_eq!(asked(&mut d), 1);
    }
    d.stable(conn, origin(1), 1, false);
    d.pass(Duration::from_secs(6));
    assert_eq!(asked(&mut d), 0);
}

#[test]
fn sends_before_the_first_welcome_ever_get_their_conversation_later() {
    let mut d = Device::new(setup("alice"));
    let provisional = d.machine.direct_id(&user("bob"));
    let id = d.send("early");
    assert_ne!(provisional, chat());
    d.crash(setup("alice"));
    d.connect(1, 0);
    assert_eq!(d.book.message(id).unwrap().conversation, chat());
    assert_eq!(d.book.image().outgoing[0].record.n, 1);
    assert!(d.events.contains(&Event::Renamed { from: provisional, to: chat() }));
    assert_eq!(d.sends()[0].1.conversation, chat());
    assert_eq!(d.shown(), ["early"]);
}

#[test]
fn a_body_above_the_limit_and_a_full_outbox_are_refused_at_once() {
    let mut d = Device::new(setup("alice"));
    let id = d.act(|m, _| m.direct(&user("bob")));
    let big = Bytes::from(vec![0; crate::limits::BODY_BYTES + 1]);
    assert_eq!(d.act(|m, now| m.send(now, id, 0, big, 1)), Err(SendRefused::TooLarge(crate::limits::BODY_BYTES + 1)));
    let unknown = ConvId([1; 16]);
    assert!(matches!(
        d.act(|m, now| m.send(now, unknown, 0, Bytes::new(), 1)),
        Err(SendRefused::UnknownConversation(_))
    ));
    let body = Bytes::from(vec![0; crate::limits::BODY_BYTES]);
    let taken = (0..2000).take_while(|_| d.act(|m, now| m.send(now, id, 0, body.clone(), 1)).is_ok()).count();
    assert_eq!(taken, crate::client::limits::OUTBOX_BYTES / crate::limits::BODY_BYTES);
}

#[test]
fn an_ack_far_above_what_is_held_makes_what_is_before_it_wanted() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    d.send("x");
    let req = d.sends().remove(0).0;
    d.frames();
    // The other device's messages before it were never told to this one, and no row will tell a higher head.
    d.ack(conn, req, place(10, 1, 6), None);
    assert!(d.frames().iter().any(|f| matches!(&f.body, Some(Body::Pull(p)) if p.from == 1 && p.to == 5)));
}

#[test]
fn many_sends_refused_for_one_expired_token_ask_for_one_token() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    (0..20).for_each(|i| {
        d.send(&i.to_string());
    });
    for (req, _) in d.sends() {
        d.error(conn, req, Code::TokenExpired, 0);
    }
    assert_eq!(d.tokens, [true]);
    d.act(|m, now| m.token(now, Some("next".into())));
    d.pass(ms(200));
    assert_eq!(d.sends().len(), 20, "an auth error never wedges the queue");
}

#[test]
fn frames_full_of_nonsense_do_no_harm() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let numbers = [0, 1, 2, 50, 51, 200, 1 << 32, u64::MAX - 1, u64::MAX];
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut d = Device::new(setup("alice"));
        d.connect(1, 0);
        for i in 0..60u64 {
            let conn = d.connects.last().unwrap().0;
            let mut n = || numbers[rng.random_range(0..numbers.len())];
            let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            let o = Origin { region: u8::try_from(n() % 3 + 1).unwrap(), era: 7 };
            let wire = v1::Cursor { region: small(n() % 4), era: 7, rev: n() };
            let conversation = if n() % 3 == 0 { Bytes::from_static(b"x") } else { Bytes::copy_from_slice(&chat().0) };
            let at = Place { hlc: n(), origin: o, seq: n().max(1) };
            let req = small(n() % 60);
            let mut a_page =
                page(o, &[bob(n().max(1), at, "x")], vec![v1::Gap { from: n(), to: n(), reason: 2 }], n() % 2 == 0);
            a_page.conversation = conversation.clone();
            let mut a_rows = rows(&[(o, n())], Some(cursor(1, n())), Some(cursor(1, n())), n() % 2 == 0);
            a_rows.base = a_rows.base.filter(|_| n() % 2 == 0);
            a_rows.reset = i32::try_from(n() % 4).unwrap();
            let body = match n() % 11 + i % 2 {
                0 => Body::Page(a_page),
                1 => Body::Rows(a_rows),
                2 => Body::Stable(v1::Stable {
                    conversation,
                    origin: Some(o.into()),
                    upto: n(),
                    regions: 2,
                    offer: true,
                }),
                3 => Body::Pong(v1::Pong {
                    echo: small(n()),
                    rev: n(),
                    rev_unknown: n() % 2 == 0,
                    ..v1::Pong::default()
                }),
                4 => Body::Advance(v1::Advance { rev: n() }),
                5 => Body::Error(v1::Error {
                    code: small(n() % 40),
                    retry: i32::try_from(n() % 7).unwrap(),
                    retry_after_ms: small(n()),
                    ..v1::Error::default()
                }),
                6 => Body::GoAway(v1::GoAway {
                    window_ms: small(n()),
                    alternates: vec!["?".into(); 99],
                    ..v1::GoAway::default()
                }),
                7 => Body::Welcome(v1::Welcome { version: 1, cursor: Some(wire), ..v1::Welcome::default() }),
                8 => Body::Hello(v1::Hello::default()),
                9 => Body::Kick(v1::Kick { code: small(n() % 40), ..v1::Kick::default() }),
                _ => {
                    let heads = [(o, n())];
                    let (prev, rev) = (n(), n());
                    d.frame(conn, 0, push(vec![bob(n().max(1), at, "y")], &heads, prev, rev));
                    d.ack(conn, req, at, None);
                    continue;
                }
            };
            d.body(conn, req, body);
            if i % 7 == 0 {
                d.send("still sends");
                d.act(|m, now| m.page_back(now, chat(), 50));
                d.pass(ms(300));
                d.act(|m, now| m.mark_read(now, chat(), None));
                if d.machine.connection() == ConnectionState::Offline {
                    d.act(Machine::connect);
                }
            }
        }
        d.crash(setup("alice"));
        d.connect(1, 0);
    }
}

#[test]
fn a_message_from_before_the_first_welcome_keeps_its_identity_through_a_backup() {
    let mut d = Device::new(setup("alice"));
    d.send("early");
    let backup = d.book.clone();
    let conn = d.connect(1, 0);
    let (req, first) = d.sends().remove(0);
    d.ack(conn, req, place(5, 1, 1), None);
    // The device is brought back: the message is un-acked again, and goes out as what it was.
    d.book = backup;
    d.book.set_install(InstallId::new("phone-2").unwrap(), true);
    d.crash(setup("alice"));
    d.send("late");
    d.connect(1, 0);
    assert_eq!(d.connects.last().unwrap().3.install, "phone");
    let sends = d.sends();
    assert_eq!((sends.len(), sends[0].1.n, &sends[0].1.body), (1, first.n, &first.body));
}
