//! Where to connect, and when: candidates, attempts, back-off, moving on.
//!
//! *Problem.* A list of edges can be stale, an edge can be dead, a region can be gone, a network can swallow
//! UDP or accept TCP and stay silent; and whoever retries too eagerly brings down what is left.
//!
//! *Rule.* One round is a race of a few candidates and transports with different starts ([`rounds`]), in the order of
//! their rank, what failed lately last, and of what the network is known for ([`super::networks`]). Only an
//! authenticated Welcome counts as success. A round that failed is followed by a random pause below a bound
//! that doubles, and by asking dispatch for a new list with what failed. Whatever replaces a living
//! connection is made before that is broken; a worse transport is left for QUIC again ([`climbing`]).
//!
//! *Why the simpler ways fail.* "Connected" as success: a captive portal answers TCP and nothing else.
//! Resetting the back-off with each Welcome: two draining edges pass a client to and fro for ever. A pause
//! without jitter: all clients of a dead edge come back in the same millisecond.

mod climbing;
mod dispatching;
mod doubting;
mod gone;
mod rounds;
mod troubles;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::dispatching::Dispatching;
use self::gone::Gone;
use super::candidates::{Candidate, ConnNo, EngineOut, Failure, Transport};
use super::diagnostics::Journal;
use super::limits::{
    BACKOFF_MAX, BACKOFF_MIN, CANDIDATES, DEMOTED_FOR, OUTAGE, OUTAGE_BACKOFF_MAX, QUIC_LOST_AFTER, SETTLED,
    SOCKET_YOUNG, SPREAD_MAX, SUSPECT_KEEP,
};
use super::networks::Networks;
use super::trouble::Trouble;
use crate::codes::Code;
use crate::wire::v1::error::Retry;

#[derive(Debug)]
struct Attempt {
    candidate: Candidate,
    transport: Transport,
    deadline: Duration,
    started: Duration,
    race: (u64, u32),
    /// As the transport has measured it.
    rtt: Option<Duration>,
}

/// An attempt to come.
#[derive(Debug)]
struct Leg {
    at: Duration,
    candidate: Candidate,
    transport: Transport,
}

