//! What a store is asked and told before it serves (R7, R13).
//!
//! Every start takes the next epoch: revisions of this start are above those of the last one, whatever of
//! them was lost. It goes on in its era only after a clean stop, and if every configured peer confirms that it
//! has heard of nothing later (see `confirm`). Otherwise its log continues under another name, so nothing that
//! only a lost tail held can meet a second entry of the same number; and in the same commit it is noted that the
//! store must be compared with each peer. A store that outlives its machine ([`Store::outlives_its_machine`]) has lost
//! nothing: its region goes on in its era and asks nobody, unless an operator has said that it was restored.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tern_core::clock::Entropy;
use tern_core::eras::{Era, EraTable, is_era};
use tern_core::ids::{Origin, Region};
use tern_core::leases::SharedStore;
use tern_core::mutants::{Mutant, on};
use tern_core::node::refill::{Known, MARK_KEY, RESTORED_KEY, share_mark};
use tern_core::node::seal::ERAS_KEY;
use tern_core::slots::Share;
use tern_core::store::{Durability, Put, Store, StoreError, Todo};

use super::shares::futures_join;
use crate::store::{EPOCH_KEY, epoch_value, parse_epoch};

/// Named values that are read at once.
const READS_AT_ONCE: usize = 32;
/// Set by a repair or a restore: compare with every peer.
const REFILL_ALL_KEY: &str = "refill/all";
const REGION_KEY: &str = "region";
const ERA_KEY: &str = "era";
/// Where several nodes share the region: under what name its era is settled, if not under [`ERA_KEY`].
const ERA_NAME_KEY: &str = "era/name";
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

/// What a store says before anything is decided. Nothing is written yet.
#[derive(Debug)]
pub struct Opened {
    region: Region,
    era: Option<u64>,
    /// Of the life before this one.
    pub start: u64,
    epoch: u64,
    /// It was stopped cleanly, and this is how many entries its era had made durable: it may go on in its era, if
    /// its peers have heard of nothing later.
    pub claim: Option<u64>,
    /// Peers that it must be compared with, whatever becomes of its era.
    marks: BTreeSet<Region>,
    all_marked: bool,
    restored: bool,
    /// What is known of other regions.
    pub known: BTreeMap<Region, Known>,
    eras: EraTable,
    todo: Vec<Todo>,
}

/// What a start begins with. All of it is durable.
#[derive(Debug)]
pub struct Begun {
    /// Region and era.
    pub origin: Origin,
    /// Of this start.
    pub epoch: u64,
    /// Counts the starts.
    pub start: u64,
    /// Entries that the era has made durable before.
    pub commit: u64,
    /// The era is new, though the store is not.
    pub era_replaced: bool,
    /// Peers to be compared with.
    pub refill: BTreeSet<Region>,
    /// Where several nodes share the region: peers that some of its shares must be compared with.
    pub marked: BTreeSet<Region>,
    /// The store is a restored backup that has not been compared with any peer yet.
    pub restored: bool,
    /// What is known of other regions.
    pub known: BTreeMap<Region, Known>,
    /// What is known of all regions' eras, with this one.
    pub eras: EraTable,
    /// What is left to do.
    pub todo: Vec<Todo>,
}

/// Asks a store. `damaged`: opening it found that something is missing or torn, so its mark of a clean stop does
/// not count.
pub async fn open(store: &dyn Store, region: Region, damaged: bool) -> Result<Opened, StartError> {
    if let Some(value) = value(store, REGION_KEY).await? {
        match value[..] {
            [found] if found == region => {}
            [found] => return Err(StartError::OtherRegion { found, expected: region }),
            _ => return Err(StartError::Value(REGION_KEY)),
        }
    }
    let era = read_u64(store, ERA_KEY).await?;
    let start = read_u64(store, START_KEY).await?.unwrap_or(0);
    let epoch = match value(store, EPOCH_KEY).await? {
        Some(value) => parse_epoch(&value).ok_or(StartError::Value(EPOCH_KEY))? + 1,
        None => 1,
    };
    let all_marked = value(store, REFILL_ALL_KEY).await?.is_some();
    let restored = value(store, RESTORED_KEY).await?.is_some();
    let clean = value(store, CLEAN_KEY).await?.as_deref().and_then(clean_commit);
    // Such a store has lost nothing, however the last life ended.
    let kept = if store.outlives_its_machine() { Some(clean.unwrap_or(0)) } else { clean };
    let claim = kept.filter(|_| era.is_some() && !damaged && !all_marked && !restored);
    let (mut known, mut marks, mut eras) = (BTreeMap::new(), BTreeSet::new(), EraTable::default());
    for peer in 1..=u8::MAX {
        if let Some(value) = value(store, &format!("{ERAS_KEY}{peer}")).await?
            && !eras.take_bytes(peer, &value)
        {
            return Err(StartError::Value(ERAS_KEY));
        }
        if let Some(value) = value(store, &format!("peer/{peer}")).await? {
            known.insert(peer, Known::from_bytes(&value).ok_or(StartError::Value("peer"))?);
        }
        if value(store, &format!("{MARK_KEY}{peer}")).await?.is_some() {
            marks.insert(peer);
        }
    }
    let todo = store.todo().await?;
    Ok(Opened { region, era, start, epoch, claim, marks, all_marked, restored, known, eras, todo })
}

