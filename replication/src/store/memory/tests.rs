#![allow(clippy::disallowed_methods, reason = "tests start tasks of their own, which end with the test")]

use tern_core::entry::Entry;
use tern_core::ids::{Heads, Identity, InstallId, Place, Rev};
use tern_core::limits::LAZY_SYNC;
use tern_core::store::Target;

use super::*;

const ORIGIN: Origin = Origin { region: 1, era: 1 };

fn conv(n: u8) -> ConvId {
    ConvId([n; 16])
}

fn entry(seq: u64) -> Arc<Entry> {
    Arc::new(Entry::text(
        Place { hlc: seq << 16, origin: ORIGIN, seq },
        Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
        Bytes::from_static(b"hi"),
    ))
}

fn todo(done: u64) -> Todo {
    Todo { target: Target::Fanout, conversation: conv(1), prefix: [(ORIGIN, done)].into_iter().collect(), user: None }
}

fn append(conversation: ConvId, from: u64, to: u64, todo: Vec<Todo>) -> Append {
    Append { conversation, origin: ORIGIN, epoch: 1, entries: (from..=to).map(entry).collect(), todo }
}

fn row(rev: u64) -> Put {
    let row = RowRecord { rev: Rev(rev), ..RowRecord::default() };
    Put::Row { user: UserId::new("bob").unwrap(), conversation: conv(1), row }
}

async fn head(store: &MemoryStore, conversation: ConvId) -> u64 {
    store.conversation(conversation).await.unwrap().heads.get(&ORIGIN).copied().unwrap_or(0)
}

/// An append of two batches with a todo each has five steps; the node dies before each of them.
#[tokio::test]
async fn every_crash_point_of_an_append_leaves_its_todo_no_later_than_its_entries() {
    let mut seen = Vec::new();
    for steps in 0..=5 {
        let store = MemoryStore::new();
        let todo_two = Todo { conversation: conv(2), ..todo(0) };
        store.fail_after(steps, Manner::Errors);
        let answers =
            store.append(vec![append(conv(1), 1, 2, vec![todo(0)]), append(conv(2), 1, 1, vec![todo_two])]).await;
        let store = store.crash();
        let noted = store.todo().await.unwrap().len();
        let heads = (head(&store, conv(1)).await, head(&store, conv(2)).await);
        assert_eq!(answers.iter().all(|a| *a == Appended::Decided), steps == 5);
        assert!(steps == 5 || answers.iter().all(|a| matches!(a, Appended::Unknown(_))));
        seen.push((noted, heads));
    }
    // No step; one todo; both; the first log decided, which syncs both todos; both logs; the answer.
    assert_eq!(seen, [(0, (0, 0)), (0, (0, 0)), (0, (0, 0)), (2, (2, 0)), (2, (2, 1)), (2, (2, 1))]);
}

#[tokio::test]
async fn a_disk_may_keep_a_todo_whose_entries_were_never_written() {
    let store = MemoryStore::new();
    store.fail_after(1, Manner::Errors);
    assert!(matches!(store.append(vec![append(conv(1), 1, 1, vec![todo(0)])]).await[0], Appended::Unknown(_)));
    let store = store.crash_keeping(1);
    assert_eq!(store.todo().await.unwrap(), [todo(0)]);
    assert_eq!(head(&store, conv(1)).await, 0);
    assert_eq!(store.append(vec![append(conv(1), 1, 1, vec![])]).await, [Appended::Decided]);
}

#[tokio::test(start_paused = true)]
async fn an_entry_can_be_durable_without_its_answer_ever_coming() {
    let store = MemoryStore::new();
    store.fail_after(1, Manner::Silence);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.append(vec![append(conv(1), 1, 1, vec![])]).await }
    });
    let answer = tokio::time::timeout(std::time::Duration::from_secs(3600), waiting).await;
    assert!(answer.is_err(), "the dead answer nobody");
    let read = tokio::time::timeout(std::time::Duration::from_secs(3600), store.todo()).await;
    assert!(read.is_err(), "nor do they read");
    assert_eq!(head(&store.crash(), conv(1)).await, 1);
}

