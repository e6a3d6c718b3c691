//! Devices with the client SDK, three regions around them, and what is checked of what they show.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tern_client::store::memory::MemoryStore;
use tern_client::{Client, ConnectionState, Conversation, Draft, Event, Events, InstallId, MessageId, Placed, UserId};
use tern_ipconf::Geo;
use tern_netsim::cluster::{Cluster, ClusterOptions, Site};
use tern_netsim::node::SimNode;
use tern_netsim::world::World;
use tokio::time::timeout;

/// A client that does not get there by then never will.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A device: its host, and what survives a killed app.
pub struct Device {
    pub user: UserId,
    pub host: SimNode,
    store: MemoryStore,
    pub client: Client,
    events: Events,
    pub seen: Seen,
}

/// What the device's user saw happen.
#[derive(Default)]
pub struct Seen {
    pub sent: BTreeSet<MessageId>,
    pub stable: BTreeSet<MessageId>,
    /// How often each message was put into the timeline.
    pub shown: BTreeMap<MessageId, u32>,
    pub reoffered: usize,
    /// When it was live, and where.
    pub live: Vec<(Duration, String)>,
    /// Kicks; the application connects again, as it knows of no second process with its store.
    pub kicked: usize,
    pub bad: Vec<Event>,
    /// When the messages of others came, by their text.
    pub arrived: BTreeMap<String, Duration>,
}

impl Device {
    pub fn new(world: &World, cluster: &Cluster, name: &str, place: &str, ip: Ipv4Addr) -> Self {
        Self::of(cluster, name, world.add_host(&format!("{name}-phone"), place, ip).unwrap())
    }

    /// The same on a host that exists.
    pub fn of(cluster: &Cluster, name: &str, host: SimNode) -> Self {
        let user = UserId::new(name).unwrap();
        let store = MemoryStore::new(user.clone(), InstallId::new(&format!("{name}-install")).unwrap());
        let client = open(cluster, &user, &host, &store);
        let events = client.events();
        Self { user, host, store, client, events, seen: Seen::default() }
    }

    /// The app is killed; its store keeps what it had.
    pub async fn kill(&mut self) {
        self.look(Duration::ZERO);
        self.host.kill().await;
        self.host.restart();
    }

    pub fn reopen(&mut self, cluster: &Cluster) {
        self.client = open(cluster, &self.user, &self.host, &self.store);
        self.events = self.client.events();
    }

    pub fn send(&self, peer: &Device, text: &str) {
        self.with(peer).send(Draft::text(text)).unwrap();
    }

    pub fn with(&self, peer: &Device) -> Conversation {
        self.client.direct(&peer.user).unwrap()
    }

    pub fn look(&mut self, now: Duration) {
        while let Some(event) = self.events.try_next() {
            match event {
                Event::Message(change) if !matches!(change.what, Placed::Moved { .. } | Placed::Erased) => {
                    *self.seen.shown.entry(change.id).or_default() += 1;
                    let message = self.client.message(change.id).unwrap();
                    if let Some(message) = message.filter(|m| m.by.user != self.user) {
                        self.seen.arrived.insert(String::from_utf8_lossy(&message.body).into_owned(), now);
                    }
                }
                Event::Sent { id, .. } => {
                    self.seen.sent.insert(id);
                }
                Event::Stable { id, .. } => {
                    self.seen.stable.insert(id);
                }
                Event::ReOffered { count, .. } => self.seen.reoffered += count,
                Event::Connection(ConnectionState::Live { edge, transport, .. }) => {
                    let edge = format!("{edge} by {}", transport.name());
                    if self.seen.live.last().is_none_or(|(_, before)| *before != edge) {
                        self.seen.live.push((now, edge));
                    }
                }
                Event::Kicked { .. } => {
                    self.seen.kicked += 1;
                    self.client.reconnect().unwrap();
                }
                Event::Message(_) | Event::Connection(_) | Event::Renamed { .. } => {}
                Event::Read { .. } | Event::PeerRead { .. } => {}
                bad => self.seen.bad.push(bad),
            }
        }
    }

    /// What both wrote, in order: (sender, n, text).
    pub fn timeline(&self, peer: &Device) -> Vec<(String, u64, String)> {
        let mut messages = self.with(peer).timeline(usize::MAX).unwrap().messages;
        messages.retain(|m| m.kind == 0);
        let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
        messages.iter().map(|m| (m.by.user.as_str().to_owned(), m.by.n, text(&m.body))).collect()
    }
}

