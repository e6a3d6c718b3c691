//! Answers get out before the end of their connection is told.
//!
//! *Problem.* GOAWAY says which requests are still answered (RFC 9113, 6.8), but clients in wide use, httpcore for Python
//! among them, drop all answers that come behind it. A connection that is to end is told so by the very request whose
//! answer is its last one, and h2 writes a GOAWAY before anything else.
//!
//! *Rule.* The GOAWAY waits until every answer has been written to the stream, but no longer than [`super::END_WITHIN`]:
//! then the requests that go on are answered behind it. h2 does not tell what it has written. So a body counts until hyper
//! drops it, which is when its last piece was handed to h2; the last byte of a long one is a piece of its own, because
//! hyper hands a piece on only when the client's window has room for all before it. What h2 holds then goes out the next
//! time that the connection is polled, unless the stream takes no more: [`Watched`] tells.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Counted, END_WITHIN, idle_for};
use crate::env::Stream;

/// Bytes of a body that the window of no well-meaning client is too small for: RFC 9113's smallest frame.
const SHORT_BYTES: usize = 16 * 1024;

/// A body, which knows when it was handed over.
pub(super) struct Answer {
    body: Full<Bytes>,
    rest: Bytes,
    _sending: Counted,
}

impl Answer {
    pub(super) fn new(body: Full<Bytes>, sending: Counted) -> Self {
        Self { body, rest: Bytes::new(), _sending: sending }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(Ok(Ok(mut data))) = frame.map(|frame| frame.map(Frame::into_data)) else { return Poll::Ready(None) };
        if data.len() > SHORT_BYTES {
            self.rest = data.split_off(data.len() - 1);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64 + self.body.size_hint().lower())
    }
}

/// A stream of which is known whether it takes what is written.
pub(super) struct Watched {
    stream: Box<dyn Stream>,
    blocked: Arc<AtomicBool>,
}

impl Watched {
    pub(super) fn new(stream: Box<dyn Stream>) -> (Self, Arc<AtomicBool>) {
        let blocked = Arc::new(AtomicBool::new(false));
        (Self { stream, blocked: blocked.clone() }, blocked)
    }

    fn noted<T>(&self, written: Poll<T>) -> Poll<T> {
        // Written and read by the one task that polls the connection.
        self.blocked.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.noted(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Requests of a connection that are being handled, and those whose answers are not out yet.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) handling: watch::Receiver<usize>,
    pub(super) unsent: watch::Receiver<usize>,
}

impl Open {
    /// Ends when all answers are out, or when that takes too long. To be polled after the connection, by the same task.
    pub(super) async fn answered(mut self, blocked: &AtomicBool) {
        let out = async {
            loop {
                // Whoever counts is gone: nothing is counted any more.
                drop(self.unsent.wait_for(|n| *n == 0).await);
                // Woken with the connection, whose stream it is about.
                poll_fn(|_| if blocked.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(()) }).await;
                if *self.unsent.borrow() == 0 {
                    return;
                }
            }
        };
        // Late: the others are answered behind the word of the end.
        let _either = timeout(END_WITHIN, out).await;
    }

    /// Ends when a client that was told of the end has had its time to take the last answers. Each request is answered
    /// in time by itself.
    pub(super) async fn not_taken(self) {
        idle_for(self.handling, END_WITHIN).await;
    }
}
