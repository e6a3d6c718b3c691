//! What the simulation tests share: the seeded process, and children that run one scenario each.

mod getrandom;

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Set for a child: the seed it is to run.
pub const SEED: &str = "TERN_NETSIM_SEED";

/// The seed of this process, if it is a child that [`run_child`] started.
pub fn child_seed() -> Option<u64> {
    std::env::var(SEED).ok().map(|seed| seed.parse().expect("a seed is a number"))
}

/// Prints what the parent compares.
pub fn report(line: impl std::fmt::Display) {
    println!("\nreport: {line}");
}

/// Runs one test of this binary in a process of its own, under a seed, and returns what it reported. A child
/// that has not ended after `watchdog` is in an endless loop, and is killed.
pub fn run_child(test: &str, seed: u64, watchdog: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (done, ended) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let result = out.read_to_string(&mut text);
        let _closed = done.send(());
        result.map(|_| text)
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let late = ended.recv_timeout(watchdog).is_err();
    if late {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let (text, errors) = (reader.join().unwrap().unwrap(), errors.join().unwrap().unwrap());
    assert!(!late, "{test} with seed {seed} did not end within {watchdog:?}:\n{text}\n{errors}");
    assert!(status.success(), "{test} with seed {seed} failed: {status}\n{text}\n{errors}");
    let lines: Vec<String> = text.lines().filter_map(|line| line.strip_prefix("report: ")).map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{test} with seed {seed} reported nothing:\n{text}\n{errors}");
    lines
}
