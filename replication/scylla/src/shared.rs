//! A region's store that several core nodes share: leases and shares by conditional writes at LOCAL_SERIAL, and the store
//! of [`crate::ScyllaStore`] with an owner per share instead of one for the region.
//!
//! Two tables. `core_node`: a node's generation, raised at each of its starts and by whoever ends it, its beat, and what
//! the others need to know of it. `share`: the owner of each of the 256 shares of slots, and its epoch, which rises with
//! each owner. The epoch is what fences: it is that of every append to a conversation of the share, so a former owner's
//! append fails whatever it believes.
//!
//! **Plain writes** (todo, checkpoints) must be ordered between owners too: what a former owner still writes must lose. So
//! their time-stamps are (epoch of the share, count of this process), which no clock decides about. Rows have their
//! revisions, which begin with the epoch. Named values of the region are the same whoever writes them, and have the time.
//!
//! Reads of all nodes or shares are those of a quorum: what is being changed may be old in them, which the conditional
//! write that follows finds out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use scylla::statement::prepared::PreparedStatement;
use tern_core::clock::{Clock, Entropy};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, UserId};
use tern_core::leases::{LeaseError, Leases, NodeLease, ShareLease, SharedStore};
use tern_core::node::Node;
use tern_core::slots::{Share, Slot};
use tern_core::store::{
    Append, Appended, BoxFut, ConversationHeads, ConversationImage, Durability, Put, Range, RowRecord, Store,
    StoreError, Todo, UserMarks,
};
use tern_replication::store::Archive;

use crate::cluster::Cluster;
use crate::limits::{APPENDS_AT_ONCE, CONTENTION_TRIES, RESOLVE_PAUSE};
use crate::requests::{Cas, Requests};
use crate::store::ScyllaStore;
use crate::tails::TakeError;

/// Bits of a time-stamp that count within one epoch: a quarter of a thousand million plain writes. An epoch is below
/// 2^22, then, for a time-stamp that the database does not take for one of the far future: four million takeovers.
const COUNT_BITS: u32 = 28;

/// A node whose beat stands still for so long does not run: a living one renews its lease every 300 ms.
const STILL_FOR: Duration = Duration::from_secs(2);
/// Shares whose todo is read at once.
const TODO_SHARES_AT_ONCE: usize = 16;
/// So many epochs are left out after a restore: more takeovers than there are between the copies of two tables.
const EPOCHS_SKIPPED: u64 = 1_000;

/// Under which name it is settled how a keyspace is used, and how.
pub(crate) const MODE: &str = "mode";
pub(crate) const SHARED: &[u8] = b"shared";
const ALONE: &[u8] = b"alone";

/// What a process knows of the shares that it owns: who may write what, and when.
pub(crate) struct Sharing {
    salt: Vec<u8>,
    clock: Arc<dyn Clock>,
    /// Epoch, and plain writes so far.
    shares: Mutex<BTreeMap<Share, (u64, i64)>>,
}

impl Sharing {
    /// The epoch of a conversation that this process has, as far as it was told; 0: none.
    pub(crate) fn epoch_of(&self, conversation: ConvId) -> u64 {
        let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.get(&Slot::of(conversation).share()).map_or(0, |(epoch, _)| *epoch)
    }

    fn owns(&self, share: Share, epoch: u64) {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shares.entry(share).or_insert((epoch, 0));
        if known.0 < epoch {
            *known = (epoch, 0);
        }
    }

    /// A time-stamp above all that this process and earlier owners used for plain writes in a share.
    fn stamp(&self, share: Share, epoch: Option<u64>) -> Result<i64, StoreError> {
        if let Some(epoch) = epoch {
            self.owns(share, epoch);
        }
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((epoch, count)) = shares.get_mut(&share) else {
            return Err(StoreError::Backend(
                "this node does not own what it was to write; nothing was written".to_owned(),
            ));
        };
        *count += 1;
        if *count >> COUNT_BITS != 0 {
            return Err(StoreError::Backend("this share was written to too often under one epoch".to_owned()));
        }
        Ok((epoch.cast_signed() << COUNT_BITS) | *count)
    }

