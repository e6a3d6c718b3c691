//! A real process is killed while it appends, erases, backs up and compacts, again and again: what it said was
//! decided or erased is so, and a backup that has its name is whole. Another is killed while it restores.
//!
//! The child is this test binary itself, started with a variable that names the store. It prints a line for
//! every decided entry, after the answer and before the next append of that log, for every erasure and backup.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place, UserId};
use tern_core::store::{Append, Appended, Durability, Put, Range, Store, Target, Todo};
use tern_replication::store::embedded::backup;
use tern_replication::store::{EmbeddedStore, OpenError, Options, RESTORED_KEY};

const DIR: &str = "TERN_TEST_STORE_KILL";
const RESTORE: &str = "TERN_TEST_STORE_RESTORE_KILL";
const LOGS: u8 = 8;
const KILLS: u64 = 10;
const ORIGIN: Origin = Origin { region: 1, era: 1 };

fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

fn entry(log: u8, seq: u64) -> Arc<Entry> {
    // Of many sizes, so that kills fall into journal writes of many sizes.
    let length = usize::try_from((seq * 7919) % 3000).unwrap();
    let body = Bytes::from(vec![log; length]);
    Arc::new(Entry::text(
        Place { hlc: seq << 16, origin: ORIGIN, seq },
        Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
        body,
    ))
}

fn todo(log: u8) -> Todo {
    Todo { target: Target::Fanout, conversation: conv(log), prefix: [(ORIGIN, 0)].into_iter().collect(), user: None }
}

/// The child's part; without the variable it does nothing.
#[tokio::test]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let (store, _) = EmbeddedStore::open(&dir.join("store"), Options::new(1).init()).unwrap();
    let store = Arc::new(store);
    let said = |what: String| {
        let mut out = std::io::stdout();
        writeln!(out, "{what}").unwrap();
        out.flush().unwrap();
    };
    let mut logs = tokio::task::JoinSet::new();
    for log in 0..LOGS {
        let store = Arc::clone(&store);
        logs.spawn(async move {
            let image = store.conversation(conv(log)).await.unwrap();
            let mut seq = image.heads.get(&ORIGIN).copied().unwrap_or(0);
            loop {
                let count = 1 + seq % 3;
                let entries = (seq + 1..=seq + count).map(|seq| entry(log, seq)).collect();
                let todo = if seq.is_multiple_of(10) { vec![todo(log)] } else { Vec::new() };
                let append = Append { conversation: conv(log), origin: ORIGIN, epoch: 1, entries, todo };
                assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
                seq += count;
                said(format!("decided {log} {seq}"));
                if seq % 4 == 0 {
                    let erase = Put::Erase {
                        conversation: conv(log),
                        origin: ORIGIN,
                        seq: seq / 2,
                        by: entry(log, seq / 2).by.clone(),
                    };
                    store.put(vec![erase], Durability::Synced).await.unwrap();
                    said(format!("erased {log} {}", seq / 2));
                }
                let done = Put::Meta { key: format!("done {log}"), value: Bytes::from(seq.to_string()) };
                store.put(vec![done], Durability::Lazy).await.unwrap();
            }
        });
    }
    let (backups, others) = (dir.join("backups"), Arc::clone(&store));
    logs.spawn(async move {
        loop {
            let report = others.backup(backups.clone()).await.unwrap();
            said(format!("backup {}", report.path.file_name().unwrap().to_str().unwrap()));
            others.compact().await.unwrap();
        }
    });
    panic!("a log's task ended: {:?}", logs.join_next().await);
}

/// Kills the child when it is dropped, so that a failed assertion leaves none behind.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _status = self.0.wait();
    }
}

