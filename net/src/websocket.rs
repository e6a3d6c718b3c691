//! WebSocket (RFC 6455), version 13, as far as tern needs it: binary messages that carry whole frames.
//!
//! No extension, no text. What one side sends are length-prefixed frames as over TCP, cut into messages only
//! between frames, so that a client whose library hands out messages needs no buffer across them. The opening
//! handshake is HTTP's and is made by whoever has the HTTP connection; [`accept_key`] is its one computation.

mod codec;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tern_core::clock::Entropy;
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::codec::FrameReader;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use self::codec::{CLOSE, CONTROL_BYTES, Decoder, PONG, Side};
use crate::frames::{FrameWriter, READ_BYTES};
use crate::proxy::read_head;

/// A message has at most so many bytes, in both directions: the largest frame with its length.
pub const MESSAGE_BYTES: usize = FRAME_BYTES + 5;
/// The subprotocol that both sides name.
pub const SUBPROTOCOL: &str = "tern.1";
/// Appended to the client's key (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the other side did wrong. Nothing more can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebSocketError {
    /// Bytes that are no WebSocket frames.
    #[error("not a WebSocket frame: {0}")]
    Protocol(&'static str),
    /// A text message.
    #[error("a text message; frames come in binary messages")]
    Text,
    /// A message above the limit.
    #[error("a message above {MESSAGE_BYTES} bytes")]
    TooLarge,
    /// A message that ended within a frame.
    #[error("a message that ends in the middle of a frame; each carries whole ones")]
    Cut,
}

impl WebSocketError {
    /// The code to close with (7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::Text => 1003,
            Self::Cut => 1007,
            Self::TooLarge => 1009,
        }
    }

    /// Of an error that reading returned; `None` where the stream failed.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Self>().copied()
    }
}

/// What the server answers to a client's `Sec-WebSocket-Key`.
pub fn accept_key(key: &str) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(GUID.as_bytes());
    base64(context.finish().as_ref())
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A key for a client's opening handshake.
pub fn new_key(rng: &Entropy) -> String {
    let mut key = [0; 16];
    rng.fill(&mut key);
    base64(&key)
}

/// Whether a key is what it must be: 16 bytes in base64.
pub fn is_key(key: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(key).is_ok_and(|key| key.len() == 16)
}

/// Whether bytes are length-prefixed frames, each of them whole.
pub fn are_whole_frames(bytes: &[u8]) -> bool {
    codec::are_whole(bytes)
}

/// Bytes of the first of these length-prefixed frames, its length included; all of them where it is not whole.
pub fn first_frame(bytes: &[u8]) -> usize {
    codec::first_frame(bytes)
}

/// Makes the opening handshake on a stream to this host, and is the client of what comes of it. Not to be
/// cancelled and tried again: half a handshake ruins the stream.
///
/// # Errors
/// The stream's; and `InvalidData` where the other side says anything but that it switches, or says no end of it.
pub async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    host: &str,
    path: &str,
    rng: Arc<Entropy>,
) -> io::Result<WebSocket<S>> {
    let refused = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let key = new_key(&rng);
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let head = read_head(&mut stream).await?;
    let (status, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let said = |name: &str| {
        let named = headers.lines().filter_map(|line| line.split_once(':'));
        named.filter(|(n, _)| n.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    };
    if status.split(' ').nth(1) != Some("101") {
        return Err(refused(format!("no WebSocket is to be had here: {status}")));
    }
    if said("sec-websocket-accept") != Some(&accept_key(&key)) || said("sec-websocket-protocol") != Some(SUBPROTOCOL) {
        return Err(refused("the answer is not one to this handshake".to_owned()));
    }
    Ok(WebSocket::client(stream, rng))
}

/// A connection after its opening handshake.
#[derive(Debug)]
pub struct WebSocket<S> {
    stream: S,
    decoder: Decoder,
    /// Draws masks: a client.
    rng: Option<Arc<Entropy>>,
    /// Encoded and not written.
    out: BytesMut,
    /// Written, but not yet flushed to the network.
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// The server's side.
    pub fn server(stream: S) -> Self {
        Self { stream, decoder: Decoder::new(Side::Server), rng: None, out: BytesMut::new(), unflushed: false }
    }

    /// The client's side, which masks what it sends.
    pub fn client(stream: S, rng: Arc<Entropy>) -> Self {
        Self { stream, decoder: Decoder::new(Side::Client), rng: Some(rng), out: BytesMut::new(), unflushed: false }
    }

    /// Reads once and appends what messages carry to the reader: bytes taken from the network, 0 at the end.
    /// Pings are answered.
    ///
    /// # Errors
    /// The stream's, and [`WebSocketError`].
    pub fn poll_fill(&mut self, reader: &mut FrameReader, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.decoder.closed.is_some() {
            return Poll::Ready(Ok(0));
        }
        let mut space = [const { MaybeUninit::<u8>::uninit() }; READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        let read = buffer.filled();
        self.decoder.decode(read, reader.buffer()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if self.decoder.ping.is_some() {
            // What is left of it goes with the next write.
            let _ = self.poll_out(cx)?;
        }
        Poll::Ready(Ok(read.len()))
    }

    /// Writes what waits, as far as the network takes it. Ready when nothing waits.
    pub fn poll_write(&mut self, writer: &mut FrameWriter, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_out(cx))?;
            if writer.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let mask = self.mask();
            codec::put_message(writer.buffer(), mask, &mut self.out);
            if writer.is_empty() {
                // An idle connection keeps no buffer.
                *writer.buffer() = BytesMut::new();
            }
        }
    }

    /// Bytes encoded that wait.
    pub fn waiting(&self) -> usize {
        // What TLS holds back counts as one byte: it is something that waits.
        self.out.len() + usize::from(self.unflushed || self.decoder.ping.is_some())
    }

    /// The other side has said Close.
    pub fn is_closed(&self) -> bool {
        self.decoder.closed.is_some()
    }

    /// Writes what waits and a Close, and ends the stream. The reason is cut to what fits.
    pub async fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        let mut end = reason.len().min(CONTROL_BYTES - 2);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let payload = [&code.to_be_bytes(), &reason.as_bytes()[..end]].concat();
        let mask = self.mask();
        codec::put(CLOSE, &payload, mask, &mut self.out);
        poll_fn(|cx| self.poll_out(cx)).await?;
        poll_fn(|cx| Pin::new(&mut self.stream).poll_shutdown(cx)).await
    }

    /// The stream. What was decoded in part is lost.
    pub fn into_inner(self) -> S {
        self.stream
    }

    fn mask(&self) -> Option<[u8; 4]> {
        self.rng.as_ref().map(|rng| {
            let mut mask = [0; 4];
            rng.fill(&mut mask);
            mask
        })
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // Only between frames, and one at a time: a flood of pings makes nothing wait.
            if self.out.is_empty()
                && let Some(ping) = self.decoder.ping.take()
            {
                let mask = self.mask();
                codec::put(PONG, &ping, mask, &mut self.out);
            }
            while !self.out.is_empty() {
                self.unflushed = true;
                match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    n => self.out.advance(n),
                }
            }
            if self.unflushed {
                self.out = BytesMut::new();
                ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
                self.unflushed = false;
            }
            if self.decoder.ping.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
