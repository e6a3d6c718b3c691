//! A system on this machine: `tern` processes, started as an operator starts them.
//!
//! Keys come from `tern pki`, tokens from `tern token`, schemas from `tern store init`; each process has a configuration
//! file. A process says that it serves by a line of JSON on its standard output; its log goes to a file beside the
//! record. All listen on loopback; regions reach each other through [`super::relay`], so that links can be taken down.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::error::ChaosError;
use super::keeper::Keeper;
use super::limits::{END_WITHIN, TAIL, TICK};
use super::relay::{Relay, Switch};
use super::script::{Database, LocalTarget};

/// The audience of tokens.
const AUDIENCE: &str = "tern-chaos";
/// Begins the environment variables that `tern` reads; a node is configured by its file alone.
const ENV_PREFIX: &str = "TERN_";
/// Ports of a process: client, dispatch, node, admin (and gossip, which is UDP).
const PORTS: u16 = 4;
/// Where ports are looked for.
const PORTS_FROM: u16 = 24_000;
const PORTS_TO: u16 = 31_000;

/// What is heard of a process, by name and the number of its start.
#[derive(Debug)]
struct Heard {
    who: String,
    start: u64,
    serves: bool,
}

#[derive(Debug)]
struct Node {
    region: usize,
    is_core: bool,
    base: u16,
    arguments: Vec<String>,
    running: Option<Running>,
    starts: u64,
    serves: bool,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// When it ends, so does the process.
    _stdin: Option<ChildStdin>,
}

/// See the module.
#[derive(Debug)]
pub struct Local {
    tern: PathBuf,
    keys: PathBuf,
    logs: PathBuf,
    target: LocalTarget,
    nodes: BTreeMap<String, Node>,
    links: BTreeMap<(String, String), Switch>,
    /// By (who asks, who is asked).
    relays: BTreeMap<(usize, usize), Relay>,
    heard: Receiver<Heard>,
    tell: Sender<Heard>,
}

/// The program: as named, or beside this one.
pub fn find_tern(named: Option<&Path>) -> Result<PathBuf, ChaosError> {
    let looked = match named {
        Some(path) => std::path::absolute(path),
        None => std::env::current_exe().map(|own| own.with_file_name("tern")),
    };
    let looked = looked.map_err(ChaosError::io("looking for tern"))?;
    if looked.is_file() { Ok(looked) } else { Err(ChaosError::NoTern { looked }) }
}

impl Local {
    /// Makes keys, configurations and schemas below `directory`; starts nothing.
    pub fn prepare(tern: PathBuf, target: &LocalTarget, directory: &Path, logs: &Path) -> Result<Self, ChaosError> {
        let (tell, heard) = channel();
        let mut local = Self {
            tern,
            keys: directory.join("keys"),
            logs: logs.to_owned(),
            target: target.clone(),
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            relays: BTreeMap::new(),
            heard,
            tell,
        };
        let of = |region: &String| {
            let nodes = (1..=target.nodes).map(|n| (format!("{region}-n{n}"), true));
            nodes.chain((1..=target.edges).map(|n| (format!("{region}-e{n}"), false))).collect::<Vec<_>>()
        };
        let names: Vec<(usize, String, bool)> = target
            .regions
            .iter()
            .enumerate()
            .flat_map(|(i, region)| of(region).into_iter().map(move |(name, is_core)| (i, name, is_core)))
            .collect();
        let bases = free_ports(names.len())?;
        for ((region, name, is_core), base) in names.into_iter().zip(bases) {
            let node = Node { region, is_core, base, arguments: Vec::new(), running: None, starts: 0, serves: false };
            local.nodes.insert(name, node);
        }
        local.connect()?;
        let names: Vec<String> = local.nodes.keys().cloned().collect();
        for name in &names {
            let region = &target.regions[local.nodes[name].region];
            local.ask(&["pki", "--node", name, "--region", region, "--address", "127.0.0.1"], true)?;
        }
        for name in names {
            local.configure(&name, directory)?;
        }
        Ok(local)
    }

