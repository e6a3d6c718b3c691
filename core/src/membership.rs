//! Who is in a group (R10).
//!
//! Problem: members are added, removed and promoted in several regions at once, and the changes reach every
//! region, and every device, in another order.
//!
//! Rule: a membership is (user, generation). Adding names a new generation; removing and promoting name the one
//! they mean; removal is final within it; the highest generation counts. Of two removals the cuts merge by
//! maximum, of two adds what may be read merges to more; the role is the one set last by (hlc, origin, seq), where a
//! change that was sequenced twice counts at its lower place.
//! So applying commutes, and may repeat. Authority is checked once, where an entry is sequenced.
//!
//! Why simpler ways fail: "the last change wins" lets a promotion that was written while the user was kicked
//! bring him back; a generation chosen where the add is sequenced differs when the same add is sent again in
//! another region.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::{Buf, BufMut};

use crate::codes::{Code, Refusal};
use crate::ids::{Heads, Identity, Origin, Place, UserId};
use crate::kinds::{MAX_GENERATION, Own};
use crate::limits::GROUP_MEMBERS;
use crate::mutants::{Mutant, on};
use crate::pack::{
    get_count, get_heads, get_identity, get_place, get_user, put_count, put_heads, put_identity, put_place, put_text,
};
use crate::wire::v1;
use crate::writes::Writes;
use crate::{mutant, mutated};

/// What a member may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Writes and reads, and may leave.
    #[default]
    Member,
    /// Adds, removes and promotes as well, and erases others' messages.
    Admin,
}

impl Role {
    fn from_wire(role: u32) -> Self {
        if role == 1 { Self::Admin } else { Self::Member }
    }
}

/// The newest membership of a user that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Which one; from 1.
    pub generation: u64,
    /// An add of it is known. A removal or promotion may come before.
    added: bool,
    /// Readable from here on; empty = all.
    from: Heads,
    /// Up to where he may read, once he is removed.
    cut: Option<Heads>,
    roles: Writes<Role>,
}

impl Member {
    /// Added, and not removed.
    pub fn is_present(&self) -> bool {
        self.added && self.cut.is_none()
    }

    /// Whether an add of it is known.
    pub fn is_added(&self) -> bool {
        self.added
    }

    /// Entries up to here are from before his time.
    pub fn from(&self) -> &Heads {
        &self.from
    }

    /// What he may do while he is present.
    pub fn role(&self) -> Role {
        self.roles.newest().map_or(Role::Member, |(_, role)| *role)
    }

    /// Of what is held: up to where he may read.
    pub fn clip<'a>(&self, held: &'a Heads) -> Cow<'a, Heads> {
        match &self.cut {
            _ if !self.added => Cow::Owned(Heads::new()),
            None => Cow::Borrowed(held),
            Some(cut) => Cow::Owned(
                held.iter()
                    .filter_map(|(o, seq)| Some((*o, (*seq).min(*cut.get(o)?))))
                    .filter(|(_, seq)| *seq > 0)
                    .collect(),
            ),
        }
    }

    /// Whether he may read an entry.
    pub fn may_read(&self, origin: Origin, seq: u64) -> bool {
        let bound = |heads: &Heads| heads.get(&origin).copied().unwrap_or(0);
        self.added && seq > bound(&self.from) && self.cut.as_ref().is_none_or(|cut| seq <= bound(cut))
    }

    fn renew(&mut self, generation: u64) {
        if generation > self.generation {
            *self = Self { generation, ..Self::default() };
        }
    }

    fn add(&mut self, from: &Heads) {
        if self.added {
            // Two regions added him at once: he may read what either allows.
            self.from.retain(|o, _| from.contains_key(o));
            for (origin, seq) in &mut self.from {
                *seq = (*seq).min(from[origin]);
            }
        } else {
            self.added = true;
            self.from.clone_from(from);
        }
    }

    fn remove(&mut self, at: &Heads) {
        let cut = self.cut.get_or_insert_with(Heads::new);
        for (origin, seq) in at {
            let bound = cut.entry(*origin).or_default();
            *bound = mutated!(LastCutWins => *seq; (*bound).max(*seq));
        }
    }
}

