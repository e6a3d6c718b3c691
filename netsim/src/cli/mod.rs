//! The command line.
//!
//! Exit codes: 0, every run passed; 1, one did not; 2, the command line or a scenario is wrong, and nothing was run;
//! 3, something outside is missing (a directory that can't be written, a permission).

mod batch;
mod chaos;
mod compare;
mod explore;
mod figures;
mod files;
#[cfg(feature = "mutants")]
mod gate;
mod one;
mod progress;
mod real;
mod replay;

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tern_netsim::compare::{CompareError, Peer, sockets};

/// A day of minutes: nobody measures longer in one go.
const MINUTES_MAX: f64 = 1440.0;

/// tern in virtual time: whole regions, edges and clients over links that fail, replayable from a seed.
#[derive(Debug, Parser)]
#[command(name = "netsim", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs scenarios and judges them.
    Run(RunArgs),
    /// Reads scenarios, and says what is wrong with them, with line and column.
    Check {
        /// Files, or directories of them.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Runs again what a directory of `netsim run --out` holds, and compares the histories line by line.
    Replay {
        /// The directory of one run: `plan.toml` and `history.jsonl`.
        run: PathBuf,
    },
    /// Judges a history again, without running anything.
    Judge {
        /// `history.jsonl` of a run.
        history: PathBuf,
        /// Writes the report there.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Makes up topologies, loads and faults, one seed after the other, and cuts down what fails.
    Explore(ExploreArgs),
    /// Cuts a failing run down to the least scenario that fails in the same way.
    Shrink(ShrinkArgs),
    /// Switches each seeded bug on in turn, and sees that the scenario that is to catch it does; only where netsim was
    /// built with the feature `mutants`.
    Gate(GateArgs),
    /// Measures what is promised of weak networks, and says whether it is reached.
    Figures(FiguresArgs),
    /// Kills, pauses and cuts off parts of a real system under load, and says what its users noticed.
    Chaos {
        #[command(subcommand)]
        command: chaos::ChaosCommand,
    },
    /// Lists the links that have a name.
    Profiles,
    /// Runs any program behind a link of a scenario, with this terminal: `netsim shell FILE --at alice-phone -- curl ...`.
    /// All hosts are there, and no faults strike. Needs root.
    Shell(ShellArgs),
    /// Measures tern beside other messengers, on the same links at the same time, over real packets. Needs root.
    Compare(CompareArgs),
    /// Is a device of a run over real packets: what `run --driver tun` starts.
    #[command(hide = true)]
    Device,
    /// Is the TCP messenger's server: what `compare` starts.
    #[command(hide = true)]
    Relay {
        /// Where it listens.
        listen: std::net::SocketAddr,
        /// Its certificate.
        chain: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// Is the TCP messenger's client on a device: what `compare` starts.
    #[command(hide = true)]
    Messenger,
    /// Plays one plan and writes its history: what `run` starts.
    #[command(hide = true)]
    One(OneArgs),
}

/// Of `run`.
#[derive(Args, Debug)]
struct RunArgs {
    /// Files, or directories of them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Virtual time (sim), or real packets between processes in network namespaces (tun), which needs root.
    #[arg(long, value_parser = ["sim", "tun"], default_value = "sim")]
    driver: String,
    /// With --driver tun: the tern program; beside this one, if not said.
    #[arg(long, value_name = "PATH")]
    tern: Option<PathBuf>,
    /// With this seed; without it and the two below, with the first seed of each scenario.
    #[arg(long, conflicts_with_all = ["seeds", "for_time"])]
    seed: Option<u64>,
    /// With all seeds from A to below B.
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// With one seed after the other until this time is up, beginning with that of --seeds if given: 90s, 10m, 2h.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    for_time: Option<Duration>,
    /// Only at these points of the matrix: name=value.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    point: Vec<(String, String)>,
    /// Runs at a time; as many as there are processors, if not said.
    #[arg(long)]
    jobs: Option<usize>,
    /// Plays each run twice, in two processes, and compares the histories.
    #[arg(long)]
    twice: bool,
    /// Switches a seeded bug on; only where netsim was built with the feature `mutants`.
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// Where reports go, and the histories of runs that did not pass.
    #[arg(long, value_name = "DIR", default_value = "netsim-runs")]
    out: PathBuf,
    /// Keeps the history of every run, and writes a report for each.
    #[arg(long)]
    keep: bool,
    /// Writes results for a CI system there, as JUnit XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// A run that takes longer is ended, and is INVALID.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "10m")]
    watchdog: Duration,
}

/// Of `figures`.
#[derive(Args, Debug)]
struct FiguresArgs {
    /// Which figures there are, and what has to be reached.
    #[arg(default_value = "netsim/figures.toml")]
    file: PathBuf,
    /// Only figures whose name holds this; may be given again.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Virtual time (sim), or real packets between processes in network namespaces (tun), which needs root and a quiet
    /// machine.
    #[arg(long, value_parser = ["sim", "tun"], default_value = "sim")]
    driver: String,
    /// With --driver tun: the tern program; beside this one, if not said.
    #[arg(long, value_name = "PATH")]
    tern: Option<PathBuf>,
    /// At most so many seeds of each.
    #[arg(long, value_name = "COUNT")]
    seeds: Option<u64>,
    /// Runs at a time; as many as there are processors, if not said.
    #[arg(long)]
    jobs: Option<usize>,
    /// Writes the table there, as Markdown.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Where histories are while they are needed.
    #[arg(long, value_name = "DIR", default_value = "netsim-runs/figures")]
    out: PathBuf,
    /// A run that takes longer is ended, and is bad.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "3m")]
    watchdog: Duration,
}

/// Of `shell`.
#[derive(Args, Debug)]
struct ShellArgs {
    /// The scenario.
    file: PathBuf,
    /// The host: a device, a region, or a further edge.
    #[arg(long, value_name = "HOST")]
    at: String,
    /// Also runs a command of a shell in a host, for as long as the program runs: eu='python3 -m http.server 80'.
    #[arg(long, value_name = "HOST=COMMAND", value_parser = real::parse_serve)]
    serve: Vec<(String, String)>,
    /// The faults of the scenario strike its links, from the program's start on.
    #[arg(long)]
    faults: bool,
    /// The seed; the scenario's first, if not said.
    #[arg(long)]
    seed: Option<u64>,
    /// The point of the matrix, if there are several: name=value.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    point: Vec<(String, String)>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Of `compare`.
#[derive(Args, Debug)]
struct CompareArgs {
    /// Scenarios; the plan's first device is on the weak link. Without one, those of netsim/scenarios/compare.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The seed; each scenario's first, if not said.
    #[arg(long)]
    seed: Option<u64>,
    /// So long messages are written, at most as long as the scenario does: 10, or 0.5.
    #[arg(long, value_name = "M", default_value_t = 10.0, value_parser = parse_minutes)]
    minutes: f64,
    /// Beside whom: tcp (a careful messenger over TCP and TLS), mqtt (mosquitto, paho-mqtt), xmpp (ejabberd, slixmpp).
    #[arg(long, value_name = "PEERS", value_delimiter = ',', default_value = "tcp,mqtt,xmpp")]
    against: Vec<Peer>,
    /// The point of the matrix, if there are several: name=value.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    point: Vec<(String, String)>,
    /// Prints everything as JSON, every message included.
    #[arg(long)]
    json: bool,
    /// Writes the tables there, as Markdown.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// The tern program; beside this one, if not said.
    #[arg(long, value_name = "PATH")]
    tern: Option<PathBuf>,
    /// A Python that has paho-mqtt and slixmpp.
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
    /// Where histories and logs go.
    #[arg(long, value_name = "DIR", default_value = "netsim-runs/compare")]
    out: PathBuf,
}

/// Of `explore`.
#[derive(Args, Debug)]
struct ExploreArgs {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// So long: 90s, 10m, 2h.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time, default_value = "1m")]
    for_time: Duration,
    /// Runs at a time; as many as there are processors, if not said.
    #[arg(long)]
    jobs: Option<usize>,
    /// Switches a seeded bug on; only where netsim was built with the feature `mutants`.
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// Where scenarios, histories and reports go.
    #[arg(long, value_name = "DIR", default_value = "netsim-runs")]
    out: PathBuf,
    /// Runs that may be spent on cutting one failure down; 0 leaves failures as they are.
    #[arg(long, default_value_t = 200)]
    budget: usize,
    /// Writes results for a CI system there, as JUnit XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// A run that takes longer is ended, and is INVALID.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "10m")]
    watchdog: Duration,
}

/// Of `shrink`.
#[derive(Args, Debug)]
struct ShrinkArgs {
    /// The scenario.
    file: PathBuf,
    /// The seed that fails.
    #[arg(long)]
    seed: u64,
    /// The point of the matrix, if there are several: name=value.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    point: Vec<(String, String)>,
    /// Where the scenario goes.
    #[arg(long, value_name = "FILE", default_value = "minimal.toml")]
    out: PathBuf,
    /// Runs that may be spent on it.
    #[arg(long, default_value_t = 300)]
    budget: usize,
    /// Switches a seeded bug on; only where netsim was built with the feature `mutants`.
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// A run that takes longer is ended, and is INVALID.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "10m")]
    watchdog: Duration,
}

/// Of `gate`.
#[derive(Args, Debug)]
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "only the gate reads it"))]
struct GateArgs {
    /// Which bugs there are, and what catches them.
    #[arg(default_value = "netsim/gate.toml")]
    file: PathBuf,
    /// Only this bug; may be given again.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Runs at a time; as many as there are processors, if not said.
    #[arg(long)]
    jobs: Option<usize>,
    /// Where the histories go of runs that were not as expected.
    #[arg(long, value_name = "DIR", default_value = "netsim-runs/gate")]
    out: PathBuf,
    /// A run that takes longer is ended, and catches nothing.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "3m")]
    watchdog: Duration,
}

