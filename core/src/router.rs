//! Which core node of its region an edge speaks to, and about what.
//!
//! Problem: a connection's user has one owner and each of its conversations another; owners die, hand slots over, and are
//! not always those that the edge knows. The client is to notice nothing of it.
//!
//! Rule: what a connection says of itself goes to the owner of its user's slot, what it says of a conversation to that of
//! the conversation's, each told first whose connection it is. What a node hands back, and what is for a slot without a
//! node that can be reached, waits for the next word of who owns what, and goes out again. Where a node is lost, or has not
//! answered for [`LEFT_WITHIN`] after another has its slot, its requests are answered with "come again", for nobody knows
//! what became of them, and all of them are idempotent; a connection in use is told to its user's new owner as it stands,
//! and a Hello that nobody has answered is said to him again. So a core may restart under its clients. A slot that
//! nobody has taken up after [`HOMELESS`] is given up until somebody does: what waits for it and what comes for it is
//! answered likewise, and connections whose users are there are sent elsewhere. A node that says that it is stopped and
//! comes back ([`Router::stopping`]) answers what it has and is told nothing new; its slots are given up later, after as
//! long as the operator allows for a restart. One node that owns all of its region is no other case.
//!
//! Why simpler ways fail: a hop over any core node doubles the work of each message and ties the client to a node that has
//! nothing to do with it; answering for a node that can't be reached turns each of its restarts into a reconnect of all;
//! waiting for ever keeps a client at an edge that can do nothing for it, and what it says in this edge's memory.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message;

use crate::codes::{Code, Refusal};
use crate::edge_api::{ConnId, Down, DownBody, Up};
use crate::ids::{ConvId, InstallId, UserId};
use crate::mutants::{Mutant, on};
use crate::slots::{SLOTS, Slot};
use crate::wire::v1::{self, frame::Body};

/// What was handed back goes to the same owner again after so long, if nothing is heard of another.
const AGAIN: Duration = Duration::from_millis(100);
/// A client whose request was lost with a node asks again after so long.
const LOST_AFTER_MS: u32 = 100;
/// What a node has to say of a slot that it gave away is under way before another says that it has it: it comes within this,
/// or the node is dead.
pub const LEFT_WITHIN: Duration = Duration::from_millis(100);
/// Likewise, where nobody has taken the slot up for [`HOMELESS`].
const GIVEN_UP_AFTER_MS: u32 = 1_000;
/// A slot without an owner that can be reached is given up after so long: a client waits no longer for a Pong that
/// knows its revision, nor an edge for the answer to a Hello.
pub const HOMELESS: Duration = Duration::from_secs(5);
/// Bytes that may wait for owners, as large as the queue to a core node. What comes beyond is answered with "come again",
/// and a connection whose Hello or Commit it is is sent elsewhere.
pub const HELD_BYTES: usize = 4 * 1024 * 1024;

/// A core node, as the edge numbers its links: never reused.
pub type CoreNo = u64;

/// What is to be done.
#[derive(Debug, Default)]
pub struct Routed {
    /// For core nodes, in order.
    pub ups: BTreeMap<CoreNo, Vec<Up>>,
    /// For connections of this edge.
    pub downs: Vec<Down>,
}

