//! The history of a run: what happened, in the order in which it happened, one JSON object per line.
//!
//! A history is all that a checker sees, and all that a report is drawn from; so it can be judged again, by a later
//! version or by somebody else, without running anything. Its first line is [`Event::Run`], its last [`Event::End`].
//! Times are nanoseconds of the run's own clock since it began, and never descend.
//!
//! A *message* is named by the run, not by the system under test: `<device>/<count>`, unique in the run and written
//! at the head of the body, so that what is shown can be told apart from what was sent whatever identities the
//! system gives it. A *conversation* is named by the scenario: a group's id, or the two users in order with `+`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::expect::Expect;

/// The version of this form. A reader refuses others.
pub const FORMAT: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When, in nanoseconds since the run began.
    pub at_ns: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run begins. First line.
    Run(Box<Run>),
    /// A phase begins: `load`, then `liveness` (faults are healed, writing goes on), then `quiet` (no more writes).
    Phase {
        /// Which.
        name: String,
    },
    /// A device's app, a region, or an edge runs from now on.
    Start {
        /// Its name.
        who: String,
    },
    /// It does not run any longer.
    Stop {
        /// Its name.
        who: String,
        /// `killed`, `power`, `drained`, `suspended`, `stopped`.
        how: String,
    },
    /// A device's connection is in another state.
    Connection {
        /// Whose.
        device: String,
        /// `offline`, `connecting`, `recovering` or `live`.
        state: String,
        /// Where, if anywhere: the edge.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        edge: Option<String>,
        /// Its region.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<String>,
        /// `quic` or `tcp`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transport: Option<String>,
    },
    /// A device found out that a gateway had forgotten its connection after so much silence.
    GatewayForgot {
        /// Which device.
        device: String,
        /// How long neither side had spoken, in nanoseconds.
        silence_ns: u64,
    },
    /// A device was told whether another user is there.
    Presence {
        /// Which device.
        device: String,
        /// Of whom.
        user: String,
        /// He is there.
        online: bool,
    },
    /// A user pressed send; the device has stored the message. From now on it may be seen.
    Invoke {
        /// By which device.
        device: String,
        /// Where.
        conversation: String,
        /// Which message.
        message: String,
        /// Length of its body.
        bytes: u64,
    },
    /// The device could not even store it: it must never be seen.
    Refused {
        /// By which device.
        device: String,
        /// Which message.
        message: String,
        /// Why.
        reason: String,
    },
    /// The device was told that the message is durable in one region. From now on it must not be lost.
    Acked {
        /// Which device.
        device: String,
        /// Which message.
        message: String,
    },
    /// The device was told that it is durable in a second region.
    Stable {
        /// Which device.
        device: String,
        /// Which message.
        message: String,
    },
    /// The device was told that a region refused the message for good.
    Failed {
        /// Which device.
        device: String,
        /// Which message.
        message: String,
        /// The server's code and words.
        reason: String,
        /// Another region may have taken it before: it may be seen or not.
        maybe: bool,
    },
    /// A region's store has decided on a message: the moment between commit and ack is where the worst faults hit.
    /// Not seen by the real-time driver.
    Commit {
        /// Which region.
        region: String,
        /// Which of its logs, as 16 hex digits: a region that lost what nobody else held begins a new one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        era: Option<String>,
        /// Which message.
        message: String,
    },
    /// A device put a message into a timeline: a user would see it appear. Own messages appear when they are sent, and
    /// are not told here.
    Shown {
        /// On which device.
        device: String,
        /// In which conversation.
        conversation: String,
        /// Which message; text that no load wrote is given as it is.
        message: String,
        /// False: it only changed its place.
        new: bool,
    },
    /// A device removed a user from a group: from now on he need not see what is sent. See [`Event::Learned`] for when
    /// he must not.
    Removed {
        /// From where.
        conversation: String,
        /// Who.
        user: String,
    },
    /// A device added a user to a group that he was no member of; what is sent from now on is for him too.
    Added {
        /// Where.
        conversation: String,
        /// Who.
        user: String,
    },
    /// A device knows now that a user was removed from a group or added, by itself (then this follows at once) or
    /// because it was told. What it sends from now on is not for him, or is. A removal takes effect on arrival, so
    /// without this nothing could be said of what other devices send meanwhile.
    Learned {
        /// Which device.
        device: String,
        /// Of which group.
        conversation: String,
        /// Who.
        user: String,
        /// He was added; otherwise removed.
        member: bool,
    },
    /// A user set something that is one and the same for all who know it. The newest writing counts; which one that is
    /// of several devices' is the system's to say.
    Set {
        /// By which device.
        device: String,
        /// Of which conversation.
        conversation: String,
        /// `title` (for all members) or `muted` (for his own devices).
        what: String,
        /// The new value.
        value: String,
    },
    /// A user erased a message for everyone.
    Erased {
        /// By which device.
        device: String,
        /// Which message.
        message: String,
    },
    /// What a device says in the end of something that was set in the run.
    Setting {
        /// Which device.
        device: String,
        /// Of which conversation.
        conversation: String,
        /// See [`Event::Set`].
        what: String,
        /// Its value there.
        value: String,
    },
    /// A region still stores the content of an erased message in the end.
    Kept {
        /// Which region.
        region: String,
        /// Which message.
        message: String,
    },
    /// A fault begins or ends. One that lasts until the run is over ends just before [`Event::Timeline`]s are told, so
    /// that what it hit is known.
    Fault {
        /// Which, by the scenario.
        fault: String,
        /// Begins, or ends.
        phase: FaultPhase,
        /// `outage`, `region-kill`, ...
        kind: String,
        /// What it hits.
        target: String,
        /// When it ends: how many packets (or, of a node, tasks and stores) it really hit. 0 as it begins.
        hits: u64,
    },
    /// What an access link did since the sample before; at most one a second and link.
    Link(Box<LinkSample>),
    /// What the radio and the network of a device did in the whole run. Told once, at the end.
    Traffic {
        /// Which device.
        device: String,
        /// Bytes that it sent, with headers of IP.
        up_bytes: u64,
        /// Bytes that it received.
        down_bytes: u64,
        /// Packets that it sent.
        up_packets: u64,
        /// Packets that it received.
        down_packets: u64,
        /// How often its radio woke: packets after [`crate::limits::RADIO_TAIL_NS`] of silence.
        wakeups: u64,
        /// How long it was observed, in nanoseconds.
        over_ns: u64,
    },
    /// A gateway had forgotten a device that was using it: what was sent to it was lost until it spoke itself. Told at the
    /// end; virtual time only.
    Forgotten {
        /// Which device.
        device: String,
        /// Its interface.
        interface: String,
        /// Since when, in nanoseconds since the run began.
        died_ns: u64,
        /// Until when, likewise.
        again_ns: u64,
    },
    /// What a device shows of a conversation at the end, top to bottom. One for each that it is a member of.
    Timeline {
        /// Which device.
        device: String,
        /// Which conversation.
        conversation: String,
        /// All messages.
        messages: Vec<String>,
        /// How many its user has not read, and whether the device knows exactly.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unread: Option<(u64, bool)>,
    },
    /// What a region's log holds of a conversation at the end.
    Log {
        /// Which region.
        region: String,
        /// Which conversation.
        conversation: String,
        /// Entries by origin, as text; the same in all regions once they agree.
        heads: String,
        /// A hash over all entries in order.
        digest: String,
    },
    /// What a region's row of a user says of a conversation at the end.
    Row {
        /// Which region.
        region: String,
        /// Whose.
        user: String,
        /// Of which conversation.
        conversation: String,
        /// Everything in it but what is the region's own matter, as text.
        row: String,
    },
    /// Something worth counting happened; see `[sometimes]` of a scenario.
    Sometimes {
        /// What.
        name: String,
        /// How often since the last one of this name.
        count: u64,
    },
    /// Something must not be: a panic, an event that says that messages were lost, a store that does not open.
    Broken {
        /// Who.
        who: String,
        /// What.
        text: String,
    },
    /// How well the real-time driver kept up; told at its end.
    Lateness {
        /// Packets.
        packets: u64,
        /// 50th, 99th percentile and maximum of how late they were delivered, in nanoseconds.
        p50_ns: u64,
        /// See `p50_ns`.
        p99_ns: u64,
        /// See `p50_ns`.
        max_ns: u64,
        /// The shortest delay of a link that carried packets, in nanoseconds.
        delay_ns: u64,
    },
    /// The run is over. Last line; a history without it was cut off.
    End {
        /// Everything had calmed down: nothing waits to be sent, shown or replicated.
        quiet: bool,
        /// What still waited if not.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        waiting: Vec<String>,
        /// Hash over time, ends, protocol and length of all packets, as 16 hex digits; virtual time only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shape: Option<String>,
        /// Packets in all.
        packets: u64,
    },
}

