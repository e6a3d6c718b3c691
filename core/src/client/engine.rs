//! Where to connect, and when: candidates, attempts, back-off, moving on.
//!
//! *Problem.* A list of edges can be stale, an edge can be dead, a region can be gone, a network can swallow
//! UDP or accept TCP and stay silent; and whoever retries too eagerly brings down what is left.
//!
//! *Rule.* One round goes through the candidates in order of their rank, what failed lately last: QUIC first,
//! TCP+TLS on the same edge a moment later, the next edge when both failed or the time-out is over. After a round
//! that failed, the next ones try one edge more by what looks like the web, a WebSocket and polls in turn; they
//! take no turn from the others, so a round is as fast as without them. Only an authenticated Welcome counts as success. A round that failed is followed by a random pause below a bound
//! that doubles, and by asking dispatch for a new list with what failed. Whatever replaces a living
//! connection is made before that is broken.
//!
//! *Why the simpler ways fail.* "Connected" as success: a captive portal answers TCP and nothing else.
//! Resetting the back-off with each Welcome: two draining edges pass a client to and fro for ever. A pause
//! without jitter: all clients of a dead edge come back in the same millisecond.

mod dispatching;
mod rounds;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::dispatching::Dispatching;
use super::candidates::{Candidate, ConnNo, EngineOut, Failure, Transport};
use super::limits::{ATTEMPTS, BACKOFF_MAX, BACKOFF_MIN, CANDIDATES, DEMOTED_FOR, SETTLED, SUSPECT_KEEP};
use crate::codes::Code;
use crate::wire::v1::error::Retry;

#[derive(Debug)]
struct Attempt {
    candidate: Candidate,
    transport: Transport,
    deadline: Duration,
    started: Duration,
    race: (u64, u32),
}

#[derive(Debug)]
struct Slot {
    candidate: Candidate,
    tcp_at: Option<Duration>,
    next_at: Duration,
}

#[derive(Debug)]
struct Round {
    queue: VecDeque<Candidate>,
    slot: Option<Slot>,
    /// What to try by WebSocket or poll, and when.
    web: Option<(Candidate, Transport, Duration)>,
    race: u64,
    attempts: u32,
}

