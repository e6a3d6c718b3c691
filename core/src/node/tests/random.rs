//! Random histories of whole regions and whole clients: the machines of both sides over lanes that keep
//! their order and nothing else. Regions crash, are destroyed, and lose each other; connections end with and
//! without a word; clients crash between any two steps. In the end everything is healed, and then:
//!
//! - nothing that was acked is missing while its device or a region that held it lives;
//! - no device shows a message twice, and all devices show the same order;
//! - no sender's messages descend; nothing waits for ever; all regions hold the same logs.
//!
//! `TERN_SEEDS=A..B` runs others than the usual ones.

use super::*;
use crate::client::{
    Book, Candidate, ConnNo, Effect, Event, Failure, Machine, MessageId, MessageState, Op, Outbound, Setup, Transport,
};
use crate::wire::codec::FrameReader;
use crate::wire::compact::{Read, Reader, Table, Writer};
use crate::wire::{Lane, v1::frame::Body};
use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const REGIONS: [(Region, &str); 3] = [(EU, "eu"), (US, "us"), (AP, "ap")];

/// A connection between a device and a region: bytes on lanes, both ways.
struct Wire {
    region: Region,
    conn: u64,
    up: [VecDeque<v1::Frame>; 3],
    down: [VecDeque<v1::Frame>; 3],
    up_tables: (Writer, Reader),
    down_tables: (Writer, Reader),
    /// Told to the client when it happens.
    broken: bool,
}

struct Device {
    name: &'static str,
    peer: &'static str,
    setup: Setup,
    book: Book,
    machine: Machine,
    wires: BTreeMap<ConnNo, Wire>,
    refused: Vec<ConnNo>,
    destroyed: bool,
}

struct Run {
    world: World,
    devices: Vec<Device>,
    rng: StdRng,
    next_conn: u64,
    /// What the clients have stored as acked.
    acked: BTreeSet<(usize, Vec<u8>)>,
    gone: BTreeSet<Region>,
    written: u64,
    log: Vec<String>,
}

fn frames(bytes: &BytesMut) -> Vec<v1::Frame> {
    let mut reader = FrameReader::new(1 << 20);
    reader.extend(bytes);
    std::iter::from_fn(|| reader.next::<v1::Frame>().unwrap()).collect()
}

fn lane(frame: &v1::Frame) -> usize {
    frame.lane().unwrap_or(Lane::Message).index()
}

impl Device {
    fn new(name: &'static str, peer: &'static str, device: &str, seed: u64) -> Self {
        let candidate = |(_, region): &(Region, &str)| Candidate {
            edge: format!("{region}-e1"),
            region: (*region).into(),
            address: format!("{region}:1"),
            server_name: "x".into(),
            quic: true,
            tcp: false,
            quic_timeout: Duration::from_secs(1),
            tcp_timeout: Duration::from_secs(2),
        };
        let setup = Setup {
            user: user(name),
            agent: "test".into(),
            fallback: REGIONS.iter().map(candidate).collect(),
            dispatch_targets: 0,
            device: String::new(),
            seed,
        };
        let book = Book::new(user(name), install(&format!("{name}-{device}")));
        let machine = Machine::new(setup.clone(), book.image());
        Self { name, peer, setup, book, machine, wires: BTreeMap::new(), refused: Vec::new(), destroyed: false }
    }

    fn conversation(&self) -> ConvId {
        self.machine.direct_id(&user(self.peer))
    }

    /// The bodies as they are shown, and which of them are own ones that no region has acked.
    fn shown(&self) -> Vec<(String, MessageState)> {
        let all = self.book.timeline(self.conversation(), 0, usize::MAX);
        all.into_iter().map(|m| (String::from_utf8_lossy(&m.body).into_owned(), m.state)).collect()
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let devices = vec![
            Device::new("alice", "bob", "phone", seed ^ 1),
            Device::new("alice", "bob", "tablet", seed ^ 2),
            Device::new("bob", "alice", "phone", seed ^ 3),
        ];
        let mut run = Self {
            // Few origins in a row, so that short runs fold.
            world: World::folding(EraTable::folding(2, 6)),
            devices,
            rng: StdRng::seed_from_u64(seed),
            next_conn: 1,
            acked: BTreeSet::new(),
            gone: BTreeSet::new(),
            written: 0,
            log: Vec::new(),
        };
        for i in 0..run.devices.len() {
            let now = run.world.now;
            run.devices[i].machine.connect(now);
            run.steps(i, false);
        }
        run
    }

