//! Making erased bodies go from the files.
//!
//! Problem: an erasure replaces an entry, but a database of sorted files replaces nothing in place. The old form
//! stays in the journal until that is given up, and in a table until the table is rewritten, which for old
//! entries that nobody touches may be never.
//!
//! Rule: the first erasure that is not purged yet leaves a mark, in its own commit; [`PURGE_AFTER`] later the
//! store purges: the journal is made to move on, all memtables are written, and the tables of entries are
//! rewritten whole. Then the mark goes, unless more was erased meanwhile. So a body is out of every file within
//! [`ERASED_WITHIN`] of its erasure while the store is open, and soon after the next opening otherwise; at once
//! with [`EmbeddedStore::compact`](super::EmbeddedStore::compact). Blocks of a disk that no file has any more are
//! the disk's matter, as are journals that were put aside because they were damaged (`damaged-*`).
//!
//! fjall moves on from a journal only when it holds 64 MB, and offers no way to ask: so that much padding is
//! written. It costs less than a second, once a day at most, and only where something was erased.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use fjall::KeyspaceCreateOptions;
use tern_core::store::StoreError;

use super::super::limits::{DISK_FLOOR_BYTES, PAD_BYTES, PAD_MEMTABLE_BYTES};
use super::open::free_bytes;
use super::tables::{Tables, backend};
use super::writer::monotonic;

/// What a purge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactReport {
    /// Bytes of the tables of entries before.
    pub before_bytes: u64,
    /// And after.
    pub after_bytes: u64,
    /// How long it took.
    pub duration: Duration,
}

const PIECE: usize = 1024 * 1024;
/// How long an old journal may take to go once all that was in it is in tables.
const JOURNAL_GOES_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Rewrites what may hold erased bodies. Blocks; the store serves meanwhile. No snapshot from before the erasures may
/// be open.
pub(super) fn purge(tables: &Tables, dir: &Path, stop: impl Fn() -> bool) -> Result<CompactReport, StoreError> {
    let started = monotonic();
    let before_bytes = tables.entries.disk_space();
    let free = free_bytes(dir).map_err(|e| StoreError::Backend(format!("{}: {e}", dir.display())))?;
    let needed = before_bytes + 2 * PAD_BYTES + DISK_FLOOR_BYTES;
    if free < needed {
        return Err(StoreError::Backend(format!(
            "{free} bytes are free on the store's disk, and rewriting its entries needs up to {needed}"
        )));
    }
    let old = journals(&dir.join("db"))?;
    let pad = tables
        .db
        .keyspace("pad", || KeyspaceCreateOptions::default().max_memtable_size(PAD_MEMTABLE_BYTES))
        .map_err(backend)?;
    let piece = vec![0xa5; PIECE];
    let mut written = 0;
    while written < PAD_BYTES {
        if stop() {
            return Err(StoreError::Backend("the store is being closed".to_owned()));
        }
        let mut batch = tables.db.batch();
        batch.insert(&pad, b"pad", &piece[..]);
        tables.commit(batch, false).map_err(backend)?;
        written += piece.len() as u64;
    }
    let all = [&tables.entries, &tables.rows, &tables.todo, &tables.state, &tables.erased, &tables.quarantine, &pad];
    let deadline = monotonic() + JOURNAL_GOES_WITHIN;
    loop {
        // A memtable with something in it, so that there is a flush after the padding: it is what moves journals on.
        let mut batch = tables.db.batch();
        batch.insert(&pad, b"pad", b"");
        tables.commit(batch, false).map_err(backend)?;
        for keyspace in all {
            keyspace.rotate_memtable_and_wait().map_err(backend)?;
        }
        if old.iter().all(|path| !path.exists()) {
            break;
        }
        if stop() || monotonic() > deadline {
            return Err(StoreError::Backend("an old journal is still there after all of it was flushed".to_owned()));
        }
        #[allow(clippy::disallowed_methods, reason = "a thread of the store's own, which waits for a real disk")]
        sleep(LOOK_EVERY);
    }
    tables.entries.major_compact().map_err(backend)?;
    tables.quarantine.major_compact().map_err(backend)?;
    // A rotation is also what lets go of the tables that were replaced.
    pad.clear().map_err(backend)?;
    let mut batch = tables.db.batch();
    batch.insert(&pad, b"pad", b"");
    tables.commit(batch, false).map_err(backend)?;
    pad.rotate_memtable_and_wait().map_err(backend)?;
    let after_bytes = tables.entries.disk_space();
    Ok(CompactReport { before_bytes, after_bytes, duration: monotonic() - started })
}

fn journals(db: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |e: std::io::Error| StoreError::Backend(format!("{}: {e}", db.display()));
    let mut found = Vec::new();
    for file in fs::read_dir(db).map_err(failed)? {
        let path = file.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            found.push(path);
        }
    }
    Ok(found)
}
