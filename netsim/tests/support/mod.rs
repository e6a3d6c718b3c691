//! What the simulation tests share: the seeded process, and children that run one scenario each.

#[path = "../../src/getrandom.rs"]
mod getrandom;

use std::fmt::Display;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tern_netsim::packets::Packet;

/// Set for a child: the seed it is to run.
const SEED: &str = "TERN_NETSIM_SEED";
/// Set for a child: the file for its packets.
const PACKETS: &str = "TERN_NETSIM_PACKETS";
/// May be set by hand, as in `TERN_NETSIM_SEED=1 TERN_NETSIM_LOG=debug <test binary> --exact <test>`.
const LOG: &str = "TERN_NETSIM_LOG";

/// The seed of this process, if it is a child that [`run_child`] started.
pub fn child_seed() -> Option<u64> {
    if let Ok(filter) = std::env::var(LOG) {
        let to = tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr);
        // A child runs one test, so nobody has set another.
        to.init();
    }
    std::env::var(SEED).ok().map(|seed| seed.parse().expect("a seed is a number"))
}

/// Tells the parent what it compares: one line, and the packets.
pub fn report(line: impl Display, packets: &[Packet]) {
    if let Ok(path) = std::env::var(PACKETS) {
        let text: String = packets.iter().map(|packet| format!("{packet}\n")).collect();
        std::fs::write(path, text).unwrap();
    }
    println!("\nreport: {line}");
}

/// Runs one test twice, in two processes, and returns what both reported. Where the runs differ, it fails with
/// the first packet that does: what was decided just before that packet depends on something outside the run.
pub fn run_twice(test: &str, seed: u64, watchdog: Duration) -> Vec<String> {
    let path = |run| Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{seed}-{run}.packets"));
    let reports = [1, 2].map(|run| run_child(test, seed, Some(&path(run)), watchdog));
    let packets = [1, 2].map(|run| std::fs::read_to_string(path(run)).unwrap());
    for (number, (a, b)) in packets[0].lines().zip(packets[1].lines()).enumerate() {
        assert_eq!(a, b, "{test} with seed {seed}: packet {number} differs; see {:?}, {:?}", path(1), path(2));
    }
    assert_eq!(reports[0], reports[1], "{test} with seed {seed}: one run went on for longer");
    for run in [1, 2] {
        std::fs::remove_file(path(run)).unwrap();
    }
    let [report, _] = reports;
    report
}

/// Runs one test of this binary in a process of its own, under a seed, and returns what it reported. A child
/// that has not ended after `watchdog` is in an endless loop, and is killed.
pub fn run_child(test: &str, seed: u64, packets: Option<&Path>, watchdog: Duration) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if let Some(path) = packets {
        command.env(PACKETS, path);
    }
    let mut child = command
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
