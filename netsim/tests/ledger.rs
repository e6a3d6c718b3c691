//! Random worlds with random faults: every packet is accounted for, and a seed repeats.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::future::poll_fn;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use tern_core::clock::Entropy;
use tern_netsim::access::{AccessSpec, Block};
use tern_netsim::node::{HostState, SimNode};
use tern_netsim::packets::{Ledger, Lost, Shape};
use tern_netsim::run::run;
use tern_netsim::world::World;
use tern_netsim_link::{
    Amount, Cause, Chance, Corrupt, Delay, Dependence, Discipline, Episode, Episodes, HandOver, Jitter, LinkSpec, Loss,
    Mtu, NatSpec, Outage, Queue, Rate, Reorder, Spec, Way,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const PORT: u16 = 7400;
const MS: u64 = 1_000_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn spec(rng: &Entropy) -> Spec {
    let one_in = |n| rng.below(n) == 0;
    let percent = |most: u64| Chance::ppm(u32::try_from(rng.below(most * 10_000 + 1)).unwrap());
    Spec {
        rate: if one_in(3) { Rate::Unlimited } else { Rate::Constant(50_000 + rng.below(5_000_000)) },
        delay: Delay {
            base_ns: rng.below(100 * MS),
            jitter: Jitter::Uniform { within_ns: rng.below(20 * MS) },
            overtaking: one_in(3),
            extra_ns: None,
        },
        queue: Queue {
            packets: 5 + u32::try_from(rng.below(100)).unwrap(),
            discipline: if one_in(3) { Discipline::CODEL } else { Discipline::DropTail },
            ..Queue::default()
        },
        loss: if one_in(2) { Loss::None } else { Loss::Random(percent(20)) },
        duplicate: percent(5),
        reorder: Reorder { share: percent(5), by_ns: 50 * MS },
        corrupt: Corrupt { share: percent(2), deliver: one_in(2) },
        mtu: one_in(4).then(|| Mtu { bytes: 600 + u32::try_from(rng.below(900)).unwrap(), notice: one_in(2) }),
        fades: one_in(4).then(|| {
            let what = if one_in(2) { Outage::Loses } else { Outage::Stalls };
            let (gap_ns, length_ns) = (Amount::Fixed(3000 * MS), Amount::Uniform { low: 0, high: 1000 * MS });
            Episodes(vec![Episode { gap_ns, length_ns, what }])
        }),
    }
}

fn link(rng: &Entropy) -> LinkSpec {
    LinkSpec { up: spec(rng), down: spec(rng) }
}

/// Hosts, devices, and what was seen of them.
struct Net {
    world: World,
    rng: Entropy,
    nodes: Vec<SimNode>,
    devices: Vec<String>,
    sockets: Vec<Option<Arc<dyn AsyncUdpSocket>>>,
    /// Addresses to which something can be sent.
    known: Vec<SocketAddr>,
    next_address: u8,
}

impl Net {
    fn new(world: World, seed: u64) -> Self {
        let rng = Entropy::seeded(seed);
        let mut net = Self {
            nodes: vec![],
            devices: vec![],
            sockets: vec![],
            known: vec!["10.99.9.9:1".parse().unwrap()],
            next_address: 1,
            world,
            rng,
        };
        for i in 0..1 + net.rng.below(3) {
            let ip = Ipv4Addr::new(10, 1, 0, u8::try_from(i + 1).unwrap());
            let node = net.world.add_host(&format!("host{i}"), ["eu", "us"][net.pick(2)], ip).unwrap();
            net.known.push(SocketAddr::new(ip.into(), PORT));
            net.nodes.push(node);
        }
        for i in 0..1 + net.rng.below(4) {
            let name = format!("phone{i}");
            let interfaces = (0..1 + net.pick(2)).map(|n| net.interface(["wifi", "cell"][n])).collect();
            let node = net.world.add_device(&name, ["germany", "america"][net.pick(2)], interfaces).unwrap();
            net.nodes.push(node);
            net.devices.push(name);
        }
        if net.pick(2) == 0 {
            net.world.set_link("germany", "eu", link(&net.rng)).unwrap();
        }
        for node in 0..net.nodes.len() {
            net.sockets.push(None);
            net.start(node);
        }
        net
    }

    fn pick(&self, below: usize) -> usize {
        usize::try_from(self.rng.below(below as u64)).unwrap()
    }

    fn address(&mut self) -> Ipv4Addr {
        self.next_address += 1;
        Ipv4Addr::new(91, 0, 0, self.next_address)
    }

    fn interface(&mut self, name: &str) -> AccessSpec {
        let dependence = |n: usize| [Dependence::Independent, Dependence::Address, Dependence::AddressAndPort][n];
        let outside = self.address();
        let behind = self.pick(3) > 0;
        let spec = NatSpec {
            mapping: dependence(self.pick(3)),
            filtering: dependence(self.pick(3)),
            udp_ns: (1 + self.rng.below(20)) * 1000 * MS,
            ports_per_host: (self.pick(3) == 0).then_some(3),
            ..NatSpec::default()
        };
        let inside = Ipv4Addr::new(192, 168, u8::try_from(name.len()).unwrap(), name.as_bytes()[0]);
        AccessSpec {
            name: name.to_owned(),
            address: if behind { inside } else { outside },
            link: link(&self.rng),
            nat: behind.then_some((spec, outside)),
        }
    }

    /// Opens the sockets of a node that has just started.
    fn start(&mut self, node: usize) {
        let env = self.nodes[node].env();
        self.sockets[node] = Some(env.net.udp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT)).unwrap());
        let tasks = env.tasks.clone();
        env.tasks.spawn(async move {
            let mut acceptor = env.net.listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT)).await.unwrap();
            while let Ok((stream, _)) = acceptor.accept().await {
                tasks.spawn(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    let _ended = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }

    /// Reads what waits in all sockets, and remembers who sent it.
    async fn read(&mut self) {
        for socket in self.sockets.iter().flatten() {
            let (mut buf, mut meta) = (vec![0; 2000], [RecvMeta::default()]);
            let mut next = poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buf)], &mut meta));
            while let Ok(Ok(_)) = timeout(Duration::ZERO, &mut next).await {}
            if meta[0].len > 0 && !self.known.contains(&meta[0].addr) {
                self.known.push(meta[0].addr);
            }
        }
    }

    fn send(&self) {
        let Some(socket) = &self.sockets[self.pick(self.sockets.len())] else { return };
        let destination = self.known[self.pick(self.known.len())];
        for _ in 0..1 + self.pick(20) {
            let contents = &vec![7; 1 + self.pick(1500)];
            let _sent =
                socket.try_send(&Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None });
        }
    }

    fn stream(&self) {
        let env = self.nodes[self.pick(self.nodes.len())].env();
        let to = self.known[self.pick(self.known.len())];
        let bytes = self.pick(40_000);
        let tasks = env.tasks.clone();
        tasks.spawn(async move {
            let Ok(mut stream) = env.net.connect(SocketAddr::new(to.ip(), PORT)).await else { return };
            if stream.write_all(&vec![7; bytes]).await.is_ok() {
                let _read = timeout(ms(5000), stream.read_exact(&mut vec![0; bytes / 2])).await;
            }
        });
    }

    async fn fault(&mut self) {
        let (world, device) = (self.world.clone(), self.devices[self.pick(self.devices.len())].clone());
        let interfaces = world.interfaces(&device).unwrap();
        let interface = interfaces[self.pick(interfaces.len())].clone();
        let way = [Way::Up, Way::Down][self.pick(2)];
        match self.pick(10) {
            0 | 1 => {
                let how = HandOver { gap_ns: self.rng.below(500 * MS), overlap_ns: self.rng.below(500 * MS) };
                world.hand_over(&device, Some(&interface), how).unwrap();
            }
            2 => {
                let address = self.address();
                world.new_address(&device, Some(&interface), address).unwrap();
            }
            3 => drop(world.rebind_nat(&device, Some(&interface))),
            4 => {
                let block = [None, None, Some(Block::Udp), Some(Block::Tcp), Some(Block::Captive)][self.pick(5)];
                world.set_block(&device, None, block).unwrap();
            }
            5 => {
                let outage = [None, Some(Outage::Loses), Some(Outage::Stalls)][self.pick(3)];
                world.set_access_outage(&device, &interface, way, outage).unwrap();
            }
            6 => world.set_access_spec(&device, &interface, way, spec(&self.rng)).unwrap(),
            7 => match self.pick(2) {
                0 => world.blackhole(["germany", "eu"][self.pick(2)], ["eu", "america"][self.pick(2)]),
                _ => ["germany", "eu"].map(|a| ["eu", "america"].map(|b| world.heal(a, b))).into_iter().for_each(drop),
            },
            8 => world.switch_off(&device).unwrap(),
            _ => {
                let node = self.pick(self.nodes.len());
                if self.nodes[node].state() == HostState::Up {
                    match self.pick(2) {
                        0 => self.nodes[node].kill().await,
                        _ => self.nodes[node].power_off().await,
                    }
                    self.sockets[node] = None;
                } else {
                    self.nodes[node].restart();
                    self.start(node);
                }
            }
        }
    }

    async fn play(&mut self) -> (Shape, Ledger) {
        for step in 0..400 {
            match self.pick(10) {
                0 => self.fault().await,
                1 => self.stream(),
                2..6 => self.send(),
                _ => tokio::time::sleep(Duration::from_micros(self.rng.below(100_000))).await,
            }
            self.read().await;
            let ledger = self.world.ledger();
            assert!(ledger.is_balanced(), "step {step}: {ledger:?}");
        }
        // Everything is healed and silent: what is on its way arrives or is dropped.
        for device in &self.devices {
            for interface in self.world.interfaces(device).unwrap() {
                for way in [Way::Up, Way::Down] {
                    self.world.set_access_outage(device, &interface, way, None).unwrap();
                }
            }
        }
        for node in &self.nodes {
            node.power_off().await;
        }
        tokio::time::sleep(ms(600_000)).await;
        let ledger = self.world.ledger();
        assert!(ledger.is_balanced() && ledger.in_flight == 0, "{ledger:?}");
        assert_eq!(self.world.open().2, 0, "streams of hosts without power");
        (self.world.shape(), ledger)
    }
}

