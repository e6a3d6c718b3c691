//! `tern store`: look at a region's store, back it up, restore it, make erased bodies go.
//!
//! A store belongs to one process at a time. Where a region runs on it, `backup`, `erasures` and `compact` ask that
//! region to do it, over its admin listener ([`answer`]); the file is written by the region. The others need the
//! store for themselves, and say so.

use std::fmt::Write as _;
use std::fs;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http_body_util::Full;
use hyper::header::{HeaderMap, ORIGIN};
use hyper::{Method, Response, StatusCode, Uri};
use serde_json::{Value, json};
use tern_net::env::Env;
use tern_net::system::system_env;
use tern_replication::store::archive::{TierPlan, TierReport};
use tern_replication::store::embedded::backup::{self, Counts, Table};
use tern_replication::store::embedded::{BackupError, BackupReport, CheckReport, CompactReport, Offline, OpenError};
use tokio::runtime::{Builder, Runtime};

use crate::admin;
use crate::backend::Backend;
use crate::cli::Global;
use crate::config::database::StoreKind;
use crate::config::keys::Settings;
use crate::database;
use crate::exit::Failure;

/// Options of `store`.
#[derive(Clone, Debug, Args)]
pub struct StoreArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with a store.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Compare all tables with the logs; the region must not run. On ScyllaDB: read every log, beside the region or
    /// not. Exit 0 sound, 1 something is wrong
    Check {
        /// Do what can be done: cut damaged logs into quarantine, make rows, todo and checkpoints anew
        #[arg(long)]
        repair: bool,
        /// Only look whether the objects of the archive are there and as long as they were, without reading them
        #[arg(long)]
        skip_archive: bool,
    },
    /// Write a backup, while the region runs or not, and read it back
    Backup {
        /// A file that does not exist yet, or a directory
        #[arg(long, value_name = "FILE|DIR")]
        to: PathBuf,
        /// Do not read it back
        #[arg(long)]
        no_verify: bool,
    },
    /// Read a backup from its first to its last byte. Exit 0 whole, 1 not
    Verify {
        /// The backup
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Restore a backup into a new data directory; the region then takes a new era and asks its peers
    Restore {
        /// The backup
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// A list by `tern store erasures`: bodies that were erased since, which are not restored
        #[arg(long, value_name = "FILE")]
        erasures: Option<PathBuf>,
    },
    /// Write the list of what was erased, for restores of older backups
    Erasures {
        /// A file that does not exist yet, or a directory
        #[arg(long, value_name = "FILE|DIR")]
        to: PathBuf,
    },
    /// Rewrite the entries now, so that no file of the store holds an erased body any more
    Compact,
    /// Move old messages to the archive now, by the region that runs (of several processes on ScyllaDB: the one at
    /// listen.admin, its part); by itself it does so every store.tier.every
    Tier {
        /// Only say what would move, and what is in the archive; the region may run or not
        #[arg(long)]
        dry_run: bool,
    },
    /// ScyllaDB: make keyspaces and tables, by store.replication; what is there stays as it is
    Init,
    /// ScyllaDB: bring the tables of an earlier version to this one's
    Migrate,
    /// ScyllaDB: after its snapshots were restored: the region takes a new era, and asks its peers. It must not run
    NewEra,
}

/// Runs the command.
pub fn run(global: &Global, args: &StoreArgs) -> Result<(), Failure> {
    let settings = crate::settings(global, &[])?;
    if settings.store_kind == StoreKind::Scylla {
        return database::run(&settings, &args.action, global.json);
    }
    let dir = settings.data.join("store");
    let store = Store { dir, admin: settings.admin_listen(), json: global.json };
    match &args.action {
        Action::Init | Action::Migrate | Action::NewEra => database::needs_database(&settings),
        Action::Check { repair, skip_archive } => store.check(&settings, *repair, !*skip_archive),
        Action::Tier { dry_run } => store.tier(&settings, *dry_run),
        Action::Backup { to, no_verify } => store.backup(to, !no_verify),
        Action::Verify { file } => verify(file, global.json),
        Action::Restore { from, erasures } => store.restore(from, erasures.as_deref()),
        Action::Erasures { to } => {
            let said =
                store.do_it("erasures", Some(to), |offline| Ok(written(&offline.export_erasures(to.clone())?)))?;
            store.print(&said, |said| format!("{}: {} erased places", text(said, "file"), said["erased"]));
            Ok(())
        }
        Action::Compact => {
            let said = store.do_it("compact", None, |offline| Ok(compacted(&offline.compact()?)))?;
            store.print(&said, |said| {
                format!("entries rewritten: {} bytes before, {} after", said["before_bytes"], said["after_bytes"])
            });
            Ok(())
        }
    }
}

