//! Regions in a world, wired as `tern region` wires them: each on one host, with a store in memory that
//! outlives its node, node links to the others, and on request an edge and dispatch for clients.
//!
//! A region's host is `<name>-1` in the group `<name>`, so that latencies are set between groups. Its edge is
//! `<name>-e1`; further edges are hosts of their own in that group, `<name>-e2` and so on, linked to the core as
//! `tern edge` links. Ports are the same everywhere, as every host has its own address.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tern_client::{ClientConfig, DispatchServer, TokenError, TokenProvider, UserId};
use tern_core::clock::Clock;
use tern_core::ids::Region as RegionId;
use tern_core::ranking::Position;
use tern_core::receipt::ReceiptKey;
use tern_core::store::{BoxFut, Durability, Put, Store, StoreError};
use tern_core::wire::{ALPN_CLIENT, node_v1, v1};
use tern_edge::tokens::KeysError;
use tern_edge::{Cores, Edge, EdgeConfig, EdgeError, EdgeMetrics, TokenKeys};
use tern_ipconf::{Dispatch, DispatchConfig, DispatchMetrics, Geo, LoadTable};
use tern_net::env::Env;
use tern_net::http::{ALPN_HTTP, HttpLimits, serve};
use tern_net::tls::{Identity, TlsError, node_client_tls, node_server_tls, server_tls};
use tern_replication::region::{LoadExchange, NodeTls, Peer, Region, RegionConfig, RegionError};
use tern_replication::store::memory::{Latency, MemoryStore};
use tern_replication::store::{REFILL_ALL_KEY, RESTORED_KEY, SharedMemory};

use crate::cores::CoreSeat;
use crate::node::SimNode;
use crate::pki::{Pki, key_bytes};
use crate::random::derive;
use crate::tap::{Tap, TappedStore};
use crate::token::Signer;
use crate::world::World;

/// Where edges listen for clients, over QUIC and TCP.
pub const CLIENT_PORT: u16 = 7400;
/// Where regions answer dispatch requests.
pub const DISPATCH_PORT: u16 = 7401;
/// Where nodes of all regions listen for each other.
pub(crate) const NODE_PORT: u16 = 7402;
/// The deployment, as tokens name it.
pub const AUDIENCE: &str = "sim";
/// How long a token is good: longer than any scenario.
const TOKEN_S: u64 = 24 * 3600;

/// A region to be.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name, also its group's.
    pub name: String,
    /// Its number, 1-255.
    pub number: RegionId,
    /// Of its host.
    pub ip: Ipv4Addr,
    /// Where that stands: latitude and longitude in degrees, north and east positive.
    pub at: (f64, f64),
}

/// What is the same for all regions.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// After so long a silence of a region, clients offer their messages elsewhere.
    pub reoffer_after: Duration,
    /// What clients are told.
    pub heartbeat: v1::Heartbeat,
    /// With it, each region runs an edge and dispatch; it is what dispatch places clients by.
    pub geo: Option<Arc<Geo>>,
    /// How long disks take.
    pub disk: Latency,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            reoffer_after: Duration::from_secs(3),
            heartbeat: v1::Heartbeat { foreground_ms: 25_000, background_ms_min: 60_000, background_ms_max: 300_000 },
            geo: None,
            disk: Latency::default(),
        }
    }
}

