//! What can be done to nodes besides killing them: pauses, wrong clocks, and edges with hosts of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[allow(dead_code, reason = "apps are not killed here")]
#[path = "support/devices.rs"]
mod devices;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::{Device, calm, check, ms, three_regions_with, until};
use tern_client::ConnectionState;
use tern_core::entry::Entry;
use tern_core::ids::ConvId;
use tern_netsim::cluster::ClusterOptions;
use tern_netsim::run::run;
use tern_netsim::tap::Listener;
use tern_netsim::world::World;
use tokio::time::{sleep, timeout};

fn scenario<F: Future<Output = ()>>(seed: u64, what: impl FnOnce(World) -> F + Send + 'static) {
    run(seed, |world| async move { timeout(Duration::from_secs(3600), what(world)).await.expect("too late") }).unwrap();
}

#[test]
fn a_paused_node_stands_still_and_then_catches_up() {
    scenario(1, |world| async move {
        let host = world.add_host("a", "eu", Ipv4Addr::new(10, 1, 0, 1)).unwrap();
        let ticks = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&ticks);
        host.env().tasks.spawn(async move {
            loop {
                sleep(ms(100)).await;
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        sleep(ms(1050)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 10);
        host.set_paused(true);
        assert!(host.is_paused());
        sleep(ms(5000)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 10, "it must stand still");
        host.set_paused(false);
        sleep(ms(1050)).await;
        // The sleep that was due long ago ends at once; the ones after it take their time.
        assert_eq!(ticks.load(Ordering::Relaxed), 21);
        host.set_paused(true);
        host.kill().await;
        host.restart();
        assert!(!host.is_paused(), "a restart ends a pause");
    });
}

#[test]
fn a_clock_drifts_by_parts_per_million_and_jumps_by_milliseconds() {
    scenario(1, |world| async move {
        let host = world.add_host("a", "eu", Ipv4Addr::new(10, 1, 0, 1)).unwrap();
        let other = world.add_host("b", "eu", Ipv4Addr::new(10, 1, 0, 2)).unwrap();
        let ahead = || {
            let (mine, right) = (host.env().clock.wall_ms(), other.env().clock.wall_ms());
            mine.cast_signed() - right.cast_signed()
        };
        host.set_clock_drift_ppm(200);
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(ahead(), 200);
        host.set_clock_drift_ppm(-100);
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(ahead(), 100);
        host.set_clock_skew_ms(-600_000);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(ahead(), -600_000, "a jump ends the drift");
    });
}

#[derive(Debug, Default)]
struct Decided(Mutex<Vec<(String, Vec<u8>)>>);

impl Listener for Decided {
    fn decided(&self, region: &str, _: ConvId, entry: &Entry) {
        self.0.lock().unwrap().push((region.to_owned(), entry.body.to_vec()));
    }
}

fn at(device: &Device) -> String {
    match device.client.connection() {
        ConnectionState::Live { edge, .. } => edge,
        other => format!("{other:?}"),
    }
}

#[test]
fn clients_of_an_edge_that_is_drained_or_killed_go_on_at_another_one_of_its_region() {
    scenario(1, |world| async move {
        let mut cluster = three_regions_with(&world, ClusterOptions::default()).await;
        let decided = Arc::new(Decided::default());
        cluster.set_tap(Arc::clone(&decided) as _);
        cluster.kill("eu").await.unwrap();
        cluster.restart("eu").await.unwrap();
        for number in [2, 3] {
            let name = cluster.add_edge(&world, "eu", number).unwrap();
            cluster.start_edge(&name).await.unwrap();
        }
        sleep(Duration::from_secs(3)).await;
        let alice = Device::new(&world, &cluster, "alice", "germany", Ipv4Addr::new(91, 0, 0, 1));
        let bob = Device::new(&world, &cluster, "bob", "germany", Ipv4Addr::new(91, 0, 0, 2));
        let mut both = [alice, bob];
        let live = |both: &[Device]| both.iter().all(|device| at(device).starts_with("eu-e"));
        until(&world, "both to be live in eu", &mut both, live).await;
        let (mut sent, mut blows) = (Vec::new(), 0);
        for (round, blow) in ["drain", "kill", "power"].into_iter().enumerate() {
            let edge = at(&both[0]);
            let text = format!("before {blow} {round}");
            both[0].send(&both[1], &text);
            sent.push((0, 1, text));
            match blow {
                // A region's own edge is not one that this test can end.
                _ if edge.ends_with("-e1") => {}
                "drain" => cluster.drain_edge(&edge, Duration::from_secs(5)).unwrap(),
                blow => cluster.end_edge(&edge, blow == "power").await.unwrap(),
            }
            sleep(Duration::from_secs(40)).await;
            let text = format!("after {blow} {round}");
            both[0].send(&both[1], &text);
            sent.push((0, 1, text));
            until(&world, "what was written to be stable", &mut both, calm).await;
            blows += usize::from(!edge.ends_with("-e1"));
            assert!(edge.ends_with("-e1") || at(&both[0]) != edge, "alice must have gone from {edge}");
        }
        let arrived = |both: &[Device]| both[1].timeline(&both[0]).len() == 6;
        until(&world, "all messages to arrive", &mut both, arrived).await;
        check(&both, &sent);
        assert!(blows >= 2, "only {blows} edges were ended");
        let told = decided.0.lock().unwrap().clone();
        for (_, _, text) in &sent {
            assert!(told.contains(&("eu".to_owned(), text.as_bytes().to_vec())), "eu never told of {text}");
        }
    });
}
