//! Links that were measured, by name.
//!
//! Times are one way. Where a source gives one number, it holds for both directions. What a source does not say
//! is an assumption and called one. "ATC" is Facebook's Augmented Traffic Control, "NLC" Apple's Network Link
//! Conditioner: presets of tools that many people test with, not measurements of their own.
//!
//! Where nothing is known of a queue, it holds two seconds of the link's mean rate, but twenty full packets at least: deep,
//! as in real access networks, and not so deep that nothing but the queue is measured.

use crate::dice::{Amount, Chance};
use crate::episodes::{Episode, Episodes};
use crate::spec::{Delay, Jitter, LinkSpec, Loss, Outage, Queue, Rate, Spec};
use crate::steps::Steps;

/// A link with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// What it is, and who says so.
    pub source: &'static str,
    /// What it is like: `up` is the device's uplink.
    pub link: LinkSpec,
}

/// No profile has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no profile {name}; did you mean {nearest}? There are: {}", names().join(", "))]
pub struct UnknownProfile {
    /// What was asked for.
    pub name: String,
    /// The name most like it.
    pub nearest: &'static str,
}

/// All names, in the order of the table that they come from.
pub fn names() -> Vec<&'static str> {
    PROFILES.iter().map(|(name, ..)| *name).collect()
}

/// The profile of a name.
pub fn profile(name: &str) -> Result<Profile, UnknownProfile> {
    if let Some((name, source, link)) = PROFILES.iter().find(|(known, ..)| *known == name) {
        return Ok(Profile { name, source, link: link() });
    }
    let nearest = nearest(name, names()).unwrap_or("lte-good");
    Err(UnknownProfile { name: name.to_owned(), nearest })
}

type Entry = (&'static str, &'static str, fn() -> LinkSpec);

const PROFILES: &[Entry] = &[
    ("2g-rural", "2G in the country (ATC)", rural_2g),
    ("edge", "EDGE (ATC, NLC)", edge),
    ("edge-lossy", "EDGE, lossy (ATC)", edge_lossy),
    ("3g", "3G, average (ATC, NLC)", average_3g),
    ("3g-lossy", "3G, average, lossy (ATC)", lossy_3g),
    ("umts-driving", "UMTS in a car (derived from mahimahi's traces)", umts_driving),
    ("3g-commute", "3G in metro, tram, bus and ferry (derived from 86 logs of Oslo)", commute_3g),
    ("lte-driving", "LTE in a car (mahimahi's traces; a 19,000 km drive study)", lte_driving),
    ("4g-train", "4G in a train (derived from recordings)", train_4g),
    ("cellular-good", "the good third of lossy cellular links (Akamai)", cellular_good),
    ("cellular-median", "the middle third of lossy cellular links (Akamai)", cellular_median),
    ("cellular-poor", "the poor third of lossy cellular links (Akamai)", cellular_poor),
    ("lte-good", "good LTE (patchbay preset)", lte_good),
    ("wifi-bad", "bad WiFi (patchbay preset)", wifi_bad),
    ("wifi-lossy", "lossy WiFi (str0m preset)", wifi_lossy),
    ("starlink", "low satellites (APNIC)", starlink),
    ("geo-satellite", "a geostationary satellite (patchbay preset)", geo_satellite),
    ("in-flight", "the WiFi of an aeroplane (thesis of Michel)", in_flight),
    ("elevator", "LTE that goes dark for 20-60 s (assumption)", elevator),
];

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

/// A spec of this mean rate and delay.
fn of(kbps: u64, delay_ms: u64) -> Spec {
    let bps = kbps * 1000;
    Spec { rate: Rate::Constant(bps), queue: queue(bps), ..Spec::with_delay_ms(delay_ms) }
}

fn queue(bps: u64) -> Queue {
    let deep = Queue::bloated(bps, 2000);
    Queue { bytes: deep.bytes.max(30_000), ..deep }
}

fn jitter(spec: Spec, within_ms: u64) -> Spec {
    let jitter = Jitter::Uniform { within_ns: within_ms * MS };
    Spec { delay: Delay { jitter, ..spec.delay }, ..spec }
}

fn losing(spec: Spec, loss: Loss) -> Spec {
    Spec { loss, ..spec }
}

/// The rate of every second is drawn from these quantiles: (parts per million, kbit/s).
fn drawn(spec: Spec, points: &[(u32, u64)], mean_kbps: u64) -> Spec {
    let bps = Amount::Quantiles(points.iter().map(|(ppm, kbps)| (*ppm, kbps * 1000)).collect());
    Spec { rate: Rate::Drawn { span_ns: S, bps }, queue: queue(mean_kbps * 1000), ..spec }
}

/// Goes dark after gaps of `low` to `high` ms, for as long as these quantiles say: (parts per million, ms).
fn dark(spec: Spec, what: Outage, (low, high): (u64, u64), lengths: &[(u32, u64)]) -> Spec {
    let gap_ns = Amount::Uniform { low: low * MS, high: high * MS };
    let length_ns = Amount::Quantiles(lengths.iter().map(|(ppm, ms)| (*ppm, ms * MS)).collect());
    Spec { fades: Some(Episodes(vec![Episode { gap_ns, length_ns, what }])), ..spec }
}

