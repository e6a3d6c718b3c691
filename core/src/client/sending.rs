//! Own messages: into the outbox, onto the wire, through acks, refusals and re-offers, out when stable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::candidates::Failure;
use super::connecting::failure_of;
use super::data::{MessageId, MessageState, Op, Outgoing, OutgoingRecord};
use super::effects::{DiscardRefused, Event, Outbound, SendRefused, UnknownMessage};
use super::limits::{GATHER, OFFERS_IN_FLIGHT, OUTBOX_BYTES, OUTBOX_MESSAGES, WINDOW_PER_CONVERSATION};
use super::machine::Machine;
use super::outbox::{AckOf, Own};
use super::session::Request;
use crate::codes::Code;
use crate::edge_api::{Ack, SendRequest};
use crate::entry::{Entry, Stamp};
use crate::ids::{ConvId, Identity, InstallId, Origin, UserId, body_hash};
use crate::kinds::{CREATE, is_membership};
use crate::limits::{BODY_BYTES, UNSTABLE_BYTES, UNSTABLE_MESSAGES};
use crate::mutant;
use crate::wire::v1::{self, error::Retry};

impl Machine {
    /// The id of the direct conversation with `peer`: made without the deployment's salt until that is known.
    pub fn direct_id(&self, peer: &UserId) -> ConvId {
        ConvId::direct(self.salt.as_deref().unwrap_or_default(), &self.setup.user, peer)
    }

    /// The direct conversation with `peer`; made if it is not known.
    pub fn direct(&mut self, peer: &UserId) -> ConvId {
        let id = self.direct_id(peer);
        let conv = self.conv(id);
        if conv.record.peer.is_none() {
            conv.record.peer = Some(peer.clone());
            self.dirty_convs.insert(id);
        }
        id
    }

    /// Puts a message into the outbox. It is safe once the step that follows is stored.
    pub fn send(
        &mut self,
        now: Duration,
        conversation: ConvId,
        kind: u32,
        body: Bytes,
        wall_ms: u64,
    ) -> Result<MessageId, SendRefused> {
        if (16..=63).contains(&kind) {
            return Err(SendRefused::ReservedKind(kind));
        }
        self.may_enqueue(body.len())?;
        let Some(conv) = self.convs.get(&conversation) else {
            return Err(SendRefused::UnknownConversation(conversation));
        };
        if conv.is_group() {
            let view = conv.view();
            if conv.record.has_left() || view.known && view.present(&self.setup.user).is_none() {
                return Err(SendRefused::Left(conversation));
            }
        }
        self.typed(now, conversation);
        if !self.foreground {
            self.gather_until.get_or_insert(now + GATHER);
        }
        Ok(self.enqueue(now, conversation, kind, body, wall_ms))
    }

    /// Whether the outbox takes so much more.
    pub(super) fn may_enqueue(&self, bytes: usize) -> Result<(), SendRefused> {
        if bytes > BODY_BYTES {
            return Err(SendRefused::TooLarge(bytes));
        }
        if self.queued.0 >= OUTBOX_MESSAGES || self.queued.1 + bytes > OUTBOX_BYTES {
            return Err(SendRefused::OutboxFull { messages: self.queued.0, bytes: self.queued.1 });
        }
        Ok(())
    }

    /// Puts a message of any kind into the outbox.
    pub(super) fn enqueue(
        &mut self,
        now: Duration,
        conversation: ConvId,
        kind: u32,
        body: Bytes,
        wall_ms: u64,
    ) -> MessageId {
        let id = self.fresh_id();
        let record = OutgoingRecord {
            id,
            conversation,
            install: self.install.clone(),
            n: 0,
            state: MessageState::Queued,
            acked: None,
            places: BTreeMap::new(),
            tried: BTreeSet::new(),
        };
        self.queued = (self.queued.0 + 1, self.queued.1 + body.len());
        self.sending.insert(conversation);
        let mut out = Outgoing { record, kind, wall_ms, body };
        if self.may_number(conversation) {
            out.record.n = self.next_n(conversation);
        }
        self.ops.push(Op::Queue(out.clone()));
        self.conv(conversation).outbox.queue.insert(id, Own::new(out, false));
        self.after(now);
        id
    }

