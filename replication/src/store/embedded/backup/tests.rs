use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use proptest::prelude::*;
use tern_core::entry::Entry;
use tern_core::ids::{Heads, InstallId, Origin, Place, Rev, UserId};
use tern_core::store::{Append, Appended, Durability, Put, Range, RowRecord, Store, Target, Todo};

use super::super::{CompactReport, EmbeddedStore, Offline, Options};
use super::*;
use tern_core::ids::{ConvId, Identity};

const EU: Origin = Origin { region: 1, era: 1 };
const US: Origin = Origin { region: 2, era: 9 };

fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

fn entry(origin: Origin, seq: u64, n: u64) -> Arc<Entry> {
    Arc::new(Entry {
        peer: Some(UserId::new("bob").unwrap()),
        ..Entry::text(
            Place { hlc: seq << 16, origin, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n },
            bytes::Bytes::from(body_of(n)),
        )
    })
}

fn body_of(n: u64) -> String {
    format!("<the body of message {n} as it was written>")
}

fn append(conversation: ConvId, origin: Origin, from: u64, to: u64) -> Append {
    let todo = vec![Todo { target: Target::Fanout, conversation, prefix: [(origin, 0)].into(), user: None }];
    Append { conversation, origin, epoch: 3, entries: (from..=to).map(|seq| entry(origin, seq, seq)).collect(), todo }
}

fn whole(conversation: ConvId, origin: Origin) -> Range {
    Range { conversation, origin, from: 1, to: u64::MAX, max_entries: 1 << 20, max_bytes: 1 << 30, backwards: false }
}

fn erase(conversation: ConvId, origin: Origin, seq: u64) -> Put {
    Put::Erase { conversation, origin, seq, by: entry(origin, seq, seq).by.clone() }
}

fn open(dir: &Path) -> EmbeddedStore {
    let (store, report) = EmbeddedStore::open(dir, Options::new(1).init()).unwrap();
    assert!(!report.is_damaged(), "{report:?}");
    store
}

async fn fill(store: &EmbeddedStore) {
    for n in 1..=20 {
        let answers = store.append(vec![append(conv(n), EU, 1, 30), append(conv(n), US, 1, 5)]).await;
        assert_eq!(answers, [Appended::Decided, Appended::Decided]);
    }
    let row = RowRecord { rev: Rev(5), heads: [(EU, 30)].into(), peer_read: [(US, 2)].into(), ..RowRecord::default() };
    let meta = |key: &str, value: &[u8]| Put::Meta { key: key.into(), value: bytes::Bytes::copy_from_slice(value) };
    let puts = vec![
        Put::Row { user: UserId::new("bob").unwrap(), conversation: conv(1), row },
        Put::Checkpoint { conversation: conv(1), value: bytes::Bytes::from_static(b"a checkpoint") },
        meta("epoch", &3u64.to_be_bytes()),
        meta("era", &1u64.to_be_bytes()),
        meta("start", &4u64.to_be_bytes()),
        meta("clean", &[1]),
        erase(conv(2), EU, 7),
    ];
    store.put(puts, Durability::Synced).await.unwrap();
}

/// All that can be asked of a store.
async fn contents(store: &EmbeddedStore) -> (BTreeMap<ConvId, Heads>, Vec<Vec<Arc<Entry>>>, Vec<Todo>, usize) {
    let listed: BTreeMap<_, _> = store.conversations(None, 1 << 20).await.unwrap().into_iter().collect();
    let mut logs = Vec::new();
    for (conversation, heads) in &listed {
        for origin in heads.keys() {
            logs.push(store.range(whole(*conversation, *origin)).await.unwrap());
        }
    }
    let rows = store.rows(UserId::new("bob").unwrap()).await.unwrap().len();
    (listed, logs, store.todo().await.unwrap(), rows)
}

