use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use tern_core::ids::{Heads, Identity, InstallId, Origin, Place, Rev};
use tern_core::store::Target;

use super::super::archive::TierPlan;
use super::super::format::{LogId, encode_entry, entry_key, split_entry};
use super::*;

const ORIGIN: Origin = Origin { region: 1, era: 1 };

pub(super) fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

fn entry_of(seq: u64, body: &[u8]) -> Arc<Entry> {
    Arc::new(Entry {
        peer: Some(UserId::new("bob").unwrap()),
        ..Entry::text(
            Place { hlc: seq << 16, origin: ORIGIN, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
            Bytes::copy_from_slice(body),
        )
    })
}

pub(super) fn append(conversation: ConvId, from: u64, to: u64) -> Append {
    let entries = (from..=to).map(|seq| entry_of(seq, format!("message {seq}").as_bytes())).collect();
    Append { conversation, origin: ORIGIN, epoch: 1, entries, todo: Vec::new() }
}

pub(super) fn whole(conversation: ConvId) -> Range {
    Range {
        conversation,
        origin: ORIGIN,
        from: 1,
        to: u64::MAX,
        max_entries: usize::MAX,
        max_bytes: usize::MAX,
        backwards: false,
    }
}

pub(super) fn erase(conversation: ConvId, seq: u64) -> Put {
    Put::Erase { conversation, origin: ORIGIN, seq, by: entry_of(seq, b"").by.clone() }
}

fn row(rev: u64) -> Put {
    let row = RowRecord { rev: Rev(rev), ..RowRecord::default() };
    Put::Row { user: UserId::new("bob").unwrap(), conversation: conv(1), row }
}

pub(super) fn options() -> Options {
    Options::new(1).init()
}

pub(super) fn reopen(dir: &Path) -> (EmbeddedStore, OpenReport) {
    EmbeddedStore::open(dir, options()).unwrap()
}

/// A store with conversations 1 to 3 of six entries each.
pub(super) async fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (store, report) = reopen(dir.path());
    assert!(report.created);
    for n in 1..=3 {
        assert_eq!(store.append(vec![append(conv(n), 1, 6)]).await, [Appended::Decided]);
    }
    dir
}

/// Changes what is stored for entries of conversation 2, behind the store's back.
fn tamper(dir: &Path, change: impl Fn(u64, &mut Vec<u8>) -> bool) {
    let (tables, _claimed, _report) = open::open(dir, &options()).unwrap();
    let log = LogId { conversation: conv(2), origin: ORIGIN };
    for seq in 1..=6 {
        let Some(value) = tables.entries.get(entry_key(log, seq)).unwrap() else { continue };
        let mut changed = value.to_vec();
        if !change(seq, &mut changed) {
            tables.entries.remove(entry_key(log, seq)).unwrap();
        } else if changed != *value {
            tables.entries.insert(entry_key(log, seq), changed).unwrap();
        }
    }
    tables.sync().unwrap();
}

/// Opens a tampered store, checks that conversation 2 is refused at `place` and the others are not.
async fn refused_at(dir: &Path, place: u64, what: &str) {
    let (store, report) = reopen(dir);
    assert_eq!(report.cut, []);
    let found: Vec<_> = report.damaged.iter().map(|d| (d.conversation, d.origin, d.seq)).collect();
    assert_eq!(found, [(conv(2), ORIGIN, place)], "{report:?}");
    assert!(report.damaged[0].what.contains(what), "{report:?}");
    assert!(!report.may_keep_era());
    assert!(matches!(store.range(whole(conv(2))).await, Err(StoreError::Damaged { .. })));
    let image = store.conversation(conv(2)).await.unwrap();
    assert_eq!(image.heads, Heads::new());
    assert!(image.damaged[&ORIGIN].contains(&format!("entry {place}")), "{image:?}");
    assert_eq!(store.append(vec![append(conv(2), 7, 7)]).await, [Appended::Damaged]);
    for n in [1, 3] {
        assert_eq!(store.range(whole(conv(n))).await.unwrap().len(), 6);
        assert_eq!(store.append(vec![append(conv(n), 7, 7)]).await, [Appended::Decided]);
    }
    let listed = store.conversations(None, 9).await.unwrap();
    let heads = Heads::from([(ORIGIN, 7)]);
    assert_eq!(listed, [(conv(1), heads.clone()), (conv(2), Heads::new()), (conv(3), heads)]);
}

