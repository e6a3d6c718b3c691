//! A deployment on one machine: which regions, which processes, which ports, and the files each one reads.
//! `dev` and `demo` run it with [`crate::fleet`].
//!
//! Region numbers belong to places, not to positions in a list, so that `--regions ap,eu` finds the stores
//! that `--regions eu,us,ap` has made.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::config::value::{Position, show_duration};
use crate::pki::{self, Pki};

/// Ports of one region's block: client, dispatch, node, admin, then two for each further edge.
const PORTS_PER_REGION: u16 = 10;
/// Edges of a region besides its own: what the block has ports for.
pub const EXTRA_EDGES: usize = 3;
/// Where ports start unless told otherwise.
pub const BASE_PORT: u16 = 7400;

/// A place that a region can be at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Site {
    /// Region number.
    pub id: u8,
    /// Region name.
    pub name: &'static str,
    /// For people.
    pub city: &'static str,
    /// For ranking.
    pub at: Position,
}

const fn site(id: u8, name: &'static str, city: &'static str, latitude: f64, longitude: f64) -> Site {
    Site { id, name, city, at: Position { latitude, longitude } }
}

/// All places that `--regions` knows.
pub const SITES: &[Site] = &[
    site(1, "eu", "Frankfurt", 50.11, 8.68),
    site(2, "us", "Ashburn", 39.04, -77.49),
    site(3, "ap", "Singapore", 1.35, 103.82),
    site(4, "sa", "Sao Paulo", -23.55, -46.63),
    site(5, "af", "Johannesburg", -26.20, 28.05),
    site(6, "in", "Mumbai", 19.08, 72.88),
    site(7, "jp", "Tokyo", 35.68, 139.69),
    site(8, "au", "Sydney", -33.87, 151.21),
];

/// One region and its edges.
#[derive(Clone, Debug)]
pub struct RegionPlan {
    /// Where.
    pub site: Site,
    /// Names of its edges; the first is part of the region's process.
    pub edges: Vec<String>,
}

/// One process to run.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its node's name.
    pub name: String,
    /// Its region's.
    pub region: &'static str,
    /// Arguments of the binary.
    pub arguments: Vec<String>,
}

/// What a client on this machine needs to find the deployment; `endpoints.json` in the data directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoints {
    /// Audience of tokens.
    pub deployment: String,
    /// What clients pin.
    pub public_ca: PathBuf,
    /// HTTPS of dispatch, by region.
    pub dispatch: Vec<(String, SocketAddr)>,
}

impl Endpoints {
    /// Reads the file that `dev` and `demo` write.
    pub fn read(data: &Path) -> Result<Self> {
        let path = data.join("endpoints.json");
        let text = fs::read_to_string(&path).with_context(|| {
            format!("can't read {}; --data must be the directory of a `tern dev` or `tern demo --keep`", path.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} is not what `tern dev` writes", path.display()))
    }
}

/// The plan of a deployment on loopback.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Everything lies below it.
    pub data: PathBuf,
    /// Ports of region `id` start at this + 10 x id.
    pub base_port: u16,
    /// Audience of tokens.
    pub deployment: String,
    /// See the configuration key.
    pub reoffer_after: Duration,
    /// An MMDB instead of the built-in one.
    pub geoip: Option<PathBuf>,
    /// The regions, in the order asked for.
    pub regions: Vec<RegionPlan>,
    /// Name of a dispatch as a process of its own, beside the regions.
    pub dispatch: Option<String>,
}

impl Cluster {
    /// Plans regions by name, each with its own edge.
    pub fn plan(data: PathBuf, names: &[String], base_port: u16) -> Result<Self> {
        let mut regions: Vec<RegionPlan> = Vec::new();
        for name in names {
            let Some(site) = SITES.iter().find(|s| s.name == name) else {
                let known: Vec<&str> = SITES.iter().map(|s| s.name).collect();
                bail!("no region {name:?} is known; there are {}", known.join(", "));
            };
            if regions.iter().any(|r| r.site == *site) {
                bail!("region {name:?} is listed twice");
            }
            regions.push(RegionPlan { site: *site, edges: vec![format!("{name}-e1")] });
        }
        if regions.is_empty() {
            bail!("no regions: give at least one, such as --regions eu,us,ap");
        }
        let highest = regions.iter().map(|r| u16::from(r.site.id)).max().unwrap_or(0);
        if base_port.checked_add(PORTS_PER_REGION * (highest + 1)).is_none() {
            bail!("--base-port {base_port} leaves no room for the regions' ports below 65536");
        }
        Ok(Self {
            data,
            base_port,
            deployment: "tern-dev".into(),
            reoffer_after: tern_core::limits::REOFFER_AFTER,
            geoip: None,
            regions,
            dispatch: None,
        })
    }

