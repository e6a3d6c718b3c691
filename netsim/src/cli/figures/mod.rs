//! `netsim figures`: what is promised of weak networks, measured anew.
//!
//! *Problem.* A figure in a document was true once, on somebody's machine.
//!
//! *Rule.* A file names scenarios, what to measure in their runs (see [`measure`]), and what has to be reached, as text
//! that people read too: `0.3 s + 1.5 RTT`. The command runs all of it in virtual time, or over real packets where it
//! is told to, and writes the table; it fails if something is not reached. The round trip is that of the run itself:
//! the fastest ack.

mod measure;
mod reach;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tern_netsim_scenario::{Driver, Scenario};
use tern_netsim_verdict::{Line, Verdict, judge};

use self::measure::Measure;
use self::reach::Reach;
use super::batch::{Job, Manner, Time, forget, parallel, run_all};
use super::{Failure, FiguresArgs, Outcome, parse_range, real};

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    figure: Vec<Entry>,
}

/// A figure as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// Beside the file.
    scenario: PathBuf,
    seeds: String,
    #[serde(default)]
    point: BTreeMap<String, String>,
    measure: Measure,
    /// By statistic.
    reach: BTreeMap<Statistic, Reach>,
}

/// What of many values is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Statistic {
    Mean,
    Median,
    P99,
    Max,
}

impl Statistic {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Median, "median"), (Self::Mean, "mean"), (Self::P99, "p99"), (Self::Max, "max")];

    /// `sorted` is not empty.
    fn of(self, sorted: &[f64]) -> f64 {
        // The nearest rank.
        let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).clamp(1, sorted.len()) - 1];
        match self {
            Self::Mean => sorted.iter().sum::<f64>() / sorted.len() as f64,
            Self::Median => at(50),
            Self::P99 => at(99),
            Self::Max => at(100),
        }
    }
}

/// What was measured of one figure.
#[derive(Debug, Default)]
struct Measured {
    values: Vec<f64>,
    round_trips_s: Vec<f64>,
    /// Runs that did not pass, or in which nothing could be measured.
    bad: Vec<String>,
}

