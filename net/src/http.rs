//! HTTP/2 and HTTP/1.1 over any [`crate::env::Net`]: one server loop and one connection, both with limits.
//!
//! There is no pool and no resolver: whoever asks says which address, and keeps a connection if he wants to
//! ask again. No `Date` header is written, since its text would depend on the machine's calendar.
//!
//! The version is what TLS agreed on ([`ALPN_HTTP`]). Without TLS a server looks at the first bytes: a client
//! that knows that it talks HTTP/2 may begin with it ("prior knowledge"; there is no upgrade).
//!
//! A connection of HTTP/2 lets a stranger make a server work by a few bytes: open streams and reset them at
//! once, headers that never end, answers that are never taken. So each has its bound in [`HttpLimits`] or
//! below, and what exceeds it ends that connection and no other:
//!
//! | What | Bound |
//! |---|---|
//! | requests at once | [`HttpLimits::streams`] |
//! | requests reset before they were looked at | [`RESETS_PENDING`] |
//! | streams that the server had to reset | [`RESETS_BY_ERROR`] |
//! | a header, decompressed; frames that continue it | [`HttpLimits::header_bytes`]; h2 counts the frames by it |
//! | body bytes that nobody has read yet | [`WINDOW_BYTES`] |
//! | a peer that does not answer a ping | [`KEEP_ALIVE_WITHIN`] |
//! | connections, of both versions | [`HttpLimits::connections`]; the one idle longest makes room |
//! | a connection without a request under way, whatever it waits for | [`HttpLimits::header`] |
//!
//! Parts: this file serves, `ending` lets answers out before a connection ends, `places` bounds how many there are,
//! `client` asks, `protocol` tells the versions apart.

mod client;
mod ending;
mod places;
mod protocol;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tern_core::store::BoxFut;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub(crate) use self::client::authority;
pub use self::client::{HttpClient, HttpConnection, HttpError};
pub use self::protocol::ALPN_HTTP;

use self::ending::{Answer, Open, Watched};
use self::places::{HeldPlace, Places, UnderWay};
pub(crate) use self::protocol::Tasks;
use self::protocol::{Version, sniff};
use crate::env::{Acceptor, Env, Spawner, Stream};

/// Answers requests; the address is the connection's.
pub type Handler = Arc<dyn Fn(SocketAddr, Request<Incoming>) -> BoxFut<'static, Response<Full<Bytes>>> + Send + Sync>;

/// Bounds of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Connections served at once. One more takes the place of the one idle longest; if none is idle, it waits.
    /// 1,024: tens of MiB at most.
    pub connections: usize,
    /// A TLS handshake takes no longer. 5 s: a bad mobile link needs two or three.
    pub handshake: Duration,
    /// The next request's header must be whole by then; also how long a connection is kept on which no request
    /// is under way. 30 s.
    pub header: Duration,
    /// A request is answered by then, its body's arrival included, or gets 503. 30 s.
    pub request: Duration,
    /// Bytes of a request's header. 16 KiB.
    pub header_bytes: usize,
    /// Header lines of a request of HTTP/1.1. 64. In HTTP/2 each counts as 32 bytes more than it has.
    pub headers: usize,
    /// Requests at once on one connection of HTTP/2. 32: a proxy in front asks for many clients, and opens a
    /// further connection when that is not enough.
    pub streams: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(30),
            request: Duration::from_secs(30),
            header_bytes: 16 * 1024,
            headers: 64,
            streams: 32,
        }
    }
}

