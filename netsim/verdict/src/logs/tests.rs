//! Each kind of fault is put into a history without fault, and must be found: what finds nothing passes everything.

use proptest::prelude::*;

use super::*;

const LOG: &str = "ada+ben";

fn spot(seq: u64) -> Spot {
    Spot { hlc: 1000 + seq * 10, origin: "eu".into(), seq }
}

fn sending(client: &str, message: &str, invoked_ns: u64, outcome: Outcome) -> Sending {
    Sending { client: client.into(), log: LOG.into(), message: message.into(), invoked_ns, outcome }
}

fn acked(client: &str, message: &str, invoked_ns: u64, returned_ns: u64, seq: u64) -> Sending {
    sending(client, message, invoked_ns, Outcome::Acked { returned_ns, spot: spot(seq) })
}

fn reading(client: &str, invoked_ns: u64, is_whole: bool, messages: &[&str]) -> Reading {
    let entries = (1..).zip(messages).map(|(seq, message)| (spot(seq), Some((*message).to_owned()))).collect();
    Reading { client: client.into(), log: LOG.into(), invoked_ns, returned_ns: invoked_ns + 5, is_whole, entries }
}

/// Two clients write at the same time, one of them is read meanwhile, everything in the end.
fn sound() -> LogHistory {
    LogHistory {
        sendings: vec![
            acked("ada", "a1", 10, 20, 1),
            acked("ben", "b1", 12, 22, 2),
            acked("ada", "a2", 30, 60, 4),
            acked("ben", "b2", 30, 50, 3),
            sending("ben", "b3", 70, Outcome::Unknown),
            acked("ada", "a3", 90, 99, 6),
        ],
        readings: vec![
            reading("ben", 40, false, &["a1", "b1"]),
            reading("ada", 62, false, &["a1", "b1", "b2", "a2"]),
            reading("end", 200, true, &["a1", "b1", "b2", "a2", "b3", "a3"]),
        ],
    }
}

fn faults(history: &LogHistory) -> Vec<LogFault> {
    let mut all: Vec<LogFault> =
        judge_logs(history, Regions::One).findings.iter().map(|finding| finding.fault).collect();
    all.dedup();
    all
}

#[test]
fn a_sound_history_passes_and_one_of_which_nothing_is_known_does_not() {
    let judgement = judge_logs(&sound(), Regions::One);
    assert!(judgement.passes(), "{judgement:?}");
    assert_eq!((judgement.sent, judgement.acked, judgement.unread), (6, 5, 0));
    assert!(judge_logs(&sound(), Regions::Several).passes());
    assert!(!judge_logs(&LogHistory::default(), Regions::One).passes());
    let mut unread = sound();
    unread.readings.pop();
    let judgement = judge_logs(&unread, Regions::One);
    assert!(judgement.findings.is_empty() && judgement.unread == 5 && !judgement.passes());
}

#[test]
fn an_acked_entry_that_is_missing_is_lost_and_one_of_which_nothing_is_known_is_not() {
    let mut history = sound();
    history.readings[2] = reading("end", 200, true, &["a1", "b1", "b2", "a2"]);
    let judgement = judge_logs(&history, Regions::One);
    assert_eq!(judgement.count(&[LogFault::Lost]), 1);
    assert_eq!(judgement.findings[0].to_string(), "lost: a3 in ada+ben (read by end)");
    assert!(!judgement.passes());
    // It was acked while the reader was reading: he need not see it.
    history.readings[2].invoked_ns = 98;
    assert_eq!(faults(&history), []);
}

#[test]
fn a_count_that_two_messages_have_is_found_whoever_tells() {
    let mut two_acks = sound();
    two_acks.sendings[4] = acked("ben", "b3", 70, 80, 6);
    assert!(faults(&two_acks).contains(&LogFault::Taken));
    // An owner that had been replaced acked what is nowhere: its count is another's.
    let mut replaced = sound();
    replaced.sendings.push(acked("cleo", "c1", 55, 65, 4));
    let found = faults(&replaced);
    assert!(found.contains(&LogFault::Taken) && found.contains(&LogFault::Lost), "{found:?}");
    let mut two_reads = sound();
    two_reads.readings[1].entries[3].1 = Some("b3".into());
    assert!(faults(&two_reads).contains(&LogFault::Taken));
}

