//! The contract of [`Store`]: what the messaging core relies on, as tests that every backend runs.
//!
//! Included by path into the tests of each backend (it asserts, so it is not part of the library). A backend
//! implements [`World`]: a disk, and lives of a node on it, one after the other. Write `contract!(make)` in a
//! module to get one test per function here, each on a world of its own.
//!
//! The functions are histories with a name; [`random_histories`] compares a backend with a model under random
//! operations and crashes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Rev, UserId};
use tern_core::limits::BODY_BYTES;
use tern_core::store::{
    Append, Appended, BoxFut, ConversationImage, Durability, Put, Range, RowRecord, Store, StoreError, Target, Todo,
};
use tern_replication::store::{EPOCH_KEY, epoch_value};

/// A disk and the life of a node on it.
pub trait World {
    /// The store of the present life.
    fn store(&self) -> Arc<dyn Store>;
    /// Ends the life without closing the store, and starts the next. No handle of [`Self::store`] may be held.
    /// Of what was not synced the first `keep` writes may have reached the disk.
    fn crash(&mut self, keep: usize);
    /// Ends when everything put lazily before is durable.
    fn lazy_sync(&mut self) -> BoxFut<'_, ()>;
    /// Lets the node die after so many steps, if the backend can.
    fn die_after(&mut self, _steps: u64) -> bool {
        false
    }
    /// Whether each log remembers the highest epoch that it was appended or read with, over lives. A backend that does
    /// may fence a life whose epoch is below one of an earlier life; none that does not may.
    fn epochs_outlive_a_crash(&self) -> bool {
        false
    }
}

/// By what clock a backend is tested.
#[allow(dead_code, reason = "each backend uses one of them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Paused: waits end at once. For backends that wait for nothing but tokio's clock and their own threads.
    Paused,
    /// The machine's: for backends that talk to another process.
    Real,
}

/// One test per function of the contract. `$make` makes a world. With `real` before it the tests run by the machine's
/// clock, on threads: see [`Time`].
macro_rules! contract {
    (real $make:expr) => {
        $crate::contract::contract!(all [flavor = "multi_thread"] $make);
    };
    ($make:expr) => {
        $crate::contract::contract!(all [start_paused = true] $make);
    };
    (all $time:tt $make:expr) => {
        $crate::contract::contract!(@ $time $make;
            appended_entries_are_read_back_and_heads_follow,
            what_does_not_follow_the_head_is_refused_and_changes_nothing,
            an_older_epoch_is_fenced_and_stays_so_after_a_crash,
            batches_of_one_call_are_decided_alone,
            many_logs_at_once_are_all_decided,
            ten_origins_of_a_conversation_do_not_mix,
            the_image_tells_heads_hlc_and_checkpoint,
            ranges_go_both_ways_and_keep_their_limits,
            bodies_of_every_size_come_back,
            a_decided_append_survives_a_crash_with_its_todo,
            a_refused_append_writes_no_todo,
            a_row_is_replaced_only_by_a_higher_rev,
            rows_of_users_with_similar_names_do_not_mix,
            todo_rows_are_replaced_whole_ordered_and_removed_when_empty,
            conversations_are_listed_in_order_page_by_page,
            read_marks_are_listed_user_by_user_page_by_page,
            checkpoints_and_named_values_are_kept,
            synced_puts_survive_and_lazy_ones_within_their_time,
            lazy_puts_ride_with_the_next_append,
            what_cannot_be_stored_is_refused_whole,
            an_erased_entry_keeps_its_place_and_its_log_goes_on,
            an_acked_erasure_survives_and_every_crash_point_leaves_one_form_or_the_other,
            all_fields_of_rows_and_todo_come_back,
        );
    };
    (@ $time:tt $make:expr; $($name:ident,)*) => {
        $($crate::contract::contract!(one $time $make; $name);)*
    };
    (one [$($time:tt)*] $make:expr; $name:ident) => {
        #[tokio::test($($time)*)]
        async fn $name() {
            let mut world = $make;
            $crate::contract::$name(&mut world).await;
        }
    };
}
pub(crate) use contract;

pub fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

pub fn origin(region: u8) -> Origin {
    Origin { region, era: 0x1000 + u64::from(region) }
}

