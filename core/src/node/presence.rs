//! Who is there, for those who want to know.
//!
//! Problem: a phone changes its network, edge or region many times a day, and each time it is gone for a moment. Whoever
//! told that would make its friends' screens flicker, and wake them for nothing; and whoever told only ends and beginnings
//! would be wrong for ever after the first one that was lost.
//!
//! Rule: a user is online while the routes say that he has a connection in any region, which only a Commit makes, and for
//! [`PRESENCE_GRACE`] after that. A client says whom it watches, as often as it likes; per connection is known what it was
//! told, so what goes out is the difference between that and what is so, once a [`PRESENCE_WINDOW`]. What is not told
//! under load is told later, or was a blip. A region whose link is down has taken its users with it after the same time,
//! and a region that has just started calls nobody gone before that time has passed. When somebody was seen last is
//! remembered in memory alone. Of users who hide it, have blocked the watcher, or share no direct conversation with him,
//! nothing is told.
//!
//! Why simpler ways fail: an event for each change, merged by nothing, costs the square of the friends in a region's
//! restart; a time-out at the watcher makes each of them decide something else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message;

use crate::fold::PRESENCE_KEY;
use crate::ids::{ConvId, UserId};
use crate::limits::{PRESENCE_GRACE, PRESENCE_SEEN, PRESENCE_WINDOW, WATCHED};
use crate::pressure::Level;
use crate::wire::v1::{self, frame::Body};

use super::routes::Holder;
use super::{ConnKey, Node, Now};

/// Last seen is told in whole minutes: it is nobody's business more exactly.
const COARSE_MS: u64 = 60_000;

/// What a watcher is told of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Online,
    /// Since when; 0 = not known, or not to be told.
    Gone(u64),
}

/// Of one connection: whom it watches, and what it was told.
type Watch = BTreeMap<UserId, Option<Told>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Presence {
    started: Duration,
    watches: BTreeMap<ConnKey, Watch>,
    watchers: BTreeMap<UserId, BTreeSet<ConnKey>>,
    /// Who has no connection anywhere: since when, by both clocks.
    gone: BTreeMap<UserId, (Duration, u64)>,
    /// The same in order of time.
    by_time: BTreeSet<(Duration, UserId)>,
    /// Who will be gone for long enough then.
    due: BTreeSet<(Duration, UserId)>,
    /// Core nodes whose link is down, and since when, by both clocks.
    down: BTreeMap<Holder, (Duration, u64)>,
    /// When the users of a region that is down are to be looked at.
    down_due: BTreeSet<(Duration, Holder)>,
    /// Own logs that are being read, and whose they are.
    reading: BTreeMap<ConvId, UserId>,
    /// Watched users of whom something may be to tell.
    changed: BTreeSet<UserId>,
    /// When that is told, and before when nothing is.
    at: Option<Duration>,
    not_before: Duration,
}

impl Presence {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            started: now,
            watches: BTreeMap::new(),
            watchers: BTreeMap::new(),
            gone: BTreeMap::new(),
            by_time: BTreeSet::new(),
            due: BTreeSet::new(),
            down: BTreeMap::new(),
            down_due: BTreeSet::new(),
            reading: BTreeMap::new(),
            changed: BTreeSet::new(),
            at: None,
            not_before: now,
        }
    }

    #[cfg(test)]
    pub(super) fn watching(&self) -> usize {
        self.watches.len() + self.watchers.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let due = self.due.first().map(|(at, _)| *at);
        let down = self.down_due.first().map(|(at, _)| *at);
        [self.at, due, down].into_iter().flatten().min()
    }

    /// Something may have changed of a user.
    pub(super) fn touch(&mut self, now: Duration, user: &UserId) {
        if self.watchers.contains_key(user) {
            self.changed.insert(user.clone());
            self.at.get_or_insert(now.max(self.not_before));
        }
    }

    fn forget_gone(&mut self, user: &UserId) {
        if let Some((since, _)) = self.gone.remove(user) {
            self.by_time.remove(&(since, user.clone()));
            self.due.remove(&(since + PRESENCE_GRACE, user.clone()));
        }
    }

    fn is_gone(&mut self, now: Now, user: &UserId) {
        if self.gone.contains_key(user) {
            return;
        }
        self.gone.insert(user.clone(), (now.mono, now.wall_ms));
        self.by_time.insert((now.mono, user.clone()));
        self.due.insert((now.mono + PRESENCE_GRACE, user.clone()));
        while self.gone.len() > PRESENCE_SEEN
            && let Some((_, oldest)) = self.by_time.first().cloned()
        {
            self.forget_gone(&oldest);
        }
    }

    /// A connection has ended.
    pub(super) fn unwatch(&mut self, key: ConnKey) {
        for user in self.watches.remove(&key).into_iter().flat_map(BTreeMap::into_keys) {
            if let Some(of) = self.watchers.get_mut(&user) {
                of.remove(&key);
                if of.is_empty() {
                    self.watchers.remove(&user);
                }
            }
        }
    }
}

