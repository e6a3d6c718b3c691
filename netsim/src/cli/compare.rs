//! `netsim compare`: tern beside other messengers.
//!
//! What can't be had (a server, a library) is left out and named; without anybody left nothing is compared. Scenarios are
//! played one after the other, for a busy machine is late for all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tern_netsim::compare::table::{Table, document};
use tern_netsim::compare::{CompareError, Outside, Peer, check, compare as measure, servers, shorten};
use tern_netsim::real::{Surroundings, topology};
use tern_netsim::stage::Heading;
use tern_netsim_scenario::{Plan, Scenario};

use super::{CompareArgs, Failure, Outcome, one};

/// What is compared over if nothing is said.
const FILES: [&str; 3] = ["lte-driving", "metro-commute", "2g-rural"];

/// See the module.
pub fn compare(args: &CompareArgs) -> Outcome {
    let files = if args.files.is_empty() {
        FILES.map(|name| PathBuf::from(format!("netsim/scenarios/compare/{name}.toml"))).to_vec()
    } else {
        args.files.clone()
    };
    // First what costs nothing and may be wrong.
    let plans = files.iter().map(|file| plan(args, file)).collect::<Result<Vec<_>, _>>()?;
    let outside = Outside { python: args.python.clone() };
    let mut wanted = args.against.clone();
    wanted.sort_unstable();
    wanted.dedup();
    let (mut peers, mut skipped) = (Vec::new(), Vec::new());
    for peer in wanted {
        match servers::lacks(peer, &outside) {
            None => peers.push(peer),
            Some(why) => {
                eprintln!("{peer} is skipped: {why}");
                skipped.push((peer, why));
            }
        }
    }
    if peers.is_empty() {
        return Err(Failure::Outside("there is nobody to compare with".to_owned()));
    }
    let mut tables = Vec::new();
    for (file, plan) in files.iter().zip(plans) {
        let table = play(args, file, plan, &peers, &skipped, &outside)?;
        if !args.json {
            println!("{}\n{}\n", table.markdown(), table.notes().join("\n"));
        }
        tables.push(table);
    }
    if args.json {
        let text = serde_json::to_string_pretty(&tables).map_err(|error| Failure::Outside(error.to_string()))?;
        println!("{text}");
    }
    if let Some(path) = &args.write {
        let text = document(&tables, &command(args, path));
        fs::write(path, text).map_err(|error| Failure::io("can't write", path, &error))?;
    }
    Ok(tables.iter().all(Table::reached))
}

fn plan(args: &CompareArgs, file: &Path) -> Result<Plan, Failure> {
    let scenario = Scenario::load(file).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    let wanted: BTreeMap<String, String> = args.point.iter().cloned().collect();
    let points = scenario.points();
    let point = points.iter().find(|point| wanted.iter().all(|(name, value)| point.get(name) == Some(value)));
    let point = point.ok_or_else(|| Failure::Usage(format!("the matrix has no such point; there are {points:?}")))?;
    let seed = args.seed.unwrap_or(scenario.seeds().start);
    let mut plan = scenario.plan(seed, point).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    check(&plan).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    topology::check(&plan).map_err(|wrong| Failure::Usage(wrong.to_string()))?;
    shorten(&mut plan, Duration::from_secs_f64(60.0 * args.minutes)).map_err(Failure::Usage)?;
    Ok(plan)
}

fn play(
    args: &CompareArgs,
    file: &Path,
    plan: Plan,
    peers: &[Peer],
    skipped: &[(Peer, String)],
    outside: &Outside,
) -> Result<Table, Failure> {
    let directory = args.out.join(format!("{}-{}", plan.name, plan.seed));
    // Logs of an earlier run would be taken for this one's.
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::io("can't empty", &directory, &error));
        }
        _ => {}
    }
    fs::create_dir_all(&directory).map_err(|error| Failure::io("can't make", &directory, &error))?;
    let replay = format!("netsim compare {} --seed {} --minutes {}", file.display(), plan.seed, args.minutes);
    let heading = Heading { replay, version: one::version(), mutant: None };
    let surroundings = Surroundings { tern: args.tern.clone(), logs: directory.join("logs") };
    let compared = measure(plan.clone(), &heading, &surroundings, peers, outside).map_err(|error| match error {
        CompareError::Scenario { .. } => Failure::Usage(error.to_string()),
        other => Failure::Outside(other.to_string()),
    })?;
    let history = directory.join("history.jsonl");
    one::write(&history, &compared.lines).map_err(|error| Failure::io("can't write", &history, &error))?;
    let table = Table::of(&plan, &compared, skipped);
    let text = serde_json::to_string_pretty(&table).map_err(|error| Failure::Outside(error.to_string()))?;
    let path = directory.join("compare.json");
    fs::write(&path, text).map_err(|error| Failure::io("can't write", &path, &error))?;
    Ok(table)
}

/// The command that writes the document again.
fn command(args: &CompareArgs, path: &Path) -> String {
    let mut words = vec!["netsim compare".to_owned()];
    words.extend(args.files.iter().map(|file| file.display().to_string()));
    words.extend(args.seed.map(|seed| format!("--seed {seed}")));
    words.push(format!("--minutes {}", args.minutes));
    let against: Vec<&str> = args.against.iter().map(|peer| peer.name()).collect();
    words.push(format!("--against {}", against.join(",")));
    words.push(format!("--write {}", path.display()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn args(line: &[&str]) -> CompareArgs {
        match Cli::parse_from([&["netsim", "compare"], line].concat()).command {
            Command::Compare(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_scenarios_that_are_shipped_for_it_can_be_compared_over_for_an_hour() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for name in FILES {
            let file = root.join(format!("netsim/scenarios/compare/{name}.toml"));
            for seed in 0..20 {
                let plan = plan(&args(&["--minutes", "60", "--seed", &seed.to_string()]), &file).unwrap();
                assert!(plan.devices[0].interfaces[0].profile != "lte-good", "{name}: the phone is on the weak link");
                assert_eq!(plan.loads.len(), 2);
            }
            let refused = plan(&args(&["--minutes", "61"]), &file).unwrap_err();
            assert!(matches!(&refused, Failure::Usage(text) if text.contains("for 60 minutes")), "{refused}");
        }
    }

    #[test]
    fn the_document_says_how_it_is_written_again() {
        let args = args(&["a.toml", "--seed", "3", "--minutes", "0.5", "--against", "tcp,mqtt", "--json"]);
        let words = "netsim compare a.toml --seed 3 --minutes 0.5 --against tcp,mqtt --write out.md";
        assert_eq!(command(&args, Path::new("out.md")), words);
    }
}
