//! The regions and edges of a plan: `tern` processes, each in its host.
//!
//! It is the release binary that runs, started as an operator starts it: keys by `tern pki`, tokens by `tern token`, a
//! configuration file each. A node says that it serves by a line of JSON on its standard output; its log goes to a file
//! beside the history.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;

use tern_netsim_scenario::Plan;
use tern_netsim_tun::{Lab, Process};

use super::error::RealError;
use super::topology::{NodePlan, nodes};
use super::{Heard, Said};
use crate::cluster::{AUDIENCE, CLIENT_PORT, DISPATCH_PORT, NODE_PORT};

/// Bytes of a node's log that are shown when it does not serve.
const LOG_TAIL: usize = 2000;
/// Begins the environment variables that `tern` reads; a node is configured by its file alone.
const ENV_PREFIX: &str = "TERN_";
/// Node ports' successor: gossip of the nodes of a region.
const GOSSIP_PORT: u16 = NODE_PORT + 1;

/// See the module.
#[derive(Debug)]
pub struct Deployment {
    tern: PathBuf,
    keys: PathBuf,
    logs: PathBuf,
    nodes: BTreeMap<String, Node>,
    heard: Sender<Heard>,
}

#[derive(Debug)]
struct Node {
    plan: NodePlan,
    data: PathBuf,
    arguments: Vec<String>,
    process: Option<Process>,
    /// Counts starts, so that what is heard of an earlier one is not taken for the present one's.
    start: u64,
}

/// The program: as named, or beside this one.
pub fn find_tern(named: Option<&Path>) -> Result<PathBuf, RealError> {
    let beside = || Ok(std::env::current_exe()?.with_file_name("tern"));
    let looked = match named {
        Some(path) => std::path::absolute(path),
        None => beside(),
    };
    let looked = looked.map_err(RealError::io("looking for tern"))?;
    if looked.is_file() { Ok(looked) } else { Err(RealError::NoTern { looked }) }
}

impl Deployment {
    /// Makes keys and configurations; starts nothing.
    pub fn prepare(
        tern: PathBuf,
        plan: &Plan,
        lab: &Lab,
        logs: &Path,
        heard: Sender<Heard>,
    ) -> Result<Self, RealError> {
        let keys = lab.directory().join("keys");
        fs::create_dir_all(logs).map_err(RealError::io(format!("making {}", logs.display())))?;
        let mut deployment = Self { tern, keys, logs: logs.to_owned(), nodes: BTreeMap::new(), heard };
        let all = nodes(plan);
        for node in &all {
            let region = &plan.regions[node.region].name;
            let address = node.address.to_string();
            deployment.ask(&["pki", "--node", &node.own_name, "--region", region, "--address", &address])?;
        }
        for node in &all {
            let data = lab.directory().join(&node.own_name);
            fs::create_dir_all(&data).map_err(RealError::io("making a node's directory"))?;
            let config = data.with_extension("toml");
            let text = deployment.config(plan, &all, node, &data);
            fs::write(&config, text).map_err(RealError::io("writing a configuration"))?;
            let role = if node.edge == 1 { "region" } else { "edge" };
            let mut arguments = vec![role.to_owned(), "--json".to_owned(), "--config".to_owned()];
            arguments.push(config.display().to_string());
            if node.edge == 1 {
                arguments.push("--init".to_owned());
            }
            let node = Node { plan: node.clone(), data, arguments, process: None, start: 0 };
            deployment.nodes.insert(node.plan.name.clone(), node);
        }
        Ok(deployment)
    }

    /// A token for a user, good for longer than any run.
    pub fn token(&self, user: &str) -> Result<String, RealError> {
        let said = self.ask(&["token", "--user", user, "--audience", AUDIENCE, "--ttl", "24h"])?;
        Ok(said.trim().to_owned())
    }

    /// What clients pin.
    pub fn roots(&self) -> PathBuf {
        self.keys.join("pki").join("public-ca.pem")
    }

