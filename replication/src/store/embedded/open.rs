//! Opening a store: the directory, its lock, its marker, and what the operator is told.
//!
//! ```text
//! <dir>/LOCK    locked while a process has the store open; holds its process id
//! <dir>/STORE   written last when the store is made: format and region
//! <dir>/db/     fjall
//! <dir>/RESTORING  present while a restore writes: what is there is not a store yet
//! ```
//! A directory without `STORE` is not a store, and is made one only if that was asked for: an unmounted disk
//! must not become a new, empty region.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fjall::OwnedWriteBatch;
use tern_core::ids::Region;
use tern_core::limits::DISK_RESERVE_BYTES;

use super::super::archive::{ARCHIVE_ID_KEY, Archive};
use super::super::format::{CLEAN_KEY, decode_opaque, encode_opaque, meta_key};
use super::super::limits::{CACHE_BYTES, DISK_FLOOR_BYTES, INIT_BYTES};
use super::journal::{self, JournalDamage};
use super::manifest::{self, Unsafe};
use super::tables::{TREES, Tables, describe};
use super::verify::{self, CutTail, DamagedLog, Findings, Span};
use super::writer::{FailedSync, monotonic};

/// Of the directory's layout and of everything in it; raised when an older version could not read it.
const FORMAT: u32 = 1;
/// Of a store of which something is in the archive, which format 1 does not know.
const FORMAT_ARCHIVED: u32 = 2;

/// Present while a restore writes, removed when all of it is there.
pub(super) const RESTORING: &str = "RESTORING";

/// How much is read when the store is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Every entry of every log: about a million small entries a second and core. The default.
    #[default]
    Full,
    /// The newest entry of every log. For stores so large that reading them takes too long; damage elsewhere is
    /// found by [`super::EmbeddedStore::verify`], or when it is read.
    Heads,
}

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// Whose store it is, 1-255. A store made for another region is refused.
    pub region: Region,
    /// Make a store where there is none. Nothing changes where there is one.
    pub init: bool,
    /// Below this much free disk appends are refused.
    pub disk_reserve_bytes: u64,
    /// How much is verified.
    pub verify: Verify,
    /// Of the block cache.
    pub cache_bytes: u64,
    /// Where old entries are. `None`: nothing moves there, and what has moved can't be read.
    pub archive: Option<Arc<Archive>>,
    /// Drawn at random: the name of this store in the archive, if it has none yet.
    pub archive_id: [u8; 16],
    /// Called when a commit failed; `None` logs it and aborts the process, see [`FailedSync`].
    pub on_failed_sync: Option<FailedSync>,
}

impl Options {
    /// The defaults, without `init`.
    pub fn new(region: Region) -> Self {
        Self {
            region,
            init: false,
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            verify: Verify::Full,
            cache_bytes: CACHE_BYTES,
            archive: None,
            archive_id: [0; 16],
            on_failed_sync: None,
        }
    }

    /// With `init`.
    #[must_use]
    pub fn init(mut self) -> Self {
        self.init = true;
        self
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("region", &self.region)
            .field("init", &self.init)
            .field("disk_reserve_bytes", &self.disk_reserve_bytes)
            .field("verify", &self.verify)
            .field("cache_bytes", &self.cache_bytes)
            .finish_non_exhaustive()
    }
}

/// What was found when a store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The store was made now.
    pub created: bool,
    /// The store was closed in order when it was last used. False too for a new store.
    pub clean_stop: bool,
    /// Logs found.
    pub logs: u64,
    /// Entries found that verified.
    pub entries: u64,
    /// Tails of logs that did not verify and were removed.
    pub cut: Vec<CutTail>,
    /// Logs that are refused.
    pub damaged: Vec<DamagedLog>,
    /// Stretches that can't be read, and are refused.
    pub unreadable: Vec<Span>,
    /// Bytes of a group that the last stop interrupted; it was never acked.
    pub torn_journal_bytes: u64,
    /// Parts of the journal that were damaged and taken out. Acked writes were in them.
    pub journal_damage: Vec<JournalDamage>,
    /// Free bytes on the disk.
    pub disk_free_bytes: u64,
    /// How long opening took.
    pub duration: Duration,
}

impl OpenReport {
    /// Whether this store may still speak for its era: it was stopped in order, and nothing of it is missing. A
    /// store of which this is false, and a new one, takes a new era before it accepts writes (R13). Peers may
    /// still know more than it does.
    pub fn may_keep_era(&self) -> bool {
        self.clean_stop && !self.is_damaged()
    }

