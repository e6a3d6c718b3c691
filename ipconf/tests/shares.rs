//! Ten thousand dispatches between two reports: who gets how many. And who is listed at all, and why not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use support::bed::{Bed, load};
use tern_core::clock::Clock;
use tern_core::wire::node_v1::EdgeLoad;
use tern_ipconf::api::{DispatchAnswer, DispatchRequest};

const FRANKFURT: (f64, f64) = (50.1, 8.7);

/// A dispatcher whose edges have long ceased to be new.
fn bed(edges: &[EdgeLoad]) -> Bed {
    let bed = Bed::empty();
    for edge in edges {
        bed.loads.report(edge, bed.clock.now()).unwrap();
    }
    *bed.clock.0.lock().unwrap() += Duration::from_secs(31);
    for edge in edges {
        bed.loads.report(edge, bed.clock.now()).unwrap();
    }
    bed
}

fn edge(name: &str, connections: u32, capacity: u32) -> EdgeLoad {
    EdgeLoad { connections, capacity, ..load(1, "eu", name, FRANKFURT) }
}

/// First places of so many answers, to clients of many networks.
fn firsts(bed: &Bed, answers: u32) -> BTreeMap<String, u32> {
    let mut firsts = BTreeMap::new();
    for i in 0..answers {
        let [.., a, b] = i.to_be_bytes();
        let answer = bed.ask(&DispatchRequest::default(), &format!("91.0.{a}.{b}"));
        *firsts.entry(answer.edges[0].id.clone()).or_insert(0) += 1;
    }
    firsts
}

#[tokio::test]
async fn capacities_of_three_to_two_share_sixty_to_forty() {
    let bed = bed(&[edge("a", 0, 30_000), edge("b", 0, 20_000)]);
    let firsts = firsts(&bed, 10_000);
    let share = f64::from(firsts["a"]) / 100.0;
    assert!((share - 60.0).abs() < 3.0, "{firsts:?}");
}

#[tokio::test]
async fn ten_thousand_dispatches_in_a_load_period_leave_every_edge_within_a_tenth_of_its_share() {
    for edges in [2_u32, 5, 50] {
        // Capacities of 20,000 to 100,000, filled to 0, 20, 40 and 60 percent.
        let reports: Vec<EdgeLoad> = (0..edges)
            .map(|i| {
                let capacity = [30_000, 20_000, 100_000, 50_000, 20_000][i as usize % 5];
                edge(&format!("e{i:02}"), capacity / 5 * (i / 2 % 4), capacity)
            })
            .collect();
        let free = |r: &EdgeLoad| f64::from(r.capacity - r.connections);
        let all: f64 = reports.iter().map(free).sum();
        let firsts = firsts(&bed(&reports), 10_000);
        for report in &reports {
            let expected = free(report) / all * 10_000.0;
            let got = f64::from(firsts.get(&report.edge).copied().unwrap_or(0));
            assert!((got / expected - 1.0).abs() < 0.1, "{edges} edges: {} got {got} of {expected:.0}", report.edge);
        }
    }
}

#[tokio::test]
async fn a_new_edge_gets_a_tenth_of_its_room_and_the_others_share_as_before() {
    let bed = bed(&[edge("a", 0, 30_000), edge("b", 0, 20_000)]);
    bed.loads.report(&edge("c", 0, 50_000), bed.clock.now()).unwrap();
    let firsts = firsts(&bed, 5_500);
    for (name, expected) in [("a", 3_000.0), ("b", 2_000.0), ("c", 500.0)] {
        assert!((f64::from(firsts[name]) / expected - 1.0).abs() < 0.1, "{firsts:?}");
    }
}

fn reasons(answer: &DispatchAnswer) -> BTreeMap<&str, &str> {
    answer.unlisted.iter().map(|u| (u.id.as_str(), u.reason.as_str())).collect()
}

#[tokio::test]
async fn an_explanation_tells_operators_who_is_not_listed_and_why() {
    let bed = Bed::new();
    let now = bed.clock.now();
    bed.loads.report(&EdgeLoad { draining: true, ..load(3, "ap", "ap-e2", (1.35, 103.8)) }, now).unwrap();
    bed.loads.report(&EdgeLoad { connections: 1_000, ..load(3, "ap", "ap-e3", (1.35, 103.8)) }, now).unwrap();
    bed.loads.report(&EdgeLoad { age_ms: 9_000, ..load(3, "ap", "ap-e4", (1.35, 103.8)) }, now).unwrap();
    assert!(bed.loads.set_cordoned(2, "us-e1", true));
    assert!(bed.loads.set_region_cordoned(1, true));
    assert_eq!(bed.loads.cordoned_regions(), [1]);
    let request = DispatchRequest { explain: true, ..Default::default() };
    let answer = bed.ask(&request, "127.0.0.1");
    assert_eq!(answer.edges.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["ap-e1"]);
    let expected = BTreeMap::from([
        ("eu-e1", "region_cordoned"),
        ("eu-e2", "region_cordoned"),
        ("us-e1", "cordoned"),
        ("ap-e2", "draining"),
        ("ap-e3", "full"),
        ("ap-e4", "silent"),
    ]);
    assert_eq!(reasons(&answer), expected);
    // Strangers get their list, and no view of the fleet.
    assert!(bed.ask(&request, "91.0.0.1").unlisted.is_empty());
    assert!(bed.ask(&DispatchRequest::default(), "127.0.0.1").unlisted.is_empty());
    let metrics = {
        bed.dispatch.refresh_metrics();
        bed.metrics()
    };
    assert!(metrics.contains(r#"tern_dispatch_edges{standing="region_cordoned"} 2"#), "{metrics}");
    // Back again, but for who asks not to be sent there.
    assert!(bed.loads.set_region_cordoned(1, false));
    let request = DispatchRequest { exclude: vec!["eu-e1".to_owned()], ..request };
    let answer = bed.ask(&request, "127.0.0.1");
    assert!(answer.edges.iter().any(|e| e.id == "eu-e2"));
    assert_eq!(reasons(&answer)["eu-e1"], "excluded");
}

#[tokio::test]
async fn clients_are_told_what_the_certificates_of_edges_say() {
    let first = |bed: &Bed| bed.ask(&DispatchRequest::default(), "49.32.0.1").edges[0].tls_name.clone();
    assert_eq!(first(&Bed::new()), "ap-e1.ap.tern.internal");
    let own = Bed::with(|config| config.edge_tls_name = "{edge}.{region}.im.example.com".to_owned()).and_edges();
    assert_eq!(first(&own), "ap-e1.ap.im.example.com");
    let one = Bed::with(|config| config.edge_tls_name = "im.example.com".to_owned()).and_edges();
    assert_eq!(first(&one), "im.example.com");
}
