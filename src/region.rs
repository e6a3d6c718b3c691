//! `tern region`: one process with all roles of a region: store, core, links to other regions, dispatch, and
//! an edge of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use prometheus_client::registry::Registry;
use prost::Message;
use tern_core::edge_api::CorePort;
use tern_core::ids::Region as RegionId;
use tern_core::wire::node_v1::{EdgeLoad, LoadReport, Order};
use tern_edge::Cores;
use tern_ipconf::LoadTable;
use tern_net::env::Env;
use tern_replication::gossip::GossipNode;
use tern_replication::region::{LoadExchange, NodeTls, Peer, Region, RegionConfig};
use tracing::Instrument;

use crate::admin;
use crate::backend::Backend;
use crate::cli::{Global, RegionArgs};
use crate::config::Settings;
use crate::config::scope::Role;
use crate::edge::{OwnEdge, heartbeat, wait_for};
use crate::exit::Failure;
use crate::fleet::Ready;
use crate::gossip::{self, Direct, ToTable};
use crate::ipconf;
use crate::logging;
use crate::node::{Node, resolve};
use crate::operations::{Operations, Origins};
use crate::orders::desk::Desk;
use crate::orders::{Board, Hearer};
use crate::pki::region_server_name;
use crate::reload::{Part, Reloader};
use crate::routes;
use crate::stop::Stop;

/// How long a stopping region waits until its peers hold what it has acked. A peer that is down would make
/// it wait for ever; what is missing is shipped after the next start.
const LINK_ACKS_WITHIN: Duration = Duration::from_secs(5);

/// Runs a region until told to stop.
pub fn run(global: &Global, args: &RegionArgs) -> Result<(), Failure> {
    let mut flags = crate::geoip_flag(args.geoip.as_deref());
    if args.init {
        flags.push(("--init", "region.init", "true".to_owned()));
    }
    let sources = crate::sources(global, &flags)?;
    let settings = sources.load()?;
    let log = logging::start(&settings.log_level, settings.log_json)?;
    gossip::check(Role::Region, &settings)?;
    crate::block_on(async {
        let mut stop = Stop::watch(args.role.stop_with_stdin)?;
        let node = Node::new(settings, Role::Region)?;
        serve(&node, &mut stop, Origins { sources, log }, global.json).instrument(node.span.clone()).await
    })
}

async fn serve(node: &Node, stop: &mut Stop, origins: Origins, json: bool) -> Result<(), Failure> {
    let region = Serving::start(node, origins).await?;
    region.ready.print(json);
    let lost = tokio::select! {
        reason = stop.requested() => {
            tracing::info!(reason, "draining: clients are sent elsewhere; a second signal stops at once");
            false
        }
        () = region.store.hold() => {
            tracing::error!("another process has taken over this region: this one sends its clients elsewhere and ends");
            true
        }
    };
    tokio::select! {
        biased;
        _ = stop.requested() => {
            tracing::warn!("stopped without draining; the next start takes a new era");
            Ok(())
        }
        stopped = region.stop() => match lost {
            true => Err(Failure::Start(anyhow!("another process has taken over this region"))),
            false => stopped.map_err(Failure::from),
        },
    }
}

/// Where clients of this process's edge may go, as "ip:port"; told whether the whole region is to be left.
type Alternates = Arc<dyn Fn(bool) -> Vec<String> + Send + Sync>;

/// Edges of this region, and of others that operators have not told clients to leave.
fn elsewhere(node: &Node, board: &Arc<Board>, loads: &Arc<LoadTable>, reload: &Arc<Reloader>) -> Alternates {
    let (board, loads, clock, reload) = (board.clone(), loads.clone(), node.env.clock.clone(), reload.clone());
    let (region, name) = (node.region, node.name.clone());
    Arc::new(move |whole| {
        let (now, left, settings) = (clock.now(), board.orders().regions_left(), reload.settings());
        let peers: BTreeSet<RegionId> = settings.peers.iter().map(|peer| peer.region).collect();
        let open = peers.into_iter().filter(|peer| !left.contains(peer));
        let others = open.flat_map(|peer| loads.own_loads(peer, now));
        let others = others.filter(|load| !load.draining).flat_map(|load| load.addresses);
        let beside = match whole || left.contains(&region) {
            true => Vec::new(),
            false => gossip::alternates(&loads, region, &name, now),
        };
        beside.into_iter().chain(others).collect()
    })
}

