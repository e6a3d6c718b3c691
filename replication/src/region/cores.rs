//! Core links: between the core nodes of one region.
//!
//! Of two nodes the one whose name comes first dials. Both say hello; then each tells what it knows of who owns what, and
//! hands over what the machine has for the other. A link that breaks loses what was on its way; all of it is said again
//! (`tern_core::node::siblings`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tern_core::leases::NodeLease;
use tern_core::slots::Share;
use tern_core::wire::NODE_VERSION;
use tern_core::wire::node_v1::{CoreHello, NodeFrame, Refused, node_frame::Body};
use tern_core::wire::versions::Speaks;
use tern_net::frames::{QuicFrames, write_one};
use tern_net::quic;
use tern_net::refusal::certificate_refused;

use super::Shared;
use super::core_task::Input;
use super::link::{LinkSender, Why, next_frames, reader};

/// Pause after a link was lost or could not be had, at most; drawn at random below it.
const PAUSE: Duration = Duration::from_millis(500);
/// A node that does not finish its handshake and hello by then is tried again.
const HELLO_WITHIN: Duration = Duration::from_secs(3);
static LINKS: AtomicU64 = AtomicU64::new(1);

/// Sees to it that there is a link to each of these nodes.
pub(super) fn keep(shared: &Arc<Shared>, nodes: &[NodeLease]) {
    let own = shared.config.node.as_str();
    for node in nodes.iter().filter(|node| node.name.as_str() > own) {
        let mut dialled = shared.dialled.lock().unwrap_or_else(PoisonError::into_inner);
        if dialled.insert(node.name.clone()) {
            shared.env.tasks.spawn(dial(shared.clone(), node.name.clone()));
        }
    }
}

/// Keeps a link to a node for as long as it is one of the region's.
async fn dial(shared: Arc<Shared>, name: String) {
    let mut reason = Why::default();
    loop {
        let to = {
            let owners = shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
            owners.nodes().get(name.as_str()).map(|node| node.addr)
        };
        let Some(to) = to else { break };
        match connect(&shared, &name, to).await {
            Ok((endpoint, connection, send, frames)) => {
                reason.is_over();
                serve(&shared, connection, send, frames, &name).await;
                endpoint.close(0u8.into(), b"link ended");
            }
            Err(why) => {
                if reason.is_news(&why) {
                    tracing::warn!(node = %name, addr = %to, why, "a core node of this region can't be reached; trying on");
                }
            }
        }
        let pause = shared.env.rng.below(u64::try_from(PAUSE.as_micros()).unwrap_or(u64::MAX));
        tokio::time::sleep(Duration::from_micros(pause)).await;
    }
    shared.dialled.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
}

type Linked = (quinn::Endpoint, quinn::Connection, quinn::SendStream, QuicFrames);

async fn connect(shared: &Arc<Shared>, name: &str, to: SocketAddr) -> Result<Linked, String> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let endpoint = quic::client_endpoint(&shared.env, any).map_err(|e| e.to_string())?;
    let tls = shared.tls.client.clone();
    let config = quic::client_config(&shared.env, tls, &quic::QuicParams::node()).map_err(|e| e.to_string())?;
    let greeted = async {
        let connecting = endpoint.connect_with(config, to, &shared.config.server_name).map_err(|e| e.to_string())?;
        let connection = connecting.await.map_err(|e| certificate_refused(&e).unwrap_or_else(|| e.to_string()))?;
        // That its certificate is not accepted a node hears after its own part of the handshake.
        let refused = |why: String| connection.close_reason().as_ref().and_then(certificate_refused).unwrap_or(why);
        let (mut send, recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        let mut frames = reader(recv);
        let frame = NodeFrame { body: Some(Body::CoreHello(hello(shared))) };
        write_one(&mut send, &frame).await.map_err(|e| refused(e.to_string()))?;
        match frames.next::<NodeFrame>().await.map_err(|e| refused(e.to_string()))?.and_then(|f| f.body) {
            Some(Body::CoreHello(theirs)) => {
                check(shared, &theirs).map_err(|refused| refused.message)?;
                if theirs.node != name {
                    return Err(format!("{to} is the node {}, not {name}", theirs.node));
                }
                Ok((connection, send, frames))
            }
            Some(Body::Refused(refused)) => Err(format!("refused: {}", refused.message)),
            _ => Err("it did not say hello".to_owned()),
        }
    };
    let why = match tokio::time::timeout(HELLO_WITHIN, greeted).await {
        Ok(Ok((connection, send, frames))) => return Ok((endpoint, connection, send, frames)),
        Ok(Err(why)) => why,
        Err(_late) => format!("no hello within {} s", HELLO_WITHIN.as_secs()),
    };
    endpoint.close(0u8.into(), why.as_bytes());
    Err(why)
}

