//! Histories of one region whose slots several nodes share: nodes die, are paused, hand slots over, and lose their
//! links; an edge finds its way by its router.

mod linked;
mod random;
mod told;

use super::*;
use crate::node::refill::share_mark;
use crate::node::routes::Holder;
use crate::node::{CoreId, FLUSH_EVERY};
use crate::router::Router;
use crate::slots::{Share, Slot};

/// The store that all nodes of the region share: an epoch per slot, and fences.
#[derive(Default)]
struct Shared {
    disk: Disk,
    epochs: BTreeMap<Slot, u64>,
    /// The epoch under which a conversation was last read by its owner: older appends are refused (R2).
    fences: BTreeMap<ConvId, u64>,
}

impl Shared {
    fn append(&mut self, batch: Append) -> Appended {
        let fence = self.fences.get(&batch.conversation).copied().unwrap_or(0);
        if batch.epoch < fence && !on(Mutant::FencedOwnerWrites) {
            return Appended::Fenced;
        }
        // A store with fences alone keeps no owner from writing where another has.
        let log = self.disk.logs.entry((batch.conversation, batch.origin)).or_default();
        let before = usize::try_from(batch.entries[0].place.seq).unwrap() - 1;
        assert!(before == log.len() || on(Mutant::FencedOwnerWrites), "an append that is not fenced follows the head");
        log.truncate(before);
        self.disk.append(batch)
    }

    fn todo(&self, slots: &BTreeMap<Slot, u64>) -> Vec<Todo> {
        let all = self.disk.todo.iter().map(|((target, conversation), (prefix, user))| Todo {
            target: *target,
            conversation: *conversation,
            prefix: prefix.clone(),
            user: user.clone(),
        });
        all.filter(|t| slots.contains_key(&Node::slot_of_todo(SALT, t))).collect()
    }
}

struct Member {
    node: Node,
    appends: VecDeque<Append>,
    /// What waits for it while it is paused.
    inbox: VecDeque<Input>,
    paused: bool,
}

enum Input {
    Ups(Vec<Up>),
    Frame(CoreId, Box<LinkBody>),
    Moved(BTreeSet<Slot>),
}

/// A region of several nodes, and one edge.
struct Fleet {
    region: Region,
    /// The other region, if there is one, and what is to be said to its nodes.
    peer: Option<Region>,
    links: VecDeque<(CoreId, Holder, LinkBody)>,
    /// Slots that have another owner, of which the other region is to be told.
    moved: Vec<BTreeSet<Slot>>,
    shared: Shared,
    members: BTreeMap<CoreId, Member>,
    owners: BTreeMap<Slot, CoreId>,
    router: Router,
    /// Of the edge's connections.
    told: BTreeMap<u64, Told>,
    /// Links between nodes that are down.
    cut: BTreeSet<(CoreId, CoreId)>,
    leases: bool,
    now: Duration,
    next: CoreId,
}

const EDGE: EdgeId = 1;

fn settings(region: Region, peer: Option<Region>, restored: bool) -> Settings {
    Settings {
        region,
        region_name: format!("r{region}"),
        origin: Origin { region, era: 7 },
        epoch: 0,
        shared: true,
        start: 1,
        peers: peer.into_iter().collect(),
        known: BTreeMap::new(),
        eras: EraTable::default(),
        commit: 0,
        refill: BTreeSet::new(),
        restored,
        direct_salt: SALT.to_vec(),
        receipt_key: ReceiptKey::new(&[7; 32]),
        reoffer_after: Duration::from_secs(30),
        heartbeat: v1::Heartbeat::default(),
    }
}

impl Fleet {
    /// So many nodes that have shared all slots.
    fn new(nodes: CoreId) -> Self {
        Self::of(EU, None, nodes, |slot| CoreId::from(slot.number()))
    }

