//! What can be measured in a history.
//!
//! Times count from what a scenario does until what a user would notice; where the other end's kernel or the way back
//! would be measured too, the moment counts at which the region has decided on a message.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use tern_netsim_verdict::{Event, FaultPhase, Line, LinkSample};

/// See the module. Faults are named as in the scenario; of one that comes several times, all are meant.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Measure {
    /// From a fault's end until the first message is committed that its device had sent before and that was not yet.
    CommittedAfterEnd(String),
    /// From a fault's beginning until its device is live by a connection that was made since.
    LiveAfterBegin(String),
    /// From a fault's end until its device is live by a connection that was made since.
    LiveAfterEnd(String),
    /// From a device's start until it is live.
    LiveAfterStart(String),
    /// How much longer the first message takes to its commit that a fault's device sends after the fault began than the
    /// median of those before.
    ExtraOnNext(String),
    /// Bytes per hour of a device, in both directions; of `device.interface`, from its first packet to its last.
    BytesPerHour(String),
    /// Wake-ups of a device's radio per hour.
    WakeupsPerHour(String),
    /// From a fault's beginning until its device finds out that its connection does not carry any longer.
    NoticedAfterBegin(String),
    /// From the moment at which a gateway forgot a device until this knows and is live again, in heartbeats: as parts of
    /// the silence that ended when it found out.
    FoundInBeats(String),
    /// How often a gateway had forgotten a device that was using it, for each interface and each day that was begun.
    ForgottenPerDay(String),
    /// From the moment at which a region has decided on a message until a device shows it.
    ShownAfterCommit(String),
    /// From the moment at which its sender has the ack of a message until a device shows it: over real packets nobody sees
    /// the decision itself.
    ShownAfterAck(String),
    /// From the moment at which a message is sent until a device shows it.
    ShownAfterSend(String),
    /// From the beginning of a fault of an edge or region until a device that was connected there is live again. One that
    /// never is is infinitely late.
    CutOffUntilLive(String),
    /// From there until the first message is acked that such a device sent since. Likewise.
    CutOffUntilAcked(String),
    /// How often each of some devices became live at another edge than before; `herd-*` are all whose names begin so.
    Moves(String),
    /// Most devices that became live again in any second after a fault's beginning, each counted once, over the mean until
    /// 95 % of them were back: who was out of reach meanwhile tells nothing of the herd.
    PeakOverMean(String),
}

/// How values are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Plain,
}

impl Unit {
    /// For people.
    pub fn show(self, value: f64) -> String {
        match self {
            _ if value.is_nan() => "-".to_owned(),
            _ if value.is_infinite() => "never".to_owned(),
            Self::Seconds if value < 1.0 => format!("{:.0} ms", value * 1000.0),
            Self::Seconds => format!("{value:.2} s"),
            Self::Plain if value < 100.0 => format!("{value:.1}"),
            Self::Plain => format!("{value:.0}"),
        }
    }
}

/// When a fault held, and its target's device.
struct Span {
    device: String,
    begin_ns: u64,
    end_ns: u64,
}

impl Measure {
    /// See [`Unit`].
    pub fn unit(&self) -> Unit {
        match self {
            Self::BytesPerHour(_)
            | Self::WakeupsPerHour(_)
            | Self::FoundInBeats(_)
            | Self::ForgottenPerDay(_)
            | Self::Moves(_)
            | Self::PeakOverMean(_) => Unit::Plain,
            _ => Unit::Seconds,
        }
    }

