//! The link model: what becomes of a packet between two hosts.
//!
//! Every claim about weak networks stands on this model, so it is pure: it counts in nanoseconds and integers,
//! opens nothing, reads no clock, and draws no randomness but its own, which is keyed. It is checked by a second
//! implementation of another kind, see `tests/link/`.
//!
//! Reading order: [`spec`] (what a link is like, as data), [`direction`] (the machine of one direction, and in which
//! order faults act), then its parts: [`dice`] (randomness by packet number; [`random`] behind it), [`steps`] and
//! [`episodes`] (what changes over time), `rate` and [`trace`] (when bits leave), `codel` (who is dropped for waiting),
//! `channel` (losses by chance), `delay`; then [`mod@profile`] (links that were measured, by name), [`mod@cellular`]
//! (recordings of Akamai's form), and two machines beside a link: [`nat`] and [`interfaces`].
//!
//! Two such directions are a link. What is not here: explicit congestion notification (`CoDel` drops, it does
//! not mark), fragments (a packet longer than the MTU is dropped, as with the don't-fragment bit), and flows:
//! all packets of a direction share one queue, in the order of their coming.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod cellular;
mod channel;
mod codel;
mod delay;
pub mod dice;
pub mod direction;
pub mod episodes;
pub mod interfaces;
pub mod limits;
pub mod nat;
pub mod profile;
pub mod random;
mod rate;
pub mod spec;
pub mod steps;
pub mod trace;

pub use cellular::{cellular, read_cellular};
pub use dice::{Amount, Chance, Dice, Purpose, Roll, Way};
pub use direction::{Cause, Counts, Direction, Fate, Output, flip};
pub use episodes::{Episode, Episodes};
pub use interfaces::{HandOver, Interface, InterfaceError, Interfaces};
pub use nat::{Dependence, Nat, NatDrop, NatSpec, PortChoice};
pub use profile::{Profile, UnknownProfile, nearest, profile};
pub use spec::{
    Corrupt, Delay, Discipline, Jitter, LinkSpec, Loss, Mtu, Outage, Queue, Rate, Reorder, Spec, SpecError,
};
pub use steps::{Step, Steps};
pub use trace::{Trace, TraceError};
