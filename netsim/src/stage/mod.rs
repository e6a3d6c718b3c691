//! A scenario, played in virtual time: a plan goes in, a history comes out.
//!
//! The stage builds a [`World`] from the plan, opens a real client on each device, lets users write and faults strike
//! when it is their time, and then waits until everything has calmed down. What happened it leaves to the history
//! ([`scribe`]); what that is worth, to the checks of `tern_netsim_verdict`, which know nothing of this crate.
//!
//! Reading order: [`play`] below, [`scribe`] (the history, and the moments that faults wait for), [`app`] (what a user
//! does and sees), `writing` (when loads write, and how much), [`rig`] (what faults do), `ending` (whether all is calm,
//! and what regions and devices hold at the end).
//!
//! Invariants:
//! - The stage is one task that owns the cluster; only what must happen between two steps of the system (a fault that
//!   waits for a commit) happens elsewhere, in [`rig`].
//! - What a load writes follows from the seed and the load's id alone, whatever faults there are.
//! - A plan's faults end: at their time, or when the load is over and the plan says so, or as the run is over.

pub mod app;
pub(crate) mod ending;
pub mod rig;
pub mod scribe;
mod striking;
pub(crate) mod writing;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tern_client::store::memory::MemoryStore as DeviceStore;
use tern_client::{BuildError, Client, InstallId, UserId};
use tern_core::entry::Entry;
use tern_core::ids::ConvId;
use tern_core::wire::v1::Heartbeat;
use tern_ipconf::Geo;
use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{Target, Trigger, When};
use tern_netsim_verdict::history::FORMAT;
use tern_netsim_verdict::{Cast, Event, Line, LinkSample, Run};
use tern_replication::store::memory::{Latency, MemoryStore as RegionDisk};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::app::{App, Memory, Names, direct_label, name_in};
use self::rig::{Rig, RigError};
use self::scribe::Scribe;
use self::writing::Writer;
use crate::access::{AccessError, AccessSpec};
use crate::cluster::{Cluster, ClusterError, ClusterOptions, Site, edge_name};
use crate::limits::{LINKS_SAMPLED, MEETING, SAMPLE_EVERY};
use crate::node::SimNode;
use crate::pipes::LinkError;
use crate::run::{RunError, run};
use crate::tap::Listener;
use crate::world::World;
use tern_netsim_link::Way;

