//! What the links alone would take: for each message the way of one packet that nothing else is in the way of.
//!
//! Problem: a message that is written while a link is dark comes late in every system. Whether a system is slow shows only
//! beside what nobody could have been faster than.
//!
//! Rule: the links are pure machines whose outages and rates follow from the seed and the clock, whatever is sent. So each
//! message goes once more, alone, as one packet with next to nothing around it, through the same machines at the same
//! moment: up the author's link, over the paths, down the recipient's. What chance does to packets is left out (loss,
//! jitter, reordering), for who sends often enough gets through; what fades and hand-overs do is not.

use tern_netsim_link::{Direction, Fate as LinkFate, Jitter, LinkSpec, Loss, Spec, Way};
use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{DevicePlan, Effect, Size, Target};
use tern_netsim_verdict::{Event, FaultPhase, Line};

use super::tally::{Fate, Flow};

/// Around a text: headers of IP and UDP, a short header of QUIC and its seal, an identity.
const AROUND_BYTES: u32 = 60;
/// A packet that was lost is sent again after so long, and again, until it arrives.
const AGAIN_NS: u64 = 10_000_000;
/// By then a packet has arrived, or never does: longer than any outage of a link with a name.
const GIVE_UP_NS: u64 = 3_600_000_000_000;

/// What stops a device besides its link: from, until.
type Gap = (u64, u64);

/// The flow that nobody can be faster than; `None` where devices change to links of another kind, which is not told here.
/// `lab_zero_ns` is the run's moment 0 by the clock of the links.
pub fn floor(plan: &Plan, lines: &[Line], sent: &[Fate], lab_zero_ns: u64, end_ns: u64) -> Option<Flow> {
    if plan.devices.iter().any(|device| device.interfaces.len() != 1) {
        return None;
    }
    let device = |id: &str| plan.devices.iter().find(|device| device.id == id);
    let fates = sent.iter().map(|fate| {
        let author = device(&fate.from)?;
        let load = plan.loads.iter().find(|load| load.from == fate.from)?;
        let Target::User(user) = &load.to else { return None };
        let recipient = plan.devices.iter().find(|device| device.user == *user)?;
        let (Size::Fixed(least) | Size::Uniform(least, _) | Size::Zipf(least, _)) = load.size;
        let bytes = least.saturating_add(AROUND_BYTES);
        let region = plan.regions.first()?;
        let far = |place: &str| {
            let path = plan
                .paths
                .iter()
                .find(|path| (path.a == place && path.b == region.name) || (path.b == place && path.a == region.name));
            path.map(|path| path.latency_ns)
        };
        let alone = Passage { plan, lab_zero_ns, bytes };
        let at_region_ns = alone.up(author, &gaps(plan, lines, &author.id, true), fate.sent_ns)? + far(&author.place)?;
        let at_link_ns = at_region_ns + far(&recipient.place)?;
        let shown_ns = alone.down(recipient, &gaps(plan, lines, &recipient.id, false), at_link_ns)?;
        Some(Fate { shown_ns: Some(shown_ns), ..fate.clone() })
    });
    Some(Flow::of_fates("links alone", fates.collect::<Option<Vec<_>>>()?, end_ns))
}

/// When a device was off for a hand-over, or one way of its link was dark by a fault.
fn gaps(plan: &Plan, lines: &[Line], device: &str, up: bool) -> Vec<Gap> {
    let began = |(number, line): (usize, &Line)| {
        let Event::Fault { fault: id, phase: FaultPhase::Begin, .. } = &line.event else { return None };
        let fault = plan.faults.iter().find(|fault| fault.id == *id)?;
        match &fault.effect {
            Effect::HandOver { device: of, how, .. } if of == device => {
                Some((line.at_ns, line.at_ns.saturating_add(how.gap_ns)))
            }
            Effect::LinkOutage { device: of, ways, .. } if of == device && (if up { ways.up } else { ways.down }) => {
                let ends = |line: &&Line| matches!(&line.event, Event::Fault { fault, phase: FaultPhase::End, .. } if fault == id);
                let end_ns = lines.get(number..).unwrap_or_default().iter().find(ends).map(|line| line.at_ns);
                Some((line.at_ns, end_ns.unwrap_or(line.at_ns)))
            }
            _ => None,
        }
    };
    lines.iter().enumerate().filter_map(began).collect()
}

/// The end of the gap that holds a moment, or the moment.
fn after(gaps: &[Gap], at_ns: u64) -> u64 {
    gaps.iter().filter(|(from, until)| (*from..*until).contains(&at_ns)).map(|gap| gap.1).max().unwrap_or(at_ns)
}

struct Passage<'p> {
    plan: &'p Plan,
    lab_zero_ns: u64,
    bytes: u32,
}

