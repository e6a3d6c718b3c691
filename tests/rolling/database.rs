//! Regions that several processes share on a database, which `replication/tests/cql-cluster/check` starts.

use std::process::{Command, Output};

use crate::scene::Scene;

/// What processes of such a region are given besides, its tables named after `test`. `None`: there is no database, so the
/// test is skipped.
pub fn settings(test: &str) -> Option<Vec<String>> {
    let Ok(nodes) = std::env::var("TERN_CQL_NODES") else {
        eprintln!("skipped: no database; replication/tests/cql-cluster/check starts one");
        return None;
    };
    let replication = std::env::var("TERN_CQL_REPLICATION").unwrap_or_else(|_| "dc1:1".to_owned());
    let datacenter = replication.split(':').next().unwrap().to_owned();
    let run = std::process::id();
    let settings = [
        "region.shared=true".to_owned(),
        "store.kind=scylla".to_owned(),
        format!("store.nodes={nodes}"),
        format!("store.datacenter={datacenter}"),
        format!("store.keyspace=tern_{test}_{run}"),
        format!("store.timeline_keyspace=tern_{test}_timeline_{run}"),
        format!("store.replication={replication}"),
        // A busy machine takes its time to make tables.
        "store.request_timeout=10s".to_owned(),
        "edge.drain_window=1s".to_owned(),
    ];
    Some(settings.to_vec())
}

/// These processes of `eu` serve it together: what the plan has as a further edge becomes a region's process.
pub fn share(scene: &mut Scene, cores: &[&str], settings: &[String]) {
    let config = std::fs::read_to_string(&scene.arguments("eu-e1")[2]).unwrap();
    let peers = config.lines().find_map(|line| line.strip_prefix("peers = ")).unwrap();
    let peers = peers.trim_matches(['[', ']', '"']).to_owned();
    let data = scene.data.clone();
    let shared = |file: &str| data.join(file).display().to_string();
    for process in scene.processes.iter_mut().filter(|process| cores.contains(&process.name.as_str())) {
        let mut more = settings.to_vec();
        if process.arguments[0] == "edge" {
            process.arguments[0] = "region".to_owned();
            more.extend([
                "listen.dispatch=0".to_owned(),
                "listen.node=0".to_owned(),
                "core=".to_owned(),
                format!("peers={peers}"),
                format!("receipt.key_file={}", shared("receipt.key")),
                format!("direct.salt_file={}", shared("direct.salt")),
            ]);
        }
        process.arguments.extend(more.into_iter().flat_map(|setting| ["--set".to_owned(), setting]));
    }
}

/// Runs `tern` without what configures this test itself.
pub fn tern(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tern"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TERN_")) {
        command.env_remove(name);
    }
    command.args(arguments).output().unwrap()
}

/// `tern store`, as the first process is started, but for the role.
pub fn store(scene: &Scene, action: &[&str]) -> Output {
    let words = scene.arguments("eu-e1").iter().map(String::as_str);
    let words: Vec<&str> = words.filter(|word| *word != "region" && *word != "--init").collect();
    tern(&[&words[..], &["store"], action].concat())
}

/// Makes the tables. A database on a busy machine may give up in the middle: what is made stays, and the next try goes on.
pub fn init(scene: &Scene) {
    let mut made = store(scene, &["init"]);
    for _ in 0..5 {
        if made.status.success() {
            return;
        }
        made = store(scene, &["init"]);
    }
    assert!(made.status.success(), "{}", text(&made.stderr));
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