    /// Whether something is missing or refused that was once acked: worth an alarm.
    pub fn is_damaged(&self) -> bool {
        !(self.cut.is_empty()
            && self.damaged.is_empty()
            && self.unreadable.is_empty()
            && self.journal_damage.is_empty())
    }
}

/// Why a store can't be opened. Nothing was changed, except where it says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the store in {dir} is in use by process {pid}: stop that process, or use another directory", dir = .dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The other process, as far as it said.
        pid: String,
    },
    /// There is no store.
    #[error(
        "there is no store in {dir}: if its disk is not mounted, mount it; to make a new, empty region there, run with --init",
        dir = .dir.display()
    )]
    NotInitialised {
        /// The directory.
        dir: PathBuf,
    },
    /// There are entries, but nothing that says whose.
    #[error(
        "{dir} holds a database with entries but no file STORE that says whose: it was copied in part, or STORE was deleted; restore the whole directory, or use another one",
        dir = .dir.display()
    )]
    MarkerMissing {
        /// The directory.
        dir: PathBuf,
    },
    /// A restore into it ended half-way.
    #[error(
        "a restore into {dir} did not finish, so what is there is not a whole store: delete the directory, and restore again",
        dir = .dir.display()
    )]
    RestoreUnfinished {
        /// The directory.
        dir: PathBuf,
    },
    /// The marker is not one.
    #[error("{path} does not say whose store this is ({what}): restore it from a backup of this directory", path = .path.display())]
    MarkerUnreadable {
        /// The marker.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It is another region's.
    #[error(
        "the store in {dir} belongs to region {found}, and this is region {expected}: give each region a directory of its own",
        dir = .dir.display()
    )]
    OtherRegion {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: Region,
        /// Who asked.
        expected: Region,
    },
    /// Another version wrote it.
    #[error("the store in {dir} has format {found}, and this version knows formats up to {FORMAT_ARCHIVED}: run the version that wrote it, or a later one", dir = .dir.display())]
    OtherFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Not allowed.
    #[error("{path} can't be read and written: {what}; give the user that runs this process access", path = .path.display())]
    NoPermission {
        /// What was to be opened.
        path: PathBuf,
        /// What the system says.
        what: io::Error,
    },
    /// No room.
    #[error(
        "{free_bytes} bytes are free on the disk of {dir}, and at least {needed_bytes} are needed: free some, or use another disk",
        dir = .dir.display()
    )]
    NearlyFull {
        /// The directory.
        dir: PathBuf,
        /// Free bytes.
        free_bytes: u64,
        /// Needed bytes.
        needed_bytes: u64,
    },
    /// The database under it can't be opened.
    #[error(
        "the database in {dir} can't be opened ({what}): its files are damaged as a whole; move the directory away and start this region anew with --init, and its peers send what they hold",
        dir = .dir.display()
    )]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// What the database says.
        what: String,
    },
    /// A file that the database is found by is not what was written.
    #[error(
        "{path} is damaged ({what}), and the database can't be opened without it; nothing was changed. Restore the \
         newest backup into a new directory with `tern store restore`; without one, move the store away and start this \
         region anew with --init. Either way the other regions send what they hold. Then check this disk",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Something lies in the database's directory that the database can't do with.
    #[error("{path} is no part of the database, and it can't be opened beside it: move that elsewhere", path = .path.display())]
    Stray {
        /// What.
        path: PathBuf,
    },
    /// The system failed.
    #[error("{path}: {what}", path = .path.display())]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What the system says.
        what: io::Error,
    },
}

pub(super) fn io_error(path: &Path, what: io::Error) -> OpenError {
    let path = path.to_owned();
    match what.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => OpenError::NoPermission { path, what },
        _ => OpenError::Io { path, what },
    }
}

/// A directory that is ours: locked until this is dropped.
#[derive(Debug)]
pub(super) struct Claimed {
    pub dir: PathBuf,
    _lock: File,
}

