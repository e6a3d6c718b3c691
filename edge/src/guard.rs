//! Address blocks whose handshakes keep failing.
//!
//! Only failures count: a whole city may connect from one address, with valid tokens. A block is a /24 or a
//! /56: what one party usually holds. Callers count only peers whose address is proven (TCP, or QUIC after
//! the handshake); otherwise anyone could lock out a block by packets with forged sources.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tern_core::pacing::{Bucket, Rate};

/// Blocks remembered at once, about 3 MiB. When it is full of blocks that still owe time, new ones go
/// unwatched: letting a stranger in costs a handshake, forgetting a known offender more.
pub(crate) const BLOCKS: usize = 32 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Guard {
    rate: Rate,
    blocks: BTreeMap<u64, Bucket>,
    /// When the table was last gone through: not for every stranger who comes while it is full.
    looked: Duration,
}

const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Guard {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, blocks: BTreeMap::new(), looked: Duration::ZERO }
    }

    /// Another rate from now on.
    pub(crate) fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// How long connections from this block are refused, if they are.
    pub(crate) fn blocked(&self, from: IpAddr, now: Duration) -> Option<Duration> {
        self.blocks.get(&block(from)).and_then(|bucket| bucket.check(self.rate, now).err())
    }

    /// A handshake from there failed.
    pub(crate) fn failed(&mut self, from: IpAddr, now: Duration) {
        let key = block(from);
        if self.blocks.len() >= BLOCKS && !self.blocks.contains_key(&key) {
            if now >= self.looked + LOOK_EVERY {
                self.forget(now);
            }
            if self.blocks.len() >= BLOCKS {
                return;
            }
        }
        // One more than allowed changes nothing: the block is refused already.
        let _ = self.blocks.entry(key).or_default().take(self.rate, now);
    }

    /// Forgets blocks that owe nothing.
    pub(crate) fn forget(&mut self, now: Duration) {
        self.looked = now;
        self.blocks.retain(|_, bucket| !bucket.is_whole(now));
    }
}

fn block(from: IpAddr) -> u64 {
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

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_block_that_keeps_failing_is_refused_for_a_while_and_its_neighbours_are_not() {
        let mut guard = Guard::new(Rate::new(20, 40));
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
        let mut guard = Guard::new(Rate::new(1, 1));
        guard.failed(ip("2001:db8:1:200::1"), Duration::ZERO);
        assert!(guard.blocked(ip("2001:db8:1:2ff:ffff::1"), Duration::ZERO).is_some());
        assert!(guard.blocked(ip("2001:db8:1:300::1"), Duration::ZERO).is_none());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut guard = Guard::new(Rate::new(1, 1));
        for i in 0..40_000u32 {
            guard.failed(IpAddr::V4((i << 8).into()), Duration::ZERO);
        }
        assert_eq!(guard.blocks.len(), BLOCKS);
        guard.failed(ip("203.0.113.1"), Duration::from_secs(100));
        assert_eq!(guard.blocks.len(), 1);
    }
}
