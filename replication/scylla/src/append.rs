//! Appending: todo, then the conditional write that decides, then the timeline.
//!
//! 1. A time-stamp is taken: a process that lost the region gets none.
//! 2. The conversation is taken over, if an earlier epoch had it (`tails`).
//! 3. The batch before is in the timeline, or is put there now: the tail is about to forget it.
//! 4. A conversation that is new is noted in the list of conversations; todo rows are written.
//! 5. The conditional write: head, hlc, chain and the batch itself, if epoch and version are what they were. This is
//!    the moment in which the batch is decided.
//! 6. The batch is inserted into the timeline. If that fails it is decided all the same, readable from the tail, and
//!    step 3 of the next append comes back to it.
//!
//! Death after 4: a todo row and a line in a list that stand for nothing; both are looked at and found empty. Death
//! after 5: whoever comes next finds the batch in the tail.
//!
//! **Nothing was heard of the conditional write.** The tail is read at LOCAL_SERIAL, which finishes what a quorum has
//! begun to accept: the batch is there, or it is not and can only still appear before the next conditional write is
//! decided. So the same write is sent again; if its condition does not hold then, the tail is read again, and either
//! the first one has appeared, byte for byte, or another owner has come. After [`RESOLVE_WITHIN`] the answer is
//! `Unknown`.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use tern_core::ids::Seq;
use tern_core::store::{Append, Appended, Put, StoreError, Todo};
use tern_replication::store::follows;
use tern_replication::store::format::{self, Chain, LogId};
use tokio::time::Instant;

use crate::limits::{PENDING_BYTES, RESOLVE_PAUSE, RESOLVE_WITHIN};
use crate::pending;
use crate::requests::Cas;
use crate::stamps::StampError;
use crate::store::ScyllaStore;
use crate::tails::{Log, Tail, TakeError, key};

const TAKEN_OVER: &str = "another process has taken the conversation over; whether the batch was decided is not known";

/// Entries that one conditional write decides.
struct Part {
    first: Seq,
    values: Vec<Bytes>,
    log: Log,
}

/// Splits a batch into what the tail can hold at once.
fn parts(batch: &Append, head: Seq, chain: Chain) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let (mut bytes, mut link, mut seq) = (0, chain, head);
    let mut value = Vec::new();
    for entry in &batch.entries {
        link = format::encode_entry(&mut value, &link, entry);
        seq += 1;
        let fits = bytes + value.len() <= PENDING_BYTES;
        let log = Log { head: seq, hlc: entry.place.hlc, chain: link, inserted: false };
        match parts.last_mut().filter(|part| fits && part.values.len() < usize::from(u16::MAX)) {
            Some(part) => {
                part.values.push(Bytes::copy_from_slice(&value));
                part.log = log;
                bytes += value.len();
            }
            None => {
                parts.push(Part { first: seq, values: vec![Bytes::copy_from_slice(&value)], log });
                bytes = value.len();
            }
        }
    }
    parts
}

impl ScyllaStore {
    pub(crate) async fn append_all(&self, batches: &[Append]) -> Vec<Appended> {
        if batches.is_empty() {
            return Vec::new();
        }
        let all = |answer: &Appended| vec![answer.clone(); batches.len()];
        let mut floor = match self.floor().await {
            Ok(floor) => floor,
            Err(error) => return all(&Appended::Unknown(error.to_string())),
        };
        if self.sharing.is_some() {
            // No process has the region: each append is judged by its conversation's own epoch.
            return join_all(batches.iter().map(|batch| self.append_one(batch, None))).await;
        }
        let rows: usize = batches.iter().map(|batch| batch.todo.len()).sum();
        let mut stamp = match self.stamps.take(rows).await {
            Ok(stamp) => stamp,
            Err(StampError::Fenced) => return all(&Appended::Fenced),
            Err(StampError::Backend(what)) => return all(&Appended::Unknown(what)),
        };
        // In the order given: a batch of a higher epoch fences those after it.
        let mut judged = Vec::with_capacity(batches.len());
        for batch in batches {
            let fenced = batch.epoch < floor;
            floor = floor.max(batch.epoch);
            judged.push((batch, fenced, stamp));
            stamp += i64::try_from(batch.todo.len()).unwrap_or(0);
        }
        self.raise_floor(floor);
        let appends = judged.into_iter().map(|(batch, fenced, stamp)| async move {
            if fenced { Appended::Fenced } else { self.append_one(batch, Some(stamp)).await }
        });
        join_all(appends).await
    }

