//! The bytes of a TCP segment as an IPv4 packet: read, made, and addressed anew.
//!
//! The TCP of hosts is smoltcp's, which reads and writes whole packets. The world looks into them (is it a SYN?), its
//! NATs write addresses over them, and it makes a few itself: resets where nobody listens, what a captive portal says.
//! Packets have IP headers without options. Checksums are neither filled in nor read, on any side.

use std::net::SocketAddrV4;

/// Length of the IP header.
pub(crate) const IP_BYTES: usize = 20;
/// Length of the TCP header without options.
pub(crate) const TCP_BYTES: usize = 20;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// What is read of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    /// Bytes of payload.
    pub(crate) payload: usize,
}

impl Head {
    /// Reads it. What is no segment reads as an empty one without flags, which nobody reacts to.
    pub(crate) fn of(packet: &[u8]) -> Self {
        let data = IP_BYTES + usize::from(packet.get(IP_BYTES + 12).copied().unwrap_or(0) >> 4) * 4;
        Self {
            flags: packet.get(IP_BYTES + 13).copied().unwrap_or(0),
            seq: read(packet, IP_BYTES + 4).map_or(0, u32::from_be_bytes),
            ack: read(packet, IP_BYTES + 8).map_or(0, u32::from_be_bytes),
            window: read(packet, IP_BYTES + 14).map_or(0, u16::from_be_bytes),
            payload: packet.len().saturating_sub(data),
        }
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// How far it moves the sequence number.
    pub(crate) fn length(self) -> u32 {
        let flags = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        u32::try_from(self.payload).unwrap_or(u32::MAX).wrapping_add(flags)
    }

    /// The packet of a segment without payload.
    pub(crate) fn packet(self) -> Vec<u8> {
        // A SYN tells the longest segment.
        let options: &[u8] = if self.has(SYN) { &[2, 4, 5, 180] } else { &[] };
        let length = IP_BYTES + TCP_BYTES + options.len();
        let mut packet = vec![0; length];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
        packet[8] = 64;
        packet[9] = 6;
        let tcp = &mut packet[IP_BYTES..];
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12] = u8::try_from((TCP_BYTES + options.len()) / 4).unwrap_or(5) << 4;
        tcp[13] = self.flags;
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        tcp[TCP_BYTES..].copy_from_slice(options);
        packet
    }

    /// The reset that answers this segment where there is no connection (RFC 9293, 3.10.7.1). Resets get none.
    pub(crate) fn reset(self) -> Option<Self> {
        if self.has(RST) {
            return None;
        }
        let none = Self { flags: RST, seq: 0, ack: 0, window: 0, payload: 0 };
        Some(if self.has(ACK) {
            Self { seq: self.ack, ..none }
        } else {
            Self { flags: RST | ACK, ack: self.seq.wrapping_add(self.length()), ..none }
        })
    }
}

/// Whether sequence number `a` comes after `b`, around the corner.
pub(crate) fn after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

/// Writes other addresses over those of a packet.
pub(crate) fn readdress(packet: &mut [u8], from: SocketAddrV4, to: SocketAddrV4) {
    if packet.len() < IP_BYTES + TCP_BYTES {
        return;
    }
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[IP_BYTES..IP_BYTES + 2].copy_from_slice(&from.port().to_be_bytes());
    packet[IP_BYTES + 2..IP_BYTES + 4].copy_from_slice(&to.port().to_be_bytes());
}

fn read<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_reads_as_it_was_meant() {
        let head = Head { flags: SYN | ACK, seq: 7, ack: u32::MAX, window: 9, payload: 0 };
        let mut packet = head.packet();
        readdress(&mut packet, "1.2.3.4:5".parse().unwrap(), "6.7.8.9:10".parse().unwrap());
        assert_eq!((Head::of(&packet), packet.len()), (head, 44));
        assert_eq!((&packet[12..20], &packet[20..24]), (&[1, 2, 3, 4, 6, 7, 8, 9][..], &[0, 5, 0, 10][..]));
        packet.extend([1, 2, 3]);
        assert_eq!(Head::of(&packet).length(), 4);
        assert_eq!(Head::of(&[]), Head { flags: 0, seq: 0, ack: 0, window: 0, payload: 0 });
    }

    #[test]
    fn a_reset_takes_the_place_that_its_receiver_expects() {
        let syn = Head { flags: SYN, seq: 41, ack: 0, window: 9, payload: 0 };
        let reset = syn.reset().unwrap();
        assert_eq!((reset.flags, reset.seq, reset.ack), (RST | ACK, 0, 42));
        let data = Head { flags: ACK, seq: 41, ack: 99, window: 9, payload: 10 };
        assert_eq!((data.reset().unwrap().flags, data.reset().unwrap().seq), (RST, 99));
        assert_eq!(reset.reset(), None);
        assert!(after(1, u32::MAX) && !after(u32::MAX, 1) && !after(5, 5));
    }
}
