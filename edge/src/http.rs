//! What an edge answers over HTTP: `GET /v1/ws` becomes a WebSocket, `POST /v1/poll` carries a session. Over TCP that is
//! HTTP/2 or HTTP/1.1, over QUIC HTTP/3 (`quic`), on which nothing becomes a WebSocket.
//!
//! A connection keeps its place among the handshakes until a request on it shows that somebody is there whom
//! this edge knows: it names a session, or begins one, whose own handshake it then is. Until then it has as long
//! as any other connection has for its Hello. A request that is refused is the last one of its connection.

mod answer;
mod quic;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ALT_SVC, CONNECTION, HOST, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE, VARY,
};
use hyper::http::uri::Authority;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tern_core::codes::Code;
use tern_core::limits::FRAME_BYTES;
use tern_net::env::Stream;
use tern_net::forwarded::Caller;
use tern_net::http::{Handler, HttpLimits, read_body, serve_stream};
use tern_net::websocket::{SUBPROTOCOL, accept_key, are_whole_frames, is_key};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

pub(crate) use self::quic::First;

use self::answer::{Answer, HttpError, preflight, respond};
use crate::admission::{Admitted, Ticket};
use crate::edge::Edge;
use crate::listen::drive_websocket;
use crate::mailbox::Conn;
use crate::metrics::HTTP;
use crate::poll::{self, BODY_BYTES, Exchange, Misfit, Taken};

const WEBSOCKET: &str = "/v1/ws";
const POLL: &str = "/v1/poll";
/// Names a session; absent in the first request.
const NAME: &str = "tern-poll";
/// Numbers the requests of a session, from 1 for the second one.
const NUMBER: &str = "tern-number";
/// How long a request may wait for something to answer.
const WAIT: &str = "tern-wait-ms";
/// And no longer than this: proxies on the way give up after 30 s.
const WAIT_MAX: Duration = Duration::from_secs(25);
/// The frames of a request are there by then: 256 KiB at 13 KiB/s.
const BODY_WITHIN: Duration = Duration::from_secs(20);
/// A connection without a request under way is kept for so long, for the next poll.
const IDLE: Duration = Duration::from_secs(30);
/// Above all that a request may take by what is above.
const REQUEST_WITHIN: Duration = Duration::from_secs(60);
/// Requests at once on a connection of HTTP/2 or HTTP/3: a session has two.
const STREAMS: u32 = 8;
/// What the first request of a session may carry: a Hello.
const HELLO_BYTES: usize = FRAME_BYTES + 5;

/// For how long a client may believe what it was told of HTTP/3: an edge that goes takes its port with it.
const QUIC_KNOWN_S: u32 = 3600;
/// The port of a URL that names none.
const HTTPS: u16 = 443;

fn limits() -> HttpLimits {
    HttpLimits { header: IDLE, request: REQUEST_WITHIN, streams: STREAMS, ..HttpLimits::default() }
}

/// Whether a header that is a list names this.
fn names(headers: &HeaderMap, header: &HeaderName, what: &str) -> bool {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(what))
}

fn number(headers: &HeaderMap, name: &str, missing: Option<u64>) -> Result<u64, HttpError> {
    let wrong = HttpError::Header("Tern-Number is from 1 on, and Tern-Wait-Ms from 0 on, in decimal digits");
    match headers.get(name) {
        Some(value) => value.to_str().ok().and_then(|text| text.parse().ok()).ok_or(wrong),
        None => missing.ok_or(wrong),
    }
}

/// One connection that speaks HTTP.
pub(crate) struct Front {
    edge: Arc<Edge>,
    conn: Arc<Conn>,
    from: SocketAddr,
    /// Its place among the handshakes.
    ticket: Mutex<Option<Ticket>>,
    /// What becomes a WebSocket, and whose.
    upgrade: Mutex<Option<(OnUpgrade, SocketAddr)>>,
    /// A request was refused, so this connection is to end.
    finish: Arc<Notify>,
    finishing: AtomicBool,
    fault: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Front {
    pub(crate) fn new(edge: Arc<Edge>, conn: Arc<Conn>, from: SocketAddr, ticket: Ticket) -> Arc<Self> {
        let (ticket, upgrade) = (Mutex::new(Some(ticket)), Mutex::new(None));
        let (finishing, fault) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { edge, conn, from, ticket, upgrade, finish: Arc::new(Notify::new()), finishing, fault })
    }