    fn note(&mut self, what: String) {
        self.log.push(format!("{:>9.1} {what}", self.world.now.as_secs_f64()));
    }

    /// Applies what a machine says; it may die after the ops of any step.
    fn steps(&mut self, i: usize, may_crash: bool) {
        loop {
            let now = self.world.now;
            let step = self.devices[i].machine.take_step();
            if step.ops.is_empty() && step.effects.is_empty() {
                return;
            }
            self.note_acks(i, &step.ops);
            self.devices[i].book.apply(&step.ops);
            if may_crash && self.rng.random_bool(0.004) {
                self.note(format!("{i} crashes"));
                self.crash_client(i);
                return;
            }
            for effect in step.effects {
                match effect {
                    Effect::Connect { conn, candidate, transport, hello } => {
                        assert_eq!(transport, Transport::Quic);
                        self.dial(i, conn, &candidate.region, *hello.0);
                    }
                    Effect::Close { conn, .. } => self.hang_up(i, conn),
                    Effect::Write { conn, out } => {
                        if let Some(wire) = self.devices[i].wires.get_mut(&conn) {
                            let mut bytes = BytesMut::new();
                            match out {
                                Outbound::Send(req, send) => wire.up_tables.0.send(req, &send, &mut bytes),
                                Outbound::Frame(frame) => wire.up_tables.0.plain(&frame, &mut bytes),
                            }
                            for frame in frames(&bytes) {
                                wire.up[lane(&frame)].push_back(frame);
                            }
                        }
                    }
                    Effect::Dispatch { .. } => self.devices[i].machine.dispatch_failed(now),
                    Effect::Token { .. } => self.devices[i].machine.token(now, Some("token".into())),
                    Effect::Event(event) => {
                        if matches!(event, Event::Kicked { .. }) {
                            // A bind that was on its way when the client had moved on: the application's user
                            // sees that another connection took over, and connects again.
                            self.devices[i].machine.connect(now);
                        } else if matches!(event, Event::Failed { .. }) {
                            panic!("{}\n{i}: {event:?}", self.log.join("\n"));
                        }
                    }
                }
            }
        }
    }

    /// What a client has stored as acked must never be lost.
    fn note_acks(&mut self, i: usize, ops: &[Op]) {
        for op in ops {
            if let Op::Outgoing(record) = op
                && record.state == MessageState::Sent
            {
                let body = self.devices[i].book.message(record.id).map(|m| m.body.to_vec());
                let body = body.unwrap_or_else(|| ops.iter().find_map(|op| queued(op, record.id)).unwrap());
                self.acked.insert((i, body));
            }
        }
    }

    fn crash_client(&mut self, i: usize) {
        let now = self.world.now;
        let conns: Vec<ConnNo> = self.devices[i].wires.keys().copied().collect();
        for conn in conns {
            self.hang_up(i, conn);
        }
        let seed = self.rng.random();
        let device = &mut self.devices[i];
        device.machine = Machine::new(Setup { seed, ..device.setup.clone() }, device.book.image());
        device.machine.connect(now);
        self.steps(i, false);
    }

    fn dial(&mut self, i: usize, conn: ConnNo, region: &str, hello: v1::Frame) {
        let region = REGIONS.iter().find(|(_, name)| *name == region).unwrap().0;
        if !self.world.cores.get(&region).is_some_and(Option::is_some) {
            self.devices[i].refused.push(conn);
            return;
        }
        let Some(Body::Hello(hello_body)) = hello.body else { panic!("a connection begins with Hello") };
        let number = self.next_conn;
        self.next_conn += 1;
        self.note(format!("{i} dials {region}: attempt {conn}, connection {number}"));
        let wire = Wire {
            region,
            conn: number,
            up: Default::default(),
            down: Default::default(),
            up_tables: Default::default(),
            down_tables: Default::default(),
            broken: false,
        };
        let open = Up::Open {
            conn: number,
            req: hello.req,
            user: user(self.devices[i].name),
            install: InstallId::new(&hello_body.install).unwrap(),
            hello: Box::new(hello_body),
            address: String::new(),
            transport: "quic",
            token_expires_ms: 0,
            token_issued_ms: 0,
        };
        self.devices[i].wires.insert(conn, wire);
        self.world.ups(region, 1, vec![open]);
    }