/// Begins a start: the era goes on if `keep` and the store allows it. Era and marks are one commit, and the marks
/// come first in it: a store that wrote only a part of it compares once too often.
pub async fn begin(
    store: &dyn Store,
    opened: Opened,
    peers: &BTreeSet<Region>,
    keep: bool,
    rng: &Entropy,
) -> Result<Begun, StartError> {
    let Opened { region, era: old, start, epoch, claim, mut marks, all_marked, restored, known, mut eras, todo } =
        opened;
    let loses = on(Mutant::EraKept) || on(Mutant::RevReused);
    let (keep, claim) = if loses { (true, claim.or(Some(0))) } else { (keep, claim) };
    let kept = old.zip(claim).filter(|_| keep);
    let (era, commit) = match kept {
        Some((era, commit)) => (era, commit),
        None => (mint(rng), 0),
    };
    let mut puts = Vec::new();
    if kept.is_none() || all_marked {
        marks.extend(peers);
        puts.extend(peers.iter().map(|peer| meta(&format!("{MARK_KEY}{peer}"), &[1])));
    }
    // A region that is no peer any more can't be compared with.
    puts.extend(marks.difference(peers).map(|gone| meta(&format!("{MARK_KEY}{gone}"), &[])));
    if all_marked {
        puts.push(meta(REFILL_ALL_KEY, &[]));
    }
    let alone = restored && peers.is_empty();
    if alone {
        tracing::warn!(
            "this store is a restored backup and there is no peer to compare it with: it is served as it is, \
             and what was erased since the backup is back"
        );
        puts.push(meta(RESTORED_KEY, &[]));
    }
    let start = start + 1;
    let origin = Origin { region, era };
    if eras.get(origin).is_none() {
        eras.note(origin, Era { start, sealed: false }, true);
        puts.push(Put::Meta { key: format!("{ERAS_KEY}{region}"), value: eras.to_bytes(region) });
    }
    puts.extend([
        meta(CLEAN_KEY, &[0]),
        meta(REGION_KEY, &[region]),
        meta(START_KEY, &start.to_be_bytes()),
        meta(ERA_KEY, &era.to_be_bytes()),
        Put::Meta { key: EPOCH_KEY.to_owned(), value: epoch_value(epoch) },
    ]);
    store.put(puts, Durability::Synced).await?;
    Ok(Begun {
        origin,
        epoch,
        start,
        commit,
        era_replaced: old.is_some() && kept.is_none(),
        refill: marks.intersection(peers).copied().collect(),
        marked: BTreeSet::new(),
        restored: restored && !alone,
        known,
        eras,
        todo,
    })
}

