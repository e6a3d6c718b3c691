//! Client machines over real regions, joined by pipes with latency instead of sockets: what a client decides
//! against what regions decide, at thousands of messages a second.
//!
//! A pipe does what an edge and a QUIC connection do as far as the two sides can tell: it keeps order, holds
//! everything while it is blocked, ends when the region is killed, and may turn a push into an `Advance`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tern_core::client::{
    Book, Candidate, Change, ConnNo, Effect, Event, Failure, Machine, MessageId, Outbound, Placed, Setup, Transport,
};
use tern_core::clock::Entropy;
use tern_core::codes::Refusal;
use tern_core::edge_api::{CorePort, Down, DownBody, EdgePort, Up};
use tern_core::ids::{ConvId, InstallId, UserId};
use tern_core::wire::compact::{Read, Table};
use tern_core::wire::v1::{self, frame::Body};
use tern_netsim::cluster::Cluster;
use tern_netsim::node::EPOCH_MS;
use tern_netsim::random::derive;
use tern_netsim::world::World;
use tokio::sync::Notify;

/// Rounds of the loop within one moment: more is an endless exchange.
const ROUNDS_MAX: u32 = 20_000;

/// Where downs arrive before they travel.
#[derive(Debug, Default)]
struct Wire {
    queue: Mutex<Vec<(usize, u64, ConnNo, Down)>>,
    notify: Notify,
}

/// One connection's edge, as its region sees it.
#[derive(Debug)]
struct Line {
    wire: Arc<Wire>,
    phone: usize,
    life: u64,
    conn: ConnNo,
}

impl EdgePort for Line {
    fn deliver(&self, downs: Vec<Down>) {
        let downs = downs.into_iter().map(|down| (self.phone, self.life, self.conn, down));
        self.wire.queue.lock().unwrap().extend(downs);
        self.wire.notify.notify_one();
    }
}

enum Happens {
    Dial { region: String, open: Box<v1::Hello>, req: u32 },
    Ups { core: Arc<dyn CorePort>, ups: Vec<Up> },
    Down(DownBody),
    Broken,
    Dispatched,
    Token,
    Again,
}

/// Something on its way between a phone and the world.
struct Travelling {
    phone: usize,
    life: u64,
    conn: ConnNo,
    region: String,
    what: Happens,
}

/// A device: what it keeps, and the machine while it runs.
pub struct Phone {
    pub name: &'static str,
    /// One-way latency to each region.
    latency: BTreeMap<&'static str, Duration>,
    pub book: Book,
    pub machine: Machine,
    life: u64,
    lines: BTreeMap<ConnNo, (String, Arc<dyn CorePort>)>,
    blocked: Vec<String>,
    pub events: Vec<Event>,
    /// How often each message was put into the timeline.
    pub shown: BTreeMap<MessageId, u32>,
}

impl Phone {
    fn machine(name: &'static str, book: &Book, seed: u64) -> Machine {
        let setup = Setup {
            user: UserId::new(name).unwrap(),
            agent: "netsim".into(),
            fallback: Vec::new(),
            dispatch_targets: 1,
            device: String::new(),
            seed,
        };
        Machine::new(setup, book.image())
    }

    fn delay(&self, region: &str) -> Duration {
        self.latency.get(region).copied().unwrap_or(Duration::from_millis(50))
    }
}

/// All phones, and what is on its way to and from them.
pub struct Phones {
    world: World,
    pub all: Vec<Phone>,
    wire: Arc<Wire>,
    travelling: BTreeMap<(Duration, u64), Travelling>,
    number: u64,
    rng: Entropy,
    /// Percent of pushes that give way to an `Advance`.
    pub push_loss: u64,
}

