//! Asking another edge while the one in use may only be slow to answer ([`super::super::pulse`]).
//!
//! *Rule.* A doubt is a race over all edges but the one in use, as short as the time until that counts as dead; then it
//! becomes a round over all of them, and what is under way stays so. Anything that comes from the edge in use ends it, and
//! nothing is held against anybody. Nobody is told: most doubts are over before a user would notice.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Engine;
use crate::client::limits::QUIET_FOR;

impl Engine {
    /// Not one packet has come from the edge in use for longer than an answer takes.
    pub fn doubt(&mut self, now: Duration) {
        let Some(live) = self.live.as_ref().filter(|live| live.suspect_since.is_none()) else { return };
        let calm = self.running && self.has_token && self.retry_at.is_none() && self.hold_until.is_none();
        if !calm || self.round.is_some() {
            return;
        }
        let (edge, address) = (live.candidate.edge.clone(), live.candidate.address.clone());
        let mut others = self.candidates(now);
        others.retain(|other| other.address != address && (other.edge.is_empty() || other.edge != edge));
        let mut legs = self.legs(now, &others);
        // Each in one way once: this is a question.
        let mut asked = BTreeSet::new();
        legs.retain(|leg| leg.at < now + QUIET_FOR && asked.insert((leg.candidate.address.clone(), leg.transport)));
        if legs.is_empty() {
            return;
        }
        self.journal.note(now, format_args!("nothing comes from {edge}: asking others"));
        self.race(now, legs, false);
        if let Some(round) = &mut self.round {
            round.doubts = true;
        }
    }

    /// Whether only the edge in use is in doubt.
    pub(super) fn is_doubting(&self) -> bool {
        self.round.as_ref().is_some_and(|round| round.doubts)
    }

    /// Something came from the edge in use.
    pub fn believe(&mut self, now: Duration) {
        if self.is_doubting() {
            self.journal.note(now, format_args!("the edge in use speaks again"));
            self.abort_round();
        }
    }

    /// The edge in use is given up: what was asked of others goes on, as a part of a round over all.
    pub(super) fn widen(&mut self, now: Duration) {
        let candidates = self.candidates(now);
        let mut legs = self.legs(now, &candidates);
        legs.retain(|leg| {
            !self
                .attempts
                .values()
                .any(|a| a.candidate.address == leg.candidate.address && a.transport == leg.transport)
        });
        if let Some(round) = &mut self.round {
            round.known.extend(legs.iter().map(|leg| leg.candidate.address.clone()));
            (round.legs, round.doubts) = (legs, false);
        }
        self.progress(now);
    }
}
