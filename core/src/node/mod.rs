//! The messaging core of a region: conversations, users, devices, links, as one machine.
//!
//! Reading order: [`conversation`] (one log state, one batch in flight: R1), [`user`] (rows and revisions: R7),
//! [`link`] (what a peer region lacks: R6), then the parts of [`Node`] that tie them together: `sessions` (what clients
//! ask; `again`, `presence`), `rounds` (from a Send to acks, rows, pushes and shipments), `peers` (what other regions
//! say), `stable` (R14), [`refill`] and [`seal`] (R13), `cells` (blocks, devices), `marks` (what was read), [`regain`]
//! (marks that a region lost), `erase` (R16), [`routes`] (who is where) and `whereabouts`, `flush` (what is derived
//! reaches the disk). Where several nodes share a region: [`slots`] (what is whose) and `siblings` (what owners say to
//! each other).
//!
//! The node is handed what happened and the time, and collects what is to be done in [`Outputs`]:
//!
//! ```text
//! ups, peer frames, answers of the store, ticks  ->  Node  ->  appends, puts, reads, downs, peer frames
//! ```
//!
//! Invariants: nothing undecided is acked, fanned out, shipped or readable; a user's row becomes durable
//! before the todo that stands for it goes; every collection is ordered, so equal inputs give equal outputs;
//! the node never waits: what needs a read is parked and goes on when the answer comes.

mod again;
mod cells;
mod clocks;
pub mod conversation;
mod erase;
mod flush;
mod joining;
pub mod lag;
pub mod link;
mod marks;
mod peers;
mod presence;
pub mod refill;
pub mod regain;
mod rounds;
pub mod routes;
pub mod seal;
mod sessions;
mod siblings;
pub mod signals;
pub mod slots;
mod stable;
mod sums;
#[cfg(test)]
mod tests;
pub mod user;
mod ways;
mod whereabouts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::codes::Refusal;
use crate::edge_api::{ConnId, Down, DownBody, Up};
use crate::entry::Entry;
use crate::eras::EraTable;
use crate::ids::{ConvId, InstallId, Origin, Region, Rev, UserId};
use crate::mutants::{Mutant, on};
use crate::mutated;
use crate::pressure::{Level, Pressure};
use crate::receipt::ReceiptKey;
use crate::sequencer::LogState;
use crate::slots::{Share, Slot};
use crate::store::{Append, Put, Range, StoreError, Target, Todo};
use crate::wire::{node_v1, v1};

use clocks::Clocks;
use conversation::Conversation;
use link::Link;
use refill::{Known, Refill};
use routes::keyed::Key;
use routes::{Holder, Routes};
pub use siblings::CoreId;
use user::User;

/// Rows and todo removals are written this often.
pub const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// A flush that failed is tried again after so long.
pub const FLUSH_AGAIN: Duration = Duration::from_secs(1);
/// Conversations kept in memory; idle ones above it are dropped.
pub const CONVERSATIONS_IN_MEMORY: usize = 100_000;
/// Users kept in memory, likewise.
pub const USERS_IN_MEMORY: usize = 200_000;
/// A conversation's checkpoint is written after so many entries.
pub const CHECKPOINT_ENTRIES: usize = 256;

/// Both readings of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic.
    pub mono: Duration,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// An edge, as the runtime numbers it: never reused.
pub type EdgeId = u64;

/// A client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnKey {
    /// At which edge.
    pub edge: EdgeId,
    /// Which one there.
    pub conn: ConnId,
}

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its region.
    pub region: Region,
    /// The region's name, for clients and operators.
    pub region_name: String,
    /// Region and current era.
    pub origin: Origin,
    /// This start's epoch: fences older owners and orders revisions. Where slots are shared, each has its own.
    pub epoch: u64,
    /// Other nodes of the region own slots too: this one owns none before [`Node::gain`].
    pub shared: bool,
    /// Counts the starts of the store; orders the region's eras for its peers.
    pub start: u64,
    /// The other regions.
    pub peers: BTreeSet<Region>,
    /// What was known of them.
    pub known: BTreeMap<Region, Known>,
    /// What is known of the eras of all regions, with the own one.
    pub eras: EraTable,
    /// Entries that this era has made durable before this start.
    pub commit: u64,
    /// Peers that the store must be compared with.
    pub refill: BTreeSet<Region>,
    /// The store was restored: no clients before the first comparison.
    pub restored: bool,
    /// For ids of direct conversations.
    pub direct_salt: Vec<u8>,
    /// Shared by all regions.
    pub receipt_key: ReceiptKey,
    /// After so long a silence of a region its clients offer their messages elsewhere.
    pub reoffer_after: Duration,
    /// What clients are told.
    pub heartbeat: v1::Heartbeat,
}

