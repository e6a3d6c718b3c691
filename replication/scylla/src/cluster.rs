//! A connection to the database: options, checks, prepared statements.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::host_filter::DcHostFilter;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency};

use crate::error::{ScyllaError, describe_prepare, describe_session};
use crate::limits::{ENTRY_PAGE, KEEPALIVE, REQUEST_TIMEOUT, ROW_PAGE, SPECULATE_AFTER, SPECULATE_LATE_AFTER};
use crate::schema;

/// Where the database is, and what of it belongs to the region.
#[derive(Clone, PartialEq, Eq)]
pub struct Options {
    /// Some nodes, `host:port` each; the others are learned from them.
    pub nodes: Vec<String>,
    /// The datacenter of this region. Nodes of others are never asked.
    pub datacenter: String,
    /// The rack of this process, whose nodes are asked first.
    pub rack: Option<String>,
    /// The keyspace of the region, replicated in its datacenter.
    pub keyspace: String,
    /// The keyspace of the entries, replicated in every datacenter.
    pub timeline_keyspace: String,
    /// Name and password.
    pub login: Option<(String, String)>,
    /// What a request may take.
    pub request_timeout: Duration,
}

impl Options {
    /// Without a login or a rack, and with the default time-out.
    pub fn new(nodes: Vec<String>, datacenter: &str, keyspace: &str, timeline_keyspace: &str) -> Self {
        Self {
            nodes,
            datacenter: datacenter.to_owned(),
            rack: None,
            keyspace: keyspace.to_owned(),
            timeline_keyspace: timeline_keyspace.to_owned(),
            login: None,
            request_timeout: REQUEST_TIMEOUT,
        }
    }

    /// What is wrong with them, if anything: names go into statements as they are.
    pub(crate) fn check(&self) -> Result<(), ScyllaError> {
        let bad = |what: String| Err(ScyllaError::Options(what));
        if self.nodes.is_empty() {
            return bad("no nodes of the database are given: set store.nodes".to_owned());
        }
        if self.datacenter.is_empty() {
            return bad("no datacenter is given: set store.datacenter".to_owned());
        }
        for name in [&self.keyspace, &self.timeline_keyspace] {
            let first = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
            let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if !first || !rest || name.len() > 48 {
                return bad(format!("\"{name}\" is no name of a keyspace: a-z first, then a-z, 0-9 or _, at most 48"));
            }
        }
        if self.keyspace == self.timeline_keyspace {
            return bad(format!("\"{}\" can't be the region's keyspace and that of the entries", self.keyspace));
        }
        Ok(())
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("nodes", &self.nodes)
            .field("datacenter", &self.datacenter)
            .field("keyspace", &self.keyspace)
            .field("timeline_keyspace", &self.timeline_keyspace)
            .field("login", &self.login.as_ref().map(|(name, _)| name))
            .finish_non_exhaustive()
    }
}

/// Opens a session. `everywhere`: to nodes of all datacenters, as changes of the schema need; else to the region's own
/// only, so that one that is paused or far away holds up nothing.
pub(crate) async fn session(options: &Options, everywhere: bool) -> Result<Session, ScyllaError> {
    options.check()?;
    let datacenter = options.datacenter.clone();
    let mut policy = DefaultPolicy::builder().permit_dc_failover(false);
    policy = match &options.rack {
        Some(rack) => policy.prefer_datacenter_and_rack(datacenter.clone(), rack.clone()),
        None => policy.prefer_datacenter(datacenter.clone()),
    };
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(options.request_timeout))
        .load_balancing_policy(policy.build())
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&options.nodes)
        .default_execution_profile_handle(profile.into_handle())
        .connection_timeout(KEEPALIVE.1)
        .keepalive_interval(KEEPALIVE.0)
        .keepalive_timeout(KEEPALIVE.1)
        .keyspaces_to_fetch([options.keyspace.clone(), options.timeline_keyspace.clone()])
        .tcp_nodelay(true);
    if let Some((name, password)) = &options.login {
        builder = builder.user(name, password);
    }
    if !everywhere {
        builder = builder.host_filter(Arc::new(DcHostFilter::new(datacenter)));
    }
    let session = builder
        .build()
        .await
        .map_err(|error| ScyllaError::Connect { nodes: options.nodes.join(", "), what: describe_session(&error) })?;
    let state = session.get_cluster_state();
    let mut known: Vec<&str> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
    known.sort_unstable();
    known.dedup();
    if !known.contains(&options.datacenter.as_str()) {
        let (datacenter, known) = (options.datacenter.clone(), known.join(", "));
        return Err(ScyllaError::Datacenter { datacenter, known });
    }
    Ok(session)
}

