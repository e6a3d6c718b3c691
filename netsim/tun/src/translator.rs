//! A NAT between real packets: the pure machine decides, and packets are rewritten as it says.
//!
//! The machine knows addresses and ports and one pair of time-outs. Here it stands three times behind one outside
//! address: for datagrams as the scenario says, for TCP with the times that RFC 5382 asks for (a scenario's time-out
//! means datagrams, as all that is written about "the NAT's time-out" does), for echo requests with their identifier as
//! the port (RFC 5508). ICMP errors find their way by the packet that they quote. What has no ports, fragments above
//! all, does not pass.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use tern_netsim_link::{Nat, NatDrop, NatSpec};

use crate::limits::{NAT_ECHO_NS, NAT_TCP_NS, NAT_TCP_UNANSWERED_NS};
use crate::packet::{Kind, Packet, Side, TCP, rewrite, rewrite_error};

/// See the module.
#[derive(Clone, Debug)]
pub struct Translator {
    datagrams: Nat,
    streams: Nat,
    echoes: Nat,
}

impl Translator {
    /// Without mappings.
    pub fn new(spec: NatSpec, outside: Ipv4Addr) -> Self {
        let of = |spec| Nat::new(spec, IpAddr::V4(outside));
        let streams = NatSpec { udp_ns: NAT_TCP_NS, udp_unanswered_ns: Some(NAT_TCP_UNANSWERED_NS), ..spec.clone() };
        let echoes = NatSpec { udp_ns: NAT_ECHO_NS, udp_unanswered_ns: None, ..spec.clone() };
        Self { datagrams: of(spec), streams: of(streams), echoes: of(echoes) }
    }

    /// Rewrites a packet on its way out.
    pub fn outwards(&mut self, now_ns: u64, bytes: &mut [u8]) -> Result<(), NatDrop> {
        let packet = Packet::parse(bytes).ok_or(NatDrop::NoMapping)?;
        let (source, destination, kind) = (packet.source(), packet.destination(), packet.kind());
        if kind == Kind::Error {
            // It is about a packet that came in, so its quoted destination is inside.
            let (remote, inside, kind) = packet.quoted().ok_or(NatDrop::NoMapping)?;
            let (nat, remote_port, inside_port) = self.of(kind)?;
            let outside = nat.outwards(now_ns, end(inside, inside_port), end(remote, remote_port))?;
            rewrite_error(bytes, Side::Source, v4(outside)?);
            return Ok(());
        }
        let (nat, source_port, destination_port) = self.of(kind)?;
        // The identifier of an echo is one number, which stands for the inside end only.
        let remote_port = if matches!(kind, Kind::Echo { .. }) { 0 } else { destination_port };
        let outside = nat.outwards(now_ns, end(source, source_port), end(destination, remote_port))?;
        rewrite(bytes, Side::Source, v4(outside)?);
        Ok(())
    }

    /// Rewrites a packet on its way in.
    pub fn inwards(&mut self, now_ns: u64, bytes: &mut [u8]) -> Result<(), NatDrop> {
        let packet = Packet::parse(bytes).ok_or(NatDrop::NoMapping)?;
        let (source, destination, kind) = (packet.source(), packet.destination(), packet.kind());
        if kind == Kind::Error {
            let (outside, remote, kind) = packet.quoted().ok_or(NatDrop::NoMapping)?;
            let (nat, outside_port, remote_port) = self.of(kind)?;
            let remote_port = if matches!(kind, Kind::Echo { .. }) { 0 } else { remote_port };
            let inside = nat.inwards(now_ns, end(remote, remote_port), end(outside, outside_port))?;
            rewrite_error(bytes, Side::Destination, v4(inside)?);
            return Ok(());
        }
        let (nat, source_port, destination_port) = self.of(kind)?;
        let remote_port = if matches!(kind, Kind::Echo { .. }) { 0 } else { source_port };
        let inside = nat.inwards(now_ns, end(source, remote_port), end(destination, destination_port))?;
        rewrite(bytes, Side::Destination, v4(inside)?);
        Ok(())
    }

    /// Forgets every mapping, and gives other ports from now on.
    pub fn rebind(&mut self) {
        for nat in [&mut self.datagrams, &mut self.streams, &mut self.echoes] {
            nat.rebind();
        }
    }

    /// Gets another outside address, and forgets every mapping.
    pub fn readdress(&mut self, outside: Ipv4Addr) {
        for nat in [&mut self.datagrams, &mut self.streams, &mut self.echoes] {
            nat.readdress(IpAddr::V4(outside));
        }
    }

    /// Which machine a packet is for, and its two ports.
    fn of(&mut self, kind: Kind) -> Result<(&mut Nat, u16, u16), NatDrop> {
        match kind {
            Kind::Ports { protocol: TCP, source, destination } => Ok((&mut self.streams, source, destination)),
            Kind::Ports { source, destination, .. } => Ok((&mut self.datagrams, source, destination)),
            Kind::Echo { id } => Ok((&mut self.echoes, id, id)),
            Kind::Error | Kind::Other => Err(NatDrop::NoMapping),
        }
    }
}

fn end(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(address, port))
}