    /// All values of a run; times in seconds. None: what is measured did not happen.
    pub fn of(&self, lines: &[Line]) -> Vec<f64> {
        let each = |fault: &str, f: &dyn Fn(&Span) -> Option<f64>| spans(lines, fault).iter().filter_map(f).collect();
        match self {
            Self::CommittedAfterEnd(fault) => each(fault, &|span| committed_after(lines, span)),
            Self::LiveAfterBegin(fault) => {
                each(fault, &|span| live_after(lines, &span.device, span.begin_ns).map(|at| since(at, span.begin_ns)))
            }
            Self::LiveAfterEnd(fault) => {
                each(fault, &|span| live_after(lines, &span.device, span.end_ns).map(|at| since(at, span.end_ns)))
            }
            Self::LiveAfterStart(device) => {
                let start = lines.iter().find(|l| matches!(&l.event, Event::Start { who } if who == device));
                let start_ns = start.map(|line| line.at_ns);
                let live = |from_ns| live_after(lines, device, from_ns).map(|at| since(at, from_ns));
                start_ns.and_then(live).into_iter().collect()
            }
            Self::ExtraOnNext(fault) => each(fault, &|span| extra(lines, span)),
            Self::NoticedAfterBegin(fault) => each(fault, &|span| {
                let gone = |line: &&Line| {
                    line.at_ns >= span.begin_ns
                        && matches!(&line.event, Event::Connection { device, state, .. }
                                    if *device == span.device && state != "live")
                };
                lines.iter().find(gone).map(|line| since(line.at_ns, span.begin_ns))
            }),
            Self::BytesPerHour(link) if link.contains('.') => traffic_on(lines, link).into_iter().collect(),
            Self::BytesPerHour(device) => traffic(lines, device).map(|(bytes, _)| bytes).into_iter().collect(),
            Self::WakeupsPerHour(device) => traffic(lines, device).map(|(_, wakeups)| wakeups).into_iter().collect(),
            Self::FoundInBeats(device) => found_in_beats(lines, device),
            Self::ForgottenPerDay(device) => forgotten_per_day(lines, device),
            Self::ShownAfterCommit(device) => shown_after(lines, device, |event| match event {
                Event::Commit { message, .. } => Some(message),
                _ => None,
            }),
            Self::ShownAfterAck(device) => shown_after(lines, device, |event| match event {
                Event::Acked { message, .. } => Some(message),
                _ => None,
            }),
            Self::ShownAfterSend(device) => shown_after(lines, device, |event| match event {
                Event::Invoke { message, .. } => Some(message),
                _ => None,
            }),
            Self::CutOffUntilLive(fault) => of_cut_off(lines, fault, |device, begin_ns, target| {
                let mut gone = false;
                let live_again = |line: &&Line| match &line.event {
                    Event::Connection { device: other, state, edge, region, .. } if other == device => {
                        // It may be live somewhere else without having been anything else between.
                        let elsewhere = edge.as_deref() != Some(target) && region.as_deref() != Some(target);
                        gone |= state != "live";
                        state == "live" && (gone || elsewhere)
                    }
                    _ => false,
                };
                lines.iter().filter(|line| line.at_ns >= begin_ns).find(live_again).map(|line| line.at_ns)
            }),
            Self::CutOffUntilAcked(fault) => of_cut_off(lines, fault, |device, begin_ns, _| {
                let since: BTreeSet<&str> = lines
                    .iter()
                    .filter(|line| line.at_ns >= begin_ns)
                    .filter_map(|line| match &line.event {
                        Event::Invoke { device: other, message, .. } if other == device => Some(message.as_str()),
                        _ => None,
                    })
                    .collect();
                let is_acked = |line: &&Line| matches!(&line.event, Event::Acked { message, .. } if since.contains(message.as_str()));
                lines.iter().find(is_acked).map(|line| line.at_ns)
            }),
            Self::Moves(devices) => moves(lines, devices),
            Self::PeakOverMean(fault) => each(fault, &|span| peak_over_mean(lines, span.begin_ns)),
        }
    }
}

/// The fastest ack of a run in which there were some, in seconds.
pub fn round_trip_s(lines: &[Line]) -> Option<f64> {
    let mut sent = BTreeMap::new();
    let mut best: Option<u64> = None;
    for line in lines {
        match &line.event {
            Event::Invoke { message, .. } => drop(sent.insert(message, line.at_ns)),
            Event::Acked { message, .. } => {
                let took = sent.get(message).map(|sent_ns| line.at_ns - sent_ns);
                best = best.into_iter().chain(took).min();
            }
            _ => {}
        }
    }
    best.map(|ns| since(ns, 0))
}

fn since(at_ns: u64, from_ns: u64) -> f64 {
    at_ns.saturating_sub(from_ns) as f64 / 1e9
}

