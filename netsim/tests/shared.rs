//! One region that three core nodes share: real core nodes over simulated links, and an edge whose router finds its way
//! among them. Nodes die, are paused, stop in order and join.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tern_core::ids::UserId;
use tern_core::leases::{Leases, ShareLease};
use tern_core::slots::{Share, Slot};
use tern_core::store::{Range, Store};
use tokio::time::sleep;

#[path = "support/sharing.rs"]
mod sharing;

use sharing::{Load, Scene, USERS, ms, pair, sim};

#[test]
fn three_nodes_share_a_region_alike_and_messages_pass_between_them() {
    sim(1, |world| async move {
        let scene = Scene::new(world, 3).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(scene.owners().into_values().collect::<Vec<_>>(), [86, 85, 85]);
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(10)).await;
        sleep(Duration::from_secs(6)).await;
        load.check(&scene).await;
        assert_eq!(scene.shape().1, Vec::<String>::new(), "nothing was refused");
        assert!(load.longest_since(Duration::ZERO) < ms(200), "{:?}", load.longest_since(Duration::ZERO));
    });
}

#[test]
fn a_killed_node_costs_its_conversations_three_seconds_at_most_and_nothing_that_was_acked() {
    for seed in 0..6 {
        sim(seed, move |world| async move {
            let mut scene = Scene::new(world, 3).await;
            sleep(Duration::from_secs(4)).await;
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(3) + ms(137 * seed)).await;
            let (id, ..) = pair(&load.salt, seed as usize);
            let victim = scene.owner(Slot::of(id));
            let killed = scene.world.elapsed();
            scene.cluster.kill_core(&victim).await.unwrap();
            scene.edge.lose(&victim);
            load.run(&scene, Duration::from_secs(8)).await;
            let longest = load.longest_since(killed);
            assert!(longest <= Duration::from_secs(3), "the next ack came after {longest:?}");
            assert!(!scene.owners().contains_key(&victim), "its shares are others'");
            eprintln!("seed {seed}: the next ack {longest:?} after the kill at the latest");
            // It comes back, and gets its part again.
            let core = scene.cluster.restart_core(&victim).await.unwrap();
            scene.edge.attach(&victim, &core);
            load.run(&scene, Duration::from_secs(12)).await;
            assert_eq!(scene.owners().into_values().collect::<BTreeSet<_>>(), [85, 86].into());
            sleep(Duration::from_secs(35)).await;
            load.check(&scene).await;
        });
    }
}

#[test]
fn a_killed_process_is_missed_a_second_sooner_than_a_machine_without_power() {
    for seed in 0..4 {
        for power in [true, false] {
            sim(seed, move |world| async move {
                let mut scene = Scene::new(world, 3).await;
                sleep(Duration::from_secs(4)).await;
                let mut load = Load::new(scene.cluster.direct_salt());
                load.run(&scene, Duration::from_secs(2) + ms(171 * seed)).await;
                let (id, ..) = pair(&load.salt, seed as usize);
                let victim = scene.owner(Slot::of(id));
                let died = scene.world.elapsed();
                if power {
                    scene.cluster.kill_core(&victim).await.unwrap();
                } else {
                    scene.cluster.core_host(&victim).unwrap().power_off().await;
                }
                scene.edge.lose(&victim);
                load.run(&scene, Duration::from_secs(6)).await;
                let longest = load.longest_since(died);
                eprintln!("seed {seed}, with power {power}: the next ack {longest:?} later at the latest");
                let bounds = if power { ms(0)..ms(800) } else { ms(1_100)..ms(2_100) };
                assert!(bounds.contains(&longest), "seed {seed}, with power {power}: {longest:?}");
                sleep(Duration::from_secs(35)).await;
                load.check(&scene).await;
            });
        }
    }
}

