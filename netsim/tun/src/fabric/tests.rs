use std::net::Ipv4Addr;

use tern_netsim_link::{Chance, Corrupt, HandOver, LinkSpec, Loss, Mtu, NatSpec, Spec};
use tern_netsim_scenario::plan::{InterfacePlan, PathPlan, Ways};

use super::*;
use crate::decisions::replay;
use crate::packet::{Kind as PacketKind, Packet, TCP, UDP, packet_of, set_transport_sum};
use crate::plan::HostPlan;

const MS: u64 = 1_000_000;
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const WIFI: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);
const CELL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const HOME: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const BOTH: Ways = Ways { up: true, down: true };

const SERVER_PORT: Port = Port { host: 0, interface: 0 };
const WIFI_PORT: Port = Port { host: 2, interface: 0 };
const CELL_PORT: Port = Port { host: 2, interface: 1 };

/// A server in `eu` with a neighbour, and a phone in `paris` behind a NAT at home, without one outside.
fn plan(wifi: Spec) -> LabPlan {
    let interface = |name: &str, spec, address, nat: Option<Ipv4Addr>| InterfacePlan {
        name: name.to_owned(),
        profile: String::new(),
        link: LinkSpec::symmetric(spec),
        address,
        nat: nat.map(|outside| (NatSpec::default(), outside)),
    };
    let host =
        |name: &str, place: &str, attached| HostPlan { name: name.to_owned(), place: place.to_owned(), attached };
    LabPlan {
        seed: 7,
        hosts: vec![
            host("eu-1", "eu", Attached::Wired(SERVER)),
            host("eu-2", "eu", Attached::Wired(NEAR)),
            host(
                "phone",
                "paris",
                Attached::Access(vec![
                    interface("wifi", wifi, WIFI, Some(HOME)),
                    interface("cell", Spec::with_delay_ms(30), CELL, None),
                ]),
            ),
        ],
        paths: vec![PathPlan { a: "paris".to_owned(), b: "eu".to_owned(), latency_ns: 7 * MS, link: None }],
        radio_tail_ns: 10_000 * MS,
    }
}

fn fabric(wifi: Spec) -> Fabric {
    Fabric::new(&plan(wifi)).unwrap()
}

fn packet(protocol: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), body: &[u8]) -> Vec<u8> {
    let mut payload = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    if protocol == UDP {
        payload.extend_from_slice(&u16::try_from(8 + body.len()).unwrap().to_be_bytes());
        payload.extend_from_slice(&[0, 0]);
    } else {
        payload.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    }
    payload.extend_from_slice(body);
    let mut bytes = packet_of(protocol, from.0, to.0, &payload);
    set_transport_sum(&mut bytes);
    bytes
}

fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    packet(UDP, from, to, b"hello")
}

/// An address and a port.
type End = (Ipv4Addr, u16);

/// Where packets arrive, when, from whom and for whom.
fn arrivals(fabric: &mut Fabric, until_ns: u64) -> Vec<(Port, u64, End, End)> {
    fabric.advance(until_ns);
    let mut all = Vec::new();
    while let Some(output) = fabric.poll_output() {
        if let Output::Deliver { to, bytes, due_ns, .. } = output {
            let packet = Packet::parse(&bytes).unwrap();
            let PacketKind::Ports { source, destination, .. } = packet.kind() else { continue };
            all.push((to, due_ns, (packet.source(), source), (packet.destination(), destination)));
        }
    }
    all
}

#[test]
fn a_packet_arrives_when_link_and_path_say_and_comes_back_through_the_nat() {
    let mut fabric = fabric(Spec::with_delay_ms(20));
    fabric.handle_packet(MS, WIFI_PORT, &datagram((WIFI, 4000), (SERVER, 53)));
    // The machine may be called as late as it likes.
    assert_eq!(arrivals(&mut fabric, 900 * MS), [(SERVER_PORT, 28 * MS, (HOME, 4000), (SERVER, 53))]);
    fabric.handle_packet(1000 * MS, SERVER_PORT, &datagram((SERVER, 53), (HOME, 4000)));
    assert_eq!(arrivals(&mut fabric, 2000 * MS), [(WIFI_PORT, 1027 * MS, (SERVER, 53), (WIFI, 4000))]);
    let traffic = fabric.traffic("phone").unwrap();
    assert_eq!((traffic.up_packets, traffic.down_packets, traffic.up_bytes, traffic.wakeups), (1, 1, 33, 1));
    assert_eq!(fabric.traffic_by_port("phone").unwrap(), [(53, (33, 33))].into());
    assert_eq!(fabric.traffic_by_port("eu-1").unwrap(), [].into());
    // A stranger is kept out, and so is who writes to the inside address.
    fabric.handle_packet(2000 * MS, SERVER_PORT, &datagram((SERVER, 54), (HOME, 4000)));
    fabric.handle_packet(2000 * MS, SERVER_PORT, &datagram((SERVER, 53), (WIFI, 4000)));
    assert_eq!(arrivals(&mut fabric, 3000 * MS), []);
    assert_eq!(fabric.access_counts("phone", "wifi").unwrap().lost[&Lost::Nat(NatDrop::Filtered)], 1);
    assert_eq!(fabric.lost()[&Lost::Nobody], 1);
}

