//! One pass over the lines of a history.
//!
//! Nothing is judged here but the form: names that the cast does not have, an ack of what was never sent, a time that
//! descends. A history of such a kind was made by a faulty driver, and whatever a check said of it would be about the
//! driver; so no check sees it (see [`crate::judge()`]).

use std::collections::{BTreeMap, BTreeSet};

use super::{Connected, End, Facts, Late, Message, Origin, Shown, Span, Timeline, Told, Traffic};
use crate::findings::{Findings, names};
use crate::history::{Event, FORMAT, FaultPhase, Line, Run};
use crate::verdict::Verdict;

impl<'a> Facts<'a> {
    /// Reads all lines. `None`, with the reason among the findings, if the form is wrong. A missing end is no reason:
    /// [`Facts::end`] is `None` then.
    pub(crate) fn of(lines: &'a [Line], findings: &mut Findings) -> Option<Self> {
        let mut form = Form { findings, wrong: false };
        let Some(Line { event: Event::Run(run), .. }) = lines.first() else {
            form.wrong(0, || "the history does not begin with what was run".into());
            return None;
        };
        if run.format != FORMAT {
            form.wrong(0, || format!("the history has format {}, not {FORMAT}", run.format));
            return None;
        }
        let mut facts = Self::empty(run);
        // What starts and stops as the final state is told does so because the run is over.
        let final_state = |line: &&Line| {
            matches!(
                line.event,
                Event::Timeline { .. }
                    | Event::Log { .. }
                    | Event::Row { .. }
                    | Event::Traffic { .. }
                    | Event::Forgotten { .. }
                    | Event::Setting { .. }
                    | Event::End { .. }
            )
        };
        let wrap_up_ns = lines.iter().find(final_state).map_or(u64::MAX, |line| line.at_ns);
        let mut before_ns = 0;
        for (number, line) in lines.iter().enumerate().skip(1) {
            if line.at_ns < before_ns {
                form.wrong(line.at_ns, || format!("line {}: time descends", number + 1));
            }
            if facts.end.is_some() {
                form.wrong(line.at_ns, || format!("line {}: something follows the end", number + 1));
            }
            before_ns = line.at_ns;
            facts.take(number, line, line.at_ns >= wrap_up_ns, &mut form);
        }
        facts.last_ns = before_ns;
        let quiet = facts.phase_ns("quiet").unwrap_or(u64::MAX);
        for span in &mut facts.spans {
            span.standing = span.end.is_none_or(|(_, end_ns)| end_ns > quiet);
        }
        // What one region refused and another had taken did not fail.
        for message in facts.messages.values_mut() {
            message.failed = message.failed.filter(|(failed_ns, _, maybe)| {
                !(*maybe && message.acked.is_some_and(|(acked_ns, _)| acked_ns >= *failed_ns))
            });
        }
        (!form.wrong).then_some(facts)
    }

    fn empty(run: &'a Run) -> Self {
        let mut members: Told<'a, Vec<(u64, u64)>> = BTreeMap::new();
        for (conversation, users) in &run.cast.conversations {
            let of = members.entry(conversation).or_default();
            of.extend(users.iter().map(|user| (user.as_str(), vec![(0, u64::MAX)])));
        }
        Self {
            run,
            last_ns: 0,
            end: None,
            phases: Vec::new(),
            messages: BTreeMap::new(),
            shown: Vec::new(),
            timelines: BTreeMap::new(),
            logs: BTreeMap::new(),
            rows: BTreeMap::new(),
            spans: Vec::new(),
            connections: BTreeMap::new(),
            stopped: BTreeSet::new(),
            members,
            learned: BTreeMap::new(),
            set: BTreeMap::new(),
            settings: BTreeMap::new(),
            erased: BTreeMap::new(),
            kept: Vec::new(),
            traffic: BTreeMap::new(),
            presences: BTreeMap::new(),
            sometimes: BTreeMap::new(),
            lateness: None,
            broken: Vec::new(),
        }
    }

