//! What the machine says and counts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tern_core::ids::Region;
use tern_core::wire::node_v1::{EdgeLoad, Order};

use super::identity::NodeId;
use super::seal::Unopened;

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send this datagram.
    Send(SocketAddr, Vec<u8>),
    /// Something happened.
    Event(Event),
}

/// What others want to know.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A node is there.
    Up(NodeId),
    /// A node is not there any more: it left, or does not answer anyone.
    Down(NodeId),
    /// A node was started anew (the earlier start, the later).
    Restarted(NodeId, NodeId),
    /// A node did not answer. It has some seconds to object.
    Suspected(NodeId),
    /// It did.
    Cleared(NodeId),
    /// An edge says its load; `age_ms` is filled in.
    Load(EdgeLoad),
    /// An order that was news was told by another node.
    Order(Order),
    /// An edge is gone, in this start (region, name, the edge's generation).
    Gone(Region, Arc<str>, u64),
    /// The cluster took this node for dead; it is back as this.
    Returned(NodeId),
    /// A later start of this node's name takes part; this node does not any more.
    Replaced(NodeId),
    /// This node takes part again, after the other is gone.
    Restored(NodeId),
    /// This node knows others now.
    Joined,
    /// This node knows no other any more, and goes on looking.
    Alone,
}

/// Whether a member is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// It is.
    Alive,
    /// It did not answer; it counts as alive until it is down.
    Suspect,
    /// It is not.
    Down,
}

impl MemberState {
    /// For logs and tables.
    pub fn name(self) -> &'static str {
        match self {
            MemberState::Alive => "alive",
            MemberState::Suspect => "suspect",
            MemberState::Down => "down",
        }
    }
}

/// A member as this node sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Who.
    pub id: NodeId,
    /// Whether it is there.
    pub state: MemberState,
    /// Whether it is this node itself.
    pub is_self: bool,
    /// Its last load, with its age.
    pub load: Option<EdgeLoad>,
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// Too short or too long.
    Size,
    /// Of another version.
    Version,
    /// Of a region whose gossip this node does not take part in.
    Region,
    /// Sealed with another key.
    Key,
    /// Forged or damaged.
    Forged,
    /// Can't be read although it opened: a node of another version, or a bug.
    Malformed,
    /// Seen before.
    Replayed,
    /// For another start of this node, or for another node.
    Misdirected,
    /// From an earlier start of a node.
    Replaced,
    /// From a stranger, who was sent a cookie, or more strangers than are remembered.
    Stranger,
    /// This node does not take part: it has left, or was replaced.
    Inactive,
}

impl Dropped {
    /// All of them, for tables.
    pub const ALL: [Dropped; 11] = [
        Dropped::Size,
        Dropped::Version,
        Dropped::Region,
        Dropped::Key,
        Dropped::Forged,
        Dropped::Malformed,
        Dropped::Replayed,
        Dropped::Misdirected,
        Dropped::Replaced,
        Dropped::Stranger,
        Dropped::Inactive,
    ];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Dropped::Size => "size",
            Dropped::Version => "version",
            Dropped::Region => "region",
            Dropped::Key => "key",
            Dropped::Forged => "forged",
            Dropped::Malformed => "malformed",
            Dropped::Replayed => "replayed",
            Dropped::Misdirected => "misdirected",
            Dropped::Replaced => "replaced",
            Dropped::Stranger => "stranger",
            Dropped::Inactive => "inactive",
        }
    }
}

impl From<Unopened> for Dropped {
    fn from(unopened: Unopened) -> Self {
        match unopened {
            Unopened::Size => Dropped::Size,
            Unopened::Version => Dropped::Version,
            Unopened::Region => Dropped::Region,
            Unopened::Key => Dropped::Key,
            Unopened::Forged => Dropped::Forged,
        }
    }
}

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that were taken.
    pub received: u64,
    /// Datagrams that opened with another key than the first: their senders do not seal with that yet.
    pub by_other_key: u64,
    /// Datagrams that were handed out to be sent.
    pub sent: u64,
    /// Bytes of those.
    pub sent_bytes: u64,
    /// Datagrams that were not taken.
    pub dropped: BTreeMap<Dropped, u64>,
    /// Members that were suspected.
    pub suspected: u64,
    /// Members that went down.
    pub downs: u64,
    /// Times that this node was taken for dead and came back.
    pub returned: u64,
    /// Load records that could not be read.
    pub bad_records: u64,
    /// Errors of foca that say that it was misused. A bug if not 0.
    pub internal: u64,
}
