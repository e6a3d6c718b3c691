//! Tails: what is decided of each conversation, and who may decide more (R1, R2).
//!
//! A conversation is one partition of the table `tail`. Its static columns are the owner's epoch and a version, which
//! every change raises by one; it has a row per log: head, hlc and chain of the head, and the newest batch itself.
//! All changes are conditional on (epoch, version). So a change that was judged by what was read is made only if that
//! still stands, whoever else writes, and an owner whose epoch was raised can change nothing, also in logs that do
//! not exist yet; with an epoch a log, he could still begin one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::join_all;
use tern_core::ids::{ConvId, Origin, Seq};
use tern_core::store::StoreError;
use tern_replication::store::format::{Chain, LogId};
use tokio::time::Instant;

use crate::halves::Halves;
use crate::limits::{CONTENTION_TRIES, RESOLVE_PAUSE, RESOLVE_WITHIN, TAIL_CACHE};
use crate::pending;
use crate::requests::{Cas, Requests};
use crate::timeline::Timeline;

/// What is known of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) head: Seq,
    pub(crate) hlc: u64,
    pub(crate) chain: Chain,
    /// The newest batch is known to be in the timeline. If not, it is read from the tail.
    pub(crate) inserted: bool,
}

/// What is known of one conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    /// 0 = no owner yet.
    pub(crate) epoch: u64,
    pub(crate) version: i64,
    pub(crate) logs: BTreeMap<Origin, Log>,
}

/// Why a conversation is not had.
#[derive(Debug)]
pub(crate) enum TakeError {
    /// A later owner has it.
    Fenced,
    /// The database did not answer, or not in time.
    Backend(String),
}

impl From<StoreError> for TakeError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Backend(what) => Self::Backend(what),
            other => Self::Backend(other.to_string()),
        }
    }
}

/// The newest batch of a log, if it can be read.
pub(crate) type Batch = Result<BTreeMap<Seq, Bytes>, &'static str>;

pub(crate) fn key(log: LogId) -> (Vec<u8>, i16, i64) {
    (log.conversation.0.to_vec(), i16::from(log.origin.region), log.origin.era.cast_signed())
}

pub(crate) struct Tails {
    requests: Arc<Requests>,
    timeline: Arc<Timeline>,
    known: Mutex<Halves<ConvId, Tail>>,
}

impl Tails {
    pub(crate) fn new(requests: Arc<Requests>, timeline: Arc<Timeline>) -> Self {
        Self { requests, timeline, known: Mutex::new(Halves::new(TAIL_CACHE)) }
    }

