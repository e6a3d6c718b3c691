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