    fn take(&mut self, number: usize, line: &'a Line, telling: bool, form: &mut Form<'_>) {
        let at_ns = line.at_ns;
        match &line.event {
            Event::Run(_) => form.wrong(at_ns, || format!("line {}: a second run begins", number + 1)),
            Event::Phase { name } => self.phases.push((at_ns, name)),
            Event::Start { who } => {
                self.known(at_ns, who, form);
                if !telling {
                    self.stopped.remove(who.as_str());
                }
            }
            Event::Stop { who, .. } => {
                self.known(at_ns, who, form);
                if !telling {
                    self.stopped.insert(who);
                }
            }
            Event::Connection { device, state, edge, region, .. } => {
                self.device(at_ns, device, form);
                if let Some(region) = region {
                    self.region(at_ns, region, form);
                }
                for edge in edge.iter().filter(|e| !self.run.cast.edges.contains_key(*e)) {
                    form.unknown(at_ns, "edge", edge);
                }
                let (edge, region) = (edge.as_deref(), region.as_deref());
                let now = Connected { line: number, at_ns, state, edge, region };
                if !telling {
                    self.connections.entry(device).or_default().push(now);
                }
            }
            Event::Invoke { .. } | Event::Refused { .. } => self.sent((number, at_ns), &line.event, form),
            Event::Acked { device, message } => {
                let region = self.connected(device, number).and_then(|c| c.region);
                if let Some(message) = self.own(at_ns, device, message, form) {
                    message.acked.get_or_insert((at_ns, region));
                }
            }
            Event::Stable { device, message } => {
                if let Some(message) = self.own(at_ns, device, message, form) {
                    message.stable_ns.get_or_insert(at_ns);
                }
            }
            Event::Failed { device, message, reason, maybe } => {
                if let Some(message) = self.own(at_ns, device, message, form) {
                    message.unsure |= maybe;
                    if message.failed.is_none_or(|(_, _, before)| before && !maybe) {
                        message.failed = Some((at_ns, reason, *maybe));
                    }
                }
            }
            Event::Commit { region, era, message } => {
                self.region(at_ns, region, form);
                // Of something that nobody sent: a phantom, once it is seen.
                if let Some(message) = self.messages.get_mut(message.as_str()) {
                    message.commits.push(Origin { region, era: era.as_deref() });
                }
            }
            Event::Shown { device, conversation, message, new } => {
                self.device(at_ns, device, form);
                self.conversation(at_ns, conversation, form);
                self.shown.push(Shown { line: number, at_ns, device, conversation, message, new: *new });
            }
            Event::Added { conversation, user } => {
                self.conversation(at_ns, conversation, form);
                let spans = self.members.entry(conversation).or_default().entry(user).or_default();
                if spans.last().is_none_or(|(_, end)| *end != u64::MAX) {
                    spans.push((at_ns, u64::MAX));
                }
            }
            Event::Removed { conversation, user } => {
                self.conversation(at_ns, conversation, form);
                let spans = self.members.entry(conversation).or_default().entry(user).or_default();
                if let Some(last) = spans.last_mut() {
                    last.1 = last.1.min(at_ns);
                }
            }
            Event::Learned { device, conversation, user, member } => {
                self.device(at_ns, device, form);
                self.conversation(at_ns, conversation, form);
                self.learned.entry((device, conversation, user)).or_default().push((number, *member));
            }
            Event::Set { device, conversation, what, value } => {
                self.device(at_ns, device, form);
                self.conversation(at_ns, conversation, form);
                let register = self.register(device, conversation, what);
                self.set.entry(register).or_default().push((device, value));
            }
            Event::Setting { device, conversation, what, value } => {
                self.device(at_ns, device, form);
                self.conversation(at_ns, conversation, form);
                let register = self.register(device, conversation, what);
                self.settings.entry(register).or_default().insert(device, value);
            }
            Event::Erased { device, message } => {
                self.device(at_ns, device, form);
                if self.messages.contains_key(message.as_str()) {
                    self.erased.entry(message).or_insert(at_ns);
                } else {
                    form.wrong(at_ns, || format!("{device} erases {message}, which was never invoked"));
                }
            }
            Event::Kept { region, message } => {
                self.region(at_ns, region, form);
                self.kept.push((region, message));
            }
            Event::Fault { fault, phase, kind, target, hits } => {
                self.fault((number, at_ns), fault, *phase, (kind, target, *hits), form);
            }
            Event::Link(_) => {}
            Event::GatewayForgot { device, .. } | Event::Forgotten { device, .. } => self.device(at_ns, device, form),
            Event::Presence { device, user, online } => {
                self.device(at_ns, device, form);
                self.presences.entry((device, user)).or_default().push((at_ns, *online));
            }
            Event::Traffic { device, up_bytes, down_bytes, wakeups, over_ns, .. } => {
                self.device(at_ns, device, form);
                let told =
                    Traffic { up_bytes: *up_bytes, down_bytes: *down_bytes, wakeups: *wakeups, over_ns: *over_ns };
                self.traffic.insert(device, told);
            }
            Event::Timeline { device, conversation, messages, unread } => {
                self.device(at_ns, device, form);
                self.conversation(at_ns, conversation, form);
                let told = Timeline { at_ns, messages, unread: *unread };
                self.timelines.entry(conversation).or_default().insert(device, told);
            }
            Event::Log { region, conversation, heads, digest } => {
                self.region(at_ns, region, form);
                self.conversation(at_ns, conversation, form);
                self.logs.entry(conversation).or_default().insert(region, (heads, digest));
            }
            Event::Row { region, user, conversation, row } => {
                self.region(at_ns, region, form);
                self.conversation(at_ns, conversation, form);
                if !self.run.cast.devices.values().any(|u| u == user) {
                    form.unknown(at_ns, "user", user);
                }
                self.rows.entry((user, conversation)).or_default().insert(region, row);
            }
            Event::Sometimes { name, count } => *self.sometimes.entry(name).or_default() += count,
            Event::Broken { who, text } => self.broken.push((at_ns, who, text)),
            Event::Lateness { packets, p99_ns, delay_ns, .. } => {
                self.lateness = Some(Late { packets: *packets, p99_ns: *p99_ns, delay_ns: *delay_ns });
            }
            Event::End { quiet, waiting, .. } => self.end = Some(End { at_ns, quiet: *quiet, waiting }),
        }
    }

