//! Messages that their author, or an admin, wants gone (R16).
//!
//! *Problem.* A message that is to be erased may be waiting here, be on its way, be durable in one region, or be
//! in all; and copies of it may arrive later.
//!
//! *Rule.* What was never transmitted is withdrawn. What was transmitted keeps its place in the outbox, and its
//! body, until it is acked; the erasure stands behind it in the same queue. An erasure takes effect here once it
//! is acked or received: bodies go from the store in that transaction, later copies are stored without, and what
//! is acked and not stable is offered no more, since its loss would lose nothing.
//!
//! *Why the simpler way fails.* Dropping the body at once: the message may be durable already, a resend under its
//! identity with another body would be a conflict, and a refused erasure could not be undone.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::data::{Message, MessageId, MessageState, Op};
use super::effects::SendRefused;
use super::groups::GroupRefused;
use super::machine::Machine;
use crate::ids::ConvId;
use crate::kinds::{ERASE, ERASE_MINE};
use crate::wire::v1;

/// Why nothing is erased.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EraseRefused {
    /// It is no message that has a body: one of tern's own kinds, or erased already.
    #[error("there is nothing to erase")]
    Nothing,
    /// It is another's, and this user is no admin of a group.
    #[error("only its author, or an admin of its group, may erase a message")]
    NotAllowed,
    /// See [`SendRefused`].
    #[error(transparent)]
    Send(#[from] SendRefused),
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erased {
    /// It was never transmitted, and is gone.
    Withdrawn,
    /// The erasure is in the outbox, as this message.
    Asked(MessageId),
}

impl Machine {
    /// Erases a message: of this user, or of any as an admin of its group.
    ///
    /// # Errors
    /// Where there is nothing to erase, or this user may not.
    pub fn erase(&mut self, now: Duration, message: &Message, wall_ms: u64) -> Result<Erased, EraseRefused> {
        let id = message.conversation;
        let Some(conv) = self.convs.get(&id) else { return Err(EraseRefused::Nothing) };
        if message.erased || (16..=63).contains(&message.kind) {
            return Err(EraseRefused::Nothing);
        }
        if message.by.user != self.setup.user && !(conv.is_group() && conv.view().may_administrate(&self.setup.user)) {
            return Err(EraseRefused::NotAllowed);
        }
        let mut by = message.by.clone();
        if let Some(own) = conv.outbox.queue.get(&message.id) {
            if own.in_flight.is_none() && !own.transmitted {
                self.withdraw(id, message.id);
                self.after(now);
                return Ok(Erased::Withdrawn);
            }
            (by.install, by.n) = (own.out.record.install.clone(), own.out.record.n);
        }
        let author = v1::Author { user: by.user.as_str().to_owned(), install: by.install.as_str().to_owned() };
        let erase = v1::Erase { author: Some(author), n: by.n };
        self.may_enqueue(erase.encoded_len())?;
        Ok(Erased::Asked(self.enqueue(now, id, ERASE, erase.encode_to_vec().into(), wall_ms)))
    }

    /// Erases all that this user has written in a conversation up to now.
    ///
    /// # Errors
    /// Where the outbox is full, or the conversation not known or left.
    pub fn erase_my_messages(
        &mut self,
        now: Duration,
        id: ConvId,
        wall_ms: u64,
    ) -> Result<Option<MessageId>, SendRefused> {
        let Some(conv) = self.convs.get(&id) else { return Err(SendRefused::UnknownConversation(id)) };
        if conv.record.has_left() {
            return Err(SendRefused::Left(id));
        }
        let never_sent: Vec<_> = conv
            .outbox
            .queue
            .iter()
            .filter(|(_, o)| o.in_flight.is_none() && !o.transmitted && !(16..=63).contains(&o.out.kind))
            .map(|(m, _)| *m)
            .collect();
        let known = conv.record.sighted || conv.outbox.queue.len() > never_sent.len() || !conv.origins.is_empty();
        self.may_enqueue(0)?;
        for message in never_sent {
            self.withdraw(id, message);
        }
        let asked = known.then(|| self.enqueue(now, id, ERASE_MINE, Bytes::new(), wall_ms));
        self.after(now);
        Ok(asked)
    }

    /// Erases all that this user has written anywhere, and his settings; `leave`: he leaves all groups too, after
    /// that. Conversations that were left already can't be reached. How many conversations it was asked for in.
    ///
    /// # Errors
    /// Where the outbox is full: what was asked for until then stays asked for.
    pub fn erase_everything(&mut self, now: Duration, leave: bool, wall_ms: u64) -> Result<usize, SendRefused> {
        let own = self.own_log();
        let all: Vec<ConvId> =
            self.convs.values().filter(|c| c.record.id != own && !c.record.has_left()).map(|c| c.record.id).collect();
        let mut asked = 0;
        for id in all {
            asked += usize::from(self.erase_my_messages(now, id, wall_ms)?.is_some());
            let me = self.setup.user.clone();
            let in_group = self.group(id).is_some_and(|g| g.member(&me).is_some());
            // Any other refusal: not a member any more, there is nothing to leave.
            if leave
                && in_group
                && let Err(GroupRefused::Send(refused)) = self.group_leave(now, id, wall_ms)
            {
                return Err(refused);
            }
        }
        let cells = self.convs.get(&own).map(|c| c.cells("")).unwrap_or_default();
        // What keeps removed devices and revoked tokens out stays: it protects what is left.
        for key in cells.into_keys().filter(|k| !k.starts_with("kick/") && k != crate::fold::REVOKE_KEY) {
            let cell = v1::Cell { key, value: Bytes::new() };
            self.may_enqueue(cell.encoded_len())?;
            self.enqueue(now, own, crate::kinds::CELL, cell.encode_to_vec().into(), wall_ms);
        }
        self.announced = Some(self.install.clone());
        Ok(asked)
    }

    /// Takes a message out of the outbox and the store that nobody has seen.
    pub(super) fn withdraw(&mut self, conversation: ConvId, id: MessageId) {
        let Some(conv) = self.convs.get_mut(&conversation) else { return };
        let Some(own) = conv.outbox.queue.remove(&id) else { return };
        if conv.outbox.queue.is_empty() {
            self.sending.remove(&conversation);
        }
        self.queued = (self.queued.0 - 1, self.queued.1 - own.out.body.len());
        self.ops.push(Op::Discard(id));
    }

    /// An own message whose erased form was received: what is in the outbox of it is of no more use.
    pub(super) fn drop_erased_own(&mut self, conversation: ConvId, id: MessageId) {
        let Some(conv) = self.convs.get_mut(&conversation) else { return };
        if conv.outbox.unstable.contains_key(&id) {
            self.release(conversation, id, MessageState::AtRisk);
        } else if let Some(own) = conv.outbox.queue.remove(&id) {
            if conv.outbox.queue.is_empty() {
                self.sending.remove(&conversation);
            }
            self.queued = (self.queued.0 - 1, self.queued.1 - own.out.body.len());
            self.ops.push(Op::Release { id, state: MessageState::AtRisk });
        }
    }
}
