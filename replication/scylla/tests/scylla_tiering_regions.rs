//! Moving old entries of a timeline that several regions and several processes of a region have: two owners, a region that
//! comes late, erasures by others, a datacenter that is away, a database that was restored.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "processes of the database need real time")]

mod cluster;
mod tiering;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::{WallClock, entropy, nodes, replication};
use tern_core::leases::{Leases, SharedStore};
use tern_core::slots::Slot;
use tern_core::store::{Appended, Durability, Store};
use tern_replication::store::archive::TierPlan;
use tern_scylla::{Cluster, Options, ScyllaStore, inspect, schema};
use tiering::{DAY_MS, World, append, archive, batch, claim, conv, entries, erase, plan, read, whole_pass, without};

/// For what the database carries over to the other datacenter, and for a node that is started.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store of region 2 on the same timeline, which appends copies under epoch 1. Everything is empty then. `None` where
/// there is one datacenter.
async fn us(world: &World) -> Option<ScyllaStore> {
    let datacenter = replication().get(1).map(|(name, _)| name.clone());
    let Some(datacenter) = datacenter else {
        eprintln!("skipped: one datacenter; replication/tests/cql-cluster/check starts two");
        return None;
    };
    let timeline = &world.place.cluster.options().timeline_keyspace;
    let options = Options::new(nodes()?, &datacenter, &timeline.replace("timeline", "us"), timeline);
    schema::init(&options, &replication()).await.unwrap();
    let cluster = Cluster::connect(options).await.unwrap();
    schema::empty(&cluster).await.unwrap();
    let store = ScyllaStore::new(cluster, Arc::new(WallClock::default()), &entropy());
    let store = store.with_archive(archive(&world.objects, 2));
    claim(&store, 1).await;
    Some(store)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_owners_of_a_conversation_the_later_ones_mark_stays_whatever_their_clocks_say() {
    let Some(world) = World::new().await else { return };
    let (old, new) = (world.node(3_600_000), world.node(-3_600_000));
    let id = conv(5);
    let share = Slot::of(id).share();
    let first = old.give(share, 0, "old".into()).await.unwrap();
    assert!(old.fence_log(id, first).await.unwrap());
    append(&old, id, first, 1, 20).await;
    // A node that does not own it moves nothing.
    assert_eq!(new.store().tier(&plan()).await.unwrap().moved_buckets, 0);
    // The former owner stops in the middle of a pass: its object is written, its mark is not.
    old.store().tier(&TierPlan { steps: Some(1), ..plan() }).await.unwrap_err();
    assert_eq!(world.objects.names().len(), 1);
    let second = new.give(share, first, "new".into()).await.unwrap();
    assert!(new.fence_log(id, second).await.unwrap());
    // It goes on: by what the database says, nothing is its own any more.
    let late = old.store().tier(&plan()).await.unwrap();
    assert_eq!((late.moved_buckets, late.runs, late.failed), (0, 0, None));
    new.put(vec![erase(id, 2)], Durability::Synced).await.unwrap();
    let report = whole_pass(new.store()).await;
    assert_eq!((report.moved_buckets, report.runs), (2, 2), "{report:?}");
    let expected = without(entries(1, 20), &[2]);
    assert_eq!((read(&new, id).await, read(&old, id).await), (expected.clone(), expected));
    // A sweep of the former owner leaves what it does not own; that of the owner takes what the other has left.
    let sweep = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
    assert_eq!(old.store().tier(&sweep).await.unwrap().orphans, 0);
    assert_eq!(new.store().tier(&sweep).await.unwrap().orphans, 1);
    assert_eq!(world.objects.names().len(), 2);
    let found = inspect::inspect(&world.process(), true).await.unwrap();
    assert!(found.damaged.is_empty() && found.archived_entries == 15, "{found:?}");
}

/// What the order of owners rests on where one is paused just before it writes a mark.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_a_former_owner_writes_late_loses() {
    let Some(world) = World::new().await else { return };
    let id = conv(6);
    let (store, _) = world.filled(id, 10).await;
    whole_pass(&store).await;
    let table = format!("{}.archived", world.place.cluster.options().timeline_keyspace);
    let mark = world.place.cluster.blobs(&format!("SELECT mark FROM {table}")).await.unwrap().remove(0);
    store.put(vec![erase(id, 3)], Durability::Synced).await.unwrap();
    assert_eq!(whole_pass(&store).await.rewritten, 1);
    let hex: String = mark.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("conversation = 0x{} AND region = 1 AND era = 7 AND first = 1", "06".repeat(16));
    // With the time-stamp that it had when the former owner still was one.
    let late = format!("UPDATE {table} USING TIMESTAMP 1700000000000000 SET mark = 0x{hex} WHERE {key}");
    world.place.cluster.blobs(&late).await.unwrap();
    let report = whole_pass(&store).await;
    assert_eq!((report.rewritten, report.unwritten_erasures), (0, 0));
    assert_eq!(read(&store, id).await, without(entries(1, 10), &[3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_region_inserts_late_is_not_read_and_goes_again() {
    let Some(world) = World::new().await else { return };
    let id = conv(7);
    let Some(us) = us(&world).await else { return };
    let (store, epoch) = world.filled(id, 20).await;
    // Region 2 has a part of the log, and its link goes down.
    append(&us, id, 1, 1, 4).await;
    let key = format!("conversation = 0x{} AND region = 1 AND era = 7 AND bucket = 0", "07".repeat(16));
    let timeline = format!("{}.timeline", world.place.cluster.options().timeline_keyspace);
    let rows = world.place.cluster.blobs(&format!("SELECT entry FROM {timeline} WHERE {key}")).await.unwrap();
    whole_pass(&store).await;
    store.put(vec![erase(id, 6)], Durability::Synced).await.unwrap();
    whole_pass(&store).await;
    assert_eq!(world.in_timeline(id).await, 5);
    assert_eq!(read(&us, id).await, entries(1, 4), "no more than it has");
    // It is back, with copies that nobody else needs any more.
    append(&us, id, 1, 5, 20).await;
    let expected = without(entries(1, 20), &[6]);
    assert_eq!((read(&us, id).await, read(&store, id).await), (expected.clone(), expected.clone()));
    assert_eq!(world.in_timeline(id).await, 5, "the removal is remembered");
    // And once it is forgotten, so that they stand there again.
    world.place.cluster.blobs(&format!("TRUNCATE {timeline}")).await.unwrap();
    for (seq, row) in (1..).zip(&rows) {
        let hex: String = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let set = format!("UPDATE {timeline} USING TIMESTAMP 1 SET entry = 0x{hex} WHERE {key} AND seq = {seq}");
        world.place.cluster.blobs(&set).await.unwrap();
    }
    assert_eq!((rows.len(), world.in_timeline(id).await), (20, 20));
    assert_eq!((read(&us, id).await, read(&store, id).await), (expected.clone(), expected.clone()), "marks decide");
    // An erasure then takes the row with it.
    us.put(vec![erase(id, 2)], Durability::Synced).await.unwrap();
    let begun = std::time::Instant::now();
    while world.in_timeline(id).await != 19 {
        assert!(begun.elapsed() < PATIENCE, "the removal goes to every datacenter");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let expected = without(expected, &[2]);
    whole_pass(&store).await;
    let sweep = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
    assert_eq!(store.tier(&sweep).await.unwrap().failed, None);
    assert_eq!(world.in_timeline(id).await, 5);
    assert_eq!((read(&us, id).await, read(&store, id).await), (expected.clone(), expected));
    append(&store, id, epoch, 21, 21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_region_reads_and_erases_what_another_has_moved() {
    let Some(world) = World::new().await else { return };
    let id = conv(8);
    let Some(us) = us(&world).await else { return };
    let (store, epoch) = world.filled(id, 20).await;
    append(&us, id, 1, 1, 20).await;
    assert_eq!(us.tier(&plan()).await.unwrap().moved_buckets, 0, "it is not its log");
    whole_pass(&store).await;
    assert_eq!(read(&us, id).await, entries(1, 20));
    us.put(vec![erase(id, 5)], Durability::Synced).await.unwrap();
    let expected = without(entries(1, 20), &[5]);
    assert_eq!(read(&us, id).await, expected, "at once");
    // Here as soon as the database has carried the row over, whether the link has told of it or not.
    let begun = std::time::Instant::now();
    while read(&store, id).await != expected {
        assert!(begun.elapsed() < PATIENCE, "the index goes to every datacenter");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(whole_pass(&store).await.rewritten, 1);
    assert!(!world.holds(5));
    assert_eq!((read(&us, id).await, read(&store, id).await), (expected.clone(), expected));
    append(&store, id, epoch, 21, 22).await;
    let found = inspect::inspect(&us, true).await.unwrap();
    assert!(found.damaged.is_empty() && found.archived_entries == 15, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_datacenter_is_away_nothing_is_removed_and_a_pass_comes_back_to_it() {
    if replication().len() < 2 || std::env::var_os("TERN_CQL_CLUSTER").is_none() {
        eprintln!("skipped: no second datacenter that may be killed; replication/tests/cql-cluster/check starts one");
        return;
    }
    let Some(world) = World::new().await else { return };
    let _restore = Restore;
    let id = conv(9);
    let (store, _) = world.filled(id, 20).await;
    command("kill 2").await;
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            match store.tier(&plan()).await {
                Ok(report) => break report,
                // The driver may still wait for the dead node.
                Err(error) => eprintln!("{error}"),
            }
        }
    });
    let report = told.await.unwrap();
    let failed = report.failed.unwrap_or_default();
    assert!(report.moved_buckets == 0 && failed.contains("not all datacenters"), "{failed}");
    assert_eq!((read(&store, id).await, world.in_timeline(id).await), (entries(1, 20), 20), "nothing was removed");
    // An erasure waits for nobody, and counts although a mark may be there.
    store.put(vec![erase(id, 2)], Durability::Synced).await.unwrap();
    let expected = without(entries(1, 20), &[2]);
    assert_eq!(read(&store, id).await, expected);
    command("start 2").await;
    let back = tokio::time::timeout(PATIENCE, async {
        loop {
            match store.tier(&plan()).await {
                Ok(report) if report.failed.is_none() => break,
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    });
    back.await.expect("the datacenter is back");
    whole_pass(&store).await;
    assert_eq!((read(&store, id).await, world.in_timeline(id).await), (expected, 5));
    assert!(!world.holds(2));
}

async fn command(arguments: &str) {
    let script = std::env::var("TERN_CQL_CLUSTER").unwrap();
    let status = tokio::process::Command::new(script).args(arguments.split(' ')).status().await.unwrap();
    assert!(status.success(), "cql-cluster {arguments}: {status}");
}

/// The node that a test killed goes on when it ends, however it does.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        let Ok(script) = std::env::var("TERN_CQL_CLUSTER") else { return };
        let _the_script_says_why = std::process::Command::new(script).args(["up", "2"]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_restored_needs_nothing_of_the_old_ones_objects_in_the_end() {
    let Some(world) = World::new().await else { return };
    let id = conv(1);
    let (store, _) = world.filled(id, 20).await;
    whole_pass(&store).await;
    let of_the_old = world.objects.names();
    // `tern store new-era` after the restore.
    let fresh = world.process();
    let command = fresh.new_archive_id();
    store.put(vec![command], Durability::Synced).await.unwrap();
    // What the restored marks name was replaced meanwhile, by the one of which the snapshot was made.
    let (next, _) = world.start().await;
    let report = next.tier(&plan()).await.unwrap();
    assert_eq!((report.rewritten, report.foreign_runs), (2, 0), "{report:?}");
    let sweep = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
    next.tier(&sweep).await.unwrap();
    let names = world.objects.names();
    assert!(of_the_old.iter().all(|name| names.contains(name)), "what the old one wrote is left to it");
    assert_eq!(names.len(), 2 * of_the_old.len());
    of_the_old.iter().for_each(|name| world.objects.spoil(name, None));
    assert_eq!(read(&next, id).await, entries(1, 20), "nothing of the old one is needed any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_leaves_what_is_young_and_what_is_anothers() {
    let Some(world) = World::new().await else { return };
    let id = conv(1);
    let (store, _) = world.filled(id, 20).await;
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
    assert_eq!(read(&store, id).await, entries(1, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_erasures_and_reads_beside_passes_lose_nothing() {
    let Some(world) = World::new().await else { return };
    let id = conv(3);
    let (store, epoch) = world.filled(id, 8).await;
    let store = Arc::new(store);
    let passes = {
        let store = store.clone();
        tokio::spawn(async move {
            let mut moved = 0;
            while moved < 20 {
                moved += store.tier(&plan()).await.unwrap().moved_buckets;
            }
        })
    };
    // Another process only reads: it knows of no pass.
    let reader = ScyllaStore::new(world.place.cluster.clone(), Arc::new(WallClock::default()), &entropy())
        .with_archive(archive(&world.objects, 1));
    let mut erased = Vec::new();
    for seq in 9..=177 {
        assert_eq!(store.append(vec![batch(id, epoch, seq, seq)]).await, [Appended::Decided]);
        if seq % 5 == 0 {
            store.put(vec![erase(id, seq / 2)], Durability::Synced).await.unwrap();
            erased.push(seq / 2);
        }
        if seq % 20 == 0 {
            for from in [&*store, &reader] {
                assert_eq!(read(from, id).await, without(entries(1, seq), &erased), "at {seq}");
            }
        }
    }
    passes.await.unwrap();
    whole_pass(&store).await;
    assert_eq!(read(&*store, id).await, without(entries(1, 177), &erased));
    assert!(erased.iter().filter(|seq| **seq < 150).all(|seq| !world.holds(*seq)));
}
