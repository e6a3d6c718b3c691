//! Runs that were recorded: whatever changes them changes every scenario that people keep as a regression. A new
//! hash is right only where the rules of the model were meant to change.

use std::collections::BTreeMap;
use std::fmt::Write;

use tern_netsim_link::{
    Amount, Cause, Chance, Corrupt, Delay, Discipline, Episode, Episodes, Fate, Jitter, Loss, Mtu, Outage, Queue, Rate,
    Reorder, Spec, Steps, profile,
};

use crate::oracle::{HORIZON_NS, Plan};
use crate::properties::run;

const MS: u64 = 1_000_000;

/// A packet every 5 ms, of lengths from 100 to 1,400 bytes, and every second a burst of 40.
fn traffic() -> Vec<(u64, u32)> {
    let single = (0..2000u64).map(|n| (n * 5 * MS, 100 + (n * 7919 % 1301) as u32));
    let bursts = (0..10u64).flat_map(|n| (0..40).map(move |_| (n * 1000 * MS + 777, 1200)));
    let mut all: Vec<(u64, u32)> = single.chain(bursts).collect();
    all.sort_unstable();
    all
}

/// One line per outcome, and their hash (FNV-1a).
fn record(spec: Spec) -> (String, u64) {
    let plan = Plan { seed: 42, spec, sent: traffic(), set: vec![] };
    let mut text = String::new();
    for out in run(&plan, HORIZON_NS).outputs {
        writeln!(text, "{} {} {:?}", out.at_ns, out.number, out.fate).unwrap();
    }
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (text, hash)
}

/// Every fault at once.
fn everything() -> Spec {
    let amount = |low, high| Amount::Uniform { low: low * MS, high: high * MS };
    Spec {
        rate: Rate::Steps(Steps::new(&[(0, 3_000_000), (700 * MS, 900_000)], Some(1000 * MS))),
        delay: Delay {
            base_ns: 30 * MS,
            extra_ns: Some(Steps::new(&[(0, 0), (4000 * MS, 25 * MS)], None)),
            jitter: Jitter::Exponential { mean_ns: 4 * MS },
            overtaking: false,
        },
        queue: Queue { bytes: 40_000, packets: 30, discipline: Discipline::CODEL },
        loss: Loss::bursts(Chance::percent(2), 4),
        duplicate: Chance::percent(1),
        reorder: Reorder { share: Chance::percent(1), by_ns: 20 * MS },
        corrupt: Corrupt { share: Chance::percent(1), deliver: false },
        mtu: Some(Mtu { bytes: 1350, notice: false }),
        fades: Some(Episodes(vec![
            Episode { gap_ns: amount(500, 1500), length_ns: amount(50, 300), what: Outage::Stalls },
            Episode { gap_ns: amount(500, 1500), length_ns: amount(20, 100), what: Outage::Loses },
        ])),
    }
}

#[test]
fn a_run_with_every_fault_is_as_it_was_recorded() {
    let (text, hash) = record(everything());
    let mut causes: BTreeMap<&str, u32> = BTreeMap::new();
    for line in text.lines() {
        *causes.entry(line.splitn(3, ' ').nth(2).unwrap()).or_default() += 1;
    }
    let causes: Vec<_> = causes.into_iter().collect();
    let expected = [
        ("Copied", 23),
        ("Delivered", 1916),
        ("Dropped(BlackHole)", 77),
        ("Dropped(Codel)", 53),
        ("Dropped(Corrupt)", 16),
        ("Dropped(Loss)", 51),
        ("Dropped(Outage)", 44),
        ("Dropped(QueueFull)", 243),
    ];
    assert_eq!(causes, expected);
    let first: Vec<&str> = text.lines().filter(|line| line.ends_with("Delivered")).take(3).collect();
    assert_eq!(first, ["34402421 0 Delivered", "39470603 1 Delivered", "39804183 2 Delivered"]);
    assert_eq!(hash, 0x6e23_50af_6fee_0ffe, "{hash:#x}");
}

#[test]
fn runs_of_profiles_are_as_they_were_recorded() {
    let recorded = ["2g-rural", "lte-driving", "cellular-median", "starlink"].map(|name| {
        let link = profile(name).unwrap().link;
        (name, record(link.up).1, record(link.down).1)
    });
    let expected = [
        ("2g-rural", 3_792_567_090_025_335_717, 7_149_410_956_574_456_601),
        ("lte-driving", 8_022_958_473_397_747_079, 17_499_443_877_450_047_233),
        ("cellular-median", 12_679_154_482_937_597_980, 12_679_154_482_937_597_980),
        ("starlink", 3_187_058_777_975_614_885, 3_187_058_777_975_614_885),
    ];
    assert_eq!(recorded, expected);
}

/// A test of a fault that never happens shows nothing.
#[test]
fn random_links_meet_every_outcome() {
    use proptest::strategy::{Strategy, ValueTree};
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..300 {
        let plan = crate::random_links::plan().new_tree(&mut runner).unwrap().current();
        for out in run(&plan, HORIZON_NS).outputs {
            let name = match out.fate {
                Fate::Delivered => "delivered",
                Fate::Copied => "copied",
                Fate::Corrupted(_) => "corrupted",
                Fate::Dropped(Cause::TooLong(_)) => "too long",
                Fate::Dropped(Cause::BlackHole) => "black hole",
                Fate::Dropped(Cause::QueueFull) => "queue full",
                Fate::Dropped(Cause::Codel) => "codel",
                Fate::Dropped(Cause::Outage) => "outage",
                Fate::Dropped(Cause::Loss) => "loss",
                Fate::Dropped(Cause::Corrupt) => "corrupt",
            };
            *seen.entry(name).or_default() += 1;
        }
    }
    assert!(seen.len() == 10 && seen.values().all(|count| *count >= 50), "{seen:?}");
}
