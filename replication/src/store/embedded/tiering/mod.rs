//! Moving old entries to the archive.
//!
//! Problem: what is moved is for a moment in two places, and must be in one of them for ever. The process may die
//! between any two steps, a body may be erased between any two steps, and an object store may lie about what it keeps.
//!
//! Rule: a pass goes through all logs. Of each it takes the oldest bucket that is still in the store, if it may move
//! (`archive/plan`). Then, run by run:
//!
//! 1. The object is written, read back, and verified. Dead here: an object that no mark names, deleted by a later sweep.
//! 2. The mark is written, synced; the writer looks once more whether a body was erased meanwhile. From here on reads
//!    go to the archive.
//! 3. The entries are removed. Dead here: the next pass removes them.
//!
//! An erasure of what is archived is noted in the index of erased places and counts from then on. The pass writes the
//! object anew without the body, moves the mark over to it, and deletes the old one. Likewise for what another store
//! wrote, from whose backup this one was made: afterwards this one needs nothing of it.
//!
//! Reading order: [`marks`] (what is where, and reading over the limit), `writing` (what the writer checks), this file.

mod marks;
mod pass;
mod writing;

pub(super) use marks::{mark_of, range};