#[test]
fn servers_of_one_place_are_a_millisecond_apart_and_that_is_no_result() {
    let mut fabric = fabric(Spec::default());
    fabric.handle_packet(0, SERVER_PORT, &datagram((SERVER, 1), (NEAR, 2)));
    fabric.advance(MS);
    let Some(Output::Deliver { due_ns, way_ns, .. }) = fabric.poll_output() else { panic!() };
    assert_eq!((due_ns, way_ns), (MS, None));
}

#[test]
fn after_a_hand_over_packets_come_from_the_other_address_and_the_gap_loses() {
    let mut fabric = fabric(Spec::with_delay_ms(20));
    fabric.hand_over("phone", Some("cell"), HandOver { gap_ns: 40 * MS, overlap_ns: 0 }).unwrap();
    fabric.handle_packet(10 * MS, WIFI_PORT, &datagram((WIFI, 4000), (SERVER, 53)));
    assert_eq!(fabric.poll_output(), None);
    fabric.advance(40 * MS);
    assert_eq!(fabric.poll_output(), Some(Output::Route { port: CELL_PORT, address: CELL }));
    fabric.handle_packet(50 * MS, CELL_PORT, &datagram((CELL, 4000), (SERVER, 53)));
    // A socket that still has the old address: nobody lets it through.
    fabric.handle_packet(50 * MS, CELL_PORT, &datagram((WIFI, 4000), (SERVER, 53)));
    assert_eq!(arrivals(&mut fabric, 200 * MS), [(SERVER_PORT, 87 * MS, (CELL, 4000), (SERVER, 53))]);
    let lost = |interface| fabric.access_counts("phone", interface).unwrap().lost[&Lost::Off];
    assert_eq!((lost("wifi"), lost("cell")), (1, 1));
    assert_eq!(fabric.reached_at("phone").unwrap(), CELL);
}

#[test]
fn new_addresses_and_rebinding_change_what_the_other_side_sees() {
    let mut fabric = fabric(Spec::default());
    let seen = |fabric: &mut Fabric, at_ms: u64, port, from| {
        fabric.handle_packet(at_ms * MS, port, &datagram((from, 4000), (SERVER, 53)));
        arrivals(fabric, (at_ms + 50) * MS)[0].2
    };
    assert_eq!(seen(&mut fabric, 0, WIFI_PORT, WIFI), (HOME, 4000));
    fabric.rebind_nat("phone", None).unwrap();
    let rebound = seen(&mut fabric, 100, WIFI_PORT, WIFI);
    assert!(rebound.0 == HOME && rebound.1 != 4000);
    let outside = fabric.new_address("phone", None).unwrap();
    assert_eq!(outside, Ipv4Addr::new(203, 0, 113, 2));
    assert_eq!(seen(&mut fabric, 200, WIFI_PORT, WIFI).0, outside);
    assert_eq!(fabric.poll_output(), None, "the device knows nothing of it");
    let new = fabric.new_address("phone", Some("cell")).unwrap();
    let told = Output::Address { port: CELL_PORT, old: CELL, new, used: false };
    assert_eq!(fabric.poll_output(), Some(told));
    fabric.hand_over("phone", Some("cell"), HandOver::default()).unwrap();
    fabric.advance(300 * MS);
    assert_eq!(fabric.poll_output(), Some(Output::Route { port: CELL_PORT, address: new }));
    assert_eq!(seen(&mut fabric, 300, CELL_PORT, new), (new, 4000));
}

