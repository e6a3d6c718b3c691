//! What lies between the requests of a session and its driver: two buffers, and the numbers of requests.
//!
//! An answer may be lost, with no telling by the client whether its request came. So requests are numbered, what
//! is answered is kept, and asking again is harmless:
//!
//! - A request is the next one, or one of the last two again. Only the first time its frames are taken; its
//!   answer is decided once, and is the same for ever after.
//! - The newest request alone may wait; one that comes makes the older one end, with an empty answer.
//! - Two answers are kept, not one: a client may ask again before its long poll is answered, and that answer
//!   may be lost as well.
//!
//! Why frames must not simply be put back when an answer is lost: references (`Define`) count on every frame
//! arriving once and in order.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tern_core::clock::Clock;
use tern_core::wire::codec::FrameReader;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::SILENCE;
use crate::metrics::EdgeMetrics;

/// Bytes of frames in one request: two of the largest, and many of the usual ones.
pub(crate) const BODY_BYTES: usize = 256 * 1024;
/// Bytes that wait for the next request before the session writes no more. What is written at once comes on
/// top: at most 32 KiB and a frame, so an answer stays below 256 KiB.
const OUT_BYTES: usize = 64 * 1024;
/// Answers that are kept: see the module.
const KEPT: usize = 2;
/// Connections whose newest request is of one session: two, and two that the client may have given up. With one
/// more the oldest ends, or a user could hold all places of an edge by one session.
const CARRIERS: usize = 4;
/// The turn of a request that is answered already: nobody's.
const NO_TURN: u64 = u64::MAX;
/// Why a request is not taken. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("request {0} is neither the next one nor one of the last two; send those before it first")]
    Number(u64),
    #[error("another request of this number came, which is answered instead")]
    Repeated,
    #[error("the session has not read yet what was sent before; send this request again later")]
    Full,
    #[error("the session is over; say Hello again")]
    Over,
}

/// What lies between the requests of a session and its driver.
#[derive(Debug)]
pub(crate) struct Exchange {
    state: Mutex<State>,
    metrics: EdgeMetrics,
}

#[derive(Debug)]
struct State {
    inbound: BytesMut,
    outbound: BytesMut,
    /// The driver, for something to read; for room; and the request that waits.
    reads: Option<Waker>,
    room: Option<Waker>,
    asks: Option<Waker>,
    peer: SocketAddr,
    /// Counts requests; only the newest may wait.
    turn: u64,
    /// The number of that one.
    number: u64,
    /// The newest number whose frames were taken.
    last: u64,
    kept: VecDeque<(u64, Bytes)>,
    heard: Duration,
    /// Nobody asks any more.
    gone: bool,
    /// The driver is done: what is in `outbound` is all there will be.
    ended: bool,
    counted: usize,
    /// The connections that carried it last; each is told by this to end.
    carriers: VecDeque<Arc<Notify>>,
}

/// A request that was taken in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It was answered before.
    Answered(Bytes),
    /// It may wait.
    Waits,
}

