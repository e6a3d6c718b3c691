//! Moving old entries of an embedded store to an archive: every crash, erasures, dead and lying object stores, backups.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "a real disk is waited for")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place, UserId, body_hash};
use tern_core::sequencer::LogState;
use tern_core::store::{Append, Appended, Durability, Put, Range, Store, StoreError, Target, Todo};
use tern_replication::store::archive::{TierPlan, TierReport};
use tern_replication::store::embedded::backup;
use tern_replication::store::embedded::check::Kind;
use tern_replication::store::embedded::{CheckReport, Offline};
use tern_replication::store::{Archive, ArchiveOptions, EmbeddedStore, MemoryObjects, Options};

const HERE: Origin = Origin { region: 1, era: 1 };
/// Milliseconds between two entries.
const APART_MS: u64 = 1_000;
const DAY_MS: u64 = 24 * 3_600_000;

fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

fn entry(seq: u64) -> Arc<Entry> {
    Arc::new(Entry {
        peer: Some(UserId::new("bob").unwrap()),
        ..Entry::text(
            Place { hlc: (seq * APART_MS) << 16, origin: HERE, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
            format!("<message {seq} as it was written>"),
        )
    })
}

fn entries(from: u64, to: u64) -> Vec<Arc<Entry>> {
    (from..=to).map(entry).collect()
}

fn range(from: u64, to: u64, backwards: bool) -> Range {
    Range { conversation: conv(1), origin: HERE, from, to, max_entries: 1 << 20, max_bytes: 1 << 30, backwards }
}

fn erase(seq: u64) -> Put {
    Put::Erase { conversation: conv(1), origin: HERE, seq, by: entry(seq).by.clone() }
}

/// A disk and an object store that outlive processes.
struct World {
    dir: tempfile::TempDir,
    objects: MemoryObjects,
}

impl World {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), objects: MemoryObjects::default() }
    }

    fn archive(&self) -> Arc<Archive> {
        let options = ArchiveOptions { cache_bytes: 0, ..ArchiveOptions::default() };
        Arc::new(Archive::new(Arc::new(self.objects.clone()), "test", 1, options))
    }

    fn open(&self) -> EmbeddedStore {
        self.open_in(&self.dir.path().join("store"), [7; 16])
    }

    fn open_in(&self, dir: &Path, archive_id: [u8; 16]) -> EmbeddedStore {
        let options = Options { archive: Some(self.archive()), archive_id, ..Options::new(1).init() };
        let (store, report) = EmbeddedStore::open(dir, options).unwrap();
        assert!(!report.is_damaged(), "{report:?}");
        store
    }

    /// A store with that many entries in conversation 1.
    async fn filled(&self, to: u64) -> EmbeddedStore {
        let store = self.open();
        append(&store, 1, to).await;
        store
    }

    fn offline(&self) -> Offline {
        Offline::open(&self.dir.path().join("store")).unwrap()
    }
}

async fn append(store: &EmbeddedStore, from: u64, to: u64) {
    let (conversation, entries) = (conv(1), entries(from, to));
    let append = Append { conversation, origin: HERE, epoch: 1, entries, todo: Vec::new() };
    assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
}

/// Of buckets of eight places, a long time later.
fn plan() -> TierPlan {
    TierPlan { bucket_bits: 3, eager: true, ..TierPlan::new(100 * DAY_MS, Duration::from_secs(3_600)) }
}

async fn whole_pass(store: &EmbeddedStore) -> TierReport {
    let report = store.tier(&plan()).await.unwrap();
    assert_eq!((&report.failed, report.unwritten_erasures, report.foreign_runs), (&None, 0, 0), "{report:?}");
    report
}

async fn read(store: &EmbeddedStore) -> Vec<Arc<Entry>> {
    let mut backwards = store.range(range(1, u64::MAX, true)).await.unwrap();
    backwards.reverse();
    let forwards = store.range(range(1, u64::MAX, false)).await.unwrap();
    assert_eq!(forwards, backwards);
    forwards
}

