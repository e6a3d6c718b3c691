//! Hosts, the packets between them, and the one task that delivers these.
//!
//! All state lies behind one lock and changes in two ways: an application calls (sends, reads, connects), or
//! the driver finds that something is due. Either first runs every event that is due by now, in the order of
//! (time, number), so that nobody sees the world late. Events become due on tokio's paused clock: the driver
//! sleeps until the first of them, and is kicked when an earlier one is added.
//!
//! Wakers are woken and dropped after the lock is released, always: dropping a waker can drop a task, whose
//! sockets then want the lock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::{self, Debug};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::access::AccessCounts;
use crate::limits::PORT_FIRST;
use crate::links::{Filter, Links, Names};
use crate::node::{Host, HostId, HostState, SimNode};
use crate::packets::{Ledger, Lost, Packet, PacketLog, Shape};
use crate::path::{IpPacket, Owner};
use crate::pipes::{LinkError, PipeId, Pipes};
use crate::tcp::{ConnectionId, Connections, Listener};
use crate::udp::UdpPort;
use tern_netsim_link::{Counts, LinkSpec, Outage};

/// A network in virtual time. Cheap to clone; ends with its last clone.
#[derive(Clone)]
pub struct World {
    pub(crate) shared: Arc<Shared>,
    _driver: Arc<Driver>,
}

/// The driver's task ends with the world.
struct Driver(tokio::task::AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("seed", &self.shared.seed).finish_non_exhaustive()
    }
}

impl World {
    /// An empty world. To be called within a runtime whose clock is paused, see [`crate::run::run`].
    pub fn new(seed: u64) -> Self {
        let shared = Arc::new(Shared {
            seed,
            start: Instant::now(),
            kick: Notify::new(),
            state: Mutex::new(State { seed, ..State::default() }),
        });
        let driver = tokio::runtime::Handle::current().spawn(drive(Arc::clone(&shared)));
        Self { shared, _driver: Arc::new(Driver(driver.abort_handle())) }
    }

