//! Scenarios: files that say what a run is made of.
//!
//! A chaos tester writes a TOML file: regions and devices, what is written, what goes wrong and when, what is
//! expected. This crate makes [`Plan`]s of it, one for each seed and each point of its matrix, or says everything that
//! is wrong with it, with lines and columns. It runs nothing: drivers execute plans.
//!
//! Reading order: [`plan`] (the outcome), [`scenario`] (from a file to plans), then the way there: `tree` (TOML with
//! places), `files` (what extends what), `matrix`, `fields` and `units` (how single values are read), `read` (one
//! module for each part of a scenario), `draws` (what a seed decides) and [`problem`] (how mistakes are told).
//!
//! The format is described in `docs/SCENARIOS.md`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod draws;
mod fields;
mod files;
pub mod limits;
mod matrix;
mod places;
pub mod plan;
pub mod problem;
pub mod random;
mod read;
pub mod scenario;
mod shrink;
pub mod sometimes;
mod tree;
mod units;
mod write;

pub use places::BLOCKS;
pub use plan::Plan;
pub use problem::{Problem, Problems};
pub use read::effects::{KINDS, Kind};
pub use scenario::{Driver, Scenario, check};
pub use shrink::shrink;
