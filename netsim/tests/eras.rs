//! Whole regions that stop, crash, restart together, and lose their disks (R13).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tern_core::edge_api::{CorePort, Down, DownBody, EdgePort, SendRequest, Up};
use tern_core::ids::{ConvId, InstallId, Origin, UserId};
use tern_core::store::Store;
use tern_core::wire::v1::{self, frame::Body};
use tern_netsim::cluster::{Cluster, ClusterOptions, Site};
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn cluster(world: &World) -> Cluster {
    let sites = [("eu", 1), ("us", 2), ("ap", 3)].map(|(name, number)| Site {
        name: name.to_owned(),
        number,
        ip: Ipv4Addr::new(10, number, 0, 1),
        at: (0.0, 0.0),
    });
    for (a, b, ms) in [("eu", "us", 47), ("eu", "ap", 80), ("us", "ap", 110)] {
        world.set_latency(a, b, Duration::from_millis(ms));
    }
    Cluster::new(world, &sites, ClusterOptions::default()).unwrap()
}

async fn start_all(cluster: &mut Cluster) {
    for name in ["eu", "us", "ap"] {
        cluster.start(name).await.unwrap();
    }
    sleep(SECOND * 3).await;
}

/// Acks by request.
#[derive(Debug, Default)]
struct Acks {
    acks: Mutex<BTreeMap<u32, Origin>>,
    changed: Notify,
}

impl EdgePort for Acks {
    fn deliver(&self, downs: Vec<Down>) {
        for down in downs {
            if let DownBody::Ack { req, ack } = down.body {
                self.acks.lock().unwrap().insert(req, ack.place.origin);
            }
        }
        self.changed.notify_one();
    }
}

/// Alice's connection to a region: each message goes to another user.
struct Alice {
    acks: Arc<Acks>,
    core: Arc<dyn CorePort>,
    salt: Vec<u8>,
}

impl Alice {
    fn at(cluster: &Cluster, region: &str) -> Self {
        let acks = Arc::new(Acks::default());
        let core = cluster.core(region).unwrap().attach_edge(Arc::clone(&acks) as _);
        core.submit(vec![
            Up::Open {
                conn: 1,
                req: 1,
                user: UserId::new("alice").unwrap(),
                install: InstallId::new("phone").unwrap(),
                hello: Box::new(v1::Hello { versions: vec![1], ..v1::Hello::default() }),
                address: "192.0.2.1:1".into(),
                transport: "quic",
                token_expires_ms: u64::MAX,
                token_issued_ms: 0,
            },
            Up::Frame { conn: 1, frame: v1::Frame::new(0, Body::Commit(v1::Commit::default())) },
        ]);
        Self { acks, core, salt: cluster.direct_salt() }
    }

    /// Writes to so many users, and gives the log that the messages lie in.
    async fn write(&self, users: std::ops::Range<u32>) -> Origin {
        let alice = UserId::new("alice").unwrap();
        let last = users.end - 1;
        for user in users {
            let peer = UserId::new(&format!("user-{user}")).unwrap();
            let send = SendRequest {
                conversation: ConvId::direct(&self.salt, &alice, &peer),
                peer: Some(peer),
                n: 1,
                floor: 1,
                seen_hlc: 0,
                kind: 0,
                body: Bytes::from(vec![b'x'; 128]),
                wall_ms: 0,
                offer: None,
                membership: None,
                named: None,
            };
            self.core.submit(vec![Up::Send { conn: 1, req: user + 10, send }]);
        }
        let waiting = async {
            while !self.acks.acks.lock().unwrap().contains_key(&(last + 10)) {
                self.acks.changed.notified().await;
            }
        };
        timeout(MINUTE, waiting).await.expect("an ack");
        self.acks.acks.lock().unwrap()[&(last + 10)]
    }
}

async fn heads(cluster: &Cluster, region: &str) -> Vec<(ConvId, tern_core::ids::Heads)> {
    cluster.store(region).unwrap().conversations(None, usize::MAX).await.unwrap()
}

