//! Counts of durations in logarithmic steps: exact enough for percentiles, mergeable, of fixed size.

use std::time::Duration;

/// Steps per doubling, as a power of two: 64, so a percentile is told within 1.6 %.
const STEP_BITS: u32 = 6;
const STEPS: u64 = 1 << STEP_BITS;
/// Durations are counted up to 2^36 us, 19 hours; longer ones count as that.
const LONGEST_BITS: u32 = 36;
const BUCKETS: usize = ((LONGEST_BITS - STEP_BITS + 1) as usize) << STEP_BITS;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// Empty until the first.
    counts: Vec<u64>,
    total: u64,
}

impl Latencies {
    /// Counts one.
    pub fn add(&mut self, latency: Duration) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(us)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// Adds those of another.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.counts.clone_from(&other.counts);
        } else {
            self.counts.iter_mut().zip(&other.counts).for_each(|(own, more)| *own += more);
        }
        self.total += other.total;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// Milliseconds that this share of all does not exceed; 0 where nothing was counted.
    pub fn percentile_ms(&self, percent: u64) -> f64 {
        let wanted = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return middle_us(index) / 1000.0;
            }
        }
        0.0
    }
}

fn bucket(us: u64) -> usize {
    let us = us.min((1 << LONGEST_BITS) - 1);
    let shift = (u64::BITS - us.leading_zeros()).saturating_sub(STEP_BITS + 1);
    let index = (u64::from(shift) << STEP_BITS) + (us >> shift);
    usize::try_from(index).unwrap_or(BUCKETS - 1)
}

#[expect(clippy::cast_precision_loss, reason = "durations of hours in microseconds fit 52 bits")]
fn middle_us(index: usize) -> f64 {
    let index = index as u64;
    if index < STEPS {
        return index as f64;
    }
    let shift = (index >> STEP_BITS) - 1;
    let low = (STEPS + (index & (STEPS - 1))) << shift;
    low as f64 + ((1u64 << shift) - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_series() {
        let mut all = Latencies::default();
        assert_eq!(all.percentile_ms(99), 0.0);
        let mut half = Latencies::default();
        for us in 1..=500u64 {
            all.add(Duration::from_micros(us * 10));
            half.add(Duration::from_micros(5000 + us * 10));
        }
        all.merge(&half);
        assert_eq!(all.count(), 1000);
        for (percent, ms) in [(1, 0.1), (50, 5.0), (99, 9.9), (100, 10.0)] {
            let told = all.percentile_ms(percent);
            assert!((told - ms).abs() <= ms * 0.016, "p{percent} is {told} ms, should be {ms}");
        }
    }

    #[test]
    fn every_duration_is_told_within_two_percent() {
        let powers = (0..LONGEST_BITS).map(|bits| 1u64 << bits);
        for us in (0..10_000).chain(powers.flat_map(|p| [p - 1, p, p + 1, p + p / 3])) {
            let told = middle_us(bucket(us));
            assert!((told - us as f64).abs() <= us as f64 * 0.016, "{us} is told as {told}");
        }
    }

    #[test]
    fn what_is_too_long_counts_as_the_longest() {
        let mut all = Latencies::default();
        all.add(Duration::MAX);
        assert!(all.percentile_ms(50) > 60_000_000.0);
    }
}
