//! Sessions that are carried over HTTP requests, for clients whose network lets nothing else through.
//!
//! The session is the same as everywhere: its driver reads and writes the two buffers of an [`Exchange`], and
//! requests fill the one and empty the other.

mod exchange;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tern_core::clock::Entropy;
use tern_core::limits::FRAME_BYTES;
use tern_core::wire::codec::FrameReader;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{Lane, v1};
use tern_net::frames::FrameWriter;
use tokio::time::sleep;

pub(crate) use self::exchange::{BODY_BYTES, Exchange, Misfit, Taken};
use crate::admission::Ticket;
use crate::driver::{Driver, End};
use crate::edge::Edge;
use crate::lanes::Lanes;
use crate::mailbox::Conn;

/// A session that hears of no request for so long ends. 60 s: two long polls, and a bad network between them.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);
/// An ended session's last answer can be asked for again for so long.
const LINGER: Duration = Duration::from_secs(15);
/// So many ended sessions at once are remembered; with more, clients say Hello again, as they would anyway.
const LINGERING: usize = 1_024;
/// Bytes of a session's name; 192 bits that nobody guesses.
const NAME_BYTES: usize = 24;

/// Names a session, and proves that it is one's own.
pub(crate) type Name = [u8; NAME_BYTES];

/// In hexadecimal digits, as clients are told it.
pub(crate) fn write_name(name: &Name) -> String {
    name.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse.
pub(crate) fn read_name(text: &str) -> Option<Name> {
    let digits = text.as_bytes();
    let mut name = [0; NAME_BYTES];
    if digits.len() != 2 * NAME_BYTES {
        return None;
    }
    for (byte, pair) in name.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(name)
}

/// All sessions of an edge that are polled.
#[derive(Debug, Default)]
pub(crate) struct Polls {
    sessions: Mutex<BTreeMap<Name, Arc<Exchange>>>,
    lingering: AtomicUsize,
}

impl Polls {
    fn table(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Exchange>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, name: &Name) -> Option<Arc<Exchange>> {
        self.table().get(name).cloned()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.table().len()
    }

    fn insert(&self, rng: &Entropy, exchange: Arc<Exchange>) -> Name {
        let mut name = [0; NAME_BYTES];
        rng.fill(&mut name);
        self.table().insert(name, exchange);
        name
    }

    fn remove(&self, name: &Name) {
        self.table().remove(name);
    }
}

/// All lanes in the buffers of an exchange.
struct PollLanes {
    exchange: Arc<Exchange>,
    reader: FrameReader,
    writer: FrameWriter,
}

impl Lanes for PollLanes {
    const TRANSPORT: &'static str = "poll";
    const PAUSE: Duration = SILENCE;

    fn readers() -> &'static [Option<Lane>] {
        &[None]
    }

    fn reader(&mut self, _: usize) -> Option<&mut FrameReader> {
        Some(&mut self.reader)
    }

    fn poll_fill(&mut self, _: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.exchange.poll_read(&mut self.reader, cx)
    }

    fn carrier(&self, lane: Lane) -> Lane {
        lane
    }

    fn writer(&mut self, _: Lane) -> &mut FrameWriter {
        &mut self.writer
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.writer.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.exchange.poll_write(self.writer.buffer(), cx)
    }

    fn waiting(&self) -> usize {
        self.writer.len()
    }

    fn peer(&self) -> SocketAddr {
        self.exchange.peer()
    }
}

/// Starts a session; its first request waits for the answer.
pub(crate) fn start(edge: &Arc<Edge>, conn: Arc<Conn>, ticket: Ticket, exchange: Arc<Exchange>) -> Name {
    let name = edge.polls.insert(&edge.env.rng, exchange.clone());
    edge.env.tasks.spawn(drive(edge.clone(), conn, ticket, exchange, name));
    name
}

async fn drive(edge: Arc<Edge>, conn: Arc<Conn>, ticket: Ticket, exchange: Arc<Exchange>, name: Name) {
    let (reader, writer) = (FrameReader::new(FRAME_BYTES), FrameWriter::new());
    let lanes = PollLanes { exchange: exchange.clone(), reader, writer };
    let mut driver = Driver::new(edge.clone(), conn, lanes, Some(ticket));
    let end = {
        let mut running = pin!(driver.run());
        tokio::select! {
            biased;
            end = running.as_mut() => end,
            () = exchange.silence(&*edge.env.clock) => {
                exchange.hang_up();
                running.await
            }
        }
    };
    if let End::Refused(refusal) = end {
        tracing::debug!(code = refusal.code.name(), reason = refusal.message, "connection ended");
        edge.metrics.closed(refusal.code);
        driver.lanes.writer.put(&v1::Frame::new(0, Body::Error(refusal.to_wire())));
    }
    exchange.end(std::mem::take(driver.lanes.writer.buffer()));
    edge.leave(&driver.conn, PollLanes::TRANSPORT);
    drop(driver);
    if edge.polls.lingering.fetch_add(1, Ordering::Relaxed) < LINGERING {
        sleep(LINGER).await;
    }
    edge.polls.lingering.fetch_sub(1, Ordering::Relaxed);
    edge.polls.remove(&name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_and_read() {
        let name: Name = std::array::from_fn(|i| u8::try_from(i * 11 % 256).unwrap());
        let text = write_name(&name);
        assert_eq!((text.len(), read_name(&text)), (48, Some(name)));
        for wrong in ["", &text[1..], &text.replace('b', "g"), &format!("{text}0"), &"+1".repeat(24), &"é".repeat(24)]
        {
            assert_eq!(read_name(wrong), None, "{wrong}");
        }
    }
}
