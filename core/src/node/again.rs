//! Second answers to Pings.
//!
//! Problem: a gateway that has forgotten a silent client lets its Pings out, and many give it the same port as before: then
//! nothing shows that nothing could come in until then.
//!
//! Rule: a Ping may ask to be answered once more after some time. What arrives has shown that the way in was open; what
//! does not arrive, and is followed by a Ping that is answered at once, that it was not. Each connection has one second
//! answer to come: that of its last Ping that asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::user::User;
use super::{ConnKey, Node, Now};
use crate::limits::AGAIN_RANGE;
use crate::wire::v1::{self, frame::Body};

/// Answers to come, at most one a connection.
#[derive(Debug, Default)]
pub(super) struct Agains {
    due: BTreeSet<(Duration, ConnKey)>,
    of: BTreeMap<ConnKey, (Duration, u32)>,
}

impl Agains {
    pub(super) fn forget(&mut self, key: ConnKey) {
        if let Some((at, _)) = self.of.remove(&key) {
            self.due.remove(&(at, key));
        }
    }

    fn plan(&mut self, key: ConnKey, at: Duration, echo: u32) {
        self.forget(key);
        self.of.insert(key, (at, echo));
        self.due.insert((at, key));
    }

    fn take_due(&mut self, now: Duration) -> Option<(ConnKey, u32)> {
        let (at, key) = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.remove(&(at, key));
        self.of.remove(&key).map(|(_, echo)| (key, echo))
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }
}

impl Node {
    /// Answers a Ping.
    pub(super) fn ping(&mut self, now: Now, key: ConnKey, req: u32, ping: &v1::Ping) {
        let mut again_ms = 0;
        if ping.again_ms > 0 {
            let after = Duration::from_millis(ping.again_ms.into()).clamp(AGAIN_RANGE.0, AGAIN_RANGE.1);
            again_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
            self.agains.plan(key, now.mono + after, ping.echo);
        }
        self.pong(now, key, req, v1::Pong { echo: ping.echo, again_ms, ..v1::Pong::default() });
    }

    /// Second answers that are due.
    pub(super) fn answer_again(&mut self, now: Now) {
        while let Some((key, echo)) = self.agains.take_due(now.mono) {
            self.pong(now, key, 0, v1::Pong { echo, again: true, ..v1::Pong::default() });
        }
    }

    fn pong(&mut self, now: Now, key: ConnKey, req: u32, pong: v1::Pong) {
        let Some(session) = self.sessions.get(&key) else { return };
        let rev = self.users.get(&session.user).map(User::rev);
        // Another node may be his owner by now.
        let rev = rev.filter(|_| self.has_lease(now));
        let pong = v1::Pong { rev: rev.unwrap_or_default().0, rev_unknown: rev.is_none(), ..pong };
        self.out.frame(key, req, Body::Pong(pong));
    }
}
