//! A region's store on ScyllaDB or Cassandra: its options by the configuration, and what `tern store` does with it.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::json;
use tern_core::ids::Region;
use tern_core::store::{Durability, Put, Store};
use tern_net::system::system_env;
use tern_replication::region::start::end_shared_era;
use tern_replication::store::archive::TierPlan;
use tern_replication::store::{REFILL_ALL_KEY, RESTORED_KEY};
use tern_scylla::inspect::{self, Inspection};
use tern_scylla::schema::{self, Changes};
use tern_scylla::{Cluster, Options, REGION_KEY, ScyllaError, ScyllaStore, SharedScylla};

use crate::archive;
use crate::config::database::StoreKind;
use crate::config::keys::Settings;
use crate::exit::Failure;
use crate::store::{self, Action};

/// Damaged logs that are printed; the rest is counted.
const SHOWN: usize = 100;

/// Where the database is.
pub fn options(settings: &Settings) -> Result<Options> {
    let nodes = settings.store_nodes.iter().map(ToString::to_string).collect();
    let keyspace = match &settings.store_keyspace {
        Some(keyspace) => keyspace.clone(),
        None => format!("tern_{}", settings.region_name()?.replace('-', "_")),
    };
    let datacenter = settings.store_datacenter.clone().unwrap_or_default();
    let mut options = Options::new(nodes, &datacenter, &keyspace, &settings.store_timeline_keyspace);
    options.rack = settings.store_rack.clone();
    options.login =
        settings.store_user.clone().zip(settings.store_password.as_ref().map(|password| password.reveal().to_owned()));
    options.request_timeout = settings.store_request_timeout;
    Ok(options)
}

/// Runs `tern store` where the store is a database.
pub fn run(settings: &Settings, action: &Action, json: bool) -> Result<(), Failure> {
    crate::block_on(async {
        match action {
            Action::Init => print_changes(&init(settings).await?, json),
            Action::Migrate => print_changes(&schema::migrate(&options(settings)?).await.map_err(start)?, json),
            Action::Check { repair: false, skip_archive } => return check(settings, json, !*skip_archive).await,
            Action::Tier { dry_run: true } => {
                let store = open(settings, settings.region_id()?).await?;
                let env = system_env().context("the system gives no randomness or clock")?;
                let plan = TierPlan { dry_run: true, ..archive::plan(settings, env.clock.wall_ms()) };
                let report = store.tier(&plan).await.context("the database was not read")?;
                return store::tell_tier(&store::tiered(&report), true, json);
            }
            Action::Tier { dry_run: false } => {
                let keyspace = options(settings)?.keyspace;
                let said = store::ask(settings.admin_listen(), "tier", &keyspace, None).with_context(|| {
                    format!("the region at {} was asked, and did not do it", settings.admin_listen())
                })?;
                return store::tell_tier(&said, false, json);
            }
            Action::NewEra => new_era(settings, json).await?,
            Action::Check { repair: true, .. } => {
                return Err(Failure::Usage(
                    "a store on a database is not repaired from here: see \"ScyllaDB\" in docs/OPERATIONS.md"
                        .to_owned(),
                ));
            }
            Action::Backup { .. }
            | Action::Verify { .. }
            | Action::Restore { .. }
            | Action::Erasures { .. }
            | Action::Compact => {
                return Err(Failure::Usage(
                    "this is for a store on the region's own disk; store.kind is \"scylla\": use the database's \
                     snapshots, see \"ScyllaDB\" in docs/OPERATIONS.md"
                        .to_owned(),
                ));
            }
        }
        Ok(())
    })
}

/// Refuses what only a database has.
pub fn needs_database(settings: &Settings) -> Result<(), Failure> {
    if settings.store_kind == StoreKind::Scylla {
        return Ok(());
    }
    Err(Failure::Usage("this is for a store on ScyllaDB; store.kind is \"embedded\"".to_owned()))
}

async fn init(settings: &Settings) -> Result<Changes, Failure> {
    let replication: schema::Replication =
        settings.store_replication.iter().map(|each| (each.datacenter.clone(), each.count)).collect();
    if replication.is_empty() {
        let what = "store.replication is not set: give the replicas of each datacenter that has regions, such as \
                    --set store.replication=dc1:3";
        return Err(Failure::Usage(what.to_owned()));
    }
    schema::init(&options(settings)?, &replication).await.map_err(start)
}

async fn check(settings: &Settings, json: bool, reads_archive: bool) -> Result<(), Failure> {
    let store = open(settings, settings.region_id()?).await?;
    let found = inspect::inspect(&store, reads_archive).await.context("the check could not go on")?;
    print_inspection(&found, json);
    if found.damaged.is_empty() { Ok(()) } else { Err(Failure::Property) }
}

