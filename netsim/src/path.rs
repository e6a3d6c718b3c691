//! The way of a packet from a socket to a socket.
//!
//! Problem: what a device sends passes its radio link, its access network, a NAT and the way between places, and
//! each of these may be changed, dark or gone while the packet is on its way. A fate that is decided when a packet
//! is sent would miss all of that.
//!
//! Rule: a packet goes from station to station, and each decides with what holds when it gets there.
//!
//! 1. *Socket*: the source is the address of the interface in use; none in use: lost.
//! 2. *Access link*, up ([`crate::access`]).
//! 3. *Access network*: what it blocks, or its middlebox ([`crate::middlebox`]), is lost; the NAT writes its own
//!    address over the source.
//! 4. *Between places*: blocks and filters ([`crate::links`]), then a latency or a link ([`crate::pipes`]).
//! 5. *Access network* of the receiver: what it blocks, and what its NAT has no mapping for, is lost.
//! 6. *Access link*, down.
//! 7. *Interface*: one that does not receive (any longer) loses it. Then the socket.
//!
//! Hosts without access links have 1, 4 and the socket. What a host sends to itself goes through 4 only.
//!
//! While an event is run the world's time is the event's, to the nanosecond, so that stations in a row do not round.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use bytes::Bytes;
use quinn::udp::EcnCodepoint;
use tern_netsim_link::{Cause, Fate, NatDrop, Roll, Way, flip};

use crate::access::Block;
use crate::limits::{MTU_BYTES, UDP_HEADER_BYTES};
use crate::links::Fate as CoreFate;
use crate::middlebox::Verdict;
use crate::node::{HostId, HostState};
use crate::packets::{Lost, Packet, Protocol};
use crate::pipes::{PipeId, Place};
use crate::segment::Head;
use crate::tcp::{ConnectionId, is_control};
use crate::world::{After, Event, State};

/// An IP packet on its way. Its addresses are those of the station it is at.
#[derive(Clone, Debug)]
pub(crate) struct IpPacket {
    pub(crate) sender: HostId,
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    pub(crate) load: Load,
}

/// What a packet carries.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    Udp {
        ecn: Option<EcnCodepoint>,
        bytes: Bytes,
    },
    /// A whole IP packet, whose own addresses count for nothing.
    Tcp {
        bytes: Bytes,
        /// The connection that sent it, if it is one's.
        of: Option<ConnectionId>,
    },
}

impl IpPacket {
    fn protocol(&self) -> Protocol {
        match &self.load {
            Load::Udp { .. } => Protocol::Udp,
            Load::Tcp { bytes, .. } if is_control(bytes) => Protocol::TcpControl,
            Load::Tcp { .. } => Protocol::Tcp,
        }
    }

    /// Length without headers.
    pub(crate) fn payload_bytes(&self) -> usize {
        match &self.load {
            Load::Udp { bytes, .. } => bytes.len(),
            Load::Tcp { bytes, .. } => Head::of(bytes).payload,
        }
    }

    /// Length on the wire.
    pub(crate) fn wire_bytes(&self) -> u32 {
        let bytes = match &self.load {
            Load::Udp { bytes, .. } => bytes.len() + UDP_HEADER_BYTES,
            Load::Tcp { bytes, .. } => bytes.len(),
        };
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    fn corrupt(&mut self, roll: Roll) {
        match &mut self.load {
            Load::Udp { bytes, .. } => {
                let mut flipped = bytes.to_vec();
                flip(&mut flipped, roll);
                *bytes = flipped.into();
            }
            // Of a header with flipped bits nobody knows whose it is.
            Load::Tcp { bytes, .. } => {
                let mut flipped = bytes.to_vec();
                let payload = flipped.len() - Head::of(bytes).payload;
                flip(&mut flipped[payload..], roll);
                *bytes = flipped.into();
            }
        }
    }
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) host: HostId,
    /// With access links: which of them leads there.
    pub(crate) line: Option<usize>,
}

