//! One round over the candidates.

use std::collections::VecDeque;
use std::time::Duration;

use rand::Rng;

use super::{Attempt, Candidate, Engine, EngineOut, Round, Slot, Transport};
use crate::client::limits::{
    ATTEMPTS, CANDIDATES, DISPATCH_FIRST, TCP_AFTER, TCP_AFTER_NEXT, TIMEOUT_DOUBLINGS, WEB_AFTER,
};

impl Engine {
    pub(super) fn candidates(&mut self, now: Duration) -> VecDeque<Candidate> {
        self.demoted.retain(|_, until| *until > now);
        let mut all: Vec<Candidate> = self.list.clone();
        for c in &self.fallback {
            if !all.iter().any(|o| o.address == c.address) {
                all.push(c.clone());
            }
        }
        let demoted =
            |region: bool, name: &str| !name.is_empty() && self.demoted.contains_key(&(region, name.to_owned()));
        all.sort_by_key(|c| (demoted(true, &c.region), demoted(false, &c.edge)));
        all.truncate(CANDIDATES);
        all.into()
    }

    pub(super) fn begin_round(&mut self, now: Duration) {
        self.begin_round_unless_held(now, true);
    }

    pub(super) fn begin_round_unless_held(&mut self, now: Duration, may_hold: bool) {
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
            let first = self.dispatching.running.is_some() && !self.dispatching.answered && self.rounds_failed == 0;
            if may_hold && first && self.live.is_none() {
                // What is left from an earlier run may be stale: give dispatch a moment.
                self.hold_until = Some(*self.hold_until.get_or_insert(now + DISPATCH_FIRST));
                if self.hold_until.is_some_and(|t| now < t) {
                    return;
                }
            }
        }
        self.hold_until = None;
        let queue = self.candidates(now);
        if queue.is_empty() {
            self.ask_dispatch(now);
            match self.dispatching.running {
                Some((_, deadline)) => self.hold_until = Some(deadline),
                None => self.pause(now, Duration::ZERO),
            }
            return;
        }
        let web = self.web(now, &queue);
        self.round = Some(Round { queue, slot: None, web, race: self.rng.random(), attempts: 0 });
        self.progress(now);
    }

    /// By the web a round tries one edge, each round another way, and another edge when both ways were tried.
    fn web(&self, now: Duration, queue: &VecDeque<Candidate>) -> Option<(Candidate, Transport, Duration)> {
        let failed = usize::try_from(self.rounds_failed.checked_sub(1)?).unwrap_or(usize::MAX);
        let offering: Vec<&Candidate> = queue.iter().filter(|c| c.tcp).collect();
        let candidate = *offering.get((failed / 2).checked_rem(offering.len())?)?;
        let transport = if failed.is_multiple_of(2) { Transport::WebSocket } else { Transport::Poll };
        Some((candidate.clone(), transport, now + WEB_AFTER))
    }

    /// Attempts that others wait for.
    pub(super) fn in_turn(&self) -> usize {
        self.attempts.values().filter(|a| !a.transport.is_web()).count()
    }

    fn start(&mut self, now: Duration, candidate: &Candidate, transport: Transport) {
        let Some(round) = &mut self.round else { return };
        round.attempts += 1;
        self.last_conn += 1;
        let timeout = match transport {
            Transport::Quic => candidate.quic_timeout,
            Transport::Tcp | Transport::WebSocket | Transport::Poll => candidate.tcp_timeout,
        };
        let deadline = now + timeout * (1 << self.rounds_failed.min(TIMEOUT_DOUBLINGS));
        let race = (round.race, round.attempts);
        let attempt = Attempt { candidate: candidate.clone(), transport, deadline, started: now, race };
        self.attempts.insert(self.last_conn, attempt);
        self.out.push_back(EngineOut::Start {
            conn: self.last_conn,
            candidate: candidate.clone(),
            transport,
            race: race.0,
            attempt: race.1,
        });
    }

    pub(super) fn progress(&mut self, now: Duration) {
        loop {
            let in_turn = self.in_turn();
            let Some(round) = &mut self.round else { return };
            let last = round.slot.is_none() && round.queue.is_empty() && in_turn == 0;
            if let Some((candidate, transport, _)) = round.web.take_if(|(_, _, at)| now >= *at || last) {
                self.start(now, &candidate, transport);
            } else if let Some(slot) = &mut round.slot {
                let candidate = slot.candidate.clone();
                let alive = self.attempts.values().any(|a| a.candidate == candidate && !a.transport.is_web());
                if slot.tcp_at.is_some_and(|at| now >= at || !alive) && in_turn < ATTEMPTS {
                    slot.tcp_at = None;
                    self.start(now, &candidate, Transport::Tcp);
                } else if (!alive && slot.tcp_at.is_none()) || now >= slot.next_at {
                    round.slot = None;
                } else {
                    return;
                }
            } else if round.queue.is_empty() {
                if self.attempts.is_empty() {
                    self.round = None;
                    self.pause(now, Duration::ZERO);
                    self.ask_dispatch(now);
                }
                return;
            } else if in_turn >= ATTEMPTS {
                return;
            } else if let Some(candidate) = round.queue.pop_front() {
                let tcp_after = if round.attempts == 0 { TCP_AFTER } else { TCP_AFTER_NEXT };
                let next_at = now + candidate.quic_timeout * (1 << self.rounds_failed.min(TIMEOUT_DOUBLINGS));
                let tcp_at = candidate.tcp.then(|| if candidate.quic { now + tcp_after } else { now });
                round.slot = Some(Slot { candidate: candidate.clone(), tcp_at, next_at });
                if candidate.quic {
                    self.start(now, &candidate, Transport::Quic);
                }
            }
        }
    }
}
