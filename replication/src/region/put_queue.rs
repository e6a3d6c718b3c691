//! What waits to be put, and in which order it goes.
//!
//! Problem: a put may fail, or take a while, and appends go beside it. A put that was given up would be lost for good:
//! an erasure whose conversation's checkpoint says that it is done; and one that comes late would undo what an append
//! has said since: the removal of a todo row that the append has written anew.
//!
//! Rule: one group of puts is under way at a time. What fails goes again, before everything that came later; only the
//! rows of a flush do not, since the machine says them anew. What waits for a todo row that an append notes anew
//! becomes what the append says, and the append waits while a group with it is under way: then the database may stamp
//! or carry out the two in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tern_core::ids::ConvId;
use tern_core::slots::Slot;
use tern_core::store::{Append, Durability, Put, StoreError, Target, Todo};

/// After how long a group that failed goes again.
const AGAIN: Duration = Duration::from_secs(1);

/// Which todo row.
type Row = (Target, ConvId);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct PutQueue {
    /// In order, each with whether the machine says it anew if it fails.
    waiting: Vec<(Put, bool)>,
    /// A flush that the machine waits for is in `waiting`.
    flush_waits: bool,
    under_way: Option<UnderWay>,
    not_before: Duration,
}

#[derive(Debug)]
struct UnderWay {
    /// What goes again if it fails.
    kept: Vec<Put>,
    todo: BTreeSet<Row>,
    flush: bool,
}

impl PutQueue {
    pub fn push(&mut self, puts: impl IntoIterator<Item = Put>) {
        self.waiting.extend(puts.into_iter().map(|put| (put, false)));
    }

    /// The machine wants to know when these are durable.
    pub fn flush(&mut self, rows: impl IntoIterator<Item = Put>) {
        self.waiting.extend(rows.into_iter().map(|put| (put, true)));
        self.flush_waits = true;
    }

    /// Whether nothing waits or is under way.
    pub fn is_empty(&self) -> bool {
        self.is_idle() && self.under_way.is_none()
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.flush_waits
    }

    /// When the next group may go, if one waits for its time.
    pub fn next_deadline(&self) -> Option<Duration> {
        (!self.is_idle() && self.under_way.is_none()).then_some(self.not_before)
    }

    /// The next group, if it may go now. It is under way until [`Self::done`] or [`Self::failed`].
    pub fn begin(&mut self, now: Duration) -> Option<(Vec<Put>, Durability)> {
        if self.under_way.is_some() || self.is_idle() || now < self.not_before {
            return None;
        }
        let group = std::mem::take(&mut self.waiting);
        let flush = std::mem::take(&mut self.flush_waits);
        let kept = group.iter().filter(|(_, anew)| !anew).map(|(put, _)| put.clone()).collect();
        let todo = group.iter().filter_map(|(put, _)| row_of(put)).collect();
        self.under_way = Some(UnderWay { kept, todo, flush });
        let durability = if flush { Durability::Synced } else { Durability::Lazy };
        Some((group.into_iter().map(|(put, _)| put).collect(), durability))
    }

    /// The group was written. Whether it had the flush.
    pub fn done(&mut self) -> bool {
        self.under_way.take().is_some_and(|group| group.flush)
    }

    /// It was not, or nobody knows. Whether it had the flush.
    pub fn failed(&mut self, now: Duration, error: &StoreError) -> bool {
        let Some(mut group) = self.under_way.take() else { return false };
        if let StoreError::Damaged { conversation: id, origin: log, .. } = error {
            // A damaged log is repaired or fetched again, and erased then.
            let is_of_it = |put: &Put| matches!(put, Put::Erase { conversation, origin, .. } if (conversation, origin) == (id, log));
            group.kept.retain(|put| !is_of_it(put));
        }
        // What is to be replaced need not be written first.
        let replaced: BTreeSet<Row> = self.waiting.iter().filter_map(|(put, _)| row_of(put)).collect();
        group.kept.retain(|put| row_of(put).is_none_or(|row| !replaced.contains(&row)));
        self.waiting.splice(0..0, group.kept.into_iter().map(|put| (put, false)));
        self.not_before = now + AGAIN;
        group.flush
    }

