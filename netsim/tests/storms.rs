//! Random kills, cuts and clocks over three regions: what the stores hold when all has calmed down.
//!
//! The senders are scripted and do the least that the protocol asks of a client that stays with its region:
//! they keep what is not acked, and send it again in order, with the lowest un-acked n as floor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tern_core::clock::Entropy;
use tern_core::edge_api::{CorePort, Down, DownBody, EdgePort, SendRequest, Up};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, InstallId, Place, UserId};
use tern_core::store::{Range, Store};
use tern_core::wire::v1::{self, frame::Body};
use tern_netsim::cluster::{Cluster, ClusterOptions, Site};
use tern_netsim::node::HostState;
use tern_netsim::random::derive;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::time::timeout;

const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// (user, region, writes to).
const USERS: [(&str, &str, &str); 4] =
    [("alice", "eu", "bob"), ("bob", "ap", "alice"), ("carol", "us", "alice"), ("dave", "eu", "carol")];
const STEPS: u32 = 150;
/// Seeds of an ordinary run; `TERN_STORMS=1000` runs that many.
const SEEDS: u64 = 25;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// Keeps acks and the welcome; everything else is the stores' matter here.
#[derive(Debug, Default)]
struct Edge(Mutex<(bool, Vec<(u32, Place)>)>);

impl EdgePort for Edge {
    fn deliver(&self, downs: Vec<Down>) {
        let mut told = self.0.lock().unwrap();
        for down in downs {
            match down.body {
                DownBody::Ack { req, ack } => told.1.push((req, ack.place)),
                DownBody::Frame(frame) if matches!(frame.body, Some(Body::Welcome(_))) => told.0 = true,
                _ => {}
            }
        }
    }
}

struct Sender {
    name: &'static str,
    region: &'static str,
    peer: &'static str,
    conversation: ConvId,
    sent: u32,
    acked: BTreeMap<u32, Place>,
    line: Option<(Arc<Edge>, Arc<dyn CorePort>)>,
}

impl Sender {
    fn open(&mut self, cluster: &Cluster) {
        let Some(core) = cluster.core(self.region) else { return };
        let edge = Arc::new(Edge::default());
        let core = core.attach_edge(Arc::clone(&edge) as _);
        let hello = v1::Hello { versions: vec![1], foreground: true, race: 1, ..v1::Hello::default() };
        core.submit(vec![Up::Open {
            conn: 1,
            req: 1,
            user: user(self.name),
            install: InstallId::new("phone").unwrap(),
            hello: Box::new(hello),
            address: "192.0.2.1:1".into(),
            transport: "quic",
            token_expires_ms: u64::MAX,
            token_issued_ms: 0,
        }]);
        self.line = Some((edge, core));
    }

    fn text(&self, n: u32) -> Bytes {
        Bytes::from(format!("{} to {}: {n}", self.name, self.peer))
    }

    /// Takes the acks that came.
    fn listen(&mut self) {
        let Some((edge, _)) = &self.line else { return };
        for (n, place) in edge.0.lock().unwrap().1.drain(..) {
            // A resend is acked with the place of the first.
            let before = self.acked.insert(n, place);
            assert!(
                before.is_none_or(|before| before == place),
                "{}: {n} acked at {before:?} and {place:?}",
                self.name
            );
        }
    }

    /// Sends everything that is not acked, in order.
    fn resend(&mut self) {
        self.listen();
        let Some((edge, core)) = &self.line else { return };
        if !edge.0.lock().unwrap().0 {
            return;
        }
        let waiting: Vec<u32> = (1..=self.sent).filter(|n| !self.acked.contains_key(n)).collect();
        let Some(floor) = waiting.first().copied() else { return };
        let ups = waiting.into_iter().map(|n| Up::Send {
            conn: 1,
            req: n,
            send: SendRequest {
                conversation: self.conversation,
                peer: Some(user(self.peer)),
                n: u64::from(n),
                floor: u64::from(floor),
                seen_hlc: 0,
                kind: 0,
                body: self.text(n),
                wall_ms: 0,
                offer: None,
                membership: None,
                named: None,
            },
        });
        core.submit(ups.collect());
    }
}

