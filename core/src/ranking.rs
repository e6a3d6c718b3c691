//! Which edges a client should try, and in which order.
//!
//! The problem: nobody knows the round trip between a client and an edge before one was made, the load that
//! edges report is a second old, and everyone who asks within that second sees the same numbers. The obvious
//! rule, "nearest edge, or least loaded one", sends a whole city to one edge and all of them back again.
//!
//! The rule here:
//!
//! 1. Listed are edges that reported within [`SILENT_AFTER`] (their reports' own age included), are not
//!    draining, neither cordoned nor in a cordoned region, and below their capacity ([`Standing`]).
//! 2. The round trip to an edge is estimated per *site* (a region at one position) from what is best known:
//!    what this client measured, what clients of its network (/24, /48) measured, what clients of its provider
//!    in its country measured, what clients of its country measured, and the distance. Each blends over the
//!    next by its number of samples ([`RttTable`]).
//! 3. Edges within [`BAND_MS`] or 20 % of the best are equally near: the estimate is no better than that.
//! 4. Among those, clients are shared out in proportion to the edges' *room*: free places, fewer as the
//!    processor gets busy, a tenth for a new edge ([`SLOW_START`]). Room counts the reported connections *and
//!    those sent there since that report was made*, so a stale report can't attract a herd. How that is
//!    exact in the sum and chance in the single case is told in `choose.rs`. Since room is in
//!    proportion to capacity where edges are equally full, and those that are fuller get less, all tend to
//!    the same load.
//! 5. The rest of the list follows by the same draw. The third rank leaves the region, or at least the
//!    failure domain, if the first two have not: a client that races down its list is then out of a dead
//!    region with its third attempt.
//!
//! Operators have the last word: [`Policies`] pin clients to regions, share regions out by percent, and weigh them.
//!
//! A client of unknown place is given the dispatching region first, then the others by their distance from
//! it. Everything is a function of its arguments: `now` and random numbers are handed in.
//!
//! Parts: [`Position`], [`Fleet`] (what edges reported), [`RttTable`] (what clients
//! measured), [`Policies`], [`rank`], and [`bench_input`] for measuring all of it.

mod choose;
mod fixture;
mod fleet;
mod policies;
mod position;
mod rtt;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod policies_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
mod share_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use choose::{Choice, Client, Policy, Ranking, RttSource, Why, rank};
pub use fixture::{BenchInput, bench_input};
pub use fleet::{Edge, EdgeReport, Fleet, ReportError, Reported, SiteKey, Standing};
pub use policies::{Placed, Policies, PoliciesDraft, RuleDraft, Who};
pub use position::{Country, NetworkPrefix, Position};
pub use rtt::{RttTable, Whence};

use std::time::Duration;

/// An edge that was silent for this long is not listed: three reports missed, and the promise that a dead
/// edge is out of the lists within 3 s.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);
/// An edge that was silent for this long is forgotten. Until then its return is no slow start.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Edges that are remembered: far above one deployment, and a bound for what a broken peer makes us keep.
pub const EDGES_MAX: usize = 4096;
/// Longest list: a race has at most three attempts in flight, and two more stand in for failures.
pub const LIST_MAX: usize = 5;
/// Edges whose estimates differ by less than this, in milliseconds, or by less than 20 %, are equally near.
pub const BAND_MS: f64 = 10.0;
/// An edge's capacity counts for a tenth when it is first seen, and rises to the whole within this time.
pub const SLOW_START: Duration = Duration::from_secs(30);
/// Networks whose round trips are remembered: 20 MB, and a large country's active /24s.
pub const NETWORKS_MAX: usize = 100_000;
/// Averages kept of countries and of providers: 8 MB, 250 countries and some thousand providers to a few sites
/// each.
pub const GROUPS_MAX: usize = 65_536;
