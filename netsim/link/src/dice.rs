//! The randomness of a link.
//!
//! Problem: when a failing scenario is cut down, faults are taken out of it one by one, and what remains must
//! happen as before. With one random generator for everything, or with one that is asked only when a fault
//! needs it, a packet less or a fault less moves all later numbers, and the failure is gone for no reason.
//!
//! Rule: a number is a function of (seed, link, direction, purpose, how many-th packet), never of what was
//! asked before. Each purpose has a key of its own, and the number of a packet is `SplitMix64` read at the
//! packet's place. So each packet has exactly one number per purpose whether somebody looks at it or not;
//! whoever needs more makes them from that one ([`Roll::next`]). All is integers, so that machines agree.

use crate::random::{STEP, derive, mix};

/// One of the two directions of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From the first end to the second: a device's uplink.
    Up,
    /// From the second end to the first: a device's downlink.
    Down,
}

/// What a number is for. Each purpose is a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Whether a packet is lost, by chance.
    Loss,
    /// Whether the state of the channel changes with a packet (Gilbert-Elliott).
    Channel,
    /// How late it is.
    Jitter,
    /// Whether there are two of it.
    Duplicate,
    /// How late the second one is.
    CopyJitter,
    /// Whether it is held back.
    Reorder,
    /// Whether, and where, bits of it flip.
    Corrupt,
    /// When lossy slots are; counted by slot, not by packet.
    Slots,
    /// When outages are; counted by outage.
    Fades,
    /// How fast the link is; counted by span of time.
    Rate,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Channel => "channel",
            Self::Jitter => "jitter",
            Self::Duplicate => "duplicate",
            Self::CopyJitter => "copy jitter",
            Self::Reorder => "reorder",
            Self::Corrupt => "corrupt",
            Self::Slots => "slots",
            Self::Fades => "fades",
            Self::Rate => "rate",
        }
    }
}

/// A stream of numbers that can be read at any place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dice {
    key: u64,
}

impl Dice {
    /// The stream of a purpose of one direction of a link. `link` is the link's name.
    pub fn new(seed: u64, link: &str, way: Way, purpose: Purpose) -> Self {
        let way = match way {
            Way::Up => 0,
            Way::Down => 1,
        };
        Self { key: derive(derive(seed, link, way), purpose.name(), 0) }
    }

    /// The number at a place.
    pub fn roll(&self, place: u64) -> Roll {
        Roll(mix(self.key.wrapping_add(STEP.wrapping_mul(place.wrapping_add(1)))))
    }
}

/// A random number, 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roll(pub u64);

impl Roll {
    /// A further number, made from this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(mix(self.0.wrapping_add(STEP)))
    }

    /// Whether something of this chance happens.
    pub fn hits(self, chance: Chance) -> bool {
        self.below(u64::from(Chance::WHOLE)) < u64::from(chance.ppb)
    }

    /// A number below `bound`, each as likely (to one in 2^64 / `bound`); 0 if the bound is.
    pub fn below(self, bound: u64) -> u64 {
        high_half(self.0, bound)
    }

    /// A number from `low` to `high`, both included.
    pub fn within(self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }
}

/// The upper half of a product: the lower is dropped by the shift, so it always fits.
fn high_half(a: u64, b: u64) -> u64 {
    u64::try_from((u128::from(a) * u128::from(b)) >> 64).unwrap_or(u64::MAX)
}

/// How likely something is, in parts per thousand million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance {
    ppb: u32,
}

impl Chance {
    const WHOLE: u32 = 1_000_000_000;
    /// It never happens.
    pub const NEVER: Self = Self { ppb: 0 };
    /// It always happens.
    pub const ALWAYS: Self = Self { ppb: Self::WHOLE };

    /// From parts per thousand million; more than all is all.
    pub const fn ppb(ppb: u32) -> Self {
        Self { ppb: if ppb > Self::WHOLE { Self::WHOLE } else { ppb } }
    }

    /// From parts per million; more than all is all.
    pub const fn ppm(ppm: u32) -> Self {
        Self::ppb(ppm.saturating_mul(1000))
    }

    /// From whole percent; more than all is all.
    pub const fn percent(percent: u32) -> Self {
        Self::ppm(percent.saturating_mul(10_000))
    }

    /// In parts per thousand million.
    pub const fn as_ppb(self) -> u32 {
        self.ppb
    }

    /// The chance that it does not happen.
    pub const fn complement(self) -> Self {
        Self { ppb: Self::WHOLE - self.ppb }
    }
}

/// An amount that is drawn: nanoseconds, or bits a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Always the same.
    Fixed(u64),
    /// Each of these as likely.
    Uniform {
        /// The least.
        low: u64,
        /// The greatest.
        high: u64,
    },
    /// By quantiles: (parts per million of all draws that are at most, this much), from 0 to 1,000,000,
    /// straight lines between. This is how measurements are told: least, median, 95th percentile, greatest.
    Quantiles(Vec<(u32, u64)>),
}

