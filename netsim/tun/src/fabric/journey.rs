//! A packet's way, station by station.

use std::net::{IpAddr, Ipv4Addr};

use tern_netsim_link::{Cause, Fate, flip};
use tern_netsim_scenario::plan::Blocked;

use super::{Fabric, Kind, Lost, Output, Parcel, Place, Port};
use crate::limits::{LATENCY_SAME_PLACE_NS, ROUTER_ADDRESS};
use crate::packet::{ICMP, Packet, TCP, UDP, application_payload, fragmentation_needed, set_sum, set_transport_sum};
use crate::portal;

impl Fabric {
    /// From a host's device.
    pub(super) fn enter(&mut self, from: Port, bytes: &[u8]) {
        let now_ns = self.now_ns;
        let Some(host) = self.hosts.get_mut(from.host) else { return };
        let Some(packet) = Packet::parse(bytes) else {
            *self.lost.entry(Lost::Foreign).or_default() += 1;
            return;
        };
        let parcel = Parcel { bytes: bytes.to_vec(), entered_ns: now_ns, near: false };
        if !host.power {
            *self.lost.entry(Lost::NoPower).or_default() += 1;
            return;
        }
        host.traffic.note(now_ns, self.radio_tail_ns, bytes.len(), true);
        host.note_port(bytes, true);
        match &mut host.kind {
            Kind::Server(address) if packet.source() == *address => {
                let place = host.place;
                self.cross(place, parcel, true);
            }
            Kind::Server(_) => *self.lost.entry(Lost::Off).or_default() += 1,
            Kind::Device(device) => {
                let used = device.interfaces.sending(now_ns);
                let own = device.interfaces.all().get(from.interface);
                let fits = used.is_some() && used == own;
                let from_own = own.is_some_and(|own| own.address == IpAddr::V4(packet.source()));
                let Some(access) = device.access.get_mut(from.interface) else { return };
                if fits && from_own {
                    let line = access.up;
                    self.send_on(line, parcel);
                } else {
                    *access.lost.entry(Lost::Off).or_default() += 1;
                }
            }
        }
    }

    /// A line has decided about a packet.
    pub(super) fn leave_line(&mut self, place: Place, fate: Fate, mut parcel: Parcel) {
        match fate {
            Fate::Delivered | Fate::Copied => {}
            Fate::Corrupted(roll) => corrupt(&mut parcel.bytes, roll),
            Fate::Dropped(Cause::TooLong(mtu)) => return self.too_long(place, &parcel, mtu),
            Fate::Dropped(_) => return,
        }
        match place {
            Place::Up(port) => self.leave_access(port, parcel),
            Place::Down(port) => self.reach_device(port, parcel),
            Place::Path(_) => self.arrive(parcel),
        }
    }

    /// Somebody is told that a packet was too long.
    fn too_long(&mut self, place: Place, parcel: &Parcel, mtu: u32) {
        let Some(error) = fragmentation_needed(&parcel.bytes, ROUTER_ADDRESS, mtu) else { return };
        let error = Parcel { bytes: error, entered_ns: self.now_ns, near: false };
        match place {
            Place::Up(port) => {
                // The next hop is the access network's router, and the packet has not been translated yet.
                if let Some(access) = self.access(port) {
                    let line = access.down;
                    self.send_on(line, error);
                }
            }
            Place::Down(port) => {
                let place = self.hosts[port.host].place;
                self.cross(place, error, false);
            }
            Place::Path(from) => self.cross(from, error, false),
        }
    }

    /// From the access link into the access network, and out of it.
    fn leave_access(&mut self, port: Port, mut parcel: Parcel) {
        let now_ns = self.now_ns;
        let place = self.hosts[port.host].place;
        let Some(access) = self.access(port) else { return };
        let protocol = Packet::parse(&parcel.bytes).map_or(0, |packet| packet.protocol());
        if access.blocked == Some(Blocked::Captive) && protocol == TCP {
            access.portal += 1;
            let line = access.down;
            if let Some(bytes) = portal::answer(&parcel.bytes) {
                self.send_on(line, Parcel { bytes, entered_ns: now_ns, near: false });
            }
            return;
        }
        if blocks(access.blocked, protocol) {
            *access.lost.entry(Lost::Blocked).or_default() += 1;
            return;
        }
        if let Some(nat) = &mut access.nat
            && let Err(cause) = nat.outwards(now_ns, &mut parcel.bytes)
        {
            *access.lost.entry(Lost::Nat(cause)).or_default() += 1;
            return;
        }
        self.cross(place, parcel, false);
    }

    /// Through the core, from a place to wherever the packet's address is.
    fn cross(&mut self, from: usize, mut parcel: Parcel, from_server: bool) {
        let owner = destination(&parcel).and_then(|address| self.owners.get(&address).copied());
        let Some(host) = owner.and_then(|port| self.hosts.get(port.host)) else {
            *self.lost.entry(Lost::Nobody).or_default() += 1;
            return;
        };
        let to = host.place;
        if from == to {
            parcel.near = from_server && matches!(host.kind, Kind::Server(_));
            return self.fly(LATENCY_SAME_PLACE_NS, parcel);
        }
        let Some(path) = self.paths.get_mut(&(from, to)) else {
            *self.lost.entry(Lost::Cut).or_default() += 1;
            return;
        };
        path.sent += 1;
        if path.cut {
            path.lost += 1;
            *self.lost.entry(Lost::Cut).or_default() += 1;
            return;
        }
        match (path.line, path.latency_ns) {
            (Some(line), _) => self.send_on(line, parcel),
            (None, latency_ns) => self.fly(latency_ns, parcel),
        }
    }

