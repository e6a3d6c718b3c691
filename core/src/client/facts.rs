//! Entries of tern's own kinds: what follows from them here (R10, R11, R16).
//!
//! *Problem.* Members, cells and erasures follow from entries that reach a device in any order, several times,
//! and not all of them: a new device pulls the newest screens, and a new member may not read what was before.
//!
//! *Rule.* Facts are kept whole, one per identity, at its lowest display key, and folded by the rules that
//! servers use. Own changes that are not acked yet are laid over the fold and never into it: a refused one is
//! undone by being gone. Where not all entries are held, a server's fold is asked for, and again with each
//! change that arrives.
//!
//! *Why the simpler ways fail.* Folding own changes at once: a refused one would have to be taken back, and rules
//! that only merge can't. Counting both copies of a fact: a cell that was set before another would win by its
//! copy's later place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::data::{MessageState, Op};
use super::effects::Event;
use super::limits::{CELLS_PAUSE, FACTS};
use super::machine::{Conv, Machine};
use crate::entry::Entry;
use crate::fold::{Erasing, Fold};
use crate::ids::{ConvId, Identity, Origin, UserId};
use crate::kinds::{CELL, CREATE, ERASE_MINE, Own, is_membership};
use crate::membership::Role;
use crate::mutated;
use crate::wire::v1;

/// Key of the cell that holds a group's title.
pub(super) const TITLE: &str = "title";

/// A member of a group, as known on this device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Who.
    pub user: UserId,
    /// What he may do.
    pub role: Role,
    /// Which membership of his.
    pub generation: u64,
    /// By an own change that is not acked yet: a server may still refuse it.
    pub pending: bool,
}

/// A group, as known on this device: what entries say, and own changes that are not acked yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupInfo {
    /// Empty where it has none, or it is not known yet.
    pub title: String,
    /// The title is an own change that is not acked yet.
    pub title_pending: bool,
    /// Every member may add others and set the title; otherwise only admins.
    pub members_add: bool,
    /// Present ones, in order of their ids. Empty: not known yet.
    pub members: Vec<MemberInfo>,
}

