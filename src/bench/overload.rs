//! What a region does with three times the load that it can carry, and with a burst of ten times.
//!
//! The load is mixed: direct conversations, two groups of whom each message reaches dozens, and typing signals. All
//! who are written to are online. Server and generator each get a processor of their own where there are two. Full
//! load is what the server takes of direct messages in a closed loop with 16 in flight per sender, beside the
//! groups and signals of a quiet hour. Then messages, groups and signals come by the clock, at so many times
//! that ([`super::offering`] says what a device does with them).
//!
//! A generator that is busy itself would measure its own queue, so its processor time is a figure of every phase.
//! That it can offer ten times what the server takes is due to what it measures: a device that is told to come back
//! later sends nothing until then, so its messages wait in its outbox and cost nobody anything.
//!
//! The burst lasts ten seconds; what was not sent by its end is given up, since it would otherwise last for minutes.
//! Half of the full load goes on from there, as before the overload, and shows how soon latencies are as they were.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use tern_core::ids::{ConvId, UserId};
use tern_core::store::BoxFut;
use tern_net::env::Env;
use tokio::time::{Instant, sleep};

use super::group::create;
use super::latency::Latencies;
use super::load::{Crowd, Phase, each};
use super::messages::Receiver;
use super::offering::{Device, Offer, Seen};
use super::readings::{Metrics, cpu_of, resident_of};
use super::report::Goal;
use super::session::{Dialer, QuicSession};
use super::{Bench, Server};

/// Messages in flight per sender at full load.
const FULL_IN_FLIGHT: usize = 16;
/// Groups, and messages a second in each at full load.
const GROUPS: usize = 2;
const GROUP_RATE: f64 = 20.0;
/// Members of a group, if there are so many pairs.
const GROUP_MEMBERS: usize = 60;
/// Typing signals a second and sender at full load; an edge takes 10 of one connection.
const SIGNAL_RATE: f64 = 1.0;
/// How long the burst lasts.
const BURST: Duration = Duration::from_secs(10);
/// After it: when latencies are looked at again.
const RECOVER_WITHIN: Duration = Duration::from_secs(5);
/// Before a phase counts, queues build up or go away.
const SETTLE: Duration = Duration::from_secs(2);
/// The bound: p99 of what is taken under three times the load, over p99 at full load.
const P99_GOAL: f64 = 2.0;
/// And likewise after the burst, over p99 before it: "normal".
const NORMAL_GOAL: f64 = 2.0;
/// How often the server is asked what it gives up: more often than it changes its mind.
const ASK_EVERY: Duration = Duration::from_millis(40);
/// Connects under way at once.
const AT_ONCE: usize = 32;
/// The generator measures itself where it is busier than this.
const GENERATOR_BUSY: f64 = 0.95;

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
    let (mut crowd, receivers) = dial(bench, server).await?;
    let listening = Arc::new(Phase::default());
    let jobs = receivers.into_iter().map(|receiver| {
        let (env, listening) = (bench.env.clone(), listening.clone());
        let job: BoxFut<'static, Result<()>> = Box::pin(async move { receiver.run(env, listening).await.map(|_| ()) });
        job
    });
    let mut receiving = Crowd::start(&bench.env, jobs.collect());

    let full = Load { name: "full", times: 1.0, rate: None, settle: SETTLE, time };
    let full = phase(bench, server, &mut crowd, &mut receiving, &full).await?;
    let rate = full.acked_rate();
    let at = |name, times, settle, time| Load { name, times, rate: Some(rate * times), settle, time };
    let half = phase(bench, server, &mut crowd, &mut receiving, &at("half", 0.5, SETTLE, time)).await?;
    let before = resident_of(server.pid)?;
    let triple = phase(bench, server, &mut crowd, &mut receiving, &at("triple", 3.0, SETTLE, time)).await?;
    // All of it counts.
    let burst = phase(bench, server, &mut crowd, &mut receiving, &at("burst", 10.0, Duration::ZERO, BURST)).await?;
    let settle = RECOVER_WITHIN.saturating_sub(burst.ended.elapsed());
    let after = phase(bench, server, &mut crowd, &mut receiving, &at("after", 0.5, settle, time)).await?;
    listening.stop_receiving();

    let ratio = |of: &Taken, to: &Taken| of.p99() / to.p99().max(0.001);
    bench.report.held(
        "overload.triple.p99_over_full",
        ratio(&triple, &full),
        "x",
        Goal::AtMost(P99_GOAL),
        "p99 of direct messages taken under three times the load, over that at full load",
    );
    bench.report.held(
        "overload.after.p99_over_before",
        ratio(&after, &half),
        "x",
        Goal::AtMost(NORMAL_GOAL),
        "p99 at half load, from 5 s after the burst on, over that before it",
    );
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let report = &mut bench.report;
    report.add("overload.rss.before", mib(before), "MiB", "the server's memory before three times the load");
    report.add("overload.rss.burst", mib(burst.rss), "MiB", "the most it was during the burst");
    report.add("overload.rss.after", mib(after.rss), "MiB", "and at half load after it");
    for (taken, name) in [(&triple, "triple"), (&burst, "burst")] {
        if taken.generator > GENERATOR_BUSY {
            report.note(format!("{name}: the generator's processor was full, so latencies hold its own queue as well"));
        }
    }
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

