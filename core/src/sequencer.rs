//! What gives a message its place in a conversation (R3, R4, R5).
//!
//! Problem: the same message arrives again and again (a lost ack, two connections, another region after the
//! first one died), in any order, and each arrival must end in one message, at one place, below everything
//! its sender wrote later.
//!
//! Rule: an arrival is judged against all that the region holds of the conversation, copies of other regions
//! included. Held: the lowest copy's place is acked again. Not held: it is sequenced if all earlier ones of
//! its install are held, above everything the sender had seen. Offered again with the receipt of an earlier
//! ack: it keeps the acked place as its display key.
//!
//! Why simpler ways fail: "n above the highest seen is new" swallows m10, acked by a region that died, once
//! m11 was sent elsewhere; "drop what is not the next n" blocks a sender whose m10 is held only there; a
//! re-offer without its old place jumps behind the sender's own later messages.
//!
//! The state here may run ahead of the store by one batch: `Conversation` in `node` keeps what is decided.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use crate::codes::{Code, Refusal};
use crate::edge_api::SendRequest;
use crate::entry::{Entry, Stamp};
use crate::fold::{Erasing, Fold, Members, is_own_key};
use crate::hlc;
use crate::identity::{HeldIdentities, Run};
use crate::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Seq, UserId};
use crate::kinds::{Own, is_countable, is_membership};
use crate::limits::CLOCK_AHEAD_MS;
use crate::membership::Membership;
use crate::mutants::{Mutant, on};
use crate::{mutant, mutated};

/// Entries kept in memory per active conversation, so that resends rarely read the store: twice what a client
/// keeps in flight. More would only be evicted from the processor's caches before it is used.
pub const RECENT_ENTRIES: usize = 128;
/// Bytes of bodies among them.
pub const RECENT_BYTES: usize = 128 * 1024;
/// Entries that were read again and are kept: what one send may ask for, each in as many copies as a row has
/// origins. Fewer, and a window with many copies would be read again for ever.
pub const RECALLED_ENTRIES: usize = RECENT_ENTRIES / 2 * 16;
/// What a conversation keeps once it is idle.
pub const RECENT_IDLE: usize = 8;

const CHECKPOINT_FORMAT: u8 = 3;

/// Who sends, by the connection.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// By the token.
    pub user: &'a UserId,
    /// By the Hello.
    pub install: &'a InstallId,
}

/// What the judgement needs besides the conversation.
#[derive(Clone, Copy, Debug)]
pub struct Court<'a> {
    /// The region's clock.
    pub now_ms: u64,
    /// The region's current origin.
    pub origin: Origin,
    /// For ids of direct conversations.
    pub direct_salt: &'a [u8],
    /// Whether the offered receipt, if any, proves the offered place.
    pub receipt_valid: bool,
    /// Direct conversations: the other user has blocked the sender.
    pub blocked: bool,
}

/// What becomes of a Send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A new entry, to be appended at the end of the region's own log.
    Append(Entry),
    /// Already there: ack the lowest copy.
    Held(Arc<Entry>),
    /// Already there, or needed for the ack's `also`, but not in memory: read these and judge again.
    Recall(Vec<(Run, u64)>),
    /// No.
    Refuse(Refusal),
}

/// All that is held of a conversation, without the bodies.
#[derive(Clone, Debug)]
pub struct LogState {
    conversation: ConvId,
    /// Head of each log.
    pub heads: Heads,
    /// The highest hlc of all logs.
    pub highest_hlc: u64,
    /// Who takes part, cells, erasures.
    pub fold: Fold,
    /// Countable messages held, one per identity: the server's hint of unread is never too low.
    pub counted: u64,
    held: HeldIdentities,
    recent: VecDeque<Arc<Entry>>,
    recent_bytes: usize,
    /// Entries that were read again for a resend.
    recalled: VecDeque<Arc<Entry>>,
    /// Both of the above, by n: few senders have the same one.
    by_n: BTreeMap<u64, Vec<Arc<Entry>>>,
}

