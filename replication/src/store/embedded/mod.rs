//! A store on one disk, over fjall.
//!
//! One thread writes (`writer`), one runs long reads (`scan`), and short reads run on the task that asks.
//! Calls are queued when they are made, not when their futures are polled, so writes happen in the order of
//! the calls, and a write whose future was dropped still happens. Only while [`WRITE_QUEUE_BYTES`] wait do calls
//! queue up when polled.
//!
//! Dropping the store without [`EmbeddedStore::close`] is, to the next start, a crash: nothing that was answered
//! `Decided` or put `Synced` is lost, but the region takes a new era (R13).

pub mod backup;
pub mod check;
mod chores;
mod heads;
mod journal;
mod manifest;
mod metrics;
mod offline;
mod open;
mod purge;
mod scan;
mod tables;
mod tiering;
mod verify;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Region, UserId};
use tern_core::store::{
    Append, Appended, BoxFut, ConversationHeads, ConversationImage, Durability, Put, Range, RowRecord, Store,
    StoreError, Todo, UserMarks,
};
use tokio::sync::{Semaphore, oneshot};

pub use backup::{BackupError, BackupReport};
pub use check::CheckReport;
pub use journal::JournalDamage;
pub use metrics::StoreMetrics;
pub use offline::Offline;
pub use open::{OpenError, OpenReport, Options, Verify, check_files};
pub use purge::CompactReport;
pub use verify::{CutTail, DamagedLog, Findings, Span};
pub use writer::FailedSync;

use super::archive::Archive;
use super::archive::seam::Found;
use super::conditions;
use super::limits::{COMMAND_BYTES, WRITE_QUEUE_BYTES};
use backup::Plan;
use backup::format::Kind;
use chores::Chores;
use scan::Scans;
use tables::Tables;
use writer::{Command, Marks, Queue, Writer};

const STOPPED: &str = "the store was closed before it answered; what became of the write is not known";

