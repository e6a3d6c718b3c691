//! Reading over the limit between a store's table and the archive, as if there were none.
//!
//! The marks of a log cover it from entry 1 to some place without gaps; up to there the archive has the entries, above
//! it the table. What still stands in the table below that place is not read: it waits to be removed.
//!
//! The index of erased places counts for what is archived, at once: a body that is still in an object is not given to
//! anybody, and the next pass writes the object without it.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use tern_core::entry::Entry;
use tern_core::ids::Seq;
use tern_core::store::{Range, StoreError};

use super::super::format::{ArchiveMark, LogId};
use super::format::Run;
use super::reads::{Archive, ArchiveError, damaged, not_configured};

/// A run in the archive: the number of its first entry, and its mark.
pub type Marked = (Seq, ArchiveMark);

/// How a range is read that may reach below the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// What the table has of it, and comes first.
    pub table: Option<Range>,
    /// The entry of the archive that comes next.
    pub then: Option<Seq>,
}

/// Splits a range at the last entry that is in the archive; 0: none is.
pub fn split(range: &Range, archived_to: Seq) -> Split {
    let from = range.from.max(1);
    if from > archived_to || from > range.to || range.max_entries == 0 {
        return Split { table: Some(*range), then: None };
    }
    if !range.backwards || range.to <= archived_to {
        return Split { table: None, then: Some(if range.backwards { range.to } else { from }) };
    }
    Split { table: Some(Range { from: archived_to + 1, ..*range }), then: Some(archived_to) }
}

/// Whether nothing may be added to what was read of a range: one entry may be, however long it is.
pub fn is_full(range: &Range, entries: &[Arc<Entry>]) -> bool {
    entries.len() >= range.max_entries || !entries.is_empty() && bytes_of(entries) >= range.max_bytes
}

/// What a read has found in the table, and where it goes on.
#[derive(Debug)]
pub struct Part {
    /// From the table.
    pub entries: Vec<Arc<Entry>>,
    /// A run of the archive that holds what comes next, and places in it that are erased.
    pub then: Option<(Marked, BTreeSet<Seq>)>,
}

/// A run whose mark was replaced: who has the marks writes the new one.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Whose.
    pub log: LogId,
    /// Number of the first entry.
    pub first: Seq,
    /// What was looked for.
    pub old: ArchiveMark,
    /// What was found in its place.
    pub new: ArchiveMark,
}

/// What of a store is needed for it.
pub trait Seam: Sync {
    /// A part of a range: what the table has of it, or the run of the archive that comes first.
    fn part(&self, range: &Range) -> impl Future<Output = Result<Part, StoreError>> + Send;

    /// The mark of the run with this entry, as it is now.
    fn mark_now(&self, log: LogId, seq: Seq) -> impl Future<Output = Result<Option<Marked>, StoreError>> + Send;

    /// Is told of an object that was replaced.
    fn found_again(&self, found: Found);
}

/// Bytes of stored form.
fn bytes_of(entries: &[Arc<Entry>]) -> usize {
    entries.iter().map(|entry| entry.encoded_len()).sum()
}

/// Reads a range over the limit. `store`: whose objects may have taken the place of those that marks name, beside those of
/// the store that wrote them.
///
/// # Errors
/// Those of the table; [`StoreError::Archive`] where nothing could be read and the same may succeed later.
pub async fn range(
    seam: &impl Seam,
    archive: Option<&Archive>,
    store: Option<[u8; 16]>,
    range: &Range,
) -> Result<Vec<Arc<Entry>>, StoreError> {
    let log = LogId { conversation: range.conversation, origin: range.origin };
    let (mut left, mut found, mut bytes) = (*range, Vec::new(), 0);
    loop {
        let part = seam.part(&left).await?;
        bytes += bytes_of(&part.entries);
        found.extend(part.entries);
        let Some(((first, mark), erased)) = part.then else { return Ok(found) };
        if left.backwards {
            // The table had what is above.
            left.to = left.to.min(mark.last);
        }
        let run = match run(seam, archive, store, log, (first, mark)).await {
            Ok(Some(run)) => run,
            // The mark was replaced while its object was asked for.
            Ok(None) => continue,
            // What was found is told; whoever asks for the rest is told why it can't be had.
            Err(_) if !found.is_empty() => return Ok(found),
            Err(error) => return Err(error),
        };
        let (low, high) = (left.from.max(first), left.to.min(mark.last));
        let mut take = |seq: Seq| -> Result<bool, StoreError> {
            let entry = run.entry(seq).ok_or_else(|| damaged(log, format!("entry {seq} is missing")))?;
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
    seam: &impl Seam,
    archive: Option<&Archive>,
    store: Option<[u8; 16]>,
    log: LogId,
    (first, mark): Marked,
) -> Result<Option<Arc<Run>>, StoreError> {
    let archive = archive.ok_or_else(|| not_configured(log))?;
    let error = match archive.run(log, first, &mark).await {
        Ok(run) => return Ok(Some(run)),
        Err(error) => error,
    };
    let now = seam.mark_now(log, first).await?;
    if now.is_some_and(|(_, now)| now != mark) {
        return Ok(None);
    }
    if !matches!(error, ArchiveError::Missing(_)) {
        return Err(error.of(log));
    }
    match archive.find_again(log, first, &mark, store.unwrap_or(mark.store)).await {
        Ok(Some((run, new))) => {
            seam.found_again(Found { log, first, old: mark, new });
            Ok(Some(Arc::new(run)))
        }
        Ok(None) => Err(error.of(log)),
        Err(other) => Err(other.of(log)),
    }
}

#[cfg(test)]
mod tests {
    use tern_core::ids::{ConvId, Origin};

    use super::*;

    #[test]
    fn a_range_is_split_at_the_last_entry_of_the_archive() {
        let of = |from, to, backwards| Range {
            conversation: ConvId([1; 16]),
            origin: Origin { region: 1, era: 1 },
            from,
            to,
            max_entries: 10,
            max_bytes: 100,
            backwards,
        };
        let table = |range| Split { table: Some(range), then: None };
        let archive = |seq| Split { table: None, then: Some(seq) };
        for backwards in [false, true] {
            let of = |from, to| of(from, to, backwards);
            assert_eq!(split(&of(1, 9), 0), table(of(1, 9)));
            assert_eq!(split(&of(8, 9), 7), table(of(8, 9)));
            assert_eq!(split(&of(5, 4), 7), table(of(5, 4)), "nothing is asked for");
            let none = Range { max_entries: 0, ..of(1, 9) };
            assert_eq!(split(&none, 7), table(none));
        }
        assert_eq!(split(&of(0, 9, false), 7), archive(1));
        assert_eq!(split(&of(3, 9, false), 7), archive(3));
        assert_eq!(split(&of(3, 7, true), 7), archive(7));
        assert_eq!(split(&of(3, 6, true), 7), archive(6));
        assert_eq!(split(&of(3, 8, true), 7), Split { table: Some(of(8, 8, true)), then: Some(7) });
    }
}
