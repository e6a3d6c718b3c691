//! What the device's system tells, and what a client learns of the network it is in.

use std::time::Duration;

use super::effects::Event;
use super::heartbeat::{Heartbeat, Way};
use super::limits::{BLAME_WITHIN, LATE_PUSH};
use super::machine::Machine;
use super::networks::NetInfo;
use crate::edge_api::Push;
use crate::hlc;
use crate::wire::v1::{self, frame::Body};

/// A silence after which a connection did not answer any more.
#[derive(Clone, Debug)]
pub(super) struct Suspect {
    way: Way,
    silence: Duration,
    /// When the ping was sent that was not answered.
    at: Duration,
    /// The edge's address.
    address: String,
}

impl Machine {
    /// The calendar clock, for what is remembered over a restart. To be told once at the start, and after it was set.
    pub fn set_wall(&mut self, now: Duration, wall_ms: u64) {
        self.engine.set_wall(now, wall_ms);
    }

    /// The device's network changed, or `None`: something of it did, the application does not know what. What was known
    /// of addresses and back-offs is void; the connection in use has to show that it lives, while another is prepared.
    pub fn network_changed(&mut self, now: Duration, info: Option<NetInfo>) {
        if let Some(info) = info {
            self.engine.networks.enter(&info.id);
            self.network = Some(info);
        }
        self.suspect = None;
        self.engine.connect(now);
        if let Some(session) = &mut self.session {
            session.forget_beat();
            self.tell_network();
            self.send_ping(now);
        }
        self.after(now);
    }

    /// Whether the user looks at the application: then the beat is fixed, and outages are watched closely.
    pub fn set_foreground(&mut self, now: Duration, foreground: bool) {
        if std::mem::replace(&mut self.foreground, foreground) == foreground {
            return;
        }
        self.engine.set_foreground(foreground);
        if let Some(session) = &mut self.session {
            session.heartbeat.set_foreground(foreground);
            self.tell_network();
            if foreground {
                // Does it still live? The user is about to write.
                self.send_ping(now);
            }
        }
        self.after(now);
    }

    /// What the application has told of the device, for a machine that takes the place of this one.
    pub fn surroundings(&self) -> (bool, Option<NetInfo>) {
        (self.foreground, self.network.clone())
    }

    /// Of the machine whose place this one takes: nothing has changed, so nothing is done.
    pub fn set_surroundings(&mut self, (foreground, network): (bool, Option<NetInfo>)) {
        self.foreground = foreground;
        self.engine.set_foreground(foreground);
        if let Some(info) = network {
            self.engine.networks.enter(&info.id);
            self.network = Some(info);
        }
    }

    /// See [`Self::set_foreground`].
    pub fn is_foreground(&self) -> bool {
        self.foreground
    }

    fn tell_network(&mut self) {
        let network = self.network.as_ref().map(NetInfo::to_wire);
        self.write_frame(0, Body::Network(v1::Network { network, foreground: self.foreground }));
    }

    /// The beat of a new connection.
    pub(super) fn heartbeat(&self, now: Duration, way: Way, told: Option<&v1::Heartbeat>) -> Heartbeat {
        let told = told.map_or((0, 0, 0), |h| (h.foreground_ms, h.background_ms_min, h.background_ms_max));
        let here = self.engine.networks.here();
        let learned = here.silences.iter().find(|learned| way.is_of(learned));
        Heartbeat::new(way, self.foreground, told, learned, self.engine.wall_ms(now))
    }

    /// A connection counts as dead. Was it a beat that found out?
    pub(super) fn suspect_gateway(&mut self) {
        let open = self.session.as_ref().and_then(|s| Some((s.heartbeat.way(), s.beat_open()?)));
        let address = self.engine.live().map(|(_, candidate, _)| candidate.address.clone());
        if let Some(((way, (silence, at)), address)) = open.zip(address) {
            self.suspect = Some(Suspect { way, silence, at, address });
        }
    }

    /// A new connection has come about: if it was soon after a beat without an answer, and to the same edge, then network
    /// and edge were there all the time, and a gateway had forgotten the old connection. At another edge it may also be
    /// that the first one is gone; twice in a row it is not.
    pub(super) fn blame(&mut self, now: Duration) {
        let Some(Suspect { way, silence, at, address }) = self.suspect.take() else { return };
        if now > at + BLAME_WITHIN {
            return;
        }
        let same = self.engine.live().is_some_and(|(_, candidate, _)| candidate.address == address);
        self.doubts = if same { 0 } else { self.doubts + 1 };
        if !same && self.doubts < 2 {
            return;
        }
        self.doubts = 0;
        let mut beat = self.heartbeat(now, way, None);
        self.expired(now, &mut beat, silence);
    }

    fn expired(&mut self, now: Duration, beat: &mut Heartbeat, silence: Duration) {
        beat.expired(silence, self.engine.wall_ms(now));
        let learned = beat.learned();
        self.engine.networks.note(|network| network.learn(learned));
        self.event(Event::GatewayForgot { silence });
    }

    /// A ping was answered: was it one that ended a silence, and was the way open all the time?
    pub(super) fn beat_answered(&mut self, now: Duration, pong: &v1::Pong) {
        let Some(session) = &mut self.session else { return };
        let moved = !pong.seen_address.is_empty() && pong.seen_address != session.seen_address;
        if moved {
            session.seen_address.clone_from(&pong.seen_address);
        }
        let Some(silence) = session.beat_answered(pong.echo) else { return };
        let mut beat = session.heartbeat.clone();
        self.doubts = 0;
        if moved {
            self.expired(now, &mut beat, silence);
        } else if beat.survived(silence) {
            let learned = beat.learned();
            self.engine.networks.note(|network| network.learn(learned));
        }
        if let Some(session) = &mut self.session {
            session.heartbeat = beat;
        }
    }

    /// Something comes long after it was written, while the first ping after a silence is on its way: it could not come
    /// before, though this side could speak.
    pub(super) fn pushed_late(&mut self, now: Duration, push: &Push) {
        let Some(session) = &self.session else { return };
        let (Some((silence, _)), Some(wall_ms)) = (session.beat_open(), session.wall_ms(now)) else { return };
        let newest = push.entries.iter().map(|entry| hlc::to_ms(entry.place.hlc)).max();
        let late_ms = u64::try_from(LATE_PUSH.as_millis()).unwrap_or(u64::MAX);
        if newest.is_some_and(|at_ms| at_ms.saturating_add(late_ms) < wall_ms) {
            let mut beat = session.heartbeat.clone();
            if let Some(session) = &mut self.session {
                session.forget_beat();
            }
            self.expired(now, &mut beat, silence);
            if let Some(session) = &mut self.session {
                session.heartbeat = beat;
            }
        }
    }
}
