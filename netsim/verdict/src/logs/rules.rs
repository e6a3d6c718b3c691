//! The rules, one function each. All work on one conversation.

use std::collections::{BTreeMap, BTreeSet};

use super::{LogFault, LogFinding, LogHistory, LogJudgement, Outcome, Reading, Regions, Sending, Spot};

/// An acked message.
struct Acked<'a> {
    sending: &'a Sending,
    returned_ns: u64,
    spot: &'a Spot,
}

/// A conversation, sorted.
struct Log<'a> {
    name: &'a str,
    regions: Regions,
    /// By the time of sending.
    sendings: Vec<&'a Sending>,
    acked: Vec<Acked<'a>>,
    /// By the time of the answer.
    readings: Vec<&'a Reading>,
    findings: BTreeSet<LogFinding>,
}

pub(super) fn judge(history: &LogHistory, regions: Regions) -> LogJudgement {
    let names: BTreeSet<&str> = history
        .sendings
        .iter()
        .map(|sending| sending.log.as_str())
        .chain(history.readings.iter().map(|reading| reading.log.as_str()))
        .collect();
    let mut judgement = LogJudgement { sent: history.sendings.len(), ..LogJudgement::default() };
    for name in names {
        let mut log = Log::of(history, name, regions);
        log.lost();
        log.counts();
        log.shown();
        log.stable();
        log.late();
        log.in_time();
        log.in_turn();
        log.phantoms();
        judgement.acked += log.acked.len();
        judgement.unread += log.unread();
        judgement.findings.extend(log.findings);
    }
    judgement.findings.sort();
    judgement
}

/// A count of an origin.
fn count(spot: &Spot) -> (&str, u64) {
    (&spot.origin, spot.seq)
}

fn words(spot: &Spot) -> String {
    format!("{} of {}", spot.seq, spot.origin)
}

fn named(message: Option<&str>) -> String {
    message.unwrap_or("an entry that is no message").to_owned()
}

/// Up to which count of each origin a reading says what there is: a device may hold newer entries already while older
/// ones are on their way, so of it only what has no hole counts.
fn heads(reading: &Reading) -> BTreeMap<&str, u64> {
    let mut heads: BTreeMap<&str, u64> = BTreeMap::new();
    let held: BTreeSet<(&str, u64)> = reading.entries.iter().map(|(spot, _)| count(spot)).collect();
    for (origin, seq) in held {
        let head = heads.entry(origin).or_default();
        if reading.is_whole || seq == *head + 1 {
            *head = seq;
        }
    }
    heads
}

impl<'a> Log<'a> {
    fn of(history: &'a LogHistory, name: &'a str, regions: Regions) -> Self {
        let mut sendings: Vec<&Sending> = history.sendings.iter().filter(|sending| sending.log == name).collect();
        sendings.sort_by_key(|sending| sending.invoked_ns);
        let acked = sendings
            .iter()
            .filter_map(|sending| match &sending.outcome {
                Outcome::Acked { returned_ns, spot } => Some(Acked { sending, returned_ns: *returned_ns, spot }),
                Outcome::Refused | Outcome::Unknown => None,
            })
            .collect();
        let mut readings: Vec<&Reading> = history.readings.iter().filter(|reading| reading.log == name).collect();
        readings.sort_by_key(|reading| reading.returned_ns);
        Self { name, regions, sendings, acked, readings, findings: BTreeSet::new() }
    }

    fn find(&mut self, fault: LogFault, what: impl Into<String>, against: impl Into<String>) {
        let (what, against) = (what.into(), against.into());
        self.findings.insert(LogFinding { fault, log: self.name.to_owned(), what, against });
    }

    fn findings(&mut self, fault: LogFault, found: Vec<(String, String)>) {
        found.into_iter().for_each(|(what, against)| self.find(fault, what, against));
    }

    /// Acked messages that no whole reading began after.
    fn unread(&self) -> usize {
        let last = self.readings.iter().filter(|reading| reading.is_whole).map(|reading| reading.invoked_ns).max();
        self.acked.iter().filter(|acked| last.is_none_or(|last| last <= acked.returned_ns)).count()
    }

    fn lost(&mut self) {
        let mut found = Vec::new();
        for reading in self.readings.iter().filter(|reading| reading.is_whole) {
            let held: BTreeSet<&str> = reading.entries.iter().filter_map(|(_, message)| message.as_deref()).collect();
            let before = self.acked.iter().filter(|acked| acked.returned_ns < reading.invoked_ns);
            let missing = before.filter(|acked| !held.contains(acked.sending.message.as_str()));
            found.extend(missing.map(|acked| (acked.sending.message.clone(), format!("read by {}", reading.client))));
        }
        self.findings(LogFault::Lost, found);
    }

