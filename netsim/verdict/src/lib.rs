//! Histories of runs, and what they are worth.
//!
//! A driver of simulations writes a history ([`history`]); the checks of this crate read it and say PASS, FAIL, UNKNOWN
//! or INVALID ([`verdict`]). They know nothing of how the run was made, so both drivers are judged alike, and a history
//! can be judged again at any time.
//!
//! Reading order: [`history`] and [`expect`] (what is judged, by what), [`mod@read`] (from and to a file), [`judge()`] (which
//! checks run, and what a bad history does to them), the checks, one module for each question, and [`figures`] (what was
//! measured).
//!
//! - Nothing is said of what the history does not tell: no check guesses.
//! - A fault excuses a device only while it stands; a device that does not come back afterwards is found.
//! - A run that shows nothing does not pass.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod batch;
mod checks;
mod concern;
pub mod distribution;
#[cfg(test)]
mod examples;
pub mod expect;
mod facts;
pub mod figures;
mod findings;
pub mod history;
mod judge;
pub mod junit;
pub mod limits;
pub mod logs;
#[cfg(any(test, feature = "model"))]
pub mod model;
#[cfg(test)]
mod properties;
pub mod read;
pub mod verdict;

pub use batch::{BatchFigures, BatchRun, summary, totals, worst};
pub use distribution::Distribution;
pub use expect::Expect;
pub use figures::{DeviceFigures, Figures, Recovery};
pub use history::{Cast, Event, FaultPhase, Line, LinkSample, Run};
pub use judge::{Judgement, judge};
pub use junit::junit;
pub use logs::{LogFault, LogFinding, LogHistory, LogJudgement, Outcome, Reading, Regions, Sending, Spot, judge_logs};
pub use read::{ReadError, read, write};
pub use verdict::{Finding, Verdict};