impl LogState {
    /// Nothing is held.
    pub fn new(conversation: ConvId) -> Self {
        Self {
            conversation,
            heads: Heads::new(),
            highest_hlc: 0,
            fold: Fold::default(),
            counted: 0,
            held: HeldIdentities::default(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            recalled: VecDeque::new(),
            by_n: BTreeMap::new(),
        }
    }

    /// Which conversation.
    pub fn conversation(&self) -> ConvId {
        self.conversation
    }

    /// The end of a log here.
    pub fn head(&self, origin: Origin) -> Seq {
        self.heads.get(&origin).copied().unwrap_or(0)
    }

    /// Whether a copy of this identity is held.
    pub fn holds(&self, by: &Identity) -> bool {
        self.held.contains(&by.user, &by.install, by.n)
    }

    /// With its newest entry of a log forgotten, but for its identity.
    #[cfg(feature = "mutants")]
    pub(crate) fn without_newest(mut self, origin: Origin) -> Self {
        self.heads.entry(origin).and_modify(|head| *head = head.saturating_sub(1));
        self.heads.retain(|_, head| *head > 0);
        self
    }

    /// Judges a Send. Changes nothing. `also` are the counts before `send.n` that the ack will tell of.
    pub fn judge(
        &self,
        court: Court<'_>,
        from: Sender<'_>,
        send: &SendRequest,
        body_hash: &[u8; 32],
        also: &Range<u64>,
    ) -> Verdict {
        let Sender { user, install } = from;
        let offered = send.offer.as_ref().map(|(place, _)| *place).filter(|_| court.receipt_valid);
        let missing = self.not_in_memory(from, also.start.min(send.n)..also.end.min(send.n));
        let missing = if missing.is_empty() { self.not_in_memory(from, send.n..send.n + 1) } else { missing };
        if !missing.is_empty() {
            return Verdict::Recall(missing);
        }
        let copies = || self.copies(from, send.n);
        if let Some(lowest) = copies().min_by_key(|e| e.display_key()) {
            if copies().any(|e| e.body_hash != *body_hash) && !on(Mutant::BodyHashNotCompared) {
                let text = format!("message {} of this install has another body here", send.n);
                return Verdict::Refuse(Refusal::new(Code::IdentityConflict, text));
            }
            if offered.is_none_or(|place| place >= lowest.display_key()) || on(Mutant::LowerOfferDropped) {
                return Verdict::Held(lowest.clone());
            }
        }
        let place = match self.admit(court, user, send, offered.is_some()) {
            Ok(place) => place,
            Err(refusal) => return Verdict::Refuse(refusal),
        };
        if offered.is_none() {
            if let Some(missing) = self.held.first_missing(user, install, send.floor, send.n - 1)
                && !on(Mutant::FloorNotChecked)
            {
                let text = format!("message {missing} of this install is missing; floor was {}", send.floor);
                return Verdict::Refuse(Refusal::new(Code::OutOfOrder, text));
            }
            if hlc::too_far_ahead(send.seen_hlc, court.now_ms, self.highest_hlc, CLOCK_AHEAD_MS) {
                let text = "the highest hlc seen is more than 60 s ahead of this region";
                return Verdict::Refuse(Refusal::new(Code::Behind, text).after_ms(1_000));
            }
        }
        // An offered place proves that a region once gave it, so its hlc is no forgery; the stamp that the
        // client says it has seen is another matter, and only counts as far as clocks may differ.
        let trusted_seen = if hlc::too_far_ahead(send.seen_hlc, court.now_ms, self.highest_hlc, CLOCK_AHEAD_MS) {
            0
        } else {
            mutated!(SeenStampIgnored => 0; send.seen_hlc)
        };
        let seq = self.head(court.origin) + 1;
        let stamp = is_membership(send.kind).then(|| {
            // An offer keeps its cut; its receipt covers that.
            let offered = send.offer.as_ref().zip(send.membership.as_ref()).filter(|_| court.receipt_valid);
            let receipt = offered.and_then(|((_, receipt), _)| receipt[..].try_into().ok());
            let cut = match offered {
                Some((_, membership)) => membership.cut.clone(),
                None => self.heads.iter().map(|(o, s)| (*o, *s)).chain([(court.origin, seq)]).collect(),
            };
            Arc::new(Stamp { cut, receipt: receipt.unwrap_or_default() })
        });
        let entry = Entry {
            place: Place { hlc: hlc::next(court.now_ms, trusted_seen, self.highest_hlc), origin: court.origin, seq },
            by: Identity { user: user.clone(), install: install.clone(), n: send.n },
            only_sender: court.blocked && matches!(place, Admitted::Direct(_)),
            peer: match place {
                Admitted::Direct(peer) => Some(peer),
                Admitted::Group => None,
            },
            kind: send.kind,
            wall_ms: send.wall_ms,
            first: mutated!(FreshPlaceForOffer => None; offered),
            stamp,
            body_hash: *body_hash,
            body: send.body.clone(),
            erased: false,
        };
        Verdict::Append(if self.fold.is_erased(&entry) { entry.to_erased() } else { entry })
    }

    /// The lowest copies of those of `window` that are held: their acks were lost, and must not be forgotten
    /// by a sender who then moves to another region. Only those in memory; `judge` has seen to that.
    pub fn also_held(&self, from: Sender<'_>, window: &Range<u64>) -> Vec<Arc<Entry>> {
        if window.is_empty() || on(Mutant::AckForgetsLostOnes) {
            return Vec::new();
        }
        let held = self.by_n.range(window.clone()).map(|(n, _)| *n);
        held.filter_map(|n| self.copies(from, n).min_by_key(|e| e.display_key()).cloned()).collect()
    }

    /// Takes an entry at the end of its log. Returns whether a copy of it was held before.
    pub fn apply(&mut self, entry: Arc<Entry>) -> bool {
        debug_assert_eq!(entry.place.seq, self.head(entry.place.origin) + 1, "entries come in order");
        let copy = self.holds(&entry.by);
        self.heads.insert(entry.place.origin, entry.place.seq);
        self.highest_hlc = self.highest_hlc.max(entry.place.hlc);
        self.held.insert(&entry.by, entry.place.origin, entry.place.seq);
        self.fold.apply(&entry);
        if copy {
            self.fold.copy_taken(&entry);
        } else if is_countable(entry.kind) {
            self.counted += 1;
        }
        self.recent_bytes += entry.body.len();
        self.remember(&entry);
        self.recent.push_back(entry);
        while self.recent.len() > RECENT_ENTRIES || self.recent_bytes > RECENT_BYTES && self.recent.len() > 1 {
            self.forget_oldest();
        }
        copy
    }

    /// Remembers entries that were read again.
    pub fn recall(&mut self, entries: impl IntoIterator<Item = Arc<Entry>>) {
        for entry in entries {
            // One that is in memory already must not be forgotten with the recalled ones.
            if self.remember(&entry) {
                self.recalled.push_back(entry);
            }
        }
        while self.recalled.len() > RECALLED_ENTRIES {
            let oldest = self.recalled.pop_front();
            self.forget(oldest);
        }
    }

    /// An idle conversation keeps few entries in memory.
    pub fn shrink(&mut self) {
        for old in std::mem::take(&mut self.recalled) {
            self.forget(Some(old));
        }
        while self.recent.len() > RECENT_IDLE {
            self.forget_oldest();
        }
        self.recent.shrink_to_fit();
    }

    /// An entry, if it is in memory.
    pub fn recent(&self, origin: Origin, seq: Seq) -> Option<&Arc<Entry>> {
        self.recent.iter().rev().find(|e| e.place.origin == origin && e.place.seq == seq)
    }

    /// The newest entries in memory, newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.recent.iter().rev()
    }

