//! What each kind of fault does to its target.
//!
//! A target is a device (`alice-phone`), one of its interfaces (`alice-phone.cell`), a direction of either
//! (`alice-phone.cell.down`), a path both ways or one way (`eu<->us`, `eu->us`), a region, or an edge (`eu-e2`). A
//! device may be a pattern (`herd-*`): then each of them is hit, at the same time. Whatever a target names must exist,
//! and a kind that finds nothing to work on (a NAT to rebind where there is none) is a mistake, not a fault without
//! effect.

use tern_netsim_link::{HandOver, Spec};

use crate::fields::Fields;
use crate::plan::{Blocked, DevicePlan, Down, Effect, Patch, Ways};
use crate::problem::{Sources, instead};
use crate::read::links::{self, OUTAGES};
use crate::read::loads::Cast;
use crate::read::matches;
use crate::read::topology::Topology;
use crate::units;

/// What can be a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// A device, an interface, a direction.
    Link,
    /// A device or an interface.
    Interface,
    /// A device.
    Device,
    /// A path.
    Path,
    /// A link or a path.
    LinkOrPath,
    /// A region.
    Region,
    /// An edge that is a process of its own.
    Edge,
    /// A region, an edge or a device.
    Node,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// As scenarios name it.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    pub(crate) on: On,
    /// It may have `for`.
    pub(crate) lasts: bool,
    /// It is over as soon as it began.
    pub(crate) at_once: bool,
}

const fn kind(name: &'static str, on: On, lasts: bool, about: &'static str) -> Kind {
    Kind { name, about, on, lasts, at_once: false }
}

const fn at_once(name: &'static str, on: On, about: &'static str) -> Kind {
    Kind { name, about, on, lasts: false, at_once: true }
}

/// What a `block` blocks.
fn blocked(f: &Fields<'_>) -> Blocked {
    let web = Blocked::AllButWeb { longest_ns: None };
    let all = [("udp", Blocked::Udp), ("tcp", Blocked::Tcp), ("captive", Blocked::Captive), ("all-but-web", web)];
    if f.get("what").is_none() {
        f.missing("what", "\"udp\", \"tcp\", \"captive\" or \"all-but-web\"");
    }
    let what = f.one_of("what", &all).unwrap_or(Blocked::Udp);
    let longest_ns = f.time("longest");
    match what {
        Blocked::AllButWeb { .. } => Blocked::AllButWeb { longest_ns },
        _ if longest_ns.is_some() => {
            f.note("longest", "only what = \"all-but-web\" cuts streams: write that, or leave it out");
            what
        }
        _ => what,
    }
}

/// All kinds.
pub const KINDS: [Kind; 21] = [
    kind("outage", On::Link, true, "An access link is dark: packets are lost, or wait until it ends."),
    kind("degrade", On::LinkOrPath, true, "A link or path is another one: slower, lossier, with another MTU."),
    kind("cut", On::Path, true, "A path between regions or places loses everything."),
    kind(
        "block",
        On::Interface,
        true,
        "The access network lets no UDP through, or no TCP, or only the web, or is a captive portal.",
    ),
    at_once("handover", On::Device, "A device goes to another interface, with a gap or an overlap."),
    at_once("new-address", On::Interface, "An interface gets another address, as after a hole in the coverage."),
    at_once("nat-rebind", On::Interface, "The NAT forgets everything and gives other ports."),
    kind("app-kill", On::Device, true, "The app is killed; at the end it is opened again."),
    kind("suspend", On::Device, true, "The system suspends the app; at the end it goes on."),
    kind("region-kill", On::Region, true, "A region's process is killed; at the end it starts again on its disk."),
    kind("region-power", On::Region, true, "A region has no power: nobody is told, and what was not synced is lost."),
    kind("region-destroy", On::Region, true, "A region has no power, and comes back with an empty disk."),
    kind(
        "region-rewind",
        On::Region,
        true,
        "At the end a region dies, and starts on its disk as it was at the beginning.",
    ),
    kind("region-pause", On::Region, true, "A region stands still, then goes on as if nothing were."),
    kind("region-drain", On::Region, true, "A region is stopped as an operator does."),
    kind("edge-kill", On::Edge, true, "An edge's process is killed."),
    kind("edge-power", On::Edge, true, "An edge has no power: nobody is told."),
    kind("edge-pause", On::Edge, true, "An edge stands still, then goes on."),
    kind("edge-drain", On::Edge, true, "An edge is stopped as an operator does, and sends its clients elsewhere."),
    kind("clock", On::Node, true, "A calendar clock jumps, or runs too fast or too slow; at the end it is set right."),
    kind("disk", On::Region, true, "A region's disk takes long to sync."),
];

