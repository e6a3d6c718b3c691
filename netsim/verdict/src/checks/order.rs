//! What one device writes into a conversation keeps its order.
//!
//! In every timeline, without exception. As it appears, with two. If a message was decided on in another region than
//! its successor, and that region went silent before anybody had a copy, then the successor is there first, and the
//! message takes its place above it when the region comes back. Nothing else is possible without refusing to write
//! while a region is away. The same holds if the region itself came back in a new era: what it writes from then on does
//! not wait until others have fetched what it wrote before. And a device that comes back from an outage is pushed what
//! is new while it still fetches what it missed: a backlog must not delay a new message. Both are counted as late, and
//! not failed. Where both were first decided on in one era of one region, or it is not known where, and the device kept
//! its connection from the sending of the earlier one, the later one must not appear first. What appears at the same
//! moment has no order of its own: a device that fetched a few at once tells of them in any order, and shows them in
//! theirs.
//!
//! A message that failed and was sent again by its user stands where it was sent again; and one that may have failed does
//! not hold back what is sent after it. Both are left out.

use std::collections::BTreeMap;

use crate::facts::{Facts, Message};
use crate::findings::{Findings, time};

/// How many were out of order, and how many came late.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Disorder {
    pub(crate) out_of_order: u64,
    pub(crate) late: u64,
}

