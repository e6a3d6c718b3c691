//! quinn's streams as the h3 crate asks for them, within bounds.
//!
//! In place of h3-quinn, for what that does not give: a bound on what is read ahead of what is used, an end of a stream
//! that is told from a stream that was cut, a reset rather than an orderly end where something is given up half-way,
//! and no panic where a stream is stopped while it is being read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use quinn::{ConnectionError, ReadError, VarInt, WriteError};
use tern_core::store::BoxFut;

use super::HTTP3_NO_ERROR;
use super::framing::Framing;

/// Bytes read from a stream at once.
const CHUNK_BYTES: usize = 4 * 1024;
/// Bytes of a body that are read ahead of what is used.
const AHEAD_BYTES: usize = 32 * 1024;
/// Bytes that the other side may say on each stream beside its requests, in all the life of a connection: settings,
/// and priorities of a few thousand requests.
const ASIDE_BYTES: usize = 32 * 1024;

/// RFC 9114, 8.1: the other side behaves like an attacker.
pub(super) const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);
/// Not looked at: may be asked again elsewhere.
const REQUEST_REJECTED: VarInt = VarInt::from_u32(0x10b);
/// The answer is not wanted any more, or does not come.
pub(super) const REQUEST_CANCELLED: VarInt = VarInt::from_u32(0x10c);
/// A stream was cut short.
const REQUEST_INCOMPLETE: u64 = 0x10d;