impl Exchange {
    /// One whose first request, number 0, has come with these frames.
    pub(crate) fn new(metrics: EdgeMetrics, peer: SocketAddr, body: &[u8], now: Duration) -> Self {
        let state = State {
            inbound: BytesMut::from(body),
            outbound: BytesMut::new(),
            reads: None,
            room: None,
            asks: None,
            peer,
            turn: 0,
            number: 0,
            last: 0,
            kept: VecDeque::new(),
            heard: now,
            gone: false,
            ended: false,
            counted: 0,
            carriers: VecDeque::new(),
        };
        Self { state: Mutex::new(state), metrics }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut state);
        let bytes = state.inbound.len() + state.outbound.len() + state.kept.iter().map(|(_, b)| b.len()).sum::<usize>();
        let (new, old) = (i64::try_from(bytes).unwrap_or(i64::MAX), i64::try_from(state.counted).unwrap_or(i64::MAX));
        self.metrics.buffer_bytes.inc_by(new - old);
        state.counted = bytes;
        result
    }

    // ---- for requests --------------------------------------------------------------------------------

    /// A request of this number has begun: the older one ends. Returns its turn.
    pub(crate) fn arrive(&self, number: u64, from: SocketAddr, now: Duration) -> Result<u64, Misfit> {
        self.with(|state| {
            let newest = state.last + 1;
            if number > newest || number + (KEPT as u64) < newest {
                return Err(Misfit::Number(number));
            }
            if number == newest && state.ended && state.outbound.is_empty() {
                return Err(Misfit::Over);
            }
            if state.answer(number).is_some() {
                // It is told again what it was told, and takes nobody's turn: the newest goes on waiting.
                state.heard = now;
                return Ok(NO_TURN);
            }
            (state.turn, state.number) = (state.turn + 1, number);
            (state.peer, state.heard) = (from, now);
            wake(&mut state.asks);
            Ok(state.turn)
        })
    }

    /// A connection, which ends when told so by this, brings a request.
    pub(crate) fn carry(&self, connection: &Arc<Notify>) {
        self.with(|state| {
            state.carriers.retain(|known| !Arc::ptr_eq(known, connection));
            state.carriers.push_back(connection.clone());
            if state.carriers.len() > CARRIERS
                && let Some(oldest) = state.carriers.pop_front()
            {
                oldest.notify_one();
            }
        });
    }

    /// The frames of a request are all there.
    pub(crate) fn take_in(&self, turn: u64, number: u64, body: &[u8]) -> Result<Taken, Misfit> {
        self.with(|state| {
            if state.turn != turn {
                return state.give_way(number).map(Taken::Answered);
            }
            if let Some(answer) = state.answer(number) {
                return Ok(Taken::Answered(answer));
            }
            if number > state.last {
                if state.inbound.len() + body.len() > BODY_BYTES {
                    return Err(Misfit::Full);
                }
                // The one before it is not to be answered any more with what this one is to be told.
                state.keep(state.last, Bytes::new());
                state.last = number;
                state.inbound.extend_from_slice(body);
                wake(&mut state.reads);
            }
            Ok(Taken::Waits)
        })
    }

    /// Ready when there is something to answer, or when this is not the newest request any more.
    pub(crate) fn poll_answer(&self, turn: u64, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|state| {
            if state.turn != turn || state.ended || !state.outbound.is_empty() {
                return Poll::Ready(());
            }
            state.asks = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Ready when this is not the newest request any more.
    pub(crate) fn poll_superseded(&self, turn: u64, cx: &mut Context<'_>) -> Poll<()> {
        if turn == NO_TURN {
            // Its body is read to the end all the same: HTTP/2 ends the stream of one that is left unread.
            return Poll::Pending;
        }
        self.with(|state| {
            if state.turn != turn {
                return Poll::Ready(());
            }
            state.asks = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// The answer, with what there is now.
    pub(crate) fn give(&self, turn: u64, number: u64, now: Duration) -> Result<Bytes, Misfit> {
        self.with(|state| {
            if state.turn != turn {
                return state.give_way(number);
            }
            let answer = std::mem::take(&mut state.outbound).freeze();
            state.keep(number, answer.clone());
            state.heard = now;
            wake(&mut state.room);
            Ok(answer)
        })
    }

    /// Nobody asks any more.
    pub(crate) fn hang_up(&self) {
        self.with(|state| {
            state.gone = true;
            wake(&mut state.reads);
        });
    }

    /// The newest number whose frames were taken.
    #[cfg(test)]
    pub(crate) fn newest_taken(&self) -> u64 {
        self.with(|state| state.last)
    }

    /// Whether the driver is done.
    pub(crate) fn has_ended(&self) -> bool {
        self.with(|state| state.ended)
    }

    // ---- for the driver ------------------------------------------------------------------------------

    pub(super) fn poll_read(&self, reader: &mut FrameReader, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.with(|state| {
            if !state.inbound.is_empty() {
                reader.extend(&state.inbound);
                return Poll::Ready(Ok(std::mem::take(&mut state.inbound).len()));
            }
            if state.gone {
                return Poll::Ready(Ok(0));
            }
            state.reads = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    pub(super) fn poll_write(&self, from: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|state| {
            if state.outbound.len() >= OUT_BYTES {
                state.room = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.outbound.unsplit(std::mem::take(from));
            wake(&mut state.asks);
            Poll::Ready(Ok(()))
        })
    }

    pub(super) fn end(&self, rest: BytesMut) {
        self.with(|state| {
            state.outbound.unsplit(rest);
            state.ended = true;
            wake(&mut state.asks);
        });
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.with(|state| state.peer)
    }

    /// Ends when no request came for too long.
    pub(super) async fn silence(&self, clock: &dyn Clock) {
        loop {
            let due = self.with(|state| state.heard) + SILENCE;
            let now = clock.now();
            if now >= due {
                return;
            }
            sleep(due - now).await;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.with(|state| {
            (state.inbound, state.outbound) = Default::default();
            state.kept.clear();
        });
    }
}

impl State {
    fn answer(&self, number: u64) -> Option<Bytes> {
        self.kept.iter().find(|(kept, _)| *kept == number).map(|(_, answer)| answer.clone())
    }

    /// Decides the answer of a request, if it is not decided yet.
    fn keep(&mut self, number: u64, answer: Bytes) {
        if self.answer(number).is_none() {
            self.kept.push_back((number, answer));
            if self.kept.len() > KEPT {
                self.kept.pop_front();
            }
        }
    }

    /// The answer of a request that is not the newest any more.
    fn give_way(&mut self, number: u64) -> Result<Bytes, Misfit> {
        if let Some(answer) = self.answer(number) {
            return Ok(answer);
        }
        // One that came again is answered there, one that was not taken in was not there, and what is no more
        // kept was told long ago.
        if number != self.last || self.number <= number {
            return Err(Misfit::Repeated);
        }
        self.keep(number, Bytes::new());
        Ok(Bytes::new())
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
