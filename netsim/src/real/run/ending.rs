//! The end of a run: whether all is calm, what devices show, and how well the machine kept up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tern_netsim_link::Counts;
use tern_netsim_verdict::{Event, FaultPhase, Line, LinkSample};

use super::super::device::monotonic_ns;
use super::super::error::RealError;
use super::super::protocol::Order;
use super::super::seat::Seat;
use super::super::topology::nodes;
use super::{Due, Run, nanos};
use crate::limits::{CALM_FOR, LINKS_SAMPLED, LOOK_EVERY, SAMPLE_EVERY};
use crate::stage::app::settings;
use crate::stage::ending::{cause, members, since};

impl Run {
    /// Asks all apps that are open and awake how things stand, and waits for their answers.
    pub(super) fn look(&mut self) -> Result<(), RealError> {
        let (all, set) = (members(&self.plan), settings(&self.plan));
        let asked = |label: &String| -> Vec<String> {
            set.iter().filter(|(of, _)| of == label).map(|(_, what)| (*what).to_owned()).collect()
        };
        for device in &self.plan.devices {
            let awake = !self.rig.holding.paused(&self.plan, &device.id);
            let Some(seat) = self.seats.get_mut(&device.id).filter(|seat| awake && seat.is_open()) else { continue };
            let of = all.iter().filter(|(_, members)| members.contains(&device.user));
            let of = of.map(|(label, _)| (label.clone(), asked(label)));
            seat.standing = None;
            seat.order(&Order::Look(of.collect()));
        }
        let deadline_ns = monotonic_ns() + nanos(LOOK_EVERY);
        while monotonic_ns() < deadline_ns && self.awake().any(|(_, seat)| seat.standing.is_none()) {
            self.listen(Duration::from_nanos(deadline_ns.saturating_sub(monotonic_ns())))?;
        }
        Ok(())
    }

    /// Apps that are open and not suspended.
    pub(super) fn awake(&self) -> impl Iterator<Item = (&String, &Seat)> {
        self.seats.iter().filter(|(device, seat)| seat.is_open() && !self.rig.holding.paused(&self.plan, device))
    }

    /// What still waits, by the last look.
    pub(super) fn waiting(&self) -> Vec<String> {
        let mut waiting: Vec<String> = Vec::new();
        let mut lengths: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for node in nodes(&self.plan).iter().filter(|node| !self.serving.contains(&node.name)) {
            if !self.rig.holding.down(&self.plan, &node.name) {
                waiting.push(format!("{} does not serve yet", node.name));
            }
        }
        for (device, seat) in self.awake() {
            match &seat.standing {
                None => waiting.push(format!("{device} does not answer")),
                Some(standing) if !standing.calm => waiting.push(standing.words.clone()),
                Some(standing) => {
                    for (label, shown) in &standing.shown {
                        match shown {
                            Ok(shown) => drop(lengths.entry(label).or_default().insert(device, shown.messages.len())),
                            Err(text) => waiting.push(format!("{device} can't show {label}: {text}")),
                        }
                    }
                }
            }
        }
        for (label, of) in lengths {
            let distinct: BTreeSet<usize> = of.values().copied().collect();
            if distinct.len() > 1 {
                waiting.push(format!("devices differ in how much they show of {label}: {of:?}"));
            }
        }
        waiting
    }

    /// Waits until nothing is on its way any more. Whether that came to be, and what was waiting if not.
    pub(super) fn calm_down(&mut self) -> Result<(bool, Vec<String>), RealError> {
        let until_ns = self.now_ns().saturating_add(self.plan.liveness.within_ns);
        let mut calm_since: Option<u64> = None;
        loop {
            let now_ns = self.now_ns();
            self.look()?;
            let waiting = self.waiting();
            if waiting.is_empty() {
                let since_ns = *calm_since.get_or_insert(now_ns);
                if now_ns.saturating_sub(since_ns) >= nanos(CALM_FOR) {
                    return Ok((true, Vec::new()));
                }
            } else {
                calm_since = None;
                if now_ns >= until_ns {
                    return Ok((false, waiting));
                }
            }
            self.run_until(now_ns.saturating_add(nanos(LOOK_EVERY)))?;
        }
    }

