//! Listeners: QUIC and TCP+TLS on one port number, and what happens before a connection is driven.
//!
//! What TLS agrees on tells `tern/1` from HTTP, on which WebSockets and polls come: over QUIC from HTTP/3, which has
//! polls alone.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use quinn::crypto::rustls::HandshakeData;
use tern_core::codes::{Code, Refusal};
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{ALPN_CLIENT, codec, v1};
use tern_net::env::{Acceptor, Stream};
use tern_net::http::ALPN_HTTP;
use tern_net::http3::{ALPN_HTTP3, HTTP3_NO_ERROR};
use tern_net::quic::{QuicParams, server_endpoint_with};
use tern_net::reset::ResetKey;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::Instrument;

use crate::admission::{Admitted, Ticket};
use crate::driver::{Driver, End};
use crate::edge::{Edge, EdgeError};
use crate::http::{First, Front};
use crate::lanes::{Lanes, QuicLanes, StreamLanes, WebSocketLanes};
use crate::mailbox::Conn;
use crate::metrics::{HTTP, HTTP3};

/// Why a handshake is refused that has just proven its address.
pub(crate) const CROWDED: &str = "too many handshakes of this address block are under way; come again later";
/// Where port 0 is asked for, TCP takes one that may be in use for UDP; so many are tried.
const PORT_TRIES: usize = 16;
/// After a failed accept (no file descriptors left, say) the listener waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes that a QUIC client may send ahead of what is read until its Hello is accepted: the largest Hello of our
/// client is 50 KiB.
const HELLO_WINDOW: u32 = 64 * 1024;
/// A closing TCP connection's last frame is written by then or not at all.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What clients on QUIC are accepted with; tickets for other parameters are of no use.
pub fn quic_params() -> QuicParams {
    QuicParams { receive_window: HELLO_WINDOW, ..QuicParams::edge() }
}

/// Both sockets of one address.
pub(crate) struct Sockets {
    pub(crate) local_addr: SocketAddr,
    tcp: Box<dyn Acceptor>,
    quic: quinn::Endpoint,
}

/// Opens both sockets of an address.
pub(crate) async fn bind(edge: &Edge, at: SocketAddr, tls: &Arc<rustls::ServerConfig>) -> Result<Sockets, EdgeError> {
    let mut tries = if at.port() == 0 { PORT_TRIES } else { 1 };
    let mut tls = (**tls).clone();
    // As over TCP: who offers both wants its own protocol.
    tls.alpn_protocols = vec![ALPN_CLIENT.to_vec(), ALPN_HTTP3.to_vec()];
    edge.config.tickets.offer(&mut tls);
    let tls = Arc::new(tls);
    let params = quic_params();
    let reset = edge.config.reset_key.clone().unwrap_or_else(|| ResetKey::random(&edge.env.rng));
    loop {
        tries -= 1;
        let tcp = edge.env.net.listen(at).await.map_err(|cause| EdgeError::Listen { at, cause })?;
        let local_addr = tcp.local_addr();
        match server_endpoint_with(&edge.env, local_addr, tls.clone(), &params, &reset, edge.sounding.as_ref()) {
            Ok(quic) => return Ok(Sockets { local_addr, tcp, quic }),
            Err(e) if tries == 0 => return Err(e.into()),
            Err(_) => {}
        }
    }
}

impl Sockets {
    pub(crate) fn close(&mut self) {
        self.quic.close(0u32.into(), b"");
    }

    /// Accepts until the edge stops.
    pub(crate) fn serve(self, edge: &Arc<Edge>, tls: &Arc<rustls::ServerConfig>) {
        let Sockets { tcp, quic, .. } = self;
        edge.env.tasks.spawn(accept_quic(edge.clone(), quic));
        let mut tls = (**tls).clone();
        // A client that offers several wants its own protocol; one that offers none is taken for HTTP.
        tls.alpn_protocols = std::iter::once(ALPN_CLIENT).chain(ALPN_HTTP).map(<[u8]>::to_vec).collect();
        edge.env.tasks.spawn(accept_tcp(edge.clone(), tcp, TlsAcceptor::from(Arc::new(tls))));
    }
}