/// After a restore of the database's snapshots: what was written since is lost, and numbers must not be used again.
async fn new_era(settings: &Settings, json: bool) -> Result<(), Failure> {
    let region = settings.region_id()?;
    let store = open(settings, region).await?;
    if settings.region_shared {
        new_shared_era(settings, region, &store).await?;
        return told_new_era(region, json);
    }
    store.check_alone().await.map_err(|error| Failure::Start(error.into()))?;
    store.wait_until_free().await.map_err(start)?;
    let mark = |key: &str| Put::Meta { key: key.to_owned(), value: Bytes::from_static(&[1]) };
    let puts = vec![mark(REFILL_ALL_KEY), mark(RESTORED_KEY), store.new_archive_id()];
    store.put(puts, Durability::Synced).await.context("nothing is known")?;
    store.close().await.context("the next start waits some seconds")?;
    told_new_era(region, json)
}

/// The same where several processes share the region: none of them may run.
async fn new_shared_era(settings: &Settings, region: Region, store: &ScyllaStore) -> Result<(), Failure> {
    let env = system_env().context("the system gives no randomness or clock")?;
    // Nothing is written that has a slot, so the salt of users' slots is not needed.
    let shared = SharedScylla::new(store.cluster().clone(), env.clock.clone(), &env.rng, &[]);
    shared.prepare().await.map_err(|error| Failure::Start(error.into()))?;
    shared.end_all().await.map_err(|error| Failure::Start(error.into()))?;
    let peers = settings.peers.iter().map(|peer| peer.region).collect();
    shared.put(vec![store.new_archive_id()], Durability::Synced).await.context("nothing is known")?;
    end_shared_era(&shared, region, &peers, &env.rng).await.map_err(|error| Failure::Start(error.into()))
}

fn told_new_era(region: Region, json: bool) -> Result<(), Failure> {
    if json {
        println!("{}", json!({ "region": region, "new_era": true }));
    } else {
        println!(
            "region {region} takes a new era at its next start, and is compared with every peer before it serves clients"
        );
    }
    Ok(())
}

/// A store that has written nothing yet, of the right region.
async fn open(settings: &Settings, region: Region) -> Result<Arc<ScyllaStore>, Failure> {
    let env = system_env().context("the system gives no randomness or clock")?;
    let cluster = Cluster::connect(options(settings)?).await.map_err(start)?;
    let mut store = ScyllaStore::new(cluster, env.clock.clone(), &env.rng);
    if let Some(archive) = archive::of_database(settings, &env, region).map_err(Failure::Start)?.0 {
        store = store.with_archive(archive);
    }
    let store = Arc::new(store);
    let owner = store.meta(REGION_KEY).await.context("the database was not read")?;
    match owner.as_deref() {
        Some([found]) if *found != region => {
            let keyspace = store.cluster().options().keyspace.clone();
            Err(start(ScyllaError::OtherRegion { keyspace, found: *found, expected: region }))
        }
        _ => Ok(store),
    }
}

fn start(error: ScyllaError) -> Failure {
    Failure::Start(error.into())
}

fn print_changes(changes: &Changes, json: bool) {
    if json {
        println!("{}", json!({ "done": changes.done }));
    } else if changes.done.is_empty() {
        println!("nothing to do: keyspaces and tables are what this version needs");
    } else {
        changes.done.iter().for_each(|done| println!("{done}"));
    }
}

fn print_inspection(found: &Inspection, json: bool) {
    let damaged = found
        .damaged
        .iter()
        .map(|(conversation, origin, what)| format!("conversation {conversation}, log of {origin}: {what}"));
    if json {
        let damaged: Vec<String> = damaged.collect();
        println!(
            "{}",
            json!({
                "conversations": found.conversations,
                "logs": found.logs,
                "entries": found.entries,
                "archived_runs": found.archived_runs,
                "archived_entries": found.archived_entries,
                "users": found.users,
                "todo": found.todo,
                "damaged": damaged,
            })
        );
        return;
    }
    damaged.take(SHOWN).for_each(|line| println!("{line}"));
    println!(
        "{} conversations, {} logs, {} entries, {} of them in {} runs of the archive, {} users, {} todo rows; {}",
        found.conversations,
        found.logs,
        found.entries,
        found.archived_entries,
        found.archived_runs,
        found.users,
        found.todo,
        match found.damaged.len() {
            0 => "nothing is wrong".to_owned(),
            n => format!("{n} logs are damaged and refused"),
        }
    );
}
