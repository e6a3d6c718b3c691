//! A region's core at work: the machine of [`tern_core::node`], a store, edges and peer regions.
//!
//! Reading order: [`start`] (what a store is asked and told before it serves), `confirm` (what its peers are
//! asked), `core_task` (the one task that
//! owns the machine), `reads` (what the machine wants read), `listen` (nodes that connect: edges of this
//! region, and peers), `dial` (peers that this region connects to), `link` (frames of one connection),
//! `metrics`. Where several nodes share the region: `shares` (leases, and who owns what), `cores` (links between them),
//! `alive` (whether a process is gone).
//!
//! Invariants: one task owns the machine, everything else hands it inputs; one group of appends is with the store at a
//! time, or one of each conversation, as the store wants it, and what arrives meanwhile is the next group; a task per
//! connection reads, another writes, and neither knows what a frame does.

mod agreement;
mod alive;
mod confirm;
mod core_task;
mod cores;
mod dial;
mod link;
mod listen;
mod metrics;
mod put_queue;
mod reads;
pub mod shares;
mod sharing;
pub mod start;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tern_core::edge_api::{ConnId, CorePort, EdgePort, Up};
use tern_core::ids::{InstallId, Region as RegionId, UserId};
use tern_core::node::refill::Known;
use tern_core::node::{CoreId, EdgeId, Node, Now, Settings};
use tern_core::owners::Owners;
use tern_core::pressure::Level;
use tern_core::receipt::ReceiptKey;
use tern_core::slots::Share;
use tern_core::store::{BoxFut, Durability, Put, Store};
use tern_core::wire::node_v1::LinkTold;
use tern_core::wire::node_v1::node_frame::Body;
use tern_core::wire::{node_v1, v1};
use tern_net::env::Env;
use tern_net::quic::QuicError;
use tokio::sync::{Notify, oneshot, watch};

use crate::routes::Routes;
use crate::routes::writer::{Standing, Table};
use confirm::Eras;
use core_task::{Input, SharedStats};
use link::LinkSender;
use shares::Keeper;
pub use sharing::{Sharing, SharingError};
use start::StartError;

/// A peer region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub region: RegionId,
    /// Its name, for operators.
    pub name: String,
    /// Where its core nodes listen for nodes: one of them is enough, it names the others.
    pub addrs: Vec<SocketAddr>,
    /// The name in its certificate.
    pub server_name: String,
}

/// Edges' loads: what arrives here, and what peers are told.
pub trait LoadExchange: Send + Sync + fmt::Debug + 'static {
    /// An edge of this region, or of a peer that forwards it, has this load; `age_ms` is filled in.
    fn report(&self, load: &node_v1::EdgeLoad, now: Duration);
    /// The loads of this region's own edges, with their ages.
    fn own_loads(&self, region: RegionId, now: Duration) -> Vec<node_v1::EdgeLoad>;
    /// What operators have ordered, some of it in turn, for peers; asked once a second.
    fn orders(&self) -> Vec<node_v1::Order> {
        Vec::new()
    }
    /// A peer tells an order that it holds.
    fn order(&self, _order: &node_v1::Order) {}
}

/// What a region is told at its start.
#[derive(Clone, Debug)]
pub struct RegionConfig {
    /// Its number, 1-255.
    pub region: RegionId,
    /// Its name.
    pub name: String,
    /// This node's name.
    pub node: String,
    /// The other regions.
    pub peers: Vec<Peer>,
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// For ids of direct conversations; the same in all regions.
    pub direct_salt: Vec<u8>,
    /// For receipts; the same in all regions.
    pub receipt_key: ReceiptKey,
    /// Tells deployments apart: nodes of another one are refused.
    pub deployment: [u8; 32],
    /// What peers of this deployment may also say, while a receipt key is replaced.
    pub deployment_also: Vec<[u8; 32]>,
    /// After so long a silence of a region, clients offer their messages elsewhere.
    pub reoffer_after: Duration,
    /// What clients are told.
    pub heartbeat: v1::Heartbeat,
    /// The name in the certificates of this region's core nodes.
    pub server_name: String,
    /// Other core nodes share this region and its store; then the store that is given at the start is this one.
    pub sharing: Option<Sharing>,
    /// Nodes that speak a lower version of the node wire are refused: see [`tern_core::wire::versions`].
    pub oldest_version: u32,
    /// The store lost something, whatever its mark of a clean stop says: it gets a new era.
    pub store_damaged: bool,
}

