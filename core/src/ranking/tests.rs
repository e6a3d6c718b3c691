use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::*;

pub(super) const FRANKFURT: (f64, f64) = (50.1, 8.7);
const ASHBURN: (f64, f64) = (39.0, -77.5);
const SINGAPORE: (f64, f64) = (1.35, 103.8);

/// The site of a region's edges.
fn at(region: u8) -> SiteKey {
    let (latitude, longitude) = [FRANKFURT, ASHBURN, SINGAPORE][usize::from(region) - 1];
    SiteKey::new(region, Position::new(latitude, longitude))
}
/// Long after the slow start of edges that reported at 0.
pub(super) const NOW: Duration = Duration::from_secs(1_000);

pub(super) fn edge(region: u8, name: &str, at: (f64, f64), connections: u32, capacity: u32) -> EdgeReport {
    EdgeReport {
        region,
        region_name: Arc::from(format!("r{region}")),
        edge: Arc::from(name),
        addresses: vec![SocketAddr::from(([192, 0, 2, 1], 7400))],
        connections,
        capacity,
        cpu_permille: 0,
        draining: false,
        age: Duration::ZERO,
        position: Position::new(at.0, at.1),
        generation: 1,
        failure_domain: Arc::from(""),
    }
}

/// A fleet whose slow start is over.
pub(super) fn fleet(reports: Vec<EdgeReport>) -> Fleet {
    let mut fleet = Fleet::new();
    for report in reports {
        for at in [NOW - SLOW_START, NOW] {
            fleet.report(at, report.clone()).unwrap();
        }
    }
    fleet
}

pub(super) fn policy() -> Policy {
    Policy { list_max: 5, home: 1, home_position: Position::new(FRANKFURT.0, FRANKFURT.1), count: true }
}

pub(super) fn german() -> Client<'static> {
    Client { position: Position::new(51.0, 10.0), country: Country::new("DE"), ..Client::default() }
}

fn of_germany() -> Whence {
    Whence { country: Country::new("DE"), asn: None }
}

fn names(fleet: &Fleet, ranking: &Ranking) -> Vec<String> {
    ranking.iter().map(|c| fleet.edges()[c.edge].report().edge.to_string()).collect()
}

fn list(fleet: &mut Fleet, client: &Client<'_>, now: Duration) -> Vec<String> {
    let ranking = rank(fleet, &RttTable::new(10), client, &policy(), now, || 7);
    names(fleet, &ranking)
}

fn three_regions() -> Vec<EdgeReport> {
    vec![
        edge(1, "eu-e1", FRANKFURT, 100, 1000),
        edge(1, "eu-e2", FRANKFURT, 200, 1000),
        edge(2, "us-e1", ASHBURN, 0, 1000),
        edge(3, "ap-e1", SINGAPORE, 0, 1000),
    ]
}

#[test]
fn the_nearest_come_first_and_the_third_leaves_the_region() {
    let mut fleet = fleet(three_regions());
    let ranking = rank(&mut fleet, &RttTable::new(10), &german(), &policy(), NOW, || 7);
    let names = names(&fleet, &ranking);
    assert_eq!(BTreeSet::from([names[0].as_str(), &names[1]]), BTreeSet::from(["eu-e1", "eu-e2"]));
    assert_eq!(names[2..], ["us-e1", "ap-e1"]);
    let reasons: Vec<String> = ranking.iter().map(ToString::to_string).collect();
    let of_e1 = names.iter().position(|n| n == "eu-e1").unwrap();
    assert_eq!(reasons[of_e1], "7 ms by distance, load 0.10");
    assert_eq!(reasons[2], "120 ms by distance, load 0.00, in case the region fails");
    assert!(reasons[3].ends_with(", farther"), "{}", reasons[3]);
}

#[test]
fn a_large_near_region_does_not_fill_the_list() {
    let mut reports: Vec<_> = (0..8).map(|i| edge(1, &format!("eu-e{i}"), FRANKFURT, i, 1000)).collect();
    reports.push(edge(3, "ap-e1", SINGAPORE, 900, 1000));
    let mut fleet = fleet(reports);
    let names = list(&mut fleet, &german(), NOW);
    assert_eq!((names.len(), names[2].as_str()), (5, "ap-e1"));
}

