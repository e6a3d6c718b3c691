//! Which other regions the core nodes of one region know, while that changes.
//!
//! *Problem.* What a node appends is owed to the regions that it knows (todo). Where several nodes serve a region, each hears
//! of a new one at a moment of its own: by a reload, or by a restart. What a node that has not heard appends meanwhile is
//! owed to nobody; and after the share has moved to one that has, "no todo" would be taken for "it is there".
//!
//! *Rule.* Each node says in the store which regions it knows (`peers-of/<node>`): one more as soon as its core task owes it
//! something, one less before that ends. A region that is new to a node is *pending* there until all living nodes, and all
//! owners of shares, say that they know it. What the node owns meanwhile is marked to be compared, in the store, before the
//! node says that it knows; but nothing is compared while it is pending. So every comparison begins after the last entry that
//! was owed to nobody, and every share that ever had such an owner has a mark.
//!
//! A node that does not know a region which others know does not start: it would open the hole again.
//!
//! *Why the simpler ways fail.* To compare as soon as a node knows: what others append afterwards is missing. To compare
//! again some time later: a node may be paused for longer. One list in the store: a node acts by what it has read, and not by
//! what stands there.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tern_core::ids::Region as RegionId;
use tern_core::leases::{NodeLease, SharedStore};
use tern_core::node::refill::{MARK_KEY, share_mark};
use tern_core::slots::Share;
use tern_core::store::{Durability, Put, StoreError};

use super::start;

/// The regions that a node says to know stand under this and its name.
const SAID_KEY: &str = "peers-of/";
/// Their form: a byte each after this one.
const SAID_FORM: u8 = 1;

/// What a node knows, and what others are not known to know yet.
#[derive(Debug)]
pub(super) struct Agreement {
    node: String,
    known: BTreeSet<RegionId>,
    pending: BTreeSet<RegionId>,
}

/// Another node knows a region that this one does not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ahead {
    pub node: String,
    pub region: RegionId,
    beat: (u64, u64),
}

impl Agreement {
    /// Of a node that is about to begin: what was not known to all before is pending.
    pub async fn begin(store: &dyn SharedStore, node: &str, known: BTreeSet<RegionId>) -> Result<Self, StoreError> {
        let mut pending = known.clone();
        let before = said(store, node).await?.unwrap_or_default();
        pending.retain(|region| !before.contains(region));
        // A region that has just been made has all its marks, and nobody has appended anything.
        for region in pending.clone() {
            let marked = start::marked_shares(store, region, Share::all()).await?;
            if marked.len() == Share::all().count() {
                pending.remove(&region);
            }
        }
        let living = store.nodes().await?.into_iter().filter(|other| !other.ended).map(|other| other.name);
        let owners = store.shares().await?.into_iter().map(|lease| lease.node);
        let others: BTreeSet<String> = living.chain(owners).filter(|other| other != node).collect();
        for other in others {
            let theirs = said(store, &other).await?.unwrap_or_default();
            pending.extend(known.difference(&theirs));
        }
        Ok(Self { node: node.to_owned(), known, pending })
    }

    /// A node that knows what this one does not, and renews its lease: it did so within `wait`.
    pub async fn ahead(&self, store: &dyn SharedStore, wait: Duration) -> Result<Option<Ahead>, StoreError> {
        let before = self.look_ahead(store).await?;
        if before.is_empty() {
            return Ok(None);
        }
        tokio::time::sleep(wait).await;
        Ok(self.look_ahead(store).await?.into_iter().find(|ahead| !before.contains(ahead)))
    }

    async fn look_ahead(&self, store: &dyn SharedStore) -> Result<Vec<Ahead>, StoreError> {
        let mut ahead = Vec::new();
        for NodeLease { name, generation, beat, ended, .. } in store.nodes().await? {
            if ended || name == self.node {
                continue;
            }
            let theirs = said(store, &name).await?.unwrap_or_default();
            if let Some(region) = theirs.difference(&self.known).next() {
                ahead.push(Ahead { node: name, region: *region, beat: (generation, beat) });
            }
        }
        Ok(ahead)
    }

    /// Regions that not all nodes are known to know.
    pub fn pending(&self) -> &BTreeSet<RegionId> {
        &self.pending
    }

    /// Notes in the store that these shares must be compared with what is pending.
    pub async fn mark(&self, store: &dyn SharedStore, shares: &[Share]) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let each = self.pending.iter().flat_map(|region| shares.iter().map(|share| share_mark(*region, *share)));
        let all = each.chain(self.pending.iter().map(|region| format!("{MARK_KEY}{region}")));
        let puts = all.map(|key| Put::Meta { key, value: Bytes::from_static(&[1]) }).collect();
        store.put(puts, Durability::Synced).await
    }

    /// What is no peer any more is said before it is acted on. Which of them are new.
    pub async fn about_to_know(
        &mut self,
        store: &dyn SharedStore,
        regions: &BTreeSet<RegionId>,
    ) -> Result<BTreeSet<RegionId>, StoreError> {
        let stay: BTreeSet<RegionId> = self.known.intersection(regions).copied().collect();
        if stay.len() < self.known.len() {
            self.pending.retain(|region| stay.contains(region));
            self.known = stay;
            self.say(store).await?;
        }
        let new: BTreeSet<RegionId> = regions.difference(&self.known).copied().collect();
        self.pending.extend(&new);
        Ok(new)
    }

    /// What is new is said once the core task acts on it.
    pub async fn knows(&mut self, store: &dyn SharedStore, regions: BTreeSet<RegionId>) -> Result<(), StoreError> {
        self.known = regions;
        self.say(store).await
    }

    /// Says what this node knows.
    pub async fn say(&self, store: &dyn SharedStore) -> Result<(), StoreError> {
        let value: Vec<u8> = std::iter::once(SAID_FORM).chain(self.known.iter().copied()).collect();
        let key = format!("{SAID_KEY}{}", self.node);
        store.put(vec![Put::Meta { key, value: value.into() }], Durability::Synced).await
    }

    /// Whether something is not pending any more, for all of these nodes know it.
    pub async fn settle(&mut self, store: &dyn SharedStore, nodes: BTreeSet<String>) -> Result<bool, StoreError> {
        let before = self.pending.len();
        let mut by_all = self.pending.clone();
        for node in nodes.iter().filter(|node| **node != self.node) {
            if by_all.is_empty() {
                break;
            }
            let theirs = said(store, node).await?.unwrap_or_default();
            by_all.retain(|region| theirs.contains(region));
        }
        self.pending.retain(|region| !by_all.contains(region));
        Ok(self.pending.len() < before)
    }
}

