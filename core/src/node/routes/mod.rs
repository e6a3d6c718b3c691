//! Who is where: (user -> region, installs, when bound), told between core nodes.
//!
//! Problem: each core node must know of a million users of every other region whether they are there, and which of two
//! connections of an install is the newer one, at a few bytes of memory and of the wire; and that must end in the same
//! whatever frames are lost, doubled or overtaken, and whoever starts anew.
//!
//! Rule: each core node is the only writer of its own part, so whoever is absent from it is not there, and nothing needs a
//! tombstone. Its changes are numbered, told in windows, acked, and told again from a ring. Whoever is too far behind, or
//! holds what an earlier start of the node has told, gets sums over 256 shards and pulls those that differ; the same sums
//! go out twice a minute, and mend what nobody thought of. What was told by a node that is not heard of stays, and is
//! marked as a hint.
//!
//! Reading order: [`keyed`] (hashes), [`packed`] (routes as bytes), [`table`] (a part in memory), `writer` (the own one),
//! `replica` (another's), and [`Routes`], which holds them. Times are readings of the monotonic clock.
//!
//! Routes are hints: they end stale connections of an install that has moved, and steer signals; no delivery depends on
//! them.

pub mod figures;
pub mod keyed;
pub mod limits;
pub mod packed;
mod replica;
pub mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{Region, UserId};
use crate::wire::node_v1::{self as wire, node_frame::Body};

use super::CoreId;
use keyed::Key;
use packed::Malformed;
use replica::Replica;
use table::Table;
use writer::Writer;

/// Who has told a part of the routes: another region's only core node (0), or one of several; of this region, another
/// core node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// Which region.
    pub region: Region,
    /// Which of its core nodes.
    pub core: CoreId,
}

impl Holder {
    /// The only core node of a region.
    pub fn only(region: Region) -> Self {
        Self { region, core: 0 }
    }
}

/// Numbers the changes of one node's part within one life of it; 0 is before the first.
pub type Lsn = u64;

/// A bound install.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bind {
    /// Stands for the install among those of its user, see [`Key::install`].
    pub install: u64,
    /// When, in milliseconds since 1970 by the clock of its region.
    pub at_ms: u64,
    /// The client's own order of its connections; 0 = it has none.
    pub order: u64,
}

impl Bind {
    /// Whether this bind came after `other`: by the client's order if both have one, else by the regions'
    /// clocks, which may differ by more than what lies between two binds.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        if self.order != 0 && other.order != 0 { self.order > other.order } else { self.at_ms > other.at_ms }
    }
}

/// A user's presence at another core node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Which one.
    pub holder: Holder,
    /// Live installs.
    pub binds: Vec<Bind>,
    /// It may not be so any more: the node was not heard of for [`limits::STALE_AFTER`], or has started anew and was not
    /// compared yet.
    pub is_hint: bool,
}

/// How a part of the routes stands, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Whose.
    pub holder: Holder,
    /// Users in it.
    pub users: usize,
    /// Memory that it takes.
    pub bytes: usize,
    /// Nothing was heard of its node for [`limits::STALE_AFTER`].
    pub is_stale: bool,
    /// It is what its node last said that it should be.
    pub is_whole: bool,
    /// Shards that were told anew since this node's start.
    pub pulled: u64,
}

/// A bug that a test switches on for its thread, to see that it would be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// Changes are taken though some before them are missing.
    GapTaken,
    /// A part of a shard is taken though a newer change has been.
    OldPartTaken,
    /// What an earlier life of a node has told counts as told by this one.
    LifeIgnored,
    /// Users who are not in a part of a shard stay.
    NobodySwept,
    /// What was asked for once is not asked for again.
    AskedOnce,
}

#[cfg(not(test))]
const fn has(_bug: Bug) -> bool {
    false
}

#[cfg(test)]
use tests::has;

/// What other nodes are to be told, in order.
pub type Outputs = Vec<(Holder, Body)>;

/// The own part, and copies of the others'.
#[derive(Debug)]
pub struct Routes {
    key: Key,
    writer: Writer,
    replicas: BTreeMap<Holder, Replica>,
    out: Outputs,
}

impl Routes {
    /// Nobody is here yet. `epoch` is another one, and not 0, with each start of this node.
    pub fn new(key: Key, epoch: u64) -> Self {
        Self { key, writer: Writer::new(key, epoch), replicas: BTreeMap::new(), out: Vec::new() }
    }

    /// What hashes are under.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// A user has these installs bound here now; none: he has left.
    pub fn set(&mut self, now: Duration, user: &UserId, binds: &[Bind]) {
        self.writer.set(now, user, binds);
    }

    /// There is a link to another core node, on which nothing was said of routes yet.
    pub fn up(&mut self, now: Duration, node: Holder) {
        self.writer.up(node);
        self.replicas.entry(node).or_insert_with(|| Replica::new(self.key)).up(now);
        self.ask(now, node);
    }

    /// And no more. What it told stays, as a hint.
    pub fn down(&mut self, node: Holder) {
        self.writer.down(node);
        if let Some(replica) = self.replicas.get_mut(&node) {
            replica.down();
        }
    }

    /// A node does not come back under this name: what it told goes.
    pub fn forget(&mut self, node: Holder) {
        self.writer.forget(node);
        self.replicas.remove(&node);
    }

