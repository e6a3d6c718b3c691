//! Rows that fold logs, and logs that have ended (R4, R13).

use super::*;
use crate::client::Placed;
use crate::ids::Region;

fn at(region: Region, era: u64) -> Origin {
    Origin { region, era }
}

fn fold(region: Region, through: u64) -> Origin {
    Origin::fold(region, through).unwrap()
}

fn in_log(hlc: u64, log: Origin, seq: u64) -> Place {
    Place { hlc, origin: log, seq }
}

fn asked(d: &mut Device) -> Option<(u32, v1::PullEras)> {
    d.frames().into_iter().find_map(|f| match f.body {
        Some(Body::PullEras(pull)) => Some((f.req, pull)),
        _ => None,
    })
}

fn pulls(d: &mut Device) -> Vec<(u32, Origin, u64, u64)> {
    let pull = |f: v1::Frame| match f.body {
        Some(Body::Pull(p)) => Some((f.req, p.origin.unwrap().try_into().unwrap(), p.from, p.to)),
        _ => None,
    };
    d.frames().into_iter().filter_map(pull).collect()
}

/// (log, head, start, sealed)
fn eras(logs: &[(Origin, u64, u64, bool)]) -> Body {
    let logs = logs.iter().map(|(o, head, start, sealed)| v1::EraLog {
        origin: Some((*o).into()),
        head: *head,
        start: *start,
        sealed: *sealed,
    });
    Body::Eras(v1::Eras { conversation: Bytes::copy_from_slice(&chat().0), logs: logs.collect() })
}

/// One who has read and shown bob's two messages of two lives of region 1.
fn reader() -> (Device, ConnNo) {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let (first, second) = (at(1, 100), at(1, 200));
    d.frame(conn, 0, push(vec![bob(1, in_log(10, first, 1), "one")], &[(first, 1)], 0, 1));
    d.frame(conn, 0, push(vec![bob(2, in_log(20, second, 1), "two")], &[(first, 1), (second, 1)], 1, 2));
    d.act(|m, now| m.mark_read(now, chat(), None));
    d.frames();
    (d, conn)
}

#[test]
fn a_fold_is_asked_about_once_and_one_whose_logs_are_held_costs_nothing_more() {
    let (mut d, conn) = reader();
    let (first, second, third) = (at(1, 100), at(1, 200), at(1, 300));
    let heads = [(fold(1, 2), 2), (third, 1)];
    d.frame(conn, 0, push(vec![bob(3, in_log(30, third, 1), "three")], &heads, 2, 3));
    let (req, pull) = asked(&mut d).expect("which logs?");
    assert!(pull.origins.is_empty());
    assert!(!d.machine.unread_is_exact(chat()), "there may be more that is not known");
    d.body(conn, req, eras(&[(first, 1, 1, true), (second, 1, 2, true), (third, 1, 3, false)]));
    assert!(d.machine.unread_is_exact(chat()));
    assert!(pulls(&mut d).is_empty());
    d.pass(Duration::from_secs(3));
    d.frame(conn, 0, push(vec![bob(4, in_log(40, third, 2), "four")], &[(fold(1, 2), 2), (third, 2)], 3, 4));
    d.pass(Duration::from_secs(3));
    assert_eq!(asked(&mut d), None, "the same number: the same logs");
    assert_eq!(d.shown(), ["one", "two", "three", "four"]);
    // Another number: a log has grown.
    d.frame(conn, 0, push(Vec::new(), &[(fold(1, 2), 3), (third, 2)], 4, 5));
    d.machine.session.as_mut().unwrap().eras_pauses.clear(); // ten seconds later
    d.act(Machine::tick);
    let (req, _) = asked(&mut d).expect("which logs?");
    d.body(conn, req, eras(&[(first, 2, 1, true), (second, 1, 2, true), (third, 2, 3, false)]));
    assert_eq!(pulls(&mut d).iter().map(|(_, o, a, b)| (*o, *a, *b)).collect::<Vec<_>>(), [(first, 2, 2)]);
}

