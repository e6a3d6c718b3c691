//! An edge that speaks the wire over real sockets and keeps one conversation in memory: alice writes, bob
//! answers each message.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::Response;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519};
use tern_core::edge_api::{Ack, Push, SendRequest};
use tern_core::entry::Entry;
use tern_core::hlc;
use tern_core::ids::{ConvId, Cursor, Heads, Identity, InstallId, Origin, Place, Rev, UserId};
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::codec::FrameReader;
use tern_core::wire::compact::{Read, Reader, Writer};
use tern_core::wire::v1::{self, frame::Body};
use tern_core::wire::{ALPN_CLIENT, Lane, codec};
use tern_net::env::{Env, Spawner};
use tern_net::frames::{FrameWriter, Frames, QuicFrames, poll_fill};
use tern_net::http3::{ALPN_HTTP3, QuicHandler, serve_quic};
use tern_net::quic::{QuicParams, server_endpoint};
use tern_net::tls::{Identity as Certificate, server_tls};
use tern_net::websocket::{WebSocket, accept_key};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub const SALT: &[u8] = b"salt of the test";
const HERE: Origin = Origin { region: 1, era: 77 };

pub fn user(text: &str) -> UserId {
    UserId::new(text).unwrap()
}

pub fn chat() -> ConvId {
    ConvId::direct(SALT, &user("alice"), &user("bob"))
}

/// What the edge holds, and what it was asked.
#[derive(Default)]
pub struct Core {
    pub log: Vec<Arc<Entry>>,
    pub rev: u64,
    pub hellos: Vec<v1::Hello>,
    pub commits: u32,
    /// Sessions that were polled and ended in order.
    pub deleted: u32,
    /// Connections that spoke HTTP/3.
    pub http3: u32,
    /// Tunnels that the proxy opened.
    pub tunnels: u32,
    /// Close the connection instead of answering this many sends: they are durable, their acks are lost.
    pub swallow: u32,
    /// Say nothing after the Welcome.
    pub mute: bool,
    /// Refuse every token, by this code and in these words.
    pub refuse: Option<(tern_core::codes::Code, &'static str)>,
    pub refusals: u32,
    writers: BTreeMap<u64, Arc<Lanes>>,
    connections: u64,
}

type Sink = Arc<tokio::sync::Mutex<Box<dyn AsyncWrite + Send + Unpin>>>;

/// Lanes that the client has opened; what belongs on another goes out on control.
#[derive(Default)]
struct Lanes {
    open: Mutex<BTreeMap<usize, Sink>>,
    writers: [tokio::sync::Mutex<Writer>; 3],
}

impl Lanes {
    async fn write(&self, lane: Lane, put: impl FnOnce(&mut Writer, &mut BytesMut)) {
        let mut bytes = BytesMut::new();
        let (carrier, sink) = {
            let open = self.open.lock().unwrap();
            let carrier = if open.contains_key(&lane.index()) { lane.index() } else { 0 };
            (carrier, open[&carrier].clone())
        };
        let mut writer = self.writers[carrier].lock().await;
        put(&mut writer, &mut bytes);
        let mut sink = sink.lock().await;
        // A client that is gone is no failure of the test.
        drop(sink.write_all(&bytes).await);
        drop(sink.flush().await);
    }
}

pub struct FakeEdge {
    pub ca_pem: String,
    certificate: Certificate,
    pub core: Arc<Mutex<Core>>,
    env: Env,
}

impl FakeEdge {
    pub fn new(env: &Env) -> Self {
        Self::with(env, |_| {})
    }

    /// With another certificate than it should have.
    pub fn with(env: &Env, alter: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let names = ["e1.eu.tern.internal", "localhost", "127.0.0.1"].map(str::to_owned).to_vec();
        let mut leaf = CertificateParams::new(names).unwrap();
        alter(&mut leaf);
        let leaf = leaf.signed_by(&key, &ca).unwrap();
        let certificate = Certificate::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        Self { ca_pem: ca.pem(), certificate, core: Arc::default(), env: env.clone() }
    }

