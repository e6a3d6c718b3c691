//! The disk: tables, and a journal that can undo what was not synced.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Origin, UserId};
use tern_core::limits::LAZY_SYNC;
use tern_core::mutants::{Mutant, on};
use tern_core::store::{
    Append, Appended, ConversationHeads, ConversationImage, Put, Range, RowRecord, StoreError, Target, Todo, UserMarks,
};
use tern_core::{mutant, mutated};
use tokio::time::Instant;

use super::super::conditions::{self, EPOCH_KEY, parse_epoch};
use super::super::format::LogId;
use super::{Latency, Manner};

/// The life that asks is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dead(pub Manner);

/// A key and what stood there before.
#[derive(Debug)]
enum Before {
    Row((UserId, ConvId), Option<RowRecord>),
    Todo((Target, ConvId), Option<(Heads, Option<UserId>)>),
    Entry(LogId, usize, Arc<Entry>),
    Checkpoint(ConvId, Option<Bytes>),
    Meta(String, Option<Bytes>),
}

#[derive(Debug)]
struct Unsynced {
    at: Instant,
    before: Before,
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    logs: BTreeMap<LogId, Vec<Arc<Entry>>>,
    rows: BTreeMap<(UserId, ConvId), RowRecord>,
    todo: BTreeMap<(Target, ConvId), (Heads, Option<UserId>)>,
    checkpoints: BTreeMap<ConvId, Bytes>,
    meta: BTreeMap<String, Bytes>,
    damaged: BTreeMap<LogId, String>,
    journal: Vec<Unsynced>,
    pub(super) full: bool,
    pub(super) latency: Latency,
    /// Highest epoch that this life has seen.
    epoch: u64,
    life: u64,
    /// Why the present life is over, before the next begins.
    dead: Option<Manner>,
    /// In what manner lives before this one are dead.
    past: BTreeMap<u64, Manner>,
    fail_after: Option<(u64, Manner)>,
    pub(super) steps: u64,
}

impl Disk {
    pub(super) fn check(&self, life: u64) -> Result<(), Dead> {
        if life == self.life {
            self.dead.map_or(Ok(()), |manner| Err(Dead(manner)))
        } else {
            Err(Dead(self.past.get(&life).copied().unwrap_or(Manner::Silence)))
        }
    }

    pub(super) fn fail_after(&mut self, steps: u64, manner: Manner) {
        self.fail_after = Some((steps, manner));
    }

    /// Takes a step, unless this is where the node dies.
    pub(super) fn step(&mut self) -> Result<(), Dead> {
        match &mut self.fail_after {
            Some((0, manner)) => {
                self.dead = Some(*manner);
                return Err(Dead(*manner));
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        self.steps += 1;
        Ok(())
    }

    /// What [`LAZY_SYNC`] has made durable by now: a forced write happens that long after the first unsynced one and
    /// takes along all that was written until then.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.dead.is_some() {
            return;
        }
        while let Some(first) = self.journal.first() {
            let forced = first.at + LAZY_SYNC;
            if forced > now {
                break;
            }
            self.journal.retain(|write| write.at > forced);
        }
    }

    /// A new disk with the same tables.
    pub(super) fn backup(&self) -> Self {
        Self {
            logs: self.logs.clone(),
            rows: self.rows.clone(),
            todo: self.todo.clone(),
            checkpoints: self.checkpoints.clone(),
            meta: self.meta.clone(),
            damaged: self.damaged.clone(),
            latency: self.latency,
            ..Self::default()
        }
    }

    pub(super) fn unsynced(&self) -> usize {
        self.journal.len()
    }

    pub(super) fn sync(&mut self) {
        self.journal.clear();
    }

