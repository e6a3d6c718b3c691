//! Whom a fault concerns, and of whom nothing can be expected at the end.
//!
//! A history names what a fault hits as the scenario does, so this is read from names:
//! - a device, or one of its links (`alice-phone`, `alice-phone.cell`, `alice-phone.cell.up`): this device;
//! - an edge or a region (`eu-e2`, `eu`): the devices that were connected to it when the fault began, or if none was,
//!   those that were last connected to it;
//! - a path between two regions (`eu-us`, `eu..us`): the devices that were connected to either region when it began,
//!   and for each only messages of devices that were connected to the other;
//! - anything else (a place, a path to a place): all devices.
//!
//! A device or region is *beyond reach* if a fault that was never healed concerns it, and it does not run, or is not
//! connected, when the final state is told. Nobody can be expected to show what can't reach him. Without such a fault
//! there is no excuse: a device that does not come back by itself is what the checks are there to find.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::{Facts, Span};

/// What a fault hits, by its target's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target<'a> {
    Device(&'a str),
    Region(&'a str),
    Edge(&'a str),
    Path(&'a str, &'a str),
    Everything,
}

/// Devices that a fault concerned, and from where messages must come to show that it is over.
#[derive(Debug, Default)]
pub(crate) struct Concerned<'a> {
    /// Devices with the region that they were connected to.
    regions: BTreeMap<&'a str, Option<&'a str>>,
    across: Option<(&'a str, &'a str)>,
}

impl<'a> Concerned<'a> {
    /// Whether a device is concerned at all.
    pub(crate) fn has(&self, device: &str) -> bool {
        self.regions.contains_key(device)
    }

    /// Devices in order.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &'a str> {
        self.regions.keys().copied()
    }

    /// Whether a message of one device that comes to another had to pass what was hit.
    pub(crate) fn passes(&self, from: &str, to: &str) -> bool {
        let Some((a, b)) = self.across else { return self.has(to) };
        let side = |device: &str| self.regions.get(device).copied().flatten();
        matches!((side(from), side(to)), (Some(x), Some(y)) if (x, y) == (a, b) || (x, y) == (b, a))
    }
}

/// Whom a fault concerned; see the module.
pub(crate) fn concerned<'a>(facts: &Facts<'a>, span: &Span<'a>) -> Concerned<'a> {
    let devices = || facts.run.cast.devices.keys().map(String::as_str);
    let at = |device: &str| facts.connected(device, span.begin.0);
    let region = |device| at(device).and_then(|c| c.region);
    let (across, found): (_, Vec<(&str, Option<&str>)>) = match target(facts, span.target) {
        Target::Device(device) => (None, vec![(device, region(device))]),
        Target::Everything => (None, devices().map(|d| (d, region(d))).collect()),
        Target::Edge(edge) => (None, connected(facts, span, |_, e| e == Some(edge))),
        Target::Region(name) => (None, connected(facts, span, |r, _| r == Some(name))),
        Target::Path(a, b) => {
            let either = devices().map(|d| (d, region(d))).filter(|(_, r)| *r == Some(a) || *r == Some(b));
            (Some((a, b)), either.collect())
        }
    };
    Concerned { regions: found.into_iter().collect(), across }
}

/// Devices whose connection is at a place when a fault begins; if there is none, those that were there last.
fn connected<'a>(
    facts: &Facts<'a>,
    span: &Span<'a>,
    there: impl Fn(Option<&str>, Option<&str>) -> bool,
) -> Vec<(&'a str, Option<&'a str>)> {
    let devices = facts.run.cast.devices.keys().map(String::as_str);
    let of = |now: bool| {
        devices
            .clone()
            .filter_map(|device| {
                let before = facts.connections.get(device)?;
                let before = &before[..before.partition_point(|c| c.line < span.begin.0)];
                let last = if now { before.last() } else { before.iter().rev().find(|c| c.region.is_some()) }?;
                there(last.region, last.edge).then_some((device, last.region))
            })
            .collect::<Vec<_>>()
    };
    let now = of(true);
    if now.is_empty() { of(false) } else { now }
}

