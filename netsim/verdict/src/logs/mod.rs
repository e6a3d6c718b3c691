//! Histories of logs: what clients asked of conversations and were told, against what a log is.
//!
//! *Problem.* A store that is fenced wrongly loses or changes an entry only where two owners meet for a moment; what is
//! shown in the end may look whole all the same, because whoever was overwritten sends again.
//!
//! *Rule.* Clients write down when they asked and when they were answered. A log is an object with two operations: a send
//! puts an entry behind all others and returns its spot, a read returns a prefix. A history is that of a log if there is
//! one moment for each operation, between asking and answer, at which it took effect. With spots in the answers the
//! order is known, and no search is needed: each rule below is a pass over sorted lists.
//!
//! Why not only compare what devices show at the end (`tern`'s own checker does): it can't see an entry that was
//! acked at a spot, read there, and replaced.
//!
//! Times are of one clock. A client may notice late that it was answered: that widens an operation, and may hide a fault,
//! but never makes one up. [`Regions::Several`] leaves out what holds only where one region numbers all entries: see
//! there.
//!
//! [`judge_logs`] is pure and says all that it finds; a history with nothing acked, or with acked entries that nobody has
//! read since, does not pass.

mod rules;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where an entry stands. The order is that of display.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Spot {
    /// The hybrid clock of the entry.
    pub hlc: u64,
    /// Whose count `seq` is.
    pub origin: String,
    /// From 1.
    pub seq: u64,
}

/// A message handed to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sending {
    /// Which client.
    pub client: String,
    /// Of which conversation.
    pub log: String,
    /// Its name: no other message of the conversation has it.
    pub message: String,
    /// Before it was handed over.
    pub invoked_ns: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// See [`Sending`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It stands there.
    Acked {
        /// When that was known.
        returned_ns: u64,
        /// Where.
        spot: Spot,
    },
    /// It will never stand anywhere.
    Refused,
    /// Nothing is known: it may stand somewhere, or come to.
    Unknown,
}

/// A conversation, looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// By which client.
    pub client: String,
    /// Which conversation.
    pub log: String,
    /// Before it looked.
    pub invoked_ns: u64,
    /// When it had looked.
    pub returned_ns: u64,
    /// Asked of the log itself, when nothing was on its way any more: everything acked before must be in it. Otherwise
    /// it is what a device holds, which may be old.
    pub is_whole: bool,
    /// What stands where, in the order shown; `None` is an entry that is no message, such as a change of a group.
    pub entries: Vec<(Spot, Option<String>)>,
}

/// Who numbers entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regions {
    /// One region: counts have no holes, an entry never moves, nothing is put between what was read.
    One,
    /// Several: a message may have copies, its lowest spot counts and may come late; what a lost region took with it
    /// leaves holes.
    Several,
}

/// What clients did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHistory {
    /// In any order.
    pub sendings: Vec<Sending>,
    /// In any order.
    pub readings: Vec<Reading>,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LogFault {
    /// Acked, and not in a whole reading that began afterwards.
    Lost,
    /// One count of one origin, and two messages.
    Taken,
    /// One message twice in a reading.
    Doubled,
    /// Acked at one spot, and read at another.
    Moved,
    /// A reading shows, below the head of an earlier one, what that did not show.
    Changed,
    /// A reading lacks what an earlier one showed.
    Shrunk,
    /// A count below the head is nobody's.
    Hole,
    /// Acked below a head that had been read without it.
    Late,
    /// It stands before one that was acked before it was sent.
    OutOfTime,
    /// A client's later message stands before an earlier one.
    OutOfTurn,
    /// Shown in another order than counts and clocks say.
    Disordered,
    /// Read, though nobody had sent it by then, or though its sender was told that it is refused.
    Phantom,
}

impl fmt::Display for LogFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Taken => "count used twice",
            Self::Doubled => "doubled",
            Self::Moved => "moved",
            Self::Changed => "prefix changed",
            Self::Shrunk => "gone",
            Self::Hole => "hole",
            Self::Late => "acked below a head that was read without it",
            Self::OutOfTime => "out of real-time order",
            Self::OutOfTurn => "out of its client's order",
            Self::Disordered => "shown out of order",
            Self::Phantom => "phantom",
        })
    }
}

/// A fault, and where it shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogFinding {
    /// Which kind.
    pub fault: LogFault,
    /// In which conversation.
    pub log: String,
    /// Which message, or which count.
    pub what: String,
    /// Against what.
    pub against: String,
}

impl fmt::Display for LogFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} in {} ({})", self.fault, self.what, self.log, self.against)
    }
}

/// What a history is worth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogJudgement {
    /// All faults, each once, in order.
    pub findings: Vec<LogFinding>,
    /// Messages.
    pub sent: usize,
    /// Of these, acked.
    pub acked: usize,
    /// Acked, and no whole reading began since: whether they are there is not known.
    pub unread: usize,
}

impl LogJudgement {
    /// Whether something was acked, all of it was read, and nothing is wrong.
    pub fn passes(&self) -> bool {
        self.findings.is_empty() && self.acked > 0 && self.unread == 0
    }

    /// How many findings are of these kinds, a message once.
    pub fn count(&self, faults: &[LogFault]) -> usize {
        let of = self.findings.iter().filter(|finding| faults.contains(&finding.fault));
        of.map(|finding| (&finding.log, &finding.what)).collect::<std::collections::BTreeSet<_>>().len()
    }
}

/// Judges a history; see the module.
pub fn judge_logs(history: &LogHistory, regions: Regions) -> LogJudgement {
    rules::judge(history, regions)
}
