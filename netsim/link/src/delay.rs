//! How late a packet is: the delay of the moment, and its own jitter.

use crate::dice::Roll;
use crate::spec::{Delay, Jitter};

/// ln 2, times 2^32.
const LN_2: u128 = 2_977_044_472;

impl Jitter {
    /// How much later (or earlier, if negative) a packet with this number is, in nanoseconds.
    pub fn offset_ns(self, roll: Roll) -> i64 {
        match self {
            Self::None => 0,
            Self::Uniform { within_ns } => {
                signed(roll.within(0, within_ns.saturating_mul(2))).saturating_sub(signed(within_ns))
            }
            Self::Normal { sigma_ns } => {
                // Twelve numbers of 16 bits: their sum has a standard deviation of 2^16.
                let words = [roll, roll.next(), roll.next().next()];
                let pieces = words.iter().flat_map(|word| [0, 16, 32, 48].map(|shift| word.0 >> shift & 0xffff));
                let sum: i128 = pieces.map(i128::from).sum();
                let offset = (sum - 6 * 65_535) * i128::from(sigma_ns) / 65_536;
                i64::try_from(offset).unwrap_or(i64::MAX)
            }
            Self::Exponential { mean_ns } => {
                let offset = (u128::from(mean_ns) * u128::from(minus_ln(roll.0))) >> 32;
                i64::try_from(offset).unwrap_or(i64::MAX)
            }
        }
    }

    /// The least offset.
    pub fn least_ns(self) -> i64 {
        match self {
            Self::None | Self::Exponential { .. } => 0,
            Self::Uniform { within_ns } => -signed(within_ns),
            Self::Normal { sigma_ns } => -signed(sigma_ns.saturating_mul(6)),
        }
    }
}

impl Delay {
    /// What a packet that leaves now has before it without jitter.
    pub fn now_ns(&self, now_ns: u64) -> u64 {
        let extra_ns = self.extra_ns.as_ref().map_or(0, |steps| steps.at(now_ns).0);
        self.base_ns.saturating_add(extra_ns)
    }

    /// What a packet that leaves now has before it.
    pub fn of_ns(&self, now_ns: u64, roll: Roll) -> u64 {
        self.now_ns(now_ns).saturating_add_signed(self.jitter.offset_ns(roll))
    }

    /// What no packet undercuts.
    pub fn least_ns(&self) -> u64 {
        let extra_ns = self.extra_ns.as_ref().and_then(|steps| steps.values().min()).unwrap_or(0);
        self.base_ns.saturating_add(extra_ns).saturating_add_signed(self.jitter.least_ns())
    }
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// -ln(x / 2^64), times 2^32. The logarithm's bits come by squaring, one a round.
fn minus_ln(x: u64) -> u64 {
    let x = x | 1;
    let zeros = x.leading_zeros();
    let mut power = x << zeros;
    let mut fraction: u64 = 0;
    for _ in 0..32 {
        let square = (u128::from(power) * u128::from(power)) >> 63;
        let overflows = square >> 64 != 0;
        fraction = fraction << 1 | u64::from(overflows);
        power = u64::try_from(if overflows { square >> 1 } else { square }).unwrap_or(u64::MAX);
    }
    let minus_log2 = (u64::from(zeros + 1) << 32) - fraction;
    u64::try_from((u128::from(minus_log2) * LN_2) >> 32).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::{Dice, Purpose, Way};
    use crate::steps::Steps;

    fn offsets(jitter: Jitter) -> Vec<i64> {
        let dice = Dice::new(5, "l", Way::Down, Purpose::Jitter);
        let mut offsets: Vec<i64> = (0..20_000).map(|place| jitter.offset_ns(dice.roll(place))).collect();
        offsets.sort_unstable();
        offsets
    }

    fn mean(offsets: &[i64]) -> i64 {
        offsets.iter().sum::<i64>() / 20_000
    }

    #[test]
    fn each_distribution_has_its_mean_its_width_and_its_least() {
        let uniform = Jitter::Uniform { within_ns: 1000 };
        let drawn = offsets(uniform);
        assert!(mean(&drawn).abs() < 15 && drawn[0] >= uniform.least_ns() && drawn[19_999] <= 1000);
        assert!((-510..=-490).contains(&drawn[5000]), "{}", drawn[5000]);

        let normal = Jitter::Normal { sigma_ns: 1000 };
        let drawn = offsets(normal);
        assert!(mean(&drawn).abs() < 25 && drawn[0] >= normal.least_ns());
        assert!((-1030..=-970).contains(&drawn[3173]), "one deviation below: {}", drawn[3173]);

        let exponential = Jitter::Exponential { mean_ns: 1000 };
        let drawn = offsets(exponential);
        assert!((980..=1020).contains(&mean(&drawn)) && drawn[0] >= 0);
        assert!((680..=706).contains(&drawn[10_000]), "median ln 2: {}", drawn[10_000]);
        assert!((4400..=4850).contains(&drawn[19_800]), "99th percentile: {}", drawn[19_800]);
        assert!(offsets(Jitter::None).iter().all(|offset| *offset == 0));
    }

    #[test]
    fn the_logarithm_is_exact_enough() {
        for x in [1u64, 2, 3, 12_345, 1 << 40, u64::MAX / 3, u64::MAX] {
            #[expect(clippy::cast_precision_loss, reason = "the check itself")]
            let (exact, got) = (64.0 * std::f64::consts::LN_2 - ((x | 1) as f64).ln(), minus_ln(x) as f64);
            assert!((got / 4_294_967_296.0 - exact).abs() < 1e-8, "{x}: {got} {exact}");
        }
    }

    #[test]
    fn the_delay_of_the_moment_counts_and_never_turns_negative() {
        let delay = Delay {
            base_ns: 100,
            extra_ns: Some(Steps::new(&[(0, 0), (50, 30)], None)),
            jitter: Jitter::Uniform { within_ns: 500 },
            overtaking: false,
        };
        assert_eq!((delay.now_ns(10), delay.now_ns(60), delay.least_ns()), (100, 130, 0));
        let dice = Dice::new(5, "l", Way::Down, Purpose::Jitter);
        assert!((0..1000).all(|place| delay.of_ns(60, dice.roll(place)) <= 630));
        assert!((0..1000).any(|place| delay.of_ns(60, dice.roll(place)) == 0));
    }
}
