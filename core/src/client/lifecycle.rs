//! What the device's system tells, and what a client learns of the network it is in.

use std::time::Duration;

use super::effects::Event;
use super::heartbeat::{Heartbeat, Way};
use super::limits::{BLAME_WITHIN, LATE_PUSH};
use super::machine::Machine;
use super::networks::NetInfo;
use super::saving::Saving;
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
        let (here, wall_ms) = (self.engine.networks.here(), self.engine.wall_ms(now));
        if let Some(session) = &mut self.session {
            let way = session.heartbeat.way();
            let learned = here.silences.iter().find(|learned| way.is_of(learned));
            session.heartbeat = session.heartbeat.elsewhere(learned, wall_ms);
            session.forget_beat();
            // Another address is no wonder now, so the silence before tells nothing.
            session.sent(now);
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
            // Does it still live? The user is about to write. And otherwise: until when does it?
            self.send_ping(now);
            self.say_watch(now);
        }
        self.after(now);
    }

    /// What the application has told of the device, for a machine that takes the place of this one.
    pub fn surroundings(&self) -> (bool, Option<NetInfo>, Saving) {
        (self.foreground, self.network.clone(), self.saving)
    }

    /// Of the machine whose place this one takes: nothing has changed, so nothing is done.
    pub fn set_surroundings(&mut self, (foreground, network, saving): (bool, Option<NetInfo>, Saving)) {
        (self.foreground, self.saving) = (foreground, saving);
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
        let open = self.session.as_ref().and_then(|s| s.beat_open().map(|b| (s.heartbeat.way(), (b.silence, b.at))));
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
        let mut beat = self.heartbeat(now, way, None);
        if self.is_doubtful(!same || beat.has_survived(silence)) {
            return;
        }
        self.expired(now, &mut beat, silence);
    }

    /// Whether something that looks like a gateway's doing may be a radio's: once it may, twice in a row it is not.
    fn is_doubtful(&mut self, may_be: bool) -> bool {
        let doubts = may_be && !self.doubts;
        self.doubts = doubts;
        doubts
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
        if pong.again_ms > 0 {
            session.will_answer_again(pong.echo);
        }
        let Some(beat) = session.beat_answered(pong.echo) else { return };
        let proves = !session.answers_again();
        if moved || beat.missed {
            let survived = session.heartbeat.has_survived(beat.silence);
            if self.is_doubtful(survived && !moved) {
                self.send_ping(now);
            } else {
                self.way_was_closed(now, beat.silence);
            }
        } else if proves {
            self.way_was_open(now, beat.silence);
        }
    }

    /// The second answer to an earlier ping has come.
    pub(super) fn answered_again(&mut self, now: Duration, pong: &v1::Pong) {
        let Some(silence) = self.session.as_mut().and_then(|s| s.answered_again(now, pong.echo)) else { return };
        self.way_was_open(now, silence);
        // The radio is awake anyway.
        self.send_ping(now);
    }

    fn way_was_open(&mut self, now: Duration, silence: Duration) {
        let wall_ms = self.engine.wall_ms(now);
        let Some(session) = &mut self.session else { return };
        self.doubts = false;
        if session.heartbeat.survived(silence, wall_ms) {
            let learned = session.heartbeat.learned();
            self.engine.networks.note(|network| network.learn(learned));
        }
    }

    fn way_was_closed(&mut self, now: Duration, silence: Duration) {
        let Some(mut beat) = self.session.as_ref().map(|s| s.heartbeat.clone()) else { return };
        self.expired(now, &mut beat, silence);
        if let Some(session) = &mut self.session {
            session.heartbeat = beat;
        }
        // The next silence is shorter than what was asked for.
        self.send_ping(now);
    }

    /// Something comes long after it was written, while the first ping after a silence is on its way: it could not come
    /// before, though this side could speak.
    pub(super) fn pushed_late(&mut self, now: Duration, push: &Push) {
        let Some(session) = &self.session else { return };
        let (Some(beat), Some(wall_ms)) = (session.beat_open(), session.wall_ms(now)) else { return };
        let newest = push.entries.iter().map(|entry| hlc::to_ms(entry.place.hlc)).max();
        let late_ms = u64::try_from(LATE_PUSH.as_millis()).unwrap_or(u64::MAX);
        if newest.is_some_and(|at_ms| at_ms.saturating_add(late_ms) < wall_ms) {
            if let Some(session) = &mut self.session {
                session.forget_beat();
            }
            self.way_was_closed(now, beat.silence);
        }
    }
}
