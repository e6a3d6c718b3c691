//! Histories of three core nodes whose frames are lost, doubled and overtaken, and which start anew.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::limits::{CHUNK_BYTES, DELTA_BYTES, DIGEST_EVERY, RING_BYTES, STALE_AFTER, UNHEARD_BYTES};
use super::*;

thread_local! {
    static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether this thread's tests run with a bug.
pub(super) fn has(bug: Bug) -> bool {
    BUG.get() == Some(bug)
}

const NODES: usize = 3;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn user(i: u64) -> UserId {
    UserId::new(&format!("user-{i:07}")).unwrap()
}

fn phone(order: u64) -> Bind {
    Bind { install: 7, at_ms: 1_700_000_000_000 + order, order }
}

fn holder(node: usize) -> Holder {
    Holder::only(u8::try_from(node + 1).unwrap())
}

/// How bad the network is.
#[derive(Clone, Copy)]
struct Weather {
    lost: f64,
    doubled: f64,
    delay_ms_max: u64,
}

const CALM: Weather = Weather { lost: 0.0, doubled: 0.0, delay_ms_max: 0 };
const STORM: Weather = Weather { lost: 0.2, doubled: 0.1, delay_ms_max: 400 };

struct World {
    nodes: Vec<Routes>,
    lives: u64,
    now: Duration,
    /// Frames on their way: when and in which order they arrive, from whom, to whom, on which link.
    frames: BTreeMap<(Duration, u64), (usize, usize, u64, Body)>,
    sent: u64,
    /// Links that are up, and their numbers.
    links: BTreeMap<(usize, usize), u64>,
    weather: Weather,
    rng: StdRng,
    /// Bytes of frames from each node.
    bytes: [usize; NODES],
    /// What each node's part amounted to after each change, by its life.
    past: BTreeMap<(u64, Lsn), Vec<(u64, u32)>>,
    changed: BTreeSet<UserId>,
    /// Those who come and go in random histories: of few shards, so that each is often touched.
    crowd: Vec<UserId>,
    /// Copies are looked at after each frame.
    checks: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            nodes: Vec::new(),
            lives: 0,
            now: Duration::from_secs(1000),
            frames: BTreeMap::new(),
            sent: 0,
            links: BTreeMap::new(),
            weather: CALM,
            rng: StdRng::seed_from_u64(seed),
            bytes: [0; NODES],
            past: BTreeMap::new(),
            changed: BTreeSet::new(),
            crowd: Vec::new(),
            checks: true,
        };
        for _ in 0..NODES {
            let node = world.fresh();
            world.nodes.push(node);
        }
        world
    }

    fn fresh(&mut self) -> Routes {
        self.lives += 1;
        Routes::new(Key::of(b"salt"), self.lives)
    }

    fn link(&mut self, a: usize, b: usize) {
        self.unlink(a, b);
        self.remember();
        self.sent += 1;
        self.links.insert((a.min(b), a.max(b)), self.sent);
        for (at, to) in [(a, b), (b, a)] {
            self.nodes[at].up(self.now, holder(to));
        }
        self.send();
    }

    fn unlink(&mut self, a: usize, b: usize) {
        if self.links.remove(&(a.min(b), a.max(b))).is_some() {
            self.nodes[a].down(holder(b));
            self.nodes[b].down(holder(a));
        }
    }

    fn restart(&mut self, node: usize) {
        for other in (0..NODES).filter(|other| *other != node) {
            self.unlink(node, other);
        }
        self.nodes[node] = self.fresh();
    }

    fn send(&mut self) {
        for from in 0..NODES {
            for (to, body) in self.nodes[from].take_outputs() {
                let to = usize::from(to.region) - 1;
                let Some(link) = self.links.get(&(from.min(to), from.max(to))).copied() else { continue };
                let frame = wire::NodeFrame { body: Some(body.clone()) };
                self.bytes[from] += prost::Message::encoded_len(&frame) + 3;
                let copies = u64::from(!self.rng.random_bool(self.weather.lost));
                let doubled = u64::from(copies > 0 && self.rng.random_bool(self.weather.doubled));
                for _ in 0..copies + doubled {
                    let delay = ms(self.rng.random_range(0..=self.weather.delay_ms_max));
                    self.sent += 1;
                    self.frames.insert((self.now + delay, self.sent), (from, to, link, body.clone()));
                }
            }
        }
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let timer = self.nodes.iter().filter_map(Routes::next_deadline).min();
            let frame = self.frames.first_key_value().map(|((at, _), _)| *at);
            let Some(at) = timer.into_iter().chain(frame).min().filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            while let Some(entry) = self.frames.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (from, to, link, body) = entry.remove();
                if self.links.get(&(from.min(to), from.max(to))) == Some(&link) {
                    self.changed.extend(self.nodes[to].told(self.now, holder(from), &body).unwrap());
                }
                self.check_copies();
            }
            for node in &mut self.nodes {
                self.changed.extend(node.tick(self.now));
            }
            self.remember();
            self.send();
        }
        self.now = until;
    }

    /// What is so after a change is remembered, where nothing else has changed since.
    fn remember(&mut self) {
        for node in &self.nodes {
            let at = (node.writer.epoch, node.writer.head);
            // What nobody has heard of is not numbered.
            let fresh = node.replicas.is_empty() || !self.past.contains_key(&at);
            if self.checks && node.writer.flush_at.is_none() && fresh {
                self.past.insert(at, node.fingerprint(None));
            }
        }
    }

    /// A copy that says to be whole is what the part was at the change that it names.
    fn check_copies(&self) {
        for (node, other) in self.links.keys().flat_map(|(a, b)| [(*a, *b), (*b, *a)]) {
            let replica = &self.nodes[node].replicas[&holder(other)];
            let past = self.past.get(&(replica.epoch, replica.lsn)).filter(|_| replica.is_exact());
            if let Some(past) = past {
                assert!(*past == self.nodes[node].fingerprint(Some(holder(other))), "as of {}", replica.lsn);
            }
        }
    }

    fn agree(&self) -> bool {
        let pairs = (0..NODES).flat_map(|a| (0..NODES).map(move |b| (a, b))).filter(|(a, b)| a != b);
        pairs.into_iter().all(|(a, b)| self.nodes[a].fingerprint(None) == self.nodes[b].fingerprint(Some(holder(a))))
    }

    /// One thing that may happen, and some time.
    fn step(&mut self) {
        let node = self.rng.random_range(0..NODES);
        let other = (node + self.rng.random_range(1..NODES)) % NODES;
        match self.rng.random_range(0..100) {
            0 => self.restart(node),
            1..4 => self.unlink(node, other),
            4..12 => self.link(node, other),
            _ => {
                for _ in 0..self.rng.random_range(1..60) {
                    let who = self.crowd[self.rng.random_range(0..self.crowd.len())].clone();
                    let order = self.rng.random_range(0..400);
                    let binds = (0..self.rng.random_range(0..3)).map(|i| Bind { install: i, ..phone(order) });
                    self.nodes[node].set(self.now, &who, &binds.collect::<Vec<_>>());
                }
            }
        }
        self.send();
        let time = ms(self.rng.random_range(0..300));
        self.pass(time);
    }

    /// A storm, and ten calm seconds, in which no comparison is due by itself. Whether all agree then.
    fn history(seed: u64) -> bool {
        let mut w = Self::new(seed);
        let few = |user: &UserId| table::shard_of(Key::of(b"salt").hash(user.as_str().as_bytes())) < 6;
        w.crowd = (0..).map(user).filter(few).take(80).collect();
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            w.link(a, b);
        }
        w.weather = STORM;
        for _ in 0..60 {
            w.step();
        }
        w.weather = CALM;
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            if w.rng.random_bool(0.5) || !w.links.contains_key(&(a, b)) {
                w.link(a, b);
            }
        }
        w.pass(Duration::from_secs(10));
        w.agree()
    }
}

