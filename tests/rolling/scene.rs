//! A deployment, people who chat in it, and what is wrong with what they see.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tern::cluster::{Cluster, Endpoints, Process};
use tern::demo::person::{client_config, tokens};
use tern::fleet::Fleet;
use tern_client::{Client, ConnectionState, Draft, Event, UserId};

/// Far above what anything here takes on a busy machine; only failures wait this long.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// Between two rounds of messages.
const PAUSE: Duration = Duration::from_millis(250);

/// What has become of a device's connection since it was first live.
#[derive(Debug, Default)]
pub struct Link {
    /// Where it is, or was last.
    edge: String,
    /// How often it was without one, or at another edge.
    pub lost: Vec<String>,
}

pub struct Device {
    pub client: Client,
    pub link: Arc<Mutex<Link>>,
}

impl Device {
    /// A device of `user`, who asks the dispatch of `near` first.
    pub fn new(data: &Path, user: &str, near: &str) -> Self {
        Self::named(data, user, "phone", near)
    }

    /// Likewise, one of several.
    pub fn named(data: &Path, user: &str, device: &str, near: &str) -> Self {
        let endpoints = Endpoints::read(data).unwrap();
        let id = UserId::new(user).unwrap();
        let mut config = client_config(&endpoints, &id, Some(near)).unwrap();
        config.device = format!("{user}-{device}");
        let tokens = tokens(&endpoints, data, &id).unwrap();
        let store = data.join(&config.device);
        let client = Client::builder(config).store(store).token_provider(tokens).build().unwrap();
        let link = Arc::new(Mutex::new(Link::default()));
        let (mut events, seen) = (client.events(), link.clone());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Event::Connection(state) = event else { continue };
                let mut link = seen.lock().unwrap();
                match state {
                    ConnectionState::Recovering { edge, .. } | ConnectionState::Live { edge, .. } => {
                        if !link.edge.is_empty() && link.edge != edge {
                            let moved = format!("from {} to {edge}", link.edge);
                            link.lost.push(moved);
                        }
                        link.edge = edge;
                    }
                    gone if !link.edge.is_empty() => link.lost.push(format!("{gone:?}")),
                    _ => {}
                }
            }
        });
        Self { client, link }
    }

    pub fn is_live(&self) -> bool {
        matches!(self.client.connection(), ConnectionState::Live { .. })
    }

    pub fn edge(&self) -> String {
        self.link.lock().unwrap().edge.clone()
    }
}

pub struct Scene {
    pub data: PathBuf,
    pub fleet: Fleet,
    pub processes: Vec<Process>,
    pub devices: BTreeMap<&'static str, Device>,
    said: BTreeMap<(&'static str, &'static str), u32>,
}

impl Scene {
    /// Plans `eu` and `us`, each with so many further edges. Nothing runs yet.
    pub fn plan(dir: &Path, port: u16, binary: PathBuf, edges: &[(&str, usize)]) -> Self {
        let mut cluster = Cluster::plan(dir.join("cluster"), &["eu".to_owned(), "us".to_owned()], port).unwrap();
        for (region, count) in edges {
            cluster.add_edges(region, *count);
        }
        cluster.find_ports().unwrap();
        let processes = cluster.write().unwrap();
        let fleet = Fleet::new(binary, &cluster.data).unwrap();
        Self { data: cluster.data, fleet, processes, devices: BTreeMap::new(), said: BTreeMap::new() }
    }

    pub fn arguments(&self, name: &str) -> &[String] {
        &self.processes.iter().find(|process| process.name == name).unwrap().arguments
    }

    pub async fn start_all(&mut self) {
        for process in &self.processes {
            self.fleet.start(&process.name, &process.arguments).await.unwrap();
        }
    }

    pub fn join(&mut self, user: &'static str, near: &str) {
        self.devices.insert(user, Device::new(&self.data, user, near));
    }

