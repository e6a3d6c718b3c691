//! Where tickets lie: bytes in the order they came, and a table of places by name.
//!
//! An edge keeps tens of thousands of tickets of about a hundred bytes, so what is around each of them counts: in a map of
//! boxed values it was twice as much as they are themselves. Here a ticket costs its name, two bytes for its length, and
//! about nine in the table. The oldest lies in front and gives way; one that was used is overwritten and keeps its place
//! until those before it have gone, so that nothing is ever moved.

use std::collections::VecDeque;

use hashbrown::HashTable;

/// Bytes of a session's name, as rustls draws them.
pub(super) const NAME_BYTES: usize = 32;
/// A session that is larger is not kept. Those of clients without certificates have 73 bytes, and the names of the server
/// and of the protocol.
pub(super) const SESSION_BYTES: usize = 512;
/// Places are numbers of 32 bits.
const MOST: usize = 4_000_000;
/// In front of each: its name and its length.
const HEAD_BYTES: usize = NAME_BYTES + 2;
/// In a length: it was used.
const USED: u16 = 1 << 15;
/// The ring grows by a sixteenth, and by no less than this: doubling would leave half of it empty.
const GROWTH_BYTES: usize = 4096;

pub(super) type Name = [u8; NAME_BYTES];

/// See the module.
#[derive(Default)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    /// The place of the first byte. Places go on by one a byte and start again after 2^32.
    front: u32,
    /// Tickets in `bytes`, those included that were used.
    records: usize,
    /// Places of those that may be used.
    places: HashTable<u32>,
}