pub fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// Entry `seq` of a log; its content depends on the log, `seq` and `salt`. The hlc ascends with `seq`.
pub fn entry_with(conversation: ConvId, origin: Origin, seq: u64, salt: u64, body: Bytes) -> Arc<Entry> {
    Arc::new(Entry {
        peer: Some(user("bob")),
        wall_ms: salt ^ u64::from(conversation.0[0]),
        ..Entry::text(
            Place { hlc: (seq << 16) + u64::from(origin.region), origin, seq },
            Identity { user: user("alice"), install: InstallId::new("phone").unwrap(), n: seq },
            body,
        )
    })
}

pub fn entry(conversation: ConvId, origin: Origin, seq: u64) -> Arc<Entry> {
    entry_with(conversation, origin, seq, 0, Bytes::from(format!("message {seq}")))
}

pub fn entries(conversation: ConvId, origin: Origin, from: u64, to: u64) -> Vec<Arc<Entry>> {
    (from..=to).map(|seq| entry(conversation, origin, seq)).collect()
}

pub fn batch(conversation: ConvId, origin: Origin, from: u64, to: u64) -> Append {
    Append { conversation, origin, epoch: 1, entries: entries(conversation, origin, from, to), todo: Vec::new() }
}

pub fn whole(conversation: ConvId, origin: Origin) -> Range {
    Range {
        conversation,
        origin,
        from: 1,
        to: u64::MAX,
        max_entries: usize::MAX,
        max_bytes: usize::MAX,
        backwards: false,
    }
}

pub fn todo(target: Target, conversation: ConvId, done: u64) -> Todo {
    Todo { target, conversation, prefix: [(origin(1), done)].into_iter().collect(), user: None }
}

pub fn row(rev: u64) -> RowRecord {
    RowRecord {
        rev: Rev(rev),
        heads: [(origin(1), rev)].into_iter().collect(),
        read: Heads::new(),
        state: 0,
        generation: 1,
        peer: Some(user("bob")),
        last_hlc: rev << 16,
        counted: rev,
        ..RowRecord::default()
    }
}

fn row_put(name: &str, conversation: ConvId, rev: u64) -> Put {
    Put::Row { user: user(name), conversation, row: row(rev) }
}

async fn append_one(store: &Arc<dyn Store>, append: Append) -> Appended {
    let mut answers = store.append(vec![append]).await;
    assert_eq!(answers.len(), 1, "one answer for each batch");
    answers.remove(0)
}

async fn read(store: &Arc<dyn Store>, conversation: ConvId, origin: Origin) -> Vec<Arc<Entry>> {
    store.range(whole(conversation, origin)).await.unwrap()
}

pub async fn appended_entries_are_read_back_and_heads_follow(world: &mut dyn World) {
    let store = world.store();
    for (from, to) in [(1, 1), (2, 5), (6, 6)] {
        assert_eq!(append_one(&store, batch(conv(1), origin(1), from, to)).await, Appended::Decided);
        assert_eq!(read(&store, conv(1), origin(1)).await, entries(conv(1), origin(1), 1, to));
        let image = store.conversation(conv(1)).await.unwrap();
        assert_eq!(image.heads, [(origin(1), to)].into_iter().collect::<Heads>());
    }
    assert_eq!(store.append(Vec::new()).await, Vec::new());
}

pub async fn what_does_not_follow_the_head_is_refused_and_changes_nothing(world: &mut dyn World) {
    let store = world.store();
    assert_eq!(append_one(&store, batch(conv(1), origin(1), 1, 3)).await, Appended::Decided);
    let mut foreign = batch(conv(1), origin(1), 4, 4);
    foreign.origin = origin(2);
    let mut torn = batch(conv(1), origin(1), 4, 6);
    torn.entries.remove(1);
    let mut backwards = batch(conv(1), origin(1), 4, 5);
    backwards.entries.reverse();
    let mut empty = batch(conv(1), origin(1), 4, 4);
    empty.entries.clear();
    let refused = [
        batch(conv(1), origin(1), 5, 5),
        batch(conv(1), origin(1), 3, 3),
        batch(conv(1), origin(1), 3, 5),
        foreign,
        torn,
        backwards,
        empty,
        batch(conv(2), origin(1), 2, 2),
    ];
    for append in refused {
        let shown = format!("{append:?}");
        let answer = append_one(&store, append).await;
        assert!(matches!(answer, Appended::Unknown(_)), "{answer:?} to {shown}");
    }
    assert_eq!(read(&store, conv(1), origin(1)).await.len(), 3);
    assert_eq!(store.conversation(conv(2)).await.unwrap(), ConversationImage::default());
    assert_eq!(append_one(&store, batch(conv(1), origin(1), 4, 4)).await, Appended::Decided, "the head still stands");
}

