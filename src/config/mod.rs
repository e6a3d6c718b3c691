//! One typed configuration: a TOML file, over it the environment, over that flags.
//!
//! [`keys`] lists every key with its type, default and description; [`source`] reads the three places;
//! [`value`] says what a value can be, [`scope`] whom a key concerns and when a change of it counts; [`show`] and
//! [`reference`](mod@reference) print what `tern config` prints.
//!
//! Unknown keys are errors wherever they stand, and name the nearest valid one: a misspelled limit that is
//! silently ignored is found in an incident. All problems are told at once. Each value remembers where it
//! came from.

pub mod database;
pub mod gossip;
pub mod keys;
pub mod origin;
pub mod reference;
pub mod routes;
pub mod scope;
pub mod show;
pub mod source;
pub mod value;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use database::StoreKind;
pub use keys::{KEYS, Settings};
use source::Layers;
use tern_core::wire::NODE_VERSION;
use tern_core::wire::versions::OLDEST;

/// Clients' port of region 0; each region's block of ten follows.
const BASE_PORT: u16 = 7400;
/// Ports of a region's block.
const PORTS_PER_REGION: u16 = 10;
/// Longest name of a region or node, in bytes: it is a label of a DNS name and a column of every table.
const NAME_BYTES: usize = 32;

/// What is wrong with a configuration: everything that was found, one problem a line.
#[derive(Debug, thiserror::Error)]
#[error("the configuration is not valid; nothing was started:\n  {}", .0.join("\n  "))]
pub struct ConfigError(pub Vec<String>);

/// Where to look for configuration.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// (flag as written, key, value).
    pub flags: Vec<(String, String, String)>,
    /// Environment variables; those without the prefix are ignored.
    pub environment: Vec<(String, String)>,
}

impl Sources {
    /// Reads, merges and checks.
    pub fn load(&self) -> Result<Settings, ConfigError> {
        let names: Vec<&'static str> = KEYS.iter().map(|k| k.name).collect();
        let mut layers = Layers::new();
        let mut problems = Vec::new();
        if let Some(path) = &self.file {
            match std::fs::read_to_string(path) {
                Ok(text) => source::file(path, &text, &names, &mut layers, &mut problems),
                Err(error) => problems.push(format!(
                    "{}: can't be read ({error}); give an existing file to --config, or make one with \
                     `tern config default`",
                    path.display()
                )),
            }
        }
        source::environment(self.environment.iter().cloned(), &names, &mut layers, &mut problems);
        source::flags(&self.flags, &names, &mut layers, &mut problems);
        let settings = Settings::build(&layers, &mut problems);
        if let Some(settings) = &settings {
            settings.check(&mut problems);
        }
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(ConfigError(problems)),
        }
    }
}

