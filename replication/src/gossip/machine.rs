//! One node's part in the gossip of one region: a machine without sockets, tasks or clocks.
//!
//! foca does SWIM; around it lies what foca leaves to its user, and what it would do wrong here:
//!
//! - **Who is let in.** A stranger that says "let me in" gets a cookie first, and is let in when it shows it. A
//!   recording of a dead node's greeting therefore opens nothing, not even at a node that has just started and knows
//!   nobody. Everything else must name this start of this node as its receiver, and be new (see `seen`).
//! - **Who is who.** Of two starts of one name the later one is the node. foca would let both declare each other dead
//!   for ever. Here a datagram of an earlier start is answered by who has replaced it, and a node that learns so says
//!   nothing more: it asks now and then whether the other is gone. An answer that the other is dead means that the
//!   other was itself, before a restart with a clock that was set back, or that a second node of the name was
//!   stopped: then it takes the next number above, and is back.
//! - **Being alone.** foca has no way back from zero members: the seeds, and the last known addresses, are asked
//!   again and again. Seeds that are not among the members are asked too, which joins halves that started apart.
//! - **Being suspected.** foca tells of a suspicion a few times. A node that was unreachable meanwhile would be dead
//!   for not objecting to what it never heard. Here it goes on being told until its time is over.
//! - **Standing still.** A process that was stopped for a while finds its timers due before it has read what waits
//!   in its socket. They are moved by as much as they are late.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foca::{AccumulatingRuntime, Message, OwnedNotification, State, Timer};
use ring::hmac;
use tern_core::clock::Entropy;
use tern_core::ids::Region;
use tern_core::wire::node_v1::{EdgeLoad, Order};

use super::events::{Counters, Dropped, Event, Member, MemberState, Output};
use super::identity::{NodeId, NodeKey, Role};
use super::limits::{
    ANSWER_EVERY, ANSWERED_MAX, CLUSTER_MIN, FAREWELLS, LATE_MAX, MEMBERS_MAX, REPLACED_RETRY, REPLACED_RETRY_MAX,
    SEEK_ALONE, SEEK_ALONE_LONG, SEEK_AT_ONCE, SEEK_MISSING, SEEK_TIRED, SUSPECT_TELLERS, TICK,
};
use super::load::{LoadHandler, Record, encode_order};
use super::membership::{Membership, membership, profile};
use super::seal::{GossipKeys, Sealer};
use super::seen::{Newness, Seen};
use super::wire::{self, COOKIE_BYTES, Cookie, Said};

/// What a node is told once.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// Whose cluster it takes part in.
    pub region: Region,
    /// Who it is.
    pub id: NodeId,
    /// The deployment's name.
    pub deployment: String,
    /// The deployment's keys.
    pub keys: GossipKeys,
}

/// The machine can't be made: the cryptography library refuses its keys, which it does for no key of 32 bytes.
#[derive(Debug, thiserror::Error)]
#[error("keys for gossip can't be derived; this node does not take part")]
pub struct KeyError;

/// A member as it was last told.
#[derive(Clone, Debug)]
struct Known {
    id: NodeId,
    active: bool,
}

#[derive(Clone, Debug)]
enum Part {
    Takes,
    Replaced { by: NodeId, retry_at: Duration, pause: Duration },
    Left,
}

/// See the module.
pub struct Gossip {
    config: GossipConfig,
    rng: Arc<Entropy>,
    foca: Membership,
    runtime: AccumulatingRuntime<NodeId>,
    loads: LoadHandler,
    sealer: Sealer,
    cookies: hmac::Key,
    part: Part,
    timers: BTreeMap<(Duration, u64), Timer<NodeId>>,
    timer_number: u64,
    /// Dead members, when they are forgotten, and the identity that died.
    removals: BTreeMap<NodeKey, (Duration, NodeId)>,
    known: BTreeMap<NodeKey, Known>,
    suspects: BTreeMap<NodeKey, NodeId>,
    /// When the newest record of a node came.
    heard: BTreeMap<Arc<str>, Duration>,
    seen: Seen,
    /// When a node was last answered so: with a cookie, or that it was replaced.
    answered: BTreeMap<(NodeKey, bool), Duration>,
    seeds: Vec<SocketAddr>,
    /// Where others were before this node started over: the seeds may be down.
    last: Vec<SocketAddr>,
    /// Cookies that will still be taken until the next tick.
    invited: usize,
    seek_at: Duration,
    seeks: u32,
    tick_at: Duration,
    cluster: usize,
    record: u32,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip").field("id", self.foca.identity()).field("part", &self.part).finish_non_exhaustive()
    }
}

