//! Small histories for the tests of checks: each step is a line, a tenth of a second later than the one before.
//!
//! alice (phone, tablet) and carol are in eu, bob (phone, tablet) in us; there are `alice+bob` and the group `team`.

use std::collections::BTreeMap;

use crate::expect::Expect;
use crate::history::{Cast, Event, FORMAT, FaultPhase, Line, Run};
use crate::judge::{Judgement, judge};

const STEP_NS: u64 = 100_000_000;
const DEVICES: [(&str, &str, &str); 5] = [
    ("alice-phone", "alice", "eu"),
    ("alice-tablet", "alice", "eu"),
    ("bob-phone", "bob", "us"),
    ("bob-tablet", "bob", "us"),
    ("carol-phone", "carol", "eu"),
];

/// See the module.
#[derive(Clone)]
pub(crate) struct Example {
    run: Run,
    lines: Vec<Line>,
    now_ns: u64,
    /// Conversation of each message, in order.
    sent: Vec<(String, String)>,
    counts: BTreeMap<String, u32>,
    removed: Vec<(String, String)>,
    standing: Vec<(String, u64)>,
    ended: bool,
}

impl Example {
    pub(crate) fn new() -> Self {
        let strings = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let run = Run {
            format: FORMAT,
            scenario: "example".into(),
            driver: "sim".into(),
            cast: Cast {
                regions: strings(&["eu", "us"]),
                edges: [("eu-e1".into(), "eu".into()), ("us-e1".into(), "us".into())].into(),
                devices: DEVICES.iter().map(|(d, u, _)| ((*d).to_owned(), (*u).to_owned())).collect(),
                conversations: [
                    ("alice+bob".into(), strings(&["alice", "bob"])),
                    ("team".into(), strings(&["alice", "bob", "carol"])),
                ]
                .into(),
                faults: Vec::new(),
            },
            ..Run::default()
        };
        Self {
            run,
            lines: Vec::new(),
            now_ns: 0,
            sent: Vec::new(),
            counts: BTreeMap::new(),
            removed: Vec::new(),
            standing: Vec::new(),
            ended: false,
        }
    }

    /// Everybody is live, and alice's phone has sent one message to bob, which all have seen.
    pub(crate) fn good() -> Self {
        Self::everybody().send("alice-phone", "alice+bob")
    }

    /// As [`Self::good`], with two.
    pub(crate) fn good_pair() -> Self {
        Self::good().send("alice-phone", "alice+bob")
    }

    /// As [`Self::good`], to the group.
    pub(crate) fn good_group() -> Self {
        Self::everybody().send("alice-phone", "team")
    }

    fn everybody() -> Self {
        DEVICES.iter().fold(Self::new().phase("load"), |e, (device, _, region)| e.start(device).live(device, region))
    }

    pub(crate) fn event(mut self, event: Event) -> Self {
        self.now_ns += STEP_NS;
        self.lines.push(Line { at_ns: self.now_ns, event });
        self
    }

    pub(crate) fn then(self, step: impl FnOnce(Self) -> Self) -> Self {
        step(self)
    }

    pub(crate) fn wait(mut self, ns: u64) -> Self {
        self.now_ns += ns;
        self
    }

    pub(crate) fn phase(self, name: &str) -> Self {
        self.event(Event::Phase { name: name.into() })
    }

    pub(crate) fn start(self, who: &str) -> Self {
        self.event(Event::Start { who: who.into() })
    }

    pub(crate) fn stop(self, who: &str, how: &str) -> Self {
        self.event(Event::Stop { who: who.into(), how: how.into() })
    }

    pub(crate) fn connection(self, device: &str, state: &str) -> Self {
        let (device, state) = (device.into(), state.into());
        self.event(Event::Connection { device, state, edge: None, region: None, transport: None })
    }

    /// Without a step: many may become live at once.
    pub(crate) fn live(mut self, device: &str, region: &str) -> Self {
        let (edge, region) = (Some(format!("{region}-e1")), Some(region.into()));
        let event = Event::Connection {
            device: device.into(),
            state: "live".into(),
            edge,
            region,
            transport: Some("quic".into()),
        };
        self.lines.push(Line { at_ns: self.now_ns, event });
        self
    }

    pub(crate) fn invoke(mut self, device: &str, conversation: &str) -> Self {
        let count = self.counts.entry(device.into()).or_default();
        *count += 1;
        let message = format!("{device}/{count}");
        self.sent.push((message.clone(), conversation.into()));
        self.event(Event::Invoke { device: device.into(), conversation: conversation.into(), message, bytes: 80 })
    }

    pub(crate) fn refuse(self, device: &str, message: &str) -> Self {
        let (device, message) = (device.into(), message.into());
        self.event(Event::Refused { device, message, reason: "disk full".into() })
    }

