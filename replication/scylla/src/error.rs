//! What can be wrong with a cluster, in words for an operator.

use scylla::errors::{DbError, ExecutionError, NewSessionError, PrepareError, RequestAttemptError};

/// Why a store on ScyllaDB can't be opened, made or changed.
#[derive(Debug, thiserror::Error)]
pub enum ScyllaError {
    /// The options make no sense.
    #[error("{0}")]
    Options(String),
    /// No node answered.
    #[error("no node of the database could be asked at {nodes}: {what}; is it up, and is store.nodes right?")]
    Connect {
        /// Those that were tried.
        nodes: String,
        /// The driver's words.
        what: String,
    },
    /// The cluster has no such datacenter.
    #[error("the database has no datacenter \"{datacenter}\"; its datacenters are {known}: set store.datacenter")]
    Datacenter {
        /// Which was asked for.
        datacenter: String,
        /// Which there are.
        known: String,
    },
    /// A keyspace is missing.
    #[error("the database has no keyspace \"{0}\"; `tern store init` makes it, or store.keyspace is wrong")]
    NoKeyspace(String),
    /// A keyspace has no replicas where the region is.
    #[error(
        "keyspace \"{keyspace}\" has no replicas in datacenter \"{datacenter}\" ({replication}); alter its replication"
    )]
    NotReplicated {
        /// Which keyspace.
        keyspace: String,
        /// Where.
        datacenter: String,
        /// What it has.
        replication: String,
    },
    /// A table is missing.
    #[error(
        "keyspace \"{keyspace}\" has no table \"{table}\": it is not tern's, or its making was cut short; `tern store init` makes what is missing"
    )]
    NoTable {
        /// Which keyspace.
        keyspace: String,
        /// Which table.
        table: String,
    },
    /// Written by a later version.
    #[error(
        "keyspace \"{keyspace}\" has schema version {found}, and this version of tern knows none above {known}: run the newer version"
    )]
    Newer {
        /// Which keyspace.
        keyspace: String,
        /// Its version.
        found: i32,
        /// The highest that is known here.
        known: i32,
    },
    /// Written by an earlier version.
    #[error(
        "keyspace \"{keyspace}\" has schema version {found}, and this version of tern needs {needed}: run `tern store migrate`"
    )]
    Older {
        /// Which keyspace.
        keyspace: String,
        /// Its version.
        found: i32,
        /// What is needed.
        needed: i32,
    },
    /// It belongs to another region.
    #[error(
        "keyspace \"{keyspace}\" belongs to region {found}, not to {expected}: set store.keyspace to this region's own"
    )]
    OtherRegion {
        /// Which keyspace.
        keyspace: String,
        /// Whose it is.
        found: u8,
        /// Who asked.
        expected: u8,
    },
    /// A running process has it.
    #[error("keyspace \"{0}\" is in use by a running region: stop it first, or give this one a keyspace of its own")]
    InUse(String),
    /// A request failed.
    #[error("{0}")]
    Request(String),
}

impl From<ExecutionError> for ScyllaError {
    fn from(error: ExecutionError) -> Self {
        Self::Request(describe(&error))
    }
}

/// The driver's error in fewer words, with what to look at.
pub(crate) fn describe(error: &ExecutionError) -> String {
    match error {
        ExecutionError::LastAttemptError(attempt) => describe_attempt(attempt),
        ExecutionError::PrepareError(error) => describe_prepare(error),
        ExecutionError::RequestTimeout(after) => format!("no answer within {} ms", after.as_millis()),
        ExecutionError::ConnectionPoolError(error) => format!("no connection to a node: {error}"),
        ExecutionError::EmptyPlan => {
            "no node of store.datacenter can be reached: is its name right, and are its nodes up?".to_owned()
        }
        other => other.to_string(),
    }
}

pub(crate) fn describe_prepare(error: &PrepareError) -> String {
    match error {
        PrepareError::AllAttemptsFailed { first_attempt } => describe_attempt(first_attempt),
        other => other.to_string(),
    }
}

pub(crate) fn describe_session(error: &NewSessionError) -> String {
    match error {
        NewSessionError::FailedToResolveAnyHostname(names) => format!("none of these names is known: {names:?}"),
        other => other.to_string(),
    }
}

fn describe_attempt(error: &RequestAttemptError) -> String {
    let RequestAttemptError::DbError(error, said) = error else { return error.to_string() };
    match error {
        DbError::Unavailable { consistency, required, alive } => format!(
            "not enough live replicas: {consistency} needs {required}, and {alive} are up; start the nodes that are down"
        ),
        DbError::WriteTimeout { consistency, received, required, .. }
        | DbError::ReadTimeout { consistency, received, required, .. } => {
            format!("the replicas did not answer in time: {received} of {required} for {consistency}")
        }
        DbError::AuthenticationError => format!("the database refused the login: {said}; see store.user"),
        DbError::Unauthorized => format!("the database user may not do this: {said}"),
        DbError::Overloaded => format!("the database is overloaded: {said}"),
        other => format!("{other}: {said}"),
    }
}
