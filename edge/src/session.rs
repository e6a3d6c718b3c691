//! The machine of one connection: which frame may come when, and on which lane.
//!
//! ```text
//! AwaitHello --Hello accepted, Open goes to the core--> Opening --Welcome from the core--> Live
//!      any of them --a refusal--> the connection is closed with its code
//! ```
//! Nothing is read while Opening: what a client sends with its Hello waits in the transport, so the core sees
//! no frame of a connection that it has not welcomed.
//!
//! Two kinds of trouble: what makes the rest of the stream unreadable, or what no client of ours would do,
//! closes the connection; what concerns one request is answered with an Error on that request. Frames of
//! kinds that are not known here come from newer clients and are no reason to close.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message;
use tern_core::buckets;
use tern_core::codes::{Code, Refusal};
use tern_core::edge_api::{ConnId, DownBody, SendRequest, Up};
use tern_core::ids::{Cursor, Origin};
use tern_core::limits::{CURSORS, SIGNAL_BYTES, UNSTABLE_PER_FRAME, VECTOR_ORIGINS, WATCHED};
use tern_core::mutants::{Mutant, on};
use tern_core::pacing::{Bucket, Rate};
use tern_core::pressure::Level;
use tern_core::wire::compact::{Read, Reader};
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{Lane, VERSION, convert, v1};

use crate::config::EdgeConfig;
use crate::load::Load;
use crate::metrics::EdgeMetrics;
use crate::pace::{Paces, UserPace};
use crate::tokens::{Claims, TokenError, TokenKeys};
use crate::tune::Tuning;

/// Before its token expires a client is told so, this long ahead: time to fetch a new one over a bad link.
pub(crate) const TOKEN_NOTICE_MS: u64 = 60_000;
/// Fresh tokens that a session may offer in vain before it is closed: each costs a signature check.
pub(crate) const BAD_TOKENS: u8 = 5;
/// Bytes of the client's name and version.
pub(crate) const AGENT_BYTES: usize = 64;
/// Origins per conversation in `Unstable`.
pub(crate) const UNSTABLE_ORIGINS: usize = 16;
/// Who is refused for overload is told to wait so long, and up to twice that.
const RETRY_MS: u32 = 2_000;
/// Signals per second and connection, in the long run: a person types in a few conversations at once.
const SIGNALS_PER_SECOND: u32 = 10;
/// And at once.
const SIGNALS_BURST: u32 = 20;
/// A Send that is timed and not answered by then is forgotten, and another one timed.
const UNANSWERED: Duration = Duration::from_secs(2);
/// Whether an edge has filled since a client came is looked at so often,
const SPREAD_EVERY: Duration = Duration::from_secs(2);
/// and for so long after its Welcome; later its Pongs tell, and no radio is woken.
const SPREAD_FOR: Duration = Duration::from_secs(60);
/// Shorter ones are no use to anybody.
const SPREAD_LEAST_MS: u32 = 250;
/// A session looks at the calendar at least this often, since that may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    AwaitHello,
    Opening,
    Live,
}

/// What the machine needs to know of its surroundings.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) conn: ConnId,
    pub(crate) peer: SocketAddr,
    pub(crate) transport: &'static str,
    pub(crate) now: Duration,
    pub(crate) wall_ms: u64,
    /// Open here.
    pub(crate) connections: usize,
    pub(crate) core_reachable: bool,
    /// All of the region can be served.
    pub(crate) core_whole: bool,
    /// Of the core: a session opened in an earlier one is unknown to it.
    pub(crate) core_generation: u64,
    pub(crate) draining: bool,
    /// Too many bytes wait for and of all clients together.
    pub(crate) pressed: bool,
    /// The core does not keep up with what it is told.
    pub(crate) crowded: bool,
    pub(crate) keys: &'a RwLock<Arc<TokenKeys>>,
    pub(crate) config: &'a EdgeConfig,
    pub(crate) tuning: &'a ArcSwap<Tuning>,
    pub(crate) paces: &'a Paces,
    pub(crate) load: &'a Load,
    pub(crate) metrics: &'a EdgeMetrics,
}

