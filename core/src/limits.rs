//! Limits that are part of the protocol. Each is a default that a deployment may change where the
//! configuration says so; ids and frames are fixed.

use std::time::Duration;

/// Longest user or install id, in bytes of UTF-8: fits a length byte and any e-mail local part.
pub const ID_BYTES: usize = 64;
/// Largest body: a long letter. Larger content is media and belongs in an object store.
pub const BODY_BYTES: usize = 64 * 1024;
/// Largest frame: the largest body, its header and room for a page of [`PAGE_BYTES`].
pub const FRAME_BYTES: usize = 128 * 1024;
/// Largest frame between nodes: a shipment of [`SHIP_BYTES`] plus one entry that overshoots it.
pub const NODE_FRAME_BYTES: usize = 512 * 1024;
/// A message's number within its conversation and install stays below this: a device that sends a thousand a second
/// gets there in 285,000 years, and sums of such numbers never overflow.
pub const MESSAGE_NUMBERS: u64 = 1 << 53;
/// Entries per pull: two screens on a tablet, and a bound for one answer.
pub const PULL_ENTRIES: usize = 200;
/// A page ends once it holds this many bytes, so that other lanes get their turn.
pub const PAGE_BYTES: usize = 32 * 1024;
/// An answer to one pull ends once it holds this many bytes of bodies; the client asks for the rest. Bounds what
/// a client that does not read can make its edge keep.
pub const PULL_BYTES: usize = 256 * 1024;
/// Rows per page of `Rows`.
pub const ROWS_PER_PAGE: usize = 100;
/// Rows of the preview with which a client without a cursor starts.
pub const PREVIEW_ROWS: usize = 20;
/// Conversations listed as unstable in one frame.
pub const UNSTABLE_PER_FRAME: usize = 200;
/// Cursors in a Hello.
pub const CURSORS: usize = 64;
/// References per kind, lane and direction: bounds what a peer makes us remember.
pub const REFERENCES: u32 = 1023;
/// Installs per user that may be present at once.
pub const DEVICES_PER_USER: usize = 10;
/// Requests of a connection that wait for an answer; the edge reads no more until some are answered.
pub const IN_FLIGHT: usize = 256;
/// Frames that may wait to be written to one connection before pushes give way to `Advance`.
pub const QUEUE_FRAMES: usize = 256;
/// Bytes that may wait to be written to one connection, likewise.
pub const QUEUE_BYTES: usize = 256 * 1024;
/// Sends per second and user, and how many may come at once.
pub const SENDS_PER_SECOND: u32 = 20;
/// See [`SENDS_PER_SECOND`].
pub const SENDS_BURST: u32 = 60;
/// Failed handshakes per second and address block; valid tokens do not count.
pub const FAILED_HANDSHAKES_PER_SECOND: u32 = 20;
/// A connection that has not sent a Hello by then is closed.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A client's or region's clock may be this far ahead before its stamps are refused or alarmed.
pub const CLOCK_AHEAD_MS: u64 = 60_000;
/// A region whose clock is this far off the median of at least three takes no sends.
pub const CLOCK_STOP_MS: u64 = 10_000;
/// A region whose clock is this far off the median alarms its operators.
pub const CLOCK_ALARM_MS: u64 = 1_000;
/// After so long at least, and at most, a Ping is answered a second time that asks for it.
pub const AGAIN_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// A device that was pushed to and has not acked for this long gets `Advance` again.
pub const PUSH_ACK_TIMEOUT: Duration = Duration::from_secs(3);
/// A log's origin that was not heard of for this long is silent: clients offer their messages elsewhere.
pub const REOFFER_AFTER: Duration = Duration::from_secs(30);
/// Sends that wait for one conversation's commit; more get `overloaded`.
pub const CONVERSATION_QUEUE: usize = 4096;
/// Entries of one batch of one conversation: bounds how long a commit can take.
pub const BATCH_ENTRIES: usize = 256;
/// Bytes on the way to one peer region, un-acked, before shipping waits.
pub const LINK_WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of one shipment.
pub const SHIP_BYTES: usize = 128 * 1024;
/// Entries of one shipment.
pub const SHIP_ENTRIES: usize = 256;
/// A todo row stays this long after its target has caught up: an active conversation writes it once, not
/// once a message.
pub const TODO_LINGER: Duration = Duration::from_secs(2);
/// Rows and removals that ride unsynced are forced to disk within this time.
pub const LAZY_SYNC: Duration = Duration::from_secs(1);
/// Below this many free bytes on the store's disk sends are refused with `store_full`.
pub const DISK_RESERVE_BYTES: u64 = 256 * 1024 * 1024;
/// Unstable own messages that a client keeps before it releases the oldest as `at_risk`.
pub const UNSTABLE_MESSAGES: usize = 10_000;
/// Bytes of them, likewise.
pub const UNSTABLE_BYTES: usize = 64 * 1024 * 1024;
/// Members of a group. Each message writes one row per member, so that larger groups need another way.
pub const GROUP_MEMBERS: usize = 500;
/// Bytes of a group's title: a line on a screen in any script.
pub const TITLE_BYTES: usize = 256;
/// Bytes of a cell's key: a prefix and an id.
pub const CELL_KEY_BYTES: usize = 256;
/// Bytes of a cell's value: cells are folded in memory, so they are small.
pub const CELL_BYTES: usize = 4096;
/// Cells that are folded of one conversation; of more, new keys are ignored. Bounds a checkpoint.
pub const CELLS: usize = 4096;
/// Writings of one cell or role that are kept: the newest may turn out to be the late copies of older ones, and of one
/// value hardly ever more than one is.
pub const WRITES: usize = 16;
/// Origins that a read mark, a cut or a vector from a client may name.
pub const VECTOR_ORIGINS: usize = 256;
/// Bytes of a signal's body: a word for a typing indicator, with room.
pub const SIGNAL_BYTES: usize = 256;
/// Signals that wait for their window to end, in all; more are dropped.
pub const SIGNALS_WAITING: usize = 10_000;
/// Users whose presence one connection may watch: more than a screen of conversations shows.
pub const WATCHED: usize = 100;
/// A user counts as present for so long after his last connection ended: whoever changes from one network, edge or region
/// to another is not gone.
pub const PRESENCE_GRACE: Duration = Duration::from_secs(10);
/// Changes of presence are told at most this often; a first one at once.
pub const PRESENCE_WINDOW: Duration = Duration::from_secs(1);
/// Users of whom a region remembers when they were seen last; the longest gone are forgotten: 100 bytes each.
pub const PRESENCE_SEEN: usize = 200_000;
/// Sends that wait in one node in all: of 200 bytes each 13 MB. More get `overloaded`.
pub const SENDS_WAITING: usize = 65_536;
/// Eras that one frame tells of, between regions or of one conversation: at most 115 KiB.
pub const ERAS_PER_FRAME: usize = 4_096;