/// A read that the node waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// A conversation's state: answer with `conversation_loaded`.
    Conversation(ConvId),
    /// A user's rows: answer with `user_loaded`.
    User(UserId),
    /// Part of a log: answer with `range_read`.
    Range {
        /// To be given back.
        ticket: u64,
        /// What to read.
        range: Range,
        /// Nobody is told that it can't be read at the moment ([`StoreError::Archive`]): it is read again until it can.
        patient: bool,
    },
    /// Heads of conversations in order of their ids: answer with `heads_read`.
    Heads {
        /// To be given back.
        ticket: u64,
        /// After which one.
        after: Option<ConvId>,
        /// At most so many.
        limit: usize,
    },
    /// Read marks of users in the store's order of them: answer with `marks_read`.
    Marks {
        /// To be given back.
        ticket: u64,
        /// After whom.
        after: Option<UserId>,
        /// Users, at most.
        limit: usize,
    },
}

/// Something an operator should see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A peer's clock, or one of its conversations, is far ahead.
    ClockAhead {
        /// Which region.
        region: Region,
        /// By how much.
        ms: u64,
    },
    /// The own clock is off the median of all regions'.
    OwnClockOff {
        /// By how much.
        ms: u64,
        /// Too far: no sends are taken.
        stopped: bool,
    },
    /// A peer shipped entries of this region's own current era: this store has lost its tail.
    OwnTailLost {
        /// Which conversation.
        conversation: ConvId,
    },
    /// A conversation's log is damaged and refused.
    Damaged {
        /// Which conversation.
        conversation: ConvId,
        /// What is wrong.
        what: String,
    },
    /// Another owner has taken over: this node must stop.
    Fenced,
    /// Another node owns this slot: it was given up here.
    SlotLost(Slot),
    /// The store has been compared with a peer, and both hold what each did.
    Refilled {
        /// Which region.
        region: Region,
        /// Conversations that this region offered for it.
        offers: u64,
    },
    /// A former era of this region is sealed: all regions hold what any holds of it.
    Sealed {
        /// Which one.
        origin: Origin,
    },
    /// A peer said something that can't be.
    BadPeer {
        /// Which region.
        region: Region,
        /// What.
        what: String,
    },
}

/// A device of a user has begun to use a connection here, or has ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMoved {
    /// Whose.
    pub user: UserId,
    /// Which device.
    pub install: InstallId,
    /// Which connection.
    pub key: ConnKey,
    /// It is used; else it is not any more, or not by what this node knows.
    pub is_here: bool,
}

/// The devices of users, and by which connections they are here.
pub type Present = Vec<(UserId, Vec<(InstallId, ConnKey)>)>;

/// What is to be done, in order within each kind.
#[derive(Debug, Default)]
pub struct Outputs {
    /// For the store; each is answered by `appended`.
    pub appends: Vec<Append>,
    /// For the store, lazily.
    pub puts: Vec<Put>,
    /// For the store, synced; answered by `flushed`.
    pub flush: Option<Vec<Put>>,
    /// Reads.
    pub wants: Vec<Want>,
    /// For connections.
    pub downs: BTreeMap<EdgeId, Vec<Down>>,
    /// Not for this node: for the edges, which hand it to the owner of what it is about.
    pub bounced: BTreeMap<EdgeId, Vec<Up>>,
    /// For the owners of slots of this region.
    pub owners: BTreeMap<Slot, Vec<node_v1::node_frame::Body>>,
    /// For other core nodes of this region.
    pub cores: BTreeMap<CoreId, Vec<node_v1::node_frame::Body>>,
    /// For all of them.
    pub everyone: Vec<node_v1::node_frame::Body>,
    /// For core nodes of peer regions.
    pub links: BTreeMap<Holder, Vec<node_v1::node_frame::Body>>,
    /// For the region's table of routes.
    pub moved: Vec<DeviceMoved>,
    /// For the operator.
    pub notices: Vec<Notice>,
}

impl Outputs {
    fn down(&mut self, key: ConnKey, body: DownBody) {
        self.downs.entry(key.edge).or_default().push(Down { conn: key.conn, body });
    }

