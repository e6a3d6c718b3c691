//! Who gets how many: clients are shared out in proportion to room, within a load period and over many, by one
//! dispatcher and by several.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::tests::{FRANKFURT, NOW, edge, fleet, german, policy};
use super::*;

/// First ranks per edge, in the order of the fleet.
fn send(fleet: &mut Fleet, clients: usize, now: Duration, rng: &mut StdRng) -> Vec<f64> {
    let learned = RttTable::new(1);
    let mut got = vec![0.0; fleet.edges().len()];
    for _ in 0..clients {
        let ranking = rank(fleet, &learned, &german(), &policy(), now, || rng.next_u64());
        if let Some(first) = ranking.iter().next() {
            got[first.edge] += 1.0;
        }
    }
    got
}

/// By the edges' free places, written down apart from what ranking computes.
fn shares(reports: &[EdgeReport]) -> Vec<f64> {
    let free: Vec<f64> = reports.iter().map(|r| f64::from(r.capacity) - f64::from(r.connections)).collect();
    let sum: f64 = free.iter().sum();
    free.into_iter().map(|f| f / sum).collect()
}

/// The largest relative distance of a share to what it should be.
fn worst(got: &[f64], shares: &[f64]) -> f64 {
    let sum: f64 = got.iter().sum();
    got.iter().zip(shares).map(|(g, s)| (g / (sum * s) - 1.0).abs()).fold(0.0, f64::max)
}

/// Named so that their order is that of the fleet.
fn mixed(edges: usize, rng: &mut StdRng) -> Vec<EdgeReport> {
    let capacities = [20_000, 30_000, 50_000, 100_000];
    let report = |i| {
        let capacity = capacities[rng.random_range(0..capacities.len())];
        let connections = capacity / 100 * rng.random_range(0..=60);
        edge(1, &format!("e{i:02}"), FRANKFURT, connections, capacity)
    };
    (0..edges).map(report).collect()
}

#[test]
fn ten_thousand_clients_within_a_load_period_leave_every_edge_near_its_share() {
    for edges in [2, 5, 50] {
        for seed in 0..8 {
            let mut rng = StdRng::seed_from_u64(seed);
            let reports = mixed(edges, &mut rng);
            let got = send(&mut fleet(reports.clone()), 10_000, NOW, &mut rng);
            let off = worst(&got, &shares(&reports));
            assert!(off < 0.1, "{edges} edges, seed {seed}: {off:.3} off, {got:?}");
        }
    }
}

#[test]
fn a_large_edge_among_small_ones_gets_its_share_too() {
    let mut reports = vec![edge(1, "e00", FRANKFURT, 0, 490_000)];
    reports.extend((1..50).map(|i| edge(1, &format!("e{i:02}"), FRANKFURT, 0, 10_000)));
    let got = send(&mut fleet(reports.clone()), 10_000, NOW, &mut StdRng::seed_from_u64(1));
    assert!((4_900.0..=5_100.0).contains(&got[0]), "half of all: {}", got[0]);
    assert!(worst(&got, &shares(&reports)) < 0.1, "{got:?}");
}

#[test]
fn capacities_of_three_to_two_get_sixty_and_forty_percent_at_any_pace() {
    // Clients a second, from one in five seconds to more than a thousand; edges report once a second.
    for (clients, every_ms) in [(2_000, 5_000), (2_000, 1_000), (2_000, 300), (5_000, 30), (10_000, 1)] {
        for seed in 0..4 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (three, two) = (edge(1, "a", FRANKFURT, 0, 300_000), edge(1, "b", FRANKFURT, 0, 200_000));
            let mut fleet = fleet(vec![three.clone(), two.clone()]);
            let (mut now, mut got) = (NOW, [0.0, 0.0]);
            let mut reported_at = now;
            for _ in 0..clients {
                now += Duration::from_millis(every_ms);
                if now - reported_at >= Duration::from_secs(1) {
                    reported_at = now;
                    for (report, got) in [(&three, got[0]), (&two, got[1])] {
                        fleet.report(now, EdgeReport { connections: got as u32, ..report.clone() }).unwrap();
                    }
                }
                let one = send(&mut fleet, 1, now, &mut rng);
                got = [got[0] + one[0], got[1] + one[1]];
            }
            let share = got[0] / (got[0] + got[1]);
            assert!((share - 0.6).abs() < 0.03, "one in {every_ms} ms, seed {seed}: {share:.3}");
        }
    }
}

#[test]
fn dispatchers_that_are_asked_seldom_do_not_agree_on_one_edge() {
    // Sixty dispatchers know nothing of each other; each is asked five times within a load period.
    for seed in 0..4 {
        let mut rng = StdRng::seed_from_u64(seed);
        let capacities = [20_000, 30_000, 50_000, 100_000, 100_000];
        let report = |(i, capacity): (usize, &u32)| edge(1, &format!("e{i}"), FRANKFURT, 0, *capacity);
        let reports: Vec<_> = capacities.iter().enumerate().map(report).collect();
        let mut got = vec![0.0; reports.len()];
        for _ in 0..60 {
            let one = send(&mut fleet(reports.clone()), 5, NOW, &mut rng);
            got.iter_mut().zip(one).for_each(|(sum, n)| *sum += n);
        }
        let off = worst(&got, &shares(&reports));
        assert!(off < 0.3, "seed {seed}: {got:?}");
    }
}

