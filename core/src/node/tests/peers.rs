//! Several regions: shipping, holes, stability, lost and returning regions.

use super::*;
use crate::codes::Code;

fn origin(world: &mut World, region: Region) -> Origin {
    world.core(region).node.origin()
}

/// Asks how alice's messages acked in `log` stand.
fn ask(w: &mut World, c: Conn, log: Origin) -> v1::Stable {
    let logs = vec![v1::UnstableLog { conversation: alice_and_bob().0.to_vec().into(), origins: vec![log.into()] }];
    w.frame(c, 0, v1::frame::Body::Unstable(v1::Unstable { logs }));
    w.told(c).stable().last().unwrap().clone()
}

fn offer(n: u64, ack: &Ack) -> SendRequest {
    let key = ack.first.unwrap_or(ack.place);
    SendRequest { offer: Some((key, Bytes::copy_from_slice(&ack.receipt))), ..message(n) }
}

#[test]
fn a_message_finds_its_user_in_another_region_and_becomes_stable() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let bob = w.connect(AP, 1, "bob", "phone");
    let ack = w.send(alice, 1);
    assert_eq!(w.told(bob).pushes[0].entries[0].place, ack.place);
    let stable = w.told(alice).stable();
    assert!(stable.iter().any(|s| s.upto == 1 && s.regions >= 2), "{stable:?}");
    let eu = origin(&mut w, EU);
    for region in [US, AP] {
        assert_eq!(w.log(region, eu), ["m1"]);
    }
}

#[test]
fn both_users_write_in_their_own_regions_and_all_rows_agree() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let bob = w.connect(AP, 1, "bob", "pc");
    for n in 1..=50 {
        w.post(alice, message(n));
        w.post(bob, SendRequest { peer: Some(user("alice")), ..message(n) });
    }
    w.settle();
    w.pass(Duration::from_secs(2));
    let expected: Heads = [(origin(&mut w, EU), 50), (origin(&mut w, AP), 50)].into();
    for region in [EU, US, AP] {
        for name in ["alice", "bob"] {
            assert_eq!(w.row(region, name), expected, "{name} in {region}");
        }
    }
}

#[test]
fn a_link_ack_means_durable_in_the_receivers_store() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.core(US).stalled = true;
    w.core(AP).stalled = true;
    w.send(alice, 1);
    assert!(w.told(alice).stable().is_empty());
    w.core(US).stalled = false;
    w.settle();
    assert_eq!(w.told(alice).stable().last().unwrap().upto, 1);
}

#[test]
fn a_link_that_was_down_resumes_where_it_was_and_ships_nothing_twice() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    w.unlink(EU, AP);
    w.unlink(US, AP);
    for n in 2..=700 {
        w.send(alice, n);
    }
    w.pass(Duration::from_secs(10));
    let before = w.core(EU).node.counters().shipped;
    w.link(EU, AP);
    w.settle();
    w.pass(Duration::from_secs(1));
    let eu = origin(&mut w, EU);
    assert_eq!(w.log(AP, eu).len(), 700);
    assert_eq!(w.core(EU).node.counters().shipped - before, 699);
}

#[test]
fn a_receiver_that_crashed_gets_what_it_lost_and_the_shipper_that_crashed_goes_on() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    for n in 1..=5 {
        w.send(alice, n);
    }
    let eu = origin(&mut w, EU);
    w.kill(AP);
    w.send(alice, 6);
    w.kill(EU);
    w.start(AP);
    w.start(EU);
    w.link(EU, AP);
    w.link(EU, US);
    w.settle();
    assert_eq!(w.log(AP, eu).len(), 6);
    w.pass(Duration::from_secs(5));
    w.core(EU).disk.sync();
    assert!(w.core(EU).disk.todo.keys().all(|(t, _)| *t != Target::Peer(AP)), "{:?}", w.core(EU).disk.todo);
}

#[test]
fn survivors_fill_each_others_holes() {
    let mut w = World::new();
    w.unlink(EU, AP);
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    let eu = origin(&mut w, EU);
    w.kill(EU);
    assert_eq!((w.log(US, eu), w.log(AP, eu)), (vec!["m1".to_owned()], vec![]));
    w.pass(Duration::from_secs(4));
    assert_eq!(w.log(AP, eu), ["m1"]);
}

