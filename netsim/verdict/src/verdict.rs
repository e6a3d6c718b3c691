//! What a run is worth.

use serde::{Deserialize, Serialize};

/// Ordered from good to bad; of several findings the worst counts. Only `Pass` passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// All that is checked holds, and the run shows it.
    Pass,
    /// Nothing is wrong, but the run does not show what it should: a fault that hit no packet, an event that must
    /// happen and did not.
    Unknown,
    /// The run itself is worth nothing: it was cut off, its history makes no sense, or the machine could not keep up.
    Invalid,
    /// Something that must hold does not.
    Fail,
}

/// One thing that a checker found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which check: `durability`, `duplicates`, `order`, `agreement`, `phantoms`, `convergence`, ...
    pub check: String,
    /// What it makes of the run; never `Pass`.
    pub verdict: Verdict,
    /// When it was certain, in nanoseconds since the run began.
    pub at_ns: u64,
    /// What is wrong, for a human: who, what, when.
    pub text: String,
}
