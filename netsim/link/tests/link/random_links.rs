//! Random links and random traffic.

use std::sync::Arc;

use proptest::prelude::*;
use tern_netsim_link::{
    Amount, Chance, Corrupt, Delay, Discipline, Episode, Episodes, Jitter, Loss, Mtu, Outage, Queue, Rate, Reorder,
    Spec, Steps, Trace,
};

use crate::oracle::{Plan, Window};

const MS: u64 = 1_000_000;

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![Just(Chance::NEVER), (0u32..400_000).prop_map(Chance::ppm), Just(Chance::ALWAYS)]
}

fn rare() -> impl Strategy<Value = Chance> {
    prop_oneof![3 => Just(Chance::NEVER), 2 => (0u32..300_000).prop_map(Chance::ppm)]
}

fn steps(value: std::ops::Range<u64>) -> impl Strategy<Value = Steps> {
    (proptest::collection::vec((50 * MS..400 * MS, value), 1..5), any::<bool>()).prop_map(|(pieces, repeats)| {
        let mut at_ns = 0;
        let mut steps = Vec::new();
        for (length_ns, value) in pieces {
            steps.push((at_ns, value));
            at_ns += length_ns;
        }
        Steps::new(&steps, repeats.then_some(at_ns))
    })
}

fn amount(low: u64, high: u64) -> impl Strategy<Value = Amount> {
    prop_oneof![
        (low..high).prop_map(Amount::Fixed),
        (low..high, low..high).prop_map(|(a, b)| Amount::Uniform { low: a.min(b), high: a.max(b) }),
        (low..high, low..high, low..high).prop_map(|(a, b, c)| {
            let mut three = [a, b, c];
            three.sort_unstable();
            Amount::Quantiles(vec![(0, three[0]), (500_000, three[1]), (1_000_000, three[2])])
        }),
    ]
}

fn rate() -> impl Strategy<Value = Rate> {
    prop_oneof![
        2 => Just(Rate::Unlimited),
        3 => (100_000u64..20_000_000).prop_map(Rate::Constant),
        2 => steps(100_000..20_000_000).prop_map(Rate::Steps),
        1 => (50 * MS..500 * MS, amount(100_000, 5_000_000)).prop_map(|(span_ns, bps)| Rate::Drawn { span_ns, bps }),
        2 => proptest::collection::vec(0u64..30, 1..20).prop_map(|gaps| {
            let mut ms = 0;
            let mut lines: Vec<String> = gaps.iter().map(|gap| { ms += gap; ms.to_string() }).collect();
            lines.push((ms + 1).to_string());
            Rate::Trace(Arc::new(Trace::mahimahi("random", &lines.join("\n")).unwrap()))
        }),
    ]
}

fn delay() -> impl Strategy<Value = Delay> {
    let jitter = prop_oneof![
        Just(Jitter::None),
        (0..60 * MS).prop_map(|within_ns| Jitter::Uniform { within_ns }),
        (0..20 * MS).prop_map(|sigma_ns| Jitter::Normal { sigma_ns }),
        (0..20 * MS).prop_map(|mean_ns| Jitter::Exponential { mean_ns }),
    ];
    (0..300 * MS, proptest::option::of(steps(0..100 * MS)), jitter, any::<bool>())
        .prop_map(|(base_ns, extra_ns, jitter, overtaking)| Delay { base_ns, extra_ns, jitter, overtaking })
}

fn queue() -> impl Strategy<Value = Queue> {
    let discipline = prop_oneof![
        2 => Just(Discipline::DropTail),
        1 => Just(Discipline::CODEL),
        1 => (1u64..10, 11u64..60)
            .prop_map(|(target, interval)| Discipline::Codel { target_ns: target * MS, interval_ns: interval * MS }),
    ];
    (0u64..60_000, 1u32..80, discipline).prop_map(|(bytes, packets, discipline)| Queue { bytes, packets, discipline })
}

fn episodes<T: Clone + std::fmt::Debug + 'static>(
    what: impl Strategy<Value = T>,
) -> impl Strategy<Value = Episodes<T>> {
    let one = (amount(MS, 500 * MS), amount(0, 200 * MS), what).prop_map(|(gap_ns, length_ns, what)| Episode {
        gap_ns,
        length_ns,
        what,
    });
    proptest::collection::vec(one, 1..4).prop_map(Episodes)
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![
        Just(Loss::None),
        chance().prop_map(Loss::Random),
        (rare(), chance(), rare(), chance()).prop_map(|(to_bad, to_good, good, bad)| Loss::Bursts {
            to_bad,
            to_good,
            good,
            bad
        }),
        episodes(chance()).prop_map(Loss::Slots),
    ]
}

/// Any link.
pub fn spec() -> impl Strategy<Value = Spec> {
    let outage = prop_oneof![Just(Outage::Loses), Just(Outage::Stalls)];
    let mtu = (200u32..1500, any::<bool>()).prop_map(|(bytes, notice)| Mtu { bytes, notice });
    (
        (rate(), delay(), queue(), loss()),
        (rare(), rare(), 0..100 * MS, rare(), any::<bool>()),
        proptest::option::of(mtu),
        proptest::option::of(episodes(outage)),
    )
        .prop_map(|((rate, delay, queue, loss), (duplicate, share, by_ns, corrupt, deliver), mtu, fades)| Spec {
            rate,
            delay,
            queue,
            loss,
            duplicate,
            reorder: Reorder { share, by_ns },
            corrupt: Corrupt { share: corrupt, deliver },
            mtu,
            fades,
        })
}

/// Packets in bursts and with pauses.
pub fn traffic() -> impl Strategy<Value = Vec<(u64, u32)>> {
    let gap = prop_oneof![3 => Just(0u64), 4 => 0..3 * MS, 1 => 0..300 * MS];
    // Often of one length, so that limits are met exactly.
    let bytes = prop_oneof![2 => 20u32..1500, 1 => Just(1200u32)];
    proptest::collection::vec((gap, bytes), 1..180).prop_map(|packets| {
        let mut at_ns = 0;
        packets
            .into_iter()
            .map(|(gap_ns, bytes)| {
                at_ns += gap_ns;
                (at_ns, bytes)
            })
            .collect()
    })
}

/// Outages that are set; at odd moments, so that no packet comes or leaves at the same nanosecond.
fn outages() -> impl Strategy<Value = Vec<Window<Outage>>> {
    let one = (0..200 * MS, 1..200 * MS, prop_oneof![Just(Outage::Loses), Just(Outage::Stalls)]);
    proptest::collection::vec(one, 0..4).prop_map(|all| {
        let mut end_ns = 0;
        let mut next = |(gap_ns, length_ns, what): (u64, u64, Outage)| {
            let from_ns = end_ns + gap_ns + 1;
            end_ns = from_ns + length_ns;
            Window { from_ns, until_ns: end_ns, what }
        };
        all.into_iter().map(&mut next).collect()
    })
}

/// Any link with any traffic and any outages.
pub fn plan() -> impl Strategy<Value = Plan> {
    (any::<u64>(), spec(), traffic(), outages()).prop_map(|(seed, spec, sent, set)| Plan { seed, spec, sent, set })
}