#[tokio::test]
async fn any_bit_flipped_in_a_middle_entry_gets_its_log_refused_with_the_place() {
    // Of the format, the chain, the header's flags, kind, hlc, origin, ids, body hash, and the body.
    for at in [0, 5, 17, 20, 24, 34, 60, 75, 90, 120, 130] {
        let dir = filled().await;
        tamper(dir.path(), |seq, value| {
            let last = value.len() - 1;
            if seq == 3 {
                value[at.min(last)] ^= 4;
            }
            true
        });
        refused_at(dir.path(), 3, "").await;
    }
}

#[tokio::test]
async fn a_lost_middle_entry_gets_its_log_refused_with_the_place() {
    let dir = filled().await;
    tamper(dir.path(), |seq, _| seq != 4);
    refused_at(dir.path(), 4, "missing").await;
}

#[tokio::test]
async fn a_log_that_lost_its_beginning_is_refused() {
    let dir = filled().await;
    tamper(dir.path(), |seq, _| seq > 2);
    refused_at(dir.path(), 1, "missing").await;
}

#[tokio::test]
async fn an_entry_replaced_by_a_forged_one_is_found_by_the_chain() {
    let dir = filled().await;
    tamper(dir.path(), |seq, value| {
        if seq == 3 {
            // Whole by itself, with the link that was stored.
            let (link, _) = split_entry(value).unwrap();
            encode_entry(value, &[0; 16], &entry_of(3, b"something else"));
            value[1..17].copy_from_slice(&link);
        }
        true
    });
    refused_at(dir.path(), 3, "checksum").await;
}

#[tokio::test]
async fn a_tail_that_does_not_verify_is_cut_and_the_log_goes_on() {
    let dir = filled().await;
    tamper(dir.path(), |seq, value| {
        if seq >= 5 {
            value.truncate(40);
        }
        true
    });
    let (store, report) = reopen(dir.path());
    let cut: Vec<_> = report.cut.iter().map(|c| (c.conversation, c.origin, c.from, c.to)).collect();
    assert_eq!(cut, [(conv(2), ORIGIN, 5, 6)], "{report:?}");
    assert_eq!(report.damaged, []);
    assert_eq!((report.logs, report.entries), (3, 16));
    assert!(!report.may_keep_era());
    assert_eq!(store.conversation(conv(2)).await.unwrap().heads[&ORIGIN], 4);
    assert_eq!(store.append(vec![append(conv(2), 5, 5)]).await, [Appended::Decided]);
    drop(store);
    let (store, report) = reopen(dir.path());
    assert_eq!((report.cut.len(), report.entries), (0, 17), "cut for good");
    assert_eq!(store.range(whole(conv(2))).await.unwrap().len(), 5);
}

#[tokio::test]
async fn an_erased_body_does_not_damage_its_log() {
    let dir = filled().await;
    tamper(dir.path(), |seq, value| {
        if seq == 3 {
            let (link, stored) = split_entry(value).unwrap();
            let entry = Entry::decode(Bytes::copy_from_slice(stored)).unwrap();
            encode_entry(value, &[0; 16], &Entry { erased: true, body: Bytes::new(), ..entry });
            value[1..17].copy_from_slice(&link);
        }
        true
    });
    let (store, report) = reopen(dir.path());
    assert_eq!((report.damaged, report.entries), (Vec::new(), 18));
    assert!(store.range(whole(conv(2))).await.unwrap()[2].erased);
}

#[tokio::test]
async fn damage_that_comes_later_is_found_on_demand_and_refused_from_then_on() {
    let dir = filled().await;
    let (store, _) = reopen(dir.path());
    assert_eq!(store.verify().await.unwrap().entries, 18);
    let log = LogId { conversation: conv(2), origin: ORIGIN };
    store.tables.entries.insert(entry_key(log, 2), b"rubbish".to_vec()).unwrap();
    store.tables.entries.insert(entry_key(LogId { conversation: conv(3), ..log }, 6), b"rubbish".to_vec()).unwrap();
    assert!(matches!(store.range(whole(conv(2))).await, Err(StoreError::Damaged { .. })), "never served wrong");
    let found = store.verify().await.unwrap();
    let places: Vec<_> = found.damaged.iter().map(|d| (d.conversation, d.seq)).collect();
    assert_eq!(places, [(conv(2), 2), (conv(3), 6)], "a tail that was acked is not cut");
    assert_eq!(store.append(vec![append(conv(2), 7, 7)]).await, [Appended::Damaged]);
    assert_eq!(store.append(vec![append(conv(3), 7, 7)]).await, [Appended::Damaged]);
    assert_eq!(store.append(vec![append(conv(1), 7, 7)]).await, [Appended::Decided]);
}

