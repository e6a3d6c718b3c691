//! A scenario with nothing left to decide: one seed, one point of its matrix, everything a driver needs, as data.
//!
//! What a seed decides is decided here: each number that a scenario gives as a range is drawn by the key (seed, kind of
//! thing, its id, field), so that leaving one fault out changes no other. Times are nanoseconds since the run began,
//! sizes bytes. All names that are mentioned exist, all links can be run, no anchor is part of a cycle.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tern_netsim_link::{HandOver, LinkSpec, NatSpec, Outage, Spec};
use tern_netsim_verdict::Expect;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The scenario's name.
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// Where it was read from.
    pub file: PathBuf,
    /// The seed.
    pub seed: u64,
    /// The point of the matrix.
    pub point: BTreeMap<String, String>,
    /// Loads run and faults begin until then.
    pub duration_ns: u64,
    /// Afterwards.
    pub liveness: Liveness,
    /// Of the whole deployment.
    pub options: Options,
    /// At least one.
    pub regions: Vec<RegionPlan>,
    /// Latency, and perhaps more, between regions and places. Each unordered pair once.
    pub paths: Vec<PathPlan>,
    /// At least one. Those that the scenario gives by a count are written out.
    pub devices: Vec<DevicePlan>,
    /// Groups, made before the load begins.
    pub groups: Vec<GroupPlan>,
    /// What is written.
    pub loads: Vec<LoadPlan>,
    /// What users and operators do besides writing.
    pub actions: Vec<ActionPlan>,
    /// In the order of the scenario.
    pub faults: Vec<FaultPlan>,
    /// Limits.
    pub expect: Expect,
    /// Must have happened so often.
    pub sometimes: BTreeMap<String, u64>,
}

/// What happens when the load is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// What is healed, restarted and resumed at [`Plan::duration_ns`].
    pub heal: Heal,
    /// So long after that everything must have calmed down, or the run is not quiet.
    pub within_ns: u64,
}

/// Of faults without an end, or whose end lies later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heal {
    /// All faults end.
    All,
    /// Faults of regions, edges and the paths between regions end; those of devices stay.
    Core,
    /// All stay: what is expected must come true in spite of them.
    Nothing,
}

/// Of the whole deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// After so long a silence of a region, clients offer their messages elsewhere.
    pub reoffer_after_ns: u64,
    /// Heartbeat of an app in the foreground.
    pub heartbeat_ns: u64,
    /// Of a forced write.
    pub disk_sync_ns: u64,
    /// Of a read.
    pub disk_read_ns: u64,
}

/// A region.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionPlan {
    /// `eu`; also the name of its place.
    pub name: String,
    /// 1-255.
    pub number: u8,
    /// Latitude and longitude in degrees, north and east positive.
    pub at: (f64, f64),
    /// Edges that are processes of their own, `eu-e2`, `eu-e3`...; the region's process itself has `eu-e1`.
    pub edges: u8,
}

/// Between two regions or places, both ways.
#[derive(Clone, Debug, PartialEq)]
pub struct PathPlan {
    /// One end.
    pub a: String,
    /// The other.
    pub b: String,
    /// One way.
    pub latency_ns: u64,
    /// With it, a link with rate, queue and faults; its delay counts, and `latency_ns` repeats it. `a` sends on `up`.
    pub link: Option<LinkSpec>,
}

/// A device with one app of one user.
#[derive(Clone, Debug, PartialEq)]
pub struct DevicePlan {
    /// `alice-phone`.
    pub id: String,
    /// `alice`.
    pub user: String,
    /// Where it is: a place of [`Plan::paths`].
    pub place: String,
    /// At least one; the first is used at the beginning. Addresses are such that the shipped GeoIP file puts them
    /// where the place is.
    pub interfaces: Vec<InterfacePlan>,
    /// When its app is first opened.
    pub starts_ns: u64,
    /// The region whose dispatch it asks first.
    pub dispatch: String,
}

/// A way of a device into the network.
#[derive(Clone, Debug, PartialEq)]
pub struct InterfacePlan {
    /// `cell`, `wifi`.
    pub name: String,
    /// Name of the profile or trace, for humans.
    pub profile: String,
    /// The access link; `up` is the device's.
    pub link: LinkSpec,
    /// The device's address on it; behind a NAT a private one.
    pub address: Ipv4Addr,
    /// The NAT behind the access link, and its outside address.
    pub nat: Option<(NatSpec, Ipv4Addr)>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// `team`.
    pub id: String,
    /// The device that makes it.
    pub creator: String,
    /// Users, the creator's included.
    pub members: Vec<String>,
}

/// To whom something is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// To a user, in the direct conversation.
    User(String),
    /// To a group.
    Group(String),
}