    /// Those of a region that may have a peer; `place` says whose a slot is, modulo their number.
    fn of(region: Region, peer: Option<Region>, nodes: CoreId, place: impl Fn(Slot) -> CoreId) -> Self {
        let mut fleet = Self {
            region,
            peer,
            links: VecDeque::new(),
            moved: Vec::new(),
            shared: Shared::default(),
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            router: Router::new(SALT.to_vec()),
            told: BTreeMap::new(),
            cut: BTreeSet::new(),
            leases: false,
            now: Duration::from_secs(1_000),
            next: 1,
        };
        for _ in 0..nodes {
            fleet.join();
        }
        let shares: Vec<(Slot, CoreId)> = Slot::all().map(|slot| (slot, 1 + place(slot) % nodes)).collect();
        for core in 1..=nodes {
            fleet.take(core, shares.iter().filter(|(_, to)| *to == core).map(|(slot, _)| *slot).collect());
        }
        fleet.settle();
        fleet
    }

    fn now(&self) -> Now {
        Now { mono: self.now, wall_ms: 1_700_000_000_000 + u64::try_from(self.now.as_millis()).unwrap() }
    }

    /// A node starts; it owns nothing yet.
    fn join(&mut self) -> CoreId {
        let core = self.next;
        self.next += 1;
        let settings = settings(self.region, self.peer, false);
        let node = Node::new(settings, Vec::new(), self.now());
        let member = Member { node, appends: VecDeque::new(), inbox: VecDeque::new(), paused: false };
        let now = self.now();
        let others: Vec<CoreId> = self.members.keys().copied().collect();
        self.members.insert(core, member);
        for other in others {
            self.member(core).node.core_up(now, other);
            self.member(other).node.core_up(now, core);
            self.carry_out(other);
        }
        self.router.core_up(core);
        self.carry_out(core);
        core
    }

    fn member(&mut self, core: CoreId) -> &mut Member {
        self.members.get_mut(&core).expect("the node lives")
    }

    /// A node takes slots over, whoever had them: their epochs are raised in the store first.
    fn take(&mut self, core: CoreId, slots: BTreeSet<Slot>) {
        let mut gained = BTreeMap::new();
        for slot in &slots {
            let epoch = self.shared.epochs.entry(*slot).or_insert(1);
            *epoch += u64::from(!on(Mutant::RevReused));
            gained.insert(*slot, *epoch);
            self.owners.insert(*slot, core);
        }
        let todo = self.shared.todo(&gained);
        let now = self.now();
        self.member(core).node.gain(now, &gained, todo);
        if let Some(peer) = self.peer {
            let shares: BTreeSet<Share> = slots.iter().map(|slot| slot.share()).collect();
            let disk = &self.shared.disk;
            let marked =
                |share: &Share| disk.meta.get(&share_mark(peer, *share)).is_some_and(|value| !value.is_empty());
            let marks = BTreeMap::from([(peer, shares.into_iter().filter(marked).collect())]);
            self.member(core).node.to_compare(now, marks);
        }
        self.carry_out(core);
        let others: Vec<CoreId> = self.members.keys().copied().filter(|other| *other != core).collect();
        for other in others {
            self.input(other, Input::Moved(slots.clone()));
        }
        self.moved.push(slots.clone());
        self.router.owners(slots.into_iter().map(|slot| (slot, core)));
        self.routed();
    }

    /// A node hands slots over in order.
    fn hand_over(&mut self, from: CoreId, to: CoreId, slots: BTreeSet<Slot>) {
        let now = self.now();
        self.member(from).node.leave(now, &slots);
        self.carry_out(from);
        for _ in 0..100 {
            if self.member(from).node.has_left(&slots) {
                break;
            }
            self.pass(Duration::from_millis(20));
        }
        assert!(self.member(from).node.has_left(&slots), "all that was begun ends");
        let now = self.now();
        self.member(from).node.lose(now, &slots);
        self.take(to, slots);
        self.carry_out(from);
    }