async fn refilled(cluster: &Cluster, region: &str) {
    let done = async {
        sleep(SECOND * 2).await; // figures are taken once a second
        while cluster.core(region).unwrap().refilling().0 > 0 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(MINUTE * 5, done).await.expect("compared with all peers");
}

fn sim<Fut, T>(seed: u64, scenario: impl FnOnce(World) -> Fut + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    run(seed, |world| async move { timeout(MINUTE * 20, scenario(world)).await.expect("too late") }).unwrap()
}

#[test]
fn a_region_that_was_stopped_in_order_keeps_its_era_at_once() {
    sim(1, |world| async move {
        let mut cluster = cluster(&world);
        start_all(&mut cluster).await;
        let before = Alice::at(&cluster, "us").write(0..200).await;
        sleep(SECOND * 5).await;
        assert!(cluster.stop("us", SECOND * 5).await.unwrap());
        let (from, bytes) = (world.elapsed(), world.shape().bytes);
        cluster.restart("us").await.unwrap();
        assert!(world.elapsed() - from < SECOND, "{:?}", world.elapsed() - from);
        sleep(SECOND * 5).await;
        let spent = world.shape().bytes - bytes;
        assert!(spent < 60_000, "{spent} bytes: nobody fetched anything again");
        assert_eq!(Alice::at(&cluster, "us").write(200..201).await, before);
    });
}

#[test]
fn two_regions_that_restart_together_confirm_each_other() {
    sim(2, |world| async move {
        let mut cluster = cluster(&world);
        start_all(&mut cluster).await;
        let eu = Alice::at(&cluster, "eu").write(0..5).await;
        let ap = Alice::at(&cluster, "ap").write(5..9).await;
        sleep(SECOND * 5).await;
        cluster.stop("eu", SECOND * 5).await.unwrap();
        cluster.stop("ap", SECOND * 5).await.unwrap();
        cluster.restart_both("eu", "ap").await.unwrap();
        assert_eq!(Alice::at(&cluster, "eu").write(10..11).await, eu);
        assert_eq!(Alice::at(&cluster, "ap").write(11..12).await, ap);
    });
}

#[test]
fn a_restart_while_a_peer_is_down_for_maintenance_takes_a_new_era_within_five_seconds() {
    sim(3, |world| async move {
        let mut cluster = cluster(&world);
        start_all(&mut cluster).await;
        let before = Alice::at(&cluster, "eu").write(0..5).await;
        sleep(SECOND * 5).await;
        cluster.stop("ap", SECOND * 5).await.unwrap();
        cluster.stop("eu", SECOND * 5).await.unwrap();
        let from = world.elapsed();
        cluster.restart("eu").await.unwrap();
        let took = world.elapsed() - from;
        assert!(took >= SECOND * 5 && took < SECOND * 6, "{took:?}");
        assert_ne!(Alice::at(&cluster, "eu").write(5..6).await, before);
        cluster.restart("ap").await.unwrap();
        refilled(&cluster, "eu").await;
        refilled(&cluster, "ap").await;
        assert_eq!(heads(&cluster, "eu").await, heads(&cluster, "ap").await);
    });
}

#[test]
fn a_destroyed_disk_is_refilled_for_little_more_than_what_it_lost() {
    let conversations: u32 = std::env::var("TERN_REFILL").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    sim(4, move |world| async move {
        let mut cluster = cluster(&world);
        start_all(&mut cluster).await;
        let alice = Alice::at(&cluster, "eu");
        for first in (0..conversations).step_by(200) {
            alice.write(first..(first + 200).min(conversations)).await;
        }
        sleep(SECOND * 10).await;
        let whole = heads(&cluster, "us").await;
        assert_eq!(whole.len(), conversations as usize);
        for (what, lost) in [("all", conversations), ("none", 0), ("1 %", conversations / 100)] {
            if what == "1 %" {
                world.cut("eu", "ap");
                world.cut("us", "ap");
                let more = Alice::at(&cluster, "eu");
                more.write(conversations..conversations + lost).await;
                sleep(SECOND).await;
            }
            cluster.kill("ap").await.unwrap();
            if what == "all" {
                cluster.destroy_disk("ap").unwrap();
            }
            world.heal("eu", "ap");
            world.heal("us", "ap");
            let (from, bytes) = (world.elapsed(), world.shape().bytes);
            cluster.restart("ap").await.unwrap();
            refilled(&cluster, "ap").await;
            let (took, spent) = (world.elapsed() - from, world.shape().bytes - bytes);
            println!("refill of {conversations}, {what} differ: {spent} bytes, {took:?} with up to 2 s of polling");
            assert_eq!(heads(&cluster, "ap").await, heads(&cluster, "us").await);
            let bound = 200_000 + u64::from(lost) * 1_500;
            assert!(spent < bound, "{what}: {spent} bytes, bound {bound}");
            sleep(SECOND * 5).await;
        }
    });
}

#[test]
fn a_crash_of_either_side_in_the_middle_of_a_refill_is_made_good() {
    sim(5, |world| async move {
        let mut cluster = cluster(&world);
        start_all(&mut cluster).await;
        let alice = Alice::at(&cluster, "eu");
        alice.write(0..400).await;
        sleep(SECOND * 5).await;
        let whole = heads(&cluster, "us").await;
        cluster.kill("us").await.unwrap();
        cluster.kill("ap").await.unwrap();
        cluster.destroy_disk("ap").unwrap();
        cluster.restart("ap").await.unwrap();
        for victim in ["ap", "eu", "ap"] {
            sleep(Duration::from_millis(900)).await;
            cluster.kill(victim).await.unwrap();
            cluster.restart(victim).await.unwrap();
        }
        cluster.restart("us").await.unwrap();
        refilled(&cluster, "ap").await;
        assert_eq!(heads(&cluster, "ap").await, whole);
    });
}

#[test]
fn eras_scenario_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let (shape, packets) = sim(seed, |world| async move {
        let mut cluster = cluster(&world);
        start_all(&mut cluster).await;
        Alice::at(&cluster, "eu").write(0..30).await;
        sleep(SECOND * 4).await;
        cluster.stop("us", SECOND * 5).await.unwrap();
        cluster.stop("eu", SECOND * 5).await.unwrap();
        cluster.restart_both("eu", "us").await.unwrap();
        cluster.kill("ap").await.unwrap();
        cluster.destroy_disk("ap").unwrap();
        cluster.restart("ap").await.unwrap();
        refilled(&cluster, "ap").await;
        assert_eq!(heads(&cluster, "ap").await.len(), 30);
        (world.shape(), world.packets())
    });
    support::report(shape, &packets);
}

#[test]
fn stops_and_refills_repeat_packet_by_packet() {
    support::run_twice("eras_scenario_of_a_child", 7, Duration::from_secs(300));
}