fn v4(end: SocketAddr) -> Result<SocketAddrV4, NatDrop> {
    match end {
        SocketAddr::V4(end) => Ok(end),
        SocketAddr::V6(_) => Err(NatDrop::NoMapping),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ICMP, UDP, fragmentation_needed, packet_of, set_sum, set_transport_sum};

    const S: u64 = 1_000_000_000;
    const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

    fn of(protocol: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
        let mut payload = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        payload.extend_from_slice(&[0, 8, 0, 0]);
        payload.resize(20, 0);
        let mut bytes = packet_of(protocol, from.0, to.0, &payload);
        set_transport_sum(&mut bytes);
        bytes
    }

    fn ends(bytes: &[u8]) -> ((Ipv4Addr, u16), (Ipv4Addr, u16)) {
        let packet = Packet::parse(bytes).unwrap();
        let (from, to) = match packet.kind() {
            Kind::Ports { source, destination, .. } => (source, destination),
            Kind::Echo { id } => (id, id),
            other => panic!("{other:?}"),
        };
        ((packet.source(), from), (packet.destination(), to))
    }

    #[test]
    fn datagrams_and_streams_have_ports_of_their_own_and_come_back() {
        let mut nat = Translator::new(NatSpec::default(), OUTSIDE);
        for protocol in [UDP, TCP] {
            let mut out = of(protocol, (INSIDE, 4000), (SERVER, 80));
            nat.outwards(0, &mut out).unwrap();
            assert_eq!(ends(&out), ((OUTSIDE, 4000), (SERVER, 80)));
            let mut back = of(protocol, (SERVER, 80), (OUTSIDE, 4000));
            nat.inwards(S, &mut back).unwrap();
            assert_eq!(ends(&back), ((SERVER, 80), (INSIDE, 4000)));
        }
        let mut stranger = of(UDP, (SERVER, 81), (OUTSIDE, 4000));
        assert_eq!(nat.inwards(S, &mut stranger), Err(NatDrop::Filtered));
    }

    #[test]
    fn a_silent_mapping_is_dead_for_datagrams_but_not_for_streams() {
        let mut nat = Translator::new(NatSpec::default(), OUTSIDE);
        for protocol in [UDP, TCP] {
            nat.outwards(0, &mut of(protocol, (INSIDE, 4000), (SERVER, 80))).unwrap();
            nat.inwards(S, &mut of(protocol, (SERVER, 80), (OUTSIDE, 4000))).unwrap();
        }
        let back =
            |nat: &mut Translator, protocol| nat.inwards(40 * S, &mut of(protocol, (SERVER, 80), (OUTSIDE, 4000)));
        assert_eq!(back(&mut nat, UDP), Err(NatDrop::NoMapping));
        assert_eq!(back(&mut nat, TCP), Ok(()));
    }

    #[test]
    fn echoes_pass_by_their_identifier() {
        let mut nat = Translator::new(NatSpec::default(), OUTSIDE);
        let echo = |kind: u8, from, to| {
            let mut payload = vec![kind, 0, 0, 0, 0x20, 0x10, 0, 1];
            set_sum(&mut payload, 2, 0);
            packet_of(ICMP, from, to, &payload)
        };
        let mut out = echo(8, INSIDE, SERVER);
        nat.outwards(0, &mut out).unwrap();
        assert_eq!(ends(&out), ((OUTSIDE, 0x2010), (SERVER, 0x2010)));
        let mut back = echo(0, SERVER, OUTSIDE);
        nat.inwards(0, &mut back).unwrap();
        assert_eq!(ends(&back), ((SERVER, 0x2010), (INSIDE, 0x2010)));
    }

    #[test]
    fn an_error_finds_who_sent_what_it_is_about() {
        let mut nat = Translator::new(NatSpec::default(), OUTSIDE);
        let mut out = of(UDP, (INSIDE, 4000), (SERVER, 80));
        nat.outwards(0, &mut out).unwrap();
        let mut error = fragmentation_needed(&out, Ipv4Addr::new(9, 9, 9, 9), 1280).unwrap();
        nat.inwards(0, &mut error).unwrap();
        let packet = Packet::parse(&error).unwrap();
        let quoted = Kind::Ports { protocol: UDP, source: 4000, destination: 80 };
        assert_eq!((packet.destination(), packet.quoted()), (INSIDE, Some((INSIDE, SERVER, quoted))));
        // And the other way: the phone says that nobody listens.
        let mut came = of(UDP, (SERVER, 80), (OUTSIDE, 4000));
        nat.inwards(0, &mut came).unwrap();
        let mut error = fragmentation_needed(&came, INSIDE, 1280).unwrap();
        nat.outwards(0, &mut error).unwrap();
        let packet = Packet::parse(&error).unwrap();
        let quoted = Kind::Ports { protocol: UDP, source: 80, destination: 4000 };
        assert_eq!((packet.source(), packet.quoted()), (OUTSIDE, Some((SERVER, OUTSIDE, quoted))));
    }

    #[test]
    fn after_a_rebinding_ports_are_others_and_after_a_new_address_that_is() {
        let mut nat = Translator::new(NatSpec::default(), OUTSIDE);
        nat.outwards(0, &mut of(UDP, (INSIDE, 4000), (SERVER, 80))).unwrap();
        nat.rebind();
        let mut out = of(UDP, (INSIDE, 4000), (SERVER, 80));
        nat.outwards(1, &mut out).unwrap();
        assert_ne!(ends(&out).0.1, 4000);
        let other = Ipv4Addr::new(203, 0, 113, 2);
        nat.readdress(other);
        let mut out = of(UDP, (INSIDE, 4000), (SERVER, 80));
        nat.outwards(2, &mut out).unwrap();
        assert_eq!(ends(&out).0.0, other);
    }
}
