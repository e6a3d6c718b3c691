//! What may move, and what a pass tells: the same for every store.
//!
//! A bucket may move when nothing but a client's scrolling back will ask for it: it is closed and the log goes on above
//! it, its newest entry is old enough, no todo row has still to do with it, and the conversation's checkpoint covers it.
//! While the store is being compared with a peer nothing moves.

use std::collections::BTreeMap;
use std::time::Duration;

use tern_core::ids::{ConvId, Origin, Seq};
use tern_core::store::{StoreError, Todo};

use super::super::format::{ArchiveMark, Chain, LogId};
use super::super::limits::ARCHIVE_BUCKET_BITS;
use super::Archive;
use super::format::{Run, RunBuilder};
use super::seam::Marked;

/// Why nothing moves.
pub const COMPARED: &str = "the store is being compared with another region";

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

    /// Whether a bucket is old enough.
    pub fn is_old(&self, bucket: &Bucket) -> bool {
        bucket.newest_ms <= self.now_ms.saturating_sub(u64::try_from(self.after.as_millis()).unwrap_or(u64::MAX))
    }

    /// The last place of the bucket that a place is in.
    pub fn bucket_end(&self, seq: Seq) -> Seq {
        bucket_end(seq, self.bucket_bits)
    }
}

/// The last place of the bucket, of 2 to the power of `bits` places, that a place is in.
pub fn bucket_end(seq: Seq, bits: u32) -> Seq {
    seq | ((1 << bits) - 1)
}

/// A bucket that could move: the part of it that is not in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Whose.
    pub log: LogId,
    /// Number of the first entry.
    pub from: Seq,
    /// Number of the last.
    pub to: Seq,
    /// What the first one follows.
    pub before: Chain,
    /// Milliseconds of the newest.
    pub newest_ms: u64,
    /// About so many bytes.
    pub bytes: u64,
}

impl Bucket {
    /// From where on a log with this last run in the archive has still to move, and what that follows.
    pub fn after(last: Option<&Marked>) -> (Seq, Chain) {
        last.map_or((1, Chain::default()), |(_, mark)| (mark.last + 1, mark.chain))
    }
}

/// Up to where each log is done with, of those that todo rows name.
#[derive(Debug, Default)]
pub struct Undone(BTreeMap<(ConvId, Origin), Seq>);

impl Undone {
    /// Of all todo rows.
    pub fn new(todo: &[Todo]) -> Self {
        let mut undone: BTreeMap<(ConvId, Origin), Seq> = BTreeMap::new();
        for todo in todo {
            for (origin, done) in todo.prefix.iter().filter(|(origin, _)| origin.era != 0) {
                let least = undone.entry((todo.conversation, *origin)).or_insert(*done);
                *least = (*least).min(*done);
            }
        }
        Self(undone)
    }

    fn needs(&self, bucket: &Bucket) -> bool {
        self.0.get(&(bucket.log.conversation, bucket.log.origin)).is_some_and(|done| *done < bucket.to)
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

impl TierReport {
    /// Counts a bucket that is old enough; whether it is to move. `covered`: up to where the conversation's checkpoint
    /// covers its log; `None`: that does not matter.
    pub fn judge(&mut self, undone: &Undone, bucket: &Bucket, covered: Option<Seq>) -> bool {
        if undone.needs(bucket) || covered.is_some_and(|covered| covered < bucket.to) {
            self.held_back += 1;
            return false;
        }
        self.due_buckets += 1;
        self.due_entries += bucket.to - bucket.from + 1;
        self.due_bytes += bucket.bytes;
        true
    }

    /// Counts a run of the archive; whether its object is to be written anew. `erased`: places in it that the index of
    /// erasures has, among which are all that are erased in the object.
    pub fn count(&mut self, mark: &ArchiveMark, erased: u64, store: &[u8; 16]) -> bool {
        let unwritten = erased.saturating_sub(u64::from(mark.erased));
        let foreign = mark.store != *store;
        self.runs += 1;
        self.archived_bytes += mark.bytes;
        self.foreign_runs += u64::from(foreign);
        self.unwritten_erasures += unwritten;
        foreign || unwritten > 0
    }

    /// Counts a run that was moved.
    pub fn moved(&mut self, archive: &Archive, first: Seq, mark: &ArchiveMark) {
        let entries = mark.last - first + 1;
        self.moved_entries += entries;
        self.moved_bytes += mark.bytes;
        archive.metrics().moved_entries.inc_by(entries);
        archive.metrics().moved_bytes.inc_by(mark.bytes);
    }

    /// Counts a bucket that was moved.
    pub fn moved_bucket(&mut self, archive: &Archive) {
        self.moved_buckets += 1;
        archive.metrics().moved_buckets.inc();
    }

    /// Counts an object that was written anew.
    pub fn rewritten(&mut self, archive: &Archive) {
        self.rewritten += 1;
        archive.metrics().rewritten.inc();
    }

    /// A failure of the archive, or of one log, is told; one of the store ends the pass.
    pub fn note(&mut self, error: &StoreError) -> Result<(), StoreError> {
        if let StoreError::Backend(_) = error {
            return Err(error.clone());
        }
        self.failed.get_or_insert_with(|| error.to_string());
        Ok(())
    }

    /// The last of a pass.
    pub fn publish(&self, archive: &Archive) {
        let metrics = archive.metrics();
        metrics.held_bytes.set(self.archived_bytes);
        metrics.unwritten_erasures.set(self.unwritten_erasures);
        metrics.failed_passes.inc_by(u64::from(self.failed.is_some()));
    }
}

/// Counts down the steps of a test.
#[derive(Debug)]
pub struct Steps(Option<u64>);

impl Steps {
    /// Of a plan.
    pub fn new(plan: &TierPlan) -> Self {
        Self(plan.steps)
    }

    /// Goes on, unless it ends here.
    pub fn step(&mut self) -> Result<(), StoreError> {
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

/// The run of these values, which must verify.
pub fn build<V: AsRef<[u8]>>(log: LogId, first: Seq, before: Chain, values: &[V]) -> Result<Run, String> {
    let mut builder = RunBuilder::new(log, first, before);
    values.iter().try_for_each(|value| builder.push(value.as_ref()))?;
    if builder.is_empty() {
        return Err(format!("entry {first} is missing"));
    }
    Ok(builder.finish())
}
