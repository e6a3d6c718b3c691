//! A process's part in the gossip: its key, its address, its seeds, and what becomes of the loads it hears.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use prometheus_client::registry::Registry;
use tern_core::ids::Region;
use tern_core::ranking::SILENT_AFTER;
use tern_core::wire::node_v1::{EdgeLoad, Order};
use tern_ipconf::LoadTable;
use tern_replication::gossip::limits::KEYS_MAX;
use tern_replication::gossip::{self, GossipKey, GossipKeys, GossipNode, GossipSetup, LoadSource, Watcher};

use crate::config::gossip::Seed;
use crate::config::scope::Role;
use crate::config::value::HostPort;
use crate::config::{ConfigError, Settings};
use crate::node::Node;
use crate::operations::Operations;
use crate::orders::{Board, Hearer};
use crate::pki::{parse_keys, read_keys_file, receipt_secrets};
use crate::reload::Part;

/// The file that `tern pki` makes for all nodes.
pub const KEY_FILE: &str = "gossip.key";
/// Edges that are remembered as linked to this process; forgotten ones come back with their next report.
const DIRECT_MAX: usize = 4096;
/// A draining edge names so many others: clients try one, and then ask dispatch.
const ALTERNATES: usize = 5;

/// Starts to take part. `load`: what the process's own edge says, if it has one.
pub async fn start(
    node: &Node,
    load: Option<LoadSource>,
    watcher: Arc<dyn Watcher>,
    registry: &mut Registry,
) -> Result<GossipNode> {
    join(node, prepare(node).await?, load, watcher, registry)
}

/// All of a start that can fail for what files and configuration say.
pub async fn prepare(node: &Node) -> Result<GossipSetup> {
    let settings = &node.settings;
    let clusters = clusters(node.role, node.region, settings)?;
    Ok(GossipSetup {
        region: node.region,
        role: match node.role {
            Role::Edge => gossip::Role::Edge,
            Role::Ipconf => gossip::Role::Ipconf,
            Role::Region | Role::Tools => gossip::Role::Region,
        },
        name: node.name.clone(),
        listen: settings.gossip_listen(),
        advertise: advertise(node, clusters.values().flatten()).await?,
        deployment: settings.deployment.clone(),
        keys: keys(settings)?,
        clusters,
    })
}

/// The rest of [`start`].
pub fn join(
    node: &Node,
    setup: GossipSetup,
    load: Option<LoadSource>,
    watcher: Arc<dyn Watcher>,
    registry: &mut Registry,
) -> Result<GossipNode> {
    let gossip = GossipNode::start(&node.env, setup, load, watcher)?;
    gossip.register_metrics(registry);
    Ok(gossip)
}

/// Whether the seeds make sense, before anything is started.
pub fn check(role: Role, settings: &Settings) -> Result<(), ConfigError> {
    clusters(role, settings.region_id.unwrap_or_default(), settings).map(|_clusters| ())
}

/// The regions whose gossip a process takes part in, and where it looks for others.
fn clusters(role: Role, own: Region, settings: &Settings) -> Result<BTreeMap<Region, Vec<gossip::Seed>>, ConfigError> {
    let mut clusters: BTreeMap<Region, Vec<gossip::Seed>> = BTreeMap::new();
    if role != Role::Ipconf {
        clusters.insert(own, Vec::new());
    } else if settings.gossip_seeds.is_empty() {
        return Err(ConfigError(vec![
            "gossip.seeds is empty: give some nodes of each region whose edges are to be listed, such as \
             [\"1@192.0.2.1:7413\", \"2@192.0.2.2:7423\"]"
                .to_owned(),
        ]));
    }
    let of_core = |core: &HostPort| Seed {
        region: None,
        addr: HostPort { host: core.host.clone(), port: core.port.saturating_add(1) },
    };
    let implied: Vec<Seed> = settings.core.iter().map(of_core).collect();
    let seeds = match role {
        Role::Edge if settings.gossip_seeds.is_empty() => &implied,
        _ => &settings.gossip_seeds,
    };
    for seed in seeds {
        let region = seed.region.unwrap_or(own);
        if role != Role::Ipconf && region != own {
            return Err(ConfigError(vec![format!(
                "{}: gossip.seeds lists a node of region {region}; a {} takes part in the gossip of its own region, {own}",
                settings.source("gossip.seeds"),
                role.name(),
            )]));
        }
        let found = gossip::Seed { host: seed.addr.host.clone(), port: seed.addr.port };
        clusters.entry(region).or_default().push(found);
    }
    Ok(clusters)
}

