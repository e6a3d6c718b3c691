//! The `netsim` program, as a chaos tester uses it: verdicts, exit codes, what is written, and what it says of mistakes.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Two devices near one region, who write for ten seconds.
const PAIR: &str = r#"
[scenario]
name = "pair"
about = "Two devices near one region write to each other."
duration = "10s"

[[region]]
name = "eu"
aws = "euc1"

[[place]]
name = "germany"
near = "eu"
rtt = "10ms"

[[device]]
id = "alice-phone"
user = "alice"
place = "germany"
iface.cell = "lte-good"

[[device]]
id = "bob-phone"
user = "bob"
place = "germany"
iface.cell = "lte-good"

[[load]]
id = "alice-writes"
from = "alice-phone"
to = "bob"
rate = "2/s"
during = "3s..10s"
"#;

struct Room {
    directory: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, more: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("{PAIR}{more}")).unwrap();
        path
    }

    /// Runs the program in this directory.
    fn netsim(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netsim"));
        command.args(args).current_dir(self.directory.path()).output().unwrap()
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn shipped(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(name).display().to_string()
}

#[test]
fn a_run_that_passes_says_so_and_the_same_seed_makes_the_same_history() {
    let room = Room::new();
    let ran = room.netsim(&["run", &shipped("first-light.toml"), "--seed", "7", "--twice", "--out", "runs"]);
    assert!(ran.status.success(), "{}", text(&ran));
    assert!(text(&ran).contains("PASS") && text(&ran).contains("--seed 7"), "{}", text(&ran));
    let page = fs::read_to_string(room.path("runs/first-light-7/report.html")).unwrap();
    assert!(page.len() < 2 * 1024 * 1024 && page.contains("first-light"), "{} bytes", page.len());
    let again = room.netsim(&["replay", "runs/first-light-7"]);
    assert!(again.status.success() && text(&again).contains("the same history"), "{}", text(&again));
    let judged = room.netsim(&["judge", "runs/first-light-7/history.jsonl", "--html", "again.html"]);
    assert!(judged.status.success() && room.path("again.html").exists(), "{}", text(&judged));
}

#[test]
fn what_does_not_come_true_fails_the_run_and_ci_systems_are_told() {
    let room = Room::new();
    let file = room.write("late.toml", "[expect]\ndeliver_p99 = \"1ms\"\n");
    let file = file.to_str().unwrap();
    let ran = room.netsim(&["run", file, "--seeds", "0..2", "--out", "runs", "--junit", "results.xml"]);
    assert_eq!(ran.status.code(), Some(1), "{}", text(&ran));
    assert!(text(&ran).contains("FAIL"), "{}", text(&ran));
    let xml = fs::read_to_string(room.path("results.xml")).unwrap();
    assert!(xml.matches("<testcase").count() == 2 && xml.contains("<failure"), "{xml}");
    assert!(room.path("runs/report.html").exists() && room.path("runs/pair-1/history.jsonl").exists());
}

#[test]
fn a_fault_that_hits_nothing_makes_a_run_unknown() {
    let room = Room::new();
    let fault = "[[fault]]\nkind = \"outage\"\nat = \"1s\"\nfor = \"1ms\"\ntarget = \"bob-phone.cell.up\"\n";
    let file = room.write("unhit.toml", fault);
    let ran = room.netsim(&["run", file.to_str().unwrap(), "--out", "runs"]);
    assert_eq!(ran.status.code(), Some(1), "{}", text(&ran));
    assert!(text(&ran).contains("UNKNOWN") && text(&ran).contains("hit nothing"), "{}", text(&ran));
}

#[test]
fn mistakes_are_told_with_line_and_column_before_anything_runs() {
    let room = Room::new();
    let file = room.path("wrong.toml");
    fs::write(&file, PAIR.replacen("lte-good", "lte-god", 1)).unwrap();
    for command in ["check", "run"] {
        let said = room.netsim(&[command, file.to_str().unwrap()]);
        assert_eq!(said.status.code(), Some(2), "{}", text(&said));
        let line = PAIR.lines().position(|line| line.contains("lte-good")).unwrap() + 1;
        let told = text(&said);
        assert!(told.contains(&format!("wrong.toml:{line}:")) && told.contains("lte-good"), "{told}");
    }
    assert!(!room.path("netsim-runs").exists(), "nothing was run, so nothing is written");
    let missing = room.netsim(&["run", "nowhere.toml"]);
    assert_eq!(missing.status.code(), Some(2), "{}", text(&missing));
    assert!(text(&missing).contains("nowhere.toml"), "{}", text(&missing));
    let range = room.netsim(&["run", file.to_str().unwrap(), "--seeds", "9..3"]);
    assert_eq!(range.status.code(), Some(2), "{}", text(&range));
}

#[test]
fn a_run_that_does_not_end_is_ended_and_invalid() {
    let room = Room::new();
    let file = room.write("pair.toml", "");
    let ran = room.netsim(&["run", file.to_str().unwrap(), "--watchdog", "0s", "--out", "runs"]);
    assert_eq!(ran.status.code(), Some(1), "{}", text(&ran));
    assert!(text(&ran).contains("INVALID") && text(&ran).contains("did not end"), "{}", text(&ran));
}

#[test]
fn a_failure_is_cut_down_to_a_scenario_that_fails_in_the_same_way() {
    let room = Room::new();
    let more = "[[load]]\nid = \"bob-writes\"\nfrom = \"bob-phone\"\nto = \"alice\"\nrate = \"1/s\"\n\
                [[fault]]\nkind = \"degrade\"\nat = \"4s\"\nfor = \"5s\"\ntarget = \"alice-phone.cell\"\nloss = \"50%\"\n\
                [expect]\ndeliver_p99 = \"1ms\"\n";
    let file = room.write("late.toml", more);
    let said = room.netsim(&["shrink", file.to_str().unwrap(), "--seed", "3", "--budget", "40", "--out", "least.toml"]);
    assert!(said.status.success(), "{}", text(&said));
    let least = fs::read_to_string(room.path("least.toml")).unwrap();
    assert!(!least.contains("[[fault]]"), "the fault has nothing to do with it:\n{least}");
    let ran = room.netsim(&["run", "least.toml", "--out", "runs"]);
    assert_eq!(ran.status.code(), Some(1), "{}", text(&ran));
    assert!(text(&ran).contains("FAIL"), "{}", text(&ran));
}

#[test]
fn exploring_runs_random_scenarios_until_time_is_up() {
    let room = Room::new();
    let said = room.netsim(&["explore", "--for", "1s", "--seed", "5", "--jobs", "1", "--budget", "0", "--out", "runs"]);
    assert!(matches!(said.status.code(), Some(0 | 1)), "{}", text(&said));
    assert!(text(&said).contains("seed 5"), "{}", text(&said));
}

#[cfg(not(feature = "mutants"))]
#[test]
fn a_build_without_seeded_bugs_says_how_to_get_them() {
    let room = Room::new();
    let file = room.write("pair.toml", "");
    let said = room.netsim(&["run", file.to_str().unwrap(), "--mutant", "ack-before-commit"]);
    assert_eq!(said.status.code(), Some(2), "{}", text(&said));
    assert!(text(&said).contains("--features mutants"), "{}", text(&said));
}
