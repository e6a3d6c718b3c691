//! `tern edge`: a further edge of a region; and the edge that a region's own process has.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};
use tern_core::clock::Entropy;
use tern_core::edge_api::{CorePort, EdgePort};
use tern_core::orders::Target;
use tern_core::wire::{ALPN_CLIENT, v1};
use tern_edge::{Cores, Edge, EdgeConfig, EdgeLimits, EdgeMetrics, TokenKeys, Tuning};
use tern_ipconf::LoadTable;
use tern_net::reset::ResetKey;
use tern_net::resume::Tickets;
use tern_replication::gossip::LoadSource;
use tokio::sync::watch;
use tracing::Instrument;

use crate::cli::{Global, RoleArgs};
use crate::config::scope::Role;
use crate::config::{ConfigError, Settings};
use crate::exit::Failure;
use crate::fleet::Ready;
use crate::gossip::{self, ToTable};
use crate::logging;
use crate::node::Node;
use crate::operations::{Operations, Origins};
use crate::orders::Board;
use crate::orders::desk::Desk;
use crate::orders::leaving::Leaving;
use crate::pki::region_server_name;
use crate::process;
use crate::reload::Part;
use crate::stop::Stop;

/// File descriptors that clients on TCP leave to this process: listeners, links, the store's files, requests of
/// operators and dispatch, with room.
const DESCRIPTORS_KEPT: u64 = 256;
/// How often the edge is told how busy this process is.
const CPU_EVERY: Duration = Duration::from_secs(1);
/// How long an edge that starts waits for its core before it serves without one. Clients that came before
/// would be turned away.
const CORE_WITHIN: Duration = Duration::from_secs(10);
/// How often it looks.
const CORE_POLL: Duration = Duration::from_millis(20);

/// Runs an edge until told to stop.
pub fn run(global: &Global, args: &RoleArgs) -> Result<(), Failure> {
    let sources = crate::sources(global, &[])?;
    let settings = sources.load()?;
    let log = logging::start(&settings.log_level, settings.log_json)?;
    if settings.core.is_empty() {
        let message = "core is empty: give the node addresses of the region's core, such as [\"192.0.2.1:7412\"]";
        return Err(ConfigError(vec![message.into()]).into());
    }
    gossip::check(Role::Edge, &settings)?;
    crate::block_on(async {
        let mut stop = Stop::watch(args.stop_with_stdin)?;
        let node = Node::new(settings, Role::Edge)?;
        serve(&node, &mut stop, Origins { sources, log }, global.json).instrument(node.span.clone()).await
    })
}

async fn serve(node: &Node, stop: &mut Stop, origins: Origins, json: bool) -> Result<(), Failure> {
    let settings = &node.settings;
    let (operations, hangup) = Operations::start(node, origins).await?;
    let mut registry = Registry::default();
    let (_, tls) = node.node_tls()?;
    let edge = OwnEdge::new(node, &mut registry)?;
    let mut cores = Vec::new();
    for core in &settings.core {
        cores.extend(node.resolve(core).await?);
    }
    let core_name = region_server_name(&node.region_name);
    let core = Cores::start(node.env.clone(), cores, core_name, tls, edge.edge.clone());
    operations.health.phase("linking to the core");
    wait_for(&*core).await;
    operations.health.phase("listening");
    // Where its clients go when it drains.
    let others = LoadTable::new();
    let board = Board::open(node, &others)?;
    let (table, name, region, clock) = (others.clone(), node.name.clone(), node.region, node.env.clock.clone());
    let beside =
        move |whole: bool| if whole { Vec::new() } else { gossip::alternates(&table, region, &name, clock.now()) };
    edge.obey(node, &operations, &board, beside, |_left| {});
    let client = edge.serve(node, core.clone()).await?;
    operations.health.needs("core", move || match (core.reachable(), core.whole()) {
        (true, true) => Ok(()),
        (true, false) => Err("some of its nodes can't be reached, and nobody has taken their place".to_owned()),
        (false, _) => Err("it can't be reached".to_owned()),
    });
    edge.add_parts(&operations);
    let desk = Desk::new(node, &operations, &board, &others, Some(edge.load()));
    operations.publish_orders(&desk);
    let watcher = Arc::new(ToTable { loads: others.clone(), direct: Arc::default(), board });
    let gossip = Arc::new(gossip::start(node, Some(edge.load()), watcher, &mut registry).await?);
    desk.attach_gossip(gossip.clone());
    gossip::add_part(&operations, &gossip);
    operations.ready(node, hangup, registry, None);
    let (admin, heard) = (Some(operations.admin), Some(gossip.local_addr()));
    Ready { ready: node.name.clone(), client: Some(client), admin, gossip: heard, ..Ready::default() }.print(json);

    let reason = stop.requested().await;
    tracing::info!(reason, "draining: clients are sent elsewhere; a second signal stops at once");
    let settings = operations.reload.settings();
    operations.stopping(settings.edge_drain_window);
    let alternates = gossip::alternates(&others, node.region, &node.name, node.env.clock.now());
    tokio::select! {
        biased;
        _ = stop.requested() => tracing::warn!("stopped without draining"),
        () = edge.drain(&settings, alternates) => tracing::info!("stopped"),
    }
    gossip.leave().await;
    Ok(())
}

