//! Scenarios over real packets, through the command line: real processes in network namespaces. They need root, TUN
//! devices and the `tern` program beside `netsim`; elsewhere each says that it was skipped, except in CI, where that is
//! a failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tern_netsim_tun::{Attached, HostPlan, Lab, LabError, LabPlan};
use tern_netsim_verdict::{Event, Line, read};

const NETSIM: &str = env!("CARGO_BIN_EXE_netsim");

/// Whether this machine can have labs, and where `tern` is.
fn tern(test: &str) -> Option<PathBuf> {
    let path = Path::new(NETSIM).with_file_name("tern");
    let alone = LabPlan {
        seed: 1,
        hosts: vec![HostPlan {
            name: "a".into(),
            place: "here".into(),
            attached: Attached::Wired([10, 0, 0, 1].into()),
        }],
        paths: vec![],
        radio_tail_ns: 1,
    };
    let lacks = match Lab::start(&alone) {
        Err(error @ (LabError::NoPermission { .. } | LabError::NoTun(_))) => Some(error.to_string()),
        Err(other) => panic!("{other}"),
        Ok(_) if path.is_file() => None,
        Ok(_) => Some(format!("{} is not there: cargo build -p tern", path.display())),
    };
    let Some(lacks) = lacks else { return Some(path) };
    assert!(std::env::var_os("CI").is_none(), "{test} can't be skipped in CI: {lacks}");
    println!("{test} was SKIPPED: {lacks}");
    None
}

