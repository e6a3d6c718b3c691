//! Hellos with the first packet, over real sockets on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tern_core::edge_api::Up;
use tern_core::wire::ALPN_CLIENT;
use tern_core::wire::v1::{self, frame::Body};
use tern_net::frames::{FrameWriter, QuicFrames};
use tern_net::quic::{QuicParams, client_config, client_endpoint};
use tern_net::resume::Resuming;
use tern_net::tls::{client_tls, server_tls};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::config::{EdgeConfig, EdgeLimits};
use crate::edge::Edge;
use crate::testing::{FakeCore, LONG, Pki, hello, send, until};

/// Passes datagrams on. Once `deaf`, one more of each client is let through, and nothing else: its handshake begins and
/// never ends.
#[expect(clippy::disallowed_methods, reason = "it is no node, but what lies between two")]
async fn relay(to: SocketAddr, deaf: Arc<AtomicBool>) -> SocketAddr {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let at = front.local_addr().unwrap();
    tokio::spawn(async move {
        let mut clients = std::collections::BTreeMap::new();
        let mut bytes = vec![0; 2048];
        while let Ok((length, from)) = front.recv_from(&mut bytes).await {
            let new = !clients.contains_key(&from);
            if new {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                clients.insert(from, back.clone());
                let front = front.clone();
                tokio::spawn(async move {
                    let mut bytes = vec![0; 2048];
                    while let Ok((length, _)) = back.recv_from(&mut bytes).await {
                        front.send_to(&bytes[..length], from).await.ok();
                    }
                });
            }
            if new || !deaf.load(Ordering::Relaxed) {
                clients[&from].send_to(&bytes[..length], to).await.ok();
            }
        }
    });
    at
}

struct Client {
    edge: Arc<Edge>,
    resuming: Arc<Resuming>,
    at: SocketAddr,
}

struct Opened {
    connection: quinn::Connection,
    control: quinn::SendStream,
    answers: QuicFrames,
    acks: QuicFrames,
    /// Open as long as this lives.
    _message: quinn::SendStream,
    early: bool,
}

async fn say(stream: &mut quinn::SendStream, req: u32, body: Body) {
    let mut writer = FrameWriter::new();
    writer.put(&v1::Frame::new(req, body));
    writer.write(stream).await.unwrap();
}

impl Client {
    /// Says Hello, with the first packet where it can, and a Send right behind it.
    async fn open(&self) -> Opened {
        let endpoint = client_endpoint(&self.edge.env, "127.0.0.1:0".parse().unwrap()).unwrap();
        let tls = self.resuming.towards("edge");
        let config = client_config(&self.edge.env, tls, &QuicParams::client()).unwrap();
        let (connection, early) = match endpoint.connect_with(config, self.at, "localhost").unwrap().into_0rtt() {
            Ok((connection, _)) => (connection, true),
            Err(connecting) => (timeout(LONG, connecting).await.unwrap().unwrap(), false),
        };
        let (mut control, answers) = connection.open_bi().await.unwrap();
        say(&mut control, 1, hello("alice")).await;
        let (mut message, acks) = connection.open_bi().await.unwrap();
        say(&mut message, 2, send(1)).await;
        let [answers, acks] = [answers, acks].map(|stream| QuicFrames::new(stream, 1 << 20));
        Opened { connection, control, answers, acks, _message: message, early }
    }
}

async fn body(answers: &mut QuicFrames) -> Body {
    loop {
        let frame: Option<v1::Frame> = timeout(LONG, answers.next()).await.unwrap().unwrap();
        match frame.unwrap().body.unwrap() {
            Body::Define(_) => {}
            body => return body,
        }
    }
}

impl Opened {
    async fn served(mut self) {
        assert!(matches!(body(&mut self.answers).await, Body::Welcome(_)));
        assert!(matches!(body(&mut self.acks).await, Body::Ack(_)));
        say(&mut self.control, 3, crate::testing::ping(1)).await;
        assert!(matches!(body(&mut self.answers).await, Body::Pong(_)));
        self.connection.close(0u32.into(), b"");
    }
}

async fn start(limits: EdgeLimits) -> (Client, Arc<FakeCore>, Arc<AtomicBool>) {
    let pki = Pki::new();
    let (edge, core) = crate::testing::edge(EdgeConfig { limits, ..EdgeConfig::default() });
    let tls = server_tls(&pki.certificate, &[ALPN_CLIENT], edge.env.clock.clone()).unwrap();
    let to = edge.run(core.clone(), tls).await.unwrap().local_addr;
    let deaf = Arc::new(AtomicBool::new(false));
    let at = relay(to, deaf.clone()).await;
    let base = client_tls(pki.ca.as_bytes(), &[ALPN_CLIENT], edge.env.clock.clone()).unwrap();
    (Client { edge, resuming: Resuming::new(base), at }, core, deaf)
}

#[tokio::test]
async fn a_client_that_was_here_says_hello_with_its_first_packet() {
    let (client, core, _) = start(EdgeLimits::default()).await;
    for early in [false, true, true] {
        let opened = client.open().await;
        assert_eq!(opened.early, early);
        opened.served().await;
        until("the close", || client.edge.connections() == 0).await;
    }
    assert_eq!(core.count(|up| matches!(up, Up::Open { .. })), 3);
    assert_eq!(core.count(|up| matches!(up, Up::Send { .. })), 3);
}

#[tokio::test]
async fn nothing_behind_an_early_hello_is_read_until_the_handshake_is_over_and_it_must_be_over_in_time() {
    let limits = EdgeLimits { hello_timeout: std::time::Duration::from_millis(300), ..EdgeLimits::default() };
    let (client, core, deaf) = start(limits).await;
    client.open().await.served().await;
    until("the first close", || client.edge.connections() == 0).await;
    core.ups.lock().unwrap().clear();
    deaf.store(true, Ordering::Relaxed);
    let mut opened = client.open().await;
    assert!(opened.early);
    // It is answered: whoever holds the ticket can read that, and nobody else.
    assert!(matches!(body(&mut opened.answers).await, Body::Welcome(_)));
    until("the edge's end of it", || client.edge.connections() == 0).await;
    assert!(matches!(core.ups.lock().unwrap()[..], [Up::Open { .. }, Up::Close { .. }]));
    assert!(client.edge.blocked(client.at.ip()).is_none(), "an address that is not proven is not held against anyone");
}
