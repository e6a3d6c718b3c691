//! Limits of the table in Redis, each with the reason for its value.

use std::time::Duration;

/// Requests that are out at once: enough to fill a connection over a network within a region, and a tenth of a
/// millisecond of a server's time each at most.
pub const REQUESTS_AT_ONCE: usize = 128;
/// What a request may take; the options can say otherwise. A server answers within a millisecond, unless it is gone.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two attempts to connect to a server: doubled each time, from the first to the second, and a quarter of it by
/// chance. A table is to be complete within five seconds of its server's return.
pub const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Servers of a cluster that are spoken to.
pub const SERVERS: usize = 256;
/// Addresses of a name that are tried.
pub const ADDRESSES: usize = 4;
/// A request that is told to go elsewhere goes so often.
pub const REDIRECTS: usize = 3;
/// A mark by which a node knows its table stays for so long after it was last looked for.
pub const MARK_TTL: Duration = Duration::from_secs(24 * 3600);
/// Keys that a server is asked for at once while the table is counted.
pub const SCAN_KEYS: u32 = 500;
/// Bytes that are gathered before they are written to a server.
pub const WRITE_BYTES: usize = 64 * 1024;
