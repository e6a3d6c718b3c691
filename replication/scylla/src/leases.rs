//! Slots and nodes of a region of several nodes: who may do what, by conditional writes at LOCAL_SERIAL.
//!
//! Two tables. `node`: a node's generation, raised at each of its starts and by whoever fences it, and when it last
//! said that it lives. `slot`: the owner of each of the 4,096 slots, the owner's generation, and the slot's epoch,
//! which rises with each owner. The epoch is what fences: it is the epoch of every append to a conversation of the
//! slot ([`tern_core::store::Append::epoch`]), so a former owner's append fails whatever it believes.
//!
//! What is *not* here: when a node counts as dead. That takes a clock, and a wrong clock only costs time: a slot that
//! is taken from a node that lives is taken properly.
//!
//! For who builds on it: plain writes (todo, checkpoints) need an order between owners too. [`crate::ScyllaStore`]
//! has it from one row for the whole region (`stamps`); with several nodes each slot needs its own reserve, handed on
//! when the slot is.
//!
//! Reads of all nodes or slots are those of a quorum: what is being changed may be old in them, which the conditional
//! write that follows finds out. A future that is dropped may have written or not.

use std::sync::Arc;

use tern_core::store::StoreError;

use crate::cluster::Cluster;
use crate::limits::{CONTENTION_TRIES, RESOLVE_PAUSE};
use crate::requests::{Cas, Fates, Requests};

/// A node's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLease {
    /// Its name, unique in the region.
    pub id: String,
    /// From 1; raised at each start, and by whoever fences it.
    pub generation: u64,
    /// When it last renewed, in milliseconds since 1970 by its own clock.
    pub renewed_ms: u64,
}

/// A slot's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotLease {
    /// 0 to 4,095.
    pub slot: u16,
    /// The owner's node id; `None`: it was released.
    pub owner: Option<String>,
    /// The owner's generation.
    pub generation: u64,
    /// From 1; rises with each owner.
    pub epoch: u64,
}

/// Why a lease is not had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another has it: nothing was written.
    #[error("another node has it now")]
    Lost,
    /// The database did not say what became of it. Trying again is safe.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The tables of a region. Cheap; share it in an [`Arc`].
pub struct Leases {
    requests: Requests,
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("cluster", self.requests.cluster()).finish_non_exhaustive()
    }
}

