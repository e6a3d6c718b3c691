//! A scenario: a file and what it extends, ready to be planned for any seed and any point of its matrix.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::fields::Fields;
use crate::files::{gather, read};
use crate::matrix::{self, Matrix, put_in};
use crate::plan::Plan;
use crate::problem::{Bag, Problems, Sources, Spot, instead};
use crate::read::{self as reading, Head};
use crate::tree::{Table, Value};

/// What can run a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Driver {
    /// Virtual time.
    Sim,
    /// Real packets over TUN devices.
    Tun,
}

impl Driver {
    /// `sim` or `tun`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Tun => "tun",
        }
    }
}

const DRIVERS: [(&str, Driver); 2] = [("sim", Driver::Sim), ("tun", Driver::Tun)];

/// See the module.
#[derive(Clone, Debug)]
pub struct Scenario {
    head: Head,
    drivers: Vec<Driver>,
    seeds: Range<u64>,
    matrix: Matrix,
    root: Table,
    sources: Sources,
}

impl Scenario {
    /// Reads a file and all that it extends, and plans its first seed at every point of its matrix, so that whatever
    /// is wrong is told now. Blocks on the disk.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        Self::from_toml(read(path)?, path)
    }

    /// As [`Scenario::load`], of a text; paths in it are relative to `file`, which is also named in problems.
    pub fn from_toml(text: impl Into<String>, file: &Path) -> Result<Self, Problems> {
        let (bag, mut sources) = (Bag::default(), Sources::default());
        let root = gather(file, text.into(), &mut sources, &bag);
        if bag.len() > 0 {
            // A file that is half read would make problems that nobody has.
            return bag.settle(&sources, None);
        }
        let (head, drivers, seeds) = head(&root, file, &bag);
        let matrix = matrix::read(&root, &bag);
        let scenario = Self { head, drivers, seeds, matrix, root, sources };
        for point in matrix::points(&scenario.matrix) {
            scenario.plan_into(scenario.seeds.start, &point, &bag);
        }
        let sources = scenario.sources.clone();
        bag.settle(&sources, Some(scenario))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.head.name
    }

    /// What it shows, in a sentence.
    pub fn about(&self) -> &str {
        &self.head.about
    }

    /// All points of the matrix, at least one; the last name changes fastest.
    pub fn points(&self) -> Vec<BTreeMap<String, String>> {
        matrix::points(&self.matrix)
    }

    /// The seeds that it is usually run with.
    pub fn seeds(&self) -> Range<u64> {
        self.seeds.clone()
    }

    /// What can run it; never empty.
    pub fn drivers(&self) -> &[Driver] {
        &self.drivers
    }

    /// The plan of a seed at a point. Fails for a point that the matrix does not have, or if a recording that is
    /// read from a file has changed since the scenario was.
    pub fn plan(&self, seed: u64, point: &BTreeMap<String, String>) -> Result<Plan, Problems> {
        let bag = Bag::default();
        let spot = self.root.get("matrix").map_or(Spot { file: 0, at: 0 }, |(spot, _)| *spot);
        for (name, values) in &self.matrix {
            let known: Vec<String> = values.iter().filter_map(crate::tree::Node::plain).collect();
            match point.get(name) {
                None => bag.note(spot, format!("the point has no \"{name}\": it is one of {}", known.join(", "))),
                Some(value) if !known.contains(value) => {
                    let known = instead(value, known.iter().map(String::as_str));
                    bag.note(spot, format!("\"{name}\" is never \"{value}\": {known}"));
                }
                Some(_) => {}
            }
        }
        for name in point.keys().filter(|name| !self.matrix.contains_key(*name)) {
            let known = instead(name, self.matrix.keys().map(String::as_str));
            bag.note(spot, format!("no \"{name}\" in the matrix: {known}"));
        }
        if bag.len() > 0 {
            return bag.settle(&self.sources, None);
        }
        let plan = self.plan_into(seed, point, &bag);
        bag.settle(&self.sources, Some(plan))
    }

    fn plan_into(&self, seed: u64, point: &BTreeMap<String, String>, bag: &Bag) -> Plan {
        let root = put_in(&self.root, &self.matrix, point, bag);
        reading::plan(&self.head, &root, &self.sources, seed, point, bag)
    }
}

fn head(root: &Table, file: &Path, bag: &Bag) -> (Head, Vec<Driver>, Range<u64>) {
    let mut head = Head { file: file.to_owned(), ..Head::default() };
    let Some((spot, node)) = root.get("scenario") else {
        bag.note(Spot { file: 0, at: 0 }, "there is no [scenario]: write it first, with name, about and duration");
        return (head, vec![Driver::Sim], 0..1);
    };
    let f = match &node.value {
        Value::Table(table) => Fields::new("[scenario]", *spot, table, bag),
        _ => {
            bag.note(*spot, "\"scenario\" must be a table: write [scenario]");
            return (head, vec![Driver::Sim], 0..1);
        }
    };
    f.need_text("name", "\"elevator\"").unwrap_or_default().clone_into(&mut head.name);
    f.need_text("about", "\"what it shows, in a sentence\"").unwrap_or_default().clone_into(&mut head.about);
    if let Some(flaw) = reading::name_flaw(&head.name).filter(|_| f.text("name").is_some()) {
        f.note("name", flaw);
    }
    let mut drivers = Vec::new();
    for (spot, name) in f.texts("drivers") {
        match DRIVERS.iter().find(|(known, _)| *known == name) {
            Some((_, driver)) => drivers.push(*driver),
            None => bag.note(spot, format!("no driver \"{name}\": {}", instead(name, DRIVERS.map(|(known, _)| known)))),
        }
    }
    drivers.sort_unstable();
    drivers.dedup();
    if drivers.is_empty() {
        drivers.push(Driver::Sim);
    }
    let seeds = f.unit("seeds", seeds).unwrap_or(0..100);
    // Known here, but read for every point, as the matrix may give it.
    f.get("duration");
    f.done();
    head.real_time = drivers.contains(&Driver::Tun);
    (head, drivers, seeds)
}

/// `0..100`: from the first, before the last.
fn seeds(text: &str) -> Result<Range<u64>, String> {
    let range = text.split_once("..").and_then(|(from, until)| {
        let (from, until) = (from.trim().parse::<u64>().ok()?, until.trim().parse::<u64>().ok()?);
        (from < until).then_some(from..until)
    });
    range.ok_or_else(|| format!("\"{text}\" is no range of seeds: write \"0..100\", the last one not included"))
}

/// All that is wrong with some files, one line each, in the order of the files; empty if nothing is.
pub fn check(files: &[PathBuf]) -> Vec<String> {
    let problems = files.iter().filter_map(|file| Scenario::load(file).err());
    problems.flat_map(|problems| problems.all().iter().map(ToString::to_string).collect::<Vec<_>>()).collect()
}
