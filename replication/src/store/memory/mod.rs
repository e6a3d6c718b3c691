//! A store in memory whose disk outlives it, for simulation and tests.
//!
//! A [`MemoryStore`] is a handle to a disk, and stands for one life of a node. Every write is a sequence of
//! steps, and the node can die between any two of them ([`MemoryStore::fail_after`]); after that the handle and
//! its clones are dead, as is everything the old life held, and [`MemoryStore::crash`] opens the disk for the
//! next life. Steps of an append: each todo row of each batch is written; then, batch by batch, its entries
//! are written and synced, which decides it; then the answer is given. Steps of a put: each write; the sync,
//! if one was asked for; the answer.
//!
//! What is written but not synced lies in a journal, visible and undone by a crash. A sync makes all of it durable; so
//! does the passing of [`tern_core::limits::LAZY_SYNC`] on tokio's clock, which simulation pauses. A real disk may keep
//! a part of what was not synced: [`MemoryStore::crash_keeping`] does. Entries are never in the journal: they become
//! readable in the step that makes them durable (R1).
//!
//! Deterministic: ordered maps, no threads, no clock but tokio's, no randomness. A call starts its work when
//! its future is first polled. With a latency, dropping the future of an append between two steps leaves it
//! like a crash would, without one.

mod disk;

use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tern_core::ids::{ConvId, Origin, UserId};

use tern_core::store::{
    Append, Appended, BoxFut, ConversationHeads, ConversationImage, Durability, Put, Range, RowRecord, Store,
    StoreError, Todo, UserMarks,
};
use tokio::time::Instant;

use super::conditions;
use disk::{Dead, Disk};

/// What those see who still wait for a store whose node has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Nothing: their futures never end. So it is for the tasks of a killed node.
    Silence,
    /// An error: [`Appended::Unknown`], or [`StoreError::Backend`].
    Errors,
}

/// How long the disk takes, on tokio's clock. Zero by default, and then nothing is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Of a forced write: between what an append or a synced put writes and its sync.
    pub sync: Duration,
    /// Of a read.
    pub read: Duration,
}

/// One life of a node over a disk in memory. Clones are the same life.
#[derive(Clone)]
pub struct MemoryStore {
    disk: Arc<Mutex<Disk>>,
    life: u64,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("life", &self.life).finish_non_exhaustive()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// On a new, empty disk without latency.
    pub fn new() -> Self {
        Self::with_latency(Latency::default())
    }

    /// On a new, empty disk.
    pub fn with_latency(latency: Latency) -> Self {
        let store = Self { disk: Arc::default(), life: 0 };
        store.set_latency(latency);
        store
    }

    /// From now on the disk takes so long, in this life and later ones.
    pub fn set_latency(&self, latency: Latency) {
        self.with(|disk| disk.latency = latency);
    }

    fn latency(&self) -> Latency {
        self.with(|disk| disk.latency)
    }

    /// Ends this life, if it has not ended yet, and starts the next on the same disk. What was not synced is
    /// gone. Old handles are dead in the manner told to [`Self::fail_after`], else silent.
    #[must_use]
    pub fn crash(&self) -> Self {
        self.crash_keeping(0)
    }

    /// Like [`Self::crash`], but the first `unsynced` steps of the journal happen to have reached the disk.
    #[must_use]
    pub fn crash_keeping(&self, unsynced: usize) -> Self {
        let life = self.with(|disk| {
            disk.settle(Instant::now());
            disk.crash(unsynced)
        });
        Self { disk: Arc::clone(&self.disk), life }
    }

    /// A disk of its own with all that this one holds now, as if it had been copied after a sync: a backup.
    #[must_use]
    pub fn backup(&self) -> Self {
        let disk = self.with(|disk| disk.backup());
        Self { disk: Arc::new(Mutex::new(disk)), life: 0 }
    }

    /// The node dies after `steps` more steps, before the next one. `fail_after(0, ..)` dies at once, when
    /// anything is to be written.
    pub fn fail_after(&self, steps: u64, manner: Manner) {
        self.with(|disk| disk.fail_after(steps, manner));
    }

    /// Steps taken since the disk was new: with them a test can visit every crash point of an operation.
    pub fn steps(&self) -> u64 {
        self.with(|disk| disk.steps)
    }

    /// Steps that a crash would undo now.
    pub fn unsynced(&self) -> usize {
        self.with(|disk| {
            disk.settle(Instant::now());
            disk.unsynced()
        })
    }

    /// Refuses appends with [`Appended::Full`], or takes them again.
    pub fn set_full(&self, full: bool) {
        self.with(|disk| disk.full = full);
    }

    /// From now on the log is refused, in this life and later ones.
    pub fn damage(&self, conversation: ConvId, origin: Origin, what: &str) {
        self.with(|disk| disk.damage(conversation, origin, what));
    }

