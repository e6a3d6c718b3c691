//! What the writer does for the archive: marks, and the removal of what is marked.
//!
//! A mark is written only while it is true: the run follows those that are in the archive, the log goes on above it, and
//! no body was erased since the run was read. An erasure that comes later is in the index, and so counts at once.

use fjall::{OwnedWriteBatch, Readable};
use tern_core::ids::Seq;
use tern_core::store::StoreError;

use super::super::super::format::{ArchiveMark, LogId, archive_key, encode_mark, entry_key};
use super::super::tables::backend;
use super::super::writer::{Marks, Writer};

fn refused(what: impl Into<String>) -> StoreError {
    StoreError::Backend(what.into())
}

impl Writer {
    /// Whether an entry is in the archive and not erased yet.
    pub(in super::super) fn is_whole_in_archive(&self, log: LogId, seq: Seq) -> Result<bool, StoreError> {
        let snapshot = self.tables.db.snapshot();
        let archived = seq > 0 && seq <= self.tables.archived_to(&snapshot, log)?;
        Ok(archived && !self.tables.erased.contains_key(entry_key(log, seq)).map_err(backend)?)
    }

    /// Writes a mark. Whether it could be; not where something changed since the run was read.
    pub(in super::super) fn mark(
        &mut self,
        batch: &mut OwnedWriteBatch,
        log: LogId,
        marks: &Marks,
    ) -> Result<bool, StoreError> {
        if let Some(what) = &self.broken {
            return Err(refused(what.clone()));
        }
        if let Some(what) = self.tables.refused(log) {
            return Err(self.tables.damaged(log, what));
        }
        let (first, mark, may) = match marks {
            Marks::New(first, mark) => (*first, mark, self.may_mark(log, *first, mark)?),
            Marks::Other { first, old, new } => {
                let now = self.tables.mark_at(&self.tables.db.snapshot(), log, *first)?;
                (*first, new, now == Some((*first, *old)) && (old.last, old.chain) == (new.last, new.chain))
            }
        };
        if !may {
            return Ok(false);
        }
        // Versions that do not know marks must not open the store: they would take its logs for damaged.
        super::super::open::raise_format(&self.dir).map_err(|error| refused(error.to_string()))?;
        encode_mark(&mut self.value, mark);
        batch.insert(&self.tables.state, archive_key(log, first), &self.value[..]);
        self.tables.has_marks.store(true, std::sync::atomic::Ordering::Release);
        Ok(true)
    }

    fn may_mark(&self, log: LogId, first: Seq, mark: &ArchiveMark) -> Result<bool, StoreError> {
        let snapshot = self.tables.db.snapshot();
        let above = entry_key(log, mark.last + 1)..=entry_key(log, u64::MAX);
        let goes_on = snapshot.range(&self.tables.entries, above).next().is_some();
        let erased = self.tables.erased_in(&snapshot, log, first, mark.last)?.len() as u64;
        let follows = first == self.tables.archived_to(&snapshot, log)? + 1;
        Ok(goes_on && follows && erased == u64::from(mark.erased))
    }

    /// Removes entries that are in the archive.
    pub(in super::super) fn trim(
        &self,
        batch: &mut OwnedWriteBatch,
        log: LogId,
        from: Seq,
        to: Seq,
    ) -> Result<bool, StoreError> {
        if let Some(what) = &self.broken {
            return Err(refused(what.clone()));
        }
        if to > self.tables.archived_to(&self.tables.db.snapshot(), log)? {
            return Err(refused(format!("entry {to} is not in the archive; nothing was removed")));
        }
        (from..=to).for_each(|seq| batch.remove(&self.tables.entries, entry_key(log, seq)));
        Ok(true)
    }
}
