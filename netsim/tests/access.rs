//! Devices: access links, NATs, hand-over, blocks, and what they count.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::future::poll_fn;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use tern_netsim::access::{AccessError, AccessSpec, Block, HostCounts};
use tern_netsim::node::SimNode;
use tern_netsim::packets::Lost;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tern_netsim_link::{
    Cause, HandOver, LinkSpec, NatDrop, NatSpec, Outage, Queue, Rate, Reorder, Spec, SpecError, Way,
};
use tokio::time::timeout;

const PORT: u16 = 7400;
const MS: u64 = 1_000_000;
const NAT: Ipv4Addr = Ipv4Addr::new(91, 0, 0, 1);
const CELL: Ipv4Addr = Ipv4Addr::new(92, 0, 0, 1);
const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn wifi(link: LinkSpec) -> AccessSpec {
    AccessSpec { name: "wifi".into(), address: INSIDE, link, nat: Some((NatSpec::default(), NAT)) }
}

fn cell(link: LinkSpec) -> AccessSpec {
    AccessSpec { name: "cell".into(), address: CELL, link, nat: None }
}

fn wire(delay_ms: u64) -> LinkSpec {
    LinkSpec::symmetric(Spec::with_delay_ms(delay_ms))
}

struct Ends {
    world: World,
    phone: SimNode,
    a: Arc<dyn AsyncUdpSocket>,
    b: Arc<dyn AsyncUdpSocket>,
}

impl Ends {
    fn new(world: World, interfaces: Vec<AccessSpec>) -> Self {
        let phone = world.add_device("phone", "germany", interfaces).unwrap();
        let server = world.add_host("eu-1", "eu", SERVER).unwrap();
        world.set_latency("germany", "eu", ms(10));
        let a = phone.env().net.udp("0.0.0.0:5000".parse().unwrap()).unwrap();
        let b = server.env().net.udp(SocketAddr::new(server.ip(), PORT)).unwrap();
        Self { world, phone, a, b }
    }

    fn send(&self, contents: &[u8]) {
        send(&self.a, SocketAddr::new(SERVER.into(), PORT), contents);
    }

    /// Answers to where something came from.
    fn answer(&self, to: SocketAddr, contents: &[u8]) {
        send(&self.b, to, contents);
    }

    /// What comes to the server within so long: (ms, from, bytes).
    async fn at_server(&self, within: u64) -> Vec<(u128, SocketAddr, Vec<u8>)> {
        self.received(&self.b, within).await
    }

    async fn at_phone(&self, within: u64) -> Vec<(u128, SocketAddr, Vec<u8>)> {
        self.received(&self.a, within).await
    }

    async fn received(&self, at: &Arc<dyn AsyncUdpSocket>, within: u64) -> Vec<(u128, SocketAddr, Vec<u8>)> {
        let mut all = Vec::new();
        let until = tokio::time::Instant::now() + ms(within);
        let (mut buf, mut meta) = (vec![0; 2000], [RecvMeta::default()]);
        loop {
            let next = poll_fn(|cx| at.poll_recv(cx, &mut [IoSliceMut::new(&mut buf)], &mut meta));
            let Ok(got) = tokio::time::timeout_at(until, next).await else { return all };
            assert_eq!(got.unwrap(), 1);
            all.push((self.world.elapsed().as_millis(), meta[0].addr, buf[..meta[0].len].to_vec()));
        }
    }

    fn phone_counts(&self) -> HostCounts {
        self.world.host_counts("phone").unwrap()
    }
}

fn send(socket: &Arc<dyn AsyncUdpSocket>, destination: SocketAddr, contents: &[u8]) {
    socket.try_send(&Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None }).unwrap();
}

fn sim<Fut, T>(interfaces: Vec<AccessSpec>, scenario: impl FnOnce(Ends) -> Fut + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    let all =
        |world| async move { timeout(ms(3_600_000), scenario(Ends::new(world, interfaces))).await.expect("an hour") };
    run(1, all).unwrap()
}

fn moments(received: &[(u128, SocketAddr, Vec<u8>)]) -> Vec<u128> {
    received.iter().map(|(at, ..)| *at).collect()
}

