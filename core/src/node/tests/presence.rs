//! Who is there: what watchers are told, and what they are spared.

use prost::Message as _;

use super::*;
use crate::kinds::CELL;
use crate::limits::{PRESENCE_GRACE, PRESENCE_WINDOW, WATCHED};
use crate::pressure::Level;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl World {
    fn watch(&mut self, c: Conn, users: &[&str]) {
        let users = users.iter().map(|user| (*user).to_owned()).collect();
        self.frame(c, 0, v1::frame::Body::Watch(v1::Watch { users }));
        self.pass(Duration::from_millis(200));
    }

    /// What was told of users since it was last asked: whether they are online, and since when they are not.
    fn presences(&mut self, c: Conn) -> Vec<(String, bool, u64)> {
        let told = |f: &v1::Frame| match &f.body {
            Some(v1::frame::Body::Presence(p)) => Some(p.users.clone()),
            _ => None,
        };
        let frames = std::mem::take(&mut self.told(c).frames);
        let users = frames.iter().filter_map(told).flatten();
        users.map(|p| (p.user, p.online, p.last_seen_ms)).collect()
    }

    fn leaves(&mut self, c: Conn) {
        self.ups(c.region, 1, vec![Up::Close { conn: c.conn }]);
        self.settle();
    }

    fn set(&mut self, c: Conn, name: &str, n: u64, key: &str, value: Vec<u8>) {
        let cell = v1::Cell { key: key.to_owned(), value: value.into() };
        let (conversation, peer) = (ConvId::own(SALT, &user(name)), Some(user(name)));
        let send = SendRequest { conversation, peer, kind: CELL, body: cell.encode_to_vec().into(), ..message(n) };
        self.post(c, SendRequest { floor: n, ..send });
        self.settle();
    }
}

/// Alice in `eu`, who watches bob in `us`, with a conversation of theirs; both regions are old.
fn friends() -> (World, Conn, Conn) {
    let mut w = World::new();
    w.pass(PRESENCE_GRACE * 2);
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    let bob = w.connect(US, 2, "bob", "pc");
    w.pass(s(3));
    w.watch(alice, &["bob"]);
    assert_eq!(w.presences(alice), [online("bob")], "what is so is told at once");
    (w, alice, bob)
}

fn online(name: &str) -> (String, bool, u64) {
    (name.to_owned(), true, 0)
}

#[test]
fn a_blip_of_five_seconds_is_invisible_and_ten_seconds_are_told() {
    let (mut w, alice, bob) = friends();
    w.leaves(bob);
    w.pass(s(5));
    let bob = w.connect(US, 3, "bob", "pc");
    w.pass(s(60));
    assert_eq!(w.presences(alice), []);
    let minute_ms = w.now(0).wall_ms / 60_000 * 60_000;
    w.leaves(bob);
    w.pass(PRESENCE_GRACE - s(1));
    assert_eq!(w.presences(alice), []);
    w.pass(s(2));
    assert_eq!(w.presences(alice), [("bob".to_owned(), false, minute_ms)], "to the minute");
    w.connect(AP, 4, "bob", "phone");
    w.pass(Duration::from_millis(200));
    assert_eq!(w.presences(alice), [online("bob")], "back at once, wherever");
}

#[test]
fn a_move_between_regions_is_no_blip_and_one_device_anywhere_is_enough() {
    let (mut w, alice, mut bob) = friends();
    for (conn, region) in [(10, AP), (11, EU), (12, US)] {
        let next = w.connect(region, conn, "bob", "pc");
        w.pass(s(1));
        w.leaves(std::mem::replace(&mut bob, next));
        w.pass(s(20));
        let next = w.connect(region, conn + 10, "bob", "pc");
        w.leaves(std::mem::replace(&mut bob, next));
        w.pass(s(20));
    }
    let tablet = w.connect(AP, 30, "bob", "tablet");
    w.leaves(bob);
    w.pass(s(60));
    assert_eq!(w.presences(alice), []);
    w.leaves(tablet);
    w.pass(s(11));
    assert!(matches!(&w.presences(alice)[..], [(_, false, since)] if *since > 0));
}

#[test]
fn what_no_commit_has_bound_changes_nothing() {
    let (mut w, alice, bob) = friends();
    let loser = w.hello(US, 5, "bob", "pc", v1::Hello { early: true, ..v1::Hello::default() });
    w.leaves(loser);
    w.leaves(bob);
    w.pass(s(5));
    // Attempts that win nothing do not keep anybody here either.
    let attempt = w.hello(US, 6, "bob", "pc", v1::Hello::default());
    w.pass(s(6));
    assert!(matches!(&w.presences(alice)[..], [(_, false, _)]));
    w.pass(s(30));
    assert_eq!(w.presences(alice), []);
    w.watch(attempt, &["alice"]);
    w.pass(s(2));
    assert_eq!(w.presences(attempt), [], "and are told of nobody");
    w.frame(attempt, 0, v1::frame::Body::Commit(v1::Commit::default()));
    w.pass(s(1));
    assert_eq!(w.presences(alice), [online("bob")]);
}

