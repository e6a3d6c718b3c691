//! Coming to a region that this device never visited (R8).
//!
//! *Problem.* The region knows nothing of this device, and cursors of other regions say nothing here; a full list
//! of rows costs hundreds of kilobytes after every fail-over.
//!
//! *Rule.* The Hello says that there are rows to compare. If the region has no cursor of this device it answers
//! with none, and is sent the hashes of all buckets, over the rows *as last told*. The rows of buckets that differ
//! come in parts; with the last one the revision at which the first was taken becomes the cursor, in the
//! transaction that stores it. Until then no rows are pulled and no push moves a cursor. A comparison that was
//! cut begins anew: what has come already does not differ any more.
//!
//! *Why the simpler way fails.* Hashing what was pulled instead of what was told: a device that has not pulled
//! old history would differ in every region for ever.

use std::time::Duration;

use super::machine::Machine;
use super::session::Request;
use crate::buckets;
use crate::ids::Cursor;
use crate::wire::v1::{self, frame::Body};

/// A comparison under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    /// Chosen with the first part.
    pub(super) total: usize,
    /// Where to go on.
    pub(super) next: usize,
    /// What the cursor will be.
    pub(super) at: Option<Cursor>,
    /// The server has said that the kept cursor is not one that it issued.
    pub(super) taken_back: bool,
    /// It was begun anew once.
    pub(super) again: bool,
}

impl Machine {
    /// Whether there are rows that a region could be asked to compare.
    pub(super) fn has_told_rows(&self) -> bool {
        self.convs.values().any(|c| c.record.sighted)
    }

    /// Begins to compare, and asks for the first part.
    pub(super) fn compare(&mut self, now: Duration, taken_back: bool, again: bool) {
        let rows = self.convs.values().filter(|c| c.record.sighted).count();
        let comparison = Comparison { total: buckets::count(rows), next: 0, at: None, taken_back, again };
        if let Some(session) = &mut self.session {
            session.comparing = Some(comparison);
        }
        self.ask_hashes(now, comparison);
    }

    fn ask_hashes(&mut self, now: Duration, comparison: Comparison) {
        let Comparison { total, next, at, .. } = comparison;
        let sums = buckets::sums(self.convs.values().filter_map(|c| c.record.told()), total);
        let Some(session) = &mut self.session else { return };
        let req = session.request(now, Request::Compare);
        let hashes = v1::RowHashes {
            buckets: sums.into_iter().skip(next).collect(),
            total: u32::try_from(total).unwrap_or(0),
            first_bucket: u32::try_from(next).unwrap_or(0),
            at: at.filter(|_| next > 0).map(Into::into),
        };
        self.write_frame(req, Body::RowHashes(hashes));
    }

    /// A part of the answer, its rows taken already. `upto`: as the server says. True once it was the last.
    pub(super) fn compared(&mut self, now: Duration, upto: Option<Cursor>, next_bucket: u32) -> bool {
        let Some(session) = &mut self.session else { return false };
        let store = session.store;
        let Some(mut comparison) = session.comparing else { return false };
        comparison.at = comparison.at.or(upto.filter(|u| u.store == store));
        let next = next_bucket as usize;
        if next > comparison.next && next < comparison.total && comparison.at.is_some() {
            comparison.next = next;
            session.comparing = Some(comparison);
            self.ask_hashes(now, comparison);
            return false;
        }
        session.comparing = None;
        if let Some(at) = comparison.at {
            let old = self.cursors.get(&store.region).filter(|c| c.store == store);
            if comparison.taken_back || old.is_none_or(|o| at.rev > o.rev) {
                self.move_cursor(at);
            }
        }
        true
    }

    /// The server does not compare: once more from the beginning if it had begun, otherwise all rows are pulled.
    pub(super) fn compare_refused(&mut self, now: Duration) {
        let Some(session) = &mut self.session else { return };
        let Some(comparison) = session.comparing.take() else { return };
        if comparison.next > 0 && !comparison.again {
            self.compare(now, comparison.taken_back, true);
        } else {
            self.want_rows(now);
        }
    }
}
