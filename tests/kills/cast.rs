//! The processes of a run: blows fall on them, and they come back by themselves in time.
//!
//! Nothing here waits for a process to serve: a process may be hit again while it starts, which is when it has
//! most to lose. That all have come up is seen by what flows in the end.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tern::checker::{Fact, History, What};
use tern::cluster::Process;
use tern::fleet::Fleet;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::device::{TASK, Task};
use crate::schedule::{Blow, Kind};

/// A process that was asked to stop has ended by then: an edge sends its clients away over 5 s, and a region
/// waits another 5 s for its peers; the rest is for a busy machine.
const STOPPED_WITHIN: Duration = Duration::from_secs(40);

/// What clients have told.
#[derive(Debug, Default)]
pub struct Told {
    pub history: History,
    pub acks: usize,
}

#[derive(Debug)]
enum Body {
    Server(Process),
    Client { task: Task, child: Option<Box<Child>>, readers: Vec<JoinHandle<()>> },
}

/// One of them, through all its lives.
#[derive(Debug)]
pub struct Actor {
    pub name: String,
    pub kind: Kind,
    pub lives: u32,
    body: Body,
    down_until: Option<Instant>,
    /// Until when it is suspended, and if it is killed then: how long it stays away.
    suspended: Option<(Instant, Option<Duration>)>,
    /// Since when it stops, and how long it stays away after that.
    stopping: Option<(Instant, Duration)>,
}

impl Actor {
    fn new(name: String, kind: Kind, body: Body) -> Self {
        Self { name, kind, lives: 0, body, down_until: None, suspended: None, stopping: None }
    }

    pub fn is_up(&self) -> bool {
        self.down_until.is_none() && self.suspended.is_none() && self.stopping.is_none()
    }
}

/// All of them.
#[derive(Debug)]
pub struct Cast {
    pub fleet: Fleet,
    /// The program of clients.
    device: PathBuf,
    pub actors: Vec<Actor>,
    pub told: Arc<Mutex<Told>>,
}

impl Cast {
    pub fn new(fleet: Fleet, device: PathBuf, servers: &[Process], clients: &[Task]) -> Self {
        let kind = |process: &Process| match process.arguments[0].as_str() {
            "region" => Kind::Region,
            "edge" => Kind::Edge,
            _ => Kind::Dispatch,
        };
        let server = |p: &Process| Actor::new(p.name.clone(), kind(p), Body::Server(p.clone()));
        let client = |task: &Task| {
            let body = Body::Client { task: task.clone(), child: None, readers: Vec::new() };
            Actor::new(task.user.clone(), Kind::Client, body)
        };
        let actors = servers.iter().map(server).chain(clients.iter().map(client)).collect();
        Self { fleet, device, actors, told: Arc::default() }
    }

    pub fn kinds(&self) -> Vec<Kind> {
        self.actors.iter().map(|a| a.kind).collect()
    }

    pub fn pid(&self, i: usize) -> Option<u32> {
        match &self.actors[i].body {
            Body::Server(process) => self.fleet.pid(&process.name),
            Body::Client { child, .. } => child.as_ref().and_then(|child| child.id()),
        }
    }

    pub async fn start(&mut self, i: usize) {
        let actor = &mut self.actors[i];
        actor.down_until = None;
        actor.lives += 1;
        match &mut actor.body {
            Body::Server(process) => self.fleet.launch(&process.name, &process.arguments).await.unwrap(),
            Body::Client { task, child, readers } => {
                let mut started = start_client(&self.device, task);
                let lines = BufReader::new(started.stdout.take().unwrap()).lines();
                readers.retain(|reader| !reader.is_finished());
                readers.push(tokio::spawn(read(lines, task.user.clone(), self.told.clone())));
                *child = Some(Box::new(started));
            }
        }
    }

    fn signal(&self, i: usize, signal: Signal) {
        let pid = self.pid(i).and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // It may have ended by itself just now: `tend` finds that out, and whether it should have.
        let _ended = pid.map(|pid| kill_process(pid, signal));
    }

    async fn kill(&mut self, i: usize, down: Duration) {
        let actor = &mut self.actors[i];
        (actor.suspended, actor.stopping) = (None, None);
        match &mut actor.body {
            Body::Server(process) => {
                self.fleet.kill(&process.name).await;
            }
            Body::Client { child, .. } => {
                if let Some(mut child) = child.take() {
                    child.kill().await.unwrap();
                }
            }
        }
        actor.down_until = Some(Instant::now() + down);
    }

