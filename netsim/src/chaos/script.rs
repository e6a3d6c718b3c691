//! Chaos scripts: read, checked, and refused with file, line and column.
//!
//! A script is TOML. `[values]` are what `--with NAME=VALUE` changes; `${NAME}` stands for one of them, in any string of
//! the script. Times are `500ms`, `10s`, `10m`. The files in `netsim/chaos/` are examples of everything.

mod entries;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use self::entries::{FaultEntry, File, LimitsEntry, Number, TargetEntry};
use super::error::ChaosError;
use super::limits;
use super::text::parse_time;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Script {
    /// Names the directory of the record.
    pub name: String,
    /// One sentence.
    pub about: String,
    /// What is struck.
    pub target: Target,
    /// What users do meanwhile.
    pub load: Load,
    /// In order of `at`.
    pub faults: Vec<Fault>,
    /// What has to be reached.
    pub bounds: Bounds,
}

/// The system.
#[derive(Clone, Debug)]
pub enum Target {
    /// Processes that are started here.
    Local(LocalTarget),
    /// What is there already.
    Staging(StagingTarget),
}

/// See [`super::local`].
#[derive(Clone, Debug)]
pub struct LocalTarget {
    /// Names.
    pub regions: Vec<String>,
    /// Core nodes of each; more than one share it over the database. Each has an edge, too.
    pub nodes: u64,
    /// Further edges of each, processes of their own.
    pub edges: u64,
    /// See the configuration key.
    pub reoffer_after: Duration,
    /// `KEY=VALUE`, for all core nodes.
    pub settings: Vec<String>,
    /// Without it, regions keep what they have in a directory.
    pub database: Option<Database>,
}

/// A CQL database that runs.
#[derive(Clone, Debug)]
pub struct Database {
    /// `host:port,...`
    pub nodes: String,
    /// `dc1:3`, or `dc1:1,dc2:1`: the first region lives in the first datacenter, and so on; further ones in the last.
    pub replication: String,
}

/// See [`Target`].
#[derive(Clone, Debug)]
pub struct StagingTarget {
    /// Dispatch of each region.
    pub dispatch: Vec<Door>,
    /// What clients pin.
    pub ca: PathBuf,
    /// Where tokens come from.
    pub tokens: Tokens,
}

/// An address of dispatch.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Door {
    /// Of which region.
    pub region: String,
    /// `host:port`
    pub address: String,
    /// The name in its certificate.
    pub server_name: String,
}

/// Tokens of the clients, who are the users `chaos-REGION-NUMBER`.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// Prints one for the user in `CHAOS_USER`, with the audience of the deployment; run through the shell.
    Command(String),
    /// Lines of `USER TOKEN`.
    File(PathBuf),
}

/// See [`super::crowd`].
#[derive(Clone, Debug)]
pub struct Load {
    /// Of each region.
    pub clients: u64,
    /// Pairs of clients that write to each other, of different regions where there are several.
    pub conversations: u64,
    /// Messages a second of all together.
    pub rate: f64,
    /// So long.
    pub time: Duration,
    /// Bytes of a message.
    pub bytes: usize,
    /// So long it is waited at the end, until everything is acked and shown.
    pub settle: Duration,
}

/// Something that happens.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Its name in the report.
    pub id: String,
    /// Since the load began, at the earliest.
    pub at: Duration,
    /// Not before this other fault is over.
    pub after: Option<String>,
    /// What, and to whom.
    pub kind: FaultKind,
    /// Then it is undone. None: it stays.
    pub lasts: Option<Duration>,
    /// For so long after it figures "outside of faults" do not count, and so long after its beginning where it stays.
    pub aftermath: Duration,
    /// Edges or regions whose clients it meets; empty: everybody.
    pub meets: Vec<String>,
}

/// See [`Fault`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// SIGKILL of processes, at once; undone by a start.
    Kill(Vec<String>),
    /// SIGTERM; undone by a start, once they have ended.
    Terminate(Vec<String>),
    /// SIGSTOP; undone by SIGCONT.
    Stop(Vec<String>),
    /// Nothing passes between two regions.
    LinkDown(String, String),
    /// Commands of the shell.
    Command {
        /// At the beginning.
        run: String,
        /// At the end, also if this program is killed meanwhile.
        undo: Option<String>,
    },
}