/// A region at work.
struct Serving {
    store: Backend,
    region: Arc<Region>,
    edge: OwnEdge,
    alternates: Alternates,
    gossip: Arc<GossipNode>,
    operations: Operations,
    ready: Ready,
}

impl Serving {
    async fn start(node: &Node, origins: Origins) -> Result<Self> {
        let (operations, hangup) = Operations::start(node, origins).await?;
        let health = &operations.health;
        let mut registry = Registry::default();

        // Everything that can be wrong with files comes before the first socket that others use.
        let (server, client) = node.node_tls()?;
        let mut config = config(node).await?;
        let edge = OwnEdge::new(node, &mut registry)?;
        let gossip = gossip::prepare(node).await?;
        health.phase("connecting to the table of routes");
        let table = routes::open(node).await?;
        health.phase(Backend::opening(node));
        let (store, whole) = Backend::open(node).await?;
        config.store_damaged = !whole;
        store.register_metrics(&mut registry);

        health.phase("confirming the era and taking up what was left to do");
        let loads = LoadTable::new();
        let direct = Arc::new(Direct::default());
        let board = Board::open(node, &loads)?;
        config.sharing = store.sharing(node, board.own_node().is_some());
        let desk = Desk::new(node, &operations, &board, &loads, Some(edge.load()));
        operations.publish_orders(&desk);
        let exchange =
            Loads { table: loads.clone(), region: node.region, direct: direct.clone(), board: board.clone() };
        let exchange = Arc::new(exchange);
        let tls = NodeTls { server, client: client.clone() };
        let region = Region::start(node.env.clone(), config, store.store(), tls, exchange)
            .await
            .context("the region's core can't start")?;
        region.register_metrics(&mut registry);
        if let Some(table) = table {
            routes::keep(table, &region, &mut registry, health);
        }
        desk.attach(region.clone());
        add_peers_part(node, &operations, &region);
        routes::add_part(node, &operations);
        let beside = elsewhere(node, &board, &loads, &operations.reload);
        let drained = region.clone();
        edge.obey(node, &operations, &board, move |whole| beside(whole), move |left| drained.set_drained(left));
        health.phase("listening");
        let client = edge.serve(node, core_of(node, &region, &edge, client).await?).await?;
        let dispatch = ipconf::start(node, &loads, &mut registry, &operations).await?;
        let watcher = Arc::new(ToTable { loads: loads.clone(), direct, board: board.clone() });
        let gossip = Arc::new(gossip::join(node, gossip, Some(edge.load()), watcher, &mut registry)?);
        desk.attach_gossip(gossip.clone());
        gossip::add_part(&operations, &gossip);

        let checked = region.clone();
        health.needs("store", move || match checked.health().0 {
            true => Ok(()),
            false => Err("its last commit failed; see the log".to_owned()),
        });
        store.add_needs(health, node);
        let restored = region.clone();
        health.needs("refill", move || match restored.refilling() {
            (_, false) => Ok(()),
            (_, true) => Err("restored from a backup, and not compared with any peer yet".to_owned()),
        });
        let watched = region.clone();
        health.watches("core", move || watched.core_silence());
        operations.watch_store(node, store.store());
        store.publish(&operations);
        operations.publish_region(&region, node);
        edge.add_parts(&operations);
        let told = own_loads(loads.clone(), node.region, node.env.clone());
        operations.ready(node, hangup, registry, Some(told));
        let ready = Ready {
            ready: node.name.clone(),
            client: Some(client),
            dispatch: Some(dispatch),
            node: Some(region.node_addr()),
            admin: Some(operations.admin),
            gossip: Some(gossip.local_addr()),
        };
        Ok(Self {
            store,
            region,
            edge,
            alternates: elsewhere(node, &board, &loads, &operations.reload),
            gossip,
            operations,
            ready,
        })
    }

