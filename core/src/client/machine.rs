//! The client as one machine: inputs, steps, and what ties its parts together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::data::{ConversationRecord, Image, MessageId, MessageState, Op, OriginState};
use super::engine::{Candidate, ConnNo, Engine, EngineOut, Failure, Transport};
use super::limits::UNSTABLE_ASK_FIRST;
use super::outbox::{Outbox, Own};
use super::session::{Due, Session};
use crate::codes::Code;
use crate::edge_api::SendRequest;
use crate::ids::{ConvId, Cursor, InstallId, Origin, Region, Seq, UserId};
use crate::limits::{CURSORS, UNSTABLE_PER_FRAME};
use crate::wire::compact::Read;
use crate::wire::v1::{self, error::Retry, frame::Body};
use crate::wire::{VERSION, v1::gap::Reason};

/// What a machine is told once.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Whose client this is: the subject of its tokens.
    pub user: UserId,
    /// Client name and version, for operators.
    pub agent: String,
    /// Edges to try without or beside dispatch.
    pub fallback: Vec<Candidate>,
    /// Number of dispatch addresses.
    pub dispatch_targets: usize,
    /// Randomness of this run.
    pub seed: u64,
}

/// Changes of what is kept, and what to do once they are durable.
#[derive(Debug, Default)]
pub struct Step {
    /// To be applied in one transaction. If that fails, the machine is to be built anew from the store.
    pub ops: Vec<Op>,
    /// In order, after `ops`.
    pub effects: Vec<Effect>,
}

/// Something to be done outside.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "the largest is the most frequent; it is moved twice and never kept")]
pub enum Effect {
    /// Connect, open the lanes, write `hello`.
    Connect {
        /// Number of the attempt, and of the connection if it succeeds.
        conn: ConnNo,
        /// Where to.
        candidate: Candidate,
        /// By what.
        transport: Transport,
        /// The first frame, on the control lane.
        hello: Hello,
    },
    /// Close it; nothing of it is to be handed in any more.
    Close {
        /// Which.
        conn: ConnNo,
        /// The code to close with.
        code: Code,
    },
    /// Write a frame.
    Write {
        /// Where.
        conn: ConnNo,
        /// What.
        out: Outbound,
    },
    /// Ask a dispatch address; [`Machine::dispatched`] or [`Machine::dispatch_failed`] answers.
    Dispatch {
        /// Index into the configured addresses.
        target: usize,
        /// Edges that failed.
        exclude: Vec<String>,
    },
    /// Get a token; [`Machine::token`] answers.
    Token {
        /// The last one was refused: a kept one is of no use.
        refused: bool,
    },
    /// Tell the application.
    Event(Event),
}

/// The first frame of a connection. It carries the token, so it is not printed.
#[derive(Clone)]
pub struct Hello(pub Box<v1::Frame>);

impl fmt::Debug for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hello(..)")
    }
}

/// A frame to be written. Printed without its content: that may be a token or a letter.
#[derive(Clone)]
pub enum Outbound {
    /// A message, for the message lane, with its request number.
    Send(u32, SendRequest),
    /// Any other frame; its lane is `Frame::lane`.
    Frame(v1::Frame),
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(req, send) => write!(f, "Send(req {req}, {:?}, n {})", send.conversation, send.n),
            Self::Frame(frame) => write!(f, "Frame(req {}, {:?})", frame.req, frame.lane()),
        }
    }
}

/// Whether and how the client is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Not started, closed, or taken over by another connection of this install.
    Offline,
    /// Trying; where nothing is under way, `retry_at` on the client's clock says when it goes on.
    Connecting {
        /// See above.
        retry_at: Option<Duration>,
    },
    /// Connected; sends work; what was missed is still coming.
    Recovering {
        /// Name of the edge.
        edge: String,
        /// Name of the region.
        region: String,
        /// By what.
        transport: Transport,
        /// Conversations of which entries are missing.
        behind: usize,
    },
    /// Connected and up to date.
    Live {
        /// Name of the edge.
        edge: String,
        /// Name of the region.
        region: String,
        /// By what.
        transport: Transport,
    },
}

