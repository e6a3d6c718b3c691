//! Eras and refills (R13, R14): what a region keeps, what it loses, and what it gets back.

use super::*;
use crate::codes::Code;
use crate::node::Counters;

const ALL: [Region; 3] = [EU, US, AP];

fn counters(w: &mut World, region: Region) -> Counters {
    w.core(region).node.counters()
}

/// All logs of a region, with their lengths.
fn logs(w: &mut World, region: Region) -> BTreeMap<(ConvId, Origin), usize> {
    let disk = &w.core(region).disk;
    disk.logs.iter().map(|(k, l)| (*k, l.len())).filter(|(_, l)| *l > 0).collect()
}

fn marks(w: &mut World, region: Region) -> Vec<String> {
    let mut disk = w.core(region).disk.clone();
    disk.sync();
    let standing = disk.meta.iter().filter(|(k, v)| k.starts_with(MARK_KEY) && !v.is_empty());
    standing.map(|(k, _)| k.clone()).collect()
}

fn link_all(w: &mut World, region: Region) {
    for other in ALL {
        if other != region && w.cores[&other].is_some() {
            w.link(region, other);
        }
    }
    w.settle();
}

/// Alice writes to so many users from one region.
fn write_to_many(w: &mut World, alice: Conn, users: std::ops::Range<u64>) {
    for n in users {
        let peer = user(&format!("u{n}"));
        let conversation = ConvId::direct(SALT, &user("alice"), &peer);
        w.post(alice, SendRequest { conversation, peer: Some(peer), ..message(1) });
    }
    w.settle();
}

fn stable_of(w: &mut World, c: Conn, log: Origin) -> (u64, u32) {
    let logs = vec![v1::UnstableLog { conversation: alice_and_bob().0.to_vec().into(), origins: vec![log.into()] }];
    w.frame(c, 0, v1::frame::Body::Unstable(v1::Unstable { logs }));
    let stable = w.told(c).stable().last().unwrap().clone();
    (stable.upto, stable.regions)
}

#[test]
fn a_clean_restart_keeps_the_era_and_nobody_fetches_anything_again() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    for n in 1..=20 {
        w.send(alice, n);
    }
    w.pass(Duration::from_secs(5));
    let era = w.core(EU).node.origin();
    let before = ALL.map(|r| counters(&mut w, r).shipped);
    w.stop(EU);
    w.start(EU);
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(5));
    assert_eq!(w.core(EU).node.origin(), era);
    assert_eq!(marks(&mut w, EU), Vec::<String>::new());
    assert_eq!(counters(&mut w, EU).shipped, 0);
    assert_eq!([US, AP].map(|r| counters(&mut w, r).shipped), [before[1], before[2]]);
    let alice = w.connect(EU, 2, "alice", "phone");
    assert_eq!(w.send(alice, 21).place.origin, era);
    assert_eq!(stable_of(&mut w, alice, era).0, 21);
}

#[test]
fn a_crash_takes_a_new_era_and_one_comparison_settles_that_nothing_is_missing() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    for n in 1..=20 {
        w.send(alice, n);
    }
    w.pass(Duration::from_secs(5));
    let era = w.core(EU).node.origin();
    let before = [US, AP].map(|r| counters(&mut w, r).refill_offers);
    w.kill(EU);
    w.start(EU);
    assert_eq!(marks(&mut w, EU).len(), 2);
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(1));
    assert_ne!(w.core(EU).node.origin(), era);
    assert_eq!(marks(&mut w, EU), Vec::<String>::new());
    assert_eq!([US, AP].map(|r| counters(&mut w, r).refill_offers), before, "equal sums: nothing was offered");
}