/// TLS of both directions of node links.
#[derive(Clone)]
pub struct NodeTls {
    /// For nodes that connect here.
    pub server: Arc<rustls::ServerConfig>,
    /// For nodes that are connected to.
    pub client: Arc<rustls::ClientConfig>,
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeTls(..)")
    }
}

/// Why a region's core does not start.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The store.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The node port.
    #[error(transparent)]
    Listen(#[from] QuicError),
    /// Sharing the region with others.
    #[error(transparent)]
    Sharing(#[from] SharingError),
}

/// A running core. Ends when it is stopped, or when its environment's tasks are.
#[derive(Debug)]
pub struct Region {
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    node_addr: SocketAddr,
}

/// What the tasks of a region share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub env: Env,
    pub config: RegionConfig,
    pub inbox: Inbox,
    pub loads: Arc<dyn LoadExchange>,
    pub stats: SharedStats,
    pub store: Arc<dyn Store>,
    pub eras: Eras,
    /// `None` until the era is decided.
    pub life: watch::Sender<Option<Life>>,
    /// Entries that the era has made durable: see `Node::commit`.
    pub commit: AtomicU64,
    /// Peers that are told that this store may lack what it acked to them.
    pub marks: Mutex<BTreeSet<RegionId>>,
    /// What the edge of this process gives up for load, where it said so since the core task looked.
    pub pressure: Mutex<Option<Level>>,
    /// What a commit takes at least.
    pub commit_time: Mutex<Shortest>,
    edges: AtomicU64,
    stopped: AtomicBool,
    /// The last was written: links of edges end.
    pub over: watch::Sender<bool>,
    /// Who owns what of this region, where several nodes share it.
    pub owners: Mutex<Owners>,
    /// The epochs under which other nodes have said of shares that they have taken them up.
    pub taken: Mutex<BTreeMap<Share, u64>>,
    /// When something was last said to the owner of a share.
    pub active: Mutex<BTreeMap<Share, Duration>>,
    /// Links to the others, by name.
    pub cores: Mutex<BTreeMap<String, (CoreId, Arc<LinkSender>)>>,
    /// Those that are being dialled or linked.
    pub dialled: Mutex<BTreeSet<String>>,
    /// Those whose processes are watched, and which generation of each is known to be gone: see `alive`.
    pub watched: Mutex<BTreeMap<String, Option<u64>>>,
    /// Core nodes of peer regions.
    pub peer_nodes: dial::PeerNodes,
    /// What this node's beats say of its shares, where several nodes share the region.
    pub said_of_shares: Mutex<SaidOfShares>,
    pub tls: NodeTls,
    /// Wakes the keeper of the lease: something may be this node's.
    pub look: Notify,
    /// There may be a core node that this one has not heard of.
    pub newcomer: AtomicBool,
    /// This node is to give up all it owns; and whether it has.
    pub draining: watch::Sender<bool>,
    pub emptied: watch::Sender<bool>,
    /// The same without an end: it may get its part back.
    pub drained: watch::Sender<bool>,
    /// The peers as they are now; `config` has those of the start.
    pub peers_now: Mutex<Vec<Peer>>,
    /// As an operator wants them from now on, where the keeper of the lease has to see to it.
    pub peers_wanted: watch::Sender<Option<Vec<Peer>>>,
    /// Names of the edges that are linked.
    pub edge_names: Mutex<BTreeMap<EdgeId, String>>,
    /// The region's table of routes, if it has one.
    pub table: OnceLock<Arc<Table>>,
}

/// See [`Shared::said_of_shares`] and `Beat`.
#[derive(Debug, Default)]
pub(crate) struct SaidOfShares {
    pub owned: Bytes,
    pub incomplete: BTreeMap<RegionId, Bytes>,
}

/// This life of the region, for its peers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub era: u64,
    pub start: u64,
}

/// What clients may have said to the core task before edges refuse sends: a second's work in small messages.
const CROWDED_BYTES: usize = 32 * 1024 * 1024;
/// What one of them costs besides its body, about.
const UP_BYTES: usize = 256;

/// Inputs for the core task. Bounded by what its sources may have under way: requests per connection,
/// windows per link.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// With the moment since when the first one waits.
    queue: Mutex<(Duration, Vec<Input>)>,
    notify: Notify,
    /// What clients have said and waits, roughly.
    bytes: AtomicUsize,
}

