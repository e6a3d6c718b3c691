//! The outbox of one conversation: first in, first out, until a second region has it.
//!
//! *Problem.* A message must reach its conversation once, in the order it was written, through resends,
//! crashes of this process, refusals, and the loss of the very region that acked it.
//!
//! *Rule* (R3, R4, R14). The identity (install, n) is stored before the first transmission. Un-acked messages
//! are sent again at once on every new connection, under the same identity. An ack gives a place, a display
//! key and a receipt; the message stays until the place that holds its lowest key is stable. If a region
//! lacks it by then, it is offered there with key and receipt, so that it keeps its place. A refusal for good
//! stops what follows, visibly, until the application decides.
//!
//! *Why the simpler ways fail.* Dropping a message at its ack: the region dies before it has shipped it.
//! Counting any copy's stability: only the lowest key is displayed, and its region can still lose it.
//! Giving a refused identity's followers new ones at once: one of them may be durable under the old one
//! already, and would be shown twice. So a conflict lets everything that was transmitted be answered first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::data::{MessageId, MessageState, Outgoing};
use super::limits::{OFFER_AGAIN, SEND_PAUSE, SEND_PAUSE_MAX};
use crate::ids::{Heads, InstallId, Origin, Place, Seq};
use crate::mutant;
use crate::mutants::{Mutant, on};
use crate::receipt::Receipt;

/// An own message and what is known of it in this run.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) out: Outgoing,
    /// The request that carries it.
    pub(super) in_flight: Option<u32>,
    /// Was handed to a connection under its present identity, or may have been in an earlier run.
    pub(super) transmitted: bool,
    /// Its identity belongs to another message.
    pub(super) conflicted: bool,
    /// When it was offered on this connection.
    pub(super) offered_at: Option<Duration>,
}

impl Own {
    pub(super) fn new(out: Outgoing, transmitted: bool) -> Self {
        Self { out, in_flight: None, transmitted, conflicted: false, offered_at: None }
    }

    /// Refused: nothing is sent of it before it is tried again.
    pub(super) fn is_failed(&self) -> bool {
        matches!(self.out.record.state, MessageState::Failed(_) | MessageState::Unknown(_))
    }

    /// Refused by a region that can't know whether another has it: what follows does not wait for it.
    fn is_unknown(&self) -> bool {
        matches!(self.out.record.state, MessageState::Unknown(_))
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Not acked, ascending = FIFO.
    pub(super) queue: BTreeMap<MessageId, Own>,
    /// Acked, not stable.
    pub(super) unstable: BTreeMap<MessageId, Own>,
    /// Acked messages that the connected region lacks.
    pub(super) offers: BTreeSet<MessageId>,
    pub(super) pause_until: Duration,
    pub(super) errors: u32,
    /// Refused for load: one message asks whether it is time, since a whole window would be refused as a whole.
    pub(super) probing: bool,
    /// The server has acked something of this conversation in this session: it knows the members.
    pub(super) known_in_session: bool,
}

/// What the ack of one message says.
#[derive(Clone, Debug)]
pub(super) struct AckOf {
    pub(super) place: Place,
    pub(super) first: Option<Place>,
    pub(super) receipt: Receipt,
    pub(super) refused: bool,
    /// Membership entries: of their stamp.
    pub(super) cut: Heads,
}

impl Outbox {
    /// The connection is gone: what was on the way is to be sent again. Offers stay: the next connection may
    /// be made for their sake, under another install id.
    pub(super) fn disconnected(&mut self) {
        for own in self.queue.values_mut().chain(self.unstable.values_mut()) {
            own.in_flight = None;
            own.offered_at = None;
        }
        mutant!(ResendWithNewIdentity => self.queue.values_mut().for_each(|own| own.out.record.n = 0));
        self.pause_until = Duration::ZERO;
        self.errors = 0;
        self.probing = false;
        self.known_in_session = false;
    }

    /// The lowest un-acked n of an install.
    pub(super) fn floor(&self, install: &InstallId) -> Option<u64> {
        // Numbers ascend with ids within an install.
        let open = |o: &&Own| !o.is_failed() && o.out.record.n > 0 && o.out.record.install == *install;
        self.queue.values().find(open).map(|o| o.out.record.n)
    }

