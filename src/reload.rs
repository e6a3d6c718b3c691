//! Reading the configuration again while the process runs: on SIGHUP, on `POST /reload`, and, for files that
//! keys name, when a file changes.
//!
//! The new configuration is read from the same sources as the old one and checked as a whole; if anything in it
//! is wrong, nothing changes. Then each key that differs has one of three outcomes. *Applied*: its [`Part`] has
//! taken it. *Restart required*: nothing takes it while running; the old value stays in force, and is reported
//! again at each reload until the restart. *Rejected*: its part refused it, and says why; the old value stays.
//!
//! A part is a group of keys that are applied together or not at all, with the files that they name. So the
//! configuration in force ([`Reloader::settings`]) is always one that was checked, part by part.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use serde_json::{Value, json};
use tern_core::clock::Clock;

use crate::config::keys::key;
use crate::config::scope::{Reload, Role};
use crate::config::{KEYS, Settings, Sources};

type Files = Box<dyn Fn(&Settings) -> Vec<PathBuf> + Send + Sync>;
type Apply = Box<dyn Fn(&Settings) -> Result<(), String> + Send + Sync>;

/// Keys that are applied together, and how.
pub struct Part {
    name: &'static str,
    keys: &'static [&'static str],
    files: Files,
    apply: Apply,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("name", &self.name).field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Part {
    /// `apply` is given a whole configuration in which these keys may differ from what is in force; on an error
    /// it must have changed nothing.
    pub fn new(
        name: &'static str,
        keys: &'static [&'static str],
        apply: impl Fn(&Settings) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        debug_assert!(keys.iter().all(|k| key(k).is_some_and(|k| k.reload == Reload::AtOnce)), "{name}");
        Self { name, keys, files: Box::new(|_| Vec::new()), apply: Box::new(apply) }
    }

    /// Files whose changes are applied as those of the keys are.
    #[must_use]
    pub fn with_files(mut self, files: impl Fn(&Settings) -> Vec<PathBuf> + Send + Sync + 'static) -> Self {
        self.files = Box::new(files);
        self
    }
}

/// What became of one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It counts from now on.
    Applied,
    /// It counts from the next start on.
    RestartRequired,
    /// The old value, or the old content of the file, stays in use.
    Rejected(String),
}

impl Outcome {
    /// As logs and programs have it.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::RestartRequired => "restart-required",
            Outcome::Rejected(_) => "rejected",
        }
    }
}

/// One change that a reload found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// A key, or "file PATH" for a file whose content changed.
    pub what: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a reload found and did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Why nothing was applied: what is wrong with the configuration, a problem a line.
    pub problems: Vec<String>,
    /// Every difference, keys in their documented order, then files.
    pub changes: Vec<Change>,
}

impl Report {
    /// Whether nothing was wrong and nothing was rejected.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty() && !self.changes.iter().any(|c| matches!(c.outcome, Outcome::Rejected(_)))
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let changes = self.changes.iter().map(|change| match &change.outcome {
            Outcome::Rejected(why) => json!({ "what": change.what, "outcome": "rejected", "reason": why }),
            outcome => json!({ "what": change.what, "outcome": outcome.name() }),
        });
        json!({
            "ok": self.is_ok(),
            "at_ms": self.at_ms,
            "problems": self.problems,
            "changes": changes.collect::<Vec<_>>(),
        })
    }

    fn log(&self) {
        for problem in &self.problems {
            tracing::error!(problem, "the configuration was not reloaded: it is not valid, and nothing has changed");
        }
        for Change { what, outcome } in &self.changes {
            match outcome {
                Outcome::Applied => tracing::info!(what, "reload: applied"),
                Outcome::RestartRequired => {
                    tracing::warn!(what, "reload: restart-required; the old value is in force until then");
                }
                Outcome::Rejected(reason) => tracing::error!(what, reason, "reload: rejected; the old one stays"),
            }
        }
        if self.problems.is_empty() && self.changes.is_empty() {
            tracing::info!("reload: nothing has changed");
        }
    }
}

/// What tells one version of a file from the next, without reading it. A renamed or linked replacement has
/// another inode, a rewritten one another time or length.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let m = fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
}

