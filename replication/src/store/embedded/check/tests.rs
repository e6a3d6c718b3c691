use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tern_core::entry::Entry;
use tern_core::eras::Era;
use tern_core::ids::{Identity, InstallId, Origin, Place};
use tern_core::node::refill::Known;
use tern_core::sequencer::LogState;
use tern_core::store::{Append, Appended, Durability, Put, Range, Store, Todo};

use super::super::super::format::{LogId, checkpoint_key, encode_entry, entry_key, split_entry};
use super::super::{EmbeddedStore, Options};
use super::*;

const EU: Origin = Origin { region: 1, era: 1 };
const US: Origin = Origin { region: 2, era: 9 };

fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn entry(origin: Origin, seq: u64) -> Arc<Entry> {
    let n = seq + u64::from(origin.region) * 1_000;
    Arc::new(Entry {
        peer: Some(user("bob")),
        ..Entry::text(
            Place { hlc: seq << 16, origin, seq },
            Identity { user: user("alice"), install: InstallId::new("phone").unwrap(), n },
            format!("message {seq}"),
        )
    })
}

fn erase(origin: Origin, seq: u64) -> Put {
    Put::Erase { conversation: conv(1), origin, seq, by: entry(origin, seq).by.clone() }
}

fn row(rev: u64, peer: &str) -> RowRecord {
    RowRecord {
        rev: Rev(Rev::start_of(3).0 + rev),
        heads: [(EU, 6), (US, 4)].into(),
        peer: Some(user(peer)),
        generation: 1,
        ..RowRecord::default()
    }
}

/// Three conversations, as a region leaves them that was stopped in order.
async fn sound() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = EmbeddedStore::open(dir.path(), Options::new(1).init()).unwrap();
    let mut puts = vec![
        Put::Meta { key: EPOCH_KEY.into(), value: Bytes::copy_from_slice(&3u64.to_be_bytes()) },
        // As a stop in order writes it, and the link to a peer.
        Put::Meta { key: "clean".into(), value: Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, 10]) },
        Put::Meta { key: "peer/2".into(), value: Known { start: 2, era: 7, commit: 4, incomplete: false }.to_bytes() },
        Put::Todo(Todo { target: Target::Peer(2), conversation: conv(1), prefix: [(EU, 5)].into(), user: None }),
    ];
    for n in 1..=3 {
        let mut state = LogState::new(conv(n));
        for (origin, head) in [(EU, 6), (US, 4)] {
            let entries: Vec<_> = (1..=head).map(|seq| entry(origin, seq)).collect();
            entries.iter().take(3).for_each(|entry| {
                state.apply(entry.clone());
            });
            let append = Append { conversation: conv(n), origin, epoch: 3, entries, todo: Vec::new() };
            assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
        }
        puts.push(Put::Checkpoint { conversation: conv(n), value: state.checkpoint() });
        puts.push(Put::Row { user: user("alice"), conversation: conv(n), row: row(u64::from(n), "bob") });
        puts.push(Put::Row { user: user("bob"), conversation: conv(n), row: row(u64::from(n), "alice") });
    }
    store.put(puts, Durability::Synced).await.unwrap();
    store.close().await.unwrap();
    dir
}

fn check(dir: &Path, repair: bool) -> CheckReport {
    Offline::open(dir).unwrap().check(repair).unwrap()
}

fn kinds(report: &CheckReport) -> Vec<Kind> {
    report.findings.iter().map(|finding| finding.kind).collect()
}

async fn change(dir: &Path, puts: Vec<Put>) {
    let (store, _) = EmbeddedStore::open(dir, Options::new(1)).unwrap();
    store.put(puts, Durability::Synced).await.unwrap();
    store.close().await.unwrap();
}

fn tamper(dir: &Path, change: impl FnOnce(&Tables, &mut OwnedWriteBatch)) {
    let offline = Offline::open(dir).unwrap();
    let mut batch = offline.tables.db.batch();
    change(&offline.tables, &mut batch);
    offline.tables.commit(batch, true).unwrap();
}

