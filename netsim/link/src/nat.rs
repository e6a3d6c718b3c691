//! A network address translator, as a machine.
//!
//! Problem: a phone's connection dies without anybody closing it. Behind a NAT, what was sent last decides
//! whether answers still find the way in; half a minute of silence, and the downlink is dead while the uplink
//! still works. Whether a new network path is found, and whether the server sees another address, depends on the
//! kind of NAT, so "a NAT" is not one thing.
//!
//! Rule (RFC 4787): *mapping* says when two flows of one inside socket share an outside port; *filtering* says
//! from whom packets are let in at that port. Each is independent of the endpoint, depends on its address, or on
//! address and port. A mapping lives from its last packet outwards (and inwards, if so set) for the time-out; a
//! shorter one may hold until something came back, as in Linux and in carriers' NATs.
//!
//! Why not only a timer that cuts the link: a cut hits both directions, and healing it brings the old path back.
//! A forgotten mapping lets packets out, under a new port, and the peer has to notice.
//!
//! Ports are found by the NAT's own order, without randomness, so that runs repeat. Hairpinning (from the inside
//! to one of the own outside ports) is not modelled: such packets are for an address that is not inside.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use crate::limits::NAT_REMOTES_MAX;

/// On what a decision depends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dependence {
    /// Not on the remote end (EIM, EIF).
    #[default]
    Independent,
    /// On its address (ADM, ADF).
    Address,
    /// On its address and port (APDM, APDF): with mapping, a "symmetric" NAT.
    AddressAndPort,
}

impl Dependence {
    /// The part of a remote end that counts.
    fn key(self, remote: SocketAddr) -> Option<(IpAddr, u16)> {
        match self {
            Self::Independent => None,
            Self::Address => Some((remote.ip(), 0)),
            Self::AddressAndPort => Some((remote.ip(), remote.port())),
        }
    }
}

/// Which outside port a new mapping gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortChoice {
    /// The inside one if it is free and in the range, else the next.
    #[default]
    Preserve,
    /// The next one, round and round.
    Next,
}

/// What a NAT is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatSpec {
    /// When flows share an outside port.
    pub mapping: Dependence,
    /// Who is let in.
    pub filtering: Dependence,
    /// How long a mapping lives without traffic, in nanoseconds.
    pub udp_ns: u64,
    /// How long before anything came back; as long as [`NatSpec::udp_ns`] if `None`.
    pub udp_unanswered_ns: Option<u64>,
    /// Whether packets from outside renew a mapping too.
    pub renewed_from_outside: bool,
    /// Which port a mapping gets.
    pub choice: PortChoice,
    /// From these.
    pub ports: RangeInclusive<u16>,
    /// At most so many mappings of one inside address: carriers hand out blocks of ports.
    pub ports_per_host: Option<u32>,
}

const S: u64 = 1_000_000_000;

impl Default for NatSpec {
    /// A home gateway: endpoint-independent mapping, filtering by address and port, 30 s.
    fn default() -> Self {
        Self {
            mapping: Dependence::Independent,
            filtering: Dependence::AddressAndPort,
            udp_ns: 30 * S,
            udp_unanswered_ns: None,
            renewed_from_outside: true,
            choice: PortChoice::Preserve,
            ports: 1024..=u16::MAX,
            ports_per_host: None,
        }
    }
}

impl NatSpec {
    /// Time-outs worth a test, in nanoseconds: the least seen at carriers and at home gateways, two common ones,
    /// and what RFC 4787 asks for.
    pub const TIMEOUTS_NS: [u64; 5] = [15 * S, 30 * S, 60 * S, 120 * S, 300 * S];

    /// A carrier's: 15 s until something came back, 300 s then; a block of ports per customer.
    pub fn carrier() -> Self {
        Self {
            udp_ns: 300 * S,
            udp_unanswered_ns: Some(15 * S),
            choice: PortChoice::Next,
            ports_per_host: Some(512),
            ..Self::default()
        }
    }

    /// A company's: symmetric, 120 s.
    pub fn corporate() -> Self {
        Self { mapping: Dependence::AddressAndPort, udp_ns: 120 * S, choice: PortChoice::Next, ..Self::default() }
    }
}

