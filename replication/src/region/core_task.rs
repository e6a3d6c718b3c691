//! The task that owns the machine.
//!
//! It takes whatever waits, hands it over, and does what the machine says. With the store it keeps one group
//! of appends and one of puts under way: the next group starts when the previous one ended, so a slow disk
//! makes groups larger, not queues longer. To a store that decides each batch by itself every conversation is a group
//! ([`Store::appends_at_once`]), so that one that takes long holds up no other; it is under way once at most, so that what it
//! writes stays in order.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tern_core::edge_api::{EdgePort, Up};
use tern_core::entry::Entry;
use tern_core::ids::{ConvId, Origin, Region, UserId};
use tern_core::node::refill::PeerHello;
use tern_core::node::routes::Holder;
use tern_core::node::{CoreId, EdgeId, Node, Notice, Now, Outputs, Want};
use tern_core::owners::Owners;
use tern_core::pressure::Level;
use tern_core::sequencer::LogState;
use tern_core::slots::{Share, Slot};
use tern_core::store::{Append, Appended, ConversationHeads, RowRecord, Store, StoreError, Todo, UserMarks};
use tern_core::wire::node_v1::node_frame::Body;
use tokio::sync::oneshot;

use crate::routes::limits::PAGE_USERS;
use crate::routes::writer::Told;

use super::link::LinkSender;
use super::put_queue::PutQueue;
use super::{PeerStats, Puts, RegionRoutes, SaidOfShares, Shared, Stats, Task, reads};

/// How often the figures for operators are taken.
const STATS_EVERY: Duration = Duration::from_secs(1);
/// And while anything is given up for load: as often as that changes.
const STATS_UNDER_LOAD: Duration = Duration::from_millis(50);
/// What a node has for the owner of a slot that is itself comes from here: no link has this number.
const OWN: CoreId = 0;
/// How often it is looked whether a slot that is to be given away is free of work.
const LEAVE_POLL: Duration = Duration::from_millis(5);
/// How often a stopping core looks whether everything is settled.
const STOP_POLL: Duration = Duration::from_millis(20);

/// Something happened.
#[derive(Debug)]
pub(crate) enum Input {
    EdgeUp(EdgeId, Arc<dyn EdgePort>),
    EdgeDown(EdgeId),
    Ups(EdgeId, Vec<Up>),
    /// A link of a peer: what it says of itself, and the way to it. The number tells links apart; the node has a name
    /// where its region has several.
    PeerUp {
        region: Region,
        link: u64,
        node: Option<String>,
        hello: PeerHello,
        sender: Arc<LinkSender>,
    },
    PeerDown {
        region: Region,
        link: u64,
    },
    PeerFrames {
        region: Region,
        link: u64,
        frames: Vec<Body>,
    },
    /// With the epoch under which it was read, where several nodes share the store.
    ConversationLoaded(Box<LogState>, BTreeMap<Origin, String>, Option<u64>),
    UserLoaded(UserId, Vec<(ConvId, RowRecord)>, Option<u64>),
    /// Another core node of this region.
    CoreUp {
        core: CoreId,
        name: String,
        sender: Arc<LinkSender>,
    },
    CoreDown {
        core: CoreId,
    },
    CoreFrames {
        core: CoreId,
        frames: Vec<Body>,
    },
    /// Slots that are this node's, with their epochs, and what is left to do in them.
    /// And where they must be compared with peers.
    Gain(BTreeMap<Slot, u64>, Vec<Todo>, BTreeMap<Region, BTreeSet<Share>>),
    /// Slots that are to be given away, until when that may take, and whether it was done.
    Leave(BTreeSet<Slot>, Duration, oneshot::Sender<bool>),
    Lose(BTreeSet<Slot>),
    /// Until when what is owned counts.
    Lease(Duration),
    /// Shares that have another owner.
    Moved(Vec<Share>),
    TodoFound(Vec<Todo>),
    RangeRead(u64, Result<Vec<Arc<Entry>>, StoreError>),
    HeadsRead(u64, Vec<ConversationHeads>),
    /// This life counts as a later start than it did: see `dial::settle_start`.
    StartRaised(u64),
    Peers(BTreeSet<Region>),
    /// More that must be compared, and with whom nothing is to be compared yet.
    Comparing {
        marks: BTreeMap<Region, BTreeSet<Share>>,
        held: BTreeSet<Region>,
    },
    /// Who is here, for the table of routes: of users after one, or of some.
    PresentAfter(Option<UserId>, oneshot::Sender<Option<(Told, Option<UserId>)>>),
    PresentOf(Vec<UserId>, oneshot::Sender<Option<Told>>),
    MarksRead(u64, Vec<UserMarks>),
    Stop {
        until: Duration,
        tell: oneshot::Sender<(bool, Puts)>,
    },
}

