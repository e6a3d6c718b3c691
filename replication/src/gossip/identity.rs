//! Who takes part.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tern_core::ids::Region;

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A region's process: core, edge, dispatch.
    Region,
    /// An edge.
    Edge,
    /// Dispatch alone; it takes part in the gossip of every region that it lists.
    Ipconf,
}

impl Role {
    /// For logs and tables.
    pub fn name(self) -> &'static str {
        match self {
            Role::Region => "region",
            Role::Edge => "edge",
            Role::Ipconf => "ipconf",
        }
    }

    /// Whether it answers dispatch, and so wants to know all loads.
    pub fn dispatches(self) -> bool {
        self != Role::Edge
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What only one living node may have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeKey {
    /// The region it is configured for.
    pub region: Region,
    /// A `tern ipconf` is no edge, and may bear the name of one.
    pub is_ipconf: bool,
    /// Its name.
    pub name: Arc<str>,
}

/// A node in one of its starts.
///
/// `start` orders the starts of one name: of two, the later one is the node. It is taken from the calendar clock,
/// and a node that finds its place taken by a dead start of a later number takes the next one above that, so that a
/// clock that was set back costs seconds and no more. `turn` counts how often this start was taken for dead and came
/// back: a death is final for the identity that died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId {
    /// The region it is configured for.
    pub region: Region,
    /// What it does.
    pub role: Role,
    /// Its name, unique among region and edges of a region, and among those `ipconf` that list it.
    pub name: Arc<str>,
    /// See above.
    pub start: u64,
    /// See above.
    pub turn: u32,
    /// Where it is sent gossip.
    pub addr: SocketAddr,
}

impl NodeId {
    /// What only one living node may have.
    pub fn key(&self) -> NodeKey {
        NodeKey { region: self.region, is_ipconf: self.role == Role::Ipconf, name: self.name.clone() }
    }

    /// A number for a start at this moment; `random` keeps two of the same millisecond apart.
    pub fn start_at(wall_ms: u64, random: u64) -> u64 {
        (wall_ms << 16) | (random & 0xffff)
    }

    /// Which start and turn of its name this is.
    pub fn order(&self) -> (u64, u32) {
        (self.start, self.turn)
    }

    /// Whether this is a later start, or a later turn, than the other of the same key. Total, so that all nodes
    /// decide alike.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.start, self.turn, self.addr, self.role) > (other.start, other.turn, other.addr, other.role)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}", self.role, self.name, self.addr)
    }
}

impl foca::Identity for NodeId {
    type Addr = NodeKey;

    fn renew(&self) -> Option<Self> {
        Some(Self { turn: self.turn.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> NodeKey {
        self.key()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.is_newer_than(adversary)
    }
}
