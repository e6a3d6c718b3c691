//! Edges that answer and are of no use: what they cost, and what is told of them.
//!
//! *Problem.* A Welcome is a success to the race, so an edge that says it and nothing else, or ends each connection as
//! soon as it is made, would be tried again at once, for ever. And one edge whose clock or keys are wrong refuses every
//! token; it answers first because it is the nearest, so the others would never be asked.
//!
//! *Rule.* Connections in a row that were over before they had settled make the pause longer, whatever the rounds between
//! them came to. A token that was new and is refused all the same counts against the edge that refuses it.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Attempt, Candidate, Engine, Leg, Live};
use crate::client::candidates::{Failure, Transport};
use crate::client::limits::{
    ASK_AFTER, ASK_AGAIN, BACKOFF_MAX, LISTED_FIRST, NEXT_AFTER, SETTLED, TCP_AFTER, TOKEN_PAUSE, TOKENS_AT_ONCE,
    WORDS_BYTES,
};
use crate::client::trouble::{Trouble, cut};

impl Engine {
    /// Why there is no connection, where that is known.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Whether the connection was there for long enough; counts those that were not.
    pub(super) fn settle(&mut self, now: Duration, live: &Live, failure: &Failure) -> bool {
        let settled = now.saturating_sub(live.since) >= SETTLED;
        if settled {
            (self.brief, self.rounds_failed) = (0, 0);
        } else if *failure != Failure::Renew {
            self.brief = self.brief.saturating_add(1);
            self.failed(&live.candidate, live.transport, failure);
        }
        settled
    }

    /// The pause that connections ask for which were over as soon as they were made. One is bad luck.
    pub(super) fn pause_of_brief(&mut self) -> Duration {
        if self.brief > 1 { self.jitter(self.brief, BACKOFF_MAX) } else { Duration::ZERO }
    }

    /// Remembers what says most of why there is no connection; of equals the first, which is the best edge's.
    pub(super) fn failed(&mut self, candidate: &Candidate, transport: Transport, failure: &Failure) {
        if self.worst.as_ref().is_none_or(|(_, _, worst)| failure.says() > worst.says()) {
            self.worst = Some((candidate.address.clone(), transport, failure.clone()));
        }
    }

    /// An attempt of a round failed: where several did, the list may be of no use as a whole, and a round over it takes long.
    pub(super) fn doubt_list(&mut self, now: Duration) {
        let Some(round) = &mut self.round else { return };
        round.failures += 1;
        if round.failures >= ASK_AFTER && now >= self.dispatching.asked_at + ASK_AGAIN {
            round.failures = 0;
            self.ask_dispatch(now);
        }
    }

    /// What answered does not know this protocol, so it may be something that speaks HTTP/3 for the edge: asked so at once.
    /// True: that is what has happened.
    pub(super) fn ask_as_the_web(&mut self, now: Duration, attempt: &Attempt, failure: &Failure) -> bool {
        if attempt.transport != Transport::Quic || !matches!(failure, Failure::Protocol(_)) {
            return false;
        }
        let asks = |candidate: &Candidate, transport: Transport| {
            (candidate, transport) == (&attempt.candidate, Transport::Http3)
        };
        let tried = self.attempts.values().any(|other| asks(&other.candidate, other.transport));
        if let Some(round) = self.round.as_mut().filter(|_| !tried) {
            round.legs.retain(|leg| !asks(&leg.candidate, leg.transport));
            let candidate = attempt.candidate.clone();
            round.legs.push_front(Leg { at: now, candidate, transport: Transport::Http3 });
        }
        true
    }

    /// Edges of a new list that the round under way does not know: they are tried now.
    pub(super) fn join_round(&mut self, now: Duration) {
        let Some(round) = self.round.as_mut().filter(|round| !round.climbs) else { return };
        let fresh: Vec<_> = self.list.iter().filter(|c| !round.known.contains(&c.address)).cloned().collect();
        round.known.extend(fresh.iter().map(|c| c.address.clone()));
        let mut legs = VecDeque::new();
        for (n, candidate) in (0u32..).zip(fresh.into_iter().take(LISTED_FIRST)) {
            for (transport, after) in [(Transport::Quic, Duration::ZERO), (Transport::Tcp, TCP_AFTER)] {
                if candidate.timeout(transport).is_some() {
                    let at = now + NEXT_AFTER * n + after;
                    legs.push_back(Leg { at, candidate: candidate.clone(), transport });
                }
            }
        }
        legs.append(&mut round.legs);
        legs.make_contiguous().sort_by_key(|leg| leg.at);
        round.legs = legs;
        self.progress(now);
    }

    /// What was remembered is why there is none.
    pub(super) fn trouble_of_round(&mut self) {
        if let Some((address, transport, failure)) = self.worst.take() {
            self.trouble = Some(Trouble::NoConnection { address, transport, failure });
        }
    }

    /// An edge refused the token.
    pub(super) fn token_refused(&mut self, now: Duration, candidate: &Candidate, failure: &Failure) {
        let Failure::Refused { code, message, .. } = failure else { return };
        self.trouble = Some(Trouble::TokenRefused { code: *code, message: message.clone() });
        self.tokens_refused = self.tokens_refused.saturating_add(1);
        if self.tokens_refused > 1 {
            self.demote(now, candidate, failure);
        }
        let more = self.tokens_refused.checked_sub(TOKENS_AT_ONCE + 1);
        let pause = more.map_or(Duration::ZERO, |n| TOKEN_PAUSE.saturating_mul(1 << n.min(6)));
        self.without_token(now, pause);
    }

    /// No token was to be had, for this reason: ask again, after a pause.
    pub fn token_failed(&mut self, now: Duration, message: &str) {
        self.journal.note(now, format_args!("no token: {message}"));
        self.trouble = Some(Trouble::NoToken { message: cut(message, WORDS_BYTES).to_owned() });
        self.without_token(now, Duration::ZERO);
    }

    fn without_token(&mut self, now: Duration, at_least: Duration) {
        self.has_token = false;
        self.token_asked = false;
        self.abort_round();
        self.pause(now, at_least);
    }
}
