//! Region links: said by both sides, and dialled by the one with the lower number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tern_core::ids::Region as RegionId;
use tern_core::node::refill::PeerHello;
use tern_core::owners::Owners;
use tern_core::wire::NODE_VERSION;
use tern_core::wire::node_v1::{Beat, LinkAsk, LinkHello, LinkTold, LoadReport, NodeFrame, Refused, node_frame::Body};
use tern_core::wire::versions::Speaks;
use tern_net::frames::QuicFrames;
use tern_net::quic;
use tern_net::refusal::certificate_refused;

use super::core_task::Input;
use super::link::{LinkSender, Why, next_frames, reader};
use super::{Life, Peer, Shared, start};

/// First pause after a link was lost or could not be had; doubles up to [`PAUSE_MAX`], each time drawn at
/// random below it, so that regions do not dial in step.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A peer that does not finish its handshake by then is tried again.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// One that is starting says hello when its era is decided.
const HELLO_WITHIN: Duration = Duration::from_secs(8);
const _: () = assert!(HELLO_WITHIN.as_secs() > super::confirm::WITHIN.as_secs() + 2);
/// A peer that dials and has not by then is missed.
const MISSED_AFTER: Duration = Duration::from_secs(15);
/// Beats and loads go out this often.
const BEAT_EVERY: Duration = Duration::from_secs(1);

static LINKS: AtomicU64 = AtomicU64::new(1);

/// Core nodes of peer regions that have several.
#[derive(Debug, Default)]
pub(crate) struct PeerNodes(Mutex<BTreeMap<RegionId, Nodes>>);

#[derive(Debug, Default)]
struct Nodes {
    /// As the region's own nodes tell.
    owners: Owners,
    /// Those that a task sees to.
    kept: BTreeSet<String>,
    /// Links that are up.
    up: usize,
}

impl PeerNodes {
    fn with<T>(&self, region: RegionId, f: impl FnOnce(&mut Nodes) -> T) -> T {
        f(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(region).or_default())
    }
}

/// A node that its task has the sole care of.
struct Kept<'a>(&'a Shared, RegionId, String);

impl<'a> Kept<'a> {
    fn new(shared: &'a Shared, region: RegionId, name: &str) -> Option<Self> {
        let fresh = shared.peer_nodes.with(region, |nodes| nodes.kept.insert(name.to_owned()));
        fresh.then(|| Self(shared, region, name.to_owned()))
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.peer_nodes.with(self.1, |nodes| nodes.kept.remove(&self.2));
    }
}

/// Keeps a link to `peer` for as long as it is one and the environment lives: to its only core node, or to the first of
/// several that answers, which names the others.
pub(super) async fn run(shared: Arc<Shared>, peer: Peer, tls: Arc<rustls::ClientConfig>) {
    let mut pause = PAUSE_MIN;
    let mut reason = Why::default();
    let mut addrs = peer.addrs.iter().copied().cycle();
    // Until it is no peer any more, or is dialled elsewhere.
    while shared.peers().iter().any(|known| known.region == peer.region && known.addrs == peer.addrs) {
        let Some(addr) = addrs.next() else { return };
        // Once one is linked the others are known by it.
        if shared.peer_nodes.with(peer.region, |nodes| nodes.up) == 0 {
            match connect(&shared, &peer, addr, tls.clone()).await {
                Ok((endpoint, connection, send, frames, hello)) => {
                    let kept = if hello.shared { Kept::new(&shared, peer.region, &hello.node) } else { None };
                    if hello.shared == kept.is_some() {
                        pause = PAUSE_MIN;
                        reason.is_over();
                        serve(&shared, connection, send, frames, &hello).await;
                        tracing::warn!(peer = %peer.name, "the link to a peer region is down");
                    }
                    endpoint.close(0u8.into(), b"link ended");
                    drop(kept);
                    keep_nodes(&shared, peer.region);
                }
                Err(why) => {
                    if reason.is_news(&why) {
                        tracing::warn!(peer = %peer.name, %addr, why, "a peer region can't be reached; trying on");
                    }
                }
            }
        }
        rest(&shared, &mut pause).await;
    }
}

/// A peer with a lower number dials. Where it does not, nothing else would tell.
pub(super) async fn miss(shared: Arc<Shared>, peer: Peer) {
    tokio::time::sleep(MISSED_AFTER).await;
    if shared.is_peer(peer.region) && !shared.eras.tell(peer.region, shared.env.clock.now()).linked {
        tracing::warn!(
            peer = %peer.name,
            "a peer region, which has the lower number and so dials this one, has not done so: does it run, does its \
             `peers` list region {} with this node's address, and does UDP get through?",
            shared.config.region
        );
    }
}

