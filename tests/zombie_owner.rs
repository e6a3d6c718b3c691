//! An owner that is taken for dead and comes back: one of three processes that share a region on a real database stands
//! still for thirty seconds under load and then goes on, with requests in its queues and its old epoch in its memory.
//! What every client asked and was told is written down and judged as histories of logs
//! ([`tern_netsim_verdict::logs`]). Without a database, which `replication/tests/cql-cluster/check` starts, it ends at
//! once.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "processes run in real time, and so do their tests")]

#[path = "support/database.rs"]
mod database;
#[path = "support/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tern::cluster::{Cluster, Endpoints, Process};
use tern::demo::person::{client_config, tokens};
use tern::fleet::Fleet;
use tern_client::store::memory::MemoryStore;
use tern_client::{Client, Conversation, Draft, Event, InstallId, Message, MessageId, MessageState, UserId};
use tern_netsim_verdict::{LogHistory, Outcome, Reading, Regions, Sending, Spot, judge_logs};

/// Far above what anything here takes on a busy machine; only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long the owner stands still: many times its lease.
const STILL: Duration = Duration::from_secs(30);
const USERS: [&str; 6] = ["ada", "ben", "cleo", "dora", "emil", "fay"];
/// A node says so when it gains slots.
const GAINED: &str = "shares of this region are this node's now";

/// What a process of the plan is started with: each is a whole region process, also what the plan has as a further edge.
fn arguments(process: &Process, database: &[String], data: &Path) -> Vec<String> {
    let mut arguments = vec!["region".to_owned(), "--config".to_owned(), process.arguments[2].clone()];
    arguments.extend(database.iter().cloned());
    if process.arguments[0] == "edge" {
        let shared = |file: &str| data.join(file).display().to_string();
        for setting in [
            "listen.dispatch=0".to_owned(),
            "listen.node=0".to_owned(),
            "core=".to_owned(),
            format!("receipt.key_file={}", shared("receipt.key")),
            format!("direct.salt_file={}", shared("direct.salt")),
        ] {
            arguments.extend(["--set".to_owned(), setting]);
        }
    }
    arguments
}

fn log_of(one: &str, other: &str) -> String {
    if one < other { format!("{one}+{other}") } else { format!("{other}+{one}") }
}

/// When and where a device's messages were acked, as it was told.
type Acks = Arc<Mutex<BTreeMap<MessageId, (u64, Spot)>>>;

struct Device {
    user: &'static str,
    client: Client,
    acks: Acks,
    /// By message id: what was handed over, and when.
    sent: BTreeMap<MessageId, Sending>,
    counts: BTreeMap<&'static str, u32>,
}

struct Scene {
    fleet: Fleet,
    data: PathBuf,
    began: Instant,
    devices: Vec<Device>,
    history: LogHistory,
    whole_readings: u32,
}

fn spot(message: &Message) -> Option<Spot> {
    let place = message.key?;
    Some(Spot { hlc: place.hlc, origin: format!("{}.{:x}", place.origin.region, place.origin.era), seq: place.seq })
}

fn shown(conversation: &Conversation) -> Vec<(Spot, Option<String>)> {
    let all = conversation.timeline(usize::MAX >> 1).unwrap().messages;
    let text = |message: &Message| Some(String::from_utf8_lossy(&message.body).into_owned());
    all.iter().filter_map(|message| Some((spot(message)?, text(message)))).collect()
}

/// A device that keeps what it has in memory: the machine's disk is the database's here.
fn open(data: &Path, user: &str, device: u32) -> Client {
    let endpoints = Endpoints::read(data).unwrap();
    let user = UserId::new(user).unwrap();
    let config = client_config(&endpoints, &user, Some("eu")).unwrap();
    let tokens = tokens(&endpoints, data, &user).unwrap();
    let install = InstallId::new(&format!("{device:032x}")).unwrap();
    let store = Box::new(MemoryStore::new(user, install));
    Client::builder(config).local_store(store).token_provider(tokens).build().unwrap()
}