    /// With the era of the region's log.
    pub(crate) fn ack_in(self, message: &str, region: &str, era: Option<&str>) -> Self {
        let device = message.split('/').next().unwrap().to_owned();
        let (region, era, message) = (region.to_owned(), era.map(str::to_owned), message.to_owned());
        self.event(Event::Commit { region, era, message: message.clone() }).event(Event::Acked { device, message })
    }

    pub(crate) fn ack(self, message: &str, region: &str) -> Self {
        self.ack_in(message, region, None)
    }

    pub(crate) fn failed(self, message: &str, maybe: bool) -> Self {
        let device = message.split('/').next().unwrap().to_owned();
        self.event(Event::Failed { device, message: message.into(), reason: "denied".into(), maybe })
    }

    pub(crate) fn shown(self, device: &str, message: &str) -> Self {
        let conversation = self.sent.iter().find(|(m, _)| m == message).map_or("alice+bob", |(_, c)| c).to_owned();
        self.shown_in(device, &conversation, message)
    }

    pub(crate) fn shown_in(self, device: &str, conversation: &str, message: &str) -> Self {
        let (device, conversation, message) = (device.into(), conversation.into(), message.into());
        self.event(Event::Shown { device, conversation, message, new: true })
    }

    pub(crate) fn shown_by(self, device: &str, messages: &[&str]) -> Self {
        messages.iter().fold(self, |e, message| e.shown(device, message))
    }

    pub(crate) fn moved(self, device: &str, message: &str) -> Self {
        let (device, message) = (device.into(), message.into());
        self.event(Event::Shown { device, conversation: "alice+bob".into(), message, new: false })
    }

    /// On all devices of members but its own.
    pub(crate) fn show_everywhere(self, message: &str) -> Self {
        let own = message.split('/').next().unwrap().to_owned();
        let conversation = self.sent.iter().find(|(m, _)| m == message).unwrap().1.clone();
        self.members(&conversation).into_iter().filter(|d| *d != own).fold(self, |e, d| e.shown(&d, message))
    }

    /// From pressing send until all have it.
    pub(crate) fn send(self, device: &str, conversation: &str) -> Self {
        let example = self.invoke(device, conversation);
        let message = example.sent.last().unwrap().0.clone();
        let region = DEVICES.iter().find(|(d, _, _)| *d == device).unwrap().2;
        let stable = Event::Stable { device: device.into(), message: message.clone() };
        example.ack(&message, region).event(stable).show_everywhere(&message)
    }

    /// By alice's phone.
    pub(crate) fn removed(mut self, conversation: &str, user: &str) -> Self {
        self.removed.push((conversation.into(), user.into()));
        self.event(Event::Removed { conversation: conversation.into(), user: user.into() }).event(Event::Learned {
            device: "alice-phone".into(),
            conversation: conversation.into(),
            user: user.into(),
            member: false,
        })
    }

    /// What he missed he gets from elsewhere; he has no timeline in the end.
    pub(crate) fn added(self, conversation: &str, user: &str) -> Self {
        let again = Event::Added { conversation: conversation.into(), user: user.into() };
        self.event(again).then(|mut e| {
            e.removed.retain(|(c, u)| c != conversation || u != user);
            e
        })
    }

    pub(crate) fn planned(mut self, fault: &str) -> Self {
        self.run.cast.faults.push((fault.into(), "outage".into(), "bob-phone".into()));
        self
    }

    pub(crate) fn begin(mut self, fault: &str, kind: &str, target: &str) -> Self {
        if !self.run.cast.faults.iter().any(|(id, _, _)| id == fault) {
            self.run.cast.faults.push((fault.into(), kind.into(), target.into()));
        }
        self.fault(fault, FaultPhase::Begin, 0)
    }

    pub(crate) fn finish(self, fault: &str, hits: u64) -> Self {
        self.fault(fault, FaultPhase::End, hits)
    }

    /// It lasts until the run is over.
    pub(crate) fn stands(mut self, fault: &str, hits: u64) -> Self {
        self.standing.push((fault.into(), hits));
        self
    }

    fn fault(self, id: &str, phase: FaultPhase, hits: u64) -> Self {
        let (fault, kind, target) = self.run.cast.faults.iter().find(|(f, _, _)| f == id).unwrap().clone();
        self.event(Event::Fault { fault, phase, kind, target, hits })
    }

    pub(crate) fn expect(mut self, edit: impl FnOnce(&mut Expect)) -> Self {
        edit(&mut self.run.expect);
        self
    }

    pub(crate) fn may_lose(self, region: &str) -> Self {
        self.expect(|e| e.may_lose = vec![region.into()])
    }

    pub(crate) fn sometimes(mut self, name: &str, count: u64) -> Self {
        self.run.sometimes.insert(name.into(), count);
        self
    }

