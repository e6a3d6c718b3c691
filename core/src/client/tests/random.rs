//! Random histories: three devices, three regions, cuts, crashes at any point, dropped pushes, lanes that overtake each
//! other, a region that is destroyed, a device restored from its backup. In the end everything acked is shown once,
//! everywhere, in one order; the outboxes are empty; the cursors hid nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::edge_api::SendRequest;
use crate::receipt::ReceiptKey;

const DEVICES: [(&str, &str); 3] = [("alice", "phone"), ("alice", "tablet"), ("bob", "b-phone")];

fn convs() -> [(ConvId, [&'static str; 2]); 2] {
    let id = |a, b| ConvId::direct(SALT, &user(a), &user(b));
    [(id("alice", "bob"), ["alice", "bob"]), (id("alice", "alice"), ["alice", "alice"])]
}

#[derive(Default)]
struct Region {
    number: u8,
    dead: bool,
    clock: u64,
    logs: BTreeMap<(ConvId, Origin), Vec<Arc<Entry>>>,
    revs: BTreeMap<UserId, u64>,
    rows: BTreeMap<(UserId, ConvId), u64>,
}

/// A connection: what is on the way, per lane.
struct Wire {
    conn: ConnNo,
    region: usize,
    install: InstallId,
    up: VecDeque<Outbound>,
    down: [VecDeque<(u32, Read)>; 3],
    asked: BTreeSet<(ConvId, Origin)>,
}

struct World {
    rng: StdRng,
    key: ReceiptKey,
    regions: Vec<Region>,
    devices: Vec<Device>,
    wires: Vec<Option<Wire>>,
    sealed: bool,
    sent: u32,
    acked: BTreeSet<(usize, MessageId)>,
    backup: Option<(usize, Book)>,
    installs: u32,
    /// Installs of devices that were brought back: they forgot acks, so no order is promised for what they sent.
    restored: BTreeSet<InstallId>,
    seed: u64,
}

fn setup_of(device: usize, seed: u64) -> Setup {
    let fallback = ["e0", "e1", "e2"].iter().map(|e| candidate(e, e)).collect();
    Setup {
        user: user(DEVICES[device].0),
        agent: String::new(),
        fallback,
        dispatch_targets: 0,
        device: String::new(),
        seed,
    }
}

impl Region {
    fn own(&self) -> Origin {
        origin(self.number)
    }

    fn heads(&self, conv: ConvId) -> Heads {
        self.logs
            .iter()
            .filter(|((c, _), l)| *c == conv && !l.is_empty())
            .map(|((_, o), l)| (*o, l.len() as u64))
            .collect()
    }

    fn held(&self, conv: ConvId, by: &Identity) -> Vec<Arc<Entry>> {
        self.logs
            .iter()
            .filter(|((c, _), _)| *c == conv)
            .flat_map(|(_, l)| l)
            .filter(|e| e.by == *by)
            .cloned()
            .collect()
    }

    fn highest(&self, conv: ConvId) -> u64 {
        self.logs.iter().filter(|((c, _), _)| *c == conv).flat_map(|(_, l)| l).map(|e| e.place.hlc).max().unwrap_or(0)
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let regions =
            (1..=3).map(|number| Region { number, clock: 1000 * u64::from(number), ..Region::default() }).collect();
        let device = |i: usize| {
            let book = Book::new(user(DEVICES[i].0), InstallId::new(DEVICES[i].1).unwrap());
            Device::over(setup_of(i, seed + i as u64), book)
        };
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            key: ReceiptKey::new(&[1; 32]),
            regions,
            devices: (0..3).map(device).collect(),
            wires: (0..3).map(|_| None).collect(),
            sealed: false,
            sent: 0,
            acked: BTreeSet::new(),
            backup: None,
            installs: 0,
            restored: BTreeSet::new(),
            seed,
        };
        (0..3).for_each(|d| world.devices[d].act(Machine::connect));
        world
    }

    fn pick(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    /// Carries what a device's machine asked for to its wire.
    fn collect(&mut self, d: usize) {
        let device = &mut self.devices[d];
        if !std::mem::take(&mut device.tokens).is_empty() {
            device.act(|m, now| m.token(now, Some("t".into())));
        }
        let closed = std::mem::take(&mut device.closed);
        if self.wires[d].as_ref().is_some_and(|w| closed.contains(&w.conn)) {
            self.wires[d] = None;
        }
        device.connects.retain(|c| !closed.contains(&c.0));
        if let Some(wire) = &mut self.wires[d] {
            let mine = device.written.drain(..).filter(|(conn, _)| *conn == wire.conn);
            wire.up.extend(mine.map(|(_, o)| o));
        } else {
            device.written.clear();
        }
        for event in std::mem::take(&mut device.events) {
            if let Event::Sent { id, .. } = event {
                self.acked.insert((d, id));
            }
        }
    }

    fn cut(&mut self, d: usize) {
        if let Some(wire) = self.wires[d].take() {
            self.devices[d].act(|m, now| m.ended(now, wire.conn, &Failure::Network("cut".into())));
            self.collect(d);
        }
    }

    /// An attempt of a device succeeds or fails.
    fn attempt(&mut self, d: usize, luck: bool) {
        let Some((conn, candidate, _, hello)) = self.devices[d].connects.pop() else { return };
        let region = usize::from(candidate.edge.as_bytes()[1] - b'0');
        if self.regions[region].dead || !luck {
            self.devices[d].act(|m, now| m.ended(now, conn, &Failure::Network("no".into())));
            self.collect(d);
            return;
        }
        let me = user(DEVICES[d].0);
        let rev = self.regions[region].revs.get(&me).copied().unwrap_or(0);
        let welcome = v1::Welcome {
            version: 1,
            cursor: Some(cursor(self.regions[region].number, rev).into()),
            direct_salt: Bytes::from_static(SALT),
            ..v1::Welcome::default()
        };
        let install = InstallId::new(&hello.install).unwrap();
        // Whatever was on the way on the old connection is closed by the Welcome of the new one.
        let old = self.wires[d].take();
        self.wires[d] =
            Some(Wire { conn, region, install, up: VecDeque::new(), down: Default::default(), asked: BTreeSet::new() });
        drop(old);
        self.devices[d].body(conn, 1, Body::Welcome(welcome));
        self.collect(d);
        let asks = hello.unstable;
        self.ask_stable(d, asks);
    }

    fn ask_stable(&mut self, d: usize, logs: Vec<v1::UnstableLog>) {
        let Some(wire) = &mut self.wires[d] else { return };
        for log in logs {
            let conv = ConvId::from_slice(&log.conversation).unwrap();
            wire.asked.extend(log.origins.into_iter().map(|o| (conv, Origin::try_from(o).unwrap())));
        }
        self.tell_stable(d);
    }

    fn tell_stable(&mut self, d: usize) {
        let Some(wire) = &mut self.wires[d] else { return };
        let here = &self.regions[wire.region];
        for (conv, o) in &wire.asked {
            let living = self.regions.iter().filter(|r| !r.dead);
            let mut holders: Vec<_> = living.map(|r| r.logs.get(&(*conv, *o)).map_or(0, |l| l.len() as u64)).collect();
            holders.sort_unstable();
            let upto = if holders.len() < 2 { 0 } else { holders[holders.len() - 2] };
            let held = here.logs.get(&(*conv, *o)).map_or(0, |l| l.len() as u64);
            let offer = self.regions[usize::from(o.region) - 1].dead || (held <= upto && o.region != here.number);
            let conversation = Bytes::copy_from_slice(&conv.0);
            let stable = v1::Stable { conversation, origin: Some((*o).into()), upto, regions: 2, offer };
            wire.down[1].push_back((0, Read::Other(v1::Frame::new(0, Body::Stable(stable)))));
        }
    }

    /// A region has new entries of a conversation: rows and pushes.
    fn fan_out(&mut self, region: usize, conv: ConvId, entries: &[Arc<Entry>]) {
        let members: BTreeSet<_> = convs().into_iter().find(|c| c.0 == conv).unwrap().1.into_iter().collect();
        for member in members {
            let r = &mut self.regions[region];
            let rev = r.revs.entry(user(member)).or_default();
            *rev += 1;
            let rev = *rev;
            r.rows.insert((user(member), conv), rev);
            let heads = r.heads(conv);
            for d in (0..3).filter(|d| DEVICES[*d].0 == member) {
                let lost = self.rng.random_bool(0.25);
                if let Some(wire) = self.wires[d].as_mut().filter(|w| w.region == region && !lost) {
                    let own_echo = |e: &&Arc<Entry>| e.by.install != wire.install;
                    let peer = if member == "alice" { "bob" } else { "alice" };
                    let push = Push {
                        conversation: conv,
                        peer: Some(user(if conv == convs()[1].0 { "alice" } else { peer })),
                        entries: entries.iter().filter(own_echo).cloned().collect(),
                        heads: heads.clone(),
                        prev_rev: Rev(rev - 1),
                        row: None,
                        rev: Rev(rev),
                    };
                    wire.down[1].push_back((0, Read::Push(push)));
                }
            }
        }
    }

    fn on_send(&mut self, d: usize, req: u32, send: &SendRequest) {
        let wire = self.wires[d].as_ref().unwrap();
        let (region, install) = (wire.region, wire.install.clone());
        let me = user(DEVICES[d].0);
        let by = |n| Identity { user: me.clone(), install: install.clone(), n };
        let hash = body_hash(&send.body);
        let conv = send.conversation;
        let answer = |w: &mut Self, read| w.wires[d].as_mut().unwrap().down[1].push_back((req, read));
        let refuse = |w: &mut Self, code| {
            let error = crate::codes::Refusal::new(code, "no").after_ms(5).to_wire();
            answer(w, Read::Other(v1::Frame::new(req, Body::Error(error))));
        };
        if self.rng.random_bool(0.03) {
            return refuse(self, Code::RateLimited);
        }
        let held = self.regions[region].held(conv, &by(send.n));
        if held.iter().any(|e| e.body_hash != hash) {
            return refuse(self, Code::IdentityConflict);
        }
        let proven = send.offer.as_ref().filter(|(k, r)| self.key.verify(conv, *k, &by(send.n), &hash, r)).map(|o| o.0);
        assert_eq!(proven.is_some(), send.offer.is_some(), "a true client's receipts are valid");
        let lowest = held.iter().min_by_key(|e| e.display_key()).cloned();
        let entry = match lowest {
            Some(e) if proven.is_none_or(|k| k >= e.display_key()) => e,
            _ => {
                let missing = |n| self.regions[region].held(conv, &by(n)).is_empty();
                if send.offer.is_none() && (send.floor..send.n).any(missing) {
                    return refuse(self, Code::OutOfOrder);
                }
                let r = &mut self.regions[region];
                r.clock += 1;
                let hlc = r.clock.max(send.seen_hlc + 1).max(r.highest(conv) + 1);
                let log = r.logs.entry((conv, r.own())).or_default();
                let at = Place { hlc, origin: origin(r.number), seq: log.len() as u64 + 1 };
                let entry = Arc::new(Entry {
                    place: at,
                    by: by(send.n),
                    peer: None,
                    kind: 0,
                    wall_ms: 1,
                    first: proven,
                    stamp: None,
                    only_sender: false,
                    body_hash: hash,
                    body: send.body.clone(),
                    erased: false,
                });
                log.push(entry.clone());
                self.fan_out(region, conv, std::slice::from_ref(&entry));
                entry
            }
        };
        let also = (send.floor..send.n).filter_map(|n| {
            let e = self.regions[region].held(conv, &by(n)).into_iter().min_by_key(|e| e.display_key())?;
            let receipt = self.key.sign(conv, e.display_key(), &by(n), &e.body_hash);
            Some(HeldAck { n, place: e.place, first: e.first, receipt, cut: Heads::new() })
        });
        let receipt = self.key.sign(conv, entry.display_key(), &by(send.n), &hash);
        let ack = Ack {
            place: entry.place,
            first: entry.first,
            receipt,
            also: also.collect(),
            receipt_refused: false,
            cut: Heads::new(),
        };
        answer(self, Read::Ack(ack));
    }

    fn on_frame(&mut self, d: usize, frame: v1::Frame) {
        let me = user(DEVICES[d].0);
        let wire = self.wires[d].as_mut().unwrap();
        let region = &self.regions[wire.region];
        let rev = region.revs.get(&me).copied().unwrap_or(0);
        let store = origin(region.number);
        match frame.body {
            Some(Body::Ping(p)) => {
                let pong = Body::Pong(v1::Pong { echo: p.echo, rev, ..v1::Pong::default() });
                wire.down[0].push_back((frame.req, Read::Other(v1::Frame::new(frame.req, pong))));
            }
            Some(Body::PullRows(pull)) => {
                let base = pull.above.map(|c| Cursor::try_from(c).unwrap());
                let above = base.map_or(0, |c| c.rev.0);
                let mut all: Vec<_> = region.rows.iter().filter(|((u, _), r)| *u == me && **r > above).collect();
                all.sort_by_key(|(_, r)| **r);
                let last = all.len() <= 1;
                let upto = if last { rev } else { *all[0].1 };
                all.truncate(1);
                let mut table = Table::default();
                let rows = all.iter().map(|((_, conv), rev)| v1::Row {
                    conversation: Bytes::copy_from_slice(&conv.0),
                    rev: **rev,
                    heads: table.heads(&region.heads(*conv)),
                    peer: if *conv == convs()[1].0 {
                        "alice"
                    } else if me == user("alice") {
                        "bob"
                    } else {
                        "alice"
                    }
                    .to_owned(),
                    ..v1::Row::default()
                });
                let rows = rows.collect();
                let upto = Some(Cursor { store, rev: Rev(upto) }.into());
                let base = base.map(Into::into);
                let rows = v1::Rows { origins: table.wire_origins, rows, upto, base, last, ..v1::Rows::default() };
                wire.down[2].push_back((frame.req, Read::Other(v1::Frame::new(frame.req, Body::Rows(rows)))));
            }
            Some(Body::Pull(p)) => {
                let conv = ConvId::from_slice(&p.conversation).unwrap();
                let o = Origin::try_from(p.origin.unwrap()).unwrap();
                let log = region.logs.get(&(conv, o));
                let entries: Vec<_> =
                    log.into_iter().flatten().filter(|e| (p.from..=p.to).contains(&e.place.seq)).collect();
                let held = log.map_or(0, |l| l.len() as u64).max(p.from - 1);
                let reason = if self.sealed { v1::gap::Reason::Lost } else { v1::gap::Reason::NotHere };
                let gap = (held < p.to).then(|| v1::Gap { from: held + 1, to: p.to, reason: reason as i32 });
                let mut table = Table::default();
                let entries = entries.iter().map(|e| table.entry(e)).collect();
                let page = v1::Page {
                    conversation: p.conversation,
                    origin: p.origin,
                    entries,
                    gaps: gap.into_iter().collect(),
                    last: true,
                    origins: table.wire_origins,
                    senders: table.wire_senders,
                };
                wire.down[2].push_back((frame.req, Read::Other(v1::Frame::new(frame.req, Body::Page(page)))));
            }
            Some(Body::Unstable(u)) => self.ask_stable(d, u.logs),
            _ => {}
        }
    }

    fn up(&mut self, d: usize) {
        match self.wires[d].as_mut().and_then(|w| w.up.pop_front()) {
            Some(Outbound::Send(req, send)) => self.on_send(d, req, &send),
            Some(Outbound::Frame(frame)) => self.on_frame(d, frame),
            None => {}
        }
    }

    fn down(&mut self, d: usize, lane: usize) {
        let Some(wire) = &mut self.wires[d] else { return };
        let conn = wire.conn;
        if let Some((req, read)) = wire.down[lane].pop_front() {
            self.devices[d].frame(conn, req, read);
            self.collect(d);
        }
    }

    /// One region ships to another what it lacks of one log.
    fn link(&mut self, from: usize, to: usize) {
        if self.regions[from].dead || self.regions[to].dead || from == to {
            return;
        }
        let logs: Vec<_> = self.regions[from].logs.iter().map(|(k, l)| (*k, l.clone())).collect();
        for ((conv, o), log) in logs {
            let have = self.regions[to].logs.entry((conv, o)).or_default();
            let news: Vec<_> = log.into_iter().skip(have.len()).collect();
            if !news.is_empty() {
                have.extend(news.iter().cloned());
                self.fan_out(to, conv, &news);
            }
        }
    }

    fn write(&mut self, d: usize) {
        self.sent += 1;
        let text = Bytes::from(format!("{} {}", d, self.sent));
        let peer = if d < 2 && self.rng.random_bool(0.2) {
            "alice"
        } else if d < 2 {
            "bob"
        } else {
            "alice"
        };
        self.devices[d].act(|m, now| {
            let id = m.direct(&user(peer));
            m.send(now, id, 0, text, 1).unwrap()
        });
        self.collect(d);
    }

    fn crash(&mut self, d: usize) {
        self.wires[d] = None;
        let seed = self.rng.random();
        self.devices[d].crash(setup_of(d, seed));
        self.devices[d].act(Machine::connect);
        self.collect(d);
    }

    /// The process dies between taking a step and storing it: neither ops nor effects happen.
    fn crash_before_the_store(&mut self, d: usize) {
        let Some(wire) = &mut self.wires[d] else { return };
        let (conn, lane) = (wire.conn, self.rng.random_range(0..3));
        if let Some((req, read)) = wire.down[lane].pop_front() {
            let now = self.devices[d].now;
            self.devices[d].machine.frame(now, conn, req, read);
            drop(self.devices[d].machine.take_step());
        }
        self.crash(d);
    }

    /// A device is brought back from its backup, under a new install id for new messages (R3). What was acked
    /// since is no longer its to keep.
    fn restore_from_backup(&mut self, d: usize) {
        match self.backup.take() {
            None => self.backup = Some((d, self.devices[d].book.clone())),
            Some((d, mut book)) if self.rng.random_bool(0.3) => {
                let next = book.image().next_id;
                self.acked.retain(|(device, id)| *device != d || id.0 < next);
                self.installs += 1;
                self.restored.extend([book.image().install, self.devices[d].book.image().install]);
                book.set_install(InstallId::new(&format!("restored-{d}-{}", self.installs)).unwrap(), true);
                self.devices[d].book = book;
                self.crash(d);
            }
            Some(kept) => self.backup = Some(kept),
        }
    }

    fn step(&mut self) {
        let d = self.pick(3);
        match self.pick(100) {
            0..30 => self.up(d),
            30..62 => {
                let lane = self.pick(3);
                self.down(d, lane);
            }
            62..72 if self.sent < 40 => self.write(d),
            72..80 => {
                let (a, b) = (self.pick(3), self.pick(3));
                self.link(a, b);
            }
            80..85 => {
                let luck = self.rng.random_bool(0.8);
                self.attempt(d, luck);
            }
            85..87 => self.cut(d),
            87 => self.crash(d),
            88 => self.crash_before_the_store(d),
            89 => self.tell_stable(d),
            90 => self.restore_from_backup(d),
            91 if self.rng.random_bool(0.1) && self.regions.iter().all(|r| !r.dead) => {
                let gone = self.pick(3);
                self.regions[gone].dead = true;
                (0..3)
                    .filter(|d| self.wires[*d].as_ref().is_some_and(|w| w.region == gone))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|d| self.cut(d));
            }
            _ => {
                let time = Duration::from_millis(self.rng.random_range(0..60));
                self.devices[d].pass(time);
                self.collect(d);
            }
        }
    }

    fn settle(&mut self) {
        for round in 0..120 {
            (0..9).for_each(|i| self.link(i / 3, i % 3));
            self.sealed = round > 3;
            for d in 0..3 {
                (0..4).for_each(|_| self.attempt(d, true));
                self.tell_stable(d);
                for _ in 0..400 {
                    self.up(d);
                    (0..3).for_each(|lane| self.down(d, lane));
                }
                self.devices[d].pass(Duration::from_millis(if round % 10 == 9 { 70_000 } else { 150 }));
                self.collect(d);
            }
        }
    }

    fn check(&self) {
        let seed = self.seed;
        let living: Vec<_> = self.regions.iter().filter(|r| !r.dead).collect();
        for d in 0..3 {
            assert_eq!(self.devices[d].machine.waiting(), (0, 0), "seed {seed}: device {d} keeps something for ever");
        }
        let mut held = BTreeSet::new();
        for (conv, members) in convs() {
            let mut union: BTreeMap<&[u8], Place> = BTreeMap::new();
            for e in living.iter().flat_map(|r| r.logs.iter()).filter(|((c, _), _)| *c == conv).flat_map(|(_, l)| l) {
                let key = union.entry(&e.body[..]).or_insert(e.display_key());
                *key = (*key).min(e.display_key());
                held.insert(e.body.clone());
            }
            for d in (0..3).filter(|d| members.contains(&DEVICES[*d].0)) {
                let device = &self.devices[d];
                let shown = device.book.timeline(conv, device.machine.horizon(conv), usize::MAX);
                let texts: BTreeSet<_> = shown.iter().map(|m| m.body.clone()).collect();
                assert_eq!(texts.len(), shown.len(), "seed {seed}: device {d} shows a message twice");
                let lacks: Vec<_> = union.keys().filter(|t| !texts.contains(**t)).collect();
                assert!(lacks.is_empty(), "seed {seed}: device {d} lacks {lacks:?}");
                // A copy that died with its region may stand lower here than what survived.
                let shown: Vec<_> = shown.iter().filter(|m| union.get(&m.body[..]) == m.key.as_ref()).collect();
                assert!(shown.windows(2).all(|w| w[0].key < w[1].key), "seed {seed}: device {d} shows another order");
                let mut last = BTreeMap::new();
                for m in shown.iter().filter(|m| !self.restored.contains(&m.by.install)) {
                    let before = last.insert((&m.by.user, &m.by.install), m.by.n);
                    assert!(
                        before.is_none_or(|n| n < m.by.n),
                        "seed {seed}: device {d} shows {:?} after n = {before:?}",
                        m.by
                    );
                }
                let others = device.book.timeline(conv, 0, usize::MAX);
                let others = others.iter().filter(|m| m.by.user != user(DEVICES[d].0)).count() as u64;
                assert_eq!(device.book.unread(conv), others, "seed {seed}: device {d}");
                assert!(device.machine.unread_is_exact(conv), "seed {seed}: device {d}");
            }
        }
        for (d, id) in &self.acked {
            let message = self.devices[*d].book.message(*id).unwrap();
            assert!(
                held.contains(&message.body),
                "seed {seed}: {:?} was acked to device {d} and is lost",
                message.body
            );
        }
    }
}

#[test]
fn nothing_acked_is_lost_or_shown_twice_and_all_devices_agree() {
    let (from, count) = match std::env::var("TERN_CLIENT_SEEDS")
        .ok()
        .and_then(|s| s.split_once('+').map(|(a, b)| (a.parse(), b.parse())))
    {
        Some((Ok(from), Ok(count))) => (from, count),
        _ => (0, 60),
    };
    let mut acked = 0;
    for seed in from..from + count {
        let mut world = World::new(seed);
        (0..3).for_each(|d| world.collect(d));
        for _ in 0..500 {
            world.step();
        }
        world.settle();
        world.check();
        acked += world.acked.len();
    }
    assert!(acked > 10, "the histories do something: {acked}");
}