fn open(cluster: &Cluster, user: &UserId, host: &SimNode, store: &MemoryStore) -> Client {
    let env = host.env();
    let tokens = cluster.tokens(user, Arc::clone(&env.clock));
    Client::builder(cluster.client_config(user, "us"))
        .local_store(Box::new(store.clone()))
        .token_provider(tokens)
        .env(env)
        .build()
        .unwrap()
}

/// Waits until the devices say so, looking every 10 ms.
pub async fn until(world: &World, what: &str, devices: &mut [Device], done: impl Fn(&[Device]) -> bool) {
    let waiting = timeout(PATIENCE, async {
        loop {
            devices.iter_mut().for_each(|device| device.look(world.elapsed()));
            if done(devices) {
                return;
            }
            tokio::time::sleep(ms(10)).await;
        }
    });
    if waiting.await.is_err() {
        let states = devices.iter().map(|d| {
            let (live, bad) = (&d.seen.live, &d.seen.bad);
            format!("{}: {:?}, waiting {:?}, {live:?}, {bad:?}", d.user, d.client.connection(), d.client.waiting())
        });
        panic!("waited {PATIENCE:?} for {what}\n{}", states.collect::<Vec<_>>().join("\n"));
    }
}

/// All own messages are stable.
pub fn calm(devices: &[Device]) -> bool {
    devices.iter().all(|device| device.client.waiting() == (0, 0))
}

/// Regions eu, us and ap, serving clients in Germany, America and Japan.
pub async fn three_regions(world: &World) -> Cluster {
    three_regions_with(world, ClusterOptions::default()).await
}

pub async fn three_regions_with(world: &World, options: ClusterOptions) -> Cluster {
    let between = [("eu", "us", 47), ("eu", "ap", 80), ("us", "ap", 110)];
    // Germany is 5 ms from eu, Japan 35 ms from ap; farther regions are reached by way of those.
    let germany = [("germany", "eu", 5), ("germany", "us", 52), ("germany", "ap", 85)];
    let japan = [("japan", "ap", 35), ("japan", "eu", 115), ("japan", "us", 85)];
    let america = [("america", "us", 8), ("america", "eu", 50), ("america", "ap", 105)];
    for (a, b, latency_ms) in between.into_iter().chain(germany).chain(japan).chain(america) {
        world.set_latency(a, b, ms(latency_ms));
    }
    let site = |name: &str, number, at| Site { name: name.to_owned(), number, ip: Ipv4Addr::new(10, number, 0, 1), at };
    let sites = [site("eu", 1, (50.11, 8.68)), site("us", 2, (39.04, -77.49)), site("ap", 3, (1.35, 103.82))];
    let geo = Some(Arc::new(Geo::shipped().unwrap()));
    let mut cluster = Cluster::new(world, &sites, ClusterOptions { geo, ..options }).unwrap();
    for site in &sites {
        cluster.start(&site.name).await.unwrap();
    }
    // Regions learn of each other's edges with the first exchanges of loads.
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster
}

/// Nothing acked is lost, nothing is shown twice, and all devices show the same order. `sent`: (from, to, text).
pub fn check(devices: &[Device], sent: &[(usize, usize, String)]) {
    for (a, device) in devices.iter().enumerate() {
        for (b, other) in devices.iter().enumerate().filter(|(b, _)| *b != a) {
            let (mine, theirs) = (device.timeline(other), other.timeline(device));
            assert_eq!(mine, theirs, "{} and {} disagree", device.user, other.user);
            let own = mine.iter().filter(|(user, ..)| user == device.user.as_str()).map(|(_, _, text)| text);
            let wanted = sent.iter().filter(|(from, to, _)| (*from, *to) == (a, b)).map(|(_, _, text)| text);
            let (own, wanted): (Vec<_>, Vec<_>) = (own.collect(), wanted.collect());
            assert_eq!(own, wanted, "of {} to {}: lost, doubled or out of order", device.user, other.user);
        }
        let twice: Vec<_> = device.seen.shown.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "shown to {} more than once: {twice:?}", device.user);
        assert!(device.seen.bad.is_empty(), "{}: {:?}", device.user, device.seen.bad);
    }
}
