//! What faults do to a simulated network and its nodes, and how much of it they really hit.
//!
//! Faults overlap: two outages of one link, a bufferbloat within a lossy minute. So a fault is never undone by doing the
//! opposite. The rig keeps the list of those that hold, and after each change sets what the change concerns to what the
//! plan says plus all that hold, in the order in which they began.
//!
//! Everything here happens at once, between two packets. What takes time (waiting until the tasks of a killed node are
//! gone, starting it again) is the stage's matter; the node is struck down here all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tern_netsim_link::{Cause, Counts, LinkSpec, Outage, Spec, Way};
use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{Blocked, Down, Effect, FaultPlan, Patch, Ways};
use tern_netsim_verdict::{Event, FaultPhase};

use super::scribe::Scribe;
use crate::access::{AccessError, Block, HostCounts};
use crate::node::{HostState, SimNode};
use crate::pipes::LinkError;
use crate::world::World;

/// Why a fault can't strike: the plan names what is not there.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// Of a device.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Of a path.
    #[error(transparent)]
    Path(#[from] LinkError),
    /// Of a node.
    #[error("there is no node {0}")]
    NoNode(String),
}

/// A fault that holds, and what had been counted when it began.
#[derive(Debug)]
struct Holding {
    fault: usize,
    before: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Rig {
    plan: Arc<Plan>,
    world: World,
    scribe: Arc<Scribe>,
    /// By the scenario's names: devices, regions, further edges.
    nodes: BTreeMap<String, SimNode>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    holding: Vec<Holding>,
    /// How often an interface got another address.
    moves: BTreeMap<(String, String), u8>,
    /// Entries that each region's store has decided on.
    decided: BTreeMap<String, u64>,
    disks: Vec<(String, u64)>,
}

const UP: Way = Way::Up;
const DOWN: Way = Way::Down;

impl Rig {
    /// `nodes` by the names that faults use.
    pub fn new(plan: Arc<Plan>, world: World, scribe: Arc<Scribe>, nodes: BTreeMap<String, SimNode>) -> Self {
        Self { plan, world, scribe, nodes, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A region's store decided on an entry.
    pub fn decided(&self, region: &str) {
        *self.state().decided.entry(region.to_owned()).or_default() += 1;
    }

    /// Disks that are to take so long for a sync from now on: (region, nanoseconds).
    pub fn take_disks(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.state().disks)
    }

    /// Whether a fault holds.
    pub fn holds(&self, fault: usize) -> bool {
        self.state().holding.iter().any(|holding| holding.fault == fault)
    }

    /// Those that hold, in the order in which they began.
    pub fn holding(&self) -> Vec<usize> {
        self.state().holding.iter().map(|holding| holding.fault).collect()
    }

    /// A fault begins. Of no effect where it holds already.
    pub fn strike(&self, number: usize) -> Result<(), RigError> {
        let Some(fault) = self.plan.faults.get(number) else { return Ok(()) };
        if self.holds(number) {
            return Ok(());
        }
        let before = self.count(fault)?;
        self.tell(fault, FaultPhase::Begin, 0);
        self.state().holding.push(Holding { fault: number, before });
        self.concern(&fault.effect, true);
        self.once(fault)?;
        self.set(&fault.effect)
    }

    /// A fault ends.
    pub fn lift(&self, number: usize) -> Result<(), RigError> {
        let Some(fault) = self.plan.faults.get(number) else { return Ok(()) };
        let mut state = self.state();
        let Some(index) = state.holding.iter().position(|holding| holding.fault == number) else { return Ok(()) };
        let holding = state.holding.remove(index);
        drop(state);
        let hits = self.count(fault)?.saturating_sub(holding.before);
        self.concern(&fault.effect, false);
        self.set(&fault.effect)?;
        self.tell(fault, FaultPhase::End, hits);
        Ok(())
    }

    fn tell(&self, fault: &FaultPlan, phase: FaultPhase, hits: u64) {
        let FaultPlan { id, kind, target, .. } = fault.clone();
        self.scribe.tell(Event::Fault { fault: id, phase, kind, target, hits });
    }

    /// What makes a connection stale without closing it.
    fn concern(&self, effect: &Effect, begins: bool) {
        match effect {
            Effect::LinkOutage { device, .. }
            | Effect::Block { device, .. }
            | Effect::HandOver { device, .. }
            | Effect::NewAddress { device, .. }
            | Effect::NatRebind { device, .. } => self.scribe.dark(device, begins),
            _ => {}
        }
    }

    fn node(&self, name: &str) -> Result<&SimNode, RigError> {
        self.nodes.get(name).ok_or_else(|| RigError::NoNode(name.to_owned()))
    }

    fn interfaces(&self, device: &str, only: Option<&String>) -> Vec<String> {
        let of = self.plan.devices.iter().find(|one| one.id == device);
        let all = of.into_iter().flat_map(|one| &one.interfaces).map(|interface| interface.name.clone());
        all.filter(|name| only.is_none_or(|only| only == name)).collect()
    }

    /// What a fault does once, as it begins.
    fn once(&self, fault: &FaultPlan) -> Result<(), RigError> {
        match &fault.effect {
            Effect::HandOver { device, to, how } => Ok(self.world.hand_over(device, to.as_deref(), *how)?),
            Effect::NatRebind { device, interface } => Ok(self.world.rebind_nat(device, interface.as_deref())?),
            Effect::NewAddress { device, interface } => self.new_address(device, interface.as_deref()),
            Effect::AppKill { device } => {
                self.node(device)?.strike_down(HostState::Killed);
                Ok(())
            }
            Effect::Region { region: node, how } | Effect::Edge { edge: node, how } => {
                let host = self.node(node)?;
                match how {
                    Down::Kill { .. } => host.strike_down(HostState::Killed),
                    Down::Power | Down::Destroy => host.strike_down(HostState::Off),
                    Down::Pause | Down::Drain | Down::Rewind => {}
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The next address of the same network: the fourth number of the old one, moved by 40 each time.
    fn new_address(&self, device: &str, interface: Option<&str>) -> Result<(), RigError> {
        let name = match interface {
            Some(name) => name.to_owned(),
            None => self.world.interface_in_use(device)?.unwrap_or_else(|| self.first_interface(device)),
        };
        let of = self.plan.devices.iter().find(|one| one.id == device);
        let planned = of.and_then(|one| one.interfaces.iter().find(|interface| interface.name == name));
        let Some(planned) = planned else { return Err(RigError::NoNode(format!("{device}.{name}"))) };
        let [a, b, c, d] = planned.nat.as_ref().map_or(planned.address, |(_, outside)| *outside).octets();
        // Others may live there: the first free one is taken.
        for _ in 0..u8::MAX {
            let moves = {
                let mut state = self.state();
                let moves = state.moves.entry((device.to_owned(), name.clone())).or_default();
                *moves = moves.wrapping_add(1);
                *moves
            };
            let address = [a, b, c.wrapping_add(100), d.wrapping_add(moves)].into();
            if self.world.new_address(device, Some(&name), address).is_ok() {
                return Ok(());
            }
        }
        Err(RigError::NoNode(format!("a free address for {device}")))
    }

    fn first_interface(&self, device: &str) -> String {
        self.interfaces(device, None).into_iter().next().unwrap_or_default()
    }

    /// The effects of those that hold.
    fn effects(&self) -> Vec<&Effect> {
        let holding = self.holding();
        holding.iter().filter_map(|number| self.plan.faults.get(*number)).map(|fault| &fault.effect).collect()
    }

    /// Sets what an effect concerns to what all that hold make of it.
    fn set(&self, effect: &Effect) -> Result<(), RigError> {
        match effect {
            Effect::LinkOutage { device, interface, .. } => self.set_outages(device, interface.as_ref()),
            Effect::LinkChange { device, interface, .. } => self.set_links(device, interface.as_ref()),
            Effect::PathCut { a, b, .. } => {
                self.set_cuts(a, b);
                Ok(())
            }
            Effect::PathChange { a, b, .. } => self.set_path(a, b),
            Effect::Block { device, interface, .. } => self.set_blocks(device, interface.as_ref()),
            Effect::Suspend { device } => self.set_pause(device),
            Effect::Region { region, how: Down::Pause } => self.set_pause(region),
            Effect::Edge { edge, how: Down::Pause } => self.set_pause(edge),
            Effect::Clock { node, .. } => self.set_clock(node),
            Effect::Disk { region, .. } => {
                let slow = self.effects().into_iter().filter_map(|effect| match effect {
                    Effect::Disk { region: of, sync_ns } if of == region => Some(*sync_ns),
                    _ => None,
                });
                let sync_ns = slow.max().unwrap_or(self.plan.options.disk_sync_ns);
                self.state().disks.push((region.clone(), sync_ns));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn set_outages(&self, device: &str, interface: Option<&String>) -> Result<(), RigError> {
        for name in self.interfaces(device, interface) {
            for way in [UP, DOWN] {
                let outages = self.effects().into_iter().filter_map(|effect| match effect {
                    Effect::LinkOutage { device: of, interface, ways, outage }
                        if of == device && interface.as_ref().is_none_or(|only| *only == name) && has(*ways, way) =>
                    {
                        Some(*outage)
                    }
                    _ => None,
                });
                // Of two at once the one that loses is worse.
                let outage: Option<Outage> = outages.min();
                self.world.set_access_outage(device, &name, way, outage)?;
            }
        }
        Ok(())
    }

    fn set_links(&self, device: &str, interface: Option<&String>) -> Result<(), RigError> {
        for name in self.interfaces(device, interface) {
            let planned = self.plan.devices.iter().find(|one| one.id == device);
            let Some(planned) = planned.and_then(|one| one.interfaces.iter().find(|one| one.name == name)) else {
                continue;
            };
            for way in [UP, DOWN] {
                let base = if way == UP { &planned.link.up } else { &planned.link.down };
                let patches = self.effects().into_iter().filter_map(|effect| match effect {
                    Effect::LinkChange { device: of, interface, ways, change }
                        if of == device && interface.as_ref().is_none_or(|only| *only == name) && has(*ways, way) =>
                    {
                        Some(change)
                    }
                    _ => None,
                });
                let spec = patches.fold(base.clone(), |spec, patch| patch.apply(&spec, way == UP));
                self.world.set_access_spec(device, &name, way, spec)?;
            }
        }
        Ok(())
    }

    fn set_blocks(&self, device: &str, interface: Option<&String>) -> Result<(), RigError> {
        for name in self.interfaces(device, interface) {
            // The last of those that hold counts.
            let block = self.effects().into_iter().rev().find_map(|effect| match effect {
                Effect::Block { device: of, interface, what }
                    if of == device && interface.as_ref().is_none_or(|only| *only == name) =>
                {
                    Some(*what)
                }
                _ => None,
            });
            let block = block.map(|what| match what {
                Blocked::Udp => Block::Udp,
                Blocked::Tcp => Block::Tcp,
                Blocked::Captive => Block::Captive,
                Blocked::AllButWeb { longest_ns } => Block::AllButWeb { longest_ns },
            });
            self.world.set_block(device, Some(&name), block)?;
        }
        Ok(())
    }

    fn set_cuts(&self, a: &str, b: &str) {
        let mut ways = BTreeSet::new();
        for effect in self.effects() {
            if let Effect::PathCut { a: from, b: to, ways: cut } = effect
                && BTreeSet::from([from, to]) == BTreeSet::from([&a.to_owned(), &b.to_owned()])
            {
                ways.extend(cut.up.then(|| (from.clone(), to.clone())));
                ways.extend(cut.down.then(|| (to.clone(), from.clone())));
            }
        }
        self.world.heal(a, b);
        for (from, to) in ways {
            self.world.blackhole(&from, &to);
        }
    }

    fn set_path(&self, a: &str, b: &str) -> Result<(), RigError> {
        let planned = self.plan.paths.iter().find(|path| (path.a == a && path.b == b) || (path.a == b && path.b == a));
        let Some(planned) = planned else { return Err(RigError::NoNode(format!("{a} - {b}"))) };
        let plain = || {
            let mut spec = Spec::default();
            spec.delay.base_ns = planned.latency_ns;
            LinkSpec::symmetric(spec)
        };
        let mut link = planned.link.clone().unwrap_or_else(plain);
        for effect in self.effects() {
            let Effect::PathChange { a: from, b: to, ways, change } = effect else { continue };
            let (forward, backward) = (*from == planned.a && *to == planned.b, *from == planned.b && *to == planned.a);
            // `up` of the fault is from its own first end.
            let up = (forward && ways.up) || (backward && ways.down);
            let down = (forward && ways.down) || (backward && ways.up);
            if up {
                link.up = change.apply(&link.up, true);
            }
            if down {
                link.down = change.apply(&link.down, false);
            }
        }
        Ok(self.world.set_link(&planned.a, &planned.b, link)?)
    }

    fn set_pause(&self, name: &str) -> Result<(), RigError> {
        let paused = self.effects().into_iter().any(|effect| match effect {
            Effect::Suspend { device } => device == name,
            Effect::Region { region, how: Down::Pause } => region == name,
            Effect::Edge { edge, how: Down::Pause } => edge == name,
            _ => false,
        });
        self.node(name)?.set_paused(paused);
        let who = name.to_owned();
        self.scribe.tell(match paused {
            true => Event::Stop { who, how: "suspended".into() },
            false => Event::Start { who },
        });
        Ok(())
    }

    fn set_clock(&self, name: &str) -> Result<(), RigError> {
        let (mut step, mut drift) = (0i64, 0i32);
        for effect in self.effects() {
            if let Effect::Clock { node, step_ms, drift_ppm } = effect
                && node == name
            {
                step = step.saturating_add(*step_ms);
                drift = drift.saturating_add(*drift_ppm);
            }
        }
        let node = self.node(name)?;
        node.set_clock_skew_ms(step);
        node.set_clock_drift_ppm(drift);
        Ok(())
    }

    /// What a fault of this kind counts, so far: what it really hit is the difference.
    fn count(&self, fault: &FaultPlan) -> Result<u64, RigError> {
        let host = |name: &str| -> Result<HostCounts, RigError> {
            let node = self.node(name)?.name();
            Ok(self.world.host_counts(&node)?)
        };
        Ok(match &fault.effect {
            Effect::LinkOutage { device, interface, ways, .. } => {
                self.links(device, interface.as_ref(), *ways, |counts| counts.outage_lost + counts.outage_waited)?
            }
            Effect::LinkChange { device, interface, ways, change } => {
                self.links(device, interface.as_ref(), *ways, |counts| changed(change, counts))?
            }
            Effect::PathCut { a, b, ways } => {
                let up = if ways.up { self.world.blocked_packets(a, b) } else { 0 };
                up + if ways.down { self.world.blocked_packets(b, a) } else { 0 }
            }
            Effect::PathChange { a, b, ways, change } => {
                let count = |from: &str, to: &str| match self.world.link_counts(from, to) {
                    Ok(counts) => changed(change, &counts),
                    // Without a change before, it has none.
                    Err(_) => 0,
                };
                let up = if ways.up { count(a, b) } else { 0 };
                up + if ways.down { count(b, a) } else { 0 }
            }
            Effect::Block { device, .. } => host(device)?.blocked,
            Effect::HandOver { device, .. } | Effect::NewAddress { device, .. } | Effect::NatRebind { device, .. } => {
                let counts = host(device)?;
                counts.sent_packets + counts.missed
            }
            Effect::Suspend { device } => host(device)?.waited,
            Effect::AppKill { device } => host(device)?.missed + self.node(device)?.ended_tasks(),
            Effect::Region { region: node, how } | Effect::Edge { edge: node, how } => {
                let counts = host(node)?;
                match how {
                    Down::Pause => counts.waited,
                    // It goes on sending: to those whom it sends away.
                    Down::Drain => counts.sent_packets + counts.missed,
                    // What will be lost.
                    Down::Rewind => self.state().decided.get(node).copied().unwrap_or(0),
                    _ => counts.missed + self.node(node)?.ended_tasks(),
                }
            }
            Effect::Clock { node, .. } => host(node)?.sent_packets,
            Effect::Disk { region, .. } => self.state().decided.get(region).copied().unwrap_or(0),
        })
    }

    fn links(
        &self,
        device: &str,
        interface: Option<&String>,
        ways: Ways,
        of: impl Fn(&Counts) -> u64,
    ) -> Result<u64, RigError> {
        let mut sum = 0;
        for name in self.interfaces(device, interface) {
            for way in [UP, DOWN].into_iter().filter(|way| has(ways, *way)) {
                sum += of(&self.world.access_counts(device, &name, way)?.counts);
            }
        }
        Ok(sum)
    }
}

fn has(ways: Ways, way: Way) -> bool {
    if way == UP { ways.up } else { ways.down }
}

/// What a changed link does to packets. A change that only makes chances larger hits those that chance hit.
pub(crate) fn changed(change: &Patch, counts: &Counts) -> u64 {
    let dropped = |causes: &[Cause]| -> u64 { causes.iter().filter_map(|cause| counts.dropped.get(cause)).sum() };
    let too_long = || {
        let long = |(cause, count): (&Cause, &u64)| matches!(cause, Cause::TooLong(_)).then_some(*count);
        counts.dropped.iter().filter_map(long).sum::<u64>() + dropped(&[Cause::BlackHole])
    };
    if change.link.is_some()
        || change.rate.is_some()
        || change.delay_ns.is_some()
        || change.jitter.is_some()
        || change.queue.is_some()
    {
        // Every packet takes another way than before.
        return counts.sent;
    }
    let mut hits = 0;
    if change.loss.is_some() {
        hits += dropped(&[Cause::Loss]);
    }
    if change.duplicate.is_some() {
        hits += counts.copied;
    }
    if change.reorder.is_some() {
        hits += counts.held_back;
    }
    if change.corrupt.is_some() {
        hits += counts.corrupted + dropped(&[Cause::Corrupt]);
    }
    if change.mtu.is_some() {
        hits += too_long();
    }
    hits
}
