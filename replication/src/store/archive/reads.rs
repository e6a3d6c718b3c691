//! Reading and writing runs: verified, cached, and bounded in number and time.
//!
//! A read of an object that several ask for is done once. At most [`ARCHIVE_READS`] are under way; of those that wait
//! beyond [`ARCHIVE_READS_WAITING`], and for [`ARCHIVE_PAUSE`] after one that got no answer, the next are told at once
//! that the archive can't be read: a dead object store costs whoever scrolls back an error, and nobody a queue.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tern_core::ids::{Region, Seq};
use tern_core::store::StoreError;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::super::format::{ArchiveMark, LogId};
use super::super::limits::{
    ARCHIVE_CACHE_BYTES, ARCHIVE_FOLDER_OBJECTS, ARCHIVE_OBJECT_BYTES_MAX, ARCHIVE_PAUSE, ARCHIVE_READS,
    ARCHIVE_READS_WAITING, ARCHIVE_TIMEOUT,
};
use super::format::{Run, bucket_folder, is_hash, object_name, parse_name, store_folder};
use super::metrics::ArchiveMetrics;
use super::objects::{Listed, ObjectError, Objects};
use super::seam::Marked;

/// Why a run could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// The object store does not answer, or too many wait for it. The same may succeed later.
    #[error("the archive can't be reached: {0}")]
    Unavailable(String),
    /// The object is gone.
    #[error("object {0} of the archive is missing")]
    Missing(String),
    /// The object is not what was written.
    #[error("object {name} of the archive is damaged: {what}")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
}

impl ArchiveError {
    /// As the answer to a read of this log.
    pub fn of(self, log: LogId) -> StoreError {
        match self {
            Self::Unavailable(what) => StoreError::Archive(what),
            other => damaged(log, other.to_string()),
        }
    }
}

/// How an archive is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveOptions {
    /// Bytes of objects in memory.
    pub cache_bytes: u64,
    /// What a request may take.
    pub timeout: Duration,
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        Self { cache_bytes: ARCHIVE_CACHE_BYTES, timeout: ARCHIVE_TIMEOUT }
    }
}

type Hash = [u8; 32];

#[derive(Default)]
struct State {
    /// By hash; with when each was last used.
    runs: BTreeMap<Hash, (Arc<Run>, u64)>,
    /// From the one used longest ago on.
    used: BTreeMap<u64, Hash>,
    clock: u64,
    bytes: u64,
    /// Reads under way, and a lock that those wait for who want the same.
    reading: BTreeMap<Hash, Arc<tokio::sync::Mutex<()>>>,
    broken_until: Option<Instant>,
}

/// A region's part of an object store. Share it in an [`Arc`].
pub struct Archive {
    objects: Arc<dyn Objects>,
    deployment: String,
    region: Region,
    /// Runs lie with the region whose log they are of.
    by_origin: bool,
    options: ArchiveOptions,
    permits: Semaphore,
    waiting: AtomicUsize,
    state: Mutex<State>,
    metrics: ArchiveMetrics,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("region", &self.region).finish_non_exhaustive()
    }
}

/// Takes a read out of those under way, also where nobody waits for its end.
struct Done<'a>(&'a Archive, Hash);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.state().reading.remove(&self.1);
    }
}