impl Settings {
    /// What types alone can't say.
    fn check(&self, problems: &mut Vec<String>) {
        let mut problem = |key: &str, what: &str| problems.push(format!("{}: {key} {what}", self.source(key)));
        for (key, name) in [("region.name", &self.region_name), ("name", &self.name)] {
            if name.as_ref().is_some_and(|n| !is_name(n)) {
                problem(key, "must be 1 to 32 characters of a-z, 0-9 and \"-\": it becomes part of a host name");
            }
        }
        for peer in &self.peers {
            if peer.region == 0 || !is_name(&peer.name) {
                problem(
                    "peers",
                    &format!("lists region {} named {:?}; see region.id and region.name", peer.region, peer.name),
                );
            } else if Some(peer.region) == self.region_id {
                problem("peers", &format!("lists region {}, which is this one", peer.region));
            } else if self.peers.iter().any(|p| (p.region == peer.region) != (p.name == peer.name)) {
                problem("peers", &format!("gives region {} or the name {} twice", peer.region, peer.name));
            } else if self.peers.iter().filter(|p| *p == peer).count() > 1 {
                problem("peers", &format!("lists {} of region {} twice", peer.addr, peer.name));
            }
        }
        if self.deployment.is_empty() {
            problem("deployment", "is empty; tokens need an audience");
        }
        if self.store_kind == StoreKind::Scylla {
            if self.store_nodes.is_empty() {
                problem("store.nodes", "is not set, and store.kind is \"scylla\": give some nodes of the database");
            }
            if self.store_datacenter.is_none() {
                problem("store.datacenter", "is not set, and store.kind is \"scylla\": give that of this region");
            }
            if self.store_user.is_some() != self.store_password.is_some() {
                problem("store.user", "and store.password belong together, and one of them is not set");
            }
        }
        if self.store_tier_key.is_some() != self.store_tier_secret.is_some() {
            problem("store.tier.key", "and store.tier.secret belong together, and one of them is not set");
        }
        let endpoint = self.store_tier_endpoint.as_deref();
        if endpoint.is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
            problem("store.tier.endpoint", "is no URL: write it as \"https://s3.example.com\"");
        }
        if self.region_shared {
            if self.store_kind != StoreKind::Scylla {
                problem(
                    "region.shared",
                    "is true, and store.kind is \"embedded\": a disk has one process; use \"scylla\"",
                );
            }
            if self.region_advertise.is_none() && self.listen_ip.is_unspecified() {
                problem("region.advertise", "is not set, and listen.ip is no address that others could reach: set one");
            }
        }
        self.check_routes(&mut problem);
        match self.nodes_oldest_version {
            OLDEST..=NODE_VERSION => {}
            ..OLDEST => problem("nodes.oldest_version", &format!("is below what this program links with, {OLDEST}")),
            _ => problem(
                "nodes.oldest_version",
                &format!("is above what this program speaks, {NODE_VERSION}: start a newer program, or lower it"),
            ),
        }
        if self.heartbeat_background_min > self.heartbeat_background_max {
            problem("heartbeat.background_min", "is above heartbeat.background_max");
        }
    }

    /// The region's id; an operator's error where it is not set.
    pub fn region_id(&self) -> Result<u8, ConfigError> {
        self.region_id.ok_or_else(|| required("region.id", "the region's number, such as 1"))
    }

    /// The region's name, likewise.
    pub fn region_name(&self) -> Result<&str, ConfigError> {
        self.region_name.as_deref().ok_or_else(|| required("region.name", "the region's short name, such as \"eu\""))
    }

    /// The region's place, likewise.
    pub fn region_at(&self) -> Result<value::Position, ConfigError> {
        self.region_at.ok_or_else(|| required("region.at", "its latitude and longitude, such as \"50.11,8.68\""))
    }

    /// The node's name.
    pub fn node_name(&self) -> Result<String, ConfigError> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => Ok(format!("{}-e1", self.region_name()?)),
        }
    }

    /// What all keys of the region's table of routes begin with.
    pub fn routes_key_prefix(&self) -> String {
        match &self.routes_prefix {
            Some(prefix) => prefix.clone(),
            None => format!("tern:{}:{}", self.deployment, self.region_name.as_deref().unwrap_or_default()),
        }
    }

    fn client_port(&self) -> u16 {
        let region = u16::from(self.region_id.unwrap_or_default());
        self.listen_client.unwrap_or(BASE_PORT + PORTS_PER_REGION * region)
    }

    fn port_after(&self, set: Option<u16>, offset: u16) -> u16 {
        // Port 0 asks the system for any port, and so do those derived from it.
        set.unwrap_or(match self.client_port() {
            0 => 0,
            port => port.saturating_add(offset),
        })
    }

    /// Where clients are served.
    pub fn client_listen(&self) -> SocketAddr {
        SocketAddr::new(self.listen_ip, self.client_port())
    }

    /// Where dispatch is served.
    pub fn dispatch_listen(&self) -> SocketAddr {
        SocketAddr::new(self.listen_ip, self.port_after(self.listen_dispatch, 1))
    }

    /// Where other nodes are served.
    pub fn node_listen(&self) -> SocketAddr {
        SocketAddr::new(self.listen_ip, self.port_after(self.listen_node, 2))
    }

    /// Where metrics and health are served.
    pub fn admin_listen(&self) -> SocketAddr {
        self.listen_admin.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port_after(None, 3)))
    }

    /// What clients are told; an operator's error where it can't be known.
    pub fn advertised(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        if !self.advertise.is_empty() {
            return Ok(self.advertise.clone());
        }
        let listen = self.client_listen();
        if listen.ip().is_unspecified() {
            return Err(required(
                "advertise",
                "the addresses that clients reach this edge by, such as [\"192.0.2.1:7410\"], since listen.ip takes any",
            ));
        }
        Ok(vec![listen])
    }

    /// What fails together with this edge.
    pub fn failure_domain(&self) -> Result<String, ConfigError> {
        match &self.failure_domain {
            Some(domain) => Ok(domain.clone()),
            None => Ok(self.region_name()?.to_owned()),
        }
    }

    /// A path of the `<data>` directory, unless the key sets another.
    pub fn path(&self, set: &Option<PathBuf>, below_data: impl AsRef<Path>) -> PathBuf {
        set.clone().unwrap_or_else(|| self.data.join(below_data))
    }
}

fn required(key: &str, what: &str) -> ConfigError {
    ConfigError(vec![format!(
        "{key} is not set: give {what}, in the file, by {} or with --set {key}=...",
        source::env_name(key)
    )])
}

/// Whether it can be a label of a host name.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests;
