//! `netsim gate`: whether the scenarios would notice if the product broke one of its rules.
//!
//! *Problem.* A scenario that passes says nothing until it has been seen to fail, and one that failed last month may
//! be blind today: a load that is lighter, a fault that strikes a second later.
//!
//! *Rule.* For each seeded bug of [`tern_core::mutants`] the file of the gate names a scenario and a few seeds. With the
//! bug one of these runs must FAIL; without it each that was needed must PASS, or the scenario fails whatever there is.
//! UNKNOWN and INVALID catch nothing. A bug that no scenario can show is listed with the reason and the test that
//! shows it instead; each is listed once, so a new one can't be forgotten.
//!
//! *Why the simpler way fails.* All bugs against all scenarios: an hour for what a minute tells, and nobody learns that
//! a scenario has lost the sight that it was written for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tern_core::mutants::Mutant;
use tern_netsim_scenario::Scenario;
use tern_netsim_verdict::{Judgement, Verdict};

use super::batch::{Job, Manner, forget, parallel, run_one};
use super::{Failure, GateArgs, Outcome, parse_range};

/// The file of the gate.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gate {
    /// Bugs that scenarios catch.
    #[serde(default)]
    mutant: Vec<Entry>,
    /// Bugs that none can.
    #[serde(default)]
    elsewhere: Vec<Elsewhere>,
}

/// A bug, and what is to catch it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// Beside the file.
    scenario: PathBuf,
    /// `A..B`: tried in order until one run fails.
    seeds: String,
    /// Of the scenario's matrix; may be left out where it has none.
    #[serde(default)]
    point: BTreeMap<String, String>,
}

/// A bug that no scenario can show.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Elsewhere {
    name: String,
    /// Why not.
    why: String,
    /// What shows it.
    test: String,
}

/// An entry that can be run.
#[derive(Clone, Debug)]
struct Trial {
    mutant: Mutant,
    file: PathBuf,
    scenario: String,
    seeds: Range<u64>,
    point: BTreeMap<String, String>,
}

impl Trial {
    fn job(&self, seed: u64, mutant: Option<Mutant>) -> Job {
        Job {
            file: self.file.clone(),
            scenario: self.scenario.clone(),
            seed,
            point: self.point.clone(),
            mutant: mutant.map(|mutant| mutant.name().to_owned()),
        }
    }
}

/// What came of one.
#[derive(Debug)]
struct Tried {
    trial: Trial,
    /// The last seed that was tried.
    seed: u64,
    /// The check that caught it.
    by: Option<String>,
    /// Seeds whose run does not pass without the bug either, and what it says.
    broken: Vec<(u64, String)>,
    took: Duration,
}

impl Tried {
    fn is_good(&self) -> bool {
        self.by.is_some() && self.broken.is_empty()
    }
}

/// A run without a bug: scenario, point, seed.
type Plain = (PathBuf, BTreeMap<String, String>, u64);

