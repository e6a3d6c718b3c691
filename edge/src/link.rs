//! The way to the core of the region, where the edge is a process of its own.
//!
//! One QUIC connection, one stream, both mutually authenticated ends of one deployment. What is in flight
//! when it breaks is lost, and the core forgets every connection of the edge; so a link never resumes. The
//! edge sends its sessions elsewhere (see [`crate::edge`]) and comes back empty. Trying to carry sessions
//! over would need both sides to agree on what was lost, to save clients a reconnect that they must master
//! anyway.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use tern_core::edge_api::{CorePort, Down, EdgePort, Up};
use tern_core::limits::NODE_FRAME_BYTES;
use tern_core::wire::node_v1::node_frame::Body;
use tern_core::wire::node_v1::{self, NodeFrame};
use tern_core::wire::{NODE_VERSION, codec, node};
use tern_net::env::Env;
use tern_net::frames::{FrameError, FrameWriter, QuicFrames};
use tern_net::quic::{QuicError, QuicParams, client_config, client_endpoint};
use tokio::time::{sleep, timeout};

use crate::edge::Edge;

/// A link that hears nothing for so long is lost. Beats come every second.
pub const SILENCE: Duration = Duration::from_secs(3);
/// Between two beats.
pub const BEAT: Duration = Duration::from_secs(1);
/// From the first packet to the core's welcome.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Bounds of the pause before the next attempt.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// See [`BACKOFF_MIN`].
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Bytes that may wait to be written to the core. More means that the core does not keep up or is gone:
/// the link is dropped, and the clients go to edges whose core does.
pub const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Above this many clients' sends and pulls are refused with advice to come again: a few clients with large
/// messages must not bring the link down for all.
pub const CROWDED_BYTES: usize = QUEUE_BYTES / 4;
/// Bytes moved from the queue to the stream's buffer at once.
const WRITE_BYTES: usize = 256 * 1024;

/// Why a link ended or did not come about. The edge tries again.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Quic(#[from] QuicError),
    #[error("{0}")]
    Connect(#[from] quinn::ConnectError),
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the core refuses this edge: {0}")]
    Refused(String),
    #[error("the core sent what makes no sense here: {0}")]
    Nonsense(String),
    #[error("nothing was heard from the core for {0:?}")]
    Silent(Duration),
    #[error("more than {QUEUE_BYTES} bytes waited for the core")]
    Overfull,
    #[error("the core closed the link")]
    Closed,
}

/// See the module. Made by [`EdgeLink::start`].
#[derive(Debug)]
pub struct EdgeLink {
    reachable: AtomicBool,
    /// Bytes in the queue, for those who ask often.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
    /// Counts what the core sent wrongly, for one log line per link rather than one per frame.
    nonsense: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    out: BytesMut,
    open: bool,
    overfull: bool,
    waker: Option<Waker>,
}