/// Of `one`.
#[derive(Args, Debug)]
struct OneArgs {
    /// The scenario.
    file: PathBuf,
    /// The seed.
    #[arg(long)]
    seed: u64,
    /// The point of the matrix.
    #[arg(long, value_parser = parse_pair)]
    point: Vec<(String, String)>,
    /// Where the history goes.
    #[arg(long)]
    history: PathBuf,
    /// Where the plan goes.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// What the history calls its replay command.
    #[arg(long, default_value = "")]
    replay: String,
    /// A bug to switch on.
    #[arg(long)]
    mutant: Option<String>,
}

/// Why nothing came of a command.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The command line or a scenario is wrong.
    #[error("{0}")]
    Usage(String),
    /// Something outside is missing.
    #[error("{0}")]
    Outside(String),
}

impl Failure {
    fn io(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Outside(format!("{what} {}: {error}", path.display()))
    }
}

/// Whether everything passed.
type Outcome = Result<bool, Failure>;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) if args.driver == "tun" => real::run(&args),
        Command::Run(args) => batch::run(&args),
        Command::Shell(args) => match real::shell(&args) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Command::Chaos { command } => match chaos::chaos(command) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Command::Device => match tern_netsim::real::device::run() {
            Ok(()) => Ok(true),
            Err(error) => Err(Failure::Outside(error.to_string())),
        },
        Command::Compare(args) => compare::compare(&args),
        Command::Relay { listen, chain, key } => end(sockets::relay(listen, &chain, &key)),
        Command::Messenger => end(sockets::messenger()),
        Command::Check { paths } => files::check(&paths),
        Command::Replay { run } => replay::replay(&run),
        Command::Judge { history, html } => replay::judge_again(&history, html.as_deref()),
        Command::Explore(args) => explore::explore(&args),
        Command::Shrink(args) => explore::shrink(&args),
        Command::Figures(args) => figures::figures(&args),
        Command::Profiles => {
            files::profiles();
            Ok(true)
        }
        #[cfg(feature = "mutants")]
        Command::Gate(args) => gate::gate(&args),
        #[cfg(not(feature = "mutants"))]
        Command::Gate(args) => {
            let what =
                format!("{} needs a netsim with seeded bugs: build it with --features mutants", args.file.display());
            Err(Failure::Usage(what))
        }
        Command::One(args) => one::one(args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("netsim: {failure}");
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 3 })
        }
    }
}

