//! Many runs: each a process of its own, a few at a time.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tern_netsim_report::{batch_page, run_page};
use tern_netsim_scenario::Scenario;
use tern_netsim_verdict::batch::{BatchRun, summary, totals, worst};
use tern_netsim_verdict::junit::junit;
use tern_netsim_verdict::{Event, Finding, Judgement, Line, Run, Verdict, judge, read};

use super::progress::Progress;
use super::{Failure, Outcome, RunArgs, files};

/// How often a run that is under way is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Of what a crashed run said last, so much is shown.
const LAST_WORDS: usize = 4000;

/// A run to be.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its scenario's file.
    pub file: PathBuf,
    /// Its name.
    pub scenario: String,
    /// Its seed.
    pub seed: u64,
    /// Its point of the matrix.
    pub point: BTreeMap<String, String>,
    /// A bug to switch on.
    pub mutant: Option<String>,
}

impl Job {
    /// What runs it again.
    pub fn replay(&self) -> String {
        let point: String = self.point.iter().map(|(name, value)| format!(" --point '{name}={value}'")).collect();
        let (features, mutant) = match &self.mutant {
            Some(name) => (" --features mutants", format!(" --mutant {name}")),
            None => ("", String::new()),
        };
        let (file, seed) = (self.file.display(), self.seed);
        format!("cargo run --release -p tern-netsim{features} -- run {file} --seed {seed}{point}{mutant}")
    }

    /// A name for files.
    pub fn slug(&self) -> String {
        let point: String = self.point.iter().map(|(name, value)| format!("-{name}-{value}")).collect();
        let mutant: String = self.mutant.iter().map(|name| format!("-{name}")).collect();
        let slug = format!("{}-{}{point}{mutant}", self.scenario, self.seed);
        slug.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
    }
}

/// A run that was.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Which.
    pub job: Job,
    /// What it is worth.
    pub judgement: Judgement,
    /// Its history; empty if there is none.
    pub lines: Vec<Line>,
    /// How long it took, in real time.
    pub took: Duration,
}

/// How runs are run.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Where files of runs go, one directory each.
    pub directory: PathBuf,
    /// Each is played twice.
    pub twice: bool,
    /// Ended after so long.
    pub watchdog: Duration,
}

/// `netsim run`.
pub fn run(args: &RunArgs) -> Outcome {
    let scenarios = files::load(&args.paths)?;
    let jobs = jobs(args, &scenarios)?;
    fs::create_dir_all(&args.out).map_err(|error| Failure::io("can't make", &args.out, &error))?;
    let manner = Manner { directory: args.out.clone(), twice: args.twice, watchdog: args.watchdog };
    let of = args.for_time.is_none().then(|| jobs.len().try_into().unwrap_or(u64::MAX));
    let single = of == Some(1);
    let mut progress = Progress::new();
    let (mut all, mut bad) = (Vec::new(), 0);
    let mut written = Ok(());
    let time = args.for_time.map_or(Time::Once, Time::OverAndOver);
    run_all(&jobs, time, parallel(args.jobs), &manner, |ran| {
        let passed = ran.judgement.verdict == Verdict::Pass;
        bad += u64::from(!passed);
        let mut short = ran.short();
        if passed && !args.keep && !single {
            // Nobody asks for the history of a run that passed; its plan and seed make it again.
            forget(&manner, &ran.job);
        } else if let Err(failure) = ran.write_page(&manner) {
            written = Err(failure);
        } else {
            short.page = Some(format!("{}/report.html", ran.job.slug()));
        }
        progress.clear();
        say(&ran, &short, single || args.keep);
        if let Some(page) = &short.page {
            println!("        {}", args.out.join(page).display());
        }
        all.push(short);
        progress.at(all.len().try_into().unwrap_or(u64::MAX), of, bad);
    })?;
    written?;
    progress.clear();
    all.sort_by(|a, b| (&a.scenario, a.seed, &a.point).cmp(&(&b.scenario, b.seed, &b.point)));
    conclude(&all, &args.out, args.junit.as_deref())
}