/// See the module.
pub struct Reloader {
    role: Role,
    sources: Sources,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    settings: Arc<Settings>,
    parts: Vec<Part>,
    /// What was applied, or at least tried, of each part's files.
    stamps: BTreeMap<(usize, PathBuf), Stamp>,
    /// Parts whose files could not be applied, why, and whether that was told: they are tried again.
    failing: BTreeMap<usize, (String, bool)>,
    last: Option<Report>,
    reloads: (u64, u64),
    pending: Vec<&'static str>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Reloader {
    /// `settings` came from `sources`.
    pub fn new(role: Role, sources: Sources, settings: Settings, clock: Arc<dyn Clock>) -> Arc<Self> {
        let state = State {
            settings: Arc::new(settings),
            parts: Vec::new(),
            stamps: BTreeMap::new(),
            failing: BTreeMap::new(),
            last: None,
            reloads: (0, 0),
            pending: Vec::new(),
        };
        Arc::new(Self { role, sources, clock, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.state().settings.clone()
    }

    /// Adds a part, which has what the start read.
    pub fn add(&self, part: Part) {
        let mut state = self.state();
        let index = state.parts.len();
        for file in (part.files)(&state.settings) {
            let seen = stamp(&file);
            state.stamps.insert((index, file), seen);
        }
        state.parts.push(part);
    }

    /// Keys of this role that are documented to be reloadable and that no part takes: none, once all is set up.
    pub fn forgotten(&self) -> Vec<&'static str> {
        let state = self.state();
        let taken = |name| state.parts.iter().any(|part| part.keys.contains(&name));
        let concerned = KEYS.iter().filter(|k| k.reload == Reload::AtOnce && k.roles.contains(&self.role));
        concerned.filter(|k| !taken(k.name)).map(|k| k.name).collect()
    }

    /// Reads everything again. Blocks while it reads files.
    pub fn reload(&self) -> Report {
        let mut report = Report { at_ms: self.clock.wall_ms(), ..Report::default() };
        let new = self.sources.load();
        let mut state = self.state();
        match new {
            Ok(new) => state.take(&new, self.role, &mut report),
            Err(error) => report.problems = error.0,
        }
        report.log();
        let count = if report.is_ok() { &mut state.reloads.0 } else { &mut state.reloads.1 };
        *count += 1;
        state.last = Some(report.clone());
        report
    }

    /// Looks whether files have changed, and applies those that have. Blocks while it reads them.
    pub fn look_at_files(&self) {
        let mut changes = Vec::new();
        self.state().take_files(false, &mut changes);
        Report { changes, ..Report::default() }.log_changes();
    }

    /// Every key with its value in force, where that came from, and what a reload would do.
    pub fn json(&self) -> Value {
        let state = self.state();
        let keys = state.settings.show().into_iter().map(|(name, value, source)| {
            json!({
                "key": name,
                "value": value,
                "source": source.to_string(),
                "change": key(name).map(|k| k.reload.words()),
                "restart_required": state.pending.contains(&name),
            })
        });
        json!({
            "role": self.role.name(),
            "keys": keys.collect::<Vec<_>>(),
            "last_reload": state.last.as_ref().map(Report::json),
        })
    }
}

impl Report {
    fn log_changes(&self) {
        if !self.changes.is_empty() {
            self.log();
        }
    }
}

impl State {
    fn take(&mut self, new: &Settings, role: Role, report: &mut Report) {
        let changed = new.changed(&self.settings);
        let mut outcomes: BTreeMap<&str, Outcome> = BTreeMap::new();
        let mut settings = (*self.settings).clone();
        for (index, part) in self.parts.iter().enumerate() {
            let keys: Vec<&str> = changed.iter().map(|k| k.name).filter(|name| part.keys.contains(name)).collect();
            if keys.is_empty() {
                continue;
            }
            let mut candidate = settings.clone();
            keys.iter().for_each(|name| candidate.take(name, new));
            // Before it is read: what is written meanwhile is then found by the next look.
            let mut stamps = BTreeMap::new();
            for file in (part.files)(&candidate) {
                let seen = stamp(&file);
                stamps.insert((index, file), seen);
            }
            let outcome = match (part.apply)(&candidate) {
                Ok(()) => {
                    settings = candidate;
                    self.stamps.retain(|(of, _), _| *of != index);
                    self.stamps.extend(stamps);
                    self.failing.remove(&index);
                    Outcome::Applied
                }
                Err(why) => Outcome::Rejected(why),
            };
            for name in keys {
                // A key of two parts is applied when both have taken it.
                let rejected = matches!(outcomes.get(name), Some(Outcome::Rejected(_)));
                if !rejected {
                    outcomes.insert(name, outcome.clone());
                }
            }
        }
        self.pending.clear();
        for key in changed {
            let outcome = match outcomes.remove(key.name) {
                Some(outcome) => outcome,
                // Nothing here looks at it.
                None if !key.roles.contains(&role) => {
                    settings.take(key.name, new);
                    Outcome::Applied
                }
                None => {
                    self.pending.push(key.name);
                    Outcome::RestartRequired
                }
            };
            report.changes.push(Change { what: key.name.to_owned(), outcome });
        }
        self.settings = Arc::new(settings);
        self.take_files(true, &mut report.changes);
    }

