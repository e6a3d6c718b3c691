//! From what clients told to numbers.
//!
//! A message counts from the moment at which its author's client took it until the first at which the other device would
//! show it. What was never shown counts as shown at the end of the run: leaving it out would reward whoever loses what is
//! late.

use std::collections::BTreeMap;

use serde::Serialize;
use tern_netsim_verdict::{Event, Line};

use super::Peer;
use super::told::{Told, What};

/// How long messages took, in nanoseconds; all of nothing is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// How many were sent.
    pub sent: usize,
    /// Half took at most so long.
    pub p50_ns: u64,
    /// 95 of 100.
    pub p95_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// All.
    pub max_ns: u64,
}

impl Times {
    /// p50, p95, p99 and max.
    pub fn in_order(&self) -> [u64; 4] {
        [self.p50_ns, self.p95_ns, self.p99_ns, self.max_ns]
    }

    fn of(mut all: Vec<u64>) -> Self {
        all.sort_unstable();
        // The nearest rank.
        let at = |percent: usize| {
            let rank = (all.len() * percent).div_ceil(100).clamp(1, all.len().max(1));
            all.get(rank - 1).copied().unwrap_or(0)
        };
        Self { sent: all.len(), p50_ns: at(50), p95_ns: at(95), p99_ns: at(99), max_ns: at(100) }
    }
}

/// What became of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// Its name.
    pub message: String,
    /// Its author's device.
    pub from: String,
    /// When it was taken, in nanoseconds since the run began.
    pub sent_ns: u64,
    /// When it was shown.
    pub shown_ns: Option<u64>,
}

/// One system's part of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// `tern`, or the peer's name.
    pub name: String,
    /// How many messages were shown.
    pub shown: usize,
    /// Of all messages.
    pub times: Times,
    /// By author's device.
    pub by_author: BTreeMap<String, Times>,
    /// How often a device was live again after its first time, all devices together: for tern also when it only had to
    /// catch up on the same connection.
    pub live_again: usize,
    /// Bytes up and down between a device and the servers, headers of IP included.
    pub bytes: BTreeMap<String, (u64, u64)>,
    /// Every message, in the order in which they were sent.
    pub fates: Vec<Fate>,
}

impl Flow {
    /// tern's, from its history.
    pub fn of_tern(lines: &[Line], end_ns: u64, bytes: &BTreeMap<String, (u64, u64)>) -> Self {
        let told = lines.iter().filter_map(|line| {
            let (device, what, message) = match &line.event {
                Event::Invoke { device, message, .. } => (device, What::Sent, Some(message)),
                Event::Shown { device, message, new: true, .. } => (device, What::Shown, Some(message)),
                Event::Connection { device, state, .. } if state == "live" => (device, What::Live, None),
                _ => return None,
            };
            Some((device.clone(), Told { at_ns: line.at_ns, what, message: message.cloned() }))
        });
        Self::of("tern", &told.collect::<Vec<_>>(), end_ns, bytes)
    }

    /// A peer's, from what its clients told.
    pub fn of_peer(peer: Peer, told: &[(String, Told)], end_ns: u64, bytes: &BTreeMap<String, (u64, u64)>) -> Self {
        Self::of(peer.name(), told, end_ns, bytes)
    }

    fn of(name: &str, told: &[(String, Told)], end_ns: u64, bytes: &BTreeMap<String, (u64, u64)>) -> Self {
        let mut shown: BTreeMap<&str, u64> = BTreeMap::new();
        let mut live: BTreeMap<&str, usize> = BTreeMap::new();
        let mut fates = Vec::new();
        for (device, told) in told {
            match (told.what, &told.message) {
                (What::Sent, Some(message)) => fates.push(Fate {
                    message: message.clone(),
                    from: device.clone(),
                    sent_ns: told.at_ns,
                    shown_ns: None,
                }),
                // Its author's own device may show it too.
                (What::Shown, Some(message)) if !message.starts_with(&format!("{device}/")) => {
                    let at_ns = shown.entry(message).or_insert(told.at_ns);
                    *at_ns = told.at_ns.min(*at_ns);
                }
                (What::Live, _) => *live.entry(device).or_default() += 1,
                _ => {}
            }
        }
        for fate in &mut fates {
            fate.shown_ns = shown.get(fate.message.as_str()).copied();
        }
        Self {
            live_again: live.values().map(|count| count.saturating_sub(1)).sum(),
            bytes: bytes.clone(),
            ..Self::of_fates(name, fates, end_ns)
        }
    }

