//! A history by what it is about, so that each check asks a short question. How it is read is in `record`.

mod record;

use std::collections::{BTreeMap, BTreeSet};

use crate::history::Run;
use crate::verdict::Verdict;

/// A message that a device sent, or could not even store.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) id: &'a str,
    pub(crate) device: &'a str,
    pub(crate) user: &'a str,
    pub(crate) conversation: &'a str,
    /// Order of invocation over the whole run.
    pub(crate) nth: usize,
    pub(crate) invoked_ns: u64,
    /// Its line's place in the history.
    pub(crate) line: usize,
    /// First ack, and the region to which its device was connected then.
    pub(crate) acked: Option<(u64, Option<&'a str>)>,
    pub(crate) stable_ns: Option<u64>,
    pub(crate) refused_ns: Option<u64>,
    /// When, why, and whether it may be seen all the same.
    pub(crate) failed: Option<(u64, &'a str, bool)>,
    /// Its device did not know for a time whether it failed; meanwhile it held back nothing that was sent later.
    pub(crate) unsure: bool,
    /// Logs in the order in which it was decided on in them.
    pub(crate) commits: Vec<Origin<'a>>,
}

impl<'a> Message<'a> {
    /// Where it was first decided on, as far as the history knows: virtual time tells commits, the real-time driver
    /// only acks.
    pub(crate) fn first_origin(&self) -> Option<Origin<'a>> {
        let acked = || self.acked.and_then(|(_, region)| Some(Origin { region: region?, era: None }));
        self.commits.first().copied().or_else(acked)
    }
}

/// A log: a region, in an era if that is known. Entries of two logs have no order on their way to a third region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) region: &'a str,
    pub(crate) era: Option<&'a str>,
}

impl Origin<'_> {
    /// Whether these are known to be two.
    pub(crate) fn differs_from(&self, other: &Self) -> bool {
        self.region != other.region || matches!((self.era, other.era), (Some(a), Some(b)) if a != b)
    }
}

/// A message appeared in a device's timeline.
#[derive(Debug)]
pub(crate) struct Shown<'a> {
    /// Its line's place in the history.
    pub(crate) line: usize,
    pub(crate) at_ns: u64,
    pub(crate) device: &'a str,
    pub(crate) conversation: &'a str,
    pub(crate) message: &'a str,
    pub(crate) new: bool,
}

/// What a device shows at the end.
#[derive(Debug)]
pub(crate) struct Timeline<'a> {
    pub(crate) at_ns: u64,
    pub(crate) messages: &'a [String],
    pub(crate) unread: Option<(u64, bool)>,
}

/// One time that a fault held.
#[derive(Debug)]
pub(crate) struct Span<'a> {
    pub(crate) fault: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) target: &'a str,
    pub(crate) begin: (usize, u64),
    pub(crate) end: Option<(usize, u64)>,
    pub(crate) hits: u64,
    /// It held when writing was over, so nothing was healed for it.
    pub(crate) standing: bool,
}

/// A state of a device's connection, from a line on.
#[derive(Debug)]
pub(crate) struct Connected<'a> {
    pub(crate) line: usize,
    pub(crate) at_ns: u64,
    pub(crate) state: &'a str,
    pub(crate) edge: Option<&'a str>,
    pub(crate) region: Option<&'a str>,
}

/// What a device's radio and network did.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) up_bytes: u64,
    pub(crate) down_bytes: u64,
    pub(crate) wakeups: u64,
    pub(crate) over_ns: u64,
}

/// How the run ended.
#[derive(Debug)]
pub(crate) struct End<'a> {
    pub(crate) at_ns: u64,
    pub(crate) quiet: bool,
    pub(crate) waiting: &'a [String],
}

/// How late packets were: count, 99th percentile, shortest delay of a link.
#[derive(Debug)]
pub(crate) struct Late {
    pub(crate) packets: u64,
    pub(crate) p99_ns: u64,
    pub(crate) delay_ns: u64,
}

/// A device, a conversation, and a user of whom the device knows whether he is a member.
pub(crate) type Knowing<'a> = (&'a str, &'a str, &'a str);

/// Something that can be set: its conversation, what it is, and whose it is; `None`: of all members.
pub(crate) type Register<'a> = (&'a str, &'a str, Option<&'a str>);

