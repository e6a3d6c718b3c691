//! Against core nodes that share a region: over real QUIC on loopback, and in memory with time that is waited for.

use super::*;
use crate::config::EdgeConfig;
use crate::link::tests::{Core, join};
use crate::testing::{CONV, FakeCore, LONG, Peer, Pki, edge, ping, send, until};
use bytes::Bytes;
use tern_core::codes::Code;
use tern_core::edge_api::ConnId;
use tern_core::ids::UserId;
use tern_core::owners::CoreNode;
use tern_core::slots::Slot;
use tern_core::wire::node;
use tern_core::wire::node_v1::NodeFrame;
use tern_core::wire::node_v1::node_frame::Body as NodeBody;
use tern_core::wire::v1::{self, frame::Body};
use tern_net::env::Spawner;
use tern_net::frames::{FrameWriter, QuicFrames};
use tern_net::quic::{QuicParams, server_endpoint};
use tern_net::tls::{node_client_tls, node_server_tls};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

mod memory;

const SALT: &[u8] = b"salt";

fn home(name: &str) -> Share {
    Slot::of_user(SALT, &UserId::new(name).unwrap()).share()
}

fn conversation() -> Share {
    Slot::of(CONV).share()
}

fn welcome(node: &str) -> node_v1::EdgeWelcome {
    let direct_salt = Bytes::from_static(SALT);
    node_v1::EdgeWelcome { region: 1, node: node.into(), shared: true, direct_salt, ..node_v1::EdgeWelcome::default() }
}

/// Everything is `rest`'s, but some shares are others'.
fn word(epoch: u64, rest: &str, others: &[(Share, &str)], nodes: &[(&str, SocketAddr)]) -> node_v1::Owners {
    let mut owners = Owners::default();
    for share in Share::all() {
        let owner = others.iter().find(|(s, _)| *s == share).map_or(rest, |(_, owner)| owner);
        owners.set(share, (!owner.is_empty()).then(|| owner.into()), epoch);
    }
    for (name, addr) in nodes {
        owners.node(name, CoreNode { addr: *addr, generation: 1 });
    }
    owners.to_wire()
}

/// A core node that listens.
struct Far {
    name: &'static str,
    endpoint: quinn::Endpoint,
    addr: SocketAddr,
    tasks: Spawner,
}

impl Far {
    /// The next link to it, welcomed.
    async fn accept(&self) -> Node {
        let (mut core, _) = timeout(LONG, Core::accept(&self.endpoint)).await.unwrap();
        core.say(NodeBody::EdgeWelcome(welcome(self.name))).await;
        let Core { connection, mut send, frames } = core;
        let (out, mut said) = mpsc::unbounded_channel();
        self.tasks.spawn(async move {
            loop {
                let body = tokio::select! {
                    body = said.recv() => body,
                    // Or the edge would take it for dead.
                    () = sleep(Duration::from_secs(1)) => Some(NodeBody::Beat(node_v1::Beat::default())),
                };
                let Some(body) = body else { return };
                let mut writer = FrameWriter::new();
                writer.put(&NodeFrame { body: Some(body) });
                if writer.write(&mut send).await.is_err() {
                    return;
                }
            }
        });
        Node { connection, out, frames }
    }
}

/// A core node's side of one link. It lives until its connection is closed.
struct Node {
    connection: quinn::Connection,
    out: mpsc::UnboundedSender<NodeBody>,
    frames: QuicFrames,
}

impl Node {
    fn say(&self, body: NodeBody) {
        self.out.send(body).unwrap();
    }

    fn die(&self) {
        self.connection.close(0u32.into(), b"");
    }

    /// The next thing that a connection said.
    async fn up(&mut self) -> Up {
        loop {
            let frame = timeout(LONG, self.frames.next::<NodeFrame>()).await.unwrap().unwrap().unwrap();
            if let Some(NodeBody::Up(up)) = frame.body {
                return node::up_from_wire(up).unwrap();
            }
        }
    }

    fn down(&self, conn: ConnId, body: DownBody) {
        self.say(NodeBody::Down(node::down_to_wire(Down { conn, body })));
    }