impl EdgeLink {
    /// Connects to one of `core_addrs` and keeps connecting, in turn, for as long as `edge` lives and does
    /// not stop. `server_name` is what the core's certificate must say. Give the result to [`Edge::run`].
    pub fn start(
        env: Env,
        core_addrs: Vec<SocketAddr>,
        server_name: String,
        tls: Arc<rustls::ClientConfig>,
        edge: Arc<Edge>,
    ) -> Arc<dyn CorePort> {
        let link = Arc::new(Self {
            reachable: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
            nonsense: AtomicU64::new(0),
        });
        let keeper = Keeper { env: env.clone(), core_addrs, server_name, tls, edge, link: link.clone() };
        env.tasks.spawn(keeper.keep());
        link
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends frames; does nothing while there is no link.
    fn put(&self, frames: impl Iterator<Item = NodeFrame>) {
        let mut queue = self.queue();
        if !queue.open {
            return;
        }
        for frame in frames {
            codec::put(&frame, &mut queue.out);
        }
        queue.overfull |= queue.out.len() > QUEUE_BYTES;
        self.waiting.store(queue.out.len(), Ordering::Relaxed);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves what waits into `writer`, and writes it.
    fn poll_write(
        &self,
        writer: &mut FrameWriter,
        send: &mut quinn::SendStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), LinkError>> {
        loop {
            {
                let mut queue = self.queue();
                if queue.overfull {
                    return Poll::Ready(Err(LinkError::Overfull));
                }
                if writer.is_empty() && !queue.out.is_empty() {
                    if queue.out.len() <= WRITE_BYTES {
                        *writer.buffer() = std::mem::take(&mut queue.out);
                    } else {
                        *writer.buffer() = queue.out.split_to(WRITE_BYTES);
                    }
                    self.waiting.store(queue.out.len(), Ordering::Relaxed);
                }
                if writer.is_empty() {
                    queue.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
            match writer.poll_write(send, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e.into())),
                Poll::Pending => {
                    // Woken also when the queue grows too long.
                    self.queue().waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}

impl CorePort for EdgeLink {
    fn submit(&self, ups: Vec<Up>) {
        self.put(ups.into_iter().map(|up| NodeFrame { body: Some(Body::Up(node::up_to_wire(up))) }));
    }

    fn reachable(&self) -> bool {
        self.reachable.load(Ordering::Acquire)
    }

    fn crowded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > CROWDED_BYTES
    }

    fn report(&self, load: node_v1::EdgeLoad) {
        let load = Body::Load(node_v1::LoadReport { edges: vec![load] });
        self.put(std::iter::once(NodeFrame { body: Some(load) }));
    }
}

/// The task that keeps a link up.
struct Keeper {
    env: Env,
    core_addrs: Vec<SocketAddr>,
    server_name: String,
    tls: Arc<rustls::ClientConfig>,
    edge: Arc<Edge>,
    link: Arc<EdgeLink>,
}

impl Keeper {
    async fn keep(self) {
        let mut stopped = self.edge.stopped();
        let mut failures = 0u32;
        let mut turn = 0usize;
        while stopped.borrow().is_none() {
            let Some(to) = self.core_addrs.get(turn % self.core_addrs.len().max(1)).copied() else {
                tracing::error!("this edge was given no address of a core; it can't serve anyone");
                return;
            };
            let ended = tokio::select! {
                biased;
                _ = stopped.changed() => return,
                ended = self.link_to(to) => ended,
            };
            let was_up = self.down();
            failures = if was_up { 0 } else { failures.saturating_add(1) };
            turn = turn.wrapping_add(1);
            if was_up || failures.is_power_of_two() {
                tracing::warn!(core = %to, failures, error = %ended, "no link to the core; its clients are sent elsewhere, and the edge tries again");
            }
            let most = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
            let pause = self.env.rng.below(u64::try_from(most.as_millis()).unwrap_or(0));
            tokio::select! {
                biased;
                _ = stopped.changed() => return,
                () = sleep(Duration::from_millis(pause)) => {}
            }
        }
    }

    fn down(&self) -> bool {
        *self.link.queue() = Queue::default();
        self.link.waiting.store(0, Ordering::Relaxed);
        let was_up = self.link.reachable.swap(false, Ordering::AcqRel);
        if was_up {
            self.edge.core_lost();
        }
        was_up
    }

    /// Runs one link to its end, which is always some error.
    async fn link_to(&self, to: SocketAddr) -> LinkError {
        match self.run(to).await {
            Ok(()) => LinkError::Closed,
            Err(e) => e,
        }
    }

    async fn run(&self, to: SocketAddr) -> Result<(), LinkError> {
        let any: SocketAddr =
            if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let endpoint = client_endpoint(&self.env, any)?;
        let config = client_config(&self.env, self.tls.clone(), &QuicParams::node())?;
        let opening = async {
            let connection = endpoint.connect_with(config, to, &self.server_name)?.await?;
            let (send, recv) = connection.open_bi().await?;
            self.welcome(send, QuicFrames::new(recv, NODE_FRAME_BYTES)).await
        };
        let (mut send, mut frames) =
            timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| LinkError::Silent(CONNECT_TIMEOUT))??;
        // Whatever was open before is unknown to this core.
        self.edge.core_lost();
        *self.link.queue() = Queue { open: true, ..Queue::default() };
        self.link.reachable.store(true, Ordering::Release);
        self.edge.core_back();
        tracing::info!(core = %to, "linked to the core");
        let mut writer = FrameWriter::new();
        let ended = tokio::select! {
            biased;
            ended = self.read(&mut frames) => ended,
            ended = poll_fn(|cx| self.link.poll_write(&mut writer, &mut send, cx)) => ended,
            ended = self.beat() => ended,
        };
        endpoint.close(0u32.into(), b"");
        ended
    }

    async fn welcome(
        &self,
        mut send: quinn::SendStream,
        mut frames: QuicFrames,
    ) -> Result<(quinn::SendStream, QuicFrames), LinkError> {
        let hello = node_v1::EdgeHello {
            edge: self.edge.config().name.clone(),
            generation: self.edge.generation(),
            version: NODE_VERSION,
        };
        let mut writer = FrameWriter::new();
        writer.put(&NodeFrame { body: Some(Body::EdgeHello(hello)) });
        writer.write(&mut send).await?;
        match frames.next::<NodeFrame>().await?.and_then(|f| f.body) {
            Some(Body::EdgeWelcome(welcome)) if welcome.region == u32::from(self.edge.config().region) => {
                Ok((send, frames))
            }
            Some(Body::EdgeWelcome(welcome)) => Err(LinkError::Refused(format!(
                "it serves region {} ({}), and this edge is configured for region {}; correct one of them",
                welcome.region,
                welcome.region_name,
                self.edge.config().region
            ))),
            Some(Body::Refused(refused)) => Err(LinkError::Refused(refused.message)),
            Some(other) => Err(LinkError::Nonsense(format!("{other:?}").chars().take(80).collect())),
            None => Err(LinkError::Closed),
        }
    }

    async fn beat(&self) -> Result<(), LinkError> {
        loop {
            let beat = node_v1::Beat { wall_ms: self.env.clock.wall_ms(), ..node_v1::Beat::default() };
            self.link.put(std::iter::once(NodeFrame { body: Some(Body::Beat(beat)) }));
            sleep(BEAT).await;
        }
    }

    async fn read(&self, frames: &mut QuicFrames) -> Result<(), LinkError> {
        let mut downs = Vec::new();
        loop {
            let next = timeout(SILENCE, frames.next::<NodeFrame>()).await;
            let mut frame = next.map_err(|_| LinkError::Silent(SILENCE))??.ok_or(LinkError::Closed)?;
            // All that came together is delivered together, so that each connection wakes once.
            loop {
                self.frame(frame, &mut downs)?;
                match frames.buffered()? {
                    Some(next) => frame = next,
                    None => break,
                }
            }
            if !downs.is_empty() {
                self.edge.deliver(std::mem::take(&mut downs));
            }
        }
    }

    fn frame(&self, frame: NodeFrame, downs: &mut Vec<Down>) -> Result<(), LinkError> {
        match frame.body {
            Some(Body::Down(down)) => match node::down_from_wire(down) {
                Ok(down) => downs.push(down),
                Err(e) => self.nonsense(&e.to_string()),
            },
            Some(Body::Beat(beat)) if !beat.reply && beat.echo != 0 => {
                let wall_ms = self.env.clock.wall_ms();
                let reply = node_v1::Beat { wall_ms, echo: beat.echo, reply: true, ..node_v1::Beat::default() };
                self.link.put(std::iter::once(NodeFrame { body: Some(Body::Beat(reply)) }));
            }
            Some(Body::Refused(refused)) => return Err(LinkError::Refused(refused.message)),
            // Beats, and what newer cores say.
            _ => {}
        }
        Ok(())
    }

    fn nonsense(&self, what: &str) {
        if self.link.nonsense.fetch_add(1, Ordering::Relaxed).is_power_of_two() {
            tracing::warn!(what, "the core sent frames that can't be read; they were left out");
        }
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
