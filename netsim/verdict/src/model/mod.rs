//! A system that makes no mistake: histories of runs that must pass.
//!
//! Checks are worth something only if they pass what is right and find what is wrong. So this makes up runs, at random
//! and by the dozen, of a system that is perfect by construction: each conversation has one order (that in which its
//! messages were decided on), each device gets everything as soon as it can be reached, and nothing is ever forgotten.
//! Outages, dying regions and partitions only delay it. Property tests judge such histories, as they are and with one
//! thing broken; reports are drawn of them where no driver is at hand.
//!
//! Reading order: [`weather`] (what is dark when), this file (who sends, and when that is seen where), `wrapup` (the
//! final state, and what links did).

mod weather;
mod wrapup;

use std::collections::{BTreeMap, BTreeSet};

use crate::expect::Expect;
use crate::history::{Cast, Event, FORMAT, FaultPhase, Line, Run};
use weather::Weather;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const USERS: [&str; 12] =
    ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "mallory", "niaj"];
const REGIONS: [&str; 3] = ["eu", "us", "ap"];
const KINDS: [&str; 2] = ["phone", "laptop"];

/// What to make up.
#[derive(Clone, Debug)]
pub struct Model {
    /// Decides everything that is left open.
    pub seed: u64,
    /// 1-3.
    pub regions: usize,
    /// At least 2.
    pub users: usize,
    /// 1-2 each.
    pub devices: usize,
    /// Messages in all.
    pub messages: u64,
    /// How long is written, in nanoseconds; at least 10 s.
    pub duration_ns: u64,
    /// How many faults.
    pub faults: usize,
    /// One member is removed from the group half-way.
    pub removal: bool,
    /// Once a second, for each device and direction.
    pub link_samples: bool,
}

/// Pseudo-random numbers (SplitMix64): the same for the same seed, for ever.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Any number.
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than a limit; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw().checked_rem(limit).unwrap_or(0)
    }

    /// An index into something of this length, which must not be 0.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// A time between two, the second not included; the first if there is none.
    fn between(&mut self, from: u64, until: u64) -> u64 {
        from + self.below(until.saturating_sub(from))
    }
}

/// A message on its way.
struct Sent {
    id: String,
    device: usize,
    conversation: String,
    bytes: u64,
    invoked_ns: u64,
    commit_ns: u64,
    acked_ns: u64,
    region: String,
}

/// What is made up, so far.
struct Making {
    random: Random,
    cast: Cast,
    devices: Vec<(String, String)>,
    weather: Weather,
    lines: Vec<(u64, Event)>,
    sent: Vec<Sent>,
    removed: Option<(String, String, u64)>,
}

impl Model {
    /// A history, from the first line to the last.
    pub fn lines(&self) -> Vec<Line> {
        let mut random = Random(self.seed);
        let devices = self.devices();
        let mut cast = self.cast(&devices);
        let weather = Weather::draw(self, &devices, &mut cast, &mut random);
        let sometimes = [("reconnected".to_owned(), weather.reconnects())].into();
        let mut making = Making { random, cast, devices, weather, lines: Vec::new(), sent: Vec::new(), removed: None };
        making.connect();
        making.write(self);
        making.show();
        let settled_ns = making.lines.iter().map(|(at_ns, _)| *at_ns).max().unwrap_or(0);
        let quiet_ns = (self.duration_ns + 20 * S).max(settled_ns.saturating_sub(200 * MS));
        for (name, at_ns) in [("load", 0), ("liveness", self.duration_ns), ("quiet", quiet_ns)] {
            making.lines.push((at_ns, Event::Phase { name: name.into() }));
        }
        let end_ns = settled_ns.max(quiet_ns) + 1200 * MS;
        making.wrap_up(self, end_ns);
        making.lines.sort_by_key(|(at_ns, event)| (*at_ns, rank(event)));
        let run = Run {
            format: FORMAT,
            scenario: "perfect-delivery".into(),
            about: "A system that makes no mistake delivers everything, whatever the weather.".into(),
            seed: self.seed,
            point: [("access".into(), "lte".into())].into(),
            driver: "sim".into(),
            replay: format!("tern-netsim run netsim/scenarios/perfect-delivery.toml --seed {}", self.seed),
            version: "model".into(),
            mutant: None,
            cast: making.cast,
            expect: Expect { converge_within_ns: Some(30 * S), ..Expect::default() },
            sometimes,
        };
        let first = Line { at_ns: 0, event: Event::Run(Box::new(run)) };
        let rest = making.lines.into_iter().map(|(at_ns, event)| Line { at_ns, event });
        std::iter::once(first).chain(rest).collect()
    }

