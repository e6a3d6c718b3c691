//! `netsim chaos` as an operator uses it: a real system of `tern` processes, a fault, a verdict, and nothing left behind.
//! Where the `tern` program is not beside `netsim`, what needs it says that it was skipped, except in CI, where that is a
//! failure.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(clippy::disallowed_methods, reason = "real processes run in real time")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const NETSIM: &str = env!("CARGO_BIN_EXE_netsim");
/// Only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(120);

/// An edge dies for a moment. The bounds are far above what any machine needs: what is tested is the tool.
const EDGE: &str = r#"
[chaos]
name = "edge"
about = "An edge dies for a moment."

[target]
kind = "local"
regions = ["eu"]
edges = 1

[load]
clients = 6
conversations = 6
rate = 20
for = "9s"

[[fault]]
id = "edge-dies"
at = "2s"
kind = "kill"
target = "eu-e1"
for = "2s"
aftermath = "1s"

[[fault]]
id = "a-command"
at = "7s"
kind = "command"
run = "echo struck"
undo = "echo $UNDONE > undone"
for = "1s"
aftermath = "1s"

[bounds]
next_ack = { max = "60s" }
caught_up = { max = "60s" }
ack_outside_faults = { max = "60s" }
lost = 0
doubled = 0
out_of_order = 0
not_acked = 0
not_shown = 0
"#;

fn has_tern(test: &str) -> bool {
    let tern = Path::new(NETSIM).with_file_name("tern");
    let is_there = tern.is_file();
    assert!(is_there || std::env::var_os("CI").is_none(), "{test} can't be skipped in CI: build tern");
    if !is_there {
        println!("{test} was SKIPPED: {} is not there: cargo build -p tern", tern.display());
    }
    is_there
}

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        let room = Self(tempfile::tempdir().unwrap());
        fs::create_dir(room.path("tmp")).unwrap();
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(NETSIM);
        command.args(arguments).current_dir(self.0.path()).env("TMPDIR", self.path("tmp"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What runs have left of their directories.
    fn left(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_edge_that_dies_under_load_is_measured_recorded_and_leaves_nothing() {
    if !has_tern("the edge that dies") {
        return;
    }
    let room = Room::new();
    fs::write(room.path("edge.toml"), EDGE).unwrap();
    let output = room.command(&["chaos", "run", "edge.toml", "--json"]).env("UNDONE", "yes").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "PASS", "{report}");
    let figure = |name: &str| {
        let all = report["figures"].as_array().unwrap();
        all.iter().find(|figure| figure["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
    };
    assert_eq!(figure("sent")["values"][0][1], 180.0);
    assert_eq!(figure("processes that ended by themselves")["verdict"], "PASS");
    assert!(figure("next ack after a-command")["count"].as_u64() > Some(0));
    let directory = room.path("netsim-runs/chaos/edge");
    for file in ["report.txt", "report.json", "history.json", "messages.csv", "logs/eu-n1.log", "logs/eu-e1.log"] {
        assert!(directory.join(file).metadata().unwrap().len() > 0, "{file}");
    }
    let record = fs::read_to_string(directory.join("record.jsonl")).unwrap();
    for what in ["\"killed\"", "\"starts\"", "\"over\"", "\"settled\"", "\"memory\"", "\"runs\"", "\"undoes\""] {
        assert!(record.contains(what), "{what} in {record}");
    }
    assert_eq!(fs::read_to_string(room.path("undone")).unwrap().trim(), "yes");
    assert!(fs::read_to_string(directory.join("logs/a-command.log")).unwrap().contains("struck"));
    assert_eq!(room.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_command_that_fails_and_a_bound_that_is_exceeded_are_other_verdicts() {
    if !has_tern("verdicts") {
        return;
    }
    let room = Room::new();
    let short = EDGE.replace("for = \"9s\"", "for = \"4s\"").replace("at = \"7s\"", "at = \"1s\"");
    let short = short.replace("at = \"2s\"\nkind = \"kill\"", "at = \"1s\"\nkind = \"stop\"");
    let failed = short.replace("run = \"echo struck\"", "run = \"echo the reason; exit 7\"");
    fs::write(room.path("failed.toml"), failed).unwrap();
    let output = room.run(&["chaos", "run", "failed.toml"]);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    let words = said(&output);
    assert!(words.contains("the reason") && words.contains("UNKNOWN edge"), "{words}");
    let exceeded = short.replace("ack_outside_faults = { max = \"60s\" }", "caught_up = { max = \"0ms\" }");
    let exceeded = exceeded.replace("caught_up = { max = \"60s\" }\n", "ack_outside_faults = { median = \"0ms\" }\n");
    fs::write(room.path("exceeded.toml"), exceeded).unwrap();
    let output = room.run(&["chaos", "run", "exceeded.toml"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("FAIL edge"), "{}", said(&output));
}

#[test]
fn a_run_that_is_killed_leaves_no_process_no_directory_and_nothing_undone() {
    if !has_tern("the run that is killed") {
        return;
    }
    let room = Room::new();
    // One stands still when it happens, and hears nothing.
    let long = EDGE.replace("for = \"9s\"", "for = \"600s\"").replace("kind = \"kill\"", "kind = \"stop\"");
    let long = long.replace("for = \"2s\"", "for = \"500s\"").replace("at = \"7s\"", "at = \"1s\"");
    let long = long.replace("for = \"1s\"\naftermath", "for = \"500s\"\naftermath");
    fs::write(room.path("long.toml"), long).unwrap();
    let mut command = room.command(&["chaos", "run", "long.toml"]);
    let mut run = command.env("UNDONE", "yes").stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(run.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut before = Vec::new();
    for line in lines {
        before.push(line);
        if before.last().unwrap().contains("by SIGSTOP") {
            break;
        }
    }
    assert!(before.last().is_some_and(|line| line.contains("by SIGSTOP")), "{before:?}");
    let directory = room.left().pop().expect("a run has a directory");
    let ours = directory.display().to_string();
    let of_run = || {
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.path().join("cmdline").into());
        all.filter(|path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).contains(&ours))
            .count()
    };
    assert!(of_run() >= 3, "two nodes and the keeper");
    run.kill().unwrap();
    run.wait().unwrap();
    let end = Instant::now() + DEADLINE;
    while of_run() > 0 || !room.left().is_empty() {
        assert!(Instant::now() < end, "{} processes and {:?} are left", of_run(), room.left());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(fs::read_to_string(room.path("undone")).unwrap().trim(), "yes");
}

#[test]
fn a_bad_script_is_refused_with_its_place_and_all_that_are_shipped_are_good() {
    let room = Room::new();
    fs::write(room.path("bad.toml"), EDGE.replace("target = \"eu-e1\"", "target = \"eu-e7\"")).unwrap();
    for command in [&["chaos", "run", "bad.toml"][..], &["chaos", "check", "bad.toml"][..]] {
        let output = room.run(command);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains("bad.toml:21:10: no process or region \"eu-e7\""), "{}", said(&output));
    }
    let output = room.run(&["chaos", "run", "nowhere.toml"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("chaos");
    let mut files: Vec<String> =
        fs::read_dir(shipped).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect();
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    let arguments: Vec<&str> = ["chaos", "check"].into_iter().chain(files.iter().map(String::as_str)).collect();
    let output = room.run(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    fs::write(room.path("edge.toml"), EDGE).unwrap();
    let output = room.run(&["chaos", "run", "edge.toml", "--tern", "no-such-program"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(said(&output).contains("cargo build --release -p tern"), "{}", said(&output));
    assert_eq!(room.left(), Vec::<PathBuf>::new());
}
