//! A region's store on ScyllaDB, or on Apache Cassandra 4 and later: [`ScyllaStore`].
//!
//! Two keyspaces. That of the region is replicated in the region's datacenter alone, and holds what only the region
//! decides: tails (who may append to a conversation, and what is decided of it), rows, todo, checkpoints, named
//! values, leases. That of the entries, the timeline, is replicated in every datacenter.
//!
//! Reading order: `cluster` (options, session, statements), `schema` (tables, how they are made and changed),
//! `requests` (bounded, counted, made to fail by tests), `stamps` (who has the region; time-stamps of plain writes),
//! `tails` and `pending` (what is decided), `timeline` (entries), `append` (the steps of an append, and what each
//! death leaves), `archived` and `tiering` (old entries go to an object store), `puts`, `lists`, `store`, [`shared`] (leases
//! and shares, for regions of several processes), [`inspect`] (a check of everything).
//!
//! Invariants:
//!
//! - `tail`, `owner`, `core_node` and `share` are changed by conditional writes only, at LOCAL_SERIAL, without time-stamps
//!   of their own; all other tables by plain writes only, each with a time-stamp that no clock decides about.
//! - A batch is decided by one conditional write, which holds the batch itself (R1). It is in the timeline before the
//!   next one takes its place.
//! - An owner raises the epoch of a conversation before it reads it (R2); so an earlier one can't append to it any
//!   more, nor begin a log in it.
//! - What does not verify is refused, never served.
//! - No clock is trusted for safety. Clocks only say how long a successor waits.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod append;
mod archived;
mod cluster;
mod error;
mod halves;
pub mod inspect;
pub mod limits;
mod lists;
mod metrics;
mod pending;
mod puts;
mod requests;
pub mod schema;
pub mod shared;
mod stamps;
mod store;
mod tails;
mod tiering;
mod timeline;

pub use cluster::{Cluster, Options};
pub use error::ScyllaError;
pub use metrics::ScyllaMetrics;
pub use requests::{Fate, Fates, Step};
pub use shared::SharedScylla;
pub use store::{REGION_KEY, ScyllaStore};
