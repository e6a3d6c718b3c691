//! A pass of tiering, see the module above.

use std::future::ready;
use std::sync::atomic::Ordering;

use fjall::{Readable, Snapshot};
use tern_core::ids::Seq;
use tern_core::node::refill::MARK_KEY;
use tern_core::sequencer::LogState;
use tern_core::store::{Store, StoreError};
use tokio::sync::oneshot;

use super::super::super::archive::Archive;
use super::super::super::archive::plan::{Bucket, COMPARED, Steps, TierPlan, TierReport, Undone, bucket_end, build};
use super::super::super::archive::seam::Marked;
use super::super::super::format::{Chain, LogId, checkpoint_key, decode_opaque, entry_key, meta_key, parse_entry_key};
use super::super::super::limits::{ARCHIVE_COMPACT_BYTES, ARCHIVE_OBJECT_BYTES, ARCHIVE_SCAN, ARCHIVE_TRIM_ENTRIES};
use super::super::EmbeddedStore;
use super::super::tables::{Tables, backend, read_entry};
use super::super::verify::after;
use super::super::writer::{Command, Marks};
use super::mark_of;

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
    /// Marks, how many places in each are erased.
    marks: Vec<(LogId, Marked, u64)>,
    next: Option<Vec<u8>>,
}

impl ScannedMarks {
    /// Counts them; those whose objects are not as they should be.
    fn count(self, report: &mut TierReport, store: &[u8; 16]) -> Vec<(LogId, Marked)> {
        let stale = self.marks.into_iter().filter(|(_, (_, mark), erased)| report.count(mark, *erased, store));
        stale.map(|(log, marked, _)| (log, marked)).collect()
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
        let (from, before) = Bucket::after(self.last_mark(snapshot, log)?.as_ref());
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
        let to = bucket_end(from, bits);
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
    fn scan_marks(&self, start: &[u8]) -> Result<ScannedMarks, StoreError> {
        let snapshot = self.db.snapshot();
        let mut found = ScannedMarks::default();
        for row in snapshot.range(&self.state, start..&b"b"[..]) {
            let (key, value) = row.into_inner().map_err(backend)?;
            if found.marks.len() >= ARCHIVE_SCAN {
                found.next = Some(key.to_vec());
                break;
            }
            let (log, (first, mark)) = mark_of(&key, &value)?;
            let erased = self.erased_in(&snapshot, log, first, mark.last)?.len() as u64;
            found.marks.push((log, (first, mark), erased));
        }
        Ok(found)
    }

    /// Up to where its conversation's checkpoint covers a log.
    fn covered(&self, log: LogId) -> Result<Seq, StoreError> {
        let value = self.opaque(&checkpoint_key(log.conversation))?;
        let state = value.and_then(|value| LogState::from_checkpoint(log.conversation, value));
        Ok(state.and_then(|state| state.heads.get(&log.origin).copied()).unwrap_or(0))
    }

    /// What a pass would find, without doing anything.
    pub(in super::super) fn survey(&self, plan: &TierPlan, store: &[u8; 16]) -> Result<TierReport, StoreError> {
        let mut report = TierReport::default();
        if self.is_compared()? && !plan.eager {
            report.waits = Some(COMPARED);
        }
        let undone = if plan.eager { Undone::default() } else { Undone::new(&self.todo()?) };
        let snapshot = self.db.snapshot();
        let mut start = Vec::new();
        loop {
            let scanned = self.scan_logs(&start, plan.bucket_bits)?;
            for bucket in scanned.buckets {
                let mut next = Some(bucket);
                while let Some(bucket) = next.take().filter(|bucket| plan.is_old(bucket)) {
                    let covered = if plan.eager { None } else { Some(self.covered(bucket.log)?) };
                    if !report.judge(&undone, &bucket, covered) {
                        break;
                    }
                    next = self.bucket(&snapshot, bucket.log, bucket.to + 1, [0; 16], plan.bucket_bits)?;
                }
            }
            match scanned.next {
                Some(next) => start = next,
                None => break,
            }
        }
        let mut start = b"a".to_vec();
        loop {
            let mut scanned = self.scan_marks(&start)?;
            let next = scanned.next.take();
            scanned.count(&mut report, store);
            match next {
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
        let mut steps = Steps::new(plan);
        let Some(archive) = self.archive.clone().filter(|_| !plan.dry_run) else {
            let (plan, store) = (plan.clone(), self.archive_id);
            return self.scans.run(move |tables| tables.survey(&plan, &store)).await;
        };
        if let Err(error) = self.renew(&archive, &mut report, &mut steps).await {
            report.note(&error)?;
        }
        if self.scans.run(Tables::is_compared).await? && !plan.eager {
            report.waits = Some(COMPARED);
        }
        self.move_buckets(&archive, plan, &mut report, &mut steps).await?;
        if plan.sweep
            && report.failed.is_none()
            && let Err(error) = self.sweep(&archive, plan.now_ms, &mut report).await
        {
            report.note(&error)?;
        }
        self.count_marks(&mut report).await?;
        report.publish(&archive);
        self.give_back(report.moved_bytes).await?;
        Ok(report)
    }

    async fn count_marks(&self, report: &mut TierReport) -> Result<(), StoreError> {
        let (mut start, store) = (b"a".to_vec(), self.archive_id);
        loop {
            let mut scanned = self.scans.run(move |tables| tables.scan_marks(&start)).await?;
            let next = scanned.next.take();
            scanned.count(report, &store);
            match next {
                Some(next) => start = next,
                None => return Ok(()),
            }
        }
    }

    /// Writes anew what holds erased bodies, or was written by another store.
    async fn renew(&self, archive: &Archive, report: &mut TierReport, steps: &mut Steps) -> Result<(), StoreError> {
        let (mut start, store) = (b"a".to_vec(), self.archive_id);
        loop {
            let mut scanned = self.scans.run(move |tables| tables.scan_marks(&start)).await?;
            let next = scanned.next.take();
            // What is there is counted when the pass is over.
            for (log, marked) in scanned.count(&mut TierReport::default(), &store) {
                match self.renew_one(archive, log, marked, steps).await {
                    Ok(true) => report.rewritten(archive),
                    // The next pass looks again.
                    Ok(false) => {}
                    // Others may be whole.
                    Err(error @ StoreError::Damaged { .. }) => report.note(&error)?,
                    Err(error) => return Err(error),
                }
            }
            match next {
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
        let erased = self.tables.erased_in(&self.tables.db.snapshot(), log, first, old.last)?;
        let new = archive.rewrite(log, (first, old), &erased, self.archive_id).await?;
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
        let undone = if plan.eager { Undone::default() } else { Undone::new(&self.todo().await?) };
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
                    if !plan.is_old(&bucket) {
                        break;
                    }
                    let covered = move |tables: &Tables| tables.covered(log);
                    let covered = if plan.eager { None } else { Some(self.scans.run(covered).await?) };
                    if !report.judge(&undone, &bucket, covered) || report.waits.is_some() {
                        break;
                    }
                    match self.move_bucket(archive, &bucket, report, steps).await {
                        Ok(true) => report.moved_bucket(archive),
                        Ok(false) => break,
                        // The archive is away: nothing else can be moved either.
                        Err(error @ StoreError::Archive(_)) => return report.note(&error),
                        Err(error) => {
                            report.note(&error)?;
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
            report.moved(archive, from, &mark);
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

    /// Deletes objects of this store that no mark names.
    async fn sweep(&self, archive: &Archive, now_ms: u64, report: &mut TierReport) -> Result<(), StoreError> {
        let is_named = |log, first, name: String| {
            let mark = self.tables.mark_at(&self.tables.db.snapshot(), log, first);
            let names = |(at, mark)| at == first && archive.name(log, first, &mark) == name;
            ready(mark.map(|mark| mark.is_some_and(names)))
        };
        archive.sweep(&self.archive_id, now_ms, report, is_named).await
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
