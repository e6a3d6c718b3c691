//! What a region does with three times the load that it can carry, and with a burst of ten times.
//!
//! Server and generator each get a processor of their own where there are two, so that the generator can offer
//! more than the server can take. Full load is the closed loop with 16 messages in flight per sender. The
//! overload is an open loop at three times that rate: messages come by the clock, a sender has at most 128
//! un-acked, and does what an SDK does when it is told to come back later: waits as long as it was told, then
//! sends everything from the first refused message again. Latencies are those of messages that were taken, from
//! their last transmission to the ack.
//!
//! The burst offers ten times the rate; then half of the full load follows, as before an overload, and shows how
//! soon latencies are as they were.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use tern_core::codes::Code;
use tern_core::edge_api::SendRequest;
use tern_core::ids::{ConvId, UserId};
use tern_core::store::BoxFut;
use tern_core::wire::compact::Writer;
use tern_core::wire::v1;
use tern_core::wire::v1::frame::Body;
use tern_net::env::Env;
use tokio::time::{Instant, sleep, sleep_until};

use super::latency::Latencies;
use super::load::{Crowd, Phase, each};
use super::messages::{BODY_BYTES, Pace as ClosedPace, PushAcks, connect, phase};
use super::readings::{Metrics, resident_of};
use super::report::Goal;
use super::session::{Dialer, QuicSession};
use super::{Bench, Server};

/// Un-acked messages of one sender, at most.
const WINDOW: usize = 128;
/// Messages in flight per sender at full load.
const FULL_IN_FLIGHT: usize = 16;
/// How much of full load each phase offers.
const TIMES: [(f64, &str); 3] = [(0.5, "half"), (3.0, "triple"), (10.0, "burst")];
/// After the burst: when latencies are looked at again.
const RECOVER_WITHIN: Duration = Duration::from_secs(5);
/// The bound: p99 of what is taken under three times the load, over p99 at full load.
const P99_GOAL: f64 = 2.0;
/// Connects under way at once.
const AT_ONCE: usize = 32;

/// See the module.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.start_region().await?;
    let measured = run(bench, &server).await;
    bench.stop_region().await;
    unpin();
    measured
}

async fn run(bench: &mut Bench, server: &Server) -> Result<()> {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2
        || !pin(server.pid, 0)
        || !pin(std::process::id(), 1)
    {
        bench.report.note("server and generator share the processors: the generator may not offer what it should");
    }
    let time = Duration::from_secs(u64::from(bench.args.seconds));
    bench.report.progress("overload: full load");
    let clients = connect(bench, server).await?;
    let (clients, full) = phase(bench, server, clients, ClosedPace::InFlight(FULL_IN_FLIGHT), time).await?;
    drop(clients);
    let (rate, full_p99) = (full.acked_rate(), full.ack_ms(99));
    bench.report.add("overload.full.acked", rate, "/s", "closed loop, 16 in flight: what the server carries");
    bench.report.add("overload.full.ack.p99", full_p99, "ms", "from send to ack at full load, 99 of 100");

    let mut senders = dial(bench, server).await?;
    let before_rss = resident_of(server.pid)?;
    let mut half_p99 = 0.0;
    for (times, name) in TIMES {
        bench.report.progress(&format!("overload: {times} times the full load"));
        let (back, taken) = offered(bench, server, senders, rate * times, time).await?;
        senders = back;
        taken.report(bench, &format!("overload.{name}"));
        let p99 = taken.latencies.percentile_ms(99);
        if name == "half" {
            half_p99 = p99;
        }
        if name == "triple" {
            let meaning = "p99 of messages taken under three times the load, over that at full load";
            bench.report.held(
                "overload.triple.p99_over_full".to_owned(),
                p99 / full_p99.max(0.001),
                "x",
                Goal::AtMost(P99_GOAL),
                meaning,
            );
        }
    }
    let after_rss = resident_of(server.pid)?;
    sleep(RECOVER_WITHIN).await;
    let (_, after) = offered(bench, server, senders, rate / 2.0, time).await?;
    after.report(bench, "overload.after");
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    bench.report.add("overload.rss.before", mib(before_rss), "MiB", "the server's memory before");
    bench.report.add("overload.rss.after", mib(after_rss), "MiB", "the server's memory at the end of the burst");
    let meaning = "p99 at half load, 5 s after the burst, over that before it";
    bench.report.add(
        "overload.after.p99_over_before",
        after.latencies.percentile_ms(99) / half_p99.max(0.001),
        "x",
        meaning,
    );
    Ok(())
}

