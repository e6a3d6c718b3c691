//! The task that owns a process's socket for gossip, and a machine for each region that it takes part in.
//!
//! It reads, lets due timers fire, sends what the machines say, and tells events to the log and to a [`Watcher`].
//! A process that serves one region has one machine; a `tern ipconf` has one for each region it lists, all on one
//! socket: a datagram names its region before it is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::registry::Registry;
use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use tern_core::ids::Region;
use tern_core::wire::node_v1::{EdgeLoad, Order};
use tern_net::env::Env;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use super::events::{Counters, Dropped, Event, Member, Output};
use super::identity::{NodeId, Role};
use super::limits::{DATAGRAM_BYTES, ERROR_PAUSE, LOAD_EVERY, RECEIVE_AT_ONCE, RESOLVE_EVERY};
use super::machine::{Gossip, GossipConfig, KeyError};
use super::metrics;
use super::seal::{GossipKeys, region_of};

/// Bytes of one receive buffer: the largest datagram, with room to see that one is larger.
const BUFFER_BYTES: usize = 2048;
/// Largest receive buffer where the system hands over several datagrams at once: it never hands over more.
const BUFFER_BYTES_MAX: usize = 65_536;
/// Sending is not waited for longer than this: a full buffer drains in less, and gossip can be lost.
const SEND_WITHIN: Duration = Duration::from_millis(10);

/// Where a node may be found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed {
    /// A name or an address.
    pub host: String,
    /// UDP.
    pub port: u16,
}

/// What a process is told once.
#[derive(Clone, Debug)]
pub struct GossipSetup {
    /// The region it is configured for.
    pub region: Region,
    /// What it does.
    pub role: Role,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others send to; port 0: the one that is listened on.
    pub advertise: SocketAddr,
    /// The deployment's name.
    pub deployment: String,
    /// The deployment's keys.
    pub keys: GossipKeys,
    /// The regions it takes part in, and nodes of each. A region without seeds waits for others to come.
    pub clusters: BTreeMap<Region, Vec<Seed>>,
}

/// Whoever wants to know about edges. Calls come from the driver's task, and must be short.
pub trait Watcher: Send + Sync + fmt::Debug + 'static {
    /// An edge's load, as old as its `age_ms` says.
    fn load(&self, load: &EdgeLoad, now: Duration);
    /// An edge, in the start of this generation, is gone.
    fn gone(&self, region: Region, edge: &str, generation: u64);
    /// What this node says of operators' orders: some of those that it holds, in turn. Asked once a second.
    fn orders(&self) -> Vec<Order> {
        Vec::new()
    }
    /// An order that another node holds, and this one may not.
    fn order(&self, _order: &Order) {}
}

/// What the own edge has to say; asked once a second.
pub type LoadSource = Arc<dyn Fn() -> EdgeLoad + Send + Sync>;

/// Why a process does not take part.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// The socket.
    #[error("gossip can't be heard on {at} (UDP): {cause}. Is another process using the port? Set listen.gossip")]
    Listen {
        /// Where.
        at: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// The address that others are told.
    #[error("others can't send gossip to {0}; set gossip.advertise to an address of this machine")]
    Advertise(SocketAddr),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A process's part in the gossip. Ends with its environment's tasks, or with [`GossipNode::leave`].
pub struct GossipNode {
    local: SocketAddr,
    shared: Arc<Shared>,
}

impl fmt::Debug for GossipNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GossipNode").field("local", &self.local).finish_non_exhaustive()
    }
}

/// What is known of one cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    pub members: Vec<Member>,
    pub counters: Counters,
    pub replaced: bool,
    pub alone: bool,
    /// Datagrams that the socket did not take.
    pub unsent: u64,
}

/// What the driver and its handle share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    status: Mutex<BTreeMap<Region, Status>>,
    seeds: Mutex<BTreeMap<Region, Vec<SocketAddr>>>,
    keys: Mutex<Option<GossipKeys>>,
    leave: Mutex<Option<oneshot::Sender<()>>>,
    wake: Notify,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What lies in these is replaced as a whole: a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn status(&self) -> BTreeMap<Region, Status> {
        locked(&self.status).clone()
    }
}

