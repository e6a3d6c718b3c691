//! The tables, how they are made, and how they change from version to version.
//!
//! Each keyspace has a table `tern_schema` with one number. It is written last when a keyspace is made or changed, so
//! that a keyspace whose making was cut short says so; every statement here may be repeated. A change of the schema
//! is a step in `REGION_STEPS` or `TIMELINE_STEPS`; steps are never edited, only added.

use scylla::client::session::Session;
use scylla::cluster::metadata::Strategy;
use scylla::response::query_result::QueryRowsResult;

use crate::cluster::{self, Cluster, Options};
use crate::error::{ScyllaError, describe};

/// Statements that lead from a version to the next; the first leads from nothing to version 1. `{k}` is the keyspace.
const REGION_STEPS: &[&[&str]] = &[&[
    // Changed by conditional writes only. One partition a conversation: its epoch and version fence all its logs.
    "CREATE TABLE IF NOT EXISTS {k}.tail (conversation blob, region smallint, era bigint, epoch bigint static, \
     version bigint static, head bigint, hlc bigint, chain blob, pending blob, \
     PRIMARY KEY (conversation, region, era))",
    // Changed by conditional writes only.
    "CREATE TABLE IF NOT EXISTS {k}.owner (scope text PRIMARY KEY, epoch bigint, holder blob, reserved bigint)",
    "CREATE TABLE IF NOT EXISTS {k}.conversations (bucket int, conversation blob, PRIMARY KEY (bucket, conversation))",
    "CREATE TABLE IF NOT EXISTS {k}.buckets (part int, bucket int, PRIMARY KEY (part, bucket))",
    "CREATE TABLE IF NOT EXISTS {k}.user_rows (uid text, conversation blob, state blob, \
     PRIMARY KEY (uid, conversation))",
    // Rows are removed all the time. One that comes back is work done twice, so tombstones may go soon.
    "CREATE TABLE IF NOT EXISTS {k}.todo (slot int, target smallint, conversation blob, value blob, \
     PRIMARY KEY (slot, target, conversation)) WITH gc_grace_seconds = 3600",
    "CREATE TABLE IF NOT EXISTS {k}.checkpoint (conversation blob PRIMARY KEY, value blob)",
    "CREATE TABLE IF NOT EXISTS {k}.meta (name text PRIMARY KEY, value blob)",
    // Changed by conditional writes only.
    "CREATE TABLE IF NOT EXISTS {k}.core_node (name text PRIMARY KEY, generation bigint, beat bigint, state text)",
    "CREATE TABLE IF NOT EXISTS {k}.share (share int PRIMARY KEY, node text, epoch bigint)",
]];

const TIMELINE_STEPS: &[&[&str]] = &[
    &["CREATE TABLE IF NOT EXISTS {k}.timeline (conversation blob, region smallint, era bigint, bucket bigint, \
     seq bigint, entry blob, PRIMARY KEY ((conversation, region, era, bucket), seq))"],
    &[
        // The last run of a log is asked for most.
        "CREATE TABLE IF NOT EXISTS {k}.archived (conversation blob, region smallint, era bigint, first bigint, \
         mark blob, PRIMARY KEY ((conversation, region, era), first)) WITH CLUSTERING ORDER BY (first DESC)",
        "CREATE TABLE IF NOT EXISTS {k}.erased (conversation blob, region smallint, era bigint, bucket bigint, \
         seq bigint, author blob, PRIMARY KEY ((conversation, region, era, bucket), seq))",
    ],
];

const REGION_TABLES: &[&str] =
    &["tail", "owner", "conversations", "buckets", "user_rows", "todo", "checkpoint", "meta", "core_node", "share"];
const TIMELINE_TABLES: &[&str] = &["timeline", "archived", "erased"];

/// A replica that does not answer a read for so long is not waited for: its coordinator asks another one. The usual setting, a
/// percentile of what reads took lately, is of no use when a replica has just died and all reads wait for it, each on one of the
/// few threads that its coordinator has.
const SPECULATE: &str = "speculative_retry = '100ms'";

/// The schema version that this version of tern reads and writes, of the region's keyspace and of the entries'.
pub const VERSIONS: (i32, i32) = (1, 2);

/// How many replicas each datacenter has.
pub type Replication = Vec<(String, u8)>;

/// What [`init`] and [`migrate`] have done, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A sentence each; empty: there was nothing to do.
    pub done: Vec<String>,
}

