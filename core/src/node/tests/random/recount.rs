//! What regions and devices are to show, recounted from the bare logs: slow, simple, and without a line of the
//! code that it judges.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;

use super::super::Disk;
use crate::entry::Entry;
use crate::ids::{ConvId, Heads, Identity, Origin, Place, Seq, UserId};
use crate::wire::v1;

/// One membership of a user: all that entries say of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Membership {
    /// Each add, with what lies before his time.
    adds: Vec<Heads>,
    cuts: Vec<Heads>,
    roles: Vec<(Place, Identity, u32)>,
}

impl Membership {
    pub(super) fn is_present(&self) -> bool {
        !self.adds.is_empty() && self.cuts.is_empty()
    }

    pub(super) fn may_read(&self, origin: Origin, seq: Seq) -> bool {
        let upto = |heads: &Heads| heads.get(&origin).copied().unwrap_or(0);
        self.adds.iter().any(|before| seq > upto(before))
            && (self.cuts.is_empty() || self.cuts.iter().any(|cut| seq <= upto(cut)))
    }

    pub(super) fn is_admin(&self) -> bool {
        let lowest = |by: &Identity| self.roles.iter().filter(|(_, b, _)| b == by).map(|(at, ..)| *at).min();
        self.roles.iter().map(|(_, by, role)| (lowest(by), *role)).max().is_some_and(|(_, role)| role == 1)
    }
}

/// A message: all copies of one identity.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) by: Identity,
    pub(super) kind: u32,
    pub(super) key: Place,
    pub(super) copies: BTreeSet<(Origin, Seq)>,
    pub(super) only_sender: bool,
    pub(super) erased: bool,
    /// A copy of an erasure that was sequenced later than its first hits it: where that copy came first, the body is gone.
    pub(super) may_be_erased: bool,
    /// Where it is asked for.
    pub(super) erasures: BTreeSet<(Origin, Seq)>,
}

/// A conversation, as its logs say.
pub(super) struct Recount {
    pub(super) id: ConvId,
    entries: Vec<Entry>,
    people: BTreeMap<UserId, BTreeMap<u64, Membership>>,
    pair: BTreeSet<UserId>,
}

fn named(members: &[v1::GroupMember]) -> impl Iterator<Item = (UserId, u64, u32)> + '_ {
    members.iter().map(|m| (UserId::new(&m.user).unwrap(), m.generation, m.role))
}

impl Recount {
    pub(super) fn of(disk: &Disk, id: ConvId) -> Self {
        let logs = disk.logs.iter().filter(|((conversation, _), _)| *conversation == id);
        let entries: Vec<Entry> = logs.flat_map(|(_, log)| log.iter().map(|e| (**e).clone())).collect();
        let mut recount = Self { id, entries: Vec::new(), people: BTreeMap::new(), pair: BTreeSet::new() };
        for entry in &entries {
            recount.take(entry);
        }
        recount.entries = entries;
        recount
    }

    fn take(&mut self, entry: &Entry) {
        if let Some(peer) = &entry.peer {
            self.pair.extend([peer.clone(), entry.by.user.clone()]);
        }
        let Some(stamp) = &entry.stamp else { return };
        let (at, body) = (entry.display_key(), entry.body.clone());
        // The add itself is the first that he reads.
        let mut before = stamp.cut.clone();
        if before.get(&at.origin) == Some(&at.seq) {
            before.insert(at.origin, at.seq - 1);
        }
        let mut of = |user: UserId, generation: u64, change: &dyn Fn(&mut Membership)| {
            change(self.people.entry(user).or_default().entry(generation).or_default());
        };
        match entry.kind {
            16 => {
                for (user, _, role) in named(&v1::GroupCreate::decode(body).unwrap().members) {
                    of(user, 1, &|m| {
                        m.adds.push(Heads::new());
                        m.roles.push((at, entry.by.clone(), role));
                    });
                }
            }
            17 => {
                let add = v1::GroupAdd::decode(body).unwrap();
                for (user, generation, role) in named(&add.members) {
                    of(user, generation, &|m| {
                        m.adds.push(if add.history { Heads::new() } else { before.clone() });
                        m.roles.push((at, entry.by.clone(), role));
                    });
                }
            }
            18 => {
                for (user, generation, _) in named(&v1::GroupRemove::decode(body).unwrap().members) {
                    of(user, generation, &|m| m.cuts.push(stamp.cut.clone()));
                }
            }
            19 => {
                for (user, generation, role) in named(&v1::GroupRole::decode(body).unwrap().members) {
                    of(user, generation, &|m| m.roles.push((at, entry.by.clone(), role)));
                }
            }
            kind => panic!("a stamp on kind {kind}"),
        }
    }

    pub(super) fn is_group(&self) -> bool {
        self.pair.is_empty()
    }

    /// Present members: (user, generation, whether he is an admin).
    pub(super) fn present(&self) -> Vec<(UserId, u64, bool)> {
        let newest = self.people.iter().filter_map(|(user, all)| Some((user, all.last_key_value()?)));
        newest.filter(|(_, (_, m))| m.is_present()).map(|(user, (g, m))| (user.clone(), *g, m.is_admin())).collect()
    }

