//! Gossip: what is inside datagrams, the envelope around them, and nodes that hear anything from anyone, also from
//! whoever holds the deployment's key.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tern_core::clock::Entropy;
use tern_core::wire::node_v1::EdgeLoad;
use tern_replication::gossip::fuzzing::{self, Insider};
use tern_replication::gossip::limits::{DATAGRAM_BYTES, MEMBERS_MAX};
use tern_replication::gossip::{Event, Gossip, GossipConfig, GossipKey, GossipKeys, MemberState, NodeId, Output, Role};

use crate::Came;
use crate::script::{Script, put_blob};

const REGION: u8 = 1;
const DEPLOYMENT: &str = "fuzz";
const NODES: usize = 3;
/// Datagrams on their way; further ones are lost.
const FLYING: usize = 64;
/// What one datagram, or one look at the clock, may make a node of this small cluster send.
const SENT_AT_ONCE: usize = 64;

fn keys(which: u8) -> GossipKeys {
    let list: &[u8] = [&[1][..], &[1, 2], &[2, 1], &[2]][usize::from(which % 4)];
    GossipKeys::new(list.iter().map(|n| GossipKey::new([*n; 32])).collect()).unwrap()
}

fn at(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 7413))
}

fn node(number: u8, start: u64, turn: u32) -> NodeId {
    let role = [Role::Region, Role::Edge, Role::Edge, Role::Ipconf][usize::from(number % 4)];
    NodeId { region: REGION, role, name: format!("n{number}").into(), start, turn, addr: at(number + 1) }
}

fn load(connections: u32) -> EdgeLoad {
    EdgeLoad {
        edge: "n1".into(),
        region: u32::from(REGION),
        region_name: "eu".into(),
        addresses: vec!["192.0.2.9:7410".into()],
        connections,
        capacity: 100,
        generation: 1,
        ..EdgeLoad::default()
    }
}

/// What is inside a datagram, and load records: the first byte says which.
pub fn wire(bytes: &[u8]) -> Came {
    let Some((kind, rest)) = bytes.split_first() else { return Came::default() };
    let taken = match kind % 3 {
        0 => fuzzing::read_said(REGION, rest),
        1 => fuzzing::read_record(REGION, rest),
        _ => fuzzing::read_said(kind / 3, rest),
    };
    Came { accepted: taken, refused: !taken }
}

/// One of each form.
pub fn wire_seeds() -> Vec<Vec<u8>> {
    let (a, b) = (node(1, 5, 0), node(2, 6, 1));
    let news = [&[0, 2][..], &fuzzing::news(&a, 0, 1), &fuzzing::news(&b, 3, 3)].concat();
    let mut seeds: Vec<Vec<u8>> = (1..=11).map(|m| fuzzing::packet((&a, 0), &b, m, &a, &[])).collect();
    seeds.extend([
        fuzzing::packet((&a, 7), &b, 9, &a, &news),
        fuzzing::join(&a, None),
        fuzzing::join(&a, Some([7; 8])),
        fuzzing::cookie(&a, [7; 8]),
        fuzzing::replaced(&a, &node(1, 6, 0), true),
        fuzzing::suspected(&b, 9),
    ]);
    let mut seeds: Vec<Vec<u8>> = seeds.into_iter().map(|said| [&[0][..], &said].concat()).collect();
    seeds.push([&[1][..], &fuzzing::record("n1", 5, 1, load(3))].concat());
    seeds
}

/// The envelope: a script of changes to one sealed datagram, or a datagram of its own. Nothing opens but what was
/// sealed, for whoever has the key among his.
pub fn seal(bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let (from, to, elsewhere) = (script.u8(), script.u8(), script.pick(4) == 0);
    let payload = script.blob().to_vec();
    let mut sender = Insider::new(&keys(from), DEPLOYMENT, REGION, 1);
    let receiver = Insider::new(&keys(to), DEPLOYMENT, if elsewhere { 2 } else { REGION }, 2);
    let sealed = sender.seal(&payload).expect("a blob fits");
    let mut datagram = sealed.clone();
    while let Some(op) = script.more() {
        let place = usize::from(script.u8()) % datagram.len().max(1);
        match op % 8 {
            0..=3 if !datagram.is_empty() => datagram[place] ^= 1 << (op / 8 % 8),
            4 => datagram.truncate(place),
            5 => datagram.extend_from_slice(script.blob()),
            6 => datagram.clone_from(&sealed),
            _ => datagram = script.blob().to_vec(),
        }
        datagram.truncate(2 * DATAGRAM_BYTES);
    }
    let untouched = datagram == sealed;
    let opened = receiver.open(&mut datagram);
    let known = keys(to).keys().contains(&keys(from).keys()[0]) && !elsewhere && !payload.is_empty();
    assert_eq!(opened.is_some(), untouched && known, "of {} bytes", datagram.len());
    if let Some((counter, read)) = &opened {
        assert_eq!((*counter, read), (0, &payload));
    }
    Came { accepted: opened.is_some(), refused: opened.is_none() }
}

