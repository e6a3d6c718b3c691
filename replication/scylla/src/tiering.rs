//! Moving old entries of the timeline to the archive.
//!
//! Problem: the timeline is one in all datacenters. Every region reads the same rows, and writes them again when it comes
//! to it; so what one region removes is gone for all, and there is no transaction over mark and removal.
//!
//! Rule: a log is moved by one region, that of its origin, and there by the process that owns the conversation. Logs of
//! origins that have no region on this database stay in the timeline. Of each log a pass takes the oldest bucket that is
//! not in the archive, if it may move (`archive::plan` of tern-replication) and the newest batch of the tail has nothing of
//! it. Then, run by run:
//!
//! 1. The object is written, read back, and verified: without the bodies that the index of erased places has; those that
//!    are erased in the timeline alone are noted there first. Dead here: an object that no mark names, for a later sweep.
//! 2. The mark is written at EACH_QUORUM, and read back: a later owner's stays in its place, and then this pass leaves the
//!    log. From here on reads go to the archive. A datacenter that is away makes this fail: nothing is removed, the
//!    pass ends, and the next one comes back to it.
//! 3. The object is looked for once more: whoever deletes what no mark names has seen none before.
//! 4. The entries are removed at EACH_QUORUM, with a time-stamp above any of theirs. Dead before: the next pass looks into
//!    the last runs of each log, and a sweep into all of them, for what was left, or was inserted by a region that
//!    came late; its mark is written once more at EACH_QUORUM before anything goes.
//!
//! A pass also counts the erased places of each run. Where the index has more than the object, or another store wrote it,
//! from whose snapshot this one was made, the object is written anew, the mark moved over to it, and the old object deleted
//! once the new mark has been read back.
//!
//! **A former owner** that goes on is stopped before each mark by what the database says of the owner, and if it was paused
//! just there, by the time-stamp of its mark. What it wrote then is an object for the sweep. Its removals are of what is
//! marked, whoever marked it.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tern_core::ids::{ConvId, Region, Seq};
use tern_core::node::refill::MARK_KEY;
use tern_core::sequencer::LogState;
use tern_core::slots::Slot;
use tern_core::store::{Put, Store, StoreError};
use tern_replication::store::archive::plan::{Bucket, COMPARED, Steps, Undone, build};
use tern_replication::store::archive::seam::Marked;
use tern_replication::store::archive::{ARCHIVE_ID_KEY, Archive, Run, TierPlan, TierReport};
use tern_replication::store::format::{ArchiveMark, LogId, decode_opaque};

use crate::limits::{ERASED_READS, TIER_PAGE};
use crate::puts::meta_name;
use crate::stamps::StampError;
use crate::store::ScyllaStore;
use crate::tails::Log;
use crate::timeline::{damaged, read};

const NOT_OURS: &str = "this process does not have its region yet";

/// Why a pass leaves a log, or ends.
enum Stop {
    /// The log is damaged, or an object of it. Others may be whole.
    Log(StoreError),
    /// Nothing else can be moved either: the archive is away, or a datacenter.
    All(String),
    /// The database failed.
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Damaged { .. } => Self::Log(error),
            StoreError::Archive(_) => Self::All(error.to_string()),
            StoreError::Backend(_) => Self::Store(error),
        }
    }
}

/// A write that every datacenter must have confirmed.
fn everywhere(written: Result<(), StoreError>) -> Result<(), Stop> {
    written.map_err(|error| Stop::All(format!("not all datacenters of the database can be written to: {error}")))
}

/// A run in the archive, and how many of its places are erased.
type Held = (Marked, u64);

/// A pass that is under way.
struct Pass<'a> {
    store: &'a ScyllaStore,
    plan: &'a TierPlan,
    /// Whose logs it moves.
    region: Region,
    /// `None`: it only looks.
    archive: Option<&'a Archive>,
    /// The store's name in the archive.
    id: [u8; 16],
    undone: Undone,
    report: TierReport,
    steps: Steps,
    /// Nothing more can be moved or written anew.
    halted: bool,
}