/// Each time that a fault held; a repeated one is called `storm-1`, of several targets `storm@phone`.
fn spans(lines: &[Line], id: &str) -> Vec<Span> {
    let mut all: Vec<(String, Span)> = Vec::new();
    for line in lines {
        let Event::Fault { fault, phase, target, .. } = &line.event else { continue };
        let rest = fault.strip_prefix(id);
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '@'])) {
            continue;
        }
        match phase {
            FaultPhase::Begin => {
                let device = target.split('.').next().unwrap_or(target).to_owned();
                all.push((fault.clone(), Span { device, begin_ns: line.at_ns, end_ns: u64::MAX }));
            }
            FaultPhase::End => {
                if let Some((_, span)) = all.iter_mut().rev().find(|(name, _)| name == fault) {
                    span.end_ns = line.at_ns;
                }
            }
        }
    }
    all.into_iter().map(|(_, span)| span).collect()
}

/// Messages of a device: when they were sent and committed.
fn messages(lines: &[Line], of: &str) -> Vec<(u64, Option<u64>)> {
    let mut order: Vec<(&str, u64, Option<u64>)> = Vec::new();
    for line in lines {
        match &line.event {
            Event::Invoke { device, message, .. } if device == of => order.push((message, line.at_ns, None)),
            Event::Commit { message, .. } => {
                let sent = order.iter_mut().rev().find(|(name, _, _)| name == message);
                if let Some((_, _, committed)) = sent {
                    committed.get_or_insert(line.at_ns);
                }
            }
            _ => {}
        }
    }
    order.into_iter().map(|(_, sent, committed)| (sent, committed)).collect()
}

fn committed_after(lines: &[Line], span: &Span) -> Option<f64> {
    let waiting = messages(lines, &span.device)
        .into_iter()
        .filter(|(sent, committed)| *sent < span.end_ns && committed.is_none_or(|at| at >= span.end_ns));
    waiting.filter_map(|(_, committed)| committed).min().map(|at| since(at, span.end_ns))
}

fn live_after(lines: &[Line], of: &str, from_ns: u64) -> Option<u64> {
    let live = |line: &&Line| {
        line.at_ns >= from_ns
            && matches!(&line.event, Event::Connection { device, state, .. } if device == of && state == "live")
    };
    lines.iter().find(live).map(|line| line.at_ns)
}

fn extra(lines: &[Line], span: &Span) -> Option<f64> {
    let all = messages(lines, &span.device);
    let took = |(sent, committed): &(u64, Option<u64>)| committed.map(|at| since(at, *sent));
    let mut before: Vec<f64> =
        all.iter().filter(|(_, at)| at.is_some_and(|at| at < span.begin_ns)).filter_map(took).collect();
    before.sort_unstable_by(f64::total_cmp);
    let usual = before.get(before.len() / 2)?;
    let next = all.iter().find(|(sent, _)| *sent >= span.begin_ns)?;
    Some((took(next)? - usual).max(0.0))
}

/// From the first event that stands for a message until a device shows it.
fn shown_after(lines: &[Line], of: &str, stands_for: impl Fn(&Event) -> Option<&String>) -> Vec<f64> {
    let mut begun: BTreeMap<&str, u64> = BTreeMap::new();
    let mut times = Vec::new();
    for line in lines {
        if let Some(message) = stands_for(&line.event) {
            begun.entry(message).or_insert(line.at_ns);
        } else if let Event::Shown { device, message, new: true, .. } = &line.event
            && device == of
        {
            times.extend(begun.get(message.as_str()).map(|at| since(line.at_ns, *at)));
        }
    }
    times
}

/// What becomes of each device that was live at the target of a fault when this began.
fn of_cut_off(lines: &[Line], fault: &str, until: impl Fn(&str, u64, &str) -> Option<u64>) -> Vec<f64> {
    let mut values = Vec::new();
    for span in spans(lines, fault) {
        let mut at: BTreeMap<&str, (Option<&str>, Option<&str>)> = BTreeMap::new();
        for line in lines.iter().take_while(|line| line.at_ns < span.begin_ns) {
            if let Event::Connection { device, state, edge, region, .. } = &line.event {
                let place = (edge.as_deref(), region.as_deref());
                at.insert(device, if state == "live" { place } else { (None, None) });
            }
        }
        // Of edges and regions the target has no dot: it is all of the span's "device".
        let target = Some(span.device.as_str());
        let met = at.iter().filter(|(_, (edge, region))| *edge == target || *region == target);
        values.extend(met.map(|(device, _)| {
            until(device, span.begin_ns, &span.device).map_or(f64::INFINITY, |at_ns| since(at_ns, span.begin_ns))
        }));
    }
    values
}

