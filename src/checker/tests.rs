//! Each kind of fault is put into a run without fault, and must be found: a checker that finds nothing passes
//! everything.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::*;

fn list(text: &str) -> Vec<Message> {
    text.split_whitespace().map(|m| (m[..1].to_owned(), m[1..].parse().unwrap())).collect()
}

fn two(sent: &str, acked: &str, at_a: &str, at_b: &str) -> Conversation {
    Conversation {
        sent: list(sent).into_iter().collect(),
        acked: list(acked).into_iter().collect(),
        stable: list(acked).into_iter().collect(),
        timelines: BTreeMap::from([("a".into(), list(at_a)), ("b".into(), list(at_b))]),
        ..Conversation::default()
    }
}

#[test]
fn a_run_without_fault_passes() {
    let totals = two("a1 a2 b1", "a1 a2 b1", "a1 b1 a2", "a1 b1 a2").totals();
    assert!(totals.pass());
    assert_eq!(totals.to_string(), "sent 3  acked 3  stable 3  shown 3  lost 0  duplicated 0  out of order 0");
}

#[test]
fn an_acked_message_that_any_device_lacks_is_lost_once() {
    let run = two("a1 a2 b1", "a1 a2", "a1 a2", "a1");
    let totals = run.totals();
    assert_eq!((totals.lost, totals.shown), (1, 1));
    assert_eq!(run.findings()[0].to_string(), "lost: a 2 at b");
    assert!(!totals.pass());
    assert_eq!(two("a1", "a1", "", "").totals().lost, 1);
    assert_eq!(two("a1", "a1", "", "a1").totals().lost, 1, "the sender's own device counts too");
}

#[test]
fn an_unacked_message_is_not_lost_but_the_run_does_not_pass() {
    let totals = two("a1 a2", "a1", "a1 a2", "a1").totals();
    assert_eq!((totals.lost, totals.is_faultless(), totals.pass()), (0, true, false));
}

#[test]
fn an_acked_message_that_is_not_stable_is_shown_but_the_run_does_not_pass() {
    let mut run = two("a1", "a1", "a1", "a1");
    run.stable.clear();
    assert!(run.totals().is_faultless() && !run.totals().pass());
}

#[test]
fn a_message_shown_twice_is_a_duplicate_on_any_device() {
    assert_eq!(two("a1 a2", "a1 a2", "a1 a2", "a1 a2 a1").totals().duplicated, 1);
    assert_eq!(two("a1 a2", "a1 a2", "a1 a1 a2", "a1 a2").totals().duplicated, 1);
}

#[test]
fn a_message_told_as_new_twice_is_a_duplicate_although_the_timeline_has_it_once() {
    let mut run = two("a1", "a1", "a1", "a1");
    run.told.insert("b".into(), list("a1 a1"));
    assert_eq!(run.totals().duplicated, 1);
}

#[test]
fn a_message_that_was_told_and_is_gone_has_vanished() {
    let mut run = two("a1 a2", "a1", "a1 a2", "a1");
    run.told.insert("b".into(), list("a1 a2"));
    assert_eq!(run.findings().iter().map(ToString::to_string).collect::<Vec<_>>(), ["vanished: a 2 at b"]);
}

#[test]
fn a_message_that_nobody_sent_is_a_phantom() {
    assert_eq!(two("a1", "a1", "a1 c1", "a1").totals().phantom, 1);
    let mut told = two("a1", "a1", "a1", "a1");
    told.told.insert("b".into(), list("a1 a7"));
    assert_eq!(told.totals().phantom, 1);
}

#[test]
fn a_refused_message_counts_apart_and_is_a_phantom_where_others_show_it() {
    let mut run = two("a1 a2", "a1", "a1 a2", "a1");
    run.refused.extend(list("a2"));
    let totals = run.totals();
    assert!(totals.pass(), "{totals}");
    assert_eq!(totals.to_string().split("  ").last(), Some("refused 1"));
    run.timelines.insert("b".into(), list("a1 a2"));
    assert_eq!(run.totals().phantom, 1);
    // It was tried again and taken.
    run.acked.extend(list("a2"));
    run.stable.extend(list("a2"));
    assert!(run.totals().pass());
    assert_eq!(run.totals().refused, 0);
}

#[test]
fn a_message_given_up_counts_apart_but_must_still_arrive() {
    let mut run = two("a1", "a1", "a1", "a1");
    run.stable.clear();
    run.at_risk.extend(list("a1"));
    assert!(run.totals().pass());
    run.timelines.insert("b".into(), Vec::new());
    assert_eq!(run.totals().lost, 1);
}