    async fn append_one(&self, batch: &Append, stamp: Option<i64>) -> Appended {
        let _turn = self.turn(batch.conversation).lock().await;
        let Ok(_room) = self.appends.acquire().await else {
            return Appended::Unknown("the store is closed; nothing was written".to_owned());
        };
        if self.sharing.is_none() {
            self.owned.fetch_max(batch.epoch, Ordering::AcqRel);
        }
        let mut tail = match self.tails.take(batch.conversation, batch.epoch).await {
            Ok(tail) => tail,
            Err(TakeError::Fenced) => return Appended::Fenced,
            Err(TakeError::Backend(what)) => return Appended::Unknown(what),
        };
        if self.damage(LogId { conversation: batch.conversation, origin: batch.origin }).is_some() {
            return Appended::Damaged;
        }
        let (head, chain) = tail.logs.get(&batch.origin).map_or((0, Chain::default()), |log| (log.head, log.chain));
        if let Err(what) = follows(batch, head) {
            // Somebody else may have written: the next one reads.
            self.tails.forget(batch.conversation);
            return Appended::Unknown(what);
        }
        if let Err(error) = self.prepare(batch, &tail, stamp).await {
            return Appended::Unknown(format!("{error}; nothing was written"));
        }
        let parts = parts(batch, head, chain);
        let several = parts.len() > 1;
        for part in parts {
            if let Err(what) = self.tails.settle(batch.conversation, &mut tail, batch.origin).await {
                return Appended::Unknown(what);
            }
            match self.decide(batch, &mut tail, &part).await {
                Appended::Decided => {}
                // Of a batch that was decided in part the caller must read the head.
                Appended::Fenced if several => return Appended::Unknown(TAKEN_OVER.to_owned()),
                other => {
                    self.tails.forget(batch.conversation);
                    return other;
                }
            }
            self.insert(batch, &mut tail, part).await;
        }
        self.requests.metrics.entries.inc_by(batch.entries.len() as u64);
        let bytes: usize = batch.entries.iter().map(|entry| entry.encoded_len()).sum();
        self.requests.metrics.entry_bytes.inc_by(bytes as u64);
        Appended::Decided
    }

    /// What must be durable no later than the entries.
    async fn prepare(&self, batch: &Append, tail: &Tail, stamp: Option<i64>) -> Result<(), StoreError> {
        if tail.logs.is_empty() {
            self.note_conversation(batch.conversation).await?;
        }
        let mut stamps = Vec::with_capacity(batch.todo.len());
        for (todo, at) in batch.todo.iter().zip(0..) {
            stamps.push(match (&self.sharing, stamp) {
                (Some(sharing), _) => sharing.stamp_of_todo(todo, Some(batch.epoch))?,
                (None, first) => first.unwrap_or(0) + at,
            });
        }
        let todo = batch.todo.iter().zip(stamps).map(|(todo, stamp)| self.put_todo(todo, stamp));
        try_join_all(todo).await.map(|_| ())
    }

    /// Decides a part. On anything but `Decided` the remembered tail is of no use.
    async fn decide(&self, batch: &Append, tail: &mut Tail, part: &Part) -> Appended {
        let stored = pending::encode(part.first, &part.values);
        let log = LogId { conversation: batch.conversation, origin: batch.origin };
        let (conversation, region, era) = key(log);
        let statement = &self.requests.statements().tail_append;
        let until = Instant::now() + RESOLVE_WITHIN;
        // Whether a write of which nothing was heard may have been decided.
        let mut unclear: Option<String> = None;
        let mut pause = RESOLVE_PAUSE.0;
        loop {
            let values = (
                tail.version + 1,
                part.log.head.cast_signed(),
                part.log.hlc.cast_signed(),
                &part.log.chain[..],
                &stored[..],
                &conversation[..],
                region,
                era,
                tail.epoch.cast_signed(),
                tail.version,
            );
            match self.requests.conditional(statement, values).await {
                Cas::Applied => {
                    tail.version += 1;
                    return Appended::Decided;
                }
                Cas::Refused => {}
                Cas::Unclear(what) => {
                    tracing::warn!(conversation = %batch.conversation, what, "nothing was heard of a conditional write: reading what it did");
                    unclear = Some(what);
                }
            }
            // Read until it answers.
            let found = loop {
                let what = match self.look(log, part.log.head).await {
                    Ok(found) => break found,
                    Err(error) => error.to_string(),
                };
                if Instant::now() + pause >= until {
                    return Appended::Unknown(unclear.unwrap_or(what));
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RESOLVE_PAUSE.1);
            };
            let (now, is_there) = found;
            let is_mine = is_there.as_ref() == Some(&stored);
            let head = now.logs.get(&batch.origin).map_or(0, |log| log.head);
            if now.epoch == batch.epoch && is_mine && head == part.log.head {
                tail.version = now.version;
                return Appended::Decided;
            }
            let at = part.first - 1;
            if now.epoch != batch.epoch {
                return match (head >= part.log.head, &unclear) {
                    // A new owner has come, and what he found is what is decided.
                    (true, Some(_)) if is_mine => Appended::Decided,
                    (true, Some(_)) => Appended::Unknown(TAKEN_OVER.to_owned()),
                    _ => Appended::Fenced,
                };
            }
            if head != at {
                return Appended::Unknown(format!("the log is at {head} now, and was at {at}"));
            }
            // It is not there, and can appear only until the same write is decided again; or something else of the
            // conversation was changed by another handle of the same epoch.
            tail.version = now.version;
            if Instant::now() + pause >= until {
                return Appended::Unknown(unclear.unwrap_or_else(|| "the conversation is being changed".to_owned()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RESOLVE_PAUSE.1);
        }
    }

    /// The tail, and the newest batch of a log if it ends at `head`.
    async fn look(&self, log: LogId, head: Seq) -> Result<(Tail, Option<Bytes>), StoreError> {
        let tail = self.tails.read(log.conversation).await?;
        if tail.logs.get(&log.origin).is_none_or(|log| log.head != head) {
            return Ok((tail, None));
        }
        Ok((tail, self.tails.stored_batch(log).await?))
    }

    /// Inserts what was decided. A failure is for later.
    async fn insert(&self, batch: &Append, tail: &mut Tail, part: Part) {
        let id = LogId { conversation: batch.conversation, origin: batch.origin };
        let mut log = part.log;
        let values: Vec<(Seq, Bytes)> = (part.first..).zip(part.values).collect();
        log.inserted = match self.timeline.insert(id, &values).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(conversation = %id.conversation, %error, "a decided batch is not in the timeline yet");
                false
            }
        };
        tail.logs.insert(batch.origin, log);
        self.tails.remember(batch.conversation, tail);
    }