fn hello(shared: &Shared) -> CoreHello {
    CoreHello {
        version: NODE_VERSION,
        oldest: shared.config.oldest_version,
        region: u32::from(shared.config.region),
        node: shared.config.node.clone(),
        generation: 0,
        deployment: shared.config.deployment.to_vec().into(),
    }
}

/// Whether a node may share this region, and what its operator should change if not.
fn check(shared: &Shared, theirs: &CoreHello) -> Result<(), Refused> {
    let refuse = |message: String| Err(Refused { code: 1, message });
    let config = &shared.config;
    if let Err(why) = (Speaks { version: theirs.version, oldest: theirs.oldest }).with(config.oldest_version) {
        return refuse(why);
    }
    let same = |deployment: &[u8; 32]| theirs.deployment[..] == deployment[..];
    if !same(&config.deployment) && !config.deployment_also.iter().any(same) {
        return refuse("another deployment: its name or its receipt key differs".to_owned());
    }
    if theirs.region != u32::from(config.region) {
        return refuse(format!(
            "it is a core node of region {}, and this one of region {}",
            theirs.region, config.region
        ));
    }
    if theirs.node == config.node {
        return refuse(format!("another core node has the name \"{}\" too; give each its own", config.node));
    }
    if config.sharing.is_none() {
        return refuse("this region's store is its own: it has one core node; see store.kind".to_owned());
    }
    Ok(())
}

/// A node that has dialled.
pub(super) async fn accepted(
    shared: &Arc<Shared>,
    connection: quinn::Connection,
    mut send: quinn::SendStream,
    frames: QuicFrames,
    theirs: CoreHello,
) -> Result<(), Refused> {
    check(shared, &theirs)?;
    let frame = NodeFrame { body: Some(Body::CoreHello(hello(shared))) };
    if write_one(&mut send, &frame).await.is_ok() {
        serve(shared, connection, send, frames, &theirs.node).await;
    }
    Ok(())
}

/// Reads and writes until the link ends.
async fn serve(
    shared: &Arc<Shared>,
    connection: quinn::Connection,
    send: quinn::SendStream,
    mut frames: QuicFrames,
    name: &str,
) {
    let core = LINKS.fetch_add(1, Ordering::Relaxed);
    let sender = Arc::new(LinkSender::new(connection.clone()));
    tracing::info!(node = name, "linked to a core node of this region");
    {
        let owners = shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send([Body::Owners(owners.to_wire())]);
    }
    let old =
        shared.cores.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), (core, sender.clone()));
    if let Some((_, old)) = old {
        old.close("a newer link of this node took over");
    }
    shared.push(Input::CoreUp { core, name: name.to_owned(), sender: sender.clone() });
    let writer = sender.clone();
    shared.env.tasks.spawn(async move { writer.write(send).await });
    loop {
        let received = tokio::select! {
            biased;
            received = next_frames(&mut frames) => received,
            _reason = connection.closed() => break,
        };
        match received {
            Ok(received) if received.is_empty() => break,
            Ok(received) => {
                let mut rest = Vec::with_capacity(received.len());
                for body in received {
                    match body {
                        Body::Owners(told) => owners_told(shared, name, &told),
                        body => rest.push(body),
                    }
                }
                if !rest.is_empty() {
                    shared.push(Input::CoreFrames { core, frames: rest });
                }
            }
            Err(error) => {
                tracing::warn!(node = name, %error, "a core link is not readable");
                break;
            }
        }
    }
    sender.close("link ended");
    {
        let mut cores = shared.cores.lock().unwrap_or_else(PoisonError::into_inner);
        if cores.get(name).is_some_and(|(current, _)| *current == core) {
            cores.remove(name);
        }
    }
    shared.push(Input::CoreDown { core });
    tracing::info!(node = name, "the link to a core node of this region is down");
}

/// Another node knows better who owns something.
fn owners_told(shared: &Arc<Shared>, name: &str, told: &tern_core::wire::node_v1::Owners) {
    let changed = shared.owners.lock().unwrap_or_else(PoisonError::into_inner).told(told);
    // What was said to a new owner before it knew that it was one was lost; its own word is that it knows.
    let own = told.shares.iter().filter(|share| share.node == name);
    let own = own.filter_map(|share| Some((Share::new(u16::try_from(share.share).ok()?)?, share.epoch)));
    let own: BTreeMap<Share, u64> = own.collect();
    {
        let mut taken = shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for (share, epoch) in &own {
            let known = taken.entry(*share).or_default();
            *known = (*known).max(*epoch);
        }
    }
    match changed.map(|changed| changed.into_iter().chain(own.into_keys()).collect::<BTreeSet<_>>()) {
        Ok(changed) if changed.is_empty() => {}
        Ok(changed) => {
            shared.push(Input::Moved(changed.into_iter().collect()));
            // Something may be this node's now.
            shared.look.notify_one();
        }
        Err(refusal) => tracing::warn!(node = name, %refusal, "what a core node says of owners can't be"),
    }
}