#[test]
fn with_one_region_the_third_leaves_the_failure_domain() {
    let mut reports: Vec<_> = (0..6).map(|i| edge(1, &format!("eu-e{i}"), FRANKFURT, 0, 1000)).collect();
    reports[5] = EdgeReport { failure_domain: Arc::from("b"), ..edge(1, "eu-e5", FRANKFURT, 999, 1000) };
    let mut fleet = fleet(reports);
    let ranking = rank(&mut fleet, &RttTable::new(10), &german(), &policy(), NOW, || 7);
    let third = ranking.iter().nth(2).unwrap();
    assert_eq!(fleet.edges()[third.edge].report().edge.as_ref(), "eu-e5");
    assert_eq!(third.why, Why::OtherDomain);
}

#[test]
fn an_edge_is_out_of_the_lists_after_three_silent_seconds_forwarded_age_included() {
    let mut fleet = Fleet::new();
    let mut far = edge(2, "us-e1", ASHBURN, 0, 10);
    far.age = Duration::from_millis(1_200);
    fleet.report(NOW, far).unwrap();
    assert_eq!(list(&mut fleet, &german(), NOW + Duration::from_millis(1_799)).len(), 1);
    assert_eq!(list(&mut fleet, &german(), NOW + Duration::from_millis(1_800)).len(), 0);
    // Also within the first seconds of the clock.
    let mut fleet = Fleet::new();
    fleet.report(Duration::ZERO, EdgeReport { age: SILENT_AFTER, ..edge(2, "us-e1", ASHBURN, 0, 10) }).unwrap();
    assert_eq!(list(&mut fleet, &german(), Duration::ZERO).len(), 0);
}

#[test]
fn draining_cordoned_full_and_removed_edges_are_not_listed_and_come_back() {
    let mut fleet = fleet(vec![edge(1, "e", FRANKFURT, 0, 10)]);
    let standing = |f: &Fleet| f.edges()[0].standing(NOW);
    fleet.report(NOW, EdgeReport { draining: true, ..edge(1, "e", FRANKFURT, 0, 10) }).unwrap();
    assert_eq!(standing(&fleet), Standing::Draining);
    fleet.report(NOW, edge(1, "e", FRANKFURT, 10, 10)).unwrap();
    assert_eq!(standing(&fleet), Standing::Full);
    fleet.report(NOW, edge(1, "e", FRANKFURT, 9, 10)).unwrap();
    assert!(fleet.set_cordoned(1, "e", true));
    assert_eq!(standing(&fleet), Standing::Cordoned);
    fleet.report(NOW, edge(1, "e", FRANKFURT, 9, 10)).unwrap();
    assert_eq!(standing(&fleet), Standing::Cordoned, "a report does not lift it");
    fleet.set_cordoned(1, "e", false);
    assert!(fleet.remove(1, "e", 1));
    assert_eq!(standing(&fleet), Standing::Silent);
    fleet.report(NOW, edge(1, "e", FRANKFURT, 9, 10)).unwrap();
    assert_eq!(standing(&fleet), Standing::Listed);
    assert!(!fleet.edges()[0].is_new(NOW), "its link was closed and opened: no slow start");
    assert!(!fleet.set_cordoned(1, "x", true) && !fleet.remove(1, "x", 1));
}

#[test]
fn a_cordoned_region_is_out_of_the_lists_with_edges_that_come_later_until_it_is_back() {
    let mut fleet = fleet(three_regions());
    assert!(fleet.set_region_cordoned(1, true) && !fleet.set_region_cordoned(1, true));
    assert!(fleet.edges().iter().take(2).all(|e| e.standing(NOW) == Standing::RegionCordoned));
    assert_eq!(list(&mut fleet, &german(), NOW), ["us-e1", "ap-e1"]);
    fleet.report(NOW, edge(1, "eu-e3", FRANKFURT, 0, 1000)).unwrap();
    assert_eq!(list(&mut fleet, &german(), NOW), ["us-e1", "ap-e1"]);
    // An edge's own mark and that of its region are two things.
    fleet.set_cordoned(1, "eu-e1", true);
    assert_eq!(fleet.cordoned_regions().collect::<Vec<_>>(), [1]);
    assert!(fleet.set_region_cordoned(1, false));
    let names = list(&mut fleet, &german(), NOW);
    assert!(names.contains(&"eu-e2".to_owned()) && names.contains(&"eu-e3".to_owned()), "{names:?}");
    assert_eq!(fleet.edges()[0].standing(NOW), Standing::Cordoned);
}