    /// Of a todo row. `epoch`: of the append that it comes with.
    pub(crate) fn stamp_of_todo(&self, todo: &Todo, epoch: Option<u64>) -> Result<i64, StoreError> {
        self.stamp(self.slot_of_todo(todo).share(), epoch)
    }

    pub(crate) fn stamp_of_log(&self, conversation: ConvId) -> Result<i64, StoreError> {
        self.stamp(Slot::of(conversation).share(), None)
    }

    /// Of what is the same whoever writes it.
    pub(crate) fn stamp_of_region(&self) -> i64 {
        i64::try_from(self.clock.wall_ms().saturating_mul(1_000)).unwrap_or(i64::MAX / 2)
    }

    pub(crate) fn slot_of_todo(&self, todo: &Todo) -> Slot {
        Node::slot_of_todo(&self.salt, todo)
    }
}

/// See the module. Share it in an [`Arc`].
pub struct SharedScylla {
    store: ScyllaStore,
    requests: Arc<Requests>,
    sharing: Arc<Sharing>,
}

impl fmt::Debug for SharedScylla {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedScylla").field("cluster", self.requests.cluster()).finish_non_exhaustive()
    }
}

impl SharedScylla {
    /// A store over a cluster, for one core node. `salt` is the deployment's, by which users have slots.
    pub fn new(cluster: Arc<Cluster>, clock: Arc<dyn Clock>, rng: &Entropy, salt: &[u8]) -> Self {
        let sharing = Arc::new(Sharing { salt: salt.to_vec(), clock: clock.clone(), shares: Mutex::default() });
        let store = ScyllaStore::sharing(cluster, clock, rng, sharing.clone());
        Self { requests: store.requests.clone(), store, sharing }
    }

