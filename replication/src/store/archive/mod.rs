//! The archive: an object store that old entries move to.
//!
//! Problem: a log grows for ever, and nobody reads most of it. What was moved away must stay readable, provably what
//! it was, and erasable; and an object store that is slow, dead or wrong must cost reads of old entries and nothing else.
//!
//! Rule: entries lie in *runs*: consecutive entries of one log, at most some MiB of them, in one object that is never
//! changed ([`mod@format`]). A *mark* in the store says that a run is in the archive and by which hash
//! ([`super::format::ArchiveMark`]). Until the mark is durable the object is nobody's; from then on the mark decides, and
//! the entries in the store are only waiting to be removed. An erasure makes another object, with another hash, and
//! another mark in place of the old one.
//!
//! What is read is verified each time it comes from the object store: the hash by which it is named, place and body of
//! each entry, and the chain of the log from the entry before to the last one.
//!
//! Reading order: [`objects`] (what is asked of an object store, and one in memory), [`mod@format`], [`reads`] (cache,
//! limits), [`seam`] (reading over the limit between store and archive), [`plan`] (what may move, and what a pass
//! tells), [`sweep`], then the passes themselves: `embedded/tiering`, and `tiering` of the store on ScyllaDB.
//!
//! Invariants:
//!
//! - No object is deleted that a mark names.
//! - An object whose hash is not the mark's is not served. One of the same chain is the same run with other bodies erased.
//! - A store deletes below its own name only: a copy of a store, made from a backup, can't delete the other's objects.

pub mod format;
pub mod metrics;
pub mod objects;
pub mod plan;
pub mod reads;
pub mod seam;
pub mod sweep;

/// Named value: under which name a store writes to the archive. 16 bytes. A store that was made from a backup takes
/// another one.
pub const ARCHIVE_ID_KEY: &str = "archive/id";

pub use format::Run;
pub use metrics::ArchiveMetrics;
pub use objects::{Listed, MemoryObjects, ObjectError, Objects};
pub use plan::{TierPlan, TierReport};
pub use reads::{Archive, ArchiveError, ArchiveOptions};