#[test]
fn random_histories_end_in_the_same_routes_at_all_nodes() {
    for seed in 0..60 {
        assert!(World::history(seed), "seed {seed}");
    }
}

#[test]
fn the_histories_notice_what_would_be_wrong() {
    for bug in [Bug::GapTaken, Bug::OldPartTaken, Bug::LifeIgnored, Bug::NobodySwept, Bug::AskedOnce] {
        BUG.set(Some(bug));
        let failed = |seed: u64| !std::panic::catch_unwind(|| World::history(seed)).unwrap_or(false);
        let noticed = (0..60).any(failed);
        BUG.set(None);
        assert!(noticed, "{bug:?} is never noticed");
    }
}

/// Two nodes with an order of links, the first of which has so many users.
fn with_users(count: u64) -> World {
    let mut w = World::new(1);
    for i in 0..count {
        w.nodes[0].set(w.now, &user(i), &[phone(i)]);
    }
    w.link(0, 1);
    w.pass(Duration::from_secs(2));
    assert!(w.nodes[0].fingerprint(None) == w.nodes[1].fingerprint(Some(holder(0))));
    w
}

#[test]
fn a_short_outage_costs_what_changed_and_a_long_one_the_shards_that_differ() {
    let mut w = with_users(20_000);
    w.unlink(0, 1);
    for i in 0..100 {
        w.nodes[0].set(w.now, &user(i), &[]);
    }
    w.pass(Duration::from_secs(60));
    assert_eq!(w.nodes[1].elsewhere(w.now, &user(5)).next().unwrap().binds, [phone(5)], "what was told stays");
    let before = w.bytes[0];
    w.link(0, 1);
    w.pass(Duration::from_secs(1));
    assert!(w.nodes[0].fingerprint(None) == w.nodes[1].fingerprint(Some(holder(0))));
    assert!(w.bytes[0] - before < 3_000, "{} bytes for 100 changes", w.bytes[0] - before);
    // More than the ring holds.
    w.unlink(0, 1);
    for round in 0..(RING_BYTES / 1_000 / 20) as u64 {
        (0..1_000).for_each(|i| w.nodes[0].set(w.now, &user(i), &[phone(round * 1_000 + i)]));
        w.pass(ms(20));
    }
    let before = w.bytes[0];
    w.link(0, 1);
    w.pass(Duration::from_secs(1));
    assert!(w.nodes[0].fingerprint(None) == w.nodes[1].fingerprint(Some(holder(0))));
    assert!(w.nodes[0].resyncs() == 2 && w.bytes[0] - before > 20_000 * 20, "all shards have changed");
}

