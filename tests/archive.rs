//! Old messages in an archive, as operators and clients meet them: real processes, a directory or a bucket.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// Processes run in real time, and so do their tests.
#![allow(clippy::disallowed_methods)]

#[path = "support/database.rs"]
mod database;
#[path = "support/program.rs"]
mod program;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::Value;
use tern::cluster::{Cluster, Endpoints};
use tern::demo::person::{client_config, tokens};
use tern::fleet::{Fleet, Ready};
use tern_client::Client;
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Identity, InstallId, Origin, Place, UserId};
use tern_core::sequencer::LogState;
use tern_core::store::{Append, Appended, Durability, Put, Store, Target, Todo};
use tern_replication::store::{EmbeddedStore, Options};

const EU: Origin = Origin { region: 1, era: 1 };
/// More than a bucket of 4,096, less than two.
const MESSAGES: u64 = 5_000;
const PATIENCE: Duration = Duration::from_secs(90);

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// Messages of half a year ago, a second apart.
fn entry(seq: u64) -> Arc<Entry> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let at_ms = (now - 180 * 24 * 3_600 + seq) * 1_000;
    Arc::new(Entry {
        peer: Some(user("bob")),
        wall_ms: at_ms,
        ..Entry::text(
            Place { hlc: at_ms << 16, origin: EU, seq },
            Identity { user: user("alice"), install: InstallId::new("phone").unwrap(), n: seq },
            format!("message {seq}"),
        )
    })
}

