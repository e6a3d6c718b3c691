//! One scenario, many runs: values that are put in by name.
//!
//! `[matrix]` gives lists of values; its points are all combinations. `${name}` in any text stands for the value of
//! the point. A text that is nothing but `${name}` takes the value with its kind and its place in the file, so that a
//! number stays a number, and a mistake in the matrix is shown there.

use std::collections::{BTreeMap, BTreeSet};

use crate::limits::POINTS_MAX;
use crate::problem::{Bag, instead};
use crate::tree::{Node, Table, Value};

/// Values by name.
pub(crate) type Matrix = BTreeMap<String, Vec<Node>>;
/// One of each.
pub(crate) type Point = BTreeMap<String, String>;

/// Reads `[matrix]`, and says where a value is used nowhere.
pub(crate) fn read(root: &Table, bag: &Bag) -> Matrix {
    let mut matrix = Matrix::new();
    let Some((_, node)) = root.get("matrix") else { return matrix };
    let Value::Table(entries) = &node.value else {
        bag.note(node.spot, format!("{} is no matrix: write [matrix] and lists of values below", node.kind()));
        return matrix;
    };
    let used = names(root);
    for (name, (spot, node)) in entries {
        let values = match &node.value {
            Value::List(values) if !values.is_empty() => values.clone(),
            _ => {
                bag.note(node.spot, format!("\"{name}\" needs a list of values, as {name} = [\"30s\", \"120s\"]"));
                continue;
            }
        };
        let mut seen = BTreeSet::new();
        for value in &values {
            match value.plain() {
                None => {
                    bag.note(value.spot, format!("{} can't be put into a text: use texts or numbers", value.kind()));
                }
                Some(text) if !seen.insert(text.clone()) => {
                    bag.note(value.spot, format!("\"{text}\" a second time: every run would be made twice"));
                }
                Some(_) => {}
            }
        }
        if !used.contains(name) {
            bag.note(*spot, format!("\"{name}\" is used nowhere: write ${{{name}}} where it belongs, or leave it out"));
        }
        matrix.insert(name.clone(), values);
    }
    let points = matrix.values().fold(1_usize, |points, values| points.saturating_mul(values.len()));
    if points > POINTS_MAX {
        bag.note(node.spot, format!("{points} points are more than {POINTS_MAX}: take values out"));
        matrix.values_mut().for_each(|values| values.truncate(1));
    }
    matrix
}

/// All combinations, the last name changing fastest.
pub(crate) fn points(matrix: &Matrix) -> Vec<Point> {
    let mut points = vec![Point::new()];
    for (name, values) in matrix {
        let with = |point: &Point, value: &Node| {
            let mut point = point.clone();
            point.insert(name.clone(), value.plain().unwrap_or_default());
            point
        };
        points = points.iter().flat_map(|point| values.iter().map(move |value| with(point, value))).collect();
    }
    points
}

/// The tree at a point, without its matrix.
pub(crate) fn put_in(root: &Table, matrix: &Matrix, point: &Point, bag: &Bag) -> Table {
    let value = |(name, values): (&String, &Vec<Node>)| {
        let wanted = point.get(name)?;
        let node = values.iter().find(|node| node.plain().as_ref() == Some(wanted))?;
        Some((name.clone(), node.clone()))
    };
    let values: BTreeMap<String, Node> = matrix.iter().filter_map(value).collect();
    let mut root = root.clone();
    root.remove("matrix");
    root.values_mut().for_each(|(_, node)| put_into(node, &values, bag));
    root
}

fn put_into(node: &mut Node, values: &BTreeMap<String, Node>, bag: &Bag) {
    match &mut node.value {
        Value::List(list) => list.iter_mut().for_each(|node| put_into(node, values, bag)),
        Value::Table(table) => table.values_mut().for_each(|(_, node)| put_into(node, values, bag)),
        Value::Text(text) if text.contains("${") => {
            let whole =
                text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).and_then(|name| values.get(name));
            if let Some(value) = whole {
                *node = value.clone();
                return;
            }
            let mut filled = String::new();
            for piece in pieces(text) {
                match piece {
                    Ok(plain) => filled.push_str(plain),
                    Err(name) => match values.get(name) {
                        Some(value) => filled.push_str(&value.plain().unwrap_or_default()),
                        None => {
                            let known = instead(name, values.keys().map(String::as_str));
                            bag.note(node.spot, format!("no value \"{name}\" in the matrix: {known}"));
                        }
                    },
                }
            }
            *text = filled;
        }
        _ => {}
    }
}

/// Plain pieces of a text (`Ok`) and names between (`Err`).
fn pieces(text: &str) -> Vec<Result<&str, &str>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        pieces.push(Ok(before));
        let (name, behind) = after.split_once('}').unwrap_or((after, ""));
        pieces.push(Err(name));
        rest = behind;
    }
    pieces.push(Ok(rest));
    pieces
}

/// All names that are mentioned.
fn names(root: &Table) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, (_, node)) in root.iter().filter(|(key, _)| *key != "matrix") {
        collect(node, &mut names);
    }
    names
}

fn collect(node: &Node, names: &mut BTreeSet<String>) {
    match &node.value {
        Value::Text(text) => names.extend(pieces(text).into_iter().filter_map(Result::err).map(str::to_owned)),
        Value::List(list) => list.iter().for_each(|node| collect(node, names)),
        Value::Table(table) => table.values().for_each(|(_, node)| collect(node, names)),
        _ => {}
    }
}
