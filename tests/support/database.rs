//! The database that `replication/tests/cql-cluster/check` starts, as processes are told of it.

/// Settings (`key=value`) for a store of `test` in the datacenter that is named at `place`, or in the last; stores of one test
/// have their timeline together. `None`: there is no database, so the test is skipped.
pub fn settings(test: &str, place: usize) -> Option<Vec<String>> {
    let Ok(nodes) = std::env::var("TERN_CQL_NODES") else {
        eprintln!("skipped: no database; replication/tests/cql-cluster/check starts one");
        return None;
    };
    let replication = std::env::var("TERN_CQL_REPLICATION").unwrap_or_else(|_| "dc1:1".to_owned());
    let datacenters: Vec<&str> = replication.split(',').filter_map(|each| Some(each.split_once(':')?.0)).collect();
    let datacenter = datacenters.get(place).or(datacenters.last()).unwrap();
    // Of this run: the database may be used by several.
    let run = std::process::id();
    let settings = [
        "store.kind=scylla".to_owned(),
        format!("store.nodes={nodes}"),
        format!("store.datacenter={datacenter}"),
        format!("store.keyspace=tern_{test}_{place}_{run}"),
        format!("store.timeline_keyspace=tern_{test}_timeline_{run}"),
        format!("store.replication={replication}"),
    ];
    Some(settings.to_vec())
}

/// As arguments of a process.
pub fn flags(settings: impl IntoIterator<Item = String>) -> Vec<String> {
    settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect()
}
