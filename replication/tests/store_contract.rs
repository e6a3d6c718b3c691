//! The store contract, on every backend.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "a real disk is waited for, by tasks that end with the test")]

#[path = "../src/store/contract.rs"]
mod contract;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use contract::{Time, World};
use tern_core::limits::LAZY_SYNC;
use tern_core::store::{Append, Appended, BoxFut, Durability, Put, Store, StoreError, StoreLayer};
use tern_replication::store::archive::TierPlan;
use tern_replication::store::memory::{Latency, Manner};
use tern_replication::store::{Archive, ArchiveOptions, EmbeddedStore, MemoryObjects, MemoryStore, Options};

struct Memory(MemoryStore);

impl World for Memory {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.0.clone())
    }

    fn crash(&mut self, keep: usize) {
        self.0 = self.0.crash_keeping(keep);
    }

    fn lazy_sync(&mut self) -> BoxFut<'_, ()> {
        Box::pin(tokio::time::sleep(LAZY_SYNC))
    }

    fn die_after(&mut self, steps: u64) -> bool {
        self.0.fail_after(steps, Manner::Errors);
        true
    }
}

struct Embedded {
    store: Option<Arc<EmbeddedStore>>,
    dir: tempfile::TempDir,
}

impl Embedded {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut world = Self { store: None, dir };
        world.open();
        world
    }

    fn open(&mut self) {
        let (store, report) = EmbeddedStore::open(self.dir.path(), Options::new(1).init()).unwrap();
        assert!(!report.clean_stop && report.cut.is_empty() && report.damaged.is_empty(), "{report:?}");
        self.store = Some(Arc::new(store));
    }
}

impl World for Embedded {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.store.as_ref().unwrap()) as Arc<dyn Store>
    }

    fn crash(&mut self, _keep: usize) {
        let store = Arc::try_unwrap(self.store.take().unwrap()).expect("a test still holds the store");
        drop(store);
        self.open();
    }

    fn lazy_sync(&mut self) -> BoxFut<'_, ()> {
        let store = Arc::clone(self.store.as_ref().unwrap());
        Box::pin(async move {
            // A lazy put of its own, so that there is something to be forced; it takes along what came before.
            let before = store.metrics().syncs();
            let put = Put::Meta { key: "lazy".to_owned(), value: Bytes::new() };
            store.put(vec![put], Durability::Lazy).await.unwrap();
            let forced = (0..1_000).any(|_| {
                std::thread::sleep(Duration::from_millis(5));
                store.metrics().syncs() > before
            });
            assert!(forced, "nothing was forced within five seconds");
        })
    }
}

/// An embedded store of which all that can be in the archive is there: buckets are of four places, and a pass follows each
/// write.
struct Tiered {
    store: Option<Arc<AllTiered>>,
    objects: MemoryObjects,
    dir: tempfile::TempDir,
}

#[derive(Debug)]
struct AllTiered(EmbeddedStore);

impl AllTiered {
    async fn tier(&self) {
        let plan = TierPlan { bucket_bits: 2, eager: true, sweep: true, ..TierPlan::new(u64::MAX, Duration::ZERO) };
        let report = self.0.tier(&plan).await.unwrap();
        assert_eq!((report.failed, report.unwritten_erasures), (None, 0));
    }
}

impl StoreLayer for AllTiered {
    type Below = EmbeddedStore;

    fn below(&self) -> &EmbeddedStore {
        &self.0
    }

    fn append_through(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>> {
        let appended = self.0.append(batches);
        Box::pin(async move {
            let answers = appended.await;
            self.tier().await;
            answers
        })
    }

    fn put_through(&self, puts: Vec<Put>, durability: Durability) -> BoxFut<'_, Result<(), StoreError>> {
        let put = self.0.put(puts, durability);
        Box::pin(async move {
            let answer = put.await;
            if durability == Durability::Synced {
                self.tier().await;
            }
            answer
        })
    }
}

impl Tiered {
    fn new() -> Self {
        let mut world = Self { store: None, objects: MemoryObjects::default(), dir: tempfile::tempdir().unwrap() };
        world.open();
        world
    }

    fn open(&mut self) {
        let archive = Archive::new(Arc::new(self.objects.clone()), "test", 1, ArchiveOptions::default());
        let options = Options { archive: Some(Arc::new(archive)), archive_id: [7; 16], ..Options::new(1).init() };
        let (store, report) = EmbeddedStore::open(self.dir.path(), options).unwrap();
        assert!(!report.clean_stop && report.cut.is_empty() && report.damaged.is_empty(), "{report:?}");
        self.store = Some(Arc::new(AllTiered(store)));
    }
}

impl World for Tiered {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.store.as_ref().unwrap()) as Arc<dyn Store>
    }

    fn crash(&mut self, _keep: usize) {
        drop(Arc::try_unwrap(self.store.take().unwrap()).expect("a test still holds the store"));
        self.open();
    }

    fn lazy_sync(&mut self) -> BoxFut<'_, ()> {
        let store = Arc::clone(self.store.as_ref().unwrap());
        Box::pin(async move {
            let put = Put::Meta { key: "lazy".to_owned(), value: Bytes::new() };
            store.0.put(vec![put], Durability::Synced).await.unwrap();
        })
    }
}

mod memory {
    use super::{Memory, MemoryStore};
    crate::contract::contract!(Memory(MemoryStore::new()));
}

mod memory_with_latency {
    use super::{Duration, Latency, Memory, MemoryStore};
    const SLOW: Latency = Latency { sync: Duration::from_millis(5), read: Duration::from_millis(1) };
    crate::contract::contract!(Memory(MemoryStore::with_latency(SLOW)));
}

mod embedded {
    use super::Embedded;
    crate::contract::contract!(Embedded::new());
}

mod embedded_and_tiered {
    use super::Tiered;
    crate::contract::contract!(Tiered::new());
}

#[test]
fn random_histories_on_an_embedded_store_that_is_tiered() {
    contract::random_histories(Time::Paused, 8, Tiered::new);
}

#[test]
fn random_histories_on_the_memory_store() {
    contract::random_histories(Time::Paused, 512, || Memory(MemoryStore::new()));
}

#[test]
fn random_histories_on_a_memory_store_with_latency() {
    let latency = Latency { sync: Duration::from_millis(5), read: Duration::from_millis(1) };
    contract::random_histories(Time::Paused, 256, || Memory(MemoryStore::with_latency(latency)));
}

#[test]
fn random_histories_on_the_embedded_store() {
    contract::random_histories(Time::Paused, 8, Embedded::new);
}
