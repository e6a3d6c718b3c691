//! WebSockets and polls over real sockets of loopback and TLS.

use std::io;

use super::*;
use crate::config::{EdgeConfig, EdgeLimits};
use crate::testing::{FakeCore, LONG, Pki, hello, ping, push, send, until};
use tern_core::edge_api::{Down, DownBody, Up};
use tern_core::wire::codec::FrameReader;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{ALPN_CLIENT, v1};
use tern_net::frames::FrameWriter;
use tern_net::http::{ALPN_HTTP, HttpClient};
use tern_net::tls::{client_tls, server_tls};
use tern_net::websocket::{MESSAGE_BYTES, WebSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

type Tls = TlsStream<Box<dyn Stream>>;

pub(in crate::http) struct Scene {
    pub(in crate::http) edge: Arc<Edge>,
    pub(in crate::http) core: Arc<FakeCore>,
    pub(in crate::http) pki: Pki,
    pub(in crate::http) at: SocketAddr,
}

pub(in crate::http) async fn start(config: EdgeConfig) -> Scene {
    let pki = Pki::new();
    let (edge, core) = crate::testing::edge(config);
    let tls = server_tls(&pki.certificate, &[ALPN_CLIENT], edge.env.clock.clone()).unwrap();
    let at = edge.run(core.clone(), tls).await.unwrap().local_addr;
    Scene { edge, core, pki, at }
}

/// What a browser says.
fn opening(more: &str) -> String {
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: chat, tern.1\r\n{more}\r\n"
    )
}

impl Scene {
    async fn tls(&self, alpn: &[&[u8]]) -> Tls {
        let stream = self.edge.env.net.connect(self.at).await.unwrap();
        let tls = client_tls(self.pki.ca.as_bytes(), alpn, self.edge.env.clock.clone()).unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        timeout(LONG, TlsConnector::from(tls).connect(name, stream)).await.unwrap().unwrap()
    }