    fn sent(&mut self, (line, at_ns): (usize, u64), event: &'a Event, form: &mut Form<'_>) {
        match event {
            Event::Invoke { device, conversation, message, .. } => {
                self.device(at_ns, device, form);
                self.conversation(at_ns, conversation, form);
                let nth = self.messages.len();
                let sent = Message {
                    id: message,
                    device,
                    user: self.user(device),
                    conversation,
                    nth,
                    invoked_ns: at_ns,
                    line,
                    acked: None,
                    stable_ns: None,
                    refused_ns: None,
                    failed: None,
                    unsure: false,
                    commits: Vec::new(),
                };
                if self.messages.insert(message, sent).is_some() {
                    form.wrong(at_ns, || format!("{message} is invoked twice"));
                }
            }
            Event::Refused { device, message, .. } => {
                self.device(at_ns, device, form);
                let nth = self.messages.len();
                let user = self.user(device);
                let refused = self.messages.entry(message).or_insert(Message {
                    id: message,
                    device,
                    user,
                    conversation: "",
                    nth,
                    invoked_ns: at_ns,
                    line,
                    acked: None,
                    stable_ns: None,
                    refused_ns: None,
                    failed: None,
                    unsure: false,
                    commits: Vec::new(),
                });
                refused.refused_ns = Some(at_ns);
            }
            _ => {}
        }
    }

    fn fault(
        &mut self,
        begin: (usize, u64),
        fault: &'a str,
        phase: FaultPhase,
        what: (&'a str, &'a str, u64),
        form: &mut Form<'_>,
    ) {
        if !self.run.cast.faults.iter().any(|(id, _, _)| id == fault) {
            form.unknown(begin.1, "fault", fault);
        }
        let (kind, target, hits) = what;
        let open = self.spans.iter_mut().rev().find(|s| s.fault == fault && s.end.is_none());
        match (phase, open) {
            (FaultPhase::Begin, None) => {
                self.spans.push(Span { fault, kind, target, begin, end: None, hits: 0, standing: false });
            }
            (FaultPhase::End, Some(span)) => {
                span.end = Some(begin);
                span.hits = hits;
            }
            (FaultPhase::Begin, Some(_)) => form.wrong(begin.1, || format!("fault {fault} begins twice")),
            (FaultPhase::End, None) => form.wrong(begin.1, || format!("fault {fault} ends before it begins")),
        }
    }

    /// A message of which a device was told something.
    fn own(&mut self, at_ns: u64, device: &str, id: &str, form: &mut Form<'_>) -> Option<&mut Message<'a>> {
        let Some(message) = self.messages.get_mut(id) else {
            form.wrong(at_ns, || format!("{device} is told of its message {id}, which was never invoked"));
            return None;
        };
        if message.device != device {
            let owner = message.device;
            form.wrong(at_ns, || format!("{device} is told of {id}, which is a message of {owner}"));
        }
        Some(message)
    }

    fn known(&self, at_ns: u64, who: &str, form: &mut Form<'_>) {
        let cast = &self.run.cast;
        if !cast.devices.contains_key(who) && !cast.edges.contains_key(who) && !cast.regions.iter().any(|r| r == who) {
            form.unknown(at_ns, "device, edge or region", who);
        }
    }

    fn device(&self, at_ns: u64, name: &str, form: &mut Form<'_>) {
        if !self.run.cast.devices.contains_key(name) {
            form.unknown(at_ns, "device", name);
        }
    }

    fn region(&self, at_ns: u64, name: &str, form: &mut Form<'_>) {
        if !self.run.cast.regions.iter().any(|r| r == name) {
            form.unknown(at_ns, "region", name);
        }
    }

    fn conversation(&self, at_ns: u64, name: &str, form: &mut Form<'_>) {
        if !self.run.cast.conversations.contains_key(name) {
            form.unknown(at_ns, "conversation", name);
        }
    }
}

/// Notes what is wrong with the form.
struct Form<'f> {
    findings: &'f mut Findings,
    wrong: bool,
}

impl Form<'_> {
    fn wrong(&mut self, at_ns: u64, text: impl FnOnce() -> String) {
        self.wrong = true;
        self.findings.add("history", Verdict::Invalid, at_ns, text);
    }

    fn unknown(&mut self, at_ns: u64, what: &str, name: &str) {
        self.wrong(at_ns, || format!("no {what} of the cast is named {}", names([name])));
    }
}
