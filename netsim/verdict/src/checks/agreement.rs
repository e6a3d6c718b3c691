//! All devices show a conversation in one order.
//!
//! Any two timelines are compared in what both hold. Each against the longest finds nearly everything, and says it in
//! words; what is left (three timelines that go round in a circle, each pair of which agrees) is found by asking whether
//! one order exists at all: whether the graph "stands directly before" over all timelines has no circle.
//!
//! Left out is what was never acked on the device that sent it: it waits at the bottom there, wherever it may stand
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::Facts;
use crate::findings::Findings;

pub(crate) fn check(facts: &Facts<'_>, findings: &mut Findings) {
    for (conversation, of) in &facts.timelines {
        let shown: Vec<(&str, Vec<&str>)> = of
            .iter()
            .map(|(device, timeline)| {
                let mut seen = BTreeSet::new();
                let all = timeline.messages.iter().map(String::as_str);
                let placed = all.filter(|id| {
                    let waits = facts.messages.get(id).is_some_and(|m| m.device == *device && m.acked.is_none());
                    !waits && seen.insert(*id)
                });
                (*device, placed.collect())
            })
            .collect();
        let Some((reference, longest)) = shown.iter().max_by_key(|(_, all)| all.len()) else { continue };
        let place: BTreeMap<&str, usize> = longest.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let mut agreed = true;
        for (device, all) in &shown {
            let mut before: Option<(usize, &str)> = None;
            for id in all {
                let Some(at) = place.get(id) else { continue };
                if let Some((_, earlier)) = before.filter(|(b, _)| b > at) {
                    agreed = false;
                    findings.fail("agreement", facts.last_ns, || {
                        format!("in {conversation}, {device} shows {earlier} before {id}, and {reference} after it")
                    });
                    break;
                }
                before = Some((*at, id));
            }
        }
        if agreed && let Some(id) = circle(shown.iter().map(|(_, all)| all.as_slice())) {
            findings.fail("agreement", facts.last_ns, || {
                format!("in {conversation}, the devices' orders go round in a circle through {id}")
            });
        }
    }
}

/// A message in a circle of "stands directly before", if there is one.
fn circle<'a>(timelines: impl Iterator<Item = &'a [&'a str]>) -> Option<&'a str> {
    let mut after: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut before: BTreeMap<&str, usize> = BTreeMap::new();
    for all in timelines {
        for id in all {
            before.entry(id).or_default();
        }
        for pair in all.windows(2) {
            if after.entry(pair[0]).or_default().insert(pair[1]) {
                *before.entry(pair[1]).or_default() += 1;
            }
        }
    }
    let mut free: Vec<&str> = before.iter().filter(|(_, n)| **n == 0).map(|(id, _)| *id).collect();
    while let Some(id) = free.pop() {
        before.remove(id);
        for next in after.remove(id).unwrap_or_default() {
            if let Some(n) = before.get_mut(next) {
                *n -= 1;
                if *n == 0 {
                    free.push(next);
                }
            }
        }
    }
    before.into_keys().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Example;

    #[test]
    fn two_devices_that_show_two_senders_in_different_order_disagree() {
        let both = || Example::good().send("bob-phone", "alice+bob").ends_well();
        assert_eq!(both().found(), [""; 0]);
        let found = both().swap_in_timeline("alice-phone", 0, 1).found();
        assert!(found.contains(&"agreement".to_owned()) && !found.contains(&"order".to_owned()), "{found:?}");
    }

    #[test]
    fn what_waits_on_its_own_device_has_no_place_yet() {
        let example = Example::good().invoke("alice-phone", "alice+bob").send("bob-phone", "alice+bob");
        let example = example.expect(|e| e.unacked = true).ends_well();
        // Elsewhere it is seen, before bob's message; where it waits, it stands last.
        let example = example.swap_in_timeline("alice-phone", 1, 2);
        assert!(!example.found().contains(&"agreement".to_owned()));
    }

    #[test]
    fn three_that_agree_in_pairs_can_still_go_round_in_a_circle() {
        let (a, b, c) = (["x", "y"], ["y", "z"], ["z", "x"]);
        assert!(circle([&a[..], &b[..], &c[..]].into_iter()).is_some());
        assert!(circle([&a[..], &b[..], &["x", "z"][..]].into_iter()).is_none());
    }
}