/// The address that others are told.
async fn advertise(node: &Node, seeds: impl Iterator<Item = &gossip::Seed>) -> Result<SocketAddr> {
    let settings = &node.settings;
    let listen = settings.gossip_listen();
    if let Some(set) = settings.gossip_advertise {
        return Ok(set);
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    for seed in seeds {
        let host = HostPort { host: seed.host.clone(), port: seed.port };
        // A seed that can't be found now may be later; another one does as well.
        let Ok(to) = node.resolve(&host).await else { continue };
        let ways = to.into_iter().filter(|to| to.is_ipv4() == listen.is_ipv4());
        if let Some(ip) = ways.into_iter().find_map(towards) {
            return Ok(SocketAddr::new(ip, listen.port()));
        }
    }
    let clients: Option<&SocketAddr> = settings.advertise.iter().find(|at| at.is_ipv4() == listen.is_ipv4());
    let Some(at) = clients else {
        return Err(ConfigError(vec![format!(
            "gossip.advertise is not set: give the address that other nodes reach {listen} (UDP) by, since it takes any"
        )])
        .into());
    };
    Ok(SocketAddr::new(at.ip(), listen.port()))
}

/// The address that this machine has towards another. Nothing is sent.
fn towards(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|at| at.ip()).filter(|ip| !ip.is_unspecified())
}

/// The deployment's gossip keys. Regions can do without a file of them.
fn keys(settings: &Settings) -> Result<GossipKeys> {
    if let Some(set) = set_keys(settings) {
        return set;
    }
    let path = settings.path(&settings.gossip_key_file, KEY_FILE);
    let receipts = receipt_secrets(settings).with_context(|| {
        format!(
            "there is no gossip key: copy {KEY_FILE} from the directory where `tern pki` made the deployment's keys to \
             {}, or set gossip.key_file",
            path.display()
        )
    })?;
    let derived: Option<Vec<GossipKey>> = receipts.iter().map(GossipKey::from_receipt_key).collect();
    // As many as there are receipt keys, which may be more: the newest are those in use.
    let mut derived = derived.context("the gossip key can't be derived from the receipt key")?;
    derived.truncate(KEYS_MAX);
    Ok(GossipKeys::new(derived)?)
}

/// The keys that the configuration has, or the file of them.
pub fn set_keys(settings: &Settings) -> Option<Result<GossipKeys>> {
    let of = |secrets: Vec<[u8; 32]>| GossipKeys::new(secrets.into_iter().map(GossipKey::new).collect());
    if let Some(text) = &settings.gossip_key {
        let parsed = parse_keys(text.reveal()).map_err(|why| anyhow!("gossip.key: {why}"));
        return Some(parsed.and_then(|secrets| of(secrets).context("gossip.key")));
    }
    let path = settings.path(&settings.gossip_key_file, KEY_FILE);
    if settings.gossip_key_file.is_none() && !path.exists() {
        return None;
    }
    let read = read_keys_file(&path, "gossip key");
    Some(read.and_then(|secrets| of(secrets).with_context(|| format!("the gossip key {}", path.display()))))
}

/// What the keys are, for people who compare nodes: numbers that tell nothing of them.
pub fn in_words(keys: &GossipKeys) -> String {
    let prints: Vec<String> = keys.keys().iter().map(GossipKey::fingerprint).collect();
    match &prints[..] {
        [only] => format!("one key, {only}"),
        [first, others @ ..] => format!("{} keys: {first} seals, {} open as well", prints.len(), others.join(", ")),
        [] => "no key".to_owned(),
    }
}

/// Lets keys be replaced while the process runs.
pub fn add_part(operations: &Operations, node: &GossipNode) {
    let handle = node.keys_handle();
    let part = Part::new("gossip keys", &["gossip.key", "gossip.key_file"], move |settings| {
        // A file that is gone for a moment must not bring back the key that the receipt key yields.
        let set = set_keys(settings).unwrap_or_else(|| Err(anyhow!("there is no gossip key any more")));
        let keys = set.map_err(|error| format!("{error:#}"))?;
        tracing::info!(keys = in_words(&keys), "gossip keys");
        handle.set(keys);
        Ok(())
    });
    operations.reload.add(part.with_files(|settings| match settings.gossip_key {
        Some(_) => Vec::new(),
        None => vec![settings.path(&settings.gossip_key_file, KEY_FILE)],
    }));
}

