//! Devices and groups of their users.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use tern_netsim_link::limits::INTERFACES_MAX;
use tern_netsim_link::{Dependence, LinkSpec, NatSpec, PortChoice};

use crate::draws::Draws;
use crate::fields::{Fields, things};
use crate::limits::DEVICES_MAX;
use crate::plan::{DevicePlan, GroupPlan, InterfacePlan};
use crate::problem::{Bag, Sources, Spot, instead};
use crate::read::topology::Topology;
use crate::read::{links, matches, name_flaw};
use crate::tree::{Node, Table, Value};
use crate::units;

/// Behind a NAT: carriers' shared space (RFC 6598), which nobody else in a scenario uses.
const INSIDE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);

const MAPPINGS: [(&str, Dependence); 3] =
    [("EIM", Dependence::Independent), ("ADM", Dependence::Address), ("APDM", Dependence::AddressAndPort)];
const FILTERS: [(&str, Dependence); 3] =
    [("EIF", Dependence::Independent), ("ADF", Dependence::Address), ("APDF", Dependence::AddressAndPort)];
const CHOICES: [(&str, PortChoice); 2] = [("preserve", PortChoice::Preserve), ("next", PortChoice::Next)];

/// Hands out addresses, none twice.
struct Addresses {
    taken: BTreeSet<Ipv4Addr>,
    /// How many of each block have been tried.
    used: BTreeMap<Ipv4Addr, u32>,
}

impl Addresses {
    /// The next of a block that is neither the first nor the last of 256.
    fn next(&mut self, block: Ipv4Addr) -> Ipv4Addr {
        loop {
            let used = self.used.entry(block).or_default();
            *used += 1;
            let address = Ipv4Addr::from(u32::from(block).wrapping_add(*used));
            if !matches!(address.octets()[3], 0 | 255) && self.taken.insert(address) {
                return address;
            }
        }
    }
}

/// An interface before it has addresses.
struct Way {
    name: String,
    profile: String,
    link: LinkSpec,
    nat: Option<NatSpec>,
    address: Option<Ipv4Addr>,
    outside: Option<Ipv4Addr>,
}

pub(crate) fn read(root: &Table, topology: &Topology, sources: &Sources, draws: &Draws, bag: &Bag) -> Vec<DevicePlan> {
    let mut devices: Vec<DevicePlan> = Vec::new();
    let mut ids = BTreeSet::new();
    let nodes = things(root, "device", bag);
    let mut addresses = Addresses { taken: explicit(&nodes, bag), used: BTreeMap::new() };
    for node in &nodes {
        let Some(f) = Fields::of("a device", node, bag) else { continue };
        let Some(id) = f.need_text("id", "\"alice-phone\"") else { continue };
        let f = f.called(format!("device \"{id}\""));
        if let Some(flaw) = name_flaw(id) {
            f.note("id", flaw);
        }
        let count = f.get("count").and_then(|_| f.whole("count", 1, DEVICES_MAX as u64));
        let user = match count {
            Some(_) => f.text("user").unwrap_or(id),
            None => f.need_text("user", "\"alice\"").unwrap_or(id),
        };
        if let Some(flaw) = name_flaw(user) {
            f.note("user", flaw);
        }
        let place = place(&f, topology);
        let ways = interfaces(&f, sources, count.is_some());
        let starts = f.times("starts").unwrap_or((0, 0));
        let dispatch = f.text("dispatch");
        if let Some(region) = dispatch.filter(|region| !topology.is_region(region)) {
            f.note("dispatch", format!("no region \"{region}\": {}", instead(region, topology.region_names())));
        }
        let nearest = || topology.nearest(&place).map(|region| region.name.clone()).unwrap_or_default();
        let dispatch = dispatch.map_or_else(nearest, str::to_owned);
        f.done();
        let block = topology.block(&place);
        for number in 1..=count.unwrap_or(1) {
            let name = |base: &str| if count.is_some() { format!("{base}-{number:04}") } else { base.to_owned() };
            let id = name(id);
            if devices.len() >= DEVICES_MAX {
                f.note("count", format!("more than {DEVICES_MAX} devices in one scenario: take fewer"));
                break;
            }
            if !ids.insert(id.clone()) {
                f.note("id", format!("a second device \"{id}\": give it another id, or leave one out"));
                continue;
            }
            let starts_ns = draws.within("device", &id, "starts", starts);
            let interfaces = ways.iter().map(|way| addressed(way, block, &mut addresses)).collect();
            let (user, place, dispatch) = (name(user), place.clone(), dispatch.clone());
            devices.push(DevicePlan { id, user, place, interfaces, starts_ns, dispatch });
        }
    }
    if devices.is_empty() {
        bag.note(Spot { file: 0, at: 0 }, "there is no device: write [[device]] with an id, a user and a place");
    }
    devices
}

fn place(f: &Fields<'_>, topology: &Topology) -> String {
    let Some(place) = f.need_text("place", "\"germany\"") else {
        return topology.ends().next().unwrap_or("nowhere").to_owned();
    };
    if !topology.ends().any(|known| known == place) {
        f.note("place", format!("no place or region \"{place}\": {}", instead(place, topology.ends())));
    }
    place.to_owned()
}

