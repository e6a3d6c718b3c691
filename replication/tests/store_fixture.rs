//! Stores that earlier versions wrote open in this one. Each stays in `fixtures/` for ever.
//!
//! To add one after a change of format: `TERN_WRITE_FIXTURE=replication/fixtures/store-v2 cargo test -p
//! tern-replication --test store_fixture`, and a line in the test below.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Rev, UserId};
use tern_core::store::{Append, Appended, Durability, Put, Range, RowRecord, Store, Target, Todo};
use tern_replication::store::{EPOCH_KEY, EmbeddedStore, Options, epoch_value};

const HOME: Origin = Origin { region: 1, era: 0xe0e0 };
const COPY: Origin = Origin { region: 2, era: 0xc0c0 };

fn entry(origin: Origin, seq: u64) -> Arc<Entry> {
    Arc::new(Entry {
        peer: Some(UserId::new("bob").unwrap()),
        wall_ms: 1_790_000_000_000 + seq,
        first: (seq == 2).then_some(Place { hlc: 5, origin: COPY, seq: 9 }),
        ..Entry::text(
            Place { hlc: (seq << 16) + 1, origin, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
            format!("message {seq} of region {}", origin.region),
        )
    })
}

fn conversation() -> ConvId {
    ConvId(*b"a conversation..")
}

fn row() -> RowRecord {
    RowRecord {
        rev: Rev::start_of(3).next(),
        heads: [(HOME, 3), (COPY, 2)].into_iter().collect(),
        read: [(HOME, 1)].into_iter().collect(),
        state: 0,
        generation: 1,
        peer: Some(UserId::new("alice").unwrap()),
        last_hlc: 3 << 16,
        counted: 5,
        ..RowRecord::default()
    }
}

fn todo() -> Todo {
    Todo {
        target: Target::Peer(2),
        conversation: conversation(),
        prefix: [(HOME, 2)].into_iter().collect(),
        user: None,
    }
}

async fn write(dir: &Path) {
    let (store, _) = EmbeddedStore::open(dir, Options::new(1).init()).unwrap();
    let append = |origin, to, todo| Append {
        conversation: conversation(),
        origin,
        epoch: 3,
        entries: (1..=to).map(|seq| entry(origin, seq)).collect(),
        todo,
    };
    let answers = store.append(vec![append(HOME, 3, vec![todo()]), append(COPY, 2, Vec::new())]).await;
    assert_eq!(answers, [Appended::Decided, Appended::Decided]);
    let puts = vec![
        Put::Row { user: UserId::new("bob").unwrap(), conversation: conversation(), row: row() },
        Put::Checkpoint { conversation: conversation(), value: Bytes::from_static(b"checkpoint") },
        Put::Meta { key: EPOCH_KEY.to_owned(), value: epoch_value(3) },
    ];
    store.put(puts, Durability::Synced).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    // The journal of a new store is mostly a hole, which opening it again cuts off.
    let (store, _) = EmbeddedStore::open(dir, Options::new(1)).unwrap();
    store.close().await.unwrap();
}

async fn check(store: &EmbeddedStore) {
    for (origin, head) in [(HOME, 3), (COPY, 2)] {
        let range = Range {
            conversation: conversation(),
            origin,
            from: 1,
            to: u64::MAX,
            max_entries: 100,
            max_bytes: usize::MAX,
            backwards: false,
        };
        let expected: Vec<_> = (1..=head).map(|seq| entry(origin, seq)).collect();
        assert_eq!(store.range(range).await.unwrap(), expected);
    }
    let image = store.conversation(conversation()).await.unwrap();
    assert_eq!(image.heads, [(HOME, 3), (COPY, 2)].into_iter().collect::<Heads>());
    assert_eq!(image.checkpoint.as_deref(), Some(&b"checkpoint"[..]));
    assert_eq!(store.rows(UserId::new("bob").unwrap()).await.unwrap(), [(conversation(), row())]);
    assert_eq!(store.todo().await.unwrap(), [todo()]);
    assert_eq!(store.meta(EPOCH_KEY).await.unwrap(), Some(epoch_value(3)));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn stores_of_every_format_are_opened() {
    if let Some(dir) = std::env::var_os("TERN_WRITE_FIXTURE") {
        // Cargo runs tests in the crate's directory, and the path is meant from the workspace's.
        write(&PathBuf::from("..").join(dir)).await;
    }
    for name in ["store-v1"] {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        let dir = tempfile::tempdir().unwrap();
        copy(&fixture, dir.path());
        let (store, report) = EmbeddedStore::open(dir.path(), Options::new(1)).unwrap();
        assert!(report.may_keep_era() && report.entries == 5, "{name}: {report:?}");
        check(&store).await;
    }
}