    /// Tries a failed message again, under the same identity.
    pub fn retry(&mut self, now: Duration, id: MessageId) -> Result<(), UnknownMessage> {
        let (_, own) = self.queued_mut(id).ok_or(UnknownMessage(id))?;
        if own.is_failed() {
            own.out.record.state = MessageState::Queued;
            let record = own.out.record.clone();
            self.ops.push(Op::Outgoing(record));
        }
        self.tick(now);
        Ok(())
    }

    /// Drops a message that failed, or that was never handed to a connection; what it held back goes on.
    pub fn discard(&mut self, now: Duration, id: MessageId) -> Result<(), DiscardRefused> {
        let (conversation, own) = self.queued_mut(id).ok_or(UnknownMessage(id))?;
        if own.in_flight.is_some() || (own.transmitted && !own.is_failed() && own.out.record.n > 0) {
            return Err(DiscardRefused::MayBeSent(id));
        }
        let own_kind = (16..=63).contains(&own.out.kind);
        self.withdraw(conversation, id);
        if own_kind {
            self.event(Event::GroupChanged { conversation });
        }
        self.tick(now);
        Ok(())
    }

    fn queued_mut(&mut self, id: MessageId) -> Option<(ConvId, &mut Own)> {
        let conversation = self
            .sending
            .iter()
            .find(|c| self.convs.get(c).is_some_and(|conv| conv.outbox.queue.contains_key(&id)))
            .copied()?;
        let own = self.convs.get_mut(&conversation)?.outbox.queue.get_mut(&id)?;
        Some((conversation, own))
    }

    /// Sends what may be sent.
    pub(super) fn pump(&mut self, now: Duration) {
        if self.foreground || self.gather_until.is_some_and(|until| now >= until) {
            self.gather_until = None;
        }
        let mut turn: Vec<_> = self.sending.range(self.last_served..).copied().collect();
        turn.extend(self.sending.range(..self.last_served).copied());
        for id in turn.iter().copied() {
            self.number(id);
        }
        for id in self.sending.union(&self.unstable) {
            if let Some(conv) = self.convs.get_mut(id).filter(|c| c.outbox.pause_until <= now) {
                conv.outbox.pause_until = Duration::ZERO;
            }
        }
        let Some(session) = self.session.as_ref().filter(|_| self.gather_until.is_none()) else { return };
        let install = session.install.clone();
        for id in turn {
            let Some(conv) = self.convs.get(&id) else { continue };
            if now < conv.outbox.pause_until || conv.giving.is_some() {
                continue;
            }
            let window = if conv.outbox.probing { 1 } else { WINDOW_PER_CONVERSATION };
            let ready: Vec<_> = conv.outbox.sendable(&install, window).collect();
            for message in ready {
                if !self.transmit(now, id, message, false) {
                    // The window is full: begin here the next time.
                    self.last_served = id;
                    return;
                }
            }
        }
        self.pump_offers(now, &install);
        self.renew_for_install(now, &install);
    }

    fn pump_offers(&mut self, now: Duration, install: &InstallId) {
        for id in self.unstable.clone() {
            let Some(conv) = self.convs.get(&id).filter(|c| !c.outbox.offers.is_empty()) else { continue };
            if now < conv.outbox.pause_until {
                continue;
            }
            let mine = |m: &&MessageId| {
                let own = conv.outbox.unstable.get(m);
                own.is_some_and(|o| o.out.record.install == *install && o.in_flight.is_none())
            };
            for message in conv.outbox.offers.iter().filter(mine).copied().collect::<Vec<_>>() {
                if self.session.as_ref().is_none_or(|s| s.offers >= OFFERS_IN_FLIGHT)
                    || !self.transmit(now, id, message, true)
                {
                    return;
                }
            }
        }
    }