/// Untouched for one key, for two, for the wrong one; a bit, a cut, garbage.
pub fn seal_seeds() -> Vec<Vec<u8>> {
    let of = |from: u8, to: u8, changes: &[u8]| [&[from, to, 1, 4][..], b"news", changes].concat();
    vec![of(0, 0, &[]), of(0, 2, &[]), of(3, 1, &[]), of(0, 3, &[]), of(0, 0, &[0, 9]), of(0, 0, &[4, 20, 6, 0])]
}

struct World {
    now: Duration,
    nodes: Vec<Gossip>,
    flying: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
    insider: Insider,
    came: Came,
}

impl World {
    /// Takes what a node says. It is bounded, whatever it heard.
    fn collect(&mut self, which: usize) {
        let own = self.nodes[which].id().addr;
        let mut sent = 0;
        while let Some(output) = self.nodes[which].poll_output() {
            match output {
                Output::Send(to, datagram) => {
                    sent += 1;
                    assert!(datagram.len() <= DATAGRAM_BYTES, "{} bytes", datagram.len());
                    if self.flying.len() < FLYING {
                        self.flying.push_back((own, to, datagram));
                    }
                }
                Output::Event(Event::Up(id) | Event::Restarted(_, id)) => {
                    assert!(id.region == REGION || id.role == Role::Ipconf, "{id:?}");
                    self.came.accepted = true;
                }
                Output::Event(Event::Load(load)) => {
                    assert!(load.region == u32::from(REGION) && !load.edge.is_empty());
                }
                Output::Event(_) => {}
            }
        }
        assert!(sent <= SENT_AT_ONCE, "{sent} datagrams at once");
        let node = &self.nodes[which];
        let members = node.members(self.now);
        assert!(members.len() <= MEMBERS_MAX + 1);
        assert_eq!(members.iter().filter(|m| m.is_self).count(), 1);
        let own = node.id().key();
        let others = members.iter().filter(|m| !m.is_self && m.state != MemberState::Down);
        assert!(others.clone().all(|m| m.id.key() != own), "it takes another for itself: {members:#?}");
        self.came.refused |= !node.counters().dropped.is_empty();
    }

    fn hear(&mut self, which: usize, from: SocketAddr, mut datagram: Vec<u8>) {
        let now = self.now;
        self.nodes[which].handle_datagram(from, &mut datagram, now);
        self.collect(which);
    }

    /// A node as an insider would name it: one of those that are there, as it is or almost, or a stranger.
    fn name(&self, script: &mut Script<'_>) -> NodeId {
        let which = script.u8();
        match usize::from(which % 8) {
            which @ 0..NODES => self.nodes[which].id().clone(),
            3 => {
                let id = self.nodes[usize::from(which / 8) % NODES].id().clone();
                NodeId { start: script.number(), ..id }
            }
            4 => {
                let id = self.nodes[usize::from(which / 8) % NODES].id().clone();
                NodeId { turn: script.number32(), ..id }
            }
            _ => node(which / 8, script.number(), 0),
        }
    }

    fn said(&self, script: &mut Script<'_>) -> Vec<u8> {
        let (from, to) = (self.name(script), self.name(script));
        let incarnation = u16::try_from(script.number() & 0xffff).unwrap_or(0);
        match script.u8() % 12 {
            0 => fuzzing::join(&from, None),
            1 => fuzzing::join(&from, Some([script.u8(); 8])),
            2 => fuzzing::cookie(&to, [script.u8(); 8]),
            3 => fuzzing::replaced(&to, &from, script.pick(2) == 0),
            4 => fuzzing::suspected(&to, incarnation),
            5 => script.blob().to_vec(),
            _ => {
                let (message, third, count) = (script.pick(11) + 1, self.name(script), script.pick(4));
                let mut behind = vec![0, count];
                for _ in 0..count {
                    let (of, state) = (self.name(script), script.pick(3) + 1);
                    behind.extend(fuzzing::news(&of, incarnation, state));
                }
                if script.pick(4) == 0 {
                    let of = self.name(script);
                    let record = fuzzing::record(&of.name, of.start, script.number32(), load(1));
                    behind.extend(u16::try_from(record.len()).unwrap_or(0).to_be_bytes());
                    behind.extend(record);
                }
                fuzzing::packet((&from, incarnation), &to, message, &third, &behind)
            }
        }
    }
}