    /// Says these bytes on a connection of their own, and reads until it ends.
    pub(in crate::http) async fn say(&self, alpn: &[&[u8]], bytes: &[u8]) -> String {
        let mut stream = self.tls(alpn).await;
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        timeout(LONG, stream.read_to_end(&mut answer)).await.expect("an end in time").ok();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn websocket(&self) -> Socket {
        let mut stream = self.tls(&[b"http/1.1"]).await;
        stream.write_all(opening("Origin: https://example.org\r\n").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(LONG, stream.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        assert!(head.contains("sec-websocket-protocol: tern.1\r\n"), "{head}");
        let rng = self.edge.env.rng.clone();
        Socket {
            socket: WebSocket::client(stream, rng),
            reader: FrameReader::new(FRAME_BYTES),
            writer: FrameWriter::new(),
        }
    }

    pub(in crate::http) fn polls(&self, alpn: &[&[u8]]) -> Poller {
        let tls = client_tls(self.pki.ca.as_bytes(), alpn, self.edge.env.clock.clone()).unwrap();
        Poller { client: HttpClient::new(self.edge.env.clone(), Some(tls)), at: self.at, name: None }
    }
}

struct Socket {
    socket: WebSocket<Tls>,
    reader: FrameReader,
    writer: FrameWriter,
}

impl Socket {
    async fn say(&mut self, req: u32, body: Body) {
        self.writer.put(&v1::Frame::new(req, body));
        poll_fn(|cx| self.socket.poll_write(&mut self.writer, cx)).await.unwrap();
    }

    async fn next(&mut self) -> Option<v1::Frame> {
        loop {
            if let Some(frame) = self.reader.next().unwrap() {
                return Some(frame);
            }
            match timeout(LONG, poll_fn(|cx| self.socket.poll_fill(&mut self.reader, cx))).await.unwrap() {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn body(&mut self) -> Body {
        loop {
            match self.next().await.expect("a frame").body.unwrap() {
                Body::Define(_) => {}
                body => return body,
            }
        }
    }

    async fn enter(&mut self, user: &str) {
        self.say(1, hello(user)).await;
        assert!(matches!(self.body().await, Body::Welcome(_)));
    }
}

pub(in crate::http) struct Poller {
    client: HttpClient,
    at: SocketAddr,
    pub(in crate::http) name: Option<HeaderValue>,
}

impl Poller {
    pub(in crate::http) async fn ask(&self, number: u64, wait_ms: u32, bodies: Vec<(u32, Body)>) -> Response<Bytes> {
        let mut writer = FrameWriter::new();
        bodies.into_iter().for_each(|(req, body)| writer.put(&v1::Frame::new(req, body)));
        self.raw(number, wait_ms, writer.buffer().split().freeze()).await.unwrap()
    }

    async fn raw(&self, number: u64, wait_ms: u32, body: Bytes) -> Result<Response<Bytes>, tern_net::http::HttpError> {
        let mut request = Request::post("/v1/poll").header(WAIT, wait_ms);
        if let Some(name) = &self.name {
            request = request.header(NAME, name).header(NUMBER, number);
        }
        let request = request.body(Full::new(body)).unwrap();
        self.client.request(self.at, "localhost", request, 256 * 1024, LONG).await
    }

    async fn enter(&mut self, user: &str) {
        let answer = self.ask(0, 0, vec![(1, hello(user))]).await;
        assert!(matches!(bodies(&answer)[..], [Body::Welcome(_)]), "{answer:?}");
        let name = answer.headers().get(NAME).expect("a name").clone();
        assert_eq!(name.len(), 48);
        self.name = Some(name);
    }
}

pub(in crate::http) fn bodies(answer: &Response<Bytes>) -> Vec<Body> {
    assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
    let mut reader = FrameReader::new(FRAME_BYTES);
    reader.extend(answer.body());
    let frames: Vec<v1::Frame> = std::iter::from_fn(|| reader.next().unwrap()).collect();
    assert!(!reader.in_frame(), "whole frames");
    frames.into_iter().filter_map(|f| f.body).filter(|body| !matches!(body, Body::Define(_))).collect()
}

pub(in crate::http) fn refusal(answer: &Response<Bytes>) -> (u16, String) {
    let value: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert!(value["error"]["message"].as_str().unwrap().len() > 10);
    (answer.status().as_u16(), value["error"]["code"].as_str().unwrap().to_owned())
}

pub(in crate::http) fn transport(core: &FakeCore) -> &'static str {
    let ups = core.ups.lock().unwrap();
    ups.iter().rev().find_map(|up| if let Up::Open { transport, .. } = up { Some(*transport) } else { None }).unwrap()
}

#[tokio::test]
async fn a_session_over_a_websocket_from_hello_to_close() {
    let scene = start(EdgeConfig::default()).await;
    let (mut alice, mut bob) = (scene.websocket().await, scene.websocket().await);
    alice.enter("alice").await;
    bob.enter("bob").await;
    assert_eq!((transport(&scene.core), scene.edge.metrics.ws.get()), ("ws", 2));
    assert_eq!((scene.edge.metrics.http.get(), scene.edge.metrics.tcp.get(), scene.edge.connections()), (0, 0, 2));
    assert_eq!(scene.edge.metrics.descriptors(), 2);
    alice.say(2, send(1)).await;
    assert!(matches!(alice.body().await, Body::Ack(a) if a.seq == 1));
    // More than one message holds, and the answer to a ping between them.
    let conns = scene.core.opened();
    scene.core.push(conns[1], 1..=5, 40_000);
    bob.say(3, ping(9)).await;
    let (mut revs, mut pongs) = (Vec::new(), 0);
    while revs.len() < 5 || pongs == 0 {
        match bob.body().await {
            Body::Push(push) => revs.push(push.rev),
            Body::Pong(pong) if pong.echo == 9 => pongs += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(revs, [1, 2, 3, 4, 5]);
    alice.socket.close(1000, "").await.unwrap();
    assert_eq!(alice.next().await, None);
    assert!(alice.socket.is_closed(), "a Close is answered by one");
    until("the close", || scene.core.count(|up| matches!(up, Up::Close { .. })) == 1).await;
    scene.edge.stop();
    assert!(matches!(bob.body().await, Body::Error(e) if e.code == Code::Draining as u32));
    assert_eq!(bob.next().await, None);
    assert!(bob.socket.is_closed());
    until("the end", || scene.edge.connections() == 0).await;
    assert_eq!((scene.edge.metrics.ws.get(), scene.edge.metrics.memory_bytes()), (0, 0));
}

#[tokio::test]
async fn what_is_no_opening_handshake_is_refused_with_what_is_missing() {
    let scene = start(EdgeConfig { origins: vec!["https://example.org".into()], ..EdgeConfig::default() }).await;
    let http: &[&[u8]] = &[b"http/1.1"];
    let without = |line: &str| {
        let whole = opening("");
        assert!(whole.contains(line));
        whole.split_inclusive("\r\n").filter(|l| !l.starts_with(line)).collect::<String>()
    };
    let cases = [
        (without("Upgrade"), "426", "upgrade_required"),
        (without("Connection"), "426", "upgrade_required"),
        (without("Sec-WebSocket-Version"), "426", "upgrade_required"),
        (opening("").replace("Version: 13", "Version: 8"), "426", "upgrade_required"),
        (without("Sec-WebSocket-Key"), "400", "bad_header"),
        (opening("").replace("dGhl", "dG"), "400", "bad_header"),
        (without("Sec-WebSocket-Protocol"), "400", "bad_header"),
        (opening("").replace("tern.1", "tern.2"), "400", "bad_header"),
        (opening("Origin: https://example.net\r\n"), "403", "bad_origin"),
        (opening("").replace("/v1/ws", "/"), "404", "not_found"),
        (opening("").replace("GET", "POST"), "405", "method_not_allowed"),
        (opening("").replace("/v1/ws", "/v1/poll"), "405", "method_not_allowed"),
        (opening("").replace("HTTP/1.1", "HTTP/1.0"), "426", "upgrade_required"),
    ];
    for (request, status, code) in cases {
        let answer = scene.say(http, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.") && answer[8..].starts_with(&format!(" {status} ")), "{request}{answer}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{request}{answer}");
        assert_eq!(answer.contains("sec-websocket-version: 13"), status == "426", "{answer}");
    }
    scene.websocket().await.enter("alice").await;
    assert_eq!(scene.core.opened().len(), 1, "the core heard of none of the others");
    until("the end", || scene.edge.connections() == 0).await;
    assert_eq!(scene.edge.admission_pending(), 0);
}

#[tokio::test]
async fn garbage_headers_without_end_and_silence_end_and_are_counted() {
    let limits = EdgeLimits { hello_timeout: Duration::from_millis(300), ..EdgeLimits::default() };
    let scene = start(EdgeConfig { limits, ..EdgeConfig::default() }).await;
    for alpn in [&[b"http/1.1" as &[u8]] as &[&[u8]], &[b"h2"], &[]] {
        let answer = scene.say(alpn, &[0xff; 100]).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400") || alpn == [b"h2"], "{answer}");
    }
    let huge = opening(&format!("X: {}\r\n", "x".repeat(100_000)));
    assert!(scene.say(&[b"http/1.1"], huge.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let many = opening(&"x: y\r\n".repeat(100));
    assert!(scene.say(&[b"http/1.1"], many.as_bytes()).await.starts_with("HTTP/1.1 431"));
    // A header that drips, a connection that says nothing, a WebSocket without a Hello.
    let mut slow = scene.tls(&[b"http/1.1"]).await;
    let _silent = (scene.tls(&[b"http/1.1"]).await, scene.tls(&[b"h2"]).await);
    let mut no_hello = scene.websocket().await;
    let drip = async {
        for byte in opening("").bytes().cycle() {
            if slow.write_all(&[byte]).await.is_err() || slow.flush().await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, drip).await.expect("an end");
    assert!(matches!(no_hello.body().await, Body::Error(e) if e.code == Code::HelloTimeout as u32));
    assert_eq!(no_hello.next().await, None);
    until("the end of all", || scene.edge.connections() == 0).await;
    assert_eq!((scene.core.opened().len(), scene.edge.admission_pending()), (0, 0));
}

/// What comes next on a socket that broke a rule: the error, the Close and its code.
async fn broken(scene: &Scene, bytes: &[u8]) -> (Code, u16) {
    let mut raw = scene.websocket().await;
    raw.enter("alice").await;
    let Socket { socket, .. } = raw;
    let mut stream = socket.into_inner();
    stream.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    timeout(LONG, stream.read_to_end(&mut answer)).await.expect("an end in time").ok();
    // One short binary message with the error, one Close.
    let length = usize::from(answer[1]);
    assert_eq!(answer[0], 0x82, "{answer:?}");
    let mut reader = FrameReader::new(1000);
    reader.extend(&answer[2..2 + length]);
    let close = &answer[2 + length..];
    assert_eq!(close[0], 0x88);
    match reader.next::<v1::Frame>().unwrap().unwrap().body {
        Some(Body::Error(e)) => (Code::from_u32(e.code).unwrap(), u16::from_be_bytes([close[2], close[3]])),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn sockets_that_break_a_rule_are_told_which_and_closed() {
    let limits = EdgeLimits { connections_per_user: 100, ..EdgeLimits::default() };
    let scene = start(EdgeConfig { limits, ..EdgeConfig::default() }).await;
    let long = |bytes: usize| [&[0x82, 0xff][..], &(bytes as u64).to_be_bytes(), &[0; 4]].concat();
    let too_large_frame = [&long(5)[..2], &[0; 12]].concat();
    assert_eq!(broken(&scene, b"\x81\x82\0\0\0\0hi").await, (Code::BadFrame, 1003), "a text message");
    assert_eq!(broken(&scene, b"\x82\x02hi").await, (Code::BadFrame, 1002), "without a mask");
    assert_eq!(broken(&scene, &[0xff; 14]).await.1, 1002, "garbage");
    assert_eq!(broken(&scene, &too_large_frame).await.1, 1002, "a length of too many bytes");
    assert_eq!(broken(&scene, &long(MESSAGE_BYTES + 1)).await, (Code::FrameTooLarge, 1009));
    assert_eq!(broken(&scene, &long(usize::MAX)).await, (Code::FrameTooLarge, 1009));
    assert_eq!(broken(&scene, b"\x82\x82\0\0\0\0\x05\x08").await, (Code::BadFrame, 1007), "half a frame");
    assert_eq!(broken(&scene, b"\x82\x82\0\0\0\0\x01\xff").await, (Code::BadFrame, 4001), "not protobuf");
    let mut hello_again = FrameWriter::new();
    hello_again.put(&v1::Frame::new(1, Body::Welcome(v1::Welcome::default())));
    let frame = hello_again.buffer();
    let message = [&[0x82, 0x80 | u8::try_from(frame.len()).unwrap(), 0, 0, 0, 0], &frame[..]].concat();
    assert_eq!(broken(&scene, &message).await, (Code::WrongMoment, 4004));
    until("the end of all", || scene.edge.connections() == 0).await;
    assert_eq!(scene.edge.metrics.memory_bytes(), 0);
}

#[tokio::test]
async fn messages_in_parts_and_pings_between_them_are_understood() {
    let scene = start(EdgeConfig::default()).await;
    let mut alice = scene.websocket().await;
    alice.enter("alice").await;
    let mut frame = FrameWriter::new();
    frame.put(&v1::Frame::new(7, ping(3)));
    let bytes = frame.buffer().split();
    let (first, second) = bytes.split_at(2);
    let part =
        |head: u8, bytes: &[u8]| [&[head, 0x80 | u8::try_from(bytes.len()).unwrap(), 0, 0, 0, 0], bytes].concat();
    let all = [part(0x02, first), part(0x89, b"there?"), part(0x00, b""), part(0x80, second)].concat();
    let mut stream = alice.socket.into_inner();
    stream.write_all(&all).await.unwrap();
    let mut answer = vec![0; 8];
    timeout(LONG, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"\x8a\x06there?");
    let mut alice = Socket { socket: WebSocket::client(stream, scene.edge.env.rng.clone()), ..alice };
    assert!(matches!(alice.next().await, Some(v1::Frame { req: 7, body: Some(Body::Pong(p)) }) if p.echo == 3));
}

#[tokio::test]
async fn a_session_over_polls_from_hello_to_silence() {
    let scene = start(EdgeConfig::default()).await;
    for alpn in [&ALPN_HTTP[..], &[b"http/1.1"], &[]] {
        let mut alice = scene.polls(alpn);
        alice.enter("alice").await;
        assert_eq!((transport(&scene.core), scene.edge.metrics.poll.get()), ("poll", 1));
        let answer = alice.ask(1, 5_000, vec![(2, send(1)), (3, ping(4))]).await;
        let mut got = bodies(&answer);
        if got.len() < 2 {
            got.extend(bodies(&alice.ask(2, 5_000, vec![]).await));
        } else {
            alice.ask(2, 0, vec![]).await;
        }
        assert!(
            got.iter().any(|b| matches!(b, Body::Ack(_))) && got.iter().any(|b| matches!(b, Body::Pong(_))),
            "{got:?}"
        );
        assert!(bodies(&alice.ask(3, 0, vec![]).await).is_empty(), "a short poll does not wait");
        // What comes while it waits is answered at once.
        let conn = *scene.core.opened().last().unwrap();
        let (answer, ()) = tokio::join!(alice.ask(4, 20_000, vec![]), async {
            sleep(Duration::from_millis(50)).await;
            scene.core.deliver(vec![Down { conn, body: DownBody::Push(Arc::new(push(1, 10))) }]);
        });
        assert!(matches!(&bodies(&answer)[..], [Body::Push(p)] if p.rev == 1));
        scene
            .core
            .deliver(vec![Down { conn, body: DownBody::Last(tern_core::codes::Refusal::new(Code::Replaced, "x")) }]);
        let last = alice.ask(5, 20_000, vec![]).await;
        assert!(matches!(&bodies(&last)[..], [Body::Error(e)] if e.code == Code::Replaced as u32));
        assert_eq!(alice.ask(5, 0, vec![]).await.body(), last.body());
        assert_eq!(refusal(&alice.ask(6, 0, vec![]).await), (410, "session_over".into()));
        until("the end", || scene.edge.connections() == 0).await;
    }
    assert_eq!(scene.edge.admission_pending(), 0);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_given_again_and_nothing_is_done_twice() {
    let scene = start(EdgeConfig::default()).await;
    let (mut alice, mut bob) = (scene.polls(&ALPN_HTTP), scene.polls(&ALPN_HTTP));
    alice.enter("alice").await;
    bob.enter("bob").await;
    let conns = scene.core.opened();
    scene.core.push(conns[0], 1..=1, 10);
    // Asked for, and gone before the answer is there.
    let first = alice.ask(1, 20_000, vec![]).await;
    assert!(matches!(&bodies(&first)[..], [Body::Push(_)]));
    let sends = |up: &Up| matches!(up, Up::Send { .. });
    let lost = timeout(Duration::from_millis(20), alice.ask(2, 20_000, vec![(5, send(1))])).await;
    drop(lost);
    let again = alice.ask(2, 20_000, vec![(5, send(1))]).await;
    assert!(matches!(&bodies(&again)[..], [Body::Ack(_)]));
    for _ in 0..2 {
        assert_eq!(alice.ask(2, 20_000, vec![(5, send(1))]).await.body(), again.body());
        assert_eq!(alice.ask(1, 20_000, vec![]).await.body(), first.body());
    }
    assert_eq!(scene.core.count(sends), 1);
    assert_eq!(refusal(&alice.ask(4, 0, vec![]).await), (409, "wrong_number".into()));
    // The other session knows nothing of it, and a newer request ends a long poll.
    let name = bob.name.as_ref().and_then(|name| poll::read_name(name.to_str().ok()?)).unwrap();
    let exchange = scene.edge.polls.get(&name).unwrap();
    let (older, newer) = tokio::join!(bob.ask(1, 20_000, vec![]), async {
        until("the older one's arrival", || exchange.newest_taken() == 1).await;
        bob.ask(2, 5_000, vec![(6, send(1))]).await
    });
    assert!(bodies(&older).is_empty());
    assert!(matches!(&bodies(&newer)[..], [Body::Ack(_)]));
    assert_eq!(scene.core.count(sends), 2);
    assert_eq!(scene.edge.metrics.poll.get(), 2);
}

#[tokio::test]
async fn polls_that_are_none_are_refused_and_change_nothing() {
    let scene = start(EdgeConfig::default()).await;
    let mut alice = scene.polls(&[b"http/1.1"]);
    let stranger = scene.polls(&[b"http/1.1"]);
    assert_eq!(refusal(&stranger.raw(0, 0, Bytes::new()).await.unwrap()), (400, "bad_body".into()));
    assert_eq!(refusal(&stranger.raw(0, 0, Bytes::from_static(b"\x05\x08")).await.unwrap()), (400, "bad_body".into()));
    let refused = stranger.ask(0, 0, vec![(1, ping(1))]).await;
    assert!(matches!(&bodies(&refused)[..], [Body::Error(e)] if e.code == Code::WrongMoment as u32));
    assert!(refused.headers().get(NAME).is_none());
    alice.enter("alice").await;
    let named = |name: &str| Poller { client: alice.client.clone(), at: scene.at, name: Some(name.parse().unwrap()) };
    for name in ["x", &"0".repeat(48)] {
        assert_eq!(refusal(&named(name).ask(1, 0, vec![]).await), (410, "session_over".into()));
    }
    assert_eq!(refusal(&alice.ask(0, 0, vec![]).await), (400, "bad_header".into()));
    assert_eq!(refusal(&alice.raw(1, 0, Bytes::from_static(b"\x05\x08")).await.unwrap()), (400, "bad_body".into()));
    // Told, or cut off while it still sends.
    let huge = alice.raw(1, 0, Bytes::from(vec![0; 300_000])).await;
    assert!(huge.is_err() || refusal(&huge.unwrap()) == (413, "body_too_large".into()));
    let got = bodies(&alice.ask(1, 10_000, vec![(2, ping(8))]).await);
    assert!(matches!(&got[..], [Body::Pong(p)] if p.echo == 8), "number 1 was not used up: {got:?}");
    let options = scene.say(
        &[b"http/1.1"],
        b"OPTIONS /v1/poll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: https://example.org\r\n\r\n",
    );
    let options = options.await;
    assert!(options.starts_with("HTTP/1.1 204"), "{options}");
    assert!(options.contains("access-control-allow-origin: https://example.org\r\n"), "{options}");
    assert!(options.contains("access-control-allow-headers: content-type, tern-poll"), "{options}");
}

#[tokio::test]
async fn the_last_answer_of_a_connection_says_so() {
    let scene = start(EdgeConfig::default()).await;
    let post = "POST /v1/poll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n\x03\x01\x01";
    for (request, status) in [("GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404), (post, 400)] {
        let answer = scene.say(&[b"http/1.1"], request.as_bytes()).await.to_ascii_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
}

/// A Hello by polls through a proxy that names this client: the address that the client is told, or the refusal.
async fn through_proxy(scene: &Scene, user: &str, forwarded: &str) -> Result<String, u16> {
    let mut writer = FrameWriter::new();
    writer.put(&v1::Frame::new(1, hello(user)));
    let request = Request::post("/v1/poll").header("x-forwarded-for", forwarded);
    let request = request.body(Full::new(writer.buffer().split().freeze())).unwrap();
    let client = scene.polls(&ALPN_HTTP).client;
    let answer = client.request(scene.at, "localhost", request, 256 * 1024, LONG).await.unwrap();
    if answer.status() != StatusCode::OK {
        return Err(answer.status().as_u16());
    }
    match &bodies(&answer)[..] {
        [Body::Welcome(welcome)] => Ok(welcome.seen_address.clone()),
        [Body::Error(_)] => Err(200),
        other => panic!("{other:?}"),
    }
}

fn behind_proxies() -> EdgeConfig {
    EdgeConfig { trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()], ..EdgeConfig::default() }
}

#[tokio::test]
async fn behind_a_trusted_proxy_a_client_is_the_one_that_it_names_and_no_stranger_is_believed() {
    let scene = start(behind_proxies()).await;
    assert_eq!(through_proxy(&scene, "alice", "198.51.100.1, 203.0.113.7").await, Ok("203.0.113.7:0".into()));
    assert_eq!(through_proxy(&scene, "bob", "203.0.113.8, 127.0.0.9").await, Ok("203.0.113.8:0".into()));
    // A health check of the proxy's own.
    let mut own = scene.polls(&ALPN_HTTP);
    own.enter("carol").await;
    // By WebSocket.
    let mut stream = scene.tls(&[b"http/1.1"]).await;
    stream.write_all(opening("X-Forwarded-For: 2001:db8::7\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(LONG, stream.read_u8()).await.unwrap().unwrap());
    }
    let socket = WebSocket::client(stream, scene.edge.env.rng.clone());
    let mut dave = Socket { socket, reader: FrameReader::new(FRAME_BYTES), writer: FrameWriter::new() };
    dave.say(1, hello("dave")).await;
    let Body::Welcome(welcome) = dave.body().await else { panic!("no Welcome") };
    assert_eq!(welcome.seen_address, "[2001:db8::7]:0");
    // Where nobody is trusted, the header is anybody's.
    let scene = start(EdgeConfig::default()).await;
    let told = through_proxy(&scene, "alice", "203.0.113.7").await.unwrap();
    assert!(told.starts_with("127.0.0.1:") && told != "127.0.0.1:0", "{told}");
}

#[tokio::test]
async fn one_client_behind_a_proxy_that_fails_too_often_is_refused_and_the_others_are_not() {
    let limits = EdgeLimits { failed_handshakes_per_second: 1, failed_handshakes_burst: 4, ..EdgeLimits::default() };
    let scene = start(EdgeConfig { limits, ..behind_proxies() }).await;
    let bad = async || {
        let request = Request::post("/v1/poll").header("x-forwarded-for", "203.0.113.7");
        let request = request.body(Full::new(Bytes::from_static(b"\x03\x01\x01"))).unwrap();
        let client = scene.polls(&ALPN_HTTP).client;
        client.request(scene.at, "localhost", request, 256 * 1024, LONG).await.unwrap().status().as_u16()
    };
    let mut answers = Vec::new();
    for _ in 0..12 {
        answers.push(bad().await);
    }
    assert_eq!((answers.first(), answers.last()), (Some(&400), Some(&503)), "{answers:?}");
    assert_eq!(through_proxy(&scene, "mallory", "203.0.113.7").await, Err(503));
    for (n, user) in ["alice", "bob", "carol"].into_iter().enumerate() {
        let address = format!("198.51.{n}.1");
        assert_eq!(through_proxy(&scene, user, &address).await, Ok(format!("{address}:0")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_not_asked_for_a_minute_ends_and_one_that_is_stays() {
    let (edge, core) = crate::testing::edge(EdgeConfig::default());
    edge.run_without_sockets(core.clone());
    let begin = |user: &str| {
        let mut writer = FrameWriter::new();
        writer.put(&v1::Frame::new(1, hello(user)));
        let Admitted::Yes(ticket) = edge.admit("192.0.2.1".parse().unwrap(), true) else { panic!("a ticket") };
        let from = "192.0.2.1:7".parse().unwrap();
        let exchange = Arc::new(Exchange::new(edge.metrics.clone(), from, writer.buffer(), edge.env.clock.now()));
        let name = poll::start(&edge, edge.enter("poll").unwrap(), ticket, exchange.clone());
        (exchange, name)
    };
    let ((silent, name), (asks, _)) = (begin("alice"), begin("bob"));
    let mut number = 0;
    while edge.env.clock.now() < Duration::from_secs(58) {
        number += 1;
        let turn = asks.arrive(number, asks_from(), edge.env.clock.now()).unwrap();
        assert_eq!(asks.take_in(turn, number, b"").unwrap(), Taken::Waits);
        asks.give(turn, number, edge.env.clock.now()).unwrap();
        sleep(Duration::from_secs(10)).await;
        assert!(!silent.has_ended() || edge.env.clock.now() >= Duration::from_secs(60));
    }
    sleep(Duration::from_secs(2)).await;
    assert!(silent.has_ended() && !asks.has_ended());
    assert_eq!((edge.connections(), core.count(|up| matches!(up, Up::Close { .. }))), (1, 1));
    assert!(edge.polls.get(&name).is_some());
    sleep(Duration::from_secs(20)).await;
    assert!(edge.polls.get(&name).is_none(), "and is forgotten");
    edge.stop();
    until("the end", || edge.connections() == 0).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(edge.polls.len(), 0);
    drop((silent, asks));
    assert_eq!(edge.metrics.memory_bytes(), 0);
}

fn asks_from() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 8))
}

#[tokio::test]
async fn one_session_keeps_four_connections_and_one_that_is_deleted_ends_at_once() {
    let scene = start(EdgeConfig::default()).await;
    let mut alice = scene.polls(&[b"http/1.1"]);
    alice.enter("alice").await;
    until("the first one's end", || scene.edge.metrics.http.get() == 0).await;
    let name = alice.name.clone().unwrap();
    let ask = |method: Method, number: u64| {
        let request = Request::builder().method(method).uri("/v1/poll").header(NAME, &name).header(NUMBER, number);
        request.body(Full::new(Bytes::new())).unwrap()
    };
    let mut held = Vec::new();
    for number in 1..=8 {
        let mut connection = alice.client.connect(scene.at, "localhost", LONG).await.unwrap();
        let answer = connection.request(ask(Method::POST, number), 1000, LONG).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        held.push(connection);
    }
    until("the end of the oldest", || scene.edge.metrics.http.get() == 4).await;
    assert_eq!(scene.edge.connections(), 5);
    let mut newest = held.pop().unwrap();
    assert_eq!(newest.request(ask(Method::DELETE, 0), 1000, LONG).await.unwrap().status(), StatusCode::OK);
    until("the core to be told", || scene.core.count(|up| matches!(up, Up::Close { .. })) == 1).await;
    assert_eq!(scene.edge.metrics.poll.get(), 0);
    assert_eq!(newest.request(ask(Method::POST, 9), 1000, LONG).await.unwrap().status(), StatusCode::GONE);
}

/// `tern/1` stays what it was, and who offers it besides HTTP gets it.
#[tokio::test]
async fn the_raw_protocol_is_preferred_where_it_is_offered() {
    let scene = start(EdgeConfig::default()).await;
    let stream = scene.tls(&[b"h2", b"http/1.1", ALPN_CLIENT]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(ALPN_CLIENT));
    let mut peer = crate::testing::Peer::new(stream);
    peer.enter("alice").await;
    let tls = client_tls(scene.pki.ca.as_bytes(), &[b"other"], scene.edge.env.clock.clone()).unwrap();
    let stream = scene.edge.env.net.connect(scene.at).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let refused: io::Result<_> = TlsConnector::from(tls).connect(name, stream).await;
    assert!(refused.is_err(), "another protocol is refused by TLS");
}