impl Inbox {
    pub fn push(&self, now: Duration, input: Input) {
        if let Input::Ups(_, ups) = &input {
            let bytes = |up: &Up| match up {
                Up::Send { send, .. } => UP_BYTES + send.body.len(),
                Up::Open { .. } | Up::Frame { .. } | Up::Attach { .. } | Up::Resume { .. } | Up::Close { .. } => {
                    UP_BYTES
                }
            };
            self.bytes.fetch_add(ups.iter().map(bytes).sum(), Ordering::Relaxed);
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.1.is_empty() {
            queue.0 = now;
        }
        queue.1.push(input);
        drop(queue);
        self.notify.notify_one();
    }

    /// What waits, and since when the first of it does.
    pub fn take(&self) -> (Duration, Vec<Input>) {
        self.bytes.store(0, Ordering::Relaxed);
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether edges should refuse sends: what waits is more than the task can do in a moment.
    pub fn is_crowded(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > CROWDED_BYTES
    }

    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}

/// The shortest of what took some time lately.
#[derive(Debug, Default)]
pub(crate) struct Shortest {
    since: Duration,
    now: Option<Duration>,
    before: Option<Duration>,
}

impl Shortest {
    /// It is remembered for so long, and up to twice that: there are moments without load within it.
    const FOR: Duration = Duration::from_secs(30);

    pub fn add(&mut self, now: Duration, took: Duration) {
        if now >= self.since + Self::FOR {
            self.since = now;
            self.before = self.now.take();
        }
        self.now = Some(self.now.map_or(took, |shortest| shortest.min(took)));
    }

    pub fn get(&self) -> Option<Duration> {
        self.now.into_iter().chain(self.before).min()
    }
}

impl Shared {
    /// The peers as they are now.
    pub fn peers(&self) -> Vec<Peer> {
        self.peers_now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn is_peer(&self, region: RegionId) -> bool {
        self.peers_now.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|peer| peer.region == region)
    }

    /// These are the peers from now on: the core task is told, and who is new is dialled.
    pub fn apply_peers(self: &Arc<Self>, peers: Vec<Peer>) {
        let before = {
            let mut now = self.peers_now.lock().unwrap_or_else(PoisonError::into_inner);
            // First: links are let in as soon as they are listed.
            self.push(Input::Peers(peers.iter().map(|peer| peer.region).collect()));
            std::mem::replace(&mut *now, peers.clone())
        };
        for peer in peers {
            if before.iter().any(|known| known.region == peer.region && known.addrs == peer.addrs) {
                continue;
            }
            if self.config.region > peer.region {
                self.env.tasks.spawn(dial::miss(self.clone(), peer));
            } else {
                tracing::info!(peer = %peer.name, addrs = ?peer.addrs, "a peer region is dialled from now on");
                self.env.tasks.spawn(dial::run(self.clone(), peer, self.tls.client.clone()));
            }
        }
    }

    /// Something for the core task.
    pub fn push(&self, input: Input) {
        self.inbox.push(self.env.clock.now(), input);
    }

    pub fn now(&self) -> Now {
        Now { mono: self.env.clock.now(), wall_ms: self.env.clock.wall_ms() }
    }

    /// This life, as soon as it is decided.
    pub async fn decided(&self) -> Option<Life> {
        let mut life = self.life.subscribe();
        life.wait_for(Option::is_some).await.ok().and_then(|life| *life)
    }

    /// To all other core nodes of this region.
    pub fn tell_cores(&self, body: impl Fn() -> Body) {
        for (_, sender) in self.cores.lock().unwrap_or_else(PoisonError::into_inner).values() {
            sender.send([body()]);
        }
    }

    /// What a region is told about itself. Where several nodes serve this one, others of them may have heard more of it.
    pub async fn heard_of(&self, region: RegionId) -> LinkTold {
        if self.config.sharing.is_some()
            && let Ok(Some(value)) = self.store.meta(&format!("peer/{region}")).await
            && let Some(known) = Known::from_bytes(&value)
        {
            self.eras.noted(region, known);
        }
        self.eras.tell(region, self.env.clock.now())
    }

    pub fn is_marked(&self, region: RegionId) -> bool {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).contains(&region)
    }

    pub fn unmark(&self, region: RegionId) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).remove(&region);
    }

    pub fn attach(self: &Arc<Self>, port: Arc<dyn EdgePort>, name: &str) -> Arc<LocalCore> {
        let edge = self.edges.fetch_add(1, Ordering::Relaxed) + 1;
        self.edge_up(edge, name);
        self.push(Input::EdgeUp(edge, port));
        Arc::new(LocalCore { edge, shared: self.clone() })
    }
}

