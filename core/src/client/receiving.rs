//! Rows, pushes and pages: what there is, what is held, and how far this client has heard.
//!
//! *Problem.* Pushes are dropped, doubled, overtaken by answers on another lane, and come from regions that
//! know different things; nothing of it may hide a message.
//!
//! *Rule* (R4, R7, R8). A row or a push tells heads; they are merged by maximum and stored in the transaction
//! that moves the cursor, and the cursor moves only from the revision before. Whatever is told and not held
//! is pulled, until it is held or an explicit gap is recorded. Previews and entries never move a cursor.
//!
//! *Why the simpler way fails.* Moving the cursor with any push: two changes share one revision, the second's
//! push is lost, and its message is never asked for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::data::{Op, OriginState};
use super::engine::Failure;
use super::limits::{
    BEHIND_GRACE, FIRST_SIGHT, PULL_PAUSE, PULL_PAUSE_MAX, PULLS_IN_FLIGHT, PUSH_ACK_DELAY, REV_UNKNOWN_MAX,
};
use super::machine::{Conv, Event, Machine};
use super::session::Request;
use crate::codes::{Code, Refusal};
use crate::edge_api::Push;
use crate::entry::Entry;
use crate::ids::{ConvId, Cursor, Heads, Origin, Rev, Seq, UserId};
use crate::limits::PULL_ENTRIES;
use crate::wire::compact::{Read, TableReader};
use crate::wire::convert;
use crate::wire::v1::{self, CursorReset, error::Retry, frame::Body, gap::Reason};

impl Machine {
    /// A frame on the connection in use.
    pub(super) fn session_frame(&mut self, now: Duration, req: u32, read: Read) -> Result<(), Refusal> {
        let frame = match read {
            Read::Noted | Read::Send(_) => return Ok(()),
            Read::Ack(ack) => {
                let request = self.session.as_mut().and_then(|s| s.answered(now, req));
                let Some(Request::Send { conversation, id, .. }) = request else {
                    return Err(Refusal::new(Code::BadFrame, "an ack without its request"));
                };
                self.on_ack(now, conversation, id, &ack);
                return Ok(());
            }
            Read::Push(push) => {
                self.pushed(now, &push);
                return Ok(());
            }
            Read::Other(frame) => frame,
        };
        match frame.body {
            Some(Body::Pong(pong)) => self.pong(now, &pong),
            Some(Body::Advance(advance)) => {
                self.behind(Rev(advance.rev), now);
            }
            Some(Body::Stable(stable)) => self.on_stable(now, &stable)?,
            Some(Body::Rows(rows)) => {
                let request = self.session.as_mut().and_then(|s| s.answered(now, frame.req));
                let asked = if let Some(Request::Rows { asked }) = request { asked } else { None };
                self.rows(now, rows, asked)?;
            }
            Some(Body::Page(page)) => self.page(now, frame.req, page)?,
            Some(Body::Error(error)) if frame.req == 0 => self.session_error(now, &error),
            Some(Body::Error(error)) => self.refused(now, frame.req, &error),
            Some(Body::GoAway(go)) => self.go_away(now, &go),
            Some(Body::Kick(kick)) => self.kicked(now, kick.code, kick.message),
            _ => {}
        }
        Ok(())
    }

    fn refused(&mut self, now: Duration, req: u32, error: &v1::Error) {
        match self.session.as_mut().and_then(|s| s.answered(now, req)) {
            Some(Request::Send { conversation, id, offer, .. }) => self.on_refused(now, conversation, id, offer, error),
            Some(Request::Rows { .. }) => {
                if let Some(session) = &mut self.session {
                    session.rows_at = Some(now + PULL_PAUSE);
                }
                self.after_refused_read(now, error);
            }
            Some(Request::Pull { conversation, origin, .. }) => {
                self.pause_pulls(now, conversation, origin);
                self.after_refused_read(now, error);
            }
            None => {}
        }
    }

    fn after_refused_read(&mut self, now: Duration, error: &v1::Error) {
        if Code::from_u32(error.code) != Some(Code::Damaged)
            && matches!(Retry::try_from(error.retry), Ok(Retry::Elsewhere | Retry::NewToken))
        {
            self.session_error(now, error);
        }
    }

    // ---- heads and cursors ---------------------------------------------------------------------------

    /// A server tells heads of a conversation's row.
    fn tell(&mut self, id: ConvId, peer: Option<&UserId>, heads: &Heads) {
        let conv = self.conv(id);
        let sighted = conv.record.sighted;
        let mut changed = !sighted;
        conv.record.sighted = true;
        if conv.record.peer.is_none() && peer.is_some() {
            conv.record.peer = peer.cloned();
            changed = true;
        }
        let mut dirty = Vec::new();
        for (origin, head) in heads {
            let known = conv.origins.contains_key(origin);
            let state = origin_state(conv, *origin, *head, sighted);
            if *head > state.head || !known {
                state.head = state.head.max(*head);
                dirty.push(*origin);
                conv.pauses.remove(origin);
            }
        }
        if changed {
            self.dirty_convs.insert(id);
        }
        if !dirty.is_empty() {
            self.wanting.insert(id);
        }
        self.dirty_vectors.extend(dirty.into_iter().map(|o| (id, o)));
    }