/// What the application is told. Changes of timelines come from the store, see [`super::Change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection's state changed.
    Connection(ConnectionState),
    /// Durable in one region.
    Sent {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
    },
    /// Durable in so many regions.
    Stable {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
        /// At least 2, unless the deployment has one region.
        regions: u32,
    },
    /// Refused; holds back what follows in its conversation until retried or discarded.
    Failed {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
        /// See [`Code`].
        code: u32,
        /// The server's words, for a developer.
        message: String,
    },
    /// Released before it was stable, because more is waiting than is kept.
    AtRisk {
        /// Where.
        conversation: ConvId,
        /// Which message.
        id: MessageId,
    },
    /// Acked messages are offered to the connected region, which lacks them.
    ReOffered {
        /// Where.
        conversation: ConvId,
        /// How many.
        count: usize,
    },
    /// Entries can't be had, for good.
    Gap {
        /// Where.
        conversation: ConvId,
        /// Whose log.
        origin: Origin,
        /// First.
        from: Seq,
        /// Last.
        to: Seq,
        /// Why.
        reason: Reason,
    },
    /// The server ended this client: it stays offline until the application connects again.
    Kicked {
        /// See [`Code`].
        code: u32,
        /// The server's words.
        message: String,
    },
    /// A conversation's id became known: what had `from` has `to` now.
    Renamed {
        /// Made without the deployment's salt.
        from: ConvId,
        /// The real one.
        to: ConvId,
    },
}

/// Why a message was not taken into the outbox. Nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendRefused {
    /// Longer than a body may be.
    #[error("a body of {0} bytes; at most {max} are allowed", max = crate::limits::BODY_BYTES)]
    TooLarge(usize),
    /// Too much waits to be sent.
    #[error("the outbox is full: {messages} messages, {bytes} bytes wait to be sent")]
    OutboxFull {
        /// Messages in it.
        messages: usize,
        /// Bytes in it.
        bytes: usize,
    },
    /// No such conversation on this device.
    #[error("conversation {0} is not known here")]
    UnknownConversation(ConvId),
}

/// The message is not in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {0} is not waiting in the outbox")]
pub struct UnknownMessage(pub MessageId);

/// Why a message was not discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscardRefused {
    /// See [`UnknownMessage`].
    #[error(transparent)]
    Unknown(#[from] UnknownMessage),
    /// It may be durable already: only its ack or a refusal can tell.
    #[error("message {0} may have been sent already and can't be discarded")]
    MayBeSent(MessageId),
}

#[derive(Debug)]
pub(super) struct Conv {
    pub(super) record: ConversationRecord,
    pub(super) origins: BTreeMap<Origin, OriginState>,
    /// Pulls that found nothing: when to try again, and how often that was.
    pub(super) pauses: BTreeMap<Origin, (Duration, u32)>,
    pub(super) outbox: Outbox,
}

/// A token in memory.
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// See [`crate::client`].
#[derive(Debug)]
pub struct Machine {
    pub(super) setup: Setup,
    pub(super) install: InstallId,
    pub(super) salt: Option<Bytes>,
    pub(super) next_id: u64,
    pub(super) cursors: BTreeMap<Region, Cursor>,
    pub(super) convs: BTreeMap<ConvId, Conv>,
    /// Conversations with un-acked messages.
    pub(super) sending: BTreeSet<ConvId>,
    /// Conversations with acked messages that are not stable.
    pub(super) unstable: BTreeSet<ConvId>,
    /// Conversations of which something is to be pulled.
    pub(super) wanting: BTreeSet<ConvId>,
    pub(super) last_served: ConvId,
    /// The region that offers were asked by.
    offers_to: Option<Region>,
    pub(super) queued: (usize, usize),
    pub(super) kept: (usize, usize),
    pub(super) engine: Engine,
    pub(super) session: Option<Session>,
    installs: BTreeMap<ConnNo, InstallId>,
    token: Option<Secret>,
    token_refused: bool,
    /// A token was asked for and is awaited.
    token_asked: bool,
    pub(super) rng: StdRng,
    pub(super) ops: Vec<Op>,
    pub(super) dirty_convs: BTreeSet<ConvId>,
    pub(super) dirty_vectors: BTreeSet<(ConvId, Origin)>,
    pub(super) effects: Vec<Effect>,
    told: ConnectionState,
}

