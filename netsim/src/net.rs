//! The simulated network as one start of a node sees it: [`tern_net::env::Net`].

use std::fmt::{self, Debug};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket};
use tern_core::store::BoxFut;
use tern_net::env::{Acceptor, Net, Spawn, Stream};

use crate::node::{HostId, NodeTasks};
use crate::stream::{SimAcceptor, SimStream};
use crate::udp::SimUdp;
use crate::world::Shared;

/// See the module.
#[derive(Clone)]
pub struct SimNet {
    shared: Arc<Shared>,
    host: HostId,
    incarnation: u64,
    tasks: Arc<NodeTasks>,
    name: String,
}

impl SimNet {
    pub(crate) fn new(
        shared: Arc<Shared>,
        host: HostId,
        incarnation: u64,
        tasks: Arc<NodeTasks>,
        name: String,
    ) -> Self {
        Self { shared, host, incarnation, tasks, name }
    }
}

impl Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNet").field("host", &self.name).field("start", &self.incarnation).finish_non_exhaustive()
    }
}

impl Net for SimNet {
    fn udp(&self, at: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(SimUdp::bind(&self.shared, self.host, self.incarnation, at)?))
    }

    fn listen(&self, at: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Acceptor>>> {
        Box::pin(async move {
            let acceptor = SimAcceptor::listen(&self.shared, self.host, self.incarnation, at)?;
            Ok(Box::new(acceptor) as Box<dyn Acceptor>)
        })
    }

    fn connect(&self, to: SocketAddr) -> BoxFut<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let stream = SimStream::connect(&self.shared, self.host, self.incarnation, to).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn resolve(&self, name: &str) -> BoxFut<'_, io::Result<Vec<IpAddr>>> {
        let found = match name.parse() {
            Ok(ip) => Some(vec![ip]),
            Err(_) => self.shared.with(|state, _| state.names.get(name).cloned()),
        };
        let name = name.to_owned();
        Box::pin(async move {
            found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no address of {name} is known")))
        })
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(SimRuntime(Arc::clone(&self.tasks)))
    }
}

/// Virtual time and the node's tasks, for quinn.
#[derive(Debug)]
struct SimRuntime(Arc<NodeTasks>);

impl quinn::Runtime for SimRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(task);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a simulated node has no sockets of the system"))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
