//! Which core node of its region an edge speaks to, and about what.
//!
//! Problem: a connection's user has one owner and each of its conversations another; owners die, hand slots over, and are
//! not always those that the edge knows. The client is to notice nothing of it.
//!
//! Rule: what a connection says of itself goes to the owner of its user's slot, what it says of a conversation to that of
//! the conversation's, each told first whose connection it is. What a node hands back, and what is for a slot without a
//! node that can be reached, waits for the next word of who owns what, and goes out again. Where a node is lost, its
//! requests are answered with "come again", for nobody knows what became of them, and all of them are idempotent; a
//! connection in use is told to its user's new owner as it stands. So a core may restart under its clients.
//!
//! Why simpler ways fail: a hop over any core node doubles the work of each message and ties the client to a node that has
//! nothing to do with it; answering for a node that can't be reached turns each of its restarts into a reconnect of all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::codes::{Code, Refusal};
use crate::edge_api::{ConnId, Down, DownBody, Up};
use crate::ids::{ConvId, InstallId, UserId};
use crate::slots::{SLOTS, Slot};
use crate::wire::v1::{self, frame::Body};

/// What was handed back goes to the same owner again after so long, if nothing is heard of another.
const AGAIN: Duration = Duration::from_millis(100);
/// A client whose request was lost with a node asks again after so long.
const LOST_AFTER_MS: u32 = 100;

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
    /// Requests without an answer, and who has them.
    asked: BTreeMap<u32, CoreNo>,
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
    /// Slots whose waiting is tried again, and when.
    again: BTreeSet<(Duration, Slot)>,
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
            again: BTreeSet::new(),
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

    /// Whether all slots have an owner that can be reached.
    pub fn is_whole(&self) -> bool {
        self.owners.iter().all(|owner| owner.is_some_and(|core| self.up.contains(&core)))
    }

    /// Which node has a slot, if it can be reached.
    fn owner(&self, slot: Slot) -> Option<CoreNo> {
        let owner = self.owners.get(usize::from(slot.number())).copied().flatten();
        owner.filter(|core| self.up.contains(core))
    }

    /// A core node can be reached.
    pub fn core_up(&mut self, core: CoreNo) {
        self.up.insert(core);
    }

    /// A core node can't be reached any more, and knows nothing of any connection when it can be again.
    pub fn core_down(&mut self, core: CoreNo) {
        self.up.remove(&core);
        for owner in &mut self.owners {
            if *owner == Some(core) {
                *owner = None;
            }
        }
        let mut again = Vec::new();
        for (id, conn) in &mut self.conns {
            conn.attached.remove(&core);
            let lost: Vec<u32> = conn.asked.iter().filter(|(_, who)| **who == core).map(|(req, _)| *req).collect();
            for req in lost {
                conn.asked.remove(&req);
                let text = "the node that had this is gone; whether it was done is not known";
                let refusal = Refusal::new(Code::Internal, text).after_ms(LOST_AFTER_MS);
                let frame = v1::Frame::new(req, Body::Error(refusal.to_wire()));
                self.out.downs.push(Down { conn: *id, body: DownBody::Frame(Box::new(frame)) });
            }
            if let Some(open) = &conn.opening
                && conn.welcomed_by == Some(core)
            {
                conn.welcomed_by = None;
                again.push((conn.home, (**open).clone()));
            }
        }
        for (slot, up) in again {
            self.hold(slot, up);
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
        if moved.is_empty() {
            return;
        }
        let homes: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| moved.contains(&conn.home)).map(|(id, _)| *id).collect();
        for id in homes {
            self.move_home(id);
        }
        for slot in moved {
            self.release(slot);
        }
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
                };
                self.conns.insert(conn, opened);
                self.route(home, up);
            }
            Up::Close { conn } => {
                let Some(closed) = self.conns.remove(&conn) else { return };
                for core in closed.attached {
                    self.out.ups.entry(core).or_default().push(Up::Close { conn });
                }
                self.held.retain(|_, ups| {
                    ups.retain(|up| up.conn() != conn);
                    !ups.is_empty()
                });
            }
            Up::Send { ref send, .. } => self.route(Slot::of(send.conversation), up),
            Up::Frame { conn, frame } => self.frame(conn, frame),
            // Only this machine says those.
            Up::Attach { .. } | Up::Resume { .. } => {}
        }
    }

    fn frame(&mut self, id: ConnId, frame: v1::Frame) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let home = conn.home;
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
            Some(core) if !self.held.contains_key(&slot) => self.tell(core, up),
            _ => self.hold(slot, up),
        }
    }

    fn hold(&mut self, slot: Slot, up: Up) {
        self.held.entry(slot).or_default().push(up);
    }

    fn tell(&mut self, core: CoreNo, up: Up) {
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
                let req = match &up {
                    Up::Send { req, .. } => *req,
                    Up::Frame { frame, .. } => frame.req,
                    _ => 0,
                };
                if req != 0 {
                    conn.asked.insert(req, core);
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
                Up::Open { .. } | Up::Resume { .. } => conn.home,
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
            if self.owner(slot).is_some_and(|owner| owner != core) {
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
    }

    /// When to tick at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.again.first().map(|(at, _)| *at)
    }

    fn release(&mut self, slot: Slot) {
        let Some(core) = self.owner(slot) else { return };
        for up in self.held.remove(&slot).unwrap_or_default() {
            match up {
                // It is told to its owner as it stands by now.
                Up::Resume { conn, .. } => self.move_home(conn),
                up => self.tell(core, up),
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
