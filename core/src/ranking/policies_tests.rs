//! Policies: who gets where, and what is refused.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::tests::{FRANKFURT, NOW, edge, fleet, german, policy};
use super::*;

const ASHBURN: (f64, f64) = (39.0, -77.5);
const SINGAPORE: (f64, f64) = (1.35, 103.8);

fn regions() -> BTreeMap<String, u8> {
    [("eu", 1), ("us", 2), ("ap", 3)].map(|(name, region)| (name.to_owned(), region)).into()
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|t| (*t).to_owned()).collect()
}

fn pin(users: &[&str], regions: &[&str]) -> RuleDraft {
    RuleDraft { users: texts(users), pin: texts(regions), ..RuleDraft::default() }
}

fn shares(of: &[(&str, f64)]) -> BTreeMap<String, f64> {
    of.iter().map(|(name, percent)| ((*name).to_owned(), *percent)).collect()
}

fn made(rules: Vec<RuleDraft>) -> Result<Policies, Vec<String>> {
    let draft = PoliciesDraft { regions: regions(), rules, ..PoliciesDraft::default() };
    Policies::new(&draft, &BTreeSet::from([1, 2, 3]))
}

fn three() -> Fleet {
    fleet(vec![
        edge(1, "eu-e1", FRANKFURT, 0, 100_000),
        edge(1, "eu-e2", FRANKFURT, 0, 100_000),
        edge(2, "us-e1", ASHBURN, 0, 100_000),
        edge(3, "ap-e1", SINGAPORE, 0, 100_000),
    ])
}

/// Regions of a client's list, and what is said of the first.
fn listed(fleet: &mut Fleet, policies: &Policies, user: &str, exclude: &[String], seed: u64) -> (Vec<u8>, String) {
    let who = Who { user: Some(user), country: german().country, key: b"" };
    let placed = policies.place(&who, |region| fleet.lists(region, NOW));
    let client = Client { placed, exclude, ..german() };
    let policy = Policy { count: false, ..policy() };
    let ranking = rank(fleet, &RttTable::new(1), &client, &policy, NOW, || seed);
    let regions: Vec<u8> = ranking.iter().map(|c| fleet.edges()[c.edge].report().region).collect();
    let said = regions.first().map_or_else(String::new, |region| placed.explain(*region));
    (regions, said)
}

#[test]
fn a_pinned_user_gets_no_other_region_until_all_of_his_are_dead_and_then_is_told_why() {
    let policies = made(vec![
        RuleDraft { name: "staff".to_owned(), ..pin(&["ops-*", "ada"], &["us", "ap"]) },
        RuleDraft { countries: texts(&["de"]), pin: texts(&["ap"]), ..RuleDraft::default() },
    ])
    .unwrap();
    let mut fleet = three();
    for seed in 0..500 {
        let (regions, said) = listed(&mut fleet, &policies, "ops-7", &[], seed);
        assert_eq!(regions, [2, 3]);
        assert_eq!(said, "pinned to us, ap by rule \"staff\" (user)");
        assert_eq!(listed(&mut fleet, &policies, "ada", &[], seed).0, [2, 3]);
        // Not the beginning of an id: the rule of his country.
        let (regions, said) = listed(&mut fleet, &policies, "adam", &[], seed);
        assert!(regions == [3] && said.contains("rule 2 (country)"), "{regions:?} {said}");
    }
    // Who wants none of them gets them all the same.
    let all = texts(&["us-e1", "ap-e1"]);
    assert_eq!(listed(&mut fleet, &policies, "ada", &all, 1).0, [2, 3]);
    // One dies, one is cordoned.
    fleet.set_region_cordoned(2, true);
    assert_eq!(listed(&mut fleet, &policies, "ada", &[], 1).0, [3]);
    assert!(fleet.remove(3, "ap-e1", 1));
    let (regions, said) = listed(&mut fleet, &policies, "ada", &[], 1);
    assert_eq!(regions, [1, 1]);
    assert!(said.contains("pinned to us, ap") && said.contains("no edge can be listed"), "{said}");
    // Back again.
    fleet.set_region_cordoned(2, false);
    assert_eq!(listed(&mut fleet, &policies, "ada", &[], 1).0, [2]);
}

