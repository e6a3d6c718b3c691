//! Nodes that connect: edges of this region, and peer regions with a lower number.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tern_core::edge_api::{CorePort, Down, EdgePort, Up};
use tern_core::wire::node::{down_to_wire, up_from_wire, up_to_wire};
use tern_core::wire::node_v1::{
    Beat, EdgeHello, EdgeWelcome, LinkHello, NodeFrame, Owners, Refused, Stopping, node_frame::Body,
};
use tern_core::wire::versions::Speaks;
use tern_net::frames::{QuicFrames, write_one};
use tern_net::quic::{self, QuicError};
use tern_net::refusal::certificate_refused;

use super::link::{LinkSender, next_frames, reader};
use super::{Shared, confirm, cores, dial};

/// A node that has not said what it is by then is dropped.
const HELLO_WITHIN: Duration = Duration::from_secs(3);
/// Refusals for certificates that are remembered; with more of them all are told again.
const TOLD: usize = 64;
/// A node that was refused has so long to read why.
const REFUSED_FOR: Duration = Duration::from_millis(500);

/// Listens. The port is known when this returns.
pub(super) fn start(
    shared: &Arc<Shared>,
    at: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
) -> Result<SocketAddr, QuicError> {
    let endpoint = quic::server_endpoint(&shared.env, at, tls, &quic::QuicParams::node())?;
    let addr = endpoint.local_addr().map_err(|cause| QuicError::Bind { at, cause })?;
    let shared = shared.clone();
    let told = Arc::new(Told::default());
    shared.clone().env.tasks.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let from = incoming.remote_address();
            let Ok(connecting) = incoming.accept() else { continue };
            let (shared, told) = (shared.clone(), told.clone());
            shared.clone().env.tasks.spawn(async move {
                let ended = match connecting.await {
                    Ok(connection) => {
                        node(shared, connection.clone()).await;
                        connection.close_reason()
                    }
                    Err(error) => Some(error),
                };
                if let Some(why) = ended.as_ref().and_then(certificate_refused) {
                    told.refused(from.ip(), why);
                }
            });
        }
    });
    Ok(addr)
}

/// Nodes that could not connect for a certificate, and why: a line of log for each, and not for each attempt.
#[derive(Debug, Default)]
struct Told(Mutex<BTreeSet<(IpAddr, String)>>);

impl Told {
    fn refused(&self, from: IpAddr, why: String) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= TOLD {
            told.clear();
        }
        if told.insert((from, why.clone())) {
            tracing::warn!(%from, why, "a node could not connect");
        }
    }
}

async fn node(shared: Arc<Shared>, connection: quinn::Connection) {
    let first = async {
        let (send, recv) = connection.accept_bi().await.ok()?;
        let mut frames = reader(recv);
        let body = frames.next::<NodeFrame>().await.ok()??.body?;
        Some((send, frames, body))
    };
    let Ok(Some((mut send, mut frames, body))) = tokio::time::timeout(HELLO_WITHIN, first).await else {
        connection.close(1u8.into(), b"no hello");
        return;
    };
    let refused = match body {
        Body::LinkAsk(ask) => match dial::check_ask(&shared, &ask) {
            Ok(region) => {
                let told = shared.heard_of(region).await;
                if write_one(&mut send, &NodeFrame { body: Some(Body::LinkTold(told)) }).await.is_ok() {
                    let _either_is_fine = tokio::time::timeout(REFUSED_FOR, connection.closed()).await;
                }
                return connection.close(0u8.into(), b"told");
            }
            Err(refused) => refused,
        },
        Body::LinkHello(theirs) => match greet(&shared, &mut send, &mut frames, &theirs).await {
            Ok(true) => return dial::serve(&shared, connection, send, frames, &theirs).await,
            Ok(false) => return connection.close(1u8.into(), b"no hello"),
            Err(refused) => refused,
        },
        Body::CoreHello(theirs) => match cores::accepted(&shared, connection.clone(), send, frames, theirs).await {
            Ok(()) => return connection.close(0u8.into(), b"link ended"),
            Err(refused) => {
                tracing::warn!(from = %connection.remote_address(), why = %refused.message, "a core node was refused");
                return connection.close(1u8.into(), refused.message.as_bytes());
            }
        },
        Body::EdgeHello(hello) => {
            let speaks = Speaks { version: hello.version, oldest: hello.oldest };
            match speaks.with(shared.config.oldest_version) {
                Ok(_) => return edge(shared, connection, send, frames, hello).await,
                Err(message) => Refused { code: 1, message },
            }
        }
        _ => Refused { code: 1, message: "a node begins with EdgeHello or LinkHello".to_owned() },
    };
    tracing::warn!(from = %connection.remote_address(), why = %refused.message, "a node was refused");
    let frame = NodeFrame { body: Some(Body::Refused(refused)) };
    if write_one(&mut send, &frame).await.is_ok() {
        let _either_is_fine = tokio::time::timeout(REFUSED_FOR, connection.closed()).await;
    }
    connection.close(1u8.into(), b"refused");
}