#[test]
fn what_is_folded_and_not_held_is_pulled_and_a_crash_before_that_forgets_nothing() {
    let (mut d, conn) = reader();
    let (first, second, third) = (at(1, 100), at(1, 200), at(1, 300));
    d.frame(conn, 0, push(Vec::new(), &[(fold(1, 2), 5), (third, 1)], 2, 3));
    assert!(asked(&mut d).is_some());
    d.crash(setup("alice"));
    let conn = d.connect(1, 3);
    let (req, _) = asked(&mut d).expect("asked again: the answer had not come");
    d.body(conn, req, eras(&[(first, 4, 1, true), (second, 1, 2, true), (third, 1, 3, false)]));
    let wanted: Vec<_> = pulls(&mut d).iter().map(|(_, o, a, b)| (*o, *a, *b)).collect();
    assert_eq!(wanted, [(first, 2, 4)], "the third log's entry was asked for at once");
}

#[test]
fn a_folded_mark_reads_all_that_began_no_later() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    let (first, second, third) = (at(1, 100), at(1, 200), at(1, 300));
    let heads = [(first, 1), (second, 1), (third, 1)];
    let entries = vec![
        bob(1, in_log(10, first, 1), "one"),
        bob(2, in_log(20, second, 1), "two"),
        bob(3, in_log(30, third, 1), "three"),
    ];
    d.frame(conn, 0, push(entries, &heads, 0, 1));
    assert_eq!(d.book.unread(chat()), 3);
    // Read on another device; this region tells it as another one had folded it.
    let mut told = push_of(Vec::new(), &heads, 1, 2);
    let read = Heads::from([(fold(1, 2), 2)]);
    told.row = Some(Box::new(crate::edge_api::RowState { generation: 1, read, ..Default::default() }));
    d.frame(conn, 0, Read::Push(told));
    assert_eq!(d.book.unread(chat()), 3, "which logs that is, is not known yet");
    let (req, _) = asked(&mut d).expect("which logs?");
    d.body(conn, req, eras(&[(first, 1, 1, true), (second, 1, 2, true), (third, 1, 3, false)]));
    assert_eq!(d.book.unread(chat()), 1);
    d.pass(Duration::from_secs(3));
    assert!(!d.frames().iter().any(|f| matches!(f.body, Some(Body::Mark(_) | Body::PullEras(_)))), "nothing is news");
    d.act(|m, now| m.mark_read(now, chat(), None));
    let marks = d.frames();
    let mark = marks.iter().find_map(|f| match &f.body {
        Some(Body::Mark(mark)) => Some(mark.read.clone()),
        _ => None,
    });
    assert_eq!(mark.expect("a mark").len(), 1, "only what is news is said");
}

#[test]
fn a_copy_in_a_lost_tail_gives_way_to_the_one_that_regions_hold() {
    let (mut d, conn) = reader();
    let (second, third, us) = (at(1, 200), at(1, 300), at(2, 7));
    // Pushed by region 1 and seen here alone: then its disk is lost.
    let heads = [(at(1, 100), 1), (second, 2)];
    d.frame(conn, 0, push(vec![bob(3, in_log(30, second, 2), "three")], &heads, 2, 3));
    // Bob never had an ack, so his message gets a fresh place elsewhere, behind one that came in between.
    let heads = [(at(1, 100), 1), (second, 1), (third, 1), (us, 1)];
    let later = vec![entry("carol", "c", 1, in_log(40, us, 1), "between"), bob(3, in_log(50, third, 1), "three")];
    d.frame(conn, 0, push(later, &heads, 3, 4));
    assert_eq!(d.shown(), ["one", "two", "three", "between"], "as far as is known");
    // The row as region 2 tells it says less of the old log than is held.
    let row = rows(&heads, None, Some(cursor(1, 9)), true);
    d.body(conn, 0, Body::Rows(row));
    assert_eq!(asked(&mut d), None, "it may only be late");
    d.pass(Duration::from_secs(6));
    let (req, pull) = asked(&mut d).expect("has it ended?");
    assert_eq!(pull.origins, [second.into()]);
    d.changes.clear();
    d.body(conn, req, eras(&[(at(1, 100), 1, 1, true), (second, 1, 2, true), (third, 1, 3, false)]));
    assert_eq!(d.shown(), ["one", "two", "between", "three"], "as every other device shows it");
    assert!(matches!(d.changes[..], [Change { what: Placed::Moved { .. }, .. }]), "{:?}", d.changes);
    d.pass(Duration::from_secs(3600));
    assert_eq!(asked(&mut d), None, "settled for good");
    d.crash(setup("alice"));
    d.connect(1, 9);
    d.pass(Duration::from_secs(60));
    assert_eq!(asked(&mut d), None);
    assert_eq!(d.shown(), ["one", "two", "between", "three"]);
}