impl Machine {
    /// From what is kept. Nothing is connected until [`Self::connect`].
    pub fn new(setup: Setup, image: Image) -> Self {
        let mut rng = StdRng::seed_from_u64(setup.seed);
        let engine = Engine::new(setup.fallback.clone(), setup.dispatch_targets, rng.random());
        let mut machine = Self {
            setup,
            install: image.install,
            salt: image.salt,
            next_id: image.next_id.max(1),
            cursors: image.cursors,
            convs: BTreeMap::new(),
            sending: BTreeSet::new(),
            unstable: BTreeSet::new(),
            wanting: BTreeSet::new(),
            last_served: ConvId([0; 16]),
            offers_to: None,
            queued: (0, 0),
            kept: (0, 0),
            engine,
            session: None,
            installs: BTreeMap::new(),
            token: None,
            token_refused: false,
            token_asked: false,
            rng,
            ops: Vec::new(),
            dirty_convs: BTreeSet::new(),
            dirty_vectors: BTreeSet::new(),
            effects: Vec::new(),
            told: ConnectionState::Offline,
        };
        for (id, c) in image.conversations {
            if c.origins.values().any(|o| !o.missing().is_empty()) {
                machine.wanting.insert(id);
            }
            let conv =
                Conv { record: c.record, origins: c.origins, pauses: BTreeMap::new(), outbox: Outbox::default() };
            machine.convs.insert(id, conv);
        }
        for out in image.outgoing {
            let (id, conversation, size) = (out.record.id, out.record.conversation, out.body.len());
            let sent = out.record.state == MessageState::Sent;
            let own = Own::new(out, true);
            let conv = machine.conv(conversation);
            if sent {
                conv.outbox.unstable.insert(id, own);
                machine.unstable.insert(conversation);
                machine.kept = (machine.kept.0 + 1, machine.kept.1 + size);
            } else {
                conv.outbox.queue.insert(id, own);
                machine.sending.insert(conversation);
                machine.queued = (machine.queued.0 + 1, machine.queued.1 + size);
            }
        }
        machine
    }

    /// The conversation; made if it is not known.
    pub(super) fn conv(&mut self, id: ConvId) -> &mut Conv {
        self.convs.entry(id).or_insert_with(|| {
            self.dirty_convs.insert(id);
            let record = ConversationRecord::new(id, None);
            Conv { record, origins: BTreeMap::new(), pauses: BTreeMap::new(), outbox: Outbox::default() }
        })
    }

    pub(super) fn fresh_id(&mut self) -> MessageId {
        self.next_id += 1;
        MessageId(self.next_id - 1)
    }

    pub(super) fn event(&mut self, event: Event) {
        self.effects.push(Effect::Event(event));
    }

    pub(super) fn write(&mut self, out: Outbound) {
        if let Some(session) = &self.session {
            self.effects.push(Effect::Write { conn: session.conn, out });
        }
    }

    pub(super) fn write_frame(&mut self, req: u32, body: Body) {
        self.write(Outbound::Frame(v1::Frame::new(req, body)));
    }

    /// The user this client belongs to.
    pub fn user(&self) -> &UserId {
        &self.setup.user
    }

    /// The install id of new messages.
    pub fn install(&self) -> &InstallId {
        &self.install
    }

    /// All conversations, in order of their ids.
    pub fn conversations(&self) -> impl Iterator<Item = &ConversationRecord> {
        self.convs.values().map(|c| &c.record)
    }

    /// Messages in the outbox that are not acked, and those acked and not stable.
    pub fn waiting(&self) -> (usize, usize) {
        (self.queued.0, self.kept.0)
    }

    /// The smoothed round trip of the connection in use.
    pub fn round_trip(&self) -> Option<Duration> {
        self.session.as_ref().and_then(Session::srtt)
    }

    // ---- inputs --------------------------------------------------------------------------------------

    /// Connects, or does so now instead of later: at the start, on the application's wish.
    pub fn connect(&mut self, now: Duration) {
        self.engine.connect(now);
        self.after(now);
    }

    /// The device's network changed: what was known of addresses and back-offs is void, and the connection in
    /// use has to show that it lives.
    pub fn network_changed(&mut self, now: Duration) {
        self.engine.connect(now);
        if self.session.is_some() {
            self.send_ping(now);
        }
        self.after(now);
    }

    /// Closes the connection and makes none until [`Self::connect`].
    pub fn stop(&mut self, now: Duration) {
        self.engine.stop();
        self.after(now);
    }