/// The members of a group, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    users: BTreeMap<UserId, Member>,
    created: bool,
    members_add: bool,
    present: usize,
    /// The newest membership entry, by display key.
    newest: Option<(Place, Identity)>,
}

/// A membership entry, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Its display key: copies of one entry agree on the lowest.
    pub at: Place,
    /// Who made it.
    pub by: &'a Identity,
    /// What the sequencing region held, the entry itself included.
    pub cut: &'a Heads,
    /// What it says.
    pub own: &'a Own,
}

impl Membership {
    /// Whether the group's creation is known.
    pub fn is_created(&self) -> bool {
        self.created
    }

    /// Present members.
    pub fn present(&self) -> usize {
        self.present
    }

    /// All users of whom something is known, removed ones included.
    pub fn users(&self) -> impl Iterator<Item = (&UserId, &Member)> {
        self.users.iter()
    }

    /// What is known of a user.
    pub fn member(&self, user: &UserId) -> Option<&Member> {
        self.users.get(user)
    }

    /// Whether a user is in the group.
    pub fn is_present(&self, user: &UserId) -> bool {
        self.users.get(user).is_some_and(Member::is_present)
    }

    /// The generation that an add of this user is to name.
    pub fn next_generation(&self, user: &UserId) -> u64 {
        self.users.get(user).map_or(1, |m| m.generation + 1)
    }

    /// The newest membership entry: by display key, and by identity.
    pub fn newest(&self) -> Option<&(Place, Identity)> {
        self.newest.as_ref()
    }

    /// Whether any member may add others.
    pub fn members_add(&self) -> bool {
        self.members_add
    }

    /// Applies an entry. Commutes, and may repeat. Kinds that are no membership change nothing.
    pub fn apply(&mut self, change: Change<'_>) {
        let Change { at, by, cut, own } = change;
        mutant!(AuthorityCheckedAgain => if self.created && self.authorize(&by.user, own).is_err() { return; });
        let (members, everything) = match own {
            Own::Create(create) => {
                self.created = true;
                self.members_add |= create.members_add;
                (&create.members, true)
            }
            Own::Add(add) => (&add.members, add.history),
            Own::Remove(remove) => (&remove.members, true),
            Own::Role(role) => (&role.members, true),
            _ => return,
        };
        // The entry itself is the first that a new member may read.
        let mut from = if everything { Heads::new() } else { cut.clone() };
        if let Some(seq) = from.get_mut(&at.origin)
            && *seq == at.seq
        {
            *seq -= 1;
        }
        for named in members {
            let Ok(user) = UserId::new(&named.user) else { continue };
            let generation = if matches!(own, Own::Create(_)) { 1 } else { named.generation };
            if generation == 0 || generation > MAX_GENERATION {
                continue;
            }
            let member = self.users.entry(user).or_default();
            if generation < member.generation {
                continue;
            }
            let before = member.is_present();
            member.renew(generation);
            match own {
                Own::Create(_) | Own::Add(_) => member.add(&from),
                Own::Remove(_) => member.remove(cut),
                Own::Role(_) if on(Mutant::RemovalNotFinal) => member.cut = None,
                _ => {}
            }
            if !matches!(own, Own::Remove(_)) {
                member.roles.set(at, by, &Role::from_wire(named.role));
            }
            self.present = self.present + usize::from(member.is_present()) - usize::from(before);
        }
        if self.newest.as_ref().is_none_or(|(place, newest)| (at, by) > (*place, newest)) {
            self.newest = Some((at, by.clone()));
        }
    }

