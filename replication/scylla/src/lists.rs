//! Lists: what a region reads of everything it holds.
//!
//! A partition must not grow with the number of conversations, and none can be read in the order of ids from a table
//! whose key they are. So conversations are listed in 4,096 buckets by the first 12 bits of their id, which are those
//! of a hash; a bucket that has any is in a list of its own, so that an empty region asks 1 partition and not 4,096.
//! A conversation is listed before its first entry is decided; one without entries is left out when it is read.
//! Users are listed in the order of the database's tokens. Todo rows lie by slot, and are read in ranges of tokens.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use futures_util::{StreamExt, TryStreamExt, stream};
use tern_core::ids::{ConvId, Heads, UserId};
use tern_core::node::refill;
use tern_core::slots::Share;
use tern_core::store::{ConversationHeads, RowRecord, StoreError, Target, Todo, UserMarks};
use tern_replication::store::format::{decode_row, decode_todo};

use crate::limits::{RANGES_AT_ONCE, TODO_RANGES};
use crate::requests::odd;
use crate::store::ScyllaStore;

/// Reads of tails or rows for one page that are under way at once.
const READS_AT_ONCE: usize = 64;

fn bucket(conversation: ConvId) -> i32 {
    i32::from(u16::from_be_bytes([conversation.0[0], conversation.0[1]]) >> 4)
}

/// Slot and target of a todo row.
pub(crate) fn todo_key(todo: &Todo) -> (i32, i16) {
    let target = match todo.target {
        Target::Fanout => 0,
        Target::Peer(region) => i16::from(region),
    };
    (i32::try_from(refill::slot(todo.conversation)).unwrap_or(0), target)
}

/// The ranges of tokens in which a table is read: together all of them, none twice.
fn ranges(count: i64) -> Vec<(i64, i64)> {
    let step = (i128::from(i64::MAX) - i128::from(i64::MIN)) / i128::from(count);
    let bound = |n: i64| {
        let at = i128::from(i64::MIN) + step * i128::from(n);
        if n == count { i64::MAX } else { i64::try_from(at).unwrap_or(i64::MAX) }
    };
    (0..count).map(|n| (bound(n), bound(n + 1))).collect()
}

impl ScyllaStore {
    /// Notes that there is such a conversation, before it has entries.
    pub(crate) async fn note_conversation(&self, conversation: ConvId) -> Result<(), StoreError> {
        let statements = self.requests.statements();
        let bucket = bucket(conversation);
        let known = self.buckets.lock().unwrap_or_else(PoisonError::into_inner).contains(&bucket);
        if !known {
            self.requests.write(&statements.bucket_add, (bucket,)).await?;
            self.buckets.lock().unwrap_or_else(PoisonError::into_inner).insert(bucket);
        }
        self.requests.write(&statements.conversation_add, (bucket, &conversation.0[..])).await
    }

