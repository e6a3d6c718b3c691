//! A node's first hour with its operators: configuration and certificates that change while it runs, health,
//! systemd, and what a start that fails says.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// Processes run in real time, and so do their tests.
#![allow(clippy::disallowed_methods)]

#[path = "support/program.rs"]
mod program;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tern_core::wire::node_v1::LoadReport;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{ALPN_CLIENT, codec, v1};

/// Far above what anything here takes on a busy machine; only failures wait this long.
const DEADLINE: Duration = Duration::from_secs(60);

fn command(arguments: &[&str]) -> Command {
    let mut command = program::tern();
    command.env_remove("NOTIFY_SOCKET").args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).stdin(Stdio::null()).output().unwrap()
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

fn request(at: SocketAddr, method: &str, path: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), answer[end + 4..].to_vec())
}

fn get(at: SocketAddr, path: &str) -> (u16, String) {
    let (status, body) = request(at, "GET", path);
    (status, String::from_utf8(body).unwrap())
}

/// A deployment of one region on this machine, on any free ports.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap() };
        let made = run(&["pki", "--node", "eu-e1", "--region", "eu", "--data", &site.path("data")]);
        assert!(made.status.success(), "{}", stderr(&made));
        site.configure("");
        site
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    /// Its file with `more` after the top-level keys.
    fn configure(&self, more: &str) {
        let text = format!(
            "name = \"eu-e1\"\ndata = {:?}\nregion.id = 1\nregion.name = \"eu\"\nregion.at = \"50.11,8.68\"\n\
             listen.ip = \"127.0.0.1\"\n{more}\n{}",
            self.path("data"),
            if more.contains("listen.") { "" } else { "listen.client = 0\n" },
        );
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("tern.toml")).unwrap();
    }

    fn region(&self) -> Command {
        command(&["region", "--init", "--json", "--config", &self.path("tern.toml")])
    }

    fn start(&self) -> Node {
        Node::start(self.region(), &self.path("log"))
    }
}

/// A process that serves.
struct Node {
    child: Child,
    log: PathBuf,
    said: Value,
}

