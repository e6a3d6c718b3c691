//! A core in memory, certificates, and a client for tests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519};
use tern_core::clock::Clock;
use tern_core::edge_api::{Ack, ConnId, CorePort, Down, DownBody, EdgePort, Page, Push, Up};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Heads, Identity, InstallId, Origin, Place, Rev, UserId};
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{node_v1, v1};
use tern_net::env::Env;
use tern_net::frames::{FrameError, FrameWriter, Frames};
use tern_net::system::system_env;
use tern_net::tls::Identity as Certificate;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf, split};
use tokio::time::{Instant, timeout};

use crate::config::EdgeConfig;
use crate::edge::Edge;
use crate::metrics::EdgeMetrics;
use crate::tokens::tests::{WALL_MS, keys, token};

pub(crate) const ORIGIN: Origin = Origin { region: 1, era: 9 };
pub(crate) const CONV: ConvId = ConvId([1; 16]);
/// Nothing in a test takes so long unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Both clocks by tokio's, from the time at which the test tokens are valid.
#[derive(Debug)]
pub(crate) struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        WALL_MS + u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

pub(crate) fn env() -> Env {
    Env { clock: Arc::new(TestClock(Instant::now())), ..system_env().unwrap() }
}

pub(crate) fn edge(config: EdgeConfig) -> (Arc<Edge>, Arc<FakeCore>) {
    let config = EdgeConfig { name: "e1".into(), ..config };
    let edge = Edge::new(env(), config, keys(), EdgeMetrics::default());
    let core = Arc::new(FakeCore::default());
    core.edge.set(Arc::downgrade(&edge)).unwrap();
    core.reachable.store(true, Ordering::Relaxed);
    (edge, core)
}

/// A core that welcomes everyone, acks every message and answers every ping and pull at once.
#[derive(Debug, Default)]
pub(crate) struct FakeCore {
    pub(crate) edge: OnceLock<Weak<Edge>>,
    /// What it tells instead of the edge itself.
    pub(crate) port: OnceLock<Arc<dyn EdgePort>>,
    pub(crate) reachable: AtomicBool,
    /// It answers nothing but Hellos.
    pub(crate) silent: AtomicBool,
    pub(crate) ups: Mutex<Vec<Up>>,
    pub(crate) loads: Mutex<Vec<node_v1::EdgeLoad>>,
    seq: AtomicU64,
}

impl FakeCore {
    pub(crate) fn deliver(&self, downs: Vec<Down>) {
        if let Some(port) = self.port.get() {
            port.deliver(downs);
        } else if let Some(edge) = self.edge.get().and_then(Weak::upgrade) {
            edge.deliver(downs);
        }
    }

    pub(crate) fn push(&self, conn: ConnId, revs: std::ops::RangeInclusive<u64>, bytes: usize) {
        self.deliver(revs.map(|rev| Down { conn, body: DownBody::Push(Arc::new(push(rev, bytes))) }).collect());
    }

    /// The connections that were opened, in order.
    pub(crate) fn opened(&self) -> Vec<ConnId> {
        let ups = self.ups.lock().unwrap();
        ups.iter().filter(|up| matches!(up, Up::Open { .. })).map(Up::conn).collect()
    }

    pub(crate) fn count(&self, what: impl Fn(&Up) -> bool) -> usize {
        self.ups.lock().unwrap().iter().filter(|up| what(up)).count()
    }

