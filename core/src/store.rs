//! What the messaging core asks of a store, and no more (R1, R2, R6).
//!
//! The trait promises only what Scylla can keep: one log's append is decided alone; rows are idempotent;
//! todo is written apart from and no later than the entry it stands for; nothing spans two logs. The
//! embedded store does more in one commit, but nobody above may rely on it.
//!
//! Every implementation passes the contract suite in `replication/src/store/contract.rs`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::entry::Entry;
use crate::ids::{ConvId, Heads, Identity, Origin, Region, Rev, Seq, UserId};

/// A future that a store, a network or a clock hands out.
pub type BoxFut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// For whom work remains: the rows of the members here, or a peer region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Fan-out to the members' rows.
    Fanout,
    /// A peer region.
    Peer(Region),
}

/// How far the target of one conversation has got, per origin; written when a conversation turns active,
/// durable no later than the first entry it stands for, and replaced whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Todo {
    /// For whom.
    pub target: Target,
    /// Which conversation.
    pub conversation: ConvId,
    /// Everything up to here is done; an origin that is absent has nothing to do. Empty = remove the row.
    pub prefix: Heads,
    /// Read marks of this user are to be told to a peer region: `conversation` is his own log, and the prefix has
    /// his rev up to which that is done, under an origin of era 0.
    pub user: Option<UserId>,
}

/// A batch of one log.
#[derive(Clone, Debug)]
pub struct Append {
    /// Which conversation.
    pub conversation: ConvId,
    /// Whose log: the region's own, or a copy of another's.
    pub origin: Origin,
    /// The owner's epoch: an append of an older epoch is fenced.
    pub epoch: u64,
    /// Contiguous, ascending, the first following the log's head. Not empty.
    pub entries: Vec<Arc<Entry>>,
    /// Work that these entries cause, where it is not noted yet.
    pub todo: Vec<Todo>,
}

/// What became of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Durable, and so is its todo. Nothing can undo it.
    Decided,
    /// Another owner has the log: nothing was written, and the caller must stop serving it.
    Fenced,
    /// The disk is nearly full: nothing was written.
    Full,
    /// The log is damaged and refused: nothing was written.
    Damaged,
    /// Not known: the caller reads the log's head before it writes anything else.
    Unknown(String),
}

/// A user's row as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowRecord {
    /// Its revision.
    pub rev: Rev,
    /// Full vector, clipped to the user's cut.
    pub heads: Heads,
    /// Read mark.
    pub read: Heads,
    /// Direct conversations: the other user's read mark.
    pub peer_read: Heads,
    /// Entries up to here are from before the membership.
    pub from: Heads,
    /// 0 = member, 1 = left, 2 = large.
    pub state: u32,
    /// Of the membership.
    pub generation: u64,
    /// Direct conversations: the other user.
    pub peer: Option<UserId>,
    /// hlc of the newest entry: the order of the preview.
    pub last_hlc: u64,
    /// Countable entries per origin up to heads: the unread hint is a difference of sums.
    pub counted: u64,
}

/// An idempotent write.
#[derive(Clone, Debug)]
pub enum Put {
    /// A user's row. Replaced only by one of a higher rev.
    Row {
        /// Whose.
        user: UserId,
        /// Which conversation.
        conversation: ConvId,
        /// The row.
        row: RowRecord,
    },
    /// A todo row, or its removal.
    Todo(Todo),
    /// What was folded from a conversation's logs: opaque to the store.
    Checkpoint {
        /// Which conversation.
        conversation: ConvId,
        /// See `node::checkpoint`.
        value: Bytes,
    },
    /// Replaces a stored entry by its erased form: no body, `erased` set, all else as it was, so that the chain
    /// over body hashes still holds (R16). Nothing happens where the entry is not held or erased already.
    Erase {
        /// Which conversation.
        conversation: ConvId,
        /// Whose log.
        origin: Origin,
        /// Which entry.
        seq: Seq,
        /// Who wrote it: a store that does not have it at hand, but in an archive, notes the erasure by that.
        by: Identity,
    },
    /// A named value of the region.
    Meta {
        /// Name.
        key: String,
        /// Value.
        value: Bytes,
    },
}

/// How soon a put must be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// With the next forced write, within [`crate::limits::LAZY_SYNC`].
    Lazy,
    /// When the future ends.
    Synced,
}

/// What a store knows of a conversation without reading its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConversationImage {
    /// Head of each log.
    pub heads: Heads,
    /// The highest hlc of all logs.
    pub highest_hlc: u64,
    /// The newest checkpoint.
    pub checkpoint: Option<Bytes>,
    /// Logs that are refused, each with the place and kind of its damage.
    pub damaged: BTreeMap<Origin, String>,
}

/// A range of one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which conversation.
    pub conversation: ConvId,
    /// Whose log.
    pub origin: Origin,
    /// First seq.
    pub from: Seq,
    /// Last seq.
    pub to: Seq,
    /// At most so many entries.
    pub max_entries: usize,
    /// Ends once it holds so many bytes of stored form (at least one entry is returned).
    pub max_bytes: usize,
    /// From `to` down.
    pub backwards: bool,
}

/// A read or write that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The log was refused when the store was opened.
    #[error("log {conversation} of {origin} is damaged: {what}")]
    Damaged {
        /// Which conversation.
        conversation: ConvId,
        /// Whose log.
        origin: Origin,
        /// Place and kind.
        what: String,
    },
    /// What was asked for lies in an archive that can't be read at the moment. It is not lost: try again.
    #[error("the archive can't be read: {0}")]
    Archive(String),
    /// The backend failed. Reads may be tried again; of a write nothing is known.
    #[error("the store failed: {0}")]
    Backend(String),
}

