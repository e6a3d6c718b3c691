//! Pages that show what a run was like.
//!
//! A page is one HTML file that needs nothing else: no network, no server, no script to be readable, and at most 2 MB
//! whatever the run's size, so that it can be attached to a mail or kept by a CI system for years. Pictures are SVG that
//! is written here; the only script copies a command. All text that comes from a run is escaped, and a policy in the page
//! forbids to load anything.
//!
//! Reading order: [`run_page`] and [`batch_page`] (which sections there are), `page` (their frame), `picture` (what is taken
//! from a history), `svg` (how pictures fit any screen), then one module for each kind of picture: `lanes`, `latency`,
//! `links`.
//!
//! - What was left out is said where it would have been.
//! - A verdict, a cause or a state is told by its colour and by something else, for those who can't tell the colours.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod batch;
mod lanes;
mod latency;
pub mod limits;
mod links;
mod page;
mod picture;
mod run;
mod svg;
mod words;

pub use batch::batch_page;
pub use run::run_page;
pub use tern_netsim_verdict::{BatchFigures, BatchRun};
