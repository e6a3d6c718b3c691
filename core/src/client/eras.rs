//! Logs that a row does not name one by one, and logs that have ended (R4, R13).
//!
//! *Problem.* A row folds the logs of a region's former lives into one origin and a number of entries; and a
//! region that was lost may have taken entries with it that this device alone has seen.
//!
//! *Rule.* A fold with another number than was asked about is asked about: the answer names the logs, which are
//! pulled like any other. What is held above the head of a log that the region has told is a doubt: unless it goes
//! away by itself, the same question tells whether the log has ended. Copies above its end are void: they are shown
//! where no other copy is held, and give no message its place where one is.
//!
//! *Why the simpler way fails.* Showing the lowest copy whatever became of its log: this device shows the message
//! at a place that no other device will ever know.

use std::time::Duration;

use super::data::Op;
use super::effects::Event;
use super::limits::{DOUBT_AFTER, DOUBT_AGAIN, ERAS_IN_FLIGHT, ERAS_PAUSE};
use super::machine::{Conv, Machine};
use super::receiving::origin_state;
use super::session::Request;
use crate::codes::Refusal;
use crate::eras::{covers, folds_of};
use crate::ids::{ConvId, Heads, Origin};
use crate::mutant;
use crate::wire::convert;
use crate::wire::v1::{self, frame::Body};

/// The number under which a fold is noted that came with the first sight of its conversation. No fold has it.
const FIRST_SIGHT: u64 = 0;

impl Conv {
    /// Folds of the row that the logs are not known of.
    fn folds_to_ask(&self) -> Heads {
        let record = &self.record;
        let known = |origin: &Origin| {
            let through = origin.through().unwrap_or(0);
            folds_of(&record.unfolded, origin.region).any(|(known, n)| n != FIRST_SIGHT && known >= through)
        };
        let marks = [&record.read, &record.peer_read].into_iter().flatten();
        let marks = marks.filter(|(o, _)| o.through().is_some() && !known(o));
        let heads = record.heads.iter().filter(|(o, n)| o.through().is_some() && record.unfolded.get(o) != Some(n));
        marks.chain(heads).map(|(o, n)| (*o, *n)).collect()
    }

    /// Whether all logs of the conversation are known by name.
    pub(super) fn is_unfolded(&self) -> bool {
        self.folds_to_ask().is_empty()
    }

    /// Logs of which more is held than the region tells of.
    fn doubts(&self) -> Vec<Origin> {
        let record = &self.record;
        if !record.sighted {
            return Vec::new();
        }
        let told = |origin: Origin| {
            // One that is not known to be newer than a fold may be in it.
            let start = record.starts.get(&origin).copied().unwrap_or(0);
            let folded = folds_of(&record.heads, origin.region).any(|(through, _)| through >= start);
            if folded { u64::MAX } else { record.heads.get(&origin).copied().unwrap_or(0) }
        };
        let above = |(origin, upto): (Origin, u64)| upto > told(origin).max(self.ended_above(origin));
        self.origins.iter().map(|(o, s)| (*o, s.held.highest())).filter(|o| above(*o)).map(|(o, _)| o).collect()
    }

    /// Where a log has ended that more is held of, nothing above counts as a doubt; otherwise 0.
    fn ended_above(&self, origin: Origin) -> u64 {
        if self.record.ended.contains_key(&origin) { u64::MAX } else { 0 }
    }

    /// A mark with its folds spelled out, as far as the logs are known.
    pub(super) fn spell_out(&self, mark: &Heads) -> Heads {
        let mut all: Heads = mark.iter().filter(|(o, _)| o.through().is_none()).map(|(o, s)| (*o, *s)).collect();
        if all.len() == mark.len() {
            return all;
        }
        for (origin, state) in &self.origins {
            let start = self.record.starts.get(origin).copied();
            if start.is_some() && covers(mark, *origin, start, state.head) {
                let upto = all.entry(*origin).or_default();
                *upto = (*upto).max(state.head);
            }
        }
        all
    }

    /// The row was told for the first time with these heads.
    pub(super) fn note_first_folds(&mut self, heads: &Heads) {
        let folds = heads.keys().filter(|o| o.through().is_some());
        self.record.unfolded.extend(folds.map(|o| (*o, FIRST_SIGHT)));
    }
}

/// Merges a vector as told: by maximum, but what it folds, or an earlier one of the same fold, goes.
pub(super) fn merge_told(into: &mut Heads, told: &Heads) -> bool {
    let news = super::marks::merge(into, told);
    if told.keys().all(|o| o.through().is_none()) {
        return news;
    }
    let before = into.len();
    into.retain(|o, _| told.contains_key(o) || folds_of(told, o.region).next().is_none());
    news || into.len() != before
}

impl Machine {
    /// A row or a push was taken: whether something of it is to be asked about.
    pub(super) fn plan_unfolding(&mut self, id: ConvId) {
        let Some(conv) = self.convs.get(&id) else { return };
        if !conv.is_unfolded() || !conv.doubts().is_empty() {
            self.unfolding.insert(id);
        }
    }

    /// When a conversation may be asked about; `None`: it need not be.
    fn ask_eras_at(&self, id: ConvId) -> Option<Duration> {
        let (conv, session) = (self.convs.get(&id)?, self.session.as_ref()?);
        if session.pulls_eras_of(id) || !conv.record.sighted {
            return None;
        }
        let paused = session.eras_pauses.get(&id).copied().unwrap_or_default();
        if !conv.is_unfolded() {
            return Some(paused);
        }
        if conv.doubts().is_empty() {
            return None;
        }
        session.doubts.get(&id).map(|at| paused.max(*at))
    }

