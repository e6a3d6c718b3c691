//! Reliable byte streams, as TCP gives them: opened in one round trip, refused where nobody listens, reset by
//! a killed process, stalled by a link that loses packets, slowed by a reader that does not read.
//!
//! This is a model of what an application sees, not of TCP's segments. The sending side learns at once
//! whether the link takes a packet; if not, it keeps that packet and all later ones, and tries again after
//! 200 ms, 400 ms ... 10 s, as a real sender does, until it gives up. Acknowledgements are not modelled, so
//! a link that loses only these does no harm here. Bytes arrive in order, whatever the link's latency does
//! meanwhile.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tern_core::store::BoxFut;
use tern_net::env::{Acceptor, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::{
    BACKLOG, CHUNK_BYTES, OPEN_GIVE_UP, RETRANSMIT_MAX, RETRANSMIT_MIN, STREAM_BYTES, STREAM_GIVE_UP,
    STREAM_PROGRESS_BYTES,
};
use crate::node::{HostId, HostState};
use crate::packets::Protocol;
use crate::world::{After, Event, Shared, State};

/// One end of a stream. Numbers are never used again, so a packet for an end that is gone is known as such.
pub(crate) type EndId = u64;

/// A packet of a stream.
#[derive(Debug)]
pub(crate) struct Segment {
    from_host: HostId,
    from_end: EndId,
    from: SocketAddr,
    to_host: HostId,
    to_end: EndId,
    to: SocketAddr,
    payload: Payload,
}

#[derive(Debug)]
enum Payload {
    /// The client asks for a stream.
    Open,
    /// The listener's host grants it.
    Opened,
    Data(Bytes),
    /// The sender has no more data.
    Fin,
    /// The reader has read so many bytes.
    Progress(usize),
    /// Asks whether the other end still exists.
    Probe,
    /// The other end does not exist.
    Reset,
}

impl Payload {
    fn protocol(&self) -> Protocol {
        match self {
            Payload::Data(_) | Payload::Fin => Protocol::Tcp,
            _ => Protocol::TcpControl,
        }
    }

    fn bytes(&self) -> usize {
        if let Payload::Data(data) = self { data.len() } else { 0 }
    }
}

/// Since when the link loses this end's packets, and how long it waits now.
#[derive(Clone, Copy, Debug)]
struct Stall {
    since_ns: u64,
    wait: Duration,
}

/// What the world knows of one end.
#[derive(Debug)]
pub(crate) struct End {
    host: HostId,
    local: SocketAddr,
    peer_host: HostId,
    peer: EndId,
    remote: SocketAddr,
    open: bool,
    error: Option<io::ErrorKind>,
    /// The application has let go of it; it only remains to be sent to the end.
    orphan: bool,
    queue: VecDeque<Payload>,
    stall: Option<Stall>,
    last_arrival_ns: u64,
    unread_by_peer: usize,
    fin_sent: bool,
    writer: Option<Waker>,
    inbox: VecDeque<Bytes>,
    fin_received: bool,
    unreported: usize,
    reader: Option<Waker>,
}

impl End {
    fn new(host: HostId, local: SocketAddr, peer_host: HostId, peer: EndId, remote: SocketAddr) -> Self {
        Self {
            host,
            local,
            peer_host,
            peer,
            remote,
            open: false,
            error: None,
            orphan: false,
            queue: VecDeque::new(),
            stall: None,
            last_arrival_ns: 0,
            unread_by_peer: 0,
            fin_sent: false,
            writer: None,
            inbox: VecDeque::new(),
            fin_received: false,
            unreported: 0,
            reader: None,
        }
    }

    pub(crate) fn host(&self) -> HostId {
        self.host
    }

    fn wake(&mut self, after: &mut After) {
        after.wake.extend(self.reader.take());
        after.wake.extend(self.writer.take());
    }
}

/// A port that takes streams.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    waiting: VecDeque<EndId>,
    acceptor: Option<Waker>,
}

impl Listener {
    /// Ends it.
    pub(crate) fn end(self, after: &mut After) {
        after.wake.extend(self.acceptor);
    }
}

impl State {
    fn new_end_id(&mut self) -> EndId {
        self.next_end += 1;
        self.next_end
    }