pub async fn an_older_epoch_is_fenced_and_stays_so_after_a_crash(world: &mut dyn World) {
    let at = |epoch, seq| Append { epoch, ..batch(conv(1), origin(1), seq, seq) };
    let store = world.store();
    let epoch = |n| vec![Put::Meta { key: EPOCH_KEY.to_owned(), value: epoch_value(n) }];
    assert_eq!(append_one(&store, at(1, 1)).await, Appended::Decided);
    store.put(epoch(5), Durability::Synced).await.unwrap();
    assert_eq!(append_one(&store, at(4, 2)).await, Appended::Fenced, "the old owner wakes up");
    assert_eq!(append_one(&store, at(5, 2)).await, Appended::Decided);
    assert_eq!(append_one(&store, at(6, 3)).await, Appended::Decided);
    assert_eq!(append_one(&store, at(5, 4)).await, Appended::Fenced, "an append raises the epoch too");
    store.put(epoch(3), Durability::Synced).await.unwrap();
    assert_eq!(store.meta(EPOCH_KEY).await.unwrap(), Some(epoch_value(5)), "the stored epoch never falls");
    drop(store);
    world.crash(0);
    let store = world.store();
    assert_eq!(append_one(&store, at(4, 4)).await, Appended::Fenced);
    assert_eq!(append_one(&store, at(7, 4)).await, Appended::Decided);
    assert_eq!(read(&store, conv(1), origin(1)).await.len(), 4);
}

pub async fn batches_of_one_call_are_decided_alone(world: &mut dyn World) {
    let store = world.store();
    let batches = vec![
        batch(conv(1), origin(1), 1, 2),
        batch(conv(2), origin(1), 5, 5),
        Append { epoch: 0, ..batch(conv(4), origin(1), 1, 1) },
        batch(conv(3), origin(1), 1, 1),
    ];
    let answers = store.append(batches).await;
    assert_eq!(answers[0], Appended::Decided);
    assert!(matches!(answers[1], Appended::Unknown(_)));
    assert_eq!(answers[2], Appended::Fenced);
    assert_eq!(answers[3], Appended::Decided);
    let listed = store.conversations(None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [conv(1), conv(3)]);
}

pub async fn many_logs_at_once_are_all_decided(world: &mut dyn World) {
    let store = world.store();
    for round in 0..5u64 {
        let waiting: Vec<_> = (0..60u8)
            .map(|n| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    append_one(&store, batch(conv(n), origin(1), 1 + round * 3, 3 + round * 3)).await
                })
            })
            .collect();
        for append in waiting {
            assert_eq!(append.await.unwrap(), Appended::Decided);
        }
    }
    for n in 0..60 {
        assert_eq!(read(&store, conv(n), origin(1)).await, entries(conv(n), origin(1), 1, 15));
    }
}

pub async fn ten_origins_of_a_conversation_do_not_mix(world: &mut dyn World) {
    let store = world.store();
    for n in 1..=10u8 {
        // Two eras of a region, and regions out of order.
        let log = Origin { region: 11 - n.div_ceil(2), era: u64::from(n) << 60 };
        assert_eq!(append_one(&store, batch(conv(1), log, 1, u64::from(n))).await, Appended::Decided);
    }
    assert_eq!(append_one(&store, batch(conv(2), origin(1), 1, 3)).await, Appended::Decided);
    drop(store);
    world.crash(0);
    let store = world.store();
    let image = store.conversation(conv(1)).await.unwrap();
    assert_eq!(image.heads.len(), 10);
    for (log, head) in image.heads {
        assert_eq!(read(&store, conv(1), log).await, entries(conv(1), log, 1, head));
    }
}