pub(super) fn open(dir: &Path, options: &Options) -> Result<(Tables, Claimed, OpenReport), OpenError> {
    let started = monotonic();
    refuse_unfinished(dir)?;
    let marker = dir.join("STORE");
    let exists = marker.try_exists().map_err(|e| io_error(&marker, e))?;
    if !exists {
        if !options.init {
            return Err(OpenError::NotInitialised { dir: dir.to_owned() });
        }
        fs::create_dir_all(dir).map_err(|e| io_error(dir, e))?;
    }
    let claimed = claim(dir)?;
    // Read again under the lock: another process may have made the store meanwhile.
    let exists = marker.try_exists().map_err(|e| io_error(&marker, e))?;
    if exists {
        check_marker(dir, &marker, options.region)?;
    }
    let disk_free_bytes = free_bytes(dir).map_err(|e| io_error(dir, e))?;
    let needed_bytes = if exists {
        DISK_FLOOR_BYTES.min(options.disk_reserve_bytes)
    } else {
        options.disk_reserve_bytes.saturating_add(INIT_BYTES)
    };
    if disk_free_bytes < needed_bytes {
        return Err(OpenError::NearlyFull { dir: dir.to_owned(), free_bytes: disk_free_bytes, needed_bytes });
    }

    let (tables, journal) = open_tables(dir, exists, options.cache_bytes)?;
    if !exists {
        // An earlier attempt to make a store may have come this far; entries come only after the marker.
        if tables.entries.first_key_value().is_some() {
            return Err(OpenError::MarkerMissing { dir: dir.to_owned() });
        }
        write_marker(dir, &marker, options.region).map_err(|e| io_error(&marker, e))?;
    }

    let findings = match options.verify {
        Verify::Full => verify::verify(&tables, || false).unwrap_or_default(),
        Verify::Heads => verify::verify_heads(&tables),
    };
    let clean_stop = settle(&tables, &findings).map_err(|e| unusable(dir, &e))?;
    let report = OpenReport {
        created: !exists,
        clean_stop,
        logs: findings.logs,
        entries: findings.entries,
        cut: findings.torn,
        damaged: findings.damaged,
        unreadable: findings.unreadable,
        torn_journal_bytes: journal.torn_bytes,
        journal_damage: journal.damage,
        disk_free_bytes,
        duration: monotonic() - started,
    };
    Ok((tables, claimed, report))
}

/// Whether the files that the database of the store in `dir` is found by are as they were written. Changes nothing; not
/// for a store that is in use.
pub fn check_files(dir: &Path) -> Result<(), OpenError> {
    check_database(&dir.join("db"), true)
}

fn check_database(db: &Path, whole: bool) -> Result<(), OpenError> {
    manifest::check(db, whole, &TREES).map_err(|found| match found {
        Unsafe::Damaged(path, what) => OpenError::Damaged { path, what },
        Unsafe::Stray(path) => OpenError::Stray { path },
        Unsafe::Io(path, what) => io_error(&path, what),
    })
}

/// Checks the database's files and opens it. `whole`: there is a store, so that nothing may be missing.
pub(super) fn open_tables(dir: &Path, whole: bool, cache_bytes: u64) -> Result<(Tables, journal::Checked), OpenError> {
    let db = dir.join("db");
    // Before the journal: where the rest can't be opened, nothing is to be cut.
    check_database(&db, whole)?;
    let journal = journal::check(&db, dir).map_err(|e| io_error(&db, e))?;
    let tables = Tables::open(&db, cache_bytes).map_err(|error| match error {
        fjall::Error::Io(what) => io_error(&db, what),
        other => unusable(dir, &other),
    })?;
    Ok((tables, journal))
}

/// The store's name in the archive; without an archive it needs none.
pub(super) fn archive_id(tables: &Tables, options: &Options) -> fjall::Result<[u8; 16]> {
    let stored = tables.state.get(meta_key(ARCHIVE_ID_KEY))?;
    let stored = stored.and_then(|value| decode_opaque(&value).ok()).and_then(|id| id[..].try_into().ok());
    if let (None, Some(_)) = (stored, &options.archive) {
        let mut value = Vec::new();
        encode_opaque(&mut value, &options.archive_id);
        let mut batch = OwnedWriteBatch::with_capacity(tables.db.clone(), 1);
        batch.insert(&tables.state, meta_key(ARCHIVE_ID_KEY), &value[..]);
        tables.commit(batch, true)?;
    }
    Ok(stored.unwrap_or(options.archive_id))
}

/// Acts on what was found, durably, before anything is served: torn tails go, refused logs are noted, and the
/// mark of a clean stop is taken away. Returns whether it was there.
fn settle(tables: &Tables, findings: &Findings) -> fjall::Result<bool> {
    let clean_stop = tables.state.contains_key(CLEAN_KEY)?;
    let mut batch = OwnedWriteBatch::with_capacity(tables.db.clone(), 1);
    verify::cut(tables, &mut batch, &findings.torn)?;
    if clean_stop {
        batch.remove(&tables.state, CLEAN_KEY);
    }
    if !batch.is_empty() {
        tables.commit(batch, true)?;
    }
    tables.damage.write().unwrap_or_else(std::sync::PoisonError::into_inner).add(findings);
    Ok(clean_stop)
}