/// All logs of a conversation in one store, by origin.
async fn logs(store: &dyn Store, conversation: ConvId) -> (Heads, Vec<Arc<Entry>>) {
    let image = store.conversation(conversation).await.unwrap();
    let mut all = Vec::new();
    for (origin, head) in &image.heads {
        let range = Range {
            conversation,
            origin: *origin,
            from: 1,
            to: *head,
            max_entries: usize::MAX,
            max_bytes: usize::MAX,
            backwards: false,
        };
        let entries = store.range(range).await.unwrap();
        let seqs: Vec<u64> = entries.iter().map(|entry| entry.place.seq).collect();
        assert_eq!(seqs, (1..=*head).collect::<Vec<_>>(), "{origin} has holes");
        all.extend(entries);
    }
    (image.heads, all)
}

async fn storm(
    world: World,
    seed: u64,
) -> (Vec<String>, tern_netsim::packets::Shape, Vec<tern_netsim::packets::Packet>) {
    let mut story = Vec::new();
    world.set_latency("eu", "us", ms(47));
    world.set_latency("eu", "ap", ms(80));
    world.set_latency("us", "ap", ms(110));
    let sites: Vec<Site> = (1..)
        .zip(REGIONS)
        .map(|(number, name)| Site {
            name: name.to_owned(),
            number,
            ip: Ipv4Addr::new(10, number, 0, 1),
            at: (0.0, 0.0),
        })
        .collect();
    let mut cluster = Cluster::new(&world, &sites, ClusterOptions::default()).unwrap();
    for name in REGIONS {
        cluster.start(name).await.unwrap();
    }
    let salt = cluster.direct_salt();
    let mut senders = USERS.map(|(name, region, peer)| Sender {
        name,
        region,
        peer,
        conversation: ConvId::direct(&salt, &user(name), &user(peer)),
        sent: 0,
        acked: BTreeMap::new(),
        line: None,
    });
    for sender in &mut senders {
        sender.open(&cluster);
    }
    let rng = Entropy::seeded(derive(seed, "storm", 0));
    let pick = |rng: &Entropy| REGIONS[rng.below(3) as usize];
    for step in 0..STEPS {
        tokio::time::sleep(ms(rng.below(120))).await;
        match rng.below(100) {
            0..60 => {
                let sender = &mut senders[rng.below(4) as usize];
                sender.sent += 1 + rng.below(4) as u32;
                sender.resend();
            }
            60..72 => senders.iter_mut().for_each(Sender::resend),
            72..79 => {
                let (a, b) = (pick(&rng), pick(&rng));
                story.push(format!("{step}: cut {a} {b}"));
                if rng.below(2) == 0 {
                    world.cut(a, b);
                } else {
                    world.blackhole(a, b);
                }
            }
            79..88 => {
                let (a, b) = (pick(&rng), pick(&rng));
                story.push(format!("{step}: heal {a} {b}"));
                world.heal(a, b);
            }
            88..92 => {
                let name = pick(&rng);
                if cluster.host(name).unwrap().state() == HostState::Up {
                    story.push(format!("{step}: kill {name}"));
                    senders.iter_mut().for_each(Sender::listen);
                    cluster.kill(name).await.unwrap();
                    senders.iter_mut().filter(|s| s.region == name).for_each(|s| s.line = None);
                }
            }
            92..98 => {
                let name = pick(&rng);
                if cluster.host(name).unwrap().state() != HostState::Up {
                    story.push(format!("{step}: restart {name}"));
                    cluster.restart(name).await.unwrap();
                    senders.iter_mut().filter(|s| s.region == name).for_each(|s| s.open(&cluster));
                }
            }
            _ => {
                let skew = rng.below(1000).cast_signed() - 500;
                let name = pick(&rng);
                story.push(format!("{step}: clock of {name} {skew} ms"));
                cluster.host(name).unwrap().set_clock_skew_ms(skew);
            }
        }
    }
    for name in REGIONS {
        for other in REGIONS {
            world.heal(name, other);
        }
        if cluster.host(name).unwrap().state() != HostState::Up {
            cluster.restart(name).await.unwrap();
            senders.iter_mut().filter(|s| s.region == name).for_each(|s| s.open(&cluster));
        }
    }
    let calm = timeout(Duration::from_secs(60), async {
        while senders.iter().any(|s| s.acked.len() < s.sent as usize) {
            senders.iter_mut().for_each(Sender::resend);
            tokio::time::sleep(ms(500)).await;
        }
    });
    if calm.await.is_err() {
        let open: Vec<_> = senders.iter().map(|s| (s.name, s.sent, s.acked.len())).collect();
        panic!("seed {seed}: not all is acked a minute after the storm: {open:?}\n{}", story.join("\n"));
    }
    let conversations: BTreeSet<ConvId> = senders.iter().map(|s| s.conversation).collect();
    for conversation in conversations {
        let settled = timeout(Duration::from_secs(60), async {
            loop {
                let mut all = Vec::new();
                for name in REGIONS {
                    all.push(logs(cluster.store(name).unwrap(), conversation).await);
                }
                if all.iter().all(|one| *one == all[0]) {
                    return all.swap_remove(0);
                }
                tokio::time::sleep(ms(500)).await;
            }
        });
        let Ok((heads, entries)) = settled.await else {
            let mut lines = Vec::new();
            for name in REGIONS {
                lines.push(format!("{name}: {:?}", logs(cluster.store(name).unwrap(), conversation).await.0));
            }
            panic!(
                "seed {seed}: {conversation} differs a minute after the storm\n{}\n{}",
                lines.join("\n"),
                story.join("\n")
            );
        };
        let places: BTreeMap<_, _> = entries.iter().map(|e| ((e.place.origin, e.place.seq), e)).collect();
        for sender in senders.iter().filter(|s| s.conversation == conversation) {
            for (n, place) in &sender.acked {
                let what = format!("seed {seed}: {} {n}, acked at {place:?}", sender.name);
                let entry = places.get(&(place.origin, place.seq)).unwrap_or_else(|| panic!("{what}, is nowhere"));
                assert_eq!((entry.place, &entry.body), (*place, &sender.text(*n)), "{what}");
            }
            let copies = entries.iter().filter(|e| e.by.user == user(sender.name)).count();
            assert_eq!(copies, sender.sent as usize, "seed {seed}: {} doubled or unasked", sender.name);
        }
        // Rows of both members follow in every region, within the time of a lazy write.
        tokio::time::sleep(Duration::from_secs(5)).await;
        for name in REGIONS {
            for sender in senders.iter().filter(|s| s.conversation == conversation) {
                let rows = cluster.store(name).unwrap().rows(user(sender.name)).await.unwrap();
                let row = rows.iter().find(|(id, _)| *id == conversation);
                let held = row.map(|(_, row)| &row.heads);
                assert_eq!(held, Some(&heads), "seed {seed}: {}'s row in {name}\n{}", sender.name, story.join("\n"));
            }
        }
    }
    (story, world.shape(), world.packets())
}