/// Of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultPhase {
    /// From now on.
    Begin,
    /// Until now.
    End,
}

/// What is known before a run begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// [`FORMAT`].
    pub format: u32,
    /// The scenario's name.
    pub scenario: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// Its seed.
    pub seed: u64,
    /// Which point of the scenario's matrix.
    pub point: BTreeMap<String, String>,
    /// `sim` or `tun`.
    pub driver: String,
    /// What replays it.
    pub replay: String,
    /// Version and commit of what was run, as far as it knows them.
    pub version: String,
    /// A bug that was switched on for the run, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutant: Option<String>,
    /// Who takes part.
    pub cast: Cast,
    /// What is expected.
    pub expect: Expect,
    /// What must have happened so often at least, or the run shows nothing.
    pub sometimes: BTreeMap<String, u64>,
}

/// Who takes part in a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cast {
    /// Regions, in order.
    pub regions: Vec<String>,
    /// Edges, with their regions.
    pub edges: BTreeMap<String, String>,
    /// Devices, with their users.
    pub devices: BTreeMap<String, String>,
    /// Conversations, with the users that are members from the beginning.
    pub conversations: BTreeMap<String, Vec<String>>,
    /// Faults that are planned, in the order of the scenario: (id, kind, target).
    pub faults: Vec<(String, String, String)>,
}

/// One direction of an access link during a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkSample {
    /// `alice-phone.cell`.
    pub link: String,
    /// `up` or `down`.
    pub way: String,
    /// Since the sample before, in nanoseconds.
    pub over_ns: u64,
    /// Packets that entered.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that arrived.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Packets that were lost, by cause.
    pub dropped: BTreeMap<String, u64>,
    /// Bytes that wait now.
    pub queue_bytes: u64,
}
