//! What a run is worth.
//!
//! The order is that of how much a verdict says, not of how bad it is to get it. A run in which the machine could not
//! keep up, and in which a message was lost, is FAIL and not INVALID: however slow a machine is, nothing may be lost on
//! it, so the loss is as real as in any other run, and calling it INVALID would hide a bug that only slow machines
//! show. For this to be right, a check must not say FAIL of what only the broken run says: limits of time that a late
//! machine missed are INVALID themselves, and nothing is said of the end of a history that has none
//! (see [`crate::judge()`]). UNKNOWN is below INVALID: that a fault hit nothing means little if the history makes no
//! sense.

use serde::{Deserialize, Serialize};

/// Ordered by what counts most; of several findings the last counts. Only `Pass` passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// All that is checked holds, and the run shows it.
    #[default]
    Pass,
    /// Nothing is wrong, but the run does not show what it should: a fault that hit no packet, an event that must
    /// happen and did not.
    Unknown,
    /// The run itself is worth nothing: it was cut off, its history makes no sense, or the machine could not keep up.
    Invalid,
    /// Something that must hold does not.
    Fail,
}

impl Verdict {
    /// As it is written: `PASS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Unknown => "UNKNOWN",
            Self::Invalid => "INVALID",
            Self::Fail => "FAIL",
        }
    }

    /// Of a process that judged runs of which this is the worst: 0 if all pass, else 1. A caller must be able to trust
    /// 0 blindly, so what shows nothing is no success; which of the three it was is in the output. 2 (usage) and 3
    /// (could not run) are of the command line.
    pub fn exit_code(self) -> u8 {
        u8::from(self != Self::Pass)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
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