#[tokio::test]
async fn closed_buckets_move_and_are_read_as_before() {
    let world = World::new();
    let store = world.filled(30).await;
    let report = whole_pass(&store).await;
    // 1 to 7, 8 to 15, 16 to 23; 24 to 31 is not full.
    assert_eq!((report.moved_buckets, report.moved_entries, report.runs), (3, 23, 3), "{report:?}");
    assert_eq!(world.objects.names().len(), 3);
    assert_eq!(read(&store).await, entries(1, 30));
    for (from, to) in [(1, 7), (7, 8), (15, 16), (20, 26), (23, 24), (24, 30), (30, 40), (31, 40), (9, 9)] {
        let expected = entries(from, to.min(30));
        assert_eq!(store.range(range(from, to, false)).await.unwrap(), expected, "{from} to {to}");
        let mut backwards = store.range(range(from, to, true)).await.unwrap();
        backwards.reverse();
        assert_eq!(backwards, expected, "{from} to {to}, backwards");
    }
    let two = Range { max_entries: 2, ..range(14, 30, false) };
    assert_eq!(store.range(two).await.unwrap(), entries(14, 15));
    let three = Range { max_entries: 3, ..range(1, 25, true) };
    assert_eq!(store.range(three).await.unwrap(), [entry(25), entry(24), entry(23)]);
    assert_eq!(store.range(Range { max_bytes: 1, ..range(3, 30, false) }).await.unwrap(), [entry(3)]);
    append(&store, 31, 32).await;
    let again = whole_pass(&store).await;
    assert_eq!((again.moved_buckets, again.runs), (1, 4));
    assert_eq!(whole_pass(&store).await.moved_buckets, 0);
    store.close().await.unwrap();
    drop(store);
    let store = world.open();
    assert_eq!(read(&store).await, entries(1, 32));
    assert_eq!(store.conversations(None, 9).await.unwrap(), [(conv(1), [(HERE, 32)].into())]);
    let marker = std::fs::read_to_string(world.dir.path().join("store/STORE")).unwrap();
    assert!(marker.contains("format 2"), "an earlier version must not take it for damaged: {marker}");
}

#[tokio::test]
async fn a_death_after_any_step_of_a_pass_leaves_everything_readable() {
    for steps in 0.. {
        let world = World::new();
        let store = world.filled(20).await;
        store.put(vec![erase(3), erase(19)], Durability::Synced).await.unwrap();
        let mut expected = entries(1, 20);
        for seq in [3, 19] {
            expected[seq - 1] = Arc::new(expected[seq - 1].to_erased());
        }
        let died = store.tier(&TierPlan { steps: Some(steps), ..plan() }).await.is_err();
        assert_eq!(read(&store).await, expected, "before the death after {steps} steps");
        drop(store);
        let store = world.open();
        assert_eq!(read(&store).await, expected, "after {steps} steps");
        let report = whole_pass(&store).await;
        assert_eq!(report.runs, 2);
        assert_eq!(read(&store).await, expected);
        // What a death left behind is nobody's, and goes a day later.
        let late = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
        assert_eq!(store.tier(&late).await.unwrap().failed, None);
        assert_eq!(world.objects.names().len(), 2, "{:?}", world.objects.names());
        assert_eq!(read(&store).await, expected);
        drop(store);
        assert_sound(&check(&world, true));
        if !died {
            assert!(steps > 6, "a pass has more steps than {steps}");
            return;
        }
    }
}

#[tokio::test]
async fn an_erasure_of_what_is_archived_counts_at_once_and_takes_the_body_out_of_the_archive() {
    for steps in 0.. {
        let world = World::new();
        let store = world.filled(20).await;
        whole_pass(&store).await;
        let holds = |world: &World| {
            let body = &entry(5).body;
            let objects: Vec<Bytes> = world.objects.names().iter().filter_map(|n| world.objects.bytes(n)).collect();
            objects.iter().any(|object| object.windows(body.len()).any(|bytes| bytes == &body[..]))
        };
        assert!(holds(&world));
        world.objects.set_dead(true);
        store.put(vec![erase(5)], Durability::Synced).await.unwrap();
        world.objects.set_dead(false);
        let mut expected = entries(1, 20);
        expected[4] = Arc::new(expected[4].to_erased());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(read(&store).await, expected, "it counts before the object is written anew");
        let died = store.tier(&TierPlan { steps: Some(steps), ..plan() }).await.is_err();
        drop(store);
        let store = world.open();
        assert_eq!(read(&store).await, expected, "after {steps} steps");
        let report = whole_pass(&store).await;
        assert_eq!(report.runs, 2);
        let late = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
        store.tier(&late).await.unwrap();
        assert!(!holds(&world), "the body is in no object any more");
        assert_eq!(world.objects.names().len(), 2);
        assert_eq!(read(&store).await, expected);
        store.put(vec![erase(5)], Durability::Synced).await.unwrap();
        assert_eq!(whole_pass(&store).await.rewritten, 0, "once more changes nothing");
        if !died {
            assert!(steps >= 3, "{steps}");
            return;
        }
    }
}