    /// The process of a node dies.
    fn kill(&mut self, core: CoreId) {
        self.members.remove(&core);
        self.router.core_down(core);
        self.routed();
        let now = self.now();
        for other in self.members.keys().copied().collect::<Vec<_>>() {
            self.member(other).node.core_down(now, core);
            self.carry_out(other);
        }
    }

    /// Shares of a node that is dead, or thought to be, go to the others in turn.
    fn inherit(&mut self, core: CoreId) {
        let heirs: Vec<CoreId> =
            self.members.iter().filter(|(c, m)| **c != core && !m.paused).map(|(c, _)| *c).collect();
        let mut shares = BTreeMap::<CoreId, BTreeSet<Slot>>::new();
        let lost: Vec<Slot> = self.owners.iter().filter(|(_, owner)| **owner == core).map(|(slot, _)| *slot).collect();
        for slot in lost {
            let heir = heirs[usize::from(slot.share().number()) / self.members.len().max(1) % heirs.len()];
            shares.entry(heir).or_default().insert(slot);
        }
        for (heir, slots) in shares {
            self.take(heir, slots);
        }
    }

    fn input(&mut self, core: CoreId, input: Input) {
        let now = self.now();
        let Some(member) = self.members.get_mut(&core) else { return };
        if member.paused {
            return member.inbox.push_back(input);
        }
        match input {
            Input::Ups(ups) => member.node.ups(now, EDGE, ups),
            Input::Frame(from, body) => member.node.core_frame(now, from, *body),
            Input::Moved(slots) => {
                // It hears that slots are another's, if it had not known.
                let mine: BTreeSet<Slot> =
                    slots.iter().filter(|s| member.node.owned().unwrap().contains_key(s)).copied().collect();
                if !mine.is_empty() {
                    member.node.lose(now, &mine);
                }
                member.node.siblings_moved(now, |slot| slots.contains(&slot));
            }
        }
        self.carry_out(core);
    }

    fn resume(&mut self, core: CoreId) {
        self.member(core).paused = false;
        // What it had begun before it was paused comes before all that it is told since.
        self.carry_out(core);
        while self.commit(core) {}
        while let Some(input) = self.member(core).inbox.pop_front() {
            self.input(core, input);
        }
    }

    fn carry_out(&mut self, core: CoreId) {
        loop {
            let now = self.now();
            let Some(member) = self.members.get_mut(&core).filter(|m| !m.paused) else { return };
            let Outputs { appends, puts, flush, wants, downs, bounced, owners, cores, everyone, links, .. } =
                member.node.take_outputs();
            let again = !wants.is_empty() || flush.is_some();
            member.appends.extend(appends);
            puts.into_iter().for_each(|put| self.shared.disk.apply(put));
            if let Some(rows) = flush {
                rows.into_iter().for_each(|row| self.shared.disk.apply(row));
                member.node.flushed(now);
            }
            for want in wants {
                match want {
                    Want::Conversation(id) => {
                        if let Some(epoch) = member.node.owned().unwrap().get(&Slot::of(id)) {
                            let fence = self.shared.fences.entry(id).or_default();
                            *fence = (*fence).max(*epoch);
                        }
                        let state = self.shared.disk.state(id);
                        member.node.conversation_loaded(now, state, BTreeMap::new());
                    }
                    Want::User(user) => {
                        let rows = self.shared.disk.rows.iter().filter(|((u, _), _)| *u == user);
                        let rows = rows.map(|((_, c), r)| (*c, r.clone())).collect();
                        member.node.user_loaded(now, &user, rows);
                    }
                    Want::Range { ticket, range, .. } => {
                        let entries = self.shared.disk.range(range);
                        member.node.range_read(now, ticket, Ok(entries));
                    }
                    Want::Heads { ticket, after, limit } => {
                        let page = self.shared.disk.heads(after, limit);
                        member.node.heads_read(now, ticket, &page);
                    }
                    Want::Marks { ticket, after, limit } => {
                        let page = self.shared.disk.marks(after.as_ref(), limit);
                        member.node.marks_read(now, ticket, &page);
                    }
                }
            }
            for (to, bodies) in links {
                self.links.extend(bodies.into_iter().map(|body| (core, to, body)));
            }
            for down in downs.into_values().flatten() {
                self.router.told(&down);
                self.tell(down.conn, down.body);
            }
            for ups in bounced.into_values() {
                self.router.bounced(self.now, core, ups);
            }
            self.routed();
            let mut frames: Vec<(CoreId, LinkBody)> = Vec::new();
            for (slot, bodies) in owners {
                let to = self.owners[&slot];
                frames.extend(bodies.into_iter().map(|body| (to, body)));
            }
            for (to, bodies) in cores {
                frames.extend(bodies.into_iter().map(|body| (to, body)));
            }
            for body in everyone {
                let others = self.members.keys().filter(|other| **other != core);
                frames.extend(others.map(|other| (*other, body.clone())));
            }
            for (to, body) in frames {
                if !self.cut.contains(&pair_of(core, to)) {
                    self.input(to, Input::Frame(core, Box::new(body)));
                }
            }
            if !again {
                return;
            }
        }
    }

