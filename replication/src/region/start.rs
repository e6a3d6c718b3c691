//! What a store is asked and told before it serves (R7, R13).
//!
//! Every start takes the next epoch: revisions of this start are above those of the last one, whatever of
//! them was lost. A start after a stop that was not clean takes a new era as well: its log continues under
//! another name, so nothing that only a lost tail held can meet a second entry of the same number.

use std::collections::BTreeMap;

use bytes::Bytes;
use tern_core::clock::Entropy;
use tern_core::ids::{Origin, Region};
use tern_core::store::{Durability, Put, Store, StoreError, Todo};

use crate::store::{EPOCH_KEY, epoch_value, parse_epoch};

const REGION_KEY: &str = "region";
const ERA_KEY: &str = "era";
const START_KEY: &str = "start";
const CLEAN_KEY: &str = "clean";

/// Why a store can't be served from.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It belongs to another region.
    #[error("this store belongs to region {found}, not to {expected}; give the right --data or the right region id")]
    OtherRegion {
        /// Whose it is.
        found: Region,
        /// Who asked.
        expected: Region,
    },
    /// A named value has a form that this version does not know.
    #[error("the store's value \"{0}\" is not what this version writes; was it written by a newer one?")]
    Value(&'static str),
    /// It does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a start begins with.
#[derive(Debug)]
pub struct Begun {
    /// Region and era.
    pub origin: Origin,
    /// Of this start.
    pub epoch: u64,
    /// Counts the starts.
    pub start: u64,
    /// Whether the last stop was not clean.
    pub unclean: bool,
    /// What was known of other regions: (start, era).
    pub known_eras: BTreeMap<Region, (u64, u64)>,
    /// What is left to do.
    pub todo: Vec<Todo>,
}

/// Begins a start. Everything that is handed back is durable. `damaged`: opening the store found that
/// something is missing or torn, so its mark of a clean stop does not count.
pub async fn begin(store: &dyn Store, region: Region, damaged: bool, rng: &Entropy) -> Result<Begun, StartError> {
    let found = store.meta(REGION_KEY).await?;
    if let Some(value) = &found {
        match value[..] {
            [found] if found == region => {}
            [found] => return Err(StartError::OtherRegion { found, expected: region }),
            _ => return Err(StartError::Value(REGION_KEY)),
        }
    }
    let era = read_u64(store, ERA_KEY).await?;
    let start = read_u64(store, START_KEY).await?.unwrap_or(0) + 1;
    let epoch = match store.meta(EPOCH_KEY).await? {
        Some(value) => parse_epoch(&value).ok_or(StartError::Value(EPOCH_KEY))? + 1,
        None => 1,
    };
    let clean = store.meta(CLEAN_KEY).await?.is_some_and(|v| v[..] == [1]) && !damaged;
    let unclean = era.is_some() && !clean;
    let era = match era {
        Some(era) if clean => era,
        _ => rng.u64(),
    };
    let mut known_eras = BTreeMap::new();
    for peer in 1..=u8::MAX {
        if let Some(value) = store.meta(&format!("peer/{peer}")).await?
            && let Ok(value) = <[u8; 16]>::try_from(&value[..])
        {
            let (start, era) = value.split_at(8);
            let number = |b: &[u8]| b.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            known_eras.insert(peer, (number(start), number(era)));
        }
    }
    let todo = store.todo().await?;
    let puts = vec![
        meta(CLEAN_KEY, &[0]),
        meta(REGION_KEY, &[region]),
        meta(START_KEY, &start.to_be_bytes()),
        meta(ERA_KEY, &era.to_be_bytes()),
        Put::Meta { key: EPOCH_KEY.to_owned(), value: epoch_value(epoch) },
    ];
    store.put(puts, Durability::Synced).await?;
    Ok(Begun { origin: Origin { region, era }, epoch, start, unclean, known_eras, todo })
}

/// What a clean stop writes last.
pub(super) fn clean_mark() -> Put {
    meta(CLEAN_KEY, &[1])
}

fn meta(key: &str, value: &[u8]) -> Put {
    Put::Meta { key: key.to_owned(), value: Bytes::copy_from_slice(value) }
}

async fn read_u64(store: &dyn Store, key: &'static str) -> Result<Option<u64>, StartError> {
    let Some(value) = store.meta(key).await? else { return Ok(None) };
    let bytes = <[u8; 8]>::try_from(&value[..]).map_err(|_| StartError::Value(key))?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    async fn start(store: &MemoryStore, damaged: bool, seed: u64) -> Begun {
        begin(store, 1, damaged, &Entropy::seeded(seed)).await.unwrap()
    }

    #[tokio::test]
    async fn a_clean_stop_keeps_the_era_and_every_start_takes_the_next_epoch() {
        let store = MemoryStore::new();
        let first = start(&store, false, 1).await;
        assert_eq!((first.epoch, first.start, first.unclean), (1, 1, false));
        store.put(vec![clean_mark()], Durability::Synced).await.unwrap();
        let second = start(&store, false, 2).await;
        assert_eq!((second.origin, second.epoch, second.start), (first.origin, 2, 2));
    }

    #[tokio::test]
    async fn a_crash_or_a_damaged_store_takes_a_new_era() {
        let store = MemoryStore::new();
        let first = start(&store, false, 1).await;
        let crashed = store.crash();
        let second = start(&crashed, false, 2).await;
        assert!(second.unclean && second.origin != first.origin);
        crashed.put(vec![clean_mark()], Durability::Synced).await.unwrap();
        let third = start(&crashed, true, 3).await;
        assert_ne!(third.origin, second.origin);
    }

    #[tokio::test]
    async fn a_store_of_another_region_is_refused() {
        let store = MemoryStore::new();
        start(&store, false, 1).await;
        let error = begin(&store, 2, false, &Entropy::seeded(2)).await.unwrap_err();
        assert!(matches!(error, StartError::OtherRegion { found: 1, expected: 2 }));
    }
}