/// Why a packet did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum NatDrop {
    /// Outwards: every port is taken. The packet is lost.
    #[error("all ports of the NAT are taken")]
    PortsExhausted,
    /// Inwards: no mapping has this port, or no longer.
    #[error("the NAT has no mapping for this port")]
    NoMapping,
    /// Inwards: the mapping's owner has sent nothing to who sent this.
    #[error("the NAT's filter lets nobody in to whom nothing was sent")]
    Filtered,
}

/// Who shares a mapping.
type Inside = (SocketAddr, Option<(IpAddr, u16)>);

#[derive(Clone, Debug)]
struct Mapping {
    inside: Inside,
    last_ns: u64,
    answered: bool,
    /// To whom packets went, as far as the filter cares, and when last.
    remotes: BTreeMap<(IpAddr, u16), u64>,
}

/// A NAT with one outside address.
#[derive(Clone, Debug)]
pub struct Nat {
    spec: NatSpec,
    outside: IpAddr,
    /// By outside port.
    mappings: BTreeMap<u16, Mapping>,
    by_inside: BTreeMap<Inside, u16>,
    next_port: u16,
    /// When the mapping died in whose place the last packet outwards opened another.
    reopened: Option<u64>,
}

impl Nat {
    /// A NAT without mappings.
    pub fn new(spec: NatSpec, outside: IpAddr) -> Self {
        let next_port = *spec.ports.start();
        Self { spec, outside, mappings: BTreeMap::new(), by_inside: BTreeMap::new(), next_port, reopened: None }
    }

    /// A packet goes out: from which address the remote end sees it come.
    pub fn outwards(&mut self, now_ns: u64, inside: SocketAddr, remote: SocketAddr) -> Result<SocketAddr, NatDrop> {
        let key = (inside, self.spec.mapping.key(remote));
        let known = self.by_inside.get(&key).copied();
        self.reopened = known.and_then(|port| self.mappings.get(&port)).map(|mapping| self.dies_ns(mapping));
        self.reopened.take_if(|died_ns| *died_ns > now_ns);
        let known = known.filter(|port| self.lives(*port, now_ns));
        let port = match known {
            Some(port) => port,
            None => self.open(now_ns, key)?,
        };
        if let Some(mapping) = self.mappings.get_mut(&port) {
            mapping.last_ns = now_ns;
            if let Some(remote) = self.spec.filtering.key(remote) {
                mapping.remotes.insert(remote, now_ns);
                if mapping.remotes.len() > NAT_REMOTES_MAX
                    && let Some(oldest) = mapping.remotes.iter().min_by_key(|(_, at_ns)| **at_ns).map(|(key, _)| *key)
                {
                    mapping.remotes.remove(&oldest);
                }
            }
        }
        Ok(SocketAddr::new(self.outside, port))
    }

    /// When the mapping had died that the last packet outwards would have needed: until then its sender was out of reach
    /// and did not know. `None`: it lived, or there never was one. Told once.
    pub fn take_reopened(&mut self) -> Option<u64> {
        self.reopened.take()
    }

    /// A packet comes in for one of the NAT's ports: for whom it is.
    pub fn inwards(&mut self, now_ns: u64, remote: SocketAddr, at: SocketAddr) -> Result<SocketAddr, NatDrop> {
        if at.ip() != self.outside || !self.lives(at.port(), now_ns) {
            return Err(NatDrop::NoMapping);
        }
        let Some(mapping) = self.mappings.get_mut(&at.port()) else { return Err(NatDrop::NoMapping) };
        if let Some(remote) = self.spec.filtering.key(remote)
            && !mapping.remotes.contains_key(&remote)
        {
            return Err(NatDrop::Filtered);
        }
        mapping.answered = true;
        if self.spec.renewed_from_outside {
            mapping.last_ns = now_ns;
        }
        Ok(mapping.inside.0)
    }