impl GroupInfo {
    /// The member of this name.
    pub fn member(&self, user: &UserId) -> Option<&MemberInfo> {
        self.members.iter().find(|m| m.user == *user)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Standing {
    generation: u64,
    present: bool,
    role: Role,
}

/// The fold of a conversation with own pending changes over it.
#[derive(Debug, Default)]
pub(super) struct View {
    users: BTreeMap<UserId, (Standing, bool)>,
    pub(super) known: bool,
    pub(super) members_add: bool,
    title: (String, bool),
}

impl View {
    pub(super) fn next_generation(&self, user: &UserId) -> u64 {
        let raised = |s: &Standing| mutated!(GenerationNotRaised => s.generation; s.generation.saturating_add(1));
        self.users.get(user).map_or(1, |(s, _)| raised(s))
    }

    pub(super) fn present(&self, user: &UserId) -> Option<u64> {
        self.users.get(user).filter(|(s, _)| s.present).map(|(s, _)| s.generation)
    }

    pub(super) fn count(&self) -> usize {
        self.users.values().filter(|(s, _)| s.present).count()
    }

    /// Whether `user` is an admin, or nobody is.
    pub(super) fn may_administrate(&self, user: &UserId) -> bool {
        let is_admin = |s: &Standing| s.present && s.role == Role::Admin;
        self.users.get(user).is_some_and(|(s, _)| is_admin(s)) || !self.users.values().any(|(s, _)| is_admin(s))
    }

    fn pending(&mut self, own: &Own) {
        let role = |role: u32| if role == 1 { Role::Admin } else { Role::Member };
        match own {
            Own::Create(create) => {
                self.known = true;
                self.members_add = create.members_add;
                self.title = (create.title.clone(), true);
                for m in &create.members {
                    self.set(&m.user, Standing { generation: 1, present: true, role: role(m.role) });
                }
            }
            Own::Add(add) => {
                for m in &add.members {
                    self.set(&m.user, Standing { generation: m.generation, present: true, role: role(m.role) });
                }
            }
            Own::Remove(remove) => {
                for m in &remove.members {
                    self.set(&m.user, Standing { generation: m.generation, present: false, role: Role::Member });
                }
            }
            Own::Role(change) => {
                for m in &change.members {
                    let standing = Standing { generation: m.generation, present: true, role: role(m.role) };
                    if UserId::new(&m.user).is_ok_and(|u| self.present(&u) == Some(m.generation)) {
                        self.set(&m.user, standing);
                    }
                }
            }
            Own::Cell(cell) if cell.key == TITLE => {
                self.title = (String::from_utf8_lossy(&cell.value).into_owned(), true);
            }
            Own::Cell(_) | Own::Erase { .. } | Own::EraseMine => {}
        }
    }

    fn set(&mut self, user: &str, standing: Standing) {
        let Ok(user) = UserId::new(user) else { return };
        if self.users.get(&user).is_none_or(|(known, _)| known.generation <= standing.generation) {
            self.users.insert(user, (standing, true));
        }
    }
}

impl Conv {
    /// All entries that make the fold are held.
    fn is_whole(&self) -> bool {
        let created = self.fold.group().is_none_or(crate::membership::Membership::is_created);
        created
            && self.origins.values().all(|o| o.floor == 0 && o.missing().is_empty())
            && self.record.from.is_empty()
            && self.is_unfolded()
    }

    /// Whether it is a group, by what is known.
    pub(super) fn is_group(&self) -> bool {
        self.record.peer.is_none()
    }

    pub(super) fn view(&self) -> View {
        let mut view = View::default();
        let fold = self.fold.group().into_iter().flat_map(crate::membership::Membership::users);
        let folded = self.folded.as_ref().filter(|_| !self.is_whole());
        if let Some(cells) = folded {
            view.known = true;
            view.members_add = cells.members_add;
            for m in &cells.members {
                let role = if m.role == 1 { Role::Admin } else { Role::Member };
                let standing = Standing { generation: m.generation, present: true, role };
                if let Ok(user) = UserId::new(&m.user) {
                    view.users.insert(user, (standing, false));
                }
            }
        } else if let Some(group) = self.fold.group() {
            view.known = group.is_created();
            view.members_add = group.members_add();
        }
        for (user, m) in fold {
            let standing = Standing { generation: m.generation, present: m.is_present(), role: m.role() };
            let known = view.users.get(user).map(|(s, _)| *s);
            // A removal is final within its generation; of what else is equal the server's fold is newer.
            let newer = known.is_none_or(|k| k.generation < m.generation)
                || known.is_some_and(|k| k.generation == m.generation && m.is_added() && !m.is_present());
            if newer && (folded.is_none() || known.is_some() || !standing.present) {
                view.users.insert(user.clone(), (standing, false));
            }
        }
        view.title.0 = self.cell(TITLE).map(|v| String::from_utf8_lossy(&v).into_owned()).unwrap_or_default();
        for own in self.pending_changes() {
            view.pending(&own);
        }
        view
    }

    fn pending_changes(&self) -> impl Iterator<Item = Own> + '_ {
        self.outbox
            .queue
            .values()
            .filter(|o| o.out.record.state == MessageState::Queued)
            .filter(|o| (CREATE..=CELL).contains(&o.out.kind))
            .filter_map(|o| Own::read(o.out.kind, &o.out.body).ok().flatten())
    }

    /// The newest value of a cell, by what is held and what a server has folded; own pending ones do not count.
    pub(super) fn cell(&self, key: &str) -> Option<Bytes> {
        let folded = self.folded.iter().flat_map(|f| &f.cells).find(|c| c.key == key);
        let folded = folded.and_then(|c| Some((c.at?.try_into().ok()?, c.value.clone())));
        let held = self.fold.cell_at(key).map(|(at, value)| (at, value.clone()));
        [folded, held].into_iter().flatten().max_by_key(|(at, _)| *at).map(|(_, v)| v).filter(|v| !v.is_empty())
    }

    /// All cells whose keys begin so, own pending ones included: they are nobody's to refuse but in groups.
    pub(super) fn cells(&self, prefix: &str) -> BTreeMap<String, Bytes> {
        let folded = self.folded.iter().flat_map(|f| &f.cells).map(|c| c.key.as_str());
        let keys = folded.chain(self.fold.cells(prefix).map(|(key, _, _)| key)).filter(|k| k.starts_with(prefix));
        let mut all: BTreeMap<_, _> = keys.filter_map(|k| Some((k.to_owned(), self.cell(k)?))).collect();
        for own in self.pending_changes() {
            if let Own::Cell(cell) = own
                && cell.key.starts_with(prefix)
            {
                if cell.value.is_empty() {
                    all.remove(&cell.key);
                } else {
                    all.insert(cell.key, cell.value);
                }
            }
        }
        all
    }

    /// No server's fold is held, or it lacks a change that is.
    fn is_folded_stale(&self) -> bool {
        let Some(cells) = &self.folded else { return true };
        let upto: BTreeMap<Origin, u64> =
            cells.upto.iter().filter_map(|h| Some((h.origin?.try_into().ok()?, h.seq))).collect();
        let above = |e: &Arc<Entry>| e.place.seq > upto.get(&e.place.origin).copied().unwrap_or(0);
        self.facts.values().any(|e| e.kind <= CELL && above(e))
    }

    fn refold(&mut self) {
        let mut fold = Fold::default();
        self.facts.values().for_each(|e| fold.apply(e));
        fold.erasing.clear();
        self.fold = fold;
    }

    /// From what was kept.
    pub(super) fn set_facts(&mut self, facts: Vec<Arc<Entry>>) {
        for entry in facts {
            let lower = self.facts.get(&entry.by).is_none_or(|known| entry.display_key() < known.display_key());
            if lower {
                self.facts.insert(entry.by.clone(), entry);
            }
        }
        self.refold();
    }
}

impl Machine {
    /// What is known of a group; `None`: no group is known by this id.
    pub fn group(&self, id: ConvId) -> Option<GroupInfo> {
        let conv = self.convs.get(&id).filter(|c| c.is_group())?;
        let view = conv.view();
        let members = view.users.iter().filter(|(_, (s, _))| s.present).map(|(user, (s, pending))| MemberInfo {
            user: user.clone(),
            role: s.role,
            generation: s.generation,
            pending: *pending,
        });
        Some(GroupInfo {
            members: members.collect(),
            title: view.title.0,
            title_pending: view.title.1,
            members_add: view.members_add,
        })
    }