#[test]
fn reports_that_come_one_after_the_other_move_no_crowd() {
    // Twenty edges report at different moments of each second; at any moment their numbers are of different age.
    let mut rng = StdRng::seed_from_u64(5);
    let mut reports = mixed(20, &mut rng);
    let mut fleet = fleet(reports.clone());
    let mut got = vec![0.0; reports.len()];
    for tick in 1..=100_u32 {
        let now = NOW + Duration::from_millis(50) * tick;
        let reporting = tick as usize % reports.len();
        reports[reporting].connections += std::mem::take(&mut got[reporting]) as u32;
        fleet.report(now, reports[reporting].clone()).unwrap();
        let sent = send(&mut fleet, 200, now, &mut rng);
        // Two hundred clients in 50 ms: none gets more than twice its part of them, nor twice what is usual.
        let expected = shares(&reports);
        for ((got, sent), share) in got.iter_mut().zip(&sent).zip(&expected) {
            assert!(*sent <= 200.0 * share * 1.5 + 3.0, "{sent} of 200 at a share of {share:.3}");
            *got += sent;
        }
    }
}

#[test]
fn a_new_edge_takes_its_share_slowly_and_takes_it_from_all() {
    let old = [edge(1, "a", FRANKFURT, 50_000, 100_000), edge(1, "b", FRANKFURT, 50_000, 100_000)];
    let mut fleet = fleet(old.to_vec());
    fleet.report(NOW, edge(1, "c", FRANKFURT, 0, 100_000)).unwrap();
    assert!(fleet.edges()[2].is_new(NOW) && !fleet.edges()[2].is_new(NOW + SLOW_START));
    let mut rng = StdRng::seed_from_u64(3);
    // A tenth of its room of 100,000 beside two of 50,000.
    let got = send(&mut fleet, 3_000, NOW, &mut rng);
    assert!(worst(&got, &[50.0 / 110.0, 50.0 / 110.0, 10.0 / 110.0]) < 0.1, "{got:?}");
    // All of it when it is no longer new.
    let now = NOW + SLOW_START;
    for report in old.into_iter().chain([edge(1, "c", FRANKFURT, 0, 100_000)]) {
        fleet.report(now, report).unwrap();
    }
    let got = send(&mut fleet, 3_000, now, &mut rng);
    assert!(worst(&got, &[0.25, 0.25, 0.5]) < 0.1, "{got:?}");
}

#[test]
fn a_busy_processor_makes_less_room_by_and_by_and_never_none() {
    let at = |cpu_permille| {
        let busy = EdgeReport { cpu_permille, ..edge(1, "a", FRANKFURT, 0, 100_000) };
        let mut fleet = fleet(vec![busy, edge(1, "b", FRANKFURT, 0, 100_000)]);
        send(&mut fleet, 4_000, NOW, &mut StdRng::seed_from_u64(1))[0]
    };
    for (cpu_permille, least, most) in [(600, 1_950.0, 2_050.0), (700, 1_950.0, 2_050.0), (850, 1_280.0, 1_380.0)] {
        let got = at(cpu_permille);
        assert!((least..=most).contains(&got), "{cpu_permille} permille: {got}");
    }
    assert!(at(1000) <= 10.0);
    let mut alone = fleet(vec![EdgeReport { cpu_permille: 1000, ..edge(1, "a", FRANKFURT, 0, 100_000) }]);
    assert_eq!(send(&mut alone, 10, NOW, &mut StdRng::seed_from_u64(1)), [10.0]);
}

#[test]
fn edges_that_are_fuller_get_less_until_all_are_equally_full() {
    // A restart left one edge empty. Every second one client in fifty leaves, and as many come.
    let mut connections = [0.0, 70_000.0, 70_000.0];
    let mut fleet =
        fleet((0..3).map(|i| edge(1, &format!("e{i}"), FRANKFURT, connections[i] as u32, 100_000)).collect());
    let mut rng = StdRng::seed_from_u64(9);
    for second in 1..=120 {
        let now = NOW + Duration::from_secs(second);
        let mut left = 0.0;
        for held in &mut connections {
            left += *held * 0.02;
            *held *= 0.98;
        }
        for (i, held) in connections.iter().enumerate() {
            fleet.report(now, edge(1, &format!("e{i}"), FRANKFURT, *held as u32, 100_000)).unwrap();
        }
        // In lots of ten, to be quick about it.
        let got = send(&mut fleet, (left / 10.0) as usize, now, &mut rng);
        connections.iter_mut().zip(got).for_each(|(held, got)| *held += got * 10.0);
    }
    let most = connections.iter().copied().fold(0.0, f64::max);
    let least = connections.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(least > 0.95 * most, "{connections:?}");
}
