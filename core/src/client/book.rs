//! What a local store does with ops, in memory.
//!
//! The reference that SQLite is compared with, the memory store of simulated clients, and the store of the
//! machine's own tests. Applying is atomic here by nature.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::data::{
    Change, ConversationImage, ConversationRecord, Image, Message, MessageId, MessageState, Op, Outgoing,
    OutgoingRecord, Placed, merge_copy,
};
use crate::fold::Erasing;
use crate::ids::{ConvId, Cursor, Heads, Identity, InstallId, Origin, Place, Region, Seq, UserId, body_hash};
use crate::mutants::{Mutant, on};

/// A message's identity, and the hash of its body: copies with another body are other messages (R3).
type Key = (ConvId, Identity, [u8; 32]);

/// A copy of a message.
#[derive(Clone, Copy, Debug)]
struct Held {
    of: MessageId,
    /// Its display key.
    key: Place,
    /// It lies above the end of its log.
    void: bool,
}

/// All that a client keeps, as plain maps.
#[derive(Clone, Debug)]
pub struct Book {
    user: UserId,
    install: InstallId,
    salt: Option<Bytes>,
    next_id: u64,
    connections: u64,
    cursors: BTreeMap<Region, Cursor>,
    conversations: BTreeMap<ConvId, ConversationImage>,
    messages: BTreeMap<MessageId, (Message, [u8; 32])>,
    by_key: BTreeMap<Key, MessageId>,
    shown: BTreeMap<ConvId, BTreeSet<(Place, MessageId)>>,
    copies: BTreeMap<(ConvId, Origin, Seq), Held>,
    /// Messages with copies that are void.
    void: BTreeSet<MessageId>,
    outgoing: BTreeMap<MessageId, OutgoingRecord>,
    dispatch: Option<(Bytes, u64)>,
    networks: Option<Bytes>,
}

impl Book {
    /// An empty one for `user`.
    pub fn new(user: UserId, install: InstallId) -> Self {
        Self {
            user,
            install,
            salt: None,
            next_id: 1,
            connections: 0,
            cursors: BTreeMap::new(),
            conversations: BTreeMap::new(),
            messages: BTreeMap::new(),
            by_key: BTreeMap::new(),
            shown: BTreeMap::new(),
            copies: BTreeMap::new(),
            void: BTreeSet::new(),
            outgoing: BTreeMap::new(),
            dispatch: None,
            networks: None,
        }
    }

    /// What a machine is built from.
    pub fn image(&self) -> Image {
        let outgoing = self.outgoing.values().filter_map(|record| {
            let (m, _) = self.messages.get(&record.id)?;
            let record = record.clone();
            Some(Outgoing { record, kind: m.kind, wall_ms: m.wall_ms, body: m.body.clone() })
        });
        Image {
            install: self.install.clone(),
            salt: self.salt.clone(),
            next_id: self.next_id,
            connections: self.connections,
            cursors: self.cursors.clone(),
            conversations: self.conversations.clone(),
            outgoing: outgoing.collect(),
            dispatch: self.dispatch.clone(),
            networks: self.networks.clone(),
        }
    }

    /// The install id of new messages, as drawn at a start.
    pub fn set_install(&mut self, install: InstallId, fresh: bool) {
        self.apply_one(&Op::Install { install, fresh }, &mut Vec::new());
    }