impl Amount {
    /// What is drawn with this number.
    pub fn draw(&self, roll: Roll) -> u64 {
        match self {
            Self::Fixed(amount) => *amount,
            Self::Uniform { low, high } => roll.within(*low, *high),
            Self::Quantiles(points) => {
                let at = roll.below(1_000_000 << 20);
                let place = |ppm: u32| u64::from(ppm) << 20;
                let upper = points.partition_point(|(ppm, _)| place(*ppm) <= at);
                let Some(&(high_ppm, high)) = points.get(upper).or(points.last()) else { return 0 };
                let &(low_ppm, low) = points.get(upper.saturating_sub(1)).unwrap_or(&(high_ppm, high));
                let width = place(high_ppm).saturating_sub(place(low_ppm)).max(1);
                let part = u128::from(high.saturating_sub(low)) * u128::from(at.saturating_sub(place(low_ppm)));
                low + u64::try_from(part / u128::from(width)).unwrap_or(u64::MAX)
            }
        }
    }

    /// The least that can be drawn.
    pub fn least(&self) -> u64 {
        match self {
            Self::Fixed(amount) => *amount,
            Self::Uniform { low, .. } => *low,
            Self::Quantiles(points) => points.first().map_or(0, |(_, amount)| *amount),
        }
    }

    /// The greatest that can be drawn.
    pub fn greatest(&self) -> u64 {
        match self {
            Self::Fixed(amount) => *amount,
            Self::Uniform { high, .. } => *high,
            Self::Quantiles(points) => points.last().map_or(0, |(_, amount)| *amount),
        }
    }

    /// Whether bounds and quantiles ascend, and quantiles go from 0 to 1,000,000.
    pub fn is_sound(&self) -> bool {
        match self {
            Self::Fixed(_) => true,
            Self::Uniform { low, high } => low <= high,
            Self::Quantiles(points) => {
                points.first().is_some_and(|(ppm, _)| *ppm == 0)
                    && points.last().is_some_and(|(ppm, _)| *ppm == 1_000_000)
                    && points.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dice(purpose: Purpose) -> Dice {
        Dice::new(1, "phone", Way::Up, purpose)
    }

    #[test]
    fn streams_differ_by_seed_link_direction_and_purpose_and_repeat() {
        let streams = [
            dice(Purpose::Loss),
            dice(Purpose::Jitter),
            Dice::new(2, "phone", Way::Up, Purpose::Loss),
            Dice::new(1, "laptop", Way::Up, Purpose::Loss),
            Dice::new(1, "phone", Way::Down, Purpose::Loss),
        ];
        let numbers: std::collections::BTreeSet<u64> =
            streams.iter().flat_map(|dice| (0..100).map(|place| dice.roll(place).0)).collect();
        assert_eq!(numbers.len(), 500);
        assert_eq!(dice(Purpose::Loss).roll(7), streams[0].roll(7));
        // Golden: a change of the numbers changes every recorded scenario.
        assert_eq!(streams[0].roll(0).0, 6_532_538_881_245_693_509);
    }

    #[test]
    fn a_chance_comes_true_as_often_as_it_says() {
        let dice = dice(Purpose::Loss);
        let hits = |chance| (0..100_000).filter(|place| dice.roll(*place).hits(chance)).count();
        assert_eq!((hits(Chance::NEVER), hits(Chance::ALWAYS)), (0, 100_000));
        let third = hits(Chance::ppb(333_333_333));
        assert!((32_800..33_900).contains(&third), "{third}");
        assert_eq!(Chance::percent(3).complement(), Chance::ppm(970_000));
    }

    #[test]
    fn quantiles_are_met_and_their_ends_not_left() {
        let amount = Amount::Quantiles(vec![(0, 10), (500_000, 100), (950_000, 1000), (1_000_000, 5000)]);
        assert!(amount.is_sound());
        let dice = dice(Purpose::Fades);
        let mut drawn: Vec<u64> = (0..20_000).map(|place| amount.draw(dice.roll(place))).collect();
        drawn.sort_unstable();
        assert!(drawn[0] >= amount.least() && drawn[19_999] <= amount.greatest());
        assert!((97..=104).contains(&drawn[10_000]), "{}", drawn[10_000]);
        assert!((950..=1200).contains(&drawn[19_000]), "{}", drawn[19_000]);
        assert_eq!(amount.draw(Roll(0)), 10);
        assert!(amount.draw(Roll(u64::MAX)) >= 4990);
        for unsound in [vec![], vec![(0, 1)], vec![(0, 5), (1_000_000, 4)], vec![(1, 0), (1_000_000, 4)]] {
            assert!(!Amount::Quantiles(unsound).is_sound());
        }
        assert!(!Amount::Uniform { low: 2, high: 1 }.is_sound());
    }
}
