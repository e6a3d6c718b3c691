//! The edge: its table of connections, and what happens to all of them at once.
//!
//! The core delivers by connection number. A number is a place in a table and a serial above it, so looking
//! one up costs an index, and a late frame for a connection that is gone finds nobody rather than the next
//! one in its place.

use std::fmt::{self, Debug};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::task::Waker;
use std::time::Duration;

use arc_swap::ArcSwap;
use tern_core::codes::{Code, Refusal};
use tern_core::edge_api::{ConnId, CorePort, Down, DownBody, EdgePort, Up};
use tern_core::mutants::{Mutant, on};
use tern_core::pacing::Rate;
use tern_core::pressure::Level;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{node_v1, v1};
use tern_net::env::Env;
use tern_net::quic::QuicError;
use tern_net::sounding::Sounding;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::admission::{Admission, Admitted};
use crate::config::EdgeConfig;
use crate::guard::Guard;
use crate::listen;
use crate::load::{self, Load};
use crate::mailbox::Conn;
use crate::metrics::EdgeMetrics;
use crate::pace::Paces;
use crate::poll::Polls;
use crate::session;
use crate::tokens::TokenKeys;
use crate::tune::Tuning;

/// How often the edge looks after itself: notices a lost core and forgets old allowances.
const TICK: Duration = Duration::from_millis(250);
/// The load is reported with every so many ticks: once a second.
const TICKS_PER_REPORT: u32 = 4;
/// How often a drain looks whether the connections are gone, and sends the next GoAways.
const DRAIN_STEP: Duration = Duration::from_millis(100);
/// Bits of a connection number that are its place in the table: 16 million at once.
const PLACE_BITS: u32 = 24;

/// Why an edge does not start. Nothing stays open.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The TCP side.
    #[error("can't listen on TCP {at}: {cause}; check that the address is this machine's and the port is free")]
    Listen {
        /// What was asked for.
        at: SocketAddr,
        /// What the system says.
        cause: io::Error,
    },
    /// The UDP side.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// `run` was called before.
    #[error("this edge runs already; make another one")]
    Running,
}

/// An edge that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundEdge {
    /// Where, UDP and TCP alike; the port is known even if 0 was asked for.
    pub local_addr: SocketAddr,
    /// Where else.
    pub also: Vec<SocketAddr>,
}

/// An edge. Cheap handle; its tasks belong to the environment it was made with.
pub struct Edge {
    pub(crate) env: Env,
    pub(crate) config: EdgeConfig,
    pub(crate) metrics: EdgeMetrics,
    pub(crate) paces: Paces,
    pub(crate) load: Load,
    pub(crate) sounding: Option<Arc<Sounding>>,
    tuning: ArcSwap<Tuning>,
    keys: RwLock<Arc<TokenKeys>>,
    generation: u64,
    table: RwLock<Table>,
    guard: Mutex<Guard>,
    admission: Admission,
    core: OnceLock<Arc<dyn CorePort>>,
    /// Since when the core is gone.
    lost: Mutex<Option<Duration>>,
    /// Whether it is, for those who ask often.
    is_lost: AtomicBool,
    /// Counts the losses of the core.
    core_generation: AtomicU64,
    /// Sessions opened in an earlier generation than this are to be closed.
    doomed: AtomicU64,
    draining: AtomicBool,
    connections: AtomicUsize,
    cpu_permille: AtomicU32,
    alternates: Mutex<Vec<String>>,
    bound: OnceLock<BoundEdge>,
    /// Sessions of clients that poll.
    pub(crate) polls: Polls,
    stop: watch::Sender<Option<Refusal>>,
}

#[derive(Debug, Default)]
struct Table {
    places: Vec<Option<Arc<Conn>>>,
    free: Vec<u32>,
    serial: u64,
}

impl Table {
    fn get(&self, id: ConnId) -> Option<&Arc<Conn>> {
        let place = usize::try_from(id & ((1 << PLACE_BITS) - 1)).ok()?;
        self.places.get(place)?.as_ref().filter(|conn| conn.id == id)
    }
}