pub(super) fn gone(e: ConnectionError) -> ConnectionErrorIncoming {
    match e {
        ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn failed(e: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: gone(e) }
}

#[expect(clippy::expect_used, reason = "both sides bound ids by 2^62 (RFC 9000, 2.1)")]
fn id(id: quinn::StreamId) -> StreamId {
    u64::from(id).try_into().expect("an id of a stream")
}

/// What is known of a request's stream beside what the h3 crate tells.
#[derive(Debug)]
pub(super) struct Fate {
    /// Bytes that may be read before some are used.
    room: AtomicUsize,
    /// The header is known, and what follows is its body.
    in_body: AtomicBool,
    /// A header, or what stands before it, was too long.
    too_long: AtomicBool,
    /// The end of the stream was read.
    ended: AtomicBool,
}

impl Fate {
    fn new(header_bytes: usize) -> Arc<Self> {
        // What is read with the end of a header counts, too.
        let room = AtomicUsize::new(header_bytes + CHUNK_BYTES);
        let (in_body, too_long, ended) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { room, in_body, too_long, ended })
    }

    pub(super) fn is_too_long(&self) -> bool {
        self.too_long.load(Ordering::Relaxed)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The header is known. What is given up from now on is told to be given up.
    pub(super) fn begin_body(&self) {
        self.in_body.store(true, Ordering::Relaxed);
        self.room.fetch_add(AHEAD_BYTES, Ordering::Relaxed);
    }

    /// So much of a body was used.
    pub(super) fn used(&self, bytes: usize) {
        self.room.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The reading half of a stream.
pub(super) struct Recv {
    stream: quinn::RecvStream,
    /// Absent for streams beside requests.
    request: Option<(Arc<Fate>, Framing)>,
    /// What streams beside requests may still say.
    left: usize,
    over: bool,
    /// With what the other side is told to stop, should this be dropped.
    given_up: VarInt,
}

impl Recv {
    fn aside(stream: quinn::RecvStream) -> Self {
        Self { stream, request: None, left: ASIDE_BYTES, over: false, given_up: HTTP3_NO_ERROR }
    }

    fn of_request(stream: quinn::RecvStream, header_bytes: usize, given_up: VarInt) -> (Self, Arc<Fate>) {
        let fate = Fate::new(header_bytes);
        let request = Some((fate.clone(), Framing::new(header_bytes)));
        (Self { stream, request, left: 0, over: false, given_up }, fate)
    }

    fn room(&self) -> usize {
        self.request.as_ref().map_or(self.left, |(fate, _)| fate.room.load(Ordering::Relaxed))
    }

    /// More came than may.
    fn too_much(&mut self) -> StreamErrorIncoming {
        if let Some((fate, _)) = &self.request {
            fate.too_long.store(true, Ordering::Relaxed);
            return StreamErrorIncoming::StreamTerminated { error_code: EXCESSIVE_LOAD.into_inner() };
        }
        let words = "too much was said beside requests".to_owned();
        StreamErrorIncoming::ConnectionErrorIncoming { connection_error: ConnectionErrorIncoming::InternalError(words) }
    }

    fn took(&mut self, bytes: &[u8]) -> Result<(), StreamErrorIncoming> {
        match &mut self.request {
            None => self.left -= bytes.len(),
            Some((fate, framing)) => {
                fate.room.fetch_sub(bytes.len(), Ordering::Relaxed);
                if framing.feed(bytes).is_err() {
                    return Err(self.too_much());
                }
            }
        }
        Ok(())
    }
}

impl quic::RecvStream for Recv {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let room = self.room();
        if room == 0 {
            // A body goes on when some of it was used. If nothing can be, for it is all frames of nothing, it is late.
            let waits = self.request.as_ref().is_some_and(|(fate, _)| fate.in_body.load(Ordering::Relaxed));
            return if waits { Poll::Pending } else { Poll::Ready(Err(self.too_much())) };
        }
        let mut chunk = [0; CHUNK_BYTES];
        let n = match ready!(self.stream.poll_read(cx, &mut chunk[..room.min(CHUNK_BYTES)])) {
            Ok(n) => n,
            Err(e) => {
                self.over = true;
                return Poll::Ready(Err(match e {
                    ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
                    ReadError::ConnectionLost(e) => failed(e),
                    other => StreamErrorIncoming::Unknown(Box::new(other)),
                }));
            }
        };
        if n == 0 {
            self.over = true;
            if let Some((fate, framing)) = &self.request {
                fate.ended.store(true, Ordering::Relaxed);
                if !framing.is_between() {
                    return Poll::Ready(Err(StreamErrorIncoming::StreamTerminated { error_code: REQUEST_INCOMPLETE }));
                }
            }
            return Poll::Ready(Ok(None));
        }
        self.took(&chunk[..n])?;
        Poll::Ready(Ok(Some(Bytes::copy_from_slice(&chunk[..n]))))
    }

    fn stop_sending(&mut self, code: u64) {
        self.over = true;
        // It may be over already.
        drop(self.stream.stop(VarInt::from_u64(code).unwrap_or(HTTP3_NO_ERROR)));
    }

    fn recv_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

impl Drop for Recv {
    fn drop(&mut self) {
        if !self.over {
            drop(self.stream.stop(self.given_up));
        }
    }
}

/// The writing half of a stream.
pub(super) struct Send {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    over: bool,
    /// Of a request: if it is given up in the middle, the other side is told.
    request: Option<Arc<Fate>>,
}

impl Send {
    fn new(stream: quinn::SendStream, request: Option<Arc<Fate>>) -> Self {
        Self { stream, writing: None, over: false, request }
    }
}

fn written(e: WriteError) -> StreamErrorIncoming {
    match e {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        WriteError::ConnectionLost(e) => failed(e),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

impl quic::SendStream<Bytes> for Send {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if let Some(data) = &mut self.writing {
            while data.has_remaining() {
                let n = ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk())).map_err(written)?;
                data.advance(n);
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            let words = "what was written before is not out yet".to_owned();
            let connection_error = ConnectionErrorIncoming::InternalError(words);
            return Err(StreamErrorIncoming::ConnectionErrorIncoming { connection_error });
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.over = true;
        Poll::Ready(self.stream.finish().map_err(|e| StreamErrorIncoming::Unknown(Box::new(e))))
    }

    fn reset(&mut self, code: u64) {
        self.over = true;
        // It may be over already.
        drop(self.stream.reset(VarInt::from_u64(code).unwrap_or(REQUEST_CANCELLED)));
    }

    fn send_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

impl quic::SendStreamUnframed<Bytes> for Send {
    fn poll_send<D: Buf>(&mut self, cx: &mut Context<'_>, buf: &mut D) -> Poll<Result<usize, StreamErrorIncoming>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, buf.chunk())).map_err(written)?;
        buf.advance(n);
        Poll::Ready(Ok(n))
    }
}

impl Drop for Send {
    fn drop(&mut self) {
        // Before its header is known, h3 itself may have answered, and relies on the end that quinn writes.
        if !self.over && self.request.as_ref().is_some_and(|fate| fate.in_body.load(Ordering::Relaxed)) {
            drop(self.stream.reset(REQUEST_CANCELLED));
        }
    }
}

/// A request's stream.
pub(super) struct Both {
    send: Send,
    recv: Recv,
}

impl quic::BidiStream<Bytes> for Both {
    type SendStream = Send;
    type RecvStream = Recv;

    fn split(self) -> (Send, Recv) {
        (self.send, self.recv)
    }
}

impl quic::RecvStream for Both {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl quic::SendStream<Bytes> for Both {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl quic::SendStreamUnframed<Bytes> for Both {
    fn poll_send<D: Buf>(&mut self, cx: &mut Context<'_>, buf: &mut D) -> Poll<Result<usize, StreamErrorIncoming>> {
        self.send.poll_send(cx, buf)
    }
}

type Pair = (quinn::SendStream, quinn::RecvStream);
type Coming<T> = Option<BoxFut<'static, Result<T, ConnectionError>>>;

/// Keeps a future until it is done: quinn's are woken only while they are kept.
fn poll_kept<T>(
    kept: &mut Coming<T>,
    make: impl FnOnce() -> BoxFut<'static, Result<T, ConnectionError>>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, ConnectionError>> {
    let result = ready!(kept.get_or_insert_with(make).as_mut().poll(cx));
    *kept = None;
    Poll::Ready(result)
}

/// Opens streams.
pub(super) struct Opener {
    connection: quinn::Connection,
    header_bytes: usize,
    opening_bi: Coming<Pair>,
    opening_uni: Coming<quinn::SendStream>,
    opened: Opened,
}

/// The requests that were opened here, of all clones.
#[derive(Clone, Default)]
pub(super) struct Opened(Arc<Mutex<BTreeMap<StreamId, Weak<Fate>>>>);

impl Opened {
    fn put(&self, id: StreamId, fate: &Arc<Fate>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, fate| fate.strong_count() > 0);
        all.insert(id, Arc::downgrade(fate));
    }

    /// Of this stream, as long as it is there.
    pub(super) fn take(&self, id: StreamId) -> Option<Arc<Fate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)?.upgrade()
    }
}

impl Opener {
    fn new(connection: quinn::Connection, header_bytes: usize, opened: Opened) -> Self {
        Self { connection, header_bytes, opening_bi: None, opening_uni: None, opened }
    }
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        Self::new(self.connection.clone(), self.header_bytes, self.opened.clone())
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Both;
    type SendStream = Send;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both, StreamErrorIncoming>> {
        let connection = self.connection.clone();
        let make = || Box::pin(async move { connection.open_bi().await }) as BoxFut<'static, _>;
        let (send, recv) = ready!(poll_kept(&mut self.opening_bi, make, cx)).map_err(failed)?;
        let (recv, fate) = Recv::of_request(recv, self.header_bytes, REQUEST_CANCELLED);
        // Whatever ends before it was answered is given up.
        fate.in_body.store(true, Ordering::Relaxed);
        fate.used(AHEAD_BYTES);
        self.opened.put(id(send.id()), &fate);
        Poll::Ready(Ok(Both { send: Send::new(send, Some(fate)), recv }))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Send, StreamErrorIncoming>> {
        let connection = self.connection.clone();
        let make = || Box::pin(async move { connection.open_uni().await }) as BoxFut<'static, _>;
        let send = ready!(poll_kept(&mut self.opening_uni, make, cx)).map_err(failed)?;
        Poll::Ready(Ok(Send::new(send, None)))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(VarInt::from_u64(code.value()).unwrap_or(HTTP3_NO_ERROR), reason);
    }
}

/// A request that was accepted: what is known of its stream, and what ends when its answer is taken or not wanted.
pub(super) struct Accepted {
    pub(super) fate: Arc<Fate>,
    pub(super) answered: BoxFut<'static, Result<Option<VarInt>, quinn::StoppedError>>,
}

/// One connection.
pub(super) struct Quic {
    opener: Opener,
    first: Option<Pair>,
    accepting_bi: Coming<Pair>,
    accepting_uni: Coming<quinn::RecvStream>,
    accepted: Option<Accepted>,
    refuses: bool,
}

impl Quic {
    /// `first`: a stream that was accepted before. `header_bytes`: of a header.
    pub(super) fn new(connection: quinn::Connection, first: Option<Pair>, header_bytes: usize) -> Self {
        let opener = Opener::new(connection, header_bytes, Opened::default());
        Self { opener, first, accepting_bi: None, accepting_uni: None, accepted: None, refuses: false }
    }

    /// See [`Opened`].
    pub(super) fn opened(&self) -> Opened {
        self.opener.opened.clone()
    }

    /// Closes the connection, for what the other side does.
    pub(super) fn give_up(&self, code: VarInt) {
        self.opener.connection.close(code, b"");
    }

    /// Of the request accepted last.
    pub(super) fn take_accepted(&mut self) -> Option<Accepted> {
        self.accepted.take()
    }

    /// No more requests: those that come are told to be asked elsewhere.
    pub(super) fn refuse(&mut self) {
        self.refuses = true;
    }

    /// Where the other side is now.
    pub(super) fn peer(&self) -> SocketAddr {
        self.opener.connection.remote_address()
    }
}

impl quic::Connection<Bytes> for Quic {
    type RecvStream = Recv;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Recv, ConnectionErrorIncoming>> {
        let connection = self.opener.connection.clone();
        let make = || Box::pin(async move { connection.accept_uni().await }) as BoxFut<'static, _>;
        Poll::Ready(ready!(poll_kept(&mut self.accepting_uni, make, cx)).map(Recv::aside).map_err(gone))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both, ConnectionErrorIncoming>> {
        loop {
            let (mut send, mut recv) = match self.first.take() {
                Some(first) => first,
                None => {
                    let connection = self.opener.connection.clone();
                    let make = || Box::pin(async move { connection.accept_bi().await }) as BoxFut<'static, _>;
                    ready!(poll_kept(&mut self.accepting_bi, make, cx)).map_err(gone)?
                }
            };
            if self.refuses {
                // Either may be over already.
                drop((send.reset(REQUEST_REJECTED), recv.stop(REQUEST_REJECTED)));
                continue;
            }
            let answered = Box::pin(send.stopped());
            let (recv, fate) = Recv::of_request(recv, self.opener.header_bytes, HTTP3_NO_ERROR);
            self.accepted = Some(Accepted { fate: fate.clone(), answered });
            return Poll::Ready(Ok(Both { send: Send::new(send, Some(fate)), recv }));
        }
    }

    fn opener(&self) -> Opener {
        self.opener.clone()
    }
}

impl quic::OpenStreams<Bytes> for Quic {
    type BidiStream = Both;
    type SendStream = Send;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Send, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}
