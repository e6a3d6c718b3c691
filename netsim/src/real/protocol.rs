//! What a run and the process of a device say to each other: JSON, one object a line, on standard input and output.
//!
//! Times are of the monotonic clock that all processes of a machine share, so the device itself notes when something
//! happened; how long a line takes to be read changes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tern_netsim_scenario::plan::{Action, Target};
use tern_netsim_verdict::Line;

/// The first line: who the device is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// `alice-phone`.
    pub device: String,
    /// `alice`.
    pub user: String,
    /// The run's moment 0, in nanoseconds of the monotonic clock.
    pub zero_ns: u64,
    /// Dispatch: addresses and names in their certificates, in the order in which they are asked.
    pub dispatch: Vec<(String, String)>,
    /// What is pinned.
    pub roots: PathBuf,
    /// Its user's token.
    pub token: String,
    /// Where its store is. It outlives the process.
    pub store: PathBuf,
    /// What the system calls conversations, and what the scenario does.
    pub names: Vec<(String, String)>,
}

/// Every further line to a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The system calls a conversation so; 32 hexadecimal digits.
    Learn {
        /// By the system.
        conversation: String,
        /// By the scenario.
        label: String,
    },
    /// Write to somebody.
    Send {
        /// To whom.
        to: Target,
        /// How much.
        bytes: u32,
    },
    /// Do something else.
    Act(Action),
    /// The system says that the device is in another network.
    Network(Option<String>),
    /// Make a group.
    Group {
        /// Its name.
        label: String,
        /// Users, the own included.
        members: Vec<String>,
    },
    /// Say how things stand, what is shown of these conversations, and what of each can have been set.
    Look(BTreeMap<String, Vec<String>>),
}

/// A line of a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Something happened.
    Happened(Line),
    /// It offered so many messages again.
    Reoffered(u64),
    /// It made a group.
    Named {
        /// By the system.
        conversation: String,
        /// By the scenario.
        label: String,
    },
    /// How things stand.
    Look(Standing),
}

/// How things stand on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// It is live, and waits for nothing.
    pub calm: bool,
    /// In words.
    pub words: String,
    /// By conversation: what is shown, top to bottom; how many are unread, and whether that is exact. Or why not.
    pub shown: BTreeMap<String, Result<Shown, String>>,
}

/// What is shown of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Top to bottom.
    pub messages: Vec<String>,
    /// How many, and whether that is exact.
    pub unread: (u64, bool),
    /// What was asked for of what can be set, with its values.
    pub settings: BTreeMap<String, String>,
}

/// 32 hexadecimal digits as a conversation's id.
pub fn conversation(text: &str) -> Option<tern_core::ids::ConvId> {
    let mut id = [0; 16];
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    (text.len() == 32).then_some(tern_core::ids::ConvId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = tern_core::ids::ConvId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(conversation(&id.to_string()), Some(id));
        assert_eq!(conversation("00"), None);
        assert_eq!(conversation(&"0".repeat(33)), None);
    }

    #[test]
    fn orders_are_lines() {
        let order = Order::Send { to: Target::User("bob".into()), bytes: 80 };
        let line = serde_json::to_string(&order).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(format!("{:?}", serde_json::from_str::<Order>(&line).unwrap()), format!("{order:?}"));
    }
}
