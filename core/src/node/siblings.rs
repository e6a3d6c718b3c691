//! What the core nodes of one region say to each other.
//!
//! Problem: a conversation and its members lie in different slots, so with different owners, and what the one knows must
//! become durable with the others, although any of them may die or lose a slot at any moment.
//!
//! Rule: everything is said to the owner of a slot, whoever that is, and said again until it is held:
//!
//! - how a conversation stands for a member (`RowTold`), until his row is durable and its owner still is one (R6). Only
//!   then the conversation's todo may go. What is said again has no entries: the row tells his devices what to pull;
//! - what one user of a direct conversation has read (`PeerRead`), until the other's row has it. Until then nobody is
//!   told that the mark is durable;
//! - what follows from a user's own log (`LogTold`), to whoever asks, and to all when it changes: who is blocked is
//!   judged by the owner of the conversation, and who may see that somebody is online by the owner of the watcher.
//!
//! Where a slot moves, what waits for its owner is said to the new one at once, and copies of own logs are asked for anew.
//! Signals are for those who are there now, and said once. Presence goes around as between regions, see `routes`.
//!
//! Why simpler ways fail: an answer from memory is lost with the member's owner, and the row with it; a push that waits
//! for an answer makes the slowest node everybody's pace.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::codes::Refusal;
use crate::entry::Entry;
use crate::ids::{ConvId, Heads, UserId};
use crate::mutants::{Mutant, on};
use crate::sequencer::LogState;
use crate::slots::Slot;
use crate::wire::convert;
use crate::wire::node::{entries_from_wire, heads_from_wire, heads_to_wire};
use crate::wire::node_v1::{self as wire, node_frame::Body};

use super::marks::Owed;
use super::routes::Holder;
use super::user::RowChange;
use super::{Node, Notice, Now, Want, rounds};

/// What was said and is not held is said again after so long.
pub(super) const SAY_AGAIN: Duration = Duration::from_secs(2);
/// A node that was asked for an own log may not have heard yet that it owns it: it is asked again so often.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// An own log whose owner does not answer by then is read from the store: it may be a moment old.
const ASK_WITHIN: Duration = Duration::from_secs(1);

/// Another core node of this region, as the runtime numbers it: never reused.
pub type CoreId = u64;

/// A row that was told and is not held yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Away {
    no: u64,
    at: Duration,
}

/// A mark of a peer, likewise.
#[derive(Clone, Debug)]
struct Mark {
    read: Heads,
    no: u64,
    at: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    /// Conversations with rows that are to be told again, and when.
    rows_due: BTreeSet<(Duration, ConvId)>,
    /// Who has read; who is to know, and where.
    marks: BTreeMap<UserId, BTreeMap<(UserId, ConvId), Mark>>,
    /// Own logs that were asked for: when they are asked for again, and when the store is asked instead.
    asked: BTreeMap<ConvId, (Duration, Duration)>,
    no: u64,
}

impl Siblings {
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let rows = self.rows_due.first().map(|(at, _)| *at);
        let marks = self.marks.values().flat_map(BTreeMap::values).map(|m| m.at + SAY_AGAIN).min();
        [rows, marks, self.asked.values().map(|(again, _)| *again).min()].into_iter().flatten().min()
    }

    /// Whether a mark of this user is not held by somebody who is to know of it.
    pub(super) fn waits_for_marks_of(&self, user: &UserId) -> bool {
        self.marks.contains_key(user)
    }
}

/// A row as its conversation's owner tells it.
#[derive(Clone, Debug)]
pub(super) struct ToldRow {
    id: ConvId,
    no: u64,
    heads: Heads,
    last_hlc: u64,
    counted: u64,
    peer: Option<UserId>,
    generation: u64,
    state: u32,
    from: Heads,
    entries: Vec<Arc<Entry>>,
}

impl super::Outputs {
    /// For the owner of a slot.
    pub(super) fn owner(&mut self, slot: Slot, body: Body) {
        self.owners.entry(slot).or_default().push(body);
    }
}

fn log_told(state: &LogState) -> Body {
    Body::LogTold(wire::LogTold { conversation: id_bytes(state.conversation()), checkpoint: state.checkpoint() })
}