#[test]
fn a_datagram_takes_the_access_link_the_nat_and_the_way_between_places_and_so_does_its_answer() {
    let up = Spec { rate: Rate::Constant(1_200_000), ..Spec::with_delay_ms(20) };
    sim(vec![wifi(LinkSpec { up, down: Spec::with_delay_ms(7) })], |ends| async move {
        ends.send(&[7; 1472]);
        let got = ends.at_server(1000).await;
        assert_eq!(moments(&got), [10 + 20 + 10], "rate, delay, latency");
        assert_eq!(got[0].1, SocketAddr::new(NAT.into(), 5000), "the NAT's address");
        assert_eq!(ends.a.local_addr().unwrap(), "0.0.0.0:5000".parse().unwrap());
        assert_eq!(ends.phone.ip(), INSIDE);
        ends.answer(got[0].1, &[8; 100]);
        assert_eq!(moments(&ends.at_phone(1000).await), [1000 + 10 + 7], "begun when the wait was over");
        let counts = ends.phone_counts();
        assert_eq!((counts.sent_packets, counts.sent_bytes), (1, 1500));
        assert_eq!((counts.received_packets, counts.received_bytes, counts.missed), (1, 128, 0));
        let up = ends.world.access_counts("phone", "wifi", Way::Up).unwrap();
        assert_eq!((up.counts.delivered_bytes, up.queued_packets, up.queued_bytes), (1500, 0, 0));
        assert_eq!((ends.world.in_flight(), ends.world.ledger().lost.len()), (0, 0));
    });
}

#[test]
fn a_hand_over_changes_the_address_that_others_see_and_loses_what_is_for_the_old_one() {
    sim(vec![wifi(wire(20)), cell(wire(50))], |ends| async move {
        let world = &ends.world;
        ends.send(b"1");
        let first = ends.at_server(100).await;
        ends.answer(first[0].1, b"too late");
        world.hand_over("phone", Some("cell"), HandOver { gap_ns: 40 * MS, overlap_ns: 0 }).unwrap();
        assert_eq!(world.interface_in_use("phone").unwrap(), None);
        ends.send(b"in the gap");
        tokio::time::sleep(ms(40)).await;
        assert_eq!(world.interface_in_use("phone").unwrap().as_deref(), Some("cell"));
        ends.send(b"2");
        let second = ends.at_server(200).await;
        assert_eq!((second.len(), &second[0].2[..], second[0].1), (1, &b"2"[..], SocketAddr::new(CELL.into(), 5000)));
        assert_eq!(ends.at_phone(200).await, []);
        assert_eq!(
            world.ledger().lost.into_iter().collect::<Vec<_>>(),
            [(Lost::NoInterface, 1), (Lost::NotReceiving, 1)]
        );
        assert_eq!(ends.phone_counts().missed, 1);

        // With an overlap the old one receives for a while.
        world.hand_over("phone", Some("wifi"), HandOver { gap_ns: 0, overlap_ns: 100 * MS }).unwrap();
        ends.answer(second[0].1, b"just in time");
        assert_eq!(ends.at_phone(200).await.len(), 1);
        ends.answer(second[0].1, b"not any more");
        assert_eq!(ends.at_phone(200).await.len(), 0);
        // The present one again, and flight mode.
        world.hand_over("phone", None, HandOver { gap_ns: 10 * MS, overlap_ns: 0 }).unwrap();
        tokio::time::sleep(ms(10)).await;
        assert_eq!(world.interface_in_use("phone").unwrap().as_deref(), Some("wifi"));
        world.switch_off("phone").unwrap();
        assert_eq!(world.hand_over("phone", None, HandOver::default()), Err(AccessError::AllOff("phone".into())));
        ends.send(b"nowhere");
        assert_eq!(ends.at_server(200).await, []);
    });
}

