//! Restoring a backup into a directory that holds nothing yet.
//!
//! The steps, and what a death between any two of them leaves: the file is checked (nothing); the mark
//! `RESTORING` is written and synced (a directory that every open refuses); the tables are written, synced, and
//! read back (the same); `STORE` is written (the same); the mark goes (a store). There is no moment at which half
//! of a backup could be taken for a store.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fjall::{OwnedWriteBatch, PersistMode};
use ring::digest::{Context, SHA256};
use tern_core::ids::{ConvId, Identity, Region};
use tern_core::limits::DISK_RESERVE_BYTES;

use super::super::super::archive::ARCHIVE_ID_KEY;
use super::super::super::format::{
    decode_erased, decode_opaque, encode_erased, encode_opaque, erased_value, meta_key, parse_entry_key,
};
use super::super::super::limits::{CACHE_BYTES, INIT_BYTES, RESTORE_BATCH_BYTES, RESTORE_ERASURES};
use super::super::open::{self, RESTORING, claim, free_bytes, open_tables, refuse_unfinished, write_marker};
use super::super::tables::{Tables, describe, read_entry};
use super::super::verify::{self as chains, Findings};
use super::super::writer::{monotonic, wall_ms};
use super::format::{Kind, Table};
use super::verify::{Verified, verify_kind};
use super::{BackupError, REFILL_ALL_KEY, RESTORED_KEY, io_error, open_file, read_error};

/// The region's count of starts: it orders the region's eras for its peers, see `region::start`.
const START_KEY: &str = "start";
/// The region's mark of a clean stop.
const CLEAN_KEY: &str = "clean";

/// What was restored.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    /// Of the backup.
    pub backup: Verified,
    /// Bodies that were erased on the way.
    pub erased: u64,
    /// How long it took.
    pub duration: Duration,
}

/// Restores the backup `from` into `dir`, which must be new or empty. With `erasures`, the bodies listed there are
/// not restored, wherever a copy lies, nor taken from peers later. `region`: whose it must be, if that is known.
pub fn restore(
    from: &Path,
    dir: &Path,
    erasures: Option<&Path>,
    region: Option<Region>,
) -> Result<RestoreReport, BackupError> {
    let started = monotonic();
    let backup = verify_kind(from, Kind::Backup)?;
    if let Some(expected) = region.filter(|region| *region != backup.header.region) {
        return Err(BackupError::OtherRegion { path: from.to_owned(), found: backup.header.region, expected });
    }
    let identities = erasures.map(identities).transpose()?.unwrap_or_default();

    refuse_unfinished(dir)?;
    let made = Made::begin(dir)?;
    let needed_bytes = backup.bytes.saturating_add(backup.bytes / 4).saturating_add(DISK_RESERVE_BYTES + INIT_BYTES);
    let free_bytes = free_bytes(dir).map_err(|e| io_error(dir, e))?;
    if free_bytes < needed_bytes {
        return Err(BackupError::Full { path: dir.to_owned(), free_bytes, needed_bytes });
    }
    let lock = claim(dir)?;
    let (tables, _nothing_to_replay) = open_tables(dir, false, CACHE_BYTES)?;
    let mut filling = Filling { tables: &tables, dir, identities, batch: None, bytes: 0, erased: 0, start: 0 };
    filling.fill(from, erasures)?;
    let erased = filling.erased;

    tables.has_marks.store(backup.header.archived, Ordering::Release);
    let found = chains::verify(&tables, || false).unwrap_or_default();
    same(dir, &backup.logs, &found)?;
    drop(tables);
    write_marker(dir, &dir.join("STORE"), backup.header.region).map_err(|e| io_error(dir, e))?;
    if backup.header.archived {
        open::raise_format(dir)?;
    }
    made.finish()?;
    drop(lock);
    Ok(RestoreReport { backup, erased, duration: monotonic() - started })
}

/// What was read back must be what the file holds.
fn same(dir: &Path, backup: &Findings, found: &Findings) -> Result<(), BackupError> {
    let counts = |findings: &Findings| (findings.logs, findings.entries, findings.damaged.len(), findings.torn.len());
    if counts(backup) == counts(found) && found.unreadable.is_empty() {
        return Ok(());
    }
    let what = format!(
        "{} logs and {} entries that verify, expected {} and {}",
        found.logs, found.entries, backup.logs, backup.entries
    );
    Err(BackupError::NotAsWritten { dir: dir.to_owned(), what })
}

