//! Polls over HTTP/3, and what is the same as over TCP.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALT_SVC, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tern_core::codes::{Code, Refusal};
use tern_core::edge_api::{Down, DownBody, Up};
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::codec::FrameReader;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{ALPN_CLIENT, v1};
use tern_net::frames::FrameWriter;
use tern_net::http::{ALPN_HTTP, HttpError};
use tern_net::http3::{ALPN_HTTP3, Http3Connection};
use tern_net::quic::{QuicParams, client_config, client_endpoint};
use tern_net::resume::Resuming;
use tern_net::tls::client_tls;
use tokio::time::{sleep, timeout};

use crate::config::{EdgeConfig, EdgeLimits};
use crate::http::tests::{Scene, bodies, refusal, start, transport};
use crate::http::{NAME, NUMBER, WAIT};
use crate::testing::{LONG, hello, ping, push, send, until};

/// A client that polls on one connection.
struct Poller {
    connection: quinn::Connection,
    http: Http3Connection,
    name: Option<HeaderValue>,
}

impl Scene {
    fn dial(&self, tls: std::sync::Arc<rustls::ClientConfig>) -> quinn::Connecting {
        let endpoint = client_endpoint(&self.edge.env, "127.0.0.1:0".parse().unwrap()).unwrap();
        let config = client_config(&self.edge.env, tls, &QuicParams::client_http3()).unwrap();
        endpoint.connect_with(config, self.at, "localhost").unwrap()
    }

    async fn quic(&self, alpn: &[&[u8]]) -> quinn::Connection {
        let tls = client_tls(self.pki.ca.as_bytes(), alpn, self.edge.env.clock.clone()).unwrap();
        timeout(LONG, self.dial(tls)).await.unwrap().unwrap()
    }

    async fn http3(&self) -> Poller {
        self.poller(self.quic(&[ALPN_HTTP3]).await).await
    }

    async fn poller(&self, connection: quinn::Connection) -> Poller {
        let tasks = self.edge.env.tasks.clone();
        let http = Http3Connection::new(tasks, connection.clone(), "localhost").await.unwrap();
        Poller { connection, http, name: None }
    }
}

fn frames(bodies: Vec<(u32, Body)>) -> Bytes {
    let mut writer = FrameWriter::new();
    bodies.into_iter().for_each(|(req, body)| writer.put(&v1::Frame::new(req, body)));
    writer.buffer().split().freeze()
}

impl Poller {
    async fn ask(&self, number: u64, wait_ms: u32, bodies: Vec<(u32, Body)>) -> Response<Bytes> {
        self.raw(number, wait_ms, frames(bodies)).await.unwrap()
    }

    async fn raw(&self, number: u64, wait_ms: u32, body: Bytes) -> Result<Response<Bytes>, HttpError> {
        let mut request = Request::post("/v1/poll").header(WAIT, wait_ms);
        if let Some(name) = &self.name {
            request = request.header(NAME, name).header(NUMBER, number);
        }
        self.http.clone().request(request.body(Full::new(body)).unwrap(), 256 * 1024, LONG).await
    }

    async fn enter(&mut self, user: &str) {
        let answer = self.ask(0, 0, vec![(1, hello(user))]).await;
        assert!(matches!(bodies(&answer)[..], [Body::Welcome(_)]), "{answer:?}");
        self.name = Some(answer.headers().get(NAME).expect("a name").clone());
    }

