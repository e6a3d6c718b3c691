//! A user's rows in one region (R7).
//!
//! Problem: a client that comes back, after seconds or weeks, must be told exactly which conversations
//! changed, whatever arrived late and for whatever reason.
//!
//! Rule: each change of a row takes the user's next revision *in this region*; a cursor is a revision; what
//! is above it is what changed. Rows merge by maximum, so fan-out may repeat; a merge that changes nothing
//! takes no revision. Revisions carry the owner's epoch, so one that was issued and then lost in a crash is
//! never issued again for something else.
//!
//! Why simpler ways fail: time as a cursor lets a late copy slip under it; a counter that continues from
//! disk reissues what a client was told and the disk was not.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::edge_api::OPERATOR;
use crate::eras::EraTable;
use crate::ids::{ConvId, Heads, InstallId, Region, Rev, UserId};
use crate::limits::VECTOR_ORIGINS;
use crate::mutated;
use crate::store::RowRecord;
use crate::wire::v1;

use super::ConnKey;
use super::routes::{Bind, Holder};
use super::siblings::ToldRow;

/// A Hello that waits for the user's rows.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub key: ConnKey,
    pub req: u32,
    pub user: UserId,
    pub hello: Box<v1::Hello>,
    pub address: String,
    pub token_expires_ms: u64,
    /// See `edge_api::Up::Open`.
    pub transport: &'static str,
}

impl Open {
    /// Whether this is an operator's own connection.
    pub fn is_operator(&self) -> bool {
        self.transport == OPERATOR
    }
}

/// Which region told read marks, and up to which of the user's revisions there.
pub(super) type MarksFrom = (Holder, Rev);

/// Marks, and who told them.
pub(super) type WaitingMarks = (Option<MarksFrom>, Vec<(ConvId, Heads)>);

/// What waits for a user to be loaded.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub opens: Vec<Open>,
    pub merges: BTreeSet<ConvId>,
    /// Rows that other nodes have told.
    pub told: Vec<ToldRow>,
    /// What connections said of themselves before he was here.
    pub frames: Vec<(ConnKey, v1::Frame)>,
    /// Connections in use that came here with his slot, and their order.
    pub resumed: Vec<(ConnKey, u64)>,
    /// Read marks: whose region told them (`None`: the other user of a direct conversation has read).
    pub marks: Vec<WaitingMarks>,
    /// Regions that are to be told of the user's read marks.
    pub ship_marks: BTreeSet<Region>,
}

/// A live connection of the user.
#[derive(Debug)]
pub(super) struct Device {
    pub install: InstallId,
    /// Set once the client has said that this connection is the one it uses.
    pub bound: Option<Bind>,
    /// The rev that its Welcome showed.
    pub welcomed: Rev,
    /// The newest rev that was pushed, and the newest that was acked.
    pub pushed: Rev,
    pub acked: Rev,
    /// When it will be reminded, while it owes an ack.
    pub remind_at: Option<Duration>,
}

impl Device {
    /// One that is not in use yet, and has been told of the user's rows up to `welcomed`.
    pub(super) fn new(install: InstallId, welcomed: Rev) -> Self {
        let none = Rev::default();
        Self { install, bound: None, welcomed, pushed: none, acked: none, remind_at: None }
    }
}

/// How a row is to change.
#[derive(Clone, Debug, Default)]
pub struct RowChange<'a> {
    /// Heads held here, clipped to what the user may read.
    pub heads: Cow<'a, Heads>,
    /// Of the newest entry.
    pub last_hlc: u64,
    /// Countable messages held.
    pub counted: u64,
    /// Direct conversations: the other user.
    pub peer: Option<UserId>,
    /// Of the membership.
    pub generation: u64,
    /// See `RowRecord::state`.
    pub state: u32,
    /// Entries up to here are from before the membership.
    pub from: Option<&'a Heads>,
    /// Where sealed eras are folded in the heads: the heads unfolded.
    pub unfolded: Option<Unfolded<'a>>,
}

/// What folded heads stand for.
#[derive(Clone, Debug)]
pub struct Unfolded<'a> {
    /// All logs.
    pub heads: Cow<'a, Heads>,
    /// By which they were folded.
    pub eras: &'a EraTable,
}

/// A change of a row took a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The user's revision before.
    pub before: Rev,
    /// The row's revision now.
    pub after: Rev,
    /// More than heads changed.
    pub state: bool,
}

/// See the module.
#[derive(Debug)]
pub struct User {
    epoch: u64,
    rows: BTreeMap<ConvId, RowRecord>,
    by_rev: BTreeMap<Rev, ConvId>,
    rev: Rev,
    dirty: BTreeSet<ConvId>,
    /// Boxed: most users have one, and a leaf of the map has room for eleven.
    pub(super) devices: BTreeMap<ConnKey, Box<Device>>,
    loading: Option<Waiting>,
}

impl User {
    pub(super) fn loading() -> Self {
        let mut user = Self::new(0, Vec::new());
        user.loading = Some(Waiting::default());
        user
    }