    fn fly(&mut self, latency_ns: u64, parcel: Parcel) {
        self.serial += 1;
        self.flying.insert((self.now_ns.saturating_add(latency_ns), self.serial), parcel);
    }

    /// Out of the core, to whoever has the address by now.
    pub(super) fn arrive(&mut self, mut parcel: Parcel) {
        let now_ns = self.now_ns;
        let Some(port) = destination(&parcel).and_then(|address| self.owners.get(&address).copied()) else {
            *self.lost.entry(Lost::Nobody).or_default() += 1;
            return;
        };
        if let Kind::Server(_) = self.hosts[port.host].kind {
            return self.deliver(port, parcel);
        }
        let Some(access) = self.access(port) else { return };
        if let Some(nat) = &mut access.nat
            && let Err(cause) = nat.inwards(now_ns, &mut parcel.bytes)
        {
            *access.lost.entry(Lost::Nat(cause)).or_default() += 1;
            return;
        }
        let protocol = Packet::parse(&parcel.bytes).map_or(0, |packet| packet.protocol());
        if access.blocked == Some(Blocked::Captive) || blocks(access.blocked, protocol) {
            *access.lost.entry(Lost::Blocked).or_default() += 1;
            return;
        }
        let line = access.down;
        self.send_on(line, parcel);
    }

    /// From the access link to its device.
    fn reach_device(&mut self, port: Port, parcel: Parcel) {
        let now_ns = self.now_ns;
        let Kind::Device(device) = &mut self.hosts[port.host].kind else { return };
        let receives =
            destination(&parcel).is_some_and(|address| device.interfaces.receives(now_ns, IpAddr::V4(address)));
        if receives {
            self.deliver(port, parcel);
        } else if let Some(access) = device.access.get_mut(port.interface) {
            *access.lost.entry(Lost::Off).or_default() += 1;
        }
    }

    fn deliver(&mut self, to: Port, parcel: Parcel) {
        let due_ns = self.now_ns;
        let host = &mut self.hosts[to.host];
        if !host.power {
            *self.lost.entry(Lost::NoPower).or_default() += 1;
            return;
        }
        host.traffic.note(due_ns, self.radio_tail_ns, parcel.bytes.len(), false);
        host.note_port(&parcel.bytes, false);
        let way_ns = (!parcel.near).then(|| due_ns.saturating_sub(parcel.entered_ns));
        self.outputs.push_back(Output::Deliver { to, bytes: parcel.bytes, due_ns, way_ns });
    }
}

impl super::Host {
    /// Servers are on few ports, so that of a device this stays small.
    fn note_port(&mut self, bytes: &[u8], up: bool) {
        if let Kind::Device(_) = self.kind
            && let Some(crate::packet::Kind::Ports { source, destination, .. }) =
                Packet::parse(bytes).map(|packet| packet.kind())
        {
            let (sent, received) = self.by_port.entry(if up { destination } else { source }).or_default();
            *if up { sent } else { received } += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        }
    }
}

impl super::Traffic {
    fn note(&mut self, now_ns: u64, tail_ns: u64, bytes: usize, up: bool) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let (packets, sum) = if up {
            (&mut self.up_packets, &mut self.up_bytes)
        } else {
            (&mut self.down_packets, &mut self.down_bytes)
        };
        *packets += 1;
        *sum += bytes;
        if self.last_ns.is_none_or(|last_ns| now_ns.saturating_sub(last_ns) > tail_ns) {
            self.wakeups += 1;
        }
        self.last_ns = Some(now_ns);
    }
}

/// Whether an access network keeps a packet back. Of a portal this is what it does not answer itself.
fn blocks(blocked: Option<Blocked>, protocol: u8) -> bool {
    match blocked {
        None => false,
        Some(Blocked::Udp) => protocol == UDP,
        Some(Blocked::Tcp) => protocol == TCP,
        Some(Blocked::Captive) => protocol != TCP,
        // Of streams it would have to know more; `netsim` plays it in virtual time only.
        Some(Blocked::AllButWeb { .. }) => protocol == UDP,
    }
}

fn destination(parcel: &Parcel) -> Option<Ipv4Addr> {
    Packet::parse(&parcel.bytes).map(|packet| packet.destination())
}

/// Flips bits that shall be seen: those of the application, and the checksum agrees with them.
fn corrupt(bytes: &mut [u8], roll: tern_netsim_link::Roll) {
    let Some(begin) = application_payload(bytes) else { return };
    flip(&mut bytes[begin..], roll);
    let Some((header, protocol)) = Packet::parse(bytes).map(|packet| (packet.header(), packet.protocol())) else {
        return;
    };
    if protocol == ICMP {
        set_sum(&mut bytes[header..], 2, 0);
    } else {
        set_transport_sum(bytes);
    }
}