#[test]
fn round_trips_belong_to_the_site_and_not_to_the_whole_region() {
    // Region 1 has an edge in Frankfurt and one in Singapore. To one of them the client is near.
    let near = || vec![edge(1, "fra", FRANKFURT, 0, 1000), edge(1, "sin", SINGAPORE, 0, 1000)];
    let mut fleet = fleet(near());
    let mut learned = RttTable::new(10);
    let network = NetworkPrefix::of(IpAddr::from([8, 8, 8, 8]));
    let frankfurt = fleet.site_of("fra").unwrap();
    assert_ne!(frankfurt, fleet.site_of("sin").unwrap());
    for _ in 0..10 {
        learned.learn(NOW, network, of_germany(), frankfurt, 9.0);
    }
    let client = Client { network: Some(network), ..german() };
    for seed in 0..50 {
        let ranking = rank(&mut fleet, &learned, &client, &policy(), NOW, || seed);
        let choices: Vec<_> = ranking.iter().map(|c| (c.source, c.rtt_ms.unwrap() > 100.0)).collect();
        assert_eq!(choices, [(RttSource::Measured, false), (RttSource::Distance, true)]);
    }
}

#[test]
fn assignments_fill_the_last_places_before_the_next_report() {
    let mut fleet = fleet(vec![edge(1, "e", FRANKFURT, 8, 10)]);
    assert_eq!(list(&mut fleet, &german(), NOW).len(), 1);
    assert_eq!(list(&mut fleet, &german(), NOW).len(), 1);
    assert_eq!(list(&mut fleet, &german(), NOW).len(), 0);
    fleet.report(NOW + Duration::from_secs(1), edge(1, "e", FRANKFURT, 9, 10)).unwrap();
    assert_eq!(list(&mut fleet, &german(), NOW + Duration::from_secs(1)).len(), 1);
}

#[test]
fn a_later_start_replaces_the_earlier_and_late_news_of_that_change_nothing() {
    let mut fleet = fleet(vec![edge(1, "e", FRANKFURT, 500, 1000)]);
    let later = NOW + Duration::from_secs(1);
    let restarted = EdgeReport { generation: 2, ..edge(1, "e", FRANKFURT, 0, 1000) };
    assert_eq!(fleet.report(later, restarted).unwrap(), Reported::Taken);
    assert!(fleet.edges()[0].is_new(later));
    let error = fleet.report(later, edge(1, "e", FRANKFURT, 500, 1000)).unwrap_err();
    assert!(matches!(error, ReportError::Replaced { .. }), "{error}");
    assert!(!fleet.remove(1, "e", 1), "the earlier start's link closes");
    assert_eq!(fleet.edges()[0].standing(later), Standing::Listed);
    // An older report of the same start, and one of a start that is only heard of now.
    for generation in [2, 3] {
        let old = EdgeReport { generation, age: Duration::from_secs(2), ..edge(1, "e", FRANKFURT, 7, 1000) };
        assert_eq!(fleet.report(later, old).unwrap(), Reported::Older);
    }
    assert_eq!(fleet.edges()[0].report().connections, 0);
}

#[test]
fn the_table_is_bounded_and_silent_edges_make_room() {
    let mut fleet = Fleet::new();
    for i in 0..EDGES_MAX {
        let mut report = edge(1, &format!("e{i}"), FRANKFURT, 0, 10);
        report.age = Duration::from_secs(if i == 77 { 10 } else { 0 });
        fleet.report(NOW, report).unwrap();
    }
    fleet.report(NOW, edge(2, "new", ASHBURN, 0, 10)).unwrap();
    assert_eq!(fleet.edges().len(), EDGES_MAX);
    assert!(fleet.site_of("e77").is_none() && fleet.site_of("new").unwrap().region() == 2);
    let error = fleet.report(NOW, edge(2, "newer", ASHBURN, 0, 10)).unwrap_err();
    assert!(matches!(error, ReportError::TooMany { .. }));
    fleet.report(NOW + FORGOTTEN_AFTER, edge(2, "newer", ASHBURN, 0, 10)).unwrap();
    assert_eq!(fleet.edges().len(), 1, "the rest is forgotten");
}

