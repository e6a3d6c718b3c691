//! Cutting a stream into frames: a varint length, then so many bytes.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

/// Why a stream can't be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The length is above the limit.
    #[error("a frame of {length} bytes; at most {limit} are allowed")]
    TooLarge {
        /// What the stream announces.
        length: u64,
        /// What is allowed.
        limit: usize,
    },
    /// The length is no varint of at most 32 bits, or 0.
    #[error("a frame length that is not a varint of 1 to 2^32-1")]
    Length,
    /// The bytes are not the message they should be.
    #[error("a frame that is not valid protobuf: {0}")]
    Message(String),
}

/// Appends `message` with its length.
pub fn put<M: Message>(message: &M, out: &mut BytesMut) {
    let length = message.encoded_len();
    out.reserve(length + 5);
    prost::encoding::encode_varint(length as u64, out);
    message.encode_raw(out);
}

/// A reader of frames: bytes in, messages out. Holds at most one frame above what it was given.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    limit: usize,
}

impl FrameReader {
    /// Frames of more than `limit` bytes are an error.
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// Takes what was read.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer, to read into directly.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame's bytes, or `None` until more are read.
    pub fn next_bytes(&mut self) -> Result<Option<Bytes>, CodecError> {
        let mut length = 0u64;
        let mut used = 0;
        loop {
            let Some(&byte) = self.buffer.get(used) else {
                return if used >= 5 { Err(CodecError::Length) } else { Ok(None) };
            };
            length |= u64::from(byte & 0x7f) << (7 * used);
            used += 1;
            if byte & 0x80 == 0 {
                break;
            }
            if used == 5 {
                return Err(CodecError::Length);
            }
        }
        if length == 0 {
            return Err(CodecError::Length);
        }
        let Some(needed) = usize::try_from(length).ok().filter(|&l| l <= self.limit) else {
            return Err(CodecError::TooLarge { length, limit: self.limit });
        };
        if self.buffer.len() < used + needed {
            return Ok(None);
        }
        self.buffer.advance(used);
        let frame = self.buffer.split_to(needed).freeze();
        if self.buffer.is_empty() {
            // An idle connection keeps no buffer.
            self.buffer = BytesMut::new();
        }
        Ok(Some(frame))
    }

    /// The next whole message.
    #[expect(clippy::should_implement_trait, reason = "it fails and pauses, which an iterator does not")]
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<M>, CodecError> {
        match self.next_bytes()? {
            None => Ok(None),
            Some(bytes) => M::decode(bytes).map(Some).map_err(|e| CodecError::Message(e.to_string())),
        }
    }

    /// Whether a frame has begun and not ended: a stream that ends now was cut.
    pub fn in_frame(&self) -> bool {
        !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::v1;
    use proptest::prelude::*;

    fn ping(echo: u32) -> v1::Frame {
        v1::Frame::new(1, v1::frame::Body::Ping(v1::Ping { echo, foreground: true, ..v1::Ping::default() }))
    }

    #[test]
    fn frames_are_found_however_the_bytes_arrive() {
        let mut bytes = BytesMut::new();
        for echo in 0..50 {
            put(&ping(echo), &mut bytes);
        }
        for chunk in [1, 2, 3, 7, 1000] {
            let mut reader = FrameReader::new(100);
            let mut found = 0;
            for part in bytes.chunks(chunk) {
                reader.extend(part);
                while let Some(frame) = reader.next::<v1::Frame>().unwrap() {
                    assert_eq!(frame, ping(found));
                    found += 1;
                }
            }
            assert_eq!(found, 50);
            assert!(!reader.in_frame());
        }
    }

    #[test]
    fn lengths_that_are_too_large_zero_or_no_varint_are_errors() {
        let read = |bytes: &[u8]| {
            let mut reader = FrameReader::new(100);
            reader.extend(bytes);
            reader.next_bytes()
        };
        assert_eq!(read(&[101]), Err(CodecError::TooLarge { length: 101, limit: 100 }));
        assert_eq!(read(&[0]), Err(CodecError::Length));
        assert_eq!(read(&[0xff; 6]), Err(CodecError::Length));
        assert_eq!(read(&[0xff, 0xff]), Ok(None));
        assert!(matches!(read(&[0xff, 0xff, 0xff, 0xff, 0x7f]), Err(CodecError::TooLarge { .. })));
    }

    #[test]
    fn golden_frames() {
        let mut out = BytesMut::new();
        put(&ping(7), &mut out);
        assert_eq!(&out[..], [0x08, 0x08, 0x01, 0x32, 0x04, 0x08, 0x07, 0x10, 0x01]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(bytes: Vec<u8>) {
            let mut reader = FrameReader::new(1000);
            reader.extend(&bytes);
            while let Ok(Some(_)) = reader.next::<v1::Frame>() {}
        }
    }
}