    fn devices(&self) -> Vec<(String, String)> {
        let name = |i: usize| USERS.get(i).map_or_else(|| format!("user-{i:03}"), |name| (*name).to_owned());
        let of = |user: String| {
            let kinds = KINDS.iter().take(self.devices.max(1));
            kinds.map(move |kind| (format!("{user}-{kind}"), user.clone())).collect::<Vec<_>>()
        };
        (0..self.users.max(2)).flat_map(|i| of(name(i))).collect()
    }

    fn cast(&self, devices: &[(String, String)]) -> Cast {
        let regions: Vec<String> = REGIONS.iter().take(self.regions.clamp(1, 3)).map(|r| (*r).to_owned()).collect();
        let users: BTreeSet<&String> = devices.iter().map(|(_, user)| user).collect();
        let mut conversations = BTreeMap::new();
        conversations.insert("team".to_owned(), users.iter().map(|u| (*u).clone()).collect::<Vec<_>>());
        for pair in users.iter().copied().collect::<Vec<_>>().windows(2) {
            conversations.insert(format!("{}+{}", pair[0], pair[1]), vec![pair[0].clone(), pair[1].clone()]);
        }
        Cast {
            edges: regions.iter().map(|r| (format!("{r}-e1"), r.clone())).collect(),
            regions,
            devices: devices.iter().cloned().collect(),
            conversations,
            faults: Vec::new(),
        }
    }
}

/// Of what happens at one moment, what must be told first.
fn rank(event: &Event) -> u8 {
    match event {
        Event::Phase { .. } => 0,
        Event::Fault { phase: FaultPhase::Begin, .. } | Event::Start { .. } | Event::Stop { .. } => 1,
        Event::Connection { .. } | Event::Invoke { .. } => 2,
        Event::End { .. } => 9,
        _ => 3,
    }
}

impl Making {
    fn push(&mut self, at_ns: u64, event: Event) {
        self.lines.push((at_ns, event));
    }

    /// Nodes start; devices connect, and come back after each darkness.
    fn connect(&mut self) {
        for region in self.cast.regions.clone() {
            self.push(0, Event::Start { who: region });
        }
        for (at_ns, event) in self.weather.faults() {
            self.push(at_ns, event);
        }
        for index in 0..self.devices.len() {
            let device = self.devices[index].0.clone();
            self.push(0, Event::Start { who: device.clone() });
            let state = |state: &str| Event::Connection {
                device: device.clone(),
                state: state.into(),
                edge: None,
                region: None,
                transport: None,
            };
            self.push(MS, state("connecting"));
            for dark in self.weather.of(index).to_vec() {
                let live = |state: &str| Event::Connection {
                    device: device.clone(),
                    state: state.into(),
                    edge: Some(format!("{}-e1", dark.region)),
                    region: Some(dark.region.clone()),
                    transport: Some("quic".into()),
                };
                if dark.from_ns > 0 {
                    self.push(dark.from_ns, state("offline"));
                    self.push(dark.from_ns.midpoint(dark.live_ns), state("connecting"));
                }
                self.push(dark.live_ns - (dark.live_ns - dark.from_ns) / 8, live("recovering"));
                self.push(dark.live_ns, live("live"));
            }
        }
    }

