//! Limits of the link model.

/// Slowest rate: below it one packet takes minutes, which is what an outage is for.
pub const RATE_BPS_MIN: u64 = 100;
/// Shortest span for which a drawn rate holds: finer ones cost time, and no measurement is finer.
pub const RATE_SPAN_NS_MIN: u64 = 1_000_000;
/// Shortest gap and span of an episode together, so that walking through them ends.
pub const EPISODE_NS_MIN: u64 = 1_000_000;
/// Packets that a queue holds where nothing was said: the length that Linux gives a network device.
pub const QUEUE_PACKETS: u32 = 1000;
/// Bytes that a queue holds where nothing was said: as many full Ethernet packets.
pub const QUEUE_BYTES: u64 = 1_500_000;
/// Bytes that one opportunity of a packet-delivery trace carries, as in mahimahi.
pub const OPPORTUNITY_BYTES: u32 = 1500;
/// Smallest MTU that IPv4 allows (RFC 791); a smaller one is a mistake.
pub const MTU_MIN: u32 = 68;
/// Lines of a trace, or values of one of its lists, that are read: an hour at 1 Gbit/s has fewer.
pub const TRACE_LINES_MAX: usize = 10_000_000;
/// Remote addresses that one mapping's filter remembers; the longest unused one is forgotten first.
pub const NAT_REMOTES_MAX: usize = 4096;
/// Interfaces of one device: more is a mistake in a scenario.
pub const INTERFACES_MAX: usize = 16;