    /// Adds a host, switched on. Its name also resolves to its address. Fails where the name or the address
    /// is taken.
    pub fn add_host(&self, name: &str, group: &str, ip: Ipv4Addr) -> io::Result<SimNode> {
        let host = self.shared.with(|state, _| {
            let taken = state.names.contains_key(name) || state.by_name.contains_key(name);
            if taken || state.by_ip.contains_key(&ip) {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} or {ip} is taken")));
            }
            let host = state.new_host(&self.shared, name, group, ip);
            state.by_ip.insert(ip, Owner { host, line: None });
            state.names.insert(name.to_owned(), vec![IpAddr::V4(ip)]);
            Ok(host)
        })?;
        Ok(SimNode::new(self.clone(), host))
    }

    /// Makes a name resolve to these addresses, for everyone.
    pub fn set_name(&self, name: &str, addresses: Vec<IpAddr>) {
        self.shared.with(|state, _| state.names.insert(name.to_owned(), addresses));
    }

    /// Sets the one-way latency between two hosts or groups, both ways.
    pub fn set_latency(&self, a: &str, b: &str, one_way: Duration) {
        self.shared.with(|state, _| {
            state.links.set_latency(a, b, one_way);
            state.links.set_latency(b, a, one_way);
        });
    }

    /// Gives the link between two hosts or groups rate, queue and faults; `a` sends on its `up`. A link that has
    /// a spec already is changed: what waits in it goes on waiting. See [`crate::pipes`] for what goes through.
    pub fn set_link(&self, a: &str, b: &str, spec: LinkSpec) -> Result<(), LinkError> {
        self.shared.with(|state, _| {
            let ends = (state.links.name(a), state.links.name(b));
            let (now_ns, name) = (state.now_ns, format!("{a} - {b}"));
            let set = state.pipes.set(self.shared.seed, &name, ends, spec, now_ns);
            set.map_err(|source| LinkError::Spec { from: a.to_owned(), to: b.to_owned(), source })?;
            for pipe in [state.pipes.of(ends), state.pipes.of((ends.1, ends.0))].into_iter().flatten() {
                state.arm(pipe);
            }
            Ok(())
        })
    }

    /// Begins or ends an outage of one direction of a link that has a spec.
    pub fn set_outage(&self, from: &str, to: &str, outage: Option<Outage>) -> Result<(), LinkError> {
        self.shared.with(|state, _| {
            let pipe = state.pipe_named(from, to)?;
            let now_ns = state.now_ns;
            state.pipes.direction(pipe).set_outage(now_ns, outage);
            state.arm(pipe);
            Ok(())
        })
    }

    /// What one direction of a link that has a spec has done so far.
    pub fn link_counts(&self, from: &str, to: &str) -> Result<Counts, LinkError> {
        self.shared.with(|state, _| {
            let pipe = state.pipe_named(from, to)?;
            Ok(state.pipes.direction(pipe).counts().clone())
        })
    }

    /// The same, and what waits in it.
    pub fn path_counts(&self, from: &str, to: &str) -> Result<AccessCounts, LinkError> {
        self.shared.with(|state, _| {
            let pipe = state.pipe_named(from, to)?;
            Ok(state.counts_of(pipe))
        })
    }

    /// How many packets [`World::cut`] and [`World::blackhole`] of exactly these names have lost so far, in this
    /// direction; also those that were healed. 0 for names that never were cut.
    pub fn blocked_packets(&self, from: &str, to: &str) -> u64 {
        self.shared.with(|state, _| state.links.blocked_packets(from, to))
    }

    /// Packets that are on their way: in links with a spec, and between places.
    pub fn in_flight(&self) -> u64 {
        self.shared.with(|state, _| state.in_flight())
    }

    /// What became of all packets so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.with(|state, _| {
            let sum = |count: fn(&Host) -> u64| state.hosts.iter().map(count).sum();
            let (copied, dropped) = state.pipes.totals();
            Ledger {
                sent: sum(|host| host.counts.sent_packets),
                made: state.portals,
                copied,
                received: sum(|host| host.counts.received_packets),
                lost: state.lost.clone(),
                dropped,
                in_flight: state.in_flight(),
            }
        })
    }

    /// Loses every packet between two hosts or groups, both ways, until [`World::heal`].
    pub fn cut(&self, a: &str, b: &str) {
        self.shared.with(|state, _| {
            state.links.block(a, b);
            state.links.block(b, a);
        });
    }

    /// Loses every packet of one direction, until [`World::heal`].
    pub fn blackhole(&self, from: &str, to: &str) {
        self.shared.with(|state, _| state.links.block(from, to));
    }

    /// Undoes [`World::cut`] and [`World::blackhole`] of these two names, both ways.
    pub fn heal(&self, a: &str, b: &str) {
        self.shared.with(|state, _| {
            state.links.unblock(a, b);
            state.links.unblock(b, a);
        });
    }

    /// Asks `filter` about every packet of one direction; `None` removes it.
    pub fn set_filter(&self, from: &str, to: &str, filter: Option<Filter>) {
        // The filter before is dropped here, outside the lock: it may own a handle of this world.
        let before = self.shared.with(|state, _| state.links.set_filter(from, to, filter));
        drop(before);
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// Virtual time since the world began.
    pub fn elapsed(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// The shape of all packets so far.
    pub fn shape(&self) -> Shape {
        self.shared.with(|state, _| state.packets.shape())
    }

    /// The packets so far, the first [`crate::limits::PACKETS_KEPT`] of them.
    pub fn packets(&self) -> Vec<Packet> {
        self.shared.with(|state, _| state.packets.kept().to_vec())
    }

    /// How many tasks of all nodes have panicked so far.
    pub fn panics(&self) -> usize {
        // Counting takes the lock of a node's tasks, which is never taken under the world's.
        let (before, tasks) = self.shared.with(|state, _| {
            let before: usize = state.hosts.iter().map(|host| host.panics_before).sum();
            let tasks: Vec<_> = state.hosts.iter().map(|host| Arc::clone(&host.tasks)).collect();
            (before, tasks)
        });
        before + tasks.iter().map(|tasks| tasks.panics()).sum::<usize>()
    }

    /// What is open right now: (UDP sockets, listeners, ends of streams, packets on their way). Ends that only wait for
    /// stray packets (TIME-WAIT) are not counted.
    pub fn open(&self) -> (usize, usize, usize, usize) {
        let in_flight = usize::try_from(self.in_flight()).unwrap_or(usize::MAX);
        self.shared.with(|state, _| (state.udp.len(), state.listeners.len(), state.connections.count(), in_flight))
    }
}

/// Runs what is due, then waits for the next.
async fn drive(shared: Arc<Shared>) {
    loop {
        let next = shared.with(|state, _| {
            state.armed_ns = state.first_due_ns();
            state.armed_ns
        });
        tokio::select! {
            biased;
            () = shared.kick.notified() => {}
            () = tokio::time::sleep_until(shared.instant(next.unwrap_or(0))), if next.is_some() => {}
        }
    }
}

/// What all handles share.
pub(crate) struct Shared {
    pub(crate) seed: u64,
    pub(crate) start: Instant,
    kick: Notify,
    state: Mutex<State>,
}

impl Shared {
    /// Runs what is due, then `f`, then wakes whom that concerns.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut State, &mut After) -> R) -> R {
        let mut after = After::default();
        let (out, kick) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.now_ns = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            state.run_due(&mut after);
            let out = f(&mut state, &mut after);
            let kick = match (state.first_due_ns(), state.armed_ns) {
                (Some(first), Some(armed)) => first < armed,
                (Some(_), None) => true,
                (None, _) => false,
            };
            (out, kick)
        };
        if kick {
            self.kick.notify_one();
        }
        for waker in after.wake {
            waker.wake();
        }
        drop(after.drop);
        out
    }

    fn instant(&self, ns: u64) -> Instant {
        self.start + Duration::from_nanos(ns)
    }
}