impl ScyllaStore {
    /// Goes through all logs of the region's own, of conversations that this process owns: moves what is old to the
    /// archive, and writes anew what has to be. What can't be done is told in the report and tried again by the next pass.
    /// One pass at a time; dropping the future ends it between two steps. Without an archive, and with
    /// [`TierPlan::dry_run`], it only says what would move, of all conversations of the region.
    ///
    /// # Errors
    /// The database can't be read or written.
    pub async fn tier(&self, plan: &TierPlan) -> Result<TierReport, StoreError> {
        let _one = self.tiering.lock().await;
        let archive = self.archive.as_deref().filter(|_| !plan.dry_run);
        let mut report = TierReport::default();
        if archive.is_some() && !self.has_region().await {
            report.waits = Some(NOT_OURS);
            return Ok(report);
        }
        let Some(region) = self.region().await? else { return Ok(report) };
        let id = match archive {
            Some(_) => self.archive_id().await?,
            None => self.known_archive_id().await?.unwrap_or_default(),
        };
        let undone = if plan.eager { Undone::default() } else { Undone::new(&self.todo().await?) };
        if !plan.eager && self.is_compared().await? {
            report.waits = Some(COMPARED);
        }
        let steps = Steps::new(plan);
        let mut pass = Pass { store: self, plan, region, archive, id, undone, report, steps, halted: false };
        pass.all().await?;
        if let Some(archive) = archive {
            pass.report.publish(archive);
        }
        Ok(pass.report)
    }

    /// Whether something of the timeline is in an archive, without which it can't be read.
    pub async fn needs_archive(&self) -> Result<bool, StoreError> {
        self.archived.is_any().await
    }

    /// The archive, if there is one.
    pub fn archive(&self) -> Option<&Arc<Archive>> {
        self.archive.as_ref()
    }

    async fn has_region(&self) -> bool {
        self.sharing.is_some() || self.stamps.is_mine().await
    }

