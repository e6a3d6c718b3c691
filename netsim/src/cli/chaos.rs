//! `netsim chaos`: scripts of faults, played against a real system.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use tern_netsim::chaos::figures::Verdict;
use tern_netsim::chaos::script::Script;
use tern_netsim::chaos::{ChaosError, Surroundings, play};

use super::{Failure, parse_pair};

/// Nothing was exceeded, but something could not be measured, or not be done.
const UNKNOWN: u8 = 4;

/// Of `chaos`.
#[derive(Debug, Subcommand)]
pub enum ChaosCommand {
    /// Plays a script and prints its figures. Exit code: 0 PASS, 1 FAIL, 2 the script is wrong, 3 something outside is
    /// missing, 4 UNKNOWN.
    Run(RunArgs),
    /// Reads scripts, and says what is wrong with them, with line and column.
    Check {
        /// The scripts.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Values for the scripts' own: name=value.
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
        with: Vec<(String, String)>,
    },
}

/// Of `chaos run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The script.
    file: PathBuf,
    /// Another value for one of the script's `values`; may be given again.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    with: Vec<(String, String)>,
    /// For a local system: the tern program; beside this one, if not said.
    #[arg(long, value_name = "PATH")]
    tern: Option<PathBuf>,
    /// Where the record goes, into a directory of the script's name.
    #[arg(long, value_name = "DIR", default_value = "netsim-runs/chaos")]
    out: PathBuf,
    /// Prints everything as JSON.
    #[arg(long)]
    json: bool,
}

/// `netsim chaos`.
pub fn chaos(command: ChaosCommand) -> Result<ExitCode, Failure> {
    match command {
        ChaosCommand::Run(args) => run(&args),
        ChaosCommand::Check { files, with } => {
            let with: BTreeMap<String, String> = with.into_iter().collect();
            let mut wrong = Vec::new();
            for file in files {
                match Script::load(&file, &with) {
                    Ok(script) => println!("{}: {} faults, {}", file.display(), script.faults.len(), script.about),
                    Err(error) => wrong.push(error.to_string()),
                }
            }
            if wrong.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Failure::Usage(wrong.join("\n"))) }
        }
    }
}

fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    let failure = |error: ChaosError| match error {
        ChaosError::Script(what) => Failure::Usage(what),
        other => Failure::Outside(other.to_string()),
    };
    let script = Script::load(&args.file, &args.with.iter().cloned().collect()).map_err(failure)?;
    let surroundings = Surroundings { tern: args.tern.clone(), out: args.out.clone(), loud: !args.json };
    let report = play(&script, &surroundings).map_err(failure)?;
    if args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| Failure::Outside(error.to_string()))?;
        println!("{text}");
    } else {
        print!("{}", report.figures_text());
    }
    Ok(match report.verdict {
        Verdict::Pass => ExitCode::SUCCESS,
        Verdict::Fail => ExitCode::from(1),
        Verdict::Unknown => ExitCode::from(UNKNOWN),
    })
}
