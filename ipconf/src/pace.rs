//! How often one address may ask.
//!
//! Whole cities share an address behind their provider's translator, and when an edge dies all of them ask at
//! once: the limit is far above what honest clients do and far below what hurts. An IPv6 customer has a whole
//! block, so it is that which counts. What the table forgets is forgiven, never the other way round.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tern_core::pacing::{Bucket, Rate};

/// How often one address may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceConfig {
    /// In the long run. 200: 60,000 clients whose lists are good for five minutes; under 1 % of a processor.
    pub per_second: u32,
    /// At once, after a pause. 5,000: the part of a city that an edge had.
    pub burst: u32,
    /// Addresses that are remembered, some 150 bytes each; the one silent for the longest time makes room.
    /// 65,536: above what asks in the 25 s after which a burst is forgotten anyway.
    pub addresses_max: usize,
}

impl Default for PaceConfig {
    fn default() -> Self {
        Self { per_second: 200, burst: 5_000, addresses_max: 65_536 }
    }
}

/// An IPv4 address, or an IPv6 /56: what providers give to one customer at most, as a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asking(u64);

impl Asking {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(u32::from(v4))),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments().map(u64::from);
                // The bit above the 56 tells the families apart.
                Self(1 << 56 | a << 40 | b << 24 | c << 8 | d >> 8)
            }
        }
    }
}

/// Who asked how often of late.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Rate,
    most: usize,
    asking: BTreeMap<Asking, (u64, Bucket)>,
    by_age: BTreeMap<u64, Asking>,
    tick: u64,
}

impl Pace {
    pub(crate) fn new(config: PaceConfig) -> Self {
        Self {
            rate: Rate::new(config.per_second, config.burst),
            most: config.addresses_max.max(1),
            asking: BTreeMap::new(),
            by_age: BTreeMap::new(),
            tick: 0,
        }
    }

    /// Counts one request, or says how long to wait.
    pub(crate) fn take(&mut self, address: IpAddr, now: Duration) -> Result<(), Duration> {
        let key = Asking::of(address);
        self.tick += 1;
        if self.asking.len() >= self.most
            && !self.asking.contains_key(&key)
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.asking.remove(&oldest);
        }
        let (tick, bucket) = self.asking.entry(key).or_default();
        self.by_age.remove(tick);
        *tick = self.tick;
        self.by_age.insert(self.tick, key);
        bucket.take(self.rate, now)
    }

    /// Forgets those whose allowance is whole again.
    pub(crate) fn sweep(&mut self, now: Duration) {
        let by_age = &mut self.by_age;
        self.asking.retain(|_, (tick, bucket)| {
            let keep = !bucket.is_whole(now);
            if !keep {
                by_age.remove(tick);
            }
            keep
        });
    }

    /// Addresses that are remembered.
    pub(crate) fn len(&self) -> usize {
        self.asking.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds_and_others_are_not_touched() {
        let mut pace = Pace::new(PaceConfig { per_second: 10, burst: 30, addresses_max: 100 });
        let one = address("192.0.2.1");
        assert!((0..30).all(|_| pace.take(one, NOW).is_ok()));
        assert_eq!(pace.take(one, NOW), Err(Duration::from_millis(100)));
        assert_eq!(pace.take(address("::ffff:192.0.2.1"), NOW), Err(Duration::from_millis(100)), "the same address");
        assert!(pace.take(address("192.0.2.2"), NOW).is_ok());
        assert!(pace.take(one, NOW + Duration::from_millis(100)).is_ok());
    }

    #[test]
    fn an_ipv6_block_counts_as_one() {
        let mut pace = Pace::new(PaceConfig { per_second: 1, burst: 1, addresses_max: 100 });
        assert!(pace.take(address("2001:db8:1:100::1"), NOW).is_ok());
        assert!(pace.take(address("2001:db8:1:1ff::2"), NOW).is_err());
        assert!(pace.take(address("2001:db8:1:200::1"), NOW).is_ok());
        // The families do not meet.
        assert!(pace.take(address("0.1.2.3"), NOW).is_ok() && pace.take(address("::1:2:3"), NOW).is_ok());
    }

    #[test]
    fn the_table_is_bounded_and_forgets_what_changes_nothing() {
        let mut pace = Pace::new(PaceConfig { per_second: 1, burst: 1, addresses_max: 1_000 });
        let loud = address("203.0.113.9");
        assert!(pace.take(loud, NOW).is_ok());
        for i in 0..5_000_u32 {
            assert!(pace.take(IpAddr::from(i.to_be_bytes()), NOW).is_ok());
            assert!(pace.take(loud, NOW).is_err(), "who goes on asking is not forgotten");
        }
        assert_eq!((pace.len(), pace.by_age.len()), (1_000, 1_000));
        pace.sweep(NOW + Duration::from_secs(1));
        assert_eq!((pace.len(), pace.by_age.len()), (0, 0));
    }
}
