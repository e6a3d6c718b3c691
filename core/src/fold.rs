//! What follows from the entries of a conversation's logs besides their order: who takes part, the newest value
//! of each cell, which bodies are erased.
//!
//! All of it is folded by rules that commute and may repeat (R10, R11, R16), so every region that holds the same
//! entries has the same result, in whatever order they came. A checkpoint holds it, so that a restart need not
//! read the logs from their beginning.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes};

use crate::entry::Entry;
use crate::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Seq, UserId};
use crate::kinds::{CREATE, ERASE_MINE, Own};
use crate::limits::CELLS;
use crate::membership::{Change, Member, Membership};
use crate::mutant;
use crate::pack::{
    get_bytes, get_count, get_identity, get_place, get_user, put_bytes, put_count, put_identity, put_place, put_text,
};
use crate::writes::Writes;

/// Who takes part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Members {
    /// No entry has told yet.
    #[default]
    Unknown,
    /// A direct conversation, or a user's own log (both the same): the two users, ascending.
    Pair(UserId, UserId),
    /// A group.
    Group(Box<Membership>),
}

/// What a user may read of a conversation.
#[derive(Clone, Copy, Debug)]
pub enum Reader<'a> {
    /// All of it.
    Whole,
    /// What his membership says.
    Member(&'a Member),
}

impl<'a> Reader<'a> {
    /// Of the heads held here, what he may know of.
    pub fn clip<'h>(&self, held: &'h Heads) -> Cow<'h, Heads> {
        match self {
            Self::Whole => Cow::Borrowed(held),
            Self::Member(member) => member.clip(held),
        }
    }

    /// Entries up to here are from before his time.
    pub fn from(&self) -> Option<&'a Heads> {
        match self {
            Self::Whole => None,
            Self::Member(member) => Some(member.from()).filter(|from| !from.is_empty()),
        }
    }

    /// Whether he may read an entry.
    pub fn may_read(&self, origin: Origin, seq: Seq) -> bool {
        match self {
            Self::Whole => true,
            Self::Member(member) => member.may_read(origin, seq),
        }
    }

    /// Of his membership; 1 in direct conversations.
    pub fn generation(&self) -> u64 {
        match self {
            Self::Whole => 1,
            Self::Member(member) => member.generation,
        }
    }

    /// See `store::RowRecord::state`.
    pub fn state(&self) -> u32 {
        match self {
            Self::Member(member) if !member.is_present() => crate::buckets::LEFT,
            _ => 0,
        }
    }
}

/// Bodies that are still to be erased in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Erasing {
    /// Every copy of one message.
    One(Identity),
    /// All that a user wrote before an hlc.
    Mine(UserId, u64),
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    /// Who takes part.
    pub members: Members,
    cells: BTreeMap<String, Writes<Bytes>>,
    erased: BTreeSet<Identity>,
    erased_before: BTreeMap<UserId, Writes<()>>,
    /// What an erasure asked for and the store has not done yet.
    pub erasing: BTreeSet<Erasing>,
}

impl Fold {
    /// Takes an entry.
    pub fn apply(&mut self, entry: &Entry) {
        if let Some(peer) = &entry.peer
            && self.members == Members::Unknown
        {
            let (a, b) = if entry.by.user <= *peer { (&entry.by.user, peer) } else { (peer, &entry.by.user) };
            self.members = Members::Pair(a.clone(), b.clone());
        }
        if !(CREATE..=ERASE_MINE).contains(&entry.kind) {
            return;
        }
        // What another version sequenced and this one can't read has no effect here.
        let Ok(Some(own)) = Own::read(entry.kind, &entry.body) else { return };
        match &own {
            Own::Cell(cell) => self.set(&cell.key, entry, &cell.value),
            Own::Erase { user, install, n } => {
                let by = Identity { user: user.clone(), install: install.clone(), n: *n };
                if self.erased.insert(by.clone()) {
                    self.erasing.insert(Erasing::One(by));
                }
            }
            Own::EraseMine => {
                let user = &entry.by.user;
                let known = self.erased_before(user);
                self.erased_before.entry(user.clone()).or_default().set(entry.display_key(), &entry.by, &());
                let before = self.erased_before(user);
                if known < before {
                    self.erasing.retain(|e| !matches!(e, Erasing::Mine(u, _) if u == user));
                    self.erasing.extend(before.map(|before| Erasing::Mine(user.clone(), before)));
                }
            }
            Own::Create(_) | Own::Add(_) | Own::Remove(_) | Own::Role(_) => {
                let Some(stamp) = &entry.stamp else { return };
                if self.members == Members::Unknown {
                    self.members = Members::Group(Box::default());
                }
                if let Own::Create(create) = &own
                    && !create.title.is_empty()
                {
                    // A cell as later ones are: who can't read the creation learns the title as he learns those.
                    self.set("title", entry, &Bytes::copy_from_slice(create.title.as_bytes()));
                }
                if let Members::Group(group) = &mut self.members {
                    group.apply(Change { at: entry.display_key(), by: &entry.by, cut: &stamp.cut, own: &own });
                }
            }
        }
    }

