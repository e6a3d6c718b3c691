//! The heads of active logs: the writer knows the number and the chain that follow without reading.
//!
//! Two halves instead of a list in order of use: what is used is in the young half; when that is full the old
//! half is dropped and the young one becomes it. Bounded, and nothing is moved on a hit in the young half.

use std::collections::BTreeMap;

use super::super::format::LogId;
use super::tables::Head;

#[derive(Debug)]
pub(super) struct Heads {
    young: BTreeMap<LogId, Head>,
    old: BTreeMap<LogId, Head>,
    limit: usize,
}

impl Heads {
    /// Holds at most `limit` heads, and at least the newest half of it.
    pub(super) fn new(limit: usize) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), limit }
    }

    pub(super) fn get(&mut self, log: LogId) -> Option<Head> {
        if let Some(head) = self.young.get(&log) {
            return Some(*head);
        }
        let head = self.old.remove(&log)?;
        self.put(log, head);
        Some(head)
    }

    pub(super) fn put(&mut self, log: LogId, head: Head) {
        self.young.insert(log, head);
        if self.young.len() > self.limit / 2 {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

#[cfg(test)]
mod tests {
    use tern_core::ids::{ConvId, Origin};

    use super::*;

    fn log(n: u8) -> LogId {
        LogId { conversation: ConvId([n; 16]), origin: Origin { region: 1, era: 1 } }
    }

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let mut heads = Heads::new(8);
        for n in 0..200 {
            heads.put(log(n), Head { seq: u64::from(n), ..Head::default() });
            assert_eq!(heads.get(log(0)).map(|head| head.seq), Some(0), "used each time");
            assert!(heads.young.len() + heads.old.len() <= 9);
        }
        assert_eq!(heads.get(log(199)).map(|head| head.seq), Some(199));
        assert_eq!(heads.get(log(100)), None);
    }

    #[test]
    fn a_newer_head_replaces_an_older_one_in_either_half() {
        let mut heads = Heads::new(4);
        for n in 0..3 {
            heads.put(log(n), Head { seq: 1, ..Head::default() });
        }
        heads.put(log(0), Head { seq: 2, ..Head::default() });
        assert_eq!(heads.get(log(0)).map(|head| head.seq), Some(2));
    }
}
