//! A pass of tiering, see the module above.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fjall::{Readable, Snapshot};
use tern_core::ids::{ConvId, Heads, Origin, Seq};
use tern_core::node::refill::MARK_KEY;
use tern_core::sequencer::LogState;
use tern_core::store::{Store, StoreError, Todo};
use tokio::sync::oneshot;

use super::super::super::archive::format::RunBuilder;
use super::super::super::archive::{Archive, ArchiveError, Run};
use super::super::super::format::{Chain, LogId, checkpoint_key, decode_opaque, entry_key, meta_key, parse_entry_key};
use super::super::super::limits::{
    ARCHIVE_BUCKET_BITS, ARCHIVE_COMPACT_BYTES, ARCHIVE_LIST, ARCHIVE_OBJECT_BYTES, ARCHIVE_ORPHAN_AGE, ARCHIVE_SCAN,
    ARCHIVE_TRIM_ENTRIES,
};
use super::super::EmbeddedStore;
use super::super::tables::{Tables, backend, read_entry};
use super::super::verify::after;
use super::super::writer::{Command, Marks};
use super::mark_of;
use super::marks::Marked;

/// What a pass is to do.
#[derive(Clone, Debug)]
pub struct TierPlan {
    /// The wall clock, in milliseconds.
    pub now_ms: u64,
    /// A bucket moves when its newest entry is older than this.
    pub after: Duration,
    /// Look for objects that no mark names, and delete them.
    pub sweep: bool,
    /// Only say what would move.
    pub dry_run: bool,
    /// Places of a bucket: 2 to this power.
    #[doc(hidden)]
    pub bucket_bits: u32,
    /// Do not ask for checkpoints and todo, for tests of stores without a core.
    #[doc(hidden)]
    pub eager: bool,
    /// End after so many steps as if the process had died, for tests.
    #[doc(hidden)]
    pub steps: Option<u64>,
}

impl TierPlan {
    /// A whole pass.
    pub fn new(now_ms: u64, after: Duration) -> Self {
        let bucket_bits = ARCHIVE_BUCKET_BITS;
        Self { now_ms, after, sweep: false, dry_run: false, bucket_bits, eager: false, steps: None }
    }
}

/// What a pass has found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TierReport {
    /// Buckets that are old enough, moved or not.
    pub due_buckets: u64,
    /// Their entries.
    pub due_entries: u64,
    /// Bytes of those.
    pub due_bytes: u64,
    /// Buckets that are old enough and that something still needs: a todo row, or a checkpoint that does not cover them.
    pub held_back: u64,
    /// Buckets that were moved.
    pub moved_buckets: u64,
    /// Their entries.
    pub moved_entries: u64,
    /// Bytes of objects written for them.
    pub moved_bytes: u64,
    /// Objects written anew.
    pub rewritten: u64,
    /// Objects that no mark named, and that were deleted.
    pub orphans: u64,
    /// Runs in the archive after the pass.
    pub runs: u64,
    /// Bytes of their objects.
    pub archived_bytes: u64,
    /// Runs whose objects another store wrote, from whose backup this one was made.
    pub foreign_runs: u64,
    /// Erased bodies that are still in objects.
    pub unwritten_erasures: u64,
    /// Why nothing moves at present.
    pub waits: Option<&'static str>,
    /// What could not be done, the first of it.
    pub failed: Option<String>,
}

/// Why nothing moves.
const COMPARED: &str = "the store is being compared with another region";

impl TierPlan {
    /// What is not newer is old enough.
    fn oldest_ms(&self) -> u64 {
        self.now_ms.saturating_sub(u64::try_from(self.after.as_millis()).unwrap_or(u64::MAX))
    }
}

impl TierReport {
    fn due(&mut self, bucket: &Bucket) {
        self.due_buckets += 1;
        self.due_entries += bucket.to - bucket.from + 1;
        self.due_bytes += bucket.bytes;
    }

