//! Client machines that roam between real regions while these are killed and cut off: what both devices show.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

#[path = "support/phones.rs"]
mod pipes;
mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use pipes::Phones;
use tern_core::client::Event;
use tern_core::clock::Entropy;
use tern_core::ids::{ConvId, UserId};
use tern_core::store::Store;
use tern_netsim::cluster::{Cluster, ClusterOptions, Site};
use tern_netsim::node::HostState;
use tern_netsim::packets::{Packet, Shape};
use tern_netsim::random::derive;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::time::timeout;

const REGIONS: [&str; 3] = ["eu", "us", "ap"];
const STEPS: u32 = 150;
/// Seeds of an ordinary run; `TERN_STORMS=1000` runs that many.
const SEEDS: u64 = 30;
/// One-way, in ms.
const NEAR_EU: [(&str, u64); 3] = [("eu", 5), ("us", 50), ("ap", 85)];
const NEAR_US: [(&str, u64); 3] = [("eu", 50), ("us", 6), ("ap", 112)];
const NEAR_AP: [(&str, u64); 3] = [("eu", 85), ("us", 112), ("ap", 4)];

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

async fn start(world: &World) -> (Cluster, Phones) {
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
    let mut cluster = Cluster::new(world, &sites, ClusterOptions::default()).unwrap();
    for name in REGIONS {
        cluster.start(name).await.unwrap();
    }
    let mut phones = Phones::new(world);
    phones.add("alice", &NEAR_EU);
    phones.add("bob", &NEAR_AP);
    phones.add("carol", &NEAR_US);
    (cluster, phones)
}

async fn settle(cluster: &Cluster, phones: &mut Phones, story: &[String]) {
    for _ in 0..240 {
        phones.run_for(cluster, ms(500)).await;
        if phones.settled() {
            // Rows and late entries follow.
            phones.run_for(cluster, Duration::from_secs(5)).await;
            return;
        }
    }
    let states: Vec<_> = phones
        .all
        .iter()
        .map(|p| {
            let last: Vec<_> = p.events.iter().rev().take(6).rev().collect();
            format!("{}: {:?}, waiting {:?}, last {last:?}", p.name, p.machine.connection(), p.machine.waiting())
        })
        .collect();
    panic!("not settled two minutes after the storm\n{}\n{}", states.join("\n"), story.join("\n"));
}

/// What a reader of both devices would complain about.
async fn check(cluster: &Cluster, phones: &Phones, sent: &[Vec<(usize, String)>], seed: u64, story: &[String]) {
    let names: Vec<&str> = phones.all.iter().map(|p| p.name).collect();
    let story = story.join("\n");
    for (a, name) in names.iter().enumerate() {
        for (b, other) in names.iter().enumerate().filter(|(b, _)| *b != a) {
            let (mine, theirs) = (phones.timeline(a, other), phones.timeline(b, name));
            if mine != theirs {
                let (one, two) = (phones.explain(a, other), phones.explain(b, name));
                let mut stores = Vec::new();
                let users = [UserId::new(name).unwrap(), UserId::new(other).unwrap()];
                let conversation = ConvId::direct(&cluster.direct_salt(), &users[0], &users[1]);
                for region in REGIONS {
                    let store = cluster.store(region).unwrap();
                    stores.push(format!("{region}: {:?}", store.conversation(conversation).await.unwrap().heads));
                    for user in &users {
                        let rows = store.rows(user.clone()).await.unwrap();
                        let row = rows.iter().find(|(id, _)| *id == conversation).map(|(_, row)| (row.rev, &row.heads));
                        stores.push(format!("  row of {user}: {row:?}"));
                    }
                    stores.push(format!("  todo: {:?}", store.todo().await.unwrap()));
                }
                let stores = stores.join("\n");
                panic!("seed {seed}: {name} and {other} see different timelines\n{story}\n{one}\n{two}\n{stores}");
            }
            let own: Vec<_> = mine.iter().filter(|(user, ..)| user == name).map(|(_, _, text)| text.clone()).collect();
            let wanted: Vec<_> = sent[a].iter().filter(|(to, _)| *to == b).map(|(_, text)| text.clone()).collect();
            assert_eq!(own, wanted, "seed {seed}: of {name} to {other}: lost, doubled or out of order\n{story}");
        }
        let twice: Vec<_> = phones.all[a].shown.iter().filter(|(_, times)| **times != 1).collect();
        assert!(twice.is_empty(), "seed {seed}: {name} was shown {twice:?} more than once\n{story}");
        let failed: Vec<_> =
            phones.all[a].events.iter().filter(|e| matches!(e, Event::Failed { .. } | Event::AtRisk { .. })).collect();
        assert!(failed.is_empty(), "seed {seed}: {name}: {failed:?}\n{story}");
    }
}

