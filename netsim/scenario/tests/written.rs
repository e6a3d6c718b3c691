//! A plan that is written out plans to itself, with links in all their forms.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use tern_netsim_link::{
    Amount, Chance, Corrupt, Delay, Discipline, Episode, Episodes, Jitter, LinkSpec, Loss, Mtu, Outage, Queue, Rate,
    Reorder, Spec, Steps, Trace, profile,
};
use tern_netsim_scenario::plan::{Effect, FaultPlan, Patch, Plan, Ways, When};
use tern_netsim_scenario::{Scenario, random};

fn again(plan: &Plan) -> Plan {
    let text = plan.to_toml();
    let scenario =
        Scenario::from_toml(text.clone(), Path::new("x")).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    let again = scenario.plan(plan.seed, &scenario.points()[0]).unwrap();
    Plan { file: plan.file.clone(), ..again }
}

/// A plan with one device that has this link.
fn with_link(link: LinkSpec) -> Plan {
    let mut plan = random::plan(1).unwrap();
    plan.devices[0].interfaces[0].link = link;
    plan
}

fn amount(least: u64) -> impl Strategy<Value = Amount> {
    let value = move || least..10_000_000_000_u64;
    prop_oneof![
        value().prop_map(Amount::Fixed),
        (value(), value()).prop_map(|(a, b)| Amount::Uniform { low: a.min(b), high: a.max(b) }),
        (value(), value(), value(), 1_u32..1_000_000).prop_map(|(a, b, c, ppm)| {
            let mut all = [a, b, c];
            all.sort_unstable();
            Amount::Quantiles(vec![(0, all[0]), (ppm, all[1]), (1_000_000, all[2])])
        }),
    ]
}

fn chance() -> impl Strategy<Value = Chance> {
    (0_u32..=1_000_000_000).prop_map(Chance::ppb)
}

fn steps(least: u64) -> impl Strategy<Value = Steps> {
    (least..1 << 40, least..1 << 40, 1_u64..1 << 40, proptest::option::of(1_u64..1 << 40)).prop_map(
        |(first, second, at_ns, more)| Steps::new(&[(0, first), (at_ns, second)], more.map(|more| at_ns + more)),
    )
}

fn episodes<T: Clone + std::fmt::Debug>(what: impl Strategy<Value = T>) -> impl Strategy<Value = Episodes<T>> {
    let one =
        (amount(1_000_000), amount(0), what).prop_map(|(gap_ns, length_ns, what)| Episode { gap_ns, length_ns, what });
    proptest::collection::vec(one, 1..4).prop_map(Episodes)
}

fn rate() -> impl Strategy<Value = Rate> {
    prop_oneof![
        Just(Rate::Unlimited),
        (100_u64..1 << 40).prop_map(Rate::Constant),
        steps(100).prop_map(Rate::Steps),
        (1_000_000_u64..1 << 40, amount(100)).prop_map(|(span_ns, bps)| Rate::Drawn { span_ns, bps }),
        proptest::collection::vec(0_u64..50, 1..20).prop_map(|mut lines| {
            lines.sort_unstable();
            lines.push(51);
            let text: Vec<String> = lines.iter().map(ToString::to_string).collect();
            Rate::Trace(Arc::new(Trace::mahimahi("t", &text.join("\n")).unwrap()))
        }),
    ]
}

fn jitter() -> impl Strategy<Value = Jitter> {
    let ns = || 1_u64..1 << 40;
    prop_oneof![
        Just(Jitter::None),
        ns().prop_map(|within_ns| Jitter::Uniform { within_ns }),
        ns().prop_map(|sigma_ns| Jitter::Normal { sigma_ns }),
        ns().prop_map(|mean_ns| Jitter::Exponential { mean_ns }),
    ]
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![
        Just(Loss::None),
        chance().prop_map(Loss::Random),
        (chance(), chance(), chance(), chance()).prop_map(|(to_bad, to_good, good, bad)| Loss::Bursts {
            to_bad,
            to_good,
            good,
            bad
        }),
        episodes(chance()).prop_map(Loss::Slots),
    ]
}

fn queue() -> impl Strategy<Value = Queue> {
    let discipline = prop_oneof![
        Just(Discipline::DropTail),
        (1_u64..1 << 30, 1_u64..1 << 30)
            .prop_map(|(target_ns, more)| Discipline::Codel { target_ns, interval_ns: target_ns + more }),
    ];
    (0..u64::MAX >> 1, 1..u32::MAX, discipline).prop_map(|(bytes, packets, discipline)| Queue {
        bytes,
        packets,
        discipline,
    })
}