impl Node {
    fn start(mut command: Command, log: &str) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = serde_json::from_str(&line).unwrap_or_else(|_| {
            let _ended = child.kill();
            panic!("it does not serve: {}", fs::read_to_string(log).unwrap())
        });
        Self { child, log: log.into(), said }
    }

    fn at(&self, what: &str) -> SocketAddr {
        self.said[what].as_str().unwrap().parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap(), signal).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// (status, what became of each change) of POST /reload.
    fn reload(&self) -> (u16, Value) {
        let (status, body) = request(self.at("admin"), "POST", "/reload");
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn value(&self, key: &str) -> Value {
        let config: Value = serde_json::from_str(&get(self.at("admin"), "/config").1).unwrap();
        config["keys"].as_array().unwrap().iter().find(|k| k["key"] == key).unwrap().clone()
    }

    fn loads(&self) -> LoadReport {
        LoadReport::decode(&request(self.at("admin"), "GET", "/loads").1[..]).unwrap()
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, text) = get(self.at("admin"), "/metrics");
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn outcomes(report: &Value) -> Vec<String> {
    let changes = report["changes"].as_array().unwrap();
    let name = |c: &Value| c["what"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    changes.iter().map(|c| format!("{} {}", name(c), c["outcome"].as_str().unwrap())).collect()
}

#[test]
fn a_reload_tells_of_every_key_what_became_of_it_and_what_is_applied_is_in_force() {
    let site = Site::new();
    let node = site.start();
    assert!(node.value("log.level")["source"] == "default" && node.value("receipt.key")["change"] == "restart");
    assert!(!node.log().contains("documented to be reloadable"), "every part of a region is there");

    site.configure(
        "advertise = [\"192.0.2.7:443\"]\nfailure_domain = \"rack-9\"\nreoffer_after = \"31s\"\n\
         log.level = \"info,tern=debug\"\nedge.capacity = 7\nedge.drain_window = \"1s\"\nlimits.sends_burst = 61\n\
         heartbeat.foreground = \"26s\"\ndispatch.operators = [\"192.0.2.0/24\"]\ndispatch.geoip = \"/nonexistent\"\n",
    );
    node.signal(Signal::HUP);
    wait_until("the signal's reload", || node.value("edge.capacity")["value"] == "7");
    let (status, report) = node.reload();
    assert_eq!(status, 422, "what was rejected is rejected again: {report}");
    assert_eq!(outcomes(&report), ["reoffer_after restart-required", "dispatch.geoip rejected"]);
    let reason = report["changes"][1]["reason"].as_str().unwrap();
    assert!(reason.contains("can't read the GeoIP file /nonexistent"), "{reason}");

    let log = node.log();
    for (what, outcome) in [("log.level", "applied"), ("edge.capacity", "applied"), ("advertise", "applied")] {
        assert!(log.lines().any(|l| l.contains(what) && l.contains(outcome)), "{what}: {log}");
    }
    assert!(log.lines().any(|l| l.contains("reoffer_after") && l.contains("restart-required")), "{log}");
    assert_eq!(node.value("reoffer_after")["value"], "\"30s\"", "in force until the restart");
    assert_eq!(node.value("reoffer_after")["restart_required"], true);
    wait_until("a load report", || node.loads().edges.first().is_some_and(|e| e.capacity == 7));
    let load = node.loads().edges.remove(0);
    assert_eq!((load.addresses, load.failure_domain), (vec!["192.0.2.7:443".to_owned()], "rack-9".to_owned()));
    assert_eq!(node.metric("tern_config_last_reload_success"), 0.0);
    assert_eq!(node.metric("tern_config_restart_required_keys"), 1.0);

    // Debug lines of this crate are logged now.
    site.configure("log.level = \"warn\"\n");
    assert_eq!(node.reload().0, 200);
    let logged = node.log().len();
    site.configure("log.level = \"info\"\n");
    assert_eq!(node.reload().0, 200);
    assert!(node.log().len() > logged, "the change to info is itself logged at info");
    assert_eq!(node.metric("tern_config_last_reload_success"), 1.0);

    // A filter that is none is valid text to the configuration, and refused by the log.
    site.configure("log.level = \"tern=loud=very\"\n");
    let (status, report) = node.reload();
    assert!(status == 422 && outcomes(&report) == ["log.level rejected"], "{report}");

    // Wrong as a whole.
    site.configure("edge.capacity = 9\nedge.capaticy = 9\n");
    let (status, report) = node.reload();
    assert_eq!(status, 422);
    assert!(report["problems"][0].as_str().unwrap().contains("did you mean \"edge.capacity\""), "{report}");
    assert_eq!(node.value("edge.capacity")["value"], "100000");
}

/// Sends a frame and returns the next one.
fn exchange(tls: &mut Tls, body: Body) -> Body {
    let mut out = BytesMut::new();
    codec::put(&v1::Frame::new(1, body), &mut out);
    tls.write_all(&out).unwrap();
    let mut frames = codec::FrameReader::new(1 << 20);
    loop {
        if let Some(frame) = frames.next::<v1::Frame>().unwrap() {
            match frame.body.unwrap() {
                Body::Define(_) => continue,
                body => return body,
            }
        }
        let mut buffer = [0; 4096];
        let n = tls.read(&mut buffer).unwrap();
        assert!(n > 0, "closed without a word");
        frames.extend(&buffer[..n]);
    }
}

/// What an edge answers to a user with this token.
fn hello(node: &Node, ca: &[u8], token: &str, install: &str) -> (Tls, Body) {
    let mut tls = tls(node.at("client"), ca, ALPN_CLIENT);
    let hello = v1::Hello { versions: vec![1], token: token.into(), install: install.into(), ..v1::Hello::default() };
    let answer = exchange(&mut tls, Body::Hello(hello));
    (tls, answer)
}

fn token(data: &str) -> String {
    let output = run(&["token", "--user", "alice", "--data", data]);
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_token_key_is_changed_under_a_session_that_stays() {
    let site = Site::new();
    let node = site.start();
    let ca = fs::read(site.data("pki/public-ca.pem")).unwrap();
    let old = token(&site.path("data"));
    let (mut open, welcome) = hello(&node, &ca, &old, "phone");
    assert!(matches!(welcome, Body::Welcome(_)), "{welcome:?}");

    let other = Site::new();
    fs::copy(other.data("tokens.jwk"), site.data("tokens.jwk")).unwrap();
    assert_eq!(node.reload().0, 200);
    let (_, refused) = hello(&node, &ca, &old, "tablet");
    assert!(matches!(refused, Body::Error(_)), "{refused:?}");
    let (_, welcome) = hello(&node, &ca, &token(&other.path("data")), "laptop");
    assert!(matches!(welcome, Body::Welcome(_)), "{welcome:?}");
    let pong = exchange(&mut open, Body::Ping(v1::Ping { echo: 5, foreground: true, ..v1::Ping::default() }));
    assert!(matches!(pong, Body::Pong(ref pong) if pong.echo == 5), "{pong:?}");
}

#[test]
fn token_keys_are_read_again_and_damaged_ones_leave_the_old_in_use() {
    let site = Site::new();
    let node = site.start();
    let good = fs::read(site.data("tokens.jwk")).unwrap();
    fs::write(site.data("tokens.jwk"), "{").unwrap();
    let (status, report) = node.reload();
    assert_eq!((status, outcomes(&report)), (422, vec!["files of the token keys rejected".to_owned()]));
    wait_until("the metric", || node.metric("tern_config_rejected_files") == 1.0);
    fs::write(site.data("tokens.jwk"), good).unwrap();
    let (status, report) = node.reload();
    assert_eq!((status, outcomes(&report)), (200, vec!["tokens.jwk applied".to_owned()]));
    assert_eq!(node.metric("tern_config_rejected_files"), 0.0);
}

/// The three steps of docs/OPERATIONS.md with a region and an ipconf, each with a file of its own.
#[test]
fn a_gossip_key_is_replaced_while_nodes_run_and_none_misses_the_other() {
    let site = Site::new();
    let old = fs::read_to_string(site.data("gossip.key")).unwrap().trim().to_owned();
    let new = "5e".repeat(32);
    let (old, new) = (old.as_str(), new.as_str());
    let region_file = site.data("gossip.key");
    let ipconf_file = PathBuf::from(site.path("ipconf.key"));
    // As an editor does, or `mv`: none is read half.
    let write = |file: &Path, keys: &[&str]| {
        fs::write(site.path("new.key"), format!("# of the test\n{}\n", keys.join("\n"))).unwrap();
        fs::rename(site.path("new.key"), file).unwrap();
    };
    write(&ipconf_file, &[old]);
    let region = site.start();
    let seed = format!("gossip.seeds=1@{}", region.at("gossip"));
    let key_file = format!("gossip.key_file={}", ipconf_file.display());
    let mut ipconf = command(&["ipconf", "--json", "--config", &site.path("tern.toml")]);
    ipconf.args(["--set", &seed, "--set", &key_file]);
    let ipconf = Node::start(ipconf, &site.path("ipconf.log"));
    let nodes = [(&region, &region_file), (&ipconf, &ipconf_file)];
    let alive = "tern_gossip_members_count{cluster=\"1\",state=\"alive\"}";
    wait_until("both to see both", || nodes.iter().all(|(node, _)| node.metric(alive) == 2.0));

    for step in [&[&new[..1], old][..], &[old], &[old, old]] {
        write(&region_file, step);
        let (status, report) = region.reload();
        if step.len() == 1 {
            assert_eq!((status, outcomes(&report)), (200, vec!["gossip.key applied".to_owned()]));
        } else {
            assert_eq!((status, outcomes(&report)), (422, vec!["files of the gossip keys rejected".to_owned()]));
            assert!(!report.to_string().contains(old), "a report shows the key: {report}");
        }
    }
    let other = |node: &Node| node.metric("tern_gossip_datagrams_other_key_total");
    for step in [&[old, new][..], &[new, old], &[new]] {
        for (at, (node, file)) in nodes.iter().enumerate() {
            let (sealed, received) = (other(&ipconf), node.metric("tern_gossip_datagrams_received_total"));
            write(file, step);
            assert_eq!(node.reload().0, 200);
            if step == [new, old] && at == 0 {
                wait_until("the ipconf to hear the new key", || other(&ipconf) > sealed);
            }
            let heard = || node.metric("tern_gossip_datagrams_received_total") > received + 3.0;
            wait_until("gossip to go on", heard);
            assert!(nodes.iter().all(|(node, _)| node.metric(alive) == 2.0), "{step:?}");
        }
    }
    for (node, _) in nodes {
        assert_eq!(node.metric("tern_gossip_downs_total"), 0.0);
        assert_eq!(node.metric("tern_gossip_suspicions_total"), 0.0);
        assert_eq!(node.metric("tern_gossip_datagrams_dropped_total{cluster=\"1\",cause=\"key\"}"), 0.0);
    }
    // The file is looked at without being asked, too; and a file that is gone for a moment changes nothing.
    fs::remove_file(&region_file).unwrap();
    assert_eq!(region.reload().0, 422);
    let logged = region.log().matches("gossip keys").count();
    write(&region_file, &[new, old]);
    wait_until("the file to be found", || region.log().matches("gossip keys").count() > logged);
    assert_eq!(region.metric(alive), 2.0);
    assert!(!region.log().contains(new) && !region.log().contains(old), "a log shows the key");
}

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A TLS connection that has not begun, trusting one CA.
fn tls(at: SocketAddr, ca: &[u8], alpn: &[u8]) -> Tls {
    let mut roots = rustls::RootCertStore::empty();
    CertificateDer::pem_slice_iter(ca).for_each(|c| roots.add(c.unwrap()).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("eu.tern.internal").unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    rustls::StreamOwned::new(connection, stream)
}

/// A TLS connection to dispatch.
struct Dispatch {
    tls: Tls,
}

impl Dispatch {
    fn connect(at: SocketAddr, ca: &[u8]) -> Option<Self> {
        let mut dispatch = Self { tls: tls(at, ca, b"http/1.1") };
        dispatch.ask().map(|()| dispatch)
    }

    /// One request on the open connection.
    fn ask(&mut self) -> Option<()> {
        write!(self.tls, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
        let mut answer = String::new();
        while !answer.contains('}') {
            let mut buffer = [0; 4096];
            let n = self.tls.read(&mut buffer).ok().filter(|n| *n > 0)?;
            answer.push_str(&String::from_utf8_lossy(&buffer[..n]));
            if answer.contains("404") {
                break;
            }
        }
        answer.starts_with("HTTP/1.1").then_some(())
    }
}

#[test]
fn certificates_are_replaced_under_a_connection_that_stays_and_bad_ones_are_refused() {
    let site = Site::new();
    let node = site.start();
    let old_ca = fs::read(site.data("pki/public-ca.pem")).unwrap();
    let at = node.at("dispatch");
    let mut open = Dispatch::connect(at, &old_ca).expect("the old certificate");
    let years = node.metric("tern_certificate_expires_in_seconds{certificate=\"public\"}") / 86_400.0 / 365.0;
    assert!((8.0..12.0).contains(&years), "{years}");

    // Another authority's: first the certificate alone, as if the renewal had stopped half-way.
    let other = tempfile::tempdir().unwrap();
    let made =
        run(&["pki", "--node", "eu-e1", "--region", "eu", "--data", &other.path().join("data").display().to_string()]);
    assert!(made.status.success(), "{}", stderr(&made));
    let new = |name: &str| other.path().join("data/pki").join(name);
    fs::copy(new("eu-e1.public.pem"), site.data("pki/eu-e1.public.pem")).unwrap();
    let (status, report) = node.reload();
    assert_eq!(status, 422);
    assert!(report["changes"][0]["reason"].as_str().unwrap().contains("belong together"), "{report}");
    assert!(Dispatch::connect(at, &old_ca).is_some(), "the old one is still shown");

    // The other half: taken without being told, since the files are watched.
    fs::copy(new("eu-e1.public.key"), site.data("pki/eu-e1.public.key")).unwrap();
    let new_ca = fs::read(new("public-ca.pem")).unwrap();
    wait_until("the new certificate is shown", || Dispatch::connect(at, &new_ca).is_some());
    assert!(Dispatch::connect(at, &old_ca).is_none());
    open.ask().expect("the connection that was open goes on");

    // Other files, named by keys.
    for name in ["public.pem", "public.key"] {
        fs::copy(new(&format!("eu-e1.{name}")), site.path(name)).unwrap();
    }
    let named =
        format!("tls.public_cert = {:?}\ntls.public_key = {:?}\n", site.path("public.pem"), site.path("public.key"));
    site.configure(&named);
    let (status, report) = node.reload();
    assert_eq!(
        (status, outcomes(&report)),
        (200, vec!["tls.public_cert applied".into(), "tls.public_key applied".into()])
    );
    site.configure("");
    assert_eq!(node.reload().0, 200);

    // A node certificate that the peers would refuse.
    fs::copy(new("eu-e1.node.pem"), site.data("pki/eu-e1.node.pem")).unwrap();
    fs::copy(new("eu-e1.node.key"), site.data("pki/eu-e1.node.key")).unwrap();
    let (status, report) = node.reload();
    assert!(status == 422 && report.to_string().contains("signed by that CA"), "{report}");
    fs::copy(new("node-ca.pem"), site.data("pki/node-ca.pem")).unwrap();
    assert_eq!(node.reload().0, 200);
}

fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let n = socket.recv(&mut buffer).expect("nothing came");
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

fn heard_until(socket: &UnixDatagram, what: &str) -> Vec<String> {
    let mut all = Vec::new();
    while !all.last().is_some_and(|last: &String| last.contains(what)) {
        all.push(heard(socket));
    }
    all
}

#[test]
fn systemd_hears_when_a_region_starts_reloads_lives_and_stops() {
    let site = Site::new();
    let path = site.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut region = site.region();
    region.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut node = Node::start(region, &site.path("log"));
    let start = heard_until(&socket, "READY=1");
    assert!(start[0].contains("EXTEND_TIMEOUT_USEC="), "{start:?}");
    heard_until(&socket, "WATCHDOG=1");
    node.signal(Signal::HUP);
    heard_until(&socket, "RELOADING=1\nMONOTONIC_USEC=");
    heard_until(&socket, "READY=1");
    let (status, said) = request(node.at("admin"), "POST", "/orders/leave?node=eu-e1");
    assert_eq!(status, 409, "it is the only one: {}", String::from_utf8_lossy(&said));
    assert_eq!(request(node.at("admin"), "POST", "/orders/leave?node=eu-e1&force=true").0, 200);
    heard_until(&socket, "STATUS=left by all clients, by an operator's order");
    assert_eq!(request(node.at("admin"), "POST", "/orders/return?node=eu-e1").0, 200);
    heard_until(&socket, "STATUS=serving");
    node.signal(Signal::TERM);
    let stop = heard_until(&socket, "STOPPING=1");
    assert!(stop.last().unwrap().contains("EXTEND_TIMEOUT_USEC="), "{stop:?}");
    assert!(node.child.wait().unwrap().success());
}

#[test]
fn the_health_paths_answer_and_name_what_a_role_lacks() {
    let site = Site::new();
    let node = site.start();
    for (path, body) in [("/livez", "live\n"), ("/readyz", "ready\n"), ("/startupz", "started\n")] {
        assert_eq!(get(node.at("admin"), path), (200, body.to_owned()));
    }
    // An edge whose core is not there: it starts, is alive, and not ready.
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let made = run(&["pki", "--node", "eu-e2", "--region", "eu", "--data", &site.path("data")]);
    assert!(made.status.success(), "{}", stderr(&made));
    let config = site.path("tern.toml");
    let core = format!("core={unused}");
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = format!("listen.admin={admin}");
    let arguments = ["edge", "--json", "--config", &config, "--set", "name=eu-e2", "--set", &core, "--set", &listen];
    let mut edge =
        command(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the admin port answers while it starts", || TcpStream::connect(admin).is_ok());
    let started = std::cell::RefCell::new((0, String::new()));
    wait_until("it says what its start waits for", || {
        *started.borrow_mut() = get(admin, "/startupz");
        started.borrow().1.contains("linking to the core")
    });
    assert_eq!(started.borrow().0, 503, "{}", started.borrow().1);
    assert_eq!(request(admin, "POST", "/reload").0, 503, "not while it starts");
    // Nor does a signal end it meanwhile; it is acted on later.
    kill_process(Pid::from_raw(i32::try_from(edge.id()).unwrap()).unwrap(), Signal::HUP).unwrap();
    wait_until("the start is over", || get(admin, "/startupz").0 == 200);
    assert_eq!(get(admin, "/livez").0, 200);
    let (status, body) = get(admin, "/readyz");
    assert!(status == 503 && body.contains("core: it can't be reached"), "{status} {body}");
    wait_until("the reload", || get(admin, "/metrics").1.contains("tern_config_reloads_total{result=\"ok\"} 1"));
    edge.kill().unwrap();
    edge.wait().unwrap();
}

#[test]
fn a_start_that_fails_says_what_to_change() {
    let site = Site::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let config = site.path("tern.toml");
    let data = site.path("data");
    let start = |more: &[&str]| {
        let mut arguments = vec!["region", "--config", &config];
        arguments.extend(more);
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(3), "{more:?}: {}", stderr(&output));
        stderr(&output)
    };
    assert!(start(&[]).contains("run with --init"));
    for key in ["listen.admin", "listen.dispatch"] {
        let value = if key == "listen.admin" { format!("{key}=127.0.0.1:{port}") } else { format!("{key}={port}") };
        let said = start(&["--init", "--set", &value]);
        assert!(said.contains(&format!("set {key} to another")), "{said}");
    }
    let said = start(&["--init", "--set", &format!("listen.client={port}"), "--set", "listen.admin=127.0.0.1:0"]);
    assert!(said.contains("can't listen on TCP") && said.contains("listen.client"), "{said}");
    assert!(!Path::new(&data).join("store").exists(), "nothing of this has touched the store");
    fs::rename(site.data("pki/eu-e1.public.pem"), site.data("pki/hidden")).unwrap();
    let said = start(&["--init"]);
    assert!(said.contains("tls.public_cert") && said.contains("eu-e1.public.pem"), "{said}");
    fs::rename(site.data("pki/hidden"), site.data("pki/eu-e1.public.pem")).unwrap();
    let said = start(&["--init", "--set", "peers=2:us@no-such-host.invalid:7422"]);
    assert!(said.contains("no-such-host.invalid:7422") && said.contains("peers"), "{said}");
}

fn doctor(site: &Site, more: &[&str]) -> (Option<i32>, Vec<Value>) {
    let config = site.path("tern.toml");
    let mut arguments = vec!["doctor", "--json", "--config", &config];
    arguments.extend(more);
    let output = run(&arguments);
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let found: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!found.is_empty(), "{}", stderr(&output));
    (output.status.code(), found)
}

fn of_check<'a>(found: &'a [Value], check: &str) -> Vec<&'a Value> {
    found.iter().filter(|finding| finding["check"] == check).collect()
}

fn everything_below(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(everything_below(&path));
        } else {
            found.push((path.clone(), fs::metadata(&path).unwrap().len()));
        }
    }
    found.sort();
    found
}

