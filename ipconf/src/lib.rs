//! Dispatch: which edges a client should connect to.
//!
//! A client asks `POST /v1/dispatch` of any region, is looked up by its address, and gets three to five
//! edges with what it needs to race them: addresses, transports, time-outs, a time to live. It keeps the
//! answer and can do without a new one for as long as one of those edges lives; so dispatch may fail, be
//! slow, or be wrong, and nothing is lost by it but milliseconds.
//!
//! Parts, in reading order:
//!
//! 1. [`api`]: what clients and dispatch exchange, as JSON; [`proto`], as protobuf.
//! 2. [`load`]: what edges last said of themselves; three silent seconds, and an edge is no longer listed.
//! 3. [`geo`], [`centroids`]: from an address to a country and a position; `replace`, a newer file for it.
//! 4. [`tern_core::ranking`]: the choice itself, a pure machine that has its essay there.
//! 5. [`dispatch`]: brings these together; [`forwarded`] says whose address counts, [`prefix`] how operators
//!    write blocks of addresses.
//! 6. `http`: paths, limits and errors around it; `encoding`, which form is spoken; `pace`, how often one
//!    address may ask; [`metrics`]: what it counts.
//!
//! Invariants:
//!
//! - Nothing here is the only copy of anything. The load table is whole again a second or two after a start;
//!   learned round trips are a refinement of distances, and are learned anew.
//! - No address makes an error: what can't be placed gets the dispatching region first. Only a GeoIP file
//!   that an operator named and that can't be used stops the process, when it starts.
//! - A client can't choose its address: `X-Forwarded-For` counts from configured proxies only, and "what if"
//!   is for operators. What it measured moves the estimates of its own network, and hardly those of others.
//! - Every table and every request is bounded, see [`limits`] and [`tern_core::ranking`].
//! - Time and randomness come from [`tern_net::env::Env`]; a decision holds two locks for microseconds and
//!   never waits for anything else.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod api;
pub mod centroids;
pub mod dispatch;
mod encoding;
pub mod geo;
mod http;
pub mod limits;
pub mod load;
pub mod metrics;
mod pace;
pub mod proto;
mod replace;

pub use dispatch::{Dispatch, DispatchConfig, DispatchError, DispatchTuning};
pub use geo::{Geo, GeoError, GeoReloadError, Located, Unplaced};
pub use load::{LoadError, LoadTable, Seen};
pub use metrics::DispatchMetrics;
pub use pace::PaceConfig;
pub use tern_net::forwarded;
pub use tern_net::prefix::{self, IpPrefix, PrefixError};