    /// With which code the edge closed the connection.
    async fn closed(&self) -> u64 {
        match timeout(LONG, self.connection.closed()).await.expect("an end in time") {
            quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_session_over_http3_from_hello_to_its_last_words() {
    let scene = start(EdgeConfig::default()).await;
    let mut alice = scene.http3().await;
    alice.enter("alice").await;
    let metrics = &scene.edge.metrics;
    assert_eq!(
        (transport(&scene.core), metrics.poll.get(), metrics.http3.get(), metrics.quic.get()),
        ("poll", 1, 1, 0)
    );
    assert_eq!((metrics.descriptors(), scene.edge.connections(), scene.edge.admission_pending()), (0, 2, 0));
    let mut got = bodies(&alice.ask(1, 5_000, vec![(2, send(1)), (3, ping(4))]).await);
    got.extend(bodies(&alice.ask(2, if got.len() < 2 { 5_000 } else { 0 }, vec![]).await));
    assert!(got.iter().any(|b| matches!(b, Body::Ack(_))) && got.iter().any(|b| matches!(b, Body::Pong(_))), "{got:?}");
    assert!(bodies(&alice.ask(3, 0, vec![]).await).is_empty(), "a short poll does not wait");
    // What comes while one waits is answered at once; a newer one ends it.
    let conn = scene.core.opened()[0];
    let (answer, ()) = tokio::join!(alice.ask(4, 20_000, vec![]), async {
        sleep(Duration::from_millis(50)).await;
        scene.core.deliver(vec![Down { conn, body: DownBody::Push(std::sync::Arc::new(push(1, 10))) }]);
    });
    assert!(matches!(&bodies(&answer)[..], [Body::Push(p)] if p.rev == 1));
    let name = alice.name.as_ref().and_then(|name| crate::poll::read_name(name.to_str().ok()?)).unwrap();
    let exchange = scene.edge.polls.get(&name).unwrap();
    let (older, newer) = tokio::join!(alice.ask(5, 20_000, vec![]), async {
        until("the older one's arrival", || exchange.newest_taken() == 5).await;
        alice.ask(6, 5_000, vec![(6, send(2))]).await
    });
    assert!(bodies(&older).is_empty());
    assert!(matches!(&bodies(&newer)[..], [Body::Ack(_)]));
    // The largest body, and one above.
    let most = alice.raw(7, 0, Bytes::from(vec![0; 256 * 1024 + 1])).await.unwrap();
    assert_eq!(refusal(&most), (413, "body_too_large".into()));
    assert_eq!(alice.closed().await, 0x100, "who breaks a rule has had the last answer of that connection");
    let mut again = scene.http3().await;
    again.name = alice.name.clone();
    scene.core.deliver(vec![Down { conn, body: DownBody::Last(Refusal::new(Code::Replaced, "x")) }]);
    let last = again.ask(7, 20_000, vec![]).await;
    assert!(matches!(&bodies(&last)[..], [Body::Error(e)] if e.code == Code::Replaced as u32));
    assert_eq!(again.ask(7, 0, vec![]).await.body(), last.body());
    assert_eq!(refusal(&again.ask(8, 0, vec![]).await), (410, "session_over".into()));
    drop((alice, again));
    until("the end", || scene.edge.connections() == 0).await;
    until("all of it given back", || scene.edge.metrics.http3.get() == 0 && scene.edge.admission_pending() == 0).await;
}

#[tokio::test]
async fn a_session_goes_on_over_tcp_and_over_quic_by_turns() {
    let scene = start(EdgeConfig::default()).await;
    let mut by_udp = scene.http3().await;
    let mut by_tcp = scene.polls(&ALPN_HTTP);
    by_udp.enter("alice").await;
    by_tcp.name = by_udp.name.clone();
    for number in 1..=6u64 {
        let bodies_of = vec![(7, send(number))];
        let answer = if number % 2 == 0 {
            by_udp.ask(number, 5_000, bodies_of).await
        } else {
            by_tcp.ask(number, 5_000, bodies_of).await
        };
        assert!(matches!(&bodies(&answer)[..], [Body::Ack(a)] if a.seq == number), "{number}: {answer:?}");
        // The other way it is told the same again.
        let again =
            if number % 2 == 0 { by_tcp.ask(number, 0, vec![]).await } else { by_udp.ask(number, 0, vec![]).await };
        assert_eq!(again.body(), answer.body());
    }
    assert_eq!(scene.core.opened().len(), 1);
    assert_eq!(scene.core.count(|up| matches!(up, Up::Send { .. })), 6);
}

#[tokio::test]
async fn what_is_refused_is_refused_as_over_tcp() {
    let scene = start(EdgeConfig { origins: vec!["https://example.org".into()], ..EdgeConfig::default() }).await;
    let request = |method: &str, path: &str, more: &[(&str, &str)], body: &'static [u8]| {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        request.body(Full::new(Bytes::from_static(body))).unwrap()
    };
    let nobody = "0".repeat(48);
    let cases = [
        (request("GET", "/", &[], b""), 404),
        (request("POST", "/v1/dispatch", &[], b"{}"), 404),
        (request("GET", "/v1/poll", &[], b""), 405),
        (request("PUT", "/v1/poll", &[], b""), 405),
        (request("GET", "/v1/ws", &[("sec-websocket-version", "13")], b""), 426),
        (request("POST", "/v1/poll", &[], b""), 400),
        (request("POST", "/v1/poll", &[], b"\x05\x08"), 400),
        (request("POST", "/v1/poll", &[(WAIT, "soon")], b""), 400),
        (request("POST", "/v1/poll", &[(NAME, &nobody), (NUMBER, "1")], b""), 410),
        (request("DELETE", "/v1/poll", &[(NAME, &nobody)], b""), 410),
        (request("POST", "/v1/poll", &[("origin", "https://example.net")], b""), 403),
        (request("OPTIONS", "/v1/poll", &[("origin", "https://example.org")], b""), 204),
    ];
    for (request, status) in cases {
        let mut poller = scene.http3().await;
        let quic = poller.http.request(request.clone(), 10_000, LONG).await.unwrap();
        let tls = client_tls(scene.pki.ca.as_bytes(), &[b"h2"], scene.edge.env.clock.clone()).unwrap();
        let tcp = tern_net::http::HttpClient::new(scene.edge.env.clone(), Some(tls));
        let tcp = tcp.request(scene.at, "localhost", request, 10_000, LONG).await.unwrap();
        assert_eq!((quic.status().as_u16(), quic.status()), (status, tcp.status()), "{quic:?}");
        assert_eq!(quic.body(), tcp.body());
        let but = |answer: &Response<Bytes>| {
            let mut headers = answer.headers().clone();
            headers.remove(ALT_SVC);
            headers
        };
        assert_eq!(but(&quic), but(&tcp), "{status}");
    }
    assert_eq!(scene.core.opened().len(), 0, "the core heard of none of them");
    until("the end", || scene.edge.connections() == 0).await;
    assert_eq!(scene.edge.admission_pending(), 0);
}

#[tokio::test]
async fn stock_clients_are_told_over_tcp_where_http3_is() {
    let scene = start(EdgeConfig::default()).await;
    let told = async |alpn: &[&[u8]], host: &str| {
        let tls = client_tls(scene.pki.ca.as_bytes(), alpn, scene.edge.env.clock.clone()).unwrap();
        let client = tern_net::http::HttpClient::new(scene.edge.env.clone(), Some(tls));
        let request = Request::get("/").header(HOST, host).body(Full::default()).unwrap();
        let answer = client.request(scene.at, "localhost", request, 10_000, LONG).await.unwrap();
        answer.headers().get(ALT_SVC).map(|value| value.to_str().unwrap().to_owned())
    };
    // As the client asks for it: there may be another port before this one.
    assert_eq!(told(&[b"http/1.1"], "localhost:7443").await.unwrap(), "h3=\":7443\"; ma=3600");
    assert_eq!(told(&[b"http/1.1"], "localhost").await.unwrap(), "h3=\":443\"; ma=3600");
    let unnamed = scene.say(&[], b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(unnamed.contains(&format!("alt-svc: h3=\":{}\"; ma=3600\r\n", scene.at.port())), "{unnamed}");
    assert_eq!(told(&[b"h2"], "").await.unwrap(), "h3=\":443\"; ma=3600");
    let mut poller = scene.http3().await;
    let get = Request::get("/").body(Full::default()).unwrap();
    let answer = poller.http.request(get, 10_000, LONG).await.unwrap();
    assert_eq!((answer.status(), answer.headers().get(ALT_SVC)), (StatusCode::NOT_FOUND, None));
    // Behind a proxy it is the proxy's port.
    let trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let scene = start(EdgeConfig { trusted_proxies, ..EdgeConfig::default() }).await;
    let poller = scene.polls(&ALPN_HTTP);
    assert_eq!(poller.ask(0, 0, vec![(1, ping(1))]).await.headers().get(ALT_SVC), None);
}

#[tokio::test]
async fn a_connection_on_which_nobody_shows_himself_ends_and_counts_and_one_that_did_stays() {
    let limits = EdgeLimits { hello_timeout: Duration::from_millis(400), ..EdgeLimits::default() };
    let scene = start(EdgeConfig { limits, ..EdgeConfig::default() }).await;
    let mut alice = scene.http3().await;
    alice.enter("alice").await;
    // Silent; without room for what the edge has to say; half a header; a Hello of which one byte never comes.
    let silent = scene.http3().await;
    let tls = client_tls(scene.pki.ca.as_bytes(), &[ALPN_HTTP3], scene.edge.env.clock.clone()).unwrap();
    let endpoint = client_endpoint(&scene.edge.env, "127.0.0.1:0".parse().unwrap()).unwrap();
    let config = client_config(&scene.edge.env, tls, &QuicParams::client()).unwrap();
    let narrow = endpoint.connect_with(config, scene.at, "localhost").unwrap().await.unwrap();
    let half = scene.quic(&[ALPN_HTTP3]).await;
    let (mut stream, _answer) = half.open_bi().await.unwrap();
    stream.write_all(&[1, 40, 0, 0]).await.unwrap();
    for connection in [&silent.connection, &narrow, &half] {
        let ended = timeout(LONG, connection.closed()).await.expect("an end in time");
        assert!(matches!(ended, quinn::ConnectionError::ApplicationClosed(c) if c.error_code.into_inner() == 0x100));
    }
    until("their places", || scene.edge.metrics.http3.get() == 1 && scene.edge.admission_pending() == 0).await;
    assert_eq!(alice.connection.close_reason(), None);
    assert!(matches!(&bodies(&alice.ask(1, 5_000, vec![(2, ping(1))]).await)[..], [Body::Pong(_)]));
}

#[tokio::test]
async fn a_drain_is_told_in_the_polls_and_ends_the_connections_behind_the_last_answers() {
    let scene = start(EdgeConfig::default()).await;
    let mut alice = scene.http3().await;
    alice.enter("alice").await;
    let edge = scene.edge.clone();
    let draining = async { edge.drain(Duration::from_secs(2)).await };
    let polling = async {
        let (mut number, mut said) = (0, Vec::new());
        while !said.iter().any(|body| matches!(body, Body::Error(_))) {
            number += 1;
            said.extend(bodies(&alice.ask(number, 20_000, vec![]).await));
        }
        said
    };
    let ((), said) = tokio::join!(draining, polling);
    assert!(matches!(&said[..], [Body::GoAway(_), Body::Error(e)] if e.code == Code::Draining as u32), "{said:?}");
    assert_eq!(alice.closed().await, 0x100);
    assert_eq!(scene.edge.connections(), 0);
}

#[tokio::test]
async fn one_session_keeps_four_connections_of_either_kind_and_one_that_is_deleted_ends_at_once() {
    let scene = start(EdgeConfig::default()).await;
    let mut first = scene.http3().await;
    first.enter("alice").await;
    let mut held = Vec::new();
    for number in 1..=4 {
        let mut next = scene.http3().await;
        next.name = first.name.clone();
        assert_eq!(next.ask(number, 0, vec![]).await.status(), StatusCode::OK);
        held.push(next);
    }
    assert_eq!(first.closed().await, 0x100, "the oldest ends");
    until("its place", || scene.edge.metrics.http3.get() == 4).await;
    let newest = held.last_mut().unwrap();
    let delete = Request::delete("/v1/poll").header(NAME, first.name.clone().unwrap()).body(Full::default()).unwrap();
    assert_eq!(newest.http.request(delete, 1_000, LONG).await.unwrap().status(), StatusCode::OK);
    until("the core to be told", || scene.core.count(|up| matches!(up, Up::Close { .. })) == 1).await;
    assert_eq!(newest.ask(5, 0, vec![]).await.status(), StatusCode::GONE);
}

/// What is said with the first packet may be somebody's recording: it is looked at when the handshake is over.
#[tokio::test]
async fn a_request_in_early_data_is_answered_once_the_handshake_is_over() {
    let scene = start(EdgeConfig::default()).await;
    let tls = client_tls(scene.pki.ca.as_bytes(), &[ALPN_HTTP3], scene.edge.env.clock.clone()).unwrap();
    let resuming = Resuming::new(tls);
    let first = timeout(LONG, scene.dial(resuming.towards("edge"))).await.unwrap().unwrap();
    let mut alice = scene.poller(first).await;
    alice.enter("alice").await;
    drop(alice);
    let Ok((connection, taken)) = scene.dial(resuming.towards("edge")).into_0rtt() else { panic!("no ticket") };
    let mut bob = scene.poller(connection).await;
    let (answer, _taken) = tokio::join!(bob.ask(0, 0, vec![(1, hello("bob"))]), taken);
    assert!(matches!(bodies(&answer)[..], [Body::Welcome(_)]), "{answer:?}");
    bob.name = answer.headers().get(NAME).cloned();
    assert!(matches!(&bodies(&bob.ask(1, 5_000, vec![(2, ping(1))]).await)[..], [Body::Pong(_)]));
}

/// `tern/1` stays what it was, and who offers it besides HTTP/3 gets it.
#[tokio::test]
async fn the_raw_protocol_is_preferred_where_it_is_offered() {
    let scene = start(EdgeConfig::default()).await;
    let connection = scene.quic(&[ALPN_HTTP3, ALPN_CLIENT]).await;
    let agreed = connection.handshake_data().unwrap().downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
    assert_eq!(agreed.protocol.as_deref(), Some(ALPN_CLIENT));
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&frames(vec![(1, hello("alice"))])).await.unwrap();
    let (mut reader, mut chunk) = (FrameReader::new(FRAME_BYTES), [0; 1000]);
    let welcome = loop {
        if let Some(frame) = reader.next::<v1::Frame>().unwrap() {
            break frame;
        }
        let n = timeout(LONG, recv.read(&mut chunk)).await.unwrap().unwrap().unwrap();
        reader.extend(&chunk[..n]);
    };
    assert!(matches!(welcome.body, Some(Body::Welcome(_))));
    assert_eq!((scene.edge.metrics.quic.get(), scene.edge.metrics.http3.get()), (1, 0));
}
