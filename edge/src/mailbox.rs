//! What waits to be written to one connection.
//!
//! A client may be slow for minutes while others send to it. Pushes are hints: when too many wait, all of
//! them give way to one `Advance` with the newest rev, and the client pulls what it missed. Answers are never
//! dropped; the session bounds them by not reading further requests. Simply closing a slow connection would
//! make it come back, slower.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use prost::Message;
use tern_core::codes::Refusal;
use tern_core::edge_api::{ConnId, DownBody};
use tern_core::entry::Entry;
use tern_core::ids::Rev;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{Lane, v1};

use crate::config::EdgeLimits;
use crate::metrics::EdgeMetrics;

/// Frames that may wait on the control lane: answers to pings, bounded by requests in flight, and a few that
/// nobody asked for. A connection with more is closed.
const CONTROL_FRAMES: usize = 1024;

/// A connection as the table of the edge knows it.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    mailbox: Mutex<Mailbox>,
}

impl Conn {
    pub(crate) fn new(id: ConnId) -> Self {
        Self { id, mailbox: Mutex::default() }
    }

    pub(crate) fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the connection's task look again.
    pub(crate) fn wake(&self) {
        let waker = self.mailbox().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    lanes: [VecDeque<Waiting>; 3],
    /// Of the message lane.
    bytes: usize,
    /// Of the bulk lane.
    bulk_bytes: usize,
    /// Pushes gave way up to this rev; it is told once the message lane is empty.
    advance: Option<Rev>,
    last: Option<Refusal>,
    /// To be closed with at once, whatever waits.
    end: Option<Refusal>,
    overfull: bool,
    closed: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Waiting {
    body: DownBody,
    bytes: usize,
}

impl Mailbox {
    /// Registers the connection's task.
    pub(crate) fn listen(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|w| w.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    /// Appends; the waker to call afterwards, once for all that was appended.
    pub(crate) fn put(&mut self, body: DownBody, limits: &EdgeLimits, metrics: &EdgeMetrics) -> Option<Waker> {
        if self.closed {
            return None;
        }
        match &body {
            DownBody::Last(refusal) => {
                self.last.get_or_insert_with(|| refusal.clone());
            }
            DownBody::Push(push) if self.advance.is_some() => {
                self.advance = self.advance.max(Some(push.rev));
                metrics.pushes_given_up.inc();
            }
            DownBody::Push(push) => {
                let rev = push.rev;
                if !self.append(body, Lane::Message, limits, metrics) {
                    metrics.pushes_given_up.inc();
                    self.give_way(Some(rev), metrics);
                }
            }
            DownBody::Frame(frame) if may_give_way(frame) => {
                let rev = advance_of(frame);
                if rev.is_some() && self.advance.is_some() {
                    self.advance = self.advance.max(rev);
                } else if !self.append(body, Lane::Message, limits, metrics) {
                    self.give_way(rev, metrics);
                }
            }
            DownBody::Frame(frame) => {
                let unasked = if frame.req == 0 { Lane::Control } else { Lane::Message };
                let lane = frame.lane().unwrap_or(unasked);
                self.answer(lane, body, metrics);
            }
            DownBody::Ack { .. } => self.answer(Lane::Message, body, metrics),
            DownBody::Page { .. } => self.answer(Lane::Bulk, body, metrics),
        }
        self.waker.take()
    }

    /// Appends what is never dropped.
    pub(crate) fn answer(&mut self, lane: Lane, body: DownBody, metrics: &EdgeMetrics) {
        if lane == Lane::Control && self.lanes[lane.index()].len() >= CONTROL_FRAMES {
            self.overfull = true;
            return;
        }
        let bytes = size(&body);
        self.push_back(lane, Waiting { body, bytes }, metrics);
    }

    fn append(&mut self, body: DownBody, lane: Lane, limits: &EdgeLimits, metrics: &EdgeMetrics) -> bool {
        let bytes = size(&body);
        let room = self.lanes[lane.index()].len() < limits.queue_frames
            && self.bytes + bytes <= limits.queue_bytes
            && metrics.memory_bytes() <= limits.memory_bytes;
        if room {
            self.push_back(lane, Waiting { body, bytes }, metrics);
        }
        room
    }

    fn push_back(&mut self, lane: Lane, waiting: Waiting, metrics: &EdgeMetrics) {
        self.count(lane, waiting.bytes, true, metrics);
        self.lanes[lane.index()].push_back(waiting);
    }

    fn count(&mut self, lane: Lane, bytes: usize, more: bool, metrics: &EdgeMetrics) {
        let of_lane = match lane {
            Lane::Message => &mut self.bytes,
            Lane::Bulk => &mut self.bulk_bytes,
            Lane::Control => &mut 0,
        };
        let gauge = i64::try_from(bytes).unwrap_or(i64::MAX);
        if more {
            *of_lane += bytes;
            metrics.queue_bytes.inc_by(gauge);
        } else {
            *of_lane = of_lane.saturating_sub(bytes);
            metrics.queue_bytes.dec_by(gauge);
        }
    }

    /// Drops all that may be dropped; its newest rev, or `rev`, is told instead.
    fn give_way(&mut self, rev: Option<Rev>, metrics: &EdgeMetrics) {
        self.advance = self.advance.max(rev);
        let waiting = std::mem::take(&mut self.lanes[Lane::Message.index()]);
        for w in waiting {
            let newest = match &w.body {
                DownBody::Push(push) => {
                    metrics.pushes_given_up.inc();
                    Some(push.rev)
                }
                DownBody::Frame(frame) if may_give_way(frame) => advance_of(frame),
                _ => {
                    self.lanes[Lane::Message.index()].push_back(w);
                    continue;
                }
            };
            self.advance = self.advance.max(newest);
            self.count(Lane::Message, w.bytes, false, metrics);
        }
    }

    /// Takes what fits into `room` bytes, at least one where there is any room.
    pub(crate) fn take(&mut self, lane: Lane, room: usize, out: &mut Vec<DownBody>, metrics: &EdgeMetrics) {
        self.take_while(lane, room, |taken, _| taken < room, out, metrics);
    }

    /// The same, but nothing that is larger than the room that is left.
    pub(crate) fn take_within(&mut self, lane: Lane, room: usize, out: &mut Vec<DownBody>, metrics: &EdgeMetrics) {
        self.take_while(lane, room, |taken, bytes| taken + bytes <= room, out, metrics);
    }

    fn take_while(
        &mut self,
        lane: Lane,
        room: usize,
        fits: impl Fn(usize, usize) -> bool,
        out: &mut Vec<DownBody>,
        metrics: &EdgeMetrics,
    ) {
        let mut taken = 0;
        while let Some(next) = self.lanes[lane.index()].front()
            && fits(taken, next.bytes)
            && let Some(w) = self.lanes[lane.index()].pop_front()
        {
            taken += w.bytes;
            out.push(w.body);
            self.count(lane, w.bytes, false, metrics);
        }
        if self.lanes[lane.index()].is_empty() {
            // An idle connection keeps no buffer.
            self.lanes[lane.index()] = VecDeque::new();
            if lane == Lane::Message
                && taken < room
                && let Some(rev) = self.advance.take()
            {
                let advance = Body::Advance(v1::Advance { rev: rev.0 });
                out.push(DownBody::Frame(Box::new(v1::Frame::new(0, advance))));
            }
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.advance.is_none() && self.lanes.iter().all(VecDeque::is_empty)
    }

    /// Nothing waits, and nothing was said that ends the connection.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_empty() && self.last.is_none() && !self.overfull
    }

    /// Bytes that wait on the bulk lane.
    pub(crate) fn bulk_bytes(&self) -> usize {
        self.bulk_bytes
    }

    /// The refusal to close with, once nothing waits.
    pub(crate) fn last(&self) -> Option<&Refusal> {
        self.last.as_ref().filter(|_| self.is_empty())
    }

    /// Closes without waiting for anything; the waker to call.
    pub(crate) fn end(&mut self, refusal: &Refusal) -> Option<Waker> {
        self.end.get_or_insert_with(|| refusal.clone());
        self.waker.take()
    }

    /// See [`Self::end`].
    pub(crate) fn ended(&self) -> Option<Refusal> {
        self.end.clone()
    }

    /// More waits than any client that reads can cause.
    pub(crate) fn overfull(&self) -> bool {
        self.overfull
    }

    /// Takes no more and forgets what waits.
    pub(crate) fn close(&mut self, metrics: &EdgeMetrics) {
        let bytes: usize = self.lanes.iter().flatten().map(|w| w.bytes).sum();
        metrics.queue_bytes.dec_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        *self = Self { closed: true, ..Self::default() };
    }
}

/// Unasked frames of which a later one, or a pull, says as much: a client asks again for `Stable`, and
/// signals expire.
fn may_give_way(frame: &v1::Frame) -> bool {
    frame.req == 0
        && matches!(frame.body, Some(Body::Stable(_) | Body::Signal(_) | Body::Presence(_) | Body::Advance(_)))
}

fn advance_of(frame: &v1::Frame) -> Option<Rev> {
    match &frame.body {
        Some(Body::Advance(advance)) => Some(Rev(advance.rev)),
        _ => None,
    }
}

/// Bytes on the wire, near enough.
fn size(body: &DownBody) -> usize {
    let entries = |entries: &[std::sync::Arc<Entry>]| entries.iter().map(|e| e.body.len() + 96).sum::<usize>();
    match body {
        DownBody::Ack { ack, .. } => 64 + 80 * ack.also.len(),
        DownBody::Push(push) => 64 + entries(&push.entries),
        DownBody::Page { page, .. } => 64 + entries(&page.entries) + 24 * page.gaps.len(),
        DownBody::Frame(frame) => 4 + frame.encoded_len(),
        DownBody::Last(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tern_core::edge_api::{Ack, Push};
    use tern_core::ids::{ConvId, Heads, Origin, Place};

    fn push(rev: u64) -> DownBody {
        DownBody::Push(Arc::new(Push {
            conversation: ConvId([1; 16]),
            peer: None,
            entries: Vec::new(),
            heads: Heads::new(),
            prev_rev: Rev(rev - 1),
            rev: Rev(rev),
            row: None,
        }))
    }

    fn ack(req: u32) -> DownBody {
        let place = Place { hlc: 1, origin: Origin { region: 1, era: 1 }, seq: 1 };
        DownBody::Ack {
            req,
            ack: Ack {
                place,
                first: None,
                receipt: [0; 16],
                also: vec![],
                receipt_refused: false,
                cut: tern_core::ids::Heads::new(),
            },
        }
    }

    fn frame(body: Body) -> DownBody {
        DownBody::Frame(Box::new(v1::Frame::new(0, body)))
    }

    fn limits() -> EdgeLimits {
        EdgeLimits { queue_frames: 4, ..EdgeLimits::default() }
    }

    fn all(mailbox: &mut Mailbox, metrics: &EdgeMetrics) -> Vec<String> {
        let mut out = Vec::new();
        for lane in Lane::ALL {
            mailbox.take(lane, usize::MAX, &mut out, metrics);
        }
        out.iter()
            .map(|body| match body {
                DownBody::Ack { req, .. } => format!("ack {req}"),
                DownBody::Push(p) => format!("push {}", p.rev.0),
                DownBody::Frame(f) => match &f.body {
                    Some(Body::Advance(a)) => format!("advance {}", a.rev),
                    other => format!("{other:?}"),
                },
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn pushes_give_way_to_one_advance_and_answers_stay() {
        let (mut mailbox, limits, metrics) = (Mailbox::default(), limits(), EdgeMetrics::default());
        mailbox.put(ack(1), &limits, &metrics);
        for rev in 1..=6 {
            mailbox.put(push(rev), &limits, &metrics);
        }
        mailbox.put(ack(2), &limits, &metrics);
        mailbox.put(frame(Body::Advance(v1::Advance { rev: 9 })), &limits, &metrics);
        assert_eq!(all(&mut mailbox, &metrics), ["ack 1", "ack 2", "advance 9"]);
        assert_eq!(metrics.pushes_given_up.get(), 6);
        mailbox.put(push(10), &limits, &metrics);
        assert_eq!(all(&mut mailbox, &metrics), ["push 10"]);
        assert!(mailbox.is_empty());
        assert_eq!(metrics.queue_bytes.get(), 0);
    }

    #[test]
    fn bytes_count_as_well_as_frames() {
        let limits = EdgeLimits { queue_bytes: 150, ..EdgeLimits::default() };
        let (mut mailbox, metrics) = (Mailbox::default(), EdgeMetrics::default());
        for rev in 1..=3 {
            mailbox.put(push(rev), &limits, &metrics);
        }
        assert_eq!(all(&mut mailbox, &metrics), ["advance 3"]);
    }

    #[test]
    fn stable_frames_are_dropped_before_memory_grows() {
        let (mut mailbox, limits, metrics) = (Mailbox::default(), limits(), EdgeMetrics::default());
        for _ in 0..100 {
            mailbox.put(frame(Body::Stable(v1::Stable::default())), &limits, &metrics);
        }
        assert!(all(&mut mailbox, &metrics).len() <= 4);
    }

    #[test]
    fn the_last_word_waits_for_what_was_said_before_and_a_closed_mailbox_takes_nothing() {
        let (mut mailbox, limits, metrics) = (Mailbox::default(), limits(), EdgeMetrics::default());
        mailbox.put(ack(1), &limits, &metrics);
        mailbox.put(DownBody::Last(Refusal::new(tern_core::codes::Code::Replaced, "x")), &limits, &metrics);
        assert!(mailbox.last().is_none());
        all(&mut mailbox, &metrics);
        assert!(mailbox.last().is_some());
        mailbox.put(ack(2), &limits, &metrics);
        mailbox.close(&metrics);
        mailbox.put(ack(3), &limits, &metrics);
        assert!(mailbox.is_empty());
        assert_eq!(metrics.queue_bytes.get(), 0);
    }
}