    pub fn tls(&self, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
        server_tls(&self.certificate, alpn, self.env.clock.clone()).unwrap()
    }

    /// Serves QUIC at a free port.
    pub fn listen_quic(&self) -> SocketAddr {
        self.listen_quic_at("127.0.0.1:0".parse().unwrap())
    }

    /// Serves QUIC here.
    pub fn listen_quic_at(&self, at: SocketAddr) -> SocketAddr {
        let endpoint = server_endpoint(&self.env, at, self.tls(&[ALPN_CLIENT]), &QuicParams::edge()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let (core, tasks) = (self.core.clone(), self.env.tasks.clone());
        self.env.tasks.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tasks.spawn(quic(core.clone(), tasks.clone(), incoming));
            }
        });
        address
    }

    /// Serves TCP+TLS at a free port.
    pub async fn listen_tcp(&self) -> SocketAddr {
        let mut acceptor = self.env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = acceptor.local_addr();
        let (core, tls) = (self.core.clone(), tokio_rustls::TlsAcceptor::from(self.tls(&[ALPN_CLIENT])));
        let tasks = self.env.tasks.clone();
        self.env.tasks.spawn(async move {
            while let Ok((stream, _)) = acceptor.accept().await {
                let (core, tls) = (core.clone(), tls.clone());
                tasks.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    serve_stream(core, stream).await;
                });
            }
        });
        address
    }

    /// A proxy at a free port, which opens tunnels anywhere.
    pub async fn listen_proxy(&self) -> SocketAddr {
        let mut acceptor = self.env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = acceptor.local_addr();
        let (core, env) = (self.core.clone(), self.env.clone());
        self.env.tasks.spawn(async move {
            while let Ok((mut stream, _)) = acceptor.accept().await {
                let (core, env_of) = (core.clone(), env.clone());
                env.tasks.spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    let head = String::from_utf8(head).unwrap();
                    let to = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().parse().unwrap();
                    let mut there = env_of.net.connect(to).await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    core.lock().unwrap().tunnels += 1;
                    // Either side may go.
                    drop(tokio::io::copy_bidirectional(&mut stream, &mut there).await);
                });
            }
        });
        address
    }

    /// Serves WebSockets at a free port, and nothing else.
    pub async fn listen_websocket(&self) -> SocketAddr {
        let mut acceptor = self.env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = acceptor.local_addr();
        let (core, tls) = (self.core.clone(), tokio_rustls::TlsAcceptor::from(self.tls(&[b"http/1.1"])));
        let tasks = self.env.tasks.clone();
        self.env.tasks.spawn(async move {
            while let Ok((stream, _)) = acceptor.accept().await {
                let (core, tls, tasks_of) = (core.clone(), tls.clone(), tasks.clone());
                tasks.spawn(async move {
                    let Ok(mut stream) = tls.accept(stream).await else { return };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    let head = String::from_utf8(head).unwrap();
                    assert!(head.starts_with("GET /v1/ws HTTP/1.1\r\n"), "{head}");
                    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
                    let answer = format!(
                        "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {}\r\n\
                         Sec-WebSocket-Protocol: tern.1\r\n\r\n",
                        accept_key(key)
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    let (near, far) = tokio::io::duplex(64 * 1024);
                    tasks_of.spawn(serve_stream(core, far));
                    bridge(WebSocket::server(stream), near).await;
                });
            }
        });
        address
    }

    /// Serves polls at a free port, and nothing else. Every third answer is lost on its way, whole.
    pub async fn listen_polls(&self) -> SocketAddr {
        let acceptor = self.env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = acceptor.local_addr();
        let polls =
            Arc::new(Polls { core: self.core.clone(), tasks: self.env.tasks.clone(), sessions: Mutex::default() });
        let handler: tern_net::http::Handler = Arc::new(move |_, request| {
            let polls = polls.clone();
            Box::pin(async move { polls.answer(request).await })
        });
        let tls = Some(self.tls(&tern_net::http::ALPN_HTTP));
        self.env.tasks.spawn(tern_net::http::serve(self.env.clone(), acceptor, tls, Default::default(), handler));
        address
    }

    /// Serves polls over HTTP/3 at a free port, and nothing else. Every third answer is lost, and each connection ends after
    /// four of them.
    pub fn listen_http3(&self) -> SocketAddr {
        let at = "127.0.0.1:0".parse().unwrap();
        let endpoint = server_endpoint(&self.env, at, self.tls(&[ALPN_HTTP3]), &QuicParams::edge()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let tasks = self.env.tasks.clone();
        let polls = Arc::new(Polls { core: self.core.clone(), tasks: tasks.clone(), sessions: Mutex::default() });
        self.env.tasks.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let (polls, spawner) = (polls.clone(), tasks.clone());
                tasks.spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    polls.core.lock().unwrap().http3 += 1;
                    let answered = Arc::new(tokio::sync::Semaphore::new(0));
                    let over = answered.clone();
                    let handler: QuicHandler = Arc::new(move |_, request| {
                        let (polls, answered) = (polls.clone(), answered.clone());
                        Box::pin(async move {
                            let answer = polls.answer(request).await;
                            answered.add_permits(1);
                            answer
                        })
                    });
                    let over = async { drop(over.acquire_many(4).await) };
                    serve_quic(spawner, connection, None, Default::default(), handler, over).await;
                });
            }
        });
        address
    }

    /// Serves dispatch at a free port: one edge at `edge`.
    pub async fn listen_dispatch(&self, edge: SocketAddr, transports: &str) -> SocketAddr {
        self.serve_dispatch(format!(
            r#"{{"ttl_s": 300, "edges": [{{"id": "e1", "region": "eu", "addresses": ["{edge}"], "transports": {transports}}}]}}"#
        ))
        .await
    }

    /// Serves this as dispatch's answer at a free port.
    pub async fn serve_dispatch(&self, answer: String) -> SocketAddr {
        let acceptor = self.env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = acceptor.local_addr();
        let handler: tern_net::http::Handler = Arc::new(move |_, _| {
            let answer = Response::new(Full::from(Bytes::from(answer.clone())));
            Box::pin(async move { answer })
        });
        let serve = tern_net::http::serve(
            self.env.clone(),
            acceptor,
            Some(self.tls(&[b"http/1.1"])),
            Default::default(),
            handler,
        );
        self.env.tasks.spawn(serve);
        address
    }

    /// Bob writes by himself.
    pub async fn bob_writes(&self, text: &str) {
        let (push, lanes) = {
            let mut core = self.core.lock().unwrap();
            (core.bob(text), core.writers.values().cloned().collect::<Vec<_>>())
        };
        for lane in lanes {
            lane.write(Lane::Message, |w, out| w.push(&push, out)).await;
        }
    }
}

