//! What a driver does to the links while they run, and what it asks them. Everything by name, from the next packet on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use tern_netsim_link::{HandOver, LinkSpec, Outage, Spec};
use tern_netsim_scenario::plan::{Blocked, Ways};

use super::{Access, AccessCounts, Device, Fabric, Kind, Output, PathCounts, Port, Traffic};
use crate::error::LabError;
use crate::limits::NEW_ADDRESSES;

impl Fabric {
    /// What an access link is like now.
    pub fn access_spec(&self, device: &str, interface: &str) -> Result<LinkSpec, LabError> {
        let port = self.port(device, Some(interface))?;
        let Kind::Device(found) = &self.hosts[port.host].kind else { return Err(no_device(device)) };
        let access = &found.access[port.interface];
        let of = |line: usize| self.lines[line].direction.spec().clone();
        Ok(LinkSpec { up: of(access.up), down: of(access.down) })
    }

    /// Makes an access link another one. What waits in it goes on waiting.
    pub fn set_access_spec(&mut self, device: &str, interface: &str, spec: LinkSpec) -> Result<(), LabError> {
        spec.check().map_err(|source| LabError::Link { link: format!("{device}.{interface}"), source })?;
        let port = self.port(device, Some(interface))?;
        let Some(Access { up, down, .. }) = self.access(port) else { return Err(no_device(device)) };
        let (up, down) = (*up, *down);
        self.set_line_spec(up, spec.up)?;
        self.set_line_spec(down, spec.down)
    }

    /// Begins or ends an outage of an access link, or of all of a device.
    pub fn set_access_outage(
        &mut self,
        device: &str,
        interface: Option<&str>,
        ways: Ways,
        outage: Option<Outage>,
    ) -> Result<(), LabError> {
        for port in self.ports(device, interface)? {
            let Some(Access { up, down, .. }) = self.access(port) else { continue };
            let (up, down) = (*up, *down);
            for (line, meant) in [(up, ways.up), (down, ways.down)] {
                if meant {
                    self.set_line_outage(line, outage);
                }
            }
        }
        Ok(())
    }

    /// A device goes to another interface, or to the same one again. Its kernel sends there when the gap is over.
    pub fn hand_over(&mut self, device: &str, to: Option<&str>, how: HandOver) -> Result<(), LabError> {
        let port = self.port(device, to)?;
        let now_ns = self.now_ns;
        let found = self.device_mut(device)?;
        let name = found.interfaces.all()[port.interface].name.clone();
        let done = found.interfaces.hand_over(now_ns, &name, how);
        done.map_err(|source| LabError::Interface { device: device.to_owned(), source })?;
        self.changes.insert((now_ns.saturating_add(how.gap_ns), port.host));
        Ok(())
    }

    /// A gap is over, if it is the newest one.
    pub(super) fn interfaces_change(&mut self, host: usize) {
        let now_ns = self.now_ns;
        let Kind::Device(device) = &mut self.hosts[host].kind else { return };
        let Some(used) = device.interfaces.sending(now_ns) else { return };
        let interface = device.interfaces.all().iter().position(|one| one == used).unwrap_or_default();
        let IpAddr::V4(address) = used.address else { return };
        if device.routed != interface {
            device.routed = interface;
            self.outputs.push_back(Output::Route { port: Port { host, interface }, address });
        }
    }

    /// An interface gets another address: behind a NAT the NAT does, and forgets every mapping. The new one differs in
    /// its last byte, so it is in the same place. Returns it.
    pub fn new_address(&mut self, device: &str, interface: Option<&str>) -> Result<Ipv4Addr, LabError> {
        let port = self.port(device, interface)?;
        let old = self.access(port).map(|access| access.outside).ok_or_else(|| no_device(device))?;
        let [a, b, c, last] = old.octets();
        let new = (1..=NEW_ADDRESSES)
            .map(|step| Ipv4Addr::new(a, b, c, 1 + (last.wrapping_sub(1).wrapping_add(step)) % NEW_ADDRESSES))
            .find(|address| !self.owners.contains_key(address))
            .ok_or_else(|| LabError::Plan(format!("no address like {old} is left for {device}")))?;
        let found = self.device_mut(device)?;
        let access = &mut found.access[port.interface];
        if let Some(nat) = &mut access.nat {
            nat.readdress(new);
        } else {
            let name = found.interfaces.all()[port.interface].name.clone();
            let done = found.interfaces.readdress(&name, IpAddr::V4(new));
            done.map_err(|source| LabError::Interface { device: device.to_owned(), source })?;
            let used = found.routed == port.interface;
            self.outputs.push_back(Output::Address { port, old, new, used });
        }
        if let Some(access) = self.access(port) {
            access.outside = new;
        }
        self.owners.remove(&old);
        self.owners.insert(new, port);
        Ok(new)
    }

