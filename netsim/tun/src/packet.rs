//! IPv4 packets: reading and rewriting them.
//!
//! Checksums are patched, not computed anew (RFC 1624): a packet whose bits flipped on one link must not leave the next
//! NAT healed. Only what is made here, and what shall be seen flipped, gets a new sum.

use std::net::{Ipv4Addr, SocketAddrV4};

/// `ICMP`.
pub const ICMP: u8 = 1;
/// `TCP`.
pub const TCP: u8 = 6;
/// `UDP`.
pub const UDP: u8 = 17;
/// Header of IPv4 without options.
pub const IP_HEADER: usize = 20;
const SOURCE_AT: usize = 12;
const DESTINATION_AT: usize = 16;

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who sent it.
    Source,
    /// For whom it is.
    Destination,
}

/// What a packet says of itself to a translator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A datagram or a segment.
    Ports {
        /// [`UDP`] or [`TCP`].
        protocol: u8,
        /// Port of the source.
        source: u16,
        /// Port of the destination.
        destination: u16,
    },
    /// An echo request or reply.
    Echo {
        /// Its identifier.
        id: u16,
    },
    /// An ICMP error; it quotes the packet that it is about.
    Error,
    /// A fragment that is not the first, or another protocol: it has no ports.
    Other,
}

/// A packet whose header is sound.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'p> {
    bytes: &'p [u8],
    header: usize,
}

impl<'p> Packet<'p> {
    /// `None`: it is not IPv4, or cut short.
    pub fn parse(bytes: &'p [u8]) -> Option<Self> {
        let packet = Self::parse_quoted(bytes)?;
        (usize::from(be16(bytes, 2)?) == bytes.len()).then_some(packet)
    }

    /// As [`Packet::parse`], but it may be cut after its header: as an ICMP error quotes it.
    fn parse_quoted(bytes: &'p [u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let header = usize::from(first & 0x0f) * 4;
        (first >> 4 == 4 && header >= IP_HEADER && bytes.len() >= header).then_some(Self { bytes, header })
    }

    /// Who sent it.
    pub fn source(&self) -> Ipv4Addr {
        address(self.bytes, SOURCE_AT)
    }

    /// For whom it is.
    pub fn destination(&self) -> Ipv4Addr {
        address(self.bytes, DESTINATION_AT)
    }

    /// [`UDP`], [`TCP`], [`ICMP`], or something else.
    pub fn protocol(&self) -> u8 {
        self.bytes[9]
    }

    /// What follows the header.
    pub fn payload(&self) -> &'p [u8] {
        &self.bytes[self.header..]
    }

    /// Length of the header.
    pub fn header(&self) -> usize {
        self.header
    }

    /// What it is to a translator.
    pub fn kind(&self) -> Kind {
        let first_fragment = be16(self.bytes, 6).is_some_and(|word| word & 0x1fff == 0);
        let payload = self.payload();
        let kind =
            match self.protocol() {
                _ if !first_fragment => None,
                protocol @ (UDP | TCP) => be16(payload, 0)
                    .zip(be16(payload, 2))
                    .map(|(source, destination)| Kind::Ports { protocol, source, destination }),
                ICMP => match payload.first() {
                    Some(0 | 8) => be16(payload, 4).map(|id| Kind::Echo { id }),
                    Some(3 | 4 | 5 | 11 | 12) if payload.len() >= 8 + IP_HEADER => Some(Kind::Error),
                    _ => None,
                },
                _ => None,
            };
        kind.unwrap_or(Kind::Other)
    }

    /// The packet that an ICMP error is about: its ends as far as they have ports.
    pub fn quoted(&self) -> Option<(Ipv4Addr, Ipv4Addr, Kind)> {
        let inner = Packet::parse_quoted(self.payload().get(8..)?)?;
        Some((inner.source(), inner.destination(), inner.kind()))
    }
}

/// Gives one end of a packet another address, and another port or echo identifier.
pub fn rewrite(bytes: &mut [u8], side: Side, to: SocketAddrV4) {
    let Some(packet) = Packet::parse_quoted(bytes) else { return };
    let (header, kind) = (packet.header, packet.kind());
    let at = if side == Side::Source { SOURCE_AT } else { DESTINATION_AT };
    let old = address(bytes, at).octets();
    bytes[at..at + 4].copy_from_slice(&to.ip().octets());
    patch(bytes, 10, &old, &to.ip().octets());
    let new_port = to.port().to_be_bytes();
    let (port_at, sum_at, pseudo) = match kind {
        Kind::Ports { protocol, .. } => {
            let port_at = header + if side == Side::Source { 0 } else { 2 };
            (port_at, header + if protocol == UDP { 6 } else { 16 }, true)
        }
        Kind::Echo { .. } => (header + 4, header + 2, false),
        Kind::Error | Kind::Other => return,
    };
    let Some(old_port) = be16(bytes, port_at) else { return };
    bytes[port_at..port_at + 2].copy_from_slice(&new_port);
    // A quoted packet may end before its checksum. A datagram without one has zero there, and keeps it.
    match be16(bytes, sum_at) {
        None => return,
        Some(0) if matches!(kind, Kind::Ports { protocol: UDP, .. }) => return,
        Some(_) => {}
    }
    patch(bytes, sum_at, &old_port.to_be_bytes(), &new_port);
    if pseudo {
        patch(bytes, sum_at, &old, &to.ip().octets());
    }
    if matches!(kind, Kind::Ports { protocol: UDP, .. }) && be16(bytes, sum_at) == Some(0) {
        bytes[sum_at..sum_at + 2].copy_from_slice(&[0xff, 0xff]);
    }
}

