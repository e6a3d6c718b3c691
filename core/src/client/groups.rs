//! Groups: what their members do, and what a region is given that lacks them (R10).
//!
//! *Problem.* A group is created and changed offline, in any region, by several at once; and a send can reach a
//! region that has not heard of the group, or of the sender's membership.
//!
//! *Rule.* A group's id follows from its creator and 16 random bytes, its creation is message 1, and everything
//! else may follow at once. A Send names the newest membership entry held until the region has acked something of
//! the group on this connection. A region that lacks it says so, and is given all membership entries held, with
//! the receipts that prove them; then what it refused is sent again.
//!
//! *Why the simpler ways fail.* Waiting for the region that has the creation: it may be gone, and the group with
//! it. Taking any refusal as final: the same message may be durable in the region it went to first.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use rand::Rng;

use super::data::MessageId;
use super::effects::{Event, Outbound, SendRefused};
use super::facts::{TITLE, View};
use super::limits::{GIVE_PAUSE, GIVE_PAUSE_MAX, OFFERS_IN_FLIGHT};
use super::machine::Machine;
use super::session::Request;
use crate::edge_api::{MembershipOffer, Named, SendRequest};
use crate::ids::{ConvId, Identity, UserId};
use crate::kinds::{ADD, CELL, CREATE, REMOVE, ROLE, is_membership};
use crate::limits::{GROUP_MEMBERS, TITLE_BYTES};
use crate::membership::Role;
use crate::wire::v1;

/// Why a change of a group was not made. Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupRefused {
    /// No group is known by this id on this device.
    #[error("conversation {0} is no group that is known here")]
    NoGroup(ConvId),
    /// Who the members are is not known on this device yet.
    #[error("the members of this group are not known here yet: try again once connected")]
    NotKnownYet,
    /// This user is not in the group.
    #[error("you are not in this group")]
    NotMember,
    /// Only an admin may do that in this group.
    #[error("only an admin may do that in this group")]
    NotAllowed,
    /// A group has at most 500 members.
    #[error("a group has at most {GROUP_MEMBERS} members")]
    Full,
    /// No user was named.
    #[error("no user was named")]
    Nobody,
    /// He is in the group already.
    #[error("{0} is in the group already")]
    Already(UserId),
    /// He is not in the group.
    #[error("{0} is not in the group")]
    Absent(UserId),
    /// Longer than a title may be.
    #[error("a title of {0} bytes; at most {TITLE_BYTES} are allowed")]
    TitleTooLong(usize),
    /// See [`SendRefused`].
    #[error(transparent)]
    Send(#[from] SendRefused),
}

/// What a new group is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupOptions {
    /// Every member may add others and set the title; otherwise only admins may.
    pub members_add: bool,
}

/// Membership entries on their way to a region that lacks them.
#[derive(Debug, Default)]
pub(super) struct Giving {
    pub(super) left: VecDeque<Identity>,
    pub(super) in_flight: usize,
}

fn member(user: &UserId, role: Role, generation: u64) -> v1::GroupMember {
    v1::GroupMember { user: user.as_str().to_owned(), role: u32::from(role == Role::Admin), generation }
}

impl Machine {
    /// Makes a group of this user, its admin, and `members`. Works offline; messages may follow at once.
    ///
    /// # Errors
    /// Where the title is too long, there would be too many members, or the outbox is full.
    pub fn create_group(
        &mut self,
        now: Duration,
        title: &str,
        members: &[UserId],
        options: GroupOptions,
        wall_ms: u64,
    ) -> Result<ConvId, GroupRefused> {
        if title.len() > TITLE_BYTES {
            return Err(GroupRefused::TitleTooLong(title.len()));
        }
        let mut all = vec![member(&self.setup.user, Role::Admin, 1)];
        for user in members {
            if all.iter().all(|m| m.user != user.as_str()) {
                all.push(member(user, Role::Member, 1));
            }
            if all.len() > GROUP_MEMBERS {
                return Err(GroupRefused::Full);
            }
        }
        let nonce = Bytes::copy_from_slice(&self.rng.random::<[u8; 16]>());
        let id = ConvId::group(&self.setup.user, &nonce);
        let title = title.to_owned();
        let create = v1::GroupCreate { members: all, title, members_add: options.members_add, nonce };
        self.may_enqueue(create.encoded_len())?;
        self.conv(id);
        self.enqueue(now, id, CREATE, create.encode_to_vec().into(), wall_ms);
        self.event(Event::GroupChanged { conversation: id });
        Ok(id)
    }

