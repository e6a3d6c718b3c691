//! Entries that are told and not held: what to ask for, and what to do with what comes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::data::OriginState;
use super::effects::Event;
use super::limits::{CELLS_IN_FLIGHT, PULL_PAUSE, PULL_PAUSE_MAX, PULLS_IN_FLIGHT};
use super::machine::{Conv, Machine};
use super::session::Request;
use crate::codes::{Code, Refusal};
use crate::ids::{ConvId, Heads, Origin, Rev, Seq};
use crate::limits::PULL_ENTRIES;
use crate::wire::compact::TableReader;
use crate::wire::convert;
use crate::wire::v1::{self, frame::Body, gap::Reason};

impl Conv {
    /// The row says from where the conversation can be read: what is below counts as had.
    pub(super) fn set_from(&mut self, before: &Heads) {
        for (origin, state) in &mut self.origins {
            state.lost.remove(1, before.get(origin).copied().unwrap_or(0));
            state.begin_at(self.record.from.get(origin).copied().unwrap_or(0));
        }
    }
}

impl OriginState {
    /// Nothing up to `from` is asked for.
    pub(super) fn begin_at(&mut self, from: Seq) {
        if from == 0 {
            return;
        }
        for (a, b) in self.held.missing(1, from) {
            self.lost.insert(a, b);
        }
        if self.floor <= from {
            (self.floor, self.floor_hlc) = (0, 0);
        }
    }
}

impl Machine {
    // ---- entries -------------------------------------------------------------------------------------

    pub(super) fn page(&mut self, now: Duration, req: u32, page: v1::Page) -> Result<(), Refusal> {
        let id = convert::conversation(&page.conversation)?;
        let origin = convert::origin(page.origin)?;
        let table = TableReader::new(page.origins, &page.senders)?;
        let Some(session) = &mut self.session else { return Ok(()) };
        let Some(Request::Pull { conversation, origin: asked, from, to, came }) = session.answering(now, req) else {
            return Ok(());
        };
        if *conversation != id || *asked != origin {
            return Err(Refusal::new(Code::BadFrame, "a page of another log than was asked for"));
        }
        *came |= !page.entries.is_empty();
        let (from, to, came) = (*from, *to, *came);
        for entry in page.entries {
            let entry = table.entry(entry)?;
            if entry.place.origin == origin {
                self.hold(id, Arc::new(entry));
            }
        }
        let mut waits = false;
        for gap in page.gaps {
            let reason = Reason::try_from(gap.reason).unwrap_or(Reason::Unknown);
            let (a, b) = (gap.from.max(from), gap.to.min(to));
            match reason {
                Reason::Lost | Reason::Trimmed | Reason::NoAccess => self.give_up(id, origin, (a, b), reason),
                Reason::Unknown | Reason::NotHere | Reason::Damaged => waits = true,
            }
        }
        if page.last {
            if let Some(session) = &mut self.session {
                session.answered(now, req);
            }
            let state = self.convs.get(&id).and_then(|c| c.origins.get(&origin));
            let open = state.is_some_and(|s| s.missing().iter().any(|(a, b)| *a <= to && *b >= from));
            if open && (waits || !came) {
                self.pause_pulls(now, id, origin);
            } else if came && let Some(conv) = self.convs.get_mut(&id) {
                conv.pauses.remove(&origin);
            }
        }
        Ok(())
    }

    fn give_up(&mut self, id: ConvId, origin: Origin, (from, to): (Seq, Seq), reason: Reason) {
        if from > to {
            return;
        }
        let Some(state) = self.convs.get_mut(&id).and_then(|c| c.origins.get_mut(&origin)) else { return };
        let gone = state.held.missing(from, to);
        for (a, b) in &gone {
            state.lost.insert(*a, *b);
        }
        if from <= state.floor + 1 && to > state.floor {
            state.floor_hlc = 0;
        }
        self.dirty_vectors.insert((id, origin));
        for (from, to) in gone {
            self.event(Event::Gap { conversation: id, origin, from, to, reason });
        }
    }

    pub(super) fn pause_pulls(&mut self, now: Duration, id: ConvId, origin: Origin) {
        if let Some(conv) = self.convs.get_mut(&id) {
            let (at, fails) = conv.pauses.entry(origin).or_default();
            *at = now + PULL_PAUSE.saturating_mul(1 << (*fails).min(6)).min(PULL_PAUSE_MAX);
            *fails += 1;
        }
    }

