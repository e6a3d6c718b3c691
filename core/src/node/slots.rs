//! Which slots this node owns, and what happens when one comes or goes (R2, R6, R7).
//!
//! Problem: many core nodes share a region's conversations and users, and any of them may die, be paused, or be told to
//! hand over what it has, while the others serve on.
//!
//! Rule: a node owns slots, each under an epoch that the store has made durable before. All that it appends and all
//! revisions that it issues carry the epoch of their slot, so the store refuses what a former owner still appends, and
//! no revision is issued twice. A slot that comes is taken up as a whole store is at a start: what todo says is left to
//! do is done again. A slot that goes takes everything of it from memory: its messages that wait are handed back to the
//! edges, which know the new owner or will hear of it; what is with the store is answered for if it was decided. What
//! this node says to others of rows and revisions counts only while its lease does.
//!
//! Why simpler ways fail: a new owner that continues with the former's numbers reissues what was lost with it; messages
//! that are refused where they wait are sent again by their clients a second later, all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use crate::codes::{Code, Refusal};
use crate::edge_api::Up;
use crate::ids::{ConvId, UserId};
use crate::router::conversation_of;
use crate::slots::{SLOTS_PER_SHARE, Share, Slot};
use crate::store::{Target, Todo};
use crate::wire::v1::{self, frame::Body};

use super::conversation::{Conversation, Job, Waiting};
use super::marks::Owed;
use super::{ConnKey, Node, Now, Session, Want};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    /// `None`: this node is its region's only one, and owns all.
    owned: Option<BTreeMap<Slot, u64>>,
    /// Those of them that are about to be handed over: nothing new is begun.
    leaving: BTreeSet<Slot>,
    /// Shares that are owned as a whole, and are not to be handed over.
    whole: BTreeSet<Share>,
    /// Until when what is owned counts; `None`: for ever.
    lease: Option<Duration>,
}

impl Ownership {
    /// All slots, or none at first.
    pub(super) fn new(shared: bool) -> Self {
        let mut ownership = Self { owned: shared.then(BTreeMap::new), ..Self::default() };
        ownership.recount();
        ownership
    }

    fn recount(&mut self) {
        let Some(owned) = &self.owned else {
            self.whole = Share::all().collect();
            return;
        };
        let mut counts = BTreeMap::<Share, u16>::new();
        for slot in owned.keys().filter(|slot| !self.leaving.contains(slot)) {
            *counts.entry(slot.share()).or_default() += 1;
        }
        self.whole =
            counts.into_iter().filter(|(_, count)| *count == SLOTS_PER_SHARE).map(|(share, _)| share).collect();
    }
}

impl Node {
    /// Whether other nodes of this region own slots too.
    pub(super) fn is_shared(&self) -> bool {
        self.ownership.owned.is_some()
    }

    /// The epoch of a slot, if it is this node's.
    fn epoch_of(&self, slot: Slot) -> Option<u64> {
        match &self.ownership.owned {
            None => Some(self.settings.epoch),
            Some(owned) => owned.get(&slot).copied(),
        }
    }

    /// The epoch under which this node may append to a conversation.
    pub(super) fn epoch_of_log(&self, id: ConvId) -> Option<u64> {
        if self.is_shared() { self.epoch_of(Slot::of(id)) } else { Some(self.settings.epoch) }
    }

    /// The epoch of a user's revisions here.
    pub(super) fn epoch_of_user(&self, user: &UserId) -> Option<u64> {
        if self.is_shared() { self.epoch_of(self.slot_of(user)) } else { Some(self.settings.epoch) }
    }

    /// Whether a conversation is this node's.
    pub(super) fn owns_log(&self, id: ConvId) -> bool {
        self.epoch_of_log(id).is_some()
    }

    /// Whether a user's rows are this node's.
    pub(super) fn owns_user(&self, user: &UserId) -> bool {
        self.epoch_of_user(user).is_some()
    }

