//! Three regions over simulated links, with scripted edges: what is acked arrives everywhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tern_core::edge_api::{CorePort, Down, DownBody, EdgePort, SendRequest, Up};
use tern_core::ids::{ConvId, InstallId, Origin, Seq, UserId};
use tern_core::wire::v1::{self, frame::Body};
use tern_netsim::cluster::{Cluster, ClusterOptions, Site};
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::sync::Notify;
use tokio::time::timeout;

const MINUTE: Duration = Duration::from_secs(60);

fn sites() -> [Site; 3] {
    [("eu", 1), ("us", 2), ("ap", 3)].map(|(name, number)| Site {
        name: name.to_owned(),
        number,
        ip: Ipv4Addr::new(10, number, 0, 1),
        at: (0.0, 0.0),
    })
}

fn cluster(world: &World) -> Cluster {
    let ms = Duration::from_millis;
    world.set_latency("eu", "us", ms(47));
    world.set_latency("eu", "ap", ms(80));
    world.set_latency("us", "ap", ms(110));
    Cluster::new(world, &sites(), ClusterOptions::default()).unwrap()
}

/// What an edge was told, and an edge that keeps it.
#[derive(Debug, Default)]
struct Told {
    acks: BTreeMap<u32, (Origin, Seq)>,
    pushed: Vec<(Origin, Seq, Bytes)>,
    rev: u64,
    salt: Bytes,
    stable: BTreeMap<Origin, (Seq, u32)>,
    errors: Vec<String>,
}

#[derive(Debug, Default)]
struct Edge {
    told: Mutex<Told>,
    changed: Notify,
}

impl EdgePort for Edge {
    fn deliver(&self, downs: Vec<Down>) {
        let mut told = self.told.lock().unwrap();
        for down in downs {
            match down.body {
                DownBody::Ack { req, ack } => {
                    told.acks.insert(req, (ack.place.origin, ack.place.seq));
                }
                DownBody::Push(push) => {
                    told.rev = push.rev.0;
                    for entry in &push.entries {
                        told.pushed.push((entry.place.origin, entry.place.seq, entry.body.clone()));
                    }
                }
                DownBody::Page { .. } => {}
                DownBody::Frame(frame) => match frame.body {
                    Some(Body::Welcome(welcome)) => told.salt = welcome.direct_salt,
                    Some(Body::Stable(stable)) => {
                        let origin = stable.origin.unwrap();
                        let origin = Origin { region: origin.region as u8, era: origin.era };
                        told.stable.insert(origin, (stable.upto, stable.regions));
                    }
                    Some(Body::Error(error)) => told.errors.push(error.message),
                    _ => {}
                },
                DownBody::Last(refusal) => told.errors.push(refusal.to_string()),
            }
        }
        self.changed.notify_one();
    }
}

/// A user's one connection at one region.
struct Device {
    edge: Arc<Edge>,
    core: Arc<dyn CorePort>,
}

impl Device {
    async fn open(cluster: &Cluster, region: &str, user: &str) -> Self {
        let edge = Arc::new(Edge::default());
        let core = cluster.core(region).unwrap().attach_edge(Arc::clone(&edge) as _);
        let hello = v1::Hello { versions: vec![1], foreground: true, race: 1, ..v1::Hello::default() };
        let device = Self { edge, core };
        device.core.submit(vec![Up::Open {
            conn: 1,
            req: 1,
            user: UserId::new(user).unwrap(),
            install: InstallId::new(&format!("{user}-phone")).unwrap(),
            hello: Box::new(hello),
            address: "192.0.2.1:1".into(),
            transport: "quic",
            token_expires_ms: u64::MAX,
            token_issued_ms: 0,
        }]);
        device.wait("a welcome", |told| !told.salt.is_empty()).await;
        device.frame(Body::Commit(v1::Commit { race: 1, attempt: 0, order: 0 }));
        device
    }

    fn frame(&self, body: Body) {
        self.core.submit(vec![Up::Frame { conn: 1, frame: v1::Frame::new(0, body) }]);
    }

    fn send(&self, to: &str, from: &str, n: u32, floor: u64) {
        let user = |name| UserId::new(name).unwrap();
        let conversation = ConvId::direct(&self.edge.told.lock().unwrap().salt, &user(from), &user(to));
        let send = SendRequest {
            conversation,
            peer: Some(user(to)),
            n: u64::from(n),
            floor,
            seen_hlc: 0,
            kind: 0,
            body: Bytes::from(format!("message {n}")),
            wall_ms: 0,
            offer: None,
            membership: None,
            named: None,
        };
        self.core.submit(vec![Up::Send { conn: 1, req: n, send }]);
    }

    async fn wait(&self, what: &str, done: impl Fn(&Told) -> bool) {
        let waiting = async {
            while !done(&self.edge.told.lock().unwrap()) {
                self.edge.changed.notified().await;
            }
        };
        if timeout(MINUTE, waiting).await.is_err() {
            panic!("waited a minute for {what}; told: {:?}", self.edge.told.lock().unwrap());
        }
    }

    fn bodies(&self) -> BTreeSet<Bytes> {
        self.edge.told.lock().unwrap().pushed.iter().map(|(_, _, body)| body.clone()).collect()
    }
}

fn sim<Fut, T>(seed: u64, scenario: impl FnOnce(World) -> Fut + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    run(seed, |world| async move { timeout(MINUTE * 10, scenario(world)).await.expect("too late") }).unwrap()
}

