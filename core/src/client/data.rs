//! What a client keeps: the values, and the changes that a local store applies atomically.
//!
//! The machine never writes; it hands out [`Op`]s. All ops of a step are applied in one transaction before
//! anything else of the step takes effect, so a crash leaves either nothing of the step, or all of it with
//! its effects still to be done again. [`Image`] is what a machine is built from; a store whose transaction
//! failed is read again, so a full disk is handled like a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::intervals::Intervals;
use crate::buckets::RowView;
use crate::entry::Entry;
use crate::fold::Erasing;
use crate::ids::{ConvId, Cursor, Heads, Identity, InstallId, Origin, Place, Region, Seq, UserId};
use crate::mutants::{Mutant, on};
use crate::mutated;
use crate::receipt::Receipt;

/// A message on this device: stays the same from the moment it is written or first seen, whatever becomes of
/// its identity and place. Not known to any server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageState {
    /// Of somebody else, or of another device of this user.
    Received,
    /// In the outbox: not acked yet.
    Queued,
    /// Refused with this code (see [`crate::codes::Code`]); holds back its followers until it is retried or
    /// discarded.
    Failed(u32),
    /// Durable in one region. Kept here so that it can be offered elsewhere.
    Sent,
    /// Durable in a second region, or the only region says that this is all there is.
    Stable,
    /// Released without being stable: more was waiting than is kept, or it was erased.
    AtRisk,
    /// Refused with this code by one region, while another may have taken it before: not known until that one is
    /// reached, or a copy is received (R10). Holds nothing back.
    Unknown(u32),
}

impl MessageState {
    /// Stored form.
    pub fn to_code(self) -> i64 {
        match self {
            Self::Received => 0,
            Self::Queued => 1,
            Self::Sent => 2,
            Self::Stable => 3,
            Self::AtRisk => 4,
            Self::Failed(code) => 1000 + i64::from(code),
            Self::Unknown(code) => UNKNOWN + i64::from(code),
        }
    }

    /// From the stored form; `None` where it is damaged.
    pub fn from_code(code: i64) -> Option<Self> {
        Some(match code {
            0 => Self::Received,
            1 => Self::Queued,
            2 => Self::Sent,
            3 => Self::Stable,
            4 => Self::AtRisk,
            code if code >= UNKNOWN => Self::Unknown(u32::try_from(code - UNKNOWN).ok()?),
            code => Self::Failed(u32::try_from(code.checked_sub(1000)?).ok()?),
        })
    }
}

/// Above every stored form of a failure.
const UNKNOWN: i64 = 1 << 40;

/// A message as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// On this device.
    pub id: MessageId,
    /// Which conversation.
    pub conversation: ConvId,
    /// Sender, device and count; n = 0 while the conversation's id is not known yet.
    pub by: Identity,
    /// 0 = text.
    pub kind: u32,
    /// When the sender pressed send, by his clock.
    pub wall_ms: u64,
    /// The content.
    pub body: Bytes,
    /// Its place in the timeline; `None` = not acked yet: shown at the end, in order of ids.
    pub key: Option<Place>,
    /// Where it stands.
    pub state: MessageState,
    /// Not yet read here.
    pub unread: bool,
    /// Its body was erased.
    pub erased: bool,
}

/// What is kept of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationRecord {
    /// Derived for direct conversations; before the deployment's salt is known, derived without it.
    pub id: ConvId,
    /// Direct conversations: the other user.
    pub peer: Option<UserId>,
    /// The next n of the current install.
    pub next_n: u64,
    /// The highest hlc held, acks included.
    pub seen_hlc: u64,
    /// Read up to here.
    pub mark: Heads,
    /// A server has told its row; what it said last is in the fields below.
    pub sighted: bool,
    /// Of the row: 0 = member, 1 = left, 2 = large.
    pub state: u32,
    /// Of the row: of the membership.
    pub generation: u64,
    /// Of the row.
    pub heads: Heads,
    /// Of the row: what the user has read, as that region knows it.
    pub read: Heads,
    /// Of the row: what the other user of a direct conversation has read. Merged by maximum.
    pub peer_read: Heads,
    /// Of the row: entries up to here are from before the membership.
    pub from: Heads,
    /// Of the row: at most so many were unread; 0 once more was read here.
    pub unread_hint: u32,
    /// When the eras of logs began, as far as known: orders the eras of a region.
    pub starts: Heads,
    /// Folds of the row whose logs are known: the number of entries that was told with each.
    pub unfolded: Heads,
    /// Logs that have ended, and where: what is held above is held by no region.
    pub ended: Heads,
}

