//! Histories of whole regions on their machines: three nodes with disks that crash, links that break, and
//! connections that ask. No sockets, no tasks, time by hand.

mod again;
mod eras;
mod groups;
mod histories;
mod load;
mod peers;
mod presence;
#[cfg(feature = "client")]
mod random;
mod regain;
mod registers;
mod seal;
mod slots;
mod whereabouts;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::refill::{Known, MARK_KEY, PeerHello};
use super::seal::ERAS_KEY;
use super::{ConnKey, DeviceMoved, EdgeId, Node, Notice, Now, Outputs, Settings, Want};
use crate::edge_api::{Ack, DownBody, Page, Push, SendRequest, Up};
use crate::entry::Entry;
use crate::eras::{Era, EraTable};
use crate::ids::{ConvId, Heads, InstallId, Origin, Region, UserId};
use crate::mutants::{Mutant, on};
use crate::receipt::ReceiptKey;
use crate::sequencer::LogState;
use crate::store::{Append, Appended, Put, Range, RowRecord, StoreError, Target, Todo, UserMarks};
use crate::wire::node_v1::node_frame::Body as LinkBody;
use crate::wire::v1;

const SALT: &[u8] = b"salt";
const EU: Region = 1;
const US: Region = 2;
const AP: Region = 3;

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn install(name: &str) -> InstallId {
    InstallId::new(name).unwrap()
}

fn alice_and_bob() -> ConvId {
    ConvId::direct(SALT, &user("alice"), &user("bob"))
}

/// What survives a crash: appends and synced puts at once, lazy puts when something is synced after them.
#[derive(Clone, Debug, Default)]
struct Disk {
    logs: BTreeMap<(ConvId, Origin), Vec<Arc<Entry>>>,
    rows: BTreeMap<(UserId, ConvId), RowRecord>,
    todo: BTreeMap<(Target, ConvId), (Heads, Option<UserId>)>,
    checkpoints: BTreeMap<ConvId, Bytes>,
    meta: BTreeMap<String, Bytes>,
    lazy: Vec<Put>,
}

impl Disk {
    fn apply(&mut self, put: Put) {
        match put {
            Put::Row { user, conversation, row } => {
                let old = self.rows.get(&(user.clone(), conversation)).map(|r| r.rev);
                if old.is_none_or(|old| old <= row.rev) {
                    self.rows.insert((user, conversation), row);
                }
            }
            Put::Todo(Todo { target, conversation, prefix, .. }) if prefix.is_empty() => {
                self.todo.remove(&(target, conversation));
            }
            Put::Todo(Todo { target, conversation, prefix, user }) => {
                self.todo.insert((target, conversation), (prefix, user));
            }
            Put::Checkpoint { conversation, value } => {
                self.checkpoints.insert(conversation, value);
            }
            Put::Erase { conversation, origin, seq, .. } => {
                let log = self.logs.get_mut(&(conversation, origin));
                if let Some(entry) = log.and_then(|l| l.get_mut(usize::try_from(seq).unwrap() - 1)) {
                    *entry = Arc::new(entry.to_erased());
                }
            }
            Put::Meta { key, value } => {
                self.meta.insert(key, value);
            }
        }
    }

    fn sync(&mut self) {
        for put in std::mem::take(&mut self.lazy) {
            self.apply(put);
        }
    }

    fn append(&mut self, batch: Append) -> Appended {
        self.sync();
        for todo in batch.todo {
            self.apply(Put::Todo(todo));
        }
        let log = self.logs.entry((batch.conversation, batch.origin)).or_default();
        for entry in batch.entries {
            assert_eq!(entry.place.seq, log.len() as u64 + 1, "appends are contiguous");
            log.push(entry);
        }
        Appended::Decided
    }

