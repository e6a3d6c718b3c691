//! The systemd units of `deploy/systemd`: that they agree with the binary, and that systemd takes them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use tern::cli::{Cli, Command as Sub};
use tern::config::{KEYS, Sources};
use tern::health::STUCK_AFTER;

/// (file name, its settings by "Section.Key", the last of each).
fn units() -> Vec<(String, BTreeMap<String, String>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    let mut units: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), parse(&fs::read_to_string(path).unwrap()))
        })
        .collect();
    units.sort();
    assert_eq!(units.len(), 3);
    units
}

fn parse(text: &str) -> BTreeMap<String, String> {
    let (mut section, mut found) = (String::new(), BTreeMap::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("no setting: {line}"));
            found.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    found
}

fn time(text: &str) -> Duration {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap());
    let seconds = match unit {
        "s" => 1,
        "min" => 60,
        other => panic!("{other}"),
    };
    Duration::from_secs(digits.parse::<u64>().unwrap() * seconds)
}

#[test]
fn each_unit_starts_a_role_that_the_binary_has_and_leaves_it_the_time_and_files_it_needs() {
    let defaults = Sources::default().load().unwrap();
    assert!(KEYS.iter().any(|key| key.name == "edge.capacity"));
    for (name, unit) in units() {
        let of = |key: &str| unit.get(&format!("Service.{key}")).unwrap_or_else(|| panic!("{name} lacks {key}"));
        let line = of("ExecStart").replace("%i", "eu-e2");
        let cli = Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{name}: {error}"));
        let data = cli.global.data.unwrap();
        let edges = match cli.command {
            Sub::Region(_) | Sub::Edge(_) => true,
            Sub::Ipconf(_) => false,
            other => panic!("{name} runs {other:?}"),
        };
        // What may be written is what systemd makes for it.
        let state = of("StateDirectory").replace("%i", "eu-e2");
        assert_eq!(data, Path::new("/var/lib").join(state), "{name}");
        assert!(cli.global.config.unwrap().starts_with("/etc/tern"), "{name}");

        assert_eq!((of("Type").as_str(), of("KillSignal").as_str()), ("notify", "SIGTERM"), "{name}");
        assert!(of("ExecReload").contains("-HUP"), "{name}");
        assert!(time(of("WatchdogSec")) > STUCK_AFTER, "{name}: the watchdog must not be faster than /livez");
        let drain = if edges { defaults.edge_drain_window } else { Duration::ZERO };
        assert!(time(of("TimeoutStopSec")) > drain + Duration::from_secs(30), "{name}");
        let files: u32 = of("LimitNOFILE").parse().unwrap();
        assert!(!edges || files > defaults.edge_capacity / 4 * 5, "{name}");
        for hardened in ["NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictNamespaces"] {
            assert_eq!(of(hardened), "yes", "{name}: {hardened}");
        }
        assert_eq!((of("ProtectSystem").as_str(), of("User").as_str()), ("strict", "tern"), "{name}");
    }
}

#[test]
fn systemd_takes_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("skipped: there is no systemd-analyze here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    for (name, _) in units() {
        // The binary must be there for systemd to be content, and a template needs an instance.
        let text = fs::read_to_string(from.join(&name))
            .unwrap()
            .replace("/usr/bin/tern ", concat!(env!("CARGO_BIN_EXE_tern"), " "));
        let unit: PathBuf = dir.path().join(name.replace('@', "@eu-e2"));
        fs::write(&unit, text).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let about: Vec<&str> = said.lines().filter(|line| line.contains("tern")).collect();
        assert!(output.status.success() && about.is_empty(), "{name}: {said}");
    }
}