    /// The NAT of an interface forgets everything, and gives other ports. Nothing happens where there is none.
    pub fn rebind_nat(&mut self, device: &str, interface: Option<&str>) -> Result<(), LabError> {
        let port = self.port(device, interface)?;
        if let Some(nat) = self.access(port).and_then(|access| access.nat.as_mut()) {
            nat.rebind();
        }
        Ok(())
    }

    /// What an access network, or all of a device, does not let through from now on.
    pub fn set_block(&mut self, device: &str, interface: Option<&str>, what: Option<Blocked>) -> Result<(), LabError> {
        for port in self.ports(device, interface)? {
            if let Some(access) = self.access(port) {
                access.blocked = what;
            }
        }
        Ok(())
    }

    /// Loses everything between two places, in the directions that are meant; `up` is from `a` to `b`.
    pub fn cut(&mut self, a: &str, b: &str, ways: Ways) -> Result<(), LabError> {
        self.set_cut(a, b, ways, true)
    }

    /// Undoes [`Fabric::cut`].
    pub fn heal(&mut self, a: &str, b: &str, ways: Ways) -> Result<(), LabError> {
        self.set_cut(a, b, ways, false)
    }

    fn set_cut(&mut self, a: &str, b: &str, ways: Ways, cut: bool) -> Result<(), LabError> {
        let (from, to) = self.ends(a, b)?;
        for (ends, meant) in [((from, to), ways.up), ((to, from), ways.down)] {
            if let Some(path) = self.paths.get_mut(&ends).filter(|_| meant) {
                path.cut = cut;
            }
        }
        Ok(())
    }

    /// What a path is like now; `a` sends on `up`.
    pub fn path_spec(&self, a: &str, b: &str) -> Result<LinkSpec, LabError> {
        let (from, to) = self.ends(a, b)?;
        let of = |ends| {
            let path = self.paths.get(&ends);
            let line = path.and_then(|path| path.line).map(|line| self.lines[line].direction.spec().clone());
            line.unwrap_or_else(|| {
                let mut spec = Spec::default();
                spec.delay.base_ns = path.map_or(0, |path| path.latency_ns);
                spec
            })
        };
        Ok(LinkSpec { up: of((from, to)), down: of((to, from)) })
    }

    /// Makes a path another one; one with a plain latency becomes a link.
    pub fn set_path_spec(&mut self, a: &str, b: &str, spec: LinkSpec) -> Result<(), LabError> {
        spec.check().map_err(|source| LabError::Link { link: format!("{a} - {b}"), source })?;
        let (from, to) = self.ends(a, b)?;
        let line = |fabric: &Self, ends| fabric.paths.get(&ends).and_then(|path| path.line);
        match (line(self, (from, to)), line(self, (to, from))) {
            (Some(up), Some(down)) => {
                self.set_line_spec(up, spec.up)?;
                self.set_line_spec(down, spec.down)
            }
            _ => self.give_link((from, to), spec),
        }
    }

    /// Switches a host's power on or off: without, nothing leaves it or reaches it, and nobody is told.
    pub fn set_power(&mut self, host: &str, on: bool) -> Result<(), LabError> {
        let index = self.host(host)?;
        self.hosts[index].power = on;
        Ok(())
    }