#[test]
fn of_what_a_dead_node_leaves_that_comes_first_which_its_heir_had_to_do_with() {
    for seed in 0..4 {
        sim(seed, move |world| async move {
            let mut scene = Scene::new(world, 2).await;
            sleep(Duration::from_secs(4)).await;
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(3)).await;
            // Some 128 shares, sixteen at a time: all of them take eight seconds.
            scene.cluster.shared_store("eu").unwrap().set_gives_take(Duration::from_secs(1));
            let salt = load.salt.clone();
            let (victim, heir) = (scene.names[0].clone(), scene.names[1].clone());
            let member = |n: usize| scene.owner(Slot::of_user(&salt, &UserId::new(USERS[n]).unwrap())) == heir;
            let known: BTreeSet<usize> = (0..load.saying.len())
                .filter(|i| {
                    let (id, a, b) = pair(&salt, *i);
                    scene.owner(Slot::of(id)) == victim && (member(a) || member(b))
                })
                .collect();
            assert!(!known.is_empty());
            let killed = scene.world.elapsed();
            scene.cluster.kill_core(&victim).await.unwrap();
            scene.edge.lose(&victim);
            load.run(&scene, Duration::from_secs(6)).await;
            assert!(scene.owners().contains_key(&victim), "not all is taken yet");
            load.run(&scene, Duration::from_secs(8)).await;
            assert!(!scene.owners().contains_key(&victim));
            let of = load.took.iter().filter(|(i, at, took)| known.contains(i) && *at + *took >= killed);
            let longest = of.map(|(.., took)| *took).max().unwrap();
            assert!(longest <= ms(3_500), "seed {seed}: the next ack came after {longest:?}");
            sleep(Duration::from_secs(35)).await;
            load.check(&scene).await;
        });
    }
}

#[test]
fn a_conversation_that_its_database_answers_late_holds_up_no_other() {
    sim(11, |world| async move {
        let scene = Scene::new(world, 3).await;
        sleep(Duration::from_secs(4)).await;
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(2)).await;
        let (slow, ..) = pair(&load.salt, 3);
        scene.cluster.shared_store("eu").unwrap().set_slow(slow, Duration::from_secs(2));
        let since = scene.world.elapsed();
        load.run(&scene, Duration::from_secs(10)).await;
        sleep(Duration::from_secs(3)).await;
        let longest = |slow: bool| {
            let of = load.took.iter().filter(|(i, at, _)| *at >= since && (*i == 3) == slow);
            of.map(|(.., took)| *took).max().unwrap()
        };
        assert!(longest(false) < ms(200), "another one took {:?}", longest(false));
        assert!(longest(true) >= Duration::from_secs(2), "the slow one took {:?}", longest(true));
        load.check(&scene).await;
    });
}

#[test]
fn reads_of_whole_tables_that_hang_cost_no_lease_and_no_takeover() {
    sim(12, |world| async move {
        let mut scene = Scene::new(world, 3).await;
        sleep(Duration::from_secs(4)).await;
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(2)).await;
        scene.cluster.shared_store("eu").unwrap().set_scans_hang(true);
        let (since, before) = (scene.world.elapsed(), scene.owners());
        load.run(&scene, Duration::from_secs(20)).await;
        assert_eq!(scene.owners(), before, "nobody was taken for dead");
        assert!(load.longest_since(since) < ms(200), "{:?}", load.longest_since(since));
        let (id, ..) = pair(&load.salt, 3);
        let victim = scene.owner(Slot::of(id));
        let killed = scene.world.elapsed();
        scene.cluster.kill_core(&victim).await.unwrap();
        scene.edge.lose(&victim);
        load.run(&scene, Duration::from_secs(6)).await;
        assert!(load.longest_since(killed) < ms(1_100), "{:?}", load.longest_since(killed));
        assert_eq!(scene.owners().into_values().sum::<usize>(), 256);
        assert!(!scene.owners().contains_key(&victim));
        scene.cluster.shared_store("eu").unwrap().set_scans_hang(false);
        sleep(Duration::from_secs(35)).await;
        load.check(&scene).await;
    });
}