#[test]
fn a_node_that_started_anew_takes_those_away_who_did_not_come_back() {
    let mut w = with_users(5_000);
    w.restart(0);
    for i in 0..50 {
        w.nodes[0].set(w.now, &user(i), &[phone(i)]);
    }
    let there = |w: &World, i| w.nodes[1].elsewhere(w.now, &user(i)).next();
    w.changed.clear();
    assert!(!there(&w, 3).unwrap().is_hint);
    w.link(0, 1);
    w.pass(ms(1));
    assert!(there(&w, 4_000).is_none_or(|e| e.is_hint), "what its earlier life has told is a hint, or gone");
    w.pass(Duration::from_secs(2));
    assert!(w.changed.contains(&user(4_000)) && !w.changed.contains(&user(3)), "who came back has not changed");
    assert_eq!(w.nodes[1].parts(w.now).next().unwrap().users, 50);
    assert!(!there(&w, 3).unwrap().is_hint);
}

#[test]
fn what_a_node_told_that_is_not_heard_of_is_a_hint() {
    let mut w = with_users(10);
    w.pass(Duration::from_secs(60));
    assert!(!w.nodes[1].elsewhere(w.now, &user(1)).next().unwrap().is_hint, "it says every second that nothing is new");
    w.unlink(0, 1);
    w.pass(STALE_AFTER - ms(1_001));
    assert!(!w.nodes[1].elsewhere(w.now, &user(1)).next().unwrap().is_hint);
    w.pass(ms(1_001));
    assert!(w.nodes[1].elsewhere(w.now, &user(1)).next().unwrap().is_hint);
    assert!(w.nodes[1].parts(w.now).next().unwrap().is_stale);
    w.link(0, 1);
    w.pass(ms(1));
    assert!(!w.nodes[1].elsewhere(w.now, &user(1)).next().unwrap().is_hint);
    w.nodes[1].forget(holder(0));
    assert_eq!(w.nodes[1].elsewhere(w.now, &user(1)).count(), 0);
}

#[test]
fn what_nobody_thought_of_is_mended_by_the_next_digest() {
    let mut w = with_users(3_000);
    w.checks = false;
    w.past.clear();
    let replica = w.nodes[1].replicas.get_mut(&holder(0)).unwrap();
    replica.table.set("user-0000007", &[]);
    replica.table.set("nobody", &[phone(1)]);
    w.pass(DIGEST_EVERY + ms(500));
    assert!(w.nodes[0].fingerprint(None) == w.nodes[1].fingerprint(Some(holder(0))));
}

#[test]
fn changes_of_a_user_within_a_window_are_one() {
    let mut w = with_users(1);
    w.pass(Duration::from_secs(5));
    let before = w.bytes[0];
    for order in 0..50 {
        w.nodes[0].set(w.now, &user(1), &[phone(order)]);
        w.pass(ms(1) / 3);
    }
    w.pass(ms(50));
    assert_eq!(w.nodes[1].at(holder(0), &user(1)), [phone(49)]);
    assert!(w.bytes[0] - before < 100, "{}", w.bytes[0] - before);
}