    /// Makes sure that the keyspace is one that is shared: how plain writes are ordered differs, so one that a process has
    /// had alone stays so, and the other way round.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        let alone = self.store.stamps.epoch().await? > 0;
        let how = self.store.settle_value(MODE, if alone { ALONE } else { SHARED }).await?;
        if how == SHARED {
            return Ok(());
        }
        Err(StoreError::Backend(
            "this keyspace belongs to a region that one process serves alone: take region.shared away, or give the \
             shared region a keyspace of its own (store.keyspace)"
                .to_owned(),
        ))
    }

    /// With an archive, see [`ScyllaStore::with_archive`].
    #[must_use]
    pub fn with_archive(mut self, archive: Arc<Archive>) -> Self {
        self.store = self.store.with_archive(archive);
        self
    }

    /// The store below, for what it counts.
    pub fn store(&self) -> &ScyllaStore {
        &self.store
    }

    /// After the tables were restored: makes sure that no node of the region runs, and that none that is paused can go on;
    /// then raises the epochs of all shares above what the tables may have from after their own moment, as they are not
    /// copied at once. The error names a node that runs.
    pub async fn end_all(&self) -> Result<(), LeaseError> {
        let living = |nodes: Vec<NodeLease>| nodes.into_iter().filter(|node| !node.ended).collect::<Vec<_>>();
        let before = living(self.nodes().await?);
        if !before.is_empty() {
            tokio::time::sleep(STILL_FOR).await;
        }
        for node in before {
            match self.fence(node.clone()).await {
                Ok(()) => {}
                Err(LeaseError::Lost) => {
                    let what = format!("the core node \"{}\" of this region runs: stop it first", node.name);
                    return Err(LeaseError::Store(StoreError::Backend(what)));
                }
                Err(error) => return Err(error),
            }
        }
        for lease in self.shares().await? {
            let next = ShareLease { epoch: lease.epoch + EPOCHS_SKIPPED, ..lease.clone() };
            self.change_share(&lease, &next).await?;
        }
        Ok(())
    }

    /// Gives a share an epoch and an owner, if it still has those of `from`.
    async fn change_share(&self, from: &ShareLease, to: &ShareLease) -> Result<(), LeaseError> {
        let number = i32::from(to.share.number());
        for _ in 0..CONTENTION_TRIES {
            let values = (to.node.as_str(), to.epoch.cast_signed(), number, from.epoch.cast_signed());
            match self.requests.conditional(&self.requests.statements().share_give, values).await {
                Cas::Applied => return Ok(()),
                Cas::Refused | Cas::Unclear(_) => {}
            }
            match self.store.share(to.share).await? {
                Some(now) if now == *to => return Ok(()),
                Some(now) if now.epoch != from.epoch => return Err(LeaseError::Lost),
                _ => tokio::time::sleep(RESOLVE_PAUSE.0).await,
            }
        }
        Err(unclear("who has the share"))
    }

    /// Changes something of a node under a condition; what became of a write of which nothing was heard is read.
    async fn change_node(&self, node: &NodeLease, condition: Option<(u64, Option<u64>)>) -> Result<(), LeaseError> {
        let statements = self.requests.statements();
        let state = state(node);
        let (generation, beat) = (node.generation.cast_signed(), node.beat.cast_signed());
        let name = node.name.as_str();
        for _ in 0..CONTENTION_TRIES {
            let done = match condition {
                None => self.requests.conditional(&statements.core_first, (name, generation, beat, &state[..])).await,
                Some((before, None)) => {
                    let values = (generation, beat, &state[..], name, before.cast_signed());
                    self.requests.conditional(&statements.core_change, values).await
                }
                Some((before, Some(beat_before))) => {
                    let values = (generation, beat, &state[..], name, before.cast_signed(), beat_before.cast_signed());
                    self.requests.conditional(&statements.core_end, values).await
                }
            };
            match done {
                Cas::Applied => return Ok(()),
                Cas::Refused => {
                    // The first of two tries may have been the one.
                    let is = self.core_node(name).await?;
                    return if is.as_ref() == Some(node) { Ok(()) } else { Err(LeaseError::Lost) };
                }
                Cas::Unclear(_) => tokio::time::sleep(RESOLVE_PAUSE.0).await,
            }
        }
        Err(unclear("what became of a node's lease"))
    }

    async fn core_node(&self, name: &str) -> Result<Option<NodeLease>, StoreError> {
        self.core_node_by(&self.requests.statements().core_node, name).await
    }

    async fn core_node_by(&self, how: &PreparedStatement, name: &str) -> Result<Option<NodeLease>, StoreError> {
        type Row = (Option<i64>, Option<i64>, Option<String>);
        let row: Option<Row> = self.requests.row(how, (name,)).await?;
        Ok(row.and_then(|(generation, beat, state)| lease(name.to_owned(), generation, beat, state)))
    }

    async fn give_share(&self, share: Share, epoch: u64, node: &str) -> Result<u64, LeaseError> {
        let statements = self.requests.statements();
        let wanted = ShareLease { share, node: node.to_owned(), epoch: epoch + 1 };
        let (number, next) = (i32::from(share.number()), wanted.epoch.cast_signed());
        let mut was_unclear = false;
        for _ in 0..CONTENTION_TRIES {
            let done = if epoch == 0 {
                self.requests.conditional(&statements.share_first, (number, node, next)).await
            } else {
                let values = (node, next, number, epoch.cast_signed());
                self.requests.conditional(&statements.share_give, values).await
            };
            match done {
                Cas::Applied => return Ok(wanted.epoch),
                Cas::Refused if !was_unclear => return Err(LeaseError::Lost),
                Cas::Refused | Cas::Unclear(_) => {}
            }
            was_unclear = true;
            match self.store.share(share).await? {
                Some(now) if now == wanted => return Ok(wanted.epoch),
                Some(now) if now.epoch != epoch => return Err(LeaseError::Lost),
                _ => tokio::time::sleep(RESOLVE_PAUSE.0).await,
            }
        }
        Err(unclear("who has the share"))
    }
}

impl ScyllaStore {
    /// Who has a share.
    pub(crate) async fn share(&self, share: Share) -> Result<Option<ShareLease>, StoreError> {
        type Row = (Option<String>, Option<i64>);
        let number = i32::from(share.number());
        let row: Option<Row> = self.requests.row(&self.requests.statements().share, (number,)).await?;
        let owner = row.and_then(|(node, epoch)| Some((node?, epoch?.cast_unsigned())));
        Ok(owner.map(|(node, epoch)| ShareLease { share, node, epoch }))
    }

