//! What happens to a device on its way, as real sockets see it.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use tern_netsim_link::{HandOver, Outage, Spec};
use tern_netsim_scenario::plan::{Blocked, Ways};
use tern_netsim_tun::{Fabric, Lab, LabError};

use crate::support::{CELL, HOME, ask, echo_until_silent, lab, plan, symmetric, until};

const BOTH: Ways = Ways { up: true, down: true };

fn quick() -> tern_netsim_tun::LabPlan {
    plan(symmetric(Spec::with_delay_ms(5)), symmetric(Spec::with_delay_ms(8)), 1)
}

fn change(lab: &Lab, f: impl FnOnce(&mut Fabric) -> Result<(), LabError> + Send + 'static) {
    lab.with(|fabric, _| f(fabric)).unwrap().unwrap();
}

/// Asks until there is an answer, as whoever waits for a change would.
fn ask_on(lab: &Lab, socket: &UdpSocket) {
    let socket = socket.try_clone().unwrap();
    let asking = lab.within("phone", move || until("an answer", || ask(&socket, Duration::from_millis(300)).is_some()));
    asking.unwrap().join().unwrap();
}

fn ask_once(lab: &Lab, socket: &UdpSocket) -> bool {
    let socket = socket.try_clone().unwrap();
    let asking = lab.within("phone", move || ask(&socket, Duration::from_millis(300)).is_some());
    asking.unwrap().join().unwrap()
}

fn socket(lab: &Lab) -> UdpSocket {
    lab.within("phone", || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap().join().unwrap()
}

#[test]
fn after_a_hand_over_the_other_side_sees_the_other_address() {
    let Some(lab) = lab("after_a_hand_over_the_other_side_sees_the_other_address", &quick()) else { return };
    let server = lab.within("server", || echo_until_silent(Duration::from_secs(2))).unwrap();
    let socket = socket(&lab);
    ask_on(&lab, &socket);
    let how = HandOver { gap_ns: 100_000_000, overlap_ns: 0 };
    change(&lab, move |fabric| fabric.hand_over("phone", Some("cell"), how));
    ask_on(&lab, &socket);
    let new = lab.with(|fabric, _| fabric.new_address("phone", None)).unwrap().unwrap();
    ask_on(&lab, &socket);
    change(&lab, |fabric| fabric.hand_over("phone", Some("wifi"), HandOver::default()));
    ask_on(&lab, &socket);
    let mut from: Vec<_> = server.join().unwrap().iter().map(std::net::SocketAddr::ip).collect();
    from.dedup();
    assert_eq!(from, [HOME, CELL, new, HOME]);
    assert_ne!(new, CELL);
    assert_eq!(lab.kernel_errors().unwrap(), (0, None));
}

#[test]
fn a_rebound_nat_shows_another_port_and_a_new_outside_address_itself() {
    let Some(lab) = lab("a_rebound_nat_shows_another_port_and_a_new_outside_address_itself", &quick()) else { return };
    let server = lab.within("server", || echo_until_silent(Duration::from_secs(2))).unwrap();
    let socket = socket(&lab);
    ask_on(&lab, &socket);
    change(&lab, |fabric| fabric.rebind_nat("phone", None));
    ask_on(&lab, &socket);
    let new = lab.with(|fabric, _| fabric.new_address("phone", None)).unwrap().unwrap();
    ask_on(&lab, &socket);
    let mut from = server.join().unwrap();
    from.dedup();
    assert_eq!(from.len(), 3, "{from:?}");
    assert!(from[0].ip() == HOME && from[1].ip() == HOME && from[0].port() != from[1].port());
    assert_eq!(from[2].ip(), new);
    assert_ne!(new, Ipv4Addr::UNSPECIFIED);
}

#[test]
fn outages_blocks_and_cuts_lose_everything_until_they_end() {
    let Some(lab) = lab("outages_blocks_and_cuts_lose_everything_until_they_end", &quick()) else { return };
    let server = lab.within("server", || echo_until_silent(Duration::from_secs(4))).unwrap();
    let socket = socket(&lab);
    ask_on(&lab, &socket);
    type Change = fn(&mut Fabric, bool) -> Result<(), LabError>;
    let changes: [Change; 4] = [
        |fabric, on| fabric.set_access_outage("phone", None, BOTH, on.then_some(Outage::Loses)),
        |fabric, on| fabric.set_block("phone", Some("wifi"), on.then_some(Blocked::Udp)),
        |fabric, on| if on { fabric.cut("eu", "paris", BOTH) } else { fabric.heal("eu", "paris", BOTH) },
        |fabric, on| fabric.set_power("server", !on),
    ];
    for set in changes {
        change(&lab, move |fabric| set(fabric, true));
        assert!(!ask_once(&lab, &socket));
        change(&lab, move |fabric| set(fabric, false));
        ask_on(&lab, &socket);
    }
    drop(server);
}
