//! What a peer region lacks (R6, R15).
//!
//! Problem: every region must end up with every entry, through crashes of either side, hours without a link,
//! and regions that never come back; and a sender must be told when a second region holds his message.
//!
//! Rule: a position per (conversation, origin) that has todo for this peer: acked (the peer said it holds up
//! to there durably) and shipped (sent on this connection). A new connection knows nothing of shipped: the
//! conversation is offered, the peer answers with its heads, and shipping goes on from there. Own entries are
//! shipped at once. Copies of other regions' entries are offered after a pause, in case their author did not
//! get to ship them: survivors fill each other's holes.
//!
//! Why simpler ways fail: one position per link skips a conversation whose commit overtook another's; a
//! position of the sender alone ships an hour again after each restart, or skips what a restored peer lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::ids::{ConvId, Heads, Origin, Seq};
use crate::limits::LINK_WINDOW_BYTES;
use crate::slots::{Share, Slot};

use super::CoreId;

/// Copies are offered after so long: their author normally ships them long before.
pub const RELAY_AFTER: Duration = Duration::from_secs(2);
/// An offer that was not answered is made again.
pub const OFFER_AGAIN: Duration = Duration::from_secs(5);
/// A log that an offer did not name is offered after so long.
pub const OFFER_REST: Duration = Duration::from_millis(50);
/// A peer whose shipment failed here is told so after this long: the cause, such as a full disk, takes time.
pub const OWED_AFTER: Duration = Duration::from_secs(1);
/// Offers that may wait for an answer: bounds what a reconnect with a million active conversations sends.
pub const OFFERS_IN_FLIGHT: usize = 512;
/// Bytes on the way above which nothing more is shipped that only a comparison asked for: the rest of the window
/// is for what is live, which then waits behind this at most.
pub const REFILL_WINDOW_BYTES: usize = LINK_WINDOW_BYTES / 4;

/// Where one log stands with the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    acked: Seq,
    /// `None`: not known on this connection; an offer must be answered first.
    shipped: Option<Seq>,
    /// The entries of another region: offered after a pause rather than shipped at once.
    relayed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Link {
    connected: bool,
    heard: Option<Duration>,
    started: Duration,
    positions: BTreeMap<ConvId, BTreeMap<Origin, Position>>,
    /// Where it may lack what it has acked: a log without todo says nothing about it there.
    incomplete: BTreeSet<Share>,
    /// Conversations that may have something to ship.
    queue: BTreeSet<ConvId>,
    /// Those of them that are only being compared: they go after what is live, in a part of the window.
    bulk: BTreeSet<ConvId>,
    /// Conversations that are being compared.
    refilling: BTreeSet<ConvId>,
    /// Conversations to be offered, and when.
    offers: BTreeSet<(Duration, ConvId)>,
    offer_at: BTreeMap<ConvId, Duration>,
    offered: BTreeMap<ConvId, Duration>,
    window: BTreeMap<(ConvId, Origin), VecDeque<(Seq, usize)>>,
    window_bytes: usize,
    /// Logs being read for shipping.
    reading: BTreeSet<(ConvId, Origin)>,
    /// Shipments of the peer that could not be applied: when it is told to ship again, up to where it did, and by whom.
    owed: BTreeMap<(ConvId, Origin), (Duration, Seq, CoreId)>,
}

