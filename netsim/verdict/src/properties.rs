//! What is right passes, and what is wrong is found: random histories of a perfect system, whole and with one thing
//! broken.

#![expect(clippy::ptr_arg, reason = "all breakers are of one type, and some add and remove lines")]

use proptest::prelude::*;

use crate::history::{Event, FaultPhase, Line};
use crate::judge::judge;
use crate::model::{Model, Random};
use crate::verdict::Verdict;

fn models() -> impl Strategy<Value = Model> {
    let sizes = (1usize..=3, 2usize..6, 1usize..=2, 20u64..60, 20u64..200);
    (any::<u64>(), sizes, 0usize..6, any::<bool>()).prop_map(|(seed, sizes, faults, removal)| {
        let (regions, users, devices, messages, seconds) = sizes;
        Model {
            seed,
            regions,
            users,
            devices,
            messages,
            duration_ns: seconds * 1_000_000_000,
            faults,
            removal,
            link_samples: false,
        }
    })
}

/// Breaks one thing. The name of a check that must find it, or nothing if the history has no place for it.
type Breaker = fn(&mut Vec<Line>, &mut Random) -> Option<&'static [&'static str]>;

/// Some line for which something holds.
fn some(lines: &[Line], random: &mut Random, what: impl Fn(&Event) -> bool) -> Option<usize> {
    let all: Vec<usize> = (0..lines.len()).filter(|i| what(&lines[*i].event)).collect();
    (!all.is_empty()).then(|| all[random.index(all.len())])
}

/// Some timeline with so many messages.
fn timeline<'l>(lines: &'l mut [Line], random: &mut Random, least: usize) -> Option<&'l mut Vec<String>> {
    let at = some(lines, random, |e| matches!(e, Event::Timeline { messages, .. } if messages.len() >= least))?;
    match &mut lines[at].event {
        Event::Timeline { messages, .. } => Some(messages),
        _ => None,
    }
}

fn a_message_is_dropped(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let all = timeline(lines, random, 1)?;
    all.remove(random.index(all.len()));
    Some(&["durability"])
}

fn two_messages_change_places(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    // With one timeline there is nothing to disagree with.
    let mut devices = std::collections::BTreeMap::new();
    for line in lines.iter() {
        if let Event::Timeline { conversation, .. } = &line.event {
            *devices.entry(conversation.clone()).or_insert(0) += 1;
        }
    }
    let at = some(
        lines,
        random,
        |e| matches!(e, Event::Timeline { conversation, messages, .. } if messages.len() >= 2 && devices[conversation] >= 2),
    )?;
    let Event::Timeline { messages: all, .. } = &mut lines[at].event else { return None };
    let at = random.index(all.len() - 1);
    all.swap(at, at + 1);
    Some(&["agreement", "order"])
}

fn a_message_stands_twice(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let all = timeline(lines, random, 1)?;
    let again = all[random.index(all.len())].clone();
    all.insert(random.index(all.len()), again);
    Some(&["duplicates"])
}

fn a_message_appears_twice(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let at = some(lines, random, |e| matches!(e, Event::Shown { .. }))?;
    let later = at + random.index(lines.len() - at - 1) + 1;
    let again = Line { at_ns: lines[later - 1].at_ns.max(lines[at].at_ns), event: lines[at].event.clone() };
    lines.insert(later, again);
    Some(&["duplicates"])
}

fn a_phantom_appears(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let at = some(lines, random, |e| matches!(e, Event::Shown { .. }))?;
    if let Event::Shown { message, .. } = &mut lines[at].event {
        message.push_str("77777");
    }
    Some(&["phantoms"])
}

fn a_phantom_stands_in_a_timeline(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let all = timeline(lines, random, 0)?;
    all.insert(random.index(all.len() + 1), "buy cheap watches".into());
    Some(&["phantoms"])
}

fn a_message_appears_in_another_conversation(
    lines: &mut Vec<Line>,
    random: &mut Random,
) -> Option<&'static [&'static str]> {
    let at = some(lines, random, |e| matches!(e, Event::Shown { conversation, .. } if conversation != "team"))?;
    if let Event::Shown { conversation, .. } = &mut lines[at].event {
        *conversation = "team".into();
    }
    Some(&["phantoms"])
}

fn a_removed_user_sees_what_comes_later(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let gone = lines.iter().find_map(|l| match &l.event {
        Event::Removed { user, .. } => Some((l.at_ns, user.clone())),
        _ => None,
    })?;
    let run = crate::facts::Facts::of(lines, &mut crate::findings::Findings::default())?.run.clone();
    let his = run.cast.devices.iter().find(|(_, user)| **user == gone.1)?.0.clone();
    let late = lines.iter().position(|l| {
        l.at_ns > gone.0 && matches!(&l.event, Event::Invoke { conversation, .. } if conversation == "team")
    })?;
    let Event::Invoke { conversation, message, .. } = lines[late].event.clone() else { return None };
    let seen = Event::Shown { device: his, conversation, message, new: true };
    let at = late + 1 + random.index(lines.len() - late - 1);
    lines.insert(at, Line { at_ns: lines[at - 1].at_ns, event: seen });
    Some(&["phantoms"])
}