    /// The client's end of a connection is gone; the region hears of it, now or never.
    fn hang_up(&mut self, i: usize, conn: ConnNo) {
        let Some(wire) = self.devices[i].wires.remove(&conn) else { return };
        self.note(format!("{i} hangs up {}", wire.conn));
        let heard = self.rng.random_bool(0.7);
        if heard && self.world.cores[&wire.region].is_some() {
            self.world.ups(wire.region, 1, vec![Up::Close { conn: wire.conn }]);
        }
    }

    /// Moves what regions said onto the wires.
    fn collect(&mut self) {
        for device in &mut self.devices {
            for wire in device.wires.values_mut() {
                let key = (wire.region, ConnKey { edge: 1, conn: wire.conn });
                let Some(told) = self.world.told.get_mut(&key) else { continue };
                for body in std::mem::take(&mut told.all) {
                    let mut bytes = BytesMut::new();
                    match body {
                        DownBody::Ack { req, ack } => wire.down_tables.0.ack(req, &ack, &mut bytes),
                        DownBody::Push(push) => wire.down_tables.0.push(&push, &mut bytes),
                        DownBody::Frame(frame) => wire.down_tables.0.plain(&frame, &mut bytes),
                        DownBody::Page { req, page } => wire.down_tables.0.plain(&page_frame(req, &page), &mut bytes),
                        DownBody::Last(refusal) => {
                            let error = v1::Frame::new(0, Body::Error(refusal.to_wire()));
                            wire.down_tables.0.plain(&error, &mut bytes);
                        }
                    }
                    for frame in frames(&bytes) {
                        wire.down[lane(&frame)].push_back(frame);
                    }
                }
            }
        }
    }

    /// Delivers one frame of a random lane, either way. Whether there was one.
    fn deliver(&mut self, may_crash: bool) -> bool {
        self.collect();
        let mut ways = Vec::new();
        for (i, device) in self.devices.iter().enumerate() {
            for (conn, wire) in &device.wires {
                for l in 0..3 {
                    if !wire.up[l].is_empty() && !wire.broken {
                        ways.push((i, *conn, l, true));
                    }
                    if !wire.down[l].is_empty() && !wire.broken {
                        ways.push((i, *conn, l, false));
                    }
                }
            }
        }
        if ways.is_empty() {
            return false;
        }
        let (i, conn, l, up) = ways[self.rng.random_range(0..ways.len())];
        let now = self.world.now;
        let device = &mut self.devices[i];
        let wire = device.wires.get_mut(&conn).unwrap();
        if up {
            let frame = wire.up[l].pop_front().unwrap();
            let req = frame.req;
            let up = match wire.up_tables.1.read(frame).unwrap() {
                Read::Noted => return true,
                Read::Send(send) => Up::Send { conn: wire.conn, req, send },
                Read::Other(frame) => Up::Frame { conn: wire.conn, frame },
                other => panic!("{other:?}"),
            };
            let region = wire.region;
            self.world.ups(region, 1, vec![up]);
        } else {
            let frame = wire.down[l].pop_front().unwrap();
            let req = frame.req;
            if let Some(Body::Error(e)) = &frame.body {
                let what = format!("{i} connection {} is told {} {}", wire.conn, e.code, e.message);
                self.log.push(format!("{:>9.1} {what}", now.as_secs_f64()));
            }
            match wire.down_tables.1.read(frame).unwrap() {
                Read::Noted => return true,
                read => {
                    device.machine.frame(now, conn, req, read);
                    device.machine.frames_done(now);
                }
            }
            self.steps(i, may_crash);
        }
        true
    }

    fn let_pass(&mut self, time: Duration) {
        self.world.pass(time);
        let now = self.world.now;
        for i in 0..self.devices.len() {
            for conn in std::mem::take(&mut self.devices[i].refused) {
                self.devices[i].machine.ended(now, conn, &Failure::Network("refused".into()));
            }
            if !self.devices[i].destroyed {
                self.devices[i].machine.tick(now);
                self.steps(i, false);
            }
        }
    }

    fn write(&mut self, i: usize) {
        let now = self.world.now;
        self.written += 1;
        let device = &mut self.devices[i];
        let body = format!("{}{}-{}", device.name, i, self.written);
        let id = device.machine.direct(&user(device.peer));
        device.machine.send(now, id, 0, Bytes::from(body.clone()), 0).unwrap();
        self.note(format!("{i} writes {body}"));
        self.steps(i, false);
    }