impl Context<'_> {
    fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        keys.verify(token, self.wall_ms, &self.config.audience)
    }
}

/// What the machine wants done.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// For the core, in order.
    pub(crate) ups: Vec<Up>,
    /// For the client, with the lane of the request.
    pub(crate) answers: Vec<(Lane, v1::Frame)>,
}

impl Outcome {
    fn refuse(&mut self, lane: Lane, req: u32, refusal: &Refusal) {
        self.answers.push((lane, v1::Frame::new(req, Body::Error(refusal.to_wire()))));
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    phase: Phase,
    /// For the Hello, then for the core's answer.
    deadline: Duration,
    pace: Option<Arc<UserPace>>,
    signals: Bucket,
    expires_ms: u64,
    noticed: bool,
    bad_tokens: u8,
    /// Requests other than pulls that wait for their answer.
    open: u32,
    /// A Send whose ack is timed, and when it was read.
    timed: Option<(u32, Duration)>,
    /// Pulls that wait for their last page.
    pulls: Vec<u32>,
    reader: Reader,
    /// Frames without an answer.
    notes: Bucket,
    told_address: Option<SocketAddr>,
    core_generation: u64,
    packs: bool,
    spread: Spread,
}

/// Over how long this client was told to come back, if its edge is gone with all others.
#[derive(Clone, Copy, Debug, Default)]
struct Spread {
    told_ms: u32,
    /// When to look whether it is much longer by now, and until when.
    look_at: Duration,
    until: Duration,
}

fn wrong(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::WrongMoment, what)
}

fn bad(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadFrame, what)
}

