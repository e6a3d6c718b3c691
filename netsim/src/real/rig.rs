//! What faults do to a lab and its processes, and how much of it they really hit.
//!
//! As in virtual time ([`crate::stage::rig`]): links are set to what all faults that hold make of them (see
//! [`super::holding`]), and what a fault hit is the difference between what was counted when it began and when it ended.

use std::collections::BTreeMap;

use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{Down, Effect, FaultPlan, Ways};
use tern_netsim_tun::{Fabric, Lab, LabError, Lost};

use super::error::RealError;
use super::holding::Holding;
use crate::stage::rig::changed;

/// See the module.
#[derive(Debug, Default)]
pub struct Rig {
    /// Faults that hold.
    pub holding: Holding,
    /// What had been counted when each began.
    before: BTreeMap<usize, u64>,
    /// How often each app, region or edge was ended by a fault.
    pub ended: BTreeMap<String, u64>,
}

impl Rig {
    /// A fault begins: what it does to links. Of no effect where it holds already; says whether it did not.
    pub fn strike(&mut self, lab: &Lab, plan: &Plan, number: usize) -> Result<bool, RealError> {
        let Some(fault) = plan.faults.get(number).filter(|_| !self.holding.has(number)) else { return Ok(false) };
        let count = self.count(lab, plan, fault)?;
        self.before.insert(number, count);
        self.holding.0.push(number);
        once(lab, &fault.effect)?;
        self.set(lab, plan, &fault.effect)?;
        Ok(true)
    }

    /// A fault ends; how much it hit. `None`: it did not hold.
    pub fn lift(&mut self, lab: &Lab, plan: &Plan, number: usize) -> Result<Option<u64>, RealError> {
        let Some(fault) = plan.faults.get(number).filter(|_| self.holding.has(number)) else { return Ok(None) };
        let before = self.before.remove(&number).unwrap_or(0);
        let hits = self.count(lab, plan, fault)?.saturating_sub(before);
        self.holding.0.retain(|held| *held != number);
        self.set(lab, plan, &fault.effect)?;
        Ok(Some(hits))
    }