/// A directory with the mark of a restore that did not finish is not opened.
pub(super) fn refuse_unfinished(dir: &Path) -> Result<(), OpenError> {
    let mark = dir.join(RESTORING);
    if mark.try_exists().map_err(|e| io_error(&mark, e))? {
        return Err(OpenError::RestoreUnfinished { dir: dir.to_owned() });
    }
    Ok(())
}

/// Whose store it is, without an opinion on whose it should be.
pub(super) fn region_of(dir: &Path) -> Result<Region, OpenError> {
    let marker = dir.join("STORE");
    if !marker.try_exists().map_err(|e| io_error(&marker, e))? {
        return Err(OpenError::NotInitialised { dir: dir.to_owned() });
    }
    read_marker(dir, &marker)
}

pub(super) fn unusable(dir: &Path, error: &fjall::Error) -> OpenError {
    OpenError::Unusable { dir: dir.to_owned(), what: describe(error) }
}

pub(super) fn claim(dir: &Path) -> Result<Claimed, OpenError> {
    let path = dir.join("LOCK");
    let failed = |e| io_error(&path, e);
    let mut lock = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // What it says is only shown; without it the message is still true.
            let _unreadable = lock.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "(unknown)".to_owned() } else { pid.trim().to_owned() };
            return Err(OpenError::InUse { dir: dir.to_owned(), pid });
        }
        Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
    }
    lock.set_len(0).map_err(failed)?;
    lock.rewind().map_err(failed)?;
    writeln!(lock, "{}", std::process::id()).map_err(failed)?;
    Ok(Claimed { dir: dir.to_owned(), _lock: lock })
}

pub(super) fn write_marker(dir: &Path, marker: &Path, region: Region) -> io::Result<()> {
    write_marker_of(dir, marker, region, FORMAT)
}

/// Says in the marker that something is in the archive, durably, if it does not say so yet.
pub(super) fn raise_format(dir: &Path) -> Result<(), OpenError> {
    let marker = dir.join("STORE");
    let (region, format) = read_marker_of(dir, &marker)?;
    if format < FORMAT_ARCHIVED {
        write_marker_of(dir, &marker, region, FORMAT_ARCHIVED).map_err(|e| io_error(&marker, e))?;
    }
    Ok(())
}

fn write_marker_of(dir: &Path, marker: &Path, region: Region, format: u32) -> io::Result<()> {
    let draft = dir.join("STORE.new");
    let mut file = File::create(&draft)?;
    file.write_all(marker_text(region, format).as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, marker)?;
    File::open(dir)?.sync_all()
}

fn marker_text(region: Region, format: u32) -> String {
    format!("tern store\nformat {format}\nregion {region}\n")
}

fn check_marker(dir: &Path, marker: &Path, expected: Region) -> Result<(), OpenError> {
    let found = read_marker(dir, marker)?;
    if found == expected { Ok(()) } else { Err(OpenError::OtherRegion { dir: dir.to_owned(), found, expected }) }
}

fn read_marker(dir: &Path, marker: &Path) -> Result<Region, OpenError> {
    read_marker_of(dir, marker).map(|(region, _)| region)
}

fn read_marker_of(dir: &Path, marker: &Path) -> Result<(Region, u32), OpenError> {
    let text = fs::read_to_string(marker).map_err(|e| io_error(marker, e))?;
    let unreadable = |what: &str| OpenError::MarkerUnreadable { path: marker.to_owned(), what: what.to_owned() };
    let mut lines = text.lines();
    if lines.next() != Some("tern store") {
        return Err(unreadable("its first line is not \"tern store\""));
    }
    let mut field = |name: &str| -> Option<u32> { lines.next()?.strip_prefix(name)?.strip_prefix(' ')?.parse().ok() };
    let format = field("format").ok_or_else(|| unreadable("it names no format"))?;
    if !(FORMAT..=FORMAT_ARCHIVED).contains(&format) {
        return Err(OpenError::OtherFormat { dir: dir.to_owned(), found: format });
    }
    let found = field("region").and_then(|region| Region::try_from(region).ok()).filter(|region| *region != 0);
    found.map(|region| (region, format)).ok_or_else(|| unreadable("it names no region"))
}

/// Bytes that an ordinary process may still write on the disk of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_forbids_is_told_as_a_matter_of_access() {
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem] {
            let error = io_error(Path::new("/data/LOCK"), kind.into()).to_string();
            assert!(error.starts_with("/data/LOCK can't be read and written") && error.contains("access"), "{error}");
        }
    }

    #[test]
    fn the_marker_is_pinned() {
        assert_eq!(marker_text(7, FORMAT), "tern store\nformat 1\nregion 7\n");
    }
}
