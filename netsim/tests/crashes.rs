//! Regions that crash again and again: each crash is another era, and rows stay short (R13).

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "support/devices.rs"]
mod devices;

use std::net::Ipv4Addr;
use std::time::Duration;

use devices::{Device, calm, check, three_regions, until};
use tern_core::eras::{ROW_ORIGINS, folds_of};
use tern_core::store::Store;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::time::{sleep, timeout};

const ALICE: usize = 0;
const BOB: usize = 1;
/// Each region crashes so often.
const CRASHES: usize = 12;

/// Both write before each crash; bob's app is closed for most of it.
async fn crash_after_crash(world: World) {
    let mut cluster = three_regions(&world).await;
    let alice = Device::new(&world, &cluster, "alice", "germany", Ipv4Addr::new(91, 0, 0, 1));
    let bob = Device::new(&world, &cluster, "bob", "japan", Ipv4Addr::new(126, 0, 0, 1));
    let mut both = [alice, bob];
    let mut sent = Vec::new();
    for round in 0..CRASHES {
        let writers = if round < 2 { [ALICE, BOB].as_slice() } else { &[ALICE] };
        for from in writers {
            let (to, text) = (1 - from, format!("round {round} of {from}"));
            both[*from].send(&both[to], &text);
            sent.push((*from, to, text));
        }
        until(&world, "what was written to be stable", &mut both[..writers.len()], calm).await;
        if round == 2 {
            both[BOB].kill().await;
        }
        for region in ["eu", "us", "ap"] {
            cluster.kill(region).await.unwrap();
            cluster.restart(region).await.unwrap();
            sleep(Duration::from_secs(7)).await;
        }
        both[ALICE].look(world.elapsed());
    }
    both[BOB].reopen(&cluster);
    let whole = |both: &[Device]| (0..2).all(|i| both[i].timeline(&both[1 - i]).len() == CRASHES + 2);
    until(&world, "all messages on both", &mut both, whole).await;
    check(&both, &sent);
    // What is folded is known message by message: bob counts exactly, and reads it all.
    let unread = both[BOB].with(&both[ALICE]).unread().unwrap();
    assert!(unread.exact && unread.count >= CRASHES as u64 - 2, "{unread:?}");
    both[BOB].with(&both[ALICE]).mark_read().unwrap();
    both[ALICE].send(&both[BOB], "the last one");
    sent.push((ALICE, BOB, "the last one".to_owned()));
    until(&world, "the last one to be stable", &mut both, calm).await;
    sleep(Duration::from_secs(5)).await;
    check(&both, &sent);
    for region in ["eu", "us", "ap"] {
        let core = cluster.core(region).unwrap();
        assert_eq!(core.unsealed_eras(), 0, "{region}");
        for device in &both {
            let rows = cluster.store(region).unwrap().rows(device.user.clone()).await.unwrap();
            let id = both[ALICE].with(&both[BOB]).id();
            let row = &rows.iter().find(|(conversation, _)| *conversation == id).unwrap().1;
            assert!(row.heads.len() <= ROW_ORIGINS, "{region}: {:?}", row.heads);
            assert_eq!(row.heads.values().sum::<u64>(), CRASHES as u64 + 3, "{region}: {:?}", row.heads);
            let folds: usize = (1..=3).map(|region| folds_of(&row.heads, region).count()).sum();
            assert!(folds > 0, "{region}: {:?}", row.heads);
            assert!(row.read.len() <= ROW_ORIGINS && row.peer_read.len() <= ROW_ORIGINS, "{region}: {row:?}");
        }
    }
}

fn run_crashes(seed: u64) {
    let scenario = |world| async move { timeout(Duration::from_secs(7200), crash_after_crash(world)).await };
    run(seed, scenario).unwrap().expect("too late");
}

#[test]
fn rows_stay_short_over_many_crashes_and_a_device_that_was_away_misses_nothing() {
    let more: u64 = std::env::var("TERN_STORMS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    for seed in 1..2 + more {
        run_crashes(seed);
    }
}
