//! What the core nodes of a region that share it ask of their store besides [`crate::store`]: who lives, and who owns what
//! (R2).
//!
//! Rule: a node that lives renews its lease, and owns what it owns only as long as that succeeds. Whoever takes over from
//! a node that has not renewed for long ends its generation first, so that it can't renew any more, and then raises the
//! epoch of each share. Epochs fence: an owner tells the store the epoch of a conversation before he reads it, and appends
//! of a lower one are refused from then on. So a wrong guess about who lives costs time and nothing else, and no clock is
//! in the argument.

use std::fmt::Debug;
use std::net::SocketAddr;

use bytes::Bytes;

use crate::ids::ConvId;
use crate::slots::Share;
use crate::store::{BoxFut, Store, StoreError, Todo};

/// A core node as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLease {
    /// Unique in the region; 1-64 bytes.
    pub name: String,
    /// From 1; rises with each start, and when it is ended by another.
    pub generation: u64,
    /// Rises with each renewal within a generation: one that stands still for long is no sign of life.
    pub beat: u64,
    /// Where it listens for nodes.
    pub addr: SocketAddr,
    /// Its part of the shares beside the others', at least 1.
    pub weight: u32,
    /// It is to give up all it has.
    pub drained: bool,
    /// This generation is over: it was fenced, or the node has stopped in order.
    pub ended: bool,
}

/// A share as it was decided last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareLease {
    /// Which one.
    pub share: Share,
    /// Whose it is.
    pub node: String,
    /// From 1; rises with each owner.
    pub epoch: u64,
}

/// Why something is not had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Another was quicker: nothing was written.
    #[error("another node has it now")]
    Lost,
    /// The store did not say what became of it. Trying again is safe.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who lives and who owns what. All writes are conditional; each is decided alone.
pub trait Leases: Send + Sync + Debug + 'static {
    /// Begins the node's next generation, which ends its last one. Returns it; that of `node` is ignored.
    fn claim(&self, node: NodeLease) -> BoxFut<'_, Result<u64, LeaseError>>;

    /// The node lives and is as told. [`LeaseError::Lost`]: its generation has ended.
    fn renew(&self, node: NodeLease) -> BoxFut<'_, Result<(), LeaseError>>;

    /// Ends a generation of another node, and marks it so. [`LeaseError::Lost`]: it had ended, or the node has renewed since.
    fn fence(&self, node: NodeLease) -> BoxFut<'_, Result<(), LeaseError>>;

    /// All nodes that were ever claimed, in order of their names.
    fn nodes(&self) -> BoxFut<'_, Result<Vec<NodeLease>, StoreError>>;

    /// Of these nodes those that were ever claimed, in the order given: cheaper than [`Self::nodes`] for a few.
    fn nodes_of(&self, names: Vec<String>) -> BoxFut<'_, Result<Vec<NodeLease>, StoreError>>;

    /// All shares that anybody has had, in order.
    fn shares(&self) -> BoxFut<'_, Result<Vec<ShareLease>, StoreError>>;

    /// The share is `node`'s from now on, if its epoch is still `epoch` (0: nobody has had it). Returns the next one.
    /// Whoever takes it from another that may live fences that node first; an owner gives it away so himself.
    fn give(&self, share: Share, epoch: u64, node: String) -> BoxFut<'_, Result<u64, LeaseError>>;

    /// A named value of the region that is written once: what stands under this name, which is `value` if nothing did.
    fn settle(&self, name: String, value: Bytes) -> BoxFut<'_, Result<Bytes, StoreError>>;
}

/// A store that several core nodes write to.
pub trait SharedStore: Store + Leases {
    /// From now on appends to this conversation's logs below `epoch` are fenced, and all that was decided of it is
    /// readable. Whether that is so: not if a higher one stands already.
    fn fence_log(&self, conversation: ConvId, epoch: u64) -> BoxFut<'_, Result<bool, StoreError>>;

    /// Todo of these shares, in order of (target, conversation): see `Node::slot_of_todo` for where it lies. They are the
    /// caller's, under these epochs: what he writes in them from now on counts for more than what an earlier owner does.
    fn todo_in(&self, shares: Vec<(Share, u64)>) -> BoxFut<'_, Result<Vec<Todo>, StoreError>>;
}