/// The directory while it is no store. What was made is removed if the restore fails.
struct Made {
    dir: PathBuf,
    made_dir: bool,
    finished: bool,
}

impl Made {
    fn begin(dir: &Path) -> Result<Self, BackupError> {
        let failed = |e| io_error(dir, e);
        let made_dir = !dir.try_exists().map_err(failed)?;
        if made_dir {
            fs::create_dir_all(dir).map_err(failed)?;
        } else if fs::read_dir(dir).map_err(failed)?.next().is_some() {
            return Err(BackupError::NotEmpty { dir: dir.to_owned() });
        }
        let made = Self { dir: dir.to_owned(), made_dir, finished: false };
        let mark = dir.join(RESTORING);
        let file = File::create_new(&mark).map_err(|e| io_error(&mark, e))?;
        file.sync_all().map_err(|e| io_error(&mark, e))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(made)
    }

    fn finish(mut self) -> Result<(), BackupError> {
        let failed = |e| io_error(&self.dir, e);
        fs::remove_file(self.dir.join(RESTORING)).map_err(failed)?;
        self.finished = true;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|e| io_error(&self.dir, e))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The mark goes last: what can't be removed is still refused.
        let _stays = fs::remove_dir_all(self.dir.join("db"));
        for name in ["STORE", "STORE.new", "LOCK", RESTORING] {
            if fs::remove_file(self.dir.join(name)).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound) {
                return;
            }
        }
        if self.made_dir {
            let _stays = fs::remove_dir(&self.dir);
        }
    }
}

struct Filling<'a> {
    tables: &'a Tables,
    dir: &'a Path,
    identities: BTreeSet<[u8; 16]>,
    batch: Option<OwnedWriteBatch>,
    bytes: usize,
    erased: u64,
    start: u64,
}

