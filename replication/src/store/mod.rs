//! Stores: what a region keeps must outlive the process, and nothing that was acked may be lost.
//!
//! Two implementations of [`tern_core::store::Store`]:
//!
//! - [`MemoryStore`] for simulation and tests. It is deterministic and starts no threads; its disk is a handle
//!   that several lives of a node share, and it can be crashed between any two steps of any operation.
//! - [`SharedMemory`], likewise, for several nodes of a region.
//! - [`EmbeddedStore`] on fjall, for a region with one disk. One row per message, one writer thread that
//!   commits whatever waits in one group with `fdatasync`, a checksum chain per log that is verified when the
//!   store is opened.
//!
//! Reading order: `conditions` (what an append must satisfy, the same for every backend), [`mod@format`] (every key and
//! value on disk, pinned by golden bytes), [`memory`], then [`embedded`]: `open` (directory, lock, marker file,
//! report), `tables` (keyspaces and reads), `writer` (group commit), `verify` (chains), `heads` (the cache of active
//! logs), `scan` (long reads), [`archive`] and `tiering` (old entries go to an object store), `chores` and `purge`
//! (erased bodies go from the files), [`embedded::backup`], `offline` and [`embedded::check`] (what commands do),
//! `metrics`.
//!
//! `contract.rs` in this folder is the contract suite. It is not part of the library, because it asserts:
//! the tests of every backend include it by path (see `tests/store_contract.rs`).
//!
//! Invariants:
//!
//! - `Decided` is answered after the journal was synced, never before, and entries are readable only then (R1).
//! - A todo row is durable no later than the entries that it was handed over with (R6).
//! - An append of an epoch below the highest one seen is fenced (R2). The highest epoch is durable as the
//!   named value [`EPOCH_KEY`]; a start writes it, synced, before it serves.
//! - A log that does not verify is refused, with its place; it is never served wrong, and never written again.
//! - Within a log the hlc ascends (R5): the highest hlc of a log is that of its head.

pub mod archive;
mod conditions;
pub mod embedded;
pub mod format;
pub mod limits;
pub mod memory;
pub mod shared;

pub use archive::{Archive, ArchiveOptions, MemoryObjects};
pub use conditions::{EPOCH_KEY, acceptable, epoch_value, follows, parse_epoch};
pub use embedded::backup::{REFILL_ALL_KEY, RESTORED_KEY};
pub use embedded::{EmbeddedStore, OpenError, OpenReport, Options, StoreMetrics};
pub use memory::MemoryStore;
pub use shared::SharedMemory;