impl ConversationRecord {
    /// One of which nothing is known.
    pub fn new(id: ConvId, peer: Option<UserId>) -> Self {
        Self {
            id,
            peer,
            next_n: 1,
            seen_hlc: 0,
            mark: Heads::new(),
            sighted: false,
            state: 0,
            generation: 0,
            heads: Heads::new(),
            read: Heads::new(),
            peer_read: Heads::new(),
            from: Heads::new(),
            unread_hint: 0,
            starts: Heads::new(),
            unfolded: Heads::new(),
            ended: Heads::new(),
        }
    }

    /// The row as last told, for comparing it with a server's (R8). `None`: none was told.
    pub fn told(&self) -> Option<RowView<'_>> {
        self.sighted.then_some(RowView {
            conversation: self.id,
            heads: &self.heads,
            read: &self.read,
            peer_read: &self.peer_read,
            from: &self.from,
            state: self.state,
            generation: self.generation,
        })
    }

    /// This user is not in the group any more: what was written up to then can be read, nothing can be sent.
    pub fn has_left(&self) -> bool {
        self.state == crate::buckets::LEFT
    }
}

/// What is held of one origin's log of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginState {
    /// Told: entries up to here exist.
    pub head: Seq,
    /// What is below need not be pulled until the application pages back.
    pub floor: Seq,
    /// Hlc of the entry above the floor, once held: what is displayed below it may have holes. 0 = not known.
    pub floor_hlc: u64,
    /// Entries held.
    pub held: Intervals,
    /// Entries that can't be had, for good.
    pub lost: Intervals,
}

impl OriginState {
    /// What is still to be pulled, ascending.
    pub fn missing(&self) -> Vec<(Seq, Seq)> {
        let first = self.floor.saturating_add(1);
        if self.lost.is_empty() {
            self.held.missing(first, self.head)
        } else {
            self.held.union(&self.lost).missing(first, self.head)
        }
    }

    /// Whether everything above `seq` is held, or known to be lost.
    pub fn complete_above(&self, seq: Seq) -> bool {
        let first = seq.saturating_add(1);
        self.held.union(&self.lost).missing(first, self.head).is_empty()
    }
}

/// The outbox's part of an own message: everything but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingRecord {
    /// On this device.
    pub id: MessageId,
    /// Which conversation.
    pub conversation: ConvId,
    /// Under which install.
    pub install: InstallId,
    /// The install's count; 0 = not given yet, and never transmitted.
    pub n: u64,
    /// Queued, Failed or Sent.
    pub state: MessageState,
    /// The lowest display key that was acked, and its proof.
    pub acked: Option<(Place, Receipt)>,
    /// Where it is known to be held: per origin its seq there and the display key of that copy.
    pub places: BTreeMap<Origin, (Seq, Place)>,
    /// Groups: stores that it was transmitted to and that have not refused it. Stored before the transmission.
    pub tried: BTreeSet<Origin>,
}

/// An own message with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Everything but the content.
    pub record: OutgoingRecord,
    /// 0 = text.
    pub kind: u32,
    /// When the user pressed send.
    pub wall_ms: u64,
    /// The content.
    pub body: Bytes,
}

