//! Back to QUIC, while another transport is in use.
//!
//! The transport in use is kept until QUIC is welcomed at the same edge; nothing is held against the edge if it is not.

use std::collections::VecDeque;
use std::time::Duration;

use rand::Rng;

use super::{Engine, Leg, Transport};

impl Engine {
    /// A connection has come about: whether and when to try something better.
    pub(super) fn plan_climb(&mut self, now: Duration) {
        let may = self.live.as_ref().is_some_and(|l| l.transport != Transport::Quic && l.candidate.quic);
        let pause = self.networks.here().quic_again();
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
                let leg = Leg { at: now, candidate: live.candidate.clone(), transport: Transport::Quic };
                self.race(now, VecDeque::from([leg]), true);
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
