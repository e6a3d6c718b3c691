//! Comparing what two regions hold (R13).
//!
//! Problem: a store that was not stopped cleanly, was restored, or was made anew may lack what it acked to its
//! peers, and their todo for it is gone with those acks: nobody would send it again. Nor does it know what of its
//! own todo is lost.
//!
//! Rule: such a store takes a new era, and in the same commit a mark `refill/<region>` per peer. While a mark
//! stands, on each connection the region sends 4,096 sums of hashes over (conversation, heads of all origins);
//! the peer sends its own back. Each side then offers the conversations of all slots that differ, and what the
//! other lacks is shipped as ever. When all offers of the peer are acked it says so, and when all own ones are
//! too the mark goes. Until then neither side takes "no todo for him" for "he holds it".
//!
//! Where it stops half-way, on either side, the mark stands and the next connection compares again: what was
//! shipped no longer differs. So a crash costs one comparison, and nothing of a refill needs to be durable but
//! the mark. Only one peer is asked at a time: two would ship the same.
//!
//! Where a region has several core nodes, each compares what it owns with each node of the other region, of which that
//! owns the same: a comparison is about a set of shares, and what either side loses on the way is left to the next one.
//! There is a mark per share then, which goes with it from owner to owner.
//!
//! Why simpler ways fail: shipping everything again costs gigabytes for a lost second; the position of a link
//! says nothing after a loss; marks in memory are gone with the second crash.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};

use crate::codes::{Code, Refusal};
use crate::ids::{ConvId, Heads, Origin, Region};
use crate::mutants::{Mutant, on};
use crate::slots::{SHARES, SLOTS_PER_SHARE, Share, Slot};
use crate::store::{ConversationHeads, Put, Target, Todo};
use crate::wire::node::heads_to_wire;
use crate::wire::node_v1::{self as wire, node_frame::Body};

use super::link::OFFERS_IN_FLIGHT;
use super::routes::Holder;
use super::ways::{shares_from_wire, shares_to_wire};
use super::{Node, Notice, Now, Ticket, Want, sums};

/// Sums that are compared: with 10,000 conversations of which 1 % differ, about 240 are offered, and the sums are
/// 32 KiB.
pub const SLOTS: usize = crate::slots::SLOTS as usize;
/// Conversations per read of all heads: some 50 KiB.
pub const HEADS_PAGE: usize = 512;
/// Offers of a comparison that may wait for an answer; the rest of a link's is for what is live.
const IN_FLIGHT: usize = OFFERS_IN_FLIGHT / 2;
/// A node that could be asked about nothing, since it owns none of it, is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Another peer is asked when the one that was asked has not got on for so long.
const TURN: Duration = Duration::from_secs(30);
/// Meta keys of the marks begin so.
pub const MARK_KEY: &str = "refill/";
/// Meta key: this store was restored and has not been compared with a peer since.
pub const RESTORED_KEY: &str = "restored";

/// In which slot a conversation lies.
pub fn slot(conversation: ConvId) -> usize {
    usize::from(Slot::of(conversation).number())
}

/// The hash of a conversation with its heads: see `sums::hash`.
pub fn heads_hash(conversation: ConvId, heads: &Heads) -> u64 {
    sums::hash(&[b"tern heads 1", &conversation.0], heads)
}

/// What a region remembers of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its newest start.
    pub start: u64,
    /// Its era since then.
    pub era: u64,
    /// The most entries that it has said to hold durably in that start's era.
    pub commit: u64,
    /// It has not compared with this region since it may have lost something.
    pub incomplete: bool,
}

impl Known {
    /// As it is kept under `peer/<region>`.
    pub fn to_bytes(self) -> Bytes {
        let mut out = Vec::with_capacity(25);
        out.put_u64(self.start);
        out.put_u64(self.era);
        out.put_u64(self.commit);
        out.put_u8(u8::from(self.incomplete));
        out.into()
    }

