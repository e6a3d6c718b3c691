//! Direct messages through the whole server: sequenced, durable, acked, pushed to the other device.
//!
//! Each pair has a sender and a receiver, one device each. Closed loop: a sender keeps so many messages in
//! flight and sends the next when an ack comes, so the rate is what the machine gives. Open loop: messages
//! leave by the clock at half of that rate (or at `--rate`), which is where latencies mean something.
//!
//! Server processor time per message counts everything a message causes: Send, commit, ack, push, the acks of
//! pushes, rows, packets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tern_core::edge_api::SendRequest;
use tern_core::ids::{ConvId, UserId};
use tern_core::store::BoxFut;
use tern_core::wire::compact::Writer;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{codec, v1};
use tern_net::env::Env;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::floor::{self, Echoed};
use super::latency::Latencies;
use super::load::{Crowd, Phase, each};
use super::readings::{Metrics, cpu_of, forced_writes};
use super::report::Goal;
use super::session::{Dialer, QuicLane, QuicSession, unexpected};
use super::{Bench, Server};

/// Bytes of a body.
pub const BODY_BYTES: usize = 128;
/// Messages in flight per sender, one phase each.
const IN_FLIGHT: [usize; 2] = [1, 16];
/// In the open loop a sender waits once so many are un-acked: the server reads no more either.
const OPEN_LOOP_IN_FLIGHT: usize = 128;
/// Before a phase counts: conversations are made, windows open, caches fill. A quarter of the phase, within
/// these bounds.
const WARM_UP: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// After the last send: the longest that acks and pushes may take.
const DRAIN: Duration = Duration::from_secs(10);
/// What was not pushed by then was given up for an `Advance`; the generator does not pull.
const LAST_PUSHES: Duration = Duration::from_millis(500);
/// Pushes are acked this late, as the SDK does.
const PUSH_ACK_EVERY: Duration = Duration::from_millis(100);
/// Connects under way at once.
const AT_ONCE: usize = 32;
/// What the issue asks for: server microseconds per message, by messages in flight.
const CPU_GOALS: [f64; 2] = [40.0, 15.0];
/// And the ack's 99th percentile at half load.
const ACK_MS_GOAL: f64 = 15.0;

/// How long a phase of this length runs before it counts.
pub fn warm_up(time: Duration) -> Duration {
    (time / 4).clamp(WARM_UP.0, WARM_UP.1)
}

/// See the module.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let disk = forced_writes(&bench.cluster.data)?;
    let meaning = "one forced write of 4 KiB (fdatasync) on this disk, median of 200";
    bench.report.add("messages.disk.forced_write", disk.percentile_ms(50), "ms", meaning);

    let echoes = floor::echo(bench, bench.args.pairs as usize, &IN_FLIGHT).await?;
    let server = bench.start_region().await?;
    let measured = all_phases(bench, &server, &echoes).await;
    bench.stop_region().await;
    measured
}

async fn all_phases(bench: &mut Bench, server: &Server, echoes: &[Echoed]) -> Result<()> {
    let mut clients = connect(bench, server).await?;
    let pairs = clients.senders.len();
    let time = Duration::from_secs(u64::from(bench.args.seconds));
    let mut highest: f64 = 0.0;
    for ((in_flight, goal), echo) in IN_FLIGHT.into_iter().zip(CPU_GOALS).zip(echoes) {
        bench.report.progress(&format!("messages: {pairs} pairs, {in_flight} in flight"));
        let (back, measured) = phase(bench, server, clients, Pace::InFlight(in_flight), time).await?;
        clients = back;
        highest = highest.max(measured.acked_rate());
        measured.report(bench, &format!("messages.{in_flight}"), Some(goal), None);
        let (key, ratio) = (format!("messages.{in_flight}.over_echo"), measured.cpu_us() / echo.cpu_us);
        bench.report.add(key, ratio, "x", "server processor time per message over that of the bare echo");
    }
    let rate = bench.args.rate.map_or(highest / 2.0, f64::from);
    bench.report.progress(&format!("messages: a steady load of {rate:.0} a second"));
    let (_, measured) = phase(bench, server, clients, Pace::PerSecond(rate), time).await?;
    measured.report(bench, "messages.half", None, Some(ACK_MS_GOAL));
    Ok(())
}

/// Those who write and those who are written to: one to one, or one to all.
pub struct Clients {
    /// Writing.
    pub senders: Vec<Sender>,
    /// Reading.
    pub receivers: Vec<Receiver>,
}