fn an_ack_is_dropped(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let at = some(lines, random, |e| matches!(e, Event::Acked { .. }))?;
    lines.remove(at);
    Some(&["acks"])
}

fn two_of_one_sender_appear_in_the_wrong_order(
    lines: &mut Vec<Line>,
    random: &mut Random,
) -> Option<&'static [&'static str]> {
    // By (device, conversation, region of the first commit, sender): two such that follow each other, while the device
    // kept its connection from the sending of the first on.
    let (mut told, mut invoked) = (std::collections::BTreeMap::new(), std::collections::BTreeMap::new());
    let mut region = std::collections::BTreeMap::new();
    let mut last = std::collections::BTreeMap::new();
    let mut pairs = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        match &line.event {
            Event::Commit { region: r, message, .. } => {
                region.entry(message.clone()).or_insert(r.clone());
            }
            Event::Shown { device, conversation, message, .. } => {
                let sender = message.split('/').next().unwrap_or_default().to_owned();
                let key = (device.clone(), conversation.clone(), region.get(message).cloned(), sender);
                let before = last.insert(key, (at, invoked.get(message).copied()));
                // Both had been sent when the first appeared, and they did not appear at the same moment.
                let apart = |before: usize| {
                    lines[before].at_ns < line.at_ns && invoked.get(message).is_some_and(|sent| *sent < before)
                };
                let steady =
                    |sent: Option<usize>| sent.is_some_and(|sent| told.get(device).is_none_or(|at| *at < sent));
                pairs.extend(
                    before.filter(|(before, sent)| steady(*sent) && apart(*before)).map(|(before, _)| (before, at)),
                );
            }
            Event::Connection { device, .. } => {
                told.insert(device.clone(), at);
            }
            Event::Invoke { message, .. } => {
                invoked.insert(message.clone(), at);
            }
            _ => {}
        }
    }
    if pairs.is_empty() {
        return None;
    }
    let (a, b) = pairs[random.index(pairs.len())];
    let (first, second) = (lines[a].event.clone(), lines[b].event.clone());
    (lines[a].event, lines[b].event) = (second, first);
    Some(&["order"])
}

fn a_region_has_another_log(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let regions = lines.iter().filter(|l| matches!(l.event, Event::Log { .. })).count();
    let conversations =
        lines.iter().filter(|l| matches!(&l.event, Event::Log { region, .. } if region == "eu")).count();
    let at = some(lines, random, |e| matches!(e, Event::Log { .. })).filter(|_| regions > conversations)?;
    if let Event::Log { digest, .. } = &mut lines[at].event {
        digest.push('0');
    }
    Some(&["convergence"])
}

fn a_region_lacks_a_row(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    some(lines, random, |e| matches!(e, Event::Row { region, .. } if region != "eu"))?;
    let at = some(lines, random, |e| matches!(e, Event::Row { .. }))?;
    lines.remove(at);
    Some(&["convergence"])
}

fn a_device_counts_wrong(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    // Only a second device of the same user can tell.
    some(lines, random, |e| matches!(e, Event::Timeline { device, .. } if device.ends_with("laptop")))?;
    let at = some(lines, random, |e| matches!(e, Event::Timeline { .. }))?;
    if let Event::Timeline { unread: Some((count, _)), .. } = &mut lines[at].event {
        *count += 1;
    }
    Some(&["convergence"])
}

fn the_run_does_not_calm_down(lines: &mut Vec<Line>, _: &mut Random) -> Option<&'static [&'static str]> {
    if let Event::End { quiet, .. } = &mut lines.last_mut()?.event {
        *quiet = false;
    }
    Some(&["convergence"])
}

fn a_fault_hits_nothing(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let at = some(lines, random, |e| matches!(e, Event::Fault { phase: FaultPhase::End, .. }))?;
    if let Event::Fault { hits, .. } = &mut lines[at].event {
        *hits = 0;
    }
    Some(&["coverage"])
}

fn a_fault_never_comes(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let at = some(lines, random, |e| matches!(e, Event::Fault { .. }))?;
    let Event::Fault { fault: gone, .. } = lines[at].event.clone() else { return None };
    lines.retain(|l| !matches!(&l.event, Event::Fault { fault, .. } if *fault == gone));
    Some(&["coverage"])
}

fn the_end_is_cut_off(lines: &mut Vec<Line>, _: &mut Random) -> Option<&'static [&'static str]> {
    lines.pop();
    Some(&["history"])
}

fn a_stranger_takes_part(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let at = some(lines, random, |e| matches!(e, Event::Connection { .. }))?;
    if let Event::Connection { device, .. } = &mut lines[at].event {
        device.push_str("-of-somebody");
    }
    Some(&["history"])
}

