//! Chaos scripts: faults that strike a real system under load, and what its users notice, in figures with bounds.
//!
//! *Problem.* Virtual time says what the code does in a model of the world. Whether an operator's own system, with its
//! database, its kernel and its machines, rides through the loss of a node is known only when one is lost there.
//!
//! *Rule.* A script ([`script`]) names a system, a load, faults over time, and bounds. The system is one that this program
//! starts itself on this machine, from a `tern` binary and if need be a database that is given by its address
//! ([`local`]), or somebody's staging that is there already: then clients find it by its dispatch, and faults are
//! commands. The load is carried by the client library as applications use it ([`crowd`]). What happened is written down
//! while it happens ([`record`]); the figures are computed from that alone ([`observed`], [`figures`]), and lost,
//! doubled and misplaced messages are found by the same judge that judges logs in tests
//! ([`tern_netsim_verdict::logs`]).
//!
//! What is started is ended, also when this process is killed: see [`keeper`].
//!
//! Reading order: [`script`], [`mod@play`], [`local`] and [`relay`], [`keeper`], [`crowd`], [`tables`], [`observed`],
//! [`figures`], [`record`].

pub mod crowd;
mod error;
pub mod figures;
pub mod keeper;
pub mod limits;
pub mod local;
pub mod observed;
pub mod play;
pub mod record;
pub mod relay;
pub mod script;
pub mod tables;
mod text;

pub use error::ChaosError;
pub use play::{Surroundings, play};
pub use record::Report;
