//! Back to QUIC, while another transport is in use; from a WebSocket or polls to TCP+TLS, too.
//!
//! The transport in use is kept until a better one is welcomed at the same edge; nothing is held against the edge if none
//! is.

use std::collections::VecDeque;
use std::time::Duration;

use rand::Rng;

use super::{Engine, Leg, Transport};
use crate::client::limits::{QUIC_AFTER, SAVED_CLIMB};

impl Engine {
    /// A connection has come about: whether and when to try something better.
    pub(super) fn plan_climb(&mut self, now: Duration) {
        let may = self
            .live
            .as_ref()
            .is_some_and(|l| (l.transport != Transport::Quic && l.candidate.quic) || l.transport.is_web());
        let longer = if self.saving { SAVED_CLIMB } else { 1 };
        let pause = self.networks.here().quic_again() * longer;
        // Whole offices lose UDP, and get it back, at one moment.
        let jitter = self.rng.random_range(Duration::ZERO..=pause / 4);
        self.climb_at = may.then_some(now + pause + jitter);
    }

    /// Tries it, if it is time and nothing else is under way.
    pub(super) fn climb(&mut self, now: Duration) {
        if self.climb_at.is_none_or(|at| now < at) {
            return;
        }
        let calm = self.round.is_none() && self.retry_at.is_none();
        match self.live.as_ref().filter(|live| calm && live.suspect_since.is_none()) {
            Some(live) => {
                self.climb_at = None;
                let better = [(Transport::Quic, Duration::ZERO), (Transport::Tcp, QUIC_AFTER)];
                let better = better.into_iter().filter(|(transport, _)| *transport < live.transport);
                let leg = |(transport, after)| Leg { at: now + after, candidate: live.candidate.clone(), transport };
                let legs: VecDeque<Leg> =
                    better.map(leg).filter(|leg| leg.candidate.timeout(leg.transport).is_some()).collect();
                self.race(now, legs, true);
            }
            None => self.plan_climb(now),
        }
    }

    pub(super) fn climb_failed(&mut self, now: Duration) {
        let wall_ms = self.wall_ms(now);
        self.networks.note(|network| network.quic_lost_again(wall_ms));
        self.plan_climb(now);
    }
}