/// Connects the pairs.
pub async fn connect(bench: &mut Bench, server: &Server) -> Result<Clients> {
    let count = bench.args.pairs as usize;
    bench.report.progress(&format!("messages: connecting {count} pairs"));
    let dialer = Dialer::new(bench, server)?;
    let tokens = Arc::new(bench.tokens("pair", 2 * count)?);
    let connected = each(&bench.env, count, AT_ONCE, move |i| {
        let (dialer, tokens) = (dialer.clone(), tokens.clone());
        async move {
            let [(from, from_token), (to, to_token)] = &tokens[2 * i..2 * i + 2] else { bail!("too few tokens") };
            let receiver = dialer.quic(2 * i + 1, to, to_token).await?;
            let sender = dialer.quic(2 * i, from, from_token).await?;
            let conversation = ConvId::direct(&sender.direct_salt, from, to);
            Ok((Sender::new(sender, conversation, Some(to.clone())), Receiver::new(receiver)))
        }
    });
    let (senders, receivers) = connected.await?.into_iter().unzip();
    Ok(Clients { senders, receivers })
}

/// How fast to send.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Always so many un-acked per sender.
    InFlight(usize),
    /// So many a second by all senders together, whatever the acks do.
    PerSecond(f64),
}

/// Runs one phase and gives the clients back, nothing in flight.
pub async fn phase(
    bench: &Bench,
    server: &Server,
    clients: Clients,
    pace: Pace,
    time: Duration,
) -> Result<(Clients, Measured)> {
    let env = &bench.env;
    let shared = Arc::new(Phase::default());
    let Clients { senders: from, receivers: to } = clients;
    let sessions = from.iter().map(|s| &s.session).chain(to.iter().map(|r| &r.session));
    let connections: Vec<quinn::Connection> = sessions.map(|s| s.connection.clone()).collect();
    let count = from.len();
    let mut senders: Vec<BoxFut<'static, Result<(Sender, Latencies)>>> = Vec::new();
    let mut receivers: Vec<BoxFut<'static, Result<(Receiver, Latencies)>>> = Vec::new();
    for receiver in to {
        receivers.push(Box::pin(receiver.run(env.clone(), shared.clone())));
    }
    for (index, sender) in from.into_iter().enumerate() {
        let pace = match pace {
            Pace::InFlight(most) => SenderPace::InFlight(most),
            Pace::PerSecond(rate) => {
                let every = Duration::from_secs_f64(count as f64 / rate.max(1.0));
                SenderPace::Every { every, first: every.mul_f64(index as f64 / count as f64) }
            }
        };
        senders.push(Box::pin(sender.run(env.clone(), shared.clone(), pace)));
    }
    let (mut sending, mut receiving) = (Crowd::start(env, senders), Crowd::start(env, receivers));

    let watched = async {
        sleep(warm_up(time)).await;
        let before = Sample::take(env, server, &connections, &shared).await?;
        shared.set_measuring(true);
        sleep(time).await;
        shared.set_measuring(false);
        Ok::<_, anyhow::Error>((before, Sample::take(env, server, &connections, &shared).await?))
    };
    let (before, after) = tokio::select! {
        biased;
        error = sending.failure() => bail!(error),
        error = receiving.failure() => bail!(error),
        sampled = watched => sampled?,
    };
    shared.stop_sending();
    let sent = sending.end(DRAIN).await.context("waiting for the last acks")?;
    shared.stop_receiving();
    let received = receiving.end(DRAIN).await.context("waiting for the last pushes")?;

    let (mut ack, mut delivery, mut given_up) = (Latencies::default(), Latencies::default(), 0);
    let mut clients = Clients { senders: Vec::new(), receivers: Vec::new() };
    for (sender, acked) in sent {
        ack.merge(&acked);
        clients.senders.push(sender);
    }
    for (index, (mut receiver, delivered)) in received.into_iter().enumerate() {
        delivery.merge(&delivered);
        // Its own sender, or the only one.
        let written = clients.senders.get(index).or(clients.senders.last()).map_or(0, |sender| sender.n);
        given_up += written.saturating_sub(std::mem::replace(&mut receiver.received, written));
        clients.receivers.push(receiver);
    }
    Ok((clients, Measured { before, after, ack, delivery, given_up }))
}

/// Readings at one moment.
#[derive(Debug)]
struct Sample {
    at: Duration,
    server_cpu: Duration,
    own_cpu: Duration,
    acked: u64,
    delivered: u64,
    bytes_up: u64,
    bytes_down: u64,
    packets_up: u64,
    packets_down: u64,
    lost: u64,
    metrics: Metrics,
}

