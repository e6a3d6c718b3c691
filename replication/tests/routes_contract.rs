//! The contract of tables of routes, on the one in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "tasks that end with their test")]

#[path = "../src/routes/contract.rs"]
mod contract;

use std::sync::Arc;

use contract::World;
use tern_core::store::BoxFut;
use tern_net::system::SystemClock;
use tern_replication::routes::{MemoryRoutes, Routes};

struct Memory(MemoryRoutes);

impl Memory {
    fn new() -> Self {
        Self(MemoryRoutes::new(Arc::new(SystemClock)))
    }
}

impl World for Memory {
    fn routes(&self) -> Arc<dyn Routes> {
        Arc::new(self.0.clone())
    }

    fn another(&self) -> Arc<dyn Routes> {
        Arc::new(self.0.of_another_node())
    }

    fn lose(&mut self) -> BoxFut<'_, ()> {
        self.0.lose();
        Box::pin(std::future::ready(()))
    }
}

mod memory {
    use super::Memory;
    crate::contract::contract!(Memory::new());
}

#[test]
fn random_histories() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    contract::random_histories(2_000, &Memory::new(), &runtime);
}