impl Node {
    /// A client says whom it watches.
    pub(super) fn watch_users(&mut self, now: Now, key: ConnKey, watch: &v1::Watch) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(device) = self.users.get(&session.user).and_then(|user| user.devices.get(&key)) else { return };
        if device.bound.is_none() {
            return;
        }
        self.presence.unwatch(key);
        let me = session.user.clone();
        let users = watch.users.iter().filter_map(|user| UserId::new(user).ok()).filter(|user| *user != me);
        for user in users.take(WATCHED) {
            self.presence.watchers.entry(user.clone()).or_default().insert(key);
            self.presence.watches.entry(key).or_default().insert(user.clone(), None);
            self.presence.touch(now.mono, &user);
        }
    }

    /// A user's routes changed, here or elsewhere.
    pub(super) fn presence_changed(&mut self, now: Now, user: &UserId) {
        if self.is_anywhere(now, user) {
            self.presence.forget_gone(user);
        } else {
            self.presence.is_gone(now, user);
        }
        self.presence.touch(now.mono, user);
    }

    /// The link to a region is up or down. What it said of its users holds for a while.
    pub(super) fn presence_link(&mut self, now: Now, region: Holder, up: bool) {
        if let Some((since, _)) = self.presence.down.remove(&region) {
            self.presence.down_due.remove(&(since + PRESENCE_GRACE, region));
        }
        if !up {
            self.presence.down.insert(region, (now.mono, now.wall_ms));
            self.presence.down_due.insert((now.mono + PRESENCE_GRACE, region));
        }
        self.look_at_users_of(now, region);
    }

    fn look_at_users_of(&mut self, now: Now, region: Holder) {
        // A region may have a million users: of those whom nobody watches it is looked up when somebody does.
        let known = self.presence.watchers.keys().chain(self.presence.gone.keys());
        let there: BTreeSet<UserId> = known.filter(|user| self.routes.is_at(region, user)).cloned().collect();
        for user in there {
            self.presence_changed(now, &user);
        }
    }

    /// Since when a user is gone with a core node that is: by both clocks.
    fn gone_with(&self, user: &UserId) -> Option<(Duration, u64)> {
        let down = self.presence.down.iter().filter(|(holder, _)| self.routes.is_at(**holder, user));
        let (since, wall_ms) = down.map(|(_, since)| *since).max()?;
        Some((since + PRESENCE_GRACE, wall_ms + u64::try_from(PRESENCE_GRACE.as_millis()).unwrap_or(0)))
    }

    fn is_anywhere(&self, now: Now, user: &UserId) -> bool {
        let counts = |region: Holder| {
            let down = self.presence.down.get(&region);
            down.is_none_or(|(since, _)| now.mono < *since + PRESENCE_GRACE)
        };
        self.routes.is_here(user) || self.routes.holders(user).any(counts)
    }

    /// What watchers are to be told of a user. `None`: it is not known yet.
    fn presence_of(&self, now: Now, user: &UserId) -> Option<Told> {
        if self.is_anywhere(now, user) {
            return Some(Told::Online);
        }
        match self.presence.gone.get(user).copied().or_else(|| self.gone_with(user)) {
            Some((since, _)) if now.mono < since + PRESENCE_GRACE => Some(Told::Online),
            Some((_, wall_ms)) => Some(Told::Gone(wall_ms / COARSE_MS * COARSE_MS)),
            None if now.mono < self.presence.started + PRESENCE_GRACE => None,
            None => Some(Told::Gone(0)),
        }
    }

    /// Whether a user's own log lets another know of his presence. `None`: it is being read.
    fn shows_presence(&mut self, now: Now, user: &UserId, to: &UserId) -> Option<bool> {
        let own_log = ConvId::own(&self.settings.direct_salt, user);
        if self.empty_logs.contains(&own_log) {
            return Some(true);
        }
        if self.conversation(own_log, now).is_loading() {
            self.presence.reading.insert(own_log, user.clone());
            return None;
        }
        let blocked = self.has_blocked(user, to);
        let cell = self.conversations.get(&own_log).and_then(|log| log.state.fold.cell(PRESENCE_KEY));
        let hidden = cell.and_then(|value| v1::PresenceCell::decode(value.clone()).ok()).is_some_and(|c| c.hidden);
        self.drop_if_empty(own_log);
        Some(!blocked && !hidden)
    }

    /// A log was read, or something was written to it.
    pub(super) fn presence_log(&mut self, now: Now, id: ConvId) {
        let owner = self.presence.reading.remove(&id).or_else(|| {
            let log = self.conversations.get(&id)?;
            log.state.fold.owner(&self.settings.direct_salt, id).cloned()
        });
        if let Some(owner) = owner {
            self.presence.touch(now.mono, &owner);
        }
    }

    /// Time has passed.
    pub(super) fn presence_due(&mut self, now: Now) {
        while let Some((at, user)) = self.presence.due.first().filter(|(at, _)| *at <= now.mono).cloned() {
            self.presence.due.remove(&(at, user.clone()));
            self.presence.touch(now.mono, &user);
        }
        while let Some((at, region)) = self.presence.down_due.first().filter(|(at, _)| *at <= now.mono).copied() {
            self.presence.down_due.remove(&(at, region));
            self.look_at_users_of(now, region);
            if region.core != 0 {
                // It comes back, if it does, under another number.
                self.routes.forget(region);
                self.presence.down.remove(&region);
            }
        }
        if self.presence.at.is_some_and(|at| at <= now.mono) {
            self.tell_presence(now);
        }
    }

    fn tell_presence(&mut self, now: Now) {
        self.presence.at = None;
        self.presence.not_before = now.mono + PRESENCE_WINDOW;
        if self.pressure.level_of_all(now.mono) >= Level::NoSignals {
            // What still is so then is told then.
            self.presence.at = Some(self.presence.not_before);
            return;
        }
        let mut told = BTreeMap::<ConnKey, Vec<v1::UserPresence>>::new();
        for user in std::mem::take(&mut self.presence.changed) {
            let Some(state) = self.presence_of(now, &user) else {
                // The region has just started.
                let at = self.presence.started + PRESENCE_GRACE;
                self.presence.due.insert((at, user));
                continue;
            };
            for key in self.presence.watchers.get(&user).cloned().unwrap_or_default() {
                let Some(watcher) = self.sessions.get(&key).map(|session| session.user.clone()) else { continue };
                let direct = ConvId::direct(&self.settings.direct_salt, &watcher, &user);
                if self.users.get(&watcher).and_then(|known| known.row(direct)).is_none() {
                    continue;
                }
                let state = match self.shows_presence(now, &user, &watcher) {
                    Some(true) => state,
                    Some(false) => Told::Gone(0),
                    None => continue,
                };
                let Some(before) = self.presence.watches.get_mut(&key).and_then(|watch| watch.get_mut(&user)) else {
                    continue;
                };
                if before.replace(state) == Some(state) {
                    continue;
                }
                let (online, last_seen_ms) = match state {
                    Told::Online => (true, 0),
                    Told::Gone(since_ms) => (false, since_ms),
                };
                told.entry(key).or_default().push(v1::UserPresence {
                    user: user.as_str().to_owned(),
                    online,
                    last_seen_ms,
                });
            }
        }
        for (key, users) in told {
            self.counters.signals += 1;
            self.out.frame(key, 0, Body::Presence(v1::Presence { users }));
        }
    }
}