    /// What was settled under a name, if anything was.
    pub(crate) async fn settled(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        type Row = (Option<i64>, Option<Vec<u8>>, Option<i64>);
        let scope = format!("settled/{name}");
        let row: Option<Row> = self.requests.row(&self.requests.statements().owner, (scope.as_str(),)).await?;
        Ok(row.and_then(|(_, held, _)| held).map(Bytes::from))
    }

    /// Settles a value, unless another one was; what is settled now.
    pub(crate) async fn settle_value(&self, name: &str, value: &[u8]) -> Result<Bytes, StoreError> {
        let scope = format!("settled/{name}");
        let mut why = "the database does not say what was settled".to_owned();
        for _ in 0..CONTENTION_TRIES {
            let values = (scope.as_str(), 0_i64, value, 0_i64);
            match self.requests.conditional(&self.requests.statements().owner_first, values).await {
                Cas::Applied => return Ok(Bytes::copy_from_slice(value)),
                Cas::Refused => {}
                Cas::Unclear(what) => {
                    why = what;
                    tokio::time::sleep(RESOLVE_PAUSE.0).await;
                }
            }
            if let Some(held) = self.settled(name).await? {
                return Ok(held);
            }
        }
        Err(StoreError::Backend(why))
    }
}

/// What is written of a node besides generation and beat: address, weight, whether it is drained, whether it has ended.
fn state(node: &NodeLease) -> String {
    format!("{} {} {} {}", node.addr, node.weight, u8::from(node.drained), u8::from(node.ended))
}

/// A row that can't be understood is that of a node nobody can reach: it is left out.
fn lease(name: String, generation: Option<i64>, beat: Option<i64>, state: Option<String>) -> Option<NodeLease> {
    let state = state?;
    let mut parts = state.split(' ');
    Some(NodeLease {
        name,
        generation: generation?.cast_unsigned(),
        beat: beat?.cast_unsigned(),
        addr: parts.next()?.parse().ok()?,
        weight: parts.next()?.parse().ok()?,
        drained: parts.next()? == "1",
        ended: parts.next()? == "1",
    })
}

fn unclear(what: &str) -> LeaseError {
    LeaseError::Store(StoreError::Backend(format!("the database does not say {what}")))
}

impl Leases for SharedScylla {
    fn claim(&self, node: NodeLease) -> BoxFut<'_, Result<u64, LeaseError>> {
        Box::pin(async move {
            let before = self.core_node(&node.name).await?.map(|known| known.generation);
            let generation = before.unwrap_or(0) + 1;
            let next = NodeLease { generation, beat: 0, ended: false, ..node };
            self.change_node(&next, before.map(|before| (before, None))).await.map(|()| generation)
        })
    }

    fn renew(&self, node: NodeLease) -> BoxFut<'_, Result<(), LeaseError>> {
        Box::pin(async move { self.change_node(&node, Some((node.generation, None))).await })
    }

    fn fence(&self, node: NodeLease) -> BoxFut<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            let ended = NodeLease { generation: node.generation + 1, ended: true, ..node.clone() };
            self.change_node(&ended, Some((node.generation, Some(node.beat)))).await
        })
    }

    fn nodes(&self) -> BoxFut<'_, Result<Vec<NodeLease>, StoreError>> {
        Box::pin(async move {
            type Row = (String, Option<i64>, Option<i64>, Option<String>);
            let rows: Vec<Row> = self.requests.rows(&self.requests.statements().core_nodes, ()).await?;
            let each = rows.into_iter().filter_map(|(name, generation, beat, s)| lease(name, generation, beat, s));
            let mut nodes: Vec<NodeLease> = each.collect();
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(nodes)
        })
    }

    fn nodes_of(&self, names: Vec<String>) -> BoxFut<'_, Result<Vec<NodeLease>, StoreError>> {
        Box::pin(async move {
            let how = &self.requests.statements().core_beat;
            let found = try_join_all(names.iter().map(|name| self.core_node_by(how, name))).await?;
            Ok(found.into_iter().flatten().collect())
        })
    }

    fn shares(&self) -> BoxFut<'_, Result<Vec<ShareLease>, StoreError>> {
        Box::pin(async move {
            type Row = (i32, Option<String>, Option<i64>);
            let rows: Vec<Row> = self.requests.rows(&self.requests.statements().shares, ()).await?;
            let each = rows.into_iter().filter_map(|(share, node, epoch)| {
                let share = Share::new(u16::try_from(share).ok()?)?;
                Some(ShareLease { share, node: node?, epoch: epoch?.cast_unsigned() })
            });
            let mut shares: Vec<ShareLease> = each.collect();
            shares.sort_by_key(|lease| lease.share);
            Ok(shares)
        })
    }

    fn give(&self, share: Share, epoch: u64, node: String) -> BoxFut<'_, Result<u64, LeaseError>> {
        Box::pin(async move { self.give_share(share, epoch, &node).await })
    }

    fn settle(&self, name: String, value: Bytes) -> BoxFut<'_, Result<Bytes, StoreError>> {
        Box::pin(async move { self.store.settle_value(&name, &value).await })
    }
}