    /// Whether this process has a conversation by what the database says now, or said within the reserve of time-stamps.
    async fn owns_now(&self, conversation: ConvId) -> Result<bool, StoreError> {
        let epoch = self.owned_epoch(conversation);
        if self.sharing.is_none() {
            return match self.stamps.take(1).await {
                Ok(_) => Ok(true),
                Err(StampError::Fenced) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
        let lease = self.share(Slot::of(conversation).share()).await?;
        Ok(epoch != 0 && lease.is_some_and(|lease| lease.epoch == epoch))
    }

    /// The store's name in the archive: settled by whoever needs it first.
    async fn archive_id(&self) -> Result<[u8; 16], StoreError> {
        if let Some(known) = self.known_archive_id().await? {
            return Ok(known);
        }
        let settled = self.settle_value(ARCHIVE_ID_KEY, &self.archive_draw).await?;
        settled[..].try_into().map_err(|_| StoreError::Backend("the store's name in the archive is none".to_owned()))
    }

    /// It, unless nobody has needed it: that of the last new era, else the one that was settled.
    pub(crate) async fn known_archive_id(&self) -> Result<Option<[u8; 16]>, StoreError> {
        let id = match self.meta(ARCHIVE_ID_KEY).await? {
            Some(id) => Some(id),
            None => self.settled(ARCHIVE_ID_KEY).await?,
        };
        Ok(id.and_then(|id| id[..].try_into().ok()))
    }

    /// The put that gives the store another name in the archive: after it was restored from snapshots, so that it never
    /// deletes what the one writes of which they were made.
    pub fn new_archive_id(&self) -> Put {
        let value = bytes::Bytes::copy_from_slice(&self.archive_draw);
        Put::Meta { key: ARCHIVE_ID_KEY.to_owned(), value }
    }

    /// Whether a comparison with a peer is not over: peers may ask for anything.
    async fn is_compared(&self) -> Result<bool, StoreError> {
        let metas: Vec<(String, Option<Vec<u8>>)> = self.requests.rows(&self.requests.statements().metas, ()).await?;
        let marks = metas.into_iter().filter(|(name, _)| name.starts_with(&meta_name(MARK_KEY)));
        let mut values = marks.filter_map(|(_, value)| decode_opaque(&value?).ok());
        Ok(values.any(|value| !value.is_empty()))
    }

    /// Up to where its conversation's checkpoint covers a log.
    async fn covered(&self, log: LogId) -> Result<Seq, StoreError> {
        let value = self.checkpoint(log.conversation).await?;
        let state = value.and_then(|value| LogState::from_checkpoint(log.conversation, value));
        Ok(state.and_then(|state| state.heads.get(&log.origin).copied()).unwrap_or(0))
    }
}

impl Pass<'_> {
    async fn all(&mut self) -> Result<(), StoreError> {
        let (store, only_looks, mut after) = (self.store, self.archive.is_none(), None);
        loop {
            let page = store.list_ids(after, TIER_PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(*last);
            let owned = page.into_iter().filter(|id| only_looks || store.owned_epoch(*id) != 0);
            let read = owned.map(|id| async move { Ok::<_, StoreError>((id, store.tails.glance(id).await?)) });
            let tails: Vec<_> = stream::iter(read).buffered(ERASED_READS).try_collect().await?;
            for (conversation, tail) in tails {
                for (origin, known) in tail.logs {
                    let log = LogId { conversation, origin };
                    let closed = known.head > self.plan.bucket_end(1);
                    if closed && origin.region == self.region && store.damage(log).is_none() {
                        self.log(log, &known).await?;
                    }
                }
            }
        }
        match self.archive.filter(|_| self.plan.sweep && self.report.failed.is_none()) {
            Some(archive) => self.sweep(archive).await,
            None => Ok(()),
        }
    }

    /// One log: what is in the archive already, then what may move.
    async fn log(&mut self, log: LogId, known: &Log) -> Result<(), StoreError> {
        let store = self.store;
        let marks = store.archived.all(log).await?;
        let counted = marks.into_iter().map(|(first, mark)| async move {
            let erased = store.archived.erased_in(log, first, mark.last).await?;
            Ok::<_, StoreError>(((first, mark), erased.len() as u64))
        });
        let mut held: Vec<Held> = stream::iter(counted).buffered(ERASED_READS).try_collect().await?;
        let done = match self.archive.filter(|_| !self.halted) {
            Some(archive) => self.tend(archive, log, known, &mut held).await,
            None => self.survey(log, known, &held).await.map_err(Stop::from),
        };
        for ((_, mark), erased) in held {
            self.report.count(&mark, erased, &self.id);
        }
        match done {
            Ok(()) => Ok(()),
            Err(Stop::Log(error)) => self.report.note(&error),
            Err(Stop::All(what)) => {
                self.halted = true;
                self.report.failed.get_or_insert(what);
                Ok(())
            }
            Err(Stop::Store(error)) => Err(error),
        }
    }

    /// What would move.
    async fn survey(&mut self, log: LogId, known: &Log, held: &[Held]) -> Result<(), StoreError> {
        let (mut from, mut before) = Bucket::after(held.last().map(|(marked, _)| marked));
        while let Some(bucket) = self.bucket(log, known, (from, before)).await? {
            if !self.may_move(&bucket).await? {
                break;
            }
            (from, before) = (bucket.to + 1, [0; 16]);
        }
        Ok(())
    }

    async fn tend(&mut self, archive: &Archive, log: LogId, known: &Log, held: &mut Vec<Held>) -> Result<(), Stop> {
        let mut wrong = None;
        for one in held.iter_mut() {
            match self.renew(archive, log, one).await {
                // Others may be whole.
                Err(Stop::Log(error)) => wrong = Some(error),
                other => other?,
            }
        }
        self.remove_left(archive, log, held).await?;
        while let Some(bucket) = self.next_bucket(log, known, held).await? {
            if !self.may_move(&bucket).await? || self.report.waits.is_some() {
                break;
            }
            if !self.move_bucket(archive, &bucket, held).await? {
                break;
            }
            self.report.moved_bucket(archive);
        }
        wrong.map_or(Ok(()), |error| Err(Stop::Log(error)))
    }

    async fn next_bucket(&self, log: LogId, known: &Log, held: &[Held]) -> Result<Option<Bucket>, StoreError> {
        self.bucket(log, known, Bucket::after(held.last().map(|(marked, _)| marked))).await
    }

    /// The rest of the bucket that entry `from` is in, if it is closed and old enough.
    async fn bucket(
        &self,
        log: LogId,
        known: &Log,
        (from, before): (Seq, [u8; 16]),
    ) -> Result<Option<Bucket>, StoreError> {
        let to = self.plan.bucket_end(from);
        if to >= known.head {
            return Ok(None);
        }
        let Some(newest) = self.store.timeline.value(log, to).await? else { return Ok(None) };
        let bytes = (newest.len() as u64).saturating_mul(to - from + 1);
        let newest_ms = read(log, to, &newest)?.1.place.hlc >> 16;
        let bucket = Bucket { log, from, to, before, newest_ms, bytes };
        Ok(Some(bucket).filter(|bucket| self.plan.is_old(bucket)))
    }

    async fn may_move(&mut self, bucket: &Bucket) -> Result<bool, StoreError> {
        // What the tail holds as well must be erased there as well, so it is not in the archive yet.
        let batch = self.store.tails.batch(bucket.log).await?;
        if batch.is_ok_and(|batch| batch.keys().next().is_some_and(|first| *first <= bucket.to)) {
            self.report.held_back += 1;
            return Ok(false);
        }
        let covered = if self.plan.eager { None } else { Some(self.store.covered(bucket.log).await?) };
        Ok(self.report.judge(&self.undone, bucket, covered))
    }

    /// Whether all of it was moved; not where another owner has come.
    async fn move_bucket(&mut self, archive: &Archive, bucket: &Bucket, held: &mut Vec<Held>) -> Result<bool, Stop> {
        let (log, mut from, mut before) = (bucket.log, bucket.from, bucket.before);
        while from <= bucket.to {
            let values = self.store.timeline.values(log, from, bucket.to).await?;
            let run = match build(log, from, before, &values) {
                Ok(run) => run,
                // Another owner may have moved it meanwhile.
                Err(_) if self.store.archived.last(log).await? != held.last().map(|(marked, _)| *marked) => {
                    return Ok(false);
                }
                Err(what) => return Err(Stop::Log(damaged(log, what))),
            };
            let (run, erased) = self.without_erased(run).await?;
            self.steps.step()?;
            let mark = archive.write(&run, self.id).await.map_err(|error| error.of(log))?;
            self.steps.step()?;
            if !self.place(log, from, &mark, None).await? {
                return Ok(false);
            }
            self.steps.step()?;
            self.remove(archive, log, (from, mark)).await?;
            self.steps.step()?;
            self.report.moved(archive, from, &mark);
            held.push(((from, mark), erased));
            (from, before) = (mark.last + 1, mark.chain);
        }
        Ok(true)
    }

    /// A run without the bodies that the index has; afterwards the index has all that are erased in it. With how many.
    async fn without_erased(&self, run: Run) -> Result<(Run, u64), StoreError> {
        let log = run.log;
        let known = self.store.archived.erased_in(log, run.first, run.last()).await?;
        let mut unknown = BTreeSet::new();
        for seq in (run.first..=run.last()).filter(|seq| !known.contains(seq)) {
            if let Some(entry) = run.entry(seq).filter(|entry| entry.erased) {
                self.store.archived.note_erased(log, seq, &entry.by).await?;
                unknown.insert(seq);
            }
        }
        let erased = (known.len() + unknown.len()) as u64;
        let run = run.erased(|seq| known.contains(&seq)).map_err(|what| damaged(log, what))?;
        Ok((run, erased))
    }

    /// Writes a mark in every datacenter, in place of `old`. Whether it stands; not where another owner has come.
    async fn place(&self, log: LogId, first: Seq, mark: &ArchiveMark, old: Option<&ArchiveMark>) -> Result<bool, Stop> {
        let there = self.store.archived.stamped(log, first).await?.filter(|((at, _), _)| *at == first);
        if there.as_ref().map(|((_, mark), _)| mark) != old || !self.store.owns_now(log.conversation).await? {
            return Ok(false);
        }
        let own = match &self.store.sharing {
            Some(sharing) => sharing.stamp_of_log(log.conversation)?,
            None => self.store.stamps.take(1).await.map_err(StoreError::from)?,
        };
        // A region that was made anew, with epochs from 1 on, may find marks of the former one.
        let stamp = there.map_or(own, |(_, stamp)| own.max(stamp + 1));
        everywhere(self.store.archived.put(log, first, mark, stamp).await)?;
        Ok(self.store.archived.at(log, first).await? == Some((first, *mark)))
    }

    /// Removes what a mark names that stands in every datacenter.
    async fn remove(&self, archive: &Archive, log: LogId, (first, mark): Marked) -> Result<(), Stop> {
        archive.is_there(log, first, &mark).await.map_err(|error| error.of(log))?;
        everywhere(self.store.timeline.remove(log, first, mark.last).await)
    }

    /// Removes what a death, or a region that came late, left of what is in the archive.
    async fn remove_left(&mut self, archive: &Archive, log: LogId, held: &[Held]) -> Result<(), Stop> {
        let Some(((last, _), _)) = held.last() else { return Ok(()) };
        let end = self.plan.bucket_end(*last);
        for ((first, mark), _) in held {
            let looks = self.plan.sweep || self.plan.bucket_end(*first) == end;
            if !looks || !self.store.timeline.is_left(log, *first, mark.last).await? {
                continue;
            }
            self.steps.step()?;
            if self.place(log, *first, mark, Some(mark)).await? {
                self.steps.step()?;
                self.remove(archive, log, (*first, *mark)).await?;
            }
        }
        Ok(())
    }

    /// Writes a run anew if it holds erased bodies, or was written by another store.
    async fn renew(&mut self, archive: &Archive, log: LogId, held: &mut Held) -> Result<(), Stop> {
        let ((first, old), erased) = *held;
        if !TierReport::default().count(&old, erased, &self.id) {
            return Ok(());
        }
        self.steps.step()?;
        let places = self.store.archived.erased_in(log, first, old.last).await?;
        let new = archive.rewrite(log, (first, old), &places, self.id).await?;
        self.steps.step()?;
        if !self.place(log, first, &new, Some(&old)).await? {
            return Ok(());
        }
        *held = ((first, new), places.len() as u64);
        archive.forget(&old);
        self.steps.step()?;
        let name = archive.name(log, first, &old);
        if name != archive.name(log, first, &new) {
            archive.delete(&name, &self.id).await.map_err(|error| error.of(log))?;
        }
        self.report.rewritten(archive);
        Ok(())
    }

    /// Deletes objects of this store that no mark names, of conversations that this process owns.
    async fn sweep(&mut self, archive: &Archive) -> Result<(), StoreError> {
        let store = self.store;
        let is_named = |log: LogId, first, name: String| async move {
            if store.owned_epoch(log.conversation) == 0 {
                return Ok(true);
            }
            let marked = store.archived.at(log, first).await?;
            let named = marked.is_some_and(|(at, mark)| at == first && archive.name(log, first, &mark) == name);
            Ok(named || !store.owns_now(log.conversation).await?)
        };
        let swept = archive.sweep(&self.id, self.plan.now_ms, &mut self.report, is_named).await;
        swept.or_else(|error| self.report.note(&error))
    }
}
