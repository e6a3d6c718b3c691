//! One connection: opens it, says Hello, and moves frames between its lanes and the machine.
//!
//! Reading and writing go on beside each other within one task, so that a peer that reads slowly can't keep
//! its own answers from being read. Each QUIC lane is read and written apart from the others: a full message
//! lane must not hold back a Ping, or it would look like a dead connection.

mod web;

use std::future::{Future, poll_fn};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tern_core::client::{Failure, Outbound, Transport};
use tern_core::codes::Code;
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::compact::{Read, Reader, Writer};
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{Lane, codec, v1};
use tern_net::addresses::Addresses;
use tern_net::env::Stream;
use tern_net::frames::{Frames, QuicFrames};
use tern_net::quic::{QuicParams, client_config, client_endpoint};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::driver::Tls;
use crate::limits::INITIAL_RTT;
use crate::shared::{ConnectJob, Outgoing, Shared};
use crate::unpacking::unpack;

/// A failure that needs no network: nothing is trusted.
pub(crate) fn no_roots() -> Failure {
    Failure::Network("no CA certificate is configured, so no server can be trusted".to_owned())
}

fn network(cause: impl std::fmt::Display) -> Failure {
    Failure::Network(cause.to_string())
}

/// No connection to an address came about.
fn not_connected(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Failure::NothingThere(error.to_string()),
        _ => network(error),
    }
}

/// Runs until the connection ends, by itself or because `job.out` was closed. Why it ended.
pub(crate) async fn run(shared: &Arc<Shared>, tls: &Tls, job: &ConnectJob) -> Failure {
    let work = async {
        let to = Addresses::of(shared.env.net.as_ref(), &job.candidate.address).await.map_err(network)?;
        match job.transport {
            Transport::Quic => quic(shared, tls, job, &to).await,
            Transport::Tcp => tcp(shared, tls, job, &to).await,
            Transport::WebSocket => web::socket(shared, tls, job, &to).await,
            Transport::Poll | Transport::Http3 => web::polls(shared, tls, job, &to).await,
        }
    };
    let result: Result<(), Failure> = tokio::select! {
        biased;
        result = work => result,
        // Given up while it was still being made.
        () = abandoned(&job.out) => Ok(()),
    };
    match result {
        Ok(()) => Failure::Network("closed here".to_owned()),
        Err(failure) => {
            tracing::debug!(edge = %job.candidate.edge, transport = job.transport.name(), ?failure, "a connection ended");
            failure
        }
    }
}

