//! State that outlives connections, and its copies.
//!
//! Reading order: [`store`] (where a region keeps what must outlive it: in memory for simulation, embedded
//! on one disk), then [`region`] (the messaging core at work: its store, its edges, its links to other
//! regions), then [`gossip`] (which nodes of a region are there, and how loaded its edges are).
//!
//! A message that a client sent comes in through an edge, is sequenced by the machine in
//! [`tern_core::node`], appended here, acked, shipped to the other regions over their links, and acked by
//! them once their stores hold it. Nothing here decides anything about messages: this crate moves bytes
//! between the machine, disks and wires.
//!
//! Invariants: clients never reach this crate directly; what a link acks is durable; a store that can't be
//! trusted is refused, never served wrong.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod gossip;
pub mod region;
pub mod routes;
pub mod store;
