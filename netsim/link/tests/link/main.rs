//! The link model against a second implementation, over random links; and against runs that were recorded.
//!
//! [`oracle`] computes what a link must do in another way than the machine: closed recurrences over the whole log
//! instead of a heap of events, capacities by integration and bisection instead of walking, `CoDel` event by event
//! from the RFC. [`ledger`] knows no algorithm at all: it looks at a log of packets and checks that nothing came
//! from nowhere, that no window carried more than the rate, and that nobody was faster than the delay.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

mod golden;
mod ledger;
mod oracle;
mod properties;
mod random_links;