#[test]
fn a_nat_forgets_who_is_silent_and_a_rebinding_or_a_new_address_makes_strangers() {
    sim(vec![wifi(wire(20))], |ends| async move {
        let world = &ends.world;
        ends.send(b"1");
        let first = ends.at_server(100).await[0].1;
        tokio::time::sleep(ms(30_000)).await;
        ends.answer(first, b"forgotten");
        assert_eq!(ends.at_phone(100).await, []);
        assert_eq!(world.ledger().lost.get(&Lost::Nat(NatDrop::NoMapping)), Some(&1));
        assert_eq!(ends.phone_counts().missed, 1);

        ends.send(b"2");
        assert_eq!(ends.at_server(100).await[0].1, first);
        world.rebind_nat("phone", None).unwrap();
        ends.send(b"3");
        let second = ends.at_server(100).await[0].1;
        assert!(second.ip() == first.ip() && second.port() != first.port());
        let moved = Ipv4Addr::new(91, 0, 0, 2);
        ends.answer(second, b"for the old address");
        world.new_address("phone", Some("wifi"), moved).unwrap();
        assert_eq!(ends.at_phone(100).await, []);
        assert_eq!(world.ledger().lost.get(&Lost::NoHost), Some(&1));
        ends.send(b"4");
        let third = ends.at_server(100).await[0].1;
        assert_eq!((third.ip(), ends.phone.ip()), (moved.into(), std::net::IpAddr::from(INSIDE)));
        ends.answer(third, b"5");
        assert_eq!(ends.at_phone(100).await.len(), 1);
    });
    sim(vec![cell(wire(20))], |ends| async move {
        let moved = Ipv4Addr::new(92, 0, 0, 2);
        ends.world.new_address("phone", None, moved).unwrap();
        ends.send(b"1");
        let from = ends.at_server(100).await[0].1;
        assert_eq!((from.ip(), ends.phone.ip()), (moved.into(), moved.into()));
        let none = AccessError::NoNat { device: "phone".into(), interface: "cell".into() };
        assert_eq!(ends.world.rebind_nat("phone", None), Err(none));
    });
}

#[test]
fn an_access_network_that_blocks_datagrams_blocks_both_ways_and_counts_them() {
    sim(vec![wifi(wire(20)), cell(wire(20))], |ends| async move {
        let world = &ends.world;
        ends.send(b"1");
        let from = ends.at_server(100).await[0].1;
        for (block, passes) in [(Block::Udp, false), (Block::Captive, false), (Block::Tcp, true)] {
            world.set_block("phone", None, Some(block)).unwrap();
            let before = ends.phone_counts().blocked;
            ends.send(b"2");
            ends.answer(from, b"3");
            assert_eq!(ends.at_server(100).await.len(), usize::from(passes));
            assert_eq!(ends.at_phone(100).await.len(), usize::from(passes));
            assert_eq!(ends.phone_counts().blocked - before, if passes { 0 } else { 2 });
        }
        world.set_block("phone", Some("cell"), Some(Block::Udp)).unwrap();
        world.set_block("phone", Some("wifi"), None).unwrap();
        ends.send(b"4");
        assert_eq!(ends.at_server(100).await.len(), 1, "the block is on the other interface");
    });
}

#[test]
fn a_fault_can_tell_how_many_packets_it_hit() {
    let held = Reorder { share: tern_netsim_link::Chance::ALWAYS, by_ns: 5 * MS };
    let queue = Queue { packets: 2, ..Queue::default() };
    let up = Spec { reorder: held, queue, ..Spec::with_delay_ms(20) };
    sim(vec![wifi(LinkSpec { up, down: Spec::default() })], |ends| async move {
        let world = &ends.world;
        let counts = || world.access_counts("phone", "wifi", Way::Up).unwrap();
        world.set_access_outage("phone", "wifi", Way::Up, Some(Outage::Stalls)).unwrap();
        (0..3).for_each(|_| ends.send(b"x"));
        assert_eq!((counts().queued_packets, counts().queued_bytes), (2, 58));
        world.set_access_outage("phone", "wifi", Way::Up, Some(Outage::Loses)).unwrap();
        ends.send(b"x");
        world.set_access_outage("phone", "wifi", Way::Up, None).unwrap();
        ends.send(b"x");
        assert_eq!(ends.at_server(100).await.len(), 1);
        let counts = counts().counts;
        assert_eq!((counts.outage_lost, counts.outage_waited, counts.held_back), (4, 2, 1));
        assert_eq!(counts.dropped.into_iter().collect::<Vec<_>>(), [(Cause::QueueFull, 1), (Cause::Outage, 3)]);

        world.cut("germany", "eu");
        (0..3).for_each(|_| ends.send(b"x"));
        tokio::time::sleep(ms(100)).await;
        world.heal("germany", "eu");
        assert_eq!([world.blocked_packets("germany", "eu"), world.blocked_packets("eu", "germany")], [3, 0]);
        assert_eq!(world.ledger().lost.get(&Lost::Cut), Some(&3));
    });
}