#[test]
fn what_only_this_device_has_seen_stays_shown_and_counts_again_when_its_log_goes_on() {
    let (mut d, conn) = reader();
    let (second, third) = (at(1, 200), at(1, 300));
    let heads = [(at(1, 100), 1), (second, 2)];
    d.frame(conn, 0, push(vec![bob(3, in_log(30, second, 2), "three")], &heads, 2, 3));
    let heads = [(at(1, 100), 1), (second, 1), (third, 1)];
    d.body(conn, 0, Body::Rows(rows(&heads, None, Some(cursor(1, 9)), true)));
    d.pass(Duration::from_secs(6));
    let (req, _) = asked(&mut d).expect("has it ended?");
    d.body(conn, req, eras(&[(at(1, 100), 1, 1, true), (second, 1, 2, true), (third, 1, 3, false)]));
    assert_eq!(d.shown(), ["one", "two", "three"], "no other copy: nothing is taken away");
    // A copy comes after all: from now on it has the place.
    let heads = [(at(1, 100), 1), (second, 1), (third, 2)];
    let later = vec![entry("carol", "c", 1, in_log(40, third, 1), "between"), bob(3, in_log(50, third, 2), "three")];
    d.frame(conn, 0, push(later, &heads, 9, 10));
    assert_eq!(d.shown(), ["one", "two", "between", "three"]);
    // The lost disk comes back.
    let heads = [(at(1, 100), 1), (second, 2), (third, 2)];
    d.frame(conn, 0, push(Vec::new(), &heads, 10, 11));
    assert_eq!(d.shown(), ["one", "two", "three", "between"]);
}

#[test]
fn a_new_device_pulls_the_newest_of_folded_logs_like_those_of_others() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 9);
    let (first, third) = (at(1, 100), at(1, 300));
    let heads = [(fold(1, 2), 1_000), (third, 1)];
    d.body(conn, 0, Body::Rows(rows(&heads, None, Some(cursor(1, 9)), true)));
    let (req, _) = asked(&mut d).expect("which logs?");
    d.body(conn, req, eras(&[(first, 1_000, 1, true), (third, 1, 3, false)]));
    let wanted: Vec<_> = pulls(&mut d).into_iter().filter(|(_, o, ..)| *o == first).collect();
    assert!(wanted.iter().all(|(_, _, from, _)| *from > 500), "not its whole history: {wanted:?}");
    assert!(!wanted.is_empty());
}

#[test]
fn many_folds_at_once_are_asked_about_a_few_at_a_time() {
    let mut d = Device::new(setup("alice"));
    let conn = d.connect(1, 0);
    for n in 0..10u8 {
        let mut told = push_of(Vec::new(), &[(fold(1, 2), 2)], u64::from(n), u64::from(n) + 1);
        told.conversation = ConvId([n; 16]);
        d.frame(conn, 0, Read::Push(told));
    }
    let mut answered = 0;
    while answered < 10 {
        let asked: Vec<_> = d.frames().into_iter().filter(|f| matches!(f.body, Some(Body::PullEras(_)))).collect();
        assert!((1..=crate::client::limits::ERAS_IN_FLIGHT).contains(&asked.len()), "{}", asked.len());
        d.pass(Duration::from_millis(50));
        for frame in asked {
            answered += 1;
            d.body(conn, frame.req, eras(&[(at(1, 100), 2, 1, true)]));
        }
    }
}
