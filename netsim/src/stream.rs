//! Streams as an application sees them: TCP of the simulated hosts (`tcp`) as a byte stream of tokio's.
//!
//! Opened after a round trip, refused where nobody listens, reset by a killed process, stalled by a link that loses
//! packets, slowed by a reader that does not read. Dropping a stream ends it: with all that was written, unless
//! something was left unread, which resets it.

use std::fmt::{self, Debug};
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tern_core::store::BoxFut;
use tern_net::env::{Acceptor, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;
use crate::node::HostId;
use crate::path::v4;
use crate::tcp::{ConnectionId, Listener};
use crate::world::{After, Shared, State};

/// A simulated stream.
pub struct SimStream {
    shared: Arc<Shared>,
    host: HostId,
    incarnation: u64,
    id: ConnectionId,
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
        let id = shared.with(|state, after| {
            state.check(host, incarnation)?;
            let remote = v4(to).filter(|remote| state.owner(host, *remote.ip()).is_some());
            let Some(remote) = remote else {
                return Err(io::Error::new(io::ErrorKind::HostUnreachable, format!("no host has the address {to}")));
            };
            if !remote.ip().is_loopback() && state.is_off(host) {
                return Err(io::Error::new(io::ErrorKind::NetworkUnreachable, "all interfaces are switched off"));
            }
            let ip = if remote.ip().is_loopback() { *remote.ip() } else { state.own_ip(host) };
            let port = state.free_port(host, |state, port| {
                state.connections.uses(host, port) || state.listeners.contains_key(&(host, port))
            })?;
            state.open_connection(host, SocketAddrV4::new(ip, port), remote, after)
        })?;
        let stream = Self { shared: Arc::clone(shared), host, incarnation, id };
        poll_fn(|cx| {
            stream.with(|connection, after| {
                if let Some(kind) = connection.error {
                    return Poll::Ready(Err(io::Error::new(kind, format!("connecting to {to} failed"))));
                }
                if connection.open {
                    return Poll::Ready(Ok(()));
                }
                after.drop.extend(connection.writer.replace(cx.waker().clone()));
                Poll::Pending
            })
        })
        .await?;
        Ok(stream)
    }

    fn with<T>(&self, f: impl FnOnce(&mut Connection, &mut After) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.shared.with(|state, after| self.within(state, after, f))
    }

    /// The same, and lets the connection do what follows from it.
    fn with_and_run<T>(
        &self,
        f: impl FnOnce(&mut Connection, &mut After) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.shared.with(|state, after| {
            let done = self.within(state, after, f);
            if done.is_ready() {
                state.run_connection(self.id, after);
            }
            done
        })
    }

    fn within<T>(
        &self,
        state: &mut State,
        after: &mut After,
        f: impl FnOnce(&mut Connection, &mut After) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        state.check(self.host, self.incarnation)?;
        match state.connections.get_mut(self.id) {
            Some(connection) => f(connection, after),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.with_and_run(|connection, after| match connection.read(buf.initialize_unfilled()) {
            Some(read) => {
                buf.advance(read?);
                Poll::Ready(Ok(()))
            }
            None => {
                after.drop.extend(connection.reader.replace(cx.waker().clone()));
                Poll::Pending
            }
        })
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with_and_run(|connection, after| match connection.write(buf) {
            Some(written) => Poll::Ready(written),
            None => {
                after.drop.extend(connection.writer.replace(cx.waker().clone()));
                Poll::Pending
            }
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with_and_run(|connection, _| {
            if connection.error.is_some() {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            connection.shut = true;
            Poll::Ready(Ok(()))
        })
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.shared.with(|state, after| {
            if state.check(self.host, self.incarnation).is_ok() {
                state.let_go(self.id, after);
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
            let ip: Option<Ipv4Addr> = v4(at).map(|at| *at.ip()).filter(|ip| !ip.is_unspecified());
            state.listeners.insert((host, local.port()), Listener { ip, ..Listener::default() });
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
                loop {
                    let Some(listener) = state.listeners.get_mut(&(self.host, self.local.port())) else {
                        return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                    };
                    let Some(id) = listener.waiting.pop_front() else {
                        after.drop.extend(listener.acceptor.replace(cx.waker().clone()));
                        return Poll::Pending;
                    };
                    // One that failed before it was accepted is not handed out.
                    match state.connections.get_mut(id) {
                        Some(connection) if connection.error.is_none() => {
                            let remote = connection.remote.into();
                            let (shared, host, incarnation) = (Arc::clone(&self.shared), self.host, self.incarnation);
                            let stream = SimStream { shared, host, incarnation, id };
                            return Poll::Ready(Ok((Box::new(stream) as Box<dyn Stream>, remote)));
                        }
                        _ => state.abort(id, false, after),
                    }
                }
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
            if state.check(self.host, self.incarnation).is_ok() {
                state.end_listener(self.host, self.local.port(), true, after);
            }
        });
    }
}
