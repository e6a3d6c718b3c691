//! From an attempt's Hello to its Welcome, and from there to the end of the session.

use std::time::Duration;

use rand::Rng;

use super::candidates::{ConnNo, EngineOut, Failure};
use super::data::Op;
use super::effects::{Effect, Event, Hello};
use super::heartbeat::Way;
use super::limits::{BEAT_JITTER, FIRST_BEAT_MIN, UNSTABLE_ASK_FIRST, WORDS_BYTES};
use super::machine::Machine;
use super::networks::NetInfo;
use super::session::Session;
use super::trouble::cut;
use crate::codes::Code;
use crate::ids::{Cursor, InstallId};
use crate::limits::{CURSORS, UNSTABLE_PER_FRAME};
use crate::wire::VERSION;
use crate::wire::compact::Read;
use crate::wire::v1::{self, error::Retry, frame::Body};

impl Machine {
    /// The edge sent what can't be read: it is closed and another is tried.
    pub(super) fn broken(&mut self, now: Duration, conn: ConnNo, what: &crate::codes::Refusal) {
        self.effects.push(Effect::Close { conn, code: what.code });
        self.end_session(conn);
        self.installs.remove(&conn);
        self.engine.ended(now, conn, &Failure::Network(format!("the edge sent what can't be read: {what}")));
    }

    /// A frame on a connection that was not welcomed yet.
    pub(super) fn attempt_frame(&mut self, now: Duration, conn: ConnNo, read: Read) {
        let Read::Other(frame) = read else { return };
        match frame.body {
            Some(Body::Welcome(welcome)) => self.welcomed(now, conn, welcome),
            Some(Body::Error(error)) => {
                self.effects.push(Effect::Close { conn, code: Code::Closed });
                let failure = failure_of(&error);
                self.ended(now, conn, &failure);
            }
            Some(Body::Kick(kick)) => self.kicked(now, kick.code, kick.message),
            _ => {}
        }
    }

    fn welcomed(&mut self, now: Duration, conn: ConnNo, welcome: v1::Welcome) {
        let cursor = match welcome.cursor.map(Cursor::try_from) {
            Some(Ok(cursor)) if welcome.version == VERSION => cursor,
            _ => {
                let what =
                    crate::codes::Refusal::new(Code::BadFrame, "a Welcome without a cursor or of another version");
                self.broken(now, conn, &what);
                return;
            }
        };
        let rtt = self.engine.attempt_rtt(now, conn);
        let Some(install) = self.installs.remove(&conn).filter(|_| self.engine.welcomed(now, conn)) else { return };
        self.run_engine(now);
        let Some((_, candidate, transport)) = self.engine.live() else { return };
        let name = |told: String, listed: &str| if told.is_empty() { listed.to_owned() } else { told };
        let names = (name(welcome.edge, &candidate.edge), name(welcome.region, &candidate.region));
        let ipv6 = candidate.address.starts_with('[');
        let way = Way { transport, ipv6 };
        self.blame(now);
        let heartbeat = self.heartbeat(now, way, welcome.heartbeat.as_ref());
        let in_flight = welcome.limits.map_or(0, |l| l.in_flight);
        let mut session = Session::new(now, conn, install, names, transport, cursor, heartbeat, in_flight);
        if let Some((rtt, measured)) = rtt {
            session.measured(rtt);
            if measured {
                self.engine.measured(rtt);
            }
        }
        if self.engine.by_doubt {
            session.pulse.be_patient();
        }
        session.seen_address = welcome.seen_address;
        self.engine.set_spread(Duration::from_millis(welcome.spread_ms.into()));
        // Who came together, as after an outage, does not beat together: else all would find a dead edge in one moment.
        session.first_beat(self.rng.random_range(FIRST_BEAT_MIN..=*BEAT_JITTER.end()));
        session.unstable_at = (!self.unstable.is_empty()).then_some(now + UNSTABLE_ASK_FIRST);
        let listed = self.unstable.iter().take(UNSTABLE_PER_FRAME);
        session.asked = listed.flat_map(|id| self.unstable_origins(*id).into_iter().map(|o| (*id, o))).collect();
        if self.offers_to != Some(cursor.store.region) {
            self.offers_to = Some(cursor.store.region);
            self.convs.values_mut().for_each(|c| c.outbox.offers.clear());
        }
        let jitter = self.rng.random_range(0..=1000);
        session.token_until(now, Some(welcome.wall_ms), welcome.token_expires_ms, jitter);
        self.session = Some(session);
        self.connected.clear();
        if !self.foreground {
            self.send_ping(now);
        }
        self.learn_salt(welcome.direct_salt);
        self.commit();
        self.try_unknown_again(cursor.store);
        let compare = welcome.rows.as_ref().filter(|r| r.upto.is_none() && !r.preview && r.rows.is_empty());
        let taken_back = compare.map(|r| r.reset == v1::CursorReset::FromTheFuture as i32);
        if let Some(taken_back) = taken_back.filter(|_| self.has_told_rows()) {
            // The Hello said so: this region has no cursor of ours, and waits for the hashes.
            if taken_back || self.cursor().is_none() {
                self.compare(now, taken_back, false);
            }
        }
        let result = match welcome.rows {
            Some(rows) => self.rows(now, rows, self.cursors.get(&cursor.store.region).copied()),
            None => Ok(()),
        };
        if let Err(what) = result {
            self.broken(now, conn, &what);
            return;
        }
        self.want_rows(now);
        self.mark_wanting();
    }

