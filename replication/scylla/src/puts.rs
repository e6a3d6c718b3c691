//! Puts: plain writes, in the order given as far as it matters.
//!
//! Writes of one kind that stand next to each other are sent at once; the next kind waits for them. So a todo row is
//! removed only after the rows before it are durable, and named values are written one after the other.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::try_join_all;
use ring::digest::{SHA256, digest};
use tern_core::ids::{ConvId, Identity, Seq, UserId};
use tern_core::store::{Put, RowRecord, StoreError, Target, Todo};
use tern_replication::store::format::{self, LogId, erased_value};
use tern_replication::store::{EPOCH_KEY, parse_epoch};

use crate::limits::{CONTENTION_TRIES, RESOLVE_PAUSE};
use crate::pending;
use crate::requests::Cas;
use crate::stamps::StampError;
use crate::store::ScyllaStore;
use crate::tails::key;
use crate::timeline::damaged;

/// Writes that may be under way together: no key is in there twice.
#[derive(Debug)]
enum Run {
    Rows(BTreeMap<(UserId, ConvId), RowRecord>),
    Todo(BTreeMap<(Target, ConvId), Todo>),
    Checkpoints(BTreeMap<ConvId, Bytes>),
    Erase(LogId, Seq, Identity),
    Meta(String, Bytes),
}

fn runs(puts: Vec<Put>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for put in puts {
        match (put, runs.last_mut()) {
            (Put::Row { user, conversation, row }, Some(Run::Rows(rows))) => {
                let newest = rows.entry((user, conversation)).or_insert_with(|| row.clone());
                if newest.rev < row.rev {
                    *newest = row;
                }
            }
            (Put::Row { user, conversation, row }, _) => runs.push(Run::Rows([((user, conversation), row)].into())),
            (Put::Todo(todo), Some(Run::Todo(all))) => {
                all.insert((todo.target, todo.conversation), todo);
            }
            (Put::Todo(todo), _) => runs.push(Run::Todo([((todo.target, todo.conversation), todo)].into())),
            (Put::Checkpoint { conversation, value }, Some(Run::Checkpoints(all))) => {
                all.insert(conversation, value);
            }
            (Put::Checkpoint { conversation, value }, _) => {
                runs.push(Run::Checkpoints([(conversation, value)].into()));
            }
            (Put::Erase { conversation, origin, seq, by }, _) => {
                runs.push(Run::Erase(LogId { conversation, origin }, seq, by));
            }
            (Put::Meta { key, value }, _) => runs.push(Run::Meta(key, value)),
        }
    }
    runs
}

/// The name of a value in the table: never empty, as a key must not be.
pub(crate) fn meta_name(key: &str) -> String {
    format!("m{key}")
}

/// Under which a row's revision is remembered.
fn rev_key(user: &UserId, conversation: ConvId) -> [u8; 16] {
    let hash = digest(&SHA256, &format::row_key(user, conversation));
    let mut key = [0; 16];
    key.copy_from_slice(&hash.as_ref()[..16]);
    key
}

impl ScyllaStore {
    pub(crate) async fn put_all(&self, puts: Vec<Put>) -> Result<(), StoreError> {
        // First of all, though it may stand last: a process that does not get the region must not have written.
        let claims = puts.iter().filter_map(|put| match put {
            Put::Meta { key, value } if key == EPOCH_KEY => parse_epoch(value),
            _ => None,
        });
        for epoch in claims.collect::<Vec<_>>() {
            self.claim(epoch).await?;
        }
        self.requests.metrics.puts.inc_by(puts.len() as u64);
        for run in runs(puts) {
            self.run(run).await?;
        }
        Ok(())
    }

    async fn claim(&self, epoch: u64) -> Result<(), StoreError> {
        let stored = self.stamps.epoch().await?;
        if epoch < stored && self.stamps.is_mine().await {
            return Ok(());
        }
        self.stamps.claim(epoch).await.map_err(StoreError::from)?;
        self.raise_floor(epoch);
        self.owned.fetch_max(epoch, std::sync::atomic::Ordering::AcqRel);
        Ok(())
    }