    /// Whether `user` may make this change here and now. Nothing is applied.
    ///
    /// # Errors
    /// `not_allowed` where only an admin may, `group_full` above 500 members, `bad_change` where the change names
    /// what is not so.
    pub fn authorize(&self, user: &UserId, own: &Own) -> Result<(), Refusal> {
        let no = |code, text: &str| Err(Refusal::new(code, text));
        // A group whose admins have all left is everyone's.
        let admin = self.is_admin(user) || !self.users.values().any(|m| m.is_present() && m.role() == Role::Admin);
        match own {
            Own::Create(create) => {
                if self.created {
                    return no(Code::BadChange, "the group is created already");
                }
                if !create.members.iter().any(|m| m.user == user.as_str()) {
                    return no(Code::BadChange, "who creates a group is in it");
                }
            }
            Own::Add(add) => {
                if !admin && (!self.members_add || add.members.iter().any(|m| m.role != 0)) {
                    return no(Code::NotAllowed, "only an admin may do that in this group");
                }
                if self.present + add.members.len() > GROUP_MEMBERS {
                    return no(Code::GroupFull, "a group has at most 500 members");
                }
                if add
                    .members
                    .iter()
                    .any(|m| self.differs(m, |known, named| named > known || on(Mutant::GenerationNotRaised)))
                {
                    return no(Code::BadChange, "an add names the user's next generation");
                }
            }
            Own::Remove(remove) => {
                if !admin && remove.members.iter().any(|m| m.user != user.as_str()) {
                    return no(Code::NotAllowed, "only an admin may do that in this group");
                }
                if remove.members.iter().any(|m| self.differs(m, |known, named| named == known)) {
                    return no(Code::BadChange, "a removal names a member and his generation");
                }
            }
            Own::Role(role) => {
                if !admin {
                    return no(Code::NotAllowed, "only an admin may do that in this group");
                }
                if role.members.iter().any(|m| self.differs(m, |known, named| named == known)) {
                    return no(Code::BadChange, "a promotion names a member and his generation");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn differs(&self, named: &v1::GroupMember, fits: impl Fn(u64, u64) -> bool) -> bool {
        let known = UserId::new(&named.user).ok().and_then(|u| self.users.get(&u)).map_or(0, |m| m.generation);
        !fits(known, named.generation)
    }

    /// Whether `user` is an admin.
    pub fn is_admin(&self, user: &UserId) -> bool {
        self.users.get(user).is_some_and(|m| m.is_present() && m.role() == Role::Admin)
    }

    /// For the conversation's checkpoint.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.created) | u8::from(self.members_add) << 1);
        put_count(out, self.users.len());
        for (user, m) in &self.users {
            put_text(out, user.as_str());
            out.put_u64(m.generation);
            out.put_u8(u8::from(m.added) | u8::from(m.cut.is_some()) << 1);
            put_heads(out, &m.from);
            if let Some(cut) = &m.cut {
                put_heads(out, cut);
            }
            put_count(out, m.roles.iter().len());
            for (at, by, role) in m.roles.iter() {
                put_place(out, *at);
                put_identity(out, by);
                out.put_u8(u8::from(*role == Role::Admin));
            }
        }
        match &self.newest {
            None => out.put_u8(0),
            Some((at, by)) => {
                out.put_u8(1);
                put_place(out, *at);
                put_identity(out, by);
            }
        }
    }

    /// From a checkpoint; `None` where the bytes are none.
    pub(crate) fn decode(b: &mut bytes::Bytes) -> Option<Self> {
        let flags = b.try_get_u8().ok()?;
        let mut all = Self { created: flags & 1 != 0, members_add: flags & 2 != 0, ..Self::default() };
        for _ in 0..get_count(b)? {
            let user = get_user(b)?;
            let generation = b.try_get_u64().ok()?;
            let flags = b.try_get_u8().ok()?;
            let from = get_heads(b)?;
            let cut = if flags & 2 != 0 { Some(get_heads(b)?) } else { None };
            let mut roles = Writes::default();
            for _ in 0..get_count(b)? {
                let (at, by) = (get_place(b)?, get_identity(b)?);
                roles.set(at, &by, &Role::from_wire(u32::from(b.try_get_u8().ok()?)));
            }
            let member = Member { generation, added: flags & 1 != 0, from, cut, roles };
            all.present += usize::from(member.is_present());
            all.users.insert(user, member);
        }
        if b.try_get_u8().ok()? == 1 {
            let at = get_place(b)?;
            all.newest = Some((at, get_identity(b)?));
        }
        Some(all)
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
