//! HTTP/3 on a QUIC connection that agreed on `h3`: one server, one client, with the limits of [`crate::http`].
//!
//! Frames and QPACK are the h3 crate's; its dynamic table is not used, so a header is understood when it is there. What
//! that crate does not bound is bound in `stack` and `framing`, and what a stranger can make a server do costs this
//! much:
//!
//! | What | Bound |
//! |---|---|
//! | requests at once | [`HttpLimits::streams`]; QUIC gives new ones as old ones end, a round trip later |
//! | requests that end before their header is whole | [`RESETS_BY_ERROR`], then the connection does |
//! | a header, packed or not | [`HttpLimits::header_bytes`], answered with 431 |
//! | body bytes that are read ahead of what is used | 32 KiB a request, beside QUIC's windows |
//! | frames of no meaning, or that say they are endless | as a header |
//! | what is said beside requests | 32 KiB on each of 8 streams |
//! | a connection without a request under way | [`HttpLimits::header`] |
//! | an answer that is not taken | [`HttpLimits::request`] |
//!
//! Early data is the caller's business: hand over a connection whose handshake is done, with the stream that came
//! before that, if one did.

mod body;
mod client;
mod framing;
mod stack;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h3::quic::{RecvStream, SendStream, SendStreamUnframed};
use h3::server::{Connection, RequestResolver};
use http_body_util::{BodyExt, Full};
use hyper::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use quinn::VarInt;
use tern_core::store::BoxFut;
use tokio::sync::watch;
use tokio::time::timeout;

pub use self::body::{CutShort, QuicBody};
pub use self::client::Http3Connection;

use self::stack::{Accepted, EXCESSIVE_LOAD, Quic};
use crate::env::Spawner;
use crate::http::{Counted, END_WITHIN, HttpLimits, RESETS_BY_ERROR, Tasks, idle_for};

/// With what a connection is closed that has nothing wrong (RFC 9114, 8.1).
pub const HTTP3_NO_ERROR: VarInt = VarInt::from_u32(0x100);
/// What TLS agrees on.
pub const ALPN_HTTP3: &[u8] = b"h3";
/// Streams beside requests that a client may have open: RFC 9114 has three, and reserves types that mean nothing.
const ASIDE_STREAMS: u32 = 8;
/// HEADERS, 10 bytes: nothing but `:status: 431`, by its name's place in the static table of QPACK (RFC 9204, 4.5.4).
const TOO_LARGE: &[u8] = b"\x01\x08\x00\x00\x5f\x09\x03431";

/// Answers requests; the address is where the client is now.
pub type QuicHandler =
    Arc<dyn Fn(SocketAddr, Request<QuicBody>) -> BoxFut<'static, Response<Full<Bytes>>> + Send + Sync>;

/// What requests of one connection share.
struct Serving {
    handler: QuicHandler,
    within: Duration,
    /// Requests that are being handled.
    handling: watch::Sender<usize>,
    /// Those whose answers have not arrived yet.
    unsent: watch::Sender<usize>,
    /// Those that ended before their header was whole.
    wasted: AtomicUsize,
}

/// Serves one connection: until it ends, or has had no request under way for [`HttpLimits::header`], or `over` ends and
/// what is under way is answered. Then it is closed. Dropping the future leaves that to the caller.
pub async fn serve_quic(
    spawner: Spawner,
    connection: quinn::Connection,
    first: Option<(quinn::SendStream, quinn::RecvStream)>,
    limits: HttpLimits,
    handler: QuicHandler,
    over: impl Future<Output = ()>,
) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(limits.streams.max(1)));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(ASIDE_STREAMS));
    let quic = Quic::new(connection.clone(), first, limits.header_bytes);
    let mut builder = h3::server::builder();
    builder.max_field_section_size(limits.header_bytes as u64).send_grease(false);
    // A client that gives no room for the three streams of a server is none.
    let Ok(Ok(mut h3)) = timeout(limits.header, builder.build(quic)).await else { return };
    let (handling, unsent) = (watch::Sender::new(0), watch::Sender::new(0));
    let (idle, mut none_unsent, none_handled) = (handling.subscribe(), unsent.subscribe(), handling.subscribe());
    let wasted = AtomicUsize::new(0);
    let serving = Arc::new(Serving { handler, within: limits.request, handling, unsent, wasted });
    // Dropped with this future; the requests' tasks see that and end.
    let (_open, until) = watch::channel(());
    let tasks = Tasks { spawner, until };
    {
        // Answers come before the word of the end, as over HTTP/2: see there. Those that come meanwhile are answered.
        let end = async {
            tokio::select! { biased; () = over => {}, () = idle_for(idle, limits.header) => {} }
            drop(timeout(END_WITHIN, none_unsent.wait_for(|n| *n == 0)).await);
        };
        tokio::select! {
            biased;
            () = accept(&mut h3, &tasks, &serving) => return,
            () = end => {}
        }
    }
    h3.inner.conn.refuse();
    // As the h3 crate counts: what was accepted is answered, and the next is not.
    if !matches!(timeout(END_WITHIN, h3.shutdown(1)).await, Ok(Ok(()))) {
        return;
    }
    let answered = async {
        // Whoever counts is this very function.
        drop(serving.unsent.subscribe().wait_for(|n| *n == 0).await);
    };
    tokio::select! {
        biased;
        () = accept(&mut h3, &tasks, &serving) => {}
        () = answered => {}
        () = idle_for(none_handled, END_WITHIN) => {}
    }
    connection.close(HTTP3_NO_ERROR, b"");
}

