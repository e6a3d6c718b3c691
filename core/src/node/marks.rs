//! Read marks (R11).
//!
//! Problem: what a user has read on one device must be read on all, in every region, and the other user of a
//! direct conversation wants to see it; marks come with every message that is looked at, so they must not be
//! entries of a log.
//!
//! Rule: a mark is a vector in the user's row, merged by maximum, so it may be told again and in any order. The
//! client keeps it until it is durable here. To the other regions it goes by position: the user's revision up to
//! which a region has acked his marks. A todo row stands for it, written with the first mark that is not told
//! yet and removed with the last ack. A region that has lost marks is told them again, see `regain`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::codes::{Code, Refusal};
use crate::ids::{ConvId, Heads, Origin, Region, Rev, UserId};
use crate::limits::PULL_ENTRIES;
use crate::mutant;
use crate::mutants::{Mutant, on};
use crate::slots::{Share, Slot};
use crate::store::{Put, Target, Todo};
use crate::wire::compact::origin_heads_from_wire;
use crate::wire::node::{heads_from_wire, heads_to_wire};
use crate::wire::{node_v1 as wire, v1};

use super::routes::Holder;
use super::user::Merged;
use super::{ConnKey, Node, Now};

/// Where a user's marks stand with one region.
#[derive(Clone, Copy, Debug)]
struct Position {
    acked: Rev,
    /// `None`: not told on this connection.
    shipped: Option<Rev>,
    /// Of the newest change.
    wanted: Rev,
    /// A todo row stands for it: not for what is told again.
    todo: bool,
    /// Frames without an ack on this connection.
    frames: u32,
}

/// Marks that other regions lack, and answers that wait until marks are durable.
#[derive(Debug, Default)]
pub(super) struct Marks {
    links: BTreeMap<Region, BTreeMap<UserId, Position>>,
    /// For the next flush.
    pub(super) todo: Vec<Todo>,
    pub(super) owed: Vec<Owed>,
    /// Of the flush that is under way.
    flushing: (Vec<Todo>, Vec<Owed>),
}

/// Who waits for marks to be durable.
#[derive(Clone, Debug)]
pub(super) enum Owed {
    Client(ConnKey, u32),
    Peer(Holder, UserId, Rev),
    /// The owner of a conversation: a member's row that it told.
    Row {
        id: ConvId,
        user: UserId,
        no: u64,
    },
    /// The owner of a user of a direct conversation: what he has read of it.
    Read {
        by: UserId,
        user: UserId,
        id: ConvId,
        no: u64,
    },
}

impl Marks {
    /// Whether the next flush has something to write or to answer.
    pub(super) fn is_waiting(&self) -> bool {
        !self.todo.is_empty() || !self.owed.is_empty()
    }

    /// A region is no peer any more.
    pub(super) fn forget_region(&mut self, region: Region) {
        self.links.remove(&region);
    }

    pub(super) fn begin_flush(&mut self) -> Vec<Put> {
        self.flushing = (std::mem::take(&mut self.todo), std::mem::take(&mut self.owed));
        self.flushing.0.iter().cloned().map(Put::Todo).collect()
    }

    pub(super) fn flush_failed(&mut self) {
        let (todo, owed) = std::mem::take(&mut self.flushing);
        self.todo.splice(0..0, todo);
        self.owed.splice(0..0, owed);
    }

    /// Whether a region has acked all marks that it was to be told.
    pub(super) fn is_told(&self, region: Region) -> bool {
        self.links.get(&region).is_none_or(|users| !users.values().any(|position| position.todo))
    }

    /// A user is another node's: so are his marks.
    pub(super) fn forget(&mut self, user: &UserId) {
        for users in self.links.values_mut() {
            users.remove(user);
        }
    }

    /// Whether anybody of these waits for an answer.
    pub(super) fn owes(&self, these: impl Fn(&Owed) -> bool) -> bool {
        self.owed.iter().chain(&self.flushing.1).any(these)
    }

