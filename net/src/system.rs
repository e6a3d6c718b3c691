//! The real environment: the machine's sockets, clocks and randomness, and the current tokio runtime.

use std::fmt::{self, Debug};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use socket2::{Domain, Protocol, Socket, Type};
use tern_core::clock::{Clock, Entropy};
use tern_core::store::BoxFut;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

use crate::env::{Acceptor, Env, Net, Spawn, Spawner, Stream};

/// Bytes asked for as send and receive buffer of each UDP socket: at 100,000 datagrams of 1,200 bytes a
/// second this is 35 ms during which the process may be busy elsewhere without losing packets.
pub const UDP_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Connections that may wait to be accepted: what a burst of reconnects brings in a few milliseconds.
pub const LISTEN_BACKLOG: i32 = 4096;

/// The environment of a process that runs for real. Must be called inside a tokio runtime with I/O and time
/// enabled; tasks and sockets belong to that runtime and end with it.
///
/// Fails where there is no runtime, or where the operating system yields no random numbers.
pub fn system_env() -> io::Result<Env> {
    let handle = Handle::try_current().map_err(|_| {
        io::Error::other("the system environment was asked for outside of a tokio runtime; build it inside one")
    })?;
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| {
        io::Error::other("the operating system yields no random numbers; nothing can be secured without")
    })?;
    let tasks = Spawner::new(Arc::new(TokioTasks(handle.clone())));
    Ok(Env {
        net: Arc::new(SystemNet { handle, tasks: tasks.clone(), small_buffers_told: AtomicBool::new(false) }),
        clock: Arc::new(SystemClock),
        rng: Arc::new(Entropy::from_bytes(seed)),
        tasks,
    })
}

/// Tasks on a tokio runtime.
#[derive(Debug)]
struct TokioTasks(Handle);

impl Spawn for TokioTasks {
    fn spawn(&self, task: BoxFut<'static, ()>) {
        self.0.spawn(task);
    }
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    fn read(clock: rustix::time::ClockId) -> Duration {
        let t = rustix::time::clock_gettime(clock);
        let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(t.tv_nsec).unwrap_or(0))
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        // Linux stops its monotonic clock during suspend; deadlines must not.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let clock = rustix::time::ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let clock = rustix::time::ClockId::Monotonic;
        Self::read(clock)
    }

    fn wall_ms(&self) -> u64 {
        u64::try_from(Self::read(rustix::time::ClockId::Realtime).as_millis()).unwrap_or(u64::MAX)
    }
}

/// The machine's sockets.
struct SystemNet {
    handle: Handle,
    tasks: Spawner,
    small_buffers_told: AtomicBool,
}

impl Debug for SystemNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemNet")
    }
}

impl SystemNet {
    fn socket(at: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
        if at.is_ipv6() {
            // A dual-stack socket would show IPv4 peers as mapped addresses, which costs them their
            // congestion state at every change of port.
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Grows both buffers as far as the system allows and warns once if that is not far enough.
    fn grow_buffers(&self, socket: &Socket) {
        // Refusals are not errors: the socket works with what it has, and the warning tells.
        let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
        let receive = socket.recv_buffer_size().unwrap_or(0);
        let send = socket.send_buffer_size().unwrap_or(0);
        if receive.min(send) < UDP_BUFFER_BYTES && !self.small_buffers_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                receive_bytes = receive,
                send_bytes = send,
                wanted_bytes = UDP_BUFFER_BYTES,
                "UDP buffers are smaller than wanted, so bursts of packets may be lost; on Linux raise them with: \
                 sysctl -w net.core.rmem_max={UDP_BUFFER_BYTES} net.core.wmem_max={UDP_BUFFER_BYTES}"
            );
        }
    }
}

impl Net for SystemNet {
    fn udp(&self, at: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let socket = Self::socket(at, Type::DGRAM, Protocol::UDP)?;
        self.grow_buffers(&socket);
        socket.bind(&at.into())?;
        let _runtime = self.handle.enter();
        quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, socket.into())
    }

    fn listen(&self, at: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Acceptor>>> {
        Box::pin(async move {
            let socket = Self::socket(at, Type::STREAM, Protocol::TCP)?;
            // A restarted node must get its port back although old connections linger in TIME_WAIT.
            socket.set_reuse_address(true)?;
            socket.bind(&at.into())?;
            socket.listen(LISTEN_BACKLOG)?;
            let _runtime = self.handle.enter();
            let listener = TcpListener::from_std(socket.into())?;
            let local = listener.local_addr()?;
            Ok(Box::new(SystemAcceptor { listener, local, spare: spare(), turned_away: 0 }) as Box<dyn Acceptor>)
        })
    }

    fn connect(&self, to: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            #[expect(clippy::disallowed_methods, reason = "this is the network of a real machine")]
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn resolve(&self, name: &str) -> BoxFut<'_, io::Result<Vec<IpAddr>>> {
        if let Ok(address) = name.parse() {
            return Box::pin(std::future::ready(Ok(vec![address])));
        }
        let name = name.to_owned();
        Box::pin(async move {
            let mut found = Vec::new();
            for address in tokio::net::lookup_host((name, 0)).await? {
                if !found.contains(&address.ip()) {
                    found.push(address.ip());
                }
            }
            Ok(found)
        })
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(SystemQuic(self.tasks.clone()))
    }

    fn buffers(&self) -> bool {
        true
    }
}