/// By (conversation, what tells it).
pub(crate) type Told<'a, T> = BTreeMap<&'a str, BTreeMap<&'a str, T>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) run: &'a Run,
    pub(crate) last_ns: u64,
    pub(crate) end: Option<End<'a>>,
    /// In order, with their beginnings.
    pub(crate) phases: Vec<(u64, &'a str)>,
    pub(crate) messages: BTreeMap<&'a str, Message<'a>>,
    pub(crate) shown: Vec<Shown<'a>>,
    /// By conversation and device.
    pub(crate) timelines: Told<'a, Timeline<'a>>,
    /// By conversation and region: heads and digest.
    pub(crate) logs: Told<'a, (&'a str, &'a str)>,
    /// By (user, conversation) and region.
    pub(crate) rows: BTreeMap<(&'a str, &'a str), BTreeMap<&'a str, &'a str>>,
    pub(crate) spans: Vec<Span<'a>>,
    /// By device.
    pub(crate) connections: BTreeMap<&'a str, Vec<Connected<'a>>>,
    /// What does not run when the final state is told.
    pub(crate) stopped: BTreeSet<&'a str>,
    /// By conversation and user: from when until when he was a member.
    pub(crate) members: Told<'a, Vec<(u64, u64)>>,
    /// By (device, conversation, user): since which line the device knows that he is a member, or is none.
    pub(crate) learned: BTreeMap<Knowing<'a>, Vec<(usize, bool)>>,
    /// By what was set: by which device, and to what, in order.
    pub(crate) set: BTreeMap<Register<'a>, Vec<(&'a str, &'a str)>>,
    /// By what was set and device: what it says in the end.
    pub(crate) settings: BTreeMap<Register<'a>, BTreeMap<&'a str, &'a str>>,
    /// Messages that were erased, with the moment.
    pub(crate) erased: BTreeMap<&'a str, u64>,
    /// (region, message) of erased ones whose content is still there.
    pub(crate) kept: Vec<(&'a str, &'a str)>,
    pub(crate) traffic: BTreeMap<&'a str, Traffic>,
    /// By device and user: whether he is there, as it was told, and when.
    pub(crate) presences: BTreeMap<(&'a str, &'a str), Vec<(u64, bool)>>,
    pub(crate) sometimes: BTreeMap<&'a str, u64>,
    pub(crate) lateness: Option<Late>,
    pub(crate) broken: Vec<(u64, &'a str, &'a str)>,
}

impl<'a> Facts<'a> {
    /// When a phase began.
    pub(crate) fn phase_ns(&self, name: &str) -> Option<u64> {
        self.phases.iter().find(|(_, n)| *n == name).map(|(at_ns, _)| *at_ns)
    }

    /// Whose a device is.
    pub(crate) fn user(&self, device: &str) -> &'a str {
        self.run.cast.devices.get(device).map_or("", String::as_str)
    }

    /// State of a device's connection just before a line.
    pub(crate) fn connected(&self, device: &str, line: usize) -> Option<&Connected<'a>> {
        let all = self.connections.get(device)?;
        all.partition_point(|c| c.line < line).checked_sub(1).and_then(|i| all.get(i))
    }

    /// Whether a device was live by one and the same connection all the time, as far as it is known; of one whose
    /// connection was never told nothing is. A connection that is replaced in one step is another one.
    pub(crate) fn live_throughout(&self, device: &str, from_ns: u64, until_ns: u64) -> bool {
        let Some(all) = self.connections.get(device) else { return true };
        let first = all.partition_point(|c| c.at_ns < from_ns).saturating_sub(1);
        let mut within = all.iter().skip(first).take_while(|c| c.at_ns <= until_ns);
        within.next().is_none_or(|c| c.state == "live") && within.next().is_none()
    }

    /// Whether a user became a member of a conversation in a time that begins just after its first moment.
    pub(crate) fn became_member(&self, conversation: &str, user: &str, from_ns: u64, until_ns: u64) -> bool {
        let spans = self.members.get(conversation).and_then(|users| users.get(user));
        spans.is_some_and(|spans| spans.iter().any(|(begin, _)| from_ns < *begin && *begin <= until_ns))
    }

    /// Whether a user was a member of a conversation at some time until a moment.
    pub(crate) fn was_member(&self, conversation: &str, user: &str, until_ns: u64) -> bool {
        let spans = self.members.get(conversation).and_then(|users| users.get(user));
        spans.and_then(|spans| spans.first()).is_some_and(|(begin, _)| *begin <= until_ns)
    }

    /// Whether the machine was too slow for the run: what it says of times is worth nothing then.
    pub(crate) fn late(&self) -> bool {
        self.lateness.as_ref().is_some_and(|l| l.p99_ns > l.delay_ns / crate::limits::LATENESS_SHARE)
    }

    /// What is meant by a thing that a device sets: what is called `title` is one for all members.
    pub(crate) fn register(&self, device: &str, conversation: &'a str, what: &'a str) -> Register<'a> {
        (conversation, what, (what != "title").then(|| self.user(device)))
    }

    /// What a missed limit of time makes of the run.
    pub(crate) fn too_slow(&self) -> Verdict {
        if self.late() { Verdict::Invalid } else { Verdict::Fail }
    }

    /// Whether a message's device knew as it sent it that a user is no member.
    pub(crate) fn knew_him_gone(&self, message: &Message<'_>, user: &str) -> bool {
        let told = self.learned.get(&(message.device, message.conversation, user));
        let known = told.and_then(|told| told.iter().rev().find(|(line, _)| *line < message.line));
        known.is_some_and(|(_, member)| !member)
    }

    /// Devices that must show a message of a user's conversation: those of users that were members from before its
    /// invocation until the end.
    pub(crate) fn owed(&self, message: &Message<'_>) -> impl Iterator<Item = (&'a str, &'a str)> {
        let invoked_ns = message.invoked_ns;
        let members = self.members.get(message.conversation);
        self.run
            .cast
            .devices
            .iter()
            .filter(move |(_, user)| {
                let spans = members.and_then(|m| m.get(user.as_str()));
                spans.and_then(|s| s.last()).is_some_and(|(from, until)| *from <= invoked_ns && *until == u64::MAX)
            })
            .map(|(device, user)| (device.as_str(), user.as_str()))
    }
}
