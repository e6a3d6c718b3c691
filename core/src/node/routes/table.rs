//! Who is at one core node, in little memory.
//!
//! Problem: every core node knows the routes of all regions. A map of ids and maps takes some 600 bytes for a user with
//! one device, of which 36 say something.
//!
//! Rule: 256 shards by the first byte of the user's hash. A shard has an arena of packed routes one after the other, and
//! an open-addressed index into it: 3 bytes of place and 1 byte of the hash, which spares most looks at routes of
//! others. A change that keeps its length is made in place; any other leaves a hole, and when an eighth of an arena is
//! holes it is written anew. Shards are small, so that this, and growing, takes a moment and little memory besides. Each
//! keeps the exclusive or of its routes' hashes up to date: two tables are compared by 256 numbers.
//!
//! Why simpler ways fail: one arena for all doubles forty megabytes to add one user; hashes instead of ids can't say
//! whose presence has changed.

use super::Bind;
use super::keyed::Key;
use super::packed::{Record, canonical, put_record};

/// Shards of a table: by the first byte of a user's hash.
pub const SHARDS: usize = 256;
/// Bytes of routes in a shard, as far as the index reaches: some 100 million users in a table. Whoever is beyond is left
/// out, which is a peer's mistake.
const SHARD_BYTES: usize = (1 << PLACE_BITS) - 2;
const PLACE_BITS: u32 = 24;

/// Routes of one core node.
#[derive(Clone, Debug)]
pub struct Table {
    key: Key,
    shards: Box<[Shard]>,
    len: usize,
    scratch: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    /// 0: free; else the place in the arena, from 1, and above it a byte of the hash.
    slots: Vec<u32>,
    arena: Vec<u8>,
    /// Bytes of the arena that are holes.
    holes: usize,
    count: u32,
    sum: u64,
}

/// A user's hash.
pub type Hash = u64;

/// In which shard a user lies.
pub fn shard_of(hash: Hash) -> usize {
    usize::from((hash >> 56) as u8)
}

impl Table {
    /// An empty one.
    pub fn new(key: Key) -> Self {
        Self { key, shards: vec![Shard::default(); SHARDS].into(), len: 0, scratch: Vec::new() }
    }

    /// Users in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        let shard = |s: &Shard| s.slots.capacity() * 4 + s.arena.capacity();
        self.shards.iter().map(shard).sum::<usize>() + SHARDS * size_of::<Shard>()
    }

    /// The hash of a user.
    pub fn hash(&self, user: &str) -> Hash {
        self.key.hash(user.as_bytes())
    }

    /// A user's binds; none: he is not there.
    pub fn get(&self, user: &str) -> Option<Vec<Bind>> {
        self.get_hashed(self.hash(user), user)
    }

    /// Likewise, of a hash that is known.
    pub fn get_hashed(&self, hash: Hash, user: &str) -> Option<Vec<Bind>> {
        let shard = &self.shards[shard_of(hash)];
        let slot = shard.find(hash, user)?;
        Some(shard.record(slot)?.binds())
    }

    /// Whether a user is there.
    pub fn contains(&self, hash: Hash, user: &str) -> bool {
        self.shards[shard_of(hash)].find(hash, user).is_some()
    }

    /// A user has these binds now; none: he is gone. Whether that is news.
    pub fn set(&mut self, user: &str, binds: &[Bind]) -> bool {
        let hash = self.hash(user);
        let mut binds = binds.to_vec();
        canonical(&mut binds);
        let shard = &mut self.shards[shard_of(hash)];
        let found = shard.find(hash, user);
        if binds.is_empty() {
            if let Some(slot) = found {
                shard.remove(&self.key, slot);
                self.len -= 1;
            }
            return found.is_some();
        }
        self.scratch.clear();
        put_record(&mut self.scratch, user, &binds);
        let Some(slot) = found else {
            let added = shard.insert(&self.key, hash, &self.scratch);
            self.len += usize::from(added);
            return added;
        };
        shard.replace(&self.key, hash, slot, &self.scratch)
    }

    /// What a shard amounts to: the exclusive or of its routes' hashes, and its users.
    pub fn sum(&self, shard: usize) -> (u64, u32) {
        let shard = &self.shards[shard];
        (shard.sum, shard.count)
    }

    /// The routes of a shard, in no order that means anything.
    pub fn records(&self, shard: usize) -> impl Iterator<Item = Record<'_>> {
        let shard = &self.shards[shard];
        (0..shard.slots.len()).filter_map(|slot| shard.record(slot))
    }

    /// All users, in no order that means anything.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        (0..SHARDS).flat_map(|shard| self.records(shard)).map(|record| record.user)
    }
}

