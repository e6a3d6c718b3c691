//! Durability: what was acked is there in the end, and what was sent is acked in the end.
//!
//! An acked message must be in the timeline of every device of every user who was a member from before it was sent
//! until the end. Of removed users nothing is asked: what a removal overtakes depends on where it was applied first.
//! Devices beyond reach (see [`crate::concern`]) are left out, and messages that their users erased.
//!
//! A scenario that destroys a region says so with `may_lose`. Then a message may be missing if all that ever decided on
//! it are such regions, and its device was not told that it is stable. Without commits in the history (the real-time
//! driver sees none) the region counts to which the device was connected as it was acked. Losses of this kind are
//! counted, and that is all.

use std::collections::BTreeSet;

use crate::concern::BeyondReach;
use crate::facts::{Facts, Message};
use crate::findings::{Findings, names, time};
use crate::verdict::Verdict;

/// What was lost, by message.
#[derive(Debug, Default)]
pub(crate) struct Losses<'a> {
    /// Although it must not be.
    pub(crate) lost: BTreeSet<&'a str>,
    /// As the scenario allows.
    pub(crate) allowed: BTreeSet<&'a str>,
    /// Sent, and never acked or failed.
    pub(crate) unacked: u64,
}

pub(crate) fn check<'a>(facts: &Facts<'a>, beyond: &BeyondReach<'a>, findings: &mut Findings) -> Losses<'a> {
    let mut losses = Losses::default();
    let mut telling: BTreeSet<&str> = BTreeSet::new();
    for by_device in facts.timelines.values() {
        telling.extend(by_device.keys());
    }
    let mut silent = BTreeSet::new();
    let held: std::collections::BTreeMap<(&str, &str), BTreeSet<&str>> = facts
        .timelines
        .iter()
        .flat_map(|(conversation, of)| of.iter().map(move |(device, timeline)| ((*device, *conversation), timeline)))
        .map(|(key, timeline)| (key, timeline.messages.iter().map(String::as_str).collect()))
        .collect();
    for message in in_order(facts) {
        let Some((acked_ns, _)) = message.acked else {
            unacked(facts, message, &mut losses, findings);
            continue;
        };
        let mut missing = Vec::new();
        for (device, _) in facts.owed(message).filter(|(device, _)| !beyond.devices.contains(device)) {
            if !telling.contains(device) {
                silent.insert(device);
            } else if !held.get(&(device, message.conversation)).is_some_and(|held| held.contains(message.id)) {
                missing.push(device);
            }
        }
        if missing.is_empty() {
            continue;
        }
        if may_be_lost(facts, message) {
            losses.allowed.insert(message.id);
            continue;
        }
        losses.lost.insert(message.id);
        findings.fail("durability", facts.last_ns, || {
            let stable = message.stable_ns.map_or(String::new(), |ns| format!(", stable at {}", time(ns)));
            format!(
                "{} in {} was acked at {}{stable}, and is not shown in the end on {}",
                message.id,
                message.conversation,
                time(acked_ns),
                names(missing)
            )
        });
    }
    for device in silent {
        findings.add("history", Verdict::Invalid, facts.last_ns, || {
            format!("nothing is told of what {device} shows in the end, and no fault excuses it")
        });
    }
    losses
}

fn in_order<'f, 'a>(facts: &'f Facts<'a>) -> Vec<&'f Message<'a>> {
    let mut all: Vec<_> =
        facts.messages.values().filter(|m| m.refused_ns.is_none() && !facts.erased.contains_key(m.id)).collect();
    all.sort_by_key(|m| m.nth);
    all
}

fn unacked<'a>(facts: &Facts<'a>, message: &Message<'a>, losses: &mut Losses<'a>, findings: &mut Findings) {
    if message.failed.is_some() {
        return;
    }
    losses.unacked += 1;
    if !facts.run.expect.unacked {
        findings.fail("acks", facts.last_ns, || {
            format!("{} was sent at {}, and never acked", message.id, time(message.invoked_ns))
        });
    }
}

fn may_be_lost(facts: &Facts<'_>, message: &Message<'_>) -> bool {
    let may = |region: &&str| facts.run.expect.may_lose.iter().any(|r| r == region);
    let mut regions: Vec<&str> = message.commits.iter().map(|origin| origin.region).collect();
    if regions.is_empty() {
        regions.extend(message.acked.and_then(|(_, region)| region));
    }
    message.stable_ns.is_none() && !regions.is_empty() && regions.iter().all(may)
}

#[cfg(test)]
mod tests {
    use crate::examples::Example;
    use crate::verdict::Verdict;

    /// One message, acked in eu.
    fn sent() -> Example {
        Example::good().drop_from_timeline("bob-phone", "alice-phone/1")
    }

    #[test]
    fn an_acked_message_that_a_device_lacks_is_lost() {
        assert_eq!(Example::good().found(), [""; 0]);
        let judged = sent().judge();
        assert_eq!(judged.verdict, Verdict::Fail);
        assert!(judged.findings.iter().any(|f| f.check == "durability" && f.text.contains("bob-phone")), "{judged:?}");
        assert_eq!(judged.figures.lost, 1);
    }

    #[test]
    fn what_a_scenario_allows_to_be_lost_is_counted() {
        let everywhere = |e: Example| {
            e.drop_from_timeline("bob-phone", "alice-phone/1")
                .drop_from_timeline("bob-tablet", "alice-phone/1")
                .without_stable("alice-phone/1")
        };
        let judged = everywhere(Example::good().may_lose("eu")).judge();
        assert_eq!((judged.verdict, judged.figures.lost, judged.figures.lost_allowed), (Verdict::Pass, 0, 1));
        // Another region held it too.
        let judged = everywhere(Example::good().may_lose("us")).judge();
        assert_eq!((judged.verdict, judged.figures.lost), (Verdict::Fail, 1));
    }

    #[test]
    fn what_is_stable_may_not_be_lost_at_all() {
        assert_eq!(sent().may_lose("eu").judge().verdict, Verdict::Fail);
    }

    #[test]
    fn what_was_never_acked_is_told_unless_the_scenario_says_so() {
        let never = || Example::good().without_ack("alice-phone/1");
        assert_eq!(never().found(), ["acks"]);
        assert_eq!(never().expect(|e| e.unacked = true).found(), [""; 0]);
    }

    #[test]
    fn of_a_removed_user_nothing_is_asked() {
        let removed = Example::good_group().removed("team", "carol").send("bob-phone", "team");
        assert_eq!(removed.ends_well().drop_timelines("carol-phone").found(), [""; 0]);
        let member = Example::good_group().ends_well().drop_timelines("carol-phone");
        assert_eq!(member.found(), ["history"]);
    }

    #[test]
    fn a_device_of_which_nothing_is_told_makes_no_sense() {
        let judged = Example::good().drop_timelines("bob-phone").judge();
        assert_eq!(judged.verdict, Verdict::Invalid);
    }
}
