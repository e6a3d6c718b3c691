//! Eras of regions: in which order they came, which are sealed, and how sealed ones fold (R13).
//!
//! Problem: a store that was not stopped cleanly goes on under another era, so every crash gives each conversation
//! that is written to one more log, and each row and read mark one more origin, for ever.
//!
//! Rule: an era that is over is *sealed* once every region holds what any region holds of it; nothing is added to
//! it any more. In rows the logs of sealed eras of one region are folded: an origin of its own stands for all that
//! began no later than a start, and its head is the number of entries in them. What is folded follows from the
//! heads and the table of eras alone, so regions that hold the same tell the same. Who has all of a fold's logs
//! can tell by that number; who has not asks for the logs one by one. A read mark folds where it covers every log
//! of the fold, and then covers all that began no later, however many entries.
//!
//! Why simpler ways fail: dropping old origins hides from a new device what was written in them. Renumbering their
//! entries into one log needs every region to know all of it at the same moment. A hash in the place of the number
//! can't be merged by maximum.
//!
//! Sealing is a status, not a fact: a disk that was thought lost may come back with more. Its entries are taken as
//! late ones, the fold's number grows, and whoever knew the old one asks again.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};

use crate::ids::{Heads, Origin, Region, Seq};

/// Rows of at most so many origins are told as they are.
pub const UNFOLDED: usize = 8;
/// Longer ones are folded to at most so many, where at most eight regions write and all but their newest eras are
/// sealed.
pub const ROW_ORIGINS: usize = 16;
/// Eras that are remembered of one region: a crash a day for twenty years.
pub const ERAS_OF_REGION: usize = 8192;

/// Bytes of the kept form of one era.
pub const ERA_BYTES: usize = 17;

/// What is known of an era.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Era {
    /// The region's start with which it began: orders its eras.
    pub start: u64,
    /// Every region holds what any region holds of it, and nothing is added any more.
    pub sealed: bool,
}

/// The known eras of all regions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EraTable {
    eras: BTreeMap<Origin, Era>,
    unfolded: usize,
    row_origins: usize,
}

impl Default for EraTable {
    fn default() -> Self {
        Self::folding(UNFOLDED, ROW_ORIGINS)
    }
}

impl EraTable {
    /// One that folds rows of more than `unfolded` origins to at most `row_origins`. All regions must agree on these,
    /// so only tests have others than [`UNFOLDED`] and [`ROW_ORIGINS`].
    pub fn folding(unfolded: usize, row_origins: usize) -> Self {
        Self { eras: BTreeMap::new(), unfolded, row_origins }
    }

    /// What is known of an era.
    pub fn get(&self, origin: Origin) -> Option<Era> {
        self.eras.get(&origin).copied()
    }

    /// Whether it is sealed.
    pub fn is_sealed(&self, origin: Origin) -> bool {
        self.eras.get(&origin).is_some_and(|e| e.sealed)
    }

