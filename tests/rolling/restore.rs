//! The rehearsal of a restore: the database of a region that two processes share is set back to a backup, and the region
//! gets everything back from the other one. Without a database, which `replication/tests/cql-cluster/check` starts, it ends at
//! once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tern_client::UserId;

use crate::database::{self, share, store, text};
use crate::scene::{Device, Scene, figure};

/// The datacenter of the region that is restored has this node only.
const NODE: &str = "1";

fn database_does(cluster: &str, arguments: &[&str]) {
    let output = Command::new(cluster).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
}

/// Both processes. Where they tell their figures.
async fn start(scene: &mut Scene) -> Vec<SocketAddr> {
    let parts = |scene: &Scene| -> Vec<usize> {
        let gained = |name| scene.log(name).matches("shares of this region are this node's now").count();
        ["eu-e1", "eu-e2"].into_iter().map(gained).collect()
    };
    let before = [0, 0];
    let before = if scene.fleet.log_path("eu-e2").exists() { parts(scene) } else { before.to_vec() };
    let mut admins = Vec::new();
    for name in ["eu-e1", "eu-e2"] {
        let arguments = scene.arguments(name).to_vec();
        admins.extend(scene.fleet.start(name, &arguments).await.unwrap().admin);
    }
    scene.until("both have a part", || parts(scene).iter().zip(&before).all(|(now, before)| now > before)).await;
    admins
}

fn eras(log: &str) -> Vec<String> {
    let opened = log.lines().filter(|line| line.contains("store is open"));
    opened.filter_map(|line| Some(line.split_once("era=")?.1.split(' ').next()?.to_owned())).collect()
}

/// What a user sees of a conversation.
fn seen(device: &Device, peer: &str) -> Vec<String> {
    let id = device.client.direct(&UserId::new(peer).unwrap()).unwrap().id();
    let all = device.client.conversation(id).timeline(usize::MAX >> 1).unwrap().messages;
    all.iter().map(|m| text(&m.body)).collect()
}

#[tokio::test]
async fn a_shared_region_whose_database_was_restored_gets_everything_back_from_the_other_region() {
    let Some(settings) = database::settings("restored") else { return };
    // The database is killed and set back by its script.
    let cluster = std::env::var("TERN_CQL_CLUSTER").expect("replication/tests/cql-cluster/check sets it");
    let dir = tempfile::tempdir().unwrap();
    let backup: PathBuf = dir.path().join("backup");
    let backup_path = backup.to_str().unwrap();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_tern"));
    let mut scene = Scene::plan(Path::new(dir.path()), 29_600, program, &[("eu", 1)]);
    share(&mut scene, &["eu-e1", "eu-e2"], &settings);
    database::init(&scene);
    let us = scene.arguments("us-e1").to_vec();
    scene.fleet.start("us-e1", &us).await.unwrap();
    start(&mut scene).await;
    for user in ["ada", "ben", "cleo"] {
        scene.join(user, "eu");
    }
    scene.join("gus", "us");
    let stable = |scene: &Scene| scene.devices.values().all(|device| device.client.waiting() == (0, 0));
    scene.say_for(Duration::from_secs(2)).await;
    scene.settle("the first messages are shown").await;
    scene.until("both regions hold them", || stable(&scene)).await;

    // The backup, and what is written and acked after it.
    database_does(&cluster, &["backup", NODE, backup_path]);
    scene.say_for(Duration::from_secs(2)).await;
    scene.settle("what was written after the backup is shown").await;
    scene.until("both regions hold that, too", || stable(&scene)).await;
    let refused = store(&scene, &["new-era"]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("runs: stop it first"), "{}", text(&refused.stderr));

    // The disk is lost with the processes under load, and the backup takes its place.
    scene.say();
    for name in ["eu-e1", "eu-e2"] {
        assert!(scene.fleet.kill(name).await);
    }
    database_does(&cluster, &["kill", NODE]);
    database_does(&cluster, &["restore", NODE, backup_path]);
    database_does(&cluster, &["start", NODE]);
    let checked = store(&scene, &["check"]);
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
    let marked = store(&scene, &["new-era"]);
    assert!(marked.status.success(), "{}", text(&marked.stderr));
    let admins = start(&mut scene).await;
    scene.say_for(Duration::from_secs(2)).await;
    scene.settle("all that was ever said is shown").await;
    scene.until("both regions hold all of it", || stable(&scene)).await;
    for name in ["eu-e1", "eu-e2"] {
        let eras = eras(&scene.log(name));
        assert!(eras.len() == 2 && eras[0] != eras[1], "{name}: {eras:?}");
    }
    assert_eq!(eras(&scene.log("eu-e1"))[1], eras(&scene.log("eu-e2"))[1], "one era for both");

    // A new device sees all of it without the other region.
    scene
        .until("the restored region was compared with the other", || {
            admins.iter().all(|admin| figure(*admin, "tern_refill_peers_count").abs() < 0.5)
        })
        .await;
    let expected: Vec<(&str, Vec<String>)> =
        ["ben", "cleo", "gus"].map(|peer| (peer, seen(&scene.devices["ada"], peer))).into();
    for device in scene.devices.values() {
        device.client.clone().close().await;
    }
    assert!(scene.fleet.kill("us-e1").await);
    let tablet = Device::named(&scene.data, "ada", "tablet", "eu");
    scene
        .until("a new device sees everything from the restored region", || {
            tablet.is_live() && expected.iter().all(|(peer, all)| seen(&tablet, peer) == *all)
        })
        .await;
    assert!(tablet.edge().starts_with("eu-"), "{}", tablet.edge());
    let checked = store(&scene, &["check"]);
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
    scene.fleet.stop(Duration::from_secs(30)).await;
}
