//! Limits of the routes between core nodes, and why their values.

use std::time::Duration;

/// Changes are told this often: many of one user within it are one, and nobody notices so short a delay.
pub const FLUSH_EVERY: Duration = Duration::from_millis(20);
/// Or as soon as they come to this: a frame of it delays nothing behind it, and its head costs nothing.
pub const DELTA_BYTES: usize = 16 * 1024;
/// What was told and can be told again: 80 s of 1,700 changes a second. Whoever was away for longer compares sums.
pub const RING_BYTES: usize = 4 * 1024 * 1024;
/// What may be on the way to one node without its word that it came: above what a second at full load and a slow link
/// hold, so a node that reads slowly waits and fills no queue here.
pub const UNHEARD_BYTES: usize = 1024 * 1024;
/// Each part of a shard that is told anew: messages wait behind one of them on the link for a millisecond at most.
pub const CHUNK_BYTES: usize = 60 * 1024;
/// Shards that are asked for at once: 2 MB of a million users, so that a far region is told all in a few seconds, and
/// the queue of a link is never filled by it.
pub const PULLS: usize = 16;
/// Parts of a shard: what its largest size and the least that a part holds come to, doubled.
pub const PARTS: usize = 1024;
/// A shard that did not come by then is asked for again: far above any way there and back.
pub const PULL_AGAIN: Duration = Duration::from_secs(3);
/// A digest is told to the same node after so long at the earliest: its answer has come by then from almost anywhere.
pub const DIGEST_AGAIN: Duration = Duration::from_secs(1);
/// How often all is compared: 3 KB each time, which is nothing beside the changes.
pub const DIGEST_EVERY: Duration = Duration::from_secs(30);
/// How often both sides say where they are.
pub const STATE_EVERY: Duration = Duration::from_secs(1);
/// Changes that came are acked after so long: one ack for five flushes.
pub const ACK_AFTER: Duration = Duration::from_millis(100);
/// That something is missing is said this often at most, lest each frame after a gap makes all be told again.
pub const LOST_EVERY: Duration = Duration::from_millis(500);
/// What is told of users who were heard of last so long ago is a hint only: five words that stayed out.
pub const STALE_AFTER: Duration = Duration::from_secs(5);
/// A node that has started anew, and has nobody in a shard, takes those who were there from it by turns: so many shards
/// a time, so that messages do not wait behind a million of them.
pub const SWEEP_SHARDS: usize = 4;
/// The time between two such turns.
pub const SWEEP_EVERY: Duration = Duration::from_millis(10);
