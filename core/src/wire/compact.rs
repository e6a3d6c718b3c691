//! Short references for what repeats on a message lane.
//!
//! Conversations, origins and senders repeat in almost every frame and are long: 16 bytes, 10 bytes, two
//! texts. Each side numbers what it sends, per lane; a `Define` frame precedes the first use. [`Writer`]
//! hands numbers out and reuses the longest unused ones, so neither side remembers more than
//! [`REFERENCES`] per kind; [`Reader`] resolves them. Both live as long as the connection: nothing of them
//! outlasts it.
//!
//! A push also leaves out those heads of the row that this connection was last told: what is written to a
//! lane arrives or the connection is gone, so the base is what was *written*, not what was queued. Where logs were
//! folded since, all heads are said: what is missing then is in the fold.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::{codec, v1};
use crate::codes::{Code, Refusal};
use crate::edge_api::{Ack, HeldAck, MembershipOffer, Named, Push, RowState, SendRequest};
use crate::entry::{Entry, Stamp};
use crate::hlc;
use crate::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Rev, Seq, UserId, body_hash};
use crate::limits::{BODY_BYTES, MESSAGE_NUMBERS, REFERENCES, VECTOR_ORIGINS};
use crate::receipt::RECEIPT_BYTES;
use crate::wire::convert;

/// Numbers for one kind of value: least recently used first to go.
#[derive(Debug)]
struct Numbers<K: Ord + Clone, V = ()> {
    known: BTreeMap<K, Number<V>>,
    clock: u64,
}

#[derive(Debug)]
struct Number<V> {
    number: u32,
    used: u64,
    told: V,
}

impl<K: Ord + Clone, V> Default for Numbers<K, V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), clock: 0 }
    }
}

impl<K: Ord + Clone, V: Default> Numbers<K, V> {
    /// The number, whether it is new, and what is remembered with it.
    fn number(&mut self, key: &K) -> (u32, bool, &mut V) {
        self.clock += 1;
        let used = self.clock;
        let fresh = !self.known.contains_key(key);
        let number = if fresh { self.free() } else { 0 };
        let slot = self.known.entry(key.clone()).or_insert_with(|| Number { number, used, told: V::default() });
        slot.used = used;
        (slot.number, fresh, &mut slot.told)
    }

    /// A number that is not in use, or the one that was not used for longest. That is looked for by going
    /// through all of them: a connection with over a thousand conversations at work is rare, and keeping them
    /// in order of use would cost every frame.
    fn free(&mut self) -> u32 {
        if self.known.len() < REFERENCES as usize {
            return u32::try_from(self.known.len()).unwrap_or(REFERENCES) + 1;
        }
        let oldest = self.known.iter().min_by_key(|(_, n)| n.used).map(|(key, _)| key.clone());
        oldest.and_then(|key| self.known.remove(&key)).map_or(1, |n| n.number)
    }
}

/// Writes frames to one lane in one direction.
#[derive(Debug, Default)]
pub struct Writer {
    tables: Option<Box<WriterTables>>,
}

#[derive(Debug, Default)]
struct WriterTables {
    conversations: Numbers<ConvId, Told>,
    origins: Numbers<Origin>,
    senders: Numbers<(UserId, InstallId)>,
}

/// What the other side was told of a conversation on this lane.
#[derive(Debug, Default)]
struct Told {
    heads: Heads,
    peer: bool,
}

impl Writer {
    fn tables(&mut self) -> &mut WriterTables {
        self.tables.get_or_insert_default()
    }

    /// A frame that needs no references.
    pub fn plain(&mut self, frame: &v1::Frame, out: &mut BytesMut) {
        codec::put(frame, out);
    }

