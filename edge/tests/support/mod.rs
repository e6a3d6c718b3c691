//! An edge over real sockets of loopback, a core in memory, and clients that may say anything.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519};
use tern_core::codes::Code;
use tern_core::edge_api::{Ack, ConnId, CorePort, Down, DownBody, EdgePort, Page, Push, Up};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Rev, UserId};
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{ALPN_CLIENT, node_v1, v1};
use tern_edge::{Edge, EdgeConfig, EdgeLimits, EdgeMetrics, TokenKeys};
use tern_net::env::Env;
use tern_net::frames::{FrameError, FrameWriter, Frames, QuicFrames};
use tern_net::http3::ALPN_HTTP3;
use tern_net::quic::{QuicParams, client_config, client_endpoint};
use tern_net::system::system_env;
use tern_net::tls::{Identity as Certificate, client_tls, server_tls};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const ORIGIN: Origin = Origin { region: 1, era: 9 };
pub const CONV: ConvId = ConvId([1; 16]);
/// Nothing in a test takes so long unless it hangs.
pub const LONG: Duration = Duration::from_secs(60);
/// The block that attackers come from, and the one that others come from.
pub const HOSTILE: [u8; 3] = [127, 0, 9];
pub const HONEST: [u8; 3] = [127, 0, 2];
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const SECRET_JWK: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";

/// An address of a block.
pub fn host(block: [u8; 3], host: u8) -> IpAddr {
    IpAddr::from([block[0], block[1], block[2], host])
}

/// A core that welcomes everyone and answers pings, sends and pulls at once.
#[derive(Debug, Default)]
pub struct FakeCore {
    edge: OnceLock<Weak<Edge>>,
    /// Bytes of each body in a page.
    pub page_bytes: AtomicU64,
    pub crowded: AtomicBool,
    /// Whoever says Hello waits until [`FakeCore::welcome`].
    pub slow: AtomicBool,
    held: Mutex<Vec<Down>>,
    ups: Mutex<Vec<Up>>,
    seq: AtomicU64,
}

impl FakeCore {
    fn deliver(&self, downs: Vec<Down>) {
        if let Some(edge) = self.edge.get().and_then(Weak::upgrade) {
            edge.deliver(downs);
        }
    }

    pub fn push(&self, conn: ConnId, revs: std::ops::RangeInclusive<u64>, bytes: usize) {
        self.deliver(revs.map(|rev| Down { conn, body: DownBody::Push(Arc::new(push(rev, bytes))) }).collect());
    }

    /// Answers the Hellos that wait.
    pub fn welcome(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        self.deliver(held);
    }

    /// The connections that were opened, in order.
    pub fn opened(&self) -> Vec<ConnId> {
        let ups = self.ups.lock().unwrap();
        ups.iter().filter(|up| matches!(up, Up::Open { .. })).map(Up::conn).collect()
    }

    pub fn count(&self, what: impl Fn(&Up) -> bool) -> usize {
        self.ups.lock().unwrap().iter().filter(|up| what(up)).count()
    }

    fn answer(&self, up: &Up) -> Option<DownBody> {
        let frame = |req, body| Some(DownBody::Frame(Box::new(v1::Frame::new(req, body))));
        match up {
            Up::Open { req, .. } => frame(*req, Body::Welcome(v1::Welcome { version: 1, ..v1::Welcome::default() })),
            Up::Send { req, .. } => {
                let place = Place { hlc: 1 << 40, origin: ORIGIN, seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1 };
                let (first, also, cut) = (None, vec![], Heads::new());
                let ack = Ack { place, first, receipt: [7; 16], also, receipt_refused: false, cut };
                Some(DownBody::Ack { req: *req, ack })
            }
            Up::Frame { frame: f, .. } => match &f.body {
                Some(Body::Ping(ping)) => frame(f.req, Body::Pong(v1::Pong { echo: ping.echo, ..v1::Pong::default() })),
                Some(Body::Pull(_)) => {
                    let bytes = usize::try_from(self.page_bytes.load(Ordering::Relaxed)).unwrap();
                    let entries = vec![Arc::new(entry(1, bytes))];
                    let page = Page { conversation: CONV, origin: ORIGIN, entries, gaps: vec![], last: true };
                    Some(DownBody::Page { req: f.req, page })
                }
                _ => None,
            },
            Up::Attach { .. } | Up::Resume { .. } | Up::Close { .. } => None,
        }
    }
}

impl CorePort for FakeCore {
    fn submit(&self, ups: Vec<Up>) {
        let answer = |up: &Up| self.answer(up).map(|body| Down { conn: up.conn(), body });
        let slow = self.slow.load(Ordering::Relaxed);
        let (held, now): (Vec<&Up>, Vec<&Up>) = ups.iter().partition(|up| slow && matches!(up, Up::Open { .. }));
        self.held.lock().unwrap().extend(held.into_iter().filter_map(answer));
        let downs = now.into_iter().filter_map(answer).collect();
        self.ups.lock().unwrap().extend(ups);
        self.deliver(downs);
    }