    /// What another node says of routes; other frames are left out. Returns the users whose routes there have changed.
    ///
    /// # Errors
    /// What can't be is left out.
    pub fn told(&mut self, now: Duration, from: Holder, body: &Body) -> Result<Vec<UserId>, Malformed> {
        let Some(replica) = self.replicas.get_mut(&from).filter(|replica| replica.up) else { return Ok(Vec::new()) };
        let mut changed = Vec::new();
        replica.heard_at(now);
        let told = match body {
            Body::RouteState(state) => {
                replica.told_upto(now, state.epoch, state.lsn);
                let (epoch, lsn) = (state.heard_epoch, state.heard_lsn);
                self.writer.heard(now, from, epoch, lsn, state.lost, &mut self.out);
                Ok(())
            }
            Body::RouteDelta(delta) => replica.delta(now, delta, &mut changed),
            Body::RouteDigest(digest) => replica.digest(now, digest),
            Body::RouteChunk(chunk) => replica.chunk(chunk, &mut changed),
            Body::RoutePull(pull) => {
                self.writer.pulled(now, from, pull, &mut self.out);
                Ok(())
            }
            _ => Ok(()),
        };
        self.ask(now, from);
        told.map(|()| changed)
    }

    /// Time has passed: see [`Self::next_deadline`]. Returns the users whose routes elsewhere have changed by it.
    pub fn tick(&mut self, now: Duration) -> Vec<UserId> {
        self.writer.tick(now, &mut self.out);
        let mut changed = Vec::new();
        for node in self.replicas.keys().copied().collect::<Vec<_>>() {
            if let Some(replica) = self.replicas.get_mut(&node) {
                replica.sweep(now, &mut changed);
            }
            self.ask(now, node);
        }
        changed
    }

    /// Asks a node for what is missing of it, and says what was heard of it, if it is time to.
    fn ask(&mut self, now: Duration, node: Holder) {
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        let shards = replica.pulls(now);
        if !shards.is_empty() {
            self.out.push((node, Body::RoutePull(wire::RoutePull { epoch: replica.epoch, shards })));
        }
        if replica.is_ack_due(now) {
            let lost = replica.acks(now);
            let state = wire::RouteState {
                epoch: self.writer.epoch,
                lsn: self.writer.told(node),
                heard_epoch: replica.epoch,
                heard_lsn: replica.lsn,
                lost,
            };
            self.out.push((node, Body::RouteState(state)));
        }
    }

    /// When to tick at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        let replicas = self.replicas.values().filter_map(Replica::next_deadline);
        replicas.chain(self.writer.next_deadline()).min()
    }

    /// What other nodes are to be told.
    pub fn take_outputs(&mut self) -> Outputs {
        std::mem::take(&mut self.out)
    }

    /// Whether a user is here.
    pub fn is_here(&self, user: &UserId) -> bool {
        let table = &self.writer.table;
        table.contains(table.hash(user.as_str()), user.as_str())
    }

    /// Whether a user is at another core node, as far as it has told.
    pub fn is_at(&self, node: Holder, user: &UserId) -> bool {
        let hash = self.key.hash(user.as_str().as_bytes());
        self.replicas.get(&node).is_some_and(|replica| replica.table.contains(hash, user.as_str()))
    }

    /// A user's installs that are bound at another core node.
    pub fn at(&self, node: Holder, user: &UserId) -> Vec<Bind> {
        self.replicas.get(&node).and_then(|replica| replica.table.get(user.as_str())).unwrap_or_default()
    }

    /// At which other core nodes a user is.
    pub fn holders<'a>(&'a self, user: &'a UserId) -> impl Iterator<Item = Holder> + 'a {
        let hash = self.key.hash(user.as_str().as_bytes());
        let there = move |(_, replica): &(&Holder, &Replica)| replica.table.contains(hash, user.as_str());
        self.replicas.iter().filter(there).map(|(holder, _)| *holder)
    }

    /// Where a user is, this node not included.
    pub fn elsewhere<'a>(&'a self, now: Duration, user: &'a UserId) -> impl Iterator<Item = Elsewhere> + 'a {
        let hash = self.key.hash(user.as_str().as_bytes());
        self.replicas.iter().filter_map(move |(holder, replica)| {
            let binds = replica.table.get_hashed(hash, user.as_str())?;
            Some(Elsewhere { holder: *holder, binds, is_hint: replica.is_hint(now, hash) })
        })
    }

    /// Users here, and the bytes of memory that they take.
    pub fn here(&self) -> (usize, usize) {
        (self.writer.table.len(), self.writer.table.bytes())
    }

    /// How often another node had to compare, for it was too far behind or knew another life of this one.
    pub fn resyncs(&self) -> u64 {
        self.writer.resyncs
    }

    /// How the parts of other nodes stand.
    pub fn parts(&self, now: Duration) -> impl Iterator<Item = Part> + '_ {
        self.replicas.iter().map(move |(holder, replica)| Part {
            holder: *holder,
            users: replica.table.len(),
            bytes: replica.table.bytes(),
            is_stale: replica.is_stale(now),
            is_whole: replica.is_whole(),
            pulled: replica.pulled,
        })
    }

    /// What the own part and a copy amount to, for tests and benchmarks: equal ones are the same.
    pub fn fingerprint(&self, of: Option<Holder>) -> Vec<(u64, u32)> {
        let table: Option<&Table> = match of {
            None => Some(&self.writer.table),
            Some(node) => self.replicas.get(&node).map(|replica| &replica.table),
        };
        table.into_iter().flat_map(|table| (0..table::SHARDS).map(|shard| table.sum(shard))).collect()
    }
}