#[derive(Debug)]
struct Conn {
    user: UserId,
    install: InstallId,
    token_issued_ms: u64,
    home: Slot,
    /// Until it is welcomed: its Hello, to be said again.
    opening: Option<Box<Up>>,
    /// Who has welcomed it.
    welcomed_by: Option<CoreNo>,
    /// Of its Commit.
    order: Option<u64>,
    /// Nodes that know whose it is.
    attached: BTreeSet<CoreNo>,
    /// Conversations whose stability it asked for in its Hello.
    unstable: Vec<v1::UnstableLog>,
    /// Whom it watches.
    watch: Option<v1::Watch>,
    /// Requests without an answer.
    asked: BTreeMap<u32, Asked>,
    /// What of it waits for an owner.
    held: usize,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    core: CoreNo,
    /// What it is about.
    slot: Slot,
    /// It is a Ping, and this its echo.
    ping: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vacancy {
    /// When the slot is given up; `None`: it is.
    until: Option<Duration>,
    /// Its owner has said that it comes back: for how long its clients are asked to stay.
    stay: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Router {
    salt: Vec<u8>,
    owners: Vec<Option<CoreNo>>,
    up: BTreeSet<CoreNo>,
    conns: BTreeMap<ConnId, Conn>,
    /// What waits for an owner, per slot in order.
    held: BTreeMap<Slot, Vec<Up>>,
    /// Its size.
    held_bytes: usize,
    /// Slots whose waiting is tried again, and when.
    again: BTreeSet<(Duration, Slot)>,
    /// Slots that have another owner than was asked, before a tick has said since when.
    moved: BTreeSet<Slot>,
    /// Slots that have moved, and until when a former owner may answer.
    left: BTreeSet<(Duration, Slot)>,
    /// Slots without an owner that can be reached.
    vacant: BTreeMap<Slot, Vacancy>,
    /// The same by time.
    hopes: BTreeSet<(Duration, Slot)>,
    /// Nobody has looked for vacant slots since something has changed.
    unlooked: bool,
    out: Routed,
}

impl Router {
    /// An edge that knows no core node yet. `salt` is the deployment's, by which users have slots.
    pub fn new(salt: Vec<u8>) -> Self {
        Self {
            salt,
            owners: vec![None; usize::from(SLOTS)],
            up: BTreeSet::new(),
            conns: BTreeMap::new(),
            held: BTreeMap::new(),
            held_bytes: 0,
            again: BTreeSet::new(),
            moved: BTreeSet::new(),
            left: BTreeSet::new(),
            vacant: BTreeMap::new(),
            hopes: BTreeSet::new(),
            unlooked: true,
            out: Routed::default(),
        }
    }

    /// Takes what is to be done. Call after every input.
    pub fn take(&mut self) -> Routed {
        std::mem::take(&mut self.out)
    }

    /// Frames that wait for an owner.
    pub fn held(&self) -> usize {
        self.held.values().map(Vec::len).sum()
    }

    /// Bytes of them, about.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether all slots have an owner that can be reached.
    pub fn is_whole(&self) -> bool {
        self.owners.iter().all(|owner| owner.is_some_and(|core| self.up.contains(&core)))
    }

    /// Which node has a slot, if it can be reached.
    fn owner(&self, slot: Slot) -> Option<CoreNo> {
        let owner = self.owners.get(usize::from(slot.number())).copied().flatten();
        owner.filter(|core| self.up.contains(core))
    }

    /// A core node can be reached: what waits for it goes out.
    pub fn core_up(&mut self, core: CoreNo) {
        self.up.insert(core);
        self.unlooked = true;
        let owned = Slot::all().filter(|slot| self.owners.get(usize::from(slot.number())) == Some(&Some(core)));
        self.taken_up(&owned.collect());
    }

    /// A core node can't be reached any more, and knows nothing of any connection when it can be again.
    pub fn core_down(&mut self, core: CoreNo) {
        self.up.remove(&core);
        self.unlooked = true;
        for owner in &mut self.owners {
            if *owner == Some(core) {
                *owner = None;
            }
        }
        for conn in self.conns.values_mut() {
            conn.attached.remove(&core);
        }
        self.ask_again(|of, _| of == core);
    }

    /// Nobody will answer what was told to these nodes of these slots.
    fn ask_again(&mut self, is_lost: impl Fn(CoreNo, Slot) -> bool) {
        let mut again = Vec::new();
        for (id, conn) in &mut self.conns {
            conn.asked.retain(|req, asked| {
                let lost = is_lost(asked.core, asked.slot);
                match asked.ping.filter(|_| lost) {
                    Some(echo) => {
                        let stay = self.vacant.get(&conn.home).map_or(Duration::ZERO, |vacancy| vacancy.stay);
                        self.out.pong(*id, *req, echo, stay);
                    }
                    None if lost => self.out.come_again(*id, *req, LOST_AFTER_MS),
                    None => {}
                }
                !lost
            });
            if let Some(open) = &conn.opening
                && conn.welcomed_by.is_some_and(|core| is_lost(core, conn.home))
            {
                conn.welcomed_by = None;
                again.push((conn.home, (**open).clone()));
            }
        }
        for (slot, up) in again {
            self.route(slot, up);
        }
    }

    /// A core node is stopped in order and expects to be back within `within`: it answers what it has, and what is new
    /// waits here. Until [`Self::core_down`] it is told of connections that end, and of nothing else.
    pub fn stopping(&mut self, now: Duration, core: CoreNo, within: Duration) {
        for slot in Slot::all() {
            let owner = &mut self.owners[usize::from(slot.number())];
            if *owner != Some(core) {
                continue;
            }
            *owner = None;
            self.is_not_vacant(slot);
            self.vacant.insert(slot, Vacancy { until: Some(now + within), stay: within });
            self.hopes.insert((now + within, slot));
        }
    }

    /// Whether nothing is hoped for any more: all slots are given up.
    pub fn is_given_up(&self) -> bool {
        !self.unlooked && self.vacant.len() == usize::from(SLOTS) && self.hopes.is_empty()
    }

    /// Of these slots, which have moved, some are those of what a former owner was told and has not answered.
    fn note_left(&mut self, slots: &BTreeSet<Slot>) {
        let owners = &self.owners;
        let is_left = |core: CoreNo, slot: Slot| {
            slots.contains(&slot) && owners.get(usize::from(slot.number())).is_some_and(|owner| *owner != Some(core))
        };
        for conn in self.conns.values() {
            let left = conn.asked.values().filter(|asked| is_left(asked.core, asked.slot)).map(|asked| asked.slot);
            self.moved.extend(left);
            let opened = conn.welcomed_by.filter(|_| conn.opening.is_some());
            self.moved.extend(opened.filter(|core| is_left(*core, conn.home)).map(|_| conn.home));
        }
    }

    /// Of slots that moved a while ago what former owners have not answered is lost.
    fn look_for_left(&mut self, now: Duration) {
        let moved = std::mem::take(&mut self.moved);
        self.left.extend(moved.into_iter().map(|slot| (now + LEFT_WITHIN, slot)));
        let mut due = BTreeSet::new();
        while let Some((at, slot)) = self.left.first().copied().filter(|(at, _)| *at <= now) {
            self.left.remove(&(at, slot));
            due.insert(slot);
        }
        if !due.is_empty() {
            let owners: BTreeMap<Slot, CoreNo> =
                due.into_iter().filter_map(|slot| Some((slot, self.owner(slot)?))).collect();
            self.ask_again(|core, slot| owners.get(&slot).is_some_and(|owner| *owner != core));
        }
    }

    /// Slots have these owners now; what waits for them goes out.
    pub fn owners(&mut self, owners: impl IntoIterator<Item = (Slot, CoreNo)>) {
        let mut moved = BTreeSet::new();
        for (slot, core) in owners {
            let Some(owner) = self.owners.get_mut(usize::from(slot.number())) else { continue };
            if *owner != Some(core) {
                *owner = Some(core);
                moved.insert(slot);
            }
        }
        self.unlooked |= !moved.is_empty();
        self.note_left(&moved);
        self.taken_up(&moved);
    }

    /// These slots have other owners than before.
    fn taken_up(&mut self, moved: &BTreeSet<Slot>) {
        if moved.is_empty() {
            return;
        }
        for slot in moved {
            if self.owner(*slot).is_some() {
                self.is_not_vacant(*slot);
            }
        }
        let homes: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| moved.contains(&conn.home)).map(|(id, _)| *id).collect();
        for id in homes {
            self.move_home(id);
        }
        for slot in moved {
            self.release(*slot);
        }
    }

    /// Slots have no owner now, or one that can't be reached.
    pub fn nobody(&mut self, slots: impl IntoIterator<Item = Slot>) {
        for slot in slots {
            if let Some(owner) = self.owners.get_mut(usize::from(slot.number())) {
                self.unlooked |= owner.is_some();
                *owner = None;
            }
        }
    }

    fn is_not_vacant(&mut self, slot: Slot) {
        if let Some(Vacancy { until: Some(until), .. }) = self.vacant.remove(&slot) {
            self.hopes.remove(&(until, slot));
        }
    }

    /// Notes which slots are vacant, and gives up those that have been so for too long.
    fn look_for_vacant(&mut self, now: Duration) {
        if std::mem::take(&mut self.unlooked) {
            for slot in Slot::all() {
                if self.owner(slot).is_some() {
                    self.is_not_vacant(slot);
                } else if let Entry::Vacant(place) = self.vacant.entry(slot) {
                    let until = now + HOMELESS;
                    place.insert(Vacancy { until: Some(until), stay: Duration::ZERO });
                    self.hopes.insert((until, slot));
                }
            }
        }
        let mut given_up = BTreeSet::new();
        while let Some((at, slot)) = self.hopes.first().copied().filter(|(at, _)| *at <= now) {
            self.hopes.remove(&(at, slot));
            self.vacant.insert(slot, Vacancy { until: None, stay: Duration::ZERO });
            given_up.insert(slot);
        }
        if given_up.is_empty() {
            return;
        }
        for slot in &given_up {
            for up in self.take_held(*slot) {
                self.give_up(up);
            }
        }
        for (id, conn) in &self.conns {
            if given_up.contains(&conn.home) && !on(Mutant::PongFromEdgeCache) {
                self.out.send_away(*id);
            }
        }
    }

    /// Nobody is there for this.
    fn give_up(&mut self, up: Up) {
        let id = up.conn();
        match up {
            Up::Open { .. } => self.out.send_away(id),
            Up::Send { req, .. } => self.out.come_again(id, req, GIVEN_UP_AFTER_MS),
            Up::Frame { frame, .. } if frame.req != 0 => match ping_of(&frame) {
                Some(echo) => self.out.pong(id, frame.req, echo, Duration::ZERO),
                None => self.out.come_again(id, frame.req, GIVEN_UP_AFTER_MS),
            },
            // Nobody waits for an answer: a new owner is told of the connection as it stands, and the rest are hints.
            Up::Frame { .. } | Up::Attach { .. } | Up::Resume { .. } | Up::Close { .. } => {}
        }
    }

    fn take_held(&mut self, slot: Slot) -> Vec<Up> {
        let ups = self.held.remove(&slot).unwrap_or_default();
        for up in &ups {
            self.held_bytes = self.held_bytes.saturating_sub(bytes_of(up));
            if let Some(conn) = self.conns.get_mut(&up.conn()) {
                conn.held = conn.held.saturating_sub(1);
            }
        }
        ups
    }

    /// The user of a connection has another owner.
    fn move_home(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(core) = self.owners[usize::from(conn.home.number())].filter(|core| self.up.contains(core)) else {
            return;
        };
        let Some(order) = conn.order else { return };
        conn.attached.insert(core);
        let resume = Up::Resume {
            conn: id,
            user: conn.user.clone(),
            install: conn.install.clone(),
            token_issued_ms: conn.token_issued_ms,
            order,
        };
        let watch = conn.watch.clone();
        let ups = self.out.ups.entry(core).or_default();
        ups.push(resume);
        if let Some(watch) = watch {
            ups.push(Up::Frame { conn: id, frame: v1::Frame::new(0, Body::Watch(watch)) });
        }
    }

    /// What connections of this edge said, in order.
    pub fn submit(&mut self, ups: Vec<Up>) {
        for up in ups {
            self.one(up);
        }
    }

    fn one(&mut self, up: Up) {
        match up {
            Up::Open { conn, ref user, ref install, token_issued_ms, .. } => {
                let home = Slot::of_user(&self.salt, user);
                let (user, install) = (user.clone(), install.clone());
                let mut up = up;
                let mut unstable = Vec::new();
                if let Up::Open { hello, .. } = &mut up {
                    unstable = std::mem::take(&mut hello.unstable);
                }
                let opened = Conn {
                    user,
                    install,
                    token_issued_ms,
                    home,
                    opening: Some(Box::new(up.clone())),
                    welcomed_by: None,
                    order: None,
                    attached: BTreeSet::new(),
                    unstable,
                    watch: None,
                    asked: BTreeMap::new(),
                    held: 0,
                };
                self.conns.insert(conn, opened);
                self.route(home, up);
            }
            Up::Close { conn } => {
                let Some(closed) = self.conns.remove(&conn) else { return };
                for core in closed.attached {
                    self.out.ups.entry(core).or_default().push(Up::Close { conn });
                }
                if closed.held > 0 {
                    self.held.retain(|_, ups| {
                        ups.retain(|up| {
                            let stays = up.conn() != conn;
                            self.held_bytes = self.held_bytes.saturating_sub(if stays { 0 } else { bytes_of(up) });
                            stays
                        });
                        !ups.is_empty()
                    });
                }
            }
            Up::Send { ref send, conn, .. } if self.conns.contains_key(&conn) => {
                self.route(Slot::of(send.conversation), up);
            }
            // Of a connection that is gone.
            Up::Send { .. } => {}
            Up::Frame { conn, frame } => self.frame(conn, frame),
            // Only this machine says those.
            Up::Attach { .. } | Up::Resume { .. } => {}
        }
    }

    fn frame(&mut self, id: ConnId, frame: v1::Frame) {
        let Some(home) = self.conns.get(&id).map(|conn| conn.home) else { return };
        if let Some(ping) = ping_of(&frame).filter(|_| self.owner(home).is_none()) {
            // It must not wait: it asks whether anyone is there.
            return self.out.pong(id, frame.req, ping, self.stay(home));
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let slot = match &frame.body {
            Some(Body::Commit(commit)) => {
                conn.order = Some(commit.order);
                let owner = self.owners[usize::from(home.number())];
                if conn.welcomed_by.is_some() && owner != conn.welcomed_by {
                    // Whoever welcomed it is its owner no more.
                    return self.move_home(id);
                }
                home
            }
            Some(Body::Watch(watch)) => {
                conn.watch = Some(watch.clone());
                home
            }
            Some(Body::Unstable(unstable)) => {
                let logs = unstable.logs.clone();
                return self.unstable(id, frame.req, logs);
            }
            body => body.as_ref().and_then(conversation_of).map_or(home, Slot::of),
        };
        self.route(slot, Up::Frame { conn: id, frame });
    }

    /// How long a client whose user lies there is asked to stay.
    fn stay(&self, home: Slot) -> Duration {
        self.vacant.get(&home).map_or(Duration::ZERO, |vacancy| vacancy.stay)
    }

    /// Cut up by the slots of its conversations.
    fn unstable(&mut self, id: ConnId, req: u32, logs: Vec<v1::UnstableLog>) {
        let mut slots = BTreeMap::<Slot, Vec<v1::UnstableLog>>::new();
        for log in logs {
            if let Some(conversation) = ConvId::from_slice(&log.conversation) {
                slots.entry(Slot::of(conversation)).or_default().push(log);
            }
        }
        for (slot, logs) in slots {
            let frame = v1::Frame::new(req, Body::Unstable(v1::Unstable { logs }));
            self.route(slot, Up::Frame { conn: id, frame });
        }
    }

    /// To the owner of a slot, behind what waits for it.
    fn route(&mut self, slot: Slot, up: Up) {
        match self.owner(slot) {
            Some(core) if !self.held.contains_key(&slot) => self.tell(core, slot, up),
            None if self.vacant.get(&slot).is_some_and(|vacancy| vacancy.until.is_none()) => self.give_up(up),
            _ => self.hold(slot, up),
        }
    }

    fn hold(&mut self, slot: Slot, up: Up) {
        let Some(conn) = self.conns.get_mut(&up.conn()) else { return };
        let bytes = bytes_of(&up);
        if self.held_bytes + bytes > HELD_BYTES {
            let matters = matches!(&up, Up::Frame { frame, .. } if matches!(frame.body, Some(Body::Commit(_))))
                || matches!(up, Up::Resume { .. });
            if matters {
                self.out.send_away(up.conn());
            }
            return self.give_up(up);
        }
        conn.held += 1;
        self.held_bytes += bytes;
        self.held.entry(slot).or_default().push(up);
    }

    fn tell(&mut self, core: CoreNo, slot: Slot, up: Up) {
        let id = up.conn();
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let ups = self.out.ups.entry(core).or_default();
        match &up {
            Up::Open { .. } => {
                conn.attached.insert(core);
                conn.welcomed_by = Some(core);
            }
            Up::Send { .. } | Up::Frame { .. } => {
                if conn.attached.insert(core) {
                    ups.push(Up::Attach {
                        conn: id,
                        user: conn.user.clone(),
                        install: conn.install.clone(),
                        token_issued_ms: conn.token_issued_ms,
                    });
                }
                let (req, ping) = match &up {
                    Up::Send { req, .. } => (*req, None),
                    Up::Frame { frame, .. } => (frame.req, ping_of(frame)),
                    _ => (0, None),
                };
                if req != 0 {
                    conn.asked.insert(req, Asked { core, slot, ping });
                }
            }
            _ => {}
        }
        ups.push(up);
    }

    /// A node handed these back: it does not own what they are about, or is about to give it up.
    pub fn bounced(&mut self, now: Duration, core: CoreNo, ups: Vec<Up>) {
        for up in ups {
            let Some(conn) = self.conns.get_mut(&up.conn()) else { continue };
            let slot = match &up {
                Up::Open { .. } => {
                    conn.welcomed_by = None;
                    conn.home
                }
                Up::Resume { .. } => conn.home,
                Up::Send { req, send, .. } => {
                    conn.asked.remove(req);
                    Slot::of(send.conversation)
                }
                Up::Frame { frame, .. } => {
                    conn.asked.remove(&frame.req);
                    frame.body.as_ref().and_then(conversation_of).map_or(conn.home, Slot::of)
                }
                Up::Attach { .. } | Up::Close { .. } => continue,
            };
            if let Up::Frame { conn, frame } = &up
                && let Some(echo) = ping_of(frame).filter(|_| self.owner(slot).is_none())
            {
                self.out.pong(*conn, frame.req, echo, self.stay(slot));
            } else if self.owner(slot).is_some_and(|owner| owner != core) {
                self.route(slot, up);
            } else {
                self.hold(slot, up);
                self.again.insert((now + AGAIN, slot));
            }
        }
    }

    /// Time has passed: see [`Self::next_deadline`].
    pub fn tick(&mut self, now: Duration) {
        while let Some((at, slot)) = self.again.first().copied().filter(|(at, _)| *at <= now) {
            self.again.remove(&(at, slot));
            self.release(slot);
        }
        self.look_for_left(now);
        self.look_for_vacant(now);
    }

    /// When to tick at the latest; zero: at once.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.unlooked || !self.moved.is_empty() {
            return Some(Duration::ZERO);
        }
        let firsts = [self.again.first(), self.left.first(), self.hopes.first()];
        firsts.into_iter().flatten().map(|(at, _)| *at).min()
    }

