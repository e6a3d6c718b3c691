//! One round over the candidates: a race with a head start for what is most likely to win.
//!
//! The first candidate by QUIC, the second after one and a half round trips, TCP+TLS on the first after 300 ms, the third
//! candidate after a second, then everything else, a quarter of a second apart, and last a WebSocket and polls at one of
//! them, another one each time (polls first, where WebSockets are cut again and again); after a round without an answer polls
//! over HTTP/3, too. Those start at once where an edge says that it does not know `tern/1`, and nearly at once where nothing
//! else got through last. Never more than three attempts at a
//! time. Where QUIC has lost lately on this network, TCP+TLS has the head start, and QUIC is tried beside it; where a
//! connection by QUIC has just fallen silent, TCP+TLS starts nearly at once. A single edge is tried by QUIC more than once
//! at a time; the first of two such gives way to another transport. An attempt that fails makes everything after
//! it earlier by what is left until the next. After a round without an answer all of it is slower, as time-outs are longer:
//! on 2G it is the racers that hold each other up. Where data is saved, the second candidate waits for a second, and a single
//! edge is tried by one attempt of a kind at a time.

use std::collections::VecDeque;
use std::time::Duration;

use rand::Rng;

use super::{Attempt, Candidate, ConnNo, Engine, EngineOut, Gone, Leg, Round, Transport, Trouble};
use crate::client::limits::{
    ATTEMPTS, CANDIDATES, DISPATCH_FIRST, KNOWN_TCP_AFTER, LISTED_FIRST, NEXT_AFTER, POLL_AFTER, QUIC_AFTER, ROUND_RTT,
    SECOND_AFTER, SILENT_TCP_AFTER, SOCKETS_CUT, TCP_AFTER, THIRD_AFTER, TIMEOUT_DOUBLINGS, TWIN_FOR, WEBSOCKET_AFTER,
};

impl Engine {
    pub(super) fn candidates(&mut self, now: Duration) -> Vec<Candidate> {
        self.demoted.retain(|_, until| *until > now);
        let mut all: Vec<Candidate> = self.list.clone();
        let built_in = self.fallback.iter().filter(|c| !self.list.iter().any(|o| o.address == c.address));
        for (n, c) in built_in.enumerate() {
            // A list may be stale or wrong as a whole: the first one that is known without it waits for three of its edges.
            let place = if n == 0 { all.len().min(LISTED_FIRST) } else { all.len() };
            all.insert(place, c.clone());
        }
        // The edge that was good last in this network first, but not out of a region that dispatch ranks lower.
        let (best, last) = (all.first().map(|c| c.region.clone()), self.networks.here().edge);
        let last_good = |c: &Candidate| !last.is_empty() && c.edge == last && Some(&c.region) == best.as_ref();
        let demoted =
            |region: bool, name: &str| !name.is_empty() && self.demoted.contains_key(&(region, name.to_owned()));
        all.sort_by_key(|c| (demoted(true, &c.region), demoted(false, &c.edge), !last_good(c)));
        all.truncate(CANDIDATES);
        all
    }

    pub(super) fn begin_round(&mut self, now: Duration) {
        self.begin_round_unless_held(now, true);
    }

    pub(super) fn begin_round_unless_held(&mut self, now: Duration, may_hold: bool) {
        if self.round.as_ref().is_some_and(|round| round.climbs) {
            self.abort_round();
        }
        if self.is_doubting() && self.running {
            self.widen(now);
        }
        if !self.running || self.round.is_some() {
            return;
        }
        self.retry_at = None;
        if !self.has_token {
            self.round_wants_token = true;
            if !std::mem::replace(&mut self.token_asked, true) {
                self.out.push_back(EngineOut::Token);
            }
            return;
        }
        if now >= self.list_until {
            self.ask_dispatch(now);
            let first = self.dispatching.until().is_some() && !self.dispatching.answered && self.rounds_failed == 0;
            if may_hold && first && self.live.is_none() {
                // What is left from an earlier run may be stale: give dispatch a moment.
                self.hold_until = Some(*self.hold_until.get_or_insert(now + DISPATCH_FIRST));
                if self.hold_until.is_some_and(|t| now < t) {
                    return;
                }
            }
        }
        self.hold_until = None;
        let candidates = self.candidates(now);
        if candidates.is_empty() {
            self.ask_dispatch(now);
            self.trouble = Some(Trouble::NoEdge { message: self.dispatching.words.clone() });
            match self.dispatching.until() {
                Some(deadline) => self.hold_until = Some(deadline),
                None => self.pause(now, Duration::ZERO),
            }
            return;
        }
        let legs = self.legs(now, &candidates);
        self.race(now, legs, false);
    }

