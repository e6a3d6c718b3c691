//! How long after a fault the first message comes again.
//!
//! A fault concerns devices by what it hits, see [`crate::concern`]: its device; the devices that were connected to its
//! region or edge as it began; for a path between two regions the devices connected to either, and only messages that
//! must cross it.
//!
//! The time counts from the fault's end, or from its beginning if it never ends (then it shows how the system gets along
//! with it); but if nothing was waiting for a concerned device at that moment, from the next invocation of a message
//! for one: else the writers' leisure would be measured. It ends when the first message of another user that was sent
//! to a concerned device is shown there as new. A fault that came several times is measured each time, and the longest
//! counts.
//!
//! If nothing comes although something was waiting, the limit is missed; if nothing was ever waiting, the run shows
//! nothing of it, and is UNKNOWN.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::concern::concerned;
use crate::facts::{Facts, Message, Span};
use crate::findings::{Findings, time};
use crate::verdict::Verdict;

/// Of one time that a fault held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Which fault.
    pub fault: String,
    /// Of which kind.
    pub kind: String,
    /// What it hit.
    pub target: String,
    /// When it began, in nanoseconds since the run began.
    pub begin_ns: u64,
    /// When it ended; nothing if it held when writing was over.
    pub end_ns: Option<u64>,
    /// Packets, tasks or stores that it hit.
    pub hits: u64,
    /// How many devices it concerned.
    pub concerned: usize,
    /// How long until the first message came again, in nanoseconds; nothing if none came.
    pub took_ns: Option<u64>,
    /// How long it may take.
    pub limit_ns: Option<u64>,
}

pub(crate) fn check(facts: &Facts<'_>, findings: &mut Findings) -> Vec<Recovery> {
    let mut shown_at: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for shown in facts.shown.iter().filter(|s| s.new) {
        shown_at.entry((shown.message, shown.device)).or_insert(shown.at_ns);
    }
    let sent = facts.messages.values().filter(|m| m.refused_ns.is_none() && m.failed.is_none());
    let mut ways: Vec<Way<'_>> = sent
        .map(|message| {
            let others = facts.owed(message).filter(|(device, _)| *device != message.device);
            let times = others.map(|(device, _)| shown_at.get(&(message.id, device)).copied());
            Way { message, done_ns: times.collect::<Option<Vec<u64>>>().map(|all| all.into_iter().max().unwrap_or(0)) }
        })
        .collect();
    ways.sort_by_key(|way| way.message.nth);
    facts.spans.iter().map(|span| measure(facts, span, &ways, &shown_at, findings)).collect()
}

/// A message, and when it had been shown wherever it must be.
struct Way<'f> {
    message: &'f Message<'f>,
    done_ns: Option<u64>,
}

