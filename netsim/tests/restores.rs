//! A region that comes back with last night's disk, or with none, while everybody goes on writing (R13, R16).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

#[allow(dead_code, reason = "apps are not killed here")]
#[path = "support/devices.rs"]
mod devices;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use devices::{Device, calm, check, ms, three_regions, three_regions_with, until};
use tern_client::Erased;
use tern_core::clock::Entropy;
use tern_core::codes::Code;
use tern_core::edge_api::{CorePort, Down, DownBody, EdgePort, SendRequest, Up};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, InstallId, UserId};
use tern_core::store::{Range, Store};
use tern_core::wire::v1::{self, frame::Body};
use tern_netsim::cluster::{Cluster, ClusterOptions};
use tern_netsim::random::derive;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tern_replication::store::memory::Latency;
use tokio::time::{sleep, timeout};

/// Name, place, and an address there.
const PEOPLE: [(&str, &str, [u8; 4]); 5] = [
    ("alice", "germany", [91, 0, 0, 1]),
    ("bob", "america", [8, 8, 8, 8]),
    ("carol", "japan", [126, 0, 0, 1]),
    ("dave", "germany", [91, 0, 0, 2]),
    ("erin", "america", [8, 8, 8, 9]),
];

/// Runs a scenario with a seed; `TERN_STORMS=100` with as many more.
fn sim<Fut>(seed: u64, scenario: impl Fn(World) -> Fut + Copy + Send + 'static)
where
    Fut: Future<Output = ()>,
{
    let more: u64 = std::env::var("TERN_STORMS").map_or(0, |text| text.parse().expect("a number"));
    for seed in (1000..1000 + more).chain([seed]) {
        run(seed, move |world| async move { timeout(ms(3_600_000), scenario(world)).await.expect("too late") })
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// People who write to each other all the time.
struct Talk {
    world: World,
    devices: Vec<Device>,
    /// (from, to, text).
    sent: Vec<(usize, usize, String)>,
    /// When each text was sent.
    at: BTreeMap<String, Duration>,
    rng: Entropy,
}

impl Talk {
    async fn new(world: &World, cluster: &Cluster) -> Self {
        let device =
            |(name, place, ip): &(&str, &str, [u8; 4])| Device::new(world, cluster, name, place, Ipv4Addr::from(*ip));
        let mut devices: Vec<Device> = PEOPLE.iter().map(device).collect();
        until(world, "everybody to be live", &mut devices, |all| all.iter().all(|d| !d.seen.live.is_empty())).await;
        let rng = Entropy::seeded(derive(world.seed(), "talk", 0));
        Self { world: world.clone(), devices, sent: Vec::new(), at: BTreeMap::new(), rng }
    }

    fn say(&mut self, from: usize, to: usize) {
        let text = format!("{from} to {to}: {}", self.sent.len());
        self.devices[from].send(&self.devices[to], &text);
        self.at.insert(text.clone(), self.world.elapsed());
        self.sent.push((from, to, text));
    }

    /// One message every so often, each by the next of them.
    async fn go_on(&mut self, duration: Duration, every: Duration) {
        let end = self.world.elapsed() + duration;
        while self.world.elapsed() < end {
            let from = self.sent.len() % self.devices.len();
            let to = (from + 1 + self.rng.below(self.devices.len() as u64 - 1) as usize) % self.devices.len();
            self.say(from, to);
            let next = self.world.elapsed() + every;
            while self.world.elapsed() < next {
                sleep(ms(10).min(every)).await;
                let now = self.world.elapsed();
                self.devices.iter_mut().for_each(|device| device.look(now));
            }
        }
    }

    /// How long messages took that were sent within a span of time, ascending; of some of the receivers.
    fn latencies(&self, from: Duration, to: Duration, of: &[usize]) -> Vec<Duration> {
        let sent = self
            .sent
            .iter()
            .filter(|(a, b, text)| of.contains(a) && of.contains(b) && (from..to).contains(&self.at[text]));
        let took = sent.map(|(_, to, text)| self.devices[*to].seen.arrived[text] - self.at[text]);
        let mut took: Vec<_> = took.collect();
        took.sort();
        took
    }

    async fn settle(&mut self) {
        let sent = self.sent.clone();
        until(&self.world, "all messages everywhere", &mut self.devices, |devices| {
            calm(devices) && sent.iter().all(|(_, to, text)| devices[*to].seen.arrived.contains_key(text))
        })
        .await;
    }
}

/// A region's logs: heads, and all entries.
async fn logs(cluster: &Cluster, region: &str) -> BTreeMap<ConvId, (Heads, Vec<Arc<Entry>>)> {
    let store = cluster.store(region).unwrap();
    let mut all = BTreeMap::new();
    for (conversation, heads) in store.conversations(None, usize::MAX).await.unwrap() {
        let mut entries = Vec::new();
        for (origin, head) in &heads {
            let (origin, to) = (*origin, *head);
            let (max_entries, max_bytes) = (usize::MAX, usize::MAX);
            let range = Range { conversation, origin, from: 1, to, max_entries, max_bytes, backwards: false };
            entries.extend(store.range(range).await.unwrap());
        }
        all.insert(conversation, (heads, entries));
    }
    all
}

/// All regions hold the same, each message once, and none with one of these bodies.
async fn same_everywhere(cluster: &Cluster, sent: usize, gone: &BTreeSet<Bytes>) {
    let settled = async {
        loop {
            let all = [logs(cluster, "eu").await, logs(cluster, "us").await, logs(cluster, "ap").await];
            if all[0] == all[1] && all[1] == all[2] {
                return all.into_iter().next().unwrap();
            }
            sleep(ms(500)).await;
        }
    };
    let all = timeout(Duration::from_secs(120), settled).await.expect("the same in all regions");
    let entries = || all.values().flat_map(|(_, entries)| entries);
    let texts: BTreeSet<_> = entries().filter(|e| e.kind == 0).map(|e| (e.peer.clone(), e.by.clone())).collect();
    assert_eq!(texts.len(), sent);
    let left: Vec<_> = entries().filter(|e| gone.contains(&e.body)).collect();
    assert!(left.is_empty(), "erased, and there again: {left:?}");
}

/// What somebody who asks a region at its core is told.
#[derive(Debug, Default)]
struct Asking {
    /// By connection whether it was welcomed; requests that were acked.
    told: Mutex<(BTreeMap<u64, bool>, BTreeSet<u32>)>,
}

impl EdgePort for Asking {
    fn deliver(&self, downs: Vec<Down>) {
        let mut told = self.told.lock().unwrap();
        for down in downs {
            match down.body {
                DownBody::Last(refusal) => {
                    assert_eq!(refusal.code, Code::Refilling);
                    told.0.insert(down.conn, false);
                }
                DownBody::Frame(frame) if matches!(frame.body, Some(Body::Welcome(_))) => {
                    told.0.insert(down.conn, true);
                }
                DownBody::Ack { req, .. } => {
                    told.1.insert(req);
                }
                _ => {}
            }
        }
    }
}

struct Line {
    asking: Arc<Asking>,
    core: Arc<dyn CorePort>,
    next: u64,
}

impl Line {
    fn to(cluster: &Cluster, region: &str) -> Self {
        let asking = Arc::new(Asking::default());
        let core = cluster.core(region).unwrap().attach_edge(Arc::clone(&asking) as _);
        Self { asking, core, next: 1 }
    }

    /// Says Hello as this user; the connection's number.
    fn hello(&mut self, name: &str) -> u64 {
        let conn = self.next;
        self.next += 1;
        self.core.submit(vec![Up::Open {
            conn,
            req: 1,
            user: UserId::new(name).unwrap(),
            install: InstallId::new("probe").unwrap(),
            hello: Box::new(v1::Hello { versions: vec![1], ..v1::Hello::default() }),
            address: "192.0.2.1:1".into(),
            transport: "quic",
            token_expires_ms: u64::MAX,
            token_issued_ms: 0,
        }]);
        conn
    }

    fn welcomed(&self, conn: u64) -> Option<bool> {
        self.asking.told.lock().unwrap().0.get(&conn).copied()
    }
}

/// A region is set back while the others go on: it serves nobody before it has taken over what it missed.
async fn restored(world: World) {
    let mut cluster = three_regions(&world).await;
    let mut talk = Talk::new(&world, &cluster).await;
    talk.go_on(ms(6_000), ms(50)).await;
    let backup = cluster.backup("eu").unwrap();
    let before = logs(&cluster, "eu").await;
    talk.go_on(ms(6_000), ms(50)).await;
    talk.settle().await;

    // What was in the backup is erased after it; one's sender is near the region, the other's is not.
    let mut gone = BTreeSet::new();
    for from in [0, 2] {
        let held = |text: &str| before.values().flat_map(|(_, e)| e).any(|e| e.body == text.as_bytes());
        let (_, to, text) = talk.sent.iter().find(|(a, _, text)| *a == from && held(text)).unwrap().clone();
        let conversation = talk.devices[from].with(&talk.devices[to]);
        let all = conversation.timeline(usize::MAX).unwrap().messages;
        let message = all.iter().find(|m| m.body == text.as_bytes()).unwrap().id;
        assert!(matches!(conversation.erase(message), Ok(Erased::Asked(_))));
        gone.insert(Bytes::from(text));
    }
    talk.go_on(ms(3_000), ms(50)).await;
    talk.settle().await;

    for round in 0..2 {
        cluster.kill("eu").await.unwrap();
        cluster.restore("eu", &backup).await.unwrap();
        talk.go_on(ms(4_000), ms(50)).await;
        let missed = logs(&cluster, "us").await;
        cluster.restart("eu").await.unwrap();
        let mut line = Line::to(&cluster, "eu");
        let (mut refused, mut conn) = (0, line.hello("probe"));
        loop {
            talk.go_on(ms(50), ms(50)).await;
            match line.welcomed(conn) {
                Some(true) => break,
                Some(false) => {
                    refused += 1;
                    conn = line.hello("probe");
                }
                None => {}
            }
            assert!(refused < 3_000, "it serves nobody any more");
        }
        assert!(refused > 0, "round {round}: it served at once");
        let here = logs(&cluster, "eu").await;
        for (conversation, (heads, _)) in &missed {
            let (held, entries) = &here[conversation];
            let lacks: Vec<_> = heads.iter().filter(|(o, seq)| held.get(o).is_none_or(|h| h < *seq)).collect();
            assert!(lacks.is_empty(), "round {round}: it serves and lacks {lacks:?}");
            assert!(entries.iter().all(|e| !gone.contains(&e.body)), "round {round}: it serves what was erased");
        }
        talk.go_on(ms(5_000), ms(50)).await;
    }
    talk.settle().await;
    let now = |text: &String| if gone.contains(text.as_bytes()) { String::new() } else { text.clone() };
    let sent: Vec<_> = talk.sent.iter().map(|(from, to, text)| (*from, *to, now(text))).collect();
    check(&talk.devices, &sent);
    same_everywhere(&cluster, sent.len(), &gone).await;
}

#[test]
fn a_region_that_is_set_back_to_last_nights_backup_serves_only_what_is_so_now_and_nothing_is_lost() {
    sim(1, restored);
}

/// What is there before anything else: one user's messages to so many others.
async fn fill(cluster: &Cluster, users: u32) {
    let mut line = Line::to(cluster, "eu");
    let conn = line.hello("archive");
    let salt = cluster.direct_salt();
    let archive = UserId::new("archive").unwrap();
    for n in 0..users {
        let peer = UserId::new(&format!("user-{n}")).unwrap();
        let send = SendRequest {
            conversation: ConvId::direct(&salt, &archive, &peer),
            peer: Some(peer),
            n: 1,
            floor: 1,
            seen_hlc: 0,
            kind: 0,
            body: Bytes::from(vec![b'x'; 2_000]),
            wall_ms: 0,
            offer: None,
            membership: None,
            named: None,
        };
        line.core.submit(vec![Up::Send { conn, req: n + 10, send }]);
        if n % 200 == 199 || n + 1 == users {
            let acked = async {
                while !line.asking.told.lock().unwrap().1.contains(&(n + 10)) {
                    sleep(ms(10)).await;
                }
            };
            timeout(Duration::from_secs(60), acked).await.expect("an ack");
        }
    }
}

fn at(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// A region gets an empty disk while 50 messages a second go on.
async fn refilled_under_load(world: World) {
    const FILLED: u32 = 2_000;
    let disk = Latency { sync: ms(2), read: Duration::from_micros(200) };
    let options = ClusterOptions { disk, ..ClusterOptions::default() };
    let mut cluster = three_regions_with(&world, options).await;
    fill(&cluster, FILLED).await;
    let mut talk = Talk::new(&world, &cluster).await;
    let near = [0, 1, 3, 4]; // all but carol, whose region it is
    // What the filling has left behind is over first.
    talk.go_on(ms(8_000), ms(20)).await;
    talk.settle().await;
    let started = world.elapsed();
    talk.go_on(ms(8_000), ms(20)).await;
    talk.settle().await;
    let calm_times = talk.latencies(started, world.elapsed(), &near);

    cluster.kill("ap").await.unwrap();
    cluster.destroy_disk("ap").unwrap();
    talk.go_on(ms(3_000), ms(20)).await;
    let from = world.elapsed();
    cluster.restart("ap").await.unwrap();
    // Carol can't reach the others: whatever she gets comes through the region that is being refilled.
    for other in ["eu", "us"] {
        world.cut("japan", other);
    }
    let mut waited = 0;
    while cluster.core("ap").unwrap().refilling().0 > 0 || waited < 2_000 {
        talk.go_on(ms(100), ms(20)).await;
        waited += 100;
        assert!(waited < 120_000, "it is not refilled");
    }
    let until = world.elapsed();
    talk.go_on(ms(3_000), ms(20)).await;
    for other in ["eu", "us"] {
        world.heal("japan", other);
    }
    talk.settle().await;
    let busy_times = talk.latencies(from, until, &near);
    let to_carol = talk.latencies(from + ms(5_000), until.max(from + ms(6_000)), &[0, 1, 2, 3, 4]);
    println!(
        "{} entries of 2 kB refilled within {:?}, 50 messages/s: p50/p99/max {:?}/{:?}/{:?}; before {:?}/{:?}/{:?}; \
         with her whose region it is {:?}/{:?}/{:?}",
        FILLED,
        until - from,
        at(&busy_times, 50),
        at(&busy_times, 99),
        at(&busy_times, 100),
        at(&calm_times, 50),
        at(&calm_times, 99),
        at(&calm_times, 100),
        at(&to_carol, 50),
        at(&to_carol, 99),
        at(&to_carol, 100),
    );
    assert!(at(&busy_times, 99) <= at(&calm_times, 99) + ms(50), "live traffic waits for the refill");
    check(&talk.devices, &talk.sent);
    same_everywhere(&cluster, talk.sent.len() + FILLED as usize, &BTreeSet::new()).await;
}

#[test]
fn an_empty_disk_is_refilled_under_load_and_live_messages_do_not_wait_for_it() {
    sim(2, refilled_under_load);
}
