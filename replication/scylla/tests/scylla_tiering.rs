//! Moving old entries of the timeline to an archive, by one process: every death, erasures, objects that are spoiled.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "a real database is waited for")]

mod cluster;
mod tiering;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster::{WallClock, entropy};
use tern_core::ids::ConvId;
use tern_core::sequencer::LogState;
use tern_core::store::{Appended, Durability, Put, Range, Store, StoreError, Target, Todo};
use tern_replication::store::archive::TierPlan;
use tern_replication::store::{Archive, ArchiveOptions, MemoryObjects};
use tern_scylla::{Fate, ScyllaStore, inspect};
use tiering::{
    DAY_MS, HERE, World, append, archive, batch, conv, entries, entry, erase, plan, range, read, whole_pass, without,
};

#[tokio::test(flavor = "multi_thread")]
async fn closed_buckets_move_and_are_read_as_before() {
    let Some(world) = World::new().await else { return };
    let id = conv(1);
    let (store, epoch) = world.filled(id, 30).await;
    let dry = store.tier(&TierPlan { dry_run: true, ..plan() }).await.unwrap();
    assert_eq!((dry.due_buckets, dry.due_entries, dry.runs), (3, 23, 0), "{dry:?}");
    let report = whole_pass(&store).await;
    // 1 to 7, 8 to 15, 16 to 23; 24 to 31 is not full.
    assert_eq!((report.moved_buckets, report.moved_entries, report.runs), (3, 23, 3), "{report:?}");
    assert_eq!((world.objects.names().len(), world.in_timeline(id).await), (3, 7));
    assert_eq!(read(&store, id).await, entries(1, 30));
    for (from, to) in [(1, 7), (7, 8), (15, 16), (20, 26), (23, 24), (24, 30), (30, 40), (31, 40), (9, 9)] {
        let expected = entries(from, to.min(30));
        assert_eq!(store.range(range(id, from, to, false)).await.unwrap(), expected, "{from} to {to}");
        let mut backwards = store.range(range(id, from, to, true)).await.unwrap();
        backwards.reverse();
        assert_eq!(backwards, expected, "{from} to {to}, backwards");
    }
    let two = Range { max_entries: 2, ..range(id, 14, 30, false) };
    assert_eq!(store.range(two).await.unwrap(), entries(14, 15));
    let three = Range { max_entries: 3, ..range(id, 1, 25, true) };
    assert_eq!(store.range(three).await.unwrap(), [entry(25), entry(24), entry(23)]);
    append(&store, id, epoch, 31, 32).await;
    let again = whole_pass(&store).await;
    assert_eq!((again.moved_buckets, again.runs), (1, 4));
    assert_eq!(whole_pass(&store).await.moved_buckets, 0);
    // A process that has only just started.
    store.close().await.unwrap();
    let (next, epoch) = world.start().await;
    assert_eq!(read(&next, id).await, entries(1, 32));
    append(&next, id, epoch, 33, 35).await;
    assert_eq!(read(&next, id).await, entries(1, 35));
    let found = inspect::inspect(&world.process(), true).await.unwrap();
    assert_eq!((found.entries, found.archived_entries, found.archived_runs), (35, 31, 4), "{found:?}");
    assert!(found.damaged.is_empty(), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_after_any_step_of_a_pass_leaves_everything_readable() {
    let Some(world) = World::new().await else { return };
    for steps in 0.. {
        let id = ConvId([u8::try_from(steps).unwrap() + 1; 16]);
        let (store, epoch) = world.owner(id).await;
        append(&store, id, epoch, 1, 20).await;
        store.put(vec![erase(id, 3), erase(id, 19)], Durability::Synced).await.unwrap();
        let expected = without(entries(1, 20), &[3, 19]);
        let died = store.store().tier(&TierPlan { steps: Some(steps), ..plan() }).await.is_err();
        assert_eq!(read(&store, id).await, expected, "before the death after {steps} steps");
        let (next, _) = world.owner(id).await;
        assert_eq!(read(&next, id).await, expected, "after {steps} steps");
        assert_eq!(whole_pass(next.store()).await.runs, 2);
        assert_eq!((read(&next, id).await, world.in_timeline(id).await), (expected, 5));
        // What a death left behind is nobody's, and goes a day later.
        let late = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
        assert_eq!(next.store().tier(&late).await.unwrap().failed, None);
        assert_eq!(world.objects.names().len() as u64, 2 * (steps + 1), "{:?}", world.objects.names());
        assert!(!world.holds(3), "it was erased before it moved");
        if !died {
            assert!(steps > 6, "a pass has more steps than {steps}");
            break;
        }
    }
    let found = inspect::inspect(&world.process(), true).await.unwrap();
    assert!(found.damaged.is_empty(), "{found:?}");
}

/// A conversation of a try. All are in one bucket of their list, so that a pass has as many requests each time.
fn listed_together(kind: u8, n: u64) -> ConvId {
    let mut id = conv(1);
    id.0[8..].copy_from_slice(&[kind, u8::try_from(n).unwrap(), 0, 0, 0, 0, 0, 0]);
    id
}

/// Something that another process does before the `n`th request.
fn before_request<F: Future<Output = ()>>(
    store: &ScyllaStore,
    n: u64,
    does: impl Fn() -> F + Send + Sync + 'static,
) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    store.set_fates(Arc::new(move |_| {
        if counted.fetch_add(1, Ordering::Relaxed) == n {
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(does()));
        }
        Fate::Normal
    }));
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_between_any_two_requests_of_a_read_or_an_erasure_changes_neither() {
    let Some(world) = World::new().await else { return };
    for n in 0.. {
        let id = listed_together(1, n);
        let (store, epoch) = world.owner(id).await;
        append(&store, id, epoch, 1, 20).await;
        let (store, other) = (Arc::new(store), world.node(0));
        let passing = store.clone();
        let count = before_request(other.store(), n, move || {
            let store = passing.clone();
            async move { assert_eq!(whole_pass(store.store()).await.moved_buckets, 2) }
        });
        assert_eq!(read(&other, id).await, entries(1, 20), "{n}");
        other.put(vec![erase(id, 3)], Durability::Synced).await.unwrap();
        let expected = without(entries(1, 20), &[3]);
        assert_eq!(read(&other, id).await, expected, "{n}");
        let lived = count.load(Ordering::Relaxed) <= n;
        store.store().tier(&plan()).await.unwrap();
        whole_pass(store.store()).await;
        assert_eq!((read(&*store, id).await, world.in_timeline(id).await), (expected, 5), "{n}");
        assert!(!world.holds(3), "{n}");
        if lived {
            assert!(n > 15, "reads and an erasure have more requests than {n}");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_between_any_two_requests_of_a_pass_is_not_lost() {
    let Some(world) = World::new().await else { return };
    for n in 0.. {
        let id = listed_together(2, n);
        let (store, epoch) = world.owner(id).await;
        append(&store, id, epoch, 1, 10).await;
        let other = Arc::new(world.node(0));
        let count = before_request(store.store(), n, move || {
            let other = other.clone();
            async move { other.put(vec![erase(id, 3)], Durability::Synced).await.unwrap() }
        });
        let report = store.store().tier(&plan()).await.unwrap();
        assert_eq!((report.failed, report.moved_buckets), (None, 1), "{n}");
        if count.load(Ordering::Relaxed) <= n {
            assert!(n > 10, "a pass has more requests than {n}");
            return;
        }
        let expected = without(entries(1, 10), &[3]);
        assert_eq!(read(&store, id).await, expected, "{n}");
        whole_pass(store.store()).await;
        assert_eq!((read(&store, id).await, world.in_timeline(id).await), (expected, 3), "{n}");
        let late = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
        store.store().tier(&late).await.unwrap();
        assert!(!world.holds(3), "{n}");
    }
}

/// The former owner is paused before any of its requests, another takes over, erases and moves, and the former goes on.
#[tokio::test(flavor = "multi_thread")]
async fn another_owners_pass_between_any_two_requests_of_a_pass_stands() {
    let Some(world) = World::new().await else { return };
    let world = Arc::new(world);
    for n in 0.. {
        let id = listed_together(3, n);
        let (store, epoch) = world.owner(id).await;
        append(&store, id, epoch, 1, 18).await;
        whole_pass(store.store()).await;
        append(&store, id, epoch, 19, 26).await;
        store.put(vec![erase(id, 2)], Durability::Synced).await.unwrap();
        // Its pass has one run to write anew, and one bucket to move.
        let (heir, taking) = (Arc::new(tokio::sync::OnceCell::new()), world.clone());
        let heirs = heir.clone();
        let count = before_request(store.store(), n, move || {
            let (world, heir) = (taking.clone(), heirs.clone());
            async move {
                let (next, _) = world.owner(id).await;
                next.put(vec![erase(id, 3), erase(id, 17)], Durability::Synced).await.unwrap();
                next.store().tier(&plan()).await.unwrap();
                assert!(heir.set(next).is_ok());
            }
        });
        let _may_find_what_is_no_longer_there = store.store().tier(&plan()).await.unwrap();
        if count.load(Ordering::Relaxed) <= n {
            assert!(n > 15, "a pass has more requests than {n}");
            break;
        }
        let heir = heir.get().unwrap();
        let expected = without(entries(1, 26), &[2, 3, 17]);
        assert_eq!((read(heir, id).await, read(&store, id).await), (expected.clone(), expected.clone()), "{n}");
        whole_pass(heir.store()).await;
        let late = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
        heir.store().tier(&late).await.unwrap();
        assert_eq!((read(heir, id).await, world.in_timeline(id).await), (expected, 3), "{n}");
        assert!(!world.holds(2) && !world.holds(3) && !world.holds(17), "{n}");
    }
    let found = inspect::inspect(&world.process(), true).await.unwrap();
    assert!(found.damaged.is_empty(), "{found:?}");
}

/// The process dies in its `n`th request, which is carried out or not.
fn dies_in(store: &ScyllaStore, n: u64, fate: Fate) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    store.set_fates(Arc::new(move |_| match counted.fetch_add(1, Ordering::Relaxed) {
        at if at < n => Fate::Normal,
        at if at == n => fate,
        _ => Fate::NotSent,
    }));
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_in_any_request_of_a_pass_or_an_erasure_leaves_everything_readable() {
    let Some(world) = World::new().await else { return };
    for fate in [Fate::NotSent, Fate::AnswerLost] {
        for n in 0.. {
            let id = listed_together(fate as u8, n);
            let (store, epoch) = world.owner(id).await;
            append(&store, id, epoch, 1, 10).await;
            let count = dies_in(store.store(), n, fate);
            // First a pass that moves, then an erasure, then one that writes anew: a process dies in one of them.
            let _may_fail = store.store().tier(&plan()).await;
            let erased = store.put(vec![erase(id, 2)], Durability::Synced).await.is_ok();
            let _may_fail = store.store().tier(&plan()).await;
            let lived = count.load(Ordering::Relaxed) <= n;
            let (next, epoch) = world.owner(id).await;
            let found = read(&next, id).await;
            let whole = [entries(1, 10), without(entries(1, 10), &[2])];
            assert!(found == whole[1] || !erased && found == whole[0], "{n}, {fate:?}: {found:?}");
            // The region comes back to an erasure that it does not know to be done.
            next.put(vec![erase(id, 2)], Durability::Synced).await.unwrap();
            assert_eq!(read(&next, id).await, whole[1]);
            append(&next, id, epoch, 11, 12).await;
            whole_pass(next.store()).await;
            assert_eq!((read(&next, id).await.len(), world.in_timeline(id).await), (12, 5));
            let late = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
            next.store().tier(&late).await.unwrap();
            assert!(!world.holds(2), "{n}, {fate:?}");
            if lived {
                assert!(n > 20, "a pass has more requests than {n}");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_of_what_is_archived_counts_at_once_and_takes_the_body_out_of_the_archive() {
    let Some(world) = World::new().await else { return };
    for steps in 0.. {
        let id = ConvId([u8::try_from(steps).unwrap() + 1; 16]);
        let (store, epoch) = world.owner(id).await;
        append(&store, id, epoch, 1, 20).await;
        whole_pass(store.store()).await;
        assert!(world.holds(5));
        world.objects.set_dead(true);
        store.put(vec![erase(id, 5)], Durability::Synced).await.unwrap();
        world.objects.set_dead(false);
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let expected = without(entries(1, 20), &[5]);
        assert_eq!(read(&store, id).await, expected, "it counts before the object is written anew");
        let died = store.store().tier(&TierPlan { steps: Some(steps), ..plan() }).await.is_err();
        let (next, _) = world.owner(id).await;
        assert_eq!(read(&next, id).await, expected, "after {steps} steps");
        whole_pass(next.store()).await;
        let late = TierPlan { now_ms: 102 * DAY_MS, sweep: true, ..plan() };
        next.store().tier(&late).await.unwrap();
        assert!(!world.holds(5), "the body is in no object any more");
        assert_eq!(world.objects.names().len() as u64, 2 * (steps + 1));
        assert_eq!(read(&next, id).await, expected);
        next.put(vec![erase(id, 5)], Durability::Synced).await.unwrap();
        assert_eq!(whole_pass(next.store()).await.rewritten, 0, "once more changes nothing");
        if !died {
            assert!(steps >= 3, "{steps}");
            return;
        }
    }
}

/// A pass reads the body, and then it is erased: before the mark, or before the entries are removed.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_beside_a_pass_is_not_lost_at_any_step_of_it() {
    let Some(world) = World::new().await else { return };
    // It writes the object, reads it back, and looks for it once more when the mark is there.
    for steps in 0..3 {
        let id = ConvId([u8::try_from(steps).unwrap() + 1; 16]);
        let (store, epoch) = world.owner(id).await;
        append(&store, id, epoch, 1, 10).await;
        let objects = Arc::new(Halting::new(&world.objects, steps));
        let options = ArchiveOptions { timeout: Duration::from_secs(60), ..ArchiveOptions::default() };
        let archive = Archive::new(objects.clone(), "test", 1, options).of_all_regions();
        let (slow, _) = world.owner_with(id, Arc::new(archive)).await;
        let slow = Arc::new(slow);
        let pass = {
            let slow = slow.clone();
            tokio::spawn(async move { slow.store().tier(&plan()).await.unwrap() })
        };
        objects.halted.acquire().await.unwrap().forget();
        slow.put(vec![erase(id, 4)], Durability::Synced).await.unwrap();
        assert!(read(&*slow, id).await[3].erased, "{steps}");
        objects.go_on.add_permits(1_000);
        let report = pass.await.unwrap();
        assert_eq!(report.failed, None, "{steps}");
        assert_eq!(read(&*slow, id).await, without(entries(1, 10), &[4]), "{steps}");
        whole_pass(slow.store()).await;
        assert!(!world.holds(4), "{steps}");
        assert_eq!(read(&*slow, id).await, without(entries(1, 10), &[4]), "{steps}");
    }
}

/// An object store whose `n`th request waits until it may go on.
#[derive(Debug)]
struct Halting {
    objects: MemoryObjects,
    left: AtomicU64,
    halted: tokio::sync::Semaphore,
    go_on: tokio::sync::Semaphore,
}

impl Halting {
    fn new(objects: &MemoryObjects, n: u64) -> Self {
        let closed = || tokio::sync::Semaphore::new(0);
        Self { objects: objects.clone(), left: AtomicU64::new(n + 1), halted: closed(), go_on: closed() }
    }

    async fn wait(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.halted.add_permits(1);
            self.go_on.acquire().await.unwrap().forget();
        }
    }
}

mod halting {
    use tern_core::store::BoxFut;
    use tern_replication::store::archive::{Listed, ObjectError, Objects};

    use super::{Bytes, Halting};

    impl Objects for Halting {
        fn put<'a>(&'a self, name: &'a str, object: Bytes) -> BoxFut<'a, Result<(), ObjectError>> {
            Box::pin(async move {
                self.wait().await;
                self.objects.put(name, object).await
            })
        }

        fn get<'a>(&'a self, name: &'a str, limit: u64) -> BoxFut<'a, Result<Bytes, ObjectError>> {
            Box::pin(async move {
                self.wait().await;
                self.objects.get(name, limit).await
            })
        }

        fn length<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<u64, ObjectError>> {
            Box::pin(async move {
                self.wait().await;
                self.objects.length(name).await
            })
        }

        fn delete<'a>(&'a self, name: &'a str) -> BoxFut<'a, Result<(), ObjectError>> {
            self.objects.delete(name)
        }

        fn list<'a>(
            &'a self,
            folder: &'a str,
            after: Option<&'a str>,
            limit: usize,
        ) -> BoxFut<'a, Result<Vec<Listed>, ObjectError>> {
            self.objects.list(folder, after, limit)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_young_or_still_needed_or_in_the_tail_stays() {
    let Some(world) = World::new().await else { return };
    let id = conv(1);
    let (store, epoch) = world.filled(id, 20).await;
    let at = |second: u64| TierPlan { now_ms: second * 1_000 + 3_600_000, ..plan() };
    assert_eq!(store.tier(&TierPlan { dry_run: true, ..at(6) }).await.unwrap().due_buckets, 0);
    let dry = store.tier(&TierPlan { dry_run: true, ..at(7) }).await.unwrap();
    assert_eq!((dry.due_buckets, dry.due_entries, dry.moved_buckets), (1, 7, 0));

    let careful = TierPlan { eager: false, ..plan() };
    let report = store.tier(&careful).await.unwrap();
    assert_eq!((report.held_back, report.moved_buckets), (1, 0), "no checkpoint covers it");
    let mut state = LogState::new(id);
    for entry in entries(1, 15) {
        state.apply(entry);
    }
    let checkpoint = Put::Checkpoint { conversation: id, value: state.checkpoint() };
    let todo = |done: u64| {
        Put::Todo(Todo { target: Target::Peer(2), conversation: id, prefix: [(HERE, done)].into(), user: None })
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
    // A batch that begins in one bucket and ends in the next is still in the tail.
    let other = conv(2);
    assert_eq!(store.append(vec![batch(other, epoch, 1, 10)]).await, [Appended::Decided]);
    assert_eq!(store.tier(&plan()).await.unwrap().held_back, 1);
    append(&store, other, epoch, 11, 11).await;
    whole_pass(&store).await;
    assert_eq!(read(&store, other).await, entries(1, 11));
    assert_eq!(world.in_timeline(other).await, 4);
    // Logs of other regions are for those.
    let foreign = TierPlan { bucket_bits: 1, ..plan() };
    let us = ScyllaStore::new(world.place.cluster.clone(), Arc::new(WallClock::default()), &entropy())
        .with_archive(archive(&world.objects, 2));
    assert_eq!(us.tier(&TierPlan { dry_run: true, ..foreign }).await.unwrap().due_buckets, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_damaged_object_or_a_dead_store_is_told_and_everything_else_is_served() {
    let Some(world) = World::new().await else { return };
    let id = conv(1);
    let (store, epoch) = world.filled(id, 30).await;
    whole_pass(&store).await;
    let name = world.objects.names()[1].clone();
    let whole = world.objects.bytes(&name);
    let mut flipped = whole.clone().unwrap().to_vec();
    flipped[100] ^= 1;
    for spoil in [None, Some(Bytes::from_static(b"rubbish")), Some(Bytes::from(flipped))] {
        world.objects.spoil(&name, spoil.clone());
        let error = store.range(range(id, 8, 9, false)).await.unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { what, .. } if what.contains(&name)), "{error}");
        assert_eq!(store.range(range(id, 1, 7, false)).await.unwrap(), entries(1, 7));
        assert_eq!(store.range(range(id, 16, 30, false)).await.unwrap(), entries(16, 30));
        for reads in [true, false] {
            let found = inspect::inspect(&world.process(), reads).await.unwrap();
            let is_seen = reads || spoil.is_none_or_short();
            assert_eq!(found.damaged.len(), usize::from(is_seen), "{found:?}");
        }
    }
    world.objects.spoil(&name, whole);
    append(&store, id, epoch, 31, 33).await;
    world.objects.set_dead(true);
    let error = store.range(range(id, 1, 3, false)).await.unwrap_err();
    assert!(matches!(error, StoreError::Archive(_)), "{error}");
    let newest = store.range(range(id, 1, 20, true)).await;
    assert!(newest.is_err() && store.range(range(id, 24, 33, false)).await.unwrap() == entries(24, 33));
    let told = store.range(range(id, 1, 33, true)).await.unwrap();
    assert_eq!(told.last().unwrap().place.seq, 24, "what is here is told, and the rest asked for again");
    let report = store.tier(&plan()).await.unwrap();
    assert!(report.failed.is_some() && report.moved_buckets == 0, "{report:?}");
    world.objects.set_dead(false);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    whole_pass(&store).await;
    assert_eq!(read(&store, id).await, entries(1, 33));
    // A process without the archive.
    let poor = world.place.store();
    let error = poor.range(range(id, 1, 3, false)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Archive(what) if what.contains("store.tier.url")), "{error}");
    assert!(poor.needs_archive().await.unwrap());
}

trait Short {
    fn is_none_or_short(&self) -> bool;
}

impl Short for Option<Bytes> {
    /// Whether a look at the length alone shows it.
    fn is_none_or_short(&self) -> bool {
        self.as_ref().is_none_or(|object| object.len() < 100)
    }
}
