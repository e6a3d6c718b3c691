//! What a scenario expects of a run.
//!
//! Safety needs no words: no acked message is lost, none is shown twice, nobody's messages change their order, all
//! devices agree, nothing is shown that nobody sent, and everything converges. Those hold in every run. What is said
//! here are limits on top, and what of the rest may be left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// See the module. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Expect {
    /// From the beginning of the quiet phase until all devices and regions agree.
    pub converge_within_ns: Option<u64>,
    /// Per fault: from its end until the first message of somebody else is shown on any device that it concerned.
    pub recover_within_ns: BTreeMap<String, u64>,
    /// From a message's invocation until it is shown on a member's device, 99th percentile, over the whole run.
    pub deliver_p99_ns: Option<u64>,
    /// At most so many devices become live per second, in any window of one second.
    pub connects_per_second: Option<u64>,
    /// Per device and hour of the run, in both directions.
    pub bytes_per_hour: Option<u64>,
    /// Of the radio, per device and hour of the run.
    pub wakeups_per_hour: Option<u64>,
    /// A device is told at most so many times that one other user has come or gone, after what it was told first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_changes: Option<u64>,
    /// Devices may be told that a message failed.
    pub failures: bool,
    /// Messages that were never acked may stay so (a region that is gone for good with all its devices).
    pub unacked: bool,
    /// Acked messages of these regions may be lost: destroyed before they were replicated. They are counted.
    pub may_lose: Vec<String>,
    /// Faults that may hit nothing.
    pub unhit: Vec<String>,
}
