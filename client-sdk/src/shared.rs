//! Machine, store and connections under one lock: every input is one short critical section.
//!
//! The rule of `tern_core::client` is kept here: the ops of a step are applied before its effects. A failed
//! transaction throws the machine away and builds it from the store again, as if the process had been
//! killed: there is one way of recovering, and it is in use every day.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tern_core::client::{Asking, ConnNo, ConnectionState, Effect, Failure, Machine, NetInfo, Outbound, Setup, Trouble};
use tern_core::codes::Code;
use tern_core::wire::Lane;
use tern_core::wire::compact::Read;
use tern_net::env::Env;
use tokio::sync::{Notify, broadcast, watch};

use crate::config::{ClientConfig, Tokens};
use crate::dispatch;
use crate::events::Event;
use crate::limits::{EVENTS_MAX, STORE_PAUSE, STORE_PAUSE_MAX};
use crate::store::{LocalStore, StoreError};

/// What waits to be written to one connection. Bounded by the machine's windows.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    lanes: Mutex<([Vec<Outbound>; 3], Option<Code>)>,
    pub(crate) more: [Notify; 3],
    pub(crate) closing: Notify,
    /// The connection, where its transport counts what comes in.
    pub(crate) transport: OnceLock<quinn::Connection>,
}

impl Outgoing {
    fn push(&self, out: Outbound) {
        let lane = match &out {
            Outbound::Send(..) => Lane::Message,
            Outbound::Frame(frame) => frame.lane().unwrap_or(Lane::Control),
        };
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.0[lane.index()].push(out);
        drop(lanes);
        self.more[lane.index()].notify_one();
        // A transport of one stream waits on the first alone.
        self.more[0].notify_one();
    }

    /// Takes what waits for `lane`.
    pub(crate) fn take(&self, lane: Lane) -> Vec<Outbound> {
        std::mem::take(&mut self.lanes.lock().unwrap_or_else(PoisonError::into_inner).0[lane.index()])
    }

    pub(crate) fn close(&self, code: Code) {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).1.get_or_insert(code);
        self.closing.notify_one();
    }

    /// The code to close with, once it is to be closed.
    pub(crate) fn closed(&self) -> Option<Code> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// Work for the driver.
#[derive(Debug)]
pub(crate) enum Job {
    Connect(Box<ConnectJob>),
    Dispatch(Asking, Option<NetInfo>),
    Token { refused: bool },
}

#[derive(Debug)]
pub(crate) struct ConnectJob {
    pub(crate) conn: ConnNo,
    pub(crate) candidate: tern_core::client::Candidate,
    pub(crate) transport: tern_core::client::Transport,
    pub(crate) hello: tern_core::client::Hello,
    pub(crate) rtt: Option<Duration>,
    pub(crate) out: Arc<Outgoing>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) machine: Machine,
    /// `None` once the client is closed.
    pub(crate) store: Option<Box<dyn LocalStore>>,
    pub(crate) jobs: VecDeque<Job>,
    /// When the driver wakes up by itself.
    pub(crate) armed: Option<Duration>,
    conns: BTreeMap<ConnNo, Arc<Outgoing>>,
    setup: Setup,
    /// The store failed: when to connect again, and how often that was. The machine may be older than the
    /// store until it was read again.
    store_pause: Option<Duration>,
    store_failures: u32,
    /// What is wrong with it.
    store_trouble: String,
    stale: bool,
    wants_connection: bool,
}

impl Inner {
    /// Whether and how the client is connected.
    pub(crate) fn connection(&self) -> ConnectionState {
        match self.store_pause {
            Some(at) if self.wants_connection => {
                let trouble = Trouble::Store { message: self.store_trouble.clone() };
                ConnectionState::Connecting { retry_at: Some(at), trouble: Some(trouble) }
            }
            // The machine is of before the failure.
            _ if self.stale => ConnectionState::Offline,
            _ => self.machine.connection(),
        }
    }