    fn ack(&self, conn: ConnId, req: u32) {
        self.down(conn, FakeCore::default().answer(&Up::Send { conn, req, send: memory::request() }).unwrap());
    }
}

struct Scene {
    edge: Arc<Edge>,
    cores: Arc<Cores>,
    far: Vec<Far>,
}

/// Core nodes a, b, ... of which the first `configured` are known from the beginning.
fn start(nodes: &[&'static str], configured: usize) -> Scene {
    let pki = Pki::new();
    let (edge, _) = edge(EdgeConfig::default());
    let env = edge.env.clone();
    let far: Vec<Far> = nodes
        .iter()
        .map(|name| {
            let tls = node_server_tls(&pki.certificate, pki.ca.as_bytes(), env.clock.clone()).unwrap();
            let endpoint = server_endpoint(&env, "127.0.0.1:0".parse().unwrap(), tls, &QuicParams::node()).unwrap();
            let addr = endpoint.local_addr().unwrap();
            Far { name, endpoint, addr, tasks: env.tasks.clone() }
        })
        .collect();
    let tls = node_client_tls(&pki.certificate, pki.ca.as_bytes(), env.clock.clone()).unwrap();
    let addrs = far.iter().take(configured).map(|f| f.addr).collect();
    let cores = Cores::start(env, addrs, "localhost".into(), tls, edge.clone());
    edge.run_without_sockets(cores.clone());
    Scene { edge, cores, far }
}

impl Scene {
    fn nodes(&self) -> Vec<(&str, SocketAddr)> {
        self.far.iter().map(|f| (f.name, f.addr)).collect()
    }

    fn word(&self, epoch: u64, rest: &str, others: &[(Share, &str)]) -> NodeBody {
        NodeBody::Owners(word(epoch, rest, others, &self.nodes()))
    }
}

/// Alice says Hello at the node where she is at home, and Commit.
async fn enter(scene: &Scene, home: &mut Node) -> (Peer<DuplexStream>, ConnId) {
    let mut peer = join(&scene.edge);
    peer.say(1, crate::testing::hello("alice")).await;
    let Up::Open { conn, req, user, .. } = home.up().await else { panic!("no Open") };
    assert_eq!(user.as_str(), "alice");
    let frame = v1::Frame::new(req, Body::Welcome(v1::Welcome::default()));
    home.down(conn, DownBody::Frame(Box::new(frame)));
    assert!(matches!(peer.body().await, Body::Welcome(_)));
    peer.say(0, Body::Commit(v1::Commit { order: 7, ..v1::Commit::default() })).await;
    let Up::Frame { frame, .. } = home.up().await else { panic!("no Commit") };
    assert!(matches!(frame.body, Some(Body::Commit(_))));
    (peer, conn)
}

/// The next answer is an ack.
async fn acked(peer: &mut Peer<DuplexStream>) {
    loop {
        match peer.body().await {
            Body::Define(_) => {}
            Body::Ack(_) => return,
            other => panic!("{other:?}"),
        }
    }
}

/// Two core nodes: alice is at home at a, the conversation is b's.
async fn two() -> (Scene, Node, Node) {
    let scene = start(&["a", "b"], 1);
    assert_ne!(home("alice"), conversation());
    let a = scene.far[0].accept().await;
    until("the link", || scene.cores.reachable()).await;
    assert!(!scene.cores.whole());
    a.say(scene.word(1, "a", &[(conversation(), "b")]));
    let b = scene.far[1].accept().await;
    until("all of the region", || scene.cores.whole()).await;
    (scene, a, b)
}

#[tokio::test]
async fn a_connection_speaks_to_the_owners_of_its_user_and_of_its_conversations() {
    let (scene, mut a, mut b) = two().await;
    let (mut peer, conn) = enter(&scene, &mut a).await;
    peer.say(2, send(1)).await;
    let Up::Attach { conn: attached, user, .. } = b.up().await else { panic!("no Attach") };
    assert_eq!((attached, user.as_str()), (conn, "alice"));
    assert!(matches!(b.up().await, Up::Send { req: 2, .. }));
    b.ack(conn, 2);
    acked(&mut peer).await;
    peer.say(3, ping(9)).await;
    assert!(matches!(a.up().await, Up::Frame { frame, .. } if frame.req == 3));
    // The end is told to both.
    drop(peer);
    assert!(matches!(a.up().await, Up::Close { conn: c } if c == conn));
    assert!(matches!(b.up().await, Up::Close { conn: c } if c == conn));
}

#[tokio::test]
async fn what_a_core_node_had_when_it_died_is_to_be_asked_again_and_the_connection_lives() {
    let (scene, mut a, mut b) = two().await;
    let (mut peer, _) = enter(&scene, &mut a).await;
    peer.say(2, send(1)).await;
    assert!(matches!(b.up().await, Up::Attach { .. }));
    assert!(matches!(b.up().await, Up::Send { req: 2, .. }));
    b.die();
    assert_eq!(peer.refused().await, Code::OwnerLost);
    // Nobody has the conversation; what is said of it waits.
    peer.say(3, send(1)).await;
    a.say(scene.word(2, "a", &[]));
    assert!(matches!(a.up().await, Up::Send { req: 3, .. }));
    assert!(scene.cores.reachable());
}

#[tokio::test]
async fn a_connection_in_use_is_told_to_its_users_new_owner() {
    let (scene, mut a, mut b) = two().await;
    let (mut peer, conn) = enter(&scene, &mut a).await;
    peer.say(2, ping(3)).await;
    assert!(matches!(a.up().await, Up::Frame { .. }));
    a.die();
    // Whether anyone is there is told at once.
    assert!(matches!(peer.body().await, Body::Pong(p) if p.echo == 3 && p.rev_unknown));
    peer.say(3, ping(4)).await;
    assert!(matches!(peer.body().await, Body::Pong(p) if p.echo == 4 && p.rev_unknown));
    b.say(scene.word(2, "b", &[]));
    let Up::Resume { conn: resumed, user, order, .. } = b.up().await else { panic!("no Resume") };
    assert_eq!((resumed, user.as_str(), order), (conn, "alice", 7));
    peer.say(4, ping(5)).await;
    assert!(matches!(b.up().await, Up::Frame { frame, .. } if frame.req == 4));
    // It is back, knows nothing, and owns nothing until it is said.
    let a = scene.far[0].accept().await;
    a.say(scene.word(1, "a", &[]));
    peer.say(5, ping(6)).await;
    assert!(matches!(b.up().await, Up::Frame { frame, .. } if frame.req == 5));
}

#[tokio::test]
async fn a_link_that_breaks_and_is_back_takes_up_what_its_node_still_owns() {
    let (scene, mut a, b) = two().await;
    let (mut peer, conn) = enter(&scene, &mut a).await;
    a.die();
    let mut a = scene.far[0].accept().await;
    assert!(matches!(a.up().await, Up::Resume { conn: c, order: 7, .. } if c == conn));
    peer.say(2, ping(3)).await;
    assert!(matches!(a.up().await, Up::Frame { .. }));
    drop(b);
}

#[tokio::test]
async fn what_a_core_node_hands_back_goes_to_the_owner() {
    let (scene, mut a, mut b) = two().await;
    let (mut peer, conn) = enter(&scene, &mut a).await;
    peer.say(2, send(1)).await;
    assert!(matches!(b.up().await, Up::Attach { .. }));
    let up = b.up().await;
    assert!(matches!(up, Up::Send { .. }));
    b.say(NodeBody::Bounced(node::up_to_wire(up)));
    // It is asked again, for nobody else is known.
    let up = b.up().await;
    assert!(matches!(up, Up::Send { req: 2, .. }));
    a.say(scene.word(2, "a", &[]));
    until("the word", || scene.cores.state().owners.of(conversation()).1 == 2).await;
    b.say(NodeBody::Bounced(node::up_to_wire(up)));
    assert!(matches!(a.up().await, Up::Send { req: 2, .. }));
    a.ack(conn, 2);
    acked(&mut peer).await;
}

#[tokio::test]
async fn a_core_node_is_linked_to_once_by_whatever_addresses_it_is_known() {
    // Both listen under one name.
    let scene = start(&["a", "a"], 2);
    let (first, second) = tokio::join!(scene.far[0].accept(), scene.far[1].accept());
    until("the link", || scene.cores.links.load().len() == 1).await;
    let (kept, gone) = tokio::select! {
        _ = first.connection.closed() => (second, first),
        _ = second.connection.closed() => (first, second),
    };
    kept.say(NodeBody::Owners(word(1, "a", &[], &[])));
    until("all of the region", || scene.cores.whole()).await;
    // When it is lost the other way is taken.
    drop(gone);
    kept.die();
    until("the loss", || scene.cores.is_alone()).await;
    let again = tokio::select! {
        again = scene.far[0].accept() => again,
        again = scene.far[1].accept() => again,
    };
    again.say(scene.word(1, "a", &[]));
    until("all of the region", || scene.cores.whole()).await;
}

/// What `peer` is told before it is sent elsewhere.
async fn sent_elsewhere(peer: &mut Peer<DuplexStream>) {
    loop {
        match peer.next().await.map(|f| f.body.unwrap()) {
            Some(Body::Pong(_)) => {}
            Some(Body::Error(error)) => {
                assert_eq!(Code::from_u32(error.code), Some(Code::CoreUnreachable));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn where_all_core_nodes_start_again_together_connections_stay() {
    let (scene, mut a, b) = two().await;
    let (mut peer, conn) = enter(&scene, &mut a).await;
    b.die();
    a.die();
    until("the loss", || scene.cores.is_alone()).await;
    let mut a = scene.far[0].accept().await;
    a.say(scene.word(2, "a", &[]));
    assert!(matches!(a.up().await, Up::Resume { conn: c, order: 7, .. } if c == conn));
    peer.say(2, ping(3)).await;
    assert!(matches!(a.up().await, Up::Frame { .. }));
}

#[tokio::test]
async fn without_any_core_node_all_are_sent_elsewhere() {
    let (scene, mut a, b) = two().await;
    let (mut peer, _) = enter(&scene, &mut a).await;
    b.die();
    a.die();
    until("the loss", || !scene.cores.reachable()).await;
    sent_elsewhere(&mut peer).await;
    let a = scene.far[0].accept().await;
    // Words of a region that is another one count from the beginning.
    a.say(scene.word(1, "a", &[]));
    until("all of the region", || scene.cores.whole()).await;
}

#[tokio::test]
async fn a_region_that_comes_back_in_another_era_is_another_one() {
    let (scene, mut a, b) = two().await;
    let (mut peer, _) = enter(&scene, &mut a).await;
    b.die();
    a.die();
    until("the loss", || scene.cores.is_alone()).await;
    let (mut a, _) = Core::accept(&scene.far[0].endpoint).await;
    a.say(NodeBody::EdgeWelcome(node_v1::EdgeWelcome { era: 2, ..welcome("a") })).await;
    sent_elsewhere(&mut peer).await;
    // Epochs of its shares count from the beginning, and one of the former era is not mixed in.
    a.say(scene.word(1, "a", &[])).await;
    until("all of the region", || scene.cores.whole()).await;
    let (mut b, _) = Core::accept(&scene.far[1].endpoint).await;
    b.say(NodeBody::EdgeWelcome(welcome("b"))).await;
    b.connection.closed().await;
}

#[tokio::test]
async fn core_nodes_that_disagree_on_what_the_region_is_are_not_mixed() {
    let scene = start(&["a", "b", "c"], 3);
    let a = scene.far[0].accept().await;
    until("the link", || scene.cores.reachable()).await;
    let (mut b, _) = Core::accept(&scene.far[1].endpoint).await;
    b.say(NodeBody::EdgeWelcome(node_v1::EdgeWelcome { shared: false, ..welcome("b") })).await;
    let (mut c, _) = Core::accept(&scene.far[2].endpoint).await;
    c.say(NodeBody::EdgeWelcome(node_v1::EdgeWelcome { direct_salt: Bytes::from_static(b"x"), ..welcome("c") })).await;
    b.connection.closed().await;
    c.connection.closed().await;
    assert_eq!(scene.cores.links.load().len(), 1);
    a.say(scene.word(1, "a", &[]));
    until("all of the region", || scene.cores.whole()).await;
}
