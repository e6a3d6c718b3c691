//! `kill -9` of random processes under load, thirty times: regions, edges and clients, as real processes of
//! the real binary on loopback.
//!
//! Two clients talk through it all, each a process that is killed as well. In the end nothing that a client
//! was told to be acked is missing, nothing is shown twice, both devices show the same order, and everything
//! is held by a second region.
//!
//! `TERN_KILLS=N` kills more often, `TERN_KILLS_SEED=N` chooses the same victims again.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "real processes run in real time, and tasks end with the test")]

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tern::cluster::{Cluster, Endpoints, Process};
use tern::demo::person::{client_config, tokens};
use tern::demo::totals::{Message, Record};
use tern::fleet::Fleet;
use tern_client::{Client, Draft, Event, MessageState, UserId};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, interval, sleep_until, timeout};

/// A client child is told by this what to be: data directory, store, user, region, peer; tab-separated.
const CLIENT: &str = "TERN_KILLS_CLIENT";
const SEND_EVERY: Duration = Duration::from_millis(50);
/// Within it, whatever happened, messages must flow again.
const FLOW_WITHIN: Duration = Duration::from_secs(40);
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
const PEOPLE: [(&str, &str, &str); 2] = [("alice", "eu", "bob"), ("bob", "ap", "alice")];

fn open(data: &Path, store: &Path, user: &str, near: &str) -> Client {
    let endpoints = Endpoints::read(data).unwrap();
    let user = UserId::new(user).unwrap();
    let config = client_config(&endpoints, &user, Some(near)).unwrap();
    let tokens = tokens(&endpoints, data, &user).unwrap();
    Client::builder(config).store(store).token_provider(tokens).build().unwrap()
}

fn number(message: &tern_client::Message) -> u64 {
    let text = std::str::from_utf8(&message.body).unwrap();
    text.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// A client process: sends until its input ends, then waits until all is stable. It prints what is acked.
#[test]
fn client_process() {
    let Ok(task) = std::env::var(CLIENT) else { return }; // only a part of the test below
    let parts: Vec<&str> = task.split('\t').collect();
    let [data, store, user, near, peer] = parts[..] else { panic!("{task}") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = open(Path::new(data), Path::new(store), user, near);
        let conversation = client.direct(&UserId::new(peer).unwrap()).unwrap();
        let mut events = client.events();
        let own = |m: &&tern_client::Message| m.by.user.as_str() == user;
        // What an earlier life has stored counts on.
        let stored = conversation.timeline(usize::MAX >> 1).unwrap().messages;
        let mut n = stored.iter().filter(own).map(number).max().unwrap_or(0);
        let mut input = BufReader::new(tokio::io::stdin()).lines();
        let mut clock = interval(SEND_EVERY);
        let mut stopping = false;
        println!("ready");
        loop {
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Event::Sent { id, .. }) => {
                        if let Some(message) = client.message(id).unwrap() {
                            println!("acked {}", number(&message));
                        }
                    }
                    Some(Event::Failed { code, message, .. }) => panic!("{user} was refused: {code} {message}"),
                    Some(Event::StoreFailed { message }) => panic!("the store of {user} failed: {message}"),
                    Some(_) => {}
                    None => break,
                },
                line = input.next_line(), if !stopping => stopping = !matches!(line, Ok(Some(_))),
                _ = clock.tick() => {
                    if !stopping {
                        n += 1;
                        conversation.send(Draft::text(format!("{user} {n}"))).unwrap();
                    } else if client.waiting() == (0, 0) {
                        break;
                    }
                }
            }
        }
        println!("settled");
        client.close().await;
    });
}

/// What both clients have printed so far.
type Acked = Arc<Mutex<BTreeSet<Message>>>;

struct Person {
    user: &'static str,
    near: &'static str,
    peer: &'static str,
    store: PathBuf,
    child: Option<Child>,
}

impl Person {
    fn start(&mut self, data: &Path, acked: &Acked) {
        let task = [data.to_str().unwrap(), self.store.to_str().unwrap(), self.user, self.near, self.peer].join("\t");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "client_process", "--nocapture"]).env(CLIENT, task);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (acked, user) = (acked.clone(), self.user);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(n) = line.strip_prefix("acked ").and_then(|n| n.parse().ok()) {
                    acked.lock().unwrap().insert((user.to_owned(), n));
                }
            }
        });
        self.child = Some(child);
    }

    async fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().await.unwrap();
    }
}