#[tokio::test]
async fn what_a_killed_process_called_decided_is_there_ten_times_over() {
    let dir = tempfile::tempdir().unwrap();
    let (data, backups) = (dir.path().join("store"), dir.path().join("backups"));
    std::fs::create_dir(&backups).unwrap();
    let mut decided: BTreeMap<u8, u64> = BTreeMap::new();
    let mut erased: BTreeSet<(u8, u64)> = BTreeSet::new();
    let mut backed_up: BTreeSet<String> = BTreeSet::new();
    for round in 0..KILLS {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        let out = child.0.stdout.take().unwrap();
        // Another number of acks each time; the kill falls wherever the child is just then.
        let mut left = 20 + round * 37;
        for line in BufReader::new(out).lines() {
            let line = line.unwrap();
            // The test harness of the child prints before its own lines, on the first of them even.
            let Some(at) = ["decided ", "erased ", "backup "].iter().find_map(|word| line.find(word)) else { continue };
            let mut words = line[at..].split(' ');
            let Some(word) = words.next() else { continue };
            if word == "backup" {
                backed_up.extend(words.next().map(str::to_owned));
                continue;
            }
            let Some((log, seq)) = words.next().zip(words.next()) else { continue };
            let (Ok(log), Ok(seq)) = (log.parse(), seq.parse()) else { continue };
            if word == "erased" {
                erased.insert((log, seq));
            } else {
                decided.insert(log, seq);
                left = left.saturating_sub(1);
            }
            if left == 0 {
                child.0.kill().unwrap();
            }
        }
        drop(child);

        let (store, report) = EmbeddedStore::open(&data, Options::new(1).init()).unwrap();
        assert!(!report.clean_stop && report.cut.is_empty() && report.damaged.is_empty(), "{report:?}");
        let noted = store.todo().await.unwrap();
        for log in 0..LOGS {
            let all = Range {
                conversation: conv(log),
                origin: ORIGIN,
                from: 1,
                to: u64::MAX,
                max_entries: usize::MAX,
                max_bytes: usize::MAX,
                backwards: false,
            };
            let found = store.range(all).await.unwrap();
            let said = decided.get(&log).copied().unwrap_or(0);
            assert!(found.len() as u64 >= said, "log {log}: {said} were decided, {} are there", found.len());
            for (seq, found) in (1..).zip(&found) {
                let written = entry(log, seq);
                let expected = if found.erased { written.to_erased() } else { (*written).clone() };
                assert!(**found == expected, "log {log} entry {seq} in round {round}");
                assert!(found.erased || !erased.contains(&(log, seq)), "log {log} entry {seq} was said to be erased");
            }
            assert!(found.is_empty() || noted.contains(&todo(log)), "log {log} has entries, and no todo");
        }
    }
    assert!(decided.values().sum::<u64>() > 500, "{decided:?}");
    assert!(erased.len() > 50, "{erased:?}");
    let (mut named, mut partial) = (BTreeSet::new(), 0);
    for file in std::fs::read_dir(&backups).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        if !name.starts_with('.') {
            assert!(backup::verify(&file.path()).unwrap().is_sound(), "{name}");
            named.insert(name);
        } else {
            partial += 1;
        }
    }
    assert!(partial <= 1, "each backup takes over what a kill left of the one before");
    assert!(!backed_up.is_empty() && backed_up.is_subset(&named), "{backed_up:?} {named:?}");
}

/// The restoring child's part.
#[test]
fn restoring_child() {
    let Some(dir) = std::env::var_os(RESTORE) else { return };
    let dir = Path::new(&dir);
    backup::restore(&dir.join("backup"), &dir.join("restored"), None, None).unwrap();
}

/// Killed as soon as a file is there that a step of the restore makes, or a little later.
#[tokio::test]
async fn a_killed_restore_leaves_a_whole_store_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = EmbeddedStore::open(&dir.path().join("store"), Options::new(1).init()).unwrap();
    for log in 0..LOGS {
        let entries = (1..=400).map(|seq| entry(log, seq)).collect();
        let append = Append { conversation: conv(log), origin: ORIGIN, epoch: 1, entries, todo: vec![todo(log)] };
        assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
    }
    store.backup(dir.path().join("backup")).await.unwrap();
    drop(store);
    let restored = dir.path().join("restored");
    let mut unfinished = 0;
    for (step, spins) in [("RESTORING", 0), ("LOCK", 0), ("db", 0), ("db", 5), ("db", 20), ("STORE", 0), ("STORE", 1)] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "restoring_child", "--nocapture"])
            .env(RESTORE, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        while !restored.join(step).exists() && child.0.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        // Further into it, by something that takes about as long everywhere: files looked at.
        (0..spins * 1_000).for_each(|_| assert!(dir.path().exists()));
        drop(child);
        match EmbeddedStore::open(&restored, Options::new(1)) {
            Err(OpenError::RestoreUnfinished { .. } | OpenError::NotInitialised { .. }) => unfinished += 1,
            Ok((store, report)) => {
                assert!(!report.is_damaged() && report.entries == 400 * u64::from(LOGS), "{step}: {report:?}");
                assert_eq!(store.todo().await.unwrap().len(), usize::from(LOGS));
                assert_eq!(store.meta(RESTORED_KEY).await.unwrap().as_deref(), Some(&[1][..]));
            }
            Err(other) => panic!("{step}: {other}"),
        }
        if restored.exists() {
            std::fs::remove_dir_all(&restored).unwrap();
        }
    }
    assert!(unfinished >= 3, "most kills hit the middle: {unfinished}");
    backup::restore(&dir.path().join("backup"), &restored, None, None).unwrap();
}