    fn members(&self, conversation: &str) -> Vec<String> {
        let users = &self.run.cast.conversations[conversation];
        let gone = |user: &str| self.removed.iter().any(|(c, u)| c == conversation && u == user);
        let of = DEVICES.iter().filter(|(_, user, _)| users.iter().any(|u| u == user) && !gone(user));
        of.map(|(device, _, _)| (*device).to_owned()).collect()
    }

    /// All show everything in the order of invocation, all regions agree, and the run is over.
    pub(crate) fn ends_well(self) -> Self {
        let example = self.phase("liveness").phase("quiet");
        let standing = example.standing.clone();
        let mut example = standing.iter().fold(example, |e, (fault, hits)| e.finish(fault, *hits));
        let conversations = example.run.cast.conversations.clone();
        for (conversation, users) in &conversations {
            let all: Vec<String> =
                example.sent.iter().filter(|(_, c)| c == conversation).map(|(m, _)| m.clone()).collect();
            for device in example.members(conversation) {
                let (conversation, messages) = (conversation.clone(), all.clone());
                let told = Event::Timeline { device, conversation, messages, unread: Some((0, true)) };
                example.now_ns -= STEP_NS;
                example = example.event(told);
            }
            for region in ["eu", "us"] {
                let (region, conversation) = (region.to_owned(), conversation.clone());
                let digest = format!("{all:?}");
                example.now_ns -= STEP_NS;
                example = example.event(Event::Log {
                    region: region.clone(),
                    conversation: conversation.clone(),
                    heads: format!("eu:{}", all.len()),
                    digest,
                });
                for user in users {
                    let row = Event::Row {
                        region: region.clone(),
                        user: user.clone(),
                        conversation: conversation.clone(),
                        row: "unread 0".into(),
                    };
                    example.now_ns -= STEP_NS;
                    example = example.event(row);
                }
            }
        }
        for (device, _, _) in DEVICES {
            let over_ns = example.now_ns;
            example = example.event(Event::Traffic {
                device: device.into(),
                up_bytes: 1000,
                down_bytes: 2000,
                up_packets: 10,
                down_packets: 20,
                wakeups: 3,
                over_ns,
            });
            example.now_ns -= STEP_NS;
        }
        example.end()
    }

    pub(crate) fn end(self) -> Self {
        let mut example = self.event(Event::End { quiet: true, waiting: Vec::new(), shape: None, packets: 300 });
        example.ended = true;
        example
    }

    fn over(self) -> Self {
        if self.ended { self } else { self.ends_well() }
    }

    pub(crate) fn edit(mut self, edit: impl FnMut(&mut Line)) -> Self {
        self.lines.iter_mut().for_each(edit);
        self
    }

    pub(crate) fn remove(mut self, what: impl Fn(&Event) -> bool) -> Self {
        self.lines.retain(|line| !what(&line.event));
        self
    }

    fn timeline(self, of: &str, mut edit: impl FnMut(&mut Vec<String>)) -> Self {
        self.over().edit(|line| {
            if let Event::Timeline { device, conversation, messages, .. } = &mut line.event
                && device == of
                && (conversation == "alice+bob" || !messages.is_empty())
            {
                edit(messages);
            }
        })
    }

    pub(crate) fn drop_from_timeline(self, device: &str, message: &str) -> Self {
        self.timeline(device, |all| all.retain(|m| m != message))
    }

    pub(crate) fn swap_in_timeline(self, device: &str, a: usize, b: usize) -> Self {
        self.timeline(device, |all| all.swap(a, b))
    }

    /// At a place, or at the end.
    pub(crate) fn in_timeline(self, device: &str, at: usize, message: &str) -> Self {
        self.timeline(device, |all| all.insert(at.min(all.len()), message.into()))
    }

    /// All that the device tells of what it shows.
    pub(crate) fn drop_timelines(self, of: &str) -> Self {
        self.over().remove(|e| matches!(e, Event::Timeline { device, .. } if device == of))
    }

    pub(crate) fn without_ack(self, id: &str) -> Self {
        self.over().remove(|e| matches!(e, Event::Acked { message, .. } if message == id)).without_stable(id)
    }

    pub(crate) fn without_stable(self, id: &str) -> Self {
        self.over().remove(|e| matches!(e, Event::Stable { message, .. } if message == id))
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut lines = vec![Line { at_ns: 0, event: Event::Run(Box::new(self.run.clone())) }];
        lines.extend(self.lines.iter().cloned());
        lines
    }

    pub(crate) fn judge(&self) -> Judgement {
        judge(&self.clone().over().lines())
    }

    /// Names of the checks that found something, each once.
    pub(crate) fn found(&self) -> Vec<String> {
        let checks: std::collections::BTreeSet<String> = self.judge().findings.into_iter().map(|f| f.check).collect();
        checks.into_iter().collect()
    }
}
