//! A database for tests: the one that `TERN_CQL_NODES` names, with keyspaces that are emptied for each test.
//!
//! `replication/tests/cql-cluster/check` starts one, sets the variable and runs these tests. Without the variable they
//! end at once and say so: the database is another process, which not every machine can start.

#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tern_core::clock::{Clock, Entropy};
use tern_scylla::{Cluster, Options, ScyllaStore, schema};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Sessions live here: each test has a runtime of its own, which ends with it.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

/// A connection, once somebody has made its keyspaces.
type Keyspaces = Arc<Mutex<Option<Arc<Cluster>>>>;

/// Each is used by one test at a time.
static KEYSPACES: LazyLock<Vec<Keyspaces>> = LazyLock::new(|| (0..3).map(|_| Arc::default()).collect());

/// The machine's clock, moved by so much.
#[derive(Debug, Default)]
pub struct WallClock {
    pub ahead_ms: i64,
}

impl Clock for WallClock {
    fn now(&self) -> Duration {
        Duration::from_millis(self.wall_ms())
    }

    #[expect(clippy::disallowed_methods, reason = "the database has the machine's clock too")]
    fn wall_ms(&self) -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        u64::try_from(now).unwrap().saturating_add_signed(self.ahead_ms)
    }
}

/// The nodes; `None`, with a word about it, where there is no database.
pub fn nodes() -> Option<Vec<String>> {
    match std::env::var("TERN_CQL_NODES") {
        Ok(nodes) => Some(nodes.split(',').map(str::to_owned).collect()),
        Err(_) => {
            eprintln!("skipped: no database; replication/tests/cql-cluster/check starts one");
            None
        }
    }
}

pub fn options(name: &str) -> Option<Options> {
    Some(Options::new(nodes()?, "dc1", &format!("{name}_region"), &format!("{name}_timeline")))
}

/// How many replicas the datacenters have: as many as there are nodes in dc1, at most three, and one elsewhere.
pub fn replication() -> schema::Replication {
    let given = std::env::var("TERN_CQL_REPLICATION").unwrap_or_else(|_| "dc1:1".to_owned());
    let each = given.split(',').map(|part| part.split_once(':').unwrap());
    each.map(|(name, replicas)| (name.to_owned(), replicas.parse().unwrap())).collect()
}

/// Makes a name for a store.
pub fn entropy() -> Entropy {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let seed = NEXT.fetch_add(1, Ordering::Relaxed);
    Entropy::seeded(seed << 32 | u64::from(std::process::id()))
}

/// A place on the database, empty when it is made and nobody else's while it is held.
pub struct Place {
    pub cluster: Arc<Cluster>,
    _held: OwnedMutexGuard<Option<Arc<Cluster>>>,
}

impl Place {
    /// `None` where there is no database.
    pub async fn new() -> Option<Self> {
        options("any")?;
        let made = RUNTIME.spawn(async {
            let waiting = KEYSPACES.iter().enumerate().map(|(n, place)| {
                let place = place.clone();
                Box::pin(async move { (n, place.lock_owned().await) })
            });
            let ((n, mut held), _, _) = futures_util::future::select_all(waiting).await;
            if held.is_none() {
                let options = options(&format!("tern_test_{n}")).unwrap();
                schema::init(&options, &replication()).await.unwrap();
                *held = Some(Cluster::connect(options).await.unwrap());
            }
            let cluster = held.clone().unwrap();
            schema::empty(&cluster).await.unwrap();
            Self { cluster, _held: held }
        });
        Some(made.await.unwrap())
    }

    /// The same, from outside of a runtime.
    pub fn new_blocking() -> Option<Self> {
        RUNTIME.block_on(Self::new())
    }

    /// A store, as a process that has just started would open it.
    pub fn store(&self) -> Arc<ScyllaStore> {
        Arc::new(ScyllaStore::new(self.cluster.clone(), Arc::new(WallClock::default()), &entropy()))
    }
}
