//! Signals: typing, and the like. They are never in a log, are merged per window, and are the first to go under
//! load: whoever misses one has missed nothing that lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use crate::codes::{Code, Refusal};
use crate::ids::{ConvId, InstallId, Region, UserId};
use crate::limits::{SIGNAL_BYTES, SIGNALS_WAITING};
use crate::wire::{convert, node_v1 as wire, v1};

use super::{ConnKey, CoreId, Node, Now};
use crate::pressure::Level;

/// Signals of one sender, conversation and kind within this time are one: the newest.
pub const SIGNAL_WINDOW: Duration = Duration::from_millis(50);
/// A signal waits so long for its conversation to be read from the disk: what comes later is told by the next one.
pub const SIGNAL_LOADS: Duration = Duration::from_secs(1);

/// Of one conversation, sender and kind.
type Key = (ConvId, UserId, u32);

#[derive(Debug)]
struct Signal {
    install: InstallId,
    body: Bytes,
    ttl_ms: u32,
    /// Told by another region: delivered here only.
    relayed: bool,
    /// When it is too late for it.
    until: Duration,
}

/// Signals that wait for their window to end.
#[derive(Debug, Default)]
pub(super) struct Signals {
    waiting: BTreeMap<Key, Signal>,
    pub(super) at: Option<Duration>,
}

impl Node {
    /// A client's signal.
    pub(super) fn signal(&mut self, now: Now, key: ConnKey, signal: v1::Signal) {
        let Some(session) = self.sessions.get(&key) else { return };
        let (user, install) = (session.user.clone(), session.install.clone());
        let Some(id) = ConvId::from_slice(&signal.conversation) else { return };
        let until = now.mono + SIGNAL_LOADS;
        let waiting = Signal { install, body: signal.body, ttl_ms: signal.ttl_ms, relayed: false, until };
        self.hold_signal(now, (id, user, signal.kind), waiting);
    }

    /// Another region's, for members who are here.
    pub(super) fn signal_told(&mut self, now: Now, signal: wire::Signal) -> Result<(), Refusal> {
        let id = convert::conversation(&signal.conversation)?;
        let (user, install) = (convert::user(&signal.user)?, convert::install(&signal.install)?);
        if signal.body.len() > SIGNAL_BYTES {
            return Err(Refusal::new(Code::BadFrame, "a signal above the limit"));
        }
        let until = now.mono + SIGNAL_LOADS;
        let waiting = Signal { install, body: signal.body, ttl_ms: signal.ttl_ms, relayed: true, until };
        self.hold_signal(now, (id, user, signal.kind), waiting);
        Ok(())
    }

    fn hold_signal(&mut self, now: Now, key: Key, signal: Signal) {
        let full = self.signals.waiting.len() >= SIGNALS_WAITING && !self.signals.waiting.contains_key(&key);
        if full || self.pressure.level_of_all(now.mono) >= Level::NoSignals {
            self.counters.signals_dropped += 1;
            return;
        }
        self.signals.waiting.insert(key, signal);
        self.signals.at.get_or_insert(now.mono + SIGNAL_WINDOW);
    }

    /// The window has ended.
    pub(super) fn send_signals(&mut self, now: Now) {
        self.signals.at = None;
        for ((id, from, kind), signal) in std::mem::take(&mut self.signals.waiting) {
            let Some(conversation) = self.conversations.get(&id).filter(|c| !c.is_loading()) else {
                // The first thing that happens in a conversation after a start may be that somebody types. Who has no
                // row of it reads nothing from the disk.
                let elsewhere = !self.owns_user(&from);
                let known = signal.relayed || elsewhere || self.users.get(&from).is_some_and(|u| u.row(id).is_some());
                if known && now.mono < signal.until {
                    self.conversation(id, now);
                    self.hold_signal(now, (id, from, kind), signal);
                }
                continue;
            };
            let fold = &conversation.state.fold;
            let present = |user: &UserId| fold.reader(user).is_some_and(|r| r.state() != crate::buckets::LEFT);
            if !present(&from) {
                continue;
            }
            let relayed = wire::Signal {
                conversation: Bytes::copy_from_slice(&id.0),
                user: from.as_str().to_owned(),
                install: signal.install.as_str().to_owned(),
                kind,
                body: signal.body.clone(),
                ttl_ms: signal.ttl_ms,
            };
            let told = to_client(&relayed);
            let mut siblings = BTreeMap::<CoreId, Vec<String>>::new();
            let group = fold.group().is_some();
            let mut regions = BTreeSet::<Region>::new();
            let present: Vec<UserId> = fold.users().into_iter().filter(|user| *user != from && present(user)).collect();
            for user in present {
                for holder in self.routes.holders(&user) {
                    if holder.region == self.settings.region {
                        siblings.entry(holder.core).or_default().push(user.as_str().to_owned());
                    } else {
                        regions.insert(holder.region);
                    }
                }
                // A user's own log is in memory where he is connected, so that is where he is asked.
                if group || !self.has_blocked(&user, &from) {
                    self.hand_signal(&user, &told);
                }
            }
            for (core, users) in siblings {
                let for_them = wire::SignalFor { signal: Some(relayed.clone()), users, group };
                self.out.cores.entry(core).or_default().push(wire::node_frame::Body::SignalFor(for_them));
            }
            for region in regions.into_iter().filter(|_| !signal.relayed) {
                self.out.link(&self.ways, region, id, wire::node_frame::Body::Signal(relayed.clone()));
            }
        }
    }

    /// To all devices of a user that are connected to this node.
    pub(super) fn hand_signal(&mut self, user: &UserId, told: &v1::Signal) {
        let devices = self.users.get(user).into_iter().flat_map(|u| &u.devices);
        for (key, _) in devices.filter(|(_, d)| d.bound.is_some()) {
            self.counters.signals += 1;
            self.out.frame(*key, 0, v1::frame::Body::Signal(told.clone()));
        }
    }
}

/// As a client is told.
pub(super) fn to_client(signal: &wire::Signal) -> v1::Signal {
    v1::Signal {
        conversation: signal.conversation.clone(),
        kind: signal.kind,
        body: signal.body.clone(),
        ttl_ms: signal.ttl_ms,
        from: Some(v1::Author { user: signal.user.clone(), install: signal.install.clone() }),
    }
}