#[tokio::test]
async fn the_list_of_erasures_has_those_of_archived_entries() {
    let world = World::new();
    let store = world.filled(20).await;
    whole_pass(&store).await;
    store.put(vec![erase(5)], Durability::Synced).await.unwrap();
    let list = store.export_erasures(world.dir.path().to_owned()).await.unwrap();
    assert_eq!(list.counts.of(backup::Table::Erased), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_or_silent_object_store_costs_old_ranges_and_nothing_else() {
    let world = World::new();
    let store = world.filled(20).await;
    whole_pass(&store).await;
    for silent in [false, true] {
        tokio::time::advance(Duration::from_secs(5)).await;
        world.objects.set_dead(!silent);
        world.objects.set_silent(silent);
        let error = store.range(range(1, 3, false)).await.unwrap_err();
        assert!(matches!(error, StoreError::Archive(_)), "{error}");
        let head = store.conversation(conv(1)).await.unwrap().heads[&HERE];
        append(&store, head + 1, head + 1).await;
        assert_eq!(store.range(range(16, 20, false)).await.unwrap(), entries(16, 20));
        let newest = store.range(range(1, 20, true)).await.unwrap();
        assert_eq!(newest.last().unwrap().place.seq, 16, "what is here is told, and the rest asked for again");
        let report = store.tier(&plan()).await.unwrap();
        assert_eq!(report.moved_buckets, 0);
    }
    append(&store, 23, 24).await;
    tokio::time::advance(Duration::from_secs(5)).await;
    let report = store.tier(&plan()).await.unwrap();
    assert!(report.failed.is_some_and(|what| what.contains("10000 ms")), "what should have moved did not");
    tokio::time::advance(Duration::from_secs(5)).await;
    world.objects.set_silent(false);
    assert_eq!(whole_pass(&store).await.moved_buckets, 1);
    assert_eq!(read(&store).await, entries(1, 24));
}

#[tokio::test]
async fn a_missing_or_damaged_object_is_told_and_everything_else_is_served() {
    for spoil in [None, Some(Bytes::from_static(b"rubbish"))] {
        let world = World::new();
        let store = world.filled(30).await;
        whole_pass(&store).await;
        let name = world.objects.names()[1].clone();
        let whole = world.objects.bytes(&name);
        world.objects.spoil(&name, spoil.clone());
        let error = store.range(range(8, 9, false)).await.unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { what, .. } if what.contains(&name)), "{error}");
        assert_eq!(store.range(range(1, 7, false)).await.unwrap(), entries(1, 7));
        assert_eq!(store.range(range(16, 30, false)).await.unwrap(), entries(16, 30));
        append(&store, 31, 32).await;
        assert_eq!(whole_pass(&store).await.moved_buckets, 1, "others move");
        drop(store);
        for reads in [true, false] {
            let report = check(&world, reads);
            assert_eq!(report.counts.get(&Kind::Archive), Some(&(1, 0)), "{report:?}");
            let at = report.findings.iter().find(|finding| finding.kind == Kind::Archive).unwrap();
            assert!(at.place.contains("entries 8 to 15 in the archive"), "{report:?}");
            assert_eq!((report.archived_runs, report.archived_entries), (4, 31));
        }
        world.objects.spoil(&name, whole);
        assert_sound(&check(&world, true));
        assert_eq!(read(&world.open()).await, entries(1, 32));
    }
}

/// Nothing is wrong with logs; there are no rows, which is not what these tests are about.
fn assert_sound(report: &CheckReport) {
    let of_logs = [Kind::Archive, Kind::Log, Kind::Erasure, Kind::Checkpoint, Kind::Unreadable];
    assert!(of_logs.iter().all(|kind| !report.counts.contains_key(kind)), "{report:?}");
}

/// Checks on a thread of its own, as the command does.
fn check(world: &World, reads: bool) -> CheckReport {
    let offline = world.offline();
    let archive = world.archive();
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        offline.with_archive(archive, runtime.handle().clone()).check_with(false, reads).unwrap()
    };
    std::thread::spawn(work).join().unwrap()
}

#[tokio::test]
async fn a_check_without_the_archive_says_what_it_lacks() {
    let world = World::new();
    let store = world.filled(20).await;
    whole_pass(&store).await;
    drop(store);
    let (store, _) = EmbeddedStore::open(&world.dir.path().join("store"), Options::new(1)).unwrap();
    assert!(store.needs_archive());
    let error = store.range(range(1, 3, false)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Archive(what) if what.contains("store.tier.url")), "{error}");
    assert_eq!(store.range(range(16, 20, false)).await.unwrap(), entries(16, 20));
    drop(store);
    let error = world.offline().check(false).unwrap_err();
    assert!(error.to_string().contains("store.tier.url") && error.to_string().contains("--skip-archive"), "{error}");
}

