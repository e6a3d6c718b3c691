//! What a user sets on all his devices, his devices, and erasure, as an application sees them.

use std::collections::BTreeSet;

use tern_core::client::{DeviceInfo, EraseRefused, Erased, MessageId, SendRefused, SetRefused};
use tern_core::ids::{InstallId, UserId};

use crate::client::{CallError, Client, Conversation};
use crate::limits::DEVICES;

/// Why a setting was not changed. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// What can be told without asking a server.
    #[error(transparent)]
    Refused(#[from] SetRefused),
    /// The store failed, or the client is closed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Why nothing is erased.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// What can be told without asking a server.
    #[error(transparent)]
    Refused(#[from] EraseRefused),
    /// The store failed, or the client is closed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl From<SendRefused> for EraseError {
    fn from(refused: SendRefused) -> Self {
        Self::Refused(refused.into())
    }
}

/// Why it is not known where the devices are connected.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// There is no connection to ask on.
    #[error("offline: where your devices are connected can't be asked")]
    Offline,
    /// No answer came in time.
    #[error("where your devices are connected was not answered within {DEVICES:?}")]
    Late,
    /// The store failed, or the client is closed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Settings are in the outbox when their call returns, hold here at once, and reach the user's other devices.
impl Client {
    /// Blocks a user, or lifts that: he can't write to this user directly, and what he writes in groups is not
    /// shown. What was shown before stays.
    ///
    /// # Errors
    /// See [`SetRefused`].
    pub fn block(&self, user: &UserId, blocked: bool) -> Result<MessageId, SetError> {
        let wall_ms = self.shared().env.clock.wall_ms();
        let set = self.shared().act(|m, now| m.block(now, user, blocked, wall_ms));
        Ok(set.map_err(CallError::from)??)
    }

    /// All blocked users.
    ///
    /// # Errors
    /// Where the client is closed.
    pub fn blocked(&self) -> Result<BTreeSet<UserId>, CallError> {
        Ok(self.shared().look(|machine, _| Ok(machine.blocked()))?)
    }

    /// The user's devices, without asking where they are connected.
    ///
    /// # Errors
    /// Where the client is closed.
    pub fn known_devices(&self) -> Result<Vec<DeviceInfo>, CallError> {
        Ok(self.shared().look(|machine, _| Ok(machine.devices()))?)
    }

    /// The user's devices, and where they are connected now. May be cancelled.
    ///
    /// # Errors
    /// See [`DevicesError`]; [`Self::known_devices`] works offline.
    pub async fn devices(&self) -> Result<Vec<DeviceInfo>, DevicesError> {
        let mut version = self.shared().version.subscribe();
        if !self.shared().act(tern_core::client::Machine::ask_devices).map_err(CallError::from)? {
            return Err(DevicesError::Offline);
        }
        let answered = async {
            loop {
                let look = self.shared().look(|m, _| Ok((m.is_asking_devices(), m.round_trip().is_some())));
                match look.map_err(CallError::from)? {
                    (true, _) => {}
                    (false, true) => return Ok(self.known_devices()?),
                    (false, false) => return Err(DevicesError::Offline),
                }
                if version.changed().await.is_err() {
                    return Err(CallError::Closed.into());
                }
            }
        };
        tokio::time::timeout(DEVICES, answered).await.unwrap_or(Err(DevicesError::Late))
    }

    /// Removes a device of the user: it is disconnected in every region, and does not get in again.
    ///
    /// # Errors
    /// See [`SetRefused`].
    pub fn kick(&self, install: &InstallId, reason: &str) -> Result<MessageId, SetError> {
        let wall_ms = self.shared().env.clock.wall_ms();
        let set = self.shared().act(|m, now| m.kick(now, install, reason, wall_ms));
        Ok(set.map_err(CallError::from)??)
    }

    /// Erases all that this user has written anywhere, and his settings; with `leave` he leaves all groups too.
    /// Tells in how many conversations. Those that he has left already can't be reached.
    ///
    /// # Errors
    /// Where the outbox is full: what was asked for until then stays asked for; call it again.
    pub fn erase_everything(&self, leave: bool) -> Result<usize, EraseError> {
        let wall_ms = self.shared().env.clock.wall_ms();
        let asked = self.shared().act(|m, now| m.erase_everything(now, leave, wall_ms));
        Ok(asked.map_err(CallError::from)??)
    }
}

/// What a user sets for one conversation, and erasure.
impl Conversation {
    /// Mutes it until a moment in milliseconds since 1970, [`crate::FOR_EVER`], or with 0 not any more.
    ///
    /// # Errors
    /// See [`SetRefused`].
    pub fn mute(&self, until_ms: u64) -> Result<MessageId, SetError> {
        let (id, wall_ms) = (self.id(), self.shared().env.clock.wall_ms());
        let set = self.shared().act(|m, now| m.mute(now, id, until_ms, wall_ms));
        Ok(set.map_err(CallError::from)??)
    }

    /// Whether it is muted now.
    ///
    /// # Errors
    /// Where the client is closed.
    pub fn is_muted(&self) -> Result<bool, CallError> {
        let (id, wall_ms) = (self.id(), self.shared().env.clock.wall_ms());
        Ok(self.shared().look(|machine, _| Ok(machine.muted_until(id) > wall_ms))?)
    }

    /// Erases a message for everyone: an own one, or, as an admin of a group, any. One that was never transmitted
    /// is withdrawn at once; otherwise its body goes, here and in every region, once the erasure is durable.
    ///
    /// # Errors
    /// See [`EraseRefused`].
    pub fn erase(&self, message: MessageId) -> Result<Erased, EraseError> {
        let found = self.shared().look(|_, store| store.message(message)).map_err(CallError::from)?;
        let id = self.id();
        let Some(found) = found.filter(|m| m.conversation == id) else { return Err(EraseRefused::Nothing.into()) };
        let wall_ms = self.shared().env.clock.wall_ms();
        let erased = self.shared().act(|m, now| m.erase(now, &found, wall_ms));
        Ok(erased.map_err(CallError::from)??)
    }

    /// Erases all that this user has written here up to now. False: nothing of it had left this device.
    ///
    /// # Errors
    /// Where the outbox is full, or this user has left.
    pub fn erase_my_messages(&self) -> Result<bool, EraseError> {
        let (id, wall_ms) = (self.id(), self.shared().env.clock.wall_ms());
        let asked = self.shared().act(|m, now| m.erase_my_messages(now, id, wall_ms));
        Ok(asked.map_err(CallError::from)??.is_some())
    }
}