/// Keeps all threads of a process on one processor. Whether that worked.
fn pin(pid: u32, cpu: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(cpu);
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let ids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok());
    ids.filter_map(Pid::from_raw).all(|id| sched_setaffinity(Some(id), &set).is_ok())
}

fn unpin() {
    let mut set = CpuSet::new();
    (0..std::thread::available_parallelism().map_or(1, usize::from).max(2)).for_each(|cpu| set.set(cpu));
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return };
    let ids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok());
    for id in ids.filter_map(Pid::from_raw) {
        // Only a slower rest of the run if it fails.
        let _pinned_still = sched_setaffinity(Some(id), &set);
    }
}

async fn dial(bench: &Bench, server: &Server) -> Result<Vec<Sender>> {
    let count = bench.args.pairs as usize;
    let dialer = Dialer::new(bench, server)?;
    let tokens = Arc::new(bench.tokens("offer", 2 * count)?);
    let connected = each(&bench.env, count, AT_ONCE, move |i| {
        let (dialer, tokens) = (dialer.clone(), tokens.clone());
        async move {
            let [(from, token), (to, _)] = &tokens[2 * i..2 * i + 2] else { bail!("too few tokens") };
            let session = dialer.quic(i, from, token).await?;
            Ok(Sender::new(session, from, to))
        }
    });
    connected.await
}

/// What a phase showed.
#[derive(Debug, Default)]
struct Taken {
    seconds: f64,
    offered: u64,
    acked: u64,
    refused: u64,
    latencies: Latencies,
    shed: f64,
    rss: u64,
}

impl Taken {
    fn report(&self, bench: &mut Bench, prefix: &str) {
        let per_second = |count: u64| count as f64 / self.seconds.max(1e-9);
        let report = &mut bench.report;
        report.add(format!("{prefix}.offered"), per_second(self.offered), "/s", "messages that were due");
        report.add(format!("{prefix}.acked"), per_second(self.acked), "/s", "messages taken and acked");
        report.add(
            format!("{prefix}.refused"),
            per_second(self.refused),
            "/s",
            "transmissions told to come back later",
        );
        report.add(format!("{prefix}.ack.p50"), self.latencies.percentile_ms(50), "ms", "of those taken, median");
        report.add(format!("{prefix}.ack.p99"), self.latencies.percentile_ms(99), "ms", "of those taken, 99 of 100");
        report.add(format!("{prefix}.shed"), self.shed, "", "Sends that the node refused for load");
        report.add(
            format!("{prefix}.rss"),
            self.rss as f64 / (1 << 20) as f64,
            "MiB",
            "the server's memory at the phase's end",
        );
    }
}

async fn offered(
    bench: &Bench,
    server: &Server,
    senders: Vec<Sender>,
    rate: f64,
    time: Duration,
) -> Result<(Vec<Sender>, Taken)> {
    let env = &bench.env;
    let shared = Arc::new(Phase::default());
    let count = senders.len();
    let every = Duration::from_secs_f64(count as f64 / rate.max(1.0));
    let jobs: Vec<BoxFut<'static, Result<(Sender, Taken)>>> = senders
        .into_iter()
        .enumerate()
        .map(|(index, sender)| {
            let first = every.mul_f64(index as f64 / count as f64);
            let job: BoxFut<'static, _> = Box::pin(sender.run(env.clone(), shared.clone(), every, first));
            job
        })
        .collect();
    let before = Metrics::read(env, server).await?;
    let mut crowd = Crowd::start(env, jobs);
    let watched = async {
        // The first fifth is for the queue to build up, or to go away.
        sleep(time / 5).await;
        shared.set_measuring(true);
        sleep(time).await;
        shared.set_measuring(false);
    };
    tokio::select! {
        biased;
        error = crowd.failure() => bail!(error),
        () = watched => {}
    }
    let rss = resident_of(server.pid)?;
    shared.stop_sending();
    let ended = crowd.end(Duration::from_secs(30)).await.context("waiting for the last acks")?;
    let after = Metrics::read(env, server).await?;
    let mut all = Taken { seconds: time.as_secs_f64(), rss, ..Taken::default() };
    all.shed = after.since(&before, "tern_core_sends_shed_total");
    let mut senders = Vec::new();
    for (sender, taken) in ended {
        all.offered += taken.offered;
        all.acked += taken.acked;
        all.refused += taken.refused;
        all.latencies.merge(&taken.latencies);
        senders.push(sender);
    }
    Ok((senders, all))
}

/// A device that is offered messages by the clock.
struct Sender {
    session: QuicSession,
    writer: Writer,
    conversation: ConvId,
    peer: UserId,
    /// The first message that is not acked, and those from it on that were sent: when each was last.
    floor: u64,
    in_flight: VecDeque<Duration>,
    /// Nothing is sent before.
    wait_until: Option<Instant>,
    seen_hlc: u64,
    acks: PushAcks,
    out: BytesMut,
}