    fn forget_oldest(&mut self) {
        let old = self.recent.pop_front();
        self.recent_bytes -= old.as_ref().map_or(0, |e| e.body.len());
        self.forget(old);
    }

    /// Whether it was not in memory before.
    fn remember(&mut self, entry: &Arc<Entry>) -> bool {
        let same_n = self.by_n.entry(entry.by.n).or_default();
        let new = !same_n.iter().any(|e| e.place == entry.place);
        if new {
            same_n.push(entry.clone());
        }
        new
    }

    fn forget(&mut self, entry: Option<Arc<Entry>>) {
        let Some(entry) = entry else { return };
        if let Some(same_n) = self.by_n.get_mut(&entry.by.n) {
            same_n.retain(|e| e.place != entry.place);
            if same_n.is_empty() {
                self.by_n.remove(&entry.by.n);
            }
        }
    }

    fn copies(&self, from: Sender<'_>, n: u64) -> impl Iterator<Item = &Arc<Entry>> {
        let same_n = self.by_n.get(&n).into_iter().flatten();
        same_n.filter(move |e| e.by.user == *from.user && e.by.install == *from.install)
    }

    /// Held copies of `window` that are not in memory. A window wider than what clients keep in flight is
    /// answered for its end alone.
    fn not_in_memory(&self, from: Sender<'_>, window: Range<u64>) -> Vec<(Run, u64)> {
        let start = window.start.max(window.end.saturating_sub(RECENT_ENTRIES as u64 / 2));
        let mut missing = Vec::new();
        for n in start..window.end {
            for run in self.held.locate(from.user, from.install, n) {
                let (low, high) = run.range_of(n);
                let here = |e: &Arc<Entry>| e.place.origin == run.origin && (low..=high).contains(&e.place.seq);
                if !self.copies(from, n).any(here) {
                    missing.push((*run, n));
                }
            }
        }
        missing
    }