/// What was found is found again by a look alone, is repaired by a repair, and then is gone.
fn found_and_repaired(dir: &Path, expected: &[Kind]) -> CheckReport {
    let looked = check(dir, false);
    assert_eq!(kinds(&looked), expected, "{looked:?}");
    assert_eq!(looked.remaining(), expected.len() as u64);
    assert_eq!(kinds(&check(dir, false)), expected, "looking changes nothing");
    let repaired = check(dir, true);
    assert_eq!(repaired.remaining(), 0, "{repaired:?}");
    let clean = check(dir, false);
    assert_eq!(kinds(&clean), [], "{clean:?}");
    repaired
}

#[tokio::test]
async fn a_sound_store_has_no_findings_and_keeps_its_mark_of_a_clean_stop() {
    let dir = sound().await;
    for repair in [false, true] {
        let report = check(dir.path(), repair);
        assert_eq!(kinds(&report), [], "{report:?}");
        assert_eq!((report.logs, report.entries, report.conversations), (6, 30, 3));
        assert_eq!((report.checkpoints, report.rows, report.todo), (3, 6, 1));
    }
    let (store, report) = EmbeddedStore::open(dir.path(), Options::new(1)).unwrap();
    assert!(report.may_keep_era());
    assert_eq!(store.meta(REFILL_ALL_KEY).await.unwrap(), None);
}

