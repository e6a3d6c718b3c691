//! One region that three core nodes share: real core nodes over simulated links, and an edge whose router finds its way
//! among them. Nodes die, are paused, stop in order and join.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tern_core::edge_api::{CorePort, Down, DownBody, EdgePort, SendRequest, Up};
use tern_core::ids::{ConvId, InstallId, Seq, UserId};
use tern_core::leases::{Leases, ShareLease};
use tern_core::owners::Owners;
use tern_core::router::{CoreNo, Router};
use tern_core::slots::{Share, Slot};
use tern_core::store::{Range, Store};
use tern_core::wire::node_v1;
use tern_core::wire::v1::{self, frame::Body};
use tern_netsim::cluster::{Cluster, ClusterOptions, Site};
use tern_netsim::run::run;
use tern_netsim::world::World;
use tokio::time::{sleep, timeout};

const MINUTE: Duration = Duration::from_secs(60);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// An edge with a port per core node.
#[derive(Debug)]
struct Edge(Mutex<Inside>);

#[derive(Debug)]
struct Inside {
    router: Router,
    owners: Owners,
    cores: BTreeMap<CoreNo, (String, Arc<dyn CorePort>)>,
    next: CoreNo,
    acks: BTreeMap<(u64, u32), (Seq, Duration)>,
    errors: Vec<String>,
    pushed: BTreeMap<u64, Vec<Bytes>>,
    welcomed: BTreeSet<u64>,
    lasts: Vec<String>,
    now: Duration,
}

/// A core node as the edge sees it: what it says comes with its number.
#[derive(Debug)]
struct Port(CoreNo, Arc<Edge>);

impl EdgePort for Port {
    fn deliver(&self, downs: Vec<Down>) {
        self.1.act(|inside| {
            for down in &downs {
                inside.router.told(down);
            }
            downs.into_iter().for_each(|down| inside.note(down));
        });
    }

    fn bounced(&self, ups: Vec<Up>) {
        self.1.act(|inside| inside.router.bounced(inside.now, self.0, ups));
    }

    fn owners(&self, told: node_v1::Owners) {
        self.1.act(|inside| {
            inside.owners.told(&told).unwrap();
            inside.know();
        });
    }
}

impl Inside {
    fn note(&mut self, down: Down) {
        match down.body {
            DownBody::Ack { req, ack } => {
                self.acks.entry((down.conn, req)).or_insert((ack.place.seq, self.now));
            }
            DownBody::Push(push) => {
                self.pushed.entry(down.conn).or_default().extend(push.entries.iter().map(|e| e.body.clone()));
            }
            DownBody::Page { page, .. } => {
                self.pushed.entry(down.conn).or_default().extend(page.entries.iter().map(|e| e.body.clone()));
            }
            DownBody::Frame(frame) => match frame.body {
                Some(Body::Welcome(_)) => {
                    self.welcomed.insert(down.conn);
                }
                Some(Body::Error(error)) => self.errors.push(error.message),
                _ => {}
            },
            DownBody::Last(refusal) => self.lasts.push(refusal.to_string()),
        }
    }

    /// What is known of owners, as the router wants it.
    fn know(&mut self) {
        let by_name: BTreeMap<&str, CoreNo> = self.cores.iter().map(|(no, (name, _))| (name.as_str(), *no)).collect();
        let mut known = Vec::new();
        for share in Share::all() {
            if let Some(core) = self.owners.of(share).0.and_then(|name| by_name.get(&**name)) {
                known.extend(share.slots().map(|slot| (slot, *core)));
            }
        }
        self.router.owners(known);
    }
}

