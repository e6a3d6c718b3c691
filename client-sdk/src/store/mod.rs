//! What a client keeps on its device.
//!
//! A store applies the ops of one step in one transaction, and answers what the timeline shows. It decides
//! nothing: the rules are in `tern_core::client`, whose `Book` is the reference for what each op does. Two
//! implementations: [`sqlite`], for devices, and [`memory`], for simulated ones.

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

use tern_core::client::{Change, Image, Message, MessageId, Op};
use tern_core::ids::{ConvId, Heads, Origin, Place, Seq};

mod format;
pub mod keys;
mod load;
pub mod memory;
mod schema;
pub mod sqlite;

#[cfg(test)]
mod contract;

/// Why a store did not do what it was asked. Nothing of a failed transaction was stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk, or the quota, is full.
    #[error("the disk is full; nothing was stored: free some space and try again")]
    Full,
    /// The file or its directory can't be written.
    #[error("the store can't be written; nothing was stored: {0}")]
    ReadOnly(String),
    /// The file is damaged. It is left as it is.
    #[error(
        "the store is damaged ({0}); it is left as it is: restore it from a backup, or move it away \
         (`SqliteStore::set_aside`) to begin anew with what the servers have"
    )]
    Corrupt(String),
    /// Another connection holds the file for longer than is waited for.
    #[error("the store is busy: another program reads or copies it; nothing was stored")]
    Busy,
    /// The disk failed, or SQLite says something unexpected.
    #[error("the store failed; nothing was stored: {0}")]
    Failed(String),
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another client in this one, has it.
    #[error("the store {} is in use by another client; close that first", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The directory or a file can't be made or opened.
    #[error("can't open {}: {cause}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Written by a newer version of this library.
    #[error("the store {} has format {found}; this version knows up to {known}: update the application", path.display())]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format known here.
        known: i64,
    },
    /// The database is another user's.
    #[error("the store {} belongs to user {found}", path.display())]
    OtherUser {
        /// The database.
        path: PathBuf,
        /// Whose it is.
        found: String,
    },
    /// The key store can't be read or written.
    #[error("the key store failed: {0}")]
    Keys(io::Error),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A client's store. Synchronous: a call returns once it is durable.
pub trait LocalStore: Send + Debug + 'static {
    /// What a machine is built from.
    fn load(&mut self) -> Result<Image, StoreError>;

    /// Applies all ops in one transaction, or none. Tells what changed in timelines, in order.
    fn apply(&mut self, ops: &[Op]) -> Result<Vec<Change>, StoreError>;

    /// The newest `limit` placed messages whose hlc is at least `horizon`, in order; then the own ones that
    /// have no place yet, in order of their ids.
    fn timeline(&self, conversation: ConvId, horizon: u64, limit: usize) -> Result<Vec<Message>, StoreError>;

    /// One message.
    fn message(&self, id: MessageId) -> Result<Option<Message>, StoreError>;

    /// Where the copies of a message stand.
    fn copies(&self, id: MessageId) -> Result<Vec<(Origin, Seq)>, StoreError>;

    /// The vector of what is displayed up to `key`: per origin the highest seq below which nothing held stands
    /// after it.
    fn upto(&self, conversation: ConvId, key: Place) -> Result<Heads, StoreError>;

    /// Brings everything to rest before the process may be stopped for long: no lock is held and nothing is half written
    /// until the next call.
    fn rest(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// How many held messages of the conversation are not read.
    fn unread(&self, conversation: ConvId) -> Result<u64, StoreError>;
}
