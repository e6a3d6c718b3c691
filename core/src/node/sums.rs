//! Hashes by which two regions compare what they hold: heads of conversations, and read marks (R13).
//!
//! Each thing that is compared has a hash, each slot the wrapping sum of the hashes in it; so a slot differs where
//! anything in it does, in whatever order it was added up. Their forms are part of the protocol between nodes.

use ring::digest::{Context, SHA256};

use crate::ids::Heads;

/// The first `bits` (at most 16) of SHA-256 over the parts: in which slot something lies. Clients choose ids of groups
/// and names of users, so their own bits may be uneven.
pub(super) fn slot(parts: &[&[u8]], bits: u32) -> usize {
    let hash = sha256(parts, &Heads::new());
    usize::from(u16::from_be_bytes([hash[0], hash[1]]) >> (16 - bits))
}

/// The first 8 bytes, big-endian, of SHA-256 over the parts and, per origin in order, region, era and seq. Empty logs
/// do not count.
pub(super) fn hash(parts: &[&[u8]], heads: &Heads) -> u64 {
    u64::from_be_bytes(sha256(parts, heads))
}

fn sha256(parts: &[&[u8]], heads: &Heads) -> [u8; 8] {
    let mut hash = Context::new(&SHA256);
    parts.iter().for_each(|part| hash.update(part));
    for (origin, seq) in heads.iter().filter(|(_, seq)| **seq > 0) {
        hash.update(&[origin.region]);
        hash.update(&origin.era.to_be_bytes());
        hash.update(&seq.to_be_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finish().as_ref()[..8]);
    first
}
