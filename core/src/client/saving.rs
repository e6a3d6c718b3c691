//! Data that costs money, and what a client does not spend while nobody looks.
//!
//! *Problem.* A phone in a pocket takes the whole backlog of every conversation as soon as it is connected, and tries several
//! ways to an edge at once. On a contract that counts bytes its owner pays for what he may read at home.
//!
//! *Rule.* In the background, on a network that the application calls metered, of each log only the newest
//! [`SAVED_ENTRIES`] that are missing are pulled: what a notification shows, and the first screen. The rest is pulled
//! once the application comes to the foreground, or the network is another one. What the application asks for (an older
//! page) comes all the same. A better transport is looked for less often, and fewer attempts to connect run beside each
//! other. Rows, with the newest message of each conversation, live messages, acks, read marks and the heartbeat are as
//! ever.
//!
//! *Why the simpler way fails.* Pulling nothing: a notification would have no text, and a count of unread messages no
//! beginning.

use std::time::Duration;

use super::data::OriginState;
use super::limits::SAVED_ENTRIES;
use super::machine::{Conv, Machine};
use crate::ids::Seq;

/// When a client in the background saves data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Saving {
    /// On networks that are metered ([`super::NetInfo::metered`]).
    #[default]
    Metered,
    /// On all.
    Always,
    /// On none.
    Never,
}

impl Conv {
    /// Up to where entries of a log are left for later.
    pub(super) fn left_below(&self, state: &OriginState) -> Seq {
        if self.asked_back { 0 } else { state.head.saturating_sub(SAVED_ENTRIES) }
    }
}

impl Machine {
    /// When data is to be saved in the background, from now on; see the module.
    pub fn set_saving(&mut self, now: Duration, saving: Saving) {
        self.saving = saving;
        self.after(now);
    }

    /// Whether data is being saved: then not all that was missed is pulled.
    pub fn is_saving(&self) -> bool {
        let here = match self.saving {
            Saving::Metered => self.network.as_ref().is_some_and(|network| network.metered),
            Saving::Always => true,
            Saving::Never => false,
        };
        here && !self.foreground
    }
}