#[test]
fn what_is_not_there_is_refused_with_the_nearest_that_is() {
    sim(vec![wifi(wire(20)), cell(wire(20))], |ends| async move {
        let world = &ends.world;
        let text = |refused: Result<(), AccessError>| refused.unwrap_err().to_string();
        assert_eq!(
            text(world.set_access_outage("fone", "wifi", Way::Up, None)),
            "no host is called fone; did you mean phone?"
        );
        assert_eq!(
            text(world.hand_over("phone", Some("wlan"), HandOver::default())),
            "phone has no interface wlan; did you mean wifi? It has wifi, cell"
        );
        assert_eq!(text(world.set_block("eu-1", None, None)), "eu-1 has no access links; add it as a device");
        assert_eq!(world.new_address("phone", Some("cell"), NAT), Err(AccessError::Taken(NAT)));
        let zero = Spec { rate: Rate::Constant(0), ..Spec::default() };
        let refused = world.set_access_spec("phone", "cell", Way::Down, zero);
        let link = "phone.cell".to_owned();
        assert_eq!(refused, Err(AccessError::Spec { link, source: SpecError::Rate(0) }));
        let faster = Spec::with_delay_ms(1);
        world.set_access_spec("phone", "cell", Way::Down, faster.clone()).unwrap();
        assert_eq!(world.access_spec("phone", "cell", Way::Down), Ok(faster));
        assert_eq!(world.interfaces("phone").unwrap(), ["wifi", "cell"]);
        for (name, spec) in [("phone", vec![cell(wire(1))]), ("tablet", vec![wifi(wire(1))]), ("tablet", vec![])] {
            assert!(world.add_device(name, "germany", spec).is_err());
        }
        assert!(world.host_counts("tablet").is_err(), "nothing was added");
        let other = Ipv4Addr::new(91, 0, 0, 3);
        let tablet = AccessSpec { nat: Some((NatSpec::carrier(), other)), ..wifi(wire(1)) };
        world.add_device("tablet", "germany", vec![tablet]).unwrap();
        assert_eq!(world.host_counts("tablet"), Ok(HostCounts::default()));
    });
}

#[test]
fn quic_follows_a_hand_over_to_the_new_address() {
    use tern_net::quic::{QuicParams, client_config, client_endpoint, server_endpoint};
    use tern_net::tls::{Identity, client_tls, server_tls};
    use tern_netsim::pki::Pki;

    sim(vec![wifi(wire(20)), cell(wire(50))], |ends| async move {
        let world = &ends.world;
        let pki = Pki::new(1, "public").unwrap();
        let issued = pki.issue(&["b"]).unwrap();
        let identity = Identity::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
        let server = world.add_host("eu-2", "eu", Ipv4Addr::new(10, 2, 0, 2)).unwrap();
        let env = server.env();
        let at = SocketAddr::new(server.ip(), PORT);
        let tls = server_tls(&identity, &[b"echo"], Arc::clone(&env.clock)).unwrap();
        let endpoint = server_endpoint(&env, at, tls, &QuicParams::edge()).unwrap();
        let (seen, mut told) = tokio::sync::mpsc::unbounded_channel();
        env.tasks.spawn(async move {
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let text = recv.read_to_end(100).await.unwrap();
                seen.send(connection.remote_address()).unwrap();
                send.write_all(&text).await.unwrap();
                send.finish().unwrap();
            }
        });
        let env = ends.phone.env();
        let tls = client_tls(pki.ca_pem().as_bytes(), &[b"echo"], Arc::clone(&env.clock)).unwrap();
        let client = client_endpoint(&env, "0.0.0.0:0".parse().unwrap()).unwrap();
        let config = client_config(&env, tls, &QuicParams::client()).unwrap();
        let connection = client.connect_with(config, at, "b").unwrap().await.unwrap();
        for (interface, address) in [("wifi", NAT), ("cell", CELL), ("wifi", NAT)] {
            world.hand_over("phone", Some(interface), HandOver { gap_ns: 40 * MS, overlap_ns: 0 }).unwrap();
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            send.write_all(b"hello").await.unwrap();
            send.finish().unwrap();
            assert_eq!(recv.read_to_end(100).await.unwrap(), b"hello");
            assert_eq!(told.recv().await.unwrap().ip(), address);
        }
    });
}
