//! Histories of silence: gateways that forget, and what is learned of them.

use super::*;
use crate::client::limits::{BEAT_FLOOR, GATHER};
use crate::client::networks::NetInfo;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A region that answers Pings, and once more where it is asked to, behind a gateway.
struct Way {
    conn: ConnNo,
    /// The gateway forgets after so long.
    ttl: Duration,
    /// Anything last went through it.
    last: Duration,
    /// A second answer to come.
    again: Option<(Duration, u32)>,
    /// The region knows second answers.
    agrees: bool,
    /// When the client spoke and the gateway had forgotten it.
    misses: Vec<Duration>,
    pings: usize,
}

impl Way {
    fn new(conn: ConnNo, ttl: Duration, now: Duration) -> Self {
        Self { conn, ttl, last: now, again: None, agrees: true, misses: Vec::new(), pings: 0 }
    }

    /// The client spoke.
    fn up(&mut self, d: &mut Device) {
        for frame in d.frames() {
            if d.now >= self.last + self.ttl {
                self.misses.push(d.now);
            }
            self.last = d.now;
            let Some(Body::Ping(ping)) = frame.body else { continue };
            self.pings += 1;
            let again_ms = if self.agrees { ping.again_ms } else { 0 };
            if again_ms > 0 {
                self.again = Some((d.now + Duration::from_millis(again_ms.into()), ping.echo));
            }
            d.body(self.conn, frame.req, Body::Pong(v1::Pong { echo: ping.echo, again_ms, ..v1::Pong::default() }));
        }
    }

    fn pass(&mut self, d: &mut Device, time: Duration) {
        let end = d.now + time;
        self.up(d);
        while d.now < end {
            let due = self.again.map_or(end, |(at, _)| at);
            let next = d.machine.next_deadline().unwrap_or(end).min(due).min(end).max(d.now);
            d.now = next;
            if let Some((_, echo)) = self.again.take_if(|(at, _)| *at <= next)
                && d.now < self.last + self.ttl
            {
                self.last = d.now;
                d.body(self.conn, 0, Body::Pong(v1::Pong { echo, again: true, ..v1::Pong::default() }));
            }
            d.act(Machine::tick);
            self.up(d);
        }
    }
}

fn network(id: &str) -> Option<NetInfo> {
    Some(NetInfo { id: id.to_owned(), ..NetInfo::default() })
}

fn enters(d: &mut Device, id: &str) {
    d.act(|m, now| m.network_changed(now, network(id)));
}

/// Connected in a network, with nothing awaited.
fn connected(id: &str) -> (Device, ConnNo) {
    let mut d = Device::new(setup("alice"));
    d.act(|m, now| m.set_wall(now, 1_700_000_000_000));
    enters(&mut d, id);
    let conn = d.connect(1, 0);
    let pull = d.frames().into_iter().find(|f| matches!(f.body, Some(Body::PullRows(_)))).unwrap();
    d.body(conn, pull.req, Body::Rows(rows(&[], None, Some(cursor(1, 0)), true)));
    (d, conn)
}

fn in_background(id: &str, ttl: Duration, agrees: bool) -> (Device, Way) {
    let (mut d, conn) = connected(id);
    let mut way = Way { agrees, ..Way::new(conn, ttl, d.now) };
    way.up(&mut d);
    d.act(|m, now| m.set_foreground(now, false));
    way.up(&mut d);
    (d, way)
}

fn blamed(d: &mut Device) -> Vec<Duration> {
    let silence = |e| match e {
        Event::GatewayForgot { silence } => Some(silence),
        _ => None,
    };
    std::mem::take(&mut d.events).into_iter().filter_map(silence).collect()
}

#[test]
fn a_gateway_that_gives_the_old_port_again_is_found_with_the_next_beat_and_once_a_day() {
    for ttl in [30, 50, 90, 120, 170] {
        let (mut d, mut way) = in_background("home", s(ttl), true);
        for day in 0..4 {
            way.pass(&mut d, s(24 * 3600));
            let (misses, found) = (std::mem::take(&mut way.misses), blamed(&mut d));
            assert!(misses.len() <= 1, "{ttl} s, day {day}: {misses:?}");
            assert_eq!(found.len(), misses.len(), "{ttl} s, day {day}: each is noticed");
        }
        let beats = 24 * 3600 / ttl * 5;
        assert!(way.pings <= usize::try_from(beats * 4).unwrap(), "{ttl} s: {} pings", way.pings);
    }
}

