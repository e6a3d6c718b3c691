//! What a run is judged by: what was handed over, acked, made stable and shown, against what every device
//! shows at the end. `demo` and the tests that kill processes use it.
//!
//! Judging is pure and pessimistic: it knows nothing of regions, kills or times, only what was promised and
//! what is there. A run is a [`History`]: facts as devices tell them while it runs (they may die in between,
//! so a fact counts once it was told, and its absence proves nothing), and timelines read when it is over.
//!
//! - *Lost*: acked, and missing on a device of the conversation, the sender's own included.
//! - *Duplicated*: more than once in a timeline, or told as new more than once to the same device.
//! - *Out of order*: a sender's count descends on a device, or two devices disagree about an order.
//! - *Phantom*: shown or told, though nobody sent it, or though its sender was told that it is refused.
//! - *Vanished*: told as shown, and not in that device's timeline at the end.
//!
//! Refused messages and those given up before they were stable are counted apart: nobody was promised more.
//!
//! [`Finding`] names each fault for the person who looks for its cause, [`Totals`] counts.

mod fact;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use fact::{Fact, NotAFact, What};

/// A message of a conversation: who sent it, and which of his it is there, from 1, in the order of sending.
pub type Message = (String, u64);

/// What devices did and showed in one conversation.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Handed to the SDK.
    pub sent: BTreeSet<Message>,
    /// Durable in a region.
    pub acked: BTreeSet<Message>,
    /// Durable in a second region.
    pub stable: BTreeSet<Message>,
    /// Refused for good, as their senders were told.
    pub refused: BTreeSet<Message>,
    /// Given up by their sender's device before they were stable.
    pub at_risk: BTreeSet<Message>,
    /// By device: what it was told is new, in the order told. Own messages need not be in it.
    pub told: BTreeMap<String, Vec<Message>>,
    /// By device: its final timeline, in order of display. A device that is not in it is not judged.
    pub timelines: BTreeMap<String, Vec<Message>>,
}

/// The conversations of a run, by a name.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Each is judged for itself.
    pub conversations: BTreeMap<String, Conversation>,
}

/// A fault, and where it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which kind.
    pub fault: Fault,
    /// On which device.
    pub device: String,
    /// Which message.
    pub message: Message,
}

/// Kinds of faults; the module says what each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Acked and missing.
    Lost,
    /// There twice.
    Duplicated,
    /// At the wrong place.
    OutOfOrder,
    /// From nowhere.
    Phantom,
    /// Shown and gone.
    Vanished,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::OutOfOrder => "out of order",
            Self::Phantom => "phantom",
            Self::Vanished => "vanished",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {} at {}", self.fault, self.message.0, self.message.1, self.device)
    }
}

/// The last line of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Handed to the SDK.
    pub sent: usize,
    /// Durable in a region.
    pub acked: usize,
    /// Durable in a second region.
    pub stable: usize,
    /// Sent, and shown on every other device of its conversation.
    pub shown: usize,
    /// Acked, and not shown on every device.
    pub lost: usize,
    /// Copies too many.
    pub duplicated: usize,
    /// Shown at the wrong place.
    pub out_of_order: usize,
    /// Shown, and never sent.
    pub phantom: usize,
    /// Told as shown, and gone.
    pub vanished: usize,
    /// Refused for good.
    pub refused: usize,
    /// Given up before they were stable.
    pub at_risk: usize,
}

impl Totals {
    /// Whether no promise was broken, whatever is still on its way.
    pub fn is_faultless(&self) -> bool {
        [self.lost, self.duplicated, self.out_of_order, self.phantom, self.vanished].iter().all(|n| *n == 0)
    }

    /// Whether the promise holds and the run is complete: no fault, and everything sent (but what was refused)
    /// has arrived and is held by a second region.
    pub fn pass(&self) -> bool {
        let accepted = self.sent - self.refused.min(self.sent);
        self.is_faultless()
            && self.acked == accepted
            && self.shown == accepted
            && self.stable + self.at_risk == accepted
    }

    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.stable += other.stable;
        self.shown += other.shown;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.phantom += other.phantom;
        self.vanished += other.vanished;
        self.refused += other.refused;
        self.at_risk += other.at_risk;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sent {}  acked {}  stable {}  shown {}  lost {}  duplicated {}  out of order {}",
            self.sent, self.acked, self.stable, self.shown, self.lost, self.duplicated, self.out_of_order
        )?;
        // What is rare is named only where there is some.
        let rare = [
            ("phantom", self.phantom),
            ("vanished", self.vanished),
            ("refused", self.refused),
            ("at risk", self.at_risk),
        ];
        rare.iter().filter(|(_, n)| *n > 0).try_for_each(|(what, n)| write!(f, "  {what} {n}"))
    }
}

impl History {
    /// Takes a fact that `device` told.
    pub fn note(&mut self, device: &str, fact: Fact) {
        let conversation = self.conversations.entry(fact.conversation).or_default();
        let set = match fact.what {
            What::Sending => &mut conversation.sent,
            What::Acked => &mut conversation.acked,
            What::Stable => &mut conversation.stable,
            What::Refused => &mut conversation.refused,
            What::AtRisk => &mut conversation.at_risk,
            What::Shown => {
                conversation.told.entry(device.to_owned()).or_default().push(fact.message);
                return;
            }
        };
        set.insert(fact.message);
    }