/// Files under `dir` that hold these bytes.
fn files_with(dir: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if fs::read(&path).unwrap().windows(needle.len()).any(|bytes| bytes == needle) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test]
async fn a_backup_made_while_appends_go_on_is_of_one_moment_and_restores_to_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("a"), dir.path().join("b.backup"));
    let store = open(&data);
    fill(&store).await;
    let before = contents(&store).await;
    let backup = store.backup(file.clone());
    // Each of these is one commit over two logs: a backup that is of one moment has both or neither.
    let mut seq = 0;
    let going_on = async {
        for _ in 0..200 {
            seq += 1;
            let pair = vec![append(conv(100), EU, seq, seq), append(conv(101), EU, seq, seq)];
            assert_eq!(store.append(pair).await, [Appended::Decided, Appended::Decided]);
            tokio::task::yield_now().await;
        }
    };
    let (report, ()) = tokio::join!(backup, going_on);
    let report = report.unwrap();
    drop(store);
    let verified = verify(&file).unwrap();
    assert!(verified.is_sound(), "{verified:?}");
    assert_eq!((verified.counts, verified.bytes), (report.counts, report.bytes));
    assert_eq!(fs::metadata(&file).unwrap().len(), report.bytes);

    let restored = dir.path().join("c");
    restore(&file, &restored, None, Some(1)).unwrap();
    let (store, report) = EmbeddedStore::open(&restored, Options::new(1)).unwrap();
    assert!(!report.may_keep_era() && !report.is_damaged(), "a restored store never goes on with its era: {report:?}");
    let mut after = contents(&store).await;
    let together = [conv(100), conv(101)].map(|id| after.0.remove(&id));
    assert_eq!(together[0], together[1], "of one moment");
    assert_eq!((&after.0, after.3), (&before.0, before.3));
    assert_eq!(after.1[..before.1.len()], before.1[..]);
    let meta = async |key: &str| store.meta(key).await.unwrap().unwrap().to_vec();
    assert_eq!(
        (meta("clean").await, meta(REFILL_ALL_KEY).await, meta(RESTORED_KEY).await),
        (vec![0], vec![1], vec![1])
    );
    assert_eq!((meta("epoch").await, meta("era").await), (3u64.to_be_bytes().to_vec(), 1u64.to_be_bytes().to_vec()));
    let start = u64::from_be_bytes(meta("start").await.try_into().unwrap());
    assert!(start > 1_700_000_000, "above any number of starts that peers can have heard of");
    assert_eq!(store.append(vec![Append { epoch: 4, ..append(conv(1), EU, 31, 31) }]).await, [Appended::Decided]);
    store.close().await.unwrap();
    drop(store);
    assert!(EmbeddedStore::open(&restored, Options::new(1)).unwrap().1.may_keep_era());
}

#[tokio::test]
async fn what_was_erased_after_a_backup_is_not_restored_wherever_a_copy_lies() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file, list) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("erasures"));
    let store = open(&data);
    fill(&store).await;
    store.backup(file.clone()).await.unwrap();
    assert_eq!(store.append(vec![append(conv(3), EU, 31, 32)]).await, [Appended::Decided]);
    // 4 of EU has a copy at 4 of US; 32 is behind the backup.
    store.put(vec![erase(conv(3), EU, 4), erase(conv(3), EU, 32)], Durability::Synced).await.unwrap();
    assert_eq!(store.export_erasures(list.clone()).await.unwrap().counts.of(Table::Erased), 3);
    drop(store);

    let restored = dir.path().join("c");
    let report = restore(&file, &restored, Some(&list), None).unwrap();
    // 7 of conversation 2 was erased before the backup was made.
    assert_eq!(report.erased, 2);
    let store = open(&restored);
    let erased = async |origin| {
        let held = store.range(whole(conv(3), origin)).await.unwrap();
        held.iter().filter(|e| e.erased).map(|e| e.place.seq).collect::<Vec<_>>()
    };
    assert_eq!((erased(EU).await, erased(US).await), (vec![4], vec![4]));
    // A peer that has not heard of the erasure sends what is missing.
    assert_eq!(store.append(vec![append(conv(3), EU, 31, 33)]).await, [Appended::Decided]);
    assert_eq!(erased(EU).await, [4, 32]);
    let again = dir.path().join("again");
    assert_eq!(store.export_erasures(again.clone()).await.unwrap().counts.of(Table::Erased), 4);
    drop(store);
    assert!(files_with(&restored, body_of(32).as_bytes()).is_empty());
    assert!(matches!(restore(&list, &dir.path().join("d"), None, None), Err(BackupError::OtherKind { .. })));
    assert!(matches!(restore(&file, &dir.path().join("d"), Some(&file), None), Err(BackupError::OtherKind { .. })));
    assert!(!dir.path().join("d").exists(), "nothing is left of a restore that was refused");
}