#[tokio::test]
async fn opening_by_heads_reads_only_the_newest_entries() {
    let dir = filled().await;
    tamper(dir.path(), |seq, value| {
        if seq == 3 {
            value.truncate(20);
        }
        true
    });
    let heads = Options { verify: Verify::Heads, ..options() };
    let (store, report) = EmbeddedStore::open(dir.path(), heads.clone()).unwrap();
    assert_eq!((report.logs, report.entries, report.damaged.len()), (3, 18, 0));
    assert!(matches!(store.range(whole(conv(2))).await, Err(StoreError::Damaged { .. })), "found when it is read");
    drop(store);
    tamper(dir.path(), |seq, value| {
        if seq == 6 {
            value.truncate(20);
        }
        true
    });
    let (_store, report) = EmbeddedStore::open(dir.path(), heads).unwrap();
    assert_eq!(report.damaged.iter().map(|d| d.seq).collect::<Vec<_>>(), [6]);
}

/// Whatever the disk kept of the journal, each log is a prefix of what was decided.
#[tokio::test]
async fn a_journal_torn_at_any_byte_leaves_a_prefix_of_every_log() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = reopen(dir.path());
    let mut order = Vec::new();
    for seq in 1..=12 {
        for n in 1..=2 {
            assert_eq!(store.append(vec![append(conv(n), seq, seq)]).await, [Appended::Decided]);
            order.push((n, seq));
        }
    }
    drop(store);
    let journal = dir.path().join("db/0.jnl");
    let bytes = fs::read(&journal).unwrap();
    let used = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
    let start = used * 2 / 3;
    let mut last = 0;
    for cut in (start..=used).step_by(61).chain([used]) {
        let mut torn = bytes[..cut].to_vec();
        // Blocks of a file that grew, but whose content never came, read as zeros.
        torn.resize(used.next_multiple_of(4096), 0);
        fs::write(&journal, &torn).unwrap();
        let (store, report) = reopen(dir.path());
        assert_eq!((report.cut.len(), report.damaged.len()), (0, 0), "cut at {cut}");
        let mut found = 0;
        for n in 1..=2 {
            let entries = store.range(whole(conv(n))).await.unwrap();
            assert_eq!(entries, append(conv(n), 1, entries.len() as u64).entries);
            found += entries.len();
        }
        assert!(found >= last, "more of the journal, fewer entries");
        assert!(order[..found].iter().filter(|(n, _)| *n == 1).count().abs_diff(found.div_ceil(2)) == 0);
        last = found;
    }
    assert_eq!(last, 24);
}

#[tokio::test]
async fn a_block_that_can_not_be_read_takes_only_its_logs_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = reopen(dir.path());
    let long = |seq| entry_of(seq, &[7; 600]);
    for n in 0..60 {
        let entries = (1..=8).map(long).collect();
        let batch = Append { conversation: conv(n), origin: ORIGIN, epoch: 1, entries, todo: Vec::new() };
        assert_eq!(store.append(vec![batch]).await, [Appended::Decided]);
    }
    store.tables.entries.rotate_memtable_and_wait().unwrap();
    let keyspace = store.tables.entries.path().to_owned();
    store.close().await.unwrap();
    drop(store);
    // The largest file is the table; a byte in its middle belongs to a data block.
    let table = fs::read_dir(keyspace.join("tables")).unwrap().map(|f| f.unwrap().path());
    let table = table.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&table, bytes).unwrap();

    let (store, report) = reopen(dir.path());
    assert!(!report.may_keep_era());
    let hit: Vec<u8> =
        (0..60).filter(|n| store.tables.refused(LogId { conversation: conv(*n), origin: ORIGIN }).is_some()).collect();
    assert!(!hit.is_empty() && hit.len() <= 4, "{hit:?} {report:?}");
    for n in 0..60 {
        let next = store.append(vec![append(conv(n), 9, 9)]).await.remove(0);
        if hit.contains(&n) {
            assert_eq!(next, Appended::Damaged);
            assert!(store.range(whole(conv(n))).await.is_err());
        } else {
            assert_eq!(next, Appended::Decided);
            assert_eq!(store.range(whole(conv(n))).await.unwrap().len(), 9);
            assert_eq!(store.conversation(conv(n)).await.unwrap().heads[&ORIGIN], 9);
        }
    }
    assert!(store.conversations(None, 100).await.unwrap().len() >= 60 - hit.len());
}

