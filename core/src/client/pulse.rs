//! Whether anything at all still comes from the other side, long before a connection counts as dead.
//!
//! *Problem.* An edge that was killed says nothing, and neither does a network that is away for a moment. Whoever waits a
//! second to tell them apart leaves the user waiting for a second; whoever goes elsewhere at once, as soon as an answer is
//! late, does so whenever a region is busy, and takes all its clients where it is busy, too.
//!
//! *Rule.* A transport that counts what comes in tells of more than answers: the other side's machine acknowledges what it
//! was sent even while the process behind it is busy. Where something was written and not one packet has come for three
//! round trips and a bit, or 150 ms, the connection is doubted: another edge is asked beside it, once, and whoever
//! speaks first stays. Where nothing had come for some seconds before, it takes 400 ms, for a radio that sleeps needs a
//! while to wake. The count is looked at twice, for a process that gets no processor has not taken in what lies in its
//! socket; and who was wrong waits twice as long on this connection, and four times on one that a doubt has brought
//! about: an edge that stalls now and then is not to send its clients to and fro. Where no answer is awaited, a Ping
//! goes out at the first look: else nothing would have to come that could end the doubt. Only in the foreground, where
//! data is not to be saved, and where round trips are short: on 2G the question itself is what answers would wait
//! behind.
//!
//! *Why the simpler ways fail.* Silence of the region as the sign: a database that stalls for half a second would have every
//! client of the region make a connection elsewhere. Silence alone: nothing has to come where nothing was written. Two round
//! trips: one lost packet is sent again after that.

use std::time::Duration;

use super::limits::{
    QUIET_AFTER, QUIET_AGAIN, QUIET_ASLEEP, QUIET_AWAKE, QUIET_PATIENCE, QUIET_ROUND_TRIP, QUIET_SLACK,
};

/// What a connection's transport has heard.
#[derive(Debug)]
pub(super) struct Pulse {
    heard: Option<Heard>,
    /// When that was looked at last.
    looked: Duration,
    /// Since when something written waits to be acknowledged, as far as is known.
    unheard: Option<Duration>,
    /// When something was written last.
    wrote: Duration,
    /// It was long quiet then, and is looked at once more.
    quiet_at: Option<Duration>,
    /// Nothing came since another edge was asked.
    doubted: bool,
    /// So many times as long it takes here.
    patience: u32,
    /// Others may be asked at all.
    pub(super) may_doubt: bool,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    packets: u64,
    /// The last of them came between these moments.
    after: Duration,
    by: Duration,
}

impl Pulse {
    /// Of a connection that was welcomed now.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            heard: None,
            looked: now,
            unheard: None,
            wrote: now,
            quiet_at: None,
            doubted: false,
            patience: 1,
            may_doubt: false,
        }
    }

    /// The connection came about because another one was doubted.
    pub(super) fn be_patient(&mut self) {
        self.patience = QUIET_PATIENCE;
    }

    /// Something was given to the transport that the other side has to acknowledge.
    pub(super) fn wrote(&mut self, now: Duration) {
        self.unheard.get_or_insert(now);
        self.wrote = now;
    }

    /// What was asked then is answered: somebody was there after all that was written until then.
    pub(super) fn answered(&mut self, asked: Duration) {
        if self.unheard.take_if(|since| *since <= asked).is_some() && self.wrote > asked {
            self.unheard = Some(self.wrote);
        }
    }

    /// The transport has taken in so many packets until now, and measures such a round trip. Whether that ends a doubt.
    pub(super) fn felt(&mut self, now: Duration, packets: u64, round_trip: Duration) -> bool {
        let after = std::mem::replace(&mut self.looked, now);
        if self.heard.is_some_and(|heard| heard.packets == packets) {
            return false;
        }
        self.heard = Some(Heard { packets, after, by: now });
        // Before that it may be what was on its way already. Not a whole round trip: an answer may be quicker than
        // usual, and where nothing else is to come, nothing would ever end the doubt.
        self.unheard.take_if(|since| now >= *since + round_trip / 2);
        self.quiet_at = None;
        let wrong = std::mem::take(&mut self.doubted);
        if wrong {
            self.patience = (self.patience * 2).min(QUIET_PATIENCE * 2);
        }
        wrong
    }

    /// When a connection is to be doubted, where answers have been awaited in silence since `awaited`. `None`: never, as far
    /// as is known.
    pub(super) fn doubt_at(&self, awaited: Option<Duration>, round_trip: Option<Duration>) -> Option<Duration> {
        let round_trip = round_trip.filter(|rtt| *rtt <= QUIET_ROUND_TRIP)?;
        let heard = self.heard.filter(|_| self.may_doubt && !self.doubted)?;
        let since = [awaited, self.unheard].into_iter().flatten().min()?;
        let awake = since <= heard.after + QUIET_AWAKE;
        let least = if awake { QUIET_AFTER } else { QUIET_ASLEEP };
        let quiet_at = since.max(heard.by) + least.max(round_trip * 3 + QUIET_SLACK) * self.patience;
        // Not before it was found to be so, and everybody else of this process has had a turn since.
        Some(self.quiet_at.map_or(quiet_at, |at| quiet_at.max(at + QUIET_AGAIN)))
    }

    /// It is time: whether another edge is to be asked, or this is looked at once more.
    pub(super) fn doubts(&mut self, now: Duration) -> bool {
        self.doubted = self.quiet_at.replace(now).is_some();
        self.doubted
    }
}