    pub(super) fn race(&mut self, now: Duration, legs: VecDeque<Leg>, climbs: bool) {
        let known = legs.iter().map(|leg| leg.candidate.address.clone()).collect();
        let race = self.rng.random();
        let gone = Gone::default();
        self.round =
            Some(Round { legs, race, attempts: 0, climbs, doubts: false, quic_since: None, known, failures: 0, gone });
        self.progress(now);
    }

    /// Who starts when; see the module.
    pub(super) fn legs(&self, now: Duration, candidates: &[Candidate]) -> VecDeque<Leg> {
        let here = self.networks.here();
        let quic_loses = here.loses_quic(self.wall_ms(now));
        let (favoured, other) =
            if quic_loses { (Transport::Tcp, Transport::Quic) } else { (Transport::Quic, Transport::Tcp) };
        let second = here.rtt().map_or(SECOND_AFTER.1, |rtt| rtt * 3 / 2).clamp(SECOND_AFTER.0, SECOND_AFTER.1);
        let second = if self.saving { THIRD_AFTER } else { second };
        let only = matches!(candidates, [only] if only.quic) && self.rounds_failed == 0;
        let known = here.rtt().filter(|_| only && here.has_quic(self.wall_ms(now)) && !self.quic_silent);
        let other_after = match (known, self.quic_silent, quic_loses) {
            (Some(rtt), ..) => (rtt * 4).clamp(TCP_AFTER, KNOWN_TCP_AFTER),
            (None, true, _) => SILENT_TCP_AFTER,
            (None, false, true) => QUIC_AFTER,
            (None, false, false) => TCP_AFTER,
        };
        let mut planned = Vec::new();
        let mut late = Vec::new();
        for (place, candidate) in candidates.iter().enumerate() {
            let offers = |transport| candidate.timeout(transport).is_some();
            let head_start = [Duration::ZERO, second, THIRD_AFTER.max(second * 2)].get(place).copied();
            let by = [favoured, other].into_iter().filter(|transport| offers(*transport));
            for (n, transport) in by.enumerate() {
                match (head_start, n) {
                    (Some(at), 0) => planned.push((at, candidate, transport)),
                    (Some(_), _) if place == 0 => planned.push((other_after, candidate, transport)),
                    _ => late.push((candidate, transport)),
                }
            }
        }
        if let [only] = candidates
            && self.rounds_failed == 0
            && !self.saving
            && only.timeout(favoured).is_some()
        {
            // Where there is no other, a second try beside the first, and more when they are given up: one lost packet
            // costs each of them its time. Sooner where QUIC gets through, as soon as an answer could have come.
            let tries = match known {
                Some(rtt) => {
                    let answer = (rtt * 5 / 4).clamp(SECOND_AFTER.0, THIRD_AFTER);
                    let pause = TWIN_FOR.max(answer * 3);
                    vec![answer, answer * 2, answer * 2 + pause, answer * 2 + pause * 2, answer * 2 + pause * 3]
                }
                None => vec![second, THIRD_AFTER, THIRD_AFTER + NEXT_AFTER],
            };
            planned.extend(tries.into_iter().map(|at| (at, only, favoured)));
        }
        let known_http3 = here.has_only_http3(self.wall_ms(now));
        if let Some(best) = candidates.first().filter(|best| best.quic && known_http3) {
            planned.push((SECOND_AFTER.0, best, Transport::Http3));
        }
        planned.sort_by_key(|(at, _, _)| *at);
        let mut at = planned.last().map_or(Duration::ZERO, |(at, _, _)| *at);
        for (candidate, transport) in late {
            at += NEXT_AFTER;
            planned.push((at, candidate, transport));
        }
        // Last what looks like the web, where nothing else may get through.
        let tries_web = here.tries_web(self.wall_ms(now), self.rounds_failed);
        let web: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.tcp && tries_web).collect();
        let turn = usize::try_from(self.rounds_failed).unwrap_or_default();
        if let Some(candidate) = turn.checked_rem(web.len()).and_then(|place| web.get(place)).copied() {
            let mut order = [Transport::WebSocket, Transport::Poll];
            if self.sockets_cut >= SOCKETS_CUT {
                order.reverse();
            }
            for (transport, after) in order.into_iter().zip([WEBSOCKET_AFTER, POLL_AFTER]) {
                at = (at + NEXT_AFTER).max(after);
                planned.push((at, candidate, transport));
            }
            // And the web by UDP: seldom the only way, so the first round does without.
            if self.rounds_failed > 0 && candidate.quic && !known_http3 {
                planned.push((at + NEXT_AFTER, candidate, Transport::Http3));
            }
        }
        let slower = 1 << self.rounds_failed.min(TIMEOUT_DOUBLINGS);
        let leg = |(at, candidate, transport): (Duration, &Candidate, Transport)| Leg {
            at: now + at * slower,
            candidate: candidate.clone(),
            transport,
        };
        planned.into_iter().map(leg).collect()
    }

    fn start(&mut self, now: Duration, leg: Leg) {
        let Some(round) = &mut self.round else { return };
        let Some(timeout) = leg.candidate.timeout(leg.transport) else { return };
        if leg.transport == Transport::Quic {
            round.quic_since.get_or_insert(now);
        }
        round.attempts += 1;
        self.last_conn += 1;
        let deadline = now + timeout * (1 << self.rounds_failed.min(TIMEOUT_DOUBLINGS));
        let race = (round.race, round.attempts);
        let Leg { candidate, transport, .. } = leg;
        self.journal.note(now, format_args!("trying {} over {}", candidate.address, transport.name()));
        let attempt = Attempt { candidate: candidate.clone(), transport, deadline, started: now, race, rtt: None };
        self.attempts.insert(self.last_conn, attempt);
        self.out.push_back(EngineOut::Start {
            conn: self.last_conn,
            candidate,
            transport,
            race: race.0,
            attempt: race.1,
            rtt: self.assumed_rtt(),
        });
    }

    /// What the first packets are sent by: the known round trip, or a longer one with each round that failed. On 2G the
    /// packets that are sent again too soon are what the answer waits behind.
    fn assumed_rtt(&self) -> Option<Duration> {
        let known = self.networks.here().rtt();
        let patient = ROUND_RTT * (1 << self.rounds_failed.min(TIMEOUT_DOUBLINGS));
        if self.rounds_failed == 0 { known } else { known.max(Some(patient)) }
    }

    /// An attempt has failed: what comes next comes now.
    pub(super) fn hurry(&mut self, now: Duration) {
        if let Some(round) = &mut self.round
            && let Some(early) = round.legs.front().and_then(|leg| leg.at.checked_sub(now))
        {
            round.legs.iter_mut().for_each(|leg| leg.at = leg.at.saturating_sub(early));
        }
    }

    pub(super) fn progress(&mut self, now: Duration) {
        while let Some(round) = &self.round {
            let Some(next) = round.legs.front() else {
                if self.attempts.is_empty() {
                    self.round_failed(now);
                }
                return;
            };
            if next.at > now {
                return;
            }
            if let Some(at) = self.after_the_other_web(next).filter(|at| *at > now) {
                if let Some(next) = self.round.as_mut().and_then(|round| round.legs.front_mut()) {
                    next.at = at;
                }
                return;
            }
            if self.attempts.len() >= ATTEMPTS {
                let Some((at, conn)) = self.gives_way(next) else { return };
                if at > now {
                    return;
                }
                self.attempts.remove(&conn);
                self.out.push_back(EngineOut::Close(conn));
            }
            if let Some(leg) = self.round.as_mut().and_then(|round| round.legs.pop_front()) {
                self.start(now, leg);
            }
        }
    }

    /// Of two attempts by one transport at one address the older one gives way: to another transport at once, to another
    /// attempt by the same after a while. What it says is said again later each time, and the new one says it at once.
    /// From when on, and which.
    fn gives_way(&self, next: &Leg) -> Option<(Duration, ConnNo)> {
        let (conn, twin) = self.attempts.iter().find(|(conn, one)| {
            let same = |other: &Attempt| (&other.candidate, other.transport) == (&one.candidate, one.transport);
            self.attempts.range(*conn + 1..).any(|(_, other)| same(other))
        })?;
        let under_way = self.attempts.values().any(|attempt| attempt.transport == next.transport);
        Some((if under_way { next.at.max(twin.started + TWIN_FOR) } else { next.at }, *conn))
    }

    /// Of a WebSocket and polls the first keeps its head start while it is under way, whatever else has failed: polls need a
    /// round trip less, and would win where both get through.
    fn after_the_other_web(&self, next: &Leg) -> Option<Duration> {
        let other = self.attempts.values().find(|one| one.transport.is_web() && one.transport != next.transport);
        other.filter(|_| next.transport.is_web()).map(|other| other.started + (POLL_AFTER - WEBSOCKET_AFTER))
    }

    fn round_failed(&mut self, now: Duration) {
        if self.gone_at().is_some() {
            self.wait_out(now);
        } else if self.is_doubting() {
            self.round = None;
        } else if self.round.take().is_some_and(|round| round.climbs) {
            self.climb_failed(now);
        } else {
            self.trouble_of_round();
            self.pause(now, Duration::ZERO);
            self.ask_dispatch(now);
        }
    }

    /// When [`Self::progress`] has something to do.
    pub(super) fn next_leg(&self) -> Option<Duration> {
        let leg = self.round.as_ref()?.legs.front()?;
        if self.attempts.len() < ATTEMPTS { Some(leg.at) } else { self.gives_way(leg).map(|(at, _)| at) }
    }
}