    /// Undoes all but the first `keep` unsynced writes and starts the next life.
    pub(super) fn crash(&mut self, keep: usize) -> u64 {
        while self.journal.len() > keep {
            match self.journal.pop().map(|write| write.before) {
                Some(Before::Row(key, before)) => restore(&mut self.rows, key, before),
                Some(Before::Todo(key, before)) => restore(&mut self.todo, key, before),
                Some(Before::Entry(log, index, before)) => {
                    if let Some(entry) = self.logs.get_mut(&log).and_then(|entries| entries.get_mut(index)) {
                        *entry = before;
                    }
                }
                Some(Before::Checkpoint(key, before)) => restore(&mut self.checkpoints, key, before),
                Some(Before::Meta(key, before)) => restore(&mut self.meta, key, before),
                None => break,
            }
        }
        self.journal.clear();
        self.past.insert(self.life, self.dead.unwrap_or(Manner::Silence));
        self.dead = None;
        self.fail_after = None;
        self.epoch = self.stored_epoch();
        self.life += 1;
        self.life
    }

    fn stored_epoch(&self) -> u64 {
        self.meta.get(EPOCH_KEY).and_then(|value| parse_epoch(value)).unwrap_or(0)
    }

    pub(super) fn damage(&mut self, conversation: ConvId, origin: Origin, what: &str) {
        self.damaged.insert(LogId { conversation, origin }, what.to_owned());
    }

    /// Why a batch can't be appended now; `None` if it can.
    pub(super) fn refusal(&mut self, batch: &Append) -> Option<Appended> {
        let log = LogId { conversation: batch.conversation, origin: batch.origin };
        if batch.epoch < self.epoch && !on(Mutant::FencedOwnerWrites) {
            return Some(Appended::Fenced);
        }
        self.epoch = batch.epoch;
        if self.damaged.contains_key(&log) {
            return Some(Appended::Damaged);
        }
        if self.full {
            return Some(Appended::Full);
        }
        let head = self.logs.get(&log).map_or(0, |entries| entries.len() as u64);
        let after = mutated!(NumberReused => batch.entries.first().map_or(head, |e| e.place.seq - 1); head);
        conditions::follows(batch, after).err().map(Appended::Unknown)
    }

    /// Writes and syncs a batch.
    pub(super) fn decide(&mut self, batch: &Append) {
        let log = LogId { conversation: batch.conversation, origin: batch.origin };
        let entries = self.logs.entry(log).or_default();
        mutant!(NumberReused => entries.retain(|old| batch.entries.iter().all(|new| old.place.seq < new.place.seq)));
        entries.extend(batch.entries.iter().cloned());
        self.sync();
    }

    /// Writes without syncing.
    pub(super) fn write(&mut self, put: Put, at: Instant) {
        let before = match put {
            Put::Row { user, conversation, row } => {
                let key = (user, conversation);
                if self.rows.get(&key).is_some_and(|old| old.rev >= row.rev) {
                    return;
                }
                Before::Row(key.clone(), self.rows.insert(key, row))
            }
            Put::Erase { conversation, origin, seq, .. } => {
                let log = LogId { conversation, origin };
                let Some(index) = seq.checked_sub(1).and_then(|index| usize::try_from(index).ok()) else { return };
                match self.logs.get_mut(&log).and_then(|entries| entries.get_mut(index)) {
                    Some(entry) if !entry.erased => {
                        let erased = Arc::new(entry.to_erased());
                        Before::Entry(log, index, std::mem::replace(entry, erased))
                    }
                    _ => return,
                }
            }
            Put::Todo(Todo { target, conversation, prefix, user }) => {
                let key = (target, conversation);
                let old =
                    if prefix.is_empty() { self.todo.remove(&key) } else { self.todo.insert(key, (prefix, user)) };
                Before::Todo(key, old)
            }
            Put::Checkpoint { conversation, value } => {
                Before::Checkpoint(conversation, self.checkpoints.insert(conversation, value))
            }
            Put::Meta { key, value } => {
                if key == EPOCH_KEY {
                    let new = parse_epoch(&value).unwrap_or(0);
                    if new < self.stored_epoch() {
                        return;
                    }
                    self.epoch = self.epoch.max(new);
                }
                Before::Meta(key.clone(), self.meta.insert(key, value))
            }
        };
        self.journal.push(Unsynced { at, before });
    }

    fn logs_of(&self, conversation: ConvId) -> impl Iterator<Item = (&LogId, &Vec<Arc<Entry>>)> {
        let first = LogId { conversation, origin: Origin { region: 0, era: 0 } };
        self.logs.range(first..).take_while(move |(log, _)| log.conversation == conversation)
    }

