//! In the end everything agrees: the logs of all regions, the rows of all regions, the timelines and unread counts of
//! all devices of a user; and the run ends because everything is calm, soon enough.
//!
//! Left out are regions and devices beyond reach (see [`crate::concern`]), and of timelines what was lost as the scenario
//! allows, or is not settled (failed, or never acked): it stands only where it was written. A region that tells nothing
//! of what others hold differs from them.
//!
//! The end's line is written when a run has calmed down, so the time from the beginning of the quiet phase until then is
//! what is limited by `converge_within_ns`; a driver looks for calm often, so it is hardly too long.

use std::collections::{BTreeMap, BTreeSet};

use crate::concern::BeyondReach;
use crate::facts::Facts;
use crate::findings::{Findings, names, time};

/// How long it took, if the run has calmed down at all.
pub(crate) fn check<'a>(
    facts: &Facts<'a>,
    beyond: &BeyondReach<'a>,
    allowed: &BTreeSet<&'a str>,
    findings: &mut Findings,
) -> Option<u64> {
    let regions: Vec<&str> =
        facts.run.cast.regions.iter().map(String::as_str).filter(|r| !beyond.regions.contains(r)).collect();
    let nothing = ("nothing", "");
    for (conversation, told) in &facts.logs {
        let of = |region: &str| *told.get(region).unwrap_or(&nothing);
        differ(&regions, of, |a, b| {
            findings.fail("convergence", facts.last_ns, || {
                let (x, y) = (of(a), of(b));
                let what = if x.0 == y.0 { "the same heads, but another digest".to_owned() } else { y.0.to_owned() };
                format!("the log of {conversation} in {a} holds {}, in {b} {what}", x.0)
            });
        });
    }
    for ((user, conversation), told) in &facts.rows {
        let of = |region: &str| *told.get(region).unwrap_or(&"nothing");
        differ(&regions, of, |a, b| {
            findings.fail("convergence", facts.last_ns, || {
                format!("the row of {user} for {conversation} in {a} says {}, in {b} {}", of(a), of(b))
            });
        });
    }
    let silent: Vec<&str> = regions.iter().copied().filter(|r| facts.stopped.contains(r)).collect();
    if !silent.is_empty() {
        findings.fail("convergence", facts.last_ns, || {
            format!("{} does not run in the end, and no fault excuses it", names(silent))
        });
    }
    devices(facts, beyond, allowed, findings);
    calm(facts, findings)
}

/// Tells the first region that differs from the first of all; more would be said twice.
fn differ<T: PartialEq>(regions: &[&str], of: impl Fn(&str) -> T, mut tell: impl FnMut(&str, &str)) {
    if let Some((first, others)) = regions.split_first()
        && let Some(other) = others.iter().find(|other| of(other) != of(first))
    {
        tell(first, other);
    }
}

/// Devices of one user are compared with the first of them.
fn devices<'a>(facts: &Facts<'a>, beyond: &BeyondReach<'a>, allowed: &BTreeSet<&'a str>, findings: &mut Findings) {
    let settled = |id: &&str| {
        facts.messages.get(id).is_none_or(|m| m.failed.is_none() && m.acked.is_some() && !allowed.contains(id))
    };
    for (conversation, of) in &facts.timelines {
        let mut first: BTreeMap<&str, Shows<'_>> = BTreeMap::new();
        for (device, timeline) in of.iter().filter(|(device, _)| !beyond.devices.contains(*device)) {
            let messages: Vec<&str> = timeline.messages.iter().map(String::as_str).filter(settled).collect();
            let now = Shows { device, messages, unread: timeline.unread };
            let Some(other) = first.get(facts.user(device)) else {
                first.insert(facts.user(device), now);
                continue;
            };
            if other.messages != now.messages {
                findings.fail("convergence", timeline.at_ns, || {
                    let at = other.messages.iter().zip(&now.messages).take_while(|(a, b)| a == b).count();
                    let name = |shows: &Shows<'_>| (*shows.messages.get(at).unwrap_or(&"nothing")).to_owned();
                    let (a, b) = (name(other), name(&now));
                    format!(
                        "{} and {device} differ in {conversation}: after {at} messages {a} against {b}",
                        other.device
                    )
                });
            }
            if let (Some((a, true)), Some((b, true))) = (other.unread, now.unread)
                && a != b
            {
                findings.fail("convergence", timeline.at_ns, || {
                    format!("{} counts {a} unread in {conversation}, and {device} {b}", other.device)
                });
            }
        }
    }
}

