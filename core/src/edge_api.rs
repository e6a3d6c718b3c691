//! What an edge and the core of its region say to each other.
//!
//! The region's own edge hands these values over in memory; other edges carry them over an edge link, see
//! `core/proto/tern/node/v1`. Hot frames are typed, so that an entry is shared rather than copied; the rest
//! travels as the client's own frames.
//!
//! The edge checks tokens, limits, ids and references; the core trusts what comes from an edge of its
//! region, and keeps nothing for a connection but presence.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::codes::Refusal;
use crate::entry::Entry;
use crate::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Rev, Seq, UserId};
use crate::pressure::Level;
use crate::receipt::Receipt;
use crate::wire::{node_v1, v1};

/// A connection, as its edge numbers it: unique within one start of that edge.
pub type ConnId = u64;

/// Transport of an operator's own connection, which no edge reports: the limit of devices is not for it.
pub const OPERATOR: &str = "operator";

/// A client's `Send`, with references resolved. `user` and `install` are the connection's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendRequest {
    /// Which conversation.
    pub conversation: ConvId,
    /// Direct conversations: the other user. May be absent where the region knows the conversation.
    pub peer: Option<UserId>,
    /// The install's count in this conversation, from 1.
    pub n: u64,
    /// The lowest n that is not acked yet; 1..=n.
    pub floor: u64,
    /// The highest hlc that the device holds in the conversation.
    pub seen_hlc: u64,
    /// What the body is.
    pub kind: u32,
    /// At most `limits::BODY_BYTES`.
    pub body: Bytes,
    /// The user's clock.
    pub wall_ms: u64,
    /// A re-offer: display key and receipt of the first ack.
    pub offer: Option<(Place, Bytes)>,
    /// An offer of a membership entry.
    pub membership: Option<Box<MembershipOffer>>,
    /// Groups: the newest membership entry that the client holds.
    pub named: Option<Box<Named>>,
}

/// What an offer of a membership entry has besides place and receipt (R10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipOffer {
    /// Who wrote it: not the connection's user, where a member offers another's entry.
    pub author: (UserId, InstallId),
    /// Its stamp's cut.
    pub cut: Heads,
}

/// An entry that a client holds, by place and by identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where the client has it.
    pub place: Place,
    /// Any copy of it will do.
    pub by: Identity,
}

/// One held message in an ack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldAck {
    /// Which message of the install.
    pub n: u64,
    /// Its own place here.
    pub place: Place,
    /// Its display key, where it is not its place.
    pub first: Option<Place>,
    /// The proof.
    pub receipt: Receipt,
    /// Membership entries: the cut of its stamp, which the receipt covers; otherwise empty.
    pub cut: Heads,
}

/// Edge to core.
#[derive(Clone, Debug)]
pub enum Up {
    /// A client said a Hello that the edge accepted. The core answers with `Welcome` or a refusal.
    Open {
        /// The connection.
        conn: ConnId,
        /// Of the Hello's frame.
        req: u32,
        /// By the token.
        user: UserId,
        /// By the Hello.
        install: InstallId,
        /// Without its token.
        hello: Box<v1::Hello>,
        /// As the edge sees it.
        address: String,
        /// "quic", "tcp", "ws" or "poll".
        transport: &'static str,
        /// Of the token, wall clock.
        token_expires_ms: u64,
        /// Of the token, wall clock.
        token_issued_ms: u64,
    },
    /// A message.
    Send {
        /// The connection.
        conn: ConnId,
        /// To be echoed in Ack or Error.
        req: u32,
        /// What to sequence.
        send: SendRequest,
    },
    /// Any other frame that the edge does not answer itself: Commit, Ping, PushAck, PullRows, PullEntries,
    /// Unstable, Network.
    Frame {
        /// The connection.
        conn: ConnId,
        /// As decoded.
        frame: v1::Frame,
    },
    /// The connection, which another core node has accepted, is about to speak of conversations that are this node's.
    Attach {
        /// The connection.
        conn: ConnId,
        /// By the token.
        user: UserId,
        /// By the Hello.
        install: InstallId,
        /// Of the token, wall clock.
        token_issued_ms: u64,
    },
    /// The connection is in use, and its user is this core node's now: it was another's.
    Resume {
        /// The connection.
        conn: ConnId,
        /// By the token.
        user: UserId,
        /// By the Hello.
        install: InstallId,
        /// Of the token, wall clock.
        token_issued_ms: u64,
        /// Of its Commit.
        order: u64,
    },
    /// The connection is gone.
    Close {
        /// The connection.
        conn: ConnId,
    },
}

impl Up {
    /// Which connection it is from.
    pub fn conn(&self) -> ConnId {
        match self {
            Up::Open { conn, .. }
            | Up::Send { conn, .. }
            | Up::Frame { conn, .. }
            | Up::Attach { conn, .. }
            | Up::Resume { conn, .. }
            | Up::Close { conn } => *conn,
        }
    }
}

/// Core to edge, for one connection.
#[derive(Clone, Debug)]
pub struct Down {
    /// The connection.
    pub conn: ConnId,
    /// What to write to it.
    pub body: DownBody,
}

