//! How fast a backup is beside a plain copy, and what it does to appends. A measurement, not a test of a property,
//! so it runs only when asked for:
//! `cargo test -p tern-replication --test store_backup_speed -- --ignored --nocapture`

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "measures a real disk")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place, UserId};
use tern_core::store::{Append, Appended, Store};
use tern_replication::store::embedded::backup;
use tern_replication::store::{EmbeddedStore, Options};

const ORIGIN: Origin = Origin { region: 1, era: 1 };
const LOGS: u16 = 500;
const ENTRIES: u64 = 400;

fn append(log: u16, from: u64, to: u64) -> Append {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&log.to_be_bytes());
    let entry = |seq: u64| {
        let body = Bytes::from(vec![u8::try_from(seq % 251).unwrap(); 300]);
        Arc::new(Entry {
            peer: Some(UserId::new("bob").unwrap()),
            ..Entry::text(
                Place { hlc: seq << 16, origin: ORIGIN, seq },
                Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
                body,
            )
        })
    };
    let entries = (from..=to).map(entry).collect();
    Append { conversation: ConvId(id), origin: ORIGIN, epoch: 1, entries, todo: Vec::new() }
}

/// Appends one entry at a time until told to stop; the latencies.
async fn appends(store: &EmbeddedStore, log: u16, stop: &AtomicBool) -> Vec<Duration> {
    let mut seq = 0;
    let mut took = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        seq += 1;
        let started = Instant::now();
        assert_eq!(store.append(vec![append(log, seq, seq)]).await, [Appended::Decided]);
        took.push(started.elapsed());
    }
    took
}

fn show(what: &str, mut took: Vec<Duration>, over: Duration) {
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    println!(
        "{what}: {:.0} appends/s, p50 {:?}, p99 {:?}, longest {:?}",
        took.len() as f64 / over.as_secs_f64(),
        at(50),
        at(99),
        at(100)
    );
}

#[tokio::test]
#[ignore = "a measurement"]
async fn backup_beside_a_plain_copy_and_beside_appends() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = EmbeddedStore::open(&dir.path().join("store"), Options::new(1).init()).unwrap();
    for log in 0..LOGS {
        assert_eq!(store.append(vec![append(log, 1, ENTRIES)]).await, [Appended::Decided]);
    }
    let stop = AtomicBool::new(false);
    let alone = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.store(true, Ordering::SeqCst);
    };
    let (took, ()) = tokio::join!(appends(&store, 1_000, &stop), alone);
    show("appends alone", took, Duration::from_secs(1));

    stop.store(false, Ordering::SeqCst);
    let backups = async {
        let (mut bytes, mut took) = (0, Duration::ZERO);
        for n in 0..5 {
            let report = store.backup(dir.path().join(format!("beside-{n}"))).await.unwrap();
            (bytes, took) = (bytes + report.bytes, took + report.duration);
        }
        stop.store(true, Ordering::SeqCst);
        (bytes, took)
    };
    let (took, (_, over)) = tokio::join!(appends(&store, 1_001, &stop), backups);
    show("appends beside backups", took, over);

    let file = dir.path().join("alone");
    let report = store.backup(file.clone()).await.unwrap();
    let rate = |bytes: u64, took: Duration| bytes as f64 / took.as_secs_f64() / 1e6;
    let started = Instant::now();
    let copy = dir.path().join("copy");
    std::fs::copy(&file, &copy).unwrap();
    std::fs::File::open(&copy).unwrap().sync_all().unwrap();
    let copied = rate(report.bytes, started.elapsed());
    let started = Instant::now();
    backup::verify(&file).unwrap();
    let verified = rate(report.bytes, started.elapsed());
    let restored = backup::restore(&file, &dir.path().join("restored"), None, None).unwrap();
    let (backed_up, restored) = (rate(report.bytes, report.duration), rate(report.bytes, restored.duration));
    println!("{} MB: plain copy, synced: {copied:.0} MB/s", report.bytes / 1_000_000);
    for (what, mb) in [("backup", backed_up), ("verify", verified), ("restore (verify, write, read back)", restored)] {
        println!("{what}: {mb:.0} MB/s, {:.2} of the copy", mb / copied);
    }
}