#[tokio::test]
async fn a_clean_stop_is_told_from_a_crash() {
    let dir = filled().await;
    let (store, report) = reopen(dir.path());
    assert!(!report.clean_stop && !report.created);
    store.close().await.unwrap();
    assert!(matches!(store.append(vec![append(conv(1), 7, 7)]).await[0], Appended::Unknown(_)));
    assert!(store.put(vec![row(1)], Durability::Lazy).await.is_err());
    assert!(store.close().await.is_err());
    assert_eq!(store.range(whole(conv(1))).await.unwrap().len(), 6, "reads go on");
    drop(store);
    let (store, report) = reopen(dir.path());
    assert!(report.clean_stop && report.may_keep_era());
    drop(store);
    let (_store, report) = reopen(dir.path());
    assert!(!report.clean_stop, "the mark is of the stop before, not of all stops");
}

#[tokio::test]
async fn what_waits_when_the_store_is_closed_is_committed_first() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = reopen(dir.path());
    let waiting: Vec<_> = (1..=50).map(|n| store.append(vec![append(conv(n), 1, 1)])).collect();
    store.close().await.unwrap();
    for append in waiting {
        assert_eq!(append.await, [Appended::Decided]);
    }
}

#[tokio::test]
async fn a_write_happens_although_its_future_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = reopen(dir.path());
    drop(store.append(vec![append(conv(1), 1, 1)]));
    assert_eq!(store.append(vec![append(conv(1), 2, 2)]).await, [Appended::Decided]);
}

#[tokio::test]
async fn more_than_the_queue_holds_waits_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = reopen(dir.path());
    // 40 times a megabyte, where 16 may wait.
    let big = |seq| entry_of(seq, &vec![1; 60_000]);
    let appends: Vec<_> = (1..=40)
        .map(|n| {
            let entries = (1..=17).map(big).collect();
            store.append(vec![Append { conversation: conv(n), origin: ORIGIN, epoch: 1, entries, todo: Vec::new() }])
        })
        .collect();
    for append in appends {
        assert_eq!(append.await, [Appended::Decided]);
    }
    assert_eq!(store.conversations(None, 100).await.unwrap().len(), 40);
    assert_eq!(store.room.available_permits(), WRITE_QUEUE_BYTES as usize, "all room is given back");
}

#[tokio::test]
async fn a_failed_commit_is_reported_and_nothing_is_taken_after_it() {
    let dir = filled().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook: FailedSync = {
        let told = Arc::clone(&told);
        Arc::new(move |what| told.lock().unwrap().push(what.to_owned()))
    };
    let (store, _) = EmbeddedStore::open(dir.path(), Options { on_failed_sync: Some(hook), ..options() }).unwrap();
    store.tables.fail_commits.store(true, Ordering::SeqCst);
    assert!(matches!(store.append(vec![append(conv(1), 7, 7)]).await[0], Appended::Unknown(_)));
    assert_eq!(told.lock().unwrap().len(), 1, "by default this ends the process");
    store.tables.fail_commits.store(false, Ordering::SeqCst);
    assert!(matches!(store.append(vec![append(conv(1), 7, 7)]).await[0], Appended::Unknown(_)));
    assert!(store.put(vec![row(1)], Durability::Synced).await.is_err());
    assert!(store.close().await.is_err());
    drop(store);
    let (store, report) = reopen(dir.path());
    assert!(!report.clean_stop);
    assert_eq!(store.append(vec![append(conv(1), 7, 7)]).await, [Appended::Decided]);
}