/// Upper bounds of a statistic, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// Of the half.
    pub median: Option<f64>,
    /// Of 99 in 100.
    pub p99: Option<f64>,
    /// Of all.
    pub max: Option<f64>,
}

/// What has to be reached; what is not there is only told.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bounds {
    /// From a fault's beginning until a message is acked that was written since.
    pub next_ack: Limits,
    /// From a fault's beginning until a client that it cut off is live again.
    pub live_again: Limits,
    /// From a fault's end until everything written before is shown to its reader.
    pub caught_up: Limits,
    /// How long messages wait for their ack while no fault is near.
    pub ack_outside_faults: Limits,
    /// Likewise, until they are shown to their reader.
    pub shown_outside_faults: Limits,
    /// From a fault's end, or its beginning where it has none, until the region's table of routes names every client
    /// again. `None`: the table is not looked at.
    pub routes_complete: Option<Limits>,
    /// Acked and not there in the end.
    pub lost: Option<u64>,
    /// There twice, or told twice to be new.
    pub doubled: Option<u64>,
    /// At a place that the rules of a log forbid.
    pub out_of_order: Option<u64>,
    /// Sent, and neither acked nor refused in the end.
    pub not_acked: Option<u64>,
    /// Acked, and not shown to its reader in the end.
    pub not_shown: Option<u64>,
    /// How much more memory any process holds in the last quarter of a fault than in the second, MiB.
    pub memory_growth_mib: Option<u64>,
}

/// A place in the text, and what is wrong there.
struct Wrong {
    at: usize,
    what: String,
}

fn wrong<T>(place: &Spanned<T>, what: impl Into<String>) -> Wrong {
    Wrong { at: place.span().start, what: what.into() }
}

impl Script {
    /// Reads a file; `with` are values of the command line.
    pub fn load(path: &Path, with: &BTreeMap<String, String>) -> Result<Self, ChaosError> {
        let text = std::fs::read_to_string(path)
            .map_err(ChaosError::io(format!("can't read the script {}", path.display())))?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, with, base).map_err(|what| ChaosError::Script(format!("{}:{what}", path.display())))
    }

    /// Reads a text; files that it names are beside `base`. An error begins with line and column.
    pub fn parse(text: &str, with: &BTreeMap<String, String>, base: &Path) -> Result<Self, String> {
        let text = filled_in(text, with)?;
        let file: File = toml::from_str(&text).map_err(|error| toml_error(&text, &error))?;
        check(file, base).map_err(|wrong| format!("{}: {}", position(&text, wrong.at), wrong.what))
    }

    /// All processes of a local system, by region; empty otherwise.
    pub fn processes(&self) -> Vec<(String, String)> {
        match &self.target {
            Target::Local(local) => processes(local),
            Target::Staging(_) => Vec::new(),
        }
    }

    /// Names of the regions.
    pub fn regions(&self) -> Vec<String> {
        match &self.target {
            Target::Local(local) => local.regions.clone(),
            Target::Staging(staging) => {
                let mut names: Vec<String> = staging.dispatch.iter().map(|door| door.region.clone()).collect();
                names.dedup();
                names
            }
        }
    }
}

fn processes(local: &LocalTarget) -> Vec<(String, String)> {
    let of = |region: &String| {
        let nodes = (1..=local.nodes).map(|n| format!("{region}-n{n}"));
        let edges = (1..=local.edges).map(|n| format!("{region}-e{n}"));
        nodes.chain(edges).map(|name| (region.clone(), name)).collect::<Vec<_>>()
    };
    local.regions.iter().flat_map(of).collect()
}