    /// What is remembered of a conversation that `epoch` has: nobody else changes it.
    pub(crate) fn remembered(&self, conversation: ConvId, epoch: u64) -> Option<Tail> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&conversation).filter(|tail| tail.epoch == epoch && epoch > 0)
    }

    pub(crate) fn remember(&self, conversation: ConvId, tail: &Tail) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).put(conversation, tail.clone());
    }

    pub(crate) fn forget(&self, conversation: ConvId) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&conversation);
    }

    /// Reads a tail: all that is decided, and what was begun is finished or gone.
    pub(crate) async fn read(&self, conversation: ConvId) -> Result<Tail, StoreError> {
        self.read_by(conversation, true).await
    }

    /// Reads a tail as a quorum has it: what is under way is not in it.
    pub(crate) async fn glance(&self, conversation: ConvId) -> Result<Tail, StoreError> {
        self.read_by(conversation, false).await
    }

    async fn read_by(&self, conversation: ConvId, serial: bool) -> Result<Tail, StoreError> {
        type Row = (Option<i16>, Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<Vec<u8>>);
        let statements = self.requests.statements();
        let statement = if serial { &statements.tail } else { &statements.tail_heads };
        let rows: Vec<Row> = self.requests.rows(statement, (&conversation.0[..],)).await?;
        let mut tail = Tail::default();
        for (region, era, epoch, version, head, hlc, chain) in rows {
            tail.epoch = epoch.unwrap_or(0).cast_unsigned();
            tail.version = version.unwrap_or(0);
            let (Some(region), Some(era), Some(head)) = (region, era, head) else { continue };
            let region = u8::try_from(region).map_err(crate::requests::odd)?;
            let chain = chain.and_then(|chain| Chain::try_from(chain).ok()).unwrap_or_default();
            let log = Log { head: head.cast_unsigned(), hlc: hlc.unwrap_or(0).cast_unsigned(), chain, inserted: false };
            tail.logs.insert(Origin { region, era: era.cast_unsigned() }, log);
        }
        Ok(tail)
    }

    /// The newest batch of a log as it is stored.
    pub(crate) async fn stored_batch(&self, log: LogId) -> Result<Option<Bytes>, StoreError> {
        type Row = (Option<Vec<u8>>,);
        let row: Option<Row> = self.requests.row(&self.requests.statements().tail_pending, key(log)).await?;
        Ok(row.and_then(|(stored,)| stored).map(Bytes::from))
    }

    /// The newest batch of a log.
    pub(crate) async fn batch(&self, log: LogId) -> Result<Batch, StoreError> {
        let Some(stored) = self.stored_batch(log).await? else { return Ok(Ok(BTreeMap::new())) };
        Ok(pending::decode(&stored).map(|(first, values)| (first..).zip(values).collect()))
    }

    /// The tail of a conversation that `epoch` has from now on: takes it over where an earlier one had it, and inserts
    /// what that may have left out of the timeline.
    pub(crate) async fn take(&self, conversation: ConvId, epoch: u64) -> Result<Tail, TakeError> {
        if let Some(tail) = self.remembered(conversation, epoch) {
            return Ok(tail);
        }
        let statements = self.requests.statements();
        let mut why = "others are changing it".to_owned();
        let until = Instant::now() + RESOLVE_WITHIN;
        for attempt in 0..CONTENTION_TRIES {
            if attempt > 0 && Instant::now() > until {
                break;
            }
            let mut tail = self.read(conversation).await?;
            if tail.epoch > epoch {
                return Err(TakeError::Fenced);
            }
            if tail.epoch < epoch {
                let (new, id) = (epoch.cast_signed(), &conversation.0[..]);
                let done = if tail.epoch == 0 {
                    self.requests.conditional(&statements.tail_first, (new, 1_i64, id)).await
                } else {
                    let values = (new, tail.version + 1, id, tail.epoch.cast_signed(), tail.version);
                    self.requests.conditional(&statements.tail_raise, values).await
                };
                match done {
                    Cas::Applied => {}
                    Cas::Refused => continue,
                    Cas::Unclear(what) => {
                        why = what;
                        tokio::time::sleep(RESOLVE_PAUSE.0).await;
                        continue;
                    }
                }
                tail.version = if tail.epoch == 0 { 1 } else { tail.version + 1 };
                tail.epoch = epoch;
                if !tail.logs.is_empty() {
                    self.requests.metrics.takeovers.inc();
                }
            }
            // Of what is read under the own epoch it is not known either whether its newest batch was inserted.
            let logs = tail.logs.iter_mut().map(|(origin, log)| async {
                log.inserted = self.insert_batch(LogId { conversation, origin: *origin }, log.head).await;
            });
            join_all(logs).await;
            self.remember(conversation, &tail);
            return Ok(tail);
        }
        Err(TakeError::Backend(format!("the conversation could not be taken over: {why}")))
    }

    /// Inserts the newest batch of a log into the timeline; whether it is there now. A batch that can't be read is
    /// left: whoever reads the log finds out whether the timeline has it.
    async fn insert_batch(&self, log: LogId, head: Seq) -> bool {
        match self.batch(log).await {
            Ok(Ok(batch)) => {
                let batch: Vec<(Seq, Bytes)> = batch.into_iter().filter(|(seq, _)| *seq <= head).collect();
                match self.timeline.insert(log, &batch).await {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::warn!(conversation = %log.conversation, %error, "a decided batch is not in the timeline yet");
                        false
                    }
                }
            }
            Ok(Err(what)) => {
                tracing::error!(conversation = %log.conversation, origin = %log.origin, what, "the tail of a log is damaged");
                true
            }
            Err(error) => {
                tracing::warn!(conversation = %log.conversation, %error, "the newest batch of a log could not be read");
                false
            }
        }
    }

    /// Makes sure that the newest batch of a log is in the timeline, before another takes its place in the tail.
    pub(crate) async fn settle(&self, conversation: ConvId, tail: &mut Tail, origin: Origin) -> Result<(), String> {
        let Some(log) = tail.logs.get_mut(&origin).filter(|log| !log.inserted) else { return Ok(()) };
        if !self.insert_batch(LogId { conversation, origin }, log.head).await {
            return Err("the batch before is not in the timeline yet; nothing was written".to_owned());
        }
        log.inserted = true;
        self.requests.metrics.late_inserts.inc();
        self.remember(conversation, tail);
        Ok(())
    }
}