impl Edge {
    fn new(salt: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inside {
            router: Router::new(salt),
            owners: Owners::default(),
            cores: BTreeMap::new(),
            next: 1,
            acks: BTreeMap::new(),
            errors: Vec::new(),
            pushed: BTreeMap::new(),
            welcomed: BTreeSet::new(),
            lasts: Vec::new(),
            now: Duration::ZERO,
        })))
    }

    /// Does something, and carries out what the router says.
    fn act(&self, what: impl FnOnce(&mut Inside)) {
        let mut inside = self.0.lock().unwrap();
        what(&mut inside);
        let routed = inside.router.take();
        routed.downs.into_iter().for_each(|down| inside.note(down));
        for (core, ups) in routed.ups {
            if let Some((_, port)) = inside.cores.get(&core) {
                port.submit(ups);
            }
        }
    }

    fn attach(self: &Arc<Self>, name: &str, core: &tern_replication::region::Region) {
        let no = {
            let mut inside = self.0.lock().unwrap();
            inside.next += 1;
            inside.next
        };
        let port = core.attach_edge(Arc::new(Port(no, Arc::clone(self))));
        self.act(|inside| {
            inside.cores.insert(no, (name.to_owned(), port));
            inside.router.core_up(no);
            inside.know();
        });
    }

    fn lose(&self, name: &str) {
        self.act(|inside| {
            let gone: Vec<CoreNo> = inside.cores.iter().filter(|(_, (n, _))| n == name).map(|(no, _)| *no).collect();
            for no in gone {
                inside.cores.remove(&no);
                inside.router.core_down(no);
            }
        });
    }

    fn open(&self, conn: u64, user: &str) {
        let up = Up::Open {
            conn,
            req: 1,
            user: UserId::new(user).unwrap(),
            install: InstallId::new("phone").unwrap(),
            hello: Box::new(v1::Hello { versions: vec![1], ..v1::Hello::default() }),
            address: "192.0.2.1:1".into(),
            transport: "quic",
            token_expires_ms: u64::MAX,
            token_issued_ms: 0,
        };
        self.act(|inside| inside.router.submit(vec![up]));
    }

    fn frame(&self, conn: u64, req: u32, body: Body) {
        let frame = v1::Frame::new(req, body);
        self.act(|inside| inside.router.submit(vec![Up::Frame { conn, frame }]));
    }
}

struct Scene {
    world: World,
    cluster: Cluster,
    edge: Arc<Edge>,
    names: Vec<String>,
}

const USERS: [&str; 6] = ["ada", "ben", "cleo", "dora", "emil", "fay"];

fn pair(salt: &[u8], i: usize) -> (ConvId, usize, usize) {
    let (a, b) = (i % USERS.len(), (i + 1 + i / USERS.len()) % USERS.len());
    let id = |n: usize| UserId::new(USERS[n]).unwrap();
    (ConvId::direct(salt, &id(a), &id(b)), a, b)
}

impl Scene {
    async fn new(world: World, nodes: u8) -> Self {
        Self::of(world, &[("eu", nodes)]).await
    }

    /// Regions of so many nodes each; the edge is the first one's.
    async fn of(world: World, regions: &[(&str, u8)]) -> Self {
        let site = |(i, (name, _)): (usize, &(&str, u8))| {
            let number = i as u8 + 1;
            Site { name: (*name).into(), number, ip: Ipv4Addr::new(10, number, 0, 1), at: (0.0, 0.0) }
        };
        let sites: Vec<Site> = regions.iter().enumerate().map(site).collect();
        let mut cluster = Cluster::new(&world, &sites, ClusterOptions::default()).unwrap();
        let edge = Edge::new(cluster.direct_salt());
        let mut names = Vec::new();
        for (region, nodes) in regions {
            for number in 1..=*nodes {
                names.push(((*region).to_owned(), cluster.add_core(&world, region, number, 1).unwrap()));
            }
        }
        for (region, name) in &names {
            let core = cluster.start_core(name).await.unwrap();
            if region == regions[0].0 {
                edge.attach(name, &core);
            }
        }
        let names = names.into_iter().map(|(_, name)| name).collect();
        let ticking = Arc::clone(&edge);
        let clock = world.clone();
        tokio::task::spawn_local(async move {
            loop {
                ticking.act(|inside| {
                    inside.now = clock.elapsed();
                    let now = inside.now;
                    inside.router.tick(now);
                });
                sleep(ms(5)).await;
            }
        });
        let scene = Self { world, cluster, edge, names };
        scene.until("all shares have an owner", |inside| inside.router.is_whole()).await;
        for (i, user) in USERS.iter().enumerate() {
            scene.edge.open(i as u64, user);
        }
        scene.until("all are welcome", |inside| inside.welcomed.len() == USERS.len()).await;
        for i in 0..USERS.len() {
            scene.edge.frame(i as u64, 0, Body::Commit(v1::Commit { order: 1, ..v1::Commit::default() }));
        }
        scene
    }