/// Why a plan is not played to its end. There is no history then.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// The simulation itself.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A region or edge.
    #[error("a region or edge of the scenario does not start: {0}")]
    Cluster(#[from] ClusterError),
    /// A device.
    #[error("a device of the scenario can't be added: {0}")]
    Device(#[source] std::io::Error),
    /// A client.
    #[error("the client of {device} can't be made: {source}")]
    Client {
        /// Whose.
        device: String,
        /// Why.
        source: BuildError,
    },
    /// A path.
    #[error(transparent)]
    Path(#[from] LinkError),
    /// A device's link.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A fault.
    #[error("a fault of the scenario can't strike: {0}")]
    Rig(#[from] RigError),
    /// The GeoIP file that comes with the program.
    #[error("the GeoIP file that comes with the program can't be read: {0}")]
    Geo(String),
    /// A name that is none.
    #[error("{0}")]
    Name(String),
}

/// What is said of a run beside its plan.
#[derive(Clone, Debug, Default)]
pub struct Heading {
    /// What replays it.
    pub replay: String,
    /// Version and commit.
    pub version: String,
    /// A bug that is switched on.
    pub mutant: Option<String>,
}

/// Plays a plan, and returns its history.
///
/// To be called in a process of its own whose `getrandom` is [`crate::random::fill`], or the same seed will not give
/// the same history.
pub fn play(plan: Plan, heading: Heading) -> Result<Vec<Line>, PlayError> {
    let seed = plan.seed;
    run(seed, move |world| async move { Stage::set(world, Arc::new(plan), heading).await?.play().await })?
}

/// The first line of a history.
pub fn headline(plan: &Plan, heading: &Heading, driver: &str) -> Run {
    let mut conversations: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let users: BTreeMap<&str, &str> = plan.devices.iter().map(|one| (one.id.as_str(), one.user.as_str())).collect();
    let user_of = |device: &str| users.get(device).map(|user| (*user).to_owned());
    for load in &plan.loads {
        if let (Target::User(peer), Some(user)) = (&load.to, user_of(&load.from)) {
            conversations
                .insert(direct_label(&user, peer), vec![user.clone().min(peer.clone()), user.max(peer.clone())]);
        }
    }
    for group in &plan.groups {
        conversations.insert(group.id.clone(), group.members.clone());
    }
    let edges = plan.regions.iter().flat_map(|region| {
        let numbers = 1..=region.edges.saturating_add(1);
        numbers.map(|number| (edge_name(&region.name, number), region.name.clone()))
    });
    Run {
        format: FORMAT,
        scenario: plan.name.clone(),
        about: plan.about.clone(),
        seed: plan.seed,
        point: plan.point.clone(),
        driver: driver.to_owned(),
        replay: heading.replay.clone(),
        version: heading.version.clone(),
        mutant: heading.mutant.clone(),
        cast: Cast {
            regions: plan.regions.iter().map(|region| region.name.clone()).collect(),
            edges: edges.collect(),
            devices: plan.devices.iter().map(|device| (device.id.clone(), device.user.clone())).collect(),
            conversations,
            faults: plan.faults.iter().map(|f| (f.id.clone(), f.kind.clone(), f.target.clone())).collect(),
        },
        expect: plan.expect.clone(),
        sometimes: plan.sometimes.clone(),
    }
}

/// What is due at a moment.
#[derive(Clone, Debug)]
enum Due {
    Open(usize),
    Write(usize),
    Act(usize),
    Begin(usize),
    End(usize),
    /// A drained node's process ends.
    Drained(usize),
    /// A device's system tells its apps of another network.
    Told(usize),
    Sample,
}

/// A device: what survives a killed app, and the app while it runs.
struct Seat {
    host: SimNode,
    store: DeviceStore,
    memory: Arc<Mutex<Memory>>,
    app: Option<App>,
    opened: bool,
}

/// Faults that have struck without the stage, and are to be looked after.
#[derive(Debug, Default)]
struct Struck {
    /// Numbers, and whether they struck already; otherwise when they shall.
    queue: Mutex<VecDeque<(Waiting, u64, bool)>>,
    notify: Notify,
}

/// What waits for a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Fault(usize),
    Action(usize),
}

/// Hands what stores decide to the scribe.
#[derive(Debug)]
struct Ears {
    scribe: Arc<Scribe>,
    rig: Mutex<Option<Arc<Rig>>>,
}

impl Listener for Ears {
    fn decided(&self, region: &str, _: ConvId, entry: &Entry) {
        let rig = self.rig.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(rig) = rig {
            rig.decided(region);
        }
        if entry.kind == 0 {
            self.scribe.committed(region, entry.place.origin.era, &name_in(&entry.body));
        }
    }
}

struct Stage {
    plan: Arc<Plan>,
    world: World,
    cluster: Cluster,
    scribe: Arc<Scribe>,
    rig: Arc<Rig>,
    struck: Arc<Struck>,
    names: Arc<Names>,
    devices: BTreeMap<String, Seat>,
    /// Who shows each conversation at the end.
    audience: ending::Audience,
    writers: Vec<Writer>,
    agenda: BTreeMap<(u64, u64), Due>,
    numbers: u64,
    samples: BTreeMap<(String, String, bool), (u64, LinkSample)>,
    began: Instant,
    /// Copies of disks to which regions are set back, by the number of the fault.
    disks: BTreeMap<usize, RegionDisk>,
    over: bool,
}

impl Stage {
    /// Builds everything; the run's clock begins when regions run and nobody has opened an app.
    async fn set(world: World, plan: Arc<Plan>, heading: Heading) -> Result<Self, PlayError> {
        for path in &plan.paths {
            world.set_latency(&path.a, &path.b, Duration::from_nanos(path.latency_ns));
            if let Some(link) = &path.link {
                world.set_link(&path.a, &path.b, link.clone())?;
            }
        }
        let sites: Vec<Site> = plan
            .regions
            .iter()
            .map(|region| Site {
                name: region.name.clone(),
                number: region.number,
                ip: Ipv4Addr::new(10, region.number, 0, 1),
                at: region.at,
            })
            .collect();
        let geo = Geo::shipped().map_err(|error| PlayError::Geo(error.to_string()))?;
        let options = &plan.options;
        let heartbeat_ms = u32::try_from(options.heartbeat_ns / 1_000_000).unwrap_or(u32::MAX);
        let cluster_options = ClusterOptions {
            reoffer_after: Duration::from_nanos(options.reoffer_after_ns),
            heartbeat: Heartbeat { foreground_ms: heartbeat_ms, ..ClusterOptions::default().heartbeat },
            geo: Some(Arc::new(geo)),
            disk: Latency {
                sync: Duration::from_nanos(options.disk_sync_ns),
                read: Duration::from_nanos(options.disk_read_ns),
            },
        };
        let mut cluster = Cluster::new(&world, &sites, cluster_options)?;
        let mut nodes = BTreeMap::new();
        for region in &plan.regions {
            nodes.insert(region.name.clone(), cluster.host(&region.name)?.clone());
            for number in 2..=region.edges.saturating_add(1) {
                let name = cluster.add_edge(&world, &region.name, number)?;
                nodes.insert(name.clone(), cluster.edge_host(&name)?.clone());
            }
        }
        let mut devices = BTreeMap::new();
        for device in &plan.devices {
            let interfaces = device.interfaces.iter().map(|one| AccessSpec {
                name: one.name.clone(),
                address: one.address,
                link: one.link.clone(),
                nat: one.nat.clone(),
            });
            let host = world.add_device(&device.id, &device.place, interfaces.collect()).map_err(PlayError::Device)?;
            nodes.insert(device.id.clone(), host.clone());
            let user = UserId::new(&device.user).map_err(|error| PlayError::Name(error.to_string()))?;
            let install = InstallId::new(&device.id).map_err(|error| PlayError::Name(error.to_string()))?;
            let store = DeviceStore::new(user, install);
            devices.insert(device.id.clone(), Seat { host, store, memory: Arc::default(), app: None, opened: false });
        }
        let (triggers, waiting) = triggers(&plan);
        let clock_world = world.clone();
        let (begun, zero) = (Arc::new(std::sync::OnceLock::new()), Duration::ZERO);
        let zero_of = Arc::clone(&begun);
        let clock = move || {
            let start = zero_of.get().copied().unwrap_or(zero);
            let now = clock_world.elapsed().saturating_sub(start);
            u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
        };
        let scribe = Scribe::new(Box::new(clock), triggers);
        scribe.tell(Event::Run(Box::new(headline(&plan, &heading, "sim"))));
        let ears = Arc::new(Ears { scribe: Arc::clone(&scribe), rig: Mutex::default() });
        cluster.set_tap(Arc::clone(&ears) as _);
        for region in &plan.regions {
            cluster.start(&region.name).await?;
            scribe.tell(Event::Start { who: region.name.clone() });
        }
        for (name, number) in plan.regions.iter().flat_map(|r| (2..=r.edges.saturating_add(1)).map(move |n| (r, n))) {
            let name = edge_name(&name.name, number);
            cluster.start_edge(&name).await?;
            scribe.tell(Event::Start { who: name });
        }
        // Regions learn of each other's edges with the first exchanges of loads.
        tokio::time::sleep(MEETING).await;
        let rig = Arc::new(Rig::new(Arc::clone(&plan), world.clone(), Arc::clone(&scribe), nodes));
        *ears.rig.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&rig));
        let struck = Arc::new(Struck::default());
        react(&plan, &scribe, &rig, &struck, waiting);
        // Set once, here.
        let _first = begun.set(world.elapsed());
        let writers = plan.loads.iter().map(|load| Writer::new(plan.seed, load)).collect();
        Ok(Self {
            audience: ending::audience(&plan),
            plan,
            world,
            cluster,
            scribe,
            rig,
            struck,
            names: Arc::default(),
            devices,
            writers,
            agenda: BTreeMap::new(),
            numbers: 0,
            samples: BTreeMap::new(),
            began: Instant::now(),
            disks: BTreeMap::new(),
            over: false,
        })
    }

    async fn play(mut self) -> Result<Vec<Line>, PlayError> {
        self.scribe.tell(Event::Phase { name: "load".into() });
        self.plan_all();
        // Apps that are open from the beginning make the groups, which loads need.
        self.run_until(0).await?;
        self.make_groups().await;
        let duration_ns = self.plan.duration_ns;
        self.run_until(duration_ns).await?;
        self.over = true;
        self.heal().await?;
        self.scribe.tell(Event::Phase { name: "quiet".into() });
        let (quiet, waiting) = self.calm_down().await?;
        self.finish(quiet, waiting).await
    }

    fn plan_all(&mut self) {
        let plan = Arc::clone(&self.plan);
        for (number, device) in plan.devices.iter().enumerate() {
            self.add(device.starts_ns, Due::Open(number));
        }
        for number in 0..self.writers.len() {
            self.write_next(number);
        }
        for (number, action) in plan.actions.iter().enumerate() {
            if let When::At(at_ns) = action.when {
                self.add(at_ns, Due::Act(number));
            }
        }
        for (number, fault) in plan.faults.iter().enumerate() {
            if let When::At(at_ns) = fault.when {
                self.add(at_ns, Due::Begin(number));
            }
        }
        self.add(0, Due::Sample);
    }

    fn add(&mut self, at_ns: u64, due: Due) {
        self.numbers += 1;
        self.agenda.insert((at_ns, self.numbers), due);
    }

    fn write_next(&mut self, number: usize) {
        let at_ns = self.writers.get_mut(number).and_then(Writer::next_ns);
        if let Some(at_ns) = at_ns.filter(|at_ns| *at_ns < self.plan.duration_ns) {
            self.add(at_ns, Due::Write(number));
        }
    }

    fn now_ns(&self) -> u64 {
        self.scribe.now_ns()
    }

    /// Does what is due until then.
    async fn run_until(&mut self, until_ns: u64) -> Result<(), PlayError> {
        loop {
            self.look_after_struck().await?;
            let now_ns = self.now_ns();
            let next = self.agenda.first_key_value().map(|(key, _)| *key);
            if let Some(key) = next.filter(|(at_ns, _)| *at_ns <= now_ns.min(until_ns)) {
                if let Some(due) = self.agenda.remove(&key) {
                    self.run_due(due).await?;
                }
                continue;
            }
            if now_ns >= until_ns {
                return Ok(());
            }
            let wake_ns = next.map_or(until_ns, |(at_ns, _)| at_ns.min(until_ns));
            let wake = self.began + Duration::from_nanos(wake_ns);
            let struck = Arc::clone(&self.struck);
            tokio::select! {
                biased;
                () = struck.notify.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    async fn run_due(&mut self, due: Due) -> Result<(), PlayError> {
        match due {
            Due::Open(number) => {
                let device = self.plan.devices[number].id.clone();
                self.open(&device)?;
            }
            Due::Write(number) => {
                let load = self.plan.loads[number].clone();
                let bytes = self.writers[number].bytes();
                if let Some(app) = self.devices.get(&load.from).and_then(|seat| seat.app.as_ref())
                    && !self.is_suspended(&load.from)
                {
                    app.send(&load.to, bytes);
                }
                self.write_next(number);
            }
            Due::Act(number) => self.act(number),
            Due::Begin(number) => {
                self.rig.strike(number)?;
                self.struck_at(number).await?;
            }
            Due::End(number) => self.end(number).await?,
            Due::Drained(number) => self.drained(number).await?,
            Due::Told(number) => self.told(number),
            Due::Sample => self.sample()?,
        }
        Ok(())
    }

    fn is_suspended(&self, device: &str) -> bool {
        self.devices.get(device).is_some_and(|seat| seat.host.is_paused())
    }

    fn act(&mut self, number: usize) {
        let action = self.plan.actions[number].clone();
        let app = self.devices.get(&action.device).and_then(|seat| seat.app.as_ref());
        let done = app.map_or(Ok(()), |app| app.act(&action.what));
        if let Err(text) = done {
            self.scribe.tell(Event::Broken { who: action.device, text: format!("{:?}: {text}", action.what) });
        }
    }

    /// Opens a device's app.
    fn open(&mut self, device: &str) -> Result<(), PlayError> {
        let planned = self.plan.devices.iter().find(|one| one.id == device);
        let (Some(planned), Some(seat)) = (planned, self.devices.get_mut(device)) else { return Ok(()) };
        seat.host.restart();
        let env = seat.host.env();
        let user = UserId::new(&planned.user).map_err(|error| PlayError::Name(error.to_string()))?;
        let client = Client::builder(self.cluster.client_config(&user, &planned.dispatch))
            .local_store(Box::new(seat.store.clone()))
            .token_provider(self.cluster.tokens(&user, Arc::clone(&env.clock)))
            .env(env.clone())
            .build()
            .map_err(|source| PlayError::Client { device: device.to_owned(), source })?;
        let events = client.events();
        let (memory, names, scribe) = (Arc::clone(&seat.memory), Arc::clone(&self.names), Arc::clone(&self.scribe));
        let app = App::open(device, &planned.user, client, memory, names, scribe);
        env.tasks.spawn(app.clone().watch(events));
        (seat.app, seat.opened) = (Some(app), true);
        Ok(())
    }

    /// Direct conversations get their names, and groups are made by their creators.
    async fn make_groups(&mut self) {
        let plan = Arc::clone(&self.plan);
        let salt = Bytes::from(self.cluster.direct_salt());
        for load in &plan.loads {
            let user = plan.devices.iter().find(|one| one.id == load.from).map(|one| one.user.as_str());
            if let (Target::User(peer), Some(user)) = (&load.to, user)
                && let (Ok(a), Ok(b)) = (UserId::new(user), UserId::new(peer))
            {
                self.names.learn(ConvId::direct(&salt, &a, &b), &direct_label(user, peer));
            }
        }
        for group in &plan.groups {
            let app = self.devices.get(&group.creator).and_then(|seat| seat.app.clone());
            let made = app.map_or(Err("its creator's app is not open yet".to_owned()), |app| {
                app.create_group(&group.id, &group.members)
            });
            if let Err(text) = made {
                self.scribe
                    .tell(Event::Broken { who: group.creator.clone(), text: format!("group {}: {text}", group.id) });
            }
        }
    }

    /// One look at each access link.
    fn sample(&mut self) -> Result<(), PlayError> {
        let now_ns = self.now_ns();
        let plan = Arc::clone(&self.plan);
        for device in plan.devices.iter().take(LINKS_SAMPLED) {
            for interface in &device.interfaces {
                for (way, up) in [(Way::Up, true), (Way::Down, false)] {
                    let seen = self.world.access_counts(&device.id, &interface.name, way)?;
                    let key = (device.id.clone(), interface.name.clone(), up);
                    let so_far = LinkSample {
                        link: format!("{}.{}", device.id, interface.name),
                        way: if up { "up" } else { "down" }.to_owned(),
                        over_ns: now_ns,
                        sent: seen.counts.sent,
                        sent_bytes: seen.counts.sent_bytes,
                        delivered: seen.counts.delivered,
                        delivered_bytes: seen.counts.delivered_bytes,
                        dropped: seen.counts.dropped.iter().map(|(cause, n)| (ending::cause(*cause), *n)).collect(),
                        queue_bytes: seen.queued_bytes,
                    };
                    let (_, before) = self.samples.insert(key, (now_ns, so_far.clone())).unwrap_or_default();
                    let sample = ending::since(&before, so_far);
                    if sample.sent > 0 || sample.delivered > 0 || sample.queue_bytes > 0 || before.queue_bytes > 0 {
                        self.scribe.tell(Event::Link(Box::new(sample)));
                    }
                }
            }
        }
        if !self.over {
            self.add(now_ns + nanos(SAMPLE_EVERY), Due::Sample);
        }
        Ok(())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// All triggers of a plan, and what waits for each.
fn triggers(plan: &Plan) -> (Vec<Trigger>, Vec<(Waiting, u64)>) {
    let faults = plan.faults.iter().enumerate().map(|(number, fault)| (Waiting::Fault(number), &fault.when));
    let actions = plan.actions.iter().enumerate().map(|(number, action)| (Waiting::Action(number), &action.when));
    let on = faults.chain(actions).filter_map(|(waiting, when)| match when {
        When::On { trigger, by_ns } => Some((trigger.clone(), (waiting, *by_ns))),
        _ => None,
    });
    on.unzip()
}

/// Lets faults strike at the moments for which they wait.
fn react(plan: &Arc<Plan>, scribe: &Arc<Scribe>, rig: &Arc<Rig>, struck: &Arc<Struck>, waiting: Vec<(Waiting, u64)>) {
    let (rig, struck, of, plan) = (Arc::clone(rig), Arc::clone(struck), Arc::downgrade(scribe), Arc::clone(plan));
    scribe.react(Box::new(move |trigger| {
        let (Some((waiting, by_ns)), Some(scribe)) = (waiting.get(trigger).copied(), of.upgrade()) else { return };
        let now_ns = scribe.now_ns();
        if now_ns >= plan.duration_ns {
            return;
        }
        let mut at_once = false;
        if let (Waiting::Fault(number), 0) = (waiting, by_ns) {
            match rig.strike(number) {
                Ok(()) => at_once = true,
                Err(error) => {
                    scribe.tell(Event::Broken { who: plan.faults[number].id.clone(), text: error.to_string() });
                }
            }
        }
        let mut queue = struck.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back((waiting, now_ns.saturating_add(by_ns), at_once));
        drop(queue);
        struck.notify.notify_one();
    }));
}