    fn kill(&mut self, region: Region, destroy: bool) {
        self.note(format!("kill {region}{}", if destroy { " and its disk" } else { "" }));
        self.world.kill(region);
        for device in &mut self.devices {
            let now = self.world.now;
            let conns: Vec<ConnNo> = device.wires.iter().filter(|(_, w)| w.region == region).map(|(c, _)| *c).collect();
            for conn in conns {
                // Half of the clients hear nothing: their connection is silent.
                if self.rng.random_bool(0.5) {
                    device.wires.remove(&conn);
                    device.machine.ended(now, conn, &Failure::Network("reset".into()));
                } else if let Some(wire) = device.wires.get_mut(&conn) {
                    wire.broken = true;
                }
            }
        }
        if destroy {
            // It stays away: how a region comes back without its disk is a matter of eras (R13).
            self.gone.insert(region);
        }
    }

    fn start(&mut self, region: Region) {
        self.note(format!("start {region}"));
        self.world.start(region);
        for (other, _) in REGIONS {
            if other != region && self.world.cores[&other].is_some() {
                self.world.link(region, other);
            }
        }
    }

    fn up(&self) -> Vec<Region> {
        REGIONS.iter().map(|(r, _)| *r).filter(|r| self.world.cores[r].is_some()).collect()
    }

    /// Those that can be started.
    fn down(&self) -> Vec<Region> {
        let down = REGIONS.iter().map(|(r, _)| *r).filter(|r| self.world.cores[r].is_none());
        down.filter(|r| !self.gone.contains(r)).collect()
    }

    fn act(&mut self) {
        match self.rng.random_range(0..1000) {
            0..600 => {
                self.deliver(true);
            }
            600..700 => {
                let i = self.rng.random_range(0..self.devices.len());
                if !self.devices[i].destroyed {
                    self.write(i);
                }
            }
            700..880 => {
                let ms = [10, 50, 200, 1_000][self.rng.random_range(0..4)];
                self.let_pass(Duration::from_millis(ms));
            }
            880..884 => self.let_pass(Duration::from_secs(40)),
            884..900 => {
                let up = self.up();
                if up.len() > 1 {
                    let region = up[self.rng.random_range(0..up.len())];
                    // One disk is lost in a run at most: two would be more than is promised.
                    let destroy = self.gone.is_empty() && self.rng.random_bool(0.3);
                    self.kill(region, destroy);
                }
            }
            900..930 => {
                if let Some(region) = self.down().first() {
                    self.start(*region);
                }
            }
            930..950 => {
                let up = self.up();
                if let [a, b, ..] = up[..] {
                    let (a, b) = if self.rng.random_bool(0.5) { (a, b) } else { (up[up.len() - 1], a) };
                    if a != b && self.world.up.contains(&pair(a, b)) {
                        self.note(format!("cut {a} {b}"));
                        self.world.unlink(a, b);
                    } else if a != b {
                        self.note(format!("heal {a} {b}"));
                        self.world.link(a, b);
                    }
                }
            }
            950..985 => {
                let i = self.rng.random_range(0..self.devices.len());
                let conns: Vec<ConnNo> = self.devices[i].wires.keys().copied().collect();
                if let Some(conn) = conns.first() {
                    let now = self.world.now;
                    self.note(format!("{i} loses its connection"));
                    self.hang_up(i, *conn);
                    self.devices[i].machine.ended(now, *conn, &Failure::Network("reset".into()));
                    self.steps(i, false);
                }
            }
            _ => {
                let i = self.rng.random_range(0..self.devices.len());
                if let Some(wire) = self.devices[i].wires.values_mut().next() {
                    wire.broken = true; // nothing passes any more, and nobody is told
                }
            }
        }
    }

    fn heal_and_check(&mut self) {
        self.note("--- heal".into());
        for region in self.down() {
            self.start(region);
        }
        for (a, b) in [(EU, US), (EU, AP), (US, AP)] {
            let alive = !self.gone.contains(&a) && !self.gone.contains(&b);
            if alive && !self.world.up.contains(&pair(a, b)) {
                self.world.link(a, b);
            }
        }
        for _ in 0..400 {
            self.let_pass(Duration::from_millis(500));
            let mut left = 20_000;
            while self.deliver(false) {
                left -= 1;
                assert!(left > 0, "frames without end\n{}", self.log.join("\n"));
            }
        }
        if let Err(what) = self.check() {
            panic!("{}\n{what}", self.log.join("\n"));
        }
    }