impl Leases {
    /// Of the region that the cluster was connected for.
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { requests: Requests::new(cluster) }
    }

    /// From now on requests have the fates that `fates` decides, for tests. Once; whether it was the first time.
    pub fn set_fates(&self, fates: Fates) -> bool {
        self.requests.set_fates(fates)
    }

    /// Begins a node's next generation, which ends its last one. Returns it. It may skip some: a claim of which
    /// nothing was heard is not believed.
    pub async fn claim_node(&self, id: &str, now_ms: u64) -> Result<u64, LeaseError> {
        let statements = self.requests.statements();
        let now = now_ms.cast_signed();
        for _ in 0..CONTENTION_TRIES {
            let before = self.node(id).await?.map(|node| node.generation);
            let next = before.unwrap_or(0) + 1;
            let done = match before {
                None => self.requests.conditional(&statements.node_first, (id, next.cast_signed(), now)).await,
                Some(before) => {
                    let values = (next.cast_signed(), now, id, before.cast_signed());
                    self.requests.conditional(&statements.node_claim, values).await
                }
            };
            match done {
                Cas::Applied => return Ok(next),
                Cas::Refused => {}
                Cas::Unclear(_) => tokio::time::sleep(RESOLVE_PAUSE.0).await,
            }
        }
        Err(unclear("whether the node's generation was begun"))
    }

    /// Says that a node lives. [`LeaseError::Lost`] if its generation has ended: it must stop.
    pub async fn renew(&self, id: &str, generation: u64, now_ms: u64) -> Result<(), LeaseError> {
        let statement = &self.requests.statements().node_renew;
        for _ in 0..CONTENTION_TRIES {
            let values = (now_ms.cast_signed(), id, generation.cast_signed());
            match self.requests.conditional(statement, values).await {
                Cas::Applied => return Ok(()),
                Cas::Refused => return Err(LeaseError::Lost),
                Cas::Unclear(_) => tokio::time::sleep(RESOLVE_PAUSE.0).await,
            }
        }
        Err(unclear("whether the node's lease was renewed"))
    }

    /// Ends a node's generation, so that it can't renew: before its slots are taken. Its last renewal stays as it is.
    /// [`LeaseError::Lost`] if the generation has ended already.
    pub async fn fence(&self, lease: &NodeLease) -> Result<(), LeaseError> {
        let statement = &self.requests.statements().node_claim;
        let ended = lease.generation + 1;
        for _ in 0..CONTENTION_TRIES {
            let values = (
                ended.cast_signed(),
                lease.renewed_ms.cast_signed(),
                lease.id.as_str(),
                lease.generation.cast_signed(),
            );
            match self.requests.conditional(statement, values).await {
                Cas::Applied => return Ok(()),
                Cas::Refused => return Err(LeaseError::Lost),
                // Ended is ended, whoever ended it.
                Cas::Unclear(_) => match self.node(&lease.id).await? {
                    Some(now) if now.generation == lease.generation => tokio::time::sleep(RESOLVE_PAUSE.0).await,
                    _ => return Ok(()),
                },
            }
        }
        Err(unclear("whether the node was fenced"))
    }

    /// A node's lease, as it was decided; `None`: nobody has heard of it.
    pub async fn node(&self, id: &str) -> Result<Option<NodeLease>, StoreError> {
        let row: Option<(Option<i64>, Option<i64>)> =
            self.requests.row(&self.requests.statements().node, (id,)).await?;
        Ok(row.and_then(|(generation, renewed)| {
            let (generation, renewed_ms) = (generation?.cast_unsigned(), renewed.unwrap_or(0).cast_unsigned());
            Some(NodeLease { id: id.to_owned(), generation, renewed_ms })
        }))
    }

    /// All nodes' leases, in order of their names.
    pub async fn nodes(&self) -> Result<Vec<NodeLease>, StoreError> {
        let rows: Vec<(String, Option<i64>, Option<i64>)> =
            self.requests.rows(&self.requests.statements().nodes, ()).await?;
        let each = rows.into_iter().filter_map(|(id, generation, renewed)| {
            let (generation, renewed_ms) = (generation?.cast_unsigned(), renewed.unwrap_or(0).cast_unsigned());
            Some(NodeLease { id, generation, renewed_ms })
        });
        let mut nodes: Vec<NodeLease> = each.collect();
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(nodes)
    }

    /// A slot as it was decided; `None`: nobody has had it.
    pub async fn slot(&self, slot: u16) -> Result<Option<SlotLease>, StoreError> {
        type Row = (Option<String>, Option<i64>, Option<i64>);
        let row: Option<Row> = self.requests.row(&self.requests.statements().slot, (i32::from(slot),)).await?;
        Ok(row.and_then(|(owner, generation, epoch)| lease(slot, owner, generation, epoch)))
    }

    /// All slots that anybody has had, in order.
    pub async fn slots(&self) -> Result<Vec<SlotLease>, StoreError> {
        type Row = (i32, Option<String>, Option<i64>, Option<i64>);
        let rows: Vec<Row> = self.requests.rows(&self.requests.statements().slots, ()).await?;
        let each = rows
            .into_iter()
            .filter_map(|(slot, owner, generation, epoch)| lease(u16::try_from(slot).ok()?, owner, generation, epoch));
        let mut slots: Vec<SlotLease> = each.collect();
        slots.sort_by_key(|lease| lease.slot);
        Ok(slots)
    }

    /// Takes a slot whose epoch is still `epoch` (0: nobody has had it), and returns its new epoch. Who takes it from
    /// a node that did not release it fences that node before ([`Self::fence`]). [`LeaseError::Lost`] if another was
    /// quicker.
    pub async fn take(&self, slot: u16, epoch: u64, owner: &str, generation: u64) -> Result<u64, LeaseError> {
        let wanted = SlotLease { slot, owner: Some(owner.to_owned()), generation, epoch: epoch + 1 };
        self.change(epoch, &wanted).await?;
        Ok(wanted.epoch)
    }

    /// Gives a slot back, after all that was under way in it is decided. [`LeaseError::Lost`] if another has taken it.
    pub async fn release(&self, held: &SlotLease) -> Result<(), LeaseError> {
        self.change(held.epoch, &SlotLease { owner: None, ..held.clone() }).await
    }

    async fn change(&self, epoch: u64, wanted: &SlotLease) -> Result<(), LeaseError> {
        let statements = self.requests.statements();
        let (slot, owner) = (i32::from(wanted.slot), wanted.owner.as_deref().unwrap_or(""));
        let (generation, next) = (wanted.generation.cast_signed(), wanted.epoch.cast_signed());
        let mut was_unclear = false;
        for _ in 0..CONTENTION_TRIES {
            let done = if epoch == 0 {
                self.requests.conditional(&statements.slot_first, (slot, owner, generation, next)).await
            } else {
                let values = (owner, generation, next, slot, epoch.cast_signed());
                self.requests.conditional(&statements.slot_take, values).await
            };
            match done {
                Cas::Applied => return Ok(()),
                Cas::Refused if !was_unclear => return Err(LeaseError::Lost),
                Cas::Refused | Cas::Unclear(_) => {}
            }
            was_unclear = true;
            match self.slot(wanted.slot).await? {
                Some(now) if now == *wanted => return Ok(()),
                Some(now) if now.epoch != epoch => return Err(LeaseError::Lost),
                _ => tokio::time::sleep(RESOLVE_PAUSE.0).await,
            }
        }
        Err(unclear("who has the slot"))
    }
}

fn lease(slot: u16, owner: Option<String>, generation: Option<i64>, epoch: Option<i64>) -> Option<SlotLease> {
    let (generation, epoch) = (generation.unwrap_or(0).cast_unsigned(), epoch?.cast_unsigned());
    Some(SlotLease { slot, owner: owner.filter(|owner| !owner.is_empty()), generation, epoch })
}

fn unclear(what: &str) -> LeaseError {
    LeaseError::Store(StoreError::Backend(format!("the database does not say {what}")))
}
