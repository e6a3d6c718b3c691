//! A hundred blows under load: `kill -9`, SIGSTOP and SIGCONT, and SIGTERM, of random processes at random
//! moments: three regions, two edges and a dispatch of their own, and three clients, as real processes of the
//! real binary on loopback. Each client talks to each other one, and all are in a group.
//!
//! In the end nothing that a client was told to be acked is missing anywhere, nothing is shown twice, all devices
//! show the same order, everything is held by a second region, and no server holds more memory or file
//! descriptors than before.
//!
//! - `TERN_KILLS=N`: that many blows.
//! - `TERN_KILLS_SOAK=2h`: blows for that long instead.
//! - `TERN_KILLS_SEED=N`: the same schedule again; a failed run prints its own.
//! - `TERN_KILLS_RATE=N`: messages a second, of all clients together.
//! - `TERN_KILLS_KEEP=DIR`: leaves stores and logs in that directory.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "real processes run in real time, and tasks end with the test")]

mod cast;
mod device;
mod orphan;
mod readings;
mod schedule;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use cast::Cast;
use device::{GROUP, TASK, Task, WHOLE_TIMELINE, is_text};
use readings::{Reading, Readings};
use schedule::Kind;
use tern::checker::{History, Message};
use tern::cluster::Cluster;
use tern::config::value::parse_duration;
use tern::demo::person::label;
use tern::fleet::Fleet;
use tern_client::{Client, MessageState};
use tokio::time::{Instant, sleep_until};

/// Blows of a run without arguments.
const BLOWS: u64 = 100;
/// Messages a second of all clients together: what a small machine carries beside its other work.
const RATE: u64 = 30;
/// Between two blows at most.
const PAUSE_MAX: Duration = Duration::from_millis(2500);
/// Messages before the first blow: until then readings are what the load needs.
const WARM_UP_ACKS: usize = 200;
/// Blows that a soak draws at a time.
const SOAK_BATCH: usize = 1000;
/// Within it, whatever happened, messages must flow again: the longest pause of a client and a fail-over.
const FLOW_WITHIN: Duration = Duration::from_secs(60);
/// After the last blow: all processes are up, everything is acked, stable, and shown everywhere.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// How often due things are done.
const TICK: Duration = Duration::from_millis(10);
/// How often readings are taken: often enough for every life that does more than start.
const READ_EVERY: Duration = Duration::from_millis(500);
/// How often timelines are read while they converge.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After the clients have left, connections run out by then and readings are what stays. The longest of the
/// timers is QUIC's idle time-out.
const QUIET: Duration = Duration::from_secs(60);
/// Clients, and whose dispatch each asks first.
const PEOPLE: [(&str, &str); 3] = [("alice", "eu"), ("bob", "ap"), ("carol", "d1")];

/// What to do; see the module.
struct Plan {
    seed: u64,
    blows: usize,
    soak: Option<Duration>,
    every: Duration,
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

impl Plan {
    fn read() -> Self {
        let soak = std::env::var("TERN_KILLS_SOAK").ok().map(|text| {
            parse_duration(&text).unwrap_or_else(|| panic!("TERN_KILLS_SOAK={text}: expected a duration, such as 2h"))
        });
        let rate: u64 = variable("TERN_KILLS_RATE").unwrap_or(RATE).max(1);
        Self {
            seed: variable("TERN_KILLS_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish() % 1_000_000),
            blows: usize::try_from(variable("TERN_KILLS").unwrap_or(BLOWS)).unwrap(),
            soak,
            every: Duration::from_secs(PEOPLE.len() as u64) / u32::try_from(rate).unwrap(),
        }
    }
}

/// A client process of the test below.
#[test]
fn client_process() {
    let Ok(task) = std::env::var(TASK) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(device::run(serde_json::from_str(&task).unwrap()));
}

#[test]
fn a_hundred_random_blows_lose_nothing_show_nothing_twice_and_leave_nothing_behind() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(blows(Plan::read()));
}

/// A run in progress.
struct Run {
    cast: Cast,
    readings: Readings,
    began: Instant,
    read_next: Instant,
    is_warm: bool,
}

impl Run {
    async fn tick(&mut self) {
        self.cast.tend().await;
        if Instant::now() >= self.read_next {
            self.read_next = Instant::now() + READ_EVERY;
            for (i, actor) in self.cast.actors.iter().enumerate() {
                let Some(reading) = self.cast.pid(i).filter(|_| actor.kind != Kind::Client).and_then(Reading::of)
                else {
                    continue;
                };
                match self.is_warm {
                    false => self.readings.warm(&actor.name, reading),
                    true => self.readings.under_load(&actor.name, reading),
                }
            }
        }
        sleep_until(Instant::now() + TICK).await;
    }

