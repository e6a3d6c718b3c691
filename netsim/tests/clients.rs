//! Storms over everything: SDK clients that lose regions, links, UDP and their own process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

#[path = "support/devices.rs"]
mod devices;
mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use devices::{Device, calm, check, ms, three_regions, until};
use tern_core::clock::Entropy;
use tern_netsim::node::HostState;
use tern_netsim::packets::{Packet, Protocol, Shape};
use tern_netsim::random::derive;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::time::timeout;

const REGIONS: [&str; 3] = ["eu", "us", "ap"];
const PLACES: [&str; 3] = ["germany", "japan", "america"];
const STEPS: u32 = 100;
/// Seeds of an ordinary run; `TERN_STORMS=100` runs that many, from `TERN_STORM_FIRST` on.
const SEEDS: u64 = 4;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

async fn storm(world: World, seed: u64, story: &mut Vec<String>) -> (Shape, Vec<Packet>) {
    let mut cluster = three_regions(&world).await;
    let addresses = [Ipv4Addr::new(91, 0, 0, 1), Ipv4Addr::new(126, 0, 0, 1), Ipv4Addr::new(8, 8, 8, 8)];
    let names = ["alice", "bob", "carol"];
    let mut all: Vec<Device> =
        (0..3).map(|i| Device::new(&world, &cluster, names[i], PLACES[i], addresses[i])).collect();
    let mut running = [true; 3];
    let mut sent: Vec<(usize, usize, String)> = Vec::new();
    let rng = Entropy::seeded(derive(seed, "storm", 0));
    let one = |rng: &Entropy, of: [&'static str; 3]| of[rng.below(3) as usize];
    for step in 0..STEPS {
        tokio::time::sleep(ms(rng.below(400))).await;
        for (device, _) in all.iter_mut().zip(running).filter(|(_, running)| *running) {
            device.look(world.elapsed());
        }
        let mut tell = |what: String| story.push(format!("{step} at {:?}: {what}", world.elapsed()));
        match rng.below(100) {
            0..60 => {
                let from = rng.below(3) as usize;
                let to = (from + 1 + rng.below(2) as usize) % 3;
                for _ in 0..if running[from] { 1 + rng.below(4) } else { 0 } {
                    let text = format!("message {}", sent.len());
                    all[from].send(&all[to], &text);
                    sent.push((from, to, text));
                }
            }
            60..66 => {
                let (a, b) = (one(&rng, REGIONS), one(&rng, REGIONS));
                tell(format!("cut {a} {b}"));
                world.cut(a, b);
            }
            66..71 => {
                let (place, region) = (one(&rng, PLACES), one(&rng, REGIONS));
                tell(format!("lose the way from or to {place} and {region}"));
                match rng.below(3) {
                    0 => world.cut(place, region),
                    1 => world.blackhole(place, region),
                    _ => world.blackhole(region, place),
                }
            }
            71..74 => {
                let place = one(&rng, PLACES);
                tell(format!("no UDP in {place}"));
                for region in REGIONS {
                    world.set_filter(place, region, Some(Box::new(|packet| packet.protocol == Protocol::Udp)));
                }
            }
            74..82 => {
                let (a, b) = (one(&rng, REGIONS), one(&rng, REGIONS));
                let place = one(&rng, PLACES);
                tell(format!("heal {a} {b}, {place}"));
                world.heal(a, b);
                for region in REGIONS {
                    world.heal(place, region);
                    world.set_filter(place, region, None);
                }
            }
            82..87 => {
                let i = rng.below(3) as usize;
                if running[i] {
                    tell(format!("kill the app of {}", names[i]));
                    all[i].kill().await;
                } else {
                    tell(format!("open the app of {}", names[i]));
                    all[i].reopen(&cluster);
                }
                running[i] = !running[i];
            }
            87..92 => {
                let name = one(&rng, REGIONS);
                if cluster.host(name).unwrap().state() == HostState::Up {
                    tell(format!("kill {name}"));
                    cluster.kill(name).await.unwrap();
                }
            }
            92..98 => {
                let name = one(&rng, REGIONS);
                if cluster.host(name).unwrap().state() != HostState::Up {
                    tell(format!("start {name}"));
                    cluster.restart(name).await.unwrap();
                }
            }
            _ => {
                let (name, skew) = (one(&rng, REGIONS), rng.below(1000).cast_signed() - 500);
                tell(format!("clock of {name} {skew} ms"));
                cluster.host(name).unwrap().set_clock_skew_ms(skew);
            }
        }
    }
    story.push(format!("calm at {:?}", world.elapsed()));
    for name in REGIONS {
        for other in REGIONS.into_iter().chain(PLACES) {
            world.heal(name, other);
        }
        for place in PLACES {
            world.set_filter(place, name, None);
        }
        if cluster.host(name).unwrap().state() != HostState::Up {
            cluster.restart(name).await.unwrap();
        }
    }
    for (device, running) in all.iter_mut().zip(running) {
        if !running {
            device.reopen(&cluster);
        }
    }
    until(&world, "all messages to be stable", &mut all, calm).await;
    let told = |all: &[Device]| {
        (0..3).all(|a| (0..3).all(|b| a == b || all[a].timeline(&all[b]).len() == all[b].timeline(&all[a]).len()))
    };
    until(&world, "timelines of one length", &mut all, told).await;
    // What is late, or shown twice, comes within the time of a heartbeat.
    tokio::time::sleep(Duration::from_secs(30)).await;
    all.iter_mut().for_each(|device| device.look(world.elapsed()));
    check(&all, &sent);
    (world.shape(), world.packets())
}

fn run_storm(seed: u64) -> (Shape, Vec<Packet>) {
    let (told, story) = std::sync::mpsc::channel();
    run(seed, move |world| async move {
        let mut story = Story { lines: Vec::new(), told };
        timeout(Duration::from_secs(3600), storm(world, seed, &mut story.lines)).await.expect("an hour has passed")
    })
    .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", story.recv().unwrap_or_default().join("\n")))
}

/// Hands the story out even if the scenario panics.
struct Story {
    lines: Vec<String>,
    told: std::sync::mpsc::Sender<Vec<String>>,
}

impl Drop for Story {
    fn drop(&mut self) {
        // Whoever does not listen does not need it.
        drop(self.told.send(std::mem::take(&mut self.lines)));
    }
}

#[test]
fn after_any_storm_all_devices_show_every_message_once_in_one_order() {
    let first = number("TERN_STORM_FIRST", 0);
    for seed in first..first + number("TERN_STORMS", SEEDS) {
        run_storm(seed);
    }
}

#[test]
fn storm_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let (shape, packets) = run_storm(seed);
    support::report(shape, &packets);
}

#[test]
fn a_storm_with_everything_in_it_repeats_packet_by_packet() {
    support::run_twice("storm_of_a_child", 1, Duration::from_secs(300));
}