/// Makes what is missing: the keyspaces with `replication`, of which the region's keyspace takes its own datacenter
/// alone, and their tables. What is there stays as it is. All nodes should be up: a change of the schema that some
/// node has not heard of holds up the next one.
pub async fn init(options: &Options, replication: &Replication) -> Result<Changes, ScyllaError> {
    let session = cluster::session(options, true).await?;
    let own: Replication = replication.iter().filter(|(name, _)| *name == options.datacenter).cloned().collect();
    if own.is_empty() {
        let what = format!(
            "store.replication does not name the region's datacenter \"{}\": give it as \"{}:3\"",
            options.datacenter, options.datacenter
        );
        return Err(ScyllaError::Options(what));
    }
    let scylla = is_scylla(&session).await?;
    let mut changes = Changes::default();
    for (keyspace, replicas) in [(&options.timeline_keyspace, replication), (&options.keyspace, &own)] {
        if session.get_cluster_state().get_keyspace(keyspace).is_none() {
            // Conditional writes on tablets need ScyllaDB 2025.4; without them they work everywhere.
            let tablets = if scylla { " AND tablets = {'enabled': false}" } else { "" };
            let cql = format!(
                "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {}{tablets}",
                strategy_cql(replicas)?
            );
            ddl(&session, &cql).await?;
            changes.done.push(format!("made keyspace {keyspace} with {}", shown(replicas)));
        }
    }
    session.refresh_metadata().await.map_err(|error| ScyllaError::Request(error.to_string()))?;
    for keyspace in [&options.timeline_keyspace, &options.keyspace] {
        replicated(&session, keyspace, &options.datacenter)?;
    }
    steps(&session, &options.timeline_keyspace, TIMELINE_STEPS, true, &mut changes).await?;
    steps(&session, &options.keyspace, REGION_STEPS, true, &mut changes).await?;
    for keyspace in [&options.timeline_keyspace, &options.keyspace] {
        speculate(&session, keyspace, &mut changes).await?;
    }
    Ok(changes)
}

/// Brings tables of an earlier version to this one's. Regions of the earlier version may run meanwhile only if the
/// release's notes say so.
pub async fn migrate(options: &Options) -> Result<Changes, ScyllaError> {
    let session = cluster::session(options, true).await?;
    let mut changes = Changes::default();
    for (keyspace, all) in [(&options.timeline_keyspace, TIMELINE_STEPS), (&options.keyspace, REGION_STEPS)] {
        replicated(&session, keyspace, &options.datacenter)?;
        steps(&session, keyspace, all, false, &mut changes).await?;
        speculate(&session, keyspace, &mut changes).await?;
    }
    Ok(changes)
}

/// Tables that an earlier version has made with the usual setting get [`SPECULATE`]; one with a time of its own is left as an
/// operator wants it.
async fn speculate(session: &Session, keyspace: &str, changes: &mut Changes) -> Result<(), ScyllaError> {
    let cql =
        format!("SELECT table_name, speculative_retry FROM system_schema.tables WHERE keyspace_name = '{keyspace}'");
    let found = rows(session, &cql).await?;
    let odd = |error: String| ScyllaError::Request(error);
    let mut changed = 0;
    for row in found.rows::<(String, Option<String>)>().map_err(|error| odd(error.to_string()))? {
        let (table, setting) = row.map_err(|error| odd(error.to_string()))?;
        let is_ours = REGION_TABLES.iter().chain(TIMELINE_TABLES).any(|ours| *ours == table);
        if is_ours && setting.is_none_or(|setting| is_usual(&setting)) {
            ddl(session, &format!("ALTER TABLE {keyspace}.{table} WITH {SPECULATE}")).await?;
            changed += 1;
        }
    }
    if changed > 0 {
        changes.done.push(format!("keyspace {keyspace}: {changed} tables have {SPECULATE} now"));
    }
    Ok(())
}

/// Whether a table has the setting that the database gives where none is said: a percentile, written in various ways.
fn is_usual(speculative_retry: &str) -> bool {
    let setting = speculative_retry.to_ascii_lowercase();
    let number = setting.strip_suffix("percentile").or_else(|| setting.strip_suffix('p'));
    number.is_some_and(|number| number.trim().parse::<f64>().is_ok_and(|percentile| (percentile - 99.0).abs() < 0.01))
}

/// A statement that makes a table, with [`SPECULATE`].
fn with_speculation(cql: &str) -> String {
    let joint = if cql.contains(" WITH ") { " AND " } else { " WITH " };
    format!("{cql}{joint}{SPECULATE}")
}

