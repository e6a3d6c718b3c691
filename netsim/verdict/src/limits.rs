//! Limits and constants of the checks, each with its reason.

/// After so long without a packet a radio sleeps, and the next packet wakes it: about the inactivity timers of LTE
/// networks (10 s).
pub const RADIO_TAIL_NS: u64 = 10_000_000_000;

/// Longest line that is read: a timeline of a million messages fits, and a file that is no history is refused before
/// it fills the memory.
pub const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Findings that one check tells one by one; of the rest the number is told. A system that loses everything should
/// not bury the first loss under a million lines.
pub const FINDINGS_PER_CHECK: usize = 20;

/// Names that one finding lists; of the rest the number is told.
pub const NAMES_PER_FINDING: usize = 5;

/// A run over real packets is worth nothing if its 99th percentile of lateness is above one so-many-th of the shortest
/// delay: above 10 % of it the machine, not the link, decides on the latency.
pub const LATENESS_SHARE: u64 = 10;

/// Quantiles that a distribution keeps: 0 %, 1 % ... 100 %. Enough for a curve, and nobody needs more of a run.
pub const QUANTILES: usize = 101;

/// The window in which connects are counted.
pub const HERD_WINDOW_NS: u64 = 1_000_000_000;

/// Nanoseconds of an hour.
pub const HOUR_NS: u64 = 3_600_000_000_000;