    /// Everybody who takes or took part.
    pub(super) fn users(&self) -> BTreeSet<UserId> {
        let added = self.people.iter().filter(|(_, all)| all.values().any(|m| !m.adds.is_empty()));
        added.map(|(user, _)| user.clone()).chain(self.pair.iter().cloned()).collect()
    }

    pub(super) fn is_present(&self, user: &UserId) -> bool {
        self.pair.contains(user) || self.present().iter().any(|(present, ..)| present == user)
    }

    /// By his newest membership.
    pub(super) fn may_read(&self, user: &UserId, origin: Origin, seq: Seq) -> bool {
        let newest = || self.people.get(user).and_then(|all| all.last_key_value());
        self.pair.contains(user) || newest().is_some_and(|(_, m)| m.may_read(origin, seq))
    }

    /// A writing's lowest display key: a copy that was sequenced later is no later writing.
    fn written_at(&self, entry: &Entry) -> Place {
        let copies = self.entries.iter().filter(|e| e.by == entry.by && e.body_hash == entry.body_hash);
        copies.map(Entry::display_key).min().unwrap()
    }

    pub(super) fn title(&self) -> String {
        let dated = self.entries.iter().filter_map(|e| {
            let title = match e.kind {
                16 => Some(v1::GroupCreate::decode(e.body.clone()).unwrap().title).filter(|t| !t.is_empty())?,
                20 => {
                    let cell = v1::Cell::decode(e.body.clone()).unwrap();
                    (cell.key == "title").then(|| String::from_utf8(cell.value.to_vec()).unwrap())?
                }
                _ => return None,
            };
            Some((self.written_at(e), title))
        });
        dated.max().map(|(_, title)| title).unwrap_or_default()
    }

    /// The cell's newest value.
    pub(super) fn cell(&self, key: &str) -> Option<Vec<u8>> {
        let cells = self.entries.iter().filter(|e| e.kind == 20);
        let cells = cells.map(|e| (self.written_at(e), v1::Cell::decode(e.body.clone()).unwrap()));
        cells.filter(|(_, c)| c.key == key).max_by_key(|(at, _)| *at).map(|(_, c)| c.value.to_vec())
    }

    /// All keys that were ever set.
    pub(super) fn keys(&self) -> BTreeSet<String> {
        let cells = self.entries.iter().filter(|e| e.kind == 20);
        cells.map(|e| v1::Cell::decode(e.body.clone()).unwrap().key).collect()
    }

    fn erasures_of(&self, told: &Told) -> BTreeSet<(Origin, Seq)> {
        let by = &told.by;
        let asks = |e: &&Entry| match e.kind {
            21 => {
                let erase = v1::Erase::decode(e.body.clone()).unwrap();
                let author = erase.author.unwrap();
                author.user == by.user.as_str() && author.install == by.install.as_str() && erase.n == by.n
            }
            22 => e.by.user == by.user && told.key.hlc < self.written_at(e).hlc,
            _ => false,
        };
        let asking = self.entries.iter().filter(|_| !(16..=63).contains(&told.kind)).filter(asks);
        asking.map(|e| (e.place.origin, e.place.seq)).collect()
    }

    /// All messages, in the order of display.
    pub(super) fn messages(&self) -> Vec<Told> {
        let mut all: BTreeMap<(Identity, [u8; 32]), Told> = BTreeMap::new();
        for e in &self.entries {
            let told = all.entry((e.by.clone(), e.body_hash)).or_insert_with(|| Told {
                by: e.by.clone(),
                kind: e.kind,
                key: e.display_key(),
                copies: BTreeSet::new(),
                only_sender: false,
                erased: false,
                may_be_erased: false,
                erasures: BTreeSet::new(),
            });
            told.key = told.key.min(e.display_key());
            told.copies.insert((e.place.origin, e.place.seq));
            told.only_sender |= e.only_sender;
        }
        let mut all: Vec<Told> = all.into_values().collect();
        for told in &mut all {
            told.erasures = self.erasures_of(told);
            told.erased = !told.erasures.is_empty();
            let later = |e: &Entry| e.kind == 22 && e.by.user == told.by.user && told.key.hlc < e.display_key().hlc;
            told.may_be_erased = told.erased || !(16..=63).contains(&told.kind) && self.entries.iter().any(later);
        }
        all.sort_by_key(|told| told.key);
        all
    }

    /// The entry at a place.
    pub(super) fn entry(&self, origin: Origin, seq: Seq) -> Option<&Entry> {
        self.entries.iter().find(|e| (e.place.origin, e.place.seq) == (origin, seq))
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

/// Whether a user may be told an entry by a region that holds this.
pub(in super::super) fn may_be_told(disk: &Disk, id: ConvId, user: &UserId, entry: &Entry) -> bool {
    if entry.only_sender && entry.by.user != *user {
        return false;
    }
    match &entry.peer {
        Some(peer) => peer == user || entry.by.user == *user,
        None => Recount::of(disk, id).may_read(user, entry.place.origin, entry.place.seq),
    }
}