/// Of a program that only another one starts.
fn end(result: Result<(), CompareError>) -> Outcome {
    result.map(|()| true).map_err(|error| Failure::Outside(error.to_string()))
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    match parsed {
        Some(range) if range.start < range.end => Ok(range),
        Some(_) => Err(format!("{text} holds no seed; write A..B with A below B")),
        None => Err(format!("{text} is no range; write 0..100")),
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" | "" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let parsed = number.parse::<u64>().ok().zip(seconds).and_then(|(number, unit)| number.checked_mul(unit));
    parsed.map(Duration::from_secs).ok_or_else(|| format!("{text} is no time; write 90s, 10m or 2h"))
}

fn parse_minutes(text: &str) -> Result<f64, String> {
    let parsed = text.parse::<f64>().ok().filter(|minutes| *minutes > 0.0 && *minutes <= MINUTES_MAX);
    parsed.ok_or_else(|| format!("{text} are no minutes; write 10, or 0.5"))
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    pair.ok_or_else(|| format!("{text} is no point; write name=value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_times_and_points_are_read_or_refused_with_an_example() {
        assert_eq!(parse_range("3..9"), Ok(3..9));
        assert!(parse_range("9..3").unwrap_err().contains("A below B"));
        assert!(parse_range("9").unwrap_err().contains("0..100"));
        assert_eq!(parse_time("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_time("7"), Ok(Duration::from_secs(7)));
        assert!(parse_time("1d").unwrap_err().contains("2h"));
        assert_eq!(parse_minutes("0.5"), Ok(0.5));
        for text in ["0", "-1", "NaN", "inf", "1e9", "ten"] {
            assert!(parse_minutes(text).unwrap_err().contains("write 10"), "{text}");
        }
        assert_eq!(parse_pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(parse_pair("a").is_err());
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