    /// Drops whom nobody here can answer any more.
    pub(super) fn drop_owed(&mut self, mut lost: impl FnMut(&Owed) -> bool) {
        for owed in [&mut self.owed, &mut self.flushing.1] {
            owed.retain(|owed| !lost(owed));
        }
    }

    /// The connection is gone: what was told again on it is forgotten, and what came by it is told again. A region that
    /// others are still linked of is only forgotten what it was given; an ack more does no harm.
    pub(super) fn stop_giving(&mut self, region: Region, given: Option<&BTreeSet<UserId>>) {
        if given.is_none() {
            for owed in [&mut self.owed, &mut self.flushing.1] {
                owed.retain(|owed| !matches!(owed, Owed::Peer(from, ..) if from.region == region));
            }
        }
        if let Some(users) = self.links.get_mut(&region) {
            users.retain(|user, position| position.todo || given.is_some_and(|given| !given.contains(user)));
        }
    }
}

/// The origin under which a todo row has a user's revision: no store's era is 0.
fn position_origin(region: Region) -> Origin {
    Origin { region, era: 0 }
}

impl Node {
    /// A client's mark.
    pub(super) fn mark(&mut self, now: Now, key: ConnKey, req: u32, mark: v1::Mark) {
        let Some(session) = self.sessions.get(&key) else { return };
        let user = session.user.clone();
        let Some(id) = ConvId::from_slice(&mark.conversation) else { return };
        let read = match origin_heads_from_wire(mark.read) {
            Ok(read) => read,
            Err(refusal) => return self.out.refuse(key, req, &refusal),
        };
        let Some(known) = self.users.get_mut(&user) else { return };
        if known.row(id).is_none() {
            let text = "this region does not know the conversation yet; nothing was marked";
            let refusal = Refusal::new(Code::UnknownConversation, text).after_ms(1_000);
            return self.out.refuse(key, req, &refusal);
        }
        if let Some(merged) = known.mark(id, &read, false, &self.era_table) {
            self.marked(now, &user, id, &read, merged);
            self.note_marks(now, &user, merged);
        }
        mutant!(MarkAckedFromMemory => return self.out.frame(key, req, v1::frame::Body::Marked(v1::Marked {})));
        self.marks.owed.push(Owed::Client(key, req));
        self.schedule_flush(now);
    }

    /// A mark of the user changed his row: his devices hear of it, and in a direct conversation the other user.
    fn marked(&mut self, now: Now, user: &UserId, id: ConvId, read: &Heads, merged: Merged) {
        self.dirty.insert(user.clone());
        self.push_row(now, user, id, merged, Vec::new());
        let peer = self.users.get(user).and_then(|u| u.row(id)).and_then(|row| row.peer.clone());
        if let Some(peer) = peer.filter(|peer| peer != user) {
            self.peer_marked(now, user, &peer, id, read);
        }
    }

    /// `by` has read so far; `peer` is the other user of the conversation.
    pub(super) fn peer_marked(&mut self, now: Now, by: &UserId, peer: &UserId, id: ConvId, read: &Heads) {
        if !self.owns_user(peer) {
            return self.tell_peer_read(now, by, peer, id, read);
        }
        if let Some(waiting) = self.user(peer).waiting() {
            waiting.marks.push((None, vec![(id, read.clone())]));
            return;
        }
        let Some(user) = self.users.get_mut(peer) else { return };
        if let Some(merged) = user.mark(id, read, true, &self.era_table) {
            self.dirty.insert(peer.clone());
            self.schedule_flush(now);
            self.push_row(now, peer, id, merged, Vec::new());
        }
    }