/// What a node says to know; `None`: nothing, or in a form of a later version.
async fn said(store: &dyn SharedStore, node: &str) -> Result<Option<BTreeSet<RegionId>>, StoreError> {
    let value = store.meta(&format!("{SAID_KEY}{node}")).await?;
    Ok(value.and_then(|value| match &value[..] {
        [SAID_FORM, regions @ ..] => Some(regions.iter().copied().collect()),
        _ => None,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::store::SharedMemory;

    const WAIT: Duration = Duration::from_millis(10);

    async fn lease(store: &SharedMemory, name: &str, beat: u64) -> NodeLease {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let lease = NodeLease { name: name.into(), generation: 0, beat, addr, weight: 1, drained: false, ended: false };
        let generation = tern_core::leases::Leases::claim(store, lease.clone()).await.unwrap();
        NodeLease { generation, ..lease }
    }

    fn regions(of: &[RegionId]) -> BTreeSet<RegionId> {
        of.iter().copied().collect()
    }

    fn names(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_region_is_pending_until_every_node_says_that_it_knows_it() {
        let store = SharedMemory::new(b"salt");
        let mut a = Agreement::begin(&store, "a", regions(&[])).await.unwrap();
        let mut b = Agreement::begin(&store, "b", regions(&[])).await.unwrap();
        for one in [&a, &b] {
            one.say(&store).await.unwrap();
            lease(&store, &one.node, 1).await;
        }
        assert_eq!(a.about_to_know(&store, &regions(&[2, 3])).await.unwrap(), regions(&[2, 3]));
        a.mark(&store, &[Share::all().next().unwrap()]).await.unwrap();
        a.knows(&store, regions(&[2, 3])).await.unwrap();
        assert!(!a.settle(&store, names(&["a", "b"])).await.unwrap());
        assert_eq!(*a.pending(), regions(&[2, 3]));
        assert_eq!(start::marked_shares(&store, 2, Share::all()).await.unwrap().len(), 1);
        b.about_to_know(&store, &regions(&[2])).await.unwrap();
        b.knows(&store, regions(&[2])).await.unwrap();
        assert!(a.settle(&store, names(&["a", "b"])).await.unwrap());
        assert_eq!(*a.pending(), regions(&[3]), "the other has not heard of it");
        assert!(!a.settle(&store, names(&["a", "b", "c"])).await.unwrap(), "a stranger knows nothing");
        // One that is taken off again waits for nobody.
        a.about_to_know(&store, &regions(&[2])).await.unwrap();
        assert_eq!(*a.pending(), regions(&[]));
        assert_eq!(said(&store, "a").await.unwrap(), Some(regions(&[2])), "said before it is acted on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_with_more_regions_than_before_or_than_others_have_marks_them() {
        let store = SharedMemory::new(b"salt");
        let a = Agreement::begin(&store, "a", regions(&[2])).await.unwrap();
        assert_eq!(*a.pending(), regions(&[2]), "it was never known");
        a.say(&store).await.unwrap();
        lease(&store, "a", 1).await;
        let again = Agreement::begin(&store, "a", regions(&[2])).await.unwrap();
        assert_eq!(*again.pending(), regions(&[]));
        let b = Agreement::begin(&store, "b", regions(&[2, 3])).await.unwrap();
        assert_eq!(*b.pending(), regions(&[2, 3]));
        b.mark(&store, &Share::all().collect::<Vec<_>>()).await.unwrap();
        let again = Agreement::begin(&store, "b", regions(&[2])).await.unwrap();
        assert_eq!(*again.pending(), regions(&[]), "all of it is to be compared anyway, and the other knows it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_lives_and_knows_more_is_ahead_and_a_dead_one_is_not() {
        let store = SharedMemory::new(b"salt");
        let a = Agreement::begin(&store, "a", regions(&[2])).await.unwrap();
        a.say(&store).await.unwrap();
        let mut renewed = lease(&store, "a", 1).await;
        let b = Agreement::begin(&store, "b", regions(&[])).await.unwrap();
        assert_eq!(b.ahead(&store, WAIT).await.unwrap(), None, "its beat stands still");
        let renewing = async {
            tokio::time::sleep(WAIT / 2).await;
            renewed.beat += 1;
            tern_core::leases::Leases::renew(&store, renewed.clone()).await.unwrap();
        };
        let (ahead, ()) = tokio::join!(b.ahead(&store, WAIT), renewing);
        let ahead = ahead.unwrap().unwrap();
        assert_eq!((ahead.node.as_str(), ahead.region), ("a", 2));
        let knows = Agreement::begin(&store, "b", regions(&[2, 3])).await.unwrap();
        assert_eq!(knows.ahead(&store, WAIT).await.unwrap(), None, "it knows more itself");
    }
}