#[test]
fn a_lost_regions_message_is_offered_elsewhere_and_keeps_its_place() {
    let mut w = World::new();
    let bob = w.connect(AP, 1, "bob", "phone");
    let alice = w.connect(EU, 1, "alice", "phone");
    let m9 = w.send(alice, 9);
    let eu = m9.place.origin;
    w.unlink(EU, US);
    w.unlink(EU, AP);
    let m10 = w.send(alice, 10); // acked, held by nobody else
    w.kill(EU);
    let alice = w.connect(US, 2, "alice", "phone");
    let at_once = ask(&mut w, alice, eu);
    assert_eq!((at_once.upto, at_once.offer), (1, false), "its author may still be alive");
    let m11 = SendRequest { floor: 11, seen_hlc: m10.place.hlc, ..message(11) };
    w.post(alice, m11);
    w.settle();
    let m11 = w.ack(alice, 11);
    w.pass(Duration::from_secs(31));
    assert!(ask(&mut w, alice, eu).offer);
    w.post(alice, offer(10, &m10));
    w.settle();
    let again = w.ack(alice, 10);
    assert_eq!(again.first, Some(m10.place));
    assert!(again.first.unwrap() < m11.place);
    let shown: Vec<String> = w
        .told(bob)
        .pushes
        .iter()
        .flat_map(|p| &p.entries)
        .map(|e| String::from_utf8_lossy(&e.body).into_owned())
        .collect();
    assert_eq!(shown, ["m9", "m11", "m10"]);
    // The dead region returns with m10: a copy, not a second message.
    w.start(EU);
    w.link(EU, US);
    w.link(EU, AP);
    w.pass(Duration::from_secs(5));
    assert_eq!(w.log(AP, eu), ["m9", "m10"]);
    let pushed = w.told(bob).pushes.iter().flat_map(|p| &p.entries).filter(|e| &e.body[..] == b"m10").count();
    assert_eq!(pushed, 1, "no second push of a copy");
    assert!(w.told(bob).pushes.last().unwrap().heads.contains_key(&eu), "but the row tells of it");
}

#[test]
fn a_forged_receipt_is_told_and_gains_no_place() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let m1 = w.send(alice, 1);
    let forged = Ack { place: crate::ids::Place { hlc: 5, ..m1.place }, receipt: [9; 16], ..m1.clone() };
    w.post(alice, offer(2, &forged));
    w.settle();
    let ack = w.ack(alice, 2);
    assert!(ack.receipt_refused && ack.first.is_none() && ack.place > m1.place);
}

#[test]
fn an_era_that_is_over_is_stable_only_with_two_living_holders() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.unlink(EU, AP);
    w.unlink(US, AP);
    let m1 = w.send(alice, 1); // eu and us hold it
    w.kill(EU);
    w.graveyard.insert(EU, Disk::default()); // its disk is gone: it starts anew
    w.start(EU);
    w.link(EU, US);
    w.unlink(EU, US);
    let alice = w.connect(US, 2, "alice", "phone");
    let stands = ask(&mut w, alice, m1.place.origin);
    assert_eq!((stands.upto, stands.offer), (0, true), "us alone holds it");
    w.link(US, AP);
    w.pass(Duration::from_secs(4));
    assert_eq!(w.log(AP, m1.place.origin), ["m1"]);
    assert_eq!(ask(&mut w, alice, m1.place.origin).upto, 1);
}

#[test]
fn an_install_that_moved_ends_its_ghost_in_the_old_region() {
    let mut w = World::new();
    let ghost = w.connect(EU, 1, "alice", "phone");
    w.pass(Duration::from_secs(1));
    w.connect(US, 1, "alice", "phone");
    let tablet = w.connect(US, 2, "alice", "tablet");
    w.pass(Duration::from_secs(1));
    assert_eq!(w.told(ghost).last, Some(Code::Replaced));
    assert_eq!(w.told(tablet).last, None);
}

#[test]
fn a_fast_region_is_followed_and_alarmed() {
    let mut w = World::new();
    w.core(US).skew_ms = 600_000;
    let alice = w.connect(US, 1, "alice", "phone");
    let bob = w.connect(EU, 1, "bob", "phone");
    let ahead = w.send(alice, 1);
    w.post(bob, SendRequest { peer: Some(user("alice")), ..message(1) });
    w.settle();
    assert!(w.ack(bob, 1).place.hlc > ahead.place.hlc, "an answer comes after what it answers");
    assert!(w.core(EU).notices.iter().any(|n| matches!(n, Notice::ClockAhead { region: US, .. })));
}

#[test]
fn one_region_alone_is_stable_at_once() {
    let settings = |w: &mut World| w.core(EU).node.settings.clone();
    let mut w = World::new();
    let mut alone = settings(&mut w);
    alone.peers.clear();
    let now = w.now(0);
    w.core(EU).node = Node::new(alone, Vec::new(), now);
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    assert_eq!(w.told(alice).stable()[0].upto, 1);
}

#[test]
fn a_region_that_was_never_linked_is_not_believed_to_hold_what_was_there_before_it() {
    let mut w = World::new();
    let log = origin(&mut w, EU);
    let mut settings = w.core(EU).node.settings.clone();
    settings.peers.clear();
    let now = w.now(0);
    w.core(EU).node = Node::new(settings.clone(), Vec::new(), now);
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    // The region is given a peer, and restarted before the two have met.
    settings.peers.insert(US);
    settings.known.clear();
    w.core(EU).node = Node::new(settings, Vec::new(), now);
    let alice = w.connect(EU, 2, "alice", "phone");
    assert_eq!(ask(&mut w, alice, log).upto, 0);
}

