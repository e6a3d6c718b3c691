use std::collections::BTreeSet;

use super::*;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const OUT: &str = "198.51.100.7";

fn nat(spec: NatSpec) -> Nat {
    Nat::new(spec, OUT.parse().unwrap())
}

fn symmetric(mapping: Dependence, filtering: Dependence) -> NatSpec {
    NatSpec { mapping, filtering, choice: PortChoice::Next, ..NatSpec::default() }
}

#[test]
fn flows_share_a_port_as_the_mapping_says() {
    let remotes = ["192.0.2.1:443", "192.0.2.1:444", "192.0.2.2:443"].map(at);
    let ports = |mapping| {
        let mut nat = nat(symmetric(mapping, Dependence::Independent));
        let ports = remotes.map(|remote| nat.outwards(0, at("10.0.0.5:5000"), remote).unwrap().port());
        assert_ne!(nat.outwards(0, at("10.0.0.6:5000"), remotes[0]).unwrap().port(), ports[0], "another device");
        ports
    };
    let [a, b, c] = ports(Dependence::Independent);
    assert!(a == b && b == c);
    let [a, b, c] = ports(Dependence::Address);
    assert!(a == b && b != c);
    let [a, b, c] = ports(Dependence::AddressAndPort);
    assert!(a != b && b != c && a != c);
}

#[test]
fn packets_are_let_in_as_the_filter_says() {
    let to = at("192.0.2.1:443");
    let from = ["192.0.2.1:443", "192.0.2.1:444", "192.0.2.2:443"].map(at);
    let verdicts = |filtering| {
        let mut nat = nat(symmetric(Dependence::Independent, filtering));
        let seen = nat.outwards(0, at("10.0.0.5:5000"), to).unwrap();
        from.map(|remote| nat.inwards(1, remote, seen))
    };
    let (inside, filtered) = (Ok(at("10.0.0.5:5000")), Err(NatDrop::Filtered));
    assert_eq!(verdicts(Dependence::Independent), [inside, inside, inside]);
    assert_eq!(verdicts(Dependence::Address), [inside, inside, filtered]);
    assert_eq!(verdicts(Dependence::AddressAndPort), [inside, filtered, filtered]);
}

#[test]
fn a_silent_mapping_dies_and_the_uplink_goes_on_while_the_downlink_is_dead() {
    let spec = NatSpec { choice: PortChoice::Next, ..NatSpec::default() };
    let (inside, server) = (at("10.0.0.5:5000"), at("192.0.2.1:443"));
    let mut nat = nat(spec);
    let first = nat.outwards(0, inside, server).unwrap();
    assert_eq!(nat.next_ns(0), Some(30 * S));
    assert_eq!(nat.inwards(29 * S, server, first), Ok(inside), "which renews it");
    assert_eq!(nat.inwards(58 * S, server, first), Ok(inside));
    assert_eq!(nat.inwards(88 * S, server, first), Err(NatDrop::NoMapping));
    assert_eq!((nat.mappings(88 * S), nat.next_ns(88 * S)), (0, None));
    let second = nat.outwards(88 * S, inside, server).unwrap();
    assert_ne!(first, second, "the server sees another address");
    assert_eq!(nat.inwards(89 * S, server, first), Err(NatDrop::NoMapping));
    assert_eq!(nat.inwards(89 * S, server, second), Ok(inside));
}

#[test]
fn only_what_goes_out_renews_where_so_set_and_unanswered_mappings_die_sooner() {
    let (inside, server) = (at("10.0.0.5:5000"), at("192.0.2.1:443"));
    let mut strict = nat(NatSpec { renewed_from_outside: false, ..NatSpec::default() });
    let seen = strict.outwards(0, inside, server).unwrap();
    assert_eq!(strict.inwards(29 * S, server, seen), Ok(inside));
    assert_eq!(strict.inwards(31 * S, server, seen), Err(NatDrop::NoMapping));

    let mut carrier = nat(NatSpec::carrier());
    let seen = carrier.outwards(0, inside, server).unwrap();
    assert_eq!(carrier.inwards(16 * S, server, seen), Err(NatDrop::NoMapping), "nothing came back in 15 s");
    let seen = carrier.outwards(20 * S, inside, server).unwrap();
    assert_eq!(carrier.inwards(21 * S, server, seen), Ok(inside));
    assert_eq!(carrier.inwards(320 * S, server, seen), Ok(inside));
}

