//! Random scenarios, and failures cut down to what is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tern_netsim_scenario::{Plan, Scenario, random, shrink as least_of};
use tern_netsim_verdict::{Judgement, Verdict};

use super::batch::{self, Job, Manner, Ran, Time};
use super::progress::Progress;
use super::{ExploreArgs, Failure, Outcome, ShrinkArgs};

/// Random scenarios that are written at a time: more than a terminal's patience needs between two looks at the clock.
const AT_A_TIME: u64 = 16;

/// `netsim explore`.
pub fn explore(args: &ExploreArgs) -> Outcome {
    fs::create_dir_all(&args.out).map_err(|error| Failure::io("can't make", &args.out, &error))?;
    let manner = Manner { directory: args.out.clone(), twice: false, watchdog: args.watchdog };
    let mut progress = Progress::new();
    let (mut all, mut bad, mut failures) = (Vec::new(), 0, Vec::new());
    let clock = Clock::start(args.for_time);
    let mut seed = args.seed;
    while !clock.is_up() {
        let mut jobs = Vec::new();
        for _ in 0..AT_A_TIME {
            jobs.push(written(args, seed)?);
            seed = seed.saturating_add(1);
        }
        batch::run_all(&jobs, Time::Within(clock.left()), batch::parallel(args.jobs), &manner, |ran| {
            let passed = ran.judgement.verdict == Verdict::Pass;
            bad += u64::from(!passed);
            let mut short = ran.short();
            progress.clear();
            batch::say(&ran, &short, false);
            if passed {
                batch::forget(&manner, &ran.job);
            } else {
                short.page = Some(format!("{}/report.html", ran.job.slug()));
                failures.push(ran);
            }
            all.push(short);
            progress.at(all.len().try_into().unwrap_or(u64::MAX), None, bad);
        })?;
        for job in jobs {
            if !failures.iter().any(|ran| ran.job.file == job.file) {
                // It follows from its seed; a leftover does no harm.
                let _gone = fs::remove_file(&job.file);
            }
        }
    }
    progress.clear();
    for ran in &failures {
        ran.write_page(&manner)?;
        if args.budget > 0 && ran.judgement.verdict == Verdict::Fail {
            let to = args.out.join(ran.job.slug()).join("minimal.toml");
            cut_down(ran, &to, args.budget, args.watchdog)?;
        }
    }
    all.sort_by_key(|run| run.seed);
    batch::conclude(&all, &args.out, args.junit.as_deref())
}

/// The random scenario of a seed, as a file.
fn written(args: &ExploreArgs, seed: u64) -> Result<Job, Failure> {
    let file = args.out.join(format!("explore-{seed}.toml"));
    fs::write(&file, random::text(seed)).map_err(|error| Failure::io("can't write", &file, &error))?;
    let scenario = Scenario::load(&file).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    let point = scenario.points().into_iter().next().unwrap_or_default();
    Ok(Job { file, scenario: scenario.name().to_owned(), seed, point, mutant: args.mutant.clone() })
}

/// `netsim shrink`.
pub fn shrink(args: &ShrinkArgs) -> Outcome {
    let scenario = Scenario::load(&args.file).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    let wanted: BTreeMap<String, String> = args.point.iter().cloned().collect();
    let points: Vec<_> =
        scenario.points().into_iter().filter(|point| wanted.iter().all(|(k, v)| point.get(k) == Some(v))).collect();
    let [point] = points.as_slice() else {
        return Err(Failure::Usage(format!("{} points are meant; say one with --point name=value", points.len())));
    };
    let scratch = scratch()?;
    let manner = Manner { directory: scratch.path().to_owned(), twice: false, watchdog: args.watchdog };
    let job = Job {
        file: args.file.clone(),
        scenario: scenario.name().to_owned(),
        seed: args.seed,
        point: point.clone(),
        mutant: args.mutant.clone(),
    };
    let ran = batch::run_one(&job, &manner)?;
    if ran.judgement.verdict != Verdict::Fail {
        println!(
            "{} seed {}: {}, so there is nothing to cut down",
            job.scenario,
            job.seed,
            ran.judgement.verdict.name()
        );
        return Ok(ran.judgement.verdict == Verdict::Pass);
    }
    cut_down(&ran, &args.out, args.budget, args.watchdog)?;
    Ok(true)
}

fn scratch() -> Result<tempfile::TempDir, Failure> {
    tempfile::tempdir().map_err(|error| Failure::Outside(format!("no temporary directory: {error}")))
}

/// Names of the checks that failed.
fn failed(judgement: &Judgement) -> BTreeSet<String> {
    let fails = judgement.findings.iter().filter(|finding| finding.verdict == Verdict::Fail);
    fails.map(|finding| finding.check.clone()).collect()
}

/// Cuts the plan of a failed run down as far as it still fails in one of the same ways, and writes it.
fn cut_down(ran: &Ran, to: &Path, budget: usize, watchdog: Duration) -> Result<(), Failure> {
    let scenario = Scenario::load(&ran.job.file).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    let plan = scenario.plan(ran.job.seed, &ran.job.point).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    let wanted = failed(&ran.judgement);
    let first_ns = ran.judgement.findings.iter().filter(|finding| finding.verdict == Verdict::Fail);
    let first_ns = first_ns.map(|finding| finding.at_ns).min().unwrap_or(plan.duration_ns);
    let scratch = scratch()?;
    let manner = Manner { directory: scratch.path().to_owned(), twice: false, watchdog };
    let tried = AtomicUsize::new(0);
    let mut progress = Progress::new();
    let still_fails = |candidate: &Plan| {
        let number = tried.fetch_add(1, Ordering::Relaxed);
        progress.at(number.try_into().unwrap_or(u64::MAX), budget.try_into().ok(), 0);
        let file = scratch.path().join(format!("candidate-{number}.toml"));
        let job = Job { file: file.clone(), point: BTreeMap::new(), ..ran.job.clone() };
        // What can't be written or run is no smaller failure.
        let fails = fs::write(&file, candidate.to_toml()).is_ok()
            && batch::run_one(&job, &manner).is_ok_and(|again| !failed(&again.judgement).is_disjoint(&wanted));
        batch::forget(&manner, &job);
        fails
    };
    let least = least_of(&plan, first_ns, budget, still_fails);
    progress.clear();
    fs::write(to, least.to_toml()).map_err(|error| Failure::io("can't write", to, &error))?;
    let size = |plan: &Plan| {
        let Plan { faults, devices, loads, duration_ns, .. } = plan;
        let (faults, devices, loads) = (faults.len(), devices.len(), loads.len());
        format!("{faults} faults, {devices} devices, {loads} loads, {} s", duration_ns / 1_000_000_000)
    };
    let runs = tried.load(Ordering::Relaxed);
    println!("cut down from {} to {} in {runs} runs: {}", size(&plan), size(&least), to.display());
    Ok(())
}

/// Real time that is left.
struct Clock {
    began: std::time::Instant,
    lasts: Duration,
}

impl Clock {
    fn start(lasts: Duration) -> Self {
        Self { began: batch::now(), lasts }
    }

    fn left(&self) -> Duration {
        self.lasts.saturating_sub(self.began.elapsed())
    }

    fn is_up(&self) -> bool {
        self.left().is_zero()
    }
}
