//! What tern is made of, without the outside world.
//!
//! Everything here is either a value, a format, or a machine: a struct that is handed events and `now`, and
//! hands back what is to be done. Nothing in this crate opens a socket or a file, reads a clock, starts a
//! task or draws randomness it was not given; so the same code runs over real sockets and in virtual time,
//! and a failing history is a list of calls.
//!
//! Reading order:
//!
//! 1. [`ids`], [`hlc`]: conversations, origins, places, revisions, and the clock that orders messages.
//! 2. [`entry`]: a message as it lies in a log, with its stored form; [`receipt`]: the proof of its place.
//! 3. [`wire`]: the frames between clients and edges, and between nodes.
//! 4. [`identity`], [`sequencer`]: what makes a resend harmless, and what gives a message its place.
//!    [`kinds`], [`membership`], [`fold`]: groups and cells; [`buckets`]: rows compared by hashes; [`eras`]: how rows
//!    stay short although each crash begins a log.
//! 5. [`store`]: what the machines ask of a store, and no more; [`leases`]: what nodes ask that share one.
//! 6. `node` (feature `node`): the messaging core of a region: conversations, users, links; [`pressure`]: what is
//!    given up under load, at edges as well; [`slots`]: what each core node of a region owns; [`owners`],
//!    [`router`]: how nodes and edges find it; [`placement`]: how it is shared out.
//! 7. [`ranking`]: which edges a client should try; [`orders`]: whom operators have told clients to leave.
//! 8. [`mutants`]: bugs that tests can switch on, to see what a test is worth.
//!
//! Invariants: a machine never blocks; a machine's output order depends on its inputs alone (ordered maps
//! wherever an iteration can be seen outside); every queue has a limit in [`limits`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod buckets;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
pub mod codes;
pub mod edge_api;
pub mod entry;
pub mod eras;
pub mod fold;
pub mod hlc;
pub mod identity;
pub mod ids;
pub mod kinds;
pub mod leases;
pub mod limits;
pub mod membership;
pub mod mutants;
#[cfg(feature = "node")]
pub mod node;
pub mod orders;
pub mod owners;
pub mod pacing;
mod pack;
pub mod placement;
pub mod pressure;
pub mod ranking;
pub mod receipt;
pub mod router;
pub mod sequencer;
pub mod slots;
pub mod store;
pub mod wire;
mod writes;