    /// Does what is due on the receiving side.
    pub(super) fn synchronize(&mut self, now: Duration) {
        let Some(region) = self.session.as_ref().map(|s| s.store.region) else { return };
        self.ask_unstable(now);
        let have = self.cursor();
        let Some(session) = &mut self.session else { return };
        if session.push_ack_at.is_some_and(|t| now >= t) {
            session.push_ack_at = None;
            let rev = have.map_or(Rev(0), |c| c.rev);
            if rev > session.push_acked {
                session.push_acked = rev;
                session.pulse.wrote(now);
                self.write_frame(0, Body::PushAck(v1::PushAck { rev: rev.0 }));
            }
        }
        let Some(session) = &mut self.session else { return };
        if session.comparing.is_some() {
            // Its end decides what is pulled.
        } else if !session.rows_in_flight && session.rows_at.is_some_and(|t| now >= t) {
            session.rows_at = None;
            if have.is_none_or(|c| c.rev < session.target) {
                let asked = self.cursors.get(&region).copied();
                let req = session.request(now, Request::Rows { asked });
                let above = have.map(Into::into);
                self.write_frame(req, Body::PullRows(v1::PullRows { above, limit: 0 }));
            }
        } else if session.rows_in_flight && session.rows_at.is_some_and(|t| now >= t) {
            // Its answer decides anew.
            session.rows_at = None;
        }
        self.plan_pulls(now);
        self.plan_cells(now);
        self.plan_eras(now);
        let Some(session) = &mut self.session else { return };
        let rows = session.rows_in_flight || session.rows_at.is_some_and(|t| now >= t);
        let first = have.is_none() && !session.caught_up && session.target > Rev(0);
        let asks = session.requests.values().any(|(r, _)| matches!(r, Request::Eras { .. }));
        session.caught_up = !rows && session.pulls == 0 && !asks && !first;
    }

    /// Asks for folds where what is held does not say it all.
    fn plan_cells(&mut self, now: Duration) {
        let Some(session) = &self.session else { return };
        let busy = session.requests.values().filter(|(r, _)| matches!(r, Request::Cells { .. })).count();
        let free = CELLS_IN_FLIGHT.saturating_sub(busy);
        if free == 0 || self.folding.is_empty() {
            return;
        }
        let mut folding = std::mem::take(&mut self.folding);
        folding.retain(|id| self.may_want_cells(*id));
        self.folding = folding;
        let waits =
            |id: &ConvId| session.pulls_cells_of(*id) || session.cells_pauses.get(id).is_some_and(|at| now < *at);
        let wanted = self.folding.iter().filter(|id| !waits(id) && self.wants_cells(**id));
        let wanted: Vec<_> = wanted.take(free).copied().collect();
        for id in wanted {
            let Some(session) = &mut self.session else { return };
            let req = session.request(now, Request::Cells { conversation: id });
            let conversation = bytes::Bytes::copy_from_slice(&id.0);
            self.write_frame(req, Body::PullCells(v1::PullCells { conversation }));
        }
    }

    /// When a fold that was not to be had may be asked for again.
    pub(super) fn cells_deadline(&self) -> Option<Duration> {
        let session = self.session.as_ref()?;
        let paused = self.folding.iter().filter_map(|id| Some((id, session.cells_pauses.get(id)?)));
        paused.filter(|(id, _)| self.wants_cells(**id) && !session.pulls_cells_of(**id)).map(|(_, at)| *at).min()
    }

    /// Forgets conversations of which nothing is missing any more.
    pub(super) fn mark_wanting(&mut self) {
        let convs = &mut self.convs;
        self.wanting.retain(|id| {
            convs.get_mut(id).is_some_and(|conv| {
                let missing = conv.origins.values().any(|o| !o.missing().is_empty());
                conv.asked_back &= missing;
                missing
            })
        });
    }