    /// Of what became of messages alone.
    pub fn of_fates(name: &str, mut fates: Vec<Fate>, end_ns: u64) -> Self {
        fates.sort_by_key(|fate| fate.sent_ns);
        let took = |fate: &Fate| fate.shown_ns.unwrap_or(end_ns).saturating_sub(fate.sent_ns);
        let mut by_author: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for fate in &fates {
            by_author.entry(fate.from.clone()).or_default().push(took(fate));
        }
        Self {
            name: name.to_owned(),
            shown: fates.iter().filter(|fate| fate.shown_ns.is_some()).count(),
            times: Times::of(fates.iter().map(took).collect()),
            by_author: by_author.into_iter().map(|(device, all)| (device, Times::of(all))).collect(),
            live_again: 0,
            bytes: BTreeMap::new(),
            fates,
        }
    }
}

/// How late a run's packets were at the 99th percentile, and the shortest way that was to be simulated.
pub fn lateness(lines: &[Line]) -> (u64, u64) {
    let late = lines.iter().find_map(|line| match &line.event {
        Event::Lateness { p99_ns, delay_ns, .. } => Some((*p99_ns, *delay_ns)),
        _ => None,
    });
    // A history that does not say it shows nothing.
    late.unwrap_or((u64::MAX, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn told(device: &str, at_ms: u64, what: What, message: &str) -> (String, Told) {
        let message = (!message.is_empty()).then(|| message.to_owned());
        (device.to_owned(), Told { at_ns: at_ms * MS, what, message })
    }

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let times = Times::of((1..=200).rev().collect());
        assert_eq!(times, Times { sent: 200, p50_ns: 100, p95_ns: 190, p99_ns: 198, max_ns: 200 });
        assert_eq!(Times::of(vec![7]), Times { sent: 1, p50_ns: 7, p95_ns: 7, p99_ns: 7, max_ns: 7 });
        assert_eq!(Times::of(Vec::new()), Times::default());
    }

    #[test]
    fn what_was_never_shown_counts_until_the_end_and_what_was_shown_twice_once() {
        let all = [
            told("phone", 100, What::Live, ""),
            told("phone", 1000, What::Sent, "phone/1"),
            told("phone", 2000, What::Sent, "phone/2"),
            told("phone", 2001, What::Shown, "phone/2"),
            // Heard late, by another process.
            told("laptop", 500, What::Sent, "laptop/1"),
            told("laptop", 1200, What::Shown, "phone/1"),
            told("laptop", 9000, What::Shown, "phone/1"),
            told("phone", 2500, What::Live, ""),
            told("phone", 600, What::Shown, "laptop/1"),
        ];
        let flow = Flow::of("tcp", &all, 10_000 * MS, &BTreeMap::new());
        assert_eq!((flow.shown, flow.live_again), (2, 1));
        assert_eq!((flow.times.sent, flow.times.p50_ns, flow.times.max_ns), (3, 200 * MS, 8000 * MS));
        assert_eq!(flow.by_author["laptop"].max_ns, 100 * MS);
        let order: Vec<&str> = flow.fates.iter().map(|fate| fate.message.as_str()).collect();
        assert_eq!(order, ["laptop/1", "phone/1", "phone/2"]);
    }

    #[test]
    fn terns_flow_is_read_from_its_history() {
        let line = |at_ms: u64, event| Line { at_ns: at_ms * MS, event };
        let invoke = |message: &str| Event::Invoke {
            device: "phone".into(),
            conversation: "a+b".into(),
            message: message.into(),
            bytes: 120,
        };
        let shown = |device: &str, new| Event::Shown {
            device: device.into(),
            conversation: "a+b".into(),
            message: "phone/1".into(),
            new,
        };
        let lines = [
            line(10, invoke("phone/1")),
            line(10, shown("phone", true)),
            line(40, shown("laptop", true)),
            line(50, shown("laptop", false)),
            line(60, Event::Lateness { packets: 9, p50_ns: 1, p99_ns: 2, max_ns: 3, delay_ns: 4 }),
        ];
        let flow = Flow::of_tern(&lines, 100 * MS, &BTreeMap::new());
        assert_eq!((flow.name.as_str(), flow.shown, flow.times.max_ns), ("tern", 1, 30 * MS));
        assert_eq!(lateness(&lines), (2, 4));
        assert_eq!(lateness(&lines[..4]), (u64::MAX, 0));
    }
}
