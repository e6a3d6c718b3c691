//! Backups of a store: made while it serves, checked without one, restored into an empty directory.
//!
//! Problem: a copy of the files of a store that is being written is no store, and a backup that is first read
//! when it is needed is no backup.
//!
//! Rule: a backup is one file, written from a snapshot (all tables as of one commit), complete when it has its
//! name, and checked from its first to its last byte without a store. A restore checks it, writes, reads back
//! what it wrote, and only then takes away the mark that makes the directory no store.
//!
//! A restored store is the past: clients and peers know more than it does. So it never goes on with its era, it
//! compares all heads with every peer, and it applies the erasures of the time since before it serves (R13, R16).
//! What it needs to know for that is in its named values: [`REFILL_ALL_KEY`] and [`RESTORED_KEY`].
//!
//! Reading order: [`mod@format`] (the file), `write`, `verify`, `restore`.

pub mod format;
mod restore;
mod verify;
mod write;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tern_core::ids::Region;

use self::format::{Kind, ReadError};
use super::open::OpenError;

pub use self::format::{Counts, Header, Table};
pub use restore::{RestoreReport, restore};
pub use verify::{Verified, verify};
pub(super) use write::{Plan, create};

/// Named value, `[1]` after a restore or a repair: heads must be compared with every peer.
pub const REFILL_ALL_KEY: &str = "refill/all";
/// Named value, `[1]` after a restore: erasures must be applied before anything is served.
pub const RESTORED_KEY: &str = "restored";

/// What was written.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Records of each table.
    pub counts: Counts,
    /// How long it took.
    pub duration: Duration,
}

/// Why a backup could not be made, read or restored. No file and no store is left half-made, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is a file already.
    #[error("{path} exists already, and backups overwrite nothing: choose another name, or a directory", path = .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Two at once.
    #[error("another process is writing a backup to {path}: wait for it, or choose another name", path = .path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// Something else.
    #[error("{path} is no backup of tern: it does not begin like one", path = .path.display())]
    NotABackup {
        /// The file.
        path: PathBuf,
    },
    /// One kind of file where the other belongs.
    #[error("{path} holds {found}, and {expected} is needed here", path = .path.display())]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// A later version wrote it.
    #[error("{path} has backup format {found}, and this version knows format {known}: use the version that wrote it, or a later one", path = .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u8,
        /// Ours.
        known: u8,
    },
    /// It ends too early.
    #[error("{path} is cut off at byte {at}: it was copied in part; use another copy", path = .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where it ends.
        at: u64,
    },
    /// A checksum does not match.
    #[error("{path} is damaged ({what}, in the record at byte {at}): use another copy", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// No room.
    #[error("{path}: the disk has no room ({free_bytes} bytes free, {needed_bytes} needed); nothing was kept: free some, or use another disk", path = .path.display())]
    Full {
        /// What was to be written.
        path: PathBuf,
        /// Free bytes.
        free_bytes: u64,
        /// Needed bytes.
        needed_bytes: u64,
    },
    /// Not allowed.
    #[error("{path}: {what}; give the user that runs this process access", path = .path.display())]
    NoPermission {
        /// The file.
        path: PathBuf,
        /// What the system says.
        what: io::Error,
    },
    /// The system failed.
    #[error("{path}: {what}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        what: io::Error,
    },
    /// The store can't be read.
    #[error("the store's table of {table} can't be read ({what}): run `tern store check`; no backup was made")]
    Unreadable {
        /// Which table.
        table: &'static str,
        /// What the database says.
        what: String,
    },
    /// The store is being closed, or too many backups and compactions wait already.
    #[error("the store was closed before the backup was complete, or too many wait already; no backup was made")]
    Stopped,
    /// There is something already.
    #[error("{dir} is not empty, and a restore overwrites nothing: choose a new directory", dir = .dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// It is another region's.
    #[error("{path} was made of region {found}, and this is region {expected}", path = .path.display())]
    OtherRegion {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: Region,
        /// Who asked.
        expected: Region,
    },
    /// More than fit in memory.
    #[error("{path} lists more than {limit} erasures, which is more than a restore keeps in memory", path = .path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// How many fit.
        limit: usize,
    },
    /// What was written is not what was read.
    #[error("the restored store does not hold what the backup does ({what}): the disk of {dir} is not to be trusted", dir = .dir.display())]
    NotAsWritten {
        /// The directory.
        dir: PathBuf,
        /// What differs.
        what: String,
    },
    /// The store can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

fn io_error(path: &Path, what: io::Error) -> BackupError {
    let path = path.to_owned();
    match what.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => BackupError::NoPermission { path, what },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let free_bytes = path.parent().and_then(|dir| super::open::free_bytes(dir).ok()).unwrap_or(0);
            BackupError::Full { path, free_bytes, needed_bytes: free_bytes + 1 }
        }
        _ => BackupError::Io { path, what },
    }
}

fn read_error(path: &Path, error: ReadError) -> BackupError {
    let path = path.to_owned();
    match error {
        ReadError::NotOne => BackupError::NotABackup { path },
        ReadError::Newer(found) => BackupError::Newer { path, found, known: format::FORMAT },
        ReadError::Truncated(at) => BackupError::Truncated { path, at },
        ReadError::Damaged { at, what } => BackupError::Damaged { path, at, what: what.to_owned() },
        ReadError::Io(what) => io_error(&path, what),
    }
}

type FileReader = format::Reader<io::BufReader<File>>;

/// Opens a file of this kind.
fn open_file(path: &Path, expected: Kind) -> Result<FileReader, BackupError> {
    let file = OpenOptions::new().read(true).open(path).map_err(|e| io_error(path, e))?;
    if file.metadata().map_err(|e| io_error(path, e))?.is_dir() {
        return Err(BackupError::NotABackup { path: path.to_owned() });
    }
    let buffered = io::BufReader::with_capacity(super::super::limits::BACKUP_BUFFER_BYTES, file);
    let reader = format::Reader::new(buffered).map_err(|e| read_error(path, e))?;
    let found = reader.header().kind;
    if found == expected {
        return Ok(reader);
    }
    let name = |kind| match kind {
        Kind::Backup => "a backup",
        Kind::Erasures => "a list of erasures",
    };
    Err(BackupError::OtherKind { path: path.to_owned(), found: name(found), expected: name(expected) })
}

fn table_name(table: Table) -> &'static str {
    match table {
        Table::Entries => "entries",
        Table::Rows => "rows",
        Table::Todo => "todo",
        Table::State => "state",
        Table::Erased => "erased",
        Table::Quarantine => "quarantine",
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
