//! Histories of runs, and what they are worth.
//!
//! A driver of simulations writes a history ([`history`]); the checks of this crate read it and say PASS, FAIL, UNKNOWN
//! or INVALID ([`verdict`]). They know nothing of how the run was made, so both drivers are judged alike, and a history
//! can be judged again at any time.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod expect;
pub mod history;
pub mod limits;
pub mod verdict;

pub use expect::Expect;
pub use history::{Cast, Event, FaultPhase, Line, LinkSample, Run};
pub use verdict::{Finding, Verdict};
