//! The environment of one node or client.

use std::fmt::{self, Debug};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tern_core::clock::{Clock, Entropy};
use tern_core::store::BoxFut;
use tokio::io::{AsyncRead, AsyncWrite};

/// A reliable byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Takes incoming streams.
pub trait Acceptor: Send {
    /// The next stream and who opened it. Dropping the future loses nothing.
    fn accept(&mut self) -> BoxFut<'_, io::Result<(Box<dyn Stream>, SocketAddr)>>;
    /// Where it listens; the port is known even if 0 was asked for.
    fn local_addr(&self) -> SocketAddr;
}

/// Sockets, real or simulated.
pub trait Net: Send + Sync + Debug + 'static {
    /// A UDP socket.
    fn udp(&self, at: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;
    /// A TCP listener.
    fn listen(&self, at: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Acceptor>>>;
    /// A TCP connection.
    fn connect(&self, to: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Stream>>>;
    /// Addresses of a name; a literal address is itself.
    fn resolve(&self, name: &str) -> BoxFut<'_, io::Result<Vec<IpAddr>>>;
    /// Timers and tasks for quinn, belonging to the node.
    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime>;
    /// Whether datagrams that have come wait in a buffer of the system until the process reads them.
    fn buffers(&self) -> bool {
        false
    }
}

/// Starts tasks that end with their node.
pub trait Spawn: Send + Sync + Debug + 'static {
    /// Starts a task.
    fn spawn(&self, task: BoxFut<'static, ()>);
}

/// A cheap handle to a [`Spawn`].
#[derive(Clone, Debug)]
pub struct Spawner(Arc<dyn Spawn>);

impl Spawner {
    /// Wraps.
    pub fn new(spawn: Arc<dyn Spawn>) -> Self {
        Self(spawn)
    }

    /// Starts a task that ends with its node.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(Box::pin(task));
    }
}

/// All that a node or client may touch. Cheap to clone; one per node.
#[derive(Clone)]
pub struct Env {
    /// Sockets.
    pub net: Arc<dyn Net>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<Entropy>,
    /// Tasks.
    pub tasks: Spawner,
}

impl Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("net", &self.net).finish_non_exhaustive()
    }
}