    pub(crate) async fn list_conversations(
        &self,
        after: Option<ConvId>,
        limit: usize,
    ) -> Result<Vec<ConversationHeads>, StoreError> {
        let (mut found, mut after) = (Vec::new(), after);
        while found.len() < limit {
            let asked = limit - found.len();
            let ids = self.list_ids(after, asked).await?;
            let is_last = ids.len() < asked;
            after = ids.last().copied().or(after);
            let heads =
                ids.into_iter().map(|id| async move { Ok::<_, StoreError>((id, self.listed_heads(id).await?)) });
            let heads: Vec<(ConvId, Option<Heads>)> = stream::iter(heads).buffered(READS_AT_ONCE).try_collect().await?;
            found.extend(heads.into_iter().filter_map(|(id, heads)| Some((id, heads?))));
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    /// Conversations after `after` that were noted, at most `limit`; some may have no entries.
    pub(crate) async fn list_ids(&self, after: Option<ConvId>, limit: usize) -> Result<Vec<ConvId>, StoreError> {
        let statements = self.requests.statements();
        let mut found = Vec::new();
        // Below all ids, as it is shorter.
        let mut above: Vec<u8> = after.map(|id| id.0.to_vec()).unwrap_or_default();
        let from = after.map_or(0, bucket);
        let buckets: Vec<(i32,)> = self.requests.rows(&statements.buckets, (from,)).await?;
        for (bucket,) in buckets {
            if bucket != from {
                above.clear();
            }
            let asked = i32::try_from(limit - found.len()).unwrap_or(i32::MAX);
            let page: Vec<(Vec<u8>,)> =
                self.requests.rows(&statements.conversations, (bucket, above.clone(), asked)).await?;
            for (id,) in page {
                found.push(ConvId::from_slice(&id).ok_or_else(|| odd("an id that is none"))?);
            }
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    /// The heads of a conversation for a list; `None` if it has no entries.
    async fn listed_heads(&self, conversation: ConvId) -> Result<Option<Heads>, StoreError> {
        let tail = self.tails.glance(conversation).await?;
        let damaged = self.damage_of(conversation);
        let heads = tail.logs.iter().filter(|(origin, _)| !damaged.contains_key(origin));
        Ok((!tail.logs.is_empty()).then(|| heads.map(|(origin, log)| (*origin, log.head)).collect()))
    }

    pub(crate) async fn list_marks(&self, after: Option<UserId>, limit: usize) -> Result<Vec<UserMarks>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let statements = self.requests.statements();
        // Users whose token is that of `after` come before it or after it, by name; more than a few are not met.
        let asked = i32::try_from(limit).unwrap_or(i32::MAX - 8).min(i32::MAX - 8) + 8;
        let users: Vec<(String,)> = match &after {
            None => self.requests.rows(&statements.users_first, (asked,)).await?,
            Some(after) => self.requests.rows(&statements.users_from, (after.as_str(), asked)).await?,
        };
        let done = after.and_then(|after| users.iter().position(|(user,)| user == after.as_str()));
        let next = done.map_or(0, |at| at + 1);
        let users: Vec<UserId> =
            users.into_iter().skip(next).take(limit).filter_map(|(user,)| UserId::new(&user).ok()).collect();
        let marks = users.into_iter().map(|user| async move {
            let rows: Vec<(Vec<u8>, Option<Vec<u8>>)> = self.requests.rows(&statements.rows, (user.as_str(),)).await?;
            let marks = rows.into_iter().filter_map(|(id, state)| {
                let read = decode_row(&state?).ok()?.read;
                Some((ConvId::from_slice(&id)?, read)).filter(|(_, read)| !read.is_empty())
            });
            Ok::<_, StoreError>((user.clone(), marks.collect::<Vec<_>>()))
        });
        stream::iter(marks).buffered(READS_AT_ONCE).try_collect().await
    }

    pub(crate) async fn list_rows(&self, user: &UserId) -> Result<Vec<(ConvId, RowRecord)>, StoreError> {
        let rows: Vec<(Vec<u8>, Option<Vec<u8>>)> =
            self.requests.rows(&self.requests.statements().rows, (user.as_str(),)).await?;
        let mut found = Vec::with_capacity(rows.len());
        for (id, state) in rows {
            let id = ConvId::from_slice(&id).ok_or_else(|| odd("an id that is none"))?;
            let row = decode_row(&state.unwrap_or_default()).map_err(|error| StoreError::Backend(error.to_string()))?;
            self.remember_row(user, id, &row);
            found.push((id, row));
        }
        Ok(found)
    }

    /// Todo of one share: a partition for each slot, most of them empty, in one request.
    pub(crate) async fn list_todo_of(&self, share: Share) -> Result<Vec<Todo>, StoreError> {
        type Row = (i16, Vec<u8>, Option<Vec<u8>>);
        let statement = &self.requests.statements().todo_of;
        let slots: Vec<i32> = share.slots().map(|slot| i32::from(slot.number())).collect();
        let rows: Vec<Row> = self.requests.rows(statement, (slots,)).await?;
        rows.into_iter().filter_map(|row| todo_of(row).transpose()).collect()
    }

    pub(crate) async fn list_todo(&self) -> Result<Vec<Todo>, StoreError> {
        type Row = (i16, Vec<u8>, Option<Vec<u8>>);
        let statement = &self.requests.statements().todo_range;
        let parts = ranges(TODO_RANGES)
            .into_iter()
            .map(|range| async move { self.requests.rows::<Row>(statement, range).await });
        let parts: Vec<Vec<Row>> = stream::iter(parts).buffer_unordered(RANGES_AT_ONCE).try_collect().await?;
        let mut all = BTreeMap::new();
        for row in parts.into_iter().flatten() {
            if let Some(todo) = todo_of(row)? {
                all.insert((todo.target, todo.conversation), todo);
            }
        }
        Ok(all.into_values().collect())
    }
}

/// A row of the table; `None`: one that is being removed.
fn todo_of((target, id, value): (i16, Vec<u8>, Option<Vec<u8>>)) -> Result<Option<Todo>, StoreError> {
    let Some(value) = value else { return Ok(None) };
    let conversation = ConvId::from_slice(&id).ok_or_else(|| odd("an id that is none"))?;
    let target = match u8::try_from(target).map_err(odd)? {
        0 => Target::Fanout,
        region => Target::Peer(region),
    };
    let (prefix, user) = decode_todo(&value).map_err(|error| StoreError::Backend(error.to_string()))?;
    Ok(Some(Todo { target, conversation, prefix, user }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_token_once() {
        for count in [1, 3, 64] {
            let ranges = ranges(count);
            assert_eq!(ranges.len(), usize::try_from(count).unwrap());
            assert_eq!((ranges[0].0, ranges[ranges.len() - 1].1), (i64::MIN, i64::MAX));
            assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0 && pair[0].0 < pair[0].1));
        }
    }

    #[test]
    fn buckets_follow_the_order_of_ids() {
        assert_eq!(bucket(ConvId([0; 16])), 0);
        assert_eq!(bucket(ConvId([0xff; 16])), 4_095);
        let mut id = [0; 16];
        id[..2].copy_from_slice(&[0x12, 0x3f]);
        assert_eq!(bucket(ConvId(id)), 0x123);
    }
}