    /// Other regions are to hear of a change.
    fn note_marks(&mut self, now: Now, user: &UserId, merged: Merged) {
        let regions: Vec<Region> = self.links.keys().copied().collect();
        for region in regions {
            let users = self.marks.links.entry(region).or_default();
            let fresh = Position { acked: merged.before, shipped: None, wanted: merged.after, todo: false, frames: 0 };
            let position = users.entry(user.clone()).or_insert(fresh);
            position.wanted = merged.after;
            if !std::mem::replace(&mut position.todo, true) {
                self.marks.todo.push(Todo {
                    target: Target::Peer(region),
                    conversation: ConvId::marks(&self.settings.direct_salt, user),
                    prefix: [(position_origin(self.settings.region), merged.before.0)].into(),
                    user: Some(user.clone()),
                });
            }
            self.ship_marks(now, region, user);
        }
    }

    /// What the store says is left to tell.
    pub(super) fn resume_marks(&mut self, region: Region, user: &UserId, prefix: &Heads) {
        let acked = Rev(prefix.values().next().copied().unwrap_or(0));
        // Everything that any owner can have issued before this start.
        let Some(epoch) = self.epoch_of_user(user) else { return };
        let wanted = Rev::start_of(epoch);
        let position = Position { acked, shipped: None, wanted, todo: true, frames: 0 };
        self.marks.links.entry(region).or_default().insert(user.clone(), position);
    }

    /// A region has lost marks of a user: it is told all of them.
    pub(super) fn give_marks(&mut self, now: Now, region: Region, user: &UserId) {
        let users = self.marks.links.entry(region).or_default();
        let fresh = Position { acked: Rev(0), shipped: None, wanted: Rev(0), todo: false, frames: 0 };
        let position = users.entry(user.clone()).or_insert(fresh);
        (position.acked, position.shipped) = (Rev(0), None);
        self.ship_marks(now, region, user);
    }

    /// A link is up, or other nodes own some of the users there: the region is told all that it has not acked of those
    /// whose share `moved` names.
    pub(super) fn ship_all_marks(&mut self, now: Now, region: Region, moved: impl Fn(Share) -> bool) {
        let Some(users) = self.marks.links.get_mut(&region) else { return };
        let mut names = Vec::new();
        let salt = &self.settings.direct_salt;
        for (user, position) in users.iter_mut().filter(|(user, _)| moved(Slot::of_user(salt, user).share())) {
            (position.shipped, position.frames) = (None, 0);
            names.push(user.clone());
        }
        for user in names {
            self.ship_marks(now, region, &user);
        }
    }

    pub(super) fn ship_marks(&mut self, _now: Now, region: Region, user: &UserId) {
        if self.ways.of_user(region, user).is_none() {
            return; // when its owner there is linked he is told
        }
        if let Some(waiting) = self.user(user).waiting() {
            waiting.ship_marks.insert(region);
            return;
        }
        let Some(position) = self.marks.links.get_mut(&region).and_then(|users| users.get_mut(user)) else { return };
        let Some(known) = self.users.get(user) else { return };
        loop {
            let above = position.shipped.unwrap_or(position.acked);
            let (page, last) = known.above(above, PULL_ENTRIES);
            let upto = if last { position.wanted.max(known.rev()) } else { page.last().map_or(above, |(_, r)| r.rev) };
            let marks = page.iter().filter(|(_, row)| !row.read.is_empty()).map(|(id, row)| wire::Mark {
                conversation: Bytes::copy_from_slice(&id.0),
                read: heads_to_wire(&row.read),
            });
            let frame = wire::Marks { user: user.as_str().to_owned(), upto: upto.0, marks: marks.collect() };
            position.shipped = Some(upto);
            position.wanted = position.wanted.max(upto);
            position.frames += 1;
            self.out.link_user(&self.ways, region, user, wire::node_frame::Body::Marks(frame));
            if last {
                break;
            }
        }
    }

    /// A peer region tells what a user has read there.
    pub(super) fn marks_told(&mut self, now: Now, from: Holder, marks: wire::Marks) -> Result<(), Refusal> {
        let user = crate::wire::convert::user(&marks.user)?;
        if !self.owns_user(&user) {
            return Ok(()); // it is told again, to his owner
        }
        let mut told = Vec::with_capacity(marks.marks.len());
        for mark in marks.marks {
            told.push((crate::wire::convert::conversation(&mark.conversation)?, heads_from_wire(mark.read)?));
        }
        self.refill_heard(now, from.region);
        let from = (from, Rev(marks.upto));
        if let Some(waiting) = self.user(&user).waiting() {
            waiting.marks.push((Some(from), told));
        } else {
            self.take_marks(now, &user, Some(from), told);
        }
        Ok(())
    }