    fn view_of(&self, id: ConvId) -> Result<View, GroupRefused> {
        let conv = self.convs.get(&id).filter(|c| c.is_group()).ok_or(GroupRefused::NoGroup(id))?;
        let view = conv.view();
        if conv.record.has_left() || view.known && view.present(&self.setup.user).is_none() {
            return Err(GroupRefused::NotMember);
        }
        if view.known { Ok(view) } else { Err(GroupRefused::NotKnownYet) }
    }

    fn change(
        &mut self,
        now: Duration,
        id: ConvId,
        kind: u32,
        body: &impl prost::Message,
        wall_ms: u64,
    ) -> Result<MessageId, GroupRefused> {
        self.may_enqueue(body.encoded_len())?;
        let message = self.enqueue(now, id, kind, body.encode_to_vec().into(), wall_ms);
        self.event(Event::GroupChanged { conversation: id });
        Ok(message)
    }

    /// Adds users. With `history` they may read what was written before.
    ///
    /// # Errors
    /// What can be told here: who is no member or admin, who is in already, or where there are too many.
    pub fn group_add(
        &mut self,
        now: Duration,
        id: ConvId,
        users: &[UserId],
        history: bool,
        wall_ms: u64,
    ) -> Result<MessageId, GroupRefused> {
        let view = self.view_of(id)?;
        if !view.members_add && !view.may_administrate(&self.setup.user) {
            return Err(GroupRefused::NotAllowed);
        }
        let mut members: Vec<v1::GroupMember> = Vec::new();
        for user in users {
            if view.present(user).is_some() {
                return Err(GroupRefused::Already(user.clone()));
            }
            if members.iter().all(|m| m.user != user.as_str()) {
                members.push(member(user, Role::Member, view.next_generation(user)));
            }
        }
        if members.is_empty() {
            return Err(GroupRefused::Nobody);
        }
        if view.count() + members.len() > GROUP_MEMBERS {
            return Err(GroupRefused::Full);
        }
        self.change(now, id, ADD, &v1::GroupAdd { members, history }, wall_ms)
    }