impl Link {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            connected: false,
            heard: None,
            started: now,
            positions: BTreeMap::new(),
            incomplete: BTreeSet::new(),
            queue: BTreeSet::new(),
            bulk: BTreeSet::new(),
            refilling: BTreeSet::new(),
            offers: BTreeSet::new(),
            offer_at: BTreeMap::new(),
            offered: BTreeMap::new(),
            window: BTreeMap::new(),
            window_bytes: 0,
            reading: BTreeSet::new(),
            owed: BTreeMap::new(),
        }
    }

    /// Whether the peer is there.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether the peer has acked all that it was to get. Conversations whose todo lingers count as done.
    pub fn is_caught_up(&self) -> bool {
        self.window.is_empty() && self.queue.is_empty() && self.bulk.is_empty() && self.reading.is_empty()
    }

    /// Conversations that have todo for this peer.
    pub fn backlog(&self) -> usize {
        self.positions.len()
    }

    /// Up to where the peer holds each log that has todo.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (ConvId, Origin, Seq)> + '_ {
        self.positions.iter().flat_map(|(id, logs)| logs.iter().map(|(origin, at)| (*id, *origin, at.acked)))
    }

    /// How long nothing was heard of the peer; since this node's start, if nothing ever was.
    pub fn silence(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard.unwrap_or(self.started))
    }

    pub(super) fn heard_at(&mut self, now: Duration) {
        self.heard = Some(now);
    }

    pub(super) fn up(&mut self, now: Duration) {
        self.down();
        self.connected = true;
        self.heard = Some(now);
        let ids: Vec<ConvId> = self.positions.keys().copied().collect();
        for id in ids {
            self.offer_by(id, now);
        }
    }

    /// Some of the conversations are another node's there since, or their node's link was away: what was on its way for
    /// them is lost, and they are offered anew. The reads of them that are under way ship nothing.
    pub(super) fn reset(&mut self, now: Duration, of: impl Fn(ConvId) -> bool) {
        let ids: Vec<ConvId> = self.positions.keys().copied().filter(|id| of(*id)).collect();
        for id in ids {
            for (origin, position) in self.positions.get_mut(&id).into_iter().flatten() {
                position.shipped = None;
                for (_, bytes) in self.window.remove(&(id, *origin)).unwrap_or_default() {
                    self.window_bytes -= bytes;
                }
            }
            self.queue.remove(&id);
            self.bulk.remove(&id);
            self.offered.remove(&id);
            if self.connected {
                self.offer_by(id, now);
            }
        }
        self.owed.retain(|(id, _), _| !of(*id));
    }

    pub(super) fn down(&mut self) {
        self.connected = false;
        self.window.clear();
        self.window_bytes = 0;
        self.queue.clear();
        self.bulk.clear();
        self.refilling.clear();
        self.offers.clear();
        self.offer_at.clear();
        self.offered.clear();
        self.owed.clear();
        for position in self.positions.values_mut().flat_map(BTreeMap::values_mut) {
            position.shipped = None;
        }
    }

    /// There is todo for this log above `prefix`. `reachable`: its owner there is linked.
    pub(super) fn note(
        &mut self,
        id: ConvId,
        origin: Origin,
        prefix: Seq,
        relayed: bool,
        reachable: bool,
        now: Duration,
    ) {
        let known = self.positions.get(&id).is_some_and(|p| p.contains_key(&origin));
        if known {
            if relayed {
                self.offer_by(id, now + RELAY_AFTER);
            }
            return;
        }
        // A log that turns active is in step with the peer up to its prefix as far as this side knows. While
        // connected the first shipment tells: the peer answers with its head if that was wrong.
        let shipped = (self.connected && reachable && !relayed).then_some(prefix);
        let position = Position { acked: prefix, shipped, relayed };
        self.positions.entry(id).or_default().insert(origin, position);
        if self.connected && relayed {
            self.offer_by(id, now + RELAY_AFTER);
        } else if self.connected && !reachable {
            self.offer_by(id, now + OFFER_AGAIN);
        }
    }

    /// What the store says is left to tell: where the peer stands is not known.
    pub(super) fn resume(&mut self, id: ConvId, origin: Origin, prefix: Seq, relayed: bool, now: Duration) {
        let fresh = Position { acked: prefix, shipped: None, relayed };
        self.positions.entry(id).or_default().entry(origin).or_insert(fresh);
        if self.connected {
            self.offer_by(id, now);
        }
    }

    /// What is held of a conversation is known now: an offer of it need not wait any longer.
    pub(super) fn loaded(&mut self, id: ConvId, now: Duration) {
        if self.offer_at.contains_key(&id) {
            self.offer_by(id, now);
        }
    }

    fn offer_by(&mut self, id: ConvId, at: Duration) {
        let at = self.offer_at.get(&id).map_or(at, |old| at.min(*old));
        if let Some(old) = self.offer_at.insert(id, at) {
            self.offers.remove(&(old, id));
        }
        self.offers.insert((at, id));
    }

    /// Conversations that are due to be offered now. Those of which `reachable` is not true are put off: they are offered
    /// when that changes ([`Self::reset`]), and take no place of others.
    pub(super) fn due_offers(&mut self, now: Duration, reachable: impl Fn(ConvId) -> bool) -> Vec<ConvId> {
        if !self.connected {
            return Vec::new();
        }
        let mut due = Vec::new();
        while self.offered.len() + due.len() < OFFERS_IN_FLIGHT
            && let Some((at, id)) = self.offers.first().copied()
            && at <= now
        {
            self.offers.remove(&(at, id));
            self.offer_at.remove(&id);
            if !self.positions.contains_key(&id) {
                continue;
            }
            if reachable(id) {
                due.push(id);
            } else {
                self.offer_by(id, now + OFFER_AGAIN);
            }
        }
        for id in &due {
            self.offered.insert(*id, now);
        }
        let late: Vec<ConvId> =
            self.offered.iter().filter(|(_, at)| **at + OFFER_AGAIN <= now).map(|(id, _)| *id).collect();
        for id in late {
            self.offered.remove(&id);
            self.offer_by(id, now);
        }
        due
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        if !self.connected {
            return None;
        }
        let due = if self.offered.len() < OFFERS_IN_FLIGHT { self.offers.first().map(|(at, _)| *at) } else { None };
        let again = self.offered.values().min().map(|at| *at + OFFER_AGAIN);
        let owed = self.owed.values().map(|(at, ..)| *at).min();
        [due, again, owed].into_iter().flatten().min()
    }

    /// An offer was answered. An ack of a shipment is no answer: it tells of one log only.
    /// A log that began while the offer was on the way is not in it: the conversation is offered once more.
    pub(super) fn answered(&mut self, id: ConvId, now: Duration) {
        self.offered.remove(&id);
        if self.positions.get(&id).is_some_and(|p| p.values().any(|p| p.shipped.is_none())) {
            self.offer_by(id, now + OFFER_REST);
        }
    }

    /// The peer holds these heads durably; `held` is what this side holds.
    pub(super) fn acked(&mut self, id: ConvId, theirs: &Heads, held: &Heads) {
        let Some(positions) = self.positions.get_mut(&id) else { return };
        for (origin, position) in positions.iter_mut() {
            let Some(head) = theirs.get(origin) else { continue };
            let head = (*head).min(held.get(origin).copied().unwrap_or(0));
            position.acked = position.acked.max(head);
            let shipped = position.shipped.unwrap_or(head);
            position.shipped = Some(shipped.max(head));
            if let Some(window) = self.window.get_mut(&(id, *origin)) {
                while window.front().is_some_and(|(upto, _)| *upto <= head) {
                    self.window_bytes -= window.pop_front().map_or(0, |(_, bytes)| bytes);
                }
                if window.is_empty() {
                    self.window.remove(&(id, *origin));
                }
            }
        }
        self.enqueue(id);
    }

    /// The peer lacks what was shipped above these heads: ship again from there.
    pub(super) fn rewind(&mut self, id: ConvId, theirs: &Heads) {
        let Some(positions) = self.positions.get_mut(&id) else { return };
        for (origin, position) in positions.iter_mut() {
            // An origin that the peer does not mention is one that it knows nothing of.
            let head = theirs.get(origin).copied().unwrap_or(0);
            position.shipped = Some(head);
            for (_, bytes) in self.window.remove(&(id, *origin)).unwrap_or_default() {
                self.window_bytes -= bytes;
            }
        }
        self.enqueue(id);
    }

    fn enqueue(&mut self, id: ConvId) {
        if self.refilling.contains(&id) {
            self.bulk.insert(id)
        } else {
            self.queue.insert(id)
        };
    }

    /// A conversation is offered now because its heads are being compared, whatever todo says.
    pub(super) fn refill(&mut self, id: ConvId, origins: impl Iterator<Item = Origin>, now: Duration) {
        let positions = self.positions.entry(id).or_default();
        for origin in origins {
            positions.entry(origin).or_insert(Position { acked: 0, shipped: None, relayed: true });
        }
        if let Some(at) = self.offer_at.remove(&id) {
            self.offers.remove(&(at, id));
        }
        self.offered.insert(id, now);
        self.refilling.insert(id);
    }

    /// The peer holds what it was offered.
    pub(super) fn refilled(&mut self, id: ConvId) {
        self.refilling.remove(&id);
        if self.bulk.remove(&id) {
            self.queue.insert(id);
        }
    }

    /// Whether it may lack what it has acked in these shares. Whether that is news.
    pub(super) fn set_incomplete(&mut self, shares: impl IntoIterator<Item = Share>, incomplete: bool) -> bool {
        let mut changed = false;
        for share in shares {
            changed |= if incomplete { self.incomplete.insert(share) } else { self.incomplete.remove(&share) };
        }
        changed
    }

    /// Whether the peer may lack what it has acked, somewhere, until it has been compared with this region.
    pub fn is_incomplete(&self) -> bool {
        !self.incomplete.is_empty()
    }

    /// Whether it may lack what it has acked of a conversation.
    pub fn is_incomplete_in(&self, id: ConvId) -> bool {
        !self.incomplete.is_empty() && self.incomplete.contains(&Slot::of(id).share())
    }

    /// Whether entries from `first` may go out now, straight from memory.
    pub(super) fn may_ship(&self, id: ConvId, origin: Origin, first: Seq) -> bool {
        self.connected
            && self.window_bytes < LINK_WINDOW_BYTES
            && !self.reading.contains(&(id, origin))
            && self
                .positions
                .get(&id)
                .and_then(|p| p.get(&origin))
                .is_some_and(|p| !p.relayed && p.shipped == Some(first - 1))
    }

    pub(super) fn shipped(&mut self, id: ConvId, origin: Origin, upto: Seq, bytes: usize) {
        if let Some(position) = self.positions.get_mut(&id).and_then(|p| p.get_mut(&origin)) {
            position.shipped = Some(upto);
            self.window.entry((id, origin)).or_default().push_back((upto, bytes));
            self.window_bytes += bytes;
        }
    }

    /// There may be something to ship.
    pub(super) fn wake(&mut self, id: ConvId) {
        if self.connected {
            self.enqueue(id);
        }
    }

    /// The next log to read for shipping: its first missing seq. The caller ends with `read`.
    pub(super) fn next_read(
        &mut self,
        published: impl Fn(ConvId) -> Option<Heads>,
    ) -> Option<(ConvId, Origin, Seq, Seq)> {
        if !self.connected || self.window_bytes >= LINK_WINDOW_BYTES {
            return None;
        }
        loop {
            let bulk = self.queue.is_empty();
            if bulk && self.window_bytes >= REFILL_WINDOW_BYTES {
                return None;
            }
            let id = self.queue.pop_first().or_else(|| self.bulk.pop_first())?;
            let Some(heads) = published(id) else { continue };
            let Some(positions) = self.positions.get(&id) else { continue };
            for (origin, position) in positions {
                let head = heads.get(origin).copied().unwrap_or(0);
                if let Some(shipped) = position.shipped
                    && shipped < head
                    && !self.reading.contains(&(id, *origin))
                {
                    let origin = *origin;
                    self.reading.insert((id, origin));
                    if bulk {
                        self.bulk.insert(id)
                    } else {
                        self.queue.insert(id)
                    };
                    return Some((id, origin, shipped + 1, head));
                }
            }
        }
    }

    pub(super) fn read(&mut self, id: ConvId, origin: Origin) -> Option<Seq> {
        self.reading.remove(&(id, origin));
        self.positions.get(&id).and_then(|p| p.get(&origin)).and_then(|p| p.shipped)
    }

    /// Reads under way.
    pub(super) fn reads(&self) -> usize {
        self.reading.len()
    }

    /// Reads that were under way will not be told of.
    pub(super) fn reads_dropped(&mut self) {
        self.reading.clear();
    }

    /// Up to where the peer holds a log; `None` where there is no todo: then it holds what this side does.
    pub fn acked_upto(&self, id: ConvId, origin: Origin) -> Option<Seq> {
        self.positions.get(&id).and_then(|p| p.get(&origin)).map(|p| p.acked)
    }

    /// Whether the peer has acked every log of a conversation up to `heads`.
    pub fn has_acked(&self, id: ConvId, heads: &Heads) -> bool {
        self.positions.get(&id).is_none_or(|p| p.iter().all(|(o, p)| p.acked >= heads.get(o).copied().unwrap_or(0)))
    }

    /// All is acked: the todo is removed.
    pub(super) fn forget(&mut self, id: ConvId) {
        self.positions.remove(&id);
        self.queue.remove(&id);
        self.bulk.remove(&id);
        self.offered.remove(&id);
        if let Some(at) = self.offer_at.remove(&id) {
            self.offers.remove(&(at, id));
        }
    }

    /// A shipment of the peer failed here: after a pause it is told where this side stands, and ships again.
    pub(super) fn owe_ack(&mut self, core: CoreId, id: ConvId, origin: Origin, upto: Seq, now: Duration) {
        self.owed.insert((id, origin), (now + OWED_AFTER, upto, core));
    }

    /// These conversations are another node's of this region, who will be offered what failed here.
    pub(super) fn disown(&mut self, of: impl Fn(ConvId) -> bool) {
        self.owed.retain(|(id, _), _| !of(*id));
    }

    pub(super) fn take_owed(&mut self, now: Duration) -> Vec<(CoreId, ConvId, Origin, Seq)> {
        let due = |at: &Duration| *at <= now;
        let taken = self
            .owed
            .iter()
            .filter(|(_, (at, ..))| due(at))
            .map(|((id, o), (_, upto, core))| (*core, *id, *o, *upto))
            .collect();
        self.owed.retain(|_, (at, ..)| !due(at));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: ConvId = ConvId([1; 16]);
    const EU: Origin = Origin { region: 1, era: 1 };
    const T: Duration = Duration::from_secs(100);

    fn heads(seq: Seq) -> Heads {
        [(EU, seq)].into()
    }

    fn next(link: &mut Link, head: Seq) -> Option<(Seq, Seq)> {
        link.next_read(|_| Some(heads(head))).map(|(_, _, from, to)| (from, to))
    }

    #[test]
    fn a_link_that_was_down_for_an_hour_resumes_where_the_peer_is() {
        let mut link = Link::new(T);
        link.up(T);
        link.note(C, EU, 0, false, true, T);
        assert!(link.may_ship(C, EU, 1));
        link.shipped(C, EU, 10, 1000);
        link.acked(C, &heads(10), &heads(10));
        assert!(link.has_acked(C, &heads(10)));
        link.shipped(C, EU, 12, 200); // on the way when the link goes down
        link.down();
        assert!(!link.may_ship(C, EU, 13));
        link.up(T + Duration::from_secs(3600));
        assert_eq!(next(&mut link, 500), None, "nothing is shipped before the peer has said where it is");
        assert_eq!(link.due_offers(T + Duration::from_secs(3600), |_| true), [C]);
        link.acked(C, &heads(12), &heads(500)); // 11 and 12 had arrived
        assert_eq!(next(&mut link, 500), Some((13, 500)));
    }

    #[test]
    fn a_peer_that_was_restored_from_a_backup_gets_again_what_it_lost() {
        let mut link = Link::new(T);
        link.note(C, EU, 5, false, true, T);
        link.up(T);
        assert_eq!(link.due_offers(T, |_| true), [C]);
        link.rewind(C, &heads(2));
        assert_eq!(next(&mut link, 9), Some((3, 9)));
    }

    #[test]
    fn copies_are_offered_after_a_pause_and_not_shipped_at_once() {
        let mut link = Link::new(T);
        link.up(T);
        link.note(C, EU, 0, true, true, T);
        assert!(!link.may_ship(C, EU, 1));
        assert!(link.due_offers(T, |_| true).is_empty());
        assert_eq!(link.next_deadline(), Some(T + RELAY_AFTER));
        assert_eq!(link.due_offers(T + RELAY_AFTER, |_| true), [C]);
        link.acked(C, &heads(3), &heads(3));
        assert!(link.has_acked(C, &heads(3)));
        assert_eq!(next(&mut link, 3), None);
    }

    #[test]
    fn an_offer_that_is_not_answered_is_made_again() {
        let mut link = Link::new(T);
        link.note(C, EU, 0, false, true, T);
        link.up(T);
        assert_eq!(link.due_offers(T, |_| true), [C]);
        assert!(link.due_offers(T + OFFER_AGAIN / 2, |_| true).is_empty());
        link.acked(C, &heads(1), &heads(1)); // an ack of a shipment that was on the way
        link.due_offers(T + OFFER_AGAIN, |_| true);
        assert_eq!(link.due_offers(T + OFFER_AGAIN, |_| true), [C]);
        link.answered(C, T);
        assert_eq!(link.next_deadline(), None);
    }

    #[test]
    fn a_log_that_began_while_an_offer_was_on_the_way_is_offered_as_well() {
        let later = Origin { region: 1, era: 2 };
        let mut link = Link::new(T);
        link.note(C, EU, 3, false, true, T);
        link.note(C, later, 0, false, true, T); // its first batch is not decided yet
        link.up(T);
        assert_eq!(link.due_offers(T, |_| true), [C]);
        link.acked(C, &heads(3), &heads(3));
        link.answered(C, T);
        assert_eq!(link.due_offers(T + OFFER_REST, |_| true), [C]);
    }

    #[test]
    fn the_window_stops_shipping_until_acks_come() {
        let mut link = Link::new(T);
        link.up(T);
        link.note(C, EU, 0, false, true, T);
        link.shipped(C, EU, 1, LINK_WINDOW_BYTES);
        assert!(!link.may_ship(C, EU, 2));
        link.wake(C);
        assert_eq!(next(&mut link, 2), None);
        link.acked(C, &heads(1), &heads(2));
        assert_eq!(next(&mut link, 2), Some((2, 2)));
    }
}