    fn tell(&mut self, conn: u64, body: DownBody) {
        let told = self.told.entry(conn).or_default();
        told.all.push(body.clone());
        match body {
            DownBody::Ack { req, ack } => told.acks.push((req, ack)),
            DownBody::Push(push) => told.pushes.push(push),
            DownBody::Page { page, .. } => told.pages.push(page),
            DownBody::Frame(frame) => told.frames.push(*frame),
            DownBody::Last(refusal) => told.last = Some(refusal.code),
        }
    }

    /// What the router says goes out.
    fn routed(&mut self) {
        let routed = self.router.take();
        for down in routed.downs {
            self.tell(down.conn, down.body);
        }
        for (core, ups) in routed.ups {
            self.input(core, Input::Ups(ups));
        }
    }

    fn commit(&mut self, core: CoreId) -> bool {
        let now = self.now();
        let Some(member) = self.members.get_mut(&core).filter(|m| !m.paused) else { return false };
        let Some(batch) = member.appends.pop_front() else { return false };
        let id = batch.conversation;
        let answer = self.shared.append(batch);
        member.node.appended(now, vec![(id, answer)]);
        self.carry_out(core);
        true
    }

    fn settle(&mut self) {
        while self.members.keys().copied().collect::<Vec<_>>().into_iter().any(|core| self.commit(core)) {}
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(20);
            let now = self.now();
            self.router.tick(self.now);
            self.routed();
            for core in self.members.keys().copied().collect::<Vec<_>>() {
                if let Some(member) = self.members.get_mut(&core).filter(|m| !m.paused) {
                    if self.leases {
                        member.node.lease(now.mono + Duration::from_secs(1));
                    }
                    member.node.tick(now);
                    self.carry_out(core);
                }
            }
            self.settle();
        }
    }

    /// Owners look at what the store says is left to do.
    fn look_at_todo(&mut self) {
        let now = self.now();
        for core in self.members.keys().copied().collect::<Vec<_>>() {
            let owned = self.member(core).node.owned().unwrap().clone();
            let todo = self.shared.todo(&owned);
            self.member(core).node.todo_found(now, todo);
            self.carry_out(core);
        }
    }

    fn ups(&mut self, ups: Vec<Up>) {
        self.router.submit(ups);
        self.routed();
    }

    fn connect(&mut self, conn: u64, name: &str, device: &str) {
        self.ups(vec![Up::Open {
            conn,
            req: 1,
            user: user(name),
            install: install(device),
            hello: Box::new(v1::Hello::default()),
            address: "192.0.2.1:5".into(),
            transport: "quic",
            token_expires_ms: 0,
            token_issued_ms: 0,
        }]);
        self.settle();
        self.frame(conn, 0, v1::frame::Body::Commit(v1::Commit { order: conn, ..v1::Commit::default() }));
    }

    fn frame(&mut self, conn: u64, req: u32, body: v1::frame::Body) {
        self.ups(vec![Up::Frame { conn, frame: v1::Frame::new(req, body) }]);
        self.settle();
    }

    /// Says a message; its request is n + 100.
    fn post(&mut self, conn: u64, send: SendRequest) {
        let req = u32::try_from(send.n).unwrap() + 100;
        self.ups(vec![Up::Send { conn, req, send }]);
    }

    fn acked(&self, conn: u64, n: u64) -> Option<Ack> {
        let req = u32::try_from(n).unwrap() + 100;
        self.told.get(&conn)?.acks.iter().rev().find(|(r, _)| *r == req).map(|(_, ack)| ack.clone())
    }

    fn row(&self, name: &str, id: ConvId) -> Heads {
        self.shared.disk.rows.get(&(user(name), id)).cloned().unwrap_or_default().heads
    }

    fn owner_of(&self, id: ConvId) -> CoreId {
        self.owners[&Slot::of(id)]
    }

    fn home_of(&self, name: &str) -> CoreId {
        self.owners[&Slot::of_user(SALT, &user(name))]
    }

    /// The owners of the conversation and of its users are made three different nodes.
    fn apart(&mut self, id: ConvId, names: [&str; 2]) {
        for (core, slot) in [Slot::of(id), home(names[0]), home(names[1])].into_iter().enumerate() {
            let core = core as CoreId + 1;
            if self.owners[&slot] != core {
                let from = self.owners[&slot];
                self.hand_over(from, core, [slot].into());
            }
        }
    }
}

