//! Reads that take long: all todo rows, lists of conversations, verification.
//!
//! Short reads run on the task that asks: they touch a memtable, the block cache or the page cache, and take a
//! few microseconds, while a hand-over to a thread and back takes twenty. A scan over a large table would hold
//! up every other task of its runtime thread, so it runs here, one at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tern_core::store::StoreError;
use tokio::sync::oneshot;

use super::super::limits::SCAN_QUEUE;
use super::tables::Tables;

type Job = Box<dyn FnOnce(&Tables) + Send>;

#[derive(Default)]
pub(super) struct Scans {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    stopped: bool,
}

impl Scans {
    /// Runs `read` after those that wait already.
    pub(super) async fn run<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Tables) -> Result<T, StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.jobs.len() >= SCAN_QUEUE {
                return Err(StoreError::Backend(format!("{SCAN_QUEUE} scans wait already; nothing was read")));
            }
            state.jobs.push_back(Box::new(move |tables| {
                // Whoever asked may be gone.
                let _gone = answer.send(read(tables));
            }));
        }
        self.wake.notify_one();
        answered
            .await
            .unwrap_or_else(|_| Err(StoreError::Backend("the store is being closed; nothing was read".to_owned())))
    }

    /// Drops what waits, and ends the thread after the scan that runs.
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

    /// The thread.
    pub(super) fn work(&self, tables: &Arc<Tables>) {
        loop {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let job = loop {
                if state.stopped {
                    return;
                }
                match state.jobs.pop_front() {
                    Some(job) => break job,
                    None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            job(tables);
        }
    }
}
