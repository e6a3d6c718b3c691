//! What a run is judged by: what was sent, acked and made stable against what both devices show at the end.
//!
//! Counting is pure and pessimistic. *Lost*: acked, but absent from the other device's final timeline.
//! *Duplicated*: shown more than once on a device. *Out of order*: a sender's count descends on a device, or
//! the two devices disagree about an order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A message of a run: who sent it, and which of his it is, from 1, in the order of sending.
pub type Message = (String, u64);

/// What one run did and showed. All devices belong to one conversation.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Handed to the SDK.
    pub sent: BTreeSet<Message>,
    /// Durable in a region.
    pub acked: BTreeSet<Message>,
    /// Durable in a second region.
    pub stable: BTreeSet<Message>,
    /// By user: his device's final timeline, in order of display.
    pub timelines: BTreeMap<String, Vec<Message>>,
}

/// The last line of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Handed to the SDK.
    pub sent: usize,
    /// Durable in a region.
    pub acked: usize,
    /// Durable in a second region.
    pub stable: usize,
    /// Shown on every other device.
    pub shown: usize,
    /// Acked, and not shown on every other device.
    pub lost: usize,
    /// Shown more than once.
    pub duplicated: usize,
    /// Shown at the wrong place.
    pub out_of_order: usize,
}

impl Record {
    /// Counts.
    pub fn totals(&self) -> Totals {
        let elsewhere = |message: &Message| {
            self.timelines.iter().filter(|(user, _)| **user != message.0).all(|(_, shown)| shown.contains(message))
        };
        Totals {
            sent: self.sent.len(),
            acked: self.acked.len(),
            stable: self.stable.len(),
            shown: self.sent.iter().filter(|m| elsewhere(m)).count(),
            lost: self.acked.iter().filter(|m| !elsewhere(m)).count(),
            duplicated: self.timelines.values().map(|shown| shown.len() - first_copies(shown).len()).sum(),
            out_of_order: self.timelines.values().map(|shown| descents(shown)).sum::<usize>() + self.disagreements(),
        }
    }

    /// Messages that are lost, for a person who looks for the reason.
    pub fn lost(&self) -> Vec<&Message> {
        let missing = |m: &&Message| self.timelines.iter().any(|(user, shown)| *user != m.0 && !shown.contains(m));
        self.acked.iter().filter(missing).collect()
    }

    /// Neighbours on one device that another device shows the other way round.
    fn disagreements(&self) -> usize {
        let firsts: Vec<Vec<&Message>> = self.timelines.values().map(|shown| first_copies(shown)).collect();
        let mut count = 0;
        for (i, one) in firsts.iter().enumerate() {
            for other in &firsts[i + 1..] {
                let places: BTreeMap<&Message, usize> = other.iter().enumerate().map(|(at, m)| (*m, at)).collect();
                let common: Vec<usize> = one.iter().filter_map(|m| places.get(m).copied()).collect();
                count += common.windows(2).filter(|pair| pair[0] > pair[1]).count();
            }
        }
        count
    }
}

fn first_copies(shown: &[Message]) -> Vec<&Message> {
    let mut seen = BTreeSet::new();
    shown.iter().filter(|m| seen.insert(*m)).collect()
}

/// Messages shown after a later one of the same sender.
fn descents(shown: &[Message]) -> usize {
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut count = 0;
    for (user, n) in first_copies(shown) {
        let newest = newest.entry(user).or_default();
        count += usize::from(*n < *newest);
        *newest = (*newest).max(*n);
    }
    count
}

impl Totals {
    /// Whether the promise holds: nothing lost, nothing twice, nothing out of order, and everything sent has
    /// arrived and is held by a second region.
    pub fn pass(&self) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.out_of_order == 0
            && [self.acked, self.stable, self.shown].iter().all(|n| *n == self.sent)
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sent {}  acked {}  stable {}  shown {}  lost {}  duplicated {}  out of order {}",
            self.sent, self.acked, self.stable, self.shown, self.lost, self.duplicated, self.out_of_order
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<Message> {
        text.split_whitespace().map(|m| (m[..1].to_owned(), m[1..].parse().unwrap())).collect()
    }

    fn record(sent: &str, acked: &str, at_a: &str, at_b: &str) -> Record {
        Record {
            sent: list(sent).into_iter().collect(),
            acked: list(acked).into_iter().collect(),
            stable: list(acked).into_iter().collect(),
            timelines: BTreeMap::from([("a".into(), list(at_a)), ("b".into(), list(at_b))]),
        }
    }

    #[test]
    fn a_run_without_fault_passes() {
        let totals = record("a1 a2 b1", "a1 a2 b1", "a1 b1 a2", "a1 b1 a2").totals();
        assert!(totals.pass());
        assert_eq!(totals.to_string(), "sent 3  acked 3  stable 3  shown 3  lost 0  duplicated 0  out of order 0");
    }

    #[test]
    fn an_acked_message_that_the_other_device_lacks_is_lost() {
        let record = record("a1 a2 b1", "a1 a2", "a1 a2", "a1");
        let totals = record.totals();
        assert_eq!((totals.lost, totals.shown), (1, 1));
        assert_eq!(record.lost(), [&("a".to_owned(), 2)]);
        assert!(!totals.pass());
    }

    #[test]
    fn an_unacked_message_is_not_lost_but_the_run_does_not_pass() {
        let totals = record("a1 a2", "a1", "a1 a2", "a1").totals();
        assert_eq!((totals.lost, totals.pass()), (0, false));
    }

    #[test]
    fn a_message_shown_twice_is_a_duplicate_on_either_device() {
        assert_eq!(record("a1 a2", "a1 a2", "a1 a2", "a1 a2 a1").totals().duplicated, 1);
        assert_eq!(record("a1 a2", "a1 a2", "a1 a1 a2", "a1 a2").totals().duplicated, 1);
    }

    #[test]
    fn a_descending_sender_and_two_orders_are_out_of_order() {
        assert_eq!(record("a1 a2", "a1 a2", "a2 a1", "a2 a1").totals().out_of_order, 2);
        assert_eq!(record("a1 b1", "a1 b1", "a1 b1", "b1 a1").totals().out_of_order, 1);
    }
}