impl Region {
    /// Opens for business: the store gets a new epoch (and a new era, if it was not stopped cleanly), what was
    /// left to do is taken up, links are dialled, and nodes may connect.
    pub async fn start(
        env: Env,
        config: RegionConfig,
        store: Arc<dyn Store>,
        tls: NodeTls,
        loads: Arc<dyn LoadExchange>,
    ) -> Result<Arc<Self>, RegionError> {
        let peers = config.peers.clone();
        let listen_at = config.listen;
        let sharing = config.sharing.clone();
        let opened = start::open(&*store, config.region, config.store_damaged).await?;
        let shared = Arc::new(Shared {
            env: env.clone(),
            config,
            inbox: Inbox::default(),
            loads,
            stats: SharedStats::default(),
            store: store.clone(),
            eras: Eras::new(opened.known.clone()),
            life: watch::Sender::new(None),
            commit: AtomicU64::new(0),
            marks: Mutex::default(),
            pressure: Mutex::default(),
            commit_time: Mutex::default(),
            edges: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            over: watch::Sender::new(false),
            owners: Mutex::default(),
            taken: Mutex::default(),
            active: Mutex::default(),
            cores: Mutex::default(),
            dialled: Mutex::default(),
            watched: Mutex::default(),
            peer_nodes: dial::PeerNodes::default(),
            said_of_shares: Mutex::default(),
            tls: tls.clone(),
            look: Notify::new(),
            newcomer: AtomicBool::new(false),
            draining: watch::Sender::new(false),
            emptied: watch::Sender::new(false),
            drained: watch::Sender::new(sharing.as_ref().is_some_and(|sharing| sharing.drained)),
            peers_now: Mutex::new(peers.clone()),
            peers_wanted: watch::Sender::new(None),
            edge_names: Mutex::default(),
            table: OnceLock::new(),
        });
        // Peers that ask are answered from here on: regions that start together wait for each other.
        let node_addr = listen::start(&shared, listen_at, tls.server)?;
        if sharing.is_some() {
            alive::listen(&shared, node_addr).await;
        }
        let keep = match opened.claim {
            Some(_) if peers.is_empty() || store.outlives_its_machine() => true,
            Some(commit) => confirm::confirm(&shared, &tls.client, (opened.start, commit)).await,
            None => false,
        };
        let regions: BTreeSet<RegionId> = peers.iter().map(|p| p.region).collect();
        let begun = match &sharing {
            Some(sharing) => start::begin_shared(&*sharing.store, opened, &regions, &env.rng).await?,
            None => start::begin(&*store, opened, &regions, keep, &env.rng).await?,
        };
        let config = &shared.config;
        tracing::info!(
            region = %config.name, era = %begun.origin, start = begun.start, epoch = begun.epoch,
            new_era = begun.era_replaced, compare_with = begun.refill.len(), todo = begun.todo.len(), "store is open"
        );
        if begun.restored {
            tracing::warn!(
                "this store is a restored backup: clients are sent elsewhere until it was compared with a peer"
            );
        }
        let settings = Settings {
            region: config.region,
            region_name: config.name.clone(),
            origin: begun.origin,
            epoch: begun.epoch,
            shared: sharing.is_some(),
            start: begun.start,
            peers: regions,
            known: begun.known,
            eras: begun.eras,
            commit: begun.commit,
            refill: begun.refill.clone(),
            restored: begun.restored,
            direct_salt: config.direct_salt.clone(),
            receipt_key: config.receipt_key.clone(),
            reoffer_after: config.reoffer_after,
            heartbeat: config.heartbeat,
        };
        let node = Node::new(settings, begun.todo, shared.now());
        shared.commit.store(begun.commit, Ordering::Release);
        *shared.marks.lock().unwrap_or_else(PoisonError::into_inner) = begun.refill;
        shared.life.send_replace(Some(Life { era: begun.origin.era, start: begun.start }));
        let keeper = match sharing {
            Some(sharing) => Some(Keeper::begin(shared.clone(), sharing, node_addr, begun.marked).await?),
            None => None,
        };
        env.tasks.spawn(core_task::run(shared.clone(), store.clone(), node));
        if let Some(keeper) = keeper {
            env.tasks.spawn(keeper.run());
        }
        for peer in peers {
            // One connection per pair: the lower number dials.
            if shared.config.region < peer.region {
                env.tasks.spawn(dial::run(shared.clone(), peer, tls.client.clone()));
            } else {
                env.tasks.spawn(dial::miss(shared.clone(), peer));
            }
        }
        Ok(Arc::new(Self { shared, store, node_addr }))
    }

