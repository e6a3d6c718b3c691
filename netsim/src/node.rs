//! A node: its tasks, its clock, its randomness; kill, restart, and pause.
//!
//! Killing marks the host dead first and drops its tasks then: the other way round their sockets would say
//! farewell to their peers while being dropped, which no killed process does.
//!
//! A paused node's tasks are not polled: what they wait for may happen, what comes for them waits, and the kernel
//! below (its sockets) goes on. When it goes on, everybody who was to be polled is. Its clocks go on all the time, as
//! those of a suspended phone or a stopped process do.

use std::fmt::{self, Debug};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tern_core::clock::{Clock, Entropy};
use tern_core::store::BoxFut;
use tern_net::env::{Env, Spawn, Spawner};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::access::{Access, HostCounts};
use crate::limits::PORT_FIRST;
use crate::links::Names;
use crate::net::SimNet;
use crate::random::derive;
use crate::world::World;

/// Milliseconds since 1970 at which every world begins: 2026-01-01T00:00:00Z.
pub const EPOCH_MS: u64 = 1_767_225_600_000;

/// A host of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub(crate) usize);

/// Whether a host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// Its node runs.
    Up,
    /// Its node's process was killed: the kernel has reset its streams and refuses new ones.
    Killed,
    /// It is without power: nobody answers.
    Off,
}

/// What the world knows of a host.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) names: Names,
    /// Of a device, see [`crate::world::State::own_ip`].
    pub(crate) ip: Ipv4Addr,
    /// Its interfaces, if it is a device.
    pub(crate) access: Option<Access>,
    pub(crate) counts: HostCounts,
    /// Connections that it has had; keys their randomness.
    pub(crate) connections: u64,
    pub(crate) state: HostState,
    /// Counts the starts; handles of an earlier start do nothing.
    pub(crate) incarnation: u64,
    pub(crate) tasks: Arc<NodeTasks>,
    pub(crate) panics_before: usize,
    ended_tasks: u64,
    clock: Arc<SimClock>,
    /// Keyed by (seed, name, start), so that a host more does not reshuffle the others'.
    rng: Arc<Entropy>,
    next_port: u16,
}

impl Host {
    pub(crate) fn new(name: &str, names: Names, ip: Ipv4Addr, start: Instant, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            names,
            ip,
            access: None,
            counts: HostCounts::default(),
            connections: 0,
            state: HostState::Up,
            incarnation: 1,
            tasks: Arc::new(NodeTasks::new()),
            panics_before: 0,
            ended_tasks: 0,
            clock: Arc::new(SimClock { start, wrong: Mutex::default() }),
            rng: Arc::new(Entropy::seeded(derive(seed, name, 1))),
            next_port: PORT_FIRST,
        }
    }

    /// The next port to try where 0 was asked for. Goes on over restarts, as real systems avoid to use a port
    /// again soon.
    pub(crate) fn take_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(PORT_FIRST);
        port
    }
}

/// A handle to a host and the node on it. Cheap to clone.
#[derive(Clone)]
pub struct SimNode {
    world: World,
    host: HostId,
}

