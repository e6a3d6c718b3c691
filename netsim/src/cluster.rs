//! Regions in a world, wired as `tern region` wires them: each on one host, with a store in memory that
//! outlives its node, and node links to the others.
//!
//! A region's host is `<name>-1` in the group `<name>`, so that latencies are set between groups.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tern_core::ids::Region as RegionId;
use tern_core::receipt::ReceiptKey;
use tern_core::wire::{node_v1, v1};
use tern_net::env::Env;
use tern_net::tls::{Identity, TlsError, node_client_tls, node_server_tls};
use tern_replication::region::{LoadExchange, NodeTls, Peer, Region, RegionConfig, RegionError};
use tern_replication::store::memory::MemoryStore;

use crate::node::SimNode;
use crate::pki::{Pki, key_bytes};
use crate::random::derive;
use crate::world::World;

/// Where nodes of all regions listen for each other.
pub const NODE_PORT: u16 = 7402;

/// A region to be.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name, also its group's.
    pub name: &'static str,
    /// Its number, 1-255.
    pub number: RegionId,
    /// Of its host.
    pub ip: Ipv4Addr,
}

/// What is the same for all regions.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// After so long a silence of a region, clients offer their messages elsewhere.
    pub reoffer_after: Duration,
    /// What clients are told.
    pub heartbeat: v1::Heartbeat,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            reoffer_after: Duration::from_secs(3),
            heartbeat: v1::Heartbeat { foreground_ms: 25_000, background_ms_min: 60_000, background_ms_max: 300_000 },
        }
    }
}

/// Why a cluster or a part of it does not start.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no such region.
    #[error("no region {0}")]
    NoRegion(String),
    /// Its host can't be added.
    #[error("a host can't be added: {0}")]
    Host(#[from] io::Error),
    /// Certificates can't be made.
    #[error("certificates can't be made: {0}")]
    Pki(#[from] rcgen::Error),
    /// The TLS set-up refuses them.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The core does not start.
    #[error(transparent)]
    Region(#[from] RegionError),
}

/// A region's host, its disk, and its core while it runs.
#[derive(Debug)]
struct Seat {
    site: Site,
    host: SimNode,
    store: MemoryStore,
    core: Option<Arc<Region>>,
}

/// Regions in a world.
#[derive(Debug)]
pub struct Cluster {
    seed: u64,
    options: ClusterOptions,
    nodes: Pki,
    seats: BTreeMap<&'static str, Seat>,
}

impl Cluster {
    /// Adds a host for each region; none runs yet.
    pub fn new(world: &World, sites: &[Site], options: ClusterOptions) -> Result<Self, ClusterError> {
        let mut seats = BTreeMap::new();
        for site in sites {
            let host = world.add_host(&format!("{}-1", site.name), site.name, site.ip)?;
            let seat = Seat { site: site.clone(), host, store: MemoryStore::new(), core: None };
            seats.insert(site.name, seat);
        }
        Ok(Self { seed: world.seed(), options, nodes: Pki::new(world.seed(), "nodes")?, seats })
    }

    /// Starts a region's process on its disk.
    pub async fn start(&mut self, name: &str) -> Result<(), ClusterError> {
        let seat = self.seat(name)?;
        let (env, store) = (seat.host.env(), seat.store.clone());
        let config = self.region_config(seat);
        let tls = self.node_tls(name, &env)?;
        let core = Region::start(env, config, Arc::new(store), tls, Arc::new(NoLoads)).await?;
        self.seat_mut(name)?.core = Some(core);
        Ok(())
    }

    /// Kills a region's process and everything in it; of its disk remains what was synced.
    pub async fn kill(&mut self, name: &str) -> Result<(), ClusterError> {
        let seat = self.seat_mut(name)?;
        seat.host.kill().await;
        seat.core = None;
        seat.store = seat.store.crash();
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

    fn region_config(&self, seat: &Seat) -> RegionConfig {
        let others = self.seats.values().filter(|other| other.site.number != seat.site.number);
        let peers = others.map(|other| Peer {
            region: other.site.number,
            name: other.site.name.to_owned(),
            addr: SocketAddr::new(IpAddr::V4(other.site.ip), NODE_PORT),
            server_name: node_name(other.site.name),
        });
        RegionConfig {
            region: seat.site.number,
            name: seat.site.name.to_owned(),
            node: format!("{}-1", seat.site.name),
            peers: peers.collect(),
            listen: SocketAddr::new(IpAddr::V4(seat.site.ip), NODE_PORT),
            direct_salt: self.direct_salt(),
            receipt_key: ReceiptKey::new(&key_bytes(derive(self.seed, "receipts", 0))),
            deployment: key_bytes(derive(self.seed, "deployment", 0)),
            reoffer_after: self.options.reoffer_after,
            heartbeat: self.options.heartbeat,
            store_damaged: false,
        }
    }

    fn node_tls(&self, name: &str, env: &Env) -> Result<NodeTls, ClusterError> {
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

/// Cores without dispatch.
#[derive(Debug)]
struct NoLoads;

impl LoadExchange for NoLoads {
    fn report(&self, _: &node_v1::EdgeLoad, _: Duration) {}

    fn own_loads(&self, _: RegionId, _: Duration) -> Vec<node_v1::EdgeLoad> {
        Vec::new()
    }
}
