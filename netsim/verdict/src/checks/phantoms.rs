//! Nothing is shown that was not sent, or not there, or not to him.
//!
//! A message may be seen if a device sent it, was not refused, and was not told for certain that it failed; in the
//! conversation into which it was sent; and by users who were members of it at some time until then.
//!
//! Of a removed user: a removal takes effect on arrival, region by region, so what other devices send meanwhile may or
//! may not come to him. But a device that knows of the removal names it with whatever it sends later, and a region that
//! does not hold it yet waits for it; so he must not see what was sent by a device that knew, unless he was added again
//! between its sending and its appearance (a new member may be shown what was before him). A removal of which no device
//! is told to know can't be checked, and makes the run UNKNOWN.

use std::collections::BTreeSet;

use crate::facts::Facts;
use crate::findings::{Findings, time};
use crate::verdict::Verdict;

/// Longest text that a finding repeats.
const TEXT_CHARS: usize = 60;

/// How many there were.
pub(crate) fn check(facts: &Facts<'_>, findings: &mut Findings) -> u64 {
    let mut count = 0;
    let mut told = BTreeSet::new();
    let appeared = facts.shown.iter().map(|s| (s.at_ns, s.device, s.conversation, s.message, "appears"));
    let standing = facts.timelines.iter().flat_map(|(conversation, of)| {
        of.iter().flat_map(|(device, timeline)| {
            timeline
                .messages
                .iter()
                .map(|id| (timeline.at_ns, *device, *conversation, id.as_str(), "stands in the end"))
        })
    });
    for (at_ns, device, conversation, id, verb) in appeared.chain(standing) {
        let Some(why) = phantom(facts, at_ns, device, conversation, id) else { continue };
        // What appears also stands there in the end.
        if !told.insert((device, conversation, id)) {
            continue;
        }
        count += 1;
        findings.fail("phantoms", at_ns, || {
            let id: String = id.chars().take(TEXT_CHARS).collect();
            format!("{id} {verb} on {device} in {conversation}: {why}")
        });
    }
    unchecked(facts, findings);
    count
}

/// Removals of which no device is told to know.
fn unchecked(facts: &Facts<'_>, findings: &mut Findings) {
    for (conversation, users) in &facts.members {
        for (user, spans) in users {
            let removed = spans.iter().any(|(_, until)| *until != u64::MAX);
            let known = facts
                .learned
                .iter()
                .any(|((_, c, u), told)| c == conversation && u == user && told.iter().any(|(_, member)| !member));
            if removed && !known {
                findings.add("phantoms", Verdict::Unknown, facts.last_ns, || {
                    format!("{user} was removed from {conversation}, and no device is told to know of it")
                });
            }
        }
    }
}

fn phantom(facts: &Facts<'_>, at_ns: u64, device: &str, conversation: &str, id: &str) -> Option<String> {
    let Some(message) = facts.messages.get(id) else { return Some("nobody ever sent it".into()) };
    if message.invoked_ns > at_ns {
        return Some(format!("it was sent only at {}", time(message.invoked_ns)));
    }
    if let Some(refused_ns) = message.refused_ns {
        return Some(format!("its device refused it at {}", time(refused_ns)));
    }
    if message.conversation != conversation {
        return Some(format!("it was sent into {}", message.conversation));
    }
    let user = facts.user(device);
    if !facts.was_member(conversation, user, at_ns) {
        return Some(format!("{user} was never a member until then"));
    }
    if facts.knew_him_gone(message, user) && !facts.became_member(conversation, user, message.invoked_ns, at_ns) {
        return Some(format!("{} knew as it sent it that {user} is no member any longer", message.device));
    }
    match message.failed {
        // Its own device goes on showing it, so that its user can send it again.
        Some((failed_ns, _, false)) if device != message.device && message.acked.is_none() => {
            Some(format!("its device was told at {} that it failed for certain", time(failed_ns)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::examples::Example;
    use crate::verdict::Verdict;

    #[test]
    fn what_nobody_sent_is_a_phantom_where_ever_it_is_seen() {
        assert_eq!(Example::good().shown("bob-phone", "hello").ends_well().found(), ["phantoms"]);
        let found = Example::good().in_timeline("bob-phone", 0, "alice-phone/77").found();
        assert!(found.contains(&"phantoms".to_owned()), "{found:?}");
    }

    #[test]
    fn a_refused_message_must_not_be_seen() {
        let refused = |e: Example| e.refuse("alice-phone", "alice-phone/9");
        assert_eq!(refused(Example::good()).ends_well().found(), [""; 0]);
        let seen = refused(Example::good()).shown("bob-phone", "alice-phone/9");
        assert_eq!(seen.ends_well().found(), ["phantoms"]);
    }

    #[test]
    fn the_right_message_in_the_wrong_conversation_is_a_phantom() {
        let found = Example::good_group().shown_in("bob-phone", "alice+bob", "alice-phone/1").ends_well().found();
        assert!(found.contains(&"phantoms".to_owned()), "{found:?}");
    }

    #[test]
    fn a_stranger_must_see_nothing() {
        let found = Example::good().shown_in("carol-phone", "alice+bob", "alice-phone/1").ends_well().found();
        assert_eq!(found, ["phantoms"]);
    }

    #[test]
    fn a_removed_user_sees_what_was_sent_before_and_nothing_later() {
        let before = Example::good_group().invoke("alice-phone", "team").ack("alice-phone/2", "eu");
        let before = before.removed("team", "carol").show_everywhere("alice-phone/2");
        assert_eq!(before.shown("carol-phone", "alice-phone/2").ends_well().found(), [""; 0]);
        let after = || Example::good_group().removed("team", "carol").send("alice-phone", "team");
        assert_eq!(after().ends_well().found(), [""; 0]);
        assert_eq!(after().shown("carol-phone", "alice-phone/2").ends_well().found(), ["phantoms"]);
        // Added again, he may see what was sent meanwhile.
        let again = after().added("team", "carol").shown("carol-phone", "alice-phone/2");
        assert_eq!(again.ends_well().found(), [""; 0]);
    }

    #[test]
    fn what_is_sent_by_who_does_not_know_of_a_removal_may_still_be_seen() {
        let example = Example::good_group().removed("team", "carol").send("bob-phone", "team");
        assert_eq!(example.shown("carol-phone", "bob-phone/1").ends_well().found(), [""; 0]);
        // If nobody knows, nothing can be said.
        let nobody = Example::good_group().removed("team", "carol").send("alice-phone", "team").ends_well();
        let judged = nobody.remove(|e| matches!(e, crate::Event::Learned { .. })).judge();
        assert_eq!(judged.verdict, Verdict::Unknown);
    }

    #[test]
    fn what_failed_for_certain_must_not_be_seen_elsewhere() {
        let failed = |maybe| {
            let example = Example::good().expect(|e| e.failures = true).invoke("alice-phone", "alice+bob");
            example.failed("alice-phone/2", maybe).show_everywhere("alice-phone/2").ends_well().found()
        };
        assert_eq!(failed(true), [""; 0]);
        assert_eq!(failed(false), ["phantoms"]);
    }
}