fn home(name: &str) -> Slot {
    Slot::of_user(SALT, &user(name))
}

fn pair_of(a: CoreId, b: CoreId) -> (CoreId, CoreId) {
    (a.min(b), a.max(b))
}

fn own() -> Origin {
    Origin { region: EU, era: 7 }
}

/// Three nodes: the conversation of alice and bob is the first's, alice the second's, bob the third's. Both are connected.
fn three() -> Fleet {
    let mut fleet = Fleet::new(3);
    fleet.apart(alice_and_bob(), ["alice", "bob"]);
    fleet.connect(1, "alice", "phone");
    fleet.connect(2, "bob", "phone");
    fleet
}

#[test]
fn a_message_passes_through_three_owners_and_all_of_it_is_durable_in_the_end() {
    let mut fleet = three();
    fleet.post(1, message(1));
    fleet.settle();
    assert_eq!(fleet.acked(1, 1).unwrap().place.seq, 1);
    let push = fleet.told[&2].pushes[0].clone();
    assert_eq!((push.entries.len(), push.entries[0].body.clone()), (1, Bytes::from("m1")));
    assert_eq!(fleet.told[&1].pushes[0].entries.len(), 0, "her own device has it by its ack");
    assert!(!fleet.shared.disk.todo.is_empty(), "until the rows are held the work is not done");
    fleet.pass(Duration::from_secs(4));
    assert_eq!(fleet.row("bob", alice_and_bob()), [(own(), 1)].into());
    assert_eq!(fleet.row("alice", alice_and_bob()), [(own(), 1)].into());
    assert!(fleet.shared.disk.todo.is_empty());
    // A pull of the other's is answered by the conversation's owner.
    let pull = v1::PullEntries {
        conversation: Bytes::copy_from_slice(&alice_and_bob().0),
        origin: Some(own().into()),
        from: 1,
        to: 1,
        ..v1::PullEntries::default()
    };
    fleet.frame(2, 9, v1::frame::Body::Pull(pull));
    assert_eq!(fleet.told[&2].pages[0].entries.len(), 1);
    fleet.frame(2, 10, v1::frame::Body::Ping(v1::Ping::default()));
    let pong = fleet.told[&2].frames.iter().find_map(|f| match &f.body {
        Some(v1::frame::Body::Pong(pong)) => Some(pong.clone()),
        _ => None,
    });
    let pong = pong.unwrap();
    assert!(!pong.rev_unknown && pong.rev == push.rev.0);
}