    /// A client's Send.
    pub fn send(&mut self, req: u32, send: &SendRequest, out: &mut BytesMut) {
        let tables = self.tables();
        let (conversation, fresh, _) = tables.conversations.number(&send.conversation);
        if fresh {
            define(conversation, v1::define::What::Conversation(Bytes::copy_from_slice(&send.conversation.0)), out);
        }
        let (was, receipt) = match &send.offer {
            Some((place, receipt)) => (Some((*place).into()), receipt.clone()),
            None => (None, Bytes::new()),
        };
        let body = v1::Send {
            conversation,
            n: send.n,
            floor_back: send.n.saturating_sub(send.floor),
            seen_hlc: send.seen_hlc,
            kind: send.kind,
            body: send.body.clone(),
            wall_ms: send.wall_ms,
            was,
            receipt,
            peer: send.peer.as_ref().map_or_else(String::new, |p| p.as_str().to_owned()),
            author: send.membership.as_ref().map(|m| author_to_wire(&m.author)),
            cut: send.membership.as_ref().map_or_else(Vec::new, |m| origin_heads_to_wire(&m.cut)),
            named: send.named.as_ref().map(|named| v1::Named {
                place: Some(named.place.into()),
                author: Some(author_to_wire(&(named.by.user.clone(), named.by.install.clone()))),
                n: named.by.n,
            }),
            conversation_id: Bytes::new(),
        };
        codec::put(&v1::Frame::new(req, v1::frame::Body::Send(body)), out);
    }

    /// A server's Ack.
    pub fn ack(&mut self, req: u32, ack: &Ack, out: &mut BytesMut) {
        let origin = self.origin(ack.place.origin, out);
        let body = v1::Ack {
            origin,
            seq: ack.place.seq,
            hlc: ack.place.hlc,
            receipt: Bytes::copy_from_slice(&ack.receipt),
            first: ack.first.map(Into::into),
            also: ack.also.iter().map(held_to_wire).collect(),
            receipt_refused: ack.receipt_refused,
            cut: origin_heads_to_wire(&ack.cut),
        };
        codec::put(&v1::Frame::new(req, v1::frame::Body::Ack(body)), out);
    }

    /// A server's Push.
    pub fn push(&mut self, push: &Push, out: &mut BytesMut) {
        let entries = push.entries.iter().map(|e| self.entry(e, out)).collect();
        let (conversation, fresh, told) = self.tables().conversations.number(&push.conversation);
        let news = |(origin, seq): &(&Origin, &Seq)| told.heads.get(*origin) != Some(*seq);
        let folded = push.heads.iter().any(|head| head.0.through().is_some() && news(&head));
        let changed: Vec<_> =
            push.heads.iter().filter(|head| folded || news(head)).map(|(origin, seq)| (*origin, *seq)).collect();
        told.heads.clone_from(&push.heads);
        let peer = if std::mem::replace(&mut told.peer, true) { None } else { push.peer.as_ref() };
        let peer = peer.map_or_else(String::new, |p| p.as_str().to_owned());
        if fresh {
            define(conversation, v1::define::What::Conversation(Bytes::copy_from_slice(&push.conversation.0)), out);
        }
        let heads =
            changed.into_iter().map(|(origin, seq)| v1::Head { origin: self.origin(origin, out), seq }).collect();
        let body = v1::Push {
            conversation,
            entries,
            heads,
            rev: push.rev.0,
            rev_back: push.rev.0.saturating_sub(push.prev_rev.0),
            peer,
            row: push.row.as_ref().map(|row| row_state_to_wire(row)),
        };
        codec::put(&v1::Frame::new(0, v1::frame::Body::Push(body)), out);
    }

    fn origin(&mut self, origin: Origin, out: &mut BytesMut) -> u32 {
        let (number, fresh, ()) = self.tables().origins.number(&origin);
        if fresh {
            define(number, v1::define::What::Origin(origin.into()), out);
        }
        number
    }

    fn entry(&mut self, entry: &Entry, out: &mut BytesMut) -> v1::Entry {
        let origin = self.origin(entry.place.origin, out);
        let key = (entry.by.user.clone(), entry.by.install.clone());
        let (sender, fresh, ()) = self.tables().senders.number(&key);
        if fresh {
            define(sender, v1::define::What::Sender(sender_to_wire(&key)), out);
        }
        entry_to_wire(entry, origin, sender)
    }
}

