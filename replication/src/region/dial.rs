//! Region links: said by both sides, and dialled by the one with the lower number.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tern_core::wire::NODE_VERSION;
use tern_core::wire::node_v1::{Beat, LinkHello, LoadReport, NodeFrame, Refused, node_frame::Body};
use tern_net::frames::QuicFrames;
use tern_net::quic;

use super::core_task::Input;
use super::link::{LinkSender, next_frames, reader};
use super::{Peer, Shared};

/// First pause after a link was lost or could not be had; doubles up to [`PAUSE_MAX`], each time drawn at
/// random below it, so that regions do not dial in step.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A peer that does not finish its handshake and hello by then is tried again.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Beats and loads go out this often.
const BEAT_EVERY: Duration = Duration::from_secs(1);

static LINKS: AtomicU64 = AtomicU64::new(1);

/// Keeps a link to `peer` for as long as the environment lives.
pub(super) async fn run(shared: Arc<Shared>, peer: Peer, tls: Arc<rustls::ClientConfig>) {
    let mut pause = PAUSE_MIN;
    let mut told = false;
    loop {
        match connect(&shared, &peer, tls.clone()).await {
            Ok((endpoint, connection, send, frames, hello)) => {
                pause = PAUSE_MIN;
                told = false;
                serve(&shared, connection, send, frames, &hello).await;
                endpoint.close(0u8.into(), b"link ended");
                tracing::warn!(peer = %peer.name, "the link to a peer region is down");
            }
            Err(why) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(peer = %peer.name, addr = %peer.addr, why, "a peer region can't be reached; trying on");
                }
            }
        }
        let random = shared.env.rng.below(u64::try_from(pause.as_micros()).unwrap_or(u64::MAX));
        tokio::time::sleep(pause / 2 + Duration::from_micros(random / 2)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

type Linked = (quinn::Endpoint, quinn::Connection, quinn::SendStream, QuicFrames, LinkHello);

async fn connect(shared: &Arc<Shared>, peer: &Peer, tls: Arc<rustls::ClientConfig>) -> Result<Linked, String> {
    let bind = match peer.addr {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let endpoint = quic::client_endpoint(&shared.env, bind).map_err(|e| e.to_string())?;
    let config = quic::client_config(&shared.env, tls, &quic::QuicParams::node()).map_err(|e| e.to_string())?;
    let handshake = async {
        let connecting = endpoint.connect_with(config, peer.addr, &peer.server_name).map_err(|e| e.to_string())?;
        let connection = connecting.await.map_err(|e| e.to_string())?;
        let (mut send, recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        let frame = NodeFrame { body: Some(Body::LinkHello(hello(shared))) };
        tern_net::frames::write_one(&mut send, &frame).await.map_err(|e| e.to_string())?;
        let mut frames = reader(recv);
        match frames.next::<NodeFrame>().await.map_err(|e| e.to_string())?.and_then(|f| f.body) {
            Some(Body::LinkHello(theirs)) => {
                check(shared, &theirs).map_err(|r| r.message)?;
                if theirs.region != u32::from(peer.region) {
                    return Err(format!("{} is region {}, not {}", peer.addr, theirs.region, peer.region));
                }
                Ok((connection, send, frames, theirs))
            }
            Some(Body::Refused(refused)) => Err(format!("refused: {}", refused.message)),
            _ => Err("the peer did not say hello".to_owned()),
        }
    };
    match tokio::time::timeout(CONNECT_WITHIN, handshake).await {
        Ok(Ok((connection, send, frames, theirs))) => Ok((endpoint, connection, send, frames, theirs)),
        Ok(Err(why)) => {
            endpoint.close(0u8.into(), why.as_bytes());
            Err(why)
        }
        Err(_) => {
            endpoint.close(0u8.into(), b"too late");
            Err(format!("no answer within {} s", CONNECT_WITHIN.as_secs()))
        }
    }
}

/// What this region says first.
pub(super) fn hello(shared: &Shared) -> LinkHello {
    LinkHello {
        version: NODE_VERSION,
        region: u32::from(shared.config.region),
        region_name: shared.config.name.clone(),
        era: shared.era,
        start: shared.start,
        commit: 0,
        node: shared.config.node.clone(),
        deployment: shared.config.deployment.to_vec().into(),
    }
}

/// Whether a peer may link, and what its operator should change if not.
pub(super) fn check(shared: &Shared, theirs: &LinkHello) -> Result<u8, Refused> {
    let refuse = |message: String| Refused { code: 1, message };
    if theirs.version != NODE_VERSION {
        return Err(refuse(format!("node wire version {}; this node speaks {NODE_VERSION}", theirs.version)));
    }
    if theirs.deployment[..] != shared.config.deployment {
        return Err(refuse(
            "another deployment: its name, receipt key or direct salt differ; all regions share them".to_owned(),
        ));
    }
    let region = u8::try_from(theirs.region).unwrap_or(0);
    if region == shared.config.region {
        return Err(refuse(format!("region {region} is this region's own id; give each region its own")));
    }
    if !shared.config.peers.iter().any(|p| p.region == region) {
        return Err(refuse(format!("region {region} is not among this region's peers; add it to `peers`")));
    }
    Ok(region)
}

/// Reads and writes until the link ends.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    connection: quinn::Connection,
    send: quinn::SendStream,
    mut frames: QuicFrames,
    theirs: &LinkHello,
) {
    let Ok(region) = u8::try_from(theirs.region) else { return };
    let link = LINKS.fetch_add(1, Ordering::Relaxed);
    let sender = Arc::new(LinkSender::new(connection.clone()));
    tracing::info!(peer = %theirs.region_name, "linked to a peer region");
    shared.push(Input::PeerUp { region, link, start: theirs.start, era: theirs.era, sender: sender.clone() });
    let writer = sender.clone();
    shared.env.tasks.spawn(async move { writer.write(send).await });
    shared.env.tasks.spawn(beat(shared.clone(), sender.clone(), connection.clone()));
    loop {
        let received = tokio::select! {
            biased;
            received = next_frames(&mut frames) => received,
            _reason = connection.closed() => break,
        };
        match received {
            Ok(received) if received.is_empty() => break,
            Ok(received) => {
                let now = shared.env.clock.now();
                let frames: Vec<Body> = received
                    .into_iter()
                    .filter(|body| match body {
                        Body::Load(report) => {
                            // A peer speaks for its own edges only.
                            let own = report.edges.iter().filter(|e| e.region == theirs.region);
                            own.for_each(|load| shared.loads.report(load, now));
                            false
                        }
                        _ => true,
                    })
                    .collect();
                if !frames.is_empty() {
                    shared.push(Input::PeerFrames { region, link, frames });
                }
            }
            Err(error) => {
                tracing::warn!(peer = %theirs.region_name, %error, "a peer region's link is not readable");
                break;
            }
        }
    }
    sender.close("link ended");
    shared.push(Input::PeerDown { region, link });
}

/// Once a second: alive, and the load of this region's edges.
async fn beat(shared: Arc<Shared>, sender: Arc<LinkSender>, connection: quinn::Connection) {
    loop {
        let edges = shared.loads.own_loads(shared.config.region, shared.env.clock.now());
        let beat = Beat { wall_ms: shared.env.clock.wall_ms(), ..Beat::default() };
        sender.send([Body::Beat(beat), Body::Load(LoadReport { edges })]);
        tokio::select! {
            biased;
            _reason = connection.closed() => return,
            () = tokio::time::sleep(BEAT_EVERY) => {}
        }
    }
}