/// One thing that a fault hits.
pub(crate) struct Hit {
    /// The device, where several are hit.
    pub name: String,
    /// As it would be written for it alone.
    pub target: String,
    pub effect: Effect,
}

/// What there is to hit.
pub(crate) struct Stage<'p> {
    pub topology: &'p Topology,
    pub cast: &'p Cast<'p>,
}

/// A device, and what of it.
struct Part<'p> {
    device: &'p DevicePlan,
    interface: Option<String>,
    ways: Ways,
    target: String,
}

const BOTH: Ways = Ways { up: true, down: true };

impl<'p> Stage<'p> {
    /// What a fault of this kind hits, with its own keys read.
    pub fn hits(
        &self,
        kind: &Kind,
        target: &str,
        f: &Fields<'_>,
        sources: &Sources,
        draw: &dyn Fn(&str, (u64, u64)) -> u64,
    ) -> Vec<Hit> {
        let is_path = target.contains("->");
        match kind.on {
            On::Path | On::LinkOrPath if is_path => self.path_hits(kind, target, f, sources),
            On::Path => {
                f.note(
                    "target",
                    format!("\"{target}\" is no path: write \"eu<->us\", or \"eu->us\" for one direction"),
                );
                Vec::new()
            }
            _ if is_path => {
                let fix = "for a path write kind = \"cut\" or \"degrade\"";
                f.note("target", format!("\"{target}\" is a path, which {} does not hit: {fix}", kind.name));
                Vec::new()
            }
            On::Region | On::Edge | On::Node => self.node_hits(kind, target, f, draw),
            _ => self.device_hits(kind, target, f, sources, draw),
        }
    }

    fn path_hits(&self, kind: &Kind, target: &str, f: &Fields<'_>, sources: &Sources) -> Vec<Hit> {
        let (both, sides) = match target.split_once("<->") {
            Some(sides) => (true, Some(sides)),
            None => (false, target.split_once("->")),
        };
        let Some((a, b)) = sides.map(|(a, b)| (a.trim(), b.trim())) else { return Vec::new() };
        for end in [a, b] {
            if !self.topology.ends().any(|known| known == end) {
                f.note("target", format!("no region or place \"{end}\": {}", instead(end, self.topology.ends())));
                return Vec::new();
            }
        }
        let Some(path) = self.topology.path(a, b) else {
            f.note("target", format!("there is no path between {a} and {b}: paths lead to regions"));
            return Vec::new();
        };
        let ways = Ways { up: true, down: both };
        let (a, b) = (a.to_owned(), b.to_owned());
        let effect = if kind.name == "cut" {
            Effect::PathCut { a, b, ways }
        } else {
            let change = patch(f, sources);
            let spec = path.link.as_ref().map(|link| link.up.clone()).unwrap_or_default();
            check(&change, &spec, f);
            Effect::PathChange { a, b, ways, change }
        };
        vec![Hit { name: String::new(), target: target.to_owned(), effect }]
    }

