//! The three places a value can come from, and the errors of each: a TOML file, the environment, flags.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::value::Raw;

/// Environment variables with this prefix are configuration: `TERN_REGION_ID` is `region.id`.
pub const ENV_PREFIX: &str = "TERN_";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// A line of a file.
    File {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
            Source::Env(name) => write!(f, "environment {name}"),
            Source::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub struct Found {
    /// As written.
    pub raw: Raw,
    /// Text of environment or flags is read by the key's type, not as TOML.
    pub is_text: bool,
    /// Where.
    pub source: Source,
}

/// Values by key; later sources replace earlier ones.
pub type Layers = BTreeMap<&'static str, Found>;

/// Reads a TOML file's text into `layers`; what is wrong is added to `problems`, all of it.
pub fn file(path: &Path, text: &str, keys: &[&'static str], layers: &mut Layers, problems: &mut Vec<String>) {
    let at = |offset: usize| Source::File { path: path.to_owned(), line: line_of(text, offset) };
    match DeTable::parse(text) {
        Err(error) => {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            problems.push(format!("{}:{line}: not TOML: {}", path.display(), error.message()));
        }
        Ok(table) => walk(table.get_ref(), "", keys, &at, layers, problems),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

fn walk(
    table: &DeTable<'_>,
    prefix: &str,
    keys: &[&'static str],
    at: &dyn Fn(usize) -> Source,
    layers: &mut Layers,
    problems: &mut Vec<String>,
) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        let source = at(name.span().start);
        if let Some(key) = keys.iter().find(|k| **k == path) {
            layers.insert(key, Found { raw: raw(value.get_ref()), is_text: false, source });
        } else if let (DeValue::Table(inner), true) = (value.get_ref(), is_section(keys, &path)) {
            walk(inner, &path, keys, at, layers, problems);
        } else if is_section(keys, &path) {
            problems.push(format!("{source}: {path} is a section: write [{path}] and its keys below"));
        } else {
            problems.push(format!("{source}: unknown key {path:?}{}", suggestion(&path, keys)));
        }
    }
}

fn is_section(keys: &[&str], path: &str) -> bool {
    keys.iter().any(|k| k.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(n) => {
            i64::from_str_radix(n.as_str(), n.radix()).map_or(Raw::Other("a number out of range"), Raw::Int)
        }
        DeValue::Float(n) => n.as_str().parse().map_or(Raw::Other("a number out of range"), Raw::Float),
        DeValue::Boolean(on) => Raw::Bool(*on),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Table(table) => {
            Raw::Table(table.iter().map(|(name, value)| (name.get_ref().to_string(), raw(value.get_ref()))).collect())
        }
    }
}

/// The variable of a key.
pub fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_uppercase().replace('.', "_"))
}

/// Reads environment variables into `layers`.
pub fn environment(
    variables: impl IntoIterator<Item = (String, String)>,
    keys: &[&'static str],
    layers: &mut Layers,
    problems: &mut Vec<String>,
) {
    let names: Vec<String> = keys.iter().map(|k| env_name(k)).collect();
    let mut variables: Vec<(String, String)> =
        variables.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    variables.sort();
    for (name, value) in variables {
        if let Some(key) = names.iter().position(|n| *n == name).map(|i| keys[i]) {
            layers.insert(key, Found { raw: Raw::Text(value), is_text: true, source: Source::Env(name) });
        } else {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            problems.push(format!("environment: unknown variable {name}{}", suggestion(&name, &names)));
        }
    }
}

/// Reads flags, each `(flag as the user wrote it, key, value)`, into `layers`.
pub fn flags(
    given: &[(String, String, String)],
    keys: &[&'static str],
    layers: &mut Layers,
    problems: &mut Vec<String>,
) {
    for (flag, name, value) in given {
        if let Some(key) = keys.iter().find(|k| *k == name) {
            let source = Source::Flag(flag.clone());
            layers.insert(key, Found { raw: Raw::Text(value.clone()), is_text: true, source });
        } else {
            problems.push(format!("flag {flag}: unknown key {name:?}{}", suggestion(name, keys)));
        }
    }
}

/// "; did you mean ...?", or nothing where nothing is near.
fn suggestion(name: &str, candidates: &[&str]) -> String {
    let nearest = candidates.iter().map(|c| (distance(name, c), *c)).min();
    // A key given without its section is near too: "id" for "region.id".
    let tail = candidates.iter().find(|c| c.rsplit('.').next() == Some(name));
    match (nearest, tail) {
        (Some((d, near)), _) if d <= 1 + near.len() / 3 => format!("; did you mean {near:?}?"),
        (_, Some(tail)) => format!("; did you mean {tail:?}?"),
        (Some((_, near)), None) => format!("; the nearest key is {near:?}, `tern config default` lists all"),
        (None, None) => String::new(),
    }
}

/// Edit distance (insertions, deletions, replacements), by Wagner and Fischer.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_the_textbook() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("region.nmae", "region.name"), 2);
        assert_eq!(distance("same", "same"), 0);
    }
}