pub(crate) fn check(facts: &Facts<'_>, findings: &mut Findings) -> Disorder {
    let mut disorder = Disorder::default();
    let known = |id: &str| facts.messages.get(id).filter(|m| m.failed.is_none() && !m.unsure);
    // By (device that shows, device that sent, conversation): the last in order of invocation that has appeared.
    let mut appeared: BTreeMap<(&str, &str, &str), (&Message<'_>, u64)> = BTreeMap::new();
    for shown in facts.shown.iter().filter(|s| s.new) {
        let Some(message) = known(shown.message) else { continue };
        let key = (shown.device, message.device, message.conversation);
        let (newest, since_ns) = appeared.entry(key).or_insert((message, shown.at_ns));
        if newest.nth <= message.nth {
            (*newest, *since_ns) = (message, shown.at_ns);
        } else if *since_ns == shown.at_ns {
            // One change of what is on the screen.
        } else if elsewhere(newest, message) || !facts.live_throughout(shown.device, message.invoked_ns, shown.at_ns) {
            disorder.late += 1;
        } else {
            disorder.out_of_order += 1;
            findings.fail("order", shown.at_ns, || {
                format!(
                    "{} appears on {} at {}, after {}, which was sent later",
                    message.id,
                    shown.device,
                    time(shown.at_ns),
                    newest.id
                )
            });
        }
    }
    for (conversation, of) in &facts.timelines {
        for (device, timeline) in of {
            let mut newest: BTreeMap<&str, &Message<'_>> = BTreeMap::new();
            for message in timeline.messages.iter().filter_map(|id| known(id)) {
                let before = newest.insert(message.device, message).filter(|before| before.nth > message.nth);
                let Some(before) = before else { continue };
                disorder.out_of_order += 1;
                findings.fail("order", timeline.at_ns, || {
                    format!(
                        "{} stands after {}, which was sent later, in what {device} shows of {conversation} in the end",
                        message.id, before.id
                    )
                });
            }
        }
    }
    disorder
}

/// Whether two messages were first decided on in different regions, or different eras of one.
fn elsewhere(a: &Message<'_>, b: &Message<'_>) -> bool {
    matches!((a.first_origin(), b.first_origin()), (Some(a), Some(b)) if a.differs_from(&b))
}

#[cfg(test)]
mod tests {
    use crate::Event;
    use crate::examples::Example;
    use crate::verdict::Verdict;

    #[test]
    fn two_of_one_sender_that_changed_places_are_found() {
        let swapped = Example::good_pair().swap_in_timeline("bob-phone", 0, 1).found();
        assert!(swapped.contains(&"order".to_owned()), "{swapped:?}");
        assert_eq!(Example::good_pair().found(), [""; 0]);
    }

    #[test]
    fn the_later_must_not_appear_first() {
        let at_eu = |e: Example| e.invoke("alice-phone", "alice+bob").ack("alice-phone/2", "eu");
        let both = at_eu(Example::good()).invoke("alice-phone", "alice+bob").ack("alice-phone/3", "eu");
        let both = both.shown_by("bob-phone", &["alice-phone/3", "alice-phone/2"]);
        let both = both.shown_by("alice-tablet", &["alice-phone/2", "alice-phone/3"]);
        let both = both.shown_by("bob-tablet", &["alice-phone/2", "alice-phone/3"]);
        assert_eq!(both.ends_well().found(), ["order"]);
    }

    #[test]
    fn what_a_device_missed_may_come_after_what_is_new() {
        let sent = |e: Example| {
            let first = e.invoke("alice-phone", "alice+bob").ack("alice-phone/2", "eu");
            first.invoke("alice-phone", "alice+bob").ack("alice-phone/3", "eu")
        };
        let seen = |e: Example| {
            let both = e.shown_by("bob-phone", &["alice-phone/3", "alice-phone/2"]);
            let both = both.shown_by("alice-tablet", &["alice-phone/2", "alice-phone/3"]);
            both.shown_by("bob-tablet", &["alice-phone/2", "alice-phone/3"]).ends_well()
        };
        let connection = |state: &str| Event::Connection {
            device: "bob-phone".into(),
            state: state.into(),
            edge: None,
            region: None,
            transport: None,
        };
        let away = sent(Example::good().event(connection("live")).event(connection("connecting")));
        let judged = seen(away.event(connection("live"))).judge();
        assert_eq!((judged.verdict, judged.figures.late, judged.figures.out_of_order), (Verdict::Pass, 1, 0));
        let there = seen(sent(Example::good().event(connection("live"))));
        assert_eq!(there.found(), ["order"]);
    }

    #[test]
    fn what_a_silent_region_held_may_come_late() {
        let first = Example::good().invoke("alice-phone", "alice+bob").ack("alice-phone/2", "eu");
        let both = first.invoke("alice-phone", "alice+bob").ack("alice-phone/3", "us");
        let both = both.shown_by("bob-phone", &["alice-phone/3", "alice-phone/2"]);
        let both = both.shown_by("alice-tablet", &["alice-phone/2", "alice-phone/3"]);
        let both = both.shown_by("bob-tablet", &["alice-phone/2", "alice-phone/3"]);
        let judged = both.ends_well().judge();
        assert_eq!((judged.verdict, judged.figures.late, judged.figures.out_of_order), (Verdict::Pass, 1, 0));
    }

    #[test]
    fn what_a_region_writes_after_it_was_killed_may_be_there_before_what_it_wrote_last() {
        let judged = |eras: [Option<&str>; 2]| {
            let first = Example::good().invoke("alice-phone", "alice+bob").ack_in("alice-phone/2", "eu", eras[0]);
            let both = first.invoke("alice-phone", "alice+bob").ack_in("alice-phone/3", "eu", eras[1]);
            let both = both.shown_by("bob-phone", &["alice-phone/3", "alice-phone/2"]);
            let both = both.shown_by("alice-tablet", &["alice-phone/2", "alice-phone/3"]);
            let judged = both.shown_by("bob-tablet", &["alice-phone/2", "alice-phone/3"]).ends_well().judge();
            (judged.verdict, judged.figures.late, judged.figures.out_of_order)
        };
        assert_eq!(judged([Some("0a"), Some("0b")]), (Verdict::Pass, 1, 0));
        assert_eq!(judged([Some("0a"), Some("0a")]), (Verdict::Fail, 0, 1));
        assert_eq!(judged([Some("0a"), None]), (Verdict::Fail, 0, 1));
    }
}