#[test]
fn the_owner_of_a_member_that_dies_with_his_row_in_memory_takes_nothing_with_it() {
    let mut fleet = three();
    fleet.post(1, message(1));
    fleet.settle();
    assert_eq!(fleet.told[&2].pushes.len(), 1);
    assert_eq!(fleet.row("bob", alice_and_bob()), Heads::new(), "not on the disk");
    let rev = fleet.told[&2].pushes[0].rev;
    let homes = fleet.home_of("bob");
    fleet.kill(homes);
    // No longer than an edge keeps connections whose users have no owner.
    fleet.pass(Duration::from_millis(4_500));
    assert!(!fleet.shared.disk.todo.is_empty(), "as long as nobody holds his row the work is not done");
    fleet.inherit(homes);
    fleet.pass(Duration::from_secs(6));
    assert_eq!(fleet.row("bob", alice_and_bob()), [(own(), 1)].into());
    assert!(fleet.shared.disk.todo.is_empty());
    let advance = fleet.told[&2].frames.iter().rev().find_map(|f| match &f.body {
        Some(v1::frame::Body::Advance(advance)) => Some(advance.rev),
        _ => None,
    });
    assert!(advance.unwrap() > rev.0, "what he was told and was lost is told above it");
    assert_eq!(fleet.told[&2].last, None, "his connection never noticed");
    fleet.post(1, message(2));
    fleet.settle();
    assert_eq!(fleet.told[&2].pushes.last().unwrap().entries[0].body, "m2");
}

#[test]
fn the_owner_of_a_conversation_that_dies_before_its_fan_out_leaves_it_to_the_next_one() {
    let mut fleet = three();
    let owner = fleet.owner_of(alice_and_bob());
    for other in [2, 3] {
        fleet.cut.insert(pair_of(owner, other));
    }
    fleet.post(1, message(1));
    fleet.settle();
    assert!(fleet.acked(1, 1).is_none(), "who is blocked is not known");
    fleet.pass(Duration::from_millis(1_500));
    assert!(fleet.acked(1, 1).is_some(), "what the store says of it is good enough where nobody else answers");
    assert!(fleet.told.get(&2).is_none_or(|t| t.pushes.is_empty()));
    fleet.kill(owner);
    fleet.inherit(owner);
    fleet.pass(Duration::from_secs(6));
    assert_eq!(fleet.row("bob", alice_and_bob()), [(own(), 1)].into());
    assert!(fleet.told[&2].pushes.iter().any(|p| p.heads == [(own(), 1)].into()));
    assert!(fleet.shared.disk.todo.is_empty());
}

#[test]
fn what_a_paused_owner_still_appends_is_refused_and_its_messages_are_handed_on() {
    let mut fleet = three();
    let owner = fleet.owner_of(alice_and_bob());
    fleet.post(1, message(1));
    fleet.settle();
    // Three more: one is with the store when the owner stops, two wait.
    fleet.post(1, message(2));
    fleet.post(1, SendRequest { floor: 2, ..message(3) });
    fleet.member(owner).paused = true;
    fleet.inherit(owner);
    fleet.post(1, SendRequest { floor: 2, ..message(4) });
    fleet.settle();
    assert_eq!(fleet.told[&1].errors().len(), 1, "4 comes before 2: out of order");
    fleet.pass(Duration::from_secs(30));
    fleet.resume(owner);
    fleet.pass(Duration::from_secs(2));
    for n in 1..=3 {
        assert_eq!(fleet.acked(1, n).unwrap().place.seq, n, "each once, in order");
    }
    let log = &fleet.shared.disk.logs[&(alice_and_bob(), own())];
    assert_eq!(log.len(), 3);
    assert_eq!(fleet.member(owner).node.owned().unwrap().len(), 0, "it has heard that nothing is its own any more");
}