/// Where no file descriptor is left, a connection that waits can be neither taken nor refused: its client hangs,
/// and the listener is told of it again and again. So one descriptor is kept, given up to take the connection,
/// and opened again once that is closed.
struct SystemAcceptor {
    listener: TcpListener,
    local: SocketAddr,
    spare: Option<std::fs::File>,
    turned_away: u64,
}

fn spare() -> Option<std::fs::File> {
    // Without it things are as they would be anyway.
    std::fs::File::open("/dev/null").ok()
}

/// ENFILE or EMFILE: no descriptor is left, of the machine or of the process.
fn no_descriptor_left(e: &io::Error) -> bool {
    cfg!(unix) && matches!(e.raw_os_error(), Some(23 | 24))
}

impl SystemAcceptor {
    /// Takes the connection that waits, and closes it. There may be none: Linux looks for a descriptor before it
    /// looks for a connection. So this does not wait: the next one may come when there are descriptors again.
    async fn turn_away(&mut self) -> io::Result<()> {
        self.spare = None;
        let taken = poll_fn(|cx| Poll::Ready(self.listener.poll_accept(cx).map_ok(drop))).await;
        self.spare = spare();
        match taken {
            Poll::Pending => return Ok(()),
            Poll::Ready(closed) => closed?,
        }
        self.turned_away += 1;
        if self.turned_away.is_power_of_two() {
            tracing::warn!(
                at = %self.local,
                connections = self.turned_away,
                "no file descriptor is left, so TCP connections are closed as they come; raise the limit of open \
                 files (ulimit -n, or LimitNOFILE= of the unit)"
            );
        }
        Ok(())
    }
}

impl Acceptor for SystemAcceptor {
    fn accept(&mut self) -> BoxFut<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            if self.spare.is_none() {
                self.spare = spare();
            }
            loop {
                match self.listener.accept().await {
                    Ok((stream, from)) => {
                        stream.set_nodelay(true)?;
                        return Ok((Box::new(stream) as Box<dyn Stream>, from));
                    }
                    Err(e) if no_descriptor_left(&e) && self.spare.is_some() => self.turn_away().await?,
                    Err(e) => return Err(e),
                }
            }
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

/// tokio's timers, with tasks that belong to the environment.
#[derive(Debug)]
struct SystemQuic(Spawner);

impl quinn::Runtime for SystemQuic {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(task);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn outside_of_a_runtime_there_is_no_environment() {
        assert!(system_env().unwrap_err().to_string().contains("tokio runtime"));
    }

    #[tokio::test]
    async fn bytes_cross_a_tcp_connection_and_names_resolve() {
        let env = system_env().unwrap();
        let mut acceptor = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let at = acceptor.local_addr();
        assert_ne!(at.port(), 0);
        let mut client = env.net.connect(at).await.unwrap();
        let (mut server, _) = acceptor.accept().await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
        assert_eq!(env.net.resolve("::1").await.unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        assert!(!env.net.resolve("localhost").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_same_port_serves_ipv4_and_ipv6_by_sockets_of_their_own() {
        let env = system_env().unwrap();
        let v4 = env.net.udp("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = v4.local_addr().unwrap().port();
        match env.net.udp(SocketAddr::new("::".parse().unwrap(), port)) {
            Ok(v6) => assert!(v6.local_addr().unwrap().is_ipv6()),
            // A machine without IPv6 can't show it.
            Err(e) => assert_ne!(e.kind(), io::ErrorKind::AddrInUse, "the IPv6 socket took the IPv4 port"),
        }
    }

    #[test]
    fn the_clocks_run() {
        let clock = SystemClock;
        let before = clock.now();
        assert!(clock.now() >= before);
        assert!(clock.wall_ms() > 1_700_000_000_000);
    }
}