#[test]
fn shares_hold_over_ten_thousand_clients_whoever_asks_again_stays_and_few_move_with_a_change() {
    let of = |eu: f64, us: f64| {
        let all = shares(&[("eu", eu), ("us", us), ("ap", 100.0 - eu - us)]);
        made(vec![RuleDraft { everyone: true, shares: all, ..RuleDraft::default() }]).unwrap()
    };
    let mut fleet = three();
    let firsts = |policies: &Policies, fleet: &mut Fleet| -> Vec<u8> {
        let mut rng = StdRng::seed_from_u64(1);
        (0..10_000).map(|i| listed(fleet, policies, &format!("user-{i}"), &[], rng.next_u64()).0[0]).collect()
    };
    let count = |firsts: &[u8]| [1, 2, 3].map(|region| firsts.iter().filter(|first| **first == region).count());
    let before = firsts(&of(60.0, 40.0), &mut fleet);
    let [eu, us, ap] = count(&before);
    assert!(eu.abs_diff(6_000) < 150 && us.abs_diff(4_000) < 150 && ap == 0, "{eu} {us} {ap}");
    assert_eq!(before, firsts(&of(60.0, 40.0), &mut fleet));
    let after = firsts(&of(50.0, 40.0), &mut fleet);
    let [eu, us, ap] = count(&after);
    assert!(eu.abs_diff(5_000) < 150 && us.abs_diff(4_000) < 150 && ap.abs_diff(1_000) < 100, "{eu} {us} {ap}");
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!(moved < 2_000, "{moved} moved for a tenth");
    // A dead region's clients go to the others by their shares, and to nobody else's.
    fleet.set_region_cordoned(1, true);
    let [eu, us, ap] = count(&firsts(&of(50.0, 40.0), &mut fleet));
    assert!(eu == 0 && us.abs_diff(8_000) < 150 && ap.abs_diff(2_000) < 150, "{eu} {us} {ap}");
    fleet.set_region_cordoned(2, true);
    fleet.set_region_cordoned(3, true);
    fleet.set_region_cordoned(1, false);
    let us_only = made(vec![RuleDraft { everyone: true, shares: shares(&[("us", 100.0)]), ..RuleDraft::default() }]);
    let (regions, said) = listed(&mut fleet, &us_only.unwrap(), "ada", &[], 1);
    assert!(regions == [1, 1] && said.contains("placed as if there were none"), "{said}");
}

#[test]
fn a_share_decides_the_first_ranks_and_another_region_stands_in_case_it_fails() {
    let all = shares(&[("us", 100.0)]);
    let policies = made(vec![RuleDraft { continents: texts(&["eu"]), shares: all, ..RuleDraft::default() }]).unwrap();
    let (regions, said) = listed(&mut three(), &policies, "ada", &[], 3);
    assert_eq!(regions[0], 2, "{regions:?}");
    assert!(regions.contains(&1) && regions.len() == 4, "{regions:?}");
    assert_eq!(said, "us has 100 % by rule 1 (continent)");
}

#[test]
fn weights_share_out_among_edges_that_are_equally_near_and_zero_is_the_last_resort() {
    let weights = |of: &[(&str, f64)]| {
        let draft = PoliciesDraft { regions: regions(), weights: shares(of), ..PoliciesDraft::default() };
        Policies::new(&draft, &BTreeSet::from([1, 2, 3])).unwrap()
    };
    // Two regions in one town.
    let mut town = fleet(vec![edge(1, "a", FRANKFURT, 0, 1_000_000), edge(2, "b", FRANKFURT, 0, 1_000_000)]);
    let policies = weights(&[("eu", 3.0)]);
    let mut rng = StdRng::seed_from_u64(5);
    let first = (0..10_000).filter(|_| listed(&mut town, &policies, "x", &[], rng.next_u64()).0[0] == 1).count();
    assert!(first.abs_diff(7_500) < 200, "{first}");
    let policies = weights(&[("eu", 0.0)]);
    for seed in 0..200 {
        let (regions, said) = listed(&mut three(), &policies, "x", &[], seed);
        assert!(regions[0] != 1 && regions.ends_with(&[1]), "{regions:?}");
        assert_eq!(said, "");
    }
    let mut alone = fleet(vec![edge(1, "a", FRANKFURT, 0, 10)]);
    assert_eq!(listed(&mut alone, &policies, "x", &[], 1), (vec![1], "weight 0".to_owned()));
}

