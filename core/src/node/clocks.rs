//! Whose clock is wrong (R5).
//!
//! A fast region drags the conversations it writes to into the future, and a slow one writes into the past of
//! its neighbours. With three clocks or more the median tells which one is off: a region that finds itself
//! far from it stops giving places, and its clients go elsewhere. With two clocks nobody can tell.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::Region;

/// An alarm is repeated after so long.
const ALARM_EVERY: Duration = Duration::from_secs(60);
/// Clocks below which a median says nothing.
const CLOCKS_MIN: usize = 3;

/// Differences to the peers' clocks, as their beats tell: low by the way a beat takes, which is far below
/// what counts here.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    ahead_ms: BTreeMap<Region, i64>,
    alarmed: Option<Duration>,
}

impl Clocks {
    /// A peer's clock against the own one.
    pub(super) fn told(&mut self, region: Region, theirs_ms: u64, own_ms: u64) {
        let ahead = i128::from(theirs_ms) - i128::from(own_ms);
        self.ahead_ms.insert(region, i64::try_from(ahead).unwrap_or(i64::MAX));
    }

    /// A peer that is gone has no say.
    pub(super) fn forget(&mut self, region: Region) {
        self.ahead_ms.remove(&region);
    }

    /// How far the own clock is off the median; `None` with fewer than three clocks.
    pub(super) fn own_error_ms(&self) -> Option<u64> {
        let mut all: Vec<i64> = self.ahead_ms.values().copied().chain([0]).collect();
        if all.len() < CLOCKS_MIN {
            return None;
        }
        all.sort_unstable();
        // Of an even number the one nearer to the own clock: doubt is in its favour.
        let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
        Some(low.unsigned_abs().min(high.unsigned_abs()))
    }

    /// Whether to alarm now.
    pub(super) fn alarm(&mut self, now: Duration) -> bool {
        let due = self.alarmed.is_none_or(|at| now >= at + ALARM_EVERY);
        if due {
            self.alarmed = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(ahead: &[i64]) -> Option<u64> {
        let mut clocks = Clocks::default();
        for (region, ms) in (2..).zip(ahead) {
            clocks.told(region, 1_000_000u64.saturating_add_signed(*ms), 1_000_000);
        }
        clocks.own_error_ms()
    }

    #[test]
    fn the_one_that_is_off_finds_itself_off_and_the_others_do_not() {
        assert_eq!(error(&[-600_000, -600_010]), Some(600_000), "ahead of two others");
        assert_eq!(error(&[600_000, 10]), Some(10), "one of the others is");
    }

    #[test]
    fn two_clocks_can_not_tell_and_of_four_the_nearer_median_counts() {
        assert_eq!(error(&[600_000]), None);
        assert_eq!(error(&[600_000, 600_000, 5]), Some(5));
        assert_eq!(error(&[600_000, 600_000, 600_000]), Some(600_000));
    }
}