    pub(super) fn slot_of(&self, user: &UserId) -> Slot {
        Slot::of_user(&self.settings.direct_salt, user)
    }

    /// Whether what this node owned when it was last told is still its own.
    pub(super) fn has_lease(&self, now: Now) -> bool {
        self.ownership.lease.is_none_or(|until| now.mono < until)
    }

    /// What is owned counts until then.
    pub fn lease(&mut self, until: Duration) {
        self.ownership.lease = Some(until);
    }

    /// The slots of this node and their epochs; `None`: it owns all.
    pub fn owned(&self) -> Option<&BTreeMap<Slot, u64>> {
        self.ownership.owned.as_ref()
    }

    /// Shares that are this node's as a whole and stay so, as far as it knows.
    pub(super) fn own_shares(&self) -> &BTreeSet<Share> {
        &self.ownership.whole
    }

    /// Whether new messages of a conversation are taken here.
    pub(super) fn takes_log(&self, id: ConvId) -> bool {
        let Some(owned) = &self.ownership.owned else { return true };
        let slot = Slot::of(id);
        owned.contains_key(&slot) && !self.ownership.leaving.contains(&slot)
    }

    /// These slots are this node's, under these epochs; `todo` is what the store says is left to do in them.
    pub fn gain(&mut self, now: Now, slots: &BTreeMap<Slot, u64>, todo: Vec<Todo>) {
        let Some(owned) = &mut self.ownership.owned else { return };
        owned.extend(slots.iter().map(|(slot, epoch)| (*slot, *epoch)));
        slots.keys().for_each(|slot| {
            self.ownership.leaving.remove(slot);
        });
        self.ownership.recount();
        // What was known of own logs was another's word.
        self.empty_logs.clear();
        let copies = self.conversations.iter_mut().filter(|(id, c)| c.replica && slots.contains_key(&Slot::of(**id)));
        for (id, copy) in copies {
            copy.replica = false;
            if !copy.is_loading() {
                copy.reload(Vec::new());
            }
            self.out.wants.push(Want::Conversation(*id));
        }
        for t in todo {
            self.resume_todo_linked(t, now);
        }
        if !self.active.is_empty() {
            self.schedule_flush(now);
        }
        self.relay(now);
        self.siblings_moved(now, |slot| slots.contains_key(&slot));
    }

    /// What the store says is left to do in this node's slots, looked at from time to time: a former owner may have
    /// written some after it had lost them (R6).
    pub fn todo_found(&mut self, now: Now, todo: Vec<Todo>) {
        for t in todo {
            let known = self.conversations.get(&t.conversation).is_some_and(|c| c.todo.contains_key(&t.target));
            let ours = self.epoch_of(Self::slot_of_todo(&self.settings.direct_salt, &t)).is_some();
            if t.user.is_some() || known || !ours {
                continue;
            }
            let (id, target) = (t.conversation, t.target);
            self.resume_todo_linked(t, now);
            let loaded = self.conversations.get(&id).is_some_and(|c| !c.is_loading());
            if loaded && target == Target::Fanout {
                self.fan_out(now, id, &[]);
            }
            self.schedule_flush(now);
        }
    }

    /// What is left to do, where links may be up already.
    fn resume_todo_linked(&mut self, t: Todo, now: Now) {
        let marks = t.user.clone().zip(match t.target {
            Target::Peer(region) => Some(region),
            Target::Fanout => None,
        });
        self.resume_todo(t, now);
        if let Some((user, region)) = marks {
            self.ship_marks(now, region, &user);
        }
    }

    /// These slots are to be handed over: nothing new is begun in them. [`Self::has_left`] says when all that was begun
    /// is over; then they are given up and [`Self::lose`] is called.
    pub fn leave(&mut self, now: Now, slots: &BTreeSet<Slot>) {
        self.ownership.leaving.extend(slots);
        self.ownership.recount();
        let salt = &self.settings.direct_salt;
        let of_user = |user: &UserId| slots.contains(&Slot::of_user(salt, user));
        if self.dirty.iter().any(of_user) || self.marks.owes(|owed| self.user_of(owed).is_some_and(of_user)) {
            self.flush.at = Some(now.mono);
        }
        let (conversations, out) = (&mut self.conversations, &mut self.out);
        for (id, conversation) in conversations.iter_mut() {
            if !conversation.queue.is_empty() && slots.contains(&Slot::of(*id)) {
                hand_back(out, std::mem::take(&mut conversation.queue));
            }
        }
    }

