//! Regions, places, and how far they are from each other.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use tern_netsim_link::LinkSpec;

use crate::fields::{Fields, things};
use crate::limits::REGION_NUMBER_MAX;
use crate::places::{CLOUD, block_at, cloud, cloud_rtt_ns};
use crate::plan::{PathPlan, RegionPlan};
use crate::problem::{Bag, Sources, Spot, instead};
use crate::read::{links, name_flaw};
use crate::tree::{Node, Table, Value};

/// What devices and faults ask of a topology.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    pub regions: Vec<RegionPlan>,
    /// Names of places that are not regions, in order, each with the block that its devices' addresses are of.
    pub places: Vec<Place>,
    pub paths: Vec<PathPlan>,
}

#[derive(Debug)]
pub(crate) struct Place {
    pub name: String,
    pub block: Option<Ipv4Addr>,
}

/// Of each region, where it stands in the file, and the data centre that it is said to be.
type Clouds = BTreeMap<String, (Spot, Option<String>)>;
/// Of each place, where it stands in the file, and the region that it is near, with nanoseconds one way.
type Nears = BTreeMap<String, (Spot, Option<(String, u64)>)>;

/// A path as the scenario gives it.
struct Given {
    a: String,
    b: String,
    latency_ns: u64,
    link: Option<LinkSpec>,
}

impl Topology {
    pub fn read(root: &Table, sources: &Sources, bag: &Bag) -> Self {
        let (regions, clouds) = regions(root, bag);
        let mut topology = Self { regions, ..Self::default() };
        let near = topology.read_places(root, bag);
        let mut given = topology.given_paths(root, sources, bag);
        topology.connect(&clouds, &near, &mut given, bag);
        topology
    }

    pub fn is_region(&self, name: &str) -> bool {
        self.regions.iter().any(|region| region.name == name)
    }

    pub fn region_names(&self) -> impl Iterator<Item = &str> + Clone {
        self.regions.iter().map(|region| region.name.as_str())
    }

    /// Regions and places.
    pub fn ends(&self) -> impl Iterator<Item = &str> + Clone {
        self.region_names().chain(self.places.iter().map(|place| place.name.as_str()))
    }

    /// The path between two ends, whichever is first.
    pub fn path(&self, a: &str, b: &str) -> Option<&PathPlan> {
        self.paths.iter().find(|path| (path.a == a && path.b == b) || (path.a == b && path.b == a))
    }

    /// The region nearest to a place; of equals the first.
    pub fn nearest(&self, place: &str) -> Option<&RegionPlan> {
        let away = |region: &&RegionPlan| match region.name == place {
            true => 0,
            false => self.path(&region.name, place).map_or(u64::MAX, |path| path.latency_ns),
        };
        self.regions.iter().min_by_key(away)
    }

    /// The first address of the block for devices of a place.
    pub fn block(&self, place: &str) -> Ipv4Addr {
        let own = self.places.iter().find(|one| one.name == place).and_then(|one| one.block);
        own.unwrap_or_else(|| block_at(self.nearest(place).map_or((0.0, 0.0), |region| region.at)))
    }

    fn read_places(&mut self, root: &Table, bag: &Bag) -> Nears {
        let mut all = BTreeMap::new();
        for node in things(root, "place", bag) {
            let Some(f) = Fields::of("a place", node, bag) else { continue };
            let Some(name) = f.need_text("name", "\"germany\"") else { continue };
            let f = f.called(format!("place \"{name}\""));
            if let Some(flaw) = name_flaw(name) {
                f.note("name", flaw);
            }
            if self.is_region(name) {
                f.note(
                    "name",
                    format!("\"{name}\" is a region, which is a place already: give the place another name"),
                );
            }
            let (near, rtt_ns) = (f.text("near"), f.time("rtt"));
            if let Some(near) = near.filter(|near| !self.is_region(near)) {
                f.note("near", format!("no region \"{near}\": {}", instead(near, self.region_names())));
            }
            match (near, rtt_ns) {
                (Some(_), None) if f.get("rtt").is_none() => f.missing("rtt", "\"10ms\""),
                (None, Some(_)) if f.get("near").is_none() => {
                    f.missing("near", "\"eu\", the region that the rtt is to");
                }
                _ => {}
            }
            let said = f.get("near").is_some() || f.get("rtt").is_some();
            let near = near.filter(|near| self.is_region(near)).zip(rtt_ns);
            // What was said wrongly has been noted, and needs no second note for each region.
            if near.is_some() || !said {
                all.insert(name.to_owned(), (f.spot, near.map(|(near, rtt_ns)| (near.to_owned(), rtt_ns / 2))));
            }
            self.places.push(Place { name: name.to_owned(), block: f.unit("addresses", block) });
            f.done();
        }
        all
    }

