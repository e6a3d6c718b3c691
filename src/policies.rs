//! Placement policies of operators: the file that `dispatch.policies` names, and the lists of users that it names in turn.
//!
//! What they mean, and what makes no sense, is in [`tern_core::ranking`]; this reads files. All of it is read again when
//! one of the files changes, and taken as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tern_core::ids::Region;
use tern_core::ranking::{Policies, PoliciesDraft, RuleDraft};

use crate::config::Settings;

/// A file of users that is read; far above what [`Policies`] take.
const FILE_BYTES: u64 = 32 * 1024 * 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    regions: BTreeMap<String, u8>,
    #[serde(default)]
    weights: BTreeMap<String, f64>,
    #[serde(default)]
    rule: Vec<RuleText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RuleText {
    name: String,
    users: Vec<String>,
    users_file: Option<PathBuf>,
    countries: Vec<String>,
    continents: Vec<String>,
    everyone: bool,
    pin: Vec<String>,
    shares: BTreeMap<String, f64>,
}

/// What the configuration says, checked; none without a file.
pub fn read(settings: &Settings) -> Result<Policies, String> {
    let Some(path) = &settings.dispatch_policies else { return Ok(Policies::default()) };
    let document = parse(path)?;
    let mut rules = Vec::new();
    for rule in document.rule {
        let mut users = rule.users;
        if let Some(listed) = &rule.users_file {
            users.extend(lines(&beside(path, listed))?);
        }
        let RuleText { name, countries, continents, everyone, pin, shares, .. } = rule;
        rules.push(RuleDraft { name, users, countries, continents, everyone, pin, shares });
    }
    let draft = PoliciesDraft { regions: document.regions, weights: document.weights, rules };
    Policies::new(&draft, &known(settings)).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(|problem| format!("{}: {problem}", path.display())).collect();
        problems.join("; ")
    })
}

/// The files that policies are read from, as far as they can be read.
pub fn files(settings: &Settings) -> Vec<PathBuf> {
    let Some(path) = &settings.dispatch_policies else { return Vec::new() };
    let named = parse(path).map(|document| document.rule).unwrap_or_default();
    let named = named.iter().filter_map(|rule| rule.users_file.as_ref()).map(|listed| beside(path, listed));
    std::iter::once(path.clone()).chain(named).collect()
}

/// Regions of which this process hears loads.
fn known(settings: &Settings) -> BTreeSet<Region> {
    let peers = settings.peers.iter().map(|peer| peer.region);
    let seeds = settings.gossip_seeds.iter().filter_map(|seed| seed.region);
    settings.region_id.into_iter().chain(peers).chain(seeds).collect()
}

fn parse(path: &Path) -> Result<Document, String> {
    let text = text(path)?;
    toml::from_str(&text).map_err(|error| format!("{}: {}", path.display(), error.to_string().trim()))
}

/// A relative name is meant from the file that has it.
fn beside(file: &Path, named: &Path) -> PathBuf {
    file.parent().map_or_else(|| named.to_owned(), |dir| dir.join(named))
}

/// One user a line; `#` begins a comment.
fn lines(path: &Path) -> Result<Vec<String>, String> {
    let text = text(path)?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn text(path: &Path) -> Result<String, String> {
    let wrong = |error: std::io::Error| format!("can't read {}: {error}", path.display());
    let bytes = fs::metadata(path).map_err(wrong)?.len();
    if bytes > FILE_BYTES {
        return Err(format!("{} has {bytes} bytes; {FILE_BYTES} are the most that are read", path.display()));
    }
    fs::read_to_string(path).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use tern_core::ranking::Who;

    fn settings(file: &Path) -> Settings {
        let flags = [
            ("dispatch.policies", file.to_str().unwrap()),
            ("region.id", "1"),
            ("region.name", "eu"),
            ("peers", "2:us@192.0.2.1:7422"),
        ];
        let flags = flags.map(|(key, value)| (format!("--set {key}"), key.to_owned(), value.to_owned())).into();
        Sources { flags, ..Sources::default() }.load().unwrap()
    }

    #[test]
    fn policies_come_from_a_file_and_users_from_another_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policies.toml");
        let text = "regions = { eu = 1, us = 2 }\n[weights]\nus = 0.5\n[[rule]]\nname = \"staff\"\n\
                    users_file = \"staff.txt\"\npin = [\"us\"]\n[[rule]]\neveryone = true\nshares = { eu = 75, us = 25 }\n";
        fs::write(&file, text).unwrap();
        let error = read(&settings(&file)).unwrap_err();
        assert!(error.contains("can't read") && error.contains("staff.txt"), "{error}");
        fs::write(dir.path().join("staff.txt"), "# since May\nops-*   # all of them\n\nada\n").unwrap();
        let policies = read(&settings(&file)).unwrap();
        let who = Who { user: Some("ops-9"), ..Who::default() };
        assert_eq!(policies.place(&who, |_| true).explain(2), "pinned to us by rule \"staff\" (user); weight 0.5");
        assert_eq!(files(&settings(&file)), [file.clone(), dir.path().join("staff.txt")]);
        for (text, says) in [
            ("regions = { eu = 1 }\nwieghts = 1\n", "unknown field `wieghts`"),
            ("regions = { mars = 9 }\n", "knows of no region 9, but of 1, 2"),
            ("[[rule]]\neveryone = true\npin = [\"eu\"]\n", "policies.toml: rule 1: there is no region \"eu\""),
        ] {
            fs::write(&file, text).unwrap();
            let error = read(&settings(&file)).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