fn position(text: &str, at: usize) -> String {
    let before = &text[..at.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("{line}:{column}")
}

fn toml_error(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(0, |span| span.start);
    format!("{}: {}", position(text, at), error.message())
}

/// The text with values in their places. Lines stay lines.
fn filled_in(text: &str, with: &BTreeMap<String, String>) -> Result<String, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| toml_error(text, &error))?;
    let empty = toml::Table::new();
    let values = table.get("values").and_then(toml::Value::as_table).unwrap_or(&empty);
    if let Some(name) = with.keys().find(|name| !values.contains_key(*name)) {
        let known: Vec<&str> = values.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(format!("1:1: --with {name}=...: [values] has no {name}; there are: {known}"));
    }
    let mut filled = text.to_owned();
    for (name, value) in values {
        let value = with.get(name).map(String::as_str).or(value.as_str());
        let value = value.ok_or_else(|| format!("1:1: values.{name} is no string; write it in quotes"))?;
        if value.contains(['"', '\\']) || value.chars().any(char::is_control) {
            return Err(format!("1:1: the value of {name} has quotes, backslashes or control characters; it can't"));
        }
        filled = filled.replace(&format!("${{{name}}}"), value);
    }
    Ok(filled)
}

fn check(file: File, base: &Path) -> Result<Script, Wrong> {
    let name = file.chaos.name.get_ref();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err(wrong(&file.chaos.name, "a name has letters, digits and hyphens: it becomes a directory's"));
    }
    let target = target(&file.target, base)?;
    let load = load(&file)?;
    let mut script = Script {
        name: name.clone(),
        about: file.chaos.about.clone(),
        target,
        load,
        faults: Vec::new(),
        bounds: Bounds::default(),
    };
    let mut ids = BTreeSet::new();
    for entry in &file.fault {
        let fault = fault(entry, &script)?;
        if !ids.insert(fault.id.clone()) {
            return Err(wrong(&entry.id, format!("there are two faults {:?}", fault.id)));
        }
        script.faults.push(fault);
    }
    script.faults.sort_by_key(|fault| fault.at);
    in_turn(&file.fault, &script.faults)?;
    apart(&file.fault, &script.faults)?;
    script.bounds = bounds(&file)?;
    if script.bounds.routes_complete.is_some() && matches!(script.target, Target::Staging(_)) {
        return Err(wrong(
            &file.target,
            "routes_complete is counted by core nodes on this machine: only a local target has it",
        ));
    }
    Ok(script)
}

fn time(place: &Spanned<String>) -> Result<Duration, Wrong> {
    let read = parse_time(place.get_ref());
    read.ok_or_else(|| wrong(place, format!("{:?} is no time; write \"500ms\", \"10s\" or \"10m\"", place.get_ref())))
}

fn time_or(place: Option<&Spanned<String>>, other: Duration) -> Result<Duration, Wrong> {
    place.map_or(Ok(other), time)
}

fn whole(place: &Spanned<Number>, least: u64, most: u64) -> Result<u64, Wrong> {
    let number = place.get_ref().whole().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| wrong(place, format!("expected a whole number from {least} to {most}")))
}

fn whole_or(place: Option<&Spanned<Number>>, other: u64, least: u64, most: u64) -> Result<u64, Wrong> {
    place.map_or(Ok(other), |place| whole(place, least, most))
}

fn target(entry: &Spanned<TargetEntry>, base: &Path) -> Result<Target, Wrong> {
    let t = entry.get_ref();
    match t.kind.get_ref().as_str() {
        "local" => {
            if let Some(place) = t.of_staging() {
                return Err(Wrong { at: place, what: "this belongs to target.kind = \"staging\"".to_owned() });
            }
            local(entry).map(Target::Local)
        }
        "staging" => {
            if let Some(place) = t.of_local() {
                return Err(Wrong { at: place, what: "this belongs to target.kind = \"local\"".to_owned() });
            }
            staging(entry, base).map(Target::Staging)
        }
        other => Err(wrong(&t.kind, format!("no target {other:?}; there are \"local\" and \"staging\""))),
    }
}