    /// Whether `user` may write this here. A valid receipt says that a region has checked it before (R10).
    fn admit(&self, court: Court<'_>, user: &UserId, send: &SendRequest, proven: bool) -> Result<Admitted, Refusal> {
        let own = Own::read(send.kind, &send.body)?;
        match &self.fold.members {
            Members::Pair(a, b) => {
                if user != a && user != b {
                    return Err(Refusal::new(Code::NotMember, "the sender is not in this conversation"));
                }
                self.admit_direct(court, user, if user == a { b } else { a }, own.as_ref())
            }
            Members::Group(group) => self.admit_to_group(group, user, send, own.as_ref(), proven),
            Members::Unknown => match &send.peer {
                Some(peer) => self.admit_direct(court, user, peer, own.as_ref()),
                None => self.admit_to_group(&Membership::default(), user, send, own.as_ref(), proven),
            },
        }
    }

    fn admit_direct(
        &self,
        court: Court<'_>,
        user: &UserId,
        peer: &UserId,
        own: Option<&Own>,
    ) -> Result<Admitted, Refusal> {
        let id = self.conversation;
        let own_log = user == peer && ConvId::own(court.direct_salt, user) == id;
        if !own_log && ConvId::direct(court.direct_salt, user, peer) != id {
            let text = "the conversation's id is not that of the sender and the peer";
            return Err(Refusal::new(Code::NotMember, text));
        }
        match own {
            None | Some(Own::EraseMine) => {}
            Some(Own::Cell(cell)) if own_log && is_own_key(&cell.key) => {}
            Some(Own::Erase { user: author, .. }) if author == user => {}
            Some(Own::Erase { .. }) => {
                return Err(Refusal::new(Code::NotAllowed, "only its author may erase a message here"));
            }
            Some(_) => return Err(Refusal::new(Code::BadChange, "a direct conversation has no such change")),
        }
        Ok(Admitted::Direct(peer.clone()))
    }

    fn admit_to_group(
        &self,
        group: &Membership,
        user: &UserId,
        send: &SendRequest,
        own: Option<&Own>,
        proven: bool,
    ) -> Result<Admitted, Refusal> {
        if let Some(Own::Create(create)) = own
            && ConvId::group(user, &create.nonce) != self.conversation
        {
            return Err(Refusal::new(Code::BadChange, "the group's id does not follow from its creator and nonce"));
        }
        if proven {
            return Ok(Admitted::Group);
        }
        if let Some(Own::Create(_)) = own {
            if send.n != 1 {
                return Err(Refusal::new(Code::BadChange, "a creation is the first message of its install"));
            }
            group.authorize(user, &Own::read(send.kind, &send.body)?.unwrap_or(Own::EraseMine))?;
            return Ok(Admitted::Group);
        }
        if let Some(named) = &send.named
            && !self.holds(&named.by)
            && self.head(named.place.origin) < named.place.seq
            && !on(Mutant::NewestMembershipNotNamed)
        {
            let text = "this region lacks a change of members that the sender has seen: offer it";
            return Err(Refusal::new(Code::Behind, text));
        }
        if !group.is_created() {
            let text = "this region does not know the conversation: name the peer, or offer the creation";
            return Err(Refusal::new(Code::UnknownConversation, text));
        }
        if !group.is_present(user) {
            return Err(Refusal::new(Code::NotMember, "the sender is not in this group"));
        }
        match own {
            None | Some(Own::EraseMine) => {}
            Some(Own::Cell(cell)) if is_own_key(&cell.key) => {
                return Err(Refusal::new(Code::BadChange, "such a cell belongs into the user's own log"));
            }
            Some(Own::Cell(_)) if group.members_add() || group.is_admin(user) => {}
            Some(Own::Cell(_)) => {
                return Err(Refusal::new(Code::NotAllowed, "only an admin may do that in this group"));
            }
            Some(Own::Erase { user: author, .. }) if author == user || group.is_admin(user) => {}
            Some(Own::Erase { .. }) => {
                return Err(Refusal::new(Code::NotAllowed, "only its author or an admin may erase a message"));
            }
            Some(change) => group.authorize(user, change)?,
        }
        Ok(Admitted::Group)
    }