/// `netsim figures`.
pub fn figures(args: &FiguresArgs) -> Outcome {
    let entries = load(&args.file, &args.only)?;
    std::fs::create_dir_all(&args.out).map_err(|error| Failure::io("can't make", &args.out, &error))?;
    let manner = Manner { directory: args.out.clone(), twice: false, watchdog: args.watchdog };
    let mut table = String::from(
        "| Case | Runs | Median | Mean | p99 | Max | RTT | To reach | |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut all_reached = true;
    for (entry, file, seeds) in &entries {
        let measured = run(entry, file, seeds.clone(), args, &manner)?;
        for words in &measured.bad {
            eprintln!("        {words}");
        }
        let (row, reached) = row(entry, measured);
        println!("{row}");
        let _infallible = writeln!(table, "{row}");
        all_reached &= reached;
    }
    if let Some(path) = &args.write {
        let (driver, what) = if is_tun(args) {
            (" --driver tun", "real packets between processes, so each time a little different")
        } else {
            ("", "virtual time, so anybody gets the same")
        };
        let command = format!("netsim figures {}{driver} --write {}", args.file.display(), path.display());
        let text =
            format!("# Figures\n\nWritten by `{command}`; {what}. RTT is the fastest ack of the runs.\n\n{table}");
        std::fs::write(path, text).map_err(|error| Failure::io("can't write", path, &error))?;
    }
    Ok(all_reached)
}

type Runs = Vec<(Entry, PathBuf, Range<u64>)>;

fn load(file: &Path, only: &[String]) -> Result<Runs, Failure> {
    let usage = |text: String| Failure::Usage(format!("{}: {text}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| Failure::io("can't read", file, &error))?;
    let parsed: File = toml::from_str(&text).map_err(|error| usage(error.to_string()))?;
    let beside = file.parent().unwrap_or(Path::new(""));
    let mut all = Vec::new();
    for entry in parsed.figure {
        if !only.is_empty() && !only.iter().any(|part| entry.name.contains(part.as_str())) {
            continue;
        }
        let seeds = parse_range(&entry.seeds).map_err(|error| usage(format!("{}: {error}", entry.name)))?;
        let path = beside.join(&entry.scenario);
        all.push((entry, path, seeds));
    }
    if all.is_empty() {
        return Err(usage("no figure has such a name".to_owned()));
    }
    Ok(all)
}

fn run(
    entry: &Entry,
    file: &Path,
    seeds: Range<u64>,
    args: &FiguresArgs,
    manner: &Manner,
) -> Result<Measured, Failure> {
    let scenario = Scenario::load(file).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    if !scenario.points().contains(&entry.point) {
        let text = format!("{}: {} has no point {:?}", entry.name, file.display(), entry.point);
        return Err(Failure::Usage(text));
    }
    let seeds = seeds.start..args.seeds.map_or(seeds.end, |count| seeds.end.min(seeds.start + count));
    if is_tun(args) {
        return run_over_packets(entry, file, &scenario, seeds, args);
    }
    let jobs: Vec<Job> = seeds
        .map(|seed| Job {
            file: file.to_owned(),
            scenario: scenario.name().to_owned(),
            seed,
            point: entry.point.clone(),
            mutant: None,
        })
        .collect();
    let mut measured = Measured::default();
    run_all(&jobs, Time::Once, parallel(args.jobs), manner, |ran| {
        take(entry, &ran.lines, ran.judgement.verdict, &ran.job.replay(), &mut measured);
        forget(manner, &ran.job);
    })?;
    Ok(measured)
}

fn is_tun(args: &FiguresArgs) -> bool {
    args.driver == "tun"
}

/// Real time passes alike for all: one run at a time.
fn run_over_packets(
    entry: &Entry,
    file: &Path,
    scenario: &Scenario,
    seeds: Range<u64>,
    args: &FiguresArgs,
) -> Result<Measured, Failure> {
    if !scenario.drivers().contains(&Driver::Tun) {
        let text =
            format!("{}: {} is not for this driver; its [scenario] says which: drivers", entry.name, file.display());
        return Err(Failure::Usage(text));
    }
    let mut measured = Measured::default();
    for seed in seeds {
        let played = real::record(&args.out, args.tern.as_deref(), file, scenario, seed, &entry.point)?;
        let replay = format!("seed {seed}, {}", played.directory.display());
        take(entry, &played.lines, judge(&played.lines).verdict, &replay, &mut measured);
    }
    Ok(measured)
}

fn take(entry: &Entry, lines: &[Line], verdict: Verdict, replay: &str, measured: &mut Measured) {
    if verdict != Verdict::Pass {
        measured.bad.push(format!("{verdict:?}: {replay}"));
        return;
    }
    let values = entry.measure.of(lines);
    if values.is_empty() {
        measured.bad.push(format!("nothing to measure: {replay}"));
    }
    measured.values.extend(values);
    measured.round_trips_s.extend(measure::round_trip_s(lines));
}

/// A line of the table, and whether all was reached.
fn row(entry: &Entry, mut measured: Measured) -> (String, bool) {
    let sort = |values: &mut Vec<f64>| values.sort_unstable_by(f64::total_cmp);
    sort(&mut measured.values);
    sort(&mut measured.round_trips_s);
    let rtt_s = if measured.round_trips_s.is_empty() { 0.0 } else { Statistic::Median.of(&measured.round_trips_s) };
    let unit = entry.measure.unit();
    let mut row = format!("| {} | {} |", entry.name, measured.values.len());
    let mut reached = measured.bad.is_empty() && !measured.values.is_empty();
    for (statistic, _) in Statistic::ALL {
        let value = if measured.values.is_empty() { f64::NAN } else { statistic.of(&measured.values) };
        let _infallible = write!(row, " {} |", unit.show(value));
        if let Some(reach) = entry.reach.get(&statistic) {
            // NaN is not reached either.
            reached &= value <= reach.value(rtt_s);
        }
    }
    let reach: Vec<String> = Statistic::ALL
        .iter()
        .filter_map(|(statistic, name)| Some((entry.reach.get(statistic)?, name)))
        .map(|(reach, name)| format!("{name} <= {reach} = {}", unit.show(reach.value(rtt_s))))
        .collect();
    let verdict = match (reached, measured.bad.len()) {
        (true, _) => "reached".to_owned(),
        (false, 0) => "**missed**".to_owned(),
        (false, bad) => format!("**missed**, {bad} runs bad"),
    };
    let _infallible = write!(row, " {} ms | {} | {verdict} |", (rtt_s * 1000.0).round(), reach.join("; "));
    (row, reached)
}
