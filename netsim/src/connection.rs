//! One end of a TCP connection: smoltcp's socket, and what it lacks.
//!
//! smoltcp walks over all sockets of an interface with every packet, so each connection has an interface of its own
//! with one socket; the world finds the connection by its addresses ([`crate::tcp`]). Addresses are those the host
//! knows. Time is smoltcp's microseconds, rounded down.
//!
//! Around the socket of 0.12 stand four things.
//!
//! - *A congestion window* ([`crate::congestion`]): bytes wait in `unsent` until they may be on their way.
//! - *Ends*: a connection that gets no answer is given up by a deadline that counts only while there is something to
//!   answer. smoltcp's own time-out would also end one that is idle.
//! - *Rescue*. In some states an acknowledgement of a part stops smoltcp's timer, and it has no probe for a window
//!   that was closed: data or a FIN would wait for ever. It can be seen from outside: there is something to send, and
//!   smoltcp names no time. Then, once a second: what is in flight is sent again (the last acknowledgement, repeated
//!   to it, starts that); if nothing is in flight, the peer is asked for its window by an empty segment
//!   before its expected place, which every TCP answers. smoltcp's keep-alive can't be used for it, because it carries
//!   a byte, and where data was lost that byte lands in its place.
//! - *A lower MTU*, when a link says so: another interface, the same socket.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddrV4;
use std::task::Waker;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};

use crate::congestion::Window;
use crate::limits::{
    MTU_BYTES, OPEN_GIVE_UP, ORPHAN_GIVE_UP, PROGRESS_WITHIN, RESCUE_AFTER, STREAM_GIVE_UP, STREAM_RECEIVE_BYTES,
    STREAM_SEND_BYTES,
};
use crate::node::HostId;
use crate::segment::{ACK, Head, RST, SYN, after, readdress};
use crate::world::{After, nanos};

/// See the module.
pub(crate) struct Connection {
    pub(crate) host: HostId,
    pub(crate) local: SocketAddrV4,
    pub(crate) remote: SocketAddrV4,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    wire: Wire,
    seed: u64,
    /// Written, not yet given to the socket.
    unsent: VecDeque<u8>,
    /// The application writes no more.
    pub(crate) shut: bool,
    /// The application has let go of it; it only remains to be sent to the end.
    pub(crate) orphan: bool,
    /// It was established at some time.
    pub(crate) open: bool,
    pub(crate) error: Option<io::ErrorKind>,
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
    window: Window,
    seen: Seen,
    times: Times,
}

/// What was seen of its segments.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    begun: bool,
    /// The peer has acknowledged up to here,
    acked: u32,
    /// and said so with this window.
    window: u16,
    /// Sent up to here.
    sent: u32,
    /// What was acknowledged to the peer, and the window it was told, last.
    told: (u32, u16),
    same_acks: u8,
    /// The socket is about to send again because of these.
    fast: bool,
}

/// Moments, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    heard: u64,
    progress: u64,
    busy_since: Option<u64>,
    ends: Option<u64>,
    rescue: Option<u64>,
    /// An event is due then.
    armed: Option<u64>,
    socket: Option<u64>,
}

impl Connection {
    fn new(host: HostId, local: SocketAddrV4, remote: SocketAddrV4, seed: u64, now_ns: u64) -> Self {
        let mut wire = Wire { mtu: MTU_BYTES, inbox: None, out: Vec::new() };
        let interface = interface(&mut wire, local, seed, now_ns);
        let buffer = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(buffer(STREAM_RECEIVE_BYTES), buffer(STREAM_SEND_BYTES));
        // As tern's own sockets are set.
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let (shut, orphan, open, error, reader, writer) = (false, false, false, None, None, None);
        Self {
            host,
            local,
            remote,
            interface,
            sockets,
            handle,
            wire,
            seed,
            unsent: VecDeque::new(),
            shut,
            orphan,
            open,
            error,
            reader,
            writer,
            window: Window::new(),
            seen: Seen::default(),
            times: Times { heard: now_ns, progress: now_ns, ..Times::default() },
        }
    }

