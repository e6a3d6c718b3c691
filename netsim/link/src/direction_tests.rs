use super::*;
use crate::dice::{Amount, Chance};
use crate::episodes::{Episode, Episodes};
use crate::spec::{Corrupt, Delay, Jitter, Loss, Mtu, Queue, Rate, Reorder};

const MS: u64 = 1_000_000;

fn direction(spec: Spec) -> Direction<u32> {
    Direction::new(1, "phone", Way::Up, spec).unwrap()
}

/// 1,500 bytes take 1 ms.
fn slow() -> Spec {
    Spec { rate: Rate::Constant(12_000_000), ..Spec::with_delay_ms(10) }
}

/// Everything up to a moment: (ms, number, fate).
fn until(direction: &mut Direction<u32>, ms: u64) -> Vec<(u64, u64, Fate)> {
    std::iter::from_fn(|| direction.poll(ms * MS)).map(|out| (out.at_ns / MS, out.number, out.fate)).collect()
}

fn delivered(out: &[(u64, u64, Fate)]) -> Vec<(u64, u64)> {
    out.iter().filter(|(_, _, fate)| *fate == Fate::Delivered).map(|(ms, number, _)| (*ms, *number)).collect()
}

fn dropped(out: &[(u64, u64, Fate)], cause: Cause) -> Vec<(u64, u64)> {
    out.iter().filter(|(_, _, fate)| *fate == Fate::Dropped(cause)).map(|(ms, number, _)| (*ms, *number)).collect()
}

#[test]
fn a_perfect_wire_delivers_at_once_and_a_slow_one_in_its_time() {
    let mut wire = direction(Spec::default());
    wire.send(5 * MS, 1500, 42);
    let out = wire.poll(5 * MS).unwrap();
    assert_eq!((out.at_ns, out.left_ns, out.payload, out.fate), (5 * MS, Some(5 * MS), 42, Fate::Delivered));
    assert_eq!((wire.poll(9 * MS), wire.next_ns()), (None, None));

    let mut link = direction(slow());
    for _ in 0..3 {
        link.send(0, 1500, 0);
    }
    assert_eq!(link.queued(), (2, 3000));
    assert_eq!(link.next_ns(), Some(MS));
    assert_eq!(delivered(&until(&mut link, 10)), []);
    assert_eq!(delivered(&until(&mut link, 12)), [(11, 0), (12, 1)]);
    assert_eq!((link.next_ns(), link.in_flight()), (Some(13 * MS), 1));
}

#[test]
fn a_full_queue_drops_who_comes_by_packets_or_by_bytes() {
    let by_packets = Queue { packets: 2, ..Queue::default() };
    let by_bytes = Queue { bytes: 3000, ..Queue::default() };
    for queue in [by_packets, by_bytes] {
        let mut link = direction(Spec { queue, ..slow() });
        for _ in 0..5 {
            link.send(0, 1500, 0);
        }
        // One leaves, two wait.
        let out = until(&mut link, 100);
        assert_eq!(dropped(&out, Cause::QueueFull), [(0, 3), (0, 4)]);
        assert_eq!(delivered(&out), [(11, 0), (12, 1), (13, 2)]);
    }
}

#[test]
fn a_bloated_queue_makes_packets_wait_and_drops_none() {
    let mut link = direction(Spec { queue: Queue::bloated(12_000_000, 2000), ..slow() });
    for _ in 0..2000 {
        link.send(0, 1500, 0);
    }
    let out = until(&mut link, 5000);
    assert_eq!(delivered(&out).last(), Some(&(2010, 1999)));
    assert_eq!(link.counts().dropped_in_all(), 0);
}

#[test]
fn codel_keeps_the_wait_short_where_drop_tail_does_not() {
    let wait_at_end = |discipline| {
        let queue = Queue { discipline, ..Queue::default() };
        let mut link = direction(Spec { queue, ..slow() });
        // A sender that halves on loss, in short: 1.05 packets a millisecond, for ten seconds.
        let mut last = (0, 0);
        for n in 0..10_500 {
            link.send(n * 1000 / 1050 * MS, 1500, 0);
            while let Some(out) = link.poll(n * 1000 / 1050 * MS) {
                last = (out.sent_ns, out.left_ns.unwrap_or(out.sent_ns));
            }
        }
        (last.1 - last.0) / MS
    };
    let (codel, tail) = (wait_at_end(Discipline::CODEL), wait_at_end(Discipline::DropTail));
    assert!(codel < 60, "{codel}");
    assert!(tail > 400, "{tail}");
}

