//! Slots: what a core node of a region owns.
//!
//! Problem: a region's conversations and users are shared out among its core nodes, and each must have exactly one
//! owner, whoever is asked.
//!
//! Rule: each conversation lies in one of [`SLOTS`] slots, by a hash of its id; a user lies in the slot of his own log,
//! so that who lets his devices in has it at hand. The number of slots never changes. A slot is a unit of ownership and
//! of nothing else: order and queues are per conversation and per user.
//!
//! Why simpler ways fail: sharing out nodes by a hash over their number moves nearly everything when one is added;
//! owning single conversations needs a row for each.

use ring::digest::{Context, SHA256};

use crate::ids::{ConvId, UserId};

/// Slots of a region.
pub const SLOTS: u16 = 4096;

/// Slots are owned by so many at a time: a node's death is then some tens of conditional writes for its heirs, not some
/// thousand.
pub const SLOTS_PER_SHARE: u16 = 16;

/// Shares of a region.
pub const SHARES: u16 = SLOTS / SLOTS_PER_SHARE;

/// Neighbouring slots that always have one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u16);

impl Share {
    /// From a number; `None` where there is no such share.
    pub fn new(number: u16) -> Option<Self> {
        (number < SHARES).then_some(Self(number))
    }

    /// Its number, 0..[`SHARES`].
    pub fn number(self) -> u16 {
        self.0
    }

    /// What lies in it, ascending.
    pub fn slots(self) -> impl Iterator<Item = Slot> {
        (self.0 * SLOTS_PER_SHARE..(self.0 + 1) * SLOTS_PER_SHARE).map(Slot)
    }

    /// All of them, ascending.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SHARES).map(Self)
    }
}

/// A slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// From a number; `None` where there is no such slot.
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// Where a conversation lies: the first 12 bits of SHA-256 over "conversation" and its id. Clients choose ids of
    /// groups, so their own bits may be uneven.
    pub fn of(conversation: ConvId) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(b"conversation");
        hash.update(&conversation.0);
        let hash = hash.finish();
        let [high, low, ..] = hash.as_ref() else { return Self(0) };
        Self(u16::from_be_bytes([*high, *low]) >> 4)
    }

    /// Where a user lies, his rows and devices: in the slot of his own log.
    pub fn of_user(salt: &[u8], user: &UserId) -> Self {
        Self::of(ConvId::own(salt, user))
    }

    /// Its number, 0..[`SLOTS`].
    pub fn number(self) -> u16 {
        self.0
    }

    /// With which others it is owned.
    pub fn share(self) -> Share {
        Share(self.0 / SLOTS_PER_SHARE)
    }

    /// All of them, ascending.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_things_lie_is_pinned() {
        let alice = UserId::new("alice").unwrap();
        assert_eq!(Slot::of(ConvId([9; 16])).number(), 3366);
        assert_eq!(Slot::of_user(b"salt", &alice), Slot::of(ConvId::own(b"salt", &alice)));
        assert_eq!((Slot::new(4095).map(Slot::number), Slot::new(4096)), (Some(4095), None));
        assert_eq!(Slot::all().count(), 4096);
        assert!(Share::all().flat_map(Share::slots).eq(Slot::all()));
        assert!(Share::all().all(|share| share.slots().all(|slot| slot.share() == share)));
    }

    #[test]
    fn no_slot_has_much_more_than_its_share() {
        let mut count = vec![0u32; usize::from(SLOTS)];
        for i in 0..40_960u32 {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&i.to_be_bytes());
            count[usize::from(Slot::of(ConvId(id)).number())] += 1;
        }
        // Ten on average: thirty would be one in a hundred million.
        assert!(count.iter().all(|n| *n < 30), "{:?}", count.iter().max());
    }
}