/// 20 / 18 kbit/s down / up, 650 ms, 2 % (Facebook ATC, "2G - Developing Rural").
fn rural_2g() -> LinkSpec {
    let loss = || Loss::Random(Chance::percent(2));
    LinkSpec { down: losing(of(20, 650), loss()), up: losing(of(18, 650), loss()) }
}

/// 240 / 200 kbit/s, 400 / 440 ms (ATC; the delays by Apple's NLC).
fn edge() -> LinkSpec {
    LinkSpec { down: of(240, 400), up: of(200, 440) }
}

/// As [`edge`], and 1 % are lost downwards (ATC).
fn edge_lossy() -> LinkSpec {
    let LinkSpec { up, down } = edge();
    LinkSpec { down: losing(down, Loss::Random(Chance::percent(1))), up }
}

/// 780 / 330 kbit/s, 100 ms (ATC, NLC).
fn average_3g() -> LinkSpec {
    LinkSpec { down: of(780, 100), up: of(330, 100) }
}

/// As [`average_3g`], and 1 % are lost downwards (ATC).
fn lossy_3g() -> LinkSpec {
    let LinkSpec { up, down } = average_3g();
    LinkSpec { down: losing(down, Loss::Random(Chance::percent(1))), up }
}

/// Mean 2,020 / 940 kbit/s; 3.4 % of the seconds dead downwards, for 5.8 s at most (derived from mahimahi's
/// traces; a dead second is a whole one without arrivals). Assumptions: 100 ms of delay as other 3G; most stalls
/// last one to two seconds.
fn umts_driving() -> LinkSpec {
    let lengths = [(0, 1000), (900_000, 2000), (1_000_000, 5800)];
    LinkSpec { down: dark(of(2020, 100), Outage::Stalls, (4000, 36_000), &lengths), up: of(940, 100) }
}

/// Median 814 kbit/s, 100 ms; below 32 kbit/s for 14 % of the time, in gaps of 4 s in the median, 38 s at the 95th
/// percentile, 29 min at most (derived from the 86 logs of Riiser and others, Oslo). Assumptions: 3 Mbit/s at
/// best; one gap of a hundred is longer than two minutes; the uplink is as the downlink, and dark with it in
/// share, not in time.
fn commute_3g() -> LinkSpec {
    let rates = [(0, 32), (500_000, 814), (1_000_000, 3000)];
    let lengths = [(0, 1000), (500_000, 4000), (950_000, 38_000), (990_000, 120_000), (1_000_000, 29 * 60_000)];
    let one = drawn(of(814, 100), &rates, 814);
    LinkSpec::symmetric(dark(one, Outage::Stalls, (10_000, 276_000), &lengths))
}

/// Mean 4,560 / 1,910 kbit/s, 5th percentile 590 / 40, 25 ms (10); the uplink stalls for 4.1 s at most (mahimahi's
/// traces); hand-overs take 40 ms in the median (drive study over 19,000 km). Assumptions: the other quantiles,
/// and a hand-over every 5-30 s.
fn lte_driving() -> LinkSpec {
    let base = || jitter(of(1000, 25), 10);
    let down = drawn(base(), &[(0, 100), (50_000, 590), (500_000, 4200), (1_000_000, 9660)], 4560);
    let up = drawn(base(), &[(0, 10), (50_000, 40), (500_000, 1700), (1_000_000, 4370)], 1910);
    let hand_over = [(0, 20), (500_000, 40), (950_000, 200), (1_000_000, 1000)];
    let stall = [(0, 20), (500_000, 40), (950_000, 500), (1_000_000, 4100)];
    LinkSpec {
        down: dark(down, Outage::Stalls, (5000, 30_000), &hand_over),
        up: dark(up, Outage::Stalls, (5000, 30_000), &stall),
    }
}

/// Median 21,000 kbit/s, 5th percentile 129, 20 ms; 4.5 % of the seconds dead, in gaps of 13 s at the 95th percentile, 16 s
/// at most (derived). Assumptions: 60 Mbit/s at best, gaps of 3 s in the median, an uplink of a quarter.
fn train_4g() -> LinkSpec {
    let lengths = [(0, 1000), (500_000, 3000), (950_000, 13_000), (1_000_000, 16_000)];
    let one = |parts: u64| {
        let rates = [(0, 32), (50_000, 129), (500_000, 21_000 / parts), (1_000_000, 60_000 / parts)];
        dark(drawn(of(1000, 20), &rates, 21_000 / parts), Outage::Stalls, (20_000, 160_000), &lengths)
    };
    LinkSpec { down: one(1), up: one(4) }
}