#[test]
fn a_prefix_that_changes_between_readings_is_found() {
    // What was between two counts came only later.
    let mut filled = sound();
    filled.readings[1] = reading("log", 62, true, &["a1", "b1", "b2", "a2"]);
    filled.readings[1].entries.remove(2);
    let found = faults(&filled);
    assert!(found.contains(&LogFault::Hole) && found.contains(&LogFault::Changed), "{found:?}");
    // What one device saw is not there in the end.
    let mut gone = sound();
    gone.readings[2].entries.retain(|(_, message)| message.as_deref() != Some("a2"));
    assert!(faults(&gone).contains(&LogFault::Shrunk));
    // A device that knows less than another is slow; one that knows less than it did is not.
    let mut slow = sound();
    slow.readings.push(reading("ben", 100, false, &["a1", "b1"]));
    assert_eq!(faults(&slow), []);
    slow.readings.push(reading("ben", 110, false, &["a1"]));
    assert_eq!(faults(&slow), [LogFault::Shrunk]);
    // Of a device that has newer entries while older ones are on their way, only what has no hole counts.
    let mut ahead = sound();
    ahead.readings[0].entries = vec![(spot(1), Some("a1".into())), (spot(4), Some("a2".into()))];
    assert_eq!(faults(&ahead), []);
}

#[test]
fn an_entry_that_is_acked_after_it_was_read_to_be_absent_is_found() {
    let mut history = sound();
    history.sendings.push(acked("cleo", "c1", 15, 80, 5));
    history.readings[1] = reading("log", 62, true, &["a1", "b1", "b2", "a2", "", "a4"]);
    history.readings[1].entries.remove(4);
    assert!(faults(&history).contains(&LogFault::Late));
    // A reading that ends below it says nothing of it.
    history.readings[1].entries.truncate(4);
    assert!(!faults(&history).contains(&LogFault::Late));
}

#[test]
fn an_ack_out_of_real_time_order_is_found() {
    let mut history = sound();
    // b2 was sent after a1 and b1 were acked, and stands before both.
    history.sendings[3] = acked("ben", "b2", 30, 50, 1);
    history.sendings[0] = acked("ada", "a1", 10, 20, 2);
    history.sendings[1] = acked("ben", "b1", 12, 22, 3);
    history.readings = vec![reading("end", 200, true, &["b2", "a1", "b1", "a2", "b3", "a3"])];
    let found = faults(&history);
    assert!(found.contains(&LogFault::OutOfTime) && found.contains(&LogFault::OutOfTurn), "{found:?}");
    // Had they been under way at the same time, any order of the two users would do.
    history.sendings[3].invoked_ns = 19;
    history.sendings[1].invoked_ns = 20;
    assert!(!faults(&history).contains(&LogFault::OutOfTime));
}

#[test]
fn a_clients_own_order_holds_even_where_all_its_messages_are_under_way_at_once() {
    let mut history = sound();
    history.sendings = vec![acked("ada", "a1", 10, 90, 2), acked("ada", "a2", 11, 91, 1)];
    history.readings = vec![reading("end", 200, true, &["a2", "a1"])];
    assert_eq!(faults(&history), [LogFault::OutOfTurn]);
}

#[test]
fn what_is_shown_twice_elsewhere_in_another_order_or_from_nowhere_is_found() {
    let with = |entries: &[&str]| {
        let mut history = sound();
        history.readings[2] = reading("end", 200, true, entries);
        faults(&history)
    };
    let twice = with(&["a1", "b1", "b2", "a2", "b3", "a3", "a2"]);
    assert!(twice.contains(&LogFault::Doubled) && twice.contains(&LogFault::Moved), "{twice:?}");
    assert_eq!(with(&["a1", "b1", "b2", "a2", "b3", "a3", "x9"]), [LogFault::Phantom]);
    let mut turned = sound();
    turned.readings[2].entries.swap(0, 1);
    assert_eq!(faults(&turned), [LogFault::Disordered]);
    let mut clock = sound();
    let mut place = |reading: usize| clock.readings[reading].entries[1].0.hlc = 1;
    place(0);
    place(1);
    place(2);
    assert!(faults(&clock).contains(&LogFault::Disordered));
    let mut refused = sound();
    refused.sendings[4].outcome = Outcome::Refused;
    assert_eq!(faults(&refused), [LogFault::Phantom]);
    let mut early = sound();
    early.sendings[4].invoked_ns = 300;
    assert_eq!(faults(&early), [LogFault::Phantom]);
}