fn target<'a>(facts: &Facts<'a>, name: &'a str) -> Target<'a> {
    let cast = &facts.run.cast;
    if let Some((device, _)) = cast.devices.get_key_value(name.split('.').next().unwrap_or(name)) {
        return Target::Device(device);
    }
    if let Some(region) = cast.regions.iter().find(|r| *r == name) {
        return Target::Region(region);
    }
    if let Some((edge, _)) = cast.edges.get_key_value(name) {
        return Target::Edge(edge);
    }
    let sign = |c: char| !c.is_alphanumeric();
    for a in &cast.regions {
        let Some(rest) = name.strip_prefix(a.as_str()).filter(|rest| rest.starts_with(sign)) else { continue };
        let other = rest.trim_start_matches(sign);
        if let Some(b) = cast.regions.iter().find(|b| *b == other) {
            return Target::Path(a, b);
        }
    }
    Target::Everything
}

/// Of whom nothing can be expected at the end; see the module.
#[derive(Debug, Default)]
pub(crate) struct BeyondReach<'a> {
    pub(crate) devices: BTreeSet<&'a str>,
    pub(crate) regions: BTreeSet<&'a str>,
}

impl<'a> BeyondReach<'a> {
    pub(crate) fn of(facts: &Facts<'a>) -> Self {
        let mut beyond = Self::default();
        for span in facts.spans.iter().filter(|s| s.standing) {
            for device in concerned(facts, span).devices() {
                let live = facts.connections.get(device).and_then(|all| all.last()).is_some_and(|c| c.state == "live");
                if facts.stopped.contains(device) || !live {
                    beyond.devices.insert(device);
                }
            }
            if let Target::Region(region) = target(facts, span.target)
                && facts.stopped.contains(region)
            {
                beyond.regions.insert(region);
            }
        }
        beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Example;
    use crate::findings::Findings;

    #[test]
    fn targets_are_read_from_their_names() {
        let example = Example::new();
        let lines = example.lines();
        let facts = Facts::of(&lines, &mut Findings::default()).unwrap();
        for (name, expected) in [
            ("alice-phone", Target::Device("alice-phone")),
            ("alice-phone.cell.up", Target::Device("alice-phone")),
            ("eu", Target::Region("eu")),
            ("eu-e1", Target::Edge("eu-e1")),
            ("eu-us", Target::Path("eu", "us")),
            ("us..eu", Target::Path("us", "eu")),
            ("us -> eu", Target::Path("us", "eu")),
            ("eu-berlin", Target::Everything),
            ("everything", Target::Everything),
        ] {
            assert_eq!(target(&facts, name), expected, "{name}");
        }
    }

    #[test]
    fn a_path_concerns_what_crosses_it() {
        let lines = Example::new()
            .live("alice-phone", "eu")
            .live("bob-phone", "us")
            .live("carol-phone", "eu")
            .begin("cut", "partition", "eu-us")
            .lines();
        let facts = Facts::of(&lines, &mut Findings::default()).unwrap();
        let concerned = concerned(&facts, &facts.spans[0]);
        assert!(concerned.passes("alice-phone", "bob-phone") && concerned.passes("bob-phone", "carol-phone"));
        assert!(!concerned.passes("alice-phone", "carol-phone"));
        assert!(!concerned.has("alice-tablet"));
    }

    #[test]
    fn nobody_is_beyond_reach_without_a_fault_that_stands() {
        let killed = |healed: bool| {
            let mut example = Example::new().live("bob-phone", "us").begin("gone", "app-kill", "bob-phone");
            example = example.stop("bob-phone", "killed").then(|e| if healed { e.finish("gone", 3) } else { e });
            let lines = example.phase("quiet").end().lines();
            let facts = Facts::of(&lines, &mut Findings::default()).unwrap();
            BeyondReach::of(&facts).devices.len()
        };
        assert_eq!((killed(false), killed(true)), (1, 0));
    }
}