    /// What may go of these appends; the others stay. What waits for the same todo rows becomes what the appends say:
    /// they are newer, and whole.
    pub fn admit(&mut self, appends: &mut Vec<Append>) -> Vec<Append> {
        let held = |append: &Append| {
            self.under_way.as_ref().is_some_and(|group| append.todo.iter().any(|todo| group.todo.contains(&key(todo))))
        };
        let (held, admitted): (Vec<_>, Vec<_>) = std::mem::take(appends).into_iter().partition(held);
        *appends = held;
        let said: BTreeMap<Row, &Todo> = admitted.iter().flat_map(|append| &append.todo).map(|t| (key(t), t)).collect();
        if !said.is_empty() {
            for (put, _) in &mut self.waiting {
                if let Some(todo) = row_of(put).and_then(|row| said.get(&row)) {
                    *put = Put::Todo((*todo).clone());
                }
            }
        }
        admitted
    }

    /// Leaves out what is another node's to write: it begins with what is on disk.
    pub fn keep_owned(&mut self, is_owned: impl Fn(Slot) -> bool, salt: &[u8]) {
        let slot = |put: &Put| match put {
            Put::Todo(todo) => Some(tern_core::node::Node::slot_of_todo(salt, todo)),
            Put::Checkpoint { conversation, .. } | Put::Erase { conversation, .. } => Some(Slot::of(*conversation)),
            Put::Row { .. } | Put::Meta { .. } => None,
        };
        self.waiting.retain(|(put, anew)| *anew || slot(put).is_none_or(&is_owned));
    }

    /// What is left at the end, in order.
    pub fn rest(&mut self) -> Vec<Put> {
        let kept = self.under_way.take().map(|group| group.kept).unwrap_or_default();
        kept.into_iter().chain(std::mem::take(&mut self.waiting).into_iter().map(|(put, _)| put)).collect()
    }
}

fn key(todo: &Todo) -> Row {
    (todo.target, todo.conversation)
}

