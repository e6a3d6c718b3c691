//! Eras that are over: sealed, folded in rows, and what clients are told of them (R13, R4).

use super::*;
use crate::eras::{ROW_ORIGINS, folds_of};

const ALL: [Region; 3] = [EU, US, AP];

fn sealed(w: &mut World, region: Region, origin: Origin) -> bool {
    w.core(region).node.era_table.is_sealed(origin)
}

fn link_all(w: &mut World, region: Region) {
    for other in ALL {
        if other != region && w.cores[&other].is_some() {
            w.link(region, other);
        }
    }
    w.settle();
}

fn crash(w: &mut World, region: Region) {
    w.kill(region);
    w.start(region);
    link_all(w, region);
}

fn gaps(w: &mut World, c: Conn, origin: Origin, from: u64, to: u64) -> Vec<v1::gap::Reason> {
    w.told(c).pages.clear();
    let pull = v1::PullEntries {
        conversation: Bytes::copy_from_slice(&alice_and_bob().0),
        origin: Some(origin.into()),
        from,
        to,
        ..Default::default()
    };
    w.frame(c, 77, v1::frame::Body::Pull(pull));
    w.told(c).pages.iter().flat_map(|p| &p.gaps).map(|(_, _, reason)| *reason).collect()
}

fn eras(w: &mut World, c: Conn, origins: &[Origin]) -> Vec<v1::EraLog> {
    w.told(c).frames.clear();
    let origins = origins.iter().map(|o| (*o).into()).collect();
    let pull = v1::PullEras { conversation: Bytes::copy_from_slice(&alice_and_bob().0), origins };
    w.frame(c, 78, v1::frame::Body::PullEras(pull));
    let found = w.told(c).frames.iter().find_map(|f| match &f.body {
        Some(v1::frame::Body::Eras(eras)) => Some(eras.logs.clone()),
        _ => None,
    });
    found.expect("an answer")
}

#[test]
fn a_former_era_is_sealed_once_all_regions_hold_what_there_is_and_more_of_it_is_lost() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let old = w.send(alice, 1).place.origin;
    w.pass(Duration::from_secs(3));
    assert!(!sealed(&mut w, EU, old), "nothing seals the era that goes on");
    crash(&mut w, EU);
    let alice = w.connect(EU, 2, "alice", "phone");
    assert_eq!(gaps(&mut w, alice, old, 2, 3), [v1::gap::Reason::NotHere], "not known yet");
    w.pass(Duration::from_secs(10));
    for region in ALL {
        assert!(sealed(&mut w, region, old), "{region}");
        assert_eq!(w.core(region).node.era_counts().0, 0);
    }
    assert_eq!(gaps(&mut w, alice, old, 2, 3), [v1::gap::Reason::Lost]);
    let logs = eras(&mut w, alice, &[Origin { region: EU, era: 4711 }]);
    assert_eq!(logs.len(), 2);
    assert_eq!((logs[0].origin, logs[0].head, logs[0].sealed), (Some(old.into()), 1, true));
    assert_eq!((logs[1].head, logs[1].sealed), (0, false), "nobody knows of that one");
    // It is remembered.
    crash(&mut w, US);
    assert!(sealed(&mut w, US, old));
}

#[test]
fn a_peer_that_is_down_keeps_an_era_open_and_what_it_alone_holds_comes_first() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(3));
    let before = w.backup(EU);
    w.unlink(EU, US);
    let old = w.send(alice, 2).place.origin; // ap alone gets it
    w.kill(EU);
    w.kill(AP);
    w.graveyard.insert(EU, before); // and eu loses it
    w.start(EU);
    w.link(EU, US);
    w.pass(Duration::from_secs(20));
    assert!(!sealed(&mut w, EU, old), "ap may hold more");
    w.start(AP);
    link_all(&mut w, AP);
    w.pass(Duration::from_secs(10));
    for region in ALL {
        assert!(sealed(&mut w, region, old), "{region}");
        assert_eq!(w.log(region, old), ["m1", "m2"], "{region}");
    }
}

#[test]
fn a_restored_store_learns_of_the_lives_that_it_has_forgotten_and_seals_them() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(3));
    let backup = w.backup(EU);
    crash(&mut w, EU);
    let alice = w.connect(EU, 2, "alice", "phone");
    let forgotten = w.send(alice, 2).place.origin;
    w.pass(Duration::from_secs(10));
    w.kill(EU);
    w.restore(EU, &backup);
    w.start(EU);
    assert_eq!(w.core(EU).node.era_table.get(forgotten), None);
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(10));
    for region in ALL {
        assert!(sealed(&mut w, region, forgotten), "{region}");
    }
    let current = w.core(EU).node.origin();
    let start = |w: &mut World, origin| w.core(US).node.era_table.get(origin).unwrap().start;
    assert!(start(&mut w, forgotten) < start(&mut w, current), "they are still in order");
}