#[test]
fn a_process_that_is_started_again_at_once_is_not_taken_for_a_second_one() {
    for down_ms in [0, 100, 200, 250, 300, 350, 400, 900] {
        sim(5, move |world| async move {
            let mut scene = Scene::new(world, 3).await;
            sleep(Duration::from_secs(4)).await;
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(2)).await;
            let victim = scene.names[1].clone();
            scene.cluster.kill_core(&victim).await.unwrap();
            scene.edge.lose(&victim);
            sleep(ms(down_ms)).await;
            let core = scene.cluster.restart_core(&victim).await;
            let core = core.unwrap_or_else(|error| panic!("started {down_ms} ms after it was killed: {error:#}"));
            scene.edge.attach(&victim, &core);
            load.run(&scene, Duration::from_secs(12)).await;
            assert_eq!(scene.owners().into_values().collect::<BTreeSet<_>>(), [85, 86].into());
            sleep(Duration::from_secs(35)).await;
            load.check(&scene).await;
        });
    }
}

#[test]
fn a_paused_node_that_goes_on_corrupts_nothing() {
    for seed in 0..4 {
        sim(seed, move |world| async move {
            let scene = Scene::new(world, 3).await;
            sleep(Duration::from_secs(4)).await;
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(3)).await;
            let (id, ..) = pair(&load.salt, seed as usize);
            let victim = scene.owner(Slot::of(id));
            scene.cluster.core_host(&victim).unwrap().set_paused(true);
            load.run(&scene, Duration::from_secs(30)).await;
            assert!(!scene.owners().contains_key(&victim), "its shares are others'");
            scene.cluster.core_host(&victim).unwrap().set_paused(false);
            load.run(&scene, Duration::from_secs(15)).await;
            sleep(Duration::from_secs(35)).await;
            load.check(&scene).await;
        });
    }
}

#[test]
fn a_node_that_stops_in_order_refuses_nothing_and_a_fourth_gets_its_part() {
    sim(7, |world| async move {
        let mut scene = Scene::new(world.clone(), 3).await;
        sleep(Duration::from_secs(4)).await;
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(2)).await;
        let name = scene.cluster.add_core(&world, "eu", 4, 1).unwrap();
        let core = scene.cluster.start_core(&name).await.unwrap();
        scene.edge.attach(&name, &core);
        let before = scene.world.elapsed();
        load.run(&scene, Duration::from_secs(8)).await;
        assert_eq!(scene.owners().into_values().collect::<Vec<_>>(), [64; 4]);
        let longest = load.longest_since(before);
        assert!(longest <= ms(100), "a hand-over took {longest:?}");
        let before = scene.world.elapsed();
        let (stopped, ()) = tokio::join!(core.stop(Duration::from_secs(10)), load.run(&scene, Duration::from_secs(5)));
        assert!(stopped);
        scene.edge.lose(&name);
        load.run(&scene, Duration::from_secs(5)).await;
        assert!(!scene.owners().contains_key(&name));
        assert_eq!(scene.shape().1, Vec::<String>::new(), "nothing was refused");
        let longest = load.longest_since(before);
        assert!(longest <= ms(100), "a hand-over took {longest:?}");
        sleep(Duration::from_secs(35)).await;
        load.check(&scene).await;
    });
}

/// All that the first region holds, the other one holds too, entry for entry.
async fn same(scene: &Scene, load: &Load, other: &str) {
    let (here, there) = (scene.cluster.shared_store("eu").unwrap(), scene.cluster.shared_store(other).unwrap());
    for i in 0..load.saying.len() {
        let (id, ..) = pair(&load.salt, i);
        let (heads, theirs) = (here.conversation(id).await.unwrap().heads, there.conversation(id).await.unwrap().heads);
        assert_eq!(heads, theirs);
        for (origin, head) in heads {
            let range = Range {
                conversation: id,
                origin,
                from: 1,
                to: head,
                max_entries: usize::MAX,
                max_bytes: usize::MAX,
                backwards: false,
            };
            assert_eq!(here.range(range).await.unwrap(), there.range(range).await.unwrap());
        }
    }
    assert_eq!(there.todo().await.unwrap().len(), 0);
}