    fn release(&mut self, slot: Slot) {
        let Some(core) = self.owner(slot) else { return };
        for up in self.take_held(slot) {
            match up {
                // It is told to its owner as it stands by now.
                Up::Resume { conn, .. } => self.move_home(conn),
                up => self.tell(core, slot, up),
            }
        }
    }

    /// What a node tells a connection; noted here, and handed on by the caller.
    pub fn told(&mut self, down: &Down) {
        let Some(conn) = self.conns.get_mut(&down.conn) else { return };
        match &down.body {
            DownBody::Ack { req, .. } => {
                conn.asked.remove(req);
            }
            DownBody::Page { req, page } if page.last => {
                conn.asked.remove(req);
            }
            DownBody::Frame(frame) => {
                conn.asked.remove(&frame.req);
                if matches!(frame.body, Some(Body::Welcome(_))) {
                    conn.opening = None;
                    let logs = std::mem::take(&mut conn.unstable);
                    self.unstable(down.conn, 0, logs);
                }
            }
            DownBody::Page { .. } | DownBody::Push(_) | DownBody::Last(_) => {}
        }
    }
}

impl Routed {
    /// Answers a request of which nobody knows what became of it, or of which nothing did.
    fn come_again(&mut self, conn: ConnId, req: u32, after_ms: u32) {
        let text = "the node of the region that has this is gone; whether it was done is not known";
        let body = Body::Error(Refusal::new(Code::OwnerLost, text).after_ms(after_ms).to_wire());
        self.downs.push(Down { conn, body: DownBody::Frame(Box::new(v1::Frame::new(req, body))) });
    }

