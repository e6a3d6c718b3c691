//! The timeline: entries, immutable, one blob each, in partitions of 4,096.
//!
//! Whoever writes an entry writes the same bytes, so writers need not know of each other. Time-stamps are not times:
//! every whole entry has 1 and every erased one 2. So an insertion that is repeated, by a takeover or by another
//! region, never brings back a body that was erased (R16), whatever clocks say.
//!
//! Each blob has a link of the log's checksum chain (`tern_replication::store::format`). A range is served only if
//! each entry's link follows from the entry before, which is read along, and each body is the one that its header
//! names. What does not verify, or is missing below the head, makes the log refused.
//!
//! Entries that are in the archive are removed with time-stamp 3, so that a region that inserts them late does not bring
//! them back for as long as the database remembers the removal. What stands there all the same is not read (`archived`).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use scylla::response::PagingState;
use tern_core::entry::Entry;
use tern_core::ids::Seq;
use tern_core::store::{Range, StoreError};
pub(crate) use tern_replication::store::archive::reads::damaged;
use tern_replication::store::format::{Chain, LogId, link_of, split_entry};
use tern_replication::store::limits::ARCHIVE_OBJECT_BYTES;

use crate::limits::BUCKET_BITS;
use crate::requests::{Requests, odd};
use crate::tails::key;

/// Of a whole entry.
const WHOLE: i64 = 1;
/// Of an erased one: it always wins.
const ERASED: i64 = 2;
/// Of the removal of what is in the archive.
const REMOVED: i64 = 3;

pub(crate) struct Timeline {
    requests: Arc<Requests>,
}

/// The partition that an entry is in.
pub(crate) fn bucket(seq: Seq) -> i64 {
    (seq >> BUCKET_BITS).cast_signed()
}

/// An entry as it was read: its link, its stored form, and what that says.
struct Read {
    seq: Seq,
    chain: Chain,
    stored: Bytes,
    entry: Arc<Entry>,
}

/// Reads a blob: it must be the entry that its key names, with the body that its header names.
fn decode(log: LogId, seq: Seq, value: &Bytes) -> Result<Read, String> {
    let (chain, stored) = split_entry(value).map_err(|error| format!("entry {seq}: {error}"))?;
    let stored = value.slice_ref(stored);
    let entry = Entry::decode(stored.clone()).map_err(|error| format!("entry {seq}: {error}"))?;
    if entry.place.origin != log.origin || entry.place.seq != seq {
        return Err(format!("entry {seq}: it says that it is entry {} of {}", entry.place.seq, entry.place.origin));
    }
    Ok(Read { seq, chain, stored, entry: Arc::new(entry) })
}

/// A blob as link and entry.
pub(crate) fn read(log: LogId, seq: Seq, value: &Bytes) -> Result<(Chain, Arc<Entry>), StoreError> {
    let read = decode(log, seq, value).map_err(|what| damaged(log, what))?;
    Ok((read.chain, read.entry))
}

/// Whether a blob is of an entry whose body was erased.
fn is_erased(value: &Bytes) -> bool {
    split_entry(value).is_ok_and(|(_, stored)| {
        Entry::decode_unchecked(Bytes::copy_from_slice(stored)).is_ok_and(|entry| entry.erased)
    })
}

impl Timeline {
    pub(crate) fn new(requests: Arc<Requests>) -> Self {
        Self { requests }
    }

    /// Inserts blobs; they may be there already.
    pub(crate) async fn insert(&self, log: LogId, values: &[(Seq, Bytes)]) -> Result<(), StoreError> {
        let (conversation, region, era) = key(log);
        let statement = &self.requests.statements().entry_put;
        let inserts = values.iter().map(|(seq, value)| {
            let stamp = if is_erased(value) { ERASED } else { WHOLE };
            let values = (&conversation[..], region, era, bucket(*seq), seq.cast_signed(), &value[..], stamp);
            self.requests.write(statement, values)
        });
        try_join_all(inserts).await.map(|_| ())
    }