    async fn until(&self, what: &str, done: impl Fn(&Inside) -> bool) {
        let waiting = async {
            while !done(&self.edge.0.lock().unwrap()) {
                sleep(ms(2)).await;
            }
        };
        assert!(timeout(MINUTE, waiting).await.is_ok(), "waited a minute for: {what}\n{:?}", self.shape());
    }

    fn shape(&self) -> (usize, Vec<String>, Vec<String>) {
        let inside = self.edge.0.lock().unwrap();
        (inside.router.held(), inside.errors.clone(), inside.lasts.clone())
    }

    fn owners(&self) -> BTreeMap<String, usize> {
        let inside = self.edge.0.lock().unwrap();
        let mut count = BTreeMap::new();
        for share in Share::all() {
            *count.entry(inside.owners.of(share).0.unwrap().to_string()).or_default() += 1;
        }
        count
    }

    fn owner(&self, slot: Slot) -> String {
        self.edge.0.lock().unwrap().owners.of_slot(slot).unwrap().to_string()
    }
}

/// Each of some conversations says a message every so often, again until it is acked; the longest that it took.
struct Load {
    salt: Vec<u8>,
    /// Per conversation: the number that is being said, and since when.
    saying: Vec<(u32, Duration)>,
    /// Those that say nothing.
    silent: BTreeSet<usize>,
    /// (conversation, when it was said first, how long it took).
    took: Vec<(usize, Duration, Duration)>,
}

impl Load {
    fn new(salt: Vec<u8>) -> Self {
        Self { salt, saying: vec![(0, Duration::ZERO); 12], silent: BTreeSet::new(), took: Vec::new() }
    }

    /// What each conversation says next, for so long.
    async fn run(&mut self, scene: &Scene, time: Duration) {
        let end = scene.world.elapsed() + time;
        let mut said_at = vec![Duration::ZERO; self.saying.len()];
        while scene.world.elapsed() < end {
            let now = scene.world.elapsed();
            for (i, said_at) in said_at.iter_mut().enumerate().filter(|(i, _)| !self.silent.contains(i)) {
                let (id, a, b) = pair(&self.salt, i);
                let (n, since) = self.saying[i];
                let conn = a as u64;
                let req = 100_000 * (i as u32 + 1) + n;
                let acked = scene.edge.0.lock().unwrap().acks.contains_key(&(conn, req));
                if n == 0 || acked {
                    if n > 0 {
                        self.took.push((i, since, now - since));
                    }
                    self.saying[i] = (n + 1, now);
                    *said_at = Duration::ZERO;
                }
                let (n, _) = self.saying[i];
                // A client says again what nobody answers, once a quarter of a second.
                if said_at.is_zero() || now - *said_at > ms(250) {
                    *said_at = now;
                    let send = SendRequest {
                        conversation: id,
                        peer: Some(UserId::new(USERS[b]).unwrap()),
                        n: u64::from(n),
                        floor: u64::from(n),
                        seen_hlc: 0,
                        kind: 0,
                        body: Bytes::from(format!("{i} {n}")),
                        wall_ms: 0,
                        offer: None,
                        membership: None,
                        named: None,
                    };
                    let req = 100_000 * (i as u32 + 1) + n;
                    scene.edge.act(|inside| inside.router.submit(vec![Up::Send { conn, req, send }]));
                }
            }
            sleep(ms(20)).await;
        }
    }

