//! The figures of a run, from what was seen of it, and whether they keep within their bounds.
//!
//! Times count from the moment at which a fault began to strike, waiting for the next message of the load included, so
//! nothing looks better than it was. What never happened is infinitely late.

use serde::Serialize;
use tern_netsim_verdict::{LogFault, LogJudgement, Regions, judge_logs};

use super::observed::{Observed, Struck};
use super::script::{Bounds, Limits};
use super::text::show_seconds;

/// PASS, FAIL, or nothing could be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Within all bounds.
    Pass,
    /// A figure was not measured, a step failed, or nothing is bounded.
    Unknown,
    /// A bound is exceeded.
    Fail,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pass => "PASS",
            Self::Unknown => "UNKNOWN",
            Self::Fail => "FAIL",
        })
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What.
    pub name: String,
    /// How many values there are.
    pub count: usize,
    /// Statistics, in the figure's unit.
    pub values: Vec<(&'static str, f64)>,
    /// By statistic.
    pub bounds: Vec<(&'static str, f64)>,
    /// Seconds, or a plain number.
    pub is_time: bool,
    /// None: it has no bound.
    pub verdict: Option<Verdict>,
}

impl Figure {
    fn of_times(name: String, mut seconds: Vec<f64>, limits: Limits) -> Self {
        seconds.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| seconds[(seconds.len() * percent).div_ceil(100).clamp(1, seconds.len()) - 1];
        let values = match seconds.len() {
            0 => Vec::new(),
            _ => vec![("median", at(50)), ("p99", at(99)), ("max", at(100))],
        };
        let bounds = [("median", limits.median), ("p99", limits.p99), ("max", limits.max)];
        let bounds: Vec<_> = bounds.into_iter().filter_map(|(name, bound)| Some((name, bound?))).collect();
        Self { name, count: seconds.len(), values, verdict: None, bounds, is_time: true }.judged()
    }

    fn of_count(name: &str, count: impl Into<Option<u64>>, bound: Option<u64>) -> Self {
        let bounds = bound.into_iter().map(|bound| ("count", bound as f64)).collect();
        let values: Vec<_> = count.into().into_iter().map(|count| ("count", count as f64)).collect();
        Self { name: name.to_owned(), count: values.len(), values, bounds, is_time: false, verdict: None }.judged()
    }

    fn judged(mut self) -> Self {
        let one = |(name, bound): &(&'static str, f64)| {
            let value = self.values.iter().find(|(other, _)| other == name);
            match value {
                None => Verdict::Unknown,
                Some((_, value)) if value <= bound => Verdict::Pass,
                Some(_) => Verdict::Fail,
            }
        };
        self.verdict = self.bounds.iter().map(one).max();
        self
    }

    /// A line of the report.
    pub fn line(&self) -> String {
        let show = |value: f64| if self.is_time { show_seconds(value) } else { format!("{value:.0}") };
        let values: Vec<String> = match self.values.as_slice() {
            [] => vec!["not measured".to_owned()],
            [("count", value)] => vec![show(*value)],
            values => values.iter().map(|(name, value)| format!("{name} {}", show(*value))).collect(),
        };
        let bounds: Vec<String> = self
            .bounds
            .iter()
            .map(|(name, bound)| if *name == "count" { show(*bound) } else { format!("{name} {}", show(*bound)) })
            .collect();
        let of = if self.is_time && self.count > 0 { format!(" of {}", self.count) } else { String::new() };
        let bounds = if bounds.is_empty() { String::new() } else { format!("; at most {}", bounds.join(", ")) };
        let verdict = self.verdict.map_or_else(|| "       ".to_owned(), |verdict| format!("{verdict:<7}"));
        format!("{verdict} {}: {}{of}{bounds}", self.name, values.join(", "))
    }
}

/// All of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// In the order shown.
    pub figures: Vec<Figure>,
    /// What is wrong with the logs.
    pub logs: LogJudgement,
    /// The worst of all; [`Verdict::Unknown`] where something went wrong that is not the system's fault.
    pub verdict: Verdict,
}

