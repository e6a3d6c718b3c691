//! What the system costs others: how many devices become live at once, how many bytes a device spends, and how often its
//! radio wakes. All are limits that a scenario sets; without one they are only counted.

use crate::facts::{Facts, Traffic};
use crate::findings::Findings;
use crate::limits::{HERD_WINDOW_NS, HOUR_NS};
use crate::verdict::Verdict;

/// Most devices that became live within any second.
pub(crate) fn herd(facts: &Facts<'_>, findings: &mut Findings) -> u64 {
    let live = facts.connections.values().flatten().filter(|c| c.state == "live");
    let mut times: Vec<u64> = live.map(|c| c.at_ns).collect();
    times.sort_unstable();
    let mut first = 0;
    let (mut most, mut when_ns) = (0, 0);
    for (last, at_ns) in times.iter().enumerate() {
        while at_ns - times[first] >= HERD_WINDOW_NS {
            first += 1;
        }
        let count = (last - first + 1) as u64;
        if count > most {
            (most, when_ns) = (count, *at_ns);
        }
    }
    if let Some(limit) = facts.run.expect.connects_per_second.filter(|limit| most > *limit) {
        findings.add("herd", facts.too_slow(), when_ns, || {
            format!("{most} devices became live within a second, at most {limit} are allowed")
        });
    }
    most
}

/// Scaled to an hour.
pub(crate) fn per_hour(count: u64, over_ns: u64) -> u64 {
    let scaled = u128::from(count) * u128::from(HOUR_NS) / u128::from(over_ns.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

pub(crate) fn traffic(facts: &Facts<'_>, findings: &mut Findings) {
    let expect = &facts.run.expect;
    limited(facts, findings, "bytes", expect.bytes_per_hour, |t| t.up_bytes + t.down_bytes);
    limited(facts, findings, "wake-ups of its radio", expect.wakeups_per_hour, |t| t.wakeups);
}

fn limited(
    facts: &Facts<'_>,
    findings: &mut Findings,
    what: &str,
    limit: Option<u64>,
    count: impl Fn(&Traffic) -> u64,
) {
    let Some(limit) = limit else { return };
    for device in facts.run.cast.devices.keys() {
        let Some(told) = facts.traffic.get(device.as_str()).filter(|t| t.over_ns > 0) else {
            findings.add("traffic", Verdict::Unknown, facts.last_ns, || {
                format!("nothing is told of the traffic of {device}")
            });
            continue;
        };
        let spent = per_hour(count(told), told.over_ns);
        if spent > limit {
            findings.fail("traffic", facts.last_ns, || {
                format!("{device} spent {spent} {what} an hour, at most {limit} are allowed")
            });
        }
    }
}

/// Who goes from network to network is there all the time.
pub(crate) fn presence(facts: &Facts<'_>, findings: &mut Findings) {
    let Some(limit) = facts.run.expect.presence_changes else { return };
    if facts.presences.is_empty() {
        findings.add("presence", Verdict::Unknown, facts.last_ns, || "nobody was told who is there".into());
    }
    for ((device, user), told) in &facts.presences {
        let changes: Vec<u64> = told.windows(2).filter(|two| two[0].1 != two[1].1).map(|two| two[1].0).collect();
        if let Some(too_many) = usize::try_from(limit).ok().and_then(|limit| changes.get(limit)) {
            findings.fail("presence", *too_many, || {
                format!("{device} saw {user} come or go {} times, at most {limit} are allowed", changes.len())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::examples::Example;
    use crate::history::Event;
    use crate::verdict::Verdict;

    #[test]
    fn a_herd_is_counted_in_any_second() {
        let herd = |limit| {
            let mut example = Example::good().expect(|e| e.connects_per_second = Some(limit)).wait(5_000_000_000);
            for device in ["alice-phone", "alice-tablet", "bob-phone", "bob-tablet", "carol-phone"] {
                example = example.connection(device, "connecting").live(device, "eu");
            }
            example.ends_well()
        };
        assert_eq!(herd(5).found(), [""; 0]);
        assert_eq!(herd(4).found(), ["herd"]);
        assert_eq!(herd(4).judge().figures.connects_per_second_most, 5);
    }

    #[test]
    fn bytes_and_wakeups_are_scaled_to_an_hour() {
        let example = |bytes, wakeups| {
            let limits = |e: &mut crate::Expect| (e.bytes_per_hour, e.wakeups_per_hour) = (Some(bytes), Some(wakeups));
            Example::good().expect(limits).ends_well()
        };
        let figures = example(u64::MAX, u64::MAX).judge().figures;
        let spent = &figures.devices["bob-phone"];
        assert!(spent.bytes_per_hour > spent.up_bytes + spent.down_bytes);
        assert_eq!(example(u64::MAX, u64::MAX).found(), [""; 0]);
        assert_eq!(example(spent.bytes_per_hour - 1, u64::MAX).found(), ["traffic"]);
        assert_eq!(example(u64::MAX, spent.wakeups_per_hour - 1).found(), ["traffic"]);
    }

    #[test]
    fn a_limit_on_what_is_not_told_shows_nothing() {
        let example = Example::good().expect(|e| e.bytes_per_hour = Some(u64::MAX)).ends_well();
        let judged = example.remove(|e| matches!(e, Event::Traffic { .. })).judge();
        assert_eq!(judged.verdict, Verdict::Unknown);
    }

    #[test]
    fn comings_and_goings_that_friends_see_are_counted() {
        let told = |online| Event::Presence { device: "bob-phone".into(), user: "alice".into(), online };
        let example = |limit, times: &[bool]| {
            let example = Example::good().expect(|e| e.presence_changes = Some(limit));
            times.iter().fold(example, |example, online| example.event(told(*online))).ends_well()
        };
        assert_eq!(example(1, &[true, true, false, false]).found(), [""; 0]);
        assert_eq!(example(0, &[true, false]).found(), ["presence"]);
        assert_eq!(example(0, &[]).judge().verdict, Verdict::Unknown);
    }
}