#[tokio::test]
async fn after_a_compaction_no_file_holds_an_erased_body() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let only = |n: u8| Append { entries: vec![entry(EU, 1, n.into())], ..append(conv(n), EU, 1, 1) };
    assert_eq!(store.append(vec![only(201), only(202), only(203)]).await, [const { Appended::Decided }; 3]);
    store.put(vec![erase(conv(201), EU, 1)], Durability::Synced).await.unwrap();
    assert!(!files_with(dir.path(), body_of(201).as_bytes()).is_empty(), "the journal holds it: the test can see it");
    let report: CompactReport = store.compact().await.unwrap();
    assert!(report.after_bytes > 0);
    assert_eq!(files_with(dir.path(), body_of(201).as_bytes()), Vec::<String>::new());
    assert!(!files_with(dir.path(), body_of(202).as_bytes()).is_empty());
    // Now from a table, where it was alone before.
    store.put(vec![erase(conv(202), EU, 1)], Durability::Synced).await.unwrap();
    assert!(!files_with(dir.path(), body_of(202).as_bytes()).is_empty());
    store.close().await.unwrap();
    drop(store);
    let offline = Offline::open(dir.path()).unwrap();
    offline.compact().unwrap();
    drop(offline);
    assert_eq!(files_with(dir.path(), body_of(202).as_bytes()), Vec::<String>::new());
    let (store, report) = EmbeddedStore::open(dir.path(), Options::new(1)).unwrap();
    assert!(report.may_keep_era(), "looking at a store and compacting it leaves its mark of a clean stop: {report:?}");
    for (n, erased) in [(201, true), (202, true), (203, false)] {
        let found = store.range(whole(conv(n), EU)).await.unwrap();
        assert_eq!((found.len(), found[0].erased), (1, erased));
    }
}

#[tokio::test]
async fn the_mark_of_erased_bodies_in_old_files_stays_until_they_are_purged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store).await;
    let marked = |store: &EmbeddedStore| store.tables.opaque(crate::store::format::PURGE_KEY).unwrap().is_some();
    assert!(marked(&store));
    drop(store);
    let store = open(dir.path());
    assert!(marked(&store), "a restart does not forget it");
    store.compact().await.unwrap();
    // The writer takes it away; a put behind that waits for it.
    store.put(Vec::new(), Durability::Synced).await.unwrap();
    assert!(!marked(&store));
    store.put(vec![erase(conv(5), EU, 1)], Durability::Synced).await.unwrap();
    assert!(marked(&store));
}

#[tokio::test]
async fn two_restores_of_one_backup_take_two_eras() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("a"));
    fill(&store).await;
    let file = store.backup(dir.path().to_owned()).await.unwrap().path;
    assert!(file.file_name().unwrap().to_string_lossy().starts_with("tern-region1-"), "{file:?}");
    drop(store);
    let mut eras = Vec::new();
    for (name, seed) in [("b", 1), ("c", 2)] {
        restore(&file, &dir.path().join(name), None, None).unwrap();
        let (store, report) = EmbeddedStore::open(&dir.path().join(name), Options::new(1)).unwrap();
        let rng = tern_core::clock::Entropy::seeded(seed);
        let opened = crate::region::start::open(&store, 1, !report.may_keep_era()).await.unwrap();
        let begun = crate::region::start::begin(&store, opened, &[2].into(), true, &rng).await.unwrap();
        assert!(begun.restored && begun.refill == [2].into());
        eras.push(begun.origin.era);
    }
    assert!(eras[0] != eras[1] && !eras.contains(&1), "{eras:?}");
}

