//! The user's own log: what he sets for himself, on all his devices (R11).
//!
//! *Problem.* A mute, a block or the list of devices belongs to the user, not to a device, and is changed
//! offline, on several of them.
//!
//! *Rule.* Each is a cell in a log whose only member is the user: an ordinary conversation with an id of its own,
//! kept, sent and pulled like any other, which no list shows. The newest writer of a cell wins. A device writes
//! its own cell the first time that it is connected and up to date.
//!
//! *Why the simpler way fails.* State beside the messages, with a protocol of its own: it would need everything
//! again that conversations have.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::data::MessageId;
use super::effects::{Event, SendRefused};
use super::machine::Machine;
use super::session::Request;
use crate::fold::{block_key, device_key, kick_key};
use crate::hlc;
use crate::ids::{ConvId, InstallId, UserId};
use crate::kinds::CELL;
use crate::wire::v1::{self, frame::Body};

/// Why a setting was not changed. Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetRefused {
    /// The conversation's id is not final before this device was connected once.
    #[error("this device was never connected: connect once, then set this")]
    NeverConnected,
    /// No such conversation on this device.
    #[error("conversation {0} is not known here")]
    UnknownConversation(ConvId),
    /// One can't do that to oneself.
    #[error("one can't block or remove oneself")]
    Oneself,
    /// The user has no such device.
    #[error("you have no device {0}")]
    NoDevice(InstallId),
    /// See [`SendRefused`].
    #[error(transparent)]
    Send(#[from] SendRefused),
}

/// A device of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its install id.
    pub install: InstallId,
    /// As its user named it; empty where it has not said.
    pub name: String,
    /// First seen, milliseconds since 1970; 0 = not known.
    pub since_ms: u64,
    /// This very device.
    pub this: bool,
    /// Where it is connected: names or numbers of regions. Empty: it is not, as far as was told.
    pub connected: Vec<String>,
}

/// "Until further notice".
pub const FOR_EVER: u64 = u64::MAX;

fn mute_key(id: ConvId) -> String {
    format!("mute/{id}")
}

impl Machine {
    /// The user's own log.
    pub fn own_log(&self) -> ConvId {
        ConvId::own(self.salt.as_deref().unwrap_or_default(), &self.setup.user)
    }

    pub(super) fn set(
        &mut self,
        now: Duration,
        key: String,
        value: Vec<u8>,
        wall_ms: u64,
    ) -> Result<MessageId, SendRefused> {
        let cell = v1::Cell { key: key.clone(), value: value.into() };
        self.may_enqueue(cell.encoded_len())?;
        let id = self.own_log();
        let me = self.setup.user.clone();
        let conv = self.conv(id);
        if conv.record.peer.is_none() {
            conv.record.peer = Some(me);
            self.dirty_convs.insert(id);
        }
        let message = self.enqueue(now, id, CELL, cell.encode_to_vec().into(), wall_ms);
        self.event(Event::SettingsChanged { key });
        Ok(message)
    }

    pub(super) fn setting(&self, key: &str) -> Option<Bytes> {
        self.convs.get(&self.own_log())?.cells(key).remove(key)
    }

    /// Mutes a conversation until a moment, or with 0 lifts that. [`FOR_EVER`]: until further notice.
    ///
    /// # Errors
    /// Where the conversation is not known, or its id not final.
    pub fn mute(&mut self, now: Duration, id: ConvId, until_ms: u64, wall_ms: u64) -> Result<MessageId, SetRefused> {
        let conv = self.convs.get(&id).ok_or(SetRefused::UnknownConversation(id))?;
        if self.salt.is_none() && conv.record.peer.is_some() {
            return Err(SetRefused::NeverConnected);
        }
        let value = if until_ms == 0 { Vec::new() } else { v1::MuteCell { until_ms }.encode_to_vec() };
        Ok(self.set(now, mute_key(id), value, wall_ms)?)
    }

    /// Until when a conversation is muted; 0: it is not. May lie in the past.
    pub fn muted_until(&self, id: ConvId) -> u64 {
        let cell = self.setting(&mute_key(id)).and_then(|v| v1::MuteCell::decode(v).ok());
        cell.map_or(0, |c| c.until_ms)
    }

    /// Blocks a user, or lifts that: he can't write to this user directly, and what he writes in groups is not
    /// shown.
    ///
    /// # Errors
    /// For oneself, or where the outbox is full.
    pub fn block(
        &mut self,
        now: Duration,
        user: &UserId,
        blocked: bool,
        wall_ms: u64,
    ) -> Result<MessageId, SetRefused> {
        if *user == self.setup.user {
            return Err(SetRefused::Oneself);
        }
        let value = if blocked { v1::BlockCell { blocked }.encode_to_vec() } else { Vec::new() };
        let message = self.set(now, block_key(user), value, wall_ms)?;
        if blocked {
            self.ops.push(super::data::Op::ReadFrom(user.clone()));
        }
        Ok(message)
    }