    fn state(&self, id: ConvId) -> LogState {
        let mut state = self
            .checkpoints
            .get(&id)
            .map_or_else(|| LogState::new(id), |c| LogState::from_checkpoint(id, c.clone()).unwrap());
        for ((conversation, origin), log) in &self.logs {
            if *conversation == id {
                let held = usize::try_from(state.head(*origin)).unwrap();
                log.iter().skip(held).for_each(|entry| {
                    state.apply(entry.clone());
                });
            }
        }
        state
    }

    fn number(&self, key: &str) -> Option<u64> {
        let value = self.meta.get(key).filter(|v| !v.is_empty())?;
        Some(u64::from_be_bytes(value[..].try_into().unwrap()))
    }

    fn set(&mut self, key: &str, value: u64) {
        self.meta.insert(key.to_owned(), Bytes::copy_from_slice(&value.to_be_bytes()));
    }

    fn heads(&self, after: Option<ConvId>, limit: usize) -> Vec<(ConvId, Heads)> {
        let mut all = BTreeMap::<ConvId, Heads>::new();
        for ((id, origin), log) in self.logs.iter().filter(|((id, _), _)| after.is_none_or(|after| *id > after)) {
            all.entry(*id).or_default().insert(*origin, log.len() as u64);
        }
        all.into_iter().take(limit).collect()
    }

    fn marks(&self, after: Option<&UserId>, limit: usize) -> Vec<UserMarks> {
        let mut all = BTreeMap::<UserId, Vec<(ConvId, Heads)>>::new();
        for ((user, id), row) in self.rows.iter().filter(|((user, _), _)| after.is_none_or(|after| user > after)) {
            let marks = all.entry(user.clone()).or_default();
            marks.extend((!row.read.is_empty()).then(|| (*id, row.read.clone())));
        }
        all.into_iter().take(limit).collect()
    }

    fn range(&self, range: Range) -> Vec<Arc<Entry>> {
        let Some(log) = self.logs.get(&(range.conversation, range.origin)) else { return Vec::new() };
        let inside = log.iter().filter(|e| (range.from..=range.to).contains(&e.place.seq)).cloned();
        let mut bytes = 0;
        let fits = |e: &Arc<Entry>| {
            let before = bytes;
            bytes += e.encoded_len();
            before == 0 || bytes <= range.max_bytes
        };
        if range.backwards {
            inside.rev().take(range.max_entries).take_while(fits).collect()
        } else {
            inside.take(range.max_entries).take_while(fits).collect()
        }
    }
}

/// A node, its disk, and what waits for the disk.
struct Core {
    node: Node,
    disk: Disk,
    starts: u64,
    appends: VecDeque<Append>,
    /// Appends are not answered while this is set.
    stalled: bool,
    /// The answers to give instead of writing.
    failures: VecDeque<Appended>,
    notices: Vec<Notice>,
    /// What the table of routes is told.
    moved: Vec<DeviceMoved>,
    skew_ms: i64,
    /// Logs that are refused.
    damaged: BTreeSet<(ConvId, Origin)>,
    /// Entries can't be read at the moment; who is patient waits.
    away: bool,
    waiting: Vec<(u64, Range)>,
}

/// What a connection was told.
#[derive(Debug, Default)]
struct Told {
    acks: Vec<(u32, Ack)>,
    pushes: Vec<Arc<Push>>,
    frames: Vec<v1::Frame>,
    pages: Vec<Page>,
    /// Everything, in order; left out of the above by nothing.
    all: Vec<DownBody>,
    last: Option<crate::codes::Code>,
}

impl Told {
    fn welcome(&self) -> &v1::Welcome {
        let found = self.frames.iter().find_map(|f| match &f.body {
            Some(v1::frame::Body::Welcome(w)) => Some(w),
            _ => None,
        });
        found.expect("a welcome")
    }

    fn errors(&self) -> Vec<u32> {
        let code = |f: &v1::Frame| match &f.body {
            Some(v1::frame::Body::Error(e)) => Some(e.code),
            _ => None,
        };
        self.frames.iter().filter_map(code).collect()
    }

