//! The contract of stores, on a real database.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "tasks that end with their test")]

mod cluster;
#[path = "../../src/store/contract.rs"]
mod contract;

use std::sync::Arc;

use cluster::Place;
use contract::World;
use tern_core::store::{BoxFut, Store};
use tern_scylla::ScyllaStore;

/// Lives are stores: each remembers nothing of the one before. Everything that was answered is durable.
struct Lives {
    place: Place,
    store: Arc<ScyllaStore>,
}

impl Lives {
    fn new(place: Place) -> Self {
        let store = place.store();
        Self { place, store }
    }
}

impl World for Lives {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn crash(&mut self, _keep: usize) {
        self.store = self.place.store();
    }

    fn lazy_sync(&mut self) -> BoxFut<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn epochs_outlive_a_crash(&self) -> bool {
        true
    }
}

mod scylla {
    use super::{Lives, Place};
    crate::contract::contract!(real match Place::new().await {
        Some(place) => Lives::new(place),
        None => return,
    });
}

#[test]
fn random_histories() {
    if cluster::nodes().is_none() {
        return;
    }
    let cases = std::env::var("TERN_CQL_CASES").map_or(8, |cases| cases.parse().unwrap());
    contract::random_histories(contract::Time::Real, cases, || Lives::new(Place::new_blocking().unwrap()));
}
