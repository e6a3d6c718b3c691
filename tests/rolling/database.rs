//! Regions that several processes share on a database, which `replication/tests/cql-cluster/check` starts.

use std::process::Output;

use crate::scene::Scene;
use crate::{program, tables};

/// What processes of such a region are given besides, its tables named after `test`. `None`: there is no database, so the
/// test is skipped.
pub fn settings(test: &str) -> Option<Vec<String>> {
    let mut settings = tables::settings(test, 0)?;
    // A busy machine takes its time to make tables.
    settings.extend(["region.shared=true", "store.request_timeout=10s", "edge.drain_window=1s"].map(str::to_owned));
    Some(settings)
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
        process.arguments.extend(tables::flags(more));
    }
}

/// Runs `tern` without what configures this test itself.
pub fn tern(arguments: &[&str]) -> Output {
    program::tern().args(arguments).output().unwrap()
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