fn define(reference: u32, what: v1::define::What, out: &mut BytesMut) {
    codec::put(&v1::Frame::new(0, v1::frame::Body::Define(v1::Define { r#ref: reference, what: Some(what) })), out);
}

fn sender_to_wire(key: &(UserId, InstallId)) -> v1::Sender {
    v1::Sender { user: key.0.as_str().to_owned(), install: key.1.as_str().to_owned() }
}

fn held_to_wire(held: &HeldAck) -> v1::Held {
    v1::Held {
        n: held.n,
        place: Some(held.place.into()),
        first: held.first.map(Into::into),
        receipt: Bytes::copy_from_slice(&held.receipt),
        cut: origin_heads_to_wire(&held.cut),
    }
}

#[expect(clippy::cast_possible_wrap, reason = "differences of clocks wrap and unwrap alike")]
fn entry_to_wire(entry: &Entry, origin: u32, sender: u32) -> v1::Entry {
    v1::Entry {
        origin,
        seq: entry.place.seq,
        hlc: entry.place.hlc,
        sender,
        n: entry.by.n,
        kind: entry.kind,
        body: entry.body.clone(),
        wall_delta_ms: entry.wall_ms.wrapping_sub(hlc::to_ms(entry.place.hlc)) as i64,
        first: entry.first.map(Into::into),
        peer: String::new(),
        erased: entry.erased,
        stamp: entry.stamp.as_ref().map(|stamp| v1::Stamp {
            cut: origin_heads_to_wire(&stamp.cut),
            receipt: Bytes::copy_from_slice(&stamp.receipt),
        }),
        body_hash: if entry.erased { Bytes::copy_from_slice(&entry.body_hash) } else { Bytes::new() },
    }
}

/// Heads outside a frame's tables.
pub fn origin_heads_to_wire(heads: &Heads) -> Vec<v1::OriginHead> {
    heads.iter().map(|(origin, seq)| v1::OriginHead { origin: Some((*origin).into()), seq: *seq }).collect()
}

/// Heads outside a frame's tables.
///
/// # Errors
/// `bad_frame` above [`VECTOR_ORIGINS`], or where an origin is none.
pub fn origin_heads_from_wire(heads: Vec<v1::OriginHead>) -> Result<Heads, Refusal> {
    if heads.len() > VECTOR_ORIGINS {
        return Err(Refusal::new(Code::BadFrame, format!("a vector of more than {VECTOR_ORIGINS} origins")));
    }
    heads.into_iter().map(|h| Ok((convert::origin(h.origin)?, h.seq))).collect()
}

fn author_to_wire((user, install): &(UserId, InstallId)) -> v1::Author {
    v1::Author { user: user.as_str().to_owned(), install: install.as_str().to_owned() }
}

fn author_from_wire(author: &v1::Author) -> Result<(UserId, InstallId), Refusal> {
    Ok((convert::user(&author.user)?, convert::install(&author.install)?))
}

fn row_state_to_wire(row: &RowState) -> v1::RowState {
    v1::RowState {
        state: row.state,
        generation: row.generation,
        from: origin_heads_to_wire(&row.from),
        read: origin_heads_to_wire(&row.read),
        peer_read: origin_heads_to_wire(&row.peer_read),
    }
}

fn row_state_from_wire(row: v1::RowState) -> Result<RowState, Refusal> {
    Ok(RowState {
        state: row.state,
        generation: row.generation,
        from: origin_heads_from_wire(row.from)?,
        read: origin_heads_from_wire(row.read)?,
        peer_read: origin_heads_from_wire(row.peer_read)?,
    })
}

/// What a lane's frame says once its references are resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    /// Nothing to act on: a definition was noted.
    Noted,
    /// A client's Send.
    Send(SendRequest),
    /// A server's Ack.
    Ack(Ack),
    /// A server's Push. `heads` holds those that changed on this connection; merge them by maximum.
    Push(Push),
    /// Any other frame, untouched.
    Other(v1::Frame),
}

/// Reads frames of one lane in one direction.
#[derive(Debug, Default)]
pub struct Reader {
    tables: Option<Box<ReaderTables>>,
}

#[derive(Debug, Default)]
struct ReaderTables {
    conversations: Vec<Option<(ConvId, Option<UserId>)>>,
    origins: Vec<Option<Origin>>,
    senders: Vec<Option<(UserId, InstallId)>>,
}

fn bad_reference(kind: &str, reference: u32) -> Refusal {
    Refusal::new(Code::BadReference, format!("{kind} {reference} was not defined on this lane"))
}

fn place_in<T>(table: &mut Vec<Option<T>>, reference: u32, value: T) -> Result<(), Refusal> {
    if reference == 0 || reference > REFERENCES {
        return Err(Refusal::new(Code::BadReference, format!("reference {reference}; they are 1 to {REFERENCES}")));
    }
    // Numbers without gaps: one high number must not cost a table of a thousand.
    let index = reference as usize;
    let next = table.len().max(1);
    if index > next {
        let text = format!("reference {reference} before {next}; new ones are given out in order");
        return Err(Refusal::new(Code::BadReference, text));
    }
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(value);
    Ok(())
}

fn get_from<T: Clone>(table: &[Option<T>], kind: &str, reference: u32) -> Result<T, Refusal> {
    table.get(reference as usize).and_then(Clone::clone).ok_or_else(|| bad_reference(kind, reference))
}

impl Reader {
    /// Resolves one frame. An error is the peer's fault; the connection can't be read on after
    /// [`Code::BadReference`] or [`Code::BadFrame`].
    pub fn read(&mut self, frame: v1::Frame) -> Result<Read, Refusal> {
        use v1::frame::Body;
        match frame.body {
            Some(Body::Define(define)) => self.define(define).map(|()| Read::Noted),
            Some(Body::Send(send)) => self.send(send).map(Read::Send),
            Some(Body::Ack(ack)) => self.ack(ack).map(Read::Ack),
            Some(Body::Push(push)) => self.push(push).map(Read::Push),
            body => Ok(Read::Other(v1::Frame { req: frame.req, body })),
        }
    }

    fn tables(&mut self) -> &mut ReaderTables {
        self.tables.get_or_insert_default()
    }

    fn define(&mut self, define: v1::Define) -> Result<(), Refusal> {
        let tables = self.tables();
        match define.what {
            Some(v1::define::What::Conversation(id)) => {
                place_in(&mut tables.conversations, define.r#ref, (convert::conversation(&id)?, None))
            }
            Some(v1::define::What::Origin(origin)) => {
                place_in(&mut tables.origins, define.r#ref, Origin::try_from(origin)?)
            }
            Some(v1::define::What::Sender(sender)) => {
                place_in(&mut tables.senders, define.r#ref, sender_from_wire(&sender)?)
            }
            None => Err(Refusal::new(Code::BadFrame, "a definition of nothing")),
        }
    }

    fn send(&mut self, send: v1::Send) -> Result<SendRequest, Refusal> {
        let conversation = if send.conversation_id.is_empty() {
            get_from(&self.tables().conversations, "conversation", send.conversation)?.0
        } else {
            convert::conversation(&send.conversation_id)?
        };
        if send.n == 0 || send.floor_back >= send.n {
            return Err(Refusal::new(Code::BadFrame, "n starts at 1, and so does the floor"));
        }
        if send.n >= MESSAGE_NUMBERS {
            return Err(Refusal::new(Code::BadFrame, "n is below 2^53"));
        }
        if send.body.len() > BODY_BYTES {
            let text = format!("a body of {} bytes; at most {BODY_BYTES} are allowed", send.body.len());
            return Err(Refusal::new(Code::BodyTooLarge, text));
        }
        let peer = if send.peer.is_empty() { None } else { Some(convert::user(&send.peer)?) };
        let membership = match send.author {
            Some(author) => Some(Box::new(MembershipOffer {
                author: author_from_wire(&author)?,
                cut: origin_heads_from_wire(send.cut)?,
            })),
            None => None,
        };
        let named = send.named.map(named_from_wire).transpose()?.map(Box::new);
        Ok(SendRequest {
            conversation,
            peer,
            n: send.n,
            floor: send.n - send.floor_back,
            seen_hlc: send.seen_hlc,
            kind: send.kind,
            body: send.body,
            wall_ms: send.wall_ms,
            offer: match send.was {
                Some(was) => Some((was.try_into()?, send.receipt)),
                None => None,
            },
            membership,
            named,
        })
    }

    fn ack(&mut self, ack: v1::Ack) -> Result<Ack, Refusal> {
        let origin = get_from(&self.tables().origins, "origin", ack.origin)?;
        Ok(Ack {
            place: Place { hlc: ack.hlc, origin, seq: ack.seq },
            first: ack.first.map(TryInto::try_into).transpose()?,
            receipt: receipt_from_wire(&ack.receipt)?,
            also: ack.also.into_iter().map(held_from_wire).collect::<Result<_, _>>()?,
            receipt_refused: ack.receipt_refused,
            cut: origin_heads_from_wire(ack.cut)?,
        })
    }

    fn push(&mut self, push: v1::Push) -> Result<Push, Refusal> {
        let told = if push.peer.is_empty() { None } else { Some(convert::user(&push.peer)?) };
        let tables = self.tables();
        let slot = tables
            .conversations
            .get_mut(push.conversation as usize)
            .and_then(Option::as_mut)
            .ok_or_else(|| bad_reference("conversation", push.conversation))?;
        if told.is_some() {
            slot.1 = told;
        }
        let (conversation, peer) = slot.clone();
        let heads = push
            .heads
            .iter()
            .map(|h| Ok((get_from(&tables.origins, "origin", h.origin)?, h.seq)))
            .collect::<Result<Heads, Refusal>>()?;
        let entries = push
            .entries
            .into_iter()
            .map(|e| {
                let origin = get_from(&tables.origins, "origin", e.origin)?;
                let sender = get_from(&tables.senders, "sender", e.sender)?;
                entry_from_wire(e, origin, sender, peer.as_ref()).map(std::sync::Arc::new)
            })
            .collect::<Result<_, Refusal>>()?;
        Ok(Push {
            conversation,
            peer,
            entries,
            heads,
            prev_rev: Rev(push.rev.saturating_sub(push.rev_back)),
            rev: Rev(push.rev),
            row: push.row.map(row_state_from_wire).transpose()?.map(Box::new),
        })
    }
}

fn named_from_wire(named: v1::Named) -> Result<Named, Refusal> {
    let missing = || Refusal::new(Code::BadFrame, "a named entry has a place, an author and an n");
    let (user, install) = author_from_wire(&named.author.ok_or_else(missing)?)?;
    let place = named.place.ok_or_else(missing)?.try_into()?;
    Ok(Named { place, by: Identity { user, install, n: named.n } })
}

fn sender_from_wire(sender: &v1::Sender) -> Result<(UserId, InstallId), Refusal> {
    Ok((convert::user(&sender.user)?, convert::install(&sender.install)?))
}

fn receipt_from_wire(receipt: &[u8]) -> Result<[u8; RECEIPT_BYTES], Refusal> {
    receipt.try_into().map_err(|_| Refusal::new(Code::BadFrame, "a receipt has 16 bytes"))
}

fn held_from_wire(held: v1::Held) -> Result<HeldAck, Refusal> {
    let place = held.place.ok_or_else(|| Refusal::new(Code::BadFrame, "place is missing"))?;
    Ok(HeldAck {
        n: held.n,
        place: place.try_into()?,
        first: held.first.map(TryInto::try_into).transpose()?,
        receipt: receipt_from_wire(&held.receipt)?,
        cut: origin_heads_from_wire(held.cut)?,
    })
}

fn entry_from_wire(
    e: v1::Entry,
    origin: Origin,
    (user, install): (UserId, InstallId),
    row_peer: Option<&UserId>,
) -> Result<Entry, Refusal> {
    if e.seq == 0 || e.n == 0 {
        return Err(Refusal::new(Code::BadFrame, "an entry with seq or n 0"));
    }
    let peer = if e.peer.is_empty() { row_peer.cloned() } else { Some(convert::user(&e.peer)?) };
    let stamp = match e.stamp {
        Some(stamp) => {
            let receipt = receipt_from_wire(&stamp.receipt)?;
            Some(std::sync::Arc::new(Stamp { cut: origin_heads_from_wire(stamp.cut)?, receipt }))
        }
        None => None,
    };
    let hash = match <[u8; 32]>::try_from(&e.body_hash[..]) {
        Ok(hash) if e.erased => hash,
        _ => body_hash(&e.body),
    };
    Ok(Entry {
        place: Place { hlc: e.hlc, origin, seq: e.seq },
        by: Identity { user, install, n: e.n },
        peer,
        kind: e.kind,
        wall_ms: hlc::to_ms(e.hlc).wrapping_add_signed(e.wall_delta_ms),
        first: e.first.map(TryInto::try_into).transpose()?,
        stamp,
        only_sender: false,
        body_hash: hash,
        body: e.body,
        erased: e.erased,
    })
}

/// The tables of a frame that carries its own: `Page` and `Rows`. References are positions from 1.
#[derive(Debug, Default)]
pub struct Table {
    origins: BTreeMap<Origin, u32>,
    senders: BTreeMap<(UserId, InstallId), u32>,
    /// For the frame, in order of the references.
    pub wire_origins: Vec<v1::Origin>,
    /// For the frame, in order of the references.
    pub wire_senders: Vec<v1::Sender>,
}

impl Table {
    /// The reference of an origin.
    pub fn origin(&mut self, origin: Origin) -> u32 {
        let next = u32::try_from(self.wire_origins.len()).unwrap_or(u32::MAX).saturating_add(1);
        *self.origins.entry(origin).or_insert_with(|| {
            self.wire_origins.push(origin.into());
            next
        })
    }

    /// An entry with this table's references. Pages carry each entry's peer: there is no row beside it.
    pub fn entry(&mut self, entry: &Entry) -> v1::Entry {
        let origin = self.origin(entry.place.origin);
        let key = (entry.by.user.clone(), entry.by.install.clone());
        let next = u32::try_from(self.wire_senders.len()).unwrap_or(u32::MAX).saturating_add(1);
        let sender = *self.senders.entry(key).or_insert_with_key(|key| {
            self.wire_senders.push(sender_to_wire(key));
            next
        });
        let peer = entry.peer.as_ref().map_or_else(String::new, |p| p.as_str().to_owned());
        v1::Entry { peer, ..entry_to_wire(entry, origin, sender) }
    }

    /// Heads with this table's references.
    pub fn heads(&mut self, heads: &Heads) -> Vec<v1::Head> {
        heads.iter().map(|(origin, seq)| v1::Head { origin: self.origin(*origin), seq: *seq }).collect()
    }
}

/// Resolves the references of a `Page` or `Rows`.
#[derive(Debug)]
pub struct TableReader {
    origins: Vec<Origin>,
    senders: Vec<(UserId, InstallId)>,
}

impl TableReader {
    /// Checks the frame's tables.
    pub fn new(origins: Vec<v1::Origin>, senders: &[v1::Sender]) -> Result<Self, Refusal> {
        Ok(Self {
            origins: origins.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            senders: senders.iter().map(sender_from_wire).collect::<Result<_, _>>()?,
        })
    }

    /// The origin behind a reference.
    pub fn origin(&self, reference: u32) -> Result<Origin, Refusal> {
        let index = (reference as usize).checked_sub(1);
        index.and_then(|i| self.origins.get(i)).copied().ok_or_else(|| bad_reference("origin", reference))
    }

    /// An entry.
    pub fn entry(&self, e: v1::Entry) -> Result<Entry, Refusal> {
        let origin = self.origin(e.origin)?;
        let index = (e.sender as usize).checked_sub(1);
        let sender = index.and_then(|i| self.senders.get(i)).ok_or_else(|| bad_reference("sender", e.sender))?;
        entry_from_wire(e, origin, sender.clone(), None)
    }

    /// Heads.
    pub fn heads(&self, heads: &[v1::Head]) -> Result<Heads, Refusal> {
        heads.iter().map(|h| Ok((self.origin(h.origin)?, h.seq))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::codec::FrameReader;
    use super::*;

    fn send(conversation: u8, n: u64, body: &'static [u8]) -> SendRequest {
        SendRequest {
            conversation: ConvId([conversation; 16]),
            peer: None,
            n,
            floor: n,
            seen_hlc: hlc::from_ms(1_790_000_000_000),
            kind: 0,
            body: Bytes::from_static(body),
            wall_ms: 1_790_000_000_123,
            offer: None,
            membership: None,
            named: None,
        }
    }

    fn push(seq: u64, body: &'static [u8]) -> Push {
        let own = Origin { region: 1, era: 99 };
        let entry = Entry {
            peer: Some(UserId::new("bob").unwrap()),
            wall_ms: 1_789_999_999_900,
            ..Entry::text(
                Place { hlc: hlc::from_ms(1_790_000_000_000) + 1, origin: own, seq },
                Identity {
                    user: UserId::new("alice").unwrap(),
                    install: InstallId::new("a-phone-0001").unwrap(),
                    n: seq,
                },
                Bytes::from_static(body),
            )
        };
        Push {
            conversation: ConvId([5; 16]),
            peer: Some(UserId::new("bob").unwrap()),
            entries: vec![Arc::new(entry)],
            heads: [(own, seq), (Origin { region: 2, era: 7 }, 12), (Origin { region: 3, era: 8 }, 40)].into(),
            prev_rev: Rev(Rev::start_of(3).0 + seq - 1),
            rev: Rev(Rev::start_of(3).0 + seq),
            row: None,
        }
    }

    fn read_all(reader: &mut Reader, bytes: &BytesMut) -> Vec<Read> {
        let mut frames = FrameReader::new(1 << 20);
        frames.extend(bytes);
        let mut all = Vec::new();
        while let Some(frame) = frames.next::<v1::Frame>().unwrap() {
            match reader.read(frame).unwrap() {
                Read::Noted => {}
                read => all.push(read),
            }
        }
        all
    }

    #[test]
    fn what_is_written_is_read_and_repeats_cost_few_bytes() {
        const BODY: [u8; 128] = [b'x'; 128];
        let (mut writer, mut reader) = (Writer::default(), Reader::default());
        let mut sizes = Vec::new();
        for n in 1..=300 {
            let mut out = BytesMut::new();
            let expected = send(1, n, &BODY);
            writer.send(u32::try_from(n).unwrap(), &expected, &mut out);
            sizes.push(out.len() - BODY.len());
            assert_eq!(read_all(&mut reader, &out), [Read::Send(expected)]);
        }
        assert!(sizes[299] <= 40, "a Send costs {} bytes over its body", sizes[299]);

        let (mut writer, mut reader) = (Writer::default(), Reader::default());
        let mut over = 0;
        for seq in 1..=300 {
            let mut out = BytesMut::new();
            let mut expected = push(seq, &BODY);
            writer.push(&expected, &mut out);
            over = out.len() - BODY.len();
            if seq > 1 {
                expected.heads.retain(|o, _| o.region == 1);
            }
            assert_eq!(read_all(&mut reader, &out), [Read::Push(expected)]);
        }
        assert!(over <= 64, "a Push costs {over} bytes over its body");
    }

    #[test]
    fn a_push_that_folds_logs_says_all_heads_and_the_next_one_only_what_changed() {
        let (mut writer, mut reader) = (Writer::default(), Reader::default());
        let fold = Origin::fold(2, 9).unwrap();
        let mut heads = Vec::new();
        for seq in 1..=3 {
            let mut folding = push(seq, b"x");
            if seq > 1 {
                folding.heads.remove(&Origin { region: 2, era: 7 });
                folding.heads.insert(fold, 12);
            }
            let mut out = BytesMut::new();
            writer.push(&folding, &mut out);
            match &read_all(&mut reader, &out)[..] {
                [Read::Push(read)] => heads.push((read.heads.len(), read.heads.contains_key(&fold))),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(heads, [(3, false), (3, true), (1, false)]);
    }

    #[test]
    fn more_conversations_than_references_reuse_the_longest_unused() {
        let (mut writer, mut reader) = (Writer::default(), Reader::default());
        for round in 0..3u64 {
            for c in 0..u64::from(REFERENCES) + 100 {
                let mut id = [0; 16];
                id[..8].copy_from_slice(&c.to_be_bytes());
                let expected = SendRequest { conversation: ConvId(id), ..send(0, round + 1, b"x") };
                let mut out = BytesMut::new();
                writer.send(1, &expected, &mut out);
                assert_eq!(read_all(&mut reader, &out), [Read::Send(expected)]);
            }
        }
    }

    #[test]
    fn undefined_references_and_senseless_numbers_are_refused() {
        let refused = |body| Reader::default().read(v1::Frame::new(1, body)).unwrap_err().code;
        let send = v1::Send { conversation: 5, n: 1, ..Default::default() };
        assert_eq!(refused(v1::frame::Body::Send(send)), Code::BadReference);
        let send = v1::Send { conversation_id: vec![1; 15].into(), n: 1, ..Default::default() };
        assert_eq!(refused(v1::frame::Body::Send(send)), Code::BadId);
        let send = v1::Send { conversation_id: vec![1; 16].into(), n: 0, ..Default::default() };
        assert_eq!(refused(v1::frame::Body::Send(send)), Code::BadFrame);
        let send = v1::Send { conversation_id: vec![1; 16].into(), n: 2, floor_back: 2, ..Default::default() };
        assert_eq!(refused(v1::frame::Body::Send(send)), Code::BadFrame);
        let send = v1::Send {
            conversation_id: vec![1; 16].into(),
            n: 1,
            body: vec![0; BODY_BYTES + 1].into(),
            ..Default::default()
        };
        assert_eq!(refused(v1::frame::Body::Send(send)), Code::BodyTooLarge);
        let define =
            v1::Define { r#ref: REFERENCES + 1, what: Some(v1::define::What::Conversation(vec![0; 16].into())) };
        assert_eq!(refused(v1::frame::Body::Define(define)), Code::BadReference);
    }

    #[test]
    fn one_high_reference_costs_no_table() {
        let define =
            |reference| v1::Define { r#ref: reference, what: Some(v1::define::What::Conversation(vec![0; 16].into())) };
        let mut reader = Reader::default();
        for (reference, fine) in [(2, false), (1, true), (REFERENCES, false), (2, true), (1, true), (3, true)] {
            let read = reader.read(v1::Frame::new(0, v1::frame::Body::Define(define(reference))));
            assert_eq!(read.is_ok(), fine, "{reference}");
        }
    }

    #[test]
    fn a_page_resolves_its_own_table() {
        let mut table = Table::default();
        let entry = push(4, b"body").entries[0].clone();
        let wire = table.entry(&entry);
        let reader = TableReader::new(table.wire_origins, &table.wire_senders).unwrap();
        assert_eq!(reader.entry(wire).unwrap(), *entry);
        assert!(reader.origin(0).is_err() && reader.origin(2).is_err());
    }
}