    /// Sends what waits, until the link loses something. `before`: the stall that was just tried to end.
    fn flush(&mut self, id: EndId, before: Option<Stall>) {
        while let Some(end) = self.ends.get_mut(&id)
            && end.stall.is_none()
        {
            let Some(payload) = end.queue.pop_front() else {
                if end.orphan {
                    self.ends.remove(&id);
                }
                return;
            };
            let (host, local, peer_host, peer, remote) = (end.host, end.local, end.peer_host, end.peer, end.remote);
            let on = self.host(peer_host).state != HostState::Off;
            let arrives = self.transmit(host, peer_host, local, remote, payload.protocol(), payload.bytes(), on);
            let Some(end) = self.ends.get_mut(&id) else { return };
            match arrives {
                Some(at_ns) => {
                    let at_ns = at_ns.max(end.last_arrival_ns);
                    end.last_arrival_ns = at_ns;
                    let segment = Segment {
                        from_host: host,
                        from_end: id,
                        from: local,
                        to_host: peer_host,
                        to_end: peer,
                        to: remote,
                        payload,
                    };
                    self.schedule(at_ns, Event::Segment(segment));
                }
                None => {
                    end.queue.push_front(payload);
                    self.stall(id, before);
                }
            }
        }
    }

    fn stall(&mut self, id: EndId, before: Option<Stall>) {
        let now_ns = self.now_ns;
        let Some(end) = self.ends.get_mut(&id) else { return };
        let stall = match before {
            Some(stall) => Stall { wait: (stall.wait * 2).min(RETRANSMIT_MAX), ..stall },
            None => Stall { since_ns: now_ns, wait: RETRANSMIT_MIN },
        };
        end.stall = Some(stall);
        let at_ns = now_ns.saturating_add(nanos(stall.wait));
        self.schedule(at_ns, Event::Retransmit(id));
    }

    /// The wait of a stalled end is over.
    pub(crate) fn retransmit(&mut self, id: EndId, after: &mut After) {
        let now_ns = self.now_ns;
        let Some(end) = self.ends.get_mut(&id) else { return };
        let Some(stall) = end.stall.take() else { return };
        let limit = if end.open { STREAM_GIVE_UP } else { OPEN_GIVE_UP };
        if now_ns.saturating_sub(stall.since_ns) >= nanos(limit) {
            self.fail(id, io::ErrorKind::TimedOut, after);
            return;
        }
        if end.queue.is_empty() {
            end.queue.push_back(Payload::Probe);
        }
        self.flush(id, Some(stall));
    }

    /// A packet was lost at its destination: its host is without power, or takes no more connections.
    fn lost_on_arrival(&mut self, id: EndId, payload: Payload) {
        let Some(end) = self.ends.get_mut(&id) else { return };
        match payload {
            // Nothing else can wait behind it.
            Payload::Open => end.queue.push_back(payload),
            // A host that lost its power has lost the stream, so data need not be kept; the probe finds out.
            _ if end.queue.is_empty() => end.queue.push_back(Payload::Probe),
            _ => {}
        }
        if end.stall.is_none() {
            self.stall(id, None);
        }
    }

    /// A stream's packet arrives.
    pub(crate) fn segment_arrives(&mut self, segment: Segment, after: &mut After) {
        let Segment { from_host, from_end, from, to_host, to_end, to, payload } = segment;
        if self.host(to_host).state == HostState::Off {
            self.lost_on_arrival(from_end, payload);
            return;
        }
        if let Payload::Open = payload {
            let Some(listener) = self.listeners.get_mut(&(to_host, to.port())) else {
                self.reset(to_host, to, from_host, from_end, from);
                return;
            };
            if listener.waiting.len() >= BACKLOG {
                self.lost_on_arrival(from_end, Payload::Open);
                return;
            }
            listener.waiting.push_back(to_end);
            after.wake.extend(listener.acceptor.take());
            let mut end = End::new(to_host, to, from_host, from_end, from);
            end.open = true;
            end.queue.push_back(Payload::Opened);
            self.ends.insert(to_end, end);
            self.flush(to_end, None);
            return;
        }
        let Some(end) = self.ends.get_mut(&to_end) else {
            if matches!(payload, Payload::Data(_) | Payload::Opened | Payload::Probe) {
                self.reset(to_host, to, from_host, from_end, from);
            }
            return;
        };
        match payload {
            Payload::Open | Payload::Probe => {}
            Payload::Opened => {
                end.open = true;
                after.wake.extend(end.writer.take());
            }
            Payload::Data(_) if end.orphan => self.abort(to_end, true, after),
            Payload::Data(data) => {
                end.inbox.push_back(data);
                after.wake.extend(end.reader.take());
            }
            Payload::Fin => {
                end.fin_received = true;
                after.wake.extend(end.reader.take());
            }
            Payload::Progress(bytes) => {
                end.unread_by_peer = end.unread_by_peer.saturating_sub(bytes);
                after.wake.extend(end.writer.take());
            }
            Payload::Reset => {
                let kind = if end.open { io::ErrorKind::ConnectionReset } else { io::ErrorKind::ConnectionRefused };
                self.fail(to_end, kind, after);
            }
        }
    }

