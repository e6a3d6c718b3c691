//! Limits of the table of routes, each with the reason for its value.

use std::time::Duration;

/// A link's generation that is not renewed for so long is over, and all its routes with it: as long as a dead core node
/// may be seen in the table.
pub const GENERATION_TTL: Duration = Duration::from_secs(15);
/// Generations are renewed so often: two renewals may be lost.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// It is looked so often whether the table is still there. A rebuild has five seconds, and most of them are for writing.
pub const CHECK_EVERY: Duration = Duration::from_millis(500);
/// A user whom nobody has written for so long is forgotten by the table: three rounds of [`REFRESH_EVERY`], so that a
/// table that could not be reached for two of them keeps who is connected.
pub const ROUTE_TTL: Duration = Duration::from_secs(3 * 3600);
/// All that is known is announced again so often, so that it does not run out.
pub const REFRESH_EVERY: Duration = Duration::from_secs(3600);
/// What a removal leaves behind, so that an earlier put does not come after it, is kept for so long: longer than a write
/// may be on its way, with its repetitions.
pub const REMOVED_TTL: Duration = Duration::from_secs(60);
/// Installs of a user in the table; of more, those written longest ago go. A user has ten devices, and installs that
/// were removed a moment ago.
pub const INSTALLS_PER_USER: usize = 32;
/// Changes that wait to be written, each of a device or a user: 20 MiB at most. What is above is dropped, and then
/// everything is announced again.
pub const CHANGES_WAITING: usize = 65_536;
/// Changes that are handed to the table at once.
pub const CHANGES_PER_WRITE: usize = 512;
/// Users that the core is asked for at once while everything is announced, connected or not: a fraction of a millisecond
/// of its time.
pub const PAGE_USERS: usize = 1_000;
/// Between two such pages: at most 100,000 users a second, so that a table that comes back is not flooded, and
/// 200,000 are announced within a few seconds.
pub const PAGE_EVERY: Duration = Duration::from_millis(10);
/// The core's task answers within this, or is asked again.
pub const CORE_WITHIN: Duration = Duration::from_secs(2);
/// Longest name of an edge that is written, in bytes; names are those of nodes and shorter.
pub const EDGE_BYTES: usize = 64;
