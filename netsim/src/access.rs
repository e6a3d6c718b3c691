//! Devices: how a host with interfaces of its own comes into the network.
//!
//! Each interface has an access link (rate, queue, faults; [`tern_netsim_link::Direction`]), an access network that
//! may block what it does not like, and perhaps a NAT. One interface is in use at a time
//! ([`tern_netsim_link::Interfaces`]). A socket that is bound to no particular address takes that of the interface
//! in use for every packet anew, as the kernel does, so that a connection sees a hand-over as a new path. What is in
//! an access link's queue when its interface goes out of use still leaves: it has been given to the radio.
//!
//! The way of a packet is told in `path`; what a test or a fault may do to a device, in `devices`.
//!
//! The randomness of an access link is keyed by `<device>.<interface>`, so a device more changes no other's.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use bytes::Bytes;
use tern_netsim_link::{Counts, InterfaceError, Interfaces, LinkSpec, Nat, NatSpec, SpecError, Way};
use tern_netsim_verdict::limits::RADIO_TAIL_NS;

use crate::limits::{FORGOTTEN_MAX, NAT_TCP_IDLE, NAT_TCP_UNANSWERED};
use crate::middlebox::{Middlebox, Verdict};
use crate::packets::Protocol;
use crate::path::ip_v4;
use crate::pipes::PipeId;
use crate::portal::{Portal, Says};
use crate::segment::Head;
use crate::world::nanos;

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
    /// A middlebox: datagrams are lost, and so are streams that do not begin as TLS that offers HTTP.
    AllButWeb {
        /// Streams are cut at this age, by a reset to the device.
        longest_ns: Option<u64>,
    },
}

impl Block {
    /// Whether it concerns packets of this kind. A middlebox looks into streams itself.
    pub(crate) fn concerns(self, protocol: Protocol) -> bool {
        match self {
            Self::Udp | Self::AllButWeb { .. } => protocol == Protocol::Udp,
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

/// A NAT had forgotten a device that was using it and went on as if nothing were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// The interface.
    pub interface: String,
    /// Since then nothing could come in.
    pub died_ns: u64,
    /// Then the device sent something, and had another mapping.
    pub again_ns: u64,
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
pub(crate) struct Line {
    /// The access link, its way up.
    pub(crate) link: PipeId,
    pub(crate) nat: Option<Nats>,
    pub(crate) block: Option<Block>,
    /// When its NAT forgot whom.
    pub(crate) forgotten: Vec<Forgotten>,
    pub(crate) portal: Portal,
    pub(crate) middlebox: Middlebox,
}

/// A NAT keeps datagrams and streams apart, and streams longer.
#[derive(Debug)]
pub(crate) struct Nats {
    pub(crate) udp: Nat,
    pub(crate) tcp: Nat,
}

impl Nats {
    pub(crate) fn new(spec: NatSpec, outside: Ipv4Addr) -> Self {
        let tcp =
            NatSpec { udp_ns: nanos(NAT_TCP_IDLE), udp_unanswered_ns: Some(nanos(NAT_TCP_UNANSWERED)), ..spec.clone() };
        Self { udp: Nat::new(spec, IpAddr::V4(outside)), tcp: Nat::new(tcp, IpAddr::V4(outside)) }
    }
}

/// The interfaces of a host that has some.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) interfaces: Interfaces,
    /// In the order of the interfaces.
    pub(crate) lines: Vec<Line>,
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

    /// A NAT has opened another mapping in place of one that had died. While another interface was in use nobody was to be
    /// reached by it.
    pub(crate) fn forgotten(&mut self, line: usize, died_ns: u64, again_ns: u64) {
        let used = self.interfaces.sending_index(again_ns) == Some(line);
        let since_ns = self.interfaces.chosen_since_ns().filter(|_| used);
        let forgotten = &mut self.lines[line].forgotten;
        if since_ns.is_some_and(|since_ns| since_ns <= died_ns) && forgotten.len() < FORGOTTEN_MAX {
            let interface = self.interfaces.all()[line].name.clone();
            forgotten.push(Forgotten { interface, died_ns, again_ns });
        }
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

    /// What the middlebox of a line, if there is one, does with a segment of the device (`inside`, the packet), or for it.
    pub(crate) fn middlebox(
        &mut self,
        line: usize,
        now_ns: u64,
        (inside, outside): (SocketAddrV4, SocketAddrV4),
        segment: &[u8],
        leaves: bool,
    ) -> Verdict {
        let line = &mut self.lines[line];
        let Some(Block::AllButWeb { longest_ns }) = line.block else { return Verdict::Passes };
        let head = Head::of(segment);
        if !leaves {
            return line.middlebox.enters(now_ns, (inside, outside), head, longest_ns);
        }
        let payload = &segment[segment.len().saturating_sub(head.payload)..];
        line.middlebox.leaves(now_ns, (inside, outside), (head, payload), longest_ns)
    }

    /// The access link of a line.
    pub(crate) fn pipe(&self, line: usize, way: Way) -> PipeId {
        self.lines[line].link.way(way)
    }
}
