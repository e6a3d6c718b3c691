//! Clients on weak access links: where datagrams are blocked they get through over TCP and TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[allow(dead_code, reason = "shared with tests that do more with a device")]
#[path = "support/devices.rs"]
mod devices;
mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use devices::{Device, calm, check, ms, three_regions, until};
use tern_netsim::access::{AccessSpec, Block};
use tern_netsim::packets::Protocol;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tern_netsim_link::{Chance, Loss, NatSpec, profile};
use tokio::time::timeout;

/// LTE that loses 3 % in bursts, behind a carrier's NAT.
fn cell(outside: Ipv4Addr) -> Vec<AccessSpec> {
    let mut link = profile("lte-good").unwrap().link;
    (link.up.loss, link.down.loss) = (Loss::bursts(Chance::percent(3), 4), Loss::bursts(Chance::percent(3), 4));
    let nat = Some((NatSpec::carrier(), outside));
    vec![AccessSpec { name: "cell".into(), address: Ipv4Addr::new(100, 64, 0, 5), link, nat }]
}

async fn blocked(world: World) {
    let cluster = three_regions(&world).await;
    // Addresses that the shipped GeoIP file places in Germany and in Japan.
    let alice = world.add_device("alice-phone", "germany", cell(Ipv4Addr::new(91, 0, 0, 1))).unwrap();
    let bob = world.add_device("bob-phone", "japan", cell(Ipv4Addr::new(126, 0, 0, 1))).unwrap();
    world.set_block("alice-phone", None, Some(Block::Udp)).unwrap();
    let mut both = [Device::of(&cluster, "alice", alice), Device::of(&cluster, "bob", bob)];
    until(&world, "both to be live", &mut both, |both| both.iter().all(|device| !device.seen.live.is_empty())).await;
    assert_eq!(both[0].seen.live[0].1, "eu-e1 by tcp");
    assert_eq!(both[1].seen.live[0].1, "ap-e1 by quic");
    let mut sent = Vec::new();
    for i in 0..20 {
        let (from, text) = (i % 2, format!("message {i}"));
        both[from].send(&both[1 - from], &text);
        sent.push((from, 1 - from, text));
        tokio::time::sleep(ms(200)).await;
    }
    until(&world, "everything to be acked", &mut both, calm).await;
    let whole = |both: &[Device]| (0..2).all(|i| both[i].timeline(&both[1 - i]).len() == 20);
    until(&world, "20 messages on both", &mut both, whole).await;
    check(&both, &sent);
    let counts = world.host_counts("alice-phone").unwrap();
    assert!(counts.blocked > 0, "QUIC was tried");
    let tcp = world.packets().iter().filter(|packet| packet.protocol == Protocol::Tcp).count();
    assert!(tcp > 60, "{tcp} segments with data");
}

#[test]
fn where_datagrams_are_blocked_clients_fall_back_to_tcp_over_links_that_lose() {
    for seed in 1..4 {
        run(seed, |world| async move { timeout(Duration::from_secs(3600), blocked(world)).await.expect("an hour") })
            .unwrap();
    }
}

#[test]
fn blocked_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let run = run(seed, |world| async move {
        blocked(world.clone()).await;
        (world.shape(), world.packets())
    });
    let (shape, packets) = run.unwrap();
    support::report(shape, &packets);
}

#[test]
fn a_fall_back_repeats_in_every_process() {
    support::run_twice("blocked_of_a_child", 1, Duration::from_secs(300));
}
