//! Who is there, as an application sees it.

use tern_core::client::{MessageId, Presence, TooManyWatched};
use tern_core::ids::UserId;

use crate::client::{CallError, Client};
use crate::settings::SetError;

/// Why nobody else is watched than before.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// See [`TooManyWatched`].
    #[error(transparent)]
    TooMany(#[from] TooManyWatched),
    /// The store failed, or the client is closed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Client {
    /// Whose presence is wanted from now on, all of them, instead of those that were wanted before: for instance of the
    /// direct conversations on the screen. What is known and what changes comes as [`crate::Event::Presence`], while there
    /// is a connection and the application is in the foreground. Nothing is told of users with whom there is no direct
    /// conversation; one who hides his presence, or has blocked this user, looks as if he had not been seen for long.
    ///
    /// # Errors
    /// If there are more than 100.
    pub fn watch_presence(&self, users: &[UserId]) -> Result<(), WatchError> {
        let users = users.iter().cloned().collect();
        let watched = self.shared().act(|m, now| m.watch_presence(now, users));
        Ok(watched.map_err(CallError::from)??)
    }

    /// What was told last of somebody who is watched; without a connection it grows old.
    ///
    /// # Errors
    /// Where the client is closed.
    pub fn presence(&self, user: &UserId) -> Result<Option<Presence>, CallError> {
        Ok(self.shared().look(|machine, _| Ok(machine.presence(user)))?)
    }

    /// Lets nobody know when this user is or was connected, on all his devices; or lifts that.
    ///
    /// # Errors
    /// See [`tern_core::client::SetRefused`].
    pub fn hide_presence(&self, hidden: bool) -> Result<MessageId, SetError> {
        let wall_ms = self.shared().env.clock.wall_ms();
        let set = self.shared().act(|m, now| m.hide_presence(now, hidden, wall_ms));
        Ok(set.map_err(CallError::from)??)
    }

    /// Whether this user hides his presence.
    ///
    /// # Errors
    /// Where the client is closed.
    pub fn is_presence_hidden(&self) -> Result<bool, CallError> {
        Ok(self.shared().look(|machine, _| Ok(machine.is_presence_hidden()))?)
    }
}