async fn accept_quic(edge: Arc<Edge>, endpoint: quinn::Endpoint) {
    let mut stopped = edge.stopped();
    loop {
        let incoming = tokio::select! {
            biased;
            _ = stopped.changed() => {
                endpoint.close((Code::Draining as u32).into(), b"this edge stops");
                return;
            }
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let ticket = match edge.admit(incoming.remote_address().ip(), incoming.remote_address_validated()) {
            Admitted::Yes(ticket) => ticket,
            Admitted::Retry => {
                if let Err(e) = incoming.retry() {
                    // It has proven its address, which quinn knows better than this code.
                    e.into_incoming().refuse();
                }
                continue;
            }
            Admitted::No => {
                incoming.refuse();
                continue;
            }
        };
        let Some(conn) = edge.enter(QuicLanes::TRANSPORT) else {
            edge.metrics.handshake_failed(Code::Overloaded.name());
            incoming.refuse();
            continue;
        };
        edge.env.tasks.spawn(shake_hands(edge.clone(), conn, ticket, incoming));
    }
}

/// A task of its own: what a handshake needs is not kept for the life of the connection.
async fn shake_hands(edge: Arc<Edge>, conn: Arc<Conn>, mut ticket: Ticket, incoming: quinn::Incoming) {
    let (from, proven) = (incoming.remote_address().ip(), incoming.remote_address_validated());
    // A server is always given its connection before the handshake is over.
    let accepted = incoming.accept().ok().and_then(|connecting| connecting.into_0rtt().ok());
    let begun = match accepted {
        Some((connection, handshake)) => timeout(edge.tuning().hello_timeout, begin(connection, handshake)).await.ok(),
        None => None,
    };
    match begun.flatten() {
        Some((connection, begun)) => {
            let tasks = edge.env.tasks.clone();
            let span = connection_span(&conn, QuicLanes::TRANSPORT, connection.remote_address());
            if !matches!(begun, Begun::Early(..)) && !ticket.prove() {
                edge.handshake_failed(from, Code::Overloaded);
                connection.close((Code::Overloaded as u32).into(), CROWDED.as_bytes());
                edge.leave(&conn, QuicLanes::TRANSPORT);
                return;
            }
            let lanes = match begun {
                Begun::Early(handshake, stream) => QuicLanes::early(connection, handshake, stream),
                Begun::Whole => QuicLanes::new(connection),
                Begun::Http(first) => {
                    edge.relabel(QuicLanes::TRANSPORT, HTTP3);
                    tasks.spawn(serve_http3(edge, conn, ticket, connection, first).instrument(span));
                    return;
                }
            };
            tasks.spawn(serve_quic(edge, conn, ticket, lanes).instrument(span));
        }
        // If the address is not proven, counting the failure against its block would let anyone lock out
        // others.
        None => {
            if proven {
                edge.handshake_abandoned(from);
            } else {
                edge.metrics.handshake_failed("quic");
            }
            edge.leave(&conn, QuicLanes::TRANSPORT);
        }
    }
}

/// What a QUIC connection has come to.
enum Begun {
    /// Its handshake is over.
    Whole,
    /// A stream came before that.
    Early(quinn::ZeroRttAccepted, First),
    /// It speaks HTTP/3. Others may repeat early data, and a request acts at once: so the handshake is over, though a
    /// stream may have come before.
    Http(Option<First>),
}

/// Until the handshake is over, or a stream comes before that. `None`: it failed.
async fn begin(
    connection: quinn::Connection,
    mut handshake: quinn::ZeroRttAccepted,
) -> Option<(quinn::Connection, Begun)> {
    let stream = tokio::select! {
        biased;
        _ = &mut handshake => None,
        stream = connection.accept_bi() => Some(stream.ok()?),
    };
    let begun = match stream {
        stream if speaks_http(&connection) => {
            if stream.is_some() {
                // Whether early data was taken at all does not matter: what was not comes again.
                let _taken = handshake.await;
            }
            Begun::Http(stream)
        }
        Some(stream) => Begun::Early(handshake, stream),
        None => Begun::Whole,
    };
    connection.close_reason().is_none().then_some((connection, begun))
}

/// As TLS agreed on it, which is known before the first stream comes.
fn speaks_http(connection: &quinn::Connection) -> bool {
    let agreed = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    agreed.and_then(|data| data.protocol).as_deref() == Some(ALPN_HTTP3)
}

async fn serve_http3(
    edge: Arc<Edge>,
    conn: Arc<Conn>,
    ticket: Ticket,
    connection: quinn::Connection,
    first: Option<First>,
) {
    let front = Front::new(edge.clone(), conn.clone(), connection.remote_address(), ticket);
    let transport = front.serve_quic(connection.clone(), first).await;
    // If it has not been closed already: it was late.
    connection.close(HTTP3_NO_ERROR, b"");
    edge.leave(&conn, transport);
}

/// What every line about a connection carries. At debug level: where that is off, an idle connection keeps
/// no span.
fn connection_span(conn: &Conn, transport: &'static str, from: SocketAddr) -> tracing::Span {
    tracing::debug_span!("connection", conn = conn.id, transport, %from)
}

async fn serve_quic(edge: Arc<Edge>, conn: Arc<Conn>, ticket: Ticket, lanes: QuicLanes) {
    let mut driver = Driver::new(edge, conn, lanes, Some(ticket));
    let (code, reason) = match driver.run().await {
        End::Gone => (Code::Closed, String::new()),
        End::Refused(refusal) => {
            driver.edge.metrics.closed(refusal.code);
            (refusal.code, refusal.message)
        }
    };
    tracing::debug!(code = code.name(), reason, "connection ended");
    driver.lanes.close(code, &reason);
    driver.edge.leave(&driver.conn, QuicLanes::TRANSPORT);
}

async fn accept_tcp(edge: Arc<Edge>, mut acceptor: Box<dyn Acceptor>, tls: TlsAcceptor) {
    let mut stopped = edge.stopped();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.changed() => return,
            accepted = acceptor.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "a TCP connection could not be accepted; connections wait meanwhile");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Admitted::Yes(ticket) = edge.admit(from.ip(), true) else { continue };
        if edge.metrics.descriptors() >= i64::from(edge.config.limits.tcp_connections) {
            edge.metrics.handshake_failed(Code::Overloaded.name());
            continue;
        }
        let Some(conn) = edge.enter(StreamLanes::<Box<dyn Stream>>::TRANSPORT) else {
            edge.metrics.handshake_failed(Code::Overloaded.name());
            continue;
        };
        let span = connection_span(&conn, StreamLanes::<Box<dyn Stream>>::TRANSPORT, from);
        let serving = serve_tcp(edge.clone(), conn, ticket, stream, from, tls.clone());
        edge.env.tasks.spawn(serving.instrument(span));
    }
}