/// A session with a schema that was checked, and its statements. Shared by the stores over it.
pub struct Cluster {
    pub(crate) session: Session,
    pub(crate) options: Options,
    pub(crate) statements: Statements,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Connects, checks names and schema, and prepares all statements. Takes a few tenths of a second; a paused node
    /// of the datacenter makes that a few seconds.
    pub async fn connect(options: Options) -> Result<Arc<Self>, ScyllaError> {
        let session = session(&options, false).await?;
        schema::check(&session, &options).await?;
        let statements = Statements::prepare(&session, &options).await?;
        Ok(Arc::new(Self { session, options, statements }))
    }

    /// What it was connected with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The first column of what a statement answers, which is a blob, for tests that look at or change tables.
    #[doc(hidden)]
    pub async fn blobs(&self, cql: &str) -> Result<Vec<Vec<u8>>, ScyllaError> {
        let odd = |error: &dyn fmt::Display| ScyllaError::Request(error.to_string());
        let result = self.session.query_unpaged(cql, &[]).await?;
        if !result.is_rows() {
            return Ok(Vec::new());
        }
        let rows = result.into_rows_result().map_err(|error| odd(&error))?;
        let rows = rows.rows::<(Option<Vec<u8>>,)>().map_err(|error| odd(&error))?;
        let rows = rows.map(|row| row.map(|(blob,)| blob.unwrap_or_default()).map_err(|error| odd(&error)));
        rows.collect()
    }

    /// Nodes of the region's datacenter: those that this process has a connection to, and all.
    pub fn nodes(&self) -> (usize, usize) {
        let state = self.session.get_cluster_state();
        let own = || {
            let of = |node: &&Arc<scylla::cluster::Node>| node.datacenter.as_ref() == Some(&self.options.datacenter);
            state.get_nodes_info().iter().filter(of)
        };
        (own().filter(|node| node.is_connected()).count(), own().count())
    }
}

/// What a statement does, which decides how it is sent.
#[derive(Clone, Copy)]
enum Kind {
    /// LOCAL_QUORUM; may be sent twice, and is, to another node, when it takes long.
    Read,
    /// The same of many partitions: asked of another node later.
    BroadRead,
    /// The same of a whole table, which all nodes have a part in: asked once.
    Scan,
    /// LOCAL_SERIAL: sees every conditional write that was decided, and finishes what was begun.
    SerialRead,
    /// LOCAL_QUORUM, with a time-stamp of its own: may be sent twice.
    Write,
    /// EACH_QUORUM, so that every datacenter's reads see it; likewise. Fails while one of them is away.
    WriteEverywhere,
    /// Decided at LOCAL_SERIAL, committed at LOCAL_QUORUM. Never sent twice by the driver: whoever sends it knows best
    /// what to do when nothing is heard of it.
    Conditional,
    /// The same of a core node, whose words may be said twice: if the second is refused because the first was not, what stands
    /// there is what was to stand there. So another node is asked as well when it takes long.
    Lease,
}