/// One change of what is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The install id under which new messages are counted; `fresh`: counts start at 1 again.
    Install {
        /// The id.
        install: InstallId,
        /// Whether it is a new one.
        fresh: bool,
    },
    /// What ids of direct conversations are made with.
    Salt(Bytes),
    /// A conversation's id has become known: move all that is kept of `from`.
    Rename {
        /// Made without the salt.
        from: ConvId,
        /// Made with it.
        to: ConvId,
    },
    /// Replace or add.
    Conversation(ConversationRecord),
    /// Replace or add.
    Vector {
        /// Which conversation.
        conversation: ConvId,
        /// Which log.
        origin: Origin,
        /// What is held of it.
        state: OriginState,
    },
    /// A copy of a message: adds the message, or notes a further copy of it.
    Entry {
        /// The message's id if it is new.
        id: MessageId,
        /// Which conversation.
        conversation: ConvId,
        /// As received, or for an own message as acked.
        entry: Arc<Entry>,
        /// Whether this copy makes it unread: only while every copy does.
        unread: bool,
    },
    /// A new own message.
    Queue(Outgoing),
    /// Replace the outbox's part of an own message.
    Outgoing(OutgoingRecord),
    /// The outbox is done with it; the message stays, in this state.
    Release {
        /// Which.
        id: MessageId,
        /// Stable or AtRisk.
        state: MessageState,
    },
    /// The message and all that is kept of it.
    Discard(MessageId),
    /// Messages of which any copy lies under the mark are read.
    Read {
        /// Which conversation.
        conversation: ConvId,
        /// Up to where, per origin.
        mark: Heads,
    },
    /// Nothing of this user is unread: he was blocked.
    ReadFrom(UserId),
    /// An entry of one of tern's own kinds, which a machine folds: kept whole, beside the message that it is too.
    Fact {
        /// Which conversation.
        conversation: ConvId,
        /// With its body.
        entry: Arc<Entry>,
    },
    /// A fact that no longer counts.
    Forget {
        /// Which conversation.
        conversation: ConvId,
        /// Whose log.
        origin: Origin,
        /// Position there.
        seq: Seq,
    },
    /// Drops the bodies of placed messages, but of none of tern's own kinds.
    Erase {
        /// Which conversation.
        conversation: ConvId,
        /// Which messages.
        what: Erasing,
    },
    /// Copies of a log above its end give no message its place while another copy is held (R4). Replaces what was
    /// said of that log before.
    Void {
        /// Which conversation.
        conversation: ConvId,
        /// Whose log.
        origin: Origin,
        /// Where it has ended.
        above: Seq,
    },
    /// What a server folded of a conversation whose entries are not all held: a `Cells` message.
    Folded {
        /// Which conversation.
        conversation: ConvId,
        /// Its encoding.
        cells: Bytes,
    },
    /// How far the rows of one region were heard of; replaces that region's.
    Cursor(Cursor),
    /// So many connections were made: orders them, see `Commit.order` of the wire.
    Connections(u64),
    /// What is remembered of networks, in a form of the machine's own. Advice: it may be lost.
    Networks(Bytes),
    /// The newest dispatch answer, as it came, and when.
    Dispatch {
        /// JSON.
        answer: Bytes,
        /// Calendar clock.
        wall_ms: u64,
    },
}

/// All that a machine is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The install id under which new messages are counted.
    pub install: InstallId,
    /// See [`Op::Salt`].
    pub salt: Option<Bytes>,
    /// Above every [`MessageId`] ever given out.
    pub next_id: u64,
    /// See [`Op::Connections`].
    pub connections: u64,
    /// One per region.
    pub cursors: BTreeMap<Region, Cursor>,
    /// All conversations.
    pub conversations: BTreeMap<ConvId, ConversationImage>,
    /// The outbox, ascending ids.
    pub outgoing: Vec<Outgoing>,
    /// See [`Op::Dispatch`].
    pub dispatch: Option<(Bytes, u64)>,
    /// See [`Op::Networks`].
    pub networks: Option<Bytes>,
}

/// What a machine knows of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ConversationImage {
    /// Its record.
    pub record: ConversationRecord,
    /// What is held, per origin.
    pub origins: BTreeMap<Origin, OriginState>,
    /// See [`Op::Fact`]; in no particular order.
    pub facts: Vec<Arc<Entry>>,
    /// See [`Op::Folded`].
    pub folded: Option<Bytes>,
}

impl ConversationImage {
    /// Of one of which only the record is known.
    pub fn new(record: ConversationRecord) -> Self {
        Self { record, origins: BTreeMap::new(), facts: Vec::new(), folded: None }
    }
}

/// What an applied op changed in a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which conversation.
    pub conversation: ConvId,
    /// Which message.
    pub id: MessageId,
    /// What happened.
    pub what: Placed,
}

/// See [`Change`]. `after` is the message before it in the timeline; `None` = it is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// New, behind all placed messages.
    Appended,
    /// New, between others: a late entry.
    Inserted {
        /// Its predecessor.
        after: Option<MessageId>,
    },
    /// Was shown before, and stands elsewhere now: an own message that was acked, or a lower copy came.
    Moved {
        /// Its predecessor.
        after: Option<MessageId>,
    },
    /// Its body was erased; it stays where it is.
    Erased,
}

