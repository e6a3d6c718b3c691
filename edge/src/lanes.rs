//! The three lanes of a connection: QUIC streams, or one byte stream or WebSocket for all. Those of clients that
//! poll are in `poll`.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tern_core::codes::{Code, Refusal};
use tern_core::limits::FRAME_BYTES;
use tern_core::store::BoxFut;
use tern_core::wire::codec::FrameReader;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{Lane, v1};
use tern_net::frames::{CHUNK_BYTES, FrameWriter, poll_fill};
use tern_net::quic::QuicParams;
use tern_net::websocket::{WebSocket, WebSocketError};
use tokio::io::{AsyncRead, AsyncWrite};

/// A WebSocket is closed with this plus the code of the error (4000-4999 are free for such, RFC 6455, 7.4.2).
const CLOSE_CODES: u16 = 4000;

/// Given to a client on QUIC that is not heard: a dozen short messages, and a third of what may be in flight at first.
const BLIND_BYTES: usize = 4 * 1024;

/// A transport as the driver sees it.
pub(crate) trait Lanes: Send {
    /// "quic", "tcp", "ws" or "poll".
    const TRANSPORT: &'static str;

    /// The client takes nothing for so long without being slow.
    const PAUSE: Duration = Duration::ZERO;

    /// Which lane each reader carries; `None` carries all.
    fn readers() -> &'static [Option<Lane>];

    /// Frames of this reader that came and were not taken; `None` while the lane is not open.
    fn reader(&mut self, index: usize) -> Option<&mut FrameReader>;

    /// Reads once: bytes read, 0 at the end. Pending where the lane is not open yet.
    fn poll_fill(&mut self, index: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// The lane that really carries what belongs on `lane`: a lane can't be written to before its client has
    /// used it, and until then control serves.
    fn carrier(&self, lane: Lane) -> Lane;

    /// What waits on a carrier.
    fn writer(&mut self, carrier: Lane) -> &mut FrameWriter;

    /// Writes as much as the transport takes. Ready when nothing waits.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Bytes that wait on all carriers.
    fn waiting(&self) -> usize;

    /// Where the client is now.
    fn peer(&self) -> SocketAddr;

    /// A client of whom nothing has come for so long, or for three round trips, since something was written is given
    /// nothing more but answers. In the dark it would only fill the congestion window, and while that is full and something
    /// waits, quinn 0.11 sends no acknowledgement either: the client's probes would go unanswered when the dark is over,
    /// until a timer fires here that has doubled with the outage.
    const HOLD_AFTER: Duration = Duration::from_secs(1);

    /// Counts what has come from the client, acknowledgements included, where the transport can be held up by what it
    /// was given.
    fn received(&self) -> Option<u64> {
        None
    }

    /// So many bytes of messages may be given to a client that is not heard, all the same: often the way back alone is dark.
    /// They must leave room in the congestion window.
    fn blind_bytes(&self) -> usize {
        0
    }

    /// To the client and back, where it matters to [`Self::received`].
    fn round_trip(&self) -> Duration {
        Duration::ZERO
    }

    /// The client's Hello was accepted: he may send more ahead of what is read.
    fn widen(&self) {}

    /// Whether what was read may be a recording of what the client sent once: its handshake is not over, so that
    /// nobody has shown that he holds its keys, or that he is where his packets say. Wakes when that changes.
    fn poll_early(&mut self, _: &mut Context<'_>) -> bool {
        false
    }

    /// As [`Self::poll_early`] last said.
    fn is_early(&self) -> bool {
        false
    }
}

/// Streams 0, 4 and 8 of a QUIC connection.
pub(crate) struct QuicLanes {
    connection: quinn::Connection,
    lanes: [Option<QuicLane>; 3],
    /// The next stream; dropped once all are there.
    accepting: Option<BoxFut<'static, Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>>>,
    /// Before the control lane is open nothing is ever written; this stands for it.
    unused: FrameWriter,
    /// A stream came before the handshake's end, of which nothing is known yet.
    early: bool,
    /// Ends with the handshake.
    handshake: Option<Box<quinn::ZeroRttAccepted>>,
}

struct QuicLane {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    reader: FrameReader,
    writer: FrameWriter,
}

impl QuicLanes {
    pub(crate) fn new(connection: quinn::Connection) -> Self {
        let accepting = Some(accept(connection.clone()));
        let unused = FrameWriter::new();
        Self { connection, lanes: [None, None, None], accepting, unused, early: false, handshake: None }
    }

