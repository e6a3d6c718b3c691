//! Roles as processes: what they refuse, what operators see, that they end, and that people can talk.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// Processes run in real time, and so do their tests.
#![allow(clippy::disallowed_methods)]

#[path = "support/program.rs"]
mod program;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tern::cluster::Cluster;

/// Far above what anything here takes on a busy machine; only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(60);

fn command(arguments: &[&str]) -> Command {
    let mut command = program::tern();
    command.args(arguments);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn get(at: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A `tern dev` with what it said about its nodes.
struct Dev {
    child: Child,
    output: BufReader<ChildStdout>,
    nodes: Vec<Value>,
}

impl Dev {
    fn start(data: &Path, regions: &str, base_port: u16, more: &[&str]) -> Self {
        let port = base_port.to_string();
        let data = data.to_str().unwrap();
        let mut arguments = vec!["dev", "--json", "--regions", regions, "--base-port", &port, "--data", data];
        arguments.extend(more);
        let mut child = command(&arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut dev = Self { child, output, nodes: Vec::new() };
        loop {
            let mut line = String::new();
            assert!(dev.output.read_line(&mut line).unwrap() > 0, "dev ended: {:?}", dev.child.wait());
            let said: Value = serde_json::from_str(&line).unwrap();
            if said["up"] == true {
                return dev;
            }
            dev.nodes.push(said["node"].clone());
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap(), signal).unwrap();
    }

    fn addresses(&self, what: &str) -> Vec<SocketAddr> {
        self.nodes.iter().filter_map(|node| node[what].as_str()?.parse().ok()).collect()
    }

    fn wait_until_ports_are_free(&self) {
        for at in self.addresses("client").into_iter().chain(self.addresses("admin")) {
            wait_until(&format!("{at} is free"), || TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok());
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// A base port whose block no other process has, from a range of its own per test.
fn free_ports(from: u16, regions: &[&str]) -> u16 {
    let names: Vec<String> = regions.iter().map(|r| (*r).to_owned()).collect();
    let mut cluster = Cluster::plan("unused".into(), &names, from).unwrap();
    cluster.add_edges(regions[0], 3);
    cluster.find_ports().unwrap();
    cluster.base_port
}

#[test]
fn a_node_is_ready_shows_its_metrics_and_leaves_no_process_when_its_parent_is_killed() {
    let data = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(data.path(), "eu,us", free_ports(20_000, &["eu", "us"]), &["--edges", "1"]);
    assert_eq!(dev.nodes.len(), 3);
    for (node, admin) in dev.nodes.iter().zip(dev.addresses("admin")) {
        wait_until("ready", || get(admin, "/readyz").0 == 200);
        assert_eq!(get(admin, "/livez").0, 200);
        let (status, metrics) = get(admin, "/metrics");
        assert_eq!(status, 200);
        check_metrics(&metrics, node["ready"].as_str().unwrap());
    }
    dev.signal(Signal::KILL);
    dev.child.wait().unwrap();
    dev.wait_until_ports_are_free();
}

/// Names, units and labels, as the naming rules of Prometheus have them.
fn check_metrics(text: &str, node: &str) {
    let ends = ["_seconds", "_milliseconds", "_bytes", "_ratio", "_info", "_permille", "_count", "s"];
    let mut families = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            families += 1;
            assert!(name.starts_with("tern_"), "{node}: {name}");
            let named = kind == "counter" || ends.iter().any(|end| name.ends_with(end));
            assert!(named, "{node}: the {kind} {name} ends with no unit and no plural");
        }
        for label in ["user=", "conversation=", "install="] {
            assert!(line.starts_with('#') || !line.contains(label), "{node}: {line}");
        }
    }
    assert!(families >= 5, "{node} shows {families} metrics only:\n{text}");
    assert!(text.contains("tern_edge_"), "{node}");
}

#[test]
fn a_deployment_that_is_asked_to_stop_leaves_clean_stores_and_starts_again() {
    let data = tempfile::tempdir().unwrap();
    let base = free_ports(21_000, &["eu", "us"]);
    for round in 0..2 {
        let mut dev = Dev::start(data.path(), "eu,us", base, &[]);
        dev.signal(Signal::TERM);
        let status = dev.child.wait().unwrap();
        let mut rest = String::new();
        dev.output.read_to_string(&mut rest).unwrap();
        assert!(status.success(), "round {round}: {status} {rest}");
        dev.wait_until_ports_are_free();
        let log = std::fs::read_to_string(data.path().join("logs/eu-e1.log")).unwrap();
        assert_eq!(log.matches("stopped").count(), round + 1, "{log}");
        assert!(!log.contains("unclean=true"), "{log}");
        for node in ["eu-e1", "us-e1"] {
            let checked = command(&["store", "check", "--data"]).arg(data.path().join(node)).output().unwrap();
            let found = String::from_utf8_lossy(&checked.stdout);
            assert!(checked.status.success(), "round {round}: a sound store is called damaged: {found}");
        }
    }
}

#[test]
fn what_keeps_a_region_from_starting_is_said_with_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let base = free_ports(22_000, &["eu"]);
    let mut cluster = Cluster::plan(data.path().to_owned(), &["eu".to_owned()], base).unwrap();
    cluster.add_edges("eu", 1);
    let processes = cluster.write().unwrap();
    let config = &processes[0].arguments[2];
    let try_start = |more: &[&str]| {
        let mut arguments = vec!["region", "--config", config];
        arguments.extend(more);
        command(&arguments).stdin(Stdio::null()).output().unwrap()
    };

    let empty = try_start(&[]);
    assert_eq!(empty.status.code(), Some(3));
    assert!(stderr(&empty).contains("--init"), "{}", stderr(&empty));

    let unset = command(&["region", "--data", data.path().to_str().unwrap()]).output().unwrap();
    assert_eq!(unset.status.code(), Some(2));
    assert!(stderr(&unset).contains("TERN_REGION_NAME"), "{}", stderr(&unset));

    let lost = try_start(&["--init", "--set", "tls.node_cert=/nonexistent.pem"]);
    assert_eq!(lost.status.code(), Some(3));
    assert!(stderr(&lost).contains("tls.node_cert"), "{}", stderr(&lost));

    let keyless = try_start(&["--init", "--set", "gossip.key_file=/nonexistent.key"]);
    assert_eq!(keyless.status.code(), Some(3));
    assert!(stderr(&keyless).contains("gossip key /nonexistent.key"), "{}", stderr(&keyless));
    let elsewhere = try_start(&["--init", "--set", "gossip.seeds=2@127.0.0.1:7423"]);
    assert_eq!(elsewhere.status.code(), Some(2));
    assert!(stderr(&elsewhere).contains("the gossip of its own region, 1"), "{}", stderr(&elsewhere));
    assert!(
        !data.path().join("eu-e1/store").exists(),
        "a start that fails for its configuration leaves the store alone"
    );

    let geoip = data.path().join("broken.mmdb");
    std::fs::write(&geoip, "no database").unwrap();
    let broken = try_start(&["--init", "--geoip", geoip.to_str().unwrap()]);
    assert_eq!(broken.status.code(), Some(3));
    assert!(stderr(&broken).contains("broken.mmdb"), "{}", stderr(&broken));

    let taken = UdpSocket::bind(("127.0.0.1", base + 10)).unwrap();
    let in_use = try_start(&["--init"]);
    assert_eq!(in_use.status.code(), Some(3));
    assert!(stderr(&in_use).contains(&taken.local_addr().unwrap().to_string()), "{}", stderr(&in_use));
    drop(taken);

    // An edge without its core, and a second region on the same store.
    let coreless = command(&["edge", "--config", config, "--set", "core="]).output().unwrap();
    assert_eq!(coreless.status.code(), Some(2));
    assert!(stderr(&coreless).contains("core is empty"), "{}", stderr(&coreless));
    let dev = Dev::start(data.path(), "eu", base, &[]);
    let again = try_start(&["--init"]);
    assert_eq!(again.status.code(), Some(3));
    assert!(stderr(&again).contains("in use"), "{}", stderr(&again));
    drop(dev);
}

/// A role that was started by hand; it ends with this value.
struct Role {
    child: Child,
    ready: Value,
}

impl Role {
    fn start(arguments: &[&str]) -> Self {
        let mut all = arguments.to_vec();
        all.extend(["--json", "--stop-with-stdin"]);
        let mut child = command(&all).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line);
        let mut role = Self { child, ready: Value::Null };
        role.ready = ready.unwrap_or_else(|_| panic!("ended: {:?}", role.child.wait()));
        role
    }

    fn address(&self, what: &str) -> SocketAddr {
        self.ready[what].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _gone = self.child.wait();
    }
}

#[test]
fn regions_deployed_by_hand_as_the_readme_says_link_to_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let base = free_ports(25_000, &["eu", "us"]);
    let mut regions = Vec::new();
    for (id, name, peer) in [(1, "eu", "us"), (2, "us", "eu")] {
        let node = format!("{name}-e1");
        let made = command(&["pki", "--data", keys.to_str().unwrap(), "--node", &node, "--region", name, "--address"])
            .arg(format!("192.0.2.{id},{name}.example.org"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", stderr(&made));
        let data = dir.path().join(name);
        std::fs::create_dir_all(data.join("pki")).unwrap();
        let files = ["public.pem", "public.key", "node.pem", "node.key"].map(|end| format!("pki/{node}.{end}"));
        let shared = ["pki/node-ca.pem", "tokens.jwk", "receipt.key", "direct.salt"].map(str::to_owned);
        for file in files.iter().chain(&shared) {
            std::fs::copy(keys.join(file), data.join(file)).unwrap();
        }
        let port = base + 10 * id;
        let peer_port = base + 10 * (3 - id) + 2;
        let config = dir.path().join(format!("{name}.toml"));
        let text = format!(
            "data = {data:?}\ndeployment = \"example\"\nadvertise = [\"192.0.2.{id}:443\"]\n\
             peers = [{{ region = {}, name = \"{peer}\", addr = \"localhost:{peer_port}\" }}]\n\
             [region]\nid = {id}\nname = \"{name}\"\nat = \"50.11,8.68\"\n\
             [listen]\nip = \"127.0.0.1\"\nclient = {port}\n",
            3 - id
        );
        std::fs::write(&config, text).unwrap();
        regions.push(Role::start(&["region", "--init", "--config", config.to_str().unwrap()]));
    }
    for region in &regions {
        let admin = region.address("admin");
        wait_until("linked", || get(admin, "/metrics").1.contains("tern_link_peers_connected_count 1"));
    }
}

#[test]
fn a_stand_alone_dispatch_learns_edges_by_gossip_and_drops_a_killed_one() {
    let data = tempfile::tempdir().unwrap();
    let base = free_ports(26_000, &["eu", "us"]);
    let mut cluster = Cluster::plan(data.path().to_owned(), &["eu".to_owned(), "us".to_owned()], base).unwrap();
    cluster.add_edges("eu", 1);
    let processes = cluster.write().unwrap();
    let start = |name: &str| {
        let process = processes.iter().find(|p| p.name == name).unwrap();
        Role::start(&process.arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (eu, us, edge) = (start("eu-e1"), start("us-e1"), start("eu-e2"));
    // Of each region one node is enough to ask: here an edge, and a region's process.
    let seeds = format!("gossip.seeds=1@{},2@{}", edge.address("gossip"), us.address("gossip"));
    // A name of its own, with a certificate for it.
    let at = data.path().to_str().unwrap();
    let made = command(&["pki", "--data", at, "--node", "d1", "--region", "eu"]).output().unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    let settings = [
        &seeds,
        "name=d1",
        "deployment=tern-dev",
        "region.id=1",
        "region.name=eu",
        "listen.ip=127.0.0.1",
        "listen.client=0",
        "listen.admin=127.0.0.1:0",
    ];
    let mut arguments = vec!["ipconf", "--data", at];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let ipconf = Role::start(&arguments);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let env = runtime.block_on(async { tern_net::system::system_env().unwrap() });
    let ca = data.path().join("pki/public-ca.pem");
    let dispatch = ipconf.address("dispatch");
    let mut lookup =
        runtime.block_on(async { tern::demo::lookup::Lookup::connect(&env, dispatch, &ca).await.unwrap() });
    let mut listed = |what: &str, count: usize| {
        // Before it has heard of any edge its answer is an error.
        wait_until(what, || runtime.block_on(lookup.edges_listed()).is_ok_and(|listed| listed == count));
    };
    let metric = |role: &Role, line: &str| {
        let metrics = get(role.address("admin"), "/metrics").1;
        metrics.lines().any(|have| have == line)
    };
    listed("all three edges are listed", 3);
    // The region, the edge and this dispatch know each other.
    let three = "tern_gossip_members_count{cluster=\"1\",state=\"alive\"} 3";
    for role in [&eu, &edge, &ipconf] {
        wait_until("three members", || metric(role, three));
    }

    // kill -9: nobody says farewell. The seed of region 1 is gone with it.
    drop(edge);
    listed("the killed edge is not listed", 2);
    wait_until("its death is known", || metric(&ipconf, "tern_gossip_members_count{cluster=\"1\",state=\"down\"} 1"));
    let again = start("eu-e2");
    listed("it is back", 3);
    drop(eu);
    wait_until("an edge knows that its region's process is dead", || {
        metric(&again, "tern_gossip_members_count{cluster=\"1\",state=\"down\"} 1")
    });
    listed("its edge is not listed", 2);
    let _eu = start("eu-e1");
    listed("all are back", 3);

    // Of two dispatchers of one name the later one takes part, and the earlier says so; and comes back.
    let other = Role::start(&arguments);
    wait_until("the earlier is replaced", || metric(&ipconf, "tern_gossip_is_replaced_count{cluster=\"1\"} 1"));
    wait_until("the later takes part", || metric(&other, three));
    assert!(metric(&other, "tern_gossip_is_replaced_count{cluster=\"1\"} 0"));
    drop(other);
    wait_until("the earlier is back", || metric(&ipconf, three));
    listed("and lists all", 3);
    for role in [&again, &us, &ipconf] {
        let metrics = get(role.address("admin"), "/metrics").1;
        for cause in ["forged", "malformed", "key", "version"] {
            let none = format!("cause=\"{cause}\"}} 0");
            assert!(metrics.contains(&none), "{metrics}");
        }
    }
}

#[test]
fn what_an_ipconf_lacks_is_said_with_what_to_do() {
    let without = command(&["ipconf", "--set", "region.name=eu"]).output().unwrap();
    assert_eq!(without.status.code(), Some(2));
    assert!(stderr(&without).contains("gossip.seeds"), "{}", stderr(&without));

    let data = tempfile::tempdir().unwrap();
    let at = data.path().to_str().unwrap();
    let made = command(&["pki", "--data", at, "--node", "d1", "--region", "eu"]).output().unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    for secret in ["gossip.key", "receipt.key"] {
        std::fs::remove_file(data.path().join(secret)).unwrap();
    }
    let try_start = |more: &[&str]| {
        let mut arguments = vec!["ipconf", "--data", at];
        let settings = [
            "gossip.seeds=1@127.0.0.1:9",
            "name=d1",
            "region.id=1",
            "region.name=eu",
            "listen.client=0",
            "listen.admin=127.0.0.1:0",
        ];
        arguments.extend(settings.iter().chain(more).flat_map(|setting| ["--set", setting]));
        command(&arguments).stdin(Stdio::null()).output().unwrap()
    };
    let keyless = try_start(&[]);
    assert_eq!(keyless.status.code(), Some(3));
    assert!(stderr(&keyless).contains("copy gossip.key"), "{}", stderr(&keyless));
    let key = format!("gossip.key={}", "ab".repeat(32));
    let taken = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let port = format!("listen.gossip={}", taken.local_addr().unwrap());
    let in_use = try_start(&[&key, &port]);
    assert_eq!(in_use.status.code(), Some(3));
    assert!(stderr(&in_use).contains("listen.gossip"), "{}", stderr(&in_use));
}

fn chat(data: &Path, user: &str, to: &str, typed: &str) -> String {
    let mut child = command(&["chat", "--user", user, "--to", to, "--data", data.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// A chat that goes on, and what it has printed.
struct Talker {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Talker {
    fn new(data: &Path, user: &str, to: &str) -> Self {
        let mut child = command(&["chat", "--user", user, "--to", to, "--data", data.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, mut output) = (Arc::new(Mutex::new(String::new())), child.stdout.take().unwrap());
        let all = said.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                all.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, said }
    }

    fn says(&self, what: &str) -> bool {
        self.said.lock().unwrap().contains(what)
    }

    fn types(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }
}

#[test]
fn whoever_types_is_shown_to_the_other_and_settings_are_not_shown_as_bytes() {
    let data = tempfile::tempdir().unwrap();
    let base = free_ports(24_000, &["eu", "us"]);
    let _dev = Dev::start(data.path(), "eu,us", base, &[]);
    let mut alice = Talker::new(data.path(), "alice", "bob");
    alice.types("/typing");
    wait_until("alice to be told that nobody would see it", || alice.says("offline: nobody would see it"));
    let bob = Talker::new(data.path(), "bob", "alice");
    wait_until("both to be live", || alice.says("-- connection live") && bob.says("-- connection live"));
    alice.types("hello");
    wait_until("hello", || bob.says("alice: hello") && alice.says("-- stable hello"));
    wait_until("bob to be shown that alice types", || {
        alice.types("/typing");
        bob.says("-- alice is typing")
    });
    assert!(!alice.says("device/") && !bob.says("device/"), "{}", alice.said.lock().unwrap());
    let nowhere =
        command(&["chat", "--user", "eve", "--near", "mars", "--data", data.path().to_str().unwrap()]).output();
    let nowhere = nowhere.unwrap();
    assert_eq!(nowhere.status.code(), Some(3));
    assert!(stderr(&nowhere).contains("the regions are eu, us"), "{}", stderr(&nowhere));
}

#[test]
fn what_is_typed_while_nothing_is_reachable_arrives_later() {
    let data = tempfile::tempdir().unwrap();
    let base = free_ports(23_000, &["eu", "us"]);
    // The deployment exists, and is not running.
    drop(Dev::start(data.path(), "eu,us", base, &[]));
    let offline = chat(data.path(), "alice", "bob", "written offline\n/quit\n");
    assert!(!offline.contains("-- sent"), "{offline}");

    let _dev = Dev::start(data.path(), "eu,us", base, &[]);
    let later = chat(data.path(), "alice", "bob", "written online\n");
    assert!(later.contains("written offline") && later.contains("-- sent written online"), "{later}");
    wait_until("bob is shown both, in order", || {
        let shown = chat(data.path(), "bob", "alice", "/history\n");
        let lines: Vec<&str> = shown.lines().collect();
        lines
            .windows(2)
            .any(|two| two[0].ends_with("alice: written offline") && two[1].ends_with("alice: written online"))
    });
}

#[test]
fn the_demo_passes_and_tells_programs_what_it_tells_people() {
    let output = command(&["demo", "--json"]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{said}\n{}", stderr(&output));
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |what: &str| events.iter().filter(|e| e["event"] == what).count();
    assert_eq!((count("regions"), count("dispatch"), count("live"), count("kill"), count("total")), (1, 8, 1, 2, 1));
    let countries: Vec<&str> =
        events.iter().filter(|e| e["event"] == "dispatch").map(|e| e["country"].as_str().unwrap()).collect();
    assert_eq!(countries, ["DE", "DE", "BR", "BR", "IN", "IN", "JP", "JP"]);
    let totals = &events.iter().find(|e| e["event"] == "total").unwrap()["totals"];
    assert_eq!(totals["sent"], 400);
    assert_eq!((&totals["lost"], &totals["duplicated"]), (&Value::from(0), &Value::from(0)));
}