struct Store {
    dir: PathBuf,
    admin: SocketAddr,
    json: bool,
}

impl Store {
    fn check(&self, settings: &Settings, repair: bool, reads_archive: bool) -> Result<(), Failure> {
        let mut offline = self.open()?;
        // It waits for the archive on this thread, which is none of the runtime's.
        let (runtime, env) = outside()?;
        if offline.needs_archive()
            && let Some(archive) = crate::archive::open(settings, &env, offline.region()).map_err(Failure::Start)?.0
        {
            offline = offline.with_archive(archive, runtime.handle().clone());
        }
        let report = offline.check_with(repair, reads_archive).context("the check could not go on")?;
        if self.json {
            println!("{}", check_json(&report));
        } else {
            print!("{}", check_text(&report, repair));
        }
        if report.remaining() == 0 { Ok(()) } else { Err(Failure::Property) }
    }

    fn backup(&self, to: &Path, read_back: bool) -> Result<(), Failure> {
        let said = self.do_it("backup", Some(to), |offline| Ok(written(&offline.backup(to.to_owned())?)))?;
        self.print(&said, |said| {
            format!(
                "{}: {} bytes, {} entries, {} rows, {} todo rows, in {} ms",
                text(said, "file"),
                said["bytes"],
                said["entries"],
                said["rows"],
                said["todo"],
                said["took_ms"]
            )
        });
        if read_back { verify(Path::new(&text(&said, "file")), self.json) } else { Ok(()) }
    }

    fn tier(&self, settings: &Settings, dry_run: bool) -> Result<(), Failure> {
        let what = if dry_run { "tier-dry-run" } else { "tier" };
        let said = self.do_it(what, None, |offline| {
            if !dry_run {
                bail!("no region runs on this store, and only one that runs moves its messages: see --dry-run");
            }
            let (_runtime, env) = outside()?;
            Ok(tiered(&offline.survey(&crate::archive::plan(settings, env.clock.wall_ms()))?))
        })?;
        tell_tier(&said, dry_run, self.json)
    }

    fn restore(&self, from: &Path, erasures: Option<&Path>) -> Result<(), Failure> {
        let report = backup::restore(from, &self.dir, erasures, None).map_err(anyhow::Error::from)?;
        let counts = report.backup.counts;
        let said = json!({
            "restored": self.dir.display().to_string(),
            "region": report.backup.header.region,
            "made_ms": report.backup.header.wall_ms,
            "entries": counts.of(Table::Entries),
            "rows": counts.of(Table::Rows),
            "erased": report.erased,
            "damaged_logs": report.backup.logs.damaged.len() + report.backup.logs.torn.len(),
            "took_ms": millis(report.duration),
        });
        self.print(&said, |said| {
            format!(
                "{}: region {}, {} entries, {} rows; {} bodies were erased since and are not in it\n\
                 the region takes a new era at its next start, and asks its peers for what they hold",
                text(said, "restored"),
                said["region"],
                said["entries"],
                said["rows"],
                said["erased"]
            )
        });
        Ok(())
    }