/// Writes what is told of a batch, and says how it went.
pub fn conclude(all: &[BatchRun], out: &Path, junit_file: Option<&Path>) -> Outcome {
    let write =
        |path: &Path, text: String| fs::write(path, text).map_err(|error| Failure::io("can't write", path, &error));
    if let Some(path) = junit_file {
        write(path, junit(all))?;
    }
    if all.len() > 1 {
        let page = out.join("report.html");
        write(&page, batch_page(all))?;
        println!("{}", page.display());
    }
    println!("{}", totals(all).trim_end());
    Ok(!all.is_empty() && worst(all) == Verdict::Pass)
}

impl Ran {
    /// It in short, for batches.
    pub fn short(&self) -> BatchRun {
        let head = match self.lines.first() {
            Some(Line { event: Event::Run(run), .. }) => (**run).clone(),
            _ => Run {
                scenario: self.job.scenario.clone(),
                seed: self.job.seed,
                point: self.job.point.clone(),
                driver: "sim".into(),
                replay: self.job.replay(),
                mutant: self.job.mutant.clone(),
                ..Run::default()
            },
        };
        BatchRun::of(&head, &self.judgement)
    }

    /// Writes its report beside its history.
    pub fn write_page(&self, manner: &Manner) -> Result<(), Failure> {
        let path = directory(manner, &self.job).join("report.html");
        let page = run_page(&self.lines, &self.judgement);
        fs::write(&path, page).map_err(|error| Failure::io("can't write", &path, &error))
    }
}

/// How many runs at a time.
pub fn parallel(wanted: Option<usize>) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    wanted.unwrap_or(processors).max(1)
}

/// All runs that are asked for: scenario by scenario within a seed, so that a batch that is cut short has seen all.
fn jobs(args: &RunArgs, scenarios: &[(PathBuf, Scenario)]) -> Result<Vec<Job>, Failure> {
    let wanted: BTreeMap<String, String> = args.point.iter().cloned().collect();
    let mut jobs = Vec::new();
    let span = |scenario: &Scenario| match (&args.seed, &args.seeds) {
        (Some(seed), _) => *seed..seed.saturating_add(1),
        (None, Some(range)) => range.clone(),
        (None, None) => scenario.seeds().start..scenario.seeds().start.saturating_add(1),
    };
    for (file, scenario) in scenarios {
        let points: Vec<_> =
            scenario.points().into_iter().filter(|point| wanted.iter().all(|(k, v)| point.get(k) == Some(v))).collect();
        if points.is_empty() {
            let known: Vec<String> = scenario.points().iter().map(|point| format!("{point:?}")).collect();
            let text = format!("{}: the matrix has no such point; there are {}", file.display(), known.join(", "));
            return Err(Failure::Usage(text));
        }
        for seed in span(scenario) {
            for point in &points {
                jobs.push(Job {
                    file: file.clone(),
                    scenario: scenario.name().to_owned(),
                    seed,
                    point: point.clone(),
                    mutant: args.mutant.clone(),
                });
            }
        }
    }
    // By offset from each scenario's first seed, not by seed: their ranges may differ.
    let first: BTreeMap<&PathBuf, u64> =
        scenarios.iter().map(|(file, scenario)| (file, span(scenario).start)).collect();
    jobs.sort_by_key(|job| job.seed.saturating_sub(first.get(&job.file).copied().unwrap_or(0)));
    Ok(jobs)
}

/// How long a batch goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Until each job was run.
    Once,
    /// Until each job was run, or this time is up.
    Within(Duration),
    /// Over and over, with later seeds each time, until this time is up.
    OverAndOver(Duration),
}

