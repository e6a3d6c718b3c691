//! Over real sockets on loopback.

use super::*;
use crate::testing::{FakeCore, LONG, Peer, Pki, hello, ping, send, until};
use tern_core::wire::{ALPN_CLIENT, Lane};
use tern_net::env::Stream;
use tern_net::frames::{FrameWriter, QuicFrames};
use tern_net::quic::{QuicParams, client_config, client_endpoint};
use tern_net::tls::{Credential, client_tls, server_tls, server_tls_with};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

async fn start(pki: &Pki, config: EdgeConfig) -> (Arc<Edge>, Arc<FakeCore>, SocketAddr) {
    let (edge, core) = crate::testing::edge(config);
    let tls = server_tls(&pki.certificate, &[ALPN_CLIENT], edge.env.clock.clone()).unwrap();
    let bound = edge.run(core.clone(), tls).await.unwrap();
    (edge, core, bound.local_addr)
}

async fn quic(
    edge: &Edge,
    pki: &Pki,
    to: SocketAddr,
    alpn: &[u8],
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let endpoint = client_endpoint(&edge.env, "127.0.0.1:0".parse().unwrap()).unwrap();
    let tls = client_tls(pki.ca.as_bytes(), &[alpn], edge.env.clock.clone()).unwrap();
    let config = client_config(&edge.env, tls, &QuicParams::client()).unwrap();
    timeout(LONG, endpoint.connect_with(config, to, "localhost").unwrap()).await.unwrap()
}

async fn tcp(
    edge: &Edge,
    pki: &Pki,
    to: SocketAddr,
    alpn: &[&[u8]],
) -> io::Result<Peer<tokio_rustls::client::TlsStream<Box<dyn Stream>>>> {
    let stream = edge.env.net.connect(to).await.unwrap();
    let tls = client_tls(pki.ca.as_bytes(), alpn, edge.env.clock.clone()).unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    Ok(Peer::new(timeout(LONG, TlsConnector::from(tls).connect(name, stream)).await.unwrap()?))
}

struct QuicLane {
    send: quinn::SendStream,
    frames: QuicFrames,
}

impl QuicLane {
    async fn open(connection: &quinn::Connection) -> Self {
        let (send, recv) = connection.open_bi().await.unwrap();
        Self { send, frames: QuicFrames::new(recv, 1 << 20) }
    }

    async fn say(&mut self, req: u32, body: Body) {
        let mut writer = FrameWriter::new();
        writer.put(&v1::Frame::new(req, body));
        writer.write(&mut self.send).await.unwrap();
    }

    async fn body(&mut self) -> Body {
        loop {
            let frame: Option<v1::Frame> = timeout(LONG, self.frames.next()).await.unwrap().unwrap();
            match frame.unwrap().body.unwrap() {
                Body::Define(_) => {}
                body => return body,
            }
        }
    }
}

