//! A store that nobody serves from: locked and read by a command, and left as it was.
//!
//! Opening a store to serve takes away its mark of a clean stop and cuts torn tails; looking at one must not.
//! What can't be avoided is the walk through its journal: a torn last group goes, as it would at any opening, and
//! where the journal is damaged in its middle the mark of a clean stop goes as well, so that the next start knows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tern_core::entry::Entry;
use tern_core::ids::{Region, Seq};
use tern_core::store::{Range, StoreError};
use tokio::runtime::Handle;

use super::super::archive::reads::not_configured;
use super::super::archive::{ARCHIVE_ID_KEY, Archive, ArchiveError, Run, TierPlan, TierReport};
use super::super::format::{ArchiveMark, CLEAN_KEY, LogId, PURGE_KEY, encode_opaque, meta_key};
use super::super::limits::CACHE_BYTES;
use super::backup::{self, BackupError, BackupReport, Plan, format::Kind};
use super::journal::JournalDamage;
use super::open::{self, Claimed, OpenError};
use super::purge::{CompactReport, purge};
use super::tables::{Tables, backend};
use super::tiering;

/// The region's mark of a clean stop, see `region::start`.
const REGION_CLEAN_KEY: &str = "clean";

/// A store locked by a command.
pub struct Offline {
    // In this order: the directory may be opened again only when the database is closed.
    pub(super) tables: Tables,
    pub(super) claimed: Claimed,
    pub(super) region: Region,
    pub(super) journal_damage: Vec<JournalDamage>,
    /// The archive, and who waits for it.
    archive: Option<(Arc<Archive>, Handle)>,
}

impl std::fmt::Debug for Offline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offline").field("dir", &self.claimed.dir).finish_non_exhaustive()
    }
}

impl Offline {
    /// Locks and opens the store in `dir`. [`OpenError::InUse`] where a region runs on it.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        open::refuse_unfinished(dir)?;
        let region = open::region_of(dir)?;
        let claimed = open::claim(dir)?;
        let (tables, journal) = open::open_tables(dir, true, CACHE_BYTES)?;
        let offline = Self { tables, claimed, region, journal_damage: journal.damage, archive: None };
        if !offline.journal_damage.is_empty() {
            offline.not_clean().map_err(|e| OpenError::Unusable { dir: dir.to_owned(), what: e.to_string() })?;
        }
        Ok(offline)
    }

    /// With an archive, whose answers `runtime` waits for: not for use by its own threads.
    #[must_use]
    pub fn with_archive(mut self, archive: Arc<Archive>, runtime: Handle) -> Self {
        self.archive = Some((archive, runtime));
        self
    }

    /// Whether something of the store is in an archive.
    pub fn needs_archive(&self) -> bool {
        self.tables.has_marks.load(Ordering::Acquire)
    }

    /// Entries of the table and of the archive alike.
    pub(super) fn range(&self, range: &Range) -> Result<Vec<Arc<Entry>>, StoreError> {
        let Some((archive, runtime)) = &self.archive else {
            let part = self.tables.part(range)?;
            let log = LogId { conversation: range.conversation, origin: range.origin };
            return if part.then.is_some() { Err(not_configured(log)) } else { Ok(part.entries) };
        };
        runtime.block_on(tiering::range(&self.tables, Some(archive), None, range, drop))
    }

    /// What a pass of tiering would find, see [`super::EmbeddedStore::tier`].
    pub fn survey(&self, plan: &TierPlan) -> Result<TierReport, StoreError> {
        let id = self.tables.meta(ARCHIVE_ID_KEY)?.and_then(|id| id[..].try_into().ok());
        self.tables.survey(plan, &id.unwrap_or_default())
    }

    /// Verifies a run, or with `lengths_only` looks whether its object is there.
    pub(super) fn archived(
        &self,
        log: LogId,
        first: Seq,
        mark: &ArchiveMark,
        lengths_only: bool,
    ) -> Result<Option<Arc<Run>>, ArchiveError> {
        let Some((archive, runtime)) = &self.archive else {
            return Err(ArchiveError::Unavailable("store.tier.url is not set".to_owned()));
        };
        runtime.block_on(async {
            if lengths_only {
                return archive.is_there(log, first, mark).await.map(|()| None);
            }
            archive.run_or_other(log, first, mark, mark.store).await.map(Some)
        })
    }

    /// Whose it is.
    pub fn region(&self) -> Region {
        self.region
    }

    /// Parts of the journal that were damaged and have been taken out by this opening.
    pub fn journal_damage(&self) -> &[JournalDamage] {
        &self.journal_damage
    }

    /// Like [`super::EmbeddedStore::backup`].
    pub fn backup(&self, to: PathBuf) -> Result<BackupReport, BackupError> {
        self.write(Kind::Backup, to)
    }

    /// Like [`super::EmbeddedStore::export_erasures`].
    pub fn export_erasures(&self, to: PathBuf) -> Result<BackupReport, BackupError> {
        self.write(Kind::Erasures, to)
    }

    fn write(&self, kind: Kind, to: PathBuf) -> Result<BackupReport, BackupError> {
        let store = self.claimed.dir.clone();
        // Nobody serves from it, so there is nothing to keep room for.
        backup::create(&self.tables, &Plan { kind, region: self.region, to, store, reserve_bytes: 0 }, || false)
    }

    /// Like [`super::EmbeddedStore::compact`].
    pub fn compact(&self) -> Result<CompactReport, StoreError> {
        let report = purge(&self.tables, &self.claimed.dir, || false)?;
        let mut batch = self.tables.db.batch();
        batch.remove(&self.tables.state, PURGE_KEY);
        self.tables.commit(batch, true).map_err(backend)?;
        Ok(report)
    }

    /// The next start takes a new era.
    pub(super) fn not_clean(&self) -> Result<(), StoreError> {
        let mut batch = self.tables.db.batch();
        batch.remove(&self.tables.state, CLEAN_KEY);
        let mut value = Vec::new();
        encode_opaque(&mut value, &[0]);
        batch.insert(&self.tables.state, meta_key(REGION_CLEAN_KEY), &value[..]);
        self.tables.commit(batch, true).map_err(backend)
    }
}