    fn frame(&mut self, key: ConnKey, req: u32, body: v1::frame::Body) {
        self.down(key, DownBody::Frame(Box::new(v1::Frame::new(req, body))));
    }

    fn refuse(&mut self, key: ConnKey, req: u32, refusal: &Refusal) {
        self.frame(key, req, v1::frame::Body::Error(refusal.to_wire()));
    }
}

/// Counters for `/metrics`; monotonic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages sequenced here.
    pub sequenced: u64,
    /// Sends answered from what was held.
    pub resends: u64,
    /// Sends refused.
    pub refused: u64,
    /// Entries taken from other regions.
    pub copies: u64,
    /// Of them and of re-offers: identities that were held before.
    pub duplicates: u64,
    /// Pushes handed to edges.
    pub pushes: u64,
    /// Entries shipped to other regions.
    pub shipped: u64,
    /// Bodies erased.
    pub erased: u64,
    /// Users whose read marks a peer that had lost some was told again.
    pub marks_returned: u64,
    /// Signals handed to edges.
    pub signals: u64,
    /// Signals dropped, by a limit or under load.
    pub signals_dropped: u64,
    /// Sends that were told to come back later.
    pub shed: u64,
    /// Fan-outs of large groups that were merged with a later one.
    pub merged: u64,
    /// Conversations offered because a comparison found a difference.
    pub refill_offers: u64,
}

/// A connection's session, as far as the core knows it.
#[derive(Debug)]
struct Session {
    user: UserId,
    install: InstallId,
    token_issued_ms: u64,
    /// Which of its own messages are acked on this connection, per conversation: first and last.
    acked: BTreeMap<ConvId, (u64, u64)>,
    /// Conversations whose stability it waits for.
    watching: BTreeSet<ConvId>,
}

impl Session {
    fn new(user: UserId, install: InstallId, token_issued_ms: u64) -> Self {
        Self { user, install, token_issued_ms, acked: BTreeMap::new(), watching: BTreeSet::new() }
    }

    /// Message `n` will be acked on this connection, after those that were judged before it.
    fn will_ack(&mut self, conversation: ConvId, n: u64) {
        if self.acked.len() >= crate::limits::REFERENCES as usize {
            self.acked.clear(); // costs bytes, never correctness: acks then tell of more than they need
        }
        let acked = self.acked.entry(conversation).or_insert((n, n));
        if n == acked.1 + 1 {
            acked.1 = n;
        } else if !(acked.0..=acked.1).contains(&n) {
            *acked = (n, n);
        }
    }
}

/// What a parked read is for.
#[derive(Debug)]
enum Ticket {
    Recall { conversation: ConvId },
    Ship { region: Region, conversation: ConvId, origin: Origin },
    Pull(sessions::Pull),
    Erase { conversation: ConvId },
    Heads { peer: Holder, asking: bool },
    Marks { peer: Holder, asking: bool },
}

/// Tells the routes of this start from those of any other; never 0.
fn routes_epoch(settings: &Settings, now: Now) -> u64 {
    let Origin { region, era } = settings.origin;
    let numbers = [u64::from(region), era, settings.start, settings.epoch, now.wall_ms];
    let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
    Key::of(&settings.direct_salt).hash(&bytes).max(1)
}

/// See the module.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    conversations: BTreeMap<ConvId, Conversation>,
    /// Own logs of users of which nothing is held, and which are not in memory.
    empty_logs: BTreeSet<ConvId>,
    users: BTreeMap<UserId, User>,
    sessions: BTreeMap<ConnKey, Session>,
    links: BTreeMap<Region, Link>,
    ways: ways::Ways,
    /// Of each peer: its newest start, and the era since then.
    eras: BTreeMap<Region, (u64, u64)>,
    era_table: EraTable,
    seal_at: Option<Duration>,
    routes: Routes,
    ownership: slots::Ownership,
    siblings: siblings::Siblings,
    clocks: Clocks,
    tickets: BTreeMap<u64, Ticket>,
    next_ticket: u64,
    /// Conversations that got something to do by the present input.
    touched: BTreeSet<ConvId>,
    /// Conversations with todo.
    active: BTreeSet<ConvId>,
    /// Fan-outs of large groups that wait to be merged with the next ones.
    fans: BTreeSet<(Duration, ConvId)>,
    /// Users with rows that are not on disk.
    dirty: BTreeSet<UserId>,
    /// Devices that owe an ack: (when to remind, whose, which).
    owing: BTreeSet<(Duration, UserId, ConnKey)>,
    flush: flush::Flush,
    marks: marks::Marks,
    regain: regain::Regain,
    signals: signals::Signals,
    agains: again::Agains,
    presence: presence::Presence,
    pressure: Pressure,
    /// Its clones are the Sends that wait.
    waiting: Arc<()>,
    /// How long what is handed over now has waited for this node.
    waited: Duration,
    refill: Refill,
    /// Of the peers: entries that their eras have made durable.
    commits: BTreeMap<Region, u64>,
    /// Entries that this era has made durable.
    commit: u64,
    draining: bool,
    /// Edges that keep their connections until this node is back.
    keeping: BTreeSet<EdgeId>,
    counters: Counters,
    out: Outputs,
}

