use tern_netsim_verdict::{Reading, Spot};

use super::*;
use crate::chaos::observed::Sent;

const MS: u64 = 1_000_000;

fn message(number: u64, sent_ms: u64, acked_ms: Option<u64>, shown_ms: Option<u64>) -> Sent {
    let mut sent = Sent::new(0, 0, 1, format!("m{number}"), sent_ms * MS);
    let spot = Spot { hlc: number * 10, origin: "eu".into(), seq: number };
    sent.acked = acked_ms.map(|at| (at * MS, spot));
    sent.shown_ns = shown_ms.map(|at| at * MS);
    sent.told = u32::from(shown_ms.is_some());
    sent
}

fn read(names: &[u64], at_ms: u64) -> Reading {
    let spot = |seq: u64| Spot { hlc: seq * 10, origin: "eu".into(), seq };
    Reading {
        client: "ben".into(),
        log: "0".into(),
        invoked_ns: at_ms * MS,
        returned_ns: (at_ms + 1) * MS,
        is_whole: true,
        entries: names.iter().map(|n| (spot(*n), Some(format!("m{n}")))).collect(),
    }
}

/// An edge dies at 10 s for 5 s; ada is cut off for 400 ms, and her next message is acked after 700 ms.
fn run() -> Observed {
    let mut observed = Observed::default();
    observed.add_client("ada", "eu");
    observed.add_client("ben", "eu");
    let at = |edge: &str| Some((edge.to_owned(), "eu".to_owned()));
    observed.clients[0].states = vec![(0, None), (5 * MS, at("e1")), (10_100 * MS, None), (10_400 * MS, at("e2"))];
    observed.clients[1].states = vec![(0, at("e2"))];
    observed.messages = vec![
        message(1, 1000, Some(1020), Some(1025)),
        message(2, 2000, Some(2040), Some(2045)),
        message(3, 9990, Some(10_600), Some(10_610)),
        message(4, 10_050, Some(10_700), Some(15_300)),
        message(5, 30_000, Some(30_030), Some(30_035)),
    ];
    observed.readings = vec![read(&[1, 2, 3, 4, 5], 40_000)];
    observed.faults = vec![Struck {
        id: "edge".into(),
        begin_ns: 10_000 * MS,
        end_ns: Some(15_000 * MS),
        aftermath_ns: 5000 * MS,
        met: Some(vec![0]),
    }];
    observed
}

fn bounds() -> Bounds {
    let max = |seconds| Limits { max: Some(seconds), ..Limits::default() };
    Bounds {
        next_ack: max(0.7),
        live_again: max(0.4),
        caught_up: max(0.3),
        ack_outside_faults: max(0.04),
        lost: Some(0),
        doubled: Some(0),
        out_of_order: Some(0),
        not_acked: Some(0),
        not_shown: Some(0),
        ..Bounds::default()
    }
}

fn judged(observed: &Observed, bounds: &Bounds) -> Judged {
    judge(observed, bounds, Regions::One, 0)
}

fn figure<'a>(judged: &'a Judged, name: &str) -> &'a Figure {
    judged.figures.iter().find(|figure| figure.name == name).unwrap_or_else(|| panic!("no figure {name}"))
}

fn max(judged: &Judged, name: &str) -> f64 {
    figure(judged, name).values.last().unwrap().1
}

#[test]
fn times_count_from_what_the_fault_does_and_bounds_are_kept_or_not() {
    let good = judged(&run(), &bounds());
    assert_eq!(good.verdict, Verdict::Pass, "{good:?}");
    assert!((max(&good, "next ack after edge") - 0.7).abs() < 1e-9);
    assert!((max(&good, "live again after edge") - 0.4).abs() < 1e-9);
    assert!((max(&good, "caught up after edge") - 0.3).abs() < 1e-9);
    // What a fault touched does not count: two messages before it and one long after are left.
    let acks = figure(&good, "ack outside of faults");
    assert_eq!((acks.count, acks.verdict), (3, Some(Verdict::Pass)));
    assert_eq!(
        acks.line(),
        "PASS    ack outside of faults: median 30 ms, p99 40 ms, max 40 ms of 3; at most max 40 ms"
    );
    let mut tight = bounds();
    tight.live_again.max = Some(0.39);
    let bad = judged(&run(), &tight);
    assert_eq!(bad.verdict, Verdict::Fail);
    assert_eq!(figure(&bad, "live again after edge").verdict, Some(Verdict::Fail));
}

