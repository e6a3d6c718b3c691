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
//! Why simpler ways fail: shipping everything again costs gigabytes for a lost second; the position of a link
//! says nothing after a loss; marks in memory are gone with the second crash.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};

use crate::codes::{Code, Refusal};
use crate::ids::{ConvId, Heads, Origin, Region};
use crate::mutants::{Mutant, on};
use crate::slots::Slot;
use crate::store::{ConversationHeads, Put, Target, Todo};
use crate::wire::node::heads_to_wire;
use crate::wire::node_v1::{self as wire, node_frame::Body};

use super::link::OFFERS_IN_FLIGHT;
use super::{Node, Notice, Now, Ticket, Want, sums};

/// Sums that are compared: with 10,000 conversations of which 1 % differ, about 240 are offered, and the sums are
/// 32 KiB.
pub const SLOTS: usize = crate::slots::SLOTS as usize;
/// Conversations per read of all heads: some 50 KiB.
pub const HEADS_PAGE: usize = 512;
/// Offers of a comparison that may wait for an answer; the rest of a link's is for what is live.
const IN_FLIGHT: usize = OFFERS_IN_FLIGHT / 2;
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
    fn of(own: &[u64], theirs: &[u64]) -> Self {
        let slots: Vec<bool> = own.iter().zip(theirs).map(|(a, b)| a != b).collect();
        Self { read_all: !slots.contains(&true), slots, ..Self::default() }
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
    sums: Vec<u64>,
    theirs: Vec<u64>,
    stage: Stage,
    /// The other side has offered everything.
    compared: bool,
    /// When the other side was last heard to get on.
    heard: Duration,
    offers: u64,
}

