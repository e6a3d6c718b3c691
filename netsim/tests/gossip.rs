//! Gossip over simulated links: loss, a partition, a restart, and what dispatch makes of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tern_core::clock::Entropy;
use tern_core::wire::node_v1::EdgeLoad;
use tern_ipconf::api::DispatchRequest;
use tern_ipconf::{Dispatch, DispatchConfig, DispatchMetrics, Geo, LoadTable};
use tern_netsim::node::SimNode;
use tern_netsim::random::derive;
use tern_netsim::run::run;
use tern_netsim::world::World;
use tern_replication::gossip::{
    GossipKey, GossipKeys, GossipNode, GossipSetup, LoadSource, Member, MemberState, Role, Seed, Watcher,
};
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const PORT: u16 = 7413;
/// Probe, its period, time to object, and the news: the LAN profile says about seven seconds.
const DEAD_WITHIN: Duration = Duration::from_secs(12);

/// What dispatch does with it.
#[derive(Debug)]
struct ToTable(Arc<LoadTable>);

impl Watcher for ToTable {
    fn load(&self, load: &EdgeLoad, now: Duration) {
        self.0.report(load, now).unwrap();
    }

    fn gone(&self, region: u8, edge: &str, generation: u64) {
        self.0.remove(region, edge, generation);
    }
}

/// A host with a node of the gossip.
struct Node {
    name: String,
    number: u8,
    role: Role,
    host: SimNode,
    loads: Arc<LoadTable>,
    gossip: Option<GossipNode>,
    starts: u64,
    connections: Arc<AtomicU32>,
    keys: GossipKeys,
}

/// Keys, the first of which seals.
fn keys(numbers: &[u8]) -> GossipKeys {
    GossipKeys::new(numbers.iter().map(|number| GossipKey::new([*number; 32])).collect()).unwrap()
}

impl Node {
    fn add(world: &World, number: u8, role: Role, group: &str) -> Self {
        let name = format!("{}{number:02}", role.name());
        let host = world.add_host(&name, group, Ipv4Addr::new(10, 1, 0, number)).unwrap();
        let connections = Arc::default();
        Self {
            name,
            number,
            role,
            host,
            loads: LoadTable::new(),
            gossip: None,
            starts: 0,
            connections,
            keys: keys(&[7]),
        }
    }

    /// Starts it with these seeds, which it knows by name.
    fn start(&mut self, clusters: &[(u8, &[&str])]) {
        let env = self.host.env();
        self.loads = LoadTable::new();
        self.starts += 1;
        let (name, number, generation) = (self.name.clone(), self.number, self.starts);
        let connections = self.connections.clone();
        let load = move || EdgeLoad {
            edge: name.clone(),
            region: 1,
            region_name: "eu".to_owned(),
            addresses: vec![format!("192.0.2.{number}:7410")],
            connections: connections.load(Ordering::SeqCst),
            capacity: 1000,
            generation,
            failure_domain: name.clone(),
            ..EdgeLoad::default()
        };
        let seeds =
            |names: &[&str]| names.iter().map(|name| Seed { host: (*name).to_owned(), port: PORT }).collect::<Vec<_>>();
        let setup = GossipSetup {
            region: 1,
            role: self.role,
            name: self.name.clone(),
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
            advertise: SocketAddr::new(self.host.ip(), PORT),
            deployment: "sim".to_owned(),
            keys: self.keys.clone(),
            clusters: clusters.iter().map(|(region, names)| (*region, seeds(names))).collect(),
        };
        let source: Option<LoadSource> = (self.role != Role::Ipconf).then(|| Arc::new(load) as LoadSource);
        let watcher = Arc::new(ToTable(self.loads.clone()));
        self.gossip = Some(GossipNode::start(&env, setup, source, watcher).unwrap());
    }

    /// As if its file had changed.
    fn set_keys(&mut self, numbers: &[u8]) {
        self.keys = keys(numbers);
        self.gossip.as_ref().unwrap().keys_handle().set(self.keys.clone());
    }

    fn members(&self) -> Vec<Member> {
        self.gossip.as_ref().unwrap().members().remove(&1).unwrap_or_default()
    }

