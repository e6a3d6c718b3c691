//! Sets of sequence numbers as intervals: what is held of a log.
//!
//! A high-water mark is not enough: entries arrive by push, by page and by ack, from several regions and in
//! any order, and a mark that jumped over a hole would hide it for ever.

use std::collections::BTreeMap;

use crate::ids::Seq;

/// A set of numbers from 1, stored as disjoint intervals that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals {
    /// first -> last, both included.
    map: BTreeMap<Seq, Seq>,
}

impl Intervals {
    /// Empty.
    pub const fn new() -> Self {
        Self { map: BTreeMap::new() }
    }

    /// Whether it holds `seq`.
    pub fn contains(&self, seq: Seq) -> bool {
        self.map.range(..=seq).next_back().is_some_and(|(_, last)| *last >= seq)
    }

    /// Adds `first..=last`.
    pub fn insert(&mut self, first: Seq, last: Seq) {
        if first > last {
            return;
        }
        let (mut low, mut high) = (first, last);
        while let Some((a, b)) = self.map.range(..=high.saturating_add(1)).next_back().map(|(a, b)| (*a, *b)) {
            if b.saturating_add(1) < low {
                break;
            }
            low = low.min(a);
            high = high.max(b);
            self.map.remove(&a);
        }
        self.map.insert(low, high);
    }

    /// Takes out `first..=last`.
    pub fn remove(&mut self, first: Seq, last: Seq) {
        if first > last {
            return;
        }
        let cut: Vec<_> =
            self.map.range(..=last).rev().take_while(|(_, b)| **b >= first).map(|(a, b)| (*a, *b)).collect();
        for (a, b) in cut {
            self.map.remove(&a);
            if a < first {
                self.map.insert(a, first - 1);
            }
            if b > last {
                self.map.insert(last + 1, b);
            }
        }
    }

    /// Up to where everything above `floor` is held; `floor` itself where the next is missing.
    pub fn prefix_above(&self, floor: Seq) -> Seq {
        let next = floor.saturating_add(1);
        self.map.range(..=next).next_back().map_or(floor, |(_, last)| if *last >= next { *last } else { floor })
    }

    /// What is missing of `first..=last`, ascending.
    pub fn missing(&self, first: Seq, last: Seq) -> Vec<(Seq, Seq)> {
        let mut out = Vec::new();
        if first > last {
            return out;
        }
        let mut next = first;
        let before = self.map.range(..=first).next_back().map(|(a, _)| *a);
        for (a, b) in self.map.range(before.unwrap_or(first)..=last) {
            if *a > next {
                out.push((next, a - 1));
            }
            if *b >= last {
                return out;
            }
            next = next.max(b.saturating_add(1));
            if next > last {
                return out;
            }
        }
        out.push((next, last));
        out
    }

    /// The highest number held, or 0.
    pub fn highest(&self) -> Seq {
        self.map.last_key_value().map_or(0, |(_, last)| *last)
    }

    /// Number of intervals.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The intervals, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Seq, Seq)> + '_ {
        self.map.iter().map(|(a, b)| (*a, *b))
    }

    /// Both sets together.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        other.iter().for_each(|(a, b)| all.insert(a, b));
        all
    }

    /// Stored form: pairs of big-endian u64.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.iter().flat_map(|(a, b)| [a.to_be_bytes(), b.to_be_bytes()]).flatten().collect()
    }

    /// Reads the stored form; `None` where it is damaged.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(16) {
            return None;
        }
        let mut set = Self::new();
        for pair in bytes.chunks_exact(16) {
            let a = u64::from_be_bytes(pair[..8].try_into().ok()?);
            let b = u64::from_be_bytes(pair[8..].try_into().ok()?);
            if a == 0 || a > b {
                return None;
            }
            set.insert(a, b);
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hole_stays_visible_until_it_is_filled() {
        let mut held = Intervals::new();
        held.insert(1, 3);
        held.insert(5, 9);
        assert_eq!(held.missing(1, 10), vec![(4, 4), (10, 10)]);
        assert_eq!(held.prefix_above(0), 3);
        assert_eq!(held.prefix_above(3), 3);
        assert_eq!(held.prefix_above(4), 9);
        held.insert(4, 4);
        assert_eq!(held.iter().collect::<Vec<_>>(), vec![(1, 9)]);
        assert_eq!(Intervals::from_bytes(&held.to_bytes()), Some(held));
        assert_eq!(Intervals::from_bytes(&[0; 15]), None);
        assert_eq!(Intervals::from_bytes(&[0; 16]), None);
    }

    proptest! {
        #[test]
        fn intervals_are_a_set(steps: Vec<(bool, u8, u8)>, from in 1u64..60, to in 1u64..60) {
            let (mut set, mut model) = (Intervals::new(), BTreeSet::new());
            for (insert, a, b) in steps {
                let (a, b) = (u64::from(a % 60) + 1, u64::from(b % 60) + 1);
                if insert {
                    set.insert(a, b);
                    model.extend(a..=b);
                } else {
                    set.remove(a, b);
                    model.retain(|x| *x < a || *x > b);
                }
                let list: Vec<_> = set.iter().collect();
                prop_assert!(list.windows(2).all(|w| w[0].1 + 1 < w[1].0));
            }
            prop_assert_eq!(set.iter().flat_map(|(a, b)| a..=b).collect::<BTreeSet<_>>(), model.clone());
            let missing: BTreeSet<_> = set.missing(from, to).into_iter().flat_map(|(a, b)| a..=b).collect();
            prop_assert_eq!(missing, (from..=to).filter(|x| !model.contains(x)).collect::<BTreeSet<_>>());
            prop_assert_eq!(Intervals::from_bytes(&set.to_bytes()), Some(set));
        }
    }
}