fn run_storm(seed: u64) -> (Vec<String>, tern_netsim::packets::Shape, Vec<tern_netsim::packets::Packet>) {
    run(seed, move |world| async move {
        timeout(Duration::from_secs(3600), storm(world, seed)).await.expect("an hour has passed")
    })
    .unwrap_or_else(|error| panic!("seed {seed}: {error}"))
}

#[test]
fn after_any_storm_all_stores_agree_and_hold_each_acked_message_once() {
    let (mut kills, mut cuts) = (0, 0);
    let seeds = std::env::var("TERN_STORMS").map_or(SEEDS, |text| text.parse().expect("TERN_STORMS is a number"));
    for seed in 0..seeds {
        let (story, ..) = run_storm(seed);
        kills += story.iter().filter(|line| line.contains("kill")).count();
        cuts += story.iter().filter(|line| line.contains("cut")).count();
    }
    // A storm that never blew shows nothing.
    assert!(kills as u64 >= seeds && cuts as u64 >= seeds, "{kills} kills, {cuts} cuts");
}

#[test]
fn storm_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let (_, shape, packets) = run_storm(seed);
    support::report(shape, &packets);
}

#[test]
fn a_storm_repeats_packet_by_packet() {
    support::run_twice("storm_of_a_child", 3, Duration::from_secs(300));
}