#[test]
fn over_several_regions_copies_may_move_and_leave_holes_and_nothing_is_lost_or_doubled_all_the_same() {
    let mut history = sound();
    let elsewhere = |seq: u64| Spot { origin: "us".into(), ..spot(seq) };
    history.readings[2].entries[2].0 = elsewhere(3);
    assert!(faults(&history).contains(&LogFault::Moved));
    assert!(judge_logs(&history, Regions::Several).passes());
    history.readings[2].entries.push((elsewhere(9), Some("b2".into())));
    let judgement = judge_logs(&history, Regions::Several);
    assert_eq!(judgement.count(&[LogFault::Doubled]), 1);
    history.readings[2].entries.clear();
    assert_eq!(judge_logs(&history, Regions::Several).count(&[LogFault::Lost]), 5);
}

#[test]
fn conversations_are_judged_apart() {
    let mut history = sound();
    let mut other = sound();
    other.sendings.iter_mut().for_each(|sending| sending.log = "ada+cleo".into());
    other.readings.iter_mut().for_each(|reading| reading.log = "ada+cleo".into());
    history.sendings.extend(other.sendings);
    history.readings.extend(other.readings);
    assert!(judge_logs(&history, Regions::One).passes());
}

/// What a log in memory does when clients call it: each operation takes effect at a moment between its two times.
fn of_a_log(calls: &[(u8, u8, u8)]) -> LogHistory {
    let mut history = LogHistory::default();
    let mut order: Vec<String> = Vec::new();
    // A client asks again only when it has been answered.
    let mut free = [0_u64; 4];
    for (i, (client, before, after)) in calls.iter().enumerate() {
        let client = usize::from(*client % 4);
        let moment = (i as u64 + 1) * 1000;
        let invoked_ns = (moment - u64::from(*before)).max(free[client]);
        let returned_ns = moment + u64::from(*after);
        free[client] = returned_ns + 1;
        let (name, message) = (format!("client-{client}"), format!("m{i}"));
        if i % 3 == 2 {
            let entries = (1..).zip(&order).map(|(seq, message)| (spot(seq), Some(message.clone()))).collect();
            let is_whole = before % 2 == 0;
            history.readings.push(Reading {
                client: name,
                log: LOG.into(),
                invoked_ns,
                returned_ns,
                is_whole,
                entries,
            });
        } else {
            order.push(message.clone());
            history.sendings.push(acked(&name, &message, invoked_ns, returned_ns, order.len() as u64));
        }
    }
    let end = (calls.len() as u64 + 10) * 1000;
    let shown: Vec<&str> = order.iter().map(String::as_str).collect();
    history.readings.push(reading("end", end, true, &shown));
    history
}

proptest! {
    #[test]
    fn whatever_a_log_does_passes_and_any_two_entries_exchanged_do_not(
        calls in prop::collection::vec((0_u8..4, 0_u8..250, 0_u8..250), 4..40),
        which in any::<prop::sample::Index>(),
    ) {
        let mut history = of_a_log(&calls);
        let judgement = judge_logs(&history, Regions::One);
        prop_assert!(judgement.passes(), "{:?}", judgement.findings);
        let last = history.readings.last_mut().unwrap();
        let at = which.index(last.entries.len() - 1);
        let other = last.entries[at + 1].1.clone();
        last.entries[at + 1].1 = std::mem::replace(&mut last.entries[at].1, other);
        prop_assert!(!judge_logs(&history, Regions::One).passes());
    }
}
