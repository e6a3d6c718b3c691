//! Limits on how often: a generic cell rate algorithm (ITU-T I.371) of 8 bytes a key, with `now` handed in.
//!
//! It stands here instead of a rate-limiting crate because those read a clock of their own.

use std::time::Duration;

/// So many a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    interval: Duration,
    tolerance: Duration,
}

impl Rate {
    /// `per_second` >= 1 in the long run, `burst` >= 1 at once.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, tolerance: interval * burst.max(1).saturating_sub(1) }
    }
}

/// The state of one key: when its allowance is whole again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    whole_at: Duration,
}

impl Bucket {
    /// Takes one, or says how long to wait.
    pub fn take(&mut self, rate: Rate, now: Duration) -> Result<(), Duration> {
        self.check(rate, now)?;
        self.whole_at = self.whole_at.max(now) + rate.interval;
        Ok(())
    }

    /// Whether one could be taken, without taking it.
    pub fn check(&self, rate: Rate, now: Duration) -> Result<(), Duration> {
        let wait = self.whole_at.saturating_sub(now).saturating_sub(rate.tolerance);
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Whether forgetting this key changes nothing.
    pub fn is_whole(&self, now: Duration) -> bool {
        self.whole_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds_and_the_wait_is_told() {
        let rate = Rate::new(20, 60);
        let mut bucket = Bucket::default();
        let now = Duration::from_secs(100);
        assert!((0..60).all(|_| bucket.take(rate, now).is_ok()));
        let wait = bucket.take(rate, now).unwrap_err();
        assert_eq!(wait, Duration::from_millis(50));
        assert!(bucket.take(rate, now + wait).is_ok());
        assert!(bucket.take(rate, now + wait).is_err());
        assert!(bucket.is_whole(now + Duration::from_secs(4)));
    }
}
