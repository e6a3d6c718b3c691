//! The router's machine: all hosts, all links, and every packet on its way. It has no clock and opens nothing.
//!
//! Problem: a router over real devices is hard to test, and easy to get subtly wrong: a packet that is handled when the
//! thread happens to wake, instead of when it was due, makes every station on its way later.
//!
//! Rule: as in virtual time, what happens happens at its own moment. Each line (a direction of a link) tells when it
//! has something; [`Fabric::advance`] lets everything happen up to now in the order of time, and hands each packet to
//! the next station at the moment at which it left the one before. So lateness does not add up: only reading a packet
//! and writing it are real, and what lies between is exact.
//!
//! A packet's way: access link up, the access network (blocks, portal), its NAT; the core (cuts, latency or link,
//! between places); the NAT inwards, the access network again, access link down. Servers have only the core. Where
//! something is too long for a link that says so, an error goes back from there.

mod faults;
mod journey;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use tern_netsim_link::{Counts, Direction, Interface, Interfaces, LinkSpec, NatDrop, Outage, Spec, Way};
use tern_netsim_scenario::plan::Blocked;

use crate::decisions::{Decisions, Event, LineId};
use crate::error::LabError;
use crate::limits::HOSTS_MAX;
use crate::plan::{Attached, LabPlan, outside};
use crate::translator::Translator;

/// A host's device: where packets come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The host, by its place in the plan.
    pub host: usize,
    /// Its interface, by its place in the plan; 0 of a server.
    pub interface: usize,
}

/// What has to be done in the world outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A packet arrives.
    Deliver {
        /// Where.
        to: Port,
        /// The packet.
        bytes: Vec<u8>,
        /// When it was due.
        due_ns: u64,
        /// How long its way was planned to take; `None` within a place.
        way_ns: Option<u64>,
    },
    /// The host sends on another interface, under this address.
    Route {
        /// Which.
        port: Port,
        /// Under which address.
        address: Ipv4Addr,
    },
    /// An interface has another address.
    Address {
        /// Which.
        port: Port,
        /// Before.
        old: Ipv4Addr,
        /// From now on.
        new: Ipv4Addr,
        /// Whether the host sends on it now.
        used: bool,
    },
}

/// Why a packet went no further, besides what links do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// It is not IPv4, or no packet at all.
    Foreign,
    /// Its interface is not in use, or has another address, or a hand-over has not ended.
    Off,
    /// The host has no power.
    NoPower,
    /// The access network does not let it through.
    Blocked,
    /// A NAT's reason.
    Nat(NatDrop),
    /// Nobody has its address.
    Nobody,
    /// The path is cut, or there is none.
    Cut,
}

/// What an access link and its network did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessCounts {
    /// From the device.
    pub up: Counts,
    /// To the device.
    pub down: Counts,
    /// Bytes that wait now, up and down.
    pub queued_bytes: (u64, u64),
    /// Besides.
    pub lost: BTreeMap<Lost, u64>,
    /// SYNs that a portal took.
    pub portal: u64,
}

/// What a path did so far, in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathCounts {
    /// Packets that came.
    pub sent: u64,
    /// Packets that a cut lost.
    pub cut: u64,
    /// Of its link, if it has one.
    pub link: Option<Counts>,
}

/// What came and went at a host so far; of a device, what its radio did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets that it sent.
    pub up_packets: u64,
    /// Their bytes.
    pub up_bytes: u64,
    /// Packets that it received.
    pub down_packets: u64,
    /// Their bytes.
    pub down_bytes: u64,
    /// How often it woke.
    pub wakeups: u64,
    last_ns: Option<u64>,
}

/// A packet on its way.
#[derive(Clone, Debug)]
struct Parcel {
    bytes: Vec<u8>,
    /// When it entered.
    entered_ns: u64,
    /// It goes from a server to another in the same place.
    near: bool,
}

/// Where a line is, and so what comes after it.
#[derive(Clone, Copy, Debug)]
enum Place {
    Up(Port),
    Down(Port),
    /// From this place.
    Path(usize),
}

#[derive(Debug)]
struct Line {
    place: Place,
    direction: Direction<Parcel>,
    armed_ns: Option<u64>,
}

#[derive(Debug)]
struct Access {
    up: LineId,
    down: LineId,
    nat: Option<Translator>,
    /// As others reach it.
    outside: Ipv4Addr,
    blocked: Option<Blocked>,
    lost: BTreeMap<Lost, u64>,
    portal: u64,
}

#[derive(Debug)]
struct Device {
    interfaces: Interfaces,
    access: Vec<Access>,
    /// Where its kernel sends now.
    routed: usize,
}

#[derive(Debug)]
enum Kind {
    Server(Ipv4Addr),
    Device(Box<Device>),
}

#[derive(Debug)]
struct Host {
    name: String,
    place: usize,
    power: bool,
    traffic: Traffic,
    /// Bytes up and down by the other end's port; devices only.
    by_port: BTreeMap<u16, (u64, u64)>,
    kind: Kind,
}