    /// A line of diagnostics, where the store is in trouble.
    pub(crate) fn store_line(&self, now: Duration) -> String {
        match self.store_pause {
            Some(at) => {
                let left = at.saturating_sub(now).as_secs_f64();
                format!(
                    "store       failed {} times, tried again in {left:.1} s: {}\n",
                    self.store_failures, self.store_trouble
                )
            }
            None => String::new(),
        }
    }
}

/// Why a call was not done.
#[derive(Debug)]
pub(crate) enum Unavailable {
    Store(StoreError),
    Closed,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) config: ClientConfig,
    pub(crate) tokens: Tokens,
    inner: Mutex<Inner>,
    pub(crate) wake: Notify,
    events: Mutex<Option<broadcast::Sender<Event>>>,
    pub(crate) version: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(
        env: Env,
        config: ClientConfig,
        tokens: Tokens,
        mut store: Box<dyn LocalStore>,
    ) -> Result<Self, StoreError> {
        let setup = Setup {
            user: config.user.clone(),
            agent: agent(&config.agent),
            fallback: config.fallback_edges.iter().map(crate::config::FallbackEdge::to_candidate).collect(),
            dispatch_targets: config.dispatch.len(),
            device: config.device.clone(),
            seed: env.rng.u64(),
        };
        let machine = build(&env, &config, &setup, store.as_mut())?;
        let inner = Inner {
            machine,
            store: Some(store),
            jobs: VecDeque::new(),
            armed: None,
            conns: BTreeMap::new(),
            setup,
            store_pause: None,
            store_failures: 0,
            store_trouble: String::new(),
            stale: false,
            wants_connection: true,
        };
        let waiting = config.events.clamp(1, EVENTS_MAX);
        Ok(Self {
            env,
            config,
            tokens,
            inner: Mutex::new(inner),
            wake: Notify::new(),
            events: Mutex::new(Some(broadcast::Sender::new(waiting))),
            version: watch::Sender::new(0),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // A closed client has no sender: a receiver without one ends at once.
        events.as_ref().map_or_else(|| broadcast::channel(1).1, broadcast::Sender::subscribe)
    }

    fn tell(&self, event: Event) {
        if let Some(events) = self.events.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            // Nobody may be listening.
            drop(events.send(event));
        }
    }

    /// Lets `act` work on the machine, stores what follows, and sets the effects going.
    pub(crate) fn act<T>(&self, act: impl FnOnce(&mut Machine, Duration) -> T) -> Result<T, Unavailable> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.store.is_none() {
            return Err(Unavailable::Closed);
        }
        self.refresh(inner)?;
        let now = self.env.clock.now();
        feel(inner, now);
        let result = act(&mut inner.machine, now);
        self.flush(inner).map_err(Unavailable::Store)?;
        Ok(result)
    }

    /// Reads from machine and store.
    pub(crate) fn look<T>(
        &self,
        look: impl FnOnce(&Machine, &dyn LocalStore) -> Result<T, StoreError>,
    ) -> Result<T, Unavailable> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        self.refresh(inner)?;
        let store = inner.store.as_deref().ok_or(Unavailable::Closed)?;
        look(&inner.machine, store).map_err(Unavailable::Store)
    }

    fn flush(&self, inner: &mut Inner) -> Result<(), StoreError> {
        let step = inner.machine.take_step();
        if !step.ops.is_empty() {
            let Some(store) = inner.store.as_mut() else { return Ok(()) };
            match store.apply(&step.ops) {
                Ok(changes) => {
                    inner.store_failures = 0;
                    changes.into_iter().for_each(|c| self.tell(Event::Message(c)));
                }
                Err(e) => {
                    self.store_failed(inner, &e);
                    return Err(e);
                }
            }
        }
        for effect in step.effects {
            self.carry_out(inner, effect);
        }
        self.version.send_modify(|v| *v = v.wrapping_add(1));
        if !inner.jobs.is_empty()
            || (inner.machine.next_deadline().is_some_and(|at| inner.armed.is_none_or(|a| at < a)))
        {
            self.wake.notify_one();
        }
        Ok(())
    }

    fn carry_out(&self, inner: &mut Inner, effect: Effect) {
        match effect {
            Effect::Connect { conn, candidate, transport, hello, rtt } => {
                let out = Arc::new(Outgoing::default());
                inner.conns.insert(conn, out.clone());
                let job = ConnectJob { conn, candidate, transport, hello, rtt, out };
                inner.jobs.push_back(Job::Connect(Box::new(job)));
            }
            Effect::Close { conn, code } => {
                if let Some(out) = inner.conns.remove(&conn) {
                    out.close(code);
                }
            }
            Effect::Write { conn, out } => {
                if let Some(queue) = inner.conns.get(&conn) {
                    queue.push(out);
                }
            }
            Effect::Dispatch(asking, network) => inner.jobs.push_back(Job::Dispatch(asking, network)),
            Effect::Token { refused } => inner.jobs.push_back(Job::Token { refused }),
            Effect::Event(event) => self.tell(event.into()),
        }
    }

    /// The store failed: offline until it works again, which is tried after a pause.
    fn store_failed(&self, inner: &mut Inner, error: &StoreError) {
        tracing::warn!(%error, "the local store failed: offline until it works again");
        for (_, out) in std::mem::take(&mut inner.conns) {
            out.close(Code::Closed);
        }
        inner.jobs.clear();
        inner.stale = true;
        if inner.store_pause.is_none() {
            inner.wants_connection &= inner.machine.connection() != ConnectionState::Offline;
        }
        self.store_again(inner, error);
        // The application may go on reading and sending at once, from what is stored.
        if let Err(error) = self.reload(inner) {
            tracing::warn!(%error, "the local store can't be read either");
        }
    }

    /// Plans the next try, and tells of it.
    fn store_again(&self, inner: &mut Inner, error: &StoreError) {
        let pause = STORE_PAUSE.saturating_mul(1 << inner.store_failures.min(5)).min(STORE_PAUSE_MAX);
        inner.store_failures = inner.store_failures.saturating_add(1);
        inner.store_pause = Some(self.env.clock.now() + pause);
        inner.store_trouble = error.to_string();
        self.tell(Event::StoreFailed { message: error.to_string() });
        self.tell(Event::Connection(inner.connection()));
        self.version.send_modify(|v| *v = v.wrapping_add(1));
        self.wake.notify_one();
    }

    /// Builds the machine from the store anew where that failed before. If it fails again, it is tried again by itself.
    fn refresh(&self, inner: &mut Inner) -> Result<(), Unavailable> {
        if !inner.stale {
            return Ok(());
        }
        self.reload(inner).map_err(|error| {
            if inner.store_pause.is_none() {
                self.store_again(inner, &error);
            }
            Unavailable::Store(error)
        })
    }

    fn reload(&self, inner: &mut Inner) -> Result<(), StoreError> {
        let Some(store) = inner.store.as_deref_mut() else { return Ok(()) };
        inner.setup.seed = self.env.rng.u64();
        let surroundings = inner.machine.surroundings();
        inner.machine = build(&self.env, &self.config, &inner.setup, store)?;
        inner.machine.set_surroundings(surroundings);
        inner.stale = false;
        Ok(())
    }

    /// Connects, unless that has to wait for the store.
    pub(crate) fn connect(&self) -> Result<(), Unavailable> {
        {
            let mut inner = self.lock();
            (inner.store_pause, inner.wants_connection) = (None, true);
        }
        self.act(Machine::connect)
    }

    /// Ends the connection, makes none until [`Self::connect`], and brings the store to rest.
    pub(crate) fn suspend(&self) -> Result<(), Unavailable> {
        // Also where the store fails now: it is not to connect by itself when that is over.
        self.lock().wants_connection = false;
        self.act(Machine::stop)?;
        let mut inner = self.lock();
        let store = inner.store.as_deref_mut().ok_or(Unavailable::Closed)?;
        store.rest().map_err(Unavailable::Store)
    }

    /// Does what is due.
    pub(crate) fn tick(&self) {
        let now = self.env.clock.now();
        let connect = {
            let mut inner = self.lock();
            let due = inner.store_pause.is_some_and(|t| now >= t);
            if inner.stale && !due {
                return;
            }
            if due {
                inner.store_pause = None;
            }
            due && inner.wants_connection
        };
        // Errors were told as events, and made the next try due.
        let _told = if connect { self.act(Machine::connect) } else { self.act(Machine::tick) };
    }

    /// What the driver has to do, and when to tick. `None` once the client is closed.
    pub(crate) fn work(&self) -> Option<(VecDeque<Job>, Option<Duration>)> {
        let mut inner = self.lock();
        inner.store.as_ref()?;
        let machine = inner.machine.next_deadline().filter(|_| !inner.stale);
        inner.armed = [machine, inner.store_pause].into_iter().flatten().min();
        Some((std::mem::take(&mut inner.jobs), inner.armed))
    }

    /// Frames of one read.
    pub(crate) fn frames(&self, conn: ConnNo, out: &Arc<Outgoing>, frames: Vec<(u32, Read)>) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if !inner.conns.get(&conn).is_some_and(|known| Arc::ptr_eq(known, out)) {
            return;
        }
        let now = self.env.clock.now();
        feel(inner, now);
        for (req, read) in frames {
            inner.machine.frame(now, conn, req, read);
        }
        inner.machine.frames_done(now);
        // An error was told as an event, and has closed this connection.
        let _told = self.flush(inner);
    }

    /// A connection or an attempt has ended.
    pub(crate) fn ended(&self, conn: ConnNo, out: &Arc<Outgoing>, failure: &Failure) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if !inner.conns.get(&conn).is_some_and(|known| Arc::ptr_eq(known, out)) {
            return;
        }
        inner.conns.remove(&conn);
        inner.machine.ended(self.env.clock.now(), conn, failure);
        let _told = self.flush(inner);
    }

    /// Ends everything and gives the store back. What was stored stays.
    pub(crate) fn close(&self) {
        if self.act(Machine::stop).is_err() {
            tracing::debug!("closing a client whose store does not work");
        }
        let mut inner = self.lock();
        inner.store = None;
        inner.jobs.clear();
        for (_, out) in std::mem::take(&mut inner.conns) {
            out.close(Code::Closed);
        }
        drop(inner);
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.version.send_modify(|v| *v = v.wrapping_add(1));
        self.wake.notify_one();
    }
}