    /// Counts over all conversations.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.conversations.values().for_each(|c| totals.add(&c.totals()));
        totals
    }

    /// All faults, with the conversation's name.
    pub fn findings(&self) -> Vec<(&str, Finding)> {
        let of = |(name, c): (_, &Conversation)| c.findings().into_iter().map(move |f| (name, f)).collect::<Vec<_>>();
        self.conversations.iter().flat_map(|(name, c)| of((name.as_str(), c))).collect()
    }
}

impl Conversation {
    /// All faults.
    pub fn findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut add = |fault, device: &str, message: &Message| {
            found.push(Finding { fault, device: device.to_owned(), message: message.clone() });
        };
        for (device, shown) in &self.timelines {
            let held: BTreeSet<&Message> = shown.iter().collect();
            let told = self.told.get(device).map_or(&[][..], Vec::as_slice);
            self.acked.iter().filter(|m| !held.contains(m)).for_each(|m| add(Fault::Lost, device, m));
            repeated(shown).for_each(|m| add(Fault::Duplicated, device, m));
            repeated(told).for_each(|m| add(Fault::Duplicated, device, m));
            descents(shown).iter().for_each(|m| add(Fault::OutOfOrder, device, m));
            let claimed: BTreeSet<&Message> = told.iter().chain(shown).collect();
            // Its sender's device shows a refused message as refused, which is no lie.
            let is_refused = |m: &Message| m.0 != *device && self.is_refused(m);
            let phantoms = claimed.iter().filter(|m| !self.sent.contains(**m) || is_refused(m));
            phantoms.for_each(|m| add(Fault::Phantom, device, m));
            let told: BTreeSet<&Message> = told.iter().collect();
            told.iter().filter(|m| !held.contains(*m)).for_each(|m| add(Fault::Vanished, device, m));
        }
        for (device, message) in self.disagreements() {
            add(Fault::OutOfOrder, device, message);
        }
        found
    }

    /// Counts.
    pub fn totals(&self) -> Totals {
        let findings = self.findings();
        let count = |fault| findings.iter().filter(|f| f.fault == fault).count();
        // One message that two devices lack is lost once.
        let lost: BTreeSet<&Message> = findings.iter().filter(|f| f.fault == Fault::Lost).map(|f| &f.message).collect();
        let held: BTreeMap<&str, BTreeSet<&Message>> =
            self.timelines.iter().map(|(device, shown)| (device.as_str(), shown.iter().collect())).collect();
        let elsewhere = |m: &Message| held.iter().all(|(device, held)| *device == m.0 || held.contains(m));
        Totals {
            sent: self.sent.len(),
            acked: self.acked.len(),
            stable: self.stable.len(),
            shown: self.sent.iter().filter(|m| elsewhere(m)).count(),
            lost: lost.len(),
            duplicated: count(Fault::Duplicated),
            out_of_order: count(Fault::OutOfOrder),
            phantom: count(Fault::Phantom),
            vanished: count(Fault::Vanished),
            refused: self.refused.iter().filter(|m| self.is_refused(m)).count(),
            at_risk: self.at_risk.difference(&self.stable).count(),
        }
    }

    /// Refused, and not taken after all when it was tried again.
    fn is_refused(&self, message: &Message) -> bool {
        self.refused.contains(message) && !self.acked.contains(message)
    }

    /// Neighbours on one device that another device shows the other way round: that device, and the later one.
    fn disagreements(&self) -> Vec<(&str, &Message)> {
        let firsts: Vec<(&str, Vec<&Message>)> =
            self.timelines.iter().map(|(device, shown)| (device.as_str(), first_copies(shown))).collect();
        let mut found = Vec::new();
        for (i, (_, one)) in firsts.iter().enumerate() {
            for (device, other) in &firsts[i + 1..] {
                let places: BTreeMap<&Message, usize> = other.iter().enumerate().map(|(at, m)| (*m, at)).collect();
                let common: Vec<(usize, &Message)> =
                    one.iter().filter_map(|m| places.get(m).map(|at| (*at, *m))).collect();
                let turned = common.windows(2).filter(|pair| pair[0].0 > pair[1].0);
                found.extend(turned.map(|pair| (*device, pair[1].1)));
            }
        }
        found
    }
}

fn first_copies(shown: &[Message]) -> Vec<&Message> {
    let mut seen = BTreeSet::new();
    shown.iter().filter(|m| seen.insert(*m)).collect()
}

/// Further copies.
fn repeated(shown: &[Message]) -> impl Iterator<Item = &Message> {
    let mut seen = BTreeSet::new();
    shown.iter().filter(move |m| !seen.insert(*m))
}

/// Messages shown after a later one of the same sender.
fn descents(shown: &[Message]) -> Vec<&Message> {
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut found = Vec::new();
    for message in first_copies(shown) {
        let newest = newest.entry(&message.0).or_default();
        if message.1 < *newest {
            found.push(message);
        }
        *newest = (*newest).max(message.1);
    }
    found
}