#[test]
fn a_hand_over_refuses_nothing_and_loses_nothing() {
    let mut fleet = three();
    let slots: BTreeSet<Slot> = [Slot::of(alice_and_bob()), home("alice"), home("bob")].into();
    for n in 1..=30u64 {
        fleet.post(1, SendRequest { floor: n.saturating_sub(3).max(1), ..message(n) });
        if n % 5 == 0 {
            let from: BTreeSet<CoreId> = slots.iter().map(|s| fleet.owners[s]).collect();
            for core in from {
                let to = core % 3 + 1;
                let mine = slots.iter().filter(|s| fleet.owners[s] == core).copied().collect();
                fleet.hand_over(core, to, mine);
            }
        }
        if n % 3 == 0 {
            fleet.settle();
        }
    }
    fleet.pass(Duration::from_secs(5));
    assert_eq!(fleet.told[&1].errors(), Vec::<u32>::new());
    for n in 1..=30 {
        assert_eq!(fleet.acked(1, n).map(|a| a.place.seq), Some(n));
    }
    assert_eq!(fleet.row("bob", alice_and_bob()), [(own(), 30)].into());
    assert!(fleet.shared.disk.todo.is_empty());
    assert_eq!((fleet.told[&1].last, fleet.told[&2].last), (None, None));
}

#[test]
fn a_block_that_another_node_holds_is_heeded_and_its_end_too() {
    let mut fleet = three();
    let own_log = ConvId::own(SALT, &user("bob"));
    let block = |n, blocked| SendRequest {
        conversation: own_log,
        peer: Some(user("bob")),
        kind: crate::kinds::CELL,
        body: cell(&crate::fold::block_key(&user("alice")), blocked),
        ..message(n)
    };
    fleet.post(1, message(1));
    fleet.settle();
    fleet.post(2, block(1, true));
    fleet.settle();
    fleet.post(1, message(2));
    fleet.settle();
    assert!(fleet.acked(1, 2).is_some());
    let heard = |fleet: &Fleet| {
        let entries = fleet.told[&2].pushes.iter().flat_map(|p| p.entries.clone());
        entries.filter(|e| e.by.user == user("alice")).map(|e| e.by.n).collect::<Vec<_>>()
    };
    assert_eq!(heard(&fleet), [1]);
    fleet.post(2, block(2, false));
    fleet.settle();
    fleet.post(1, message(3));
    fleet.settle();
    assert_eq!(heard(&fleet), [1, 3]);
    // The owner of bob's log changes: what was known of it is asked for anew.
    let (from, to) = (fleet.home_of("bob"), fleet.home_of("alice"));
    fleet.post(2, block(3, true));
    fleet.settle();
    fleet.hand_over(from, to, [home("bob")].into());
    fleet.post(1, message(4));
    fleet.settle();
    fleet.pass(Duration::from_secs(3));
    assert_eq!(heard(&fleet), [1, 3]);
}

#[test]
fn all_who_ask_for_a_log_while_it_is_read_are_answered() {
    let mut fleet = three();
    let (now, core) = (fleet.now(), fleet.home_of("carol"));
    let own_log = ConvId::own(SALT, &user("carol"));
    let ask = || LinkBody::LogAsk(crate::wire::node_v1::LogAsk { conversation: Bytes::copy_from_slice(&own_log.0) });
    let node = &mut fleet.member(core).node;
    node.core_frame(now, 11, ask());
    node.core_frame(now, 12, ask());
    assert!(matches!(node.take_outputs().wants[..], [Want::Conversation(id)] if id == own_log));
    node.conversation_loaded(now, LogState::new(own_log), BTreeMap::new());
    let told: Vec<CoreId> = node.take_outputs().cores.into_keys().collect();
    assert_eq!(told, [11, 12]);
}

fn cell(key: &str, blocked: bool) -> Bytes {
    use prost::Message;
    let value = v1::BlockCell { blocked }.encode_to_vec().into();
    v1::Cell { key: key.to_owned(), value }.encode_to_vec().into()
}