    fn count(&mut self, scanned: &ScannedMarks) {
        self.runs += scanned.runs;
        self.archived_bytes += scanned.bytes;
        self.foreign_runs += scanned.foreign;
        self.unwritten_erasures += scanned.unwritten;
    }
}

/// Up to where each log is done with, of those that todo rows name.
fn undone(todo: &[Todo]) -> BTreeMap<(ConvId, Origin), Seq> {
    let mut undone: BTreeMap<(ConvId, Origin), Seq> = BTreeMap::new();
    for todo in todo {
        for (origin, done) in todo.prefix.iter().filter(|(origin, _)| origin.era != 0) {
            let least = undone.entry((todo.conversation, *origin)).or_insert(*done);
            *least = (*least).min(*done);
        }
    }
    undone
}

fn is_needed(undone: &BTreeMap<(ConvId, Origin), Seq>, bucket: &Bucket) -> bool {
    undone.get(&(bucket.log.conversation, bucket.log.origin)).is_some_and(|done| *done < bucket.to)
}

/// A bucket that could move.
struct Bucket {
    log: LogId,
    from: Seq,
    to: Seq,
    /// What its first entry follows.
    before: Chain,
    /// Milliseconds of its newest entry.
    newest_ms: u64,
    bytes: u64,
}

/// What a scan of some logs has found.
#[derive(Default)]
struct Scanned {
    buckets: Vec<Bucket>,
    /// Entries that are in the archive and still here: from, up to.
    left: Vec<(LogId, Seq, Seq)>,
    next: Option<Vec<u8>>,
}

/// What a scan of some marks has found.
#[derive(Default)]
struct ScannedMarks {
    runs: u64,
    bytes: u64,
    foreign: u64,
    unwritten: u64,
    /// Runs whose objects are not as they should be.
    stale: Vec<(LogId, Marked)>,
    next: Option<Vec<u8>>,
}

/// Counts down the steps of a test.
struct Steps(Option<u64>);