/// Bytes and wake-ups per hour.
fn traffic(lines: &[Line], of: &str) -> Option<(f64, f64)> {
    lines.iter().find_map(|line| match &line.event {
        Event::Traffic { device, up_bytes, down_bytes, wakeups, over_ns, .. } if device == of => {
            let hours = since(*over_ns, 0) / 3600.0;
            Some(((up_bytes + down_bytes) as f64 / hours, *wakeups as f64 / hours))
        }
        _ => None,
    })
}

/// Bytes per hour of an interface.
fn traffic_on(lines: &[Line], link: &str) -> Option<f64> {
    let samples: Vec<_> = lines
        .iter()
        .filter_map(|line| match &line.event {
            Event::Link(sample) if sample.link == link && sample.sent + sample.delivered > 0 => {
                Some((line.at_ns, sample))
            }
            _ => None,
        })
        .collect();
    let (first, last) = (samples.first()?.0, samples.last()?.0);
    let bytes = |sample: &LinkSample| if sample.way == "up" { sample.sent_bytes } else { sample.delivered_bytes };
    let sum: u64 = samples.iter().map(|(_, sample)| bytes(sample)).sum();
    Some(sum as f64 * 3600.0 / since(last, first).max(1.0))
}

/// When a gateway had forgotten a device: interface, since when and until when.
fn forgotten<'a>(lines: &'a [Line], of: &'a str) -> impl Iterator<Item = (&'a str, u64, u64)> {
    lines.iter().filter_map(move |line| match &line.event {
        Event::Forgotten { device, interface, died_ns, again_ns } if device == of => {
            Some((interface.as_str(), *died_ns, *again_ns))
        }
        _ => None,
    })
}

/// One that was never found out is infinitely late.
fn found_in_beats(lines: &[Line], of: &str) -> Vec<f64> {
    let found = |again_ns: u64| {
        lines.iter().filter(|line| line.at_ns >= again_ns).find_map(|line| match &line.event {
            Event::GatewayForgot { device, silence_ns } if device == of => Some((line.at_ns, *silence_ns)),
            _ => None,
        })
    };
    let late = |died_ns: u64, again_ns: u64| {
        let (found_ns, silence_ns) = found(again_ns)?;
        let live_ns = if is_live(lines, of, found_ns) { found_ns } else { live_after(lines, of, found_ns)? };
        Some(since(live_ns, died_ns) / since(silence_ns, 0))
    };
    forgotten(lines, of).map(|(_, died_ns, again_ns)| late(died_ns, again_ns).unwrap_or(f64::INFINITY)).collect()
}

fn is_live(lines: &[Line], of: &str, at_ns: u64) -> bool {
    let before = lines.iter().rev().filter(|line| line.at_ns <= at_ns);
    let state = before.filter_map(|line| match &line.event {
        Event::Connection { device, state, .. } if device == of => Some(state == "live"),
        _ => None,
    });
    state.into_iter().next().unwrap_or(false)
}

/// For each interface of which something is told; none that was never forgotten is left out.
fn forgotten_per_day(lines: &[Line], of: &str) -> Vec<f64> {
    const DAY: u64 = 24 * 3600 * 1_000_000_000;
    let prefix = format!("{of}.");
    let mut days = BTreeMap::new();
    for line in lines {
        if let Event::Link(sample) = &line.event
            && let Some(interface) = sample.link.strip_prefix(&prefix)
        {
            days.entry((interface, line.at_ns / DAY)).or_insert(0.0);
        }
    }
    for (interface, _, again_ns) in forgotten(lines, of) {
        *days.entry((interface, again_ns / DAY)).or_insert(0.0) += 1.0;
    }
    days.into_values().collect()
}

fn moves(lines: &[Line], devices: &str) -> Vec<f64> {
    let meant = |device: &str| devices.strip_suffix('*').map_or(device == devices, |begin| device.starts_with(begin));
    let mut places: BTreeMap<&str, (&str, f64)> = BTreeMap::new();
    for line in lines {
        if let Event::Connection { device, state, edge: Some(edge), .. } = &line.event
            && state == "live"
            && meant(device)
        {
            let place = places.entry(device).or_insert((edge, 0.0));
            if place.0 != edge {
                *place = (edge, place.1 + 1.0);
            }
        }
    }
    places.into_values().map(|(_, moves)| moves).collect()
}