    async fn run(&self, run: Run) -> Result<(), StoreError> {
        let statements = self.requests.statements();
        match run {
            Run::Rows(rows) => {
                // Their time-stamps are their revisions; but who lost the region writes none either.
                self.may_write().await?;
                let rows = rows.iter().map(|((user, conversation), row)| self.put_row(user, *conversation, row));
                try_join_all(rows).await?;
            }
            Run::Todo(all) => {
                let mut stamps = Vec::with_capacity(all.len());
                match &self.sharing {
                    Some(sharing) => {
                        for todo in all.values() {
                            stamps.push(sharing.stamp_of_todo(todo, None)?);
                        }
                    }
                    None => stamps.resize(all.len(), self.stamps.take(1).await?),
                }
                try_join_all(all.values().zip(stamps).map(|(todo, stamp)| self.put_todo(todo, stamp))).await?;
            }
            Run::Checkpoints(all) => {
                let mut stamps = Vec::with_capacity(all.len());
                match &self.sharing {
                    Some(sharing) => {
                        for conversation in all.keys() {
                            stamps.push(sharing.stamp_of_log(*conversation)?);
                        }
                    }
                    None => stamps.resize(all.len(), self.stamps.take(1).await?),
                }
                let writes = all.iter().zip(stamps).map(|((conversation, checkpoint), stamp)| {
                    let mut value = Vec::new();
                    format::encode_opaque(&mut value, checkpoint);
                    self.requests.write(&statements.checkpoint_put, (conversation.0.to_vec(), value, stamp))
                });
                try_join_all(writes).await?;
            }
            Run::Erase(log, seq, by) => {
                self.may_write().await?;
                self.erase(log, seq, &by).await?;
            }
            // Claimed above.
            Run::Meta(key, _) if key == EPOCH_KEY => {}
            Run::Meta(key, meta) => {
                let stamp = match &self.sharing {
                    Some(sharing) => sharing.stamp_of_region(),
                    None => self.stamps.take(1).await?,
                };
                let mut value = Vec::new();
                format::encode_opaque(&mut value, &meta);
                self.requests.write(&statements.meta_put, (meta_name(&key), value, stamp)).await?;
            }
        }
        Ok(())
    }

    /// Whether this process has the region, if only one can.
    async fn may_write(&self) -> Result<(), StampError> {
        match &self.sharing {
            Some(_) => Ok(()),
            None => self.stamps.take(1).await.map(|_| ()),
        }
    }

    /// Writes a row, unless one of at least this revision is there. Of two with the same time-stamp the database
    /// would keep the greater value, so who does not know what is there looks first.
    async fn put_row(&self, user: &UserId, conversation: ConvId, row: &RowRecord) -> Result<(), StoreError> {
        let key = rev_key(user, conversation);
        let statements = self.requests.statements();
        let id = &conversation.0[..];
        let known = match self.remembered_rev(&key) {
            Some(rev) => Some(rev),
            None => {
                let read: Option<(Option<i64>,)> = self.requests.row(&statements.row_rev, (user.as_str(), id)).await?;
                read.and_then(|(stamp,)| stamp).map(|stamp| stamp.cast_unsigned() - 1)
            }
        };
        if let Some(known) = known
            && known >= row.rev.0
        {
            self.remember_rev(key, known);
            return Ok(());
        }
        let mut state = Vec::new();
        format::encode_row(&mut state, row);
        let stamp = row.rev.0.cast_signed() + 1;
        // Forgotten while it is not known what became of the write.
        self.forget_rev(&key);
        self.requests.write(&statements.row_put, (user.as_str(), id, state, stamp)).await?;
        self.remember_rev(key, row.rev.0);
        Ok(())
    }

    pub(crate) fn remember_row(&self, user: &UserId, conversation: ConvId, row: &RowRecord) {
        self.remember_rev(rev_key(user, conversation), row.rev.0);
    }