    pub(super) fn take_marks(
        &mut self,
        now: Now,
        user: &UserId,
        from: Option<(Holder, Rev)>,
        marks: Vec<(ConvId, Heads)>,
    ) {
        for (id, read) in marks.into_iter().filter(|_| from.is_none() || !on(Mutant::MarkUpdateDropped)) {
            if from.is_none() {
                // It waited for the other user's rows, here.
                self.peer_marked(now, user, user, id, &read);
            } else if let Some(merged) =
                self.users.get_mut(user).and_then(|u| u.mark(id, &read, false, &self.era_table))
            {
                self.marked(now, user, id, &read, merged);
            }
        }
        if let Some((from, upto)) = from {
            self.marks.owed.push(Owed::Peer(from, user.clone(), upto));
        }
        self.schedule_flush(now);
    }

    /// A peer region holds the marks durably.
    pub(super) fn marks_acked(&mut self, now: Now, region: Region, ack: &wire::MarksAck) -> Result<(), Refusal> {
        let user = crate::wire::convert::user(&ack.user)?;
        let Some(users) = self.marks.links.get_mut(&region) else { return Ok(()) };
        let Some(position) = users.get_mut(&user) else { return Ok(()) };
        position.acked = position.acked.max(Rev(ack.upto));
        position.frames = position.frames.saturating_sub(1);
        // What was told again is acked by its own acks, not by those of what was on its way before.
        if position.acked >= position.wanted && position.frames == 0 {
            let todo = position.todo;
            users.remove(&user);
            self.marks_given(now, region, &user);
            if !todo {
                return Ok(());
            }
            // Not yet written: then it need not be. Otherwise the removal follows it.
            let conversation = ConvId::marks(&self.settings.direct_salt, &user);
            let target = Target::Peer(region);
            self.marks.todo.retain(|t| (t.target, t.conversation) != (target, conversation));
            let removed = Todo { target, conversation, prefix: Heads::new(), user: Some(user) };
            self.marks.todo.push(removed);
            self.schedule_flush(now);
        }
        Ok(())
    }

    /// Marks are on disk: whoever waits for that is told.
    pub(super) fn marks_flushed(&mut self, now: Now) {
        let (_, owed) = std::mem::take(&mut self.marks.flushing);
        if !self.has_lease(now) {
            // Durable, but perhaps in rows that are another node's: nobody is told (R6).
            self.marks.owed.splice(0..0, owed);
            return;
        }
        for owed in owed {
            let reader = match &owed {
                Owed::Client(key, _) => self.sessions.get(key).map(|s| &s.user),
                Owed::Peer(_, user, _) => Some(user),
                Owed::Row { .. } | Owed::Read { .. } => None,
            };
            if reader.is_some_and(|user| self.siblings.waits_for_marks_of(user)) {
                self.marks.owed.push(owed); // until the other users' owners hold them too
                continue;
            }
            match owed {
                Owed::Client(key, req) if self.sessions.contains_key(&key) => {
                    self.out.frame(key, req, v1::frame::Body::Marked(v1::Marked {}));
                }
                Owed::Client(..) => {}
                Owed::Peer(from, user, upto) => {
                    let ack = wire::MarksAck { user: user.as_str().to_owned(), upto: upto.0 };
                    self.out.peer(from, wire::node_frame::Body::MarksAck(ack));
                }
                Owed::Row { id, user, no } if self.owns_user(&user) => self.answer_row(id, &user, no),
                Owed::Read { by, user, id, no } if self.owns_user(&user) => self.answer_read(&by, &user, id, no),
                Owed::Row { .. } | Owed::Read { .. } => {}
            }
        }
    }
}