/// Why a cluster or a part of it does not start.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no such region.
    #[error("no region {0}")]
    NoRegion(String),
    /// There is no such edge with a host of its own.
    #[error("no edge {0}")]
    NoEdge(String),
    /// Its host can't be added.
    #[error("a host can't be added: {0}")]
    Host(#[from] io::Error),
    /// Certificates can't be made.
    #[error("certificates can't be made: {0}")]
    Pki(#[from] rcgen::Error),
    /// The TLS set-up refuses them.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A disk does not take what is put there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The core does not start.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The key for tokens is none.
    #[error("the key for tokens is none: {0}")]
    Signer(#[from] ring::error::KeyRejected),
    /// The edge refuses the key for tokens.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The edge does not start.
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

/// A region's host, its disk, and its core while it runs.
#[derive(Debug)]
struct Seat {
    site: Site,
    host: SimNode,
    store: MemoryStore,
    core: Option<Arc<Region>>,
    edge: Option<Arc<Edge>>,
    /// Numbers of its receipt keys, the one that signs first.
    receipt_keys: Vec<u64>,
}

/// An edge's host, and the edge while it runs.
#[derive(Debug)]
struct Outpost {
    region: String,
    number: u8,
    host: SimNode,
    edge: Option<Arc<Edge>>,
}

/// Regions in a world.
#[derive(Debug)]
pub struct Cluster {
    seed: u64,
    options: ClusterOptions,
    nodes: Pki,
    public: Pki,
    signer: Arc<Signer>,
    seats: BTreeMap<String, Seat>,
    outposts: BTreeMap<String, Outpost>,
    /// Core nodes of regions that several share, and what they share.
    pub(crate) cores: BTreeMap<String, CoreSeat>,
    pub(crate) shared: BTreeMap<String, SharedMemory>,
    tap: Option<Tap>,
}

impl Cluster {
    /// Adds a host for each region; none runs yet.
    pub fn new(world: &World, sites: &[Site], options: ClusterOptions) -> Result<Self, ClusterError> {
        let mut seats = BTreeMap::new();
        for site in sites {
            let host = world.add_host(&format!("{}-1", site.name), &site.name, site.ip)?;
            let (store, receipt_keys) = (MemoryStore::with_latency(options.disk), vec![0]);
            let seat = Seat { site: site.clone(), host, store, core: None, edge: None, receipt_keys };
            seats.insert(site.name.clone(), seat);
        }
        let seed = world.seed();
        let (nodes, public) = (Pki::new(seed, "nodes")?, Pki::new(seed, "public")?);
        let signer = Arc::new(Signer::new(seed, AUDIENCE)?);
        Ok(Self {
            seed,
            options,
            nodes,
            public,
            signer,
            seats,
            outposts: BTreeMap::new(),
            cores: BTreeMap::new(),
            shared: BTreeMap::new(),
            tap: None,
        })
    }

    /// From a region's next start on it has these receipt keys, told apart by numbers; the first signs.
    pub fn set_receipt_keys(&mut self, name: &str, keys: &[u64]) -> Result<(), ClusterError> {
        self.seat_mut(name)?.receipt_keys = keys.to_vec();
        Ok(())
    }

    /// Starts a region's process on its disk.
    pub async fn start(&mut self, name: &str) -> Result<(), ClusterError> {
        let (core, edge) = self.launch(name).await?;
        let seat = self.seat_mut(name)?;
        (seat.core, seat.edge) = (Some(core), edge);
        Ok(())
    }

    /// Starts two killed or stopped regions at once.
    pub async fn restart_both(&mut self, a: &str, b: &str) -> Result<(), ClusterError> {
        for name in [a, b] {
            self.seat(name)?.host.restart();
        }
        let (first, second) = tokio::join!(self.launch(a), self.launch(b));
        for (name, launched) in [(a, first?), (b, second?)] {
            let seat = self.seat_mut(name)?;
            (seat.core, seat.edge) = (Some(launched.0), launched.1);
        }
        Ok(())
    }

    async fn launch(&self, name: &str) -> Result<(Arc<Region>, Option<Arc<Edge>>), ClusterError> {
        let seat = self.seat(name)?;
        let (env, store) = (seat.host.env(), seat.store.clone());
        let loads = LoadTable::new();
        let exchange = Arc::new(Loads(Arc::clone(&loads)));
        let tls = self.node_tls(name, &env)?;
        let store: Arc<dyn Store> = match &self.tap {
            Some(tap) => Arc::new(TappedStore::new(store, name, Arc::clone(tap))),
            None => Arc::new(store),
        };
        let core = Region::start(env.clone(), self.region_config(seat), store, tls, exchange).await?;
        let edge = match &self.options.geo {
            Some(geo) => Some(self.serve_clients(seat, &env, &core, Arc::clone(geo), loads).await?),
            None => None,
        };
        Ok((core, edge))
    }

    async fn serve_clients(
        &self,
        seat: &Seat,
        env: &Env,
        core: &Arc<Region>,
        geo: Arc<Geo>,
        loads: Arc<LoadTable>,
    ) -> Result<Arc<Edge>, ClusterError> {
        let site = &seat.site;
        let (latitude, longitude) = site.at;
        let edge = self.new_edge(site, 1, IpAddr::V4(site.ip), env)?;
        let port = core.attach_edge(Arc::clone(&edge) as _);
        let tls = self.public_tls(&edge_server_name(&site.name, 1), &[ALPN_CLIENT], env)?;
        edge.run(port, tls).await?;

        let mut config = DispatchConfig::new(site.number, &site.name);
        config.region_position = Position::new(latitude, longitude);
        let dispatch =
            Dispatch::new(env.clone(), config, geo, loads, DispatchMetrics::register(&mut Registry::default()));
        let tls = self.public_tls(&dispatch_server_name(&site.name), &ALPN_HTTP, env)?;
        let acceptor = env.net.listen(SocketAddr::new(IpAddr::V4(site.ip), DISPATCH_PORT)).await?;
        env.tasks.spawn(serve(env.clone(), acceptor, Some(tls), HttpLimits::default(), dispatch.handler()));
        Ok(edge)
    }

    fn new_edge(&self, site: &Site, number: u8, ip: IpAddr, env: &Env) -> Result<Arc<Edge>, ClusterError> {
        let (latitude, longitude) = site.at;
        let config = EdgeConfig {
            name: edge_name(&site.name, number),
            region: site.number,
            region_name: site.name.clone(),
            listen: SocketAddr::new(ip, CLIENT_PORT),
            audience: AUDIENCE.to_owned(),
            failure_domain: site.name.clone(),
            latitude,
            longitude,
            ..EdgeConfig::default()
        };
        let keys = TokenKeys::from_json(self.signer.jwk_set().as_bytes())?;
        Ok(Edge::new(env.clone(), config, keys, EdgeMetrics::default()))
    }

    /// Adds the host of a further edge of a region, which does not run yet; returns its name. Numbers begin at 2.
    pub fn add_edge(&mut self, world: &World, region: &str, number: u8) -> Result<String, ClusterError> {
        let site = &self.seat(region)?.site;
        let [a, b, c, d] = site.ip.octets();
        let (name, ip) = (edge_name(region, number), Ipv4Addr::new(a, b, c, d.saturating_add(number - 1)));
        let host = world.add_host(&name, region, ip)?;
        self.outposts.insert(name.clone(), Outpost { region: region.to_owned(), number, host, edge: None });
        Ok(name)
    }

    /// Starts the process of a further edge, also after a kill. It links to its core when that answers.
    pub async fn start_edge(&mut self, name: &str) -> Result<(), ClusterError> {
        let outpost = self.outpost(name)?;
        outpost.host.restart();
        let (env, site) = (outpost.host.env(), &self.seat(&outpost.region)?.site);
        let edge = self.new_edge(site, outpost.number, outpost.host.ip(), &env)?;
        let issued = self.nodes.issue(&[&edge_server_name(&site.name, outpost.number)])?;
        let identity = Identity::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes())?;
        let link_tls = node_client_tls(&identity, self.nodes.ca_pem().as_bytes(), Arc::clone(&env.clock))?;
        let core = SocketAddr::new(IpAddr::V4(site.ip), NODE_PORT);
        let link = Cores::start(env.clone(), vec![core], node_name(&site.name), link_tls, Arc::clone(&edge));
        let tls = self.public_tls(&edge_server_name(&site.name, outpost.number), &[ALPN_CLIENT], &env)?;
        edge.run(link, tls).await?;
        if let Some(outpost) = self.outposts.get_mut(name) {
            outpost.edge = Some(edge);
        }
        Ok(())
    }

    /// Kills the process of a further edge, or takes the power from its host.
    pub async fn end_edge(&mut self, name: &str, power: bool) -> Result<(), ClusterError> {
        let outpost = self.outposts.get_mut(name).ok_or_else(|| ClusterError::NoEdge(name.to_owned()))?;
        if power {
            outpost.host.power_off().await;
        } else {
            outpost.host.kill().await;
        }
        outpost.edge = None;
        Ok(())
    }

    /// Lets an edge send its clients to the other edges of its region, within `window`, and stop then. Its process
    /// stays until it is ended.
    pub fn drain_edge(&self, name: &str, window: Duration) -> Result<(), ClusterError> {
        let outpost = self.outpost(name)?;
        let Some(edge) = outpost.edge.clone() else { return Ok(()) };
        let beside = self.outposts.values().filter(|other| other.region == outpost.region);
        let beside = beside.filter(|other| other.number != outpost.number && other.edge.is_some());
        let mut others: Vec<IpAddr> = beside.map(|other| other.host.ip()).collect();
        let seat = self.seat(&outpost.region)?;
        others.extend(seat.edge.is_some().then_some(IpAddr::V4(seat.site.ip)));
        edge.set_alternates(others.into_iter().map(|ip| SocketAddr::new(ip, CLIENT_PORT).to_string()).collect());
        outpost.host.env().tasks.spawn(async move {
            edge.drain(window).await;
            edge.stop();
        });
        Ok(())
    }

    /// Begins to stop a region in order: its own edge sends its clients away within `window`, then its core waits for
    /// its peers, as long again at most. Its process stays until it is killed.
    pub fn begin_stop(&self, name: &str, window: Duration) -> Result<(), ClusterError> {
        let seat = self.seat(name)?;
        let (core, edge) = (seat.core.clone(), seat.edge.clone());
        seat.host.env().tasks.spawn(async move {
            if let Some(edge) = edge {
                edge.drain(window).await;
                edge.stop();
            }
            if let Some(core) = core {
                core.stop(window).await;
            }
        });
        Ok(())
    }

    /// Takes the power from a region's host: nobody is told, and what was not synced is gone.
    pub async fn power_off(&mut self, name: &str) -> Result<(), ClusterError> {
        let seat = self.seat_mut(name)?;
        seat.host.power_off().await;
        (seat.core, seat.edge) = (None, None);
        seat.store = seat.store.crash();
        Ok(())
    }

    /// Kills a region's process; its kernel still writes what was not synced.
    pub async fn kill_keeping(&mut self, name: &str) -> Result<(), ClusterError> {
        let seat = self.seat_mut(name)?;
        seat.host.kill().await;
        (seat.core, seat.edge) = (None, None);
        seat.store = seat.store.crash_keeping(usize::MAX);
        Ok(())
    }

    /// From the next start of each region on, `tap` is told of what its store has decided.
    pub fn set_tap(&mut self, tap: Tap) {
        self.tap = Some(tap);
    }

    /// A further edge's host.
    pub fn edge_host(&self, name: &str) -> Result<&SimNode, ClusterError> {
        Ok(&self.outpost(name)?.host)
    }

    /// A further edge, while it runs.
    pub fn further_edge(&self, name: &str) -> Option<&Arc<Edge>> {
        self.outposts.get(name)?.edge.as_ref()
    }

    fn outpost(&self, name: &str) -> Result<&Outpost, ClusterError> {
        self.outposts.get(name).ok_or_else(|| ClusterError::NoEdge(name.to_owned()))
    }

    fn public_tls(&self, name: &str, alpn: &[&[u8]], env: &Env) -> Result<Arc<rustls::ServerConfig>, ClusterError> {
        let issued = self.public.issue(&[name])?;
        let identity = Identity::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes())?;
        Ok(server_tls(&identity, alpn, Arc::clone(&env.clock))?)
    }

    /// What a client of `user` is made from: all dispatch addresses, that of `first` at the head.
    pub fn client_config(&self, user: &UserId, first: &str) -> ClientConfig {
        let mut config = ClientConfig::new(user.clone());
        let mut sites: Vec<_> = self.seats.values().map(|seat| &seat.site).collect();
        sites.sort_by_key(|site| (site.name != first, site.number));
        config.dispatch = sites
            .iter()
            .map(|site| DispatchServer {
                address: format!("{}:{DISPATCH_PORT}", site.ip),
                server_name: dispatch_server_name(&site.name),
            })
            .collect();
        config.roots_pem = self.public.ca_pem().into_bytes();
        config
    }

    /// Tokens for `user`, by the clock of his device.
    pub fn tokens(&self, user: &UserId, clock: Arc<dyn Clock>) -> Arc<dyn TokenProvider> {
        Arc::new(SimTokens { signer: Arc::clone(&self.signer), user: user.clone(), clock })
    }

    /// Kills a region's process and everything in it; of its disk remains what was synced.
    pub async fn kill(&mut self, name: &str) -> Result<(), ClusterError> {
        let seat = self.seat_mut(name)?;
        seat.host.kill().await;
        (seat.core, seat.edge) = (None, None);
        seat.store = seat.store.crash();
        Ok(())
    }

    /// Stops a region in order, as a signal does. Whether its peers hold all that it has acked.
    pub async fn stop(&mut self, name: &str, within: Duration) -> Result<bool, ClusterError> {
        let settled = match &self.seat(name)?.core {
            Some(core) => core.stop(within).await,
            None => true,
        };
        self.kill(name).await?;
        Ok(settled)
    }

    /// Puts an empty disk into the host of a region that does not run.
    pub fn destroy_disk(&mut self, name: &str) -> Result<(), ClusterError> {
        self.seat_mut(name)?.store = MemoryStore::with_latency(self.options.disk);
        Ok(())
    }

    /// Puts another disk into the host of a region that does not run, as it is: nothing on it tells that it is an older
    /// one.
    pub fn set_disk(&mut self, name: &str, disk: MemoryStore) -> Result<(), ClusterError> {
        self.seat_mut(name)?.store = disk;
        Ok(())
    }

    /// A copy of what a region's disk holds now: a backup.
    pub fn backup(&self, name: &str) -> Result<MemoryStore, ClusterError> {
        Ok(self.seat(name)?.store.backup())
    }

    /// Puts a backup into the host of a region that does not run, marked as `tern store restore` marks it. The
    /// backup can be restored again.
    pub async fn restore(&mut self, name: &str, backup: &MemoryStore) -> Result<(), ClusterError> {
        let disk = backup.backup();
        let mark = |key: &str| Put::Meta { key: key.to_owned(), value: Bytes::from_static(&[1]) };
        disk.put(vec![mark(REFILL_ALL_KEY), mark(RESTORED_KEY)], Durability::Synced).await?;
        self.seat_mut(name)?.store = disk;
        Ok(())
    }

    /// Starts a killed region again.
    pub async fn restart(&mut self, name: &str) -> Result<(), ClusterError> {
        self.seat(name)?.host.restart();
        self.start(name).await
    }

    /// A region's core, while it runs.
    pub fn core(&self, name: &str) -> Option<&Arc<Region>> {
        self.seats.get(name)?.core.as_ref()
    }

    /// A region's edge, while it runs.
    pub fn edge(&self, name: &str) -> Option<&Arc<Edge>> {
        self.seats.get(name)?.edge.as_ref()
    }

    /// A region's disk, as the running node or, between a kill and a restart, the next one sees it.
    pub fn store(&self, name: &str) -> Result<&MemoryStore, ClusterError> {
        Ok(&self.seat(name)?.store)
    }

    /// What ids of direct conversations are made with.
    pub fn direct_salt(&self) -> Vec<u8> {
        key_bytes(derive(self.seed, "direct salt", 0)).to_vec()
    }

    /// A region's host.
    pub fn host(&self, name: &str) -> Result<&SimNode, ClusterError> {
        Ok(&self.seat(name)?.host)
    }

    fn seat(&self, name: &str) -> Result<&Seat, ClusterError> {
        self.seats.get(name).ok_or_else(|| ClusterError::NoRegion(name.to_owned()))
    }

    fn seat_mut(&mut self, name: &str) -> Result<&mut Seat, ClusterError> {
        self.seats.get_mut(name).ok_or_else(|| ClusterError::NoRegion(name.to_owned()))
    }

    /// What a region is told of the others.
    pub fn peers_of(&self, region: &str) -> Result<Vec<Peer>, ClusterError> {
        Ok(self.others(self.seat(region)?))
    }

    fn others(&self, seat: &Seat) -> Vec<Peer> {
        let others = self.seats.values().filter(|other| other.site.number != seat.site.number);
        let peer = |other: &Seat| Peer {
            region: other.site.number,
            name: other.site.name.clone(),
            addrs: self.node_addrs(other),
            server_name: node_name(&other.site.name),
        };
        others.map(peer).collect()
    }

    fn region_config(&self, seat: &Seat) -> RegionConfig {
        let key = |what, number: &u64| key_bytes(derive(self.seed, what, *number));
        let of = |what| seat.receipt_keys.iter().map(move |number| key(what, number));
        let older: Vec<[u8; 32]> = of("receipts").skip(1).collect();
        let (first, number) = (key("receipts", &seat.receipt_keys[0]), seat.receipt_keys[0]);
        RegionConfig {
            region: seat.site.number,
            name: seat.site.name.clone(),
            node: format!("{}-1", seat.site.name),
            peers: self.others(seat),
            listen: SocketAddr::new(IpAddr::V4(seat.site.ip), NODE_PORT),
            direct_salt: self.direct_salt(),
            receipt_key: ReceiptKey::new(&first).with_older(&older),
            deployment: key("deployment", &number),
            deployment_also: of("deployment").skip(1).collect(),
            reoffer_after: self.options.reoffer_after,
            heartbeat: self.options.heartbeat,
            server_name: node_name(&seat.site.name),
            sharing: None,
            oldest_version: tern_core::wire::versions::OLDEST,
            store_damaged: false,
        }
    }

    /// Where a region's core nodes listen: those that were added to it, or the one of its site.
    fn node_addrs(&self, seat: &Seat) -> Vec<SocketAddr> {
        let cores: Vec<IpAddr> = self.core_hosts(&seat.site.name).collect();
        let all = if cores.is_empty() { vec![IpAddr::V4(seat.site.ip)] } else { cores };
        all.into_iter().map(|ip| SocketAddr::new(ip, NODE_PORT)).collect()
    }

    pub(crate) fn site(&self, name: &str) -> Result<&Site, ClusterError> {
        Ok(&self.seat(name)?.site)
    }

    /// What a core node of a region is told.
    pub(crate) fn core_config(&self, region: &str) -> Result<RegionConfig, ClusterError> {
        Ok(self.region_config(self.seat(region)?))
    }

    pub(crate) fn node_tls(&self, name: &str, env: &Env) -> Result<NodeTls, ClusterError> {
        let issued = self.nodes.issue(&[&node_name(name)])?;
        let identity = Identity::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes())?;
        let ca = self.nodes.ca_pem();
        Ok(NodeTls {
            server: node_server_tls(&identity, ca.as_bytes(), Arc::clone(&env.clock))?,
            client: node_client_tls(&identity, ca.as_bytes(), Arc::clone(&env.clock))?,
        })
    }
}