    /// Forgets every mapping, as when it is switched off and on. Who sends on gets a new port ("rebinding"),
    /// also where ports are otherwise preserved: the gateway had other customers meanwhile.
    pub fn rebind(&mut self) {
        let taken: Vec<u16> = self.mappings.keys().copied().collect();
        self.mappings.clear();
        self.by_inside.clear();
        self.spec.choice = PortChoice::Next;
        if let Some(last) = taken.last() {
            self.next_port = self.after(*last);
        }
    }

    /// Gets a new outside address, and forgets every mapping.
    pub fn readdress(&mut self, outside: IpAddr) {
        self.mappings.clear();
        self.by_inside.clear();
        self.outside = outside;
    }

    /// The outside address.
    pub fn outside(&self) -> IpAddr {
        self.outside
    }

    /// Mappings that live now.
    pub fn mappings(&self, now_ns: u64) -> usize {
        self.mappings.keys().filter(|port| self.lives(**port, now_ns)).count()
    }

    /// When the next mapping dies if nothing is sent. Nothing needs to be called then.
    pub fn next_ns(&self, now_ns: u64) -> Option<u64> {
        self.mappings.values().map(|mapping| self.dies_ns(mapping)).filter(|at_ns| *at_ns > now_ns).min()
    }

    fn dies_ns(&self, mapping: &Mapping) -> u64 {
        let unanswered_ns = self.spec.udp_unanswered_ns.unwrap_or(self.spec.udp_ns);
        mapping.last_ns.saturating_add(if mapping.answered { self.spec.udp_ns } else { unanswered_ns })
    }

    fn lives(&self, port: u16, now_ns: u64) -> bool {
        self.mappings.get(&port).is_some_and(|mapping| self.dies_ns(mapping) > now_ns)
    }

    fn open(&mut self, now_ns: u64, inside: Inside) -> Result<u16, NatDrop> {
        self.forget_dead(now_ns, inside);
        let host = inside.0.ip();
        let of_host = || self.mappings.values().filter(|mapping| mapping.inside.0.ip() == host).count();
        let block = self.spec.ports_per_host.and_then(|ports| usize::try_from(ports).ok());
        if block.is_some_and(|most| of_host() >= most) {
            return Err(NatDrop::PortsExhausted);
        }
        let port = self.free_port(inside.0.port()).ok_or(NatDrop::PortsExhausted)?;
        let mapping = Mapping { inside, last_ns: now_ns, answered: false, remotes: BTreeMap::new() };
        self.mappings.insert(port, mapping);
        self.by_inside.insert(inside, port);
        Ok(port)
    }

    /// Ports of the dead are free again. Walking over all is only worth it when somebody needs one.
    fn forget_dead(&mut self, now_ns: u64, inside: Inside) {
        let crowded = self.mappings.len() >= self.spec.ports.len() || self.spec.ports_per_host.is_some();
        let dead: Vec<u16> = if crowded {
            self.mappings.keys().copied().filter(|port| !self.lives(*port, now_ns)).collect()
        } else {
            let wanted = [self.by_inside.get(&inside).copied(), Some(inside.0.port()), Some(self.next_port)];
            wanted.into_iter().flatten().filter(|port| !self.lives(*port, now_ns)).collect()
        };
        for port in dead {
            if let Some(mapping) = self.mappings.remove(&port) {
                self.by_inside.remove(&mapping.inside);
            }
        }
    }

    fn free_port(&mut self, wanted: u16) -> Option<u16> {
        let free = |port: &u16| self.spec.ports.contains(port) && !self.mappings.contains_key(port);
        if self.spec.choice == PortChoice::Preserve && free(&wanted) {
            return Some(wanted);
        }
        let mut port = self.next_port;
        for _ in 0..self.spec.ports.len() {
            let next = self.after(port);
            if !self.mappings.contains_key(&port) {
                self.next_port = next;
                return Some(port);
            }
            port = next;
        }
        None
    }

    fn after(&self, port: u16) -> u16 {
        let next = port.checked_add(1).filter(|next| self.spec.ports.contains(next));
        next.unwrap_or(*self.spec.ports.start())
    }
}

#[cfg(test)]
#[path = "nat_tests.rs"]
mod tests;
