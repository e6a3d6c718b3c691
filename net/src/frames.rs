//! Length-prefixed frames over streams.
//!
//! Reads may be cancelled at any await: what was read stays in the reader. An idle reader holds no buffer,
//! because most connections are idle; bytes pass through the stack until a frame is cut short.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tern_core::wire::codec::{self, CodecError, FrameReader};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Bytes taken from a stream by one read: a full TLS record.
pub const READ_BYTES: usize = 16 * 1024;
/// Bytes taken from a QUIC stream by one read: one buffered stretch of packets.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Why no more frames come from a stream.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side sent what is no frame. Nothing after it can be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The stream ended inside a frame; that frame is lost.
    #[error("the stream ended in the middle of a frame")]
    Cut,
    /// The stream failed.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
}

/// Reads once from `io` and appends it to the reader's buffer: bytes read, 0 at the end of the stream.
pub fn poll_fill<R: AsyncRead + Unpin>(
    io: &mut R,
    reader: &mut FrameReader,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut space = [const { MaybeUninit::<u8>::uninit() }; READ_BYTES];
    let mut buffer = ReadBuf::uninit(&mut space);
    ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
    reader.extend(buffer.filled());
    Poll::Ready(Ok(buffer.filled().len()))
}

/// Frames from any byte stream.
#[derive(Debug)]
pub struct Frames<R> {
    io: R,
    reader: FrameReader,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Frames above `limit` bytes are an error.
    pub fn new(io: R, limit: usize) -> Self {
        Self { io, reader: FrameReader::new(limit) }
    }

    /// The next frame's bytes; `None` where the stream ended between frames. May be cancelled.
    pub async fn next_bytes(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(bytes) = self.reader.next_bytes()? {
                return Ok(Some(bytes));
            }
            let (io, reader) = (&mut self.io, &mut self.reader);
            if poll_fn(|cx| poll_fill(io, reader, cx)).await? == 0 {
                return if self.reader.in_frame() { Err(FrameError::Cut) } else { Ok(None) };
            }
        }
    }

    /// The next message, likewise.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        decode(self.next_bytes().await?)
    }

    /// A whole message that was read already, without waiting.
    pub fn buffered<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        Ok(self.reader.next()?)
    }
}

/// Frames from a QUIC stream, without a copy into a read buffer of its own.
#[derive(Debug)]
pub struct QuicFrames {
    stream: quinn::RecvStream,
    reader: FrameReader,
}

impl QuicFrames {
    /// Frames above `limit` bytes are an error.
    pub fn new(stream: quinn::RecvStream, limit: usize) -> Self {
        Self { stream, reader: FrameReader::new(limit) }
    }

    /// The next frame's bytes; `None` where the stream ended between frames. May be cancelled.
    pub async fn next_bytes(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(bytes) = self.reader.next_bytes()? {
                return Ok(Some(bytes));
            }
            match self.stream.read_chunk(CHUNK_BYTES, true).await.map_err(io::Error::from)? {
                Some(chunk) => self.reader.extend(&chunk.bytes),
                None if self.reader.in_frame() => return Err(FrameError::Cut),
                None => return Ok(None),
            }
        }
    }

    /// The next message, likewise.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        decode(self.next_bytes().await?)
    }

    /// A whole message that was read already, without waiting.
    pub fn buffered<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        Ok(self.reader.next()?)
    }

    /// The stream, to stop it.
    pub fn stream(&mut self) -> &mut quinn::RecvStream {
        &mut self.stream
    }
}

fn decode<M: Message + Default>(bytes: Option<Bytes>) -> Result<Option<M>, FrameError> {
    let message = bytes.map(M::decode).transpose();
    message.map_err(|e| FrameError::Codec(CodecError::Message(e.to_string())))
}

/// Frames that wait to be written to one stream. The caller bounds what he puts in.
#[derive(Debug, Default)]
pub struct FrameWriter {
    out: BytesMut,
}

impl FrameWriter {
    /// Nothing waits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one message.
    pub fn put<M: Message>(&mut self, message: &M) {
        codec::put(message, &mut self.out);
    }

    /// The buffer, to append encoded frames to.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Writes as much as `io` takes at once. Ready when all is written and flushed; may be polled again after
    /// anything, and frames may be appended meanwhile.
    pub fn poll_write<W: AsyncWrite + Unpin>(&mut self, io: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, &self.out))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.out.advance(n),
            }
        }
        // An idle stream keeps no buffer.
        self.out = BytesMut::new();
        Pin::new(io).poll_flush(cx)
    }

    /// Writes everything. May be cancelled: what was not written stays.
    pub async fn write<W: AsyncWrite + Unpin>(&mut self, io: &mut W) -> io::Result<()> {
        poll_fn(|cx| self.poll_write(io, cx)).await
    }
}

/// Writes one message. Not for use where it may be cancelled: half a frame ruins the stream.
pub async fn write_one<M: Message, W: AsyncWrite + Unpin>(io: &mut W, message: &M) -> io::Result<()> {
    let mut out = BytesMut::new();
    codec::put(message, &mut out);
    io.write_all(&out).await?;
    io.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tern_core::wire::v1;
    use tokio::io::duplex;

    fn ping(echo: u32) -> v1::Frame {
        v1::Frame::new(echo, v1::frame::Body::Ping(v1::Ping { echo, foreground: false, ..v1::Ping::default() }))
    }

    #[tokio::test]
    async fn frames_survive_a_narrow_stream_and_cancelled_reads() {
        let (mut near, far) = duplex(3);
        let mut frames = Frames::new(far, 100);
        let writing = async {
            let mut writer = FrameWriter::new();
            (0..100).for_each(|i| writer.put(&ping(i)));
            writer.write(&mut near).await.unwrap();
            drop(near);
        };
        let reading = async {
            let mut expected = 0;
            loop {
                // Half of the reads are dropped before they end.
                tokio::select! {
                    biased;
                    frame = frames.next::<v1::Frame>() => match frame.unwrap() {
                        Some(frame) => { assert_eq!(frame, ping(expected)); expected += 1; }
                        None => break,
                    },
                    () = tokio::task::yield_now() => {}
                }
            }
            assert_eq!(expected, 100);
        };
        tokio::join!(writing, reading);
    }

    #[tokio::test]
    async fn a_stream_cut_inside_a_frame_and_a_frame_too_large_are_told() {
        let (mut near, far) = duplex(1000);
        near.write_all(&[8, 1, 2]).await.unwrap();
        drop(near);
        assert!(matches!(Frames::new(far, 100).next_bytes().await, Err(FrameError::Cut)));
        let (mut near, far) = duplex(1000);
        near.write_all(&[101, 1, 2]).await.unwrap();
        let error = Frames::new(far, 100).next_bytes().await.unwrap_err();
        assert!(matches!(error, FrameError::Codec(CodecError::TooLarge { length: 101, limit: 100 })));
    }

    #[tokio::test]
    async fn a_written_buffer_is_given_back() {
        let (mut near, _far) = duplex(1 << 20);
        let mut writer = FrameWriter::new();
        (0..10_000).for_each(|i| writer.put(&ping(i)));
        assert!(writer.buffer().capacity() > 10_000);
        writer.write(&mut near).await.unwrap();
        assert!(writer.is_empty() && writer.buffer().capacity() == 0);
    }
}