    fn check(&mut self) -> Result<(), String> {
        // Of a lost region some devices may hold copies that no survivor does. Until the region is sealed
        // (R15) they count where they are held, so no common place is promised for these messages.
        let survivor = self.world.cores[&self.up()[0]].as_ref().unwrap();
        let survives =
            |o: Origin, seq: u64| survivor.disk.logs.get(&(alice_and_bob(), o)).is_some_and(|l| l.len() as u64 >= seq);
        let mut adrift = BTreeSet::new();
        for device in &self.devices {
            let lost = |m: &crate::client::Message| m.key.is_some_and(|k| !survives(k.origin, k.seq));
            let all = device.book.timeline(device.conversation(), 0, usize::MAX);
            adrift.extend(all.iter().filter(|m| lost(m)).map(|m| String::from_utf8_lossy(&m.body).into_owned()));
        }
        if !adrift.is_empty() && self.gone.is_empty() {
            return Err(format!("no region holds {adrift:?}"));
        }
        let whole: Vec<String> = self.devices[2].shown().into_iter().map(|(b, _)| b).collect();
        let reference: Vec<String> = whole.iter().filter(|b| !adrift.contains(*b)).cloned().collect();
        for (i, device) in self.devices.iter().enumerate() {
            let shown = device.shown();
            let bodies: Vec<String> = shown.iter().map(|(b, _)| b.clone()).collect();
            let mut once = bodies.clone();
            once.sort();
            once.dedup();
            if once.len() != bodies.len() {
                return Err(format!("{i} shows something twice: {bodies:?}"));
            }
            let everything: BTreeSet<&String> = bodies.iter().collect();
            if everything != whole.iter().collect() {
                return Err(format!("{i} shows {bodies:?}\nbut 2 shows {whole:?}"));
            }
            let bodies: Vec<String> = bodies.into_iter().filter(|b| !adrift.contains(b)).collect();
            if bodies != reference {
                let held = |d: &Device| {
                    let c = &d.book.image().conversations[&d.conversation()];
                    let logs: Vec<_> =
                        c.origins.iter().map(|(o, s)| format!("{o}:{}/{}/{:?}", s.floor, s.head, s.held)).collect();
                    logs.join(" ")
                };
                let keys = |d: &Device| -> Vec<String> {
                    let all = d.book.timeline(d.conversation(), 0, usize::MAX);
                    all.iter().map(|m| format!("{} {:?}", String::from_utf8_lossy(&m.body), m.key)).collect()
                };
                let (a, b) = (keys(device), keys(&self.devices[2]));
                let differ = a.iter().filter(|k| !b.contains(k)).chain(b.iter().filter(|k| !a.contains(k)));
                let differ: Vec<_> = differ.collect();
                let mut rows = String::new();
                for (r, _) in REGIONS {
                    let Some(core) = &self.world.cores[&r] else { continue };
                    for ((user, _), row) in &core.disk.rows {
                        rows.push_str(&format!(
                            "{r} {user:?} {:?} {:?}\n",
                            row.rev,
                            row.heads.iter().map(|(o, s)| (o.era, s)).collect::<Vec<_>>()
                        ));
                    }
                    rows.push_str(&format!(
                        "  logs {:?}\n",
                        core.disk.logs.iter().map(|((_, o), l)| (o.era, l.len())).collect::<Vec<_>>()
                    ));
                }
                let rows =
                    format!("{rows}{:?}\n{:?}", device.book.image().cursors, self.devices[2].book.image().cursors);
                return Err(format!(
                    "{i} shows {bodies:?}\nbut 2 shows {reference:?}\n{differ:#?}\n{}\n{}\n{rows}",
                    held(device),
                    held(&self.devices[2])
                ));
            }
            let waiting: Vec<_> =
                shown.iter().filter(|(_, s)| !matches!(s, MessageState::Received | MessageState::Stable)).collect();
            if !waiting.is_empty() {
                let kept: Vec<_> = device
                    .book
                    .image()
                    .outgoing
                    .into_iter()
                    .map(|o| (o.record.acked.map(|a| a.0), o.record.places))
                    .collect();
                let mut state = String::new();
                for (r, _) in REGIONS {
                    let Some(core) = &self.world.cores[&r] else { continue };
                    state.push_str(&format!(
                        "{r} era {} todo {:?} eras {:?}\n",
                        core.node.origin().era,
                        core.disk.todo,
                        core.node.eras
                    ));
                    for (other, _) in REGIONS {
                        state.push_str(&format!("  link {other} {:?}\n", core.node.link(other)));
                    }
                    let c = &core.node.conversations[&device.conversation()];
                    state.push_str(&format!(
                        "  watchers {:?} published {:?}\n",
                        c.watchers,
                        c.published.iter().map(|(o, s)| (o.era, s)).collect::<Vec<_>>()
                    ));
                    state.push_str(&format!(
                        "  logs {:?}\n",
                        core.disk.logs.iter().map(|((_, o), l)| (o.era, l.len())).collect::<Vec<_>>()
                    ));
                }
                return Err(format!(
                    "{i} {:?} waits for ever with {waiting:?}\n{kept:#?}\n{state}",
                    device.machine.connection()
                ));
            }
            if device.machine.waiting() != (0, 0) {
                return Err(format!("the outbox of {i} holds {:?}", device.machine.waiting()));
            }
        }
        for (i, body) in &self.acked {
            let body = String::from_utf8_lossy(body).into_owned();
            if !whole.contains(&body) {
                return Err(format!("{body} of {i} was acked and is lost"));
            }
        }
        if whole.len() as u64 != self.written {
            return Err(format!("{} were written, {} are shown", self.written, whole.len()));
        }
        for sender in ["alice0-", "alice1-", "bob2-"] {
            let own: Vec<u64> = reference.iter().filter_map(|b| b.strip_prefix(sender)?.parse().ok()).collect();
            if own.windows(2).any(|w| w[0] >= w[1]) {
                return Err(format!("{sender} descends: {own:?}"));
            }
        }
        let logs = |r: &Region| -> Vec<_> {
            let core = self.world.cores[r].as_ref().unwrap();
            core.disk.logs.iter().map(|(k, l)| (*k, l.len())).filter(|(_, l)| *l > 0).collect()
        };
        let alive = self.up();
        for region in &alive[1..] {
            if logs(region) != logs(&alive[0]) {
                return Err(format!("logs differ: {:?} and {:?}", logs(&alive[0]), logs(region)));
            }
        }
        Ok(())
    }
}