/// Faults of a log that mean: an acked message is not there.
const LOST: [LogFault; 2] = [LogFault::Lost, LogFault::Shrunk];
/// Something is at the wrong place.
const MISPLACED: [LogFault; 8] = [
    LogFault::Taken,
    LogFault::Moved,
    LogFault::Changed,
    LogFault::Hole,
    LogFault::Late,
    LogFault::OutOfTime,
    LogFault::OutOfTurn,
    LogFault::Disordered,
];

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Judges a run. `troubles`: what went wrong in playing it.
pub fn judge(observed: &Observed, bounds: &Bounds, regions: Regions, troubles: usize) -> Judged {
    let logs = judge_logs(&observed.history(), regions);
    let mut figures = Vec::new();
    for fault in &observed.faults {
        let id = &fault.id;
        figures.push(Figure::of_times(format!("next ack after {id}"), next_acks(observed, fault), bounds.next_ack));
        if fault.met.is_some() {
            let live = live_again(observed, fault);
            figures.push(Figure::of_times(format!("live again after {id}"), live, bounds.live_again));
        }
        if fault.end_ns.is_some() {
            let caught_up = caught_up(observed, fault).into_iter().collect();
            figures.push(Figure::of_times(format!("caught up after {id}"), caught_up, bounds.caught_up));
        }
        if let Some(limits) = bounds.routes_complete {
            let complete = routes_complete(observed, fault).into_iter().collect();
            figures.push(Figure::of_times(format!("routes complete after {id}"), complete, limits));
        }
    }
    let (acks, shown) = undisturbed(observed);
    figures.push(Figure::of_times("ack outside of faults".to_owned(), acks, bounds.ack_outside_faults));
    figures.push(Figure::of_times("shown outside of faults".to_owned(), shown, bounds.shown_outside_faults));
    let (not_acked, not_shown) = observed.missing();
    let told_twice = observed.messages.iter().filter(|message| message.told > 1).count();
    let doubled = logs.count(&[LogFault::Doubled]) + told_twice;
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    figures.push(Figure::of_count("sent", number(logs.sent), None));
    figures.push(Figure::of_count("not acked", number(not_acked), bounds.not_acked));
    figures.push(Figure::of_count("acked and not shown", number(not_shown), bounds.not_shown));
    figures.push(Figure::of_count("lost", number(logs.count(&LOST)), bounds.lost));
    figures.push(Figure::of_count("doubled", number(doubled), bounds.doubled));
    let phantoms = logs.count(&[LogFault::Phantom]);
    figures.push(Figure::of_count("out of order", number(logs.count(&MISPLACED) + phantoms), bounds.out_of_order));
    if !observed.memory.is_empty() {
        figures.push(Figure::of_count("memory growth, MiB", memory_growth_mib(observed), bounds.memory_growth_mib));
        figures.push(Figure::of_count("processes that ended by themselves", observed.died, Some(0)));
    }
    let of_figures = figures.iter().filter_map(|figure| figure.verdict).max().unwrap_or(Verdict::Unknown);
    // Where no device that is up to date has looked at what was acked, nobody knows whether it is there.
    let is_known = troubles == 0 && observed.missed_events == 0 && logs.acked > 0 && logs.unread == 0;
    let verdict = if is_known { of_figures } else { of_figures.max(Verdict::Unknown) };
    Judged { figures, logs, verdict }
}

/// For each client and conversation that a fault met: until a message is acked that was written since.
fn next_acks(observed: &Observed, fault: &Struck) -> Vec<f64> {
    let mut writers: std::collections::BTreeMap<(usize, usize), f64> = std::collections::BTreeMap::new();
    let since = observed.messages.iter().filter(|message| message.sent_ns >= fault.begin_ns && !message.refused);
    for message in since.filter(|message| fault.met(message.from)) {
        let waited = message.acked.as_ref().map_or(f64::INFINITY, |(at_ns, _)| seconds(at_ns - fault.begin_ns));
        let best = writers.entry((message.from, message.conversation)).or_insert(f64::INFINITY);
        *best = best.min(waited);
    }
    writers.into_values().collect()
}