#[test]
fn too_long_packets_are_dropped_with_notice_or_into_a_black_hole() {
    for (notice, cause) in [(true, Cause::TooLong(1280)), (false, Cause::BlackHole)] {
        let mut link = direction(Spec { mtu: Some(Mtu { bytes: 1280, notice }), ..slow() });
        link.send(0, 1281, 0);
        link.send(0, 1280, 0);
        let out = until(&mut link, 100);
        assert_eq!(dropped(&out, cause), [(0, 0)]);
        assert_eq!(delivered(&out), [(10, 1)]);
    }
}

#[test]
fn an_outage_that_loses_hits_what_leaves_in_it_and_no_other() {
    let mut link = direction(slow());
    link.send(0, 1500, 0); // On its way at 1 ms.
    assert_eq!(until(&mut link, 3), []);
    link.send(3 * MS, 1500, 0); // Leaves at 4 ms.
    link.set_outage(3 * MS, Some(Outage::Loses));
    link.send(5 * MS, 3000, 0); // Leaves at 7 ms, when all is over.
    assert_eq!(link.outage(6 * MS), Some(Outage::Loses));
    link.set_outage(6 * MS, None);
    let out = until(&mut link, 100);
    assert_eq!(dropped(&out, Cause::Outage), [(4, 1)]);
    assert_eq!(delivered(&out), [(11, 0), (17, 2)]);
}

#[test]
fn an_outage_that_stalls_lets_the_queue_stand_and_then_delivers_everything() {
    let mut link = direction(Spec { rate: Rate::Unlimited, ..slow() });
    link.set_outage(0, Some(Outage::Stalls));
    for ms in 0..5 {
        link.send(ms * MS, 1500, 0);
    }
    assert_eq!((until(&mut link, 60_000), link.next_ns(), link.queued().0), (vec![], None, 5));
    link.set_outage(60_000 * MS, None);
    assert_eq!(delivered(&until(&mut link, 70_000)), [0, 1, 2, 3, 4].map(|number| (60_010, number)));

    // Where the queue is too short for it, the rest is lost.
    let queue = Queue { packets: 2, ..Queue::default() };
    let mut link = direction(Spec { rate: Rate::Unlimited, queue, ..slow() });
    link.set_outage(0, Some(Outage::Stalls));
    (0..5).for_each(|_| {
        link.send(0, 1500, 0);
    });
    assert_eq!(dropped(&until(&mut link, 1), Cause::QueueFull).len(), 3);
}

#[test]
fn fades_of_the_spec_come_by_themselves_and_their_end_is_known() {
    let fade =
        |what| Episodes(vec![Episode { gap_ns: Amount::Fixed(10 * MS), length_ns: Amount::Fixed(5 * MS), what }]);
    let mut link =
        direction(Spec { rate: Rate::Unlimited, fades: Some(fade(Outage::Stalls)), ..Spec::with_delay_ms(1) });
    for ms in 9..17 {
        link.send(ms * MS, 100, 0);
        if ms == 12 {
            assert_eq!(until(&mut link, ms), [(10, 0, Fate::Delivered)]);
            assert_eq!(link.next_ns(), Some(15 * MS));
        }
    }
    let out = until(&mut link, 100);
    assert_eq!(delivered(&out), [(16, 1), (16, 2), (16, 3), (16, 4), (16, 5), (16, 6), (17, 7)]);

    let mut link = direction(Spec { fades: Some(fade(Outage::Loses)), ..Spec::with_delay_ms(1) });
    for ms in 9..17 {
        link.send(ms * MS, 100, 0);
    }
    let out = until(&mut link, 100);
    assert_eq!(dropped(&out, Cause::Outage), [(10, 1), (11, 2), (12, 3), (13, 4), (14, 5)]);
}