impl Debug for SimNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNode").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl SimNode {
    pub(crate) fn new(world: World, host: HostId) -> Self {
        Self { world, host }
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.world.shared.with(|state, _| state.host(self.host).name.clone())
    }

    /// Its address; of a device, that of the interface in use.
    pub fn ip(&self) -> IpAddr {
        self.world.shared.with(|state, _| IpAddr::V4(state.own_ip(self.host)))
    }

    /// Whether it runs.
    pub fn state(&self) -> HostState {
        self.world.shared.with(|state, _| state.host(self.host).state)
    }

    /// The environment of its present start; of no use after a kill.
    pub fn env(&self) -> Env {
        let shared = &self.world.shared;
        shared.with(|state, _| {
            let host = state.host(self.host);
            let tasks = Arc::clone(&host.tasks);
            let name = host.name.clone();
            Env {
                net: Arc::new(SimNet::new(Arc::clone(shared), self.host, host.incarnation, Arc::clone(&tasks), name)),
                clock: Arc::<SimClock>::clone(&host.clock),
                rng: Arc::clone(&host.rng),
                tasks: Spawner::new(tasks),
            }
        })
    }

    /// Sets how far its calendar clock is ahead (or behind, if negative), and ends its drift. Its monotonic clock does
    /// not move.
    pub fn set_clock_skew_ms(&self, skew_ms: i64) {
        self.clock().set(|_, since| Wrong { skew_ms, drift_ppm: 0, since });
    }

    /// Lets its calendar clock run too fast (or too slowly, if negative) by so many parts per million from now on. What
    /// has come together so far stays. Its monotonic clock and its timers keep the world's time.
    pub fn set_clock_drift_ppm(&self, ppm: i32) {
        self.clock().set(|wrong, since| Wrong { skew_ms: wrong.ahead_ms(since), drift_ppm: ppm, since });
    }

    fn clock(&self) -> Arc<SimClock> {
        self.world.shared.with(|state, _| Arc::clone(&state.host(self.host).clock))
    }

    /// Stops its tasks where they are, or lets them go on. A restart ends a pause. Of no effect on a node that is down.
    pub fn set_paused(&self, paused: bool) {
        let tasks = self.world.shared.with(|state, _| Arc::clone(&state.host(self.host).tasks));
        tasks.pause.set(paused);
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        let tasks = self.world.shared.with(|state, _| Arc::clone(&state.host(self.host).tasks));
        tasks.pause.is_on()
    }

    /// Kills the node's process: its streams are reset, later ones refused. Returns when no task of it is
    /// left. Call it from the scenario, never from a task of the node. Of no effect on a node that is down.
    pub async fn kill(&self) {
        self.down(HostState::Killed).await;
    }

    /// Takes the power away: nobody is told. Otherwise like [`SimNode::kill`].
    pub async fn power_off(&self) {
        self.down(HostState::Off).await;
    }

    /// Kills the node's process, or takes the power away, at once: it sends and receives nothing any more, and no task
    /// of it is polled again. Its tasks are still to be dropped: call [`SimNode::kill`] or [`SimNode::power_off`] for
    /// that. May be called from anywhere, also from one of its tasks.
    pub fn strike_down(&self, how: HostState) {
        self.world.shared.with(|state, after| {
            let host = state.host(self.host);
            if host.state == HostState::Up {
                host.tasks.dead.store(true, Ordering::SeqCst);
                state.down(self.host, how, after);
            }
        });
    }

    async fn down(&self, how: HostState) {
        self.strike_down(how);
        let tasks = self.world.shared.with(|state, _| Arc::clone(&state.host(self.host).tasks));
        let ended = tasks.end().await;
        self.world.shared.with(|state, _| state.hosts[self.host.0].ended_tasks += ended);
    }

    /// Calls this each time that one of its present tasks has been polled, until it is restarted: after what happens between
    /// two awaits. It may [`SimNode::strike_down`] the node.
    pub fn after_each_poll(&self, call: impl Fn() + Send + Sync + 'static) {
        let tasks = self.world.shared.with(|state, _| Arc::clone(&state.host(self.host).tasks));
        // A second one would make the first one miss polls; the first stays.
        let _second = tasks.polled.set(Box::new(call));
    }

    /// How many of its tasks ended with kills and without power, so far.
    pub fn ended_tasks(&self) -> u64 {
        self.world.shared.with(|state, _| state.host(self.host).ended_tasks)
    }

    /// Starts the host again, with nothing running: take a new [`SimNode::env`]. Of no effect on a node that
    /// runs.
    pub fn restart(&self) {
        let seed = self.world.seed();
        let before = self.world.shared.with(|state, _| {
            let host = &mut state.hosts[self.host.0];
            if host.state == HostState::Up {
                return None;
            }
            host.state = HostState::Up;
            host.incarnation += 1;
            host.panics_before += host.tasks.panics.load(Ordering::SeqCst);
            host.rng = Arc::new(Entropy::seeded(derive(seed, &host.name, host.incarnation)));
            Some(std::mem::replace(&mut host.tasks, Arc::new(NodeTasks::new())))
        });
        drop(before);
    }

    /// How many tasks of it run.
    pub fn tasks(&self) -> usize {
        self.world.shared.with(|state, _| Arc::clone(&state.host(self.host).tasks)).count()
    }
}

/// Who is called after each poll of a task.
type Polled = Box<dyn Fn() + Send + Sync>;

/// The tasks of one start of a node.
pub(crate) struct NodeTasks {
    dead: Arc<AtomicBool>,
    pause: Arc<Pause>,
    polled: Arc<OnceLock<Polled>>,
    panics: AtomicUsize,
    set: Mutex<JoinSet<()>>,
    runtime: Handle,
}

