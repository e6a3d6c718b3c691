//! Clients over HTTP/3 that mean harm: each ends or is told what is wrong, what they hold is bounded and given back, and
//! others are served meanwhile, by polls and by `tern/1`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};
use support::{HONEST, HOSTILE, LONG, Scene, host, patient, ping, until};
use tern_core::wire::v1;
use tern_core::wire::v1::frame::Body;
use tern_edge::EdgeLimits;
use tern_net::frames::FrameWriter;
use tern_net::http3::Http3Connection;
use tokio::time::timeout;

/// What is open of HTTP/3.
const OPEN: &str = "tern_edge_open_connections{transport=\"http3\"}";
/// What one connection may make an edge hold: windows, and what is read ahead of its use, of eight requests.
const HELD_BYTES: u64 = 1 << 20;

struct Poller {
    http: Http3Connection,
    name: Option<String>,
    number: u64,
}

impl Poller {
    async fn enter(scene: &Scene, connection: quinn::Connection, user: &str) -> Self {
        let http = Http3Connection::new(scene.env.tasks.clone(), connection, "localhost").await.unwrap();
        let mut poller = Self { http, name: None, number: 0 };
        let answer = poller.ask(Body::Hello(scene.hello(user))).await;
        assert_eq!(answer.status(), 200);
        poller.name = Some(answer.headers()["tern-poll"].to_str().unwrap().to_owned());
        poller
    }

    async fn ask(&mut self, body: Body) -> Response<Bytes> {
        let mut writer = FrameWriter::new();
        writer.put(&v1::Frame::new(1, body));
        let mut request = Request::post("/v1/poll").header("tern-wait-ms", "20000");
        if let Some(name) = &self.name {
            self.number += 1;
            request = request.header("tern-poll", name).header("tern-number", self.number);
        }
        let request = request.body(Full::new(writer.buffer().split().freeze())).unwrap();
        self.http.request(request, 256 * 1024, LONG).await.unwrap()
    }

    /// Whether a ping is answered.
    async fn alive(&mut self) -> bool {
        let answer = self.ask(ping()).await;
        answer.status() == 200 && !answer.body().is_empty()
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = 0x8000_0000 | u32::try_from(payload.len()).unwrap();
    [&[kind][..], &length.to_be_bytes(), payload].concat()
}

/// POST https://localhost/v1/poll, and more.
fn header(more: &[u8]) -> Vec<u8> {
    let fields = [&[0, 0, 0xc0 | 20, 0xc0 | 23, 0x50, 9][..], b"localhost", &[0x51, 8], b"/v1/poll", more].concat();
    frame(1, &fields)
}

fn limits() -> EdgeLimits {
    EdgeLimits { hello_timeout: Duration::from_millis(500), ..patient() }
}

/// Says these bytes on so many streams of a connection, and leaves them as they are.
async fn leave(
    connection: &quinn::Connection,
    streams: usize,
    bytes: &[u8],
) -> Vec<(quinn::SendStream, quinn::RecvStream)> {
    let mut left = Vec::new();
    for _ in 0..streams {
        // Where there is no room, or the connection has ended, that is what it comes to.
        let Ok(Ok((mut send, recv))) = timeout(Duration::from_millis(100), connection.open_bi()).await else { break };
        drop(timeout(Duration::from_millis(100), send.write_all(bytes)).await);
        left.push((send, recv));
    }
    left
}

#[tokio::test]
async fn strangers_who_say_anything_end_hold_little_and_take_nothing_from_others() {
    let scene = Scene::start(limits()).await;
    let mut alice = Poller::enter(&scene, scene.http3(host(HONEST, 1)).await.unwrap(), "alice").await;
    let mut bob = scene.quic(host(HONEST, 2)).await.unwrap();
    bob.enter(scene.hello("bob")).await;
    let endless = frame(0x21, &[7; 1_000]).repeat(200);
    let dripping = [header(b""), frame(0, &[5; 100])[..50].to_vec()].concat();
    let unpacked = header(&[0xc0 | 31].repeat(3_000));
    let said = [&[1, 0xff][..], &[0xff; 7], &[0; 1_000]].concat();
    for round in 0..3u8 {
        let mut strangers = Vec::new();
        for (n, bytes) in [&endless, &dripping, &unpacked, &said].into_iter().enumerate() {
            let from = host(HOSTILE, 10 * round + u8::try_from(n).unwrap() + 1);
            let connection = scene.http3(from).await.unwrap();
            let left = leave(&connection, 20, bytes).await;
            strangers.push((connection, left));
        }
        for aside in [vec![0xff; 5_000], [vec![0], frame(4, &[]), frame(0x21, &[1; 500]).repeat(200)].concat()] {
            let connection = scene.http3(host(HOSTILE, 200 + round)).await.unwrap();
            let mut stream = connection.open_uni().await.unwrap();
            drop(timeout(Duration::from_millis(200), stream.write_all(&aside)).await);
            strangers.push((connection, Vec::new()));
        }
        assert!(scene.memory_bytes() < HELD_BYTES, "{} bytes", scene.memory_bytes());
        assert!(alice.alive().await && bob.alive().await, "in round {round}");
        for (connection, _) in &strangers {
            timeout(LONG, connection.closed()).await.expect("an end in time");
        }
    }
    until("the end of all strangers", || scene.metric(OPEN) == 1).await;
    until("their places", || scene.metric("tern_edge_pending_handshakes") == 0).await;
    assert!(alice.alive().await && bob.alive().await);
    assert_eq!(scene.core.opened().len(), 2, "the core heard of nobody else");
    assert!(scene.failed("hello_timeout") > 0);
}

#[tokio::test]
async fn a_client_that_is_let_in_may_not_flood_either() {
    let scene = Scene::start(limits()).await;
    let connection = scene.http3(host(HOSTILE, 1)).await.unwrap();
    let mut mallory = Poller::enter(&scene, connection.clone(), "mallory").await;
    assert!(mallory.alive().await);
    let mut bob = Poller::enter(&scene, scene.http3(host(HONEST, 1)).await.unwrap(), "bob").await;
    // More requests at once than there is room for, none of which ends: no more than eight are taken.
    let waits = [&[0x27, 2][..], b"tern-poll", &[1, b'x']].concat();
    let left = leave(&connection, 40, &header(&waits)).await;
    assert!(left.len() <= 8, "{} streams", left.len());
    drop(left);
    // And requests that are taken back before they are whole.
    let flood = async {
        let mut opened = 0u32;
        while let Ok((mut send, mut recv)) = connection.open_bi().await {
            drop(send.write_all(&[1]).await);
            drop((send.reset(0x10cu32.into()), recv.stop(0x10cu32.into())));
            opened += 1;
            assert!(opened < 10_000, "a flood without an end");
        }
    };
    timeout(LONG, flood).await.expect("an end in time");
    assert!(bob.alive().await);
    // The session is not the connection's: it goes on over another one.
    let again = scene.http3(host(HOSTILE, 2)).await.unwrap();
    mallory.http = Http3Connection::new(scene.env.tasks.clone(), again, "localhost").await.unwrap();
    assert!(mallory.alive().await);
    until("the end of the flood", || scene.metric(OPEN) == 2).await;
}