#[test]
fn only_friends_are_told_and_nobody_who_is_blocked_or_when_it_is_hidden() {
    let (mut w, alice, bob) = friends();
    let mallory = w.connect(EU, 5, "mallory", "pc");
    w.watch(mallory, &["bob", "alice", "mallory"]);
    w.pass(s(30));
    assert_eq!(w.presences(mallory), [], "no conversation, nothing to know");
    w.set(bob, "bob", 1, "block/alice", v1::BlockCell { blocked: true }.encode_to_vec());
    w.pass(s(3));
    assert_eq!(w.presences(alice), [("bob".to_owned(), false, 0)]);
    w.leaves(bob);
    w.pass(s(30));
    let bob = w.connect(US, 6, "bob", "pc");
    w.pass(s(3));
    assert_eq!(w.presences(alice), []);
    w.set(bob, "bob", 2, "block/alice", Vec::new());
    w.pass(s(3));
    assert_eq!(w.presences(alice), [online("bob")]);
    w.set(bob, "bob", 3, "presence", v1::PresenceCell { hidden: true }.encode_to_vec());
    w.pass(s(3));
    assert_eq!(w.presences(alice), [("bob".to_owned(), false, 0)]);
    w.set(bob, "bob", 4, "presence", Vec::new());
    w.pass(s(3));
    assert_eq!(w.presences(alice), [online("bob")]);
}

#[test]
fn a_watch_said_again_is_answered_in_full_and_one_of_nobody_ends_it() {
    let (mut w, alice, bob) = friends();
    w.watch(alice, &["bob"]);
    w.pass(PRESENCE_WINDOW);
    assert_eq!(w.presences(alice), [online("bob")], "one that was lost is mended");
    w.watch(alice, &[]);
    w.leaves(bob);
    w.pass(s(30));
    assert_eq!(w.presences(alice), []);
    let many: Vec<String> = (0..WATCHED * 2).map(|i| format!("u{i:03}")).collect();
    w.watch(alice, &many.iter().map(String::as_str).chain(["bob"]).collect::<Vec<_>>());
    w.pass(s(2));
    assert_eq!(w.presences(alice), [], "he is beyond the limit");
    w.leaves(alice);
    assert_eq!(w.core(EU).node.presence.watching(), 0, "nothing is kept of who has gone");
}

#[test]
fn a_region_that_starts_anew_calls_nobody_gone_who_comes_back_in_time() {
    let (mut w, alice, _) = friends();
    let carol = w.connect(EU, 7, "carol", "phone");
    let to_carol = SendRequest {
        conversation: ConvId::direct(SALT, &user("alice"), &user("carol")),
        peer: Some(user("carol")),
        ..message(1)
    };
    w.post(alice, to_carol);
    w.pass(s(3));
    w.leaves(carol);
    w.stop(EU);
    w.start(EU);
    w.link(EU, US);
    w.link(EU, AP);
    let alice = w.connect(EU, 8, "alice", "phone");
    w.watch(alice, &["bob", "carol"]);
    w.pass(s(4));
    assert_eq!(w.presences(alice), [online("bob")], "of carol nothing is known yet");
    w.connect(EU, 9, "carol", "phone");
    w.pass(s(30));
    assert_eq!(w.presences(alice), [online("carol")]);
}

#[test]
fn a_region_that_is_cut_off_takes_its_users_with_it_after_the_same_time() {
    let (mut w, alice, _) = friends();
    w.unlink(EU, US);
    w.pass(s(5));
    w.link(EU, US);
    w.pass(s(30));
    assert_eq!(w.presences(alice), []);
    w.unlink(EU, US);
    w.pass(PRESENCE_GRACE * 2 + s(2));
    assert!(matches!(&w.presences(alice)[..], [(_, false, _)]));
    w.link(EU, US);
    w.pass(s(2));
    assert_eq!(w.presences(alice), [online("bob")]);
}

#[test]
fn of_users_who_went_with_their_region_it_is_known_since_when_though_nobody_watched() {
    let (mut w, alice, _) = friends();
    w.watch(alice, &[]);
    w.unlink(EU, US);
    let gone_ms = w.now(0).wall_ms + u64::try_from(PRESENCE_GRACE.as_millis()).unwrap();
    w.pass(s(300));
    w.watch(alice, &["bob"]);
    w.pass(s(2));
    assert_eq!(w.presences(alice), [("bob".to_owned(), false, gone_ms / 60_000 * 60_000)]);
}

#[test]
fn changes_are_merged_and_wait_under_load() {
    let (mut w, alice, bob) = friends();
    w.leaves(bob);
    w.pass(s(30));
    w.presences(alice);
    // Nobody is told each of many changes.
    for conn in 40..60 {
        let bob = w.connect(US, conn, "bob", "pc");
        w.pass(Duration::from_millis(100));
        w.leaves(bob);
        w.pass(Duration::from_millis(100));
    }
    w.pass(s(30));
    let told: Vec<bool> = w.presences(alice).iter().map(|(_, online, _)| *online).collect();
    assert_eq!(told, [true, false]);
    let now = w.now(0);
    w.core(EU).node.told_pressure(now, Level::NoSignals);
    w.connect(US, 70, "bob", "pc");
    w.pass(Duration::from_millis(200));
    assert_eq!(w.presences(alice), []);
    w.pass(s(10));
    assert_eq!(w.presences(alice), [online("bob")], "it is told when there is room");
}

#[test]
fn a_first_message_makes_friends_of_those_who_watch() {
    let mut w = World::new();
    w.pass(PRESENCE_GRACE * 2);
    let (alice, _) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    w.watch(alice, &["bob"]);
    w.pass(s(5));
    assert_eq!(w.presences(alice), []);
    w.send(alice, 1);
    w.pass(s(2));
    assert_eq!(w.presences(alice), [online("bob")]);
}
