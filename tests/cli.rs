//! The binary as a user meets it: exit codes, what is printed where, and what the messages say to do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/program.rs"]
mod program;

use std::path::Path;
use std::process::Output;

fn tern(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    program::tern().args(arguments).envs(environment.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_printed_default_configuration_passes_the_check_it_belongs_to() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tern.toml");
    std::fs::write(&file, tern(&["config", "default"], &[]).stdout).unwrap();
    let path = file.to_str().unwrap();
    let checked = tern(&["config", "check", "--config", path], &[("TERN_REGION_NAME", "eu")]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    let line = stdout(&checked).lines().find(|l| l.starts_with("region.name")).unwrap().to_owned();
    assert!(line.contains("\"eu\"") && line.contains("environment TERN_REGION_NAME"), "{line}");
    let json = tern(&["config", "check", "--config", path, "--json"], &[]);
    for line in stdout(&json).lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(object["key"].is_string() && object["source"].is_string());
    }
}

#[test]
fn a_wrong_configuration_ends_with_2_and_names_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tern.toml");
    std::fs::write(&file, "[limits]\nsends_per_secnod = 3\n").unwrap();
    let output = tern(&["config", "check", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("tern.toml:2") && said.contains("\"limits.sends_per_second\""), "{said}");
    assert!(stdout(&output).is_empty());
}

#[test]
fn arguments_that_make_no_sense_end_with_2() {
    assert_eq!(tern(&["fly"], &[]).status.code(), Some(2));
    assert_eq!(tern(&["token"], &[]).status.code(), Some(2));
    assert_eq!(tern(&["config", "check", "--set", "region.name"], &[]).status.code(), Some(2));
    assert_eq!(tern(&["dev", "--regions", "mars"], &[]).status.code(), Some(2));
    assert_eq!(tern(&["--help"], &[]).status.code(), Some(0));
}

#[test]
fn a_token_needs_the_keys_of_a_deployment_and_is_all_that_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let without = tern(&["token", "--user", "alice", "--data", data], &[]);
    assert_eq!(without.status.code(), Some(3));
    assert!(stderr(&without).contains("--data must be"), "{}", stderr(&without));

    let made = tern(&["pki", "--node", "eu-e1", "--region", "eu", "--address", "192.0.2.1", "--data", data], &[]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    for line in stdout(&made).lines() {
        let path = line.split_whitespace().last().unwrap();
        assert!(Path::new(path).is_file(), "{line}");
    }
    let token = tern(&["token", "--user", "alice", "--data", data], &[]);
    assert_eq!(token.status.code(), Some(0), "{}", stderr(&token));
    assert_eq!(stdout(&token).trim().split('.').count(), 3);
    assert_eq!(stdout(&token).lines().count(), 1);
}