#[tokio::test]
async fn below_the_reserve_appends_are_refused_and_rows_are_not() {
    let dir = filled().await;
    let full = Options { disk_reserve_bytes: u64::MAX, ..options() };
    let (store, _) = EmbeddedStore::open(dir.path(), full).unwrap();
    let with_todo = Append {
        todo: vec![Todo {
            target: Target::Fanout,
            conversation: conv(1),
            prefix: [(ORIGIN, 0)].into_iter().collect(),
            user: None,
        }],
        ..append(conv(1), 7, 7)
    };
    assert_eq!(store.append(vec![with_todo]).await, [Appended::Full]);
    store.put(vec![row(1)], Durability::Synced).await.unwrap();
    assert_eq!(store.todo().await.unwrap(), []);
    assert!(store.disk_free_bytes().unwrap() > 0 && store.disk_used_bytes().unwrap() > 0);
}

#[tokio::test]
async fn what_waits_together_is_committed_together() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = reopen(dir.path());
    let appends: Vec<_> = (0..200).map(|n| store.append(vec![append(conv(n), 1, 2)])).collect();
    for append in appends {
        assert_eq!(append.await, [Appended::Decided]);
    }
    let metrics = store.metrics();
    assert_eq!(metrics.entries(), 400);
    assert!(metrics.commits() < 100, "{} commits for 200 appends", metrics.commits());
}

#[tokio::test]
async fn a_directory_in_use_names_the_process() {
    let dir = filled().await;
    let (_store, _) = reopen(dir.path());
    let error = EmbeddedStore::open(dir.path(), options()).unwrap_err();
    assert!(matches!(&error, OpenError::InUse { pid, .. } if *pid == std::process::id().to_string()), "{error}");
    assert!(error.to_string().contains(&format!("in use by process {}", std::process::id())));
}

#[tokio::test]
async fn a_directory_that_is_no_store_becomes_one_only_by_init() {
    let parent = tempfile::tempdir().unwrap();
    for dir in [parent.path().to_owned(), parent.path().join("absent")] {
        let error = EmbeddedStore::open(&dir, Options::new(1)).unwrap_err();
        assert!(matches!(error, OpenError::NotInitialised { .. }));
        assert!(error.to_string().contains("--init") && error.to_string().contains("mount"), "{error}");
    }
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "nothing was made");
    drop(EmbeddedStore::open(parent.path(), options()).unwrap());
    let (_store, report) = EmbeddedStore::open(parent.path(), Options::new(1)).unwrap();
    assert!(!report.created);
}

#[tokio::test]
async fn an_init_that_was_interrupted_is_taken_up_again_but_never_over_entries() {
    let dir = tempfile::tempdir().unwrap();
    drop(reopen(dir.path()));
    fs::remove_file(dir.path().join("STORE")).unwrap();
    let (store, report) = reopen(dir.path());
    assert!(report.created);
    assert_eq!(store.append(vec![append(conv(1), 1, 1)]).await, [Appended::Decided]);
    drop(store);
    fs::remove_file(dir.path().join("STORE")).unwrap();
    assert!(matches!(EmbeddedStore::open(dir.path(), options()).unwrap_err(), OpenError::MarkerMissing { .. }));
}

#[tokio::test]
async fn stores_of_other_regions_and_formats_are_refused() {
    let dir = filled().await;
    let open = |region| EmbeddedStore::open(dir.path(), Options::new(region).init()).map(|_| ()).unwrap_err();
    assert!(matches!(open(2), OpenError::OtherRegion { found: 1, expected: 2, .. }));
    let marker = dir.path().join("STORE");
    for (text, expected) in [
        ("tern store\nformat 9\nregion 1\n", "format 9"),
        ("tern store\nformat 1\nregion 0\n", "names no region"),
        ("tern store\nregion 1\n", "names no format"),
        ("hello", "does not say whose"),
        ("", "does not say whose"),
    ] {
        fs::write(&marker, text).unwrap();
        let error = open(1).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_new_store_on_a_nearly_full_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let full = Options { disk_reserve_bytes: u64::MAX - 1, ..options() };
    let error = EmbeddedStore::open(dir.path(), full).unwrap_err();
    assert!(matches!(error, OpenError::NearlyFull { .. }), "{error}");
}

#[test]
fn a_path_that_can_not_be_a_directory_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = EmbeddedStore::open(&file.path().join("store"), options()).unwrap_err();
    assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
}

