//! Datagrams: a socket that quinn takes for a real one.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::limits::{DATAGRAM_BYTES, DATAGRAMS_WAITING, HEADER_BYTES};
use crate::node::HostId;
use crate::packets::Protocol;
use crate::pipes::{Parcel, PipeId};
use crate::world::{After, Event, Shared, State};
use tern_netsim_link::{Fate, flip};

/// A datagram on its way, or waiting in a socket.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    from: SocketAddr,
    ecn: Option<EcnCodepoint>,
    bytes: Bytes,
}

/// What the world knows of an open socket.
#[derive(Debug, Default)]
pub(crate) struct UdpPort {
    waiting: VecDeque<Datagram>,
    reader: Option<Waker>,
}

impl UdpPort {
    /// Ends it; whoever waits finds out.
    pub(crate) fn end(self, after: &mut After) {
        after.wake.extend(self.reader);
    }
}

impl State {
    fn send_datagram(&mut self, host: HostId, port: u16, transmit: &Transmit<'_>) {
        let to = transmit.destination;
        let from = SocketAddr::new(self.source_ip(host, to), port);
        let step = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for bytes in transmit.contents.chunks(step) {
            let fits = bytes.len() <= DATAGRAM_BYTES;
            let Some(target) = self.route(host, to.ip()) else { continue };
            let Some(at_ns) = self.transmit(host, target, from, to, Protocol::Udp, bytes.len(), fits) else {
                continue;
            };
            let datagram = Datagram { from, ecn: transmit.ecn, bytes: Bytes::copy_from_slice(bytes) };
            let Some(pipe) = self.pipe(host, target) else {
                self.schedule(at_ns, Event::Datagram { host: target, port: to.port(), datagram });
                continue;
            };
            let length = u32::try_from(bytes.len() + HEADER_BYTES).unwrap_or(u32::MAX);
            let now_ns = self.now_ns;
            let parcel = Parcel { host: target, port: to.port(), datagram };
            self.pipes.direction(pipe).send(now_ns, length, parcel);
            self.arm(pipe);
        }
    }

    /// A link with a spec has something to tell, or to do.
    pub(crate) fn pipe_due(&mut self, pipe: PipeId, at_ns: u64, after: &mut After) {
        self.pipes.fired(pipe, at_ns);
        while let Some(output) = self.pipes.direction(pipe).poll(at_ns) {
            let Parcel { host, port, mut datagram } = output.payload;
            match output.fate {
                Fate::Delivered | Fate::Copied => {}
                Fate::Corrupted(roll) => {
                    let mut bytes = datagram.bytes.to_vec();
                    flip(&mut bytes, roll);
                    datagram.bytes = bytes.into();
                }
                Fate::Dropped(_) => continue,
            }
            self.datagram_arrives(host, port, datagram, after);
        }
        self.arm(pipe);
    }

    /// Sees to it that a link is asked when it has something to tell.
    pub(crate) fn arm(&mut self, pipe: PipeId) {
        if let Some(at_ns) = self.pipes.arm(pipe) {
            self.schedule(at_ns, Event::Pipe(pipe));
        }
    }

    /// A datagram arrives. Nobody there: it is lost, and nobody is told.
    pub(crate) fn datagram_arrives(&mut self, host: HostId, port: u16, datagram: Datagram, after: &mut After) {
        if let Some(socket) = self.udp.get_mut(&(host, port))
            && socket.waiting.len() < DATAGRAMS_WAITING
        {
            socket.waiting.push_back(datagram);
            after.wake.extend(socket.reader.take());
        }
    }
}

/// A simulated UDP socket. Sending never blocks: what a link can't take is lost on the way.
pub struct SimUdp {
    shared: Arc<Shared>,
    host: HostId,
    incarnation: u64,
    local: SocketAddr,
}

impl Debug for SimUdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimUdp").field("local", &self.local).finish_non_exhaustive()
    }
}

impl SimUdp {
    /// Binds; port 0 takes a free one.
    pub(crate) fn bind(shared: &Arc<Shared>, host: HostId, incarnation: u64, at: SocketAddr) -> io::Result<Self> {
        let local = shared.with(|state, _| {
            state.check(host, incarnation)?;
            let local = state.bind_address(host, at, |state, port| state.udp.contains_key(&(host, port)))?;
            state.udp.insert((host, local.port()), UdpPort::default());
            io::Result::Ok(local)
        })?;
        Ok(Self { shared: Arc::clone(shared), host, incarnation, local })
    }
}

impl AsyncUdpSocket for SimUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.shared.with(|state, _| {
            state.check(self.host, self.incarnation)?;
            state.send_datagram(self.host, self.local.port(), transmit);
            Ok(())
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.shared.with(|state, after| {
            state.check(self.host, self.incarnation)?;
            let Some(socket) = state.udp.get_mut(&(self.host, self.local.port())) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            let mut filled = 0;
            while filled < bufs.len().min(meta.len()) {
                let Some(datagram) = socket.waiting.pop_front() else { break };
                let len = datagram.bytes.len();
                let Some(room) = bufs[filled].get_mut(..len) else {
                    // Longer than the reader's buffer: the kernel would cut it, and quinn could not read it.
                    continue;
                };
                room.copy_from_slice(&datagram.bytes);
                meta[filled] = RecvMeta {
                    addr: datagram.from,
                    len,
                    stride: len,
                    ecn: datagram.ecn,
                    dst_ip: Some(self.local.ip()),
                };
                filled += 1;
            }
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
            after.drop.extend(socket.reader.replace(cx.waker().clone()));
            Poll::Pending
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for SimUdp {
    fn drop(&mut self) {
        self.shared.with(|state, after| {
            // A later start of the host may have bound the port anew.
            if state.check(self.host, self.incarnation).is_ok()
                && let Some(port) = state.udp.remove(&(self.host, self.local.port()))
            {
                port.end(after);
            }
        });
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