#[test]
fn a_mark_is_durable_when_the_other_users_owner_holds_it() {
    let mut fleet = three();
    fleet.post(1, message(1));
    fleet.settle();
    fleet.pass(Duration::from_secs(4));
    let (reader, other) = (fleet.home_of("bob"), fleet.home_of("alice"));
    fleet.cut.insert(pair_of(reader, other));
    let mark = v1::Mark {
        conversation: Bytes::copy_from_slice(&alice_and_bob().0),
        read: crate::wire::compact::origin_heads_to_wire(&[(own(), 1)].into()),
    };
    fleet.frame(2, 7, v1::frame::Body::Mark(mark));
    fleet.pass(Duration::from_secs(5));
    let marked =
        |fleet: &Fleet| fleet.told[&2].frames.iter().any(|f| matches!(f.body, Some(v1::frame::Body::Marked(_))));
    assert!(!marked(&fleet), "alice's owner has not heard of it");
    fleet.cut.clear();
    fleet.pass(Duration::from_secs(4));
    assert!(marked(&fleet));
    let row = &fleet.shared.disk.rows[&(user("alice"), alice_and_bob())];
    assert_eq!(row.peer_read, [(own(), 1)].into());
}

#[test]
fn typing_is_seen_across_nodes_and_a_friend_is_online() {
    let mut fleet = three();
    fleet.post(1, message(1));
    fleet.settle();
    fleet.pass(Duration::from_secs(12));
    fleet.frame(2, 0, v1::frame::Body::Watch(v1::Watch { users: vec!["alice".into()] }));
    let signal = v1::Signal {
        conversation: Bytes::copy_from_slice(&alice_and_bob().0),
        kind: 1,
        ttl_ms: 5_000,
        ..v1::Signal::default()
    };
    fleet.frame(1, 0, v1::frame::Body::Signal(signal));
    fleet.pass(Duration::from_secs(2));
    let frames = &fleet.told[&2].frames;
    assert!(frames.iter().any(|f| matches!(&f.body, Some(v1::frame::Body::Signal(s)) if s.from.is_some())));
    let online = |f: &v1::Frame| matches!(&f.body, Some(v1::frame::Body::Presence(p)) if p.users[0].online);
    assert!(frames.iter().any(online));
    // Bob moves: his new owner is told whom he watches.
    let (from, to) = (fleet.home_of("bob"), fleet.home_of("alice"));
    fleet.hand_over(from, to, [home("bob")].into());
    fleet.ups(vec![Up::Close { conn: 1 }]);
    fleet.pass(Duration::from_secs(15));
    let gone = |f: &v1::Frame| matches!(&f.body, Some(v1::frame::Body::Presence(p)) if !p.users[0].online);
    assert!(fleet.told[&2].frames.iter().any(gone));
}

#[test]
fn an_owner_without_a_lease_says_nothing_of_rows_and_revisions() {
    let mut fleet = three();
    let now = fleet.now();
    for core in 1..=3 {
        fleet.member(core).node.lease(now.mono + FLUSH_EVERY * 4);
    }
    fleet.pass(FLUSH_EVERY * 5);
    fleet.post(1, message(1));
    fleet.settle();
    assert!(fleet.acked(1, 1).is_some(), "the store alone decides what is appended");
    fleet.pass(Duration::from_secs(8));
    assert!(!fleet.shared.disk.todo.is_empty(), "nobody says that a row is held");
    fleet.frame(2, 10, v1::frame::Body::Ping(v1::Ping::default()));
    let unknown = |f: &v1::Frame| matches!(&f.body, Some(v1::frame::Body::Pong(p)) if p.rev_unknown);
    assert!(fleet.told[&2].frames.iter().any(unknown));
    fleet.leases = true;
    fleet.pass(Duration::from_secs(8));
    assert!(fleet.shared.disk.todo.is_empty());
}