    fn node_hits(&self, kind: &Kind, target: &str, f: &Fields<'_>, draw: &dyn Fn(&str, (u64, u64)) -> u64) -> Vec<Hit> {
        let edges: Vec<String> = self.edges();
        let is_region = self.topology.is_region(target);
        let is_edge = edges.iter().any(|edge| edge == target);
        let is_device = self.cast.devices.iter().any(|device| device.id == target);
        let own_edge = target.strip_suffix("-e1").filter(|region| self.topology.is_region(region));
        let fits = match kind.on {
            On::Region => is_region,
            On::Edge => is_edge,
            _ => is_region || is_edge || is_device,
        };
        if !fits {
            let regions = self.topology.region_names();
            let text = match (kind.on, own_edge) {
                (On::Region, _) => format!("no region \"{target}\": {}", instead(target, regions)),
                (_, Some(region)) => {
                    format!(
                        "\"{target}\" is part of the process of region \"{region}\": hit the region, or \"{region}-e2\""
                    )
                }
                (On::Edge, None) if edges.is_empty() => {
                    format!("no edge \"{target}\": give a region edges = 1, which makes \"eu-e2\" of region \"eu\"")
                }
                (On::Edge, None) => {
                    format!("no edge \"{target}\": {}", instead(target, edges.iter().map(String::as_str)))
                }
                _ => {
                    let devices = self.cast.devices.iter().map(|device| device.id.as_str());
                    let known: Vec<&str> = regions.chain(edges.iter().map(String::as_str)).chain(devices).collect();
                    format!("no region, edge or device \"{target}\": {}", instead(target, known))
                }
            };
            f.note("target", text);
        }
        let how = match kind.name.split_once('-').map(|(_, how)| how) {
            Some("kill") if kind.on == On::Region => {
                let lose = f.one_of("lose", &[("unsynced", true), ("nothing", false)]);
                Down::Kill { lose_unsynced: lose.unwrap_or(true) }
            }
            Some("kill") => Down::Kill { lose_unsynced: true },
            Some("power") => Down::Power,
            Some("destroy") => Down::Destroy,
            Some("rewind") => Down::Rewind,
            Some("pause") => Down::Pause,
            _ => Down::Drain,
        };
        let name = target.to_owned();
        let effect = match (kind.name, kind.on) {
            ("disk", _) => {
                if f.get("sync").is_none() {
                    f.missing("sync", "\"200ms\"");
                }
                let sync_ns = draw("sync", f.times("sync").unwrap_or((0, 0)));
                Effect::Disk { region: name, sync_ns }
            }
            ("clock", _) => {
                let step = f.unit("step", signed_ms);
                let drift = f.get("drift_ppm").and_then(|_| signed(f, "drift_ppm"));
                if f.get("step").is_none() && f.get("drift_ppm").is_none() {
                    f.missing("step", "\"10min\" or \"-10min\", or drift_ppm = 200");
                }
                Effect::Clock { node: name, step_ms: step.unwrap_or(0), drift_ppm: drift.unwrap_or(0) }
            }
            (_, On::Region) => Effect::Region { region: name, how },
            _ => Effect::Edge { edge: name, how },
        };
        vec![Hit { name: String::new(), target: target.to_owned(), effect }]
    }

    /// Edges that are processes of their own.
    fn edges(&self) -> Vec<String> {
        let of = |region: &crate::plan::RegionPlan| {
            let name = region.name.clone();
            (2..=u32::from(region.edges) + 1).map(move |number| format!("{name}-e{number}"))
        };
        self.topology.regions.iter().flat_map(of).collect()
    }

    fn device_hits(
        &self,
        kind: &Kind,
        target: &str,
        f: &Fields<'_>,
        sources: &Sources,
        draw: &dyn Fn(&str, (u64, u64)) -> u64,
    ) -> Vec<Hit> {
        let parts = self.parts(kind, target, f);
        let outage = f.one_of_if(kind.name == "outage", "how", &OUTAGES).unwrap_or(tern_netsim_link::Outage::Loses);
        let change = if kind.name == "degrade" { patch(f, sources) } else { Patch::default() };
        let blocks = if kind.name == "block" { blocked(f) } else { Blocked::Udp };
        let (to, how) = if kind.name == "handover" {
            let time = |key| draw(key, f.times(key).unwrap_or((0, 0)));
            (f.text("to"), HandOver { gap_ns: time("gap"), overlap_ns: time("overlap") })
        } else {
            (None, HandOver::default())
        };
        let hit = |part: Part<'p>| {
            let Part { device: plan, interface, ways, target } = part;
            let device = plan.id.clone();
            let touched = plan.interfaces.iter().filter(|one| interface.as_ref().is_none_or(|name| *name == one.name));
            let effect = match kind.name {
                "outage" => Effect::LinkOutage { device, interface, ways, outage },
                "degrade" => {
                    for one in touched {
                        check(&change, &one.link.up, f);
                        check(&change, &one.link.down, f);
                    }
                    Effect::LinkChange { device, interface, ways, change: change.clone() }
                }
                "block" => Effect::Block { device, interface, what: blocks },
                "handover" => {
                    if let Some(to) = to.filter(|to| plan.interfaces.iter().all(|one| one.name != **to)) {
                        let known = instead(to, plan.interfaces.iter().map(|one| one.name.as_str()));
                        f.note("to", format!("\"{device}\" has no interface \"{to}\": {known}"));
                    }
                    Effect::HandOver { device, to: to.map(str::to_owned), how }
                }
                "new-address" => Effect::NewAddress { device, interface },
                "nat-rebind" => {
                    if touched.into_iter().all(|one| one.nat.is_none()) {
                        f.note("target", format!("\"{target}\" is behind no NAT: give it nat = \"carrier\""));
                    }
                    Effect::NatRebind { device, interface }
                }
                "app-kill" => Effect::AppKill { device },
                _ => Effect::Suspend { device },
            };
            Hit { name: plan.id.clone(), target, effect }
        };
        parts.into_iter().map(hit).collect()
    }

    /// The devices of a target, and what of each.
    fn parts(&self, kind: &Kind, target: &str, f: &Fields<'_>) -> Vec<Part<'p>> {
        let mut words = target.split('.');
        let pattern = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        let devices: Vec<&DevicePlan> = self.cast.devices.iter().filter(|one| matches(pattern, &one.id)).collect();
        if devices.is_empty() {
            let known = instead(pattern, self.cast.devices.iter().map(|device| device.id.as_str()));
            let text = if self.topology.is_region(pattern) || self.edges().iter().any(|edge| edge == pattern) {
                let fix = "write kind = \"region-kill\", \"edge-kill\" or one of their like, or name a device";
                format!("\"{pattern}\" is no device, and {} hits devices: {fix}", kind.name)
            } else {
                format!("no device \"{pattern}\": {known}")
            };
            f.note("target", text);
            return Vec::new();
        }
        let way = |word: &str| match word {
            "up" => Some(Ways { up: true, down: false }),
            "down" => Some(Ways { up: false, down: true }),
            _ => None,
        };
        let (interface, ways) = match rest.as_slice() {
            [] => (None, None),
            [one] => way(one).map_or((Some(*one), None), |ways| (None, Some(ways))),
            [one, two] if way(two).is_some() => (Some(*one), way(two)),
            _ => {
                f.note("target", format!("\"{target}\" names too much: write \"{pattern}.cell.down\" at most"));
                return Vec::new();
            }
        };
        if ways.is_some() && !matches!(kind.on, On::Link | On::LinkOrPath) {
            f.note("target", format!("{} has no direction: leave \".up\" or \".down\" out", kind.name));
        }
        if interface.is_some() && kind.on == On::Device {
            f.note("target", format!("{} hits a device as a whole: write \"{pattern}\"", kind.name));
        }
        let mut parts = Vec::new();
        for device in devices {
            if let Some(name) = interface.filter(|name| device.interfaces.iter().all(|one| one.name != **name)) {
                let known = instead(name, device.interfaces.iter().map(|one| one.name.as_str()));
                f.note("target", format!("\"{}\" has no interface \"{name}\": {known}", device.id));
                continue;
            }
            let target = rest.iter().fold(device.id.clone(), |target, word| format!("{target}.{word}"));
            let interface = interface.map(str::to_owned);
            parts.push(Part { device, interface, ways: ways.unwrap_or(BOTH), target });
        }
        parts
    }
}