    fn renew_for_install(&mut self, now: Duration, install: &InstallId) {
        let idle = self.session.as_ref().is_some_and(|s| s.sends == 0);
        if idle && self.wanted_install() != *install {
            self.engine.leave(now, &Failure::Renew);
        }
    }

    fn transmit(&mut self, now: Duration, conversation: ConvId, id: MessageId, offer: bool) -> bool {
        let named = if offer { None } else { self.named(conversation) };
        let me = self.setup.user.clone();
        let membership = self.convs.get(&conversation).filter(|_| offer).and_then(|c| c.outbox.unstable.get(&id));
        let membership = membership.filter(|o| is_membership(o.out.kind)).map(|o| &o.out.record);
        let by = membership.map(|r| Identity { user: me, install: r.install.clone(), n: r.n });
        let membership = by.and_then(|by| self.membership_of(conversation, &by));
        let (Some(session), Some(conv)) = (&mut self.session, self.convs.get_mut(&conversation)) else { return false };
        let group = conv.record.peer.is_none();
        let install = session.install.clone();
        let floor = conv.outbox.floor(&install);
        let peer = if conv.outbox.known_in_session { None } else { conv.record.peer.clone() };
        let messages = if offer { &mut conv.outbox.unstable } else { &mut conv.outbox.queue };
        let Some(own) = messages.get_mut(&id) else { return true };
        let bytes = own.out.body.len();
        if !session.room(now, bytes) {
            return false;
        }
        let req = session.request(now, Request::Send { conversation, id, offer, bytes });
        if group && !offer && own.out.record.tried.insert(session.store) {
            // Stored before it is said: what another region refuses later is judged by it (R10).
            self.ops.push(Op::Outgoing(own.out.record.clone()));
        }
        own.in_flight = Some(req);
        own.transmitted = true;
        let record = &own.out.record;
        let send = SendRequest {
            conversation,
            peer,
            n: record.n,
            floor: floor.unwrap_or(record.n).clamp(1, record.n.max(1)),
            seen_hlc: conv.record.seen_hlc,
            kind: own.out.kind,
            body: own.out.body.clone(),
            wall_ms: own.out.wall_ms,
            offer: record.acked.filter(|_| offer).map(|(key, receipt)| (key, Bytes::copy_from_slice(&receipt))),
            membership,
            named: named.filter(|_| own.out.kind != CREATE),
        };
        if offer {
            own.offered_at = Some(now);
            conv.outbox.offers.remove(&id);
        }
        self.write(Outbound::Send(req, send));
        true
    }

    /// A message's answer: it is durable.
    pub(super) fn on_ack(&mut self, now: Duration, conversation: ConvId, id: MessageId, ack: &Ack) {
        let Some(conv) = self.convs.get(&conversation) else { return };
        let find = |id| conv.outbox.queue.get(&id).or_else(|| conv.outbox.unstable.get(&id));
        if let Some(install) = find(id).map(|o| o.out.record.install.clone()) {
            for held in &ack.also {
                let Some(conv) = self.convs.get(&conversation) else { return };
                if let Some(other) = conv.outbox.find(&install, held.n).filter(|other| *other != id) {
                    let of = AckOf {
                        place: held.place,
                        first: held.first,
                        receipt: held.receipt,
                        refused: false,
                        cut: held.cut.clone(),
                    };
                    self.apply_ack(now, conversation, other, &of);
                }
            }
        }
        let of = AckOf {
            place: ack.place,
            first: ack.first,
            receipt: ack.receipt,
            refused: ack.receipt_refused,
            cut: ack.cut.clone(),
        };
        self.apply_ack(now, conversation, id, &of);
    }