    /// Applies parts whose files have changed. A change that can't be applied is tried again with each look, and
    /// told of once: at once where somebody asked, else at the second look, because a renewal may be half done.
    fn take_files(&mut self, asked: bool, changes: &mut Vec<Change>) {
        for (index, part) in self.parts.iter().enumerate() {
            let mut newer = Vec::new();
            for file in (part.files)(&self.settings) {
                let seen = stamp(&file);
                if self.stamps.get(&(index, file.clone())) != Some(&seen) {
                    newer.push((file, seen));
                }
            }
            let before = self.failing.get(&index).cloned();
            if newer.is_empty() && before.is_none() {
                continue;
            }
            let what = |file: &Path| format!("file {}", file.display());
            let applied = (part.apply)(&self.settings);
            let outcome = match applied {
                Ok(()) => {
                    self.failing.remove(&index);
                    Outcome::Applied
                }
                Err(why) => {
                    let told = before.as_ref().is_some_and(|(old, told)| *told && *old == why);
                    let second = before.is_some();
                    let tell = asked || (second && !told);
                    self.failing.insert(index, (why.clone(), told || tell));
                    for (file, seen) in newer {
                        self.stamps.insert((index, file), seen);
                    }
                    if tell {
                        changes.push(Change {
                            what: format!("files of the {}", part.name),
                            outcome: Outcome::Rejected(why),
                        });
                    }
                    continue;
                }
            };
            if newer.is_empty() {
                changes.push(Change { what: format!("files of the {}", part.name), outcome: outcome.clone() });
            }
            for (file, seen) in newer {
                changes.push(Change { what: what(&file), outcome: outcome.clone() });
                self.stamps.insert((index, file), seen);
            }
        }
    }
}

/// What became of the last reload, as metrics.
#[derive(Debug)]
pub struct ReloadMetrics(pub Arc<Reloader>);

impl Collector for ReloadMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (last, reloads, pending, failing) = {
            let state = self.0.state();
            (state.last.clone(), state.reloads, state.pending.len(), state.failing.len())
        };
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: i64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        // Before the first reload, what is in force is what the start read.
        let ok = last.as_ref().is_none_or(Report::is_ok);
        gauge("tern_config_last_reload_success", "Whether the last reload went well: 1 or 0", None, ok.into())?;
        let at = last.map_or(0, |report| i64::try_from(report.at_ms / 1000).unwrap_or(i64::MAX));
        let help = "When the configuration was last reloaded, since 1970; 0: never";
        gauge("tern_config_last_reload_timestamp", help, Some(&Unit::Seconds), at)?;
        gauge("tern_config_restart_required_keys", "Changed keys that wait for a restart", None, count(pending))?;
        gauge("tern_config_rejected_files", "Parts whose changed files are not taken", None, count(failing))?;
        let help = "Reloads of the configuration, by how they went";
        let mut family = encoder.encode_descriptor(
            "tern_config_reloads",
            help,
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (result, n) in [("ok", reloads.0), ("failed", reloads.1)] {
            ConstCounter::new(n).encode(family.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
