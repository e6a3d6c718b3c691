//! Which entries are in the archive, and reading them as if they were not.
//!
//! The marks of a log cover it from entry 1 to some place without gaps; up to there the archive has the entries, above
//! it the table. What still stands in the table below that place is not read: it waits to be removed.
//!
//! The index of erased places counts for what is archived, at once: a body that is still in an object is not given to
//! anybody, and the next pass writes the object without it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fjall::{Readable, Snapshot};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Origin, Seq};
use tern_core::store::{Range, StoreError};

use super::super::super::archive::reads::not_configured;
use super::super::super::archive::{Archive, ArchiveError};
use super::super::super::format::{
    ArchiveMark, FormatError, LogId, archive_key, decode_mark, entry_key, parse_archive_key, parse_entry_key,
};
use super::super::tables::{Head, Tables, backend, malformed};

/// A run in the archive: the number of its first entry, and its mark.
pub(in super::super) type Marked = (Seq, ArchiveMark);

/// What a read has found in the tables, and where it goes on.
pub(in super::super) struct Part {
    pub entries: Vec<Arc<Entry>>,
    /// A run of the archive that holds what comes next, and places in it that are erased.
    pub then: Option<(Marked, BTreeSet<Seq>)>,
}

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
        let (from, archived_to) = (range.from.max(1), self.archived_to(&snapshot, log)?);
        let archived = |seq: Seq| -> Result<Option<(Marked, BTreeSet<Seq>)>, StoreError> {
            let Some(marked) = self.mark_at(&snapshot, log, seq)?.filter(|(_, mark)| mark.last >= seq) else {
                return Err(self.damaged(log, format!("entry {seq} is neither here nor in the archive")));
            };
            let erased = self.erased_in(&snapshot, log, marked.0, marked.1.last)?;
            Ok(Some((marked, erased)))
        };
        if from > archived_to || from > range.to || range.max_entries == 0 {
            return Ok(Part { entries: self.range(&snapshot, range)?, then: None });
        }
        if let Some(what) = self.refused(log) {
            return Err(self.damaged(log, what));
        }
        if !range.backwards || range.to <= archived_to {
            let next = if range.backwards { range.to } else { from };
            return Ok(Part { entries: Vec::new(), then: archived(next)? });
        }
        let entries = self.range(&snapshot, &Range { from: archived_to + 1, ..*range })?;
        let full = entries.len() >= range.max_entries || bytes_of(&entries) >= range.max_bytes;
        Ok(Part { entries, then: if full { None } else { archived(archived_to)? } })
    }

    pub(in super::super) fn damaged(&self, log: LogId, what: String) -> StoreError {
        StoreError::Damaged { conversation: log.conversation, origin: log.origin, what }
    }
}

const BAD_KEY: FormatError = FormatError::Malformed("key of an archived run");

fn bytes_of(entries: &[Arc<Entry>]) -> usize {
    entries.iter().map(|entry| entry.encoded_len()).sum()
}

/// Reads a mark and its key.
pub(in super::super) fn mark_of(key: &[u8], value: &[u8]) -> Result<(LogId, Marked), StoreError> {
    let (log, first) = parse_archive_key(key).ok_or(BAD_KEY).map_err(malformed)?;
    Ok((log, (first, decode_mark(value).map_err(malformed)?)))
}

/// A run whose mark was replaced: who asked for it writes the new mark.
pub(in super::super) struct Found {
    pub log: LogId,
    pub first: Seq,
    pub old: ArchiveMark,
    pub new: ArchiveMark,
}

/// Reads a range over the limit between the table and the archive. `found_again` is told of an object that was replaced.
pub(in super::super) async fn range(
    tables: &Tables,
    archive: Option<&Archive>,
    store: [u8; 16],
    range: &Range,
    found_again: impl Fn(Found),
) -> Result<Vec<Arc<Entry>>, StoreError> {
    let log = LogId { conversation: range.conversation, origin: range.origin };
    let (mut left, mut found, mut bytes) = (*range, Vec::new(), 0);
    loop {
        let part = tables.part(&left)?;
        bytes += bytes_of(&part.entries);
        found.extend(part.entries);
        let Some(((first, mark), erased)) = part.then else { return Ok(found) };
        if left.backwards {
            // The table had what is above.
            left.to = left.to.min(mark.last);
        }
        let run = match run(tables, archive, store, log, (first, mark), &found_again).await {
            Ok(Some(run)) => run,
            // The mark was replaced while its object was asked for.
            Ok(None) => continue,
            // What was found is told; whoever asks for the rest is told why it can't be had.
            Err(_) if !found.is_empty() => return Ok(found),
            Err(error) => return Err(error),
        };
        let (low, high) = (left.from.max(first), left.to.min(mark.last));
        let mut take = |seq: Seq| -> Result<bool, StoreError> {
            let entry = run.entry(seq).ok_or_else(|| tables.damaged(log, format!("entry {seq} is missing")))?;
            let entry = if erased.contains(&seq) && !entry.erased { entry.to_erased() } else { entry };
            bytes += entry.encoded_len();
            found.push(Arc::new(entry));
            Ok(found.len() < range.max_entries && bytes < range.max_bytes)
        };
        for at in 0..=high - low {
            if !take(if left.backwards { high - at } else { low + at })? {
                return Ok(found);
            }
        }
        let ended = if left.backwards {
            left.to = first - 1;
            left.to < left.from.max(1)
        } else {
            left.from = mark.last + 1;
            left.from > left.to
        };
        if ended {
            return Ok(found);
        }
        left.max_entries = range.max_entries - found.len();
        left.max_bytes = range.max_bytes - bytes;
    }
}

/// The run that a mark names, or one that has taken its place. `None`: the mark is another one by now.
async fn run(
    tables: &Tables,
    archive: Option<&Archive>,
    store: [u8; 16],
    log: LogId,
    (first, mark): Marked,
    found_again: impl Fn(Found),
) -> Result<Option<Arc<super::super::super::archive::Run>>, StoreError> {
    let archive = archive.ok_or_else(|| not_configured(log))?;
    let error = match archive.run(log, first, &mark).await {
        Ok(run) => return Ok(Some(run)),
        Err(error) => error,
    };
    let now = tables.mark_at(&tables.db.snapshot(), log, first)?;
    if now.is_some_and(|(_, now)| now != mark) {
        return Ok(None);
    }
    if !matches!(error, ArchiveError::Missing(_)) {
        return Err(error.of(log));
    }
    match archive.find_again(log, first, &mark, store).await {
        Ok(Some((run, new))) => {
            found_again(Found { log, first, old: mark, new });
            Ok(Some(Arc::new(run)))
        }
        Ok(None) => Err(error.of(log)),
        Err(other) => Err(other.of(log)),
    }
}