impl Steps {
    fn step(&mut self) -> Result<(), StoreError> {
        match &mut self.0 {
            Some(0) => Err(StoreError::Backend("the test ends here".to_owned())),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Tables {
    /// The next logs from `start` on: their oldest bucket, and what waits to be removed.
    fn scan_logs(&self, start: &[u8], bits: u32) -> Result<Scanned, StoreError> {
        let snapshot = self.db.snapshot();
        let mut found = Scanned::default();
        let mut start = start.to_vec();
        for _ in 0..ARCHIVE_SCAN {
            let Some(first) = snapshot.range(&self.entries, &start[..]..).next() else { return Ok(found) };
            // What can't be read was noted when the store was opened; what stands behind it stays where it is.
            let Ok(key) = first.key() else { return Ok(found) };
            let Some((log, first)) = parse_entry_key(&key) else { return Ok(found) };
            let archived_to = self.archived_to(&snapshot, log)?;
            if first <= archived_to {
                found.left.push((log, first, archived_to));
            }
            if self.refused(log).is_none() {
                found.buckets.extend(self.oldest_bucket(&snapshot, log, bits)?);
            }
            match after(log) {
                Some(next) => start = next.to_vec(),
                None => return Ok(found),
            }
        }
        found.next = Some(start);
        Ok(found)
    }

    /// The oldest bucket of a log that is not in the archive, if it is closed.
    fn oldest_bucket(&self, snapshot: &Snapshot, log: LogId, bits: u32) -> Result<Option<Bucket>, StoreError> {
        let last = self.last_mark(snapshot, log)?;
        let from = last.map_or(0, |(_, mark)| mark.last) + 1;
        let before = last.map_or([0; 16], |(_, mark)| mark.chain);
        self.bucket(snapshot, log, from, before, bits)
    }

    /// The rest of the bucket that entry `from` is in, if it is closed.
    fn bucket(
        &self,
        snapshot: &Snapshot,
        log: LogId,
        from: Seq,
        before: Chain,
        bits: u32,
    ) -> Result<Option<Bucket>, StoreError> {
        let to = from | ((1 << bits) - 1);
        let goes_on = snapshot.range(&self.entries, entry_key(log, to + 1)..=entry_key(log, u64::MAX)).next().is_some();
        if !goes_on {
            return Ok(None);
        }
        let Some(newest) = snapshot.get(&self.entries, entry_key(log, to)).map_err(backend)? else { return Ok(None) };
        let Ok((_, entry)) = read_entry(log, to, &newest) else { return Ok(None) };
        let bytes = (newest.len() as u64).saturating_mul(to - from + 1);
        Ok(Some(Bucket { log, from, to, before, newest_ms: entry.place.hlc >> 16, bytes }))
    }

    /// Values from `from` on, to `to` or until they fill an object.
    fn values(&self, log: LogId, from: Seq, to: Seq) -> Result<Vec<Vec<u8>>, StoreError> {
        let (mut values, mut bytes) = (Vec::new(), 0);
        for row in self.db.snapshot().range(&self.entries, entry_key(log, from)..=entry_key(log, to)) {
            let (_, value) = row.into_inner().map_err(backend)?;
            bytes += value.len() + 4;
            values.push(value.to_vec());
            if bytes >= ARCHIVE_OBJECT_BYTES {
                break;
            }
        }
        Ok(values)
    }

    /// The next marks from `start` on.
    fn scan_marks(&self, start: &[u8], store: &[u8; 16]) -> Result<ScannedMarks, StoreError> {
        let snapshot = self.db.snapshot();
        let mut found = ScannedMarks::default();
        for row in snapshot.range(&self.state, start..&b"b"[..]) {
            let (key, value) = row.into_inner().map_err(backend)?;
            if found.runs >= ARCHIVE_SCAN as u64 {
                found.next = Some(key.to_vec());
                break;
            }
            let (log, (first, mark)) = mark_of(&key, &value)?;
            found.runs += 1;
            found.bytes += mark.bytes;
            let erased = self.erased_in(&snapshot, log, first, mark.last)?.len() as u64;
            let unwritten = erased.saturating_sub(u64::from(mark.erased));
            let foreign = mark.store != *store;
            found.unwritten += unwritten;
            found.foreign += u64::from(foreign);
            if unwritten > 0 || foreign {
                found.stale.push((log, (first, mark)));
            }
        }
        Ok(found)
    }

    /// Up to where each log of a conversation is covered by its checkpoint.
    fn covered(&self, conversation: ConvId) -> Result<Heads, StoreError> {
        let value = self.opaque(&checkpoint_key(conversation))?;
        Ok(value.and_then(|value| LogState::from_checkpoint(conversation, value)).map_or_else(Heads::new, |s| s.heads))
    }

    /// What a pass would find, without doing anything.
    pub(in super::super) fn survey(&self, plan: &TierPlan, store: &[u8; 16]) -> Result<TierReport, StoreError> {
        let mut report = TierReport::default();
        if self.is_compared()? && !plan.eager {
            report.waits = Some(COMPARED);
        }
        let undone = if plan.eager { BTreeMap::new() } else { undone(&self.todo()?) };
        let snapshot = self.db.snapshot();
        let mut start = Vec::new();
        loop {
            let scanned = self.scan_logs(&start, plan.bucket_bits)?;
            for bucket in scanned.buckets {
                let mut next = Some(bucket);
                while let Some(bucket) = next.take().filter(|bucket| bucket.newest_ms <= plan.oldest_ms()) {
                    let log = bucket.log;
                    let covered = || self.covered(log.conversation).map(|heads| heads.get(&log.origin).copied());
                    if is_needed(&undone, &bucket) || !plan.eager && covered()?.is_none_or(|head| head < bucket.to) {
                        report.held_back += 1;
                        break;
                    }
                    report.due(&bucket);
                    next = self.bucket(&snapshot, log, bucket.to + 1, [0; 16], plan.bucket_bits)?;
                }
            }
            match scanned.next {
                Some(next) => start = next,
                None => break,
            }
        }
        let mut start = b"a".to_vec();
        loop {
            let scanned = self.scan_marks(&start, store)?;
            report.count(&scanned);
            match scanned.next {
                Some(next) => start = next,
                None => return Ok(report),
            }
        }
    }

    /// Whether a comparison with a peer is not over: peers may ask for anything.
    fn is_compared(&self) -> Result<bool, StoreError> {
        for row in self.db.snapshot().prefix(&self.state, meta_key(MARK_KEY)) {
            let (_, value) = row.into_inner().map_err(backend)?;
            if decode_opaque(&value).is_ok_and(|value| !value.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl EmbeddedStore {
    /// Goes through all logs and moves what is old to the archive; through all marks, and writes anew what has to be.
    /// What can't be done is told in the report and tried again by the next pass. One pass at a time; dropping the future
    /// ends it between two steps. Without an archive it only says what would move.
    ///
    /// # Errors
    /// The store itself can't be read or written.
    pub async fn tier(&self, plan: &TierPlan) -> Result<TierReport, StoreError> {
        let _one = self.tiering.lock().await;
        let mut report = TierReport::default();
        let mut steps = Steps(plan.steps);
        let Some(archive) = self.archive.clone().filter(|_| !plan.dry_run) else {
            let (plan, store) = (plan.clone(), self.archive_id);
            return self.scans.run(move |tables| tables.survey(&plan, &store)).await;
        };
        if let Err(error) = self.renew(&archive, &mut report, &mut steps).await {
            self.note(&mut report, &error)?;
        }
        if self.scans.run(Tables::is_compared).await? && !plan.eager {
            report.waits = Some(COMPARED);
        }
        self.move_buckets(&archive, plan, &mut report, &mut steps).await?;
        if plan.sweep
            && report.failed.is_none()
            && let Err(error) = self.sweep(&archive, plan.now_ms, &mut report).await
        {
            self.note(&mut report, &error)?;
        }
        self.count_marks(&mut report).await?;
        let metrics = archive.metrics();
        metrics.held_bytes.set(report.archived_bytes);
        metrics.unwritten_erasures.set(report.unwritten_erasures);
        metrics.failed_passes.inc_by(u64::from(report.failed.is_some()));
        self.give_back(report.moved_bytes).await?;
        Ok(report)
    }

    /// A failure of the archive, or of one log, is told; one of the store ends the pass.
    fn note(&self, report: &mut TierReport, error: &StoreError) -> Result<(), StoreError> {
        if let StoreError::Backend(_) = error {
            return Err(error.clone());
        }
        report.failed.get_or_insert_with(|| error.to_string());
        Ok(())
    }

    async fn count_marks(&self, report: &mut TierReport) -> Result<(), StoreError> {
        let (mut start, store) = (b"a".to_vec(), self.archive_id);
        loop {
            let scanned = self.scans.run(move |tables| tables.scan_marks(&start, &store)).await?;
            report.count(&scanned);
            match scanned.next {
                Some(next) => start = next,
                None => return Ok(()),
            }
        }
    }

    /// Writes anew what holds erased bodies, or was written by another store.
    async fn renew(&self, archive: &Archive, report: &mut TierReport, steps: &mut Steps) -> Result<(), StoreError> {
        let mut start = b"a".to_vec();
        let store = self.archive_id;
        loop {
            let scanned = self.scans.run(move |tables| tables.scan_marks(&start, &store)).await?;
            for (log, marked) in scanned.stale {
                match self.renew_one(archive, log, marked, steps).await {
                    Ok(true) => {
                        report.rewritten += 1;
                        archive.metrics().rewritten.inc();
                    }
                    // The next pass looks again.
                    Ok(false) => {}
                    // Others may be whole.
                    Err(error @ StoreError::Damaged { .. }) => self.note(report, &error)?,
                    Err(error) => return Err(error),
                }
            }
            match scanned.next {
                Some(next) => start = next,
                None => return Ok(()),
            }
        }
    }

    /// Whether it was done; not where the mark was replaced meanwhile.
    async fn renew_one(
        &self,
        archive: &Archive,
        log: LogId,
        (first, old): Marked,
        steps: &mut Steps,
    ) -> Result<bool, StoreError> {
        steps.step()?;
        let run = match archive.run(log, first, &old).await {
            Ok(run) => run,
            Err(ArchiveError::Missing(name)) => {
                let again =
                    archive.find_again(log, first, &old, self.archive_id).await.map_err(|error| error.of(log))?;
                Arc::new(again.ok_or_else(|| ArchiveError::Missing(name).of(log))?.0)
            }
            Err(error) => return Err(error.of(log)),
        };
        let erased = self.tables.erased_in(&self.tables.db.snapshot(), log, first, old.last)?;
        let run = run.erased(|seq| erased.contains(&seq));
        let run = run.map_err(|what| self.tables.damaged(log, what))?;
        let new = archive.write(&run, self.archive_id).await.map_err(|error| error.of(log))?;
        steps.step()?;
        if new != old {
            if !self.write_marks(log, Marks::Other { first, old, new }).await? {
                return Ok(false);
            }
            archive.forget(&old);
        }
        steps.step()?;
        let name = archive.name(log, first, &old);
        if name != archive.name(log, first, &new) {
            archive.delete(&name, &self.archive_id).await.map_err(|error| error.of(log))?;
        }
        Ok(true)
    }

    /// Whether they are written; not where something changed meanwhile.
    async fn write_marks(&self, log: LogId, marks: Marks) -> Result<bool, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue.push(Command::Mark { log, marks, answer });
        answered.await.unwrap_or_else(|_| Err(StoreError::Backend("the store is being closed".to_owned())))
    }

    async fn move_buckets(
        &self,
        archive: &Archive,
        plan: &TierPlan,
        report: &mut TierReport,
        steps: &mut Steps,
    ) -> Result<(), StoreError> {
        let undone = if plan.eager { BTreeMap::new() } else { undone(&self.todo().await?) };
        let (mut start, bits) = (Vec::new(), plan.bucket_bits);
        loop {
            let scanned = self.scans.run(move |tables| tables.scan_logs(&start, bits)).await?;
            for (log, from, to) in scanned.left {
                self.trim(log, from, to, steps).await?;
            }
            for bucket in scanned.buckets {
                let mut next = Some(bucket);
                while let Some(bucket) = next.take() {
                    let log = bucket.log;
                    if bucket.newest_ms > plan.oldest_ms() {
                        break;
                    }
                    if is_needed(&undone, &bucket) || !plan.eager && !self.is_covered(log, bucket.to).await? {
                        report.held_back += 1;
                        break;
                    }
                    report.due(&bucket);
                    if report.waits.is_some() {
                        break;
                    }
                    match self.move_bucket(archive, &bucket, report, steps).await {
                        Ok(true) => {
                            report.moved_buckets += 1;
                            archive.metrics().moved_buckets.inc();
                        }
                        Ok(false) => break,
                        // The archive is away: nothing else can be moved either.
                        Err(error @ StoreError::Archive(_)) => return self.note(report, &error),
                        Err(error) => {
                            self.note(report, &error)?;
                            break;
                        }
                    }
                    let again = move |tables: &Tables| tables.oldest_bucket(&tables.db.snapshot(), log, bits);
                    next = self.scans.run(again).await?;
                }
            }
            match scanned.next {
                Some(next) => start = next,
                None => return Ok(()),
            }
        }
    }

    async fn is_covered(&self, log: LogId, to: Seq) -> Result<bool, StoreError> {
        let covered = self.scans.run(move |tables| tables.covered(log.conversation)).await?;
        Ok(covered.get(&log.origin).is_some_and(|head| *head >= to))
    }

    /// Whether all of it was moved; not where a body was erased meanwhile.
    async fn move_bucket(
        &self,
        archive: &Archive,
        bucket: &Bucket,
        report: &mut TierReport,
        steps: &mut Steps,
    ) -> Result<bool, StoreError> {
        let (log, mut from, mut before) = (bucket.log, bucket.from, bucket.before);
        while from <= bucket.to {
            let to = bucket.to;
            let values = self.scans.run(move |tables| tables.values(log, from, to)).await?;
            let run = build(log, from, before, &values).map_err(|what| self.tables.damaged(log, what))?;
            steps.step()?;
            let mark = archive.write(&run, self.archive_id).await.map_err(|error| error.of(log))?;
            steps.step()?;
            if !self.write_marks(log, Marks::New(from, mark)).await? {
                return Ok(false);
            }
            steps.step()?;
            self.trim(log, from, mark.last, steps).await?;
            let entries = mark.last - from + 1;
            report.moved_entries += entries;
            report.moved_bytes += mark.bytes;
            archive.metrics().moved_entries.inc_by(entries);
            archive.metrics().moved_bytes.inc_by(mark.bytes);
            (from, before) = (mark.last + 1, mark.chain);
        }
        Ok(true)
    }

    /// Removes what is in the archive, some at a time, from the lowest on.
    async fn trim(&self, log: LogId, from: Seq, to: Seq, steps: &mut Steps) -> Result<(), StoreError> {
        let mut from = from;
        while from <= to {
            let upto = to.min(from + ARCHIVE_TRIM_ENTRIES - 1);
            let (answer, answered) = oneshot::channel();
            self.queue.push(Command::Trim { log, from, to: upto, answer });
            answered.await.unwrap_or_else(|_| Err(StoreError::Backend("the store is being closed".to_owned())))?;
            steps.step()?;
            from = upto + 1;
        }
        Ok(())
    }

    /// Deletes objects of this store that no mark names and that are old enough not to be under way.
    async fn sweep(&self, archive: &Archive, now_ms: u64, report: &mut TierReport) -> Result<(), StoreError> {
        let store = self.archive_id;
        let failed = |error: ArchiveError| StoreError::Archive(error.to_string());
        let mut after: Option<String> = None;
        let orphan_ms = u64::try_from(ARCHIVE_ORPHAN_AGE.as_millis()).unwrap_or(u64::MAX);
        loop {
            let page = archive.list(&store, after.as_deref(), ARCHIVE_LIST).await.map_err(failed)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.name.clone());
            for listed in page.iter().filter(|listed| now_ms.saturating_sub(listed.written_ms) >= orphan_ms) {
                // A name of another form is nobody's of ours.
                let Some((log, first)) = archive.parse(&store, &listed.name) else { continue };
                // Asked after the object was seen: a mark is written before its object is that old.
                let mark = self.tables.mark_at(&self.tables.db.snapshot(), log, first)?;
                if mark.is_some_and(|(at, mark)| at == first && archive.name(log, first, &mark) == listed.name) {
                    continue;
                }
                archive.delete(&listed.name, &store).await.map_err(failed)?;
                report.orphans += 1;
                archive.metrics().orphans.inc();
            }
        }
    }

    /// Rewrites the tables once enough was removed: only that gives the disk back.
    async fn give_back(&self, moved_bytes: u64) -> Result<(), StoreError> {
        let removed = self.removed_bytes.fetch_add(moved_bytes, Ordering::AcqRel) + moved_bytes;
        if removed < ARCHIVE_COMPACT_BYTES {
            return Ok(());
        }
        self.removed_bytes.store(0, Ordering::Release);
        let job = |tables: &Tables| {
            tables.entries.rotate_memtable_and_wait().map_err(backend)?;
            tables.entries.major_compact().map_err(backend)
        };
        self.chores.run(job).await.unwrap_or(Ok(()))
    }
}

fn build(log: LogId, first: Seq, before: Chain, values: &[Vec<u8>]) -> Result<Run, String> {
    let mut builder = RunBuilder::new(log, first, before);
    values.iter().try_for_each(|value| builder.push(value))?;
    if builder.is_empty() {
        return Err(format!("entry {first} is missing"));
    }
    Ok(builder.finish())
}