    fn reachable(&self) -> bool {
        true
    }

    fn crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    fn report(&self, _: node_v1::EdgeLoad) {}
}

fn entry(seq: u64, bytes: usize) -> Entry {
    let by = Identity { user: UserId::new("bob").unwrap(), install: InstallId::new("tab").unwrap(), n: seq };
    let body = bytes::Bytes::from(vec![b'x'; bytes]);
    Entry { wall_ms: 1, ..Entry::text(Place { hlc: (1 << 40) + seq, origin: ORIGIN, seq }, by, body) }
}

fn push(rev: u64, bytes: usize) -> Push {
    Push {
        conversation: CONV,
        peer: None,
        entries: vec![Arc::new(entry(rev, bytes))],
        heads: Heads::from([(ORIGIN, rev)]),
        prev_rev: Rev(rev - 1),
        rev: Rev(rev),
        row: None,
    }
}

/// An edge that listens, with all around it.
pub struct Scene {
    pub env: Env,
    pub edge: Arc<Edge>,
    pub core: Arc<FakeCore>,
    pub at: SocketAddr,
    registry: Registry,
    ca: String,
}

/// Limits with which handshakes may fail as often as they like: what is tested is something else.
pub fn patient() -> EdgeLimits {
    EdgeLimits { failed_handshakes_per_second: 100_000, failed_handshakes_burst: 100_000, ..EdgeLimits::default() }
}

impl Scene {
    pub async fn start(limits: EdgeLimits) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let certificate = Certificate::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();

        let env = system_env().unwrap();
        let jwk = serde_json::json!({"keys": [{"kty": "oct", "kid": "h", "k": SECRET_JWK}]});
        let keys = TokenKeys::from_json(jwk.to_string().as_bytes()).unwrap();
        let mut registry = Registry::default();
        let metrics = EdgeMetrics::register(&mut registry);
        let edge = Edge::new(env.clone(), EdgeConfig { limits, ..EdgeConfig::default() }, keys, metrics);
        let core = Arc::new(FakeCore::default());
        core.edge.set(Arc::downgrade(&edge)).unwrap();
        let tls = server_tls(&certificate, &[ALPN_CLIENT], env.clock.clone()).unwrap();
        let at = edge.run(core.clone(), tls).await.unwrap().local_addr;
        Self { env, edge, core, at, registry, ca: ca.pem() }
    }

    /// A value of /metrics, 0 if it is not there.
    pub fn metric(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or(0)
    }

    /// Connections that the edge closed with this code.
    pub fn closed(&self, code: Code) -> u64 {
        self.metric(&format!("tern_edge_closed_connections_total{{code=\"{}\"}}", code.name()))
    }

    /// Connections that ended before an accepted Hello, with this code.
    pub fn failed(&self, code: &str) -> u64 {
        self.metric(&format!("tern_edge_failed_handshakes_total{{code=\"{code}\"}}"))
    }

    pub fn memory_bytes(&self) -> u64 {
        self.metric("tern_edge_queue_bytes") + self.metric("tern_edge_buffer_bytes")
    }

    pub fn token(&self, user: &str) -> String {
        let now = self.env.clock.wall_ms() / 1000;
        let claims = serde_json::json!({"sub": user, "iat": now - 5, "exp": now + 3600, "aud": "tern"});
        let header = Header { kid: Some("h".into()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(SECRET)).unwrap()
    }

    pub fn hello(&self, user: &str) -> v1::Hello {
        v1::Hello { versions: vec![1], token: self.token(user), install: "phone".into(), ..v1::Hello::default() }
    }

    fn tls(&self) -> Arc<rustls::ClientConfig> {
        client_tls(self.ca.as_bytes(), &[ALPN_CLIENT], self.env.clock.clone()).unwrap()
    }

    /// A TCP connection from an address, before TLS.
    pub async fn plain(&self, from: IpAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect(self.at).await
    }

    pub async fn tcp(&self, from: IpAddr) -> io::Result<Tcp> {
        let stream = self.plain(from).await?;
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let stream = timeout(LONG, TlsConnector::from(self.tls()).connect(name, stream)).await.expect("an end")?;
        let (read, write) = split(stream);
        Ok(Tcp { frames: Frames::new(read, 1 << 20), write })
    }

    pub fn quic_from(&self, from: IpAddr, to: SocketAddr) -> quinn::Connecting {
        let endpoint = client_endpoint(&self.env, (from, 0).into()).unwrap();
        let config = client_config(&self.env, self.tls(), &QuicParams::client()).unwrap();
        endpoint.connect_with(config, to, "localhost").unwrap()
    }

    /// A QUIC connection that speaks HTTP/3.
    pub async fn http3(&self, from: IpAddr) -> Result<quinn::Connection, quinn::ConnectionError> {
        let endpoint = client_endpoint(&self.env, (from, 0).into()).unwrap();
        let tls = client_tls(self.ca.as_bytes(), &[ALPN_HTTP3], self.env.clock.clone()).unwrap();
        let config = client_config(&self.env, tls, &QuicParams::client_http3()).unwrap();
        timeout(LONG, endpoint.connect_with(config, self.at, "localhost").unwrap()).await.expect("an end")
    }

    pub async fn quic(&self, from: IpAddr) -> Result<Quic, quinn::ConnectionError> {
        let connection = timeout(LONG, self.quic_from(from, self.at)).await.expect("an end")?;
        let control = Lane::open(&connection).await;
        Ok(Quic { connection, control })
    }
}

