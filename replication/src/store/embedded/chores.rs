//! Work that takes seconds to minutes beside a store that serves: backups and purges, one at a time.
//!
//! A thread of its own, apart from that of `scan`: a start that waits for its todo must not wait for a backup.
//! One at a time, because a purge can't drop what a backup's snapshot still shows.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tern_core::store::StoreError;
use tokio::sync::oneshot;

use super::super::limits::{CHORE_QUEUE, PURGE_AFTER, PURGE_RETRY};
use super::metrics::StoreMetrics;
use super::purge::{CompactReport, purge};
use super::tables::Tables;
use super::writer::{Command, Queue, monotonic, wall_ms};

type Job = Box<dyn FnOnce(&Tables) + Send>;

/// What waits, and when the next purge is due.
#[derive(Default)]
pub(super) struct Chores {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    purge_at: Option<Instant>,
    /// Erasures that were committed.
    erasures: u64,
    stopped: bool,
}

enum Next {
    Job(Job),
    Purge,
    Stop,
}

impl Chores {
    /// Runs `job` after those that wait. `None`: too many wait, or the store is being closed.
    pub(super) async fn run<T, F>(&self, job: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tables) -> T + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.stopped || state.jobs.len() >= CHORE_QUEUE {
                return None;
            }
            state.jobs.push_back(Box::new(move |tables| {
                // Whoever asked may be gone.
                let _gone = answer.send(job(tables));
            }));
        }
        self.wake.notify_one();
        answered.await.ok()
    }

    /// Bodies were erased: they must be purged in time.
    pub(super) fn erased(&self, count: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.erasures += count;
        if state.purge_at.is_none() {
            state.purge_at = Some(monotonic() + PURGE_AFTER);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Bodies were erased at `since`, by the wall clock, in an earlier life of the store.
    pub(super) fn erased_before(&self, since_ms: u64) {
        // A clock that jumped makes it wait no longer than a new erasure would.
        let past = Duration::from_millis(wall_ms().saturating_sub(since_ms));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.purge_at = Some(monotonic() + PURGE_AFTER.saturating_sub(past).max(PURGE_RETRY / 60));
    }

    /// How many erasures were committed: what a purge that begins now will have covered.
    pub(super) fn erasures(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).erasures
    }

    /// The mark is gone, or renewed.
    pub(super) fn purged(&self, all: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.purge_at = (!all).then(|| monotonic() + PURGE_AFTER);
    }

    pub(super) fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped = true;
        state.jobs.clear();
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped
    }

    fn next(&self) -> Next {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.stopped {
                return Next::Stop;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Next::Job(job);
            }
            state = match state.purge_at.map(|at| at.saturating_duration_since(monotonic())) {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => {
                    // If it fails.
                    state.purge_at = Some(monotonic() + PURGE_RETRY);
                    return Next::Purge;
                }
                Some(left) => self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// The thread.
    pub(super) fn work(&self, tables: &Arc<Tables>, dir: &Path, queue: &Queue, metrics: &StoreMetrics) {
        loop {
            match self.next() {
                Next::Stop => return,
                Next::Job(job) => job(tables),
                Next::Purge => match self.compact(tables, dir, queue, metrics) {
                    Ok(report) => tracing::info!(
                        before_bytes = report.before_bytes,
                        after_bytes = report.after_bytes,
                        took_ms = u64::try_from(report.duration.as_millis()).unwrap_or(u64::MAX),
                        "erased bodies are out of the store's files"
                    ),
                    Err(_) if self.is_stopped() => {}
                    Err(error) => tracing::error!(
                        %error,
                        retry_s = PURGE_RETRY.as_secs(),
                        "bodies that were erased are still in the store's files; trying again"
                    ),
                },
            }
        }
    }

    /// Purges, and has the writer take away the mark.
    pub(super) fn compact(
        &self,
        tables: &Tables,
        dir: &Path,
        queue: &Queue,
        metrics: &StoreMetrics,
    ) -> Result<CompactReport, StoreError> {
        let covered = self.erasures();
        let report = purge(tables, dir, || self.is_stopped())?;
        metrics.purges.inc();
        queue.push(Command::Purged { covered });
        Ok(report)
    }
}
