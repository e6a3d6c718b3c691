//! Every case over its seeds, the corpus, and mutations of both, the same on every machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tern_fuzz_cases::mutate::{Random, mutate};
use tern_fuzz_cases::{CASES, Came, Case};

/// Mutations of each case, unless TERN_FUZZ_RUNS says otherwise.
const RUNS: usize = 2_000;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus")
}

fn files_of(case: &Case) -> Vec<PathBuf> {
    let dir = corpus().join(case.name);
    let Ok(entries) = fs::read_dir(&dir) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Runs one input; what broke is kept where a file can be made of it.
fn run(case: &Case, input: &[u8], what: &str) -> Came {
    match catch_unwind(AssertUnwindSafe(|| (case.run)(input))) {
        Ok(came) => came,
        Err(_) => {
            let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
            panic!(
                "{}: {what} broke it ({} bytes): put this into fuzz/corpus/{}/:\n{hex}",
                case.name,
                input.len(),
                case.name
            );
        }
    }
}

fn short_run(case: &Case) {
    let runs = std::env::var("TERN_FUZZ_RUNS").map_or(RUNS, |n| n.parse().expect("TERN_FUZZ_RUNS is a number"));
    let mut inputs = (case.seeds)();
    assert!(!inputs.is_empty(), "{} has no seeds", case.name);
    let files = files_of(case);
    assert!(!files.is_empty(), "{} has no corpus; run with TERN_WRITE_CORPUS=1 once", case.name);
    inputs.extend(files.iter().map(|file| fs::read(file).unwrap()));
    let mut total = Came::default();
    let (mut accepted, mut refused) = (0, 0);
    let mut count = |came: Came| {
        total = total.and(came);
        accepted += usize::from(came.accepted);
        refused += usize::from(came.refused);
    };
    for (i, input) in inputs.iter().enumerate() {
        count(run(case, input, &format!("seed {i}")));
    }
    let seed = case.name.bytes().fold(7u64, |n, b| n.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut random = Random::new(seed);
    for i in 0..(runs / case.one_in).max(1) {
        let input = mutate(&mut random, &inputs);
        count(run(case, &input, &format!("mutation {i}")));
    }
    println!("{:>14}: {accepted} accepted, {refused} refused", case.name);
    assert!(total.accepted, "{}: nothing gets past the first check", case.name);
    assert!(total.refused, "{}: nothing is refused", case.name);
}

macro_rules! short_runs {
    ($($name:ident)*) => {
        $(#[test] fn $name() { short_run(tern_fuzz_cases::case(stringify!($name))); })*

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

short_runs! {
    client_frames compact node_frames values entry checkpoint records receipts journal bodies tokens token_keys pem toml
    dispatch dispatch_http forwarded prefixes mmdb session node client loads identities gossip gossip_wire gossip_seal
    manifest archive backups websocket packed http3
}

#[test]
fn every_case_runs_here_and_is_a_target_of_cargo_fuzz() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml")).unwrap();
    for case in CASES {
        assert!(NAMES.contains(&case.name), "{} is not run above", case.name);
        let target = format!("fuzz_targets/{}.rs", case.name);
        assert!(manifest.contains(&format!("path = \"{target}\"")), "fuzz/Cargo.toml does not name {target}");
        let body = fs::read_to_string(corpus().join("..").join(target)).unwrap();
        assert!(body.contains(&format!("case(\"{}\")", case.name)), "{} runs another case", case.name);
    }
    assert_eq!(NAMES.len(), CASES.len());
    // And nothing is left of what is no case any more.
    let root = corpus().join("..");
    for (folder, ending) in [("fuzz_targets", ".rs"), ("corpus", "")] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let case = name.strip_suffix(ending).unwrap_or(&name);
            assert!(NAMES.contains(&case), "fuzz/{folder}/{name} belongs to no case");
        }
    }
    assert_eq!(manifest.matches("[[bin]]").count(), CASES.len(), "fuzz/Cargo.toml names a target that is no case");
}

/// Writes the seeds as files, where a case has none yet: with TERN_WRITE_CORPUS=1 after a case was added. Files that
/// are there stay for ever: they are of formats that were once in use.
#[test]
fn the_corpus_is_there() {
    for case in CASES {
        if std::env::var_os("TERN_WRITE_CORPUS").is_some() && files_of(case).is_empty() {
            let dir = corpus().join(case.name);
            fs::create_dir_all(&dir).unwrap();
            for (i, seed) in (case.seeds)().iter().enumerate() {
                fs::write(dir.join(format!("seed-{i}")), seed).unwrap();
            }
        }
        assert!(!files_of(case).is_empty(), "fuzz/corpus/{} is empty", case.name);
    }
}
