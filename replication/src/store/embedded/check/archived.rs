//! What is in the archive: are the marks of each log without gaps, and the objects what they name?

use fjall::Readable;
use tern_core::ids::Seq;
use tern_core::store::StoreError;

use super::super::super::archive::ArchiveError;
use super::super::super::format::{Chain, LogId};
use super::super::tables::backend;
use super::super::tiering::mark_of;
use super::logs::place;
use super::{Check, Kind};

impl Check<'_> {
    /// Looks at every mark, and at the object that it names.
    pub(super) fn archived(&mut self) -> Result<(), StoreError> {
        let mut last: Option<(LogId, Seq, Chain)> = None;
        for row in self.tables.db.snapshot().prefix(&self.tables.state, b"a") {
            let (key, value) = row.into_inner().map_err(backend)?;
            let (log, (first, mark)) = match mark_of(&key, &value) {
                Ok(mark) => mark,
                Err(error) => {
                    self.not_repairable(Kind::Archive, "the marks of what is in the archive", error);
                    continue;
                }
            };
            self.report.archived_runs += 1;
            self.report.archived_entries += (mark.last + 1).saturating_sub(first);
            let at = || format!("{}, entries {first} to {} in the archive", place(log), mark.last);
            let (before, chain) = match last {
                Some((of, seq, chain)) if of == log => (seq, chain),
                _ => (0, [0; 16]),
            };
            if first != before + 1 || mark.last < first {
                self.not_repairable(Kind::Archive, at(), format!("entry {} is missing before them", before + 1));
                self.unread.insert(log.conversation);
            }
            last = Some((log, mark.last, mark.chain));
            match self.store.archived(log, first, &mark, !self.reads_archive) {
                Ok(None) => {
                    self.unread.insert(log.conversation);
                }
                Ok(Some(run)) if run.before != chain => {
                    self.not_repairable(Kind::Archive, at(), "they do not follow from those before");
                    self.unread.insert(log.conversation);
                }
                Ok(Some(_)) => {}
                Err(ArchiveError::Unavailable(what)) => {
                    let what = format!("{what}; with --skip-archive everything else is checked");
                    return Err(StoreError::Archive(what));
                }
                Err(error) => {
                    self.not_repairable(Kind::Archive, at(), error);
                    self.unread.insert(log.conversation);
                }
            }
        }
        Ok(())
    }
}
