//! A region whose only core node is started again under the clients of its edges.

use std::path::PathBuf;
use std::time::Duration;

use crate::program;
use crate::scene::{Device, Scene, figure};

const ROUNDS: usize = 3;

async fn drain(config: &str, node: &str) {
    let mut command = tokio::process::Command::from(program::tern());
    let output = command.args(["--config", config, "--json", "drain", node]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn the_only_core_node_of_a_region_is_started_again_and_no_client_of_its_edges_loses_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::plan(dir.path(), 29_000, PathBuf::from(env!("CARGO_BIN_EXE_tern")), &[("eu", 2)]);
    let core = scene.processes.iter().find(|p| p.name == "eu-e1").unwrap().clone();
    let mut admins = Vec::new();
    for process in scene.processes.clone() {
        let ready = scene.fleet.start(&process.name, &process.arguments).await.unwrap();
        if process.arguments[0] == "edge" {
            admins.push(ready.admin.unwrap());
        }
    }
    // The core's own edge takes no clients: this holds over its restarts.
    drain(&core.arguments[2], "eu-e1").await;
    for user in ["ada", "ben", "cleo", "dora"] {
        scene.join(user, "eu");
    }
    scene.join("gus", "us");
    scene.say_for(Duration::from_secs(2)).await;
    scene.settle("the first messages are shown").await;
    scene.until("all are live", || scene.devices.values().all(Device::is_live)).await;
    for (user, device) in &scene.devices {
        assert!(*user == "gus" || ["eu-e2", "eu-e3"].contains(&device.edge().as_str()), "{user}: {}", device.edge());
    }
    let closed = |admins: &[std::net::SocketAddr]| -> f64 {
        admins.iter().map(|admin| figure(*admin, "tern_edge_closed_connections_total")).sum()
    };
    let before = closed(&admins);
    for device in scene.devices.values() {
        // In the foreground a client asks another edge where its own is silent for a sixth of a second, as all are on a
        // machine that is busy with a start.
        device.client.set_foreground(false).unwrap();
        device.link.lock().unwrap().lost.clear();
    }

    for round in 1..=ROUNDS {
        scene.stop("eu-e1").await;
        scene.say();
        // It may take a while where the machine is busy; what is said meanwhile waits at the edges.
        scene.fleet.start("eu-e1", &core.arguments).await.unwrap();
        scene.say_for(Duration::from_secs(2)).await;
        scene.settle(&format!("what was said around restart {round} is shown")).await;
        scene.all_run();
    }
    for (user, device) in &scene.devices {
        let lost = &device.link.lock().unwrap().lost;
        assert!(device.is_live() && lost.is_empty(), "{user}: {lost:?}\n{}", scene.log("eu-e2"));
    }
    assert!((closed(&admins) - before).abs() < 0.5, "edges have closed connections");
    let log = scene.log("eu-e1");
    assert_eq!(log.matches("new_era=false").count(), 1 + ROUNDS, "a stop in order keeps the era: {log}");
    let waited = scene.log("eu-e2").matches("clients are kept until it is back").count();
    assert_eq!(waited, ROUNDS, "{}", scene.log("eu-e2"));

    // A crash begins another era, in which every client must say Hello: connections may end, and nothing is lost.
    scene.say();
    assert!(scene.fleet.kill("eu-e1").await);
    scene.say_for(Duration::from_secs(1)).await;
    scene.fleet.start("eu-e1", &core.arguments).await.unwrap();
    scene.say_for(Duration::from_secs(2)).await;
    scene.settle("what was said around a crash is shown").await;
    scene.until("all are live", || scene.devices.values().all(Device::is_live)).await;
    scene.all_run();
    scene.fleet.stop(Duration::from_secs(30)).await;
}
