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
use tern_core::store::{BoxFut, Durability, Put, Store};
use tern_replication::store::memory::{Latency, Manner};
use tern_replication::store::{EmbeddedStore, MemoryStore, Options};

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
