//! The TCP of all hosts: which connection a segment belongs to, who listens, and what a kernel says where nobody does.
//!
//! A connection is found by its host and its four addresses. A SYN for a listener makes a connection that opens; once
//! it is open it waits to be accepted. A segment for no connection is answered by a reset, also from a host whose
//! process was killed: its kernel lives. A host without power answers nothing. A paused process has a kernel, too: what
//! comes is acknowledged until the buffer is full.
//!
//! What a connection is: [`crate::connection`]; what an application sees of it: [`crate::stream`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::task::Waker;

use bytes::Bytes;

use crate::connection::{Connection, asks};
use crate::limits::BACKLOG;
use crate::node::{HostId, HostState};
use crate::packets::Lost;
use crate::path::{IpPacket, Load};
use crate::random::derive;
use crate::segment::{Head, RST, readdress};
use crate::world::{After, Event, State};

/// Numbers are never used again, so an event for a connection that is gone is known as such.
pub(crate) type ConnectionId = u64;

/// Host, local port, local address, remote end.
type Tuple = (HostId, u16, Ipv4Addr, SocketAddrV4);

/// All connections.
#[derive(Default)]
pub(crate) struct Connections {
    all: BTreeMap<ConnectionId, Box<Connection>>,
    by_tuple: BTreeMap<Tuple, ConnectionId>,
    /// For those that nobody has accepted yet: of which listener.
    offered: BTreeMap<ConnectionId, (HostId, u16)>,
    last: ConnectionId,
}

impl Connections {
    pub(crate) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.all.get_mut(&id).map(Box::as_mut)
    }

    /// Whether a port of a host is in use by a connection.
    pub(crate) fn uses(&self, host: HostId, port: u16) -> bool {
        let none = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let from = (host, port, Ipv4Addr::UNSPECIFIED, none);
        self.by_tuple.range(from..).next().is_some_and(|((of, at, ..), _)| (*of, *at) == (host, port))
    }

    /// Those that have something to do or to read; without those that only wait for stray packets.
    pub(crate) fn count(&self) -> usize {
        self.all.values().filter(|connection| !connection.lingers()).count()
    }

    fn add(&mut self, connection: Connection) -> ConnectionId {
        self.last += 1;
        self.by_tuple.insert(tuple(&connection), self.last);
        self.all.insert(self.last, Box::new(connection));
        self.last
    }

    fn remove(&mut self, id: ConnectionId) -> Option<Box<Connection>> {
        let connection = self.all.remove(&id)?;
        self.by_tuple.remove(&tuple(&connection));
        self.offered.remove(&id);
        Some(connection)
    }

    fn of_host(&self, host: HostId) -> Vec<ConnectionId> {
        self.all.iter().filter(|(_, connection)| connection.host == host).map(|(id, _)| *id).collect()
    }
}

fn tuple(connection: &Connection) -> Tuple {
    (connection.host, connection.local.port(), *connection.local.ip(), connection.remote)
}

/// A port that takes streams.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    /// The address it is bound to; `None`: all of the host's.
    pub(crate) ip: Option<Ipv4Addr>,
    /// Open ones, waiting to be accepted.
    pub(crate) waiting: VecDeque<ConnectionId>,
    /// How many are not open yet.
    pub(crate) opening: usize,
    pub(crate) acceptor: Option<Waker>,
}

impl State {
    /// A new connection asks its peer.
    pub(crate) fn open_connection(
        &mut self,
        host: HostId,
        local: SocketAddrV4,
        remote: SocketAddrV4,
        after: &mut After,
    ) -> io::Result<ConnectionId> {
        let connection = Connection::opening(host, local, remote, self.connection_seed(host), self.now_ns)?;
        let id = self.connections.add(connection);
        self.run_connection(id, after);
        Ok(id)
    }

    /// Keyed by the host, and by how many it has had: others do not move it.
    fn connection_seed(&mut self, host: HostId) -> u64 {
        let host = &mut self.hosts[host.0];
        host.connections += 1;
        derive(self.seed, &host.name, host.connections.wrapping_mul(2).wrapping_add(1) << 32)
    }

    /// A segment comes to its host.
    pub(crate) fn segment_arrives(
        &mut self,
        host: HostId,
        from: SocketAddrV4,
        to: SocketAddrV4,
        bytes: &Bytes,
        after: &mut After,
    ) -> Result<(), Lost> {
        let mut packet = bytes.to_vec();
        readdress(&mut packet, from, to);
        let head = Head::of(&packet);
        let known = self.connections.by_tuple.get(&(host, to.port(), *to.ip(), from)).copied();
        let id = match known {
            Some(id) => id,
            None if asks(head) => match self.offer(host, from, to) {
                Ok(id) => id,
                Err(Lost::NoSocket) => return Err(self.refuse(host, from, to, head, after)),
                Err(why) => return Err(why),
            },
            None => return Err(self.refuse(host, from, to, head, after)),
        };
        if let Some(connection) = self.connections.get_mut(id) {
            connection.take(self.now_ns, packet);
        }
        self.run_connection(id, after);
        Ok(())
    }

    /// Makes a connection for a listener.
    fn offer(&mut self, host: HostId, from: SocketAddrV4, to: SocketAddrV4) -> Result<ConnectionId, Lost> {
        let listener = self.listeners.get_mut(&(host, to.port()));
        let listener = listener.filter(|listener| listener.ip.is_none_or(|ip| ip == *to.ip())).ok_or(Lost::NoSocket)?;
        if listener.waiting.len() + listener.opening >= BACKLOG {
            return Err(Lost::SocketFull);
        }
        listener.opening += 1;
        let seed = self.connection_seed(host);
        let made = Connection::answering(host, to, from, seed, self.now_ns).map_err(|_| Lost::NoSocket)?;
        let id = self.connections.add(made);
        self.connections.offered.insert(id, (host, to.port()));
        Ok(id)
    }