/// After a failed accept (no file descriptors left, say) the server waits this long: the cause lasts, and a
/// loop without a pause would burn a core.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Streams that were reset before the server had looked at them. More than some are an attack
/// (CVE-2023-44487); h2's own default.
pub const RESETS_PENDING: usize = 20;
/// Streams that the server had to reset because of what came on them. A client that errs that often goes on
/// erring; it may connect again.
pub const RESETS_BY_ERROR: usize = 64;
/// Bytes of bodies that a connection of HTTP/2 may send before they are read: with all connections in use and
/// all of them full, 64 MiB.
pub const WINDOW_BYTES: u32 = 64 * 1024;
/// Bytes of an answer that are held for a client that does not take them, beyond the answer itself.
const SEND_BYTES: usize = 64 * 1024;
/// A side that has heard nothing for so long asks whether the other is there.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// And ends the connection if that is not answered within this time.
pub const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(10);
/// A connection that is to end gets so much time for the answers under way before it says so, and, when all requests are
/// answered, for what was sent to be taken.
pub(crate) const END_WITHIN: Duration = Duration::from_secs(5);

/// Serves `handler` until the returned future is dropped, which also ends every connection.
pub async fn serve(
    env: Env,
    mut acceptor: Box<dyn Acceptor>,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: HttpLimits,
    handler: Handler,
) {
    let tls = tls.map(TlsAcceptor::from);
    let places = Places::new(limits.connections);
    // Dropped with this future; the connections' tasks see that and end.
    let (_running, stop) = watch::channel(());
    loop {
        let (stream, from) = match acceptor.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "an HTTP connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let mut place = places.take().await;
        let (tls, handler, mut stop) = (tls.clone(), handler.clone(), stop.clone());
        let tasks = env.tasks.clone();
        env.tasks.spawn(async move {
            tokio::select! {
                biased;
                _ = stop.changed() => {}
                _ = &mut place.turned_out => {}
                () = connection(tasks, stream, from, tls, limits, handler, place.held.clone()) => {}
            }
            drop(place);
        });
    }
}

async fn connection(
    spawner: Spawner,
    stream: Box<dyn Stream>,
    from: SocketAddr,
    tls: Option<TlsAcceptor>,
    limits: HttpLimits,
    handler: Handler,
    place: Arc<HeldPlace>,
) {
    let (version, stream): (Version, Box<dyn Stream>) = match tls {
        None => match timeout(limits.header, sniff(stream)).await {
            Ok(Ok(sniffed)) => sniffed,
            Ok(Err(_)) | Err(_) => return,
        },
        Some(tls) => match timeout(limits.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => (Version::of_alpn(stream.get_ref().1.alpn_protocol()), Box::new(stream)),
            // Strangers who fail a handshake are no event for an operator.
            Ok(Err(_)) | Err(_) => return,
        },
    };
    let idle = idle_for(place.under_way(), limits.header);
    talk(spawner, version, stream, from, limits, handler, move || UnderWay::count(&place), idle).await;
}

/// Serves one connection that somebody else has accepted: until it ends, or switches to another protocol, or
/// has had no request under way for [`HttpLimits::header`], or `over` ends and what is under way is answered.
/// Dropping the future ends it at once. `alpn`: what TLS agreed on.
pub async fn serve_stream(
    spawner: Spawner,
    stream: Box<dyn Stream>,
    alpn: Option<&[u8]>,
    from: SocketAddr,
    limits: HttpLimits,
    handler: Handler,
    over: impl Future<Output = ()>,
) {
    let under_way = watch::Sender::new(0usize);
    let idle = idle_for(under_way.subscribe(), limits.header);
    let end = async {
        tokio::select! { biased; () = over => {}, () = idle => {} }
    };
    let count = move || Counted::new(under_way.clone());
    talk(spawner, Version::of_alpn(alpn), stream, from, limits, handler, count, end).await;
}

/// One request more under way, until this is dropped.
pub(crate) struct Counted(watch::Sender<usize>);

impl Counted {
    pub(crate) fn new(under_way: watch::Sender<usize>) -> Self {
        under_way.send_modify(|n| *n += 1);
        Self(under_way)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n = n.saturating_sub(1));
    }
}

