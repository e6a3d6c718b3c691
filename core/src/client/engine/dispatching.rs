//! When to ask dispatch, and whom: one address after the other, with a pause when all have failed, and with more
//! patience each time: on a slow network a TLS handshake alone takes seconds.

use std::time::Duration;

use super::{Candidate, Engine, EngineOut};
use crate::client::limits::{BACKOFF_MAX, CANDIDATES, DISPATCH_TIMEOUT, EXCLUDES, TIMEOUT_DOUBLINGS};

#[derive(Debug, Default)]
pub(super) struct Dispatching {
    pub(super) running: Option<(usize, Duration)>,
    pub(super) next: usize,
    pub(super) tried: usize,
    pub(super) failures: u32,
    pub(super) not_before: Duration,
    pub(super) answered: bool,
}

impl Engine {
    /// A dispatch answer; `valid_for` from now. An empty one counts as none.
    pub fn dispatched(&mut self, now: Duration, candidates: Vec<Candidate>, valid_for: Duration) {
        if candidates.is_empty() {
            self.dispatch_failed(now);
            return;
        }
        self.dispatching = Dispatching { next: self.dispatching.next, answered: true, ..Dispatching::default() };
        self.list = candidates;
        self.list.truncate(CANDIDATES);
        self.list_until = now + valid_for;
        if self.hold_until.take().is_some() {
            self.begin_round(now);
        }
    }

    /// The list of an earlier run; `valid_for` may be zero.
    pub fn cached(&mut self, now: Duration, candidates: Vec<Candidate>, valid_for: Duration) {
        self.list = candidates;
        self.list_until = now + valid_for;
    }

    /// The dispatch request failed: ask the next address, or pause when all were asked.
    pub fn dispatch_failed(&mut self, now: Duration) {
        let d = &mut self.dispatching;
        d.running = None;
        d.tried += 1;
        if d.tried < self.targets {
            self.ask_dispatch(now);
            return;
        }
        d.tried = 0;
        d.failures += 1;
        let failures = d.failures;
        self.dispatching.not_before = now + self.jitter(failures, BACKOFF_MAX);
        if self.hold_until.take().is_some() {
            self.begin_round(now);
        }
    }

    /// Asks the next dispatch address, unless one is being asked or it is too early.
    pub(super) fn ask_dispatch(&mut self, now: Duration) {
        if self.targets == 0 || self.dispatching.running.is_some() || now < self.dispatching.not_before {
            return;
        }
        let target = self.dispatching.next % self.targets;
        self.dispatching.next = (target + 1) % self.targets;
        let timeout = DISPATCH_TIMEOUT * (1 << self.dispatching.failures.min(TIMEOUT_DOUBLINGS));
        // Whoever asks gives up after this time and says so. Without a word the next one is asked a little later: if both
        // happened at once, the second failure would be taken for one of the next request.
        self.dispatching.running = Some((target, now + timeout + timeout / 4));
        let exclude =
            self.demoted.keys().filter(|(region, _)| !region).map(|(_, name)| name.clone()).take(EXCLUDES).collect();
        self.out.push_back(EngineOut::Dispatch { target, exclude, timeout });
    }
}
