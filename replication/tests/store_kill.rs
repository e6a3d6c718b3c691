//! A real process is killed while it appends, again and again: what it said was decided is there.
//!
//! The child is this test binary itself, started with a variable that names the store. It prints a line for
//! every decided entry, after the answer and before the next append of that log.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place, UserId, body_hash};
use tern_core::store::{Append, Appended, Durability, Put, Range, Store, Target, Todo};
use tern_replication::store::{EmbeddedStore, Options};

const DIR: &str = "TERN_TEST_STORE_KILL";
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
    Arc::new(Entry {
        place: Place { hlc: seq << 16, origin: ORIGIN, seq },
        by: Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
        peer: None,
        kind: 0,
        wall_ms: 0,
        first: None,
        stamp: None,
        only_sender: false,
        body_hash: body_hash(&body),
        body,
        erased: false,
    })
}

fn todo(log: u8) -> Todo {
    Todo { target: Target::Fanout, conversation: conv(log), prefix: [(ORIGIN, 0)].into_iter().collect(), user: None }
}

/// The child's part; without the variable it does nothing.
#[tokio::test]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (store, _) = EmbeddedStore::open(Path::new(&dir), Options::new(1).init()).unwrap();
    let store = Arc::new(store);
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
                let mut out = std::io::stdout();
                writeln!(out, "decided {log} {seq}").unwrap();
                out.flush().unwrap();
                let done = Put::Meta { key: format!("done {log}"), value: Bytes::from(seq.to_string()) };
                store.put(vec![done], Durability::Lazy).await.unwrap();
            }
        });
    }
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
    let mut decided: BTreeMap<u8, u64> = BTreeMap::new();
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
            let Some(at) = line.find("decided ") else { continue };
            let mut words = line[at..].split(' ').skip(1);
            let Some((log, seq)) = words.next().zip(words.next()) else { continue };
            let (Ok(log), Ok(seq)) = (log.parse(), seq.parse()) else { continue };
            decided.insert(log, seq);
            left = left.saturating_sub(1);
            if left == 0 {
                child.0.kill().unwrap();
            }
        }
        drop(child);

        let (store, report) = EmbeddedStore::open(dir.path(), Options::new(1).init()).unwrap();
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
            assert!((1..).zip(&found).all(|(seq, found)| **found == *entry(log, seq)), "log {log} in round {round}");
            assert!(found.is_empty() || noted.contains(&todo(log)), "log {log} has entries, and no todo");
        }
    }
    assert!(decided.values().sum::<u64>() > 500, "{decided:?}");
}