    /// A token came, or none was to be had.
    pub fn token(&mut self, now: Duration, token: Option<String>) {
        self.token_asked = false;
        if let Some(token) = token {
            if self.session.is_some() {
                self.write_frame(0, Body::Token(v1::Token { token: token.clone() }));
            }
            self.token = Some(Secret(token));
            self.token_refused = false;
            self.engine.token_ready(now);
        } else if self.session.is_none() {
            self.engine.token_failed(now);
        }
        self.after(now);
    }

    /// A dispatch answer: its candidates, how long they hold, and its text for the store.
    pub fn dispatched(&mut self, now: Duration, wall_ms: u64, list: Vec<Candidate>, ttl: Duration, answer: Bytes) {
        if !list.is_empty() {
            self.ops.push(Op::Dispatch { answer, wall_ms });
        }
        self.engine.dispatched(now, list, ttl);
        self.after(now);
    }

    /// The candidates of a kept dispatch answer, and how long they still hold.
    pub fn cached_dispatch(&mut self, now: Duration, list: Vec<Candidate>, ttl: Duration) {
        self.engine.cached(now, list, ttl);
    }

    /// The dispatch request failed.
    pub fn dispatch_failed(&mut self, now: Duration) {
        self.engine.dispatch_failed(now);
        self.after(now);
    }