    fn stable(&self) -> Vec<v1::Stable> {
        let stable = |f: &v1::Frame| match &f.body {
            Some(v1::frame::Body::Stable(s)) => Some(s.clone()),
            _ => None,
        };
        self.frames.iter().filter_map(stable).collect()
    }

    fn advances(&self) -> usize {
        self.frames.iter().filter(|f| matches!(f.body, Some(v1::frame::Body::Advance(_)))).count()
    }

    fn rows(&self) -> Vec<v1::Rows> {
        let rows = |f: &v1::Frame| match &f.body {
            Some(v1::frame::Body::Rows(r)) => Some(r.clone()),
            _ => None,
        };
        self.frames.iter().filter_map(rows).collect()
    }
}

/// Three regions and all that is between them.
struct World {
    cores: BTreeMap<Region, Option<Core>>,
    graveyard: BTreeMap<Region, Disk>,
    /// Regions that are about to start together: their stores are open, and they answer each other.
    opening: BTreeSet<Region>,
    /// Eras minted so far.
    minted: u64,
    /// How rows are folded.
    folding: EraTable,
    links: BTreeMap<(Region, Region), VecDeque<LinkBody>>,
    up: BTreeSet<(Region, Region)>,
    told: BTreeMap<(Region, ConnKey), Told>,
    now: Duration,
    /// Whose connection is which; with it, what they are told is judged.
    #[cfg(feature = "client")]
    readers: BTreeMap<(Region, u64), UserId>,
    /// What somebody was told who may not read it.
    #[cfg(feature = "client")]
    leaks: Vec<String>,
}

fn pair(a: Region, b: Region) -> (Region, Region) {
    (a.min(b), a.max(b))
}

impl World {
    /// All three regions up and linked.
    fn new() -> Self {
        Self::folding(EraTable::default())
    }

    /// Likewise, with rows that are folded so.
    fn folding(folding: EraTable) -> Self {
        let mut world = Self {
            cores: BTreeMap::new(),
            graveyard: [EU, US, AP].map(|r| (r, Disk::default())).into(),
            opening: BTreeSet::new(),
            minted: 0,
            folding,
            links: BTreeMap::new(),
            up: BTreeSet::new(),
            told: BTreeMap::new(),
            now: Duration::from_secs(1_000),
            #[cfg(feature = "client")]
            readers: BTreeMap::new(),
            #[cfg(feature = "client")]
            leaks: Vec::new(),
        };
        for region in [EU, US, AP] {
            world.start(region);
        }
        for (a, b) in [(EU, US), (EU, AP), (US, AP)] {
            world.link(a, b);
        }
        world.settle();
        world
    }

    fn now(&self, skew_ms: i64) -> Now {
        let wall = u64::try_from(self.now.as_millis()).unwrap() + 1_700_000_000_000;
        Now { mono: self.now, wall_ms: wall.saturating_add_signed(skew_ms) }
    }

    fn core(&mut self, region: Region) -> &mut Core {
        self.cores.get_mut(&region).unwrap().as_mut().expect("the region is up")
    }

    /// What a region that is up, or whose store is open, knows of another.
    fn known(&self, region: Region, of: Region) -> Option<Known> {
        match &self.cores[&region] {
            Some(core) => {
                let (start, era) = *core.node.eras.get(&of)?;
                Some(Known { start, era, commit: core.node.commits[&of], incomplete: false })
            }
            None => Known::from_bytes(self.graveyard[&region].meta.get(&format!("peer/{of}"))?),
        }
    }