/// Those who write.
struct Senders {
    direct: Vec<Device>,
    groups: Vec<Device>,
}

async fn dial(bench: &Bench, server: &Server) -> Result<(Senders, Vec<Receiver>)> {
    let count = bench.args.pairs as usize;
    bench.report.progress(&format!("overload: connecting {count} pairs"));
    let dialer = Dialer::new(bench, server)?;
    let tokens = Arc::new(bench.tokens("offer", 2 * count + GROUPS)?);
    let users: Vec<UserId> = tokens.iter().map(|(user, _)| user.clone()).collect();
    let connected = each(&bench.env, 2 * count + GROUPS, AT_ONCE, move |i| {
        let (dialer, tokens) = (dialer.clone(), tokens.clone());
        async move {
            let (user, token) = tokens.get(i).context("too few tokens")?;
            dialer.quic(i, user, token).await
        }
    });
    // Even ones write, odd ones read, the last ones write to groups.
    let mut sessions: Vec<QuicSession> = connected.await?;
    let writers = sessions.split_off(2 * count);
    let mut senders = Senders { direct: Vec::new(), groups: Vec::new() };
    let mut receivers = Vec::new();
    for (i, session) in sessions.into_iter().enumerate() {
        if i % 2 == 1 {
            receivers.push(Receiver::new(session));
        } else if let [from, to] = &users[i..i + 2] {
            let conversation = ConvId::direct(&session.direct_salt, from, to);
            senders.direct.push(Device::new(session, conversation, Some(to.clone()), 1));
        }
    }
    for (i, mut session) in writers.into_iter().enumerate() {
        let readers = users[..2 * count].iter().skip(1).step_by(2).take(GROUP_MEMBERS - 1);
        let members: Vec<UserId> = users.iter().skip(2 * count + i).take(1).chain(readers).cloned().collect();
        let conversation = create(&mut session, &members).await?;
        senders.groups.push(Device::new(session, conversation, None, 2));
    }
    Ok((senders, receivers))
}

/// What a phase offers.
struct Load {
    name: &'static str,
    /// Full load.
    times: f64,
    /// Direct messages a second; `None`: a closed loop.
    rate: Option<f64>,
    /// Not measured.
    settle: Duration,
    time: Duration,
}