#[tokio::test]
async fn handles_of_an_earlier_life_stay_dead_in_their_own_manner() {
    let first = MemoryStore::new();
    first.fail_after(0, Manner::Errors);
    assert!(first.put(vec![row(1)], Durability::Lazy).await.is_err());
    let second = first.crash();
    assert!(first.todo().await.is_err());
    assert!(second.put(vec![row(1)], Durability::Lazy).await.is_ok());
    let third = second.clone().crash();
    assert_eq!(third.rows(UserId::new("bob").unwrap()).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn what_is_lazy_is_durable_after_its_time_together_with_what_came_meanwhile() {
    let store = MemoryStore::new();
    store.put(vec![row(1)], Durability::Lazy).await.unwrap();
    tokio::time::advance(LAZY_SYNC * 9 / 10).await;
    store.put(vec![row(2)], Durability::Lazy).await.unwrap();
    assert_eq!(store.unsynced(), 2);
    tokio::time::advance(LAZY_SYNC / 5).await;
    assert_eq!(store.unsynced(), 0, "one forced write takes along all that waits");
    store.put(vec![row(3)], Durability::Lazy).await.unwrap();
    let store = store.crash();
    let rows = store.rows(UserId::new("bob").unwrap()).await.unwrap();
    assert_eq!(rows.iter().map(|(_, row)| row.rev.0).collect::<Vec<_>>(), [2]);
}

#[tokio::test(start_paused = true)]
async fn entries_are_not_readable_before_they_are_decided() {
    let slow = Latency { sync: Duration::from_millis(10), read: Duration::ZERO };
    let store = MemoryStore::with_latency(slow);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.append(vec![append(conv(1), 1, 3, vec![todo(0)])]).await }
    });
    tokio::time::advance(Duration::from_millis(5)).await;
    tokio::task::yield_now().await;
    assert_eq!(head(&store, conv(1)).await, 0);
    assert_eq!(waiting.await.unwrap(), [Appended::Decided]);
    assert_eq!(head(&store, conv(1)).await, 3);
}

#[tokio::test]
async fn a_full_disk_refuses_appends_but_takes_rows() {
    let store = MemoryStore::new();
    store.set_full(true);
    assert_eq!(store.append(vec![append(conv(1), 1, 1, vec![todo(0)])]).await, [Appended::Full]);
    store.put(vec![row(1), Put::Todo(todo(1))], Durability::Synced).await.unwrap();
    assert_eq!(store.todo().await.unwrap(), [todo(1)], "and nothing of the refused append");
    store.set_full(false);
    assert_eq!(store.append(vec![append(conv(1), 1, 1, vec![])]).await, [Appended::Decided]);
}

#[tokio::test]
async fn a_damaged_log_is_refused_and_the_others_are_not() {
    let store = MemoryStore::new();
    assert_eq!(store.append(vec![append(conv(1), 1, 1, vec![]), append(conv(2), 1, 1, vec![])]).await.len(), 2);
    store.damage(conv(1), ORIGIN, "entry 1: broken");
    let image = store.conversation(conv(1)).await.unwrap();
    assert_eq!(image.heads, Heads::new());
    assert_eq!(image.damaged[&ORIGIN], "entry 1: broken");
    assert_eq!(image.highest_hlc, 1 << 16, "the order of what is written next still respects it");
    assert_eq!(store.append(vec![append(conv(1), 2, 2, vec![])]).await, [Appended::Damaged]);
    let store = store.crash();
    assert_eq!(store.append(vec![append(conv(1), 2, 2, vec![])]).await, [Appended::Damaged]);
    assert_eq!(head(&store, conv(2)).await, 1);
}