async fn rest(shared: &Shared, pause: &mut Duration) {
    let random = shared.env.rng.below(u64::try_from(pause.as_micros()).unwrap_or(u64::MAX));
    tokio::time::sleep(*pause / 2 + Duration::from_micros(random / 2)).await;
    *pause = (*pause * 2).min(PAUSE_MAX);
}

/// Sees to it that there is a link to each node of a peer region that this one dials.
fn keep_nodes(shared: &Arc<Shared>, region: RegionId) {
    let Some(peer) = shared.peers().into_iter().find(|peer| peer.region == region) else { return };
    if shared.config.region > region {
        return; // it dials
    }
    let nodes: Vec<String> = shared.peer_nodes.with(region, |nodes| {
        let owns = |name: &str| nodes.owners.owned_by(name).next().is_some();
        let missing = nodes.owners.nodes().keys().filter(|name| owns(name) && !nodes.kept.contains(&***name));
        missing.map(ToString::to_string).collect()
    });
    for name in nodes {
        shared.env.tasks.spawn(dial_node(shared.clone(), peer.clone(), name));
    }
}

/// Keeps a link to one of a peer's nodes for as long as it owns anything.
async fn dial_node(shared: Arc<Shared>, peer: Peer, name: String) {
    let Some(_kept) = Kept::new(&shared, peer.region, &name) else { return };
    let mut pause = PAUSE_MIN;
    let mut reason = Why::default();
    while shared.is_peer(peer.region) {
        let addr = shared.peer_nodes.with(peer.region, |nodes| {
            let owns = nodes.owners.owned_by(&name).next().is_some();
            nodes.owners.nodes().get(name.as_str()).filter(|_| owns).map(|node| node.addr)
        });
        let Some(addr) = addr else { return };
        match connect(&shared, &peer, addr, shared.tls.client.clone()).await {
            Ok((endpoint, connection, send, frames, hello)) => {
                if hello.shared && hello.node == name {
                    pause = PAUSE_MIN;
                    reason.is_over();
                    serve(&shared, connection, send, frames, &hello).await;
                    tracing::warn!(peer = %peer.name, node = %name, "the link to a peer region's node is down");
                }
                endpoint.close(0u8.into(), b"link ended");
            }
            Err(why) => {
                if reason.is_news(&why) {
                    tracing::warn!(peer = %peer.name, node = %name, %addr, why, "a peer region's node can't be reached; trying on");
                }
            }
        }
        rest(&shared, &mut pause).await;
    }
}

type Opened = (quinn::Endpoint, quinn::Connection, quinn::SendStream, QuicFrames);
type Linked = (quinn::Endpoint, quinn::Connection, quinn::SendStream, QuicFrames, LinkHello);