    /// One whose handshake is under way, and the first stream of it.
    pub(crate) fn early(
        connection: quinn::Connection,
        handshake: quinn::ZeroRttAccepted,
        (send, recv): (quinn::SendStream, quinn::RecvStream),
    ) -> Self {
        let mut lanes = Self::new(connection);
        (lanes.early, lanes.handshake) = (true, Some(Box::new(handshake)));
        lanes.opened(send, recv);
        lanes
    }

    fn opened(&mut self, send: quinn::SendStream, recv: quinn::RecvStream) {
        let index = usize::try_from(recv.id().index()).unwrap_or(usize::MAX);
        let Some(slot) = self.lanes.get_mut(index) else { return };
        // Control before messages before history. It fails only on a stream that is closed already, of
        // which the next write tells.
        let _ = send.set_priority(2 - i32::try_from(index).unwrap_or(2));
        let (reader, writer) = (FrameReader::new(FRAME_BYTES), FrameWriter::new());
        *slot = Some(QuicLane { send, recv, reader, writer });
    }

    /// Ends the connection; what was not sent is lost.
    pub(crate) fn close(&self, code: Code, reason: &str) {
        self.connection.close((code as u32).into(), reason.as_bytes());
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Some(accepting) = &mut self.accepting {
            let Poll::Ready(accepted) = accepting.as_mut().poll(cx) else { break };
            let (send, recv) = accepted?;
            self.opened(send, recv);
            let all = self.lanes.iter().all(Option::is_some);
            self.accepting = (!all).then(|| accept(self.connection.clone()));
        }
        Ok(())
    }
}

fn accept(
    connection: quinn::Connection,
) -> BoxFut<'static, Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>> {
    Box::pin(async move { connection.accept_bi().await })
}

impl Lanes for QuicLanes {
    const TRANSPORT: &'static str = "quic";

