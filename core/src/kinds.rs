//! What an entry's body is.
//!
//! 16-63 are tern's own: a server reads their bodies, and a Send of one that is not listed here is refused. All
//! other kinds are the applications': stored, shipped and shown as such, never read.

use bytes::Bytes;
use prost::Message;

use crate::codes::{Code, Refusal};
use crate::ids::{InstallId, UserId};
use crate::limits::{CELL_BYTES, CELL_KEY_BYTES, GROUP_MEMBERS, TITLE_BYTES};
use crate::wire::v1;

/// Text.
pub const TEXT: u32 = 0;
/// Creates a group: `GroupCreate`.
pub const CREATE: u32 = 16;
/// Adds members: `GroupAdd`.
pub const ADD: u32 = 17;
/// Removes members: `GroupRemove`.
pub const REMOVE: u32 = 18;
/// Changes roles: `GroupRole`.
pub const ROLE: u32 = 19;
/// Sets a cell: `Cell`.
pub const CELL: u32 = 20;
/// Erases a message: `Erase`.
pub const ERASE: u32 = 21;
/// Erases all earlier messages of its author: `EraseMine`.
pub const ERASE_MINE: u32 = 22;

/// Kinds that are tern's own.
const OWN: std::ops::RangeInclusive<u32> = 16..=63;
/// From here on an application's kinds are no messages to be counted: reactions, edits, receipts.
const UNCOUNTED: u32 = 1 << 31;

/// Whether an entry of this kind counts as unread.
pub const fn is_countable(kind: u32) -> bool {
    kind == TEXT || kind > *OWN.end() && kind < UNCOUNTED
}

/// Whether the members of a group follow from entries of this kind. They carry a stamp.
pub const fn is_membership(kind: u32) -> bool {
    matches!(kind, CREATE | ADD | REMOVE | ROLE)
}

/// A body of one of tern's own kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum Own {
    /// See [`CREATE`].
    Create(v1::GroupCreate),
    /// See [`ADD`].
    Add(v1::GroupAdd),
    /// See [`REMOVE`].
    Remove(v1::GroupRemove),
    /// See [`ROLE`].
    Role(v1::GroupRole),
    /// See [`CELL`].
    Cell(v1::Cell),
    /// See [`ERASE`].
    Erase {
        /// Whose message.
        user: UserId,
        /// Of which install.
        install: InstallId,
        /// Its count.
        n: u64,
    },
    /// See [`ERASE_MINE`].
    EraseMine,
}

impl Own {
    /// Reads the body of an entry. `Ok(None)`: the kind is an application's.
    ///
    /// # Errors
    /// `bad_change` where the kind is tern's own and the body is none of it.
    pub fn read(kind: u32, body: &Bytes) -> Result<Option<Self>, Refusal> {
        if !OWN.contains(&kind) {
            return Ok(None);
        }
        let bad = |what: &str| Refusal::new(Code::BadChange, what);
        let undecodable = |_| bad("the body is not the message that its kind says");
        let own = match kind {
            CREATE => Self::Create(v1::GroupCreate::decode(body.clone()).map_err(undecodable)?),
            ADD => Self::Add(v1::GroupAdd::decode(body.clone()).map_err(undecodable)?),
            REMOVE => Self::Remove(v1::GroupRemove::decode(body.clone()).map_err(undecodable)?),
            ROLE => Self::Role(v1::GroupRole::decode(body.clone()).map_err(undecodable)?),
            CELL => Self::Cell(v1::Cell::decode(body.clone()).map_err(undecodable)?),
            ERASE => {
                let erase = v1::Erase::decode(body.clone()).map_err(undecodable)?;
                let author = erase.author.unwrap_or_default();
                let (Ok(user), Ok(install)) = (UserId::new(&author.user), InstallId::new(&author.install)) else {
                    return Err(bad("an erasure names its message by user, install and n"));
                };
                Self::Erase { user, install, n: erase.n }
            }
            ERASE_MINE => Self::EraseMine,
            _ => return Err(bad("a kind of 16-63 that this version does not know")),
        };
        own.check().map_err(bad)?;
        Ok(Some(own))
    }

    fn check(&self) -> Result<(), &'static str> {
        let members = match self {
            Self::Create(create) if create.title.len() > TITLE_BYTES => return Err("a title of more than 256 bytes"),
            Self::Create(create) => &create.members,
            Self::Add(add) => &add.members,
            Self::Remove(remove) => &remove.members,
            Self::Role(role) => &role.members,
            Self::Cell(cell) if cell.key.is_empty() || cell.key.len() > CELL_KEY_BYTES => {
                return Err("a cell's key has 1 to 256 bytes");
            }
            Self::Cell(cell) if cell.value.len() > CELL_BYTES => return Err("a cell's value has at most 4096 bytes"),
            Self::Erase { n: 0, .. } => return Err("message 0 is none"),
            _ => return Ok(()),
        };
        if members.is_empty() || members.len() > GROUP_MEMBERS {
            return Err("a change of members names 1 to 500 users");
        }
        if members.iter().any(|m| UserId::new(&m.user).is_err()) {
            return Err("a user id has 1 to 64 bytes");
        }
        if members.iter().any(|m| m.role > 1) {
            return Err("a role is 0 (member) or 1 (admin)");
        }
        if !matches!(self, Self::Create(_))
            && members.iter().any(|m| m.generation == 0 || m.generation > MAX_GENERATION)
        {
            return Err("a membership's generation is 1 or more");
        }
        let mut users: Vec<&str> = members.iter().map(|m| m.user.as_str()).collect();
        users.sort_unstable();
        if users.windows(2).any(|two| two[0] == two[1]) {
            return Err("a change of members names each user once");
        }
        Ok(())
    }
}

/// Generations count up by one; one that a forged entry set to the end of the range would be final.
pub const MAX_GENERATION: u64 = u32::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    fn create(users: &[&str]) -> Bytes {
        let members = users.iter().map(|u| v1::GroupMember { user: (*u).to_owned(), role: 0, generation: 1 });
        v1::GroupCreate { members: members.collect(), title: "t".to_owned(), ..v1::GroupCreate::default() }
            .encode_to_vec()
            .into()
    }

    fn refused(kind: u32, body: Bytes) -> String {
        Own::read(kind, &body).unwrap_err().message
    }

    #[test]
    fn applications_kinds_are_not_read() {
        let junk = Bytes::from_static(&[0xff; 9]);
        assert_eq!(Own::read(TEXT, &junk), Ok(None));
        assert_eq!(Own::read(64, &junk), Ok(None));
        assert!(is_countable(0) && is_countable(64) && !is_countable(20) && !is_countable(1 << 31));
    }

    #[test]
    fn bodies_that_say_nothing_clear_are_refused_with_the_reason() {
        assert!(matches!(Own::read(CREATE, &create(&["a", "b"])), Ok(Some(Own::Create(_)))));
        assert!(refused(CREATE, create(&[])).contains("1 to 500"));
        assert!(refused(CREATE, create(&["a", "a"])).contains("once"));
        assert!(refused(CREATE, create(&[""])).contains("user id"));
        assert!(refused(CREATE, Bytes::from_static(&[0xff])).contains("not the message"));
        assert!(refused(63, Bytes::new()).contains("does not know"));
        let no_generation = v1::GroupAdd {
            members: vec![v1::GroupMember { user: "a".to_owned(), ..Default::default() }],
            history: false,
        };
        assert!(refused(ADD, no_generation.encode_to_vec().into()).contains("generation"));
    }
}
