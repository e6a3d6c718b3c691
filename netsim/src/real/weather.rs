//! The faults of a scenario on the links of a lab in which none of its nodes and devices run.
//!
//! For a program that is put behind the links of a scenario (`netsim shell --faults`): what happens to links happens to it
//! at the moments that the plan says. What the plan does to apps, regions and edges has nobody to happen to, and is left
//! out, with what waits for it; so is what waits for a moment of the system.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{Effect, When};
use tern_netsim_tun::Lab;

use super::device::monotonic_ns;
use super::error::RealError;
use super::rig::Rig;

/// A fault begins or ends: its moment, its number, whether it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    number: usize,
    begins: bool,
}

/// What is due when, in nanoseconds since the beginning.
#[derive(Debug, Default)]
struct Agenda {
    due: BTreeMap<(u64, usize), Due>,
    count: usize,
}

impl Agenda {
    /// All that begins at a moment which is known.
    fn of(plan: &Plan) -> Self {
        let mut agenda = Self::default();
        for (number, fault) in plan.faults.iter().enumerate().filter(|(_, fault)| concerns_links(&fault.effect)) {
            if let When::At(at_ns) = fault.when {
                agenda.add(at_ns, Due { number, begins: true });
            }
        }
        agenda
    }

    fn add(&mut self, at_ns: u64, due: Due) {
        self.count += 1;
        self.due.insert((at_ns, self.count), due);
    }

    fn next_ns(&self) -> Option<u64> {
        self.due.first_key_value().map(|((at_ns, _), _)| *at_ns)
    }

    fn take(&mut self) -> Option<Due> {
        self.due.pop_first().map(|(_, due)| due)
    }

    /// A fault has begun or ended: its end, and what begins so long after.
    fn happened(&mut self, plan: &Plan, at_ns: u64, Due { number, begins }: Due) {
        let Some(fault) = plan.faults.get(number) else { return };
        if let Some(lasts_ns) = fault.lasts_ns.filter(|_| begins) {
            self.add(at_ns.saturating_add(lasts_ns), Due { number, begins: false });
        }
        for (number, other) in plan.faults.iter().enumerate().filter(|(_, other)| concerns_links(&other.effect)) {
            if let When::After { fault: id, end, by_ns } = &other.when
                && *id == fault.id
                && *end != begins
            {
                self.add(at_ns.saturating_add(*by_ns), Due { number, begins: true });
            }
        }
    }
}

/// Lets the faults strike, from now on, until `over` is sent or dropped; `tell` is told of each with the moment in
/// nanoseconds since now. What then holds goes on holding.
pub fn strike(
    lab: &Lab,
    plan: &Plan,
    over: &Receiver<()>,
    mut tell: impl FnMut(u64, &str, bool),
) -> Result<(), RealError> {
    let (zero_ns, mut rig, mut agenda) = (monotonic_ns(), Rig::default(), Agenda::of(plan));
    while let Some(at_ns) = agenda.next_ns() {
        let now_ns = monotonic_ns().saturating_sub(zero_ns);
        if at_ns > now_ns {
            match over.recv_timeout(Duration::from_nanos(at_ns - now_ns)) {
                Err(RecvTimeoutError::Timeout) => continue,
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        let Some(due) = agenda.take() else { break };
        let changed =
            if due.begins { rig.strike(lab, plan, due.number)? } else { rig.lift(lab, plan, due.number)?.is_some() };
        if let Some(fault) = plan.faults.get(due.number).filter(|_| changed) {
            tell(now_ns, &fault.id, due.begins);
            agenda.happened(plan, now_ns, due);
        }
    }
    Ok(())
}

/// Whether an effect is one on links.
fn concerns_links(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::LinkOutage { .. }
            | Effect::LinkChange { .. }
            | Effect::Block { .. }
            | Effect::PathCut { .. }
            | Effect::PathChange { .. }
            | Effect::HandOver { .. }
            | Effect::NewAddress { .. }
            | Effect::NatRebind { .. }
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use tern_netsim_scenario::Scenario;

    use super::*;

    #[test]
    fn faults_on_links_begin_and_end_in_their_order_and_others_are_left_out() {
        let text = r#"
            [scenario]
            name = "weather"
            about = "Faults of all kinds."
            duration = "60s"
            [[region]]
            name = "eu"
            aws = "euc1"
            [[device]]
            id = "phone"
            place = "eu"
            user = "alice"
            [[fault]]
            id = "dark"
            kind = "outage"
            target = "phone"
            at = "5s"
            for = "3s"
            [[fault]]
            id = "again"
            kind = "new-address"
            target = "phone"
            at = "dark.end + 1s"
            [[fault]]
            id = "crash"
            kind = "region-kill"
            target = "eu"
            at = "1s"
            for = "5s"
        "#;
        let scenario = Scenario::from_toml(text, Path::new("weather.toml")).unwrap();
        let plan = scenario.plan(0, &BTreeMap::new()).unwrap();
        let (mut agenda, mut happened) = (Agenda::of(&plan), Vec::new());
        while let Some(at_ns) = agenda.next_ns() {
            let due = agenda.take().unwrap();
            happened.push((at_ns / 1_000_000_000, plan.faults[due.number].id.clone(), due.begins));
            agenda.happened(&plan, at_ns, due);
        }
        let expected = [(5, "dark", true), (8, "dark", false), (9, "again", true)];
        assert_eq!(happened, expected.map(|(at_s, id, begins)| (at_s, id.to_owned(), begins)));
    }
}