/// Round trips of 39 ms in the median, 90 at the 90th percentile: half of it, with an exponential tail. Gaps
/// without loss have this median, and are uniform around it (assumption); then 50 ms lose this share.
fn cellular(kbps: u64, gap_ms: u64, lost: u32) -> LinkSpec {
    let gap_ns = Amount::Uniform { low: gap_ms * MS / 2, high: gap_ms * MS * 3 / 2 };
    let slot = Episode { gap_ns, length_ns: Amount::Fixed(50 * MS), what: Chance::percent(lost) };
    let spec = losing(of(kbps, 0), Loss::Slots(Episodes(vec![slot])));
    let jitter = Jitter::Exponential { mean_ns: 15_800_000 };
    let delay = Delay { base_ns: 8_500_000, jitter, ..Delay::default() };
    LinkSpec::symmetric(Spec { delay, ..spec })
}

/// Median 1,129 kbit/s; gaps of 1.16 s, then a slot that loses 33 % (Akamai, cell-emulation-util, Apache-2.0).
fn cellular_good() -> LinkSpec {
    cellular(1129, 1160, 33)
}

/// Median 433 kbit/s; gaps of 0.35 s, then a slot that loses 50 % (Akamai).
fn cellular_median() -> LinkSpec {
    cellular(433, 350, 50)
}

/// Median 257 kbit/s; gaps of 0.17 s, then a slot that loses 50 % (Akamai).
fn cellular_poor() -> LinkSpec {
    cellular(257, 170, 50)
}

/// 40,000 kbit/s, 25 ms (10), 0.3 % in bursts of 6 (patchbay preset).
fn lte_good() -> LinkSpec {
    LinkSpec::symmetric(losing(jitter(of(40_000, 25), 10), Loss::bursts(Chance::ppm(3000), 6)))
}

/// 25,000 kbit/s, 25 ms (15), 1.5 % in bursts of 8 (patchbay preset).
fn wifi_bad() -> LinkSpec {
    LinkSpec::symmetric(losing(jitter(of(25_000, 25), 15), Loss::bursts(Chance::ppm(15_000), 8)))
}

/// 50,000 kbit/s, 15 ms (10), bursts with p = 1/40 and r = 1/2 (str0m preset).
fn wifi_lossy() -> LinkSpec {
    let (to_bad, to_good) = (Chance::ppm(25_000), Chance::percent(50));
    let loss = Loss::Bursts { to_bad, to_good, good: Chance::NEVER, bad: Chance::ALWAYS };
    LinkSpec::symmetric(losing(jitter(of(50_000, 15), 10), loss))
}

/// 100,000 kbit/s, 25 ms; every 15 s another satellite, 15-25 ms further or nearer; jitter 6.7 ms there and back
/// (APNIC, all times there as round trips).
fn starlink() -> LinkSpec {
    let jumps = [(0, 0), (15, 20), (30, 0), (45, 15), (60, 0), (75, 25)].map(|(s, ms)| (s * S, ms * MS));
    let spec = of(100_000, 25);
    let jitter = Jitter::Normal { sigma_ns: 3_350_000 };
    let delay = Delay { extra_ns: Some(Steps::new(&jumps, Some(90 * S))), jitter, ..spec.delay };
    LinkSpec::symmetric(Spec { delay, ..spec })
}

/// 25,000 kbit/s, 300 ms (20), 0.3 % in bursts of 4 (patchbay preset).
fn geo_satellite() -> LinkSpec {
    LinkSpec::symmetric(losing(jitter(of(25_000, 300), 20), Loss::bursts(Chance::ppm(3000), 4)))
}

/// 300-10,000 kbit/s, 100-400 ms, bursts with p of 1-8 % and r of 8-50 % (thesis of Michel). The rate changes every
/// 10 s (assumption); p and r are 4 % and 25 %.
fn in_flight() -> LinkSpec {
    let (to_bad, to_good) = (Chance::percent(4), Chance::percent(25));
    let loss = Loss::Bursts { to_bad, to_good, good: Chance::NEVER, bad: Chance::ALWAYS };
    let bps = Amount::Uniform { low: 300_000, high: 10_000_000 };
    let spec = losing(jitter(of(5000, 250), 150), loss);
    LinkSpec::symmetric(Spec { rate: Rate::Drawn { span_ns: 10 * S, bps }, ..spec })
}

/// As [`lte_good`], dark for 20-60 s every one to two minutes (assumption). The new address that one has
/// afterwards is an event of its own, see [`crate::interfaces`].
fn elevator() -> LinkSpec {
    let LinkSpec { up, down } = lte_good();
    let dark = |spec| dark(spec, Outage::Loses, (60_000, 120_000), &[(0, 20_000), (1_000_000, 60_000)]);
    LinkSpec { up: dark(up), down: dark(down) }
}

/// Of these names the one that somebody most probably meant: the fewest letters to change.
pub fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    known.into_iter().min_by_key(|known| distance(name, known))
}

/// How many letters must be changed, added, left out, or swapped with their neighbour.
pub fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