/// Ends a moment after the connection was to be closed, so that its last frames and the close itself get out.
async fn abandoned(out: &Outgoing) {
    while out.closed().is_none() {
        out.closing.notified().await;
    }
    // Wakes the part that closes in order, which waits for the same.
    out.closing.notify_one();
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn closing(out: &Outgoing) -> Code {
    loop {
        if let Some(code) = out.closed() {
            return code;
        }
        out.closing.notified().await;
    }
}

/// Begins a QUIC connection to one address, from an endpoint of its own.
fn dial(
    shared: &Arc<Shared>,
    job: &ConnectJob,
    to: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    params: QuicParams,
) -> Result<(quinn::Endpoint, quinn::Connecting), Failure> {
    let any: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let endpoint = client_endpoint(&shared.env, any).map_err(network)?;
    // A lost first packet is sent again after three of these. Where the round trip is known, that is after one and a half of
    // it: not before an answer can have come, and soon after.
    let known = |rtt: Duration| (rtt / 2).clamp(INITIAL_RTT.0, INITIAL_RTT.1);
    let initial_rtt = job.rtt.map_or(params.initial_rtt, known);
    let config = client_config(&shared.env, tls, &QuicParams { initial_rtt, ..params }).map_err(network)?;
    let connecting = endpoint.connect_with(config, to, &job.candidate.server_name).map_err(network)?;
    Ok((endpoint, connecting))
}

/// A connection to one address, on which Hello was said: nobody is bound to that. The endpoint is its own.
async fn quic_to(
    shared: &Arc<Shared>,
    tls: &Tls,
    job: &ConnectJob,
    to: SocketAddr,
) -> Result<(quinn::Endpoint, quinn::Connection, Streams), Failure> {
    let session = tls.quic.towards(&format!("{} {to}", job.candidate.server_name));
    let (endpoint, connecting) = dial(shared, job, to, session, QuicParams::client())?;
    // With a ticket of an earlier connection the Hello travels with the first packet, and is answered after one round
    // trip. Nothing else does: whoever records it can repeat no more than a question.
    let (connection, streams) = match connecting.into_0rtt() {
        Ok((connection, taken)) => {
            let early = say_hello(&connection, job).await?;
            let taken = taken.await;
            let streams = if taken { early } else { say_hello(&connection, job).await? };
            (connection, streams)
        }
        Err(connecting) => {
            let connection = connecting.await.map_err(|e| ended(&e))?;
            let streams = say_hello(&connection, job).await?;
            (connection, streams)
        }
    };
    Ok((endpoint, connection, streams))
}

async fn quic(shared: &Arc<Shared>, tls: &Tls, job: &ConnectJob, to: &Addresses) -> Result<(), Failure> {
    let (_endpoint, connection, streams) = to.race(|to| quic_to(shared, tls, job, to)).await?;
    let rtt = connection.rtt();
    // Nobody else sets it.
    let _first = job.out.transport.set(connection.clone());
    // Where the store fails nothing is connected to anyway, and it was told.
    let _told = shared.act(|machine, _| machine.path_measured(job.conn, rtt));
    let [(control, from_control), (message, from_message), (bulk, from_bulk)] = streams;
    let out = &job.out;
    let lanes = all([
        Box::pin(quic_in(shared, job, from_control)) as Lanes<'_>,
        Box::pin(quic_in(shared, job, from_message)),
        Box::pin(quic_in(shared, job, from_bulk)),
        Box::pin(quic_out(out, Lane::Control, control)),
        Box::pin(quic_out(out, Lane::Message, message)),
        Box::pin(quic_out(out, Lane::Bulk, bulk)),
    ]);
    let result = tokio::select! {
        biased;
        failure = lanes => Err(failure),
        code = closing(out) => {
            connection.close(quinn::VarInt::from_u32(code as u32), code.name().as_bytes());
            Ok(())
        }
    };
    // A lane fails with its stream; the connection knows more.
    match (connection.close_reason(), result) {
        (Some(reason), Err(_)) => Err(ended(&reason)),
        (None, Err(failure)) => {
            connection.close(quinn::VarInt::from_u32(Code::BadFrame as u32), b"");
            Err(failure)
        }
        (_, Ok(())) => Ok(()),
    }
}

type Streams = [(quinn::SendStream, quinn::RecvStream); 3];

/// Opens the three lanes and says Hello.
async fn say_hello(connection: &quinn::Connection, job: &ConnectJob) -> Result<Streams, Failure> {
    let opened = |e: quinn::ConnectionError| ended(&e);
    let mut control = connection.open_bi().await.map_err(opened)?;
    let message = connection.open_bi().await.map_err(opened)?;
    let bulk = connection.open_bi().await.map_err(opened)?;
    for ((stream, _), priority) in [(&control, 2), (&message, 1), (&bulk, 0)] {
        stream.set_priority(priority).map_err(network)?;
    }
    let mut hello = BytesMut::new();
    codec::put(&*job.hello.0, &mut hello);
    control.0.write_all(&hello).await.map_err(network)?;
    Ok([control, message, bulk])
}

type Lanes<'a> = std::pin::Pin<Box<dyn Future<Output = Failure> + Send + 'a>>;

/// Runs all until one ends.
async fn all<const N: usize>(mut parts: [Lanes<'_>; N]) -> Failure {
    poll_fn(|cx| {
        for part in &mut parts {
            if let Poll::Ready(failure) = part.as_mut().poll(cx) {
                return Poll::Ready(failure);
            }
        }
        Poll::Pending
    })
    .await
}

/// Likewise for two.
async fn both(one: impl Future<Output = Failure>, other: impl Future<Output = Failure>) -> Failure {
    let (mut one, mut other) = (pin!(one), pin!(other));
    tokio::select! {
        biased;
        failure = &mut one => failure,
        failure = &mut other => failure,
    }
}

/// TLS says so where the two sides have no protocol in common (RFC 7301, 3.2), and QUIC adds 0x100.
const NO_APPLICATION_PROTOCOL: u64 = 0x178;

fn ended(error: &quinn::ConnectionError) -> Failure {
    match error {
        quinn::ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL => {
            Failure::Protocol(error.to_string())
        }
        // One that agrees on none says nothing of it, and this side finds out.
        quinn::ConnectionError::TransportError(wrong) if u64::from(wrong.code) == NO_APPLICATION_PROTOCOL => {
            Failure::Protocol(error.to_string())
        }
        quinn::ConnectionError::ApplicationClosed(close) => {
            let number = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
            match Code::from_u32(number) {
                Some(Code::Closed) | None => network(error),
                Some(code) => {
                    // A device that was removed is told why.
                    let message = String::from_utf8_lossy(&close.reason).into_owned();
                    Failure::Refused { code: number, retry: code.retry(), after: Duration::ZERO, message }
                }
            }
        }
        _ => network(error),
    }
}

async fn quic_in(shared: &Arc<Shared>, job: &ConnectJob, stream: quinn::RecvStream) -> Failure {
    let mut frames = QuicFrames::new(stream, FRAME_BYTES);
    let mut inbox = Inbox::default();
    loop {
        let first = match frames.next::<v1::Frame>().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return network("the edge closed a lane"),
            Err(e) => return network(e),
        };
        let read = inbox.read(first, || frames.buffered::<v1::Frame>().map_err(network));
        match read {
            Ok(batch) => shared.frames(job.conn, &job.out, batch),
            Err(failure) => return failure,
        }
    }
}

async fn quic_out(out: &Outgoing, lane: Lane, mut stream: quinn::SendStream) -> Failure {
    let mut writer = Writer::default();
    let mut bytes = BytesMut::new();
    loop {
        let batch = out.take(lane);
        if batch.is_empty() {
            out.more[lane.index()].notified().await;
            continue;
        }
        batch.iter().for_each(|frame| encode(&mut writer, frame, &mut bytes));
        if let Err(e) = stream.write_all(&bytes).await {
            return network(e);
        }
        bytes.clear();
    }
}

/// TLS over TCP with the first of these addresses that is the edge's.
async fn tls_to(
    shared: &Arc<Shared>,
    config: &Arc<rustls::ClientConfig>,
    job: &ConnectJob,
    to: &Addresses,
) -> Result<TlsStream<Box<dyn Stream>>, Failure> {
    let name = ServerName::try_from(job.candidate.server_name.as_str()).map_err(network)?.to_owned();
    let one = |to: SocketAddr| {
        let name = name.clone();
        async move {
            let stream = shared.env.net.connect(to).await.map_err(|e| not_connected(&e))?;
            TlsConnector::from(config.clone()).connect(name, stream).await.map_err(network)
        }
    };
    to.race(one).await
}

async fn tcp(shared: &Arc<Shared>, tls: &Tls, job: &ConnectJob, to: &Addresses) -> Result<(), Failure> {
    let stream = tls_to(shared, &tls.edges, job, to).await?;
    let (from, mut into) = tokio::io::split(stream);
    let mut hello = BytesMut::new();
    codec::put(&*job.hello.0, &mut hello);
    into.write_all(&hello).await.map_err(network)?;
    into.flush().await.map_err(network)?;
    tokio::select! {
        biased;
        failure = both(tcp_in(shared, job, from), tcp_out(&job.out, &mut into)) => return Err(failure),
        _ = closing(&job.out) => {}
    }
    // The other side may be gone already.
    drop(into.shutdown().await);
    Ok(())
}

async fn tcp_in(shared: &Arc<Shared>, job: &ConnectJob, stream: impl AsyncRead + Unpin) -> Failure {
    let mut frames = Frames::new(stream, FRAME_BYTES);
    let mut inbox = Inbox::default();
    loop {
        let first = match frames.next::<v1::Frame>().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return network("the edge closed the connection"),
            Err(e) => return network(e),
        };
        let read = inbox.read(first, || frames.buffered::<v1::Frame>().map_err(network));
        match read {
            Ok(batch) => shared.frames(job.conn, &job.out, batch),
            Err(failure) => return failure,
        }
    }
}