/// Gives one end of an ICMP error another address, and the same to the other end of the packet that it quotes: the
/// quoted one went the other way.
pub fn rewrite_error(bytes: &mut [u8], side: Side, to: SocketAddrV4) {
    let Some(header) = Packet::parse(bytes).map(|packet| packet.header) else { return };
    rewrite(bytes, side, to);
    let other = if side == Side::Source { Side::Destination } else { Side::Source };
    if let Some(inner) = bytes.get_mut(header + 8..) {
        rewrite(inner, other, to);
    }
    set_sum(&mut bytes[header..], 2, 0);
}

/// An ICMP error "fragmentation needed" (RFC 1191) about a packet, from a router.
pub fn fragmentation_needed(about: &[u8], router: Ipv4Addr, mtu: u32) -> Option<Vec<u8>> {
    let packet = Packet::parse(about)?;
    // No error about an error (RFC 1122).
    if packet.kind() == Kind::Error {
        return None;
    }
    let quote = &about[..about.len().min(packet.header + 8)];
    let mut payload = vec![3, 4, 0, 0, 0, 0];
    payload.extend_from_slice(&u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes());
    payload.extend_from_slice(quote);
    set_sum(&mut payload, 2, 0);
    Some(packet_of(ICMP, router, packet.source(), &payload))
}

/// A packet with this payload, whose own checksum must be right.
pub fn packet_of(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(IP_HEADER + payload.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&source.octets());
    bytes.extend_from_slice(&destination.octets());
    set_sum(&mut bytes, 10, 0);
    bytes.extend_from_slice(payload);
    bytes
}

/// Computes the checksum of a TCP segment or a datagram anew.
pub fn set_transport_sum(bytes: &mut [u8]) {
    let Some(packet) = Packet::parse(bytes) else { return };
    let (header, protocol) = (packet.header, packet.protocol());
    let at = match packet.kind() {
        Kind::Ports { protocol: UDP, .. } => 6,
        Kind::Ports { .. } => 16,
        _ => return,
    };
    let ends = [packet.source().octets(), packet.destination().octets()].concat();
    let length = u32::try_from(bytes.len() - header).unwrap_or(u32::MAX);
    let pseudo = sum(&ends, 0).wrapping_add(u32::from(protocol)).wrapping_add(length);
    set_sum(&mut bytes[header..], at, pseudo);
    if protocol == UDP && be16(bytes, header + at) == Some(0) {
        bytes[header + at..header + at + 2].copy_from_slice(&[0xff, 0xff]);
    }
}

/// Where the payload of the transport begins: what an application gets to see.
pub fn application_payload(bytes: &[u8]) -> Option<usize> {
    let packet = Packet::parse(bytes)?;
    let begin = match packet.kind() {
        Kind::Ports { protocol: UDP, .. } | Kind::Echo { .. } => packet.header + 8,
        Kind::Ports { .. } => packet.header + usize::from(packet.payload().get(12)? >> 4) * 4,
        Kind::Error | Kind::Other => return None,
    };
    (begin < bytes.len()).then_some(begin)
}

/// Big-endian number of two bytes at a place.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).map(u16::from_be_bytes)
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// Ones' complement sum of 16-bit words, not folded; an odd last byte counts as the upper half of a word.
fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, word| {
        sum.wrapping_add(u32::from(word[0]) << 8).wrapping_add(word.get(1).map_or(0, |low| u32::from(*low)))
    })
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Computes a checksum over all bytes, with it taken as zero, and puts it in its place. Nothing happens where
/// there is no such place.
pub(crate) fn set_sum(bytes: &mut [u8], at: usize, start: u32) {
    let Some(place) = bytes.get_mut(at..at + 2) else { return };
    place.copy_from_slice(&[0, 0]);
    let sum = !fold(sum(bytes, start));
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// RFC 1624, equation 3: what a checksum becomes when these bytes change.
fn patch(bytes: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    let Some(before) = be16(bytes, at) else { return };
    let without = old
        .chunks_exact(2)
        .fold(u32::from(!before), |sum, word| sum + u32::from(!u16::from_be_bytes([word[0], word[1]])));
    let with = new.chunks_exact(2).fold(without, |sum, word| sum + u32::from(u16::from_be_bytes([word[0], word[1]])));
    bytes[at..at + 2].copy_from_slice(&(!fold(with)).to_be_bytes());
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