fn local(entry: &Spanned<TargetEntry>) -> Result<LocalTarget, Wrong> {
    let t = entry.get_ref();
    let regions = t.regions.as_ref().ok_or_else(|| wrong(entry, "target.regions is missing: name the regions"))?;
    let names = regions.get_ref();
    let is_name =
        |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if names.is_empty() || names.len() > limits::REGIONS || !names.iter().all(is_name) {
        let what =
            format!("give 1 to {} regions, of small letters and digits, such as [\"eu\", \"us\"]", limits::REGIONS);
        return Err(wrong(regions, what));
    }
    if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        return Err(wrong(regions, "a region is there twice"));
    }
    let nodes = whole_or(t.nodes.as_ref(), 1, 1, limits::NODES_PER_REGION)?;
    let database = match &t.database {
        Some(database) => Some(Database {
            nodes: not_empty(&database.get_ref().nodes, "give nodes of the database, such as \"127.0.0.1:9042\"")?,
            replication: replication(&database.get_ref().replication)?,
        }),
        None => None,
    };
    if let Some(place) = t.nodes.as_ref().filter(|_| nodes > 1 && database.is_none()) {
        return Err(wrong(place, "core nodes share a region over a database: add [target.database]"));
    }
    for setting in &t.settings {
        if !setting.get_ref().contains('=') {
            return Err(wrong(setting, "write KEY=VALUE, such as \"store.cache=4MiB\""));
        }
    }
    Ok(LocalTarget {
        regions: names.clone(),
        nodes,
        edges: whole_or(t.edges.as_ref(), 0, 0, limits::NODES_PER_REGION)?,
        reoffer_after: time_or(t.reoffer_after.as_ref(), tern_core::limits::REOFFER_AFTER)?,
        settings: t.settings.iter().map(|setting| setting.get_ref().clone()).collect(),
        database,
    })
}

fn not_empty(place: &Spanned<String>, what: &str) -> Result<String, Wrong> {
    let text = place.get_ref().trim();
    if text.is_empty() || text.contains("${") { Err(wrong(place, what)) } else { Ok(text.to_owned()) }
}

fn replication(place: &Spanned<String>) -> Result<String, Wrong> {
    let is_one = |part: &str| {
        part.split_once(':').is_some_and(|(name, count)| !name.is_empty() && count.parse::<u8>().is_ok_and(|n| n > 0))
    };
    let text = place.get_ref();
    if text.split(',').all(is_one) {
        Ok(text.clone())
    } else {
        Err(wrong(place, "write the copies in each datacenter, such as \"dc1:3\" or \"dc1:1,dc2:1\""))
    }
}

fn staging(entry: &Spanned<TargetEntry>, base: &Path) -> Result<StagingTarget, Wrong> {
    let t = entry.get_ref();
    let what =
        "target.dispatch is missing: give { region = \"eu\", address = \"host:port\", server_name = \"...\" } each";
    let dispatch = t.dispatch.as_ref().filter(|d| !d.get_ref().is_empty()).ok_or_else(|| wrong(entry, what))?;
    if let Some(door) = dispatch.get_ref().iter().find(|door| door.address.rsplit_once(':').is_none()) {
        return Err(wrong(dispatch, format!("{:?} is no host:port", door.address)));
    }
    let ca = t.ca.as_ref().ok_or_else(|| wrong(entry, "target.ca is missing: the CA that clients pin, as PEM"))?;
    let tokens = match (&t.token_command, &t.token_file) {
        (Some(command), None) => Tokens::Command(command.get_ref().clone()),
        (None, Some(file)) => Tokens::File(base.join(file.get_ref())),
        _ => return Err(wrong(entry, "give either target.token_command or target.token_file")),
    };
    Ok(StagingTarget { dispatch: dispatch.get_ref().clone(), ca: base.join(ca.get_ref()), tokens })
}

fn load(file: &File) -> Result<Load, Wrong> {
    let entry = &file.load;
    let rate = entry.rate.get_ref().value().filter(|rate| *rate > 0.0 && *rate <= limits::RATE);
    let rate = rate.ok_or_else(|| wrong(&entry.rate, format!("expected messages a second, up to {}", limits::RATE)))?;
    let run = time(&entry.time)?;
    if run.is_zero() || run > limits::RUN {
        return Err(wrong(&entry.time, "a load takes a second to a day"));
    }
    let regions = match file.target.get_ref().regions.as_ref() {
        Some(regions) => regions.get_ref().len(),
        None => file.target.get_ref().dispatch.as_ref().map_or(1, |dispatch| dispatch.get_ref().len()),
    };
    let clients = whole(&entry.clients, 1, limits::CLIENTS / regions.max(1) as u64)?;
    let all = clients * regions.max(1) as u64;
    if all < 2 {
        return Err(wrong(&entry.clients, "one client has nobody to write to: give at least 2"));
    }
    let pairs = all * (all - 1) / 2;
    let conversations = whole(&entry.conversations, 1, pairs)?;
    let bytes = whole_or(entry.bytes.as_ref(), 100, 1, limits::BODY_BYTES)?;
    let settle = time_or(entry.settle.as_ref(), Duration::from_secs(60))?;
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    Ok(Load { clients, conversations, rate, time: run, bytes, settle })
}

