//! What other regions say, and what they are told.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::codes::{Code, Refusal};
use crate::entry::Entry;
use crate::ids::{ConvId, Heads, Origin, Region, Seq};
use crate::limits::{CLOCK_ALARM_MS, CLOCK_STOP_MS, SHIP_BYTES, SHIP_ENTRIES};
use crate::mutated;
use crate::slots::{Share, Slot};
use crate::store::{Put, Range};
use crate::wire::node::{entries_from_wire, heads_from_wire, heads_to_wire, origin};
use crate::wire::node_v1::{self as wire, node_frame::Body};

use super::conversation::Job;
use super::refill::{Known, PeerHello};
use super::routes::Holder;
use super::ways::shares_from_wire;
use super::{Node, Notice, Now, Ticket};

/// Reads for shipping that may be under way per link.
const SHIP_READS: usize = 4;

impl Node {
    /// A link to a peer region of one core node is up: both sides have said LinkHello.
    pub fn peer_up(&mut self, now: Now, region: Region, hello: &PeerHello) {
        self.peer_core_up(now, Holder::only(region), None, hello);
    }

    /// A link to a core node of a peer region is up, likewise; it has a name where the region has several.
    pub fn peer_core_up(&mut self, now: Now, at: Holder, name: Option<&str>, hello: &PeerHello) {
        let region = at.region;
        if !self.links.contains_key(&region) {
            return;
        }
        let PeerHello { start, era, commit, .. } = *hello;
        if self.eras.get(&region).is_none_or(|(known, _)| start >= *known) {
            let same = self.eras.insert(region, (start, era)) == Some((start, era));
            let known = self.commits.entry(region).or_default();
            *known = if same { commit.max(*known) } else { commit };
        }
        let first = self.ways.up(at, name);
        if let Some(link) = self.links.get_mut(&region) {
            if first {
                link.up(now.mono);
            } else {
                link.heard_at(now.mono);
            }
            match name {
                None => link.set_incomplete(Share::all(), hello.incomplete),
                // Its beats tell of which it is not.
                Some(_) if first => link.set_incomplete(Share::all(), true),
                Some(_) => false,
            };
        }
        self.refill_up(now, at);
        self.note_peer(region);
        self.note_era(Origin { region, era }, start);
        self.presence_link(now, at, true);
        self.tell_eras(at);
        let theirs = self.ways.shares_of(at);
        if first {
            self.ship_all_marks(now, region, |_| true);
        } else {
            self.peer_moved(now, region, &theirs);
        }
        self.routes.up(now.mono, at);
        self.relay(now);
    }

    /// The link is gone.
    pub fn peer_down(&mut self, now: Now, region: Region) {
        self.peer_core_down(now, Holder::only(region));
    }

    /// The link to one of a region's core nodes is gone.
    pub fn peer_core_down(&mut self, now: Now, at: Holder) {
        let region = at.region;
        self.presence_link(now, at, false);
        self.routes.down(at);
        let theirs = self.ways.shares_of(at);
        if self.ways.down(at) {
            if let Some(link) = self.links.get_mut(&region) {
                link.down();
            }
            self.tickets.retain(|_, t| !matches!(t, Ticket::Ship { region: r, .. } if *r == region));
            if let Some(link) = self.links.get_mut(&region) {
                link.reads_dropped();
            }
            self.clocks.forget(region);
        } else {
            self.peer_moved(now, region, &theirs);
        }
        self.refill_down(at);
    }

    /// Shares of a peer region have another owner, or their owner's link was away: what was on its way is said again.
    fn peer_moved(&mut self, now: Now, region: Region, shares: &BTreeSet<Share>) {
        if shares.is_empty() {
            return;
        }
        if let Some(link) = self.links.get_mut(&region) {
            link.reset(now.mono, |id| shares.contains(&Slot::of(id).share()));
        }
        self.refill_moved(now, region);
        self.ship_all_marks(now, region, |share| shares.contains(&share));
        self.relay(now);
    }

    /// Keeps what is known of a peer.
    pub(super) fn note_peer(&mut self, region: Region) {
        let Some((start, era)) = self.eras.get(&region).copied() else { return };
        let commit = self.commits.get(&region).copied().unwrap_or(0);
        let incomplete = self.links.get(&region).is_some_and(super::Link::is_incomplete);
        let value = Known { start, era, commit, incomplete }.to_bytes();
        self.out.puts.push(Put::Meta { key: format!("peer/{region}"), value });
    }