    /// Sends clients away, waits until the peers hold everything, and leaves the store clean.
    async fn stop(self) -> Result<()> {
        let settings = self.operations.reload.settings();
        self.operations.stopping(settings.edge_drain_window + LINK_ACKS_WITHIN);
        self.edge.drain(&settings, (self.alternates)(false)).await;
        self.gossip.leave().await;
        if !self.region.stop(LINK_ACKS_WITHIN).await {
            tracing::warn!(
                "some messages are not yet held by every other region; they are shipped after the next start"
            );
        }
        self.store.close().await?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// The core as the process's own edge speaks to it: this one, or this one and the others that share the region.
async fn core_of(
    node: &Node,
    region: &Arc<Region>,
    edge: &OwnEdge,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Arc<dyn CorePort>> {
    if !node.settings.region_shared {
        return Ok(region.attach_edge(edge.port()));
    }
    let welcome = region.welcome().await.context("the region's core has stopped")?;
    let name = region_server_name(&node.region_name);
    let cores = Cores::start(node.env.clone(), Vec::new(), name, tls, edge.edge.clone());
    cores.add_local(welcome, |port| region.attach_edge(port));
    wait_for(&*cores).await;
    Ok(cores)
}

/// The other regions, found by name.
async fn peers(env: &Env, settings: &Settings) -> Result<Vec<Peer>> {
    let mut peers: Vec<Peer> = Vec::new();
    for peer in &settings.peers {
        let addrs = resolve(env, &peer.addr).await?;
        match peers.iter_mut().find(|known| known.region == peer.region) {
            Some(known) => known.addrs.extend(addrs),
            None => peers.push(Peer {
                region: peer.region,
                name: peer.name.clone(),
                addrs,
                server_name: region_server_name(&peer.name),
            }),
        }
    }
    Ok(peers)
}

/// Lets other regions come and go while this one runs.
fn add_peers_part(node: &Node, operations: &Operations, region: &Arc<Region>) {
    let (env, region) = (node.env.clone(), region.clone());
    operations.reload.add(Part::new("peers", &["peers"], move |settings| {
        // A part is applied where blocking is allowed.
        let found = tokio::runtime::Handle::current().block_on(peers(&env, settings));
        let found = found.map_err(|error| format!("{error:#}"))?;
        region.set_peers(found);
        Ok(())
    }));
}

async fn config(node: &Node) -> Result<RegionConfig> {
    let settings = &node.settings;
    let (receipt_key, deployment, deployment_also) = node.receipt_key()?;
    let peers = peers(&node.env, settings).await?;
    Ok(RegionConfig {
        region: node.region,
        name: node.region_name.clone(),
        node: node.name.clone(),
        peers,
        listen: settings.node_listen(),
        direct_salt: node.direct_salt()?,
        receipt_key,
        deployment,
        deployment_also,
        reoffer_after: settings.reoffer_after,
        heartbeat: heartbeat(settings),
        server_name: region_server_name(&node.region_name),
        sharing: None,
        oldest_version: settings.nodes_oldest_version,
        store_damaged: false,
    })
}

/// What edges report goes to dispatch and to the other regions.
#[derive(Debug)]
struct Loads {
    table: Arc<LoadTable>,
    region: RegionId,
    direct: Arc<Direct>,
    board: Arc<Board>,
}

impl LoadExchange for Loads {
    fn report(&self, load: &EdgeLoad, now: Duration) {
        if load.region == u32::from(self.region) {
            self.direct.heard(&load.edge, now);
        }
        if let Err(error) = self.table.report(load, now) {
            tracing::debug!(%error, "a load report was left out");
        }
    }

    fn own_loads(&self, region: RegionId, now: Duration) -> Vec<EdgeLoad> {
        self.table.own_loads(region, now)
    }

    fn orders(&self) -> Vec<Order> {
        self.board.next_for(Hearer::Peers)
    }

    fn order(&self, order: &Order) {
        self.board.heard(order);
    }
}

fn own_loads(loads: Arc<LoadTable>, region: RegionId, env: Env) -> admin::Loads {
    Box::new(move || LoadReport { edges: loads.own_loads(region, env.clock.now()), orders: Vec::new() }.encode_to_vec())
}