fn mtu() -> impl Strategy<Value = Mtu> {
    (68_u32..=65_535, any::<bool>()).prop_map(|(bytes, notice)| Mtu { bytes, notice })
}

fn spec() -> impl Strategy<Value = Spec> {
    let delay = (0_u64..1 << 40, proptest::option::of(steps(0)), jitter(), any::<bool>())
        .prop_map(|(base_ns, extra_ns, jitter, overtaking)| Delay { base_ns, extra_ns, jitter, overtaking });
    let reorder = (chance(), 0_u64..1 << 40).prop_map(|(share, by_ns)| Reorder { share, by_ns });
    let corrupt = (chance(), any::<bool>()).prop_map(|(share, deliver)| Corrupt { share, deliver });
    let fades = proptest::option::of(episodes(prop_oneof![Just(Outage::Loses), Just(Outage::Stalls)]));
    let first = (rate(), delay, queue(), loss());
    (first, chance(), reorder, corrupt, proptest::option::of(mtu()), fades).prop_map(
        |((rate, delay, queue, loss), duplicate, reorder, corrupt, mtu, fades)| Spec {
            rate,
            delay,
            queue,
            loss,
            duplicate,
            reorder,
            corrupt,
            mtu,
            fades,
        },
    )
}

#[test]
fn profiles_are_written_by_their_names() {
    for name in profile::names() {
        let plan = with_link(profile(name).unwrap().link);
        assert!(plan.to_toml().contains(&format!("profile = \"{name}\"")), "{name}");
        assert_eq!(again(&plan), plan);
    }
}

#[test]
fn recordings_are_written_out() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("down.trace"), "1\n5\n5\n9\n").unwrap();
    std::fs::write(dir.path().join("up.trace"), "7\n").unwrap();
    let text = "[scenario]\nname = \"traced\"\nabout = \"Recorded.\"\nduration = \"9s\"\n[[region]]\nname = \"eu\"\n\
                aws = \"euc1\"\n[[device]]\nid = \"a\"\nuser = \"a\"\nplace = \"eu\"\n\
                iface.cell = { trace = { up = \"up.trace\", down = \"down.trace\" }, delay = \"20ms\" }\n";
    let scenario = Scenario::from_toml(text, &dir.path().join("traced.toml")).unwrap();
    let plan = scenario.plan(0, &scenario.points()[0]).unwrap();
    let cell = &plan.devices[0].interfaces[0];
    let Rate::Trace(trace) = &cell.link.down.rate else { panic!() };
    assert_eq!((trace.lines_ms(), cell.link.up.delay.base_ns), (vec![1, 5, 5, 9], 20_000_000));
    drop(dir);
    assert_eq!(again(&plan), plan);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_link_is_read_as_it_was_written(up in spec(), down in spec(), same in any::<bool>()) {
        let link = if same { LinkSpec::symmetric(up) } else { LinkSpec { up, down } };
        let mut plan = with_link(link.clone());
        prop_assert_eq!(again(&plan), plan.clone());
        plan.paths[0].latency_ns = link.up.delay.base_ns;
        plan.paths[0].link = Some(link.clone());
        let patch = Patch {
            link: Some(Box::new(link.clone())),
            rate: Some(link.up.rate.clone()),
            delay_ns: Some(7),
            jitter: Some(link.up.delay.jitter),
            loss: Some(link.up.loss.clone()),
            duplicate: Some(link.up.duplicate),
            reorder: Some(link.up.reorder),
            corrupt: Some(link.up.corrupt),
            mtu: link.up.mtu,
            queue: Some(link.up.queue),
        };
        let (a, b) = (plan.paths[0].b.clone(), plan.paths[0].a.clone());
        plan.faults.push(FaultPlan {
            id: "changed".to_owned(),
            kind: "degrade".to_owned(),
            target: format!("{a}->{b}"),
            when: When::At(1),
            lasts_ns: None,
            effect: Effect::PathChange { a, b, ways: Ways { up: true, down: false }, change: patch },
        });
        prop_assert_eq!(again(&plan), plan);
    }

    #[test]
    fn any_random_scenario_is_read_as_it_was_written(seed in any::<u64>()) {
        let plan = random::plan(seed).unwrap();
        prop_assert_eq!(again(&plan), Plan { file: PathBuf::from("explore.toml"), ..plan });
    }
}