#[test]
fn a_descending_sender_and_two_orders_are_out_of_order() {
    assert_eq!(two("a1 a2", "a1 a2", "a2 a1", "a2 a1").totals().out_of_order, 2);
    assert_eq!(two("a1 b1", "a1 b1", "a1 b1", "b1 a1").totals().out_of_order, 1);
}

#[test]
fn facts_survive_being_printed_and_other_lines_are_none() {
    for what in [What::Sending, What::Acked, What::Stable, What::Refused, What::AtRisk, What::Shown] {
        let fact = Fact { what, conversation: "a+b".into(), message: ("a".into(), 17) };
        assert_eq!(fact.to_string().parse(), Ok(fact));
    }
    for line in ["", "ready", "acked", "acked c a", "acked c a x", "acked c a 1 2", "running 1 test", "acked  a 1"] {
        assert_eq!(line.parse::<Fact>(), Err(NotAFact(line.into())));
    }
}

#[test]
fn facts_are_sorted_into_their_conversations() {
    let mut history = History::default();
    for line in ["sending x a 1", "sending y a 1", "acked x a 1", "stable x a 1", "refused y a 1", "at-risk x a 1"] {
        history.note("a", line.parse().unwrap());
    }
    history.note("b", "shown x a 1".parse().unwrap());
    let x = &history.conversations["x"];
    assert_eq!([&x.sent, &x.acked, &x.stable, &x.at_risk].map(BTreeSet::len), [1; 4]);
    assert_eq!(x.told["b"], list("a1"));
    assert_eq!(history.conversations["y"].refused.len(), 1);
    assert_eq!(history.totals().sent, 2);
}

const DEVICES: [&str; 3] = ["a", "b", "c"];

/// A random run of three devices without fault.
fn faultless(rng: &mut StdRng) -> Conversation {
    let mut counts = [0; 3];
    let order: Vec<Message> = (0..rng.random_range(6..60))
        .map(|i| {
            // Everyone sends something.
            let who = if i < 3 { i } else { rng.random_range(0..3) };
            counts[who] += 1;
            (DEVICES[who].to_owned(), counts[who])
        })
        .collect();
    let all: BTreeSet<Message> = order.iter().cloned().collect();
    let mut run = Conversation { sent: all.clone(), acked: all.clone(), stable: all, ..Conversation::default() };
    for device in DEVICES {
        let mut told: Vec<Message> = order.iter().filter(|m| m.0 != device).cloned().collect();
        // Copies arrive in any order, and a device that dies forgets to tell some.
        told.shuffle(rng);
        told.truncate(rng.random_range(1..=told.len()));
        run.told.insert(device.to_owned(), told);
        run.timelines.insert(device.to_owned(), order.clone());
    }
    run
}

/// Puts one fault of a kind into a run.
fn spoil(rng: &mut StdRng, run: &mut Conversation, fault: Fault) {
    let device = DEVICES[rng.random_range(0..3)];
    let shown = run.timelines.get_mut(device).unwrap();
    let told = run.told.get_mut(device).unwrap();
    let at = rng.random_range(0..shown.len());
    match fault {
        Fault::Lost => {
            let gone = shown.remove(at);
            told.retain(|m| *m != gone);
        }
        Fault::Duplicated if rng.random_bool(0.5) => told.push(told[0].clone()),
        // Behind the first one: before it, it would stand before earlier ones too.
        Fault::Duplicated => shown.insert(rng.random_range(at + 1..=shown.len()), shown[at].clone()),
        Fault::OutOfOrder => {
            let at = at.max(1);
            shown.swap(at - 1, at);
        }
        Fault::Phantom if rng.random_bool(0.5) => {
            let message = shown[at].clone();
            [&mut run.sent, &mut run.acked, &mut run.stable].into_iter().for_each(|set| {
                set.remove(&message);
            });
        }
        Fault::Phantom => shown.push((device.to_owned(), 999)),
        Fault::Vanished => {
            // Never acked, so that it is not lost as well.
            let message = told[0].clone();
            shown.retain(|m| *m != message);
            run.acked.remove(&message);
            run.stable.remove(&message);
        }
    }
}

#[test]
fn every_kind_of_fault_is_found_wherever_it_is_and_nothing_else() {
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..300 {
        let sound = faultless(&mut rng);
        assert!(sound.totals().pass(), "round {round}: {:?}", sound.findings());
        for fault in [Fault::Lost, Fault::Duplicated, Fault::OutOfOrder, Fault::Phantom, Fault::Vanished] {
            let mut run = sound.clone();
            spoil(&mut rng, &mut run, fault);
            let findings = run.findings();
            assert!(!findings.is_empty(), "round {round}: {fault} was not found");
            assert!(findings.iter().all(|f| f.fault == fault), "round {round}: {fault} was taken for {findings:?}");
            assert!(!run.totals().pass());
        }
    }
}