fn id_bytes(id: ConvId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}

impl Node {
    /// Tells the owner of a member how a conversation stands for him, and what is new for him in it.
    pub(super) fn tell_row(&mut self, now: Now, member: &UserId, id: ConvId, entries: &[(Arc<Entry>, bool)]) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let Some(reader) = conversation.state.fold.reader(member) else { return };
        let readable =
            |e: &Entry| reader.may_read(e.place.origin, e.place.seq) && (!e.only_sender || e.by.user == *member);
        let fresh = entries.iter().filter(|(e, copy)| !copy && readable(e)).map(|(e, _)| e.to_bytes()).collect();
        self.siblings.no += 1;
        let told = wire::RowTold {
            conversation: id_bytes(id),
            user: member.as_str().to_owned(),
            no: self.siblings.no,
            heads: heads_to_wire(&reader.clip(&conversation.published)),
            last_hlc: conversation.state.highest_hlc,
            counted: conversation.state.counted,
            peer: conversation.state.fold.peer_of(member).map_or_else(String::new, |p| p.as_str().to_owned()),
            generation: reader.generation(),
            state: reader.state(),
            from: reader.from().map(heads_to_wire).unwrap_or_default(),
            entries: fresh,
        };
        if conversation.away.is_empty() {
            self.siblings.rows_due.insert((now.mono + SAY_AGAIN, id));
        }
        conversation.away.insert(member.clone(), Away { no: self.siblings.no, at: now.mono });
        let slot = Slot::of_user(&self.settings.direct_salt, member);
        self.out.owner(slot, Body::RowTold(told));
    }

    /// A frame of another core node of this region. What can't be is reported and left out.
    pub fn core_frame(&mut self, now: Now, core: CoreId, body: Body) {
        let told = match body {
            Body::RowTold(told) => self.row_told(now, told),
            Body::RowHeld(held) => self.row_held(&held),
            Body::PeerRead(told) => self.peer_read_told(now, told),
            Body::PeerReadHeld(held) => self.peer_read_held(now, &held),
            Body::LogAsk(ask) => self.log_asked(now, core, &ask),
            Body::LogTold(told) => self.log_told(now, told),
            Body::SignalFor(signal) => self.signal_for(signal),
            Body::RouteState(_)
            | Body::RouteDelta(_)
            | Body::RouteDigest(_)
            | Body::RoutePull(_)
            | Body::RouteChunk(_) => self.route_told(now, Holder { region: self.settings.region, core }, &body),
            _ => Ok(()),
        };
        if let Err(refusal) = told {
            self.out.notices.push(Notice::BadPeer { region: self.settings.region, what: refusal.to_string() });
        }
        self.start_rounds(now);
        self.pump_all(now);
    }

    /// Another core node of this region can be told things.
    pub fn core_up(&mut self, now: Now, core: CoreId) {
        self.presence_link(now, Holder { region: self.settings.region, core }, true);
        self.routes.up(now.mono, Holder { region: self.settings.region, core });
    }

    /// And no more. What it owned until then is another's soon, see [`Self::siblings_moved`].
    pub fn core_down(&mut self, now: Now, core: CoreId) {
        self.presence_link(now, Holder { region: self.settings.region, core }, false);
        self.routes.down(Holder { region: self.settings.region, core });
    }

    /// Slots of which `moved` is true have another owner, or their owner's link was away: what waits for them is said
    /// again, and what was heard of their users' own logs counts no more.
    pub fn siblings_moved(&mut self, now: Now, moved: impl Fn(Slot) -> bool) {
        let salt = self.settings.direct_salt.clone();
        let of_user = |user: &UserId| moved(Slot::of_user(&salt, user));
        let waiting = self.conversations.iter().filter(|(_, c)| !c.away.is_empty());
        let again: Vec<(ConvId, Vec<UserId>)> =
            waiting.map(|(id, c)| (*id, c.away.keys().filter(|u| of_user(u)).cloned().collect())).collect();
        for (id, members) in again {
            for member in members {
                self.merge_row(now, &member, id, &[]);
            }
        }
        self.say_marks(now, |user, _| of_user(user));
        let stale = self.conversations.iter().filter(|(id, c)| c.replica && moved(Slot::of(**id)));
        for id in stale.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.presence_log(now, id);
            let Some(copy) = self.conversations.get_mut(&id) else { continue };
            if copy.is_loading() {
                self.ask_log(now, id);
            } else {
                self.conversations.remove(&id);
            }
        }
        self.empty_logs.clear();
        self.start_rounds(now);
    }

    /// What was said and not held is said again; called as time passes.
    pub(super) fn siblings_due(&mut self, now: Now) {
        while let Some((at, id)) = self.siblings.rows_due.first().copied().filter(|(at, _)| *at <= now.mono) {
            self.siblings.rows_due.remove(&(at, id));
            let Some(conversation) = self.conversations.get(&id).filter(|c| !c.away.is_empty()) else { continue };
            let late = conversation.away.iter().filter(|(_, away)| away.at + SAY_AGAIN <= now.mono);
            let late: Vec<UserId> = late.map(|(user, _)| user.clone()).collect();
            self.siblings.rows_due.insert((now.mono + SAY_AGAIN, id));
            for member in late {
                self.merge_row(now, &member, id, &[]);
            }
        }
        self.say_marks(now, |_, mark| mark.at + SAY_AGAIN <= now.mono);
        let late = self.siblings.asked.iter().filter(|(_, (again, _))| *again <= now.mono);
        for (id, until) in late.map(|(id, (_, until))| (*id, *until)).collect::<Vec<_>>() {
            self.siblings.asked.remove(&id);
            if !self.conversations.get(&id).is_some_and(|c| c.replica && c.is_loading()) {
                continue;
            }
            if now.mono < until {
                self.ask_log_until(now, id, until);
            } else {
                self.out.wants.push(Want::Conversation(id));
            }
        }
    }

    // ---- rows ------------------------------------------------------------------------------------------

    fn row_told(&mut self, now: Now, told: wire::RowTold) -> Result<(), Refusal> {
        let user = convert::user(&told.user)?;
        if !self.owns_user(&user) {
            return Ok(());
        }
        let row = ToldRow {
            id: convert::conversation(&told.conversation)?,
            no: told.no,
            heads: heads_from_wire(told.heads)?,
            last_hlc: told.last_hlc,
            counted: told.counted,
            peer: if told.peer.is_empty() { None } else { Some(convert::user(&told.peer)?) },
            generation: told.generation,
            state: told.state,
            from: heads_from_wire(told.from)?,
            entries: entries_from_wire(told.entries)?,
        };
        if let Some(waiting) = self.user(&user).waiting() {
            waiting.told.push(row);
        } else {
            self.take_row(now, &user, row);
        }
        Ok(())
    }

    /// Merges a row that another node told.
    pub(super) fn take_row(&mut self, now: Now, member: &UserId, row: ToldRow) {
        let ToldRow { id, no, heads, last_hlc, counted, peer, generation, state, from, entries } = row;
        let (heads, unfolded) = rounds::folded(Cow::Owned(heads), &self.era_table);
        let change = RowChange { heads, last_hlc, counted, peer, generation, state, from: Some(&from), unfolded };
        let Some(user) = self.users.get_mut(member) else { return };
        let marked = user.row(id).filter(|row| row.peer.is_none() && !row.read.is_empty());
        let told = marked.map(|row| row.read.clone()).zip(change.peer.clone());
        if let Some(peer) = &change.peer {
            self.presence.touch(now.mono, peer);
        }
        if let Some(merged) = user.merge(id, &change) {
            self.dirty.insert(member.clone());
            self.push_row(now, member, id, merged, entries);
            if let Some((read, peer)) = told.filter(|(_, peer)| peer != member) {
                self.peer_marked(now, member, &peer, id, &read);
            }
        }
        if on(Mutant::RowHeldFromMemory) {
            return self.answer_row(id, member, no);
        }
        self.marks.owed.push(Owed::Row { id, user: member.clone(), no });
        self.schedule_flush(now);
    }

    /// A row that another node told is durable.
    pub(super) fn answer_row(&mut self, id: ConvId, user: &UserId, no: u64) {
        let held = wire::RowHeld { conversation: id_bytes(id), user: user.as_str().to_owned(), no };
        self.out.owner(Slot::of(id), Body::RowHeld(held));
    }

    fn row_held(&mut self, held: &wire::RowHeld) -> Result<(), Refusal> {
        let (id, user) = (convert::conversation(&held.conversation)?, convert::user(&held.user)?);
        if let Some(conversation) = self.conversations.get_mut(&id).filter(|c| !c.replica)
            && conversation.away.get(&user).is_some_and(|away| away.no <= held.no)
        {
            conversation.away.remove(&user);
        }
        Ok(())
    }

    // ---- marks -----------------------------------------------------------------------------------------

    /// The other user of a direct conversation, who is another node's, is to know what was read.
    pub(super) fn tell_peer_read(&mut self, now: Now, by: &UserId, user: &UserId, id: ConvId, read: &Heads) {
        self.siblings.no += 1;
        let no = self.siblings.no;
        let marks = self.siblings.marks.entry(by.clone()).or_default();
        let mark = marks.entry((user.clone(), id)).or_insert(Mark { read: Heads::new(), no, at: now.mono });
        for (origin, seq) in read {
            let known = mark.read.entry(*origin).or_default();
            *known = (*known).max(*seq);
        }
        mark.no = no;
        self.say_mark(now, by, user, id);
    }

    fn say_marks(&mut self, now: Now, which: impl Fn(&UserId, &Mark) -> bool) {
        let mut again = Vec::new();
        for (by, marks) in &self.siblings.marks {
            let these = marks.iter().filter(|((user, _), mark)| which(user, mark));
            again.extend(these.map(|((user, id), _)| (by.clone(), user.clone(), *id)));
        }
        for (by, user, id) in again {
            self.say_mark(now, &by, &user, id);
        }
    }

    fn say_mark(&mut self, now: Now, by: &UserId, user: &UserId, id: ConvId) {
        let marks = self.siblings.marks.get_mut(by);
        let Some(mark) = marks.and_then(|marks| marks.get_mut(&(user.clone(), id))) else { return };
        mark.at = now.mono;
        let (read, no) = (mark.read.clone(), mark.no);
        if self.owns_user(user) {
            // He has become this node's: his row is written with that of the one who has read.
            self.mark_is_held(by, user, id);
            return self.peer_marked(now, by, user, id, &read);
        }
        let (by, name) = (by.as_str().to_owned(), user.as_str().to_owned());
        let told = wire::PeerRead { conversation: id_bytes(id), by, user: name, read: heads_to_wire(&read), no };
        let slot = self.slot_of(user);
        self.out.owner(slot, Body::PeerRead(told));
    }

    fn mark_is_held(&mut self, by: &UserId, user: &UserId, id: ConvId) {
        let Some(marks) = self.siblings.marks.get_mut(by) else { return };
        marks.remove(&(user.clone(), id));
        if marks.is_empty() {
            self.siblings.marks.remove(by);
        }
    }

    fn peer_read_told(&mut self, now: Now, told: wire::PeerRead) -> Result<(), Refusal> {
        let (by, user) = (convert::user(&told.by)?, convert::user(&told.user)?);
        let (id, read) = (convert::conversation(&told.conversation)?, heads_from_wire(told.read)?);
        if !self.owns_user(&user) {
            return Ok(());
        }
        // While his rows are being read nothing is answered: it is said again.
        if self.user(&user).waiting().is_none() {
            self.peer_marked(now, &by, &user, id, &read);
            self.marks.owed.push(Owed::Read { by, user, id, no: told.no });
            self.schedule_flush(now);
        }
        Ok(())
    }

    /// A mark that another node told is durable.
    pub(super) fn answer_read(&mut self, by: &UserId, user: &UserId, id: ConvId, no: u64) {
        let (by, slot) = (by.as_str().to_owned(), self.slot_of(by));
        let held = wire::PeerReadHeld { conversation: id_bytes(id), by, user: user.as_str().to_owned(), no };
        self.out.owner(slot, Body::PeerReadHeld(held));
    }

    fn peer_read_held(&mut self, now: Now, held: &wire::PeerReadHeld) -> Result<(), Refusal> {
        let (by, user, id) =
            (convert::user(&held.by)?, convert::user(&held.user)?, convert::conversation(&held.conversation)?);
        let mark = self.siblings.marks.get(&by).and_then(|marks| marks.get(&(user.clone(), id)));
        if mark.is_some_and(|mark| mark.no <= held.no) {
            self.mark_is_held(&by, &user, id);
            // Who waits for it is answered with the next flush.
            self.schedule_flush(now);
        }
        Ok(())
    }

    /// What was to be said of a user's marks is his new owner's to say.
    pub(super) fn forget_marks_by(&mut self, by: &UserId) {
        self.siblings.marks.remove(by);
    }

    // ---- own logs --------------------------------------------------------------------------------------

    /// A copy of another node's log is needed.
    pub(super) fn ask_log(&mut self, now: Now, id: ConvId) {
        self.ask_log_until(now, id, now.mono + ASK_WITHIN);
    }

    fn ask_log_until(&mut self, now: Now, id: ConvId, until: Duration) {
        self.siblings.asked.insert(id, (now.mono + ASK_AGAIN, until));
        self.out.owner(Slot::of(id), Body::LogAsk(wire::LogAsk { conversation: id_bytes(id) }));
    }

    fn log_asked(&mut self, now: Now, core: CoreId, ask: &wire::LogAsk) -> Result<(), Refusal> {
        let id = convert::conversation(&ask.conversation)?;
        if !self.owns_log(id) {
            return Ok(());
        }
        if !self.empty_logs.contains(&id)
            && let Some(waiting) = self.conversation(id, now).waiting()
        {
            waiting.cores.insert(core);
        } else {
            self.tell_log(core, id);
        }
        Ok(())
    }

    /// Tells a node that has asked what follows from an own log.
    pub(super) fn tell_log(&mut self, core: CoreId, id: ConvId) {
        if self.empty_logs.contains(&id) {
            return self.answer_log(core, &LogState::new(id));
        }
        let Some(log) = self.conversations.get(&id).filter(|c| !c.is_loading()) else { return };
        let told = log_told(&log.state);
        self.out.cores.entry(core).or_default().push(told);
        self.drop_if_empty(id);
    }

    fn answer_log(&mut self, core: CoreId, state: &LogState) {
        self.out.cores.entry(core).or_default().push(log_told(state));
    }

    /// An own log has changed: all nodes are told, for each may have a copy.
    pub(super) fn log_changed(&mut self, id: ConvId) {
        if !self.is_shared() {
            return;
        }
        let Some(log) = self.conversations.get(&id) else { return };
        if log.state.fold.owner(&self.settings.direct_salt, id).is_some() {
            self.out.everyone.push(log_told(&log.state));
        }
    }

    fn log_told(&mut self, now: Now, told: wire::LogTold) -> Result<(), Refusal> {
        let id = convert::conversation(&told.conversation)?;
        if self.owns_log(id) {
            return Ok(());
        }
        let Some(copy) = self.conversations.get_mut(&id) else {
            self.empty_logs.remove(&id);
            return Ok(());
        };
        let Some(state) = LogState::from_checkpoint(id, told.checkpoint) else { return Ok(()) };
        self.siblings.asked.remove(&id);
        if copy.is_loading() {
            self.conversation_loaded(now, state, BTreeMap::new());
        } else {
            copy.state = state;
            self.presence_log(now, id);
        }
        Ok(())
    }

    // ---- signals ---------------------------------------------------------------------------------------

    fn signal_for(&mut self, told: wire::SignalFor) -> Result<(), Refusal> {
        let Some(signal) = told.signal else { return Ok(()) };
        let from = convert::user(&signal.user)?;
        let users = told.users.iter().map(|user| convert::user(user)).collect::<Result<Vec<_>, _>>()?;
        let group = told.group;
        let told = super::signals::to_client(&signal);
        for user in users {
            if group || !self.has_blocked(&user, &from) {
                self.hand_signal(&user, &told);
            }
        }
        Ok(())
    }
}
