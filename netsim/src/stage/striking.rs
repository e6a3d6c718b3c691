//! Faults as they begin and end: what they do to regions, edges and apps, and what hangs on them. What they do to links is
//! [`super::rig`]'s.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tern_netsim_scenario::plan::{Down, Effect, Heal, When};
use tern_netsim_verdict::Event;
use tern_replication::store::memory::Latency;

use super::{Due, PlayError, Stage, Waiting, nanos};
use crate::limits::DRAIN_WINDOW;

impl Stage {
    /// A fault has struck: the rest of it, and what is anchored to it.
    pub(super) async fn struck_at(&mut self, number: usize) -> Result<(), PlayError> {
        let fault = self.plan.faults[number].clone();
        let stopped = |who: &str, how: &str| Event::Stop { who: who.to_owned(), how: how.to_owned() };
        match &fault.effect {
            Effect::AppKill { device } => {
                if let Some(seat) = self.devices.get_mut(device) {
                    seat.host.kill().await;
                    seat.app = None;
                    self.scribe.tell(stopped(device, "killed"));
                }
            }
            Effect::Region { region, how } => match how {
                Down::Pause => {}
                Down::Rewind => {
                    let disk = self.cluster.backup(region)?;
                    self.disks.insert(number, disk);
                }
                Down::Drain => {
                    self.cluster.begin_stop(region, DRAIN_WINDOW)?;
                    self.add(self.now_ns() + nanos(DRAIN_WINDOW * 2), Due::Drained(number));
                }
                how => {
                    self.scribe.region_down(region);
                    match how {
                        Down::Kill { lose_unsynced: false } => self.cluster.kill_keeping(region).await?,
                        Down::Kill { .. } => self.cluster.kill(region).await?,
                        _ => self.cluster.power_off(region).await?,
                    }
                    if *how == Down::Destroy {
                        self.cluster.destroy_disk(region)?;
                    }
                    let power = matches!(how, Down::Power | Down::Destroy);
                    self.scribe.tell(stopped(region, if power { "power" } else { "killed" }));
                }
            },
            Effect::Edge { edge, how } => match how {
                Down::Pause => {}
                Down::Drain => {
                    self.cluster.drain_edge(edge, DRAIN_WINDOW)?;
                    self.add(self.now_ns() + nanos(DRAIN_WINDOW * 2), Due::Drained(number));
                }
                how => {
                    let power = matches!(how, Down::Power | Down::Destroy);
                    self.cluster.end_edge(edge, power).await?;
                    self.scribe.tell(stopped(edge, if power { "power" } else { "killed" }));
                }
            },
            _ => {}
        }
        self.set_disks()?;
        let now_ns = self.now_ns();
        self.anchored(&fault.id, false, now_ns);
        match fault.effect {
            // What happens at once has happened: what hangs on its end begins, while what it hits is counted until the
            // run is over.
            Effect::HandOver { how, .. } => {
                let there_ns = now_ns.saturating_add(how.gap_ns);
                self.add(there_ns, Due::Told(number));
                self.anchored(&fault.id, true, there_ns);
            }
            Effect::NewAddress { .. } | Effect::NatRebind { .. } => self.anchored(&fault.id, true, now_ns),
            _ => {
                if let Some(lasts_ns) = fault.lasts_ns {
                    self.add(now_ns.saturating_add(lasts_ns), Due::End(number));
                }
            }
        }
        Ok(())
    }

    /// Disks that are faster or slower from now on.
    pub(super) fn set_disks(&mut self) -> Result<(), PlayError> {
        let read = Duration::from_nanos(self.plan.options.disk_read_ns);
        for (region, sync_ns) in self.rig.take_disks() {
            self.cluster.store(&region)?.set_latency(Latency { sync: Duration::from_nanos(sync_ns), read });
        }
        Ok(())
    }

    /// What begins so long after a fault began or ended.
    pub(super) fn anchored(&mut self, id: &str, end: bool, now_ns: u64) {
        let plan = Arc::clone(&self.plan);
        let by = |when: &When| match when {
            When::After { fault, end: at_end, by_ns } if fault == id && *at_end == end => Some(*by_ns),
            _ => None,
        };
        for (number, fault) in plan.faults.iter().enumerate() {
            if let Some(by_ns) = by(&fault.when) {
                self.add(now_ns.saturating_add(by_ns), Due::Begin(number));
            }
        }
        for (number, action) in plan.actions.iter().enumerate() {
            if let Some(by_ns) = by(&action.when) {
                self.add(now_ns.saturating_add(by_ns), Due::Act(number));
            }
        }
    }

    /// A device is in another network, and its system tells the app.
    pub(super) fn told(&mut self, number: usize) {
        let Effect::HandOver { device, to, .. } = &self.plan.faults[number].effect else { return };
        if let Some(app) = self.devices.get(device).and_then(|seat| seat.app.as_ref()) {
            app.network_changed(to.as_deref());
        }
    }