pub async fn the_image_tells_heads_hlc_and_checkpoint(world: &mut dyn World) {
    let store = world.store();
    assert_eq!(store.conversation(conv(9)).await.unwrap(), ConversationImage::default(), "never heard of");
    assert_eq!(store.range(whole(conv(9), origin(1))).await.unwrap(), Vec::new());
    assert_eq!(append_one(&store, batch(conv(1), origin(1), 1, 7)).await, Appended::Decided);
    assert_eq!(append_one(&store, batch(conv(1), origin(3), 1, 4)).await, Appended::Decided);
    let checkpoint = Bytes::from_static(b"folded");
    let put = Put::Checkpoint { conversation: conv(1), value: checkpoint.clone() };
    store.put(vec![put], Durability::Synced).await.unwrap();
    let expected = ConversationImage {
        heads: [(origin(1), 7), (origin(3), 4)].into_iter().collect(),
        highest_hlc: entry(conv(1), origin(1), 7).place.hlc,
        checkpoint: Some(checkpoint),
        damaged: BTreeMap::new(),
    };
    assert_eq!(store.conversation(conv(1)).await.unwrap(), expected);
    drop(store);
    world.crash(0);
    assert_eq!(world.store().conversation(conv(1)).await.unwrap(), expected);
}

pub async fn ranges_go_both_ways_and_keep_their_limits(world: &mut dyn World) {
    const HEAD: u64 = 9;
    let store = world.store();
    let all: Vec<_> = (1..=HEAD)
        .map(|seq| {
            let length = usize::try_from(seq * 10).unwrap();
            entry_with(conv(1), origin(1), seq, 0, Bytes::from(vec![7; length]))
        })
        .collect();
    let append = Append { entries: all.clone(), ..batch(conv(1), origin(1), 1, 1) };
    assert_eq!(append_one(&store, append).await, Appended::Decided);
    assert_eq!(append_one(&store, batch(conv(1), origin(2), 1, 3)).await, Appended::Decided);
    for from in 0..=HEAD + 2 {
        for to in (0..=HEAD + 2).chain([u64::MAX]) {
            for max_entries in [0, 1, 2, 5, 100] {
                for max_bytes in [0, 1, 200, 500, usize::MAX] {
                    for backwards in [false, true] {
                        let range = Range { from, to, max_entries, max_bytes, backwards, ..whole(conv(1), origin(1)) };
                        let found = store.range(range).await.unwrap();
                        assert_eq!(found, expected(&all, &range), "{range:?}");
                    }
                }
            }
        }
    }
}

/// A range as its documentation has it.
fn expected(all: &[Arc<Entry>], range: &Range) -> Vec<Arc<Entry>> {
    let mut asked: Vec<_> = all.iter().filter(|e| range.from <= e.seq() && e.seq() <= range.to).cloned().collect();
    if range.backwards {
        asked.reverse();
    }
    asked.truncate(range.max_entries);
    let mut bytes = 0;
    let enough = asked.iter().position(|entry| {
        bytes += entry.to_bytes().len();
        bytes >= range.max_bytes
    });
    if let Some(last) = enough {
        asked.truncate(last + 1);
    }
    asked
}

pub async fn bodies_of_every_size_come_back(world: &mut dyn World) {
    let sizes = [0, 1, 100, 4096, 32 * 1024, BODY_BYTES];
    let body = |n: usize| Bytes::from((0..n).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect::<Vec<_>>());
    let all: Vec<_> = (1..).zip(sizes).map(|(seq, size)| entry_with(conv(1), origin(1), seq, 0, body(size))).collect();
    let store = world.store();
    let append = Append { entries: all.clone(), ..batch(conv(1), origin(1), 1, 1) };
    assert_eq!(append_one(&store, append).await, Appended::Decided);
    let erased = Arc::new(Entry { erased: true, body: Bytes::new(), ..(*entry(conv(1), origin(1), 7)).clone() });
    let append = Append { entries: vec![Arc::clone(&erased)], ..batch(conv(1), origin(1), 7, 7) };
    assert_eq!(append_one(&store, append).await, Appended::Decided, "a copy of an erased message");
    let too_long = entry_with(conv(1), origin(1), 8, 0, body(BODY_BYTES + 1));
    let append = Append { entries: vec![too_long], ..batch(conv(1), origin(1), 8, 8) };
    assert!(matches!(append_one(&store, append).await, Appended::Unknown(_)));
    drop(store);
    world.crash(0);
    let found = read(&world.store(), conv(1), origin(1)).await;
    assert_eq!(found[..6], all);
    assert_eq!(found[6..], [erased]);
}