/// What remains to be done once the lock is released.
#[derive(Default)]
pub(crate) struct After {
    pub(crate) wake: Vec<Waker>,
    pub(crate) drop: Vec<Waker>,
}

/// Something that happens at a moment.
#[derive(Debug)]
pub(crate) enum Event {
    /// A packet comes to the place of its receiver.
    Packet(IpPacket),
    /// A link with a spec has something to tell.
    Pipe(PipeId),
    /// A connection has something to do.
    Connection(ConnectionId),
}

/// An event and when it is due; ordered by time, then by number.
#[derive(Debug)]
struct Due {
    at_ns: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at_ns, self.number) == (other.at_ns, other.number)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.number).cmp(&(other.at_ns, other.number))
    }
}

/// The world itself.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) seed: u64,
    pub(crate) now_ns: u64,
    armed_ns: Option<u64>,
    numbers: u64,
    due: BinaryHeap<Reverse<Due>>,
    pub(crate) hosts: Vec<Host>,
    /// Addresses as they are seen between places: of a device behind a NAT, the NAT's.
    pub(crate) by_ip: BTreeMap<Ipv4Addr, Owner>,
    pub(crate) by_name: BTreeMap<String, HostId>,
    pub(crate) names: BTreeMap<String, Vec<IpAddr>>,
    pub(crate) links: Links,
    pub(crate) pipes: Pipes,
    pub(crate) packets: PacketLog,
    pub(crate) lost: BTreeMap<Lost, u64>,
    pub(crate) udp: BTreeMap<(HostId, u16), UdpPort>,
    pub(crate) listeners: BTreeMap<(HostId, u16), Listener>,
    pub(crate) connections: Connections,
    /// Packets that captive portals and middleboxes made.
    pub(crate) portals: u64,
}

impl State {
    fn first_due_ns(&self) -> Option<u64> {
        self.due.peek().map(|Reverse(due)| due.at_ns)
    }

    fn in_flight(&self) -> u64 {
        let between = self.due.iter().filter(|Reverse(due)| matches!(due.event, Event::Packet(_))).count();
        self.pipes.in_flight() + u64::try_from(between).unwrap_or(u64::MAX)
    }