/// Edges that are linked to this process, and when they last said so: what they say themselves is newer than
/// what is gossiped of them.
#[derive(Debug, Default)]
pub struct Direct(Mutex<BTreeMap<String, Duration>>);

impl Direct {
    /// An edge of this region has reported over its link.
    pub fn heard(&self, edge: &str, now: Duration) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() >= DIRECT_MAX {
            heard.retain(|_, at| now.saturating_sub(*at) < SILENT_AFTER);
        }
        heard.insert(edge.to_owned(), now);
    }

    fn is_linked(&self, edge: &str, now: Duration) -> bool {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(edge).is_some_and(|at| now.saturating_sub(*at) < SILENT_AFTER)
    }
}

/// Hands what is gossiped of edges to a load table.
#[derive(Debug)]
pub struct ToTable {
    /// Where to.
    pub loads: Arc<LoadTable>,
    /// Edges that need no gossip.
    pub direct: Arc<Direct>,
    /// Operators' orders, which are told and heard.
    pub board: Arc<Board>,
}

impl Watcher for ToTable {
    fn load(&self, load: &EdgeLoad, now: Duration) {
        if self.direct.is_linked(&load.edge, now) {
            return;
        }
        if let Err(error) = self.loads.report(load, now) {
            tracing::debug!(%error, "a load report was left out");
        }
    }

    fn gone(&self, region: Region, edge: &str, generation: u64) {
        self.loads.remove(region, edge, generation);
    }

    fn orders(&self) -> Vec<Order> {
        self.board.next_for(Hearer::Region)
    }

    fn order(&self, order: &Order) {
        self.board.heard(order);
    }
}