pub async fn a_decided_append_survives_a_crash_with_its_todo(world: &mut dyn World) {
    let store = world.store();
    let noted = [todo(Target::Fanout, conv(1), 0), todo(Target::Peer(2), conv(1), 0)];
    let append = Append { todo: noted.to_vec(), ..batch(conv(1), origin(1), 1, 4) };
    assert_eq!(append_one(&store, append).await, Appended::Decided);
    drop(store);
    world.crash(0);
    let store = world.store();
    assert_eq!(read(&store, conv(1), origin(1)).await, entries(conv(1), origin(1), 1, 4));
    assert_eq!(store.todo().await.unwrap(), noted);
    assert_eq!(append_one(&store, batch(conv(1), origin(1), 5, 5)).await, Appended::Decided, "and goes on");
}

pub async fn a_refused_append_writes_no_todo(world: &mut dyn World) {
    let store = world.store();
    let noted = vec![todo(Target::Fanout, conv(1), 0)];
    let append = Append { todo: noted.clone(), ..batch(conv(1), origin(1), 2, 2) };
    assert!(matches!(append_one(&store, append).await, Appended::Unknown(_)));
    assert_eq!(append_one(&store, Append { epoch: 3, ..batch(conv(2), origin(1), 1, 1) }).await, Appended::Decided);
    let append = Append { todo: noted, ..batch(conv(1), origin(1), 1, 1) };
    assert_eq!(append_one(&store, append).await, Appended::Fenced);
    assert_eq!(store.todo().await.unwrap(), Vec::new());
}

pub async fn a_row_is_replaced_only_by_a_higher_rev(world: &mut dyn World) {
    let store = world.store();
    let rev = |rows: Vec<(ConvId, RowRecord)>| rows.iter().map(|(_, row)| row.rev.0).collect::<Vec<_>>();
    store.put(vec![row_put("bob", conv(1), 5)], Durability::Lazy).await.unwrap();
    store.put(vec![row_put("bob", conv(1), 4)], Durability::Synced).await.unwrap();
    assert_eq!(rev(store.rows(user("bob")).await.unwrap()), [5]);
    let several = [7, 9, 8].map(|rev| row_put("bob", conv(1), rev)).to_vec();
    store.put(several, Durability::Lazy).await.unwrap();
    assert_eq!(rev(store.rows(user("bob")).await.unwrap()), [9]);
    let mut same = row(9);
    same.counted = 1;
    let put = Put::Row { user: user("bob"), conversation: conv(1), row: same };
    store.put(vec![put], Durability::Synced).await.unwrap();
    let rows = store.rows(user("bob")).await.unwrap();
    assert_eq!(rows, [(conv(1), row(9))], "the same rev changes nothing");
    drop(store);
    world.crash(0);
    assert_eq!(world.store().rows(user("bob")).await.unwrap(), [(conv(1), row(9))], "a repeated put was synced");
}

pub async fn rows_of_users_with_similar_names_do_not_mix(world: &mut dyn World) {
    let store = world.store();
    for name in ["a", "ab", "b", "ü", &"x".repeat(64)] {
        for n in [3, 1, 2] {
            store.put(vec![row_put(name, conv(n), u64::from(n))], Durability::Lazy).await.unwrap();
        }
    }
    for name in ["a", "ab", "b", "ü", &"x".repeat(64)] {
        let rows = store.rows(user(name)).await.unwrap();
        assert_eq!(rows, [1, 2, 3].map(|n| (conv(n), row(u64::from(n)))), "{name}: all, in order of the ids");
    }
    assert_eq!(store.rows(user("nobody")).await.unwrap(), Vec::new());
}