    /// These slots are not handed over after all.
    pub fn stay(&mut self, slots: &BTreeSet<Slot>) {
        self.ownership.leaving.retain(|slot| !slots.contains(slot));
        self.ownership.recount();
    }

    /// The epoch under which a conversation that is wanted is to be read, so that former owners are fenced before; `None`:
    /// it is another's, or nobody else writes to the store.
    pub fn fence_of(&self, id: ConvId) -> Option<u64> {
        self.epoch_of_log(id).filter(|_| self.is_shared())
    }

    /// The epoch of the user whose rows are wanted, likewise: an answer that began under another is of no use.
    pub fn fence_of_user(&self, user: &UserId) -> Option<u64> {
        self.epoch_of_user(user).filter(|_| self.is_shared())
    }

    /// Whether nothing is under way in these slots: no append, no row that is not on disk, nobody who waits for one.
    pub fn has_left(&self, slots: &BTreeSet<Slot>) -> bool {
        let of_user = |user: &UserId| slots.contains(&self.slot_of(user));
        let busy = |(id, c): (&ConvId, &Conversation)| c.round.is_some() && slots.contains(&Slot::of(*id));
        !self.conversations.iter().any(busy)
            && !self.dirty.iter().any(of_user)
            && !self.flush.rows.iter().any(|(user, _)| of_user(user))
            && !self.marks.owes(|owed| self.user_of(owed).is_some_and(of_user))
    }

    /// Whose rows an answer waits for.
    fn user_of<'a>(&'a self, owed: &'a Owed) -> Option<&'a UserId> {
        match owed {
            Owed::Client(key, _) => self.sessions.get(key).map(|s| &s.user),
            Owed::Peer(_, user, _) | Owed::Row { user, .. } | Owed::Read { user, .. } => Some(user),
        }
    }