    /// One that asks for a connection.
    pub(crate) fn opening(
        host: HostId,
        local: SocketAddrV4,
        remote: SocketAddrV4,
        seed: u64,
        now_ns: u64,
    ) -> io::Result<Self> {
        let mut new = Self::new(host, local, remote, seed, now_ns);
        let local = IpListenEndpoint { addr: Some(IpAddress::Ipv4(*local.ip())), port: local.port() };
        let remote = IpEndpoint::new(IpAddress::Ipv4(*remote.ip()), remote.port());
        let asked = new.sockets.get_mut::<Socket<'_>>(new.handle).connect(new.interface.context(), remote, local);
        asked.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(new)
    }

    /// One that waits for its peer's SYN.
    pub(crate) fn answering(
        host: HostId,
        local: SocketAddrV4,
        remote: SocketAddrV4,
        seed: u64,
        now_ns: u64,
    ) -> io::Result<Self> {
        let mut new = Self::new(host, local, remote, seed, now_ns);
        let listening = new.socket_mut().listen(local.port());
        listening.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(new)
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// A segment comes, with the addresses that this host knows.
    pub(crate) fn take(&mut self, now_ns: u64, packet: Vec<u8>) {
        let head = Head::of(&packet);
        let before = self.socket().state();
        self.times.heard = now_ns;
        self.note_ack(now_ns, head);
        self.ingress(now_ns, packet);
        let state = self.socket().state();
        if head.has(RST) && matches!(state, State::Closed | State::Listen) && before != state && self.error.is_none() {
            let refused = before == State::SynSent;
            self.error = Some(if refused { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::ConnectionReset });
            self.unsent.clear();
        }
    }

    /// What an incoming segment acknowledges.
    fn note_ack(&mut self, now_ns: u64, head: Head) {
        let seen = &mut self.seen;
        if !head.has(ACK) || !seen.begun || after(head.ack, seen.sent) {
            return;
        }
        if after(head.ack, seen.acked) {
            let bytes = usize::try_from(head.ack.wrapping_sub(seen.acked)).unwrap_or(0);
            (seen.acked, seen.same_acks) = (head.ack, 0);
            self.times.progress = now_ns;
            self.window.acked(bytes, head.ack);
        } else if head.ack == seen.acked && head.payload == 0 && head.window == seen.window && seen.sent != seen.acked {
            seen.same_acks = seen.same_acks.saturating_add(1);
            if seen.same_acks == 3 {
                seen.fast = true;
                let in_flight = usize::try_from(seen.sent.wrapping_sub(seen.acked)).unwrap_or(0);
                self.window.lost(in_flight, seen.sent);
            }
        }
        if head.ack == self.seen.acked {
            self.seen.window = head.window;
        }
    }

    /// What an outgoing segment says.
    fn note_sent(&mut self, now_ns: u64, head: Head) {
        let seen = &mut self.seen;
        if head.has(ACK) {
            seen.told = (head.ack, head.window);
        }
        let end = head.seq.wrapping_add(head.length());
        if !seen.begun {
            (seen.begun, seen.acked, seen.sent) = (true, head.seq, end);
        } else if after(end, seen.sent) {
            seen.sent = end;
        } else if head.length() > 0 && head.seq == seen.acked && !std::mem::take(&mut seen.fast) {
            let since_ns = now_ns.saturating_sub(self.times.progress);
            if since_ns > nanos(PROGRESS_WITHIN) {
                let in_flight = usize::try_from(seen.sent.wrapping_sub(seen.acked)).unwrap_or(0);
                self.window.timed_out(in_flight, seen.sent);
            }
        }
    }

    fn ingress(&mut self, now_ns: u64, packet: Vec<u8>) {
        self.wire.inbox = Some(packet);
        self.interface.poll_ingress_single(instant(now_ns), &mut self.wire, &mut self.sockets);
    }

    /// Does what is due, and returns what is to be sent.
    pub(crate) fn run(&mut self, now_ns: u64) -> Vec<Vec<u8>> {
        if self.times.rescue.is_some_and(|at_ns| at_ns <= now_ns) {
            self.times.rescue = None;
            self.rescue(now_ns);
        }
        loop {
            self.feed();
            // Its last wait over, the socket forgets what was not yet read. So it waits for the application.
            let lingers = self.socket().state() == State::TimeWait && !self.orphan;
            let before = self.wire.out.len();
            if !lingers {
                self.interface.poll_egress(instant(now_ns), &mut self.wire, &mut self.sockets);
            }
            if self.wire.out.len() == before {
                break;
            }
        }
        let out = std::mem::take(&mut self.wire.out);
        for packet in &out {
            self.note_sent(now_ns, Head::of(packet));
        }
        self.open |= self.socket().may_send();
        self.plan(now_ns);
        out
    }

    /// Gives the socket as much as may be on its way.
    fn feed(&mut self) {
        let room = self.window.bytes();
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        while socket.may_send() && socket.send_queue() < room && !self.unsent.is_empty() {
            let chunk = self.unsent.as_slices().0;
            let most = chunk.len().min(room - socket.send_queue());
            match socket.send_slice(&chunk[..most]) {
                Ok(taken @ 1..) => drop(self.unsent.drain(..taken)),
                _ => break,
            }
        }
        if self.shut && self.unsent.is_empty() && self.open {
            socket.close();
        }
    }

    /// What is next, and when it is given up.
    fn plan(&mut self, now_ns: u64) {
        let state = self.socket().state();
        let at = self.interface.poll_at(instant(now_ns), &self.sockets);
        let lingers = state == State::TimeWait && !self.orphan;
        self.times.socket = at.filter(|_| !lingers).map(|at| {
            let at_ns = u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000);
            // What is due now was just done; whatever it still wants must not be asked for on the spot.
            if at_ns <= now_ns { now_ns + 1_000_000 } else { at_ns }
        });
        let opening = matches!(state, State::SynSent | State::SynReceived);
        let ending = matches!(state, State::FinWait1 | State::Closing | State::LastAck);
        let sending = !self.unsent.is_empty() || self.socket().send_queue() > 0;
        let busy = self.error.is_none() && (opening || ending || sending && state != State::Closed);
        let half_closed = self.orphan && state == State::FinWait2;
        if busy || half_closed {
            let since_ns = *self.times.busy_since.get_or_insert(now_ns);
            let (begin_ns, limit) = match (opening, half_closed) {
                (true, _) => (since_ns, OPEN_GIVE_UP),
                (_, true) => (since_ns.max(self.times.heard), ORPHAN_GIVE_UP),
                _ => (since_ns.max(self.times.heard), STREAM_GIVE_UP),
            };
            self.times.ends = Some(begin_ns.saturating_add(nanos(limit)));
        } else {
            (self.times.busy_since, self.times.ends) = (None, None);
        }
        let stuck = busy && !opening && self.times.socket.is_none();
        self.times.rescue = stuck.then(|| self.times.rescue.unwrap_or(now_ns.saturating_add(nanos(RESCUE_AFTER))));
    }

