//! A plan as a lab: which hosts there are, and under which addresses.

use std::net::Ipv4Addr;

use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{Blocked, Down, Effect, When};
use tern_netsim_tun::{Attached, HostPlan, LabPlan};
use tern_netsim_verdict::limits::RADIO_TAIL_NS;

use super::RealError;

/// A node that is a process of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// As the scenario and the history call it, and its host: `eu`, `eu-e2`.
    pub name: String,
    /// As it calls itself: `eu-e1`, `eu-e2`.
    pub own_name: String,
    /// The region, by its place in the plan.
    pub region: usize,
    /// Which of the region's edges it has; 1 is the region's own process.
    pub edge: u8,
    /// Its address.
    pub address: Ipv4Addr,
}

/// All nodes, regions before their further edges.
pub fn nodes(plan: &Plan) -> Vec<NodePlan> {
    let mut all = Vec::new();
    for (index, region) in plan.regions.iter().enumerate() {
        for edge in 1..=region.edges.saturating_add(1) {
            let own_name = format!("{}-e{edge}", region.name);
            all.push(NodePlan {
                name: if edge == 1 { region.name.clone() } else { own_name.clone() },
                own_name,
                region: index,
                edge,
                // As in virtual time.
                address: Ipv4Addr::new(10, region.number, 0, edge),
            });
        }
    }
    all.sort_by_key(|node| node.edge != 1);
    all
}

/// The lab of a plan.
pub fn lab_plan(plan: &Plan) -> LabPlan {
    let nodes = nodes(plan).into_iter().map(|node| HostPlan {
        place: plan.regions[node.region].name.clone(),
        name: node.name,
        attached: Attached::Wired(node.address),
    });
    let devices = plan.devices.iter().map(|device| HostPlan {
        name: device.id.clone(),
        place: device.place.clone(),
        attached: Attached::Access(device.interfaces.clone()),
    });
    LabPlan {
        seed: plan.seed,
        hosts: nodes.chain(devices).collect(),
        paths: plan.paths.clone(),
        radio_tail_ns: RADIO_TAIL_NS,
    }
}

/// Refuses what only virtual time can do, before anything is started.
pub fn check(plan: &Plan) -> Result<(), RealError> {
    let whens = plan.faults.iter().map(|fault| (&fault.id, &fault.when));
    let acts = plan.actions.iter().map(|action| (&action.device, &action.when));
    for (who, when) in whens.chain(acts) {
        if matches!(when, When::On { .. }) {
            return Err(RealError::SimOnly {
                what: format!("something that happens with a moment of the system ({who})"),
                why: "the moment is over when it is heard of",
            });
        }
    }
    for fault in &plan.faults {
        let why = match &fault.effect {
            Effect::Clock { .. } => "processes of one machine share its clock",
            Effect::Disk { .. } => "processes of one machine share its disk",
            Effect::Block { what: Blocked::AllButWeb { .. }, .. } => {
                "the links between processes have no such middlebox"
            }
            Effect::Region { how: Down::Kill { lose_unsynced: true }, .. } => {
                "what a killed process has written stays in the machine's memory, synced or not (lose = \"nothing\" is what \
                 a kill does here)"
            }
            _ => continue,
        };
        return Err(RealError::SimOnly { what: format!("the fault {} ({})", fault.id, fault.kind), why });
    }
    Ok(())
}
