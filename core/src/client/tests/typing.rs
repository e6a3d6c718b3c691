//! Histories of typing: what is said, how often, and for how long it is believed.

use super::*;
use crate::client::limits::{SIGNALS_BURST, TYPING_AGAIN, TYPING_FOR, TYPING_MAX, TYPISTS};

const KEY: Duration = Duration::from_millis(100);

/// Connected, with one message of bob.
fn with_a_message() -> (Device, ConnNo) {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    // Nothing is awaited, so that silence means nothing.
    let pull = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap();
    d.body(conn, pull.req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    d.frame(conn, 0, push(vec![bob(1, place(10, 1, 1), "a")], &[(origin(1), 1)], 0, 1));
    d.frames();
    (d, conn)
}

/// How long each signal written since the last call holds.
fn said(d: &mut Device) -> Vec<u32> {
    let ttl = |f: v1::Frame| match f.body {
        Some(Body::Signal(s)) => {
            assert_eq!((f.req, s.conversation.as_ref(), s.kind), (0, &chat().0[..], 0));
            Some(s.ttl_ms)
        }
        _ => None,
    };
    d.frames().into_iter().filter_map(ttl).collect()
}

fn types(d: &mut Device, typing: bool) {
    d.act(|m, now| m.typing(now, chat(), typing));
}

fn hears(d: &mut Device, conn: ConnNo, who: &str, ttl_ms: u32) {
    let from = Some(v1::Author { user: who.to_owned(), install: "pc".to_owned() });
    let conversation = Bytes::copy_from_slice(&chat().0);
    d.body(conn, 0, Body::Signal(v1::Signal { conversation, ttl_ms, from, ..v1::Signal::default() }));
}

fn told(d: &mut Device) -> Vec<(String, bool)> {
    let typing = |e| match e {
        Event::Typing { user, typing, .. } => Some((user.as_str().to_owned(), typing)),
        _ => None,
    };
    std::mem::take(&mut d.events).into_iter().filter_map(typing).collect()
}

#[test]
fn every_key_is_told_and_few_signals_go_out() {
    let (mut d, _) = with_a_message();
    let mut signals = Vec::new();
    let start = d.now;
    while d.now < start + TYPING_AGAIN * 3 {
        types(&mut d, true);
        signals.extend(said(&mut d));
        d.now += KEY;
    }
    assert_eq!(signals, [8_000; 3], "one now, and one every three seconds");
    types(&mut d, false);
    types(&mut d, false);
    assert_eq!(said(&mut d), [0], "the end is said once");
    d.now += TYPING_FOR * 2;
    types(&mut d, true);
    assert_eq!(said(&mut d), [8_000]);
    d.now += TYPING_FOR;
    types(&mut d, false);
    assert!(said(&mut d).is_empty(), "it is over for the others already");
}

#[test]
fn a_message_ends_it_and_the_next_key_is_told_at_once() {
    let (mut d, conn) = with_a_message();
    types(&mut d, true);
    assert_eq!(said(&mut d), [8_000]);
    d.now += Duration::from_secs(2);
    d.send("hi");
    assert!(said(&mut d).is_empty(), "the message says it");
    types(&mut d, true);
    assert_eq!(said(&mut d), [8_000]);
    d.send("again");
    assert_eq!(said(&mut d), [0], "servers merge signals: the first must not come after the message");
    hears(&mut d, conn, "bob", 8_000);
    d.frame(conn, 0, push(vec![bob(2, place(11, 1, 2), "b")], &[(origin(1), 2)], 1, 2));
    assert_eq!(told(&mut d), [("bob".to_owned(), true), ("bob".to_owned(), false)]);
}

#[test]
fn offline_nothing_is_said_and_nothing_is_kept() {
    let (mut d, conn) = with_a_message();
    d.act(|m, now| m.ended(now, conn, &Failure::Network("cut".into())));
    d.frames();
    let before = (d.machine.waiting(), format!("{:?}", d.book.image()));
    types(&mut d, true);
    assert_eq!((d.machine.waiting(), format!("{:?}", d.book.image())), before);
    d.connect(1, 1);
    assert!(said(&mut d).is_empty(), "what was typed offline is old by now");
    types(&mut d, true);
    assert_eq!(said(&mut d), [8_000]);
}

#[test]
fn a_conversation_that_no_region_told_of_is_not_signalled_in() {
    let mut d = Device::new(setup("alice"));
    d.connect(1, 0);
    let id = d.act(|m, _| m.direct(&user("bob")));
    d.act(|m, now| m.typing(now, id, true));
    d.act(|m, now| m.typing(now, ConvId([3; 16]), true));
    assert!(said(&mut d).is_empty());
}

#[test]
fn an_application_that_flutters_is_held_below_what_the_edge_takes() {
    let (mut d, _) = with_a_message();
    for _ in 0..200 {
        types(&mut d, true);
        types(&mut d, false);
    }
    let burst = said(&mut d).len();
    assert!(burst <= SIGNALS_BURST as usize, "{burst}");
    for _ in 0..20 {
        d.now += KEY;
        types(&mut d, true);
        types(&mut d, false);
    }
    let more = said(&mut d).len();
    assert!((8..=11).contains(&more), "5 a second over 2 seconds, not {more}");
}

#[test]
fn what_is_heard_ends_by_itself_by_word_and_is_never_believed_for_long() {
    let (mut d, conn) = with_a_message();
    d.act(Machine::tick);
    told(&mut d);
    hears(&mut d, conn, "bob", 8_000);
    d.now += Duration::from_secs(5);
    hears(&mut d, conn, "bob", 8_000);
    assert_eq!(told(&mut d), [("bob".to_owned(), true)], "told once while it goes on");
    assert_eq!(d.machine.typists(chat()), [user("bob")]);
    assert!(d.machine.next_deadline().is_some_and(|at| at <= d.now + TYPING_FOR));
    d.now += TYPING_FOR;
    d.act(Machine::tick);
    assert_eq!(told(&mut d), [("bob".to_owned(), false)]);
    hears(&mut d, conn, "bob", 8_000);
    hears(&mut d, conn, "bob", 0);
    hears(&mut d, conn, "bob", 0);
    assert_eq!(told(&mut d), [("bob".to_owned(), true), ("bob".to_owned(), false)]);
    hears(&mut d, conn, "bob", u32::MAX);
    d.now += TYPING_MAX;
    d.act(Machine::tick);
    assert_eq!(told(&mut d).len(), 2);
    hears(&mut d, conn, "alice", 8_000);
    assert!(told(&mut d).is_empty(), "another device of this user");
    for n in 0..TYPISTS + 50 {
        hears(&mut d, conn, &format!("u{n}"), 8_000);
    }
    assert_eq!(d.machine.typists(chat()).len(), TYPISTS);
}

#[test]
fn a_blocked_user_types_unseen() {
    let (mut d, conn) = with_a_message();
    d.act(|m, now| m.block(now, &user("bob"), true, 1)).unwrap();
    hears(&mut d, conn, "bob", 8_000);
    assert!(told(&mut d).is_empty());
}

#[test]
fn a_signal_that_is_none_ends_the_connection() {
    let (mut d, conn) = with_a_message();
    d.body(conn, 0, Body::Signal(v1::Signal::default()));
    assert_eq!(d.closed, [conn]);
}