#[test]
fn two_regions_of_several_nodes_hold_the_same_though_nodes_of_both_die() {
    for seed in 0..3 {
        sim(seed, move |world| async move {
            let mut scene = Scene::of(world.clone(), &[("eu", 3), ("us", 3)]).await;
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(5)).await;
            let killed = scene.names[(seed % 3) as usize].clone();
            scene.cluster.kill_core(&killed).await.unwrap();
            scene.edge.lose(&killed);
            load.run(&scene, Duration::from_secs(5)).await;
            scene.cluster.kill_core(&scene.names[3 + (seed % 3) as usize].clone()).await.unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            let core = scene.cluster.restart_core(&killed).await.unwrap();
            scene.edge.attach(&killed, &core);
            load.run(&scene, Duration::from_secs(5)).await;
            sleep(Duration::from_secs(30)).await;
            load.check(&scene).await;
            same(&scene, &load, "us").await;
        });
    }
}

#[test]
fn a_region_of_several_nodes_that_is_made_later_is_given_all_that_was_said_before() {
    sim(4, |world| async move {
        let mut scene = Scene::of(world.clone(), &[("eu", 2), ("us", 2)]).await;
        // It loses its store, and nobody has anything left to do for it.
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(5)).await;
        sleep(Duration::from_secs(30)).await;
        for name in &scene.names[2..] {
            scene.cluster.kill_core(name).await.unwrap();
        }
        scene.cluster.empty_shared_store("us");
        for name in &scene.names[2..] {
            scene.cluster.restart_core(name).await.unwrap();
        }
        sleep(Duration::from_secs(30)).await;
        same(&scene, &load, "us").await;
        load.run(&scene, Duration::from_secs(5)).await;
        sleep(Duration::from_secs(30)).await;
        load.check(&scene).await;
        same(&scene, &load, "us").await;
    });
}

#[test]
fn a_region_that_core_nodes_hear_of_one_after_the_other_lacks_nothing_in_the_end() {
    for seed in 0..3_usize {
        sim(seed as u64, move |world| async move {
            let mut scene = Scene::of(world.clone(), &[("eu", 3), ("us", 2)]).await;
            let eu: Vec<String> = (0..3).map(|n| scene.names[(seed + n) % 3].clone()).collect();
            let us = scene.names[3..].to_vec();
            let peers = scene.cluster.peers_of("eu").unwrap();
            for name in &us {
                scene.cluster.kill_core(name).await.unwrap();
            }
            scene.cluster.empty_shared_store("us");
            for name in &eu {
                scene.cluster.core_node(name).unwrap().set_peers(Vec::new());
            }
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(5)).await;
            // The first node hears of a region that is new, and what it has gets there.
            for name in &us {
                scene.cluster.restart_core(name).await.unwrap();
            }
            scene.cluster.core_node(&eu[0]).unwrap().set_peers(peers.clone());
            load.run(&scene, Duration::from_secs(10)).await;
            // What is compared there by then, others append to, who have not heard, and it comes back.
            scene.cluster.drain_core(&eu[0], true).unwrap();
            load.run(&scene, Duration::from_secs(6)).await;
            assert!(!scene.owners().contains_key(&eu[0]));
            // What a conversation says later would bring what is missing with it.
            load.silent = (0..12).step_by(2).collect();
            scene.cluster.drain_core(&eu[0], false).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            // Of the others, one gives away what it has and one dies, before they have heard.
            scene.cluster.drain_core(&eu[1], true).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            scene.cluster.kill_core(&eu[2]).await.unwrap();
            scene.edge.lose(&eu[2]);
            load.run(&scene, Duration::from_secs(5)).await;
            assert_eq!(scene.owners().len(), 1, "the first one has it all");
            scene.cluster.drain_core(&eu[1], false).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            scene.cluster.core_node(&eu[1]).unwrap().set_peers(peers.clone());
            load.run(&scene, Duration::from_secs(5)).await;
            sleep(Duration::from_secs(40)).await;
            load.check(&scene).await;
            same(&scene, &load, "us").await;
            let core = scene.cluster.restart_core(&eu[2]).await.unwrap();
            scene.edge.attach(&eu[2], &core);
            load.silent.clear();
            load.run(&scene, Duration::from_secs(5)).await;
            sleep(Duration::from_secs(40)).await;
            load.check(&scene).await;
            same(&scene, &load, "us").await;
        });
    }
}