    fn acks(&self) -> usize {
        self.cast.told.lock().unwrap().acks
    }

    /// Waits until `more` further messages are acked.
    async fn flow(&mut self, more: usize, what: &str) {
        let from = self.acks();
        let until = Instant::now() + FLOW_WITHIN;
        while self.acks() < from + more {
            let logs = self.cast.fleet.logs();
            assert!(
                Instant::now() < until,
                "{} of {more} messages were acked in the {} s after {what}; logs are in {}",
                self.acks() - from,
                FLOW_WITHIN.as_secs(),
                logs.display()
            );
            self.tick().await;
        }
    }

    fn say(&self, text: &str) {
        println!("{:7.1} s  {text}", self.began.elapsed().as_secs_f64());
    }
}

async fn blows(plan: Plan) {
    println!("TERN_KILLS_SEED={} TERN_KILLS={}", plan.seed, plan.blows);
    let scratch = Scratch::make();
    let data = scratch.path.clone();
    let regions = ["eu", "us", "ap"].map(str::to_owned);
    let mut cluster = Cluster::plan(data.clone(), &regions, 21_000).unwrap();
    cluster.add_edges("eu", 1);
    cluster.add_edges("ap", 1);
    cluster.dispatch = Some("d1".to_owned());
    cluster.reoffer_after = Duration::from_secs(3);
    cluster.find_ports().unwrap();
    let mut processes = cluster.write().unwrap();
    for process in processes.iter_mut().filter(|p| p.arguments[0] == "region") {
        // A cache that is full soon, so that what goes on growing is no cache.
        process.arguments.extend(["--set".to_owned(), "store.cache=4MiB".to_owned()]);
    }
    let fleet = Fleet::new(keep_binary(Path::new(env!("CARGO_BIN_EXE_tern")), &data, "tern"), &data).unwrap();
    let device = keep_binary(&std::env::current_exe().unwrap(), &data, "device");
    let tasks = tasks(&data, plan.every);
    let now = Instant::now();
    let mut run = Run {
        cast: Cast::new(fleet, device, &processes, &tasks),
        readings: Readings::default(),
        began: now,
        read_next: now,
        is_warm: false,
    };
    for i in 0..run.cast.actors.len() {
        run.cast.start(i).await;
    }
    run.flow(WARM_UP_ACKS, "the start").await;
    run.is_warm = true;

    let struck = strike(&mut run, &plan).await;

    let until = Instant::now() + SETTLED_WITHIN;
    while !run.cast.bring_all_back().await {
        assert!(Instant::now() < until, "not all processes came back");
        run.tick().await;
    }
    run.say("all are back; the clients stop sending");
    if let Err(late) = run.cast.settle_clients(SETTLED_WITHIN).await {
        panic!("{late} after {} s; seed {}; data in {}", SETTLED_WITHIN.as_secs(), plan.seed, data.display());
    }
    run.say("all is stable; the devices are read");
    let told = std::mem::take(&mut run.cast.told.lock().unwrap().history);
    let history = converge(&tasks, told).await;
    let totals = history.totals();
    run.say(&format!("{struck} blows: {totals}"));
    for (conversation, finding) in history.findings().iter().take(50) {
        println!("  {conversation}: {finding}");
    }

    calm(&mut run).await;
    println!("{}", run.readings.table());
    let growth = run.readings.growth();
    run.cast.fleet.stop(Duration::from_secs(20)).await;
    let in_group = history.conversations.get(GROUP).map_or(0, |group| group.sent.len());
    assert!(in_group > 0, "nobody wrote to the group; seed {}", plan.seed);
    assert!(totals.pass(), "{totals}; seed {}", plan.seed);
    assert_eq!((totals.refused, totals.at_risk), (0, 0), "nothing was sent that may be refused; seed {}", plan.seed);
    assert!(growth.is_empty(), "{growth:?}; seed {}", plan.seed);
}

/// Where everything is. It is removed, unless someone wants it or the run failed.
struct Scratch {
    path: PathBuf,
    is_kept: bool,
}

impl Scratch {
    fn make() -> Self {
        match std::env::var_os("TERN_KILLS_KEEP") {
            Some(path) => {
                std::fs::create_dir(&path).expect("TERN_KILLS_KEEP names a directory that does not exist yet");
                Self { path: std::path::absolute(path).unwrap(), is_kept: true }
            }
            None => {
                Self { path: tempfile::Builder::new().prefix("tern-kills-").tempdir().unwrap().keep(), is_kept: false }
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_kept || std::thread::panicking() {
            println!("stores and logs are in {}", self.path.display());
        } else {
            std::fs::remove_dir_all(&self.path).unwrap();
        }
    }
}

/// A name of its own for a binary that is started again and again: whatever is built meanwhile, all of a run is
/// one version.
fn keep_binary(binary: &Path, data: &Path, name: &str) -> PathBuf {
    let kept = data.join(name);
    if std::fs::hard_link(binary, &kept).is_err() {
        std::fs::copy(binary, &kept).unwrap();
    }
    kept
}

fn tasks(data: &Path, every: Duration) -> Vec<Task> {
    let task = |(user, near): &(&str, &str)| Task {
        data: data.to_str().unwrap().to_owned(),
        store: data.join(format!("device-{user}")).to_str().unwrap().to_owned(),
        user: (*user).to_owned(),
        near: (*near).to_owned(),
        peers: PEOPLE.iter().map(|(peer, _)| (*peer).to_owned()).filter(|peer| peer != user).collect(),
        founds: *user == PEOPLE[0].0,
        every,
    };
    PEOPLE.iter().map(task).collect()
}

/// All blows of the schedule. How many there were.
async fn strike(run: &mut Run, plan: &Plan) -> usize {
    let kinds = run.cast.kinds();
    let spared = schedule::spare(plan.seed, &kinds);
    let names: Vec<&str> = spared.iter().map(|i| run.cast.actors[*i].name.as_str()).collect();
    run.say(&format!("{} live through it", names.join(" and ")));
    let until = plan.soak.map(|soak| Instant::now() + soak);
    let batch = if plan.soak.is_some() { SOAK_BATCH } else { plan.blows };
    let mut struck = 0;
    for round in 0.. {
        for step in schedule::draw(plan.seed.wrapping_add(round), batch, &kinds, &spared, PAUSE_MAX) {
            if until.is_some_and(|until| Instant::now() > until) {
                return struck;
            }
            let mut what = Vec::new();
            for (victim, blow) in step.blows {
                run.cast.strike(victim, blow).await;
                struck += 1;
                what.push(format!("{} {blow}", run.cast.actors[victim].name));
            }
            let what = format!("blow {struck}: {}", what.join(" and "));
            run.say(&what);
            let next = Instant::now() + step.pause;
            run.flow(step.acks, &what).await;
            while Instant::now() < next {
                run.tick().await;
            }
        }
        if plan.soak.is_none() {
            break;
        }
        println!("{}", run.readings.table());
    }
    struck
}

/// Opens all devices once more and waits until each shows all that the others have sent.
async fn converge(tasks: &[Task], mut history: History) -> History {
    let clients: Vec<(&Task, Client)> = tasks.iter().map(|task| (task, task.open())).collect();
    let until = Instant::now() + SETTLED_WITHIN;
    loop {
        for (task, client) in &clients {
            read_device(task, client, &mut history);
        }
        if history.totals().pass() || Instant::now() > until {
            break;
        }
        sleep_until(Instant::now() + LOOK_EVERY).await;
    }
    for (_, client) in clients {
        client.close().await;
    }
    history
}

fn read_device(task: &Task, client: &Client, history: &mut History) {
    // A device that never heard of the group lacks all of it.
    let group = history.conversations.entry(GROUP.to_owned()).or_default();
    group.timelines.entry(task.user.clone()).or_default();
    for (name, conversation) in task.conversations(client) {
        let shown = conversation.timeline(WHOLE_TIMELINE).unwrap().messages;
        let record = history.conversations.entry(name).or_default();
        let mut timeline: Vec<Message> = Vec::new();
        for message in shown.iter().filter(|m| is_text(m)) {
            let label = label(message).unwrap_or_else(|| ("nobody".to_owned(), 0));
            if message.by.user.as_str() == task.user {
                // What a device was told while its last life ended, it shows.
                match message.state {
                    MessageState::Sent => drop(record.acked.insert(label.clone())),
                    MessageState::Stable => {
                        record.acked.insert(label.clone());
                        record.stable.insert(label.clone());
                    }
                    MessageState::AtRisk => drop(record.at_risk.insert(label.clone())),
                    _ => {}
                }
            }
            if message.key.is_some() {
                timeline.push(label);
            }
        }
        record.timelines.insert(task.user.clone(), timeline);
    }
}

/// Waits until what runs out has run out, and takes the last readings.
async fn calm(run: &mut Run) {
    let until = Instant::now() + QUIET;
    loop {
        run.tick().await;
        let mut now = BTreeMap::new();
        for (i, actor) in run.cast.actors.iter().enumerate().filter(|(_, a)| a.kind != Kind::Client) {
            now.insert(actor.name.clone(), (actor.lives, run.cast.pid(i).and_then(Reading::of).unwrap()));
        }
        for (name, (lives, reading)) in now {
            run.readings.end(&name, lives, reading);
        }
        if run.readings.growth().is_empty() || Instant::now() > until {
            return;
        }
    }
}
