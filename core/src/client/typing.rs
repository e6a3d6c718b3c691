//! Who is typing.
//!
//! *Problem.* That somebody is typing is worth knowing for seconds and told with every key that is pressed; it
//! may get lost anywhere, and its end too.
//!
//! *Rule.* It goes out as a signal, only while connected, and never waits: what can't go now is dropped. Said
//! once, it holds for [`TYPING_FOR`], so it is said again only after [`TYPING_AGAIN`]; a whole client says no more
//! than the edge takes. What is heard ends by itself, with the word that it ended, or with a message of that
//! user.
//!
//! *Why the simpler way fails.* A word for the begin and one for the end: the second is lost with a dead phone,
//! and somebody types for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::effects::Event;
use super::limits::{SIGNALS_BURST, SIGNALS_PER_SECOND, TYPING_AGAIN, TYPING_FOR, TYPING_MAX, TYPING_SETTLES, TYPISTS};
use super::machine::Machine;
use crate::codes::Refusal;
use crate::ids::{ConvId, UserId};
use crate::pacing::{Bucket, Rate};
use crate::wire::convert;
use crate::wire::v1::{self, frame::Body};

/// `Signal.kind` of typing.
const TYPING: u32 = 0;

/// What was said on one connection.
#[derive(Debug, Default)]
pub(super) struct Said {
    at: BTreeMap<ConvId, Duration>,
    pace: Bucket,
}

impl Machine {
    /// This user is typing in a conversation, or has stopped; to be called with every change of the input, and with
    /// `false` when it was emptied. A message sent ends it by itself. Offline, and in a conversation that the
    /// region has not told of, it does nothing.
    pub fn typing(&mut self, now: Duration, id: ConvId, typing: bool) {
        if !self.convs.get(&id).is_some_and(|c| c.record.sighted && !c.record.has_left()) {
            return;
        }
        let Some(session) = self.session.as_mut().filter(|s| !s.leaving) else { return };
        let said = &mut session.typing;
        said.at.retain(|_, at| now < *at + TYPING_FOR);
        let is_news = match said.at.get(&id) {
            Some(at) => !typing || now >= *at + TYPING_AGAIN,
            None => typing,
        };
        if !is_news || said.pace.take(Rate::new(SIGNALS_PER_SECOND, SIGNALS_BURST), now).is_err() {
            return;
        }
        if typing {
            said.at.insert(id, now);
        } else {
            said.at.remove(&id);
        }
        let ttl = if typing { TYPING_FOR } else { Duration::ZERO };
        let signal = v1::Signal {
            conversation: Bytes::copy_from_slice(&id.0),
            kind: TYPING,
            ttl_ms: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
            ..v1::Signal::default()
        };
        // Nothing answers a signal, so it says nothing about the connection.
        self.write_frame(0, Body::Signal(signal));
    }

    /// What was typed goes out as a message.
    pub(super) fn typed(&mut self, now: Duration, id: ConvId) {
        let said = self.session.as_ref().and_then(|s| s.typing.at.get(&id).copied());
        if said.is_some_and(|at| now < at + TYPING_SETTLES) {
            // The servers may still hold the signal back: it must not come after the message.
            self.typing(now, id, false);
        }
        if let Some(session) = &mut self.session {
            session.typing.at.remove(&id);
        }
    }

    /// A server tells a signal.
    pub(super) fn on_signal(&mut self, now: Duration, signal: &v1::Signal) -> Result<(), Refusal> {
        let id = convert::conversation(&signal.conversation)?;
        let user = convert::user(signal.from.as_ref().map(|from| from.user.as_str()).unwrap_or_default())?;
        let heard = signal.kind == TYPING && user != self.setup.user && self.convs.contains_key(&id);
        if !heard || self.is_blocked(&user) {
            return Ok(());
        }
        if signal.ttl_ms == 0 {
            self.stops_typing(id, &user);
            return Ok(());
        }
        let until = now + Duration::from_millis(signal.ttl_ms.into()).min(TYPING_MAX);
        let key = (id, user);
        if self.typists.len() >= TYPISTS && !self.typists.contains_key(&key) {
            return Ok(());
        }
        if self.typists.insert(key.clone(), until).is_none() {
            self.event(Event::Typing { conversation: id, user: key.1, typing: true });
        }
        Ok(())
    }

    /// Somebody said so, or his message came.
    pub(super) fn stops_typing(&mut self, id: ConvId, user: &UserId) {
        if !self.typists.is_empty() && self.typists.remove(&(id, user.clone())).is_some() {
            self.event(Event::Typing { conversation: id, user: user.clone(), typing: false });
        }
    }

    /// Who has not said for too long that he is typing is not.
    pub(super) fn expire_typists(&mut self, now: Duration) {
        let over = self.typists.iter().filter(|(_, until)| now >= **until).map(|(key, _)| key.clone());
        for (id, user) in over.collect::<Vec<_>>() {
            self.stops_typing(id, &user);
        }
    }

    pub(super) fn typing_deadline(&self) -> Option<Duration> {
        self.typists.values().copied().min()
    }

    /// Who is typing in a conversation, as far as was told.
    pub fn typists(&self, id: ConvId) -> Vec<UserId> {
        self.typists.keys().filter(|(conversation, _)| *conversation == id).map(|(_, user)| user.clone()).collect()
    }
}