    /// Tells an end that its peer does not exist. Sent once: if it is lost, the next packet causes another.
    fn reset(&mut self, host: HostId, local: SocketAddr, to_host: HostId, to_end: EndId, to: SocketAddr) {
        if let Some(at_ns) = self.transmit(host, to_host, local, to, Protocol::TcpControl, 0, true) {
            let segment =
                Segment { from_host: host, from_end: 0, from: local, to_host, to_end, to, payload: Payload::Reset };
            self.schedule(at_ns, Event::Segment(segment));
        }
    }

    fn fail(&mut self, id: EndId, kind: io::ErrorKind, after: &mut After) {
        let Some(end) = self.ends.get_mut(&id) else { return };
        end.error = Some(kind);
        end.queue.clear();
        end.stall = None;
        end.wake(after);
        if end.orphan {
            self.ends.remove(&id);
        }
    }

    /// Removes an end at once; `tell`: its peer is told.
    pub(crate) fn abort(&mut self, id: EndId, tell: bool, after: &mut After) {
        let Some(mut end) = self.ends.remove(&id) else { return };
        end.wake(after);
        if tell && end.open && end.error.is_none() {
            self.reset(end.host, end.local, end.peer_host, end.peer, end.remote);
        }
    }

    /// The application lets go of an end.
    fn close(&mut self, id: EndId, after: &mut After) {
        let Some(end) = self.ends.get_mut(&id) else { return };
        after.drop.extend(end.reader.take());
        after.drop.extend(end.writer.take());
        if !end.open || end.error.is_some() {
            self.ends.remove(&id);
            return;
        }
        if !end.inbox.is_empty() {
            // What it has not read is lost, and the peer shall know.
            self.abort(id, true, after);
            return;
        }
        end.orphan = true;
        if !end.fin_sent {
            end.fin_sent = true;
            end.queue.push_back(Payload::Fin);
        }
        self.flush(id, None);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A simulated stream. Dropping it ends it: with all that was written, unless something was left unread.
pub struct SimStream {
    shared: Arc<Shared>,
    host: HostId,
    incarnation: u64,
    id: EndId,
}

impl Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimStream").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SimStream {
    /// Connects. Dropping the future gives the attempt up.
    pub(crate) async fn connect(
        shared: &Arc<Shared>,
        host: HostId,
        incarnation: u64,
        to: SocketAddr,
    ) -> io::Result<Self> {
        let id = shared.with(|state, _| {
            state.check(host, incarnation)?;
            let Some(peer_host) = state.route(host, to.ip()) else {
                return Err(io::Error::new(io::ErrorKind::HostUnreachable, format!("no host has the address {to}")));
            };
            let any = SocketAddr::new(state.source_ip(host, to), 0);
            let local = state.bind_address(host, any, |state, port| {
                state.ends.values().any(|end| end.host == host && end.local.port() == port)
                    || state.listeners.contains_key(&(host, port))
            })?;
            let (id, peer) = (state.new_end_id(), state.new_end_id());
            let mut end = End::new(host, local, peer_host, peer, to);
            end.queue.push_back(Payload::Open);
            state.ends.insert(id, end);
            state.flush(id, None);
            Ok(id)
        })?;
        let stream = Self { shared: Arc::clone(shared), host, incarnation, id };
        poll_fn(|cx| {
            stream.with_end(|end, after| {
                if let Some(kind) = end.error {
                    return Poll::Ready(Err(io::Error::new(kind, format!("connecting to {to} failed"))));
                }
                if end.open {
                    return Poll::Ready(Ok(()));
                }
                after.drop.extend(end.writer.replace(cx.waker().clone()));
                Poll::Pending
            })
        })
        .await?;
        Ok(stream)
    }

    fn with_state<T>(&self, f: impl FnOnce(&mut State, &mut After) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.shared.with(|state, after| {
            state.check(self.host, self.incarnation)?;
            f(state, after)
        })
    }

    fn with_end<T>(&self, f: impl FnOnce(&mut End, &mut After) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.with_state(|state, after| match state.ends.get_mut(&self.id) {
            Some(end) => f(end, after),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        })
    }
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let id = self.id;
        self.with_state(|state, after| {
            let Some(end) = state.ends.get_mut(&id) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut read = 0;
            while let Some(chunk) = end.inbox.front_mut()
                && buf.remaining() > 0
            {
                let n = chunk.len().min(buf.remaining());
                buf.put_slice(&chunk[..n]);
                chunk.advance(n);
                if chunk.is_empty() {
                    end.inbox.pop_front();
                }
                read += n;
            }
            if read > 0 {
                end.unreported += read;
                if end.unreported >= STREAM_PROGRESS_BYTES && !end.fin_received && end.error.is_none() {
                    let progress = std::mem::take(&mut end.unreported);
                    end.queue.push_back(Payload::Progress(progress));
                    state.flush(id, None);
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(kind) = end.error {
                return Poll::Ready(Err(kind.into()));
            }
            if end.fin_received {
                return Poll::Ready(Ok(()));
            }
            after.drop.extend(end.reader.replace(cx.waker().clone()));
            Poll::Pending
        })
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let id = self.id;
        self.with_state(|state, after| {
            let Some(end) = state.ends.get_mut(&id) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            if let Some(kind) = end.error {
                return Poll::Ready(Err(kind.into()));
            }
            if end.fin_sent {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let n = buf.len().min(STREAM_BYTES.saturating_sub(end.unread_by_peer)).min(CHUNK_BYTES);
            if n == 0 && !buf.is_empty() {
                after.drop.extend(end.writer.replace(cx.waker().clone()));
                return Poll::Pending;
            }
            if n > 0 {
                end.unread_by_peer += n;
                end.queue.push_back(Payload::Data(Bytes::copy_from_slice(&buf[..n])));
                state.flush(id, None);
            }
            Poll::Ready(Ok(n))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let id = self.id;
        self.with_state(|state, _| {
            let Some(end) = state.ends.get_mut(&id) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            if end.error.is_some() {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            if !end.fin_sent {
                end.fin_sent = true;
                end.queue.push_back(Payload::Fin);
                state.flush(id, None);
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.shared.with(|state, after| {
            if state.check(self.host, self.incarnation).is_ok() {
                state.close(self.id, after);
            }
        });
    }
}

/// A simulated listener.
pub struct SimAcceptor {
    shared: Arc<Shared>,
    host: HostId,
    incarnation: u64,
    local: SocketAddr,
}

impl Debug for SimAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimAcceptor").field("local", &self.local).finish_non_exhaustive()
    }
}

impl SimAcceptor {
    /// Listens; port 0 takes a free one.
    pub(crate) fn listen(shared: &Arc<Shared>, host: HostId, incarnation: u64, at: SocketAddr) -> io::Result<Self> {
        let local = shared.with(|state, _| {
            state.check(host, incarnation)?;
            let local = state.bind_address(host, at, |state, port| state.listeners.contains_key(&(host, port)))?;
            state.listeners.insert((host, local.port()), Listener::default());
            io::Result::Ok(local)
        })?;
        Ok(Self { shared: Arc::clone(shared), host, incarnation, local })
    }
}

impl Acceptor for SimAcceptor {
    fn accept(&mut self) -> BoxFut<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(poll_fn(|cx| {
            self.shared.with(|state, after| {
                state.check(self.host, self.incarnation)?;
                let Some(listener) = state.listeners.get_mut(&(self.host, self.local.port())) else {
                    return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                };
                while let Some(id) = listener.waiting.pop_front() {
                    // An end that failed before it was accepted is not handed out.
                    if let Some(end) = state.ends.get(&id)
                        && end.error.is_none()
                    {
                        let stream = SimStream {
                            shared: Arc::clone(&self.shared),
                            host: self.host,
                            incarnation: self.incarnation,
                            id,
                        };
                        return Poll::Ready(Ok((Box::new(stream) as Box<dyn Stream>, end.remote)));
                    }
                    state.ends.remove(&id);
                }
                after.drop.extend(listener.acceptor.replace(cx.waker().clone()));
                Poll::Pending
            })
        }))
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for SimAcceptor {
    fn drop(&mut self) {
        self.shared.with(|state, after| {
            if state.check(self.host, self.incarnation).is_err() {
                return;
            }
            if let Some(mut listener) = state.listeners.remove(&(self.host, self.local.port())) {
                while let Some(id) = listener.waiting.pop_front() {
                    state.abort(id, true, after);
                }
                listener.end(after);
            }
        });
    }
}