    /// A user whose rows were read.
    pub fn new(epoch: u64, rows: Vec<(ConvId, RowRecord)>) -> Self {
        let by_rev: BTreeMap<Rev, ConvId> = rows.iter().map(|(id, row)| (row.rev, *id)).collect();
        let rev = by_rev.last_key_value().map_or(Rev::default(), |(rev, _)| *rev);
        Self {
            epoch,
            rows: rows.into_iter().collect(),
            by_rev,
            rev,
            dirty: BTreeSet::new(),
            devices: BTreeMap::new(),
            loading: None,
        }
    }

    pub(super) fn waiting(&mut self) -> Option<&mut Waiting> {
        self.loading.as_mut()
    }

    pub(super) fn take_waiting(&mut self) -> Option<Waiting> {
        self.loading.take()
    }

    /// Nothing waits, nobody is connected, all is on disk.
    pub fn is_idle(&self) -> bool {
        self.loading.is_none() && self.dirty.is_empty() && self.devices.is_empty()
    }

    /// The newest revision.
    pub fn rev(&self) -> Rev {
        self.rev
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A row.
    pub fn row(&self, conversation: ConvId) -> Option<&RowRecord> {
        self.rows.get(&conversation)
    }

    /// Merges by maximum; `None`: nothing changed.
    pub fn merge(&mut self, conversation: ConvId, change: &RowChange<'_>) -> Option<Merged> {
        let fresh = !self.rows.contains_key(&conversation);
        let mut changed = fresh;
        let row = self.rows.entry(conversation).or_default();
        for (origin, seq) in change.heads.iter() {
            let head = row.heads.entry(*origin).or_insert(0);
            if *head < *seq {
                *head = *seq;
                changed = true;
            }
        }
        let mut state = false;
        if let Some(Unfolded { heads: full, eras }) = &change.unfolded {
            let before = row.heads.len();
            row.heads.retain(|o, _| change.heads.contains_key(o) || !eras.is_in_fold(*o, &change.heads));
            changed |= row.heads.len() != before;
            let read = eras.fold_mark(&mut row.read, full, &change.heads);
            let peer_read = eras.fold_mark(&mut row.peer_read, full, &change.heads);
            state = read || peer_read;
            changed |= state;
        }
        let membership = (change.generation, change.state);
        if change.generation >= row.generation && membership != (row.generation, row.state) {
            (row.generation, row.state) = membership;
            (changed, state) = (true, state || !fresh || membership != (1, 0));
        }
        if change.generation == row.generation && change.from.map_or(!row.from.is_empty(), |from| *from != row.from) {
            row.from = change.from.cloned().unwrap_or_default();
            (changed, state) = (true, true);
        }
        if row.peer.is_none() && change.peer.is_some() {
            row.peer.clone_from(&change.peer);
            changed = true;
        }
        if !changed {
            return None;
        }
        row.last_hlc = row.last_hlc.max(change.last_hlc);
        row.counted = row.counted.max(change.counted);
        let (before, after) = self.touch(conversation);
        Some(Merged { before, after, state })
    }

    /// Merges a read mark by maximum: the user's own, or the other one's of a direct conversation. `None`: nothing
    /// changed.
    pub fn mark(&mut self, conversation: ConvId, read: &Heads, peer: bool, eras: &EraTable) -> Option<Merged> {
        let row = self.rows.entry(conversation).or_default();
        let mark = if peer { &mut row.peer_read } else { &mut row.read };
        let mut changed = false;
        for (origin, seq) in read {
            let covered = eras.is_marked(mark, *origin, *seq);
            let known = mutated!(MarkGoesBack => mark.get(origin) == Some(seq); covered);
            if known || mark.len() >= VECTOR_ORIGINS && !mark.contains_key(origin) {
                continue;
            }
            mark.insert(*origin, *seq);
            changed = true;
        }
        if changed && read.keys().any(|o| o.through().is_some()) {
            let all = mark.clone();
            mark.retain(|o, _| !eras.is_in_fold(*o, &all));
        }
        if !changed {
            return None;
        }
        let (before, after) = self.touch(conversation);
        Some(Merged { before, after, state: true })
    }

    /// The row takes the next revision.
    fn touch(&mut self, conversation: ConvId) -> (Rev, Rev) {
        let row = self.rows.entry(conversation).or_default();
        let before = self.rev;
        let first_of_epoch = Rev::start_of(self.epoch).next();
        self.rev = mutated!(RevReused => before.next(); before.next().max(first_of_epoch));
        self.by_rev.remove(&row.rev);
        row.rev = self.rev;
        self.by_rev.insert(self.rev, conversation);
        self.dirty.insert(conversation);
        (before, self.rev)
    }

    /// All rows, in order of the conversations' ids.
    pub fn all(&self) -> impl Iterator<Item = (ConvId, &RowRecord)> {
        self.rows.iter().map(|(id, row)| (*id, row))
    }

    /// Rows above `rev`, ascending, at most `limit`; whether these are all.
    pub fn above(&self, rev: Rev, limit: usize) -> (Vec<(ConvId, &RowRecord)>, bool) {
        let mut rows = self.by_rev.range(rev.next()..).filter_map(|(_, id)| Some((*id, self.rows.get(id)?)));
        let page: Vec<_> = rows.by_ref().take(limit).collect();
        let all = rows.next().is_none();
        (page, all)
    }

    /// The rows of the newest entries, newest first.
    pub fn preview(&self, limit: usize) -> Vec<(ConvId, &RowRecord)> {
        let mut rows: Vec<_> = self.rows.iter().map(|(id, row)| (*id, row)).collect();
        rows.sort_unstable_by_key(|(id, row)| (std::cmp::Reverse(row.last_hlc), *id));
        rows.truncate(limit);
        rows
    }

    /// Whether this owner can have issued `rev`, in this start or an earlier one.
    pub fn may_have_issued(&self, rev: Rev) -> bool {
        rev.epoch() < self.epoch || rev <= self.rev
    }

    /// A row is not on disk after all.
    pub fn mark_dirty(&mut self, conversation: ConvId) {
        self.dirty.insert(conversation);
    }

    /// Rows that changed since they were last taken.
    pub fn take_dirty(&mut self) -> impl Iterator<Item = (ConvId, RowRecord)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().filter_map(|id| Some((id, self.rows.get(&id)?.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Origin;

    const EU: Origin = Origin { region: 1, era: 1 };
    const US: Origin = Origin { region: 2, era: 1 };

    fn change(heads: &[(Origin, u64)]) -> RowChange<'static> {
        RowChange { heads: Cow::Owned(heads.iter().copied().collect()), generation: 1, ..RowChange::default() }
    }

    #[test]
    fn a_late_copy_takes_a_higher_rev_and_slips_under_no_cursor() {
        let mut user = User::new(1, Vec::new());
        let c = ConvId([1; 16]);
        let cursor = user.merge(c, &change(&[(EU, 5)])).unwrap().after;
        user.merge(c, &change(&[(US, 1)])).unwrap();
        let (rows, all) = user.above(cursor, 10);
        assert_eq!((rows[0].1.heads.clone(), all), ([(EU, 5), (US, 1)].into(), true));
    }

    #[test]
    fn a_merge_that_changes_nothing_takes_no_rev() {
        let mut user = User::new(1, Vec::new());
        let c = ConvId([1; 16]);
        user.merge(c, &change(&[(EU, 5)])).unwrap();
        let rev = user.rev();
        assert_eq!(user.merge(c, &change(&[(EU, 4)])), None);
        assert_eq!(user.rev(), rev);
    }

    #[test]
    fn a_lower_mark_that_comes_late_takes_nothing_back() {
        let (mut user, c, eras) = (User::new(1, Vec::new()), ConvId([1; 16]), EraTable::default());
        user.merge(c, &change(&[(EU, 5)])).unwrap();
        user.mark(c, &[(EU, 4)].into(), false, &eras).unwrap();
        assert_eq!(user.mark(c, &[(EU, 2)].into(), false, &eras), None);
        assert_eq!(user.row(c).unwrap().read, [(EU, 4)].into());
    }

    #[test]
    fn a_rev_that_was_issued_and_lost_in_a_crash_is_not_reissued() {
        let (a, b) = (ConvId([1; 16]), ConvId([2; 16]));
        let mut user = User::new(1, Vec::new());
        let on_disk = user.merge(a, &change(&[(EU, 1)])).unwrap().after;
        let durable: Vec<_> = user.take_dirty().collect();
        let told_only = user.merge(a, &change(&[(EU, 2)])).unwrap().after; // pushed, then the crash
        let mut user = User::new(2, durable);
        assert_eq!(user.rev(), on_disk);
        assert!(user.may_have_issued(told_only));
        user.merge(b, &change(&[(EU, 1)])).unwrap();
        user.merge(a, &change(&[(EU, 2)])).unwrap(); // fan-out again
        let (rows, _) = user.above(told_only, 10);
        assert_eq!(rows.iter().map(|(c, _)| *c).collect::<Vec<_>>(), [b, a], "both are above the client's cursor");
    }

    #[test]
    fn a_cursor_from_the_future_is_told_from_one_of_a_lost_start() {
        let mut user = User::new(3, Vec::new());
        user.merge(ConvId([1; 16]), &change(&[(EU, 1)])).unwrap();
        assert!(user.may_have_issued(Rev(Rev::start_of(2).0 + 77)));
        assert!(user.may_have_issued(user.rev()));
        assert!(!user.may_have_issued(user.rev().next()));
        assert!(!user.may_have_issued(Rev::start_of(4)));
    }

    #[test]
    fn pages_ascend_and_the_preview_shows_the_newest_first() {
        let mut user = User::new(1, Vec::new());
        for i in 0..10u8 {
            let newest_first = u64::from(10 - i);
            user.merge(ConvId([i; 16]), &RowChange { last_hlc: newest_first, ..change(&[(EU, 1)]) }).unwrap();
        }
        let (page, all) = user.above(Rev::default(), 4);
        assert!(!all && page.len() == 4 && page.windows(2).all(|w| w[0].1.rev < w[1].1.rev));
        assert_eq!(user.preview(3).iter().map(|(c, _)| c.0[0]).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