#[tokio::test]
async fn a_log_broken_in_its_middle_is_cut_what_was_cut_is_kept_and_peers_are_asked() {
    let dir = sound().await;
    let log = LogId { conversation: conv(2), origin: EU };
    tamper(dir.path(), |tables, batch| {
        let key = entry_key(log, 4);
        let mut value = tables.entries.get(key).unwrap().unwrap().to_vec();
        *value.last_mut().unwrap() ^= 1;
        batch.insert(&tables.entries, key, value);
    });
    let looked = check(dir.path(), false);
    assert_eq!(kinds(&looked), [Kind::Log], "what follows from a refused log is no finding of its own: {looked:?}");
    let repaired = check(dir.path(), true);
    assert_eq!((repaired.remaining(), repaired.quarantined), (0, 3));
    // The rows of both members named what was cut.
    assert_eq!(kinds(&repaired), [Kind::Log, Kind::Row, Kind::Row], "{repaired:?}");
    assert_eq!(kinds(&check(dir.path(), false)), []);
    let (store, report) = EmbeddedStore::open(dir.path(), Options::new(1)).unwrap();
    assert!(!report.is_damaged() && !report.may_keep_era(), "{report:?}");
    assert_eq!(store.meta(REFILL_ALL_KEY).await.unwrap().as_deref(), Some(&[1][..]));
    assert_eq!(store.meta("clean").await.unwrap().as_deref(), Some(&[0][..]));
    let rows = store.rows(user("bob")).await.unwrap();
    assert_eq!(rows[1].1.heads, [(EU, 3), (US, 4)].into());
    assert_eq!(rows[1].1.rev.epoch(), 4, "above every cursor");
    // Peers send it again.
    let entries = (4..=6).map(|seq| entry(EU, seq)).collect();
    let refill = Append { conversation: conv(2), origin: EU, epoch: 5, entries, todo: Vec::new() };
    assert_eq!(store.append(vec![refill]).await, [Appended::Decided]);
    let all = Range {
        conversation: conv(2),
        origin: EU,
        from: 1,
        to: 9,
        max_entries: 99,
        max_bytes: 1 << 20,
        backwards: false,
    };
    assert_eq!(store.range(all).await.unwrap(), (1..=6).map(|seq| entry(EU, seq)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_torn_tail_is_put_aside_and_an_erasure_takes_it_from_there() {
    let dir = sound().await;
    let log = LogId { conversation: conv(1), origin: US };
    tamper(dir.path(), |tables, batch| {
        let mut value = Vec::new();
        encode_entry(&mut value, &[9; 16], &entry(US, 4));
        batch.insert(&tables.entries, entry_key(log, 4), &value[..]);
    });
    let repaired = check(dir.path(), true);
    assert_eq!((repaired.remaining(), repaired.quarantined), (0, 1), "{repaired:?}");
    change(dir.path(), vec![erase(US, 4)]).await;
    assert_eq!(check(dir.path(), false).quarantined, 0, "what was put aside is erased as well");
}

#[tokio::test]
async fn rows_that_name_what_is_not_there_or_share_a_revision_are_made_to_say_what_the_logs_say() {
    let dir = sound().await;
    let high = RowRecord { heads: [(EU, 60), (US, 4), (Origin { region: 3, era: 3 }, 1)].into(), ..row(7, "bob") };
    let unissued = RowRecord { rev: Rev::start_of(9), ..row(0, "alice") };
    let puts = vec![
        Put::Row { user: user("alice"), conversation: conv(1), row: high },
        Put::Row { user: user("alice"), conversation: conv(2), row: row(7, "bob") },
        Put::Row { user: user("bob"), conversation: conv(3), row: unissued },
        Put::Row { user: user("carol"), conversation: conv(9), row: row(1, "bob") },
    ];
    change(dir.path(), puts).await;
    let repaired = found_and_repaired(dir.path(), &[Kind::Row; 4]);
    assert!(repaired.findings.iter().any(|finding| finding.what.contains("60 entries of")), "{repaired:?}");
    let (store, report) = EmbeddedStore::open(dir.path(), Options::new(1)).unwrap();
    assert!(report.may_keep_era(), "no entry was lost, so the era goes on");
    let rows = store.rows(user("alice")).await.unwrap();
    assert_eq!(rows[0].1.heads, [(EU, 6), (US, 4)].into());
    assert!(rows[0].1.rev != rows[1].1.rev);
    assert_eq!(parse_epoch(&store.meta(EPOCH_KEY).await.unwrap().unwrap()), Some(4), "durable: the next start takes 5");
}

#[tokio::test]
async fn a_row_that_lags_or_is_missing_or_is_unreadable_gets_its_fan_out_again() {
    let dir = sound().await;
    let lagging = RowRecord { heads: [(EU, 5), (US, 4)].into(), ..row(8, "bob") };
    change(dir.path(), vec![Put::Row { user: user("alice"), conversation: conv(1), row: lagging.clone() }]).await;
    tamper(dir.path(), |tables, batch| {
        batch.remove(&tables.rows, row_key(&user("bob"), conv(2)));
        batch.insert(&tables.rows, row_key(&user("bob"), conv(3)), [1, 2, 3]);
    });
    let looked = check(dir.path(), false);
    assert_eq!(kinds(&looked), [Kind::Lag, Kind::Lag, Kind::Row], "{looked:?}");
    let repaired = check(dir.path(), true);
    assert_eq!(repaired.remaining(), 0);
    assert_eq!(kinds(&check(dir.path(), false)), [], "a noted fan-out will bring them up");
    let (store, _) = EmbeddedStore::open(dir.path(), Options::new(1)).unwrap();
    let noted: Vec<_> = store.todo().await.unwrap().into_iter().map(|t| (t.target, t.conversation)).collect();
    let fan_out = [1, 2, 3].map(|n| (Target::Fanout, conv(n)));
    assert_eq!(noted, [&fan_out[..], &[(Target::Peer(2), conv(1))]].concat());
}

#[tokio::test]
async fn a_row_of_a_direct_conversation_names_the_other_user() {
    let dir = sound().await;
    let wrong = RowRecord { peer: None, ..row(8, "bob") };
    change(dir.path(), vec![Put::Row { user: user("alice"), conversation: conv(1), row: wrong }]).await;
    found_and_repaired(dir.path(), &[Kind::Row]);
    let (store, _) = EmbeddedStore::open(dir.path(), Options::new(1)).unwrap();
    assert_eq!(store.rows(user("alice")).await.unwrap()[0].1.peer, Some(user("bob")));
}

#[tokio::test]
async fn todo_of_nothing_and_above_the_heads_is_corrected() {
    let dir = sound().await;
    let todo = |target, conversation, prefix: Heads| Put::Todo(Todo { target, conversation, prefix, user: None });
    let marks = Todo {
        target: Target::Peer(2),
        conversation: conv(77),
        prefix: [(Origin { region: 1, era: 0 }, 900)].into(),
        user: Some(user("alice")),
    };
    let puts = vec![
        todo(Target::Peer(2), conv(9), [(EU, 1)].into()),
        todo(Target::Peer(3), conv(1), [(EU, 60), (US, 1)].into()),
        Put::Todo(marks.clone()),
    ];
    change(dir.path(), puts).await;
    tamper(dir.path(), |tables, batch| batch.insert(&tables.todo, todo_key(Target::Peer(4), conv(1)), [9]));
    found_and_repaired(dir.path(), &[Kind::Todo; 3]);
    let (store, _) = EmbeddedStore::open(dir.path(), Options::new(1)).unwrap();
    let noted = store.todo().await.unwrap();
    assert!(noted.contains(&marks), "{noted:?}");
    let prefix = |region| noted.iter().find(|t| t.target == Target::Peer(region)).map(|t| t.prefix.clone());
    assert_eq!(prefix(3), Some([(EU, 6), (US, 1)].into()));
    assert_eq!(prefix(4), Some([(EU, 0), (US, 0)].into()), "all of it is shipped again");
}

#[tokio::test]
async fn a_checkpoint_of_another_past_is_made_anew() {
    let dir = sound().await;
    let mut ahead = LogState::new(conv(1));
    (1..=9).for_each(|seq| {
        ahead.apply(entry(EU, seq));
    });
    let mut other = LogState::new(conv(2));
    let mut forged = (*entry(EU, 1)).clone();
    forged.peer = Some(user("mallory"));
    other.apply(Arc::new(forged));
    let orphan = ahead.checkpoint();
    let puts = vec![
        Put::Checkpoint { conversation: conv(1), value: ahead.checkpoint() },
        Put::Checkpoint { conversation: conv(2), value: other.checkpoint() },
        Put::Checkpoint { conversation: conv(3), value: Bytes::from_static(b"\xffnone") },
        Put::Checkpoint { conversation: conv(8), value: orphan },
    ];
    change(dir.path(), puts).await;
    let repaired = found_and_repaired(dir.path(), &[Kind::Checkpoint; 4]);
    assert!(repaired.findings[1].what.contains("members"), "{repaired:?}");
    let (store, _) = EmbeddedStore::open(dir.path(), Options::new(1)).unwrap();
    let checkpoint = store.conversation(conv(1)).await.unwrap().checkpoint.unwrap();
    assert_eq!(LogState::from_checkpoint(conv(1), checkpoint).unwrap().heads, [(EU, 6), (US, 4)].into());
    assert_eq!(store.conversation(conv(8)).await.unwrap().checkpoint, None);
}

#[tokio::test]
async fn a_body_that_is_listed_as_erased_is_erased_again() {
    let dir = sound().await;
    let key = entry_key(LogId { conversation: conv(1), origin: EU }, 2);
    let mut whole = Vec::new();
    tamper(dir.path(), |tables, _| whole = tables.entries.get(key).unwrap().unwrap().to_vec());
    change(dir.path(), vec![erase(EU, 2)]).await;
    assert_eq!(kinds(&check(dir.path(), false)), []);
    tamper(dir.path(), |tables, batch| batch.insert(&tables.entries, key, &whole[..]));
    found_and_repaired(dir.path(), &[Kind::Erasure]);
    tamper(dir.path(), |tables, _| {
        let value = tables.entries.get(key).unwrap().unwrap();
        let (_, stored) = split_entry(&value).unwrap();
        assert!(Entry::decode(Bytes::copy_from_slice(stored)).unwrap().erased);
    });
}

#[tokio::test]
async fn named_values_that_no_start_can_read_are_told_and_left() {
    let dir = sound().await;
    tamper(dir.path(), |tables, batch| {
        batch.insert(&tables.state, meta_key("era"), [1, 7]);
        batch.insert(&tables.state, meta_key("region"), [1, 2]);
        batch.insert(&tables.state, meta_key("peer/2"), [1, 2, 3]);
        batch.insert(&tables.state, meta_key("clean"), [1, 1, 9]);
        batch.insert(&tables.state, checkpoint_key(conv(1)), [7]);
    });
    let report = check(dir.path(), true);
    assert_eq!(kinds(&report), [Kind::Checkpoint, Kind::Meta, Kind::Meta, Kind::Meta, Kind::Meta], "{report:?}");
    assert_eq!(report.remaining(), 4);
    assert!(report.findings.iter().all(|finding| finding.repaired == (finding.kind == Kind::Checkpoint)));
}

/// Twenty sealed eras of region 2 with an entry each in a conversation, and the rows of both users, folded.
async fn folded(dir: &Path, heads: impl Fn(&mut Heads)) {
    let (store, _) = EmbeddedStore::open(dir, Options::new(1)).unwrap();
    let (mut eras, mut full) = (EraTable::default(), Heads::from([(EU, 6), (US, 4)]));
    eras.note(EU, Era { start: 1, sealed: false }, true);
    eras.note(US, Era { start: 1, sealed: true }, true);
    for era in 20..40 {
        let origin = Origin { region: 2, era };
        eras.note(origin, Era { start: era, sealed: true }, true);
        full.insert(origin, 1);
        let entries = vec![entry(origin, 1)];
        let entries = entries
            .into_iter()
            .map(|e| Arc::new(Entry { by: Identity { n: era * 100, ..e.by.clone() }, ..(*e).clone() }));
        let append = Append { conversation: conv(1), origin, epoch: 3, entries: entries.collect(), todo: Vec::new() };
        assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
    }
    let mut told = eras.fold(&full).into_owned();
    assert!(told.len() < full.len());
    heads(&mut told);
    let mut puts: Vec<Put> =
        (1..=2).map(|region| Put::Meta { key: format!("{ERAS_KEY}{region}"), value: eras.to_bytes(region) }).collect();
    for (name, peer) in [("alice", "bob"), ("bob", "alice")] {
        let row = RowRecord { heads: told.clone(), ..row(9, peer) };
        puts.push(Put::Row { user: user(name), conversation: conv(1), row });
    }
    store.put(puts, Durability::Synced).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn folded_rows_are_sound_and_one_that_lacks_an_entry_of_a_fold_is_not() {
    let dir = sound().await;
    folded(dir.path(), |_| {}).await;
    assert_eq!(kinds(&check(dir.path(), false)), []);
    let dir = sound().await;
    folded(dir.path(), |told| {
        let fold = *told.keys().find(|o| o.through().is_some()).unwrap();
        *told.get_mut(&fold).unwrap() -= 1;
    })
    .await;
    let report = check(dir.path(), false);
    assert_eq!(kinds(&report), [Kind::Lag, Kind::Lag], "{report:?}");
    let dir = sound().await;
    folded(dir.path(), |told| {
        let fold = *told.keys().find(|o| o.through().is_some()).unwrap();
        *told.get_mut(&fold).unwrap() += 1;
    })
    .await;
    let report = check(dir.path(), false);
    assert_eq!(kinds(&report), [Kind::Row, Kind::Row], "entries that are not there: {report:?}");
}

#[tokio::test]
async fn what_a_clean_stop_and_a_linked_peer_leave_behind_is_sound() {
    let dir = sound().await;
    let known = tern_core::node::refill::Known { start: 2, era: 7, commit: 9, incomplete: false };
    let mut clean = vec![1];
    clean.extend(9u64.to_be_bytes());
    change(
        dir.path(),
        vec![
            Put::Meta { key: "peer/2".into(), value: known.to_bytes() },
            Put::Meta { key: "clean".into(), value: clean.into() },
        ],
    )
    .await;
    assert_eq!(kinds(&check(dir.path(), false)), []);
    change(dir.path(), vec![Put::Meta { key: format!("{ERAS_KEY}2"), value: Bytes::from_static(&[7; 18]) }]).await;
    assert_eq!(kinds(&check(dir.path(), false)), [Kind::Meta]);
}