/// Begins a start of one of several nodes: era and the rest are the region's, whichever node comes first. Epochs come
/// with shares, and so do what is left to do and the marks of what must be compared: one for each share and peer, which
/// are durable before the era is.
pub async fn begin_shared(
    store: &dyn SharedStore,
    opened: Opened,
    peers: &BTreeSet<Region>,
    rng: &Entropy,
) -> Result<Begun, StartError> {
    let Opened { region, era, start, known, mut eras, restored, mut marks, .. } = opened;
    if era.is_none() && !peers.is_empty() {
        let each = peers.iter().flat_map(|peer| Share::all().map(|share| share_mark(*peer, share)));
        let all = each.chain(peers.iter().map(|peer| format!("{MARK_KEY}{peer}")));
        store.put(all.map(|key| meta(&key, &[1])).collect(), Durability::Synced).await?;
        marks.extend(peers);
    }
    let era_name = match value(store, ERA_NAME_KEY).await? {
        Some(name) => String::from_utf8(name.to_vec()).map_err(|_| StartError::Value(ERA_NAME_KEY))?,
        None => ERA_KEY.to_owned(),
    };
    let mut marked = BTreeSet::new();
    for peer in marks {
        if peers.contains(&peer) && !marked_shares(store, peer, Share::all()).await?.is_empty() {
            marked.insert(peer);
        } else {
            store.put(vec![meta(&format!("{MARK_KEY}{peer}"), &[])], Durability::Synced).await?;
        }
    }
    let restored = restored && !marked.is_empty();
    if !restored {
        store.put(vec![meta(RESTORED_KEY, &[])], Durability::Synced).await?;
    }
    let era = store.settle(era_name, Bytes::copy_from_slice(&mint(rng).to_be_bytes())).await?;
    let era = <[u8; 8]>::try_from(&era[..]).map_err(|_| StartError::Value(ERA_KEY))?;
    let era = u64::from_be_bytes(era);
    let origin = Origin { region, era };
    let mut puts = vec![meta(REGION_KEY, &[region]), meta(ERA_KEY, &era.to_be_bytes())];
    if eras.get(origin).is_none() {
        eras.note(origin, Era { start: start.max(1), sealed: false }, true);
        puts.push(Put::Meta { key: format!("{ERAS_KEY}{region}"), value: eras.to_bytes(region) });
    }
    store.put(puts, Durability::Synced).await?;
    Ok(Begun {
        origin,
        epoch: 0,
        start: start.max(1),
        commit: 0,
        era_replaced: false,
        refill: BTreeSet::new(),
        marked,
        restored,
        known,
        eras,
        todo: Vec::new(),
    })
}

/// After the database of a region that several nodes share was restored, none of which runs: the next starts settle another
/// era, every share is compared with every peer, and nobody is let in whose share was not. It may be repeated: what must
/// be compared is durable before the era ends.
pub async fn end_shared_era(
    store: &dyn SharedStore,
    region: Region,
    peers: &BTreeSet<Region>,
    rng: &Entropy,
) -> Result<(), StartError> {
    let opened = open(store, region, false).await?;
    if peers.is_empty() {
        tracing::warn!("there is no peer to compare the restored region with: it will be served as it is");
    }
    let each = peers.iter().flat_map(|peer| Share::all().map(|share| share_mark(*peer, share)));
    let all = each.chain(peers.iter().map(|peer| format!("{MARK_KEY}{peer}")));
    let mut puts: Vec<Put> = all.map(|key| meta(&key, &[1])).collect();
    puts.push(meta(RESTORED_KEY, &[1]));
    store.put(puts, Durability::Synced).await?;
    // A name that was never used: what was settled under one that was may be from after the backup.
    let name = format!("{ERA_KEY}/{:016x}", mint(rng));
    let start = opened.start.max(1) + 1;
    let puts = vec![meta(START_KEY, &start.to_be_bytes()), meta(ERA_NAME_KEY, name.as_bytes())];
    Ok(store.put(puts, Durability::Synced).await?)
}

/// Which of these shares must be compared with a peer.
pub(super) async fn marked_shares(
    store: &dyn SharedStore,
    peer: Region,
    shares: impl Iterator<Item = Share>,
) -> Result<BTreeSet<Share>, StoreError> {
    let shares: Vec<Share> = shares.collect();
    let mut marked = BTreeSet::new();
    for part in shares.chunks(READS_AT_ONCE) {
        let keys: Vec<String> = part.iter().map(|share| share_mark(peer, *share)).collect();
        let found = futures_join(keys.iter().map(|key| value(store, key))).await;
        for (share, found) in part.iter().zip(found) {
            if found?.is_some() {
                marked.insert(*share);
            }
        }
    }
    Ok(marked)
}

/// A name for a new era.
fn mint(rng: &Entropy) -> u64 {
    loop {
        let era = rng.u64();
        if is_era(era) {
            return era;
        }
    }
}

/// Makes the start count a later one than a peer has heard of: see `dial`.
pub(super) async fn raise(store: &dyn Store, start: u64) -> Result<(), StoreError> {
    store.put(vec![meta(START_KEY, &start.to_be_bytes())], Durability::Synced).await
}

/// What a clean stop writes last: that it was one, and how many entries the era has made durable.
pub(super) fn clean_mark(commit: u64) -> Put {
    let mut value = vec![1];
    value.extend(commit.to_be_bytes());
    meta(CLEAN_KEY, &value)
}

/// What it says, if the stop was clean; the form of one byte is from before entries were counted.
fn clean_commit(value: &[u8]) -> Option<u64> {
    match value {
        [1] => Some(0),
        [1, commit @ ..] => commit.try_into().ok().map(u64::from_be_bytes),
        _ => None,
    }
}

