//! What a test that is killed leaves behind: nothing, suspended processes included.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tern::cluster::Cluster;
use tern::fleet::Fleet;

/// A process that is to start a deployment and to wait for its own end is told by this where.
const SCENE: &str = "TERN_KILLS_ORPHAN";
/// A resumed server ends its work first; only a failure takes that long.
const GONE_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn orphan_scene() {
    let Some(data) = std::env::var_os(SCENE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster::plan(data.into(), &["eu".to_owned()], 23_000).unwrap();
        cluster.add_edges("eu", 1);
        cluster.find_ports().unwrap();
        let processes = cluster.write().unwrap();
        let mut fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &cluster.data).unwrap();
        for process in &processes {
            fleet.start(&process.name, &process.arguments).await.unwrap();
        }
        assert!(fleet.signal(&processes[0].name, Signal::STOP));
        let pids: Vec<String> = processes.iter().map(|p| fleet.pid(&p.name).unwrap().to_string()).collect();
        println!("\npids {}", pids.join(" "));
        std::future::pending::<()>().await;
    });
}

/// Whether it runs or is suspended; one that ended and that nobody has waited for does neither.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_killed_parent_leaves_no_process_not_even_a_suspended_one() {
    let data = tempfile::tempdir().unwrap();
    let mut scene = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "orphan::orphan_scene", "--nocapture"])
        .env(SCENE, data.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(scene.stdout.take().unwrap()).lines();
    let told = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("pids ").map(str::to_owned));
    scene.kill().unwrap();
    scene.wait().unwrap();
    let told = told.expect("the deployment did not start");
    let pids: Vec<&str> = told.split(' ').collect();
    assert_eq!(pids.len(), 2);
    let until = Instant::now() + GONE_WITHIN;
    while let Some(left) = pids.iter().find(|pid| lives(pid)) {
        if Instant::now() > until {
            for pid in &pids {
                // None is to stay behind, whatever is wrong; one that is gone is what it should be.
                let _gone = kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL);
            }
            panic!("process {left} outlives its parent");
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