/// An open store. One per directory; share it in an [`Arc`].
pub struct EmbeddedStore {
    queue: Arc<Queue>,
    scans: Arc<Scans>,
    chores: Arc<Chores>,
    region: Region,
    reserve_bytes: u64,
    room: Arc<Semaphore>,
    metrics: StoreMetrics,
    threads: Vec<JoinHandle<()>>,
    archive: Option<Arc<Archive>>,
    /// The store's name in the archive.
    archive_id: [u8; 16],
    /// One pass of tiering at a time.
    tiering: tokio::sync::Mutex<()>,
    /// Bytes of entries that tiering has removed since the tables were rewritten.
    removed_bytes: AtomicU64,
    // In this order: the directory may be opened again only when the database is closed.
    tables: Arc<Tables>,
    claimed: open::Claimed,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("dir", &self.claimed.dir).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store in `dir`, or makes it if the options say so. Blocks while the journal is replayed and the
    /// logs are verified: call it before serving.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, OpenReport), OpenError> {
        let (tables, claimed, report) = open::open(dir, &options)?;
        for damage in &report.journal_damage {
            tracing::error!(file = damage.file, at = damage.at, bytes = damage.bytes, kept_as = %damage.kept_as.display(),
                "part of the store's journal was damaged and has been taken out; peers may still hold what was in it");
        }
        let archive_id = open::archive_id(&tables, &options).map_err(|e| open::unusable(dir, &e))?;
        let failed = options.on_failed_sync.clone().unwrap_or_else(|| Arc::new(abort));
        let tables = Arc::new(tables);
        let queue = Arc::<Queue>::default();
        let scans = Arc::<Scans>::default();
        let chores = Arc::<Chores>::default();
        let metrics = StoreMetrics::default();
        metrics.disk_free_bytes.set(report.disk_free_bytes);
        let writer = Writer::new(
            Arc::clone(&queue),
            Arc::clone(&chores),
            Arc::clone(&tables),
            metrics.clone(),
            failed,
            dir.to_owned(),
            options.disk_reserve_bytes,
        )
        .map_err(|e| OpenError::Unusable { dir: dir.to_owned(), what: e.to_string() })?;
        let mut store = Self {
            queue,
            scans,
            chores,
            region: options.region,
            reserve_bytes: options.disk_reserve_bytes,
            room: Arc::new(Semaphore::new(WRITE_QUEUE_BYTES as usize)),
            metrics,
            threads: Vec::new(),
            archive: options.archive.clone(),
            archive_id,
            tiering: tokio::sync::Mutex::new(()),
            removed_bytes: AtomicU64::new(0),
            tables,
            claimed,
        };
        store.count_damage();
        store.thread("tern-store-write", move || writer.run())?;
        let (scans, tables) = (Arc::clone(&store.scans), Arc::clone(&store.tables));
        store.thread("tern-store-scan", move || scans.work(&tables))?;
        let (chores, tables, queue) = (Arc::clone(&store.chores), Arc::clone(&store.tables), Arc::clone(&store.queue));
        let (dir, metrics) = (dir.to_owned(), store.metrics.clone());
        store.thread("tern-store-chores", move || chores.work(&tables, &dir, &queue, &metrics))?;
        Ok((store, report))
    }

    fn thread(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads.push(thread.map_err(|what| OpenError::Io { path: self.claimed.dir.clone(), what })?);
        Ok(())
    }

    /// Commits what waits, forces everything to the disk and leaves the mark of a clean stop. Writes that come
    /// later are refused; reads go on until the store is dropped, which is what frees the directory.
    pub async fn close(&self) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue.push(Command::Close { answer });
        answered.await.unwrap_or_else(|_| Err(StoreError::Backend("the store is closed already".to_owned())))
    }

    /// Verifies every log as it is now; what is found damaged is refused from then on. Nothing is cut: a tail
    /// that does not verify while the store is in use is damage. Takes about a second per million small entries,
    /// beside the work of the store.
    pub async fn verify(&self) -> Result<Findings, StoreError> {
        let scans = Arc::clone(&self.scans);
        let found = self
            .scans
            .run(move |tables| {
                let mut findings = verify::verify(tables, || scans.is_stopped())
                    .ok_or_else(|| StoreError::Backend("the store is being closed".to_owned()))?;
                findings.damaged.extend(findings.torn.iter().map(|tail| DamagedLog {
                    conversation: tail.conversation,
                    origin: tail.origin,
                    seq: tail.from,
                    what: tail.what.clone(),
                }));
                tables.damage.write().unwrap_or_else(PoisonError::into_inner).add(&findings);
                Ok(findings)
            })
            .await?;
        self.count_damage();
        Ok(found)
    }

    /// Writes a backup to `to`, a file that does not exist yet or a directory for one, while the store serves. It is
    /// of one moment: all that was answered before the call is in it. It goes on if the future is dropped.
    pub async fn backup(&self, to: PathBuf) -> Result<BackupReport, BackupError> {
        self.write_backup(Kind::Backup, to).await
    }

    /// Writes the list of all erased places and whose they were, like [`Self::backup`]. A restore of an older backup
    /// takes it.
    pub async fn export_erasures(&self, to: PathBuf) -> Result<BackupReport, BackupError> {
        self.write_backup(Kind::Erasures, to).await
    }

    async fn write_backup(&self, kind: Kind, to: PathBuf) -> Result<BackupReport, BackupError> {
        let store = self.claimed.dir.clone();
        let plan = Plan { kind, region: self.region, to, store, reserve_bytes: self.reserve_bytes };
        let (chores, metrics) = (Arc::clone(&self.chores), self.metrics.clone());
        let job = move |tables: &Tables| {
            let report = backup::create(tables, &plan, || chores.is_stopped())?;
            metrics.backups.inc();
            metrics.backup_bytes.inc_by(report.bytes);
            Ok(report)
        };
        self.chores.run(job).await.unwrap_or(Err(BackupError::Stopped))
    }

    /// Rewrites the tables of entries and gives up the journal, so that no file of the store holds an erased body any
    /// more. Happens by itself within [`super::limits::ERASED_WITHIN`] of an erasure. The store serves meanwhile.
    pub async fn compact(&self) -> Result<CompactReport, StoreError> {
        let (chores, queue) = (Arc::clone(&self.chores), Arc::clone(&self.queue));
        let (dir, metrics) = (self.claimed.dir.clone(), self.metrics.clone());
        let job = move |tables: &Tables| chores.compact(tables, &dir, &queue, &metrics);
        let closed = || Err(StoreError::Backend("the store is being closed, or too much waits already".to_owned()));
        self.chores.run(job).await.unwrap_or_else(closed)
    }

    fn count_damage(&self) {
        let damage = self.tables.damage.read().unwrap_or_else(PoisonError::into_inner);
        self.metrics.damaged_logs.set(damage.count());
    }

    /// Where old entries are, if the options named it.
    pub fn archive(&self) -> Option<&Arc<Archive>> {
        self.archive.as_ref()
    }

    /// Whether something of the store is in an archive, without which it can't be read.
    pub fn needs_archive(&self) -> bool {
        self.tables.has_marks.load(std::sync::atomic::Ordering::Acquire)
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.claimed.dir
    }

    /// What the store counts.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.metrics
    }

    /// Free bytes on the store's disk, as the system says at this moment.
    pub fn disk_free_bytes(&self) -> std::io::Result<u64> {
        open::free_bytes(&self.claimed.dir)
    }

    /// Bytes that tables and journals take. A journal counts from the start with its full size, most of which is
    /// a hole in the file.
    pub fn disk_used_bytes(&self) -> Result<u64, StoreError> {
        self.tables.db.disk_space().map_err(tables::backend)
    }

    /// Queues a command of so many bytes, now if there is room, else when there is. The future ends with the
    /// command's answer, or `None` if the store was closed first.
    fn submit<T: Send + 'static>(
        &self,
        bytes: usize,
        command: impl FnOnce(oneshot::Sender<T>, tokio::sync::OwnedSemaphorePermit) -> Command + Send + 'static,
    ) -> BoxFut<'_, Option<T>> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(WRITE_QUEUE_BYTES);
        let (answer, answered) = oneshot::channel();
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(bytes) {
            self.queue.push(command(answer, room));
            return Box::pin(async move { answered.await.ok() });
        }
        Box::pin(async move {
            let room = Arc::clone(&self.room).acquire_many_owned(bytes).await.ok()?;
            self.queue.push(command(answer, room));
            answered.await.ok()
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.queue.stop();
        self.scans.stop();
        self.chores.stop();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _panicked = thread.join();
        }
    }
}