    fn plan_pulls(&mut self, now: Duration) {
        let free = self.session.as_ref().map_or(0, |s| PULLS_IN_FLIGHT.saturating_sub(s.pulls));
        if free == 0 || self.wanting.is_empty() {
            return;
        }
        self.mark_wanting();
        let mut order: Vec<_> = self.wanting.iter().filter_map(|id| self.convs.get(id)).collect();
        order.sort_by_key(|c| (std::cmp::Reverse(c.record.seen_hlc), c.record.id));
        let busy = self.session.iter().flat_map(|s| s.requests.values()).filter_map(|(r, _)| match r {
            Request::Pull { conversation, origin, from, to, .. } => Some((*conversation, *origin, *from, *to)),
            _ => None,
        });
        let busy: BTreeSet<_> = busy.collect();
        let saves = self.is_saving();
        let mut plan = Vec::new();
        'all: for conv in order {
            for (origin, state) in &conv.origins {
                if conv.pauses.get(origin).is_some_and(|(at, _)| now < *at) {
                    continue;
                }
                let mut open = super::Intervals::new();
                state.missing().iter().for_each(|(a, b)| open.insert(*a, *b));
                if saves {
                    open.remove(1, conv.left_below(state));
                }
                for (c, o, a, b) in &busy {
                    if (*c, *o) == (conv.record.id, *origin) {
                        open.remove(*a, *b);
                    }
                }
                while let Some((a, b)) = open.iter().last() {
                    if plan.len() == free {
                        break 'all;
                    }
                    let from = a.max(b.saturating_sub(PULL_ENTRIES as u64 - 1));
                    open.remove(from, b);
                    plan.push((conv.record.id, *origin, from, b));
                }
            }
        }
        for (conversation, origin, from, to) in plan {
            if let Some((at, _)) = self.convs.get_mut(&conversation).and_then(|c| c.pauses.get_mut(&origin)) {
                *at = Duration::ZERO;
            }
            let Some(session) = &mut self.session else { return };
            let req = session.request(now, Request::Pull { conversation, origin, from, to, came: false });
            let conversation = bytes::Bytes::copy_from_slice(&conversation.0);
            let pull =
                v1::PullEntries { conversation, origin: Some(origin.into()), from, to, limit: 0, backwards: false };
            self.write_frame(req, Body::Pull(pull));
        }
    }

    /// When a paused pull may be tried again.
    pub(super) fn pull_deadline(&self) -> Option<Duration> {
        let free = self.session.as_ref().is_some_and(|s| s.pulls < PULLS_IN_FLIGHT);
        let wanting = self.wanting.iter().filter(|_| free).filter_map(|id| self.convs.get(id));
        let due = wanting
            .flat_map(|c| c.pauses.iter().filter(|(o, _)| c.origins.get(o).is_some_and(|s| !s.missing().is_empty())));
        due.map(|(_, (at, _))| *at).filter(|at| !at.is_zero()).min()
    }

    // ---- what the application asks -------------------------------------------------------------------

    /// Lets `count` more messages before the oldest shown ones be pulled. True where there are none.
    pub fn page_back(&mut self, now: Duration, id: ConvId, count: u64) -> bool {
        let Some(conv) = self.convs.get_mut(&id) else { return true };
        let oldest = conv.origins.values().filter(|o| o.floor > 0).map(|o| o.floor_hlc).max();
        let mut lowered = Vec::new();
        for (origin, state) in &mut conv.origins {
            if state.floor > 0 && Some(state.floor_hlc) == oldest {
                state.floor = state.floor.saturating_sub(count.max(1));
                if state.floor == 0 || state.held.contains(state.floor + 1) {
                    state.floor_hlc = 0;
                }
                lowered.push(*origin);
            }
        }
        let reached = lowered.is_empty();
        conv.asked_back |= !reached;
        self.dirty_vectors.extend(lowered.into_iter().map(|o| (id, o)));
        self.wanting.insert(id);
        self.tick(now);
        reached
    }

    /// Below this hlc the timeline may have holes that are not pulled yet; 0 = it is whole.
    pub fn horizon(&self, id: ConvId) -> u64 {
        let origins = self.convs.get(&id).into_iter().flat_map(|c| c.origins.values());
        origins.filter(|o| o.floor > 0).map(|o| o.floor_hlc).max().unwrap_or(0)
    }

    /// Whether all there is of the conversation, back to its start, is held or known to be gone.
    pub fn reached_start(&self, id: ConvId) -> bool {
        let whole = |c: &Conv| c.origins.values().all(|o| o.floor == 0 && o.missing().is_empty()) && c.is_unfolded();
        self.convs.get(&id).is_none_or(whole)
    }

    /// Whether something above the floor is still to be pulled, and could be now.
    pub fn is_pulling(&self, now: Duration, id: ConvId) -> bool {
        let Some(conv) = self.convs.get(&id) else { return false };
        let open = |(o, s): (&Origin, &OriginState)| {
            !s.missing().is_empty() && conv.pauses.get(o).is_none_or(|(at, _)| now >= *at)
        };
        conv.origins.iter().any(open)
    }
}