    /// All that was acked is in the logs, once and in order, and everybody's row has heard of it.
    async fn check(&self, scene: &Scene) {
        let store = scene.cluster.shared_store("eu").unwrap();
        for i in 0..self.saying.len() {
            let (id, a, b) = pair(&self.salt, i);
            let image = store.conversation(id).await.unwrap();
            assert_eq!(image.heads.len(), 1, "one log, whoever owned it");
            let (origin, head) = image.heads.first_key_value().map(|(o, h)| (*o, *h)).unwrap();
            let range = Range {
                conversation: id,
                origin,
                from: 1,
                to: head,
                max_entries: usize::MAX,
                max_bytes: usize::MAX,
                backwards: false,
            };
            let log = store.range(range).await.unwrap();
            let (n, _) = self.saying[i];
            let numbers: Vec<u64> = log.iter().filter(|e| e.by.user.as_str() == USERS[a]).map(|e| e.by.n).collect();
            let mine: Vec<u64> = numbers
                .iter()
                .copied()
                .filter(|n| log.iter().any(|e| e.by.n == *n && e.body.starts_with(format!("{i} ").as_bytes())))
                .collect();
            assert_eq!(mine.iter().copied().collect::<BTreeSet<_>>().len(), mine.len(), "each once");
            assert!(mine.len() as u64 + 1 >= u64::from(n), "{} of {n} acked messages are there", mine.len());
            assert!(mine.is_sorted());
            for user in [a, b] {
                let rows = store.rows(UserId::new(USERS[user]).unwrap()).await.unwrap();
                let row = rows.into_iter().find(|(conversation, _)| *conversation == id).map(|(_, row)| row.heads);
                assert_eq!(row, Some([(origin, head)].into()), "{} has heard of all", USERS[user]);
            }
        }
        assert_eq!(store.todo().await.unwrap().len(), 0);
        let inside = scene.edge.0.lock().unwrap();
        assert_eq!(inside.lasts, Vec::<String>::new(), "no connection ended");
    }

    fn longest_since(&self, since: Duration) -> Duration {
        self.took.iter().filter(|(_, at, took)| *at + *took >= since).map(|(_, _, took)| *took).max().unwrap()
    }
}

fn sim<Fut, T>(seed: u64, scenario: impl FnOnce(World) -> Fut + Send + 'static) -> T
where
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    run(seed, |world| async move {
        let local = tokio::task::LocalSet::new();
        local.run_until(async move { timeout(MINUTE * 10, scenario(world)).await.expect("too late") }).await
    })
    .unwrap()
}

#[test]
fn three_nodes_share_a_region_alike_and_messages_pass_between_them() {
    sim(1, |world| async move {
        let scene = Scene::new(world, 3).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(scene.owners().into_values().collect::<Vec<_>>(), [86, 85, 85]);
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(10)).await;
        sleep(Duration::from_secs(6)).await;
        load.check(&scene).await;
        assert_eq!(scene.shape().1, Vec::<String>::new(), "nothing was refused");
        assert!(load.longest_since(Duration::ZERO) < ms(200), "{:?}", load.longest_since(Duration::ZERO));
    });
}

#[test]
fn a_killed_node_costs_its_conversations_three_seconds_at_most_and_nothing_that_was_acked() {
    for seed in 0..6 {
        sim(seed, move |world| async move {
            let mut scene = Scene::new(world, 3).await;
            sleep(Duration::from_secs(4)).await;
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(3) + ms(137 * seed)).await;
            let (id, ..) = pair(&load.salt, seed as usize);
            let victim = scene.owner(Slot::of(id));
            let killed = scene.world.elapsed();
            scene.cluster.kill_core(&victim).await.unwrap();
            scene.edge.lose(&victim);
            load.run(&scene, Duration::from_secs(8)).await;
            let longest = load.longest_since(killed);
            assert!(longest <= Duration::from_secs(3), "the next ack came after {longest:?}");
            assert!(longest > ms(500), "the node had nothing to do with it: {longest:?}");
            eprintln!("seed {seed}: the next ack {longest:?} after the kill at the latest");
            // It comes back, and gets its part again.
            let core = scene.cluster.restart_core(&victim).await.unwrap();
            scene.edge.attach(&victim, &core);
            load.run(&scene, Duration::from_secs(12)).await;
            assert_eq!(scene.owners().into_values().collect::<BTreeSet<_>>(), [85, 86].into());
            sleep(Duration::from_secs(35)).await;
            load.check(&scene).await;
        });
    }
}

