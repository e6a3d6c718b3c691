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

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use super::candidates::Failure;
use super::data::{Op, OriginState};
use super::effects::Event;
use super::eras::merge_told;
use super::limits::{BEHIND_GRACE, CELLS_PAUSE, FIRST_SIGHT, PULL_PAUSE, PUSH_ACK_DELAY, REV_UNKNOWN_MAX, STAY_MAX};
use super::machine::{Conv, Machine};
use super::session::{Request, Session};
use crate::codes::{Code, Refusal};
use crate::edge_api::{Push, RowState};
use crate::entry::Entry;
use crate::ids::{ConvId, Cursor, Heads, Origin, Rev, Seq, UserId};
use crate::kinds::is_countable;
use crate::mutants::{Mutant, on};
use crate::wire::compact::{Read, TableReader};
use crate::wire::convert;
use crate::wire::v1::{self, CursorReset, error::Retry, frame::Body};

impl Machine {
    /// A frame on the connection in use.
    pub(super) fn session_frame(&mut self, now: Duration, req: u32, read: Read) -> Result<(), Refusal> {
        let frame = match read {
            Read::Noted | Read::Send(_) => return Ok(()),
            Read::Ack(ack) => {
                match self.session.as_mut().and_then(|s| s.answered(now, req)) {
                    Some(Request::Send { conversation, id, .. }) => self.on_ack(now, conversation, id, &ack),
                    Some(Request::Give { conversation, by, .. }) => self.given(now, conversation, by, None),
                    _ => return Err(Refusal::new(Code::BadFrame, "an ack without its request")),
                }
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
                if let Some(Request::Compare) = request {
                    self.compared_rows(now, rows)?;
                } else {
                    let asked = if let Some(Request::Rows { asked }) = request { asked } else { None };
                    self.rows(now, rows, asked)?;
                }
            }
            Some(Body::Page(page)) => self.page(now, frame.req, page)?,
            Some(Body::Marked(_)) => {
                let request = self.session.as_mut().and_then(|s| s.answered(now, frame.req));
                if let Some(Request::Mark { conversation, read }) = request {
                    self.on_marked(conversation, &read);
                }
            }
            Some(Body::TokenTaken(taken)) => {
                let jitter = self.rng.random_range(0..=1000);
                if let Some(session) = &mut self.session
                    && let Some(Request::Token) = session.answered(now, frame.req)
                {
                    session.token_until(now, None, taken.token_expires_ms, jitter);
                }
            }
            Some(Body::Devices(devices)) => {
                if let Some(Request::Devices) = self.session.as_mut().and_then(|s| s.answered(now, frame.req)) {
                    self.on_devices(devices);
                    self.event(Event::Devices);
                }
            }
            Some(Body::Eras(eras)) => {
                let request = self.session.as_mut().and_then(|s| s.answered(now, frame.req));
                if let Some(Request::Eras { conversation, folds }) = request {
                    self.on_eras(now, conversation, &folds, eras)?;
                }
            }
            Some(Body::Cells(cells)) => {
                let request = self.session.as_mut().and_then(|s| s.answered(now, frame.req));
                if let Some(Request::Cells { conversation }) = request {
                    self.on_cells(now, conversation, cells);
                }
            }
            Some(Body::Signal(signal)) => self.on_signal(now, &signal)?,
            Some(Body::Presence(told)) => self.on_presence(&told)?,
            Some(Body::Error(error)) if frame.req == 0 => self.session_error(now, &error),
            Some(Body::Error(error)) => self.refused(now, frame.req, &error),
            Some(Body::Spread(spread)) => self.engine.set_spread(Duration::from_millis(spread.spread_ms.into())),
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
            Some(Request::Give { conversation, by, .. }) => {
                let here = matches!(Retry::try_from(error.retry), Ok(Retry::Here));
                let after = Duration::from_millis(error.retry_after_ms.into());
                self.given(now, conversation, by, here.then_some(after));
                self.after_refused_read(now, error);
            }
            Some(Request::Compare) => {
                self.compare_refused(now);
                self.after_refused_read(now, error);
            }
            Some(Request::Mark { conversation, .. }) => {
                let after = Duration::from_millis(error.retry_after_ms.into());
                self.mark_refused(now, conversation, after);
                self.after_refused_read(now, error);
            }
            Some(Request::Cells { conversation }) => {
                if let Some(session) = &mut self.session {
                    session.cells_pauses.insert(conversation, now + CELLS_PAUSE);
                }
                self.after_refused_read(now, error);
            }
            Some(Request::Eras { conversation, .. }) => {
                self.eras_refused(now, conversation);
                self.after_refused_read(now, error);
            }
            Some(Request::Token) => {
                if let Some(session) = &mut self.session {
                    session.token_again(now);
                }
            }
            Some(Request::Devices) => self.event(Event::Devices),
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

    /// A server tells a row, or the heads of one that have changed.
    fn tell(&mut self, id: ConvId, peer: Option<&UserId>, heads: &Heads, row: Option<&RowState>) {
        // First: a conversation with a peer is no group, whatever else is told of it.
        let record = &mut self.conv(id).record;
        let named = record.peer.is_none() && peer.is_some();
        if named {
            record.peer = peer.cloned();
        }
        if let Some(row) = row {
            self.tell_state(id, row);
        }
        let conv = self.conv(id);
        // As told, for comparing: a row of another region replaces this one, see `rows`.
        if merge_told(&mut conv.record.heads, heads) {
            self.dirty_convs.insert(id);
        }
        let conv = self.conv(id);
        let sighted = conv.record.sighted;
        if !sighted {
            conv.note_first_folds(heads);
        }
        let changed = !sighted || named;
        conv.record.sighted = true;
        if !sighted && row.is_none() {
            // A new row's state is pushed only where it is not the plain one of a member.
            conv.record.generation = 1;
        }
        let mut dirty = Vec::new();
        for (origin, head) in heads.iter().filter(|(o, _)| o.through().is_none()) {
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
            self.folding.insert(id);
        }
        if !dirty.is_empty() {
            self.wanting.insert(id);
        }
        self.dirty_vectors.extend(dirty.into_iter().map(|o| (id, o)));
        self.log_goes_on(id, heads);
        self.plan_mark(id);
        self.plan_unfolding(id);
    }

    /// What a row says besides its heads.
    fn tell_state(&mut self, id: ConvId, row: &RowState) {
        let conv = self.conv(id);
        let record = &mut conv.record;
        let membership = (record.state, record.generation) != (row.state, row.generation);
        (record.state, record.generation) = (row.state, row.generation);
        record.read.clone_from(&row.read);
        let peer_read = merge_told(&mut record.peer_read, &row.peer_read);
        let from = (record.from != row.from).then(|| std::mem::replace(&mut record.from, row.from.clone()));
        if let Some(before) = from {
            conv.set_from(&before);
            let origins: Vec<_> = conv.origins.keys().copied().collect();
            self.dirty_vectors.extend(origins.into_iter().map(|o| (id, o)));
            self.wanting.insert(id);
        }
        self.dirty_convs.insert(id);
        if membership && self.conv(id).is_group() {
            self.folding.insert(id);
            self.event(Event::GroupChanged { conversation: id });
        }
        if peer_read {
            self.event(Event::PeerRead { conversation: id });
        }
        let read = self.conv(id).spell_out(&row.read);
        self.read(id, &read);
    }

    /// Stores a copy of a message, unless it is held.
    pub(super) fn hold(&mut self, id: ConvId, entry: Arc<Entry>) {
        let own_user = entry.by.user == self.setup.user;
        let place = entry.place;
        let blocked = !own_user && self.is_blocked(&entry.by.user);
        let conv = self.conv(id);
        let erased = !entry.erased && conv.fold.is_erased(&entry);
        let entry = if erased { Arc::new(entry.to_erased()) } else { entry };
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
        let unread = !own_user
            && !blocked
            && countable(&entry)
            && place.seq > conv.record.mark.get(&place.origin).copied().unwrap_or(0);
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
        self.ops.push(Op::Entry { id: fresh, conversation: id, entry: entry.clone(), unread });
        let ended = self.conv(id).record.ended.get(&place.origin).copied();
        if let Some(above) = ended.filter(|above| place.seq > *above) {
            self.ops.push(Op::Void { conversation: id, origin: place.origin, above });
        }
        if own_user {
            let own = self.conv(id).outbox.find(&entry.by.install, entry.by.n);
            if let Some(message) = own.filter(|_| entry.erased) {
                self.drop_erased_own(id, message);
            } else if own.is_some() {
                // What was refused is held after all: sent again, it is acked.
                let by = entry.by.clone();
                self.unknown_again(id, |o| o.out.record.n == by.n && o.out.record.install == by.install);
            }
        }
        self.learn_fact(id, &entry);
    }

    fn pushed(&mut self, now: Duration, push: &Push) {
        self.tell(push.conversation, push.peer.as_ref(), &push.heads, push.row.as_deref());
        self.pushed_late(now, push);
        for entry in &push.entries {
            self.hold(push.conversation, entry.clone());
            self.stops_typing(push.conversation, &entry.by.user);
        }
        let Some(store) = self.session.as_ref().map(|s| s.store) else { return };
        let cursor = self.cursors.get(&store.region).filter(|c| c.store == store).map(|c| c.rev);
        let follows = cursor == Some(push.prev_rev) || on(Mutant::PushWithoutPrevious) && cursor < Some(push.rev);
        if follows && push.rev > push.prev_rev {
            self.move_cursor(Cursor { store, rev: push.rev });
            if let Some(session) = &mut self.session {
                session.push_ack_at.get_or_insert(now + PUSH_ACK_DELAY);
                session.target = session.target.max(push.rev);
            }
        } else {
            self.behind(push.rev, now);
        }
    }

    pub(super) fn move_cursor(&mut self, to: Cursor) {
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

    pub(super) fn cursor(&self) -> Option<Cursor> {
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
        self.take_rows(&table, rows.rows)?;
        let upto = rows.upto.map(Cursor::try_from).transpose()?;
        let base = rows.base.map(Cursor::try_from).transpose()?;
        let Some(store) = self.session.as_ref().map(|s| s.store) else { return Ok(()) };
        let counts = !rows.preview || on(Mutant::PreviewMovesCursor);
        if let Some(upto) = upto.filter(|u| u.store == store && counts) {
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

    /// A part of the answer to a comparison.
    fn compared_rows(&mut self, now: Duration, rows: v1::Rows) -> Result<(), Refusal> {
        let table = TableReader::new(rows.origins, &rows.senders)?;
        self.take_rows(&table, rows.rows)?;
        let upto = rows.upto.map(Cursor::try_from).transpose()?;
        if self.compared(now, upto, rows.next_bucket) {
            let have = self.cursor().map_or(Rev(0), |c| c.rev);
            if let Some(session) = &mut self.session {
                session.push_ack_at.get_or_insert(now + PUSH_ACK_DELAY);
                session.target = session.target.max(if rows.last { have } else { Rev(have.0.saturating_add(1)) });
            }
            self.want_rows(now);
        }
        Ok(())
    }

    fn take_rows(&mut self, table: &TableReader, rows: Vec<v1::Row>) -> Result<(), Refusal> {
        for row in rows {
            let id = convert::conversation(&row.conversation)?;
            let peer = if row.peer.is_empty() { None } else { Some(convert::user(&row.peer)?) };
            let heads = table.heads(&row.heads)?;
            let state = RowState {
                state: row.state,
                generation: row.generation,
                from: table.heads(&row.from)?,
                read: table.heads(&row.read)?,
                peer_read: table.heads(&row.peer_read)?,
            };
            self.tell(id, peer.as_ref(), &heads, Some(&state));
            let conv = self.conv(id);
            // As told, not as known: that is what is compared.
            conv.record.heads = heads;
            conv.record.unread_hint = row.unread;
            self.dirty_convs.insert(id);
            self.plan_unfolding(id);
            for entry in row.inline {
                let entry = table.entry(entry)?;
                self.hold(id, Arc::new(entry));
            }
        }
        Ok(())
    }

    fn pong(&mut self, now: Duration, pong: &v1::Pong) {
        if pong.again {
            self.answered_again(now, pong);
        } else {
            self.beat_answered(now, pong);
        }
        let Some(session) = &mut self.session else { return };
        if !pong.again {
            session.pong(now, pong.echo);
        }
        self.engine.set_spread(Duration::from_millis(pong.spread_ms.into()));
        if let Some(rtt) = session.srtt() {
            self.engine.measured(rtt);
        }
        if pong.rev_unknown {
            let since = *session.rev_unknown_since.get_or_insert(now);
            let stay = Duration::from_millis(pong.stay_ms.into()).clamp(REV_UNKNOWN_MAX, STAY_MAX);
            if now.saturating_sub(since) >= stay {
                self.engine.leave(now, &Failure::Stuck);
            }
        } else {
            session.rev_unknown_since = None;
            let rtt = self.session.as_ref().and_then(Session::srtt).unwrap_or_default();
            self.behind(Rev(pong.rev), now + BEHIND_GRACE.max(rtt * 5 / 4));
        }
    }
}

/// What is held of an origin; one seen for the first time starts some way below its head, unless the
/// conversation was known: then all of it is new.
pub(super) fn origin_state(conv: &mut Conv, origin: Origin, head: Seq, sighted: bool) -> &mut OriginState {
    let from = conv.record.from.get(&origin).copied().unwrap_or(0);
    conv.origins.entry(origin).or_insert_with(|| {
        let floor = if sighted { 0 } else { head.saturating_sub(FIRST_SIGHT) };
        let mut state = OriginState { head: 0, floor, ..OriginState::default() };
        state.begin_at(from);
        state
    })
}

fn countable(entry: &Entry) -> bool {
    is_countable(entry.kind) && !entry.erased && !entry.only_sender
}