#[test]
fn an_unknown_place_gets_the_dispatching_region_first_and_then_its_neighbours() {
    let mut fleet = fleet(three_regions());
    let ranking = rank(&mut fleet, &RttTable::new(10), &Client::default(), &policy(), NOW, || 7);
    let regions: Vec<u8> = ranking.iter().map(|c| fleet.edges()[c.edge].report().region).collect();
    assert_eq!(regions, [1, 1, 2, 3]);
    assert!(ranking.iter().all(|c| c.rtt_ms.is_none() && c.source == RttSource::Unknown));
    let at_home = Policy { home: 3, home_position: None, ..policy() };
    let ranking = rank(&mut fleet, &RttTable::new(10), &Client::default(), &at_home, NOW, || 7);
    assert_eq!(names(&fleet, &ranking)[0], "ap-e1");
}

#[test]
fn edges_without_a_position_come_after_the_near_ones_and_before_the_antipodes() {
    let mut reports = three_regions();
    reports.push(EdgeReport { position: None, ..edge(4, "xx-e1", FRANKFURT, 0, 1000) });
    let mut fleet = fleet(reports);
    let names = list(&mut fleet, &german(), NOW);
    assert_eq!(names[2..], ["us-e1", "xx-e1", "ap-e1"]);
}

#[test]
fn what_was_measured_overrides_a_wrong_place() {
    // The database says Germany; the network is in fact in Singapore.
    let mut fleet = fleet(three_regions());
    let mut learned = RttTable::new(10);
    let network = NetworkPrefix::of(IpAddr::from([8, 8, 8, 8]));
    for _ in 0..10 {
        learned.learn(NOW, network, of_germany(), at(3), 4.0);
        learned.learn(NOW, network, of_germany(), at(1), 160.0);
    }
    let client = Client { network: Some(network), ..german() };
    let ranking = rank(&mut fleet, &learned, &client, &policy(), NOW, || 7);
    let first = ranking.iter().next().unwrap();
    assert_eq!(names(&fleet, &ranking)[0], "ap-e1");
    assert_eq!(first.source, RttSource::Measured);
    assert!(first.to_string().contains("ms measured"), "{first}");
    // Another network of the country is hardly moved by one network's samples.
    let ranking = rank(&mut fleet, &learned, &german(), &policy(), NOW, || 7);
    assert_eq!(names(&fleet, &ranking)[0], "eu-e1");
}

#[test]
fn a_country_that_measured_often_speaks_for_its_silent_networks() {
    let mut learned = RttTable::new(1000);
    for i in 0..100 {
        let network = NetworkPrefix::of(IpAddr::from([8, 8, i, 1]));
        learned.learn(NOW, network, of_germany(), at(2), 30.0);
        learned.learn(NOW, network, of_germany(), at(1), 90.0);
    }
    let mut fleet = fleet(three_regions());
    let ranking = rank(&mut fleet, &learned, &german(), &policy(), NOW, || 7);
    let first = ranking.iter().next().unwrap();
    assert_eq!(names(&fleet, &ranking)[0], "us-e1");
    assert_eq!(first.source, RttSource::Country);
}

#[test]
fn the_clients_own_measurement_counts_at_once_by_its_lowest_sample() {
    let mut fleet = fleet(three_regions());
    let measured = [(at(3), 900.0), (at(3), 3.0), (at(1), 200.0)];
    let client = Client { measured: &measured, ..german() };
    let ranking = rank(&mut fleet, &RttTable::new(10), &client, &policy(), NOW, || 7);
    assert_eq!(names(&fleet, &ranking)[0], "ap-e1");
    let unplaced = Client { measured: &measured, ..Client::default() };
    let ranking = rank(&mut fleet, &RttTable::new(10), &unplaced, &policy(), NOW, || 7);
    assert_eq!(ranking.iter().find(|c| fleet.edges()[c.edge].report().region == 3).unwrap().rtt_ms, Some(3.0));
}

#[test]
fn a_bad_access_network_does_not_make_far_regions_look_near() {
    let mut fleet = fleet(three_regions());
    let measured = [(at(1), 200.0)];
    let client = Client { measured: &measured, ..german() };
    let ranking = rank(&mut fleet, &RttTable::new(10), &client, &policy(), NOW, || 7);
    assert!(names(&fleet, &ranking)[..2].iter().all(|n| n.starts_with("eu")));
    let far: Vec<_> = ranking.iter().skip(2).collect();
    assert!(far.iter().all(|c| c.rtt_ms.unwrap() > 300.0 && c.source == RttSource::Distance), "{far:?}");
}