/// See the module.
pub fn run(bytes: &[u8]) -> Came {
    let mut script = Script::new(bytes);
    let now = Duration::from_secs(1_000);
    let nodes = (0..NODES).map(|number| {
        let number = u8::try_from(number).unwrap_or(0);
        let config =
            GossipConfig { region: REGION, id: node(number, 10, 0), deployment: DEPLOYMENT.into(), keys: keys(1) };
        let mut node = Gossip::new(config, Arc::new(Entropy::seeded(u64::from(number))), now).unwrap();
        node.set_seeds(vec![at(1), at(2)]);
        node
    });
    let nodes = nodes.collect();
    let insider = Insider::new(&keys(1), DEPLOYMENT, REGION, 99);
    let mut world = World { now, nodes, flying: VecDeque::new(), insider, came: Came::default() };
    while let Some(op) = script.more() {
        let which = usize::from(op / 16) % NODES;
        match op % 16 {
            0..=5 => {
                // What is on its way arrives, in order.
                let Some((from, to, datagram)) = world.flying.pop_front() else { continue };
                if let Some(which) = world.nodes.iter().position(|node| node.id().addr == to) {
                    world.hear(which, from, datagram);
                }
            }
            6 => {
                // Out of order, twice, or damaged.
                let number = usize::from(script.u8());
                let Some((from, _, mut datagram)) = world.flying.get(number % world.flying.len().max(1)).cloned()
                else {
                    continue;
                };
                if script.pick(2) == 0 {
                    let place = usize::from(script.u8()) % datagram.len();
                    datagram[place] ^= script.u8();
                }
                world.hear(which, from, datagram);
            }
            7 => {
                world.flying.pop_front();
            }
            8..=10 => {
                world.now += Duration::from_millis(script.number() % 30_000);
                for which in 0..NODES {
                    if world.nodes[which].next_deadline() <= world.now {
                        let now = world.now;
                        world.nodes[which].handle_timer(now);
                        assert!(world.nodes[which].next_deadline() > now, "it would be asked again at once");
                    }
                    world.collect(which);
                }
            }
            11 | 12 => {
                let said = world.said(&mut script);
                if let Some(datagram) = world.insider.seal(&said) {
                    world.hear(which, at(200), datagram);
                }
            }
            13 => {
                let now = world.now;
                world.nodes[which].set_load(load(script.number32()), now);
                world.collect(which);
            }
            14 => world.nodes[which].set_keys(keys(script.u8())).unwrap(),
            _ => {
                if script.u8() == 255 {
                    let now = world.now;
                    world.nodes[which].leave(now);
                    world.collect(which);
                } else {
                    world.hear(which, at(201), script.blob().to_vec());
                }
            }
        }
    }
    world.came
}

/// Three that find each other and go on; one that is lied to; keys that change.
pub fn seeds() -> Vec<Vec<u8>> {
    let time = [8, 210, 3, 232];
    let hear = [0; 12];
    let live: Vec<u8> = [&time[..], &hear].concat().repeat(12);
    let lie = |which: u8, said: &[u8]| [&[11 + 16 * which][..], said].concat();
    let mut lied = live.clone();
    for said in [&[0, 1, 0, 0][..], &[1, 0, 0, 2, 9], &[11, 200, 0, 0, 3, 0], &[1, 0, 0, 4], &[0, 1, 0, 6, 3, 8, 2]] {
        lied.extend(lie(0, said));
        lied.extend(&hear);
        lied.extend(&time);
    }
    let mut keyed = live.clone();
    for step in [1, 2, 3] {
        for which in 0..3 {
            keyed.extend([14 + 16 * which, step]);
            keyed.extend(&time);
            keyed.extend(&hear);
        }
    }
    let mut raw = live.clone();
    raw.push(15);
    raw.push(1);
    put_blob(&mut raw, &[1, 1, 0, 0, 0, 0]);
    vec![live, lied, keyed, raw]
}
