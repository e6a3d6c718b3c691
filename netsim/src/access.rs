//! Devices: how a host with interfaces of its own comes into the network.
//!
//! Each interface has an access link (rate, queue, faults; [`tern_netsim_link::Direction`]), an access network that
//! may block what it does not like, and perhaps a NAT. One interface is in use at a time
//! ([`tern_netsim_link::Interfaces`]). A socket that is bound to no particular address takes that of the interface
//! in use for every packet anew, as the kernel does, so that a connection sees a hand-over as a new path. What is in
//! an access link's queue when its interface goes out of use still leaves: it has been given to the radio.
//!
//! The way of a packet is told in [`crate::path`]. Here is what a test or a fault may do to a device, by names: a name
//! that does not exist is an error that tells the nearest one that does.
//!
//! The randomness of an access link is keyed by `<device>.<interface>`, so a device more changes no other's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use bytes::Bytes;
use tern_netsim_link::{
    Counts, HandOver, Interface, InterfaceError, Interfaces, LinkSpec, Nat, NatSpec, Outage, Spec, SpecError, Way,
    nearest,
};
use tern_netsim_verdict::limits::RADIO_TAIL_NS;

use crate::limits::{NAT_TCP_IDLE, NAT_TCP_UNANSWERED};
use crate::node::{HostId, SimNode};
use crate::packets::Protocol;
use crate::path::{Owner, ip_v4};
use crate::pipes::{PipeId, Place};
use crate::portal::{Portal, Says};
use crate::segment::Head;
use crate::world::{State, World, nanos};

/// An interface of a device, and what is behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessSpec {
    /// `cell`, `wifi`.
    pub name: String,
    /// The device's address on it; behind a NAT a private one, which other devices may have as well.
    pub address: Ipv4Addr,
    /// The access link; `up` is the device's.
    pub link: LinkSpec,
    /// The NAT behind the access link, and its outside address.
    pub nat: Option<(NatSpec, Ipv4Addr)>,
}

/// What an access network does not let through, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Datagrams.
    Udp,
    /// Streams: their packets are lost, also those of streams that were open before.
    Tcp,
    /// A captive portal: datagrams are lost, and whatever stream is opened, the access network itself takes it and
    /// never answers.
    Captive,
}

impl Block {
    /// Whether it concerns packets of this kind.
    pub(crate) fn concerns(self, protocol: Protocol) -> bool {
        match self {
            Self::Udp => protocol == Protocol::Udp,
            Self::Tcp => protocol != Protocol::Udp,
            Self::Captive => true,
        }
    }
}

/// What one direction of an access link, or of a link between places, has done so far, and what waits in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessCounts {
    /// So far.
    pub counts: Counts,
    /// Packets that wait now, without the one that is leaving.
    pub queued_packets: usize,
    /// Their bytes.
    pub queued_bytes: u64,
}

/// What came and went at a host so far. Bytes are counted with IP headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCounts {
    /// Packets that its sockets sent, whatever became of them.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that came to its sockets.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets for it that came in vain: the host was down, or no interface received them, its NAT had no mapping, or
    /// no socket took them.
    pub missed: u64,
    /// Packets that came while its process was paused, and wait; they are also received ones.
    pub waited: u64,
    /// Packets from and for it that an access network blocked, or that a captive portal answered itself.
    pub blocked: u64,
    /// How often its radio woke: a packet came or went after [`RADIO_TAIL_NS`] without one.
    pub wakeups: u64,
    /// The last packet.
    pub(crate) last_ns: Option<u64>,
}

impl HostCounts {
    /// A packet comes or goes now.
    pub(crate) fn radio(&mut self, now_ns: u64) {
        if self.last_ns.is_none_or(|last_ns| now_ns.saturating_sub(last_ns) >= RADIO_TAIL_NS) {
            self.wakeups += 1;
        }
        self.last_ns = Some(now_ns);
    }
}

/// Why a device is not changed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// No host has this name.
    #[error("no host is called {name}; did you mean {nearest}?")]
    Host {
        /// The name.
        name: String,
        /// The one most like it; empty if there are no hosts.
        nearest: String,
    },
    /// The host has no access links.
    #[error("{0} has no access links; add it as a device")]
    NotADevice(String),
    /// The device has no interface of this name.
    #[error("{device} has no interface {name}; did you mean {nearest}? It has {known}")]
    Interface {
        /// The device.
        device: String,
        /// The name.
        name: String,
        /// The one most like it.
        nearest: String,
        /// Those it has.
        known: String,
    },
    /// No interface was named, and none is in use.
    #[error("all interfaces of {0} are switched off; name one")]
    AllOff(String),
    /// The interface is behind no NAT.
    #[error("{interface} of {device} is behind no NAT")]
    NoNat {
        /// The device.
        device: String,
        /// The interface.
        interface: String,
    },
    /// Another host, or another interface of this device, has this address.
    #[error("the address {0} is taken")]
    Taken(Ipv4Addr),
    /// The spec can't be run.
    #[error("the access link {link} can't be run: {source}")]
    Spec {
        /// `<device>.<interface>`.
        link: String,
        /// Why.
        source: SpecError,
    },
    /// These interfaces can't be a device's.
    #[error("{device}: {source}")]
    Interfaces {
        /// The device.
        device: String,
        /// Why.
        source: InterfaceError,
    },
}