#[test]
fn last_nights_backup_gets_back_what_it_had_acked_since_and_tells_its_users() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(5));
    let old = w.core(EU).node.origin();
    let backup = w.backup(EU);
    for n in 2..=9 {
        w.send(alice, n);
    }
    let bob = w.connect(AP, 1, "bob", "phone");
    w.post(bob, SendRequest { peer: Some(user("alice")), ..message(1) });
    w.settle();
    w.pass(Duration::from_secs(5)); // all of it is acked everywhere, and no todo is left
    let whole = logs(&mut w, US);
    w.kill(EU);
    w.restore(EU, &backup);
    w.start(EU);
    let refused = w.hello(EU, 7, "alice", "phone", v1::Hello::default());
    assert_eq!(w.told(refused).last, Some(Code::Refilling));
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(5));
    assert_eq!(logs(&mut w, EU), whole);
    assert_eq!(w.log(EU, old).len(), 9, "its own lost tail too");
    let alice = w.connect(EU, 8, "alice", "phone");
    assert_eq!(w.told(alice).welcome().rows.as_ref().unwrap().rows.len(), 1);
    assert_eq!(w.row(EU, "alice")[&old], 9);
    let next = w.send(alice, 10);
    assert_ne!(next.place.origin, old);
    assert!(w.core(EU).notices.iter().all(|n| !matches!(n, Notice::OwnTailLost { .. })));
    assert_eq!(w.core(EU).disk.number("restored"), None);
}

#[test]
fn a_lost_journal_tail_that_only_a_client_had_seen_gets_no_second_entry_of_its_numbers() {
    let mut w = World::new();
    w.unlink(EU, US);
    w.unlink(EU, AP);
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    let disk = w.backup(EU);
    let lost = w.send(alice, 2); // acked, then the disk loses it
    w.kill(EU);
    w.graveyard.insert(EU, disk);
    w.start(EU);
    let alice = w.connect(EU, 2, "alice", "phone");
    let again = w.send(alice, 3);
    assert_ne!(again.place.origin, lost.place.origin);
}

#[test]
fn one_backup_restored_twice_gives_two_eras_and_peers_follow_the_later() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    let backup = w.backup(EU);
    let mut seen = vec![w.core(EU).node.origin()];
    for round in 0..2 {
        w.kill(EU);
        w.restore(EU, &backup);
        w.start(EU);
        link_all(&mut w, EU);
        w.pass(Duration::from_secs(3));
        let origin = w.core(EU).node.origin();
        assert!(!seen.contains(&origin));
        seen.push(origin);
        let alice = w.connect(EU, 10 + round, "alice", "phone");
        w.send(alice, 2 + round);
        w.pass(Duration::from_secs(3));
        for peer in [US, AP] {
            assert_eq!(w.core(peer).node.eras[&EU].1, origin.era, "round {round}");
            assert!(w.core(peer).node.is_over(seen[seen.len() - 2]));
        }
    }
    assert_eq!(logs(&mut w, EU), logs(&mut w, AP));
    assert_eq!(seen.iter().map(|o| w.log(EU, *o).len()).sum::<usize>(), 3);
}

#[test]
fn a_clean_restart_while_a_peer_is_down_for_maintenance_takes_a_new_era() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(3));
    let era = w.core(EU).node.origin();
    w.stop(AP);
    w.stop(EU);
    w.start(EU);
    assert_ne!(w.core(EU).node.origin(), era);
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(2));
    assert_eq!(marks(&mut w, EU), [format!("{MARK_KEY}{AP}")], "compared with the one that is there");
    w.start(AP);
    link_all(&mut w, AP);
    w.pass(Duration::from_secs(2));
    assert_eq!(marks(&mut w, EU), Vec::<String>::new());
}

#[test]
fn regions_that_restart_together_confirm_each_other() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(3));
    let eras = ALL.map(|r| w.core(r).node.origin());
    ALL.into_iter().for_each(|r| w.stop(r));
    w.opening = ALL.into();
    ALL.into_iter().for_each(|r| w.start(r));
    assert_eq!(ALL.map(|r| w.core(r).node.origin()), eras);
}

