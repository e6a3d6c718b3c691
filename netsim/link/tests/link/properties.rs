//! What holds for every link.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tern_netsim_link::{Chance, Delay, Direction, Fate, Loss, Outage, Output, Queue, Rate, Reorder, Spec};

use crate::ledger::{Log, audit};
use crate::oracle::{Expected, HORIZON_NS, LINK, Plan, WAY};
use crate::random_links::{plan, spec, traffic};

const MS: u64 = 1_000_000;

fn direction(plan: &Plan) -> Direction<u64> {
    Direction::new(plan.seed, LINK, WAY, plan.spec.clone()).unwrap()
}

/// When which outage is set.
fn switches(plan: &Plan) -> Vec<(u64, Option<Outage>)> {
    plan.set.iter().flat_map(|window| [(window.from_ns, Some(window.what)), (window.until_ns, None)]).collect()
}

/// Runs a plan up to a moment, looking only when something is sent or set, and at the end.
pub fn run(plan: &Plan, until_ns: u64) -> Log {
    let mut link = direction(plan);
    let mut outputs = Vec::new();
    let mut switches = switches(plan).into_iter().peekable();
    for (number, &(at_ns, bytes)) in plan.sent.iter().enumerate() {
        while let Some((set_ns, outage)) = switches.next_if(|(set_ns, _)| *set_ns <= at_ns) {
            link.set_outage(set_ns, outage);
        }
        outputs.extend(std::iter::from_fn(|| link.poll(at_ns)));
        assert_eq!(link.send(at_ns, bytes, number as u64), number as u64);
    }
    for (set_ns, outage) in switches.filter(|(set_ns, _)| *set_ns <= until_ns) {
        link.set_outage(set_ns, outage);
    }
    outputs.extend(std::iter::from_fn(|| link.poll(until_ns)));
    let counts = link.counts();
    assert_eq!(counts.sent, counts.delivered + counts.dropped_in_all() + link.in_flight());
    let hits = (counts.outage_lost, counts.outage_waited, counts.held_back);
    Log { outputs, in_flight: link.in_flight(), hits }
}

fn told(outputs: &[Output<u64>]) -> Vec<Expected> {
    let mut all: Vec<Expected> = outputs
        .iter()
        .map(|out| Expected {
            at_ns: out.at_ns,
            number: out.number,
            left_ns: out.left_ns,
            what: format!("{:?}", out.fate),
        })
        .collect();
    all.sort();
    all
}

/// Runs a plan event by event, as the world does.
fn drive(plan: &Plan, also_look_at: &[u64]) -> Vec<Output<u64>> {
    let mut link = direction(plan);
    let mut outputs = Vec::new();
    let mut sends = plan.sent.iter().copied().zip(0u64..).peekable();
    let mut looks = also_look_at.iter().copied().peekable();
    let mut switches = switches(plan).into_iter().peekable();
    loop {
        let send = sends.peek().map(|((at_ns, _), _)| *at_ns);
        let look = looks.peek().copied();
        let switch = switches.peek().map(|(at_ns, _)| *at_ns);
        let Some(now_ns) = [send, look, switch, link.next_ns()].into_iter().flatten().min() else { break };
        looks.next_if_eq(&now_ns);
        if let Some((_, outage)) = switches.next_if(|(at_ns, _)| *at_ns == now_ns) {
            link.set_outage(now_ns, outage);
        }
        outputs.extend(std::iter::from_fn(|| link.poll(now_ns)));
        while let Some(((_, bytes), number)) = sends.next_if(|((at_ns, _), _)| *at_ns == now_ns) {
            link.send(now_ns, bytes, number);
        }
        outputs.extend(std::iter::from_fn(|| link.poll(now_ns)));
        assert!(link.next_ns().is_none_or(|next_ns| next_ns > now_ns), "it would turn on the spot");
    }
    assert_eq!(link.in_flight(), 0, "nothing is ahead, and something is under way");
    outputs
}

