//! A client reduced to the wire: handshake, Hello, Welcome, Commit, and its three lanes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use tern_core::ids::{ConvId, UserId};
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{ALPN_CLIENT, VERSION, codec, v1};
use tern_net::env::{Env, Stream};
use tern_net::frames::{Frames, QuicFrames};
use tern_net::quic::{QuicParams, client_config, client_endpoint};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Bench, Server};

/// UDP sockets of the generator: enough for both processors, few enough that a wake-up finds more than one
/// datagram.
const ENDPOINTS: usize = 4;
/// A connection that is not there by then never comes: the generator itself is overloaded otherwise.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// A name in every leaf of a development deployment.
const SERVER_NAME: &str = "localhost";

/// Opens connections to one edge. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    env: Env,
    at: SocketAddr,
    endpoints: Arc<Vec<quinn::Endpoint>>,
    quic: quinn::ClientConfig,
    tls: TlsConnector,
}

impl Dialer {
    /// Towards the client port of a server.
    pub fn new(bench: &Bench, server: &Server) -> Result<Self> {
        let at = server.ready.client.context("the server has no client port")?;
        let tls = bench.client_tls(ALPN_CLIENT)?;
        let env = bench.env.clone();
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoints: Result<Vec<_>, _> = (0..ENDPOINTS).map(|_| client_endpoint(&env, local)).collect();
        let quic = client_config(&env, tls.clone(), &QuicParams::client())?;
        Ok(Self { env, at, endpoints: Arc::new(endpoints?), quic, tls: tls.into() })
    }

    /// A QUIC connection without anything on it.
    pub async fn quic_connection(&self, index: usize) -> Result<quinn::Connection> {
        let endpoint = self.endpoints.get(index % ENDPOINTS).context("no endpoint")?;
        let connecting = endpoint.connect_with(self.quic.clone(), self.at, SERVER_NAME)?;
        Ok(timeout(CONNECT_WITHIN, connecting).await.map_err(|_| late("QUIC handshake"))??)
    }

    /// A session over QUIC, every lane of it in use.
    pub async fn quic(&self, index: usize, user: &UserId, token: &str) -> Result<QuicSession> {
        let connection = self.quic_connection(index).await?;
        self.session(connection, user, token, index).await
    }

    /// A session on a QUIC connection.
    pub async fn session(
        &self,
        connection: quinn::Connection,
        user: &UserId,
        token: &str,
        index: usize,
    ) -> Result<QuicSession> {
        let opening = QuicSession::open(connection, hello(index, user, token));
        timeout(CONNECT_WITHIN, opening).await.map_err(|_| late("Welcome over QUIC"))?
    }

    /// A session over TCP and TLS, every lane of it in use.
    pub async fn tcp(&self, index: usize, user: &UserId, token: &str) -> Result<TcpSession> {
        let opening = async {
            let stream = self.env.net.connect(self.at).await?;
            let stream = self.tls.connect(ServerName::try_from(SERVER_NAME)?, stream).await?;
            TcpSession::open(stream, hello(index, user, token)).await
        };
        timeout(CONNECT_WITHIN, opening).await.map_err(|_| late("Welcome over TCP"))?
    }
}

fn late(what: &str) -> anyhow::Error {
    anyhow!("no {what} within {} s", CONNECT_WITHIN.as_secs())
}

fn hello(index: usize, user: &UserId, token: &str) -> v1::Hello {
    v1::Hello {
        versions: vec![VERSION],
        token: token.to_owned(),
        install: format!("{user}-phone"),
        race: index as u64 + 1,
        attempt: 1,
        foreground: true,
        agent: concat!("tern-bench/", env!("CARGO_PKG_VERSION")).to_owned(),
        ..v1::Hello::default()
    }
}

/// What a client says once it is welcome: this connection is the one, and something on every lane, so that
/// the server has all of them open as it has with a client in use.
struct First {
    control: BytesMut,
    message: BytesMut,
    bulk: BytesMut,
}

