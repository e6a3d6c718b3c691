//! Datagrams: a socket that quinn takes for a real one.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::limits::DATAGRAMS_WAITING;
use crate::node::HostId;
use crate::packets::Lost;
use crate::path::{IpPacket, Load, v4};
use crate::world::{After, Shared, State};

/// A datagram that waits in a socket.
#[derive(Debug)]
struct Datagram {
    from: SocketAddrV4,
    /// At which of the host's addresses it came.
    at: Ipv4Addr,
    ecn: Option<EcnCodepoint>,
    bytes: Bytes,
}

/// What the world knows of an open socket.
#[derive(Debug, Default)]
pub(crate) struct UdpPort {
    /// The address it is bound to; unspecified: all of the host's.
    ip: Option<Ipv4Addr>,
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
    /// `source` is unspecified for a socket that is bound to no particular address.
    fn send_datagrams(&mut self, host: HostId, source: SocketAddrV4, transmit: &Transmit<'_>, after: &mut After) {
        let Some(to) = v4(transmit.destination) else { return };
        let step = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for bytes in transmit.contents.chunks(step) {
            let load = Load::Udp { ecn: transmit.ecn, bytes: Bytes::copy_from_slice(bytes) };
            self.send(IpPacket { sender: host, from: source, to, load }, after);
        }
    }

    /// A datagram arrives. Nobody there: it is lost, and nobody is told.
    pub(crate) fn datagram_arrives(
        &mut self,
        host: HostId,
        from: SocketAddrV4,
        to: SocketAddrV4,
        ecn: Option<EcnCodepoint>,
        bytes: Bytes,
        after: &mut After,
    ) -> Result<(), Lost> {
        let socket = self.udp.get_mut(&(host, to.port())).filter(|socket| socket.ip.is_none_or(|ip| ip == *to.ip()));
        let socket = socket.ok_or(Lost::NoSocket)?;
        if socket.waiting.len() >= DATAGRAMS_WAITING {
            return Err(Lost::SocketFull);
        }
        socket.waiting.push_back(Datagram { from, at: *to.ip(), ecn, bytes });
        after.wake.extend(socket.reader.take());
        Ok(())
    }
}

/// A simulated UDP socket. Sending never blocks: what a link can't take is lost on the way.
pub struct SimUdp {
    shared: Arc<Shared>,
    host: HostId,
    incarnation: u64,
    local: SocketAddr,
    source: SocketAddrV4,
}

impl Debug for SimUdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimUdp").field("local", &self.local).finish_non_exhaustive()
    }
}

impl SimUdp {
    /// Binds; port 0 takes a free one.
    pub(crate) fn bind(shared: &Arc<Shared>, host: HostId, incarnation: u64, at: SocketAddr) -> io::Result<Self> {
        let bound = shared.with(|state, _| {
            state.check(host, incarnation)?;
            let local = state.bind_address(host, at, |state, port| state.udp.contains_key(&(host, port)))?;
            let ip = v4(at).map(|at| *at.ip()).filter(|ip| !ip.is_unspecified());
            state.udp.insert((host, local.port()), UdpPort { ip, ..UdpPort::default() });
            io::Result::Ok((local, SocketAddrV4::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED), local.port())))
        });
        let (local, source) = bound?;
        Ok(Self { shared: Arc::clone(shared), host, incarnation, local, source })
    }
}

impl AsyncUdpSocket for SimUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.shared.with(|state, after| {
            state.check(self.host, self.incarnation)?;
            state.send_datagrams(self.host, self.source, transmit, after);
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
                    addr: datagram.from.into(),
                    len,
                    stride: len,
                    ecn: datagram.ecn,
                    dst_ip: Some(datagram.at.into()),
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