    /// Relays between the first core nodes of any two regions.
    fn connect(&mut self) -> Result<(), ChaosError> {
        let regions = self.target.regions.clone();
        for (i, one) in regions.iter().enumerate() {
            for (j, other) in regions.iter().enumerate().filter(|(j, _)| *j != i) {
                let link = if one < other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) };
                let switch = self.links.entry(link).or_default();
                let to = at(self.nodes[&format!("{other}-n1")].base + 2);
                let relay = Relay::start(to, switch).map_err(ChaosError::io("starting a relay"))?;
                self.relays.insert((i, j), relay);
            }
        }
        Ok(())
    }

    fn configure(&mut self, name: &str, directory: &Path) -> Result<(), ChaosError> {
        let data = directory.join(name);
        fs::create_dir_all(&data).map_err(ChaosError::io("making a node's directory"))?;
        let config = data.with_extension("toml");
        let text = self.config(name, &data);
        fs::write(&config, text).map_err(ChaosError::io("writing a configuration"))?;
        let config = config.display().to_string();
        let (is_core, region) = (self.nodes[name].is_core, self.nodes[name].region);
        let role = if is_core { "region" } else { "edge" };
        let mut arguments: Vec<String> =
            [role, "--json", "--stop-with-stdin", "--config", &config].map(str::to_owned).into();
        if is_core && self.target.database.is_none() {
            arguments.push("--init".to_owned());
        }
        if is_core && self.target.database.is_some() && name == format!("{}-n1", self.target.regions[region]) {
            self.ask(&["--config", &config, "store", "init"], false)?;
        }
        if let Some(node) = self.nodes.get_mut(name) {
            node.arguments = arguments;
        }
        Ok(())
    }

    /// Names of all processes: core nodes first, because an edge of its own serves only once it has found one.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<&String> = self.nodes.keys().collect();
        names.sort_by_key(|name| !self.nodes[*name].is_core);
        names.into_iter().cloned().collect()
    }

    /// Names of the keyspaces that are left in a database.
    pub fn keyspaces(&self) -> Vec<String> {
        if self.target.database.is_none() {
            return Vec::new();
        }
        self.target.regions.iter().map(|region| keyspace(region)).chain([timeline_keyspace()]).collect()
    }

    /// Dispatch of each region.
    pub fn dispatch(&self) -> Vec<(String, SocketAddr)> {
        let of = |region: &String| (region.clone(), at(self.nodes[&format!("{region}-n1")].base + 1));
        let mut all: Vec<_> = self.target.regions.iter().map(of).collect();
        // Further core nodes have one, too: that of the first may be dead.
        let further = self.nodes.iter().filter(|(name, node)| node.is_core && !name.ends_with("-n1"));
        all.extend(further.map(|(_, node)| (self.target.regions[node.region].clone(), at(node.base + 1))));
        all
    }

    /// Admin listeners of the core nodes of each region.
    pub fn admins(&self) -> Vec<Vec<SocketAddr>> {
        let of = |region: usize| {
            let nodes = self.nodes.values().filter(move |node| node.is_core && node.region == region);
            nodes.map(|node| at(node.base + 3)).collect()
        };
        (0..self.target.regions.len()).map(of).collect()
    }

    /// What clients pin.
    pub fn roots(&self) -> PathBuf {
        self.keys.join("pki").join("public-ca.pem")
    }

    /// A token for a user, good for longer than any run.
    pub fn token(&self, user: &str) -> Result<String, ChaosError> {
        let said = self.ask(&["token", "--user", user, "--audience", AUDIENCE, "--ttl", "48h"], true)?;
        Ok(said.trim().to_owned())
    }

    /// Starts a process. That it serves is known later.
    pub fn start(&mut self, name: &str, keeper: &mut Keeper) -> Result<(), ChaosError> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(name));
        let log = log.map_err(ChaosError::io("opening a node's log"))?;
        let tell = self.tell.clone();
        let mut command = Command::new(&self.tern);
        let node = self.nodes.get_mut(name).ok_or_else(|| ChaosError::Script(format!("there is no process {name}")))?;
        node.starts += 1;
        node.serves = false;
        command.args(&node.arguments).args(["--set", "log.json=false"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
        clean(&mut command);
        let mut child = command.spawn().map_err(ChaosError::io(format!("starting {}", self.tern.display())))?;
        keeper.add(child.id()).map_err(ChaosError::io("telling of a process"))?;
        let (stdin, output) = (child.stdin.take(), child.stdout.take());
        node.running = Some(Running { child, _stdin: stdin });
        let (who, start) = (name.to_owned(), node.starts);
        let listen = move || {
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines().map_while(Result::ok));
            for line in lines {
                let serves =
                    serde_json::from_str::<serde_json::Value>(&line).is_ok_and(|line| line.get("ready").is_some());
                // Nobody listens only when the run is over.
                if serves && tell.send(Heard { who: who.clone(), start, serves }).is_err() {
                    return;
                }
            }
            let _over = tell.send(Heard { who, start, serves: false });
        };
        thread::Builder::new()
            .name(format!("{name} output"))
            .spawn(listen)
            .map_err(ChaosError::io("starting a thread"))?;
        Ok(())
    }

    /// Takes in what was heard.
    pub fn listen(&mut self) {
        while let Ok(heard) = self.heard.try_recv() {
            if let Some(node) = self.nodes.get_mut(&heard.who).filter(|node| node.starts == heard.start) {
                node.serves = heard.serves;
            }
        }
    }

    /// Whether it said that it serves, and did not end since.
    pub fn serves(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.serves && node.running.is_some())
    }

    /// Kills processes at the same moment.
    pub fn kill(&mut self, names: &[String], keeper: &mut Keeper) -> Result<(), ChaosError> {
        for name in names {
            if let Some(running) = self.nodes.get_mut(name).and_then(|node| node.running.as_mut()) {
                running.child.kill().map_err(ChaosError::io(format!("killing {name}")))?;
            }
        }
        for name in names {
            let Some(node) = self.nodes.get_mut(name) else { continue };
            if let Some(mut running) = node.running.take() {
                running.child.wait().map_err(ChaosError::io(format!("waiting for {name}")))?;
                keeper.remove(running.child.id()).map_err(ChaosError::io("telling of a process"))?;
            }
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<(), ChaosError> {
        let running = self.nodes.get(name).and_then(|node| node.running.as_ref());
        let pid = running.and_then(|running| Pid::from_raw(i32::try_from(running.child.id()).ok()?));
        let pid = pid.ok_or_else(|| ChaosError::Script(format!("{name} does not run")))?;
        kill_process(pid, signal).map_err(io::Error::from).map_err(ChaosError::io(format!("signalling {name}")))
    }

    /// How a process ended, if it did.
    pub fn ended(&mut self, name: &str, keeper: &mut Keeper) -> Result<Option<String>, ChaosError> {
        let Some(node) = self.nodes.get_mut(name) else { return Ok(None) };
        let Some(running) = node.running.as_mut() else { return Ok(None) };
        let status = running.child.try_wait().map_err(ChaosError::io(format!("waiting for {name}")))?;
        if status.is_some() {
            let id = running.child.id();
            node.running = None;
            keeper.remove(id).map_err(ChaosError::io("telling of a process"))?;
        }
        Ok(status.map(words))
    }

    /// Whether it was started, and has not been found to have ended.
    pub fn runs(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.running.is_some())
    }

    /// Asks all to stop, waits for a while, and kills what is left.
    pub async fn stop_all(&mut self, keeper: &mut Keeper) -> Result<(), ChaosError> {
        let names = self.names();
        for name in names.iter().filter(|name| self.runs(name)) {
            // One that stands still must hear of it.
            self.signal(name, Signal::CONT)?;
            self.signal(name, Signal::TERM)?;
        }
        let until = Instant::now() + END_WITHIN;
        while names.iter().any(|name| self.runs(name)) && Instant::now() < until {
            for name in &names {
                self.ended(name, keeper)?;
            }
            sleep(TICK).await;
        }
        self.kill(&names, keeper)
    }

    /// Lets nothing pass between two regions, or everything again.
    pub fn link(&self, one: &str, other: &str, down: bool) {
        let link = if one < other { (one.to_owned(), other.to_owned()) } else { (other.to_owned(), one.to_owned()) };
        if let Some(switch) = self.links.get(&link) {
            switch.set_down(down);
        }
    }

    /// Bytes that each running process has allocated: without pages of files, which come as code is run.
    pub fn memory(&self) -> Vec<(String, u64)> {
        let of = |(name, node): (&String, &Node)| {
            let status = fs::read_to_string(format!("/proc/{}/status", node.running.as_ref()?.child.id())).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some((name.clone(), kib * 1024))
        };
        self.nodes.iter().filter_map(of).collect()
    }

    /// Of a process that does not serve.
    pub fn not_ready(&self, name: &str) -> ChaosError {
        let log = self.log(name);
        let text = fs::read(&log).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(TAIL)..];
        ChaosError::NotReady { node: name.to_owned(), said: String::from_utf8_lossy(tail).trim().to_owned(), log }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Runs a command that ends by itself, and returns what it prints.
    fn ask(&self, arguments: &[&str], of_keys: bool) -> Result<String, ChaosError> {
        let mut command = Command::new(&self.tern);
        command.args(arguments).stdin(Stdio::null());
        if of_keys {
            command.arg("--data").arg(&self.keys);
        }
        clean(&mut command);
        let output = command.output().map_err(ChaosError::io(format!("running {}", self.tern.display())))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ChaosError::Tern { command: arguments.join(" "), said });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn config(&self, name: &str, data: &Path) -> String {
        let node = &self.nodes[name];
        let region = &self.target.regions[node.region];
        let path = |path: &Path| quoted(&path.display().to_string());
        let key = |file: &str| path(&self.keys.join(file));
        let own = |end: &str| key(&format!("pki/{name}.{end}"));
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let mut out = String::new();
        let mut line = |key: &str, value: String| {
            // Text takes whatever is written.
            let _infallible = writeln!(out, "{key} = {value}");
        };
        let admin = quoted(&at(node.base + 3).to_string());
        line("data", path(data));
        line("deployment", quoted(AUDIENCE));
        line("name", quoted(name));
        line("failure_domain", quoted(name));
        line("region.id", (node.region + 1).to_string());
        line("region.name", quoted(region));
        // Far apart, whatever they are called.
        line("region.at", quoted(&format!("0,{}", node.region * 40)));
        line("listen.ip", quoted("127.0.0.1"));
        line("listen.client", node.base.to_string());
        line("listen.admin", admin.clone());
        line("listen.gossip", admin);
        line("tls.public_cert", own("public.pem"));
        line("tls.public_key", own("public.key"));
        line("tls.node_cert", own("node.pem"));
        line("tls.node_key", own("node.key"));
        line("tls.node_ca", key("pki/node-ca.pem"));
        line("tokens.file", key("tokens.jwk"));
        line("gossip.key_file", key("gossip.key"));
        let others = self.nodes.iter().filter(|(other, at)| at.region == node.region && *other != name);
        line("gossip.seeds", list(others.map(|(_, other)| quoted(&at(other.base + 3).to_string())).collect()));
        if !node.is_core {
            let cores = self.nodes.values().filter(|other| other.region == node.region && other.is_core);
            line("core", list(cores.map(|core| quoted(&at(core.base + 2).to_string())).collect()));
            return out;
        }
        let peers = self.relays.iter().filter(|((from, _), _)| *from == node.region);
        let peers = peers
            .map(|((_, to), relay)| quoted(&format!("{}:{}@{}", to + 1, self.target.regions[*to], relay.address())));
        line("peers", list(peers.collect()));
        line("reoffer_after", quoted(&format!("{}ms", self.target.reoffer_after.as_millis())));
        line("listen.dispatch", (node.base + 1).to_string());
        line("listen.node", (node.base + 2).to_string());
        line("receipt.key_file", key("receipt.key"));
        line("direct.salt_file", key("direct.salt"));
        if let Some(database) = &self.target.database {
            line("region.shared", (self.target.nodes > 1).to_string());
            line("store.kind", quoted("scylla"));
            line("store.nodes", list(database.nodes.split(',').map(|node| quoted(node.trim())).collect()));
            line("store.datacenter", quoted(&datacenter(database, node.region)));
            line("store.keyspace", quoted(&keyspace(region)));
            line("store.timeline_keyspace", quoted(&timeline_keyspace()));
            line("store.replication", list(database.replication.split(',').map(quoted).collect()));
        }
        for setting in &self.target.settings {
            if let Some((key, value)) = setting.split_once('=') {
                line(
                    key,
                    if value.parse::<f64>().is_ok() || value == "true" || value == "false" {
                        value.to_owned()
                    } else {
                        quoted(value)
                    },
                );
            }
        }
        out
    }
}