/// For each client that a fault cut off: until it is live again. One that never was cut off is not counted.
fn live_again(observed: &Observed, fault: &Struck) -> Vec<f64> {
    let met = fault.met.iter().flatten().filter_map(|number| observed.clients.get(*number));
    let of = |states: &[(u64, Option<(String, String)>)]| {
        let (before, after): (Vec<_>, Vec<_>) = states.iter().partition(|(at_ns, _)| *at_ns < fault.begin_ns);
        let there = before.last().and_then(|(_, at)| at.as_ref());
        // It may be live somewhere else without having been anything else between.
        let lost = after.iter().position(|(_, at)| at.is_none() || at.as_ref() != there)?;
        let back = after[lost..].iter().find(|(_, at)| at.is_some());
        Some(back.map_or(f64::INFINITY, |(at_ns, _)| seconds(at_ns - fault.begin_ns)))
    };
    met.filter_map(|client| of(&client.states)).collect()
}

/// From a fault's end until everything written before it is shown.
fn caught_up(observed: &Observed, fault: &Struck) -> Option<f64> {
    let end_ns = fault.end_ns?;
    let before = observed.messages.iter().filter(|message| message.sent_ns <= end_ns && !message.refused);
    let shown =
        before.map(|message| message.shown_ns.map_or(f64::INFINITY, |at_ns| seconds(at_ns.saturating_sub(end_ns))));
    shown.reduce(f64::max)
}

/// From a fault's end, or its beginning where it stays, until the tables have a route for every client. `None`: none was
/// seen to be missing.
fn routes_complete(observed: &Observed, fault: &Struck) -> Option<f64> {
    let all = u64::try_from(observed.clients.len()).ok();
    let since = observed.routes.iter().filter(|(at_ns, _)| *at_ns >= fault.begin_ns);
    let (lacking_ns, _) = since.clone().find(|(_, routes)| *routes != all)?;
    let from_ns = fault.end_ns.unwrap_or(fault.begin_ns);
    let mut after = since.filter(|(at_ns, _)| *at_ns >= from_ns.max(*lacking_ns));
    let whole = after.find(|(_, routes)| *routes == all);
    Some(whole.map_or(f64::INFINITY, |(at_ns, _)| seconds(at_ns - from_ns)))
}

/// How long acks and deliveries took that no fault touched.
fn undisturbed(observed: &Observed) -> (Vec<f64>, Vec<f64>) {
    let windows: Vec<(u64, u64)> = observed.faults.iter().map(Struck::window_ns).collect();
    let is_touched = |from_ns: u64, to_ns: u64| windows.iter().any(|(begin, end)| from_ns <= *end && *begin <= to_ns);
    let took = |from_ns: u64, to_ns: Option<u64>| match to_ns {
        // Whatever was never answered is late, unless it was written while something struck.
        None => (!is_touched(from_ns, from_ns)).then_some(f64::INFINITY),
        Some(to_ns) => (!is_touched(from_ns, to_ns)).then(|| seconds(to_ns - from_ns)),
    };
    let of = |to: &dyn Fn(&super::observed::Sent) -> Option<u64>| {
        let not_refused = observed.messages.iter().filter(|message| !message.refused);
        not_refused.filter_map(|message| took(message.sent_ns, to(message))).collect()
    };
    (of(&|message| message.acked.as_ref().map(|(at_ns, _)| *at_ns)), of(&|message| message.shown_ns))
}

/// How much more a process held in the last quarter of a fault than in the second, where caches are full already; the
/// most of any process and fault. None: no process was read in both.
fn memory_growth_mib(observed: &Observed) -> Option<u64> {
    let mut most = None;
    for fault in &observed.faults {
        let end_ns = fault.end_ns.unwrap_or(fault.begin_ns);
        let quarter = (end_ns - fault.begin_ns) / 4;
        let mean = |name: &str, from: u64, to: u64| {
            let of = observed.memory.iter().filter(|(at_ns, other, _)| other == name && (from..=to).contains(at_ns));
            let all: Vec<u64> = of.map(|(_, _, bytes)| *bytes).collect();
            (!all.is_empty()).then(|| all.iter().sum::<u64>() / all.len() as u64)
        };
        let names: std::collections::BTreeSet<&str> =
            observed.memory.iter().map(|(_, name, _)| name.as_str()).collect();
        for name in names {
            let second = mean(name, fault.begin_ns + quarter, fault.begin_ns + 2 * quarter);
            let last = mean(name, fault.begin_ns + 3 * quarter, end_ns);
            if let (Some(second), Some(last)) = (second, last) {
                most = most.max(Some(last.saturating_sub(second) >> 20));
            }
        }
    }
    most
}

#[cfg(test)]
mod tests;