    /// Stores a copy of a message, unless it is held.
    pub(super) fn hold(&mut self, id: ConvId, entry: Arc<Entry>) {
        let own_user = entry.by.user == self.setup.user;
        let place = entry.place;
        let conv = self.conv(id);
        let sighted = conv.record.sighted;
        let state = origin_state(conv, place.origin, place.seq, sighted);
        if state.held.contains(place.seq) {
            return;
        }
        state.held.insert(place.seq, place.seq);
        state.lost.remove(place.seq, place.seq);
        state.head = state.head.max(place.seq);
        if place.seq == state.floor + 1 {
            state.floor_hlc = place.hlc;
        }
        // An ack or a push can be the first to tell that there is something before it.
        let hole = state.held.prefix_above(state.floor) < state.head;
        let unread =
            !own_user && countable(&entry) && place.seq > conv.record.mark.get(&place.origin).copied().unwrap_or(0);
        let seen = place.hlc.max(entry.display_key().hlc);
        let higher = seen > conv.record.seen_hlc;
        conv.record.seen_hlc = conv.record.seen_hlc.max(seen);
        let copy = if own_user {
            let outbox = &mut conv.outbox;
            let seen = outbox.copy_seen(&entry.by.install, entry.by.n, place, entry.display_key());
            seen.and_then(|m| outbox.unstable.get(&m)).map(|o| o.out.record.clone())
        } else {
            None
        };
        if higher {
            self.dirty_convs.insert(id);
        }
        if hole {
            self.wanting.insert(id);
        }
        self.dirty_vectors.insert((id, place.origin));
        self.ops.extend(copy.map(Op::Outgoing));
        let fresh = self.fresh_id();
        self.ops.push(Op::Entry { id: fresh, conversation: id, entry, unread });
    }

    fn pushed(&mut self, now: Duration, push: &Push) {
        self.tell(push.conversation, push.peer.as_ref(), &push.heads);
        for entry in &push.entries {
            self.hold(push.conversation, entry.clone());
        }
        let Some(store) = self.session.as_ref().map(|s| s.store) else { return };
        let cursor = self.cursors.get(&store.region).filter(|c| c.store == store).map(|c| c.rev);
        if cursor == Some(push.prev_rev) && push.rev > push.prev_rev {
            self.move_cursor(Cursor { store, rev: push.rev });
            if let Some(session) = &mut self.session {
                session.push_ack_at.get_or_insert(now + PUSH_ACK_DELAY);
                session.target = session.target.max(push.rev);
            }
        } else {
            self.behind(push.rev, now);
        }
    }

    fn move_cursor(&mut self, to: Cursor) {
        self.cursors.insert(to.store.region, to);
        self.ops.push(Op::Cursor(to));
    }

    /// The server's rev is at least `rev`: rows are pulled at `at` unless the cursor is there by then.
    fn behind(&mut self, rev: Rev, at: Duration) {
        if let Some(session) = &mut self.session {
            session.target = session.target.max(rev);
        }
        self.want_rows(at);
    }

    fn cursor(&self) -> Option<Cursor> {
        let store = self.session.as_ref()?.store;
        self.cursors.get(&store.region).filter(|c| c.store == store).copied()
    }

    /// Plans a pull of rows where the cursor is behind what is known.
    pub(super) fn want_rows(&mut self, at: Duration) {
        let have = self.cursor().map(|c| c.rev);
        if let Some(session) = &mut self.session {
            if have.is_none_or(|rev| rev < session.target) {
                session.rows_at = Some(session.rows_at.map_or(at, |t| t.min(at)));
            } else {
                session.rows_at = None;
            }
        }
    }

    /// A page of rows.
    pub(super) fn rows(&mut self, now: Duration, rows: v1::Rows, asked: Option<Cursor>) -> Result<(), Refusal> {
        let table = TableReader::new(rows.origins, &rows.senders)?;
        for row in rows.rows {
            let id = convert::conversation(&row.conversation)?;
            let peer = if row.peer.is_empty() { None } else { Some(convert::user(&row.peer)?) };
            self.tell(id, peer.as_ref(), &table.heads(&row.heads)?);
            let conv = self.conv(id);
            if conv.record.state != row.state {
                conv.record.state = row.state;
                self.dirty_convs.insert(id);
            }
            for entry in row.inline {
                let entry = table.entry(entry)?;
                self.hold(id, Arc::new(entry));
            }
        }
        let upto = rows.upto.map(Cursor::try_from).transpose()?;
        let base = rows.base.map(Cursor::try_from).transpose()?;
        let Some(store) = self.session.as_ref().map(|s| s.store) else { return Ok(()) };
        if let Some(upto) = upto.filter(|u| u.store == store && !rows.preview) {
            let kept = self.cursors.get(&store.region).copied();
            let old = kept.filter(|c| c.store == store);
            let follows = match (base, old) {
                (None, _) => true,
                (Some(base), Some(old)) => base.store == store && base.rev <= old.rev,
                (Some(_), None) => false,
            };
            // Only a server that says so may take a cursor back, and only the one that it was asked about.
            let taken_back = rows.reset == CursorReset::FromTheFuture as i32 && base.is_none() && kept == asked;
            if follows && (taken_back || old.is_none_or(|o| upto.rev > o.rev)) {
                self.move_cursor(upto);
                if let Some(session) = &mut self.session {
                    // What was pushed on the way here is acked with it.
                    session.push_ack_at.get_or_insert(now + PUSH_ACK_DELAY);
                }
            }
        }
        let have = self.cursor().map(|c| c.rev);
        if let Some(session) = &mut self.session {
            if rows.last && !rows.preview {
                // There is nothing above, whatever was promised; a later Pong says more if there is.
                session.target = have.unwrap_or_default();
                session.rows_at = None;
            } else if !rows.preview {
                session.target = session.target.max(Rev(have.unwrap_or_default().0.saturating_add(1)));
                session.rows_at = Some(now);
            }
        }
        Ok(())
    }