async fn tcp_out(out: &Outgoing, stream: &mut (impl AsyncWrite + Unpin)) -> Failure {
    let mut writer = Writer::default();
    let mut bytes = BytesMut::new();
    loop {
        for lane in Lane::ALL {
            out.take(lane).iter().for_each(|frame| encode(&mut writer, frame, &mut bytes));
        }
        if bytes.is_empty() {
            out.more[0].notified().await;
            continue;
        }
        let written = async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        };
        if let Err(e) = written.await {
            return network(e);
        }
        bytes.clear();
    }
}

fn encode(writer: &mut Writer, frame: &Outbound, into: &mut BytesMut) {
    match frame {
        Outbound::Send(req, send) => writer.send(*req, send, into),
        Outbound::Frame(frame) => writer.plain(frame, into),
    }
}

/// Resolves the references of what is read from one stream. Any frame may come on any stream: an edge answers
/// on control where this client has not opened the message lane by writing to it yet.
#[derive(Default)]
struct Inbox {
    reader: Reader,
}

impl Inbox {
    /// `first` and all that is there already.
    fn read(
        &mut self,
        first: v1::Frame,
        mut more: impl FnMut() -> Result<Option<v1::Frame>, Failure>,
    ) -> Result<Vec<(u32, Read)>, Failure> {
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(mut frame) = next {
            if let Some(Body::Packed(packed)) = &frame.body {
                frame = unpack(packed).map_err(network)?;
            }
            // An empty frame is one of a newer version: nothing to act on.
            if frame.body.is_some() {
                batch.push((frame.req, self.reader.read(frame).map_err(network)?));
            }
            next = more()?;
        }
        Ok(batch)
    }
}