fn peak_over_mean(lines: &[Line], from_ns: u64) -> Option<f64> {
    const SECOND: u64 = 1_000_000_000;
    let mut seen = BTreeSet::new();
    let mut came = Vec::new();
    for line in lines.iter().filter(|line| line.at_ns >= from_ns) {
        if let Event::Connection { device, state, .. } = &line.event
            && state == "live"
            && seen.insert(device)
        {
            came.push(line.at_ns);
        }
    }
    let most_of_them = (came.len() * 19).div_ceil(20);
    let (first, last) = (came.first()?, came.get(most_of_them.checked_sub(1)?)?);
    let mean = most_of_them as f64 / since(*last, *first).max(1.0);
    let most = came.iter().enumerate().map(|(i, at)| came[i..].partition_point(|other| *other < at + SECOND)).max()?;
    Some(most as f64 / mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn live(at_ms: u64, name: &str, edge: &str) -> Line {
        let (device, state) = (name.into(), "live".into());
        let (edge, region) = (Some(edge.into()), Some("eu".into()));
        line(at_ms, Event::Connection { device, state, edge, region, transport: None })
    }

    fn line(at_ms: u64, event: Event) -> Line {
        Line { at_ns: at_ms * MS, event }
    }

    fn invoke(at_ms: u64, message: &str) -> Line {
        let (device, conversation) = ("phone".into(), "a+b".into());
        line(at_ms, Event::Invoke { device, conversation, message: message.into(), bytes: 1 })
    }

    fn commit(at_ms: u64, message: &str) -> Line {
        line(at_ms, Event::Commit { region: "eu".into(), era: None, message: message.into() })
    }

    fn fault(at_ms: u64, phase: FaultPhase) -> Line {
        let (fault, kind, target) = ("dark-1".into(), "outage".into(), "phone.cell".into());
        line(at_ms, Event::Fault { fault, phase, kind, target, hits: 1 })
    }

    fn connection(at_ms: u64, state: &str) -> Line {
        let (device, state) = ("phone".into(), state.into());
        line(at_ms, Event::Connection { device, state, edge: None, region: None, transport: None })
    }

    #[test]
    fn times_count_from_what_the_fault_does() {
        let history = [
            line(100, Event::Start { who: "phone".into() }),
            connection(350, "live"),
            invoke(1000, "phone/1"),
            commit(1040, "phone/1"),
            line(1080, Event::Acked { device: "phone".into(), message: "phone/1".into() }),
            fault(2000, FaultPhase::Begin),
            invoke(2500, "phone/2"),
            invoke(2600, "phone/3"),
            connection(3000, "connecting"),
            fault(7000, FaultPhase::End),
            connection(7100, "live"),
            commit(7400, "phone/2"),
            commit(7400, "phone/3"),
        ];
        let of = |measure: Measure| measure.of(&history);
        assert_eq!(of(Measure::CommittedAfterEnd("dark".into())), [0.4]);
        assert_eq!(of(Measure::LiveAfterBegin("dark".into())), [5.1]);
        assert_eq!(of(Measure::NoticedAfterBegin("dark".into())), [1.0]);
        assert_eq!(of(Measure::LiveAfterStart("phone".into())), [0.25]);
        assert_eq!(of(Measure::ExtraOnNext("dark".into())), [4.9 - 0.04]);
        assert_eq!(of(Measure::CommittedAfterEnd("darkness".into())), [0.0; 0]);
        assert_eq!(round_trip_s(&history), Some(0.08));
    }

    #[test]
    fn devices_that_a_fault_cut_off_are_followed_and_others_are_not() {
        let strike = |at_ms, phase| {
            let (fault, kind, target) = ("edge".into(), "edge-kill".into(), "eu-e2".into());
            line(at_ms, Event::Fault { fault, phase, kind, target, hits: 1 })
        };
        let ack = |at_ms, message: &str| line(at_ms, Event::Acked { device: "phone".into(), message: message.into() });
        let mut history = vec![
            live(100, "phone", "eu-e2"),
            live(100, "pad", "eu-e1"),
            invoke(900, "phone/1"),
            strike(1000, FaultPhase::Begin),
            invoke(1050, "phone/2"),
            connection(1200, "connecting"),
            live(1250, "pad", "eu-e3"),
            live(1300, "phone", "eu-e1"),
            ack(1340, "phone/1"),
            ack(1350, "phone/2"),
            strike(5000, FaultPhase::End),
        ];
        let of = |measure: Measure, history: &[Line]| measure.of(history);
        assert_eq!(of(Measure::CutOffUntilLive("edge".into()), &history), [0.3]);
        assert_eq!(of(Measure::CutOffUntilAcked("edge".into()), &history), [0.35]);
        // Another edge was asked in time, and the device has never been anything but live.
        let moved = [&history[..5], &[live(1300, "phone", "eu-e1"), live(9000, "phone", "eu-e2")]].concat();
        assert_eq!(of(Measure::CutOffUntilLive("edge".into()), &moved), [0.3]);
        history.truncate(6);
        assert_eq!(of(Measure::CutOffUntilLive("edge".into()), &history), [f64::INFINITY]);
        assert_eq!(of(Measure::CutOffUntilAcked("edge".into()), &history), [f64::INFINITY]);
    }

    #[test]
    fn what_a_device_shows_is_measured_from_the_first_decision_the_ack_or_the_sending() {
        let shown = |at_ms, new| {
            let (device, conversation) = ("pad".into(), "a+b".into());
            line(at_ms, Event::Shown { device, conversation, message: "phone/1".into(), new })
        };
        let history = [commit(1000, "phone/1"), commit(1070, "phone/1"), shown(1076, true), shown(1500, false)];
        assert_eq!(Measure::ShownAfterCommit("pad".into()).of(&history), [0.076]);
        assert_eq!(Measure::ShownAfterCommit("phone".into()).of(&history), [0.0; 0]);
        let (device, conversation, message) = ("phone".to_owned(), "a+b".into(), "phone/1".to_owned());
        let acked = line(1005, Event::Acked { device: device.clone(), message: message.clone() });
        let sent = line(990, Event::Invoke { device, conversation, message, bytes: 9 });
        let history = [&[sent], &history[..1], &[acked], &history[2..]].concat();
        assert_eq!(Measure::ShownAfterSend("pad".into()).of(&history), [0.086]);
        assert_eq!(Measure::ShownAfterAck("pad".into()).of(&history), [0.071]);
    }

    #[test]
    fn bytes_of_an_interface_count_from_its_first_packet_to_its_last() {
        let sample = |at_ms: u64, link: &str, way: &str, bytes: u64| {
            let sample = LinkSample {
                link: link.into(),
                way: way.into(),
                sent: 1,
                sent_bytes: bytes,
                delivered: 1,
                delivered_bytes: bytes - 10,
                ..LinkSample::default()
            };
            line(at_ms, Event::Link(Box::new(sample)))
        };
        let history = [
            sample(1_000, "phone.cell", "up", 500),
            sample(901_000, "phone.wifi", "up", 9000),
            sample(1_801_000, "phone.cell", "down", 310),
        ];
        let of = |link: &str| Measure::BytesPerHour(link.into()).of(&history);
        assert_eq!(of("phone.cell"), [1600.0]);
        assert!(of("phone.lan").is_empty());
    }

    #[test]
    fn a_herd_is_measured_against_its_own_mean() {
        let mut history = vec![fault(0, FaultPhase::Begin)];
        let live = |at_ms, number: u64| {
            let mut line = connection(at_ms, "live");
            if let Event::Connection { device, .. } = &mut line.event {
                *device = format!("phone-{number}");
            }
            line
        };
        history.extend((0..10).map(|i| live(1000 + i * 1000, i)));
        history.extend((10..20).map(|i| live(20_000, i)));
        // It changes to something better, and came once all the same.
        history.push(live(60_000, 3));
        let peak = Measure::PeakOverMean("dark".into()).of(&history);
        assert!((peak[0] - 10.0 / (19.0 / 19.0)).abs() < 1e-9, "{peak:?}");
    }

    #[test]
    fn moves_are_counted_by_device() {
        let history = [
            live(10, "herd-1", "eu-e1"),
            live(20, "herd-2", "eu-e1"),
            live(30, "herd-1", "eu-e1"),
            live(40, "herd-1", "us-e1"),
            live(50, "herd-1", "eu-e1"),
            live(60, "phone", "us-e1"),
        ];
        assert_eq!(Measure::Moves("herd-*".into()).of(&history), [2.0, 0.0]);
        assert_eq!(Measure::Moves("phone".into()).of(&history), [0.0]);
    }
}
