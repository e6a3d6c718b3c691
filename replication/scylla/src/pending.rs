//! The newest batch of a log as it lies in the tail.
//!
//! ```text
//! u8 format = 1   u64 first seq   u16 count   per entry u32+value, see tern_replication::store::format
//! [u8; 16] the first bytes of SHA-256 over all that
//! ```
//! Integers are big-endian. The values are what the timeline holds, byte for byte.

use bytes::{Buf, BufMut, Bytes};
use ring::digest::{SHA256, digest};
use tern_core::ids::Seq;

const FORMAT: u8 = 1;
const SUM_BYTES: usize = 16;

/// Writes a batch of contiguous entries.
pub(crate) fn encode(first: Seq, values: &[Bytes]) -> Bytes {
    let mut out = Vec::with_capacity(11 + SUM_BYTES + values.iter().map(|value| 4 + value.len()).sum::<usize>());
    out.put_u8(FORMAT);
    out.put_u64(first);
    #[expect(clippy::cast_possible_truncation, reason = "a step has at most u16::MAX entries, see append")]
    out.put_u16(values.len() as u16);
    for value in values {
        #[expect(clippy::cast_possible_truncation, reason = "a body has at most 64 KiB, and the rest is short")]
        out.put_u32(value.len() as u32);
        out.put_slice(value);
    }
    let sum = digest(&SHA256, &out);
    out.put_slice(&sum.as_ref()[..SUM_BYTES]);
    out.into()
}

/// Reads a batch: its first seq and its values. The error says what is wrong with it.
pub(crate) fn decode(stored: &Bytes) -> Result<(Seq, Vec<Bytes>), &'static str> {
    let end = stored.len().checked_sub(SUM_BYTES).ok_or("the newest batch is cut off")?;
    if digest(&SHA256, &stored[..end]).as_ref()[..SUM_BYTES] != stored[end..] {
        return Err("the newest batch does not match its checksum");
    }
    let mut b = stored.slice(..end);
    let cut = "the newest batch is cut off";
    if b.try_get_u8().map_err(|_| cut)? != FORMAT {
        return Err("the newest batch has a format that this version does not know");
    }
    let first = b.try_get_u64().map_err(|_| cut)?;
    let count = b.try_get_u16().map_err(|_| cut)?;
    let mut values = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = b.try_get_u32().map_err(|_| cut)? as usize;
        if length > b.len() {
            return Err(cut);
        }
        values.push(b.split_to(length));
    }
    if b.is_empty() { Ok((first, values)) } else { Err("the newest batch goes on too long") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let stored = encode(7, &[Bytes::from_static(b"ab"), Bytes::new()]);
        let hex: String = stored.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "010000000000000007000200000002616200000000bf1cb5b65f60c56783031f313ba7af84");
        assert_eq!(decode(&stored), Ok((7, vec![Bytes::from_static(b"ab"), Bytes::new()])));
    }

    #[test]
    fn every_changed_or_missing_byte_is_seen() {
        let stored = encode(1, &[Bytes::from_static(b"message"), Bytes::from_static(b"another")]);
        for at in 0..stored.len() {
            let mut changed = stored.to_vec();
            changed[at] ^= 1;
            assert!(decode(&Bytes::from(changed)).is_err(), "byte {at}");
            assert!(decode(&stored.slice(..at)).is_err(), "cut at {at}");
        }
    }
}
