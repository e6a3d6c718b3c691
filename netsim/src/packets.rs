//! What was sent: the packets of a run, and their shape.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::limits::PACKETS_KEPT;
use tern_netsim_link::{Cause, NatDrop};

/// What a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// A datagram.
    Udp,
    /// A stream's data, or its end.
    Tcp,
    /// What opens, resets or paces a stream; without payload.
    TcpControl,
}

/// A packet as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Nanoseconds since the world began.
    pub at_ns: u64,
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// Of what.
    pub protocol: Protocol,
    /// Payload.
    pub bytes: usize,
    /// Whether it was lost at once: no interface, a cut, a filter. What becomes of it later, on links with a spec or
    /// at its receiver, is counted there.
    pub lost: bool,
}

/// Why a packet ended elsewhere than at a socket or in a link with a spec (whose [`tern_netsim_link::Cause`]s are
/// counted there).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// Longer than any path takes.
    TooLong,
    /// No host has this address. Its sender's kernel does not send it.
    NoRoute,
    /// The sender had no interface in use, or its socket was bound to another one's address.
    NoInterface,
    /// The way between these places was cut, or lost everything of this direction.
    Cut,
    /// A filter took it.
    Filtered,
    /// An access network blocked it.
    Blocked,
    /// A NAT did not let it through.
    Nat(NatDrop),
    /// Its address belonged to nobody any longer when it came.
    NoHost,
    /// The interface it came on was not in use.
    NotReceiving,
    /// The host was without power.
    HostDown,
    /// No socket was there.
    NoSocket,
    /// The socket had no room.
    SocketFull,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { at_ns, from, to, protocol, bytes, lost } = self;
        let (s, us) = (at_ns / 1_000_000_000, at_ns / 1000 % 1_000_000);
        let lost = if *lost { " lost" } else { "" };
        write!(f, "{s}.{us:06} {from} -> {to} {protocol:?} {bytes}{lost}")
    }
}

/// What became of all packets of a run so far. Nothing comes from nowhere, and nothing vanishes without a cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// By hosts.
    pub sent: u64,
    /// By captive portals and middleboxes.
    pub made: u64,
    /// Second copies, by links.
    pub copied: u64,
    /// At sockets, or by a TCP that acknowledges for one.
    pub received: u64,
    /// Elsewhere than at a socket or in a link with a spec.
    pub lost: BTreeMap<Lost, u64>,
    /// In links with a spec.
    pub dropped: BTreeMap<Cause, u64>,
    /// On their way.
    pub in_flight: u64,
}

impl Ledger {
    /// Whether everything that came into the world is accounted for.
    pub fn is_balanced(&self) -> bool {
        let (lost, dropped): (u64, u64) = (self.lost.values().sum(), self.dropped.values().sum());
        self.sent + self.made + self.copied == self.received + lost + dropped + self.in_flight
    }
}

/// The shape of a run so far: two runs with equal shapes sent the same packets at the same moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Hash over all packets (FNV-1a, 64 bits: stable over versions and machines).
    pub hash: u64,
    /// How many.
    pub packets: u64,
    /// Their payload.
    pub bytes: u64,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { hash, packets, bytes } = self;
        write!(f, "{hash:016x} ({packets} packets, {bytes} bytes)")
    }
}

/// All packets of a run.
#[derive(Debug)]
pub struct PacketLog {
    shape: Shape,
    kept: Vec<Packet>,
}

impl Default for PacketLog {
    fn default() -> Self {
        Self { shape: Shape { hash: 0xcbf2_9ce4_8422_2325, packets: 0, bytes: 0 }, kept: Vec::new() }
    }
}

impl PacketLog {
    /// Adds a packet.
    pub fn push(&mut self, packet: Packet) {
        self.shape.packets += 1;
        self.shape.bytes += packet.bytes as u64;
        self.mix(&packet.at_ns.to_le_bytes());
        self.mix_address(packet.from);
        self.mix_address(packet.to);
        self.mix(&[packet.protocol as u8, u8::from(packet.lost)]);
        self.mix(&(packet.bytes as u64).to_le_bytes());
        if self.kept.len() < PACKETS_KEPT {
            self.kept.push(packet);
        }
    }

    /// The shape so far.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The first [`PACKETS_KEPT`] packets.
    pub fn kept(&self) -> &[Packet] {
        &self.kept
    }

    fn mix_address(&mut self, address: SocketAddr) {
        match address.ip() {
            IpAddr::V4(ip) => self.mix(&ip.octets()),
            IpAddr::V6(ip) => self.mix(&ip.octets()),
        }
        self.mix(&address.port().to_le_bytes());
    }

    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.shape.hash = (self.shape.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_packet_is_part_of_the_shape() {
        let base = Packet {
            at_ns: 5,
            from: "10.0.0.1:1".parse().unwrap(),
            to: "10.0.0.2:2".parse().unwrap(),
            protocol: Protocol::Udp,
            bytes: 10,
            lost: false,
        };
        let others = [
            Packet { at_ns: 6, ..base },
            Packet { from: base.to, ..base },
            Packet { to: base.from, ..base },
            Packet { protocol: Protocol::Tcp, ..base },
            Packet { bytes: 11, ..base },
            Packet { lost: true, ..base },
        ];
        let hash = |packet: Packet| {
            let mut log = PacketLog::default();
            log.push(packet);
            log.shape().hash
        };
        assert_eq!(hash(base), hash(base));
        assert!(others.iter().all(|other| hash(*other) != hash(base)));
    }
}
