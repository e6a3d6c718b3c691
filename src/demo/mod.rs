//! demo
pub mod totals;