    fn given_paths(&self, root: &Table, sources: &Sources, bag: &Bag) -> Vec<Given> {
        let mut all = Vec::new();
        for node in things(root, "path", bag) {
            let Some(f) = Fields::of("a path", node, bag) else { continue };
            if f.get("between").is_none() {
                f.missing("between", "[\"eu\", \"us\"]");
            }
            let ends = f.texts("between");
            for (spot, end) in &ends {
                if !self.ends().any(|known| known == *end) {
                    bag.note(*spot, format!("no region or place \"{end}\": {}", instead(end, self.ends())));
                }
            }
            let [(_, a), (spot, b)] = ends.as_slice() else {
                if f.get("between").is_some() {
                    f.note("between", "a path has two ends: write between = [\"eu\", \"us\"]");
                }
                continue;
            };
            let f = f.called(format!("path {a}<->{b}"));
            if a == b {
                bag.note(*spot, "a path leads from one end to another: these are the same");
            } else if !self.is_region(a) && !self.is_region(b) {
                bag.note(*spot, "nothing is sent between two places: one end must be a region");
            }
            let (rtt_ns, latency_ns) = (f.time("rtt"), f.time("latency"));
            let plain_ns = latency_ns.or(rtt_ns.map(|ns| ns / 2));
            let rich = links::is_more_than_delay(&f) || f.get("delay").is_some();
            let link = rich.then(|| {
                let (_, mut link) = links::of_table(&f, sources);
                if let Some(ns) = plain_ns {
                    (link.up.delay.base_ns, link.down.delay.base_ns) = (ns, ns);
                }
                link
            });
            let latency_ns = link.as_ref().map(|link| link.up.delay.base_ns).or(plain_ns);
            if latency_ns.is_none() && f.get("rtt").is_none() && f.get("latency").is_none() {
                f.missing("rtt", "\"90ms\"");
            }
            f.done();
            all.push(Given { a: (*a).to_owned(), b: (*b).to_owned(), latency_ns: latency_ns.unwrap_or(0), link });
        }
        all
    }

    /// One path for each pair of regions, and for each place and region.
    fn connect(&mut self, clouds: &Clouds, near: &Nears, given: &mut Vec<Given>, bag: &Bag) {
        let mut take = |a: &str, b: &str| {
            let is = |path: &Given| (path.a == a && path.b == b) || (path.a == b && path.b == a);
            let index = given.iter().position(is)?;
            let Given { a, b, latency_ns, link } = given.remove(index);
            Some(PathPlan { a, b, latency_ns, link })
        };
        for (index, region) in self.regions.iter().enumerate() {
            for other in &self.regions[index + 1..] {
                let (a, b) = (region.name.clone(), other.name.clone());
                if let Some(path) = take(&a, &b) {
                    self.paths.push(path);
                    continue;
                }
                let cloud = |name: &str| clouds.get(name).and_then(|(_, cloud)| cloud.as_deref());
                let unknown = |name: &str| cloud(name).is_some_and(|name| crate::places::cloud(name).is_none());
                if unknown(&a) || unknown(&b) {
                    continue;
                }
                match cloud(&a).zip(cloud(&b)).and_then(|(a, b)| cloud_rtt_ns(a, b)) {
                    Some(rtt_ns) => self.paths.push(PathPlan { a, b, latency_ns: rtt_ns / 2, link: None }),
                    None => {
                        let spot = clouds.get(&b).map_or(Spot { file: 0, at: 0 }, |(spot, _)| *spot);
                        let fix =
                            format!("write [[path]] with between = [\"{a}\", \"{b}\"] and an rtt, or aws = at both");
                        bag.note(spot, format!("nobody says how far {a} and {b} are from each other: {fix}"));
                    }
                }
            }
        }
        for place in &self.places {
            for region in &self.regions {
                let (a, b) = (place.name.clone(), region.name.clone());
                if let Some(path) = take(&a, &b) {
                    self.paths.push(path);
                    continue;
                }
                let Some((spot, near)) = near.get(&a) else { continue };
                let Some((near, own_ns)) = near else {
                    let fix = format!("write near = and rtt =, or [[path]] with between = [\"{a}\", \"{b}\"]");
                    bag.note(*spot, format!("nobody says how far {a} is from {b}: {fix}"));
                    continue;
                };
                let onward_ns = if *near == b { Some(0) } else { self.path(near, &b).map(|path| path.latency_ns) };
                // Without a path between the regions that has been noted already.
                let latency_ns = own_ns + onward_ns.unwrap_or(0);
                self.paths.push(PathPlan { a, b, latency_ns, link: None });
            }
        }
    }
}

