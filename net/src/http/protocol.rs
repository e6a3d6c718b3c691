//! Which version of HTTP a connection speaks, and where its tasks run.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::Executor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::env::{Spawner, Stream};

/// ALPN of a server or client that speaks both versions, best first.
pub const ALPN_HTTP: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What every client of HTTP/2 sends first (RFC 9113, 3.4). No request of HTTP/1.1 begins like it.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The versions that are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// HTTP/1.1 (and 1.0).
    One,
    /// HTTP/2.
    Two,
}

impl Version {
    /// As TLS agreed on it; nothing agreed on is HTTP/1.1.
    pub(super) fn of_alpn(protocol: Option<&[u8]>) -> Self {
        if protocol == Some(ALPN_HTTP[0]) { Self::Two } else { Self::One }
    }
}

/// Tasks of one connection: they run where the node's tasks run, and end when the connection is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    pub(crate) spawner: Spawner,
    /// Changes, or loses its sender, when the connection is over.
    pub(crate) until: watch::Receiver<()>,
}

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut until = self.until.clone();
        self.spawner.spawn(async move {
            tokio::select! {
                biased;
                _ = until.changed() => {}
                () = task => {}
            }
        });
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

/// Reads as much of a plain connection as tells its version; the stream that comes back gives it out again.
pub(super) async fn sniff(mut stream: Box<dyn Stream>) -> io::Result<(Version, Box<dyn Stream>)> {
    let mut start = [0; PREFACE.len()];
    let mut have = 0;
    let version = loop {
        let n = stream.read(&mut start[have..]).await?;
        have += n;
        if start[..have] != PREFACE[..have] || n == 0 {
            break Version::One;
        }
        if have == PREFACE.len() {
            break Version::Two;
        }
    };
    Ok((version, Box::new(Sniffed { start, have, given: 0, stream })))
}

/// A stream of which the first bytes were read already.
struct Sniffed {
    start: [u8; PREFACE.len()],
    have: usize,
    given: usize,
    stream: Box<dyn Stream>,
}

impl AsyncRead for Sniffed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = &this.start[this.given..this.have];
        if rest.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        this.given += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Sniffed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