impl Shard {
    /// Where the search for a hash begins.
    fn home(&self, hash: Hash) -> usize {
        let middle = (hash >> 24) & u64::from(u32::MAX);
        usize::try_from((middle * self.slots.len() as u64) >> 32).unwrap_or(0)
    }

    fn next(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }

    fn place(slot: u32) -> Option<usize> {
        let place = slot & ((1 << PLACE_BITS) - 1);
        (place as usize).checked_sub(1)
    }

    fn bytes_at(&self, slot: usize) -> Option<&[u8]> {
        self.arena.get(Self::place(*self.slots.get(slot)?)?..)
    }

    fn record(&self, slot: usize) -> Option<Record<'_>> {
        Record::read(self.bytes_at(slot)?)
    }

    fn find(&self, hash: Hash, user: &str) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mut slot = self.home(hash);
        // The index is never full, so this comes to a free place.
        while self.slots[slot] != 0 {
            if tag(hash) == self.slots[slot] >> PLACE_BITS && Record::is_of(self.bytes_at(slot)?, user) {
                return Some(slot);
            }
            slot = self.next(slot);
        }
        None
    }

    fn insert(&mut self, key: &Key, hash: Hash, record: &[u8]) -> bool {
        if self.arena.len() - self.holes + record.len() > SHARD_BYTES {
            return false;
        }
        let needed = self.count as usize + 1;
        if needed * 4 > self.slots.len() * 3 {
            self.index(key, self.slots.len() * 5 / 4 + 8);
        }
        self.make_room(record.len());
        self.sum ^= key.hash(record);
        self.count += 1;
        self.write(hash, record);
        true
    }

    /// Appends a record to the arena and the index, in which there is room.
    fn write(&mut self, hash: Hash, record: &[u8]) {
        let mut slot = self.home(hash);
        while self.slots[slot] != 0 {
            slot = self.next(slot);
        }
        self.slots[slot] = slot_of(hash, self.arena.len());
        self.arena.extend_from_slice(record);
    }

    /// Whether the record differs from that in the slot, which it replaces then.
    fn replace(&mut self, key: &Key, hash: Hash, slot: usize, record: &[u8]) -> bool {
        let Some(old) = self.record(slot) else { return false };
        if old.bytes == record {
            return false;
        }
        let (old_len, old_hash) = (old.bytes.len(), key.hash(old.bytes));
        let Some(place) = Self::place(self.slots[slot]) else { return false };
        if old_len == record.len() {
            self.arena[place..place + old_len].copy_from_slice(record);
        } else {
            if self.arena.len() - self.holes + record.len() > SHARD_BYTES {
                return false;
            }
            self.holes += old_len;
            // Until the new record is written the slot is out of the index: the arena may be written anew.
            self.take_out(key, slot);
            self.make_room(record.len());
            self.write(hash, record);
        }
        self.sum ^= old_hash ^ key.hash(record);
        true
    }

    fn remove(&mut self, key: &Key, slot: usize) {
        let Some(old) = self.record(slot) else { return };
        let (len, hash) = (old.bytes.len(), key.hash(old.bytes));
        self.sum ^= hash;
        self.holes += len;
        self.count -= 1;
        self.take_out(key, slot);
        let shorter = self.count as usize * 3 / 2 + 8;
        if self.count == 0 {
            *self = Self::default();
        } else if shorter * 2 < self.slots.len() {
            self.index(key, shorter);
            self.compact();
        }
    }

    /// Frees a slot, and moves up those that were put off by it.
    fn take_out(&mut self, key: &Key, slot: usize) {
        let (mut free, mut slot) = (slot, self.next(slot));
        while let Some(record) = self.record(slot) {
            let home = self.home(key.hash(record.user.as_bytes()));
            // How far it lies from home, and how far the free place would.
            let length = self.slots.len();
            let distance = |to: usize| (to + length - home) % length;
            if distance(free) < distance(slot) {
                self.slots[free] = self.slots[slot];
                free = slot;
            }
            slot = self.next(slot);
        }
        self.slots[free] = 0;
    }

    /// Makes the index as long as this.
    fn index(&mut self, key: &Key, length: usize) {
        let old = std::mem::replace(&mut self.slots, vec![0; length]);
        for entry in old {
            let Some(record) = Self::place(entry).and_then(|place| Record::read(self.arena.get(place..)?)) else {
                continue;
            };
            let mut slot = self.home(key.hash(record.user.as_bytes()));
            while self.slots[slot] != 0 {
                slot = self.next(slot);
            }
            self.slots[slot] = entry;
        }
    }

    /// Sees to it that so many bytes can be appended to the arena.
    fn make_room(&mut self, bytes: usize) {
        let full = self.arena.len() + bytes > SHARD_BYTES;
        if full || self.arena.len() + bytes > self.arena.capacity() && self.holes > self.arena.len() / 8 {
            self.compact();
        }
        if self.arena.len() + bytes > self.arena.capacity() {
            self.arena.reserve_exact(bytes.max(self.arena.len() / 8));
        }
    }

    /// Writes the arena anew, without holes.
    fn compact(&mut self) {
        let live = self.arena.len() - self.holes;
        let mut arena = Vec::with_capacity(live + live / 16);
        for slot in &mut self.slots {
            let Some(record) = Self::place(*slot).and_then(|place| Record::read(self.arena.get(place..)?)) else {
                continue;
            };
            *slot = (*slot >> PLACE_BITS) << PLACE_BITS | place_bits(arena.len());
            arena.extend_from_slice(record.bytes);
        }
        self.arena = arena;
        self.holes = 0;
    }
}

