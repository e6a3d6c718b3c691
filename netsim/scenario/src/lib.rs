//! Scenarios: files that say what a run is made of.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod plan;

pub use plan::Plan;