#[test]
fn jitter_keeps_the_order_unless_overtaking_is_allowed() {
    let numbers = |overtaking| {
        let delay =
            Delay { base_ns: 50 * MS, jitter: Jitter::Uniform { within_ns: 20 * MS }, overtaking, extra_ns: None };
        let mut link = direction(Spec { delay, ..Spec::default() });
        (0..200).for_each(|ms| {
            link.send(ms * MS, 100, 0);
        });
        delivered(&until(&mut link, 1000)).into_iter().map(|(_, number)| number).collect::<Vec<_>>()
    };
    assert!(numbers(false).is_sorted());
    let free = numbers(true);
    assert!(!free.is_sorted() && free.len() == 200);
}

#[test]
fn a_packet_held_back_is_overtaken_and_nobody_waits_for_it() {
    let reorder = Reorder { share: Chance::percent(10), by_ns: 5 * MS };
    let mut link = direction(Spec { reorder, ..Spec::with_delay_ms(10) });
    (0..200).for_each(|ms| {
        link.send(ms * MS, 100, 0);
    });
    let out = delivered(&until(&mut link, 1000));
    let late: Vec<_> = out.iter().filter(|(ms, number)| *ms == number + 15).collect();
    assert!((10..30).contains(&late.len()), "{}", late.len());
    assert!(out.iter().all(|(ms, number)| *ms == number + 10 || *ms == number + 15));
}

#[test]
fn copies_come_besides_and_are_counted_apart() {
    let mut link = direction(Spec { duplicate: Chance::percent(20), ..Spec::with_delay_ms(10) });
    (0..500).for_each(|ms| {
        link.send(ms * MS, 100, 0);
    });
    let out = until(&mut link, 1000);
    let counts = link.counts();
    assert_eq!((counts.delivered, link.in_flight()), (500, 0));
    assert!((70..130).contains(&counts.copied), "{}", counts.copied);
    assert_eq!(out.iter().filter(|(_, _, fate)| *fate == Fate::Copied).count() as u64, counts.copied);
}

#[test]
fn corrupted_packets_are_dropped_by_the_checksum_or_shown_with_flipped_bits() {
    let run = |deliver| {
        let corrupt = Corrupt { share: Chance::percent(20), deliver };
        let mut link = direction(Spec { corrupt, ..Spec::default() });
        (0..500).for_each(|ms| {
            link.send(ms * MS, 100, 0);
        });
        until(&mut link, 1000)
    };
    let shown = run(true);
    let hit: Vec<u64> =
        shown.iter().filter(|(_, _, fate)| matches!(fate, Fate::Corrupted(_))).map(|(_, number, _)| *number).collect();
    let gone: Vec<u64> = dropped(&run(false), Cause::Corrupt).into_iter().map(|(_, number)| number).collect();
    assert_eq!(hit, gone, "the same packets");
    assert!((70..130).contains(&hit.len()));
    for (_, _, fate) in shown {
        if let Fate::Corrupted(roll) = fate {
            let mut bytes = [0; 100];
            flip(&mut bytes, roll);
            let flipped: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
            assert!(flipped <= 3);
        }
    }
    flip(&mut [], Roll(7));
}

#[test]
fn a_change_of_the_link_keeps_what_waits_and_does_not_reshuffle() {
    let lossy = Spec { loss: Loss::Random(Chance::percent(30)), ..slow() };
    let run = |changed: bool| {
        let mut link = direction(lossy.clone());
        let mut lost = Vec::new();
        for ms in 0..200 {
            if changed && ms == 50 {
                link.set_spec(ms * MS, Spec { rate: Rate::Constant(1_000_000), ..lossy.clone() }).unwrap();
            }
            link.send(ms * MS, 1500, 0);
        }
        lost.extend(dropped(&until(&mut link, 60_000), Cause::Loss).into_iter().map(|(_, number)| number));
        assert_eq!(link.in_flight(), 0);
        lost
    };
    assert_eq!(run(false), run(true));
    let mut link = direction(slow());
    let refused = Spec { rate: Rate::Constant(0), ..Spec::default() };
    assert_eq!(link.set_spec(0, refused), Err(SpecError::Rate(0)));
    assert_eq!(link.spec(), &slow());
}

#[test]
fn time_that_goes_back_counts_as_the_latest() {
    let mut link = direction(slow());
    link.send(10 * MS, 1500, 0);
    link.send(2 * MS, 1500, 0);
    assert_eq!(delivered(&until(&mut link, 100)), [(21, 0), (22, 1)]);
}