#[tokio::test]
async fn a_restore_that_did_not_finish_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("a");
    let store = open(&data);
    fill(&store).await;
    let file = dir.path().join("b");
    store.backup(file.clone()).await.unwrap();
    drop(store);
    assert!(matches!(restore(&file, &data, None, None), Err(BackupError::NotEmpty { .. })));
    assert!(matches!(restore(&file, &dir.path().join("x"), None, Some(2)), Err(BackupError::OtherRegion { .. })));
    // As a kill leaves it at any point before the end.
    fs::write(data.join("RESTORING"), "").unwrap();
    for error in [
        EmbeddedStore::open(&data, Options::new(1).init()).unwrap_err().to_string(),
        Offline::open(&data).unwrap_err().to_string(),
        restore(&file, &data, None, None).unwrap_err().to_string(),
    ] {
        assert!(error.contains("did not finish") && error.contains("restore again"), "{error}");
    }
}

#[tokio::test]
async fn a_backup_overwrites_nothing_keeps_the_stores_reserve_and_takes_over_what_a_kill_left() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("a"));
    fill(&store).await;
    let file = dir.path().join("b");
    fs::write(dir.path().join(".b.partial"), "left by a kill").unwrap();
    store.backup(file.clone()).await.unwrap();
    verify(&file).unwrap();
    let whole = fs::read(&file).unwrap();
    assert!(matches!(store.backup(file.clone()).await, Err(BackupError::Exists { .. })));
    assert_eq!(fs::read(&file).unwrap(), whole);
    let nowhere = store.backup(dir.path().join("no/such/b")).await.unwrap_err().to_string();
    assert!(nowhere.contains("no/such"), "{nowhere}");
    let held = fs::File::create(dir.path().join(".c.partial")).unwrap();
    held.lock().unwrap();
    assert!(matches!(store.backup(dir.path().join("c")).await, Err(BackupError::Busy { .. })));
    drop((store, held));
    let mut full = open(&dir.path().join("a"));
    full.reserve_bytes = u64::MAX / 2;
    let error = full.backup(dir.path().join("d")).await.unwrap_err();
    assert!(matches!(error, BackupError::Full { .. }), "{error}");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains('d')), "{left:?}");
}

#[test]
fn what_is_no_backup_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let case = |content: &[u8]| {
        let path = dir.path().join("f");
        fs::write(&path, content).unwrap();
        verify(&path).unwrap_err()
    };
    assert!(matches!(case(b""), BackupError::NotABackup { .. }));
    assert!(matches!(case(b"hello, I am a text"), BackupError::NotABackup { .. }));
    let mut writer =
        format::Writer::new(Vec::new(), Header { kind: Kind::Backup, region: 1, wall_ms: 1, archived: false }).unwrap();
    writer.put(Table::State, b"mera", &[1, 7]).unwrap();
    let (mut file, _, _) = writer.finish().unwrap();
    assert!(matches!(case(&file[..file.len() - 1]), BackupError::Truncated { .. }));
    file[8] = 9;
    let newer = case(&file);
    assert!(matches!(newer, BackupError::Newer { found: 9, .. }) && newer.to_string().contains("format 9"), "{newer}");
    assert!(matches!(verify(dir.path()), Err(BackupError::NotABackup { .. })));
    assert!(matches!(verify(&dir.path().join("none")), Err(BackupError::Io { .. })));
    for (kind, expected) in [
        (io::ErrorKind::StorageFull, "no room"),
        (io::ErrorKind::ReadOnlyFilesystem, "access"),
        (io::ErrorKind::PermissionDenied, "access"),
    ] {
        let error = io_error(Path::new("/backups/b"), kind.into()).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

fn small_backup() -> Vec<u8> {
    static FILE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    FILE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = open(&dir.path().join("a"));
            fill(&store).await;
            let file = store.backup(dir.path().join("b")).await.unwrap().path;
            fs::read(file).unwrap()
        })
    })
    .clone()
}

proptest! {
    #[test]
    fn any_flipped_bit_of_a_stores_backup_is_refused(at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = small_backup();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        prop_assert!(verify(file.path()).is_err(), "byte {}", at);
    }
}
