//! Which entries are in the archive, and what reading over its limit needs of the tables.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fjall::{Readable, Snapshot};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Origin, Seq};
use tern_core::store::{Range, StoreError};

use super::super::super::archive::Archive;
use super::super::super::archive::seam::{self, Found, Marked, Part, Seam, is_full, split};
use super::super::super::format::{
    FormatError, LogId, archive_key, decode_mark, entry_key, parse_archive_key, parse_entry_key,
};
use super::super::tables::{Head, Tables, backend, malformed};

impl Tables {
    /// The last run of a log that is in the archive.
    pub(in super::super) fn last_mark(&self, snapshot: &Snapshot, log: LogId) -> Result<Option<Marked>, StoreError> {
        self.mark_at(snapshot, log, u64::MAX)
    }

    /// The run with this entry, or the last one below it.
    pub(in super::super) fn mark_at(
        &self,
        snapshot: &Snapshot,
        log: LogId,
        seq: Seq,
    ) -> Result<Option<Marked>, StoreError> {
        if !self.has_marks.load(Ordering::Acquire) {
            return Ok(None);
        }
        let marks = archive_key(log, 0)..=archive_key(log, seq);
        let Some(row) = snapshot.range(&self.state, marks).next_back() else { return Ok(None) };
        let (key, value) = row.into_inner().map_err(backend)?;
        mark_of(&key, &value).map(|(_, marked)| Some(marked))
    }

    /// Up to where a log is in the archive; 0: not at all.
    pub(in super::super) fn archived_to(&self, snapshot: &Snapshot, log: LogId) -> Result<Seq, StoreError> {
        Ok(self.last_mark(snapshot, log)?.map_or(0, |(_, mark)| mark.last))
    }

    /// The head of a log whose entries are all in the archive.
    pub(in super::super) fn archived_head(&self, snapshot: &Snapshot, log: LogId) -> Result<Option<Head>, StoreError> {
        let last = self.last_mark(snapshot, log)?;
        Ok(last.map(|(_, mark)| Head { seq: mark.last, chain: mark.chain, erased_to: 0 }))
    }

    /// Head and hlc of each log of a conversation as its marks tell them, for logs of which the table has nothing.
    pub(in super::super) fn archived_heads(
        &self,
        snapshot: &Snapshot,
        conversation: ConvId,
    ) -> Result<Vec<(Origin, Seq, u64)>, StoreError> {
        let mut found = Vec::new();
        if !self.has_marks.load(Ordering::Acquire) {
            return Ok(found);
        }
        let first = LogId { conversation, origin: Origin { region: 0, era: 0 } };
        let last = LogId { conversation, origin: Origin { region: u8::MAX, era: u64::MAX } };
        let start = archive_key(first, 0);
        let mut end = archive_key(last, u64::MAX);
        // From the last log to the first: one seek each.
        while let Some(row) = snapshot.range(&self.state, &start[..]..=&end[..]).next_back() {
            let (key, value) = row.into_inner().map_err(backend)?;
            let (log, (_, mark)) = mark_of(&key, &value)?;
            found.push((log.origin, mark.last, mark.hlc));
            end = archive_key(log, 0);
        }
        Ok(found)
    }

    /// Adds what only the archive has to a conversation's heads.
    pub(in super::super) fn add_archived(
        &self,
        snapshot: &Snapshot,
        conversation: ConvId,
        heads: &mut Heads,
        is_refused: impl Fn(&Origin) -> bool,
    ) -> Result<u64, StoreError> {
        let mut highest = 0;
        for (origin, seq, hlc) in self.archived_heads(snapshot, conversation)? {
            if !is_refused(&origin) {
                let head = heads.entry(origin).or_insert(seq);
                *head = (*head).max(seq);
            }
            highest = highest.max(hlc);
        }
        Ok(highest)
    }

