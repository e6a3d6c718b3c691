//! From a tree of values to a plan.
//!
//! Each part reads its tables with [`crate::fields`], notes what is wrong, and goes on with something harmless. The
//! plan that comes out is worth something only if nothing was noted.

pub(crate) mod devices;
pub(crate) mod effects;
pub(crate) mod expect;
pub(crate) mod faults;
pub(crate) mod links;
pub(crate) mod loads;
pub(crate) mod spans;
pub(crate) mod topology;
pub(crate) mod when;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::draws::Draws;
use crate::limits::{DURATION_NS_MAX, ID_BYTES_MAX};
use crate::plan::Plan;
use crate::problem::{Bag, Sources, Spot};
use crate::read::effects::Stage;
use crate::read::loads::Cast;
use crate::read::topology::Topology;
use crate::tree::Table;
use crate::units::time_text;

/// The tables that a scenario may have.
const TABLES: [&str; 15] = [
    "scenario",
    "matrix",
    "point",
    "options",
    "region",
    "place",
    "path",
    "device",
    "group",
    "load",
    "action",
    "fault",
    "liveness",
    "expect",
    "sometimes",
];

/// What a scenario says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub name: String,
    pub about: String,
    pub file: PathBuf,
    /// It is also run over real packets, where nothing can wait for what the system does.
    pub real_time: bool,
}

/// The plan of a tree whose matrix has been put in.
pub(crate) fn plan(
    head: &Head,
    root: &Table,
    sources: &Sources,
    seed: u64,
    point: &BTreeMap<String, String>,
    bag: &Bag,
) -> Plan {
    for (key, (spot, _)) in root.iter().filter(|(key, _)| !TABLES.contains(&key.as_str())) {
        let known = crate::problem::instead(key, TABLES);
        bag.note(*spot, format!("a scenario has no table \"{key}\": {known}"));
    }
    let draws = Draws { seed };
    let duration_ns = duration(root, bag);
    let options = expect::options(root, bag);
    let topology = Topology::read(root, sources, bag);
    let devices = devices::read(root, &topology, sources, &draws, bag);
    let groups = devices::groups(root, &devices, bag);
    let cast = Cast::new(&devices, &groups);
    let loads = loads::read(root, &cast, duration_ns, bag);
    let stage = Stage { topology: &topology, cast: &cast };
    let (faults, spans, bases) = faults::read(root, &stage, sources, duration_ns, &draws, bag);
    let actions = loads::actions(root, &cast, &spans, duration_ns, &draws, bag);
    if head.real_time {
        expect::no_triggers(root, bag);
    }
    let liveness = expect::liveness(root, bag);
    let expect = expect::read(root, &topology, &bases, bag);
    let sometimes = expect::sometimes(root, bag);
    let point = expect::point(root, point, bag);
    let Topology { regions, paths, .. } = topology;
    let Head { name, about, file, .. } = head.clone();
    Plan {
        name,
        about,
        file,
        seed,
        point,
        duration_ns,
        liveness,
        options,
        regions,
        paths,
        devices,
        groups,
        loads,
        actions,
        faults,
        expect,
        sometimes,
    }
}

fn duration(root: &Table, bag: &Bag) -> u64 {
    let spot = root.get("scenario").map_or(Spot { file: 0, at: 0 }, |(spot, _)| *spot);
    let Some((_, node)) = root.get("scenario") else { return 0 };
    let Some(f) = crate::fields::Fields::of("scenario", node, bag) else { return 0 };
    let Some(duration_ns) = f.time("duration") else {
        if f.get("duration").is_none() {
            bag.note(spot, "the scenario has no \"duration\": write duration = \"60s\"");
        }
        return 0;
    };
    if duration_ns == 0 || duration_ns > DURATION_NS_MAX {
        f.note("duration", format!("a run lasts more than 0s and at most {}", time_text(DURATION_NS_MAX)));
    }
    duration_ns
}

/// Whether a name is meant by a pattern: a name, or one with `*` for any letters.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| matches(tail, &rest[at..]))
        }),
    }
}

/// What is wrong with a name that is part of others, if something is.
pub(crate) fn name_flaw(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(fits) {
        return Some(format!("\"{name}\" is no name: use letters, digits, - and _, as \"alice-phone\""));
    }
    (name.len() > ID_BYTES_MAX).then(|| format!("\"{name}\" is longer than {ID_BYTES_MAX} letters: shorten it"))
}

/// As [`name_flaw`], of a load or fault, whose ids may be written out for several devices (`chat@herd-0001`).
pub(crate) fn id_flaw(id: &str) -> Option<String> {
    id.split('@').find_map(name_flaw)
}