    /// Applies a step's ops; what changed in timelines, in order.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Change> {
        let mut changes = Vec::new();
        for op in ops {
            self.apply_one(op, &mut changes);
        }
        changes
    }

    fn apply_one(&mut self, op: &Op, changes: &mut Vec<Change>) {
        match op {
            Op::Install { install, fresh } => {
                self.install = install.clone();
                if *fresh {
                    self.conversations.values_mut().for_each(|c| c.record.next_n = 1);
                }
            }
            Op::Salt(salt) => self.salt = Some(salt.clone()),
            Op::Rename { from, to } => self.rename(*from, *to),
            Op::Conversation(record) => self.conversation(record.id).record = record.clone(),
            Op::Vector { conversation, origin, state } => {
                self.conversation(*conversation).origins.insert(*origin, state.clone());
            }
            Op::Entry { id, conversation, entry, unread } => {
                let message = Message {
                    id: *id,
                    conversation: *conversation,
                    by: entry.by.clone(),
                    kind: entry.kind,
                    wall_ms: entry.wall_ms,
                    body: entry.body.clone(),
                    key: None,
                    state: MessageState::Received,
                    unread: *unread,
                    erased: entry.erased,
                };
                let of = (*conversation, entry.place.origin, entry.place.seq);
                changes.extend(self.copy(of, message, entry.body_hash, entry.display_key(), *unread));
            }
            Op::Queue(out) => {
                let record = &out.record;
                self.next_id = self.next_id.max(record.id.0 + 1);
                let by = Identity { user: self.user.clone(), install: record.install.clone(), n: record.n };
                let hash = body_hash(&out.body);
                let message = Message {
                    id: record.id,
                    conversation: record.conversation,
                    by: by.clone(),
                    kind: out.kind,
                    wall_ms: out.wall_ms,
                    body: out.body.clone(),
                    key: None,
                    state: record.state,
                    unread: false,
                    erased: false,
                };
                self.messages.insert(record.id, (message, hash));
                if record.n > 0 {
                    self.by_key.insert((record.conversation, by, hash), record.id);
                }
                self.outgoing.insert(record.id, record.clone());
            }
            Op::Outgoing(record) => self.outgoing(record),
            Op::Release { id, state } => {
                self.outgoing.remove(id);
                if let Some((m, _)) = self.messages.get_mut(id) {
                    m.state = *state;
                }
            }
            Op::Discard(id) => {
                self.outgoing.remove(id);
                if let Some((m, hash)) = self.messages.remove(id) {
                    self.by_key.remove(&(m.conversation, m.by, hash));
                    if let (Some(key), Some(shown)) = (m.key, self.shown.get_mut(&m.conversation)) {
                        shown.remove(&(key, *id));
                    }
                }
            }
            Op::Read { conversation, mark } => {
                for (origin, upto) in mark {
                    let from = (*conversation, *origin, 0);
                    for copy in self.copies.range(from..=(*conversation, *origin, *upto)).map(|(_, copy)| copy) {
                        if let Some((m, _)) = self.messages.get_mut(&copy.of) {
                            m.unread = false;
                        }
                    }
                }
            }
            Op::ReadFrom(user) => {
                self.messages.values_mut().filter(|(m, _)| m.by.user == *user).for_each(|(m, _)| m.unread = false);
            }
            Op::Fact { conversation, entry } => {
                let facts = &mut self.conversation(*conversation).facts;
                facts.retain(|f| (f.place.origin, f.place.seq) != (entry.place.origin, entry.place.seq));
                facts.push(entry.clone());
                facts.sort_by_key(|f| (f.place.origin, f.place.seq));
            }
            Op::Forget { conversation, origin, seq } => {
                if let Some(c) = self.conversations.get_mut(conversation) {
                    c.facts.retain(|f| (f.place.origin, f.place.seq) != (*origin, *seq));
                }
            }
            Op::Erase { conversation, what } => {
                for (m, _) in self.messages.values_mut() {
                    let own_kind = (16..=63).contains(&m.kind);
                    if m.conversation != *conversation || own_kind || m.erased {
                        continue;
                    }
                    let Some(key) = m.key else { continue };
                    let hit = match what {
                        Erasing::One(by) => m.by == *by,
                        Erasing::Mine(user, before) => m.by.user == *user && key.hlc < *before,
                    };
                    if hit {
                        m.body = Bytes::new();
                        (m.erased, m.unread) = (true, false);
                        changes.push(Change { conversation: *conversation, id: m.id, what: Placed::Erased });
                    }
                }
            }
            Op::Void { conversation, origin, above } => changes.extend(self.void(*conversation, *origin, *above)),
            Op::Folded { conversation, cells } => {
                self.conversation(*conversation).folded = Some(cells.clone());
            }
            Op::Cursor(cursor) => {
                self.cursors.insert(cursor.store.region, *cursor);
            }
            Op::Connections(count) => self.connections = *count,
            Op::Networks(bytes) => self.networks = Some(bytes.clone()),
            Op::Dispatch { answer, wall_ms } => self.dispatch = Some((answer.clone(), *wall_ms)),
        }
    }

    fn conversation(&mut self, id: ConvId) -> &mut ConversationImage {
        self.conversations.entry(id).or_insert_with(|| ConversationImage::new(ConversationRecord::new(id, None)))
    }

    fn rename(&mut self, from: ConvId, to: ConvId) {
        if let Some(mut c) = self.conversations.remove(&from) {
            c.record.id = to;
            self.conversations.insert(to, c);
        }
        for (m, hash) in self.messages.values_mut().filter(|(m, _)| m.conversation == from) {
            m.conversation = to;
            if let Some(id) = self.by_key.remove(&(from, m.by.clone(), *hash)) {
                self.by_key.insert((to, m.by.clone(), *hash), id);
            }
        }
        self.outgoing.values_mut().filter(|o| o.conversation == from).for_each(|o| o.conversation = to);
        if let Some(shown) = self.shown.remove(&from) {
            self.shown.insert(to, shown);
        }
        let moved: Vec<_> = self.copies.iter().filter(|((c, ..), _)| *c == from).map(|(k, c)| (*k, *c)).collect();
        for ((_, origin, seq), copy) in moved {
            self.copies.remove(&(from, origin, seq));
            self.copies.insert((to, origin, seq), copy);
        }
    }

    fn outgoing(&mut self, record: &OutgoingRecord) {
        self.outgoing.insert(record.id, record.clone());
        let Some((m, hash)) = self.messages.get_mut(&record.id) else { return };
        m.state = record.state;
        if (&m.by.install, m.by.n) != (&record.install, record.n) {
            self.by_key.remove(&(m.conversation, m.by.clone(), *hash));
            m.by.install = record.install.clone();
            m.by.n = record.n;
        }
        if record.n > 0 {
            self.by_key.insert((m.conversation, m.by.clone(), *hash), record.id);
        }
    }

    fn copy(
        &mut self,
        of: (ConvId, Origin, Seq),
        new: Message,
        hash: [u8; 32],
        key: Place,
        unread: bool,
    ) -> Option<Change> {
        let conversation = new.conversation;
        let known = self.by_key.get(&(conversation, new.by.clone(), hash)).copied();
        let known = known.filter(|id| self.message(*id).is_none_or(|m| m.key.is_none()) || !on(Mutant::CopyShownTwice));
        let id = known.unwrap_or(new.id);
        self.next_id = self.next_id.max(id.0 + 1);
        self.copies.insert(of, Held { of: id, key, void: false });
        let erased = new.erased;
        let rest = if self.void.contains(&id) { self.place_of(id) } else { None };
        let (m, _) = self.messages.entry(id).or_insert_with(|| (new, hash));
        let (lowest, unread) = merge_copy((m.key, m.unread), key, unread);
        let lowest = rest.unwrap_or(lowest);
        m.unread = unread && !erased;
        let erases = erased && !m.erased;
        if erases {
            m.erased = true;
            m.body = Bytes::new();
        }
        self.by_key.insert((conversation, m.by.clone(), hash), id);
        if m.key == Some(lowest) {
            return erases.then_some(Change { conversation, id, what: Placed::Erased });
        }
        let (after, last) = self.place(conversation, id, lowest);
        let what = match known {
            Some(_) => Placed::Moved { after },
            None if last => Placed::Appended,
            None => Placed::Inserted { after },
        };
        Some(Change { conversation, id, what })
    }

    /// Shows a message at a place: what it follows, and whether it is the last.
    fn place(&mut self, conversation: ConvId, id: MessageId, key: Place) -> (Option<MessageId>, bool) {
        let shown = self.shown.entry(conversation).or_default();
        let old = self.messages.get_mut(&id).and_then(|(m, _)| m.key.replace(key));
        if let Some(old) = old {
            shown.remove(&(old, id));
        }
        shown.insert((key, id));
        let after = shown.range(..(key, id)).next_back().map(|(_, id)| *id);
        (after, shown.last() == Some(&(key, id)))
    }

    /// The lowest place of a message: of its copies that count, or of all if none does.
    fn place_of(&self, id: MessageId) -> Option<Place> {
        self.copies.values().filter(|c| c.of == id).map(|c| (c.void, c.key)).min().map(|(_, key)| key)
    }

    /// Copies of a log above its end do not count, and those below do.
    fn void(&mut self, conversation: ConvId, origin: Origin, above: Seq) -> Vec<Change> {
        let log = (conversation, origin, 0)..=(conversation, origin, Seq::MAX);
        let mut changed = BTreeSet::new();
        for ((_, _, seq), copy) in self.copies.range_mut(log) {
            let void = *seq > above;
            if copy.void != void {
                copy.void = void;
                changed.insert(copy.of);
            }
        }
        let mut moved = Vec::new();
        for id in changed {
            if self.copies.values().any(|c| c.of == id && c.void) {
                self.void.insert(id);
            } else {
                self.void.remove(&id);
            }
            let shown = self.messages.get(&id).and_then(|(m, _)| m.key);
            if let Some(key) = self.place_of(id).filter(|key| shown != Some(*key)) {
                let (after, _) = self.place(conversation, id, key);
                moved.push(Change { conversation, id, what: Placed::Moved { after } });
            }
        }
        moved
    }

    /// The newest `limit` placed messages at or above `horizon`, in order; then the own ones that are not
    /// acked.
    pub fn timeline(&self, conversation: ConvId, horizon: u64, limit: usize) -> Vec<Message> {
        let message = |id: &MessageId| self.messages.get(id).map(|(m, _)| m.clone());
        let shown = self.shown.get(&conversation).into_iter().flatten();
        let mut placed: Vec<_> =
            shown.rev().take_while(|(k, _)| k.hlc >= horizon).take(limit).filter_map(|(_, id)| message(id)).collect();
        placed.reverse();
        let pending = self.outgoing.values().filter(|o| o.conversation == conversation).filter_map(|o| message(&o.id));
        placed.extend(pending.filter(|m| m.key.is_none()));
        placed
    }

    /// One message.
    pub fn message(&self, id: MessageId) -> Option<Message> {
        self.messages.get(&id).map(|(m, _)| m.clone())
    }

    /// Messages not read.
    pub fn unread(&self, conversation: ConvId) -> u64 {
        self.messages.values().filter(|(m, _)| m.conversation == conversation && m.unread).count() as u64
    }

    /// Where the copies of a message stand.
    pub fn copies_of(&self, id: MessageId) -> Vec<(Origin, Seq)> {
        self.copies.iter().filter(|(_, copy)| copy.of == id).map(|((_, origin, seq), _)| (*origin, *seq)).collect()
    }

    /// Per origin the highest seq up to which all that is held is displayed at or before `key`.
    pub fn upto(&self, conversation: ConvId, key: Place) -> Heads {
        let (mut upto, mut after) = (Heads::new(), BTreeSet::new());
        for ((c, origin, seq), copy) in &self.copies {
            let shown = self.messages.get(&copy.of).and_then(|(m, _)| m.key);
            if *c != conversation || after.contains(origin) {
                continue;
            }
            if shown.is_some_and(|k| k > key) {
                after.insert(*origin);
            } else {
                upto.insert(*origin, *seq);
            }
        }
        upto
    }

    /// Copies held: (conversation, origin, seq).
    pub fn copies(&self) -> impl Iterator<Item = &(ConvId, Origin, Seq)> {
        self.copies.keys()
    }
}