async fn serve_tcp(
    edge: Arc<Edge>,
    conn: Arc<Conn>,
    ticket: Ticket,
    stream: Box<dyn Stream>,
    from: SocketAddr,
    tls: TlsAcceptor,
) {
    let mut transport = StreamLanes::<Box<dyn Stream>>::TRANSPORT;
    match timeout(edge.tuning().hello_timeout, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            if alpn.as_deref() == Some(ALPN_CLIENT) {
                drive_stream(&edge, &conn, stream, from, Some(ticket)).await;
            } else {
                transport = HTTP;
                edge.relabel(StreamLanes::<Box<dyn Stream>>::TRANSPORT, transport);
                // On the heap: connections that speak no HTTP are to have no room for it.
                let front = Front::new(edge.clone(), conn.clone(), from, ticket);
                transport = Box::pin(front.serve(Box::new(stream), alpn)).await;
            }
        }
        // A client whose other attempt was faster hangs up in the middle, which is no failure.
        Ok(Err(e)) if e.kind() != ErrorKind::InvalidData => edge.handshake_abandoned(from.ip()),
        Ok(Err(_)) => edge.handshake_failed(from.ip(), Code::WrongProtocol),
        Err(_) => edge.handshake_failed(from.ip(), Code::HelloTimeout),
    }
    edge.leave(&conn, transport);
}

pub(crate) async fn drive_stream<S: AsyncRead + AsyncWrite + Send + Unpin>(
    edge: &Arc<Edge>,
    conn: &Arc<Conn>,
    stream: S,
    from: SocketAddr,
    ticket: Option<Ticket>,
) {
    let mut driver = Driver::new(edge.clone(), conn.clone(), StreamLanes::new(stream, from), ticket);
    if let End::Refused(refusal) = driver.run().await {
        tracing::debug!(code = refusal.code.name(), reason = refusal.message, "connection ended");
        edge.metrics.closed(refusal.code);
        // A half-written frame before it would make this one unreadable; then the close says it all.
        if driver.lanes.waiting() == 0 {
            last_words(driver.lanes.stream(), &refusal).await;
        }
    }
}

/// The same over a WebSocket.
pub(crate) async fn drive_websocket<S: AsyncRead + AsyncWrite + Send + Unpin>(
    edge: &Arc<Edge>,
    conn: &Arc<Conn>,
    stream: S,
    from: SocketAddr,
    ticket: Option<Ticket>,
) {
    let mut driver = Driver::new(edge.clone(), conn.clone(), WebSocketLanes::new(stream, from), ticket);
    let refusal = match driver.run().await {
        End::Gone => None,
        End::Refused(refusal) => {
            tracing::debug!(code = refusal.code.name(), reason = refusal.message, "connection ended");
            edge.metrics.closed(refusal.code);
            Some(refusal)
        }
    };
    // Whatever goes wrong meanwhile changes nothing.
    let _ = timeout(LAST_WORDS, driver.lanes.close(refusal.as_ref())).await;
}

/// Tells why, then closes. Whatever goes wrong meanwhile changes nothing.
async fn last_words<S: AsyncWrite + Unpin>(stream: &mut S, refusal: &Refusal) {
    let mut out = BytesMut::new();
    codec::put(&v1::Frame::new(0, Body::Error(refusal.to_wire())), &mut out);
    let _ = timeout(LAST_WORDS, async {
        stream.write_all(&out).await?;
        stream.shutdown().await
    })
    .await;
}

#[cfg(test)]
#[path = "early_tests.rs"]
mod early_tests;