/// Fills a store with a long conversation of alice and bob, whose rows are still to be made.
async fn fill(store: &dyn Store, salt: &Path) {
    let hex = fs::read_to_string(salt).unwrap();
    let hex = hex.trim();
    let salt: Vec<u8> = (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect();
    let conversation = ConvId::direct(&salt, &user("alice"), &user("bob"));
    let epoch = Put::Meta { key: "epoch".into(), value: Bytes::copy_from_slice(&1u64.to_be_bytes()) };
    store.put(vec![epoch], Durability::Synced).await.unwrap();
    let mut state = LogState::new(conversation);
    let all: Vec<Arc<Entry>> = (1..=MESSAGES).map(entry).collect();
    for part in all.chunks(500) {
        let todo = vec![Todo { target: Target::Fanout, conversation, prefix: [(EU, 0)].into(), user: None }];
        let append = Append { conversation, origin: EU, epoch: 1, entries: part.to_vec(), todo };
        assert_eq!(store.append(vec![append]).await, [Appended::Decided]);
        for entry in part {
            state.apply(entry.clone());
        }
    }
    let checkpoint = Put::Checkpoint { conversation, value: state.checkpoint() };
    store.put(vec![checkpoint], Durability::Synced).await.unwrap();
}

async fn fill_database(settings: &[String], salt: &Path) {
    let value = |key: &str| {
        let start = format!("{key}=");
        settings.iter().find_map(|word| word.strip_prefix(&start)).unwrap().to_owned()
    };
    let nodes = value("store.nodes").split(',').map(str::to_owned).collect();
    let (keyspace, timeline) = (value("store.keyspace"), value("store.timeline_keyspace"));
    let options = tern_scylla::Options::new(nodes, &value("store.datacenter"), &keyspace, &timeline);
    let cluster = tern_scylla::Cluster::connect(options).await.unwrap();
    let env = tern_net::system::system_env().unwrap();
    let store = tern_scylla::ScyllaStore::new(cluster, env.clock.clone(), &env.rng);
    fill(&store, salt).await;
    store.close().await.unwrap();
}

fn tern(config: &Path, arguments: &[String]) -> Output {
    program::tern().arg("--config").arg(config).arg("store").args(arguments).output().unwrap()
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn said(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|_| panic!("{text} {}", String::from_utf8_lossy(&output.stderr)))
}

/// A region on loopback, and where its archive is.
struct World {
    dir: tempfile::TempDir,
    cluster: Cluster,
    fleet: Fleet,
    arguments: Vec<String>,
    tier: Vec<String>,
}

impl World {
    /// An archive that is not there is told before anything is served: there is a directory, but it is another one.
    async fn is_refused_without(&mut self, place: &Path) {
        fs::create_dir(place).unwrap();
        let arguments: Vec<String> = self.arguments.iter().chain(&self.tier).cloned().collect();
        let refused = self.fleet.start("eu-e1", &arguments).await.unwrap_err().to_string();
        let log = format!("{refused} {}", self.fleet.log_tail("eu-e1"));
        assert!(log.contains("store.tier.url") && log.contains("mount its disk"), "{log}");
    }

    fn plan(base_port: u16, tier: Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::plan(dir.path().join("cluster"), &["eu".to_owned()], base_port).unwrap();
        cluster.find_ports().unwrap();
        let process = cluster.write().unwrap().remove(0);
        let fleet = Fleet::new(env!("CARGO_BIN_EXE_tern").into(), &cluster.data).unwrap();
        Self { dir, cluster, fleet, arguments: process.arguments, tier }
    }

    async fn new(base_port: u16, tier: Vec<String>) -> Self {
        let world = Self::plan(base_port, tier);
        let data = &world.cluster.data;
        let (store, _) = EmbeddedStore::open(&data.join("eu-e1/store"), Options::new(1).init()).unwrap();
        fill(&store, &data.join("direct.salt")).await;
        store.close().await.unwrap();
        world
    }

    async fn on_database(base_port: u16, database: Vec<String>, tier: Vec<String>) -> Self {
        let world = Self::plan(base_port, [&database[..], &tier].concat());
        let made = world.store("init");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fill_database(&database, &world.cluster.data.join("direct.salt")).await;
        world
    }

    async fn start(&mut self) -> Ready {
        let arguments: Vec<String> = self.arguments.iter().chain(&self.tier).cloned().collect();
        self.fleet.start("eu-e1", &arguments).await.unwrap()
    }

    async fn stop(&mut self) {
        self.fleet.stop(Duration::from_secs(30)).await;
    }

    fn store(&self, command: &str) -> Output {
        tern(
            &self.cluster.data.join("eu-e1/tern.toml"),
            &words(command).into_iter().chain(self.tier.clone()).collect::<Vec<_>>(),
        )
    }

    /// Has the region move what is old until so much is in the archive.
    async fn moved(&self, ready: &Ready, runs: u64) {
        let admin = ready.admin.unwrap();
        let begun = Instant::now();
        loop {
            let output = self.store(&format!("tier --json --set listen.admin={admin}"));
            let told = said(&output);
            if told["archived_runs"].as_u64() >= Some(runs) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "nothing moves: {told}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// A new device of bob's.
    fn device(&self, name: &str) -> Client {
        let endpoints = Endpoints::read(&self.cluster.data).unwrap();
        let config = client_config(&endpoints, &user("bob"), None).unwrap();
        let tokens = tokens(&endpoints, &self.cluster.data, &user("bob")).unwrap();
        Client::builder(config).store(self.dir.path().join(name)).token_provider(tokens).build().unwrap()
    }
}

/// Numbers of the messages that a device shows.
fn shown(client: &Client) -> BTreeSet<u64> {
    let conversation = client.direct(&user("alice")).unwrap();
    let messages = conversation.timeline(usize::MAX >> 1).unwrap().messages;
    messages.iter().filter(|m| m.by.user == user("alice") && m.by.install.as_str() == "phone").map(|m| m.by.n).collect()
}

/// Scrolls back until so many messages are shown.
async fn scroll(client: &Client, until: impl Fn(&BTreeSet<u64>) -> bool) {
    let begun = Instant::now();
    while !until(&shown(client)) {
        let conversation = client.direct(&user("alice")).unwrap();
        // It fails before the first connection, and while the archive is away.
        let _later = tokio::time::timeout(Duration::from_secs(5), conversation.paginate_back(500)).await;
        assert!(begun.elapsed() < PATIENCE, "{} messages are shown: {}", shown(client).len(), client.diagnostics());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn metric(ready: &Ready, name: &str) -> f64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(ready.admin.unwrap()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: tern\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_scrolls_back_into_the_archive_and_an_outage_of_it_hides_nothing_for_ever() {
    let archive = tempfile::tempdir().unwrap();
    let place = archive.path().join("archive");
    fs::create_dir(&place).unwrap();
    let url = format!("--set store.tier.url=file://{} --set store.tier.every=1s", place.display());
    let mut world = World::new(28_400, words(&url)).await;
    let dry = said(&world.store("tier --dry-run --json"));
    assert_eq!(
        (dry["due_buckets"].as_u64(), dry["held_back"].as_u64()),
        (Some(0), Some(1)),
        "fan-out is to be done: {dry}"
    );

    let ready = world.start().await;
    world.moved(&ready, 1).await;
    let first = world.device("first");
    let all: BTreeSet<u64> = (1..=MESSAGES).collect();
    scroll(&first, |shown| *shown == all).await;
    assert!(metric(&ready, "tern_archive_reads_total").await >= 1.0);
    assert_eq!(metric(&ready, "tern_archive_moved_entries_total").await, 4_095.0);
    first.close().await;

    // The disk of the archive is away, and the region starts anew, with nothing in memory.
    world.stop().await;
    let checked = world.store("check --json");
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    assert_eq!(said(&checked)["archived_entries"].as_u64(), Some(4_095));
    let ready = world.start().await;
    let away = archive.path().join("away");
    fs::rename(&place, &away).unwrap();
    fs::create_dir(&place).unwrap();
    let second = world.device("second");
    // A page that reaches into the archive is not there as a whole.
    scroll(&second, |shown| shown.len() > 500).await;
    let sent = second.direct(&user("alice")).unwrap().send(tern_client::Draft::text("still here")).unwrap();
    let begun = Instant::now();
    while second.waiting().0 > 0 {
        assert!(begun.elapsed() < PATIENCE, "{sent:?} is not acked: {}", second.diagnostics());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while metric(&ready, "tern_archive_failed_reads_total").await < 1.0 {
        let conversation = second.direct(&user("alice")).unwrap();
        let _refused = tokio::time::timeout(Duration::from_secs(2), conversation.paginate_back(500)).await;
        assert!(begun.elapsed() < PATIENCE, "nobody asked for old messages");
    }
    assert!(shown(&second).iter().all(|n| *n > 4_095));
    fs::remove_dir_all(&place).unwrap();
    fs::rename(&away, &place).unwrap();
    scroll(&second, |shown| *shown == all).await;
    second.close().await;
    world.stop().await;

    fs::rename(&place, &away).unwrap();
    world.is_refused_without(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_holds_moves_to_an_archive_and_is_read_from_there() {
    let Some(database) = database::settings("archive", 0).map(database::flags) else { return };
    let archive = tempfile::tempdir().unwrap();
    let place = archive.path().join("archive");
    fs::create_dir(&place).unwrap();
    let tier = words(&format!("--set store.tier.url=file://{} --set store.tier.every=1s", place.display()));
    let mut world = World::on_database(28_600, database, tier).await;
    let dry = said(&world.store("tier --dry-run --json"));
    assert_eq!(
        (dry["due_buckets"].as_u64(), dry["held_back"].as_u64()),
        (Some(0), Some(1)),
        "fan-out is to be done: {dry}"
    );
    let refused = world.store("tier --json");
    assert_ne!(refused.status.code(), Some(0), "no region runs");

    let ready = world.start().await;
    world.moved(&ready, 1).await;
    let first = world.device("first");
    let all: BTreeSet<u64> = (1..=MESSAGES).collect();
    scroll(&first, |shown| *shown == all).await;
    assert!(metric(&ready, "tern_archive_reads_total").await >= 1.0);
    assert_eq!(metric(&ready, "tern_archive_moved_entries_total").await, 4_095.0);
    first.close().await;
    let dry = said(&world.store("tier --dry-run --json"));
    assert_eq!((dry["archived_runs"].as_u64(), dry["foreign_runs"].as_u64()), (Some(1), Some(0)), "{dry}");
    world.stop().await;
    let checked = world.store("check --json");
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    assert_eq!(said(&checked)["archived_entries"].as_u64(), Some(4_095));
    assert!(said(&checked)["entries"].as_u64() >= Some(MESSAGES));

    let away = archive.path().join("away");
    fs::rename(&place, &away).unwrap();
    world.is_refused_without(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_an_archive_as_well() {
    let Ok(endpoint) = std::env::var("TERN_S3_ENDPOINT") else {
        println!("skipped: no server that speaks S3; replication/archive/tests/s3/check starts one");
        return;
    };
    let [key, secret, ca] = ["KEY", "SECRET", "CA"].map(|name| std::env::var(format!("TERN_S3_{name}")).unwrap());
    let set = format!(
        "--set store.tier.url=s3://tern-archive/{base} --set store.tier.endpoint={endpoint} --set store.tier.key={key} \
         --set store.tier.secret={secret} --set store.tier.ca={ca}",
        base = std::process::id()
    );
    let mut world = World::new(28_500, words(&set)).await;
    let ready = world.start().await;
    world.moved(&ready, 1).await;
    let device = world.device("first");
    let all: BTreeSet<u64> = (1..=MESSAGES).collect();
    scroll(&device, |shown| *shown == all).await;
    device.close().await;
    world.stop().await;
    let checked = world.store("check --json");
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    assert_eq!(world.store("check --skip-archive").status.code(), Some(0));
}