impl Sender {
    fn new(session: QuicSession, from: &UserId, to: &UserId) -> Self {
        Self {
            conversation: ConvId::direct(&session.direct_salt, from, to),
            session,
            writer: Writer::default(),
            peer: to.clone(),
            floor: 1,
            in_flight: VecDeque::new(),
            wait_until: None,
            seen_hlc: 0,
            acks: PushAcks::default(),
            out: BytesMut::new(),
        }
    }

    async fn run(mut self, env: Env, phase: Arc<Phase>, every: Duration, first: Duration) -> Result<(Self, Taken)> {
        let mut sending = phase.sending();
        let mut taken = Taken::default();
        let mut due = Instant::now() + first;
        loop {
            let on = *sending.borrow_and_update();
            let ready = self.wait_until.is_none_or(|at| at <= Instant::now());
            let mut behind = false;
            while on && due <= Instant::now() {
                due += every;
                taken.offered += u64::from(phase.is_measuring());
                // What does not fit is kept by the application: not sent, and not counted as late.
                if ready && self.in_flight.len() < WINDOW {
                    self.put(&env);
                } else {
                    behind = true;
                }
            }
            if !self.out.is_empty() {
                self.session.message.send.write_all(&self.out).await?;
                self.out.clear();
            }
            if !on && self.in_flight.is_empty() {
                self.acks.send(&mut self.session.control, env.clock.now(), true).await?;
                return Ok((self, taken));
            }
            let timer = if behind { due.max(Instant::now() + Duration::from_millis(1)) } else { due };
            tokio::select! {
                biased;
                frame = self.session.message.frames.next() => {
                    self.read(frame?, &env, &phase, &mut taken)?;
                    self.acks.send(&mut self.session.control, env.clock.now(), false).await?;
                }
                () = sleep_until(timer), if on => {}
                _ = sending.changed(), if on => {}
            }
        }
    }

    fn put(&mut self, env: &Env) {
        let n = self.floor + self.in_flight.len() as u64;
        self.in_flight.push_back(env.clock.now());
        let send = SendRequest {
            conversation: self.conversation,
            peer: (self.seen_hlc == 0).then(|| self.peer.clone()),
            n,
            floor: self.floor,
            seen_hlc: self.seen_hlc,
            kind: 0,
            body: vec![b'x'; BODY_BYTES].into(),
            wall_ms: env.clock.wall_ms(),
            offer: None,
            membership: None,
            named: None,
        };
        let req = u32::try_from(n & 0x7fff_ffff).unwrap_or(0).max(1);
        self.writer.send(req, &send, &mut self.out);
    }

    fn read(&mut self, first: Option<v1::Frame>, env: &Env, phase: &Phase, taken: &mut Taken) -> Result<()> {
        let now = env.clock.now();
        let measuring = phase.is_measuring();
        let mut next = Some(first.context("the server ended a message lane")?);
        while let Some(frame) = next {
            match frame.body {
                Some(Body::Ack(ack)) => {
                    self.seen_hlc = self.seen_hlc.max(ack.hlc);
                    // Acks of one conversation come in order; one of a message that was sent again may be late.
                    if u64::from(frame.req) == self.floor & 0x7fff_ffff
                        && let Some(sent) = self.in_flight.pop_front()
                    {
                        self.floor += 1;
                        if measuring {
                            taken.acked += 1;
                            taken.latencies.add(now.saturating_sub(sent));
                        }
                    }
                }
                Some(Body::Error(error))
                    if [Code::Overloaded as u32, Code::OutOfOrder as u32].contains(&error.code) =>
                {
                    taken.refused += u64::from(measuring);
                    let refused = u64::from(frame.req);
                    if refused >= self.floor {
                        // From here on everything is sent again, after the time that was asked for.
                        let keep = usize::try_from(refused - self.floor).unwrap_or(usize::MAX);
                        self.in_flight.truncate(keep);
                        let wait = Duration::from_millis(u64::from(error.retry_after_ms));
                        let until = Instant::now() + wait;
                        self.wait_until = Some(self.wait_until.map_or(until, |at| at.max(until)));
                    }
                }
                Some(Body::Push(push)) => self.acks.saw(push.rev),
                Some(Body::Advance(advance)) => self.acks.saw(advance.rev),
                Some(Body::Define(_) | Body::Stable(_)) => {}
                _ => bail!(super::session::unexpected(&frame)),
            }
            next = self.session.message.frames.buffered()?;
        }
        Ok(())
    }
}