#[test]
fn a_paused_node_that_goes_on_corrupts_nothing() {
    for seed in 0..4 {
        sim(seed, move |world| async move {
            let scene = Scene::new(world, 3).await;
            sleep(Duration::from_secs(4)).await;
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(3)).await;
            let (id, ..) = pair(&load.salt, seed as usize);
            let victim = scene.owner(Slot::of(id));
            scene.cluster.core_host(&victim).unwrap().set_paused(true);
            load.run(&scene, Duration::from_secs(30)).await;
            assert!(!scene.owners().contains_key(&victim), "its shares are others'");
            scene.cluster.core_host(&victim).unwrap().set_paused(false);
            load.run(&scene, Duration::from_secs(15)).await;
            sleep(Duration::from_secs(35)).await;
            load.check(&scene).await;
        });
    }
}

#[test]
fn a_node_that_stops_in_order_refuses_nothing_and_a_fourth_gets_its_part() {
    sim(7, |world| async move {
        let mut scene = Scene::new(world.clone(), 3).await;
        sleep(Duration::from_secs(4)).await;
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(2)).await;
        let name = scene.cluster.add_core(&world, "eu", 4, 1).unwrap();
        let core = scene.cluster.start_core(&name).await.unwrap();
        scene.edge.attach(&name, &core);
        let before = scene.world.elapsed();
        load.run(&scene, Duration::from_secs(8)).await;
        assert_eq!(scene.owners().into_values().collect::<Vec<_>>(), [64; 4]);
        let longest = load.longest_since(before);
        assert!(longest <= ms(100), "a hand-over took {longest:?}");
        let before = scene.world.elapsed();
        let (stopped, ()) = tokio::join!(core.stop(Duration::from_secs(10)), load.run(&scene, Duration::from_secs(5)));
        assert!(stopped);
        scene.edge.lose(&name);
        load.run(&scene, Duration::from_secs(5)).await;
        assert!(!scene.owners().contains_key(&name));
        assert_eq!(scene.shape().1, Vec::<String>::new(), "nothing was refused");
        let longest = load.longest_since(before);
        assert!(longest <= ms(100), "a hand-over took {longest:?}");
        sleep(Duration::from_secs(35)).await;
        load.check(&scene).await;
    });
}

/// All that the first region holds, the other one holds too, entry for entry.
async fn same(scene: &Scene, load: &Load, other: &str) {
    let (here, there) = (scene.cluster.shared_store("eu").unwrap(), scene.cluster.shared_store(other).unwrap());
    for i in 0..load.saying.len() {
        let (id, ..) = pair(&load.salt, i);
        let (heads, theirs) = (here.conversation(id).await.unwrap().heads, there.conversation(id).await.unwrap().heads);
        assert_eq!(heads, theirs);
        for (origin, head) in heads {
            let range = Range {
                conversation: id,
                origin,
                from: 1,
                to: head,
                max_entries: usize::MAX,
                max_bytes: usize::MAX,
                backwards: false,
            };
            assert_eq!(here.range(range).await.unwrap(), there.range(range).await.unwrap());
        }
    }
    assert_eq!(there.todo().await.unwrap().len(), 0);
}