fn regions(root: &Table, bag: &Bag) -> (Vec<RegionPlan>, Clouds) {
    let (mut regions, mut clouds) = (Vec::<RegionPlan>::new(), BTreeMap::new());
    for node in things(root, "region", bag) {
        let Some(f) = Fields::of("a region", node, bag) else { continue };
        let Some(name) = f.need_text("name", "\"eu\"") else { continue };
        let f = f.called(format!("region \"{name}\""));
        if let Some(flaw) = name_flaw(name) {
            f.note("name", flaw);
        }
        let aws = f.text("aws");
        let known = aws.and_then(cloud);
        if let Some(aws) = aws.filter(|_| known.is_none()) {
            f.note("aws", format!("no data centre \"{aws}\": {}", instead(aws, CLOUD.iter().map(|(name, _)| *name))));
        }
        let at = match f.get("at") {
            Some(node) => coordinates(node, bag),
            None => known,
        };
        if at.is_none() && aws.is_none() && f.get("at").is_none() {
            f.missing("aws", "\"euc1\", or at = [50.11, 8.68]");
        }
        let free = (1..=u8::MAX).find(|number| regions.iter().all(|region| region.number != *number));
        let number = match f.get("number") {
            Some(_) => f.whole("number", 1, REGION_NUMBER_MAX).and_then(|number| u8::try_from(number).ok()),
            None => free,
        };
        let number = number.unwrap_or(1);
        if let Some(same) = regions.iter().find(|region| region.number == number) {
            f.note("number", format!("{number} is the number of region \"{}\" already: take another", same.name));
        }
        let edges = f.whole("edges", 0, 16).and_then(|edges| u8::try_from(edges).ok()).unwrap_or(0);
        f.done();
        clouds.insert(name.to_owned(), (f.spot, aws.map(str::to_owned)));
        regions.push(RegionPlan { name: name.to_owned(), number, at: at.unwrap_or((0.0, 0.0)), edges });
    }
    if regions.is_empty() {
        let spot = root.get("region").map_or(Spot { file: 0, at: 0 }, |(spot, _)| *spot);
        bag.note(spot, "there is no region: write [[region]], or extends = [\"topo/3region.toml\"] in [scenario]");
    }
    (regions, clouds)
}

/// `[50.11, 8.68]`.
fn coordinates(node: &Node, bag: &Bag) -> Option<(f64, f64)> {
    let degrees = |node: &Node, most: f64| {
        let number = match &node.value {
            Value::Whole(_) | Value::Decimal(_) => node.plain()?.replace('_', "").parse::<f64>().ok(),
            _ => None,
        };
        number.filter(|number| number.abs() <= most)
    };
    let both = match &node.value {
        Value::List(two) if two.len() == 2 => degrees(&two[0], 90.0).zip(degrees(&two[1], 180.0)),
        _ => None,
    };
    if both.is_none() {
        bag.note(
            node.spot,
            "\"at\" is latitude and longitude in degrees, north and east positive: write at = [50.11, 8.68]",
        );
    }
    both
}

/// `91.0.0.0/16`: its first address.
fn block(text: &str) -> Result<Ipv4Addr, String> {
    let bad = || format!("\"{text}\" is no block of 65,536 addresses: write one as \"91.0.0.0/16\"");
    let first: Ipv4Addr = text.strip_suffix("/16").and_then(|first| first.parse().ok()).ok_or_else(bad)?;
    match first.octets() {
        [10, ..] => Err(format!("\"{text}\" is where regions have their addresses: take one outside of 10.0.0.0/8")),
        [100, 64..=127, ..] => Err(format!("\"{text}\" is what devices behind a NAT have inside: take another")),
        [_, _, 0, 0] => Ok(first),
        _ => Err(bad()),
    }
}
