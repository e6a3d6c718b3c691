//! Rules about the sources that no compiler checks: sizes, names, documents that must agree with the code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tern_core::codes::Code;

/// Past this many lines a file is split by concept.
const LINES_MAX: usize = 800;
/// Names that say nothing about what is in a file.
const BANNED_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "misc"];
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of the repository that people write, as (path below the root, text).
fn sources(extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![root().to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let skipped = ["target", ".git", "data", "gen"].contains(&name.as_str()) || name.starts_with("tern-");
            if path.is_dir() && !skipped {
                waiting.push(path);
            } else if path.extension().is_some_and(|e| extensions.contains(&e.to_string_lossy().as_ref())) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn none(what: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{what}:\n  {}", problems.join("\n  "));
}

#[test]
fn no_file_is_longer_than_800_lines() {
    let long: Vec<String> = sources(&["rs", "proto"])
        .iter()
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    none("split these by concept", &long);
}

#[test]
fn file_names_say_what_is_in_them() {
    let bad: Vec<String> = sources(&["rs", "md", "toml"])
        .iter()
        .filter(|(path, _)| {
            path.components().any(|c| {
                let name = c.as_os_str().to_string_lossy().into_owned();
                BANNED_NAMES.contains(&name.split('.').next().unwrap_or_default())
            })
        })
        .map(|(path, _)| path.display().to_string())
        .collect();
    none("names that say nothing", &bad);
}

#[test]
fn every_limit_is_documented() {
    let mut bad = Vec::new();
    for (path, text) in sources(&["rs"]).iter().filter(|(path, _)| path.ends_with("limits.rs")) {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let is_limit = line.starts_with("pub const") || line.starts_with("pub(crate) const");
            if is_limit && !(i > 0 && lines[i - 1].trim_start().starts_with("///")) {
                bad.push(format!("{}:{}: {line}", path.display(), i + 1));
            }
        }
    }
    none("limits without a sentence that says why", &bad);
}

#[test]
fn every_metric_is_named_tern_something() {
    // Units are checked on a running node's /metrics, in tests/cluster.rs, where they are written out.
    let mut bad = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, text) in sources(&["rs"]) {
        if !path.components().any(|c| c.as_os_str() == "src") {
            continue;
        }
        let has_prefix = text.contains("sub_registry_with_prefix(\"tern_");
        for call in [".register(", ".register_with_unit("] {
            for (at, _) in text.match_indices(call) {
                // Only calls whose first argument is a literal register a metric by name.
                let Some(name) = text[at + call.len()..].trim_start().strip_prefix('"') else { continue };
                let name = name.split('"').next().unwrap();
                let place = format!("{}:{}", path.display(), text[..at].lines().count());
                if !name.starts_with("tern_") && !has_prefix {
                    bad.push(format!("{place}: {name} does not start with tern_"));
                } else if name.ends_with("_total") {
                    bad.push(format!("{place}: {name}: the registry adds _total itself"));
                }
                seen.insert(name.to_owned());
            }
        }
    }
    none("badly named metrics", &bad);
    assert!(!seen.is_empty(), "the search finds no metric at all: has the way of registering them changed?");
}

#[test]
fn no_document_has_a_dead_link() {
    let mut bad = Vec::new();
    for (path, text) in sources(&["md"]) {
        let mut in_code = false;
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            }
            if in_code {
                continue;
            }
            for part in line.split("](").skip(1) {
                let target = part.split(')').next().unwrap();
                let file = target.split('#').next().unwrap();
                if file.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                if !root().join(path.parent().unwrap()).join(file).exists() {
                    bad.push(format!("{}:{}: {target}", path.display(), number + 1));
                }
            }
        }
    }
    none("links to files that are not there", &bad);
}

#[test]
fn nothing_names_a_directory_of_one_machine() {
    let roots: Vec<String> = ["work", "root", "home", "Users"].iter().map(|name| format!("/{name}/")).collect();
    let mut bad = Vec::new();
    for (path, text) in sources(&["rs", "md", "toml", "proto", "sh"]) {
        for (number, line) in text.lines().enumerate() {
            for at in roots.iter().filter_map(|r| line.find(r)) {
                // Part of a longer path or of a URL is fine.
                let before = line[..at].chars().next_back();
                if before.is_none_or(|c| !c.is_alphanumeric() && !"./>_-".contains(c)) {
                    bad.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    none("absolute paths", &bad);
}

#[test]
fn the_protocol_document_lists_exactly_the_error_codes_that_exist() {
    let path = root().join("docs/PROTOCOL.md");
    let text = fs::read_to_string(path).unwrap();
    // Rows of the table: | number | `name` | ...
    let listed: BTreeSet<(u32, String)> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let number = cells.next()?.trim_matches('`').parse().ok()?;
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((number, name.to_owned()))
        })
        .collect();
    let existing: BTreeSet<(u32, String)> = Code::ALL.iter().map(|c| (*c as u32, c.name().to_owned())).collect();
    assert_eq!(listed, existing);
}

#[test]
fn every_error_code_is_described_where_it_is_defined() {
    let text = fs::read_to_string(root().join("core/src/codes.rs")).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for code in Code::ALL {
        let defined = lines.iter().position(|l| l.contains(&format!("\"{}\"", code.name()))).unwrap();
        assert!(lines[defined - 1].starts_with("///"), "{} has no description", code.name());
    }
}