    /// A frame of a peer region. Anything it says of a conversation is checked; what can't be is reported and
    /// left out.
    pub fn peer_frame(&mut self, now: Now, region: Region, body: Body) {
        self.peer_core_frame(now, Holder::only(region), body);
    }

    /// A frame of one of a region's core nodes, likewise.
    pub fn peer_core_frame(&mut self, now: Now, at: Holder, body: Body) {
        let region = at.region;
        let Some(link) = self.links.get_mut(&region) else { return };
        link.heard_at(now.mono);
        let told = match body {
            Body::Ship(ship) => {
                self.refill_heard(now, region);
                self.shipment(now, at, ship)
            }
            Body::ShipAck(ack) => self.ship_acked(now, region, ack),
            Body::Offer(offer) => self.offered(now, at, offer),
            Body::Beat(beat) => {
                self.beat(now, region, beat.wall_ms);
                self.incomplete_told(now, at, &beat);
                if self.commits.get(&region).is_some_and(|known| beat.commit > *known) {
                    self.commits.insert(region, beat.commit);
                    self.note_peer(region);
                }
                Ok(())
            }
            Body::Eras(eras) => self.eras_told(now, region, eras),
            Body::Compare(compare) => self.compare_told(now, at, compare),
            Body::Compared(compared) => self.compared_told(now, at, &compared),
            Body::CompareMarks(compare) => self.compare_marks_told(at, compare),
            Body::Owners(owners) => self.ways.told(at, &owners).map(|moved| self.peer_moved(now, region, &moved)),
            Body::RouteState(_)
            | Body::RouteDelta(_)
            | Body::RouteDigest(_)
            | Body::RoutePull(_)
            | Body::RouteChunk(_) => self.route_told(now, at, &body),
            Body::Signal(signal) => self.signal_told(now, signal),
            Body::Marks(marks) => self.marks_told(now, at, marks),
            Body::MarksAck(ack) => self.marks_acked(now, region, &ack),
            _ => Ok(()),
        };
        if let Err(refusal) = told {
            self.out.notices.push(Notice::BadPeer { region, what: refusal.to_string() });
        }
        self.start_rounds(now);
        self.pump_all(now);
    }

    /// What a peer's clock says.
    fn beat(&mut self, now: Now, region: Region, wall_ms: u64) {
        if wall_ms == 0 {
            return;
        }
        self.clocks.told(region, wall_ms, now.wall_ms);
        let error = self.clocks.own_error_ms().filter(|ms| *ms > CLOCK_ALARM_MS);
        if let Some(ms) = error
            && self.clocks.alarm(now.mono)
        {
            self.out.notices.push(Notice::OwnClockOff { ms, stopped: ms > CLOCK_STOP_MS });
        }
    }

    /// One of several core nodes says where it may lack what it has acked.
    fn incomplete_told(&mut self, now: Now, at: Holder, beat: &wire::Beat) {
        if beat.owned.is_empty() || !self.ways.is_shared(at.region) {
            return;
        }
        let owned = shares_from_wire(&beat.owned).unwrap_or_default();
        let lacks = if beat.incomplete.is_empty() { Some(BTreeSet::new()) } else { shares_from_wire(&beat.incomplete) };
        let lacks = lacks.unwrap_or_default();
        let Some(link) = self.links.get_mut(&at.region) else { return };
        let healed = link.set_incomplete(owned.difference(&lacks).copied(), false);
        let lost = link.set_incomplete(owned.intersection(&lacks).copied(), true);
        if healed || lost {
            self.note_peer(at.region);
            self.tell_all_watchers(now);
        }
    }

    fn shipment(&mut self, now: Now, from: Holder, ship: wire::Ship) -> Result<(), Refusal> {
        let bad = |what: &str| Refusal::new(Code::BadFrame, what);
        let id = ConvId::from_slice(&ship.conversation).ok_or_else(|| bad("a shipment of no conversation"))?;
        let log = origin(ship.origin)?;
        let entries = entries_from_wire(ship.entries)?;
        let contiguous =
            entries.iter().zip(ship.first_seq..).all(|(e, seq)| e.place.origin == log && e.place.seq == seq);
        if !contiguous || entries.is_empty() || ship.first_seq == 0 || entries.len() > SHIP_ENTRIES {
            return Err(bad("a shipment that is not one part of one log"));
        }
        if !self.owns_log(id) {
            return Ok(()); // another node's: its owner says so, and it is offered there
        }
        let leaving = !self.takes_log(id);
        let conversation = self.conversation(id, now);
        if conversation.is_full() || leaving {
            let upto = ship.first_seq + entries.len() as u64 - 1;
            if let Some(link) = self.links.get_mut(&from.region) {
                link.owe_ack(from.core, id, log, upto, now.mono);
            }
            return Ok(());
        }
        conversation.queue.push_back(Job::Copies { from, origin: log, entries, first_seq: ship.first_seq });
        conversation.active_at = now.mono;
        self.touched.insert(id);
        Ok(())
    }