impl First {
    fn of(hello: &v1::Hello) -> Self {
        let frame = |frames: &[v1::Frame]| {
            let mut out = BytesMut::new();
            frames.iter().for_each(|frame| codec::put(frame, &mut out));
            out
        };
        let commit = Body::Commit(v1::Commit { race: hello.race, attempt: hello.attempt, order: 0 });
        let ping = Body::Ping(v1::Ping { echo: 1, foreground: true, ..v1::Ping::default() });
        let define = v1::define::What::Conversation(Bytes::from_static(&[0; 16]));
        // The first Send binds the number anew.
        let define = Body::Define(v1::Define { r#ref: 1, what: Some(define) });
        let rows = Body::PullRows(v1::PullRows::default());
        Self {
            control: frame(&[v1::Frame::new(0, commit), v1::Frame::new(1, ping)]),
            message: frame(&[v1::Frame::new(0, define)]),
            bulk: frame(&[v1::Frame::new(1, rows)]),
        }
    }
}

fn put(frame: &v1::Frame) -> BytesMut {
    let mut out = BytesMut::new();
    codec::put(frame, &mut out);
    out
}

/// What an edge's frame is about, where it is not what was asked for.
pub fn unexpected(frame: &v1::Frame) -> anyhow::Error {
    match &frame.body {
        Some(Body::Error(error)) => anyhow!("the server refused: {} (code {})", error.message, error.code),
        other => anyhow!("the server said what was not expected here: {other:?}"),
    }
}

/// One lane of a QUIC session.
#[derive(Debug)]
pub struct QuicLane {
    /// Towards the server.
    pub send: quinn::SendStream,
    /// From it.
    pub frames: QuicFrames,
}

impl QuicLane {
    async fn open(connection: &quinn::Connection) -> Result<Self> {
        let (send, recv) = connection.open_bi().await?;
        Ok(Self { send, frames: QuicFrames::new(recv, FRAME_BYTES) })
    }

    async fn next(&mut self) -> Result<v1::Frame> {
        self.frames.next().await?.context("the server ended a lane")
    }
}

/// A session over QUIC.
#[derive(Debug)]
pub struct QuicSession {
    /// The connection.
    pub connection: quinn::Connection,
    /// Stream 0.
    pub control: QuicLane,
    /// Stream 4.
    pub message: QuicLane,
    /// Stream 8.
    pub bulk: QuicLane,
    /// Makes ids of direct conversations.
    pub direct_salt: Bytes,
    /// Of the Welcome.
    rows: v1::Rows,
}

impl QuicSession {
    async fn open(connection: quinn::Connection, hello: v1::Hello) -> Result<Self> {
        let mut control = QuicLane::open(&connection).await?;
        let mut message = QuicLane::open(&connection).await?;
        let mut bulk = QuicLane::open(&connection).await?;
        let first = First::of(&hello);
        control.send.write_all(&put(&v1::Frame::new(1, Body::Hello(hello)))).await?;
        let welcome = control.next().await?;
        let Some(Body::Welcome(welcome)) = welcome.body else { bail!(unexpected(&welcome)) };
        control.send.write_all(&first.control).await?;
        message.send.write_all(&first.message).await?;
        bulk.send.write_all(&first.bulk).await?;
        let pong = control.next().await?;
        if !matches!(pong.body, Some(Body::Pong(_))) {
            bail!(unexpected(&pong));
        }
        let rows = bulk.next().await?;
        if !matches!(rows.body, Some(Body::Rows(_))) {
            bail!(unexpected(&rows));
        }
        let rows = welcome.rows.unwrap_or_default();
        Ok(Self { connection, control, message, bulk, direct_salt: welcome.direct_salt, rows })
    }

    /// The log of a conversation that the Welcome's rows name, and its head: for conversations of one log.
    pub fn head_of(&self, id: ConvId) -> Option<(v1::Origin, u64)> {
        let row = self.rows.rows.iter().find(|row| row.conversation == id.0[..])?;
        let head = row.heads.first()?;
        let origin = self.rows.origins.get((head.origin as usize).checked_sub(1)?)?;
        Some((*origin, head.seq))
    }
}

type Tls = TlsStream<Box<dyn Stream>>;

/// A session over TCP and TLS, kept open.
pub struct TcpSession {
    _frames: Frames<ReadHalf<Tls>>,
    _write: WriteHalf<Tls>,
}

impl TcpSession {
    async fn open(stream: Tls, hello: v1::Hello) -> Result<Self> {
        let (read, mut write) = split(stream);
        let mut frames = Frames::new(read, FRAME_BYTES);
        let first = First::of(&hello);
        write.write_all(&put(&v1::Frame::new(1, Body::Hello(hello)))).await?;
        write.flush().await?;
        let welcome: v1::Frame = frames.next().await?.context("the server closed the connection")?;
        if !matches!(welcome.body, Some(Body::Welcome(_))) {
            bail!(unexpected(&welcome));
        }
        for lane in [&first.control, &first.message, &first.bulk] {
            write.write_all(lane).await?;
        }
        write.flush().await?;
        // Pong and Rows, in either order.
        for _ in 0..2 {
            let answer: v1::Frame = frames.next().await?.context("the server closed the connection")?;
            if !matches!(answer.body, Some(Body::Pong(_) | Body::Rows(_))) {
                bail!(unexpected(&answer));
            }
        }
        Ok(Self { _frames: frames, _write: write })
    }
}