    /// Adds edges that are processes of their own to a region of the plan; at most [`EXTRA_EDGES`].
    pub fn add_edges(&mut self, region: &str, count: usize) {
        if let Some(plan) = self.regions.iter_mut().find(|r| r.site.name == region) {
            for _ in 0..count.min(EXTRA_EDGES) {
                plan.edges.push(format!("{region}-e{}", plan.edges.len() + 1));
            }
        }
    }

    fn port(&self, site: Site, offset: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base_port + PORTS_PER_REGION * u16::from(site.id) + offset).into()
    }

    /// Client and admin addresses of an edge, by its index in its region. Its gossip has the admin port's number:
    /// one is UDP, the other TCP.
    fn edge_ports(&self, site: Site, index: usize) -> (SocketAddr, SocketAddr) {
        match u16::try_from(index).unwrap_or(0) {
            0 => (self.port(site, 0), self.port(site, 3)),
            index => (self.port(site, 2 + 2 * index), self.port(site, 3 + 2 * index)),
        }
    }

    fn ports(&self) -> impl Iterator<Item = SocketAddr> {
        let beside = self.dispatch.iter().flat_map(|_| [self.beside(1), self.beside(3)]);
        let of_regions = self.regions.iter().flat_map(move |region| {
            let edges = region.edges.iter().enumerate().flat_map(move |(i, _)| {
                let (client, admin) = self.edge_ports(region.site, i);
                [client, admin]
            });
            [self.port(region.site, 1), self.port(region.site, 2)].into_iter().chain(edges)
        });
        of_regions.chain(beside)
    }