impl Node {
    /// A node that has just opened its store; `todo` is what the store says is left to do.
    pub fn new(settings: Settings, todo: Vec<Todo>, now: Now) -> Self {
        let mut links: BTreeMap<Region, Link> = settings.peers.iter().map(|r| (*r, Link::new(now.mono))).collect();
        for (region, link) in &mut links {
            // What one of several nodes has noted is not what all know, and of a region that was never linked nothing is:
            // until it tells, it may lack what there is no todo for.
            let incomplete = settings.shared || settings.known.get(region).is_none_or(|known| known.incomplete);
            link.set_incomplete(Share::all(), incomplete);
        }
        let marks = settings.refill.intersection(&settings.peers).copied().collect();
        let refill = mutated!(NotCompared => BTreeSet::new(); marks);
        let restored = settings.restored && !settings.peers.is_empty() && !on(Mutant::NotCompared);
        let mut node = Self {
            eras: settings.known.iter().map(|(r, k)| (*r, (k.start, k.era))).collect(),
            commits: settings.known.iter().map(|(r, k)| (*r, k.commit)).collect(),
            commit: settings.commit,
            refill: Refill::new(refill, restored, settings.shared),
            era_table: settings.eras.clone(),
            seal_at: None,
            routes: Routes::new(Key::of(&settings.direct_salt), routes_epoch(&settings, now)),
            ownership: slots::Ownership::new(settings.shared),
            siblings: siblings::Siblings::default(),
            clocks: Clocks::default(),
            conversations: BTreeMap::new(),
            empty_logs: BTreeSet::new(),
            users: BTreeMap::new(),
            sessions: BTreeMap::new(),
            links,
            ways: ways::Ways::new(settings.direct_salt.clone()),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            touched: BTreeSet::new(),
            active: BTreeSet::new(),
            fans: BTreeSet::new(),
            dirty: BTreeSet::new(),
            owing: BTreeSet::new(),
            flush: flush::Flush::default(),
            marks: marks::Marks::default(),
            regain: regain::Regain::default(),
            signals: signals::Signals::default(),
            agains: again::Agains::default(),
            presence: presence::Presence::new(now.mono),
            pressure: Pressure::default(),
            waiting: Arc::new(()),
            waited: Duration::ZERO,
            draining: false,
            keeping: BTreeSet::new(),
            counters: Counters::default(),
            out: Outputs::default(),
            settings,
        };
        for t in todo {
            node.resume_todo(t, now);
        }
        node.plan_seal(now);
        // What was left to do may be done already: nothing else might ask.
        if !node.active.is_empty() {
            node.schedule_flush(now);
        }
        node
    }

