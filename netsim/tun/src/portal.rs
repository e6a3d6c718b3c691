//! A captive portal: it takes whatever stream is opened, and never answers.
//!
//! It needs no memory: what it says to a segment follows from that segment. A SYN is accepted, in the name of whoever
//! it was for; data and a FIN are acknowledged; nothing else gets an answer. So a client sees a connection that opens
//! at once and a peer that reads everything and is silent, which is what a portal looks like to a client that does not
//! speak to it in its own words.

use crate::packet::{Kind, Packet, TCP, packet_of, set_transport_sum};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Where the portal's own sequence numbers begin; it never sends data, so one will do.
const FIRST: u32 = 0x7465_726e;
/// It has read everything, always.
const WINDOW: u16 = u16::MAX;

/// What the portal says to a segment, if anything.
pub fn answer(bytes: &[u8]) -> Option<Vec<u8>> {
    let packet = Packet::parse(bytes)?;
    let Kind::Ports { protocol: TCP, source, destination } = packet.kind() else { return None };
    let segment = packet.payload();
    let (flags, offset) = (*segment.get(13)?, usize::from(segment.get(12)? >> 4) * 4);
    let sequence = u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?);
    let data = u32::try_from(segment.len().checked_sub(offset)?).ok()?;
    if flags & RST != 0 {
        return None;
    }
    let (number, answer, taken) = if flags & SYN != 0 {
        (FIRST, SYN | ACK, 1)
    } else {
        let taken = data.wrapping_add(u32::from(flags & FIN != 0));
        if taken == 0 {
            return None;
        }
        (FIRST.wrapping_add(1), ACK, taken)
    };
    let mut payload = [destination.to_be_bytes(), source.to_be_bytes()].concat();
    payload.extend_from_slice(&number.to_be_bytes());
    payload.extend_from_slice(&sequence.wrapping_add(taken).to_be_bytes());
    payload.extend_from_slice(&[0x50, answer]);
    payload.extend_from_slice(&WINDOW.to_be_bytes());
    payload.extend_from_slice(&[0, 0, 0, 0]);
    let mut reply = packet_of(TCP, packet.destination(), packet.source(), &payload);
    set_transport_sum(&mut reply);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn segment(flags: u8, sequence: u32, data: &[u8]) -> Vec<u8> {
        let mut payload = [4000u16.to_be_bytes(), 443u16.to_be_bytes()].concat();
        payload.extend_from_slice(&sequence.to_be_bytes());
        payload.extend_from_slice(&[0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        payload.extend_from_slice(data);
        packet_of(TCP, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), &payload)
    }

    /// Flags, sequence number, acknowledged number of an answer.
    fn said(bytes: &[u8]) -> Option<(u8, u32, u32)> {
        let reply = answer(bytes)?;
        let packet = Packet::parse(&reply).unwrap();
        assert_eq!(packet.kind(), Kind::Ports { protocol: TCP, source: 443, destination: 4000 });
        let payload = packet.payload();
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        Some((payload[13], word(4), word(8)))
    }

    #[test]
    fn it_opens_takes_everything_and_says_nothing() {
        assert_eq!(said(&segment(SYN, u32::MAX, b"")), Some((SYN | ACK, FIRST, 0)));
        assert_eq!(said(&segment(ACK, 0, b"")), None);
        assert_eq!(said(&segment(ACK, 0, b"hello")), Some((ACK, FIRST + 1, 5)));
        assert_eq!(said(&segment(ACK | FIN, 5, b"")), Some((ACK, FIRST + 1, 6)));
        assert_eq!(said(&segment(RST, 5, b"")), None);
        assert_eq!(said(&segment(ACK, 5, b"")[..30]), None);
    }
}
