//! A region's table of routes in Redis: [`RedisRoutes`], on one server or a cluster, from Redis 7 on.
//!
//! Reading order: `keys` (what lies there), `functions.lua` (what servers do with it in one step), `info` (which servers
//! will do), `server` (one of them, and the connection to it), `slots` and `servers` (which one has what), `table` (the
//! trait), [`limits`].
//!
//! Invariants:
//!
//! - A stamp decides which of two writes stays, inside the server: writers need no order among themselves.
//! - Every request ends within its time-out, and a server that does not answer is asked again after a pause that grows.
//!   Nothing waits in here: what could not be written is the caller's, who knows what has changed since.
//! - A connection begins with a look at its server: one that may forget of its own accord, can't be written or lacks
//!   functions is refused in words for an operator.
//! - A server that was started anew, emptied or replaced is noticed: see [`Routes::is_kept`].
//! - No password is shown.
//!
//! [`Routes::is_kept`]: tern_replication::routes::Routes::is_kept

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod info;
mod keys;
pub mod limits;
mod metrics;
mod options;
mod server;
mod servers;
mod slots;
mod table;

pub use keys::is_prefix;
pub use metrics::RedisMetrics;
pub use options::Options;
pub use table::RedisRoutes;