    pub(super) fn conversation(&self, conversation: ConvId) -> ConversationImage {
        let checkpoint = self.checkpoints.get(&conversation).cloned();
        let mut image = ConversationImage { heads: self.heads(conversation), checkpoint, ..Default::default() };
        for (_, entries) in self.logs_of(conversation) {
            let newest = entries.last().map_or(0, |entry| entry.place.hlc);
            image.highest_hlc = image.highest_hlc.max(newest);
        }
        for (log, what) in &self.damaged {
            if log.conversation == conversation {
                image.damaged.insert(log.origin, what.clone());
            }
        }
        image
    }

    pub(super) fn range(&self, range: &Range) -> Result<Vec<Arc<Entry>>, StoreError> {
        let log = LogId { conversation: range.conversation, origin: range.origin };
        if let Some(what) = self.damaged.get(&log) {
            return Err(StoreError::Damaged { conversation: log.conversation, origin: log.origin, what: what.clone() });
        }
        let entries = self.logs.get(&log).map_or(&[][..], Vec::as_slice);
        let index = |seq: u64| usize::try_from(seq).unwrap_or(usize::MAX).min(entries.len());
        let (from, to) = (index(range.from.max(1) - 1), index(range.to));
        let mut found = Vec::new();
        let mut bytes = 0;
        let asked = entries.get(from..to.max(from)).unwrap_or(&[]);
        let mut take = |entry: &Arc<Entry>| {
            let more = found.len() < range.max_entries && (found.is_empty() || bytes < range.max_bytes);
            if more {
                bytes += entry.encoded_len();
                found.push(Arc::clone(entry));
            }
            more
        };
        let _all_taken = if range.backwards { asked.iter().rev().all(&mut take) } else { asked.iter().all(&mut take) };
        Ok(found)
    }

    pub(super) fn rows(&self, user: &UserId) -> Vec<(ConvId, RowRecord)> {
        self.rows
            .range((user.clone(), ConvId([0; 16]))..)
            .take_while(|((of, _), _)| of == user)
            .map(|((_, conversation), row)| (*conversation, row.clone()))
            .collect()
    }

    pub(super) fn marks(&self, after: Option<UserId>, limit: usize) -> Vec<UserMarks> {
        let above = after.map(|user| (user, ConvId([0xff; 16])));
        let bounds = (above.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let mut found: Vec<UserMarks> = Vec::new();
        for ((user, conversation), row) in self.rows.range(bounds) {
            if found.last().is_none_or(|(last, _)| last != user) {
                if found.len() >= limit {
                    break;
                }
                found.push((user.clone(), Vec::new()));
            }
            if let Some((_, marks)) = found.last_mut().filter(|_| !row.read.is_empty()) {
                marks.push((*conversation, row.read.clone()));
            }
        }
        found
    }

    pub(super) fn todo(&self) -> Vec<Todo> {
        self.todo
            .iter()
            .map(|((target, conversation), (prefix, user))| Todo {
                target: *target,
                conversation: *conversation,
                prefix: prefix.clone(),
                user: user.clone(),
            })
            .collect()
    }

    pub(super) fn conversations(&self, after: Option<ConvId>, limit: usize) -> Vec<ConversationHeads> {
        let mut found: Vec<ConversationHeads> = Vec::new();
        let mut last = after;
        while found.len() < limit {
            let above = last.map(|conversation| LogId { conversation, origin: Origin { region: 255, era: u64::MAX } });
            let bounds = (above.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
            let Some((log, _)) = self.logs.range(bounds).next() else { break };
            found.push((log.conversation, self.heads(log.conversation)));
            last = Some(log.conversation);
        }
        found
    }

    fn heads(&self, conversation: ConvId) -> Heads {
        self.logs_of(conversation)
            .filter(|(log, _)| !self.damaged.contains_key(log))
            .map(|(log, entries)| (log.origin, entries.len() as u64))
            .collect()
    }

    pub(super) fn meta(&self, key: &str) -> Option<Bytes> {
        self.meta.get(key).cloned()
    }
}

fn restore<K: Ord, V>(table: &mut BTreeMap<K, V>, key: K, before: Option<V>) {
    match before {
        Some(value) => table.insert(key, value),
        None => table.remove(&key),
    };
}