    fn alive(&self) -> Vec<String> {
        let alive = self.members().into_iter().filter(|m| m.state != MemberState::Down);
        alive.map(|m| m.id.name.to_string()).collect()
    }

    /// Names of the edges it would list.
    fn listed(&self) -> Vec<String> {
        let now = self.host.env().clock.now();
        self.loads.own_loads(1, now).into_iter().map(|load| load.edge).collect()
    }

    fn dropped(&self) -> BTreeMap<String, u64> {
        let counters = self.gossip.as_ref().unwrap().counters().remove(&1).unwrap_or_default();
        assert_eq!((counters.internal, counters.bad_records), (0, 0), "{}", self.name);
        counters.dropped.into_iter().map(|(why, count)| (why.name().to_owned(), count)).collect()
    }
}

/// Loses a share of all packets between groups, within them too.
fn lose(world: &World, groups: &[&str], permille: u64) {
    for (number, from) in groups.iter().enumerate() {
        for to in groups {
            let rng = Entropy::seeded(derive(world.seed(), to, number as u64));
            let filter = (permille > 0).then(|| Box::new(move |_: &_| rng.below(1000) < permille) as _);
            world.set_filter(from, to, filter);
        }
    }
}

/// Waits until it holds, and says after how long.
async fn until(world: &World, what: &str, within: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = world.elapsed();
    while !holds() {
        assert!(world.elapsed() - begun < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.elapsed() - begun
}

fn sim<Fut, T>(seed: u64, scenario: impl FnOnce(World) -> Fut + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    run(seed, |world| async move { timeout(MINUTE * 20, scenario(world)).await.expect("too late") }).unwrap()
}

/// Twenty nodes in two halves, all seen by all.
async fn twenty(world: &World) -> Vec<Node> {
    let mut nodes: Vec<Node> = (1..=20)
        .map(|number| {
            let role = if number == 1 { Role::Region } else { Role::Edge };
            Node::add(world, number, role, if number <= 10 { "left" } else { "right" })
        })
        .collect();
    world.set_latency("left", "right", Duration::from_millis(2));
    for node in &mut nodes {
        node.start(&[(1, &["region01", "edge11"])]);
    }
    until(world, "20 see 20", SECOND * 20, || nodes.iter().all(|node| node.alive().len() == 20)).await;
    nodes
}

#[test]
fn twenty_nodes_know_each_other_through_loss_a_partition_and_its_end() {
    sim(11, |world| async move {
        let nodes = twenty(&world).await;
        let halves = ["left", "right"];

        // What it costs: 20 nodes that each say their load once a second.
        tokio::time::sleep(SECOND * 10).await;
        let sent = || -> (u64, u64) {
            let counters = nodes.iter().map(|node| node.gossip.as_ref().unwrap().counters()[&1].clone());
            counters.fold((0, 0), |(datagrams, bytes), c| (datagrams + c.sent, bytes + c.sent_bytes))
        };
        let before = sent();
        tokio::time::sleep(MINUTE).await;
        let after = sent();
        let per_node = |total: u64| total / 60 / 20;
        let (datagrams, bytes) = (per_node(after.0 - before.0), per_node(after.1 - before.1));
        println!("each of 20 nodes sends {datagrams} datagrams and {bytes} bytes a second");
        assert!(datagrams < 40 && bytes < 40_000, "{datagrams} datagrams, {bytes} bytes");

        lose(&world, &halves, 200);
        let (mut looks, mut seen) = (0, 0);
        for _ in 0..60 {
            tokio::time::sleep(SECOND).await;
            looks += 20 * 20;
            seen += nodes.iter().map(|node| node.alive().len()).sum::<usize>();
        }
        assert!(
            seen * 100 >= looks * 99,
            "with a fifth of all packets lost, {seen} of {looks} looks saw a living node"
        );
        // Loads get through as well: three seconds of silence are what takes an edge off the list.
        let listed = nodes[0].listed().len();
        assert!(listed >= 18, "{listed} of 19 other edges are listed");

        world.cut("left", "right");
        until(&world, "each half sees itself alone", SECOND * 30, || nodes.iter().all(|node| node.alive().len() == 10))
            .await;
        assert!(nodes[0].listed().len() <= 9);
        tokio::time::sleep(MINUTE * 3).await;

        world.heal("left", "right");
        let took = until(&world, "20 see 20 again", MINUTE, || nodes.iter().all(|node| node.alive().len() == 20)).await;
        lose(&world, &halves, 0);
        until(&world, "all are listed", SECOND * 10, || nodes[0].listed().len() == 19).await;
        for node in &nodes {
            let dropped = node.dropped();
            assert!(!dropped.contains_key("forged") && !dropped.contains_key("malformed"), "{dropped:?}");
        }
        println!("whole again {took:?} after the partition's end");
    });
}

#[test]
fn a_killed_edge_leaves_the_answer_of_dispatch_and_a_restarted_one_is_back_in_it() {
    sim(12, |world| async move {
        let mut region = Node::add(&world, 1, Role::Region, "eu");
        let mut edges: Vec<Node> = (2..=4).map(|number| Node::add(&world, number, Role::Edge, "eu")).collect();
        // Dispatch on another continent, and of no region that has edges.
        let mut ipconf = Node::add(&world, 9, Role::Ipconf, "far");
        world.set_latency("eu", "far", Duration::from_millis(120));
        region.start(&[(1, &[])]);
        edges.iter_mut().for_each(|edge| edge.start(&[(1, &["region01"])]));
        ipconf.start(&[(1, &["region01", "edge02"]), (2, &["nowhere"])]);
        let metrics = DispatchMetrics::register(&mut Registry::default());
        let geo = Arc::new(Geo::shipped().unwrap());
        let config = DispatchConfig::new(9, "far");
        let dispatch = Dispatch::new(ipconf.host.env(), config, geo, ipconf.loads.clone(), metrics);
        let client: IpAddr = "91.0.0.1".parse().unwrap();
        let answered = || -> Vec<String> {
            let answer = dispatch.decide(&DispatchRequest::default(), client);
            let mut ids: Vec<String> =
                answer.map_or_else(|_| Vec::new(), |a| a.edges.into_iter().map(|e| e.id).collect());
            ids.sort();
            ids
        };
        until(&world, "all four are in the answer", SECOND * 15, || answered().len() == 4).await;

        edges[0].host.kill().await;
        edges[0].gossip = None;
        let unlisted =
            until(&world, "the killed one is not", DEAD_WITHIN, || !answered().contains(&"edge02".into())).await;
        // Its silence of three seconds is noticed first, its death later; by both it stays out.
        assert!(unlisted <= SECOND * 5, "{unlisted:?}");
        until(&world, "its death is known", DEAD_WITHIN, || !ipconf.alive().contains(&"edge02".into())).await;
        assert_eq!(answered(), ["edge03", "edge04", "region01"]);

        // Dispatch learns of edges from the living, whoever its seed was.
        region.host.kill().await;
        region.gossip = None;
        until(&world, "two are left", DEAD_WITHIN, || answered() == ["edge03", "edge04"]).await;
        edges[1].connections.store(900, Ordering::SeqCst);
        until(&world, "news still come", SECOND * 3, || {
            let now = ipconf.host.env().clock.now();
            ipconf.loads.own_loads(1, now).iter().any(|load| load.connections == 900)
        })
        .await;

        edges[0].host.restart();
        edges[0].start(&[(1, &["region01", "edge03"])]);
        until(&world, "the restarted one is back", SECOND * 10, || answered().contains(&"edge02".into())).await;

        // One that leaves is out before it would be silent.
        edges[2].gossip.as_ref().unwrap().leave().await;
        let left =
            until(&world, "the one that left is out", SECOND * 3, || !answered().contains(&"edge04".into())).await;
        assert!(left <= SECOND, "{left:?}");
    });
}

#[test]
fn an_ipconf_follows_the_regions_that_it_lists_and_each_sees_its_own_nodes_alone() {
    sim(13, |world| async move {
        let mut here = Node::add(&world, 1, Role::Region, "eu");
        let mut ipconf = Node::add(&world, 9, Role::Ipconf, "far");
        here.start(&[(1, &[])]);
        ipconf.start(&[(1, &["region01"]), (2, &["region01"])]);
        until(&world, "they see each other", SECOND * 10, || here.alive() == ["ipconf09", "region01"]).await;
        tokio::time::sleep(SECOND * 20).await;
        // Region 2 asks a node that takes no part in it, which counts that and answers nothing.
        assert!(here.dropped()["region"] > 5);
        assert_eq!(ipconf.gossip.as_ref().unwrap().members()[&2].len(), 1);
    });
}

/// The three steps of docs/OPERATIONS.md, one node after the other, with one packet of fifty lost, an ipconf far away,
/// and an edge that is restarted in the middle. (With one of ten lost a node is now and then taken for dead for a
/// moment, whatever its key.)
#[test]
fn a_rolling_rotation_of_the_key_declares_nobody_down_and_loses_no_load() {
    sim(14, |world| async move {
        let mut nodes: Vec<Node> = (1..=6)
            .map(|number| match number {
                1 => Node::add(&world, number, Role::Region, "eu"),
                6 => Node::add(&world, number, Role::Ipconf, "far"),
                _ => Node::add(&world, number, Role::Edge, "eu"),
            })
            .collect();
        world.set_latency("eu", "far", Duration::from_millis(120));
        for node in &mut nodes {
            node.start(&[(1, &["region01", "edge02"])]);
        }
        until(&world, "6 see 6", SECOND * 20, || nodes.iter().all(|node| node.alive().len() == 6)).await;
        lose(&world, &["eu", "far"], 20);
        for step in [&[7, 9][..], &[9, 7], &[9]] {
            for at in 0..nodes.len() {
                nodes[at].set_keys(step);
                if step == [9, 7] && at == 3 {
                    // Its next start reads what its file says now.
                    nodes[3].gossip.as_ref().unwrap().leave().await;
                    nodes[3].gossip = None;
                    nodes[3].start(&[(1, &["region01"])]);
                    until(&world, "it is back", SECOND * 10, || nodes.iter().all(|node| node.alive().len() == 6)).await;
                }
                for _ in 0..5 {
                    tokio::time::sleep(SECOND).await;
                    for node in &nodes {
                        assert_eq!(node.alive().len(), 6, "{} after {step:?} at {}", node.name, nodes[at].name);
                    }
                }
            }
            let listed = nodes[5].listed().len();
            assert!(listed >= 4, "the ipconf lists {listed} of 5 after {step:?}");
        }
        lose(&world, &["eu", "far"], 0);
        until(&world, "all are listed", SECOND * 10, || nodes[5].listed().len() == 5).await;
        for node in &nodes {
            let counters = node.gossip.as_ref().unwrap().counters()[&1].clone();
            // The edge that left in order is the only one that anybody missed.
            assert!(counters.downs <= 1 && counters.returned == 0, "{}: {counters:?}", node.name);
            assert_eq!(node.dropped().get("key"), None, "{}", node.name);
        }
        // The old key is of no use to anyone now.
        nodes[4].set_keys(&[7]);
        until(&world, "who goes back is left alone", DEAD_WITHIN, || nodes[0].alive().len() == 5).await;
    });
}

#[test]
fn gossip_of_a_child() {
    let Some(seed) = support::child_seed() else { return };
    let (shape, packets) = sim(seed, |world| async move {
        let mut nodes = twenty(&world).await;
        lose(&world, &["left", "right"], 100);
        tokio::time::sleep(SECOND * 5).await;
        nodes[4].host.kill().await;
        nodes[4].gossip = None;
        tokio::time::sleep(SECOND * 10).await;
        nodes[4].host.restart();
        nodes[4].start(&[(1, &["region01"])]);
        world.cut("left", "right");
        tokio::time::sleep(SECOND * 15).await;
        world.heal("left", "right");
        tokio::time::sleep(SECOND * 15).await;
        (world.shape(), world.packets())
    });
    support::report(shape, &packets);
}

#[test]
fn gossip_of_twenty_nodes_repeats_packet_by_packet() {
    support::run_twice("gossip_of_a_child", 5, Duration::from_secs(300));
}
