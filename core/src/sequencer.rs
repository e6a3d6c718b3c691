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
use crate::entry::Entry;
use crate::hlc;
use crate::identity::{HeldIdentities, Run};
use crate::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Seq, UserId};
use crate::limits::CLOCK_AHEAD_MS;

/// Entries kept in memory per active conversation, so that resends rarely read the store: twice what a client
/// keeps in flight. More would only be evicted from the processor's caches before it is used.
pub const RECENT_ENTRIES: usize = 128;
/// Bytes of bodies among them.
pub const RECENT_BYTES: usize = 128 * 1024;
/// What a conversation keeps once it is idle.
pub const RECENT_IDLE: usize = 8;

const CHECKPOINT_FORMAT: u8 = 1;

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
    /// The two users of a direct conversation, ascending.
    pub pair: Option<(UserId, UserId)>,
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
            pair: None,
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

    /// Whether a user takes part.
    pub fn is_member(&self, user: &UserId) -> bool {
        self.pair.as_ref().is_some_and(|(a, b)| a == user || b == user)
    }

    /// The members, each once.
    pub fn members(&self) -> impl Iterator<Item = &UserId> {
        self.pair.iter().flat_map(|(a, b)| std::iter::once(a).chain((a != b).then_some(b)))
    }

    /// The other user of a direct conversation, as `user` names him.
    pub fn peer_of(&self, user: &UserId) -> Option<&UserId> {
        self.pair.as_ref().map(|(a, b)| if a == user { b } else { a })
    }

    /// Whether a copy of this identity is held.
    pub fn holds(&self, by: &Identity) -> bool {
        self.held.contains(&by.user, &by.install, by.n)
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
            if copies().any(|e| e.body_hash != *body_hash) {
                let text = format!("message {} of this install has another body here", send.n);
                return Verdict::Refuse(Refusal::new(Code::IdentityConflict, text));
            }
            if offered.is_none_or(|place| place >= lowest.display_key()) {
                return Verdict::Held(lowest.clone());
            }
        }
        let peer = match self.check_pair(court.direct_salt, user, send.peer.as_ref()) {
            Ok(peer) => peer,
            Err(refusal) => return Verdict::Refuse(refusal),
        };
        if offered.is_none() {
            if let Some(missing) = self.held.first_missing(user, install, send.floor, send.n - 1) {
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
            send.seen_hlc
        };
        Verdict::Append(Entry {
            place: Place {
                hlc: hlc::next(court.now_ms, trusted_seen, self.highest_hlc),
                origin: court.origin,
                seq: self.head(court.origin) + 1,
            },
            by: Identity { user: user.clone(), install: install.clone(), n: send.n },
            peer: Some(peer),
            kind: send.kind,
            wall_ms: send.wall_ms,
            first: offered,
            stamp: None,
            only_sender: false,
            body_hash: *body_hash,
            body: send.body.clone(),
            erased: false,
        })
    }

    /// The lowest copies of those of `window` that are held: their acks were lost, and must not be forgotten
    /// by a sender who then moves to another region. Only those in memory; `judge` has seen to that.
    pub fn also_held(&self, from: Sender<'_>, window: &Range<u64>) -> Vec<Arc<Entry>> {
        if window.is_empty() {
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
        if self.pair.is_none()
            && let Some(peer) = &entry.peer
        {
            self.pair = Some(ordered(&entry.by.user, peer));
        }
        if !copy && entry.kind == 0 {
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
            self.remember(&entry);
            self.recalled.push_back(entry);
        }
        while self.recalled.len() > RECENT_ENTRIES {
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

    fn remember(&mut self, entry: &Arc<Entry>) {
        let same_n = self.by_n.entry(entry.by.n).or_default();
        if !same_n.iter().any(|e| e.place == entry.place) {
            same_n.push(entry.clone());
        }
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

    /// Checks that `user` takes part, and returns the other one.
    fn check_pair(&self, salt: &[u8], user: &UserId, named: Option<&UserId>) -> Result<UserId, Refusal> {
        if self.pair.is_some() {
            let peer = self.peer_of(user).filter(|_| self.is_member(user)).cloned();
            return peer.ok_or_else(|| Refusal::new(Code::NotMember, "the sender is not in this conversation"));
        }
        let Some(peer) = named else {
            let text = "this region does not know the conversation: name the peer";
            return Err(Refusal::new(Code::UnknownConversation, text));
        };
        if ConvId::direct(salt, user, peer) == self.conversation {
            Ok(peer.clone())
        } else {
            Err(Refusal::new(Code::NotMember, "the conversation's id is not that of the sender and the peer"))
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
        match &self.pair {
            None => out.put_u8(0),
            Some((a, b)) => {
                out.put_u8(1);
                for user in [a, b] {
                    out.put_u8(u8::try_from(user.as_str().len()).unwrap_or(u8::MAX));
                    out.put_slice(user.as_str().as_bytes());
                }
            }
        }
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
        if b.try_get_u8().ok()? == 1 {
            let mut user = || {
                let length = usize::from(b.try_get_u8().ok()?);
                (length <= b.len()).then(|| UserId::from_bytes(&b.split_to(length)).ok())?
            };
            state.pair = Some((user()?, user()?));
        }
        state.held = HeldIdentities::decode(&mut b)?;
        Some(state)
    }
}

fn ordered(a: &UserId, b: &UserId) -> (UserId, UserId) {
    if a <= b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::body_hash;

    const EU: Origin = Origin { region: 1, era: 10 };
    const US: Origin = Origin { region: 2, era: 20 };
    const NOW: u64 = 1_000_000;

    struct Region {
        state: LogState,
        origin: Origin,
        skew: i64,
    }

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    impl Region {
        fn new(origin: Origin) -> Self {
            let id = ConvId::direct(b"s", &user("alice"), &user("bob"));
            Self { state: LogState::new(id), origin, skew: 0 }
        }

        fn judge(&self, install: &str, send: &SendRequest) -> Verdict {
            let court = Court {
                now_ms: NOW.saturating_add_signed(self.skew),
                origin: self.origin,
                direct_salt: b"s",
                receipt_valid: send.offer.as_ref().is_some_and(|(_, r)| &r[..] == b"valid"),
            };
            let install = InstallId::new(install).unwrap();
            let from = Sender { user: &user("alice"), install: &install };
            self.state.judge(court, from, send, &body_hash(&send.body), &(send.floor..send.n))
        }

        /// Sequences what must be new; returns its entry.
        fn take(&mut self, send: &SendRequest) -> Entry {
            match self.judge("phone", send) {
                Verdict::Append(entry) => {
                    self.state.apply(Arc::new(entry.clone()));
                    entry
                }
                other => panic!("{other:?}"),
            }
        }

        fn copy(&mut self, entry: &Entry) -> bool {
            self.state.apply(Arc::new(entry.clone()))
        }

        fn refused(&self, send: &SendRequest) -> Code {
            match self.judge("phone", send) {
                Verdict::Refuse(refusal) => refusal.code,
                other => panic!("{other:?}"),
            }
        }
    }

    fn send(n: u64) -> SendRequest {
        SendRequest {
            conversation: ConvId::direct(b"s", &user("alice"), &user("bob")),
            peer: Some(user("bob")),
            n,
            floor: n,
            seen_hlc: 0,
            kind: 0,
            body: Bytes::from(format!("message {n}")),
            wall_ms: 0,
            offer: None,
            membership: None,
            named: None,
        }
    }

    fn offer(n: u64, of: &Entry, receipt: &'static [u8]) -> SendRequest {
        SendRequest { offer: Some((of.display_key(), Bytes::from_static(receipt))), ..send(n) }
    }

    #[test]
    fn a_resend_is_acked_at_its_old_place() {
        let mut eu = Region::new(EU);
        let first = eu.take(&send(1));
        eu.take(&send(2));
        assert_eq!(eu.judge("phone", &send(1)), Verdict::Held(Arc::new(first)));
    }

    #[test]
    fn a_reinstall_that_counts_from_1_again_is_not_taken_for_a_resend() {
        let mut eu = Region::new(EU);
        eu.take(&send(1));
        let other = SendRequest { body: Bytes::from_static(b"hello again"), ..send(1) };
        assert!(matches!(eu.judge("reinstalled", &other), Verdict::Append(_)));
    }

    #[test]
    fn a_clone_of_a_phones_backup_gets_a_conflict_and_overwrites_nothing() {
        let mut eu = Region::new(EU);
        eu.take(&send(1));
        let clone = SendRequest { body: Bytes::from_static(b"from the clone"), ..send(1) };
        assert_eq!(eu.refused(&clone), Code::IdentityConflict);
    }

    #[test]
    fn n_11_does_not_hide_that_n_10_is_missing() {
        // m10 was acked by a region that died with it; m11 goes elsewhere first, then m10 is offered.
        let (mut eu, mut us) = (Region::new(EU), Region::new(US));
        for n in 1..=9 {
            us.copy(&eu.take(&send(n)));
        }
        let m10 = eu.take(&send(10));
        let m11 = us.take(&SendRequest { floor: 11, seen_hlc: m10.place.hlc, ..send(11) });
        let again = us.take(&offer(10, &m10, b"valid"));
        assert_eq!(again.first, Some(m10.place));
        assert!(again.display_key() < m11.display_key(), "m10 stays before m11");
    }

    #[test]
    fn the_dead_region_returns_with_m10_and_the_lowest_copy_is_acked() {
        let (mut eu, mut us) = (Region::new(EU), Region::new(US));
        let m1 = eu.take(&send(1));
        let again = us.take(&offer(1, &m1, b"valid"));
        assert!(us.copy(&m1), "a copy of what is held: no push, no unread");
        assert!(eu.copy(&again));
        for region in [&us, &eu] {
            let Verdict::Held(lowest) = region.judge("phone", &send(1)) else { panic!() };
            assert_eq!(lowest.display_key(), m1.place);
        }
    }

    #[test]
    fn a_re_offer_lower_than_every_copy_is_written_as_a_further_copy() {
        let (mut eu, mut us) = (Region::new(EU), Region::new(US));
        us.skew = 500;
        let in_eu = eu.take(&send(1));
        let in_us = us.take(&send(1)); // a race: both regions sequenced it, the client knows eu's ack
        assert!(in_eu.place < in_us.place);
        let further = us.take(&offer(1, &in_eu, b"valid"));
        assert_eq!((further.place.seq, further.first), (2, Some(in_eu.place)));
        assert!(
            matches!(us.judge("phone", &offer(1, &in_eu, b"valid")), Verdict::Held(e) if e.display_key() == in_eu.place)
        );
    }

    #[test]
    fn a_forged_receipt_gets_a_fresh_place() {
        let mut eu = Region::new(EU);
        let m1 = eu.take(&send(1));
        let forged = Entry { place: Place { hlc: 1, ..m1.place }, ..m1.clone() };
        let m2 = eu.take(&offer(2, &forged, b"forged"));
        assert_eq!(m2.first, None);
        assert!(m2.place > m1.place);
    }

    #[test]
    fn a_gap_below_n_is_refused_and_a_floor_above_it_is_not() {
        let mut eu = Region::new(EU);
        eu.take(&send(1));
        assert_eq!(eu.refused(&SendRequest { floor: 1, ..send(3) }), Code::OutOfOrder);
        // 2 was acked elsewhere: the floor says so.
        eu.take(&send(3));
        // 2 may still come, offered.
        let elsewhere = Region::new(US).take(&send(2));
        assert_eq!(eu.take(&offer(2, &elsewhere, b"valid")).first, Some(elsewhere.place));
    }

    #[test]
    fn a_roaming_sender_stays_behind_what_he_saw_and_far_stamps_are_refused() {
        let mut eu = Region::new(EU);
        eu.skew = -50;
        let seen = hlc::from_ms(NOW) + 7;
        assert_eq!(eu.take(&SendRequest { seen_hlc: seen, ..send(1) }).place.hlc, seen + 1);
        let far = hlc::from_ms(NOW + 120_000);
        assert_eq!(eu.refused(&SendRequest { seen_hlc: far, ..send(2) }), Code::Behind);
        // A copy of a region whose clock is ten minutes ahead is followed, not refused.
        let mut fast = Region::new(US);
        fast.skew = 600_000;
        let ahead = fast.take(&SendRequest { body: Bytes::from_static(b"x"), ..send(9) });
        eu.copy(&ahead);
        assert!(eu.take(&send(2)).place.hlc > ahead.place.hlc);
    }

    #[test]
    fn strangers_and_wrong_ids_are_refused() {
        let mut eu = Region::new(EU);
        assert_eq!(eu.refused(&SendRequest { peer: None, ..send(1) }), Code::UnknownConversation);
        assert_eq!(eu.refused(&SendRequest { peer: Some(user("carol")), ..send(1) }), Code::NotMember);
        eu.take(&send(1));
        eu.take(&SendRequest { peer: None, ..send(2) });
        let install = InstallId::new("m").unwrap();
        let court = Court { now_ms: NOW, origin: EU, direct_salt: b"s", receipt_valid: false };
        let mallory = Sender { user: &user("mallory"), install: &install };
        let verdict = eu.state.judge(court, mallory, &send(1), &body_hash(b"message 1"), &(1..1));
        assert!(matches!(verdict, Verdict::Refuse(r) if r.code == Code::NotMember));
    }

    #[test]
    fn acks_tell_of_what_is_held_below_n() {
        let mut eu = Region::new(EU);
        for n in 1..=3 {
            eu.take(&send(n));
        }
        let install = InstallId::new("phone").unwrap();
        let from = Sender { user: &user("alice"), install: &install };
        let also: Vec<u64> = eu.state.also_held(from, &(1..3)).iter().map(|e| e.by.n).collect();
        assert_eq!(also, [1, 2]);
    }

    #[test]
    fn old_messages_are_recalled_from_the_store_and_then_judged() {
        let mut eu = Region::new(EU);
        let first = eu.take(&send(1));
        for n in 2..=RECENT_ENTRIES as u64 + 10 {
            eu.take(&send(n));
        }
        let Verdict::Recall(wanted) = eu.judge("phone", &send(1)) else { panic!() };
        let (run, n) = wanted[0];
        assert!(run.range_of(n).0 <= 1 && 1 <= run.range_of(n).1);
        eu.state.recall([Arc::new(first.clone())]);
        assert_eq!(eu.judge("phone", &send(1)), Verdict::Held(Arc::new(first)));
    }

    #[test]
    fn a_checkpoint_says_all_but_the_bodies() {
        let mut eu = Region::new(EU);
        for n in 1..=5 {
            eu.take(&send(n));
        }
        let bytes = eu.state.checkpoint();
        let back = LogState::from_checkpoint(eu.state.conversation, bytes.clone()).unwrap();
        assert_eq!(
            (&back.heads, back.highest_hlc, &back.pair, back.counted),
            (&eu.state.heads, eu.state.highest_hlc, &eu.state.pair, 5)
        );
        assert_eq!(back.held, eu.state.held);
        for cut in 0..bytes.len() {
            assert!(LogState::from_checkpoint(eu.state.conversation, bytes.slice(..cut)).is_none());
        }
        assert_eq!(bytes[..18], [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0], "the format is pinned");
    }
}
