//! What the links of a run are like while faults hold, as a function of the plan and of which faults those are.
//!
//! Faults overlap: two outages of one link, a bufferbloat within a lossy minute. So a fault is never undone by doing the
//! opposite; what it concerns is set anew to what the plan says plus all that hold, in the order in which they began.

use tern_netsim_link::{LinkSpec, Outage, Spec};
use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{Blocked, Down, Effect, Ways};

/// Faults that hold, by their place in the plan, in the order in which they began.
#[derive(Clone, Debug, Default)]
pub struct Holding(pub Vec<usize>);

impl Holding {
    /// Whether a fault holds.
    pub fn has(&self, fault: usize) -> bool {
        self.0.contains(&fault)
    }

    fn effects<'p>(&self, plan: &'p Plan) -> impl Iterator<Item = &'p Effect> {
        self.0.iter().filter_map(|number| plan.faults.get(*number)).map(|fault| &fault.effect)
    }

    /// The outage of one direction of an access link. Of two at once the one that loses is worse.
    pub fn outage(&self, plan: &Plan, device: &str, interface: &str, up: bool) -> Option<Outage> {
        let outages = self.effects(plan).filter_map(|effect| match effect {
            Effect::LinkOutage { device: of, interface: only, ways, outage }
                if of == device && is_of(only.as_deref(), interface) && meant(*ways, up) =>
            {
                Some(*outage)
            }
            _ => None,
        });
        outages.min()
    }

    /// An access link.
    pub fn link(&self, plan: &Plan, device: &str, interface: &str) -> Option<LinkSpec> {
        let planned = plan.devices.iter().find(|one| one.id == device)?;
        let mut link = planned.interfaces.iter().find(|one| one.name == interface)?.link.clone();
        for effect in self.effects(plan) {
            if let Effect::LinkChange { device: of, interface: only, ways, change } = effect
                && of == device
                && is_of(only.as_deref(), interface)
            {
                if ways.up {
                    link.up = change.apply(&link.up, true);
                }
                if ways.down {
                    link.down = change.apply(&link.down, false);
                }
            }
        }
        Some(link)
    }

    /// What an access network does not let through: the last fault counts.
    pub fn block(&self, plan: &Plan, device: &str, interface: &str) -> Option<Blocked> {
        let blocks = self.effects(plan).filter_map(|effect| match effect {
            Effect::Block { device: of, interface: only, what }
                if of == device && is_of(only.as_deref(), interface) =>
            {
                Some(*what)
            }
            _ => None,
        });
        blocks.last()
    }

    /// Which ways of a path are cut; `up` is from `a` to `b`.
    pub fn cut(&self, plan: &Plan, a: &str, b: &str) -> Ways {
        let mut cut = Ways { up: false, down: false };
        for effect in self.effects(plan) {
            let Effect::PathCut { a: from, b: to, ways } = effect else { continue };
            let Some(ways) = seen_from(a, b, from, to, *ways) else { continue };
            cut.up |= ways.up;
            cut.down |= ways.down;
        }
        cut
    }

    /// A path; `a` sends on `up`.
    pub fn path(&self, plan: &Plan, a: &str, b: &str) -> Option<LinkSpec> {
        let planned = plan.paths.iter().find(|path| path.a == a && path.b == b)?;
        let mut link = planned.link.clone().unwrap_or_else(|| {
            let mut spec = Spec::default();
            spec.delay.base_ns = planned.latency_ns;
            LinkSpec::symmetric(spec)
        });
        for effect in self.effects(plan) {
            let Effect::PathChange { a: from, b: to, ways, change } = effect else { continue };
            let Some(ways) = seen_from(a, b, from, to, *ways) else { continue };
            if ways.up {
                link.up = change.apply(&link.up, true);
            }
            if ways.down {
                link.down = change.apply(&link.down, false);
            }
        }
        Some(link)
    }

    /// Whether a device, region or edge stands still.
    pub fn paused(&self, plan: &Plan, name: &str) -> bool {
        self.effects(plan).any(|effect| match effect {
            Effect::Suspend { device } => device == name,
            Effect::Region { region, how: Down::Pause } => region == name,
            Effect::Edge { edge, how: Down::Pause } => edge == name,
            _ => false,
        })
    }

    /// Whether a device's app, a region or an edge is down.
    pub fn down(&self, plan: &Plan, name: &str) -> bool {
        self.effects(plan).any(|effect| match effect {
            Effect::AppKill { device } => device == name,
            Effect::Region { region, how } => region == name && *how != Down::Pause,
            Effect::Edge { edge, how } => edge == name && *how != Down::Pause,
            _ => false,
        })
    }
}

fn is_of(only: Option<&str>, interface: &str) -> bool {
    only.is_none_or(|only| only == interface)
}

fn meant(ways: Ways, up: bool) -> bool {
    if up { ways.up } else { ways.down }
}