#[test]
fn a_cleanly_stopped_store_that_is_set_back_is_told_by_its_peers() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(3));
    w.stop(EU);
    let monday = w.graveyard[&EU].clone();
    w.start(EU);
    link_all(&mut w, EU);
    let era = w.core(EU).node.origin();
    w.pass(Duration::from_secs(3));
    w.stop(EU);
    w.graveyard.insert(EU, monday); // copied back by hand: nothing in it says so
    w.start(EU);
    assert_ne!(w.core(EU).node.origin(), era);
}

#[test]
fn a_destroyed_disk_is_filled_again_from_one_peer() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    write_to_many(&mut w, alice, 0..1_500);
    w.pass(Duration::from_secs(5));
    let whole = logs(&mut w, US);
    assert_eq!(whole.len(), 1_500);
    w.kill(AP);
    w.graveyard.insert(AP, Disk::default());
    w.start(AP);
    let before = [EU, US].map(|r| counters(&mut w, r).shipped);
    link_all(&mut w, AP);
    w.pass(Duration::from_secs(5));
    assert_eq!(logs(&mut w, AP), whole);
    assert_eq!(marks(&mut w, AP), Vec::<String>::new());
    let shipped = [EU, US].map(|r| counters(&mut w, r).shipped);
    assert_eq!(shipped[0] - before[0] + shipped[1] - before[1], 1_500, "each entry once");
    assert!(w.core(AP).disk.rows.contains_key(&(user("u7"), ConvId::direct(SALT, &user("alice"), &user("u7")))));
    w.pass(Duration::from_secs(5));
    for region in ALL {
        w.core(region).disk.sync();
        assert!(w.core(region).disk.todo.is_empty(), "{:?}", w.core(region).disk.todo);
    }
}

#[test]
fn a_crash_of_either_side_in_the_middle_of_a_refill_costs_a_comparison_and_no_entry() {
    for crash in [AP, EU] {
        let mut w = World::new();
        let alice = w.connect(EU, 1, "alice", "phone");
        write_to_many(&mut w, alice, 0..900);
        w.pass(Duration::from_secs(5));
        let whole = logs(&mut w, US);
        w.kill(AP);
        w.kill(US);
        w.graveyard.insert(AP, Disk::default());
        w.start(AP);
        w.link(AP, EU);
        for _ in 0..800 {
            w.commit(AP);
            let frames: Vec<_> =
                w.links.iter_mut().filter_map(|(way, queue)| Some((*way, queue.pop_front()?))).collect();
            for ((from, to), body) in frames {
                let now = w.now(0);
                w.core(to).node.peer_frame(now, from, body);
                w.carry_out(to);
            }
        }
        let half = w.core(AP).disk.logs.len();
        assert!((100..800).contains(&half), "{half}");
        w.kill(crash);
        w.start(crash);
        w.start(US);
        link_all(&mut w, US);
        w.link(AP, EU);
        w.pass(Duration::from_secs(5));
        assert_eq!(logs(&mut w, AP), whole, "crash of {crash}");
        assert_eq!(marks(&mut w, AP), Vec::<String>::new());
        assert_eq!(marks(&mut w, EU), Vec::<String>::new());
    }
}

#[test]
fn what_the_asker_has_more_of_goes_the_other_way() {
    let mut w = World::new();
    w.unlink(EU, AP);
    w.unlink(EU, US);
    let alice = w.connect(EU, 1, "alice", "phone");
    write_to_many(&mut w, alice, 0..5);
    let mut disk = w.backup(EU);
    disk.todo.clear(); // what a repair could not save
    w.kill(EU);
    w.graveyard.insert(EU, disk);
    w.start(EU);
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(5));
    for peer in [US, AP] {
        assert_eq!(logs(&mut w, peer).len(), 5);
    }
}