    /// Asks which logs there are, where that is due.
    pub(super) fn plan_eras(&mut self, now: Duration) {
        if self.unfolding.is_empty() || self.session.is_none() {
            return;
        }
        let convs = &self.convs;
        self.unfolding.retain(|id| convs.get(id).is_some_and(|c| !c.is_unfolded() || !c.doubts().is_empty()));
        if let Some(session) = &mut self.session {
            // Most doubts go away: the region is about to hear of it.
            self.unfolding.iter().for_each(|id| {
                session.doubts.entry(*id).or_insert(now + DOUBT_AFTER);
            });
        }
        let due = self.unfolding.iter().filter(|id| self.ask_eras_at(**id).is_some_and(|at| at <= now));
        let due: Vec<ConvId> = due.take(self.eras_room()).copied().collect();
        for id in due {
            let Some(conv) = self.convs.get(&id) else { continue };
            let (folds, doubts) = (conv.folds_to_ask(), conv.doubts());
            let Some(session) = &mut self.session else { return };
            session.doubts.insert(id, now + DOUBT_AGAIN);
            let req = session.request(now, Request::Eras { conversation: id, folds });
            let origins = doubts.into_iter().take(crate::limits::VECTOR_ORIGINS).map(Into::into).collect();
            let conversation = bytes::Bytes::copy_from_slice(&id.0);
            self.write_frame(req, Body::PullEras(v1::PullEras { conversation, origins }));
        }
    }

    /// How many more such questions may be under way.
    fn eras_room(&self) -> usize {
        let requests = self.session.iter().flat_map(|s| s.requests.values());
        ERAS_IN_FLIGHT.saturating_sub(requests.filter(|(r, _)| matches!(r, Request::Eras { .. })).count())
    }

    /// When something may be asked; while enough is under way its answer comes first.
    pub(super) fn eras_deadline(&self) -> Option<Duration> {
        if self.eras_room() == 0 {
            return None;
        }
        self.unfolding.iter().filter_map(|id| self.ask_eras_at(*id)).min()
    }

    /// The question was refused.
    pub(super) fn eras_refused(&mut self, now: Duration, id: ConvId) {
        if let Some(session) = &mut self.session {
            session.eras_pauses.insert(id, now + ERAS_PAUSE);
        }
    }

    /// Which logs there are. `folds`: as they were told when that was asked.
    pub(super) fn on_eras(&mut self, now: Duration, id: ConvId, folds: &Heads, eras: v1::Eras) -> Result<(), Refusal> {
        // A region that goes on telling another number than its logs have is not asked in a loop.
        self.eras_refused(now, id);
        let Some(conv) = self.convs.get_mut(&id) else { return Ok(()) };
        let peer_read = conv.spell_out(&conv.record.peer_read);
        let mut dirty = Vec::new();
        let mut ended = Vec::new();
        for log in eras.logs {
            let origin = convert::origin(log.origin)?;
            if origin.through().is_some() {
                continue;
            }
            let start = (log.start > 0).then_some(log.start);
            if let Some(start) = start {
                conv.record.starts.insert(origin, start);
            }
            let first = folds_of(&conv.record.unfolded, origin.region)
                .any(|(through, n)| n == FIRST_SIGHT && start.is_some_and(|s| s <= through));
            if log.head > 0 {
                let known = conv.origins.contains_key(&origin);
                let state = origin_state(conv, origin, log.head, !first);
                if log.head > state.head || !known {
                    state.head = state.head.max(log.head);
                    dirty.push(origin);
                    conv.pauses.remove(&origin);
                }
            }
            let held = conv.origins.get(&origin).map_or(0, |s| s.held.highest());
            if log.sealed && (held > log.head || conv.record.ended.contains_key(&origin)) {
                ended.push((origin, log.head));
            }
        }
        conv.record.unfolded.extend(folds.iter().map(|(o, n)| (*o, *n)));
        let told = |o: &Origin| {
            let record = &conv.record;
            [&record.heads, &record.read, &record.peer_read].into_iter().any(|heads| heads.contains_key(o))
        };
        let unfolded = conv.record.unfolded.iter().filter(|(o, _)| told(o)).map(|(o, n)| (*o, *n)).collect();
        conv.record.unfolded = unfolded;
        let (read, news) = (conv.spell_out(&conv.record.read), conv.spell_out(&conv.record.peer_read) != peer_read);
        self.dirty_convs.insert(id);
        self.dirty_vectors.extend(dirty.into_iter().map(|o| (id, o)));
        self.wanting.insert(id);
        for (origin, above) in ended {
            self.log_ended(id, origin, above);
        }
        if news {
            self.event(Event::PeerRead { conversation: id });
        }
        self.read(id, &read);
        Ok(())
    }

    /// No region holds more of a log than this.
    fn log_ended(&mut self, id: ConvId, origin: Origin, above: u64) {
        mutant!(VoidCopiesCount => return);
        let conv = self.conv(id);
        if conv.record.ended.insert(origin, above) != Some(above) {
            self.dirty_convs.insert(id);
            self.ops.push(Op::Void { conversation: id, origin, above });
        }
    }

    /// A region tells of more of a log than was thought its end: a lost disk has come back.
    pub(super) fn log_goes_on(&mut self, id: ConvId, heads: &Heads) {
        let Some(conv) = self.convs.get(&id) else { return };
        if conv.record.ended.is_empty() {
            return;
        }
        let longer = |(o, above): (&Origin, &u64)| heads.get(o).is_some_and(|head| head > above);
        let longer: Vec<Origin> = conv.record.ended.iter().filter(|e| longer(*e)).map(|(o, _)| *o).collect();
        for origin in longer {
            self.log_ended(id, origin, heads.get(&origin).copied().unwrap_or(0));
        }
    }
}
