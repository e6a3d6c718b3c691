//! When to ask dispatch, and whom: several addresses one shortly after the other, with a pause when all have failed, and
//! with more patience each time: on a slow network a TLS handshake alone takes seconds.
//!
//! A question says what failed, which round trips were measured to which edges, and what kind of network it comes from,
//! so that the next list is better than the last.

use std::time::Duration;

use super::{Candidate, Engine, EngineOut};
use crate::client::candidates::Asking;
use crate::client::limits::{
    BACKOFF_MAX, CANDIDATES, DISPATCH_NEXT, DISPATCH_TIMEOUT, DISPATCHES, EXCLUDES, TIMEOUT_DOUBLINGS, WORDS_BYTES,
};
use crate::client::trouble::cut;

#[derive(Debug, Default)]
pub(super) struct Dispatching {
    /// When those are given up that are being asked.
    waiting: Vec<Duration>,
    /// When the next one is asked beside them.
    next_at: Option<Duration>,
    next: usize,
    /// Asked since the last answer or pause.
    tried: usize,
    failures: u32,
    pub(super) not_before: Duration,
    pub(super) answered: bool,
    /// What the last one said that gave no list.
    pub(super) words: String,
    /// When it was last asked.
    pub(super) asked_at: Duration,
}

impl Dispatching {
    /// Until when an answer may come; `None`: nobody is being asked.
    pub(super) fn until(&self) -> Option<Duration> {
        self.waiting.iter().max().copied()
    }

    /// When [`Engine::look_after_dispatch`] has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.waiting.iter().min().copied().into_iter().chain(self.next_at).min()
    }
}

impl Engine {
    /// A dispatch answer; `valid_for` from now. An empty one counts as none.
    pub fn dispatched(&mut self, now: Duration, candidates: Vec<Candidate>, valid_for: Duration) {
        if candidates.is_empty() {
            self.dispatch_said(now, "dispatch names no edge");
            self.dispatch_failed(now);
            return;
        }
        let Dispatching { next, asked_at, .. } = self.dispatching;
        self.dispatching = Dispatching { next, asked_at, answered: true, ..Dispatching::default() };
        self.list = candidates;
        self.list.truncate(CANDIDATES);
        self.list_until = now + valid_for;
        if self.hold_until.take().is_some() {
            self.begin_round(now);
        } else {
            self.join_round(now);
        }
    }

    /// The list of an earlier run; `valid_for` may be zero.
    pub fn cached(&mut self, now: Duration, candidates: Vec<Candidate>, valid_for: Duration) {
        self.list = candidates;
        self.list_until = now + valid_for;
    }

    /// Why a dispatch request gave no list.
    pub fn dispatch_said(&mut self, now: Duration, words: &str) {
        self.dispatching.words = cut(words, WORDS_BYTES).to_owned();
        self.journal.note(now, format_args!("no list: {words}"));
    }

    /// A dispatch request failed: ask the next address, or pause when all were asked.
    pub fn dispatch_failed(&mut self, now: Duration) {
        let d = &mut self.dispatching;
        let Some((first, _)) = d.waiting.iter().enumerate().min_by_key(|(_, until)| **until) else {
            // Another one has answered meanwhile.
            return;
        };
        d.waiting.remove(first);
        if d.tried < self.targets {
            self.ask_next(now);
            return;
        }
        if !self.dispatching.waiting.is_empty() {
            return;
        }
        self.dispatching.tried = 0;
        self.dispatching.failures += 1;
        self.dispatching.not_before = now + self.jitter(self.dispatching.failures, BACKOFF_MAX);
        if self.hold_until.take().is_some() {
            self.begin_round(now);
        }
    }

    /// Asks dispatch, unless that is under way or it is too early.
    pub(super) fn ask_dispatch(&mut self, now: Duration) {
        if self.targets > 0 && self.dispatching.waiting.is_empty() && now >= self.dispatching.not_before {
            self.ask_next(now);
        }
    }

    /// Gives up who is late, and asks the next beside who is slow.
    pub(super) fn look_after_dispatch(&mut self, now: Duration) {
        while self.dispatching.waiting.iter().any(|until| now >= *until) {
            self.dispatch_failed(now);
        }
        if self.dispatching.next_at.is_some_and(|at| now >= at) {
            self.ask_next(now);
        }
    }

    fn ask_next(&mut self, now: Duration) {
        let d = &mut self.dispatching;
        let target = d.next % self.targets;
        d.next = (target + 1) % self.targets;
        d.tried += 1;
        d.asked_at = now;
        let timeout = DISPATCH_TIMEOUT * (1 << d.failures.min(TIMEOUT_DOUBLINGS));
        // Whoever asks gives up after this time and says so. Without a word the next one is asked a little later: if both
        // happened at once, the second failure would be taken for one of the next request.
        d.waiting.push(now + timeout + timeout / 4);
        let more = d.tried < self.targets && d.waiting.len() < DISPATCHES;
        d.next_at = more.then_some(now + DISPATCH_NEXT);
        let failed = self.demoted.keys().filter(|(region, _)| !region).map(|(_, name)| name.clone());
        let measured = self.measured.iter().map(|(edge, rtt)| (edge.clone(), *rtt));
        self.out.push_back(EngineOut::Dispatch(Asking {
            target,
            exclude: failed.take(EXCLUDES).collect(),
            measured: measured.collect(),
            timeout,
        }));
    }

    /// A round trip to the edge in use was measured.
    pub(in crate::client) fn measured(&mut self, rtt: Duration) {
        self.networks.measured(rtt);
        let Some(edge) = self.live.as_ref().map(|live| &live.candidate.edge).filter(|edge| !edge.is_empty()) else {
            return;
        };
        if self.measured.len() < EXCLUDES || self.measured.contains_key(edge) {
            self.measured.insert(edge.clone(), rtt);
        }
    }
}
