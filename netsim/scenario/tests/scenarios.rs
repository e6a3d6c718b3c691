//! The scenarios that are shipped: each can be planned, and shows what its name says.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tern_netsim_scenario::{Driver, Plan, Scenario};

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

fn all() -> Vec<Scenario> {
    files().iter().map(|path| Scenario::load(path).unwrap_or_else(|problems| panic!("{problems}"))).collect()
}

/// A plan without what it owes to where it was read from.
fn bare(plan: &Plan) -> Plan {
    Plan { file: PathBuf::new(), seed: 0, ..plan.clone() }
}

#[test]
fn every_file_has_the_name_of_its_scenario_and_says_what_it_shows() {
    for (path, scenario) in files().iter().zip(all()) {
        assert_eq!(path.file_stem().unwrap().to_str().unwrap(), scenario.name());
        assert!(scenario.about().ends_with('.') && scenario.about().len() > 30, "{}", scenario.name());
        assert_eq!(scenario.seeds().end - scenario.seeds().start, 100, "{}", scenario.name());
    }
}

#[test]
fn every_scenario_can_be_planned_at_every_point_and_written_out_as_itself() {
    for scenario in all() {
        for point in scenario.points() {
            for seed in [0, 1, 7, 99, u64::MAX] {
                let plan = scenario.plan(seed, &point).unwrap_or_else(|problems| panic!("{problems}"));
                if plan.devices.len() > 100 && seed > 0 {
                    continue;
                }
                assert_eq!(plan, scenario.plan(seed, &point).unwrap(), "{}", scenario.name());
                let text = plan.to_toml();
                let again = Scenario::from_toml(text.clone(), Path::new("written.toml"));
                let again = again.unwrap_or_else(|problems| panic!("{}: {problems}\n{text}", scenario.name()));
                let [point] = again.points().try_into().unwrap();
                assert_eq!(bare(&again.plan(3, &point).unwrap()), bare(&plan), "{}\n{text}", scenario.name());
                assert!(again.plan(3, &point).unwrap().to_toml().lines().skip(4).eq(text.lines().skip(4)));
            }
        }
    }
}

#[test]
fn six_scenarios_also_run_over_real_packets() {
    let real = all().iter().filter(|scenario| scenario.drivers().contains(&Driver::Tun)).count();
    assert!(real > 6, "{real}");
    for scenario in all() {
        assert!(scenario.drivers().contains(&Driver::Sim));
    }
}

#[test]
fn no_two_devices_share_an_address_and_none_takes_a_region_s() {
    for scenario in all() {
        for point in scenario.points() {
            let plan = scenario.plan(0, &point).unwrap();
            let mut seen = BTreeSet::new();
            for interface in plan.devices.iter().flat_map(|device| &device.interfaces) {
                let outside = interface.nat.as_ref().map(|(_, outside)| *outside);
                for address in [Some(interface.address), outside].into_iter().flatten() {
                    assert!(seen.insert(address), "{}: {address} twice", scenario.name());
                    assert_ne!(address.octets()[0], 10, "{}", scenario.name());
                }
            }
        }
    }
}

#[test]
fn a_seed_decides_what_is_given_as_a_range_and_nothing_else() {
    for scenario in all() {
        let point = scenario.points().remove(0);
        let plans: Vec<Plan> = (0..8).map(|seed| scenario.plan(seed, &point).unwrap()).collect();
        for plan in &plans {
            assert_eq!(plan.paths, plans[0].paths);
            assert_eq!(plan.loads, plans[0].loads);
        }
    }
}