#[derive(Debug, Default)]
struct Path {
    latency_ns: u64,
    line: Option<LineId>,
    cut: bool,
    sent: u64,
    lost: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Fabric {
    seed: u64,
    now_ns: u64,
    radio_tail_ns: u64,
    places: Vec<String>,
    hosts: Vec<Host>,
    owners: BTreeMap<Ipv4Addr, Port>,
    paths: BTreeMap<(usize, usize), Path>,
    lines: Vec<Line>,
    due: BTreeSet<(u64, LineId)>,
    /// On plain latencies.
    flying: BTreeMap<(u64, u64), Parcel>,
    serial: u64,
    /// Hosts whose interfaces change by themselves, and when.
    changes: BTreeSet<(u64, usize)>,
    outputs: VecDeque<Output>,
    lost: BTreeMap<Lost, u64>,
    packets: u64,
    decisions: Decisions,
}

impl Fabric {
    /// Everything as the plan says, at moment 0.
    pub fn new(plan: &LabPlan) -> Result<Self, LabError> {
        if plan.hosts.is_empty() || plan.hosts.len() > HOSTS_MAX {
            return Err(LabError::Plan(format!("a lab has 1 to {HOSTS_MAX} hosts, not {}", plan.hosts.len())));
        }
        let mut fabric = Self {
            seed: plan.seed,
            now_ns: 0,
            radio_tail_ns: plan.radio_tail_ns,
            places: Vec::new(),
            hosts: Vec::new(),
            owners: BTreeMap::new(),
            paths: BTreeMap::new(),
            lines: Vec::new(),
            due: BTreeSet::new(),
            flying: BTreeMap::new(),
            serial: 0,
            changes: BTreeSet::new(),
            outputs: VecDeque::new(),
            lost: BTreeMap::new(),
            packets: 0,
            decisions: Decisions { seed: plan.seed, ..Decisions::default() },
        };
        for path in &plan.paths {
            let (a, b) = (fabric.place(&path.a), fabric.place(&path.b));
            for ends in [(a, b), (b, a)] {
                let new = Path { latency_ns: path.latency_ns, ..Path::default() };
                if fabric.paths.insert(ends, new).is_some() {
                    return Err(LabError::Plan(format!("two paths between {} and {}", path.a, path.b)));
                }
            }
            if let Some(link) = &path.link {
                fabric.give_link((a, b), link.clone())?;
            }
        }
        for (index, host) in plan.hosts.iter().enumerate() {
            if fabric.hosts.iter().any(|other| other.name == host.name) {
                return Err(LabError::Plan(format!("two hosts are named {}", host.name)));
            }
            let place = fabric.place(&host.place);
            let kind = match &host.attached {
                Attached::Wired(address) => {
                    fabric.own(*address, Port { host: index, interface: 0 })?;
                    Kind::Server(*address)
                }
                Attached::Access(interfaces) => Kind::Device(Box::new(fabric.device(index, &host.name, interfaces)?)),
            };
            fabric.hosts.push(Host {
                name: host.name.clone(),
                place,
                power: true,
                traffic: Traffic::default(),
                by_port: BTreeMap::new(),
                kind,
            });
        }
        Ok(fabric)
    }

    fn device(
        &mut self,
        host: usize,
        name: &str,
        plans: &[tern_netsim_scenario::plan::InterfacePlan],
    ) -> Result<Device, LabError> {
        let mut all = Vec::new();
        let mut access = Vec::new();
        for (interface, plan) in plans.iter().enumerate() {
            let port = Port { host, interface };
            let link = format!("{name}.{}", plan.name);
            self.own(outside(plan), port)?;
            let up = self.line(&link, Way::Up, Place::Up(port), plan.link.up.clone())?;
            let down = self.line(&link, Way::Down, Place::Down(port), plan.link.down.clone())?;
            let nat = plan.nat.as_ref().map(|(spec, outside)| Translator::new(spec.clone(), *outside));
            let (blocked, lost) = (None, BTreeMap::new());
            access.push(Access { up, down, nat, outside: outside(plan), blocked, lost, portal: 0 });
            all.push(Interface { name: plan.name.clone(), address: IpAddr::V4(plan.address), link });
        }
        let interfaces =
            Interfaces::new(all).map_err(|source| LabError::Interface { device: name.to_owned(), source })?;
        Ok(Device { interfaces, access, routed: 0 })
    }

    fn line(&mut self, link: &str, way: Way, place: Place, spec: Spec) -> Result<LineId, LabError> {
        let direction = Direction::new(self.seed, link, way, spec.clone())
            .map_err(|source| LabError::Link { link: link.to_owned(), source })?;
        self.lines.push(Line { place, direction, armed_ns: None });
        self.decisions.lines.push((link.to_owned(), way, spec));
        Ok(self.lines.len() - 1)
    }

