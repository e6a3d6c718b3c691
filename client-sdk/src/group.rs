//! Groups as an application sees them.

use tern_core::client::{GroupInfo, GroupOptions, GroupRefused, Machine, MessageId};
use tern_core::ids::{ConvId, UserId};
use tern_core::kinds::{self, Own};
use tern_core::membership::Role;

use crate::client::{CallError, Client, Conversation, Which};
use crate::{Message, shared::Shared};

/// Why a change of a group was not made. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// What can be told without asking a server.
    #[error(transparent)]
    Refused(#[from] GroupRefused),
    /// The store failed, or the client is closed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// What an entry of a group changed, for display in its timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The group was made, with this title and these members.
    Created {
        /// May be empty.
        title: String,
        /// The creator included.
        members: Vec<String>,
    },
    /// Users were added.
    Added(Vec<String>),
    /// Users were removed, or, where it is the author, left.
    Removed(Vec<String>),
    /// Users became admins.
    Promoted(Vec<String>),
    /// Users became plain members.
    Demoted(Vec<String>),
    /// The title was changed; empty: taken away.
    Titled(String),
    /// Something that needs no line in a timeline: an erasure, or what a later version does.
    Other,
}

impl Changed {
    /// What a message of tern's own kinds says; `None`: it is an application's message.
    pub fn read(message: &Message) -> Option<Self> {
        if !(16..=63).contains(&message.kind) {
            return None;
        }
        let users = |members: &[tern_core::wire::v1::GroupMember]| members.iter().map(|m| m.user.clone()).collect();
        Some(match Own::read(message.kind, &message.body) {
            Ok(Some(Own::Create(c))) => Self::Created { title: c.title.clone(), members: users(&c.members) },
            Ok(Some(Own::Add(a))) => Self::Added(users(&a.members)),
            Ok(Some(Own::Remove(r))) => Self::Removed(users(&r.members)),
            Ok(Some(Own::Role(r))) if r.members.iter().all(|m| m.role == 1) => Self::Promoted(users(&r.members)),
            Ok(Some(Own::Role(r))) => Self::Demoted(users(&r.members)),
            Ok(Some(Own::Cell(c))) if message.kind == kinds::CELL && c.key == "title" => {
                Self::Titled(String::from_utf8_lossy(&c.value).into_owned())
            }
            _ => Self::Other,
        })
    }
}

impl Client {
    /// Makes a group of this user, who is its admin, and `members`. Works offline: messages may follow at once.
    ///
    /// # Errors
    /// Where the title is longer than 256 bytes, there would be more than 500 members, or the outbox is full.
    pub fn create_group(
        &self,
        title: &str,
        members: &[UserId],
        options: GroupOptions,
    ) -> Result<Conversation, GroupError> {
        let wall_ms = self.shared().env.clock.wall_ms();
        let made = self.shared().act(|m, now| m.create_group(now, title, members, options, wall_ms));
        let id = made.map_err(CallError::from)??;
        Ok(Conversation { handle: self.handle.clone(), which: Which::Id(id) })
    }
}

fn change(
    shared: &Shared,
    act: impl FnOnce(&mut Machine, std::time::Duration, u64) -> Result<MessageId, GroupRefused>,
) -> Result<MessageId, GroupError> {
    let wall_ms = shared.env.clock.wall_ms();
    Ok(shared.act(|m, now| act(m, now, wall_ms)).map_err(CallError::from)??)
}

/// Groups. Each change is in the outbox when its call returns, and shown at once, marked as pending; if a server
/// refuses it, [`crate::Event::ChangeRefused`] tells, and it is undone.
impl Conversation {
    /// Title and members, as known on this device; `None`: it is no group.
    ///
    /// # Errors
    /// Where the client is closed.
    pub fn group(&self) -> Result<Option<GroupInfo>, CallError> {
        let id: ConvId = self.id();
        Ok(self.shared().look(|machine, _| Ok(machine.group(id)))?)
    }

    /// Adds users. With `history` they may read what was written before.
    ///
    /// # Errors
    /// See [`GroupRefused`].
    pub fn add(&self, users: &[UserId], history: bool) -> Result<MessageId, GroupError> {
        let id = self.id();
        change(self.shared(), |m, now, wall| m.group_add(now, id, users, history, wall))
    }

    /// Removes users; they keep what was written up to then.
    ///
    /// # Errors
    /// See [`GroupRefused`].
    pub fn remove(&self, users: &[UserId]) -> Result<MessageId, GroupError> {
        let id = self.id();
        change(self.shared(), |m, now, wall| m.group_remove(now, id, users, wall))
    }

    /// Leaves the group: what was written up to then stays readable.
    ///
    /// # Errors
    /// See [`GroupRefused`].
    pub fn leave(&self) -> Result<MessageId, GroupError> {
        let id = self.id();
        change(self.shared(), |m, now, wall| m.group_leave(now, id, wall))
    }

    /// Makes a member an admin, or an admin a plain member.
    ///
    /// # Errors
    /// See [`GroupRefused`].
    pub fn set_role(&self, user: &UserId, role: Role) -> Result<MessageId, GroupError> {
        let id = self.id();
        change(self.shared(), |m, now, wall| m.group_role(now, id, user, role, wall))
    }

    /// Gives the group a title of at most 256 bytes; an empty one takes it away.
    ///
    /// # Errors
    /// See [`GroupRefused`].
    pub fn set_title(&self, title: &str) -> Result<MessageId, GroupError> {
        let id = self.id();
        change(self.shared(), |m, now, wall| m.group_title(now, id, title, wall))
    }
}