#[test]
fn each_network_keeps_what_was_learned_in_it_over_changes_and_restarts() {
    let (mut d, mut way) = in_background("home", s(30), true);
    way.pass(&mut d, s(3600));
    assert_eq!((way.misses.len(), blamed(&mut d).len()), (1, 1));
    enters(&mut d, "train");
    way.ttl = s(1000);
    way.pass(&mut d, s(3600));
    assert!(blamed(&mut d).is_empty(), "a change of the network is no silence that was too long");
    way.pings = 0;
    way.pass(&mut d, s(3600));
    assert!(way.pings <= 3600 / 240, "what was learned at home holds there only: {} pings an hour", way.pings);
    way.ttl = s(30);
    enters(&mut d, "home");
    way.up(&mut d);
    way.misses.clear();
    way.pass(&mut d, s(3600));
    assert_eq!((way.misses.len(), blamed(&mut d).len()), (0, 0), "it is known at home");
    d.crash(setup("alice"));
    enters(&mut d, "home");
    d.act(|m, now| m.set_foreground(now, false));
    let conn = d.connect(1, 0);
    let mut way = Way::new(conn, s(30), d.now);
    way.pass(&mut d, s(3600));
    assert_eq!((way.misses.len(), blamed(&mut d).len()), (0, 0), "and after a restart");
}

#[test]
fn a_hand_over_soon_after_the_last_word_does_not_make_the_beat_quick() {
    let (mut d, mut way) = in_background("home", s(1000), false);
    way.pass(&mut d, s(40));
    enters(&mut d, "train");
    let ping = d.frames().into_iter().find_map(|f| match f.body {
        Some(Body::Ping(ping)) => Some((f.req, ping)),
        _ => None,
    });
    let (req, ping) = ping.expect("does it still live?");
    let seen_address = "192.0.2.9:9".to_owned();
    d.body(way.conn, req, Body::Pong(v1::Pong { echo: ping.echo, seen_address, ..v1::Pong::default() }));
    assert!(blamed(&mut d).is_empty());
    way.pass(&mut d, s(3600));
    assert!(way.pings < 60, "{} pings", way.pings);
}

#[test]
fn without_second_answers_a_beat_that_is_answered_counts() {
    let (mut d, mut way) = in_background("home", s(1000), false);
    way.pass(&mut d, s(3 * 3600));
    way.pings = 0;
    way.pass(&mut d, s(3600));
    assert!(way.pings <= 3600 / 240, "{} pings", way.pings);
}

#[test]
fn a_second_answer_that_comes_after_the_client_spoke_proves_nothing() {
    let (mut d, conn) = connected("home");
    let mut way = Way::new(conn, s(1000), d.now);
    d.act(|m, now| m.set_foreground(now, false));
    way.up(&mut d);
    let (at, echo) = way.again.take().unwrap();
    d.now = at - s(1) - GATHER;
    // Opens the way anew.
    d.send("x");
    d.pass(GATHER);
    d.now = at + Duration::from_millis(30);
    d.body(conn, 0, Body::Pong(v1::Pong { echo, again: true, ..v1::Pong::default() }));
    let told = d.machine.diagnostics(d.now, 1);
    assert!(told.contains(" 1 s of silence survived"), "{told}");
    // One that nobody asked for, or that comes twice.
    d.body(conn, 0, Body::Pong(v1::Pong { echo, again: true, ..v1::Pong::default() }));
    d.body(conn, 0, Body::Pong(v1::Pong { echo: 77, again: true, ..v1::Pong::default() }));
    assert!(d.closed.is_empty() && blamed(&mut d).is_empty());
}

#[test]
fn a_gateway_that_is_quicker_than_any_beat_makes_it_no_quicker_than_the_floor() {
    let (mut d, mut way) = in_background("home", s(5), true);
    way.pass(&mut d, s(24 * 3600));
    way.pings = 0;
    way.pass(&mut d, s(3600));
    let most = 3600 / BEAT_FLOOR.as_secs() * 3;
    assert!(way.pings <= usize::try_from(most).unwrap(), "{} pings", way.pings);
}

#[test]
fn a_radio_that_was_away_for_a_moment_is_not_taken_for_a_gateway() {
    let (mut d, mut way) = in_background("home", s(1000), true);
    way.pass(&mut d, s(3600));
    let lose_one = |d: &mut Device, way: &mut Way| {
        let (at, _) = way.again.take().unwrap();
        way.pass(d, at - d.now + s(2));
    };
    lose_one(&mut d, &mut way);
    assert!(blamed(&mut d).is_empty(), "so long a silence was survived before");
    way.pass(&mut d, s(3600));
    lose_one(&mut d, &mut way);
    lose_one(&mut d, &mut way);
    assert_eq!(blamed(&mut d).len(), 1, "twice in a row it is another gateway");
}