    /// Lets a blow fall.
    pub async fn strike(&mut self, i: usize, blow: Blow) {
        if self.actors[i].kind == Kind::Region {
            // Somebody must be there to talk to: the first that is away comes back sooner.
            let others: Vec<usize> =
                (0..self.actors.len()).filter(|j| *j != i && self.actors[*j].kind == Kind::Region).collect();
            if others.iter().all(|j| !self.actors[*j].is_up())
                && let Some(back) = others.iter().find(|j| self.actors[**j].stopping.is_none())
            {
                self.bring_back(*back).await;
            }
        }
        if self.actors[i].down_until.is_some() {
            // Hit while it starts.
            self.start(i).await;
        }
        let now = Instant::now();
        match blow {
            Blow::Kill { down } => self.kill(i, down).await,
            Blow::Suspend { for_ } => {
                self.signal(i, Signal::STOP);
                self.actors[i].suspended = Some((now + for_, None));
            }
            Blow::SuspendAndKill { for_, down } => {
                self.signal(i, Signal::STOP);
                self.actors[i].suspended = Some((now + for_, Some(down)));
            }
            Blow::Stop { down } => {
                self.signal(i, Signal::TERM);
                self.resume(i);
                self.actors[i].stopping = Some((now, down));
            }
        }
    }

    fn resume(&mut self, i: usize) {
        if self.actors[i].suspended.take().is_some() {
            self.signal(i, Signal::CONT);
            if let Some((since, _)) = &mut self.actors[i].stopping {
                *since = Instant::now();
            }
        }
    }

    async fn bring_back(&mut self, i: usize) {
        self.resume(i);
        if self.actors[i].down_until.is_some() {
            self.start(i).await;
        }
    }

    /// Does what is due, and sees that nothing has ended that should not.
    pub async fn tend(&mut self) {
        let now = Instant::now();
        for i in 0..self.actors.len() {
            match self.actors[i].suspended {
                Some((until, Some(down))) if now >= until => self.kill(i, down).await,
                Some((until, None)) if now >= until => self.resume(i),
                _ => {}
            }
            if self.actors[i].down_until.is_some_and(|until| now >= until) {
                self.start(i).await;
            }
            let actor = &mut self.actors[i];
            if let Some((since, _)) = actor.stopping
                && actor.suspended.is_none()
                && now > since + STOPPED_WITHIN
            {
                let tail = self.fleet.log_tail(&actor.name);
                panic!("{} does not stop within {} s{tail}", actor.name, STOPPED_WITHIN.as_secs());
            }
            if let Body::Client { child: Some(child), .. } = &mut actor.body
                && let Some(status) = child.try_wait().unwrap()
            {
                panic!("{} ended by itself: {status}", actor.name);
            }
        }
        while let Some((name, status)) = self.fleet.ended() {
            let actor = self.actors.iter_mut().find(|a| a.name == name).unwrap();
            let Some((_, down)) = actor.stopping.take() else {
                panic!("{name} ended by itself: {status}{}", self.fleet.log_tail(&name));
            };
            // Asked before it could listen, it ends by the signal.
            let is_orderly = status.success() || status.signal() == Some(Signal::TERM.as_raw());
            assert!(is_orderly, "{name} did not stop in order: {status}{}", self.fleet.log_tail(&name));
            (actor.suspended, actor.down_until) = (None, Some(Instant::now() + down));
            self.fleet.kill(&name).await;
        }
    }

    /// Ends all pauses. False: something still stops.
    pub async fn bring_all_back(&mut self) -> bool {
        for i in 0..self.actors.len() {
            self.bring_back(i).await;
        }
        self.tend().await;
        self.actors.iter().all(Actor::is_up)
    }

    /// Ends the clients' input: they stop sending, and end once everything is stable.
    pub async fn settle_clients(&mut self, within: Duration) -> Result<(), String> {
        let until = Instant::now() + within;
        for actor in &mut self.actors {
            if let Body::Client { child: Some(child), .. } = &mut actor.body {
                drop(child.stdin.take());
            }
        }
        for actor in &mut self.actors {
            let Body::Client { child, readers, .. } = &mut actor.body else { continue };
            let Some(mut child) = child.take() else { continue };
            match tokio::time::timeout_at(until, child.wait()).await {
                Ok(Ok(status)) if status.success() => {}
                Ok(ended) => return Err(format!("{} ended: {ended:?}", actor.name)),
                Err(_) => return Err(format!("{} still waits for acks or stability", actor.name)),
            }
            for reader in readers.drain(..) {
                reader.await.unwrap();
            }
        }
        Ok(())
    }
}

fn start_client(device: &Path, task: &Task) -> Child {
    let mut command = Command::new(device);
    command.args(["--exact", "client_process", "--nocapture"]);
    command.env(TASK, serde_json::to_string(task).unwrap());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    command.spawn().unwrap()
}

async fn read(
    mut lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    user: String,
    told: Arc<Mutex<Told>>,
) {
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(note) = line.strip_prefix("note ") {
            println!("  {note}");
        }
        // libtest's own lines are no facts.
        let Ok(fact) = line.parse::<Fact>() else { continue };
        let mut told = told.lock().unwrap();
        told.acks += usize::from(fact.what == What::Acked);
        told.history.note(&user, fact);
    }
}