impl Session {
    pub(crate) fn new(now: Duration, hello_timeout: Duration) -> Self {
        Self {
            phase: Phase::AwaitHello,
            deadline: now + hello_timeout,
            pace: None,
            signals: Bucket::default(),
            expires_ms: 0,
            noticed: false,
            bad_tokens: 0,
            open: 0,
            timed: None,
            pulls: Vec::new(),
            reader: Reader::default(),
            notes: Bucket::default(),
            told_address: None,
            core_generation: 0,
            packs: false,
            spread: Spread::default(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the core was told of this session.
    pub(crate) fn is_open(&self) -> bool {
        self.phase != Phase::AwaitHello
    }

    /// The core that knows this session.
    pub(crate) fn core_generation(&self) -> u64 {
        self.core_generation
    }

    /// Whether the client unpacks frames.
    pub(crate) fn packs(&self) -> bool {
        self.packs
    }

    /// Requests that wait for an answer, and pulls that wait for their last page.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn under_way(&self) -> (u32, usize) {
        (self.open, self.pulls.len())
    }

    /// The user's allowance, to be given back at the end.
    pub(crate) fn take_pace(&mut self) -> Option<Arc<UserPace>> {
        self.pace.take()
    }

    /// Whether frames of this lane may be read now; `None` is a stream that carries all lanes. `bulk_full`:
    /// enough answers to pulls wait to be written.
    pub(crate) fn may_read(&self, lane: Option<Lane>, config: &EdgeConfig, bulk_full: bool) -> bool {
        match self.phase {
            Phase::AwaitHello => matches!(lane, None | Some(Lane::Control)),
            Phase::Opening => false,
            Phase::Live => {
                let pulls = self.pulls.len() < config.limits.pulls_in_flight && !bulk_full;
                self.open < config.limits.in_flight && (pulls || matches!(lane, Some(Lane::Control | Lane::Message)))
            }
        }
    }

    /// One frame from the client. An error closes the connection.
    pub(crate) fn frame(
        &mut self,
        lane: Option<Lane>,
        bytes: Bytes,
        cx: &Context<'_>,
        out: &mut Outcome,
    ) -> Result<(), Refusal> {
        let frame = v1::Frame::decode(bytes).map_err(|e| bad(format!("a frame that is not valid protobuf: {e}")))?;
        if self.phase == Phase::AwaitHello {
            return match frame.body {
                Some(Body::Hello(hello)) if lane.is_none_or(|l| l == Lane::Control) => {
                    self.hello(frame.req, hello, cx, out)
                }
                _ => Err(wrong("the first frame of a connection is Hello, on the control lane")),
            };
        }
        self.live(lane, frame, cx, out)
    }

    fn hello(&mut self, req: u32, mut hello: v1::Hello, cx: &Context<'_>, out: &mut Outcome) -> Result<(), Refusal> {
        if cx.draining {
            return Err(Refusal::new(Code::Draining, "this edge is about to stop; connect to another one"));
        }
        if !hello.versions.contains(&VERSION) {
            let text = format!("this edge speaks version {VERSION}; the client offers {:?}", first(&hello.versions));
            return Err(Refusal::new(Code::UnsupportedVersion, text));
        }
        let install = convert::install(&hello.install)?;
        if hello.cursors.len() > CURSORS {
            return Err(bad(format!("{} cursors; at most {CURSORS} are allowed", hello.cursors.len())));
        }
        for cursor in &hello.cursors {
            Cursor::try_from(*cursor)?;
        }
        check_unstable(&hello.unstable)?;
        if hello.agent.len() > AGENT_BYTES {
            return Err(bad(format!("an agent of {} bytes; at most {AGENT_BYTES} are allowed", hello.agent.len())));
        }
        if cx.pressed || cx.crowded {
            return Err(overloaded("this edge has more work waiting than it takes; come again, or elsewhere", cx));
        }
        let token = std::mem::take(&mut hello.token);
        let claims = cx.verify(&token).map_err(|e| e.refusal())?;
        if !(cx.core_reachable && cx.core_whole) {
            return Err(unreachable_core());
        }
        let Some(pace) = cx.paces.enter(&claims.sub, cx.config.limits.connections_per_user) else {
            return Err(overloaded("this user has too many connections to this edge; close some", cx));
        };
        self.phase = Phase::Opening;
        self.deadline = cx.now + cx.config.limits.open_timeout;
        self.expires_ms = claims.exp_ms;
        self.pace = Some(pace);
        self.told_address = Some(cx.peer);
        self.core_generation = cx.core_generation;
        self.packs = hello.packs;
        out.ups.push(Up::Open {
            conn: cx.conn,
            req,
            user: claims.sub,
            install,
            hello: Box::new(hello),
            address: cx.peer.to_string(),
            transport: cx.transport,
            token_expires_ms: claims.exp_ms,
            token_issued_ms: claims.iat_ms,
        });
        Ok(())
    }

    fn live(
        &mut self,
        lane: Option<Lane>,
        frame: v1::Frame,
        cx: &Context<'_>,
        out: &mut Outcome,
    ) -> Result<(), Refusal> {
        let own = frame.lane();
        if let (Some(on), Some(own)) = (lane, own)
            && on != own
        {
            return Err(wrong(format!("a frame of the {own:?} lane came on the {on:?} lane")));
        }
        let at = own.or(lane).unwrap_or(Lane::Control);
        let req = frame.req;
        if is_note(&frame) {
            let rate = Rate::new(cx.config.limits.notes_per_second, cx.config.limits.notes_burst);
            if self.notes.take(rate, cx.now).is_err() {
                let text = "more frames than a client has reason for, of kinds that have no answer";
                return Err(Refusal::new(Code::RateLimited, text).after_ms(RETRY_MS));
            }
        }
        match &frame.body {
            Some(Body::Send(_) | Body::Define(_)) => return self.compact(frame, cx, out),
            Some(Body::Ping(ping)) if !cx.core_reachable => {
                let rev_unknown = !on(Mutant::PongFromEdgeCache);
                let pong = v1::Pong { echo: ping.echo, rev_unknown, ..v1::Pong::default() };
                out.answers.push((at, v1::Frame::new(req, Body::Pong(pong))));
                return Ok(());
            }
            Some(Body::Ping(_) | Body::PullDevices(_)) => self.open += 1,
            Some(Body::Mark(mark)) => {
                if let Err(refusal) = check_mark(mark) {
                    return self.one(req, at, refusal, out);
                }
                self.open += 1;
            }
            Some(Body::RowHashes(hashes)) => {
                let check = check_hashes(hashes);
                return self.pull(check, frame, cx, out);
            }
            Some(Body::PushAck(_) | Body::Commit(_) | Body::Network(_)) => {}
            Some(Body::Unstable(unstable)) => {
                if let Err(refusal) = check_unstable(&unstable.logs) {
                    return self.one(req, at, refusal, out);
                }
            }
            Some(Body::PullRows(pull)) => {
                let check = pull.above.map(Cursor::try_from).transpose().map(|_| ());
                return self.pull(check, frame, cx, out);
            }
            Some(Body::Pull(pull)) => {
                let check = check_pull(pull);
                return self.pull(check, frame, cx, out);
            }
            Some(Body::Token(token)) => {
                let token = token.token.clone();
                return self.token(req, &token, cx, out);
            }
            Some(Body::Hello(_)) => return Err(wrong("a second Hello")),
            Some(Body::PullCells(pull)) => {
                let check = convert::conversation(&pull.conversation).map(|_| ());
                return self.pull(check, frame, cx, out);
            }
            Some(Body::PullEras(pull)) => {
                let named = pull.origins.len() <= VECTOR_ORIGINS;
                let check = convert::conversation(&pull.conversation)
                    .and_then(|_| if named { Ok(()) } else { Err(bad(format!("more than {VECTOR_ORIGINS} origins"))) });
                return self.pull(check, frame, cx, out);
            }
            Some(Body::Watch(watch)) => {
                let known = watch.users.len() <= WATCHED && watch.users.iter().all(|user| convert::user(user).is_ok());
                if !known {
                    return self.one(req, at, bad(format!("a Watch of more than {WATCHED} users, or of none")), out);
                }
            }
            Some(Body::Signal(signal)) => {
                // Nobody waits for one: what is too much, too long or for nobody is dropped.
                let fits = signal.body.len() <= SIGNAL_BYTES && convert::conversation(&signal.conversation).is_ok();
                if !fits || self.signals.take(Rate::new(SIGNALS_PER_SECOND, SIGNALS_BURST), cx.now).is_err() {
                    return Ok(());
                }
                if cx.load.level() >= Level::NoSignals {
                    cx.metrics.signals_dropped.inc();
                    return Ok(());
                }
            }
            None => {
                if req != 0 {
                    out.refuse(at, req, &bad("this version does not know such a frame; nothing was done"));
                }
                return Ok(());
            }
            Some(
                Body::Ack(_)
                | Body::Push(_)
                | Body::Pong(_)
                | Body::Advance(_)
                | Body::Stable(_)
                | Body::Presence(_)
                | Body::Spread(_)
                | Body::Welcome(_)
                | Body::GoAway(_)
                | Body::Kick(_)
                | Body::Error(_)
                | Body::Rows(_)
                | Body::Page(_)
                | Body::Marked(_)
                | Body::TokenTaken(_)
                | Body::Devices(_)
                | Body::Eras(_)
                | Body::Packed(_)
                | Body::Cells(_),
            ) => return Err(wrong("a frame that only servers send")),
        }
        if cx.core_reachable {
            out.ups.push(Up::Frame { conn: cx.conn, frame });
        }
        Ok(())
    }

    /// Refuses one request, or closes where nothing was asked.
    fn one(&mut self, req: u32, at: Lane, refusal: Refusal, out: &mut Outcome) -> Result<(), Refusal> {
        if req == 0 {
            return Err(refusal);
        }
        out.refuse(at, req, &refusal);
        Ok(())
    }

    fn compact(&mut self, frame: v1::Frame, cx: &Context<'_>, out: &mut Outcome) -> Result<(), Refusal> {
        let req = frame.req;
        let send = match self.reader.read(frame) {
            Ok(Read::Send(send)) => send,
            Ok(_) => return Ok(()),
            Err(refusal) if matches!(refusal.code, Code::BadReference | Code::BadFrame) => return Err(refusal),
            Err(refusal) => {
                cx.metrics.send_refused(refusal.code);
                return self.one(req, Lane::Message, refusal, out);
            }
        };
        if req == 0 {
            return Err(bad("a Send without req can't be answered"));
        }
        let refusal = if !cx.core_reachable {
            unreachable_core()
        } else if cx.crowded {
            overloaded("the core of this region does not keep up; this message was not stored", cx)
        } else if let Some(ms) = cx.load.refuses(cx.wall_ms, send.conversation) {
            Refusal::new(Code::Overloaded, "this edge has more to do than it can; nothing was stored").after_ms(ms)
        } else {
            match self.pace.as_ref().map_or(Ok(()), |pace| cx.paces.take(pace, cx.now)) {
                Ok(()) => {
                    self.open += 1;
                    if self.timed.is_none_or(|(_, since)| cx.now >= since + UNANSWERED) {
                        self.timed = Some((req, cx.now));
                    }
                    // The body on its own: it may wait in the core for long, and would keep all that was read with it.
                    let send = SendRequest { body: Bytes::copy_from_slice(&send.body), ..send };
                    out.ups.push(Up::Send { conn: cx.conn, req, send });
                    return Ok(());
                }
                Err(wait) => {
                    let ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).saturating_add(1);
                    let text = "more sends than a user may make; this one was not stored";
                    Refusal::new(Code::RateLimited, text).after_ms(ms)
                }
            }
        };
        cx.metrics.send_refused(refusal.code);
        out.refuse(Lane::Message, req, &refusal);
        Ok(())
    }

    fn pull(
        &mut self,
        check: Result<(), Refusal>,
        frame: v1::Frame,
        cx: &Context<'_>,
        out: &mut Outcome,
    ) -> Result<(), Refusal> {
        let req = frame.req;
        if req == 0 {
            return Err(bad("a pull without req can't be answered"));
        }
        if self.pulls.contains(&req) {
            return Err(bad(format!("a pull with req {req}, which another pull that waits has")));
        }
        if let Err(refusal) = check {
            out.refuse(Lane::Bulk, req, &refusal);
        } else if cx.core_reachable && (cx.pressed || cx.crowded) {
            out.refuse(Lane::Bulk, req, &overloaded("this edge has more work waiting than it takes", cx));
        } else if cx.core_reachable {
            self.pulls.push(req);
            out.ups.push(Up::Frame { conn: cx.conn, frame });
        } else {
            out.refuse(Lane::Bulk, req, &unreachable_core());
        }
        Ok(())
    }

    /// A fresh token for the living session. There is no answer when it is good.
    fn token(&mut self, req: u32, token: &str, cx: &Context<'_>, out: &mut Outcome) -> Result<(), Refusal> {
        let refusal = match cx.verify(token) {
            Ok(claims) if self.pace.as_ref().is_some_and(|pace| pace.id == claims.sub) => {
                if claims.exp_ms > self.expires_ms {
                    self.expires_ms = claims.exp_ms;
                    self.noticed = false;
                }
                let taken = v1::TokenTaken { token_expires_ms: self.expires_ms };
                if req != 0 {
                    out.answers.push((Lane::Control, v1::Frame::new(req, Body::TokenTaken(taken))));
                }
                return Ok(());
            }
            Ok(_) => Refusal::new(Code::TokenInvalid, "the token is another user's; the old one still counts"),
            Err(e) => e.refusal(),
        };
        self.bad_tokens += 1;
        if self.bad_tokens >= BAD_TOKENS {
            return Err(refusal);
        }
        out.refuse(Lane::Control, req, &refusal);
        Ok(())
    }

    /// Something for the client is about to be written: counts answers, and completes what only the edge
    /// knows. The lane to write it on, where the frame alone does not tell.
    pub(crate) fn down(&mut self, body: &mut DownBody, cx: &Context<'_>) -> Option<Lane> {
        match body {
            DownBody::Ack { req, .. } => {
                self.open = self.open.saturating_sub(1);
                if let Some((_, read)) = self.timed.take_if(|(timed, _)| timed == req) {
                    cx.load.answered(cx.now, cx.now.saturating_sub(read));
                }
            }
            DownBody::Page { req, page } if page.last => self.pulls.retain(|r| r != req),
            DownBody::Frame(frame) => {
                let req = frame.req;
                match &mut frame.body {
                    Some(Body::Welcome(welcome)) if self.phase == Phase::Opening => {
                        self.phase = Phase::Live;
                        complete(welcome, cx);
                        let (look_at, until) = (cx.now + SPREAD_EVERY, cx.now + SPREAD_FOR);
                        self.spread = Spread { told_ms: welcome.spread_ms, look_at, until };
                    }
                    Some(Body::Pong(pong)) => {
                        pong.spread_ms = spread_ms(cx);
                        self.spread.told_ms = pong.spread_ms;
                        self.open = self.open.saturating_sub(u32::from(!pong.again));
                        if self.told_address != Some(cx.peer) {
                            self.told_address = Some(cx.peer);
                            pong.seen_address = cx.peer.to_string();
                        }
                    }
                    Some(Body::Rows(_) | Body::Cells(_) | Body::Eras(_)) => self.pulls.retain(|r| *r != req),
                    Some(Body::Marked(_) | Body::Devices(_)) => self.open = self.open.saturating_sub(1),
                    Some(Body::Error(_)) if req != 0 => {
                        let before = self.pulls.len();
                        self.pulls.retain(|r| *r != req);
                        if self.pulls.len() < before {
                            return Some(Lane::Bulk);
                        }
                        self.open = self.open.saturating_sub(1);
                        self.timed.take_if(|(timed, _)| *timed == req);
                    }
                    _ => {}
                }
            }
            DownBody::Page { .. } | DownBody::Push(_) | DownBody::Last(_) => {}
        }
        None
    }

    /// Time passes. An error closes the connection.
    pub(crate) fn tick(&mut self, cx: &Context<'_>, out: &mut Outcome) -> Result<(), Refusal> {
        match self.phase {
            Phase::AwaitHello if cx.now >= self.deadline => {
                Err(Refusal::new(Code::HelloTimeout, "no Hello came in time"))
            }
            Phase::Opening if cx.now >= self.deadline => {
                Err(Refusal::new(Code::CoreUnreachable, "the core of this region does not answer"))
            }
            Phase::Live if cx.wall_ms >= self.expires_ms => {
                Err(Refusal::new(Code::TokenExpired, "the token of this session has expired"))
            }
            Phase::Live if !self.noticed && cx.wall_ms + TOKEN_NOTICE_MS >= self.expires_ms => {
                self.noticed = true;
                let text = "the token of this session expires within a minute; send a fresh one";
                out.refuse(Lane::Control, 0, &Refusal::new(Code::TokenExpired, text));
                Ok(())
            }
            _ => {
                self.tell_spread(cx, out);
                Ok(())
            }
        }
    }

    /// An edge fills within seconds where another was lost, and whoever came first was told of few.
    fn tell_spread(&mut self, cx: &Context<'_>, out: &mut Outcome) {
        if self.phase != Phase::Live || !self.looks_at_spread(cx.now) || cx.now < self.spread.look_at {
            return;
        }
        self.spread.look_at = cx.now + SPREAD_EVERY;
        let spread_ms = spread_ms(cx);
        if spread_ms / 2 >= self.spread.told_ms.max(SPREAD_LEAST_MS) {
            self.spread.told_ms = spread_ms;
            out.answers.push((Lane::Control, v1::Frame::new(0, Body::Spread(v1::Spread { spread_ms }))));
        }
    }

    fn looks_at_spread(&self, now: Duration) -> bool {
        now < self.spread.until
    }

    /// When [`Self::tick`] is due.
    pub(crate) fn next_deadline(&self, now: Duration, wall_ms: u64) -> Duration {
        match self.phase {
            Phase::AwaitHello | Phase::Opening => self.deadline,
            Phase::Live => {
                let notice = if self.noticed { 0 } else { TOKEN_NOTICE_MS };
                let left = self.expires_ms.saturating_sub(notice).saturating_sub(wall_ms);
                let token = now + Duration::from_millis(left).min(LOOK_AGAIN);
                if self.looks_at_spread(now) { token.min(self.spread.look_at) } else { token }
            }
        }
    }
}

fn complete(welcome: &mut v1::Welcome, cx: &Context<'_>) {
    welcome.edge.clone_from(&cx.config.name);
    welcome.seen_address = cx.peer.to_string();
    welcome.spread_ms = spread_ms(cx);
    if let Some(heartbeat) = cx.tuning.load().heartbeat {
        welcome.heartbeat = Some(heartbeat);
    }
    if let Some(limits) = &mut welcome.limits {
        limits.in_flight = limits.in_flight.min(cx.config.limits.in_flight);
    }
}

/// Over how long all clients of this edge are to come back, should it be gone at once.
fn spread_ms(cx: &Context<'_>) -> u32 {
    let ms = cx.connections.saturating_mul(1000) / cx.config.limits.return_per_second.max(1) as usize;
    u32::try_from(ms).unwrap_or(u32::MAX)
}

/// Nothing in flight is counted for it, so its rate is limited instead.
fn is_note(frame: &v1::Frame) -> bool {
    match &frame.body {
        None
        | Some(
            Body::PushAck(_)
            | Body::Commit(_)
            | Body::Network(_)
            | Body::Watch(_)
            | Body::Unstable(_)
            | Body::Token(_)
            | Body::Signal(_),
        ) => true,
        Some(Body::Ping(_) | Body::PullDevices(_) | Body::Mark(_)) => frame.req == 0,
        Some(_) => false,
    }
}

/// Whoever is refused comes again at a time of his own.
fn overloaded(what: &str, cx: &Context<'_>) -> Refusal {
    let spread = u32::try_from(cx.conn.wrapping_mul(2_654_435_761) % u64::from(RETRY_MS)).unwrap_or(0);
    Refusal::new(Code::Overloaded, what).after_ms(RETRY_MS + spread)
}

pub(crate) fn unreachable_core() -> Refusal {
    Refusal::new(Code::CoreUnreachable, "this edge can't reach the core of its region; connect to another one")
}

/// Enough of a list to see what is wrong with it.
fn first(versions: &[u32]) -> &[u32] {
    versions.get(..8).unwrap_or(versions)
}

fn check_unstable(logs: &[v1::UnstableLog]) -> Result<(), Refusal> {
    if logs.len() > UNSTABLE_PER_FRAME {
        return Err(bad(format!("{} unstable conversations; at most {UNSTABLE_PER_FRAME} a frame", logs.len())));
    }
    for log in logs {
        convert::conversation(&log.conversation)?;
        if log.origins.len() > UNSTABLE_ORIGINS {
            return Err(bad(format!("{} origins of one conversation; at most {UNSTABLE_ORIGINS}", log.origins.len())));
        }
        for origin in &log.origins {
            Origin::try_from(*origin)?;
        }
    }
    Ok(())
}

fn check_pull(pull: &v1::PullEntries) -> Result<(), Refusal> {
    convert::conversation(&pull.conversation)?;
    convert::origin(pull.origin)?;
    if pull.from == 0 || pull.to < pull.from {
        return Err(bad("a range that is none: 1 <= from <= to"));
    }
    Ok(())
}

fn check_mark(mark: &v1::Mark) -> Result<(), Refusal> {
    convert::conversation(&mark.conversation)?;
    if mark.read.len() > VECTOR_ORIGINS {
        return Err(bad("a read mark of more origins than 256"));
    }
    mark.read.iter().try_for_each(|h| convert::origin(h.origin).map(|_| ()))
}

fn check_hashes(hashes: &v1::RowHashes) -> Result<(), Refusal> {
    let (total, first) = (hashes.total as usize, hashes.first_bucket as usize);
    if total != buckets::FEW && total != buckets::MANY || first >= total || hashes.buckets.len() != total - first {
        return Err(bad("hashes of 64 or 512 buckets, from the first asked for to the last"));
    }
    hashes.at.map(Cursor::try_from).transpose().map(|_| ())
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
