//! The task of one connection: its session, its lanes, its mailbox, and one timer.
//!
//! All of it is one hand-written poll rather than a `select!` over futures: an idle connection is then a few
//! hundred bytes, and one wake-up reads all that came, hands it to the core as one batch, and writes all that
//! waits with one write per lane.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tern_core::codes::{Code, Refusal};
use tern_core::edge_api::{DownBody, Page, Up};
use tern_core::wire::codec::{self, CodecError};
use tern_core::wire::compact::{Table, Writer};
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{Lane, v1};
use tern_net::websocket::WebSocketError;
use tokio::time::{Instant, Sleep, sleep};

use crate::admission::Ticket;
use crate::edge::Edge;
use crate::lanes::Lanes;
use crate::listen::CROWDED;
use crate::mailbox::Conn;
use crate::packing;
use crate::session::{self, Outcome, Phase, Session};

/// Bytes encoded ahead of what the transport takes, per carrier: enough for a full congestion window of most
/// links. What waits beyond them can still give way.
const WRITE_AHEAD: usize = 32 * 1024;
/// Nothing more is read while so many encoded bytes wait: a client that asks must also listen.
const READ_PAUSE: usize = 64 * 1024;
/// Bytes read by one wake-up, so that no connection keeps a thread for itself.
const READ_BUDGET: usize = 256 * 1024;

/// Bytes that an empty buffer begins with: an ack and a push of a short message, without growing.
const FIRST_RESERVE: usize = 512;

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// By the client, or by the network.
    Gone,
    /// By this side, for this reason.
    Refused(Refusal),
}

impl From<io::Error> for End {
    fn from(e: io::Error) -> Self {
        match WebSocketError::of(&e) {
            Some(WebSocketError::TooLarge) => End::Refused(Refusal::new(Code::FrameTooLarge, e.to_string())),
            Some(_) => End::Refused(Refusal::new(Code::BadFrame, e.to_string())),
            // Which error it was helps nobody: the client is gone.
            None => End::Gone,
        }
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        End::Refused(refusal)
    }
}

/// While pushes are held back, it is looked this often whether something has come: an acknowledgement wakes nobody.
const HELD_LOOK: Duration = Duration::from_millis(250);

/// Wakes the task of a connection, and notes that it was for something to read: most wake-ups are for something
/// to write, and asking three lanes for what did not come costs as much as writing a push.
struct Readable {
    yes: AtomicBool,
    task: Waker,
}

impl Wake for Readable {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.yes.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

/// See the module.
pub(crate) struct Driver<L> {
    pub(crate) edge: Arc<Edge>,
    pub(crate) conn: Arc<Conn>,
    pub(crate) lanes: L,
    session: Session,
    writers: [Writer; 3],
    /// When something last came.
    heard: Duration,
    /// Since when something waits and nothing moves.
    stalled: Option<Duration>,
    /// Since when a frame has begun and not ended, per reader.
    begun: [Option<Duration>; 3],
    /// The place among the handshakes, until the Hello is accepted.
    ticket: Option<Ticket>,
    /// When a handshake that is under way is given up.
    shaking_until: Option<Duration>,
    /// Bytes in readers and writers, as the edge counts them.
    counted: usize,
    /// What the timer is set to.
    armed: Option<Duration>,
    /// What lanes wake when something came; `None` before the first poll.
    readable: Option<Arc<Readable>>,
    /// The last reading ended before all lanes had nothing more.
    unread: bool,
    /// What had come when something was written that nothing is known to have followed, and when that was.
    unheard: Option<(u64, Duration)>,
    /// Pushes are held back: see [`Lanes::received`].
    holding: bool,
    /// Bytes of messages that were given all the same.
    blind: usize,
}

impl<L: Lanes> Driver<L> {
    pub(crate) fn new(edge: Arc<Edge>, conn: Arc<Conn>, lanes: L, ticket: Option<Ticket>) -> Self {
        let now = edge.env.clock.now();
        let hello_timeout = edge.tuning().hello_timeout;
        let session = Session::new(now, hello_timeout);
        let shaking_until = lanes.is_early().then(|| now + hello_timeout);
        Self {
            edge,
            conn,
            lanes,
            session,
            writers: Default::default(),
            heard: now,
            stalled: None,
            begun: [None; 3],
            ticket,
            shaking_until,
            counted: 0,
            armed: None,
            readable: None,
            unread: true,
            unheard: None,
            holding: false,
            blind: 0,
        }
    }