    /// All messages, decided on in the order in which they come to a region.
    fn write(&mut self, model: &Model) {
        if model.removal {
            let user = self.devices[self.devices.len() - 1].1.clone();
            self.removed = Some(("team".into(), user.clone(), model.duration_ns / 2));
            let gone = Event::Removed { conversation: "team".into(), user: user.clone() };
            self.push(model.duration_ns / 2, gone);
            for (device, _) in self.devices.clone() {
                let (conversation, user) = ("team".into(), user.clone());
                let learned = Event::Learned { device, conversation, user, member: false };
                self.push(model.duration_ns / 2, learned);
            }
        }
        let mut times: Vec<u64> = (0..model.messages).map(|_| self.random.between(S, model.duration_ns)).collect();
        times.sort_unstable();
        let mut counts: BTreeMap<usize, u64> = BTreeMap::new();
        let mut last_ns: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for invoked_ns in times {
            let device = self.random.index(self.devices.len());
            let (name, user) = self.devices[device].clone();
            let theirs: Vec<String> = self
                .cast
                .conversations
                .iter()
                .filter(|(_, members)| members.contains(&user))
                .map(|(name, _)| name.clone())
                .filter(|c| {
                    !self.removed.as_ref().is_some_and(|(g, u, at_ns)| g == c && *u == user && invoked_ns > *at_ns)
                })
                .collect();
            let Some(conversation) = theirs.get(self.random.index(theirs.len().max(1))).cloned() else { continue };
            let count = counts.entry(device).or_default();
            *count += 1;
            let id = format!("{name}/{count}");
            let bytes = 40 + self.random.below(1500);
            let delay_ns = self.delay();
            let (commit_before, acked_before) = last_ns.get(&device).copied().unwrap_or_default();
            let commit_ns = self.weather.reach(device, invoked_ns.max(commit_before + 1), delay_ns);
            let delay_ns = self.delay();
            let acked_ns = self.weather.reach(device, commit_ns.max(acked_before + 1), delay_ns);
            last_ns.insert(device, (commit_ns, acked_ns));
            let region = self.weather.region(device, commit_ns);
            self.sent.push(Sent { id, device, conversation, bytes, invoked_ns, commit_ns, acked_ns, region });
        }
        self.sent.sort_by_key(|s| s.commit_ns);
    }

    /// An access link, there or back.
    fn delay(&mut self) -> u64 {
        self.random.between(15 * MS, 70 * MS)
    }

    /// Acks, and each message on each other device of its members.
    fn show(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        let mut newest: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        for message in &sent {
            let device = self.devices[message.device].0.clone();
            let (id, conversation) = (&message.id, &message.conversation);
            let invoke = Event::Invoke {
                device: device.clone(),
                conversation: conversation.clone(),
                message: id.clone(),
                bytes: message.bytes,
            };
            self.push(message.invoked_ns, invoke);
            let commit = Event::Commit { region: message.region.clone(), era: None, message: id.clone() };
            self.push(message.commit_ns, commit);
            self.push(message.acked_ns, Event::Acked { device: device.clone(), message: id.clone() });
            let other = self.cast.regions.iter().find(|r| **r != message.region).unwrap_or(&message.region).clone();
            let there_ns = self.weather.cross(&message.region, &other, message.commit_ns);
            let back_ns = self.weather.cross(&other, &message.region, there_ns);
            let stable_ns = self.weather.reach(message.device, back_ns.max(message.acked_ns), 20 * MS);
            self.push(stable_ns, Event::Stable { device, message: id.clone() });
            for to in 0..self.devices.len() {
                let (device, user) = self.devices[to].clone();
                if to == message.device || !self.sees(conversation, &user, message.commit_ns) {
                    continue;
                }
                let delay_ns = self.delay();
                let at_ns = newest.get(&(to, message.device)).map_or(0, |before| before + 1);
                let there_ns =
                    self.weather.cross(&message.region, &self.weather.region(to, message.commit_ns), message.commit_ns);
                let shown_ns = self.weather.reach(to, at_ns.max(there_ns), delay_ns);
                newest.insert((to, message.device), shown_ns);
                let (conversation, message) = (conversation.clone(), id.clone());
                self.push(shown_ns, Event::Shown { device, conversation, message, new: true });
            }
        }
        self.sent = sent;
    }

    /// Whether something that is decided on at a moment is for a user.
    fn sees(&self, conversation: &str, user: &str, commit_ns: u64) -> bool {
        let member = self.cast.conversations.get(conversation).is_some_and(|m| m.iter().any(|u| u == user));
        let gone =
            self.removed.as_ref().is_some_and(|(c, u, at_ns)| c == conversation && u == user && commit_ns > *at_ns);
        member && !gone
    }
}