    /// The first conversation from `start` on of which a run is in the archive.
    pub(in super::super) fn archived_conversation(
        &self,
        snapshot: &Snapshot,
        start: ConvId,
    ) -> Result<Option<ConvId>, StoreError> {
        if !self.has_marks.load(Ordering::Acquire) {
            return Ok(None);
        }
        let from = archive_key(LogId { conversation: start, origin: Origin { region: 0, era: 0 } }, 0);
        let Some(row) = snapshot.range(&self.state, &from[..]..&b"b"[..]).next() else { return Ok(None) };
        let key = row.key().map_err(backend)?;
        Ok(Some(parse_archive_key(&key).ok_or(BAD_KEY).map_err(malformed)?.0.conversation))
    }

    /// Erased places of a run.
    pub(in super::super) fn erased_in(
        &self,
        snapshot: &Snapshot,
        log: LogId,
        first: Seq,
        last: Seq,
    ) -> Result<BTreeSet<Seq>, StoreError> {
        let mut erased = BTreeSet::new();
        for row in snapshot.range(&self.erased, entry_key(log, first)..=entry_key(log, last)) {
            erased.extend(parse_entry_key(&row.key().map_err(backend)?).map(|(_, seq)| seq));
        }
        Ok(erased)
    }

    /// A part of a range: what the table has of it, or the run of the archive that comes first.
    pub(in super::super) fn part(&self, range: &Range) -> Result<Part, StoreError> {
        let log = LogId { conversation: range.conversation, origin: range.origin };
        let snapshot = self.db.snapshot();
        let archived_to = self.archived_to(&snapshot, log)?;
        let split = split(range, archived_to);
        if split.then.is_some()
            && let Some(what) = self.refused(log)
        {
            return Err(self.damaged(log, what));
        }
        let entries = match &split.table {
            Some(range) => self.range(&snapshot, range)?,
            None => Vec::new(),
        };
        let Some(seq) = split.then.filter(|_| !is_full(range, &entries)) else {
            return Ok(Part { entries, then: None });
        };
        let Some(marked) = self.mark_at(&snapshot, log, seq)?.filter(|(_, mark)| mark.last >= seq) else {
            return Err(self.damaged(log, format!("entry {seq} is neither here nor in the archive")));
        };
        let erased = self.erased_in(&snapshot, log, marked.0, marked.1.last)?;
        Ok(Part { entries, then: Some((marked, erased)) })
    }

    pub(in super::super) fn damaged(&self, log: LogId, what: String) -> StoreError {
        StoreError::Damaged { conversation: log.conversation, origin: log.origin, what }
    }
}

const BAD_KEY: FormatError = FormatError::Malformed("key of an archived run");

/// Reads a mark and its key.
pub(in super::super) fn mark_of(key: &[u8], value: &[u8]) -> Result<(LogId, Marked), StoreError> {
    let (log, first) = parse_archive_key(key).ok_or(BAD_KEY).map_err(malformed)?;
    Ok((log, (first, decode_mark(value).map_err(malformed)?)))
}

struct Limit<'a, F>(&'a Tables, F);

impl<F: Fn(Found) + Sync> Seam for Limit<'_, F> {
    fn part(&self, range: &Range) -> impl Future<Output = Result<Part, StoreError>> + Send {
        ready(self.0.part(range))
    }

    fn mark_now(&self, log: LogId, seq: Seq) -> impl Future<Output = Result<Option<Marked>, StoreError>> + Send {
        ready(self.0.mark_at(&self.0.db.snapshot(), log, seq))
    }

    fn found_again(&self, found: Found) {
        self.1(found);
    }
}

/// Reads a range over the limit between the table and the archive. `found_again` is told of an object that was replaced.
pub(in super::super) async fn range(
    tables: &Tables,
    archive: Option<&Archive>,
    store: Option<[u8; 16]>,
    range: &Range,
    found_again: impl Fn(Found) + Sync,
) -> Result<Vec<Arc<Entry>>, StoreError> {
    seam::range(&Limit(tables, found_again), archive, store, range).await
}