/// Counts one who waits for as long as it lives.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Archive {
    /// Of this region of this deployment. Asks nothing of the object store yet.
    pub fn new(objects: Arc<dyn Objects>, deployment: &str, region: Region, options: ArchiveOptions) -> Self {
        let word = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let deployment: String = deployment.chars().map(word).collect();
        Self {
            objects,
            deployment,
            region,
            by_origin: false,
            options,
            permits: Semaphore::new(ARCHIVE_READS),
            waiting: AtomicUsize::new(0),
            state: Mutex::default(),
            metrics: ArchiveMetrics::default(),
        }
    }

    /// The same for a region whose entries lie in one database with those of others: each region writes the runs of its
    /// own logs, and reads those of all.
    #[must_use]
    pub fn of_all_regions(mut self) -> Self {
        self.by_origin = true;
        self
    }

    /// Whose it is.
    pub fn region(&self) -> Region {
        self.region
    }

    /// The folder of what a region has written.
    fn folder(&self, region: Region) -> String {
        format!("{}/region-{region}", self.deployment)
    }

    /// The folder of the region that writes the runs of a log.
    fn folder_of(&self, log: LogId) -> String {
        self.folder(if self.by_origin { log.origin.region } else { self.region })
    }

    /// What it counts.
    pub fn metrics(&self) -> &ArchiveMetrics {
        &self.metrics
    }

    /// The name of the object that a mark names.
    pub fn name(&self, log: LogId, first: Seq, mark: &ArchiveMark) -> String {
        object_name(&self.folder_of(log), log, first, mark)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run that a mark names.
    ///
    /// # Errors
    /// See [`ArchiveError`]. Nothing that does not verify is returned. Dropping the future gives the read up.
    pub async fn run(&self, log: LogId, first: Seq, mark: &ArchiveMark) -> Result<Arc<Run>, ArchiveError> {
        if let Some(run) = self.cached(&mark.hash) {
            self.metrics.cached_reads.inc();
            return Ok(run);
        }
        let waiting = self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waits = Waits(&self.waiting);
        if waiting >= ARCHIVE_READS_WAITING {
            self.metrics.failed_reads.inc();
            return Err(ArchiveError::Unavailable(format!("{ARCHIVE_READS_WAITING} reads wait already")));
        }
        let lock = self.state().reading.entry(mark.hash).or_default().clone();
        let _same = lock.lock().await;
        if let Some(run) = self.cached(&mark.hash) {
            self.metrics.cached_reads.inc();
            return Ok(run);
        }
        let _done = Done(self, mark.hash);
        let run = Arc::new(self.fetch(log, first, mark).await?);
        self.keep(mark.hash, &run);
        Ok(run)
    }

    async fn fetch(&self, log: LogId, first: Seq, mark: &ArchiveMark) -> Result<Run, ArchiveError> {
        let name = self.name(log, first, mark);
        let run = self.fetch_named(&name, log).await?;
        if run.mark(mark.store) == *mark && run.first == first {
            return Ok(run);
        }
        self.metrics.damaged_reads.inc();
        Err(ArchiveError::Damaged { name, what: "it is another one than the mark in the store names".to_owned() })
    }

    async fn fetch_named(&self, name: &str, log: LogId) -> Result<Run, ArchiveError> {
        let _permit = self.permits.acquire().await;
        let begun = Instant::now();
        let object = self.asked(self.objects.get(name, ARCHIVE_OBJECT_BYTES_MAX as u64)).await;
        self.metrics.read_seconds.observe(begun.elapsed().as_secs_f64());
        let object = object.map_err(|error| self.failed(name, error))?;
        self.metrics.reads.inc();
        self.metrics.read_bytes.inc_by(object.len() as u64);
        let run = Run::read(object)
            .and_then(|run| if run.log == log { Ok(run) } else { Err("it holds another log's entries".to_owned()) });
        run.map_err(|what| {
            self.metrics.damaged_reads.inc();
            ArchiveError::Damaged { name: name.to_owned(), what }
        })
    }

    /// Another object of the run that a mark names: the same entries, maybe with other bodies erased. Whoever wrote it
    /// is the store that the mark names or `store`. For marks from a backup: what they name may have been replaced since.
    pub async fn find_again(
        &self,
        log: LogId,
        first: Seq,
        mark: &ArchiveMark,
        store: [u8; 16],
    ) -> Result<Option<(Run, ArchiveMark)>, ArchiveError> {
        let mut found: Option<(Run, ArchiveMark)> = None;
        let region = self.folder_of(log);
        for store in if store == mark.store { vec![store] } else { vec![mark.store, store] } {
            let folder = bucket_folder(&region, &store, log, first);
            let listed = self.asked(self.objects.list(&folder, None, ARCHIVE_FOLDER_OBJECTS)).await;
            for listed in listed.map_err(|error| self.failed(&folder, error))? {
                let is_it = parse_name(&region, &store, &listed.name);
                if is_it.is_none_or(|(of, at, hash)| of != log || at != first || is_hash(hash, &mark.hash)) {
                    continue;
                }
                let Ok(run) = self.fetch_named(&listed.name, log).await else { continue };
                let other = run.mark(store);
                let same = run.first == first && other.last == mark.last && other.chain == mark.chain;
                // Of several the one of which most is erased: it was the last.
                if same && found.as_ref().is_none_or(|(_, best)| best.erased < other.erased) {
                    found = Some((run, other));
                }
            }
        }
        Ok(found)
    }

    /// Writes a run and reads it back.
    pub async fn write(&self, run: &Run, store: [u8; 16]) -> Result<ArchiveMark, ArchiveError> {
        let mark = run.mark(store);
        let name = self.name(run.log, run.first, &mark);
        self.asked(self.objects.put(&name, run.object().clone())).await.map_err(|error| self.failed(&name, error))?;
        self.fetch(run.log, run.first, &mark).await?;
        Ok(mark)
    }

    /// The run that a mark names, or the one that took its place, see [`Self::find_again`].
    ///
    /// # Errors
    /// See [`Self::run`].
    pub async fn run_or_other(
        &self,
        log: LogId,
        first: Seq,
        mark: &ArchiveMark,
        store: [u8; 16],
    ) -> Result<Arc<Run>, ArchiveError> {
        match self.run(log, first, mark).await {
            Err(error @ ArchiveError::Missing(_)) => {
                let again = self.find_again(log, first, mark, store).await?;
                Ok(Arc::new(again.ok_or(error)?.0))
            }
            run => run,
        }
    }

    /// Writes the run that a mark names anew, with more bodies erased, or under the name of `store` where another one wrote
    /// it; its mark then. The old object stays: the new mark must be durable before it goes.
    ///
    /// # Errors
    /// Those of reading and writing, as the answer to a read of this log.
    pub async fn rewrite(
        &self,
        log: LogId,
        (first, old): Marked,
        erased: &BTreeSet<Seq>,
        store: [u8; 16],
    ) -> Result<ArchiveMark, StoreError> {
        let run = self.run_or_other(log, first, &old, store).await.map_err(|error| error.of(log))?;
        let run = run.erased(|seq| erased.contains(&seq)).map_err(|what| damaged(log, what))?;
        self.write(&run, store).await.map_err(|error| error.of(log))
    }

    /// Whether the object that a mark names is there and as long as it was, without reading it.
    pub async fn is_there(&self, log: LogId, first: Seq, mark: &ArchiveMark) -> Result<(), ArchiveError> {
        let name = self.name(log, first, mark);
        match self.asked(self.objects.length(&name)).await {
            Ok(bytes) if bytes == mark.bytes => Ok(()),
            Ok(bytes) => {
                let what = format!("it has {bytes} bytes, and {} were written", mark.bytes);
                Err(ArchiveError::Damaged { name, what })
            }
            Err(error) => Err(self.failed(&name, error)),
        }
    }

    /// Deletes an object of `store`'s own; that of another store is left.
    pub async fn delete(&self, name: &str, store: &[u8; 16]) -> Result<(), ArchiveError> {
        if parse_name(&self.folder(self.region), store, name).is_none() {
            return Ok(());
        }
        self.asked(self.objects.delete(name)).await.map_err(|error| self.failed(name, error))
    }

    /// Objects of a store, page by page in order of their names.
    pub async fn list(&self, store: &[u8; 16], after: Option<&str>, limit: usize) -> Result<Vec<Listed>, ArchiveError> {
        let folder = store_folder(&self.folder(self.region), store);
        self.asked(self.objects.list(&folder, after, limit)).await.map_err(|error| self.failed(&folder, error))
    }

    /// What a name of [`Self::list`] says: which run, and whether a mark names just this object.
    pub fn parse(&self, store: &[u8; 16], name: &str) -> Option<(LogId, Seq)> {
        parse_name(&self.folder(self.region), store, name).map(|(log, first, _)| (log, first))
    }

    /// Forgets a run that was replaced.
    pub fn forget(&self, mark: &ArchiveMark) {
        let mut state = self.state();
        if let Some((run, used)) = state.runs.remove(&mark.hash) {
            state.used.remove(&used);
            state.bytes -= run.bytes();
        }
        self.metrics.cache_bytes.set(state.bytes);
    }

    async fn asked<T>(&self, request: impl Future<Output = Result<T, ObjectError>>) -> Result<T, ObjectError> {
        let broken = self.state().broken_until.filter(|until| *until > Instant::now());
        if broken.is_some() {
            return Err(ObjectError::Failed("it did not answer a moment ago".to_owned()));
        }
        let answer = match tokio::time::timeout(self.options.timeout, request).await {
            Ok(answer) => answer,
            Err(_late) => Err(ObjectError::Failed(format!("no answer within {} ms", self.options.timeout.as_millis()))),
        };
        let failed = matches!(answer, Err(ObjectError::Failed(_)));
        self.state().broken_until = failed.then(|| Instant::now() + ARCHIVE_PAUSE);
        answer
    }

    fn failed(&self, name: &str, error: ObjectError) -> ArchiveError {
        match error {
            ObjectError::Missing => {
                self.metrics.damaged_reads.inc();
                ArchiveError::Missing(name.to_owned())
            }
            ObjectError::TooLong(_) => {
                self.metrics.damaged_reads.inc();
                ArchiveError::Damaged { name: name.to_owned(), what: error.to_string() }
            }
            ObjectError::Failed(what) => {
                self.metrics.failed_reads.inc();
                ArchiveError::Unavailable(what)
            }
        }
    }

    fn cached(&self, hash: &Hash) -> Option<Arc<Run>> {
        let mut state = self.state();
        let state = &mut *state;
        let (run, used) = state.runs.get_mut(hash)?;
        state.clock += 1;
        state.used.remove(used);
        *used = state.clock;
        state.used.insert(state.clock, *hash);
        Some(run.clone())
    }

    fn keep(&self, hash: Hash, run: &Arc<Run>) {
        let mut state = self.state();
        let state = &mut *state;
        state.clock += 1;
        if let Some((old, used)) = state.runs.insert(hash, (run.clone(), state.clock)) {
            state.used.remove(&used);
            state.bytes -= old.bytes();
        }
        state.used.insert(state.clock, hash);
        state.bytes += run.bytes();
        while state.bytes > self.options.cache_bytes {
            let Some((_, oldest)) = state.used.pop_first() else { break };
            if let Some((gone, _)) = state.runs.remove(&oldest) {
                state.bytes -= gone.bytes();
            }
        }
        self.metrics.cache_bytes.set(state.bytes);
    }
}

/// The answer where a log is not what it should be.
pub fn damaged(log: LogId, what: String) -> StoreError {
    StoreError::Damaged { conversation: log.conversation, origin: log.origin, what }
}

/// The answer to a read of what is in an archive that the configuration does not name.
pub fn not_configured(log: LogId) -> StoreError {
    let conversation = log.conversation;
    StoreError::Archive(format!(
        "old entries of conversation {conversation} were moved to an archive, and store.tier.url is not set"
    ))
}

#[cfg(test)]
#[path = "reads_tests.rs"]
mod tests;