    /// Serves until the connection ends, and says as what it ended.
    pub(crate) async fn serve(self: Arc<Self>, stream: Box<dyn Stream>, alpn: Option<Vec<u8>>) -> &'static str {
        let late = self.serve_http(stream, alpn).await;
        let upgrade = lock(&self.upgrade).take();
        if let Some((upgrade, client)) = upgrade
            && let Ok(Ok(upgraded)) = timeout(self.edge.tuning().hello_timeout, upgrade).await
        {
            let transport = "ws";
            self.edge.relabel(HTTP, transport);
            let ticket = lock(&self.ticket).take();
            drive_websocket(&self.edge, &self.conn, TokioIo::new(upgraded), client, ticket).await;
            return transport;
        }
        self.ended(late);
        HTTP
    }

    /// `late`: nothing came in time that shows that somebody is there.
    fn ended(&self, late: bool) {
        self.conn.mailbox().close(&self.edge.metrics);
        match lock(&self.ticket).take() {
            None => {}
            Some(_) if late => self.edge.handshake_failed(self.from.ip(), Code::HelloTimeout),
            Some(_) if self.fault.load(Ordering::Relaxed) => {
                self.edge.handshake_failed(self.from.ip(), Code::WrongProtocol);
            }
            Some(_) => self.edge.handshake_abandoned(self.from.ip()),
        }
    }

    /// The edge closes all connections, or this one has had its last answer.
    async fn is_over(&self) {
        tokio::select! { biased; () = self.is_told_to_end() => {}, () = self.finish.notified() => {} }
    }

    /// True if nothing came in time that shows that somebody is there.
    async fn serve_http(self: &Arc<Self>, stream: Box<dyn Stream>, alpn: Option<Vec<u8>>) -> bool {
        let front = self.clone();
        let handler: Handler = Arc::new(move |from, request| {
            let front = front.clone();
            Box::pin(async move { front.respond(from, request).await })
        });
        let (tasks, over) = (self.edge.env.tasks.clone(), self.is_over());
        let serving = Box::pin(serve_stream(tasks, stream, alpn.as_deref(), self.from, limits(), handler, over));
        tokio::select! {
            biased;
            () = serving => false,
            () = self.is_late() => true,
        }
    }

    async fn is_late(&self) {
        sleep(self.edge.tuning().hello_timeout).await;
        if lock(&self.ticket).is_none() || lock(&self.upgrade).is_some() {
            std::future::pending::<()>().await;
        }
    }

    /// The edge closes all connections. Sessions on this one are told so by themselves.
    async fn is_told_to_end(&self) {
        poll_fn(|cx| {
            let mut mailbox = self.conn.mailbox();
            mailbox.listen(cx.waker());
            if mailbox.ended().is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// This answer is the last one of the connection.
    fn finish(&self) {
        self.finishing.store(true, Ordering::Relaxed);
        self.finish.notify_one();
    }

    async fn respond<B>(&self, from: SocketAddr, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let says_close = request.version() < Version::HTTP_2;
        let elsewhere = self.also_by_quic(&request);
        let allowed = self.allowed_origin(request.headers());
        let answered = match (&allowed, request.uri().path(), request.method()) {
            (_, WEBSOCKET, method) if method != Method::GET => Err(HttpError::Method("GET")),
            (_, POLL, method) if ![Method::POST, Method::DELETE, Method::OPTIONS].contains(method) => {
                Err(HttpError::Method("POST, DELETE, OPTIONS"))
            }
            (Err(()), WEBSOCKET | POLL, _) => Err(HttpError::Origin),
            (Ok(_), WEBSOCKET, _) => self.begin_websocket(from, request),
            (Ok(_), POLL, method) if method == Method::OPTIONS => Ok(preflight()),
            (Ok(_), POLL, method) if method == Method::DELETE => self.end_session(from, request.headers()),
            (Ok(_), POLL, _) => self.poll(from, request).await,
            _ => Err(HttpError::NotFound),
        };
        let mut response = answered.unwrap_or_else(|e| {
            // Not for a misfit: the session goes on, and asks again on this connection.
            if !matches!(e, HttpError::Misfit(_)) {
                self.finish();
            }
            if e.is_fault() {
                self.fault.store(true, Ordering::Relaxed);
            }
            e.response()
        });
        if says_close && self.finishing.load(Ordering::Relaxed) {
            // Or the next request might be on its way when the connection ends.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(elsewhere) = elsewhere {
            response.headers_mut().insert(ALT_SVC, elsewhere);
        }
        if let Ok(Some(origin)) = allowed {
            let headers = response.headers_mut();
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(NAME));
            headers.insert(VARY, HeaderValue::from_static("origin"));
        }
        response
    }

    /// The page that asks, if it is one and may.
    fn allowed_origin(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, ()> {
        let origins = &self.edge.config.origins;
        match headers.get(ORIGIN) {
            None => Ok(None),
            Some(origin) if origins.is_empty() || origins.iter().any(|o| o.as_bytes() == origin.as_bytes()) => {
                Ok(Some(origin.clone()))
            }
            Some(_) => Err(()),
        }
    }

    /// Where stock clients find HTTP/3: at the same port. Not for those behind a proxy, whose ports are others'.
    fn also_by_quic<B>(&self, request: &Request<B>) -> Option<HeaderValue> {
        if request.version() == Version::HTTP_3 || self.edge.is_proxy(self.from.ip()) {
            return None;
        }
        let host = || request.headers().get(HOST)?.to_str().ok()?.parse::<Authority>().ok();
        let port = match request.uri().authority().cloned().or_else(host) {
            Some(asked) => asked.port_u16().unwrap_or(HTTPS),
            None => self.edge.port()?,
        };
        HeaderValue::try_from(format!("h3=\":{port}\"; ma={QUIC_KNOWN_S}")).ok()
    }

    fn begin_websocket<B>(&self, from: SocketAddr, mut request: Request<B>) -> Result<Answer, HttpError> {
        let headers = request.headers();
        if request.version() != Version::HTTP_11 {
            return Err(HttpError::Upgrade("over HTTP/1.1; offer http/1.1 by ALPN"));
        }
        if !names(headers, &CONNECTION, "upgrade") || !names(headers, &UPGRADE, "websocket") {
            return Err(HttpError::Upgrade("send Connection: Upgrade and Upgrade: websocket"));
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(HttpError::Upgrade("send Sec-WebSocket-Version: 13"));
        }
        if !names(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
            return Err(HttpError::Header("offer the subprotocol tern.1 in Sec-WebSocket-Protocol"));
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).filter(|key| is_key(key));
        let Some(accept) = key.and_then(|key| HeaderValue::try_from(accept_key(key)).ok()) else {
            return Err(HttpError::Header("Sec-WebSocket-Key is 16 random bytes in base64"));
        };
        let client = self.client(from, headers);
        let ticket = self.take_ticket(client)?;
        *lock(&self.ticket) = Some(ticket);
        *lock(&self.upgrade) = Some((hyper::upgrade::on(&mut request), client));
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        Ok(response)
    }

    /// Who asks: the other end of the connection, or the client that a trusted proxy asks for.
    fn client(&self, from: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        if !self.edge.is_proxy(from.ip()) {
            return from;
        }
        let caller = Caller::of(from.ip(), headers, &self.edge.config.trusted_proxies);
        if caller.direct { from } else { SocketAddr::new(caller.address, 0) }
    }

    /// This connection's place among the handshakes; another one where it has given that away, or is a proxy's.
    fn take_ticket(&self, client: SocketAddr) -> Result<Ticket, HttpError> {
        let own = lock(&self.ticket).take();
        if let Some(ticket) = own.filter(|_| client == self.from) {
            return Ok(ticket);
        }
        match self.edge.admit(client.ip(), true) {
            Admitted::Yes(ticket) => Ok(ticket),
            Admitted::Retry | Admitted::No => Err(HttpError::Full),
        }
    }

    async fn poll<B>(&self, from: SocketAddr, request: Request<B>) -> Result<Answer, HttpError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let wait = Duration::from_millis(number(request.headers(), WAIT, Some(0))?).min(WAIT_MAX);
        let client = self.client(from, request.headers());
        match request.headers().get(NAME) {
            None => self.begin_session(request.into_body(), wait, client).await,
            Some(name) => {
                let exchange = self.session(name, client)?;
                let number = number(request.headers(), NUMBER, None)?;
                if number == 0 {
                    return Err(HttpError::Header("Tern-Number is 1 in the second request of a session"));
                }
                let answer = self.go_on(&exchange, number, request.into_body(), wait, client).await?;
                Ok(respond(StatusCode::OK, "application/octet-stream", answer))
            }
        }
    }

    /// The session of this name, which shows that somebody is there.
    fn session(&self, name: &HeaderValue, client: SocketAddr) -> Result<Arc<Exchange>, Misfit> {
        let name = name.to_str().ok().and_then(poll::read_name).ok_or(Misfit::Over)?;
        let exchange = self.edge.polls.get(&name).ok_or(Misfit::Over)?;
        if lock(&self.ticket).take().is_some() {
            self.edge.handshake_done(client.ip());
        }
        exchange.carry(&self.finish);
        Ok(exchange)
    }

    /// As closing a connection is elsewhere.
    fn end_session(&self, from: SocketAddr, headers: &HeaderMap) -> Result<Answer, HttpError> {
        self.session(headers.get(NAME).ok_or(Misfit::Over)?, self.client(from, headers))?.hang_up();
        Ok(respond(StatusCode::OK, "application/octet-stream", Bytes::new()))
    }

    async fn begin_session<B>(&self, body: B, wait: Duration, client: SocketAddr) -> Result<Answer, HttpError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let ticket = self.take_ticket(client)?;
        let hello_timeout = self.edge.tuning().hello_timeout;
        let body = timeout(hello_timeout, read_body(body, HELLO_BYTES)).await.map_err(|_| HttpError::Late)??;
        if body.is_empty() || !are_whole_frames(&body) {
            self.edge.handshake_failed(client.ip(), Code::BadFrame);
            return Err(HttpError::Frames);
        }
        let conn = self.edge.enter("poll").ok_or(HttpError::Full)?;
        let exchange = Arc::new(Exchange::new(self.edge.metrics.clone(), client, &body, self.edge.env.clock.now()));
        let turn = exchange.arrive(0, client, self.edge.env.clock.now())?;
        exchange.carry(&self.finish);
        let name = poll::start(&self.edge, conn, ticket, exchange.clone());
        // If the client goes before it was told the session's name, nobody will ever use it.
        let mut unnamed = HangUp(Some(exchange.clone()));
        // The Welcome, or the reason why there is none, comes by then.
        let within = hello_timeout + self.edge.config.limits.open_timeout + wait;
        let _ = timeout(within, poll_fn(|cx| exchange.poll_answer(turn, cx))).await;
        let answer = exchange.give(turn, 0, self.edge.env.clock.now())?;
        let over = exchange.has_ended();
        unnamed.0 = None;
        let mut response = respond(StatusCode::OK, "application/octet-stream", answer);
        if over {
            self.finish();
        } else if let Ok(name) = HeaderValue::try_from(poll::write_name(&name)) {
            response.headers_mut().insert(NAME, name);
        }
        Ok(response)
    }

    async fn go_on<B>(
        &self,
        exchange: &Exchange,
        number: u64,
        body: B,
        wait: Duration,
        client: SocketAddr,
    ) -> Result<Bytes, HttpError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let turn = exchange.arrive(number, client, self.edge.env.clock.now())?;
        let body = tokio::select! {
            biased;
            // Then the turn says so.
            () = poll_fn(|cx| exchange.poll_superseded(turn, cx)) => Bytes::new(),
            body = timeout(BODY_WITHIN, read_body(body, BODY_BYTES)) => body.map_err(|_| HttpError::Late)??,
        };
        if !are_whole_frames(&body) {
            return Err(HttpError::Frames);
        }
        if let Taken::Answered(answer) = exchange.take_in(turn, number, &body)? {
            return Ok(answer);
        }
        let _ = timeout(wait, poll_fn(|cx| exchange.poll_answer(turn, cx))).await;
        Ok(exchange.give(turn, number, self.edge.env.clock.now())?)
    }
}

/// Ends a session when dropped.
struct HangUp(Option<Arc<Exchange>>);

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(exchange) = &self.0 {
            exchange.hang_up();
        }
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