    /// One blob.
    pub(crate) async fn value(&self, log: LogId, seq: Seq) -> Result<Option<Bytes>, StoreError> {
        let (conversation, region, era) = key(log);
        let values = (conversation, region, era, bucket(seq), seq.cast_signed());
        let row: Option<(Option<Vec<u8>>,)> = self.requests.row(&self.requests.statements().entry, values).await?;
        Ok(row.and_then(|(value,)| value).map(Bytes::from))
    }

    /// One entry, if it is there.
    pub(crate) async fn entry(&self, log: LogId, seq: Seq) -> Result<Option<(Chain, Arc<Entry>)>, StoreError> {
        let Some(value) = self.value(log, seq).await? else { return Ok(None) };
        read(log, seq, &value).map(Some)
    }

    /// Values from `from` on, to `to` or until they fill an object of the archive. All of one bucket.
    pub(crate) async fn values(&self, log: LogId, from: Seq, to: Seq) -> Result<Vec<Bytes>, StoreError> {
        let (conversation, region, era) = key(log);
        let values = (&conversation[..], region, era, bucket(from), from.cast_signed(), to.cast_signed(), i32::MAX);
        let (mut found, mut bytes, mut page) = (Vec::new(), 0, Some(PagingState::start()));
        while let Some(at) = page {
            let (rows, next) = self.requests.page(&self.requests.statements().entries_up, values, at).await?;
            for row in rows.rows::<(i64, Option<Vec<u8>>)>().map_err(odd)? {
                let value = Bytes::from(row.map_err(odd)?.1.unwrap_or_default());
                bytes += value.len() + 4;
                found.push(value);
                if bytes >= ARCHIVE_OBJECT_BYTES {
                    return Ok(found);
                }
            }
            page = next;
        }
        Ok(found)
    }

    /// Whether anything stands in a part of a bucket.
    pub(crate) async fn is_left(&self, log: LogId, from: Seq, to: Seq) -> Result<bool, StoreError> {
        let (conversation, region, era) = key(log);
        let values = (conversation, region, era, bucket(from), from.cast_signed(), to.cast_signed());
        let row: Option<(i64,)> = self.requests.row(&self.requests.statements().entries_left, values).await?;
        Ok(row.is_some())
    }

    /// Removes a part of a bucket, in every datacenter.
    pub(crate) async fn remove(&self, log: LogId, from: Seq, to: Seq) -> Result<(), StoreError> {
        let (conversation, region, era) = key(log);
        let values = (REMOVED, conversation, region, era, bucket(from), from.cast_signed(), to.cast_signed());
        self.requests.write(&self.requests.statements().entries_remove, values).await
    }

    /// Removes one entry that is in the archive, if it stands here or comes late.
    pub(crate) async fn remove_one(&self, log: LogId, seq: Seq) -> Result<(), StoreError> {
        let (conversation, region, era) = key(log);
        let values = (REMOVED, conversation, region, era, bucket(seq), seq.cast_signed());
        self.requests.write(&self.requests.statements().entry_remove, values).await
    }

    /// A range up to `head`. `batch`: what may not be in the timeline yet. `below`: an entry that is not here, and its
    /// link, from which the next one must follow.
    pub(crate) async fn range(
        &self,
        range: &Range,
        head: Seq,
        batch: &BTreeMap<Seq, Bytes>,
        below: (Seq, Chain),
    ) -> Result<Vec<Arc<Entry>>, StoreError> {
        let log = LogId { conversation: range.conversation, origin: range.origin };
        let (low, high) = (range.from.max(1), range.to.min(head));
        if low > high || range.max_entries == 0 {
            return Ok(Vec::new());
        }
        let mut walk = Walk { log, batch, low, high, backwards: range.backwards, range, found: Vec::new(), bytes: 0 };
        let mut at = if range.backwards { bucket(high) } else { bucket(low) };
        let end = if range.backwards { bucket(low) } else { bucket(high) };
        let mut on = self.bucket(&mut walk, at).await?;
        while on && at != end {
            at += if range.backwards { -1 } else { 1 };
            on = self.bucket(&mut walk, at).await?;
        }
        if on {
            walk.fill(None).map_err(|what| damaged(log, what))?;
        }
        let mut found = walk.found;
        let lowest = if range.backwards { found.last() } else { found.first() };
        let before = match lowest.map(|read| read.seq) {
            None => Chain::default(),
            Some(seq) if seq == below.0 + 1 => below.1,
            Some(seq) => self.link(log, seq - 1, batch).await?,
        };
        if range.backwards {
            found.reverse();
        }
        let mut previous = before;
        let mut scratch = Vec::new();
        for read in &found {
            if link_of(&mut scratch, &previous, &read.stored, read.entry.body.len()) != Some(read.chain) {
                let what = format!("entry {}: its checksum does not follow from the entry before", read.seq);
                return Err(damaged(log, what));
            }
            previous = read.chain;
        }
        if range.backwards {
            found.reverse();
        }
        Ok(found.into_iter().map(|read| read.entry).collect())
    }

