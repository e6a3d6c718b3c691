//! What happens when: the agenda of a run, and one thread that keeps it and hears what is said meanwhile.
//! `striking` has the faults, `ending` the end, `beside` what other systems do at the same time.

mod beside;
mod ending;
mod striking;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tern_client::UserId;
use tern_core::ids::ConvId;
use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{Effect, Target, When};
use tern_netsim_tun::Lab;
use tern_netsim_verdict::{Event, Line, LinkSample};

use super::book::Book;
use super::deployment::{Deployment, find_tern};
use super::device::monotonic_ns;
use super::error::RealError;
use super::protocol::{Order, Report, Setup};
use super::rig::Rig;
use super::seat::Seat;
use super::topology::{lab_plan, nodes};
use super::{Heard, Said, Surroundings};
use crate::cluster::DISPATCH_PORT;
use crate::compare::company::Company;
use crate::limits::{LOOK_EVERY, MEETING};
use crate::stage::app::direct_label;
use crate::stage::writing::Writer;
use crate::stage::{Heading, headline};

/// A node that does not serve by then has failed. Opening a store takes a fraction of a second; a busy machine may take
/// many times that.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// By then a device has made its groups: it has been started, which takes as long as a program does.
const GROUPS_WITHIN: Duration = Duration::from_secs(30);

/// What is due at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Open(usize),
    Write(usize),
    Act(usize),
    Begin(usize),
    End(usize),
    /// A device's system tells its app of another network.
    Told(usize),
    /// Other systems write what tern has written.
    Beside,
    Sample,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Run {
    plan: Plan,
    // Processes end before the lab does.
    company: Option<Company>,
    seats: BTreeMap<String, Seat>,
    deployment: Deployment,
    lab: Lab,
    rig: Rig,
    book: Book,
    logs: PathBuf,
    tokens: BTreeMap<String, String>,
    /// By the system, and by the scenario.
    names: BTreeMap<String, String>,
    serving: BTreeSet<String>,
    heard: Receiver<Heard>,
    sender: Sender<Heard>,
    writers: Vec<Writer>,
    agenda: BTreeMap<(u64, u64), Due>,
    numbers: u64,
    zero_ns: u64,
    samples: BTreeMap<(String, bool), LinkSample>,
    over: bool,
}

impl Run {
    /// Builds everything; the run's clock begins when regions serve and nobody has opened an app.
    pub(super) fn set(plan: Plan, heading: &Heading, surroundings: &Surroundings) -> Result<Self, RealError> {
        Self::set_up(plan, heading, surroundings, None)
    }

    fn set_up(
        plan: Plan,
        heading: &Heading,
        surroundings: &Surroundings,
        company: Option<Company>,
    ) -> Result<Self, RealError> {
        let tern = find_tern(surroundings.tern.as_deref())?;
        let lab = Lab::start(&lab_plan(&plan))?;
        let (sender, heard) = channel();
        let deployment = Deployment::prepare(tern, &plan, &lab, &surroundings.logs, sender.clone())?;
        let mut tokens = BTreeMap::new();
        for device in &plan.devices {
            if !tokens.contains_key(&device.user) {
                tokens.insert(device.user.clone(), deployment.token(&device.user)?);
            }
        }
        let writers = plan.loads.iter().map(|load| Writer::new(plan.seed, load)).collect();
        let seats = plan.devices.iter().map(|device| (device.id.clone(), Seat::default())).collect();
        let mut run = Self {
            company,
            seats,
            deployment,
            lab,
            rig: Rig::default(),
            book: Book::default(),
            logs: surroundings.logs.clone(),
            tokens,
            names: BTreeMap::new(),
            serving: BTreeSet::new(),
            heard,
            sender,
            writers,
            agenda: BTreeMap::new(),
            numbers: 0,
            zero_ns: monotonic_ns(),
            samples: BTreeMap::new(),
            over: false,
            plan,
        };
        run.name_direct_conversations()?;
        run.book.tell(0, Event::Run(Box::new(headline(&run.plan, heading, "tun"))));
        let all = nodes(&run.plan);
        // Further edges look for a core that serves.
        for first in [true, false] {
            let names = all.iter().filter(|node| (node.edge == 1) == first).map(|node| node.name.clone());
            let names: BTreeSet<String> = names.collect();
            for name in &names {
                run.deployment.start(&run.lab, name)?;
            }
            run.wait_until_serving(&names)?;
        }
        if let Some(company) = &mut run.company {
            company.serve(&run.lab, &run.plan)?;
        }
        run.listen_for(MEETING)?;
        // What happened so far happened before the beginning.
        run.zero_ns = monotonic_ns();
        Ok(run)
    }