impl Side {
    fn new(ticket: u64, theirs: Vec<u64>, now: Duration) -> Self {
        let sums = vec![0; SLOTS];
        Self { ticket, sums, theirs, stage: Stage::Survey, compared: false, heard: now, offers: 0 }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Refill {
    /// Peers that this store must be compared with: durable.
    marks: BTreeSet<Region>,
    /// No clients before the first comparison: erasures may be missing (R16).
    restored: bool,
    /// The comparison is over, and erasures that it brought are being carried out.
    erasing: bool,
    asking: BTreeMap<Region, Side>,
    answering: BTreeMap<Region, Side>,
    tickets: u64,
}

impl Refill {
    /// A region is no peer any more, and can't be compared with.
    pub(super) fn forget(&mut self, region: Region) {
        self.marks.remove(&region);
    }

    pub(super) fn new(marks: BTreeSet<Region>, restored: bool) -> Self {
        Self { marks, restored, ..Self::default() }
    }

    fn side(&mut self, region: Region, asking: bool) -> Option<&mut Side> {
        if asking { self.asking.get_mut(&region) } else { self.answering.get_mut(&region) }
    }

    /// Whether this store may lack what it acked to a peer, and may have lost its todo for it.
    pub(super) fn is_marked(&self, region: Region) -> bool {
        self.marks.contains(&region)
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
        self.refill.is_marked(region)
    }

    pub(super) fn refill_up(&mut self, now: Now, region: Region, hello: &PeerHello) {
        self.refill_down(region);
        if let Some(link) = self.links.get_mut(&region) {
            link.set_incomplete(hello.incomplete);
        }
        self.refill_next(now);
    }

    pub(super) fn refill_down(&mut self, region: Region) {
        self.refill.asking.remove(&region);
        self.refill.answering.remove(&region);
        self.tickets.retain(|_, t| !matches!(t, Ticket::Heads { region: r, .. } if *r == region));
        self.regain_down(region);
    }

    /// Asks the next peer, if none is being asked; called as time passes.
    pub(super) fn refill_next(&mut self, now: Now) {
        self.reopen();
        if self.draining || self.refill.asking.values().any(|side| side.heard + TURN > now.mono) {
            return;
        }
        let free = |r: &&Region| {
            !self.refill.asking.contains_key(r) && self.links.get(r).is_some_and(super::Link::is_connected)
        };
        let Some(region) = self.refill.marks.iter().find(free).copied() else { return };
        self.refill.tickets += 1;
        let side = Side::new(self.refill.tickets, Vec::new(), now.mono);
        self.refill.asking.insert(region, side);
        self.ask_for_marks(region);
    }

    pub(super) fn want_heads(&mut self, region: Region, asking: bool, after: Option<ConvId>) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.tickets.insert(ticket, Ticket::Heads { region, asking });
        self.out.wants.push(Want::Heads { ticket, after, limit: HEADS_PAGE });
    }

    /// A page of heads that was wanted; one of fewer than the limit is the last.
    pub fn heads_read(&mut self, now: Now, ticket: u64, page: &[ConversationHeads]) {
        let Some(Ticket::Heads { region, asking }) = self.tickets.remove(&ticket) else { return };
        if self.refill.side(region, asking).is_none() {
            return;
        }
        let last = page.last().map(|(id, _)| *id);
        let more = page.len() >= HEADS_PAGE;
        // Others of this region compare what is theirs.
        let page: Vec<&ConversationHeads> = page.iter().filter(|(id, _)| self.owns_log(*id)).collect();
        let Some(side) = self.refill.side(region, asking) else { return };
        side.heard = now.mono;
        match &mut side.stage {
            Stage::Survey => {
                for (id, heads) in page {
                    let sum = &mut side.sums[slot(*id)];
                    *sum = sum.wrapping_add(heads_hash(*id, heads));
                }
                if more { self.want_heads(region, asking, last) } else { self.surveyed(now, region, asking) }
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

    fn surveyed(&mut self, now: Now, region: Region, asking: bool) {
        let Some(side) = self.refill.side(region, asking) else { return };
        let compare = wire::Compare { ticket: side.ticket, slots: side.sums.clone(), answer: !asking };
        side.stage = if asking { Stage::Sent } else { Stage::Sweep(Sweep::of(&side.sums, &side.theirs)) };
        self.out.link(region, Body::Compare(compare));
        self.pump_refill(now);
    }

    /// A peer asks for a comparison, or answers.
    pub(super) fn compare_told(&mut self, now: Now, region: Region, compare: wire::Compare) -> Result<(), Refusal> {
        if compare.slots.len() != SLOTS {
            return Err(Refusal::new(Code::BadFrame, "a comparison of another number of slots"));
        }
        if compare.answer {
            let Some(side) = self.refill.asking.get_mut(&region).filter(|s| s.ticket == compare.ticket) else {
                return Ok(());
            };
            if matches!(side.stage, Stage::Sent) {
                side.heard = now.mono;
                side.stage = Stage::Sweep(Sweep::of(&side.sums, &compare.slots));
                self.pump_refill(now);
            }
            return Ok(());
        }
        // One at a time: a peer that asks again has forgotten what it asked before.
        self.tickets.retain(|_, t| !matches!(t, Ticket::Heads { region: r, asking: false } if *r == region));
        self.refill.answering.insert(region, Side::new(compare.ticket, compare.slots, now.mono));
        self.want_heads(region, false, None);
        Ok(())
    }

    /// The peer has offered everything, and it was taken.
    pub(super) fn compared_told(&mut self, now: Now, region: Region, compared: wire::Compared) {
        if let Some(side) = self.refill.asking.get_mut(&region).filter(|s| s.ticket == compared.ticket) {
            side.compared = true;
            self.pump_refill(now);
        }
    }

    /// A peer that is asked is getting on.
    pub(super) fn refill_heard(&mut self, now: Now, region: Region) {
        if let Some(side) = self.refill.asking.get_mut(&region) {
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
            let regions: Vec<Region> = sides.keys().copied().collect();
            for region in regions {
                self.pump_side(now, region, asking);
            }
        }
    }

    fn pump_side(&mut self, now: Now, region: Region, asking: bool) {
        while let Some(Side { stage: Stage::Sweep(sweep), .. }) = self.refill.side(region, asking) {
            if sweep.is_done() {
                if let Some(side) = self.refill.side(region, asking) {
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
                    self.want_heads(region, asking, after);
                }
                return;
            };
            if self.conversation(id, now).is_loading() {
                if let Some(Side { stage: Stage::Sweep(sweep), .. }) = self.refill.side(region, asking) {
                    sweep.loading.insert(id);
                }
            } else {
                self.refill_offer(now, region, asking, id);
            }
        }
        let Some(side) = self.refill.side(region, asking) else { return };
        if !matches!(side.stage, Stage::Swept) {
            return;
        }
        if !asking {
            let ticket = side.ticket;
            if self.must_give_marks(now, region) {
                return;
            }
            self.refill.answering.remove(&region);
            self.out.link(region, Body::Compared(wire::Compared { ticket }));
            if let Some(link) = self.links.get_mut(&region) {
                link.set_incomplete(false);
            }
            self.note_peer(region);
            self.tell_all_watchers(now);
        } else if side.compared {
            let offers = side.offers;
            self.refill.asking.remove(&region);
            self.refill.marks.remove(&region);
            self.out.puts.push(Put::Meta { key: format!("{MARK_KEY}{region}"), value: Bytes::new() });
            self.out.notices.push(Notice::Refilled { region, offers });
            self.refill.erasing = self.refill.restored;
            self.tell_all_watchers(now);
            self.refill_next(now);
        }
    }

    /// A restored store serves clients again once the erasures that it had missed are carried out.
    fn reopen(&mut self) {
        let busy = |c: &super::Conversation| c.erasing.is_some() || !c.state.fold.erasing.is_empty();
        if self.refill.erasing && !self.conversations.values().any(busy) {
            self.refill.erasing = false;
            self.refill.restored = false;
            self.out.puts.push(Put::Meta { key: RESTORED_KEY.to_owned(), value: Bytes::new() });
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
            let regions: Vec<Region> = sides.iter_mut().filter_map(|(r, side)| waits(side).then_some(*r)).collect();
            for region in regions {
                self.refill_offer(now, region, asking, id);
                self.pump_side(now, region, asking);
            }
        }
    }

    /// Offers a conversation with all that is held of it, and notes it as todo.
    fn refill_offer(&mut self, now: Now, region: Region, asking: bool, id: ConvId) {
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
        self.out.link(region, Body::Offer(offer));
        if let Some(side) = self.refill.side(region, asking) {
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
            let Some(Side { stage: Stage::Sweep(sweep), .. }) = sides.get_mut(&region) else { continue };
            let held = |(o, seq): (&Origin, &u64)| link.acked_upto(id, *o).is_none_or(|acked| acked >= *seq);
            if sweep.offered.get(&id).is_some_and(|heads| refused || heads.iter().all(held)) {
                sweep.offered.remove(&id);
                done = true;
            }
        }
        if done {
            link.refilled(id);
            self.pump_side(now, region, true);
            self.pump_side(now, region, false);
        }
    }

    fn tell_all_watchers(&mut self, now: Now) {
        let watched = self.conversations.iter().filter(|(_, c)| !c.watchers.is_empty());
        let logs: Vec<(ConvId, Vec<Origin>)> =
            watched.map(|(id, c)| (*id, c.published.keys().copied().collect())).collect();
        for (id, origins) in logs {
            self.tell_watchers(now, id, origins);
        }
    }
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
