//! The table of a region's routes: which device of a user is connected where.
//!
//! Problem: the owner of a user knows his connections, and nobody else in the region does. Whoever looks from outside
//! (an operator, a gateway for notifications) would have to know the owner first, and ask him.
//!
//! Rule: the core nodes write what they know into a table ([`Routes`]), each for the users that it owns. A route names
//! a *link*, the one between an edge and a core node over which its connection is spoken for, and that link's
//! *generation*. A route counts while its generation is the live one of its link; the core node renews the generations
//! of its links, so whatever a dead one wrote is over [`limits::GENERATION_TTL`] after it, without one removal. What
//! is written has a stamp, a hybrid logical clock of the writer, and a later stamp wins: writes may repeat, and come in
//! any order.
//!
//! Routes are hints. No delivery reads this table, and no core node does: see `Writer`.
//!
//! Reading order: this file (the trait), [`memory`], [`waiting`] (what is to be written, bounded), [`writer`] (the task
//! that writes it, and notices that the table was lost), [`limits`]. The table in Redis is a crate of its own,
//! `tern-redis`. `contract.rs` in this folder is the contract suite, which the tests of every table include by path.
//!
//! Invariants: nothing in here is on the way of a message; a table that is slow, dead or lost costs bounded memory;
//! what a table forgets is written again from what the connections of the core nodes say.
//!
//! Why simpler ways fail: removals at the death of a node need somebody who knows what it wrote; a time to live for
//! each route instead of each link has every device written every few seconds.

pub mod limits;
pub mod memory;
pub mod waiting;
pub mod writer;
#[cfg(test)]
mod writer_tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tern_core::ids::{InstallId, UserId};
use tern_core::store::BoxFut;

pub use memory::MemoryRoutes;

/// A link of an edge to a core node: its routes live and end together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// The core node's name.
    pub node: String,
    /// Which one of that node, as it counts them since its start.
    pub number: u64,
    /// The edge's name.
    pub edge: String,
}

/// As `node/number/edge`.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.node, self.number, self.edge)
    }
}

impl std::str::FromStr for Link {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next().ok_or(());
        let (node, number, edge) = (part()?.to_owned(), part()?.parse().map_err(|_| ())?, part()?.to_owned());
        Ok(Self { node, number, edge })
    }
}

/// Where a device is connected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// By which link.
    pub link: Arc<Link>,
    /// Of the link.
    pub generation: u64,
    /// The edge's number of the connection.
    pub connection: u64,
}

/// What is to become of a user's routes. Stamps are readings of a hybrid logical clock (milliseconds since 1970 << 16,
/// and a counter); the later one wins, for each device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device is here now.
    Put {
        /// Whose.
        user: UserId,
        /// When.
        stamp: u64,
        /// Which device.
        install: InstallId,
        /// Where.
        route: Route,
    },
    /// A device is not there any more. Where it has another route since, that one stays.
    Remove {
        /// Whose.
        user: UserId,
        /// When.
        stamp: u64,
        /// Which device.
        install: InstallId,
        /// Where it was.
        route: Route,
    },
    /// These are all devices of a user: routes of others that are not stamped later go.
    Announce {
        /// Whose.
        user: UserId,
        /// When.
        stamp: u64,
        /// His devices.
        routes: Vec<(InstallId, Route)>,
    },
}

impl Change {
    /// Whose routes it is about.
    pub fn user(&self) -> &UserId {
        match self {
            Self::Put { user, .. } | Self::Remove { user, .. } | Self::Announce { user, .. } => user,
        }
    }

    /// When it was said.
    pub fn stamp(&self) -> u64 {
        match self {
            Self::Put { stamp, .. } | Self::Remove { stamp, .. } | Self::Announce { stamp, .. } => *stamp,
        }
    }
}

/// What became of a [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is so.
    Done,
    /// Something is there that is stamped as late or later, with this stamp; it stays.
    Newer(u64),
    /// The route to be removed is not there, but another one; it stays.
    Other,
}

/// A device in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub install: InstallId,
    /// Where.
    pub route: Route,
    /// When that was said.
    pub stamp: u64,
    /// Its link's generation is the live one; otherwise this is no route, but left over.
    pub is_live: bool,
}

/// What is in a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Users with a route.
    pub users: u64,
    /// Routes.
    pub routes: u64,
    /// Routes whose generation is over, and which are none.
    pub over: u64,
}

/// Why a table did not do what it was asked. Nothing depends on it: what was to be written is written later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutesError {
    /// It was not reached, or did not answer in time: whether a write was carried out is not known.
    #[error("the table of routes does not answer: {0}")]
    Unreachable(String),
    /// It is there and can't be used as it is; says what to change.
    #[error("{0}")]
    Unfit(String),
    /// It refused this one request.
    #[error("the table of routes refused a request: {0}")]
    Refused(String),
}

/// A table of routes, shared by the core nodes of a region. Every call ends by itself within seconds; one that is
/// dropped may or may not have been carried out.
pub trait Routes: Send + Sync + fmt::Debug + 'static {
    /// Carries out changes, each on its own and in any order, and answers in the order given. Of one user and device
    /// there should be one in a call.
    fn write(&self, changes: Vec<Change>) -> BoxFut<'_, Vec<Result<Outcome, RoutesError>>>;
    /// All that is there of a user, ordered by device.
    fn look_up(&self, user: UserId) -> BoxFut<'_, Result<Vec<Listed>, RoutesError>>;
    /// These generations are the live ones of their links for `ttl` from now.
    fn renew(&self, links: Vec<(Arc<Link>, u64)>, ttl: Duration) -> BoxFut<'_, Result<(), RoutesError>>;
    /// A generation is over, if it is the live one of its link; whether it was.
    fn end(&self, link: Arc<Link>, generation: u64) -> BoxFut<'_, Result<bool, RoutesError>>;
    /// Counts all there is: reads the whole table, for tools and tests.
    fn count(&self) -> BoxFut<'_, Result<Counts, RoutesError>>;
    /// Whether all of the table is still there that was when this was last asked, as far as can be told: no part was
    /// emptied, started anew, or replaced by another server. The first answer is no.
    fn is_kept(&self) -> BoxFut<'_, Result<bool, RoutesError>>;
}
