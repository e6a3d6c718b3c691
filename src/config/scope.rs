//! Whom a key concerns, and when a change of it counts.

/// A kind of process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// `tern region`.
    Region,
    /// `tern edge`.
    Edge,
    /// `tern ipconf`.
    Ipconf,
    /// What people run and what ends by itself: `token`, `chat`, `pki` and the like.
    Tools,
}

impl Role {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Role::Region => "region",
            Role::Edge => "edge",
            Role::Ipconf => "ipconf",
            Role::Tools => "tools",
        }
    }
}

/// What becomes of a changed value when a running process reads its configuration again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// It counts from then on; what is open already keeps what it was told.
    AtOnce,
    /// It counts from the next start on.
    Restart,
}

impl Reload {
    /// In the words of the reference.
    pub fn words(self) -> &'static str {
        match self {
            Reload::AtOnce => "reload",
            Reload::Restart => "restart",
        }
    }
}

/// Every process.
pub const ALL: &[Role] = &[Role::Region, Role::Edge, Role::Ipconf, Role::Tools];
/// Everything that serves.
pub const NODES: &[Role] = &[Role::Region, Role::Edge, Role::Ipconf];
/// What clients connect to.
pub const EDGES: &[Role] = &[Role::Region, Role::Edge];
/// What tells clients where to connect.
pub const DISPATCH: &[Role] = &[Role::Region, Role::Ipconf];
/// What checks tokens, and what signs them.
pub const TOKENS: &[Role] = &[Role::Region, Role::Edge, Role::Tools];
/// `tern region` alone.
pub const REGION: &[Role] = &[Role::Region];
/// `tern edge` alone.
pub const EDGE: &[Role] = &[Role::Edge];
/// `tern ipconf` alone.
pub const IPCONF: &[Role] = &[Role::Ipconf];