    fn pong(&mut self, now: Duration, pong: &v1::Pong) {
        let Some(session) = &mut self.session else { return };
        session.pong(now, pong.echo);
        if pong.rev_unknown {
            let since = *session.rev_unknown_since.get_or_insert(now);
            if now.saturating_sub(since) >= REV_UNKNOWN_MAX {
                self.engine.leave(now, &Failure::Stuck);
            }
        } else {
            session.rev_unknown_since = None;
            self.behind(Rev(pong.rev), now + BEHIND_GRACE);
        }
    }

    // ---- entries -------------------------------------------------------------------------------------

    fn page(&mut self, now: Duration, req: u32, page: v1::Page) -> Result<(), Refusal> {
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

    fn pause_pulls(&mut self, now: Duration, id: ConvId, origin: Origin) {
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
                self.write_frame(0, Body::PushAck(v1::PushAck { rev: rev.0 }));
            }
        }
        let Some(session) = &mut self.session else { return };
        if !session.rows_in_flight && session.rows_at.is_some_and(|t| now >= t) {
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
        let Some(session) = &mut self.session else { return };
        let rows = session.rows_in_flight || session.rows_at.is_some_and(|t| now >= t);
        let first = have.is_none() && !session.caught_up && session.target > Rev(0);
        session.caught_up = !rows && session.pulls == 0 && !first;
    }

    /// Forgets conversations of which nothing is missing any more.
    pub(super) fn mark_wanting(&mut self) {
        let convs = &self.convs;
        self.wanting.retain(|id| convs.get(id).is_some_and(|c| c.origins.values().any(|o| !o.missing().is_empty())));
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
        let mut plan = Vec::new();
        'all: for conv in order {
            for (origin, state) in &conv.origins {
                if conv.pauses.get(origin).is_some_and(|(at, _)| now < *at) {
                    continue;
                }
                let mut open = super::Intervals::new();
                state.missing().iter().for_each(|(a, b)| open.insert(*a, *b));
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
        self.convs.get(&id).is_none_or(|c| c.origins.values().all(|o| o.floor == 0 && o.missing().is_empty()))
    }

    /// Whether something above the floor is still to be pulled, and could be now.
    pub fn is_pulling(&self, now: Duration, id: ConvId) -> bool {
        let Some(conv) = self.convs.get(&id) else { return false };
        let open = |(o, s): (&Origin, &OriginState)| {
            !s.missing().is_empty() && conv.pauses.get(o).is_none_or(|(at, _)| now >= *at)
        };
        conv.origins.iter().any(open)
    }

    /// Everything shown in the conversation is read.
    pub fn mark_read(&mut self, id: ConvId) {
        let Some(conv) = self.convs.get_mut(&id) else { return };
        for (origin, state) in &conv.origins {
            let mark = conv.record.mark.entry(*origin).or_default();
            *mark = state.held.union(&state.lost).prefix_above((*mark).max(state.floor)).max(*mark);
        }
        self.dirty_convs.insert(id);
        self.ops.push(Op::Read(id));
    }

    /// Whether a count of unread messages over what is held is exact: nothing above the mark is missing (R9).
    pub fn unread_is_exact(&self, id: ConvId) -> bool {
        let Some(conv) = self.convs.get(&id) else { return true };
        conv.origins.iter().all(|(o, s)| s.complete_above(conv.record.mark.get(o).copied().unwrap_or(0)))
    }
}

/// What is held of an origin; one seen for the first time starts some way below its head, unless the
/// conversation was known: then all of it is new.
fn origin_state(conv: &mut Conv, origin: Origin, head: Seq, sighted: bool) -> &mut OriginState {
    conv.origins.entry(origin).or_insert_with(|| OriginState {
        head: 0,
        floor: if sighted { 0 } else { head.saturating_sub(FIRST_SIGHT) },
        ..OriginState::default()
    })
}

/// Kinds that count as unread: all that are shown. Kinds without display come with later versions, which
/// number them from 2^16.
fn countable(entry: &Entry) -> bool {
    entry.kind < 1 << 16 && !entry.erased && !entry.only_sender
}