    /// Plays it.
    pub(super) fn play(mut self) -> Result<Vec<Line>, RealError> {
        self.book.tell(0, Event::Phase { name: "load".into() });
        self.plan_all();
        self.run_until(0)?;
        self.make_groups()?;
        self.run_until(self.plan.duration_ns)?;
        self.over = true;
        self.heal()?;
        let now_ns = self.now_ns();
        self.book.tell(now_ns, Event::Phase { name: "quiet".into() });
        let (quiet, waiting) = self.calm_down()?;
        self.finish(quiet, waiting)
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.zero_ns)
    }

    fn add(&mut self, at_ns: u64, due: Due) {
        self.numbers += 1;
        self.agenda.insert((at_ns, self.numbers), due);
    }

    fn plan_all(&mut self) {
        for number in 0..self.plan.devices.len() {
            self.add(self.plan.devices[number].starts_ns, Due::Open(number));
        }
        for number in 0..self.writers.len() {
            self.write_next(number);
        }
        for number in 0..self.plan.actions.len() {
            if let When::At(at_ns) = self.plan.actions[number].when {
                self.add(at_ns, Due::Act(number));
            }
        }
        for number in 0..self.plan.faults.len() {
            if let When::At(at_ns) = self.plan.faults[number].when {
                self.add(at_ns, Due::Begin(number));
            }
        }
        self.add(0, Due::Sample);
    }

    fn write_next(&mut self, number: usize) {
        let at_ns = self.writers.get_mut(number).and_then(Writer::next_ns);
        if let Some(at_ns) = at_ns.filter(|at_ns| *at_ns < self.plan.duration_ns) {
            self.add(at_ns, Due::Write(number));
        }
    }

    /// What begins so long after a fault began or ended.
    fn anchored(&mut self, id: &str, end: bool, now_ns: u64) {
        let by = |when: &When| match when {
            When::After { fault, end: at_end, by_ns } if fault == id && *at_end == end => Some(*by_ns),
            _ => None,
        };
        let faults = self.plan.faults.iter().enumerate().map(|(number, fault)| (Due::Begin(number), &fault.when));
        let acts = self.plan.actions.iter().enumerate().map(|(number, action)| (Due::Act(number), &action.when));
        let due: Vec<(u64, Due)> = faults.chain(acts).filter_map(|(due, when)| Some((by(when)?, due))).collect();
        for (by_ns, due) in due {
            self.add(now_ns.saturating_add(by_ns), due);
        }
    }

    /// Does what is due until then, and hears what is said meanwhile.
    fn run_until(&mut self, until_ns: u64) -> Result<(), RealError> {
        loop {
            let now_ns = self.now_ns();
            let next = self.agenda.first_key_value().map(|(key, _)| *key);
            if let Some(key) = next.filter(|(at_ns, _)| *at_ns <= now_ns.min(until_ns)) {
                if let Some(due) = self.agenda.remove(&key) {
                    self.run_due(due)?;
                }
                continue;
            }
            if now_ns >= until_ns {
                return Ok(());
            }
            let wake_ns = next.map_or(until_ns, |(at_ns, _)| at_ns.min(until_ns));
            self.listen(Duration::from_nanos(wake_ns - now_ns))?;
        }
    }

    fn run_due(&mut self, due: Due) -> Result<(), RealError> {
        match due {
            Due::Open(number) => {
                let device = self.plan.devices[number].id.clone();
                self.open(&device)
            }
            Due::Write(number) => {
                let load = self.plan.loads[number].clone();
                let bytes = self.writers[number].bytes();
                if !self.rig.holding.paused(&self.plan, &load.from)
                    && let Some(seat) = self.seats.get_mut(&load.from)
                {
                    seat.order(&Order::Send { to: load.to.clone(), bytes });
                    let now_ns = self.now_ns();
                    let due = self.company.as_mut().map(|company| company.write(now_ns, &load, bytes));
                    due.into_iter().flatten().for_each(|at_ns| self.add(at_ns, Due::Beside));
                }
                self.write_next(number);
                Ok(())
            }
            Due::Act(number) => {
                let action = self.plan.actions[number].clone();
                if let Some(seat) = self.seats.get_mut(&action.device) {
                    seat.order(&Order::Act(action.what));
                }
                Ok(())
            }
            Due::Begin(number) => self.begin(number),
            Due::End(number) => self.end(number),
            Due::Told(number) => {
                if let Effect::HandOver { device, to, .. } = &self.plan.faults[number].effect
                    && let Some(seat) = self.seats.get_mut(device)
                {
                    seat.order(&Order::Network(to.clone()));
                    if let Some(company) = &mut self.company {
                        company.network_changed(device, to.as_deref())?;
                    }
                }
                Ok(())
            }
            Due::Beside => {
                let now_ns = self.now_ns();
                self.company.as_mut().map_or(Ok(()), |company| company.say(now_ns))
            }
            Due::Sample => self.sample(),
        }
    }

    /// Opens a device's app.
    fn open(&mut self, device: &str) -> Result<(), RealError> {
        let Some(planned) = self.plan.devices.iter().find(|one| one.id == device) else { return Ok(()) };
        let mut dispatch: Vec<_> = nodes(&self.plan).into_iter().filter(|node| node.edge == 1).collect();
        dispatch.sort_by_key(|node| node.name != planned.dispatch);
        let of = |node: &super::topology::NodePlan| {
            (format!("{}:{DISPATCH_PORT}", node.address), format!("{}.tern.internal", node.name))
        };
        let setup = Setup {
            device: planned.id.clone(),
            user: planned.user.clone(),
            zero_ns: self.zero_ns,
            dispatch: dispatch.iter().map(of).collect(),
            roots: self.deployment.roots(),
            token: self.tokens.get(&planned.user).cloned().unwrap_or_default(),
            store: self.lab.directory().join("devices").join(device),
            names: self.names.iter().map(|(id, label)| (id.clone(), label.clone())).collect(),
        };
        let log = OpenOptions::new().create(true).append(true).open(self.logs.join(format!("{device}.log")));
        let log = log.map_err(RealError::io("opening a device's log"))?;
        let Some(seat) = self.seats.get_mut(device) else { return Ok(()) };
        seat.open(&self.lab, &setup, log, &self.sender)?;
        match &mut self.company {
            Some(company) => company.open(&self.lab, &planned.id, &planned.user, self.zero_ns),
            None => Ok(()),
        }
    }

    /// The system's names of direct conversations follow from the deployment's salt.
    fn name_direct_conversations(&mut self) -> Result<(), RealError> {
        let salt = self.deployment.direct_salt()?;
        for load in &self.plan.loads {
            let user = self.plan.devices.iter().find(|one| one.id == load.from).map(|one| one.user.as_str());
            if let (Target::User(peer), Some(user)) = (&load.to, user)
                && let (Ok(a), Ok(b)) = (UserId::new(user), UserId::new(peer))
            {
                self.names.insert(ConvId::direct(&salt, &a, &b).to_string(), direct_label(user, peer));
            }
        }
        Ok(())
    }

    /// Groups are made by their creators before anything is written.
    fn make_groups(&mut self) -> Result<(), RealError> {
        for group in self.plan.groups.clone() {
            let order = Order::Group { label: group.id.clone(), members: group.members };
            let made = self.seats.get_mut(&group.creator).is_some_and(|seat| seat.order(&order));
            if !made {
                let text = format!("group {}: its creator's app is not open yet", group.id);
                self.book.tell(0, Event::Broken { who: group.creator, text });
            }
        }
        let deadline_ns = monotonic_ns() + nanos(GROUPS_WITHIN);
        let missing =
            |run: &Self| run.plan.groups.iter().any(|group| !run.names.values().any(|label| *label == group.id));
        while missing(self) && monotonic_ns() < deadline_ns {
            self.listen(LOOK_EVERY)?;
        }
        Ok(())
    }

    /// Hears what is said for so long.
    fn listen_for(&mut self, time: Duration) -> Result<(), RealError> {
        let until_ns = monotonic_ns() + nanos(time);
        while let Some(left_ns) = until_ns.checked_sub(monotonic_ns()).filter(|left_ns| *left_ns > 0) {
            self.listen(Duration::from_nanos(left_ns))?;
        }
        Ok(())
    }

    fn wait_until_serving(&mut self, names: &BTreeSet<String>) -> Result<(), RealError> {
        let deadline_ns = monotonic_ns() + nanos(READY_WITHIN);
        while let Some(name) = names.iter().find(|name| !self.serving.contains(*name)).cloned() {
            if monotonic_ns() >= deadline_ns {
                return Err(self.deployment.not_ready(&name));
            }
            self.listen(LOOK_EVERY)?;
        }
        Ok(())
    }

    /// Hears one thing, or nothing for so long.
    fn listen(&mut self, time: Duration) -> Result<(), RealError> {
        match self.heard.recv_timeout(time) {
            Ok(heard) => self.hear(heard),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            // It can't be: one sender is this run's own.
            Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }

    fn hear(&mut self, Heard { who, start, said }: Heard) -> Result<(), RealError> {
        let now_ns = self.now_ns();
        let of_device = self.seats.contains_key(&who);
        match said {
            Said::Serves if self.deployment.is_present(&who, start) => {
                self.serving.insert(who.clone());
                let at_ns = if self.agenda.is_empty() { 0 } else { now_ns };
                self.book.tell(at_ns, Event::Start { who });
            }
            Said::Ended if of_device && self.seats.get(&who).is_some_and(|seat| seat.is_present(start)) => {
                if let Some(seat) = self.seats.get_mut(&who) {
                    seat.kill()?;
                }
                self.book.tell(now_ns, Event::Stop { who: who.clone(), how: "stopped".into() });
                self.book.tell(now_ns, Event::Broken { who, text: "its process ended by itself; see its log".into() });
            }
            Said::Ended if !of_device && self.deployment.is_present(&who, start) => {
                self.deployment.kill(&who)?;
                if self.agenda.is_empty() {
                    return Err(self.deployment.not_ready(&who));
                }
                self.serving.remove(&who);
                if self.rig.holding.down(&self.plan, &who) {
                    self.ended(&who, "drained", true);
                } else {
                    self.ended(&who, "stopped", true);
                    self.book
                        .tell(now_ns, Event::Broken { who, text: "its process ended by itself; see its log".into() });
                }
            }
            Said::Nonsense(text) => self.book.tell(now_ns, Event::Broken { who, text }),
            // What a killed app had said before is true all the same.
            Said::Report(report) => self.take(&who, start, *report),
            Said::Serves | Said::Ended => {}
        }
        Ok(())
    }

    fn take(&mut self, who: &str, start: u64, report: Report) {
        match report {
            Report::Happened(Line { at_ns, event }) => self.book.tell(at_ns, event),
            Report::Reoffered(count) => {
                let now_ns = self.now_ns();
                self.book.reoffered(now_ns, count);
            }
            Report::Named { conversation, label } => {
                self.names.insert(conversation.clone(), label.clone());
                let order = Order::Learn { conversation, label };
                for (_, seat) in self.seats.iter_mut().filter(|(device, _)| *device != who) {
                    seat.order(&order);
                }
            }
            Report::Look(standing) => {
                if let Some(seat) = self.seats.get_mut(who).filter(|seat| seat.is_present(start)) {
                    seat.standing = Some(standing);
                }
            }
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