    /// The eras of one region, in order of their names.
    pub fn of(&self, region: Region) -> impl Iterator<Item = (Origin, Era)> + '_ {
        let (first, last) = (Origin { region, era: 0 }, Origin { region, era: u64::MAX });
        self.eras.range(first..=last).map(|(origin, era)| (*origin, *era))
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (Origin, Era)> + '_ {
        self.eras.iter().map(|(origin, era)| (*origin, *era))
    }

    /// Notes what was told of an era; whether that was news. A region itself knows best when its eras began; that
    /// one is sealed holds whoever says so. Beyond [`ERAS_OF_REGION`] new ones are not noted: they stay unfolded.
    pub fn note(&mut self, origin: Origin, told: Era, by_itself: bool) -> bool {
        if origin.region == 0 || origin.through().is_some() || Origin::fold(origin.region, told.start).is_none() {
            return false;
        }
        let before = self.get(origin);
        let Some(known) = before else {
            let room = self.of(origin.region).count() < ERAS_OF_REGION;
            if room {
                self.eras.insert(origin, told);
            }
            return room;
        };
        let start = if by_itself { told.start } else { known.start };
        let era = Era { start, sealed: known.sealed || told.sealed };
        self.eras.insert(origin, era);
        era != known
    }

    /// The eras of one region, as they are kept: the number of each, its start, whether it is sealed.
    pub fn to_bytes(&self, region: Region) -> Bytes {
        let mut out = Vec::new();
        for (origin, era) in self.of(region) {
            out.put_u64(origin.era);
            out.put_u64(era.start);
            out.put_u8(u8::from(era.sealed));
        }
        out.into()
    }

    /// From there. False where the bytes are none: nothing was taken then.
    pub fn take_bytes(&mut self, region: Region, mut b: &[u8]) -> bool {
        if !b.len().is_multiple_of(ERA_BYTES) {
            return false;
        }
        while b.has_remaining() {
            let origin = Origin { region, era: b.get_u64() };
            let era = Era { start: b.get_u64(), sealed: b.get_u8() != 0 };
            self.note(origin, era, true);
        }
        true
    }

    /// A vector with sealed eras folded.
    pub fn fold<'a>(&self, heads: &'a Heads) -> Cow<'a, Heads> {
        if heads.len() <= self.unfolded {
            return Cow::Borrowed(heads);
        }
        let mut starts = BTreeMap::<Region, Vec<u64>>::new();
        for (origin, seq) in heads {
            let of_region = starts.entry(origin.region).or_default();
            of_region.extend(self.get(*origin).filter(|e| e.sealed && *seq > 0).map(|e| e.start));
        }
        // Per region at most a block less one of sealed ones, the current one, and the fold.
        let block = (self.row_origins / starts.len().max(1)).saturating_sub(2).max(1);
        let mut folded = heads.clone();
        for (region, mut starts) in starts {
            starts.sort_unstable();
            let whole = starts.len() - starts.len() % block;
            let through = whole.checked_sub(1).and_then(|last| starts.get(last));
            if let Some((through, fold)) = through.and_then(|t| Some((*t, Origin::fold(region, *t)?))) {
                folded.retain(|o, _| o.region != region || !self.is_folded(*o, through));
                folded.insert(fold, self.entries_through(heads, region, through));
            }
        }
        if folded.len() < heads.len() { Cow::Owned(folded) } else { Cow::Borrowed(heads) }
    }

    fn is_folded(&self, origin: Origin, through: u64) -> bool {
        self.get(origin).is_some_and(|e| e.sealed && e.start <= through)
    }

    /// Entries of a region's sealed eras up to a start.
    pub fn entries_through(&self, heads: &Heads, region: Region, through: u64) -> Seq {
        let logs = heads.iter().filter(|(o, _)| o.region == region && self.is_folded(**o, through));
        logs.map(|(_, seq)| *seq).fold(0, Seq::saturating_add)
    }

    /// Whether an origin of a row is said by another one of `folded`.
    pub fn is_in_fold(&self, origin: Origin, folded: &Heads) -> bool {
        let folds = folds_of(folded, origin.region);
        let Some(through) = folds.map(|(through, _)| through).max() else { return false };
        match origin.through() {
            Some(own) => own < through,
            None => self.is_folded(origin, through),
        }
    }

    /// Folds a read mark like the heads that it belongs to, where it covers a whole fold; whether it changed. `full`:
    /// the heads unfolded.
    pub fn fold_mark(&self, mark: &mut Heads, full: &Heads, folded: &Heads) -> bool {
        let mut changed = false;
        for (fold, entries) in folded {
            let Some(through) = fold.through() else { continue };
            let logs = full.iter().filter(|(o, _)| o.region == fold.region && self.is_folded(**o, through));
            let start = |o: &Origin| self.get(*o).map(|e| e.start);
            let covered = logs.clone().all(|(o, seq)| covers(mark, *o, start(o), *seq));
            if !covered || mark.is_empty() {
                continue;
            }
            let before = mark.len();
            let known = mark.insert(*fold, *entries);
            mark.retain(|o, _| {
                *o == *fold
                    || o.region != fold.region
                    || o.through().map_or(!self.is_folded(*o, through), |own| own > through)
            });
            changed |= known != Some(*entries) || mark.len() != before;
        }
        changed
    }

    /// Whether a mark covers a log, or a fold, up to `seq`.
    pub fn is_marked(&self, mark: &Heads, origin: Origin, seq: Seq) -> bool {
        let start = origin.through().map(|through| through.saturating_add(1));
        covers(mark, origin, start.or_else(|| self.get(origin).map(|e| e.start)), seq)
    }

    /// The first log that a row lacks, and how far it says to be held: `None` where it says all of `full`.
    pub fn behind(&self, row: &Heads, full: &Heads) -> Option<(Origin, Seq)> {
        let told = |o: Origin| row.get(&o).copied().unwrap_or(0);
        for (origin, seq) in full {
            if told(*origin) >= *seq {
                continue;
            }
            let fold = folds_of(row, origin.region).find(|(through, _)| self.is_folded(*origin, *through));
            let whole = fold.is_some_and(|(through, said)| said >= self.entries_through(full, origin.region, through));
            if !whole {
                return Some((*origin, told(*origin)));
            }
        }
        None
    }
}

