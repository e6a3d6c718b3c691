//! What goes into a machine besides frames, and what comes out: set-up, steps, effects, events, refusals.

use std::fmt;
use std::time::Duration;

use super::candidates::{Asking, Candidate, ConnNo, Transport};
use super::data::{MessageId, Op};
use super::networks::NetInfo;
use super::presence::Presence;
use super::trouble::Trouble;
use crate::codes::Code;
use crate::edge_api::SendRequest;
use crate::ids::{ConvId, Origin, Seq, UserId};
use crate::wire::v1;
use crate::wire::v1::gap::Reason;

/// What a machine is told once.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Whose client this is: the subject of its tokens.
    pub user: UserId,
    /// Client name and version, for operators.
    pub agent: String,
    /// Edges to try without or beside dispatch.
    pub fallback: Vec<Candidate>,
    /// Number of dispatch addresses.
    pub dispatch_targets: usize,
    /// This device as its user calls it, at most 64 bytes; empty: it does not announce itself.
    pub device: String,
    /// Randomness of this run.
    pub seed: u64,
}

/// Changes of what is kept, and what to do once they are durable.
#[derive(Debug, Default)]
pub struct Step {
    /// To be applied in one transaction. If that fails, the machine is to be built anew from the store.
    pub ops: Vec<Op>,
    /// In order, after `ops`.
    pub effects: Vec<Effect>,
}

/// Something to be done outside.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "the largest is the most frequent; it is moved twice and never kept")]
pub enum Effect {
    /// Connect, open the lanes, write `hello`.
    Connect {
        /// Number of the attempt, and of the connection if it succeeds.
        conn: ConnNo,
        /// Where to.
        candidate: Candidate,
        /// By what.
        transport: Transport,
        /// The first frame, on the control lane.
        hello: Hello,
        /// The round trip in this network, where it is known from before.
        rtt: Option<Duration>,
    },
    /// Close it; nothing of it is to be handed in any more.
    Close {
        /// Which.
        conn: ConnNo,
        /// The code to close with.
        code: Code,
    },
    /// Write a frame.
    Write {
        /// Where.
        conn: ConnNo,
        /// What.
        out: Outbound,
    },
    /// Ask a dispatch address; `Machine::dispatched` or `Machine::dispatch_failed` answers. From which kind of network, if
    /// the application has told.
    Dispatch(Asking, Option<NetInfo>),
    /// Get a token; `Machine::token` answers.
    Token {
        /// The last one was refused: a kept one is of no use.
        refused: bool,
    },
    /// Tell the application.
    Event(Event),
}

/// The first frame of a connection. It carries the token, so it is not printed.
#[derive(Clone)]
pub struct Hello(pub Box<v1::Frame>);

impl fmt::Debug for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hello(..)")
    }
}

/// A frame to be written. Printed without its content: that may be a token or a letter.
#[derive(Clone)]
pub enum Outbound {
    /// A message, for the message lane, with its request number.
    Send(u32, SendRequest),
    /// Any other frame; its lane is `Frame::lane`.
    Frame(v1::Frame),
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(req, send) => write!(f, "Send(req {req}, {:?}, n {})", send.conversation, send.n),
            Self::Frame(frame) => write!(f, "Frame(req {}, {:?})", frame.req, frame.lane()),
        }
    }
}

/// Whether and how the client is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Not started, closed, or taken over by another connection of this install.
    Offline,
    /// Trying; where nothing is under way, `retry_at` on the client's clock says when it goes on.
    Connecting {
        /// See above.
        retry_at: Option<Duration>,
        /// Why there is no connection, once something is known of it. It is told until there is one.
        trouble: Option<Trouble>,
    },
    /// Connected; sends work; what was missed is still coming.
    Recovering {
        /// Name of the edge.
        edge: String,
        /// Name of the region.
        region: String,
        /// By what.
        transport: Transport,
        /// Conversations of which entries are missing.
        behind: usize,
    },
    /// Connected and up to date.
    Live {
        /// Name of the edge.
        edge: String,
        /// Name of the region.
        region: String,
        /// By what.
        transport: Transport,
    },
}

