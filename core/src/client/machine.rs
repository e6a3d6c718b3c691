//! The client as one machine: inputs, steps, and what ties its parts together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::candidates::{Candidate, ConnNo, Failure};
use super::data::{ConversationRecord, Image, MessageId, MessageState, Op, OriginState};
use super::effects::{ConnectionState, Effect, Event, Outbound, Setup, Step};
use super::engine::Engine;
use super::groups::Giving;
use super::lifecycle::Suspect;
use super::limits::BEAT_JITTER;
use super::marks::wants_mark;
use super::networks::{NetInfo, Networks};
use super::outbox::{Outbox, Own};
use super::presence::Watching;
use super::saving::Saving;
use super::session::{Due, Request, Session};
use crate::codes::Code;
use crate::entry::Entry;
use crate::fold::Fold;
use crate::ids::{ConvId, Cursor, Identity, InstallId, Origin, Region, UserId};
use crate::mutant;
use crate::wire::compact::Read;
use crate::wire::v1::{self, error::Retry, frame::Body};

#[derive(Debug)]
pub(super) struct Conv {
    pub(super) record: ConversationRecord,
    pub(super) origins: BTreeMap<Origin, OriginState>,
    /// Pulls that found nothing: when to try again, and how often that was.
    pub(super) pauses: BTreeMap<Origin, (Duration, u32)>,
    pub(super) outbox: Outbox,
    /// What follows from entries of tern's own kinds, by identity; see `facts`.
    pub(super) facts: BTreeMap<Identity, Arc<Entry>>,
    pub(super) fold: Fold,
    /// What a server folded.
    pub(super) folded: Option<v1::Cells>,
    /// Membership entries on their way to a region that lacks them; rounds of that on this connection, and when
    /// the next may begin.
    pub(super) giving: Option<Giving>,
    pub(super) gave: u32,
    pub(super) give_at: Duration,
    /// The application asked for older entries, and some are missing still.
    pub(super) asked_back: bool,
}

impl Conv {
    fn new(record: ConversationRecord) -> Self {
        Self {
            record,
            origins: BTreeMap::new(),
            pauses: BTreeMap::new(),
            outbox: Outbox::default(),
            facts: BTreeMap::new(),
            fold: Fold::default(),
            folded: None,
            giving: None,
            gave: 0,
            give_at: Duration::ZERO,
            asked_back: false,
        }
    }
}

