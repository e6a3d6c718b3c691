//! The keys of one table, read one by one.
//!
//! A reader asks for the keys that it knows; whatever it did not ask for when it is done is unknown, and the nearest
//! of those that it asked for is proposed. So the list of known keys is never written down a second time, and cannot
//! be wrong. A value of the wrong kind is noted, and read as if it were absent.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::problem::{Bag, Spot, instead};
use crate::tree::{Node, Table, Value};
use crate::units;

/// See the module.
pub(crate) struct Fields<'a> {
    /// What the table is, for humans: `fault "tunnel"`.
    pub what: String,
    /// Where it begins.
    pub spot: Spot,
    table: &'a Table,
    bag: &'a Bag,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Fields<'a> {
    pub fn new(what: impl Into<String>, spot: Spot, table: &'a Table, bag: &'a Bag) -> Self {
        Self { what: what.into(), spot, table, bag, asked: RefCell::default() }
    }

    /// The same with a better name.
    pub fn called(self, what: String) -> Self {
        Self { what, ..self }
    }

    /// Of a value that must be a table.
    pub fn of(what: impl Into<String>, node: &'a Node, bag: &'a Bag) -> Option<Self> {
        let what = what.into();
        match &node.value {
            Value::Table(table) => Some(Self::new(what, node.spot, table, bag)),
            _ => {
                bag.note(node.spot, format!("{what} must be a table, not {}", node.kind()));
                None
            }
        }
    }

    /// A key's value, if it is there.
    pub fn get(&self, key: &'static str) -> Option<&'a Node> {
        self.asked.borrow_mut().insert(key);
        self.table.get(key).map(|(_, node)| node)
    }

    /// Where a key stands, or the table if it is not there.
    pub fn at(&self, key: &str) -> Spot {
        self.table.get(key).map_or(self.spot, |(_, node)| node.spot)
    }

    /// Something is wrong with a key.
    pub fn note(&self, key: &str, text: impl Into<String>) {
        self.bag.note(self.at(key), text);
    }

    /// A key is not there and must be.
    pub fn missing(&self, key: &str, example: &str) {
        self.bag.note(self.spot, format!("{} has no \"{key}\": write {key} = {example}", self.what));
    }

    pub fn bag(&self) -> &'a Bag {
        self.bag
    }

    /// Keys as they are written, for tables whose keys are names.
    pub fn entries(&self) -> &'a Table {
        self.table
    }

    pub fn text(&self, key: &'static str) -> Option<&'a str> {
        let node = self.get(key)?;
        match &node.value {
            Value::Text(text) => Some(text),
            _ => {
                self.bag.note(node.spot, format!("\"{key}\" must be a text in quotes, not {}", node.kind()));
                None
            }
        }
    }

    pub fn need_text(&self, key: &'static str, example: &str) -> Option<&'a str> {
        if self.get(key).is_none() {
            self.missing(key, example);
        }
        self.text(key)
    }

    /// A whole number within limits, both included.
    pub fn whole(&self, key: &'static str, least: u64, most: u64) -> Option<u64> {
        let node = self.get(key)?;
        let number = match node.value {
            Value::Whole(number) => u64::try_from(number).ok().filter(|number| (least..=most).contains(number)),
            _ => None,
        };
        if number.is_none() {
            let wanted =
                if most == u64::MAX { format!("of {least} or more") } else { format!("from {least} to {most}") };
            self.bag.note(node.spot, format!("\"{key}\" must be a whole number {wanted}"));
        }
        number
    }

    pub fn flag(&self, key: &'static str) -> Option<bool> {
        let node = self.get(key)?;
        match node.value {
            Value::Flag(flag) => Some(flag),
            _ => {
                self.bag.note(node.spot, format!("\"{key}\" must be true or false, not {}", node.kind()));
                None
            }
        }
    }

    /// A text with a unit, read by one of [`units`].
    pub fn unit<T>(&self, key: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let node = self.get(key)?;
        unit(node, key, self.bag, read)
    }

    pub fn time(&self, key: &'static str) -> Option<u64> {
        self.unit(key, units::time)
    }

    /// A time, or a range of times to draw from.
    pub fn times(&self, key: &'static str) -> Option<(u64, u64)> {
        self.unit(key, units::times)
    }

    /// One of some words.
    pub fn one_of<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known = instead(text, words.iter().map(|(word, _)| *word));
            self.note(key, format!("\"{text}\" is no {key}: {known}"));
        }
        found
    }

    /// As [`Fields::one_of`], of a key that only belongs here under a condition.
    pub fn one_of_if<T: Copy>(&self, belongs: bool, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        if belongs { self.one_of(key, words) } else { None }
    }

    /// A list, or one value that stands for a list of one.
    pub fn list(&self, key: &'static str) -> &'a [Node] {
        match self.get(key) {
            Some(Node { value: Value::List(list), .. }) => list,
            Some(node) => std::slice::from_ref(node),
            None => &[],
        }
    }

    /// A list of texts, each with its place.
    pub fn texts(&self, key: &'static str) -> Vec<(Spot, &'a str)> {
        let text = |node: &'a Node| match &node.value {
            Value::Text(text) => Some((node.spot, text.as_str())),
            _ => {
                self.bag.note(node.spot, format!("\"{key}\" must be a list of texts, not {}", node.kind()));
                None
            }
        };
        self.list(key).iter().filter_map(text).collect()
    }

    /// Nothing else belongs here.
    pub fn done(&self) {
        let asked = self.asked.borrow();
        for (key, (spot, _)) in self.table.iter().filter(|(key, _)| !asked.contains(key.as_str())) {
            let known = instead(key, asked.iter().copied());
            self.bag.note(*spot, format!("{} has no key \"{key}\": {known}", self.what));
        }
    }
}

/// A text with a unit; `key` names it for humans.
pub(crate) fn unit<T>(node: &Node, key: &str, bag: &Bag, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
    let result = match &node.value {
        Value::Text(text) => read(text),
        // A number without a unit: what the reader says of it has the example.
        _ => match node.plain().map(|plain| read(&plain)) {
            Some(result) => result,
            None => Err(format!("\"{key}\" must be a text, not {}", node.kind())),
        },
    };
    result.map_err(|text| bag.note(node.spot, text)).ok()
}

/// All tables of an array of tables, each with what it is.
pub(crate) fn things<'a>(root: &'a Table, array: &str, bag: &'a Bag) -> Vec<&'a Node> {
    match root.get(array).map(|(_, node)| node) {
        None => Vec::new(),
        Some(Node { value: Value::List(things), .. }) => things.iter().collect(),
        Some(node) => {
            bag.note(node.spot, format!("there may be several of \"{array}\": write [[{array}]]"));
            Vec::new()
        }
    }
}
