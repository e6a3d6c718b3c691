//! Limits of the stores. Together they bound what an embedded store holds in memory: the block cache ([`CACHE_BYTES`]),
//! memtables (each up to twice its limit, one active and one on its way to disk: 92 MiB in all, and 8 more while bodies
//! are erased), the write queue ([`WRITE_QUEUE_BYTES`]) and the heads of active logs (about 10 MiB).

use std::time::Duration;

/// Block cache of the embedded store, in bytes, unless the options say otherwise. Recent entries are in
/// memtables and the rest in the page cache, so a larger one gains little.
pub const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// Memtable of entries: the larger, the fewer files per second of full load; 32 MiB hold about 80,000 small
/// messages.
pub const ENTRIES_MEMTABLE_BYTES: u64 = 32 * 1024 * 1024;
/// Memtable of rows, which are overwritten in place while they stay in memory.
pub const ROWS_MEMTABLE_BYTES: u64 = 8 * 1024 * 1024;
/// Memtable of todo rows. Small, so that their tombstones are compacted away soon: every scan reads them.
pub const TODO_MEMTABLE_BYTES: u64 = 2 * 1024 * 1024;
/// Memtable of checkpoints and named values.
pub const STATE_MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;
/// Memtables of erased places and of what repairs took out: written seldom.
pub const RARE_MEMTABLE_BYTES: u64 = 1024 * 1024;
/// All journal files together; above it the oldest data is flushed. Bounds the replay after a crash to about
/// two seconds.
pub const JOURNAL_BYTES: u64 = 192 * 1024 * 1024;
/// Background threads of fjall: one may flush while the other compacts.
pub const BACKGROUND_THREADS: usize = 2;
/// Bytes of writes that wait or are being committed; callers beyond it wait their turn. Bounds a group too:
/// at 16 MiB it takes some 100 ms on a slow disk.
pub const WRITE_QUEUE_BYTES: u32 = 16 * 1024 * 1024;
/// What a command counts for in the queue beside its content.
pub const COMMAND_BYTES: usize = 128;
/// Scans (todo, conversations, verify) that may wait; a node has at most a handful at once, so more is a
/// fault of the caller and is answered with an error.
pub const SCAN_QUEUE: usize = 64;
/// Heads of active logs that the writer remembers, in two halves; others are read again from the table.
pub const HEAD_CACHE: usize = 65_536;
/// Free disk is asked for at most this often, in milliseconds.
pub const DISK_CHECK_MS: u64 = 1_000;
/// Below this much free disk rows and todo are refused as well: a journal write that fails for want of space
/// would stop the process, while a refused put does not.
pub const DISK_FLOOR_BYTES: u64 = 32 * 1024 * 1024;
/// What a new store takes at once beside its reserve: the journal's first file.
pub const INIT_BYTES: u64 = 64 * 1024 * 1024;
/// Longest value that a backup is read with: far above a checkpoint of the largest conversation, far below what
/// a damaged length could ask for.
pub const BACKUP_VALUE_BYTES: usize = 256 * 1024 * 1024;
/// Written to a backup at once.
pub const BACKUP_BUFFER_BYTES: usize = 1024 * 1024;
/// How often a backup looks whether the store's disk still has its reserve, in bytes written.
pub const BACKUP_DISK_CHECK_BYTES: u64 = 16 * 1024 * 1024;
/// Records that a restore commits at once, and their bytes: bounds its memory.
pub const RESTORE_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Erased identities that a restore keeps in memory, about 60 bytes each.
pub const RESTORE_ERASURES: usize = 4_000_000;
/// Findings of each kind that are listed; the rest is counted.
pub const FINDINGS_LISTED: usize = 1_000;
/// Backups and compactions that may wait for the one that runs.
pub const CHORE_QUEUE: usize = 8;
/// Erased bodies are out of the store's files after at most so long, while it is open: within a day.
pub const ERASED_WITHIN: Duration = Duration::from_secs(24 * 3_600);
/// So long after the first erasure the entries are rewritten. Rewriting costs the reading and writing of all
/// entries, so it is done once a day and not once an erasure; what is left of [`ERASED_WITHIN`] is for rewriting.
pub const PURGE_AFTER: Duration = Duration::from_secs(20 * 3_600);
/// A purge that failed, for want of disk space say, is tried again after so long.
pub const PURGE_RETRY: Duration = Duration::from_secs(1_800);
/// Padding that makes fjall move on from its journal, which it does above 64 MB.
pub const PAD_BYTES: u64 = 65 * 1024 * 1024;
/// Memtable of the padding.
pub const PAD_MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;
/// Entries of a log whose numbers have these bits in common beside the lower ones move to the archive together: 4,096.
/// The same as a partition of the store on ScyllaDB.
pub const ARCHIVE_BUCKET_BITS: u32 = 12;
/// An object of the archive ends above this: small enough to be read for a page of history, large enough that requests
/// do not cost more than what is kept.
pub const ARCHIVE_OBJECT_BYTES: usize = 2 * 1024 * 1024;
/// No object is longer: the above and one entry of the longest kind. What is longer is not read.
pub const ARCHIVE_OBJECT_BYTES_MAX: usize = ARCHIVE_OBJECT_BYTES + 256 * 1024;
/// Objects in memory, in bytes, unless the options say otherwise. Whoever reads old history reads an object page by page.
pub const ARCHIVE_CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// What a request to the object store may take, unless the options say otherwise.
pub const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Reads of objects under way at once: each holds an object, so 20 MiB.
pub const ARCHIVE_READS: usize = 8;
/// Reads that may wait for an object; more are refused, and their clients come again.
pub const ARCHIVE_READS_WAITING: usize = 256;
/// After a request that failed or got no answer the object store is left alone for so long.
pub const ARCHIVE_PAUSE: Duration = Duration::from_secs(1);
/// Objects of one bucket that are looked at for one that was replaced.
pub const ARCHIVE_FOLDER_OBJECTS: usize = 1_024;
/// Objects that are listed at once.
pub const ARCHIVE_LIST: usize = 1_000;
/// An object that no mark names is deleted when it is older: whoever wrote it had that long to write the mark.
pub const ARCHIVE_ORPHAN_AGE: Duration = Duration::from_secs(24 * 3_600);
/// How often objects that no mark names are looked for, beside the first time after a start. A list costs a request per
/// thousand objects.
pub const ARCHIVE_SWEEP_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// Entries that one commit removes after they were archived: some milliseconds of the writer.
pub const ARCHIVE_TRIM_ENTRIES: u64 = 512;
/// Logs, or marks, that one scan looks at for tiering before it lets others read.
pub const ARCHIVE_SCAN: usize = 1_000;
/// After so many archived bytes the tables of entries are rewritten, which is what gives the disk back.
pub const ARCHIVE_COMPACT_BYTES: u64 = 256 * 1024 * 1024;
