//! The reference of scenarios says what the reader reads.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tern_netsim_scenario::{KINDS, Scenario, sometimes};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/SCENARIOS.md")).unwrap()
}

/// Its blocks of TOML.
fn blocks(text: &str) -> Vec<String> {
    let after = text.split("```toml\n").skip(1);
    after.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Keys that the reader asks for, by its own source: `f.time("for")`.
fn keys() -> BTreeSet<String> {
    const METHODS: [&str; 11] =
        ["get", "text", "need_text", "whole", "flag", "unit", "time", "times", "one_of", "list", "texts"];
    let mut keys = BTreeSet::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/read")).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for method in METHODS {
            for rest in source.split(&format!(".{method}(\"")).skip(1) {
                keys.insert(rest.split('"').next().unwrap().to_owned());
            }
        }
    }
    assert!(keys.len() > 80 && keys.contains("udp_ttl") && keys.contains("for"), "{keys:?}");
    keys
}

#[test]
fn every_block_is_a_scenario_that_can_be_run() {
    let blocks = blocks(&document());
    assert!(blocks.len() > 3);
    for block in blocks {
        // Files that it extends are those that are shipped.
        let scenario = Scenario::from_toml(block.clone(), &root().join("netsim/scenarios/block.toml"));
        let scenario = scenario.unwrap_or_else(|problems| panic!("{problems}\n{block}"));
        for point in scenario.points() {
            scenario.plan(5, &point).unwrap();
        }
    }
}

#[test]
fn every_key_that_is_read_is_written_about() {
    let text = document();
    let words: BTreeSet<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let missing: Vec<String> = keys().into_iter().filter(|key| !words.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "docs/SCENARIOS.md says nothing of {missing:?}");
}

#[test]
fn every_kind_of_fault_and_every_count_is_written_about() {
    let text = document();
    for kind in KINDS {
        assert!(text.contains(&format!("\n| `{}` |", kind.name)), "{}", kind.name);
    }
    for (name, about) in sometimes::NAMES {
        assert!(text.contains(&format!("\n| `{name}` | {about} |")), "{name}: {about}");
    }
}
