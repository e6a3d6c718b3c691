//! How late packets are delivered, and whether a run is worth anything.
//!
//! The router writes a packet when it is due or later, never earlier; how much later depends on the machine. A delay of
//! 25 ms that was 3 ms too long is another link, so the lateness of every packet is counted, beside the delay that it
//! should have had.

/// Buckets per power of two: a figure is at most one part in 32 too low.
const FINE: u32 = 5;
/// Enough for hours.
const BUCKETS: usize = 64 << FINE;

/// See the module.
#[derive(Clone, Debug)]
pub struct Lateness {
    buckets: Vec<u64>,
    packets: u64,
    max_ns: u64,
    delay_ns: Option<u64>,
}

impl Default for Lateness {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], packets: 0, max_ns: 0, delay_ns: None }
    }
}

/// How well a run kept up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packets that were delivered.
    pub packets: u64,
    /// Half of them were at most so late, to one part in 32.
    pub p50_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// All.
    pub max_ns: u64,
    /// The shortest way that the links gave to any of them, in nanoseconds from host to host. Packets between hosts of
    /// one place do not count: their millisecond stands for a cable, and no result is about it.
    pub delay_ns: u64,
}

impl Lateness {
    /// A packet was delivered so late; its way should have taken so long, if that counts.
    pub fn add(&mut self, late_ns: u64, way_ns: Option<u64>) {
        self.buckets[bucket(late_ns)] += 1;
        self.packets += 1;
        self.max_ns = self.max_ns.max(late_ns);
        if let Some(way_ns) = way_ns {
            self.delay_ns = Some(self.delay_ns.map_or(way_ns, |least_ns| least_ns.min(way_ns)));
        }
    }

    /// So far.
    pub fn summary(&self) -> Summary {
        Summary {
            packets: self.packets,
            p50_ns: self.quantile_ns(50),
            p99_ns: self.quantile_ns(99),
            max_ns: self.max_ns,
            delay_ns: self.delay_ns.unwrap_or(0),
        }
    }

    fn quantile_ns(&self, percent: u64) -> u64 {
        let wanted = self.packets.saturating_mul(percent).div_ceil(100);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return least_of(index).min(self.max_ns);
            }
        }
        self.max_ns
    }
}

fn bucket(ns: u64) -> usize {
    let magnitude = ns.checked_ilog2().unwrap_or(0);
    let index = if magnitude < FINE {
        ns
    } else {
        let shift = magnitude - FINE;
        (u64::from(shift + 1) << FINE) + ((ns >> shift) - (1 << FINE))
    };
    usize::try_from(index).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The least value of a bucket.
fn least_of(index: usize) -> u64 {
    let index = u64::try_from(index).unwrap_or(u64::MAX);
    let row = index >> FINE;
    if row == 0 { index } else { ((1 << FINE) + (index & ((1 << FINE) - 1))) << (row - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_ascend_and_hold_what_they_say() {
        let mut last = 0;
        for power in 0..60 {
            for ns in [1u64 << power, (1 << power) + (1 << power) / 3, (2 << power) - 1] {
                let index = bucket(ns);
                assert!(index >= last && least_of(index) <= ns && ns - least_of(index) <= ns / 32, "{ns}");
                last = index;
            }
        }
    }

    #[test]
    fn quantiles_are_of_what_was_added() {
        let mut lateness = Lateness::default();
        assert_eq!(lateness.summary(), Summary::default());
        for late_us in 1..=1000 {
            lateness.add(late_us * 1000, (late_us > 10).then_some(25_000_000 + late_us));
        }
        let Summary { packets, p50_ns, p99_ns, max_ns, delay_ns } = lateness.summary();
        assert_eq!((packets, max_ns, delay_ns), (1000, 1_000_000, 25_000_011));
        assert!((484_000..=500_000).contains(&p50_ns), "{p50_ns}");
        assert!((959_000..=990_000).contains(&p99_ns), "{p99_ns}");
    }
}
