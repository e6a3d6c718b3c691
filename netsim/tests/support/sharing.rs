//! A region of several core nodes with an edge whose router finds its way among them, and a load of messages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs, dead_code)]

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tern_core::edge_api::{CorePort, Down, DownBody, EdgePort, SendRequest, Up};
use tern_core::ids::{ConvId, InstallId, Seq, UserId};
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

pub const MINUTE: Duration = Duration::from_secs(60);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// An edge with a port per core node.
#[derive(Debug)]
pub struct Edge(pub Mutex<Inside>);

#[derive(Debug)]
pub struct Inside {
    pub router: Router,
    pub owners: Owners,
    pub cores: BTreeMap<CoreNo, (String, Arc<dyn CorePort>)>,
    pub next: CoreNo,
    pub acks: BTreeMap<(u64, u32), (Seq, Duration)>,
    pub errors: Vec<String>,
    pub pushed: BTreeMap<u64, Vec<Bytes>>,
    pub welcomed: BTreeSet<u64>,
    pub lasts: Vec<String>,
    pub now: Duration,
}

/// A core node as the edge sees it: what it says comes with its number.
#[derive(Debug)]
pub struct Port(pub CoreNo, pub Arc<Edge>);

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
    pub fn note(&mut self, down: Down) {
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
    pub fn know(&mut self) {
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
    pub fn new(salt: Vec<u8>) -> Arc<Self> {
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
    pub fn act(&self, what: impl FnOnce(&mut Inside)) {
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

    pub fn attach(self: &Arc<Self>, name: &str, core: &tern_replication::region::Region) {
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

    pub fn lose(&self, name: &str) {
        self.act(|inside| {
            let gone: Vec<CoreNo> = inside.cores.iter().filter(|(_, (n, _))| n == name).map(|(no, _)| *no).collect();
            for no in gone {
                inside.cores.remove(&no);
                inside.router.core_down(no);
            }
        });
    }

    pub fn open(&self, conn: u64, user: &str) {
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

    pub fn frame(&self, conn: u64, req: u32, body: Body) {
        let frame = v1::Frame::new(req, body);
        self.act(|inside| inside.router.submit(vec![Up::Frame { conn, frame }]));
    }
}

pub struct Scene {
    pub world: World,
    pub cluster: Cluster,
    pub edge: Arc<Edge>,
    pub names: Vec<String>,
}

pub const USERS: [&str; 6] = ["ada", "ben", "cleo", "dora", "emil", "fay"];

pub fn pair(salt: &[u8], i: usize) -> (ConvId, usize, usize) {
    let (a, b) = (i % USERS.len(), (i + 1 + i / USERS.len()) % USERS.len());
    let id = |n: usize| UserId::new(USERS[n]).unwrap();
    (ConvId::direct(salt, &id(a), &id(b)), a, b)
}

impl Scene {
    pub async fn new(world: World, nodes: u8) -> Self {
        Self::of(world, &[("eu", nodes)]).await
    }

    /// Regions of so many nodes each; the edge is the first one's.
    pub async fn of(world: World, regions: &[(&str, u8)]) -> Self {
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

    pub async fn until(&self, what: &str, done: impl Fn(&Inside) -> bool) {
        let waiting = async {
            while !done(&self.edge.0.lock().unwrap()) {
                sleep(ms(2)).await;
            }
        };
        assert!(timeout(MINUTE, waiting).await.is_ok(), "waited a minute for: {what}\n{:?}", self.shape());
    }

    pub fn shape(&self) -> (usize, Vec<String>, Vec<String>) {
        let inside = self.edge.0.lock().unwrap();
        (inside.router.held(), inside.errors.clone(), inside.lasts.clone())
    }

    pub fn owners(&self) -> BTreeMap<String, usize> {
        let inside = self.edge.0.lock().unwrap();
        let mut count = BTreeMap::new();
        for share in Share::all() {
            *count.entry(inside.owners.of(share).0.unwrap().to_string()).or_default() += 1;
        }
        count
    }

    pub fn owner(&self, slot: Slot) -> String {
        self.edge.0.lock().unwrap().owners.of_slot(slot).unwrap().to_string()
    }
}

/// Each of some conversations says a message every so often, again until it is acked; the longest that it took.
pub struct Load {
    pub salt: Vec<u8>,
    /// Per conversation: the number that is being said, and since when.
    pub saying: Vec<(u32, Duration)>,
    /// Those that say nothing.
    pub silent: BTreeSet<usize>,
    /// (conversation, when it was said first, how long it took).
    pub took: Vec<(usize, Duration, Duration)>,
}

impl Load {
    pub fn new(salt: Vec<u8>) -> Self {
        Self { salt, saying: vec![(0, Duration::ZERO); 12], silent: BTreeSet::new(), took: Vec::new() }
    }

    /// What each conversation says next, for so long.
    pub async fn run(&mut self, scene: &Scene, time: Duration) {
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
    pub async fn check(&self, scene: &Scene) {
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

    pub fn longest_since(&self, since: Duration) -> Duration {
        self.took.iter().filter(|(_, at, took)| *at + *took >= since).map(|(_, _, took)| *took).max().unwrap()
    }
}

pub fn sim<Fut, T>(seed: u64, scenario: impl FnOnce(World) -> Fut + Send + 'static) -> T
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
