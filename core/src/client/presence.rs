//! Who is there: what this user's friends' regions tell.
//!
//! The application says whom it shows; it is told of no one else. The region is told on each connection, again from time
//! to time (what it tells may get lost under load), and that nobody is watched once the application is in the background:
//! a phone in a pocket is not to be woken because somebody opens his. What was told last stays until something else is;
//! without a connection it grows old.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message as _;

use super::data::MessageId;
use super::effects::Event;
use super::limits::WATCH_AGAIN;
use super::machine::Machine;
use super::settings::SetRefused;
use crate::codes::Refusal;
use crate::fold::PRESENCE_KEY;
use crate::ids::UserId;
use crate::limits::WATCHED;
use crate::wire::convert;
use crate::wire::v1::{self, frame::Body};

/// What is known of another user's presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// He is connected, or was a moment ago.
    Online,
    /// He is not, since then (milliseconds since 1970, in whole minutes). `None`: nobody has seen him for long, or he
    /// does not want it to be known.
    Gone(Option<u64>),
}

/// Too many users are to be watched. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} users are to be watched; at most {WATCHED} can be: watch those who are on the screen")]
pub struct TooManyWatched(pub usize);

/// Whom the application shows, and what was told of them.
#[derive(Debug, Default)]
pub(super) struct Watching {
    users: BTreeSet<UserId>,
    known: BTreeMap<UserId, Presence>,
    /// What the connection in use was told, and when.
    said: Option<(super::candidates::ConnNo, Duration)>,
}

impl Machine {
    /// Whose presence is wanted from now on, instead of what was said before: users with whom there is a direct
    /// conversation.
    ///
    /// # Errors
    /// If there are too many.
    pub fn watch_presence(&mut self, now: Duration, users: BTreeSet<UserId>) -> Result<(), TooManyWatched> {
        if users.len() > WATCHED {
            return Err(TooManyWatched(users.len()));
        }
        if users != self.watching.users {
            self.watching.known.retain(|user, _| users.contains(user));
            self.watching.users = users;
            self.say_watch(now);
        }
        Ok(())
    }

    /// What was told last of a user who is watched.
    pub fn presence(&self, user: &UserId) -> Option<Presence> {
        self.watching.known.get(user).copied()
    }

    /// Lets nobody know when this user is or was connected, on any of his devices; or everybody whom he has not blocked.
    ///
    /// # Errors
    /// Where the outbox is full.
    pub fn hide_presence(&mut self, now: Duration, hidden: bool, wall_ms: u64) -> Result<MessageId, SetRefused> {
        let value = if hidden { v1::PresenceCell { hidden }.encode_to_vec() } else { Vec::new() };
        Ok(self.set(now, PRESENCE_KEY.to_owned(), value, wall_ms)?)
    }

    /// See [`Self::hide_presence`].
    pub fn is_presence_hidden(&self) -> bool {
        self.setting(PRESENCE_KEY).and_then(|v| v1::PresenceCell::decode(v).ok()).is_some_and(|cell| cell.hidden)
    }

    /// Tells the region whom to tell of, on a new connection and from time to time.
    pub(super) fn keep_watching(&mut self, now: Duration) {
        if self.watch_deadline().is_some_and(|at| now >= at) {
            self.say_watch(now);
        }
    }

    pub(super) fn watch_deadline(&self) -> Option<Duration> {
        let session = self.session.as_ref().filter(|s| !s.leaving)?;
        if self.watching.users.is_empty() || !self.foreground {
            return None;
        }
        let said = self.watching.said.filter(|(conn, _)| *conn == session.conn);
        Some(said.map_or(Duration::ZERO, |(_, at)| at + WATCH_AGAIN))
    }

    pub(super) fn say_watch(&mut self, now: Duration) {
        let Some(conn) = self.session.as_ref().filter(|s| !s.leaving).map(|s| s.conn) else { return };
        let users: Vec<String> = if self.foreground {
            self.watching.users.iter().map(|user| user.as_str().to_owned()).collect()
        } else {
            Vec::new()
        };
        let said = self.watching.said.replace((conn, now));
        if users.is_empty() && said.is_none_or(|(before, _)| before != conn) {
            return;
        }
        self.write_frame(0, Body::Watch(v1::Watch { users }));
    }

    /// A server tells what is new.
    pub(super) fn on_presence(&mut self, told: &v1::Presence) -> Result<(), Refusal> {
        for one in &told.users {
            let user = convert::user(&one.user)?;
            // What was asked before may still be answered.
            if !self.watching.users.contains(&user) {
                continue;
            }
            let presence = match (one.online, one.last_seen_ms) {
                (true, _) => Presence::Online,
                (false, 0) => Presence::Gone(None),
                (false, since_ms) => Presence::Gone(Some(since_ms)),
            };
            if self.watching.known.insert(user.clone(), presence) != Some(presence) {
                self.event(Event::Presence { user, presence });
            }
        }
        Ok(())
    }
}