/// Empties all tables, for tests.
#[doc(hidden)]
pub async fn empty(cluster: &Cluster) -> Result<(), ScyllaError> {
    let options = &cluster.options;
    let tables = REGION_TABLES.iter().map(|table| (&options.keyspace, table));
    for (keyspace, table) in tables.chain(TIMELINE_TABLES.iter().map(|table| (&options.timeline_keyspace, table))) {
        // Emptying costs a tenth of a second, looking does not.
        if rows(&cluster.session, &format!("SELECT * FROM {keyspace}.{table} LIMIT 1")).await?.rows_num() > 0 {
            ddl(&cluster.session, &format!("TRUNCATE {keyspace}.{table}")).await?;
        }
    }
    Ok(())
}

/// Whether both keyspaces are there, replicated in the region's datacenter, of this version, and whole.
pub(crate) async fn check(session: &Session, options: &Options) -> Result<(), ScyllaError> {
    for (keyspace, tables, needed) in
        [(&options.keyspace, REGION_TABLES, VERSIONS.0), (&options.timeline_keyspace, TIMELINE_TABLES, VERSIONS.1)]
    {
        replicated(session, keyspace, &options.datacenter)?;
        has_table(session, keyspace, "tern_schema")?;
        match version(session, keyspace).await? {
            None => {
                let table = "tern_schema".to_owned();
                return Err(ScyllaError::NoTable { keyspace: keyspace.clone(), table });
            }
            Some(found) if found > needed => {
                return Err(ScyllaError::Newer { keyspace: keyspace.clone(), found, known: needed });
            }
            Some(found) if found < needed => {
                return Err(ScyllaError::Older { keyspace: keyspace.clone(), found, needed });
            }
            Some(_) => {}
        }
        for table in tables {
            has_table(session, keyspace, table)?;
        }
    }
    if session.get_cluster_state().get_keyspace(&options.keyspace).is_some_and(|keyspace| keyspace.tablet_based) {
        tracing::warn!(
            keyspace = options.keyspace,
            "the keyspace has tablets: its conditional writes need ScyllaDB 2025.4 or later"
        );
    }
    Ok(())
}

async fn steps(
    session: &Session,
    keyspace: &str,
    steps: &[&[&str]],
    make: bool,
    changes: &mut Changes,
) -> Result<(), ScyllaError> {
    let known = i32::try_from(steps.len()).unwrap_or(i32::MAX);
    let table = "CREATE TABLE IF NOT EXISTS {k}.tern_schema (what text PRIMARY KEY, version int)";
    let from = match has_table(session, keyspace, "tern_schema") {
        Ok(()) => version(session, keyspace).await?.unwrap_or(0),
        Err(error) if !make => return Err(error),
        Err(_) => {
            ddl(session, &table.replace("{k}", keyspace)).await?;
            0
        }
    };
    if from > known {
        return Err(ScyllaError::Newer { keyspace: keyspace.to_owned(), found: from, known });
    }
    if from == 0 && !make {
        return Err(ScyllaError::NoTable { keyspace: keyspace.to_owned(), table: "tern_schema".to_owned() });
    }
    if from != 0 && from < known && make {
        return Err(ScyllaError::Older { keyspace: keyspace.to_owned(), found: from, needed: known });
    }
    for (to, statements) in (1..).zip(steps).skip(usize::try_from(from).unwrap_or(0)) {
        for statement in *statements {
            ddl(session, &with_speculation(&statement.replace("{k}", keyspace))).await?;
        }
        let written = format!("INSERT INTO {keyspace}.tern_schema (what, version) VALUES ('schema', {to})");
        session.query_unpaged(written, &[]).await?;
        changes.done.push(format!("keyspace {keyspace} has schema version {to} now"));
    }
    Ok(())
}

async fn ddl(session: &Session, cql: &str) -> Result<(), ScyllaError> {
    match session.query_unpaged(cql, &[]).await {
        Ok(_) => Ok(()),
        Err(error) => Err(ScyllaError::Request(format!("{} ({cql})", describe(&error)))),
    }
}

async fn version(session: &Session, keyspace: &str) -> Result<Option<i32>, ScyllaError> {
    let cql = format!("SELECT version FROM {keyspace}.tern_schema WHERE what = 'schema'");
    let row = rows(session, &cql).await?.maybe_first_row::<(Option<i32>,)>();
    Ok(row.map_err(|error| ScyllaError::Request(error.to_string()))?.and_then(|(version,)| version))
}

async fn is_scylla(session: &Session) -> Result<bool, ScyllaError> {
    let cql = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'system' \
               AND table_name = 'scylla_local'";
    Ok(rows(session, cql).await?.rows_num() > 0)
}

