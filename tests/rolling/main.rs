//! Processes that are started again one after the other, as it is done for an upgrade, under people who chat: a
//! region's only core node, three times; the core nodes of a region that several share, with its routes in Redis; every
//! process of two regions, from an older program to this one and partly back; and all of a region, after its database
//! was set back to a backup.
//!
//! What is counted is the same in all: each message is shown to its reader once, in the order of its sender, and nobody's
//! connection ends for a core node that is stopped in order.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "processes run in real time, and so do their tests")]

mod database;
#[path = "../support/program.rs"]
mod program;
mod restart;
mod restore;
mod routes;
mod scene;
#[path = "../support/database.rs"]
mod tables;
mod upgrade;
