//! The servers that these tests are given by `replication/redis/check`.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tern_net::secured::Secured;
use tern_net::system::{SystemClock, system_env};
use tern_net::tls::Trust;
use tern_redis::{Options, RedisRoutes};

/// Servers, and how to command them.
#[derive(Clone, Debug)]
pub struct Place {
    pub nodes: Vec<(String, u16)>,
    pub prefix: String,
}

static PLACES: AtomicU64 = AtomicU64::new(0);

impl Place {
    /// A table of its own. `None`: there are no servers, so the test is skipped; `check` is what runs it.
    pub fn new() -> Option<Self> {
        let Ok(nodes) = std::env::var("TERN_REDIS_NODES") else {
            eprintln!("skipped: no servers; replication/redis/check starts some");
            return None;
        };
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("tern:test:{}:{number}", std::process::id());
        Some(Self { nodes: nodes.split(',').map(address).collect(), prefix })
    }

    pub fn is_cluster(&self) -> bool {
        self.nodes.len() > 1
    }

    /// Three masters with a replica each, instead of masters alone.
    pub fn has_replicas(&self) -> bool {
        self.nodes.len() == 6
    }

    pub fn options(&self, node: &str) -> Options {
        Options { tls: tls_dir().map(|dir| trusting(&dir.join("ca.pem"))), ..self.plain(node) }
    }

    /// Without TLS, whatever the servers speak.
    pub fn plain(&self, node: &str) -> Options {
        Options::new(self.nodes.clone(), &self.prefix, node)
    }

    /// Server N, which may be one that is not of this place.
    pub fn at(&self, server: usize) -> (String, u16) {
        let net = self.nodes[0].0.rsplit_once('.').unwrap().0;
        (format!("{net}.{server}"), 6379)
    }

    pub fn routes(&self, node: &str) -> RedisRoutes {
        RedisRoutes::new(self.options(node), system_env().unwrap())
    }

    /// Numbers of the servers, as `servers` counts them.
    pub fn numbers(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.nodes.len()
    }

    /// Removes all keys of this table, and no other.
    pub fn lose(&self) {
        let script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end";
        for server in self.numbers() {
            cli(server, &["EVAL", script, "0", &format!("{}:*", self.prefix)]);
        }
    }
}

/// With what the servers show, if they speak TLS.
pub fn tls_dir() -> Option<PathBuf> {
    std::env::var_os("TERN_REDIS_TLS").map(PathBuf::from)
}

/// Streams to servers whose certificates are of the authorities in a file.
pub fn trusting(ca: &std::path::Path) -> Secured {
    let trust = Trust::new(&std::fs::read(ca).unwrap()).unwrap();
    Secured::new(trust, None, None, Arc::new(SystemClock)).unwrap()
}

fn address(text: &str) -> (String, u16) {
    let (host, port) = text.rsplit_once(':').unwrap();
    (host.to_owned(), port.parse().unwrap())
}

/// Runs a command of `replication/redis/servers`; what it prints.
pub fn servers(arguments: &[&str]) -> String {
    said(script().args(arguments))
}

/// The command itself, for more to be set about it.
pub fn script() -> Command {
    Command::new(std::env::var_os("TERN_REDIS_SERVERS").expect("replication/redis/check sets it"))
}

/// What it prints; it must succeed.
pub fn said(command: &mut Command) -> String {
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{command:?}: {said}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// A command for one server.
pub fn cli(server: usize, arguments: &[&str]) -> String {
    let server = server.to_string();
    let said = servers(&[&["cli", &server][..], arguments].concat());
    assert!(!said.starts_with("ERR ") && !said.starts_with("(error)"), "{arguments:?}: {said}");
    said
}