fn closed_with(error: &quinn::ConnectionError) -> (Code, String) {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            let code = u32::try_from(close.error_code.into_inner()).unwrap();
            (Code::from_u32(code).unwrap(), String::from_utf8(close.reason.to_vec()).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_session_over_quic_uses_three_lanes() {
    let pki = Pki::new();
    let (edge, core, at) = start(&pki, EdgeConfig::default()).await;
    let connection = quic(&edge, &pki, at, ALPN_CLIENT).await.unwrap();
    let mut control = QuicLane::open(&connection).await;
    let mut message = QuicLane::open(&connection).await;
    let mut bulk = QuicLane::open(&connection).await;
    control.say(1, hello("alice")).await;
    assert!(matches!(control.body().await, Body::Welcome(w) if w.seen_address.starts_with("127.0.0.1:")));
    control.say(2, ping(4)).await;
    assert!(matches!(control.body().await, Body::Pong(p) if p.echo == 4));
    // The client has written nothing on its message lane, so the edge can't: the push comes on control.
    core.push(core.opened()[0], 1..=1, 10);
    assert!(matches!(control.body().await, Body::Push(p) if p.rev == 1));
    message.say(3, send(1)).await;
    assert!(matches!(message.body().await, Body::Ack(_)));
    core.push(core.opened()[0], 2..=2, 10);
    assert!(matches!(message.body().await, Body::Push(p) if p.rev == 2));
    let pull = v1::PullEntries {
        conversation: vec![1; 16].into(),
        origin: Some(v1::Origin { region: 1, era: 2 }),
        from: 1,
        to: 1,
        ..v1::PullEntries::default()
    };
    bulk.say(4, Body::Pull(pull)).await;
    assert!(matches!(bulk.body().await, Body::Page(p) if p.last && p.entries.len() == 1));
    connection.close(0u32.into(), b"");
    until("the close", || edge.connections() == 0).await;
    assert_eq!(core.count(|up| matches!(up, Up::Close { .. })), 1);
}

#[tokio::test]
async fn what_comes_on_the_message_lane_before_the_hello_waits_for_it() {
    let pki = Pki::new();
    let (edge, core, at) = start(&pki, EdgeConfig::default()).await;
    let connection = quic(&edge, &pki, at, ALPN_CLIENT).await.unwrap();
    let mut control = QuicLane::open(&connection).await;
    let mut message = QuicLane::open(&connection).await;
    message.say(2, send(1)).await;
    control.say(1, hello("alice")).await;
    assert!(matches!(control.body().await, Body::Welcome(_)));
    assert!(matches!(message.body().await, Body::Ack(_)));
    assert!(matches!(core.ups.lock().unwrap()[..], [Up::Open { .. }, Up::Send { .. }]));
}

#[tokio::test]
async fn quic_connections_are_closed_with_the_code_and_the_reason() {
    let pki = Pki::new();
    let (edge, _core, at) = start(&pki, EdgeConfig::default()).await;
    let connection = quic(&edge, &pki, at, ALPN_CLIENT).await.unwrap();
    let mut control = QuicLane::open(&connection).await;
    control.say(1, ping(1)).await;
    let (code, reason) = closed_with(&connection.closed().await);
    assert_eq!(code, Code::WrongMoment);
    assert!(reason.contains("Hello"), "{reason}");
    let connection = quic(&edge, &pki, at, ALPN_CLIENT).await.unwrap();
    let mut control = QuicLane::open(&connection).await;
    control.send.write_all(&[0xff; 10]).await.unwrap();
    assert_eq!(closed_with(&connection.closed().await).0, Code::BadFrame);
    assert!(quic(&edge, &pki, at, b"other").await.is_err(), "another protocol is refused by TLS");
}

#[tokio::test]
async fn the_same_session_over_tcp() {
    let pki = Pki::new();
    let (edge, core, at) = start(&pki, EdgeConfig::default()).await;
    let mut peer = tcp(&edge, &pki, at, &[ALPN_CLIENT]).await.unwrap();
    assert_eq!(peer.enter("alice").await.edge, "e1");
    peer.say(2, send(1)).await;
    assert!(matches!(peer.body().await, Body::Define(_)));
    assert!(matches!(peer.body().await, Body::Ack(_)));
    core.deliver(vec![Down { conn: core.opened()[0], body: DownBody::Last(Refusal::new(Code::Replaced, "x")) }]);
    assert_eq!(peer.refused().await, Code::Replaced);
    until("the close", || edge.connections() == 0).await;
}

#[tokio::test]
async fn over_tcp_a_wrong_protocol_is_refused_and_plain_text_gets_nowhere() {
    let pki = Pki::new();
    let (edge, _core, at) = start(&pki, EdgeConfig::default()).await;
    assert!(tcp(&edge, &pki, at, &[b"other"]).await.is_err());
    // A plain-text client gets nowhere and harms nobody.
    let mut plain = edge.env.net.connect(at).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    timeout(LONG, tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut rest)).await.unwrap().ok();
    assert!(tcp(&edge, &pki, at, &[ALPN_CLIENT]).await.is_ok());
}

#[tokio::test]
async fn an_address_block_that_keeps_failing_is_refused_on_both_transports() {
    let pki = Pki::new();
    let limits =
        crate::EdgeLimits { failed_handshakes_per_second: 1, failed_handshakes_burst: 1, ..Default::default() };
    let (edge, _core, at) = start(&pki, EdgeConfig { limits, ..EdgeConfig::default() }).await;
    edge.handshake_failed(at.ip(), Code::TokenInvalid);
    edge.handshake_failed(at.ip(), Code::TokenInvalid);
    assert!(quic(&edge, &pki, at, ALPN_CLIENT).await.is_err());
    assert!(tcp(&edge, &pki, at, &[ALPN_CLIENT]).await.is_err());
    until("the end of it", || edge.blocked(at.ip()).is_none()).await;
    assert!(quic(&edge, &pki, at, ALPN_CLIENT).await.is_ok());
}

#[tokio::test]
async fn a_full_edge_refuses_and_a_stopped_one_is_gone() {
    let pki = Pki::new();
    let (edge, core, at) = start(&pki, EdgeConfig { capacity: 4, ..EdgeConfig::default() }).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let connection = quic(&edge, &pki, at, ALPN_CLIENT).await.unwrap();
        let mut control = QuicLane::open(&connection).await;
        control.say(1, hello("alice")).await;
        assert!(matches!(control.body().await, Body::Welcome(_)));
        held.push((connection, control));
    }
    assert!(quic(&edge, &pki, at, ALPN_CLIENT).await.is_err(), "a quarter above the capacity, and no more");
    assert!(tcp(&edge, &pki, at, &[ALPN_CLIENT]).await.is_err());
    let tls = server_tls(&pki.certificate, &[ALPN_CLIENT], edge.env.clock.clone()).unwrap();
    assert!(matches!(edge.run(core.clone(), tls).await, Err(EdgeError::Running)));
    edge.stop();
    for (connection, _) in &held {
        assert_eq!(closed_with(&connection.closed().await).0, Code::Draining);
    }
    until("the end", || edge.connections() == 0).await;
    until("the listener's end", || std::net::TcpStream::connect(at).is_err()).await;
}

