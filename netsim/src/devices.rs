//! What may be done to a device, by names: the interfaces of [`crate::access`] from outside.
//!
//! A name that does not exist is an error that tells the nearest one that does; nothing is changed then.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use tern_netsim_link::{HandOver, Interface, Interfaces, Outage, Spec, Way, nearest};

use crate::access::{Access, AccessCounts, AccessError, AccessSpec, Block, Forgotten, HostCounts, Line, Nats};
use crate::middlebox::Middlebox;
use crate::node::{HostId, SimNode};
use crate::path::{Owner, ip_v4};
use crate::pipes::{PipeId, Place};
use crate::portal::Portal;
use crate::world::{State, World};

impl State {
    fn host_named(&self, name: &str) -> Result<HostId, AccessError> {
        self.by_name.get(name).copied().ok_or_else(|| AccessError::Host {
            name: name.to_owned(),
            nearest: nearest(name, self.by_name.keys().map(String::as_str)).unwrap_or_default().to_owned(),
        })
    }

    /// A device, and one of its interfaces: the named one, or the one that is in use.
    fn line_named(&mut self, device: &str, interface: Option<&str>) -> Result<(HostId, usize), AccessError> {
        let host = self.host_named(device)?;
        let Some(access) = &self.hosts[host.0].access else {
            return Err(AccessError::NotADevice(device.to_owned()));
        };
        let line = match interface {
            None => access.interfaces.chosen().ok_or_else(|| AccessError::AllOff(device.to_owned()))?,
            Some(name) => access.interfaces.index(name).ok_or_else(|| unknown(device, name, &access.interfaces))?,
        };
        Ok((host, line))
    }

    /// One that was found by [`State::line_named`].
    fn access(&mut self, host: HostId, device: &str) -> Result<&mut Access, AccessError> {
        self.hosts[host.0].access.as_mut().ok_or_else(|| AccessError::NotADevice(device.to_owned()))
    }

    fn link_named(&mut self, device: &str, interface: &str, way: Way) -> Result<PipeId, AccessError> {
        let (host, line) = self.line_named(device, Some(interface))?;
        Ok(self.access(host, device)?.pipe(line, way))
    }

    /// What one direction of a link has done, and what waits in it.
    pub(crate) fn counts_of(&mut self, pipe: PipeId) -> AccessCounts {
        let direction = self.pipes.direction(pipe);
        let (queued_packets, queued_bytes) = direction.queued();
        AccessCounts { counts: direction.counts().clone(), queued_packets, queued_bytes }
    }

    fn add_access(&mut self, seed: u64, host: HostId, device: &str, specs: Vec<AccessSpec>) -> Result<(), AccessError> {
        let interface = |spec: &AccessSpec| Interface {
            name: spec.name.clone(),
            address: IpAddr::V4(spec.address),
            link: format!("{device}.{}", spec.name),
        };
        let interfaces = Interfaces::new(specs.iter().map(interface).collect())
            .map_err(|source| AccessError::Interfaces { device: device.to_owned(), source })?;
        let mut outside = Vec::new();
        for spec in &specs {
            let link = || format!("{device}.{}", spec.name);
            spec.link.check().map_err(|source| AccessError::Spec { link: link(), source })?;
            let address = spec.nat.as_ref().map_or(spec.address, |(_, outside)| *outside);
            if self.by_ip.contains_key(&address) || outside.contains(&address) {
                return Err(AccessError::Taken(address));
            }
            outside.push(address);
        }
        let mut lines = Vec::new();
        for (line, spec) in specs.into_iter().enumerate() {
            let name = format!("{device}.{}", spec.name);
            let places = [Place::Up(host, line), Place::Down(host)];
            let link = self.pipes.add(seed, &name, spec.link, places);
            let link = link.map_err(|source| AccessError::Spec { link: name, source })?;
            let nat = spec.nat.map(|(spec, outside)| Nats::new(spec, outside));
            self.by_ip.insert(outside[line], Owner { host, line: Some(line) });
            lines.push(Line {
                link,
                nat,
                block: None,
                forgotten: Vec::new(),
                portal: Portal::default(),
                middlebox: Middlebox::default(),
            });
        }
        self.hosts[host.0].access = Some(Access { interfaces, lines });
        Ok(())
    }
}