impl Sample {
    async fn take(env: &Env, server: &Server, connections: &[quinn::Connection], phase: &Phase) -> Result<Self> {
        let metrics = Metrics::read(env, server).await?;
        let mut sample = Self {
            at: env.clock.now(),
            server_cpu: cpu_of(server.pid)?,
            own_cpu: cpu_of(std::process::id())?,
            acked: phase.counts().0,
            delivered: phase.counts().1,
            bytes_up: 0,
            bytes_down: 0,
            packets_up: 0,
            packets_down: 0,
            lost: 0,
            metrics,
        };
        for connection in connections {
            let stats = connection.stats();
            sample.bytes_up += stats.udp_tx.bytes;
            sample.bytes_down += stats.udp_rx.bytes;
            sample.packets_up += stats.udp_tx.datagrams;
            sample.packets_down += stats.udp_rx.datagrams;
            sample.lost += stats.path.lost_packets;
        }
        Ok(sample)
    }
}

/// What a phase showed.
#[derive(Debug)]
pub struct Measured {
    before: Sample,
    after: Sample,
    ack: Latencies,
    delivery: Latencies,
    given_up: u64,
}

impl Measured {
    fn seconds(&self) -> f64 {
        self.after.at.saturating_sub(self.before.at).as_secs_f64()
    }

    fn acked(&self) -> f64 {
        (self.after.acked - self.before.acked) as f64
    }

    /// Acked per second.
    pub fn acked_rate(&self) -> f64 {
        self.acked() / self.seconds()
    }

    fn server_cpu(&self) -> f64 {
        self.after.server_cpu.saturating_sub(self.before.server_cpu).as_secs_f64()
    }

    /// Messages that reached a device, per second of the server's processors.
    pub fn deliveries_per_cpu_second(&self) -> f64 {
        (self.after.delivered - self.before.delivered) as f64 / self.server_cpu().max(1e-9)
    }

    /// From send to ack: this percentile, in milliseconds.
    pub fn ack_ms(&self, percentile: u64) -> f64 {
        self.ack.percentile_ms(percentile)
    }

    fn cpu_us(&self) -> f64 {
        self.server_cpu() * 1e6 / self.acked().max(1.0)
    }

    /// Prints it.
    pub fn report(&self, bench: &mut Bench, prefix: &str, cpu_goal: Option<f64>, ack_goal: Option<f64>) {
        let report = &mut bench.report;
        let key = |name: &str| format!("{prefix}.{name}");
        let (before, after, acked) = (&self.before, &self.after, self.acked().max(1.0));
        let per_message = |more: u64, less: u64| (more - less) as f64 / acked;
        report.add(key("acked"), self.acked_rate(), "/s", "messages made durable and acked");
        let delivered = (after.delivered - before.delivered) as f64 / self.seconds();
        report.add(key("delivered"), delivered, "/s", "messages that reached the other device");
        let meaning = "server processor time per message, acked and delivered";
        match cpu_goal {
            Some(goal) => report.held(key("cpu"), self.cpu_us(), "us", Goal::AtMost(goal), meaning),
            None => report.add(key("cpu"), self.cpu_us(), "us", meaning),
        }
        let busy = self.server_cpu() / self.seconds();
        report.add(key("server_busy"), busy, "cores", "processors that the server kept busy");
        let own = after.own_cpu.saturating_sub(before.own_cpu).as_secs_f64() / self.seconds();
        report.add(key("generator_busy"), own, "cores", "processors that the load generator kept busy beside it");
        report.add(key("ack.p50"), self.ack.percentile_ms(50), "ms", "from send to ack, median");
        let meaning = "from send to ack, 99 of 100 are no slower";
        match ack_goal {
            Some(goal) => report.held(key("ack.p99"), self.ack.percentile_ms(99), "ms", Goal::AtMost(goal), meaning),
            None => report.add(key("ack.p99"), self.ack.percentile_ms(99), "ms", meaning),
        }
        report.add(key("delivery.p50"), self.delivery.percentile_ms(50), "ms", "from send to the other device, median");
        report.add(key("delivery.p99"), self.delivery.percentile_ms(99), "ms", "likewise, 99 of 100");
        report.add(
            key("wire.up"),
            per_message(after.bytes_up, before.bytes_up),
            "bytes",
            "UDP payload towards the server per message, both devices",
        );
        report.add(
            key("wire.down"),
            per_message(after.bytes_down, before.bytes_down),
            "bytes",
            "UDP payload from the server per message, both devices",
        );
        report.add(
            key("packets.up"),
            per_message(after.packets_up, before.packets_up),
            "",
            "datagrams towards the server per message",
        );
        report.add(
            key("packets.down"),
            per_message(after.packets_down, before.packets_down),
            "",
            "datagrams from the server per message",
        );
        report.add(
            key("packets.lost"),
            (after.lost - before.lost) as f64,
            "",
            "datagrams towards the server that QUIC took for lost",
        );
        let since = |name| after.metrics.since(&before.metrics, name);
        let syncs = since("tern_store_syncs_total").max(1.0);
        report.add(
            key("group"),
            since("tern_store_entries_total") / syncs,
            "messages",
            "made durable by one forced write",
        );
        let commits = since("tern_store_commit_seconds_count").max(1.0);
        report.add(
            key("commit"),
            since("tern_store_commit_seconds_sum") * 1000.0 / commits,
            "ms",
            "mean time of a group's commit",
        );
        if self.given_up > 0 {
            report.note(format!(
                "{prefix}: {} messages were not pushed to a receiver that did not keep up; a client pulls them",
                self.given_up
            ));
        }
    }
}