    pub(crate) fn answer(&self, up: &Up) -> Option<DownBody> {
        let frame = |req, body| Some(DownBody::Frame(Box::new(v1::Frame::new(req, body))));
        match up {
            Up::Open { req, .. } => frame(*req, Body::Welcome(v1::Welcome { version: 1, ..v1::Welcome::default() })),
            _ if self.silent.load(Ordering::Relaxed) => None,
            Up::Send { req, .. } => {
                let place = Place { hlc: 1 << 40, origin: ORIGIN, seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1 };
                let ack = Ack {
                    place,
                    first: None,
                    receipt: [7; 16],
                    also: vec![],
                    receipt_refused: false,
                    cut: tern_core::ids::Heads::new(),
                };
                Some(DownBody::Ack { req: *req, ack })
            }
            Up::Frame { frame: f, .. } => match &f.body {
                Some(Body::Ping(ping)) => {
                    frame(f.req, Body::Pong(v1::Pong { echo: ping.echo, rev: 5, ..v1::Pong::default() }))
                }
                Some(Body::Pull(_)) => {
                    let entries = vec![Arc::new(entry(1, 10))];
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
        let downs = ups.iter().filter_map(|up| self.answer(up).map(|body| Down { conn: up.conn(), body })).collect();
        self.ups.lock().unwrap().extend(ups);
        self.deliver(downs);
    }

    fn reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    fn report(&self, load: node_v1::EdgeLoad) {
        self.loads.lock().unwrap().push(load);
    }
}

pub(crate) fn entry(seq: u64, bytes: usize) -> Entry {
    let by = Identity { user: UserId::new("bob").unwrap(), install: InstallId::new("tab").unwrap(), n: seq };
    let body = bytes::Bytes::from(vec![b'x'; bytes]);
    Entry { wall_ms: 1, ..Entry::text(Place { hlc: (1 << 40) + seq, origin: ORIGIN, seq }, by, body) }
}

pub(crate) fn push(rev: u64, bytes: usize) -> Push {
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

pub(crate) fn hello(user: &str) -> Body {
    Body::Hello(v1::Hello { versions: vec![1], token: token(user), install: "phone".into(), ..v1::Hello::default() })
}

pub(crate) fn send(n: u64) -> Body {
    Body::Send(v1::Send { n, body: "hi".into(), conversation_id: vec![1; 16].into(), ..v1::Send::default() })
}

pub(crate) fn ping(echo: u32) -> Body {
    Body::Ping(v1::Ping { echo, foreground: true, ..v1::Ping::default() })
}

/// The client's side of one byte stream.
pub(crate) struct Peer<S> {
    frames: Frames<ReadHalf<S>>,
    pub(crate) write: WriteHalf<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub(crate) fn new(stream: S) -> Self {
        let (read, write) = split(stream);
        Self { frames: Frames::new(read, FRAME_BYTES), write }
    }

    pub(crate) async fn say(&mut self, req: u32, body: Body) {
        let mut writer = FrameWriter::new();
        writer.put(&v1::Frame::new(req, body));
        writer.write(&mut self.write).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Option<v1::Frame> {
        match timeout(LONG, self.frames.next()).await.expect("an answer in time") {
            Ok(frame) => frame,
            Err(FrameError::Codec(e)) => panic!("{e}"),
            Err(FrameError::Cut | FrameError::Io(_)) => None,
        }
    }

    pub(crate) async fn body(&mut self) -> Body {
        self.next().await.expect("a frame").body.expect("a body")
    }

    /// Says Hello and reads the Welcome.
    pub(crate) async fn enter(&mut self, user: &str) -> v1::Welcome {
        self.say(1, hello(user)).await;
        match self.body().await {
            Body::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    /// The code of the error that comes next, after which the connection ends if it is unasked.
    pub(crate) async fn refused(&mut self) -> tern_core::codes::Code {
        match self.next().await.expect("an error frame") {
            v1::Frame { req, body: Some(Body::Error(e)) } => {
                if req == 0 {
                    assert_eq!(self.next().await, None);
                }
                tern_core::codes::Code::from_u32(e.code).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }
}

/// One CA and one certificate for "localhost".
pub(crate) struct Pki {
    pub(crate) ca: String,
    pub(crate) certificate: Certificate,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Valid at WALL_MS.
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &ca).unwrap();
        let certificate = Certificate::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        Self { ca: ca.pem(), certificate }
    }
}

/// Waits for a condition that another task brings about.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(LONG, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not come about");
}
