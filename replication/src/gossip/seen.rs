//! Which datagrams of each sender were seen, so that none counts twice.
//!
//! A sender's datagrams are numbered within its session (see `seal`), and its starts are numbered too. So a
//! datagram is new if its sender's start is later than any seen, or if it is of the same session and its number is
//! above the highest seen, or within [`WINDOW`] below it and not seen yet. Networks reorder, but not by that much.

use std::collections::BTreeMap;

use super::identity::{NodeId, NodeKey};
use super::limits::SENDERS_MAX;

/// Numbers below the highest for which it is known whether they were seen.
const WINDOW: u64 = 64;

#[derive(Clone, Copy, Debug)]
struct Sender {
    start: u64,
    session: u64,
    highest: u64,
    /// Bit i: `highest - i` was seen.
    bits: u64,
    /// When it was last heard, counted in datagrams of all.
    heard: u64,
}

/// What a datagram is to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Newness {
    /// Not seen before.
    New,
    /// Seen before, or too old to tell.
    Replayed,
    /// Of an earlier start than this one, which was heard.
    EarlierThan(u64),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    senders: BTreeMap<NodeKey, Sender>,
    heard: u64,
}

impl Seen {
    /// What this datagram is. Notes it if it is new.
    pub fn look(&mut self, from: &NodeId, session: u64, counter: u64) -> Newness {
        self.heard += 1;
        let heard = self.heard;
        let fresh = Sender { start: from.start, session, highest: counter, bits: 1, heard };
        let key = from.key();
        let Some(known) = self.senders.get_mut(&key) else {
            self.make_room();
            self.senders.insert(key, fresh);
            return Newness::New;
        };
        if from.start > known.start && session != known.session {
            *known = fresh;
            return Newness::New;
        }
        if from.start < known.start {
            return Newness::EarlierThan(known.start);
        }
        if session != known.session {
            return Newness::Replayed;
        }
        // A process that takes a later start (see `NodeId`) counts on.
        known.start = from.start;
        if counter > known.highest {
            let by = counter - known.highest;
            known.bits = if by >= WINDOW { 0 } else { known.bits << by };
            known.bits |= 1;
            known.highest = counter;
        } else {
            let below = known.highest - counter;
            if below >= WINDOW || known.bits & (1 << below) != 0 {
                return Newness::Replayed;
            }
            known.bits |= 1 << below;
        }
        known.heard = heard;
        Newness::New
    }

    #[cfg(test)]
    fn is_new(&mut self, from: &NodeId, session: u64, counter: u64) -> bool {
        self.look(from, session, counter) == Newness::New
    }

    fn make_room(&mut self) {
        if self.senders.len() < SENDERS_MAX {
            return;
        }
        let oldest = self.senders.iter().min_by_key(|(_, sender)| sender.heard).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.senders.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::identity::Role;

    fn node(name: &str, start: u64) -> NodeId {
        let addr = "192.0.2.1:1".parse().unwrap();
        NodeId { region: 1, role: Role::Edge, name: name.into(), start, turn: 0, addr }
    }

    #[test]
    fn each_number_counts_once_in_any_order_within_the_window() {
        let mut seen = Seen::default();
        let a = node("a", 5);
        for counter in [10, 12, 11, 9, 80, 17] {
            assert!(seen.is_new(&a, 1, counter), "{counter}");
            assert!(!seen.is_new(&a, 1, counter), "{counter} again");
        }
        assert!(!seen.is_new(&a, 1, 16), "too old to be told from a replayed one");
        assert!(!seen.is_new(&a, 1, 0));
        assert!(seen.is_new(&a, 1, 81));
    }

    #[test]
    fn an_earlier_start_is_never_new_again_and_a_later_one_is() {
        let mut seen = Seen::default();
        assert!(seen.is_new(&node("a", 5), 1, 100));
        assert!(seen.is_new(&node("a", 6), 2, 0));
        assert_eq!(seen.look(&node("a", 5), 1, 101), Newness::EarlierThan(6));
        assert!(!seen.is_new(&node("a", 6), 1, 101), "the session of the earlier start");
        assert!(seen.is_new(&node("a", 6), 2, 1));
        assert!(seen.is_new(&node("b", 1), 1, 0), "senders are apart");
        // A process that took a later start goes on counting.
        assert!(seen.is_new(&node("a", 7), 2, 2));
        assert!(!seen.is_new(&node("a", 7), 2, 1));
    }

    #[test]
    fn the_longest_unheard_sender_makes_room() {
        let mut seen = Seen::default();
        for i in 0..=SENDERS_MAX {
            assert!(seen.is_new(&node(&format!("n{i}"), 1), 1, 0));
        }
        assert_eq!(seen.senders.len(), SENDERS_MAX);
        assert!(!seen.is_new(&node("n1", 1), 1, 0));
        assert!(seen.is_new(&node("n0", 1), 1, 0), "forgotten");
    }
}