impl Phones {
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            all: Vec::new(),
            wire: Arc::default(),
            travelling: BTreeMap::new(),
            number: 0,
            rng: Entropy::seeded(derive(world.seed(), "phones", 0)),
            push_loss: 0,
        }
    }

    pub fn add(&mut self, name: &'static str, latency: &[(&'static str, u64)]) -> usize {
        let book = Book::new(UserId::new(name).unwrap(), InstallId::new(&format!("{name}-phone")).unwrap());
        let machine = Phone::machine(name, &book, self.rng.u64());
        let latency = latency.iter().map(|(region, ms)| (*region, Duration::from_millis(*ms))).collect();
        self.all.push(Phone {
            name,
            latency,
            book,
            machine,
            life: 1,
            lines: BTreeMap::new(),
            blocked: Vec::new(),
            events: Vec::new(),
            shown: BTreeMap::new(),
        });
        let now = self.world.elapsed();
        let phone = self.all.len() - 1;
        self.all[phone].machine.connect(now);
        phone
    }

    pub fn send(&mut self, phone: usize, to: &str, text: String) -> MessageId {
        let now = self.world.elapsed();
        let machine = &mut self.all[phone].machine;
        let conversation = machine.direct(&UserId::new(to).unwrap());
        let id = machine.send(now, conversation, 0, Bytes::from(text), EPOCH_MS).unwrap();
        // Stored when `send` returns.
        self.step(phone, false);
        id
    }

    /// The app is killed and opened again. `torn`: between the transaction of a step and its effects.
    pub fn restart(&mut self, phone: usize, torn: bool) {
        if torn {
            self.step(phone, true);
        }
        let seed = self.rng.u64();
        let now = self.world.elapsed();
        let one = &mut self.all[phone];
        one.life += 1;
        // The edges find out when their connections have been idle; a newer one replaces them before that.
        one.lines.clear();
        one.machine = Phone::machine(one.name, &one.book, seed);
        one.machine.connect(now);
    }

    /// Holds everything between a phone and a region.
    pub fn block(&mut self, phone: usize, region: &str) {
        self.all[phone].blocked.push(region.to_owned());
    }

    pub fn unblock_all(&mut self, phone: usize) {
        self.all[phone].blocked.clear();
    }

    /// A region's process is gone: its connections break, if they can be told.
    pub fn region_killed(&mut self, region: &str) {
        for phone in 0..self.all.len() {
            let conns: Vec<ConnNo> =
                self.all[phone].lines.iter().filter(|(_, (of, _))| of == region).map(|(conn, _)| *conn).collect();
            for conn in conns {
                self.all[phone].lines.remove(&conn);
                self.travel(phone, conn, region, Happens::Broken);
            }
        }
    }

    fn travel(&mut self, phone: usize, conn: ConnNo, region: &str, what: Happens) {
        let one = &self.all[phone];
        let at = self.world.elapsed() + one.delay(region);
        self.number += 1;
        let travelling = Travelling { phone, life: one.life, conn, region: region.to_owned(), what };
        self.travelling.insert((at, self.number), travelling);
    }

    /// Lets the phones and the regions do what they do for so long.
    pub async fn run_for(&mut self, cluster: &Cluster, time: Duration) {
        let until = self.world.elapsed() + time;
        let mut moment = (Duration::ZERO, 0);
        loop {
            let now = self.world.elapsed();
            moment = if moment.0 == now { (now, moment.1 + 1) } else { (now, 0) };
            assert!(moment.1 < ROUNDS_MAX, "an endless exchange at {now:?}");
            let wire = Arc::clone(&self.wire);
            let arrived = std::mem::take(&mut *wire.queue.lock().unwrap());
            for (phone, life, conn, down) in arrived {
                if self.all[phone].life == life {
                    let region = self.all[phone].lines.get(&conn).map(|(region, _)| region.clone());
                    if let Some(region) = region {
                        self.travel(phone, conn, &region, Happens::Down(down.body));
                    }
                }
            }
            let mut held = Vec::new();
            let mut touched = Vec::new();
            while let Some((at, number)) = self.travelling.keys().next().copied().filter(|(at, _)| *at <= now) {
                let Some(travelling) = self.travelling.remove(&(at, number)) else { break };
                let one = &self.all[travelling.phone];
                if one.life != travelling.life {
                    continue;
                }
                if one.blocked.contains(&travelling.region) {
                    held.push((number, travelling));
                    continue;
                }
                touched.push(travelling.phone);
                self.arrives(cluster, now, travelling);
            }
            for (number, travelling) in held {
                self.travelling.insert((now + Duration::from_millis(10), number), travelling);
            }
            for phone in 0..self.all.len() {
                let machine = &mut self.all[phone].machine;
                if machine.next_deadline().is_some_and(|at| at <= now) {
                    machine.tick(now);
                }
                if touched.contains(&phone) {
                    machine.frames_done(now);
                }
                self.step(phone, false);
            }
            if now >= until {
                return;
            }
            let deadlines = self.all.iter().filter_map(|phone| phone.machine.next_deadline());
            let travels = self.travelling.keys().next().map(|(at, _)| *at);
            let next = deadlines.chain(travels).min().map_or(until, |at| at.min(until));
            tokio::select! {
                biased;
                () = wire.notify.notified() => {}
                () = tokio::time::sleep(next.saturating_sub(now)) => {}
            }
        }
    }

    fn arrives(&mut self, cluster: &Cluster, now: Duration, travelling: Travelling) {
        let Travelling { phone, conn, region, what, .. } = travelling;
        let one = &mut self.all[phone];
        match what {
            Happens::Dial { region, open, req } => match cluster.core(&region) {
                None => self.travel(phone, conn, &region, Happens::Broken),
                Some(core) => {
                    let line = Line { wire: Arc::clone(&self.wire), phone, life: one.life, conn };
                    let core = core.attach_edge(Arc::new(line));
                    one.lines.insert(conn, (region, Arc::clone(&core)));
                    core.submit(vec![Up::Open {
                        conn: 1,
                        req,
                        user: UserId::new(one.name).unwrap(),
                        install: InstallId::new(&open.install).unwrap(),
                        hello: open,
                        address: "192.0.2.1:1".into(),
                        transport: "quic",
                        token_expires_ms: u64::MAX,
                        token_issued_ms: 0,
                    }]);
                }
            },
            Happens::Ups { core, ups } => core.submit(ups),
            Happens::Broken => one.machine.ended(now, conn, &Failure::Network("the connection broke".into())),
            Happens::Again => one.machine.connect(now),
            Happens::Token => one.machine.token(now, Some("token".into())),
            Happens::Dispatched => {
                let mut regions: Vec<_> = one.latency.iter().map(|(region, latency)| (*latency, *region)).collect();
                regions.sort();
                let list =
                    regions.into_iter().filter(|(_, region)| cluster.core(region).is_some()).map(|(_, region)| {
                        Candidate {
                            edge: format!("{region}-e1"),
                            region: region.to_owned(),
                            address: format!("{region}:7400"),
                            server_name: region.to_owned(),
                            quic: true,
                            tcp: true,
                            quic_timeout: Duration::from_secs(1),
                            tcp_timeout: Duration::from_secs(2),
                        }
                    });
                let list: Vec<_> = list.collect();
                one.machine.dispatched(now, EPOCH_MS, list, Duration::from_secs(300), Bytes::from_static(b"{}"));
            }
            Happens::Down(body) => self.down(now, phone, conn, &region, body),
        }
    }

    fn down(&mut self, now: Duration, phone: usize, conn: ConnNo, _region: &str, body: DownBody) {
        let lost = self.rng.below(100) < self.push_loss;
        let machine = &mut self.all[phone].machine;
        match body {
            DownBody::Ack { req, ack } => machine.frame(now, conn, req, Read::Ack(ack)),
            DownBody::Push(push) if lost => {
                let advance = v1::Advance { rev: push.rev.0 };
                machine.frame(now, conn, 0, Read::Other(v1::Frame::new(0, Body::Advance(advance))));
            }
            DownBody::Push(push) => machine.frame(now, conn, 0, Read::Push((*push).clone())),
            DownBody::Page { req, page } => {
                let mut table = Table::default();
                let entries = page.entries.iter().map(|entry| table.entry(entry)).collect();
                let gaps = page.gaps.iter();
                let body = v1::Page {
                    conversation: Bytes::copy_from_slice(&page.conversation.0),
                    origin: Some(page.origin.into()),
                    entries,
                    origins: table.wire_origins,
                    senders: table.wire_senders,
                    gaps: gaps
                        .map(|(from, to, reason)| v1::Gap { from: *from, to: *to, reason: *reason as i32 })
                        .collect(),
                    last: page.last,
                };
                machine.frame(now, conn, req, Read::Other(v1::Frame::new(req, Body::Page(body))));
            }
            DownBody::Frame(frame) => machine.frame(now, conn, frame.req, Read::Other(*frame)),
            DownBody::Last(Refusal { code, retry_after_ms, message, .. }) => {
                let after = Duration::from_millis(retry_after_ms.into());
                let failure = Failure::Refused { code: code as u32, retry: code.retry(), after, message };
                machine.ended(now, conn, &failure);
            }
        }
    }

    /// Stores what the machine wants stored, and does what it wants done.
    fn step(&mut self, phone: usize, torn: bool) {
        loop {
            let one = &mut self.all[phone];
            let step = one.machine.take_step();
            if step.ops.is_empty() && step.effects.is_empty() {
                return;
            }
            for Change { id, what, .. } in one.book.apply(&step.ops) {
                if !matches!(what, Placed::Moved { .. }) {
                    *one.shown.entry(id).or_default() += 1;
                }
            }
            if torn {
                return;
            }
            for effect in step.effects {
                self.effect(phone, effect);
            }
        }
    }

    fn effect(&mut self, phone: usize, effect: Effect) {
        match effect {
            Effect::Connect { conn, candidate, transport, hello, .. } => {
                let Some(Body::Hello(open)) = hello.0.body else { panic!("the first frame is a Hello") };
                if transport == Transport::Quic {
                    let dial =
                        Happens::Dial { region: candidate.region.clone(), open: Box::new(open), req: hello.0.req };
                    self.travel(phone, conn, &candidate.region, dial);
                }
            }
            Effect::Close { conn, .. } => {
                if let Some((region, core)) = self.all[phone].lines.remove(&conn) {
                    self.travel(phone, conn, &region, Happens::Ups { core, ups: vec![Up::Close { conn: 1 }] });
                }
            }
            Effect::Write { conn, out } => {
                let Some((region, core)) = self.all[phone].lines.get(&conn).cloned() else { return };
                let up = match out {
                    Outbound::Send(req, send) => Up::Send { conn: 1, req, send },
                    Outbound::Frame(frame) => Up::Frame { conn: 1, frame },
                };
                self.travel(phone, conn, &region, Happens::Ups { core, ups: vec![up] });
            }
            Effect::Dispatch(..) => self.travel(phone, 0, "dispatch", Happens::Dispatched),
            Effect::Token { .. } => self.travel(phone, 0, "tokens", Happens::Token),
            Effect::Event(event) => {
                if matches!(event, Event::Kicked { .. }) {
                    // An application that knows of no second process with its store connects again.
                    self.travel(phone, 0, "patience", Happens::Again);
                }
                self.all[phone].events.push(event);
            }
        }
    }

    /// Whether all own messages of all phones are stable and nothing is missing.
    pub fn settled(&self) -> bool {
        self.all.iter().all(|phone| {
            let live = matches!(phone.machine.connection(), tern_core::client::ConnectionState::Live { .. });
            live && phone.machine.waiting() == (0, 0)
        })
    }

    /// A timeline as (sender, n, text).
    pub fn timeline(&self, phone: usize, with: &str) -> Vec<(String, u64, String)> {
        let one = &self.all[phone];
        let conversation: ConvId = one.machine.direct_id(&UserId::new(with).unwrap());
        let messages = one.book.timeline(conversation, 0, usize::MAX);
        let text = |body: &Bytes| String::from_utf8_lossy(body).into_owned();
        messages.iter().map(|m| (m.by.user.as_str().to_owned(), m.by.n, text(&m.body))).collect()
    }

    /// What a phone knows of a conversation, for a failed check.
    pub fn explain(&self, phone: usize, with: &str) -> String {
        let one = &self.all[phone];
        let conversation = one.machine.direct_id(&UserId::new(with).unwrap());
        let image = one.book.image();
        let mut lines = vec![format!("{}: {:?}, cursors {:?}", one.name, one.machine.connection(), image.cursors)];
        if let Some(known) = image.conversations.get(&conversation) {
            for (origin, state) in &known.origins {
                let (head, floor, held) = (state.head, state.floor, state.held.iter().collect::<Vec<_>>());
                lines.push(format!(
                    "  {origin}: head {head}, floor {floor}, held {held:?}, missing {:?}",
                    state.missing()
                ));
            }
        }
        for m in one.book.timeline(conversation, 0, usize::MAX).iter().rev().take(12) {
            lines.push(format!("  {} {} {:?} {:?}", m.by.user, m.by.n, m.key, m.state));
        }
        lines.join("\n")
    }
}
