//! A message crosses three regions, and a killed region loses none: the whole way, client SDK to client SDK,
//! over simulated QUIC, TCP, TLS and HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "support/devices.rs"]
mod devices;
mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use devices::{Device, calm, check, ms, three_regions, until};
use tern_client::ConnectionState;
use tern_netsim::packets::{Packet, Shape};
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::time::timeout;

const ALICE: usize = 0;
const BOB: usize = 1;
const MESSAGES: usize = 100;
/// Region eu loses its links with this message, and is killed four messages later.
const CUT_AT: usize = 40;
/// Bob's app is killed with this message, and opened again ten messages later.
const APP_KILL_AT: usize = 70;

fn is_live(device: &Device, region: &str) -> bool {
    matches!(device.client.connection(), ConnectionState::Live { region: at, .. } if at == region)
}

/// Alice and bob exchange 100 messages; region eu is killed in mid-stream and comes back later.
async fn first_light(world: World) -> (String, Shape, Vec<Packet>) {
    let mut cluster = three_regions(&world).await;
    // Addresses that the shipped GeoIP file places in Germany and in Japan.
    let alice = Device::new(&world, &cluster, "alice", "germany", Ipv4Addr::new(91, 0, 0, 1));
    let bob = Device::new(&world, &cluster, "bob", "japan", Ipv4Addr::new(126, 0, 0, 1));
    let mut both = [alice, bob];
    let near = |both: &[Device]| is_live(&both[ALICE], "eu") && is_live(&both[BOB], "ap");
    until(&world, "both to be live near by", &mut both, near).await;
    let (mut killed, mut sent) = (Duration::ZERO, Vec::new());
    for i in 0..MESSAGES {
        let from = if i % 2 == 0 || (APP_KILL_AT..APP_KILL_AT + 10).contains(&i) { ALICE } else { BOB };
        let (to, text) = (1 - from, format!("message {i}"));
        both[from].send(&both[to], &text);
        sent.push((from, to, text));
        if i == CUT_AT {
            // Its last words do not leave the house: what it acks from now on, only the sender has.
            world.cut("eu", "us");
            world.cut("eu", "ap");
        }
        tokio::time::sleep(ms(30)).await;
        both.iter_mut().for_each(|device| device.look(world.elapsed()));
        if i == CUT_AT + 4 {
            cluster.kill("eu").await.unwrap();
            killed = world.elapsed();
            world.heal("eu", "us");
            world.heal("eu", "ap");
        }
        if i == APP_KILL_AT {
            both[BOB].kill().await;
        }
        if i == APP_KILL_AT + 10 {
            both[BOB].reopen(&cluster);
        }
    }
    until(&world, "everything to be acked and stable without eu", &mut both, calm).await;
    let whole = |both: &[Device]| (0..2).all(|i| both[i].timeline(&both[1 - i]).len() == MESSAGES);
    until(&world, "100 messages on both", &mut both, whole).await;
    check(&both, &sent);
    let without_eu = both[ALICE].timeline(&both[BOB]);

    cluster.restart("eu").await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    until(&world, "calm with eu back", &mut both, calm).await;
    check(&both, &sent);
    assert_eq!(both[ALICE].timeline(&both[BOB]), without_eu, "the tail that eu brought back must move nothing");

    let [alice, bob] = both;
    // Alice's app ran all the time: it was told of each of its messages that it was acked and became stable.
    let by_alice = sent.iter().filter(|(from, ..)| *from == ALICE).count();
    assert_eq!((alice.seen.sent.len(), alice.seen.stable.len()), (by_alice, by_alice));
    assert!(alice.seen.reoffered > 0, "eu's last acks were to be offered elsewhere");
    let moved = alice.seen.live.iter().find(|(at, _)| *at > killed).expect("alice went elsewhere");
    assert!(moved.1.ends_with("by quic"), "QUIC was there, and first: {}", moved.1);
    let line = format!(
        "alice live at {} {} ms after the kill, re-offered {}; bob {:?}",
        moved.1,
        (moved.0 - killed).as_millis(),
        alice.seen.reoffered,
        bob.seen.live,
    );
    (line, world.shape(), world.packets())
}

fn run_first_light(seed: u64) -> (String, Shape, Vec<Packet>) {
    run(seed, |world| async move { timeout(Duration::from_secs(3600), first_light(world)).await.expect("too late") })
        .unwrap()
}

#[test]
fn first_light_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let (line, shape, packets) = run_first_light(seed);
    support::report(format!("{line}; {shape}"), &packets);
}

#[test]
fn a_message_crosses_three_regions_and_a_killed_region_loses_none_twice_alike() {
    for line in support::run_twice("first_light_of_a_child", 1, Duration::from_secs(300)) {
        println!("{line}");
    }
}

#[test]
fn other_seeds_lose_none_either() {
    for seed in 2..6 {
        run_first_light(seed);
    }
}