impl SharedStore for SharedScylla {
    fn fence_log(&self, conversation: ConvId, epoch: u64) -> BoxFut<'_, Result<bool, StoreError>> {
        Box::pin(async move {
            self.sharing.owns(Slot::of(conversation).share(), epoch);
            let _turn = self.store.turn(conversation).lock().await;
            match self.store.tails.take(conversation, epoch).await {
                Ok(_) => Ok(true),
                Err(TakeError::Fenced) => Ok(false),
                Err(TakeError::Backend(what)) => Err(StoreError::Backend(what)),
            }
        })
    }

    fn todo_in(&self, shares: Vec<(Share, u64)>) -> BoxFut<'_, Result<Vec<Todo>, StoreError>> {
        Box::pin(async move {
            for (share, epoch) in &shares {
                self.sharing.owns(*share, *epoch);
            }
            let mut todo = Vec::new();
            for part in shares.chunks(TODO_SHARES_AT_ONCE) {
                let reads = part.iter().map(|(share, _)| self.store.list_todo_of(*share));
                todo.extend(try_join_all(reads).await?.into_iter().flatten());
            }
            todo.sort_by_key(|t| (t.target, t.conversation));
            Ok(todo)
        })
    }
}

impl Store for SharedScylla {
    fn append(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>> {
        self.store.append(batches)
    }

    fn appends_at_once(&self) -> usize {
        APPENDS_AT_ONCE
    }

    fn put(&self, puts: Vec<Put>, durability: Durability) -> BoxFut<'_, Result<(), StoreError>> {
        self.store.put(puts, durability)
    }

    fn conversation(&self, conversation: ConvId) -> BoxFut<'_, Result<ConversationImage, StoreError>> {
        self.store.conversation(conversation)
    }

    fn range(&self, range: Range) -> BoxFut<'_, Result<Vec<Arc<Entry>>, StoreError>> {
        self.store.range(range)
    }

    fn rows(&self, user: UserId) -> BoxFut<'_, Result<Vec<(ConvId, RowRecord)>, StoreError>> {
        self.store.rows(user)
    }

    fn marks(&self, after: Option<UserId>, limit: usize) -> BoxFut<'_, Result<Vec<UserMarks>, StoreError>> {
        self.store.marks(after, limit)
    }

    fn todo(&self) -> BoxFut<'_, Result<Vec<Todo>, StoreError>> {
        self.store.todo()
    }

    fn conversations(
        &self,
        after: Option<ConvId>,
        limit: usize,
    ) -> BoxFut<'_, Result<Vec<ConversationHeads>, StoreError>> {
        self.store.conversations(after, limit)
    }

    fn meta(&self, key: &str) -> BoxFut<'_, Result<Option<Bytes>, StoreError>> {
        self.store.meta(key)
    }

    fn outlives_its_machine(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_of_a_node_comes_back() {
        let node = NodeLease {
            name: "eu-1".to_owned(),
            generation: 3,
            beat: 9,
            addr: "[2001:db8::1]:7412".parse().unwrap(),
            weight: 7,
            drained: true,
            ended: false,
        };
        assert_eq!(lease("eu-1".to_owned(), Some(3), Some(9), Some(state(&node))), Some(node));
        for bad in ["", "nowhere 1 0 0", "127.0.0.1:1 x 0 0", "127.0.0.1:1 1"] {
            assert_eq!(lease("x".to_owned(), Some(1), Some(1), Some(bad.to_owned())), None, "{bad}");
        }
    }
}