    /// The next messages to transmit, in order: stops at what failed, at what belongs to another install, and
    /// before fresh messages while a conflict is being resolved.
    pub(super) fn sendable<'a>(
        &'a self,
        install: &'a InstallId,
        window: usize,
    ) -> impl Iterator<Item = MessageId> + 'a {
        let conflict = self.queue.values().any(|o| o.conflicted);
        self.queue
            .iter()
            .filter(|(_, o)| !o.is_unknown())
            .take_while(move |(_, o)| {
                !o.is_failed() && o.out.record.n > 0 && o.out.record.install == *install && (o.transmitted || !conflict)
            })
            .take(window)
            .filter(|(_, o)| o.in_flight.is_none() && !o.conflicted)
            .map(|(id, _)| *id)
    }

    /// Un-acked messages are waiting, other than behind one that failed.
    pub(super) fn is_waiting(&self) -> bool {
        self.queue.values().find(|o| !o.is_unknown()).is_some_and(|o| !o.is_failed())
    }

    /// Notes an ack. True if the message was un-acked before; `None` if it is not here.
    pub(super) fn acked(&mut self, id: MessageId, ack: &AckOf) -> Option<bool> {
        let was_queued = self.queue.remove(&id).map(|own| self.unstable.insert(id, own)).is_some();
        let own = self.unstable.get_mut(&id)?;
        own.in_flight = None;
        let record = &mut own.out.record;
        let key = ack.first.unwrap_or(ack.place);
        if ack.refused {
            // The proof of the old place is worthless: this place is the only one that counts.
            record.places.clear();
            record.acked = None;
        }
        record.state = MessageState::Sent;
        record.tried.clear();
        record.places.insert(ack.place.origin, (ack.place.seq, key));
        if record.acked.is_none_or(|(lowest, _)| key < lowest) {
            record.acked = Some((key, ack.receipt));
        }
        self.offers.remove(&id);
        self.errors = 0;
        self.probing = false;
        self.known_in_session = true;
        Some(was_queued)
    }

    /// A copy of an acked message was received: a further place to wait for. True if that is news.
    pub(super) fn copy_seen(&mut self, install: &InstallId, n: u64, place: Place, key: Place) -> Option<MessageId> {
        let (id, own) =
            self.unstable.iter_mut().find(|(_, o)| o.out.record.n == n && o.out.record.install == *install)?;
        let known = own.out.record.places.insert(place.origin, (place.seq, key));
        (known != Some((place.seq, key))).then_some(*id)
    }

    /// Finds an own message by its identity.
    pub(super) fn find(&self, install: &InstallId, n: u64) -> Option<MessageId> {
        let of = |(id, o): (&MessageId, &Own)| (o.out.record.n == n && o.out.record.install == *install).then_some(*id);
        self.queue.iter().chain(&self.unstable).find_map(of)
    }

    /// Everything of `origin` up to `upto` is stable: what may be released. Where `offer` is set, what is
    /// above is put on offer; the number of those is returned too.
    pub(super) fn stable(&mut self, now: Duration, origin: Origin, upto: Seq, offer: bool) -> (Vec<MessageId>, usize) {
        let mut released = Vec::new();
        let mut offered = 0;
        for (id, own) in &mut self.unstable {
            let record = &own.out.record;
            let Some((seq, key)) = record.places.get(&origin) else { continue };
            if *seq <= upto {
                if record.acked.is_none_or(|(lowest, _)| *key <= lowest) || on(Mutant::AnyPlaceReleases) {
                    released.push(*id);
                }
            } else if offer && own.in_flight.is_none() && own.offered_at.is_none_or(|t| now >= t + OFFER_AGAIN) {
                offered += usize::from(self.offers.insert(*id) && own.offered_at.is_none());
            }
        }
        (released, offered)
    }

    /// Offers everything that is acked and not stable: the region says that it lacks something.
    pub(super) fn offer_all(&mut self) {
        self.offers.extend(
            self.unstable.iter().filter(|(_, o)| o.in_flight.is_none() && o.offered_at.is_none()).map(|(id, _)| *id),
        );
    }

    /// A send was refused with advice to try again: the conversation waits.
    pub(super) fn pause(&mut self, now: Duration, at_least: Duration, growing: bool) {
        let grown = SEND_PAUSE.saturating_mul(1 << self.errors.min(6)).min(SEND_PAUSE_MAX);
        let wait = if growing || self.errors > 2 { grown.max(at_least) } else { at_least };
        if self.pause_until > now {
            // One cause refuses a whole window: it counts once.
            self.pause_until = self.pause_until.max(now + at_least);
            return;
        }
        self.errors = self.errors.saturating_add(1);
        self.pause_until = self.pause_until.max(now + wait);
    }

    /// Messages that may take a new identity now: everything un-acked of the old install, in order, once all
    /// that was transmitted has been answered. Empty while something is still open, or nothing conflicted.
    pub(super) fn to_identify_anew(&self) -> Vec<MessageId> {
        let Some(old) = self.queue.values().find(|o| o.conflicted).map(|o| &o.out.record.install) else {
            return Vec::new();
        };
        let mine = || self.queue.iter().filter(|(_, o)| o.out.record.install == *old && !o.is_failed());
        if mine().any(|(_, o)| o.transmitted && !o.conflicted) {
            return Vec::new();
        }
        mine().map(|(id, _)| *id).collect()
    }
}