/// All lanes on one stream.
async fn serve_stream(core: Arc<Mutex<Core>>, stream: impl AsyncRead + AsyncWrite + Send + 'static) {
    let (from, into) = tokio::io::split(stream);
    let sink: Sink = Arc::new(tokio::sync::Mutex::new(Box::new(into)));
    let (lanes, mut reader) = (Arc::new(Lanes::default()), Reader::default());
    lanes.open.lock().unwrap().insert(0, sink);
    let mut frames = Frames::new(from, FRAME_BYTES);
    while let Ok(Some(frame)) = frames.next::<v1::Frame>().await {
        if !serve(&core, &lanes, &mut reader, frame).await {
            break;
        }
    }
}

/// Frames of a WebSocket to a stream, and back.
async fn bridge<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocket<S>, mut stream: tokio::io::DuplexStream) {
    let (mut came, mut answers) = (FrameReader::new(FRAME_BYTES), FrameReader::new(FRAME_BYTES));
    let mut out = FrameWriter::new();
    loop {
        let moved = poll_fn(|cx| {
            let _ = socket.poll_write(&mut out, cx)?;
            socket.poll_fill(&mut came, cx)
        });
        tokio::select! {
            read = moved => match read {
                Ok(1..) => stream.write_all(&came.buffer().split()).await.unwrap(),
                _ => return,
            },
            read = poll_fn(|cx| poll_fill(&mut stream, &mut answers, cx)) => match read {
                // Whole frames, each in a message of its own.
                Ok(1..) => while let Some(frame) = answers.next::<v1::Frame>().unwrap() { out.put(&frame) },
                _ => return,
            },
        }
    }
}