    /// Takes the entries of a bucket. Whether more may be taken.
    async fn bucket(&self, walk: &mut Walk<'_>, bucket: i64) -> Result<bool, StoreError> {
        let (conversation, region, era) = key(walk.log);
        let statements = self.requests.statements();
        let statement = if walk.backwards { &statements.entries_down } else { &statements.entries_up };
        let left = walk.range.max_entries - walk.found.len();
        let limit = i32::try_from(left).unwrap_or(i32::MAX);
        let (low, high) = (walk.low.cast_signed(), walk.high.cast_signed());
        let values = (&conversation[..], region, era, bucket, low, high, limit);
        let mut page = Some(PagingState::start());
        while let Some(from) = page {
            let (rows, next) = self.requests.page(statement, values, from).await?;
            for row in rows.rows::<(i64, Option<Vec<u8>>)>().map_err(odd)? {
                let (seq, value) = row.map_err(odd)?;
                let value = Bytes::from(value.unwrap_or_default());
                let more = walk.fill(Some((seq.cast_unsigned(), value))).map_err(|what| damaged(walk.log, what))?;
                if !more {
                    return Ok(false);
                }
            }
            page = next;
        }
        Ok(true)
    }

    /// The link of an entry that is below those that are asked for.
    async fn link(&self, log: LogId, seq: Seq, batch: &BTreeMap<Seq, Bytes>) -> Result<Chain, StoreError> {
        let value = match batch.get(&seq) {
            Some(value) => value.clone(),
            None => {
                let value = self.value(log, seq).await?;
                value.ok_or_else(|| damaged(log, format!("entry {seq} is missing")))?
            }
        };
        split_entry(&value).map(|(link, _)| link).map_err(|error| damaged(log, format!("entry {seq}: {error}")))
    }
}

/// The walk through a range.
struct Walk<'a> {
    log: LogId,
    batch: &'a BTreeMap<Seq, Bytes>,
    low: Seq,
    high: Seq,
    backwards: bool,
    range: &'a Range,
    found: Vec<Read>,
    bytes: usize,
}

impl Walk<'_> {
    /// The seq that comes next; `None`: the range is done.
    fn next(&self) -> Option<Seq> {
        let taken = self.found.len() as u64;
        let next = if self.backwards { self.high.checked_sub(taken)? } else { self.low + taken };
        (self.low..=self.high).contains(&next).then_some(next)
    }

    /// Takes what stands before `row` in the batch alone, then `row`; all the rest if there is none. Whether more may
    /// be taken.
    fn fill(&mut self, row: Option<(Seq, Bytes)>) -> Result<bool, String> {
        while let Some(next) = self.next() {
            let row = row.as_ref().filter(|(seq, _)| *seq == next);
            let value = match (row, self.batch.get(&next)) {
                // An erasure reaches the timeline first.
                (Some((_, stored)), Some(pending)) => {
                    if is_erased(pending) {
                        pending
                    } else {
                        stored
                    }
                }
                (Some((_, stored)), None) => stored,
                (None, Some(pending)) => pending,
                (None, None) => return Err(format!("entry {next} is missing")),
            };
            let read = decode(self.log, next, value)?;
            self.bytes += read.stored.len();
            self.found.push(read);
            if self.found.len() >= self.range.max_entries || self.bytes >= self.range.max_bytes {
                return Ok(false);
            }
            if row.is_some() {
                break;
            }
        }
        Ok(self.next().is_some())
    }
}