    /// An entry was stored: what follows from it.
    pub(super) fn learn_fact(&mut self, id: ConvId, entry: &Arc<Entry>) {
        if !(CREATE..=ERASE_MINE).contains(&entry.kind)
            || entry.erased
            || is_membership(entry.kind) != entry.stamp.is_some()
        {
            return;
        }
        let Ok(Some(own)) = Own::read(entry.kind, &entry.body) else { return };
        let Some(conv) = self.convs.get_mut(&id) else { return };
        let known = conv.facts.get(&entry.by).map(|k| (k.display_key(), k.place));
        if let Some((key, place)) = known {
            if key <= entry.display_key() {
                return;
            }
            self.ops.push(Op::Forget { conversation: id, origin: place.origin, seq: place.seq });
            conv.facts.insert(entry.by.clone(), entry.clone());
            conv.refold();
        } else {
            conv.facts.insert(entry.by.clone(), entry.clone());
            conv.fold.apply(entry);
        }
        self.ops.push(Op::Fact { conversation: id, entry: entry.clone() });
        if is_membership(entry.kind) {
            // Until it acks something, the connected region is told which change is the newest.
            conv.outbox.known_in_session = false;
        }
        let erasing = std::mem::take(&mut conv.fold.erasing);
        self.folding.insert(id);
        self.forget_superseded(id);
        for what in erasing {
            self.erase_held(id, what);
        }
        match own {
            Own::Cell(cell) => self.cell_changed(id, &cell.key),
            Own::Erase { .. } | Own::EraseMine => {}
            _ => self.event(Event::GroupChanged { conversation: id }),
        }
    }

