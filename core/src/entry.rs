//! A message as it lies in a log, and its stored form.
//!
//! The header is fixed and the body is opaque: a region stores and ships kinds it has never heard of. The
//! stored form is also what region links carry, so that every region writes the same bytes; its first byte
//! is the format, and golden bytes in the tests pin it.
//!
//! ```text
//! u8  format = 1        u8  flags (1 only_sender, 2 first, 4 peer, 8 erased, 16 stamp)
//! u32 kind              u64 hlc   u8 region   u64 era   u64 seq   u64 n   u64 wall_ms
//! [first: u64 hlc, u8 region, u64 era, u64 seq]
//! u8+user  u8+install  [u8+peer]
//! [stamp: u16 count, per origin u8 region, u64 era, u64 seq; [u8; 16] receipt]
//! [u8; 32] SHA-256 of the body as it was sent    u32+body
//! ```
//! Integers are big-endian.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use ring::digest::{Context, SHA256};

use crate::ids::{Heads, Identity, InstallId, Origin, Place, Seq, UserId, body_hash};
use crate::kinds::is_membership;
use crate::limits::BODY_BYTES;
use crate::receipt::{RECEIPT_BYTES, Receipt};

const FORMAT: u8 = 1;
const ONLY_SENDER: u8 = 1;
const FIRST: u8 = 2;
const PEER: u8 = 4;
const ERASED: u8 = 8;
const STAMP: u8 = 16;

/// One entry of one conversation's log. Immutable once decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands in its log.
    pub place: Place,
    /// What it is.
    pub by: Identity,
    /// Direct conversations: the other user. Every entry names him, so that no region needs an earlier entry
    /// to know the members.
    pub peer: Option<UserId>,
    /// 0 = text; others by agreement of applications, or of later versions.
    pub kind: u32,
    /// When the user pressed send, by his own clock. Shown, never ordered by.
    pub wall_ms: u64,
    /// The display key that an earlier copy of this identity was acked with (R4).
    pub first: Option<Place>,
    /// Membership entries: what the sequencer added.
    pub stamp: Option<Arc<Stamp>>,
    /// For the sender alone: the receiver has blocked him (R11).
    pub only_sender: bool,
    /// SHA-256 of the body as it was sent; stays when the body is erased (R16).
    pub body_hash: [u8; 32],
    /// The content; empty when erased.
    pub body: Bytes,
    /// The body was erased.
    pub erased: bool,
}

/// What the sequencer adds to a membership entry, so that every region applies the same, and any member can prove
/// it to a region that lacks it (R10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// What the sequencing region held of the conversation, the entry itself included.
    pub cut: Heads,
    /// Over display key, identity and [`Entry::proof`].
    pub receipt: Receipt,
}

