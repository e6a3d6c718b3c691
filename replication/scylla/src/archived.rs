//! What of the timeline is in the archive, and what of it was erased: two tables beside it, in all datacenters.
//!
//! `archived`: the marks of the runs of each log, by the number of their first entry. `erased`: places whose bodies were
//! erased, by whoever erased them, and never removed: whoever holds an object, a copy or a late insertion of the body is
//! told by it.
//!
//! **Marks** are written at EACH_QUORUM before what they mark is removed, so a read in any datacenter sees them when it
//! does not find the entries any more. A read that asked for marks before, and finds entries missing, asks again before it
//! calls the log damaged. Time-stamps of marks order the owners of a conversation as those of todo rows do, so of two that
//! write the same mark the later owner's stays. Two owners who met may have cut a bucket differently, so runs may
//! overlap; each is whole, so that does not matter.
//!
//! **The index of erased places** is written before a body is replaced in the timeline. So a pass that removes the row
//! in that moment loses nothing: reads look into the index of every run that they read, and a later pass finds that it
//! has more places than the object has erased.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tern_core::ids::{Identity, Seq};
use tern_core::store::{Range, StoreError};
use tern_replication::store::archive::seam::{Found, Marked, Part, Seam, is_full, split};
use tern_replication::store::format::{
    ArchiveMark, Chain, FormatError, LogId, decode_mark, encode_erased, encode_mark,
};

use crate::requests::Requests;
use crate::store::ScyllaStore;
use crate::tails::key;
use crate::timeline::{bucket, damaged};

/// Of a place in the index: it never changes.
const ERASED_STAMP: i64 = 1;

pub(crate) struct Archived {
    requests: Arc<Requests>,
}

fn malformed(error: FormatError) -> StoreError {
    StoreError::Backend(error.to_string())
}

fn marked(first: i64, mark: Option<Vec<u8>>) -> Result<Marked, StoreError> {
    Ok((first.cast_unsigned(), decode_mark(&mark.unwrap_or_default()).map_err(malformed)?))
}

impl Archived {
    pub(crate) fn new(requests: Arc<Requests>) -> Self {
        Self { requests }
    }

    /// The last run of a log.
    pub(crate) async fn last(&self, log: LogId) -> Result<Option<Marked>, StoreError> {
        self.at(log, i64::MAX.cast_unsigned()).await
    }

    /// The run with this entry, or the last one below it.
    pub(crate) async fn at(&self, log: LogId, seq: Seq) -> Result<Option<Marked>, StoreError> {
        Ok(self.stamped(log, seq).await?.map(|(marked, _)| marked))
    }

    /// The same with the time-stamp of its mark.
    pub(crate) async fn stamped(&self, log: LogId, seq: Seq) -> Result<Option<(Marked, i64)>, StoreError> {
        let (conversation, region, era) = key(log);
        type Row = (i64, Option<Vec<u8>>, Option<i64>);
        let values = (conversation, region, era, seq.cast_signed());
        let row: Option<Row> = self.requests.row(&self.requests.statements().mark_at, values).await?;
        row.map(|(first, mark, stamp)| Ok((marked(first, mark)?, stamp.unwrap_or(0)))).transpose()
    }

    /// All runs of a log, in order.
    pub(crate) async fn all(&self, log: LogId) -> Result<Vec<Marked>, StoreError> {
        let rows: Vec<(i64, Option<Vec<u8>>)> = self.requests.rows(&self.requests.statements().marks, key(log)).await?;
        rows.into_iter().rev().map(|(first, mark)| marked(first, mark)).collect()
    }

    /// Whether anything is in the archive, of any log.
    pub(crate) async fn is_any(&self) -> Result<bool, StoreError> {
        let row: Option<(i64,)> = self.requests.row(&self.requests.statements().marks_any, ()).await?;
        Ok(row.is_some())
    }

