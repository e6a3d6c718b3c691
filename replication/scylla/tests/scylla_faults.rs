//! Deaths between any two steps, answers that are lost, owners that are replaced, bytes that change.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "tasks that end with their test")]

mod cluster;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster::{Place, WallClock, entropy};
use tern_core::clock::Entropy;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Identity, InstallId, Origin, Place as Seat, Rev, UserId};
use tern_core::limits::BODY_BYTES;
use tern_core::store::{Append, Appended, Durability, Put, Range, RowRecord, Store, StoreError, Target, Todo};
use tern_replication::store::{EPOCH_KEY, epoch_value};
use tern_scylla::limits::STAMP_WINDOW_US;
use tern_scylla::{Fate, ScyllaError, ScyllaStore, Step, inspect};

const HERE: Origin = Origin { region: 1, era: 0xabc };

fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

fn entry_of(origin: Origin, seq: u64, body: &[u8]) -> Arc<Entry> {
    Arc::new(Entry {
        peer: Some(UserId::new("bob").unwrap()),
        ..Entry::text(
            Seat { hlc: seq << 16, origin, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
            Bytes::copy_from_slice(body),
        )
    })
}

fn entry(seq: u64, text: &str) -> Arc<Entry> {
    entry_of(HERE, seq, text.as_bytes())
}

fn todo(conversation: ConvId, seq: u64) -> Todo {
    Todo { target: Target::Fanout, conversation, prefix: [(HERE, seq)].into(), user: None }
}

fn append(conversation: ConvId, epoch: u64, entries: Vec<Arc<Entry>>) -> Append {
    Append { conversation, origin: HERE, epoch, entries, todo: Vec::new() }
}

async fn one(store: &ScyllaStore, append: Append) -> Appended {
    store.append(vec![append]).await.remove(0)
}

async fn claim(store: &ScyllaStore, epoch: u64) -> Result<(), StoreError> {
    let put = Put::Meta { key: EPOCH_KEY.to_owned(), value: epoch_value(epoch) };
    store.put(vec![put], Durability::Synced).await
}

async fn read(store: &ScyllaStore, conversation: ConvId) -> Result<Vec<Arc<Entry>>, StoreError> {
    let (max_entries, max_bytes) = (usize::MAX, usize::MAX);
    let range = Range { conversation, origin: HERE, from: 1, to: u64::MAX, max_entries, max_bytes, backwards: false };
    store.range(range).await
}

async fn head(store: &ScyllaStore, conversation: ConvId) -> u64 {
    store.conversation(conversation).await.unwrap().heads.get(&HERE).copied().unwrap_or(0)
}

/// A process that dies.
struct Life {
    steps: u64,
    count: Arc<AtomicU64>,
}

impl Life {
    /// It dies in its `steps`th request: that has the fate, and later ones are not sent.
    fn of(store: &ScyllaStore, steps: u64, fate: Fate) -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        store.set_fates(Arc::new(move |_| match counted.fetch_add(1, Ordering::Relaxed) {
            n if n < steps => Fate::Normal,
            n if n == steps => fate,
            _ => Fate::NotSent,
        }));
        Self { steps, count }
    }

    fn is_over(&self) -> bool {
        self.count.load(Ordering::Relaxed) > self.steps
    }

    /// The answer, unless it dies before. What it has sent then has been carried out, but for insertions that may be
    /// repeated; what it would look for it does not find.
    async fn answer(&self, append: impl Future<Output = Appended>) -> Option<Appended> {
        let death = async {
            while !self.is_over() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        tokio::select! {
            biased;
            answer = append => Some(answer),
            () = death => None,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_crash_point_of_an_append_leaves_it_whole_or_not_at_all() {
    let Some(place) = Place::new().await else { return };
    let (mut epoch, mut outcomes) = (1, [0, 0, 0]);
    for fate in [Fate::NotSent, Fate::AnswerLost] {
        for steps in 0.. {
            let id = ConvId([fate as u8 + 1, steps, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
            let store = place.store();
            let first = Append { todo: vec![todo(id, 0)], ..append(id, epoch, vec![entry(1, "one"), entry(2, "two")]) };
            let life = Life::of(&store, u64::from(steps), fate);
            let answer = life.answer(one(&store, first.clone())).await;
            epoch += 1;
            let next = place.store();
            let found = {
                // Who comes next takes the conversation over, as a start does.
                assert_eq!(
                    one(&next, append(conv(250), epoch, vec![entry(epoch - 1, "start")])).await,
                    Appended::Decided
                );
                assert!([0, 2].contains(&head(&next, id).await));
                read(&next, id).await.unwrap()
            };
            assert!(found.is_empty() || found == first.entries, "{found:?}");
            if answer == Some(Appended::Decided) {
                assert_eq!(found, first.entries);
            }
            if !found.is_empty() {
                let noted = next.todo().await.unwrap();
                assert!(noted.iter().any(|todo| todo.conversation == id), "an entry without its todo, {steps}");
            }
            outcomes[usize::from(answer == Some(Appended::Decided)) + usize::from(!found.is_empty())] += 1;
            let at = found.len() as u64;
            let more = append(id, epoch, vec![entry(at + 1, "more")]);
            assert_eq!(one(&next, more).await, Appended::Decided, "and goes on");
            assert_eq!(read(&place.store(), id).await.unwrap().len() as u64, at + 1);
            if !life.is_over() {
                break;
            }
        }
    }
    assert!(outcomes.iter().all(|times| *times > 0), "not written; written and not answered; answered: {outcomes:?}");
    let found = inspect::inspect(&place.store(), true).await.unwrap();
    assert!(found.damaged.is_empty() && found.entries > 20, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_longer_than_the_tail_holds_is_decided_in_parts_each_of_which_stays() {
    let Some(place) = Place::new().await else { return };
    let long: Vec<Arc<Entry>> = (1..=10).map(|seq| entry_of(HERE, seq, &vec![b'x'; BODY_BYTES])).collect();
    let store = place.store();
    assert_eq!(one(&store, append(conv(1), 1, long.clone())).await, Appended::Decided);
    assert_eq!(read(&store, conv(1)).await.unwrap(), long);
    let mut seen = Vec::new();
    for steps in (4..40).step_by(3) {
        let id = ConvId([9, steps, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        let store = place.store();
        let life = Life::of(&store, u64::from(steps), Fate::NotSent);
        let decided = life.answer(one(&store, append(id, 1, long.clone()))).await == Some(Appended::Decided);
        let next = place.store();
        let held = head(&next, id).await;
        assert!(!decided || held == 10);
        assert_eq!(read(&next, id).await.unwrap(), long[..usize::try_from(held).unwrap()], "a prefix");
        let rest = append(id, 1, long[usize::try_from(held).unwrap()..].to_vec());
        if held < 10 {
            assert_eq!(one(&next, rest).await, Appended::Decided);
        }
        assert_eq!(read(&place.store(), id).await.unwrap(), long);
        seen.push(held);
    }
    seen.dedup();
    assert!(seen.iter().any(|held| (1..10).contains(held)), "some died between two parts: {seen:?}");
}

/// Histories in which requests are lost, or their answers are: what was answered `Decided` is there, once, and what
/// was not is found by reading the head.
#[tokio::test(flavor = "multi_thread")]
async fn histories_of_time_outs_lose_and_double_nothing() {
    let Some(place) = Place::new().await else { return };
    let mut unclear = 0;
    for seed in 0..4u64 {
        let rng = Arc::new(Entropy::seeded(seed));
        let store = Arc::new(ScyllaStore::new(place.cluster.clone(), Arc::new(WallClock::default()), &entropy()));
        let dice = rng.clone();
        store.set_fates(Arc::new(move |step| match (step, dice.below(100)) {
            (Step::Conditional, n) if n < 15 => Fate::NotSent,
            (Step::Conditional, n) if n < 45 => Fate::AnswerLost,
            (Step::Write, n) if n < 10 => Fate::AnswerLost,
            (Step::Write, n) if n < 20 => Fate::NotSent,
            (Step::Read, n) if n < 10 => Fate::NotSent,
            _ => Fate::Normal,
        }));
        let mut held: BTreeMap<ConvId, Vec<Arc<Entry>>> = BTreeMap::new();
        for round in 0..40u64 {
            let id = ConvId([u8::try_from(10 * seed + rng.below(3)).unwrap(); 16]);
            let log = held.entry(id).or_default();
            let from = log.len() as u64 + 1;
            let batch: Vec<_> =
                (from..=from + rng.below(3)).map(|seq| entry(seq, &format!("{seed} {round} {seq}"))).collect();
            match one(&store, Append { todo: vec![todo(id, 0)], ..append(id, 1, batch.clone()) }).await {
                Appended::Decided => log.extend(batch),
                Appended::Unknown(_) => {
                    let image = loop {
                        if let Ok(image) = store.conversation(id).await {
                            break image;
                        }
                    };
                    let head = image.heads.get(&HERE).copied().unwrap_or(0);
                    assert!(head == from - 1 || head == from - 1 + batch.len() as u64, "whole or not at all");
                    if head >= from {
                        log.extend(batch);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        for (id, log) in held {
            assert_eq!(read(&place.store(), id).await.unwrap(), log);
        }
        unclear += store.metrics().unclear();
    }
    // Of 160 appends 72 on average; below 40 would be once in millions of runs.
    assert!(unclear > 40, "{unclear}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_paused_can_not_append_once_another_has_served() {
    let Some(place) = Place::new().await else { return };
    // Its clock is an hour behind, so that it believes to have the region still.
    let slow = Arc::new(WallClock { ahead_ms: -3_600_000 });
    let paused = ScyllaStore::new(place.cluster.clone(), slow, &entropy());
    claim(&paused, 1).await.unwrap();
    assert_eq!(one(&paused, append(conv(1), 1, vec![entry(1, "a")])).await, Appended::Decided);
    paused.put(vec![Put::Todo(todo(conv(1), 0))], Durability::Lazy).await.unwrap();
    let next = place.store();
    claim(&next, 2).await.unwrap();
    assert_eq!(head(&next, conv(1)).await, 1);
    assert_eq!(next.conversation(conv(2)).await.unwrap().heads, Heads::new(), "nobody has written in it");
    next.put(vec![Put::Todo(todo(conv(1), 7))], Durability::Lazy).await.unwrap();

    assert_eq!(one(&paused, append(conv(1), 1, vec![entry(2, "b")])).await, Appended::Fenced);
    assert_eq!(one(&paused, append(conv(2), 1, vec![entry(1, "b")])).await, Appended::Fenced, "nor begin a log");
    let removal = Put::Todo(Todo { prefix: Heads::new(), ..todo(conv(1), 0) });
    let _it_may_be_told_or_not = paused.put(vec![removal], Durability::Lazy).await;
    assert_eq!(next.todo().await.unwrap(), [todo(conv(1), 7)], "what it removes was written after it");
    let row = |rev| Put::Row {
        user: UserId::new("bob").unwrap(),
        conversation: conv(1),
        row: RowRecord { rev: Rev(rev), ..RowRecord::default() },
    };
    next.put(vec![row(2 << 30)], Durability::Lazy).await.unwrap();
    let _it_may_be_told_or_not = paused.put(vec![row((1 << 30) + 9)], Durability::Lazy).await;
    assert_eq!(next.rows(UserId::new("bob").unwrap()).await.unwrap()[0].1.rev, Rev(2 << 30));
    assert_eq!(one(&next, append(conv(1), 2, vec![entry(2, "c")])).await, Appended::Decided);
    assert_eq!(one(&next, append(conv(2), 2, vec![entry(1, "c")])).await, Appended::Decided);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_process_is_told_in_whatever_it_does_next() {
    let Some(place) = Place::new().await else { return };
    let first = place.store();
    claim(&first, 1).await.unwrap();
    assert_eq!(one(&first, append(conv(1), 1, vec![entry(1, "a")])).await, Appended::Decided);
    let second = place.store();
    claim(&second, 2).await.unwrap();
    // In a conversation that the second has not met: it waited until the first's reserve was used up.
    assert_eq!(one(&first, append(conv(3), 1, vec![entry(1, "a")])).await, Appended::Fenced);
    let meta = Put::Meta { key: "clean".to_owned(), value: Bytes::from_static(b"1") };
    assert!(first.put(vec![meta.clone()], Durability::Synced).await.is_err());
    assert_eq!(second.meta("clean").await.unwrap(), None);
    second.put(vec![meta], Durability::Synced).await.unwrap();
    second.close().await.unwrap();
    place.store().wait_until_free().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_runs_is_seen_however_quiet_it_is_and_is_told_when_it_was_replaced() {
    let Some(place) = Place::new().await else { return };
    let first = place.store();
    claim(&first, 1).await.unwrap();
    // It writes nothing for longer than what a claim reserves.
    let look = async {
        tokio::time::sleep(Duration::from_micros(STAMP_WINDOW_US.unsigned_abs()) * 2).await;
        place.store().wait_until_free().await
    };
    tokio::select! {
        () = first.hold() => panic!("nobody has taken it"),
        free = look => assert!(matches!(free, Err(ScyllaError::InUse(_))), "{free:?}"),
    }
    // From here on it is paused: it renews nothing, and another takes over.
    let second = place.store();
    second.wait_until_free().await.unwrap();
    claim(&second, 2).await.unwrap();
    first.hold().await;
    assert_eq!(one(&first, append(conv(1), 1, vec![entry(1, "a")])).await, Appended::Fenced);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_processes_that_start_at_once_one_gets_the_region() {
    let Some(place) = Place::new().await else { return };
    let stores: Vec<_> = (0..4).map(|_| place.store()).collect();
    let claims = stores.iter().map(|store| {
        let meta = |key: &str, value| Put::Meta { key: key.to_owned(), value };
        store.put(vec![meta("era", Bytes::from_static(b"e")), meta(EPOCH_KEY, epoch_value(1))], Durability::Synced)
    });
    let told = futures_util::future::join_all(claims).await;
    assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 1, "{told:?}");
    let wrong =
        told.iter().filter_map(|told| told.as_ref().err()).all(|error| error.to_string().contains("another process"));
    assert!(wrong, "{told:?}");
}

/// R1's history: the second batch must not be decided while the first is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_batch_is_refused_while_the_first_is_not_decided() {
    let Some(place) = Place::new().await else { return };
    let store = place.store();
    let life = Life::of(&store, 6, Fate::NotSent);
    let first = life.answer(one(&store, append(conv(1), 1, vec![entry(1, "first")])));
    assert_ne!(first.await, Some(Appended::Decided));
    let next = place.store();
    assert!(matches!(one(&next, append(conv(1), 1, vec![entry(2, "second")])).await, Appended::Unknown(_)));
    assert_eq!(head(&next, conv(1)).await, 0);
    assert_eq!(one(&next, append(conv(1), 1, vec![entry(1, "again")])).await, Appended::Decided);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_body_is_gone_from_tail_and_timeline_and_does_not_come_back() {
    let Some(place) = Place::new().await else { return };
    let secret = b"what nobody should read any more";
    let store = place.store();
    let batch = vec![entry(1, "a"), entry_of(HERE, 2, secret), entry(3, "c")];
    assert_eq!(one(&store, append(conv(1), 1, batch.clone())).await, Appended::Decided);
    let keyspaces = place.cluster.options();
    let tail = format!("SELECT pending FROM {}.tail", keyspaces.keyspace);
    let timeline = format!("SELECT entry FROM {}.timeline", keyspaces.timeline_keyspace);
    let holds = async |cql: &str| {
        let blobs = place.cluster.blobs(cql).await.unwrap();
        blobs.iter().any(|blob| blob.windows(secret.len()).any(|bytes| bytes == secret))
    };
    assert!(holds(&tail).await && holds(&timeline).await);
    store
        .put(
            vec![Put::Erase { conversation: conv(1), origin: HERE, seq: 2, by: entry_of(HERE, 2, b"").by.clone() }],
            Durability::Synced,
        )
        .await
        .unwrap();
    assert!(!holds(&tail).await && !holds(&timeline).await);
    // The next owner inserts the newest batch again, and so may another region with a whole copy.
    let next = place.store();
    assert_eq!(one(&next, append(conv(1), 2, vec![entry(4, "d")])).await, Appended::Decided);
    assert!(!holds(&timeline).await);
    let mut expected = batch;
    expected[1] = Arc::new(expected[1].to_erased());
    expected.push(entry(4, "d"));
    assert_eq!(read(&next, conv(1)).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_or_missing_entries_are_refused_and_never_served() {
    let Some(place) = Place::new().await else { return };
    let store = place.store();
    for n in 1..=4 {
        let batch = (1..=5).map(|seq| entry(seq, &format!("message {seq}"))).collect();
        assert_eq!(one(&store, append(conv(n), 1, batch)).await, Appended::Decided);
        assert_eq!(one(&store, append(conv(n), 1, vec![entry(6, "newest")])).await, Appended::Decided);
    }
    let table = format!("{}.timeline", place.cluster.options().timeline_keyspace);
    let key = |n: u8| {
        let id: String = conv(n).0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("conversation = 0x{id} AND region = 1 AND era = {} AND bucket = 0", HERE.era)
    };
    let value = |n: u8, seq: u64| format!("SELECT entry FROM {table} WHERE {} AND seq = {seq}", key(n));
    let set = async |n: u8, seq: u64, blob: &[u8]| {
        let blob: String = blob.iter().map(|byte| format!("{byte:02x}")).collect();
        let cql = format!("UPDATE {table} USING TIMESTAMP 9 SET entry = 0x{blob} WHERE {} AND seq = {seq}", key(n));
        place.cluster.blobs(&cql).await.unwrap();
    };
    let stored = place.cluster.blobs(&value(1, 3)).await.unwrap().remove(0);
    // A byte of the body; a byte of the header (wall_ms), which only the chain covers; another entry in its place.
    let mut body = stored.clone();
    *body.last_mut().unwrap() ^= 1;
    set(1, 3, &body).await;
    let mut header = stored.clone();
    header[17 + 46] ^= 1;
    set(2, 3, &header).await;
    let other = place.cluster.blobs(&value(3, 2)).await.unwrap().remove(0);
    set(3, 3, &other).await;
    place.cluster.blobs(&format!("DELETE FROM {table} USING TIMESTAMP 9 WHERE {} AND seq = 3", key(4))).await.unwrap();
    let store = place.store();
    for n in 1..=4 {
        let error = read(&store, conv(n)).await.unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { what, .. } if what.contains("entry 3")), "{n}: {error}");
        assert_eq!(one(&store, append(conv(n), 1, vec![entry(7, "more")])).await, Appended::Damaged);
        let image = store.conversation(conv(n)).await.unwrap();
        assert!(image.heads.is_empty() && image.damaged.contains_key(&HERE), "{n}: {image:?}");
        assert_eq!(image.highest_hlc, 6 << 16);
    }
    let found = inspect::inspect(&place.store(), true).await.unwrap();
    assert_eq!((found.conversations, found.damaged.len()), (4, 4), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_goes_on_over_partitions_of_the_timeline() {
    let Some(place) = Place::new().await else { return };
    let store = place.store();
    const COUNT: u64 = 4_200;
    for from in (1..=COUNT).step_by(300) {
        let batch = (from..from + 300).map(|seq| entry(seq, "x")).collect();
        assert_eq!(one(&store, append(conv(1), 1, batch)).await, Appended::Decided);
    }
    let next = place.store();
    let all = |backwards| Range {
        conversation: conv(1),
        origin: HERE,
        from: 4_090,
        to: 4_105,
        max_entries: 100,
        max_bytes: usize::MAX,
        backwards,
    };
    let seqs = |found: Vec<Arc<Entry>>| found.iter().map(|entry| entry.place.seq).collect::<Vec<_>>();
    assert_eq!(seqs(next.range(all(false)).await.unwrap()), (4_090..=4_105).collect::<Vec<_>>());
    assert_eq!(seqs(next.range(all(true)).await.unwrap()), (4_090..=4_105).rev().collect::<Vec<_>>());
    assert_eq!(read(&next, conv(1)).await.unwrap().len() as u64, COUNT);
}