    /// These slots are not this node's any more.
    pub fn lose(&mut self, now: Now, slots: &BTreeSet<Slot>) {
        let Some(owned) = &mut self.ownership.owned else { return };
        owned.retain(|slot, _| !slots.contains(slot));
        self.ownership.leaving.retain(|slot| !slots.contains(slot));
        self.ownership.recount();
        for link in self.links.values_mut() {
            link.disown(|id| slots.contains(&Slot::of(id)));
        }
        self.refill_lost(now, &slots.iter().map(|slot| slot.share()).collect());
        self.lose_users(now, slots);
        let lost: Vec<ConvId> = self
            .conversations
            .iter()
            .filter(|(id, c)| !c.replica && slots.contains(&Slot::of(**id)))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.lose_conversation(id);
        }
        self.empty_logs.clear();
        self.marks.todo.retain(|t| match &t.user {
            Some(user) => !slots.contains(&Slot::of_user(&self.settings.direct_salt, user)),
            None => !slots.contains(&Slot::of(t.conversation)),
        });
        self.start_rounds(now);
    }

    fn lose_users(&mut self, now: Now, slots: &BTreeSet<Slot>) {
        let lost: Vec<UserId> = self.users.keys().filter(|u| slots.contains(&self.slot_of(u))).cloned().collect();
        for id in lost {
            let Some(mut user) = self.users.remove(&id) else { continue };
            self.dirty.remove(&id);
            let waiting = user.take_waiting().unwrap_or_default();
            for open in waiting.opens {
                self.hand_back_open(open);
            }
            for (key, frame) in waiting.frames {
                self.out.bounced.entry(key.edge).or_default().push(Up::Frame { conn: key.conn, frame });
            }
            for conversation in &waiting.merges {
                self.merged_late(*conversation);
            }
            // What was merged here and may not be on disk is for his new owner, told by those whose conversations it is.
            let unsure: BTreeSet<ConvId> = user
                .take_dirty()
                .map(|(conversation, _)| conversation)
                .chain(self.flush.rows.iter().filter(|(user, _)| *user == id).map(|(_, conversation)| *conversation))
                .chain(waiting.merges)
                .collect();
            for conversation in unsure {
                if self.conversations.get(&conversation).is_some_and(|c| !c.replica) {
                    self.merge_row(now, &id, conversation, &[]);
                }
            }
            self.forget_marks_by(&id);
            for (key, device) in std::mem::take(&mut user.devices) {
                self.agains.forget(key);
                self.presence.unwatch(key);
                if let Some(at) = device.remind_at {
                    self.owing.remove(&(at, id.clone(), key));
                }
                if device.bound.is_some() {
                    self.device_moved(&id, &device.install, key, false);
                }
            }
            self.route_changed(now, &id);
            self.marks.forget(&id);
        }
        // Whoever waits for a mark to be durable tells it again.
        let (sessions, out) = (&self.sessions, &mut self.out);
        let salt = &self.settings.direct_salt;
        let again = Refusal::new(Code::UnknownConversation, "the user's rows are another node's now; mark it again");
        self.marks.drop_owed(|owed| {
            let user = match owed {
                Owed::Client(key, _) => sessions.get(key).map(|s| &s.user),
                Owed::Peer(_, user, _) | Owed::Row { user, .. } | Owed::Read { user, .. } => Some(user),
            };
            let lost = user.is_some_and(|user| slots.contains(&Slot::of_user(salt, user)));
            if let (Owed::Client(key, req), true) = (owed, lost) {
                out.refuse(*key, *req, &again.clone().after_ms(500));
            }
            lost
        });
    }

    /// What waits for a conversation goes back to the edges; what is with the store is awaited.
    fn lose_conversation(&mut self, id: ConvId) {
        self.active.remove(&id);
        for link in self.links.values_mut() {
            link.forget(id);
        }
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        if let Some(at) = conversation.fan_at.take() {
            self.fans.remove(&(at, id));
        }
        let queue = std::mem::take(&mut conversation.queue);
        let parked = std::mem::take(&mut conversation.parked);
        hand_back(&mut self.out, parked.into_iter().chain(queue));
        for (key, origins) in std::mem::take(&mut conversation.watchers) {
            let origins = origins.into_keys().map(Into::into).collect();
            let log = v1::UnstableLog { conversation: Bytes::copy_from_slice(&id.0), origins };
            self.out.hand_back_frame(key, 0, Body::Unstable(v1::Unstable { logs: vec![log] }));
            if let Some(session) = self.sessions.get_mut(&key) {
                session.watching.remove(&id);
            }
        }
        let waiting = conversation.waiting().map(std::mem::take).unwrap_or_default();
        if conversation.round.is_some() {
            conversation.reset();
        } else {
            self.conversations.remove(&id);
        }
        self.hand_back_waiting(id, waiting);
    }

    fn hand_back_waiting(&mut self, id: ConvId, waiting: Waiting) {
        let conversation = Bytes::copy_from_slice(&id.0);
        for (key, req, pull) in waiting.pulls {
            self.out.hand_back_frame(key, req, Body::Pull(pull));
        }
        for (key, req) in waiting.cells {
            let pull = v1::PullCells { conversation: conversation.clone() };
            self.out.hand_back_frame(key, req, Body::PullCells(pull));
        }
        for (key, req, named) in waiting.eras {
            let origins = named.into_iter().map(Into::into).collect();
            let pull = v1::PullEras { conversation: conversation.clone(), origins };
            self.out.hand_back_frame(key, req, Body::PullEras(pull));
        }
        for (key, origins) in waiting.unstable {
            let origins = origins.into_iter().map(Into::into).collect();
            let log = v1::UnstableLog { conversation: conversation.clone(), origins };
            self.out.hand_back_frame(key, 0, Body::Unstable(v1::Unstable { logs: vec![log] }));
        }
        for open in waiting.opens {
            self.hand_back_open(open);
        }
        // Those whose senders this log may block ask its new owner.
        self.touched.extend(waiting.gates);
    }

    fn hand_back_open(&mut self, open: super::user::Open) {
        // The session stays, as of any connection that this node was told of: see `is_for_us`.
        let Some(session) = self.sessions.get(&open.key) else { return };
        let up = Up::Open {
            conn: open.key.conn,
            req: open.req,
            user: open.user,
            install: session.install.clone(),
            hello: open.hello,
            address: open.address,
            transport: open.transport,
            token_expires_ms: open.token_expires_ms,
            token_issued_ms: session.token_issued_ms,
        };
        self.out.bounced.entry(open.key.edge).or_default().push(up);
    }

    /// A round whose conversation went while it was with the store has ended.
    pub(super) fn finish_lost(&mut self, id: ConvId, round: super::conversation::Round) {
        if round.failure.is_none() {
            for ack in round.acks {
                self.ack_lost(id, ack);
            }
        } else {
            hand_back(&mut self.out, round.jobs);
        }
        self.conversations.remove(&id);
    }

    /// Whether this node is the one to be told this. What is not for it goes back to the edge, which asks the owner.
    pub(super) fn is_for_us(&mut self, key: ConnKey, up: Up) -> Option<Up> {
        if !self.is_shared() {
            return Some(up);
        }
        let ours = match &up {
            Up::Open { user, .. } | Up::Resume { user, .. } => {
                let slot = self.slot_of(user);
                self.epoch_of(slot).is_some() && !self.ownership.leaving.contains(&slot)
            }
            Up::Send { send, .. } => self.takes_log(send.conversation),
            Up::Frame { frame, .. } => match frame.body.as_ref().and_then(conversation_of) {
                Some(id) => self.owns_log(id),
                None => {
                    let slot = self.sessions.get(&key).map(|s| self.slot_of(&s.user));
                    let leaving = slot.is_some_and(|slot| self.ownership.leaving.contains(&slot));
                    let begins = matches!(frame.body, Some(Body::Mark(_) | Body::Commit(_)));
                    slot.is_none_or(|slot| self.epoch_of(slot).is_some()) && !(leaving && begins)
                }
            },
            Up::Attach { .. } | Up::Close { .. } => true,
        };
        if ours {
            return Some(up);
        }
        // An edge that has told a node of a connection does not say again whose it is, and what it says of it next may be
        // about a conversation that is this node's.
        if let Up::Open { user, install, token_issued_ms, .. } | Up::Resume { user, install, token_issued_ms, .. } = &up
        {
            let session = || Session::new(user.clone(), install.clone(), *token_issued_ms);
            self.sessions.entry(key).or_insert_with(session);
        }
        self.out.bounced.entry(key.edge).or_default().push(up);
        None
    }

    /// What todo of a slot is: of a user's marks, that of the user.
    pub fn slot_of_todo(salt: &[u8], todo: &Todo) -> Slot {
        match (&todo.user, todo.target) {
            (Some(user), Target::Peer(_)) => Slot::of_user(salt, user),
            _ => Slot::of(todo.conversation),
        }
    }
}

fn hand_back(out: &mut super::Outputs, jobs: impl IntoIterator<Item = Job>) {
    for job in jobs {
        if let Job::Send { key, req, send, .. } = job {
            out.bounced.entry(key.edge).or_default().push(Up::Send { conn: key.conn, req, send: *send });
        }
    }
}

impl super::Outputs {
    fn hand_back_frame(&mut self, key: ConnKey, req: u32, body: Body) {
        let frame = v1::Frame::new(req, body);
        self.bounced.entry(key.edge).or_default().push(Up::Frame { conn: key.conn, frame });
    }
}
