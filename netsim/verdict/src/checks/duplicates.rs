//! Nothing is shown twice: not on one device over its whole life, however often it starts again, and not within one
//! timeline. An own message appears when it is sent, so if its own device is shown it as new, it is there twice.

use std::collections::BTreeMap;

use crate::facts::Facts;
use crate::findings::{Findings, time};

/// How many were too many.
pub(crate) fn check(facts: &Facts<'_>, findings: &mut Findings) -> u64 {
    let mut count = 0;
    let mut first: BTreeMap<(&str, &str), u64> =
        facts.messages.values().map(|m| ((m.device, m.id), m.invoked_ns)).collect();
    for shown in facts.shown.iter().filter(|s| s.new) {
        if let Some(before_ns) = first.insert((shown.device, shown.message), shown.at_ns) {
            count += 1;
            findings.fail("duplicates", shown.at_ns, || {
                format!(
                    "{} is shown as new on {} at {}, and was there since {}",
                    shown.message,
                    shown.device,
                    time(shown.at_ns),
                    time(before_ns)
                )
            });
        }
    }
    for (conversation, of) in &facts.timelines {
        for (device, timeline) in of {
            let mut times: BTreeMap<&str, u32> = BTreeMap::new();
            for message in timeline.messages {
                *times.entry(message).or_default() += 1;
            }
            for (message, times) in times.into_iter().filter(|(_, times)| *times > 1) {
                count += 1;
                findings.fail("duplicates", timeline.at_ns, || {
                    format!("{message} stands {times} times in what {device} shows of {conversation} in the end")
                });
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use crate::examples::Example;

    #[test]
    fn shown_again_after_a_restart_is_a_duplicate() {
        let again = |e: Example| e.stop("bob-phone", "killed").start("bob-phone").shown("bob-phone", "alice-phone/1");
        assert_eq!(again(Example::good()).ends_well().found(), ["duplicates"]);
        // On another device of the same user it is no duplicate, and a message that only moves is none either.
        let moved = Example::good().moved("bob-phone", "alice-phone/1").ends_well();
        assert_eq!(moved.found(), [""; 0]);
    }

    #[test]
    fn an_own_message_that_comes_back_as_new_is_a_duplicate() {
        assert_eq!(Example::good().shown("alice-phone", "alice-phone/1").ends_well().found(), ["duplicates"]);
    }

    #[test]
    fn twice_in_one_timeline_is_a_duplicate() {
        let found = Example::good().in_timeline("bob-phone", 2, "alice-phone/1").found();
        assert!(found.contains(&"duplicates".to_owned()), "{found:?}");
    }
}