    /// Removes users, for good within their present membership; they keep what was written up to then.
    ///
    /// # Errors
    /// As [`Self::group_add`].
    pub fn group_remove(
        &mut self,
        now: Duration,
        id: ConvId,
        users: &[UserId],
        wall_ms: u64,
    ) -> Result<MessageId, GroupRefused> {
        let view = self.view_of(id)?;
        if users.iter().any(|u| *u != self.setup.user) && !view.may_administrate(&self.setup.user) {
            return Err(GroupRefused::NotAllowed);
        }
        let mut members: Vec<v1::GroupMember> = Vec::new();
        for user in users {
            let generation = view.present(user).ok_or_else(|| GroupRefused::Absent(user.clone()))?;
            if members.iter().all(|m| m.user != user.as_str()) {
                members.push(member(user, Role::Member, generation));
            }
        }
        if members.is_empty() {
            return Err(GroupRefused::Nobody);
        }
        self.change(now, id, REMOVE, &v1::GroupRemove { members }, wall_ms)
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// As [`Self::group_remove`].
    pub fn group_leave(&mut self, now: Duration, id: ConvId, wall_ms: u64) -> Result<MessageId, GroupRefused> {
        let me = self.setup.user.clone();
        self.group_remove(now, id, &[me], wall_ms)
    }

    /// Makes a member an admin, or an admin a member.
    ///
    /// # Errors
    /// As [`Self::group_remove`].
    pub fn group_role(
        &mut self,
        now: Duration,
        id: ConvId,
        user: &UserId,
        role: Role,
        wall_ms: u64,
    ) -> Result<MessageId, GroupRefused> {
        let view = self.view_of(id)?;
        if !view.may_administrate(&self.setup.user) {
            return Err(GroupRefused::NotAllowed);
        }
        let generation = view.present(user).ok_or_else(|| GroupRefused::Absent(user.clone()))?;
        let members = vec![member(user, role, generation)];
        self.change(now, id, ROLE, &v1::GroupRole { members }, wall_ms)
    }

    /// Gives the group a title; an empty one takes it away.
    ///
    /// # Errors
    /// As [`Self::group_add`], and where the title is too long.
    pub fn group_title(
        &mut self,
        now: Duration,
        id: ConvId,
        title: &str,
        wall_ms: u64,
    ) -> Result<MessageId, GroupRefused> {
        if title.len() > TITLE_BYTES {
            return Err(GroupRefused::TitleTooLong(title.len()));
        }
        let view = self.view_of(id)?;
        if !view.members_add && !view.may_administrate(&self.setup.user) {
            return Err(GroupRefused::NotAllowed);
        }
        let cell = v1::Cell { key: TITLE.to_owned(), value: Bytes::copy_from_slice(title.as_bytes()) };
        self.change(now, id, CELL, &cell, wall_ms)
    }

    // ---- what a region lacks -------------------------------------------------------------------------

    /// The newest membership entry held, for a Send into a group.
    pub(super) fn named(&self, id: ConvId) -> Option<Box<Named>> {
        let conv = self.convs.get(&id).filter(|c| c.is_group() && !c.outbox.known_in_session)?;
        let (_, by) = conv.fold.group()?.newest()?;
        let place = conv.facts.get(by)?.place;
        Some(Box::new(Named { place, by: by.clone() }))
    }

    /// What a re-offer of an own membership entry has besides its receipt.
    pub(super) fn membership_of(&self, id: ConvId, by: &Identity) -> Option<Box<MembershipOffer>> {
        let fact = self.convs.get(&id)?.facts.get(by)?;
        let cut = fact.stamp.as_ref()?.cut.clone();
        Some(Box::new(MembershipOffer { author: (by.user.clone(), by.install.clone()), cut }))
    }

    /// The region lacks the group, or a change of it: it is given all that is held, unless that was done lately.
    /// True while it is being given.
    pub(super) fn begin_giving(&mut self, now: Duration, id: ConvId) -> bool {
        let Some(conv) = self.convs.get_mut(&id) else { return false };
        if conv.giving.is_some() || now < conv.give_at {
            return conv.giving.is_some();
        }
        let mut facts: Vec<_> = conv.facts.values().filter(|e| is_membership(e.kind)).collect();
        facts.sort_by_key(|e| (e.kind != CREATE, e.display_key()));
        let left: VecDeque<_> = facts.into_iter().map(|e| e.by.clone()).collect();
        if left.is_empty() {
            return false;
        }
        conv.giving = Some(Giving { left, in_flight: 0 });
        conv.give_at = now + GIVE_PAUSE.saturating_mul(1 << conv.gave.min(8)).min(GIVE_PAUSE_MAX);
        conv.gave = conv.gave.saturating_add(1);
        self.giving.insert(id);
        true
    }

    /// Gives what may be given now.
    pub(super) fn pump_giving(&mut self, now: Duration) {
        for id in self.giving.clone() {
            if self.convs.get(&id).is_some_and(|c| now < c.outbox.pause_until) {
                continue;
            }
            loop {
                let Some(session) = self.session.as_mut().filter(|s| s.offers < OFFERS_IN_FLIGHT) else { return };
                let Some(conv) = self.convs.get_mut(&id) else { break };
                let seen_hlc = conv.record.seen_hlc;
                let Some(giving) = &mut conv.giving else { break };
                let Some(entry) = giving.left.front().and_then(|by| conv.facts.get(by)).cloned() else {
                    if giving.left.pop_front().is_some() {
                        continue;
                    }
                    break;
                };
                let bytes = entry.body.len();
                if !session.room(now, bytes) {
                    return;
                }
                giving.left.pop_front();
                let Some(stamp) = &entry.stamp else { continue };
                giving.in_flight += 1;
                let req = session.request(now, Request::Give { conversation: id, by: entry.by.clone(), bytes });
                let send = SendRequest {
                    conversation: id,
                    peer: None,
                    n: entry.by.n,
                    floor: entry.by.n,
                    seen_hlc,
                    kind: entry.kind,
                    body: entry.body.clone(),
                    wall_ms: entry.wall_ms,
                    offer: Some((entry.display_key(), Bytes::copy_from_slice(&stamp.receipt))),
                    membership: Some(Box::new(MembershipOffer {
                        author: (entry.by.user.clone(), entry.by.install.clone()),
                        cut: stamp.cut.clone(),
                    })),
                    named: None,
                };
                self.write(Outbound::Send(req, send));
            }
        }
    }

    /// One of them was answered. `again`: after this time.
    pub(super) fn given(&mut self, now: Duration, id: ConvId, by: Identity, again: Option<Duration>) {
        let Some(conv) = self.convs.get_mut(&id) else { return };
        let Some(giving) = &mut conv.giving else { return };
        giving.in_flight -= 1;
        if let Some(after) = again {
            giving.left.push_back(by);
            conv.outbox.pause(now, after, true);
        } else if giving.left.is_empty() && giving.in_flight == 0 {
            conv.giving = None;
            self.giving.remove(&id);
            // What was refused for the lack of it goes at once; a region that refuses still is waited for.
            if conv.gave > 1 {
                conv.outbox.pause(now, Duration::ZERO, true);
            }
        }
    }
}