    /// Takes what is to be done. Call after every input.
    pub fn take_outputs(&mut self) -> Outputs {
        self.tell_routes();
        std::mem::take(&mut self.out)
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Conversations and users in memory, connections, conversations with work left.
    pub fn sizes(&self) -> (usize, usize, usize, usize) {
        (self.conversations.len(), self.users.len(), self.sessions.len(), self.active.len())
    }

    /// The routes table.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The link of a peer region.
    pub fn link(&self, region: Region) -> Option<&Link> {
        self.links.get(&region)
    }

    /// Entries that this era has made durable: what peers are told, so that they know a store that is behind.
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// The current origin.
    pub fn origin(&self) -> Origin {
        self.settings.origin
    }

    fn resume_todo(&mut self, t: Todo, now: Now) {
        if let (Some(user), Target::Peer(region)) = (&t.user, t.target) {
            return self.resume_marks(region, user, &t.prefix);
        }
        let conversation = self.conversation(t.conversation, now);
        conversation.todo.insert(t.target, t.prefix.clone());
        self.active.insert(t.conversation);
        if let Target::Peer(region) = t.target
            && let Some(link) = self.links.get_mut(&region)
        {
            for (origin, prefix) in t.prefix {
                link.resume(t.conversation, origin, prefix, origin != self.settings.origin, now.mono);
            }
        }
    }

    /// The conversation, which starts loading if it is not in memory.
    fn conversation(&mut self, id: ConvId, now: Now) -> &mut Conversation {
        if !self.conversations.contains_key(&id) {
            self.empty_logs.remove(&id);
            let replica = !self.owns_log(id);
            if replica {
                self.ask_log(now, id);
            } else {
                self.out.wants.push(Want::Conversation(id));
            }
            self.conversations.insert(id, Conversation::loading(id, replica, now.mono));
        }
        self.conversations.entry(id).or_insert_with(|| Conversation::loading(id, false, now.mono))
    }

    /// The user, whose rows start loading if they are not in memory.
    fn user(&mut self, id: &UserId) -> &mut User {
        if !self.users.contains_key(id) {
            self.out.wants.push(Want::User(id.clone()));
            self.users.insert(id.clone(), User::loading());
        }
        self.users.entry(id.clone()).or_insert_with(User::loading)
    }

    /// A conversation that was wanted: its state with all decided entries above its checkpoint applied, and
    /// the origins that are refused. An `Err` is tried again by the runtime; it never gives up.
    pub fn conversation_loaded(&mut self, now: Now, state: LogState, damaged: BTreeMap<Origin, String>) {
        let id = state.conversation();
        for (origin, what) in &damaged {
            let what = format!("log of {origin}: {what}");
            self.out.notices.push(Notice::Damaged { conversation: id, what });
        }
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        if !conversation.is_loading() {
            return;
        }
        let held = mutated!(NumberReused => state.without_newest(self.settings.origin); state);
        let waiting = conversation.loaded(held, damaged);
        if conversation.todo.contains_key(&Target::Fanout) {
            self.fan_out(now, id, &[]);
        }
        for (key, req, pull) in waiting.pulls {
            self.pull(now, key, req, pull);
        }
        for (key, origins) in waiting.unstable {
            self.answer_unstable(now, key, id, &origins);
        }
        for (from, heads) in waiting.offers {
            self.answer_offer(from, id, &heads);
        }
        for (key, req) in waiting.cells {
            self.answer_cells(key, req, id);
        }
        for (key, req, named) in waiting.eras {
            self.answer_eras(key, req, id, &named);
        }
        for open in waiting.opens {
            self.admit(now, open);
        }
        for core in waiting.cores {
            self.tell_log(core, id);
        }
        self.touched.extend(waiting.gates);
        self.presence_log(now, id);
        self.erase_next(id);
        for link in self.links.values_mut() {
            link.loaded(id, now.mono);
        }
        self.refill_loaded(now, id);
        self.relay(now);
        self.pump_all(now);
        self.start_round(now, id);
        self.start_rounds(now);
    }

    /// A user's rows that were wanted.
    pub fn user_loaded(&mut self, now: Now, id: &UserId, rows: Vec<(ConvId, crate::store::RowRecord)>) {
        let Some(epoch) = self.epoch_of_user(id) else { return };
        let Some(slot) = self.users.get_mut(id) else { return };
        let Some(waiting) = slot.take_waiting() else { return };
        *slot = User::new(epoch, rows);
        for row in waiting.told {
            self.take_row(now, id, row);
        }
        for conversation in waiting.merges {
            self.merged_late(conversation);
            self.merge_row(now, id, conversation, &[]);
        }
        for (from, marks) in waiting.marks {
            self.take_marks(now, id, from, marks);
        }
        for region in waiting.ship_marks {
            self.ship_marks(now, region, id);
        }
        for open in waiting.opens {
            self.welcome(now, open);
        }
        for (key, order) in waiting.resumed {
            self.resumed(now, key, order);
        }
        for (key, frame) in waiting.frames {
            self.frame(now, key, frame);
        }
    }

    /// A range that was wanted.
    pub fn range_read(&mut self, now: Now, ticket: u64, entries: Result<Vec<Arc<Entry>>, StoreError>) {
        if let (Some(Ticket::Pull(_)), Err(StoreError::Archive(what))) = (self.tickets.get(&ticket), &entries) {
            let what = what.clone();
            if let Some(Ticket::Pull(pull)) = self.tickets.remove(&ticket) {
                self.pull_later(&pull, &what);
            }
            return;
        }
        let entries = entries.map_err(|error| error.to_string());
        match self.tickets.remove(&ticket) {
            Some(Ticket::Recall { conversation }) => self.recalled(now, conversation, entries),
            Some(Ticket::Ship { region, conversation, origin }) => {
                self.ship_read(now, region, conversation, origin, entries);
            }
            Some(Ticket::Pull(pull)) => self.pull_read(now, pull, entries),
            Some(Ticket::Erase { conversation }) => self.erase_read(now, conversation, entries),
            Some(Ticket::Heads { .. } | Ticket::Marks { .. }) | None => {}
        }
    }

    fn want_range(&mut self, ticket: Ticket, range: Range) {
        self.next_ticket += 1;
        let patient = matches!(ticket, Ticket::Ship { .. } | Ticket::Erase { .. });
        self.tickets.insert(self.next_ticket, ticket);
        self.out.wants.push(Want::Range { ticket: self.next_ticket, range, patient });
    }

    /// Time has passed: see [`Node::next_deadline`].
    pub fn tick(&mut self, now: Now) {
        if self.flush.at.is_some_and(|at| at <= now.mono) && !self.flush.in_flight {
            self.begin_flush(now);
        }
        self.routes_due(now);
        if self.signals.at.is_some_and(|at| at <= now.mono) {
            self.send_signals(now);
        }
        self.answer_again(now);
        self.siblings_due(now);
        self.presence_due(now);
        self.fan_out_due(now);
        self.remind(now);
        self.relay(now);
        self.refill_next(now);
        self.seal_next(now);
        self.evict();
    }

    /// When to tick at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        let flush = if self.flush.in_flight { None } else { self.flush.at };
        let relay = self.links.values().filter_map(Link::next_deadline).min();
        let fans = self.fans.first().map(|(at, _)| *at);
        let others = [self.signals.at, fans, self.seal_at, self.agains.next_deadline(), self.presence.next_deadline()];
        let others = others.into_iter().chain([self.siblings.next_deadline()]);
        [flush, self.routes.next_deadline(), self.owing.first().map(|(at, ..)| *at), relay]
            .into_iter()
            .chain(others)
            .flatten()
            .min()
    }