fn queued(op: &Op, id: MessageId) -> Option<Vec<u8>> {
    match op {
        Op::Queue(out) if out.record.id == id => Some(out.body.to_vec()),
        _ => None,
    }
}

fn page_frame(req: u32, page: &Page) -> v1::Frame {
    let mut table = Table::default();
    let entries = page.entries.iter().map(|e| table.entry(e)).collect();
    let gaps = page.gaps.iter().map(|(from, to, r)| v1::Gap { from: *from, to: *to, reason: *r as i32 }).collect();
    let body = v1::Page {
        conversation: page.conversation.0.to_vec().into(),
        origin: Some(page.origin.into()),
        origins: table.wire_origins,
        senders: table.wire_senders,
        entries,
        gaps,
        last: page.last,
    };
    v1::Frame::new(req, Body::Page(body))
}

fn run(seed: u64, actions: usize) {
    let mut run = Run::new(seed);
    for _ in 0..actions {
        run.act();
    }
    run.heal_and_check();
}

#[test]
fn random_histories_of_regions_and_clients_lose_double_and_reorder_nothing() {
    let seeds = std::env::var("TERN_SEEDS").ok().and_then(|s| {
        let (a, b) = s.split_once("..")?;
        Some(a.parse().ok()?..b.parse().ok()?)
    });
    for seed in seeds.unwrap_or(1..61) {
        let result = std::panic::catch_unwind(|| run(seed, 600));
        if let Err(panic) = result {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            panic!("seed {seed}: {text}");
        }
    }
}

#[test]
fn a_quiet_history_shows_all_to_all() {
    let mut run = Run::new(7);
    for i in [0, 2, 1, 0, 2] {
        run.write(i);
    }
    run.heal_and_check();
    assert_eq!(run.devices[0].shown().len(), 5);
}
