//! The least plan that still fails.
//!
//! Problem: a run of minutes with ten devices and eight faults fails. Which of all that is needed? Rule: leave things
//! out, run again, and keep what still fails: delta debugging (Zeller and Hildebrandt 2002), first in the large, then
//! in the small. Cut the run at the first violation; then faults, devices, loads and actions; then how much is sent;
//! then halve how long things last; and all over again as long as something was gained.
//!
//! It works because every random number of a run has a key of its own: what is left happens as before. It is pure:
//! whoever calls it runs the plans and says whether they fail, and how often that may be asked.
//!
//! Every plan that is tried is valid: what refers to something left out goes with it, except anchors, which become
//! the times that they stood for (see `mend`).

mod ddmin;
mod mend;

use std::collections::BTreeSet;

use crate::plan::Plan;
use ddmin::ddmin;
use mend::mend;

/// A run shorter than this ends before anybody is connected.
const DURATION_NS_MIN: u64 = 1_000_000_000;
/// A fault shorter than this hits nothing.
const LASTS_NS_MIN: u64 = 1_000_000;

/// Cuts a plan down. `cut_at_ns` is when the first violation was certain; `fails` is asked at most `budget` times. What
/// comes back has failed, or is the plan as it was.
pub fn shrink(plan: &Plan, cut_at_ns: u64, budget: usize, fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut search = Search { best: plan.clone(), left: budget, fails };
    search.cut(cut_at_ns);
    loop {
        let before = search.best.clone();
        search.faults();
        search.devices();
        search.loads();
        search.actions();
        search.scenery();
        search.sends();
        search.halve();
        if search.left == 0 || search.best == before {
            return search.best;
        }
    }
}

struct Search<F> {
    best: Plan,
    left: usize,
    fails: F,
}

impl<F: FnMut(&Plan) -> bool> Search<F> {
    /// Keeps a change of the best plan if it still fails.
    fn keep(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        let base = self.best.clone();
        self.keep_of(&base, change)
    }

    /// Keeps a change of a plan if it is another one than the best, and still fails.
    fn keep_of(&mut self, base: &Plan, change: impl FnOnce(&mut Plan)) -> bool {
        let mut candidate = base.clone();
        change(&mut candidate);
        mend(&mut candidate, base);
        if self.left == 0 || candidate.devices.is_empty() || candidate == self.best {
            return false;
        }
        self.left -= 1;
        let kept = (self.fails)(&candidate);
        if kept {
            self.best = candidate;
        }
        kept
    }

    /// Runs only as long as needed. What is found late may need a moment after it, so more is tried as well.
    fn cut(&mut self, cut_at_ns: u64) {
        let longest = self.best.duration_ns;
        for more in [0, cut_at_ns / 8, cut_at_ns / 2] {
            let duration_ns = cut_at_ns.saturating_add(more).max(DURATION_NS_MIN);
            if duration_ns < longest && self.keep(|plan| plan.duration_ns = duration_ns) {
                return;
            }
        }
    }

    /// Leaves out as many of some things as possible, by their ids.
    fn subset(&mut self, ids: Vec<String>, retain: impl Fn(&mut Plan, &BTreeSet<&String>)) {
        let original = self.best.clone();
        ddmin(&ids, |subset| {
            let wanted: BTreeSet<&String> = subset.iter().collect();
            // Always of the same plan, so that what went with something comes back with it.
            self.keep_of(&original, |plan| retain(plan, &wanted))
        });
    }

    fn faults(&mut self) {
        let ids = self.best.faults.iter().map(|fault| fault.id.clone()).collect();
        self.subset(ids, |plan, wanted| plan.faults.retain(|fault| wanted.contains(&fault.id)));
    }

    fn devices(&mut self) {
        let ids = self.best.devices.iter().map(|device| device.id.clone()).collect();
        self.subset(ids, |plan, wanted| plan.devices.retain(|device| wanted.contains(&device.id)));
    }

    fn loads(&mut self) {
        let ids = self.best.loads.iter().map(|load| load.id.clone()).collect();
        self.subset(ids, |plan, wanted| plan.loads.retain(|load| wanted.contains(&load.id)));
    }

    fn actions(&mut self) {
        let all = self.best.actions.clone();
        let numbers: Vec<String> = (0..all.len()).map(|number| number.to_string()).collect();
        self.subset(numbers, |plan, wanted| {
            let mut number = 0;
            plan.actions.retain(|_| {
                number += 1;
                wanted.contains(&(number - 1).to_string())
            });
        });
    }

    /// Groups that nobody writes to, places where nobody is, edges that nothing happens to.
    fn scenery(&mut self) {
        let ids: Vec<String> = self.best.groups.iter().map(|group| group.id.clone()).collect();
        self.subset(ids, |plan, wanted| plan.groups.retain(|group| wanted.contains(&group.id)));
        let is_region = |plan: &Plan, name: &str| plan.regions.iter().any(|region| region.name == name);
        let mut places: Vec<String> =
            self.best.paths.iter().flat_map(|path| [path.a.clone(), path.b.clone()]).collect();
        places.retain(|name| !is_region(&self.best, name) && self.best.devices.iter().all(|one| one.place != *name));
        places.dedup();
        for place in places {
            self.keep(|plan| plan.paths.retain(|path| path.a != place && path.b != place));
        }
        for index in 0..self.best.regions.len() {
            self.keep(|plan| plan.regions[index].edges = 0);
        }
    }

    /// Fewer messages: the first ones of a load, or those of half of its time.
    fn sends(&mut self) {
        for index in 0..self.best.loads.len() {
            loop {
                let load = &self.best.loads[index];
                let span_ns = load.until_ns - load.from_ns;
                let most = load.count.unwrap_or(u64::MAX).min(span_ns / load.every_ns.max(1) + 1);
                let middle_ns = load.from_ns + span_ns / 2;
                let fewer = most / 2;
                let gained = (fewer > 0 && self.keep(|plan| plan.loads[index].count = Some(fewer)))
                    || (span_ns > 2 * LASTS_NS_MIN
                        && (self.keep(|plan| plan.loads[index].until_ns = middle_ns)
                            || self.keep(|plan| plan.loads[index].from_ns = middle_ns)));
                if !gained {
                    break;
                }
            }
            // Halves end at one of two: what is between is tried one by one where it is little.
            while let Some(count @ 2..=8) = self.best.loads[index].count {
                if !self.keep(|plan| plan.loads[index].count = Some(count - 1)) {
                    break;
                }
            }
        }
    }

    /// Shorter faults, later starts undone, a shorter run.
    fn halve(&mut self) {
        for index in 0..self.best.faults.len() {
            while let Some(ns) = self.best.faults.get(index).and_then(|fault| fault.lasts_ns) {
                let shorter = ns / 2;
                if shorter < LASTS_NS_MIN || !self.keep(|plan| plan.faults[index].lasts_ns = Some(shorter)) {
                    break;
                }
            }
        }
        for index in 0..self.best.devices.len() {
            if self.best.devices[index].starts_ns > 0 {
                self.keep(|plan| plan.devices[index].starts_ns = 0);
            }
        }
        while self.best.duration_ns / 2 >= DURATION_NS_MIN {
            let shorter = self.best.duration_ns / 2;
            if !self.keep(|plan| plan.duration_ns = shorter) {
                break;
            }
        }
    }
}