    /// From there; the form without the last two is from before eras were confirmed.
    pub fn from_bytes(mut b: &[u8]) -> Option<Self> {
        if !matches!(b.len(), 16 | 25) {
            return None;
        }
        let mut known = Self { start: b.get_u64(), era: b.get_u64(), ..Self::default() };
        if !b.is_empty() {
            (known.commit, known.incomplete) = (b.get_u64(), b.get_u8() != 0);
        }
        Some(known)
    }
}

/// What a peer says of itself when its link is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerHello {
    /// Counts its starts.
    pub start: u64,
    /// Its era.
    pub era: u64,
    /// Entries of this era that are durable there.
    pub commit: u64,
    /// It may lack what it acked to this region.
    pub incomplete: bool,
}

/// Offering what lies in slots that differ.
#[derive(Debug, Default)]
struct Sweep {
    slots: Vec<bool>,
    reading: bool,
    read_all: bool,
    after: Option<ConvId>,
    waiting: VecDeque<ConvId>,
    loading: BTreeSet<ConvId>,
    /// What the peer must hold before this is done.
    offered: BTreeMap<ConvId, Heads>,
}

impl Sweep {
    fn of(own: &[u64], theirs: &[u64], shares: &BTreeSet<Share>) -> Self {
        let mut slots: Vec<bool> = own.iter().zip(theirs).map(|(a, b)| a != b).collect();
        for (share, slots) in Share::all().zip(slots.chunks_mut(usize::from(SLOTS_PER_SHARE))) {
            if !shares.contains(&share) {
                slots.fill(false);
            }
        }
        Self { read_all: !slots.contains(&true), slots, ..Self::default() }
    }

    /// What lies elsewhere now is nobody's concern here.
    fn keep(&mut self, of: impl Fn(ConvId) -> bool) {
        self.waiting.retain(|id| of(*id));
        self.loading.retain(|id| of(*id));
        self.offered.retain(|id, _| of(*id));
    }

    fn is_done(&self) -> bool {
        self.read_all && self.waiting.is_empty() && self.loading.is_empty() && self.offered.is_empty()
    }

    fn has_room(&self) -> bool {
        self.loading.len() + self.offered.len() < IN_FLIGHT
    }
}

#[derive(Debug)]
enum Stage {
    /// Adding up.
    Survey,
    /// The sums were sent.
    Sent,
    Sweep(Sweep),
    Swept,
}

/// One comparison, as one side sees it.
#[derive(Debug)]
struct Side {
    ticket: u64,
    /// What it is about: what both sides have owned since it began.
    shares: BTreeSet<Share>,
    sums: Vec<u64>,
    theirs: Vec<u64>,
    stage: Stage,
    /// The other side has offered everything of these.
    compared: Option<BTreeSet<Share>>,
    /// When the other side was last heard to get on.
    heard: Duration,
    offers: u64,
}

impl Side {
    fn new(ticket: u64, shares: BTreeSet<Share>, theirs: Vec<u64>, now: Duration) -> Self {
        let sums = vec![0; SLOTS];
        Self { ticket, shares, sums, theirs, stage: Stage::Survey, compared: None, heard: now, offers: 0 }
    }