/// What receipts cover besides display key and identity. For text that is the body's hash; other kinds, and what
/// the sequencer added, are hashed in: a receipt for one kind must not pass for another.
pub fn proof(kind: u32, body_hash: &[u8; 32], cut: &Heads) -> [u8; 32] {
    if kind == 0 {
        return *body_hash;
    }
    let mut hash = Context::new(&SHA256);
    hash.update(b"tern proof 1");
    hash.update(&kind.to_be_bytes());
    hash.update(body_hash);
    for (origin, seq) in cut {
        hash.update(&[origin.region]);
        hash.update(&origin.era.to_be_bytes());
        hash.update(&seq.to_be_bytes());
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// They end too early, or go on too long.
    #[error("an entry of a wrong length")]
    Length,
    /// Written by a version that this one does not know.
    #[error("entry format {0} is not known to this version")]
    Format(u8),
    /// A user or install id that is none.
    #[error("an entry with a bad id")]
    Id,
    /// Region 0, or seq 0, or n 0.
    #[error("an entry with a place or identity of 0")]
    Zero,
    /// A membership entry without its stamp, or a stamp on another.
    #[error("a stamp where none belongs, or none where one does")]
    Stamp,
    /// The body is not the one that the header describes.
    #[error("an entry whose body does not match its hash")]
    Hash,
}

impl Entry {
    /// A text to a group, with nothing added to it and without a time of its writer's: `..Entry::text(...)` gives the rest.
    pub fn text(place: Place, by: Identity, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self {
            place,
            by,
            peer: None,
            kind: 0,
            wall_ms: 0,
            first: None,
            stamp: None,
            only_sender: false,
            body_hash: body_hash(&body),
            body,
            erased: false,
        }
    }

    /// The key that messages are displayed by: the lowest of all copies' keys counts.
    pub fn display_key(&self) -> Place {
        self.first.unwrap_or(self.place)
    }

    /// What a receipt for it covers, see [`proof`].
    pub fn proof(&self) -> [u8; 32] {
        let none = Heads::new();
        proof(self.kind, &self.body_hash, self.stamp.as_ref().map_or(&none, |s| &s.cut))
    }

    /// The form that replaces it when its body is erased (R16).
    #[must_use]
    pub fn to_erased(&self) -> Self {
        Self { body: Bytes::new(), erased: true, ..self.clone() }
    }

    /// Position in its log.
    pub fn seq(&self) -> Seq {
        self.place.seq
    }

    /// Bytes of the stored form.
    pub fn encoded_len(&self) -> usize {
        2 + 4
            + 8
            + 1
            + 8
            + 8
            + 8
            + 8
            + self.first.map_or(0, |_| 25)
            + 1
            + self.by.user.as_str().len()
            + 1
            + self.by.install.as_str().len()
            + self.peer.as_ref().map_or(0, |p| 1 + p.as_str().len())
            + self.stamp.as_ref().map_or(0, |s| 2 + s.cut.len() * 17 + RECEIPT_BYTES)
            + 32
            + 4
            + self.body.len()
    }

    /// Writes the stored form.
    pub fn encode(&self, out: &mut impl BufMut) {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        out.put_u8(FORMAT);
        out.put_u8(
            flag(self.only_sender, ONLY_SENDER)
                | flag(self.first.is_some(), FIRST)
                | flag(self.peer.is_some(), PEER)
                | flag(self.erased, ERASED)
                | flag(self.stamp.is_some(), STAMP),
        );
        out.put_u32(self.kind);
        put_place(out, self.place);
        out.put_u64(self.by.n);
        out.put_u64(self.wall_ms);
        if let Some(first) = self.first {
            put_place(out, first);
        }
        put_text(out, self.by.user.as_str());
        put_text(out, self.by.install.as_str());
        if let Some(peer) = &self.peer {
            put_text(out, peer.as_str());
        }
        if let Some(stamp) = &self.stamp {
            out.put_u16(u16::try_from(stamp.cut.len()).unwrap_or(u16::MAX));
            for (origin, seq) in stamp.cut.iter().take(usize::from(u16::MAX)) {
                out.put_u8(origin.region);
                out.put_u64(origin.era);
                out.put_u64(*seq);
            }
            out.put_slice(&stamp.receipt);
        }
        out.put_slice(&self.body_hash);
        #[expect(clippy::cast_possible_truncation, reason = "bodies are at most 64 KiB")]
        out.put_u32(self.body.len() as u32);
        out.put_slice(&self.body);
    }

    /// The stored form.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.encode(&mut out);
        out.into()
    }

    /// Reads the stored form and checks that the body is the one described.
    pub fn decode(bytes: Bytes) -> Result<Self, EntryError> {
        let entry = Self::decode_unchecked(bytes)?;
        if !entry.erased && body_hash(&entry.body) != entry.body_hash {
            return Err(EntryError::Hash);
        }
        Ok(entry)
    }

    /// Reads the stored form where the bytes are covered by a checksum of the store.
    pub fn decode_unchecked(mut b: Bytes) -> Result<Self, EntryError> {
        let format = b.try_get_u8().map_err(|_| EntryError::Length)?;
        if format != FORMAT {
            return Err(EntryError::Format(format));
        }
        let flags = b.try_get_u8().map_err(|_| EntryError::Length)?;
        let kind = b.try_get_u32().map_err(|_| EntryError::Length)?;
        let place = get_place(&mut b)?;
        let n = b.try_get_u64().map_err(|_| EntryError::Length)?;
        let wall_ms = b.try_get_u64().map_err(|_| EntryError::Length)?;
        let first = if flags & FIRST != 0 { Some(get_place(&mut b)?) } else { None };
        let user = UserId::from_bytes(&get_text(&mut b)?).map_err(|_| EntryError::Id)?;
        let install = InstallId::from_bytes(&get_text(&mut b)?).map_err(|_| EntryError::Id)?;
        let peer = if flags & PEER != 0 {
            Some(UserId::from_bytes(&get_text(&mut b)?).map_err(|_| EntryError::Id)?)
        } else {
            None
        };
        let stamp = if flags & STAMP != 0 { Some(Arc::new(get_stamp(&mut b)?)) } else { None };
        if stamp.is_some() != is_membership(kind) {
            return Err(EntryError::Stamp);
        }
        let mut body_hash = [0; 32];
        b.try_copy_to_slice(&mut body_hash).map_err(|_| EntryError::Length)?;
        let length = b.try_get_u32().map_err(|_| EntryError::Length)? as usize;
        if length != b.len() || length > BODY_BYTES {
            return Err(EntryError::Length);
        }
        if n == 0 {
            return Err(EntryError::Zero);
        }
        Ok(Self {
            place,
            by: Identity { user, install, n },
            peer,
            kind,
            wall_ms,
            first,
            stamp,
            only_sender: flags & ONLY_SENDER != 0,
            body_hash,
            body: b,
            erased: flags & ERASED != 0,
        })
    }
}