    /// An edge of this process.
    pub fn attach_edge(&self, port: Arc<dyn EdgePort>) -> Arc<dyn CorePort> {
        self.shared.attach(port, &self.shared.config.node)
    }

    /// What an edge of this process is told first; `None`: the region has stopped.
    pub async fn welcome(&self) -> Option<node_v1::EdgeWelcome> {
        listen::welcome(&self.shared).await
    }

    /// Where nodes connect; the port is known even if 0 was asked for.
    pub fn node_addr(&self) -> SocketAddr {
        self.node_addr
    }

    /// Whether the store answers and every configured peer was reached, for readiness: (store, peers up,
    /// peers configured).
    pub fn health(&self) -> (bool, usize, usize) {
        let stats = self.shared.stats.get();
        (stats.store_ok, stats.peers.values().filter(|p| p.connected).count(), self.shared.peers().len())
    }

    /// Peers that the store must still be compared with, and whether clients are sent elsewhere until the first
    /// was: the store is a restored backup.
    pub fn refilling(&self) -> (usize, bool) {
        self.shared.stats.get().refilling
    }

    /// Former eras of this region that are not sealed yet.
    pub fn unsealed_eras(&self) -> usize {
        self.shared.stats.get().eras.0
    }

    /// Since when the core task has not been heard of: under two seconds, unless it is stuck.
    pub fn core_silence(&self) -> Duration {
        let at = self.shared.stats.get().at;
        // Zero: it has been started, and not yet had its first turn.
        if at.is_zero() { Duration::ZERO } else { self.shared.env.clock.now().saturating_sub(at) }
    }

    /// Whether this node is to give its shares of the region to the other core nodes, or gets its part again. Nothing
    /// happens where it has the region alone.
    pub fn set_drained(&self, drained: bool) {
        self.shared.drained.send_if_modified(|held| std::mem::replace(held, drained) != drained);
    }

    /// From now on these are the other regions. One that is new is dialled, or let in, and gets all that is written from now
    /// on; what was there before it fetches itself, as any region with a new store does. One that is none any more is owed
    /// nothing, and its link is closed. Where several core nodes share the region each is told by itself, in any order: see
    /// `agreement`.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        if self.shared.config.sharing.is_some() {
            self.shared.peers_wanted.send_replace(Some(peers));
        } else {
            self.shared.apply_peers(peers);
        }
    }

    /// How many shares each core node of this region has, by what is known here; empty where one has it alone.
    pub fn shares(&self) -> BTreeMap<String, u32> {
        let owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |name: &str| u32::try_from(owners.owned_by(name).count()).unwrap_or(u32::MAX);
        owners.nodes().keys().map(|name| (name.to_string(), count(name))).collect()
    }

    /// Where the links to other regions stand, at most a second ago.
    pub fn peers(&self) -> BTreeMap<RegionId, PeerStats> {
        self.shared.stats.get().peers
    }

    /// What was counted since the start, at most a second ago.
    pub fn counters(&self) -> tern_core::node::Counters {
        self.shared.stats.get().counters
    }

    /// Keeps the region's table of routes as the connections of this node are, from now on; counts once.
    pub fn keep_routes(&self, routes: Arc<dyn Routes>) -> Arc<Table> {
        table::keep(&self.shared, routes)
    }

    /// The region's table of routes, if it keeps one.
    pub fn route_table(&self) -> Option<Arc<dyn Routes>> {
        self.shared.table.get().map(|table| table.routes().clone())
    }

    /// How the table stands, if the region keeps one.
    pub fn routes_standing(&self) -> Option<Standing> {
        self.shared.table.get().map(|table| table.standing())
    }

    /// The devices of a user that are connected, as this node knows them: (which, by which edge, its number of the
    /// connection). `None`: he is another node's, or this one can't say now.
    pub async fn devices_of(&self, user: UserId) -> Option<Vec<(InstallId, String, ConnId)>> {
        table::devices_of(&self.shared, user).await
    }

    /// Adds the core's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(metrics::Collector(self.shared.clone())));
    }

    /// A clean stop: takes no more sends, tells edges of other processes that it comes back, waits until peers have acked
    /// what they were sent, at most `within`, then writes what makes the next start short and marks the store clean. Whether
    /// everything was acked.
    pub async fn stop(&self, within: Duration) -> bool {
        let until = self.shared.env.clock.now() + within;
        if self.shared.config.sharing.is_some() {
            // Others take what this node has before it goes; if there are none, it goes as it is.
            self.shared.draining.send_replace(true);
            let mut emptied = self.shared.emptied.subscribe();
            let _nobody_else = tokio::time::timeout(within, emptied.wait_for(|empty| *empty)).await;
        }
        let (tell, told) = oneshot::channel();
        self.shared.push(Input::Stop { until, tell });
        let Ok((settled, mut puts)) = told.await else { return false };
        self.shared.stopped.store(true, Ordering::Release);
        if let Some(table) = self.shared.table.get() {
            let _they_run_out = tokio::time::timeout(table::STOP_WITHIN, table.stop()).await;
        }
        if self.shared.config.sharing.is_none() {
            puts.push(start::clean_mark(self.shared.commit.load(Ordering::Acquire)));
        }
        let written = self.store.put(puts, Durability::Synced).await;
        self.shared.over.send_replace(true);
        match written {
            Ok(()) => settled,
            Err(error) => {
                tracing::error!(%error, "the store could not be marked clean; the next start takes a new era");
                false
            }
        }
    }
}