impl State {
    /// A socket sends. The source's address may be unspecified: then it is that of the interface in use.
    pub(crate) fn send(&mut self, mut packet: IpPacket, after: &mut After) {
        let host = packet.sender;
        let (wire_bytes, now_ns) = (packet.wire_bytes(), self.now_ns);
        let source = self.own_ip(host);
        if packet.to.ip().is_loopback() {
            packet.from.set_ip(*packet.to.ip());
        } else if packet.from.ip().is_unspecified() {
            packet.from.set_ip(source);
        }
        let counts = &mut self.hosts[host.0].counts;
        counts.radio(now_ns);
        counts.sent_packets += 1;
        counts.sent_bytes += u64::from(wire_bytes);
        let mut record = Packet {
            at_ns: now_ns,
            from: packet.from.into(),
            to: packet.to.into(),
            protocol: packet.protocol(),
            bytes: packet.payload_bytes(),
            lost: false,
        };
        if usize::try_from(wire_bytes).is_ok_and(|bytes| bytes > MTU_BYTES) {
            record.lost = true;
            self.lose(Lost::TooLong);
            self.packets.push(record);
            return;
        }
        let to_itself = packet.to.ip().is_loopback() || *packet.to.ip() == source;
        let outcome = match &self.hosts[host.0].access {
            Some(access) if !to_itself => match access.sends_on(now_ns, *packet.from.ip()) {
                Some(line) => {
                    let pipe = access.pipe(line, Way::Up);
                    self.pipes.direction(pipe).send(now_ns, wire_bytes, packet);
                    self.arm(pipe);
                    Ok(())
                }
                None => Err(Lost::NoInterface),
            },
            _ => self.goes_out(packet, &record, after),
        };
        if outcome == Err(Lost::NoRoute) {
            // A kernel without a route does not send.
            self.lose(Lost::NoRoute);
            return;
        }
        if let Err(why) = outcome {
            self.lose(why);
        }
        record.lost = outcome.is_err();
        self.packets.push(record);
    }

    /// A packet begins its way between places.
    fn goes_out(&mut self, packet: IpPacket, record: &Packet, _after: &mut After) -> Result<(), Lost> {
        let owner = self.owner(packet.sender, *packet.to.ip()).ok_or(Lost::NoRoute)?;
        let (from, to) = (self.hosts[packet.sender.0].names, self.hosts[owner.host.0].names);
        let latency = match self.links.fate(record, from, to) {
            CoreFate::Arrives(latency) => latency,
            CoreFate::Cut => return Err(Lost::Cut),
            CoreFate::Filtered => return Err(Lost::Filtered),
        };
        let now_ns = self.now_ns;
        match self.pipes.between(from, to) {
            Some(pipe) => {
                self.pipes.direction(pipe).send(now_ns, packet.wire_bytes(), packet);
                self.arm(pipe);
            }
            None => {
                let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
                self.schedule(now_ns.saturating_add(latency_ns), Event::Packet(packet));
            }
        }
        Ok(())
    }

    /// A packet has come to the place of its receiver.
    pub(crate) fn comes_in(&mut self, mut packet: IpPacket, after: &mut After) {
        let Some(owner) = self.owner(packet.sender, *packet.to.ip()) else {
            self.lose(Lost::NoHost);
            return;
        };
        let Some(line) = owner.line else {
            self.reaches(owner.host, packet, after);
            return;
        };
        let now_ns = self.now_ns;
        let host = &mut self.hosts[owner.host.0];
        let Some(access) = &mut host.access else { return };
        if access.blocks(line, packet.protocol()).is_some() {
            host.counts.blocked += 1;
            self.lose(Lost::Blocked);
            return;
        }
        if let Some(nat) = access.nat(line, packet.protocol()) {
            match nat.inwards(now_ns, packet.from.into(), packet.to.into()) {
                Ok(SocketAddr::V4(inside)) => packet.to = inside,
                refused => {
                    host.counts.missed += 1;
                    self.lose(Lost::Nat(refused.err().unwrap_or(NatDrop::NoMapping)));
                    return;
                }
            }
        }
        if let Load::Tcp { bytes, .. } = &packet.load {
            let verdict = access.middlebox(line, now_ns, (packet.to, packet.from), bytes, false);
            if verdict != Verdict::Passes {
                host.counts.blocked += 1;
                self.cut(owner.host, line, verdict, &packet, (packet.from, packet.to));
                return;
            }
        }
        let pipe = access.pipe(line, Way::Down);
        self.pipes.direction(pipe).send(now_ns, packet.wire_bytes(), packet);
        self.arm(pipe);
    }

