//! What the application is told, as it happens.

use std::time::Duration;

use tern_core::client::{Change, ConnectionState, MessageId, Presence};
use tern_core::ids::{ConvId, Origin, Seq, UserId};
use tern_core::wire::v1::gap::Reason;
use tokio::sync::broadcast;

/// Something happened. What is kept is told after it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection's state changed.
    Connection(ConnectionState),
    /// A timeline changed: a message was appended, inserted, moved, or its body erased. Read it with `Client::message`.
    Message(Change),
    /// An own message is durable in one region.
    Sent {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
    },
    /// An own message is durable in a second region, or in the only one there is.
    Stable {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
        /// In how many regions at least.
        regions: u32,
    },
    /// An own message was refused; it holds back what follows in its conversation until it is retried or
    /// discarded.
    Failed {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
        /// See `tern_core::codes::Code`.
        code: u32,
        /// The server's words, for a developer.
        message: String,
    },
    /// An own message of a group was refused by one region, while another may have taken it before. It becomes
    /// sent or failed once that is known; it may be retried or discarded until then, and holds nothing back.
    Unknown {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
        /// See `tern_core::codes::Code`.
        code: u32,
        /// The server's words, for a developer.
        message: String,
    },
    /// A change of a group, a setting or an erasure was refused: it is undone, and nothing waits for it.
    ChangeRefused {
        /// Where.
        conversation: ConvId,
        /// What it was known by.
        id: MessageId,
        /// See `tern_core::kinds`.
        kind: u32,
        /// See `tern_core::codes::Code`.
        code: u32,
        /// The server's words, for a developer.
        message: String,
    },
    /// Members, roles, title, or this user's own membership of a group changed: read `Conversation::group`.
    GroupChanged {
        /// Which.
        conversation: ConvId,
    },
    /// A mute, a block, or the list of devices changed, here or on another device. An empty key: all may have.
    SettingsChanged {
        /// Key of the cell in the user's own log.
        key: String,
    },
    /// More is read than before, on this device or another: `Conversation::unread` changed.
    Read {
        /// Where.
        conversation: ConvId,
    },
    /// The other user of a direct conversation has read more: see `Conversation::peer_has_read`.
    PeerRead {
        /// Where.
        conversation: ConvId,
    },
    /// Another user began to type, or is not known to be typing any more: he said so, his message came, or nothing
    /// was heard of it for some seconds. See `Conversation::who_is_typing`.
    Typing {
        /// Where.
        conversation: ConvId,
        /// Who.
        user: UserId,
        /// Whether he types.
        typing: bool,
    },
    /// What is known of the presence of somebody who is watched changed: see `Client::watch_presence`.
    Presence {
        /// Whose.
        user: UserId,
        /// What is known now.
        presence: Presence,
    },
    /// A gateway on the way forgets connections that are silent for so long; the heartbeat was shortened.
    GatewayForgot {
        /// How long it was silent.
        silence: Duration,
    },
    /// Where the user's devices are connected was told.
    Devices,
    /// An own message was released before it was stable, because more is waiting than is kept.
    AtRisk {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
    },
    /// Acked messages are offered to the connected region, which lacks them: their own region is silent.
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
        /// First seq.
        from: Seq,
        /// Last seq.
        to: Seq,
        /// Why.
        reason: Reason,
    },
    /// The server ended this client, for example because this install connected elsewhere. It stays offline
    /// until `Client::reconnect`.
    Kicked {
        /// See `tern_core::codes::Code`.
        code: u32,
        /// The server's words.
        message: String,
    },
    /// A direct conversation got its final id with the first connection ever.
    Renamed {
        /// Before.
        from: ConvId,
        /// Now.
        to: ConvId,
    },
    /// The local store failed. Nothing is lost; it is tried again, and until then the client is offline.
    StoreFailed {
        /// What failed, and what may be done.
        message: String,
    },
    /// This subscriber was too slow and missed events: read the timelines again.
    Lagged {
        /// How many.
        missed: u64,
    },
}

impl From<tern_core::client::Event> for Event {
    fn from(event: tern_core::client::Event) -> Self {
        use tern_core::client::Event as E;
        match event {
            E::Connection(state) => Self::Connection(state),
            E::Sent { conversation, id } => Self::Sent { conversation, id },
            E::Stable { conversation, id, regions } => Self::Stable { conversation, id, regions },
            E::Failed { conversation, id, code, message } => Self::Failed { conversation, id, code, message },
            E::Unknown { conversation, id, code, message } => Self::Unknown { conversation, id, code, message },
            E::ChangeRefused { conversation, id, kind, code, message } => {
                Self::ChangeRefused { conversation, id, kind, code, message }
            }
            E::GroupChanged { conversation } => Self::GroupChanged { conversation },
            E::SettingsChanged { key } => Self::SettingsChanged { key },
            E::Read { conversation } => Self::Read { conversation },
            E::PeerRead { conversation } => Self::PeerRead { conversation },
            E::Typing { conversation, user, typing } => Self::Typing { conversation, user, typing },
            E::Presence { user, presence } => Self::Presence { user, presence },
            E::GatewayForgot { silence } => Self::GatewayForgot { silence },
            E::Devices => Self::Devices,
            E::AtRisk { conversation, id } => Self::AtRisk { conversation, id },
            E::ReOffered { conversation, count } => Self::ReOffered { conversation, count },
            E::Gap { conversation, origin, from, to, reason } => Self::Gap { conversation, origin, from, to, reason },
            E::Kicked { code, message } => Self::Kicked { code, message },
            E::Renamed { from, to } => Self::Renamed { from, to },
        }
    }
}

/// A subscription: everything that happens from its making on. Bounded by [`crate::ClientConfig::events`]; what
/// does not fit is dropped, and [`Event::Lagged`] says so.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
}

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self { receiver }
    }

    /// The next event; `None` once the client is closed. May be cancelled without losing an event.
    pub async fn next(&mut self) -> Option<Event> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Lagged { missed }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The next event that is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        match self.receiver.try_recv() {
            Ok(event) => Some(event),
            Err(broadcast::error::TryRecvError::Lagged(missed)) => Some(Event::Lagged { missed }),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => None,
        }
    }
}