    /// Everybody writes to everybody.
    pub fn say(&mut self) {
        let users: Vec<&'static str> = self.devices.keys().copied().collect();
        for from in &users {
            for to in users.iter().filter(|to| *to != from) {
                let n = self.said.entry((from, to)).or_default();
                *n += 1;
                let conversation = self.devices[from].client.direct(&UserId::new(to).unwrap()).unwrap();
                conversation.send(Draft::text(format!("{from} {n}"))).unwrap();
            }
        }
    }

    /// Everybody writes to everybody until the first future is done.
    pub async fn say_during<T>(&mut self, wait: impl Future<Output = T>) -> T {
        tokio::pin!(wait);
        loop {
            self.say();
            tokio::select! {
                biased;
                done = &mut wait => return done,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    pub async fn say_for(&mut self, time: Duration) {
        self.say_during(tokio::time::sleep(time)).await;
    }

    /// Waits until something holds, and says what the processes said where it does not.
    pub async fn until(&self, what: &str, done: impl Fn() -> bool) {
        self.until_or(|| what.to_owned(), done).await;
    }

    async fn until_or(&self, what: impl Fn() -> String, done: impl Fn() -> bool) {
        let end = Instant::now() + DEADLINE;
        while !done() {
            if Instant::now() > end {
                let logs: Vec<String> = self.processes.iter().map(|p| self.fleet.log_tail(&p.name)).collect();
                panic!("not in time: {}\n{}", what(), logs.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What is missing: each message is shown to its reader once, in the order of its sender. Panics where one is shown
    /// twice, or before another.
    fn missing(&self) -> Option<String> {
        for ((from, to), n) in &self.said {
            let id = self.devices[from].client.direct(&UserId::new(to).unwrap()).unwrap().id();
            let all = self.devices[to].client.conversation(id).timeline(usize::MAX >> 1).unwrap().messages;
            let mine = all.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned());
            let mine: Vec<String> = mine.filter(|text| text.starts_with(&format!("{from} "))).collect();
            let expected: Vec<String> = (1..=*n).map(|n| format!("{from} {n}")).collect();
            let doubled = mine.iter().collect::<BTreeSet<_>>().len() != mine.len();
            assert!(!doubled && expected.starts_with(&mine), "{to} sees of {from}: {mine:?}");
            if mine != expected {
                return Some(format!("{to} sees {} of {n} of {from}", mine.len()));
            }
            if self.devices[from].client.waiting().0 != 0 {
                return Some(format!("{from} waits for {} acks", self.devices[from].client.waiting().0));
            }
        }
        None
    }

    pub async fn settle(&self, what: &str) {
        let missing = RefCell::new(None);
        let none_is_missing = || {
            *missing.borrow_mut() = self.missing();
            missing.borrow().is_none()
        };
        self.until_or(|| format!("{what}: {:?}", missing.borrow()), none_is_missing).await;
    }

    /// Stops a process in order while everybody goes on, and takes it out of `fleet`.
    pub async fn stop(&mut self, name: &str) {
        assert!(self.fleet.signal(name, Signal::TERM));
        let end = Instant::now() + DEADLINE;
        let status = loop {
            if let Some((ended, status)) = self.fleet.ended() {
                assert_eq!(ended, name, "ended by itself: {}", self.fleet.log_tail(&ended));
                break status;
            }
            assert!(Instant::now() < end, "it does not end: {}", self.fleet.log_tail(name));
            self.say();
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert!(status.success(), "{status}: {}", self.fleet.log_tail(name));
        self.fleet.kill(name).await;
    }

    /// No process has ended by itself.
    pub fn all_run(&mut self) {
        let ended = self.fleet.ended();
        assert!(ended.is_none(), "{ended:?}");
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.fleet.log_path(name)).unwrap()
    }
}

/// A figure of a node, summed over its labels.
pub fn figure(admin: SocketAddr, name: &str) -> f64 {
    let mut stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let lines = answer.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}