#[expect(clippy::too_many_arguments, reason = "what a connection is made of; there is no better name for it")]
async fn talk<G>(
    spawner: Spawner,
    version: Version,
    stream: Box<dyn Stream>,
    from: SocketAddr,
    limits: HttpLimits,
    handler: Handler,
    count: impl Fn() -> G,
    end: impl Future<Output = ()>,
) where
    G: Send + 'static,
{
    let (handling, unsent) = (watch::Sender::new(0usize), watch::Sender::new(0usize));
    let open = Open { handling: handling.subscribe(), unsent: unsent.subscribe() };
    let service = service_fn(move |request| {
        let counted = (count(), Counted::new(handling.clone()));
        let sending = Counted::new(unsent.clone());
        let answer = handler(from, request);
        async move {
            let answer = timeout(limits.request, answer).await.unwrap_or_else(|_| {
                let mut late = Response::new(Full::new(Bytes::from_static(b"the request was not answered in time\n")));
                *late.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                late
            });
            drop(counted);
            Ok::<_, Infallible>(answer.map(|body| Answer::new(body, sending)))
        }
    });
    // Dropped with this future; the connection's own tasks see that and end.
    let (_open, until) = watch::channel(());
    let served = match version {
        Version::One => serve_one(stream, service, &limits, end, open).await,
        Version::Two => serve_two(stream, service, &limits, Tasks { spawner, until }, end, open).await,
    };
    if let Err(e) = served {
        tracing::debug!(%from, error = %e, "an HTTP connection ended early");
    }
}

async fn serve_one<S>(
    stream: Box<dyn Stream>,
    service: S,
    limits: &HttpLimits,
    end: impl Future<Output = ()>,
    open: Open,
) -> hyper::Result<()>
where
    S: HttpService<Incoming, ResBody = Answer, Error = Infallible>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .header_read_timeout(limits.header)
        .max_buf_size(limits.header_bytes.max(8192))
        .max_headers(limits.headers)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        served = connection.as_mut() => return served,
        () = end => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! { biased; served = connection => served, () = open.not_taken() => Ok(()) }
}

async fn serve_two<S>(
    stream: Box<dyn Stream>,
    service: S,
    limits: &HttpLimits,
    tasks: Tasks,
    end: impl Future<Output = ()>,
    open: Open,
) -> hyper::Result<()>
where
    S: HttpService<Incoming, ResBody = Answer, Error = Infallible>,
    S::Future: Send + 'static,
{
    let (stream, blocked) = Watched::new(stream);
    let connection = http2::Builder::new(tasks)
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(limits.streams.max(1))
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS_PENDING)
        .max_local_error_reset_streams(RESETS_BY_ERROR)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_WITHIN)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        served = connection.as_mut() => return served,
        () = end => {}
    }
    let mut not_taken = std::pin::pin!(open.clone().not_taken());
    tokio::select! {
        biased;
        // First: what was handed to it is written before the next line can be reached.
        served = connection.as_mut() => return served,
        () = open.answered(&blocked) => connection.as_mut().graceful_shutdown(),
        // Its time begins here, and is not up yet.
        () = not_taken.as_mut() => return Ok(()),
    }
    tokio::select! { biased; served = connection => served, () = not_taken.as_mut() => Ok(()) }
}

/// Ends when for so long no request was under way. Never, when nobody can begin one any more: then the
/// connection ends by itself.
pub(crate) async fn idle_for(mut under_way: watch::Receiver<usize>, limit: Duration) {
    loop {
        if under_way.wait_for(|n| *n == 0).await.is_err() {
            return std::future::pending().await;
        }
        match timeout(limit, under_way.changed()).await {
            Err(_) => return,
            Ok(Err(_)) => return std::future::pending().await,
            Ok(Ok(())) => {}
        }
    }
}

/// Why a request's body was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// More than allowed; the rest was not read.
    #[error("the body has more than {limit} bytes")]
    TooLarge {
        /// What is allowed.
        limit: usize,
    },
    /// The connection failed before its end.
    #[error("the body was cut short: {0}")]
    Failed(String),
}

/// Reads a whole body of at most `limit` bytes.
pub async fn read_body<B>(body: B, limit: usize) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, limit).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(e) if e.downcast_ref::<LengthLimitError>().is_some() => Err(BodyError::TooLarge { limit }),
        Err(e) => Err(BodyError::Failed(e.to_string())),
    }
}