impl Device {
    fn new(data: &Path, user: &'static str, began: Instant) -> Self {
        let client = open(data, user, 0);
        let (mut events, acks) = (client.events(), Acks::default());
        let (listener, memory) = (client.clone(), acks.clone());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::Sent { id, .. } | Event::Stable { id, .. } => {
                        let at_ns = nanos(began);
                        let place = listener.message(id).ok().flatten().and_then(|message| spot(&message));
                        // The client may be closed already, at the end.
                        if let Some(place) = place {
                            memory.lock().unwrap().entry(id).or_insert((at_ns, place));
                        }
                    }
                    Event::Lagged { missed } => panic!("{user} missed {missed} events"),
                    _ => {}
                }
            }
        });
        Self { user, client, acks, sent: BTreeMap::new(), counts: BTreeMap::new() }
    }

    fn with(&self, peer: &str) -> Conversation {
        self.client.direct(&UserId::new(peer).unwrap()).unwrap()
    }

    fn say(&mut self, began: Instant) {
        for peer in USERS.into_iter().filter(|peer| *peer != self.user) {
            let n = self.counts.entry(peer).or_default();
            *n += 1;
            let message = format!("{} {n}", self.user);
            let sending = Sending {
                client: self.user.to_owned(),
                log: log_of(self.user, peer),
                message: message.clone(),
                invoked_ns: nanos(began),
                outcome: Outcome::Unknown,
            };
            let id = self.with(peer).send(Draft::text(message)).unwrap();
            self.sent.insert(id, sending);
        }
    }
}

fn nanos(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap()
}