impl Debug for NodeTasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTasks").field("dead", &self.dead).finish_non_exhaustive()
    }
}

impl NodeTasks {
    fn new() -> Self {
        Self {
            dead: Arc::new(AtomicBool::new(false)),
            pause: Arc::default(),
            polled: Arc::default(),
            panics: AtomicUsize::new(0),
            set: Mutex::new(JoinSet::new()),
            runtime: Handle::current(),
        }
    }

    /// Whether they stand still.
    pub(crate) fn is_paused(&self) -> bool {
        self.pause.is_on()
    }

    /// Forgets tasks that have ended; a node would otherwise collect one per connection.
    fn reap(&self, set: &mut JoinSet<()>) {
        while let Some(ended) = set.try_join_next() {
            if ended.is_err_and(|error| error.is_panic()) {
                self.panics.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn count(&self) -> usize {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        self.reap(&mut set);
        set.len()
    }

    pub(crate) fn panics(&self) -> usize {
        self.count();
        self.panics.load(Ordering::SeqCst)
    }

    /// Drops all tasks; returns how many there were.
    async fn end(&self) -> u64 {
        let mut set = std::mem::take(&mut *self.set.lock().unwrap_or_else(PoisonError::into_inner));
        self.reap(&mut set);
        let count = u64::try_from(set.len()).unwrap_or(u64::MAX);
        set.abort_all();
        while let Some(ended) = set.join_next().await {
            if ended.is_err_and(|error| error.is_panic()) {
                self.panics.fetch_add(1, Ordering::SeqCst);
            }
        }
        count
    }
}

impl Spawn for NodeTasks {
    fn spawn(&self, task: BoxFut<'static, ()>) {
        if self.dead.load(Ordering::SeqCst) {
            return;
        }
        let task = NodeTask {
            dead: Arc::clone(&self.dead),
            pause: Arc::clone(&self.pause),
            polled: Arc::clone(&self.polled),
            task,
        };
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        self.reap(&mut set);
        set.spawn_on(task, &self.runtime);
    }
}

/// Whether a node stands still, and whom it owes a poll.
#[derive(Debug, Default)]
pub(crate) struct Pause(Mutex<(bool, Vec<Waker>)>);

impl Pause {
    fn set(&self, on: bool) {
        let owed = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = on;
            if on { Vec::new() } else { std::mem::take(&mut state.1) }
        };
        for waker in owed {
            waker.wake();
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether a task must wait. If so it is polled when the pause ends.
    fn holds(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 {
            state.1.push(cx.waker().clone());
        }
        state.0
    }
}

/// A task that runs no further once its node is dead, and stands still while it is paused.
struct NodeTask {
    dead: Arc<AtomicBool>,
    pause: Arc<Pause>,
    polled: Arc<OnceLock<Polled>>,
    task: BoxFut<'static, ()>,
}

impl Future for NodeTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.dead.load(Ordering::SeqCst) {
            return Poll::Ready(());
        }
        if self.pause.holds(cx) {
            return Poll::Pending;
        }
        let polled = self.task.as_mut().poll(cx);
        if let Some(call) = self.polled.get() {
            call();
        }
        polled
    }
}

/// How wrong a calendar clock is.
#[derive(Clone, Copy, Debug, Default)]
struct Wrong {
    /// Ahead by so much when the drift began.
    skew_ms: i64,
    drift_ppm: i32,
    /// When the drift began.
    since: Duration,
}

impl Wrong {
    /// How far ahead it is.
    fn ahead_ms(self, now: Duration) -> i64 {
        let drifted = i128::from(self.drift_ppm) * i128::try_from((now - self.since).as_micros()).unwrap_or(0);
        self.skew_ms.saturating_add(i64::try_from(drifted / 1_000_000_000).unwrap_or(i64::MAX))
    }
}

/// Virtual time as one host reads it.
#[derive(Debug)]
pub struct SimClock {
    start: Instant,
    wrong: Mutex<Wrong>,
}

impl SimClock {
    fn set(&self, change: impl FnOnce(Wrong, Duration) -> Wrong) {
        let now = self.start.elapsed();
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        *wrong = change(*wrong, now);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        let now = self.start.elapsed();
        let ahead_ms = self.wrong.lock().unwrap_or_else(PoisonError::into_inner).ahead_ms(now);
        let elapsed_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        EPOCH_MS.saturating_add(elapsed_ms).saturating_add_signed(ahead_ms)
    }
}