    fn set(&mut self, key: &str, entry: &Entry, value: &Bytes) {
        if let Some(cell) = self.cells.get_mut(key) {
            mutant!(CellUpdateDropped => return);
            cell.set(entry.display_key(), &entry.by, value);
        } else if self.cells.len() < CELLS {
            self.cells.entry(key.to_owned()).or_default().set(entry.display_key(), &entry.by, value);
        }
    }

    /// The newest value of a cell; an empty one is as if it had never been set.
    pub fn cell(&self, key: &str) -> Option<&Bytes> {
        self.cell_at(key).map(|(_, value)| value).filter(|value| !value.is_empty())
    }

    /// The newest writing of a cell, an empty one too.
    pub fn cell_at(&self, key: &str) -> Option<(Place, &Bytes)> {
        self.cells.get(key)?.newest()
    }

    /// All cells that are set and whose key begins so.
    pub fn cells<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, Place, &'a Bytes)> {
        let from = self.cells.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(|(key, writes)| writes.newest().map(|(at, value)| (key.as_str(), at, value)))
            .filter(|(_, _, value)| !value.is_empty())
    }

    /// Whether the body of an entry is to be erased. Bodies of tern's own kinds never are: what they say is
    /// folded.
    pub fn is_erased(&self, entry: &Entry) -> bool {
        !(16..=63).contains(&entry.kind)
            && (self.erased.contains(&entry.by)
                || self.erased_before(&entry.by.user).is_some_and(|before| entry.display_key().hlc < before))
    }

    /// The hlc before which all that a user wrote is erased. What he wrote after asking for it stays, also where that
    /// was sequenced again later.
    fn erased_before(&self, user: &UserId) -> Option<u64> {
        self.erased_before.get(user)?.newest().map(|(at, ())| at.hlc)
    }

    /// A copy was taken of a message that is held already. Where its author has erased all that he wrote before some
    /// moment, its lower copy may be from before that: it is looked at again.
    pub(crate) fn copy_taken(&mut self, entry: &Entry) {
        if let Some(before) = self.erased_before(&entry.by.user)
            && !self.is_erased(entry)
            && !(16..=63).contains(&entry.kind)
        {
            self.erasing.insert(Erasing::Mine(entry.by.user.clone(), before));
        }
    }

    /// A message was written before its author erased all that he had written: so its other copies are to go, too.
    pub(crate) fn erase_copies(&mut self, by: &Identity) {
        if self.erased.insert(by.clone()) {
            self.erasing.insert(Erasing::One(by.clone()));
        }
    }

    /// What a user may read; `None`: nothing.
    pub fn reader(&self, user: &UserId) -> Option<Reader<'_>> {
        match &self.members {
            Members::Unknown => None,
            Members::Pair(a, b) => (a == user || b == user).then_some(Reader::Whole),
            Members::Group(group) => group.member(user).filter(|m| m.is_added()).map(Reader::Member),
        }
    }

    /// All who have a row of this conversation, each once: in groups also those who have left.
    pub fn users(&self) -> Vec<UserId> {
        match &self.members {
            Members::Unknown => Vec::new(),
            Members::Pair(a, b) if a == b => vec![a.clone()],
            Members::Pair(a, b) => vec![a.clone(), b.clone()],
            Members::Group(group) => group.users().filter(|(_, m)| m.is_added()).map(|(u, _)| u.clone()).collect(),
        }
    }

    /// The group, if it is one.
    pub fn group(&self) -> Option<&Membership> {
        match &self.members {
            Members::Group(group) => Some(group),
            _ => None,
        }
    }

    /// The other user of a direct conversation.
    pub fn peer_of(&self, user: &UserId) -> Option<&UserId> {
        match &self.members {
            Members::Pair(a, b) if a == user => Some(b),
            Members::Pair(a, b) if b == user => Some(a),
            _ => None,
        }
    }

    /// The user whose own log this is, where the id says so.
    pub fn owner(&self, salt: &[u8], id: ConvId) -> Option<&UserId> {
        match &self.members {
            Members::Pair(a, b) if a == b && ConvId::own(salt, a) == id => Some(a),
            _ => None,
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match &self.members {
            Members::Unknown => out.put_u8(0),
            Members::Pair(a, b) => {
                out.put_u8(1);
                put_text(out, a.as_str());
                put_text(out, b.as_str());
            }
            Members::Group(group) => {
                out.put_u8(2);
                group.encode(out);
            }
        }
        put_count(out, self.cells.len());
        for (key, writes) in &self.cells {
            put_text(out, key);
            put_count(out, writes.iter().len());
            for (at, by, value) in writes.iter() {
                put_place(out, *at);
                put_identity(out, by);
                put_bytes(out, value);
            }
        }
        put_count(out, self.erased.len());
        self.erased.iter().for_each(|by| put_identity(out, by));
        put_count(out, self.erased_before.len());
        for (user, writes) in &self.erased_before {
            put_text(out, user.as_str());
            put_count(out, writes.iter().len());
            for (at, by, ()) in writes.iter() {
                put_place(out, *at);
                put_identity(out, by);
            }
        }
        put_count(out, self.erasing.len());
        for erasing in &self.erasing {
            match erasing {
                Erasing::One(by) => {
                    out.put_u8(0);
                    put_identity(out, by);
                }
                Erasing::Mine(user, before) => {
                    out.put_u8(1);
                    put_text(out, user.as_str());
                    out.put_u64(*before);
                }
            }
        }
    }

    pub(crate) fn decode(b: &mut Bytes) -> Option<Self> {
        let members = match b.try_get_u8().ok()? {
            0 => Members::Unknown,
            1 => Members::Pair(get_user(b)?, get_user(b)?),
            2 => Members::Group(Box::new(Membership::decode(b)?)),
            _ => return None,
        };
        let mut fold = Self { members, ..Self::default() };
        for _ in 0..get_count(b)? {
            let key = String::from_utf8(get_bytes(b)?.to_vec()).ok()?;
            let writes = fold.cells.entry(key).or_default();
            for _ in 0..get_count(b)? {
                let (at, by) = (get_place(b)?, get_identity(b)?);
                writes.set(at, &by, &get_bytes(b)?);
            }
        }
        for _ in 0..get_count(b)? {
            fold.erased.insert(get_identity(b)?);
        }
        for _ in 0..get_count(b)? {
            let writes = fold.erased_before.entry(get_user(b)?).or_default();
            for _ in 0..get_count(b)? {
                let (at, by) = (get_place(b)?, get_identity(b)?);
                writes.set(at, &by, &());
            }
        }
        for _ in 0..get_count(b)? {
            let erasing = match b.try_get_u8().ok()? {
                0 => Erasing::One(get_identity(b)?),
                1 => Erasing::Mine(get_user(b)?, b.try_get_u64().ok()?),
                _ => return None,
            };
            fold.erasing.insert(erasing);
        }
        Some(fold)
    }
}

