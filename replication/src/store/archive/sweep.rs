//! Deleting objects that no mark names: those of a pass that died between an object and its mark, or between a new mark
//! and the deletion of the old object.

use std::future::Future;

use tern_core::ids::Seq;
use tern_core::store::StoreError;

use super::super::format::LogId;
use super::super::limits::{ARCHIVE_LIST, ARCHIVE_ORPHAN_AGE};
use super::plan::TierReport;
use super::reads::{Archive, ArchiveError};

impl Archive {
    /// Goes through all objects of `store`, and deletes those that are old enough not to be under way and that `is_named`
    /// does not know: by log, first entry and name. It is asked after the object was seen, as a mark is written before its
    /// object is that old.
    ///
    /// # Errors
    /// The object store can't be asked; what `is_named` says.
    pub async fn sweep<F>(
        &self,
        store: &[u8; 16],
        now_ms: u64,
        report: &mut TierReport,
        is_named: impl Fn(LogId, Seq, String) -> F,
    ) -> Result<(), StoreError>
    where
        F: Future<Output = Result<bool, StoreError>>,
    {
        let failed = |error: ArchiveError| StoreError::Archive(error.to_string());
        let mut after: Option<String> = None;
        let orphan_ms = u64::try_from(ARCHIVE_ORPHAN_AGE.as_millis()).unwrap_or(u64::MAX);
        loop {
            let page = self.list(store, after.as_deref(), ARCHIVE_LIST).await.map_err(failed)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.name.clone());
            for listed in page.iter().filter(|listed| now_ms.saturating_sub(listed.written_ms) >= orphan_ms) {
                // A name of another form is nobody's of ours.
                let Some((log, first)) = self.parse(store, &listed.name) else { continue };
                if is_named(log, first, listed.name.clone()).await? {
                    continue;
                }
                self.delete(&listed.name, store).await.map_err(failed)?;
                report.orphans += 1;
                self.metrics().orphans.inc();
            }
        }
    }
}