/// Tells the machine what the transport in use has heard, before anything else is concluded.
fn feel(inner: &mut Inner, now: Duration) {
    let conn = inner.machine.in_use();
    let transport = conn.and_then(|conn| inner.conns.get(&conn)?.transport.get().zip(Some(conn)));
    if let Some((transport, conn)) = transport {
        let stats = transport.stats();
        inner.machine.felt(now, conn, stats.udp_rx.datagrams, stats.path.rtt);
    }
}

fn agent(text: &str) -> String {
    let end = text.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= 64).last().unwrap_or(0);
    text[..end].to_owned()
}

fn build(env: &Env, config: &ClientConfig, setup: &Setup, store: &mut dyn LocalStore) -> Result<Machine, StoreError> {
    let image = store.load()?;
    let kept = image.dispatch.clone();
    let mut machine = Machine::new(setup.clone(), image);
    machine.set_wall(env.clock.now(), env.clock.wall_ms());
    if let Some((answer, at_ms)) = kept {
        match dispatch::parse(&answer, config.edge_name.as_deref()) {
            Ok((list, ttl)) => {
                let age = Duration::from_millis(env.clock.wall_ms().abs_diff(at_ms));
                machine.cached_dispatch(env.clock.now(), list, ttl.saturating_sub(age));
            }
            Err(error) => tracing::debug!(%error, "the kept dispatch answer is of no use"),
        }
    }
    Ok(machine)
}
