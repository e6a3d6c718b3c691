//! `tern bench` runs to its end, measures everything it promises, and leaves nothing behind. How fast it is
//! is no property of the code alone: nothing here looks at a value beyond its being one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

#[test]
fn every_part_runs_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["bench", "all", "--json", "--seconds", "1", "--pairs", "3", "--connections", "20", "--data"];
    let output = Command::new(env!("CARGO_BIN_EXE_tern")).args(arguments).arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in [
        "idle.quic.20.memory",
        "idle.tcp.20.memory",
        "idle.quic.connect.cpu",
        "messages.disk.forced_write",
        "messages.echo.16.cpu",
        "messages.1.acked",
        "messages.16.cpu",
        "messages.16.over_echo",
        "messages.half.ack.p99",
        "dispatch.rankings",
        "dispatch.over_empty",
        "routes.memory",
        "routes.wire.come_and_go",
        "routes.copy",
    ] {
        let value = report["figures"][name]["value"].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"));
        assert!(value.is_finite() && value >= 0.0, "{name} is {value}");
    }
    assert_eq!(report["figures"]["messages.16.cpu"]["goal"]["at_most"], 15.0);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?} is left");
}