#[tokio::test]
async fn what_is_young_or_still_needed_stays() {
    let world = World::new();
    let store = world.filled(20).await;
    // Of entries 1 to 7 the newest is of second 7; of 8 to 15 of second 15.
    let at = |second: u64| TierPlan { now_ms: second * 1_000 + 3_600_000, ..plan() };
    assert_eq!(store.tier(&TierPlan { dry_run: true, ..at(6) }).await.unwrap().due_buckets, 0);
    let dry = store.tier(&TierPlan { dry_run: true, ..at(7) }).await.unwrap();
    assert_eq!((dry.due_buckets, dry.due_entries, dry.moved_buckets), (1, 7, 0));
    assert!(dry.due_bytes > 7 * 30, "{dry:?}");
    assert_eq!(world.objects.names().len(), 0);

    let careful = TierPlan { eager: false, ..plan() };
    let report = store.tier(&careful).await.unwrap();
    assert_eq!((report.held_back, report.moved_buckets), (1, 0), "no checkpoint covers it");
    let mut state = LogState::new(conv(1));
    for entry in entries(1, 15) {
        state.apply(entry);
    }
    let checkpoint = Put::Checkpoint { conversation: conv(1), value: state.checkpoint() };
    let todo = |done: u64| {
        Put::Todo(Todo { target: Target::Peer(2), conversation: conv(1), prefix: [(HERE, done)].into(), user: None })
    };
    store.put(vec![checkpoint, todo(6)], Durability::Synced).await.unwrap();
    let report = store.tier(&careful).await.unwrap();
    assert_eq!((report.held_back, report.moved_buckets), (1, 0), "region 2 lacks entry 7");
    let mark = |value: &'static [u8]| Put::Meta { key: "refill/2".to_owned(), value: Bytes::from_static(value) };
    store.put(vec![todo(8), mark(&[1])], Durability::Synced).await.unwrap();
    let report = store.tier(&careful).await.unwrap();
    assert!(report.waits.is_some() && report.moved_buckets == 0, "a comparison is under way: {report:?}");
    store.put(vec![mark(&[])], Durability::Synced).await.unwrap();
    let report = store.tier(&careful).await.unwrap();
    assert_eq!((report.held_back, report.moved_buckets), (1, 1), "region 2 lacks entry 9");
    assert_eq!(read(&store).await, entries(1, 20));
}

#[tokio::test]
async fn large_buckets_are_cut_into_objects_of_bounded_size() {
    let world = World::new();
    let store = world.open();
    let body = Bytes::from(vec![7; 60_000]);
    let large = |seq: u64| Arc::new(Entry { body_hash: body_hash(&body), body: body.clone(), ..(*entry(seq)).clone() });
    let all: Vec<Arc<Entry>> = (1..=130).map(large).collect();
    for part in all.chunks(20) {
        let append = Append { conversation: conv(1), origin: HERE, epoch: 1, entries: part.to_vec(), todo: Vec::new() };
        assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
    }
    let report = store.tier(&TierPlan { bucket_bits: 7, ..plan() }).await.unwrap();
    assert_eq!((report.moved_buckets, report.moved_entries), (1, 127), "{report:?}");
    assert!(report.runs >= 4, "{report:?}");
    assert!(world.objects.names().iter().all(|name| world.objects.bytes(name).unwrap().len() < 2_400_000));
    assert_eq!(read(&store).await, all);
}