#[derive(Debug)]
struct Round {
    legs: VecDeque<Leg>,
    race: u64,
    attempts: u32,
    /// It tries QUIC beside another transport in use.
    climbs: bool,
    /// It asks others while the edge in use may only be slow.
    doubts: bool,
    /// QUIC was first tried then.
    quic_since: Option<Duration>,
    /// Addresses of its candidates.
    known: BTreeSet<String>,
    /// Attempts that failed since dispatch was asked.
    failures: u32,
    /// Where nothing listens.
    gone: Gone,
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
    /// It has said something since its Welcome.
    spoke: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Engine {
    fallback: Vec<Candidate>,
    targets: usize,
    list: Vec<Candidate>,
    list_until: Duration,
    dispatching: Dispatching,
    /// Round trips to edges in this network.
    measured: BTreeMap<String, Duration>,
    demoted: BTreeMap<(bool, String), Duration>,
    round: Option<Round>,
    rounds_failed: u32,
    /// Connections in a row that were over before they had settled.
    brief: u32,
    /// WebSockets in a row that were cut when they were young.
    sockets_cut: u32,
    /// Tokens in a row that were refused.
    tokens_refused: u32,
    /// What failed in this round and says most, and why there is no connection.
    worst: Option<(String, Transport, Failure)>,
    trouble: Option<Trouble>,
    /// Since when nobody has answered at all.
    silent_since: Option<Duration>,
    foreground: bool,
    /// Data costs money, and nobody waits.
    saving: bool,
    /// Within so long after a loss the last edge wants its clients to come back, one after the other.
    spread: Duration,
    /// The address of the edge that was in use last.
    last_address: String,
    /// Something waits to be acked while the user looks.
    waited_for: bool,
    /// When it would be tried again, if what made the pause longer were not.
    sooner: Option<Duration>,
    /// QUIC fell silent: it may be UDP that is lost from now on.
    quic_silent: bool,
    retry_at: Option<Duration>,
    hold_until: Option<Duration>,
    attempts: BTreeMap<ConnNo, Attempt>,
    live: Option<Live>,
    leave_at: Option<Duration>,
    climb_at: Option<Duration>,
    /// The connection in use came about because the one before was doubted.
    pub(super) by_doubt: bool,
    pub(super) networks: Networks,
    pub(super) journal: Journal,
    /// Calendar clock at a moment of this one.
    wall: (u64, Duration),
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
            measured: BTreeMap::new(),
            demoted: BTreeMap::new(),
            round: None,
            rounds_failed: 0,
            brief: 0,
            sockets_cut: 0,
            tokens_refused: 0,
            worst: None,
            trouble: None,
            silent_since: None,
            foreground: true,
            saving: false,
            spread: Duration::ZERO,
            last_address: String::new(),
            waited_for: false,
            sooner: None,
            quic_silent: false,
            retry_at: None,
            hold_until: None,
            attempts: BTreeMap::new(),
            live: None,
            leave_at: None,
            climb_at: None,
            by_doubt: false,
            networks: Networks::default(),
            journal: Journal::default(),
            wall: (0, Duration::ZERO),
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

    /// The calendar clock.
    pub fn set_wall(&mut self, now: Duration, wall_ms: u64) {
        self.wall = (wall_ms, now);
    }

    pub(super) fn wall_ms(&self, now: Duration) -> u64 {
        let passed = u64::try_from(now.saturating_sub(self.wall.1).as_millis()).unwrap_or(u64::MAX);
        self.wall.0.saturating_add(passed)
    }

    /// Whether the user looks at the application: who waits is served sooner.
    pub fn set_foreground(&mut self, foreground: bool) {
        self.foreground = foreground;
    }

    /// Whether data is to be saved: fewer attempts beside each other, and fewer for a better transport.
    pub fn set_saving(&mut self, saving: bool) {
        self.saving = saving;
    }

    /// What the edge in use says of a loss of many connections at once.
    pub fn set_spread(&mut self, spread: Duration) {
        self.spread = spread.min(SPREAD_MAX);
    }

    /// Begins to connect, or connects now instead of later: at the start, after a change of the network, and
    /// when the application asks for it. Ends every back-off.
    pub fn connect(&mut self, now: Duration) {
        self.running = true;
        self.rounds_failed = 0;
        (self.brief, self.sockets_cut) = (0, 0);
        self.silent_since = None;
        self.retry_at = None;
        self.dispatching.not_before = now;
        self.measured.clear();
        self.demoted.clear();
        if self.live.is_none() {
            self.abort_round();
            self.begin_round(now);
        } else if self.climb_at.is_some() {
            self.climb_at = Some(now);
        }
    }

    /// Closes everything and stays so until [`Self::connect`].
    pub fn stop(&mut self) {
        self.running = false;
        self.retry_at = None;
        self.hold_until = None;
        self.leave_at = None;
        self.climb_at = None;
        self.trouble = None;
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

    /// The attempt `conn` was welcomed; its predecessor and its rivals are closed. False: it is no attempt.
    pub fn welcomed(&mut self, now: Duration, conn: ConnNo) -> bool {
        let Some(attempt) = self.attempts.remove(&conn) else { return false };
        self.by_doubt = self.is_doubting();
        if let Some(old) = self.live.take() {
            self.out.push_back(EngineOut::Close(old.conn));
        }
        self.demoted.remove(&(false, attempt.candidate.edge.clone()));
        let quic_since = self.round.as_ref().and_then(|round| round.quic_since);
        let lost_quic = quic_since.is_some_and(|since| now >= since + QUIC_LOST_AFTER) && attempt.candidate.quic;
        let (wall_ms, edge, transport) = (self.wall_ms(now), attempt.candidate.edge.clone(), attempt.transport);
        self.networks.note(|network| network.welcomed(wall_ms, &edge, transport, lost_quic));
        self.silent_since = None;
        self.quic_silent = false;
        (self.trouble, self.worst, self.tokens_refused) = (None, None, 0);
        let age_ms = now.saturating_sub(attempt.started).as_millis();
        self.journal.note(now, format_args!("welcomed by {edge} over {} after {age_ms} ms", transport.name()));
        self.last_address.clone_from(&attempt.candidate.address);
        self.live = Some(Live {
            conn,
            candidate: attempt.candidate,
            transport: attempt.transport,
            race: attempt.race,
            since: now,
            suspect_since: None,
            may_recover: false,
            spoke: false,
        });
        self.leave_at = None;
        self.retry_at = None;
        self.abort_round();
        self.plan_climb(now);
        true
    }

    /// The transport of an attempt has measured a round trip.
    pub fn path_measured(&mut self, conn: ConnNo, rtt: Duration) {
        if let Some(attempt) = self.attempts.get_mut(&conn) {
            attempt.rtt = Some(rtt);
        }
    }

    /// The round trip that an attempt has shown, and whether it was measured: else it is a part of the attempt's age, which
    /// losses have made longer.
    pub fn attempt_rtt(&self, now: Duration, conn: ConnNo) -> Option<(Duration, bool)> {
        let attempt = self.attempts.get(&conn)?;
        let trips = match attempt.transport {
            Transport::Quic | Transport::Http3 => 2,
            Transport::Tcp | Transport::Poll => 3,
            Transport::WebSocket => 4,
        };
        let by_age = (now.saturating_sub(attempt.started) / trips, false);
        Some(attempt.rtt.map_or(by_age, |rtt| (rtt, true)))
    }

    /// An attempt or the live connection has ended.
    pub fn ended(&mut self, now: Duration, conn: ConnNo, failure: &Failure) {
        if let Some(attempt) = self.attempts.remove(&conn) {
            let (edge, transport) = (&attempt.candidate.address, attempt.transport.name());
            self.journal.note(now, format_args!("no connection to {edge} over {transport}: {failure}"));
            self.attempt_failed(now, &attempt, failure);
        } else if self.live.as_ref().is_some_and(|l| l.conn == conn) {
            self.lost(now, failure);
        }
    }

    fn attempt_failed(&mut self, now: Duration, attempt: &Attempt, failure: &Failure) {
        if self.round.as_ref().is_some_and(|round| round.climbs || round.doubts) {
            if self.is_doubting() {
                self.hurry(now);
            }
            self.progress(now);
            return;
        }
        self.failed(&attempt.candidate, attempt.transport, failure);
        if let Failure::Refused { retry, after, .. } = failure {
            // Somebody is there, and has said something.
            self.silent_since = None;
            if *retry == Retry::NewToken {
                self.token_refused(now, &attempt.candidate, failure);
                return;
            }
            // It has answered by one transport: the other would hear the same.
            if let Some(round) = &mut self.round {
                round.legs.retain(|leg| leg.candidate != attempt.candidate);
            }
            if *retry == Retry::Here && !after.is_zero() && self.attempts.is_empty() && self.live.is_none() {
                self.abort_round();
                self.trouble_of_round();
                self.pause(now, *after);
                return;
            }
        }
        let rival = self.attempts.values().any(|a| a.candidate == attempt.candidate);
        let misunderstood = self.ask_as_the_web(now, attempt, failure);
        // By the web it fails where its edge is an old one, or a proxy on the way is.
        if !rival && !attempt.transport.is_web() && !misunderstood {
            self.demote(now, &attempt.candidate, failure);
        }
        if let Failure::NothingThere(_) = failure {
            self.nothing_there(now, &attempt.candidate.address);
        }
        self.doubt_list(now);
        self.hurry(now);
        self.progress(now);
    }

    fn lost(&mut self, now: Duration, failure: &Failure) {
        let Some(live) = self.live.take() else { return };
        self.journal.note(now, format_args!("lost the connection to {}: {failure}", live.candidate.edge));
        (self.leave_at, self.climb_at) = (None, None);
        self.silent_since.get_or_insert(now);
        match failure {
            Failure::Refused { retry: Retry::NewToken, .. } => self.has_token = false,
            Failure::Renew => {}
            _ => self.demote(now, &live.candidate, failure),
        }
        if live.transport == Transport::WebSocket {
            let cut = matches!(failure, Failure::Network(_)) && now < live.since + SOCKET_YOUNG;
            self.sockets_cut = if cut { self.sockets_cut.saturating_add(1) } else { 0 };
        }
        let settled = self.settle(now, &live, failure);
        if self.is_doubting() && settled && self.running && self.has_token {
            self.widen(now);
            return;
        }
        if !matches!(failure, Failure::Silent | Failure::Stuck) && self.round.is_some() {
            // Something was heard, if only that the connection is gone: what was begun in the dark is older than that.
            self.abort_round();
            self.rounds_failed = 0;
            self.retry_at = None;
        }
        if !self.running || self.round.is_some() || self.retry_at.is_some() {
            return;
        }
        let after = match failure {
            Failure::Refused { after, .. } => *after,
            // It was ended, not forgotten: others are likely to come back at this moment, too.
            Failure::Network(_) | Failure::Protocol(_) => self.rng.random_range(Duration::ZERO..=self.spread),
            _ => Duration::ZERO,
        };
        if !settled {
            self.trouble_of_round();
            let after = after.max(self.pause_of_brief());
            self.pause(now, after);
        } else if after.is_zero() {
            self.begin_round(now);
        } else {
            self.retry_at = Some(now + after.min(BACKOFF_MAX));
            self.sooner = None;
        }
    }

    /// Leave the live connection for another, which is made first. `Failure::Renew` prefers the same edge.
    pub fn leave(&mut self, now: Duration, failure: &Failure) {
        let Some(live) = &mut self.live else { return };
        self.journal.note(now, format_args!("leaving {}: {failure}", live.candidate.edge));
        self.silent_since.get_or_insert(now);
        if matches!(failure, Failure::Silent | Failure::Stuck) {
            live.suspect_since.get_or_insert(now);
            live.may_recover = *failure == Failure::Silent;
            self.quic_silent = live.may_recover && live.transport == Transport::Quic;
        }
        let under_way = self.round.as_ref().is_some_and(|round| !round.climbs && !round.doubts);
        if under_way || self.retry_at.is_some() {
            return;
        }
        let (candidate, transport) = (live.candidate.clone(), live.transport);
        let settled = now.saturating_sub(live.since) >= SETTLED;
        // A silence after it spoke may be the network's; a Welcome and nothing more is not.
        let in_vain = if live.suspect_since.is_some() { !live.spoke } else { !settled && *failure != Failure::Renew };
        if *failure != Failure::Renew {
            self.demote(now, &candidate, failure);
        }
        if settled {
            (self.brief, self.rounds_failed) = (0, 0);
        }
        self.brief = self.brief.saturating_add(u32::from(in_vain));
        let pause = self.pause_of_brief();
        if pause.is_zero() {
            self.begin_round(now);
        } else {
            self.failed(&candidate, transport, failure);
            self.trouble_of_round();
            if self.is_doubting() {
                self.abort_round();
            }
            self.pause(now, pause);
        }
    }

    /// Something came over the connection in use after its Welcome.
    pub fn spoke(&mut self, now: Duration) {
        if let Some(live) = &mut self.live {
            live.spoke = true;
        }
        self.believe(now);
    }

    /// The live connection that was left for its silence is heard again: stay.
    pub fn heard(&mut self, now: Duration) {
        let Some(live) = &mut self.live else { return };
        if live.may_recover && live.suspect_since.take().is_some() {
            self.demoted.remove(&(false, live.candidate.edge.clone()));
            self.silent_since = None;
            self.rounds_failed = 0;
            self.journal.note(now, format_args!("{} speaks again", live.candidate.edge));
            self.retry_at = None;
            self.abort_round();
        }
    }

    /// The edge is going away: leave at a random moment of `window`.
    pub fn go_away(&mut self, now: Duration, window: Duration, alternates: &[String]) {
        let Some(live) = &self.live else { return };
        let candidate = live.candidate.clone();
        self.journal
            .note(now, format_args!("{} sends its clients away within {} ms", candidate.edge, window.as_millis()));
        self.demoted.insert((false, candidate.edge.clone()), now + window + DEMOTED_FOR);
        let known: Vec<_> = self.list.iter().chain(&self.fallback).map(|c| c.address.clone()).collect();
        for address in alternates.iter().filter(|a| !known.contains(a)).take(CANDIDATES - CANDIDATES / 2) {
            // Alternates are edges of the same operator: the name rule of the edge that names them holds.
            self.list.push(Candidate { edge: String::new(), address: address.clone(), ..candidate.clone() });
        }
        // Alternates are addresses, and their certificates may have other names: a fresh list has both.
        self.list_until = self.list_until.min(now);
        self.ask_dispatch(now);
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

    fn jitter(&mut self, failures: u32, most: Duration) -> Duration {
        let bound = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(most);
        self.rng.random_range(Duration::ZERO..=bound)
    }

    fn pause(&mut self, now: Duration, at_least: Duration) {
        let nobody = self.silent_since.is_some_and(|since| now < since + OUTAGE);
        let most = if nobody && self.foreground { OUTAGE_BACKOFF_MAX } else { BACKOFF_MAX };
        let wait = self.jitter(self.rounds_failed, most).max(at_least.min(BACKOFF_MAX));
        self.rounds_failed = self.rounds_failed.saturating_add(1);
        self.retry_at = Some(now + wait);
        self.sooner = None;
        self.journal.note(now, format_args!("pausing for {} ms", wait.as_millis()));
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration) {
        self.look_after_dispatch(now);
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
            let settled = self.live.as_ref().is_some_and(|live| now >= live.since + SETTLED);
            if settled || self.rounds_failed == 0 {
                self.rounds_failed = u32::from(!settled);
                self.begin_round(now);
            } else {
                // Sent on as soon as it came: two that send each other their clients must not wear anybody out.
                self.pause(now, Duration::ZERO);
            }
        }
        if self.gone_at().is_some_and(|t| now >= t) {
            self.wait_out(now);
        }
        if self.hold_until.is_some_and(|t| now >= t) {
            self.hold_until = None;
            self.begin_round_unless_held(now, false);
        }
        if self.retry_at.take_if(|t| now >= *t).is_some() {
            self.begin_round(now);
        }
        if self.live.is_some() && self.foreground && now >= self.list_until {
            self.ask_dispatch(now);
        }
        self.climb(now);
        self.progress(now);
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Duration> {
        let round = self.next_leg();
        let refresh =
            self.live.as_ref().filter(|_| self.foreground && self.targets > 0 && self.dispatching.until().is_none());
        let refresh = refresh.map(|_| self.list_until.max(self.dispatching.not_before));
        let suspect = self.live.as_ref().and_then(|l| l.suspect_since).map(|t| t + SUSPECT_KEEP);
        let attempts = self.attempts.values().map(|a| a.deadline).min();
        let dispatch = self.dispatching.deadline();
        let climb = self.climb_at.filter(|_| self.live.is_some());
        let gone = self.gone_at();
        [round, refresh, suspect, attempts, dispatch, climb, gone, self.leave_at, self.hold_until, self.retry_at]
            .into_iter()
            .flatten()
            .min()
    }
}
