//! Every edge gone at once: a region that was killed, while its machines still answer for it.
//!
//! *Problem.* Where a process is gone, the kernel says so: a connection is refused. A client that has noticed would ask again
//! each second, beside attempts by QUIC that are repeated by themselves; so when the process is back, all that have noticed
//! meanwhile are there within that second, while the others find out by and by, with their next beat.
//!
//! *Rule.* Where nothing listens at any edge that a round knows, the one that was in use last among them, a client asks
//! again after a random part of the window over which that edge wanted its clients to come back, not less than half of it:
//! the first half belongs to those who find out when the process is back, and draw from all of it. It is the same after
//! each round that ends so, never more than the window, and only while nothing waits to be acked in front of a user.
//!
//! *Why the simpler ways fail.* Waiting where one of the edges is gone: the others take its clients, who come to them one
//! after the other, as their beats are due. Waiting once: after an outage that is longer than the window all are there
//! again within a second. Believing a refusal alone: a gateway may refuse TCP where QUIC gets through.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::Rng;

use super::Engine;
use crate::client::limits::GONE_AFTER;

/// Edges of a round at which nothing listens.
#[derive(Debug, Default)]
pub(super) struct Gone {
    addresses: BTreeSet<String>,
    /// When the last of them was found out.
    since: Duration,
}

impl Engine {
    /// Whether something waits to be acked while the user looks at the application: then no pause is longer than it must be.
    pub fn set_waited_for(&mut self, now: Duration, waited_for: bool) {
        self.waited_for = waited_for;
        if waited_for && let (Some(at), Some(sooner)) = (self.retry_at, self.sooner.take()) {
            self.retry_at = Some(at.min(sooner.max(now)));
        }
    }

    /// Nothing listens at this address.
    pub(super) fn nothing_there(&mut self, now: Duration, address: &str) {
        if let Some(round) = &mut self.round
            && round.gone.addresses.insert(address.to_owned())
        {
            round.gone.since = now;
        }
    }

    /// When the round under way is given up because nothing listens anywhere.
    pub(super) fn gone_at(&self) -> Option<Duration> {
        let round = self.round.as_ref().filter(|round| !round.climbs)?;
        let gone = &round.gone.addresses;
        let all = gone.contains(&self.last_address) && round.known.is_subset(gone);
        (all && !self.waited_for && !self.spread.is_zero()).then(|| round.gone.since + GONE_AFTER)
    }

    /// Gives up the round, and begins the next one at a moment of the window.
    pub(super) fn wait_out(&mut self, now: Duration) {
        self.abort_round();
        self.trouble_of_round();
        self.pause(now, Duration::ZERO);
        let wait = self.rng.random_range(self.spread / 2..=self.spread);
        self.journal.note(now, format_args!("nothing listens anywhere: pausing for {} ms at least", wait.as_millis()));
        self.sooner = self.retry_at;
        self.retry_at = self.retry_at.map(|at| at.max(now + wait));
        self.ask_dispatch(now);
    }
}