    /// Gives the path between two places a link, in both directions.
    fn give_link(&mut self, (a, b): (usize, usize), link: LinkSpec) -> Result<(), LabError> {
        let name = format!("{} - {}", self.places[a], self.places[b]);
        for (ends, way, spec) in [((a, b), Way::Up, link.up), ((b, a), Way::Down, link.down)] {
            let line = self.line(&name, way, Place::Path(ends.0), spec)?;
            self.paths.entry(ends).or_default().line = Some(line);
        }
        Ok(())
    }

    fn own(&mut self, address: Ipv4Addr, port: Port) -> Result<(), LabError> {
        if let Some(other) = self.owners.insert(address, port) {
            let other = self.hosts.get(other.host).map_or("the same device", |host| host.name.as_str());
            return Err(LabError::Plan(format!("{address} is the address of {other} already")));
        }
        Ok(())
    }

    fn place(&mut self, name: &str) -> usize {
        self.places.iter().position(|place| place == name).unwrap_or_else(|| {
            self.places.push(name.to_owned());
            self.places.len() - 1
        })
    }

    /// A host sent a packet.
    pub fn handle_packet(&mut self, now_ns: u64, from: Port, bytes: &[u8]) {
        self.advance(now_ns);
        self.packets += 1;
        self.enter(from, bytes);
        self.advance(now_ns);
    }

    /// Lets happen what happens up to now.
    pub fn advance(&mut self, now_ns: u64) {
        while let Some(at_ns) = self.next_ns().filter(|at_ns| *at_ns <= now_ns) {
            self.now_ns = self.now_ns.max(at_ns);
            if self.changes.first().is_some_and(|(change_ns, _)| *change_ns <= at_ns) {
                if let Some((_, host)) = self.changes.pop_first() {
                    self.interfaces_change(host);
                }
            } else if self.due.first().is_some_and(|(due_ns, _)| *due_ns <= at_ns) {
                if let Some((_, line)) = self.due.pop_first() {
                    self.lines[line].armed_ns = None;
                    self.poll_line(line);
                }
            } else if let Some((_, parcel)) = self.flying.pop_first() {
                self.arrive(parcel);
            }
        }
        self.now_ns = self.now_ns.max(now_ns);
    }

    /// When [`Fabric::advance`] has something to do; `None`: nothing is ahead.
    pub fn next_ns(&self) -> Option<u64> {
        let line = self.due.first().map(|(at_ns, _)| *at_ns);
        let flying = self.flying.first_key_value().map(|((at_ns, _), _)| *at_ns);
        let change = self.changes.first().map(|(at_ns, _)| *at_ns);
        [line, flying, change].into_iter().flatten().min()
    }

    /// What has to be done now, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What was decided so far.
    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// Packets that hosts sent so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets that went nowhere, outside of access networks.
    pub fn lost(&self) -> &BTreeMap<Lost, u64> {
        &self.lost
    }

    /// Notes what a line has to tell, and lets it go on.
    fn poll_line(&mut self, line: LineId) {
        while let Some(output) = self.lines[line].direction.poll(self.now_ns) {
            let (number, left_ns, fate) = (output.number, output.left_ns, output.fate);
            self.decisions.push(output.at_ns, line, Event::Fate { number, left_ns, fate });
            self.leave_line(self.lines[line].place, fate, output.payload);
        }
        self.arm(line);
    }

    fn send_on(&mut self, line: LineId, parcel: Parcel) {
        let bytes = u32::try_from(parcel.bytes.len()).unwrap_or(u32::MAX);
        self.decisions.push(self.now_ns, line, Event::Sent(bytes));
        self.lines[line].direction.send(self.now_ns, bytes, parcel);
        self.arm(line);
    }

    fn arm(&mut self, line: LineId) {
        let next_ns = self.lines[line].direction.next_ns();
        let armed_ns = std::mem::replace(&mut self.lines[line].armed_ns, next_ns);
        if armed_ns != next_ns {
            if let Some(armed_ns) = armed_ns {
                self.due.remove(&(armed_ns, line));
            }
            if let Some(next_ns) = next_ns {
                self.due.insert((next_ns, line));
            }
        }
    }

    fn set_line_spec(&mut self, line: LineId, spec: Spec) -> Result<(), LabError> {
        let now_ns = self.now_ns;
        let link = self.decisions.lines[line].0.clone();
        let set = self.lines[line].direction.set_spec(now_ns, spec.clone());
        set.map_err(|source| LabError::Link { link, source })?;
        self.decisions.push(now_ns, line, Event::Spec(Box::new(spec)));
        self.arm(line);
        Ok(())
    }

    fn set_line_outage(&mut self, line: LineId, outage: Option<Outage>) {
        let now_ns = self.now_ns;
        self.lines[line].direction.set_outage(now_ns, outage);
        self.decisions.push(now_ns, line, Event::Outage(outage));
        self.arm(line);
    }
}
