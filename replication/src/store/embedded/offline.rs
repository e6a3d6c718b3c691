//! A store that nobody serves from: locked and read by a command, and left as it was.
//!
//! Opening a store to serve takes away its mark of a clean stop and cuts torn tails; looking at one must not.
//! What can't be avoided is the walk through its journal: a torn last group goes, as it would at any opening, and
//! where the journal is damaged in its middle the mark of a clean stop goes as well, so that the next start knows.

use std::path::{Path, PathBuf};

use tern_core::ids::Region;
use tern_core::store::StoreError;

use super::super::format::{CLEAN_KEY, PURGE_KEY, encode_opaque, meta_key};
use super::super::limits::CACHE_BYTES;
use super::backup::{self, BackupError, BackupReport, Plan, format::Kind};
use super::journal::JournalDamage;
use super::open::{self, Claimed, OpenError};
use super::purge::{CompactReport, purge};
use super::tables::{Tables, backend};

/// The region's mark of a clean stop, see `region::start`.
const REGION_CLEAN_KEY: &str = "clean";

/// A store locked by a command.
pub struct Offline {
    // In this order: the directory may be opened again only when the database is closed.
    pub(super) tables: Tables,
    pub(super) claimed: Claimed,
    pub(super) region: Region,
    pub(super) journal_damage: Vec<JournalDamage>,
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
        let offline = Self { tables, claimed, region, journal_damage: journal.damage };
        if !offline.journal_damage.is_empty() {
            offline.not_clean().map_err(|e| OpenError::Unusable { dir: dir.to_owned(), what: e.to_string() })?;
        }
        Ok(offline)
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