fn unknown(device: &str, name: &str, interfaces: &Interfaces) -> AccessError {
    let known: Vec<&str> = interfaces.all().iter().map(|one| one.name.as_str()).collect();
    AccessError::Interface {
        device: device.to_owned(),
        name: name.to_owned(),
        nearest: nearest(name, known.iter().copied()).unwrap_or_default().to_owned(),
        known: known.join(", "),
    }
}

impl World {
    /// Adds a device, switched on; the first of its interfaces is in use. Fails, and adds nothing, where its name or
    /// an address that others see (the NAT's, behind one) is taken, a link can't be run, or two of its interfaces
    /// have the same name or address. Nobody can look up its name.
    pub fn add_device(&self, name: &str, group: &str, interfaces: Vec<AccessSpec>) -> io::Result<SimNode> {
        let host = self.shared.with(|state, _| {
            let first = interfaces.first().map_or(Ipv4Addr::UNSPECIFIED, |spec| spec.address);
            if state.by_name.contains_key(name) || state.names.contains_key(name) {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} is taken")));
            }
            let host = state.new_host(&self.shared, name, group, first);
            if let Err(error) = state.add_access(self.shared.seed, host, name, interfaces) {
                state.hosts.pop();
                state.by_name.remove(name);
                let kind = match error {
                    AccessError::Taken(_) => io::ErrorKind::AlreadyExists,
                    _ => io::ErrorKind::InvalidInput,
                };
                return Err(io::Error::new(kind, error));
            }
            Ok(host)
        })?;
        Ok(SimNode::new(self.clone(), host))
    }

    /// The names of a device's interfaces.
    pub fn interfaces(&self, device: &str) -> Result<Vec<String>, AccessError> {
        self.shared.with(|state, _| {
            let host = state.host_named(device)?;
            Ok(state.access(host, device)?.interfaces.all().iter().map(|one| one.name.clone()).collect())
        })
    }

    /// The interface on which a device sends now. `None`: during a gap, or if all are off.
    pub fn interface_in_use(&self, device: &str) -> Result<Option<String>, AccessError> {
        self.shared.with(|state, _| {
            let (host, now_ns) = (state.host_named(device)?, state.now_ns);
            Ok(state.access(host, device)?.interfaces.sending(now_ns).map(|one| one.name.clone()))
        })
    }

    /// What one direction of an access link is like now.
    pub fn access_spec(&self, device: &str, interface: &str, way: Way) -> Result<Spec, AccessError> {
        self.shared.with(|state, _| {
            let pipe = state.link_named(device, interface, way)?;
            Ok(state.pipes.direction(pipe).spec().clone())
        })
    }

    /// Changes one direction of an access link; what waits goes on waiting.
    pub fn set_access_spec(&self, device: &str, interface: &str, way: Way, spec: Spec) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (pipe, now_ns) = (state.link_named(device, interface, way)?, state.now_ns);
            let set = state.pipes.direction(pipe).set_spec(now_ns, spec);
            set.map_err(|source| AccessError::Spec { link: format!("{device}.{interface}"), source })?;
            state.arm(pipe);
            Ok(())
        })
    }

    /// Begins or ends an outage of one direction of an access link, beside those of its spec.
    pub fn set_access_outage(
        &self,
        device: &str,
        interface: &str,
        way: Way,
        outage: Option<Outage>,
    ) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (pipe, now_ns) = (state.link_named(device, interface, way)?, state.now_ns);
            state.pipes.direction(pipe).set_outage(now_ns, outage);
            state.arm(pipe);
            Ok(())
        })
    }

    /// Hands over to another interface; `None`: to the present one again, as from cell to cell.
    pub fn hand_over(&self, device: &str, to: Option<&str>, how: HandOver) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (host, line) = state.line_named(device, to)?;
            let now_ns = state.now_ns;
            let interfaces = &mut state.access(host, device)?.interfaces;
            let name = interfaces.all()[line].name.clone();
            let handed = interfaces.hand_over(now_ns, &name, how);
            handed.map_err(|source| AccessError::Interfaces { device: device.to_owned(), source })
        })
    }

    /// Switches all interfaces off (flight mode) until the next hand-over, which has to name one.
    pub fn switch_off(&self, device: &str) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let host = state.host_named(device)?;
            state.access(host, device)?.interfaces.off();
            Ok(())
        })
    }

    /// Gives an interface (`None`: the one in use) another address. Behind a NAT it is the NAT's outside address that
    /// changes, and all its mappings are forgotten.
    pub fn new_address(&self, device: &str, interface: Option<&str>, address: Ipv4Addr) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (host, line) = state.line_named(device, interface)?;
            let owner = Owner { host, line: Some(line) };
            if state.by_ip.get(&address).is_some_and(|other| *other != owner) {
                return Err(AccessError::Taken(address));
            }
            let access = state.access(host, device)?;
            let before = if let Some(nat) = &mut access.lines[line].nat {
                let before = nat.udp.outside();
                nat.udp.readdress(IpAddr::V4(address));
                nat.tcp.readdress(IpAddr::V4(address));
                before
            } else {
                let Interface { name, address: before, .. } = access.interfaces.all()[line].clone();
                let set = access.interfaces.readdress(&name, IpAddr::V4(address));
                set.map_err(|_| AccessError::Taken(address))?;
                before
            };
            ip_v4(before).and_then(|before| state.by_ip.remove(&before));
            state.by_ip.insert(address, owner);
            Ok(())
        })
    }

    /// Lets the NAT of an interface (`None`: the one in use) forget its mappings, and give other ports afterwards.
    pub fn rebind_nat(&self, device: &str, interface: Option<&str>) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let (host, line) = state.line_named(device, interface)?;
            let access = state.access(host, device)?;
            match &mut access.lines[line].nat {
                Some(nat) => {
                    nat.udp.rebind();
                    nat.tcp.rebind();
                    Ok(())
                }
                None => {
                    let interface = access.interfaces.all()[line].name.clone();
                    Err(AccessError::NoNat { device: device.to_owned(), interface })
                }
            }
        })
    }

    /// Lets the access network of an interface (`None`: of every one of the device) block something, or nothing.
    pub fn set_block(&self, device: &str, interface: Option<&str>, block: Option<Block>) -> Result<(), AccessError> {
        self.shared.with(|state, _| {
            let named = interface.map(|interface| state.line_named(device, Some(interface))).transpose()?;
            let host = state.host_named(device)?;
            for (index, line) in state.access(host, device)?.lines.iter_mut().enumerate() {
                if named.is_none_or(|(_, named)| named == index) {
                    line.block = block;
                }
            }
            Ok(())
        })
    }

    /// What one direction of an access link has done so far, and what waits in it.
    pub fn access_counts(&self, device: &str, interface: &str, way: Way) -> Result<AccessCounts, AccessError> {
        self.shared.with(|state, _| {
            let pipe = state.link_named(device, interface, way)?;
            Ok(state.counts_of(pipe))
        })
    }

    /// What came and went at a host so far.
    pub fn host_counts(&self, name: &str) -> Result<HostCounts, AccessError> {
        self.shared.with(|state, _| {
            let host = state.host_named(name)?;
            Ok(state.host(host).counts)
        })
    }

    /// When the NATs of a device's interfaces had forgotten its datagrams, by interface.
    pub fn forgotten(&self, device: &str) -> Result<Vec<Forgotten>, AccessError> {
        self.shared.with(|state, _| {
            let host = state.host_named(device)?;
            Ok(state.access(host, device)?.lines.iter().flat_map(|line| line.forgotten.iter().cloned()).collect())
        })
    }
}
