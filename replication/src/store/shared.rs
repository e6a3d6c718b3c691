//! A store in memory that several core nodes of a region share, for simulation and tests.
//!
//! What the nodes write is at once there and outlives each of them, as it is with a quorum of a database: the store itself
//! never dies. Fences and leases are as [`tern_core::leases`] says.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tern_core::ids::ConvId;
use tern_core::leases::{LeaseError, Leases, NodeLease, ShareLease, SharedStore};
use tern_core::mutants::{Mutant, on};
use tern_core::node::Node;
use tern_core::slots::Share;
use tern_core::store::{Append, Appended, BoxFut, Durability, Put, Store, StoreError, StoreLayer, Todo};

use super::MemoryStore;

/// What is not answered by then has failed, as with the Scylla store.
const SCAN_WITHIN: Duration = Duration::from_secs(3);
/// As a database that decides each batch by itself.
const APPENDS_AT_ONCE: usize = 16;

#[derive(Debug, Default)]
struct Tables {
    nodes: BTreeMap<String, NodeLease>,
    shares: BTreeMap<Share, ShareLease>,
    fences: BTreeMap<ConvId, u64>,
    settled: BTreeMap<String, Bytes>,
    slow: BTreeMap<ConvId, Duration>,
    scans_hang: bool,
    gives_take: Duration,
}

/// See the module. Clones are the same store.
#[derive(Clone)]
pub struct SharedMemory {
    store: MemoryStore,
    tables: Arc<Mutex<Tables>>,
    salt: Arc<[u8]>,
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedMemory(..)")
    }
}

impl SharedMemory {
    /// An empty one. `salt` is the deployment's, by which users have slots.
    pub fn new(salt: &[u8]) -> Self {
        Self { store: MemoryStore::new(), tables: Arc::default(), salt: salt.into() }
    }

    /// From now on what is appended to a conversation takes so long, as if its replicas were slow.
    pub fn set_slow(&self, conversation: ConvId, takes: Duration) {
        self.tables().slow.insert(conversation, takes);
    }

    /// From now on a share changes hands after so long, as if its replicas were busy.
    pub fn set_gives_take(&self, time: Duration) {
        self.tables().gives_take = time;
    }

    /// Whether reads of whole tables get no answer, as while a replica has died and the others don't know it yet.
    pub fn set_scans_hang(&self, hang: bool) {
        self.tables().scans_hang = hang;
    }

    /// A read of a whole table.
    async fn scan<T>(&self, read: impl FnOnce(&Tables) -> T) -> Result<T, StoreError> {
        if self.tables().scans_hang {
            tokio::time::sleep(SCAN_WITHIN).await;
            return Err(StoreError::Backend("no answer".to_owned()));
        }
        Ok(read(&self.tables()))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreLayer for SharedMemory {
    type Below = MemoryStore;

    fn below(&self) -> &MemoryStore {
        &self.store
    }

    fn append_through(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(batches.len());
            for batch in batches {
                let slow = self.tables().slow.get(&batch.conversation).copied();
                if let Some(takes) = slow {
                    tokio::time::sleep(takes).await;
                }
                let fence = self.tables().fences.get(&batch.conversation).copied().unwrap_or(0);
                if batch.epoch < fence && !on(Mutant::FencedOwnerWrites) {
                    answers.push(Appended::Fenced);
                    continue;
                }
                // The one below knows one owner: who that is was judged here.
                answers.extend(self.store.append(vec![Append { epoch: u64::MAX, ..batch }]).await);
            }
            answers
        })
    }

    fn appends_at_once_through(&self) -> usize {
        APPENDS_AT_ONCE
    }

    fn put_through(&self, puts: Vec<Put>, _durability: Durability) -> BoxFut<'_, Result<(), StoreError>> {
        self.store.put(puts, Durability::Synced)
    }
}

impl Leases for SharedMemory {
    fn claim(&self, node: NodeLease) -> BoxFut<'_, Result<u64, LeaseError>> {
        Box::pin(async move {
            let mut tables = self.tables();
            let generation = tables.nodes.get(&node.name).map_or(1, |known| known.generation + 1);
            tables.nodes.insert(node.name.clone(), NodeLease { generation, beat: 0, ended: false, ..node });
            Ok(generation)
        })
    }

    fn renew(&self, node: NodeLease) -> BoxFut<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            match self.tables().nodes.get_mut(&node.name) {
                Some(known) if known.generation == node.generation => {
                    *known = node;
                    Ok(())
                }
                _ => Err(LeaseError::Lost),
            }
        })
    }

    fn fence(&self, node: NodeLease) -> BoxFut<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            match self.tables().nodes.get_mut(&node.name) {
                Some(known) if *known == node => {
                    known.generation += 1;
                    known.ended = true;
                    Ok(())
                }
                _ => Err(LeaseError::Lost),
            }
        })
    }

    fn nodes(&self) -> BoxFut<'_, Result<Vec<NodeLease>, StoreError>> {
        Box::pin(self.scan(|tables| tables.nodes.values().cloned().collect()))
    }

    fn nodes_of(&self, names: Vec<String>) -> BoxFut<'_, Result<Vec<NodeLease>, StoreError>> {
        Box::pin(async move {
            let tables = self.tables();
            Ok(names.iter().filter_map(|name| tables.nodes.get(name).cloned()).collect())
        })
    }

    fn shares(&self) -> BoxFut<'_, Result<Vec<ShareLease>, StoreError>> {
        Box::pin(self.scan(|tables| tables.shares.values().cloned().collect()))
    }

    fn give(&self, share: Share, epoch: u64, node: String) -> BoxFut<'_, Result<u64, LeaseError>> {
        Box::pin(async move {
            let takes = self.tables().gives_take;
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            let mut tables = self.tables();
            if tables.shares.get(&share).map_or(0, |known| known.epoch) != epoch {
                return Err(LeaseError::Lost);
            }
            let epoch = if on(Mutant::RevReused) { epoch.max(1) } else { epoch + 1 };
            tables.shares.insert(share, ShareLease { share, node, epoch });
            Ok(epoch)
        })
    }

    fn settle(&self, name: String, value: Bytes) -> BoxFut<'_, Result<Bytes, StoreError>> {
        Box::pin(async move { Ok(self.tables().settled.entry(name).or_insert(value).clone()) })
    }
}

impl SharedStore for SharedMemory {
    fn fence_log(&self, conversation: ConvId, epoch: u64) -> BoxFut<'_, Result<bool, StoreError>> {
        Box::pin(async move {
            let mut tables = self.tables();
            let fence = tables.fences.entry(conversation).or_default();
            *fence = (*fence).max(epoch);
            Ok(*fence == epoch)
        })
    }

    fn todo_in(&self, shares: Vec<(Share, u64)>) -> BoxFut<'_, Result<Vec<Todo>, StoreError>> {
        Box::pin(async move {
            let mut todo = self.store.todo().await?;
            let of = |t: &Todo| Node::slot_of_todo(&self.salt, t).share();
            todo.retain(|t| shares.iter().any(|(share, _)| *share == of(t)));
            Ok(todo)
        })
    }
}