    /// A packet has left the radio link of its sender.
    fn leaves_access(&mut self, host: HostId, line: usize, mut packet: IpPacket, after: &mut After) {
        let now_ns = self.now_ns;
        let protocol = packet.protocol();
        let sender = host;
        let host = &mut self.hosts[host.0];
        let Some(access) = &mut host.access else { return };
        if let Some(block) = access.blocks(line, protocol) {
            host.counts.blocked += 1;
            let answer = match &packet.load {
                Load::Tcp { bytes, .. } if block == Block::Captive => {
                    access.portal(line, packet.from, packet.to, bytes)
                }
                _ => None,
            };
            if let Some(bytes) = answer {
                let load = Load::Tcp { bytes, of: None };
                let back = IpPacket { sender: packet.sender, from: packet.to, to: packet.from, load };
                let pipe = access.pipe(line, Way::Down);
                self.pipes.direction(pipe).send(now_ns, back.wire_bytes(), back);
                self.arm(pipe);
                self.portals += 1;
            }
            self.lose(Lost::Blocked);
            return;
        }
        if let Load::Tcp { bytes, .. } = &packet.load {
            let verdict = access.middlebox(line, now_ns, (packet.from, packet.to), bytes, true);
            if verdict != Verdict::Passes {
                host.counts.blocked += 1;
                self.cut(sender, line, verdict, &packet, (packet.to, packet.from));
                return;
            }
        }
        if let Some(nat) = access.nat(line, protocol) {
            match nat.outwards(now_ns, packet.from.into(), packet.to.into()) {
                Ok(SocketAddr::V4(outside)) => packet.from = outside,
                refused => {
                    self.lose(Lost::Nat(refused.err().unwrap_or(NatDrop::PortsExhausted)));
                    return;
                }
            }
            if let Some(died_ns) = nat.take_reopened() {
                access.forgotten(line, died_ns, now_ns);
            }
        }
        let (from, to, bytes) = (packet.from.into(), packet.to.into(), packet.payload_bytes());
        let record = Packet { at_ns: now_ns, from, to, protocol, bytes, lost: false };
        if let Err(why) = self.goes_out(packet, &record, after) {
            self.lose(why);
        }
    }

    /// A middlebox has lost a segment, and may have something to say to the device: in whose name, and where.
    fn cut(
        &mut self,
        host: HostId,
        line: usize,
        verdict: Verdict,
        lost: &IpPacket,
        (from, to): (SocketAddrV4, SocketAddrV4),
    ) {
        let now_ns = self.now_ns;
        if let (Verdict::Cut(head), Some(access)) = (verdict, &self.hosts[host.0].access) {
            let load = Load::Tcp { bytes: head.packet().into(), of: None };
            let back = IpPacket { sender: lost.sender, from, to, load };
            let pipe = access.pipe(line, Way::Down);
            self.pipes.direction(pipe).send(now_ns, back.wire_bytes(), back);
            self.arm(pipe);
            self.portals += 1;
        }
        self.lose(Lost::Blocked);
    }

