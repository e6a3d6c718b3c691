//! How a node shares its region with others, and why it may not.

use std::net::SocketAddr;
use std::sync::Arc;

use tern_core::ids::Region as RegionId;
use tern_core::leases::{LeaseError, SharedStore};
use tern_core::store::StoreError;

/// How a node shares its region with others.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// What they share.
    pub store: Arc<dyn SharedStore>,
    /// Its part beside the others', at least 1.
    pub weight: u32,
    /// Where the others reach this node, if not where it listens.
    pub advertise: Option<SocketAddr>,
    /// It begins as one that is to have nothing, until [`Region::set_drained`] says otherwise.
    ///
    /// [`Region::set_drained`]: super::Region::set_drained
    pub drained: bool,
}

/// Why a node may not begin to share a region.
#[derive(Debug, thiserror::Error)]
pub enum SharingError {
    /// Its name is another's.
    #[error(
        "another process serves this region under the name \"{0}\": its lease is being renewed. Stop it, or give each \
         core node a name of its own (node.name)"
    )]
    Twice(String),
    /// It was told of fewer regions than another node.
    #[error(
        "core node \"{node}\" of this region is linked with region {region}, and \"peers\" of this node lacks it: what this node \
         took in would not be sent there. List it here, too; or, where it is to be removed, take it off the running nodes \
         first and let them read their configuration again (SIGHUP)"
    )]
    Behind {
        /// The other node.
        node: String,
        /// The region's number.
        region: RegionId,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<LeaseError> for SharingError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Lost => Self::Store(StoreError::Backend("another process was quicker".to_owned())),
            LeaseError::Store(error) => Self::Store(error),
        }
    }
}