    /// Whose each count is: one message's, whoever tells.
    fn counts(&mut self) {
        let acks = self.acked.iter().map(|acked| (acked.spot, Some(acked.sending.message.as_str())));
        let read = self.readings.iter().flat_map(|reading| &reading.entries);
        let mut owners: BTreeMap<(&str, u64), Option<&str>> = BTreeMap::new();
        let mut found = Vec::new();
        for (spot, message) in acks.chain(read.map(|(spot, message)| (spot, message.as_deref()))) {
            let owner = owners.entry(count(spot)).or_insert(message);
            if *owner != message {
                found.push((words(spot), format!("{} and {}", named(*owner), named(message))));
            }
        }
        self.findings(LogFault::Taken, found);
    }

    /// What each reading is worth alone.
    fn shown(&mut self) {
        let spots: BTreeMap<&str, &Spot> =
            self.acked.iter().map(|acked| (acked.sending.message.as_str(), acked.spot)).collect();
        let (mut doubled, mut moved, mut holes, mut disordered) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for reading in &self.readings {
            let by = || format!("read by {}", reading.client);
            let mut seen = BTreeSet::new();
            for (spot, message) in &reading.entries {
                let Some(message) = message.as_deref() else { continue };
                if !seen.insert(message) {
                    doubled.push((message.to_owned(), by()));
                }
                let acked = spots.get(message).filter(|acked| count(acked) != count(spot));
                if let Some(acked) = acked.filter(|_| self.regions == Regions::One) {
                    moved.push((message.to_owned(), format!("acked as {}, {} as {}", words(acked), by(), words(spot))));
                }
            }
            let turned = reading.entries.windows(2).filter(|pair| pair[0].0 >= pair[1].0);
            disordered.extend(turned.map(|pair| (words(&pair[1].0), by())));
            if self.regions == Regions::One {
                let held: BTreeSet<(&str, u64)> = reading.entries.iter().map(|(spot, _)| count(spot)).collect();
                for (origin, head) in heads(reading).into_iter().filter(|_| reading.is_whole) {
                    let lacking = (1..head).filter(|seq| !held.contains(&(origin, *seq)));
                    holes.extend(lacking.map(|seq| (format!("{seq} of {origin}"), by())));
                }
                // Clocks rise with counts.
                let mut in_order: Vec<&Spot> = reading.entries.iter().map(|(spot, _)| spot).collect();
                in_order.sort_by_key(|spot| count(spot));
                let fell = in_order.windows(2).filter(|pair| pair[0].origin == pair[1].origin);
                let fell = fell.filter(|pair| pair[0].hlc >= pair[1].hlc);
                disordered.extend(fell.map(|pair| (words(pair[1]), "its clock is not above the one before".into())));
            }
        }
        self.findings(LogFault::Doubled, doubled);
        self.findings(LogFault::Moved, moved);
        self.findings(LogFault::Hole, holes);
        self.findings(LogFault::Disordered, disordered);
    }

    /// Successive readings: the later one has what the earlier had, and below its heads nothing else.
    fn stable(&mut self) {
        let (mut changed, mut shrunk) = (Vec::new(), Vec::new());
        // What readings that had returned showed: of all, and of each client; heads, and everything below them.
        let mut by_start: Vec<&Reading> = self.readings.clone();
        by_start.sort_by_key(|reading| reading.invoked_ns);
        let mut waiting = self.readings.iter().copied().peekable();
        let mut known: BTreeMap<&str, Known<'_>> = BTreeMap::new();
        for reading in by_start {
            while let Some(done) = waiting.next_if(|done| done.returned_ns < reading.invoked_ns) {
                known.entry("").or_default().learn(done);
                known.entry(done.client.as_str()).or_default().learn(done);
            }
            let held: BTreeSet<(&str, u64)> = reading.entries.iter().map(|(spot, _)| count(spot)).collect();
            let messages: BTreeSet<&str> =
                reading.entries.iter().filter_map(|(_, message)| message.as_deref()).collect();
            // A device may be behind others, never behind itself; who asks the log is behind nobody.
            let reference = known.get(if reading.is_whole { "" } else { reading.client.as_str() });
            if let Some(reference) = reference {
                let gone = reference.messages.iter().filter(|message| !messages.contains(**message));
                shrunk.extend(gone.map(|message| ((*message).to_owned(), format!("read by {}", reading.client))));
            }
            if let Some(all) = known.get("").filter(|_| self.regions == Regions::One) {
                let below = held.iter().filter(|(origin, seq)| all.heads.get(origin).is_some_and(|head| seq <= head));
                let new = below.filter(|at| !all.counts.contains(at));
                let by = || format!("read by {}, and not before", reading.client);
                changed.extend(new.map(|(origin, seq)| (format!("{seq} of {origin}"), by())));
            }
        }
        self.findings(LogFault::Changed, changed);
        self.findings(LogFault::Shrunk, shrunk);
    }