fn meta(key: &str, value: &[u8]) -> Put {
    Put::Meta { key: key.to_owned(), value: Bytes::copy_from_slice(value) }
}

/// A named value; an empty one stands for none.
async fn value(store: &dyn Store, key: &str) -> Result<Option<Bytes>, StoreError> {
    Ok(store.meta(key).await?.filter(|value| !value.is_empty()))
}

async fn read_u64(store: &dyn Store, key: &'static str) -> Result<Option<u64>, StartError> {
    let Some(value) = value(store, key).await? else { return Ok(None) };
    let bytes = <[u8; 8]>::try_from(&value[..]).map_err(|_| StartError::Value(key))?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use tern_core::store::StoreLayer;

    use super::*;
    use crate::store::{MemoryStore, SharedMemory};

    async fn start(store: &MemoryStore, damaged: bool, keep: bool) -> Begun {
        let opened = open(store, 1, damaged).await.unwrap();
        begin(store, opened, &[2, 3].into(), keep, &Entropy::seeded(store.steps())).await.unwrap()
    }

    async fn set(store: &MemoryStore, puts: Vec<Put>) {
        store.put(puts, Durability::Synced).await.unwrap();
    }

    #[tokio::test]
    async fn a_confirmed_clean_stop_keeps_the_era_and_every_start_takes_the_next_epoch() {
        let store = MemoryStore::new();
        let first = start(&store, false, true).await;
        assert_eq!((first.epoch, first.start, first.era_replaced), (1, 1, false));
        assert_eq!(first.refill, [2, 3].into(), "a new store lacks what a lost one held");
        set(&store, vec![clean_mark(7), meta("refill/2", &[]), meta("refill/3", &[])]).await;
        let opened = open(&store, 1, false).await.unwrap();
        assert_eq!((opened.start, opened.claim), (1, Some(7)));
        let second = start(&store, false, true).await;
        assert_eq!((second.origin, second.epoch, second.start), (first.origin, 2, 2));
        assert_eq!((second.commit, second.refill.len()), (7, 0));
        set(&store, vec![clean_mark(7)]).await;
        let third = start(&store, false, false).await;
        assert!(third.origin != first.origin && third.refill == [2, 3].into() && third.commit == 0);
    }

    #[tokio::test]
    async fn a_crash_a_damaged_a_repaired_and_a_restored_store_take_a_new_era() {
        let mut store = MemoryStore::new();
        let mut eras = vec![start(&store, false, true).await.origin];
        for how in ["crash", "damage", "repair", "restore"] {
            if how != "crash" {
                set(&store, vec![clean_mark(1)]).await;
            }
            match how {
                "repair" => set(&store, vec![meta(REFILL_ALL_KEY, &[1])]).await,
                "restore" => set(&store, vec![meta(RESTORED_KEY, &[1])]).await,
                _ => {}
            }
            store = store.crash();
            let begun = start(&store, how == "damage", true).await;
            assert!(begun.era_replaced && !eras.contains(&begun.origin), "{how}");
            assert_eq!((begun.refill.len(), begun.restored), (2, how == "restore"), "{how}");
            eras.push(begun.origin);
        }
    }

    #[tokio::test]
    async fn a_start_that_dies_at_any_point_never_has_a_new_era_without_its_marks() {
        for steps in 0..9 {
            let store = MemoryStore::new();
            let first = start(&store, false, true).await;
            set(&store, vec![meta("refill/2", &[]), meta("refill/3", &[])]).await;
            let store = store.crash();
            let opened = open(&store, 1, false).await.unwrap();
            store.fail_after(steps, crate::store::memory::Manner::Errors);
            let died = begin(&store, opened, &[2, 3].into(), true, &Entropy::seeded(9)).await.is_err();
            assert!(died || steps >= 8, "{steps}");
            let store = store.crash_keeping(usize::try_from(steps).unwrap());
            let after = open(&store, 1, false).await.unwrap();
            assert!(after.era == Some(first.origin.era) || after.marks.len() == 2, "{steps}: {after:?}");
        }
    }

    /// Of a database with replicas.
    #[derive(Debug)]
    struct Lasting(MemoryStore);

    impl StoreLayer for Lasting {
        type Below = MemoryStore;

        fn below(&self) -> &MemoryStore {
            &self.0
        }

        fn is_lasting(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn on_a_store_that_outlives_its_machine_only_an_operator_ends_the_era() {
        let memory = MemoryStore::new();
        let peers = [2, 3].into();
        let begin_on = async |memory: &MemoryStore| {
            let store = Lasting(memory.clone());
            let opened = open(&store, 1, false).await.unwrap();
            let keep = opened.claim.is_some();
            begin(&store, opened, &peers, keep, &Entropy::seeded(memory.steps())).await.unwrap()
        };
        let first = begin_on(&memory).await;
        assert_eq!(first.refill, peers, "a new store is compared with all");
        set(&memory, vec![meta("refill/2", &[]), meta("refill/3", &[])]).await;
        let memory = memory.crash();
        let second = begin_on(&memory).await;
        assert_eq!((second.origin, second.epoch, second.era_replaced), (first.origin, 2, false), "after a crash");
        assert!(second.refill.is_empty());
        set(&memory, vec![meta(RESTORED_KEY, &[1]), meta(REFILL_ALL_KEY, &[1])]).await;
        let third = begin_on(&memory).await;
        assert!(third.era_replaced && third.origin != first.origin && third.restored);
        assert_eq!(third.refill, peers);
    }

    #[tokio::test]
    async fn a_mark_stands_over_a_clean_restart_and_goes_with_its_peer() {
        let store = MemoryStore::new();
        start(&store, false, true).await;
        set(&store, vec![clean_mark(0), meta("refill/3", &[])]).await;
        let opened = open(&store, 1, false).await.unwrap();
        let begun = begin(&store, opened, &[2, 3].into(), true, &Entropy::seeded(2)).await.unwrap();
        assert_eq!(begun.refill, [2].into());
        set(&store, vec![clean_mark(0)]).await;
        let opened = open(&store, 1, false).await.unwrap();
        let begun = begin(&store, opened, &[3].into(), true, &Entropy::seeded(3)).await.unwrap();
        assert_eq!(begun.refill, BTreeSet::new());
    }

    #[tokio::test]
    async fn a_restored_store_without_peers_serves_at_once() {
        let store = MemoryStore::new();
        set(&store, vec![meta(RESTORED_KEY, &[1]), meta(REFILL_ALL_KEY, &[1])]).await;
        let opened = open(&store, 1, false).await.unwrap();
        let begun = begin(&store, opened, &BTreeSet::new(), false, &Entropy::seeded(2)).await.unwrap();
        assert!(!begun.restored && begun.refill.is_empty());
        assert!(!open(&store, 1, false).await.unwrap().restored);
    }

    #[tokio::test]
    async fn a_shared_store_that_was_restored_takes_one_new_era_for_all_its_nodes_and_compares_every_share() {
        let store = SharedMemory::new(b"salt");
        let (peers, seed) = (BTreeSet::from([2, 3]), std::cell::Cell::new(0));
        let begin = || async {
            seed.set(seed.get() + 1);
            let opened = open(&store, 1, false).await.unwrap();
            begin_shared(&store, opened, &peers, &Entropy::seeded(seed.get())).await.unwrap()
        };
        let (a, b) = (begin().await, begin().await);
        assert_eq!(a.origin, b.origin);
        let all = |peer| Share::all().map(move |share| meta(&share_mark(peer, share), &[]));
        store.put(all(2).chain(all(3)).collect(), Durability::Synced).await.unwrap();
        let c = begin().await;
        assert!(c.origin == a.origin && c.marked.is_empty() && !c.restored);

        end_shared_era(&store, 1, &peers, &Entropy::seeded(9)).await.unwrap();
        let (d, e) = (begin().await, begin().await);
        assert!(d.origin != a.origin && d.origin == e.origin && d.start > a.start);
        assert!(d.restored && e.restored && d.marked == peers);
        let marked = marked_shares(&store, 3, Share::all()).await.unwrap();
        assert_eq!(marked.len(), usize::from(tern_core::slots::SHARES));
        // It stays closed to clients for as long as anything is left to be compared, whoever starts.
        store.put(all(2).collect(), Durability::Synced).await.unwrap();
        assert!(begin().await.restored);
        store.put(all(3).collect(), Durability::Synced).await.unwrap();
        let f = begin().await;
        assert!(!f.restored && f.origin == d.origin && f.marked.is_empty());
        assert_eq!(store.meta(RESTORED_KEY).await.unwrap().unwrap_or_default().len(), 0);
        // Once more is another one.
        end_shared_era(&store, 1, &peers, &Entropy::seeded(10)).await.unwrap();
        let g = begin().await;
        assert!(g.origin != d.origin && g.origin != a.origin && g.start > d.start);
    }

    #[tokio::test]
    async fn a_store_of_another_region_is_refused() {
        let store = MemoryStore::new();
        start(&store, false, true).await;
        let error = open(&store, 2, false).await.unwrap_err();
        assert!(matches!(error, StartError::OtherRegion { found: 1, expected: 2 }));
    }
}
