//! Plans that fail are cut down to what is needed, and stay valid on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tern_netsim_scenario::plan::{Plan, When};
use tern_netsim_scenario::{Scenario, random, shrink};

const SECOND: u64 = 1_000_000_000;
const SCENARIO: &str = r#"[scenario]
name = "big"
about = "More than is needed."
duration = "120s"
[[region]]
name = "eu"
aws = "euc1"
edges = 2
[[region]]
name = "us"
aws = "use1"
[[place]]
name = "germany"
near = "eu"
rtt = "10ms"
[[place]]
name = "france"
near = "eu"
rtt = "20ms"
[[device]]
id = "phone"
count = 12
place = "germany"
starts = "1s..4s"
[[device]]
id = "alice-phone"
user = "alice"
place = "us"
[[group]]
id = "team"
creator = "phone-0001"
members = ["*"]
[[load]]
id = "talk"
from = "*"
to = "team"
rate = "1/s"
[[load]]
id = "direct"
from = "phone-*"
to = "alice"
rate = "1/s"
[[action]]
at = "20s"
device = "alice-phone"
do = "read-all"
[[fault]]
id = "dark"
kind = "outage"
target = "phone-*"
at = "10s..20s"
for = "20s"
[[fault]]
id = "late"
kind = "region-kill"
target = "eu"
at = "dark@phone-0003.end + 5s"
for = "8s"
[[fault]]
id = "cut"
kind = "cut"
target = "eu<->us"
at = "late.begin + 1s"
for = "10s"
[[fault]]
id = "edge"
kind = "edge-kill"
target = "eu-e3"
at = "100s"
[expect]
unhit = ["dark", "cut"]
recover_within = { late = "30s" }
"#;

fn big() -> Plan {
    Scenario::from_toml(SCENARIO, Path::new("big.toml")).unwrap().plan(3, &Default::default()).unwrap()
}

/// A plan is valid if its text plans to it.
fn assert_valid(plan: &Plan) {
    let text = plan.to_toml();
    let again =
        Scenario::from_toml(text.clone(), Path::new("x")).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    let again = again.plan(plan.seed, &again.points()[0]).unwrap();
    assert_eq!(Plan { file: PathBuf::new(), ..again }, Plan { file: PathBuf::new(), ..plan.clone() }, "{text}");
}

fn has(plan: &Plan, fault: &str) -> bool {
    plan.faults.iter().any(|one| one.id == fault)
}

/// Cut down, with every plan that was tried looked at.
fn cut_down(plan: &Plan, at_ns: u64, budget: usize, fails: impl Fn(&Plan) -> bool) -> (Plan, usize) {
    let mut asked = 0;
    let least = shrink(plan, at_ns, budget, |candidate| {
        asked += 1;
        assert_valid(candidate);
        fails(candidate)
    });
    assert!(asked <= budget, "{asked}");
    (least, asked)
}

#[test]
fn one_fault_and_two_devices_are_left_of_many() {
    let plan = big();
    let writes =
        |plan: &Plan, from: &str| plan.loads.iter().any(|load| load.from == from && load.until_ns > 30 * SECOND);
    let (least, asked) = cut_down(&plan, 60 * SECOND, 1000, |plan| has(plan, "cut") && writes(plan, "phone-0007"));
    assert_eq!(least.faults.len(), 1);
    assert!(least.devices.len() <= 2 && least.loads.len() == 1 && least.actions.is_empty(), "{}", least.to_toml());
    assert!(least.duration_ns <= 60 * SECOND && least.loads[0].count == Some(1));
    // Two anchors were between it and a time: it begins when it would have.
    let When::At(begins_ns) = least.faults[0].when else { panic!("{:?}", least.faults[0].when) };
    let dark = plan.faults.iter().find(|fault| fault.id == "dark@phone-0003").unwrap();
    let When::At(dark_ns) = dark.when else { panic!() };
    assert_eq!(begins_ns, dark_ns + 26 * SECOND);
    assert!(least.paths.iter().all(|path| path.a != "france") && least.regions.iter().all(|region| region.edges == 0));
    assert!(asked < 250, "{asked}");
}

#[test]
fn what_is_anchored_to_what_stays_keeps_its_anchor() {
    let (least, _) = cut_down(&big(), 90 * SECOND, 1000, |plan| has(plan, "late") && has(plan, "dark@phone-0003"));
    let late = least.faults.iter().find(|fault| fault.id == "late").unwrap();
    assert!(matches!(&late.when, When::After { fault, .. } if fault == "dark@phone-0003"));
    assert_eq!(least.faults.len(), 2);
    assert_eq!(least.expect.recover_within_ns.len(), 1);
}

#[test]
fn times_are_halved_as_long_as_it_fails() {
    let long = |plan: &Plan| plan.faults.iter().any(|fault| fault.id == "late" && fault.lasts_ns > Some(SECOND / 2));
    let (least, _) = cut_down(&big(), 120 * SECOND, 1000, long);
    assert_eq!(least.faults.len(), 1);
    assert_eq!(least.faults[0].lasts_ns, Some(SECOND));
    assert!(least.devices.len() == 1 && least.loads.is_empty() && least.groups.is_empty());
}

#[test]
fn a_budget_is_kept_and_what_never_fails_again_stays_as_it_was() {
    for budget in [0, 1, 7, 40] {
        cut_down(&big(), 60 * SECOND, budget, |plan| has(plan, "cut"));
    }
    let (same, _) = cut_down(&big(), 60 * SECOND, 1000, |_| false);
    assert_eq!(same, big());
}

#[test]
fn faults_with_moments_go_with_their_device_and_are_followed_by_moments() {
    let text = SCENARIO.replace(
        "at = \"10s..20s\"\nfor = \"20s\"",
        "when = \"first(send.acked)\"\nof = \"phone-0002\"\nfor = \"20s\"",
    );
    let plan = Scenario::from_toml(text, Path::new("big.toml")).unwrap().plan(3, &Default::default()).unwrap();
    let (least, _) = cut_down(&plan, 120 * SECOND, 1000, |plan| has(plan, "late"));
    let When::On { trigger, by_ns } = &least.faults[0].when else { panic!("{:?}", least.faults[0].when) };
    assert_eq!((trigger.device.as_deref(), *by_ns), (Some("phone-0002"), 25 * SECOND));
    assert_eq!(least.devices[0].id, "phone-0002");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_random_plan_can_be_cut_down_to_any_fault_and_load_of_it(seed in 0_u64..1_000_000, fault in 0_usize..8, load in 0_usize..8) {
        let plan = random::plan(seed).unwrap();
        let fault = plan.faults[fault % plan.faults.len()].id.clone();
        let load = plan.loads[load % plan.loads.len()].id.clone();
        let needs = |plan: &Plan| has(plan, &fault) && plan.loads.iter().any(|one| one.id == load);
        let (least, _) = cut_down(&plan, plan.duration_ns, 400, needs);
        prop_assert!(needs(&least));
        prop_assert_eq!((least.faults.len(), least.loads.len()), (1, 1));
        prop_assert!(least.devices.len() <= 3);
    }
}
