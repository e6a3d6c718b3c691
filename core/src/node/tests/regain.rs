//! Read marks that only a lost store held come back from the regions that were told of them (R11, R13).

use super::*;

fn with(name: &str) -> ConvId {
    ConvId::direct(SALT, &user("alice"), &user(name))
}

/// Alice writes to so many users from EU, and each reads it in US.
fn read_by_many(w: &mut World, users: std::ops::Range<u64>) {
    let alice = w.connect(EU, 1, "alice", "phone");
    for n in users {
        let name = format!("u{n}");
        let send = SendRequest { conversation: with(&name), peer: Some(user(&name)), ..message(1) };
        w.post(alice, send);
        w.settle();
        let origin = w.core(EU).node.origin();
        let reader = w.connect(US, 1_000 + n, &name, "pc");
        let read = vec![v1::OriginHead { origin: Some(origin.into()), seq: 1 }];
        let conversation = Bytes::copy_from_slice(&with(&name).0);
        w.frame(reader, 9, v1::frame::Body::Mark(v1::Mark { conversation, read }));
        w.ups(US, 1, vec![Up::Close { conn: reader.conn }]);
    }
    w.pass(Duration::from_secs(5));
}

/// What a user has read by a region's disk, and that the other user was told so.
fn read_at(w: &mut World, region: Region, name: &str) -> (u64, u64) {
    let rows = &w.core(region).disk.rows;
    let of = |who: &str| rows.get(&(user(who), with(name))).cloned().unwrap_or_default();
    (of(name).read.values().sum(), of("alice").peer_read.values().sum())
}

fn link_all(w: &mut World, region: Region) {
    for other in [EU, US, AP] {
        if other != region && w.cores[&other].is_some() {
            w.link(region, other);
        }
    }
    w.settle();
}

fn returned(w: &World) -> u64 {
    w.cores.values().flatten().map(|core| core.node.counters().marks_returned).sum()
}

#[test]
fn marks_that_a_lost_store_held_are_there_again_without_any_device() {
    let mut w = World::new();
    read_by_many(&mut w, 0..3);
    assert_eq!(read_at(&mut w, EU, "u1"), (1, 1), "durable in both");
    w.kill(EU);
    w.bury(EU, Disk::default());
    w.start(EU);
    assert_eq!(read_at(&mut w, EU, "u1"), (0, 0));
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(5));
    for name in ["u0", "u1", "u2"] {
        assert_eq!(read_at(&mut w, EU, name), (1, 1), "{name}");
    }
    assert_eq!(w.core(EU).node.refilling(), (0, false));
    assert_eq!(returned(&w), 3, "by the peer that was asked first; the other saw that nothing differs");
    let left = |w: &mut World, r| w.core(r).disk.todo.values().filter(|(_, user)| user.is_some()).count();
    assert_eq!(left(&mut w, US) + left(&mut w, AP), 0, "no todo stands for them");
}

#[test]
fn a_restored_backup_gets_the_marks_made_since_though_no_head_differs() {
    let mut w = World::new();
    let (alice, bob) = (w.connect(EU, 1, "alice", "phone"), w.connect(US, 2, "bob", "pc"));
    let sent = w.send(alice, 1);
    w.pass(Duration::from_secs(5));
    let backup = w.backup(EU);
    let read = vec![v1::OriginHead { origin: Some(sent.place.origin.into()), seq: 1 }];
    let conversation = Bytes::copy_from_slice(&alice_and_bob().0);
    w.frame(bob, 9, v1::frame::Body::Mark(v1::Mark { conversation, read }));
    w.pass(Duration::from_secs(5));
    assert_eq!(read_at(&mut w, EU, "bob"), (1, 1));
    w.kill(EU);
    w.restore(EU, &backup);
    w.start(EU);
    assert_eq!(read_at(&mut w, EU, "bob"), (0, 0));
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(5));
    assert_eq!(read_at(&mut w, EU, "bob"), (1, 1));
    assert_eq!(w.core(EU).node.refilling(), (0, false));
}

#[test]
fn a_region_that_lost_nothing_is_told_no_mark_again() {
    let mut w = World::new();
    read_by_many(&mut w, 0..5);
    w.kill(EU);
    w.start(EU);
    link_all(&mut w, EU);
    w.pass(Duration::from_secs(5));
    assert_eq!((w.core(EU).node.refilling(), returned(&w)), ((0, false), 0));
}

#[test]
fn marks_go_on_coming_back_after_the_link_or_either_side_has_died_in_the_middle() {
    let mut w = World::new();
    let users = 2 * u64::try_from(crate::node::regain::MARKS_PAGE).unwrap();
    read_by_many(&mut w, 0..users);
    w.kill(EU);
    w.bury(EU, Disk::default());
    w.kill(AP);
    w.start(EU);
    w.link(EU, US);
    let back = |w: &mut World| (0..users).filter(|n| read_at(w, EU, &format!("u{n}")) == (1, 1)).count();
    // Each time a little of it gets through.
    for turn in 0..6 {
        for _ in 0..40 {
            w.pass(Duration::from_millis(100));
            if w.core(US).node.is_giving_marks(EU) {
                break;
            }
        }
        w.pass(Duration::from_millis(600));
        match turn % 3 {
            0 => w.unlink(EU, US),
            1 => {
                w.kill(EU);
                w.start(EU);
            }
            _ => {
                w.kill(US);
                w.start(US);
            }
        }
        w.link(EU, US);
    }
    w.pass(Duration::from_secs(60));
    assert_eq!(back(&mut w), usize::try_from(users).unwrap());
    w.start(AP);
    link_all(&mut w, AP);
    w.pass(Duration::from_secs(60));
    assert_eq!(w.core(EU).node.refilling(), (0, false));
    assert_eq!(back(&mut w), usize::try_from(users).unwrap());
}
