//! Frames that an edge packed.

use prost::Message;
use ruzstd::decoding::FrameDecoder;
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::v1::{Frame, Packed};

/// Why a packed frame can't be read. The connection is of no use any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UnpackError {
    /// Another kind of zstd frame than is agreed on: it would not tell how much memory it takes.
    #[error("a packed frame that is not one segment of known size")]
    Form,
    /// See [`FRAME_BYTES`].
    #[error("a packed frame of {0} bytes; at most {FRAME_BYTES} are allowed")]
    TooLarge(u64),
    /// Neither zstd nor protobuf, or packed twice.
    #[error("a packed frame that is damaged: {0}")]
    Damaged(String),
}

/// What is in it.
pub(crate) fn unpack(packed: &Packed) -> Result<Frame, UnpackError> {
    let size = content_size(&packed.zstd)?;
    let room = usize::try_from(size).ok().filter(|size| *size <= FRAME_BYTES).ok_or(UnpackError::TooLarge(size))?;
    let mut bytes = vec![0; room];
    let damaged = |cause: &dyn std::fmt::Display| UnpackError::Damaged(cause.to_string());
    let written = FrameDecoder::new().decode_all(&packed.zstd, &mut bytes).map_err(|e| damaged(&e))?;
    let frame = Frame::decode(bytes.get(..written).unwrap_or_default()).map_err(|e| damaged(&e))?;
    match frame.body {
        Some(Body::Packed(_)) => Err(damaged(&"it holds another one")),
        _ => Ok(frame),
    }
}

/// The size that its header tells (RFC 8878, 3.1.1.1): the decoder takes as much memory.
fn content_size(zstd: &[u8]) -> Result<u64, UnpackError> {
    let (magic, rest) = zstd.split_first_chunk::<4>().ok_or(UnpackError::Form)?;
    let (descriptor, rest) = rest.split_first().ok_or(UnpackError::Form)?;
    let single_segment = descriptor & 0x20 != 0;
    let dictionary = descriptor & 0x03 != 0;
    if *magic != 0xfd2f_b528_u32.to_le_bytes() || !single_segment || dictionary {
        return Err(UnpackError::Form);
    }
    let field = |bytes: usize| {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(rest.get(..bytes).ok_or(UnpackError::Form)?);
        Ok(u64::from_le_bytes(value))
    };
    match descriptor >> 6 {
        0 => field(1),
        1 => Ok(field(2)? + 256),
        2 => field(4),
        _ => field(8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tern_core::wire::v1::{Page, Ping};

    fn packed(bytes: &[u8]) -> Packed {
        Packed { zstd: zstd::bulk::compress(bytes, 1).unwrap().into() }
    }

    fn page(bytes: usize) -> Frame {
        let entry = tern_core::wire::v1::Entry { body: vec![b'x'; bytes].into(), ..Default::default() };
        Frame::new(3, Body::Page(Page { entries: vec![entry], ..Page::default() }))
    }

    #[test]
    fn frames_of_all_sizes_come_back() {
        for bytes in [0, 1, 200, 255, 256, 300, 65_000, 66_000, 130_000] {
            let frame = page(bytes);
            assert_eq!(unpack(&packed(&frame.encode_to_vec())), Ok(frame));
        }
    }

    #[test]
    fn bombs_and_broken_ones_are_refused_before_they_take_memory() {
        assert_eq!(unpack(&packed(&vec![0; 400_000])), Err(UnpackError::TooLarge(400_000)));
        assert_eq!(unpack(&packed(&vec![0; 50 << 20])), Err(UnpackError::Form));
        let twice = Frame::new(0, Body::Packed(packed(&page(9).encode_to_vec())));
        assert!(matches!(unpack(&packed(&twice.encode_to_vec())), Err(UnpackError::Damaged(_))));
        assert!(matches!(unpack(&packed(b"\xff\xff\xff")), Err(UnpackError::Damaged(_))));
        let good = packed(&Frame::new(1, Body::Ping(Ping { echo: 1, ..Ping::default() })).encode_to_vec()).zstd;
        for length in 0..good.len() {
            assert!(unpack(&Packed { zstd: good.slice(..length) }).is_err(), "{length}");
        }
        // A header that tells less than there is.
        let mut lies = good.to_vec();
        lies[5] -= 1;
        assert!(unpack(&Packed { zstd: lies.into() }).is_err());
        // A stream of unknown size, as an encoder without the size makes it.
        let unknown = zstd::stream::encode_all(&[1u8; 1000][..], 1).unwrap();
        assert_eq!(unpack(&Packed { zstd: unknown.into() }), Err(UnpackError::Form));
    }
}
