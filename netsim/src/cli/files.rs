//! Scenario files: found, checked, listed.

use std::fs;
use std::path::{Path, PathBuf};

use tern_netsim_link::profile;
use tern_netsim_scenario::Scenario;

use super::{Failure, Outcome};

/// Directories below one that is named whose files are parts or special, and are run only when named themselves.
const PARTS: [&str; 4] = ["topo", "gate", "figures", "compare"];

/// All scenario files that are meant, in order.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(path.clone());
            continue;
        }
        let mut files = Vec::new();
        walk(path, &mut files).map_err(|error| Failure::io("can't list", path, &error))?;
        if files.is_empty() {
            return Err(Failure::Usage(format!("there is no scenario (*.toml) in {}", path.display())));
        }
        files.sort();
        found.extend(files);
    }
    Ok(found)
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let part = path.file_name().is_some_and(|name| PARTS.iter().any(|part| name == *part));
        if path.is_dir() && !part {
            walk(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    Ok(())
}

/// Reads them all; with every problem of every file if there is one.
pub fn load(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Scenario)>, Failure> {
    let (mut scenarios, mut problems) = (Vec::new(), Vec::new());
    for path in find(paths)? {
        match Scenario::load(&path) {
            Ok(scenario) => scenarios.push((path, scenario)),
            Err(wrong) => problems.push(wrong.to_string()),
        }
    }
    if problems.is_empty() { Ok(scenarios) } else { Err(Failure::Usage(problems.join("\n"))) }
}

/// `netsim check`.
pub fn check(paths: &[PathBuf]) -> Outcome {
    let scenarios = load(paths)?;
    for (path, scenario) in &scenarios {
        println!("{}: {} points, {}", path.display(), scenario.points().len(), scenario.about());
    }
    Ok(true)
}

/// `netsim profiles`.
pub fn profiles() {
    for name in profile::names() {
        if let Ok(profile) = profile::profile(name) {
            println!("{name:16} {}", profile.source);
        }
    }
}