    /// Has it done here, or by the region that runs on the store.
    fn do_it(
        &self,
        what: &str,
        to: Option<&Path>,
        here: impl FnOnce(&Offline) -> Result<Value>,
    ) -> Result<Value, Failure> {
        match Offline::open(&self.dir) {
            Ok(offline) => Ok(here(&offline)?),
            Err(OpenError::InUse { pid, .. }) => Ok(self.ask(what, to).with_context(|| {
                format!(
                    "the store in {} is in use by process {pid}, which was asked at {} and did not do it; \
                     if its admin listener is elsewhere, give its configuration, or --set listen.admin=ADDRESS",
                    self.dir.display(),
                    self.admin
                )
            })?),
            Err(error) => Err(Failure::Start(error.into())),
        }
    }

    fn open(&self) -> Result<Offline, Failure> {
        Offline::open(&self.dir).map_err(|error| Failure::Start(error.into()))
    }

    fn ask(&self, what: &str, to: Option<&Path>) -> Result<Value> {
        ask(self.admin, what, &fs::canonicalize(&self.dir)?.display().to_string(), to)
    }

    fn print(&self, said: &Value, text: impl FnOnce(&Value) -> String) {
        if self.json {
            println!("{said}");
        } else {
            println!("{}", text(said));
        }
    }
}

/// What a command needs that waits on its own thread.
fn outside() -> Result<(Runtime, Env)> {
    let runtime = Builder::new_multi_thread().enable_all().build().context("can't start the runtime")?;
    let env = runtime.block_on(async { system_env() }).context("the system gives no randomness or clock")?;
    Ok((runtime, env))
}

fn verify(file: &Path, json: bool) -> Result<(), Failure> {
    let verified = match backup::verify(file) {
        Ok(verified) => verified,
        // The question was whether it is whole.
        Err(error @ (BackupError::Damaged { .. } | BackupError::Truncated { .. } | BackupError::NotABackup { .. })) => {
            if json {
                println!(
                    "{}",
                    json!({ "file": file.display().to_string(), "whole": false, "error": error.to_string() })
                );
            } else {
                println!("{error}");
            }
            return Err(Failure::Property);
        }
        Err(error) => return Err(Failure::Start(error.into())),
    };
    let damaged = verified.logs.damaged.iter().map(|log| {
        format!("conversation {}, log of {}, entry {}: {}", log.conversation, log.origin, log.seq, log.what)
    });
    let torn = verified.logs.torn.iter().map(|tail| {
        format!("conversation {}, log of {}, entry {}: {}", tail.conversation, tail.origin, tail.from, tail.what)
    });
    let findings: Vec<String> = damaged.chain(torn).chain(verified.unreadable.iter().cloned()).collect();
    if json {
        let mut said = counts_json(&verified.counts);
        said["file"] = file.display().to_string().into();
        said["whole"] = true.into();
        said["region"] = verified.header.region.into();
        said["made_ms"] = verified.header.wall_ms.into();
        said["bytes"] = verified.bytes.into();
        said["logs"] = verified.logs.logs.into();
        said["findings"] = findings.clone().into();
        println!("{said}");
    } else {
        println!(
            "{}: whole; region {}, {} logs, {} entries, {} bytes",
            file.display(),
            verified.header.region,
            verified.logs.logs,
            verified.counts.of(Table::Entries),
            verified.bytes
        );
        for finding in &findings {
            println!("  the store it was made of was damaged: {finding}");
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(Failure::Property) }
}

fn check_text(report: &CheckReport, repair: bool) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let kind = finding.kind;
        let then = match (finding.repaired, finding.repairable, kind.repair()) {
            (true, _, Some(done)) => format!("repaired: {done}"),
            (false, true, Some(would)) => format!("{}; with --repair {would}", kind.consequence()),
            _ => format!("{}; --repair can do nothing about it", kind.consequence()),
        };
        let _never_fails = writeln!(out, "{}: {}: {}\n    {then}", kind.name(), finding.place, finding.what);
    }
    let all: u64 = report.counts.values().map(|(found, _)| found).sum();
    if all > report.findings.len() as u64 {
        let _never_fails = writeln!(out, "and {} more", all - report.findings.len() as u64);
    }
    let _never_fails = writeln!(
        out,
        "{} logs, {} entries, {} of them in {} runs of the archive, {} checkpoints, {} rows, {} todo rows; {} entries in \
         quarantine; {}",
        report.logs,
        report.entries,
        report.archived_entries,
        report.archived_runs,
        report.checkpoints,
        report.rows,
        report.todo,
        report.quarantined,
        match (all, report.remaining()) {
            (0, _) => "nothing is wrong".to_owned(),
            (all, 0) => format!("{all} findings, all repaired"),
            (all, left) if repair => format!("{all} findings, {left} remain"),
            (all, _) => format!("{all} findings"),
        }
    );
    out
}

