//! Files that extend each other, as one tree.
//!
//! A topology is written once and used by many scenarios. `extends` names files, relative to the one that says so;
//! they are read first, in their order, and what comes later wins: keys of tables one by one, things in arrays by
//! their name or id (a path by its two ends), and of a thing again key by key, so that a scenario changes one
//! property of a device without repeating the rest. All other values are replaced whole.

use std::path::{Path, PathBuf};

use crate::limits::{FILE_BYTES_MAX, FILES_MAX};
use crate::problem::{Bag, Problems, Sources, Spot};
use crate::tree::{Node, Table, Value, parse};

/// Arrays of things, and which key names one.
const THINGS: [(&str, &str); 8] = [
    ("region", "name"),
    ("place", "name"),
    ("path", "between"),
    ("device", "id"),
    ("group", "id"),
    ("load", "id"),
    ("action", "id"),
    ("fault", "id"),
];
/// Two ways to say one thing, by array: saying it one way takes back the other.
const EITHER: [(&str, &str, &str); 4] =
    [("load", "rate", "every"), ("fault", "at", "when"), ("action", "at", "when"), ("path", "rtt", "latency")];
/// Tables inside of things and tables that are merged too, not replaced.
const INNER: [&str; 2] = ["iface", "recover_within"];

/// Text of a file.
pub(crate) fn read(path: &Path) -> Result<String, Problems> {
    let bad = |text: String| Problems::of_file(path, text);
    let size = std::fs::metadata(path).map_err(|error| bad(format!("can't be read: {error}")))?.len();
    if size > FILE_BYTES_MAX {
        return Err(bad(format!("{size} bytes are no scenario: at most {FILE_BYTES_MAX} are read")));
    }
    std::fs::read_to_string(path).map_err(|error| bad(format!("can't be read: {error}")))
}

/// A file and all that it extends.
pub(crate) fn gather(file: &Path, text: String, sources: &mut Sources, bag: &Bag) -> Table {
    let mut open = vec![file.to_owned()];
    gather_one(file.to_owned(), text, sources, bag, &mut open)
}

fn gather_one(file: PathBuf, text: String, sources: &mut Sources, bag: &Bag, open: &mut Vec<PathBuf>) -> Table {
    let number = sources.0.len();
    let mut own = parse(&text, number, bag);
    sources.0.push((file, text));
    find_doubles(&own, bag);
    let extends = match own.get_mut("scenario").map(|(_, node)| &mut node.value) {
        Some(Value::Table(scenario)) => scenario.remove("extends"),
        _ => None,
    };
    let Some((_, extends)) = extends else { return own };
    let names = match extends.value {
        Value::List(names) => names,
        _ => vec![extends],
    };
    let mut merged = Table::new();
    for name in names {
        let Value::Text(path) = &name.value else {
            bag.note(name.spot, format!("{} names no file: write [\"topo/3region.toml\"]", name.kind()));
            continue;
        };
        let file = sources.beside(name.spot, path);
        if open.contains(&file) {
            bag.note(name.spot, format!("{} extends itself by way of this file: leave one out", file.display()));
            continue;
        }
        if sources.0.len() >= FILES_MAX {
            bag.note(name.spot, format!("more than {FILES_MAX} files in one scenario: write them together"));
            continue;
        }
        match read(&file) {
            Ok(text) => {
                open.push(file.clone());
                let below = gather_one(file, text, sources, bag, open);
                open.pop();
                merge(&mut merged, below);
            }
            Err(_) => {
                bag.note(
                    name.spot,
                    format!("no file {}: paths are relative to the file that names them", file.display()),
                );
            }
        }
    }
    merge(&mut merged, own);
    merged
}

/// What names a thing.
fn name_of(thing: &Node, key: &str) -> Option<(Spot, String)> {
    let Value::Table(entries) = &thing.value else { return None };
    let (_, name) = entries.get(key)?;
    match &name.value {
        Value::Text(text) => Some((name.spot, text.clone())),
        Value::List(ends) => {
            let mut ends: Vec<String> = ends.iter().filter_map(Node::plain).collect();
            ends.sort_unstable();
            Some((name.spot, ends.join("<->")))
        }
        _ => None,
    }
}

fn find_doubles(own: &Table, bag: &Bag) {
    for (array, key) in THINGS {
        let Some((_, Node { value: Value::List(things), .. })) = own.get(array) else { continue };
        let mut seen = std::collections::BTreeSet::new();
        for (spot, name) in things.iter().filter_map(|thing| name_of(thing, key)) {
            if !seen.insert(name.clone()) {
                bag.note(spot, format!("a second {array} \"{name}\": give it another {key}, or leave one out"));
            }
        }
    }
}

fn merge(base: &mut Table, later: Table) {
    for (key, (spot, node)) in later {
        let thing = THINGS.iter().find(|(array, _)| *array == key);
        match (base.get_mut(&key).map(|(_, node)| &mut node.value), node.value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge_thing(&key, old, new),
            (Some(Value::List(old)), Value::List(new)) if thing.is_some() => {
                let (array, key) = thing.copied().unwrap_or_default();
                for one in new {
                    let name = name_of(&one, key).map(|(_, name)| name);
                    let same = |old: &&mut Node| name.is_some() && name_of(old, key).map(|(_, name)| name) == name;
                    match (old.iter_mut().find(same).map(|old| &mut old.value), one) {
                        (Some(Value::Table(old)), Node { value: Value::Table(new), .. }) => {
                            merge_thing(array, old, new);
                        }
                        (_, one) => old.push(one),
                    }
                }
            }
            (_, value) => {
                base.insert(key, (spot, Node { spot: node.spot, value }));
            }
        }
    }
}

fn merge_thing(array: &str, old: &mut Table, new: Table) {
    for (_, one, other) in EITHER.iter().filter(|(of, ..)| *of == array) {
        for (said, taken_back) in [(one, other), (other, one)] {
            if new.contains_key(*said) {
                old.remove(*taken_back);
            }
        }
    }
    for (key, (spot, node)) in new {
        match (old.get_mut(&key).map(|(_, node)| &mut node.value), node) {
            (Some(Value::Table(old)), Node { value: Value::Table(new), .. }) if INNER.contains(&key.as_str()) => {
                old.extend(new);
            }
            (_, node) => {
                old.insert(key, (spot, node));
            }
        }
    }
}
