//! Where a region keeps what must outlive it, by its configuration: a store on its own disk, or a database.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use prometheus_client::registry::Registry;
use tern_core::store::{Store, StoreError};
use tern_replication::region::Sharing;
use tern_replication::store::archive::{Archive, TierPlan, TierReport};
use tern_replication::store::embedded::{EmbeddedStore, Options};
use tern_scylla::{Cluster, ScyllaStore, SharedScylla};

use crate::archive;
use crate::config::database::StoreKind;
use crate::database;
use crate::health::Health;
use crate::node::Node;
use crate::operations::Operations;

/// An open store.
#[derive(Clone, Debug)]
pub enum Backend {
    /// On this machine's disk.
    Embedded(Arc<EmbeddedStore>),
    /// On ScyllaDB or Cassandra.
    Scylla(Arc<ScyllaStore>),
    /// The same, for one of several processes that share the region.
    Shared(Arc<SharedScylla>),
}

impl Backend {
    /// What a start is at while [`Self::open`] runs.
    pub fn opening(node: &Node) -> &'static str {
        match node.settings.store_kind {
            StoreKind::Embedded => "opening the store: replaying its journal and verifying its logs",
            StoreKind::Scylla => "connecting to the database",
        }
    }

    /// Opens what the configuration names. Whether nothing of it is missing.
    pub async fn open(node: &Node) -> Result<(Self, bool)> {
        match node.settings.store_kind {
            StoreKind::Embedded => {
                let (store, whole) = open_embedded(node)?;
                Ok((Self::Embedded(store).tended(node), whole))
            }
            StoreKind::Scylla => {
                let cluster = Cluster::connect(database::options(&node.settings)?).await?;
                let (up, all) = cluster.nodes();
                tracing::info!(keyspace = cluster.options().keyspace, up, all, "connected to the database");
                let (archive, is_new) = archive::of_database(&node.settings, &node.env, node.region)?;
                if node.settings.region_shared {
                    let salt = node.direct_salt()?;
                    let mut store = SharedScylla::new(cluster, node.env.clock.clone(), &node.env.rng, &salt);
                    if let Some(archive) = archive {
                        store = store.with_archive(archive);
                    }
                    store.prepare().await?;
                    has_archive(store.store().needs_archive().await?, is_new)?;
                    return Ok((Self::Shared(Arc::new(store)).tended(node), true));
                }
                let mut store = ScyllaStore::new(cluster, node.env.clock.clone(), &node.env.rng);
                if let Some(archive) = archive {
                    store = store.with_archive(archive);
                }
                store.check_alone().await?;
                has_archive(store.needs_archive().await?, is_new)?;
                store.wait_until_free().await?;
                Ok((Self::Scylla(Arc::new(store)).tended(node), true))
            }
        }
    }

    /// With a task that moves old messages, where there is an archive.
    fn tended(self, node: &Node) -> Self {
        if node.settings.store_tier_url.is_some() {
            let (settings, env) = (node.settings.clone(), node.env.clone());
            node.env.tasks.spawn(archive::tend(self.clone(), settings, env));
        }
        self
    }

    /// One pass that moves old messages to the archive.
    pub async fn tier(&self, plan: &TierPlan) -> Result<TierReport, StoreError> {
        match self {
            Self::Embedded(store) => store.tier(plan).await,
            Self::Scylla(store) => store.tier(plan).await,
            Self::Shared(store) => store.store().tier(plan).await,
        }
    }

    /// The archive, if there is one.
    pub fn archive(&self) -> Option<&Arc<Archive>> {
        match self {
            Self::Embedded(store) => store.archive(),
            Self::Scylla(store) => store.archive(),
            Self::Shared(store) => store.store().archive(),
        }
    }

    /// What names it for operators: its directory, or its keyspace.
    pub fn place(&self) -> String {
        let keyspace = |cluster: &Cluster| cluster.options().keyspace.clone();
        match self {
            Self::Embedded(store) => store.dir().display().to_string(),
            Self::Scylla(store) => keyspace(store.cluster()),
            Self::Shared(store) => keyspace(store.store().cluster()),
        }
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store) => store.clone(),
            Self::Scylla(store) => store.clone(),
            Self::Shared(store) => store.clone(),
        }
    }

    /// How this process shares its region with others, if it does; `drained`: operators have ordered that it is to have
    /// nothing of it.
    pub fn sharing(&self, node: &Node, drained: bool) -> Option<Sharing> {
        let Self::Shared(store) = self else { return None };
        let (weight, advertise) = (node.settings.region_weight, node.settings.region_advertise);
        Some(Sharing { store: store.clone(), weight, advertise, drained })
    }

    /// Adds what it counts.
    pub fn register_metrics(&self, registry: &mut Registry) {
        match self {
            Self::Embedded(store) => store.metrics().register(registry),
            Self::Scylla(store) => store.metrics().register(registry),
            Self::Shared(store) => store.store().metrics().register(registry),
        }
        if let Some(archive) = self.archive() {
            archive.metrics().register(registry);
        }
    }

    /// What the region needs of it to be ready.
    pub fn add_needs(&self, health: &Health, node: &Node) {
        match self {
            Self::Embedded(store) => {
                let (disk, reserve) = (store.clone(), node.settings.store_disk_reserve.0);
                health.needs("disk", move || disk.disk_free_bytes().map_or(Ok(()), |free| has_room(free, reserve)));
            }
            Self::Scylla(store) => {
                let cluster = store.cluster().clone();
                health.needs("database", move || has_nodes(cluster.nodes()));
            }
            Self::Shared(store) => {
                let cluster = store.store().cluster().clone();
                health.needs("database", move || has_nodes(cluster.nodes()));
            }
        }
    }

    /// Lets operators ask for what only the running region can do.
    pub fn publish(&self, operations: &Operations) {
        operations.publish_store(self.clone());
    }

    /// Keeps the region. Returns only when another process has taken it over.
    pub async fn hold(&self) {
        match self {
            // A lock on a file, and leases that the region's core keeps.
            Self::Embedded(_) | Self::Shared(_) => std::future::pending().await,
            Self::Scylla(store) => store.hold().await,
        }
    }

    /// The last of a stop in order.
    pub async fn close(&self) -> Result<()> {
        match self {
            Self::Embedded(store) => {
                store.close().await.context("the store could not be closed in order; the next start takes a new era")
            }
            Self::Shared(_) => Ok(()),
            Self::Scylla(store) => store
                .close()
                .await
                .context("the region could not be given back to the database; the next start waits some seconds"),
        }
    }
}

