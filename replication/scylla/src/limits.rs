//! Limits of the Scylla store, each with the reason for its value.

use std::time::Duration;

/// Stored form of the entries that one conditional write decides, in bytes; at least one entry is decided by each.
/// The write is stored three times over on its way (proposal, commit, commit log), and a server refuses mutations
/// of half a segment of its commit log, 16 MiB by default. A batch of 256 small messages is far below it.
pub const PENDING_BYTES: usize = 256 * 1024;
/// Conversations whose appends are under way at once. Each has one request out most of the time. One whose coordinator is slow, or has
/// just died, holds up no other.
pub const APPENDS_AT_ONCE: usize = 128;
/// Requests that one store has out at once: below the 2,048 that wait on one connection, and enough to keep three
/// nodes busy.
pub const REQUESTS_AT_ONCE: usize = 512;
/// Conversations whose tails are remembered, in two halves; others are read again. About 250 bytes each.
pub const TAIL_CACHE: usize = 65_536;
/// Revisions of rows that are remembered, in two halves; a row that is not among them is read before it is written.
/// About 60 bytes each.
pub const REV_CACHE: usize = 262_144;
/// Locks that keep the writes of one conversation apart; those that share one wait for each other.
pub const TURNS: usize = 4_096;
/// A conditional write of which nothing was heard is looked for at most so long. Then the answer is `Unknown`, and
/// the caller reads the head.
pub const RESOLVE_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks: doubled each time, from the first to the second.
pub const RESOLVE_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Tries of what another writer came in between of: an owner that is being replaced, never more than two.
pub const CONTENTION_TRIES: usize = 16;
/// Time-stamps of plain writes are reserved so far ahead, in microseconds. So long can a process that was replaced
/// go on with what it has, and so long does its successor wait before it serves.
pub const STAMP_WINDOW_US: i64 = 3_000_000;
/// A region that runs renews its reserve so often, with one conditional write, whether anything is written or not: so
/// others see that it runs, and it sees that another has taken over.
pub const STAMP_RENEWAL: Duration = Duration::from_secs(1);
/// A successor waits for its predecessor's time-stamps at most so long: further ahead means that a clock is wrong.
pub const STAMP_WAIT: Duration = Duration::from_secs(10);
/// Longest checkpoint, in bytes; half of the largest mutation that a server takes by default.
pub const CHECKPOINT_BYTES: usize = 8 * 1024 * 1024;
/// Longest named value, in bytes.
pub const META_BYTES: usize = 1024 * 1024;
/// Rows of `todo` are read in so many ranges of tokens, so that none meets more tombstones than a server bears.
pub const TODO_RANGES: i64 = 64;
/// Ranges that are read at once.
pub const RANGES_AT_ONCE: usize = 8;
/// Rows on a page of entries: 8 MiB if all are as long as can be.
pub const ENTRY_PAGE: i32 = 128;
/// Rows on a page of anything else.
pub const ROW_PAGE: i32 = 1_000;
/// Damaged logs that are remembered; others are found damaged again when they are read.
pub const DAMAGED_LOGS: usize = 10_000;
/// What a request may take; the options can say otherwise.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// A read that has not been answered for so long is asked of another node as well. What a busy database takes is shorter: reads
/// that are asked twice make it busier.
pub const SPECULATE_AFTER: Duration = Duration::from_millis(300);
/// A read of many partitions, as of what is left to do in a share, is asked of another node later than that; and so is what a core node
/// says of its lease, so that it keeps it though the one that it asked stands still.
pub const SPECULATE_LATE_AFTER: Duration = Duration::from_millis(500);
/// A node is asked so often whether it is there, and its connections are given up when it does not answer for so long: a paused one
/// accepts connections and says nothing. Longer than a collection of garbage takes, or a moment without a free processor: of each
/// conditional write that was under way on a connection that is given up, what it did must be read.
pub const KEEPALIVE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(1_500));
/// Conversations that a pass of tiering looks at together.
pub const TIER_PAGE: usize = 1_000;
/// Reads of a pass of tiering that are under way at once: a few of those that the region may have out.
pub const ERASED_READS: usize = 16;
/// Bits of a sequence number that count within one partition of the timeline: 4,096 entries each.
pub const BUCKET_BITS: u32 = 12;