#[test]
fn policies_that_make_no_sense_are_refused_and_every_problem_is_told() {
    let area = |countries: &[&str], continents: &[&str]| RuleDraft {
        countries: texts(countries),
        continents: texts(continents),
        pin: texts(&["eu"]),
        ..RuleDraft::default()
    };
    let everyone = |of: &[(&str, f64)]| RuleDraft { everyone: true, shares: shares(of), ..RuleDraft::default() };
    for (rules, says) in [
        (vec![pin(&["a"], &["mars"])], "rule 1: there is no region \"mars\"; `regions` has ap, eu, us"),
        (vec![pin(&["a"], &["eu", "eu"])], "pins to eu twice"),
        (vec![pin(&["a"], &["eu"]), pin(&["a"], &["us"])], "user a is named by rule 1 and by rule 2"),
        (vec![pin(&["a*"], &["eu"]), pin(&["ab"], &["us"])], "user ab of rule 2 is one of a* of rule 1"),
        (vec![pin(&["abc*"], &["eu"]), pin(&["ab*"], &["us"])], "user abc* of rule 1 is one of ab* of rule 2"),
        (vec![pin(&["*"], &["eu"])], "user \"*\""),
        (vec![pin(&["a*b"], &["eu"])], "user \"a*b\""),
        (vec![area(&["DE"], &[]), area(&["FR", "DE"], &[])], "country DE is named by rule 1 and by rule 2"),
        (vec![area(&["DE"], &[]), area(&[], &["EU"])], "country DE of rule 1 lies in continent EU of rule 2"),
        (vec![area(&["XX"], &[])], "\"XX\" is no country"),
        (vec![area(&[], &["Europe"])], "\"Europe\" is no continent; there are AF"),
        (vec![everyone(&[("eu", 60.0), ("us", 30.0)])], "its shares add up to 90 %, and must to 100"),
        (vec![everyone(&[("eu", 160.0), ("us", -60.0)])], "eu has 160 %"),
        (vec![everyone(&[("eu", f64::NAN)])], "NaN"),
        (vec![everyone(&[("eu", 100.0)]), everyone(&[("us", 100.0)])], "everyone is named by rule 1 and by rule 2"),
        (vec![RuleDraft { pin: texts(&["us"]), ..everyone(&[("eu", 100.0)]) }], "either `pin`"),
        (vec![RuleDraft { pin: texts(&["us"]), ..RuleDraft::default() }], "it must name users"),
        (vec![RuleDraft { everyone: true, ..pin(&["a"], &["eu"]) }], "only one of these"),
        (vec![RuleDraft { everyone: true, ..RuleDraft::default() }], "either `pin`"),
    ] {
        let problems = made(rules.clone()).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains(says)), "{rules:?}: {problems:?}");
    }
    let draft = PoliciesDraft {
        regions: [("eu", 1), ("mars", 9), ("x", 1)].map(|(name, region)| (name.to_owned(), region)).into(),
        weights: shares(&[("eu", -1.0), ("us", 1.0)]),
        rules: Vec::new(),
    };
    let problems = Policies::new(&draft, &BTreeSet::from([1, 2])).unwrap_err();
    for says in ["knows of no region 9, but of 1, 2", "eu and x have one number", "eu = -1", "no region \"us\""] {
        assert!(problems.iter().any(|problem| problem.contains(says)), "{says}: {problems:?}");
    }
    // Twice in one rule is no matter.
    assert!(made(vec![pin(&["a*", "ab", "ab"], &["eu"]), area(&["DE"], &["AS"])]).is_ok());
    assert!(made(Vec::new()).unwrap().is_empty());
}

proptest! {
    #[test]
    fn whoever_is_pinned_is_listed_his_regions_alone_while_one_of_them_lives(
        pinned in proptest::collection::btree_set(1u8..=3, 1..=3), dead in proptest::collection::btree_set(1u8..=3, 0..=2),
        weight in prop_oneof![Just(0.0), 0.1..9.0f64], seed in any::<u64>()
    ) {
        let name = |region: u8| ["eu", "us", "ap"][usize::from(region) - 1];
        let names: Vec<&str> = pinned.iter().map(|r| name(*r)).collect();
        let draft = PoliciesDraft {
            regions: regions(),
            weights: shares(&[("us", weight)]),
            rules: vec![pin(&["ada"], &names)],
        };
        let policies = Policies::new(&draft, &BTreeSet::from([1, 2, 3])).unwrap();
        let mut fleet = three();
        dead.iter().for_each(|region| { fleet.set_region_cordoned(*region, true); });
        let (regions, said) = listed(&mut fleet, &policies, "ada", &[], seed);
        let alive: BTreeSet<u8> = pinned.difference(&dead).copied().collect();
        let found: BTreeSet<u8> = regions.iter().copied().collect();
        if alive.is_empty() {
            prop_assert!(!regions.is_empty() && found.is_disjoint(&pinned));
            prop_assert!(said.contains("as if it were not"), "{}", said);
        } else {
            prop_assert_eq!(found, alive);
        }
    }
}
