//! The newest of several writings of one value, where a writing may be sequenced more than once (R4, R10).
//!
//! *Problem.* A change whose ack was lost is sent again, and another region gives it a second, later place. Until the
//! copy with the lower place is known, it seems newer than changes that were made after it.
//!
//! *Rule.* A writing counts once, at its lowest display key; the highest of those wins. Some of the runners-up are kept:
//! when a lower copy of the newest one arrives, the next is the newest.
//!
//! *Why the simpler way fails.* Keeping the newest alone: a role that was taken away comes back with the late copy of the
//! change that had given it, and devices, which hold all entries, say something else than regions.

use crate::ids::{Identity, Place};
use crate::limits::WRITES;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Writes<T> {
    /// Newest first.
    all: Vec<(Place, Identity, T)>,
}

impl<T> Default for Writes<T> {
    fn default() -> Self {
        Self { all: Vec::new() }
    }
}

impl<T: Clone + Ord> Writes<T> {
    /// Takes a writing, or a copy of one. Commutes, and may repeat.
    pub(crate) fn set(&mut self, at: Place, by: &Identity, value: &T) {
        // The same identity with another value is another writing, see R3.
        let known = self.all.iter().position(|(_, known, v)| known == by && v == value);
        match known {
            Some(i) if self.all[i].0 <= at => return,
            Some(i) => {
                self.all.remove(i);
            }
            None => {}
        }
        let i = self.all.partition_point(|(place, _, v)| (*place, v) > (at, value));
        if i < WRITES {
            self.all.insert(i, (at, by.clone(), value.clone()));
            self.all.truncate(WRITES);
        }
    }

    /// The one that counts.
    pub(crate) fn newest(&self) -> Option<(Place, &T)> {
        self.all.first().map(|(at, _, value)| (*at, value))
    }

    /// All that are kept, newest first.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &(Place, Identity, T)> {
        self.all.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{InstallId, Origin, UserId};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn place(hlc: u64) -> Place {
        Place { hlc, origin: Origin { region: 1, era: 1 }, seq: hlc }
    }

    fn by(n: u64) -> Identity {
        Identity { user: UserId::new("u").unwrap(), install: InstallId::new("i").unwrap(), n }
    }

    #[test]
    fn a_later_copy_of_an_older_writing_does_not_win_whenever_its_first_copy_comes() {
        let copies = [(10, 1), (20, 2), (30, 1)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut writes = Writes::default();
            order.iter().for_each(|i| writes.set(place(copies[*i].0), &by(copies[*i].1), &copies[*i].1));
            assert_eq!(writes.newest(), Some((place(20), &2)), "{order:?}");
        }
    }

    #[test]
    fn of_many_writings_the_newest_are_kept() {
        let mut writes = Writes::default();
        (1..100).for_each(|n| writes.set(place(n), &by(n), &n));
        assert_eq!((writes.newest(), writes.iter().len()), (Some((place(99), &99)), WRITES));
    }

    proptest! {
        #[test]
        fn any_order_ends_in_the_newest_by_the_lowest_copies(
            copies in proptest::collection::vec((1u64..60, 1u64..9), 1..20), seed: u64
        ) {
            let mut lowest = BTreeMap::new();
            for (at, n) in &copies {
                let known = lowest.entry(*n).or_insert(*at);
                *known = (*known).min(*at);
            }
            let expected = lowest.iter().map(|(n, at)| (place(*at), n)).max();
            let mut shuffled: Vec<_> = copies.iter().chain(&copies).collect();
            shuffled.sort_by_key(|(at, n)| (at << 8 | n).wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut writes = Writes::default();
            shuffled.into_iter().for_each(|(at, n)| writes.set(place(*at), &by(*n), n));
            prop_assert_eq!(writes.newest(), expected);
        }
    }
}