    /// Ports of what belongs to no region: the block of region 0, which does not exist.
    fn beside(&self, offset: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base_port + offset).into()
    }

    /// The first port that another process has, if any.
    pub fn port_in_use(&self) -> Option<SocketAddr> {
        self.ports().find(|at| TcpListener::bind(at).is_err() || UdpSocket::bind(at).is_err())
    }

    /// Moves the plan to free ports.
    pub fn find_ports(&mut self) -> Result<()> {
        while let Some(used) = self.port_in_use() {
            let next = self.base_port.checked_add(100).filter(|base| *base < 32_000);
            self.base_port =
                next.with_context(|| format!("found no free ports from {BASE_PORT} on; {used} is in use"))?;
        }
        Ok(())
    }

    /// How clients on this machine find the deployment.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            deployment: self.deployment.clone(),
            public_ca: self.data.join("pki").join("public-ca.pem"),
            dispatch: self
                .regions
                .iter()
                .map(|r| (r.site.name.to_owned(), self.port(r.site, 1)))
                .chain(self.dispatch.iter().map(|name| (name.clone(), self.beside(1))))
                .collect(),
        }
    }

    /// Writes keys, certificates and one configuration file a process, and returns the processes to start,
    /// regions before their further edges.
    pub fn write(&self) -> Result<Vec<Process>> {
        pki::shared_secrets(&self.data)?;
        let pki = Pki::open(&self.data)?;
        let mut processes = Vec::new();
        for plan in &self.regions {
            for (index, name) in plan.edges.iter().enumerate() {
                let leaf = pki.leaf(name, plan.site.name, &[])?;
                let own = self.data.join(name);
                fs::create_dir_all(&own).with_context(|| format!("can't make {}", own.display()))?;
                let config = own.join("tern.toml");
                let text = self.config(plan, index, name, &leaf, &pki);
                fs::write(&config, text).with_context(|| format!("can't write {}", config.display()))?;
                let role = if index == 0 { "region" } else { "edge" };
                let mut arguments = vec![role.to_owned(), "--config".to_owned(), config.display().to_string()];
                if index == 0 {
                    arguments.push("--init".to_owned());
                }
                processes.push(Process { name: name.clone(), region: plan.site.name, arguments });
            }
        }
        if let Some(name) = &self.dispatch {
            processes.push(self.write_dispatch(name, &pki)?);
        }
        // Regions first: an edge of its own serves only once it has found its core.
        processes.sort_by_key(|p| p.arguments[0] != "region");
        let path = self.data.join("endpoints.json");
        fs::write(&path, serde_json::to_string_pretty(&self.endpoints())? + "\n")
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(processes)
    }

    /// The dispatch that is a process of its own learns of all edges by gossip with any node of their region.
    fn write_dispatch(&self, name: &str, pki: &Pki) -> Result<Process> {
        let first = self.regions.first().context("there are no regions")?;
        let leaf = pki.leaf(name, first.site.name, &[])?;
        let own = self.data.join(name);
        fs::create_dir_all(&own).with_context(|| format!("can't make {}", own.display()))?;
        let text = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
        let nodes = self.regions.iter().flat_map(|region| {
            let id = region.site.id;
            (0..region.edges.len()).map(move |index| format!("\"{id}@{}\"", self.edge_ports(region.site, index).1))
        });
        let seeds: Vec<String> = nodes.collect();
        let config = format!(
            "# Written anew at every start.\ndata = {}\ndeployment = {}\nname = \"{name}\"\n\n\
             [region]\nid = {}\nname = \"{}\"\nat = \"{},{}\"\n\n\
             [listen]\nip = \"127.0.0.1\"\ndispatch = {}\nadmin = \"{}\"\ngossip = \"{}\"\n\n\
             [tls]\npublic_cert = {}\npublic_key = {}\nnode_cert = {}\nnode_key = {}\nnode_ca = {}\n\n\
             [gossip]\nkey_file = {}\nseeds = [{}]\n",
            text(&own),
            toml::Value::String(self.deployment.clone()),
            first.site.id,
            first.site.name,
            first.site.at.latitude,
            first.site.at.longitude,
            self.beside(1).port(),
            self.beside(3),
            self.beside(3),
            text(&leaf.public_cert),
            text(&leaf.public_key),
            text(&leaf.node_cert),
            text(&leaf.node_key),
            text(&pki.node_ca()),
            text(&self.data.join("gossip.key")),
            seeds.join(", "),
        );
        let path = own.join("tern.toml");
        fs::write(&path, config).with_context(|| format!("can't write {}", path.display()))?;
        let arguments = vec!["ipconf".to_owned(), "--config".to_owned(), path.display().to_string()];
        Ok(Process { name: name.to_owned(), region: first.site.name, arguments })
    }

    fn config(&self, plan: &RegionPlan, index: usize, name: &str, leaf: &pki::Leaf, pki: &Pki) -> String {
        let site = plan.site;
        let (client, admin) = self.edge_ports(site, index);
        let text = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
        let shared = |file: &str| text(&self.data.join(file));
        let mut out = String::from("# Written anew at every start.\n");
        let mut line = |text: String| {
            let _infallible = writeln!(out, "{text}");
        };
        line(format!("data = {}", text(&self.data.join(name))));
        line(format!("deployment = {}", toml::Value::String(self.deployment.clone())));
        line(format!("name = \"{name}\""));
        line(format!("reoffer_after = \"{}\"", show_duration(self.reoffer_after)));
        line(format!("failure_domain = \"{name}\""));
        if index == 0 {
            let peers: Vec<String> = self
                .regions
                .iter()
                .filter(|r| r.site != site)
                .map(|r| format!("\"{}:{}@{}\"", r.site.id, r.site.name, self.port(r.site, 2)))
                .collect();
            line(format!("peers = [{}]", peers.join(", ")));
        } else {
            line(format!("core = [\"{}\"]", self.port(site, 2)));
        }
        line(format!(
            "\n[region]\nid = {}\nname = \"{}\"\nat = \"{},{}\"",
            site.id, site.name, site.at.latitude, site.at.longitude
        ));
        line(format!(
            "\n[listen]\nip = \"{}\"\nclient = {}\nadmin = \"{admin}\"\ngossip = \"{admin}\"",
            client.ip(),
            client.port()
        ));
        if index == 0 {
            line(format!("dispatch = {}\nnode = {}", self.port(site, 1).port(), self.port(site, 2).port()));
        }
        line(format!(
            "\n[tls]\npublic_cert = {}\npublic_key = {}\nnode_cert = {}\nnode_key = {}\nnode_ca = {}",
            text(&leaf.public_cert),
            text(&leaf.public_key),
            text(&leaf.node_cert),
            text(&leaf.node_key),
            text(&pki.node_ca())
        ));
        line(format!("\n[tokens]\nfile = {}", shared("tokens.jwk")));
        let others = (0..plan.edges.len()).filter(|other| *other != index);
        let seeds: Vec<String> = others.map(|other| format!("\"{}\"", self.edge_ports(site, other).1)).collect();
        line(format!("\n[gossip]\nkey_file = {}\nseeds = [{}]", shared("gossip.key"), seeds.join(", ")));
        if index == 0 {
            line(format!("\n[receipt]\nkey_file = {}", shared("receipt.key")));
            line(format!("\n[direct]\nsalt_file = {}", shared("direct.salt")));
            if let Some(geoip) = &self.geoip {
                line(format!("\n[dispatch]\ngeoip = {}", text(geoip)));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn every_process_gets_a_valid_configuration_and_ports_of_its_own() {
        let data = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::plan(data.path().to_owned(), &names(&["eu", "us", "ap"]), 7400).unwrap();
        cluster.add_edges("eu", 2);
        cluster.dispatch = Some("d1".into());
        let processes = cluster.write().unwrap();
        let started: Vec<&str> = processes.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(started, ["eu-e1", "us-e1", "ap-e1", "eu-e2", "eu-e3", "d1"]);
        let mut listened = Vec::new();
        for process in &processes {
            let sources = Sources { file: Some(process.arguments[2].clone().into()), ..Sources::default() };
            let settings = sources.load().unwrap();
            assert_eq!(settings.node_name().unwrap(), process.name);
            if process.arguments[0] == "ipconf" {
                listened.extend([settings.dispatch_listen(), settings.admin_listen()]);
                assert_eq!(settings.gossip_seeds.len(), 5);
                continue;
            }
            listened.extend([settings.client_listen(), settings.admin_listen()]);
            if process.arguments[0] == "region" {
                listened.extend([settings.dispatch_listen(), settings.node_listen()]);
                assert_eq!(settings.peers.len(), 2);
            } else {
                assert_eq!(settings.core[0].to_string(), "127.0.0.1:7412");
            }
        }
        let mut planned: Vec<SocketAddr> = cluster.ports().collect();
        listened.sort();
        planned.sort();
        assert_eq!(listened, planned);
        listened.dedup();
        assert_eq!(listened, planned, "no port is used twice");
        assert_eq!(Endpoints::read(data.path()).unwrap().dispatch[1].1.to_string(), "127.0.0.1:7421");
        assert_eq!(Endpoints::read(data.path()).unwrap().dispatch[3], ("d1".into(), "127.0.0.1:7401".parse().unwrap()));
    }

    #[test]
    fn unknown_and_doubled_regions_are_refused() {
        let plan = |list: &[&str], port| Cluster::plan("x".into(), &names(list), port).map_err(|e| e.to_string());
        assert!(plan(&["eu", "mars"], 7400).unwrap_err().contains("there are eu, us, ap"));
        assert!(plan(&["eu", "eu"], 7400).unwrap_err().contains("twice"));
        assert!(plan(&[], 7400).unwrap_err().contains("at least one"));
        assert!(plan(&["eu"], 65_530).unwrap_err().contains("no room"));
    }

    #[test]
    fn ports_in_use_are_found_and_left_alone() {
        let mut cluster = Cluster::plan("x".into(), &names(&["eu"]), 21_400).unwrap();
        cluster.find_ports().unwrap();
        let taken = TcpListener::bind(cluster.port(cluster.regions[0].site, 2)).unwrap();
        assert_eq!(cluster.port_in_use(), Some(taken.local_addr().unwrap()));
        let before = cluster.base_port;
        cluster.find_ports().unwrap();
        assert!(cluster.base_port > before);
    }
}
