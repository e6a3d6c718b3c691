//! Faults as they begin and end: what they do to processes, and what is told of them. What they do to links is
//! [`super::super::rig`]'s.

use tern_netsim_scenario::plan::{Down, Effect, Heal};
use tern_netsim_verdict::{Event, FaultPhase};

use super::super::error::RealError;
use super::{Due, Run};

impl Run {
    /// A fault begins.
    pub(super) fn begin(&mut self, number: usize) -> Result<(), RealError> {
        let Some(fault) = self.plan.faults.get(number).cloned() else { return Ok(()) };
        if !self.rig.strike(&self.lab, &self.plan, number)? {
            return Ok(());
        }
        let now_ns = self.now_ns();
        let (id, kind, target) = (fault.id.clone(), fault.kind.clone(), fault.target.clone());
        self.book.tell(now_ns, Event::Fault { fault: id, phase: FaultPhase::Begin, kind, target, hits: 0 });
        self.concern(&fault.effect, true);
        self.strike_process(&fault.effect, true)?;
        if let Some(lasts_ns) = fault.lasts_ns {
            self.add(now_ns.saturating_add(lasts_ns), Due::End(number));
        }
        self.anchored(&fault.id, false, now_ns);
        if let Effect::HandOver { how, .. } = &fault.effect {
            self.add(now_ns.saturating_add(how.gap_ns), Due::Told(number));
        }
        Ok(())
    }

    /// A fault ends: what is down is started.
    pub(super) fn end(&mut self, number: usize) -> Result<(), RealError> {
        let Some(fault) = self.plan.faults.get(number).cloned() else { return Ok(()) };
        let Some(hits) = self.rig.lift(&self.lab, &self.plan, number)? else { return Ok(()) };
        let now_ns = self.now_ns();
        let (id, kind, target) = (fault.id.clone(), fault.kind.clone(), fault.target.clone());
        self.concern(&fault.effect, false);
        self.strike_process(&fault.effect, false)?;
        self.book.tell(now_ns, Event::Fault { fault: id, phase: FaultPhase::End, kind, target, hits });
        self.anchored(&fault.id, true, now_ns);
        Ok(())
    }

    /// What makes a connection stale without closing it.
    pub(super) fn concern(&mut self, effect: &Effect, begins: bool) {
        let now_ns = self.now_ns();
        match effect {
            Effect::LinkOutage { device, .. }
            | Effect::Block { device, .. }
            | Effect::HandOver { device, .. }
            | Effect::NewAddress { device, .. }
            | Effect::NatRebind { device, .. } => self.book.dark(now_ns, device, begins),
            _ => {}
        }
    }

    /// What a fault does to processes as it begins, or ends.
    pub(super) fn strike_process(&mut self, effect: &Effect, begins: bool) -> Result<(), RealError> {
        match effect {
            Effect::AppKill { device } => {
                let Some(seat) = self.seats.get_mut(device) else { return Ok(()) };
                if begins {
                    let open = seat.is_open();
                    seat.kill()?;
                    self.ended(device, "killed", open);
                } else if !self.rig.holding.down(&self.plan, device) {
                    self.open(device)?;
                }
                Ok(())
            }
            Effect::Suspend { device } => {
                let paused = self.rig.holding.paused(&self.plan, device);
                if let Some(seat) = self.seats.get_mut(device) {
                    seat.pause(paused)?;
                }
                self.paused(device, paused);
                Ok(())
            }
            Effect::Region { region: node, how } | Effect::Edge { edge: node, how } => {
                self.strike_node(node, *how, begins)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn strike_node(&mut self, node: &str, how: Down, begins: bool) -> Result<(), RealError> {
        match (how, begins) {
            (Down::Pause, _) => {
                let paused = self.rig.holding.paused(&self.plan, node);
                self.deployment.pause(node, paused)?;
                self.paused(node, paused);
            }
            // That it has ended is heard, and told then.
            (Down::Drain, true) => self.deployment.terminate(node)?,
            (_, true) => {
                self.deployment.kill(node)?;
                let power = matches!(how, Down::Power | Down::Destroy);
                let served = self.serving.remove(node);
                self.ended(node, if power { "power" } else { "killed" }, served);
                if how == Down::Destroy {
                    self.deployment.destroy(node)?;
                }
            }
            (_, false) if !self.rig.holding.down(&self.plan, node) => {
                // A drain that was cut short is a kill.
                self.deployment.kill(node)?;
                self.deployment.start(&self.lab, node)?;
            }
            (_, false) => {}
        }
        Ok(())
    }

    pub(super) fn ended(&mut self, who: &str, how: &str, ran: bool) {
        if ran {
            *self.rig.ended.entry(who.to_owned()).or_default() += 1;
        }
        let now_ns = self.now_ns();
        self.book.tell(now_ns, Event::Stop { who: who.to_owned(), how: how.to_owned() });
    }

    pub(super) fn paused(&mut self, who: &str, paused: bool) {
        let (now_ns, who) = (self.now_ns(), who.to_owned());
        let event = if paused { Event::Stop { who, how: "suspended".into() } } else { Event::Start { who } };
        self.book.tell(now_ns, event);
    }

    /// The load is over: what the plan wants healed is healed, and no further fault begins.
    pub(super) fn heal(&mut self) -> Result<(), RealError> {
        self.agenda.retain(|_, due| !matches!(due, Due::Begin(_)));
        for number in self.rig.holding.0.clone() {
            let core = matches!(
                self.plan.faults[number].effect,
                Effect::PathCut { .. } | Effect::PathChange { .. } | Effect::Region { .. } | Effect::Edge { .. }
            );
            match self.plan.liveness.heal {
                Heal::Nothing => {}
                Heal::Core if !core => {}
                Heal::All | Heal::Core => self.end(number)?,
            }
        }
        Ok(())
    }
}
