//! What is the same for the whole deployment, what happens at the end, and what is expected.

use std::collections::BTreeMap;

use tern_netsim_verdict::Expect;

use crate::fields::{Fields, things};
use crate::plan::{Heal, Liveness, Options};
use crate::problem::{Bag, Spot, instead};
use crate::read::topology::Topology;
use crate::sometimes;
use crate::tree::{Node, Table, Value};
use crate::units;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

/// The fields of a top-level table, if it is there.
fn table<'a>(root: &'a Table, key: &'static str, bag: &'a Bag) -> Option<Fields<'a>> {
    let (_, node) = root.get(key)?;
    Fields::of(format!("[{key}]"), node, bag)
}

pub(crate) fn options(root: &Table, bag: &Bag) -> Options {
    // As a node does that nobody configured; a disk that takes 1 ms to sync is a good SSD.
    let mut options = Options { reoffer_after_ns: 3 * S, heartbeat_ns: 25 * S, disk_sync_ns: MS, disk_read_ns: 0 };
    let Some(f) = table(root, "options", bag) else { return options };
    options.reoffer_after_ns = f.time("reoffer_after").unwrap_or(options.reoffer_after_ns);
    options.heartbeat_ns = f.time("heartbeat").unwrap_or(options.heartbeat_ns);
    options.disk_sync_ns = f.time("disk_sync").unwrap_or(options.disk_sync_ns);
    options.disk_read_ns = f.time("disk_read").unwrap_or(options.disk_read_ns);
    for (key, ns) in [("heartbeat", options.heartbeat_ns), ("reoffer_after", options.reoffer_after_ns)] {
        if ns < MS {
            f.note(key, format!("\"{key}\" must be 1ms or more"));
        }
    }
    f.done();
    options
}

pub(crate) fn liveness(root: &Table, bag: &Bag) -> Liveness {
    let mut liveness = Liveness { heal: Heal::All, within_ns: 60 * S };
    let Some(f) = table(root, "liveness", bag) else { return liveness };
    let words = [("all", Heal::All), ("core", Heal::Core), ("nothing", Heal::Nothing)];
    liveness.heal = f.one_of("heal", &words).unwrap_or(liveness.heal);
    liveness.within_ns = f.time("within").unwrap_or(liveness.within_ns);
    if liveness.within_ns == 0 {
        f.note("within", "nothing calms down in no time: write \"60s\"");
    }
    f.done();
    liveness
}

pub(crate) fn read(root: &Table, topology: &Topology, bases: &BTreeMap<String, Vec<String>>, bag: &Bag) -> Expect {
    let mut expect = Expect::default();
    let Some(f) = table(root, "expect", bag) else { return expect };
    expect.converge_within_ns = f.time("converge_within");
    expect.deliver_p99_ns = f.time("deliver_p99");
    expect.connects_per_second = f.whole("connects_per_second", 1, u64::MAX);
    expect.bytes_per_hour = f.whole("bytes_per_hour", 1, u64::MAX);
    expect.wakeups_per_hour = f.whole("wakeups_per_hour", 1, u64::MAX);
    expect.presence_changes = f.whole("presence_changes", 0, u64::MAX);
    expect.failures = f.flag("failures").unwrap_or(false);
    expect.unacked = f.flag("unacked").unwrap_or(false);
    if let Some(node) = f.get("recover_within")
        && let Some(limits) = Fields::of("\"recover_within\"", node, bag)
    {
        for (name, (spot, node)) in limits.entries() {
            let limit_ns = crate::fields::unit(node, name, bag, units::time);
            for id in faults_of(name, *spot, bases, bag) {
                expect.recover_within_ns.insert(id, limit_ns.unwrap_or(0));
            }
        }
    }
    for (spot, name) in f.texts("unhit") {
        expect.unhit.extend(faults_of(name, spot, bases, bag));
    }
    for (spot, name) in f.texts("may_lose") {
        if !topology.is_region(name) {
            bag.note(spot, format!("no region \"{name}\": {}", instead(name, topology.region_names())));
        }
        expect.may_lose.push(name.to_owned());
    }
    f.done();
    expect
}

/// The fault of this id, or all that were written out from it.
fn faults_of(name: &str, spot: Spot, bases: &BTreeMap<String, Vec<String>>, bag: &Bag) -> Vec<String> {
    if let Some(ids) = bases.get(name) {
        return ids.clone();
    }
    if bases.values().flatten().any(|id| id == name) {
        return vec![name.to_owned()];
    }
    bag.note(spot, format!("no fault \"{name}\": {}", instead(name, bases.keys().map(String::as_str))));
    Vec::new()
}

pub(crate) fn sometimes(root: &Table, bag: &Bag) -> BTreeMap<String, u64> {
    let mut wanted = BTreeMap::new();
    let Some(f) = table(root, "sometimes", bag) else { return wanted };
    for (name, (spot, node)) in f.entries() {
        if !sometimes::NAMES.iter().any(|(known, _)| known == name) {
            let known = instead(name, sometimes::NAMES.iter().map(|(known, _)| *known));
            bag.note(*spot, format!("nothing is counted as \"{name}\": {known}"));
        }
        let least = match node.value {
            Value::Whole(number) => u64::try_from(number).ok().filter(|number| *number > 0),
            _ => None,
        };
        match least {
            Some(least) => {
                wanted.insert(name.clone(), least);
            }
            None => bag.note(node.spot, format!("\"{name}\" must happen at least so often: write {name} = 1")),
        }
    }
    wanted
}

/// The point of the matrix, and what a written-out plan says of its own.
pub(crate) fn point(root: &Table, point: &BTreeMap<String, String>, bag: &Bag) -> BTreeMap<String, String> {
    let mut point = point.clone();
    let Some(f) = table(root, "point", bag) else { return point };
    for (name, (_, node)) in f.entries() {
        match node.plain() {
            Some(value) => {
                point.insert(name.clone(), value);
            }
            None => bag.note(node.spot, format!("\"{name}\" is a value of a matrix: write a text")),
        }
    }
    point
}

/// Over real packets nobody sees what the system does.
pub(crate) fn no_triggers(root: &Table, bag: &Bag) {
    for array in ["fault", "action"] {
        for node in things(root, array, bag) {
            if let Value::Table(table) = &node.value
                && let Some((spot, Node { .. })) = table.get("when")
            {
                let fix = "write \"at\", or take \"tun\" out of drivers";
                bag.note(
                    *spot,
                    format!("only virtual time sees what the system does, so \"when\" can't be used with tun: {fix}"),
                );
            }
        }
    }
}