    /// Erases a body: notes it in the index, which is all that counts for what is in the archive; then in the timeline or
    /// the archive and, where it is there too, in the tail. In this order: a pass of tiering may move the entry meanwhile.
    async fn erase(&self, log: LogId, seq: Seq, by: &Identity) -> Result<(), StoreError> {
        let _turn = self.turn(log.conversation).lock().await;
        let mut why = "the conversation is being changed".to_owned();
        for _ in 0..CONTENTION_TRIES {
            let tail = self.tails.read(log.conversation).await?;
            let head = tail.logs.get(&log.origin).map_or(0, |log| log.head);
            if seq == 0 || seq > head {
                return Ok(());
            }
            let batch = self.tails.batch(log).await?.map_err(|what| damaged(log, what.to_owned()))?;
            self.archived.note_erased(log, seq, by).await?;
            self.erase_below(log, seq, batch.get(&seq)).await?;
            let Some(whole) = batch.get(&seq) else { return Ok(()) };
            let (link, entry) = crate::timeline::read(log, seq, whole)?;
            if entry.erased {
                return Ok(());
            }
            let mut values = batch;
            values.insert(seq, Bytes::from(erased_value(&link, &entry)));
            let first = values.keys().next().copied().unwrap_or(seq);
            let stored = pending::encode(first, &values.into_values().collect::<Vec<_>>());
            let (conversation, region, era) = key(log);
            let written =
                (tail.version + 1, &stored[..], &conversation[..], region, era, tail.epoch.cast_signed(), tail.version);
            match self.requests.conditional(&self.requests.statements().tail_erase, written).await {
                Cas::Applied => {
                    if let Some(mut known) = self.tails.remembered(log.conversation, tail.epoch) {
                        known.version = tail.version + 1;
                        self.tails.remember(log.conversation, &known);
                    }
                    return Ok(());
                }
                Cas::Refused => {}
                Cas::Unclear(what) => {
                    why = what;
                    tokio::time::sleep(RESOLVE_PAUSE.0).await;
                }
            }
            self.tails.forget(log.conversation);
        }
        Err(StoreError::Backend(format!("entry {seq} could not be erased in the tail: {why}")))
    }

    /// Erases a body in the timeline, or takes what stands there of an entry that is in the archive.
    async fn erase_below(&self, log: LogId, seq: Seq, pending: Option<&Bytes>) -> Result<(), StoreError> {
        let mut last = self.archived.last(log).await?;
        loop {
            if last.is_some_and(|(_, mark)| seq <= mark.last) {
                self.timeline.remove_one(log, seq).await?;
                self.requests.metrics.erased_entries.inc();
                return Ok(());
            }
            let erased = self.erase_in_timeline(log, seq, pending).await;
            let Err(error @ StoreError::Damaged { .. }) = erased else { return erased };
            // It may have moved meanwhile.
            let now = self.archived.last(log).await?;
            if now == last {
                return Err(error);
            }
            last = now;
        }
    }

    async fn erase_in_timeline(&self, log: LogId, seq: Seq, pending: Option<&Bytes>) -> Result<(), StoreError> {
        let (link, entry) = match (self.timeline.entry(log, seq).await?, pending) {
            (Some(stored), _) => stored,
            (None, Some(pending)) => crate::timeline::read(log, seq, pending)?,
            (None, None) => return Err(damaged(log, format!("entry {seq} is missing"))),
        };
        if entry.erased {
            return Ok(());
        }
        self.timeline.insert(log, &[(seq, Bytes::from(erased_value(&link, &entry)))]).await?;
        self.requests.metrics.erased_entries.inc();
        Ok(())
    }
}

impl From<StampError> for crate::tails::TakeError {
    fn from(error: StampError) -> Self {
        match error {
            StampError::Fenced => Self::Fenced,
            StampError::Backend(what) => Self::Backend(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use tern_core::ids::{Heads, Origin, Rev};

    use super::*;

    #[test]
    fn what_may_go_together_does_and_the_last_or_highest_counts() {
        let user = UserId::new("bob").unwrap();
        let row = |n: u8, rev| Put::Row {
            user: user.clone(),
            conversation: ConvId([n; 16]),
            row: RowRecord { rev: Rev(rev), ..RowRecord::default() },
        };
        let todo = |n: u8, seq| {
            let prefix: Heads = [(Origin { region: 1, era: 1 }, seq)].into();
            Put::Todo(Todo { target: Target::Fanout, conversation: ConvId([n; 16]), prefix, user: None })
        };
        let meta = |key: &str| Put::Meta { key: key.to_owned(), value: Bytes::new() };
        let runs = runs(vec![row(1, 5), row(2, 1), row(1, 4), todo(1, 1), todo(1, 2), meta("a"), meta("b"), row(1, 9)]);
        let shape: Vec<String> = runs
            .iter()
            .map(|run| match run {
                Run::Rows(rows) => format!("rows {:?}", rows.values().map(|row| row.rev.0).collect::<Vec<_>>()),
                Run::Todo(all) => {
                    format!("todo {:?}", all.values().map(|t| t.prefix.values().sum::<u64>()).collect::<Vec<_>>())
                }
                Run::Meta(key, _) => format!("meta {key}"),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(shape, ["rows [5, 1]", "todo [2]", "meta a", "meta b", "rows [9]"]);
    }
}
