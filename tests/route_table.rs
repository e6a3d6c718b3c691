//! A region that keeps its routes in Redis: clients at two edges, a server that is emptied, killed, started anew. Without
//! a server, which `replication/redis/check` starts, the tests end at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "processes run in real time, and so do their tests")]

#[path = "support/program.rs"]
mod program;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tern::cluster::{Cluster, Endpoints, Process};
use tern::demo::person::{client_config, tokens};
use tern::fleet::Fleet;
use tern_client::{Client, ConnectionState, ConvId, Draft, UserId};

/// Far above what anything here takes on a busy machine; only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a command of `replication/redis/servers`.
fn servers(arguments: &[&str]) {
    let script = std::env::var("TERN_REDIS_SERVERS").unwrap();
    let done = Command::new(script).args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
}

fn tern(arguments: &[&str]) -> Output {
    program::tern().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn device(data: &Path, name: &str) -> Client {
    let endpoints = Endpoints::read(data).unwrap();
    let user = UserId::new(name).unwrap();
    let mut config = client_config(&endpoints, &user, None).unwrap();
    config.device = format!("{name}-phone");
    let tokens = tokens(&endpoints, data, &user).unwrap();
    Client::builder(config).store(data.join(format!("{name}-phone"))).token_provider(tokens).build().unwrap()
}

fn texts(client: &Client, id: ConvId) -> Vec<String> {
    let all = client.conversation(id).timeline(usize::MAX >> 1).unwrap().messages;
    all.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect()
}

/// A region, an edge beside its own, and clients.
struct Scene {
    fleet: Fleet,
    processes: Vec<Process>,
    settings: Vec<String>,
    admin: SocketAddr,
    clients: Vec<Client>,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + DEADLINE;
        while !done() {
            if Instant::now() > end {
                let logs: Vec<String> = self.fleet.names().iter().map(|name| self.fleet.log_tail(name)).collect();
                panic!("not in time: {what}\n{}", logs.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn routes(&self, arguments: &[&str]) -> Output {
        let admin = format!("listen.admin={}", self.admin);
        tern(&[&["routes", "--json", "--set", &admin][..], arguments].concat())
    }

    /// What `tern routes` says, if it can.
    fn said(&self, arguments: &[&str]) -> Option<Value> {
        let output = self.routes(arguments);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    async fn has_routes(&self, what: &str, count: u64) {
        let is_so = || {
            let counted = self.said(&["--count"]).is_some_and(|said| said["routes"] == count && said["users"] == count);
            counted && self.said(&[]).is_some_and(|table| table["complete"] == true)
        };
        self.until(what, is_so).await;
    }

    /// Sends a message from the first to the second client, until it is shown there.
    async fn message(&self, id: ConvId, words: &str) {
        self.clients[0].conversation(id).send(Draft::text(words)).unwrap();
        let shown = || texts(&self.clients[1], id).last().is_some_and(|last| last == words);
        self.until(&format!("{words:?} is shown"), || shown() && self.clients[0].waiting().0 == 0).await;
    }

    /// At which edges the clients are, as they know it.
    fn edges(&self) -> Vec<String> {
        let edge = |client: &Client| match client.connection() {
            ConnectionState::Live { edge, .. } => Some(edge),
            _ => None,
        };
        self.clients.iter().filter_map(edge).collect()
    }
}

const NAMES: [&str; 8] = ["alice", "bob", "carol", "dan", "eve", "frank", "grace", "heidi"];

#[tokio::test]
async fn a_region_s_routes_are_in_redis_and_come_back_when_it_is_emptied_or_killed_while_messages_flow() {
    let Some(nodes) = std::env::var("TERN_REDIS_NODES").ok() else {
        eprintln!("skipped: no servers; replication/redis/check starts some");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::plan(dir.path().join("cluster"), &["eu".to_owned()], 28_900).unwrap();
    cluster.add_edges("eu", 1);
    cluster.find_ports().unwrap();
    let processes = cluster.write().unwrap();
    let fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &cluster.data).unwrap();
    let prefix = format!("tern:routes:{}", std::process::id());
    let mut settings =
        vec!["routes.kind=redis".to_owned(), format!("routes.nodes={nodes}"), format!("routes.prefix={prefix}")];
    if let Ok(tls) = std::env::var("TERN_REDIS_TLS") {
        settings.push(format!("routes.tls.ca={tls}/ca.pem"));
    }
    let settings: Vec<String> = settings.into_iter().flat_map(|set| ["--set".to_owned(), set]).collect();
    let unknown = "127.0.0.1:1".parse().unwrap();
    let mut scene = Scene { fleet, processes, settings, admin: unknown, clients: Vec::new(), _dir: dir };
    let region = scene.processes[0].clone();
    let with = [&region.arguments[..], &scene.settings].concat();

    // A server that may forget of its own accord is refused, with what to change.
    servers(&["cli", "1", "CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let refused = scene.fleet.start(&region.name, &with).await.unwrap_err().to_string();
    assert!(refused.contains("maxmemory-policy noeviction"), "{refused}");
    servers(&["cli", "1", "CONFIG", "SET", "maxmemory-policy", "noeviction"]);

    scene.admin = scene.fleet.start(&region.name, &with).await.unwrap().admin.unwrap();
    let edge = scene.processes[1].clone();
    scene.fleet.start(&edge.name, &edge.arguments).await.unwrap();
    scene.has_routes("an empty table", 0).await;
    scene.clients = NAMES.iter().map(|name| device(&cluster.data, name)).collect();
    scene.until("all are connected", || scene.edges().len() == NAMES.len()).await;
    scene.has_routes("all are in the table", 8).await;
    let alice = scene.said(&["alice"]).unwrap();
    assert_eq!(alice[0]["node"], region.name, "{alice}");
    assert_eq!((&alice[0]["live"], &alice[0]["edge"]), (&Value::Bool(true), &Value::from(scene.edges()[0].clone())));
    assert_eq!(scene.said(&["nobody"]).unwrap(), Value::Array(Vec::new()));
    let id = scene.clients[0].direct(&UserId::new("bob").unwrap()).unwrap().id();
    scene.message(id, "before").await;

    // Emptied.
    servers(&["cli", "1", "FLUSHALL"]);
    scene.message(id, "while it is empty").await;
    scene.has_routes("all are in the emptied table", 8).await;

    // Killed: it is said, messages flow, the region is ready, and what changes is known afterwards.
    servers(&["kill", "1"]);
    let problem = |scene: &Scene| scene.said(&[]).and_then(|table| table["problem"].as_str().map(str::to_owned));
    scene.until("it is said", || problem(&scene).is_some()).await;
    scene.message(id, "while it is dead").await;
    let heidi = scene.clients.pop().unwrap();
    heidi.close().await;
    scene.message(id, "and after somebody has gone").await;
    let lost = scene.routes(&["alice"]);
    assert!(!lost.status.success() && text(&lost.stderr).contains("does not answer"), "{}", text(&lost.stderr));
    servers(&["start", "1"]);
    scene.has_routes("all but one are in the new table", 7).await;
    assert_eq!(problem(&scene), None);

    // An edge dies: its clients are elsewhere, and so are their routes.
    assert!(scene.fleet.kill(&edge.name).await);
    scene.until("all are at the other edge", || scene.edges() == vec![region.name.clone(); 7]).await;
    scene.has_routes("all are in the table, where they are now", 7).await;
    let bob = scene.said(&["bob"]).unwrap();
    assert_eq!(bob[0]["edge"], region.name, "{bob}");

    // Without its server a region starts as well, and writes the table later.
    scene.fleet.stop(Duration::from_secs(20)).await;
    servers(&["kill", "1"]);
    scene.admin = scene.fleet.start(&region.name, &with).await.unwrap().admin.unwrap();
    scene.message(id, "after a start without it").await;
    servers(&["start", "1"]);
    scene.has_routes("all are in the table again", 7).await;
    for client in scene.clients.drain(..) {
        client.close().await;
    }
    scene.has_routes("nobody is there", 0).await;
    scene.fleet.stop(Duration::from_secs(20)).await;
}

#[tokio::test]
async fn without_a_table_the_region_answers_by_what_it_knows() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::plan(dir.path().join("cluster"), &["eu".to_owned()], 28_950).unwrap();
    cluster.find_ports().unwrap();
    let processes = cluster.write().unwrap();
    let fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &cluster.data).unwrap();
    let unknown = "127.0.0.1:1".parse().unwrap();
    let mut scene = Scene { fleet, processes, settings: Vec::new(), admin: unknown, clients: Vec::new(), _dir: dir };
    let region = scene.processes[0].clone();
    scene.admin = scene.fleet.start(&region.name, &region.arguments).await.unwrap().admin.unwrap();
    scene.clients.push(device(&cluster.data, "alice"));
    scene.until("alice is there", || scene.said(&["alice"]).is_some_and(|said| said[0]["live"] == true)).await;
    let alice = scene.said(&["alice"]).unwrap();
    assert_eq!((&alice[0]["edge"], &alice[0]["node"]), (&Value::from("eu-e1"), &Value::from("eu-e1")), "{alice}");
    assert_eq!(scene.said(&[]).unwrap()["kind"], "memory");
    assert!(text(&scene.routes(&["--count"]).stderr).contains("routes.kind"));
    scene.clients.remove(0).close().await;
    scene.until("alice has gone", || scene.said(&["alice"]).is_some_and(|said| said == Value::Array(Vec::new()))).await;
    scene.fleet.stop(Duration::from_secs(20)).await;
}