impl GossipNode {
    /// Binds the socket and starts to take part. `load`: what the process's own edge says, if it has one.
    pub fn start(
        env: &Env,
        setup: GossipSetup,
        load: Option<LoadSource>,
        watcher: Arc<dyn Watcher>,
    ) -> Result<Self, GossipError> {
        let listen_error = |cause| GossipError::Listen { at: setup.listen, cause };
        let socket = env.net.udp(setup.listen).map_err(listen_error)?;
        let local = socket.local_addr().map_err(listen_error)?;
        let mut addr = setup.advertise;
        if addr.port() == 0 {
            addr.set_port(local.port());
        }
        if addr.ip().is_unspecified() || addr.ip().is_multicast() {
            return Err(GossipError::Advertise(addr));
        }
        let start = NodeId::start_at(env.clock.wall_ms(), env.rng.u64());
        let id =
            NodeId { region: setup.region, role: setup.role, name: setup.name.as_str().into(), start, turn: 0, addr };
        let mut machines = BTreeMap::new();
        for region in setup.clusters.keys() {
            let config = GossipConfig {
                region: *region,
                id: id.clone(),
                deployment: setup.deployment.clone(),
                keys: setup.keys.clone(),
            };
            machines.insert(*region, Gossip::new(config, env.rng.clone(), env.clock.now())?);
        }
        let shared = Arc::new(Shared::default());
        for (region, seeds) in &setup.clusters {
            if !seeds.is_empty() {
                env.tasks.spawn(find(env.clone(), shared.clone(), *region, seeds.clone()));
            }
        }
        tracing::info!(at = %addr, clusters = machines.len(), "taking part in the gossip");
        let driver = Driver {
            env: env.clone(),
            socket,
            machines,
            load,
            watcher,
            shared: shared.clone(),
            unsent: 0,
            unheard: 0,
            load_at: env.clock.now(),
        };
        env.tasks.spawn(driver.run());
        Ok(Self { local, shared })
    }

    /// Where it listens; the port is known even if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The members of each cluster, at most a second old, this node included.
    pub fn members(&self) -> BTreeMap<Region, Vec<Member>> {
        self.shared.status().into_iter().map(|(region, status)| (region, status.members)).collect()
    }

    /// Counts of each cluster.
    pub fn counters(&self) -> BTreeMap<Region, Counters> {
        self.shared.status().into_iter().map(|(region, status)| (region, status.counters)).collect()
    }

    /// What [`GossipKeysHandle`] does.
    pub fn keys_handle(&self) -> GossipKeysHandle {
        GossipKeysHandle(self.shared.clone())
    }

    /// Adds the metrics of gossip.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(metrics::Collector(self.shared.clone())));
    }

    /// Says farewell, and stops. Returns when that was sent.
    pub async fn leave(&self) {
        let (tell, told) = oneshot::channel();
        *locked(&self.shared.leave) = Some(tell);
        self.shared.wake.notify_one();
        // An error says that the driver is gone already.
        let _left = told.await;
    }
}

/// Changes the keys of a process that takes part.
#[derive(Clone, Debug)]
pub struct GossipKeysHandle(Arc<Shared>);

impl GossipKeysHandle {
    /// Seals with the first of these, and opens what was sealed with any, from the next datagram on.
    pub fn set(&self, keys: GossipKeys) {
        *locked(&self.0.keys) = Some(keys);
        self.0.wake.notify_one();
    }
}

/// Looks up the seeds of a cluster: at once, and again while one is not found or the node is alone.
async fn find(env: Env, shared: Arc<Shared>, region: Region, seeds: Vec<Seed>) {
    let mut told = false;
    loop {
        let mut found = Vec::new();
        let mut missing = None;
        for seed in &seeds {
            match env.net.resolve(&seed.host).await {
                Ok(ips) => found.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, seed.port))),
                Err(error) => missing = Some((seed, error)),
            }
        }
        if let Some((seed, error)) = &missing
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!(host = %seed.host, %error, "a seed of the gossip can't be found; it is looked up again");
        }
        locked(&shared.seeds).insert(region, found);
        shared.wake.notify_one();
        loop {
            sleep(RESOLVE_EVERY).await;
            let alone = locked(&shared.status).get(&region).is_none_or(|status| status.alone);
            if alone || missing.is_some() {
                break;
            }
        }
    }
}