impl Load {
    /// For each direct sender, then for each group's.
    fn offers(&self, direct: usize, groups: usize) -> Vec<Offer> {
        let each = |rate: f64| Duration::from_secs_f64(1.0 / rate.max(0.001));
        let every = self.rate.map(|rate| each(rate / direct as f64));
        let spread = |every: Duration, i: usize, of: usize| every.mul_f64((i as f64 + 0.5) / of as f64);
        let to_one = (0..direct).map(|i| Offer {
            every,
            window: if every.is_some() { Offer::WINDOW } else { FULL_IN_FLIGHT },
            signal_every: Some(each(SIGNAL_RATE * self.times)),
            first: spread(every.unwrap_or_default(), i, direct),
        });
        let in_group = each(GROUP_RATE * self.times);
        let to_all = (0..groups).map(|i| Offer {
            every: Some(in_group),
            window: Offer::WINDOW,
            signal_every: None,
            first: spread(in_group, i, groups),
        });
        to_one.chain(to_all).collect()
    }
}

/// What a phase showed.
struct Taken {
    seconds: f64,
    direct: Seen,
    groups: Seen,
    /// The most during the phase.
    rss: u64,
    /// Processors that were busy.
    server: f64,
    generator: f64,
    /// Of the whole phase.
    given_up: GivenUp,
    /// After its beginning: when the server first gave up signals, single fan-outs, sends.
    firsts: [Option<Duration>; 3],
    ended: Instant,
}

impl Taken {
    fn acked_rate(&self) -> f64 {
        self.direct.acked as f64 / self.seconds.max(1e-9)
    }

    fn p99(&self) -> f64 {
        self.direct.latencies.percentile_ms(99)
    }

    fn report(&self, bench: &mut Bench, load: &Load) {
        let report = &mut bench.report;
        let key = |name: &str| format!("overload.{}.{name}", load.name);
        let second = |count: u64| count as f64 / self.seconds.max(1e-9);
        if let Some(rate) = load.rate {
            report.add(key("offered"), rate, "/s", "direct messages that came, at so many times the full load");
        }
        let meaning = if load.rate.is_some() { "of them taken" } else { "direct messages taken, 16 in flight" };
        report.add(key("acked"), second(self.direct.acked), "/s", meaning);
        report.add(key("group_acked"), second(self.groups.acked), "/s", "messages to groups taken");
        let ms = |l: &Latencies, percent| l.percentile_ms(percent);
        report.add(key("ack.p50"), ms(&self.direct.latencies, 50), "ms", "direct, transmission to ack, median");
        report.add(key("ack.p99"), self.p99(), "ms", "likewise, 99 of 100");
        report.add(key("group_ack.p99"), ms(&self.groups.latencies, 99), "ms", "messages to groups, likewise");
        let refused = second(self.direct.refused + self.groups.refused);
        report.add(key("refused"), refused, "/s", "transmissions told to come back later");
        let [signals, merged, _] = self.given_up.0;
        report.add(key("signals_dropped"), signals, "", "signals that were dropped in the whole phase");
        report.add(key("fanouts_merged"), merged, "", "fan-outs that were merged with a later one, likewise");
        for (first, what) in self.firsts.iter().zip(["signals", "fanouts", "sends"]) {
            if let Some(first) = first {
                let meaning = format!("after the phase's beginning {what} were first given up");
                report.add(key(&format!("first.{what}")), first.as_secs_f64() * 1000.0, "ms", meaning);
            }
        }
        report.add(key("server_busy"), self.server, "cores", "processors that the server kept busy");
        report.add(key("generator_busy"), self.generator, "cores", "and the generator");
    }
}

/// Counters of what a server gave up: signals, fan-outs, sends.
#[derive(Clone, Copy, Debug, Default)]
struct GivenUp([f64; 3]);

impl GivenUp {
    fn of(m: &Metrics) -> Self {
        Self([
            m.get("tern_edge_dropped_signals_total") + m.get("tern_core_signals_dropped_total"),
            m.get("tern_core_fanouts_merged_total"),
            m.get("tern_edge_refused_sends_total{code=\"overloaded\"}") + m.get("tern_core_sends_shed_total"),
        ])
    }

    fn since(&self, before: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - before.0[i]))
    }
}

/// Looks at a server while a phase runs.
struct Watch {
    began: Instant,
    before: GivenUp,
    last: GivenUp,
    firsts: [Option<Duration>; 3],
    rss: u64,
}