/// Acks of pushes, late and cumulative.
#[derive(Debug, Default)]
pub struct PushAcks {
    newest: u64,
    acked: u64,
    at: Duration,
}

impl PushAcks {
    /// A push came.
    pub fn saw(&mut self, rev: u64) {
        self.newest = self.newest.max(rev);
    }

    /// Acks what came, if it is time.
    pub async fn send(&mut self, lane: &mut QuicLane, now: Duration, last: bool) -> Result<()> {
        if self.newest > self.acked && (last || now.saturating_sub(self.at) >= PUSH_ACK_EVERY) {
            self.acked = self.newest;
            self.at = now;
            let mut out = BytesMut::new();
            codec::put(&v1::Frame::new(0, Body::PushAck(v1::PushAck { rev: self.newest })), &mut out);
            lane.send.write_all(&out).await?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum SenderPace {
    InFlight(usize),
    Every { every: Duration, first: Duration },
}

/// The device that writes.
pub struct Sender {
    /// Its connection.
    pub session: QuicSession,
    writer: Writer,
    conversation: ConvId,
    /// Direct conversations.
    peer: Option<UserId>,
    /// The last message sent.
    pub n: u64,
    /// When those without an ack were sent, oldest first.
    in_flight: VecDeque<Duration>,
    seen_hlc: u64,
    acks: PushAcks,
    out: BytesMut,
}

impl Sender {
    /// A device that has not written to this conversation yet.
    pub fn new(session: QuicSession, conversation: ConvId, peer: Option<UserId>) -> Self {
        Self {
            conversation,
            session,
            writer: Writer::default(),
            peer,
            n: 0,
            in_flight: VecDeque::new(),
            seen_hlc: 0,
            acks: PushAcks::default(),
            out: BytesMut::new(),
        }
    }

    async fn run(mut self, env: Env, phase: Arc<Phase>, pace: SenderPace) -> Result<(Self, Latencies)> {
        let mut sending = phase.sending();
        let mut latencies = Latencies::default();
        let began = Instant::now();
        let (every, mut due) = match pace {
            SenderPace::InFlight(_) => (Duration::ZERO, began),
            SenderPace::Every { every, first } => (every, began + first),
        };
        loop {
            let now = env.clock.now();
            let on = *sending.borrow_and_update();
            if on {
                match pace {
                    SenderPace::InFlight(most) => {
                        while self.in_flight.len() < most {
                            self.put(&env, now);
                        }
                    }
                    SenderPace::Every { .. } => {
                        while due <= Instant::now() && self.in_flight.len() < OPEN_LOOP_IN_FLIGHT {
                            self.put(&env, now);
                            due += every;
                        }
                    }
                }
            }
            if !self.out.is_empty() {
                self.session.message.send.write_all(&self.out).await?;
                self.out.clear();
            }
            if !on && self.in_flight.is_empty() {
                self.acks.send(&mut self.session.control, now, true).await?;
                return Ok((self, latencies));
            }
            let timer = on && matches!(pace, SenderPace::Every { .. }) && self.in_flight.len() < OPEN_LOOP_IN_FLIGHT;
            tokio::select! {
                biased;
                frame = self.session.message.frames.next() => {
                    self.read(frame?, &env, &phase, &mut latencies)?;
                    let now = env.clock.now();
                    self.acks.send(&mut self.session.control, now, false).await?;
                }
                () = sleep_until(due), if timer => {}
                _ = sending.changed(), if on => {}
            }
        }
    }

    /// Appends the next message to what is to be written.
    fn put(&mut self, env: &Env, now: Duration) {
        self.n += 1;
        let send = SendRequest {
            conversation: self.conversation,
            // Until the first ack the server may not know whose conversation it is.
            peer: self.peer.clone().filter(|_| self.seen_hlc == 0),
            n: self.n,
            floor: self.n - self.in_flight.len() as u64,
            seen_hlc: self.seen_hlc,
            kind: 0,
            body: body(now),
            wall_ms: env.clock.wall_ms(),
            offer: None,
            membership: None,
            named: None,
        };
        self.in_flight.push_back(now);
        // Requests of one connection are told apart by the low bits of n; 0 would ask for no answer.
        let req = u32::try_from(self.n & 0x7fff_ffff).unwrap_or(0).max(1);
        self.writer.send(req, &send, &mut self.out);
    }

    /// A frame of the message lane, and those that came with it.
    fn read(&mut self, first: Option<v1::Frame>, env: &Env, phase: &Phase, latencies: &mut Latencies) -> Result<()> {
        let now = env.clock.now();
        let measuring = phase.is_measuring();
        let mut acked = 0;
        let mut next = Some(first.context("the server ended a message lane")?);
        while let Some(frame) = next {
            match frame.body {
                Some(Body::Ack(ack)) => {
                    let sent = self.in_flight.pop_front().context("an ack of nothing that was sent")?;
                    self.seen_hlc = self.seen_hlc.max(ack.hlc);
                    acked += 1;
                    if measuring {
                        latencies.add(now.saturating_sub(sent));
                    }
                }
                Some(Body::Push(push)) => self.acks.saw(push.rev),
                Some(Body::Advance(advance)) => self.acks.saw(advance.rev),
                Some(Body::Define(_) | Body::Stable(_)) => {}
                _ => bail!(unexpected(&frame)),
            }
            next = self.session.message.frames.buffered()?;
        }
        phase.acked.fetch_add(acked, Ordering::Relaxed);
        Ok(())
    }
}

/// The device that is written to.
pub struct Receiver {
    /// Its connection.
    pub session: QuicSession,
    /// Messages of its peer that it has, or that were given up.
    received: u64,
    acks: PushAcks,
}

impl Receiver {
    /// A device that has read nothing yet.
    pub fn new(session: QuicSession) -> Self {
        Self { session, received: 0, acks: PushAcks::default() }
    }

    /// Reads until it is told that no more comes.
    pub async fn run(mut self, env: Env, phase: Arc<Phase>) -> Result<(Self, Latencies)> {
        let mut receiving = phase.receiving();
        let mut latencies = Latencies::default();
        loop {
            let on = *receiving.borrow_and_update();
            let next = async {
                if on {
                    Some(self.session.message.frames.next().await)
                } else {
                    timeout(LAST_PUSHES, self.session.message.frames.next()).await.ok()
                }
            };
            tokio::select! {
                biased;
                frame = next => match frame {
                    Some(frame) => self.read(frame?, &env, &phase, &mut latencies)?,
                    None => {
                        let now = env.clock.now();
                        self.acks.send(&mut self.session.control, now, true).await?;
                        return Ok((self, latencies));
                    }
                },
                _ = receiving.changed(), if on => {}
            }
            let now = env.clock.now();
            self.acks.send(&mut self.session.control, now, false).await?;
        }
    }

    fn read(&mut self, first: Option<v1::Frame>, env: &Env, phase: &Phase, latencies: &mut Latencies) -> Result<()> {
        let now = env.clock.now();
        let measuring = phase.is_measuring();
        let mut delivered = 0;
        let mut next = Some(first.context("the server ended a message lane")?);
        while let Some(frame) = next {
            match frame.body {
                Some(Body::Push(push)) => {
                    self.acks.saw(push.rev);
                    for entry in push.entries {
                        delivered += 1;
                        if measuring && let Some(sent) = sent_at(entry.body) {
                            latencies.add(now.saturating_sub(sent));
                        }
                    }
                }
                Some(Body::Advance(advance)) => self.acks.saw(advance.rev),
                Some(Body::Define(_) | Body::Stable(_) | Body::Signal(_)) => {}
                _ => bail!(unexpected(&frame)),
            }
            next = self.session.message.frames.buffered()?;
        }
        self.received += delivered;
        phase.delivered.fetch_add(delivered, Ordering::Relaxed);
        Ok(())
    }
}

/// A body, with the generator's own stamp at its head.
pub fn body(now: Duration) -> Bytes {
    let mut body = BytesMut::with_capacity(BODY_BYTES);
    body.put_u64(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    body.put_bytes(b'x', BODY_BYTES - body.len());
    body.freeze()
}

/// See [`body`].
fn sent_at(mut body: Bytes) -> Option<Duration> {
    (body.len() >= 8).then(|| Duration::from_nanos(body.get_u64()))
}