#[tokio::test]
async fn late_frames_of_a_connection_that_is_gone_reach_nobody() {
    let (edge, _core) = crate::testing::edge(EdgeConfig::default());
    let first = edge.enter("tcp").unwrap();
    edge.leave(&first, "tcp");
    let second = edge.enter("tcp").unwrap();
    assert_ne!(first.id, second.id);
    let down =
        |id| Down { conn: id, body: DownBody::Frame(Box::new(v1::Frame::new(0, Body::Kick(v1::Kick::default())))) };
    edge.deliver(vec![down(first.id)]);
    assert!(second.mailbox().is_empty());
    edge.deliver(vec![down(second.id)]);
    let mut out = Vec::new();
    second.mailbox().take(Lane::Control, 1000, &mut out, &edge.metrics);
    assert_eq!(out.len(), 1);
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_to_those_who_come_and_those_who_are_there_stay() {
    let (old, new) = (Pki::new(), Pki::new());
    let (edge, core) = crate::testing::edge(EdgeConfig::default());
    let credential = Credential::new(&old.certificate).unwrap();
    let tls = server_tls_with(credential.clone(), &[ALPN_CLIENT], edge.env.clock.clone()).unwrap();
    let at = edge.run(core.clone(), tls).await.unwrap().local_addr;
    let connection = quic(&edge, &old, at, ALPN_CLIENT).await.unwrap();
    let mut control = QuicLane::open(&connection).await;
    control.say(1, hello("alice")).await;
    assert!(matches!(control.body().await, Body::Welcome(_)));
    let mut over_tcp = tcp(&edge, &old, at, &[ALPN_CLIENT]).await.unwrap();
    over_tcp.say(1, hello("bob")).await;
    assert!(matches!(over_tcp.body().await, Body::Welcome(_)));

    credential.replace(&new.certificate).unwrap();
    assert!(quic(&edge, &new, at, ALPN_CLIENT).await.is_ok());
    assert!(tcp(&edge, &new, at, &[ALPN_CLIENT]).await.is_ok());
    assert!(quic(&edge, &old, at, ALPN_CLIENT).await.is_err());
    assert!(tcp(&edge, &old, at, &[ALPN_CLIENT]).await.is_err());
    control.say(2, ping(1)).await;
    assert!(matches!(control.body().await, Body::Pong(_)));
    over_tcp.say(2, ping(1)).await;
    assert!(matches!(over_tcp.body().await, Body::Pong(_)));
}

#[tokio::test]
async fn what_is_tuned_counts_for_the_next_who_comes_and_in_the_next_report() {
    let pki = Pki::new();
    let (edge, _core, at) = start(&pki, EdgeConfig { capacity: 4, ..EdgeConfig::default() }).await;
    let before = quic(&edge, &pki, at, ALPN_CLIENT).await.unwrap();
    let heartbeat = v1::Heartbeat { foreground_ms: 7, background_ms_min: 8, background_ms_max: 9 };
    let advertise = vec!["192.0.2.1:443".parse().unwrap()];
    edge.tune(Tuning { heartbeat: Some(heartbeat), advertise, capacity: 1, ..(*edge.tuning()).clone() });
    assert_eq!((edge.load().capacity, edge.load().addresses), (1, vec!["192.0.2.1:443".to_owned()]));
    assert!(quic(&edge, &pki, at, ALPN_CLIENT).await.is_err(), "full now");
    let mut control = QuicLane::open(&before).await;
    control.say(1, hello("alice")).await;
    assert!(matches!(control.body().await, Body::Welcome(w) if w.heartbeat == Some(heartbeat)));
}