    /// Cells that newer ones have replaced go first, oldest first.
    fn forget_superseded(&mut self, id: ConvId) {
        let Some(conv) = self.convs.get_mut(&id) else { return };
        if conv.facts.len() <= FACTS {
            return;
        }
        let superseded = conv.facts.values().filter(|e| {
            let cell = Own::read(e.kind, &e.body);
            matches!(cell, Ok(Some(Own::Cell(c))) if conv.fold.cell_at(&c.key).is_some_and(|(at, _)| at > e.display_key()))
        });
        let oldest: Option<Identity> = superseded.min_by_key(|e| e.display_key()).map(|e| e.by.clone());
        if let Some(fact) = oldest.and_then(|by| conv.facts.remove(&by)) {
            self.ops.push(Op::Forget { conversation: id, origin: fact.place.origin, seq: fact.place.seq });
        }
    }

    /// Bodies that are held are dropped, and what is offered no more is released.
    fn erase_held(&mut self, id: ConvId, what: Erasing) {
        let me = self.setup.user.clone();
        let Some(conv) = self.convs.get(&id) else { return };
        let unstable = conv.outbox.unstable.iter().filter(|(_, own)| {
            let r = &own.out.record;
            let key = r.acked.map(|(key, _)| key);
            !(16..=63).contains(&own.out.kind)
                && match &what {
                    Erasing::One(by) => by.user == me && by.install == r.install && by.n == r.n,
                    Erasing::Mine(user, before) => *user == me && key.is_some_and(|k| k.hlc < *before),
                }
        });
        for message in unstable.map(|(m, _)| *m).collect::<Vec<_>>() {
            self.release(id, message, MessageState::AtRisk);
        }
        self.ops.push(Op::Erase { conversation: id, what });
    }

    fn cell_changed(&mut self, id: ConvId, key: &str) {
        if id != self.own_log() {
            self.event(Event::GroupChanged { conversation: id });
            return;
        }
        if let Some(user) = key.strip_prefix("block/").and_then(|u| UserId::new(u).ok())
            && self.is_blocked(&user)
        {
            self.ops.push(Op::ReadFrom(user));
        }
        self.event(Event::SettingsChanged { key: key.to_owned() });
    }

    /// A server's fold of a conversation.
    pub(super) fn on_cells(&mut self, now: Duration, id: ConvId, cells: v1::Cells) {
        if let Some(session) = &mut self.session {
            // A region that lacks a change that is held here is not asked in a loop.
            session.cells_pauses.insert(id, now + CELLS_PAUSE);
        }
        let Some(conv) = self.convs.get_mut(&id) else { return };
        if conv.folded.as_ref() != Some(&cells) {
            self.ops.push(Op::Folded { conversation: id, cells: cells.encode_to_vec().into() });
            conv.folded = Some(cells);
            if id == self.own_log() {
                self.event(Event::SettingsChanged { key: String::new() });
            } else {
                self.event(Event::GroupChanged { conversation: id });
            }
        }
    }

    /// Whether a server's fold is or will be needed, as far as is known.
    pub(super) fn may_want_cells(&self, id: ConvId) -> bool {
        let Some(conv) = self.convs.get(&id) else { return false };
        let folds = conv.is_group() || id == self.own_log();
        folds && conv.record.sighted && !conv.record.has_left() && !conv.is_whole() && conv.is_folded_stale()
    }

    /// Whether it is time to ask a server for its fold: what is still being pulled may say it all.
    pub(super) fn wants_cells(&self, id: ConvId) -> bool {
        let pulled = |c: &Conv| c.origins.iter().all(|(o, s)| s.missing().is_empty() || c.pauses.contains_key(o));
        self.may_want_cells(id) && self.convs.get(&id).is_some_and(pulled)
    }
}
