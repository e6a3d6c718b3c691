//! When the last bit of a packet has left.
//!
//! Bits leave one packet after the other. For rates in bits a second the end is found by walking over the
//! spans in which a rate holds; it is rounded up to whole nanoseconds, so that no window ever carries more
//! than the rate allows. A packet-delivery trace is not a rate: each line is a moment at which 1,500 bytes may
//! leave, several packets can share one, a long packet takes several, and what nobody used is lost. Turning a
//! trace into bits a second would smooth away exactly the bunching that it was recorded for.

use crate::dice::Dice;
use crate::limits::OPPORTUNITY_BYTES;
use crate::spec::Rate;
use crate::trace::Trace;

const NS_PER_S: u128 = 1_000_000_000;

/// The sender's place in its rate.
#[derive(Clone, Debug)]
pub(crate) struct Shaper {
    dice: Dice,
    /// Number of the trace's next unused opportunity, counted over all its repetitions.
    opportunity: u64,
    /// What is left of the one before, and when that was.
    rest: (u32, u64),
}

impl Shaper {
    pub(crate) fn new(dice: Dice) -> Self {
        Self { dice, opportunity: 0, rest: (0, 0) }
    }

    /// When a packet's last bit has left whose first one may leave at `start_ns`. Calls go forward in time.
    pub(crate) fn finish_ns(&mut self, rate: &Rate, start_ns: u64, bytes: u32) -> u64 {
        match rate {
            Rate::Unlimited => start_ns,
            Rate::Constant(bps) => walk(start_ns, bytes, |_| (*bps, u64::MAX)),
            Rate::Steps(steps) => walk(start_ns, bytes, |now_ns| steps.at(now_ns)),
            Rate::Drawn { span_ns, bps } => walk(start_ns, bytes, |now_ns| {
                let number = now_ns / span_ns;
                let until_ns = number.saturating_add(1).saturating_mul(*span_ns);
                (bps.draw(self.dice.roll(number)), until_ns)
            }),
            Rate::Trace(trace) => self.take(trace, start_ns, bytes),
        }
    }

    fn take(&mut self, trace: &Trace, start_ns: u64, bytes: u32) -> u64 {
        let mut missing = bytes;
        if self.rest.1 == start_ns {
            let taken = missing.min(self.rest.0);
            missing -= taken;
            self.rest.0 -= taken;
        }
        if missing == 0 {
            return start_ns;
        }
        self.opportunity = self.opportunity.max(trace.first_from(start_ns));
        loop {
            let at_ns = trace.at_ns(self.opportunity);
            self.opportunity += 1;
            if missing <= OPPORTUNITY_BYTES {
                self.rest = (OPPORTUNITY_BYTES - missing, at_ns);
                return at_ns;
            }
            missing -= OPPORTUNITY_BYTES;
        }
    }
}

/// Walks over spans of constant rate; `span` tells rate and end of the one that holds at a moment.
fn walk(start_ns: u64, bytes: u32, span: impl Fn(u64) -> (u64, u64)) -> u64 {
    // In bits times nanoseconds per second, so that nothing is rounded before the end.
    let mut work = u128::from(bytes) * 8 * NS_PER_S;
    let mut now_ns = start_ns;
    loop {
        let (bps, until_ns) = span(now_ns);
        let bps = u128::from(bps.max(1));
        let room = bps * u128::from(until_ns.saturating_sub(now_ns));
        if work <= room || until_ns == u64::MAX {
            return now_ns.saturating_add(u64::try_from(work.div_ceil(bps)).unwrap_or(u64::MAX));
        }
        work -= room;
        now_ns = until_ns;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dice::{Amount, Purpose, Way};
    use crate::steps::Steps;

    const MS: u64 = 1_000_000;

    fn shaper() -> Shaper {
        Shaper::new(Dice::new(1, "l", Way::Up, Purpose::Rate))
    }

    #[test]
    fn a_packet_takes_its_bits_over_the_rate_rounded_up() {
        let mut shaper = shaper();
        assert_eq!(shaper.finish_ns(&Rate::Unlimited, 7, 1500), 7);
        assert_eq!(shaper.finish_ns(&Rate::Constant(12_000_000), 7, 1500), 7 + MS);
        assert_eq!(shaper.finish_ns(&Rate::Constant(3_000_000_000), 0, 1), 3, "2.67 ns");
        assert_eq!(shaper.finish_ns(&Rate::Constant(100), 0, 0), 0);
    }

    #[test]
    fn a_packet_that_spans_steps_takes_each_at_its_rate() {
        // 12,000 bits: 1 ms at 8 Mbit/s carries 8,000, the rest takes 4 ms at 1 Mbit/s.
        let steps = Rate::Steps(Steps::new(&[(0, 8_000_000), (5 * MS, 1_000_000)], None));
        assert_eq!(shaper().finish_ns(&steps, 4 * MS, 1500), 9 * MS);
        // Repeating: 8 Mbit/s in even, 1 Mbit/s in odd milliseconds.
        let steps = Rate::Steps(Steps::new(&[(0, 8_000_000), (MS, 1_000_000)], Some(2 * MS)));
        assert_eq!(shaper().finish_ns(&steps, 0, 1500), 2 * MS + 375_000);
    }

    #[test]
    fn a_drawn_rate_depends_on_the_moment_alone() {
        let rate = Rate::Drawn { span_ns: 10 * MS, bps: Amount::Uniform { low: 1_000_000, high: 9_000_000 } };
        let late = shaper().finish_ns(&rate, 500 * MS, 5000);
        let mut other = shaper();
        for start in 0..400 {
            other.finish_ns(&rate, start * MS, 100);
        }
        assert_eq!(other.finish_ns(&rate, 500 * MS, 5000), late);
    }

    #[test]
    fn opportunities_are_shared_by_short_packets_split_for_long_ones_and_wasted_if_unused() {
        let trace = Trace::mahimahi("t", "2\n2\n5\n10\n").unwrap();
        let rate = Rate::Trace(Arc::new(trace));
        let mut shaper = shaper();
        assert_eq!(shaper.finish_ns(&rate, 0, 1000), 2 * MS);
        assert_eq!(shaper.finish_ns(&rate, 2 * MS, 500), 2 * MS, "shares the first");
        assert_eq!(shaper.finish_ns(&rate, 2 * MS, 1500), 2 * MS, "the second line of the same moment");
        assert_eq!(shaper.finish_ns(&rate, 2 * MS, 2000), 10 * MS, "500 bytes of it in the fourth");
        assert_eq!(shaper.finish_ns(&rate, 11 * MS, 1), 12 * MS, "the rest of the fourth is gone; it repeats");
        assert_eq!(shaper.finish_ns(&rate, 12 * MS, 1500), 12 * MS, "1,499 there and a byte in the next line");
        assert_eq!(shaper.finish_ns(&rate, 41 * MS, 1500), 42 * MS, "unused ones are gone");
    }
}