/// A connection to a peer with its one stream, on which nothing was said yet.
pub(super) async fn open(
    shared: &Arc<Shared>,
    peer: &Peer,
    addr: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Opened, String> {
    let bind = match addr {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let endpoint = quic::client_endpoint(&shared.env, bind).map_err(|e| e.to_string())?;
    let config = quic::client_config(&shared.env, tls, &quic::QuicParams::node()).map_err(|e| e.to_string())?;
    let handshake = async {
        let connecting = endpoint.connect_with(config, addr, &peer.server_name).map_err(|e| e.to_string())?;
        let connection = connecting.await.map_err(|e| certificate_refused(&e).unwrap_or_else(|| e.to_string()))?;
        let (send, recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        Ok((connection, send, reader(recv)))
    };
    match tokio::time::timeout(CONNECT_WITHIN, handshake).await {
        Ok(Ok((connection, send, frames))) => Ok((endpoint, connection, send, frames)),
        Ok(Err(why)) => {
            endpoint.close(0u8.into(), b"not connected");
            Err(why)
        }
        Err(_late) => {
            endpoint.close(0u8.into(), b"too late");
            Err(format!("no answer within {} s", CONNECT_WITHIN.as_secs()))
        }
    }
}

async fn connect(
    shared: &Arc<Shared>,
    peer: &Peer,
    addr: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Linked, String> {
    let (endpoint, connection, mut send, mut frames) = open(shared, peer, addr, tls).await?;
    let greeted = async {
        let own = hello(shared, peer.region).await.ok_or_else(|| "this region has stopped".to_owned())?;
        let said = (own.start, own.era);
        let frame = NodeFrame { body: Some(Body::LinkHello(own)) };
        tern_net::frames::write_one(&mut send, &frame).await.map_err(|e| e.to_string())?;
        loop {
            match frames.next::<NodeFrame>().await.map_err(|e| e.to_string())?.and_then(|f| f.body) {
                // It is starting, and wants to know what this region has heard of it.
                Some(Body::LinkAsk(_)) => {
                    let told = shared.heard_of(peer.region).await;
                    let frame = NodeFrame { body: Some(Body::LinkTold(told)) };
                    tern_net::frames::write_one(&mut send, &frame).await.map_err(|e| e.to_string())?;
                }
                Some(Body::LinkHello(theirs)) => {
                    check(shared, &theirs).map_err(|r| r.message)?;
                    if theirs.region != u32::from(peer.region) {
                        return Err(format!("{addr} is region {}, not {}", theirs.region, peer.region));
                    }
                    if settle_start(shared, theirs.you.as_ref()).await?.start != said.0 {
                        return Err("the peer has heard of as late a start; saying hello again with a later".to_owned());
                    }
                    return Ok(theirs);
                }
                Some(Body::Refused(refused)) => return Err(format!("refused: {}", refused.message)),
                _ => return Err("the peer did not say hello".to_owned()),
            }
        }
    };
    let why = match tokio::time::timeout(HELLO_WITHIN, greeted).await {
        Ok(Ok(theirs)) => return Ok((endpoint, connection, send, frames, theirs)),
        Ok(Err(why)) => why,
        Err(_late) => format!("no hello within {} s", HELLO_WITHIN.as_secs()),
    };
    // That its certificate is not accepted a node hears after its own part of the handshake.
    let why = connection.close_reason().as_ref().and_then(certificate_refused).unwrap_or(why);
    endpoint.close(0u8.into(), why.as_bytes());
    Err(why)
}

/// What this region says first; waits until its era is decided.
pub(super) async fn hello(shared: &Shared, to: u8) -> Option<LinkHello> {
    let life = shared.decided().await?;
    Some(LinkHello {
        version: NODE_VERSION,
        oldest: shared.config.oldest_version,
        region: u32::from(shared.config.region),
        region_name: shared.config.name.clone(),
        era: life.era,
        start: life.start,
        commit: shared.commit.load(Ordering::Acquire),
        node: shared.config.node.clone(),
        deployment: shared.config.deployment.to_vec().into(),
        incomplete: shared.is_marked(to),
        you: Some(shared.eras.tell(to, shared.env.clock.now())),
        shared: shared.config.sharing.is_some(),
    })
}

/// Starts order a region's eras for its peers. A store that was made anew or set back counts from where it stands,
/// so a peer may have heard of as late a start of another era: then this life takes a later one, durably, before
/// it says hello. Not while that other life is linked: then two processes have this region's id.
pub(super) async fn settle_start(shared: &Shared, heard: Option<&LinkTold>) -> Result<Life, String> {
    let Some(life) = shared.decided().await else { return Err("this region has stopped".to_owned()) };
    let Some(heard) = heard.filter(|h| h.known && h.era != life.era && h.start >= life.start) else { return Ok(life) };
    if heard.linked {
        let why = "another process is linked as this region, from a store of its own: stop one of them, and give each \
                   region its own id and its own store";
        tracing::error!(region = shared.config.region, why);
        return Err(why.to_owned());
    }
    let start = heard.start.checked_add(1).ok_or_else(|| "a start that can't be".to_owned())?;
    start::raise(&*shared.store, start).await.map_err(|e| e.to_string())?;
    shared.push(Input::StartRaised(start));
    let mut settled = life;
    shared.life.send_modify(|life| {
        if let Some(life) = life {
            life.start = life.start.max(start);
            settled = *life;
        }
    });
    Ok(settled)
}

fn refuse(message: String) -> Refused {
    Refused { code: 1, message }
}

/// Whether a node that calls itself a region of this deployment is one.
fn check_peer(shared: &Shared, speaks: Speaks, deployment: &[u8], region: u32) -> Result<u8, Refused> {
    let config = &shared.config;
    speaks.with(config.oldest_version).map_err(refuse)?;
    if deployment != config.deployment && !config.deployment_also.iter().any(|also| deployment == also) {
        return Err(refuse(
            "another deployment: its name or its receipt key differs; all regions share both".to_owned(),
        ));
    }
    let region = u8::try_from(region).unwrap_or(0);
    if region == shared.config.region {
        return Err(refuse(format!("region {region} is this region's own id; give each region its own")));
    }
    if !shared.is_peer(region) {
        return Err(refuse(format!("region {region} is not among this region's peers; add it to `peers`")));
    }
    Ok(region)
}

/// Whether a region may ask.
pub(super) fn check_ask(shared: &Shared, ask: &LinkAsk) -> Result<u8, Refused> {
    check_peer(shared, Speaks { version: ask.version, oldest: ask.oldest }, &ask.deployment, ask.region)
}

/// Whether a peer may link, and what its operator should change if not.
pub(super) fn check(shared: &Shared, theirs: &LinkHello) -> Result<u8, Refused> {
    let region = check_peer(
        shared,
        Speaks { version: theirs.version, oldest: theirs.oldest },
        &theirs.deployment,
        theirs.region,
    )?;
    if shared.eras.is_ghost(region, theirs.start, theirs.era, shared.env.clock.now()) {
        return Err(refuse(format!(
            "region {region} is linked already, from another store and a later start: is a second process running \
             with its id, or a copy of its store? Stop one of them"
        )));
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
    let LinkHello { start, era, commit, incomplete, .. } = *theirs;
    shared.eras.up(region, link, start, era, commit, shared.env.clock.now());
    let hello = PeerHello { start, era, commit, incomplete };
    let node = theirs.shared.then(|| theirs.node.clone());
    shared.peer_nodes.with(region, |nodes| {
        if nodes.up == 0 {
            // Its store may have been made anew since, with epochs that begin again.
            nodes.owners = Owners::default();
        }
        nodes.up += 1;
    });
    shared.push(Input::PeerUp { region, link, node, hello, sender: sender.clone() });
    let writer = sender.clone();
    shared.env.tasks.spawn(async move { writer.write(send).await });
    shared.env.tasks.spawn(beat(shared.clone(), region, sender.clone(), connection.clone()));
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
                let commit = received.iter().filter_map(|body| match body {
                    Body::Beat(beat) => Some(beat.commit),
                    _ => None,
                });
                shared.eras.heard(region, link, commit.max().unwrap_or(0), now);
                let frames: Vec<Body> = received
                    .into_iter()
                    .filter(|body| match body {
                        Body::Load(report) => {
                            // A peer speaks for its own edges only.
                            let own = report.edges.iter().filter(|e| e.region == theirs.region);
                            own.for_each(|load| shared.loads.report(load, now));
                            report.orders.iter().for_each(|order| shared.loads.order(order));
                            false
                        }
                        Body::Owners(owners) => {
                            owners_told(shared, region, owners);
                            true
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
    shared.peer_nodes.with(region, |nodes| nodes.up -= 1);
    shared.eras.down(region, link);
    shared.push(Input::PeerDown { region, link });
}

/// A node of a peer region says who owns what there: its other nodes are linked too. What can't be is reported by the
/// core task, which is handed it as well.
fn owners_told(shared: &Arc<Shared>, region: RegionId, told: &tern_core::wire::node_v1::Owners) {
    if shared.peer_nodes.with(region, |nodes| nodes.owners.told(told)).is_ok() {
        keep_nodes(shared, region);
    }
}

/// Once a second: alive, the load of this region's edges, and what operators have ordered.
async fn beat(shared: Arc<Shared>, region: RegionId, sender: Arc<LinkSender>, connection: quinn::Connection) {
    loop {
        if !shared.is_peer(region) {
            connection.close(0u8.into(), b"no peer any more");
            return;
        }
        let edges = shared.loads.own_loads(shared.config.region, shared.env.clock.now());
        let commit = shared.commit.load(Ordering::Acquire);
        let (owned, incomplete) = {
            let said = shared.said_of_shares.lock().unwrap_or_else(PoisonError::into_inner);
            (said.owned.clone(), said.incomplete.get(&region).cloned().unwrap_or_default())
        };
        let beat = Beat { wall_ms: shared.env.clock.wall_ms(), commit, owned, incomplete, ..Beat::default() };
        let orders = shared.loads.orders();
        sender.send([Body::Beat(beat), Body::Load(LoadReport { edges, orders })]);
        tokio::select! {
            biased;
            _reason = connection.closed() => return,
            () = tokio::time::sleep(BEAT_EVERY) => {}
        }
    }
}
