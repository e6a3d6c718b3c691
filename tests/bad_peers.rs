//! Nodes that are set up wrongly, beside nodes that run: each side says what to change, and whoever runs goes on.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "processes run in real time, and so do their tests")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tern::cluster::{Cluster, Process};
use tern::fleet::Fleet;

/// Far above what anything here takes on a busy machine; only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(60);

fn set(settings: &[String]) -> Vec<String> {
    settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]).collect()
}

/// Ports that the system chooses, and data of its own.
fn apart(data: &Path, name: &str) -> Vec<String> {
    let mut settings = vec![format!("data={}", data.join(name).display())];
    settings.extend(["listen.client=0", "listen.dispatch=0", "listen.node=0"].map(str::to_owned));
    settings.extend(["listen.admin=127.0.0.1:0", "listen.gossip=127.0.0.1:0"].map(str::to_owned));
    settings
}

async fn told(fleet: &mut Fleet, name: &str, words: &str) {
    let end = Instant::now() + DEADLINE;
    loop {
        let log = std::fs::read_to_string(fleet.log_path(name)).unwrap_or_default();
        if log.contains(words) {
            return;
        }
        assert!(Instant::now() < end, "{name} does not say {words:?}: {log}");
        if let Some((ended, status)) = fleet.ended() {
            panic!("{ended} ended with {status} for another's mistake: {}", fleet.log_tail(&ended));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_running_node_outlives_every_mistake_of_others_and_both_sides_say_what_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["eu".to_owned(), "us".to_owned(), "ap".to_owned()];
    let mut cluster = Cluster::plan(dir.path().join("cluster"), &names, 29_800).unwrap();
    cluster.add_edges("eu", 2);
    cluster.find_ports().unwrap();
    let processes = cluster.write().unwrap();
    let of = |name: &str| -> &Process { processes.iter().find(|process| process.name == name).unwrap() };
    let data = cluster.data.clone();
    let mut fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &data).unwrap();
    for name in ["eu-e1", "us-e1", "eu-e2"] {
        fleet.start(name, &of(name).arguments).await.unwrap();
    }
    let line = |name: &str, key: &str| {
        let config = std::fs::read_to_string(&of(name).arguments[2]).unwrap();
        let found = config.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")).map(str::to_owned));
        found.unwrap().trim_matches(['[', ']', '"']).to_owned()
    };
    let with = |name: &str, settings: &[String]| [&of(name).arguments[..], &set(settings)].concat();

    // An edge with a certificate of another deployment's authority.
    let strange = dir.path().join("strange");
    let made = Command::new(env!("CARGO_BIN_EXE_tern"))
        .args(["pki", "--node", "eu-e3", "--region", "eu", "--data"])
        .arg(&strange)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let pki = |file: &str| strange.join("pki").join(file).display().to_string();
    let mut settings = apart(&data, "stranger");
    settings.extend([
        format!("tls.node_cert={}", pki("eu-e3.node.pem")),
        format!("tls.node_key={}", pki("eu-e3.node.key")),
        format!("tls.node_ca={}", pki("node-ca.pem")),
    ]);
    fleet.launch("stranger", &with("eu-e3", &settings)).await.unwrap();
    told(&mut fleet, "stranger", "the other node's certificate is not accepted here").await;
    told(&mut fleet, "stranger", "not in tls.node_ca here").await;
    told(&mut fleet, "eu-e1", "a node could not connect").await;
    told(&mut fleet, "eu-e1", "does not accept this node's certificate").await;
    fleet.kill("stranger").await;

    // An edge of another region's core.
    let mut settings = apart(&data, "lost-edge");
    settings.push("region.id=9".to_owned());
    fleet.launch("lost-edge", &with("eu-e3", &settings)).await.unwrap();
    told(&mut fleet, "lost-edge", "it serves region 1 (eu), and this edge is configured for region 9").await;
    fleet.kill("lost-edge").await;

    // A second edge of one name.
    fleet.launch("namesake", &with("eu-e2", &apart(&data, "namesake"))).await.unwrap();
    told(&mut fleet, "eu-e2", "another node of this name, started later, takes part").await;
    fleet.kill("namesake").await;
    told(&mut fleet, "eu-e2", "no other node of this name takes part now").await;

    // A region of another deployment, whose place in `peers` it takes.
    let settings = vec!["deployment=another".to_owned()];
    fleet.launch("ap-e1", &with("ap-e1", &settings)).await.unwrap();
    told(&mut fleet, "eu-e1", "refused: another deployment: its name or its receipt key differs").await;
    told(&mut fleet, "ap-e1", "a node was refused").await;
    fleet.kill("ap-e1").await;

    // A second region with a number that is taken, and a store of its own.
    let mut settings = apart(&data, "double");
    settings.push("name=eu-e9".to_owned());
    fleet.launch("double", &with("eu-e1", &settings)).await.unwrap();
    told(&mut fleet, "double", "region 1 is linked already, from another store and a later start").await;
    told(&mut fleet, "us-e1", "a second process running with its id").await;
    fleet.kill("double").await;

    // A region that the other one, which would have to dial it, does not list.
    let mut settings = apart(&data, "unlisted");
    settings.extend([format!("peers=1:eu@{}", line("eu-e2", "core")), "region.id=7".to_owned()]);
    fleet.launch("unlisted", &with("ap-e1", &settings)).await.unwrap();
    told(&mut fleet, "unlisted", "does its `peers` list region 7").await;
    fleet.kill("unlisted").await;
    assert!(fleet.ended().is_none(), "{:?}", fleet.ended());
    fleet.stop(Duration::from_secs(20)).await;
}