    /// Tells shippers how far their logs are held here, durably; and to ship again, where that is not far
    /// enough: something before their shipment is missing, or it could not be stored.
    pub(super) fn ack_shipments(&mut self, id: ConvId, shipments: &[(Holder, Origin, Seq)]) {
        let Some(conversation) = self.conversations.get(&id) else { return };
        let mut told = std::collections::BTreeMap::<Holder, (Heads, bool)>::new();
        for (from, origin, upto) in shipments {
            let head = mutated!(LinkAckFromMemory => conversation.state.head(*origin); conversation.head(*origin));
            let takes = *origin != self.settings.origin && !conversation.damaged.contains_key(origin);
            let (heads, want) = told.entry(*from).or_default();
            heads.insert(*origin, head);
            *want |= takes && head < *upto;
        }
        for (from, (heads, want)) in told {
            let conversation = Bytes::copy_from_slice(&id.0);
            let ack = wire::ShipAck { conversation, heads: heads_to_wire(&heads), want, answer: false };
            self.out.peer(from, Body::ShipAck(ack));
        }
    }

    fn ship_acked(&mut self, now: Now, region: Region, ack: wire::ShipAck) -> Result<(), Refusal> {
        let id = ConvId::from_slice(&ack.conversation)
            .ok_or_else(|| Refusal::new(Code::BadFrame, "an ack of no conversation"))?;
        let heads = heads_from_wire(ack.heads)?;
        let held = self.conversations.get(&id).map(|c| c.published.clone()).unwrap_or_default();
        let loading = self.conversations.get(&id).is_some_and(super::Conversation::is_loading);
        let Some(link) = self.links.get_mut(&region) else { return Ok(()) };
        if loading {
            return Ok(()); // what is held here is not known yet: the offer is made again
        }
        if ack.want {
            link.rewind(id, &heads);
        }
        link.acked(id, &heads, &held);
        if ack.answer {
            link.answered(id, now.mono);
        }
        self.refill_acked(now, region, id, ack.answer && !ack.want);
        let origins: Vec<Origin> = held.keys().copied().collect();
        self.tell_watchers(now, id, origins);
        Ok(())
    }

    fn offered(&mut self, now: Now, from: Holder, offer: wire::Offer) -> Result<(), Refusal> {
        let id = ConvId::from_slice(&offer.conversation)
            .ok_or_else(|| Refusal::new(Code::BadFrame, "an offer of no conversation"))?;
        let theirs = heads_from_wire(offer.heads)?;
        if !self.owns_log(id) {
            return Ok(());
        }
        if let Some(waiting) = self.conversation(id, now).waiting() {
            waiting.offers.push((from, theirs));
        } else {
            self.answer_offer(from, id, &theirs);
        }
        Ok(())
    }

    /// Says how far the offered logs are held here. What is decided counts; a round in flight is acked when
    /// it ends.
    pub(super) fn answer_offer(&mut self, from: Holder, id: ConvId, theirs: &Heads) {
        let Some(conversation) = self.conversations.get(&id) else { return };
        let heads: Heads = theirs.keys().map(|o| (*o, conversation.head(*o))).collect();
        let want = theirs.iter().any(|(o, seq)| {
            *seq > conversation.state.head(*o) && *o != self.settings.origin && !conversation.damaged.contains_key(o)
        });
        let ack = wire::ShipAck {
            conversation: Bytes::copy_from_slice(&id.0),
            heads: heads_to_wire(&heads),
            want,
            answer: true,
        };
        self.out.peer(from, Body::ShipAck(ack));
    }

