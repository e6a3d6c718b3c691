//! A link to a core node of the region, where the edge is another process.
//!
//! One QUIC connection, one stream, both mutually authenticated ends of one deployment. What is in flight
//! when it breaks is lost, and the core node forgets every connection of the edge; so a link never resumes: the next
//! one is another. What then becomes of the connections is decided in [`crate::cores`]. Trying to carry them over on
//! the same link would need both sides to agree on what was lost, to save clients a question that they must be able to
//! ask again anyway.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use prost::Message;
use tern_core::edge_api::{Down, EdgePort, Up};
use tern_core::limits::{ID_BYTES, NODE_FRAME_BYTES};
use tern_core::wire::node_v1::node_frame::Body;
use tern_core::wire::node_v1::{self, NodeFrame};
use tern_core::wire::{codec, node, v1};
use tern_net::env::Env;
use tern_net::frames::{FrameError, FrameWriter, QuicFrames};
use tern_net::quic::{QuicError, QuicParams, client_config, client_endpoint};
use tern_net::refusal::certificate_refused;
use tokio::time::{sleep, timeout};

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
/// A connection's `Resume` takes so much of the queue at most.
const RESUME_BYTES: usize = 2 * ID_BYTES + 64;
/// Bytes moved from the queue to the stream's buffer at once.
const WRITE_BYTES: usize = 256 * 1024;

/// Why a link ended or did not come about. The edge tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
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
    /// A certificate, by either side.
    #[error("{0}")]
    Certificate(String),
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
    #[error("another link leads to {0} already")]
    Spare(String),
}

/// What one link has to say, and whether it still may.
#[derive(Debug)]
pub(crate) struct Link {
    /// Bytes in the queue, for those who ask often.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
    /// Counts what the core sent wrongly, for one log line per link rather than one per frame.
    nonsense: AtomicU64,
}

#[derive(Debug)]
struct Queue {
    out: BytesMut,
    /// Above [`QUEUE_BYTES`], until all has been written: a core node that is back is told of all connections at once.
    slack: usize,
    open: bool,
    overfull: bool,
    waker: Option<Waker>,
}

/// What of the queue is no reason to drop the link: a core node that is back is told of each connection of this edge, and
/// whom it watches, which is remembered here in any case.
fn slack(up: &Up) -> usize {
    match up {
        Up::Resume { .. } => RESUME_BYTES,
        Up::Frame { frame, .. } if matches!(frame.body, Some(v1::frame::Body::Watch(_))) => frame.encoded_len() + 32,
        _ => 0,
    }
}

impl Link {
    /// One that is up.
    pub(crate) fn new() -> Self {
        let queue = Queue { out: BytesMut::new(), slack: 0, open: true, overfull: false, waker: None };
        Self { waiting: AtomicUsize::new(0), queue: Mutex::new(queue), nonsense: AtomicU64::new(0) }
    }

    /// What is said from here on is lost.
    pub(crate) fn close(&self) {
        let mut queue = self.queue();
        *queue = Queue { out: BytesMut::new(), slack: 0, open: false, overfull: false, waker: None };
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// Hands over what connections said. Never blocks; above [`QUEUE_BYTES`] the link ends.
    pub(crate) fn submit(&self, ups: Vec<Up>) {
        let slack: usize = ups.iter().map(slack).sum();
        if slack > 0 {
            self.queue().slack += slack;
        }
        self.put(ups.into_iter().map(|up| NodeFrame { body: Some(Body::Up(node::up_to_wire(up))) }));
    }

    /// The edge's load.
    pub(crate) fn report(&self, load: node_v1::EdgeLoad) {
        let load = Body::Load(node_v1::LoadReport { edges: vec![load], orders: Vec::new() });
        self.put(std::iter::once(NodeFrame { body: Some(load) }));
    }

    /// So much waits that what can be refused should be.
    pub(crate) fn is_crowded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > CROWDED_BYTES
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
        queue.overfull |= queue.out.len() > QUEUE_BYTES + queue.slack;
        self.waiting.store(queue.out.len().saturating_sub(queue.slack), Ordering::Relaxed);
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
                        queue.slack = 0;
                    } else {
                        *writer.buffer() = queue.out.split_to(WRITE_BYTES);
                    }
                    self.waiting.store(queue.out.len().saturating_sub(queue.slack), Ordering::Relaxed);
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

/// How core nodes are dialled.
#[derive(Debug)]
pub(crate) struct Dialler {
    pub(crate) env: Env,
    /// What a core node's certificate must say.
    pub(crate) server_name: String,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    /// Which edge dials.
    pub(crate) hello: node_v1::EdgeHello,
    /// Of which region.
    pub(crate) region: u8,
}

/// A link that the core node has welcomed.
pub(crate) struct Opened {
    endpoint: quinn::Endpoint,
    send: quinn::SendStream,
    frames: QuicFrames,
    /// What the core node says of itself.
    pub(crate) welcome: node_v1::EdgeWelcome,
}

impl Dialler {
    /// Dials a core node, to its welcome.
    pub(crate) async fn open(&self, to: SocketAddr) -> Result<Opened, LinkError> {
        let any: SocketAddr =
            if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let endpoint = client_endpoint(&self.env, any)?;
        let config = client_config(&self.env, self.tls.clone(), &QuicParams::node())?;
        let opening = async {
            let connecting = endpoint.connect_with(config, to, &self.server_name)?;
            let connection = connecting.await.map_err(|error| match certificate_refused(&error) {
                Some(why) => LinkError::Certificate(why),
                None => error.into(),
            })?;
            let (send, recv) = connection.open_bi().await?;
            let welcomed = self.welcome(send, QuicFrames::new(recv, NODE_FRAME_BYTES)).await;
            // That its certificate is not accepted an edge hears after its own part of the handshake.
            welcomed.map_err(|error| match connection.close_reason().as_ref().and_then(certificate_refused) {
                Some(why) => LinkError::Certificate(why),
                None => error,
            })
        };
        let (send, frames, welcome) =
            timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| LinkError::Silent(CONNECT_TIMEOUT))??;
        Ok(Opened { endpoint, send, frames, welcome })
    }