/// What became of each packet, without moments.
fn fates(outputs: &[Output<u64>]) -> BTreeMap<u64, Vec<Fate>> {
    let mut fates: BTreeMap<u64, Vec<Fate>> = BTreeMap::new();
    for out in outputs {
        fates.entry(out.number).or_default().push(out.fate);
    }
    fates.values_mut().for_each(|fates| fates.sort_by_key(|fate| format!("{fate:?}")));
    fates
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn the_machine_does_what_the_second_implementation_says(plan in plan()) {
        let log = run(&plan, HORIZON_NS);
        prop_assert_eq!(told(&log.outputs), plan.predict());
        prop_assert_eq!(log.in_flight, 0);
        prop_assert_eq!(log.hits, plan.hits());
        prop_assert_eq!(audit(&plan, &log), Ok(()));
    }

    #[test]
    fn the_laws_hold_at_any_moment_in_between(plan in plan(), part in 0u64..100) {
        let last_ns = plan.sent.last().unwrap().0;
        let log = run(&plan, last_ns + part * part * MS / 10);
        prop_assert_eq!(audit(&plan, &log), Ok(()));
        prop_assert_eq!(audit(&plan, &run(&plan, last_ns)), Ok(()));
    }

    #[test]
    fn how_often_one_looks_changes_nothing(plan in plan(), looks in proptest::collection::vec(0..2000 * MS, 0..50)) {
        let mut looks = looks;
        looks.sort_unstable();
        let seldom = run(&plan, HORIZON_NS).outputs;
        prop_assert_eq!(&drive(&plan, &[]), &seldom);
        prop_assert_eq!(&drive(&plan, &looks), &seldom);
    }

    #[test]
    fn a_fault_that_is_removed_does_not_reshuffle_the_others(
        seed in any::<u64>(), spec in spec(), sent in traffic(), which in 0usize..5,
    ) {
        // Without rate and order, packets have nothing to do with each other: then only the removed fault may
        // be missing.
        let apart = Spec {
            rate: Rate::Unlimited,
            queue: Queue { bytes: u64::MAX, packets: u32::MAX, ..Queue::default() },
            delay: Delay { overtaking: true, ..spec.delay.clone() },
            fades: spec.fades.clone().map(|mut fades| {
                fades.0.iter_mut().for_each(|fade| fade.what = Outage::Loses);
                fades
            }),
            ..spec
        };
        let mut without = apart.clone();
        match which {
            0 => without.loss = Loss::None,
            1 => without.duplicate = Chance::NEVER,
            2 => without.corrupt.share = Chance::NEVER,
            3 => without.fades = None,
            _ => without.reorder = Reorder::default(),
        }
        let name = ["Loss", "Copied", "Corrupt", "Outage", "nothing"][which];
        let before = run(&Plan { seed, spec: apart, sent: sent.clone(), set: vec![] }, HORIZON_NS).outputs;
        let after = run(&Plan { seed, spec: without, sent, set: vec![] }, HORIZON_NS).outputs;
        let (before_fates, after_fates) = (fates(&before), fates(&after));
        for (number, fates) in &before_fates {
            let hit = fates.iter().any(|fate| format!("{fate:?}").contains(name));
            if !hit {
                prop_assert_eq!(fates, &after_fates[number], "packet {}", number);
            }
        }
        // The same moments, too, except for those no longer held back.
        let moment = |out: &Output<u64>| (out.number, out.at_ns, format!("{:?}", out.fate));
        if which < 4 {
            let after: std::collections::BTreeSet<_> = after.iter().map(moment).collect();
            for out in before.iter().filter(|out| !format!("{:?}", out.fate).contains(name)) {
                prop_assert!(after.contains(&moment(out)), "{:?} is gone or moved", out);
            }
        }
    }

    #[test]
    fn an_outage_of_one_direction_leaves_the_other_alone(plan in plan(), from in 0u64..500, length in 1u64..500) {
        let plan = Plan { set: vec![], ..plan };
        // Two directions share nothing: their streams differ by their keys, and an outage is of one.
        let mut link = direction(&plan);
        let mut outage_sent = Vec::new();
        let mut state = None;
        for (number, &(at_ns, bytes)) in plan.sent.iter().enumerate() {
            let within = (from * MS..(from + length) * MS).contains(&at_ns).then_some(Outage::Loses);
            if within != state {
                link.set_outage(at_ns, within);
                state = within;
            }
            link.send(at_ns, bytes, number as u64);
            outage_sent.extend(std::iter::from_fn(|| link.poll(at_ns)));
        }
        link.set_outage(plan.sent.last().unwrap().0, None);
        outage_sent.extend(std::iter::from_fn(|| link.poll(HORIZON_NS)));
        // Whom the outage did not hit, and who left, left as without it.
        let calm = run(&plan, HORIZON_NS).outputs;
        let left = |outputs: &[Output<u64>]| -> Vec<_> {
            let mut all: Vec<_> = outputs.iter().map(|out| (out.number, out.left_ns)).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        prop_assert_eq!(left(&outage_sent), left(&calm));
    }
}