fn check_json(report: &CheckReport) -> Value {
    let findings = report.findings.iter().map(|finding| {
        json!({
            "kind": finding.kind.name(),
            "place": finding.place,
            "what": finding.what,
            "consequence": finding.kind.consequence(),
            "repairable": finding.repairable,
            "repaired": finding.repaired,
        })
    });
    json!({
        "logs": report.logs,
        "entries": report.entries,
        "conversations": report.conversations,
        "checkpoints": report.checkpoints,
        "rows": report.rows,
        "todo": report.todo,
        "archived_runs": report.archived_runs,
        "archived_entries": report.archived_entries,
        "quarantined": report.quarantined,
        "found": report.counts.values().map(|(found, _)| found).sum::<u64>(),
        "remaining": report.remaining(),
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn written(report: &BackupReport) -> Value {
    let mut said = counts_json(&report.counts);
    said["file"] = report.path.display().to_string().into();
    said["bytes"] = report.bytes.into();
    said["took_ms"] = millis(report.duration).into();
    said
}

fn counts_json(counts: &Counts) -> Value {
    json!({
        "entries": counts.of(Table::Entries),
        "rows": counts.of(Table::Rows),
        "todo": counts.of(Table::Todo),
        "state": counts.of(Table::State),
        "erased": counts.of(Table::Erased),
        "quarantine": counts.of(Table::Quarantine),
    })
}

fn compacted(report: &CompactReport) -> Value {
    json!({
        "before_bytes": report.before_bytes,
        "after_bytes": report.after_bytes,
        "took_ms": millis(report.duration),
    })
}

/// Asks the process that has a store, and waits for as long as it takes.
pub(crate) fn ask(admin: SocketAddr, what: &str, place: &str, to: Option<&Path>) -> Result<Value> {
    let mut query = format!("store={}", encode(place));
    if let Some(to) = to {
        let to = std::path::absolute(to)?;
        let _never_fails = write!(query, "&to={}", encode(&to.display().to_string()));
    }
    let body = admin::post(admin, &format!("/store/{what}?{query}"))?;
    serde_json::from_str(&body).context("the answer is not what this version expects")
}

/// Prints what a pass of tiering said. An error if not all could be done.
pub(crate) fn tell_tier(said: &Value, dry_run: bool, json: bool) -> Result<(), Failure> {
    println!("{}", if json { said.to_string() } else { tier_text(said, dry_run) });
    if said["failed"].is_null() { Ok(()) } else { Err(Failure::Property) }
}

pub(crate) fn tiered(report: &TierReport) -> Value {
    json!({
        "due_buckets": report.due_buckets,
        "due_entries": report.due_entries,
        "due_bytes": report.due_bytes,
        "held_back": report.held_back,
        "moved_buckets": report.moved_buckets,
        "moved_entries": report.moved_entries,
        "moved_bytes": report.moved_bytes,
        "rewritten": report.rewritten,
        "orphans": report.orphans,
        "archived_runs": report.runs,
        "archived_bytes": report.archived_bytes,
        "foreign_runs": report.foreign_runs,
        "unwritten_erasures": report.unwritten_erasures,
        "waits": report.waits,
        "failed": report.failed,
    })
}

fn tier_text(said: &Value, dry_run: bool) -> String {
    let mut out = match dry_run {
        true => format!(
            "would move: {} buckets, {} messages, about {} bytes",
            said["due_buckets"], said["due_entries"], said["due_bytes"]
        ),
        false => format!(
            "moved: {} buckets, {} messages, {} bytes; {} objects written anew, {} deleted that nothing named",
            said["moved_buckets"], said["moved_entries"], said["moved_bytes"], said["rewritten"], said["orphans"]
        ),
    };
    let _never_fails = write!(
        out,
        "\nold enough, but still needed: {} buckets\nin the archive: {} objects, {} bytes",
        said["held_back"], said["archived_runs"], said["archived_bytes"]
    );
    for (key, what) in [
        ("foreign_runs", "of them another store's, from whose backup this one was made"),
        ("unwritten_erasures", "erased bodies that are still in objects, and given to nobody"),
    ] {
        if said[key].as_u64() != Some(0) {
            let _never_fails = write!(out, "\n{what}: {}", said[key]);
        }
    }
    if let Some(why) = said["waits"].as_str() {
        let _never_fails = write!(out, "\nnothing moves at present: {why}");
    }
    if let Some(what) = said["failed"].as_str() {
        let _never_fails = write!(out, "\nnot all could be done: {what}");
    }
    out
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn text(said: &Value, key: &str) -> String {
    said[key].as_str().unwrap_or_default().to_owned()
}

/// What a running region answers under `/store/`: `POST backup?store=DIR&to=PATH`, `POST erasures?store=DIR&to=PATH`,
/// `POST compact?store=DIR`, `POST tier?store=DIR` and `POST tier-dry-run?store=DIR`, by `plan`; on a database the last two,
/// with its keyspace for the directory. To callers on the machine itself, and no browser's page: whoever may ask has
/// files written in the region's name, though never over another one. `store` must name the region's own store, so
/// that a command with the wrong address does not back up another region.
pub async fn answer(
    method: &Method,
    uri: &Uri,
    from: SocketAddr,
    headers: &HeaderMap,
    store: Option<&Backend>,
    plan: &TierPlan,
) -> Response<Full<Bytes>> {
    let say = |status, what: &str| admin::text(status, format!("{what}\n"));
    if !from.ip().to_canonical().is_loopback() || headers.contains_key(ORIGIN) {
        return say(StatusCode::FORBIDDEN, "this is answered on the machine itself only, and to no browser");
    }
    if method != Method::POST {
        return say(StatusCode::METHOD_NOT_ALLOWED, "POST is what is answered here");
    }
    let Some(store) = store else {
        return say(StatusCode::SERVICE_UNAVAILABLE, "there is no store open here, or not yet");
    };
    let query = uri.query().unwrap_or("");
    if parameter(query, "store") != place_of(store) {
        let what = format!("the store here is {}, and another one is meant", store.place());
        return say(StatusCode::CONFLICT, &what);
    }
    let to = parameter(query, "to").map(PathBuf::from).filter(|to| to.is_absolute());
    let done = match (uri.path(), to, store) {
        ("/store/backup", Some(to), Backend::Embedded(store)) => {
            store.backup(to).await.map(|r| written(&r)).map_err(|e| e.to_string())
        }
        ("/store/erasures", Some(to), Backend::Embedded(store)) => {
            store.export_erasures(to).await.map(|r| written(&r)).map_err(|e| e.to_string())
        }
        ("/store/backup" | "/store/erasures", None, Backend::Embedded(_)) => {
            return say(StatusCode::BAD_REQUEST, "to=PATH is missing, an absolute path");
        }
        ("/store/tier" | "/store/tier-dry-run", ..) => {
            let dry_run = uri.path() == "/store/tier-dry-run";
            if !dry_run && store.archive().is_none() {
                return say(StatusCode::UNPROCESSABLE_ENTITY, "store.tier.url is not set, so there is no archive");
            }
            let plan = TierPlan { dry_run, sweep: !dry_run, ..plan.clone() };
            store.tier(&plan).await.map(|r| tiered(&r)).map_err(|e| e.to_string())
        }
        ("/store/compact", _, Backend::Embedded(store)) => {
            store.compact().await.map(|r| compacted(&r)).map_err(|e| e.to_string())
        }
        ("/store/backup" | "/store/erasures" | "/store/compact", ..) => {
            return say(StatusCode::UNPROCESSABLE_ENTITY, "the store is a database, which has backups of its own");
        }
        _ => {
            return say(
                StatusCode::NOT_FOUND,
                "here are /store/backup, /store/erasures, /store/compact, /store/tier and /store/tier-dry-run",
            );
        }
    };
    match done {
        Ok(said) => {
            tracing::info!(path = uri.path(), result = %said, "done for an operator");
            admin::json(StatusCode::OK, &said)
        }
        Err(what) => say(StatusCode::UNPROCESSABLE_ENTITY, &what),
    }
}

/// What a request must name: the store's directory as the system has it, or the keyspace.
fn place_of(store: &Backend) -> Option<String> {
    match store {
        Backend::Embedded(store) => Some(fs::canonicalize(store.dir()).ok()?.display().to_string()),
        Backend::Scylla(_) | Backend::Shared(_) => Some(store.place()),
    }
}

/// Percent-encodes all but what never needs it.
pub(crate) fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _never_fails = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// A parameter of a query, decoded; `None` where it is missing or not UTF-8.
pub(crate) fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))?.1;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tern_replication::store::EmbeddedStore;

    use super::*;

    #[test]
    fn paths_survive_a_query() {
        for path in ["/a/b", "/mit Leerzeichen/ü&x=1%/+", ""] {
            let query = format!("store=/x&to={}", encode(path));
            assert_eq!(parameter(&query, "to").as_deref(), Some(path));
            assert_eq!(parameter(&query, "store").as_deref(), Some("/x"));
        }
        assert_eq!(parameter("to=%4", "to"), None);
        assert_eq!(parameter("to=%zz", "to"), None);
        assert_eq!(parameter("tot=1", "to"), None);
    }

    #[tokio::test]
    async fn only_the_machine_itself_may_ask_by_post_and_name_the_right_store() {
        let dir = tempfile::tempdir().unwrap();
        let options = tern_replication::store::Options::new(1).init();
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("a b"), options).unwrap().0);
        let own = encode(&fs::canonicalize(store.dir()).unwrap().display().to_string());
        let none = HeaderMap::new();
        let mut page = HeaderMap::new();
        page.insert(ORIGIN, "https://example.com".parse().unwrap());
        let (here, there) = ("127.0.0.1:9".parse().unwrap(), "192.0.2.1:9".parse().unwrap());
        let store = Backend::Embedded(store);
        let ask = async |method: &Method, path: &str, from, headers: &HeaderMap, store: Option<&Backend>| {
            answer(method, &path.parse().unwrap(), from, headers, store, &TierPlan::new(0, Duration::ZERO))
                .await
                .status()
                .as_u16()
        };
        let some = Some(&store);
        let compact = format!("/store/compact?store={own}");
        assert_eq!(ask(&Method::POST, &compact, there, &none, some).await, 403);
        assert_eq!(ask(&Method::POST, &compact, here, &page, some).await, 403);
        assert_eq!(ask(&Method::GET, &compact, here, &none, some).await, 405);
        assert_eq!(ask(&Method::POST, &compact, here, &none, None).await, 503);
        assert_eq!(ask(&Method::POST, "/store/compact?store=/other", here, &none, some).await, 409);
        assert_eq!(ask(&Method::POST, "/store/compact", here, &none, some).await, 409);
        assert_eq!(ask(&Method::POST, &format!("/store/backup?store={own}"), here, &none, some).await, 400);
        assert_eq!(ask(&Method::POST, &format!("/store/backup?store={own}&to=b"), here, &none, some).await, 400);
        assert_eq!(ask(&Method::POST, &format!("/store/nothing?store={own}"), here, &none, some).await, 404);
        let to = dir.path().join("backup");
        let backup = format!("/store/backup?store={own}&to={}", encode(&to.display().to_string()));
        assert_eq!(ask(&Method::POST, &backup, here, &none, some).await, 200);
        assert_eq!(ask(&Method::POST, &backup, here, &none, some).await, 422, "nothing is overwritten");
        backup::verify(&to).unwrap();
    }
}
