//! Address blocks whose handshakes keep failing.
//!
//! Failures count, and handshakes that are broken off: those by a far higher limit, since racing clients do
//! that, and only until a Hello from the block is accepted. Successes never count: a whole city may connect
//! from one address, with valid tokens. A block is a /24 or a
//! /56: what one party usually holds. Callers count only peers whose address is proven (TCP, or QUIC after
//! the handshake); otherwise anyone could lock out a block by packets with forged sources.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tern_core::pacing::{Bucket, Rate};

/// Blocks remembered at once, about 4 MiB. When it is full of blocks that still owe time, new ones go
/// unwatched: letting a stranger in costs a handshake, forgetting a known offender more.
pub(crate) const BLOCKS: usize = 32 * 1024;

/// An address block.
pub(crate) type Block = u64;

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    failed: Bucket,
    abandoned: Bucket,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Guard {
    rate: Rate,
    abandoned: Rate,
    blocks: BTreeMap<Block, Record>,
    /// When the table was last gone through: not for every stranger who comes while it is full.
    looked: Duration,
}

const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Guard {
    /// Rates of failed handshakes, and of those that were broken off.
    pub(crate) fn new(rate: Rate, abandoned: Rate) -> Self {
        Self { rate, abandoned, blocks: BTreeMap::new(), looked: Duration::ZERO }
    }

    /// Another rate of failures from now on.
    pub(crate) fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// How long connections from this block are refused, if they are.
    pub(crate) fn blocked(&self, from: IpAddr, now: Duration) -> Option<Duration> {
        let record = self.blocks.get(&block(from))?;
        record.failed.check(self.rate, now).err().max(record.abandoned.check(self.abandoned, now).err())
    }

    /// A handshake from there failed.
    pub(crate) fn failed(&mut self, from: IpAddr, now: Duration) {
        let rate = self.rate;
        if let Some(record) = self.record(from, now) {
            // One more than allowed changes nothing: the block is refused already.
            let _ = record.failed.take(rate, now);
        }
    }

    /// A handshake from there was broken off.
    pub(crate) fn abandoned(&mut self, from: IpAddr, now: Duration) {
        let rate = self.abandoned;
        if let Some(record) = self.record(from, now) {
            // Likewise.
            let _ = record.abandoned.take(rate, now);
        }
    }

    /// A Hello from there was accepted.
    pub(crate) fn accepted(&mut self, from: IpAddr) {
        if let Some(record) = self.blocks.get_mut(&block(from)) {
            record.abandoned = Bucket::default();
        }
    }

    /// The block's record, unless the table is full.
    fn record(&mut self, from: IpAddr, now: Duration) -> Option<&mut Record> {
        let key = block(from);
        if self.blocks.len() >= BLOCKS && !self.blocks.contains_key(&key) {
            if now >= self.looked + LOOK_EVERY {
                self.forget(now);
            }
            if self.blocks.len() >= BLOCKS {
                return None;
            }
        }
        Some(self.blocks.entry(key).or_default())
    }

    /// Forgets blocks that owe nothing.
    pub(crate) fn forget(&mut self, now: Duration) {
        self.looked = now;
        self.blocks.retain(|_, record| !record.failed.is_whole(now) || !record.abandoned.is_whole(now));
    }
}

pub(crate) fn block(from: IpAddr) -> Block {
    match from.to_canonical() {
        IpAddr::V4(a) => u64::from(u32::from(a) >> 8),
        // The 8 highest bytes but the last one, marked so that no IPv4 block is equal.
        IpAddr::V6(a) => {
            let o = a.octets();
            u64::from_be_bytes([1, o[0], o[1], o[2], o[3], o[4], o[5], o[6]])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(per_second: u32, burst: u32) -> Guard {
        Guard::new(Rate::new(per_second, burst), Rate::new(100, 500))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_block_that_keeps_failing_is_refused_for_a_while_and_its_neighbours_are_not() {
        let mut guard = guard(20, 40);
        let now = Duration::from_secs(50);
        for i in 0..40 {
            assert_eq!(guard.blocked(ip("192.0.2.9"), now), None);
            guard.failed(ip(&format!("192.0.2.{i}")), now);
        }
        assert!(guard.blocked(ip("192.0.2.200"), now).is_some());
        assert!(guard.blocked(ip("::ffff:192.0.2.1"), now).is_some(), "the mapped form is the same block");
        assert_eq!(guard.blocked(ip("192.0.3.1"), now), None);
        assert_eq!(guard.blocked(ip("192.0.2.9"), now + Duration::from_millis(50)), None);
        guard.forget(now + Duration::from_secs(10));
        assert!(guard.blocks.is_empty());
    }

    #[test]
    fn ipv6_blocks_are_56_bits() {
        let mut guard = guard(1, 1);
        guard.failed(ip("2001:db8:1:200::1"), Duration::ZERO);
        assert!(guard.blocked(ip("2001:db8:1:2ff:ffff::1"), Duration::ZERO).is_some());
        assert!(guard.blocked(ip("2001:db8:1:300::1"), Duration::ZERO).is_none());
    }

    #[test]
    fn handshakes_that_are_broken_off_count_until_one_is_finished() {
        let mut guard = guard(20, 40);
        let (from, now) = (ip("192.0.2.9"), Duration::from_secs(50));
        (0..499).for_each(|_| guard.abandoned(from, now));
        assert_eq!(guard.blocked(from, now), None);
        guard.accepted(ip("192.0.2.77"));
        (0..500).for_each(|_| guard.abandoned(from, now));
        assert_eq!(guard.blocked(from, now), Some(Duration::from_millis(10)));
        assert_eq!(guard.blocked(ip("192.0.3.9"), now), None);
        guard.accepted(from);
        assert_eq!(guard.blocked(from, now), None);
        (0..41).for_each(|_| guard.failed(from, now));
        guard.accepted(from);
        assert!(guard.blocked(from, now).is_some(), "failures are not forgiven for a success");
        guard.forget(now + Duration::from_secs(10));
        assert!(guard.blocks.is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut guard = guard(1, 1);
        for i in 0..40_000u32 {
            guard.failed(IpAddr::V4((i << 8).into()), Duration::ZERO);
        }
        assert_eq!(guard.blocks.len(), BLOCKS);
        guard.failed(ip("203.0.113.1"), Duration::from_secs(100));
        assert_eq!(guard.blocks.len(), 1);
    }
}