/// The server draws names, and nobody else's are kept, so they spread by themselves.
fn hash(name: &Name) -> u64 {
    name.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn name_at(bytes: &VecDeque<u8>, at: usize) -> Name {
    let mut name = [0; NAME_BYTES];
    name.iter_mut().zip(bytes.range(at..)).for_each(|(to, from)| *to = *from);
    name
}

impl Ring {
    /// Tickets that may be used.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of memory that are reserved for it.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.places.allocation_size()
    }

    /// Where in `bytes` a place is.
    fn at(&self, place: u32) -> usize {
        place.wrapping_sub(self.front) as usize
    }

    fn length_at(&self, at: usize) -> u16 {
        let byte = |n| self.bytes.get(at + NAME_BYTES + n).copied().unwrap_or_default();
        u16::from_be_bytes([byte(0), byte(1)])
    }

    /// Keeps one more; of more than `most`, or than four millions, the oldest are forgotten. False: it is too large, or its
    /// name is taken.
    pub(super) fn put(&mut self, name: &Name, session: &[u8], most: usize) -> bool {
        let Some(length) = u16::try_from(session.len()).ok().filter(|_| session.len() <= SESSION_BYTES) else {
            return false;
        };
        if most == 0 || self.place(name).is_some() {
            return false;
        }
        while self.records >= most.min(MOST) {
            self.pop();
        }
        let need = HEAD_BYTES + session.len();
        if self.bytes.capacity() - self.bytes.len() < need {
            self.bytes.reserve_exact(need.max(self.bytes.len() / 16).max(GROWTH_BYTES));
        }
        // At most 4,000,000 of 546 bytes: it fits.
        let place = self.front.wrapping_add(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        self.bytes.extend(name);
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(session);
        self.records += 1;
        let Self { bytes, front, places, .. } = self;
        places.insert_unique(hash(name), place, |place| hash(&name_at(bytes, place.wrapping_sub(*front) as usize)));
        true
    }

    fn place(&self, name: &Name) -> Option<u32> {
        let same = |place: &u32| self.bytes.range(self.at(*place)..).take(NAME_BYTES).eq(name);
        self.places.find(hash(name), same).copied()
    }

    fn forget(&mut self, name: &Name, place: u32) {
        if let Ok(entry) = self.places.find_entry(hash(name), |other| *other == place) {
            entry.remove();
        }
    }

    /// Takes it out: it can't be had again.
    pub(super) fn take(&mut self, name: &Name) -> Option<Vec<u8>> {
        let place = self.place(name)?;
        self.forget(name, place);
        let at = self.at(place);
        let length = self.length_at(at);
        let from = at + HEAD_BYTES;
        let session = self.bytes.range(from..from + usize::from(length)).copied().collect();
        // Its secret is of no use to anybody but a thief.
        self.bytes.range_mut(from..from + usize::from(length)).for_each(|byte| *byte = 0);
        let marked = (length | USED).to_be_bytes();
        self.bytes.range_mut(at + NAME_BYTES..from).zip(marked).for_each(|(to, byte)| *to = byte);
        while self.records > 0 && self.length_at(0) & USED != 0 {
            self.pop();
        }
        Some(session)
    }

    /// Takes out the first record: name and session, if it may be used.
    pub(super) fn pop(&mut self) -> Option<(Name, Vec<u8>)> {
        self.records = self.records.checked_sub(1)?;
        let name = name_at(&self.bytes, 0);
        let length = self.length_at(0);
        let usable = length & USED == 0;
        if usable {
            self.forget(&name, self.front);
        }
        let end = HEAD_BYTES + usize::from(length & !USED);
        let session = self.bytes.drain(..end).skip(HEAD_BYTES).collect();
        self.front = self.front.wrapping_add(u32::try_from(end).unwrap_or(0));
        usable.then_some((name, session))
    }

    /// Takes out all that may be used, the oldest first.
    pub(super) fn drain(mut self) -> impl Iterator<Item = (Name, Vec<u8>)> {
        std::iter::from_fn(move || (self.records > 0).then(|| self.pop())).flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn name(n: u32) -> Name {
        let mut name = [0; NAME_BYTES];
        name.iter_mut().zip(n.wrapping_mul(2_654_435_761).to_le_bytes().iter().cycle()).for_each(|(to, b)| *to = *b);
        name
    }

    /// What rustls gives for an edge with a long name: see `a_handshake_leaves_three_tickets_of_73_bytes_and_two_names`.
    #[test]
    fn forty_thousand_tickets_take_no_more_than_180_bytes_each_however_many_came_before() {
        const MANY: usize = 40_000;
        let mut ring = Ring::default();
        for n in 0..3 * MANY {
            assert!(ring.put(&name(u32::try_from(n).unwrap()), &[7; 116], MANY));
            if n == MANY || n + 1 == 3 * MANY {
                let each = ring.memory() / ring.len();
                assert!(each <= 180, "{each} bytes each");
            }
        }
        assert_eq!(ring.len(), MANY);
    }

    #[test]
    fn it_keeps_what_a_list_keeps_over_every_wrap_of_its_places() {
        const MOST: usize = 50;
        let mut rng = StdRng::seed_from_u64(1);
        // So that places soon start again at 0.
        let mut ring = Ring { front: u32::MAX - 20_000, ..Ring::default() };
        let mut list: VecDeque<(u32, Option<Vec<u8>>)> = VecDeque::new();
        let (mut next, mut hits) = (0, 0);
        for _ in 0..20_000 {
            if rng.random_bool(0.6) {
                let session: Vec<u8> = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
                assert!(ring.put(&name(next), &session, MOST));
                assert!(!ring.put(&name(next), &[1], MOST), "its name is taken");
                list.push_back((next, Some(session)));
                next += 1;
                if list.len() > MOST {
                    list.pop_front();
                }
            } else {
                let wanted = next.saturating_sub(rng.random_range(0..60));
                let kept = list.iter_mut().find(|(n, _)| *n == wanted).and_then(|(_, session)| session.take());
                hits += usize::from(kept.is_some());
                assert_eq!(ring.take(&name(wanted)), kept);
                while list.front().is_some_and(|(_, session)| session.is_none()) {
                    list.pop_front();
                }
            }
            assert_eq!(ring.len(), list.iter().filter(|(_, session)| session.is_some()).count());
        }
        assert!(hits > 1000 && ring.front < 1 << 31, "{hits} at {}", ring.front);
        let left: BTreeMap<Name, Vec<u8>> = ring.drain().collect();
        let kept = list.into_iter().filter_map(|(n, session)| session.map(|session| (name(n), session)));
        assert_eq!(left, kept.collect());
    }
}