/// One device writes.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadPlan {
    /// Keys its randomness.
    pub id: String,
    /// Who writes.
    pub from: String,
    /// To whom.
    pub to: Target,
    /// The mean time between two messages.
    pub every_ns: u64,
    /// Times are exponentially distributed (a Poisson process); otherwise all are the same.
    pub poisson: bool,
    /// Lengths of bodies.
    pub size: Size,
    /// From when.
    pub from_ns: u64,
    /// Until when.
    pub until_ns: u64,
    /// At most so many.
    pub count: Option<u64>,
}

/// How long messages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Always so long.
    Fixed(u32),
    /// Uniform, both ends included.
    Uniform(u32, u32),
    /// By Zipf's law with exponent 1 between both: mostly short, sometimes long.
    Zipf(u32, u32),
}

/// Something that a user or an operator does.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionPlan {
    /// When.
    pub when: When,
    /// Which device does it.
    pub device: String,
    /// What.
    pub what: Action,
}

/// See [`ActionPlan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Reads everything of a conversation.
    Read(Target),
    /// Reads everything of all conversations at once.
    ReadAll,
    /// Mutes a conversation for ever.
    Mute(Target),
    /// Mutes it no longer.
    Unmute(Target),
    /// Erases for everyone the newest own message of a conversation that a server has acknowledged, if there is one.
    Erase(Target),
    /// Looks at the app from now on, or not any longer.
    Foreground(bool),
    /// The system says that the network costs money, or that it does not. Of another network nothing is said at first.
    Metered(bool),
    /// The system puts the app away, which closes its connection, or takes it out again.
    Away(bool),
    /// Wants to know from now on whether another user is there.
    Watch(String),
    /// Gives a group a title.
    Title {
        /// Which.
        group: String,
        /// Its title from now on.
        title: String,
    },
    /// Adds a user to a group.
    Add {
        /// Which.
        group: String,
        /// Whom.
        user: String,
    },
    /// Removes a user from a group.
    Remove {
        /// Which.
        group: String,
        /// Whom.
        user: String,
    },
}

/// A fault.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    /// Unique.
    pub id: String,
    /// As the scenario names it: `outage`, `region-kill`...
    pub kind: String,
    /// As the scenario names it.
    pub target: String,
    /// When it begins.
    pub when: When,
    /// How long it lasts; `None`: until it is healed, or for what has no end (a hand-over), at once.
    pub lasts_ns: Option<u64>,
    /// What it does.
    pub effect: Effect,
}

/// When something happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// At this moment.
    At(u64),
    /// So long after a fault began or ended. Never, if that fault never did.
    After {
        /// Its id.
        fault: String,
        /// Began, or ended.
        end: bool,
        /// Nanoseconds later.
        by_ns: u64,
    },
    /// With something that the system does. Never, if it does not. Virtual time only.
    On {
        /// What.
        trigger: Trigger,
        /// Nanoseconds later; 0 is before the system does anything else.
        by_ns: u64,
    },
}

/// The n-th time that something happens for which the rest holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// From 1.
    pub nth: u64,
    /// What happens.
    pub moment: Moment,
    /// Moments of the same message that must have passed (true) or not (false).
    pub given: Vec<(Moment, bool)>,
    /// Only messages of this device, or moments of it.
    pub device: Option<String>,
}

/// What the system does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// `send.invoked`: a device stored a message of its own.
    Invoked,
    /// `send.committed`: a region's store decided on it.
    Committed,
    /// `send.acked`: its device was told.
    Acked,
    /// `send.stable`: its device was told that a second region has it.
    Stable,
    /// `send.shown`: it was put into a timeline of another device.
    Shown,
    /// `device.live`: a device became live.
    Live,
    /// `device.recovering`: a device was let in, and asks for what it missed.
    Recovering,
}