impl Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge")
            .field("name", &self.config.name)
            .field("bound", &self.bound.get())
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Edge {
    /// An edge that does not listen yet. `keys` check the tokens of clients.
    pub fn new(env: Env, config: EdgeConfig, keys: TokenKeys, metrics: EdgeMetrics) -> Arc<Self> {
        let l = &config.limits;
        let tuning = Tuning::of(&config);
        let abandoned = Rate::new(l.abandoned_handshakes_per_second, l.abandoned_handshakes_burst);
        let guard = Guard::new(tuning.failed_handshakes(), abandoned);
        Arc::new(Self {
            paces: Paces::new(l.sends_per_second, l.sends_burst),
            load: Load::default(),
            sounding: env.net.buffers().then(|| Sounding::new(&env.rng)),
            guard: Mutex::new(guard),
            admission: Admission::new(l),
            tuning: ArcSwap::from_pointee(tuning),
            keys: RwLock::new(Arc::new(keys)),
            generation: env.rng.u64(),
            metrics,
            table: RwLock::default(),
            core: OnceLock::new(),
            lost: Mutex::new(None),
            is_lost: AtomicBool::new(false),
            core_generation: AtomicU64::new(0),
            doomed: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            cpu_permille: AtomicU32::new(0),
            alternates: Mutex::default(),
            bound: OnceLock::new(),
            polls: Polls::default(),
            stop: watch::channel(None).0,
            env,
            config,
        })
    }

    /// Listens and serves until [`Self::stop`]; `core` answers. May be called once. Which protocols are offered
    /// by ALPN is decided here, whatever `tls` says.
    pub async fn run(
        self: &Arc<Self>,
        core: Arc<dyn CorePort>,
        tls: Arc<rustls::ServerConfig>,
    ) -> Result<BoundEdge, EdgeError> {
        if self.bound.get().is_some() {
            return Err(EdgeError::Running);
        }
        let mut sockets = listen::bind(self, self.config.listen, &tls).await?;
        let local_addr = sockets.local_addr;
        let mut also = Vec::new();
        let mut more = Vec::new();
        for at in &self.config.listen_also {
            let port = if at.port() == 0 { local_addr.port() } else { at.port() };
            let sockets = listen::bind(self, SocketAddr::new(at.ip(), port), &tls).await?;
            also.push(sockets.local_addr);
            more.push(sockets);
        }
        let bound = BoundEdge { local_addr, also };
        if self.core.set(core).is_err() || self.bound.set(bound.clone()).is_err() {
            sockets.close();
            return Err(EdgeError::Running);
        }
        for sockets in std::iter::once(sockets).chain(more) {
            sockets.serve(self, &tls);
        }
        let edge = self.clone();
        self.env.tasks.spawn(async move { edge.look_after().await });
        self.env.tasks.spawn(load::watch(self.clone(), self.sounding.clone()));
        Ok(bound)
    }

    /// Random per start of this edge: tells its announcements from those of an earlier process.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The port that it listens at, UDP and TCP alike.
    pub(crate) fn port(&self) -> Option<u16> {
        self.bound.get().map(|bound| bound.local_addr.port())
    }

    /// Its settings.
    pub fn config(&self) -> &EdgeConfig {
        &self.config
    }

    /// Connections that are open, handshakes included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Other keys for tokens from now on; sessions that are open stay.
    pub fn set_keys(&self, keys: TokenKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// What can be changed while it runs, as it is now.
    pub fn tuning(&self) -> Arc<Tuning> {
        self.tuning.load_full()
    }

    /// Changes it, and reports at once.
    pub fn tune(&self, tuning: Tuning) {
        self.paces.set_rate(tuning.sends_per_second, tuning.sends_burst);
        lock(&self.guard).set_rate(tuning.failed_handshakes());
        self.tuning.store(Arc::new(tuning));
        self.report();
    }

    /// How busy the process is, for the load report: 1000 = all the processors it has.
    pub fn set_cpu_permille(&self, permille: u32) {
        self.cpu_permille.store(permille, Ordering::Relaxed);
    }

    /// "host:port" of edges that clients are sent to when this one drains.
    pub fn set_alternates(&self, alternates: Vec<String>) {
        *lock(&self.alternates) = alternates;
    }

    /// Sends every client elsewhere: refuses new Hellos, tells open connections to leave within `window`, at
    /// the configured pace, and closes at its end those who stayed. Returns when no connection is left. Drop
    /// the future and call [`Self::undrain`] to go on serving.
    pub async fn drain(&self, window: Duration) {
        let telling = Duration::from_secs(1).saturating_mul(u32::try_from(self.connections()).unwrap_or(u32::MAX))
            / self.config.drain_per_second.max(1);
        // At most half of the window goes into telling.
        let telling = telling.min(window / 2);
        self.send_away(telling, window, window.saturating_sub(telling), "this edge is about to stop").await;
    }

    /// As [`Self::drain`], at a pace: connections are told one after the other, evenly over `telling`, each to leave
    /// within `window` of then, for this `reason`. Those who stayed are closed when the last one's window is over.
    pub async fn drain_paced(&self, telling: Duration, window: Duration, reason: &str) {
        self.send_away(telling, window, window, reason).await;
    }

    /// The whole takes `telling` and `rest`; nobody is given longer than `window`.
    async fn send_away(&self, telling: Duration, window: Duration, rest: Duration, reason: &str) {
        self.draining.store(true, Ordering::Relaxed);
        self.report();
        let end = self.env.clock.now() + telling + rest;
        let alternates = lock(&self.alternates).clone();
        let conns = self.all();
        let steps = usize::try_from(telling.as_millis() / DRAIN_STEP.as_millis()).unwrap_or(usize::MAX).max(1);
        let mut told = 0;
        for step in 1..=steps {
            // So many by the end of this step: at a slow pace there are steps with nobody.
            let due = conns.len().saturating_mul(step) / steps;
            let left = end.saturating_sub(self.env.clock.now()).min(window);
            let go_away = v1::GoAway {
                alternates: alternates.clone(),
                // The last tenth is for those whose next connection takes its time.
                window_ms: u32::try_from(left.as_millis() * 9 / 10).unwrap_or(u32::MAX),
                reason: reason.into(),
            };
            for conn in conns.get(told..due).unwrap_or_default() {
                let body = DownBody::Frame(Box::new(v1::Frame::new(0, Body::GoAway(go_away.clone()))));
                self.put(conn, body);
            }
            told = due;
            if told == conns.len() && self.connections() == 0 {
                return;
            }
            sleep(DRAIN_STEP).await;
        }
        while self.connections() > 0 && self.env.clock.now() < end {
            sleep(DRAIN_STEP).await;
        }
        self.close_all(&Refusal::new(Code::Draining, reason));
        while self.connections() > 0 {
            sleep(DRAIN_STEP).await;
        }
    }

    /// Takes new connections again after a drain that was broken off.
    pub fn undrain(&self) {
        self.draining.store(false, Ordering::Relaxed);
        self.report();
    }

    /// Stops listening and closes all connections at once. The edge can't be run again.
    pub fn stop(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let refusal = Refusal::new(Code::Draining, "this edge stops");
        self.close_all(&refusal);
        self.stop.send_replace(Some(refusal));
    }

    /// What the edge says about its load.
    pub fn load(&self) -> node_v1::EdgeLoad {
        let bound = self.bound.get();
        let listening = bound.into_iter().flat_map(|b| std::iter::once(&b.local_addr).chain(&b.also));
        let tuning = self.tuning.load();
        let addresses: Vec<String> = if tuning.advertise.is_empty() {
            listening.map(ToString::to_string).collect()
        } else {
            tuning.advertise.iter().map(ToString::to_string).collect()
        };
        node_v1::EdgeLoad {
            edge: self.config.name.clone(),
            region: u32::from(self.config.region),
            region_name: self.config.region_name.clone(),
            addresses,
            connections: u32::try_from(self.connections()).unwrap_or(u32::MAX),
            capacity: tuning.capacity,
            cpu_permille: self.cpu_permille.load(Ordering::Relaxed),
            draining: self.draining.load(Ordering::Relaxed),
            age_ms: 0,
            latitude: self.config.latitude,
            longitude: self.config.longitude,
            generation: self.generation,
            failure_domain: tuning.failure_domain.clone(),
        }
    }

    /// Places among the handshakes that are taken.
    #[cfg(test)]
    pub(crate) fn admission_pending(&self) -> u32 {
        self.admission.pending()
    }

    /// Serves connections that tests make.
    #[cfg(test)]
    pub(crate) fn run_without_sockets(self: &Arc<Self>, core: Arc<dyn CorePort>) {
        assert!(self.core.set(core).is_ok());
        let edge = self.clone();
        self.env.tasks.spawn(async move { edge.look_after().await });
        self.env.tasks.spawn(load::watch(self.clone(), None));
    }

    // ---- for listeners and drivers -------------------------------------------------------------------

    /// A place in the table, unless the edge is full.
    pub(crate) fn enter(&self, transport: &'static str) -> Option<Arc<Conn>> {
        let capacity = self.tuning.load().capacity;
        let most = capacity.saturating_add(capacity / 4).min(1 << PLACE_BITS);
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // Counted rather than found by the table's length: after the capacity was lowered there are free places
        // that are not to be given out.
        let taken = table.places.len() - table.free.len();
        if taken >= usize::try_from(most).unwrap_or(usize::MAX) {
            return None;
        }
        let place = match table.free.pop() {
            Some(place) => place,
            None => {
                let place = u32::try_from(table.places.len()).ok()?;
                table.places.push(None);
                place
            }
        };
        table.serial += 1;
        let conn = Arc::new(Conn::new(table.serial << PLACE_BITS | u64::from(place)));
        if let Some(slot) = table.places.get_mut(place as usize) {
            *slot = Some(conn.clone());
        }
        drop(table);
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.metrics.connections(transport).inc();
        Some(conn)
    }

    /// A connection turns out to be of another kind.
    pub(crate) fn relabel(&self, from: &'static str, to: &'static str) {
        self.metrics.connections(from).dec();
        self.metrics.connections(to).inc();
    }

    /// Gives the place back.
    pub(crate) fn leave(&self, conn: &Conn, transport: &'static str) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let place = conn.id & ((1 << PLACE_BITS) - 1);
        if let (Ok(index), Ok(place)) = (usize::try_from(place), u32::try_from(place))
            && let Some(slot) = table.places.get_mut(index)
            && slot.take().is_some()
        {
            table.free.push(place);
        }
        drop(table);
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.metrics.connections(transport).dec();
    }

    pub(crate) fn stopped(&self) -> watch::Receiver<Option<Refusal>> {
        self.stop.subscribe()
    }

    pub(crate) fn doomed(&self) -> u64 {
        self.doomed.load(Ordering::Acquire)
    }

    /// Whether what it says of its clients' addresses is believed.
    pub(crate) fn is_proxy(&self, from: IpAddr) -> bool {
        self.config.trusted_proxies.iter().any(|proxies| proxies.contains(from))
    }

    /// Refused for failing too often, and for how long.
    pub(crate) fn blocked(&self, from: IpAddr) -> Option<Duration> {
        lock(&self.guard).blocked(from, self.env.clock.now())
    }

    /// A connection of a proven address ended before its Hello was accepted, by the client's fault.
    pub(crate) fn handshake_failed(&self, from: IpAddr, code: Code) {
        self.metrics.handshake_failed(code.name());
        match code {
            // It was a client's fault, and there is no telling whose.
            _ if self.is_proxy(from) => {}
            // No fault of the client's: there is no telling whether it would have finished.
            Code::Draining | Code::CoreUnreachable | Code::UnsupportedVersion => {}
            // Whoever is told to come later and comes at once all the same.
            Code::Overloaded => lock(&self.guard).abandoned(from, self.env.clock.now()),
            _ => lock(&self.guard).failed(from, self.env.clock.now()),
        }
    }

    /// A connection of a proven address ended before its Hello was accepted, without having been refused.
    pub(crate) fn handshake_abandoned(&self, from: IpAddr) {
        self.metrics.handshake_failed("gone");
        if self.is_proxy(from) {
            return;
        }
        lock(&self.guard).abandoned(from, self.env.clock.now());
    }

    /// A Hello from there was accepted.
    pub(crate) fn handshake_done(&self, from: IpAddr) {
        lock(&self.guard).accepted(from);
    }

    /// Whether a handshake from there may begin. `proven`: see [`Admission::arrive`].
    pub(crate) fn admit(&self, from: IpAddr, proven: bool) -> Admitted {
        let admitted = if self.is_proxy(from) {
            self.admission.arrive_trusted(from)
        } else if self.blocked(from).is_some() {
            self.metrics.handshake_failed(Code::TooManyFailures.name());
            return Admitted::No;
        } else {
            self.admission.arrive(from, proven)
        };
        match &admitted {
            Admitted::Yes(_) => {}
            Admitted::Retry => {
                self.metrics.retries.inc();
            }
            Admitted::No => self.metrics.handshake_failed(Code::Overloaded.name()),
        }
        admitted
    }

    /// Whether more waits for and of all clients than is good.
    pub(crate) fn pressed(&self) -> bool {
        self.metrics.memory_bytes() > self.config.limits.memory_bytes
    }

    /// So much is given up for load; the core merges what is large. What an ack takes at least.
    pub(crate) fn give_up(&self, level: Level) -> Option<Duration> {
        let core = self.core.get()?;
        core.pressure(level);
        core.commit_time()
    }

    pub(crate) fn submit(&self, ups: Vec<Up>) {
        if let Some(core) = self.core.get() {
            core.submit(ups);
        }
    }

    pub(crate) fn scene(
        &self,
        conn: ConnId,
        peer: SocketAddr,
        transport: &'static str,
        now: Duration,
        wall_ms: u64,
    ) -> session::Context<'_> {
        session::Context {
            conn,
            peer,
            transport,
            now,
            wall_ms,
            connections: self.connections(),
            core_reachable: self.core.get().is_some_and(|core| core.reachable())
                && !self.is_lost.load(Ordering::Acquire),
            core_whole: self.core.get().is_some_and(|core| core.whole()),
            core_generation: self.core_generation.load(Ordering::Acquire),
            draining: self.draining.load(Ordering::Relaxed),
            pressed: self.pressed(),
            crowded: self.core.get().is_some_and(|core| core.crowded()),
            keys: &self.keys,
            config: &self.config,
            tuning: &self.tuning,
            paces: &self.paces,
            load: &self.load,
            metrics: &self.metrics,
        }
    }

    // ---- the core's absence --------------------------------------------------------------------------

    /// The core is gone: it knows none of the open sessions any more, even if it is back soon.
    pub(crate) fn core_lost(&self) {
        let mut lost = lock(&self.lost);
        if lost.is_none() {
            *lost = Some(self.env.clock.now());
            self.is_lost.store(true, Ordering::Release);
            self.core_generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The core is there (again).
    pub(crate) fn core_back(&self) {
        if lock(&self.lost).take().is_some() {
            // Doomed before anyone is let in again.
            self.doom();
            self.is_lost.store(false, Ordering::Release);
        }
    }

    /// Closes the sessions that the core does not know.
    fn doom(&self) {
        self.doomed.store(self.core_generation.load(Ordering::Acquire), Ordering::Release);
        self.all().iter().for_each(|conn| conn.wake());
    }

    fn look_at_core(&self) {
        if !self.core.get().is_some_and(|core| core.reachable()) {
            self.core_lost();
        } else {
            self.core_back();
        }
        let since = *lock(&self.lost);
        let late = since.is_some_and(|since| self.env.clock.now() >= since + self.config.limits.core_lost);
        let keeps = on(Mutant::PongFromEdgeCache);
        if late && !keeps && self.doomed() < self.core_generation.load(Ordering::Acquire) {
            self.doom();
        }
    }

    async fn look_after(self: Arc<Self>) {
        let mut stopped = self.stopped();
        let mut tick = 0;
        while stopped.borrow().is_none() {
            self.look_at_core();
            if tick % TICKS_PER_REPORT == 0 {
                self.report();
                let now = self.env.clock.now();
                self.paces.forget(now);
                lock(&self.guard).forget(now);
                self.metrics.handshakes.set(i64::from(self.admission.pending()));
                if self.pressed() {
                    // Who is slow has less time now, and does not know of it.
                    self.all().iter().for_each(|conn| conn.wake());
                }
            }
            tick += 1;
            tokio::select! {
                biased;
                _ = stopped.changed() => {}
                () = sleep(TICK) => {}
            }
        }
    }

    fn report(&self) {
        if let Some(core) = self.core.get() {
            core.report(self.load());
        }
    }

    // ---- all connections -----------------------------------------------------------------------------

    fn all(&self) -> Vec<Arc<Conn>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.places.iter().flatten().cloned().collect()
    }

    fn put(&self, conn: &Conn, body: DownBody) {
        let waker = conn.mailbox().put(body, &self.config.limits, &self.metrics);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn close_all(&self, refusal: &Refusal) {
        for conn in self.all() {
            let waker = conn.mailbox().end(refusal);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl EdgePort for Edge {
    fn deliver(&self, downs: Vec<Down>) {
        // Everything is in place before anyone wakes, so that one wake-up finds all of it.
        let mut wakers = Vec::new();
        {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            for down in downs {
                if let Some(conn) = table.get(down.conn) {
                    wakers.extend(conn.mailbox().put(down.body, &self.config.limits, &self.metrics));
                }
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
#[path = "edge_tests.rs"]
mod tests;