/// What the application is told. Changes of timelines come from the store, see [`super::Change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection's state changed.
    Connection(ConnectionState),
    /// Durable in one region.
    Sent {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
    },
    /// Durable in so many regions.
    Stable {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
        /// At least 2, unless the deployment has one region.
        regions: u32,
    },
    /// Refused; holds back what follows in its conversation until retried or discarded.
    Failed {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
        /// See [`Code`].
        code: u32,
        /// The server's words, for a developer.
        message: String,
    },
    /// Refused by one region, while another may have taken it before: it becomes sent or failed once that one is
    /// reached, or a copy is received. It may be tried again or discarded until then.
    Unknown {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
        /// See [`Code`].
        code: u32,
        /// The server's words.
        message: String,
    },
    /// A change of a group, a setting or an erasure was refused for good: it is undone, and nothing waits for it.
    ChangeRefused {
        /// Where.
        conversation: ConvId,
        /// What it was known by.
        id: MessageId,
        /// See [`crate::kinds`].
        kind: u32,
        /// See [`Code`].
        code: u32,
        /// The server's words.
        message: String,
    },
    /// Members, roles, title, or this user's own membership of a group changed, on this device or elsewhere.
    GroupChanged {
        /// Which.
        conversation: ConvId,
    },
    /// A cell of the user's own log changed; an empty key: all may have.
    SettingsChanged {
        /// Which.
        key: String,
    },
    /// More is read than before, on this device or another.
    Read {
        /// Where.
        conversation: ConvId,
    },
    /// The other user of a direct conversation has read more.
    PeerRead {
        /// Where.
        conversation: ConvId,
    },
    /// Another user began to type, or is not known to be typing any more.
    Typing {
        /// Where.
        conversation: ConvId,
        /// Who.
        user: UserId,
        /// Whether he types.
        typing: bool,
    },
    /// What is known of a watched user's presence changed.
    Presence {
        /// Whose.
        user: UserId,
        /// What is known now.
        presence: Presence,
    },
    /// A gateway on the way forgets connections that are silent for so long: from now on they are not.
    GatewayForgot {
        /// How long it was silent.
        silence: Duration,
    },
    /// Where the user's devices are connected was told.
    Devices,
    /// Released before it was stable, because more is waiting than is kept.
    AtRisk {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
    },
    /// Acked messages are offered to the connected region, which lacks them.
    ReOffered {
        /// Where.
        conversation: ConvId,
        /// How many.
        count: usize,
    },
    /// Entries can't be had, for good.
    Gap {
        /// Where.
        conversation: ConvId,
        /// Whose log.
        origin: Origin,
        /// First.
        from: Seq,
        /// Last.
        to: Seq,
        /// Why.
        reason: Reason,
    },
    /// The server ended this client: it stays offline until the application connects again.
    Kicked {
        /// See [`Code`].
        code: u32,
        /// The server's words.
        message: String,
    },
    /// A conversation's id became known: what had `from` has `to` now.
    Renamed {
        /// Made without the deployment's salt.
        from: ConvId,
        /// The real one.
        to: ConvId,
    },
}

/// Why a message was not taken into the outbox. Nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendRefused {
    /// Longer than a body may be.
    #[error("a body of {0} bytes; at most {max} are allowed", max = crate::limits::BODY_BYTES)]
    TooLarge(usize),
    /// Too much waits to be sent.
    #[error("the outbox is full: {messages} messages, {bytes} bytes wait to be sent")]
    OutboxFull {
        /// Messages in it.
        messages: usize,
        /// Bytes in it.
        bytes: usize,
    },
    /// No such conversation on this device.
    #[error("conversation {0} is not known here")]
    UnknownConversation(ConvId),
    /// This user is not in the group any more.
    #[error("you are not in group {0} any more")]
    Left(ConvId),
    /// Kinds 16-63 are tern's own.
    #[error("kind {0} is reserved: kinds 16 to 63 are tern's own")]
    ReservedKind(u32),
}

/// The message is not in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {0} is not waiting in the outbox")]
pub struct UnknownMessage(pub MessageId);

/// Why a message was not discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscardRefused {
    /// See [`UnknownMessage`].
    #[error(transparent)]
    Unknown(#[from] UnknownMessage),
    /// It may be durable already: only its ack or a refusal can tell.
    #[error("message {0} may have been sent already and can't be discarded")]
    MayBeSent(MessageId),
}