/// Sessions that are polled. One request of each after the other, and none waits for long.
struct Polls {
    core: Arc<Mutex<Core>>,
    tasks: Spawner,
    sessions: Mutex<Vec<Arc<tokio::sync::Mutex<Polled>>>>,
}

struct Polled {
    stream: tokio::io::DuplexStream,
    answers: Vec<Bytes>,
    asked: usize,
}

impl Polled {
    async fn exchange(&mut self, body: &[u8], within: Duration) -> Bytes {
        self.stream.write_all(body).await.unwrap();
        let mut reader = FrameReader::new(FRAME_BYTES);
        let mut out = BytesMut::new();
        while out.is_empty() || reader.in_frame() {
            let read = tokio::time::timeout(within, poll_fn(|cx| poll_fill(&mut self.stream, &mut reader, cx))).await;
            let Ok(Ok(1..)) = read else { break };
            while let Some(frame) = reader.next::<v1::Frame>().unwrap() {
                codec::put(&frame, &mut out);
            }
        }
        out.freeze()
    }
}

impl Polls {
    async fn answer<B>(&self, request: hyper::Request<B>) -> Response<Full<Bytes>>
    where
        B: hyper::body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let respond = |status: u16, body: Bytes| Response::builder().status(status).body(Full::new(body)).unwrap();
        if request.method() == hyper::Method::GET {
            return respond(404, Bytes::new());
        }
        assert_eq!(request.uri().path(), "/v1/poll");
        let header = |name: &str| Some(request.headers().get(name)?.to_str().unwrap().parse::<usize>().unwrap());
        let (name, number) = (header("tern-poll"), header("tern-number"));
        let method = request.method().clone();
        let body = tern_net::http::read_body(request.into_body(), 256 * 1024).await.unwrap();
        let Some(name) = name else {
            let (near, far) = tokio::io::duplex(256 * 1024);
            self.tasks.spawn(serve_stream(self.core.clone(), far));
            let mut session = Polled { stream: near, answers: Vec::new(), asked: 0 };
            let welcome = session.exchange(&body, Duration::from_secs(10)).await;
            let mut sessions = self.sessions.lock().unwrap();
            sessions.push(Arc::new(tokio::sync::Mutex::new(session)));
            let mut answer = respond(200, welcome);
            answer.headers_mut().insert("tern-poll", (sessions.len() - 1).into());
            return answer;
        };
        let Some(number) = number else {
            assert_eq!(method, hyper::Method::DELETE);
            self.core.lock().unwrap().deleted += 1;
            return respond(200, Bytes::new());
        };
        let session = self.sessions.lock().unwrap()[name].clone();
        let mut session = session.lock().await;
        session.asked += 1;
        if number > session.answers.len() + 1 {
            return respond(409, Bytes::new());
        }
        if number == session.answers.len() + 1 {
            let answer = session.exchange(&body, Duration::from_millis(50)).await;
            session.answers.push(answer);
            if number % 3 == 0 {
                return respond(503, Bytes::new());
            }
        }
        respond(200, session.answers[number - 1].clone())
    }
}