/// The byte of a hash that is kept beside the place: one that says nothing about shard and slot.
fn tag(hash: Hash) -> u32 {
    u32::from((hash & 0xff) as u8)
}

fn slot_of(hash: Hash, place: usize) -> u32 {
    tag(hash) << PLACE_BITS | place_bits(place)
}

#[expect(clippy::cast_possible_truncation, reason = "arenas are no longer than what 24 bits reach")]
fn place_bits(place: usize) -> u32 {
    (place as u32 + 1) & ((1 << PLACE_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(table: &Table, model: &BTreeMap<String, Vec<Bind>>) {
        assert_eq!(table.len(), model.len());
        let mut fresh = Table::new(table.key);
        for (user, binds) in model {
            assert_eq!(table.get(user).as_ref(), Some(binds), "{user}");
            fresh.set(user, binds);
        }
        let sums = |t: &Table| (0..SHARDS).map(|s| t.sum(s)).collect::<Vec<_>>();
        assert_eq!(sums(table), sums(&fresh), "sums follow from what is there, not from how it came");
        let mut users: Vec<&str> = table.users().collect();
        users.sort_unstable();
        assert_eq!(users, model.keys().map(String::as_str).collect::<Vec<_>>());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_table_is_a_map(changes in prop::collection::vec((0u32..400, 0usize..3, 0u64..100_000), 0..2000)) {
            // All in one shard: places collide, arenas are written anew, the index grows and shrinks.
            let key = Key::of(b"salt");
            let users: Vec<String> =
                (0..).map(|i| format!("u{i}")).filter(|u| shard_of(key.hash(u.as_bytes())) == 7).take(400).collect();
            let (mut table, mut model) = (Table::new(key), BTreeMap::new());
            for (user, binds, order) in changes {
                let user = &users[user as usize];
                let binds: Vec<Bind> =
                    (0..binds as u64).map(|install| Bind { install, at_ms: order, order }).collect();
                let before = if binds.is_empty() { model.remove(user) } else { model.insert(user.clone(), binds.clone()) };
                let news = before.unwrap_or_default() != binds;
                prop_assert_eq!(table.set(user, &binds), news);
            }
            check(&table, &model);
            for user in model.keys() {
                table.set(user, &[]);
            }
            prop_assert!(table.is_empty() && table.bytes() < 40_000);
        }
    }

    #[test]
    fn many_users_come_change_and_go() {
        let (mut table, mut model) = (Table::new(Key::of(b"salt")), BTreeMap::new());
        for round in 0..3u64 {
            for i in 0..20_000u64 {
                let user = format!("user-{i}");
                let binds: Vec<Bind> = (0..(i * 7 + round * 5) % 3)
                    .map(|install| Bind { install, at_ms: 1 << 40 | i, order: 1 << (round * 9) })
                    .collect();
                table.set(&user, &binds);
                if binds.is_empty() {
                    model.remove(&user)
                } else {
                    model.insert(user, binds)
                };
            }
            check(&table, &model);
        }
    }
}