/// The folds of one region in a vector: through which start, and the number said.
pub fn folds_of(heads: &Heads, region: Region) -> impl Iterator<Item = (u64, Seq)> + '_ {
    let first = Origin::fold(region, 0).unwrap_or(Origin { region, era: u64::MAX });
    let folds = heads.range(first..=Origin { region, era: u64::MAX });
    folds.filter_map(|(o, seq)| Some((o.through()?, *seq)))
}

/// Whether a mark covers a log up to `seq`: by itself, or by a fold through its start or a later one.
pub fn covers(mark: &Heads, origin: Origin, start: Option<u64>, seq: Seq) -> bool {
    mark.get(&origin).is_some_and(|upto| *upto >= seq)
        || start.is_some_and(|start| folds_of(mark, origin.region).any(|(through, _)| through >= start))
}

/// Whether a name is free for a new era.
pub fn is_era(era: u64) -> bool {
    era != 0 && Origin { region: 1, era }.through().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(region: Region, era: u64) -> Origin {
        Origin { region, era }
    }

    /// Region 1 with so many sealed eras, started in order of their names, and an open one.
    fn table(sealed: u64) -> EraTable {
        let mut table = EraTable::default();
        for era in 1..=sealed + 1 {
            table.note(at(1, era), Era { start: era * 10, sealed: era <= sealed }, true);
        }
        table
    }

    fn heads(eras: u64) -> Heads {
        (1..=eras).map(|era| (at(1, era), era)).collect()
    }

    #[test]
    fn few_origins_are_told_as_they_are_and_many_are_folded_in_blocks() {
        let few = heads(8);
        assert!(matches!(table(20).fold(&few), Cow::Borrowed(_)));
        let folded = table(20).fold(&heads(21)).into_owned();
        let fold = Origin::fold(1, 140).unwrap();
        assert_eq!(folded.len(), 8, "a block of fourteen is folded, six sealed ones and the open one are not");
        assert_eq!(folded[&fold], (1..=14).sum::<u64>());
        assert_eq!(folded[&at(1, 21)], 21);
        assert_eq!((fold.through(), at(1, 21).through()), (Some(140), None));
    }

    #[test]
    fn what_is_not_sealed_or_not_known_stays() {
        let folded = table(3).fold(&heads(12)).into_owned();
        assert_eq!(folded, heads(12), "three sealed ones are less than a block");
        assert_eq!(EraTable::default().fold(&heads(30)).len(), 30);
    }

    #[test]
    fn a_mark_that_covers_the_fold_is_folded_and_one_that_does_not_is_kept() {
        let table = table(20);
        let full = heads(21);
        let folded = table.fold(&full);
        let fold = Origin::fold(1, 140).unwrap();
        let mut mark = full.clone();
        assert!(table.fold_mark(&mut mark, &full, &folded));
        assert_eq!(mark, *folded);
        assert!(!table.fold_mark(&mut mark, &full, &folded), "once");
        let mut behind = full.clone();
        behind.insert(at(1, 9), 8);
        let before = behind.clone();
        assert!(!table.fold_mark(&mut behind, &full, &folded));
        assert_eq!(behind, before);
        // An older fold of another region covers the first logs.
        let mut older: Heads = full.iter().filter(|(o, _)| o.era > 5).map(|(o, s)| (*o, *s)).collect();
        older.insert(Origin::fold(1, 50).unwrap(), 15);
        assert!(table.fold_mark(&mut older, &full, &folded));
        assert_eq!(older[&fold], folded[&fold]);
        assert_eq!(older.len(), folded.len());
        let mut none = Heads::new();
        assert!(!table.fold_mark(&mut none, &full, &folded), "nothing was read");
    }

    #[test]
    fn a_row_that_lacks_a_folded_entry_is_behind() {
        let table = table(20);
        let (full, mut later) = (heads(21), heads(21));
        let row = table.fold(&full).into_owned();
        assert_eq!(table.behind(&row, &full), None);
        assert_eq!(table.behind(&full, &full), None, "a row that was not folded yet");
        later.insert(at(1, 3), 4);
        assert_eq!(table.behind(&row, &later), Some((at(1, 1), 0)), "one of the fold's logs");
        later = full.clone();
        later.insert(at(1, 21), 22);
        assert_eq!(table.behind(&row, &later), Some((at(1, 21), 21)));
    }

    #[test]
    fn the_table_has_a_fixed_form() {
        let mut table = EraTable::default();
        table.note(at(2, 0x0102), Era { start: 7, sealed: true }, false);
        table.note(at(3, 9), Era { start: 1, sealed: false }, false);
        let bytes = table.to_bytes(2);
        assert_eq!(bytes[..], [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 7, 1]);
        let mut read = EraTable::default();
        assert!(read.take_bytes(2, &bytes) && !read.take_bytes(2, &bytes[1..]));
        assert_eq!(read.get(at(2, 0x0102)), table.get(at(2, 0x0102)));
    }

    #[test]
    fn a_region_itself_knows_best_when_its_eras_began() {
        let mut table = EraTable::default();
        let era = |start, sealed| Era { start, sealed };
        assert!(table.note(at(1, 5), era(3, false), false));
        assert!(!table.note(at(1, 5), era(9, false), false));
        assert!(table.note(at(1, 5), era(9, false), true));
        assert!(table.note(at(1, 5), era(2, true), false));
        assert_eq!(table.get(at(1, 5)), Some(era(9, true)));
        assert!(!table.note(Origin::fold(1, 4).unwrap(), era(1, true), true), "no era has such a name");
        assert!(!table.note(at(0, 4), era(1, true), true));
    }

    proptest! {
        #[test]
        fn rows_of_up_to_eight_regions_stay_short(
            eras in proptest::collection::vec((1u8..9, 0u64..60), 1..9),
        ) {
            let (mut table, mut heads) = (EraTable::default(), Heads::new());
            for (region, sealed) in eras {
                for era in 1..=sealed + 1 {
                    table.note(at(region, era), Era { start: era, sealed: era <= sealed }, true);
                    heads.insert(at(region, era), era);
                }
            }
            let folded = table.fold(&heads).into_owned();
            prop_assert!(folded.len() <= ROW_ORIGINS, "{folded:?}");
            prop_assert_eq!(folded.values().sum::<u64>(), heads.values().sum::<u64>());
            prop_assert_eq!(table.behind(&folded, &heads), None);
            for origin in heads.keys() {
                prop_assert_eq!(table.is_in_fold(*origin, &folded), !folded.contains_key(origin));
            }
        }

        #[test]
        fn any_bytes_are_eras_or_none(bytes: Vec<u8>) {
            let mut table = EraTable::default();
            let _read = table.take_bytes(1, &bytes);
        }
    }
}
