use super::*;
use crate::dice::Way;
use crate::direction::{Cause, Direction, Fate};

#[test]
fn every_profile_can_be_run_and_says_who_says_so() {
    for name in names() {
        let profile = profile(name).unwrap();
        assert_eq!((profile.name, profile.link.check()), (name, Ok(())));
        assert!(profile.source.ends_with(')'), "{name}: {}", profile.source);
        for way in [&profile.link.up, &profile.link.down] {
            assert!(way.rate != Rate::Unlimited && way.delay.now_ns(0) > 0, "{name}");
        }
    }
}

#[test]
fn an_unknown_name_gets_the_nearest() {
    let nearest = |name| profile(name).unwrap_err().nearest;
    assert_eq!(
        ["lte-drivng", "LTE-good", "wfii-bad", "4g_train", "satellite", "3gcommute"].map(nearest),
        ["lte-driving", "lte-good", "wifi-bad", "4g-train", "geo-satellite", "3g-commute"]
    );
    let text = profile("wifi-lossi").unwrap_err().to_string();
    assert!(text.starts_with("no profile wifi-lossi; did you mean wifi-lossy? There are: "), "{text}");
    assert!(text.contains("2g-rural") && text.contains("elevator"), "{text}");
}

/// A packet of 100 bytes every 100 ms for so long: the share that was lost in per mille, the median and the
/// greatest delay in ms, and the share of seconds in which nothing arrived, in per mille.
fn measure(name: &str, way: Way, seconds: u64) -> (u64, u64, u64, u64) {
    let link = profile(name).unwrap().link;
    let spec = if way == Way::Up { link.up } else { link.down };
    let mut direction = Direction::new(7, name, way, spec).unwrap();
    let mut out = Vec::new();
    for n in 0..seconds * 10 {
        direction.send(n * 100 * MS, 100, ());
        out.extend(std::iter::from_fn(|| direction.poll(n * 100 * MS)));
    }
    out.extend(std::iter::from_fn(|| direction.poll(u64::MAX / 2)));
    let lost = out.iter().filter(|out| matches!(out.fate, Fate::Dropped(cause) if cause != Cause::QueueFull)).count();
    let arrived = out.iter().filter(|out| out.fate == Fate::Delivered);
    let mut delays: Vec<u64> = arrived.clone().map(|out| (out.at_ns - out.sent_ns) / MS).collect();
    delays.sort_unstable();
    let alive: std::collections::BTreeSet<u64> =
        arrived.map(|out| out.left_ns.unwrap_or(0) / S).filter(|second| *second < seconds).collect();
    let share = |part: usize, of: u64| part as u64 * 1000 / of;
    let dead = 1000 - share(alive.len(), seconds);
    (share(lost, seconds * 10), delays[delays.len() / 2], delays[delays.len() - 1], dead)
}

#[test]
fn losses_delays_and_dark_seconds_are_those_of_the_table() {
    let near = |got: u64, wanted: std::ops::RangeInclusive<u64>, what: &str| {
        assert!(wanted.contains(&got), "{what}: {got}, not in {wanted:?}");
    };
    let (lost, median, ..) = measure("lte-good", Way::Down, 20 * 3600);
    near(lost, 2..=4, "lte-good loss");
    near(median, 24..=26, "lte-good delay");
    let (lost, ..) = measure("wifi-bad", Way::Up, 10 * 3600);
    near(lost, 12..=18, "wifi-bad loss");
    let (lost, ..) = measure("wifi-lossy", Way::Up, 3600);
    near(lost, 45..=50, "wifi-lossy loss: p / (p + r) = 4.76 %");
    let (lost, median, ..) = measure("geo-satellite", Way::Up, 20 * 3600);
    near(lost, 2..=4, "satellite loss");
    near(median, 298..=302, "satellite delay");
    let (_, _, longest, dead) = measure("umts-driving", Way::Down, 20 * 3600);
    near(dead, 28..=40, "umts-driving dead seconds: 3.4 %");
    near(longest, 5000..=6100, "umts-driving stall");
    let (_, _, _, dead) = measure("4g-train", Way::Down, 20 * 3600);
    near(dead, 38..=52, "4g-train dead seconds: 4.5 %");
    let (_, _, _, dead) = measure("3g-commute", Way::Down, 40 * 3600);
    near(dead, 110..=170, "3g-commute: 14 % of the time");
    let (lost, ..) = measure("elevator", Way::Down, 20 * 3600);
    near(lost, 260..=350, "elevator: 40 s of 130");
    let (lost, ..) = measure("2g-rural", Way::Down, 3600);
    near(lost, 18..=22, "2g-rural loss");
}