/// What a `degrade` changes.
fn patch(f: &Fields<'_>, sources: &Sources) -> Patch {
    let link = f.get("as").and_then(|node| links::of_node(&format!("\"as\" of {}", f.what), node, sources, f));
    let rate = links::rate(f, sources);
    let constant = if let Some(tern_netsim_link::Rate::Constant(bps)) = rate { Some(bps) } else { None };
    let patch = Patch {
        link: link.map(|(_, link)| Box::new(link)),
        rate,
        delay_ns: f.time("delay"),
        jitter: links::jitter(f),
        loss: links::loss(f),
        duplicate: f.unit("duplicate", units::chance),
        reorder: links::reorder(f),
        corrupt: links::corrupt(f),
        mtu: links::mtu(f),
        queue: links::queue(f, constant),
    };
    let keys = ["as", "rate", "delay", "jitter", "loss", "duplicate", "reorder", "corrupt", "mtu", "queue"];
    if keys.into_iter().all(|key| f.get(key).is_none()) {
        f.missing("loss", "\"5%\", or another property of the link that it changes");
    }
    patch
}

/// Whether a link can be run with a change.
fn check(patch: &Patch, spec: &Spec, f: &Fields<'_>) {
    for up in [true, false] {
        if let Err(error) = patch.apply(spec, up).check() {
            f.note("kind", error.to_string());
        }
    }
}

/// `-10min` in milliseconds.
fn signed_ms(text: &str) -> Result<i64, String> {
    let (minus, rest) = text.trim().strip_prefix('-').map_or((false, text.trim()), |rest| (true, rest));
    let ns = units::time(rest)?;
    if !ns.is_multiple_of(1_000_000) || ns == 0 {
        return Err(format!("\"{text}\" is no step of a clock: write whole milliseconds, as \"10min\" or \"-500ms\""));
    }
    let ms = i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX);
    Ok(if minus { -ms } else { ms })
}

fn signed(f: &Fields<'_>, key: &'static str) -> Option<i32> {
    let number = match f.get(key)?.value {
        crate::tree::Value::Whole(number) => i32::try_from(number).ok().filter(|ppm| ppm.abs() <= 100_000),
        _ => None,
    };
    if number.is_none() {
        f.note(key, format!("\"{key}\" must be a whole number from -100000 to 100000"));
    }
    number
}