impl Gossip {
    /// A node that knows nobody yet. It asks its seeds as soon as its timer is handled.
    pub fn new(config: GossipConfig, rng: Arc<Entropy>, now: Duration) -> Result<Self, KeyError> {
        let sealer = Sealer::new(&config.keys, &config.deployment, config.region, &rng).map_err(|_| KeyError)?;
        let loads = LoadHandler::new(config.region, config.id.name.clone());
        let mut secret = [0; 32];
        rng.fill(&mut secret);
        // Ticks of nodes that start together are apart.
        let tick_at = now + jittered(&rng, TICK);
        Ok(Self {
            foca: membership(config.region, config.id.clone(), &rng, &loads, CLUSTER_MIN),
            runtime: AccumulatingRuntime::new(),
            loads,
            sealer,
            cookies: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            part: Part::Takes,
            timers: BTreeMap::new(),
            timer_number: 0,
            removals: BTreeMap::new(),
            known: BTreeMap::new(),
            suspects: BTreeMap::new(),
            heard: BTreeMap::new(),
            seen: Seen::default(),
            answered: BTreeMap::new(),
            seeds: Vec::new(),
            last: Vec::new(),
            invited: SEEK_AT_ONCE,
            seek_at: now,
            seeks: 0,
            tick_at,
            cluster: CLUSTER_MIN,
            record: 0,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            config,
            rng,
        })
    }

    /// Who this node is now.
    pub fn id(&self) -> &NodeId {
        self.foca.identity()
    }

    /// Whose cluster it is.
    pub fn region(&self) -> Region {
        self.config.region
    }

    /// The node that took this one's place.
    pub fn replaced_by(&self) -> Option<&NodeId> {
        match &self.part {
            Part::Replaced { by, .. } => Some(by),
            _ => None,
        }
    }