impl Filling<'_> {
    fn fill(&mut self, from: &Path, erasures: Option<&Path>) -> Result<(), BackupError> {
        let mut reader = open_file(from, Kind::Backup)?;
        // Entries are most of it, and come in the order of their keys: they go into tables without a journal.
        let mut entries = Some(self.tables.entries.start_ingestion().map_err(|e| self.failed(&e))?);
        while let Some(record) = reader.read().map_err(|e| read_error(from, e))? {
            if record.table == Table::Entries {
                let erased = self.erase(record.key, record.value)?;
                let value = erased.as_deref().unwrap_or(record.value);
                if let Some(entries) = &mut entries {
                    entries.write(record.key, value).map_err(|e| self.failed(&e))?;
                }
                continue;
            }
            if let Some(entries) = entries.take() {
                entries.finish().map_err(|e| self.failed(&e))?;
            }
            if record.table == Table::Quarantine && self.is_erased(record.key, record.value) {
                self.erased += 1;
                continue;
            }
            // Another store from now on: it deletes nothing that the one from which the backup is may still need.
            if record.table == Table::State && *record.key == *meta_key(ARCHIVE_ID_KEY) {
                continue;
            }
            if record.table == Table::State && *record.key == *meta_key(START_KEY) {
                let value = decode_opaque(record.value).unwrap_or_default();
                self.start = <[u8; 8]>::try_from(&value[..]).map_or(0, u64::from_be_bytes);
            }
            self.put(record.table, record.key, record.value)?;
        }
        if let Some(entries) = entries.take() {
            entries.finish().map_err(|e| self.failed(&e))?;
        }
        if let Some(path) = erasures {
            let mut reader = open_file(path, Kind::Erasures)?;
            while let Some(record) = reader.read().map_err(|e| read_error(path, e))? {
                // Also of places that the backup does not reach: peers may send the entries later.
                self.put(Table::Erased, record.key, record.value)?;
            }
        }
        self.marks()?;
        self.commit()?;
        self.tables.db.persist(PersistMode::SyncAll).map_err(|e| self.failed(&e))
    }

    /// What the next start must know: not to go on with the era, to ask all peers, to apply erasures; and a number
    /// of starts above any that peers have heard of from the store whose past this is. A second counts for more
    /// than a start, so the wall clock is above it.
    fn marks(&mut self) -> Result<(), BackupError> {
        let start = self.start.saturating_add(1).max(wall_ms() / 1_000);
        let marks: [(&str, Bytes); 4] = [
            (CLEAN_KEY, Bytes::from_static(&[0])),
            (START_KEY, Bytes::copy_from_slice(&start.to_be_bytes())),
            (REFILL_ALL_KEY, Bytes::from_static(&[1])),
            (RESTORED_KEY, Bytes::from_static(&[1])),
        ];
        let mut value = Vec::new();
        for (name, content) in marks {
            encode_opaque(&mut value, &content);
            self.put(Table::State, &meta_key(name), &value)?;
        }
        Ok(())
    }

    /// The form in which an entry is stored if its body is to go, with its place noted.
    fn erase(&mut self, key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, BackupError> {
        if self.identities.is_empty() {
            return Ok(None);
        }
        let Some((log, seq)) = parse_entry_key(key) else { return Ok(None) };
        // One that can't be read is refused later as it was in the store.
        let Ok((link, entry)) = read_entry(log, seq, value) else { return Ok(None) };
        if entry.erased || !self.identities.contains(&short(log.conversation, &entry.by)) {
            return Ok(None);
        }
        let mut index = Vec::new();
        encode_erased(&mut index, &entry.by);
        self.put(Table::Erased, key, &index)?;
        self.erased += 1;
        Ok(Some(erased_value(&link, &entry)))
    }

    fn is_erased(&self, key: &[u8], value: &[u8]) -> bool {
        if self.identities.is_empty() {
            return false;
        }
        let Some((log, seq)) = parse_entry_key(key) else { return false };
        read_entry(log, seq, value)
            .is_ok_and(|(_, entry)| self.identities.contains(&short(log.conversation, &entry.by)))
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        let batch = self.batch.get_or_insert_with(|| self.tables.db.batch());
        batch.insert(self.tables.of(table), key, value);
        self.bytes += key.len() + value.len() + 64;
        if self.bytes >= RESTORE_BATCH_BYTES { self.commit() } else { Ok(()) }
    }

    fn commit(&mut self) -> Result<(), BackupError> {
        self.bytes = 0;
        match self.batch.take() {
            Some(batch) => self.tables.commit(batch, false).map_err(|e| self.failed(&e)),
            None => Ok(()),
        }
    }

    fn failed(&self, error: &fjall::Error) -> BackupError {
        match error {
            fjall::Error::Io(what) | fjall::Error::Storage(fjall::LsmError::Io(what)) => {
                io_error(self.dir, std::io::Error::new(what.kind(), what.to_string()))
            }
            other => BackupError::Open(open::OpenError::Unusable { dir: self.dir.to_owned(), what: describe(other) }),
        }
    }
}

/// Who wrote what was erased, each in 16 bytes.
fn identities(path: &Path) -> Result<BTreeSet<[u8; 16]>, BackupError> {
    let verified = verify_kind(path, Kind::Erasures)?;
    if verified.counts.of(Table::Erased) > RESTORE_ERASURES as u64 {
        return Err(BackupError::TooMany { path: path.to_owned(), limit: RESTORE_ERASURES });
    }
    let mut found = BTreeSet::new();
    let mut reader = open_file(path, Kind::Erasures)?;
    while let Some(record) = reader.read().map_err(|e| read_error(path, e))? {
        if let (Some((log, _)), Ok(by)) = (parse_entry_key(record.key), decode_erased(record.value)) {
            found.insert(short(log.conversation, &by));
        }
    }
    Ok(found)
}

fn short(conversation: ConvId, by: &Identity) -> [u8; 16] {
    let mut hash = Context::new(&SHA256);
    hash.update(&conversation.0);
    for text in [by.user.as_str(), by.install.as_str()] {
        hash.update(&(text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(&by.n.to_be_bytes());
    let mut out = [0; 16];
    out.copy_from_slice(&hash.finish().as_ref()[..16]);
    out
}
