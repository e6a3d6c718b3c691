//! The rehearsal of a restore: the database of a region that two processes share is set back to a backup, and the
//! region gets everything back from the other one. Once with the files of its volumes, once with snapshots by
//! `nodetool` in a database that is new. Without a database, which `replication/tests/cql-cluster/check` starts, both
//! end at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tern_client::UserId;

use crate::database::{self, share, store, text};
use crate::scene::{Device, Scene, figure};

/// How the database is copied while it runs, and set back.
enum Backup {
    /// The files of the one node in the region's datacenter.
    Volume,
    /// Of each node in all datacenters, taken and loaded by `nodetool`.
    Snapshots { nodes: usize, keyspaces: Vec<String> },
}

/// A database, by the script that has started it.
struct Database {
    script: String,
    copies: PathBuf,
    backup: Backup,
}

impl Database {
    fn does(&self, arguments: &[&str]) {
        let output = Command::new(&self.script).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    }

    /// `command`, a copy of each node and `keyspaces`, for all nodes at once.
    fn each(&self, command: &str, nodes: usize, keyspaces: &[String]) {
        std::thread::scope(|all| {
            for node in 1..=nodes {
                all.spawn(move || {
                    let (number, copy) = (node.to_string(), self.copies.join(format!("node{node}")));
                    let mut arguments = vec![command, &number, copy.to_str().unwrap()];
                    arguments.extend(keyspaces.iter().map(String::as_str));
                    self.does(&arguments);
                });
            }
        });
    }

    fn copy(&self) {
        match &self.backup {
            Backup::Volume => self.does(&["backup", "1", self.copies.to_str().unwrap()]),
            Backup::Snapshots { nodes, keyspaces } => self.each("snapshot", *nodes, keyspaces),
        }
    }

    /// Loses what there is, and puts the copies in its place.
    fn set_back(&self, scene: &Scene) {
        match &self.backup {
            Backup::Volume => {
                self.does(&["kill", "1"]);
                self.does(&["restore", "1", self.copies.to_str().unwrap()]);
                self.does(&["start", "1"]);
            }
            Backup::Snapshots { nodes, keyspaces } => {
                self.does(&["wipe"]);
                self.does(&["up", &nodes.to_string()]);
                database::init(scene);
                self.each("refresh", *nodes, keyspaces);
                for keyspace in keyspaces {
                    self.does(&["nodetool", "1", "repair", "-full", "--", keyspace]);
                }
            }
        }
    }
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
    rehearse(29_600, settings, |_| Backup::Volume).await;
}

#[tokio::test]
async fn a_shared_region_in_a_new_database_from_snapshots_gets_everything_back_from_the_other_region() {
    let Some(settings) = database::settings("snapshots") else { return };
    rehearse(29_500, settings, |settings| {
        let value = |key: &str| settings.iter().find_map(|setting| setting.strip_prefix(key)).unwrap().to_owned();
        let keyspaces = ["store.keyspace=", "store.timeline_keyspace="].map(value).to_vec();
        Backup::Snapshots { nodes: value("store.nodes=").split(',').count(), keyspaces }
    })
    .await;
}

async fn rehearse(base_port: u16, settings: Vec<String>, backup: impl FnOnce(&[String]) -> Backup) {
    let dir = tempfile::tempdir().unwrap();
    let database = Database {
        script: std::env::var("TERN_CQL_CLUSTER").expect("replication/tests/cql-cluster/check sets it"),
        copies: dir.path().join("backup"),
        backup: backup(&settings),
    };
    let program = PathBuf::from(env!("CARGO_BIN_EXE_tern"));
    let mut scene = Scene::plan(dir.path(), base_port, program, &[("eu", 1)]);
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
    database.copy();
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
    database.set_back(&scene);
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
