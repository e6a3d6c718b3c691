//! The core nodes of the region, as the edge speaks to them.
//!
//! Problem: a region's core is one process, or several that share its slots; they start, die and hand slots over while
//! clients are connected. Which of them an edge meets first, it can't know.
//!
//! Rule: every address that was configured is dialled. If the first core node that answers owns all of the region, the
//! link to it is the only one. If it shares the region with others, it names them, and there is a link to each.
//! [`tern_core::router`] decides who is told what, and a link that breaks takes nothing with it but the answers that were on
//! their way: the connections are told to whoever has their users next, be it another node or the next start of the same.
//! That start must be of the same store in the same era: in another one revisions count from the beginning, and clients must
//! say Hello. So all are sent elsewhere when what answers is another region than before, and when nobody has answered for
//! five seconds, or for as long as [`crate::EdgeLimits::core_restart`] says where the last core node was stopped in order.
//!
//! A core node may be this very process ([`Cores::add_local`]); then its link is a call.
//!
//! The router is behind one lock. Whatever it says for core nodes is put into their queues before the lock is let go, so
//! that no two threads turn round what it has ordered; calls out of this module are made after it.

mod keeper;
mod local;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tern_core::edge_api::{CorePort, Down, DownBody, EdgePort, Up};
use tern_core::owners::{CORE_NODES, NODE_NAME_BYTES, Owners};
use tern_core::pressure::Level;
use tern_core::router::{CoreNo, HELD_BYTES, Routed, Router};
use tern_core::slots::{Share, Slot};
use tern_core::wire::versions::OLDEST;
use tern_core::wire::{NODE_VERSION, node_v1};
use tern_net::env::Env;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::edge::Edge;
use crate::link::{Dialler, Link, LinkError};

use self::keeper::Keeper;
use self::local::Local;

/// A region of which a part has had no owner that can be reached for so long takes no new clients here.
const WHOLE_WITHIN: Duration = Duration::from_secs(5);
/// How often it is asked whether the core of this process is there.
const LOOK_AT_LOCAL: Duration = Duration::from_millis(250);

/// See the module.
pub struct Cores {
    me: Weak<Self>,
    edge: Weak<Edge>,
    dialler: Dialler,
    configured: Vec<SocketAddr>,
    state: Mutex<State>,
    /// Links that are up, for those who ask often.
    links: ArcSwap<Vec<Way>>,
    reachable: AtomicBool,
    whole: AtomicBool,
    /// More waits for owners than is good.
    holds_much: AtomicBool,
    /// Which links there are, and which core nodes have been named, has changed.
    changed: watch::Sender<u64>,
    /// The clock-watcher is to look again.
    look: Notify,
}

/// How one core node is spoken to.
#[derive(Clone, Debug)]
enum Way {
    /// In another process.
    Remote(Arc<Link>),
    /// In this one.
    Local(Arc<Local>),
}

impl Way {
    /// In order. Calls nobody.
    fn put(&self, ups: Vec<Up>) {
        match self {
            Way::Remote(link) => link.submit(ups),
            Way::Local(local) => local.put(ups),
        }
    }

    fn is_crowded(&self) -> bool {
        match self {
            Way::Remote(link) => link.is_crowded(),
            Way::Local(local) => local.core().is_some_and(|core| core.crowded()),
        }
    }
}

struct State {
    region: Region,
    /// Who owns what, and which core nodes there are; the latter also while none can be reached.
    owners: Owners,
    /// Addresses that have a keeper.
    kept: BTreeSet<SocketAddr>,
    locals: Vec<Arc<Local>>,
    last_no: CoreNo,
    /// Since when some slot has had no owner that can be reached.
    broken: Option<Duration>,
    /// When the clock-watcher looks at the latest.
    looks_at: Option<Duration>,
}

/// What is known of the region.
enum Region {
    /// No core node can be reached, and none is waited for.
    Lost,
    /// One core node that owns all of it, or several that share it. There may be no link for a while.
    Known(Box<Known>),
}

struct Known {
    router: Router,
    salt: Vec<u8>,
    era: u64,
    /// Several share it.
    is_shared: bool,
    links: BTreeMap<CoreNo, Linked>,
    names: BTreeMap<Arc<str>, CoreNo>,
}

struct Linked {
    name: Arc<str>,
    way: Way,
    /// Which core nodes it has named last.
    listed: BTreeSet<String>,
}

/// What is done when the lock has been let go.
#[derive(Default)]
struct After {
    downs: Vec<Down>,
    locals: Vec<Arc<Local>>,
}

