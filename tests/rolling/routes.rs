//! A region that three core nodes share on a real database, with edges in processes of their own and its routes in Redis.
//! Under people who chat, Redis is emptied and killed, a core node is killed meanwhile, and then each core node is started
//! again in order. Without a database and Redis, which `replication/tests/cql-cluster/check` starts, it ends at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tern::cluster::Process;
use tern::pki::Pki;

use crate::database::{self, share, tern, text};
use crate::scene::{DEADLINE, Device, Scene, figure};

const CORES: [&str; 3] = ["eu-e1", "eu-e2", "eu-e3"];
const EDGES: [&str; 2] = ["eu-e4", "eu-e5"];
const USERS: [&str; 8] = ["ada", "ben", "cleo", "dora", "emil", "fay", "hal", "ida"];
/// So often a node is started, at most.
const STARTS: usize = 4;
/// A node says so when it gains slots.
const GAINED: &str = "shares of this region are this node's now";

/// Runs a command of `replication/redis/servers`.
fn redis(arguments: &[&str]) {
    let script = std::env::var("TERN_REDIS_SERVERS").expect("replication/tests/cql-cluster/check sets it");
    let done = Command::new(script).args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
}

/// A further edge like `eu-e4`: a plan has no ports for so many.
fn add_edge(scene: &mut Scene, name: &str) {
    let like = scene.arguments("eu-e4").to_vec();
    Pki::open(&scene.data).unwrap().leaf(name, "eu", &[]).unwrap();
    let path = scene.data.join(name).join("tern.toml");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, std::fs::read_to_string(&like[2]).unwrap().replace("eu-e4", name)).unwrap();
    let mut arguments = vec!["edge".to_owned(), "--config".to_owned(), path.display().to_string()];
    for setting in ["listen.client=0", "listen.admin=127.0.0.1:0", "listen.gossip=127.0.0.1:0"] {
        arguments.extend(["--set".to_owned(), setting.to_owned()]);
    }
    scene.processes.push(Process { name: name.to_owned(), region: "eu", arguments });
}

/// The region's processes, and where they answer operators.
struct Region {
    cores: Vec<SocketAddr>,
    edges: Vec<SocketAddr>,
}

impl Region {
    async fn start(scene: &mut Scene) -> Self {
        let us = scene.arguments("us-e1").to_vec();
        scene.fleet.start("us-e1", &us).await.unwrap();
        let (mut cores, mut edges) = (Vec::new(), Vec::new());
        for name in CORES {
            cores.push(admin(scene, name).await);
        }
        let have = |scene: &Scene| CORES.iter().all(|name| scene.log(name).contains(GAINED));
        scene.until("all core nodes have a part", || have(scene)).await;
        for name in EDGES {
            edges.push(admin(scene, name).await);
        }
        Self { cores, edges }
    }