#[test]
fn forty_crashes_leave_a_short_row_and_every_message_to_be_had() {
    let mut w = World::new();
    for n in 1..=40 {
        let alice = w.connect(EU, n, "alice", "phone");
        w.send(alice, n);
        let bob = w.connect(US, n, "bob", "phone");
        w.post(bob, SendRequest { peer: Some(user("alice")), ..message(n) });
        w.settle();
        // Bob reads everything that there is.
        let read: Heads = w.core(US).node.conversations[&alice_and_bob()].published.clone();
        let read = crate::wire::compact::origin_heads_to_wire(&read);
        let conversation = Bytes::copy_from_slice(&alice_and_bob().0);
        w.frame(bob, 50, v1::frame::Body::Mark(v1::Mark { conversation, read }));
        w.pass(Duration::from_secs(1));
        for region in [EU, US] {
            crash(&mut w, region);
        }
        w.pass(Duration::from_secs(8));
    }
    for region in ALL {
        for name in ["alice", "bob"] {
            let row = w.core(region).disk.rows[&(user(name), alice_and_bob())].clone();
            assert!(row.heads.len() <= ROW_ORIGINS, "{region} {name}: {:?}", row.heads);
            assert_eq!(row.heads.values().sum::<u64>(), 80, "{region} {name}");
            let read = if name == "bob" { &row.read } else { &row.peer_read };
            assert!(read.len() <= ROW_ORIGINS, "{region} {name}: {read:?}");
            assert!(folds_of(read, EU).count() == 1 && folds_of(read, US).count() == 1, "{region} {name}: {read:?}");
        }
    }
    let bob = w.connect(AP, 99, "bob", "tablet");
    let logs = eras(&mut w, bob, &[]);
    assert_eq!(logs.len(), 80);
    assert_eq!(logs.iter().map(|l| l.head).sum::<u64>(), 80);
    // Whoever knows the logs can tell by the number that he has them all.
    let row = w.core(AP).disk.rows[&(user("bob"), alice_and_bob())].clone();
    for region in [EU, US] {
        let (through, entries) = folds_of(&row.heads, region).next().unwrap();
        let of = |l: &&v1::EraLog| l.sealed && l.start <= through && l.origin.unwrap().region == u32::from(region);
        assert_eq!(logs.iter().filter(of).map(|l| l.head).sum::<u64>(), entries);
    }
}

#[test]
fn a_disk_that_was_thought_lost_comes_back_and_its_tail_is_taken() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.pass(Duration::from_secs(3));
    w.unlink(EU, US);
    w.unlink(EU, AP);
    let old = w.send(alice, 2).place.origin;
    w.kill(EU);
    let lost = w.graveyard.insert(EU, Disk::default()).unwrap();
    w.start(EU);
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(10));
    assert!(sealed(&mut w, US, old) && w.log(US, old).len() == 1);
    w.kill(EU);
    w.graveyard.insert(EU, lost);
    w.start(EU);
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(10));
    for region in ALL {
        assert_eq!(w.log(region, old), ["m1", "m2"], "{region}");
    }
    let bob = w.connect(US, 1, "bob", "phone");
    assert_eq!(gaps(&mut w, bob, old, 2, 2), []);
}

#[test]
fn nobody_but_a_region_itself_says_that_its_era_is_over() {
    let mut w = World::new();
    let own = w.core(EU).node.origin();
    let now = w.now(0);
    let era = crate::wire::node_v1::Era { origin: Some(own.into()), start: 99, sealed: true };
    let told = crate::wire::node_v1::Eras { eras: vec![era] };
    w.core(EU).node.peer_frame(now, US, LinkBody::Eras(told));
    assert!(!sealed(&mut w, EU, own));
    assert_eq!(w.core(EU).node.era_table.get(own).unwrap().start, 1);
    let bad = crate::wire::node_v1::Eras { eras: vec![crate::wire::node_v1::Era::default()] };
    w.core(EU).node.peer_frame(now, US, LinkBody::Eras(bad));
    w.carry_out(EU);
    assert!(matches!(w.core(EU).notices.last(), Some(Notice::BadPeer { region: US, .. })));
}