fn play(seed: u64) -> (Shape, Ledger) {
    run(seed, move |world| async move {
        timeout(Duration::from_secs(36_000), Net::new(world, seed).play()).await.expect("ten hours")
    })
    .unwrap()
}

#[test]
fn every_packet_of_random_worlds_is_accounted_for_and_each_seed_repeats() {
    let (mut lost, mut dropped, mut made) = (std::collections::BTreeMap::new(), vec![], 0);
    for seed in 0..40 {
        let (shape, ledger) = play(seed);
        assert_eq!(play(seed), (shape, ledger.clone()), "seed {seed}");
        for (cause, count) in &ledger.lost {
            *lost.entry(*cause).or_insert(0) += count;
        }
        dropped.extend(ledger.dropped.keys().copied());
        made += ledger.made;
    }
    // All that can become of a packet was among it.
    println!("{lost:?}, made {made}");
    for cause in [Lost::TooLong, Lost::NoInterface, Lost::Cut, Lost::Blocked, Lost::NoHost, Lost::NotReceiving] {
        assert!(lost.contains_key(&cause), "{cause:?}");
    }
    for cause in [Lost::HostDown, Lost::NoSocket, Lost::NoRoute] {
        assert!(lost.contains_key(&cause), "{cause:?}");
    }
    assert!(lost.keys().any(|cause| matches!(cause, Lost::Nat(_))) && made > 0);
    for cause in [Cause::BlackHole, Cause::QueueFull, Cause::Codel, Cause::Outage, Cause::Loss, Cause::Corrupt] {
        assert!(dropped.contains(&cause), "{cause:?}");
    }
}
