//! The checks, each a question to a history.
//!
//! Reading order: what must never be seen ([`duplicates`], [`order`], [`phantoms`]), what must be true in the end
//! ([`durability`], [`agreement`], [`convergence`], [`settings`]), what a scenario limits ([`delivery`], [`recovery`],
//! [`load`]), and whether the run shows anything at all ([`trouble`], [`coverage`]).

pub(crate) mod agreement;
pub(crate) mod convergence;
pub(crate) mod coverage;
pub(crate) mod delivery;
pub(crate) mod duplicates;
pub(crate) mod durability;
pub(crate) mod load;
pub(crate) mod order;
pub(crate) mod phantoms;
pub(crate) mod recovery;
pub(crate) mod settings;
pub(crate) mod trouble;