/// Where an edge sends its clients when it drains: the least loaded others of its region.
pub fn alternates(loads: &LoadTable, region: Region, own: &str, now: Duration) -> Vec<String> {
    let mut others: Vec<EdgeLoad> = loads.own_loads(region, now);
    others.retain(|load| !load.draining && load.edge != own && load.connections < load.capacity);
    let fullness = |load: &EdgeLoad| u64::from(load.connections) * 1_000_000 / u64::from(load.capacity.max(1));
    others.sort_by_key(fullness);
    others.into_iter().take(ALTERNATES).flat_map(|load| load.addresses).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn settings(flags: &[(&str, &str)]) -> Settings {
        let flags = flags.iter().map(|(k, v)| (format!("--set {k}"), (*k).to_owned(), (*v).to_owned())).collect();
        Sources { flags, ..Sources::default() }.load().unwrap()
    }

    #[test]
    fn an_edge_looks_beside_its_core_and_an_ipconf_must_be_told() {
        let edge = settings(&[("core", "192.0.2.1:7412,us.example.org:9000")]);
        let seeds = clusters(Role::Edge, 1, &edge).unwrap().remove(&1).unwrap();
        assert_eq!(seeds.iter().map(|s| s.port).collect::<Vec<_>>(), [7413, 9001]);
        let told = settings(&[("core", "192.0.2.1:7412"), ("gossip.seeds", "192.0.2.9:1")]);
        assert_eq!(clusters(Role::Edge, 1, &told).unwrap()[&1][0].host, "192.0.2.9");
        assert_eq!(clusters(Role::Region, 1, &settings(&[])).unwrap()[&1], []);
        let error = clusters(Role::Ipconf, 1, &settings(&[])).unwrap_err().to_string();
        assert!(error.contains("gossip.seeds is empty"), "{error}");
        let two = settings(&[("gossip.seeds", "2@192.0.2.1:7423,3@192.0.2.2:7433,2@192.0.2.3:7423")]);
        let found = clusters(Role::Ipconf, 1, &two).unwrap();
        assert_eq!(found.iter().map(|(region, seeds)| (*region, seeds.len())).collect::<Vec<_>>(), [(2, 2), (3, 1)]);
        let error = clusters(Role::Edge, 1, &two).unwrap_err().to_string();
        assert!(error.contains("of its own region, 1"), "{error}");
    }

    #[test]
    fn the_key_file_and_the_receipt_key_that_it_was_made_from_yield_one_key() {
        let data = tempfile::tempdir().unwrap();
        let at = data.path().to_str().unwrap();
        let none = keys(&settings(&[("data", at)])).unwrap_err();
        assert!(format!("{none:#}").contains("copy gossip.key"), "{none:#}");
        crate::pki::shared_secrets(data.path()).unwrap();
        let made = keys(&settings(&[("data", at)])).unwrap();
        std::fs::remove_file(data.path().join(KEY_FILE)).unwrap();
        assert_eq!(keys(&settings(&[("data", at)])).unwrap(), made);
        assert!(set_keys(&settings(&[("data", at)])).is_none(), "a reload does not fall back to it");
        let other = "ab".repeat(32);
        assert_ne!(keys(&settings(&[("data", at), ("gossip.key", &other)])).unwrap(), made);
        let bad = keys(&settings(&[("data", at), ("gossip.key", "abc")])).unwrap_err().to_string();
        assert!(bad.contains("64 hex digits") && !bad.contains("abc"), "{bad}");
    }

    #[test]
    fn a_file_has_several_keys_in_their_order_and_what_is_wrong_with_it_is_said_without_them() {
        let data = tempfile::tempdir().unwrap();
        let (at, path) = (data.path().to_str().unwrap(), data.path().join(KEY_FILE));
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            keys(&settings(&[("data", at)])).map_err(|error| format!("{error:#}"))
        };
        let (new, old) = ("ab".repeat(32), "cd".repeat(32));
        let both = read(&format!("# since May, for all\n{new}\n\n  {old}\r\n")).unwrap();
        let bytes: Vec<&[u8; 32]> = both.keys().iter().map(GossipKey::reveal).collect();
        assert_eq!(bytes, [&[0xab; 32], &[0xcd; 32]]);
        let listed = settings(&[("data", at), ("gossip.key", &format!("{new},{old}"))]);
        assert_eq!(keys(&listed).unwrap(), both);
        let said = in_words(&both);
        assert!(said.starts_with("2 keys: ") && !said.contains("abab") && !said.contains("cdcd"), "{said}");
        assert_ne!(said, in_words(&read(&format!("{old}\n{new}\n")).unwrap()));
        let five: Vec<String> = (1..=5).map(|n| format!("{n:02x}").repeat(32)).collect();
        for (text, expected) in [
            (String::new(), "64 hex digits"),
            (format!("{new}\n{}", &old[1..]), "line 2 is not 64 hex digits"),
            (format!("{new}\n{new}\n"), "line 2 is there twice"),
            (five.join("\n"), "5 keys, and at most 4"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(expected) && !error.contains("cdcd"), "{text:?}: {error}");
        }
    }

    fn load(edge: &str, connections: u32) -> EdgeLoad {
        EdgeLoad {
            edge: edge.to_owned(),
            region: 1,
            region_name: "eu".to_owned(),
            addresses: vec![format!("192.0.2.1:{}", 7000 + connections)],
            connections,
            capacity: 100,
            generation: 1,
            ..EdgeLoad::default()
        }
    }

    #[test]
    fn a_draining_edge_names_the_least_loaded_others() {
        let loads = LoadTable::new();
        for (edge, connections) in [("own", 0), ("a", 50), ("b", 10), ("full", 100), ("c", 30)] {
            loads.report(&load(edge, connections), Duration::ZERO).unwrap();
        }
        loads.report(&EdgeLoad { draining: true, ..load("leaving", 1) }, Duration::ZERO).unwrap();
        let named = alternates(&loads, 1, "own", Duration::ZERO);
        assert_eq!(named, ["192.0.2.1:7010", "192.0.2.1:7030", "192.0.2.1:7050"]);
    }

    #[test]
    fn a_linked_edge_speaks_for_itself_until_its_link_is_silent() {
        let (loads, direct) = (LoadTable::new(), Arc::new(Direct::default()));
        let board = Board::without_file(&loads);
        let table = ToTable { loads: loads.clone(), direct: direct.clone(), board };
        let at = Duration::from_secs(10);
        direct.heard("a", at);
        table.load(&load("a", 5), at);
        assert!(loads.own_loads(1, at).is_empty());
        let later = at + SILENT_AFTER;
        table.load(&load("a", 5), later);
        assert_eq!(loads.own_loads(1, later)[0].connections, 5);
        table.gone(1, "a", 1);
        assert!(loads.own_loads(1, later).is_empty());
    }
}