fn row_of(put: &Put) -> Option<Row> {
    match put {
        Put::Todo(todo) => Some(key(todo)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use tern_core::entry::Entry;
    use tern_core::ids::{Heads, Identity, InstallId, Origin, UserId};

    use super::*;

    const LOG: Origin = Origin { region: 1, era: 1 };

    fn conv(n: u8) -> ConvId {
        ConvId([n; 16])
    }

    /// Of the rows' fan-out; 0: the removal.
    fn todo(n: u8, seq: u64) -> Todo {
        let prefix: Heads = [(LOG, seq)].into_iter().filter(|(_, seq)| *seq > 0).collect();
        Todo { target: Target::Fanout, conversation: conv(n), prefix, user: None }
    }

    fn append(n: u8, todo: Vec<Todo>) -> Append {
        Append { conversation: conv(n), origin: LOG, epoch: 1, entries: Vec::<Arc<Entry>>::new(), todo }
    }

    fn checkpoint(n: u8) -> Put {
        Put::Checkpoint { conversation: conv(n), value: Bytes::from(vec![n]) }
    }

    fn erase(n: u8) -> Put {
        let by = Identity { user: bob(), install: InstallId::new("phone").unwrap(), n: 1 };
        Put::Erase { conversation: conv(n), origin: LOG, seq: 3, by }
    }

    fn bob() -> UserId {
        UserId::new("bob").unwrap()
    }

    fn names(puts: &[Put]) -> Vec<String> {
        let name = |put: &Put| match put {
            Put::Todo(todo) => format!("todo {} {}", todo.conversation.0[0], todo.prefix.values().sum::<u64>()),
            Put::Checkpoint { conversation, .. } => format!("checkpoint {}", conversation.0[0]),
            Put::Erase { conversation, .. } => format!("erase {}", conversation.0[0]),
            Put::Meta { key, .. } => format!("meta {key}"),
            Put::Row { .. } => "row".to_owned(),
        };
        puts.iter().map(name).collect()
    }

    fn row() -> Put {
        Put::Row { user: bob(), conversation: conv(1), row: tern_core::store::RowRecord::default() }
    }

    fn outage() -> StoreError {
        StoreError::Backend("no quorum".to_owned())
    }

    #[test]
    fn what_failed_goes_again_before_what_came_later_but_for_the_rows_of_a_flush() {
        let mut queue = PutQueue::default();
        queue.flush([row()]);
        queue.push([erase(1), checkpoint(1)]);
        let (group, durability) = queue.begin(Duration::ZERO).unwrap();
        assert_eq!(
            (names(&group), durability),
            (vec!["row".into(), "erase 1".into(), "checkpoint 1".into()], Durability::Synced)
        );
        queue.push([checkpoint(2)]);
        assert!(queue.begin(Duration::ZERO).is_none(), "one group at a time");
        assert!(queue.failed(Duration::ZERO, &outage()), "the machine is told of its flush");
        assert!(queue.begin(Duration::ZERO).is_none());
        assert_eq!(queue.next_deadline(), Some(AGAIN));
        let (group, durability) = queue.begin(AGAIN).unwrap();
        assert_eq!(
            (names(&group), durability),
            (vec!["erase 1".into(), "checkpoint 1".into(), "checkpoint 2".into()], Durability::Lazy)
        );
        assert!(!queue.done());
        assert!(queue.is_empty() && queue.begin(AGAIN).is_none());
    }

    #[test]
    fn an_append_waits_while_a_group_with_its_todo_row_is_under_way_and_replaces_one_that_waits() {
        let mut queue = PutQueue::default();
        queue.push([Put::Todo(todo(1, 0))]);
        queue.begin(Duration::ZERO).unwrap();
        queue.push([Put::Todo(todo(2, 0)), Put::Todo(todo(3, 0))]);
        let mut appends = vec![append(1, vec![todo(1, 5)]), append(2, vec![todo(2, 6)]), append(3, vec![])];
        let gone: Vec<u8> = queue.admit(&mut appends).iter().map(|a| a.conversation.0[0]).collect();
        assert_eq!((gone, appends.len()), (vec![2, 3], 1));
        queue.failed(Duration::ZERO, &outage());
        assert_eq!(queue.admit(&mut appends).len(), 1, "nothing is under way");
        let (group, _) = queue.begin(AGAIN).unwrap();
        assert_eq!(names(&group), ["todo 1 5", "todo 2 6", "todo 3 0"]);
    }

    #[test]
    fn of_two_words_on_a_todo_row_the_later_one_stays_over_a_failure() {
        let mut queue = PutQueue::default();
        queue.push([Put::Todo(todo(1, 2)), Put::Todo(todo(2, 2))]);
        queue.begin(Duration::ZERO).unwrap();
        queue.push([Put::Todo(todo(1, 0))]);
        queue.failed(Duration::ZERO, &outage());
        assert_eq!(names(&queue.begin(AGAIN).unwrap().0), ["todo 2 2", "todo 1 0"]);
    }

    #[test]
    fn an_erasure_in_a_damaged_log_holds_nothing_up() {
        let mut queue = PutQueue::default();
        queue.push([erase(1), erase(2), checkpoint(1)]);
        queue.begin(Duration::ZERO).unwrap();
        let error = StoreError::Damaged { conversation: conv(1), origin: LOG, what: "torn".to_owned() };
        queue.failed(Duration::ZERO, &error);
        assert_eq!(names(&queue.begin(AGAIN).unwrap().0), ["erase 2", "checkpoint 1"]);
    }

    #[test]
    fn what_became_another_nodes_is_left_to_it_and_a_flush_always_ends() {
        let mut queue = PutQueue::default();
        queue.push([Put::Todo(todo(1, 2)), erase(2), checkpoint(1)]);
        queue.flush([]);
        let theirs = Slot::of(conv(1));
        queue.keep_owned(|slot| slot != theirs, b"salt");
        let (group, durability) = queue.begin(Duration::ZERO).unwrap();
        assert_eq!((names(&group), durability), (vec!["erase 2".into()], Durability::Synced));
        assert!(queue.done());
    }

    #[test]
    fn at_the_end_nothing_is_left_out() {
        let mut queue = PutQueue::default();
        queue.push([erase(1)]);
        queue.begin(Duration::ZERO).unwrap();
        queue.push([checkpoint(1)]);
        assert_eq!(names(&queue.rest()), ["erase 1", "checkpoint 1"]);
    }
}
