//! Where the frames of a request's stream begin and end, as far as bounds need it.
//!
//! *Problem.* The h3 crate holds a frame until it is whole, however long it says that it is, and takes a stream that
//! ends within a DATA frame for one that ends. The first is memory without a bound for whoever sends nine bytes; the
//! second makes half a body out of a client that died while it sent, and a half that ends with a whole frame of ours
//! would be taken for all of it.
//!
//! *Rule.* Types and lengths (RFC 9114, 7.1) are read here as well, before that crate sees the bytes. Only DATA may be
//! longer than a header; and a stream ends between two frames, or was cut short.

/// The type of frames that carry a body.
const DATA: u64 = 0;
/// Bytes of a type and a length at most.
const HEAD_BYTES: usize = 16;

/// A frame that is no DATA says that it is longer than a header may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Follows the bytes of one direction of a stream.
#[derive(Debug)]
pub(super) struct Framing {
    head: [u8; HEAD_BYTES],
    have: usize,
    /// Bytes of the payload that are to come.
    left: u64,
    longest: u64,
}

impl Framing {
    /// `longest`: bytes of any frame but DATA.
    pub(super) fn new(longest: usize) -> Self {
        Self { head: [0; HEAD_BYTES], have: 0, left: 0, longest: longest as u64 }
    }

    /// These bytes come next.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= n as u64;
                bytes = &bytes[n..];
                continue;
            }
            self.head[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            let head = &self.head[..self.have];
            if let Some((kind, n)) = varint(head)
                && let Some((length, _)) = varint(&head[n..])
            {
                if kind != DATA && length > self.longest {
                    return Err(TooLong);
                }
                (self.left, self.have) = (length, 0);
            }
        }
        Ok(())
    }

    /// Whether a stream may end here.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

/// A number of RFC 9000, 16, and its bytes, if it is whole.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let n = 1 << (first >> 6);
    let rest = bytes.get(1..n)?;
    Some((rest.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte)), n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, length: u16) -> Vec<u8> {
        let mut frame = vec![kind];
        frame.extend((0x4000 | length).to_be_bytes());
        frame.extend(vec![0xff; usize::from(length)]);
        frame
    }

    proptest! {
        #[test]
        fn however_the_bytes_come_a_stream_ends_only_between_frames(
            lengths in proptest::collection::vec((0u8..9, 0u16..300), 1..8),
            cut in 1usize..40,
        ) {
            let whole: Vec<u8> = lengths.iter().flat_map(|(kind, length)| frame(*kind, *length)).collect();
            let mut ends: Vec<usize> = vec![0];
            for (kind, length) in &lengths {
                ends.push(ends[ends.len() - 1] + frame(*kind, *length).len());
            }
            let (mut framing, mut at) = (Framing::new(300), 0);
            for piece in whole.chunks(cut) {
                framing.feed(piece).unwrap();
                at += piece.len();
                prop_assert_eq!(framing.is_between(), ends.contains(&at), "at {}", at);
            }
        }
    }

    #[test]
    fn a_body_may_be_of_any_length_and_nothing_else() {
        let longest = [0xff; 8];
        let mut framing = Framing::new(1_000);
        framing.feed(&[&[0][..], &longest].concat()).unwrap();
        framing.feed(&[7; 5_000]).unwrap();
        assert!(!framing.is_between());
        for kind in [1, 4, 0x21, 0x3f] {
            assert_eq!(Framing::new(1_000).feed(&[&[kind][..], &longest].concat()), Err(TooLong), "{kind}");
            assert_eq!(Framing::new(1_000).feed(&[kind, 0x43, 0xe8]), Ok(()), "exactly as long");
            assert_eq!(Framing::new(1_000).feed(&[kind, 0x43, 0xe9]), Err(TooLong));
        }
        let mut grease = Framing::new(1_000);
        grease.feed(&[0xc0, 0, 0, 0, 0, 0, 0, 0x21, 0xc0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert!(!grease.is_between());
        grease.feed(&[0]).unwrap();
        assert!(grease.is_between(), "16 bytes of head and no payload");
    }
}