fn addressed(way: &Way, block: Ipv4Addr, addresses: &mut Addresses) -> InterfacePlan {
    let Way { name, profile, link, nat, .. } = way;
    let (inside, outside) = match nat {
        Some(nat) => {
            let inside = way.address.unwrap_or_else(|| addresses.next(INSIDE));
            let outside = way.outside.unwrap_or_else(|| addresses.next(block));
            (inside, Some((nat.clone(), outside)))
        }
        None => (way.address.unwrap_or_else(|| addresses.next(block)), None),
    };
    InterfacePlan { name: name.clone(), profile: profile.clone(), link: link.clone(), address: inside, nat: outside }
}

/// Addresses that the scenario gives, so that none of them is handed out.
fn explicit(nodes: &[&Node], bag: &Bag) -> BTreeSet<Ipv4Addr> {
    let mut taken = BTreeSet::new();
    for node in nodes {
        let Value::Table(device) = &node.value else { continue };
        let Some((_, Node { value: Value::Table(interfaces), .. })) = device.get("iface") else { continue };
        for (_, node) in interfaces.values() {
            let Value::Table(interface) = &node.value else { continue };
            for (_, node) in ["address", "outside"].into_iter().filter_map(|key| interface.get(key)) {
                if let Some(Ok(address)) = node.plain().map(|text| text.parse())
                    && !taken.insert(address)
                {
                    bag.note(node.spot, format!("{address} a second time: leave it out, and one is found"));
                }
            }
        }
    }
    taken
}

fn address(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr =
        text.parse().map_err(|_| format!("\"{text}\" is no IPv4 address: leave it out, and one is found"))?;
    match address.octets() {
        [10, ..] => Err(format!("{address} is where regions have their addresses: take one outside of 10.0.0.0/8")),
        _ => Ok(address),
    }
}

fn interfaces(f: &Fields<'_>, sources: &Sources, many: bool) -> Vec<Way> {
    let common = f.get("nat").and_then(|node| nat(&f.what, node, f.bag()));
    let first = f.text("first");
    let mut ways = Vec::new();
    if let Some(node) = f.get("iface")
        && let Some(all) = Fields::of(format!("\"iface\" of {}", f.what), node, f.bag())
    {
        // In the order of the file; those of an extended file, which has a higher number, first.
        let mut entries: Vec<_> = all.entries().iter().collect();
        entries.sort_by_key(|(_, (spot, _))| (Reverse(spot.file), spot.at));
        for (name, (spot, node)) in entries {
            if let Some(flaw) = name_flaw(name) {
                f.bag().note(*spot, flaw);
            }
            if ["up", "down"].contains(&name.as_str()) {
                f.bag().note(*spot, format!("\"{name}\" is a direction: call the interface \"cell\" or \"wifi\""));
            }
            ways.push(interface(name, node, f, sources, common.as_ref(), many));
        }
        if ways.is_empty() || ways.len() > INTERFACES_MAX {
            f.note("iface", format!("a device has one to {INTERFACES_MAX} interfaces"));
        }
    }
    if ways.is_empty() {
        let (name, profile, link) = ("net".to_owned(), "wire".to_owned(), LinkSpec::default());
        ways.push(Way { name, profile, link, nat: common, address: None, outside: None });
    }
    if let Some(first) = first {
        match ways.iter().position(|way| way.name == first) {
            Some(index) => ways[..=index].rotate_right(1),
            None => {
                let known = instead(first, ways.iter().map(|way| way.name.as_str()));
                f.note("first", format!("{} has no interface \"{first}\": {known}", f.what));
            }
        }
    }
    ways
}

fn interface(name: &str, node: &Node, f: &Fields<'_>, sources: &Sources, common: Option<&NatSpec>, many: bool) -> Way {
    let what = format!("interface \"{name}\" of {}", f.what);
    let mut way = Way {
        name: name.to_owned(),
        profile: "wire".to_owned(),
        link: LinkSpec::default(),
        nat: common.cloned(),
        address: None,
        outside: None,
    };
    if let Value::Table(table) = &node.value {
        let i = Fields::new(what, node.spot, table, f.bag());
        (way.profile, way.link) = links::of_table(&i, sources);
        if let Some(node) = i.get("nat") {
            way.nat = nat(&i.what, node, f.bag());
        }
        way.address = i.unit("address", address);
        way.outside = i.unit("outside", address);
        if way.outside.is_some() && way.nat.is_none() {
            i.note("outside", "only a NAT has an address outside: write nat = \"home\" as well, or leave it out");
        }
        if many && (way.address.is_some() || way.outside.is_some()) {
            i.note("address", "several devices can't have one address: leave it out, and each gets its own");
        }
        i.done();
    } else if let Some((profile, link)) = links::of_node(&what, node, sources, f) {
        (way.profile, way.link) = (profile, link);
    }
    way
}