/// Flips a bit of the journal, at `offset` from where `text` stands.
fn flip(dir: &Path, text: &[u8], offset: isize) {
    let journal = dir.join("db/0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    let place = bytes.windows(text.len()).position(|w| w == text).unwrap();
    bytes[place.checked_add_signed(offset).unwrap()] ^= 1;
    fs::write(&journal, bytes).unwrap();
}

/// Every log got six entries, one after the other, each with its own commit.
async fn interleaved() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = reopen(dir.path());
    for seq in 1..=6u64 {
        for n in 1..=3u8 {
            let entries = vec![entry_of(seq, format!("log {n} entry {seq}").as_bytes())];
            let append = Append { conversation: conv(n), origin: ORIGIN, epoch: 1, entries, todo: Vec::new() };
            assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
        }
    }
    dir
}

#[tokio::test]
async fn a_group_damaged_in_the_journal_is_taken_out_and_its_log_refused() {
    let dir = interleaved().await;
    flip(dir.path(), b"log 2 entry 3", 0);
    let (store, report) = reopen(dir.path());
    assert_eq!(report.journal_damage.len(), 1);
    assert!(report.is_damaged() && report.journal_damage[0].kept_as.exists(), "{report:?}");
    assert_eq!(report.damaged.iter().map(|d| (d.conversation, d.seq)).collect::<Vec<_>>(), [(conv(2), 3)]);
    for n in [1, 3] {
        assert_eq!(store.range(whole(conv(n))).await.unwrap().len(), 6);
    }
    drop(store);
    let (_store, report) = reopen(dir.path());
    assert!(report.journal_damage.is_empty() && report.damaged.len() == 1, "{report:?}");
}

#[tokio::test]
async fn a_journal_that_can_not_be_followed_ends_there_and_is_kept() {
    let dir = interleaved().await;
    // The first byte of the item: 33 bytes of key, 21 of header, and in the value 1 + 16 + the entry's header.
    let header = entry_of(3, b"").encoded_len();
    let back = isize::try_from(33 + 21 + 17 + header).unwrap();
    flip(dir.path(), b"log 2 entry 3", -back);
    let (store, report) = reopen(dir.path());
    assert_eq!(report.journal_damage.len(), 1, "{report:?}");
    assert_eq!((report.entries, report.damaged.len()), (7, 0));
    assert!(!report.may_keep_era());
    assert_eq!(store.range(whole(conv(1))).await.unwrap().len(), 3);
    assert_eq!(store.append(vec![append(conv(2), 3, 3)]).await, [Appended::Decided]);
}

#[tokio::test]
async fn a_last_group_of_which_only_the_end_was_kept_is_torn_and_not_damage() {
    let dir = interleaved().await;
    flip(dir.path(), b"log 3 entry 6", 0);
    let (store, report) = reopen(dir.path());
    assert!(report.torn_journal_bytes > 0 && !report.is_damaged(), "{report:?}");
    assert_eq!(report.entries, 17);
    assert_eq!(store.range(whole(conv(3))).await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_database_that_can_not_be_opened_is_told_with_what_to_do() {
    let dir = filled().await;
    fs::write(dir.path().join("db/version"), b"rubbish").unwrap();
    let error = EmbeddedStore::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("--init"));
    fs::write(dir.path().join("db/version"), b"FJL\x02").unwrap();
    let error = EmbeddedStore::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("--init"));
}

#[tokio::test]
async fn metrics_are_named_for_tern_and_carry_units() {
    let dir = filled().await;
    let (store, _) = reopen(dir.path());
    store.append(vec![append(conv(1), 7, 8)]).await;
    let mut registry = prometheus_client::registry::Registry::default();
    store.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let names: BTreeMap<_, _> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert!(names.keys().all(|name| name.starts_with("tern_store_")), "{names:?}");
    assert!(text.contains("tern_store_entries_total 2"), "{text}");
    assert!(text.contains("tern_store_commit_seconds_count 1"), "{text}");
}