/// Waits until an edge that starts may let clients in, but not for ever.
pub async fn wait_for(core: &dyn CorePort) {
    let found = async {
        while !core.whole() {
            tokio::time::sleep(CORE_POLL).await;
        }
    };
    if tokio::time::timeout(CORE_WITHIN, found).await.is_err() {
        tracing::warn!("the core was not reached yet; clients are turned away until it is");
    }
}

/// An edge of this process.
#[derive(Debug)]
pub struct OwnEdge {
    pub(crate) edge: Arc<Edge>,
    tls: Arc<rustls::ServerConfig>,
    tickets_file: PathBuf,
    rng: Arc<Entropy>,
    /// The process ends: what becomes of clients is no matter of orders any more.
    ending: watch::Sender<bool>,
}

impl OwnEdge {
    /// Reads keys and certificates; nothing listens yet.
    pub fn new(node: &Node, registry: &mut Registry) -> Result<Self> {
        let settings = &node.settings;
        let keys = TokenKeys::from_file(&token_keys(settings)).context("set tokens.file, or run `tern pki`")?;
        let tls = node.public_tls(&[ALPN_CLIENT])?;
        let config = config(node)?;
        let edge = Edge::new(node.env.clone(), config, keys, EdgeMetrics::register(registry));
        Ok(Self {
            edge,
            tls,
            tickets_file: tickets_file(node),
            rng: node.env.rng.clone(),
            ending: watch::Sender::new(false),
        })
    }

    /// The edge as the core sees it.
    pub fn port(&self) -> Arc<dyn EdgePort> {
        self.edge.clone()
    }

    /// What the edge says of its load.
    pub fn load(&self) -> LoadSource {
        let edge = self.edge.clone();
        Arc::new(move || edge.load())
    }

    /// Serves clients, and returns where.
    pub async fn serve(&self, node: &Node, core: Arc<dyn CorePort>) -> Result<SocketAddr> {
        let bound = self.edge.run(core, self.tls.clone()).await.context("clients can't be served")?;
        node.env.tasks.spawn(tell_cpu(self.edge.clone()));
        Ok(bound.local_addr)
    }

