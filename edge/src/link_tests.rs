//! Against a core's side over real QUIC on loopback.

use super::*;
use crate::config::EdgeConfig;
use crate::cores::Cores;
use crate::edge::Edge;
use crate::testing::{Peer, Pki, edge, ping, until};
use tern_core::codes::Code;
use tern_core::edge_api::{CorePort, DownBody};
use tern_core::wire::v1;
use tern_net::quic::server_endpoint;
use tern_net::tls::{node_client_tls, node_server_tls};
use tokio::io::{DuplexStream, duplex};

/// The core's side of one link.
pub(crate) struct Core {
    pub(crate) connection: quinn::Connection,
    pub(crate) send: quinn::SendStream,
    pub(crate) frames: QuicFrames,
}

impl Core {
    /// Accepts a link and reads its EdgeHello.
    pub(crate) async fn accept(endpoint: &quinn::Endpoint) -> (Self, node_v1::EdgeHello) {
        let (connection, send, recv) = loop {
            // An edge that was not answered in time has given the attempt up.
            let Ok(connection) = endpoint.accept().await.unwrap().await else { continue };
            if let Ok((send, recv)) = connection.accept_bi().await {
                break (connection, send, recv);
            }
        };
        let mut core = Self { connection, send, frames: QuicFrames::new(recv, NODE_FRAME_BYTES) };
        match core.next().await {
            Body::EdgeHello(hello) => (core, hello),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn next(&mut self) -> Body {
        let next = timeout(crate::testing::LONG, self.frames.next::<NodeFrame>()).await;
        next.unwrap().unwrap().unwrap().body.unwrap()
    }

    pub(crate) async fn say(&mut self, body: Body) {
        let mut writer = FrameWriter::new();
        writer.put(&NodeFrame { body: Some(body) });
        writer.write(&mut self.send).await.unwrap();
    }

    async fn welcome(&mut self, region: u32) {
        self.welcome_in(region, 0).await;
    }

    async fn welcome_in(&mut self, region: u32, era: u64) {
        self.say(Body::EdgeWelcome(node_v1::EdgeWelcome { region, era, ..node_v1::EdgeWelcome::default() })).await;
    }

    /// The next thing that a connection said.
    pub(crate) async fn up(&mut self) -> Up {
        loop {
            if let Body::Up(up) = self.next().await {
                return node::up_from_wire(up).unwrap();
            }
        }
    }

    pub(crate) async fn down(&mut self, conn: u64, frame: v1::Frame) {
        let down = Down { conn, body: DownBody::Frame(Box::new(frame)) };
        self.say(Body::Down(node::down_to_wire(down))).await;
    }
}

struct Scene {
    edge: Arc<Edge>,
    endpoint: quinn::Endpoint,
    link: Arc<Cores>,
}

fn start() -> Scene {
    start_with(EdgeConfig::default())
}

fn start_with(config: EdgeConfig) -> Scene {
    let pki = Pki::new();
    let (edge, _) = edge(config);
    let env = edge.env.clone();
    let tls = node_server_tls(&pki.certificate, pki.ca.as_bytes(), env.clock.clone()).unwrap();
    let endpoint = server_endpoint(&env, "127.0.0.1:0".parse().unwrap(), tls, &QuicParams::node()).unwrap();
    let tls = node_client_tls(&pki.certificate, pki.ca.as_bytes(), env.clock.clone()).unwrap();
    let to = endpoint.local_addr().unwrap();
    let link = Cores::start(env, vec![to], "localhost".into(), tls, edge.clone());
    edge.run_without_sockets(link.clone());
    Scene { edge, endpoint, link }
}

pub(crate) fn join(edge: &Arc<Edge>) -> Peer<DuplexStream> {
    let (near, far) = duplex(100_000);
    let edge = edge.clone();
    let conn = edge.enter("tcp").unwrap();
    edge.env.tasks.clone().spawn(async move {
        crate::listen::drive_stream(&edge, &conn, far, "192.0.2.1:7".parse().unwrap(), None).await;
        edge.leave(&conn, "tcp");
    });
    Peer::new(near)
}

#[tokio::test]
async fn sessions_cross_the_link_and_end_with_it() {
    let scene = start();
    assert!(!scene.link.reachable());
    let (mut core, hello) = Core::accept(&scene.endpoint).await;
    assert_eq!((hello.edge.as_str(), hello.generation), ("e1", scene.edge.generation()));
    core.welcome(1).await;
    until("the link", || scene.link.reachable()).await;
    let mut peer = join(&scene.edge);
    peer.say(1, crate::testing::hello("alice")).await;
    let Up::Open { conn, req, user, .. } = core.up().await else { panic!("no Open") };
    assert_eq!(user.as_str(), "alice");
    core.down(conn, v1::Frame::new(req, v1::frame::Body::Welcome(v1::Welcome::default()))).await;
    assert!(matches!(peer.body().await, v1::frame::Body::Welcome(_)));
    peer.say(2, crate::testing::send(1)).await;
    assert!(matches!(core.up().await, Up::Send { req: 2, .. }));
    // Frames that make no sense are left out; the link lives.
    core.say(Body::Down(node_v1::Down::default())).await;
    peer.say(3, ping(5)).await;
    assert!(matches!(core.up().await, Up::Frame { .. }));
    core.down(conn, v1::Frame::new(3, v1::frame::Body::Pong(v1::Pong { echo: 5, ..v1::Pong::default() }))).await;
    assert!(matches!(peer.body().await, v1::frame::Body::Pong(p) if p.echo == 5));
    core.connection.close(0u32.into(), b"");
    // Nobody knows what became of it.
    assert_eq!(peer.refused().await, Code::OwnerLost);
    // The edge comes back by itself; in a new era the core knows nothing of the old session.
    let (mut core, _) = Core::accept(&scene.endpoint).await;
    core.welcome_in(1, 2).await;
    assert_eq!(peer.refused().await, Code::CoreUnreachable);
    let mut again = join(&scene.edge);
    again.say(1, crate::testing::hello("bob")).await;
    loop {
        if let Up::Open { user, .. } = core.up().await {
            assert_eq!(user.as_str(), "bob");
            break;
        }
    }
}

#[tokio::test]
async fn beats_and_the_load_come_every_second_and_echoes_are_returned() {
    let scene = start();
    let (mut core, _) = Core::accept(&scene.endpoint).await;
    core.welcome(1).await;
    core.say(Body::Beat(node_v1::Beat { echo: 77, ..node_v1::Beat::default() })).await;
    let (mut beats, mut loads, mut echoed) = (0, 0, false);
    while beats < 2 || loads < 2 || !echoed {
        // The core beats too, or the edge would take it for dead.
        core.say(Body::Beat(node_v1::Beat::default())).await;
        match core.next().await {
            Body::Beat(beat) if beat.reply => echoed = beat.echo == 77,
            Body::Beat(_) => beats += 1,
            Body::Load(load) => {
                assert_eq!(load.edges[0].edge, "e1");
                loads += 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_silent_core_is_lost_after_three_seconds_and_asked_again() {
    let scene = start();
    let (mut core, _) = Core::accept(&scene.endpoint).await;
    core.welcome(1).await;
    until("the link", || scene.link.reachable()).await;
    until("the loss", || scene.link.is_alone()).await;
    assert!(scene.link.reachable(), "that may end soon");
    let (mut core, _) = Core::accept(&scene.endpoint).await;
    core.welcome(1).await;
    until("the link", || scene.link.reachable()).await;
}

#[tokio::test]
async fn a_core_that_refuses_or_serves_another_region_is_not_used() {
    let scene = start();
    let (mut core, _) = Core::accept(&scene.endpoint).await;
    core.say(Body::Refused(node_v1::Refused { code: 1, message: "another deployment".into() })).await;
    let (mut core, _) = Core::accept(&scene.endpoint).await;
    core.welcome(2).await;
    let (mut core, _) = Core::accept(&scene.endpoint).await;
    assert!(!scene.link.reachable());
    core.welcome(1).await;
    until("the link", || scene.link.reachable()).await;
}

#[tokio::test]
async fn a_core_that_does_not_read_loses_the_link_rather_than_the_edges_memory() {
    let scene = start();
    let (mut core, _) = Core::accept(&scene.endpoint).await;
    core.welcome(1).await;
    until("the link", || scene.link.reachable()).await;
    let send = |n| Up::Send {
        conn: 1,
        req: 1,
        send: tern_core::edge_api::SendRequest {
            conversation: crate::testing::CONV,
            peer: None,
            n,
            floor: 1,
            seen_hlc: 0,
            kind: 0,
            body: vec![0; 60_000].into(),
            wall_ms: 0,
            offer: None,
            membership: None,
            named: None,
        },
    };
    for n in 1..=100 {
        scene.link.submit(vec![send(n)]);
    }
    until("the loss", || scene.link.is_alone()).await;
}

impl Core {
    /// The next thing that is no beat, load or end of a connection.
    async fn said(&mut self) -> Up {
        loop {
            match self.up().await {
                Up::Close { .. } => {}
                up => return up,
            }
        }
    }
}

/// Alice is connected, and has said Commit.
async fn alice(scene: &Scene, core: &mut Core) -> (Peer<DuplexStream>, u64) {
    let mut peer = join(&scene.edge);
    peer.say(1, crate::testing::hello("alice")).await;
    let Up::Open { conn, req, .. } = core.up().await else { panic!("no Open") };
    core.down(conn, v1::Frame::new(req, v1::frame::Body::Welcome(v1::Welcome::default()))).await;
    assert!(matches!(peer.body().await, v1::frame::Body::Welcome(_)));
    peer.say(0, v1::frame::Body::Commit(v1::Commit { order: 7, ..v1::Commit::default() })).await;
    assert!(matches!(core.up().await, Up::Frame { .. }));
    (peer, conn)
}

#[tokio::test]
async fn the_only_core_node_restarts_in_order_under_its_clients() {
    let scene = start();
    let (mut core, hello) = Core::accept(&scene.endpoint).await;
    assert!(hello.keeps);
    core.welcome_in(1, 9).await;
    until("the link", || scene.link.reachable()).await;
    let (mut peer, conn) = alice(&scene, &mut core).await;
    for _ in 0..3 {
        // One is with the core when it begins to stop, and is answered; one is handed back; one waits from the beginning.
        peer.say(2, ping(4)).await;
        peer.say(3, crate::testing::send(1)).await;
        assert!(matches!(core.up().await, Up::Frame { frame, .. } if frame.req == 2));
        let posted = core.up().await;
        core.say(Body::Stopping(node_v1::Stopping {})).await;
        core.down(conn, v1::Frame::new(2, v1::frame::Body::Pong(v1::Pong { echo: 4, ..v1::Pong::default() }))).await;
        assert!(matches!(peer.body().await, v1::frame::Body::Pong(p) if !p.rev_unknown));
        core.say(Body::Bounced(node::up_to_wire(posted))).await;
        until("what was handed back", || scene.link.held() == 1).await;
        peer.say(4, crate::testing::send(2)).await;
        peer.say(5, ping(6)).await;
        assert!(matches!(peer.body().await, v1::frame::Body::Pong(p) if p.rev_unknown && p.stay_ms == 10_000));
        core.connection.close(0u32.into(), b"");
        let (next, _) = Core::accept(&scene.endpoint).await;
        core = next;
        core.welcome_in(1, 9).await;
        assert!(matches!(core.said().await, Up::Resume { conn: c, order: 7, .. } if c == conn));
        assert!(matches!(core.said().await, Up::Send { req: 3, .. }));
        assert!(matches!(core.said().await, Up::Send { req: 4, .. }));
        for req in [3, 4] {
            core.down(conn, v1::Frame::new(req, v1::frame::Body::Error(v1::Error::default()))).await;
            assert!(matches!(peer.body().await, v1::frame::Body::Error(_)));
        }
    }
}

#[tokio::test]
async fn a_core_node_that_announced_its_return_and_stays_away_is_given_up() {
    let scene = start_with(EdgeConfig {
        limits: crate::config::EdgeLimits { core_restart: Duration::from_millis(200), ..Default::default() },
        ..EdgeConfig::default()
    });
    let (mut core, _) = Core::accept(&scene.endpoint).await;
    core.welcome(1).await;
    until("the link", || scene.link.reachable()).await;
    let (mut peer, _) = alice(&scene, &mut core).await;
    peer.say(3, crate::testing::send(1)).await;
    let posted = core.up().await;
    core.say(Body::Stopping(node_v1::Stopping {})).await;
    core.say(Body::Bounced(node::up_to_wire(posted))).await;
    assert_eq!(peer.refused().await, Code::OwnerLost);
    assert_eq!(peer.refused().await, Code::CoreUnreachable);
    // It has not gone yet: when it does, nobody is waited for.
    core.connection.close(0u32.into(), b"");
    until("the loss", || !scene.link.reachable()).await;
}