async fn quic(core: Arc<Mutex<Core>>, tasks: Spawner, incoming: quinn::Incoming) {
    let Ok(connection) = incoming.await else { return };
    let lanes = Arc::new(Lanes::default());
    let mut stream = 0usize;
    while let Ok((into, from)) = connection.accept_bi().await {
        assert_eq!(quinn::VarInt::from(from.id()).into_inner(), stream as u64 * 4, "lanes are streams 0, 4 and 8");
        let sink: Sink = Arc::new(tokio::sync::Mutex::new(Box::new(into)));
        lanes.open.lock().unwrap().insert(stream, sink);
        stream += 1;
        let (core, lanes, connection) = (core.clone(), lanes.clone(), connection.clone());
        tasks.spawn(async move {
            let mut frames = QuicFrames::new(from, FRAME_BYTES);
            let mut reader = Reader::default();
            while let Ok(Some(frame)) = frames.next::<v1::Frame>().await {
                if !serve(&core, &lanes, &mut reader, frame).await {
                    connection.close(21u32.into(), b"draining");
                }
            }
        });
    }
}

/// Answers a frame. False: close the connection.
async fn serve(core: &Arc<Mutex<Core>>, lanes: &Arc<Lanes>, reader: &mut Reader, frame: v1::Frame) -> bool {
    let req = frame.req;
    let answer = |lane: Lane, body: Body| async move {
        lanes.write(lane, |_, out| codec::put(&v1::Frame::new(req, body), out)).await;
    };
    let read = reader.read(frame).unwrap();
    let is_hello = matches!(&read, Read::Other(v1::Frame { body: Some(Body::Hello(_)), .. }));
    let (mute, refuse) = {
        let core = core.lock().unwrap();
        (core.mute, core.refuse)
    };
    if is_hello && let Some((code, words)) = refuse {
        answer(Lane::Control, Body::Error(tern_core::codes::Refusal::new(code, words).to_wire())).await;
        core.lock().unwrap().refusals += 1;
        return true;
    }
    if mute && !is_hello {
        return true;
    }
    match read {
        Read::Send(send) => {
            let (ack, push, swallow) = core.lock().unwrap().send(&send);
            if swallow {
                return false;
            }
            lanes.write(Lane::Message, |w, out| w.ack(req, &ack, out)).await;
            if let Some(push) = push {
                lanes.write(Lane::Message, |w, out| w.push(&push, out)).await;
            }
        }
        Read::Other(v1::Frame { body: Some(Body::Hello(hello)), .. }) => {
            let rev = {
                let mut core = core.lock().unwrap();
                core.hellos.push(hello);
                core.connections += 1;
                let number = core.connections;
                core.writers.insert(number, lanes.clone());
                core.rev
            };
            let welcome = v1::Welcome {
                version: 1,
                cursor: Some(Cursor { store: HERE, rev: Rev(rev) }.into()),
                direct_salt: Bytes::from_static(SALT),
                region: "eu".into(),
                edge: "e1".into(),
                ..Default::default()
            };
            answer(Lane::Control, Body::Welcome(welcome)).await;
        }
        Read::Other(v1::Frame { body: Some(Body::Commit(_)), .. }) => core.lock().unwrap().commits += 1,
        Read::Other(v1::Frame { body: Some(Body::Ping(ping)), .. }) => {
            let rev = core.lock().unwrap().rev;
            answer(Lane::Control, Body::Pong(v1::Pong { echo: ping.echo, rev, ..Default::default() })).await;
        }
        Read::Other(v1::Frame { body: Some(Body::PullRows(pull)), .. }) => {
            let rows = core.lock().unwrap().rows(pull);
            answer(Lane::Bulk, Body::Rows(rows)).await;
        }
        Read::Other(v1::Frame { body: Some(Body::Pull(pull)), .. }) => {
            let page = core.lock().unwrap().page(&pull);
            answer(Lane::Bulk, Body::Page(page)).await;
        }
        Read::Other(v1::Frame { body: Some(Body::Unstable(_)), .. }) => {
            let upto = core.lock().unwrap().log.len() as u64;
            let conversation = Bytes::copy_from_slice(&chat().0);
            let stable = v1::Stable { conversation, origin: Some(HERE.into()), upto, regions: 2, offer: false };
            lanes.write(Lane::Message, |_, out| codec::put(&v1::Frame::new(0, Body::Stable(stable)), out)).await;
        }
        _ => {}
    }
    true
}

