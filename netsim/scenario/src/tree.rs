//! A file as a tree of values that know where they stand.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::{Bag, Spot};

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub spot: Spot,
    pub value: Value,
}

/// What a value is. Decimals stay text: they are read digit by digit, so that no rounding makes a run another one.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(String),
    Whole(i64),
    Decimal(String),
    Flag(bool),
    List(Vec<Node>),
    Table(Table),
}

/// Keys with the place of each.
pub(crate) type Table = BTreeMap<String, (Spot, Node)>;

impl Node {
    /// What kind of value it is, for humans.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Text(_) => "a text",
            Value::Whole(_) => "a whole number",
            Value::Decimal(_) => "a number",
            Value::Flag(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// As it would be written, for a point of the matrix.
    pub fn plain(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) | Value::Decimal(text) => Some(text.clone()),
            Value::Whole(number) => Some(number.to_string()),
            Value::Flag(flag) => Some(flag.to_string()),
            Value::List(_) | Value::Table(_) => None,
        }
    }
}

/// Reads the text of a file. What can't be read is noted; the rest is returned.
pub(crate) fn parse(text: &str, file: usize, bag: &Bag) -> Table {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        bag.note(Spot { file, at }, format!("this is not TOML: {}", error.message()));
    }
    table(document.get_ref(), file, bag)
}

fn table(entries: &DeTable<'_>, file: usize, bag: &Bag) -> Table {
    let entry = |(key, value): (&Spanned<_>, &Spanned<_>)| {
        let key: &Spanned<std::borrow::Cow<'_, str>> = key;
        let spot = Spot { file, at: key.span().start };
        (key.get_ref().clone().into_owned(), (spot, node(value, file, bag)))
    };
    entries.iter().map(entry).collect()
}

fn node(value: &Spanned<DeValue<'_>>, file: usize, bag: &Bag) -> Node {
    let spot = Spot { file, at: value.span().start };
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Whole(number),
            Err(_) => {
                bag.note(spot, format!("{number} is too large a number"));
                Value::Whole(1)
            }
        },
        DeValue::Float(number) => Value::Decimal(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(date) => {
            bag.note(spot, format!("{date} is a date: times of a scenario count from its beginning, as \"20s\""));
            Value::Text(date.to_string())
        }
        DeValue::Array(list) => Value::List(list.iter().map(|one| node(one, file, bag)).collect()),
        DeValue::Table(entries) => Value::Table(table(entries, file, bag)),
    };
    Node { spot, value }
}
