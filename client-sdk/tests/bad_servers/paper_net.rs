//! A network on paper: names, TCP and UDP within this process, in paused time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Debug};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, UdpPoller};
use tern_core::clock::{Clock, Entropy};
use tern_core::store::BoxFut;
use tern_net::env::{Acceptor, Env, Net, Spawn, Spawner, Stream};
use tokio::sync::mpsc;

/// What becomes of a connection to an address where nobody listens.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Swallows,
    /// Somebody listens elsewhere. Not for datagrams.
    Is(SocketAddr),
}

type Incoming = (Box<dyn Stream>, SocketAddr);

#[derive(Default)]
struct World {
    names: BTreeMap<String, Vec<IpAddr>>,
    places: BTreeMap<SocketAddr, Place>,
    listeners: BTreeMap<SocketAddr, mpsc::UnboundedSender<Incoming>>,
    sockets: BTreeMap<SocketAddr, Socket>,
    tried: Vec<(Duration, SocketAddr)>,
    datagrams: u64,
    port: u16,
}

#[derive(Default)]
struct Socket {
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    reader: Option<Waker>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct PaperNet {
    world: Arc<Mutex<World>>,
    start: tokio::time::Instant,
}

impl Debug for PaperNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaperNet")
    }
}

impl PaperNet {
    /// A network, and the environment of whoever is in it.
    pub fn new() -> (Self, Env) {
        let net = Self { world: Arc::default(), start: tokio::time::Instant::now() };
        let env = Env {
            net: Arc::new(net.clone()),
            clock: Arc::new(PaperClock(net.start)),
            rng: Arc::new(Entropy::seeded(7)),
            tasks: Spawner::new(Arc::new(Tasks)),
        };
        (net, env)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub fn name(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.world().names.insert(name.to_owned(), addresses);
    }

    pub fn place(&self, at: &str, place: Place) {
        self.world().places.insert(at.parse().unwrap(), place);
    }

    /// TCP connections that were tried, with the time of each.
    pub fn tried(&self) -> Vec<(Duration, SocketAddr)> {
        self.world().tried.clone()
    }

    /// Datagrams that the client sent.
    pub fn datagrams(&self) -> u64 {
        self.world().datagrams
    }
}

impl World {
    fn free(&mut self, at: SocketAddr) -> SocketAddr {
        if at.port() != 0 {
            return at;
        }
        self.port += 1;
        SocketAddr::new(at.ip(), 10_000 + self.port)
    }
}

impl Net for PaperNet {
    fn udp(&self, at: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut world = self.world();
        let here = match (at.ip().is_unspecified(), at) {
            (true, SocketAddr::V4(_)) => SocketAddr::new([10, 0, 0, 9].into(), at.port()),
            (true, SocketAddr::V6(_)) => SocketAddr::new("fd00::9".parse().unwrap(), at.port()),
            _ => at,
        };
        let here = world.free(here);
        world.sockets.insert(here, Socket::default());
        Ok(Arc::new(Udp { net: self.clone(), here }))
    }

    fn listen(&self, at: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Acceptor>>> {
        let (sender, incoming) = mpsc::unbounded_channel();
        let mut world = self.world();
        let at = world.free(at);
        world.listeners.insert(at, sender);
        Box::pin(async move { Ok(Box::new(Listener { at, incoming }) as Box<dyn Acceptor>) })
    }

    fn connect(&self, to: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let listener = {
                let mut world = self.world();
                world.tried.push((self.start.elapsed(), to));
                match world.places.get(&to) {
                    Some(Place::Swallows) => None,
                    Some(Place::Is(elsewhere)) => Some(world.listeners.get(elsewhere).cloned()),
                    None => Some(world.listeners.get(&to).cloned()),
                }
            };
            let Some(listener) = listener else { return std::future::pending().await };
            tokio::time::sleep(Duration::from_millis(20)).await;
            let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
            let (near, far) = tokio::io::duplex(64 * 1024);
            let from = "10.0.0.9:9999".parse().unwrap();
            listener.send((Box::new(far), from)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(Box::new(near) as Box<dyn Stream>)
        })
    }

    fn resolve(&self, name: &str) -> BoxFut<'_, io::Result<Vec<IpAddr>>> {
        let found = match name.parse() {
            Ok(ip) => Some(vec![ip]),
            Err(_) => self.world().names.get(name).cloned(),
        };
        Box::pin(async move { found.ok_or_else(|| io::ErrorKind::NotFound.into()) })
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(Tasks)
    }
}

struct Listener {
    at: SocketAddr,
    incoming: mpsc::UnboundedReceiver<Incoming>,
}

impl Acceptor for Listener {
    fn accept(&mut self) -> BoxFut<'_, io::Result<Incoming>> {
        Box::pin(async move {
            match self.incoming.recv().await {
                Some(incoming) => Ok(incoming),
                // Another one listens here now.
                None => std::future::pending().await,
            }
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.at
    }
}

struct Udp {
    net: PaperNet,
    here: SocketAddr,
}

impl Debug for Udp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Udp({})", self.here)
    }
}

impl AsyncUdpSocket for Udp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut world = self.net.world();
        let step = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for bytes in transmit.contents.chunks(step) {
            world.datagrams += u64::from(self.here.ip() == IpAddr::from([10, 0, 0, 9]));
            if let Some(socket) = world.sockets.get_mut(&transmit.destination) {
                socket.waiting.push_back((self.here, bytes.to_vec()));
                socket.reader.take().into_iter().for_each(Waker::wake);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut world = self.net.world();
        let socket = world.sockets.get_mut(&self.here).unwrap();
        let Some((addr, bytes)) = socket.waiting.pop_front() else {
            socket.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let len = bytes.len();
        bufs[0][..len].copy_from_slice(&bytes);
        meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: Some(self.here.ip()) };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.here)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for Udp {
    fn drop(&mut self) {
        self.net.world().sockets.remove(&self.here);
    }
}

#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Debug)]
struct PaperClock(tokio::time::Instant);

impl Clock for PaperClock {
    fn now(&self) -> Duration {
        Duration::from_secs(1000) + self.0.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        1_800_000_000_000 + u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

#[derive(Debug)]
struct Tasks;

impl Spawn for Tasks {
    fn spawn(&self, task: BoxFut<'static, ()>) {
        tokio::spawn(task);
    }
}

impl quinn::Runtime for Tasks {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(task);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