/// Figures that others read.
#[derive(Debug, Default)]
pub(crate) struct SharedStats(Mutex<Stats>);

impl SharedStats {
    pub fn get(&self) -> Stats {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, stats: Stats) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}

/// A group of appends that is under way.
struct Appending {
    since: Duration,
    conversations: BTreeSet<ConvId>,
    task: Task<Vec<(ConvId, Appended)>>,
}

type Putting = Task<Result<(), StoreError>>;

struct Core {
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    node: Node,
    edges: BTreeMap<EdgeId, Arc<dyn EdgePort>>,
    peers: BTreeMap<Holder, (u64, Arc<LinkSender>)>,
    /// How the machine knows core nodes of peer regions, by name.
    peer_cores: BTreeMap<(Region, String), CoreId>,
    /// Core nodes of this region; by name, which link is the one in use.
    cores: BTreeMap<CoreId, Arc<LinkSender>>,
    names: BTreeMap<String, CoreId>,
    leaving: Vec<(BTreeSet<Slot>, Duration, oneshot::Sender<bool>)>,
    appends: Vec<Append>,
    appending: Vec<Appending>,
    puts: PutQueue,
    putting: Option<Putting>,
    stop: Option<(Duration, oneshot::Sender<(bool, Puts)>)>,
    stats_at: Duration,
    store_ok: bool,
    groups: (u64, u64),
}

/// Ends with its environment, or after a stop.
pub(crate) async fn run(shared: Arc<Shared>, store: Arc<dyn Store>, node: Node) {
    let mut core = Core {
        shared: shared.clone(),
        store,
        node,
        edges: BTreeMap::new(),
        peers: BTreeMap::new(),
        peer_cores: BTreeMap::new(),
        cores: BTreeMap::new(),
        names: BTreeMap::new(),
        leaving: Vec::new(),
        appends: Vec::new(),
        appending: Vec::new(),
        puts: PutQueue::default(),
        putting: None,
        stop: None,
        stats_at: Duration::ZERO,
        store_ok: true,
        groups: (0, 0),
    };
    core.carry_out(); // what the machine wants at its start
    loop {
        let wait = core.wait();
        tokio::select! {
            biased;
            (at, answers) = poll_fn(|cx| {
                let ended = |(at, group): (usize, &mut Appending)| match group.task.as_mut().poll(cx) {
                    Poll::Ready(answers) => Some((at, answers)),
                    Poll::Pending => None,
                };
                core.appending.iter_mut().enumerate().find_map(ended).map_or(Poll::Pending, Poll::Ready)
            }) => core.appended(at, answers),
            done = poll_fn(|cx| match core.putting.as_mut() {
                Some(f) => f.as_mut().poll(cx),
                None => Poll::Pending,
            }) => core.put(done),
            () = shared.inbox.wait() => {}
            () = tokio::time::sleep(wait) => {}
        }
        let (since, inputs) = shared.inbox.take();
        if !inputs.is_empty() {
            core.node.waited(shared.env.clock.now().saturating_sub(since));
        }
        let told = shared.pressure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(level) = told {
            core.node.told_pressure(shared.now(), level);
            if level != Level::Normal {
                core.stats_at = core.stats_at.min(shared.env.clock.now() + STATS_UNDER_LOAD);
            }
        }
        for input in inputs {
            core.handle(input);
        }
        if core.turn() {
            return;
        }
    }
}

impl Core {
    /// How long there is nothing to do by the clock.
    fn wait(&self) -> Duration {
        let now = self.shared.env.clock.now();
        let machine = self.node.next_deadline().map_or(STATS_EVERY, |at| at.saturating_sub(now));
        let stop = if self.stop.is_some() { STOP_POLL } else { STATS_EVERY };
        let stop = if self.leaving.is_empty() { stop } else { LEAVE_POLL };
        let puts = self.puts.next_deadline().map_or(STATS_EVERY, |at| at.saturating_sub(now));
        machine.min(stop).min(puts).min(self.stats_at.saturating_sub(now).max(Duration::from_millis(1)))
    }