/// Whether the archive is there that a store can't be read without.
fn has_archive(is_needed: bool, is_new: bool) -> Result<()> {
    if is_needed && is_new {
        bail!(
            "old messages of this store were moved to an archive, and store.tier.url is not set, or nothing is where it \
             points to: set it as it was, and mount its disk; to move nothing more, set store.tier.after to 36500d"
        );
    }
    Ok(())
}

/// Whether any node of the database can be asked. How many replicas a write needs is for the database to say.
fn has_nodes((up, all): (usize, usize)) -> Result<(), String> {
    if up > 0 {
        return Ok(());
    }
    Err(format!("none of the {all} nodes of the database in store.datacenter can be reached"))
}

/// Opens the store, or makes it. Whether nothing of it is missing.
fn open_embedded(node: &Node) -> Result<(Arc<EmbeddedStore>, bool)> {
    let settings = &node.settings;
    let mut options = Options::new(node.region);
    options.init = settings.region_init;
    options.disk_reserve_bytes = settings.store_disk_reserve.0;
    options.cache_bytes = settings.store_cache.0;
    let (archive, is_new) = archive::open(settings, &node.env, node.region)?;
    options.archive = archive;
    node.env.rng.fill(&mut options.archive_id);
    let (store, report) = EmbeddedStore::open(&settings.data.join("store"), options)?;
    has_archive(store.needs_archive(), is_new)?;
    for cut in &report.cut {
        tracing::warn!(
            ?cut,
            "the end of a log was torn and has been cut; what was acked of it is offered again by its senders"
        );
    }
    for damaged in &report.damaged {
        tracing::error!(?damaged, "a log is damaged and refused; other regions may hold it");
    }
    for unreadable in &report.unreadable {
        tracing::error!(?unreadable, "part of the store can't be read; what lies in it is refused");
    }
    tracing::info!(
        created = report.created,
        logs = report.logs,
        entries = report.entries,
        took_ms = u64::try_from(report.duration.as_millis()).unwrap_or(u64::MAX),
        "store verified"
    );
    Ok((Arc::new(store), report.may_keep_era()))
}

/// Whether there is room for messages beside what must stay free.
fn has_room(free: u64, reserve: u64) -> Result<(), String> {
    if free >= reserve {
        return Ok(());
    }
    Err(format!(
        "nearly full: {} MiB are free and {} MiB are kept free (store.disk_reserve), so sends are refused; free some",
        free >> 20,
        reserve >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_with_what_to_do() {
        assert_eq!(has_room(256 << 20, 256 << 20), Ok(()));
        let why = has_room(200 << 20, 256 << 20).unwrap_err();
        assert!(why.contains("200 MiB") && why.contains("store.disk_reserve") && why.contains("free some"), "{why}");
    }

    #[test]
    fn a_database_of_which_no_node_answers_is_not_ready() {
        assert_eq!(has_nodes((1, 3)), Ok(()));
        assert!(has_nodes((0, 3)).unwrap_err().contains("3 nodes"));
    }
}