impl std::fmt::Debug for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cores").field("links", &self.links.load()).finish_non_exhaustive()
    }
}

impl Cores {
    /// Dials `core_addrs` and whatever core nodes those name, and keeps doing so until `edge` stops. `server_name` is
    /// what the certificate of each core node must say. Of more than [`CORE_NODES`] addresses the rest are left out. Give
    /// the result to [`Edge::run`].
    pub fn start(
        env: Env,
        core_addrs: Vec<SocketAddr>,
        server_name: String,
        tls: Arc<rustls::ClientConfig>,
        edge: Arc<Edge>,
    ) -> Arc<Self> {
        let mut configured = core_addrs;
        if configured.len() > CORE_NODES {
            tracing::warn!(
                given = configured.len(),
                used = CORE_NODES,
                "more addresses of core nodes than a region has"
            );
            configured.truncate(CORE_NODES);
        }
        let hello = node_v1::EdgeHello {
            edge: edge.config().name.clone(),
            generation: edge.generation(),
            version: NODE_VERSION,
            keeps: true,
            oldest: OLDEST,
        };
        let dialler = Dialler { env: env.clone(), server_name, tls, hello, region: edge.config().region };
        let cores = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            edge: Arc::downgrade(&edge),
            dialler,
            configured,
            state: Mutex::new(State {
                region: Region::Lost,
                owners: Owners::default(),
                kept: BTreeSet::new(),
                locals: Vec::new(),
                last_no: 0,
                broken: None,
                looks_at: None,
            }),
            links: ArcSwap::default(),
            reachable: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            holds_much: AtomicBool::new(false),
            changed: watch::Sender::new(0),
            look: Notify::new(),
        });
        cores.keep_all(&mut cores.state());
        env.tasks.spawn(watch_the_clock(cores.clone(), edge));
        cores
    }

    /// The core of this process is the region's, or one of those that share it: `welcome` is what it says of itself.
    /// `attach` makes the edge that it is given known to it. To be called at once after [`Self::start`], before other core
    /// nodes can name this one and it is dialled.
    pub fn add_local(
        &self,
        welcome: node_v1::EdgeWelcome,
        attach: impl FnOnce(Arc<dyn EdgePort>) -> Arc<dyn CorePort>,
    ) {
        let no = self.state().next_no();
        let local = Arc::new(Local::new(no, welcome));
        self.state().locals.push(local.clone());
        // What it says before the link is up is of no connection.
        let core = attach(Arc::new(self.ear(no)));
        local.is_core(core);
        self.look_at_locals();
        self.look.notify_one();
    }

    /// No link is up.
    #[cfg(test)]
    pub(crate) fn is_alone(&self) -> bool {
        self.links.load().is_empty()
    }

    /// Frames that wait for a core node.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        match &self.state().region {
            Region::Known(known) => known.router.held(),
            Region::Lost => 0,
        }
    }

    fn env(&self) -> &Env {
        &self.dialler.env
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ear(&self, no: CoreNo) -> Ear {
        Ear { cores: self.me.clone(), no }
    }

    /// Puts what the router says for core nodes into their queues. Before the lock is let go.
    fn settle(&self, state: &mut State, after: &mut After) {
        let Region::Known(known) = &mut state.region else {
            return self.holds_much.store(false, Ordering::Relaxed);
        };
        let Routed { ups, downs } = known.router.take();
        after.downs.extend(downs);
        for (no, ups) in ups {
            // Only links that are up have something to be told.
            let Some(linked) = known.links.get(&no) else { continue };
            linked.way.put(ups);
            if let Way::Local(local) = &linked.way {
                after.locals.push(local.clone());
            }
        }
        self.holds_much.store(known.router.held_bytes() > HELD_BYTES / 4, Ordering::Relaxed);
        let due = known.router.next_deadline();
        if due.is_some_and(|due| state.looks_at.is_none_or(|at| due < at)) {
            state.looks_at = due;
            self.look.notify_one();
        }
    }

    fn finish(&self, after: After) {
        for local in after.locals {
            local.flush();
        }
        if !after.downs.is_empty()
            && let Some(edge) = self.edge.upgrade()
        {
            edge.deliver(after.downs);
        }
    }

    /// A core node has welcomed this edge. Until [`Self::down`] is called for it `way` is told what is its own.
    fn up(&self, no: CoreNo, welcome: &node_v1::EdgeWelcome, way: Way) -> Result<(), LinkError> {
        let Some(edge) = self.edge.upgrade() else { return Err(LinkError::Closed) };
        let refused = |what: &str| Err(LinkError::Refused(what.to_owned()));
        let name: Arc<str> = welcome.node.as_str().into();
        if welcome.shared && (name.is_empty() || name.len() > NODE_NAME_BYTES) {
            return refused("it shares the region with others and has no name, or too long a one");
        }
        let mut after = After::default();
        let mut guard = self.state();
        let state = &mut *guard;
        if matches!(way, Way::Remote(_)) && state.is_local(&name) {
            return Err(LinkError::Spare(welcome.node.clone()));
        }
        if let Region::Known(known) = &state.region {
            match known.differs(welcome) {
                _ if known.names.contains_key(&name)
                    || !(welcome.shared || known.is_shared || known.links.is_empty()) =>
                {
                    return Err(LinkError::Spare(welcome.node.clone()));
                }
                Some(why) if !known.links.is_empty() => return refused(why),
                Some(_) => self.lose(state, &edge),
                None => {}
            }
        }
        let first = matches!(state.region, Region::Lost);
        if first {
            // Whatever was open before is unknown to this core node.
            edge.core_lost();
            state.region = Region::Known(Box::new(Known::new(welcome)));
        }
        if let Region::Known(known) = &mut state.region {
            known.names.insert(name.clone(), no);
            known.links.insert(no, Linked { name: name.clone(), way, listed: BTreeSet::new() });
            known.router.core_up(no);
            if known.is_shared {
                // What it owned before its last link broke, or the others have said of it.
                let owned: Vec<_> = state.owners.owned_by(&name).flat_map(Share::slots).collect();
                known.router.owners(owned.into_iter().map(|slot| (slot, no)));
            } else {
                known.router.owners(Slot::all().map(|slot| (slot, no)));
            }
        }
        self.has_changed(state);
        self.settle(state, &mut after);
        drop(guard);
        if first {
            self.reachable.store(true, Ordering::Release);
            edge.core_back();
        }
        self.finish(after);
        Ok(())
    }

    /// The link to a core node is gone.
    fn down(&self, no: CoreNo) {
        let mut after = After::default();
        let mut state = self.state();
        let Region::Known(known) = &mut state.region else { return };
        let Some(linked) = known.links.remove(&no) else { return };
        known.names.remove(&linked.name);
        known.router.core_down(no);
        self.has_changed(&mut state);
        self.settle(&mut state, &mut after);
        drop(state);
        self.finish(after);
    }

    /// A core node is stopped in order, and comes back.
    fn stopping(&self, no: CoreNo) {
        let (now, mut after) = (self.env().clock.now(), After::default());
        let within = self.edge.upgrade().map(|edge| edge.config().limits.core_restart).unwrap_or_default();
        let mut state = self.state();
        let Region::Known(known) = &mut state.region else { return };
        let Some(linked) = known.links.get(&no) else { return };
        tracing::info!(node = %linked.name, "the core node is stopped in order; clients are kept until it is back");
        known.router.stopping(now, no, within);
        self.has_changed(&mut state);
        self.settle(&mut state, &mut after);
        drop(state);
        self.finish(after);
    }

    /// No core node is waited for any more: who is back knows nothing of the connections that are open.
    fn lose(&self, state: &mut State, edge: &Edge) {
        state.region = Region::Lost;
        // Epochs count within one life of the region's store, which may be another one when it is back.
        let mut owners = Owners::default();
        for (name, node) in state.owners.nodes() {
            owners.node(name, node.clone());
        }
        state.owners = owners;
        self.reachable.store(false, Ordering::Release);
        edge.core_lost();
    }

    /// Which links are up, or who owns what, is not as it was.
    fn has_changed(&self, state: &mut State) {
        let (links, whole) = match &mut state.region {
            Region::Lost => (Vec::new(), false),
            Region::Known(known) => (known.links.values().map(|l| l.way.clone()).collect(), known.router.is_whole()),
        };
        if whole || matches!(state.region, Region::Lost) {
            self.whole.store(whole, Ordering::Release);
            state.broken = None;
        } else if state.broken.is_none() {
            state.broken = Some(self.env().clock.now());
            self.look.notify_one();
        }
        if let Some(edge) = self.edge.upgrade() {
            edge.metrics.core_links.set(i64::try_from(links.len()).unwrap_or(i64::MAX));
        }
        self.links.store(Arc::new(links));
        if let Region::Known(known) = &state.region {
            forget_unlisted(known, &mut state.owners);
        }
        self.keep_all(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Starts what keeps links to core nodes that have none yet.
    fn keep_all(&self, state: &mut State) {
        let (Some(me), Some(edge)) = (self.me.upgrade(), self.edge.upgrade()) else { return };
        let named = state.owners.nodes().values().map(|node| node.addr);
        let wanted: BTreeSet<SocketAddr> = self.configured.iter().copied().chain(named).collect();
        for to in wanted {
            if state.kept.insert(to) {
                self.env().tasks.spawn(Keeper::new(me.clone(), edge.clone(), to).keep());
            }
        }
    }

    /// What a core node tells connections, noted before it is handed on. Nothing of one whose link is gone: its requests
    /// have been answered.
    fn told(&self, no: CoreNo, downs: Vec<Down>) {
        let mut after = After::default();
        let mut state = self.state();
        match &mut state.region {
            Region::Lost => return,
            Region::Known(known) if !known.links.contains_key(&no) => return,
            Region::Known(known) => {
                for down in downs.iter().filter(|down| !matches!(down.body, DownBody::Push(_))) {
                    known.router.told(down);
                }
            }
        }
        self.settle(&mut state, &mut after);
        drop(state);
        if let Some(edge) = self.edge.upgrade() {
            edge.deliver(downs);
        }
        self.finish(after);
    }

    fn bounced(&self, no: CoreNo, ups: Vec<Up>) {
        let now = self.env().clock.now();
        let mut after = After::default();
        let mut state = self.state();
        if let Region::Known(known) = &mut state.region
            && known.links.contains_key(&no)
        {
            known.router.bounced(now, no, ups);
        }
        self.settle(&mut state, &mut after);
        drop(state);
        self.finish(after);
    }

    fn owners(&self, no: CoreNo, told: &node_v1::Owners) {
        let mut after = After::default();
        let mut guard = self.state();
        let state = &mut *guard;
        let Region::Known(known) = &mut state.region else { return };
        if !known.is_shared {
            return; // it owns all
        }
        let Some(linked) = known.links.get_mut(&no) else { return };
        let way = linked.way.clone();
        if !told.nodes.is_empty() && told.nodes.len() <= CORE_NODES {
            linked.listed = told.nodes.iter().map(|node| node.name.clone()).collect();
            forget_unlisted(known, &mut state.owners);
        }
        let changed = match state.owners.told(told) {
            Ok(changed) => changed,
            Err(refusal) => {
                if let Way::Remote(link) = way {
                    link.nonsense(&refusal.to_string());
                }
                return;
            }
        };
        let (mut owned, mut vacant) = (Vec::new(), Vec::new());
        for share in changed {
            match state.owners.of(share).0.and_then(|name| known.names.get(name)) {
                Some(owner) => owned.extend(share.slots().map(|slot| (slot, *owner))),
                None => vacant.extend(share.slots()),
            }
        }
        known.router.nobody(vacant);
        known.router.owners(owned);
        self.has_changed(state);
        self.settle(state, &mut after);
        drop(guard);
        self.finish(after);
    }

    /// Time has passed. When to look again at the latest.
    fn tick(&self) -> Option<Duration> {
        let now = self.env().clock.now();
        let mut after = After::default();
        let mut state = self.state();
        if state.broken.is_some_and(|since| now >= since + WHOLE_WITHIN) {
            self.whole.store(false, Ordering::Release);
        }
        let mut over = false;
        if let Region::Known(known) = &mut state.region {
            known.router.tick(now);
            over = known.links.is_empty() && known.router.is_given_up();
        }
        self.settle(&mut state, &mut after);
        if over && let Some(edge) = self.edge.upgrade() {
            self.lose(&mut state, &edge);
            self.has_changed(&mut state);
        }
        let router = match &state.region {
            Region::Known(known) => known.router.next_deadline(),
            Region::Lost => None,
        };
        let whole = state.broken.map(|since| since + WHOLE_WITHIN).filter(|at| *at > now);
        let local = (!state.locals.is_empty()).then_some(now + LOOK_AT_LOCAL);
        let due = [router, whole, local].into_iter().flatten().min();
        state.looks_at = due;
        drop(state);
        self.finish(after);
        due.map(|due| due.saturating_sub(now))
    }

    /// The core of this process has no link that could break; it says whether it is there.
    fn look_at_locals(&self) {
        let locals = self.state().locals.clone();
        for local in locals {
            let is_there = local.core().is_some_and(|core| core.reachable());
            if is_there == local.set_up(is_there) {
                continue;
            }
            if !is_there {
                self.down(local.no());
            } else if let Err(error) = self.up(local.no(), local.welcome(), Way::Local(local.clone())) {
                local.set_up(false);
                if local.fails_anew() {
                    tracing::warn!(%error, "the core of this process can't serve this edge");
                }
            }
        }
    }
}

impl Known {
    fn new(welcome: &node_v1::EdgeWelcome) -> Self {
        let salt = welcome.direct_salt.to_vec();
        Self {
            router: Router::new(salt.clone()),
            salt,
            era: welcome.era,
            is_shared: welcome.shared,
            links: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    /// Why who says so serves another region than this one, or another life of it.
    fn differs(&self, welcome: &node_v1::EdgeWelcome) -> Option<&'static str> {
        match welcome.shared {
            true if !self.is_shared => {
                Some("it shares the region with others, and this edge is linked to one that owns all of it")
            }
            false if self.is_shared => {
                Some("it owns all of the region, and this edge is linked to one that shares it with others")
            }
            _ if self.salt != welcome.direct_salt => {
                Some("its salt of users' slots is not that of the other core nodes: give all one direct.salt_file")
            }
            _ if self.era != welcome.era => {
                Some("its era of the region is not that of the other core nodes: restart those from before the new era")
            }
            _ => None,
        }
    }
}

impl State {
    fn next_no(&mut self) -> CoreNo {
        self.last_no += 1;
        self.last_no
    }

    fn is_local(&self, name: &str) -> bool {
        self.locals.iter().any(|local| local.welcome().node == name)
    }
}

/// Core nodes that nobody names any more, and to whom there is no link, are given up.
fn forget_unlisted(known: &Known, owners: &mut Owners) {
    if known.links.values().all(|linked| linked.listed.is_empty()) {
        return;
    }
    let is_listed = |name: &str| known.links.values().any(|linked| linked.listed.contains(name));
    let gone: Vec<Arc<str>> =
        owners.nodes().keys().filter(|name| !known.names.contains_key(*name) && !is_listed(name)).cloned().collect();
    for name in gone {
        owners.forget(&name);
    }
}

async fn watch_the_clock(cores: Arc<Cores>, edge: Arc<Edge>) {
    let mut stopped = edge.stopped();
    drop(edge);
    while stopped.borrow().is_none() {
        cores.look_at_locals();
        let due = cores.tick();
        let pause = async {
            match due {
                // tokio's timers count whole milliseconds; one more makes sure that the time has come.
                Some(due) => sleep(due + Duration::from_millis(1)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = stopped.changed() => return,
            () = cores.look.notified() => {}
            () = pause => {}
        }
    }
}

/// This edge, as one core node sees it.
#[derive(Debug)]
struct Ear {
    cores: Weak<Cores>,
    no: CoreNo,
}

impl EdgePort for Ear {
    fn deliver(&self, downs: Vec<Down>) {
        if let Some(cores) = self.cores.upgrade() {
            cores.told(self.no, downs);
        }
    }

    fn bounced(&self, ups: Vec<Up>) {
        if let Some(cores) = self.cores.upgrade() {
            cores.bounced(self.no, ups);
        }
    }

    fn owners(&self, owners: node_v1::Owners) {
        if let Some(cores) = self.cores.upgrade() {
            cores.owners(self.no, &owners);
        }
    }

    fn stopping(&self) -> bool {
        if let Some(cores) = self.cores.upgrade() {
            cores.stopping(self.no);
        }
        true
    }
}

impl CorePort for Cores {
    fn submit(&self, ups: Vec<Up>) {
        let mut after = After::default();
        let mut state = self.state();
        match &mut state.region {
            Region::Lost => return,
            Region::Known(known) => known.router.submit(ups),
        }
        self.settle(&mut state, &mut after);
        drop(state);
        self.finish(after);
    }

    fn reachable(&self) -> bool {
        self.reachable.load(Ordering::Acquire)
    }

    fn whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    fn crowded(&self) -> bool {
        self.holds_much.load(Ordering::Relaxed) || self.links.load().iter().any(Way::is_crowded)
    }

    fn pressure(&self, level: Level) {
        for core in self.links.load().iter().filter_map(Way::local) {
            core.pressure(level);
        }
    }

    fn commit_time(&self) -> Option<Duration> {
        self.links.load().iter().filter_map(Way::local).find_map(|core| core.commit_time())
    }

    fn report(&self, load: node_v1::EdgeLoad) {
        for way in self.links.load().iter() {
            match way {
                Way::Remote(link) => link.report(load.clone()),
                Way::Local(local) => {
                    if let Some(core) = local.core() {
                        core.report(load.clone());
                    }
                }
            }
        }
    }
}

impl Way {
    fn local(&self) -> Option<&Arc<dyn CorePort>> {
        match self {
            Way::Local(local) => local.core(),
            Way::Remote(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