#[test]
fn a_rebinding_changes_the_port_and_a_new_address_the_address() {
    let (inside, server) = (at("10.0.0.5:5000"), at("192.0.2.1:443"));
    for choice in [PortChoice::Preserve, PortChoice::Next] {
        let mut nat = nat(NatSpec { choice, ..NatSpec::default() });
        let before = nat.outwards(0, inside, server).unwrap();
        if choice == PortChoice::Preserve {
            assert_eq!(before.port(), 5000);
        }
        nat.rebind();
        assert_eq!(nat.inwards(1, server, before), Err(NatDrop::NoMapping));
        let after = nat.outwards(2, inside, server).unwrap();
        assert!(after.ip() == before.ip() && after.port() != before.port(), "{before} {after}");
        nat.readdress("203.0.113.9".parse().unwrap());
        assert_eq!(nat.inwards(3, server, after), Err(NatDrop::NoMapping));
        let moved = nat.outwards(4, inside, server).unwrap();
        assert_eq!((moved.ip(), nat.outside()), ("203.0.113.9".parse().unwrap(), moved.ip()));
        assert_eq!(nat.inwards(5, server, moved), Ok(inside));
    }
}

#[test]
fn exhausted_ports_lose_packets_until_a_mapping_dies() {
    let server = at("192.0.2.1:443");
    let device = |n: u16| at(&format!("10.0.0.{n}:5000"));
    let mut nat = nat(NatSpec { ports: 2000..=2003, choice: PortChoice::Next, ..NatSpec::default() });
    let ports: BTreeSet<u16> =
        (1..=4).map(|n| nat.outwards(u64::from(n) * S, device(n), server).unwrap().port()).collect();
    assert_eq!(ports, (2000..=2003).collect());
    assert_eq!(nat.outwards(5 * S, device(5), server), Err(NatDrop::PortsExhausted));
    assert!(nat.outwards(6 * S, device(2), server).is_ok(), "those that have one go on");
    assert_eq!(nat.outwards(30 * S, device(5), server), Err(NatDrop::PortsExhausted));
    assert_eq!(nat.outwards(31 * S, device(5), server).map(|seen| seen.port()), Ok(2000), "the first one's");

    let mut nat = self::nat(NatSpec { ports_per_host: Some(2), ..NatSpec::default() });
    let from = |port: u16| SocketAddr::new("10.0.0.1".parse().unwrap(), port);
    assert!(nat.outwards(0, from(1), server).is_ok() && nat.outwards(0, from(2), server).is_ok());
    assert_eq!(nat.outwards(0, from(3), server), Err(NatDrop::PortsExhausted));
    assert!(nat.outwards(0, device(2), server).is_ok(), "another customer's block");
    assert!(nat.outwards(31 * S, from(3), server).is_ok());
}

#[test]
fn no_two_mappings_ever_share_a_port_and_answers_find_their_owner() {
    // A thousand sockets and servers in disorder, against a plain list of who holds what.
    let spec = NatSpec { ports: 3000..=3099, ..symmetric(Dependence::AddressAndPort, Dependence::AddressAndPort) };
    let mut nat = nat(NatSpec { choice: PortChoice::Preserve, ..spec });
    let mut held: Vec<(SocketAddr, SocketAddr, SocketAddr, u64)> = Vec::new();
    let mut roll = crate::dice::Roll(1);
    for step in 0..20_000u64 {
        roll = roll.next();
        let now_ns = step * S / 10;
        held.retain(|(.., last_ns)| last_ns + 30 * S > now_ns);
        let inside = at(&format!("10.0.0.{}:{}", roll.0 % 8, 3000 + roll.0 / 8 % 6));
        let server = at(&format!("192.0.2.{}:443", roll.0 / 64 % 4));
        let known = held.iter_mut().find(|(i, s, ..)| (*i, *s) == (inside, server));
        match (nat.outwards(now_ns, inside, server), known) {
            (Ok(seen), Some(entry)) => {
                assert_eq!(seen, entry.2);
                entry.3 = now_ns;
            }
            (Ok(seen), None) => {
                assert!(held.iter().all(|(_, _, taken, _)| *taken != seen), "{seen} twice");
                held.push((inside, server, seen, now_ns));
            }
            (Err(NatDrop::PortsExhausted), None) => assert_eq!(held.len(), 100),
            (other, known) => panic!("{other:?} {known:?}"),
        }
        assert_eq!(nat.mappings(now_ns), held.len());
        let any = usize::try_from(roll.0 / 1024 % 128).unwrap() % held.len();
        let (inside, server, seen, last_ns) = &mut held[any];
        assert_eq!(nat.inwards(now_ns, *server, *seen), Ok(*inside));
        *last_ns = now_ns;
    }
}
