//! A region's database that several core nodes share.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod cluster;

use std::sync::Arc;

use bytes::Bytes;
use cluster::{Place, WallClock, entropy};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Identity, InstallId, Origin, Place as LogPlace, Rev, UserId};
use tern_core::leases::{LeaseError, Leases, NodeLease, SharedStore};
use tern_core::slots::{Share, Slot};
use tern_core::store::{Append, Appended, Durability, Put, Range, RowRecord, Store, Target, Todo};
use tern_replication::store::{EPOCH_KEY, epoch_value};
use tern_scylla::SharedScylla;

const OWN: Origin = Origin { region: 1, era: 9 };

/// The store of one core node; `ahead_ms` is what its clock is off.
fn node(place: &Place, ahead_ms: i64) -> Arc<SharedScylla> {
    Arc::new(SharedScylla::new(place.cluster.clone(), Arc::new(WallClock { ahead_ms }), &entropy(), b"salt"))
}

fn lease(name: &str) -> NodeLease {
    NodeLease {
        name: name.to_owned(),
        generation: 0,
        beat: 0,
        addr: "127.0.0.1:7412".parse().unwrap(),
        weight: 1,
        drained: false,
        ended: false,
    }
}

fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

fn batch(id: ConvId, epoch: u64, from: u64, to: u64) -> Append {
    let entry = |seq: u64| {
        Arc::new(Entry::text(
            LogPlace { hlc: seq << 16, origin: OWN, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
            format!("{epoch} {seq}"),
        ))
    };
    let prefix: Heads = [(OWN, from - 1)].into();
    let todo = vec![Todo { target: Target::Fanout, conversation: id, prefix, user: None }];
    Append { conversation: id, origin: OWN, epoch, entries: (from..=to).map(entry).collect(), todo }
}

async fn bodies(store: &SharedScylla, id: ConvId) -> Vec<String> {
    let range = Range {
        conversation: id,
        origin: OWN,
        from: 1,
        to: 100,
        max_entries: 100,
        max_bytes: usize::MAX,
        backwards: false,
    };
    let entries = store.range(range).await.unwrap();
    entries.iter().map(|e| String::from_utf8_lossy(&e.body).into_owned()).collect()
}

async fn todo(store: &SharedScylla, id: ConvId, epoch: u64) -> Vec<Todo> {
    store.todo_in(vec![(Slot::of(id).share(), epoch)]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_or_is_ended_can_not_renew_and_its_beat_shows() {
    let Some(place) = Place::new().await else { return };
    let (a, b) = (node(&place, 0), node(&place, 0));
    let mut first = lease("a");
    first.generation = a.claim(first.clone()).await.unwrap();
    assert_eq!(first.generation, 1);
    first.beat = 1;
    a.renew(first.clone()).await.unwrap();
    let seen = b.nodes().await.unwrap();
    assert_eq!(seen, std::slice::from_ref(&first));
    let of = |names: &[&str]| b.nodes_of(names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(of(&["nobody", "a"]).await.unwrap(), seen);
    assert_eq!(of(&[]).await.unwrap(), []);
    // It renews between the look and the end: it lives.
    first.beat = 2;
    a.renew(first.clone()).await.unwrap();
    assert_eq!(b.fence(seen[0].clone()).await, Err(LeaseError::Lost));
    b.fence(first.clone()).await.unwrap();
    assert_eq!(a.renew(first.clone()).await, Err(LeaseError::Lost));
    assert!(b.nodes().await.unwrap()[0].ended);
    assert!(of(&["a"]).await.unwrap()[0].ended);
    assert_eq!(a.claim(first.clone()).await.unwrap(), 3, "above the one that was ended");
    assert!(!b.nodes().await.unwrap()[0].ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_take_a_share_one_gets_it_and_its_epoch_never_repeats() {
    let Some(place) = Place::new().await else { return };
    let share = Share::new(77).unwrap();
    let nodes: Vec<_> = (0..6).map(|_| node(&place, 0)).collect();
    for round in 0..4u64 {
        let tries = nodes.iter().enumerate().map(|(n, node)| node.give(share, round, format!("n{n}")));
        let got = futures_util::future::join_all(tries).await;
        let got: Vec<u64> = got.into_iter().filter_map(Result::ok).collect();
        assert_eq!(got, [round + 1]);
    }
    let known = nodes[0].shares().await.unwrap();
    assert_eq!((known.len(), known[0].share, known[0].epoch), (1, share, 4));
    let settled = nodes.iter().enumerate().map(|(n, node)| node.settle("era".into(), Bytes::from(n.to_string())));
    let settled: Vec<Bytes> =
        futures_util::future::join_all(settled).await.into_iter().collect::<Result<_, _>>().unwrap();
    assert!(settled.iter().all(|value| *value == settled[0]), "{settled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_appends_go_side_by_side() {
    let Some(place) = Place::new().await else { return };
    let store = node(&place, 0);
    assert!(store.appends_at_once() > 1);
    let ids: Vec<ConvId> = (1..=24).map(conv).collect();
    for id in &ids {
        assert!(todo(&store, *id, 1).await.is_empty());
        assert!(store.fence_log(*id, 1).await.unwrap());
    }
    for round in 0..3 {
        let groups = ids
            .chunks(3)
            .map(|group| store.append(group.iter().map(|id| batch(*id, 1, 1 + 2 * round, 2 + 2 * round)).collect()));
        let answers = futures_util::future::join_all(groups).await;
        assert!(answers.iter().flatten().all(|answer| *answer == Appended::Decided), "{answers:?}");
    }
    for id in ids {
        assert_eq!(bodies(&store, id).await.len(), 6);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_former_owner_still_writes_changes_nothing_whatever_its_clock_says() {
    let Some(place) = Place::new().await else { return };
    // The former owner's clock is an hour ahead, the new one's an hour behind.
    let (old, new) = (node(&place, 3_600_000), node(&place, -3_600_000));
    let id = conv(5);
    let share = Slot::of(id).share();
    let first = old.give(share, 0, "old".into()).await.unwrap();
    assert!(todo(&old, id, first).await.is_empty());
    assert!(old.fence_log(id, first).await.unwrap());
    assert_eq!(old.append(vec![batch(id, first, 1, 3)]).await, [Appended::Decided]);
    let second = new.give(share, first, "new".into()).await.unwrap();
    assert_eq!(todo(&new, id, second).await.len(), 1);
    assert!(new.fence_log(id, second).await.unwrap());
    assert_eq!(new.conversation(id).await.unwrap().heads, [(OWN, 3)].into());
    // Both go on.
    assert_eq!(old.append(vec![batch(id, first, 4, 5)]).await, [Appended::Fenced]);
    assert!(!old.fence_log(id, first).await.unwrap(), "and it learns so when it reads");
    assert_eq!(new.append(vec![batch(id, second, 4, 4)]).await, [Appended::Decided]);
    assert_eq!(bodies(&new, id).await, ["1 1", "1 2", "1 3", "2 4"]);
    // The new owner is done; what the former one writes of it does not come back.
    let removed = Todo { target: Target::Fanout, conversation: id, prefix: Heads::new(), user: None };
    new.put(vec![Put::Todo(removed)], Durability::Synced).await.unwrap();
    let late = Todo { target: Target::Fanout, conversation: id, prefix: [(OWN, 1)].into(), user: None };
    old.put(vec![Put::Todo(late)], Durability::Synced).await.unwrap();
    assert!(todo(&new, id, second).await.is_empty());
    let checkpoint = |value: &'static [u8]| Put::Checkpoint { conversation: id, value: Bytes::from_static(value) };
    new.put(vec![checkpoint(b"new")], Durability::Synced).await.unwrap();
    old.put(vec![checkpoint(b"old")], Durability::Synced).await.unwrap();
    assert_eq!(new.conversation(id).await.unwrap().checkpoint, Some(Bytes::from_static(b"new")));
    // Rows go by their revisions, which begin with the epoch.
    let user = UserId::new("bob").unwrap();
    let row = |epoch: u64, seq: u64| Put::Row {
        user: user.clone(),
        conversation: id,
        row: RowRecord { rev: Rev(Rev::start_of(epoch).0 + 1), heads: [(OWN, seq)].into(), ..RowRecord::default() },
    };
    new.put(vec![row(second, 4)], Durability::Synced).await.unwrap();
    old.put(vec![row(first, 3)], Durability::Synced).await.unwrap();
    assert_eq!(new.rows(user).await.unwrap()[0].1.heads, [(OWN, 4)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyspace_is_shared_or_it_is_not() {
    let Some(place) = Place::new().await else { return };
    node(&place, 0).prepare().await.unwrap();
    node(&place, 0).prepare().await.unwrap();
    let refused = place.store().check_alone().await.unwrap_err().to_string();
    assert!(refused.contains("several processes share") && refused.contains("region.shared"), "{refused}");
    drop(place);
    let Some(place) = Place::new().await else { return };
    let alone = place.store();
    alone.check_alone().await.unwrap();
    let epoch = Put::Meta { key: EPOCH_KEY.to_owned(), value: epoch_value(1) };
    alone.put(vec![epoch], Durability::Synced).await.unwrap();
    let refused = node(&place, 0).prepare().await.unwrap_err().to_string();
    assert!(refused.contains("one process serves alone") && refused.contains("store.keyspace"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_between_deciding_and_inserting_leaves_all_that_was_decided() {
    let Some(place) = Place::new().await else { return };
    let (old, new) = (node(&place, 0), node(&place, 0));
    let id = conv(6);
    let share = Slot::of(id).share();
    let first = old.give(share, 0, "old".into()).await.unwrap();
    old.fence_log(id, first).await.unwrap();
    assert_eq!(old.append(vec![batch(id, first, 1, 2)]).await, [Appended::Decided]);
    // From now on nothing plain reaches the database: the batch is decided, and not in the timeline.
    assert!(old.store().set_fates(Arc::new(|step| match step {
        tern_scylla::Step::Write => tern_scylla::Fate::NotSent,
        _ => tern_scylla::Fate::Normal,
    })));
    let without_todo = Append { todo: Vec::new(), ..batch(id, first, 3, 4) };
    assert_eq!(old.append(vec![without_todo]).await, [Appended::Decided]);
    let second = new.give(share, first, "new".into()).await.unwrap();
    assert!(new.fence_log(id, second).await.unwrap());
    assert_eq!(bodies(&new, id).await, ["1 1", "1 2", "1 3", "1 4"]);
    assert_eq!(new.append(vec![batch(id, second, 5, 5)]).await, [Appended::Decided]);
    assert_eq!(bodies(&new, id).await.len(), 5);
}