    /// A message is erased that its author wrote before some moment: its copies may have later places.
    pub fn erase_copies(&mut self, by: &Identity) {
        if self.held.locate(&by.user, &by.install, by.n).nth(1).is_some() {
            self.fold.erase_copies(by);
        }
    }

    /// Takes the bodies of erased messages out of memory. Returns which of the held copies lie where, as far as
    /// that is known: each is a run of a log to be read and its messages to be erased in the store.
    pub fn erase(&mut self, what: &Erasing) -> Vec<Run> {
        let Self { fold, recent, recalled, by_n, recent_bytes, held, .. } = self;
        let swap = |e: &mut Arc<Entry>| {
            if !e.erased && fold.is_erased(e) {
                *e = Arc::new(e.to_erased());
            }
        };
        recent.iter_mut().chain(recalled).chain(by_n.values_mut().flatten()).for_each(swap);
        *recent_bytes = recent.iter().map(|e| e.body.len()).sum();
        match what {
            Erasing::One(by) => held
                .locate(&by.user, &by.install, by.n)
                .map(|run| {
                    let (seq_from, seq_to) = run.range_of(by.n);
                    Run { from: by.n, to: by.n, seq_from, seq_to, ..*run }
                })
                .collect(),
            Erasing::Mine(user, _) => held.of_user(user).copied().collect(),
        }
    }

    /// What a restart needs instead of reading the logs from their beginning.
    pub fn checkpoint(&self) -> Bytes {
        let mut out = Vec::new();
        out.put_u8(CHECKPOINT_FORMAT);
        out.put_u32(u32::try_from(self.heads.len()).unwrap_or(u32::MAX));
        for (origin, seq) in &self.heads {
            out.put_u8(origin.region);
            out.put_u64(origin.era);
            out.put_u64(*seq);
        }
        out.put_u64(self.highest_hlc);
        out.put_u64(self.counted);
        self.fold.encode(&mut out);
        self.held.encode(&mut out);
        out.into()
    }

    /// From a checkpoint; entries above its heads are then applied. `None` where the bytes are none: the logs
    /// are read from their beginning.
    pub fn from_checkpoint(conversation: ConvId, mut b: Bytes) -> Option<Self> {
        let mut state = Self::new(conversation);
        if b.try_get_u8().ok()? != CHECKPOINT_FORMAT {
            return None;
        }
        for _ in 0..b.try_get_u32().ok()? {
            let origin = Origin { region: b.try_get_u8().ok()?, era: b.try_get_u64().ok()? };
            state.heads.insert(origin, b.try_get_u64().ok()?);
        }
        state.highest_hlc = b.try_get_u64().ok()?;
        state.counted = b.try_get_u64().ok()?;
        state.fold = Fold::decode(&mut b)?;
        state.held = HeldIdentities::decode(&mut b)?;
        mutant!(IdentitiesForgotten => state.held = HeldIdentities::default());
        Some(state)
    }
}

/// Where a message may be written.
enum Admitted {
    /// To this user.
    Direct(UserId),
    Group,
}

#[cfg(test)]
#[path = "sequencer_tests.rs"]
mod tests;