#[test]
fn two_regions_of_several_nodes_hold_the_same_though_nodes_of_both_die() {
    for seed in 0..3 {
        sim(seed, move |world| async move {
            let mut scene = Scene::of(world.clone(), &[("eu", 3), ("us", 3)]).await;
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(5)).await;
            let killed = scene.names[(seed % 3) as usize].clone();
            scene.cluster.kill_core(&killed).await.unwrap();
            scene.edge.lose(&killed);
            load.run(&scene, Duration::from_secs(5)).await;
            scene.cluster.kill_core(&scene.names[3 + (seed % 3) as usize].clone()).await.unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            let core = scene.cluster.restart_core(&killed).await.unwrap();
            scene.edge.attach(&killed, &core);
            load.run(&scene, Duration::from_secs(5)).await;
            sleep(Duration::from_secs(30)).await;
            load.check(&scene).await;
            same(&scene, &load, "us").await;
        });
    }
}

#[test]
fn a_region_of_several_nodes_that_is_made_later_is_given_all_that_was_said_before() {
    sim(4, |world| async move {
        let mut scene = Scene::of(world.clone(), &[("eu", 2), ("us", 2)]).await;
        // It loses its store, and nobody has anything left to do for it.
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(5)).await;
        sleep(Duration::from_secs(30)).await;
        for name in &scene.names[2..] {
            scene.cluster.kill_core(name).await.unwrap();
        }
        scene.cluster.empty_shared_store("us");
        for name in &scene.names[2..] {
            scene.cluster.restart_core(name).await.unwrap();
        }
        sleep(Duration::from_secs(30)).await;
        same(&scene, &load, "us").await;
        load.run(&scene, Duration::from_secs(5)).await;
        sleep(Duration::from_secs(30)).await;
        load.check(&scene).await;
        same(&scene, &load, "us").await;
    });
}

#[test]
fn a_region_that_core_nodes_hear_of_one_after_the_other_lacks_nothing_in_the_end() {
    for seed in 0..3_usize {
        sim(seed as u64, move |world| async move {
            let mut scene = Scene::of(world.clone(), &[("eu", 3), ("us", 2)]).await;
            let eu: Vec<String> = (0..3).map(|n| scene.names[(seed + n) % 3].clone()).collect();
            let us = scene.names[3..].to_vec();
            let peers = scene.cluster.peers_of("eu").unwrap();
            for name in &us {
                scene.cluster.kill_core(name).await.unwrap();
            }
            scene.cluster.empty_shared_store("us");
            for name in &eu {
                scene.cluster.core_node(name).unwrap().set_peers(Vec::new());
            }
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(5)).await;
            // The first node hears of a region that is new, and what it has gets there.
            for name in &us {
                scene.cluster.restart_core(name).await.unwrap();
            }
            scene.cluster.core_node(&eu[0]).unwrap().set_peers(peers.clone());
            load.run(&scene, Duration::from_secs(10)).await;
            // What is compared there by then, others append to, who have not heard, and it comes back.
            scene.cluster.drain_core(&eu[0], true).unwrap();
            load.run(&scene, Duration::from_secs(6)).await;
            assert!(!scene.owners().contains_key(&eu[0]));
            // What a conversation says later would bring what is missing with it.
            load.silent = (0..12).step_by(2).collect();
            scene.cluster.drain_core(&eu[0], false).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            // Of the others, one gives away what it has and one dies, before they have heard.
            scene.cluster.drain_core(&eu[1], true).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            scene.cluster.kill_core(&eu[2]).await.unwrap();
            scene.edge.lose(&eu[2]);
            load.run(&scene, Duration::from_secs(5)).await;
            assert_eq!(scene.owners().len(), 1, "the first one has it all");
            scene.cluster.drain_core(&eu[1], false).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            scene.cluster.core_node(&eu[1]).unwrap().set_peers(peers.clone());
            load.run(&scene, Duration::from_secs(5)).await;
            sleep(Duration::from_secs(40)).await;
            load.check(&scene).await;
            same(&scene, &load, "us").await;
            let core = scene.cluster.restart_core(&eu[2]).await.unwrap();
            scene.edge.attach(&eu[2], &core);
            load.silent.clear();
            load.run(&scene, Duration::from_secs(5)).await;
            sleep(Duration::from_secs(40)).await;
            load.check(&scene).await;
            same(&scene, &load, "us").await;
        });
    }
}

