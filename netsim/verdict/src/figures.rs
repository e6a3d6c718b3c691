//! What was measured in a run, whatever it is worth.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checks::load::per_hour;
pub use crate::checks::recovery::Recovery;
use crate::distribution::Distribution;
use crate::facts::Facts;

/// See the module. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// How long the run took.
    pub duration_ns: u64,
    /// Messages that devices stored.
    pub invoked: u64,
    /// Messages that devices could not store.
    pub refused: u64,
    /// Messages of which devices were told that they are durable.
    pub acked: u64,
    /// In two regions.
    pub stable: u64,
    /// Messages that were given up.
    pub failed: u64,
    /// Never acked, and not given up either.
    pub unacked: u64,
    /// How often a message appeared on a device.
    pub shown: u64,
    /// How often one changed its place.
    pub moved: u64,
    /// Acked messages that a device lacks in the end, though it must not.
    pub lost: u64,
    /// Such as the scenario allows.
    pub lost_allowed: u64,
    /// How often a message was there twice.
    pub duplicated: u64,
    /// How often a message came or stood after a later one of the same device.
    pub out_of_order: u64,
    /// How often one came after a later one because its region was silent, or its device fetched what it had missed;
    /// see the check of order.
    pub late: u64,
    /// How often something was seen that must not be.
    pub phantoms: u64,
    /// From invocation until the device is told that it is durable.
    pub acks: Distribution,
    /// From invocation until it is shown on a member's other device, over the whole run.
    pub delivery: Distribution,
    /// By the phase in which it was sent.
    pub delivery_by_phase: BTreeMap<String, Distribution>,
    /// By fault that held when it was sent.
    pub delivery_by_fault: BTreeMap<String, Distribution>,
    /// From the moment when a device's connection is not live any longer until it is again.
    pub reconnects: Distribution,
    /// Most devices that became live within any second.
    pub connects_per_second_most: u64,
    /// Each time that a fault held, in order.
    pub recoveries: Vec<Recovery>,
    /// From the beginning of the quiet phase until everything was calm.
    pub converged_ns: Option<u64>,
    /// By device.
    pub devices: BTreeMap<String, DeviceFigures>,
    /// What should happen sometimes: how often it must, and did. What only happened has no minimum.
    pub sometimes: BTreeMap<String, (u64, u64)>,
}

/// What a device spent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFigures {
    /// Bytes that it sent.
    pub up_bytes: u64,
    /// Bytes that it received.
    pub down_bytes: u64,
    /// Both, scaled to an hour.
    pub bytes_per_hour: u64,
    /// How often its radio woke.
    pub wakeups: u64,
    /// Scaled to an hour.
    pub wakeups_per_hour: u64,
}

impl Figures {
    /// What needs no check: counts, and what devices spent.
    pub(crate) fn count(facts: &Facts<'_>) -> Self {
        let messages = || facts.messages.values().filter(|m| m.refused_ns.is_none());
        let of = |n: usize| n as u64;
        Self {
            duration_ns: facts.last_ns,
            invoked: of(messages().count()),
            refused: of(facts.messages.len() - messages().count()),
            acked: of(messages().filter(|m| m.acked.is_some()).count()),
            stable: of(messages().filter(|m| m.stable_ns.is_some()).count()),
            failed: of(messages().filter(|m| m.failed.is_some()).count()),
            shown: of(facts.shown.iter().filter(|s| s.new).count()),
            moved: of(facts.shown.iter().filter(|s| !s.new).count()),
            reconnects: reconnects(facts),
            devices: devices(facts),
            sometimes: sometimes(facts),
            ..Self::default()
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let ms = |ns: u64| ns.div_ceil(1_000_000);
        let mut line = format!(
            "{} sent, {} acked, {} shown, {} lost, {} duplicated, {} out of order; delivery p50 {} ms, p99 {} ms",
            self.invoked,
            self.acked,
            self.shown,
            self.lost,
            self.duplicated,
            self.out_of_order,
            ms(self.delivery.median_ns()),
            ms(self.delivery.percentile_ns(99)),
        );
        for (count, what) in [
            (self.unacked, "never acked"),
            (self.failed, "failed"),
            (self.lost_allowed, "lost as allowed"),
            (self.phantoms, "seen that must not be"),
        ] {
            if count > 0 {
                line.push_str(&format!(", {count} {what}"));
            }
        }
        line
    }
}

fn reconnects(facts: &Facts<'_>) -> Distribution {
    let mut times = Vec::new();
    for states in facts.connections.values() {
        let mut since: Option<u64> = None;
        let mut was_live = false;
        for now in states {
            match (now.state == "live", since) {
                (true, Some(lost_ns)) => {
                    times.push(now.at_ns - lost_ns);
                    since = None;
                }
                (false, None) if was_live => since = Some(now.at_ns),
                _ => {}
            }
            was_live = now.state == "live";
        }
    }
    Distribution::of(times)
}

fn devices(facts: &Facts<'_>) -> BTreeMap<String, DeviceFigures> {
    let of = |(device, told): (&&str, &crate::facts::Traffic)| {
        let figures = DeviceFigures {
            up_bytes: told.up_bytes,
            down_bytes: told.down_bytes,
            bytes_per_hour: per_hour(told.up_bytes + told.down_bytes, told.over_ns),
            wakeups: told.wakeups,
            wakeups_per_hour: per_hour(told.wakeups, told.over_ns),
        };
        ((*device).to_owned(), figures)
    };
    facts.traffic.iter().map(of).collect()
}

fn sometimes(facts: &Facts<'_>) -> BTreeMap<String, (u64, u64)> {
    let mut all: BTreeMap<String, (u64, u64)> =
        facts.run.sometimes.iter().map(|(name, wanted)| (name.clone(), (*wanted, 0))).collect();
    for (name, reached) in &facts.sometimes {
        all.entry((*name).to_owned()).or_default().1 = *reached;
    }
    all
}

#[cfg(test)]
mod tests {
    use crate::examples::Example;

    #[test]
    fn reconnects_count_from_the_loss_of_the_connection() {
        let example = Example::good().connection("bob-phone", "offline").wait(2_000_000_000);
        let example = example.connection("bob-phone", "connecting").live("bob-phone", "us").ends_well();
        let figures = example.judge().figures;
        assert_eq!(figures.reconnects.count, 1);
        assert!(figures.reconnects.max_ns() >= 2_000_000_000);
    }

    #[test]
    fn the_line_tells_what_is_not_zero() {
        let figures = Example::good().without_ack("alice-phone/1").judge().figures;
        let line = figures.line();
        assert!(line.starts_with("1 sent, 0 acked, 3 shown, 0 lost, ") && line.ends_with(", 1 never acked"), "{line}");
    }
}
