//! Regions that several core nodes share, over a store in memory that outlives each of them.
//!
//! A region's first core node is that of its site, with dispatch and an edge, if it was started so; here are regions made
//! of core nodes alone, each on a host of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tern_ipconf::LoadTable;
use tern_replication::region::{Region, Sharing};
use tern_replication::store::SharedMemory;

use crate::cluster::{Cluster, ClusterError, Loads, NODE_PORT};
use crate::node::SimNode;
use crate::world::World;

/// A core node.
#[derive(Debug)]
pub struct CoreSeat {
    /// Of which region.
    region: String,
    host: SimNode,
    core: Option<Arc<Region>>,
    weight: u32,
    drained: bool,
}

impl Cluster {
    /// Adds the host of a core node of a region, which does not run yet; returns its name. A region has at most 99.
    pub fn add_core(&mut self, world: &World, region: &str, number: u8, weight: u32) -> Result<String, ClusterError> {
        let site = self.site(region)?.clone();
        let name = format!("{region}-c{number}");
        let ip = Ipv4Addr::new(10, site.number, 1, number);
        let host = world.add_host(&name, region, ip)?;
        let seat = CoreSeat { region: region.to_owned(), host, core: None, weight, drained: false };
        self.cores.insert(name.clone(), seat);
        let salt = self.direct_salt();
        self.shared.entry(region.to_owned()).or_insert_with(|| SharedMemory::new(&salt));
        Ok(name)
    }

    /// Starts a core node's process.
    pub async fn start_core(&mut self, name: &str) -> Result<Arc<Region>, ClusterError> {
        let core = self.launch_core(name, name).await?;
        self.cores.get_mut(name).ok_or_else(|| ClusterError::NoRegion(name.to_owned()))?.core = Some(core.clone());
        Ok(core)
    }

    async fn launch_core(&self, seat: &str, name: &str) -> Result<Arc<Region>, ClusterError> {
        let seat = self.core_seat(seat)?;
        let env = seat.host.env();
        let IpAddr::V4(ip) = seat.host.ip() else { return Err(ClusterError::NoRegion(name.to_owned())) };
        let store = self.shared.get(&seat.region).ok_or_else(|| ClusterError::NoRegion(seat.region.clone()))?.clone();
        let mut config = self.core_config(&seat.region)?;
        name.clone_into(&mut config.node);
        config.listen = SocketAddr::new(IpAddr::V4(ip), NODE_PORT);
        let (weight, drained) = (seat.weight, seat.drained);
        config.sharing = Some(Sharing { store: Arc::new(store.clone()), weight, advertise: None, drained });
        let tls = self.node_tls(&seat.region, &env)?;
        let exchange = Arc::new(Loads(LoadTable::new()));
        Ok(Region::start(env, config, Arc::new(store), tls, exchange).await?)
    }

    /// Starts a further process on a host of its own under the name of another.
    pub async fn start_core_as(
        &mut self,
        world: &World,
        region: &str,
        number: u8,
        name: &str,
    ) -> Result<Arc<Region>, ClusterError> {
        let seat = self.add_core(world, region, number, 1)?;
        self.launch_core(&seat, name).await
    }

    /// Ends a core node's process as SIGKILL does.
    pub async fn kill_core(&mut self, name: &str) -> Result<(), ClusterError> {
        let seat = self.cores.get_mut(name).ok_or_else(|| ClusterError::NoRegion(name.to_owned()))?;
        seat.core = None;
        seat.host.kill().await;
        Ok(())
    }

    /// Stops a core node in order: the others take what it has. Whether all was done in time.
    pub async fn stop_core(&mut self, name: &str, within: Duration) -> Result<bool, ClusterError> {
        let seat = self.cores.get_mut(name).ok_or_else(|| ClusterError::NoRegion(name.to_owned()))?;
        let settled = match seat.core.take() {
            Some(core) => core.stop(within).await,
            None => true,
        };
        seat.host.kill().await;
        Ok(settled)
    }

    /// Starts a dead core node again.
    pub async fn restart_core(&mut self, name: &str) -> Result<Arc<Region>, ClusterError> {
        self.core_seat(name)?.host.restart();
        self.start_core(name).await
    }

    /// An operator orders that a core node is to have no part of its region, or a part again; it knows that after a restart.
    pub fn drain_core(&mut self, name: &str, drained: bool) -> Result<(), ClusterError> {
        let seat = self.cores.get_mut(name).ok_or_else(|| ClusterError::NoRegion(name.to_owned()))?;
        seat.drained = drained;
        if let Some(core) = &seat.core {
            core.set_drained(drained);
        }
        Ok(())
    }

    /// A core node that runs.
    pub fn core_node(&self, name: &str) -> Result<Arc<Region>, ClusterError> {
        let seat = self.cores.get(name);
        seat.and_then(|seat| seat.core.clone()).ok_or_else(|| ClusterError::NoRegion(name.to_owned()))
    }

    /// The host of a core node: to pause it, or set its clock.
    pub fn core_host(&self, name: &str) -> Result<&SimNode, ClusterError> {
        Ok(&self.core_seat(name)?.host)
    }

    /// The store that a region's core nodes share.
    pub fn shared_store(&self, region: &str) -> Result<&SharedMemory, ClusterError> {
        self.shared.get(region).ok_or_else(|| ClusterError::NoRegion(region.to_owned()))
    }

    /// The hosts of a region's core nodes.
    pub(crate) fn core_hosts<'a>(&'a self, region: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
        self.cores.values().filter(move |seat| seat.region == region).map(|seat| seat.host.ip())
    }

    /// A region's store is lost; its core nodes are dead.
    pub fn empty_shared_store(&mut self, region: &str) {
        let salt = self.direct_salt();
        self.shared.insert(region.to_owned(), SharedMemory::new(&salt));
    }

    fn core_seat(&self, name: &str) -> Result<&CoreSeat, ClusterError> {
        self.cores.get(name).ok_or_else(|| ClusterError::NoRegion(name.to_owned()))
    }
}
