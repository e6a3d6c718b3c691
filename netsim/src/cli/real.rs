//! Runs over real packets, and programs behind their links.
//!
//! Real time passes alike for all, and a busy machine is late for all: so one run at a time, in this process.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tern_netsim::real::{self, Surroundings, topology, weather};
use tern_netsim::stage::Heading;
use tern_netsim_report::run_page;
use tern_netsim_scenario::{Driver, Scenario};
use tern_netsim_tun::Lab;
use tern_netsim_verdict::{BatchRun, Event, Line, judge, summary};

use super::batch::conclude;
use super::{Failure, Outcome, RunArgs, ShellArgs, files, one};

/// `netsim run --driver tun`.
pub fn run(args: &RunArgs) -> Outcome {
    if args.twice || args.mutant.is_some() || args.for_time.is_some() {
        let text = "--twice, --mutant and --for are for virtual time: leave them out, or --driver tun";
        return Err(Failure::Usage(text.to_owned()));
    }
    let mut all = Vec::new();
    for (file, scenario) in files::load(&args.paths)? {
        if !scenario.drivers().contains(&Driver::Tun) {
            if args.paths.contains(&file) {
                let text = format!("{}: not for this driver; its [scenario] says which: drivers", file.display());
                return Err(Failure::Usage(text));
            }
            // One of a directory.
            continue;
        }
        for seed in seeds(args, &scenario) {
            let wanted: BTreeMap<String, String> = args.point.iter().cloned().collect();
            for point in scenario.points() {
                if wanted.iter().all(|(name, value)| point.get(name) == Some(value)) {
                    let run = play(args, &file, &scenario, seed, &point)?;
                    all.push(run);
                }
            }
        }
    }
    if all.is_empty() {
        return Err(Failure::Usage("none of these scenarios is for this driver at such a point".to_owned()));
    }
    conclude(&all, &args.out, args.junit.as_deref())
}

fn seeds(args: &RunArgs, scenario: &Scenario) -> Vec<u64> {
    match (&args.seed, &args.seeds) {
        (Some(seed), _) => vec![*seed],
        (None, Some(range)) => range.clone().collect(),
        (None, None) => vec![scenario.seeds().start],
    }
}

/// A run and where it wrote its plan and its history.
pub struct Played {
    pub lines: Vec<Line>,
    pub directory: PathBuf,
}

/// One run, with its plan, logs and history in a directory of its own below `out`.
pub fn record(
    out: &Path,
    tern: Option<&Path>,
    file: &Path,
    scenario: &Scenario,
    seed: u64,
    point: &BTreeMap<String, String>,
) -> Result<Played, Failure> {
    let plan = scenario.plan(seed, point).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    let points: String = point.iter().map(|(name, value)| format!(" --point '{name}={value}'")).collect();
    let replay =
        format!("cargo run --release -p tern-netsim -- run {} --driver tun --seed {seed}{points}", file.display());
    let slug: String = point.iter().map(|(name, value)| format!("-{name}-{value}")).collect();
    let slug = format!("{}-{seed}{slug}-tun", scenario.name());
    let slug = slug.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' });
    let directory = out.join(slug.collect::<String>());
    fs::create_dir_all(&directory).map_err(|error| Failure::io("can't make", &directory, &error))?;
    let written = directory.join("plan.toml");
    fs::write(&written, plan.to_toml()).map_err(|error| Failure::io("can't write", &written, &error))?;
    let heading = Heading { replay, version: one::version(), mutant: None };
    let surroundings = Surroundings { tern: tern.map(Path::to_owned), logs: directory.join("logs") };
    let lines = real::play(plan, &heading, &surroundings).map_err(|error| Failure::Outside(error.to_string()))?;
    let history = directory.join("history.jsonl");
    one::write(&history, &lines).map_err(|error| Failure::io("can't write", &history, &error))?;
    Ok(Played { lines, directory })
}

fn play(
    args: &RunArgs,
    file: &Path,
    scenario: &Scenario,
    seed: u64,
    point: &BTreeMap<String, String>,
) -> Result<BatchRun, Failure> {
    let Played { lines, directory } = record(&args.out, args.tern.as_deref(), file, scenario, seed, point)?;
    let Some(Line { event: Event::Run(head), .. }) = lines.first() else {
        return Err(Failure::Outside("the history does not begin with a run".to_owned()));
    };
    let judgement = judge(&lines);
    let page = directory.join("report.html");
    fs::write(&page, run_page(&lines, &judgement)).map_err(|error| Failure::io("can't write", &page, &error))?;
    let mut run = BatchRun::of(head, &judgement);
    run.page = directory.file_name().map(|name| format!("{}/report.html", name.display()));
    print!("{}", summary(&run));
    println!("        {}", page.display());
    Ok(run)
}

/// `netsim shell`: a program behind the links of a scenario, with this terminal.
pub fn shell(args: &ShellArgs) -> Result<ExitCode, Failure> {
    let outside = |error: &dyn std::fmt::Display| Failure::Outside(error.to_string());
    let scenario = Scenario::load(&args.file).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    let wanted: BTreeMap<String, String> = args.point.iter().cloned().collect();
    let points = scenario.points();
    let point = points.iter().find(|point| wanted.iter().all(|(name, value)| point.get(name) == Some(value)));
    let point = point.ok_or_else(|| Failure::Usage(format!("the matrix has no such point; there are {points:?}")))?;
    let seed = args.seed.unwrap_or(scenario.seeds().start);
    let plan = scenario.plan(seed, point).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    let lab = Lab::start(&topology::lab_plan(&plan)).map_err(|error| outside(&error))?;
    eprint!("{}", lab.address_table().map_err(|error| outside(&error))?);
    let mut servers = Vec::new();
    for (host, command) in &args.serve {
        let mut server = std::process::Command::new("/bin/sh");
        server.arg("-c").arg(command);
        servers.push(lab.spawn(host, server).map_err(|error| outside(&error))?);
    }
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::Usage("what shall be run? Write it after --".to_owned()));
    };
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    let (over, until) = std::sync::mpsc::channel();
    let status = std::thread::scope(|scope| {
        let struck = args.faults.then(|| {
            let tell = |at_ns: u64, fault: &str, begins: bool| {
                eprintln!(
                    "{:9.3} s  {fault} {}",
                    Duration::from_nanos(at_ns).as_secs_f64(),
                    if begins { "begins" } else { "ends" }
                );
            };
            let (lab, plan) = (&lab, &plan);
            scope.spawn(move || weather::strike(lab, plan, &until, tell))
        });
        let status = lab.shell(&args.at, command).map_err(|error| outside(&error));
        drop(over);
        match struck.map(std::thread::ScopedJoinHandle::join) {
            Some(Ok(Err(error))) => Err(outside(&error)),
            Some(Err(_)) => Err(Failure::Outside("the thread of the faults panicked".to_owned())),
            Some(Ok(Ok(()))) | None => status,
        }
    })?;
    drop(servers);
    // As a shell says it: killed by a signal.
    let code =
        status.code().unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// A server and where it runs: `HOST=COMMAND`.
pub fn parse_serve(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(host, command)| (host.to_owned(), command.to_owned()));
    pair.ok_or_else(|| format!("{text} is no server; write HOST=COMMAND, such as eu='python3 -m http.server 80'"))
}