    /// How long what is handed over next has waited since it reached this process: the measure of load.
    pub fn waited(&mut self, waited: Duration) {
        self.waited = waited;
    }

    /// An edge that sees the whole way of a Send gives up so much: see [`Pressure::told`].
    pub fn told_pressure(&mut self, now: Now, level: Level) {
        self.pressure.told(now.mono, level);
    }

    /// How much is given up under load, with what was told.
    pub fn gives_up(&self, now: Now) -> Level {
        self.pressure.level_of_all(now.mono)
    }

    /// How much is given up under load by what this node measured, and how many thousandths of the conversations are refused.
    pub fn pressure(&self) -> (Level, u32) {
        (self.pressure.level(), self.pressure.shed_permille())
    }

    /// No new sessions and sends from now on: the process is about to stop. Those of `keeping` are handed back, for these
    /// edges keep their connections until it is started again.
    pub fn drain(&mut self, keeping: impl IntoIterator<Item = EdgeId>) {
        self.draining = true;
        self.keeping.extend(keeping);
    }

    /// Whether everything is on disk and every connected peer has acked what it was to get.
    pub fn is_settled(&self) -> bool {
        let busy = |c: &Conversation| !c.is_idle() || !c.away.is_empty();
        self.dirty.is_empty()
            && !self.marks.is_waiting()
            && !self.flush.in_flight
            && !self.conversations.values().any(busy)
            && self.links.iter().all(|(r, l)| !l.is_connected() || l.is_caught_up() && self.marks.is_told(*r))
    }

    /// What a clean stop writes last: checkpoints of all conversations in memory, so that the next start need
    /// not read their logs.
    pub fn last_puts(&self) -> Vec<Put> {
        let ready = self.conversations.iter().filter(|(_, c)| c.since_checkpoint > 0 && c.is_idle());
        ready.map(|(id, c)| Put::Checkpoint { conversation: *id, value: c.state.checkpoint() }).collect()
    }

    /// The newest rev of a user, if he is in memory.
    pub fn rev_of(&self, user: &UserId) -> Option<Rev> {
        self.users.get(user).map(User::rev)
    }
}