    /// It is about these at most.
    fn keep(&mut self, of: impl Fn(Share) -> bool) {
        let before = self.shares.len();
        self.shares.retain(|share| of(*share));
        if let (true, Stage::Sweep(sweep)) = (self.shares.len() < before, &mut self.stage) {
            sweep.keep(|id| of(Slot::of(id).share()));
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Refill {
    /// Peers that this store must be compared with, and where: durable.
    marks: BTreeMap<Region, BTreeSet<Share>>,
    /// Peers with whom nothing is compared yet: other nodes of this region may not know them.
    held: BTreeSet<Region>,
    /// No clients before the first comparison: erasures may be missing (R16).
    restored: bool,
    /// Where several nodes share the region: so it is again with each share that comes and must be compared.
    recloses: bool,
    /// The comparison is over, and erasures that it brought are being carried out.
    erasing: bool,
    asking: BTreeMap<Holder, Side>,
    answering: BTreeMap<Holder, Side>,
    /// Before then these need not be asked again.
    not_before: BTreeMap<Holder, Duration>,
    tickets: u64,
}

impl Refill {
    /// A region is no peer any more, and can't be compared with.
    pub(super) fn forget(&mut self, region: Region) {
        self.marks.remove(&region);
        self.held.remove(&region);
    }

    pub(super) fn new(marks: BTreeSet<Region>, restored: bool, shared: bool) -> Self {
        let marks = marks.into_iter().map(|region| (region, Share::all().collect())).collect();
        Self { marks, restored: restored && !shared, recloses: restored && shared, ..Self::default() }
    }

    fn side(&mut self, peer: Holder, asking: bool) -> Option<&mut Side> {
        if asking { self.asking.get_mut(&peer) } else { self.answering.get_mut(&peer) }
    }

    /// What a side is about.
    pub(super) fn shares(&self, peer: Holder, asking: bool) -> Option<&BTreeSet<Share>> {
        let sides = if asking { &self.asking } else { &self.answering };
        sides.get(&peer).map(|side| &side.shares)
    }

    /// Whether this store may lack what it acked to a peer of a conversation, and may have lost its todo for it.
    pub(super) fn is_marked(&self, region: Region, id: ConvId) -> bool {
        self.marks.get(&region).is_some_and(|shares| shares.contains(&Slot::of(id).share()))
    }

    /// Whether this store has been compared with all peers, as far as a conversation goes.
    pub(super) fn is_whole_in(&self, id: ConvId) -> bool {
        !self.restored && !self.marks.keys().any(|region| self.is_marked(*region, id))
    }

    /// Whether clients must wait.
    pub(super) fn is_closed(&self) -> bool {
        self.restored && !on(Mutant::RestoredServesAtOnce)
    }
}

impl Node {
    /// Peers that this store must still be compared with, and whether clients wait for it.
    pub fn refilling(&self) -> (usize, bool) {
        (self.refill.marks.len(), self.refill.restored)
    }

    /// Whether a peer must be told that this store may lack what it acked to it.
    pub fn is_incomplete_for(&self, region: Region) -> bool {
        self.refill.marks.contains_key(&region)
    }

    /// Where this store may lack what it acked to a peer: one bit per share, empty for nowhere.
    pub fn incomplete_for(&self, region: Region) -> Bytes {
        self.refill.marks.get(&region).map_or_else(Bytes::new, shares_to_wire)
    }

    /// What this node owns, likewise; empty where it is its region's only one.
    pub fn owned_shares(&self) -> Bytes {
        if self.is_shared() { shares_to_wire(self.own_shares()) } else { Bytes::new() }
    }

    /// Shares that have become this node's and must be compared: what their marks in the store say.
    pub fn to_compare(&mut self, now: Now, marks: BTreeMap<Region, BTreeSet<Share>>) {
        for (region, shares) in marks {
            if self.links.contains_key(&region) && !shares.is_empty() {
                self.refill.marks.entry(region).or_default().extend(shares);
                self.refill.restored |= self.refill.recloses;
                self.refill.erasing &= !self.refill.recloses;
            }
        }
        self.refill_next(now);
    }

    /// Nothing is compared with these peers until further notice; with all others it is.
    pub fn hold_comparisons(&mut self, now: Now, held: BTreeSet<Region>) {
        self.refill.held = held;
        self.refill_next(now);
    }

    pub(super) fn refill_up(&mut self, now: Now, peer: Holder) {
        self.refill_down(peer);
        self.refill_next(now);
    }

    pub(super) fn refill_down(&mut self, peer: Holder) {
        self.refill.asking.remove(&peer);
        self.refill.answering.remove(&peer);
        self.refill.not_before.remove(&peer);
        self.tickets.retain(|_, t| !matches!(t, Ticket::Heads { peer: p, .. } if *p == peer));
        self.regain_down(peer);
    }

    /// Other nodes own some of a peer region's shares: what is compared with those that had them is left to the next
    /// comparison.
    pub(super) fn refill_moved(&mut self, now: Now, region: Region) {
        let ways = &self.ways;
        for sides in [&mut self.refill.asking, &mut self.refill.answering] {
            for (peer, side) in sides.iter_mut().filter(|(peer, _)| peer.region == region) {
                let theirs = ways.shares_of(*peer);
                side.keep(|share| theirs.contains(&share));
            }
        }
        self.pump_refill(now);
    }

    /// These shares are not this node's any more, and nor are their marks.
    pub(super) fn refill_lost(&mut self, now: Now, lost: &BTreeSet<Share>) {
        for side in self.refill.asking.values_mut().chain(self.refill.answering.values_mut()) {
            side.keep(|share| !lost.contains(&share));
        }
        self.refill.marks.retain(|_, shares| {
            shares.retain(|share| !lost.contains(share));
            !shares.is_empty()
        });
        self.pump_refill(now);
    }

    /// Asks the next peer, if none is being asked; called as time passes.
    pub(super) fn refill_next(&mut self, now: Now) {
        self.reopen();
        if self.draining || self.refill.asking.values().any(|side| side.heard + TURN > now.mono) {
            return;
        }
        let Some((peer, shares)) = self.next_comparison(now) else { return };
        self.refill.tickets += 1;
        let side = Side::new(self.refill.tickets, shares, Vec::new(), now.mono);
        self.refill.asking.insert(peer, side);
        self.ask_for_marks(peer);
    }

    /// Who is to be asked about what.
    fn next_comparison(&self, now: Now) -> Option<(Holder, BTreeSet<Share>)> {
        for (region, marks) in self.refill.marks.iter().filter(|(region, _)| !self.refill.held.contains(region)) {
            for peer in self.ways.cores(*region) {
                let waits = self.refill.not_before.get(&peer).is_some_and(|at| now.mono < *at);
                if waits || self.refill.asking.contains_key(&peer) {
                    continue;
                }
                let theirs = self.ways.shares_of(peer);
                let shares = marks.intersection(self.own_shares()).filter(|share| theirs.contains(share));
                let shares: BTreeSet<Share> = shares.copied().collect();
                if !shares.is_empty() {
                    return Some((peer, shares));
                }
            }
        }
        None
    }

    pub(super) fn want_heads(&mut self, peer: Holder, asking: bool, after: Option<ConvId>) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.tickets.insert(ticket, Ticket::Heads { peer, asking });
        self.out.wants.push(Want::Heads { ticket, after, limit: HEADS_PAGE });
    }

    /// A page of heads that was wanted; one of fewer than the limit is the last.
    pub fn heads_read(&mut self, now: Now, ticket: u64, page: &[ConversationHeads]) {
        let Some(Ticket::Heads { peer, asking }) = self.tickets.remove(&ticket) else { return };
        let Some(side) = self.refill.side(peer, asking) else { return };
        let last = page.last().map(|(id, _)| *id);
        let more = page.len() >= HEADS_PAGE;
        // Others of this region compare what is theirs.
        let in_it = |(id, _): &&ConversationHeads| side.shares.contains(&Slot::of(*id).share());
        let page: Vec<&ConversationHeads> = page.iter().filter(in_it).collect();
        side.heard = now.mono;
        match &mut side.stage {
            Stage::Survey => {
                for (id, heads) in page {
                    let sum = &mut side.sums[slot(*id)];
                    *sum = sum.wrapping_add(heads_hash(*id, heads));
                }
                if more { self.want_heads(peer, asking, last) } else { self.surveyed(now, peer, asking) }
            }
            Stage::Sweep(sweep) => {
                let differs = page.iter().map(|(id, _)| *id).filter(|id| sweep.slots[slot(*id)]);
                sweep.waiting.extend(differs);
                (sweep.after, sweep.read_all, sweep.reading) = (last, !more, false);
                self.pump_refill(now);
            }
            Stage::Sent | Stage::Swept => {}
        }
    }

    fn surveyed(&mut self, now: Now, peer: Holder, asking: bool) {
        let Some(side) = self.refill.side(peer, asking) else { return };
        let shares = some_shares(&side.shares);
        let compare = wire::Compare { ticket: side.ticket, slots: side.sums.clone(), answer: !asking, shares };
        side.stage = if asking { Stage::Sent } else { Stage::Sweep(Sweep::of(&side.sums, &side.theirs, &side.shares)) };
        self.out.peer(peer, Body::Compare(compare));
        self.pump_refill(now);
    }

    /// A peer asks for a comparison, or answers.
    pub(super) fn compare_told(&mut self, now: Now, peer: Holder, compare: wire::Compare) -> Result<(), Refusal> {
        if compare.slots.len() != SLOTS {
            return Err(Refusal::new(Code::BadFrame, "a comparison of another number of slots"));
        }
        let mut shares = shares_of(&compare.shares)?;
        if compare.answer {
            let Some(side) = self.refill.asking.get_mut(&peer).filter(|s| s.ticket == compare.ticket) else {
                return Ok(());
            };
            if matches!(side.stage, Stage::Sent) {
                side.heard = now.mono;
                side.keep(|share| shares.contains(&share));
                side.stage = Stage::Sweep(Sweep::of(&side.sums, &compare.slots, &side.shares));
                self.pump_refill(now);
            }
            return Ok(());
        }
        shares.retain(|share| self.own_shares().contains(share));
        // One at a time: a peer that asks again has forgotten what it asked before.
        self.tickets.retain(|_, t| !matches!(t, Ticket::Heads { peer: p, asking: false } if *p == peer));
        self.refill.answering.insert(peer, Side::new(compare.ticket, shares, compare.slots, now.mono));
        self.want_heads(peer, false, None);
        Ok(())
    }

    /// The peer has offered everything, and it was taken.
    pub(super) fn compared_told(&mut self, now: Now, peer: Holder, compared: &wire::Compared) -> Result<(), Refusal> {
        let shares = shares_of(&compared.shares)?;
        if let Some(side) = self.refill.asking.get_mut(&peer).filter(|s| s.ticket == compared.ticket) {
            side.compared = Some(shares);
            self.pump_refill(now);
        }
        Ok(())
    }

    /// A peer that is asked is getting on.
    pub(super) fn refill_heard(&mut self, now: Now, region: Region) {
        for (_, side) in self.refill.asking.iter_mut().filter(|(peer, _)| peer.region == region) {
            side.heard = now.mono;
        }
    }

    /// Offers as much as may be under way.
    pub(super) fn pump_refill(&mut self, now: Now) {
        if self.draining {
            return;
        }
        for asking in [true, false] {
            let sides = if asking { &self.refill.asking } else { &self.refill.answering };
            let peers: Vec<Holder> = sides.keys().copied().collect();
            for peer in peers {
                self.pump_side(now, peer, asking);
            }
        }
    }

    fn pump_side(&mut self, now: Now, peer: Holder, asking: bool) {
        let region = peer.region;
        while let Some(Side { stage: Stage::Sweep(sweep), .. }) = self.refill.side(peer, asking) {
            if sweep.is_done() {
                if let Some(side) = self.refill.side(peer, asking) {
                    side.stage = Stage::Swept;
                }
                break;
            }
            if !sweep.has_room() {
                return;
            }
            let Some(id) = sweep.waiting.pop_front() else {
                if !sweep.read_all && !std::mem::replace(&mut sweep.reading, true) {
                    let after = sweep.after;
                    self.want_heads(peer, asking, after);
                }
                return;
            };
            if self.conversation(id, now).is_loading() {
                if let Some(Side { stage: Stage::Sweep(sweep), .. }) = self.refill.side(peer, asking) {
                    sweep.loading.insert(id);
                }
            } else {
                self.refill_offer(now, peer, asking, id);
            }
        }
        let Some(side) = self.refill.side(peer, asking) else { return };
        if !matches!(side.stage, Stage::Swept) {
            return;
        }
        if !asking {
            let ticket = side.ticket;
            if self.must_give_marks(now, peer) {
                return;
            }
            let Some(side) = self.refill.answering.remove(&peer) else { return };
            let shares = some_shares(&side.shares);
            self.out.peer(peer, Body::Compared(wire::Compared { ticket, shares }));
            if let Some(link) = self.links.get_mut(&region) {
                link.set_incomplete(side.shares, false);
            }
            self.note_peer(region);
            self.tell_all_watchers(now);
        } else if let Some(theirs) = side.compared.clone() {
            let (offers, mut shares) = (side.offers, side.shares.clone());
            shares.retain(|share| theirs.contains(share));
            self.refill.asking.remove(&peer);
            if shares.is_empty() {
                self.refill.not_before.insert(peer, now.mono + ASK_AGAIN);
                return;
            }
            self.compared_with(region, &shares, offers);
            self.tell_all_watchers(now);
            self.refill_next(now);
        }
    }

    /// These shares hold what the peer held, and it what they did.
    fn compared_with(&mut self, region: Region, shares: &BTreeSet<Share>, offers: u64) {
        let Some(marks) = self.refill.marks.get_mut(&region) else { return };
        marks.retain(|share| !shares.contains(share));
        let done = marks.is_empty();
        if self.is_shared() {
            let gone = |share: &Share| Put::Meta { key: share_mark(region, *share), value: Bytes::new() };
            self.out.puts.extend(shares.iter().map(gone));
        }
        if !done {
            return;
        }
        self.refill.marks.remove(&region);
        if !self.is_shared() {
            self.out.puts.push(Put::Meta { key: format!("{MARK_KEY}{region}"), value: Bytes::new() });
        }
        self.out.notices.push(Notice::Refilled { region, offers });
        self.refill.erasing = self.refill.restored;
    }

    /// A restored store serves clients again once the erasures that it had missed are carried out.
    fn reopen(&mut self) {
        let busy = |c: &super::Conversation| c.erasing.is_some() || !c.state.fold.erasing.is_empty();
        // Of several nodes one may have given away all that was to be compared.
        let over = self.refill.erasing || self.refill.recloses && self.refill.marks.is_empty();
        if over && self.refill.restored && !self.conversations.values().any(busy) {
            self.refill.erasing = false;
            self.refill.restored = false;
            // Of several nodes none knows of all: the first start that finds nothing left to compare takes it away.
            if !self.is_shared() {
                self.out.puts.push(Put::Meta { key: RESTORED_KEY.to_owned(), value: Bytes::new() });
            }
        }
    }

    /// A conversation that was to be offered is in memory.
    pub(super) fn refill_loaded(&mut self, now: Now, id: ConvId) {
        for asking in [true, false] {
            let sides = if asking { &mut self.refill.asking } else { &mut self.refill.answering };
            let waits = |side: &mut Side| match &mut side.stage {
                Stage::Sweep(sweep) => sweep.loading.remove(&id),
                _ => false,
            };
            let peers: Vec<Holder> = sides.iter_mut().filter_map(|(p, side)| waits(side).then_some(*p)).collect();
            for peer in peers {
                self.refill_offer(now, peer, asking, id);
                self.pump_side(now, peer, asking);
            }
        }
    }

    /// Offers a conversation with all that is held of it, and notes it as todo.
    fn refill_offer(&mut self, now: Now, peer: Holder, asking: bool, id: ConvId) {
        let region = peer.region;
        let (Some(conversation), Some(link)) = (self.conversations.get_mut(&id), self.links.get_mut(&region)) else {
            return;
        };
        // Its current log needs no way back.
        let current = self.eras.get(&region).map(|(_, era)| Origin { region, era: *era });
        let mut heads = conversation.published.clone();
        heads.retain(|origin, seq| *seq > 0 && current != Some(*origin));
        if heads.is_empty() {
            return;
        }
        let target = Target::Peer(region);
        let noted = conversation.todo.entry(target).or_default();
        let before = noted.len();
        for origin in heads.keys() {
            noted.entry(*origin).or_insert(0);
        }
        if noted.len() > before {
            self.out.puts.push(Put::Todo(Todo { target, conversation: id, prefix: noted.clone(), user: None }));
        }
        conversation.active_at = now.mono;
        self.active.insert(id);
        link.refill(id, heads.keys().copied(), now.mono);
        let offer = wire::Offer { conversation: Bytes::copy_from_slice(&id.0), heads: heads_to_wire(&heads) };
        self.out.link(&self.ways, region, id, Body::Offer(offer));
        if let Some(side) = self.refill.side(peer, asking) {
            side.offers += 1;
            if let Stage::Sweep(sweep) = &mut side.stage {
                sweep.offered.insert(id, heads);
            }
        }
        self.counters.refill_offers += 1;
        self.schedule_flush(now);
    }

    /// The peer said how far it holds a conversation; `refused`: it takes no more of it.
    pub(super) fn refill_acked(&mut self, now: Now, region: Region, id: ConvId, refused: bool) {
        let Some(link) = self.links.get_mut(&region) else { return };
        let mut done = false;
        for sides in [&mut self.refill.asking, &mut self.refill.answering] {
            let held = |(o, seq): (&Origin, &u64)| link.acked_upto(id, *o).is_none_or(|acked| acked >= *seq);
            for (_, side) in sides.iter_mut().filter(|(peer, _)| peer.region == region) {
                let Stage::Sweep(sweep) = &mut side.stage else { continue };
                if sweep.offered.get(&id).is_some_and(|heads| refused || heads.iter().all(held)) {
                    sweep.offered.remove(&id);
                    done = true;
                }
            }
        }
        if done {
            link.refilled(id);
            self.pump_refill(now);
        }
    }

    pub(super) fn tell_all_watchers(&mut self, now: Now) {
        let watched = self.conversations.iter().filter(|(_, c)| !c.watchers.is_empty());
        let logs: Vec<(ConvId, Vec<Origin>)> =
            watched.map(|(id, c)| (*id, c.published.keys().copied().collect())).collect();
        for (id, origins) in logs {
            self.tell_watchers(now, id, origins);
        }
    }
}

/// Meta key of the mark of one share, where a region has several core nodes.
pub fn share_mark(region: Region, share: Share) -> String {
    format!("{MARK_KEY}{region}/{}", share.number())
}

/// As it is sent: nothing for all.
pub(super) fn some_shares(shares: &BTreeSet<Share>) -> Bytes {
    if shares.len() == usize::from(SHARES) { Bytes::new() } else { shares_to_wire(shares) }
}

pub(super) fn shares_of(bits: &[u8]) -> Result<BTreeSet<Share>, Refusal> {
    shares_from_wire(bits).ok_or_else(|| Refusal::new(Code::BadFrame, "a comparison of no set of shares"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_and_hashes_are_pinned() {
        let heads: Heads = [(Origin { region: 1, era: 7 }, 5), (Origin { region: 2, era: 9 }, 1)].into();
        let none: Heads = [(Origin { region: 3, era: 1 }, 0)].into();
        assert_eq!((slot(ConvId([9; 16])), slot(ConvId([0; 16]))), (3366, 4010));
        assert_eq!(format!("{:016x}", heads_hash(ConvId([9; 16]), &heads)), "5ca0eea7620146dc");
        assert_eq!(heads_hash(ConvId([9; 16]), &none), heads_hash(ConvId([9; 16]), &Heads::new()));
    }

    #[test]
    fn what_is_known_of_a_peer_has_a_fixed_form_and_the_old_one_is_read() {
        let known = Known { start: 3, era: 0x0102_0304_0506_0708, commit: 260, incomplete: true };
        let bytes = known.to_bytes();
        assert_eq!(bytes[..], [0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 1, 4, 1]);
        assert_eq!(Known::from_bytes(&bytes), Some(known));
        let old = Known { commit: 0, incomplete: false, ..known };
        assert_eq!(Known::from_bytes(&bytes[..16]), Some(old));
        assert_eq!(Known::from_bytes(&bytes[..20]), None);
    }

    proptest! {
        #[test]
        fn a_changed_head_changes_the_hash(id: [u8; 16], seq in 1u64..1000, era: u64) {
            let heads = |seq| Heads::from([(Origin { region: 1, era }, seq)]);
            prop_assert_ne!(heads_hash(ConvId(id), &heads(seq)), heads_hash(ConvId(id), &heads(seq + 1)));
            prop_assert!(slot(ConvId(id)) < SLOTS);
        }
    }
}