/// A conversation and the head of each of its logs, as a list of all conversations tells them.
pub type ConversationHeads = (ConvId, Heads);

/// A user, and his read marks that are not empty.
pub type UserMarks = (UserId, Vec<(ConvId, Heads)>);

/// Where a region keeps what must outlive it.
pub trait Store: Send + Sync + Debug + 'static {
    /// Appends batches of different logs; each is decided alone, in the order given. At most one batch per
    /// log is in flight; the caller sees to that.
    fn append(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>>;

    /// How many calls of [`Self::append`] may be under way at once, each for other conversations than the others, at
    /// least 1. A disk is written once for a whole group, so that one group at a time is best there. Where each batch is
    /// decided by itself, each conversation is best given alone: none waits for the slowest one then.
    fn appends_at_once(&self) -> usize {
        1
    }

    /// Writes in the order given.
    fn put(&self, puts: Vec<Put>, durability: Durability) -> BoxFut<'_, Result<(), StoreError>>;

    /// Heads and checkpoint of a conversation; a conversation never heard of has an empty image.
    fn conversation(&self, conversation: ConvId) -> BoxFut<'_, Result<ConversationImage, StoreError>>;

    /// Decided entries; those above the head are simply absent.
    fn range(&self, range: Range) -> BoxFut<'_, Result<Vec<Arc<Entry>>, StoreError>>;

    /// All rows of a user, in order of the conversations' ids.
    fn rows(&self, user: UserId) -> BoxFut<'_, Result<Vec<(ConvId, RowRecord)>, StoreError>>;

    /// Users that have rows and come after `after` in an order of the store's own, at most `limit`, with their read
    /// marks. A row that can't be understood is left out.
    fn marks(&self, after: Option<UserId>, limit: usize) -> BoxFut<'_, Result<Vec<UserMarks>, StoreError>>;

    /// All todo rows, in order of (target, conversation).
    fn todo(&self) -> BoxFut<'_, Result<Vec<Todo>, StoreError>>;

    /// Conversations after `after` in order of their ids, at most `limit`, each with the heads that
    /// [`ConversationImage::heads`] would tell: refused logs are not among them, and a conversation of which every
    /// log is refused has none.
    fn conversations(
        &self,
        after: Option<ConvId>,
        limit: usize,
    ) -> BoxFut<'_, Result<Vec<ConversationHeads>, StoreError>>;

    /// A named value.
    fn meta(&self, key: &str) -> BoxFut<'_, Result<Option<Bytes>, StoreError>>;

    /// Whether what was decided outlives the machine of this process, however it ends. A region on such a store goes on
    /// in its era after any stop (R13); only an operator's word that the store was restored ends it.
    fn outlives_its_machine(&self) -> bool {
        false
    }
}

/// A store over another one, which does what the layer does not do itself: an implementation names the store below and
/// what differs. Every layer is a [`Store`].
pub trait StoreLayer: Send + Sync + Debug + 'static {
    /// The store below.
    type Below: Store + ?Sized;

    /// The store below.
    fn below(&self) -> &Self::Below;

    /// See [`Store::append`].
    fn append_through(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>> {
        self.below().append(batches)
    }

    /// See [`Store::appends_at_once`].
    fn appends_at_once_through(&self) -> usize {
        self.below().appends_at_once()
    }

    /// See [`Store::put`].
    fn put_through(&self, puts: Vec<Put>, durability: Durability) -> BoxFut<'_, Result<(), StoreError>> {
        self.below().put(puts, durability)
    }

    /// See [`Store::outlives_its_machine`].
    fn is_lasting(&self) -> bool {
        self.below().outlives_its_machine()
    }
}

impl<L: StoreLayer> Store for L {
    fn append(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>> {
        self.append_through(batches)
    }

    fn appends_at_once(&self) -> usize {
        self.appends_at_once_through()
    }

    fn put(&self, puts: Vec<Put>, durability: Durability) -> BoxFut<'_, Result<(), StoreError>> {
        self.put_through(puts, durability)
    }

    fn conversation(&self, conversation: ConvId) -> BoxFut<'_, Result<ConversationImage, StoreError>> {
        self.below().conversation(conversation)
    }

    fn range(&self, range: Range) -> BoxFut<'_, Result<Vec<Arc<Entry>>, StoreError>> {
        self.below().range(range)
    }

    fn rows(&self, user: UserId) -> BoxFut<'_, Result<Vec<(ConvId, RowRecord)>, StoreError>> {
        self.below().rows(user)
    }

    fn marks(&self, after: Option<UserId>, limit: usize) -> BoxFut<'_, Result<Vec<UserMarks>, StoreError>> {
        self.below().marks(after, limit)
    }

    fn todo(&self) -> BoxFut<'_, Result<Vec<Todo>, StoreError>> {
        self.below().todo()
    }

    fn conversations(
        &self,
        after: Option<ConvId>,
        limit: usize,
    ) -> BoxFut<'_, Result<Vec<ConversationHeads>, StoreError>> {
        self.below().conversations(after, limit)
    }

    fn meta(&self, key: &str) -> BoxFut<'_, Result<Option<Bytes>, StoreError>> {
        self.below().meta(key)
    }

    fn outlives_its_machine(&self) -> bool {
        self.is_lasting()
    }
}