/// Takes requests until the connection ends or is of no use any more.
async fn accept(h3: &mut Connection<Quic, Bytes>, tasks: &Tasks, serving: &Arc<Serving>) {
    loop {
        let resolver = match h3.accept().await {
            Ok(Some(resolver)) => resolver,
            Ok(None) => return,
            Err(e) => {
                tracing::debug!(error = %e, "an HTTP/3 connection ended early");
                return;
            }
        };
        let from = h3.inner.conn.peer();
        let Some(accepted) = h3.inner.conn.take_accepted() else { continue };
        tasks.spawn(serving.clone().request(from, resolver, accepted));
        if serving.wasted.load(Ordering::Relaxed) >= RESETS_BY_ERROR {
            h3.inner.conn.give_up(EXCESSIVE_LOAD);
            return;
        }
    }
}

impl Serving {
    async fn request(self: Arc<Self>, from: SocketAddr, resolver: RequestResolver<Quic, Bytes>, accepted: Accepted) {
        let Accepted { fate, mut answered } = accepted;
        let mut resolver = resolver;
        let whole = async {
            let head = std::future::poll_fn(|cx| resolver.frame_stream.poll_next(cx)).await;
            if fate.is_too_long() {
                too_large(&mut resolver).await;
                return None;
            }
            resolver.accept_with_frame(head).ok()?.resolve().await.ok()
        };
        let Some((request, stream)) = timeout(self.within, whole).await.ok().flatten() else {
            self.wasted.fetch_add(1, Ordering::Relaxed);
            return;
        };
        fate.begin_body();
        let unsent = Counted::new(self.unsent.clone());
        let handled = Counted::new(self.handling.clone());
        let (mut send, recv) = stream.split();
        let body = QuicBody::new(recv, fate, request.headers());
        let bare = request.method() == Method::HEAD;
        let answer = tokio::select! {
            biased;
            // Whoever asked does not wait for it any more.
            _ = &mut answered => return,
            answer = timeout(self.within, (self.handler)(from, request.map(|()| body))) => answer,
        };
        let answer = answer.unwrap_or_else(|_| {
            let mut late = Response::new(Full::new(Bytes::from_static(b"the request was not answered in time\n")));
            *late.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            late
        });
        drop(handled);
        let write = async {
            let (mut head, body) = answer.into_parts();
            // A whole body in memory can't fail.
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            if head.status != StatusCode::NO_CONTENT && !head.headers.contains_key(CONTENT_LENGTH) {
                head.headers.insert(CONTENT_LENGTH, body.len().into());
            }
            // They speak of a connection of HTTP/1.1 (RFC 9114, 4.2).
            for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
                head.headers.remove(name);
            }
            send.send_response(Response::from_parts(head, ())).await?;
            if !body.is_empty() && !bare {
                send.send_data(body).await?;
            }
            send.finish().await
        };
        if let Ok(Ok(())) = timeout(self.within, write).await {
            // Arrived, or not wanted; or the connection is gone.
            drop(timeout(self.within, answered).await);
        }
        drop(unsent);
    }
}

/// Answers a request whose header is too long to be understood: the h3 crate has no other way to it.
async fn too_large(resolver: &mut RequestResolver<Quic, Bytes>) {
    let stream = &mut resolver.frame_stream;
    let mut left = TOO_LARGE;
    while !left.is_empty() {
        let sent = std::future::poll_fn(|cx| stream.stream.poll_send(cx, &mut left)).await;
        if sent.is_err() {
            return;
        }
    }
    let finished: Result<(), _> = std::future::poll_fn(|cx| SendStream::poll_finish(stream, cx)).await;
    // It may be gone already.
    drop(finished);
    stream.stream.stop_sending(HTTP3_NO_ERROR.into_inner());
}