    /// Whether it knows no living member but itself.
    pub fn is_alone(&self) -> bool {
        self.foca.num_members() == 0
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        Counters { bad_records: self.loads.lock().bad(), ..self.counters.clone() }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Gossip::handle_timer`] is to be called, at the latest.
    pub fn next_deadline(&self) -> Duration {
        let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
        match &self.part {
            Part::Left => Duration::MAX,
            Part::Replaced { retry_at, .. } => self.tick_at.min(*retry_at),
            Part::Takes => self.tick_at.min(self.seek_at).min(timer.unwrap_or(Duration::MAX)),
        }
    }

    /// Where others may be found.
    pub fn set_seeds(&mut self, seeds: Vec<SocketAddr>) {
        self.seeds = seeds;
    }

    /// Seals with the first of these from now on, and opens what was sealed with any.
    pub fn set_keys(&mut self, keys: GossipKeys) -> Result<(), KeyError> {
        self.sealer.set_keys(&keys, &self.config.deployment, self.config.region).map_err(|_| KeyError)?;
        self.config.keys = keys;
        Ok(())
    }

    /// What this node says of its edge, now.
    pub fn set_load(&mut self, load: EdgeLoad, now: Duration) {
        if !matches!(self.part, Part::Takes) {
            return;
        }
        self.record = self.record.wrapping_add(1);
        let id = self.foca.identity();
        let record = Record { name: id.name.clone(), start: id.start, counter: self.record, load };
        let added = self.foca.add_broadcast(&record.encode()).map(|_is_news| ());
        // Straight to some, without waiting for the next round of gossip.
        let sent = self.foca.broadcast(&mut self.runtime);
        self.note(added.and(sent));
        self.loads.lock().take_fresh();
        self.drain(now);
    }

    /// What this node knows of operators' orders; those that it says in turn.
    pub fn say_orders(&mut self, orders: &[Order], now: Duration) {
        if !matches!(self.part, Part::Takes) || orders.is_empty() {
            return;
        }
        for order in orders {
            let added = self.foca.add_broadcast(&encode_order(order)).map(|_is_news| ());
            self.note(added);
        }
        let sent = self.foca.broadcast(&mut self.runtime);
        self.note(sent);
        self.drain(now);
    }

    /// Tells the others that this node goes. Nothing happens afterwards.
    pub fn leave(&mut self, now: Duration) {
        if matches!(self.part, Part::Takes) {
            let left = self.foca.leave_cluster(&mut self.runtime);
            self.note(left);
            for _ in 1..FAREWELLS {
                let said = self.foca.gossip(&mut self.runtime);
                self.note(said);
            }
            self.drain(now);
        }
        self.part = Part::Left;
        self.timers.clear();
    }

    /// All members, this node included, by name.
    pub fn members(&self, now: Duration) -> Vec<Member> {
        let loads = self.loads.lock();
        let load = |id: &NodeId| {
            if id.role == Role::Ipconf {
                return None;
            }
            let record = loads.get(&id.name).filter(|record| record.start == id.start)?;
            let age = self.heard.get(&id.name).map_or(Duration::ZERO, |at| now.saturating_sub(*at));
            Some(EdgeLoad { age_ms: millis(age), ..record.load.clone() })
        };
        let own = self.foca.identity();
        let state = if matches!(self.part, Part::Takes) { MemberState::Alive } else { MemberState::Down };
        let mut members = vec![Member { id: own.clone(), state, is_self: true, load: load(own) }];
        members.extend(self.foca.iter_membership_state().map(|member| Member {
            id: member.id().clone(),
            state: match member.state() {
                State::Alive => MemberState::Alive,
                State::Suspect => MemberState::Suspect,
                State::Down => MemberState::Down,
            },
            is_self: false,
            load: load(member.id()),
        }));
        members.sort_by(|a, b| (&a.id.name, a.id.role, a.id.region).cmp(&(&b.id.name, b.id.role, b.id.region)));
        members
    }

    // ---- datagrams ----------------------------------------------------------------------------------------

    /// A datagram of this region came from `from`; it is opened in place. Whatever it is, nothing goes wrong.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Duration) {
        let turn = self.foca.identity().turn;
        match self.take(from, datagram, now) {
            Ok(()) => self.counters.received += 1,
            Err(why) => self.count_dropped(why),
        }
        self.drain(now);
        if self.foca.identity().turn != turn {
            // It has just said that this node was dead: it is the one to be told first that it is not.
            self.ask(from);
        }
    }

    /// Counts a datagram that could not be handed over.
    pub fn count_dropped(&mut self, why: Dropped) {
        *self.counters.dropped.entry(why).or_default() += 1;
    }

    fn take(&mut self, from: SocketAddr, datagram: &mut [u8], now: Duration) -> Result<(), Dropped> {
        let opened = self.sealer.open(datagram)?;
        let (session, counter) = (opened.session, opened.counter);
        self.counters.by_other_key += u64::from(opened.by_other_key);
        let said = Said::decode(self.config.region, opened.payload).map_err(|_| Dropped::Malformed)?;
        if matches!(self.part, Part::Left) {
            return Err(Dropped::Inactive);
        }
        match said {
            Said::Packet(packet) => {
                let (header, members) = wire::peek(self.config.region, packet).map_err(|_| Dropped::Malformed)?;
                self.check_sender(&header.src, now)?;
                let own = self.foca.identity();
                let for_this_name = header.message == Message::Announce && header.dst.key() == own.key();
                if header.dst != *own && !for_this_name {
                    return Err(Dropped::Misdirected);
                }
                self.check_start(&header.src, now)?;
                if header.message == Message::Announce && !self.is_member(&header.src) {
                    self.offer_cookie(&header.src, now);
                    return Err(Dropped::Stranger);
                }
                self.check_new(&header.src, session, counter, now)?;
                let own = self.foca.identity();
                let later = |id: &NodeId| id.order() > own.order() && id.key() == own.key();
                if let Some(member) = members.iter().find(|member| later(member.id())) {
                    let (by, alive) = (member.id().clone(), member.state() != State::Down);
                    self.be_replaced(by, alive, now);
                    return Err(Dropped::Inactive);
                }
                let handled = self.foca.handle_data(packet, &mut self.runtime);
                match handled {
                    Err(
                        foca::Error::Decode(_)
                        | foca::Error::MalformedPacket
                        | foca::Error::CustomBroadcast(_)
                        | foca::Error::DataTooBig
                        | foca::Error::DataFromOurselves
                        | foca::Error::IndirectForOurselves,
                    ) => Err(Dropped::Malformed),
                    other => {
                        self.note(other);
                        Ok(())
                    }
                }
            }
            Said::Join { from: node, cookie } => {
                self.check_sender(&node, now)?;
                self.check_start(&node, now)?;
                if !self.is_member(&node) && (cookie != Some(self.cookie(&node)) || self.known.len() >= MEMBERS_MAX) {
                    self.offer_cookie(&node, now);
                    return Err(Dropped::Stranger);
                }
                self.check_new(&node, session, counter, now)?;
                let packet = wire::announcement(node, self.foca.identity().clone());
                let handled = self.foca.handle_data(&packet, &mut self.runtime);
                self.note(handled);
                Ok(())
            }
            Said::Cookie { to, cookie } => {
                if to != *self.foca.identity() {
                    return Err(Dropped::Misdirected);
                }
                // So many and no more: whoever replays cookies must not make this node flood others.
                self.invited = self.invited.checked_sub(1).ok_or(Dropped::Replayed)?;
                if matches!(self.part, Part::Replaced { .. }) {
                    // It was asked, and knows nothing of another one of this name.
                    self.part = Part::Takes;
                    self.event(Event::Restored(to.clone()));
                }
                self.send(from, &Said::Join { from: to, cookie: Some(cookie) });
                Ok(())
            }
            Said::Suspected { to, incarnation } => {
                if to != *self.foca.identity() || !matches!(self.part, Part::Takes) {
                    return Err(Dropped::Misdirected);
                }
                let suspicion = foca::Member::new(to, incarnation, State::Suspect);
                let handled = self.foca.apply_many(std::iter::once(suspicion), false, &mut self.runtime);
                self.note(handled);
                Ok(())
            }
            Said::Replaced { to, by, alive } => {
                let own = self.foca.identity();
                if to.key() != own.key() || to.start != own.start || by.key() != own.key() {
                    return Err(Dropped::Misdirected);
                }
                if by.order() > own.order() {
                    self.be_replaced(by, alive, now);
                }
                Ok(())
            }
        }
    }

    /// Whether this node takes part, and its sender is another one.
    fn check_sender(&mut self, node: &NodeId, now: Duration) -> Result<(), Dropped> {
        let own = self.foca.identity().clone();
        let key = node.key();
        if key == own.key() && node.order() > own.order() {
            self.be_replaced(node.clone(), true, now);
            return Err(Dropped::Inactive);
        }
        if !matches!(self.part, Part::Takes) {
            return Err(Dropped::Inactive);
        }
        if key == own.key() && node.start < own.start {
            self.answer(node.addr, &key, &Said::Replaced { to: node.clone(), by: own, alive: true }, now);
            return Err(Dropped::Replaced);
        }
        // Its own datagram has come back.
        if key == own.key() { Err(Dropped::Misdirected) } else { Ok(()) }
    }

    /// Whether no later start or turn of a sender is known. If one is, the sender is told.
    fn check_start(&mut self, node: &NodeId, now: Duration) -> Result<(), Dropped> {
        let key = node.key();
        match self.known.get(&key) {
            Some(known) if known.id.order() > node.order() => {
                let said = Said::Replaced { to: node.clone(), by: known.id.clone(), alive: known.active };
                self.answer(node.addr, &key, &said, now);
                Err(Dropped::Replaced)
            }
            _ => Ok(()),
        }
    }

    /// Whether this datagram of its sender was not seen yet. Strangers are not remembered: what they say may have
    /// been recorded.
    fn check_new(&mut self, node: &NodeId, session: u64, counter: u64, now: Duration) -> Result<(), Dropped> {
        match self.seen.look(node, session, counter) {
            Newness::New => Ok(()),
            Newness::Replayed => Err(Dropped::Replayed),
            Newness::EarlierThan(start) => {
                // That one is long dead and forgotten, but for its number.
                let by = NodeId { start, ..node.clone() };
                self.answer(node.addr, &node.key(), &Said::Replaced { to: node.clone(), by, alive: false }, now);
                Err(Dropped::Replaced)
            }
        }
    }

    fn is_member(&self, node: &NodeId) -> bool {
        self.known.get(&node.key()).is_some_and(|known| known.active && known.id == *node)
    }

    fn cookie(&self, node: &NodeId) -> Cookie {
        let mut bytes = Vec::new();
        wire::put_node(node, &mut bytes);
        let mut cookie = [0; COOKIE_BYTES];
        cookie.copy_from_slice(&hmac::sign(&self.cookies, &bytes).as_ref()[..COOKIE_BYTES]);
        cookie
    }

    fn offer_cookie(&mut self, node: &NodeId, now: Duration) {
        let said = Said::Cookie { to: node.clone(), cookie: self.cookie(node) };
        self.answer(node.addr, &node.key(), &said, now);
    }

    /// Sends an answer, unless the same node got such a one just now.
    fn answer(&mut self, to: SocketAddr, key: &NodeKey, said: &Said<'_>, now: Duration) {
        let which = (key.clone(), matches!(said, Said::Cookie { .. }));
        if self.answered.get(&which).is_some_and(|at| now.saturating_sub(*at) < ANSWER_EVERY) {
            return;
        }
        if self.answered.len() >= ANSWERED_MAX {
            self.answered.clear();
        }
        self.answered.insert(which, now);
        self.send(to, said);
    }

    fn send(&mut self, to: SocketAddr, said: &Said<'_>) {
        match self.sealer.seal(&said.encode()) {
            Some(datagram) => {
                self.counters.sent += 1;
                self.counters.sent_bytes += datagram.len() as u64;
                self.outputs.push_back(Output::Send(to, datagram));
            }
            None => self.counters.internal += 1,
        }
    }

    // ---- being replaced -----------------------------------------------------------------------------------

    fn be_replaced(&mut self, by: NodeId, alive: bool, now: Duration) {
        if !alive || by.start == self.foca.identity().start {
            // The next number after a dead start: this node's place is free. Or others believe in a turn of this
            // start that it has not come to: only a new start can win against that.
            let id = NodeId { start: by.start.saturating_add(1), turn: 0, ..self.foca.identity().clone() };
            self.start_over(id.clone(), now);
            self.event(Event::Restored(id));
            return;
        }
        match &mut self.part {
            Part::Replaced { by: known, .. } => *known = by,
            Part::Takes => {
                let retry_at = now + REPLACED_RETRY + jittered(&self.rng, REPLACED_RETRY);
                self.start_over(self.foca.identity().clone(), now);
                self.part = Part::Replaced { by: by.clone(), retry_at, pause: REPLACED_RETRY };
                self.event(Event::Replaced(by));
            }
            Part::Left => {}
        }
    }

    /// Forgets the others, and is `id`. What is sealed goes on counting.
    fn start_over(&mut self, id: NodeId, now: Duration) {
        self.last = self.known.values().map(|known| known.id.addr).take(SEEK_AT_ONCE).collect();
        self.loads = LoadHandler::new(self.config.region, id.name.clone());
        self.foca = membership(self.config.region, id, &self.rng, &self.loads, self.cluster);
        self.runtime = AccumulatingRuntime::new();
        self.timers.clear();
        self.removals.clear();
        self.known.clear();
        self.suspects.clear();
        self.heard.clear();
        self.part = Part::Takes;
        (self.seek_at, self.seeks) = (now, 0);
    }

    // ---- time ---------------------------------------------------------------------------------------------

    /// Does everything that is due.
    pub fn handle_timer(&mut self, now: Duration) {
        if matches!(self.part, Part::Left) {
            return;
        }
        if let Some(((first, _), _)) = self.timers.first_key_value()
            && now.saturating_sub(*first) > LATE_MAX
        {
            let late = now - *first;
            let timers = std::mem::take(&mut self.timers);
            self.timers = timers.into_iter().map(|((at, number), timer)| ((at + late, number), timer)).collect();
        }
        while let Some(first) = self.timers.first_entry()
            && first.key().0 <= now
        {
            let handled = self.foca.handle_timer(first.remove(), &mut self.runtime);
            self.note(handled);
            self.drain(now);
        }
        if let Part::Replaced { retry_at, pause, .. } = &mut self.part
            && *retry_at <= now
        {
            *pause = (*pause * 2).min(REPLACED_RETRY_MAX);
            *retry_at = now + *pause / 2 + jittered(&self.rng, *pause);
            self.seek_alone();
        }
        if self.tick_at <= now {
            self.tick_at = now + TICK;
            self.tick(now);
        }
        if matches!(self.part, Part::Takes) && self.seek_at <= now {
            self.seek(now);
        }
    }

    fn tick(&mut self, now: Duration) {
        self.invited = SEEK_AT_ONCE;
        let due: Vec<NodeKey> =
            self.removals.iter().filter(|(_, (at, _))| *at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            let Some((_, id)) = self.removals.remove(&key) else { continue };
            let handled = self.foca.handle_timer(Timer::RemoveDown(id.clone()), &mut self.runtime);
            self.note(handled);
            if self.known.get(&key).is_some_and(|known| !known.active && known.id == id) {
                self.known.remove(&key);
                self.heard.remove(&id.name);
                self.loads.lock().forget(&id.name);
            }
        }
        let members = self.foca.num_members() + 1;
        self.loads.lock().set_members(members);
        let size = members.max(CLUSTER_MIN).next_power_of_two();
        if size != self.cluster {
            self.cluster = size;
            let set = self.foca.set_config(profile(size));
            self.note(set);
        }
        self.look_at_suspects();
        self.drain(now);
    }

    fn look_at_suspects(&mut self) {
        let suspects: Vec<(NodeId, u16)> = self
            .foca
            .iter_members()
            .filter(|member| member.state() == State::Suspect)
            .map(|member| (member.id().clone(), member.incarnation()))
            .collect();
        for (id, incarnation) in &suspects {
            // foca passes the news on a few times and then no more, be the suspect reached or not. So some go on
            // telling it, each second, until it objects or is down.
            let members = u64::try_from(self.foca.num_members()).unwrap_or(u64::MAX);
            if self.rng.below(members) < SUSPECT_TELLERS {
                self.send(id.addr, &Said::Suspected { to: id.clone(), incarnation: *incarnation });
            }
        }
        let suspects: BTreeMap<NodeKey, NodeId> = suspects.into_iter().map(|(id, _)| (id.key(), id)).collect();
        let before = std::mem::replace(&mut self.suspects, suspects);
        let new: Vec<NodeId> = self.suspects.values().filter(|id| !before.contains_key(&id.key())).cloned().collect();
        self.counters.suspected += new.len() as u64;
        new.into_iter().for_each(|id| self.event(Event::Suspected(id)));
        for (key, id) in before {
            if !self.suspects.contains_key(&key) && self.is_member(&id) {
                self.event(Event::Cleared(id));
            }
        }
    }

    /// Asks others to let this node in.
    fn seek(&mut self, now: Duration) {
        let pause = if self.is_alone() {
            self.seeks = self.seeks.saturating_add(1);
            self.seek_alone();
            if self.seeks < SEEK_TIRED { SEEK_ALONE } else { SEEK_ALONE_LONG }
        } else {
            self.seeks = 0;
            let missing: Vec<SocketAddr> = self.strangers().collect();
            if let Some(seed) = self.one_of(&missing) {
                self.ask(seed);
            }
            SEEK_MISSING
        };
        self.seek_at = now + pause / 2 + jittered(&self.rng, pause);
    }

    fn seek_alone(&mut self) {
        self.invited = SEEK_AT_ONCE;
        let mut targets: Vec<SocketAddr> = self.strangers().collect();
        targets.extend(self.known.values().map(|known| known.id.addr));
        targets.extend(&self.last);
        targets.sort_unstable();
        targets.dedup();
        for _ in 0..SEEK_AT_ONCE {
            let Some(target) = self.one_of(&targets) else { return };
            targets.retain(|t| *t != target);
            self.ask(target);
        }
    }

    /// Seeds that are neither this node nor a living member.
    fn strangers(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let own = self.foca.identity().addr;
        let is_there = |at: SocketAddr| self.known.values().any(|known| known.active && known.id.addr == at);
        self.seeds.iter().copied().filter(move |seed| *seed != own && !is_there(*seed))
    }

    fn one_of(&self, of: &[SocketAddr]) -> Option<SocketAddr> {
        let at = self.rng.below(u64::try_from(of.len()).unwrap_or(0));
        of.get(usize::try_from(at).unwrap_or(0)).copied()
    }

    fn ask(&mut self, seed: SocketAddr) {
        let from = self.foca.identity().clone();
        self.send(seed, &Said::Join { from, cookie: None });
    }

    // ---- what foca says -----------------------------------------------------------------------------------

    fn note(&mut self, result: Result<(), foca::Error>) {
        if let Err(error) = result {
            self.counters.internal += 1;
            tracing::debug!(%error, "the membership protocol was misused");
        }
    }

    /// Passes on what foca wants done and has noticed.
    fn drain(&mut self, now: Duration) {
        while let Some((to, packet)) = self.runtime.to_send() {
            self.send(to.addr, &Said::Packet(&packet));
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            match timer {
                // One for each name is enough: an earlier identity of the name is no member any more.
                Timer::RemoveDown(id) => {
                    self.removals.insert(id.key(), (now + after, id));
                }
                timer => {
                    self.timer_number += 1;
                    self.timers.insert((now + after, self.timer_number), timer);
                }
            }
        }
        while let Some(notification) = self.runtime.to_notify() {
            self.notice(notification, now);
        }
        let orders = self.loads.lock().take_fresh_orders();
        for order in orders {
            self.event(Event::Order(order));
        }
        let fresh = self.loads.lock().take_fresh();
        for name in fresh {
            self.heard.insert(name.clone(), now);
            self.event_load(&name, now);
        }
    }

    fn notice(&mut self, notification: OwnedNotification<NodeId>, now: Duration) {
        match notification {
            OwnedNotification::MemberUp(id) => {
                self.known.insert(id.key(), Known { id: id.clone(), active: true });
                let name = (id.role != Role::Ipconf).then(|| id.name.clone());
                self.event(Event::Up(id));
                // Its load may have come before the news that it is there.
                if let Some(name) = name {
                    self.event_load(&name, now);
                }
            }
            OwnedNotification::MemberDown(id) => {
                self.counters.downs += 1;
                self.known.insert(id.key(), Known { id: id.clone(), active: false });
                self.event_gone(&id);
                self.event(Event::Down(id));
            }
            OwnedNotification::Rename(old, new) => {
                let was_active = self.known.get(&old.key()).is_some_and(|known| known.active);
                self.known.insert(new.key(), Known { id: new.clone(), active: was_active });
                // Without another notification it is as alive as the start before: a restart that nobody has
                // noticed. What that start said of its load ends with it.
                if old.start != new.start {
                    self.event_gone(&old);
                    if was_active {
                        let name = new.name.clone();
                        self.event(Event::Restarted(old, new));
                        self.event_load(&name, now);
                    }
                }
            }
            OwnedNotification::Active => self.event(Event::Joined),
            OwnedNotification::Idle => {
                self.seek_at = now + jittered(&self.rng, SEEK_ALONE);
                self.event(Event::Alone);
            }
            OwnedNotification::Rejoin(id) => {
                self.counters.returned += 1;
                self.event(Event::Returned(id));
            }
            // After leaving; or after four thousand million deaths of one start.
            OwnedNotification::Defunct => {}
        }
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Tells the newest load of a node, if that start of it is there.
    fn event_load(&mut self, name: &Arc<str>, now: Duration) {
        let key = NodeKey { region: self.config.region, is_ipconf: false, name: name.clone() };
        let Some(known) = self.known.get(&key).filter(|known| known.active) else { return };
        let heard = self.heard.get(name).copied().unwrap_or(now);
        let load = match self.loads.lock().get(name) {
            Some(record) if record.start == known.id.start => {
                EdgeLoad { age_ms: millis(now.saturating_sub(heard)), ..record.load.clone() }
            }
            _ => return,
        };
        self.event(Event::Load(load));
    }

    fn event_gone(&mut self, id: &NodeId) {
        if id.role == Role::Ipconf {
            return;
        }
        let generation = match self.loads.lock().get(&id.name) {
            Some(record) if record.start == id.start => record.load.generation,
            _ => return,
        };
        self.event(Event::Gone(self.config.region, id.name.clone(), generation));
    }
}

/// A random part of a duration.
fn jittered(rng: &Entropy, of: Duration) -> Duration {
    Duration::from_micros(rng.below(u64::try_from(of.as_micros()).unwrap_or(u64::MAX)))
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
