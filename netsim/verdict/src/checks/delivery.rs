//! How long it takes from a message's invocation until it appears on a member's device, one sample for each device but
//! its own; and how long until its own device is told that it is durable.

use std::collections::BTreeMap;

use crate::distribution::Distribution;
use crate::facts::Facts;
use crate::findings::{Findings, time};

/// Latencies over the run, and parts of it. A message belongs to the phase and to the faults that held when it was sent.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    pub(crate) shown: Distribution,
    pub(crate) acked: Distribution,
    pub(crate) by_phase: BTreeMap<String, Distribution>,
    pub(crate) by_fault: BTreeMap<String, Distribution>,
}

pub(crate) fn check(facts: &Facts<'_>, findings: &mut Findings) -> Latencies {
    let mut all = Vec::new();
    let mut by_phase: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut by_fault: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for shown in facts.shown.iter().filter(|s| s.new) {
        let Some(message) = facts.messages.get(shown.message) else { continue };
        let Some(took_ns) = shown.at_ns.checked_sub(message.invoked_ns) else { continue };
        if message.device == shown.device {
            continue;
        }
        all.push(took_ns);
        let before = facts.phases.partition_point(|(begin, _)| *begin <= message.invoked_ns);
        if let Some((_, phase)) = before.checked_sub(1).and_then(|i| facts.phases.get(i)) {
            by_phase.entry(phase).or_default().push(took_ns);
        }
        for span in &facts.spans {
            let held = message.invoked_ns >= span.begin.1 && span.end.is_none_or(|(_, end)| message.invoked_ns < end);
            if held {
                by_fault.entry(span.fault).or_default().push(took_ns);
            }
        }
    }
    let acked = facts.messages.values().filter_map(|m| m.acked.map(|(at_ns, _)| at_ns.saturating_sub(m.invoked_ns)));
    let of = |times: BTreeMap<&str, Vec<u64>>| {
        times.into_iter().map(|(name, times)| (name.to_owned(), Distribution::of(times))).collect()
    };
    let latencies = Latencies {
        shown: Distribution::of(all),
        acked: Distribution::of(acked.collect()),
        by_phase: of(by_phase),
        by_fault: of(by_fault),
    };
    let p99_ns = latencies.shown.percentile_ns(99);
    if let Some(limit_ns) = facts.run.expect.deliver_p99_ns.filter(|limit| p99_ns > *limit) {
        findings.add("delivery", facts.too_slow(), facts.last_ns, || {
            let count = latencies.shown.count;
            format!("99 % of {count} deliveries took up to {}, at most {} is allowed", time(p99_ns), time(limit_ns))
        });
    }
    latencies
}

#[cfg(test)]
mod tests {
    use crate::examples::Example;

    #[test]
    fn slow_delivery_is_told_with_the_limit() {
        let within = |ns| Example::good().expect(|e| e.deliver_p99_ns = Some(ns)).ends_well();
        assert_eq!(within(10_000_000_000).found(), [""; 0]);
        assert_eq!(within(1_000_000).found(), ["delivery"]);
    }

    #[test]
    fn latencies_are_of_the_phase_and_the_faults_in_which_a_message_was_sent() {
        let example = Example::good().begin("dark", "outage", "bob-phone").send("alice-phone", "alice+bob");
        let figures = example.finish("dark", 7).send("alice-phone", "alice+bob").ends_well().judge().figures;
        assert_eq!(figures.delivery.count, 9);
        assert_eq!(figures.delivery_by_fault["dark"].count, 3);
        assert_eq!(figures.delivery_by_phase["load"].count, 9);
        assert_eq!(figures.acks.count, 3);
    }
}
