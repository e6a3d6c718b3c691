//! Edges: where clients connect.
//!
//! An edge terminates QUIC, TCP+TLS, WebSocket and polls on one port number, checks tokens and limits, and
//! passes frames between its connections and the core of its region. It holds nothing that a client needs: when an edge
//! dies its clients go to another one and miss nothing.
//!
//! Reading order:
//!
//! 1. [`config`]: what an operator sets, with all limits.
//! 2. [`tokens`]: the keys of a deployment, and what a token says; `admission`: who may begin a handshake;
//!    `guard`: address blocks whose handshakes keep failing; `pace`: sends and connections per user.
//! 3. `session`: the machine of one connection, from its Hello on: which frame may come when and on which
//!    lane, what the edge answers itself, what it counts. No I/O; all transports drive it.
//! 4. `mailbox`: what waits to be written to one connection. Pushes give way to `Advance`, answers never do.
//! 5. `lanes`: the three lanes over QUIC streams and over one byte stream; `driver`: the task of a connection,
//!    which owns all of this and nothing else. `http`: what of HTTP an edge answers; `poll`: a session that is
//!    carried over requests.
//! 6. `load`: how long Sends wait on their whole way, and which are refused for it.
//! 7. [`edge`]: the table of connections, listeners, the once-a-second tick, drain; [`metrics`].
//! 8. [`cores`]: the core nodes of the region, and who of them is told what; `link`: the way to one of them, where it is
//!    another process.
//!
//! Invariants:
//!
//! - One task per connection and no channel: frames for it lie in its mailbox, and an idle connection owns no
//!   buffer.
//! - A request that was passed to the core is counted until its last answer is being written; nothing more is
//!   read while too many are open. So answers need no limit of their own.
//! - Nobody waits for a client: what its mailbox can't take gives way, and a client that reads nothing for
//!   half a minute is closed.
//! - Bodies are never looked into.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod admission;
pub mod config;
pub mod cores;
mod driver;
pub mod edge;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod http;
mod lanes;
mod link;
mod listen;
mod load;
mod mailbox;
pub mod metrics;
mod pace;
mod packing;
mod poll;
mod session;
#[cfg(test)]
mod testing;
pub mod tokens;
pub mod tune;

pub use config::{EdgeConfig, EdgeLimits, TICKETS};
pub use cores::Cores;
pub use edge::{BoundEdge, Edge, EdgeError};
pub use listen::quic_params;
pub use metrics::EdgeMetrics;
pub use tokens::TokenKeys;
pub use tune::Tuning;
