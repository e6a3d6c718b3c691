//! When faults can begin and end, before anything is drawn.
//!
//! A range may be drawn anywhere, so a fault that could lie after the end of the run would be there with one seed and
//! not with another. What is checked are therefore the earliest and the latest moments, followed through anchors;
//! a fault that waits for the system has none. Anchors in a circle would wait for each other for ever.

use std::collections::BTreeMap;

use crate::fields::Fields;
use crate::problem::{Bag, Spot, instead};
use crate::read::when::Written;
use crate::units::time_text;

/// Earliest and latest.
type Span = (u64, u64);

/// A fault, as far as its times are concerned.
#[derive(Clone, Debug)]
pub(crate) struct Timed {
    pub spot: Spot,
    pub when: Written,
    /// How much later than `when`: repetitions.
    pub later_ns: Span,
    /// How long it lasts.
    pub lasts_ns: Option<Span>,
    /// It is over as soon as it began: a hand-over.
    pub at_once: bool,
}

/// All faults by their ids.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    faults: BTreeMap<String, Timed>,
    /// When each can begin; `None`: when the system does something.
    begins: BTreeMap<String, Option<Span>>,
}

impl Spans {
    /// Follows all anchors. What can't be is noted.
    pub fn new(faults: BTreeMap<String, Timed>, duration_ns: u64, bag: &Bag) -> Self {
        let mut spans = Self { faults, begins: BTreeMap::new() };
        let ids: Vec<String> = spans.faults.keys().cloned().collect();
        for id in &ids {
            let mut path = Vec::new();
            spans.follow(id, &mut path, bag);
        }
        for (id, timed) in &spans.faults {
            if let Some(Some(begins)) = spans.begins.get(id) {
                check_end(*begins, timed.spot, duration_ns, bag);
            }
        }
        spans
    }

    /// When a fault can begin.
    fn follow(&mut self, id: &str, path: &mut Vec<String>, bag: &Bag) -> Option<Span> {
        if let Some(known) = self.begins.get(id) {
            return *known;
        }
        let timed = self.faults.get(id)?.clone();
        if let Some(from) = path.iter().position(|before| before == id) {
            let circle = [&path[from..], &[id.to_owned()]].concat().join(" -> ");
            bag.note(timed.spot, format!("these wait for each other for ever: {circle}; give one of them a time"));
            self.begins.insert(id.to_owned(), None);
            return None;
        }
        path.push(id.to_owned());
        let span = match &timed.when {
            Written::At(span) => Some(*span),
            Written::On { .. } => None,
            Written::After { fault, end, by_ns } => {
                self.explain(fault, *end, timed.spot, bag);
                let begins = self.follow(fault, path, bag);
                let lasts = self.faults.get(fault).and_then(|fault| fault.lasts_ns).filter(|_| *end);
                begins.map(|begins| plus(plus(begins, lasts.unwrap_or((0, 0))), *by_ns))
            }
        };
        path.pop();
        let span = span.map(|span| plus(span, timed.later_ns));
        *self.begins.entry(id.to_owned()).or_insert(span)
    }

    /// Says what is wrong with an anchor, if something is.
    fn explain(&self, fault: &str, end: bool, spot: Spot, bag: &Bag) {
        match self.faults.get(fault) {
            None => {
                let known = instead(fault, self.faults.keys().map(String::as_str));
                bag.note(spot, format!("no fault \"{fault}\" to wait for: {known}"));
            }
            Some(anchor) if end && anchor.lasts_ns.is_none() && !anchor.at_once => {
                bag.note(
                    spot,
                    format!("\"{fault}\" has no end before all is healed: give it \"for\", or wait for {fault}.begin"),
                );
            }
            Some(_) => {}
        }
    }

    /// Checks when something else than a fault happens.
    pub fn check(&self, when: &Written, f: &Fields<'_>, duration_ns: u64) {
        let spot = f.at("at");
        match when {
            Written::At(span) => check_end(*span, spot, duration_ns, f.bag()),
            Written::On { .. } => {}
            Written::After { fault, end, by_ns } => {
                self.explain(fault, *end, spot, f.bag());
                let lasts = self.faults.get(fault).and_then(|fault| fault.lasts_ns).filter(|_| *end);
                if let Some(Some(begins)) = self.begins.get(fault) {
                    check_end(plus(plus(*begins, lasts.unwrap_or((0, 0))), *by_ns), spot, duration_ns, f.bag());
                }
            }
        }
    }
}

fn plus(a: Span, b: Span) -> Span {
    (a.0.saturating_add(b.0), a.1.saturating_add(b.1))
}

fn check_end((_, latest_ns): Span, spot: Spot, duration_ns: u64, bag: &Bag) {
    if latest_ns >= duration_ns && duration_ns > 0 {
        let (latest, duration) = (time_text(latest_ns), time_text(duration_ns));
        let fix = "begin earlier, or let the run last longer";
        bag.note(spot, format!("this can begin at {latest}, after the end of the run at {duration}: {fix}"));
    }
}