fn fault(entry: &FaultEntry, script: &Script) -> Result<Fault, Wrong> {
    let at = time(&entry.at)?;
    let lasts = entry.lasts.as_ref().map(time).transpose()?;
    if at + lasts.unwrap_or_default() > script.load.time {
        return Err(wrong(&entry.at, "it begins or ends after the load, and nobody would notice"));
    }
    let mut meets = entry.meets.clone();
    let kind = entry.kind.get_ref().as_str();
    let target =
        |what: &str| entry.target.as_ref().ok_or_else(|| wrong(&entry.kind, format!("target is missing: {what}")));
    let is_local = matches!(script.target, Target::Local(_));
    if kind != "command" && !is_local {
        return Err(wrong(&entry.kind, "on staging every fault is a command: kind = \"command\", with run and undo"));
    }
    if kind != "command"
        && let Some(place) = entry.run.as_ref().or(entry.undo.as_ref())
    {
        return Err(wrong(place, "run and undo belong to kind = \"command\""));
    }
    let struck = |meets: &mut Vec<String>| {
        let place = target("a process or a region")?;
        let (names, known) = of_target(place.get_ref(), script);
        if names.is_empty() {
            let what = format!("no process or region {:?}; there are {}", place.get_ref(), known.join(", "));
            return Err(wrong(place, what));
        }
        if meets.is_empty() && is_felt_by_some(&names, script) {
            meets.extend(names.iter().cloned());
        }
        Ok(names)
    };
    let kind = match kind {
        "kill" => FaultKind::Kill(struck(&mut meets)?),
        "terminate" => FaultKind::Terminate(struck(&mut meets)?),
        "stop" => FaultKind::Stop(struck(&mut meets)?),
        "link-down" => {
            let place = target("two regions, such as \"eu<->us\"")?;
            let regions = script.regions();
            let pair = place.get_ref().split_once("<->").filter(|(one, other)| {
                one != other && [one, other].iter().all(|name| regions.iter().any(|region| region == *name))
            });
            let Some((one, other)) = pair else {
                let what =
                    format!("no link {:?}; write two of {} with <-> between them", place.get_ref(), regions.join(", "));
                return Err(wrong(place, what));
            };
            FaultKind::LinkDown(one.to_owned(), other.to_owned())
        }
        "command" => {
            if let Some(place) = &entry.target {
                return Err(wrong(place, "a command has no target; `meets` says whose clients it cuts off"));
            }
            let run =
                entry.run.as_ref().ok_or_else(|| wrong(&entry.kind, "run is missing: a command for the shell"))?;
            if let (Some(place), None) = (&entry.lasts, &entry.undo) {
                return Err(wrong(place, "it ends with the command `undo`, which is missing"));
            }
            if let (Some(place), None) = (&entry.undo, &entry.lasts) {
                return Err(wrong(place, "when? `for` is missing"));
            }
            FaultKind::Command {
                run: run.get_ref().clone(),
                undo: entry.undo.as_ref().map(|undo| undo.get_ref().clone()),
            }
        }
        other => {
            let what = format!("no fault {other:?}; there are kill, terminate, stop, link-down and command");
            return Err(wrong(&entry.kind, what));
        }
    };
    let aftermath = time_or(entry.aftermath.as_ref(), Duration::from_secs(5))?;
    let after = entry.after.as_ref().map(|after| after.get_ref().clone());
    Ok(Fault { id: entry.id.get_ref().clone(), at, after, kind, lasts, aftermath, meets })
}