    fn apply_ack(&mut self, now: Duration, conversation: ConvId, id: MessageId, ack: &AckOf) {
        let Some(conv) = self.convs.get_mut(&conversation) else { return };
        let Some(was_queued) = conv.outbox.acked(id, ack) else { return };
        let empty = conv.outbox.queue.is_empty();
        let Some(own) = conv.outbox.unstable.get(&id) else { return };
        let (record, body) = (own.out.record.clone(), own.out.body.clone());
        let entry = Entry {
            place: ack.place,
            by: Identity { user: self.setup.user.clone(), install: record.install.clone(), n: record.n },
            peer: conv.record.peer.clone(),
            kind: own.out.kind,
            wall_ms: own.out.wall_ms,
            first: ack.first,
            stamp: is_membership(own.out.kind).then(|| Arc::new(Stamp { cut: ack.cut.clone(), receipt: ack.receipt })),
            only_sender: false,
            body_hash: body_hash(&body),
            body: body.clone(),
            erased: false,
        };
        self.ops.push(Op::Outgoing(record));
        if was_queued {
            if empty {
                self.sending.remove(&conversation);
            }
            self.unstable.insert(conversation);
            self.queued = (self.queued.0 - 1, self.queued.1 - body.len());
            self.kept = (self.kept.0 + 1, self.kept.1 + body.len());
            self.event(Event::Sent { conversation, id });
        }
        self.hold(conversation, Arc::new(entry));
        self.conv(conversation).outbox.known_in_session = true;
        self.release_beyond_bounds();
        self.ask_stability(now, conversation, ack.place.origin);
    }

    fn release_beyond_bounds(&mut self) {
        while self.kept.0 > UNSTABLE_MESSAGES || self.kept.1 > UNSTABLE_BYTES {
            let oldest = self.unstable.iter().filter_map(|c| {
                self.convs.get(c).and_then(|conv| conv.outbox.unstable.first_key_value()).map(|(id, _)| (*id, *c))
            });
            let Some((id, conversation)) = oldest.min() else { return };
            self.release(conversation, id, MessageState::AtRisk);
            self.event(Event::AtRisk { conversation, id });
        }
    }

    pub(super) fn release(&mut self, conversation: ConvId, id: MessageId, state: MessageState) {
        let Some(conv) = self.convs.get_mut(&conversation) else { return };
        let Some(own) = conv.outbox.unstable.remove(&id) else { return };
        conv.outbox.offers.remove(&id);
        if conv.outbox.unstable.is_empty() {
            self.unstable.remove(&conversation);
        }
        self.kept = (self.kept.0 - 1, self.kept.1 - own.out.body.len());
        self.ops.push(Op::Release { id, state });
    }