macro_rules! statements {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident, $page:expr, $cql:literal;)+) => {
        /// Every statement of the store. `{k}` is the region's keyspace, `{t}` that of the entries.
        pub(crate) struct Statements {
            $($(#[doc = $doc])+ pub(crate) $name: PreparedStatement,)+
        }

        impl Statements {
            pub(crate) async fn prepare(session: &Session, options: &Options) -> Result<Self, ScyllaError> {
                let names = |cql: &str| cql.replace("{k}", &options.keyspace).replace("{t}", &options.timeline_keyspace);
                Ok(Self {
                    $($name: prepare(session, options, names($cql), Kind::$kind, $page).await?,)+
                })
            }
        }
    };
}

statements! {
    /// The tail of a conversation without its batches.
    tail: SerialRead, ROW_PAGE, "SELECT region, era, epoch, version, head, hlc, chain FROM {k}.tail WHERE conversation = ?";
    /// The same, cheaper, for lists: without what is under way.
    tail_heads: Read, ROW_PAGE, "SELECT region, era, epoch, version, head, hlc, chain FROM {k}.tail WHERE conversation = ?";
    /// The newest batch of a log.
    tail_pending: SerialRead, ROW_PAGE, "SELECT pending FROM {k}.tail WHERE conversation = ? AND region = ? AND era = ?";
    /// Makes the tail of a conversation nobody has had.
    tail_first: Conditional, ROW_PAGE, "UPDATE {k}.tail SET epoch = ?, version = ? WHERE conversation = ? IF epoch = null";
    /// Takes a conversation over.
    tail_raise: Conditional, ROW_PAGE, "UPDATE {k}.tail SET epoch = ?, version = ? WHERE conversation = ? IF epoch = ? AND version = ?";
    /// Decides a batch.
    tail_append: Conditional, ROW_PAGE, "UPDATE {k}.tail SET version = ?, head = ?, hlc = ?, chain = ?, pending = ? WHERE conversation = ? AND region = ? AND era = ? IF epoch = ? AND version = ?";
    /// Replaces a batch by one with bodies erased.
    tail_erase: Conditional, ROW_PAGE, "UPDATE {k}.tail SET version = ?, pending = ? WHERE conversation = ? AND region = ? AND era = ? IF epoch = ? AND version = ?";

    /// Who has the region.
    owner: SerialRead, ROW_PAGE, "SELECT epoch, holder, reserved FROM {k}.owner WHERE scope = ?";
    /// Takes a region nobody has had.
    owner_first: Conditional, ROW_PAGE, "INSERT INTO {k}.owner (scope, epoch, holder, reserved) VALUES (?, ?, ?, ?) IF NOT EXISTS";
    /// Takes a region over, or reserves further time-stamps.
    owner_take: Conditional, ROW_PAGE, "UPDATE {k}.owner SET epoch = ?, holder = ?, reserved = ? WHERE scope = ? IF epoch = ? AND holder = ? AND reserved = ?";

    /// Notes that there is such a conversation.
    conversation_add: Write, ROW_PAGE, "INSERT INTO {k}.conversations (bucket, conversation) VALUES (?, ?)";
    /// Notes that a bucket has conversations.
    bucket_add: Write, ROW_PAGE, "INSERT INTO {k}.buckets (part, bucket) VALUES (0, ?)";
    /// Buckets that have conversations.
    buckets: Read, 4_096, "SELECT bucket FROM {k}.buckets WHERE part = 0 AND bucket >= ?";
    /// Conversations of a bucket, in order.
    conversations: Read, ROW_PAGE, "SELECT conversation FROM {k}.conversations WHERE bucket = ? AND conversation > ? LIMIT ?";

    /// A user's row.
    row_put: Write, ROW_PAGE, "INSERT INTO {k}.user_rows (uid, conversation, state) VALUES (?, ?, ?) USING TIMESTAMP ?";
    /// When it was written, which is its revision.
    row_rev: Read, ROW_PAGE, "SELECT WRITETIME(state) FROM {k}.user_rows WHERE uid = ? AND conversation = ?";
    /// A user's rows.
    rows: Read, ROW_PAGE, "SELECT conversation, state FROM {k}.user_rows WHERE uid = ?";
    /// The first users.
    users_first: Read, ROW_PAGE, "SELECT DISTINCT uid FROM {k}.user_rows LIMIT ?";
    /// The users from one on.
    users_from: Read, ROW_PAGE, "SELECT DISTINCT uid FROM {k}.user_rows WHERE token(uid) >= token(?) LIMIT ?";

    /// A todo row.
    todo_put: Write, ROW_PAGE, "INSERT INTO {k}.todo (slot, target, conversation, value) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
    /// Its removal.
    todo_remove: Write, ROW_PAGE, "DELETE FROM {k}.todo USING TIMESTAMP ? WHERE slot = ? AND target = ? AND conversation = ?";
    /// Those of a range of tokens.
    todo_range: BroadRead, ROW_PAGE, "SELECT target, conversation, value FROM {k}.todo WHERE token(slot) > ? AND token(slot) <= ?";

    /// Those of some slots.
    todo_of: BroadRead, ROW_PAGE, "SELECT target, conversation, value FROM {k}.todo WHERE slot IN ?";

    /// A checkpoint.
    checkpoint_put: Write, ROW_PAGE, "INSERT INTO {k}.checkpoint (conversation, value) VALUES (?, ?) USING TIMESTAMP ?";
    /// The newest one.
    checkpoint: Read, ROW_PAGE, "SELECT value FROM {k}.checkpoint WHERE conversation = ?";
    /// A named value.
    meta_put: Write, ROW_PAGE, "INSERT INTO {k}.meta (name, value) VALUES (?, ?) USING TIMESTAMP ?";
    /// It.
    meta: Read, ROW_PAGE, "SELECT value FROM {k}.meta WHERE name = ?";
    /// All of them.
    metas: Read, ROW_PAGE, "SELECT name, value FROM {k}.meta";

    /// An entry.
    entry_put: Write, ROW_PAGE, "INSERT INTO {t}.timeline (conversation, region, era, bucket, seq, entry) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    /// One entry.
    entry: Read, ROW_PAGE, "SELECT entry FROM {t}.timeline WHERE conversation = ? AND region = ? AND era = ? AND bucket = ? AND seq = ?";
    /// Entries of a bucket, upwards.
    entries_up: Read, ENTRY_PAGE, "SELECT seq, entry FROM {t}.timeline WHERE conversation = ? AND region = ? AND era = ? AND bucket = ? AND seq >= ? AND seq <= ? LIMIT ?";
    /// Entries of a bucket, downwards.
    entries_down: Read, ENTRY_PAGE, "SELECT seq, entry FROM {t}.timeline WHERE conversation = ? AND region = ? AND era = ? AND bucket = ? AND seq >= ? AND seq <= ? ORDER BY seq DESC LIMIT ?";

    /// Removes what is in the archive.
    entries_remove: WriteEverywhere, ROW_PAGE, "DELETE FROM {t}.timeline USING TIMESTAMP ? WHERE conversation = ? AND region = ? AND era = ? AND bucket = ? AND seq >= ? AND seq <= ?";
    /// Removes one entry that is in the archive.
    entry_remove: Write, ROW_PAGE, "DELETE FROM {t}.timeline USING TIMESTAMP ? WHERE conversation = ? AND region = ? AND era = ? AND bucket = ? AND seq = ?";
    /// Whether anything stands there.
    entries_left: Read, ROW_PAGE, "SELECT seq FROM {t}.timeline WHERE conversation = ? AND region = ? AND era = ? AND bucket = ? AND seq >= ? AND seq <= ? LIMIT 1";
    /// The mark of a run in the archive.
    mark_put: WriteEverywhere, ROW_PAGE, "INSERT INTO {t}.archived (conversation, region, era, first, mark) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
    /// The run with an entry, or the last one below it, and when its mark was written.
    mark_at: Read, ROW_PAGE, "SELECT first, mark, WRITETIME(mark) FROM {t}.archived WHERE conversation = ? AND region = ? AND era = ? AND first <= ? LIMIT 1";
    /// All runs of a log, from the last to the first.
    marks: Read, ROW_PAGE, "SELECT first, mark FROM {t}.archived WHERE conversation = ? AND region = ? AND era = ?";
    /// Whether there is any run.
    marks_any: Read, ROW_PAGE, "SELECT first FROM {t}.archived LIMIT 1";
    /// Notes that a body was erased, and whose.
    erased_put: Write, ROW_PAGE, "INSERT INTO {t}.erased (conversation, region, era, bucket, seq, author) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    /// Erased places of a part of a bucket.
    erased_in: Read, ROW_PAGE, "SELECT seq FROM {t}.erased WHERE conversation = ? AND region = ? AND era = ? AND bucket = ? AND seq >= ? AND seq <= ?";

    /// A core node's lease.
    core_node: SerialRead, ROW_PAGE, "SELECT generation, beat, state FROM {k}.core_node WHERE name = ?";
    /// The same, as a quorum knows it.
    core_beat: Read, ROW_PAGE, "SELECT generation, beat, state FROM {k}.core_node WHERE name = ?";
    /// All of them, likewise.
    core_nodes: Scan, ROW_PAGE, "SELECT name, generation, beat, state FROM {k}.core_node";
    /// Of a core node nobody has heard of.
    core_first: Lease, ROW_PAGE, "INSERT INTO {k}.core_node (name, generation, beat, state) VALUES (?, ?, ?, ?) IF NOT EXISTS";
    /// A core node's next beat or generation.
    core_change: Lease, ROW_PAGE, "UPDATE {k}.core_node SET generation = ?, beat = ?, state = ? WHERE name = ? IF generation = ?";
    /// The end of a generation whose beat stands still.
    core_end: Lease, ROW_PAGE, "UPDATE {k}.core_node SET generation = ?, beat = ?, state = ? WHERE name = ? IF generation = ? AND beat = ?";
    /// Who has a share.
    share: SerialRead, ROW_PAGE, "SELECT node, epoch FROM {k}.share WHERE share = ?";
    /// Who has which share, as a quorum knows it.
    shares: Scan, ROW_PAGE, "SELECT share, node, epoch FROM {k}.share";
    /// A share nobody has had.
    share_first: Conditional, ROW_PAGE, "INSERT INTO {k}.share (share, node, epoch) VALUES (?, ?, ?) IF NOT EXISTS";
    /// A share's next owner.
    share_give: Conditional, ROW_PAGE, "UPDATE {k}.share SET node = ?, epoch = ? WHERE share = ? IF epoch = ?";
}

async fn prepare(
    session: &Session,
    options: &Options,
    cql: String,
    kind: Kind,
    page: i32,
) -> Result<PreparedStatement, ScyllaError> {
    let prepared = session.prepare(cql.as_str()).await;
    let mut prepared =
        prepared.map_err(|error| ScyllaError::Request(format!("{} ({cql})", describe_prepare(&error))))?;
    prepared.set_page_size(page);
    let speculate = |prepared: &mut PreparedStatement, after: Duration| {
        let policy = SimpleSpeculativeExecutionPolicy { max_retry_count: 1, retry_interval: after };
        let profile = session.get_default_execution_profile_handle();
        let profile = profile.pointee_to_builder().speculative_execution_policy(Some(Arc::new(policy))).build();
        prepared.set_execution_profile_handle(Some(profile.into_handle()));
        prepared.set_is_idempotent(true);
    };
    match kind {
        Kind::Read => speculate(&mut prepared, SPECULATE_AFTER),
        Kind::BroadRead => speculate(&mut prepared, SPECULATE_LATE_AFTER),
        Kind::SerialRead => {
            prepared.set_consistency(Consistency::LocalSerial);
            prepared.set_is_idempotent(true);
        }
        Kind::Scan | Kind::Write => prepared.set_is_idempotent(true),
        Kind::WriteEverywhere => {
            prepared.set_consistency(Consistency::EachQuorum);
            prepared.set_is_idempotent(true);
        }
        Kind::Conditional => {
            prepared.set_consistency(Consistency::LocalQuorum);
            prepared.set_serial_consistency(Some(SerialConsistency::LocalSerial));
            prepared.set_is_idempotent(false);
        }
        Kind::Lease => {
            prepared.set_consistency(Consistency::LocalQuorum);
            prepared.set_serial_consistency(Some(SerialConsistency::LocalSerial));
            speculate(&mut prepared, SPECULATE_LATE_AFTER);
        }
    }
    prepared.set_request_timeout(Some(options.request_timeout));
    Ok(prepared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_statements_are_refused() {
        let options = |keyspace: &str| Options::new(vec!["127.0.0.1:9042".to_owned()], "dc1", keyspace, "timeline");
        assert!(options("tern_eu").check().is_ok());
        for bad in ["", "1a", "a;b", "A", "a b", "a\"", "timeline", &"a".repeat(49)] {
            assert!(matches!(options(bad).check(), Err(ScyllaError::Options(_))), "{bad}");
        }
        assert!(Options { nodes: Vec::new(), ..options("a") }.check().is_err());
        assert!(Options { datacenter: String::new(), ..options("a") }.check().is_err());
    }

    #[test]
    fn a_password_is_not_printed() {
        let mut options = Options::new(vec!["127.0.0.1:9042".to_owned()], "dc1", "a", "b");
        options.login = Some(("tern".to_owned(), "open sesame".to_owned()));
        assert!(!format!("{options:?}").contains("sesame"));
    }
}