    /// Sends clients away, and takes them again, as operators order. `alternates`: where to, as "ip:port", if this edge or
    /// the whole region is to be left, unless the configuration names others. `left` is told when all clients have left
    /// for this node's own sake, and when they may come back.
    pub fn obey(
        &self,
        node: &Node,
        operations: &Operations,
        board: &Arc<Board>,
        alternates: impl Fn(bool) -> Vec<String> + Send + Sync + 'static,
        left: impl Fn(bool) + Send + Sync + 'static,
    ) {
        let reload = operations.reload.clone();
        let orders = Leaving {
            board: board.clone(),
            edge: self.edge.clone(),
            reload: operations.reload.clone(),
            alternates: Box::new(move |whole| named(&reload.settings()).unwrap_or_else(|| alternates(whole))),
            left: Box::new(left),
            tell: Box::new(operations.status()),
        };
        node.env.tasks.spawn(orders.follow(self.ending.subscribe()));
        let own = board.clone();
        let name = node.name.clone();
        operations.health.needs("orders", move || match own.own_node() {
            Some(_) => Err(format!("drained by an operator; tern drain {name} --undo takes it back")),
            None => Ok(()),
        });
        let (own, edge) = (board.clone(), self.edge.clone());
        operations.health.notes(move || match own.own() {
            Some((Target { node: None, .. }, _)) => {
                Some(format!("cordoned: the region takes no clients; {} are left on this edge", edge.connections()))
            }
            _ => None,
        });
    }

    /// Adds what can be changed of the edge while it runs.
    pub fn add_parts(&self, operations: &Operations) {
        let edge = self.edge.clone();
        operations.reload.add(Part::new("edge", TUNED, move |settings| {
            edge.tune(tuning(settings).map_err(|error| format!("{error:#}"))?);
            Ok(())
        }));
        let edge = self.edge.clone();
        let keys = Part::new("token keys", &["tokens.file"], move |settings| {
            edge.set_keys(TokenKeys::from_file(&token_keys(settings)).map_err(|error| error.to_string())?);
            Ok(())
        });
        operations.reload.add(keys.with_files(|settings| vec![token_keys(settings)]));
        // Looked up when it drains.
        operations.reload.add(Part::new("drain", &["edge.drain_window", "edge.alternates"], |_| Ok(())));
    }

    /// Sends the clients away, to `alternates` ("ip:port") unless the operator names others, and returns when
    /// they are gone.
    pub async fn drain(&self, settings: &Settings, alternates: Vec<String>) {
        self.ending.send_replace(true);
        self.edge.set_alternates(named(settings).unwrap_or(alternates));
        self.edge.drain(settings.edge_drain_window).await;
        self.edge.stop();
        self.leave_tickets();
    }

    /// For the next start, if there is one soon: clients come back one round trip sooner.
    fn leave_tickets(&self) {
        let config = self.edge.config();
        let Some(key) = &config.reset_key else { return };
        if let Err(error) = config.tickets.leave(&self.tickets_file, key, &made_for(), &self.rng) {
            let file = self.tickets_file.display();
            tracing::warn!(%file, %error, "sessions can't be kept for the next start, which costs clients a round trip");
        }
    }
}

/// Where the configuration sends clients, if it says so.
fn named(settings: &Settings) -> Option<Vec<String>> {
    let named: Vec<String> = settings.edge_alternates.iter().map(ToString::to_string).collect();
    Some(named).filter(|named| !named.is_empty())
}

async fn tell_cpu(edge: Arc<Edge>) {
    let mut meter = process::CpuMeter::new();
    loop {
        tokio::time::sleep(CPU_EVERY).await;
        if let Some(permille) = meter.permille(CPU_EVERY) {
            edge.set_cpu_permille(permille);
        }
    }
}

/// Keys of [`tuning`].
const TUNED: &[&str] = &[
    "advertise",
    "failure_domain",
    "edge.capacity",
    "heartbeat.foreground",
    "heartbeat.background_min",
    "heartbeat.background_max",
    "limits.sends_per_second",
    "limits.sends_burst",
    "limits.failed_handshakes_per_second",
    "limits.hello_timeout",
];

/// TCP connections that clients may have: all that the process may open but what it needs itself.
fn tcp_connections() -> u32 {
    let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let left = open_files.saturating_sub(DESCRIPTORS_KEPT).max(open_files / 2);
    u32::try_from(left).unwrap_or(u32::MAX)
}