    /// A packet has left the radio link of its receiver.
    fn reaches_interface(&mut self, host: HostId, packet: IpPacket, after: &mut After) {
        let now_ns = self.now_ns;
        let to = &mut self.hosts[host.0];
        if !to.access.as_ref().is_some_and(|access| access.receives(now_ns, *packet.to.ip())) {
            to.counts.missed += 1;
            self.lose(Lost::NotReceiving);
            return;
        }
        self.reaches(host, packet, after);
    }

    /// A packet has come to its host.
    fn reaches(&mut self, host: HostId, packet: IpPacket, after: &mut After) {
        let wire_bytes = packet.wire_bytes();
        let IpPacket { from, to, load, .. } = packet;
        let taken = if self.host(host).state == HostState::Off {
            Err(Lost::HostDown)
        } else {
            match load {
                Load::Udp { ecn, bytes } => self.datagram_arrives(host, from, to, ecn, bytes, after),
                Load::Tcp { bytes, .. } => self.segment_arrives(host, from, to, &bytes, after),
            }
        };
        let host = &mut self.hosts[host.0];
        let counts = &mut host.counts;
        match taken {
            Ok(()) => {
                counts.radio(self.now_ns);
                counts.waited += u64::from(host.tasks.is_paused());
                counts.received_packets += 1;
                counts.received_bytes += u64::from(wire_bytes);
            }
            Err(why) => {
                counts.missed += 1;
                self.lose(why);
            }
        }
    }

    /// A link with a spec has something to tell, or to do.
    pub(crate) fn pipe_due(&mut self, pipe: PipeId, after: &mut After) {
        let now_ns = self.now_ns;
        self.pipes.fired(pipe, now_ns);
        let place = self.pipes.place(pipe);
        while let Some(output) = self.pipes.direction(pipe).poll(now_ns) {
            let mut packet = output.payload;
            match output.fate {
                Fate::Delivered | Fate::Copied => {}
                Fate::Corrupted(roll) => packet.corrupt(roll),
                Fate::Dropped(cause) => {
                    if let (Cause::TooLong(mtu), Load::Tcp { of: Some(id), .. }) = (cause, &packet.load) {
                        self.too_long(*id, mtu);
                    }
                    continue;
                }
            }
            match place {
                Place::Between => self.comes_in(packet, after),
                Place::Up(host, line) => self.leaves_access(host, line, packet, after),
                Place::Down(host) => self.reaches_interface(host, packet, after),
            }
        }
        self.arm(pipe);
    }

    /// Sees to it that a link is asked when it has something to tell.
    pub(crate) fn arm(&mut self, pipe: PipeId) {
        if let Some(at_ns) = self.pipes.arm(pipe) {
            self.schedule(at_ns, Event::Pipe(pipe));
        }
    }

    /// Whose an address is, as seen by a host.
    pub(crate) fn owner(&self, seen_by: HostId, ip: Ipv4Addr) -> Option<Owner> {
        if ip.is_loopback() || ip == self.own_ip(seen_by) {
            return Some(Owner { host: seen_by, line: None });
        }
        self.by_ip.get(&ip).copied()
    }

    /// The address that a host's packets come from: that of the interface in use, or to be used after a gap.
    pub(crate) fn own_ip(&self, host: HostId) -> Ipv4Addr {
        let host = self.host(host);
        host.access.as_ref().and_then(crate::access::Access::address).unwrap_or(host.ip)
    }

    /// Whether a host has interfaces, and all of them are switched off.
    pub(crate) fn is_off(&self, host: HostId) -> bool {
        self.host(host).access.as_ref().is_some_and(|access| access.address().is_none())
    }

    fn lose(&mut self, why: Lost) {
        *self.lost.entry(why).or_default() += 1;
    }
}

/// Everything here is IPv4; what is not has no route.
pub(crate) fn v4(address: SocketAddr) -> Option<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(address) => {
            let ip = address.ip().to_ipv4_mapped()?;
            Some(SocketAddrV4::new(ip, address.port()))
        }
    }
}

/// The same of an address without port.
pub(crate) fn ip_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(ip) => ip.to_ipv4_mapped(),
    }
}