    /// What an access link and its network did so far.
    pub fn access_counts(&self, device: &str, interface: &str) -> Result<AccessCounts, LabError> {
        let port = self.port(device, Some(interface))?;
        let Kind::Device(found) = &self.hosts[port.host].kind else { return Err(no_device(device)) };
        let access = &found.access[port.interface];
        let line = |id: usize| &self.lines[id].direction;
        Ok(AccessCounts {
            up: line(access.up).counts().clone(),
            down: line(access.down).counts().clone(),
            queued_bytes: (line(access.up).queued().1, line(access.down).queued().1),
            lost: access.lost.clone(),
            portal: access.portal,
        })
    }

    /// What a path did so far, from the first place to the second.
    pub fn path_counts(&self, from: &str, to: &str) -> Result<PathCounts, LabError> {
        let ends = self.ends(from, to)?;
        let path = &self.paths[&ends];
        let link = path.line.map(|line| self.lines[line].direction.counts().clone());
        Ok(PathCounts { sent: path.sent, cut: path.lost, link })
    }

    /// What came and went at a host so far; of a device, what its radio did.
    pub fn traffic(&self, host: &str) -> Result<Traffic, LabError> {
        Ok(self.hosts[self.host(host)?].traffic)
    }

    /// Bytes that a device sent and received, by the port of the other end.
    pub fn traffic_by_port(&self, device: &str) -> Result<BTreeMap<u16, (u64, u64)>, LabError> {
        Ok(self.hosts[self.host(device)?].by_port.clone())
    }

    /// Where a host is reached from outside now.
    pub fn reached_at(&self, host: &str) -> Result<Ipv4Addr, LabError> {
        let index = self.host(host)?;
        Ok(match &self.hosts[index].kind {
            Kind::Server(address) => *address,
            Kind::Device(device) => device.access[device.routed].outside,
        })
    }

    fn host(&self, name: &str) -> Result<usize, LabError> {
        let names = || self.hosts.iter().map(|host| host.name.as_str());
        names().position(|host| host == name).ok_or_else(|| LabError::unknown("host", name, names()))
    }

    fn device_mut(&mut self, name: &str) -> Result<&mut Device, LabError> {
        let index = self.host(name)?;
        match &mut self.hosts[index].kind {
            Kind::Device(device) => Ok(device),
            Kind::Server(_) => Err(no_device(name)),
        }
    }

    /// An interface of a device; the one in use if none is named.
    fn port(&self, device: &str, interface: Option<&str>) -> Result<Port, LabError> {
        let host = self.host(device)?;
        let Kind::Device(found) = &self.hosts[host].kind else { return Err(no_device(device)) };
        let names = || found.interfaces.all().iter().map(|one| one.name.as_str());
        let interface = match interface {
            None => found.routed,
            Some(name) => {
                names().position(|one| one == name).ok_or_else(|| LabError::unknown("interface", name, names()))?
            }
        };
        Ok(Port { host, interface })
    }

    /// An interface of a device; all if none is named.
    fn ports(&self, device: &str, interface: Option<&str>) -> Result<Vec<Port>, LabError> {
        let first = self.port(device, interface)?;
        let Kind::Device(found) = &self.hosts[first.host].kind else { return Err(no_device(device)) };
        if interface.is_some() {
            return Ok(vec![first]);
        }
        Ok((0..found.access.len()).map(|interface| Port { host: first.host, interface }).collect())
    }

    pub(super) fn access(&mut self, port: Port) -> Option<&mut Access> {
        match &mut self.hosts.get_mut(port.host)?.kind {
            Kind::Device(device) => device.access.get_mut(port.interface),
            Kind::Server(_) => None,
        }
    }

    /// Two places with a path between them.
    fn ends(&self, a: &str, b: &str) -> Result<(usize, usize), LabError> {
        let place = |name: &str| self.places.iter().position(|place| place == name);
        place(a).zip(place(b)).filter(|ends| self.paths.contains_key(ends)).ok_or_else(|| {
            let known = self.paths.keys().filter(|(from, to)| from < to);
            let known: Vec<String> =
                known.map(|(from, to)| format!("{} - {}", self.places[*from], self.places[*to])).collect();
            LabError::unknown("path", &format!("{a} - {b}"), known.iter().map(String::as_str))
        })
    }
}

fn no_device(name: &str) -> LabError {
    LabError::Plan(format!("{name} is a server: it has no access link"))
}