    /// Whether a store that was stopped cleanly may go on in its era (R13).
    fn may_keep(&self, region: Region, disk: &Disk) -> bool {
        let Some(commit) = disk.number("clean") else { return false };
        let own = (disk.number("start").unwrap_or(0), commit);
        disk.number("restored").is_none()
            && [EU, US, AP].into_iter().filter(|r| *r != region).all(|peer| {
                let answers = self.cores[&peer].is_some() || self.opening.contains(&peer);
                let confirms = answers && self.known(peer, region).is_none_or(|k| (k.start, k.commit) <= own);
                confirms || on(Mutant::PeersNotAsked)
            })
    }

    /// Starts a region over its disk, as `replication::region::start` does.
    fn start(&mut self, region: Region) {
        let mut disk = self.graveyard.remove(&region).expect("the region is down");
        let keep = self.may_keep(region, &disk) || on(Mutant::EraKept) || on(Mutant::RevReused);
        let starts = disk.number("start").unwrap_or(0) + 1;
        let commit = disk.number("clean").filter(|_| keep).unwrap_or(0);
        let era = match disk.number("era").filter(|_| keep) {
            Some(era) => era,
            None => {
                self.minted += 1;
                u64::from(region) * 1_000 + self.minted
            }
        };
        let peers: BTreeSet<Region> = [EU, US, AP].into_iter().filter(|r| *r != region).collect();
        disk.meta.remove("clean");
        disk.set("start", starts);
        disk.set("era", era);
        let mut eras = self.folding.clone();
        for of in [EU, US, AP] {
            if let Some(bytes) = disk.meta.get(&format!("{ERAS_KEY}{of}")) {
                assert!(eras.take_bytes(of, bytes));
            }
        }
        if eras.get(Origin { region, era }).is_none() {
            eras.note(Origin { region, era }, Era { start: starts, sealed: false }, true);
            disk.meta.insert(format!("{ERAS_KEY}{region}"), eras.to_bytes(region));
        }
        if !keep {
            for peer in &peers {
                disk.meta.insert(format!("{MARK_KEY}{peer}"), Bytes::from_static(&[1]));
            }
        }
        let marked = |r: &Region| disk.meta.get(&format!("{MARK_KEY}{r}")).is_some_and(|v| !v.is_empty());
        let known = |r: Region| Some((r, Known::from_bytes(disk.meta.get(&format!("peer/{r}"))?)?));
        let settings = Settings {
            region,
            region_name: format!("r{region}"),
            origin: Origin { region, era },
            epoch: starts,
            shared: false,
            start: starts,
            peers: peers.clone(),
            known: [EU, US, AP].into_iter().filter_map(known).collect(),
            eras,
            commit,
            refill: peers.into_iter().filter(marked).collect(),
            restored: disk.number("restored").is_some(),
            direct_salt: SALT.to_vec(),
            receipt_key: ReceiptKey::new(&[7; 32]),
            reoffer_after: Duration::from_secs(30),
            heartbeat: v1::Heartbeat::default(),
        };
        let todo = disk
            .todo
            .iter()
            .map(|((target, conversation), (prefix, user))| Todo {
                target: *target,
                conversation: *conversation,
                prefix: prefix.clone(),
                user: user.clone(),
            })
            .collect();
        let node = Node::new(settings, todo, self.now(0));
        let core = Core {
            node,
            disk,
            starts,
            appends: VecDeque::new(),
            stalled: false,
            failures: VecDeque::new(),
            notices: Vec::new(),
            moved: Vec::new(),
            skew_ms: 0,
            damaged: BTreeSet::new(),
            away: false,
            waiting: Vec::new(),
        };
        self.cores.insert(region, Some(core));
        self.carry_out(region);
    }

    /// The process dies: what was not synced is gone.
    fn kill(&mut self, region: Region) {
        let core = self.cores.get_mut(&region).unwrap().take().expect("the region is up");
        let disk = Disk { lazy: Vec::new(), ..core.disk };
        self.bury(region, disk);
    }

    /// The process stops in order: all is on disk, and connected peers have what they were to get.
    fn stop(&mut self, region: Region) {
        self.core(region).node.drain([]);
        for _ in 0..100 {
            if self.core(region).node.is_settled() {
                break;
            }
            self.pass(Duration::from_millis(100));
        }
        self.close(region);
    }