/// A disk that lost everything above what was archived: the log goes on there.
#[tokio::test]
async fn a_log_of_which_only_the_archive_has_entries_is_listed_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let objects = super::super::archive::MemoryObjects::default();
    let open = || {
        let archive =
            Archive::new(Arc::new(objects.clone()), "test", 1, super::super::archive::ArchiveOptions::default());
        let options = Options { archive: Some(Arc::new(archive)), archive_id: [7; 16], ..options() };
        EmbeddedStore::open(dir.path(), options).unwrap()
    };
    let (store, _) = open();
    store.append(vec![append(conv(1), 1, 10)]).await;
    let plan = TierPlan { bucket_bits: 3, eager: true, ..TierPlan::new(u64::MAX, std::time::Duration::ZERO) };
    assert_eq!(store.tier(&plan).await.unwrap().moved_entries, 7);
    drop(store);
    let log = LogId { conversation: conv(1), origin: ORIGIN };
    let tables = Tables::open(&dir.path().join("db"), 1 << 20).unwrap();
    let mut batch = tables.db.batch();
    (8..=10).for_each(|seq| batch.insert(&tables.entries, entry_key(log, seq), b"torn"));
    // What a death in the middle of the removal leaves is not read, whatever it is.
    batch.insert(&tables.entries, entry_key(log, 7), b"rubbish");
    tables.commit(batch, true).unwrap();
    drop(tables);
    let (store, report) = open();
    assert_eq!((report.cut.len(), report.damaged.len()), (1, 0), "{report:?}");
    assert_eq!((report.cut[0].from, report.cut[0].to), (8, 10));
    let image = store.conversation(conv(1)).await.unwrap();
    assert_eq!((image.heads, image.highest_hlc), ([(ORIGIN, 7)].into(), 7 << 16));
    assert_eq!(store.conversations(None, 9).await.unwrap(), [(conv(1), [(ORIGIN, 7)].into())]);
    assert_eq!(store.range(whole(conv(1))).await.unwrap().len(), 7);
    assert_eq!(store.append(vec![append(conv(1), 8, 18)]).await, [Appended::Decided]);
    assert_eq!(store.tier(&plan).await.unwrap().moved_entries, 8);
    assert_eq!(store.range(whole(conv(1))).await.unwrap(), append(conv(1), 1, 18).entries);
    drop(store);
    assert!(!open().1.is_damaged());
    let error = EmbeddedStore::open(dir.path(), Options::new(2)).unwrap_err();
    assert!(matches!(error, OpenError::OtherRegion { .. }), "the marker still says whose it is: {error}");
}

/// The writer commits what waits as one group, and an erasure must see what the group has not committed yet.
#[tokio::test]
async fn an_erasure_called_after_an_append_finds_its_entries_in_the_same_group() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = EmbeddedStore::open(dir.path(), options()).unwrap();
    let erase = |seq| erase(conv(1), seq);
    let first = store.append(vec![append(conv(1), 1, 3)]);
    let erased = store.put(vec![erase(2), erase(3)], Durability::Synced);
    let second = store.append(vec![append(conv(1), 4, 4)]);
    let again = store.put(vec![erase(4), erase(3)], Durability::Lazy);
    let (first, erased, second, again) = tokio::join!(first, erased, second, again);
    assert_eq!((first, erased, second, again), (vec![Appended::Decided], Ok(()), vec![Appended::Decided], Ok(())));
    let found: Vec<bool> = store.range(whole(conv(1))).await.unwrap().iter().map(|entry| entry.erased).collect();
    assert_eq!(found, [false, true, true, true]);
    store.close().await.unwrap();
    drop(store);
    let (_, report) = reopen(dir.path());
    assert!(report.may_keep_era(), "{report:?}");
}

/// A log is cut by a repair, or by a torn tail, and peers send again what they hold.
#[tokio::test]
async fn what_was_erased_stays_erased_when_a_cut_log_fills_again() {
    let dir = filled().await;
    let (store, _) = reopen(dir.path());
    let erase = |seq| erase(conv(2), seq);
    store.put(vec![erase(3), erase(5)], Durability::Synced).await.unwrap();
    drop(store);
    let tables = Tables::open(&dir.path().join("db"), 1 << 20).unwrap();
    let log = LogId { conversation: conv(2), origin: ORIGIN };
    let mut batch = tables.db.batch();
    (3..=6).for_each(|seq| batch.remove(&tables.entries, entry_key(log, seq)));
    tables.commit(batch, true).unwrap();
    drop(tables);
    let (store, _) = reopen(dir.path());
    assert_eq!(store.append(vec![append(conv(2), 3, 4)]).await, [Appended::Decided]);
    assert_eq!(store.append(vec![append(conv(2), 5, 7)]).await, [Appended::Decided]);
    let found: Vec<bool> = store.range(whole(conv(2))).await.unwrap().iter().map(|entry| entry.erased).collect();
    assert_eq!(found, [false, false, true, false, true, false, false]);
    drop(store);
    assert!(!reopen(dir.path()).1.is_damaged());
}
