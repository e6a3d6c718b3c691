//! Bodies that are erased (R16).
//!
//! An erasure is an entry; what it asks for is done in the store by each region for itself, after the entry is
//! decided: the copies of the message are looked for in the logs, and each is replaced by its erased form. What
//! is left to do lies in the fold (and so in the checkpoint) until all replacements are queued for the store,
//! which keeps the order of puts: a crash in between finds it again.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entry::Entry;
use crate::fold::Erasing;
use crate::ids::{ConvId, Origin, Seq};
use crate::limits::{PAGE_BYTES, PULL_ENTRIES};
use crate::mutants::{Mutant, on};
use crate::store::{Put, Range};

use super::{Node, Notice, Now, Ticket};

/// Copies of erased messages that are being read.
#[derive(Debug)]
pub(super) struct EraseJob {
    what: Erasing,
    /// Parts of logs that may hold some.
    ranges: VecDeque<(Origin, Seq, Seq)>,
}

impl Node {
    /// Begins with the next erasure of a conversation, if none is under way. While a round is undecided it waits for
    /// that: the fold runs ahead of the store, and what is not there yet would not be found.
    pub(super) fn erase_next(&mut self, id: ConvId) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        if conversation.erasing.is_some() || conversation.is_loading() || conversation.round.is_some() {
            return;
        }
        let Some(what) = conversation.state.fold.erasing.first().cloned() else { return };
        let runs = conversation.state.erase(&what);
        let ranges = runs.into_iter().map(|run| (run.origin, run.seq_from, run.seq_to)).collect();
        conversation.erasing = Some(EraseJob { what, ranges });
        self.active.insert(id);
        self.erase_read_next(id);
    }

    fn erase_read_next(&mut self, id: ConvId) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let Some(job) = &conversation.erasing else { return };
        if let Some((origin, from, to)) = job.ranges.front().copied() {
            let range = Range {
                conversation: id,
                origin,
                from,
                to,
                max_entries: PULL_ENTRIES,
                max_bytes: PAGE_BYTES * 8,
                backwards: false,
            };
            self.want_range(Ticket::Erase { conversation: id }, range);
        } else {
            let what = job.what.clone();
            conversation.erasing = None;
            conversation.state.fold.erasing.remove(&what);
            // The checkpoint that follows says that it is done.
            conversation.since_checkpoint = conversation.since_checkpoint.max(super::CHECKPOINT_ENTRIES);
            self.erase_next(id);
        }
    }

    /// Part of a log that may hold copies.
    pub(super) fn erase_read(&mut self, now: Now, id: ConvId, entries: Result<Vec<Arc<Entry>>, String>) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let Some(job) = conversation.erasing.as_mut() else { return };
        let Some((origin, _, to)) = job.ranges.pop_front() else { return };
        match entries {
            // A damaged log is repaired or fetched again, and erased then.
            Err(what) => self.out.notices.push(Notice::Damaged { conversation: id, what }),
            Ok(entries) => {
                for entry in &entries {
                    if !conversation.state.fold.is_erased(entry) {
                        continue;
                    }
                    conversation.state.erase_copies(&entry.by);
                    if !entry.erased && !on(Mutant::ErasureNotCarriedOut) {
                        let (seq, by) = (entry.place.seq, entry.by.clone());
                        self.out.puts.push(Put::Erase { conversation: id, origin, seq, by });
                        self.counters.erased += 1;
                    }
                }
                if let Some(last) = entries.last().map(|e| e.place.seq).filter(|last| *last < to) {
                    job.ranges.push_front((origin, last + 1, to));
                }
            }
        }
        conversation.active_at = now.mono;
        self.schedule_flush(now);
        self.erase_read_next(id);
    }
}
