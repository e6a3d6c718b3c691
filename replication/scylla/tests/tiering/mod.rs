//! A log of one message a second, and a world of a database and an object store that outlive processes.

#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place as Seat, UserId};
use tern_core::leases::{Leases, SharedStore};
use tern_core::slots::Slot;
use tern_core::store::{Append, Appended, Durability, Put, Range, Store};
use tern_replication::store::archive::{TierPlan, TierReport};
use tern_replication::store::{Archive, ArchiveOptions, EPOCH_KEY, MemoryObjects, epoch_value};
use tern_scylla::{ScyllaStore, SharedScylla};

use crate::cluster::{Place, WallClock, entropy};

pub const HERE: Origin = Origin { region: 1, era: 7 };
/// Milliseconds between two entries.
pub const APART_MS: u64 = 1_000;
pub const DAY_MS: u64 = 24 * 3_600_000;

pub fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

pub fn entry(seq: u64) -> Arc<Entry> {
    Arc::new(Entry {
        peer: Some(UserId::new("bob").unwrap()),
        ..Entry::text(
            Seat { hlc: (seq * APART_MS) << 16, origin: HERE, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
            format!("<message {seq} as it was written>"),
        )
    })
}

pub fn entries(from: u64, to: u64) -> Vec<Arc<Entry>> {
    (from..=to).map(entry).collect()
}

/// The same with some bodies erased.
pub fn without(mut entries: Vec<Arc<Entry>>, erased: &[u64]) -> Vec<Arc<Entry>> {
    for entry in entries.iter_mut().filter(|entry| erased.contains(&entry.place.seq)) {
        *entry = Arc::new(entry.to_erased());
    }
    entries
}

pub fn range(id: ConvId, from: u64, to: u64, backwards: bool) -> Range {
    Range { conversation: id, origin: HERE, from, to, max_entries: 1 << 20, max_bytes: 1 << 30, backwards }
}

pub fn erase(id: ConvId, seq: u64) -> Put {
    Put::Erase { conversation: id, origin: HERE, seq, by: entry(seq).by.clone() }
}

pub fn batch(id: ConvId, epoch: u64, from: u64, to: u64) -> Append {
    Append { conversation: id, origin: HERE, epoch, entries: entries(from, to), todo: Vec::new() }
}

/// Of buckets of eight places, a long time later.
pub fn plan() -> TierPlan {
    TierPlan { bucket_bits: 3, eager: true, ..TierPlan::new(100 * DAY_MS, Duration::from_secs(3_600)) }
}

pub fn archive(objects: &MemoryObjects, region: u8) -> Arc<Archive> {
    let options = ArchiveOptions { cache_bytes: 0, ..ArchiveOptions::default() };
    Arc::new(Archive::new(Arc::new(objects.clone()), "test", region, options).of_all_regions())
}

/// A database and an object store that outlive processes.
pub struct World {
    pub place: Place,
    pub objects: MemoryObjects,
    pub epoch: AtomicU64,
}

impl World {
    pub async fn new() -> Option<Self> {
        Some(Self { place: Place::new().await?, objects: MemoryObjects::default(), epoch: AtomicU64::new(0) })
    }

    /// A process of region 1 that has not begun yet.
    pub fn process(&self) -> ScyllaStore {
        ScyllaStore::new(self.place.cluster.clone(), Arc::new(WallClock::default()), &entropy())
            .with_archive(archive(&self.objects, 1))
    }

    /// One that has its region, after the one before has given it back or died. Its epoch.
    pub async fn start(&self) -> (ScyllaStore, u64) {
        let store = self.process();
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed) + 1;
        claim(&store, epoch).await;
        (store, epoch)
    }

    /// A core node that owns a conversation from now on, whatever becomes of the one before: nobody waits. Its epoch.
    pub async fn owner(&self, id: ConvId) -> (SharedScylla, u64) {
        self.owner_with(id, archive(&self.objects, 1)).await
    }

    pub async fn owner_with(&self, id: ConvId, archive: Arc<Archive>) -> (SharedScylla, u64) {
        let node = self.node(0).with_archive(archive);
        let share = Slot::of(id).share();
        let before = node.shares().await.unwrap().into_iter().find(|lease| lease.share == share);
        let epoch = node.give(share, before.map_or(0, |lease| lease.epoch), "any".to_owned()).await.unwrap();
        assert!(node.fence_log(id, epoch).await.unwrap());
        (node, epoch)
    }

    /// A core node whose clock is off by so much.
    pub fn node(&self, ahead_ms: i64) -> SharedScylla {
        SharedScylla::new(self.place.cluster.clone(), Arc::new(WallClock { ahead_ms }), &entropy(), b"salt")
            .with_archive(archive(&self.objects, 1))
    }

    /// With that many entries in a conversation, each bucket of eight and the rest a batch of its own.
    pub async fn filled(&self, id: ConvId, to: u64) -> (ScyllaStore, u64) {
        let (store, epoch) = self.start().await;
        append(&store, id, epoch, 1, to).await;
        (store, epoch)
    }

    pub fn holds(&self, seq: u64) -> bool {
        let body = &entry(seq).body;
        let objects = self.objects.names();
        let mut objects = objects.iter().filter_map(|name| self.objects.bytes(name));
        objects.any(|object| object.windows(body.len()).any(|bytes| bytes == &body[..]))
    }

    /// Numbers of the entries that stand in the timeline.
    pub async fn in_timeline(&self, id: ConvId) -> usize {
        let keyspace = &self.place.cluster.options().timeline_keyspace;
        let blobs = self.place.cluster.blobs(&format!("SELECT conversation FROM {keyspace}.timeline")).await.unwrap();
        blobs.iter().filter(|blob| blob[..] == id.0).count()
    }
}

pub async fn claim(store: &ScyllaStore, epoch: u64) {
    let put = Put::Meta { key: EPOCH_KEY.to_owned(), value: epoch_value(epoch) };
    store.put(vec![put], Durability::Synced).await.unwrap();
}

pub async fn append(store: &dyn Store, id: ConvId, epoch: u64, from: u64, to: u64) {
    let mut at = from;
    while at <= to {
        let end = (at | 7).min(to);
        assert_eq!(store.append(vec![batch(id, epoch, at, end)]).await, [Appended::Decided]);
        at = end + 1;
    }
}

pub async fn whole_pass(store: &ScyllaStore) -> TierReport {
    let report = store.tier(&plan()).await.unwrap();
    let faultless = (&report.failed, &report.waits, report.unwritten_erasures, report.foreign_runs);
    assert_eq!(faultless, (&None, &None, 0, 0), "{report:?}");
    report
}

pub async fn read(store: &dyn Store, id: ConvId) -> Vec<Arc<Entry>> {
    let mut backwards = store.range(range(id, 1, u64::MAX, true)).await.unwrap();
    backwards.reverse();
    let forwards = store.range(range(id, 1, u64::MAX, false)).await.unwrap();
    assert_eq!(forwards, backwards);
    forwards
}
