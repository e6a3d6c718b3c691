//! The driver's limits, each with the reason for its value. Those of the protocol and the machine are in
//! `tern_core::limits` and `tern_core::client::limits`.

use std::time::Duration;

/// Events that a subscriber may be behind before it misses some and is told so: a long burst of messages.
pub const EVENTS: usize = 4096;
/// As many as an application can ask for: some hundred bytes each.
pub const EVENTS_MAX: usize = 1 << 20;
/// Largest dispatch answer that is read: a hundred times a usual one.
pub const DISPATCH_ANSWER_BYTES: usize = 256 * 1024;
/// Shortest and longest time that a dispatch answer is used without asking again.
pub const DISPATCH_TTL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(24 * 60 * 60));
/// Shortest and longest time-out of an attempt that dispatch may set.
pub const ATTEMPT_TIMEOUT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Edges taken from one dispatch answer.
pub const EDGES: usize = 16;
/// Bytes of a name in a dispatch answer: a host name's most (RFC 1035). Edges of longer ones are left out.
pub const NAME_BYTES: usize = 255;
/// Bytes of an address in it: such a name and a port.
pub const ADDRESS_BYTES: usize = NAME_BYTES + 6;
/// Addresses tried of one edge.
pub const ADDRESSES: usize = 4;
/// After a failed transaction the store is read again after this time, doubling up to [`STORE_PAUSE_MAX`].
pub const STORE_PAUSE: Duration = Duration::from_secs(1);
/// See [`STORE_PAUSE`].
pub const STORE_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long paging back waits for what it asked for.
pub const PAGINATE: Duration = Duration::from_secs(15);
/// How long a question about the user's devices waits for its answer.
pub const DEVICES: Duration = Duration::from_secs(10);
/// Newest entries of a conversation among which a list looks for a message to show: changes of a group and blocked
/// users' messages stand between.
pub const LIST_LOOKS_BACK: usize = 20;
/// How long `close` waits for the driver to end.
pub const CLOSE: Duration = Duration::from_secs(5);
/// How long a poll waits at the edge for something to tell: what proxies on the way bear.
pub const POLL_WAIT: Duration = Duration::from_secs(25);
/// How long its answer may take beyond that, or a connection to be made.
pub const POLL_WITHIN: Duration = Duration::from_secs(10);
/// A poll whose answer is lost is sent so often in all; then the session is given up for a new one.
pub const POLL_TRIES: u32 = 3;
/// Before each repetition, times those so far; and before the next poll after one that was answered at once and without
/// anything to tell, doubling up to [`POLL_PAUSE_MAX`].
pub const POLL_PAUSE: Duration = Duration::from_millis(250);
/// See [`POLL_PAUSE`]: what comes meanwhile is no later than this.
pub const POLL_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Bytes of frames in one poll: what edges take.
pub const POLL_BYTES: usize = 256 * 1024;
/// And in its answer.
pub const POLL_ANSWER_BYTES: usize = 256 * 1024;
/// Timers fire at most this often: a guard against a machine that asks for the past.
pub const TICK_MIN: Duration = Duration::from_millis(1);
/// Bounds of what a remembered round trip makes of the one that is assumed for the first packets of a connection.
pub const INITIAL_RTT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