    /// The end of a stop in order.
    fn close(&mut self, region: Region) {
        let mut core = self.cores.get_mut(&region).unwrap().take().expect("the region is up");
        core.disk.lazy.extend(core.node.last_puts());
        core.disk.sync();
        core.disk.set("clean", core.node.commit());
        self.bury(region, core.disk);
    }

    /// What a region's disk holds, synced: as good as a backup.
    fn backup(&mut self, region: Region) -> Disk {
        let mut disk = self.core(region).disk.clone();
        disk.sync();
        disk
    }

    /// A backup takes the place of a dead region's disk.
    fn restore(&mut self, region: Region, backup: &Disk) {
        let mut disk = backup.clone();
        disk.set("restored", 1);
        self.graveyard.insert(region, disk);
    }

    fn bury(&mut self, region: Region, disk: Disk) {
        self.cores.insert(region, None);
        self.graveyard.insert(region, disk);
        for other in [EU, US, AP] {
            self.unlink(region, other);
        }
        self.told.retain(|(r, _), _| *r != region);
    }

    fn link(&mut self, a: Region, b: Region) {
        self.up.insert(pair(a, b));
        self.links.insert((a, b), VecDeque::new());
        self.links.insert((b, a), VecDeque::new());
        for (from, to) in [(a, b), (b, a)] {
            let now = self.now(0);
            // A start that the peer has seen already is that of another life: a later one is taken.
            let own = self.core(from).node.origin().era;
            let known = self.known(to, from).filter(|k| k.era != own).map_or(0, |k| k.start + 1);
            let core = self.core(from);
            core.starts = core.starts.max(known);
            core.disk.set("start", core.starts);
            core.node.start_raised(core.starts);
            let hello = PeerHello {
                start: core.starts,
                era: own,
                commit: core.node.commit(),
                incomplete: core.node.is_incomplete_for(to),
            };
            self.core(to).node.peer_up(now, from, &hello);
            self.carry_out(to);
        }
    }

    fn unlink(&mut self, a: Region, b: Region) {
        if self.up.remove(&pair(a, b)) {
            for (from, to) in [(a, b), (b, a)] {
                self.links.remove(&(from, to));
                let now = self.now(0);
                if let Some(Some(core)) = self.cores.get_mut(&from) {
                    core.node.peer_down(now, to);
                    self.carry_out(from);
                }
            }
        }
    }