    /// Whether a user is blocked.
    pub fn is_blocked(&self, user: &UserId) -> bool {
        let cell = self.setting(&block_key(user)).and_then(|v| v1::BlockCell::decode(v).ok());
        cell.is_some_and(|c| c.blocked)
    }

    /// All blocked users, in order of their ids.
    pub fn blocked(&self) -> BTreeSet<UserId> {
        let cells = self.convs.get(&self.own_log()).map(|c| c.cells("block/")).unwrap_or_default();
        let blocked = cells.into_iter().filter(|(_, v)| v1::BlockCell::decode(v.clone()).is_ok_and(|c| c.blocked));
        blocked.filter_map(|(key, _)| UserId::new(key.strip_prefix("block/")?).ok()).collect()
    }

    // ---- devices -------------------------------------------------------------------------------------

    /// The user's devices that were not removed, with where they are connected by the last answer to
    /// [`Self::ask_devices`].
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let cells = self.convs.get(&self.own_log()).map(|c| c.cells("")).unwrap_or_default();
        let mut installs = BTreeSet::from([self.install.clone()]);
        installs.extend(cells.keys().filter_map(|k| InstallId::new(k.strip_prefix("device/")?).ok()));
        installs.extend(self.connected.keys().cloned());
        let of = |install: InstallId| {
            let cell = cells.get(&device_key(&install)).and_then(|v| v1::DeviceCell::decode(v.clone()).ok());
            let cell = cell.unwrap_or_default();
            DeviceInfo {
                this: install == self.install,
                connected: self.connected.get(&install).cloned().unwrap_or_default(),
                install,
                name: cell.name,
                since_ms: cell.since_ms,
            }
        };
        installs.into_iter().filter(|i| !cells.contains_key(&kick_key(i))).map(of).collect()
    }

    /// Asks where the user's devices are connected. False: there is no connection.
    pub fn ask_devices(&mut self, now: Duration) -> bool {
        let Some(session) = &mut self.session else { return false };
        if !session.requests.values().any(|(r, _)| matches!(r, Request::Devices)) {
            let req = session.request(now, Request::Devices);
            self.write_frame(req, Body::PullDevices(v1::PullDevices {}));
        }
        true
    }

    /// Whether an answer about devices is awaited.
    pub fn is_asking_devices(&self) -> bool {
        self.session.iter().flat_map(|s| s.requests.values()).any(|(r, _)| matches!(r, Request::Devices))
    }

    pub(super) fn on_devices(&mut self, devices: v1::Devices) {
        self.connected.clear();
        for device in devices.devices {
            let Ok(install) = InstallId::new(&device.install) else { continue };
            let region =
                if device.region_name.is_empty() { device.region.to_string() } else { device.region_name.clone() };
            self.connected.entry(install).or_default().push(region);
        }
    }

    /// Removes a device of the user: it is disconnected everywhere, and does not get in again.
    ///
    /// # Errors
    /// Where there is no such device, or it is this one.
    pub fn kick(
        &mut self,
        now: Duration,
        install: &InstallId,
        reason: &str,
        wall_ms: u64,
    ) -> Result<MessageId, SetRefused> {
        if *install == self.install {
            return Err(SetRefused::Oneself);
        }
        if !self.devices().iter().any(|d| d.install == *install) {
            return Err(SetRefused::NoDevice(install.clone()));
        }
        let reason = cut(reason, 256).to_owned();
        Ok(self.set(now, kick_key(install), v1::KickCell { reason }.encode_to_vec(), wall_ms)?)
    }

    /// Writes this device's cell once it is connected and knows that there is none.
    pub(super) fn announce_device(&mut self, now: Duration) {
        let Some(session) = self.session.as_ref().filter(|s| s.caught_up && s.install == self.install) else { return };
        if self.setup.device.is_empty() || self.announced == Some(self.install.clone()) {
            return;
        }
        let wall_ms = session.wall_ms(now).unwrap_or_else(|| hlc::to_ms(0));
        let own = self.own_log();
        if self.wants_cells(own) || session.pulls_cells_of(own) {
            return;
        }
        let install = self.install.clone();
        let known = self.setting(&device_key(&install)).is_some();
        let name = cut(&self.setup.device, 64).to_owned();
        let cell = v1::DeviceCell { name, since_ms: wall_ms };
        // A full outbox: the next connection tries again.
        if known || self.set(now, device_key(&install), cell.encode_to_vec(), wall_ms).is_ok() {
            self.announced = Some(install);
        }
    }
}

/// As much of a text as fits so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let end = text.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= bytes).last();
    &text[..end.unwrap_or(0)]
}