    fn rescue(&mut self, now_ns: u64) {
        let Seen { acked, sent, told, window, .. } = self.seen;
        if sent == acked || window == 0 {
            let probe = Head { flags: ACK, seq: acked.wrapping_sub(1), ack: told.0, window: told.1, payload: 0 };
            let mut packet = probe.packet();
            readdress(&mut packet, self.local, self.remote);
            self.wire.out.push(packet);
            return;
        }
        // It counts up to the third that is like the one before, and counts anew after one with another window. In some
        // states the next would stop what the third has begun.
        for window in [window - 1, window, window, window, window] {
            let again = Head { flags: ACK, seq: told.0, ack: acked, window, payload: 0 };
            let mut packet = again.packet();
            readdress(&mut packet, self.remote, self.local);
            self.ingress(now_ns, packet);
        }
        self.interface.poll_egress(instant(now_ns), &mut self.wire, &mut self.sockets);
    }

    /// When [`Connection::run`] is to be called if nothing happens before.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        [self.times.socket, self.times.ends, self.times.rescue].into_iter().flatten().min()
    }

    /// The moment for which an event is to be made, if one must be.
    pub(crate) fn arm(&mut self) -> Option<u64> {
        let next_ns = self.next_ns()?;
        if self.times.armed.is_some_and(|armed_ns| armed_ns <= next_ns) {
            return None;
        }
        self.times.armed = Some(next_ns);
        Some(next_ns)
    }

    /// The event of this moment has come.
    pub(crate) fn fired(&mut self, at_ns: u64) {
        self.times.armed = self.times.armed.filter(|armed_ns| *armed_ns > at_ns);
    }

    /// Whether nobody has answered for too long; then it has failed.
    pub(crate) fn gives_up(&mut self, now_ns: u64) -> bool {
        let over = self.times.ends.is_some_and(|ends_ns| ends_ns <= now_ns);
        if over {
            self.error = Some(io::ErrorKind::TimedOut);
            self.times = Times { armed: self.times.armed, ..Times::default() };
        }
        over
    }

    /// Whether nothing remains to be done for it: its application is gone and all is said, or will never be.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.socket().state();
        self.orphan && (self.error.is_some() || state == State::Closed || state == State::Listen)
    }

    /// Whether it only waits for stray packets.
    pub(crate) fn lingers(&self) -> bool {
        self.socket().state() == State::TimeWait
    }

    /// Whether its peer is told if it ends without a word.
    pub(crate) fn is_known_to_peer(&self) -> bool {
        self.error.is_none()
            && !matches!(self.socket().state(), State::Closed | State::Listen | State::SynSent | State::TimeWait)
    }

    /// The reset that ends it.
    pub(crate) fn reset(&self) -> Vec<u8> {
        let head =
            Head { flags: RST | ACK, seq: self.seen.sent, ack: self.seen.told.0, window: 0, payload: 0 }.packet();
        let mut packet = head;
        readdress(&mut packet, self.local, self.remote);
        packet
    }

    /// Bytes that came and were not read.
    pub(crate) fn unread(&self) -> usize {
        self.socket().recv_queue()
    }

    /// Reads; 0: the end. `None`: nothing there yet.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Option<io::Result<usize>> {
        match self.socket_mut().recv_slice(out) {
            Ok(0) if self.error.is_none() => None,
            Ok(0) => self.error.map(|kind| Err(kind.into())),
            Ok(read) => Some(Ok(read)),
            Err(RecvError::Finished) => Some(Ok(0)),
            Err(RecvError::InvalidState) => match self.error {
                Some(kind) => Some(Err(kind.into())),
                None if self.open => Some(Ok(0)),
                None => None,
            },
        }
    }

    /// Writes as much as there is room for. `None`: there is none.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Option<io::Result<usize>> {
        if let Some(kind) = self.error {
            return Some(Err(kind.into()));
        }
        if self.shut {
            return Some(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = bytes.len().min(self.room());
        if taken == 0 && !bytes.is_empty() {
            return None;
        }
        self.unsent.extend(&bytes[..taken]);
        Some(Ok(taken))
    }

    fn room(&self) -> usize {
        STREAM_SEND_BYTES.saturating_sub(self.unsent.len() + self.socket().send_queue())
    }

    /// Wakes whom its state concerns.
    pub(crate) fn wake(&mut self, after: &mut After) {
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        let readable = self.error.is_some() || socket.can_recv() || self.open && !socket.may_recv();
        if readable {
            after.wake.extend(self.reader.take());
        }
        if self.error.is_some() || self.open && (self.shut || self.room() > 0) {
            after.wake.extend(self.writer.take());
        }
    }

    /// A link on the way takes only shorter packets.
    pub(crate) fn lower_mtu(&mut self, mtu: usize, now_ns: u64) {
        if mtu < self.wire.mtu {
            self.wire.mtu = mtu;
            self.interface = interface(&mut self.wire, self.local, self.seed, now_ns);
        }
    }
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX))
}

fn interface(wire: &mut Wire, local: SocketAddrV4, seed: u64, now_ns: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, wire, instant(now_ns));
    // Everybody is a neighbour, so that no route is needed.
    let all = IpCidr::new(IpAddress::Ipv4(*local.ip()), 0);
    interface.update_ip_addrs(|addresses| addresses.extend([all]));
    interface
}

/// The cable between smoltcp and the world.
struct Wire {
    mtu: usize,
    inbox: Option<Vec<u8>>,
    out: Vec<Vec<u8>>,
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.inbox.take()?;
        Some((Received(packet), Sending(&mut self.out)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities.checksum.ipv4 = Checksum::None;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let out = f(&mut packet);
        self.0.push(packet);
        out
    }
}

/// A SYN that opens a connection.
pub(crate) fn asks(head: Head) -> bool {
    head.has(SYN) && !head.has(ACK) && !head.has(RST)
}