    /// Writes a mark in every datacenter.
    pub(crate) async fn put(&self, log: LogId, first: Seq, mark: &ArchiveMark, stamp: i64) -> Result<(), StoreError> {
        let (conversation, region, era) = key(log);
        let mut value = Vec::new();
        encode_mark(&mut value, mark);
        let values = (conversation, region, era, first.cast_signed(), value, stamp);
        self.requests.write(&self.requests.statements().mark_put, values).await
    }

    /// Notes that a body was erased.
    pub(crate) async fn note_erased(&self, log: LogId, seq: Seq, by: &Identity) -> Result<(), StoreError> {
        let (conversation, region, era) = key(log);
        let mut value = Vec::new();
        encode_erased(&mut value, by);
        let values = (conversation, region, era, bucket(seq), seq.cast_signed(), value, ERASED_STAMP);
        self.requests.write(&self.requests.statements().erased_put, values).await
    }

    /// Erased places of a run.
    pub(crate) async fn erased_in(&self, log: LogId, first: Seq, last: Seq) -> Result<BTreeSet<Seq>, StoreError> {
        let (conversation, region, era) = key(log);
        let values = (&conversation[..], region, era, bucket(first), first.cast_signed(), last.cast_signed());
        let rows: Vec<(i64,)> = self.requests.rows(&self.requests.statements().erased_in, values).await?;
        Ok(rows.into_iter().map(|(seq,)| seq.cast_unsigned()).collect())
    }
}

/// A log as one read sees it.
pub(crate) struct Limit<'a> {
    pub(crate) store: &'a ScyllaStore,
    pub(crate) log: LogId,
    pub(crate) head: Seq,
    /// What may not be in the timeline yet.
    pub(crate) batch: BTreeMap<Seq, Bytes>,
}

impl Limit<'_> {
    async fn read(&self, range: &Range) -> Result<Part, StoreError> {
        let range = Range { to: range.to.min(self.head), ..*range };
        let archived = &self.store.archived;
        let mut last = archived.last(self.log).await?;
        loop {
            let below = last.map_or((0, Chain::default()), |(_, mark)| (mark.last, mark.chain));
            let split = split(&range, below.0);
            let entries = match &split.table {
                Some(range) => self.store.timeline.range(range, self.head, &self.batch, below).await,
                None => Ok(Vec::new()),
            };
            let part = match (entries, split.then) {
                (Ok(entries), Some(seq)) if !is_full(&range, &entries) => {
                    self.run(seq).await.map(|run| Part { entries, then: Some(run) })
                }
                (Ok(entries), _) => Ok(Part { entries, then: None }),
                (Err(error), _) => Err(error),
            };
            let Err(error @ StoreError::Damaged { .. }) = part else { return part };
            // It may have moved meanwhile.
            let now = archived.last(self.log).await?;
            if now == last {
                self.store.note_damage(&error);
                return Err(error);
            }
            last = now;
        }
    }

    /// The run with an entry, and what is erased in it.
    async fn run(&self, seq: Seq) -> Result<(Marked, BTreeSet<Seq>), StoreError> {
        let marked = self.store.archived.at(self.log, seq).await?.filter(|(_, mark)| mark.last >= seq);
        let Some((first, mark)) = marked else {
            return Err(damaged(self.log, format!("entry {seq} is neither here nor in the archive")));
        };
        Ok(((first, mark), self.store.archived.erased_in(self.log, first, mark.last).await?))
    }
}

impl Seam for Limit<'_> {
    fn part(&self, range: &Range) -> impl Future<Output = Result<Part, StoreError>> + Send {
        let range = *range;
        async move { self.read(&range).await }
    }

    fn mark_now(&self, log: LogId, seq: Seq) -> impl Future<Output = Result<Option<Marked>, StoreError>> + Send {
        self.store.archived.at(log, seq)
    }

    /// Who reads does not own the mark, and the tierer's next pass moves it.
    fn found_again(&self, _found: Found) {}
}