/// Answers a peer's hello, when the own era is decided. Whether the link is up.
async fn greet(
    shared: &Arc<Shared>,
    send: &mut quinn::SendStream,
    frames: &mut QuicFrames,
    theirs: &LinkHello,
) -> Result<bool, Refused> {
    let region = dial::check(shared, theirs)?;
    if shared.life.borrow().is_none() {
        // It may be the only way to ask this peer, so it is asked here as well.
        let ask = NodeFrame { body: Some(Body::LinkAsk(confirm::ask(shared))) };
        if write_one(send, &ask).await.is_err() {
            return Ok(false);
        }
        let told = tokio::time::timeout(HELLO_WITHIN, frames.next::<NodeFrame>()).await;
        let Ok(Ok(Some(NodeFrame { body: Some(Body::LinkTold(told)) }))) = told else { return Ok(false) };
        shared.eras.told(region, told);
    }
    let refuse = |message| Refused { code: 1, message };
    dial::settle_start(shared, theirs.you.as_ref()).await.map_err(refuse)?;
    let Some(hello) = dial::hello(shared, region).await else { return Ok(false) };
    Ok(write_one(send, &NodeFrame { body: Some(Body::LinkHello(hello)) }).await.is_ok())
}

/// An edge in another process, as the core sees it.
#[derive(Debug)]
struct RemoteEdge {
    sender: Arc<LinkSender>,
    /// It keeps its connections while this process is started again.
    keeps: bool,
}

impl EdgePort for RemoteEdge {
    fn deliver(&self, downs: Vec<Down>) {
        self.sender.send(downs.into_iter().map(|d| Body::Down(down_to_wire(d))));
    }

    fn bounced(&self, ups: Vec<Up>) {
        self.sender.send(ups.into_iter().map(|up| Body::Bounced(up_to_wire(up))));
    }

    fn owners(&self, owners: Owners) {
        self.sender.send([Body::Owners(owners)]);
    }

    fn stopping(&self) -> bool {
        if self.keeps {
            self.sender.send([Body::Stopping(Stopping {})]);
        }
        self.keeps
    }
}

/// What an edge is told first, when the era is decided.
pub(super) async fn welcome(shared: &Shared) -> Option<EdgeWelcome> {
    let life = shared.decided().await?;
    Some(EdgeWelcome {
        region: u32::from(shared.config.region),
        region_name: shared.config.name.clone(),
        era: life.era,
        direct_salt: shared.config.direct_salt.clone().into(),
        node: shared.config.node.clone(),
        shared: shared.config.sharing.is_some(),
    })
}

async fn edge(
    shared: Arc<Shared>,
    connection: quinn::Connection,
    mut send: quinn::SendStream,
    mut frames: QuicFrames,
    hello: EdgeHello,
) {
    let Some(welcome) = welcome(&shared).await else { return };
    let frame = NodeFrame { body: Some(Body::EdgeWelcome(welcome)) };
    if write_one(&mut send, &frame).await.is_err() {
        return;
    }
    tracing::info!(edge = %hello.edge, "an edge has linked");
    let sender = Arc::new(LinkSender::new(connection.clone()));
    let core = shared.attach(Arc::new(RemoteEdge { sender: sender.clone(), keeps: hello.keeps }), &hello.edge);
    let writer = sender.clone();
    shared.env.tasks.spawn(async move { writer.write(send).await });
    let mut over = shared.over.subscribe();
    loop {
        let received = tokio::select! {
            biased;
            received = next_frames(&mut frames) => received,
            _reason = connection.closed() => break,
            // Or the edge would wait for a dead link.
            _over = over.wait_for(|over| *over) => break,
        };
        let Ok(received) = received else { break };
        if received.is_empty() || !take(&shared, &core, &sender, &hello, received) {
            break;
        }
    }
    sender.close("link ended");
    shared.edge_down(core.edge);
    tracing::info!(edge = %hello.edge, "an edge's link is down");
}

/// Hands over what an edge sent. Whether the link may go on.
fn take(
    shared: &Arc<Shared>,
    core: &Arc<super::LocalCore>,
    sender: &LinkSender,
    hello: &EdgeHello,
    received: Vec<Body>,
) -> bool {
    let mut ups: Vec<Up> = Vec::with_capacity(received.len());
    for body in received {
        match body {
            Body::Up(up) => match up_from_wire(up) {
                Ok(up) => ups.push(up),
                Err(error) => {
                    tracing::warn!(edge = %hello.edge, %error, "an edge sent what can't be; its link is closed");
                    return false;
                }
            },
            Body::Load(report) => {
                for load in report.edges {
                    core.report(load);
                }
            }
            Body::Beat(beat) => {
                let wall_ms = shared.env.clock.wall_ms();
                sender.send([Body::Beat(Beat { wall_ms, echo: beat.echo, reply: true, ..Beat::default() })]);
            }
            _ => {}
        }
    }
    if !ups.is_empty() {
        core.submit(ups);
    }
    true
}
