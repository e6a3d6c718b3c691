//! One conversation in one region (R1).
//!
//! Problem: many senders, copies from other regions, and a store that answers later.
//!
//! Rule: one *round* at a time. A round judges what waits, appends what is new as one batch per log, and only
//! when all of it is decided are acks sent, rows merged, entries pushed and shipped. What arrives meanwhile
//! waits for the next round, so one commit carries all of it.
//!
//! Why simpler ways fail: with two batches in flight the second can be decided and the first not; whoever
//! takes over then reuses the first's numbers under an acked entry.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::edge_api::SendRequest;
use crate::entry::Entry;
use crate::ids::{ConvId, Heads, InstallId, Origin, Seq, UserId};
use crate::limits::{BATCH_ENTRIES, CONVERSATION_QUEUE};
use crate::sequencer::LogState;
use crate::store::{Appended, Target};
use crate::wire::v1;

use super::erase::EraseJob;
use super::routes::Holder;
use super::siblings::Away;
use super::user::Open;
use super::{ConnKey, CoreId};

/// Something to judge.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// A client's message.
    Send {
        key: ConnKey,
        req: u32,
        user: UserId,
        install: InstallId,
        send: Box<SendRequest>,
        hash: [u8; 32],
        /// When it reached this process.
        at: Duration,
        /// Counted while it waits: its clones are the Sends that wait in this node.
        _counted: Arc<()>,
    },
    /// A peer's shipment.
    Copies { from: Holder, origin: Origin, entries: Vec<Arc<Entry>>, first_seq: Seq },
}

/// An ack to be sent when the round is decided.
#[derive(Debug)]
pub(super) struct PendingAck {
    pub key: ConnKey,
    pub req: u32,
    pub entry: Arc<Entry>,
    pub also: Vec<Arc<Entry>>,
    pub receipt_refused: bool,
}

/// Batches in flight and what they will cause.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Logs whose append was not answered yet.
    pub undecided: usize,
    /// The first answer that was not `Decided`.
    pub failure: Option<Appended>,
    /// What is appended, each with whether a copy was held before.
    pub entries: Vec<(Arc<Entry>, bool)>,
    /// For senders.
    pub acks: Vec<PendingAck>,
    /// For peers: whose shipment of which log was judged, and its last seq.
    pub shipments: Vec<(Holder, Origin, Seq)>,
    /// What was judged: judged again if the batch fails.
    pub jobs: Vec<Job>,
}

/// What waited for a conversation to be loaded.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub pulls: Vec<(ConnKey, u32, v1::PullEntries)>,
    pub unstable: Vec<(ConnKey, Vec<Origin>)>,
    pub offers: Vec<(Holder, Heads)>,
    /// Conversations whose senders may be blocked by the owner of this log.
    pub gates: BTreeSet<ConvId>,
    /// Hellos of the owner of this log.
    pub opens: Vec<Open>,
    pub cells: Vec<(ConnKey, u32)>,
    /// Core nodes that need to know what follows from this log.
    pub cores: BTreeSet<CoreId>,
    /// Who asks which logs there are, and of which else.
    pub eras: Vec<(ConnKey, u32, BTreeSet<Origin>)>,
}

/// See the module.
#[derive(Debug)]
pub struct Conversation {
    /// Another node's: a copy of a user's own log, of which only the fold counts.
    pub(super) replica: bool,
    /// With the round in flight applied: may run ahead of the store.
    pub(super) state: LogState,
    /// What is decided.
    pub(super) published: Heads,
    pub(super) damaged: BTreeMap<Origin, String>,
    loading: Option<Waiting>,
    pub(super) queue: VecDeque<Job>,
    /// Sends that wait for entries to be read again.
    pub(super) parked: Vec<Job>,
    pub(super) recalls: usize,
    pub(super) round: Option<Round>,
    /// What the store's todo rows say.
    pub(super) todo: BTreeMap<Target, Heads>,
    /// Members whose rows are not merged yet because they are being loaded.
    pub(super) fan_pending: usize,
    /// Members whose rows are another node's and not known to be durable there.
    pub(super) away: BTreeMap<UserId, Away>,
    /// The flush after which all merged rows are on disk.
    pub(super) fan_flush: u64,
    /// Connections that wait for stability: what each was told.
    pub(super) watchers: BTreeMap<ConnKey, BTreeMap<Origin, Seq>>,
    pub(super) active_at: Duration,
    pub(super) since_checkpoint: usize,
    /// Appends that failed in a row.
    pub(super) failures: u32,
    /// Senders of a direct conversation, and the own log of the other one: cells there may block them.
    pub(super) gates: BTreeMap<UserId, ConvId>,
    /// What was decided and waits for a merged fan-out, and when that is.
    pub(super) unfanned: Vec<(Arc<Entry>, bool)>,
    pub(super) fan_at: Option<Duration>,
    /// Erased bodies that are being looked for in the store.
    pub(super) erasing: Option<EraseJob>,
}

impl Conversation {
    pub(super) fn loading(id: ConvId, replica: bool, now: Duration) -> Self {
        Self {
            replica,
            away: BTreeMap::new(),
            state: LogState::new(id),
            published: Heads::new(),
            damaged: BTreeMap::new(),
            loading: Some(Waiting::default()),
            queue: VecDeque::new(),
            parked: Vec::new(),
            recalls: 0,
            round: None,
            todo: BTreeMap::new(),
            fan_pending: 0,
            fan_flush: 0,
            watchers: BTreeMap::new(),
            active_at: now,
            since_checkpoint: 0,
            failures: 0,
            gates: BTreeMap::new(),
            unfanned: Vec::new(),
            fan_at: None,
            erasing: None,
        }
    }

    /// Which one.
    pub fn id(&self) -> ConvId {
        self.state.conversation()
    }

    pub(super) fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// Nothing waits, nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.loading.is_none()
            && self.round.is_none()
            && self.queue.is_empty()
            && self.parked.is_empty()
            && self.fan_at.is_none()
            && self.erasing.is_none()
            && self.state.fold.erasing.is_empty()
    }

    pub(super) fn waiting(&mut self) -> Option<&mut Waiting> {
        self.loading.as_mut()
    }

    pub(super) fn loaded(&mut self, state: LogState, damaged: BTreeMap<Origin, String>) -> Waiting {
        self.published = state.heads.clone();
        self.state = state;
        self.damaged = damaged;
        self.loading.take().unwrap_or_default()
    }

    /// Back to loading: what was judged is judged again against what the store really holds.
    pub(super) fn reload(&mut self, jobs: Vec<Job>) {
        self.loading = Some(Waiting::default());
        let parked = std::mem::take(&mut self.parked);
        for job in jobs.into_iter().chain(parked).rev() {
            self.queue.push_front(job);
        }
    }

    /// Nothing is to be done any more but to await the store's answer to the round in flight.
    pub(super) fn reset(&mut self) {
        let left = Self::loading(self.id(), true, self.active_at);
        let round = self.round.take();
        *self = Self { round, ..left };
    }

    /// Whether a round may start.
    pub(super) fn is_ready(&self) -> bool {
        self.loading.is_none() && self.round.is_none() && !self.replica && !self.queue.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.queue.len() + self.parked.len() >= CONVERSATION_QUEUE
    }

    /// The next job of a round, as long as the round has room.
    pub(super) fn next_job(&mut self, round: &Round) -> Option<Job> {
        if round.entries.len() >= BATCH_ENTRIES { None } else { self.queue.pop_front() }
    }

    /// The decided end of a log.
    pub fn head(&self, origin: Origin) -> Seq {
        self.published.get(&origin).copied().unwrap_or(0)
    }
}
