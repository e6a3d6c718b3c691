//! How long something took, over all times that it happened.

use serde::{Deserialize, Serialize};

use crate::limits::QUANTILES;

/// Quantiles are by nearest rank, so each is a time that was really measured. All are 0 if nothing was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// How often it was measured.
    pub count: u64,
    /// The mean in nanoseconds.
    pub mean_ns: u64,
    /// Quantiles 0 % to 100 % in nanoseconds, ascending; empty if nothing was measured.
    pub quantiles_ns: Vec<u64>,
}

impl Distribution {
    /// Of these times, in any order.
    pub fn of(mut times_ns: Vec<u64>) -> Self {
        times_ns.sort_unstable();
        let Some(last) = times_ns.len().checked_sub(1) else { return Self::default() };
        let sum: u128 = times_ns.iter().map(|t| u128::from(*t)).sum();
        let count = times_ns.len() as u64;
        let rank = |percent: usize| (percent * times_ns.len()).div_ceil(QUANTILES - 1).saturating_sub(1).min(last);
        Self {
            count,
            mean_ns: u64::try_from(sum / u128::from(count)).unwrap_or(u64::MAX),
            quantiles_ns: (0..QUANTILES).map(|percent| times_ns[rank(percent)]).collect(),
        }
    }

    /// A quantile by percent, up to 100.
    pub fn percentile_ns(&self, percent: usize) -> u64 {
        self.quantiles_ns.get(percent.min(QUANTILES - 1)).copied().unwrap_or(0)
    }

    /// 50 %.
    pub fn median_ns(&self) -> u64 {
        self.percentile_ns(50)
    }

    /// The longest.
    pub fn max_ns(&self) -> u64 {
        self.percentile_ns(QUANTILES - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let d = Distribution::of((1..=1000).rev().collect());
        assert_eq!((d.count, d.median_ns(), d.percentile_ns(99), d.max_ns()), (1000, 500, 990, 1000));
        assert_eq!((d.percentile_ns(0), d.mean_ns), (1, 500));
        let d = Distribution::of(vec![7]);
        assert_eq!((d.percentile_ns(0), d.median_ns(), d.max_ns()), (7, 7, 7));
    }

    #[test]
    fn of_nothing_there_is_nothing_to_say() {
        assert_eq!(Distribution::of(vec![]), Distribution::default());
        assert_eq!(Distribution::default().percentile_ns(99), 0);
    }
}