fn time_goes_back(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let all: Vec<usize> = (2..lines.len()).filter(|i| lines[i - 1].at_ns > 0).collect();
    let at = *all.get(random.index(all.len().max(1)))?;
    lines[at].at_ns = lines[at - 1].at_ns - 1;
    Some(&["history"])
}

fn a_message_is_given_up(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let at = some(lines, random, |e| matches!(e, Event::Invoke { .. }))?;
    let Event::Invoke { device, message, .. } = lines[at].event.clone() else { return None };
    let failed = Event::Failed { device, message, reason: "denied".into(), maybe: false };
    lines.insert(at + 1, Line { at_ns: lines[at].at_ns, event: failed });
    Some(&["failures"])
}

fn a_refused_message_is_seen(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let at = some(lines, random, |e| matches!(e, Event::Shown { .. }))?;
    let Event::Shown { message: seen, .. } = lines[at].event.clone() else { return None };
    let sent = lines.iter().position(|l| matches!(&l.event, Event::Invoke { message, .. } if *message == seen))?;
    let Event::Invoke { device, message, .. } = lines[sent].event.clone() else { return None };
    lines[sent].event = Event::Refused { device, message, reason: "disk full".into() };
    Some(&["phantoms"])
}

fn something_breaks(lines: &mut Vec<Line>, random: &mut Random) -> Option<&'static [&'static str]> {
    let at = 1 + random.index(lines.len() - 1);
    let broken = Event::Broken { who: "eu".into(), text: "panicked".into() };
    lines.insert(at, Line { at_ns: lines[at - 1].at_ns, event: broken });
    Some(&["broken"])
}

const BREAKERS: &[(&str, Breaker)] = &[
    ("a message is dropped", a_message_is_dropped),
    ("two messages change places", two_messages_change_places),
    ("a message stands twice", a_message_stands_twice),
    ("a message appears twice", a_message_appears_twice),
    ("a phantom appears", a_phantom_appears),
    ("a phantom stands in a timeline", a_phantom_stands_in_a_timeline),
    ("a message appears in another conversation", a_message_appears_in_another_conversation),
    ("a removed user sees what comes later", a_removed_user_sees_what_comes_later),
    ("an ack is dropped", an_ack_is_dropped),
    ("two of one sender appear in the wrong order", two_of_one_sender_appear_in_the_wrong_order),
    ("a region has another log", a_region_has_another_log),
    ("a region lacks a row", a_region_lacks_a_row),
    ("a device counts wrong", a_device_counts_wrong),
    ("the run does not calm down", the_run_does_not_calm_down),
    ("a fault hits nothing", a_fault_hits_nothing),
    ("a fault never comes", a_fault_never_comes),
    ("the end is cut off", the_end_is_cut_off),
    ("a stranger takes part", a_stranger_takes_part),
    ("time goes back", time_goes_back),
    ("a message is given up", a_message_is_given_up),
    ("a refused message is seen", a_refused_message_is_seen),
    ("something breaks", something_breaks),
];

/// Each case judges as many histories as there are ways to break one.
fn fewer() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases / 4, ..usual }
}

proptest! {
    #![proptest_config(fewer())]

    #[test]
    fn a_perfect_run_passes(model in models()) {
        let judged = judge(&model.lines());
        prop_assert_eq!(judged.verdict, Verdict::Pass, "{:?}", judged.findings);
        let figures = &judged.figures;
        prop_assert_eq!((figures.invoked, figures.acked, figures.unacked), (model.messages, model.messages, 0));
        prop_assert_eq!((figures.lost, figures.duplicated, figures.out_of_order, figures.phantoms), (0, 0, 0, 0));
    }

    #[test]
    fn a_history_survives_a_file(model in models()) {
        let lines = model.lines();
        let mut text = Vec::new();
        for line in &lines {
            crate::read::write(&mut text, line).unwrap();
        }
        prop_assert_eq!(crate::read::read(text.as_slice()).unwrap(), lines);
    }

    #[test]
    fn whatever_is_broken_in_it_is_found(model in models(), seed in any::<u64>()) {
        let whole = model.lines();
        for (name, breaker) in BREAKERS {
            let mut lines = whole.clone();
            let Some(expected) = breaker(&mut lines, &mut Random(seed)) else { continue };
            let judged = judge(&lines);
            let found = judged.findings.iter().any(|f| expected.contains(&f.check.as_str()));
            prop_assert!(found && judged.verdict != Verdict::Pass, "{}: {:?}", name, judged.findings);
        }
    }
}

#[test]
fn each_way_of_breaking_is_really_tried() {
    let model = Model {
        seed: 5,
        regions: 3,
        users: 4,
        devices: 2,
        messages: 100,
        duration_ns: 60_000_000_000,
        faults: 3,
        removal: true,
        link_samples: false,
    };
    for (name, breaker) in BREAKERS {
        assert!(breaker(&mut model.lines(), &mut Random(1)).is_some(), "{name}");
    }
}
