use foca::Codec as _;
use proptest::prelude::*;

use super::*;

fn edge(name: &str, start: u64, addr: &str) -> NodeId {
    NodeId { region: 3, role: Role::Edge, name: name.into(), start, turn: 2, addr: addr.parse().unwrap() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn the_format_on_the_wire_stays() {
    let a = edge("ap-e1", 0x0102_0304_0506_0708, "192.0.2.1:7433");
    let b = NodeId { role: Role::Ipconf, region: 9, ..edge("d", 1, "[2001:db8::1]:7433") };
    let node_a = "02030102030405060708000000020" /* role region start turn */
        .to_owned()
        + "4c00002011d090561702d6531";
    let node_b = "030900000000000000010000000206".to_owned() + "20010db80000000000000000000000011d090164";
    let mut out = Vec::new();
    put_node(&a, &mut out);
    assert_eq!(hex(&out), node_a);
    assert_eq!(hex(&Said::Join { from: a.clone(), cookie: None }.encode()), format!("01{node_a}00"));
    let cookie = [1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(
        hex(&Said::Join { from: a.clone(), cookie: Some(cookie) }.encode()),
        format!("01{node_a}010102030405060708")
    );
    assert_eq!(hex(&Said::Cookie { to: b.clone(), cookie }.encode()), format!("02{node_b}0102030405060708"));
    let replaced = Said::Replaced { to: a.clone(), by: b.clone(), alive: true };
    assert_eq!(hex(&replaced.encode()), format!("03{node_a}{node_b}01"));
    assert_eq!(hex(&Said::Suspected { to: a.clone(), incarnation: 0x0102 }.encode()), format!("04{node_a}0102"));
    let header = Header {
        src: a.clone(),
        src_incarnation: 0x0a0b,
        dst: b.clone(),
        message: Message::PingReq { target: a.clone(), probe_number: 7 },
    };
    let mut out = Vec::new();
    Codec { region: 3 }.encode_header(&header, &mut out).unwrap();
    assert_eq!(hex(&out), format!("{node_a}0a0b{node_b}03{node_a}07"));
    let mut out = Vec::new();
    Codec { region: 3 }.encode_member(&Member::new(b, 5, State::Suspect), &mut out).unwrap();
    assert_eq!(hex(&out), format!("{node_b}000502"));
}

fn node() -> impl Strategy<Value = NodeId> {
    let address = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    (1..=255u8, 1..=3u8, "[a-z0-9-]{1,64}", any::<u64>(), any::<u32>(), address, 1..=u16::MAX).prop_filter_map(
        "addresses that can be sent to",
        |(region, role, name, start, turn, ip, port)| {
            let role = [Role::Region, Role::Edge, Role::Ipconf][usize::from(role - 1)];
            let region = if role == Role::Ipconf { region } else { 3 };
            let sendable = !ip.is_unspecified() && !ip.is_multicast();
            sendable.then(|| NodeId { region, role, name: name.into(), start, turn, addr: SocketAddr::new(ip, port) })
        },
    )
}

fn message() -> impl Strategy<Value = Message<NodeId>> {
    prop_oneof![
        any::<u8>().prop_map(Message::Ping),
        any::<u8>().prop_map(Message::Ack),
        (node(), any::<u8>()).prop_map(|(target, probe_number)| Message::PingReq { target, probe_number }),
        (node(), any::<u8>()).prop_map(|(origin, probe_number)| Message::IndirectPing { origin, probe_number }),
        (node(), any::<u8>()).prop_map(|(target, probe_number)| Message::IndirectAck { target, probe_number }),
        (node(), any::<u8>()).prop_map(|(origin, probe_number)| Message::ForwardedAck { origin, probe_number }),
        Just(Message::Announce),
        Just(Message::Feed),
        Just(Message::Gossip),
        Just(Message::Broadcast),
        Just(Message::TurnUndead),
    ]
}

proptest! {
    #[test]
    fn headers_and_members_come_back_as_they_were(
        src in node(), dst in node(), src_incarnation in any::<u16>(), message in message(),
        state in prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)],
    ) {
        let mut codec = Codec { region: 3 };
        let header = Header { src: src.clone(), src_incarnation, dst, message };
        let member = Member::new(src, src_incarnation, state);
        let mut out = Vec::new();
        codec.encode_header(&header, &mut out).unwrap();
        let piggybacks = !matches!(header.message, Message::Broadcast | Message::Announce);
        if piggybacks {
            out.extend_from_slice(&[0, 1]);
            codec.encode_member(&member, &mut out).unwrap();
        }
        let (peeked, members) = peek(3, &out).unwrap();
        prop_assert_eq!(&peeked, &header);
        prop_assert_eq!(members, if piggybacks { vec![member.clone()] } else { vec![] });
        let mut rest = &out[..];
        prop_assert_eq!(codec.decode_header(&mut rest).unwrap(), header);
        if piggybacks {
            rest = &rest[2..];
            prop_assert_eq!(codec.decode_member(&mut rest).unwrap(), member);
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn what_is_said_comes_back_as_it_was(
        a in node(), b in node(), cookie in any::<[u8; 8]>(), alive in any::<bool>(), packet in any::<Vec<u8>>(),
    ) {
        for said in [
            Said::Packet(&packet),
            Said::Join { from: a.clone(), cookie: None },
            Said::Join { from: a.clone(), cookie: Some(cookie) },
            Said::Cookie { to: a.clone(), cookie },
            Said::Replaced { to: a.clone(), by: b.clone(), alive },
            Said::Suspected { to: b.clone(), incarnation: 5 },
        ] {
            let bytes = said.encode();
            prop_assert_eq!(Said::decode(3, &bytes), Ok(said.clone()));
        }
    }

    #[test]
    fn no_bytes_make_the_readers_panic_and_nothing_may_follow(bytes in any::<Vec<u8>>(), a in node()) {
        let _any_answer = (Said::decode(3, &bytes), peek(3, &bytes));
        let mut more = Said::Join { from: a, cookie: None }.encode();
        more.push(0);
        prop_assert_eq!(Said::decode(3, &more), Err(WireError::Long));
        for end in 0..more.len() - 1 {
            prop_assert!(Said::decode(3, &more[..end]).is_err());
        }
    }
}

#[test]
fn an_item_that_does_not_fit_leaves_the_buffer_as_it_was() {
    let mut room = [0; 20];
    let mut buf = &mut room[..];
    let member = Member::alive(edge("ap-e1", 1, "192.0.2.1:1"));
    assert_eq!(Codec { region: 3 }.encode_member(&member, &mut buf), Err(WireError::NoRoom));
    assert_eq!(buf.len(), 20);
}

#[test]
fn nodes_of_other_regions_and_addresses_of_nobody_are_refused() {
    let refused = |node: NodeId| {
        let bytes = Said::Join { from: node, cookie: None }.encode();
        Said::decode(3, &bytes).err()
    };
    let good = edge("ap-e1", 1, "192.0.2.1:1");
    assert_eq!(refused(good.clone()), None);
    assert_eq!(refused(NodeId { region: 4, ..good.clone() }), Some(WireError::Value("region")));
    assert_eq!(refused(NodeId { region: 4, role: Role::Ipconf, ..good.clone() }), None);
    assert_eq!(refused(NodeId { region: 0, role: Role::Ipconf, ..good.clone() }), Some(WireError::Value("region")));
    for addr in ["0.0.0.0:1", "192.0.2.1:0", "224.0.0.1:1", "[::]:1"] {
        let bad = NodeId { addr: addr.parse().unwrap(), ..good.clone() };
        assert_eq!(refused(bad), Some(WireError::Value("address")), "{addr}");
    }
    for name in ["", "a\nb", &"x".repeat(65)] {
        assert_eq!(refused(NodeId { name: name.into(), ..good.clone() }), Some(WireError::Value("name")), "{name:?}");
    }
}