/// Runs jobs, `count` at a time. One that has begun is always run to its end.
pub fn run_all(
    jobs: &[Job],
    time: Time,
    count: usize,
    manner: &Manner,
    mut done: impl FnMut(Ran),
) -> Result<(), Failure> {
    let began = now();
    let queue: Mutex<VecDeque<Job>> = Mutex::new(jobs.iter().cloned().collect());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..count {
            let (queue, tell) = (&queue, tell.clone());
            scope.spawn(move || {
                loop {
                    if matches!(time, Time::Within(time) | Time::OverAndOver(time) if began.elapsed() >= time) {
                        return;
                    }
                    let job = {
                        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                        let Some(job) = queue.pop_front() else { return };
                        if matches!(time, Time::OverAndOver(_)) {
                            // The same scenario and point again, with the seed after the last one of this batch.
                            let seeds = jobs.iter().filter(|other| other.file == job.file && other.point == job.point);
                            let step = u64::try_from(seeds.count()).unwrap_or(1).max(1);
                            queue.push_back(Job { seed: job.seed.saturating_add(step), ..job.clone() });
                        }
                        job
                    };
                    let ran = run_one(&job, manner);
                    if tell.send(ran).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        for ran in told {
            done(ran?);
        }
        Ok(())
    })
}

fn directory(manner: &Manner, job: &Job) -> PathBuf {
    manner.directory.join(job.slug())
}

/// Takes away what a run left in its directory.
pub fn forget(manner: &Manner, job: &Job) {
    // What can't be removed stays: it is a leftover in a directory for such things.
    let _gone = fs::remove_dir_all(directory(manner, job));
}

/// Runs one, in a process of its own (or in two, one after the other), and judges it.
pub fn run_one(job: &Job, manner: &Manner) -> Result<Ran, Failure> {
    let at = directory(manner, job);
    fs::create_dir_all(&at).map_err(|error| Failure::io("can't make", &at, &error))?;
    let began = now();
    let history = at.join("history.jsonl");
    let outcome = child(job, &history, Some(&at.join("plan.toml")), manner.watchdog)?;
    let (lines, mut judgement) = match outcome {
        Ended::Well => match load(&history) {
            Ok(lines) => {
                let judgement = judge(&lines);
                (lines, judgement)
            }
            Err(text) => (Vec::new(), without_history(Verdict::Invalid, "history", text)),
        },
        Ended::Late => {
            let text = format!("it did not end within {} s of real time, and was ended", manner.watchdog.as_secs());
            (Vec::new(), without_history(Verdict::Invalid, "watchdog", text))
        }
        Ended::Badly(status, words) => {
            (Vec::new(), without_history(Verdict::Fail, "crash", format!("the run ended with {status}: {words}")))
        }
    };
    if manner.twice && !lines.is_empty() {
        let again = at.join("again.jsonl");
        let text = match child(job, &again, None, manner.watchdog)? {
            Ended::Well => difference(&history, &again),
            _ => Some("the second run did not end as the first".to_owned()),
        };
        if let Some(text) = text {
            judgement.findings.push(Finding { check: "determinism".into(), verdict: Verdict::Fail, at_ns: 0, text });
            judgement.verdict = Verdict::Fail;
        } else {
            let _gone = fs::remove_file(&again);
        }
    }
    Ok(Ran { job: job.clone(), judgement, lines, took: began.elapsed() })
}

fn without_history(verdict: Verdict, check: &str, text: String) -> Judgement {
    let finding = Finding { check: check.to_owned(), verdict, at_ns: 0, text };
    Judgement { verdict, findings: vec![finding], figures: Default::default() }
}

/// A history from a file.
pub fn load(path: &Path) -> Result<Vec<Line>, String> {
    let file = fs::File::open(path).map_err(|error| format!("can't open {}: {error}", path.display()))?;
    read::read(BufReader::new(file)).map_err(|error| format!("{}: {error}", path.display()))
}

/// The first line in which two histories differ.
pub fn difference(a: &Path, b: &Path) -> Option<String> {
    let (first, second) = match (fs::read_to_string(a), fs::read_to_string(b)) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(error), _) | (_, Err(error)) => return Some(format!("a history can't be read: {error}")),
    };
    let (mut first, mut second) = (first.lines(), second.lines());
    for number in 1.. {
        match (first.next(), second.next()) {
            (None, None) => return None,
            (one, other) if one == other => {}
            (one, other) => {
                let (one, other) = (one.unwrap_or("(the end)"), other.unwrap_or("(the end)"));
                return Some(format!("two runs of one seed differ in line {number}:\n  {one}\n  {other}"));
            }
        }
    }
    None
}