    async fn welcome(
        &self,
        mut send: quinn::SendStream,
        mut frames: QuicFrames,
    ) -> Result<(quinn::SendStream, QuicFrames, node_v1::EdgeWelcome), LinkError> {
        let mut writer = FrameWriter::new();
        writer.put(&NodeFrame { body: Some(Body::EdgeHello(self.hello.clone())) });
        writer.write(&mut send).await?;
        match frames.next::<NodeFrame>().await?.and_then(|f| f.body) {
            Some(Body::EdgeWelcome(welcome)) if welcome.region == u32::from(self.region) => Ok((send, frames, welcome)),
            Some(Body::EdgeWelcome(welcome)) => Err(LinkError::Refused(format!(
                "it serves region {} ({}), and this edge is configured for region {}; correct one of them",
                welcome.region, welcome.region_name, self.region
            ))),
            Some(Body::Refused(refused)) => Err(LinkError::Refused(refused.message)),
            Some(other) => Err(LinkError::Nonsense(format!("{other:?}").chars().take(80).collect())),
            None => Err(LinkError::Closed),
        }
    }
}

impl Opened {
    /// Says what `link` has to say, and hands what comes to `edge`, until the link ends; that is always some error.
    pub(crate) async fn serve(mut self, env: &Env, link: &Link, edge: &dyn EdgePort) -> LinkError {
        let mut writer = FrameWriter::new();
        let (send, frames) = (&mut self.send, &mut self.frames);
        let ended = tokio::select! {
            biased;
            ended = read(env, link, edge, frames) => ended,
            ended = poll_fn(|cx| link.poll_write(&mut writer, send, cx)) => ended,
            ended = beat(env, link) => ended,
        };
        self.endpoint.close(0u32.into(), b"");
        ended.err().unwrap_or(LinkError::Closed)
    }

    /// There is no use for it.
    pub(crate) fn close(self) {
        self.endpoint.close(0u32.into(), b"spare");
    }
}

async fn beat(env: &Env, link: &Link) -> Result<(), LinkError> {
    loop {
        let beat = node_v1::Beat { wall_ms: env.clock.wall_ms(), ..node_v1::Beat::default() };
        link.put(std::iter::once(NodeFrame { body: Some(Body::Beat(beat)) }));
        sleep(BEAT).await;
    }
}

/// What was read together, and is handed over together, so that each connection wakes once.
#[derive(Default)]
struct Heard {
    downs: Vec<Down>,
    bounced: Vec<Up>,
}

impl Heard {
    fn hand_over(&mut self, edge: &dyn EdgePort) {
        if !self.downs.is_empty() {
            edge.deliver(std::mem::take(&mut self.downs));
        }
        if !self.bounced.is_empty() {
            edge.bounced(std::mem::take(&mut self.bounced));
        }
    }
}

async fn read(env: &Env, link: &Link, edge: &dyn EdgePort, frames: &mut QuicFrames) -> Result<(), LinkError> {
    let mut heard = Heard::default();
    loop {
        let next = timeout(SILENCE, frames.next::<NodeFrame>()).await;
        let mut frame = next.map_err(|_| LinkError::Silent(SILENCE))??.ok_or(LinkError::Closed)?;
        loop {
            link.frame(env, edge, frame, &mut heard)?;
            match frames.buffered()? {
                Some(next) => frame = next,
                None => break,
            }
        }
        heard.hand_over(edge);
    }
}

impl Link {
    fn frame(&self, env: &Env, edge: &dyn EdgePort, frame: NodeFrame, heard: &mut Heard) -> Result<(), LinkError> {
        match frame.body {
            Some(Body::Down(down)) => match node::down_from_wire(down) {
                Ok(down) => {
                    if !heard.bounced.is_empty() {
                        heard.hand_over(edge);
                    }
                    heard.downs.push(down);
                }
                Err(e) => self.nonsense(&e.to_string()),
            },
            Some(Body::Bounced(up)) => match node::up_from_wire(up) {
                Ok(up) => heard.bounced.push(up),
                Err(e) => self.nonsense(&e.to_string()),
            },
            Some(Body::Owners(owners)) => {
                heard.hand_over(edge);
                edge.owners(owners);
            }
            Some(Body::Stopping(_)) => {
                heard.hand_over(edge);
                edge.stopping();
            }
            Some(Body::Beat(beat)) if !beat.reply && beat.echo != 0 => {
                let wall_ms = env.clock.wall_ms();
                let reply = node_v1::Beat { wall_ms, echo: beat.echo, reply: true, ..node_v1::Beat::default() };
                self.put(std::iter::once(NodeFrame { body: Some(Body::Beat(reply)) }));
            }
            Some(Body::Refused(refused)) => return Err(LinkError::Refused(refused.message)),
            // Beats, and what newer cores say.
            _ => {}
        }
        Ok(())
    }

    /// The core said what can't be; it is left out.
    pub(crate) fn nonsense(&self, what: &str) {
        if self.nonsense.fetch_add(1, Ordering::Relaxed).is_power_of_two() {
            tracing::warn!(what, "the core sent frames that can't be read; they were left out");
        }
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
pub(crate) mod tests;
