use proptest::prelude::*;

use super::*;

/// Whether all checksums of a packet are right.
fn sound(bytes: &[u8]) -> bool {
    let packet = Packet::parse(bytes).unwrap();
    let header_ok = fold(sum(&bytes[..packet.header()], 0)) == 0xffff;
    let ends = [packet.source().octets(), packet.destination().octets()].concat();
    let length = u32::try_from(packet.payload().len()).unwrap();
    let pseudo = match packet.protocol() {
        ICMP => 0,
        protocol => sum(&ends, 0) + u32::from(protocol) + length,
    };
    header_ok && fold(sum(packet.payload(), pseudo)) == 0xffff
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, 3, last)
}

fn datagram(body: &[u8]) -> Vec<u8> {
    let mut payload = [4000u16.to_be_bytes(), 53u16.to_be_bytes()].concat();
    payload.extend_from_slice(&u16::try_from(8 + body.len()).unwrap().to_be_bytes());
    payload.extend_from_slice(&[0, 0]);
    payload.extend_from_slice(body);
    let mut bytes = packet_of(UDP, ip(1), ip(2), &payload);
    set_transport_sum(&mut bytes);
    bytes
}

fn segment(body: &[u8]) -> Vec<u8> {
    let mut payload = [4000u16.to_be_bytes(), 80u16.to_be_bytes()].concat();
    payload.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 7, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    payload.extend_from_slice(body);
    let mut bytes = packet_of(TCP, ip(1), ip(2), &payload);
    set_transport_sum(&mut bytes);
    bytes
}

fn echo(body: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    payload.extend_from_slice(body);
    set_sum(&mut payload, 2, 0);
    packet_of(ICMP, ip(1), ip(2), &payload)
}

proptest! {
    #[test]
    fn a_rewritten_packet_is_sound_and_says_what_it_was_told(
        body in proptest::collection::vec(any::<u8>(), 0..60), address in any::<u32>(), port in 1..=u16::MAX,
        source in any::<bool>(),
    ) {
        let side = if source { Side::Source } else { Side::Destination };
        let to = SocketAddrV4::new(address.into(), port);
        for mut bytes in [datagram(&body), segment(&body), echo(&body)] {
            prop_assert!(sound(&bytes));
            rewrite(&mut bytes, side, to);
            prop_assert!(sound(&bytes));
            let packet = Packet::parse(&bytes).unwrap();
            prop_assert_eq!(if source { packet.source() } else { packet.destination() }, *to.ip());
            let said = match (packet.kind(), source) {
                (Kind::Ports { source, .. }, true) => source,
                (Kind::Ports { destination, .. }, false) => destination,
                (Kind::Echo { id }, _) => id,
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(said, port);
        }
    }

    #[test]
    fn a_packet_with_flipped_bits_is_not_healed(body in proptest::collection::vec(any::<u8>(), 1..60), bit in 0..8u8) {
        let mut bytes = datagram(&body);
        let last = bytes.len() - 1;
        bytes[last] ^= 1 << bit;
        rewrite(&mut bytes, Side::Source, SocketAddrV4::new(ip(9), 9));
        prop_assert!(!sound(&bytes));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        for first in [None, Some(0x45), Some(0x46)] {
            if let (Some(first), true) = (first, bytes.len() >= 4) {
                let length = u16::try_from(bytes.len()).unwrap();
                bytes[0] = first;
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
            }
            for protocol in [ICMP, TCP, UDP] {
                if let Some(byte) = bytes.get_mut(9) {
                    *byte = protocol;
                }
                let to = SocketAddrV4::new(ip(9), 9);
                if let Some(packet) = Packet::parse(&bytes) {
                    let _ = (packet.kind(), packet.quoted(), application_payload(&bytes));
                }
                rewrite(&mut bytes, Side::Source, to);
                rewrite_error(&mut bytes, Side::Destination, to);
                set_transport_sum(&mut bytes);
                let _ = fragmentation_needed(&bytes, ip(3), 1280);
            }
        }
    }
}

#[test]
fn an_error_about_a_packet_names_its_mtu_and_is_translated_with_what_it_quotes() {
    let outside = SocketAddrV4::new(ip(77), 7777);
    let mut sent = segment(b"x");
    rewrite(&mut sent, Side::Source, outside);
    let mut error = fragmentation_needed(&sent, ip(50), 1280).unwrap();
    assert!(sound(&error));
    let packet = Packet::parse(&error).unwrap();
    assert_eq!((packet.source(), packet.destination(), packet.kind()), (ip(50), ip(77), Kind::Error));
    assert_eq!(be16(packet.payload(), 6), Some(1280));
    let ports = |source| Kind::Ports { protocol: TCP, source, destination: 80 };
    assert_eq!(packet.quoted(), Some((ip(77), ip(2), ports(7777))));
    rewrite_error(&mut error, Side::Destination, SocketAddrV4::new(ip(1), 4000));
    assert!(sound(&error));
    let packet = Packet::parse(&error).unwrap();
    assert_eq!((packet.destination(), packet.quoted()), (ip(1), Some((ip(1), ip(2), ports(4000)))));
    assert!(fragmentation_needed(&error, ip(50), 1280).is_none(), "no error about an error");
}

#[test]
fn a_datagram_without_a_checksum_stays_without_and_a_fragment_has_no_ports() {
    let mut bytes = datagram(b"body");
    bytes[IP_HEADER + 6..IP_HEADER + 8].copy_from_slice(&[0, 0]);
    rewrite(&mut bytes, Side::Source, SocketAddrV4::new(ip(9), 9));
    assert_eq!(be16(&bytes, IP_HEADER + 6), Some(0));
    bytes[7] = 3;
    assert_eq!(Packet::parse(&bytes).unwrap().kind(), Kind::Other);
}

#[test]
fn only_ipv4_of_the_length_that_it_says_is_a_packet() {
    let bytes = datagram(b"body");
    assert!(Packet::parse(&bytes).is_some());
    assert!(Packet::parse(&bytes[..bytes.len() - 1]).is_none());
    let mut six = bytes.clone();
    six[0] = 0x60;
    assert!(Packet::parse(&six).is_none());
    assert!(Packet::parse(&[]).is_none());
    assert_eq!(application_payload(&bytes), Some(28));
    assert_eq!(application_payload(&segment(b"x")), Some(40));
    assert_eq!(application_payload(&datagram(b"")), None);
}