/// `netsim gate`.
pub fn gate(args: &GateArgs) -> Outcome {
    let (trials, elsewhere) = load(&args.file, &args.only)?;
    std::fs::create_dir_all(&args.out).map_err(|error| Failure::io("can't make", &args.out, &error))?;
    let manner = Manner { directory: args.out.clone(), twice: false, watchdog: args.watchdog };
    let began = now();
    let (queue, plain) = (Mutex::new(VecDeque::from(trials)), Mutex::new(BTreeMap::new()));
    let (tell, told) = std::sync::mpsc::channel();
    let mut good = true;
    let mut caught = 0;
    let ended: Result<(), Failure> = std::thread::scope(|scope| {
        for _ in 0..parallel(args.jobs) {
            let (queue, plain, tell, manner) = (&queue, &plain, tell.clone(), &manner);
            scope.spawn(move || {
                while let Some(trial) = take(queue) {
                    if tell.send(examine(trial, manner, plain)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        for tried in told {
            let tried = tried?;
            good &= tried.is_good();
            caught += usize::from(tried.by.is_some());
            say(&tried);
        }
        Ok(())
    });
    ended?;
    for (mutant, why, test) in &elsewhere {
        println!("elsewhere {:3}  {:30} {why} Shown by {test}.", mutant.rule(), mutant.name());
    }
    let (elsewhere, took) = (elsewhere.len(), began.elapsed().as_secs());
    println!(
        "{caught} seeded bugs caught, {elsewhere} left to tests, in {took} s{}",
        if good { "" } else { ": NOT GOOD" }
    );
    Ok(good)
}

fn take(queue: &Mutex<VecDeque<Trial>>) -> Option<Trial> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// Reads the file. `only`: these bugs alone, all if there are none.
fn load(path: &Path, only: &[String]) -> Result<(Vec<Trial>, Vec<(Mutant, String, String)>), Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::io("can't read", path, &error))?;
    let wrong = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
    let gate: Gate = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let named = |name: &str| Mutant::parse(name).ok_or_else(|| wrong(format!("there is no bug {name}")));
    let mut seen = BTreeSet::new();
    let mut once = |mutant: Mutant| match seen.insert(mutant) {
        true => Ok(mutant),
        false => Err(wrong(format!("{} is listed twice", mutant.name()))),
    };
    let mut trials = Vec::new();
    for entry in gate.mutant {
        let mutant = once(named(&entry.name)?)?;
        let file = path.parent().unwrap_or(Path::new(".")).join(&entry.scenario);
        let scenario = Scenario::load(&file).map_err(|error| Failure::Usage(error.to_string()))?;
        let seeds = parse_range(&entry.seeds).map_err(&wrong)?;
        let mut points = scenario.points();
        points.retain(|point| entry.point.iter().all(|(name, value)| point.get(name) == Some(value)));
        let [point] = &points[..] else {
            return Err(wrong(format!("{}: its point must be one of the matrix of its scenario", entry.name)));
        };
        let (scenario, point) = (scenario.name().to_owned(), point.clone());
        trials.push(Trial { mutant, file, scenario, seeds, point });
    }
    let mut elsewhere = Vec::new();
    for entry in gate.elsewhere {
        elsewhere.push((once(named(&entry.name)?)?, entry.why, entry.test));
    }
    if let Some(missing) = Mutant::all().find(|mutant| !seen.contains(mutant)) {
        return Err(wrong(format!("{} is missing: name what catches it", missing.name())));
    }
    if !only.is_empty() {
        let wanted = only.iter().map(|name| named(name)).collect::<Result<BTreeSet<_>, _>>()?;
        trials.retain(|trial| wanted.contains(&trial.mutant));
        elsewhere.retain(|(mutant, ..)| wanted.contains(mutant));
    }
    Ok((trials, elsewhere))
}

/// Runs one bug through its seeds, and those without it.
fn examine(trial: Trial, manner: &Manner, plain: &Mutex<BTreeMap<Plain, Option<String>>>) -> Result<Tried, Failure> {
    let began = now();
    // Each has a directory of its own: others may run the same at the same time.
    let manner = &Manner { directory: manner.directory.join(trial.mutant.name()), ..manner.clone() };
    let (mut by, mut last, mut broken) = (None, trial.seeds.start, Vec::new());
    for seed in trial.seeds.clone() {
        last = seed;
        let job = trial.job(seed, Some(trial.mutant));
        let ran = run_one(&job, manner)?;
        by = failure(&ran.judgement);
        if by.is_some() {
            forget(manner, &job);
            break;
        }
    }
    for seed in trial.seeds.start..=last {
        let key = (trial.file.clone(), trial.point.clone(), seed);
        let known = plain.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let said = match known {
            Some(said) => said,
            None => {
                let job = trial.job(seed, None);
                let ran = run_one(&job, manner)?;
                let passed = ran.judgement.verdict == Verdict::Pass;
                if passed {
                    forget(manner, &job);
                }
                let said = (!passed).then(|| first(&ran.judgement));
                plain.lock().unwrap_or_else(PoisonError::into_inner).insert(key, said.clone());
                said
            }
        };
        broken.extend(said.map(|said| (seed, said)));
    }
    // It stays where something is left in it.
    let _gone_or_left = std::fs::remove_dir(&manner.directory);
    Ok(Tried { trial, seed: last, by, broken, took: began.elapsed() })
}

/// The check that failed, and what it says.
fn failure(judgement: &Judgement) -> Option<String> {
    let found = judgement.findings.iter().find(|finding| finding.verdict == Verdict::Fail)?;
    Some(format!("{}: {}", found.check, found.text.lines().next().unwrap_or_default()))
}

/// The first thing that is not as it should be.
fn first(judgement: &Judgement) -> String {
    let found = judgement.findings.iter().max_by_key(|finding| finding.verdict);
    let found = found.map(|f| format!("{}: {}", f.check, f.text.lines().next().unwrap_or_default()));
    format!("{} {}", judgement.verdict.name(), found.unwrap_or_default())
}

fn say(tried: &Tried) {
    let Tried { trial, seed, by, broken, took } = tried;
    let (word, by) = match by {
        Some(by) => ("caught", by.chars().take(120).collect()),
        None => ("ESCAPED", format!("no run of seeds {}..{} failed", trial.seeds.start, trial.seeds.end)),
    };
    let (mutant, seconds) = (trial.mutant, took.as_secs_f64());
    let scenario = format!("{} {seed}", trial.scenario);
    println!("{word:9} {:3}  {:30} {scenario:32} {seconds:5.1} s  {by}", mutant.rule(), mutant.name());
    if word == "ESCAPED" {
        println!("          {}", trial.job(*seed, Some(mutant)).replay());
    }
    for (seed, said) in broken {
        println!("BROKEN    without any bug seed {seed} is {said}");
        println!("          {}", trial.job(*seed, None).replay());
    }
}

#[allow(clippy::disallowed_methods, reason = "how long a run takes is a matter of real time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seeded_bug_is_in_the_gate_once_and_its_scenario_is_sound() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("gate.toml");
        let (trials, elsewhere) = load(&file, &[]).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(trials.len() + elsewhere.len(), Mutant::all().len());
        assert!(elsewhere.iter().all(|(_, why, test)| why.ends_with('.') && !test.is_empty()));
    }
}