    /// Does what the node says, except that appends wait for `settle`.
    fn carry_out(&mut self, region: Region) {
        loop {
            let now = self.now(self.cores[&region].as_ref().map_or(0, |c| c.skew_ms));
            let Some(Some(core)) = self.cores.get_mut(&region) else { return };
            let Outputs { appends, puts, flush, wants, downs, links, notices, moved, .. } = core.node.take_outputs();
            let again = !wants.is_empty() || flush.is_some();
            core.appends.extend(appends);
            core.notices.extend(notices);
            core.moved.extend(moved);
            core.disk.lazy.extend(puts);
            if let Some(rows) = flush {
                core.disk.sync();
                rows.into_iter().for_each(|row| core.disk.apply(row));
                core.node.flushed(now);
            }
            for want in wants {
                match want {
                    Want::Conversation(id) => {
                        let state = core.disk.state(id);
                        let damaged = core.damaged.iter().filter(|(c, _)| *c == id);
                        let damaged = damaged.map(|(_, o)| (*o, "torn".to_owned())).collect();
                        core.node.conversation_loaded(now, state, damaged);
                    }
                    Want::User(user) => {
                        let rows = core.disk.rows.iter().filter(|((u, _), _)| *u == user);
                        let rows = rows.map(|((_, c), r)| (*c, r.clone())).collect();
                        core.node.user_loaded(now, &user, rows);
                    }
                    Want::Heads { ticket, after, limit } => {
                        let heads = core.disk.heads(after, limit);
                        core.node.heads_read(now, ticket, &heads);
                    }
                    Want::Marks { ticket, after, limit } => {
                        let marks = core.disk.marks(after.as_ref(), limit);
                        core.node.marks_read(now, ticket, &marks);
                    }
                    Want::Range { ticket, range, patient: true } if core.away => core.waiting.push((ticket, range)),
                    Want::Range { ticket, .. } if core.away => {
                        core.node.range_read(now, ticket, Err(StoreError::Archive("it is away".to_owned())));
                    }
                    Want::Range { ticket, range, .. } => {
                        let entries = core.disk.range(range);
                        core.node.range_read(now, ticket, Ok(entries));
                    }
                }
            }
            for (to, frames) in links {
                if let Some(queue) = self.links.get_mut(&(region, to.region)) {
                    queue.extend(frames);
                }
            }
            for (edge, downs) in downs {
                for down in downs {
                    #[cfg(feature = "client")]
                    self.judge(region, down.conn, &down.body);
                    let told = self.told.entry((region, ConnKey { edge, conn: down.conn })).or_default();
                    told.all.push(down.body.clone());
                    match down.body {
                        DownBody::Ack { req, ack } => told.acks.push((req, ack)),
                        DownBody::Push(push) => told.pushes.push(push),
                        DownBody::Page { page, .. } => told.pages.push(page),
                        DownBody::Frame(frame) => told.frames.push(*frame),
                        DownBody::Last(refusal) => told.last = Some(refusal.code),
                    }
                }
            }
            if !again {
                return;
            }
        }
    }

    /// Nobody is told an entry that he may not read by what the region holds.
    #[cfg(feature = "client")]
    fn judge(&mut self, region: Region, conn: u64, body: &DownBody) {
        let Some(user) = self.readers.get(&(region, conn)) else { return };
        let (id, entries) = match body {
            DownBody::Push(push) => (push.conversation, &push.entries),
            DownBody::Page { page, .. } => (page.conversation, &page.entries),
            _ => return,
        };
        let Some(Some(core)) = self.cores.get(&region) else { return };
        for entry in entries.iter().filter(|e| !random::recount::may_be_told(&core.disk, id, user, e)) {
            self.leaks.push(format!("{region} tells {user} of {:?} in {id:?}", entry.place));
        }
    }

    /// One append of a region is answered.
    fn commit(&mut self, region: Region) -> bool {
        let now = self.now(0);
        let Some(Some(core)) = self.cores.get_mut(&region) else { return false };
        if core.stalled {
            return false;
        }
        let Some(batch) = core.appends.pop_front() else { return false };
        let id = batch.conversation;
        let answer = match core.failures.pop_front() {
            Some(Appended::Unknown(why)) if why == "written" => {
                core.disk.append(batch);
                Appended::Unknown(why)
            }
            Some(failure) => failure,
            None => core.disk.append(batch),
        };
        core.node.appended(now, vec![(id, answer)]);
        self.carry_out(region);
        true
    }

    /// Everything that can happen without time passing.
    fn settle(&mut self) {
        loop {
            let mut busy = false;
            for region in [EU, US, AP] {
                busy |= self.commit(region);
            }
            let frames: Vec<_> =
                self.links.iter_mut().filter_map(|(way, queue)| Some((*way, queue.pop_front()?))).collect();
            for ((from, to), body) in frames {
                busy = true;
                let now = self.now(0);
                self.core(to).node.peer_frame(now, from, body);
                self.carry_out(to);
            }
            if !busy {
                return;
            }
        }
    }