/// Which directions of a link or path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// From the device, or from the path's first end.
    pub up: bool,
    /// The other way.
    pub down: bool,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// An access link is dark.
    LinkOutage {
        /// Whose.
        device: String,
        /// Which; all of the device if `None`.
        interface: Option<String>,
        /// Directions.
        ways: Ways,
        /// How.
        outage: Outage,
    },
    /// An access link is another one.
    LinkChange {
        /// Whose.
        device: String,
        /// Which; all of the device if `None`.
        interface: Option<String>,
        /// Directions.
        ways: Ways,
        /// As what is changed.
        change: Patch,
    },
    /// A path between regions or places loses everything.
    PathCut {
        /// First end.
        a: String,
        /// Second end.
        b: String,
        /// `up`: from a to b.
        ways: Ways,
    },
    /// A path is another one.
    PathChange {
        /// First end.
        a: String,
        /// Second end.
        b: String,
        /// `up`: from a to b.
        ways: Ways,
        /// As what is changed.
        change: Patch,
    },
    /// What an access network does not let through.
    Block {
        /// Whose.
        device: String,
        /// On this interface only.
        interface: Option<String>,
        /// What.
        what: Blocked,
    },
    /// A device goes to another interface.
    HandOver {
        /// Which.
        device: String,
        /// To which; the present one again if `None`.
        to: Option<String>,
        /// How.
        how: HandOver,
    },
    /// An interface gets another address (behind a NAT: the NAT does).
    NewAddress {
        /// Whose.
        device: String,
        /// Which; the one in use if `None`.
        interface: Option<String>,
    },
    /// The NAT of an interface forgets everything, and gives other ports.
    NatRebind {
        /// Whose.
        device: String,
        /// Which; the one in use if `None`.
        interface: Option<String>,
    },
    /// The app is killed; at the end it is opened again.
    AppKill {
        /// Whose.
        device: String,
    },
    /// The system suspends the app; at the end it goes on.
    Suspend {
        /// Whose.
        device: String,
    },
    /// The core node of a region, and its own edge with it.
    Region {
        /// Which.
        region: String,
        /// What becomes of it; at the end it is started, or goes on.
        how: Down,
    },
    /// An edge that is a process of its own.
    Edge {
        /// `eu-e2`.
        edge: String,
        /// What becomes of it; at the end it is started, or goes on.
        how: Down,
    },
    /// The calendar clock of a node or device is wrong.
    Clock {
        /// A region's, edge's or device's name.
        node: String,
        /// It jumps by so much at the beginning, and back at the end.
        step_ms: i64,
        /// And runs too fast by so many parts per million meanwhile.
        drift_ppm: i32,
    },
    /// A disk is slow.
    Disk {
        /// Whose.
        region: String,
        /// Of a forced write.
        sync_ns: u64,
    },
}

/// What an access network does not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// Datagrams.
    Udp,
    /// Streams.
    Tcp,
    /// A captive portal: datagrams are lost, and whatever stream is opened, somebody takes it and never answers.
    Captive,
    /// A middlebox: datagrams are lost, and so are streams that do not begin as TLS that offers HTTP.
    AllButWeb {
        /// Streams are cut at this age.
        longest_ns: Option<u64>,
    },
}

/// How a node goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// Its process is killed. What was not synced to disk is lost, or survives.
    Kill {
        /// Lost.
        lose_unsynced: bool,
    },
    /// Its host has no power: nobody is told, and what was not synced is lost.
    Power,
    /// No power, and when it comes back its disk is empty.
    Destroy,
    /// It goes on, and when the fault ends it dies and starts again on its disk as that was at the beginning.
    Rewind,
    /// It stands still, and then goes on as if nothing were.
    Pause,
    /// It is stopped as an operator does: an edge sends its clients elsewhere.
    Drain,
}

/// What is changed of each direction that is meant; the rest stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// All of it.
    pub link: Option<Box<LinkSpec>>,
    /// Rate.
    pub rate: Option<tern_netsim_link::Rate>,
    /// Additional delay.
    pub delay_ns: Option<u64>,
    /// Jitter.
    pub jitter: Option<tern_netsim_link::Jitter>,
    /// Losses.
    pub loss: Option<tern_netsim_link::Loss>,
    /// Duplicates.
    pub duplicate: Option<tern_netsim_link::Chance>,
    /// Packets held back.
    pub reorder: Option<tern_netsim_link::Reorder>,
    /// Flipped bits.
    pub corrupt: Option<tern_netsim_link::Corrupt>,
    /// The longest packet.
    pub mtu: Option<tern_netsim_link::Mtu>,
    /// What waits.
    pub queue: Option<tern_netsim_link::Queue>,
}

impl Patch {
    /// One direction with it; `up` says which, where all of the link is another.
    pub fn apply(&self, spec: &Spec, up: bool) -> Spec {
        let mut spec = match &self.link {
            Some(link) if up => link.up.clone(),
            Some(link) => link.down.clone(),
            None => spec.clone(),
        };
        if let Some(rate) = &self.rate {
            spec.rate = rate.clone();
        }
        if let Some(delay_ns) = self.delay_ns {
            spec.delay.base_ns = spec.delay.base_ns.saturating_add(delay_ns);
        }
        if let Some(jitter) = self.jitter {
            spec.delay.jitter = jitter;
        }
        if let Some(loss) = &self.loss {
            spec.loss = loss.clone();
        }
        if let Some(duplicate) = self.duplicate {
            spec.duplicate = duplicate;
        }
        if let Some(reorder) = self.reorder {
            spec.reorder = reorder;
        }
        if let Some(corrupt) = self.corrupt {
            spec.corrupt = corrupt;
        }
        if self.mtu.is_some() {
            spec.mtu = self.mtu;
        }
        if let Some(queue) = self.queue {
            spec.queue = queue;
        }
        spec
    }
}
