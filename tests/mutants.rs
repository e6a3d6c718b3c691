//! Nothing of the seeded bugs of `tern_core::mutants` is in the program that people run.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

#[test]
fn the_program_contains_no_mutant() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("core/src/mutants.rs");
    let source = std::fs::read_to_string(source).unwrap();
    // `AckBeforeCommit, "ack-before-commit", "R1",`
    let names: Vec<&str> =
        source.lines().filter(|line| line.contains("\", \"R")).filter_map(|l| l.split('"').nth(1)).collect();
    assert!(names.len() >= 12, "{names:?}");
    let program = std::fs::read(env!("CARGO_BIN_EXE_tern")).unwrap();
    // What could be such a name; all of a program, searched for each, would take minutes.
    let words = program.split(|b| !b.is_ascii_alphanumeric() && !b"-_".contains(b)).filter(|word| word.len() >= 8);
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    let words = words.join(" ");
    let has = |text: &str| words.contains(text);
    assert!(has("store_full"), "this is no program of tern");
    for name in names.into_iter().chain(["TERN_MUTANT"]) {
        assert!(!has(name), "{name} is in the program: was it built with the feature `mutants`?");
    }
}