#[test]
fn blocks_lose_what_they_name_and_a_portal_takes_streams_without_a_word() {
    let mut fabric = fabric(Spec::with_delay_ms(20));
    let syn = packet(TCP, (WIFI, 5000), (SERVER, 443), b"");
    let try_both = |fabric: &mut Fabric, at_ms: u64| {
        fabric.handle_packet(at_ms * MS, WIFI_PORT, &datagram((WIFI, 4000), (SERVER, 53)));
        fabric.handle_packet(at_ms * MS, WIFI_PORT, &syn);
        let ends: Vec<_> =
            arrivals(fabric, (at_ms + 100) * MS).iter().map(|one| (one.0, one.1 / MS - at_ms, one.2.1)).collect();
        ends
    };
    assert_eq!(try_both(&mut fabric, 0), [(SERVER_PORT, 27, 4000), (SERVER_PORT, 27, 5000)]);
    fabric.set_block("phone", None, Some(Blocked::Udp)).unwrap();
    assert_eq!(try_both(&mut fabric, 100), [(SERVER_PORT, 27, 5000)]);
    fabric.set_block("phone", None, Some(Blocked::Tcp)).unwrap();
    assert_eq!(try_both(&mut fabric, 200), [(SERVER_PORT, 27, 4000)]);
    fabric.set_block("phone", None, Some(Blocked::Captive)).unwrap();
    assert_eq!(try_both(&mut fabric, 300), [(WIFI_PORT, 40, 443)]);
    // Inwards, too.
    fabric.handle_packet(400 * MS, SERVER_PORT, &datagram((SERVER, 53), (HOME, 4000)));
    assert_eq!(arrivals(&mut fabric, 500 * MS), []);
    fabric.set_block("phone", Some("wifi"), None).unwrap();
    assert_eq!(try_both(&mut fabric, 500).len(), 2);
    let counts = fabric.access_counts("phone", "wifi").unwrap();
    assert_eq!((counts.portal, counts.lost[&Lost::Blocked]), (1, 4));
}

#[test]
fn a_cut_path_and_a_host_without_power_lose_everything_until_they_are_back() {
    let mut fabric = fabric(Spec::default());
    let passes = |fabric: &mut Fabric, at_ms: u64| {
        fabric.handle_packet(at_ms * MS, WIFI_PORT, &datagram((WIFI, 4000), (SERVER, 53)));
        arrivals(fabric, (at_ms + 50) * MS).len() == 1
    };
    assert!(passes(&mut fabric, 0));
    fabric.cut("eu", "paris", Ways { up: true, down: false }).unwrap();
    assert!(passes(&mut fabric, 100), "only the other direction is cut");
    fabric.cut("eu", "paris", BOTH).unwrap();
    assert!(!passes(&mut fabric, 200));
    fabric.heal("paris", "eu", BOTH).unwrap();
    assert!(passes(&mut fabric, 300));
    fabric.set_power("eu-1", false).unwrap();
    assert!(!passes(&mut fabric, 400));
    fabric.set_power("eu-1", true).unwrap();
    assert!(passes(&mut fabric, 500));
    assert_eq!(fabric.path_counts("paris", "eu").unwrap(), PathCounts { sent: 6, cut: 1, link: None });
    // A path becomes a link while it runs.
    let mut spec = fabric.path_spec("paris", "eu").unwrap();
    assert_eq!(spec.up, Spec::with_delay_ms(7));
    spec.up.loss = Loss::Random(Chance::ALWAYS);
    fabric.set_path_spec("paris", "eu", spec).unwrap();
    assert!(!passes(&mut fabric, 600));
    let counts = fabric.path_counts("paris", "eu").unwrap();
    assert_eq!(counts.link.unwrap().dropped_in_all(), 1);
}

#[test]
fn who_sends_too_long_a_packet_is_told_if_the_link_tells() {
    let small = |notice| Spec { mtu: Some(Mtu { bytes: 100, notice }), ..Spec::with_delay_ms(20) };
    let long = |from, to| packet(UDP, from, to, &[0; 200]);
    let told = |fabric: &mut Fabric, until_ns| {
        fabric.advance(until_ns);
        fabric.poll_output().map(|output| match output {
            Output::Deliver { to, bytes, due_ns, .. } => {
                let packet = Packet::parse(&bytes).unwrap();
                assert_eq!(packet.kind(), PacketKind::Error);
                (to, due_ns / MS, packet.destination(), packet.quoted().unwrap().0)
            }
            other => panic!("{other:?}"),
        })
    };
    let mut up = fabric(small(true));
    up.handle_packet(0, WIFI_PORT, &long((WIFI, 4000), (SERVER, 53)));
    assert_eq!(told(&mut up, 100 * MS), Some((WIFI_PORT, 20, WIFI, WIFI)));
    let mut down = fabric(small(true));
    down.handle_packet(0, WIFI_PORT, &datagram((WIFI, 4000), (SERVER, 53)));
    arrivals(&mut down, 100 * MS);
    down.handle_packet(100 * MS, SERVER_PORT, &long((SERVER, 53), (HOME, 4000)));
    // It was translated before it was too long, so the error quotes an inside address, as real access routers' do.
    assert_eq!(told(&mut down, 200 * MS).map(|told| (told.0, told.1, told.2)), Some((SERVER_PORT, 114, SERVER)));
    let mut hole = fabric(small(false));
    hole.handle_packet(0, WIFI_PORT, &long((WIFI, 4000), (SERVER, 53)));
    assert_eq!(told(&mut hole, 100 * MS), None);
}