/// Every owner that the shares have had since, by what the store says every few milliseconds.
fn watch_owners(scene: &Scene) -> Arc<Mutex<BTreeSet<String>>> {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let (store, noted) = (scene.cluster.shared_store("eu").unwrap().clone(), Arc::clone(&seen));
    tokio::task::spawn_local(async move {
        loop {
            let shares = store.shares().await.unwrap();
            noted.lock().unwrap().extend(shares.into_iter().map(|share| share.node));
            sleep(ms(2)).await;
        }
    });
    seen
}

#[test]
fn a_drained_node_that_starts_again_takes_nothing_until_it_may() {
    for seed in 0..3_usize {
        sim(seed as u64, move |world| async move {
            let mut scene = Scene::new(world, 3).await;
            sleep(Duration::from_secs(5)).await;
            let name = scene.names[seed].clone();
            let mut load = Load::new(scene.cluster.direct_salt());
            load.run(&scene, Duration::from_secs(2)).await;
            scene.cluster.drain_core(&name, true).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            assert!(!scene.owners().contains_key(&name));
            scene.cluster.stop_core(&name, Duration::from_secs(5)).await.unwrap();
            scene.edge.lose(&name);
            let seen = watch_owners(&scene);
            let core = scene.cluster.restart_core(&name).await.unwrap();
            scene.edge.attach(&name, &core);
            load.run(&scene, Duration::from_secs(8)).await;
            assert!(!seen.lock().unwrap().contains(&name), "{:?}", seen.lock().unwrap());
            scene.cluster.drain_core(&name, false).unwrap();
            load.run(&scene, Duration::from_secs(5)).await;
            assert_eq!(scene.owners().len(), 3);
            sleep(Duration::from_secs(6)).await;
            load.check(&scene).await;
        });
    }
}

#[test]
fn a_node_that_is_killed_while_it_is_drained_gives_on_what_it_had_without_taking_it() {
    sim(5, |world| async move {
        let mut scene = Scene::new(world, 3).await;
        sleep(Duration::from_secs(5)).await;
        let name = scene.names[1].clone();
        let mut load = Load::new(scene.cluster.direct_salt());
        load.run(&scene, Duration::from_secs(2)).await;
        // The order is on its disk, and was not carried out yet. It is back before the others take it for dead.
        scene.cluster.kill_core(&name).await.unwrap();
        scene.edge.lose(&name);
        scene.cluster.drain_core(&name, true).unwrap();
        let epochs = |shares: Vec<ShareLease>| shares.into_iter().map(|share| (share.share, share)).collect();
        let store = scene.cluster.shared_store("eu").unwrap().clone();
        let before: BTreeMap<Share, ShareLease> = epochs(store.shares().await.unwrap());
        let core = scene.cluster.restart_core(&name).await.unwrap();
        scene.edge.attach(&name, &core);
        load.run(&scene, Duration::from_secs(5)).await;
        let after: BTreeMap<Share, ShareLease> = epochs(store.shares().await.unwrap());
        let left: Vec<Share> = before.values().filter(|lease| lease.node == name).map(|lease| lease.share).collect();
        assert_eq!(left.len(), 85);
        for share in left {
            let (was, is) = (&before[&share], &after[&share]);
            assert!(is.node != name && is.epoch == was.epoch + 1, "it changed hands once: {was:?}, {is:?}");
        }
        sleep(Duration::from_secs(6)).await;
        load.check(&scene).await;
    });
}

#[test]
fn a_second_process_of_one_name_is_refused() {
    sim(3, |world| async move {
        let mut scene = Scene::new(world.clone(), 2).await;
        let error = scene.cluster.start_core_as(&world, "eu", 9, &scene.names[0].clone()).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("another process serves this region under the name"), "{text}");
        sleep(Duration::from_secs(3)).await;
        assert_eq!(scene.owners().len(), 2, "whoever had the name has its shares");
    });
}