/// The core as its edges see it.
#[derive(Debug)]
pub(crate) struct LocalCore {
    pub edge: u64,
    shared: Arc<Shared>,
}

impl CorePort for LocalCore {
    fn submit(&self, ups: Vec<Up>) {
        self.shared.push(Input::Ups(self.edge, ups));
    }

    fn reachable(&self) -> bool {
        !self.shared.stopped.load(Ordering::Acquire)
    }

    fn crowded(&self) -> bool {
        self.shared.inbox.is_crowded()
    }

    fn pressure(&self, level: Level) {
        *self.shared.pressure.lock().unwrap_or_else(PoisonError::into_inner) = Some(level);
    }

    fn commit_time(&self) -> Option<Duration> {
        self.shared.commit_time.lock().unwrap_or_else(PoisonError::into_inner).get()
    }

    fn report(&self, load: node_v1::EdgeLoad) {
        self.shared.loads.report(&load, self.shared.env.clock.now());
    }
}

/// Where peers stand, for metrics and operators.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// When the core task took these figures: it does so once a second.
    pub at: Duration,
    /// Whether the last commit succeeded.
    pub store_ok: bool,
    /// Per peer region.
    pub peers: BTreeMap<RegionId, PeerStats>,
    /// See `Node::sizes`.
    pub sizes: (usize, usize, usize, usize),
    /// See `Node::counters`.
    pub counters: tern_core::node::Counters,
    /// Users present here, and elsewhere as far as known.
    pub routes: (usize, usize),
    /// How often another core node had to compare what this one has told of routes.
    pub route_resyncs: u64,
    /// Routes per other region.
    pub regions: BTreeMap<RegionId, RegionRoutes>,
    /// Groups given to the store, and appends in them.
    pub groups: (u64, u64),
    /// See [`Region::refilling`].
    pub refilling: (usize, bool),
    /// Former eras of this region that are not sealed yet, and eras known of all regions.
    pub eras: (usize, usize),
}

/// What is known of the routes of another region, or of the other core nodes of this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionRoutes {
    /// Users who are present there.
    pub users: usize,
    /// Memory that their routes take.
    pub bytes: usize,
    /// Nothing was heard of it for some seconds: what is known may not be so any more.
    pub is_stale: bool,
    /// It was compared with what its nodes have said.
    pub is_whole: bool,
    /// 256ths of its routes that were told anew since the start.
    pub pulled: u64,
}

/// See [`Stats`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerStats {
    /// Whether the link is up.
    pub connected: bool,
    /// Conversations that it has not acked.
    pub backlog: usize,
    /// Since it was heard.
    pub silence: Duration,
    /// Entries that it has not acked.
    pub lag: tern_core::node::lag::Lag,
}

/// A boxed future without borrow.
pub(crate) type Task<T> = BoxFut<'static, T>;

/// So that `Put` need not be imported where only the mark is written.
pub(crate) type Puts = Vec<Put>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_is_remembered_for_a_while_and_not_for_ever() {
        let mut shortest = Shortest::default();
        assert_eq!(shortest.get(), None);
        let at = |s| Duration::from_secs(s);
        for (second, ms, told) in [(100, 5, 5), (110, 2, 2), (140, 9, 2), (165, 9, 2), (171, 8, 8)] {
            shortest.add(at(second), Duration::from_millis(ms));
            assert_eq!(shortest.get(), Some(Duration::from_millis(told)), "at {second} s");
        }
    }
}