    /// The salt of direct conversations.
    pub fn direct_salt(&self) -> Result<Vec<u8>, RealError> {
        let path = self.keys.join("direct.salt");
        let text = fs::read_to_string(&path).map_err(RealError::io("reading the salt of direct conversations"))?;
        let digits = text.trim();
        let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok());
        bytes.collect::<Option<_>>().ok_or_else(|| RealError::Name(format!("{} is not hexadecimal", path.display())))
    }

    /// Starts a node. That it serves is heard later.
    pub fn start(&mut self, lab: &Lab, name: &str) -> Result<(), RealError> {
        let log_path = self.log_path(name);
        let tern = self.tern.clone();
        let heard = self.heard.clone();
        let node = self.node(name)?;
        node.start += 1;
        let log = OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(RealError::io("opening a node's log"))?;
        let mut command = Command::new(tern);
        command.args(&node.arguments).args(["--set", "log.json=false"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        clean(&mut command);
        let mut process = lab.spawn(name, command)?;
        let (_, output, _) = process.pipes();
        node.process = Some(process);
        let (who, start) = (name.to_owned(), node.start);
        let read = move || {
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines().map_while(Result::ok));
            for line in lines {
                let ready =
                    serde_json::from_str::<serde_json::Value>(&line).is_ok_and(|line| line.get("ready").is_some());
                if ready && heard.send(Heard { who: who.clone(), start, said: Said::Serves }).is_err() {
                    return;
                }
            }
            // Nobody listens only when the run is over.
            let _over = heard.send(Heard { who, start, said: Said::Ended });
        };
        thread::Builder::new()
            .name(format!("{name} output"))
            .spawn(read)
            .map_err(RealError::io("starting a thread"))?;
        Ok(())
    }

    /// Whether what was heard is of the present start of a node that has not been ended.
    pub fn is_present(&self, name: &str, start: u64) -> bool {
        self.nodes.get(name).is_some_and(|node| node.start == start && node.process.is_some())
    }

    /// Kills a node. Nothing happens where it is down.
    pub fn kill(&mut self, name: &str) -> Result<(), RealError> {
        if let Some(mut process) = self.node(name)?.process.take() {
            process.kill().map_err(RealError::io(format!("killing {name}")))?;
        }
        Ok(())
    }

    /// Asks a node to drain and end. That it did is heard later.
    pub fn terminate(&mut self, name: &str) -> Result<(), RealError> {
        self.signal(name, Process::terminate)
    }

    /// Lets a node stand still, or go on.
    pub fn pause(&mut self, name: &str, paused: bool) -> Result<(), RealError> {
        self.signal(name, if paused { Process::pause } else { Process::resume })
    }

    /// Loses everything that a node has stored. It must be down.
    pub fn destroy(&mut self, name: &str) -> Result<(), RealError> {
        let data = self.node(name)?.data.clone();
        let emptied = fs::remove_dir_all(&data).and_then(|()| fs::create_dir_all(&data));
        emptied.map_err(RealError::io(format!("emptying the disk of {name}")))
    }

    /// Of a node that does not serve.
    pub fn not_ready(&self, name: &str) -> RealError {
        let log = fs::read(self.log_path(name)).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL)..];
        RealError::NotReady { node: name.to_owned(), said: String::from_utf8_lossy(tail).trim().to_owned() }
    }

    fn signal(
        &mut self,
        name: &str,
        signal: impl FnOnce(&mut Process) -> std::io::Result<()>,
    ) -> Result<(), RealError> {
        match self.node(name)?.process.as_mut() {
            Some(process) => signal(process).map_err(RealError::io(format!("signalling {name}"))),
            None => Ok(()),
        }
    }

    fn node(&mut self, name: &str) -> Result<&mut Node, RealError> {
        self.nodes.get_mut(name).ok_or_else(|| RealError::Name(format!("there is no node {name}")))
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Runs a command that ends by itself, and returns what it prints.
    fn ask(&self, arguments: &[&str]) -> Result<String, RealError> {
        let mut command = Command::new(&self.tern);
        command.args(arguments).arg("--data").arg(&self.keys).stdin(Stdio::null());
        clean(&mut command);
        let output = command.output().map_err(RealError::io(format!("running {}", self.tern.display())))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(RealError::Tern { command: arguments.join(" "), said });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn config(&self, plan: &Plan, all: &[NodePlan], node: &NodePlan, data: &Path) -> String {
        let region = &plan.regions[node.region];
        let path = |path: &Path| toml_text(&path.display().to_string());
        let key = |file: &str| path(&self.keys.join(file));
        let own = |end: &str| key(&format!("pki/{}.{end}", node.own_name));
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let mut out = String::new();
        let mut line = |key: &str, value: String| {
            // Text takes whatever is written.
            let _infallible = writeln!(out, "{key} = {value}");
        };
        let address = node.address;
        line("data", path(data));
        line("deployment", toml_text(AUDIENCE));
        line("name", toml_text(&node.own_name));
        line("failure_domain", toml_text(&node.own_name));
        line("advertise", list(vec![toml_text(&format!("{address}:{CLIENT_PORT}"))]));
        line("region.id", region.number.to_string());
        line("region.name", toml_text(&region.name));
        line("region.at", toml_text(&format!("{},{}", region.at.0, region.at.1)));
        line("listen.ip", toml_text(&address.to_string()));
        line("listen.client", CLIENT_PORT.to_string());
        line("listen.admin", toml_text(&format!("127.0.0.1:{GOSSIP_PORT}")));
        line("listen.gossip", toml_text(&format!("{address}:{GOSSIP_PORT}")));
        line("tls.public_cert", own("public.pem"));
        line("tls.public_key", own("public.key"));
        line("tls.node_cert", own("node.pem"));
        line("tls.node_key", own("node.key"));
        line("tls.node_ca", key("pki/node-ca.pem"));
        line("tokens.file", key("tokens.jwk"));
        line("gossip.key_file", key("gossip.key"));
        let neighbours = all.iter().filter(|other| other.region == node.region && other.edge != node.edge);
        line(
            "gossip.seeds",
            list(neighbours.map(|one| toml_text(&format!("{}:{GOSSIP_PORT}", one.address))).collect()),
        );
        line("heartbeat.foreground", toml_text(&format!("{}ms", plan.options.heartbeat_ns / 1_000_000)));
        if node.edge == 1 {
            let peers = all.iter().filter(|other| other.edge == 1 && other.region != node.region).map(|other| {
                let region = &plan.regions[other.region];
                toml_text(&format!("{}:{}@{}:{NODE_PORT}", region.number, region.name, other.address))
            });
            line("peers", list(peers.collect()));
            line("reoffer_after", toml_text(&format!("{}ms", plan.options.reoffer_after_ns / 1_000_000)));
            line("listen.dispatch", DISPATCH_PORT.to_string());
            line("listen.node", NODE_PORT.to_string());
            line("receipt.key_file", key("receipt.key"));
            line("direct.salt_file", key("direct.salt"));
        } else {
            let core = all.iter().find(|other| other.region == node.region && other.edge == 1);
            line(
                "core",
                list(core.map(|core| toml_text(&format!("{}:{NODE_PORT}", core.address))).into_iter().collect()),
            );
        }
        out
    }
}

/// A string of TOML. Paths and names of scenarios have no control characters.
fn toml_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Whoever runs scenarios may have a deployment of his own configured.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(ENV_PREFIX) {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET");
}