/// How a child ended.
enum Ended {
    Well,
    Late,
    Badly(ExitStatus, String),
}

fn child(job: &Job, history: &Path, plan: Option<&Path>, watchdog: Duration) -> Result<Ended, Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::Outside(format!("can't find itself: {error}")))?;
    let mut command = Command::new(program);
    command.arg("one").arg(&job.file).arg("--seed").arg(job.seed.to_string()).arg("--history").arg(history);
    command.arg("--replay").arg(job.replay());
    for (name, value) in &job.point {
        command.arg("--point").arg(format!("{name}={value}"));
    }
    if let Some(plan) = plan {
        command.arg("--plan").arg(plan);
    }
    if let Some(mutant) = &job.mutant {
        command.arg("--mutant").arg(mutant);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| Failure::Outside(format!("can't start a run: {error}")))?;
    let reader = child.stderr.take().map(|mut err| {
        std::thread::spawn(move || {
            let mut words = Vec::new();
            // What can't be read of its last words is missing from them.
            let _read = err.read_to_end(&mut words);
            String::from_utf8_lossy(&words).into_owned()
        })
    });
    let status = wait(&mut child, watchdog);
    let words = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
    if std::env::var_os("TERN_NETSIM_LOG").is_some() {
        eprint!("{words}");
    }
    match status {
        None => Ok(Ended::Late),
        Some(status) if status.success() => Ok(Ended::Well),
        // It says itself what is wrong with its arguments or surroundings.
        Some(status) if status.code() == Some(2) => Err(Failure::Usage(words.trim().to_owned())),
        Some(status) => {
            let cut = words.len().saturating_sub(LAST_WORDS);
            let cut = (cut..words.len()).find(|at| words.is_char_boundary(*at)).unwrap_or(cut);
            Ok(Ended::Badly(status, words[cut..].trim().to_owned()))
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this thread has nothing to do but to wait for a process")]
fn wait(child: &mut Child, watchdog: Duration) -> Option<ExitStatus> {
    let began = now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if began.elapsed() < watchdog => std::thread::sleep(LOOK_EVERY),
            _ => {
                // It may have ended just now; then there is nothing to kill.
                let _killed = child.kill();
                let _reaped = child.wait();
                return None;
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a run takes is a matter of real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// How long a run was in its own time.
fn lasted(lines: &[Line]) -> Duration {
    Duration::from_nanos(lines.last().map_or(0, |line| line.at_ns))
}

/// One run, on the terminal.
pub fn say(ran: &Ran, short: &BatchRun, whole: bool) {
    let Ran { job, judgement, lines, took } = ran;
    if judgement.verdict == Verdict::Pass && !whole {
        let point: String = job.point.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let (virtual_s, took) = (lasted(lines).as_secs(), took.as_secs_f64());
        println!("PASS {} seed {}{point}: {virtual_s} s in {took:.1} s", job.scenario, job.seed);
        return;
    }
    print!("{}", summary(short));
    if let Some(Line { event: Event::End { shape: Some(shape), packets, .. }, .. }) = lines.last() {
        let (virtual_s, took) = (lasted(lines).as_secs(), took.as_secs_f64());
        println!("        {packets} packets of shape {shape}; {virtual_s} s in {took:.1} s");
    }
    if judgement.verdict == Verdict::Pass {
        println!("        replay: {}", job.replay());
    }
}