struct Driver {
    env: Env,
    socket: Arc<dyn AsyncUdpSocket>,
    machines: BTreeMap<Region, Gossip>,
    load: Option<LoadSource>,
    watcher: Arc<dyn Watcher>,
    shared: Arc<Shared>,
    unsent: u64,
    /// Datagrams that no machine could be handed.
    unheard: u64,
    load_at: Duration,
}

impl Driver {
    async fn run(mut self) {
        let length = BUFFER_BYTES.saturating_mul(self.socket.max_receive_segments()).min(BUFFER_BYTES_MAX);
        let mut buffers = vec![vec![0; length]; RECEIVE_AT_ONCE];
        loop {
            for (region, seeds) in std::mem::take(&mut *locked(&self.shared.seeds)) {
                if let Some(machine) = self.machines.get_mut(&region) {
                    machine.set_seeds(seeds);
                }
            }
            let keys = locked(&self.shared.keys).take();
            if let Some(keys) = keys {
                self.set_keys(&keys);
            }
            let now = self.env.clock.now();
            for machine in self.machines.values_mut() {
                if machine.next_deadline() <= now {
                    machine.handle_timer(now);
                }
            }
            self.say_load(now);
            let leaving = locked(&self.shared.leave).take();
            if leaving.is_some() {
                self.machines.values_mut().for_each(|machine| machine.leave(now));
            }
            self.deliver(now).await;
            if let Some(tell) = leaving {
                // The caller may have given up waiting.
                let _not_waiting = tell.send(());
                return;
            }
            let deadline = self.machines.values().map(Gossip::next_deadline).min().unwrap_or(Duration::MAX);
            let pause = deadline.min(self.load_at).saturating_sub(now);
            tokio::select! {
                biased;
                received = receive(&*self.socket, &mut buffers) => match received {
                    Ok(metas) => self.take(&metas, &mut buffers),
                    Err(error) => {
                        tracing::debug!(%error, "the socket of the gossip has an error");
                        sleep(ERROR_PAUSE).await;
                    }
                },
                () = self.shared.wake.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn set_keys(&mut self, keys: &GossipKeys) {
        for machine in self.machines.values_mut() {
            if let Err(error) = machine.set_keys(keys.clone()) {
                tracing::error!(%error, "the keys of the gossip stay as they were");
                return;
            }
        }
        tracing::info!(keys = keys.keys().len(), "the gossip seals with the first of these keys from now on");
    }

    fn say_load(&mut self, now: Duration) {
        if self.load_at > now {
            return;
        }
        self.load_at = now + LOAD_EVERY;
        if let Some(load) = &self.load {
            let load = load();
            for machine in self.machines.values_mut() {
                machine.set_load(load.clone(), now);
            }
        }
        let orders = self.watcher.orders();
        for machine in self.machines.values_mut() {
            machine.say_orders(&orders, now);
        }
        self.publish(now);
    }

    fn publish(&self, now: Duration) {
        let status = self.machines.iter().map(|(region, machine)| {
            let mut counters = machine.counters();
            // They name no region that is served here: they are counted once, with the first.
            if self.machines.first_key_value().is_some_and(|(first, _)| first == region) && self.unheard > 0 {
                counters.dropped.insert(Dropped::Region, self.unheard);
            }
            let status = Status {
                members: machine.members(now),
                counters,
                replaced: machine.replaced_by().is_some(),
                alone: machine.is_alone(),
                unsent: self.unsent,
            };
            (*region, status)
        });
        *locked(&self.shared.status) = status.collect();
    }

    fn take(&mut self, metas: &[RecvMeta], buffers: &mut [Vec<u8>]) {
        let now = self.env.clock.now();
        for (meta, buffer) in metas.iter().zip(buffers) {
            let length = meta.len.min(buffer.len());
            for datagram in buffer[..length].chunks_mut(meta.stride.max(1)) {
                match region_of(datagram).and_then(|region| self.machines.get_mut(&region)) {
                    Some(machine) => machine.handle_datagram(meta.addr, datagram, now),
                    None => self.unheard += 1,
                }
            }
        }
    }

    /// Does what the machines want done.
    async fn deliver(&mut self, now: Duration) {
        let mut events = false;
        let mut patience = true;
        for (region, machine) in &mut self.machines {
            while let Some(output) = machine.poll_output() {
                match output {
                    Output::Send(to, datagram) => {
                        let sent = send(&self.socket, to, &datagram, patience).await;
                        // One wait a round is enough: all else stands still meanwhile.
                        patience &= sent;
                        self.unsent += u64::from(!sent);
                    }
                    Output::Event(Event::Load(load)) => self.watcher.load(&load, now),
                    Output::Event(Event::Order(order)) => self.watcher.order(&order),
                    Output::Event(event) => {
                        events = true;
                        if let Event::Gone(region, edge, generation) = &event {
                            self.watcher.gone(*region, edge, *generation);
                        }
                        tell(*region, machine.id(), &event);
                    }
                }
            }
        }
        if events {
            self.publish(now);
        }
    }
}

/// One line for each event that an operator would ask about.
fn tell(cluster: Region, own: &NodeId, event: &Event) {
    match event {
        Event::Up(id) => tracing::info!(cluster, node = %id.name, role = %id.role, at = %id.addr, "a node is up"),
        Event::Down(id) => {
            tracing::warn!(cluster, node = %id.name, role = %id.role, at = %id.addr, "a node is down, or has left");
        }
        Event::Restarted(old, new) => {
            tracing::info!(cluster, node = %new.name, role = %new.role, was_at = %old.addr, at = %new.addr, "a node was restarted");
        }
        Event::Suspected(id) => tracing::debug!(cluster, node = %id.name, at = %id.addr, "a node does not answer"),
        Event::Cleared(id) => {
            tracing::info!(cluster, node = %id.name, at = %id.addr, "a node that did not answer does");
        }
        Event::Returned(id) => {
            tracing::warn!(
                cluster,
                turn = id.turn,
                "the others took this node for dead; it is back. Was it stopped, or its network overloaded?"
            );
        }
        Event::Replaced(by) => tracing::error!(
            cluster, name = %own.name, here = %own.addr, there = %by.addr,
            "another node of this name, started later, takes part in the gossip. This one is left out while that lives. \
             Give one of them another name, or stop it"
        ),
        Event::Restored(id) => {
            tracing::info!(cluster, name = %id.name, "no other node of this name takes part now; this one does again");
        }
        Event::Joined => tracing::info!(cluster, "joined the gossip of the region"),
        Event::Alone => {
            tracing::warn!(cluster, "no other node of the gossip is left; asking the seeds until one answers");
        }
        Event::Gone(_, edge, _) => tracing::debug!(cluster, %edge, "an edge is gone"),
        Event::Load(_) | Event::Order(_) => {}
    }
}

/// Datagrams that wait; several may lie in one buffer.
async fn receive(socket: &dyn AsyncUdpSocket, buffers: &mut [Vec<u8>]) -> io::Result<Vec<RecvMeta>> {
    let mut metas = vec![RecvMeta::default(); buffers.len()];
    let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
    let count = poll_fn(|cx| socket.poll_recv(cx, &mut slices, &mut metas)).await?;
    metas.truncate(count);
    Ok(metas)
}

/// Whether the socket took it. `patience`: whether it may be waited for.
async fn send(socket: &Arc<dyn AsyncUdpSocket>, to: SocketAddr, datagram: &[u8], patience: bool) -> bool {
    debug_assert!(datagram.len() <= DATAGRAM_BYTES);
    let transmit = Transmit { destination: to, ecn: None, contents: datagram, segment_size: None, src_ip: None };
    match socket.try_send(&transmit) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && patience => {
            let mut poller = socket.clone().create_io_poller();
            let writable = timeout(SEND_WITHIN, poll_fn(|cx| poller.as_mut().poll_writable(cx))).await;
            matches!(writable, Ok(Ok(()))) && socket.try_send(&transmit).is_ok()
        }
        Err(_) => false,
    }
}