fn node_name(region: &str) -> String {
    format!("{region}-1.{region}.tern.internal")
}

/// Of the edges of a region; number 1 is the one of the region's own process.
pub fn edge_name(region: &str, number: u8) -> String {
    format!("{region}-e{number}")
}

fn edge_server_name(region: &str, number: u8) -> String {
    format!("{}.{region}.tern.internal", edge_name(region, number))
}

fn dispatch_server_name(region: &str) -> String {
    format!("dispatch.{region}.tern.internal")
}

/// What edges report goes to dispatch and to the other regions.
#[derive(Debug)]
pub(crate) struct Loads(pub(crate) Arc<LoadTable>);

impl LoadExchange for Loads {
    fn report(&self, load: &node_v1::EdgeLoad, now: Duration) {
        if let Err(error) = self.0.report(load, now) {
            tracing::debug!(%error, "a load report was left out");
        }
    }

    fn own_loads(&self, region: RegionId, now: Duration) -> Vec<node_v1::EdgeLoad> {
        self.0.own_loads(region, now)
    }
}

/// Signs on the device itself what an application's server would sign.
#[derive(Debug)]
struct SimTokens {
    signer: Arc<Signer>,
    user: UserId,
    clock: Arc<dyn Clock>,
}

impl TokenProvider for SimTokens {
    fn token(&self, _refused: bool) -> BoxFut<'_, Result<String, TokenError>> {
        let now_s = self.clock.wall_ms() / 1000;
        let token = self.signer.token(self.user.as_str(), now_s, now_s + TOKEN_S);
        Box::pin(async move { Ok(token) })
    }
}