impl Watch {
    async fn begin(env: &Env, server: &Server) -> Result<Self> {
        let before = GivenUp::of(&Metrics::read(env, server).await?);
        Ok(Self { began: Instant::now(), before, last: before, firsts: [None; 3], rss: 0 })
    }

    async fn look(&mut self, env: &Env, server: &Server) -> Result<()> {
        self.last = GivenUp::of(&Metrics::read(env, server).await?);
        let since = self.last.since(&self.before);
        for (first, count) in self.firsts.iter_mut().zip(since.0) {
            if count > 0.0 {
                first.get_or_insert(self.began.elapsed());
            }
        }
        Ok(())
    }

    /// Looks until that time: often while something may be given up for the first time.
    async fn until(&mut self, env: &Env, server: &Server, end: Instant) -> Result<()> {
        let mut rss_at = Instant::now();
        while Instant::now() < end {
            self.look(env, server).await?;
            if rss_at <= Instant::now() {
                self.rss = self.rss.max(resident_of(server.pid)?);
                rss_at += Duration::from_secs(1);
            }
            let settled = self.began.elapsed() > SETTLE || self.firsts.iter().all(Option::is_some);
            let pause = if settled { ASK_EVERY * 10 } else { ASK_EVERY };
            sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
        }
        Ok(())
    }
}

async fn phase(
    bench: &mut Bench,
    server: &Server,
    senders: &mut Senders,
    receiving: &mut Crowd<()>,
    load: &Load,
) -> Result<Taken> {
    bench.report.progress(&format!("overload: {}, {} times the full load", load.name, load.times));
    let env = bench.env.clone();
    let shared = Arc::new(Phase::default());
    let (direct, groups) = (senders.direct.len(), senders.groups.len());
    let offers = load.offers(direct, groups);
    let mut watch = Watch::begin(&env, server).await?;
    let devices = senders.direct.drain(..).chain(senders.groups.drain(..));
    let jobs = devices.zip(offers).map(|(device, offer)| {
        let job: BoxFut<'static, Result<(Device, Seen)>> = Box::pin(device.run(env.clone(), shared.clone(), offer));
        job
    });
    let mut crowd = Crowd::start(&env, jobs.collect());
    let watched = async {
        let settled = Instant::now() + load.settle;
        watch.until(&env, server, settled).await?;
        let before = (cpu_of(server.pid)?, cpu_of(std::process::id())?);
        shared.set_measuring(true);
        watch.until(&env, server, settled + load.time).await?;
        shared.set_measuring(false);
        let after = (cpu_of(server.pid)?, cpu_of(std::process::id())?);
        watch.rss = watch.rss.max(resident_of(server.pid)?);
        Ok::<_, anyhow::Error>((after.0.saturating_sub(before.0), after.1.saturating_sub(before.1)))
    };
    let (server_cpu, own_cpu) = tokio::select! {
        biased;
        error = crowd.failure() => bail!(error),
        error = receiving.failure() => bail!(error),
        cpu = watched => cpu?,
    };
    shared.stop_sending();
    let ended = Instant::now();
    let seconds = load.time.as_secs_f64();
    let mut all = Taken {
        seconds,
        direct: Seen::default(),
        groups: Seen::default(),
        rss: watch.rss,
        server: server_cpu.as_secs_f64() / seconds,
        generator: own_cpu.as_secs_f64() / seconds,
        given_up: GivenUp::default(),
        firsts: watch.firsts,
        ended,
    };
    let back = crowd.end(Duration::from_secs(30)).await.context("waiting for the last acks")?;
    watch.look(&env, server).await?;
    all.given_up = watch.last.since(&watch.before);
    for (i, (device, seen)) in back.into_iter().enumerate() {
        let (devices, sum) =
            if i < direct { (&mut senders.direct, &mut all.direct) } else { (&mut senders.groups, &mut all.groups) };
        devices.push(device);
        sum.merge(&seen);
    }
    all.report(bench, load);
    Ok(all)
}
