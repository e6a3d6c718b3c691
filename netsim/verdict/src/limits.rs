//! Limits and constants of the checks, each with its reason.

/// After so long without a packet a radio sleeps, and the next packet wakes it: about the inactivity timers of LTE
/// networks (10 s).
pub const RADIO_TAIL_NS: u64 = 10_000_000_000;