#[test]
fn excluded_edges_are_listed_only_if_nothing_else_is_left() {
    let mut fleet = fleet(three_regions());
    let some = ["eu-e1".to_owned(), "us-e1".to_owned()];
    assert_eq!(list(&mut fleet, &Client { exclude: &some, ..german() }, NOW), ["eu-e2", "ap-e1"]);
    let all: Vec<String> = ["eu-e1", "eu-e2", "us-e1", "ap-e1"].map(str::to_owned).to_vec();
    assert_eq!(list(&mut fleet, &Client { exclude: &all, ..german() }, NOW).len(), 4);
}

#[test]
fn a_name_used_in_two_regions_tells_no_site() {
    let fleet = fleet(vec![edge(1, "e1", FRANKFURT, 0, 1), edge(2, "e1", ASHBURN, 0, 1), edge(2, "e2", ASHBURN, 0, 1)]);
    assert_eq!((fleet.site_of("e1"), fleet.site_of("e2"), fleet.site_of("e3")), (None, Some(at(2)), None));
}

#[test]
fn a_busy_processor_is_load_and_an_idle_one_is_not() {
    let mut fleet = fleet(vec![edge(1, "a", FRANKFURT, 100, 1000)]);
    assert!((fleet.edges()[0].load() - 0.1).abs() < 1e-9);
    fleet.report(NOW, EdgeReport { cpu_permille: 950, ..edge(1, "a", FRANKFURT, 100, 1000) }).unwrap();
    assert!((fleet.edges()[0].load() - 0.95).abs() < 1e-9);
    fleet.report(NOW, EdgeReport { cpu_permille: 600, ..edge(1, "a", FRANKFURT, 100, 1000) }).unwrap();
    assert!((fleet.edges()[0].load() - 0.1).abs() < 1e-9);
}

/// How many of `n` clients get each edge as their first.
fn firsts(fleet: &mut Fleet, n: usize, now: Duration, rng: &mut StdRng) -> BTreeMap<String, u32> {
    let mut firsts = BTreeMap::new();
    for _ in 0..n {
        let ranking = rank(fleet, &RttTable::new(1), &german(), &policy(), now, || rng.next_u64());
        if let Some(name) = names(fleet, &ranking).first() {
            *firsts.entry(name.clone()).or_insert(0) += 1;
        }
    }
    firsts
}

#[test]
fn a_stale_report_attracts_no_herd() {
    // One edge has 50 connections fewer; within the second before the next report, 4,000 clients ask four
    // dispatchers, each of which knows only what it assigned itself.
    let reports: Vec<_> =
        (0..5).map(|i| edge(1, &format!("e{i}"), FRANKFURT, if i == 0 { 950 } else { 1000 }, 100_000)).collect();
    let mut total = BTreeMap::new();
    let mut rng = StdRng::seed_from_u64(2);
    for _ in 0..4 {
        for (name, n) in firsts(&mut fleet(reports.clone()), 1000, NOW, &mut rng) {
            *total.entry(name).or_insert(0) += n;
        }
    }
    assert!(total.values().all(|n| (650..=1100).contains(n)), "{total:?}");
}

#[test]
fn the_bench_input_ranks_and_gets_its_reports() {
    for edges in [1, 10, 50] {
        let mut input = bench_input(edges);
        assert!((0..200).all(|_| input.rank_once().len() == edges.min(5)));
    }
    assert!(bench_input(0).rank_once().is_empty());
}

#[test]
fn distances_are_great_circles() {
    let at = |(latitude, longitude)| Position::new(latitude, longitude).unwrap();
    let km = at(FRANKFURT).distance_km(at(ASHBURN));
    assert!((km - 6_560.0).abs() < 60.0, "{km}");
    assert!(at((0.0, 179.5)).distance_km(at((0.0, -179.5))) < 112.0, "across the date line");
    assert!((at((90.0, 0.0)).distance_km(at((-90.0, 0.0))) - 20_015.0).abs() < 1.0);
    assert!(at(FRANKFURT).distance_km(at(FRANKFURT)) < 1e-9);
    for bad in [(91.0, 0.0), (0.0, 181.0), (f64::NAN, 0.0), (0.0, f64::INFINITY)] {
        assert!(Position::new(bad.0, bad.1).is_none(), "{bad:?}");
    }
}

