//! Writing a backup, beside a store that serves or of one that is closed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use fjall::Readable;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use tern_core::ids::Region;

use super::super::super::format::{CLEAN_KEY, LogId, PURGE_KEY, parse_entry_key};
use super::super::super::limits::{BACKUP_BUFFER_BYTES, BACKUP_DISK_CHECK_BYTES};
use super::super::open::free_bytes;
use super::super::tables::{Tables, describe};
use super::super::writer::{monotonic, wall_ms};
use super::format::{Header, Kind, TABLES, Table, Writer};
use super::{BackupError, BackupReport, io_error, table_name};

/// What is to be written, and where.
#[derive(Clone, Debug)]
pub(in super::super) struct Plan {
    pub kind: Kind,
    pub region: Region,
    /// A file that does not exist yet, or a directory for one.
    pub to: PathBuf,
    /// The store's directory.
    pub store: PathBuf,
    /// The store's disk must keep so much free, if it is the one that is written to.
    pub reserve_bytes: u64,
}

/// Writes all of a snapshot, syncs it, and gives it its name. `stop` is asked now and then.
pub(in super::super) fn create(
    tables: &Tables,
    plan: &Plan,
    stop: impl Fn() -> bool,
) -> Result<BackupReport, BackupError> {
    let started = monotonic();
    let wall_ms = wall_ms();
    let (path, partial) = target(plan, wall_ms)?;
    if path.try_exists().map_err(|e| io_error(&path, e))? {
        return Err(BackupError::Exists { path });
    }
    let partial = Partial::open(&path, partial)?;
    let reserve = reserve(plan, &partial.file).map_err(|e| io_error(&path, e))?;
    let room = Room { path: &path, dir: parent(&path), reserve };
    room.check(0)?;

    let archived = plan.kind == Kind::Backup && tables.has_marks.load(Ordering::Acquire);
    let header = Header { kind: plan.kind, region: plan.region, wall_ms, archived };
    let out = BufWriter::with_capacity(BACKUP_BUFFER_BYTES, &partial.file);
    let mut writer = Writer::new(out, header).map_err(|e| io_error(&path, e))?;
    // One snapshot: no row of a later commit, all rows of every earlier one, in all tables.
    let snapshot = tables.db.snapshot();
    let mut checked = 0;
    let mut archived: Option<(LogId, u64)> = None;
    for table in TABLES {
        if plan.kind == Kind::Erasures && table != Table::Erased {
            continue;
        }
        for row in snapshot.iter(tables.of(table)) {
            let unreadable = |e: fjall::Error| BackupError::Unreadable { table: table_name(table), what: describe(&e) };
            let (key, value) = row.into_inner().map_err(unreadable)?;
            // A backup was not stopped, and its files never held a body that was erased before.
            if table == Table::State && (*key == *CLEAN_KEY || *key == *PURGE_KEY) {
                continue;
            }
            if let Some((log, seq)) = parse_entry_key(&key).filter(|_| table == Table::Entries) {
                let to = match archived.filter(|(of, _)| *of == log) {
                    Some((_, to)) => to,
                    None => tables.archived_to(&snapshot, log).map_err(|e| BackupError::Unreadable {
                        table: table_name(Table::State),
                        what: e.to_string(),
                    })?,
                };
                archived = Some((log, to));
                // It is in the archive, and waits to be removed.
                if seq <= to {
                    continue;
                }
            }
            writer.put(table, &key, &value).map_err(|e| io_error(&path, e))?;
            if writer.bytes - checked >= BACKUP_DISK_CHECK_BYTES {
                checked = writer.bytes;
                room.check(BACKUP_DISK_CHECK_BYTES)?;
                if stop() {
                    return Err(BackupError::Stopped);
                }
            }
        }
    }
    let (out, counts, bytes) = writer.finish().map_err(|e| io_error(&path, e))?;
    drop(out);
    partial.finish(&path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists { path: path.clone() },
        _ => io_error(&path, e),
    })?;
    Ok(BackupReport { path, bytes, counts, duration: monotonic() - started })
}

/// The file's name: as given, or one of its own in a directory; and its name until it is whole. In a directory that
/// one is always the same, so that what a kill left is taken over by the next backup there.
fn target(plan: &Plan, wall_ms: u64) -> Result<(PathBuf, PathBuf), BackupError> {
    if !plan.to.is_dir() {
        let name = plan.to.file_name().ok_or_else(|| BackupError::NotABackup { path: plan.to.clone() })?;
        let partial = parent(&plan.to).join(format!(".{}.partial", name.to_string_lossy()));
        return Ok((plan.to.clone(), partial));
    }
    let kind = match plan.kind {
        Kind::Backup => "backup",
        Kind::Erasures => "erasures",
    };
    let region = plan.region;
    let path = plan.to.join(format!("tern-region{region}-{wall_ms}.{kind}"));
    Ok((path, plan.to.join(format!(".tern-region{region}.{kind}.partial"))))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What must stay free: the store's reserve, where the backup lies on the store's disk.
fn reserve(plan: &Plan, file: &File) -> io::Result<u64> {
    let same_disk = fs::metadata(&plan.store)?.dev() == file.metadata()?.dev();
    Ok(if same_disk { plan.reserve_bytes } else { 0 })
}

struct Room<'a> {
    path: &'a Path,
    dir: &'a Path,
    reserve: u64,
}

impl Room<'_> {
    fn check(&self, ahead: u64) -> Result<(), BackupError> {
        let free_bytes = free_bytes(self.dir).map_err(|e| io_error(self.path, e))?;
        let needed_bytes = self.reserve.saturating_add(ahead);
        if self.reserve > 0 && free_bytes < needed_bytes {
            return Err(BackupError::Full { path: self.path.to_owned(), free_bytes, needed_bytes });
        }
        Ok(())
    }
}

/// A file without its name yet; removed when dropped. One that a killed process left is taken over.
struct Partial {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl Partial {
    fn open(target: &Path, path: PathBuf) -> Result<Self, BackupError> {
        let failed = |e| io_error(&path, e);
        let no_link = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let mut options = OpenOptions::new();
        // Whoever may read a backup may read every message in it.
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_link);
        let file = options.open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(BackupError::Busy { path: target.to_owned() }),
            Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        // Between open and lock another process may have finished this very file and given it its name.
        let same = fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|ours| now.ino() == ours.ino()));
        if !same {
            return Err(BackupError::Busy { path: target.to_owned() });
        }
        file.set_len(0).map_err(failed)?;
        Ok(Self { file, path, finished: false })
    }

    fn finish(mut self, target: &Path) -> io::Result<()> {
        (&self.file).flush()?;
        self.file.sync_all()?;
        match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // Not every file system can.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !target.try_exists()? => {
                fs::rename(&self.path, target)?;
            }
            Err(error) => return Err(error.into()),
        }
        self.finished = true;
        File::open(parent(target))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // What stays is taken over by the next backup of this name.
            let _stays = fs::remove_file(&self.path);
        }
    }
}
