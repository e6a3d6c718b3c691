//! A store in memory, for simulated clients: it outlives a killed client through its handle.

use std::sync::{Arc, Mutex, PoisonError};

use tern_core::client::{Book, Change, Image, Message, MessageId, Op};
use tern_core::ids::{ConvId, Heads, InstallId, Origin, Place, Seq, UserId};

use super::{LocalStore, StoreError};

/// A handle to a device's memory: clone it, and hand one clone to each run of the client.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    book: Arc<Mutex<Book>>,
    fail: Arc<Mutex<Option<u32>>>,
}

impl MemoryStore {
    /// An empty device of `user`.
    pub fn new(user: UserId, install: InstallId) -> Self {
        Self { book: Arc::new(Mutex::new(Book::new(user, install))), fail: Arc::default() }
    }

    /// Lets `after` more transactions succeed; then the disk is full until [`Self::heal`].
    pub fn fill_after(&self, after: u32) {
        *self.fail.lock().unwrap_or_else(PoisonError::into_inner) = Some(after);
    }

    /// The disk has room again.
    pub fn heal(&self) {
        *self.fail.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A copy of all that is kept.
    pub fn book(&self) -> Book {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with<T>(&self, read: impl FnOnce(&mut Book) -> T) -> T {
        read(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl LocalStore for MemoryStore {
    fn load(&mut self) -> Result<Image, StoreError> {
        Ok(self.with(|b| b.image()))
    }

    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Change>, StoreError> {
        if let Some(left) = self.fail.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *left = left.checked_sub(1).ok_or(StoreError::Full)?;
        }
        Ok(self.with(|b| b.apply(ops)))
    }

    fn timeline(&self, conversation: ConvId, horizon: u64, limit: usize) -> Result<Vec<Message>, StoreError> {
        Ok(self.with(|b| b.timeline(conversation, horizon, limit)))
    }

    fn message(&self, id: MessageId) -> Result<Option<Message>, StoreError> {
        Ok(self.with(|b| b.message(id)))
    }

    fn copies(&self, id: MessageId) -> Result<Vec<(Origin, Seq)>, StoreError> {
        Ok(self.with(|b| b.copies_of(id)))
    }

    fn upto(&self, conversation: ConvId, key: Place) -> Result<Heads, StoreError> {
        Ok(self.with(|b| b.upto(conversation, key)))
    }

    fn unread(&self, conversation: ConvId) -> Result<u64, StoreError> {
        Ok(self.with(|b| b.unread(conversation)))
    }
}