impl Store for EmbeddedStore {
    fn append(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>> {
        let count = batches.len();
        if count == 0 {
            return Box::pin(std::future::ready(Vec::new()));
        }
        let bytes = batches.iter().map(append_bytes).sum();
        let answer = self.submit(bytes, move |answer, room| Command::Append { batches, answer, room });
        Box::pin(async move { answer.await.unwrap_or_else(|| vec![Appended::Unknown(STOPPED.to_owned()); count]) })
    }

    fn put(&self, puts: Vec<Put>, durability: Durability) -> BoxFut<'_, Result<(), StoreError>> {
        if let Err(refused) = conditions::acceptable(&puts) {
            return Box::pin(std::future::ready(Err(refused)));
        }
        let bytes = puts.iter().map(put_bytes).sum();
        let synced = durability == Durability::Synced;
        let answer = self.submit(bytes, move |answer, room| Command::Put { puts, synced, answer, room });
        Box::pin(async move { answer.await.unwrap_or_else(|| Err(StoreError::Backend(STOPPED.to_owned()))) })
    }

    fn conversation(&self, conversation: ConvId) -> BoxFut<'_, Result<ConversationImage, StoreError>> {
        Box::pin(async move { self.tables.conversation(conversation) })
    }

    fn range(&self, range: Range) -> BoxFut<'_, Result<Vec<Arc<Entry>>, StoreError>> {
        Box::pin(async move {
            let found_again = |found: Found| {
                let marks = Marks::Other { first: found.first, old: found.old, new: found.new };
                // Whoever reads does not wait for the mark: it only saves the next one the search.
                let (answer, _not_awaited) = oneshot::channel();
                self.queue.push(Command::Mark { log: found.log, marks, answer });
            };
            tiering::range(&self.tables, self.archive.as_deref(), Some(self.archive_id), &range, found_again).await
        })
    }

    fn rows(&self, user: UserId) -> BoxFut<'_, Result<Vec<(ConvId, RowRecord)>, StoreError>> {
        Box::pin(async move { self.tables.rows(&user) })
    }

    fn marks(&self, after: Option<UserId>, limit: usize) -> BoxFut<'_, Result<Vec<UserMarks>, StoreError>> {
        Box::pin(self.scans.run(move |tables| tables.marks(after.as_ref(), limit)))
    }

    fn todo(&self) -> BoxFut<'_, Result<Vec<Todo>, StoreError>> {
        Box::pin(self.scans.run(Tables::todo))
    }

    fn conversations(
        &self,
        after: Option<ConvId>,
        limit: usize,
    ) -> BoxFut<'_, Result<Vec<ConversationHeads>, StoreError>> {
        Box::pin(self.scans.run(move |tables| tables.conversations(after, limit)))
    }

    fn meta(&self, key: &str) -> BoxFut<'_, Result<Option<Bytes>, StoreError>> {
        let value = self.tables.meta(key);
        Box::pin(std::future::ready(value))
    }
}

fn append_bytes(append: &Append) -> usize {
    let todo: usize = append.todo.iter().map(todo_bytes).sum();
    COMMAND_BYTES + todo + append.entries.iter().map(|entry| entry.encoded_len()).sum::<usize>()
}

fn put_bytes(put: &Put) -> usize {
    match put {
        Put::Row { row, .. } => {
            COMMAND_BYTES + 32 * (row.heads.len() + row.read.len() + row.peer_read.len() + row.from.len())
        }
        Put::Erase { .. } => COMMAND_BYTES,
        Put::Todo(todo) => todo_bytes(todo),
        Put::Checkpoint { value, .. } => COMMAND_BYTES + value.len(),
        Put::Meta { key, value } => COMMAND_BYTES + key.len() + value.len(),
    }
}

fn todo_bytes(todo: &Todo) -> usize {
    COMMAND_BYTES + 32 * todo.prefix.len()
}

fn abort(what: &str) {
    tracing::error!(
        "{what}; nothing is known of what is durable, so the process ends and reads its disk again at the next start"
    );
    std::process::abort();
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