    /// A send was refused.
    pub(super) fn on_refused(
        &mut self,
        now: Duration,
        conversation: ConvId,
        id: MessageId,
        offer: bool,
        error: &v1::Error,
    ) {
        let Failure::Refused { code, retry, after, .. } = failure_of(error) else { return };
        let Some(conv) = self.convs.get_mut(&conversation) else { return };
        let outbox = &mut conv.outbox;
        let own = if offer { outbox.unstable.get_mut(&id) } else { outbox.queue.get_mut(&id) };
        let Some(own) = own else { return };
        own.in_flight = None;
        let code_known = Code::from_u32(code);
        match (code_known, retry) {
            (Some(Code::IdentityConflict), _) if !offer => {
                own.conflicted = true;
                let of_current = own.out.record.install == self.install;
                if of_current {
                    self.draw_install();
                }
            }
            (Some(Code::OutOfOrder), _) => outbox.pause(now, after, false),
            (Some(Code::Overloaded), _) => {
                outbox.pause(now, after, true);
                outbox.probing = true;
            }
            (_, Retry::Here) => outbox.pause(now, after, true),
            (_, Retry::Elsewhere) => {
                outbox.pause(now, after, true);
                if code_known != Some(Code::Damaged) || !offer {
                    self.engine.leave(now, &failure_of(error));
                }
            }
            (_, Retry::NewToken) => {
                outbox.pause(now, after, true);
                self.ask_token(true);
            }
            (_, Retry::Behind) if conv.record.peer.is_none() && !offer => {
                outbox.known_in_session = false;
                if !self.begin_giving(now, conversation) {
                    self.conv(conversation).outbox.pause(now, after, true);
                }
            }
            (_, Retry::Behind) => {
                outbox.known_in_session = false;
                outbox.offer_all();
                outbox.pause(now, after, true);
            }
            (_, Retry::Never) if offer => {}
            (_, Retry::Never) if conv.record.peer.is_none() || (16..=63).contains(&own.out.kind) => {
                self.refused_for_good(conversation, id, code, error.message.clone());
            }
            (_, Retry::Never) => {
                own.out.record.state = MessageState::Failed(code);
                let record = own.out.record.clone();
                self.ops.push(Op::Outgoing(record));
                let message = error.message.clone();
                self.event(Event::Failed { conversation, id, code, message });
            }
        }
        if offer
            && retry != Retry::Never
            && let Some(conv) = self.convs.get_mut(&conversation)
        {
            conv.outbox.offers.insert(id);
        }
    }

    /// A region has refused a message of a group, or a change. That is final only if no other store may have taken
    /// it: nothing may be shown as failed that others can read (R10).
    fn refused_for_good(&mut self, conversation: ConvId, id: MessageId, code: u32, message: String) {
        let Some(store) = self.session.as_ref().map(|s| s.store) else { return };
        let Some(conv) = self.convs.get_mut(&conversation) else { return };
        let Some(own) = conv.outbox.queue.get_mut(&id) else { return };
        let kind = own.out.kind;
        own.out.record.tried.remove(&store);
        mutant!(FinalRefusalTooEarly => own.out.record.tried.clear());
        let change = (16..=63).contains(&kind);
        if own.out.record.tried.is_empty() && change && kind != CREATE {
            self.withdraw(conversation, id);
            self.event(Event::ChangeRefused { conversation, id, kind, code, message });
        } else {
            let unknown = !own.out.record.tried.is_empty();
            own.out.record.state = if unknown { MessageState::Unknown(code) } else { MessageState::Failed(code) };
            let record = own.out.record.clone();
            self.ops.push(Op::Outgoing(record));
            self.event(if unknown {
                Event::Unknown { conversation, id, code, message }
            } else {
                Event::Failed { conversation, id, code, message }
            });
        }
        if change {
            self.event(Event::GroupChanged { conversation });
        }
    }

    /// A store that may have taken what another refused is reached: it knows.
    pub(super) fn try_unknown_again(&mut self, store: Origin) {
        for conversation in self.sending.clone() {
            self.unknown_again(conversation, |own| own.out.record.tried.contains(&store));
        }
    }

    /// Sends again what was refused and not known to have failed, as far as `which` says.
    pub(super) fn unknown_again(&mut self, conversation: ConvId, which: impl Fn(&Own) -> bool) {
        let Some(conv) = self.convs.get_mut(&conversation) else { return };
        for own in conv.outbox.queue.values_mut().filter(|o| o.is_failed() && which(o)) {
            own.out.record.state = MessageState::Queued;
            self.ops.push(Op::Outgoing(own.out.record.clone()));
        }
    }

    /// When a paused conversation may send again.
    pub(super) fn send_deadline(&self) -> Option<Duration> {
        let now_or_later = self.sending.iter().chain(&self.unstable).filter_map(|id| self.convs.get(id));
        now_or_later
            .filter(|c| !c.outbox.pause_until.is_zero())
            .filter(|c| c.outbox.is_waiting() || !c.outbox.offers.is_empty() || c.giving.is_some())
            .map(|c| c.outbox.pause_until)
            .min()
    }
}
