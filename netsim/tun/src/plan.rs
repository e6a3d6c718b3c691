//! What a lab is made of, as data.

use std::net::Ipv4Addr;

use tern_netsim_scenario::plan::{InterfacePlan, PathPlan};

/// A lab to be. Names of hosts differ, and so do the addresses under which hosts are reached.
#[derive(Clone, Debug)]
pub struct LabPlan {
    /// Keys the randomness of all links.
    pub seed: u64,
    /// At most [`crate::limits::HOSTS_MAX`].
    pub hosts: Vec<HostPlan>,
    /// Between places. Hosts of one place are [`crate::limits::LATENCY_SAME_PLACE_NS`] apart; between two without a path
    /// nothing passes.
    pub paths: Vec<PathPlan>,
    /// So long after a device's last packet its radio sleeps.
    pub radio_tail_ns: u64,
}

/// A host.
#[derive(Clone, Debug)]
pub struct HostPlan {
    /// `eu-1`, `alice-phone`.
    pub name: String,
    /// Where it is: an end of [`LabPlan::paths`].
    pub place: String,
    /// How it is connected.
    pub attached: Attached,
}

/// How a host is connected.
#[derive(Clone, Debug)]
pub enum Attached {
    /// A server: at once, under this address.
    Wired(Ipv4Addr),
    /// A device: through access links, one at a time, the first one at the beginning. At least one.
    Access(Vec<InterfacePlan>),
}

impl HostPlan {
    /// Where others reach it at the beginning.
    pub fn reached_at(&self) -> Option<Ipv4Addr> {
        match &self.attached {
            Attached::Wired(address) => Some(*address),
            Attached::Access(interfaces) => interfaces.first().map(outside),
        }
    }
}

/// Where an interface is reached.
pub(crate) fn outside(interface: &InterfacePlan) -> Ipv4Addr {
    interface.nat.as_ref().map_or(interface.address, |(_, outside)| *outside)
}