#[test]
fn nonsense_of_a_peer_is_reported_and_left_out() {
    let mut w = World::new();
    let now = w.now(0);
    let eu = origin(&mut w, EU);
    let ship = crate::wire::node_v1::Ship {
        conversation: alice_and_bob().0.to_vec().into(),
        origin: Some(eu.into()),
        first_seq: 1,
        entries: vec![Bytes::from_static(b"garbage")],
    };
    w.core(US).notices.clear();
    w.core(US).node.peer_frame(now, EU, LinkBody::Ship(ship));
    w.carry_out(US);
    assert!(matches!(w.core(US).notices[..], [Notice::BadPeer { region: EU, .. }]));
}

#[test]
fn an_author_that_comes_back_with_its_disk_makes_its_old_log_stable_again() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.unlink(EU, AP);
    w.unlink(US, AP);
    let m1 = w.send(alice, 1);
    w.kill(EU);
    w.start(EU);
    w.link(EU, US);
    let alice = w.connect(US, 2, "alice", "phone");
    assert_eq!(ask(&mut w, alice, m1.place.origin).upto, 0, "not known yet");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.told(alice).stable().last().unwrap().upto, 1);
}

#[test]
fn a_shipment_that_does_not_follow_what_is_held_is_asked_for_again() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    w.send(alice, 1);
    let eu = origin(&mut w, EU);
    w.post(alice, message(2));
    w.commit(EU);
    w.links.get_mut(&(EU, AP)).unwrap().retain(|body| !matches!(body, LinkBody::Ship(_)));
    w.settle();
    assert_eq!(w.log(AP, eu), ["m1"]);
    w.send(alice, 3);
    assert_eq!(w.log(AP, eu), ["m1", "m2", "m3"]);
}

#[test]
fn a_peer_with_a_full_disk_gets_the_entries_once_there_is_room() {
    let mut w = World::new();
    let alice = w.connect(EU, 1, "alice", "phone");
    let eu = origin(&mut w, EU);
    w.core(AP).failures.extend([Appended::Full, Appended::Full, Appended::Full]);
    w.send(alice, 1);
    assert!(w.log(AP, eu).is_empty());
    w.pass(Duration::from_secs(5));
    assert_eq!(w.log(AP, eu), ["m1"]);
}

#[test]
fn a_region_whose_clock_is_far_off_takes_no_sends_until_it_is_set_right() {
    let mut w = World::new();
    w.core(US).skew_ms = 600_000;
    let alice = w.connect(US, 1, "alice", "phone");
    let beats = |w: &mut World, skew: i64| {
        for from in [EU, AP] {
            let wall_ms = w.now(0).wall_ms;
            let now = w.now(skew);
            let beat = crate::wire::node_v1::Beat { wall_ms, ..Default::default() };
            w.core(US).node.peer_frame(now, from, LinkBody::Beat(beat));
            w.carry_out(US);
        }
    };
    beats(&mut w, 600_000);
    w.post(alice, message(1));
    w.settle();
    assert_eq!(w.told(alice).errors(), [Code::ClockOff as u32]);
    assert!(w.core(US).notices.iter().any(|n| matches!(n, Notice::OwnClockOff { stopped: true, .. })));
    w.core(US).skew_ms = 0;
    beats(&mut w, 0);
    assert_eq!(w.send(alice, 1).place.seq, 1);
}

#[test]
fn a_ghost_whose_commit_comes_late_ends_itself_and_not_the_connection_in_use() {
    let commit = |order| v1::frame::Body::Commit(v1::Commit { order, ..Default::default() });
    let mut w = World::new();
    let first = w.hello(EU, 1, "alice", "phone", v1::Hello::default());
    let second = w.hello(EU, 2, "alice", "phone", v1::Hello::default());
    w.frame(second, 0, commit(2));
    w.frame(first, 0, commit(1));
    assert_eq!((w.told(first).last, w.told(second).last), (Some(Code::Replaced), None));
    // The same between regions, whatever their clocks say.
    w.core(US).skew_ms = -60_000;
    let third = w.hello(US, 3, "alice", "phone", v1::Hello::default());
    w.frame(third, 0, commit(3));
    w.pass(Duration::from_secs(1));
    assert_eq!((w.told(second).last, w.told(third).last), (Some(Code::Replaced), None));
}

#[test]
fn a_tablet_that_connects_makes_no_ghost_of_the_phone() {
    let mut w = World::new();
    let phone = w.connect(EU, 1, "alice", "phone");
    w.pass(Duration::from_secs(1));
    w.connect(US, 1, "alice", "tablet");
    w.pass(Duration::from_secs(1));
    w.connect(EU, 2, "alice", "laptop");
    w.pass(Duration::from_secs(1));
    assert_eq!(w.told(phone).last, None);
}