#[test]
fn a_message_is_acked_near_its_sender_and_shown_a_one_way_trip_later() {
    sim(1, |world| async move {
        let mut cluster = cluster(&world);
        for site in sites() {
            cluster.start(&site.name).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let alice = Device::open(&cluster, "eu", "alice").await;
        let bob = Device::open(&cluster, "ap", "bob").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = world.elapsed();
        alice.send("bob", "alice", 1, 1);
        alice.wait("an ack", |told| told.acks.contains_key(&1)).await;
        assert!(world.elapsed() - before < Duration::from_millis(5));
        bob.wait("a push", |told| !told.pushed.is_empty()).await;
        let late = world.elapsed() - before;
        assert!((80..100).contains(&late.as_millis()), "{late:?}");
    });
}

#[test]
fn what_a_killed_region_acked_arrives_once_it_is_back() {
    sim(2, |world| async move {
        let mut cluster = cluster(&world);
        for site in sites() {
            cluster.start(&site.name).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let alice = Device::open(&cluster, "eu", "alice").await;
        let bob = Device::open(&cluster, "ap", "bob").await;
        for n in 1..=50 {
            alice.send("bob", "alice", n, u64::from(n.saturating_sub(5).max(1)));
            tokio::time::sleep(Duration::from_millis(20)).await;
            if n == 40 {
                world.cut("eu", "us");
                world.cut("eu", "ap");
            }
        }
        cluster.kill("eu").await.unwrap();
        let acked: BTreeSet<Bytes> =
            alice.edge.told.lock().unwrap().acks.keys().map(|n| Bytes::from(format!("message {n}"))).collect();
        assert!(acked.len() >= 45, "{}", acked.len());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(bob.bodies().len() < acked.len(), "nobody but the dead region had the tail");
        world.heal("eu", "us");
        world.heal("eu", "ap");
        cluster.restart("eu").await.unwrap();
        bob.wait("all that was acked", |told| {
            let bodies: BTreeSet<Bytes> = told.pushed.iter().map(|(_, _, body)| body.clone()).collect();
            acked.is_subset(&bodies)
        })
        .await;
    });
}

#[test]
fn a_cut_between_two_regions_is_bridged_or_made_good_when_it_heals() {
    sim(3, |world| async move {
        let mut cluster = cluster(&world);
        for site in sites() {
            cluster.start(&site.name).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let alice = Device::open(&cluster, "eu", "alice").await;
        let bob = Device::open(&cluster, "ap", "bob").await;
        world.cut("eu", "ap");
        for n in 1..=20 {
            alice.send("bob", "alice", n, 1);
        }
        alice.wait("20 acks", |told| told.acks.len() == 20).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        world.heal("eu", "ap");
        bob.wait("20 pushes", |told| told.pushed.len() >= 20).await;
        let told = bob.edge.told.lock().unwrap();
        let seqs: Vec<Seq> = told.pushed.iter().map(|(_, seq, _)| *seq).collect();
        assert_eq!(seqs, (1..=20).collect::<Vec<_>>());
    });
}

/// The receipt key is replaced by restarting one region after the other, three times: regions of neighbouring steps link,
/// and ship to each other what is sent meanwhile. One that was left out does not.
#[test]
fn regions_with_the_old_and_the_new_receipt_key_go_on_linking_through_a_rotation() {
    sim(4, |world| async move {
        let mut cluster = cluster(&world);
        for site in sites() {
            cluster.start(&site.name).await.unwrap();
        }
        let mut sent = 0;
        for step in [&[0, 7][..], &[7, 0], &[7]] {
            for site in sites() {
                cluster.stop(&site.name, Duration::from_secs(5)).await.unwrap();
                cluster.set_receipt_keys(&site.name, step).unwrap();
                cluster.restart(&site.name).await.unwrap();
                let mut devices = Vec::new();
                for (region, user) in [("eu", "alice"), ("us", "carol"), ("ap", "bob")] {
                    devices.push(Device::open(&cluster, region, user).await);
                }
                sent += 1;
                let [alice, carol, bob] = &devices[..] else { panic!("one device per region was opened") };
                alice.send("bob", "alice", sent, sent.into());
                carol.send("bob", "carol", sent, sent.into());
                bob.wait("both messages", |told| told.pushed.len() >= 2).await;
                alice.wait("another holder", |told| told.stable.values().any(|(_, regions)| *regions >= 2)).await;
                assert!(devices.iter().all(|d| d.edge.told.lock().unwrap().errors.is_empty()), "{step:?}");
            }
        }
        // Two steps apart: nobody links to it, and it serves its own clients alone.
        cluster.stop("ap", Duration::from_secs(5)).await.unwrap();
        cluster.set_receipt_keys("ap", &[0]).unwrap();
        cluster.restart("ap").await.unwrap();
        let alice = Device::open(&cluster, "eu", "alice").await;
        let bob = Device::open(&cluster, "ap", "bob").await;
        alice.send("bob", "alice", sent + 1, u64::from(sent) + 1);
        alice.wait("an ack", |told| told.acks.contains_key(&(sent + 1))).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(bob.bodies().is_empty(), "it came over a link that should not be");
    });
}

#[test]
fn regions_scenario_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let (shape, packets) = sim(seed, |world| async move {
        let mut cluster = cluster(&world);
        for site in sites() {
            cluster.start(&site.name).await.unwrap();
        }
        let alice = Device::open(&cluster, "eu", "alice").await;
        let bob = Device::open(&cluster, "ap", "bob").await;
        for n in 1..=30 {
            alice.send("bob", "alice", n, 1);
            bob.send("alice", "bob", n, 1);
            tokio::time::sleep(Duration::from_millis(30)).await;
            if n == 20 {
                cluster.kill("us").await.unwrap();
            }
        }
        cluster.restart("us").await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(bob.bodies().len(), 30);
        (world.shape(), world.packets())
    });
    support::report(shape, &packets);
}

#[test]
fn three_regions_under_a_kill_repeat_packet_by_packet() {
    support::run_twice("regions_scenario_of_a_child", 7, Duration::from_secs(300));
}