    fn handle(&mut self, input: Input) {
        let now = self.shared.now();
        match input {
            Input::EdgeUp(edge, port) => {
                if self.shared.config.sharing.is_some() {
                    port.owners(self.owners().to_wire());
                }
                if self.stop.is_some() && port.stopping() {
                    self.node.drain([edge]);
                }
                self.edges.insert(edge, port);
            }
            Input::EdgeDown(edge) => {
                self.edges.remove(&edge);
                self.node.edge_down(now, edge);
            }
            Input::Ups(edge, ups) => {
                if self.edges.contains_key(&edge) {
                    self.node.ups(now, edge, ups);
                }
            }
            Input::PeerUp { region, link, node, hello, sender } => {
                self.peer_up(now, region, link, node, &hello, sender);
            }
            Input::PeerDown { region, link } => {
                if let Some(at) = self.peer_of(region, link) {
                    self.peers.remove(&at);
                    self.node.peer_core_down(now, at);
                }
            }
            Input::PeerFrames { region, link, frames } => {
                if let Some(at) = self.peer_of(region, link) {
                    for frame in frames {
                        self.node.peer_core_frame(now, at, frame);
                    }
                }
            }
            // What was read before a slot went and came back is of no use: it is being read anew.
            Input::ConversationLoaded(state, damaged, fence) => {
                if self.node.fence_of(state.conversation()) == fence {
                    self.node.conversation_loaded(now, *state, damaged);
                }
            }
            Input::UserLoaded(user, rows, fence) => {
                if self.node.fence_of_user(&user) == fence {
                    self.node.user_loaded(now, &user, rows);
                }
            }
            Input::CoreUp { core, name, sender } => {
                self.cores.insert(core, sender);
                if let Some(old) = self.names.insert(name.clone(), core) {
                    self.cores.remove(&old);
                    self.node.core_down(now, old);
                }
                self.node.core_up(now, core);
                // What was said while there was no link was lost.
                let theirs = self.shares_of(&name);
                self.node.siblings_moved(now, |slot| theirs.contains(&slot.share()));
            }
            Input::CoreDown { core } => {
                if self.cores.remove(&core).is_some() {
                    self.names.retain(|_, current| *current != core);
                    self.node.core_down(now, core);
                }
            }
            Input::CoreFrames { core, frames } => {
                if self.cores.contains_key(&core) {
                    for frame in frames {
                        self.node.core_frame(now, core, frame);
                    }
                }
            }
            Input::Gain(slots, todo, marks) => {
                self.node.gain(now, &slots, todo);
                self.node.to_compare(now, marks);
                self.say_of_shares();
            }
            Input::Leave(slots, until, tell) => {
                self.node.leave(now, &slots);
                self.say_of_shares();
                self.leaving.push((slots, until, tell));
            }
            Input::Lose(slots) => {
                self.node.lose(now, &slots);
                self.say_of_shares();
            }
            Input::Lease(until) => self.node.lease(until),
            Input::Moved(shares) => {
                let told = self.owners().some_to_wire(shares.iter().copied());
                self.edges.values().for_each(|port| port.owners(told.clone()));
                self.peers.values().for_each(|(_, sender)| sender.send([Body::Owners(told.clone())]));
                let shares: BTreeSet<Share> = shares.into_iter().collect();
                self.node.siblings_moved(now, |slot| shares.contains(&slot.share()));
            }
            Input::TodoFound(todo) => self.node.todo_found(now, todo),
            Input::RangeRead(ticket, entries) => self.node.range_read(now, ticket, entries),
            Input::HeadsRead(ticket, page) => self.node.heads_read(now, ticket, &page),
            Input::StartRaised(start) => self.node.start_raised(start),
            Input::Peers(peers) => self.node.set_peers(now, &peers),
            Input::Comparing { marks, held } => {
                self.node.hold_comparisons(now, held);
                self.node.to_compare(now, marks);
                self.say_of_shares();
            }
            Input::PresentAfter(after, tell) => {
                let page = self.node.present_after(now, after.as_ref(), PAGE_USERS);
                let told = page.map(|(users, next)| (Told { stamp: self.stamp(), users }, next));
                let _the_writer_gave_up = tell.send(told);
            }
            Input::PresentOf(users, tell) => {
                let present = self.node.present_of(now, &users);
                let told = present.map(|users| Told { stamp: self.stamp(), users });
                let _the_writer_gave_up = tell.send(told);
            }
            Input::MarksRead(ticket, page) => self.node.marks_read(now, ticket, &page),
            Input::Stop { until, tell } => {
                let keeping = self.edges.iter().filter(|(_, port)| port.stopping()).map(|(edge, _)| *edge);
                self.node.drain(keeping.collect::<Vec<_>>());
                self.stop = Some((until, tell));
            }
        }
    }