    /// A drained node's process ends.
    pub(super) async fn drained(&mut self, number: usize) -> Result<(), PlayError> {
        if !self.rig.holds(number) {
            return Ok(());
        }
        match self.plan.faults[number].effect.clone() {
            Effect::Region { region, .. } => {
                self.cluster.kill(&region).await?;
                self.scribe.tell(Event::Stop { who: region, how: "drained".into() });
            }
            Effect::Edge { edge, .. } => {
                self.cluster.end_edge(&edge, false).await?;
                self.scribe.tell(Event::Stop { who: edge, how: "drained".into() });
            }
            _ => {}
        }
        Ok(())
    }

    /// A fault ends: what is down is started.
    pub(super) async fn end(&mut self, number: usize) -> Result<(), PlayError> {
        if !self.rig.holds(number) {
            return Ok(());
        }
        self.rig.lift(number)?;
        let fault = self.plan.faults[number].clone();
        match &fault.effect {
            Effect::AppKill { device }
                if !self.is_down(|effect| matches!(effect, Effect::AppKill { device: of } if of == device)) =>
            {
                self.open(device)?;
            }
            Effect::Region { region, how: Down::Rewind } => {
                let up = !self.is_region_down(region);
                if up {
                    self.scribe.region_down(region);
                    self.scribe.tell(Event::Stop { who: region.clone(), how: "killed".into() });
                }
                self.cluster.kill(region).await?;
                if let Some(disk) = self.disks.remove(&number) {
                    self.cluster.set_disk(region, disk)?;
                }
                if up {
                    self.cluster.restart(region).await?;
                    self.scribe.tell(Event::Start { who: region.clone() });
                }
            }
            Effect::Region { region, how } if *how != Down::Pause && !self.is_region_down(region) => {
                // A drain that was cut short is a kill.
                self.cluster.kill(region).await?;
                self.cluster.restart(region).await?;
                self.scribe.tell(Event::Start { who: region.clone() });
            }
            Effect::Edge { edge, how } if *how != Down::Pause && !self.is_edge_down(edge) => {
                self.cluster.end_edge(edge, false).await?;
                self.cluster.start_edge(edge).await?;
                self.scribe.tell(Event::Start { who: edge.clone() });
            }
            _ => {}
        }
        self.set_disks()?;
        let now_ns = self.now_ns();
        self.anchored(&fault.id, true, now_ns);
        Ok(())
    }

    pub(super) fn is_down(&self, is: impl Fn(&Effect) -> bool) -> bool {
        self.rig.holding().iter().any(|number| is(&self.plan.faults[*number].effect))
    }

    pub(super) fn is_region_down(&self, region: &str) -> bool {
        let down = |how: &Down| !matches!(how, Down::Pause | Down::Rewind);
        self.is_down(|effect| matches!(effect, Effect::Region { region: of, how } if of == region && down(how)))
    }

    pub(super) fn is_edge_down(&self, edge: &str) -> bool {
        self.is_down(|effect| matches!(effect, Effect::Edge { edge: of, how } if of == edge && *how != Down::Pause))
    }

    /// Faults that struck because of what the system did.
    pub(super) async fn look_after_struck(&mut self) -> Result<(), PlayError> {
        loop {
            let next = self.struck.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((waiting, at_ns, struck)) = next else { return Ok(()) };
            match waiting {
                Waiting::Fault(number) if struck => self.struck_at(number).await?,
                Waiting::Fault(number) => self.add(at_ns, Due::Begin(number)),
                Waiting::Action(number) => self.add(at_ns, Due::Act(number)),
            }
        }
    }

    /// The load is over: what the plan wants healed is healed, and no further fault begins.
    pub(super) async fn heal(&mut self) -> Result<(), PlayError> {
        let heal = self.plan.liveness.heal;
        self.agenda.retain(|_, due| !matches!(due, Due::Begin(_)));
        let ends: Vec<usize> = self.rig.holding();
        for number in ends {
            let effect = &self.plan.faults[number].effect;
            if matches!(effect, Effect::HandOver { .. } | Effect::NewAddress { .. } | Effect::NatRebind { .. }) {
                continue;
            }
            let core = matches!(
                effect,
                Effect::PathCut { .. }
                    | Effect::PathChange { .. }
                    | Effect::Region { .. }
                    | Effect::Edge { .. }
                    | Effect::Disk { .. }
            ) || matches!(effect, Effect::Clock { node, .. } if !self.devices.contains_key(node));
            match heal {
                Heal::Nothing => continue,
                Heal::Core if !core => continue,
                Heal::All | Heal::Core => {}
            }
            self.end(number).await?;
        }
        Ok(())
    }
}