/// What is behind one interface.
#[derive(Debug)]
struct Line {
    /// The access link, its way up.
    link: PipeId,
    nat: Option<Nats>,
    block: Option<Block>,
    portal: Portal,
}

/// A NAT keeps datagrams and streams apart, and streams longer.
#[derive(Debug)]
struct Nats {
    udp: Nat,
    tcp: Nat,
}

impl Nats {
    fn new(spec: NatSpec, outside: Ipv4Addr) -> Self {
        let tcp =
            NatSpec { udp_ns: nanos(NAT_TCP_IDLE), udp_unanswered_ns: Some(nanos(NAT_TCP_UNANSWERED)), ..spec.clone() };
        Self { udp: Nat::new(spec, IpAddr::V4(outside)), tcp: Nat::new(tcp, IpAddr::V4(outside)) }
    }
}

/// The interfaces of a host that has some.
#[derive(Debug)]
pub(crate) struct Access {
    interfaces: Interfaces,
    /// In the order of the interfaces.
    lines: Vec<Line>,
}

impl Access {
    /// The line on which a packet with this source goes out now.
    pub(crate) fn sends_on(&self, now_ns: u64, from: Ipv4Addr) -> Option<usize> {
        let line = self.interfaces.sending_index(now_ns)?;
        (self.interfaces.all()[line].address == IpAddr::V4(from)).then_some(line)
    }

    /// Whether a packet for this address is received now.
    pub(crate) fn receives(&self, now_ns: u64, at: Ipv4Addr) -> bool {
        self.interfaces.receives(now_ns, IpAddr::V4(at))
    }

    /// The address of the interface in use, or to be used after a gap.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        ip_v4(self.interfaces.all()[self.interfaces.chosen()?].address)
    }

    /// What the access network of a line holds against packets of this kind.
    pub(crate) fn blocks(&self, line: usize, protocol: Protocol) -> Option<Block> {
        self.lines[line].block.filter(|block| block.concerns(protocol))
    }

    /// The NAT of a line, for packets of this kind.
    pub(crate) fn nat(&mut self, line: usize, protocol: Protocol) -> Option<&mut Nat> {
        let nats = self.lines[line].nat.as_mut()?;
        Some(if protocol == Protocol::Udp { &mut nats.udp } else { &mut nats.tcp })
    }

    /// What the captive portal of a line answers to a segment of the device.
    pub(crate) fn portal(
        &mut self,
        line: usize,
        from: SocketAddrV4,
        to: SocketAddrV4,
        segment: &[u8],
    ) -> Option<Bytes> {
        match self.lines[line].portal.takes(from, to, Head::of(segment)) {
            Says::Answer(head) => Some(head.packet().into()),
            Says::Nothing | Says::NotMine => None,
        }
    }

    /// The access link of a line.
    pub(crate) fn pipe(&self, line: usize, way: Way) -> PipeId {
        self.lines[line].link.way(way)
    }
}

impl State {
    fn host_named(&self, name: &str) -> Result<HostId, AccessError> {
        self.by_name.get(name).copied().ok_or_else(|| AccessError::Host {
            name: name.to_owned(),
            nearest: nearest(name, self.by_name.keys().map(String::as_str)).unwrap_or_default().to_owned(),
        })
    }

    /// A device, and one of its interfaces: the named one, or the one that is in use.
    fn line_named(&mut self, device: &str, interface: Option<&str>) -> Result<(HostId, usize), AccessError> {
        let host = self.host_named(device)?;
        let Some(access) = &self.hosts[host.0].access else {
            return Err(AccessError::NotADevice(device.to_owned()));
        };
        let line = match interface {
            None => access.interfaces.chosen().ok_or_else(|| AccessError::AllOff(device.to_owned()))?,
            Some(name) => access.interfaces.index(name).ok_or_else(|| unknown(device, name, &access.interfaces))?,
        };
        Ok((host, line))
    }

    /// One that was found by [`State::line_named`].
    fn access(&mut self, host: HostId, device: &str) -> Result<&mut Access, AccessError> {
        self.hosts[host.0].access.as_mut().ok_or_else(|| AccessError::NotADevice(device.to_owned()))
    }