    /// Lets time pass in small steps, everything settling on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100);
            for region in [EU, US, AP] {
                let now = self.now(0);
                if let Some(Some(core)) = self.cores.get_mut(&region) {
                    core.node.tick(now);
                    self.carry_out(region);
                }
            }
            // Beats: a link that is up is heard.
            for (a, b) in self.up.clone() {
                for (from, to) in [(a, b), (b, a)] {
                    let now = self.now(0);
                    let commit = self.core(from).node.commit();
                    let beat = crate::wire::node_v1::Beat { commit, ..Default::default() };
                    self.core(to).node.peer_frame(now, from, LinkBody::Beat(beat));
                    self.carry_out(to);
                }
            }
            self.settle();
        }
    }

    fn ups(&mut self, region: Region, edge: EdgeId, ups: Vec<Up>) {
        let skew = self.core(region).skew_ms;
        let now = self.now(skew);
        self.core(region).node.ups(now, edge, ups);
        self.carry_out(region);
    }

    fn hello(&mut self, region: Region, conn: u64, name: &str, device: &str, hello: v1::Hello) -> Conn {
        let up = Up::Open {
            conn,
            req: 1,
            user: user(name),
            install: install(device),
            hello: Box::new(hello),
            address: "192.0.2.1:5".into(),
            transport: "quic",
            token_expires_ms: 0,
            token_issued_ms: 0,
        };
        self.ups(region, 1, vec![up]);
        self.settle();
        Conn { region, conn }
    }

    /// A connection that has said Hello and Commit.
    fn connect(&mut self, region: Region, conn: u64, name: &str, device: &str) -> Conn {
        let c = self.hello(region, conn, name, device, v1::Hello::default());
        self.frame(c, 0, v1::frame::Body::Commit(v1::Commit::default()));
        c
    }

    fn frame(&mut self, c: Conn, req: u32, body: v1::frame::Body) {
        self.ups(c.region, 1, vec![Up::Frame { conn: c.conn, frame: v1::Frame::new(req, body) }]);
        self.settle();
    }

    /// A Send that is not settled yet.
    fn post(&mut self, c: Conn, send: SendRequest) {
        let req = u32::try_from(send.n).unwrap() + 100;
        self.ups(c.region, 1, vec![Up::Send { conn: c.conn, req, send }]);
    }

    fn send(&mut self, c: Conn, n: u64) -> Ack {
        self.post(c, message(n));
        self.settle();
        self.ack(c, n)
    }

    fn ack(&mut self, c: Conn, n: u64) -> Ack {
        let req = u32::try_from(n).unwrap() + 100;
        let told = self.told(c);
        let ack = told.acks.iter().rev().find(|(r, _)| *r == req);
        ack.unwrap_or_else(|| panic!("no ack of {n}: {told:?}")).1.clone()
    }

    fn told(&mut self, c: Conn) -> &mut Told {
        self.told.entry((c.region, ConnKey { edge: 1, conn: c.conn })).or_default()
    }

    fn log(&self, region: Region, origin: Origin) -> Vec<String> {
        let disk = match &self.cores.get(&region) {
            Some(Some(core)) => &core.disk,
            _ => &self.graveyard[&region],
        };
        let log = disk.logs.get(&(alice_and_bob(), origin));
        log.into_iter().flatten().map(|e| String::from_utf8_lossy(&e.body).into_owned()).collect()
    }

    fn row(&mut self, region: Region, name: &str) -> Heads {
        let row = self.core(region).disk.rows.get(&(user(name), alice_and_bob())).cloned();
        row.unwrap_or_default().heads
    }
}

#[derive(Clone, Copy, Debug)]
struct Conn {
    region: Region,
    conn: u64,
}

/// What alice's phone sends to bob, or bob's to alice: the body says which.
fn message(n: u64) -> SendRequest {
    SendRequest {
        conversation: alice_and_bob(),
        peer: Some(user("bob")),
        n,
        floor: n,
        seen_hlc: 0,
        kind: 0,
        body: Bytes::from(format!("m{n}")),
        wall_ms: 0,
        offer: None,
        membership: None,
        named: None,
    }
}