    pub(crate) async fn put_todo(&self, todo: &Todo, stamp: i64) -> Result<(), StoreError> {
        let statements = self.requests.statements();
        let (slot, target) = crate::lists::todo_key(todo);
        let slot = self.sharing.as_ref().map_or(slot, |sharing| i32::from(sharing.slot_of_todo(todo).number()));
        let conversation = &todo.conversation.0[..];
        if todo.prefix.is_empty() {
            return self.requests.write(&statements.todo_remove, (stamp, slot, target, conversation)).await;
        }
        let mut value = Vec::new();
        format::encode_todo(&mut value, &todo.prefix, todo.user.as_ref());
        self.requests.write(&statements.todo_put, (slot, target, conversation, value, stamp)).await
    }
}

/// Checks a put's parts that only this store has limits for.
pub(crate) fn storable(puts: &[Put]) -> Result<(), StoreError> {
    use crate::limits::{CHECKPOINT_BYTES, META_BYTES};
    let bad = |what: String| Err(StoreError::Backend(format!("{what}; nothing of the put was written")));
    for put in puts {
        match put {
            Put::Row { row, .. } if row.rev.0 >= 1 << 50 => {
                return bad(format!("revision {} is too high for a time-stamp", row.rev.0));
            }
            Put::Checkpoint { value, .. } if value.len() > CHECKPOINT_BYTES => {
                return bad(format!("a checkpoint has {} bytes, at most {CHECKPOINT_BYTES} are possible", value.len()));
            }
            Put::Meta { key, value } if value.len() > META_BYTES => {
                return bad(format!("value \"{key}\" has {} bytes, at most {META_BYTES} are possible", value.len()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tern_core::entry::Entry;
    use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place, UserId};

    use super::*;

    const ORIGIN: Origin = Origin { region: 1, era: 9 };

    fn entry(seq: Seq, length: usize) -> Arc<Entry> {
        let body = Bytes::from(vec![b'x'; length]);
        Arc::new(Entry::text(
            Place { hlc: seq << 16, origin: ORIGIN, seq },
            Identity { user: UserId::new("alice").unwrap(), install: InstallId::new("phone").unwrap(), n: seq },
            body,
        ))
    }

    #[test]
    fn a_batch_is_split_where_the_tail_is_full_and_its_chain_goes_on() {
        let lengths = [100, 65_536, 65_536, 65_536, 65_536, 65_536, 10];
        let entries: Vec<_> = (1..).zip(lengths).map(|(seq, length)| entry(seq, length)).collect();
        let batch = Append { conversation: ConvId([1; 16]), origin: ORIGIN, epoch: 1, entries, todo: Vec::new() };
        let parts = parts(&batch, 0, Chain::default());
        let shape: Vec<_> = parts.iter().map(|part| (part.first, part.values.len(), part.log.head)).collect();
        assert_eq!(shape, [(1, 4, 4), (5, 3, 7)]);
        assert!(parts.iter().all(|part| part.values.iter().map(Bytes::len).sum::<usize>() <= PENDING_BYTES));
        let whole = {
            let (mut value, mut link) = (Vec::new(), Chain::default());
            for entry in &batch.entries {
                link = format::encode_entry(&mut value, &link, entry);
            }
            link
        };
        assert_eq!(parts[1].log.chain, whole);
        assert_eq!(parts[1].log.hlc, 7 << 16);
    }
}