fn put_place(out: &mut impl BufMut, place: Place) {
    out.put_u64(place.hlc);
    out.put_u8(place.origin.region);
    out.put_u64(place.origin.era);
    out.put_u64(place.seq);
}

fn get_place(b: &mut Bytes) -> Result<Place, EntryError> {
    if b.len() < 25 {
        return Err(EntryError::Length);
    }
    let place = Place { hlc: b.get_u64(), origin: Origin { region: b.get_u8(), era: b.get_u64() }, seq: b.get_u64() };
    if place.origin.region == 0 || place.seq == 0 { Err(EntryError::Zero) } else { Ok(place) }
}

fn get_stamp(b: &mut Bytes) -> Result<Stamp, EntryError> {
    let count = usize::from(b.try_get_u16().map_err(|_| EntryError::Length)?);
    if b.len() < count * 17 + RECEIPT_BYTES {
        return Err(EntryError::Length);
    }
    let cut = (0..count).map(|_| (Origin { region: b.get_u8(), era: b.get_u64() }, b.get_u64())).collect();
    let mut receipt = [0; RECEIPT_BYTES];
    b.copy_to_slice(&mut receipt);
    Ok(Stamp { cut, receipt })
}

fn put_text(out: &mut impl BufMut, text: &str) {
    #[expect(clippy::cast_possible_truncation, reason = "ids are at most 64 bytes")]
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

fn get_text(b: &mut Bytes) -> Result<Bytes, EntryError> {
    let length = usize::from(b.try_get_u8().map_err(|_| EntryError::Length)?);
    if b.len() < length { Err(EntryError::Length) } else { Ok(b.split_to(length)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Entry {
        Entry {
            peer: Some(UserId::new("bob").unwrap()),
            wall_ms: 5,
            ..Entry::text(
                Place { hlc: 0x0102_0304_0506_0708, origin: Origin { region: 1, era: 0x1112_1314_1516_1718 }, seq: 3 },
                Identity { user: UserId::new("al").unwrap(), install: InstallId::new("p").unwrap(), n: 4 },
                Bytes::from_static(b"hi"),
            )
        }
    }

    #[test]
    fn the_stored_form_is_pinned() {
        let hex: String = sample().to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        let expected = concat!(
            "01",
            "04",
            "00000000",
            "0102030405060708",
            "01",
            "1112131415161718",
            "0000000000000003",
            "0000000000000004",
            "0000000000000005",
            "02616c",
            "0170",
            "03626f62",
            "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4",
            "00000002",
            "6869",
        );
        assert_eq!(hex, expected);
    }

    #[test]
    fn a_body_that_does_not_match_its_hash_is_refused() {
        let mut entry = sample();
        entry.body = Bytes::from_static(b"ho");
        assert_eq!(Entry::decode(entry.to_bytes()), Err(EntryError::Hash));
        entry.body = Bytes::new();
        entry.erased = true;
        assert_eq!(Entry::decode(entry.to_bytes()), Ok(entry));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(hlc: u64, era: u64, seq in 1u64.., n in 1u64.., kind in prop_oneof![any::<u32>(), 14u32..24], wall_ms: u64,
            user in "[a-zü]{1,20}", peer in proptest::option::of("[a-z]{1,64}"), body: Vec<u8>, only_sender: bool, first: bool) {
            let body = Bytes::from(body);
            let place = Place { hlc, origin: Origin { region: 7, era }, seq };
            let entry = Entry {
                place, by: Identity { user: UserId::new(&user).unwrap(), install: InstallId::new("i").unwrap(), n },
                peer: peer.map(|p| UserId::new(&p).unwrap()), kind, wall_ms,
                first: first.then_some(place), stamp: is_membership(kind).then(|| Arc::new(Stamp { cut: [(place.origin, n)].into(), receipt: [7; 16] })),
                only_sender, body_hash: body_hash(&body), body, erased: false,
            };
            prop_assert_eq!(entry.encoded_len(), entry.to_bytes().len());
            prop_assert_eq!(Entry::decode(entry.to_bytes()), Ok(entry));
        }

        #[test]
        fn any_bytes_are_an_entry_or_an_error(bytes: Vec<u8>) {
            let _entry_or_error = Entry::decode(Bytes::from(bytes));
        }

        #[test]
        fn a_cut_entry_is_an_error(cut in 0usize..100) {
            let whole = sample().to_bytes();
            prop_assume!(cut < whole.len());
            prop_assert!(Entry::decode(whole.slice(..cut)).is_err());
        }
    }
}
