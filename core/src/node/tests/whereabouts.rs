//! Routes between regions, as devices and operators see them.

use prost::Message as _;

use super::super::routes::Holder;
use super::*;
use crate::codes::Code;
use crate::kinds::CELL;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl World {
    fn commits(&mut self, region: Region, conn: u64, order: u64) -> Conn {
        let c = self.hello(region, conn, "alice", "phone", v1::Hello::default());
        self.frame(c, 0, v1::frame::Body::Commit(v1::Commit { order, ..v1::Commit::default() }));
        c
    }
}

#[test]
fn an_install_that_moved_while_regions_were_cut_off_has_one_connection_in_the_end() {
    let mut w = World::new();
    let first = w.commits(EU, 1, 1);
    w.pass(s(1));
    w.unlink(EU, US);
    w.unlink(EU, AP);
    let second = w.commits(US, 2, 2);
    w.pass(s(60));
    assert_eq!(w.told(first).last, None, "nobody could tell");
    w.link(EU, US);
    w.pass(s(1));
    assert_eq!((w.told(first).last, w.told(second).last), (Some(Code::Replaced), None));
    // What another region says again of a bind that is known ends nothing.
    let third = w.commits(EU, 3, 3);
    w.pass(s(1));
    assert_eq!((w.told(second).last, w.told(third).last), (Some(Code::Replaced), None));
    w.kill(AP);
    w.start(AP);
    w.link(EU, AP);
    w.link(US, AP);
    w.pass(s(60));
    assert_eq!(w.told(third).last, None);
}

#[test]
fn a_region_that_starts_anew_is_known_to_have_nobody_until_they_come() {
    let mut w = World::new();
    for conn in 0..20 {
        w.connect(US, conn, &format!("user{conn}"), "phone");
    }
    w.pass(s(1));
    let users = |w: &mut World| {
        let now = w.now;
        let parts = w.core(EU).node.routes().parts(now).filter(|part| part.holder == Holder::only(US));
        parts.map(|part| (part.users, part.is_stale, part.is_whole)).collect::<Vec<_>>()
    };
    assert_eq!(users(&mut w), [(20, false, true)]);
    w.kill(US);
    w.pass(s(60));
    assert_eq!(users(&mut w), [(20, true, true)], "what was told stays, as a hint");
    w.start(US);
    w.link(EU, US);
    w.connect(US, 50, "user7", "phone");
    w.pass(s(2));
    assert_eq!(users(&mut w), [(1, false, true)]);
    assert!(w.core(EU).node.routes().is_at(Holder::only(US), &user("user7")));
}

#[test]
fn a_device_in_another_region_is_named_by_its_cell() {
    let mut w = World::new();
    let here = w.connect(EU, 1, "alice", "here");
    let there = w.connect(US, 2, "alice", "there");
    w.connect(US, 3, "alice", "nameless");
    let cell = v1::DeviceCell { name: "pc".to_owned(), since_ms: 1 }.encode_to_vec();
    let cell = v1::Cell { key: "device/there".to_owned(), value: cell.into() };
    let (conversation, peer) = (ConvId::own(SALT, &user("alice")), Some(user("alice")));
    let send = SendRequest { conversation, peer, kind: CELL, body: cell.encode_to_vec().into(), ..message(1) };
    w.post(there, send);
    w.pass(s(5));
    w.frame(here, 9, v1::frame::Body::PullDevices(v1::PullDevices {}));
    let devices = w.told(here).frames.iter().find_map(|f| match &f.body {
        Some(v1::frame::Body::Devices(devices)) => Some(devices.devices.clone()),
        _ => None,
    });
    let devices: Vec<_> = devices.unwrap().into_iter().map(|d| (d.install, d.region)).collect();
    assert_eq!(devices, [("here".to_owned(), 1), ("there".to_owned(), 2)]);
}

/// What the table of routes was told since it was last asked: (device, connection, whether it is used).
fn moved(w: &mut World) -> Vec<(String, u64, bool)> {
    let moved = std::mem::take(&mut w.core(EU).moved);
    moved.into_iter().map(|m| (m.install.as_str().to_owned(), m.key.conn, m.is_here)).collect()
}

fn device(name: &str, conn: u64, is_here: bool) -> (String, u64, bool) {
    (name.to_owned(), conn, is_here)
}

#[test]
fn the_table_of_routes_hears_of_each_connection_that_is_used_and_of_its_end() {
    let mut w = World::new();
    let waiting = w.hello(EU, 1, "alice", "phone", v1::Hello::default());
    assert_eq!(moved(&mut w), [], "one that may lose its race is none");
    w.frame(waiting, 0, v1::frame::Body::Commit(v1::Commit { order: 1, ..v1::Commit::default() }));
    assert_eq!(moved(&mut w), [device("phone", 1, true)]);
    w.commits(EU, 2, 2);
    assert_eq!(moved(&mut w), [device("phone", 1, false), device("phone", 2, true)], "the new one comes last");
    w.commits(EU, 3, 1);
    assert_eq!(moved(&mut w), [], "a Commit that was long on its way changes nothing");
    w.connect(EU, 4, "alice", "pc");
    w.ups(EU, 1, vec![Up::Close { conn: 2 }, Up::Close { conn: 2 }]);
    assert_eq!(moved(&mut w), [device("pc", 4, true), device("phone", 2, false)]);
    let now = w.now(0);
    w.core(EU).node.edge_down(now, 1);
    w.carry_out(EU);
    assert_eq!(moved(&mut w), [device("pc", 4, false)]);
}

#[test]
fn who_is_here_is_told_page_by_page() {
    let mut w = World::new();
    for (conn, name) in [(1, "alice"), (2, "bob"), (3, "carol"), (4, "dan")] {
        w.connect(EU, conn, name, "phone");
    }
    w.connect(EU, 5, "carol", "pc");
    w.hello(EU, 6, "eve", "phone", v1::Hello::default());
    w.ups(EU, 1, vec![Up::Close { conn: 2 }]);
    let now = w.now(0);
    let node = &w.core(EU).node;
    let (mut told, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let (page, next) = node.present_after(now, after.as_ref(), 2).unwrap();
        assert!(page.len() <= 2);
        let of = |(user, devices): (UserId, Vec<(InstallId, ConnKey)>)| {
            (user.as_str().to_owned(), devices.into_iter().map(|(_, key)| key.conn).collect::<Vec<u64>>())
        };
        told.extend(page.into_iter().map(of));
        pages += 1;
        after = next;
        if after.is_none() {
            break;
        }
    }
    let expected = [("alice", vec![1]), ("carol", vec![3, 5]), ("dan", vec![4])];
    assert_eq!(told, expected.map(|(name, conns)| (name.to_owned(), conns)));
    assert_eq!(pages, 3, "of five users");
    let of = node.present_of(now, &[user("bob"), user("carol"), user("nobody")]).unwrap();
    assert_eq!(of.iter().map(|(_, devices)| devices.len()).collect::<Vec<_>>(), [0, 2, 0]);
}