/// See [`Down`].
#[derive(Clone, Debug)]
pub enum DownBody {
    /// Answers a Send.
    Ack {
        /// Of the Send.
        req: u32,
        /// What became of it.
        ack: Ack,
    },
    /// May be dropped where the connection's queue is full: `Advance` takes its place.
    Push(Arc<Push>),
    /// Part of the answer to a PullEntries.
    Page {
        /// Of the PullEntries.
        req: u32,
        /// The part.
        page: Page,
    },
    /// Any other frame.
    Frame(Box<v1::Frame>),
    /// Write it, then close the connection with this code.
    Last(Refusal),
}

/// See [`DownBody::Ack`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The message's own place here.
    pub place: Place,
    /// Its display key, where it is not its place.
    pub first: Option<Place>,
    /// The proof.
    pub receipt: Receipt,
    /// Membership entries: the cut of its stamp, which the receipt covers; otherwise empty.
    pub cut: Heads,
    /// What is held of floor..n-1.
    pub also: Vec<HeldAck>,
    /// The offered receipt proved nothing.
    pub receipt_refused: bool,
}

/// See [`DownBody::Push`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Which conversation.
    pub conversation: ConvId,
    /// Direct conversations: the other user, as the receiver names him.
    pub peer: Option<UserId>,
    /// New entries, ascending within each origin. None: only the row changed.
    pub entries: Vec<Arc<Entry>>,
    /// All heads of the row at `rev`.
    pub heads: Heads,
    /// The user's rev before.
    pub prev_rev: Rev,
    /// The user's rev after.
    pub rev: Rev,
    /// The rest of the row, where it changed or is not the plain row of a member.
    pub row: Option<Box<RowState>>,
}

/// What a row says besides its heads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowState {
    /// See `store::RowRecord::state`.
    pub state: u32,
    /// Of the membership.
    pub generation: u64,
    /// Entries up to here are from before the membership.
    pub from: Heads,
    /// The user's read mark.
    pub read: Heads,
    /// Direct conversations: the other user's read mark.
    pub peer_read: Heads,
}

/// See [`DownBody::Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Which conversation.
    pub conversation: ConvId,
    /// Which log.
    pub origin: Origin,
    /// In the order asked for.
    pub entries: Vec<Arc<Entry>>,
    /// (from, to, reason).
    pub gaps: Vec<(Seq, Seq, v1::gap::Reason)>,
    /// The answer ends here.
    pub last: bool,
}

/// The core of the region as an edge sees it: in memory, or over an edge link.
pub trait CorePort: Send + Sync + std::fmt::Debug + 'static {
    /// Hands over what connections said, in order. Never blocks; what waits is bounded by
    /// [`crate::limits::IN_FLIGHT`] per connection.
    fn submit(&self, ups: Vec<Up>);
    /// Whether the core is there. After it was not, every connection that was open is unknown to the core.
    fn reachable(&self) -> bool;
    /// Whether all of the region can be served through it. Where several core nodes share it, some may be missing for a
    /// while: the connections that are open stay, and new ones are better off elsewhere.
    fn whole(&self) -> bool {
        self.reachable()
    }
    /// So much waits to be handed over that what can be refused should be: sends and pulls, with advice to
    /// come again. What is submitted all the same is taken.
    fn crowded(&self) -> bool {
        false
    }
    /// So much is given up under load here, by what this edge has measured of the whole way of a Send. Told a few
    /// times a second while it is anything, to a core of the same process: it is the same machine that is busy.
    fn pressure(&self, level: Level) {
        let _a_core_elsewhere_measures_itself = level;
    }
    /// What an ack takes at least for the sake of durability, with nothing waiting: refusing sends does not shorten
    /// it. `None` where that is not known; then the time that acks take says nothing of the load.
    fn commit_time(&self) -> Option<Duration> {
        None
    }
    /// The edge's load, once a second: for dispatch only.
    fn report(&self, load: node_v1::EdgeLoad);
}

/// An edge as the core of its region sees it: in memory, or over an edge link.
pub trait EdgePort: Send + Sync + std::fmt::Debug + 'static {
    /// Hands over what connections are to be told, in order. Never blocks: the edge bounds each
    /// connection's queue and lets pushes give way to `Advance`.
    fn deliver(&self, downs: Vec<Down>);
    /// Hands back what is another core node's to answer: see [`crate::router::Router::bounced`].
    fn bounced(&self, ups: Vec<Up>) {
        let _an_edge_with_one_core_is_never_handed_anything_back = ups;
    }
    /// Tells who owns which slots of the region, where several core nodes share them: all of it at first, then what
    /// changed.
    fn owners(&self, owners: node_v1::Owners) {
        let _an_edge_with_one_core_asks_no_other = owners;
    }
    /// Tells that this core node is stopped in order and expects to be back. Whether the edge keeps its connections until
    /// then: it wants to be handed back what is new, and says [`Up::Resume`] to the next start.
    fn stopping(&self) -> bool {
        false
    }
}