    /// A connection or an attempt ended by itself.
    pub fn ended(&mut self, now: Duration, conn: ConnNo, failure: &Failure) {
        let of_session = self.session.as_ref().is_some_and(|s| s.conn == conn);
        if self.installs.remove(&conn).is_none() && !of_session {
            // One that was replaced or given up: nothing of it counts any more.
            return;
        }
        self.end_session(conn);
        if let Failure::Refused { retry: Retry::NewToken, .. } = failure {
            self.token = None;
            self.token_refused = true;
        }
        if let Failure::Refused { code, retry: Retry::Never, .. } = failure
            && matches!(Code::from_u32(*code), Some(Code::Replaced | Code::TooManyDevices))
        {
            self.kicked(now, *code, String::new());
            return;
        }
        self.engine.ended(now, conn, failure);
        self.after(now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        self.after(now);
    }

    /// A frame was read; `req` is the frame's.
    pub fn frame(&mut self, now: Duration, conn: ConnNo, req: u32, read: Read) {
        let of_session = self.session.as_ref().is_some_and(|s| s.conn == conn);
        if of_session {
            if let Some(session) = &mut self.session {
                session.heard(now);
                if session.leaving {
                    session.leaving = false;
                    self.engine.heard();
                }
            }
            if let Err(what) = self.session_frame(now, req, read) {
                self.broken(now, conn, &what);
            }
        } else if self.installs.contains_key(&conn) {
            self.attempt_frame(now, conn, read);
        }
    }

    /// All frames that were there have been handed in: send what may be sent now. Call it once after a batch
    /// of [`Self::frame`].
    pub fn frames_done(&mut self, now: Duration) {
        self.after(now);
    }

    fn broken(&mut self, now: Duration, conn: ConnNo, what: &crate::codes::Refusal) {
        self.effects.push(Effect::Close { conn, code: what.code });
        self.end_session(conn);
        self.installs.remove(&conn);
        self.engine.ended(now, conn, &Failure::Network(format!("the edge sent what can't be read: {what}")));
    }

    fn attempt_frame(&mut self, now: Duration, conn: ConnNo, read: Read) {
        let Read::Other(frame) = read else { return };
        match frame.body {
            Some(Body::Welcome(welcome)) => self.welcomed(now, conn, welcome),
            Some(Body::Error(error)) => {
                self.effects.push(Effect::Close { conn, code: Code::Closed });
                let failure = failure_of(&error);
                self.ended(now, conn, &failure);
            }
            Some(Body::Kick(kick)) => self.kicked(now, kick.code, kick.message),
            _ => {}
        }
    }

    fn welcomed(&mut self, now: Duration, conn: ConnNo, welcome: v1::Welcome) {
        let cursor = match welcome.cursor.map(Cursor::try_from) {
            Some(Ok(cursor)) if welcome.version == VERSION => cursor,
            _ => {
                let what =
                    crate::codes::Refusal::new(Code::BadFrame, "a Welcome without a cursor or of another version");
                self.broken(now, conn, &what);
                return;
            }
        };
        let age = self.engine.attempt_age(now, conn);
        let Some(install) = self.installs.remove(&conn).filter(|_| self.engine.welcomed(now, conn)) else { return };
        self.run_engine(now);
        let Some((_, candidate, transport)) = self.engine.live() else { return };
        let name = |told: String, listed: &str| if told.is_empty() { listed.to_owned() } else { told };
        let names = (name(welcome.edge, &candidate.edge), name(welcome.region, &candidate.region));
        let heartbeat = welcome.heartbeat.map_or(0, |h| h.foreground_ms);
        let in_flight = welcome.limits.map_or(0, |l| l.in_flight);
        let mut session = Session::new(now, conn, install, names, transport, cursor, heartbeat, in_flight);
        if let Some(age) = age {
            // Handshake and Hello: two round trips over QUIC, three over TCP+TLS.
            session.measured(age / if transport == Transport::Quic { 2 } else { 3 });
        }
        session.unstable_at = (!self.unstable.is_empty()).then_some(now + UNSTABLE_ASK_FIRST);
        let listed = self.unstable.iter().take(UNSTABLE_PER_FRAME);
        session.asked = listed.flat_map(|id| self.unstable_origins(*id).into_iter().map(|o| (*id, o))).collect();
        if self.offers_to != Some(cursor.store.region) {
            self.offers_to = Some(cursor.store.region);
            self.convs.values_mut().for_each(|c| c.outbox.offers.clear());
        }
        self.session = Some(session);
        self.learn_salt(welcome.direct_salt);
        self.commit();
        let result = match welcome.rows {
            Some(rows) => self.rows(now, rows, self.cursors.get(&cursor.store.region).copied()),
            None => Ok(()),
        };
        if let Err(what) = result {
            self.broken(now, conn, &what);
            return;
        }
        self.want_rows(now);
        self.mark_wanting();
    }

    fn commit(&mut self) {
        if let Some((race, attempt)) = self.engine.live_race() {
            self.write_frame(0, Body::Commit(v1::Commit { race, attempt }));
        }
    }

    /// The server ended this client. Where another connection of this very client is under way, that is what
    /// it was replaced by.
    pub(super) fn kicked(&mut self, now: Duration, code: u32, message: String) {
        if code == Code::Replaced as u32 && !self.installs.is_empty() {
            if let Some(conn) = self.session.as_ref().map(|s| s.conn) {
                self.effects.push(Effect::Close { conn, code: Code::Closed });
                self.end_session(conn);
                self.engine.ended(now, conn, &Failure::Renew);
            }
            return;
        }
        self.event(Event::Kicked { code, message });
        self.engine.stop();
        self.after(now);
    }

    /// Many requests may be refused for one expired token: it is asked for once.
    pub(super) fn ask_token(&mut self, refused: bool) {
        if !std::mem::replace(&mut self.token_asked, true) {
            self.effects.push(Effect::Token { refused });
        }
    }

    /// A Kick, or an Error without a request, on the connection in use.
    pub(super) fn session_error(&mut self, now: Duration, error: &v1::Error) {
        match failure_of(error) {
            Failure::Refused { code, .. } if Code::from_u32(code) == Some(Code::Replaced) => {
                self.kicked(now, code, error.message.clone());
            }
            Failure::Refused { retry: Retry::NewToken, .. } => self.ask_token(true),
            failure @ Failure::Refused { retry: Retry::Elsewhere, .. } => self.engine.leave(now, &failure),
            _ => {}
        }
    }

    pub(super) fn go_away(&mut self, now: Duration, go: &v1::GoAway) {
        self.engine.go_away(now, Duration::from_millis(go.window_ms.into()), &go.alternates);
    }

    fn end_session(&mut self, conn: ConnNo) {
        if self.session.as_ref().is_some_and(|s| s.conn == conn) {
            self.session = None;
            for id in self.sending.union(&self.unstable) {
                if let Some(conv) = self.convs.get_mut(id) {
                    conv.outbox.disconnected();
                }
            }
            self.convs.values_mut().for_each(|c| {
                c.outbox.known_in_session = false;
                c.pauses.clear();
            });
        }
    }

    fn run_engine(&mut self, now: Duration) {
        while let Some(out) = self.engine.poll_output() {
            match out {
                EngineOut::Start { conn, candidate, transport, race, attempt } => {
                    let Some(token) = self.token.as_ref().map(|t| t.0.clone()) else {
                        self.engine.token_failed(now);
                        continue;
                    };
                    let install = self.wanted_install();
                    let hello = self.hello(token, &install, race, attempt);
                    self.installs.insert(conn, install);
                    let hello = Hello(Box::new(v1::Frame::new(1, Body::Hello(hello))));
                    self.effects.push(Effect::Connect { conn, candidate, transport, hello });
                }
                EngineOut::Close(conn) => {
                    self.installs.remove(&conn);
                    self.end_session(conn);
                    self.effects.push(Effect::Close { conn, code: Code::Closed });
                }
                EngineOut::Dispatch { target, exclude } => self.effects.push(Effect::Dispatch { target, exclude }),
                EngineOut::Token if self.token.is_some() && !self.token_refused => self.engine.token_ready(now),
                EngineOut::Token => self.ask_token(self.token_refused),
            }
        }
    }

    fn hello(&self, token: String, install: &InstallId, race: u64, attempt: u32) -> v1::Hello {
        v1::Hello {
            versions: vec![VERSION],
            token,
            install: install.as_str().to_owned(),
            cursors: self.cursors.values().take(CURSORS).map(|c| (*c).into()).collect(),
            race,
            attempt,
            network: None,
            foreground: true,
            unstable: self.unstable.iter().take(UNSTABLE_PER_FRAME).filter_map(|id| self.unstable_log(*id)).collect(),
            early: false,
            agent: self.setup.agent.clone(),
        }
    }

    pub(super) fn send_ping(&mut self, now: Duration) {
        let jitter = self.rng.random_range(900..=1000);
        if let Some(session) = &mut self.session {
            let echo = session.ping(now, jitter);
            let req = session.fresh_req();
            self.write_frame(req, Body::Ping(v1::Ping { echo, foreground: true }));
        }
    }

    /// What follows from any input.
    fn after(&mut self, now: Duration) {
        self.engine.tick(now);
        self.run_engine(now);
        for _ in 0..4 {
            let jitter = self.rng.random_range(900..=1000);
            match self.session.as_mut().and_then(|s| s.due(now, jitter).map(|due| (due, s.fresh_req()))) {
                Some((Due::Ping(echo), req)) => self.write_frame(req, Body::Ping(v1::Ping { echo, foreground: true })),
                Some((Due::Silent, _)) => self.engine.leave(now, &Failure::Silent),
                Some((Due::Stuck, _)) => self.engine.leave(now, &Failure::Stuck),
                None => break,
            }
        }
        self.pump(now);
        self.synchronize(now);
        self.run_engine(now);
        let state = self.connection();
        if state != self.told {
            self.told = state.clone();
            self.event(Event::Connection(state));
        }
    }

    /// Whether and how the client is connected.
    pub fn connection(&self) -> ConnectionState {
        match &self.session {
            None if self.engine.is_running() => ConnectionState::Connecting { retry_at: self.engine.retry_at() },
            None => ConnectionState::Offline,
            Some(s) => {
                let (edge, region, transport) = (s.edge.clone(), s.region.clone(), s.transport);
                if s.caught_up {
                    ConnectionState::Live { edge, region, transport }
                } else {
                    ConnectionState::Recovering { edge, region, transport, behind: self.wanting.len() }
                }
            }
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Duration> {
        let session = self.session.as_ref().and_then(Session::next_deadline);
        let sends = self.session.as_ref().and_then(|_| self.send_deadline());
        let pulls = self.session.as_ref().and_then(|_| self.pull_deadline());
        [self.engine.next_deadline(), session, sends, pulls].into_iter().flatten().min()
    }

    /// What has come up since the last call; empty when nothing has.
    pub fn take_step(&mut self) -> Step {
        for id in std::mem::take(&mut self.dirty_convs) {
            if let Some(conv) = self.convs.get(&id) {
                self.ops.push(Op::Conversation(conv.record.clone()));
            }
        }
        for (id, origin) in std::mem::take(&mut self.dirty_vectors) {
            if let Some(state) = self.convs.get(&id).and_then(|c| c.origins.get(&origin)) {
                self.ops.push(Op::Vector { conversation: id, origin, state: state.clone() });
            }
        }
        Step { ops: std::mem::take(&mut self.ops), effects: std::mem::take(&mut self.effects) }
    }
}

/// An Error frame as the engine sees it. The advice on the wire counts: codes may be newer than this client.
pub(super) fn failure_of(error: &v1::Error) -> Failure {
    Failure::Refused {
        code: error.code,
        retry: Retry::try_from(error.retry).unwrap_or(Retry::Elsewhere),
        after: Duration::from_millis(error.retry_after_ms.into()),
    }
}