    fn said(&self, core: usize, arguments: &[&str]) -> Option<Value> {
        let at = format!("listen.admin={}", self.cores[core]);
        let output = tern(&[&["routes", "--json", "--set", &at][..], arguments].concat());
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn problem(&self, core: usize) -> Option<String> {
        self.said(core, &[])?["problem"].as_str().map(str::to_owned)
    }

    /// What is missing or wrong: every core node has written what it knows, everybody who is in this region is there
    /// once, where he is, and nobody else counts. (On a busy machine a client may have found the other region to be
    /// better.)
    fn wrong(&self, scene: &Scene) -> Option<String> {
        for (core, name) in CORES.iter().enumerate() {
            match self.said(core, &[]) {
                Some(table) if table["complete"] == true => {}
                table => return Some(format!("{name}: {table:?}")),
            }
        }
        let here = |user: &&str| scene.devices[*user].edge().starts_with("eu-");
        let expected = USERS.iter().filter(|user| here(user)).count();
        let counted = self.said(0, &["--count"]);
        if counted.as_ref().is_none_or(|said| said["routes"] != expected) {
            return Some(format!("{expected} are here: {counted:?}"));
        }
        for user in USERS {
            let devices = self.said(1, &[user]);
            let all = devices.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let live: Vec<&str> = all.iter().filter(|d| d["live"] == true).filter_map(|d| d["edge"].as_str()).collect();
            let edge = scene.devices[user].edge();
            if live != if here(&user) { vec![edge.as_str()] } else { Vec::new() } {
                return Some(format!("{user} is at {edge}: {devices:?}"));
            }
        }
        None
    }

    async fn until_routes(&self, scene: &mut Scene, what: &str) {
        scene.say_for(Duration::from_secs(1)).await;
        scene.settle(&format!("what was said is shown: {what}")).await;
        let end = Instant::now() + DEADLINE;
        while let Some(wrong) = self.wrong(scene) {
            assert!(Instant::now() < end, "{what}: {wrong}\n{}", scene.log(CORES[0]));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Connections that the edges have closed.
    fn closed(&self) -> f64 {
        self.edges.iter().map(|admin| figure(*admin, "tern_edge_closed_connections_total")).sum()
    }
}

/// Starts a node as systemd does with tern's units: again where its start fails, as it does where a busy machine's database
/// does not answer for a second.
async fn admin(scene: &mut Scene, name: &str) -> SocketAddr {
    let arguments = scene.arguments(name).to_vec();
    for _ in 0..STARTS {
        match scene.fleet.start(name, &arguments).await {
            Ok(ready) => return ready.admin.unwrap(),
            Err(error) => eprintln!("{error}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{name} does not start");
}

fn gained(scene: &Scene, name: &str) -> usize {
    scene.log(name).matches(GAINED).count()
}

/// Starts a core node again while everybody goes on, and waits until it has a part.
async fn start_again(scene: &mut Scene, region: &mut Region, core: usize) {
    let before = gained(scene, CORES[core]);
    region.cores[core] = admin(scene, CORES[core]).await;
    scene.say_for(Duration::from_secs(1)).await;
    scene.until(&format!("{} has a part again", CORES[core]), || gained(scene, CORES[core]) > before).await;
}

// Commands are run on this thread, and clients must not wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn core_nodes_of_a_shared_region_are_killed_and_started_again_and_messages_connections_and_routes_in_redis_stay()
{
    let Some(mut settings) = database::settings("routes") else { return };
    let Ok(servers) = std::env::var("TERN_REDIS_NODES") else {
        eprintln!("skipped: no Redis; replication/tests/cql-cluster/check starts it");
        return;
    };
    settings.extend(["routes.kind=redis".to_owned(), format!("routes.nodes={servers}")]);
    settings.push(format!("routes.prefix=tern:routes:{}", std::process::id()));
    // Their own edges, which end with them, are full with one client, so that all go to the others.
    settings.push("edge.capacity=1".to_owned());
    let dir = tempfile::tempdir().unwrap();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_tern"));
    let mut scene = Scene::plan(dir.path(), 30_200, program, &[("eu", 3)]);
    share(&mut scene, &CORES, &settings);
    add_edge(&mut scene, "eu-e5");
    database::init(&scene);
    let mut region = Region::start(&mut scene).await;
    for user in USERS {
        scene.join(user, "eu");
    }
    scene.join("gus", "us");
    region.until_routes(&mut scene, "at first").await;
    redis(&["cli", "1", "FLUSHALL"]);
    region.until_routes(&mut scene, "after it was emptied").await;

    // Redis dies, and a core node with it, which is back first.
    redis(&["kill", "1"]);
    scene.say_for(Duration::from_secs(1)).await;
    scene.until("it is said", || region.problem(0).is_some()).await;
    assert!(scene.fleet.kill(CORES[1]).await);
    scene.say_for(Duration::from_secs(4)).await;
    scene.settle("what was said without Redis and around the death of a core node is shown").await;
    start_again(&mut scene, &mut region, 1).await;
    redis(&["start", "1"]);
    region.until_routes(&mut scene, "after its death and that of a core node").await;

    // From here on nobody's connection ends that is at an edge of its own process. Where the machine is busy a client may
    // have found the one place of a core node.
    let at_edges = |scene: &Scene| -> Vec<&'static str> {
        let is_there = |user: &&str| EDGES.contains(&scene.devices[*user].edge().as_str());
        USERS.into_iter().filter(is_there).collect()
    };
    let stay = at_edges(&scene);
    assert!(stay.len() >= USERS.len() / 2, "{stay:?}");
    for device in scene.devices.values() {
        // In the foreground a client asks another edge where its own is silent for a sixth of a second, as all are on a
        // machine that is busy with a start.
        device.client.set_foreground(false).unwrap();
        device.link.lock().unwrap().lost.clear();
    }
    let before = region.closed();
    for (core, name) in CORES.into_iter().enumerate() {
        scene.stop(name).await;
        start_again(&mut scene, &mut region, core).await;
        region.until_routes(&mut scene, &format!("after {name} was started again")).await;
        scene.all_run();
    }
    for user in stay {
        let lost = &scene.devices[user].link.lock().unwrap().lost;
        assert!(lost.is_empty(), "{user}: {lost:?}\n{}", scene.log(EDGES[0]));
    }
    assert!((region.closed() - before).abs() < 0.5, "edges have closed connections");
    scene.until("all are live", || scene.devices.values().all(Device::is_live)).await;
    scene.fleet.stop(Duration::from_secs(30)).await;
}