/// A client over TCP.
pub struct Tcp {
    pub frames: Frames<ReadHalf<TlsStream<TcpStream>>>,
    pub write: WriteHalf<TlsStream<TcpStream>>,
}

impl Tcp {
    /// Writes bytes as they are. The edge may be gone already: what it said is read later.
    pub async fn raw(&mut self, bytes: &[u8]) {
        if self.write.write_all(bytes).await.is_ok() {
            self.write.flush().await.ok();
        }
    }

    pub async fn say(&mut self, req: u32, body: Body) {
        let mut writer = FrameWriter::new();
        writer.put(&v1::Frame::new(req, body));
        let bytes = writer.buffer().clone();
        self.raw(&bytes).await;
    }

    /// The next frame other than definitions, `None` at the end.
    pub async fn next(&mut self) -> Option<v1::Frame> {
        loop {
            match timeout(LONG, self.frames.next::<v1::Frame>()).await.expect("an answer or an end") {
                Ok(Some(v1::Frame { body: Some(Body::Define(_)), .. })) => {}
                Ok(frame) => return frame,
                Err(FrameError::Codec(e)) => panic!("{e}"),
                Err(FrameError::Cut | FrameError::Io(_)) => return None,
            }
        }
    }

    pub async fn enter(&mut self, hello: v1::Hello) -> Result<(), v1::Error> {
        self.say(1, Body::Hello(hello)).await;
        match self.next().await.expect("an answer").body {
            Some(Body::Welcome(_)) => Ok(()),
            Some(Body::Error(e)) => Err(e),
            other => panic!("{other:?}"),
        }
    }

    /// Whether a ping is answered.
    pub async fn alive(&mut self) -> bool {
        self.say(77, ping()).await;
        loop {
            match self.next().await.map(|f| f.body) {
                Some(Some(Body::Pong(_))) => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }

    /// The code of the Error that ends the connection.
    pub async fn refused(&mut self) -> Code {
        let mut last = None;
        while let Some(frame) = self.next().await {
            if let Some(Body::Error(e)) = frame.body {
                last = Code::from_u32(e.code);
            }
        }
        last.expect("a last word")
    }
}

/// One stream of a client over QUIC.
pub struct Lane {
    pub send: quinn::SendStream,
    pub frames: QuicFrames,
}

impl Lane {
    pub async fn open(connection: &quinn::Connection) -> Self {
        let (send, recv) = timeout(LONG, connection.open_bi()).await.expect("room for a stream").unwrap();
        Self { send, frames: QuicFrames::new(recv, 1 << 20) }
    }

    pub async fn say(&mut self, req: u32, body: Body) {
        let mut writer = FrameWriter::new();
        writer.put(&v1::Frame::new(req, body));
        // The edge may be gone already: the connection tells why.
        writer.write(&mut self.send).await.ok();
    }

    pub async fn body(&mut self) -> Option<Body> {
        loop {
            let frame: Result<Option<v1::Frame>, _> = timeout(LONG, self.frames.next()).await.expect("an answer");
            match frame.ok()??.body? {
                Body::Define(_) => {}
                body => return Some(body),
            }
        }
    }
}

/// A client over QUIC.
pub struct Quic {
    pub connection: quinn::Connection,
    pub control: Lane,
}

impl Quic {
    pub async fn enter(&mut self, hello: v1::Hello) {
        self.control.say(1, Body::Hello(hello)).await;
        assert!(matches!(self.control.body().await, Some(Body::Welcome(_))));
    }

    pub async fn alive(&mut self) -> bool {
        self.control.say(77, ping()).await;
        matches!(self.control.body().await, Some(Body::Pong(_)))
    }

    /// The code that the edge closed the connection with.
    pub async fn refused(&self) -> Code {
        match timeout(LONG, self.connection.closed()).await.expect("an end") {
            quinn::ConnectionError::ApplicationClosed(close) => {
                Code::from_u32(u32::try_from(close.error_code.into_inner()).unwrap()).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }
}

pub fn ping() -> Body {
    Body::Ping(v1::Ping { echo: 4, foreground: true, ..v1::Ping::default() })
}

pub fn send(n: u64) -> Body {
    Body::Send(v1::Send { n, body: "hi".into(), conversation_id: vec![1; 16].into(), ..v1::Send::default() })
}

pub fn pull() -> Body {
    Body::Pull(v1::PullEntries {
        conversation: vec![1; 16].into(),
        origin: Some(ORIGIN.into()),
        from: 1,
        to: 1,
        ..v1::PullEntries::default()
    })
}

/// Waits for a condition that another task brings about.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(LONG, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not come about");
}