    /// Ships what was just decided, where the peer is in step; otherwise it is read when its turn comes.
    pub(super) fn ship_decided(&mut self, now: Now, id: ConvId, entries: &[(Arc<Entry>, bool)]) {
        let mut logs = std::collections::BTreeMap::<Origin, Vec<&Arc<Entry>>>::new();
        for (entry, _) in entries {
            logs.entry(entry.place.origin).or_default().push(entry);
        }
        for (region, link) in &mut self.links {
            for (origin, entries) in &logs {
                let mut rest = &entries[..];
                while let Some(first) = rest.first() {
                    if !link.may_ship(id, *origin, first.place.seq) {
                        break;
                    }
                    let mut bytes = 0;
                    let fits = |e: &&&Arc<Entry>| {
                        bytes += e.encoded_len();
                        bytes <= SHIP_BYTES
                    };
                    let count = rest.iter().take(SHIP_ENTRIES).take_while(fits).count().max(1);
                    let (part, after) = rest.split_at(count);
                    rest = after;
                    let ship = ship(id, *origin, part.iter().map(|e| &***e));
                    let size = ship.entries.iter().map(Bytes::len).sum();
                    self.counters.shipped += part.len() as u64;
                    link.shipped(id, *origin, first.place.seq + part.len() as u64 - 1, size);
                    self.out.link(&self.ways, *region, id, Body::Ship(ship));
                }
                if !rest.is_empty() && origin.region == self.settings.region {
                    link.wake(id);
                }
            }
        }
        self.pump_all(now);
    }

    /// Reads what is to be shipped, as far as windows allow.
    pub(super) fn pump_all(&mut self, _now: Now) {
        let regions: Vec<Region> = self.links.keys().copied().collect();
        for region in regions {
            while let Some(link) = self.links.get_mut(&region).filter(|l| l.reads() < SHIP_READS) {
                let conversations = &self.conversations;
                let published =
                    |id: ConvId| conversations.get(&id).filter(|c| !c.is_loading()).map(|c| c.published.clone());
                let Some((conversation, origin, from, to)) = link.next_read(published) else { break };
                let range = Range {
                    conversation,
                    origin,
                    from,
                    to,
                    max_entries: SHIP_ENTRIES,
                    max_bytes: SHIP_BYTES,
                    backwards: false,
                };
                self.want_range(Ticket::Ship { region, conversation, origin }, range);
            }
        }
    }

    pub(super) fn ship_read(
        &mut self,
        now: Now,
        region: Region,
        id: ConvId,
        origin: Origin,
        entries: Result<Vec<Arc<Entry>>, String>,
    ) {
        let Some(link) = self.links.get_mut(&region) else { return };
        let shipped = link.read(id, origin);
        match entries {
            Err(what) => {
                self.out.notices.push(Notice::Damaged { conversation: id, what });
                // Nobody can be given what can't be read: a comparison does not wait for it.
                self.refill_acked(now, region, id, true);
            }
            Ok(entries) => {
                let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
                // A rewind or a new connection may have happened while this was read.
                if shipped == Some(first.place.seq - 1) && link.is_connected() {
                    let ship = ship(id, origin, entries.iter().map(|e| &**e));
                    let bytes = ship.entries.iter().map(Bytes::len).sum();
                    link.shipped(id, origin, last.place.seq, bytes);
                    self.counters.shipped += entries.len() as u64;
                    self.out.link(&self.ways, region, id, Body::Ship(ship));
                }
                link.wake(id);
                self.pump_all(now);
            }
        }
    }

    /// Makes offers that are due, and answers shipments that had failed.
    pub(super) fn relay(&mut self, now: Now) {
        let regions: Vec<Region> = self.links.keys().copied().collect();
        for region in regions {
            let Some(link) = self.links.get_mut(&region) else { continue };
            let conversations = &self.conversations;
            let loaded = |id: ConvId| conversations.get(&id).is_none_or(|c| !c.is_loading());
            for id in link.due_offers(now.mono, |id| loaded(id) && self.ways.of(region, id).is_some()) {
                if let Some(c) = self.conversations.get(&id).filter(|c| !c.is_loading()) {
                    let heads = heads_to_wire(&c.published);
                    let offer = wire::Offer { conversation: Bytes::copy_from_slice(&id.0), heads };
                    self.out.link(&self.ways, region, id, Body::Offer(offer));
                }
            }
            let owed = link.take_owed(now.mono);
            for (core, id, origin, upto) in owed {
                if self.conversations.get(&id).is_some_and(|c| !c.is_loading() && c.round.is_none()) {
                    self.ack_shipments(id, &[(Holder { region, core }, origin, upto)]);
                } else if let Some(link) = self.links.get_mut(&region) {
                    link.owe_ack(core, id, origin, upto, now.mono);
                }
            }
        }
    }
}

fn ship<'a>(id: ConvId, origin: Origin, entries: impl Iterator<Item = &'a Entry>) -> wire::Ship {
    let mut first_seq: Seq = 0;
    let entries = entries
        .map(|e| {
            if first_seq == 0 {
                first_seq = e.place.seq;
            }
            e.to_bytes()
        })
        .collect();
    wire::Ship { conversation: Bytes::copy_from_slice(&id.0), origin: Some(origin.into()), first_seq, entries }
}
