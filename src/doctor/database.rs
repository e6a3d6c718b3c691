//! A region's database, where it keeps nothing on its own disk.

use tern_scylla::{Cluster, ScyllaError};

use super::{Finding, Scene};
use crate::config::database::StoreKind;
use crate::config::scope::Role;
use crate::database::options;

/// Connects as the region would, and looks at the keyspaces and their tables.
pub(super) async fn check(scene: &Scene) -> Option<Finding> {
    if scene.role != Role::Region || scene.settings.store_kind != StoreKind::Scylla {
        return None;
    }
    let check = "database";
    let options = match options(&scene.settings) {
        Ok(options) => options,
        Err(error) => return Some(Finding::failed(check, error.to_string(), "set region.name or store.keyspace")),
    };
    let keyspaces = format!("{} and {}", options.keyspace, options.timeline_keyspace);
    let begun = scene.env.clock.now();
    let cluster = match Cluster::connect(options).await {
        Ok(cluster) => cluster,
        Err(error) => return Some(Finding::failed(check, error.to_string(), todo(&error))),
    };
    let took_ms = scene.env.clock.now().saturating_sub(begun).as_millis();
    let (up, all) = cluster.nodes();
    let what = format!("keyspaces {keyspaces}; {up} of {all} nodes of its datacenter, connected in {took_ms} ms");
    Some(if up < all {
        Finding::warning(check, what, "start the nodes that are down: with three replicas one may be")
    } else if all < 3 {
        Finding::warning(check, what, "three nodes at least, so that one may be down")
    } else {
        Finding::ok(check, what)
    })
}

fn todo(error: &ScyllaError) -> &'static str {
    match error {
        ScyllaError::NoKeyspace(_) | ScyllaError::NoTable { .. } => "`tern store init`",
        ScyllaError::Older { .. } => "`tern store migrate`",
        ScyllaError::Newer { .. } => "run the version that made it",
        ScyllaError::NotReplicated { .. } => "`ALTER KEYSPACE`, see \"ScyllaDB\" in docs/OPERATIONS.md",
        ScyllaError::Options(_) | ScyllaError::Datacenter { .. } | ScyllaError::OtherRegion { .. } => {
            "correct the section [store]"
        }
        ScyllaError::Connect { .. } | ScyllaError::InUse(_) | ScyllaError::Request(_) => {
            "`nodetool status` on its nodes, store.nodes, store.user, and what lies between"
        }
    }
}
