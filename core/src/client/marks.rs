//! What was read (R9, R11).
//!
//! *Problem.* What is read on one device is read on all; a mark must survive this process, its connection and
//! the region that took it; and a mark goes with nearly every message that is looked at.
//!
//! *Rule.* A mark is a vector, merged by maximum with whatever a row tells. It is stored before it is sent, and
//! wanted as long as it says more than the row as last told; the newest is sent, one at a time per conversation.
//! A region that tells less than is known gets the mark again. Unread messages are counted over what is held
//! above the mark; while a head tells of more than is held, the server's number is the lower bound.
//!
//! *Why the simpler ways fail.* A mark per message: most are outdated before they are sent. A time instead of a
//! vector: an entry that arrives late has an old time, and would never count as unread.

use std::time::Duration;

use bytes::Bytes;

use super::data::{ConversationRecord, Op};
use super::effects::Event;
use super::limits::{MARK_PAUSE, MARK_PAUSE_MAX, MARKS_IN_FLIGHT};
use super::machine::Machine;
use super::session::Request;
use crate::eras::covers;
use crate::ids::{ConvId, Heads, Origin, Seq};
use crate::limits::VECTOR_ORIGINS;
use crate::wire::compact::origin_heads_to_wire;
use crate::wire::v1::{self, frame::Body};

/// Merges by maximum; whether that said anything new.
pub(super) fn merge(into: &mut Heads, from: &Heads) -> bool {
    let mut news = false;
    for (origin, seq) in from {
        let known = into.entry(*origin).or_default();
        news |= *seq > *known;
        *known = (*known).max(*seq);
    }
    into.retain(|_, seq| *seq > 0);
    news
}

/// Whether the mark says more than the row as last told.
pub(super) fn wants_mark(record: &ConversationRecord) -> bool {
    record.sighted && record.mark.iter().any(|(origin, seq)| is_news(record, *origin, *seq))
}

/// Whether a mark of one log says more than the row as last told.
fn is_news(record: &ConversationRecord, origin: Origin, seq: Seq) -> bool {
    seq > 0 && !covers(&record.read, origin, record.starts.get(&origin).copied(), seq)
}

impl Machine {
    /// Messages are read: those of which a copy lies under `upto`, or without it all that are held.
    pub fn mark_read(&mut self, now: Duration, id: ConvId, upto: Option<&Heads>) {
        let Some(conv) = self.convs.get_mut(&id) else { return };
        let mut mark = Heads::new();
        for (origin, state) in &conv.origins {
            let before = conv.record.mark.get(origin).copied().unwrap_or(0);
            // Never beyond a hole: what is to come was not read.
            let held = state.held.union(&state.lost).prefix_above(before.max(state.floor));
            let wanted = upto.map_or(held, |upto| upto.get(origin).copied().unwrap_or(0).min(held));
            mark.insert(*origin, wanted.max(before));
        }
        self.read(id, &mark);
        self.after(now);
    }

    /// So much is known to be read.
    pub(super) fn read(&mut self, id: ConvId, mark: &Heads) {
        let conv = self.conv(id);
        if merge(&mut conv.record.mark, mark) {
            conv.record.unread_hint = 0;
            let mark = conv.record.mark.clone();
            self.dirty_convs.insert(id);
            self.ops.push(Op::Read { conversation: id, mark });
            self.event(Event::Read { conversation: id });
        }
        self.plan_mark(id);
    }

    /// Whether the conversation's mark is to be sent.
    pub(super) fn plan_mark(&mut self, id: ConvId) {
        if self.convs.get(&id).is_some_and(|c| wants_mark(&c.record)) {
            self.marking.insert(id);
        } else {
            self.marking.remove(&id);
        }
    }

    /// Sends marks that are wanted.
    pub(super) fn pump_marks(&mut self, now: Duration) {
        if self.marking.is_empty() {
            return;
        }
        for id in self.marking.clone() {
            let Some(session) = self.session.as_mut().filter(|s| s.marks.len() < MARKS_IN_FLIGHT) else { return };
            let Some(conv) = self.convs.get(&id) else { continue };
            if session.marks.contains(&id) || session.mark_pauses.get(&id).is_some_and(|(at, _)| now < *at) {
                continue;
            }
            let news = conv.record.mark.iter().filter(|(o, s)| is_news(&conv.record, **o, **s));
            let read: Heads = news.take(VECTOR_ORIGINS).map(|(o, s)| (*o, *s)).collect();
            let req = session.request(now, Request::Mark { conversation: id, read: read.clone() });
            let conversation = Bytes::copy_from_slice(&id.0);
            self.write_frame(req, Body::Mark(v1::Mark { conversation, read: origin_heads_to_wire(&read) }));
        }
    }

    /// The region holds the mark durably.
    pub(super) fn on_marked(&mut self, id: ConvId, read: &Heads) {
        if let Some(session) = &mut self.session {
            session.mark_pauses.remove(&id);
        }
        let conv = self.conv(id);
        if merge(&mut conv.record.read, read) {
            self.dirty_convs.insert(id);
        }
        self.plan_mark(id);
    }

    /// The region did not take the mark: again after a pause.
    pub(super) fn mark_refused(&mut self, now: Duration, id: ConvId, at_least: Duration) {
        let Some(session) = &mut self.session else { return };
        let (at, fails) = session.mark_pauses.entry(id).or_default();
        *at = now + MARK_PAUSE.saturating_mul(1 << (*fails).min(8)).min(MARK_PAUSE_MAX).max(at_least);
        *fails += 1;
    }

    /// When a refused mark may be sent again.
    pub(super) fn mark_deadline(&self) -> Option<Duration> {
        let session = self.session.as_ref().filter(|s| s.marks.len() < MARKS_IN_FLIGHT)?;
        self.marking
            .iter()
            .filter(|id| !session.marks.contains(id))
            .filter_map(|id| session.mark_pauses.get(id))
            .map(|(at, _)| *at)
            .min()
    }

    /// Whether a count of unread messages over what is held is exact: nothing above the mark is missing (R9).
    pub fn unread_is_exact(&self, id: ConvId) -> bool {
        let Some(conv) = self.convs.get(&id) else { return true };
        let mark = |origin| conv.record.mark.get(origin).copied().unwrap_or(0);
        conv.is_unfolded() && conv.origins.iter().all(|(o, s)| s.complete_above(mark(o)))
    }

    /// How many are unread, from the number of those held: (at least so many, whether that is exact).
    pub fn unread(&self, id: ConvId, held: u64) -> (u64, bool) {
        if self.unread_is_exact(id) {
            return (held, true);
        }
        let hint = self.convs.get(&id).map_or(0, |c| c.record.unread_hint);
        (held.max(hint.into()), false)
    }

    /// Up to where the other user of a direct conversation has read: a message is read once any of its copies
    /// lies under it.
    pub fn peer_read(&self, id: ConvId) -> Heads {
        self.convs.get(&id).map(|c| c.spell_out(&c.record.peer_read)).unwrap_or_default()
    }
}