    fn with<T>(&self, f: impl FnOnce(&mut Disk) -> T) -> T {
        // A panic while the lock was held can only be a failed assertion of a test.
        f(&mut self.disk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `f` on the disk if this life still lasts.
    fn alive<T>(&self, f: impl FnOnce(&mut Disk) -> Result<T, Dead>) -> Result<T, Dead> {
        self.with(|disk| {
            disk.check(self.life)?;
            disk.settle(Instant::now());
            f(disk)
        })
    }

    async fn read<T>(&self, f: impl FnOnce(&Disk) -> Result<T, StoreError> + Send) -> Result<T, StoreError> {
        wait(self.latency().read).await;
        match self.alive(|disk| Ok(f(disk))) {
            Ok(result) => result,
            Err(dead) => Err(StoreError::Backend(died(dead).await)),
        }
    }

    async fn append_all(&self, batches: &[Append]) -> Result<Vec<Appended>, Dead> {
        let mut answers = self.alive(|disk| {
            let mut answers = Vec::with_capacity(batches.len());
            for batch in batches {
                let refused = disk.refusal(batch);
                if refused.is_none() {
                    for todo in &batch.todo {
                        disk.step()?;
                        disk.write(Put::Todo(todo.clone()), Instant::now());
                    }
                }
                // Decided is only what is to become of it: nobody sees this list before the last step.
                answers.push(refused.unwrap_or(Appended::Decided));
            }
            Ok(answers)
        })?;
        wait(self.latency().sync).await;
        self.alive(|disk| {
            for (batch, answer) in batches.iter().zip(&mut answers) {
                if *answer != Appended::Decided {
                    continue;
                }
                // Asked again: during the wait another owner may have come.
                if let Some(refused) = disk.refusal(batch) {
                    *answer = refused;
                    continue;
                }
                disk.step()?;
                disk.decide(batch);
            }
            disk.step()?;
            Ok(answers)
        })
    }

    async fn put_all(&self, puts: Vec<Put>, durability: Durability) -> Result<(), Dead> {
        self.alive(|disk| {
            for put in puts {
                disk.step()?;
                disk.write(put, Instant::now());
            }
            Ok(())
        })?;
        if durability == Durability::Synced {
            wait(self.latency().sync).await;
            self.alive(|disk| {
                disk.step()?;
                disk.sync();
                Ok(())
            })?;
        }
        self.alive(Disk::step)
    }
}

impl Store for MemoryStore {
    fn append(&self, batches: Vec<Append>) -> BoxFut<'_, Vec<Appended>> {
        Box::pin(async move {
            match self.append_all(&batches).await {
                Ok(answers) => answers,
                Err(dead) => vec![Appended::Unknown(died(dead).await); batches.len()],
            }
        })
    }

    fn put(&self, puts: Vec<Put>, durability: Durability) -> BoxFut<'_, Result<(), StoreError>> {
        Box::pin(async move {
            conditions::acceptable(&puts)?;
            match self.put_all(puts, durability).await {
                Ok(()) => Ok(()),
                Err(dead) => Err(StoreError::Backend(died(dead).await)),
            }
        })
    }

    fn conversation(&self, conversation: ConvId) -> BoxFut<'_, Result<ConversationImage, StoreError>> {
        Box::pin(self.read(move |disk| Ok(disk.conversation(conversation))))
    }

    fn range(&self, range: Range) -> BoxFut<'_, Result<Vec<Arc<tern_core::entry::Entry>>, StoreError>> {
        Box::pin(self.read(move |disk| disk.range(&range)))
    }

    fn rows(&self, user: UserId) -> BoxFut<'_, Result<Vec<(ConvId, RowRecord)>, StoreError>> {
        Box::pin(self.read(move |disk| Ok(disk.rows(&user))))
    }

    fn marks(&self, after: Option<UserId>, limit: usize) -> BoxFut<'_, Result<Vec<UserMarks>, StoreError>> {
        Box::pin(self.read(move |disk| Ok(disk.marks(after, limit))))
    }

    fn todo(&self) -> BoxFut<'_, Result<Vec<Todo>, StoreError>> {
        Box::pin(self.read(|disk| Ok(disk.todo())))
    }

    fn conversations(
        &self,
        after: Option<ConvId>,
        limit: usize,
    ) -> BoxFut<'_, Result<Vec<ConversationHeads>, StoreError>> {
        Box::pin(self.read(move |disk| Ok(disk.conversations(after, limit))))
    }

    fn meta(&self, key: &str) -> BoxFut<'_, Result<Option<Bytes>, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.read(move |disk| Ok(disk.meta(&key))))
    }
}

async fn wait(latency: Duration) {
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
}

/// What a dead life's callers see: nothing, or a text.
async fn died(dead: Dead) -> String {
    match dead.0 {
        Manner::Silence => pending().await,
        Manner::Errors => "the node has died; what became of the write is not known".to_owned(),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