/// What one device shows of a conversation.
struct Shows<'a> {
    device: &'a str,
    messages: Vec<&'a str>,
    unread: Option<(u64, bool)>,
}

fn calm(facts: &Facts<'_>, findings: &mut Findings) -> Option<u64> {
    let end = facts.end.as_ref()?;
    if !end.quiet {
        findings.add("convergence", facts.too_slow(), end.at_ns, || {
            let waiting = names(end.waiting.iter().map(String::as_str));
            format!(
                "the run did not calm down; still waiting: {}",
                if waiting.is_empty() { "unknown" } else { &waiting }
            )
        });
        return None;
    }
    let took_ns = end.at_ns - facts.phase_ns("quiet")?;
    if let Some(limit_ns) = facts.run.expect.converge_within_ns.filter(|limit| took_ns > *limit) {
        findings.add("convergence", facts.too_slow(), end.at_ns, || {
            format!("it took {} until everything agreed, at most {} is allowed", time(took_ns), time(limit_ns))
        });
    }
    Some(took_ns)
}

#[cfg(test)]
mod tests {
    use crate::examples::Example;
    use crate::history::Event;

    fn change(mut edit: impl FnMut(&mut Event)) -> Vec<String> {
        Example::good().ends_well().edit(|line| edit(&mut line.event)).found()
    }

    #[test]
    fn logs_of_all_regions_must_be_equal() {
        let found = change(|e| {
            if let Event::Log { region, digest, .. } = e
                && region == "us"
            {
                *digest = "other".into();
            }
        });
        assert_eq!(found, ["convergence"]);
    }

    #[test]
    fn a_region_that_tells_nothing_of_a_log_differs() {
        let found = Example::good().ends_well().remove(|e| matches!(e, Event::Log { region, .. } if region == "us"));
        assert_eq!(found.found(), ["convergence"]);
    }

    #[test]
    fn rows_of_all_regions_must_be_equal() {
        let found = change(|e| {
            if let Event::Row { region, user, row, .. } = e
                && region == "us"
                && user == "bob"
            {
                row.push_str(" muted");
            }
        });
        assert_eq!(found, ["convergence"]);
    }

    #[test]
    fn a_users_devices_must_show_the_same_and_count_the_same() {
        let own = Example::good().invoke("alice-phone", "alice+bob").expect(|e| e.unacked = true).ends_well();
        assert_eq!(own.drop_from_timeline("alice-tablet", "alice-phone/2").found(), [""; 0]);
        let found = Example::good().drop_from_timeline("bob-tablet", "alice-phone/1").found();
        assert!(found.contains(&"convergence".to_owned()), "{found:?}");
        let count = |exact: bool| {
            change(|e| {
                if let Event::Timeline { device, unread, .. } = e
                    && device == "bob-tablet"
                {
                    *unread = Some((5, exact));
                }
            })
        };
        assert_eq!(count(true), ["convergence"]);
        assert_eq!(count(false), [""; 0]);
    }

    #[test]
    fn a_run_that_does_not_calm_down_fails() {
        let found = change(|e| {
            if let Event::End { quiet, waiting, .. } = e {
                *quiet = false;
                *waiting = vec!["alice-phone sends".into()];
            }
        });
        assert_eq!(found, ["convergence"]);
    }

    #[test]
    fn calming_down_has_a_limit() {
        let within = |ns| Example::good().expect(|e| e.converge_within_ns = Some(ns)).ends_well().found();
        assert_eq!(within(1_000_000_000), [""; 0]);
        assert_eq!(within(1_000), ["convergence"]);
    }

    #[test]
    fn a_region_that_is_down_for_no_reason_fails_and_one_that_is_gone_does_not() {
        let silent = |e: Example| {
            let told = |e: &Event| matches!(e, Event::Log { region, .. } | Event::Row { region, .. } if region == "us");
            e.live("bob-phone", "eu").live("bob-tablet", "eu").ends_well().remove(told).found()
        };
        let found = silent(Example::good().stop("us", "killed"));
        assert!(!found.is_empty() && found.iter().all(|f| f == "convergence"), "{found:?}");
        let gone = Example::good().begin("gone", "region-destroy", "us").stop("us", "power").stands("gone", 5);
        assert_eq!(silent(gone), [""; 0]);
    }
}