#[test]
fn a_node_that_does_not_say_what_it_heard_is_told_no_more_than_the_bound() {
    let mut w = with_users(1);
    // Its word is lost on the way: the test takes it.
    let mut told = 0;
    w.checks = false;
    for round in 0..200u64 {
        (0..1_000).for_each(|i| w.nodes[0].set(w.now, &user(i), &[phone(round * 1_000 + i)]));
        w.now += ms(20);
        w.nodes[0].tick(w.now);
        let frames = w.nodes[0].take_outputs();
        told +=
            frames.iter().map(|(_, body)| if let Body::RouteDelta(d) = body { d.ops.len() } else { 0 }).sum::<usize>();
        let frame = |body: &Body| matches!(body, Body::RouteDelta(d) if d.ops.len() > DELTA_BYTES + 100);
        assert!(!frames.iter().any(|(_, body)| frame(body)), "frames are bounded");
    }
    assert!((UNHEARD_BYTES - 2 * DELTA_BYTES..UNHEARD_BYTES).contains(&told), "{told}");
    // What it said at last brings the rest.
    w.pass(Duration::from_secs(3));
    assert!(w.nodes[0].fingerprint(None) == w.nodes[1].fingerprint(Some(holder(0))));
}

#[test]
fn a_peer_that_says_what_can_not_be_is_left_out() {
    let mut w = with_users(2_000);
    let epoch = w.nodes[0].writer.epoch;
    let good = wire::RouteChunk { epoch, lsn: 9, parts: 1, to: u64::MAX >> 8, ..Default::default() };
    let lsn = w.nodes[1].replicas[&holder(0)].lsn;
    for bad in [
        Body::RouteDelta(wire::RouteDelta { epoch, first_lsn: lsn + 1, base_ms: 0, ops: vec![1, 0].into() }),
        Body::RouteDelta(wire::RouteDelta { epoch, first_lsn: lsn + 1, base_ms: 0, ops: vec![0, 1, 0xff].into() }),
        Body::RouteDigest(wire::RouteDigest { epoch, lsn, sums: vec![1; 255], counts: vec![1; 256] }),
        Body::RouteDigest(wire::RouteDigest { epoch: 0, lsn, sums: vec![1; 256], counts: vec![1; 256] }),
        Body::RouteChunk(wire::RouteChunk { shard: 256, ..good.clone() }),
        Body::RouteChunk(wire::RouteChunk { shard: 1, ..good.clone() }),
        Body::RouteChunk(wire::RouteChunk { part: 1, ..good.clone() }),
        Body::RouteChunk(wire::RouteChunk { part: 9_999, parts: u32::MAX, ..good.clone() }),
    ] {
        assert_eq!(w.nodes[1].told(w.now, holder(0), &bad), Err(Malformed), "{bad:?}");
    }
    for harmless in [
        Body::RouteChunk(good),
        Body::RoutePull(wire::RoutePull { epoch, shards: vec![256, u32::MAX] }),
        Body::RouteState(wire::RouteState { heard_lsn: u64::MAX, heard_epoch: epoch, ..Default::default() }),
        Body::RouteDelta(wire::RouteDelta { epoch, first_lsn: u64::MAX, ..Default::default() }),
        Body::RouteDelta(wire::RouteDelta { epoch, first_lsn: 0, ..Default::default() }),
    ] {
        assert_eq!(w.nodes[1].told(w.now, holder(0), &harmless), Ok(Vec::new()), "{harmless:?}");
    }
    w.pass(Duration::from_secs(3));
    assert!(w.nodes[0].fingerprint(None) == w.nodes[1].fingerprint(Some(holder(0))));
}

#[test]
fn no_frame_of_a_shard_is_larger_than_its_bound() {
    let mut w = World::new(1);
    let long = "x".repeat(50);
    let key = Key::of(b"salt");
    let users = (0u64..).map(|i| format!("{long}-{i}")).filter(|u| table::shard_of(key.hash(u.as_bytes())) == 3);
    for user in users.take(5_000) {
        w.nodes[0].set(w.now, &UserId::new(&user).unwrap(), &[phone(1)]);
    }
    w.weather = Weather { delay_ms_max: 50, ..CALM };
    w.link(0, 1);
    let mut parts = BTreeSet::new();
    for _ in 0..500 {
        for (.., body) in w.frames.values() {
            if let Body::RouteChunk(chunk) = body {
                parts.insert(chunk.part);
                assert!(chunk.ops.len() <= CHUNK_BYTES, "{}", chunk.ops.len());
            }
        }
        w.pass(ms(1));
    }
    assert!(parts.len() > 5, "{parts:?}");
    assert!(w.nodes[0].fingerprint(None) == w.nodes[1].fingerprint(Some(holder(0))));
}
