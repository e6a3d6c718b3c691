//! Writing what is derived: rows, removals of todo, checkpoints. And forgetting what is on disk.
//!
//! Rule: at most one flush is in flight. Rows are on disk before the todo that stands for them goes, and whoever waits
//! for a mark or a row to be durable is answered by the end of the flush that wrote it.

use std::time::Duration;

use crate::ids::{ConvId, UserId};
use crate::limits::TODO_LINGER;
use crate::store::{Put, Target, Todo};

use super::{
    CHECKPOINT_ENTRIES, CONVERSATIONS_IN_MEMORY, Conversation, FLUSH_AGAIN, FLUSH_EVERY, Node, Now, USERS_IN_MEMORY,
};

/// Writing rows: at most one flush is in flight.
#[derive(Debug, Default)]
pub(super) struct Flush {
    /// Counts the flushes that were begun.
    pub(super) begun: u64,
    /// Counts those that ended.
    pub(super) done: u64,
    pub(super) in_flight: bool,
    pub(super) at: Option<Duration>,
    /// What is under way: dirty again if it fails.
    pub(super) rows: Vec<(UserId, ConvId)>,
}

impl Node {
    /// The flush that was asked for ended.
    pub fn flushed(&mut self, now: Now) {
        self.flush.in_flight = false;
        self.flush.rows.clear();
        self.flush.done = self.flush.begun;
        self.marks_flushed(now);
        self.settle(now);
    }

    /// The flush failed: its rows are written again.
    pub fn flush_failed(&mut self, now: Now) {
        self.flush.in_flight = false;
        self.marks.flush_failed();
        for (id, conversation) in std::mem::take(&mut self.flush.rows) {
            if let Some(user) = self.users.get_mut(&id) {
                user.mark_dirty(conversation);
                self.dirty.insert(id);
            }
        }
        self.flush.at = Some(now.mono + FLUSH_AGAIN);
    }

    pub(super) fn schedule_flush(&mut self, now: Now) {
        self.flush.at.get_or_insert(now.mono + FLUSH_EVERY);
    }

    pub(super) fn begin_flush(&mut self, now: Now) {
        let mut puts = self.marks.begin_flush();
        for id in std::mem::take(&mut self.dirty) {
            if let Some(user) = self.users.get_mut(&id) {
                for (conversation, row) in user.take_dirty() {
                    self.flush.rows.push((id.clone(), conversation));
                    puts.push(Put::Row { user: id.clone(), conversation, row });
                }
            }
        }
        self.flush.begun += 1;
        self.flush.at = if self.active.is_empty() { None } else { Some(now.mono + FLUSH_EVERY) };
        if puts.is_empty() {
            self.flush.done = self.flush.begun;
            self.marks_flushed(now);
            self.settle(now);
        } else {
            self.flush.in_flight = true;
            self.out.flush = Some(puts);
        }
    }

    /// Removes todo whose target has caught up and whose conversation is quiet, and writes checkpoints.
    fn settle(&mut self, now: Now) {
        let ids: Vec<ConvId> = self.active.iter().copied().collect();
        for id in ids {
            let Some(conversation) = self.conversations.get_mut(&id) else {
                self.active.remove(&id);
                continue;
            };
            if conversation.since_checkpoint >= CHECKPOINT_ENTRIES && conversation.is_idle() {
                conversation.since_checkpoint = 0;
                let value = conversation.state.checkpoint();
                self.out.puts.push(Put::Checkpoint { conversation: id, value });
            }
            if now.mono.saturating_sub(conversation.active_at) < TODO_LINGER || !conversation.is_idle() {
                continue;
            }
            let links = &self.links;
            let flushed = self.flush.done;
            let done: Vec<Target> = conversation
                .todo
                .keys()
                .copied()
                .filter(|target| match target {
                    Target::Fanout => {
                        conversation.fan_pending == 0
                            && conversation.away.is_empty()
                            && conversation.fan_flush <= flushed
                    }
                    Target::Peer(region) => links.get(region).is_none_or(|l| l.has_acked(id, &conversation.published)),
                })
                .collect();
            for target in done {
                conversation.todo.remove(&target);
                let prefix = crate::ids::Heads::new();
                self.out.puts.push(Put::Todo(Todo { target, conversation: id, prefix, user: None }));
                if let Target::Peer(region) = target
                    && let Some(link) = self.links.get_mut(&region)
                {
                    link.forget(id);
                }
            }
            if conversation.todo.is_empty() {
                conversation.state.shrink();
                self.active.remove(&id);
            }
        }
    }

    /// Drops idle conversations and users above the limits. What is dropped is on disk.
    pub(super) fn evict(&mut self) {
        if self.conversations.len() > CONVERSATIONS_IN_MEMORY {
            let excess = self.conversations.len() - CONVERSATIONS_IN_MEMORY + CONVERSATIONS_IN_MEMORY / 10;
            let idle = |c: &&Conversation| c.is_idle() && c.todo.is_empty() && c.watchers.is_empty();
            let mut oldest: Vec<(Duration, ConvId)> =
                self.conversations.values().filter(idle).map(|c| (c.active_at, c.id())).collect();
            oldest.sort_unstable();
            for (_, id) in oldest.into_iter().take(excess) {
                if let Some(c) = self.conversations.remove(&id)
                    && c.since_checkpoint > 0
                {
                    let value = c.state.checkpoint();
                    self.out.puts.push(Put::Checkpoint { conversation: id, value });
                }
            }
        }
        if self.users.len() > USERS_IN_MEMORY {
            let excess = self.users.len() - USERS_IN_MEMORY + USERS_IN_MEMORY / 10;
            let idle: Vec<UserId> =
                self.users.iter().filter(|(_, u)| u.is_idle()).map(|(id, _)| id.clone()).take(excess).collect();
            for id in idle {
                self.users.remove(&id);
            }
        }
    }
}