    fn readers() -> &'static [Option<Lane>] {
        &[Some(Lane::Control), Some(Lane::Message), Some(Lane::Bulk)]
    }

    fn reader(&mut self, index: usize) -> Option<&mut FrameReader> {
        self.lanes.get_mut(index)?.as_mut().map(|lane| &mut lane.reader)
    }

    fn poll_fill(&mut self, index: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.accepting.is_some() {
            self.poll_accept(cx)?;
        }
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else { return Poll::Pending };
        // Made anew for each poll: quinn keeps the waker with the stream, so nothing is lost with the future.
        match pin!(lane.recv.read_chunk(CHUNK_BYTES, true)).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(e)) => Poll::Ready(Err(e.into())),
            Poll::Ready(Ok(None)) => Poll::Ready(Ok(0)),
            Poll::Ready(Ok(Some(chunk))) => {
                lane.reader.extend(&chunk.bytes);
                Poll::Ready(Ok(chunk.bytes.len()))
            }
        }
    }

    fn carrier(&self, lane: Lane) -> Lane {
        if self.lanes[lane.index()].is_some() { lane } else { Lane::Control }
    }

    fn writer(&mut self, carrier: Lane) -> &mut FrameWriter {
        match &mut self.lanes[carrier.index()] {
            Some(lane) => &mut lane.writer,
            None => &mut self.unused,
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut all = Poll::Ready(Ok(()));
        for lane in self.lanes.iter_mut().flatten().filter(|lane| !lane.writer.is_empty()) {
            match lane.writer.poll_write(&mut lane.send, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => all = Poll::Pending,
            }
        }
        all
    }

    fn waiting(&self) -> usize {
        self.lanes.iter().flatten().map(|lane| lane.writer.len()).sum()
    }

    fn peer(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    fn received(&self) -> Option<u64> {
        Some(self.connection.stats().udp_rx.datagrams)
    }

    fn blind_bytes(&self) -> usize {
        let window = self.connection.stats().path.cwnd;
        usize::try_from(window / 3).unwrap_or(BLIND_BYTES).min(BLIND_BYTES)
    }

    fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    fn widen(&self) {
        self.connection.set_receive_window(QuicParams::edge().receive_window.into());
    }

    fn poll_early(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(handshake) = &mut self.handshake
            && pin!(handshake).poll(cx).is_ready()
        {
            self.handshake = None;
            // It ends with the connection, too.
            self.early = self.connection.close_reason().is_some();
        }
        self.early
    }

    fn is_early(&self) -> bool {
        self.early
    }
}

/// All lanes on one byte stream.
pub(crate) struct StreamLanes<S> {
    stream: S,
    peer: SocketAddr,
    reader: FrameReader,
    writer: FrameWriter,
    /// Written, but not yet flushed to the network.
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> StreamLanes<S> {
    pub(crate) fn new(stream: S, peer: SocketAddr) -> Self {
        Self { stream, peer, reader: FrameReader::new(FRAME_BYTES), writer: FrameWriter::new(), unflushed: false }
    }

    pub(crate) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Lanes for StreamLanes<S> {
    const TRANSPORT: &'static str = "tcp";

    fn readers() -> &'static [Option<Lane>] {
        &[None]
    }

    fn reader(&mut self, _: usize) -> Option<&mut FrameReader> {
        Some(&mut self.reader)
    }

    fn poll_fill(&mut self, _: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_fill(&mut self.stream, &mut self.reader, cx)
    }

    fn carrier(&self, lane: Lane) -> Lane {
        lane
    }

    fn writer(&mut self, _: Lane) -> &mut FrameWriter {
        &mut self.writer
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.writer.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        self.unflushed = true;
        let written = self.writer.poll_write(&mut self.stream, cx);
        if written.is_ready() {
            self.unflushed = false;
        }
        written
    }

    fn waiting(&self) -> usize {
        // What TLS holds back counts as one byte: it is something that waits.
        self.writer.len() + usize::from(self.unflushed)
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }
}

/// All lanes on one WebSocket.
pub(crate) struct WebSocketLanes<S> {
    socket: WebSocket<S>,
    peer: SocketAddr,
    reader: FrameReader,
    writer: FrameWriter,
    /// The client broke the rules of WebSocket.
    broken: Option<WebSocketError>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> WebSocketLanes<S> {
    pub(crate) fn new(stream: S, peer: SocketAddr) -> Self {
        let (reader, writer) = (FrameReader::new(FRAME_BYTES), FrameWriter::new());
        Self { socket: WebSocket::server(stream), peer, reader, writer, broken: None }
    }

    /// Writes all that waits and says why it ends, as a frame and as a WebSocket says it.
    pub(crate) async fn close(&mut self, refusal: Option<&Refusal>) -> io::Result<()> {
        if let Some(refusal) = refusal {
            self.writer.put(&v1::Frame::new(0, Body::Error(refusal.to_wire())));
        }
        poll_fn(|cx| self.poll_write(cx)).await?;
        let code = match (self.broken, refusal) {
            (Some(broken), _) => broken.close_code(),
            (None, Some(refusal)) => CLOSE_CODES + refusal.code as u16,
            (None, None) => 1000,
        };
        self.socket.close(code, refusal.map_or("", |refusal| &refusal.message)).await
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Lanes for WebSocketLanes<S> {
    const TRANSPORT: &'static str = "ws";

    fn readers() -> &'static [Option<Lane>] {
        &[None]
    }

    fn reader(&mut self, _: usize) -> Option<&mut FrameReader> {
        Some(&mut self.reader)
    }

    fn poll_fill(&mut self, _: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let filled = self.socket.poll_fill(&mut self.reader, cx);
        if let Poll::Ready(Err(e)) = &filled {
            self.broken = WebSocketError::of(e);
        }
        filled
    }

    fn carrier(&self, lane: Lane) -> Lane {
        lane
    }

    fn writer(&mut self, _: Lane) -> &mut FrameWriter {
        &mut self.writer
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_write(&mut self.writer, cx)
    }

    fn waiting(&self) -> usize {
        self.writer.len() + self.socket.waiting()
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }
}
