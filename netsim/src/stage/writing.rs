//! When a load writes, and how much: a sequence that follows from the seed and the load's id alone.

use tern_core::clock::Entropy;
use tern_netsim_link::random::derive;
use tern_netsim_scenario::plan::{LoadPlan, Size};

/// Resolution of the numbers that are turned into times and sizes.
const PARTS: u64 = 1 << 32;

/// See the module.
#[derive(Debug)]
pub struct Writer {
    rng: Entropy,
    load: LoadPlan,
    next_ns: u64,
    left: u64,
    begun: bool,
}

impl Writer {
    /// Before its first message.
    pub fn new(seed: u64, load: &LoadPlan) -> Self {
        let rng = Entropy::seeded(derive(seed, &format!("load {} of {}", load.id, load.from), 0));
        Self { rng, load: load.clone(), next_ns: load.from_ns, left: load.count.unwrap_or(u64::MAX), begun: false }
    }

    /// When the next message is written; `None`: no more.
    pub fn next_ns(&mut self) -> Option<u64> {
        // The first of an even load comes at once, of a random one after a random time.
        if self.begun || self.load.poisson {
            self.next_ns = self.next_ns.saturating_add(self.gap_ns());
        }
        self.begun = true;
        self.left = self.left.checked_sub(1)?;
        (self.next_ns < self.load.until_ns).then_some(self.next_ns)
    }

    /// How long the message is.
    pub fn bytes(&mut self) -> u32 {
        match self.load.size {
            Size::Fixed(bytes) => bytes,
            Size::Uniform(low, high) => {
                let width = u64::from(high.saturating_sub(low)) + 1;
                low.saturating_add(u32::try_from(self.rng.below(width)).unwrap_or(0))
            }
            Size::Zipf(low, high) => self.zipf(low.max(1), high),
        }
    }

    /// Exponentially distributed with the load's mean, at least a microsecond; or always the mean.
    fn gap_ns(&mut self) -> u64 {
        if !self.load.poisson {
            return self.load.every_ns.max(1);
        }
        let part = fraction(self.rng.below(PARTS));
        scaled(self.load.every_ns, -(1.0 - part).ln()).max(1000)
    }

    /// Density 1/x between both: equally many between 80 and 160 as between 1,000 and 2,000.
    fn zipf(&mut self, low: u32, high: u32) -> u32 {
        let part = fraction(self.rng.below(PARTS));
        let ratio = f64::from(high.max(low)) / f64::from(low);
        let bytes = scaled(u64::from(low), ratio.powf(part));
        u32::try_from(bytes).unwrap_or(high).clamp(low, high.max(low))
    }
}

/// From 0 to below 1.
#[allow(clippy::cast_precision_loss, reason = "both are exact: at most 2^32")]
fn fraction(part: u64) -> f64 {
    part as f64 / PARTS as f64
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times and sizes below 2^52; a float is cut off, never wrapped"
)]
fn scaled(value: u64, by: f64) -> u64 {
    (value as f64 * by) as u64
}

#[cfg(test)]
mod tests {
    use tern_netsim_scenario::plan::Target;

    use super::*;

    fn load(poisson: bool, size: Size) -> LoadPlan {
        LoadPlan {
            id: "l".into(),
            from: "a".into(),
            to: Target::User("b".into()),
            every_ns: 1_000_000_000,
            poisson,
            size,
            from_ns: 5_000_000_000,
            until_ns: 10_005_000_000_000,
            count: None,
        }
    }

    fn times(mut writer: Writer) -> Vec<u64> {
        std::iter::from_fn(|| writer.next_ns()).collect()
    }

    #[test]
    fn an_even_load_begins_at_once_and_ends_in_time() {
        let all = times(Writer::new(1, &load(false, Size::Fixed(10))));
        assert_eq!((all[0], all[1], all.len()), (5_000_000_000, 6_000_000_000, 10_000));
    }

    #[test]
    fn a_random_load_has_its_mean_and_repeats() {
        let of = |seed| times(Writer::new(seed, &load(true, Size::Fixed(10))));
        let all = of(1);
        assert!((9_700..10_300).contains(&all.len()), "{}", all.len());
        assert_eq!(all, of(1));
        assert_ne!(all, of(2));
        // Of exponential gaps 63 % are shorter than the mean.
        let short = all.windows(2).filter(|two| two[1] - two[0] < 1_000_000_000).count();
        assert!((6_000..6_700).contains(&short), "{short}");
    }

    #[test]
    fn a_count_ends_a_load() {
        let few = LoadPlan { count: Some(3), ..load(true, Size::Fixed(10)) };
        assert_eq!(times(Writer::new(1, &few)).len(), 3);
    }

    #[test]
    fn sizes_lie_within_their_bounds_and_most_of_zipf_are_short() {
        let mut writer = Writer::new(1, &load(true, Size::Zipf(80, 4000)));
        let all: Vec<u32> = (0..10_000).map(|_| writer.bytes()).collect();
        assert!(all.iter().all(|bytes| (80..=4000).contains(bytes)));
        let short = all.iter().filter(|bytes| **bytes < 566).count();
        assert!((4_800..5_200).contains(&short), "half lie below the geometric mean: {short}");
        let mut writer = Writer::new(1, &load(true, Size::Uniform(5, 7)));
        let all: std::collections::BTreeSet<u32> = (0..100).map(|_| writer.bytes()).collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), [5, 6, 7]);
    }
}