    /// Runs until the connection ends, and tells the core.
    pub(crate) async fn run(&mut self) -> End {
        let mut timer = pin!(sleep(Duration::ZERO));
        let end = poll_fn(|cx| self.poll(cx, timer.as_mut())).await;
        self.conn.mailbox().close(&self.edge.metrics);
        self.count(0);
        let from = self.lanes.peer().ip();
        match &end {
            _ if self.session.is_open() => self.edge.submit(vec![Up::Close { conn: self.conn.id }]),
            // Whoever forges addresses is not to lock out those who have them.
            End::Refused(refusal) if self.lanes.is_early() => self.edge.metrics.handshake_failed(refusal.code.name()),
            End::Gone if self.lanes.is_early() => self.edge.metrics.handshake_failed("quic"),
            End::Refused(refusal) => self.edge.handshake_failed(from, refusal.code),
            End::Gone => self.edge.handshake_abandoned(from),
        }
        // Last words may take a moment; they are no handshake.
        self.ticket = None;
        if let Some(pace) = self.session.take_pace() {
            self.edge.paces.leave(pace, self.edge.env.clock.now());
        }
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<End> {
        self.conn.mailbox().listen(cx.waker());
        let mut budget = READ_BUDGET;
        loop {
            let (now, wall_ms) = (self.edge.env.clock.now(), self.edge.env.clock.wall_ms());
            let mut out = Outcome::default();
            let turned = self.turn(cx, now, wall_ms, &mut budget, &mut out);
            let answered = !out.answers.is_empty();
            self.settle(out);
            if let Err(end) = turned {
                return Poll::Ready(end);
            }
            let buffered = self.buffered();
            self.count(buffered);
            if answered {
                // They are to be written, and reading may have paused for them. What the core answers wakes
                // this task by itself.
                continue;
            }
            let due = self.due(now, wall_ms);
            if self.armed.is_none_or(|armed| due < armed) {
                // tokio's timers count whole milliseconds; one more makes sure that the time has come.
                timer.as_mut().reset(Instant::now() + due.saturating_sub(now) + Duration::from_millis(1));
                self.armed = Some(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
        }
    }

    fn due(&self, now: Duration, wall_ms: u64) -> Duration {
        let limits = &self.edge.config.limits;
        let mut due = self.session.next_deadline(now, wall_ms).min(self.heard + limits.idle_timeout);
        if let Some(since) = self.stalled {
            due = due.min(since + self.patience(limits.too_slow.max(L::PAUSE)));
        }
        if self.holding {
            due = due.min(now + HELD_LOOK);
        }
        if let Some(until) = self.shaking_until {
            due = due.min(until);
        }
        if let Some(since) = self.begun.iter().flatten().min() {
            due = due.min(*since + self.patience(limits.frame_timeout));
        }
        due
    }

    /// How long to put up with what keeps memory in use.
    fn patience(&self, usual: Duration) -> Duration {
        let limits = &self.edge.config.limits;
        if self.edge.pressed() { usual.min(limits.pressed_timeout) } else { usual }
    }

    fn buffered(&mut self) -> usize {
        let read =
            (0..L::readers().len()).filter_map(|i| self.lanes.reader(i).map(|r| r.buffer().len())).sum::<usize>();
        read + self.lanes.waiting()
    }

    /// Tells the edge how many bytes this connection holds.
    fn count(&mut self, bytes: usize) {
        if bytes != self.counted {
            let (new, old) = (i64::try_from(bytes), i64::try_from(self.counted));
            self.edge.metrics.buffer_bytes.inc_by(new.unwrap_or(i64::MAX) - old.unwrap_or(i64::MAX));
            self.counted = bytes;
        }
    }

    /// Hands over what the session wants done.
    fn settle(&mut self, out: Outcome) {
        if !out.answers.is_empty() {
            let mut mailbox = self.conn.mailbox();
            for (lane, frame) in out.answers {
                mailbox.answer(lane, DownBody::Frame(Box::new(frame)), &self.edge.metrics);
            }
        }
        if !out.ups.is_empty() {
            self.edge.submit(out.ups);
        }
    }

    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        now: Duration,
        wall_ms: u64,
        budget: &mut usize,
        out: &mut Outcome,
    ) -> Result<(), End> {
        if self.session.phase() != Phase::AwaitHello && self.session.core_generation() < self.edge.doomed() {
            let text = "this edge lost the core of its region, which knows nothing of this session any more";
            return Err(Refusal::new(Code::CoreUnreachable, text).into());
        }
        if let Some(refusal) = self.conn.mailbox().ended() {
            return Err(refusal.into());
        }
        if now >= self.heard + self.edge.config.limits.idle_timeout {
            return Err(End::Gone);
        }
        let early = self.shaking_until.is_some() && self.lanes.poll_early(cx);
        if !early {
            self.shaking_until = None;
        } else if self.shaking_until.is_some_and(|until| now >= until) {
            return Err(Refusal::new(Code::HelloTimeout, "the handshake was begun and not ended in time").into());
        }
        let edge = self.edge.clone();
        let scene = edge.scene(self.conn.id, self.lanes.peer(), L::TRANSPORT, now, wall_ms);
        self.session.tick(&scene, out)?;
        self.send(cx, &scene)?;
        self.receive(cx, &scene, budget, out)?;
        if !early
            && self.session.is_open()
            && let Some(mut ticket) = self.ticket.take()
        {
            if !ticket.prove() {
                return Err(Refusal::new(Code::Overloaded, CROWDED).into());
            }
            self.edge.handshake_done(scene.peer.ip());
            self.lanes.widen();
        }
        let patience = self.patience(self.edge.config.limits.frame_timeout);
        if self.begun.iter().flatten().any(|since| now >= *since + patience) {
            return Err(Refusal::new(Code::TooSlow, "a frame was begun and not ended in time").into());
        }
        Ok(())
    }

    /// Encodes and writes what waits, as far as there is room.
    fn send(&mut self, cx: &mut Context<'_>, scene: &session::Context<'_>) -> Result<(), End> {
        let before = self.lanes.waiting();
        if before == 0 && self.conn.mailbox().is_settled() {
            self.stalled = None;
            return Ok(());
        }
        self.holding = self.is_unheard(scene.now);
        let blind_bytes = if self.holding { self.lanes.blind_bytes() } else { 0 };
        if !self.holding {
            self.blind = 0;
        }
        let packs = self.session.packs();
        let (mut encoded, mut frames) = (0, 0);
        let mut bodies = Vec::new();
        loop {
            let taken = frames;
            for lane in Lane::ALL.into_iter().filter(|lane| !self.holding || *lane != Lane::Bulk) {
                let carrier = self.lanes.carrier(lane);
                let room = WRITE_AHEAD.saturating_sub(self.lanes.writer(carrier).len());
                let (blind, so_far) = (self.holding && lane == Lane::Message, encoded);
                if blind {
                    let room = room.min(blind_bytes.saturating_sub(self.blind));
                    self.conn.mailbox().take_within(lane, room, &mut bodies, &self.edge.metrics);
                } else {
                    self.conn.mailbox().take(lane, room, &mut bodies, &self.edge.metrics);
                }
                frames += bodies.len() as u64;
                for mut body in bodies.drain(..) {
                    let lane = self.session.down(&mut body, scene).unwrap_or(lane);
                    let carrier = self.lanes.carrier(lane);
                    encoded += encode(&body, packs, self.lanes.writer(carrier), &mut self.writers[carrier.index()]);
                }
                if blind {
                    self.blind += encoded - so_far;
                }
            }
            // What came meanwhile, or had no room.
            let held = self.holding && frames == taken;
            if self.lanes.poll_write(cx)?.is_pending() || self.conn.mailbox().is_empty() || held {
                break;
            }
        }
        let waiting = self.lanes.waiting();
        let mailbox = self.conn.mailbox();
        if mailbox.overfull() {
            return Err(too_slow().into());
        }
        if waiting == 0
            && let Some(last) = mailbox.last()
        {
            return Err(last.clone().into());
        }
        if frames > 0 {
            self.edge.metrics.frames_out.inc_by(frames);
            self.edge.metrics.bytes_out.inc_by(encoded as u64);
            if self.unheard.is_none() {
                self.unheard = self.lanes.received().map(|received| (received, scene.now));
            }
        }
        if waiting == 0 && mailbox.is_empty() {
            self.stalled = None;
        } else if before + encoded > waiting || self.stalled.is_none() {
            self.stalled = Some(scene.now);
        } else if self
            .stalled
            .is_some_and(|since| scene.now >= since + self.patience(self.edge.config.limits.too_slow.max(L::PAUSE)))
        {
            return Err(too_slow().into());
        }
        Ok(())
    }

    /// Whether nothing has come for too long since something was written.
    fn is_unheard(&mut self, now: Duration) -> bool {
        // Asked of the transport at most once a second: it costs a lock.
        let Some((before, since)) = self.unheard.filter(|(_, since)| now >= *since + L::HOLD_AFTER) else {
            return false;
        };
        if self.lanes.received() != Some(before) {
            self.unheard = None;
            return false;
        }
        now >= since + self.lanes.round_trip() * 3
    }

    /// Reads what came, as far as the session allows.
    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        scene: &session::Context<'_>,
        budget: &mut usize,
        out: &mut Outcome,
    ) -> Result<(), End> {
        let Some(waker) = self.reading_waker(cx) else { return Ok(()) };
        let cx = &mut Context::from_waker(&waker);
        let mut frames = 0;
        let mut result = Ok(());
        // Lanes that have nothing more, and wake this task when they do.
        let mut pending = 0;
        let bulk_full = self.conn.mailbox().bulk_bytes() > self.edge.config.limits.queue_bytes;
        'lanes: for (index, lane) in L::readers().iter().enumerate() {
            let before = frames;
            loop {
                // Answers made here wait in `out` until the turn ends.
                while out.answers.len() < self.edge.config.limits.queue_frames
                    && self.lanes.waiting() < READ_PAUSE
                    && self.may_read(*lane, bulk_full)
                {
                    let Some(reader) = self.lanes.reader(index) else { break };
                    let bytes = match reader.next_bytes() {
                        Ok(Some(bytes)) => bytes,
                        Ok(None) => break,
                        Err(e) => {
                            result = Err(unreadable(&e).into());
                            break 'lanes;
                        }
                    };
                    frames += 1;
                    if let Err(refusal) = self.session.frame(*lane, bytes, scene, out) {
                        result = Err(refusal.into());
                        break 'lanes;
                    }
                }
                if self.lanes.waiting() >= READ_PAUSE
                    || out.answers.len() >= self.edge.config.limits.queue_frames
                    || !self.may_read(*lane, bulk_full)
                {
                    break;
                }
                if *budget == 0 {
                    // The others first; this task comes again.
                    cx.waker().wake_by_ref();
                    break 'lanes;
                }
                match self.lanes.poll_fill(index, cx) {
                    Poll::Pending => {
                        pending += 1;
                        break;
                    }
                    Poll::Ready(Ok(0)) => {
                        result = Err(End::Gone);
                        break 'lanes;
                    }
                    Poll::Ready(Err(e)) => {
                        result = Err(e.into());
                        break 'lanes;
                    }
                    Poll::Ready(Ok(bytes)) => {
                        self.heard = scene.now;
                        *budget = budget.saturating_sub(bytes);
                        self.edge.metrics.bytes_in.inc_by(bytes as u64);
                    }
                }
            }
            // While this side does not read, the client can't end his frame.
            let reads = self.lanes.waiting() < READ_PAUSE && self.may_read(*lane, bulk_full);
            let cut = reads && self.lanes.reader(index).is_some_and(|reader| reader.in_frame());
            self.begun[index] = match self.begun[index] {
                _ if !cut => None,
                Some(since) if frames == before => Some(since),
                _ => Some(scene.now),
            };
        }
        self.unread = pending < L::readers().len();
        if frames > 0 {
            self.edge.metrics.frames_in.inc_by(frames);
        }
        result
    }