    /// Acked below a head that a reading had shown, by then, without it.
    fn late(&mut self) {
        if self.regions == Regions::Several {
            return;
        }
        let mut acked: Vec<&Acked<'_>> = self.acked.iter().collect();
        acked.sort_by_key(|acked| acked.returned_ns);
        let mut found = Vec::new();
        let mut known = Known::default();
        let mut readings = self.readings.iter().peekable();
        for acked in acked {
            while let Some(reading) = readings.next_if(|reading| reading.returned_ns < acked.returned_ns) {
                known.learn(reading);
            }
            let (origin, seq) = count(acked.spot);
            if known.heads.get(origin).is_some_and(|head| seq <= *head) && !known.counts.contains(&(origin, seq)) {
                found.push((acked.sending.message.clone(), words(acked.spot)));
            }
        }
        self.findings(LogFault::Late, found);
    }

    /// If one was acked before another was sent, it has the lower count.
    fn in_time(&mut self) {
        let mut by_count: Vec<&Acked<'_>> = self.acked.iter().collect();
        by_count.sort_by_key(|acked| count(acked.spot));
        let mut found = Vec::new();
        // From the highest count down: the earliest answer among the higher counts of the origin.
        let mut earliest: Option<&Acked<'_>> = None;
        for acked in by_count.into_iter().rev() {
            if earliest.is_some_and(|other| other.spot.origin != acked.spot.origin) {
                earliest = None;
            }
            if let Some(other) = earliest.filter(|other| other.returned_ns < acked.sending.invoked_ns) {
                let against = format!("{} was acked as {} before", other.sending.message, words(other.spot));
                found.push((acked.sending.message.clone(), against));
            }
            if earliest.is_none_or(|other| acked.returned_ns < other.returned_ns) {
                earliest = Some(acked);
            }
        }
        self.findings(LogFault::OutOfTime, found);
    }

    /// A client's messages stand in the order in which it sent them.
    fn in_turn(&mut self) {
        let mut highest: BTreeMap<(&str, &str), &Acked<'_>> = BTreeMap::new();
        let mut found = Vec::new();
        for acked in &self.acked {
            let of = (acked.sending.client.as_str(), acked.spot.origin.as_str());
            match highest.get(&of) {
                Some(other) if other.spot.seq > acked.spot.seq => {
                    found.push((acked.sending.message.clone(), format!("after {}", other.sending.message)));
                }
                _ => drop(highest.insert(of, acked)),
            }
        }
        self.findings(LogFault::OutOfTurn, found);
    }

    fn phantoms(&mut self) {
        let sent: BTreeMap<&str, &Sending> =
            self.sendings.iter().map(|sending| (sending.message.as_str(), *sending)).collect();
        let mut found = Vec::new();
        for reading in &self.readings {
            for message in reading.entries.iter().filter_map(|(_, message)| message.as_deref()) {
                let why = match sent.get(message) {
                    None => "nobody sent it",
                    Some(sending) if sending.outcome == Outcome::Refused => "it was refused",
                    Some(sending) if sending.invoked_ns > reading.returned_ns => "it was sent later",
                    Some(_) => continue,
                };
                found.push((message.to_owned(), format!("read by {}; {why}", reading.client)));
            }
        }
        self.findings(LogFault::Phantom, found);
    }
}

/// What readings have shown so far.
#[derive(Default)]
struct Known<'a> {
    heads: BTreeMap<&'a str, u64>,
    counts: BTreeSet<(&'a str, u64)>,
    messages: BTreeSet<&'a str>,
}

impl<'a> Known<'a> {
    fn learn(&mut self, reading: &'a Reading) {
        for (origin, seq) in heads(reading) {
            let head = self.heads.entry(origin).or_default();
            *head = seq.max(*head);
        }
        for (spot, message) in &reading.entries {
            self.counts.insert(count(spot));
            self.messages.extend(message.as_deref());
        }
    }
}
