//! What the system itself says is wrong: messages that it gave up, panics, stores that do not open. And what the driver
//! says of itself: that it could not keep up.

use crate::facts::Facts;
use crate::findings::{Findings, time};
use crate::limits::LATENESS_SHARE;
use crate::verdict::Verdict;

pub(crate) fn check(facts: &Facts<'_>, findings: &mut Findings) {
    for (at_ns, who, text) in &facts.broken {
        findings.fail("broken", *at_ns, || format!("{who}: {text}"));
    }
    let mut messages: Vec<_> = facts.messages.values().collect();
    messages.sort_by_key(|m| m.nth);
    for message in messages {
        let Some((at_ns, reason, maybe)) = message.failed else { continue };
        if message.acked.is_some_and(|(acked_ns, _)| acked_ns <= at_ns) {
            findings.fail("failures", at_ns, || format!("{} was acked, and then failed: {reason}", message.id));
        } else if !facts.run.expect.failures {
            let may = if maybe { "; another region may have taken it" } else { "" };
            findings.fail("failures", at_ns, || format!("{} failed: {reason}{may}", message.id));
        }
    }
    if facts.late()
        && let Some(late) = &facts.lateness
    {
        findings.add("lateness", Verdict::Invalid, facts.last_ns, || {
            format!(
                "the machine could not keep up: 1 % of {} packets were late by {} or more, at most {} is allowed (a \
                 {LATENESS_SHARE}th of the shortest delay)",
                late.packets,
                time(late.p99_ns),
                time(late.delay_ns / LATENESS_SHARE)
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::examples::Example;
    use crate::history::Event;
    use crate::verdict::Verdict;

    const MS: u64 = 1_000_000;

    #[test]
    fn what_breaks_fails_the_run() {
        let example = Example::good().event(Event::Broken { who: "eu".into(), text: "panicked".into() });
        assert_eq!(example.ends_well().found(), ["broken"]);
    }

    #[test]
    fn a_message_that_is_given_up_fails_the_run_unless_the_scenario_says_so() {
        let failed = |e: Example| e.invoke("alice-phone", "alice+bob").failed("alice-phone/2", false);
        let gone = |e: Example| {
            let mut e = e.ends_well();
            for device in ["alice-tablet", "bob-phone", "bob-tablet"] {
                e = e.drop_from_timeline(device, "alice-phone/2");
            }
            e.found()
        };
        assert_eq!(gone(failed(Example::good())), ["failures"]);
        assert_eq!(gone(failed(Example::good().expect(|e| e.failures = true))), [""; 0]);
    }

    #[test]
    fn what_one_region_refused_and_another_took_did_not_fail() {
        let example = Example::good().invoke("alice-phone", "alice+bob").failed("alice-phone/2", true);
        let example = example.ack("alice-phone/2", "eu").show_everywhere("alice-phone/2");
        assert_eq!(example.ends_well().found(), [""; 0]);
    }

    #[test]
    fn an_ack_can_not_be_taken_back() {
        let example = Example::good().expect(|e| e.failures = true).failed("alice-phone/1", true);
        assert_eq!(example.ends_well().found(), ["failures"]);
    }

    fn late(p99_ns: u64) -> Example {
        let late = Event::Lateness { packets: 1000, p50_ns: 0, p99_ns, max_ns: p99_ns, delay_ns: 20 * MS };
        Example::good().event(late)
    }

    #[test]
    fn a_machine_that_can_not_keep_up_makes_the_run_invalid() {
        assert_eq!(late(2 * MS).ends_well().judge().verdict, Verdict::Pass);
        assert_eq!(late(3 * MS).ends_well().judge().verdict, Verdict::Invalid);
    }

    #[test]
    fn on_a_slow_machine_a_loss_is_a_loss_but_a_missed_limit_is_none() {
        let lost = late(3 * MS).drop_from_timeline("bob-phone", "alice-phone/1");
        assert_eq!(lost.judge().verdict, Verdict::Fail);
        let slow = late(3 * MS).expect(|e| e.deliver_p99_ns = Some(1)).ends_well();
        assert_eq!(
            (slow.found(), slow.judge().verdict),
            (vec!["delivery".into(), "lateness".into()], Verdict::Invalid)
        );
    }
}