/// Key of the cell that says whether `user` is blocked.
pub fn block_key(user: &UserId) -> String {
    format!("block/{user}")
}

/// Key of the cell that ends an install.
pub fn kick_key(install: &InstallId) -> String {
    format!("kick/{install}")
}

/// What the keys of cells that name installs begin with.
pub const DEVICE_PREFIX: &str = "device/";

/// Key of the cell that names an install.
pub fn device_key(install: &InstallId) -> String {
    format!("{DEVICE_PREFIX}{install}")
}

/// Key of the cell that ends older tokens.
pub const REVOKE_KEY: &str = "revoke";

/// Key of the cell that says who is told of the user's presence.
pub const PRESENCE_KEY: &str = "presence";

/// Which cells a conversation takes: a user's own log those of the user, a group those of the group.
pub fn is_own_key(key: &str) -> bool {
    key == REVOKE_KEY
        || key == PRESENCE_KEY
        || ["mute/", "block/", "device/", "kick/"].iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::kinds::CELL;
    use crate::wire::v1;
    use proptest::prelude::*;
    use prost::Message;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn entry(kind: u32, hlc: u64, n: u64, body: Vec<u8>) -> Entry {
        Entry {
            peer: Some(user("ann")),
            kind,
            ..Entry::text(
                Place { hlc, origin: Origin { region: 1, era: 1 }, seq: n },
                Identity { user: user("ann"), install: InstallId::new("i").unwrap(), n },
                body,
            )
        }
    }

    fn cell(hlc: u64, n: u64, key: &str, value: &[u8]) -> Entry {
        let cell = v1::Cell { key: key.to_owned(), value: Bytes::copy_from_slice(value) };
        entry(CELL, hlc, n, cell.encode_to_vec())
    }

    #[test]
    fn the_newest_writer_sets_a_cell_in_whatever_order_entries_come() {
        let (first, second) = (cell(10, 1, "block/bob", b"1"), cell(20, 2, "block/bob", b""));
        let (mut a, mut b) = (Fold::default(), Fold::default());
        a.apply(&first);
        assert_eq!(a.cell("block/bob").map(|v| &v[..]), Some(&b"1"[..]));
        a.apply(&second);
        b.apply(&second);
        b.apply(&first);
        assert_eq!(a, b);
        assert_eq!(a.cell("block/bob"), None);
        assert_eq!(a.cells("block/").count(), 0);
    }

    #[test]
    fn what_a_user_erases_are_his_messages_before_it_and_no_cells() {
        let mut fold = Fold::default();
        fold.apply(&entry(ERASE_MINE, 50, 9, Vec::new()));
        assert!(fold.is_erased(&entry(0, 49, 1, vec![1])) && !fold.is_erased(&entry(0, 51, 2, vec![1])));
        assert!(!fold.is_erased(&cell(10, 3, "mute/x", b"1")));
        let others =
            Entry { by: Identity { user: user("bob"), ..entry(0, 1, 1, vec![]).by }, ..entry(0, 1, 1, vec![]) };
        assert!(!fold.is_erased(&others));
        assert_eq!(fold.erasing.iter().collect::<Vec<_>>(), [&Erasing::Mine(user("ann"), 50)]);
    }

    proptest! {
        #[test]
        fn any_order_folds_to_the_same_and_a_checkpoint_holds_it(
            writes in proptest::collection::vec((0u8..4, 1u64..30, "[ab]", any::<u8>()), 1..20), seed: u64
        ) {
            let entries: Vec<Entry> = writes.iter().zip(1..).map(|((what, hlc, key, value), n)| match what {
                0 | 1 => cell(*hlc << 8 | n, n, key, &[*value]),
                2 => {
                    let author = Some(v1::Author { user: "ann".to_owned(), install: "i".to_owned() });
                    entry(crate::kinds::ERASE, *hlc << 8 | n, n, v1::Erase { author, n: *hlc }.encode_to_vec())
                }
                _ => entry(ERASE_MINE, *hlc << 8 | n, n, Vec::new()),
            }).collect();
            let mut shuffled = entries.clone();
            shuffled.sort_by_key(|e| (e.by.n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let (mut a, mut b) = (Fold::default(), Fold::default());
            entries.iter().for_each(|e| a.apply(e));
            shuffled.iter().for_each(|e| b.apply(e));
            prop_assert_eq!(&a, &b);
            let mut bytes = Vec::new();
            a.encode(&mut bytes);
            prop_assert_eq!(Fold::decode(&mut Bytes::from(bytes)), Some(a));
        }
    }
}