/// `"home"`, `"carrier"`, `"corporate"`, `"none"`, or a table.
fn nat(what: &str, node: &Node, bag: &Bag) -> Option<NatSpec> {
    if let Value::Text(name) = &node.value {
        let known = ["home", "carrier", "corporate", "none"];
        return match name.as_str() {
            "home" => Some(NatSpec::default()),
            "carrier" => Some(NatSpec::carrier()),
            "corporate" => Some(NatSpec::corporate()),
            "none" => None,
            _ => {
                bag.note(node.spot, format!("no NAT \"{name}\": {}", instead(name, known)));
                None
            }
        };
    }
    let n = Fields::of(format!("\"nat\" of {what}"), node, bag)?;
    let mut spec = NatSpec::default();
    spec.mapping = n.one_of("map", &MAPPINGS).unwrap_or(spec.mapping);
    spec.filtering = n.one_of("filter", &FILTERS).unwrap_or(spec.filtering);
    spec.udp_ns = n.time("udp_ttl").unwrap_or(spec.udp_ns);
    spec.udp_unanswered_ns = n.time("udp_unanswered_ttl");
    spec.renewed_from_outside = n.flag("renewed_from_outside").unwrap_or(spec.renewed_from_outside);
    spec.choice = n.one_of("ports", &CHOICES).unwrap_or(spec.choice);
    if let Some((low, high)) = n.unit("port_range", |text| units::range(text, port)) {
        spec.ports = u16::try_from(low).unwrap_or(1)..=u16::try_from(high).unwrap_or(u16::MAX);
    }
    spec.ports_per_host = n.whole("ports_per_host", 1, 65_535).and_then(|ports| u32::try_from(ports).ok());
    if spec.udp_ns == 0 || spec.udp_unanswered_ns == Some(0) {
        n.note("udp_ttl", "a NAT that forgets at once lets nothing in: write 1s or more");
    }
    n.done();
    Some(spec)
}

fn port(text: &str) -> Result<u64, String> {
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    port.map(u64::from).ok_or_else(|| format!("\"{text}\" is no port: write a range as \"1024..65535\""))
}

/// How a NAT's properties are written; the reverse of reading them.
pub(crate) fn nat_text(nat: &NatSpec) -> String {
    let word =
        |words: &[(&'static str, Dependence)], is| words.iter().find(|(_, one)| *one == is).map_or("", |(w, _)| w);
    let choice = CHOICES.iter().find(|(_, one)| *one == nat.choice).map_or("", |(word, _)| *word);
    let mut text = format!(
        "map = \"{}\", filter = \"{}\", udp_ttl = \"{}\", renewed_from_outside = {}, ports = \"{choice}\", port_range = \"{}..{}\"",
        word(&MAPPINGS, nat.mapping),
        word(&FILTERS, nat.filtering),
        units::time_text(nat.udp_ns),
        nat.renewed_from_outside,
        nat.ports.start(),
        nat.ports.end(),
    );
    if let Some(ns) = nat.udp_unanswered_ns {
        text.push_str(&format!(", udp_unanswered_ttl = \"{}\"", units::time_text(ns)));
    }
    if let Some(ports) = nat.ports_per_host {
        text.push_str(&format!(", ports_per_host = {ports}"));
    }
    format!("{{ {text} }}")
}

/// Groups, made by a device of one of their members.
pub(crate) fn groups(root: &Table, devices: &[DevicePlan], bag: &Bag) -> Vec<GroupPlan> {
    let users: BTreeSet<&str> = devices.iter().map(|device| device.user.as_str()).collect();
    let mut groups = Vec::new();
    for node in things(root, "group", bag) {
        let Some(f) = Fields::of("a group", node, bag) else { continue };
        let Some(id) = f.need_text("id", "\"team\"") else { continue };
        let f = f.called(format!("group \"{id}\""));
        if let Some(flaw) = name_flaw(id) {
            f.note("id", flaw);
        }
        if users.contains(id) {
            f.note("id", format!("\"{id}\" is a user: a load could not tell them apart; give the group another id"));
        }
        let mut members: Vec<String> = Vec::new();
        for (spot, wanted) in f.texts("members") {
            let found: Vec<&str> = users.iter().copied().filter(|user| matches(wanted, user)).collect();
            if found.is_empty() {
                bag.note(spot, format!("no user \"{wanted}\": {}", instead(wanted, users.iter().copied())));
            }
            members.extend(found.into_iter().map(str::to_owned));
        }
        members.sort_unstable();
        members.dedup();
        if f.get("members").is_none() {
            f.missing("members", "[\"alice\", \"bob\"]");
        }
        let creator = f.need_text("creator", "\"alice-phone\", one of its members' devices").unwrap_or_default();
        match devices.iter().find(|device| device.id == creator) {
            Some(device) if !members.contains(&device.user) => {
                f.note("creator", format!("\"{}\" makes the group and is not in it: add it to members", device.user));
            }
            None if !creator.is_empty() => {
                let known = instead(creator, devices.iter().map(|device| device.id.as_str()));
                f.note("creator", format!("no device \"{creator}\": {known}"));
            }
            _ => {}
        }
        f.done();
        groups.push(GroupPlan { id: id.to_owned(), creator: creator.to_owned(), members });
    }
    groups
}