/// The key by which clients of this edge learn of its death when it is back. An edge without one serves as well.
fn reset_key(node: &Node) -> Option<ResetKey> {
    let file = node.settings.data.join(format!("{}.reset", node.name));
    match ResetKey::kept_in(&file, &node.env.rng) {
        Ok(key) => Some(key),
        Err(error) => {
            tracing::warn!(
                file = %file.display(), %error,
                "the key of stateless resets can't be kept: after a crash, clients on QUIC notice only by their own \
                 timers; make the data directory writable for this process"
            );
            None
        }
    }
}

/// Where the tickets of clients are while this node is stopped.
fn tickets_file(node: &Node) -> PathBuf {
    node.settings.data.join(format!("{}.tickets", node.name))
}

/// What client and edge have agreed on where a session is taken up again.
fn made_for() -> String {
    format!("{:?}", tern_edge::quic_params())
}

/// With which clients of the last start come back one round trip sooner.
fn tickets(node: &Node, key: Option<&ResetKey>) -> Arc<Tickets> {
    let tickets = Tickets::new(usize::try_from(node.settings.edge_tickets).unwrap_or(usize::MAX));
    let file = tickets_file(node);
    if let Some(Err(error)) = key.map(|key| tickets.take_up(&file, key, &made_for())) {
        tracing::warn!(file = %file.display(), %error, "sessions of the last start are not taken up again");
    }
    tickets
}

/// What can be changed while the edge runs.
fn tuning(settings: &Settings) -> Result<Tuning> {
    Ok(Tuning {
        advertise: settings.advertised()?,
        failure_domain: settings.failure_domain()?,
        capacity: settings.edge_capacity,
        heartbeat: Some(heartbeat(settings)),
        hello_timeout: settings.limit_hello_timeout,
        sends_per_second: settings.limit_sends_per_second,
        sends_burst: settings.limit_sends_burst,
        failed_handshakes_per_second: settings.limit_failed_handshakes,
        failed_handshakes_burst: settings.limit_failed_handshakes.saturating_mul(2),
    })
}

/// Where the keys that tokens are checked with are.
fn token_keys(settings: &Settings) -> PathBuf {
    settings.path(&settings.tokens_file, "tokens.jwk")
}

fn config(node: &Node) -> Result<EdgeConfig> {
    let settings = &node.settings;
    let at = settings.region_at()?;
    let reset_key = reset_key(node);
    Ok(EdgeConfig {
        name: node.name.clone(),
        region: node.region,
        region_name: node.region_name.clone(),
        listen: settings.client_listen(),
        listen_also: settings.listen_also.clone(),
        advertise: settings.advertised()?,
        audience: settings.deployment.clone(),
        capacity: settings.edge_capacity,
        failure_domain: settings.failure_domain()?,
        latitude: at.latitude,
        longitude: at.longitude,
        heartbeat: Some(heartbeat(settings)),
        limits: EdgeLimits {
            hello_timeout: settings.limit_hello_timeout,
            sends_per_second: settings.limit_sends_per_second,
            sends_burst: settings.limit_sends_burst,
            failed_handshakes_per_second: settings.limit_failed_handshakes,
            failed_handshakes_burst: settings.limit_failed_handshakes.saturating_mul(2),
            tcp_connections: tcp_connections(),
            core_restart: settings.edge_core_restart,
            ..EdgeLimits::default()
        },
        trusted_proxies: settings.edge_trusted_proxies.clone(),
        origins: settings.edge_origins.iter().map(|origin| origin.0.clone()).collect(),
        tickets: tickets(node, reset_key.as_ref()),
        reset_key,
        ..EdgeConfig::default()
    })
}

/// How often clients are told to send when idle.
pub fn heartbeat(settings: &Settings) -> v1::Heartbeat {
    v1::Heartbeat {
        foreground_ms: crate::millis(settings.heartbeat_foreground),
        background_ms_min: crate::millis(settings.heartbeat_background_min),
        background_ms_max: crate::millis(settings.heartbeat_background_max),
    }
}