impl Scene {
    /// Everybody writes to everybody, and now and then it is noted what the devices show.
    async fn say_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut round = 0;
        while Instant::now() < end {
            let began = self.began;
            self.devices.iter_mut().for_each(|device| device.say(began));
            if round % 4 == 0 {
                self.look();
            }
            round += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn look(&mut self) {
        for device in &self.devices {
            for peer in USERS.into_iter().filter(|peer| *peer != device.user) {
                let invoked_ns = nanos(self.began);
                let entries = shown(&device.with(peer));
                self.history.readings.push(Reading {
                    client: device.user.to_owned(),
                    log: log_of(device.user, peer),
                    invoked_ns,
                    returned_ns: nanos(self.began),
                    is_whole: false,
                    entries,
                });
            }
        }
    }

    /// Devices that have nothing read everything. What was acked when they were opened has come in the end, or the
    /// reading says what is missing.
    async fn read_whole(&mut self) {
        self.whole_readings += 1;
        let mut acked: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for device in &self.devices {
            let acks = device.acks.lock().unwrap();
            for (_, sending) in device.sent.iter().filter(|(id, _)| acks.contains_key(id)) {
                acked.entry(sending.log.clone()).or_default().push(sending.message.clone());
            }
        }
        let readers: Vec<(&str, Client)> =
            USERS.into_iter().map(|user| (user, open(&self.data, user, self.whole_readings))).collect();
        for (user, reader) in readers {
            for peer in USERS.into_iter().filter(|peer| *peer != user) {
                let log = log_of(user, peer);
                let conversation = reader.direct(&UserId::new(peer).unwrap()).unwrap();
                let wanted = acked.get(&log).map_or(&[][..], Vec::as_slice);
                let end = Instant::now() + DEADLINE;
                let (invoked_ns, entries) = loop {
                    // Offline, or late: it is tried again.
                    let _paged = conversation.paginate_back(100).await;
                    let invoked_ns = nanos(self.began);
                    let entries = shown(&conversation);
                    let held = |message: &String| entries.iter().any(|(_, text)| text.as_ref() == Some(message));
                    if wanted.iter().all(held) || Instant::now() > end {
                        break (invoked_ns, entries);
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                };
                let reading = Reading {
                    client: format!("{user}'s new device {}", self.whole_readings),
                    log,
                    invoked_ns,
                    returned_ns: nanos(self.began),
                    is_whole: false,
                    entries,
                };
                self.history.readings.push(reading);
            }
            reader.close().await;
        }
    }

    async fn settle(&self) {
        until("everything is acked", &self.fleet, || {
            self.devices.iter().all(|device| {
                let acks = device.acks.lock().unwrap();
                device.client.waiting() == (0, 0) && device.sent.keys().all(|id| acks.contains_key(id))
            })
        })
        .await;
    }

    fn log_has(&self, name: &str, words: &str) -> bool {
        std::fs::read_to_string(self.fleet.log_path(name)).unwrap().contains(words)
    }

    /// All that was sent, with what became of it.
    fn told(mut self) -> (Fleet, LogHistory) {
        for device in self.devices {
            let acks = device.acks.lock().unwrap();
            for (id, mut sending) in device.sent {
                if let Some((returned_ns, spot)) = acks.get(&id) {
                    sending.outcome = Outcome::Acked { returned_ns: *returned_ns, spot: spot.clone() };
                } else if device.client.message(id).unwrap().is_some_and(|m| matches!(m.state, MessageState::Failed(_)))
                {
                    sending.outcome = Outcome::Refused;
                }
                self.history.sendings.push(sending);
            }
        }
        (self.fleet, self.history)
    }
}

async fn until(what: &str, fleet: &Fleet, done: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        if Instant::now() > end {
            let logs: Vec<String> = fleet.names().iter().map(|name| fleet.log_tail(name)).collect();
            panic!("not in time: {what}\n{}", logs.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_owner_that_stood_still_for_thirty_seconds_and_goes_on_under_load_changes_no_log() {
    let Some(mut database) = database::settings("zombie", 0) else { return };
    database.push("region.shared=true".to_owned());
    let database = database::flags(database);
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::plan(dir.path().join("cluster"), &["eu".to_owned()], 29_800).unwrap();
    cluster.add_edges("eu", 2);
    cluster.find_ports().unwrap();
    let processes = cluster.write().unwrap();
    let data = cluster.data.clone();
    let fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &data).unwrap();
    let config = &processes[0].arguments[2];
    let made = program::tern().args(["--config", config]).args(&database).args(["store", "init"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let began = Instant::now();
    let mut scene = Scene {
        fleet,
        data: data.clone(),
        began,
        devices: Vec::new(),
        history: LogHistory::default(),
        whole_readings: 0,
    };
    for process in &processes {
        scene.fleet.start(&process.name, &arguments(process, &database, &data)).await.unwrap();
    }
    let all_have = || processes.iter().all(|process| scene.log_has(&process.name, GAINED));
    until("all have a part", &scene.fleet, all_have).await;
    scene.devices = USERS.into_iter().map(|user| Device::new(&data, user, began)).collect();
    scene.say_for(Duration::from_secs(3)).await;

    let zombie = processes[1].name.clone();
    assert!(scene.fleet.signal(&zombie, Signal::STOP));
    let stands = Instant::now();
    scene.say_for(Duration::from_secs(12)).await;
    // What others see while it stands still is what it must not change.
    scene.read_whole().await;
    scene.say_for(STILL.saturating_sub(stands.elapsed())).await;
    assert!(scene.fleet.signal(&zombie, Signal::CONT));
    scene.say_for(Duration::from_secs(6)).await;
    let knows = || scene.log_has(&zombie, "it begins anew with nothing");
    until("it knows that it was taken for dead", &scene.fleet, knows).await;
    scene.settle().await;
    scene.read_whole().await;
    let end = scene.whole_readings;
    // Nothing is under way any more: this is what the logs hold.
    let last = format!("new device {end}");
    for reading in scene.history.readings.iter_mut().filter(|reading| reading.client.ends_with(&last)) {
        reading.is_whole = true;
    }
    let (mut fleet, history) = scene.told();
    let judgement = judge_logs(&history, Regions::One);
    let words: Vec<String> = judgement.findings.iter().take(20).map(ToString::to_string).collect();
    assert!(
        judgement.passes(),
        "{} of {} acked, {} not read: {}",
        judgement.acked,
        judgement.sent,
        judgement.unread,
        words.join("\n")
    );
    println!("{} sent and acked, {} readings, nothing wrong", judgement.acked, history.readings.len());
    assert_eq!(judgement.acked, judgement.sent);
    fleet.stop(Duration::from_secs(30)).await;
}
