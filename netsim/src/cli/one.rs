//! One run, in this process.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use tern_netsim::stage::{Heading, play};
use tern_netsim_scenario::Scenario;
use tern_netsim_verdict::{Line, read};

use super::{Failure, OneArgs, Outcome};

/// Filter of the log, which goes to standard error: `TERN_NETSIM_LOG=debug`.
const LOG: &str = "TERN_NETSIM_LOG";

/// `netsim one`: plays a plan and writes its history. Whether it passed is for others to say.
pub fn one(args: OneArgs) -> Outcome {
    if let Ok(filter) = std::env::var(LOG) {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let scenario = Scenario::load(&args.file).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    let point = args.point.iter().cloned().collect();
    let plan = scenario.plan(args.seed, &point).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    if let Some(path) = &args.plan {
        std::fs::write(path, plan.to_toml()).map_err(|error| Failure::io("can't write", path, &error))?;
    }
    select(args.mutant.as_deref())?;
    let heading = Heading { replay: args.replay, version: version(), mutant: args.mutant };
    let lines = play(plan, heading).map_err(|error| Failure::Outside(error.to_string()))?;
    write(&args.history, &lines).map_err(|error| Failure::io("can't write", &args.history, &error))?;
    Ok(true)
}

/// Writes a history.
pub fn write(path: &Path, lines: &[Line]) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for line in lines {
        read::write(&mut file, line)?;
    }
    file.flush()
}

/// What is run.
pub fn version() -> String {
    format!("netsim {}", env!("CARGO_PKG_VERSION"))
}

/// Switches a seeded bug on; without one it switches off what the environment may ask for.
#[cfg(feature = "mutants")]
fn select(mutant: Option<&str>) -> Result<(), Failure> {
    use tern_core::mutants::{self, Mutant};
    let known = || Mutant::all().map(Mutant::name).collect::<Vec<_>>().join(", ");
    let unknown = |name: &str| Failure::Usage(format!("no bug {name}; there are {}", known()));
    let found = mutant.map(|name| Mutant::parse(name).ok_or_else(|| unknown(name))).transpose()?;
    mutants::select(found);
    Ok(())
}

/// Switches a seeded bug on, where there are any.
#[cfg(not(feature = "mutants"))]
fn select(mutant: Option<&str>) -> Result<(), Failure> {
    let Some(name) = mutant else { return Ok(()) };
    Err(Failure::Usage(format!("no bug {name}: build netsim with --features mutants for those")))
}