    fn refuse(&mut self, host: HostId, from: SocketAddrV4, to: SocketAddrV4, head: Head, after: &mut After) -> Lost {
        if let Some(reset) = head.reset() {
            self.send_segment(host, to, from, None, reset.packet(), after);
        }
        Lost::NoSocket
    }

    fn send_segment(
        &mut self,
        host: HostId,
        from: SocketAddrV4,
        to: SocketAddrV4,
        of: Option<ConnectionId>,
        packet: Vec<u8>,
        after: &mut After,
    ) {
        let load = Load::Tcp { bytes: packet.into(), of };
        self.send(IpPacket { sender: host, from, to, load }, after);
    }

    /// The event of a connection has come.
    pub(crate) fn connection_due(&mut self, id: ConnectionId, after: &mut After) {
        let now_ns = self.now_ns;
        if let Some(connection) = self.connections.get_mut(id) {
            connection.fired(now_ns);
            connection.gives_up(now_ns);
            self.run_connection(id, after);
        }
    }

    /// Lets a connection do what it can, after anything has happened to it.
    pub(crate) fn run_connection(&mut self, id: ConnectionId, after: &mut After) {
        let now_ns = self.now_ns;
        let Some(connection) = self.connections.get_mut(id) else { return };
        let (host, local, remote) = (connection.host, connection.local, connection.remote);
        let mut out = Vec::new();
        if connection.error.is_none() {
            out = connection.run(now_ns);
        }
        // Nobody will ever read it.
        if connection.orphan && connection.unread() > 0 && connection.is_known_to_peer() {
            out.push(connection.reset());
            connection.error = Some(io::ErrorKind::ConnectionReset);
        }
        connection.wake(after);
        let at_ns = if connection.error.is_none() { connection.arm() } else { None };
        let (over, open, failed) = (connection.is_over(), connection.open, connection.error.is_some());
        if let Some(at_ns) = at_ns {
            self.schedule(at_ns, Event::Connection(id));
        }
        for packet in out {
            self.send_segment(host, local, remote, Some(id), packet, after);
        }
        if (open || failed)
            && let Some(listener) = self.connections.offered.get(&id).copied()
        {
            self.connections.offered.remove(&id);
            if let Some(listener) = self.listeners.get_mut(&listener) {
                listener.opening = listener.opening.saturating_sub(1);
                if failed {
                    self.connections.remove(id);
                } else {
                    listener.waiting.push_back(id);
                    after.wake.extend(listener.acceptor.take());
                }
            }
        }
        if over {
            self.connections.remove(id);
        }
    }

    /// A link on the way of this connection takes only shorter packets, and has said so.
    pub(crate) fn too_long(&mut self, id: ConnectionId, mtu: u32) {
        let now_ns = self.now_ns;
        if let (Some(connection), Ok(mtu)) = (self.connections.get_mut(id), usize::try_from(mtu)) {
            connection.lower_mtu(mtu, now_ns);
        }
    }

    /// Removes a connection at once; `tell`: its peer is told.
    pub(crate) fn abort(&mut self, id: ConnectionId, tell: bool, after: &mut After) {
        let Some(mut connection) = self.connections.remove(id) else { return };
        after.wake.extend(connection.reader.take());
        after.wake.extend(connection.writer.take());
        if tell && connection.is_known_to_peer() {
            let (host, local, remote) = (connection.host, connection.local, connection.remote);
            self.send_segment(host, local, remote, None, connection.reset(), after);
        }
    }

    /// The application lets go of a connection.
    pub(crate) fn let_go(&mut self, id: ConnectionId, after: &mut After) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        after.drop.extend(connection.reader.take());
        after.drop.extend(connection.writer.take());
        // What it has not read is lost, and the peer shall know.
        if connection.error.is_some() || !connection.open || connection.unread() > 0 {
            self.abort(id, true, after);
            return;
        }
        (connection.orphan, connection.shut) = (true, true);
        self.run_connection(id, after);
    }

    /// Ends a listener and what nobody has accepted.
    pub(crate) fn end_listener(&mut self, host: HostId, port: u16, tell: bool, after: &mut After) {
        let Some(listener) = self.listeners.remove(&(host, port)) else { return };
        after.wake.extend(listener.acceptor);
        let offered = self.connections.offered.iter().filter(|(_, of)| **of == (host, port)).map(|(id, _)| *id);
        let unaccepted: Vec<_> = offered.chain(listener.waiting).collect();
        for id in unaccepted {
            self.abort(id, tell, after);
        }
    }

    /// Takes all streams of a host down. A stopped process leaves a kernel that resets them; a host without power
    /// tells nobody.
    pub(crate) fn end_connections(&mut self, host: HostId, how: HostState, after: &mut After) {
        let tell = how == HostState::Killed;
        let ports: Vec<u16> = self.listeners.range((host, 0)..=(host, u16::MAX)).map(|((_, port), _)| *port).collect();
        for port in ports {
            self.end_listener(host, port, tell, after);
        }
        for id in self.connections.of_host(host) {
            self.abort(id, tell, after);
        }
    }
}

/// Whether a segment opens, resets or acknowledges, and carries nothing.
pub(crate) fn is_control(packet: &[u8]) -> bool {
    let head = Head::of(packet);
    head.payload == 0 && !head.has(crate::segment::FIN) || head.has(RST)
}