fn netsim(arguments: &[&str]) -> Output {
    Command::new(NETSIM).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// One region with a further edge, and two people; Alice's phone goes from WiFi behind a NAT to its carrier.
const SHORT: &str = r#"
[scenario]
name = "short"
about = "A hand-over in real time: nothing is lost."
drivers = ["sim", "tun"]
duration = "12s"

[[region]]
name = "eu"
aws = "euc1"
edges = 1

[[place]]
name = "germany"
near = "eu"
rtt = "20ms"

[[device]]
id = "alice-phone"
user = "alice"
place = "germany"
nat = "home"
iface.wifi = { rate = "20Mbit/s", delay = "25ms" }
iface.cell = { rate = "20Mbit/s", delay = "40ms" }

[[device]]
id = "bob-laptop"
user = "bob"
place = "germany"
iface.wifi = { rate = "50Mbit/s", delay = "20ms" }

[[load]]
id = "alice-writes"
from = "alice-phone"
to = "bob"
rate = "2/s"
during = "2s..11s"

[[load]]
id = "bob-writes"
from = "bob-laptop"
to = "alice"
rate = "1/s"
during = "2s..11s"

[[fault]]
id = "leaves-home"
kind = "handover"
target = "alice-phone"
to = "cell"
gap = "500ms"
at = "6s"

[liveness]
within = "60s"
"#;

/// A history's lines.
fn history(run: &Path) -> Vec<Line> {
    read(std::io::BufReader::new(fs::File::open(run.join("history.jsonl")).unwrap())).unwrap()
}

#[test]
fn a_hand_over_over_real_packets_loses_nothing_and_is_judged_like_any_run() {
    let Some(tern) = tern("a_hand_over_over_real_packets_loses_nothing_and_is_judged_like_any_run") else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("short.toml");
    fs::write(&file, SHORT).unwrap();
    let out = directory.path().join("runs");
    let arguments = ["run", file.to_str().unwrap(), "--driver", "tun", "--tern", tern.to_str().unwrap()];
    let output = netsim(&[&arguments[..], &["--out", out.to_str().unwrap()]].concat());
    let lines = history(&out.join("short-0-tun"));
    let of = |wanted: fn(&Event) -> bool| lines.iter().filter(|line| wanted(&line.event)).count();
    let sent = of(|event| matches!(event, Event::Invoke { .. }));
    assert!(sent >= 20, "{sent}");
    assert_eq!(of(|event| matches!(event, Event::Acked { .. })), sent, "{}", said(&output));
    assert_eq!(of(|event| matches!(event, Event::Shown { new: true, .. })), sent);
    assert_eq!(of(|event| matches!(event, Event::Broken { .. })), 0, "{}", said(&output));
    assert_eq!(of(|event| matches!(event, Event::Fault { hits, .. } if *hits > 0)), 1);
    assert_eq!(of(|event| matches!(event, Event::Lateness { .. })), 1);
    assert!(matches!(lines.last().unwrap().event, Event::End { quiet: true, .. }), "{}", said(&output));
    // No more than the machine's being too busy may be wrong with it.
    let verdict = said(&output);
    assert!(verdict.contains("PASS") || verdict.contains("INVALID"), "{verdict}");
}

#[test]
fn a_program_runs_behind_a_link_of_a_scenario_with_its_exit_code() {
    let test = "a_program_runs_behind_a_link_of_a_scenario_with_its_exit_code";
    if tern(test).is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("short.toml");
    fs::write(&file, SHORT).unwrap();
    let file = file.to_str().unwrap();
    let output =
        netsim(&["shell", file, "--at", "alice-phone", "--", "/bin/sh", "-c", "cat /proc/net/fib_trie; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert!(said(&output).contains("alice-phone"), "the table of addresses: {}", said(&output));
    let nowhere = netsim(&["shell", file, "--at", "alices-phone", "--", "true"]);
    assert_eq!(nowhere.status.code(), Some(3));
    assert!(
        said(&nowhere).contains("there is no host alices-phone; there is eu, eu-e2, alice-phone"),
        "{}",
        said(&nowhere)
    );
}

#[test]
fn faults_strike_the_links_of_a_program_if_asked_to_and_end_with_it() {
    let test = "faults_strike_the_links_of_a_program_if_asked_to_and_end_with_it";
    if tern(test).is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dark.toml");
    let dark = "[[fault]]\nid = \"dark\"\nkind = \"outage\"\ntarget = \"alice-phone\"\nat = \"100ms\"\nfor = \"400ms\"\n\
                [[fault]]\nid = \"late\"\nkind = \"outage\"\ntarget = \"alice-phone\"\nat = \"11s\"\nfor = \"400s\"\n";
    fs::write(&file, format!("{SHORT}\n{dark}")).unwrap();
    let file = file.to_str().unwrap();
    let shell = |arguments: &[&str]| {
        let all = [&["shell", file, "--at", "alice-phone"], arguments, &["--", "sleep", "1"]].concat();
        netsim(&all)
    };
    let struck = said(&shell(&["--faults"]));
    assert!(struck.contains("dark begins") && struck.contains("dark ends") && !struck.contains("late"), "{struck}");
    let calm = said(&shell(&[]));
    assert!(!calm.contains("dark begins"), "{calm}");
}

#[test]
fn what_only_virtual_time_can_do_is_refused_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clock.toml");
    let clock =
        "[[fault]]\nid = \"clock\"\nkind = \"clock\"\ntarget = \"eu\"\nstep = \"10min\"\nat = \"1s\"\nfor = \"5s\"\n";
    fs::write(&file, format!("{SHORT}\n{clock}")).unwrap();
    let out = directory.path().join("runs");
    // Any file will do for the program: nothing gets as far as that.
    let arguments =
        ["run", file.to_str().unwrap(), "--driver", "tun", "--tern", NETSIM, "--out", out.to_str().unwrap()];
    let output = netsim(&arguments);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(
        said(&output).contains("processes of one machine share its clock; play it with --driver sim"),
        "{}",
        said(&output)
    );
    let missing = netsim(&["run", file.to_str().unwrap(), "--driver", "tun", "--twice"]);
    assert_eq!(missing.status.code(), Some(2), "{}", said(&missing));
}

#[test]
fn tern_and_the_tcp_messenger_carry_the_same_messages_beside_each_other() {
    let test = "tern_and_the_tcp_messenger_carry_the_same_messages_beside_each_other";
    let Some(tern) = tern(test) else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("short.toml");
    fs::write(&file, SHORT).unwrap();
    let out = directory.path().join("runs");
    let arguments = ["compare", file.to_str().unwrap(), "--against", "tcp", "--json", "--tern", tern.to_str().unwrap()];
    // It writes for ten seconds, and no longer.
    let refused = netsim(&[&arguments[..], &["--minutes", "1"]].concat());
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let output = netsim(&[&arguments[..], &["--minutes", "0.15", "--out", out.to_str().unwrap()]].concat());
    // What came of it depends on the machine; whether all of it is there does not.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", said(&output));
    let tables: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let [own, other] = tables[0]["flows"].as_array().unwrap().as_slice() else { panic!("{tables}") };
    assert_eq!((own["name"].as_str(), other["name"].as_str()), (Some("tern"), Some("tcp")));
    let sent = own["times"]["sent"].as_u64().unwrap();
    assert!(sent >= 15, "{sent}");
    for flow in [own, other] {
        assert_eq!(flow["shown"].as_u64(), Some(sent), "{flow}");
        assert_eq!(flow["times"]["sent"].as_u64(), Some(sent), "{flow}");
        let bytes = &flow["bytes"]["alice-phone"];
        assert!(bytes[0].as_u64().unwrap() > 120 * sent / 4 && bytes[1].as_u64().unwrap() > 0, "{flow}");
    }
    // The same ones, at about the same moments.
    let names = |flow: &serde_json::Value| -> std::collections::BTreeSet<String> {
        flow["fates"].as_array().unwrap().iter().map(|fate| fate["message"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(own), names(other));
    // The link alone takes 45 ms: nobody measures with another clock.
    assert!(other["times"]["p50_ns"].as_u64().unwrap() > 45_000_000, "{other}");
}