    fn peer_up(
        &mut self,
        now: Now,
        region: Region,
        link: u64,
        node: Option<String>,
        hello: &PeerHello,
        sender: Arc<LinkSender>,
    ) {
        let core = node.as_ref().map(|name| {
            let next = 1 + self.peer_cores.len() as CoreId;
            *self.peer_cores.entry((region, name.clone())).or_insert(next)
        });
        let at = Holder { region, core: core.unwrap_or(Holder::only(region).core) };
        if self.shared.config.sharing.is_some() {
            sender.send([Body::Owners(self.owners().to_wire())]);
        }
        if let Some((_, old)) = self.peers.insert(at, (link, sender)) {
            old.close("a newer link of this peer took over");
            self.node.peer_core_down(now, at);
        }
        self.node.peer_core_up(now, at, node.as_deref(), hello);
    }

    /// Whose link this is, if it is the one in use.
    fn peer_of(&self, region: Region, link: u64) -> Option<Holder> {
        let links = self.peers.range(Holder { region, core: 0 }..=Holder { region, core: CoreId::MAX });
        links.into_iter().find(|(_, (current, _))| *current == link).map(|(at, _)| *at)
    }

    /// For what is said to the table of routes.
    fn stamp(&self) -> u64 {
        self.shared.table.get().map_or(0, |table| table.stamp())
    }

