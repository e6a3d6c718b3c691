//! Pieces of which checkpoints are made: counts, texts, vectors, places. Integers are big-endian; a count or a length
//! is a u32 before what it counts.

use bytes::{Buf, BufMut, Bytes};

use crate::ids::{Heads, Identity, InstallId, Origin, Place, UserId};

pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
}

/// Anything counted takes at least one byte: a count beyond what is left is damage.
pub(crate) fn get_count(b: &mut Bytes) -> Option<usize> {
    b.try_get_u32().ok().map(|c| c as usize).filter(|c| *c <= b.len())
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}

pub(crate) fn get_bytes(b: &mut Bytes) -> Option<Bytes> {
    let length = get_count(b)?;
    Some(b.split_to(length))
}

pub(crate) fn get_user(b: &mut Bytes) -> Option<UserId> {
    UserId::from_bytes(&get_bytes(b)?).ok()
}

pub(crate) fn get_install(b: &mut Bytes) -> Option<InstallId> {
    InstallId::from_bytes(&get_bytes(b)?).ok()
}

pub(crate) fn put_identity(out: &mut Vec<u8>, by: &Identity) {
    put_text(out, by.user.as_str());
    put_text(out, by.install.as_str());
    out.put_u64(by.n);
}

pub(crate) fn get_identity(b: &mut Bytes) -> Option<Identity> {
    let (user, install) = (get_user(b)?, get_install(b)?);
    Some(Identity { user, install, n: b.try_get_u64().ok()? })
}

pub(crate) fn put_origin(out: &mut Vec<u8>, origin: Origin) {
    out.put_u8(origin.region);
    out.put_u64(origin.era);
}

pub(crate) fn get_origin(b: &mut Bytes) -> Option<Origin> {
    Some(Origin { region: b.try_get_u8().ok()?, era: b.try_get_u64().ok()? })
}

pub(crate) fn put_heads(out: &mut Vec<u8>, heads: &Heads) {
    put_count(out, heads.len());
    for (origin, seq) in heads {
        put_origin(out, *origin);
        out.put_u64(*seq);
    }
}

pub(crate) fn get_heads(b: &mut Bytes) -> Option<Heads> {
    let mut heads = Heads::new();
    for _ in 0..get_count(b)? {
        let origin = get_origin(b)?;
        heads.insert(origin, b.try_get_u64().ok()?);
    }
    Some(heads)
}

pub(crate) fn put_place(out: &mut Vec<u8>, place: Place) {
    out.put_u64(place.hlc);
    put_origin(out, place.origin);
    out.put_u64(place.seq);
}

pub(crate) fn get_place(b: &mut Bytes) -> Option<Place> {
    let hlc = b.try_get_u64().ok()?;
    let origin = get_origin(b)?;
    Some(Place { hlc, origin, seq: b.try_get_u64().ok()? })
}