/// Every owner that the shares have had since, by what the store says every few milliseconds.
fn watch_owners(scene: &Scene) -> Arc<Mutex<BTreeSet<String>>> {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let (store, noted) = (scene.cluster.shared_store("eu").unwrap().clone(), Arc::clone(&seen));
    tokio::task::spawn_local(async move {
        loop {
            let shares = store.shares().await.unwrap();
            noted.lock().unwrap().extend(shares.into_iter().map(|share| share.node));
            sleep(ms(2)).await;
        }
    });
    seen
}

#[test]
fn a_drained_node_that_starts_again_takes_nothing_until_it_may() {
    for seed in 0..3_usize {
        sim(seed as u64, move |world| async move {
            let mut scene = Scene::new(world, 3).await;
            sleep(Duration::from_secs(5)).await;
            let name = scene.names[seed].clone();
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(2)).await;
            scene.cluster.drain_core(&name, true).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            assert!(!scene.owners().contains_key(&name));
            scene.cluster.stop_core(&name, Duration::from_secs(5)).await.unwrap();
            scene.edge.lose(&name);
            let seen = watch_owners(&scene);
            let core = scene.cluster.restart_core(&name).await.unwrap();
            scene.edge.attach(&name, &core);
            load.run(&scene, Duration::from_secs(8)).await;
            assert!(!seen.lock().unwrap().contains(&name), "{:?}", seen.lock().unwrap());
            scene.cluster.drain_core(&name, false).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            assert_eq!(scene.owners().len(), 3);
            sleep(Duration::from_secs(6)).await;
            load.check(&scene).await;
        });
    }
}

#[test]
fn a_node_that_is_killed_while_it_is_drained_gives_on_what_it_had_without_taking_it() {
    sim(5, |world| async move {
        let mut scene = Scene::new(world, 3).await;
        sleep(Duration::from_secs(5)).await;
        let name = scene.names[1].clone();
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(2)).await;
        // The order is on its disk, and was not carried out yet. It is back before the others take it for dead.
        scene.cluster.kill_core(&name).await.unwrap();
        scene.edge.lose(&name);
        scene.cluster.drain_core(&name, true).unwrap();
        let epochs = |shares: Vec<ShareLease>| shares.into_iter().map(|share| (share.share, share)).collect();
        let store = scene.cluster.shared_store("eu").unwrap().clone();
        let before: BTreeMap<Share, ShareLease> = epochs(store.shares().await.unwrap());
        let core = scene.cluster.restart_core(&name).await.unwrap();
        scene.edge.attach(&name, &core);
        load.run(&scene, Duration::from_secs(5)).await;
        let after: BTreeMap<Share, ShareLease> = epochs(store.shares().await.unwrap());
        let left: Vec<Share> = before.values().filter(|lease| lease.node == name).map(|lease| lease.share).collect();
        assert_eq!(left.len(), 85);
        for share in left {
            let (was, is) = (&before[&share], &after[&share]);
            assert!(is.node != name && is.epoch == was.epoch + 1, "it changed hands once: {was:?}, {is:?}");
        }
        sleep(Duration::from_secs(6)).await;
        load.check(&scene).await;
    });
}

#[test]
fn a_second_process_of_one_name_is_refused() {
    sim(3, |world| async move {
        let mut scene = Scene::new(world.clone(), 2).await;
        let error = scene.cluster.start_core_as(&world, "eu", 9, &scene.names[0].clone()).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("another process serves this region under the name"), "{text}");
        sleep(Duration::from_secs(3)).await;
        assert_eq!(scene.owners().len(), 2, "whoever had the name has its shares");
    });
}