/// A token in memory.
pub(super) struct Secret(pub(super) String);

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
    pub(super) connections: u64,
    pub(super) cursors: BTreeMap<Region, Cursor>,
    pub(super) convs: BTreeMap<ConvId, Conv>,
    /// Conversations with un-acked messages.
    pub(super) sending: BTreeSet<ConvId>,
    /// Conversations with acked messages that are not stable.
    pub(super) unstable: BTreeSet<ConvId>,
    /// Conversations of which something is to be pulled.
    pub(super) wanting: BTreeSet<ConvId>,
    /// Conversations whose read mark the region lacks.
    pub(super) marking: BTreeSet<ConvId>,
    /// Conversations of which a server's fold may be needed.
    pub(super) folding: BTreeSet<ConvId>,
    /// Conversations of which it may have to be asked which logs there are.
    pub(super) unfolding: BTreeSet<ConvId>,
    /// Groups that a region is given entries of.
    pub(super) giving: BTreeSet<ConvId>,
    /// Who is typing where, and until when that is believed.
    pub(super) typists: BTreeMap<(ConvId, UserId), Duration>,
    /// Whose presence is wanted, and what was told of it.
    pub(super) watching: Watching,
    /// Where the user's devices are, as last told: names or numbers of regions.
    pub(super) connected: BTreeMap<InstallId, Vec<String>>,
    /// The install whose device cell is known to be written.
    pub(super) announced: Option<InstallId>,
    pub(super) last_served: ConvId,
    /// The region that offers were asked by.
    pub(super) offers_to: Option<Region>,
    pub(super) queued: (usize, usize),
    pub(super) kept: (usize, usize),
    pub(super) engine: Engine,
    pub(super) session: Option<Session>,
    pub(super) installs: BTreeMap<ConnNo, InstallId>,
    /// The network that the device is in, where the application has told.
    pub(super) network: Option<NetInfo>,
    /// The user looks at the application.
    pub(super) foreground: bool,
    pub(super) saving: Saving,
    /// Nobody waits: what else is written until then goes out with what was.
    pub(super) gather_until: Option<Duration>,
    /// A silence after which a connection did not answer any more.
    pub(super) suspect: Option<Suspect>,
    /// A gateway may have closed the way, or it was something else: the next time counts.
    pub(super) doubts: bool,
    pub(super) token: Option<Secret>,
    pub(super) token_refused: bool,
    /// A token was asked for and is awaited.
    pub(super) token_asked: bool,
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
        let mut engine = Engine::new(setup.fallback.clone(), setup.dispatch_targets, rng.random());
        engine.networks = image.networks.as_deref().map(Networks::load).unwrap_or_default();
        let mut machine = Self {
            setup,
            install: image.install,
            salt: image.salt,
            next_id: image.next_id.max(1),
            connections: image.connections,
            cursors: image.cursors,
            convs: BTreeMap::new(),
            sending: BTreeSet::new(),
            unstable: BTreeSet::new(),
            wanting: BTreeSet::new(),
            marking: BTreeSet::new(),
            folding: BTreeSet::new(),
            unfolding: BTreeSet::new(),
            giving: BTreeSet::new(),
            typists: BTreeMap::new(),
            watching: Watching::default(),
            connected: BTreeMap::new(),
            announced: None,
            last_served: ConvId([0; 16]),
            offers_to: None,
            queued: (0, 0),
            kept: (0, 0),
            engine,
            session: None,
            installs: BTreeMap::new(),
            network: None,
            foreground: true,
            saving: Saving::default(),
            gather_until: None,
            suspect: None,
            doubts: false,
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
            if wants_mark(&c.record) {
                machine.marking.insert(id);
            }
            let mut conv = Conv { origins: c.origins, ..Conv::new(c.record) };
            conv.set_facts(c.facts);
            conv.folded = c.folded.and_then(|bytes| v1::Cells::decode(bytes).ok());
            machine.folding.insert(id);
            machine.convs.insert(id, conv);
            machine.plan_unfolding(id);
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
            Conv::new(ConversationRecord::new(id, None))
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

    /// The transport of an attempt has measured a round trip: better than what is concluded from how long it took.
    pub fn path_measured(&mut self, conn: ConnNo, rtt: Duration) {
        self.engine.path_measured(conn, rtt);
    }

    /// The transport of the connection `conn` has taken in so many packets since it began, and measures such a round
    /// trip: also told before a tick, or a silence is seen where there was none.
    pub fn felt(&mut self, now: Duration, conn: ConnNo, packets: u64, round_trip: Duration) {
        let session = self.session.as_mut().filter(|s| s.conn == conn);
        if session.is_some_and(|session| session.felt(now, packets, round_trip)) {
            self.engine.believe(now);
            self.run_engine(now);
        }
    }

    /// The connection in use.
    pub fn in_use(&self) -> Option<ConnNo> {
        self.session.as_ref().map(|s| s.conn)
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
            if let Some(session) = &mut self.session {
                session.token_at = None;
                let req = session.request(now, Request::Token);
                self.write_frame(req, Body::Token(v1::Token { token: token.clone() }));
            }
            self.token = Some(Secret(token));
            self.token_refused = false;
            self.engine.token_ready(now);
        } else if let Some(session) = &mut self.session {
            session.token_again(now);
        } else {
            self.engine.token_failed(now, "the application has none");
        }
        self.after(now);
    }

    /// No token was to be had, for a reason that the application gives.
    pub fn no_token(&mut self, now: Duration, why: &str) {
        if self.session.is_some() {
            self.token(now, None);
            return;
        }
        self.token_asked = false;
        self.engine.token_failed(now, why);
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

    /// The dispatch request failed, for this reason.
    pub fn dispatch_refused(&mut self, now: Duration, why: &str) {
        self.engine.dispatch_said(now, why);
        self.dispatch_failed(now);
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
        if let Failure::Refused { code, retry: Retry::Never, message, .. } = failure
            && matches!(Code::from_u32(*code), Some(Code::Replaced | Code::TooManyDevices | Code::Kicked))
        {
            self.kicked(now, *code, message.clone());
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
                self.engine.spoke(now);
                if session.leaving {
                    session.leaving = false;
                    self.suspect = None;
                    self.engine.heard(now);
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

    pub(super) fn send_ping(&mut self, now: Duration) {
        let jitter = self.rng.random_range(BEAT_JITTER);
        if let Some(session) = &mut self.session {
            let (echo, again_ms) = session.ping(now, jitter, true);
            let req = session.fresh_req();
            self.write_frame(req, Body::Ping(v1::Ping { echo, foreground: self.foreground, again_ms }));
        }
    }

    /// What follows from any input.
    pub(super) fn after(&mut self, now: Duration) {
        self.engine.set_waited_for(now, self.foreground && self.queued.0 > 0);
        self.engine.set_saving(self.is_saving());
        let may_doubt = self.foreground && !self.is_saving();
        if let Some(session) = &mut self.session {
            session.pulse.may_doubt = may_doubt;
        }
        self.engine.tick(now);
        self.run_engine(now);
        for _ in 0..4 {
            let jitter = self.rng.random_range(BEAT_JITTER);
            match self.session.as_mut().and_then(|s| s.due(now, jitter).map(|due| (due, s.fresh_req()))) {
                Some((Due::Ping(echo, again_ms), req)) => {
                    let foreground = self.foreground;
                    self.write_frame(req, Body::Ping(v1::Ping { echo, foreground, again_ms }));
                }
                Some((Due::Doubt, _)) => self.engine.doubt(now),
                Some((Due::Silent, _)) => {
                    self.suspect_gateway();
                    self.engine.leave(now, &Failure::Silent);
                }
                Some((Due::Stuck, _)) => self.engine.leave(now, &Failure::Stuck),
                None => break,
            }
        }
        self.pump_giving(now);
        self.pump(now);
        self.pump_marks(now);
        self.synchronize(now);
        self.announce_device(now);
        self.expire_typists(now);
        self.keep_watching(now);
        if self.session.as_mut().is_some_and(|s| s.token_at.take_if(|at| now >= *at).is_some()) {
            self.ask_token(true);
        }
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
            None if self.engine.is_running() => self.connecting(),
            None => ConnectionState::Offline,
            // It is kept for the case that it speaks again; nobody is to be told that all is well meanwhile.
            Some(s) if s.leaving => self.connecting(),
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

    fn connecting(&self) -> ConnectionState {
        ConnectionState::Connecting { retry_at: self.engine.retry_at(), trouble: self.engine.trouble().cloned() }
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Duration> {
        let session = self.session.as_ref().and_then(Session::next_deadline);
        let sends = self.session.as_ref().and_then(|_| self.send_deadline());
        let pulls = self.session.as_ref().and_then(|_| self.pull_deadline());
        let cells = self.session.as_ref().and_then(|_| self.cells_deadline());
        let eras = self.eras_deadline();
        let gathered = self.session.as_ref().and(self.gather_until);
        let other = [self.mark_deadline(), cells, eras, self.typing_deadline(), self.watch_deadline(), gathered];
        [self.engine.next_deadline(), session, sends, pulls].into_iter().chain(other).flatten().min()
    }

    /// What changed of conversations and vectors goes with the next step that stores something, and no cursor.
    #[cfg(feature = "mutants")]
    fn heads_wait(&self) -> bool {
        self.ops.is_empty() || self.ops.iter().any(|op| matches!(op, Op::Cursor(_)))
    }

    #[cfg(feature = "mutants")]
    #[cfg(feature = "mutants")]
    fn step_without_heads(&mut self) -> Step {
        Step { ops: std::mem::take(&mut self.ops), effects: std::mem::take(&mut self.effects) }
    }

    /// What has come up since the last call; empty when nothing has.
    pub fn take_step(&mut self) -> Step {
        mutant!(SentBeforeStored => if self.effects.iter().any(|e| matches!(e, Effect::Write { .. })) {
            return Step { ops: Vec::new(), effects: std::mem::take(&mut self.effects) };
        });
        mutant!(CursorBeforeHeads => if self.heads_wait() { return self.step_without_heads(); });
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
        if let Some(networks) = self.engine.networks.take_changed() {
            self.ops.push(Op::Networks(networks));
        }
        Step { ops: std::mem::take(&mut self.ops), effects: std::mem::take(&mut self.effects) }
    }
}