    fn link_named(&mut self, device: &str, interface: &str, way: Way) -> Result<PipeId, AccessError> {
        let (host, line) = self.line_named(device, Some(interface))?;
        Ok(self.access(host, device)?.pipe(line, way))
    }

    /// What one direction of a link has done, and what waits in it.
    pub(crate) fn counts_of(&mut self, pipe: PipeId) -> AccessCounts {
        let direction = self.pipes.direction(pipe);
        let (queued_packets, queued_bytes) = direction.queued();
        AccessCounts { counts: direction.counts().clone(), queued_packets, queued_bytes }
    }

    fn add_access(&mut self, seed: u64, host: HostId, device: &str, specs: Vec<AccessSpec>) -> Result<(), AccessError> {
        let interface = |spec: &AccessSpec| Interface {
            name: spec.name.clone(),
            address: IpAddr::V4(spec.address),
            link: format!("{device}.{}", spec.name),
        };
        let interfaces = Interfaces::new(specs.iter().map(interface).collect())
            .map_err(|source| AccessError::Interfaces { device: device.to_owned(), source })?;
        let mut outside = Vec::new();
        for spec in &specs {
            let link = || format!("{device}.{}", spec.name);
            spec.link.check().map_err(|source| AccessError::Spec { link: link(), source })?;
            let address = spec.nat.as_ref().map_or(spec.address, |(_, outside)| *outside);
            if self.by_ip.contains_key(&address) || outside.contains(&address) {
                return Err(AccessError::Taken(address));
            }
            outside.push(address);
        }
        let mut lines = Vec::new();
        for (line, spec) in specs.into_iter().enumerate() {
            let name = format!("{device}.{}", spec.name);
            let places = [Place::Up(host, line), Place::Down(host)];
            let link = self.pipes.add(seed, &name, spec.link, places);
            let link = link.map_err(|source| AccessError::Spec { link: name, source })?;
            let nat = spec.nat.map(|(spec, outside)| Nats::new(spec, outside));
            self.by_ip.insert(outside[line], Owner { host, line: Some(line) });
            lines.push(Line { link, nat, block: None, portal: Portal::default() });
        }
        self.hosts[host.0].access = Some(Access { interfaces, lines });
        Ok(())
    }
}

fn unknown(device: &str, name: &str, interfaces: &Interfaces) -> AccessError {
    let known: Vec<&str> = interfaces.all().iter().map(|one| one.name.as_str()).collect();
    AccessError::Interface {
        device: device.to_owned(),
        name: name.to_owned(),
        nearest: nearest(name, known.iter().copied()).unwrap_or_default().to_owned(),
        known: known.join(", "),
    }
}

