//! A store that tells what it has decided.
//!
//! Between the moment when an entry is durable and the moment when its sender hears of it lies the history that most
//! messengers get wrong. A scenario that wants to hit it has to know the first moment, which no client sees; so the
//! store of a simulated region can be tapped. The tap is called before whoever appends is answered.

use std::fmt;
use std::sync::Arc;

use tern_core::entry::Entry;
use tern_core::ids::ConvId;
use tern_core::store::{Append, Appended, BoxFut, Store, StoreLayer};
use tern_replication::store::memory::MemoryStore;

/// Told the region's name, the conversation and the entry of each entry that was decided.
pub type Tap = Arc<dyn Listener>;

/// See [`Tap`].
pub trait Listener: Send + Sync + fmt::Debug {
    /// An entry was decided. Must not call the store.
    fn decided(&self, region: &str, conversation: ConvId, entry: &Entry);
}

/// See the module.
#[derive(Debug)]
pub struct TappedStore {
    store: MemoryStore,
    region: String,
    tap: Tap,
}

impl TappedStore {
    /// Taps a store.
    pub fn new(store: MemoryStore, region: &str, tap: Tap) -> Self {
        Self { store, region: region.to_owned(), tap }
    }
}

impl StoreLayer for TappedStore {
    type Below = MemoryStore;

    fn below(&self) -> &MemoryStore {
        &self.store
    }

    fn append_through(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>> {
        Box::pin(async move {
            let told: Vec<_> = batches.iter().map(|batch| (batch.conversation, batch.entries.clone())).collect();
            let answers = self.store.append(batches).await;
            for ((conversation, entries), answer) in told.iter().zip(&answers) {
                if *answer == Appended::Decided {
                    entries.iter().for_each(|entry| self.tap.decided(&self.region, *conversation, entry));
                }
            }
            answers
        })
    }
}