    /// Sets the links that an effect concerns to what all that hold make of them.
    fn set(&self, lab: &Lab, plan: &Plan, effect: &Effect) -> Result<(), RealError> {
        let holding = &self.holding;
        match effect {
            Effect::LinkOutage { device, interface, .. } => {
                for name in interfaces(plan, device, interface.as_deref()) {
                    for up in [true, false] {
                        let outage = holding.outage(plan, device, &name, up);
                        let (device, name) = (device.clone(), name.clone());
                        let ways = Ways { up, down: !up };
                        change(lab, move |fabric| fabric.set_access_outage(&device, Some(&name), ways, outage))?;
                    }
                }
            }
            Effect::LinkChange { device, interface, .. } => {
                for name in interfaces(plan, device, interface.as_deref()) {
                    let Some(link) = holding.link(plan, device, &name) else { continue };
                    let device = device.clone();
                    change(lab, move |fabric| fabric.set_access_spec(&device, &name, link))?;
                }
            }
            Effect::Block { device, interface, .. } => {
                for name in interfaces(plan, device, interface.as_deref()) {
                    let what = holding.block(plan, device, &name);
                    let device = device.clone();
                    change(lab, move |fabric| fabric.set_block(&device, Some(&name), what))?;
                }
            }
            Effect::PathCut { a, b, .. } => {
                let cut = holding.cut(plan, a, b);
                let (a, b) = (a.clone(), b.clone());
                change(lab, move |fabric| {
                    fabric.heal(&a, &b, Ways { up: true, down: true })?;
                    fabric.cut(&a, &b, cut)
                })?;
            }
            Effect::PathChange { a, b, .. } => {
                let planned =
                    plan.paths.iter().find(|path| (&path.a, &path.b) == (a, b) || (&path.b, &path.a) == (a, b));
                let Some(planned) = planned else { return Err(RealError::Name(format!("no path {a} - {b}"))) };
                let (a, b) = (planned.a.clone(), planned.b.clone());
                if let Some(link) = holding.path(plan, &a, &b) {
                    change(lab, move |fabric| fabric.set_path_spec(&a, &b, link))?;
                }
            }
            // Who has no power hears nothing and says nothing, from the moment on at which it goes.
            Effect::Region { region: node, how: Down::Power | Down::Destroy }
            | Effect::Edge { edge: node, how: Down::Power | Down::Destroy } => {
                let (on, node) = (!holding.down(plan, node), node.clone());
                change(lab, move |fabric| fabric.set_power(&node, on))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// What a fault of this kind counts, so far.
    fn count(&self, lab: &Lab, plan: &Plan, fault: &FaultPlan) -> Result<u64, RealError> {
        let effect = fault.effect.clone();
        let ended = |name: &str| self.ended.get(name).copied().unwrap_or(0);
        let names = match &effect {
            Effect::LinkOutage { device, interface, .. }
            | Effect::LinkChange { device, interface, .. }
            | Effect::Block { device, interface, .. } => interfaces(plan, device, interface.as_deref()),
            Effect::HandOver { device, .. } | Effect::NewAddress { device, .. } | Effect::NatRebind { device, .. } => {
                interfaces(plan, device, None)
            }
            Effect::AppKill { device } => return Ok(ended(device)),
            Effect::Region { region: node, how } | Effect::Edge { edge: node, how } => match how {
                Down::Pause | Down::Drain => Vec::new(),
                _ => return Ok(ended(node)),
            },
            _ => Vec::new(),
        };
        let counted = lab.with(move |fabric, _| counted(fabric, &effect, &names))?;
        Ok(counted?)
    }
}

/// What links and hosts count of an effect; `names` are the interfaces that it concerns.
fn counted(fabric: &Fabric, effect: &Effect, names: &[String]) -> Result<u64, LabError> {
    let mut sum = 0;
    match effect {
        Effect::LinkOutage { device, ways, .. } => {
            for name in names {
                let access = fabric.access_counts(device, name)?;
                for counts in of_ways(*ways, &access.up, &access.down) {
                    sum += counts.outage_lost + counts.outage_waited;
                }
            }
        }
        Effect::LinkChange { device, ways, change, .. } => {
            for name in names {
                let access = fabric.access_counts(device, name)?;
                sum += of_ways(*ways, &access.up, &access.down).map(|counts| changed(change, counts)).sum::<u64>();
            }
        }
        Effect::Block { device, .. } => {
            for name in names {
                let access = fabric.access_counts(device, name)?;
                sum += access.portal + access.lost.get(&Lost::Blocked).copied().unwrap_or(0);
            }
        }
        Effect::PathCut { a, b, ways } => {
            for (from, to, meant) in [(a, b, ways.up), (b, a, ways.down)] {
                sum += if meant { fabric.path_counts(from, to)?.cut } else { 0 };
            }
        }
        Effect::PathChange { a, b, ways, change } => {
            for (from, to, meant) in [(a, b, ways.up), (b, a, ways.down)] {
                let link = fabric.path_counts(from, to)?.link.filter(|_| meant);
                sum += link.map_or(0, |counts| changed(change, &counts));
            }
        }
        Effect::HandOver { device, .. } | Effect::NewAddress { device, .. } | Effect::NatRebind { device, .. } => {
            sum += fabric.traffic(device)?.up_packets;
            for name in names {
                let lost = fabric.access_counts(device, name)?.lost;
                let own = lost.iter().filter(|(cause, _)| matches!(cause, Lost::Off | Lost::Nat(_)));
                sum += own.map(|(_, count)| count).sum::<u64>();
            }
        }
        Effect::Suspend { device: host }
        | Effect::Region { region: host, how: Down::Pause }
        | Effect::Edge { edge: host, how: Down::Pause } => sum += fabric.traffic(host)?.down_packets,
        Effect::Region { region: host, how: Down::Drain } | Effect::Edge { edge: host, how: Down::Drain } => {
            sum += fabric.traffic(host)?.up_packets;
        }
        _ => {}
    }
    Ok(sum)
}

/// What a fault does once, as it begins.
fn once(lab: &Lab, effect: &Effect) -> Result<(), RealError> {
    match effect.clone() {
        Effect::HandOver { device, to, how } => {
            change(lab, move |fabric| fabric.hand_over(&device, to.as_deref(), how))
        }
        Effect::NatRebind { device, interface } => {
            change(lab, move |fabric| fabric.rebind_nat(&device, interface.as_deref()))
        }
        Effect::NewAddress { device, interface } => {
            change(lab, move |fabric| fabric.new_address(&device, interface.as_deref()).map(|_| ()))
        }
        _ => Ok(()),
    }
}

fn change(lab: &Lab, f: impl FnOnce(&mut Fabric) -> Result<(), LabError> + Send + 'static) -> Result<(), RealError> {
    Ok(lab.with(|fabric, _| f(fabric))??)
}

fn of_ways<T>(ways: Ways, up: T, down: T) -> impl Iterator<Item = T> {
    [(ways.up, up), (ways.down, down)].into_iter().filter(|(meant, _)| *meant).map(|(_, counts)| counts)
}

/// The interfaces of a device that are meant.
fn interfaces(plan: &Plan, device: &str, only: Option<&str>) -> Vec<String> {
    let of = plan.devices.iter().find(|one| one.id == device);
    let all = of.into_iter().flat_map(|one| &one.interfaces).map(|interface| interface.name.clone());
    all.filter(|name| only.is_none_or(|only| only == name)).collect()
}