/// The processes that a name means, and all names.
fn of_target(name: &str, script: &Script) -> (Vec<String>, Vec<String>) {
    let all = script.processes();
    let meant = all.iter().filter(|(region, process)| region == name || process == name);
    let meant = meant.map(|(_, process)| process.clone()).collect();
    (meant, all.into_iter().map(|(_, process)| process).chain(script.regions()).collect())
}

/// An edge's death, or a whole region's, is felt by those who are connected there; that of one core node of several by
/// everybody whose conversations it has.
fn is_felt_by_some(names: &[String], script: &Script) -> bool {
    let Target::Local(local) = &script.target else { return false };
    let has_all_nodes = |region: &String| (1..=local.nodes).all(|n| names.contains(&format!("{region}-n{n}")));
    let is_core = |name: &String| name.rsplit_once("-n").is_some();
    names.iter().all(|name| !is_core(name)) || local.regions.iter().any(has_all_nodes)
}

/// What waits for another fault waits for one that comes before it, and is over some time.
fn in_turn(entries: &[FaultEntry], faults: &[Fault]) -> Result<(), Wrong> {
    for entry in entries {
        let Some(place) = &entry.after else { continue };
        let position = |id: &str| faults.iter().position(|fault| fault.id == id);
        let own = position(entry.id.get_ref());
        let other = position(place.get_ref()).filter(|other| Some(*other) < own);
        if other.is_none_or(|other| faults[other].lasts.is_none()) {
            let what = format!("no fault {:?} begins before this one and has an end (`for`)", place.get_ref());
            return Err(wrong(place, what));
        }
    }
    Ok(())
}

/// No process is struck while it is.
fn apart(entries: &[FaultEntry], faults: &[Fault]) -> Result<(), Wrong> {
    let names = |fault: &Fault| match &fault.kind {
        FaultKind::Kill(names) | FaultKind::Terminate(names) | FaultKind::Stop(names) => names.clone(),
        FaultKind::LinkDown(one, other) => vec![format!("{}<->{}", one.min(other), one.max(other))],
        FaultKind::Command { .. } => Vec::new(),
    };
    for (i, fault) in faults.iter().enumerate() {
        let end = fault.lasts.map(|lasts| fault.at + lasts);
        for later in &faults[i + 1..] {
            let shared = names(later).into_iter().find(|name| names(fault).contains(name));
            if let Some(name) = shared.filter(|_| end.is_none_or(|end| later.at < end)) {
                let entry = entries.iter().find(|entry| *entry.id.get_ref() == later.id);
                let what = format!("{name} is struck by {} then", fault.id);
                return Err(entry.map_or(Wrong { at: 0, what: what.clone() }, |entry| wrong(&entry.at, what)));
            }
        }
    }
    Ok(())
}

fn bounds(file: &File) -> Result<Bounds, Wrong> {
    let Some(entry) = &file.bounds else { return Ok(Bounds::default()) };
    let limits = |limits: Option<&LimitsEntry>| {
        let Some(limits) = limits else { return Ok(Limits::default()) };
        let one = |place: &Option<Spanned<String>>| {
            place.as_ref().map(|place| time(place).map(|time| time.as_secs_f64())).transpose()
        };
        Ok(Limits { median: one(&limits.median)?, p99: one(&limits.p99)?, max: one(&limits.max)? })
    };
    let count = |place: &Option<Spanned<Number>>| place.as_ref().map(|place| whole(place, 0, u64::MAX)).transpose();
    Ok(Bounds {
        next_ack: limits(entry.next_ack.as_ref())?,
        live_again: limits(entry.live_again.as_ref())?,
        caught_up: limits(entry.caught_up.as_ref())?,
        ack_outside_faults: limits(entry.ack_outside_faults.as_ref())?,
        shown_outside_faults: limits(entry.shown_outside_faults.as_ref())?,
        routes_complete: entry.routes_complete.as_ref().map(|entry| limits(Some(entry))).transpose()?,
        lost: count(&entry.lost)?,
        doubled: count(&entry.doubled)?,
        out_of_order: count(&entry.out_of_order)?,
        not_acked: count(&entry.not_acked)?,
        not_shown: count(&entry.not_shown)?,
        memory_growth_mib: count(&entry.memory_growth_mib)?,
    })
}