    /// Nothing behind the Hello is read before the handshake is over: it may be a recording.
    fn may_read(&self, lane: Option<Lane>, bulk_full: bool) -> bool {
        let recorded = self.shaking_until.is_some() && self.session.phase() != Phase::AwaitHello;
        !recorded && self.session.may_read(lane, &self.edge.config, bulk_full)
    }

    /// What to read with, where there may be something to read.
    fn reading_waker(&mut self, cx: &Context<'_>) -> Option<Waker> {
        let readable = match self.readable.take().filter(|readable| readable.task.will_wake(cx.waker())) {
            Some(readable) => readable,
            None => {
                self.unread = true;
                Arc::new(Readable { yes: AtomicBool::new(false), task: cx.waker().clone() })
            }
        };
        let came = readable.yes.swap(false, Ordering::AcqRel);
        let waker = (came || self.unread).then(|| Waker::from(readable.clone()));
        self.readable = Some(readable);
        waker
    }
}

fn too_slow() -> Refusal {
    Refusal::new(Code::TooSlow, "nothing was read for too long while something waited")
}

fn unreadable(e: &CodecError) -> Refusal {
    let code = match e {
        CodecError::TooLarge { .. } => Code::FrameTooLarge,
        CodecError::Length | CodecError::Message(_) => Code::BadFrame,
    };
    Refusal::new(code, e.to_string())
}

/// Bytes appended.
fn encode(body: &DownBody, packs: bool, writer: &mut tern_net::frames::FrameWriter, refs: &mut Writer) -> usize {
    let out = writer.buffer();
    if out.capacity() == 0 {
        out.reserve(FIRST_RESERVE);
    }
    let before = out.len();
    match body {
        DownBody::Ack { req, ack } => refs.ack(*req, ack, out),
        DownBody::Push(push) => refs.push(push, out),
        DownBody::Page { req, page } => {
            let frame = v1::Frame::new(*req, Body::Page(page_to_wire(page)));
            let packed = if packs { packing::pack(&frame) } else { None };
            codec::put(&packed.unwrap_or(frame), out);
        }
        DownBody::Frame(frame) => codec::put(&**frame, out),
        DownBody::Last(_) => {}
    }
    out.len() - before
}

fn page_to_wire(page: &Page) -> v1::Page {
    let mut table = Table::default();
    let entries = page.entries.iter().map(|e| table.entry(e)).collect();
    v1::Page {
        conversation: bytes::Bytes::copy_from_slice(&page.conversation.0),
        origin: Some(page.origin.into()),
        origins: table.wire_origins,
        senders: table.wire_senders,
        entries,
        gaps: page
            .gaps
            .iter()
            .map(|(from, to, reason)| v1::Gap { from: *from, to: *to, reason: *reason as i32 })
            .collect(),
        last: page.last,
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