    /// What the next beats say of this node's shares.
    fn say_of_shares(&self) {
        if self.shared.config.sharing.is_none() {
            return;
        }
        let regions = self.shared.peers().into_iter().map(|peer| peer.region);
        let incomplete = regions.map(|region| (region, self.node.incomplete_for(region))).collect();
        *self.shared.said_of_shares.lock().unwrap_or_else(PoisonError::into_inner) =
            SaidOfShares { owned: self.node.owned_shares(), incomplete };
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shares_of(&self, name: &str) -> BTreeSet<Share> {
        let owners = self.owners();
        Share::all().filter(|share| owners.of(*share).0.is_some_and(|owner| **owner == *name)).collect()
    }

    /// Slots that are to be given away are given up once nothing is under way in them.
    fn give_up(&mut self, now: Now) {
        let mut waiting = Vec::new();
        for (slots, until, tell) in std::mem::take(&mut self.leaving) {
            if self.node.has_left(&slots) {
                self.node.lose(now, &slots);
                self.say_of_shares();
                let _the_keeper_is_gone = tell.send(true);
            } else if now.mono >= until {
                self.node.stay(&slots);
                self.say_of_shares();
                let _the_keeper_is_gone = tell.send(false);
            } else {
                waiting.push((slots, until, tell));
            }
        }
        self.leaving = waiting;
    }

    /// What core nodes are to be told: the owners of slots, some of them, or all. What is for this node itself, which has
    /// become an owner since, is handed to it.
    fn tell_cores(
        &mut self,
        now: Now,
        owners: BTreeMap<Slot, Vec<Body>>,
        cores: BTreeMap<CoreId, Vec<Body>>,
        everyone: Vec<Body>,
    ) {
        let mut own = Vec::new();
        if !owners.is_empty() {
            let mut active = self.shared.active.lock().unwrap_or_else(PoisonError::into_inner);
            active.extend(owners.keys().map(|slot| (slot.share(), now.mono)));
        }
        for (slot, frames) in owners {
            let name = self.owners().of_slot(slot).cloned();
            let Some(name) = name else { continue };
            if *name == *self.shared.config.node {
                own.extend(frames);
            } else if let Some(sender) = self.names.get(&*name).and_then(|core| self.cores.get(core)) {
                sender.send(frames);
            }
        }
        for (core, frames) in cores {
            if core == OWN {
                own.extend(frames);
            } else if let Some(sender) = self.cores.get(&core) {
                sender.send(frames);
            }
        }
        if !everyone.is_empty() {
            self.cores.values().for_each(|sender| sender.send(everyone.clone()));
        }
        for frame in own {
            self.node.core_frame(now, OWN, frame);
        }
    }

    fn appended(&mut self, at: usize, answers: Vec<(ConvId, Appended)>) {
        let group = self.appending.remove(at);
        let now = self.shared.env.clock.now();
        let took = now.saturating_sub(group.since);
        self.shared.commit_time.lock().unwrap_or_else(PoisonError::into_inner).add(now, took);
        self.store_ok = !answers.iter().any(|(_, a)| matches!(a, Appended::Unknown(_) | Appended::Fenced));
        self.node.appended(self.shared.now(), answers);
        self.shared.commit.store(self.node.commit(), Ordering::Release);
    }

    fn put(&mut self, done: Result<(), StoreError>) {
        self.putting = None;
        let now = self.shared.now();
        match done {
            Ok(()) => {
                if self.puts.done() {
                    self.node.flushed(now);
                }
            }
            Err(error) => {
                self.store_ok = false;
                tracing::error!(%error, "rows could not be written; trying again");
                if self.puts.failed(now.mono, &error) {
                    self.node.flush_failed(now);
                }
            }
        }
    }

    /// Timers, then everything the machine says. Whether the core has stopped.
    fn turn(&mut self) -> bool {
        let now = self.shared.now();
        self.node.tick(now);
        self.give_up(now);
        self.carry_out();
        if self.stats_at <= now.mono {
            let calm = self.node.gives_up(now) == Level::Normal;
            self.stats_at = now.mono + if calm { STATS_EVERY } else { STATS_UNDER_LOAD };
            self.publish(now.mono);
        }
        let Some(until) = self.stop.as_ref().map(|(until, _)| *until) else { return false };
        let settled =
            self.node.is_settled() && self.appends.is_empty() && self.appending.is_empty() && self.puts.is_empty();
        if !settled && now.mono < until {
            return false;
        }
        if let Some((_, tell)) = self.stop.take() {
            let mut last = self.puts.rest();
            last.extend(self.node.last_puts());
            let _the_caller_gave_up = tell.send((settled, last));
        }
        true
    }

    fn carry_out(&mut self) {
        // What the node has for itself may make more of it.
        while self.carry_out_once() {}
        self.begin_append();
        self.begin_put();
    }

    /// Whether there may be more.
    fn carry_out_once(&mut self) -> bool {
        let Outputs { appends, puts, flush, wants, downs, links, moved, notices, bounced, owners, cores, everyone } =
            self.node.take_outputs();
        if let Some(table) = self.shared.table.get().filter(|_| !moved.is_empty()) {
            table.moved(moved);
        }
        for (edge, ups) in bounced {
            if let Some(port) = self.edges.get(&edge) {
                port.bounced(ups);
            }
        }
        for (edge, downs) in downs {
            if let Some(port) = self.edges.get(&edge) {
                port.deliver(downs);
            }
        }
        for (at, frames) in links {
            if let Some((_, sender)) = self.peers.get(&at) {
                sender.send(frames);
            }
        }
        for want in wants {
            let fence = match &want {
                Want::Conversation(id) => self.node.fence_of(*id),
                Want::User(user) => self.node.fence_of_user(user),
                Want::Range { .. } | Want::Heads { .. } | Want::Marks { .. } => None,
            };
            self.shared.env.tasks.spawn(reads::read(self.shared.clone(), self.store.clone(), want, fence));
        }
        self.appends.extend(appends);
        if let Some(rows) = flush {
            self.puts.flush(rows);
        }
        self.puts.push(puts);
        let more = owners.len() + cores.len() > 0;
        self.tell_cores(self.shared.now(), owners, cores, everyone);
        for notice in notices {
            if let Notice::Refilled { region, .. } = &notice {
                self.shared.unmark(*region);
            }
            if let Notice::SlotLost(_) = &notice {
                self.say_of_shares();
            }
            report(&notice);
        }
        more
    }

    fn begin_append(&mut self) {
        let room = self.store.appends_at_once().saturating_sub(self.appending.len());
        if self.appends.is_empty() || room == 0 {
            return;
        }
        let alone = self.store.appends_at_once() > 1;
        let under_way: BTreeSet<ConvId> =
            self.appending.iter().flat_map(|group| &group.conversations).copied().collect();
        let (mut begun, mut free, mut held) = (BTreeSet::new(), Vec::new(), Vec::new());
        for append in std::mem::take(&mut self.appends) {
            let id = append.conversation;
            let fits = !alone || begun.len() < room || begun.contains(&id);
            if fits && !under_way.contains(&id) {
                begun.insert(id);
                free.push(append);
            } else {
                held.push(append);
            }
        }
        let admitted = self.puts.admit(&mut free);
        held.append(&mut free);
        self.appends = held;
        let mut groups = BTreeMap::<Option<ConvId>, Vec<Append>>::new();
        for append in admitted {
            groups.entry(alone.then_some(append.conversation)).or_default().push(append);
        }
        for batches in groups.into_values() {
            self.groups = (self.groups.0 + 1, self.groups.1 + batches.len() as u64);
            let ids: Vec<ConvId> = batches.iter().map(|b| b.conversation).collect();
            let store = self.store.clone();
            self.appending.push(Appending {
                since: self.shared.env.clock.now(),
                conversations: ids.iter().copied().collect(),
                task: Box::pin(async move { ids.into_iter().zip(store.append(batches).await).collect() }),
            });
        }
    }

    fn begin_put(&mut self) {
        if let Some(owned) = self.node.owned() {
            self.puts.keep_owned(|slot| owned.contains_key(&slot), &self.shared.config.direct_salt);
        }
        let Some((puts, durability)) = self.puts.begin(self.shared.env.clock.now()) else { return };
        let store = self.store.clone();
        self.putting = Some(Box::pin(async move { store.put(puts, durability).await }));
    }

    fn publish(&self, now: Duration) {
        self.say_of_shares();
        let peers = self.shared.peers();
        let peers = peers.iter().map(|p| {
            let link = self.node.link(p.region);
            let stats = PeerStats {
                connected: link.is_some_and(tern_core::node::link::Link::is_connected),
                backlog: link.map_or(0, tern_core::node::link::Link::backlog),
                silence: link.map_or(Duration::ZERO, |l| l.silence(now)),
                lag: self.node.lag(p.region),
            };
            (p.region, stats)
        });
        let routes = self.node.routes();
        let mut regions = BTreeMap::<Region, RegionRoutes>::new();
        for part in routes.parts(now) {
            // Of a node of this region that has gone nothing is to be seen for the moment that its part stays.
            if part.is_stale && part.holder.core != 0 {
                continue;
            }
            let fresh = RegionRoutes { is_whole: true, ..RegionRoutes::default() };
            let region = regions.entry(part.holder.region).or_insert(fresh);
            region.users += part.users;
            region.bytes += part.bytes;
            region.is_stale |= part.is_stale;
            region.is_whole &= part.is_whole;
            region.pulled += part.pulled;
        }
        self.shared.stats.set(Stats {
            at: now,
            store_ok: self.store_ok,
            peers: peers.collect(),
            sizes: self.node.sizes(),
            counters: self.node.counters(),
            routes: (routes.here().0, regions.values().map(|region| region.users).sum()),
            route_resyncs: routes.resyncs(),
            regions,
            groups: self.groups,
            refilling: self.node.refilling(),
            eras: self.node.era_counts(),
        });
    }
}

fn report(notice: &Notice) {
    match notice {
        Notice::ClockAhead { region, ms } => {
            tracing::warn!(region, ms, "a peer region's clock is far ahead: check its time synchronization");
        }
        Notice::OwnClockOff { ms, stopped: true } => {
            tracing::error!(
                ms,
                "this region's clock is far off the other regions': it takes no sends until it is set right"
            );
        }
        Notice::OwnClockOff { ms, stopped: false } => {
            tracing::warn!(ms, "this region's clock is off the other regions': check its time synchronization");
        }
        Notice::OwnTailLost { conversation } => {
            tracing::error!(%conversation, "a peer holds entries of this region's current era that this store lacks: its disk lost a tail. Stop this region and start it again; it takes a new era");
        }
        Notice::Damaged { conversation, what } => tracing::error!(%conversation, what, "a log is damaged and refused"),
        Notice::Fenced => tracing::error!("another process has taken over this store; this one serves no more sends"),
        Notice::Refilled { region, offers } => {
            tracing::info!(region, offers, "this store was compared with a peer region: both hold what each did");
        }
        Notice::SlotLost(slot) => {
            tracing::warn!(slot = slot.number(), "another node of this region has taken over a slot");
        }
        Notice::Sealed { origin } => {
            tracing::info!(era = %origin, "a former era of this region is sealed: every region holds what any holds of it");
        }
        Notice::BadPeer { region, what } => {
            tracing::warn!(region, what, "a peer region sent what can't be; it was left out");
        }
    }
}