#[test]
fn the_doctor_looks_before_the_first_start_and_beside_a_running_node_and_changes_nothing() {
    let site = Site::new();
    // Fixed ports, as in production, so that beside the running node they are held.
    // Dispatch is one below the node port, as the usual ones are.
    let (client, admin, dispatch) = loop {
        let ports: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |i: usize| ports[i].local_addr().unwrap().port();
        if port(2) < u16::MAX && UdpSocket::bind(("127.0.0.1", port(2) + 1)).is_ok() {
            break (port(0), port(1), port(2));
        }
    };
    let node = dispatch + 1;
    let fixed = format!(
        "listen.client = {client}\nlisten.dispatch = {dispatch}\nlisten.gossip = \"127.0.0.1:0\"\n\
         listen.admin = \"127.0.0.1:{admin}\"\nlisten.node = {node}\n"
    );
    site.configure(&fixed);
    let before = everything_below(site.dir.path());
    let (code, found) = doctor(&site, &[]);
    assert_eq!(code, Some(0), "{found:#?}");
    assert_eq!(everything_below(site.dir.path()), before, "nothing was changed");
    for check in [
        "configuration",
        "open files",
        "udp buffers",
        "memory",
        "clock",
        "ports",
        "certificates",
        "token keys",
        "secrets",
        "data directory",
        "disk space",
        "disk speed",
        "store",
        "geoip",
    ] {
        let these = of_check(&found, check);
        assert!(!these.is_empty(), "{check}");
        for finding in these {
            assert_eq!(finding["state"] == "ok", finding["do"] == "", "what is not ok says what to do: {finding}");
        }
    }
    assert!(of_check(&found, "store")[0]["do"].as_str().unwrap().contains("--init"));

    let running = site.start();
    let before: Vec<PathBuf> = everything_below(site.dir.path()).into_iter().map(|(path, _)| path).collect();
    let (code, found) = doctor(&site, &[]);
    assert_eq!(code, Some(0), "{found:#?}");
    assert!(found[0]["what"].as_str().unwrap().ends_with("is running"), "{}", found[0]);
    let pid = running.child.id().to_string();
    let held = of_check(&found, "ports").iter().any(|f| f["what"].as_str().unwrap().contains(&pid));
    assert!(held, "{found:#?}");
    assert!(of_check(&found, "store")[0]["what"].as_str().unwrap().contains("in use by the running node"));
    let after: Vec<PathBuf> = everything_below(site.dir.path()).into_iter().map(|(path, _)| path).collect();
    assert_eq!(after, before);

    // Another region asks it, for its clock too.
    let made = run(&["pki", "--node", "us-e1", "--region", "us", "--data", &site.path("data")]);
    assert!(made.status.success(), "{}", stderr(&made));
    let peer = format!("peers=1:eu@127.0.0.1:{node}");
    let (_, found) =
        doctor(&site, &["--set", "name=us-e1", "--set", "region.id=2", "--set", "region.name=us", "--set", &peer]);
    assert!(of_check(&found, "nodes")[0]["what"].as_str().unwrap().contains("answers within"), "{found:#?}");
    let clock = of_check(&found, "clock").into_iter().find(|f| f["what"].as_str().unwrap().contains("clock of eu"));
    assert_eq!(clock.expect("the peer's clock")["state"], "ok");

    // An edge beside it asks its core: a node of this deployment, of another authority, of another deployment.
    let made = run(&["pki", "--node", "eu-e2", "--region", "eu", "--data", &site.path("data")]);
    assert!(made.status.success(), "{}", stderr(&made));
    let core = format!("core=127.0.0.1:{node}");
    let edge = ["--set", "name=eu-e2", "--set", &core, "--set", "listen.admin=127.0.0.1:0", "--set", "listen.client=0"];
    let (code, found) = doctor(&site, &edge);
    assert_eq!(code, Some(0), "{found:#?}");
    assert!(of_check(&found, "nodes")[0]["what"].as_str().unwrap().contains("answers within"), "{found:#?}");
    let strange = [&edge[..], &["--set", "deployment=other"]].concat();
    let (code, found) = doctor(&site, &strange);
    let refused = of_check(&found, "nodes")[0];
    let what = refused["what"].as_str().unwrap();
    // Of the salt it says nothing: that is not compared.
    assert!(code == Some(1) && what.contains("another deployment") && !what.contains("salt"), "{refused}");
    let other = Site::new();
    let made = run(&["pki", "--node", "eu-e2", "--region", "eu", "--data", &other.path("data")]);
    assert!(made.status.success(), "{}", stderr(&made));
    let (code, found) = doctor(&other, &edge);
    let refused = of_check(&found, "nodes")[0];
    assert!(
        code == Some(1) && refused["what"].as_str().unwrap().contains("certificates are not accepted"),
        "{refused}"
    );
    assert!(running.log().contains("region 0 is") && get(running.at("admin"), "/readyz").0 == 200);
}