#[test]
fn corrupted_packets_that_shall_be_seen_have_a_sum_that_agrees() {
    let corrupt = Corrupt { share: Chance::ALWAYS, deliver: true };
    let mut fabric = fabric(Spec { corrupt, ..Spec::default() });
    let sent = datagram((WIFI, 4000), (SERVER, 53));
    fabric.handle_packet(0, WIFI_PORT, &sent);
    fabric.advance(50 * MS);
    let Some(Output::Deliver { bytes, .. }) = fabric.poll_output() else { panic!() };
    assert_ne!(bytes[28..], sent[28..]);
    let mut again = bytes.clone();
    set_transport_sum(&mut again);
    assert_eq!(again, bytes);
}

#[test]
fn what_was_decided_is_decided_again() {
    let mut spec = Spec { loss: Loss::Random(Chance::percent(30)), ..Spec::with_delay_ms(20) };
    spec.duplicate = Chance::percent(10);
    let mut fabric = fabric(spec.clone());
    for at_ms in 0..300 {
        fabric.handle_packet(at_ms * MS, WIFI_PORT, &datagram((WIFI, 4000), (SERVER, 53)));
        if at_ms == 100 {
            fabric.set_access_outage("phone", None, BOTH, Some(Outage::Stalls)).unwrap();
        }
        if at_ms == 150 {
            fabric.set_access_outage("phone", Some("wifi"), BOTH, None).unwrap();
            fabric.set_access_spec("phone", "wifi", LinkSpec::symmetric(Spec::with_delay_ms(5))).unwrap();
        }
    }
    fabric.advance(1000 * MS);
    let up = fabric.access_counts("phone", "wifi").unwrap().up;
    assert!(up.sent == 300 && up.delivered < 300 && up.copied > 0);
    assert_eq!(replay(fabric.decisions()).unwrap(), 300 + up.copied);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let mut fabric = fabric(Spec::default());
    let said = |result: Result<(), LabError>| result.unwrap_err().to_string();
    assert_eq!(said(fabric.rebind_nat("tablet", None)), "there is no host tablet; there is eu-1, eu-2, phone");
    let lte = fabric.set_block("phone", Some("lte"), None);
    assert_eq!(said(lte), "there is no interface lte; there is wifi, cell");
    assert_eq!(said(fabric.cut("eu", "us", BOTH)), "there is no path eu - us; there is paris - eu");
    assert_eq!(said(fabric.rebind_nat("eu-1", None)), "eu-1 is a server: it has no access link");
    let zero = LinkSpec::symmetric(Spec { rate: tern_netsim_link::Rate::Constant(0), ..Spec::default() });
    assert!(said(fabric.set_access_spec("phone", "wifi", zero)).starts_with("the link phone.wifi: "));
    let refused = |change: &dyn Fn(&mut LabPlan)| {
        let mut plan = plan(Spec::default());
        change(&mut plan);
        Fabric::new(&plan).unwrap_err().to_string()
    };
    assert!(refused(&|plan| plan.hosts[1].name = "eu-1".to_owned()).contains("two hosts are named eu-1"));
    assert!(refused(&|plan| plan.hosts[1].attached = Attached::Wired(SERVER)).contains("is the address of eu-1"));
    assert!(refused(&|plan| plan.hosts.clear()).contains("1 to 512 hosts"));
    assert!(refused(&|plan| plan.paths.push(plan.paths[0].clone())).contains("two paths between paris and eu"));
}

#[test]
fn foreign_packets_and_borrowed_addresses_go_nowhere() {
    let mut fabric = fabric(Spec::default());
    fabric.handle_packet(0, SERVER_PORT, &[0x60; 40]);
    fabric.handle_packet(0, SERVER_PORT, &datagram((NEAR, 1), (HOME, 4000)));
    fabric.handle_packet(0, Port { host: 9, interface: 0 }, &datagram((NEAR, 1), (HOME, 4000)));
    assert_eq!(arrivals(&mut fabric, 50 * MS), []);
    assert_eq!(fabric.lost(), &BTreeMap::from([(Lost::Foreign, 1), (Lost::Off, 1)]));
}
