//! Histories of presence: who is watched on which connection, and what the application is told.

use std::collections::BTreeSet;

use super::*;
use crate::client::limits::WATCH_AGAIN;
use crate::limits::WATCHED;

fn users(names: &[&str]) -> BTreeSet<UserId> {
    names.iter().map(|name| user(name)).collect()
}

fn watches(d: &mut Device, names: &[&str]) {
    d.act(|m, now| m.watch_presence(now, users(names))).unwrap();
}

/// Whom each Watch named that was written since the last call.
fn said(d: &mut Device) -> Vec<Vec<String>> {
    let watch = |f: v1::Frame| match f.body {
        Some(Body::Watch(watch)) => Some(watch.users),
        _ => None,
    };
    d.frames().into_iter().filter_map(watch).collect()
}

fn tell(d: &mut Device, conn: ConnNo, who: &str, online: bool, last_seen_ms: u64) {
    let users = vec![v1::UserPresence { user: who.to_owned(), online, last_seen_ms }];
    d.body(conn, 0, Body::Presence(v1::Presence { users }));
}

fn told(d: &mut Device) -> Vec<(String, Presence)> {
    let presence = |e| match e {
        Event::Presence { user, presence } => Some((user.as_str().to_owned(), presence)),
        _ => None,
    };
    std::mem::take(&mut d.events).into_iter().filter_map(presence).collect()
}

#[test]
fn each_connection_is_told_whom_to_watch_and_the_background_watches_nobody() {
    let mut d = Device::new(setup("alice"));
    watches(&mut d, &["bob", "carol"]);
    assert!(said(&mut d).is_empty(), "offline");
    let conn = d.connect(1, 0);
    assert_eq!(said(&mut d), [["bob", "carol"]]);
    watches(&mut d, &["bob", "carol"]);
    assert!(said(&mut d).is_empty(), "nothing new");
    watches(&mut d, &["bob"]);
    assert_eq!(said(&mut d), [["bob"]]);
    d.act(|m, now| m.set_foreground(now, false));
    assert_eq!(said(&mut d), [[""; 0]]);
    watches(&mut d, &["carol"]);
    d.alive(conn);
    d.pass(Duration::from_secs(5));
    d.alive(conn);
    said(&mut d);
    d.act(|m, now| m.set_foreground(now, true));
    assert_eq!(said(&mut d), [["carol"]]);
    d.act(|m, now| m.ended(now, conn, &Failure::Network("cut".into())));
    d.frames();
    d.connect(2, 0);
    assert_eq!(said(&mut d), [["carol"]], "and on the next one");
    watches(&mut d, &[]);
    assert_eq!(said(&mut d), [[""; 0]]);
}

#[test]
fn it_is_said_again_since_what_is_told_may_get_lost() {
    let mut d = Device::new(setup("alice"));
    watches(&mut d, &["bob"]);
    let conn = d.connect(1, 0);
    let pull = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap();
    d.body(conn, pull.req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    let mut again = 0;
    let end = d.now + WATCH_AGAIN * 2 + Duration::from_secs(20);
    while d.now < end {
        d.pass(Duration::from_millis(500));
        again += said(&mut d).len();
        d.alive(conn);
    }
    assert_eq!(again, 2);
}

#[test]
fn what_is_new_is_told_once_and_of_strangers_nothing() {
    let mut d = Device::new(setup("alice"));
    watches(&mut d, &["bob"]);
    let conn = d.connect(1, 0);
    tell(&mut d, conn, "bob", true, 0);
    tell(&mut d, conn, "bob", true, 0);
    tell(&mut d, conn, "mallory", true, 0);
    assert_eq!(told(&mut d), [("bob".to_owned(), Presence::Online)]);
    tell(&mut d, conn, "bob", false, 60_000);
    tell(&mut d, conn, "bob", false, 0);
    assert_eq!(
        told(&mut d),
        [("bob".to_owned(), Presence::Gone(Some(60_000))), ("bob".to_owned(), Presence::Gone(None))]
    );
    assert_eq!(d.machine.presence(&user("bob")), Some(Presence::Gone(None)));
    watches(&mut d, &["carol"]);
    assert_eq!(d.machine.presence(&user("bob")), None, "who is not watched is not known");
    tell(&mut d, conn, "bob", true, 0);
    assert_eq!(told(&mut d), []);
    assert!(d.closed.is_empty());
    tell(&mut d, conn, "", true, 0);
    assert_eq!(d.closed, [conn], "that is no user");
}

#[test]
fn more_than_can_be_watched_are_refused_and_nothing_changes() {
    let mut d = Device::new(setup("alice"));
    watches(&mut d, &["bob"]);
    d.connect(1, 0);
    said(&mut d);
    let many: BTreeSet<UserId> = (0..=WATCHED).map(|i| user(&format!("u{i}"))).collect();
    assert_eq!(d.act(|m, now| m.watch_presence(now, many)), Err(TooManyWatched(WATCHED + 1)));
    assert!(said(&mut d).is_empty());
}

#[test]
fn hiding_is_a_setting_of_the_user() {
    let mut d = Device::new(setup("alice"));
    d.connect(1, 0);
    assert!(!d.machine.is_presence_hidden());
    d.act(|m, now| m.hide_presence(now, true, 1)).unwrap();
    assert!(d.machine.is_presence_hidden());
    d.crash(setup("alice"));
    assert!(d.machine.is_presence_hidden());
    d.act(|m, now| m.hide_presence(now, false, 2)).unwrap();
    assert!(!d.machine.is_presence_hidden());
}