#[test]
fn the_doctor_says_where_a_client_elsewhere_is_sent_and_whether_its_edges_are_reached() {
    let site = Site::new();
    // Fixed ports, as in production: dispatch lists what is advertised.
    let (client, admin) = loop {
        let ports: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |i: usize| ports[i].local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.1", port(0))).is_ok() {
            break (port(0), port(1));
        }
    };
    site.configure(&format!(
        "listen.client = {client}\nlisten.admin = \"127.0.0.1:{admin}\"\nlisten.dispatch = 0\nlisten.node = 0\n\
         listen.gossip = \"127.0.0.1:0\"\n"
    ));
    let (code, found) = doctor(&site, &["--from", "91.0.0.1"]);
    let nobody = of_check(&found, "dispatch")[0];
    assert!(code == Some(1) && nobody["do"].as_str().unwrap().contains("listen.admin"), "{nobody}");
    let running = site.start();
    let found = |more: &[&str]| doctor(&site, more);
    // Its own edge reports within a second.
    wait_until("an edge is listed", || doctor(&site, &["--from", "91.0.0.1"]).0 == Some(0));
    let (code, all) = found(&["--from", "91.0.0.1", "JP", "10.0.0.1"]);
    assert_eq!(code, Some(0), "{all:#?}");
    let dispatch: Vec<_> = of_check(&all, "dispatch").iter().map(|f| f["what"].as_str().unwrap().to_owned()).collect();
    assert!(
        dispatch[0].starts_with("91.0.0.1 (DE) -> 1. eu-e1 (") && dispatch[0].contains("by distance"),
        "{dispatch:?}"
    );
    assert!(dispatch[1].contains("(JP) -> 1. eu-e1"), "{dispatch:?}");
    assert!(dispatch[2].contains("10.0.0.1 (not placed: private)"), "{dispatch:?}");
    let edges = of_check(&all, "edge");
    assert_eq!(edges.len(), 1, "one edge, all of it well: {edges:#?}");
    let what = edges[0]["what"].as_str().unwrap();
    for transport in ["quic", "tcp", "ws", "poll"] {
        assert!(edges[0]["state"] == "ok" && what.contains(&format!("{transport} ")), "{what}");
    }
    // By an authority that is not the one of its certificate.
    let ca = site.data("pki/node-ca.pem");
    let (code, all) = found(&["--from", "91.0.0.1", "--ca", ca.to_str().unwrap()]);
    let edges = of_check(&all, "edge");
    assert!(code == Some(1) && edges.len() == 4, "{edges:#?}");
    assert!(edges.iter().all(|f| f["what"].as_str().unwrap().contains("certificate is not accepted")), "{edges:#?}");
    let (code, all) = found(&["--from", "ZZ"]);
    assert!(code == Some(1) && of_check(&all, "dispatch")[0]["what"].as_str().unwrap().contains("no address of ZZ"));
    assert_eq!(run(&["doctor", "--from", "germany"]).status.code(), Some(2));
    assert_eq!(get(running.at("admin"), "/dispatch").0, 400);
    assert!(get(running.at("admin"), "/metrics").1.contains("tern_dispatch"));
}

#[test]
fn the_doctor_fails_where_a_start_would_and_says_the_same() {
    let site = Site::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("listen.dispatch={}", held.local_addr().unwrap().port());
    let (code, found) = doctor(&site, &["--set", &taken]);
    let port = of_check(&found, "ports").into_iter().find(|f| f["state"] == "failed").unwrap();
    assert_eq!(code, Some(1));
    assert!(port["what"].as_str().unwrap().contains(&std::process::id().to_string()), "{port}");
    assert!(port["do"].as_str().unwrap().contains("listen.dispatch"), "{port}");
    let (code, found) = doctor(&site, &["--role", "edge"]);
    assert!(code == Some(1) && found[0]["do"].as_str().unwrap().contains("core is empty"), "{}", found[0]);
    let (code, found) = doctor(&site, &["--set", "peers=2:us@no-such-host.invalid:7422"]);
    let peer = of_check(&found, "nodes")[0];
    assert!(code == Some(1) && peer["what"].as_str().unwrap().contains("is unknown"), "{peer}");
    assert_eq!(run(&["doctor", "--set", "region.nmae=eu"]).status.code(), Some(2));
    assert_eq!(run(&["doctor", "--role", "king"]).status.code(), Some(2));
}