/// Of this run: the database may be used by others.
fn keyspace(region: &str) -> String {
    format!("tern_chaos_{}_{region}", std::process::id())
}

fn timeline_keyspace() -> String {
    format!("tern_chaos_{}_timeline", std::process::id())
}

fn datacenter(database: &Database, region: usize) -> String {
    let all: Vec<&str> = database.replication.split(',').filter_map(|part| Some(part.split_once(':')?.0)).collect();
    all.get(region).or(all.last()).copied().unwrap_or_default().to_owned()
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// First ports of so many free blocks.
fn free_ports(count: usize) -> Result<Vec<u16>, ChaosError> {
    let is_free = |port: u16| TcpListener::bind(at(port)).is_ok() && UdpSocket::bind(at(port)).is_ok();
    // Not where another run of this machine begins to look.
    let shift = u16::try_from(std::process::id() % 500).unwrap_or(0) * 8;
    let bases = (PORTS_FROM + shift..PORTS_TO).step_by(usize::from(PORTS));
    let found: Vec<u16> = bases.filter(|base| (0..PORTS).all(|offset| is_free(base + offset))).take(count).collect();
    if found.len() == count {
        return Ok(found);
    }
    Err(ChaosError::Script(format!("there are not {count} times {PORTS} free ports from {PORTS_FROM} to {PORTS_TO}")))
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// A string of TOML. Paths and names here have no control characters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Whoever runs scripts may have a deployment of his own configured.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(ENV_PREFIX) {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET");
}