/// Waits until `more` further messages are acked.
async fn flow(acked: &Acked, more: usize, what: &str) {
    let count = || acked.lock().unwrap().len();
    let from = count();
    let until = Instant::now() + FLOW_WITHIN;
    while count() < from + more {
        assert!(Instant::now() < until, "no messages flow {} s after {what}", FLOW_WITHIN.as_secs());
        sleep_until(Instant::now() + Duration::from_millis(5)).await;
    }
}

#[test]
fn thirty_random_kills_lose_nothing_and_show_nothing_twice() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(kills());
}

async fn kills() {
    let number_of = |name| std::env::var(name).ok().and_then(|v: String| v.parse::<u64>().ok());
    let seed = number_of("TERN_KILLS_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish() % 1_000_000);
    let count = number_of("TERN_KILLS").unwrap_or(30);
    println!("TERN_KILLS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let regions = ["eu", "us", "ap"].map(str::to_owned);
    let mut cluster = Cluster::plan(data.to_owned(), &regions, 21_000).unwrap();
    cluster.add_edges("eu", 1);
    cluster.add_edges("ap", 1);
    cluster.reoffer_after = Duration::from_secs(3);
    cluster.find_ports().unwrap();
    let processes = cluster.write().unwrap();
    let mut fleet = Fleet::new(PathBuf::from(env!("CARGO_BIN_EXE_tern")), data).unwrap();
    for process in &processes {
        fleet.start(&process.name, &process.arguments).await.unwrap();
    }
    let acked = Acked::default();
    let mut people = PEOPLE.map(|(user, near, peer)| {
        let store = data.join(format!("device-{user}"));
        Person { user, near, peer, store, child: None }
    });
    people.iter_mut().for_each(|p| p.start(data, &acked));
    flow(&acked, 20, "the start").await;

    let mut down: Option<Process> = None;
    for kill in 1..=count {
        let victim = rng.random_range(0..processes.len() + people.len());
        let what = match processes.get(victim) {
            Some(process) => {
                fleet.kill(&process.name).await;
                // Sometimes the next victim falls while this one is still down.
                if let Some(other) = down.replace(process.clone()) {
                    fleet.start(&other.name, &other.arguments).await.unwrap();
                }
                process.name.clone()
            }
            None => {
                let person = &mut people[victim - processes.len()];
                person.kill().await;
                person.start(data, &acked);
                person.user.to_owned()
            }
        };
        let what = format!("kill {kill} of {count}, {what}");
        flow(&acked, rng.random_range(1..20), &what).await;
        if rng.random_bool(0.6)
            && let Some(process) = down.take()
        {
            fleet.start(&process.name, &process.arguments).await.unwrap();
        }
    }
    if let Some(process) = down {
        fleet.start(&process.name, &process.arguments).await.unwrap();
    }

    for person in &mut people {
        let mut child = person.child.take().unwrap();
        drop(child.stdin.take());
        let status = timeout(SETTLED_WITHIN, child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("{} still waits for acks or stability", person.user));
        assert!(status.unwrap().success());
    }
    let acked = acked.lock().unwrap().clone();
    let record = judge(data, &people, acked).await;
    fleet.stop(Duration::from_secs(10)).await;
    let totals = record.totals();
    println!("{count} kills: {totals}");
    assert!(totals.pass(), "{totals}; lost {:?}; seed {seed}", record.lost());
}

/// Opens both devices once more and waits until each shows all that the other has sent.
async fn judge(data: &Path, people: &[Person], acked: BTreeSet<Message>) -> Record {
    let mut record = Record { acked, ..Record::default() };
    let clients: Vec<_> = people.iter().map(|p| (p, open(data, &p.store, p.user, p.near))).collect();
    let until = Instant::now() + SETTLED_WITHIN;
    loop {
        record.timelines.clear();
        for (person, client) in &clients {
            let conversation = client.direct(&UserId::new(person.peer).unwrap()).unwrap();
            let shown = conversation.timeline(usize::MAX >> 1).unwrap().messages;
            for message in shown.iter().filter(|m| m.by.user.as_str() == person.user) {
                let label = (person.user.to_owned(), number(message));
                record.sent.insert(label.clone());
                if matches!(message.state, MessageState::Sent | MessageState::Stable) {
                    record.acked.insert(label.clone());
                }
                if message.state == MessageState::Stable {
                    record.stable.insert(label);
                }
            }
            let label = |m: &tern_client::Message| (m.by.user.as_str().to_owned(), number(m));
            let placed = shown.iter().filter(|m| m.key.is_some()).map(label).collect();
            record.timelines.insert(person.user.to_owned(), placed);
        }
        if record.totals().pass() || Instant::now() > until {
            break;
        }
        sleep_until(Instant::now() + Duration::from_millis(50)).await;
    }
    for (_, client) in clients {
        client.close().await;
    }
    record
}