#[test]
fn what_never_happened_is_late_and_what_was_not_measured_is_unknown() {
    let mut never = run();
    never.clients[0].states.truncate(3);
    never.messages[3].acked = None;
    never.messages[3].shown_ns = None;
    never.readings = vec![read(&[1, 2, 3], 40_000)];
    never.messages.pop();
    let bad = judged(&never, &bounds());
    for name in ["next ack after edge", "live again after edge", "caught up after edge"] {
        assert_eq!(figure(&bad, name).verdict, Some(Verdict::Fail), "{name}");
        assert!(max(&bad, name).is_infinite());
    }
    assert!(figure(&bad, "next ack after edge").line().contains("max never"));
    assert_eq!(figure(&bad, "not acked").verdict, Some(Verdict::Fail));

    // Another edge was asked in time, and the client has never been anything but live.
    let mut moved = run();
    let elsewhere = Some(("e2".to_owned(), "eu".to_owned()));
    moved.clients[0].states.truncate(2);
    moved.clients[0].states.push((10_300 * MS, elsewhere));
    assert!((max(&judged(&moved, &bounds()), "live again after edge") - 0.3).abs() < 1e-9);

    let mut unfelt = run();
    unfelt.clients[0].states.truncate(2);
    let unknown = judged(&unfelt, &bounds());
    assert_eq!(figure(&unknown, "live again after edge").verdict, Some(Verdict::Unknown));
    assert_eq!(unknown.verdict, Verdict::Unknown);
    // A step that failed, or events that came too fast, spoil what would pass, and save nothing that fails.
    assert_eq!(judge(&run(), &bounds(), Regions::One, 1).verdict, Verdict::Unknown);
    let mut fast = run();
    fast.missed_events = 1;
    assert_eq!(judged(&fast, &bounds()).verdict, Verdict::Unknown);
    assert_eq!(judge(&never, &bounds(), Regions::One, 1).verdict, Verdict::Fail);
    assert_eq!(judged(&run(), &Bounds::default()).verdict, Verdict::Unknown);
}

#[test]
fn lost_doubled_and_misplaced_messages_are_counted() {
    let mut lost = run();
    lost.readings = vec![read(&[1, 2, 4, 5], 40_000)];
    let bad = judged(&lost, &bounds());
    assert_eq!((max(&bad, "lost"), bad.verdict), (1.0, Verdict::Fail));
    // Acked, and its reader was never told of it.
    let mut silent = run();
    silent.messages[4].shown_ns = None;
    let bad = judged(&silent, &bounds());
    assert_eq!((max(&bad, "acked and not shown"), bad.verdict), (1.0, Verdict::Fail));
    // Nobody who is up to date has looked: it may be there or not.
    let mut unread = run();
    unread.readings[0].is_whole = false;
    assert_eq!(judged(&unread, &bounds()).verdict, Verdict::Unknown);
    let mut twice = run();
    twice.messages[1].told = 2;
    assert_eq!(max(&judged(&twice, &bounds()), "doubled"), 1.0);
    let mut turned = run();
    turned.readings[0].entries.swap(1, 2);
    assert_eq!(figure(&judged(&turned, &bounds()), "out of order").verdict, Some(Verdict::Fail));
}

#[test]
fn memory_is_compared_between_the_second_and_the_last_quarter_of_a_fault() {
    let mut observed = run();
    // Warm after 11 s; then it grows by 10 MiB a second.
    let at = |second: u64, mib: u64| (second * 1000 * MS, "eu-n1".to_owned(), mib << 20);
    observed.memory = vec![at(10, 50), at(11, 90), at(12, 100), at(14, 125), at(15, 135)];
    let mut limits = bounds();
    limits.memory_growth_mib = Some(29);
    let judged_run = judged(&observed, &limits);
    assert_eq!((max(&judged_run, "memory growth, MiB"), judged_run.verdict), (30.0, Verdict::Fail));
    limits.memory_growth_mib = Some(30);
    assert_eq!(judged(&observed, &limits).verdict, Verdict::Pass);
    observed.died = 1;
    assert_eq!(judged(&observed, &limits).verdict, Verdict::Fail);
    observed.died = 0;
    observed.memory.truncate(2);
    assert_eq!(judged(&observed, &limits).verdict, Verdict::Unknown);
}

#[test]
fn routes_are_complete_when_every_client_has_one_again() {
    let limits = Limits { max: Some(5.0), ..Limits::default() };
    let bounds = Bounds { routes_complete: Some(limits), ..bounds() };
    let figure = |routes: &[(u64, Option<u64>)], ends: bool| {
        let mut observed = run();
        observed.routes = routes.iter().map(|(ms, routes)| (ms * MS, *routes)).collect();
        if !ends {
            observed.faults[0].end_ns = None;
        }
        let judged = judge(&observed, &bounds, Regions::One, 0);
        let figure = judged.figures.into_iter().find(|figure| figure.name == "routes complete after edge").unwrap();
        (figure.values.last().map(|(_, value)| *value), figure.verdict.unwrap())
    };
    let flushed = [(9_000, Some(2)), (10_000, Some(2)), (10_100, Some(0)), (10_900, Some(1)), (11_200, Some(2))];
    assert_eq!(figure(&flushed, false), (Some(1.2), Verdict::Pass));
    let killed = [(10_050, None), (15_100, Some(0)), (16_000, Some(2))];
    assert_eq!(figure(&killed, true), (Some(1.0), Verdict::Pass), "from its end");
    let late = [(10_100, Some(0)), (15_100, Some(2))];
    assert_eq!(figure(&late, false), (Some(5.1), Verdict::Fail));
    assert_eq!(figure(&flushed[..4], false).1, Verdict::Fail, "never again");
    assert_eq!(figure(&flushed[..2], false), (None, Verdict::Unknown), "nothing was seen to be missing");
}