#[test]
fn a_peer_that_is_being_refilled_does_not_count_as_a_holder() {
    let mut w = World::new();
    w.unlink(EU, AP);
    let alice = w.connect(EU, 1, "alice", "phone");
    let m1 = w.send(alice, 1);
    w.unlink(US, AP);
    w.pass(Duration::from_secs(5));
    assert_eq!(stable_of(&mut w, alice, m1.place.origin).0, 1, "us holds it, and has no todo any more");
    w.kill(US);
    w.graveyard.insert(US, Disk::default());
    w.start(US);
    w.core(US).stalled = true; // nothing gets durable there
    w.link(EU, US);
    w.settle();
    assert_eq!(stable_of(&mut w, alice, m1.place.origin).0, 0);
    w.core(US).stalled = false;
    w.settle();
    w.pass(Duration::from_secs(1));
    assert_eq!(w.told(alice).stable().last().unwrap().upto, 1, "told as soon as it holds it again");
}

#[test]
fn an_incomplete_peer_is_remembered_over_a_restart_of_the_one_that_knows() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let m1 = w.send(alice, 1);
    w.pass(Duration::from_secs(5));
    w.kill(US);
    w.kill(AP);
    w.graveyard.insert(US, Disk::default());
    w.start(US);
    w.core(US).stalled = true;
    w.link(EU, US);
    w.settle();
    w.core(EU).disk.sync();
    w.kill(US);
    w.stop(EU);
    w.start(EU);
    let alice = w.connect(EU, 2, "alice", "phone");
    assert_eq!(stable_of(&mut w, alice, m1.place.origin).0, 0);
}

#[test]
fn live_messages_pass_a_refill() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let body = Bytes::from(vec![b'x'; 60_000]);
    for n in 0..200 {
        let peer = user(&format!("u{n}"));
        let conversation = ConvId::direct(SALT, &user("alice"), &peer);
        w.post(alice, SendRequest { conversation, peer: Some(peer), body: body.clone(), ..message(1) });
    }
    w.settle();
    w.pass(Duration::from_secs(5));
    w.kill(AP);
    w.kill(US);
    w.graveyard.insert(AP, Disk::default());
    w.start(AP);
    w.core(AP).stalled = true; // acks nothing yet: the window fills
    let before = counters(&mut w, EU).shipped;
    w.link(EU, AP);
    w.settle();
    let queued = counters(&mut w, EU).shipped - before;
    assert!((5..100).contains(&queued), "the window bounds what is on the way: {queued} entries");
    w.post(alice, message(1));
    w.commit(EU);
    let live = |body: &LinkBody| match body {
        LinkBody::Ship(ship) => ship.conversation[..] == alice_and_bob().0[..],
        _ => false,
    };
    assert!(w.links[&(EU, AP)].iter().any(live), "a live message needs no place behind the refill");
    w.core(AP).stalled = false;
    w.pass(Duration::from_secs(10));
    assert_eq!(logs(&mut w, AP), logs(&mut w, EU));
}

#[test]
fn a_damaged_log_at_the_asker_does_not_keep_the_mark_standing() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let m1 = w.send(alice, 1);
    w.pass(Duration::from_secs(5));
    w.kill(AP);
    w.graveyard.insert(AP, Disk::default());
    w.start(AP);
    w.core(AP).damaged.insert((alice_and_bob(), m1.place.origin));
    link_all(&mut w, AP);
    w.pass(Duration::from_secs(2));
    assert_eq!(marks(&mut w, AP), Vec::<String>::new());
}

#[test]
fn a_comparison_of_another_size_is_refused() {
    let mut w = World::new();
    let now = w.now(0);
    let compare = crate::wire::node_v1::Compare { ticket: 1, slots: vec![1; 4095], ..Default::default() };
    w.core(EU).node.peer_frame(now, US, LinkBody::Compare(compare));
    w.carry_out(EU);
    assert!(matches!(w.core(EU).notices.last(), Some(Notice::BadPeer { region: US, .. })));
}