impl Passage<'_> {
    /// From a device; when the access network has it.
    fn up(&self, device: &DevicePlan, gaps: &[Gap], at_ns: u64) -> Option<u64> {
        let (name, LinkSpec { up, .. }) = link(device)?;
        self.through(&name, Way::Up, up, after(gaps, at_ns))
    }

    /// To a device that receives nothing in a gap.
    fn down(&self, device: &DevicePlan, gaps: &[Gap], at_ns: u64) -> Option<u64> {
        let (name, LinkSpec { down, .. }) = link(device)?;
        let arrived_ns = self.through(&name, Way::Down, down.clone(), at_ns)?;
        let again_ns = after(gaps, arrived_ns);
        if again_ns == arrived_ns { Some(arrived_ns) } else { self.through(&name, Way::Down, down, again_ns) }
    }

    /// Through one direction, alone, from this moment on.
    fn through(&self, name: &str, way: Way, spec: Spec, at_ns: u64) -> Option<u64> {
        let mut spec = Spec { loss: Loss::None, ..spec };
        spec.delay.jitter = Jitter::None;
        let from_ns = at_ns.saturating_add(self.lab_zero_ns);
        let mut send_ns = from_ns;
        while send_ns < from_ns.saturating_add(GIVE_UP_NS) {
            let mut direction = Direction::new(self.plan.seed, name, way, spec.clone()).ok()?;
            direction.send(send_ns, self.bytes, ());
            let outcome = loop {
                let next_ns = direction.next_ns()?;
                if let Some(output) = direction.poll(next_ns) {
                    break output;
                }
            };
            if matches!(outcome.fate, LinkFate::Delivered | LinkFate::Corrupted(_)) {
                return Some(outcome.at_ns.saturating_sub(self.lab_zero_ns));
            }
            send_ns += AGAIN_NS;
        }
        None
    }
}

/// A device's one link, by the name that keys its randomness.
fn link(device: &DevicePlan) -> Option<(String, LinkSpec)> {
    let interface = device.interfaces.first()?;
    Some((format!("{}.{}", device.id, interface.name), interface.link.clone()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use tern_netsim_scenario::Scenario;

    use super::*;

    const MS: u64 = 1_000_000;

    fn plan(link: &str) -> Plan {
        let text = format!(
            r#"
            [scenario]
            name = "alone"
            about = "Two people."
            duration = "5min"
            [[region]]
            name = "eu"
            aws = "euc1"
            [[place]]
            name = "near"
            near = "eu"
            rtt = "20ms"
            [[device]]
            id = "phone"
            user = "alice"
            place = "near"
            iface.cell = {link}
            [[device]]
            id = "laptop"
            user = "bob"
            place = "near"
            iface.wifi = {{ rate = "1Gbit/s", delay = "3ms" }}
            [[load]]
            from = "phone"
            to = "bob"
            rate = "1/s"
            size = "140"
            [[load]]
            from = "laptop"
            to = "alice"
            rate = "1/s"
            size = "140"
            [[fault]]
            id = "cell"
            kind = "handover"
            target = "phone"
            at = "10s"
            gap = "2s"
            [[fault]]
            id = "lift"
            kind = "outage"
            target = "phone.cell.up"
            at = "20s"
            for = "3s"
            "#
        );
        let scenario = Scenario::from_toml(text, Path::new("alone.toml")).unwrap();
        scenario.plan(3, &BTreeMap::new()).unwrap()
    }

    fn took(plan: &Plan, lines: &[Line], from: &str, sent_ms: u64) -> u64 {
        let (from, message) = (from.to_owned(), format!("{from}/1"));
        let sent = [Fate { message, from, sent_ns: sent_ms * MS, shown_ns: None }];
        let flow = floor(plan, lines, &sent, 5000 * MS, u64::MAX).unwrap();
        flow.times.max_ns / MS
    }

    #[test]
    fn a_message_alone_takes_what_rate_delay_and_paths_say_and_no_loss() {
        // 200 bytes at 16 kbit/s are 100 ms; the laptop's gigabit is none.
        let plan = plan(r#"{ rate = "16kbit/s", delay = "50ms", loss = "50%", jitter = "20ms" }"#);
        assert_eq!(took(&plan, &[], "phone", 1000), 100 + 50 + 10 + 10 + 3);
        assert_eq!(took(&plan, &[], "laptop", 1000), 100 + 50 + 10 + 10 + 3);
    }

    fn fault(at_ms: u64, phase: FaultPhase, id: &str) -> Line {
        let (fault, kind, target) = (id.to_owned(), String::new(), "phone".to_owned());
        Line { at_ns: at_ms * MS, event: Event::Fault { fault, phase, kind, target, hits: 0 } }
    }

    #[test]
    fn who_writes_in_a_gap_waits_for_its_end_and_what_comes_in_one_comes_again() {
        let plan = plan(r#"{ rate = "1Gbit/s", delay = "50ms" }"#);
        let lines = [fault(10_000, FaultPhase::Begin, "cell")];
        assert_eq!(took(&plan, &lines, "phone", 9999), 73);
        assert_eq!(took(&plan, &lines, "phone", 10_500), 1500 + 73);
        assert_eq!(took(&plan, &lines, "laptop", 9990), 2010 + 50);
    }

    #[test]
    fn an_outage_of_one_way_stops_that_way() {
        let plan = plan(r#"{ rate = "1Gbit/s", delay = "50ms" }"#);
        let lines = [fault(20_000, FaultPhase::Begin, "lift"), fault(23_000, FaultPhase::End, "lift")];
        assert_eq!(took(&plan, &lines, "phone", 21_000), 2000 + 73);
        assert_eq!(took(&plan, &lines, "laptop", 21_000), 73);
        assert_eq!(took(&plan, &lines, "phone", 23_000), 73);
    }
}
