//! `tern store` as operators use it: on a store that nobody serves, and beside a region that runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// Processes run in real time, and so do their tests.
#![allow(clippy::disallowed_methods)]

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tern::cluster::Cluster;
use tern::fleet::Fleet;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place, UserId};
use tern_core::store::{Append, Appended, Durability, Put, Store, Target, Todo};
use tern_replication::store::{EmbeddedStore, Options};

const EU: Origin = Origin { region: 1, era: 1 };
const SECRET: &str = "<what nobody should read any more>";

fn tern(data: &Path, arguments: &[&str]) -> Output {
    program::tern().arg("--data").arg(data).arg("store").args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(out(output).lines().next().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{} {}", out(output), err(output)))
}

fn entry(seq: u64, body: &str) -> Arc<Entry> {
    Arc::new(Entry {
        peer: Some(UserId::new("bob").unwrap()),
        ..Entry::text(
            Place { hlc: seq << 16, origin: EU, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
            Bytes::copy_from_slice(body.as_bytes()),
        )
    })
}

/// A store as a region leaves it that was stopped in order, with fan-out still to do.
async fn stopped(data: &Path) -> EmbeddedStore {
    let (store, _) = EmbeddedStore::open(&data.join("store"), Options::new(1).init()).unwrap();
    let conversation = ConvId([7; 16]);
    let todo = vec![Todo { target: Target::Fanout, conversation, prefix: [(EU, 0)].into(), user: None }];
    let entries = (1..=9).map(|seq| entry(seq, if seq == 5 { SECRET } else { "hello" })).collect();
    let append = Append { conversation, origin: EU, epoch: 1, entries, todo };
    assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
    let epoch = Put::Meta { key: "epoch".into(), value: Bytes::copy_from_slice(&1u64.to_be_bytes()) };
    store.put(vec![epoch], Durability::Synced).await.unwrap();
    store
}

fn holds(dir: &Path, needle: &str) -> bool {
    fs::read_dir(dir).unwrap().any(|file| {
        let path = file.unwrap().path();
        if path.is_dir() {
            return holds(&path, needle);
        }
        fs::read(&path).unwrap().windows(needle.len()).any(|bytes| bytes == needle.as_bytes())
    })
}

#[tokio::test]
async fn a_stopped_store_is_checked_backed_up_verified_and_restored_without_what_was_erased_since() {
    let dir = tempfile::tempdir().unwrap();
    let (data, new, file, list) =
        (dir.path().join("a"), dir.path().join("b"), dir.path().join("backup"), dir.path().join("list"));
    let store = stopped(&data).await;
    store.close().await.unwrap();
    drop(store);
    let path = |path: &PathBuf| path.display().to_string();
    let checked = tern(&data, &["check", "--json"]);
    assert_eq!((code(&checked), json(&checked)["entries"].as_u64()), (0, Some(9)), "{}", err(&checked));
    let made = tern(&data, &["backup", "--to", &path(&file), "--json"]);
    assert_eq!((code(&made), json(&made)["entries"].as_u64()), (0, Some(9)), "{}", err(&made));
    let again = tern(&data, &["backup", "--to", &path(&file)]);
    assert!(code(&again) == 3 && err(&again).contains("overwrite nothing"), "{}", err(&again));

    let (store, _) = EmbeddedStore::open(&data.join("store"), Options::new(1)).unwrap();
    let erase = Put::Erase { conversation: ConvId([7; 16]), origin: EU, seq: 5, by: entry(5, "").by.clone() };
    store.put(vec![erase], Durability::Synced).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    assert_eq!(code(&tern(&data, &["erasures", "--to", &path(&list)])), 0);
    assert!(holds(&data, SECRET));
    assert_eq!(code(&tern(&data, &["compact"])), 0);
    assert!(!holds(&data, SECRET));

    let restored = tern(&new, &["restore", "--from", &path(&file), "--erasures", &path(&list), "--json"]);
    assert_eq!((code(&restored), json(&restored)["erased"].as_u64()), (0, Some(1)), "{}", err(&restored));
    assert!(!holds(&new, SECRET));
    assert_eq!(code(&tern(&new, &["check"])), 0);
    let onto = tern(&new, &["restore", "--from", &path(&file)]);
    assert!(code(&onto) == 3 && err(&onto).contains("not empty"), "{}", err(&onto));

    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&file, &bytes).unwrap();
    for arguments in [&["verify", &path(&file)][..], &["verify", &path(&list)], &["verify", "/no/such/file"]] {
        let said = tern(&data, arguments);
        assert_ne!(code(&said), 0, "{arguments:?}");
    }
    let refused = tern(&data, &["verify", &path(&file)]);
    assert!(code(&refused) == 1 && out(&refused).contains("damaged"), "{}", out(&refused));
    let refused = tern(&dir.path().join("c"), &["restore", "--from", &path(&file)]);
    assert!(code(&refused) == 3 && !dir.path().join("c/store").exists(), "{}", err(&refused));
}

#[tokio::test]
async fn findings_end_with_1_what_is_no_store_with_3_and_repairs_say_what_they_did() {
    let dir = tempfile::tempdir().unwrap();
    let store = stopped(dir.path()).await;
    let prefix = [(EU, 40)].into();
    let todo = Todo { target: Target::Peer(2), conversation: ConvId([7; 16]), prefix, user: None };
    store.put(vec![Put::Todo(todo)], Durability::Synced).await.unwrap();
    let used = tern(dir.path(), &["check"]);
    assert!(code(&used) == 3 && err(&used).contains("in use"), "{}", err(&used));
    drop(store);
    let found = tern(dir.path(), &["check"]);
    assert!(code(&found) == 1 && out(&found).contains("40 entries") && out(&found).contains("--repair"), "{found:?}");
    let repaired = tern(dir.path(), &["check", "--repair"]);
    assert!(code(&repaired) == 0 && out(&repaired).contains("repaired"), "{repaired:?}");
    assert_eq!(code(&tern(dir.path(), &["check"])), 0);
    let none = tern(&dir.path().join("none"), &["check"]);
    assert!(code(&none) == 3 && err(&none).contains("no store"), "{}", err(&none));
    assert_eq!(code(&tern(dir.path(), &["check", "--mend"])), 2);
}

#[tokio::test]
async fn a_running_region_backs_itself_up_and_only_the_one_that_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::plan(dir.path().join("cluster"), &["eu".to_owned()], 27_400).unwrap();
    cluster.find_ports().unwrap();
    let processes = cluster.write().unwrap();
    let mut fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &cluster.data).unwrap();
    let process = &processes[0];
    let ready = fleet.start(&process.name, &process.arguments).await.unwrap();
    let admin = format!("listen.admin={}", ready.admin.unwrap());
    let data = region_data(&cluster.data);
    let backups = dir.path().join("backups");
    fs::create_dir(&backups).unwrap();
    let to = backups.display().to_string();
    let made = tern(&data, &["backup", "--to", &to, "--json", "--set", &admin]);
    assert_eq!(code(&made), 0, "{}", err(&made));
    let file = json(&made)["file"].as_str().unwrap().to_owned();
    assert_eq!(code(&tern(&data, &["verify", &file])), 0);
    assert_eq!(code(&tern(&data, &["compact", "--set", &admin])), 0);
    // Another store that is in use, and the wrong region is asked for it.
    let other = dir.path().join("other");
    let held = stopped(&other).await;
    let refused = tern(&other, &["backup", "--to", &to, "--set", &admin]);
    assert!(code(&refused) == 3 && err(&refused).contains("another one is meant"), "{}", err(&refused));
    let nobody = tern(&data, &["backup", "--to", &to, "--set", "listen.admin=127.0.0.1:1"]);
    assert!(code(&nobody) == 3 && err(&nobody).contains("listen.admin"), "{}", err(&nobody));
    assert_eq!(fs::read_dir(&backups).unwrap().count(), 1, "nothing half-made is left");
    drop(held);
    fleet.stop(std::time::Duration::from_secs(20)).await;
}

/// The data directory of the one region below `data`.
fn region_data(data: &Path) -> PathBuf {
    let mut found = Vec::new();
    let mut left = vec![data.to_owned()];
    while let Some(dir) = left.pop() {
        for file in fs::read_dir(&dir).unwrap() {
            let path = file.unwrap().path();
            if path.join("STORE").exists() {
                found.push(dir.clone());
            } else if path.is_dir() {
                left.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}