pub async fn todo_rows_are_replaced_whole_ordered_and_removed_when_empty(world: &mut dyn World) {
    let store = world.store();
    let noted = [
        todo(Target::Peer(3), conv(1), 1),
        todo(Target::Fanout, conv(2), 2),
        todo(Target::Peer(2), conv(9), 3),
        todo(Target::Fanout, conv(1), 4),
    ];
    store.put(noted.iter().cloned().map(Put::Todo).collect(), Durability::Lazy).await.unwrap();
    let ordered = [3, 1, 2, 0].map(|n: usize| noted[n].clone());
    assert_eq!(store.todo().await.unwrap(), ordered);
    let replaced = Todo { prefix: [(origin(2), 8)].into_iter().collect(), ..noted[3].clone() };
    let removed = Todo { prefix: Heads::new(), ..noted[1].clone() };
    store.put(vec![Put::Todo(replaced.clone()), Put::Todo(removed.clone())], Durability::Synced).await.unwrap();
    store.put(vec![Put::Todo(removed)], Durability::Synced).await.unwrap();
    drop(store);
    world.crash(0);
    let expected = [replaced, noted[2].clone(), noted[0].clone()];
    assert_eq!(world.store().todo().await.unwrap(), expected);
}

pub async fn conversations_are_listed_in_order_page_by_page(world: &mut dyn World) {
    let store = world.store();
    for n in [200, 3, 255, 0, 77, 4] {
        for region in [1, 2] {
            assert_eq!(
                append_one(&store, batch(conv(n), origin(region), 1, 1 + u64::from(region))).await,
                Appended::Decided
            );
        }
    }
    let heads: Heads = [(origin(1), 2), (origin(2), 3)].into();
    let all = [0, 3, 4, 77, 200, 255].map(|n| (conv(n), heads.clone()));
    for limit in 1..8 {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = store.conversations(after, limit).await.unwrap();
            assert!(page.len() <= limit);
            after = page.last().map(|(id, _)| *id);
            if after.is_none() {
                break;
            }
            found.extend(page);
        }
        assert_eq!(found, all);
    }
    assert_eq!(
        store.conversations(Some(conv(5)), 1).await.unwrap(),
        [(conv(77), heads)],
        "after an id that is not there"
    );
    assert_eq!(store.conversations(None, 0).await.unwrap(), []);
}

pub async fn read_marks_are_listed_user_by_user_page_by_page(world: &mut dyn World) {
    let store = world.store();
    let read: Heads = [(origin(1), 7)].into();
    let row = |name: &str, n: u8, read: &Heads| Put::Row {
        user: user(name),
        conversation: conv(n),
        row: RowRecord { rev: Rev(u64::from(n)), read: read.clone(), ..RowRecord::default() },
    };
    let none = Heads::new();
    let puts =
        [("b", 255, &read), ("b", 0, &read), ("bb", 1, &none), ("a", 1, &read), ("a", 2, &none), ("c", 9, &read)];
    let puts = puts.iter().map(|(name, n, read)| row(name, *n, read)).collect();
    store.put(puts, Durability::Synced).await.unwrap();
    let mut all: BTreeMap<UserId, Vec<ConvId>> = BTreeMap::new();
    for limit in 1..6 {
        let (mut after, mut seen) = (None, BTreeMap::new());
        loop {
            let page = store.marks(after, limit).await.unwrap();
            assert!(page.len() <= limit);
            after = page.last().map(|(user, _)| user.clone());
            for (user, marks) in page {
                assert!(marks.iter().all(|(_, told)| *told == read));
                assert!(seen.insert(user, marks.into_iter().map(|(id, _)| id).collect()).is_none(), "twice");
            }
            if after.is_none() {
                break;
            }
        }
        assert!(limit == 1 || seen == all);
        all = seen;
    }
    let expected = [("a", vec![conv(1)]), ("b", vec![conv(0), conv(255)]), ("bb", vec![]), ("c", vec![conv(9)])];
    assert_eq!(all, expected.map(|(name, marks)| (user(name), marks)).into());
    assert_eq!(store.marks(None, 0).await.unwrap(), []);
}