    fn commit(&mut self) {
        if let Some((race, attempt)) = self.engine.live_race() {
            self.connections += 1;
            // Stored before it is said: a later start of this process must not say less.
            self.ops.push(Op::Connections(self.connections));
            self.write_frame(0, Body::Commit(v1::Commit { race, attempt, order: self.connections }));
        }
    }

    /// The server ended this client. Where another connection of this very client is under way, that is what
    /// it was replaced by.
    pub(super) fn kicked(&mut self, now: Duration, code: u32, message: String) {
        if code == Code::Replaced as u32 && !self.installs.is_empty() {
            if let Some(conn) = self.session.as_ref().map(|s| s.conn) {
                self.effects.push(Effect::Close { conn, code: Code::Closed });
                self.end_session(conn);
                self.engine.ended(now, conn, &Failure::Renew);
            }
            return;
        }
        self.event(Event::Kicked { code, message });
        self.engine.stop();
        self.after(now);
    }

    /// Many requests may be refused for one expired token: it is asked for once.
    pub(super) fn ask_token(&mut self, refused: bool) {
        if !std::mem::replace(&mut self.token_asked, true) {
            self.effects.push(Effect::Token { refused });
        }
    }

    /// A Kick, or an Error without a request, on the connection in use.
    pub(super) fn session_error(&mut self, now: Duration, error: &v1::Error) {
        match failure_of(error) {
            Failure::Refused { code, message, .. }
                if matches!(Code::from_u32(code), Some(Code::Replaced | Code::Kicked)) =>
            {
                self.kicked(now, code, message);
            }
            Failure::Refused { retry: Retry::NewToken, .. } => self.ask_token(true),
            failure @ Failure::Refused { retry: Retry::Elsewhere, .. } => self.engine.leave(now, &failure),
            _ => {}
        }
    }

    /// The edge is going away.
    pub(super) fn go_away(&mut self, now: Duration, go: &v1::GoAway) {
        self.engine.go_away(now, Duration::from_millis(go.window_ms.into()), &go.alternates);
    }

    /// Forgets all that belongs to the connection in use, if it is this one.
    pub(super) fn end_session(&mut self, conn: ConnNo) {
        if self.session.as_ref().is_some_and(|s| s.conn == conn) {
            self.session = None;
            for id in self.sending.union(&self.unstable) {
                if let Some(conv) = self.convs.get_mut(id) {
                    conv.outbox.disconnected();
                }
            }
            self.convs.values_mut().for_each(|c| {
                c.outbox.known_in_session = false;
                c.pauses.clear();
                (c.giving, c.gave, c.give_at) = (None, 0, Duration::ZERO);
            });
            self.giving.clear();
        }
    }

    /// Does what the engine wants done.
    pub(super) fn run_engine(&mut self, now: Duration) {
        while let Some(out) = self.engine.poll_output() {
            match out {
                EngineOut::Start { conn, candidate, transport, race, attempt, rtt } => {
                    let Some(token) = self.token.as_ref().map(|t| t.0.clone()) else {
                        self.engine.token_failed(now, "it is gone");
                        continue;
                    };
                    let install = self.wanted_install();
                    let hello = self.hello(token, &install, race, attempt);
                    self.installs.insert(conn, install);
                    let hello = Hello(Box::new(v1::Frame::new(1, Body::Hello(hello))));
                    self.effects.push(Effect::Connect { conn, candidate, transport, hello, rtt });
                }
                EngineOut::Close(conn) => {
                    self.installs.remove(&conn);
                    self.end_session(conn);
                    self.effects.push(Effect::Close { conn, code: Code::Closed });
                }
                EngineOut::Dispatch(asking) => {
                    let network = self.network.clone();
                    self.effects.push(Effect::Dispatch(asking, network));
                }
                EngineOut::Token if self.token.is_some() && !self.token_refused => self.engine.token_ready(now),
                EngineOut::Token => self.ask_token(self.token_refused),
            }
        }
    }

    fn hello(&self, token: String, install: &InstallId, race: u64, attempt: u32) -> v1::Hello {
        v1::Hello {
            versions: vec![VERSION],
            token,
            install: install.as_str().to_owned(),
            cursors: self.cursors.values().take(CURSORS).map(|c| (*c).into()).collect(),
            race,
            attempt,
            network: self.network.as_ref().map(NetInfo::to_wire),
            foreground: self.foreground,
            unstable: self.unstable.iter().take(UNSTABLE_PER_FRAME).filter_map(|id| self.unstable_log(*id)).collect(),
            early: false,
            agent: self.setup.agent.clone(),
            compare: self.has_told_rows(),
            packs: true,
        }
    }
}

/// An Error frame as the engine sees it. The advice on the wire counts: codes may be newer than this client.
pub(super) fn failure_of(error: &v1::Error) -> Failure {
    Failure::Refused {
        code: error.code,
        retry: Retry::try_from(error.retry).unwrap_or(Retry::Elsewhere),
        after: Duration::from_millis(error.retry_after_ms.into()),
        message: cut(&error.message, WORDS_BYTES).to_owned(),
    }
}