/// Bytes whose order is the order of places: for stores that compare bytes.
pub fn key_bytes(place: Place) -> [u8; 25] {
    let mut out = [0; 25];
    out[..8].copy_from_slice(&place.hlc.to_be_bytes());
    out[8] = place.origin.region;
    out[9..17].copy_from_slice(&place.origin.era.to_be_bytes());
    out[17..].copy_from_slice(&place.seq.to_be_bytes());
    out
}

/// The place of [`key_bytes`]; `None` where the bytes are damaged.
pub fn key_from_bytes(bytes: &[u8]) -> Option<Place> {
    if bytes.len() != 25 {
        return None;
    }
    let u64_at = |at: usize| bytes[at..at + 8].try_into().ok().map(u64::from_be_bytes);
    Some(Place { hlc: u64_at(0)?, origin: Origin { region: bytes[8], era: u64_at(9)? }, seq: u64_at(17)? })
}

/// How a further copy changes a message that is shown already (R4): the lowest key counts, whatever came
/// first, so that every device shows the same order; and a message is unread only while all its copies are
/// above the read mark, so that a copy from another region makes nothing unread again.
pub fn merge_copy(shown: (Option<Place>, bool), copy_key: Place, copy_unread: bool) -> (Place, bool) {
    (shown.0.map_or(copy_key, |k| mutated!(FirstCopyWins => k; k.min(copy_key))), shown.1 && copy_unread)
}

/// Which install id to use at a start, from what two places say (R3): the local store, and the platform's key
/// store, which is not part of a backup. Each holds (install id, number of starts). A store that was brought
/// back from a backup, or cloned to another phone, would count messages again that were sent meanwhile; so
/// unless both agree in all, new messages are counted under a new id. Un-acked ones keep theirs: a message
/// that was transmitted once must never get a second identity.
///
/// Returns the id, the number of this start, and whether the id is new.
pub fn choose_install(
    store: Option<&(InstallId, u64)>,
    keys: Option<&(InstallId, u64)>,
    fresh: InstallId,
) -> (InstallId, u64, bool) {
    let starts = store.map_or(0, |s| s.1).max(keys.map_or(0, |k| k.1)).saturating_add(1);
    match (store, keys) {
        (Some(a), Some(b)) if a == b => (a.0.clone(), starts, false),
        (Some(a), _) if on(Mutant::InstallKept) => (a.0.clone(), starts, false),
        _ => (fresh, starts, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_bytes_order_as_places_do_and_come_back() {
        let place = |hlc, region, era, seq| Place { hlc, origin: Origin { region, era }, seq };
        let mut places =
            [place(1, 2, 3, 4), place(1, 2, 4, 1), place(2, 1, 0, 1), place(1, 1, u64::MAX, 9), place(1, 2, 3, 5)];
        places.sort_unstable();
        assert!(places.windows(2).all(|w| key_bytes(w[0]) < key_bytes(w[1])));
        assert!(places.iter().all(|p| key_from_bytes(&key_bytes(*p)) == Some(*p)));
        assert_eq!(key_from_bytes(&[0; 24]), None);
    }

    #[test]
    fn message_states_survive_their_stored_form() {
        use MessageState as S;
        for state in
            [S::Received, S::Queued, S::Sent, S::Stable, S::AtRisk, S::Failed(0), S::Failed(13), S::Unknown(31)]
        {
            assert_eq!(S::from_code(state.to_code()), Some(state));
        }
        assert_eq!(S::from_code(-7), None);
        assert_eq!(S::from_code(500), None);
    }

    #[test]
    fn a_reinstall_a_clone_and_a_restored_backup_get_a_new_install_id() {
        let id = |text: &str| InstallId::new(text).unwrap();
        let (old, new) = (id("old"), id("new"));
        let both = (old.clone(), 7);
        assert_eq!(choose_install(Some(&both), Some(&both), new.clone()), (old.clone(), 8, false), "a usual start");
        assert_eq!(choose_install(None, None, new.clone()), (new.clone(), 1, true), "first start");
        assert_eq!(choose_install(None, Some(&both), new.clone()), (new.clone(), 8, true), "the store was deleted");
        assert_eq!(choose_install(Some(&both), None, new.clone()), (new.clone(), 8, true), "cloned to another phone");
        let earlier = (old.clone(), 5);
        assert_eq!(choose_install(Some(&earlier), Some(&both), new.clone()), (new.clone(), 8, true), "a backup");
        let other = (id("other"), 7);
        assert_eq!(choose_install(Some(&both), Some(&other), new.clone()), (new, 8, true));
    }
}