    pub(crate) fn schedule(&mut self, at_ns: u64, event: Event) {
        self.numbers += 1;
        self.due.push(Reverse(Due { at_ns, number: self.numbers, event }));
    }

    fn run_due(&mut self, after: &mut After) {
        let now_ns = self.now_ns;
        while self.first_due_ns().is_some_and(|at_ns| at_ns <= now_ns) {
            let Some(Reverse(due)) = self.due.pop() else { break };
            self.now_ns = due.at_ns;
            match due.event {
                Event::Packet(packet) => self.comes_in(packet, after),
                Event::Pipe(pipe) => self.pipe_due(pipe, after),
                Event::Connection(id) => self.connection_due(id, after),
            }
        }
        self.now_ns = now_ns;
    }

    /// A host without address, switched on.
    pub(crate) fn new_host(&mut self, shared: &Shared, name: &str, group: &str, ip: Ipv4Addr) -> HostId {
        let host = HostId(self.hosts.len());
        let names = Names { host: self.links.name(name), group: self.links.name(group) };
        self.hosts.push(Host::new(name, names, ip, shared.start, shared.seed));
        self.by_name.insert(name.to_owned(), host);
        host
    }

    pub(crate) fn host(&self, host: HostId) -> &Host {
        &self.hosts[host.0]
    }

    /// Whether a handle still belongs to a living start of its host.
    pub(crate) fn check(&self, host: HostId, incarnation: u64) -> io::Result<()> {
        let host = self.host(host);
        if host.state == HostState::Up && host.incarnation == incarnation {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::NotConnected, format!("the simulated node {} was killed", host.name)))
    }

    fn pipe_named(&mut self, from: &str, to: &str) -> Result<PipeId, LinkError> {
        let ends = (self.links.name(from), self.links.name(to));
        self.pipes.of(ends).ok_or_else(|| LinkError::None { from: from.to_owned(), to: to.to_owned() })
    }

    /// The address that a socket gets, or why it can't.
    pub(crate) fn bind_address(
        &mut self,
        host: HostId,
        at: SocketAddr,
        taken: impl Fn(&State, u16) -> bool,
    ) -> io::Result<SocketAddr> {
        let own = IpAddr::V4(self.own_ip(host));
        let ip = match at.ip() {
            // A device's address may change; that of another host is fixed.
            IpAddr::V4(ip) if ip.is_unspecified() && self.host(host).access.is_some() => at.ip(),
            IpAddr::V4(ip) if ip.is_unspecified() => own,
            ip @ IpAddr::V4(v4) if ip == own || v4.is_loopback() => ip,
            ip => {
                let text = format!("{} has no address {ip}", self.host(host).name);
                return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, text));
            }
        };
        if at.port() != 0 {
            if taken(self, at.port()) {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{at} is in use")));
            }
            return Ok(SocketAddr::new(ip, at.port()));
        }
        Ok(SocketAddr::new(ip, self.free_port(host, taken)?))
    }

    /// The next port of a host that is not taken.
    pub(crate) fn free_port(&mut self, host: HostId, taken: impl Fn(&State, u16) -> bool) -> io::Result<u16> {
        for _ in PORT_FIRST..=u16::MAX {
            let port = self.hosts[host.0].take_port();
            if !taken(self, port) {
                return Ok(port);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "all ports are in use"))
    }

    /// Takes a host down: first it is dead, then what it had is ended. A stopped process leaves a kernel that
    /// resets its streams; a host without power tells nobody.
    pub(crate) fn down(&mut self, host: HostId, how: HostState, after: &mut After) {
        self.hosts[host.0].state = how;
        let ports: Vec<_> = self.udp.range((host, 0)..=(host, u16::MAX)).map(|(port, _)| *port).collect();
        for port in ports {
            if let Some(socket) = self.udp.remove(&port) {
                socket.end(after);
            }
        }
        self.end_connections(host, how, after);
    }
}

/// A duration in the world's unit.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