async fn storm(world: World, seed: u64) -> (Vec<String>, Shape, Vec<Packet>) {
    let (mut cluster, mut phones) = start(&world).await;
    let rng = Entropy::seeded(derive(seed, "storm", 0));
    let mut story = Vec::new();
    let mut sent: Vec<Vec<(usize, String)>> = vec![Vec::new(); 3];
    phones.push_loss = rng.below(3) * 5;
    phones.run_for(&cluster, ms(rng.below(1500))).await;
    let region = |rng: &Entropy| REGIONS[rng.below(3) as usize];
    for step in 0..STEPS {
        phones.run_for(&cluster, ms(rng.below(150))).await;
        match rng.below(100) {
            0..60 => {
                let from = rng.below(3) as usize;
                let to = (from + 1 + rng.below(2) as usize) % 3;
                for _ in 0..=rng.below(4) {
                    let text = format!("{}", sent[from].len() + 1);
                    sent[from].push((to, text.clone()));
                    phones.send(from, ["alice", "bob", "carol"][to], text);
                }
            }
            60..66 => {
                let (a, b) = (region(&rng), region(&rng));
                story.push(format!("{step}: cut {a} {b}"));
                world.cut(a, b);
            }
            66..74 => {
                let (a, b) = (region(&rng), region(&rng));
                story.push(format!("{step}: heal {a} {b}"));
                world.heal(a, b);
            }
            74..79 => {
                let (phone, name) = (rng.below(3) as usize, region(&rng));
                story.push(format!("{step}: block {} {name}", phones.all[phone].name));
                phones.block(phone, name);
            }
            79..85 => phones.unblock_all(rng.below(3) as usize),
            85..89 => {
                let (phone, torn) = (rng.below(3) as usize, rng.below(2) == 0);
                story.push(format!("{step}: restart {} {torn}", phones.all[phone].name));
                phones.restart(phone, torn);
            }
            89..93 => {
                let name = region(&rng);
                if cluster.host(name).unwrap().state() == HostState::Up {
                    story.push(format!("{step}: kill {name}"));
                    cluster.kill(name).await.unwrap();
                    phones.region_killed(name);
                }
            }
            93..98 => {
                let name = region(&rng);
                if cluster.host(name).unwrap().state() != HostState::Up {
                    story.push(format!("{step}: start {name}"));
                    cluster.restart(name).await.unwrap();
                }
            }
            _ => {
                let (name, skew) = (region(&rng), rng.below(1000).cast_signed() - 500);
                story.push(format!("{step}: clock of {name} {skew} ms"));
                cluster.host(name).unwrap().set_clock_skew_ms(skew);
            }
        }
    }
    story.push("calm".into());
    for name in REGIONS {
        for other in REGIONS {
            world.heal(name, other);
        }
        if cluster.host(name).unwrap().state() != HostState::Up {
            cluster.restart(name).await.unwrap();
        }
    }
    (0..3).for_each(|phone| phones.unblock_all(phone));
    settle(&cluster, &mut phones, &story).await;
    check(&cluster, &phones, &sent, seed, &story).await;
    (story, world.shape(), world.packets())
}

fn run_storm(seed: u64) -> (Vec<String>, Shape, Vec<Packet>) {
    run(seed, move |world| async move {
        timeout(Duration::from_secs(3600), storm(world, seed)).await.expect("an hour has passed")
    })
    .unwrap_or_else(|error| panic!("seed {seed}: {error}"))
}

#[test]
fn after_any_storm_both_devices_show_every_message_once_in_one_order() {
    let seeds = std::env::var("TERN_STORMS").map_or(SEEDS, |text| text.parse().expect("TERN_STORMS is a number"));
    let first = std::env::var("TERN_STORM_FIRST").map_or(0, |text| text.parse().expect("a number"));
    for seed in first..first + seeds {
        run_storm(seed);
    }
}

#[test]
fn a_message_of_a_region_that_stays_dead_arrives_by_way_of_its_sender() {
    run(5, |world| async move {
        let (mut cluster, mut phones) = start(&world).await;
        phones.run_for(&cluster, Duration::from_secs(3)).await;
        world.cut("eu", "us");
        world.cut("eu", "ap");
        for n in 1..=20 {
            phones.send(0, "bob", n.to_string());
            phones.run_for(&cluster, ms(20)).await;
        }
        phones.run_for(&cluster, ms(500)).await;
        let acked = phones.all[0].events.iter().filter(|e| matches!(e, Event::Sent { .. })).count();
        assert_eq!(acked, 20, "the region acked without waiting for the others");
        cluster.kill("eu").await.unwrap();
        phones.region_killed("eu");
        settle(&cluster, &mut phones, &[]).await;
        let sent = [(1..=20).map(|n| (1, n.to_string())).collect(), Vec::new(), Vec::new()];
        check(&cluster, &phones, &sent, 5, &[]).await;
    })
    .unwrap();
}

#[test]
fn storm_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let (_, shape, packets) = run_storm(seed);
    support::report(shape, &packets);
}

#[test]
fn a_storm_with_clients_repeats_packet_by_packet() {
    support::run_twice("storm_of_a_child", 3, Duration::from_secs(300));
}