#[test]
fn networks_and_countries_are_told_apart() {
    let of = |a: &str| NetworkPrefix::of(a.parse().unwrap());
    assert_eq!(of("8.8.8.8"), of("8.8.8.200"));
    assert_eq!(of("8.8.8.8"), of("::ffff:8.8.8.1"));
    assert_ne!(of("8.8.8.8"), of("8.8.9.8"));
    assert_eq!(of("2a01:4f8:1::1"), of("2a01:4f8:1:ffff::1"));
    assert_ne!(of("2a01:4f8:1::1"), of("2a01:4f8:2::1"));
    assert_ne!(of("0.8.8.8"), of("::8:800:0:0:0"), "the families");
    assert_eq!(Country::new("de"), Country::new("DE"));
    assert!(["", "D", "DEU", "D1", "ü"].iter().all(|c| Country::new(c).is_none()));
}

prop_compose! {
    fn any_edge()(
        region in 1..4_u8, name in 0..6_u8, domain in 0..3_u8, connections in 0..12_u32, cpu in 0..1200_u32,
        draining in prop::bool::weighted(0.2), cordoned in prop::bool::weighted(0.1), age_ms in 0..4_000_u64,
        latitude in -100.0..100.0_f64, longitude in -180.0..180.0_f64,
    ) -> (EdgeReport, bool) {
        let report = EdgeReport {
            cpu_permille: cpu,
            draining,
            age: Duration::from_millis(age_ms),
            position: Position::new(latitude, longitude),
            failure_domain: Arc::from(format!("d{domain}")),
            ..edge(region, &format!("e{name}"), (0.0, 0.0), connections, 10)
        };
        (report, cordoned)
    }
}

proptest! {
    #[test]
    fn lists_hold_only_edges_that_may_be_listed_and_leave_region_and_domain(
        edges in prop::collection::vec(any_edge(), 0..20),
        limit in 1..7_usize,
        placed in any::<bool>(),
        exclude in prop::collection::vec("e[0-5]", 0..3),
        samples in prop::collection::vec((1..5_u8, 0.1..500.0_f64), 0..4),
        seed in any::<u64>(),
    ) {
        let build = || {
            let mut fleet = Fleet::new();
            for (report, cordoned) in &edges {
                fleet.report(NOW, report.clone()).unwrap();
                fleet.set_cordoned(report.region, &report.edge, *cordoned);
            }
            fleet
        };
        let samples: Vec<(SiteKey, f64)> = samples.into_iter().map(|(r, ms)| (SiteKey::new(r, None), ms)).collect();
        let client = Client {
            measured: &samples,
            exclude: &exclude,
            ..if placed { german() } else { Client::default() }
        };
        let policy = Policy { list_max: limit, ..policy() };
        let ask = |fleet: &mut Fleet| {
            let mut rng = StdRng::seed_from_u64(seed);
            rank(fleet, &RttTable::new(1), &client, &policy, NOW, || rng.next_u64())
        };
        let mut fleet = build();
        let able: Vec<usize> = (0..fleet.edges().len())
            .filter(|i| fleet.edges()[*i].standing(NOW) == Standing::Listed)
            .collect();
        let wanted: Vec<usize> = able
            .iter()
            .copied()
            .filter(|i| !exclude.iter().any(|e| **e == *fleet.edges()[*i].report().edge))
            .collect();
        let pool = if wanted.is_empty() { able } else { wanted };
        let ranking = ask(&mut fleet);
        let listed: Vec<usize> = ranking.iter().map(|c| c.edge).collect();

        prop_assert_eq!(listed.len(), pool.len().min(limit.clamp(1, LIST_MAX)));
        prop_assert_eq!(ranking.len(), listed.len());
        prop_assert!(listed.iter().all(|e| pool.contains(e)));
        prop_assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len(), "none twice");
        let spread = |of: &[usize]| {
            let reports = of.iter().map(|i| fleet.edges()[*i].report());
            let domains: BTreeSet<_> = reports.clone().map(|r| (r.region, r.failure_domain.clone())).collect();
            (reports.map(|r| r.region).collect::<BTreeSet<_>>().len(), domains.len())
        };
        if limit >= 2 {
            let (regions, domains) = spread(&pool);
            let (listed_regions, listed_domains) = spread(&listed);
            prop_assert!(listed_regions >= regions.min(2) && listed_domains >= domains.min(2));
        }
        for choice in ranking.iter() {
            prop_assert!(choice.load.is_finite() && choice.rtt_ms.is_none_or(|ms| ms.is_finite() && ms > 0.0));
        }
        let again = ask(&mut build());
        prop_assert_eq!(format!("{ranking:?}"), format!("{again:?}"), "equal arguments, equal answers");
    }
}