#[tokio::test]
async fn a_backup_has_marks_and_a_store_made_from_it_needs_nothing_of_the_old_one_in_the_end() {
    let world = World::new();
    let store = world.filled(20).await;
    whole_pass(&store).await;
    let file = world.dir.path().join("backup");
    store.backup(file.clone()).await.unwrap();
    let verified = backup::verify(&file).unwrap();
    assert!(verified.is_sound() && verified.header.archived, "{verified:?}");
    assert_eq!(verified.counts.of(backup::Table::Entries), 5);
    // After the backup a body is erased: the object that the backup's mark names is gone.
    store.put(vec![erase(5)], Durability::Synced).await.unwrap();
    whole_pass(&store).await;
    let list = store.export_erasures(world.dir.path().join("erasures")).await.unwrap();
    let of_the_old = world.objects.names();
    drop(store);

    let second = world.dir.path().join("second");
    backup::restore(&file, &second, Some(&list.path), None).unwrap();
    let store = world.open_in(&second, [8; 16]);
    let mut expected = entries(1, 20);
    expected[4] = Arc::new(expected[4].to_erased());
    assert_eq!(read(&store).await, expected, "the object without the body is found in place of the other");
    // The read has moved a mark over meanwhile, and so may leave a run to the next pass.
    store.tier(&plan()).await.unwrap();
    let late = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
    store.tier(&late).await.unwrap();
    assert_eq!(store.tier(&late).await.unwrap().rewritten, 0);
    whole_pass(&store).await;
    let names = world.objects.names();
    assert!(of_the_old.iter().all(|name| names.contains(name)), "what the old store wrote is left to it");
    assert_eq!(names.len(), 2 * of_the_old.len());
    assert_eq!(read(&store).await, expected);
    of_the_old.iter().for_each(|name| world.objects.spoil(name, None));
    assert_eq!(read(&store).await, expected, "nothing of the old one is needed any more");
}

#[tokio::test]
async fn a_backup_of_which_archived_entries_are_missing_is_told() {
    let world = World::new();
    let store = world.filled(20).await;
    whole_pass(&store).await;
    let file = world.dir.path().join("backup");
    store.backup(file.clone()).await.unwrap();
    let mut reader = backup::format::Reader::new(std::fs::File::open(&file).unwrap()).unwrap();
    let header = reader.header();
    let mut writer = backup::format::Writer::new(Vec::new(), header).unwrap();
    let mut marks = 0;
    while let Some(record) = reader.read().unwrap() {
        if record.key.first() == Some(&b'a') && record.table == backup::Table::State {
            marks += 1;
            if marks == 2 {
                continue;
            }
        }
        writer.put(record.table, record.key, record.value).unwrap();
    }
    std::fs::write(world.dir.path().join("other"), writer.finish().unwrap().0).unwrap();
    let verified = backup::verify(&world.dir.path().join("other")).unwrap();
    assert_eq!(verified.logs.damaged.len(), 1, "{verified:?}");
    assert!(verified.logs.damaged[0].what.contains("entry 15 is missing"), "{verified:?}");
}

#[tokio::test]
async fn a_sweep_leaves_what_is_young_and_what_is_anothers() {
    let world = World::new();
    let store = world.filled(20).await;
    whole_pass(&store).await;
    let named = world.objects.names();
    let orphan = format!("{}-{}", &named[0][..named[0].rfind('-').unwrap()], "ab".repeat(32));
    world.objects.set_time(99 * DAY_MS + 1);
    world.objects.spoil(&orphan, Some(Bytes::from_static(b"cut off")));
    for other in ["test/region-1/notes.txt", "test/region-2/x/y/z/00000000000000000001-00", "else"] {
        world.objects.spoil(other, Some(Bytes::new()));
    }
    let sweep = |now_ms| TierPlan { now_ms, sweep: true, ..plan() };
    assert_eq!(store.tier(&sweep(100 * DAY_MS)).await.unwrap().orphans, 0, "it may be under way");
    assert_eq!(store.tier(&sweep(100 * DAY_MS + 1)).await.unwrap().orphans, 1);
    assert_eq!(world.objects.names().len(), named.len() + 3);
    assert_eq!(read(&store).await, entries(1, 20));
}

#[tokio::test]
async fn appends_and_erasures_beside_passes_lose_nothing() {
    let world = World::new();
    let store = Arc::new(world.filled(8).await);
    let passes = {
        let store = store.clone();
        tokio::spawn(async move {
            let mut moved = 0;
            while moved < 40 {
                moved += store.tier(&plan()).await.unwrap().moved_buckets;
                tokio::task::yield_now().await;
            }
        })
    };
    let mut erased = Vec::new();
    for seq in 9..=336 {
        append(&store, seq, seq).await;
        if seq % 5 == 0 {
            store.put(vec![erase(seq / 2)], Durability::Synced).await.unwrap();
            erased.push(seq / 2);
        }
        if seq % 50 == 0 {
            let found = store.range(range(1, u64::MAX, false)).await.unwrap();
            assert_eq!(found.len() as u64, seq);
            assert!(found.iter().all(|entry| entry.erased == erased.contains(&entry.place.seq)));
        }
    }
    passes.await.unwrap();
    whole_pass(&store).await;
    let found = read(&store).await;
    assert!(found.iter().all(|entry| entry.erased == erased.contains(&entry.place.seq)) && found.len() == 336);
}