    /// Answers a Ping in place of the owner of its user.
    fn pong(&mut self, conn: ConnId, req: u32, echo: u32, stay: Duration) {
        let rev_unknown = !on(Mutant::PongFromEdgeCache);
        let stay_ms = u32::try_from(stay.as_millis()).unwrap_or(u32::MAX);
        let body = Body::Pong(v1::Pong { echo, rev_unknown, stay_ms, ..v1::Pong::default() });
        self.downs.push(Down { conn, body: DownBody::Frame(Box::new(v1::Frame::new(req, body))) });
    }

    fn send_away(&mut self, conn: ConnId) {
        let text = "no node of this region that can be reached has this user; connect to another edge";
        self.downs.push(Down { conn, body: DownBody::Last(Refusal::new(Code::CoreUnreachable, text)) });
    }
}

fn ping_of(frame: &v1::Frame) -> Option<u32> {
    match &frame.body {
        Some(Body::Ping(ping)) => Some(ping.echo),
        _ => None,
    }
}

/// What it takes in memory, about.
fn bytes_of(up: &Up) -> usize {
    size_of::<Up>()
        + match up {
            Up::Open { hello, .. } => size_of::<v1::Hello>() + hello.encoded_len(),
            Up::Send { send, .. } => send.body.len(),
            Up::Frame { frame, .. } => frame.encoded_len(),
            Up::Attach { .. } | Up::Resume { .. } | Up::Close { .. } => 0,
        }
}

/// Which conversation a client's frame is about; of several, which the edge cuts up, the first. `None`: it is about the
/// connection or its user.
pub fn conversation_of(body: &Body) -> Option<ConvId> {
    let id = match body {
        Body::Pull(pull) => &pull.conversation,
        Body::PullCells(pull) => &pull.conversation,
        Body::PullEras(pull) => &pull.conversation,
        Body::Signal(signal) => &signal.conversation,
        Body::Unstable(unstable) => &unstable.logs.first()?.conversation,
        _ => return None,
    };
    ConvId::from_slice(id)
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