    /// One look at each access link.
    pub(super) fn sample(&mut self) -> Result<(), RealError> {
        let now_ns = self.now_ns();
        let interfaces =
            self.plan.devices.iter().take(LINKS_SAMPLED).flat_map(|device| {
                device.interfaces.iter().map(|interface| (device.id.clone(), interface.name.clone()))
            });
        for (device, name) in interfaces.collect::<Vec<_>>() {
            let link = format!("{device}.{name}");
            let counts = self.lab.with(move |fabric, _| fabric.access_counts(&device, &name))??;
            let (up_bytes, down_bytes) = counts.queued_bytes;
            for (up, counts, queue_bytes) in [(true, counts.up, up_bytes), (false, counts.down, down_bytes)] {
                let so_far = so_far(&link, up, now_ns, &counts, queue_bytes);
                let before = self.samples.insert((link.clone(), up), so_far.clone()).unwrap_or_default();
                let sample = since(&before, so_far);
                if sample.sent > 0 || sample.delivered > 0 || sample.queue_bytes > 0 || before.queue_bytes > 0 {
                    self.book.tell(now_ns, Event::Link(Box::new(sample)));
                }
            }
        }
        if !self.over {
            self.add(now_ns + nanos(SAMPLE_EVERY), Due::Sample);
        }
        Ok(())
    }

    /// Tells what everybody shows, and how well the machine kept up; and ends the history.
    pub(super) fn finish(mut self, quiet: bool, waiting: Vec<String>) -> Result<Vec<Line>, RealError> {
        for number in self.rig.holding.0.clone() {
            let fault = self.plan.faults[number].clone();
            if let Some(hits) = self.rig.lift(&self.lab, &self.plan, number)? {
                let (now_ns, phase) = (self.now_ns(), FaultPhase::End);
                let (fault, kind, target) = (fault.id, fault.kind, fault.target);
                self.book.tell(now_ns, Event::Fault { fault, phase, kind, target, hits });
            }
        }
        self.sample()?;
        let now_ns = self.now_ns();
        for device in &self.plan.devices {
            let id = device.id.clone();
            let traffic = self.lab.with(move |fabric, _| fabric.traffic(&id))??;
            self.book.tell(
                now_ns,
                Event::Traffic {
                    device: device.id.clone(),
                    up_bytes: traffic.up_bytes,
                    down_bytes: traffic.down_bytes,
                    up_packets: traffic.up_packets,
                    down_packets: traffic.down_packets,
                    wakeups: traffic.wakeups,
                    over_ns: now_ns,
                },
            );
        }
        for (device, seat) in &self.seats {
            for (conversation, shown) in seat.standing.iter().flat_map(|standing| &standing.shown) {
                let (device, conversation) = (device.clone(), conversation.clone());
                let event = match shown {
                    Ok(shown) => Event::Timeline {
                        device,
                        conversation,
                        messages: shown.messages.clone(),
                        unread: Some(shown.unread),
                    },
                    Err(text) => Event::Broken { who: device, text: format!("{conversation}: {text}") },
                };
                self.book.tell(now_ns, event);
            }
            for (conversation, shown) in seat.standing.iter().flat_map(|standing| &standing.shown) {
                for (what, value) in shown.iter().flat_map(|shown| &shown.settings) {
                    let (device, conversation) = (device.clone(), conversation.clone());
                    let (what, value) = (what.clone(), value.clone());
                    self.book.tell(now_ns, Event::Setting { device, conversation, what, value });
                }
            }
        }
        let dropped = self.lab.dropped_before_read()?;
        let (errors, first) = self.lab.kernel_errors()?;
        for text in [
            (dropped > 0).then(|| format!("{dropped} packets were dropped before the links saw them")),
            (errors > 0).then(|| format!("{errors} errors; the first: {}", first.unwrap_or_default())),
        ]
        .into_iter()
        .flatten()
        {
            self.book.tell(now_ns, Event::Broken { who: "the lab".into(), text });
        }
        let late = self.lab.lateness()?;
        let (p50_ns, p99_ns, max_ns, delay_ns) = (late.p50_ns, late.p99_ns, late.max_ns, late.delay_ns);
        self.book.tell(now_ns, Event::Lateness { packets: late.packets, p50_ns, p99_ns, max_ns, delay_ns });
        let packets = self.lab.with(|fabric, _| fabric.packets())?;
        Ok(self.book.finish(now_ns, Event::End { quiet, waiting, shape: None, packets }))
    }
}

fn so_far(link: &str, up: bool, now_ns: u64, counts: &Counts, queue_bytes: u64) -> LinkSample {
    LinkSample {
        link: link.to_owned(),
        way: if up { "up" } else { "down" }.to_owned(),
        over_ns: now_ns,
        sent: counts.sent,
        sent_bytes: counts.sent_bytes,
        delivered: counts.delivered,
        delivered_bytes: counts.delivered_bytes,
        dropped: counts.dropped.iter().map(|(why, count)| (cause(*why), *count)).collect(),
        queue_bytes,
    }
}