impl Core {
    fn append(&mut self, by: Identity, body: Bytes) -> Arc<Entry> {
        let seq = self.log.len() as u64 + 1;
        let entry = Arc::new(Entry {
            peer: Some(user("bob")),
            wall_ms: 1_800_000_000_000,
            ..Entry::text(Place { hlc: hlc::from_ms(1_800_000_000_000) + seq, origin: HERE, seq }, by, body)
        });
        self.log.push(entry.clone());
        entry
    }

    fn send(&mut self, send: &SendRequest) -> (Ack, Option<Push>, bool) {
        assert_eq!(send.conversation, chat());
        let install = InstallId::new(&self.hellos.last().unwrap().install).unwrap();
        let by = Identity { user: user("alice"), install, n: send.n };
        let held = self.log.iter().find(|e| e.by == by).cloned();
        let fresh = held.is_none();
        let entry = held.unwrap_or_else(|| self.append(by, send.body.clone()));
        let ack = Ack {
            place: entry.place,
            first: None,
            receipt: [5; 16],
            also: Vec::new(),
            receipt_refused: false,
            cut: tern_core::ids::Heads::new(),
        };
        let push = fresh.then(|| self.bob(&format!("re: {}", String::from_utf8_lossy(&send.body))));
        let swallow = fresh && self.swallow > 0;
        self.swallow -= u32::from(swallow);
        (ack, push, swallow)
    }

    fn bob(&mut self, text: &str) -> Push {
        let n = self.log.len() as u64 + 1;
        let by = Identity { user: user("bob"), install: InstallId::new("b").unwrap(), n };
        let entry = self.append(by, Bytes::copy_from_slice(text.as_bytes()));
        self.rev += 1;
        Push {
            conversation: chat(),
            peer: Some(user("bob")),
            entries: vec![entry],
            heads: Heads::from([(HERE, n)]),
            prev_rev: Rev(self.rev - 1),
            rev: Rev(self.rev),
            row: None,
        }
    }

    fn rows(&self, pull: v1::PullRows) -> v1::Rows {
        let above = pull.above.map_or(0, |c| c.rev);
        let mut table = tern_core::wire::compact::Table::default();
        let row = v1::Row {
            conversation: Bytes::copy_from_slice(&chat().0),
            rev: self.rev,
            heads: table.heads(&Heads::from([(HERE, self.log.len() as u64)])),
            peer: "bob".into(),
            ..Default::default()
        };
        v1::Rows {
            origins: table.wire_origins,
            rows: if self.rev > above { vec![row] } else { Vec::new() },
            upto: Some(Cursor { store: HERE, rev: Rev(self.rev) }.into()),
            base: pull.above,
            last: true,
            ..Default::default()
        }
    }

    fn page(&self, pull: &v1::PullEntries) -> v1::Page {
        let mut table = tern_core::wire::compact::Table::default();
        let wanted = self.log.iter().filter(|e| (pull.from..=pull.to).contains(&e.place.seq));
        let entries = wanted.map(|e| table.entry(e)).collect();
        v1::Page {
            conversation: pull.conversation.clone(),
            origin: pull.origin,
            origins: table.wire_origins,
            senders: table.wire_senders,
            entries,
            gaps: Vec::new(),
            last: true,
        }
    }
}

/// Waits for `done`, at most 20 s.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "waited in vain: {what}");
}
