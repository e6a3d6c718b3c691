//! Ids, places and revisions.

use std::fmt;
use std::sync::Arc;

use ring::digest::{Context, SHA256};

use crate::limits::ID_BYTES;

/// Why a user or install id is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Ids have at least one byte.
    #[error("the id is empty")]
    Empty,
    /// Ids have at most 64 bytes.
    #[error("the id has {0} bytes; at most {ID_BYTES} are allowed")]
    TooLong(usize),
    /// Ids are text.
    #[error("the id is not UTF-8")]
    NotUtf8,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the length.
            pub fn new(text: &str) -> Result<Self, IdError> {
                match text.len() {
                    0 => Err(IdError::Empty),
                    n if n > ID_BYTES => Err(IdError::TooLong(n)),
                    _ => Ok(Self(Arc::from(text))),
                }
            }

            /// Checks length and encoding.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
                if bytes.len() > ID_BYTES {
                    return Err(IdError::TooLong(bytes.len()));
                }
                Self::new(std::str::from_utf8(bytes).map_err(|_| IdError::NotUtf8)?)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

text_id! {
    /// A user: 1-64 bytes of UTF-8, compared byte by byte. Cheap to clone.
    UserId
}
text_id! {
    /// One installation of a client on one device: 1-64 bytes of UTF-8. Cheap to clone.
    InstallId
}

/// A conversation: 16 bytes; random for groups, derived for direct conversations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConvId(pub [u8; 16]);

impl ConvId {
    /// From the wire.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The id of the direct conversation of two users (equal ones: the notes to oneself): the first 16 bytes
    /// of SHA-256 over the deployment's salt and both ids in ascending order, each with its length before it.
    pub fn direct(salt: &[u8], a: &UserId, b: &UserId) -> Self {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        let mut hash = Context::new(&SHA256);
        for part in [salt, low.as_str().as_bytes(), high.as_str().as_bytes()] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self::first_half(hash)
    }

    /// The id of a user's own log, which holds his cells: mutes, blocks, devices. The first 16 bytes of SHA-256
    /// over "own log", the deployment's salt and his id, each with its length before it.
    pub fn own(salt: &[u8], user: &UserId) -> Self {
        let mut hash = Context::new(&SHA256);
        for part in [b"own log", salt, user.as_str().as_bytes()] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self::first_half(hash)
    }

    /// The id of a group: only its creator can make a creation that fits it. The first 16 bytes of SHA-256 over
    /// "group", his id and 16 bytes that he drew, each with its length before it.
    pub fn group(creator: &UserId, nonce: &[u8]) -> Self {
        let mut hash = Context::new(&SHA256);
        for part in [b"group", creator.as_str().as_bytes(), nonce] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self::first_half(hash)
    }

    /// The id under which a store notes that read marks of a user are to be told to other regions: that of no
    /// conversation.
    pub fn marks(salt: &[u8], user: &UserId) -> Self {
        let mut hash = Context::new(&SHA256);
        for part in [b"marks", salt, user.as_str().as_bytes()] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self::first_half(hash)
    }

    fn first_half(hash: Context) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finish().as_ref()[..16]);
        Self(id)
    }
}

impl fmt::Display for ConvId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ConvId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// A region, 1-255.
pub type Region = u8;

/// Who wrote a log: a region in one of its eras.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// 1-255.
    pub region: Region,
    /// Random, minted when a store is created, restored, or was not stopped cleanly.
    pub era: u64,
}

/// Eras whose upper half is this stand for folds: no store draws one.
const FOLDED: u64 = 0xffff_ffff << 32;

impl Origin {
    /// Stands in rows and read marks for the logs of all sealed eras of a region that began no later than its start
    /// `through`: see [`crate::eras`]. `None`: no start is that late.
    pub fn fold(region: Region, through: u64) -> Option<Self> {
        (through <= u64::from(u32::MAX)).then_some(Self { region, era: FOLDED | through })
    }

    /// Of a fold: through which start; `None`: this is a log.
    pub fn through(self) -> Option<u64> {
        (self.era & FOLDED == FOLDED).then_some(self.era & !FOLDED)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:04x}", self.region, self.era >> 48)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Position in a log, from 1, without gaps.
pub type Seq = u64;

/// Where an entry stands. The order of places is the order of display.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Hybrid logical clock, see [`crate::hlc`].
    pub hlc: u64,
    /// Whose log.
    pub origin: Origin,
    /// Position there.
    pub seq: Seq,
}

/// What a message is, wherever and however often it is stored: `n` counts the install's messages in the
/// conversation, from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Sender.
    pub user: UserId,
    /// The sender's device.
    pub install: InstallId,
    /// The device's count within the conversation.
    pub n: u64,
}

/// Revision of a user's rows within one region: `slot epoch << 30 | counter`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rev(pub u64);

impl Rev {
    const COUNTER_BITS: u32 = 30;

    /// The revision before the first of an epoch.
    pub const fn start_of(epoch: u64) -> Self {
        Self(epoch << Self::COUNTER_BITS)
    }

    /// The owner's epoch that issued it.
    pub const fn epoch(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// The next one in this epoch. A counter that is used up runs into the next epoch's range; at a thousand
    /// changes a second of one user that takes twelve days without a restart, so owners start a new epoch
    /// long before, see `node::index`.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Debug for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch(), self.0 & ((1 << Self::COUNTER_BITS) - 1))
    }
}

/// How far a client has heard of its rows in one region's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    /// Whose store, and which.
    pub store: Origin,
    /// Up to where.
    pub rev: Rev,
}

/// Up to where each origin's log is held.
pub type Heads = std::collections::BTreeMap<Origin, Seq>;

/// SHA-256 of a body.
pub fn body_hash(body: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&SHA256, body).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    #[test]
    fn ids_that_are_empty_too_long_or_not_utf8_are_refused() {
        assert_eq!(UserId::new(""), Err(IdError::Empty));
        assert_eq!(UserId::new(&"x".repeat(65)), Err(IdError::TooLong(65)));
        assert_eq!(UserId::from_bytes(&[0xff, 0xfe]), Err(IdError::NotUtf8));
        assert!(UserId::new(&"ü".repeat(32)).is_ok());
    }

    #[test]
    fn a_direct_id_does_not_depend_on_who_asks_and_lengths_keep_pairs_apart() {
        let id = |a, b| ConvId::direct(b"salt", &user(a), &user(b));
        assert_eq!(id("alice", "bob"), id("bob", "alice"));
        assert_ne!(id("ab", "c"), id("a", "bc"));
        assert_ne!(id("alice", "bob"), ConvId::direct(b"other", &user("alice"), &user("bob")));
        assert_eq!(id("alice", "bob").to_string(), "d3d7e1ca05dfe2218bacc98c1a61e540");
    }

    #[test]
    fn places_order_by_hlc_then_origin_then_seq() {
        let place = |hlc, region, era, seq| Place { hlc, origin: Origin { region, era }, seq };
        let mut places =
            vec![place(2, 1, 0, 1), place(1, 2, 0, 1), place(1, 1, 9, 1), place(1, 1, 1, 2), place(1, 1, 1, 1)];
        places.sort();
        assert_eq!(
            places,
            vec![place(1, 1, 1, 1), place(1, 1, 1, 2), place(1, 1, 9, 1), place(1, 2, 0, 1), place(2, 1, 0, 1)]
        );
    }

    #[test]
    fn a_new_epoch_is_above_every_rev_of_the_old_one() {
        let old = Rev(Rev::start_of(7).0 + 123_456);
        assert!(Rev::start_of(8) > old);
        assert_eq!(old.epoch(), 7);
    }
}