fn measure(
    facts: &Facts<'_>,
    span: &Span<'_>,
    ways: &[Way<'_>],
    shown_at: &BTreeMap<(&str, &str), u64>,
    findings: &mut Findings,
) -> Recovery {
    let concerned = concerned(facts, span);
    let (line, from_ns) = if span.standing { span.begin } else { span.end.unwrap_or(span.begin) };
    let mut measured = Recovery {
        fault: span.fault.to_owned(),
        kind: span.kind.to_owned(),
        target: span.target.to_owned(),
        begin_ns: span.begin.1,
        end_ns: span.end.filter(|_| !span.standing).map(|(_, end_ns)| end_ns),
        hits: span.hits,
        concerned: concerned.devices().count(),
        took_ns: None,
        limit_ns: facts.run.expect.recover_within_ns.get(span.fault).copied(),
    };
    let for_one = |message: &Message<'_>, device: &str| {
        message.user != facts.user(device) && concerned.has(device) && concerned.passes(message.device, device)
    };
    let first = facts.shown[facts.shown.partition_point(|s| s.line <= line)..].iter().find(|shown| {
        shown.new && facts.messages.get(shown.message).is_some_and(|message| for_one(message, shown.device))
    });
    // What waited then, or was the first to be sent afterwards.
    let waits = |way: &&Way<'_>| {
        facts.owed(way.message).any(|(device, _)| {
            let late = shown_at.get(&(way.message.id, device)).is_none_or(|at_ns| *at_ns >= from_ns);
            late && for_one(way.message, device)
        })
    };
    let pending = |way: &&Way<'_>| way.message.invoked_ns >= from_ns || way.done_ns.is_none_or(|done| done >= from_ns);
    let waiting = ways.iter().filter(pending).find(waits).map(|way| way.message.invoked_ns.max(from_ns));
    measured.took_ns = first.map(|shown| shown.at_ns - waiting.unwrap_or(from_ns).clamp(from_ns, shown.at_ns));
    let Some(limit_ns) = measured.limit_ns else { return measured };
    match (measured.took_ns, waiting) {
        (Some(took_ns), _) if took_ns > limit_ns => {
            let at_ns = first.map_or(facts.last_ns, |shown| shown.at_ns);
            findings.add("recovery", facts.too_slow(), at_ns, || {
                let (fault, took, limit) = (span.fault, time(took_ns), time(limit_ns));
                format!("after {fault} it took {took} until a message came again, at most {limit} is allowed")
            });
        }
        (Some(_), _) => {}
        (None, Some(_)) => findings.fail("recovery", facts.last_ns, || {
            format!("after {} no message came to any device that it concerned", span.fault)
        }),
        (None, None) => findings.add("recovery", Verdict::Unknown, facts.last_ns, || {
            format!("nothing was sent that could show how long it takes after {}", span.fault)
        }),
    }
    measured
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Example;

    const S: u64 = 1_000_000_000;

    fn limited(limit_ns: u64) -> Example {
        let limit = |e: &mut crate::Expect| {
            e.recover_within_ns.insert("dark".into(), limit_ns);
        };
        Example::good().expect(limit).begin("dark", "outage", "bob-phone")
    }

    #[test]
    fn what_waits_counts_from_the_end_of_the_fault() {
        let example = |limit| {
            let dark = limited(limit).invoke("alice-phone", "alice+bob").ack("alice-phone/2", "eu").wait(20 * S);
            let dark = dark.finish("dark", 3).wait(2 * S);
            dark.show_everywhere("alice-phone/2").ends_well()
        };
        assert_eq!(example(3 * S).found(), [""; 0]);
        assert_eq!(example(S).found(), ["recovery"]);
        let took_ns = example(S).judge().figures.recoveries[0].took_ns.unwrap();
        assert!((2 * S..3 * S).contains(&took_ns), "{took_ns}");
    }

    #[test]
    fn the_leisure_of_writers_is_not_measured() {
        let idle = limited(S).finish("dark", 3).wait(60 * S).send("alice-phone", "alice+bob");
        assert_eq!(idle.ends_well().found(), [""; 0]);
    }

    #[test]
    fn own_messages_and_other_devices_show_nothing() {
        let example = limited(S).finish("dark", 3).wait(S).send("bob-tablet", "alice+bob").ends_well();
        assert_eq!(example.found(), ["recovery"]);
        assert_eq!(example.judge().verdict, Verdict::Unknown);
    }

    #[test]
    fn if_nothing_comes_although_something_waits_the_limit_is_missed() {
        let example = limited(S).invoke("alice-phone", "alice+bob").ack("alice-phone/2", "eu").finish("dark", 3);
        let found = example.ends_well().found();
        assert!(found.contains(&"recovery".to_owned()), "{found:?}");
    }

    #[test]
    fn a_fault_without_an_end_is_measured_from_its_beginning() {
        let judged = limited(60 * S).wait(S).send("alice-phone", "alice+bob").stands("dark", 9).ends_well().judge();
        let recovery = &judged.figures.recoveries[0];
        assert_eq!((judged.verdict, recovery.end_ns), (Verdict::Pass, None), "{judged:?}");
        assert!(recovery.took_ns.unwrap() < S);
    }
}