pub async fn checkpoints_and_named_values_are_kept(world: &mut dyn World) {
    let store = world.store();
    let meta = |key: &str, value: &'static [u8]| Put::Meta { key: key.to_owned(), value: Bytes::from_static(value) };
    let puts = vec![
        meta("era", b"1"),
        meta("era2", b""),
        meta("", b"nameless"),
        Put::Checkpoint { conversation: conv(1), value: Bytes::from(vec![1; 100_000]) },
        Put::Checkpoint { conversation: conv(1), value: Bytes::from(vec![2; 100_000]) },
        meta("era", b"2"),
    ];
    store.put(puts, Durability::Synced).await.unwrap();
    drop(store);
    world.crash(0);
    let store = world.store();
    assert_eq!(store.meta("era").await.unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(store.meta("era2").await.unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(store.meta("").await.unwrap().as_deref(), Some(&b"nameless"[..]));
    assert_eq!(store.meta("er").await.unwrap(), None);
    let image = store.conversation(conv(1)).await.unwrap();
    assert_eq!(image.checkpoint, Some(Bytes::from(vec![2; 100_000])));
    assert_eq!(image.heads, Heads::new());
    assert_eq!(store.conversations(None, 10).await.unwrap(), [], "a checkpoint alone makes no conversation");
}

pub async fn synced_puts_survive_and_lazy_ones_within_their_time(world: &mut dyn World) {
    let store = world.store();
    store.put(vec![row_put("bob", conv(1), 1)], Durability::Lazy).await.unwrap();
    assert_eq!(store.rows(user("bob")).await.unwrap().len(), 1, "readable at once");
    store.put(vec![row_put("bob", conv(2), 2)], Durability::Synced).await.unwrap();
    drop(store);
    world.crash(0);
    let store = world.store();
    assert_eq!(store.rows(user("bob")).await.unwrap().len(), 2, "what came before a synced put is synced with it");
    store.put(vec![row_put("bob", conv(3), 3)], Durability::Lazy).await.unwrap();
    store.put(vec![Put::Todo(todo(Target::Fanout, conv(1), 1))], Durability::Lazy).await.unwrap();
    drop(store);
    world.lazy_sync().await;
    world.crash(0);
    assert_eq!(world.store().rows(user("bob")).await.unwrap().len(), 3);
    assert_eq!(world.store().todo().await.unwrap().len(), 1);
}

pub async fn lazy_puts_ride_with_the_next_append(world: &mut dyn World) {
    let store = world.store();
    store.put(vec![row_put("bob", conv(1), 1)], Durability::Lazy).await.unwrap();
    assert_eq!(append_one(&store, batch(conv(5), origin(1), 1, 1)).await, Appended::Decided);
    drop(store);
    world.crash(0);
    assert_eq!(world.store().rows(user("bob")).await.unwrap(), [(conv(1), row(1))]);
}

pub async fn what_cannot_be_stored_is_refused_whole(world: &mut dyn World) {
    let store = world.store();
    let puts =
        vec![row_put("bob", conv(1), 1), Put::Meta { key: EPOCH_KEY.to_owned(), value: Bytes::from_static(b"seven") }];
    assert!(matches!(store.put(puts, Durability::Synced).await, Err(StoreError::Backend(_))));
    let long = Put::Meta { key: "x".repeat(256), value: Bytes::new() };
    assert!(store.put(vec![row_put("bob", conv(1), 1), long], Durability::Lazy).await.is_err());
    assert_eq!(store.rows(user("bob")).await.unwrap(), Vec::new());
    assert_eq!(store.meta(EPOCH_KEY).await.unwrap(), None);
}

pub fn erase(conversation: ConvId, origin: Origin, seq: u64) -> Put {
    let by = Identity { user: user("alice"), install: InstallId::new("phone").unwrap(), n: seq };
    Put::Erase { conversation, origin, seq, by }
}

pub async fn an_erased_entry_keeps_its_place_and_its_log_goes_on(world: &mut dyn World) {
    let store = world.store();
    let batches = vec![batch(conv(1), origin(1), 1, 3), batch(conv(2), origin(1), 1, 1)];
    assert_eq!(store.append(batches).await, [Appended::Decided, Appended::Decided]);
    let puts = vec![row_put("bob", conv(1), 1), erase(conv(1), origin(1), 2), erase(conv(1), origin(1), 2)];
    store.put(puts, Durability::Synced).await.unwrap();
    let mut expected = entries(conv(1), origin(1), 1, 5);
    expected[1] = Arc::new(expected[1].to_erased());
    assert_eq!(read(&store, conv(1), origin(1)).await, expected[..3]);
    assert_eq!(append_one(&store, batch(conv(1), origin(1), 4, 5)).await, Appended::Decided);
    let nothing = [(2, 2), (1, 6), (1, 0), (9, 1)].map(|(c, seq)| erase(conv(c), origin(1), seq));
    store.put(nothing.into(), Durability::Synced).await.unwrap();
    drop(store);
    world.crash(0);
    let store = world.store();
    assert_eq!(read(&store, conv(1), origin(1)).await, expected);
    assert_eq!(read(&store, conv(2), origin(1)).await, entries(conv(2), origin(1), 1, 1));
    assert_eq!(store.conversation(conv(1)).await.unwrap().heads[&origin(1)], 5);
    assert_eq!(store.rows(user("bob")).await.unwrap().len(), 1);
    let list: Vec<_> = store.conversations(None, 9).await.unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(list, [conv(1), conv(2)], "an erasure of what is not held leaves nothing");
    // A copy may arrive erased.
    let copy =
        Append { entries: vec![Arc::new(entry(conv(3), origin(2), 1).to_erased())], ..batch(conv(3), origin(2), 1, 1) };
    assert_eq!(append_one(&store, copy.clone()).await, Appended::Decided);
    store.put(vec![erase(conv(3), origin(2), 1)], Durability::Synced).await.unwrap();
    assert_eq!(read(&store, conv(3), origin(2)).await, copy.entries);
}

pub async fn an_acked_erasure_survives_and_every_crash_point_leaves_one_form_or_the_other(world: &mut dyn World) {
    for steps in 0..6u8 {
        let (id, store) = (conv(10 + steps), world.store());
        assert_eq!(append_one(&store, batch(id, origin(1), 1, 2)).await, Appended::Decided);
        let can_die = world.die_after(u64::from(steps));
        let acked = store.put(vec![row_put("bob", id, 1), erase(id, origin(1), 1)], Durability::Synced).await;
        assert!(acked.is_ok() || can_die);
        drop(store);
        world.crash(usize::from(steps % 3));
        let found = read(&world.store(), id, origin(1)).await;
        let whole = entries(id, origin(1), 1, 2);
        let erased = vec![Arc::new(whole[0].to_erased()), whole[1].clone()];
        assert!(found == erased || (found == whole && acked.is_err()), "{steps} steps, {acked:?}: {found:?}");
    }
    let store = world.store();
    assert_eq!(append_one(&store, batch(conv(1), origin(1), 1, 1)).await, Appended::Decided);
    store.put(vec![erase(conv(1), origin(1), 1)], Durability::Lazy).await.unwrap();
    drop(store);
    world.lazy_sync().await;
    world.crash(0);
    assert!(read(&world.store(), conv(1), origin(1)).await[0].erased, "a lazy one within its time");
}

pub async fn all_fields_of_rows_and_todo_come_back(world: &mut dyn World) {
    let store = world.store();
    let vector = |n: u64| Heads::from([(origin(1), n), (Origin { region: 2, era: 0 }, n + 1)]);
    let full = RowRecord {
        rev: Rev(7),
        heads: vector(1),
        read: vector(2),
        peer_read: vector(3),
        from: vector(4),
        state: 1,
        generation: 5,
        peer: Some(user("carol")),
        last_hlc: 6,
        counted: 8,
    };
    let noted = Todo { user: Some(user("bob")), ..todo(Target::Peer(2), conv(1), 3) };
    let puts = vec![
        Put::Row { user: user("bob"), conversation: conv(1), row: full.clone() },
        Put::Todo(noted.clone()),
        Put::Todo(todo(Target::Peer(3), conv(1), 3)),
    ];
    store.put(puts, Durability::Synced).await.unwrap();
    drop(store);
    world.crash(0);
    assert_eq!(world.store().rows(user("bob")).await.unwrap(), [(conv(1), full)]);
    assert_eq!(world.store().todo().await.unwrap(), [noted, todo(Target::Peer(3), conv(1), 3)]);
}

#[path = "contract_histories.rs"]
mod histories;
pub use histories::random_histories;