/// Ways of a fault between `from` and `to`, as seen from `a` to `b`; `None`: another path.
fn seen_from(a: &str, b: &str, from: &str, to: &str, ways: Ways) -> Option<Ways> {
    if (from, to) == (a, b) {
        return Some(ways);
    }
    ((to, from) == (a, b)).then_some(Ways { up: ways.down, down: ways.up })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use tern_netsim_scenario::Scenario;

    use super::*;
    use crate::real::{RealError, topology};

    const BASE: &str = r#"
[scenario]
name = "many"
about = "Faults that overlap."
duration = "60s"
[[region]]
name = "eu"
aws = "euc1"
edges = 1
[[region]]
name = "us"
aws = "use1"
[[device]]
id = "phone"
user = "alice"
place = "eu"
iface.cell = { rate = "1Mbit/s", delay = "10ms" }
iface.wifi = { rate = "9Mbit/s", delay = "5ms" }
[[load]]
from = "phone"
to = "bob"
rate = "1/s"
[[device]]
id = "laptop"
user = "bob"
place = "us"
iface.wifi = { rate = "9Mbit/s", delay = "5ms" }
"#;

    fn plan(faults: &str) -> Plan {
        let scenario = Scenario::from_toml(format!("{BASE}{faults}"), Path::new("many.toml")).unwrap();
        scenario.plan(0, &BTreeMap::new()).unwrap()
    }

    fn fault(id: &str, kind: &str, target: &str, more: &str) -> String {
        format!("[[fault]]\nid = \"{id}\"\nkind = \"{kind}\"\ntarget = \"{target}\"\nat = \"1s\"\n{more}\n")
    }

    #[test]
    fn what_is_left_of_two_faults_after_one_ended_is_the_other() {
        let plan = plan(
            &[
                fault("tunnel", "outage", "phone", "for = \"9s\""),
                fault("lift", "outage", "phone.cell", "for = \"3s\""),
                fault("udp", "block", "phone.cell", "what = \"udp\""),
                fault("portal", "block", "phone", "what = \"captive\""),
                fault("kill", "edge-kill", "eu-e2", "for = \"3s\""),
            ]
            .concat(),
        );
        let mut holding = Holding(vec![0, 1, 2, 3, 4]);
        let dark = |holding: &Holding, interface| {
            [true, false].map(|up| holding.outage(&plan, "phone", interface, up).is_some())
        };
        assert_eq!((dark(&holding, "cell"), dark(&holding, "wifi")), ([true; 2], [true; 2]));
        assert_eq!(holding.block(&plan, "phone", "cell"), Some(Blocked::Captive), "the last one counts");
        assert!(holding.down(&plan, "eu-e2") && !holding.down(&plan, "eu") && !holding.paused(&plan, "eu-e2"));
        holding.0 = vec![1, 2];
        assert_eq!((dark(&holding, "cell"), dark(&holding, "wifi")), ([true; 2], [false; 2]));
        assert_eq!(holding.block(&plan, "phone", "cell"), Some(Blocked::Udp));
        assert_eq!(holding.block(&plan, "phone", "wifi"), None);
        assert_eq!(holding.link(&plan, "phone", "wifi").as_ref(), Some(&plan.devices[0].interfaces[1].link));
        assert!(topology::check(&plan).is_ok());
    }

    #[test]
    fn a_way_that_is_cut_is_the_same_way_seen_from_the_other_end() {
        let plan = plan(&fault("cut", "cut", "us->eu", "for = \"3s\""));
        let Effect::PathCut { a, b, ways } = &plan.faults[0].effect else { panic!("{:?}", plan.faults[0]) };
        let holding = Holding(vec![0]);
        assert_eq!(holding.cut(&plan, a, b), *ways);
        assert_eq!(holding.cut(&plan, b, a), Ways { up: ways.down, down: ways.up });
        assert_ne!(ways.up, ways.down);
        assert_eq!(Holding::default().cut(&plan, a, b), Ways { up: false, down: false });
    }

    #[test]
    fn nodes_have_the_addresses_of_virtual_time_and_what_is_not_real_is_refused() {
        let plan = plan(&fault("kill", "region-kill", "eu", "for = \"3s\""));
        let nodes: Vec<String> = topology::nodes(&plan)
            .iter()
            .map(|node| format!("{} {} {}", node.name, node.own_name, node.address))
            .collect();
        assert_eq!(nodes, ["eu eu-e1 10.1.0.1", "us us-e1 10.2.0.1", "eu-e2 eu-e2 10.1.0.2"]);
        assert_eq!(topology::lab_plan(&plan).hosts.len(), 5);
        let refused = topology::check(&plan).unwrap_err();
        assert!(matches!(&refused, RealError::SimOnly { .. }), "{refused}");
        assert!(refused.to_string().contains("the fault kill (region-kill)"), "{refused}");
    }
}