async fn rows(session: &Session, cql: &str) -> Result<QueryRowsResult, ScyllaError> {
    let result = session.query_unpaged(cql, &[]).await?;
    result.into_rows_result().map_err(|error| ScyllaError::Request(error.to_string()))
}

fn has_table(session: &Session, keyspace: &str, table: &str) -> Result<(), ScyllaError> {
    let state = session.get_cluster_state();
    match state.get_keyspace(keyspace) {
        None => Err(ScyllaError::NoKeyspace(keyspace.to_owned())),
        Some(found) if found.tables.contains_key(table) => Ok(()),
        Some(_) => Err(ScyllaError::NoTable { keyspace: keyspace.to_owned(), table: table.to_owned() }),
    }
}

fn replicated(session: &Session, keyspace: &str, datacenter: &str) -> Result<(), ScyllaError> {
    let state = session.get_cluster_state();
    let Some(found) = state.get_keyspace(keyspace) else { return Err(ScyllaError::NoKeyspace(keyspace.to_owned())) };
    let replication = match &found.strategy {
        Strategy::NetworkTopologyStrategy { datacenter_repfactors } => {
            if datacenter_repfactors.get(datacenter).is_some_and(|replicas| *replicas > 0) {
                return Ok(());
            }
            let mut all: Vec<String> =
                datacenter_repfactors.iter().map(|(name, replicas)| format!("{name}: {replicas}")).collect();
            all.sort();
            all.join(", ")
        }
        Strategy::SimpleStrategy { .. } => "SimpleStrategy, which knows no datacenters".to_owned(),
        Strategy::LocalStrategy => "LocalStrategy".to_owned(),
        Strategy::Other { name, .. } => name.clone(),
        other => format!("{other:?}"),
    };
    let (keyspace, datacenter) = (keyspace.to_owned(), datacenter.to_owned());
    Err(ScyllaError::NotReplicated { keyspace, datacenter, replication })
}

fn strategy_cql(replication: &Replication) -> Result<String, ScyllaError> {
    let mut cql = "{'class': 'NetworkTopologyStrategy'".to_owned();
    for (name, replicas) in replication {
        if name.is_empty() || name.contains(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)) {
            return Err(ScyllaError::Options(format!("\"{name}\" is no name of a datacenter")));
        }
        cql.push_str(&format!(", '{name}': {replicas}"));
    }
    cql.push('}');
    Ok(cql)
}

fn shown(replication: &Replication) -> String {
    let each: Vec<String> = replication.iter().map(|(name, replicas)| format!("{replicas} in {name}")).collect();
    format!("replicas {}", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_that_the_steps_lead_to() {
        assert_eq!(VERSIONS, (REGION_STEPS.len().try_into().unwrap(), TIMELINE_STEPS.len().try_into().unwrap()));
        let made = |steps: &[&[&str]], table: &str| {
            steps.iter().flat_map(|step| step.iter()).any(|cql| cql.contains(&format!("EXISTS {{k}}.{table} ")))
        };
        assert!(REGION_TABLES.iter().all(|table| made(REGION_STEPS, table)));
        assert!(TIMELINE_TABLES.iter().all(|table| made(TIMELINE_STEPS, table)));
    }

    #[test]
    fn every_table_is_made_with_a_time_after_which_another_replica_is_asked() {
        for cql in REGION_STEPS.iter().chain(TIMELINE_STEPS).flat_map(|step| step.iter()) {
            assert!(cql.starts_with("CREATE TABLE"), "other statements take no properties: {cql}");
            let made = with_speculation(cql);
            assert_eq!(made.matches(" WITH ").count(), 1, "{made}");
            assert!(made.ends_with("= '100ms'"), "{made}");
        }
        for usual in ["99p", "99PERCENTILE", "99.0PERCENTILE", "99.00percentile"] {
            assert!(is_usual(usual), "{usual}");
        }
        for own in ["50ms", "50.00ms", "NONE", "ALWAYS", "95p", "MIN(99p,50ms)"] {
            assert!(!is_usual(own), "{own}");
        }
    }

    #[test]
    fn names_of_datacenters_can_not_end_the_statement() {
        assert_eq!(
            strategy_cql(&vec![("dc1".to_owned(), 3), ("eu-west".to_owned(), 2)]).unwrap(),
            "{'class': 'NetworkTopologyStrategy', 'dc1': 3, 'eu-west': 2}"
        );
        assert!(strategy_cql(&vec![("dc1'}; DROP".to_owned(), 3)]).is_err());
    }
}
