//! Operators' orders on a running deployment: regions cut off, nodes drained, both taken back, with people who write to
//! each other all the while.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "processes run in real time, and so do their tests")]

#[path = "support/program.rs"]
mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tern::cluster::{Cluster, Endpoints, Process};
use tern::demo::person::{client_config, tokens};
use tern::fleet::{Fleet, Ready};
use tern_client::{Client, ConnectionState, Draft, Event, Events, UserId};

/// Far above what anything here takes on a busy machine; only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(90);
/// Of a client, while it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A deployment of processes and the people in it.
struct Scene {
    fleet: Fleet,
    processes: BTreeMap<String, Process>,
    ready: BTreeMap<String, Ready>,
    devices: BTreeMap<&'static str, (Client, Events)>,
    said: BTreeMap<(&'static str, &'static str), u32>,
    dir: tempfile::TempDir,
}

impl Scene {
    async fn start(regions: &[&str], edges: usize, base_port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = regions.iter().map(|r| (*r).to_owned()).collect();
        let mut cluster = Cluster::plan(dir.path().join("cluster"), &names, base_port).unwrap();
        cluster.add_edges(regions[0], edges);
        cluster.dispatch = Some("d1".into());
        cluster.find_ports().unwrap();
        let processes: BTreeMap<String, Process> =
            cluster.write().unwrap().into_iter().map(|p| (p.name.clone(), p)).collect();
        let fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &cluster.data).unwrap();
        let (ready, devices, said) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut scene = Self { fleet, processes, ready, devices, said, dir };
        let mut order: Vec<String> = scene.processes.keys().cloned().collect();
        order.sort_by_key(|name| scene.processes[name].arguments[0] != "region");
        for name in order {
            scene.run(&name).await;
        }
        scene
    }

    async fn run(&mut self, name: &str) {
        let ready = self.fleet.start(name, &self.processes[name].arguments.clone()).await.unwrap();
        self.ready.insert(name.to_owned(), ready);
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("cluster")
    }

    /// A command, told by a node's configuration which node to ask.
    fn command(&self, node: &str, arguments: &[&str]) -> Command {
        let mut command = program::tern();
        command.args(["--config", &self.processes[node].arguments[2]]).args(arguments).stdin(Stdio::null());
        command
    }

    fn ask(&self, node: &str, arguments: &[&str]) -> Output {
        tokio::task::block_in_place(|| self.command(node, arguments).output().unwrap())
    }

    /// What a command prints that must succeed.
    fn order(&self, node: &str, arguments: &[&str]) -> String {
        let output = self.ask(node, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn get(&self, node: &str, path: &str) -> (u16, String) {
        get(self.ready[node].admin.unwrap(), path)
    }

    /// What a node's dispatch answers somebody in a country: listed edges, and others with the reason.
    fn dispatch(&self, node: &str, country: &str) -> (Vec<String>, BTreeMap<String, String>) {
        let (status, text) = self.get(node, &format!("/dispatch?from={country}"));
        if status == 503 {
            return (Vec::new(), BTreeMap::new());
        }
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}"));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let listed = answer["edges"].as_array().unwrap().iter().map(|edge| text(&edge["id"])).collect();
        let unlisted = answer["unlisted"].as_array().map_or(&[][..], |all| all);
        (listed, unlisted.iter().map(|edge| (text(&edge["id"]), text(&edge["reason"]))).collect())
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !tokio::task::block_in_place(|| holds(self)) {
            if Instant::now() > end {
                let logs: Vec<String> = self.fleet.names().iter().map(|n| self.fleet.log_tail(n)).collect();
                panic!("not in time: {what}\n{}", logs.join("\n"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn join(&mut self, user: &'static str, near: &str) {
        let endpoints = Endpoints::read(&self.data()).unwrap();
        let id = UserId::new(user).unwrap();
        let config = client_config(&endpoints, &id, Some(near)).unwrap();
        let tokens = tokens(&endpoints, &self.data(), &id).unwrap();
        let client = Client::builder(config).store(self.dir.path().join(user)).token_provider(tokens).build().unwrap();
        let events = client.events();
        self.devices.insert(user, (client, events));
    }

    /// Everybody writes to everybody.
    fn say(&mut self) {
        let users: Vec<&'static str> = self.devices.keys().copied().collect();
        for from in &users {
            for to in users.iter().filter(|to| *to != from) {
                let n = self.said.entry((from, to)).or_default();
                *n += 1;
                let conversation = self.devices[from].0.direct(&UserId::new(to).unwrap()).unwrap();
                conversation.send(Draft::text(format!("{from} {n}"))).unwrap();
            }
        }
    }

    /// What is missing: each message is shown to its reader once, in the order of its sender, and acked.
    fn missing(&self) -> Option<String> {
        for ((from, to), n) in &self.said {
            let id = self.devices[from].0.direct(&UserId::new(to).unwrap()).unwrap().id();
            let all = self.devices[to].0.conversation(id).timeline(usize::MAX >> 1).unwrap().messages;
            let mine = all.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned());
            let mine: Vec<String> = mine.filter(|text| text.starts_with(&format!("{from} "))).collect();
            let expected: Vec<String> = (1..=*n).map(|n| format!("{from} {n}")).collect();
            assert!(
                mine.iter().collect::<BTreeSet<_>>().len() == mine.len() && expected.starts_with(&mine),
                "{to} sees of {from}: {mine:?}"
            );
            if mine != expected || self.devices[from].0.waiting().0 != 0 {
                return Some(format!("{to} sees {} of {n} of {from}", mine.len()));
            }
        }
        None
    }

    /// (edge, region) that each is connected to.
    fn places(&self) -> BTreeMap<&'static str, Option<(String, String)>> {
        let place = |client: &Client| match client.connection() {
            ConnectionState::Live { edge, region, .. } => Some((edge, region)),
            _ => None,
        };
        self.devices.iter().map(|(user, (client, _))| (*user, place(client))).collect()
    }

    fn on(&self, edge: &str) -> Vec<&'static str> {
        self.places().into_iter().filter(|(_, at)| at.as_ref().is_some_and(|at| at.0 == edge)).map(|(u, _)| u).collect()
    }

    fn all_live(&self) -> bool {
        self.places().values().all(Option::is_some)
    }

    /// Forgets what was told of connections until now.
    fn forget_events(&mut self) {
        for (_, events) in self.devices.values_mut() {
            while events.try_next().is_some() {}
        }
    }

    /// Edges that each was connected to, in order; nobody was without a connection in between.
    fn ways(&mut self) -> BTreeMap<&'static str, Vec<String>> {
        let mut ways = BTreeMap::new();
        for (user, (_, events)) in &mut self.devices {
            let mut way: Vec<String> = Vec::new();
            while let Some(event) = events.try_next() {
                let Event::Connection(state) = event else { continue };
                match state {
                    ConnectionState::Live { edge, .. } | ConnectionState::Recovering { edge, .. } => way.push(edge),
                    other => panic!("{user} was without a connection: {other:?} after {way:?}"),
                }
            }
            way.dedup();
            ways.insert(*user, way);
        }
        ways
    }

    async fn end(mut self) {
        for (_, (client, _)) in std::mem::take(&mut self.devices) {
            client.close().await;
        }
        self.fleet.stop(Duration::from_secs(30)).await;
    }
}

fn get(at: SocketAddr, path: &str) -> (u16, String) {
    ask(at, "GET", path)
}

fn ask(at: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn cordoned(scene: &Scene, node: &str, edges: &[&str]) -> bool {
    let (listed, unlisted) = scene.dispatch(node, "DE");
    !listed.is_empty()
        && edges.iter().all(|edge| !listed.contains(&(*edge).to_owned()))
        && edges.iter().all(|edge| unlisted.get(*edge).is_some_and(|why| why == "region_cordoned"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_cut_off_by_one_command_goes_on_replicating_and_comes_back() {
    let mut scene = Scene::start(&["eu", "us"], 1, 30_400).await;
    for (user, near) in [("ada", "eu"), ("ben", "eu"), ("cleo", "us")] {
        scene.join(user, near);
    }
    scene.until("all are connected", Scene::all_live).await;
    scene.say();
    scene.until("the first messages are shown", |s| s.missing().is_none()).await;
    assert!(scene.places()["ada"].as_ref().unwrap().1 == "eu", "{:?}", scene.places());
    scene.forget_events();

    // Given at the region itself; all dispatchers hear of it.
    let said = scene.order("eu-e1", &["region", "cordon", "eu", "--wait"]);
    assert!(said.contains("region eu is cordoned") && said.contains("0 clients left, edges: 2"), "{said}");
    scene.say();
    for node in ["eu-e1", "us-e1", "d1"] {
        scene.until("no dispatch lists it", |s| cordoned(s, node, &["eu-e1", "eu-e2"])).await;
    }
    scene
        .until("all have gone to the other region", |s| {
            s.places().values().all(|at| at.as_ref().is_some_and(|at| at.1 == "us"))
        })
        .await;
    for (user, way) in scene.ways() {
        assert!(way.iter().all(|edge| edge.starts_with("us") || user != "cleo"), "{user}: {way:?}");
    }
    let (status, ready) = scene.get("eu-e1", "/readyz");
    assert!(status == 200 && ready.contains("cordoned"), "the links need it: {status} {ready}");
    scene
        .until("the first region has all, too", |s| {
            let all: Vec<Value> = serde_json::from_str(&s.get("eu-e1", "/orders").1).unwrap();
            all[0]["backlog"] == 0 && all[0]["done"] == true
        })
        .await;
    scene.until("what was said meanwhile is shown", |s| s.missing().is_none()).await;

    // Again is no news, at another node neither.
    for node in ["eu-e1", "us-e1"] {
        let said = scene.order(node, &["region", "cordon", "eu"]);
        assert!(said.contains("is already cordoned"), "{said}");
    }
    // Nobody would be left.
    let refused = scene.ask("us-e1", &["region", "cordon", "us"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(3) && why.contains("no other edge could take the clients"), "{why}");
    let unknown = scene.ask("us-e1", &["region", "cordon", "mars"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("known are eu (1), us (2)"), "{unknown:?}");

    // It survives a crash of the region, and of an edge.
    for name in ["eu-e1", "eu-e2"] {
        assert!(scene.fleet.kill(name).await);
    }
    for name in ["eu-e1", "eu-e2"] {
        scene.run(name).await;
    }
    scene.until("it is cordoned after its crash", |s| cordoned(s, "eu-e1", &["eu-e1", "eu-e2"])).await;
    assert!(scene.get("eu-e2", "/readyz").1.contains("cordoned"));

    // Taken back at another region.
    let said = scene.order("us-e1", &["region", "uncordon", "eu"]);
    assert!(said.contains("region eu is open to clients"), "{said}");
    for node in ["eu-e1", "us-e1", "d1"] {
        scene.until("it is listed again", |s| s.dispatch(node, "DE").0.iter().any(|edge| edge.starts_with("eu"))).await;
    }
    scene.join("dora", "eu");
    scene.until("a client comes to it", |s| s.places()["dora"].as_ref().is_some_and(|at| at.1 == "eu")).await;
    scene.say();
    scene.until("all is shown", |s| s.missing().is_none()).await;

    // The other one dies, is cut off while it is dead, and hears of it when it is back.
    assert!(scene.fleet.kill("us-e1").await);
    let said = scene.order("d1", &["region", "cordon", "2"]);
    assert!(said.contains("region us is cordoned"), "{said}");
    scene.run("us-e1").await;
    for node in ["eu-e1", "us-e1", "d1"] {
        scene.until("no dispatch lists the one that came back", |s| cordoned(s, node, &["us-e1"])).await;
    }
    scene
        .until("all are in the region that is left", |s| {
            s.places().values().all(|at| at.as_ref().is_some_and(|at| at.1 == "eu"))
        })
        .await;
    scene.say();
    scene.until("all that was said is shown", |s| s.missing().is_none()).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_edge_loses_nobody_for_a_moment_and_takes_clients_again() {
    let mut scene = Scene::start(&["eu"], 2, 30_600).await;
    let users = ["ada", "ben", "cleo", "dora", "emil", "fay", "gus", "hal"];
    for user in users {
        scene.join(user, "eu");
    }
    scene.until("all are connected", Scene::all_live).await;
    scene.say();
    scene.until("the first messages are shown", |s| s.missing().is_none()).await;
    let edge = ["eu-e2", "eu-e3"].into_iter().max_by_key(|edge| scene.on(edge).len()).unwrap();
    let there = scene.on(edge);
    assert!(!there.is_empty(), "{:?}", scene.places());

    // Begun slowly, and taken back in the middle: whoever was not told stays.
    let said = scene.order("eu-e1", &["drain", edge, "--pace", "1h", "--no-wait"]);
    assert!(said.contains(&format!("{edge} of region eu is being drained")), "{said}");
    scene.until("it is not ready", |s| s.get(edge, "/readyz").1.contains("drained by an operator")).await;
    scene.until("it is not listed", |s| s.dispatch("d1", "DE").1.get(edge).is_some_and(|why| why == "draining")).await;
    assert!(scene.order("eu-e1", &["drain", edge, "--undo"]).contains("takes clients"));
    scene.until("it is ready again", |s| s.get(edge, "/readyz").0 == 200).await;
    scene.until("it is listed again", |s| s.dispatch("d1", "DE").0.contains(&edge.to_owned())).await;
    assert!(scene.order("eu-e1", &["drain", edge, "--undo"]).contains("already takes clients"));

    // In earnest, under load, from another node of the region.
    scene.forget_events();
    let there = scene.on(edge);
    let mut drain = scene.command("eu-e1", &["--json", "drain", edge, "--pace", "3s"]);
    let mut drain = drain.stdout(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = drain.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "{}", scene.fleet.log_tail(edge));
        scene.say();
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let mut said = String::new();
    drain.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(status.success() && last["done"] == true && last["clients"] == 0, "{said}");
    assert!(scene.all_live() && scene.on(edge).is_empty(), "{:?}", scene.places());
    scene.until("what was said is shown, once each", |s| s.missing().is_none()).await;
    for (user, way) in scene.ways() {
        assert_eq!(
            there.contains(&user),
            way.iter().any(|at| at != edge),
            "{user} went {way:?} from {edge}: {there:?}"
        );
    }

    // It stays drained over a restart, and is stopped in order without anybody noticing.
    assert!(scene.fleet.kill(edge).await);
    scene.run(edge).await;
    scene.until("it is still drained", |s| s.get(edge, "/readyz").1.contains("drained by an operator")).await;
    assert!(scene.order(edge, &["drain", edge, "--undo"]).contains("takes clients"));
    scene.until("it serves again", |s| s.dispatch("d1", "DE").0.contains(&edge.to_owned())).await;
    let unknown = scene.ask("eu-e1", &["drain", "eu-e9"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("known are eu-e1, eu-e2, eu-e3"), "{unknown:?}");
    scene.say();
    scene.until("all is shown", |s| s.missing().is_none()).await;
    scene.end().await;
}

#[test]
fn an_order_that_makes_no_sense_is_refused_before_anything_is_asked() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tern")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (arguments, says) in [
        (&["drain"][..], "required"),
        (&["drain", "x", "--pace", "5"], "expected clients a second"),
        (&["drain", "x", "--undo", "--pace", "5/s"], "cannot be used with"),
        (&["region", "cordon"], "required"),
        (&["region", "--init", "cordon", "eu"], "cannot be used with"),
    ] {
        let (code, error) = run(arguments);
        assert!(code == Some(2) && error.contains(says), "{arguments:?}: {error}");
    }
    let nowhere = tempfile::tempdir().unwrap();
    let data = nowhere.path().to_str().unwrap();
    let (code, error) = run(&["--data", data, "--set", "listen.admin=127.0.0.1:9", "region", "cordon", "eu"]);
    assert!(code == Some(3) && error.contains("--set listen.admin=ADDRESS"), "{error}");
    assert!(Path::new(data).read_dir().unwrap().next().is_none());
}

/// Appends to a node's configuration.
fn configure(scene: &Scene, node: &str, more: &str) {
    let path = &scene.processes[node].arguments[2];
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, format!("{text}\n{more}\n")).unwrap();
}

fn reload(at: SocketAddr) -> (u16, Value) {
    let (status, text) = ask(at, "POST", "/reload");
    (status, serde_json::from_str(&text).unwrap())
}

/// What dispatch says of the first edge that it lists for a user, and of the others.
fn first(scene: &Scene, node: &str, country: &str, user: &str) -> (String, String, BTreeMap<String, String>) {
    let (status, text) = scene.get(node, &format!("/dispatch?from={country}&user={user}"));
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let edge = &answer["edges"][0];
    let unlisted = answer["unlisted"].as_array().map_or(&[][..], |all| all);
    let unlisted = unlisted.iter().map(|edge| (text(&edge["id"]), text(&edge["reason"]))).collect();
    (text(&edge["region"]), text(&edge["explain"]["reason"]), unlisted)
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_read_again_when_they_change_decide_where_clients_go_and_are_explained() {
    let mut scene = Scene::start(&["eu", "us"], 0, 30_800).await;
    let file = scene.dir.path().join("policies.toml");
    let users = scene.dir.path().join("staff.txt");
    let pinned = "regions = { eu = 1, us = 2 }\n[[rule]]\nname = \"staff\"\nusers_file = \"staff.txt\"\npin = [\"us\"]\n\
                  [[rule]]\ncountries = [\"FR\"]\nshares = { us = 100 }\n";
    fs::write(&file, pinned).unwrap();
    fs::write(&users, "ada\n").unwrap();
    for node in ["eu-e1", "us-e1", "d1"] {
        configure(&scene, node, &format!("[dispatch]\npolicies = {file:?}"));
        let (status, report) = reload(scene.ready[node].admin.unwrap());
        assert_eq!(status, 200, "{report}");
    }
    for node in ["eu-e1", "d1"] {
        scene.until("both regions are listed", |s| s.dispatch(node, "DE").0.len() == 2).await;
        let (region, reason, unlisted) = first(&scene, node, "DE", "ada");
        assert_eq!(region, "us");
        assert!(reason.contains("; pinned to us by rule \"staff\" (user)"), "{reason}");
        assert_eq!(unlisted["eu-e1"], "not_pinned");
        let (region, reason, _) = first(&scene, node, "FR", "ben");
        assert!(region == "us" && reason.contains("us has 100 % by rule 2 (country)"), "{region}: {reason}");
        assert_eq!(first(&scene, node, "DE", "ben").0, "eu");
    }
    scene.join("ada", "eu");
    scene.join("ben", "eu");
    scene.until("all are connected", Scene::all_live).await;
    assert_eq!(scene.places()["ada"].as_ref().unwrap().1, "us");
    assert_eq!(scene.places()["ben"].as_ref().unwrap().1, "eu");

    // A list of users that changes is noticed without a word; policies that make no sense are not taken.
    fs::write(&users, "ben\n").unwrap();
    scene.until("the new list is in force", |s| first(s, "d1", "DE", "ben").0 == "us").await;
    assert_eq!(first(&scene, "d1", "DE", "ada").0, "eu");
    fs::write(&file, pinned.replace("us = 100", "us = 90")).unwrap();
    let (status, report) = reload(scene.ready["d1"].admin.unwrap());
    let said = report.to_string();
    assert!(status == 422 && said.contains("its shares add up to 90 %, and must to 100"), "{said}");
    assert_eq!(first(&scene, "d1", "DE", "ben").0, "us", "the old ones stay in force");
    fs::write(&file, pinned).unwrap();

    // All that he is pinned to is dead.
    assert!(scene.fleet.kill("us-e1").await);
    scene.until("he is listed the other region", |s| first(s, "d1", "DE", "ben").0 == "eu").await;
    let (_, reason, _) = first(&scene, "d1", "DE", "ben");
    assert!(reason.contains("pinned to us") && reason.contains("no edge can be listed"), "{reason}");

    // At a start they are fatal.
    fs::write(&file, "weights = { mars = 1.0 }\n").unwrap();
    let refused = scene.ask("us-e1", &["region"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && why.contains("there is no region \"mars\""), "{why}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_what_nodes_say_and_those_that_do_not_answer() {
    let mut scene = Scene::start(&["eu", "us"], 1, 31_000).await;
    for (user, near) in [("ada", "eu"), ("ben", "us"), ("cleo", "eu")] {
        scene.join(user, near);
    }
    scene.until("all are connected", Scene::all_live).await;
    let mut top = scene.command("eu-e1", &["--json", "top", "--once"]).stdout(Stdio::piped()).spawn().unwrap();
    while top.try_wait().unwrap().is_none() {
        scene.say();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut said = String::new();
    top.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let view: Value = serde_json::from_str(&said).unwrap();
    let nodes = view["nodes"].as_array().unwrap();
    let names: Vec<&str> = nodes.iter().map(|n| n["node"].as_str().unwrap()).collect();
    assert!(["eu-e1", "eu-e2", "us-e1"].iter().all(|name| names.contains(name)), "{said}");
    assert!(nodes.iter().all(|n| n["answers"] == true && n["state"] == "ready"), "{said}");
    let clients: u64 = view["regions"].as_array().unwrap().iter().map(|r| r["clients"].as_u64().unwrap()).sum();
    assert_eq!(clients, 3, "{said}");
    let rate: f64 = view["regions"].as_array().unwrap().iter().filter_map(|r| r["messages_per_second"].as_f64()).sum();
    assert!(rate > 1.0, "{said}");
    let links = view["links"].as_array().unwrap();
    assert!(links.len() == 2 && links.iter().all(|l| l["connected"] == true), "{said}");
    scene.until("what was said is shown", |s| s.missing().is_none()).await;

    // One edge dies, one region is cut off and dies: entries wait for it, and it is shown as what it is.
    assert!(scene.fleet.kill("us-e1").await);
    let before = scene.order("eu-e1", &["region", "cordon", "us"]);
    assert!(before.contains("is cordoned"), "{before}");
    assert!(scene.fleet.kill("eu-e2").await);
    scene
        .until("all are in the region that is left", |s| {
            s.places().values().all(|at| at.as_ref().is_some_and(|at| at.0 == "eu-e1"))
        })
        .await;
    scene.say();
    scene.until("what was said is shown", |s| s.missing().is_none()).await;
    let mut view = Value::Null;
    scene
        .until("entries wait for the dead region", |s| {
            view = serde_json::from_str(&s.order("eu-e1", &["--json", "top", "--once"])).unwrap();
            let link = &view["links"][0];
            link["connected"] == false && link["unacked"].as_u64().unwrap() > 0
        })
        .await;
    let node = |name: &str| view["nodes"].as_array().unwrap().iter().find(|n| n["node"] == name).cloned();
    assert!(node("eu-e2").is_none_or(|n| n["answers"] == false), "{view}");
    assert!(node("us-e1").is_none_or(|n| n["answers"] == false), "{view}");
    assert_eq!(view["regions"][1]["cordoned"], true);
    let text = scene.order("eu-e1", &["top", "--once"]);
    assert!(text.contains("eu -> us  DOWN") && text.contains("region us"), "{text}");
    scene.order("eu-e1", &["region", "uncordon", "us"]);
    scene.run("us-e1").await;
    scene
        .until("nothing waits any more", |s| {
            let view: Value = serde_json::from_str(&s.order("eu-e1", &["--json", "top", "--once"])).unwrap();
            view["links"].as_array().unwrap().iter().all(|l| l["connected"] == true && l["unacked"] == 0)
        })
        .await;
    let nobody = scene.ask("eu-e2", &["top", "--once"]);
    let why = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(nobody.status.code() == Some(3) && why.contains("does not answer"), "{why}");
    scene.end().await;
}

/// Writes a region's `peers` anew, of those in its plan.
fn list_peers(scene: &Scene, node: &str, planned: &str, names: &[&str]) {
    let path = &scene.processes[node].arguments[2];
    let text = fs::read_to_string(path).unwrap();
    let wanted: Vec<&str> =
        planned.split(", ").filter(|peer| names.iter().any(|name| peer.contains(&format!(":{name}@")))).collect();
    let lines = text.lines().map(|line| match line.starts_with("peers = ") {
        true => format!("peers = [{}]", wanted.join(", ")),
        false => line.to_owned(),
    });
    fs::write(path, lines.collect::<Vec<_>>().join("\n") + "\n").unwrap();
}

fn planned_peers(scene: &Scene, node: &str) -> String {
    let text = fs::read_to_string(&scene.processes[node].arguments[2]).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("peers = [")).unwrap();
    line.trim_end_matches(']').to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_joins_a_running_deployment_and_leaves_it_and_nobody_is_restarted() {
    let mut scene = Scene::start(&["eu", "us", "ap"], 0, 31_200).await;
    // As if the third had never been: it is stopped, its store is gone, and the others know of no such region.
    let planned: BTreeMap<&str, String> =
        ["eu-e1", "us-e1", "ap-e1"].map(|node| (node, planned_peers(&scene, node))).into();
    for node in ["eu-e1", "us-e1"] {
        assert!(scene.fleet.kill(node).await);
        list_peers(&scene, node, &planned[node], &["eu", "us"]);
    }
    assert!(scene.fleet.kill("ap-e1").await);
    for node in ["eu-e1", "us-e1", "ap-e1"] {
        fs::remove_dir_all(scene.data().join(node).join("store")).unwrap();
    }
    for node in ["eu-e1", "us-e1"] {
        scene.run(node).await;
    }
    for (user, near) in [("ada", "eu"), ("ben", "us")] {
        scene.join(user, near);
    }
    scene.until("all are connected", Scene::all_live).await;
    for _ in 0..5 {
        scene.say();
    }
    scene.until("the first messages are shown", |s| s.missing().is_none()).await;
    let pids: Vec<_> = ["eu-e1", "us-e1"].map(|node| scene.fleet.pid(node)).into();

    // Nothing is done before the operator has written it down.
    let early = scene.ask("eu-e1", &["region", "add", "ap"]);
    let why = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(early.status.code() == Some(2) && why.contains("peers does not list ap"), "{why}");
    list_peers(&scene, "eu-e1", &planned["eu-e1"], &["us", "ap"]);
    let early = scene.ask("eu-e1", &["region", "add", "ap", "--wait", "1s"]);
    let why = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(early.status.code() == Some(3) && why.contains("no core node of ap answers"), "{why}");

    // Taken up again: the region starts, the other one is told, messages go on.
    scene.run("ap-e1").await;
    list_peers(&scene, "us-e1", &planned["us-e1"], &["eu", "ap"]);
    assert_eq!(reload(scene.ready["us-e1"].admin.unwrap()).0, 200);
    let mut add = scene.command("eu-e1", &["region", "add", "ap"]).stdout(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = add.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "{}", scene.fleet.log_tail("ap-e1"));
        scene.say();
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let mut said = String::new();
    add.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(status.success() && said.contains("region ap takes clients"), "{said}");
    assert_eq!(pids, ["eu-e1", "us-e1"].map(|node| scene.fleet.pid(node)), "nobody was restarted");
    let said = scene.order("eu-e1", &["region", "add", "ap"]);
    assert!(said.contains("linked to 2 others, and it takes clients"), "{said}");
    scene.until("what was said is shown", |s| s.missing().is_none()).await;

    // The new region serves alone what was written before it was there.
    scene.until("it is listed", |s| s.dispatch("eu-e1", "SG").0.first().is_some_and(|edge| edge == "ap-e1")).await;
    for node in ["eu-e1", "us-e1"] {
        assert!(scene.fleet.kill(node).await);
    }
    scene.until("its people are there", |s| s.on("ap-e1").len() == 2).await;
    scene.say();
    scene.until("what they say is shown", |s| s.missing().is_none()).await;
    for node in ["eu-e1", "us-e1"] {
        scene.run(node).await;
    }

    // And goes again: its clients move, its last messages are held elsewhere, and the others forget it.
    let mut remove = scene.command("eu-e1", &["region", "remove", "ap"]).stdout(Stdio::piped()).spawn().unwrap();
    scene.until("its people have left", |s| s.all_live() && s.on("ap-e1").is_empty()).await;
    for node in ["eu-e1", "us-e1"] {
        list_peers(&scene, node, &planned[node], &["eu", "us"]);
    }
    assert_eq!(reload(scene.ready["us-e1"].admin.unwrap()).0, 200);
    let end = Instant::now() + DEADLINE;
    while remove.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "{}", scene.fleet.log_tail("eu-e1"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut said = String::new();
    remove.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("all that it holds is held elsewhere") && said.contains("stop its nodes"), "{said}");
    assert!(scene.fleet.kill("ap-e1").await);
    scene.say();
    scene.until("all that was ever said is shown", |s| s.missing().is_none()).await;
    scene.end().await;
}