impl World {
    /// Adds a device, switched on; the first of its interfaces is in use. Fails, and adds nothing, where its name or
    /// an address that others see (the NAT's, behind one) is taken, a link can't be run, or two of its interfaces
    /// have the same name or address. Nobody can look up its name.
    pub fn add_device(&self, name: &str, group: &str, interfaces: Vec<AccessSpec>) -> io::Result<SimNode> {
        let host = self.shared.with(|state, _| {
            let first = interfaces.first().map_or(Ipv4Addr::UNSPECIFIED, |spec| spec.address);
            if state.by_name.contains_key(name) || state.names.contains_key(name) {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} is taken")));
            }
            let host = state.new_host(&self.shared, name, group, first);
            if let Err(error) = state.add_access(self.shared.seed, host, name, interfaces) {
                state.hosts.pop();
                state.by_name.remove(name);
                let kind = match error {
                    AccessError::Taken(_) => io::ErrorKind::AlreadyExists,
                    _ => io::ErrorKind::InvalidInput,
                };
                return Err(io::Error::new(kind, error));
            }
            Ok(host)
        })?;
        Ok(SimNode::new(self.clone(), host))
    }

    /// The names of a device's interfaces.
    pub fn interfaces(&self, device: &str) -> Result<Vec<String>, AccessError> {
        self.shared.with(|state, _| {
            let host = state.host_named(device)?;
            Ok(state.access(host, device)?.interfaces.all().iter().map(|one| one.name.clone()).collect())
        })
    }

    /// The interface on which a device sends now. `None`: during a gap, or if all are off.
    pub fn interface_in_use(&self, device: &str) -> Result<Option<String>, AccessError> {
        self.shared.with(|state, _| {
            let (host, now_ns) = (state.host_named(device)?, state.now_ns);
            Ok(state.access(host, device)?.interfaces.sending(now_ns).map(|one| one.name.clone()))
        })
    }

    /// What one direction of an access link is like now.
    pub fn access_spec(&self, device: &str, interface: &str, way: Way) -> Result<Spec, AccessError> {
        self.shared.with(|state, _| {
            let pipe = state.link_named(device, interface, way)?;
            Ok(state.pipes.direction(pipe).spec().clone())
        })
    }

    /// Changes one direction of an access link; what waits goes on waiting.
    pub fn set_access_spec(&self, device: &str, interface: &str, way: Way, spec: Spec) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (pipe, now_ns) = (state.link_named(device, interface, way)?, state.now_ns);
            let set = state.pipes.direction(pipe).set_spec(now_ns, spec);
            set.map_err(|source| AccessError::Spec { link: format!("{device}.{interface}"), source })?;
            state.arm(pipe);
            Ok(())
        })
    }

    /// Begins or ends an outage of one direction of an access link, beside those of its spec.
    pub fn set_access_outage(
        &self,
        device: &str,
        interface: &str,
        way: Way,
        outage: Option<Outage>,
    ) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (pipe, now_ns) = (state.link_named(device, interface, way)?, state.now_ns);
            state.pipes.direction(pipe).set_outage(now_ns, outage);
            state.arm(pipe);
            Ok(())
        })
    }

    /// Hands over to another interface; `None`: to the present one again, as from cell to cell.
    pub fn hand_over(&self, device: &str, to: Option<&str>, how: HandOver) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (host, line) = state.line_named(device, to)?;
            let now_ns = state.now_ns;
            let interfaces = &mut state.access(host, device)?.interfaces;
            let name = interfaces.all()[line].name.clone();
            let handed = interfaces.hand_over(now_ns, &name, how);
            handed.map_err(|source| AccessError::Interfaces { device: device.to_owned(), source })
        })
    }

    /// Switches all interfaces off (flight mode) until the next hand-over, which has to name one.
    pub fn switch_off(&self, device: &str) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let host = state.host_named(device)?;
            state.access(host, device)?.interfaces.off();
            Ok(())
        })
    }

    /// Gives an interface (`None`: the one in use) another address. Behind a NAT it is the NAT's outside address that
    /// changes, and all its mappings are forgotten.
    pub fn new_address(&self, device: &str, interface: Option<&str>, address: Ipv4Addr) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (host, line) = state.line_named(device, interface)?;
            let owner = Owner { host, line: Some(line) };
            if state.by_ip.get(&address).is_some_and(|other| *other != owner) {
                return Err(AccessError::Taken(address));
            }
            let access = state.access(host, device)?;
            let before = if let Some(nat) = &mut access.lines[line].nat {
                let before = nat.udp.outside();
                nat.udp.readdress(IpAddr::V4(address));
                nat.tcp.readdress(IpAddr::V4(address));
                before
            } else {
                let Interface { name, address: before, .. } = access.interfaces.all()[line].clone();
                let set = access.interfaces.readdress(&name, IpAddr::V4(address));
                set.map_err(|_| AccessError::Taken(address))?;
                before
            };
            ip_v4(before).and_then(|before| state.by_ip.remove(&before));
            state.by_ip.insert(address, owner);
            Ok(())
        })
    }

    /// Lets the NAT of an interface (`None`: the one in use) forget its mappings, and give other ports afterwards.
    pub fn rebind_nat(&self, device: &str, interface: Option<&str>) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (host, line) = state.line_named(device, interface)?;
            let access = state.access(host, device)?;
            match &mut access.lines[line].nat {
                Some(nat) => {
                    nat.udp.rebind();
                    nat.tcp.rebind();
                    Ok(())
                }
                None => {
                    let interface = access.interfaces.all()[line].name.clone();
                    Err(AccessError::NoNat { device: device.to_owned(), interface })
                }
            }
        })
    }

    /// Lets the access network of an interface (`None`: of every one of the device) block something, or nothing.
    pub fn set_block(&self, device: &str, interface: Option<&str>, block: Option<Block>) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let named = interface.map(|interface| state.line_named(device, Some(interface))).transpose()?;
            let host = state.host_named(device)?;
            for (index, line) in state.access(host, device)?.lines.iter_mut().enumerate() {
                if named.is_none_or(|(_, named)| named == index) {
                    line.block = block;
                }
            }
            Ok(())
        })
    }

    /// What one direction of an access link has done so far, and what waits in it.
    pub fn access_counts(&self, device: &str, interface: &str, way: Way) -> Result<AccessCounts, AccessError> {
        self.shared.with(|state, _| {
            let pipe = state.link_named(device, interface, way)?;
            Ok(state.counts_of(pipe))
        })
    }

    /// What came and went at a host so far.
    pub fn host_counts(&self, name: &str) -> Result<HostCounts, AccessError> {
        self.shared.with(|state, _| {
            let host = state.host_named(name)?;
            Ok(state.host(host).counts)
        })
    }
}
