//! How long a datagram waits before this process reads it.
//!
//! Problem: what a client has sent waits in the socket's buffer, then for the endpoint's task, then for the
//! connection's. No clock of this process runs for it meanwhile, so a process that is behind by half a second
//! sees nothing of it: each datagram looks fresh when it is read.
//!
//! Rule: a socket sends a small datagram to itself now and then. It stands in the same buffer and is read by the
//! same task as everything else, and a task of its own is woken by it as a connection's is, so the time until that
//! task runs is what others wait as well. One is on its way at a time; one that is late counts as late before it
//! comes. It begins with 16 random bytes, by which it is taken out of what is handed to QUIC.
//!
//! Why simpler ways fail: the kernel's time stamps do not come through quinn; the number of bytes in the buffer
//! says nothing of the rate at which they are read; QUIC's own round trips hold the network's queues as well, and
//! the client's pauses.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tern_core::clock::Entropy;
use tokio::sync::Notify;

/// Bytes that tell a sounding from everything else, and those of its number.
const KEY_BYTES: usize = 16;
const SOUNDING_BYTES: usize = KEY_BYTES + 8;

/// See the module. For any number of sockets that are read by tasks of one runtime.
#[derive(Debug)]
pub struct Sounding {
    key: [u8; KEY_BYTES],
    state: Mutex<State>,
    came: Notify,
}

#[derive(Debug, Default)]
struct State {
    sockets: Vec<Weak<dyn AsyncUdpSocket>>,
    sent: u64,
    seen: u64,
}

impl Sounding {
    /// Of no socket yet.
    pub fn new(rng: &Entropy) -> Arc<Self> {
        let mut key = [0; KEY_BYTES];
        rng.fill(&mut key);
        Arc::new(Self { key, state: Mutex::default(), came: Notify::new() })
    }

    /// A socket whose soundings are taken out of what is read from it.
    pub fn wrap(self: &Arc<Self>, inner: Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> {
        self.state().sockets.push(Arc::downgrade(&inner));
        Arc::new(Sounded { inner, sounding: self.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one through the next socket in turn. False: none could be sent, which says nothing.
    pub fn send(&self) -> bool {
        let (socket, bytes) = {
            let mut state = self.state();
            state.sockets.retain(|socket| socket.strong_count() > 0);
            state.sent += 1;
            let turn = usize::try_from(state.sent).unwrap_or(0) % state.sockets.len().max(1);
            let mut bytes = [0; SOUNDING_BYTES];
            bytes[..KEY_BYTES].copy_from_slice(&self.key);
            bytes[KEY_BYTES..].copy_from_slice(&state.sent.to_be_bytes());
            (state.sockets.get(turn).and_then(Weak::upgrade), bytes)
        };
        let Some(socket) = socket else { return false };
        let Ok(local) = socket.local_addr() else { return false };
        let destination = SocketAddr::new(reachable(local.ip()), local.port());
        let transmit = Transmit { destination, ecn: None, contents: &bytes, segment_size: None, src_ip: None };
        socket.try_send(&transmit).is_ok()
    }

    /// Waits until the one that was sent last has come. Dropping the future loses nothing.
    pub async fn came(&self) {
        loop {
            let notified = self.came.notified();
            {
                let state = self.state();
                if state.seen >= state.sent {
                    return;
                }
            }
            notified.await;
        }
    }

    /// Takes a sounding out of what was read.
    fn take_out(&self, bytes: &[u8], meta: &mut RecvMeta) {
        // Several of one socket may come as one.
        if meta.stride != SOUNDING_BYTES && meta.len != SOUNDING_BYTES {
            return;
        }
        let Some(read) = bytes.get(..meta.len).filter(|read| read.starts_with(&self.key)) else { return };
        for one in read.chunks(SOUNDING_BYTES) {
            let number = one.get(KEY_BYTES..).and_then(|n| n.try_into().ok()).map_or(0, u64::from_be_bytes);
            let mut state = self.state();
            state.seen = state.seen.max(number.min(state.sent));
        }
        meta.len = 0;
        self.came.notify_waiters();
    }
}

/// An address of this machine at which a socket bound to `ip` is reached.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

#[derive(Debug)]
struct Sounded {
    inner: Arc<dyn AsyncUdpSocket>,
    sounding: Arc<Sounding>,
}

impl AsyncUdpSocket for Sounded {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let read = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = &read {
            // Emptied rather than left out: who reads skips what is empty, and is woken again if that was all.
            bufs.iter().zip(meta.iter_mut()).take(*count).for_each(|(buf, meta)| self.sounding.take_out(buf, meta));
        }
        read
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;
    use crate::system::system_env;
    use tokio::time::timeout;

    /// Reads once, as an endpoint does.
    async fn read(socket: &Arc<dyn AsyncUdpSocket>) -> Vec<Vec<u8>> {
        let mut bytes = [[0u8; 256]; 4];
        let mut bufs = bytes.each_mut().map(|b| IoSliceMut::new(b));
        let mut metas = [RecvMeta::default(); 4];
        let count = poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut metas)).await.unwrap();
        metas.iter().zip(&bufs).take(count).map(|(meta, buf)| buf[..meta.len].to_vec()).collect()
    }

    #[tokio::test]
    async fn a_sounding_comes_back_and_only_what_others_sent_is_handed_on() {
        let env = system_env().unwrap();
        for at in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let Ok(inner) = env.net.udp(at.parse().unwrap()) else { continue };
            let sounding = Sounding::new(&env.rng);
            let socket = sounding.wrap(inner);
            let mut poller = socket.clone().create_io_poller();
            poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
            assert!(sounding.send());
            assert_eq!(read(&socket).await, [Vec::<u8>::new()]);
            timeout(Duration::from_secs(10), sounding.came()).await.unwrap();
            let to = SocketAddr::new(reachable(socket.local_addr().unwrap().ip()), socket.local_addr().unwrap().port());
            let other = std::net::UdpSocket::bind((reachable(to.ip()), 0)).unwrap();
            // As long as a sounding, and with another key.
            other.send_to(&[7; SOUNDING_BYTES], to).unwrap();
            assert_eq!(read(&socket).await, [vec![7; SOUNDING_BYTES]]);
        }
    }

    #[tokio::test]
    async fn a_number_that_was_never_sent_is_not_believed_and_a_closed_socket_is_forgotten() {
        let env = system_env().unwrap();
        let sounding = Sounding::new(&env.rng);
        let socket = sounding.wrap(env.net.udp("127.0.0.1:0".parse().unwrap()).unwrap());
        let mut forged = sounding.key.to_vec();
        forged.extend(u64::MAX.to_be_bytes());
        let mut meta = RecvMeta { len: SOUNDING_BYTES, stride: SOUNDING_BYTES, ..RecvMeta::default() };
        sounding.take_out(&forged, &mut meta);
        assert_eq!((meta.len, sounding.state().seen), (0, 0));
        drop(socket);
        assert!(!sounding.send(), "no socket is left");
    }
}