#[derive(Debug)]
struct Live {
    conn: ConnNo,
    candidate: Candidate,
    transport: Transport,
    race: (u64, u32),
    since: Duration,
    suspect_since: Option<Duration>,
    may_recover: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Engine {
    fallback: Vec<Candidate>,
    targets: usize,
    list: Vec<Candidate>,
    list_until: Duration,
    dispatching: Dispatching,
    demoted: BTreeMap<(bool, String), Duration>,
    round: Option<Round>,
    rounds_failed: u32,
    retry_at: Option<Duration>,
    hold_until: Option<Duration>,
    attempts: BTreeMap<ConnNo, Attempt>,
    live: Option<Live>,
    leave_at: Option<Duration>,
    running: bool,
    has_token: bool,
    token_asked: bool,
    round_wants_token: bool,
    last_conn: ConnNo,
    rng: StdRng,
    out: VecDeque<EngineOut>,
}

impl Engine {
    /// `fallback`: built-in edges; `targets`: number of dispatch addresses.
    pub fn new(fallback: Vec<Candidate>, targets: usize, seed: u64) -> Self {
        Self {
            fallback,
            targets,
            list: Vec::new(),
            list_until: Duration::ZERO,
            dispatching: Dispatching::default(),
            demoted: BTreeMap::new(),
            round: None,
            rounds_failed: 0,
            retry_at: None,
            hold_until: None,
            attempts: BTreeMap::new(),
            live: None,
            leave_at: None,
            running: false,
            has_token: false,
            token_asked: false,
            round_wants_token: false,
            last_conn: 0,
            rng: StdRng::seed_from_u64(seed),
            out: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<EngineOut> {
        self.out.pop_front()
    }

    /// Begins to connect, or connects now instead of later: at the start, after a change of the network, and
    /// when the application asks for it. Ends every back-off.
    pub fn connect(&mut self, now: Duration) {
        self.running = true;
        self.rounds_failed = 0;
        self.retry_at = None;
        self.dispatching.not_before = now;
        self.demoted.clear();
        if self.live.is_none() {
            self.abort_round();
            self.begin_round(now);
        }
    }

    /// Closes everything and stays so until [`Self::connect`].
    pub fn stop(&mut self) {
        self.running = false;
        self.retry_at = None;
        self.hold_until = None;
        self.leave_at = None;
        self.abort_round();
        if let Some(live) = self.live.take() {
            self.out.push_back(EngineOut::Close(live.conn));
        }
    }

    /// The connection in use.
    pub fn live(&self) -> Option<(ConnNo, &Candidate, Transport)> {
        self.live.as_ref().map(|l| (l.conn, &l.candidate, l.transport))
    }

    /// Race and attempt of the connection in use: what its Commit says.
    pub fn live_race(&self) -> Option<(u64, u32)> {
        self.live.as_ref().map(|l| l.race)
    }

    /// Whether anything is being tried or used.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// When the next round starts, where one is waited for.
    pub fn retry_at(&self) -> Option<Duration> {
        self.retry_at
    }

    /// A token is there.
    pub fn token_ready(&mut self, now: Duration) {
        self.has_token = true;
        self.token_asked = false;
        if std::mem::take(&mut self.round_wants_token) && self.retry_at.is_none() {
            self.begin_round(now);
        }
    }

    /// No token was to be had, or the one there was is of no use: ask again, after a pause.
    pub fn token_failed(&mut self, now: Duration) {
        self.has_token = false;
        self.token_asked = false;
        self.abort_round();
        self.pause(now, Duration::ZERO);
    }

    /// The attempt `conn` was welcomed; its predecessor and its rivals are closed. False: it is no attempt.
    pub fn welcomed(&mut self, now: Duration, conn: ConnNo) -> bool {
        let Some(attempt) = self.attempts.remove(&conn) else { return false };
        if let Some(old) = self.live.take() {
            self.out.push_back(EngineOut::Close(old.conn));
        }
        self.demoted.remove(&(false, attempt.candidate.edge.clone()));
        self.live = Some(Live {
            conn,
            candidate: attempt.candidate,
            transport: attempt.transport,
            race: attempt.race,
            since: now,
            suspect_since: None,
            may_recover: false,
        });
        self.leave_at = None;
        self.retry_at = None;
        self.abort_round();
        true
    }

    /// How long the attempt has been under way: a first measure of the round trip.
    pub fn attempt_age(&self, now: Duration, conn: ConnNo) -> Option<Duration> {
        self.attempts.get(&conn).map(|a| now.saturating_sub(a.started))
    }

    /// An attempt or the live connection has ended.
    pub fn ended(&mut self, now: Duration, conn: ConnNo, failure: &Failure) {
        if let Some(attempt) = self.attempts.remove(&conn) {
            self.attempt_failed(now, &attempt, failure);
        } else if self.live.as_ref().is_some_and(|l| l.conn == conn) {
            self.lost(now, failure);
        }
    }

    fn attempt_failed(&mut self, now: Duration, attempt: &Attempt, failure: &Failure) {
        if let Failure::Refused { retry, after, .. } = failure {
            if *retry == Retry::NewToken {
                self.token_failed(now);
                return;
            }
            // It has answered by one transport: the other would hear the same.
            if let Some(slot) = self.round.as_mut().and_then(|r| r.slot.as_mut())
                && slot.candidate == attempt.candidate
            {
                slot.tcp_at = None;
            }
            if *retry == Retry::Here && !after.is_zero() && self.attempts.is_empty() && self.live.is_none() {
                self.abort_round();
                self.pause(now, *after);
                return;
            }
        }
        let rival = self.attempts.values().any(|a| a.candidate == attempt.candidate);
        // By the web it fails where its edge is an old one, or a proxy on the way is.
        if !rival && !attempt.transport.is_web() {
            self.demote(now, &attempt.candidate, failure);
        }
        self.progress(now);
    }

    fn lost(&mut self, now: Duration, failure: &Failure) {
        let Some(live) = self.live.take() else { return };
        self.leave_at = None;
        match failure {
            Failure::Refused { retry: Retry::NewToken, .. } => self.has_token = false,
            Failure::Renew => {}
            _ => self.demote(now, &live.candidate, failure),
        }
        let settled = now.saturating_sub(live.since) >= SETTLED;
        if settled {
            self.rounds_failed = 0;
        }
        if !self.running || self.round.is_some() || self.retry_at.is_some() {
            return;
        }
        let after = if let Failure::Refused { after, .. } = failure { *after } else { Duration::ZERO };
        if settled && after.is_zero() {
            self.begin_round(now);
        } else {
            self.pause(now, after);
        }
    }

    /// Leave the live connection for another, which is made first. `Failure::Renew` prefers the same edge.
    pub fn leave(&mut self, now: Duration, failure: &Failure) {
        let Some(live) = &mut self.live else { return };
        if matches!(failure, Failure::Silent | Failure::Stuck) {
            live.suspect_since.get_or_insert(now);
            live.may_recover = *failure == Failure::Silent;
        }
        if self.round.is_some() || self.retry_at.is_some() {
            return;
        }
        let candidate = live.candidate.clone();
        if *failure != Failure::Renew {
            self.demote(now, &candidate, failure);
        }
        self.begin_round(now);
    }

    /// The live connection that was left for its silence is heard again: stay.
    pub fn heard(&mut self) {
        let Some(live) = &mut self.live else { return };
        if live.may_recover && live.suspect_since.take().is_some() {
            self.demoted.remove(&(false, live.candidate.edge.clone()));
            self.retry_at = None;
            self.abort_round();
        }
    }

    /// The edge is going away: leave at a random moment of `window`.
    pub fn go_away(&mut self, now: Duration, window: Duration, alternates: &[String]) {
        let Some(live) = &self.live else { return };
        let candidate = live.candidate.clone();
        self.demoted.insert((false, candidate.edge.clone()), now + window + DEMOTED_FOR);
        let known: Vec<_> = self.list.iter().chain(&self.fallback).map(|c| c.address.clone()).collect();
        for address in alternates.iter().filter(|a| !known.contains(a)).take(CANDIDATES - CANDIDATES / 2) {
            // Alternates are edges of the same operator: the name rule of the edge that names them holds.
            self.list.push(Candidate { edge: String::new(), address: address.clone(), ..candidate.clone() });
        }
        let wait = self.rng.random_range(Duration::ZERO..=window);
        self.leave_at = Some(now + wait);
    }

    fn demote(&mut self, now: Duration, candidate: &Candidate, failure: &Failure) {
        let of_region = match failure {
            Failure::Refused { code, .. } => {
                matches!(Code::from_u32(*code), Some(Code::CoreUnreachable | Code::StoreFull | Code::Damaged))
            }
            Failure::Stuck => true,
            _ => false,
        };
        let name = if of_region { &candidate.region } else { &candidate.edge };
        if !name.is_empty() {
            self.demoted.insert((of_region, name.clone()), now + DEMOTED_FOR);
        }
    }

    fn abort_round(&mut self) {
        self.round = None;
        for conn in std::mem::take(&mut self.attempts).into_keys() {
            self.out.push_back(EngineOut::Close(conn));
        }
    }

    fn jitter(&mut self, failures: u32) -> Duration {
        let bound = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
        self.rng.random_range(Duration::ZERO..=bound)
    }

    fn pause(&mut self, now: Duration, at_least: Duration) {
        let wait = self.jitter(self.rounds_failed).max(at_least.min(BACKOFF_MAX));
        self.rounds_failed = self.rounds_failed.saturating_add(1);
        self.retry_at = Some(now + wait);
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration) {
        if self.dispatching.running.is_some_and(|(_, until)| now >= until) {
            self.dispatch_failed(now);
        }
        let late: Vec<_> = self.attempts.iter().filter(|(_, a)| now >= a.deadline).map(|(c, _)| *c).collect();
        for conn in late {
            self.out.push_back(EngineOut::Close(conn));
            self.ended(now, conn, &Failure::TimedOut);
        }
        if !self.running {
            return;
        }
        if self.live.as_ref().and_then(|l| l.suspect_since).is_some_and(|t| now >= t + SUSPECT_KEEP) {
            if let Some(live) = &self.live {
                self.out.push_back(EngineOut::Close(live.conn));
            }
            self.lost(now, &Failure::Silent);
        }
        if self.leave_at.is_some_and(|t| now >= t) {
            self.leave_at = None;
            self.begin_round(now);
        }
        if self.hold_until.is_some_and(|t| now >= t) {
            self.hold_until = None;
            self.begin_round_unless_held(now, false);
        }
        if self.retry_at.is_some_and(|t| now >= t) {
            self.begin_round(now);
        }
        if self.live.is_some() && now >= self.list_until {
            self.ask_dispatch(now);
        }
        self.progress(now);
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Duration> {
        let round =
            self.round.as_ref().and_then(|r| r.slot.as_ref()).map(|s| {
                if self.in_turn() < ATTEMPTS { s.tcp_at.unwrap_or(s.next_at).min(s.next_at) } else { s.next_at }
            });
        let web = self.round.as_ref().and_then(|r| r.web.as_ref()).map(|(_, _, at)| *at);
        let refresh = self.live.as_ref().filter(|_| self.targets > 0 && self.dispatching.running.is_none());
        let refresh = refresh.map(|_| self.list_until.max(self.dispatching.not_before));
        let suspect = self.live.as_ref().and_then(|l| l.suspect_since).map(|t| t + SUSPECT_KEEP);
        let attempts = self.attempts.values().map(|a| a.deadline).min();
        let dispatch = self.dispatching.running.map(|(_, until)| until);
        [round, web, refresh, suspect, attempts, dispatch, self.leave_at, self.hold_until, self.retry_at]
            .into_iter()
            .flatten()
            .min()
    }
}
