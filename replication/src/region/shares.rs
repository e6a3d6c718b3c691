//! Keeping a node's lease, and with it its shares of the region.
//!
//! One task per node. A few times a second it renews the lease, reads the beats of the others, draws the plan of
//! [`tern_core::placement`], and carries out its own part: it takes what has no living owner and is to be its own, and
//! gives away what is to be another's, after all that was begun in it is over. What changed is told to the other nodes and
//! to the edges at once.
//!
//! **The store is the truth**, and reading all of it is dear: it is scanned over all replicas, and where one of these has
//! just died, a scan waits for it longer than a lease holds. So beats are read by name, and all nodes and all shares now and
//! then only, beside everything else: after a start, when somebody new may be there, and when a conditional write shows that
//! what was known is old.
//!
//! **A share that is given away** is nobody's until its new owner has read what is to be done in it. So what is given waits
//! for nothing else that the new owner does, and no more is given than it takes up: it says so to the former owner. Were
//! shares given as fast as the store takes the words, each of them would wait for all that were given before.
//!
//! **Who is dead.** A node whose beat stood still for [`DEAD_AFTER`] by this node's clock, while this node itself read and
//! renewed without a failure in all that time: so a store that does not answer kills nobody. Its generation is ended
//! first. A node counts its own lease from before it asked for it, and for [`LEASE`], which is shorter; so what it says on
//! the strength of it is said before another can have taken over. Where its process is known to be gone, nobody is left
//! to say anything, and that wait is shorter: see `alive`.
//!
//! **A node that starts drained** says so with its first lease, so that nobody gives it anything; and what an earlier life
//! of it has left it gives on as it is, without a word to its core: whoever gets it takes it over as from the dead.
//!
//! **A name that two processes have.** Whoever starts looks first whether the name's beat moves; the two would otherwise
//! end each other's generations for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tern_core::ids::Region as RegionId;
use tern_core::leases::{LeaseError, NodeLease, ShareLease};
use tern_core::owners::CoreNode;
use tern_core::placement::{self, Candidate, Plan};
use tern_core::slots::{Share, Slot};
use tern_core::store::StoreError;
use tern_core::wire::node_v1::node_frame::Body;
use tokio::sync::oneshot;

use super::agreement::Agreement;
use super::core_task::Input;
use super::{Peer, Shared, Sharing, SharingError, Task, alive, cores, start};

/// Between two renewals.
pub const RENEW_EVERY: Duration = Duration::from_millis(300);
/// Nor is the next turn sooner than after so long, whatever it is for.
const TURN_MIN: Duration = Duration::from_millis(100);
/// What a node owns is its own for so long after it asked for the last renewal that it got.
pub const LEASE: Duration = Duration::from_millis(1_100);
/// A node whose beat stands still for so long has no lease any more. Longer than [`LEASE`]: clocks of two machines run at
/// nearly one speed.
pub const DEAD_AFTER: Duration = Duration::from_millis(1_500);
const _: () = assert!(DEAD_AFTER.as_millis() > LEASE.as_millis() + 300);
/// What is being given away must be over by then; otherwise it stays until the next plan. Meanwhile nothing new is begun in it.
const LEAVE_WITHIN: Duration = Duration::from_millis(500);
/// Shares that are given away at once: the fewer, the shorter each waits.
const GIVE_AT_ONCE: usize = 4;
/// What was given to a node that does not say that it has taken it up is not waited for any longer.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);
/// A turn goes on giving shares away for so long, and passing on those that it does not hold; the lease must be renewed
/// meanwhile.
const GIVE_FOR: Duration = Duration::from_millis(200);
const _: () = assert!(2 * GIVE_FOR.as_millis() + 2 * RENEW_EVERY.as_millis() < LEASE.as_millis());
/// All nodes and shares are read so often, and not more often than that.
const READ_ALL_EVERY: Duration = Duration::from_secs(5);
const READ_ALL_MIN: Duration = Duration::from_secs(1);
/// What was not answered is waited for in the database for a while yet, and is not to be asked too often meanwhile.
const READ_AGAIN: Duration = Duration::from_secs(15);
/// Conditional writes under way at once.
const WRITES_AT_ONCE: usize = 16;
/// What the store says is left to do is looked at so often (R6).
const TODO_EVERY: Duration = Duration::from_secs(30);

/// A beat, and since when it has stood still while everything else went well.
#[derive(Clone, Copy, Debug)]
struct Heard {
    generation: u64,
    beat: u64,
    since: Duration,
}

/// All nodes and all shares.
type Whole = (Vec<NodeLease>, Vec<ShareLease>);

/// See the module.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    sharing: Sharing,
    lease: NodeLease,
    /// When the last renewal was asked for that this node got.
    renewed: Duration,
    /// Under which word of whether it is drained.
    said_drained: bool,
    /// All nodes as they were read last, and when the others' beats were.
    nodes: BTreeMap<String, NodeLease>,
    looked: Option<Duration>,
    heard: BTreeMap<String, Heard>,
    /// All that stands in the store, while it is being read; when that began last, and when it is to begin next.
    reading: Option<Task<Result<Whole, StoreError>>>,
    read_began: Option<Duration>,
    read_at: Duration,
    /// What the core task holds, with its epochs.
    held: BTreeMap<Share, u64>,
    /// The last epoch of each share that this node had, in this life or an earlier one: it is not gone on with.
    lived: Option<BTreeMap<Share, u64>>,
    /// What was given away and is not known to have been taken up: to whom, under which epoch, and until when that counts.
    given: BTreeMap<Share, (String, u64, Duration)>,
    /// Peers that some share may have to be compared with.
    marked: BTreeSet<RegionId>,
    /// Which regions the nodes know.
    agreement: Agreement,
    todo_at: Duration,
}

impl Keeper {
    /// Begins the node's generation.
    pub async fn begin(
        shared: Arc<Shared>,
        sharing: Sharing,
        addr: SocketAddr,
        marked: BTreeSet<RegionId>,
    ) -> Result<Self, SharingError> {
        let name = shared.config.node.clone();
        let alive = |nodes: Vec<NodeLease>| nodes.into_iter().find(|n| n.name == name && !n.ended);
        let beat = |node: NodeLease| (node.generation, node.beat);
        if let Some(before) = alive(sharing.store.nodes().await?) {
            tokio::time::sleep(RENEW_EVERY * 3).await;
            // That the others end an earlier life of this node meanwhile is no sign of another process.
            if alive(sharing.store.nodes().await?).is_some_and(|now| beat(now) != beat(before)) {
                return Err(SharingError::Twice(name));
            }
        }
        let known = shared.peers().iter().map(|peer| peer.region).collect();
        let agreement = Agreement::begin(&*sharing.store, &name, known).await?;
        Self::not_behind(&agreement, &sharing).await?;
        agreement.say(&*sharing.store).await?;
        let mut marked = marked;
        marked.extend(agreement.pending());
        let mut lease = NodeLease {
            name,
            generation: 0,
            beat: 0,
            addr: sharing.advertise.unwrap_or(addr),
            weight: sharing.weight,
            drained: sharing.drained,
            ended: false,
        };
        lease.generation = sharing.store.claim(lease.clone()).await?;
        // Of two that did not see each other one does now.
        if let Err(behind) = Self::not_behind(&agreement, &sharing).await {
            lease.ended = true;
            lease.beat += 1;
            sharing.store.renew(lease).await?;
            return Err(behind);
        }
        shared.push(Input::Comparing { marks: BTreeMap::new(), held: agreement.pending().clone() });
        let todo_at = shared.env.clock.now() + TODO_EVERY;
        let now = shared.env.clock.now();
        Ok(Self {
            shared,
            said_drained: lease.drained,
            sharing,
            lease,
            renewed: now,
            nodes: BTreeMap::new(),
            looked: None,
            heard: BTreeMap::new(),
            reading: None,
            read_began: None,
            read_at: now,
            held: BTreeMap::new(),
            lived: None,
            given: BTreeMap::new(),
            marked,
            agreement,
            todo_at,
        })
    }

    async fn not_behind(agreement: &Agreement, sharing: &Sharing) -> Result<(), SharingError> {
        match agreement.ahead(&*sharing.store, RENEW_EVERY * 3).await? {
            Some(ahead) => Err(SharingError::Behind { node: ahead.node, region: ahead.region }),
            None => Ok(()),
        }
    }

    /// Keeps the lease until the region stops, and then gives up all that it owns. While it is drained it does so too,
    /// and takes its part again afterwards.
    pub async fn run(mut self) {
        let mut stopping = self.shared.draining.subscribe();
        let mut drained = self.shared.drained.subscribe();
        let mut wanted = self.shared.peers_wanted.subscribe();
        loop {
            let stop = *stopping.borrow();
            self.lease.drained = stop || *drained.borrow();
            if let Err(error) = self.turn().await {
                match error {
                    LeaseError::Lost => self.lost().await,
                    LeaseError::Store(error) => self.not_renewed(&error),
                }
            }
            if stop && self.held.is_empty() && !*self.shared.emptied.borrow() {
                // Nobody need wait for it to be dead.
                self.lease.beat += 1;
                self.lease.ended = true;
                if let Err(error) = self.sharing.store.renew(self.lease.clone()).await {
                    tracing::warn!(%error, "the others could not be told that this node has stopped");
                }
                self.shared.emptied.send_replace(true);
                return;
            }
            let pause = self.pause();
            let read = async {
                match &mut self.reading {
                    Some(reading) => reading.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = read => {
                    self.reading = None;
                    match read {
                        Ok(whole) => self.take_whole(whole),
                        Err(error) => {
                            tracing::warn!(%error, "who shares this region could not be read as a whole; trying on");
                            self.read_at = self.shared.env.clock.now() + READ_AGAIN;
                        }
                    }
                }
                () = tokio::time::sleep(pause) => {}
                () = self.shared.look.notified() => {}
                _ = stopping.changed() => {}
                _ = drained.changed() => {}
                _ = wanted.changed() => {}
            }
        }
    }

    /// How long to wait for the next turn: not longer than until the lease is to be renewed, or a node whose beat stands still
    /// may be taken for dead.
    fn pause(&self) -> Duration {
        let now = self.shared.env.clock.now();
        let renew = (self.renewed + RENEW_EVERY).saturating_sub(now).clamp(TURN_MIN, RENEW_EVERY);
        let each = self.heard.iter().map(|(name, heard)| heard.since + self.dead_after(name, heard.generation));
        let dead = each.min().map(|dead| dead.saturating_sub(now));
        dead.map_or(renew, |dead| dead.clamp(TURN_MIN, renew))
    }

    /// How long a node's beat stands still until it is dead.
    fn dead_after(&self, name: &str, generation: u64) -> Duration {
        if alive::is_gone(&self.shared, name, generation) { alive::GONE_AFTER } else { DEAD_AFTER }
    }

    /// The lease was ended by another: all that was owned is lost, and a new generation begins with nothing.
    async fn lost(&mut self) {
        tracing::warn!("this node was taken for dead, or another runs under its name; it begins anew with nothing");
        let slots: BTreeSet<Slot> = self.held.keys().flat_map(|share| share.slots()).collect();
        self.held.clear();
        self.shared.push(Input::Lose(slots));
        match self.sharing.store.claim(self.lease.clone()).await {
            Ok(generation) => self.lease.generation = generation,
            Err(error) => tracing::warn!(%error, "no new lease; trying on"),
        }
        self.heard.clear();
    }

    async fn turn(&mut self) -> Result<(), LeaseError> {
        self.take_given().await?;
        let now = self.shared.env.clock.now();
        if now + TURN_MIN >= self.renewed + RENEW_EVERY || self.said_drained != self.lease.drained {
            self.renew().await?;
        }
        self.know_peers().await?;
        self.take_given().await?;
        self.read_all().await?;
        self.read_beats().await?;
        let alive = self.look().await?;
        {
            let mut owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
            for node in &alive {
                owners.node(&node.name, CoreNode { addr: node.addr, generation: node.generation });
            }
            let known: Vec<Arc<str>> = owners.nodes().keys().cloned().collect();
            for gone in known.iter().filter(|name| self.nodes.get(&***name).is_none_or(|node| node.ended)) {
                owners.forget(gone);
            }
        }
        let owners: BTreeSet<String> = {
            let owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
            Share::all().filter_map(|share| owners.of(share).0.map(ToString::to_string)).collect()
        };
        let living = alive.iter().map(|node| node.name.clone());
        self.agree(living.chain(owners).collect()).await?;
        cores::keep(&self.shared, &alive);
        alive::keep(&self.shared, &alive);
        self.drop_lost();
        self.take_given().await?;
        let candidates: Vec<Candidate> = alive
            .iter()
            .map(|n| Candidate { name: n.name.as_str().into(), weight: n.weight, drained: n.drained })
            .collect();
        let plan = {
            let owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
            placement::plan(&owners, &candidates)
        };
        self.pass_on(&plan).await?;
        self.take(self.wanted(&plan)).await?;
        self.give(&plan).await?;
        if now >= self.todo_at && !self.held.is_empty() {
            self.todo_at = now + TODO_EVERY;
            let (store, held) = (self.sharing.store.clone(), self.held.iter().map(|(s, e)| (*s, *e)).collect());
            let todo = self.renewing(store.todo_in(held)).await??;
            self.shared.push(Input::TodoFound(todo));
        }
        Ok(())
    }

    /// Begins to read all nodes and shares if it is time for it; in the first turn nothing can be done without.
    async fn read_all(&mut self) -> Result<(), LeaseError> {
        let now = self.shared.env.clock.now();
        if self.shared.newcomer.swap(false, Ordering::Relaxed) {
            self.read_at = now;
        }
        let is_early = now < self.read_at || self.read_began.is_some_and(|began| now < began + READ_ALL_MIN);
        if self.lived.is_some() && (self.reading.is_some() || is_early) {
            return Ok(());
        }
        self.read_at = now + READ_ALL_EVERY;
        self.read_began = Some(now);
        let store = self.sharing.store.clone();
        let reading = Box::pin(async move { Ok((store.nodes().await?, store.shares().await?)) });
        if self.lived.is_none() {
            let whole = self.renewing(reading).await??;
            self.take_whole(whole);
        } else {
            self.reading = Some(reading);
        }
        Ok(())
    }

    /// All nodes and shares as they stood a moment ago.
    fn take_whole(&mut self, (nodes, shares): Whole) {
        for node in nodes {
            // What was read by name since is newer.
            let known = self.nodes.get(&node.name).map(|known| (known.generation, known.beat));
            if known.is_none_or(|known| known < (node.generation, node.beat)) {
                self.nodes.insert(node.name.clone(), node);
            }
        }
        if self.lived.is_none() {
            let mine = shares.iter().filter(|lease| lease.node == self.lease.name);
            self.lived = Some(mine.map(|lease| (lease.share, lease.epoch)).collect());
        }
        let changed = {
            let mut owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
            let mut changed = Vec::new();
            for lease in shares {
                // What is this node's own is told once it is taken up.
                let own = lease.node == self.lease.name;
                if owners.set(lease.share, Some(lease.node.into()), lease.epoch) && !own {
                    changed.push(lease.share);
                }
            }
            changed
        };
        self.moved(changed);
    }

    /// Reads the beats of the others, if it is time for it, or if one of them would be taken for dead by what is known.
    async fn read_beats(&mut self) -> Result<(), LeaseError> {
        let now = self.shared.env.clock.now();
        let dead = |(name, heard): (&String, &Heard)| now >= heard.since + self.dead_after(name, heard.generation);
        let due = self.looked.is_none_or(|looked| now + TURN_MIN >= looked + RENEW_EVERY);
        if !due && !self.heard.iter().any(dead) {
            return Ok(());
        }
        // One that has ended begins anew as somebody who was not known, if it was not taken for dead though it lives.
        let linked: BTreeSet<String> = {
            let cores = self.shared.cores.lock().unwrap_or_else(PoisonError::into_inner);
            cores.keys().cloned().collect()
        };
        let others = self.nodes.values().filter(|node| node.name != self.lease.name);
        let others = others.filter(|node| !node.ended || linked.contains(&node.name));
        let names: Vec<String> = others.map(|node| node.name.clone()).collect();
        if !names.is_empty() {
            let store = self.sharing.store.clone();
            let read = self.renewing(store.nodes_of(names)).await??;
            self.nodes.extend(read.into_iter().map(|node| (node.name.clone(), node)));
        }
        self.looked = Some(now);
        Ok(())
    }

    /// Does something with the store that may take long, and renews the lease meanwhile, so that this node is not taken for
    /// dead. It is given up only when the lease is lost.
    async fn renewing<T>(&mut self, what: impl Future<Output = T> + Send) -> Result<T, LeaseError> {
        let mut what = std::pin::pin!(what);
        loop {
            let next = (self.renewed + RENEW_EVERY).saturating_sub(self.shared.env.clock.now());
            tokio::select! {
                biased;
                done = &mut what => return Ok(done),
                () = tokio::time::sleep(next.max(TURN_MIN)) => match self.renew().await {
                    Ok(()) => {}
                    Err(LeaseError::Lost) => return Err(LeaseError::Lost),
                    Err(LeaseError::Store(error)) => self.not_renewed(&error),
                },
            }
        }
    }

    fn not_renewed(&mut self, error: &StoreError) {
        tracing::warn!(%error, "this node's lease could not be renewed, or its region not be read; trying on");
        // What was heard before is no sign of death any more.
        self.heard.clear();
    }

    async fn renew(&mut self) -> Result<(), LeaseError> {
        let asked = self.shared.env.clock.now();
        self.lease.beat += 1;
        self.sharing.store.renew(self.lease.clone()).await?;
        self.renewed = asked;
        self.said_drained = self.lease.drained;
        self.shared.push(Input::Lease(asked + LEASE));
        Ok(())
    }

    /// Takes over what an operator says of the other regions.
    async fn know_peers(&mut self) -> Result<(), LeaseError> {
        let Some(peers) = self.shared.peers_wanted.borrow().clone() else { return Ok(()) };
        let regions: BTreeSet<RegionId> = peers.iter().map(|peer| peer.region).collect();
        let store = &*self.sharing.store;
        let new = self.agreement.about_to_know(store, &regions).await?;
        let held: Vec<Share> = self.held.keys().copied().collect();
        self.agreement.mark(store, &held).await?;
        self.shared.apply_peers(peers.clone());
        let marks = new.iter().map(|region| (*region, held.iter().copied().collect())).collect();
        self.shared.push(Input::Comparing { marks, held: self.agreement.pending().clone() });
        self.marked.extend(&new);
        self.agreement.knows(store, regions).await?;
        // Unless others were wanted meanwhile.
        let same = |wanted: &Option<Vec<Peer>>| wanted.as_ref() == Some(&peers);
        self.shared.peers_wanted.send_if_modified(|wanted| same(wanted) && wanted.take().is_some());
        Ok(())
    }

    /// Lets comparisons begin with regions that all of these nodes know.
    async fn agree(&mut self, nodes: BTreeSet<String>) -> Result<(), LeaseError> {
        if self.agreement.settle(&*self.sharing.store, nodes).await? {
            self.shared.push(Input::Comparing { marks: BTreeMap::new(), held: self.agreement.pending().clone() });
            tracing::info!(
                waiting = self.agreement.pending().len(),
                "all core nodes of this region know a region that is new: what is there is compared with it"
            );
        }
        Ok(())
    }

    /// Who lives: those that are not known to be dead. Whoever is, is fenced.
    async fn look(&mut self) -> Result<Vec<NodeLease>, LeaseError> {
        let now = self.shared.env.clock.now();
        let mut alive = Vec::new();
        // It may have been claimed after all nodes were read.
        self.nodes.insert(self.lease.name.clone(), self.lease.clone());
        let nodes: Vec<NodeLease> = self.nodes.values().cloned().collect();
        for node in &nodes {
            if node.name == self.lease.name {
                alive.push(self.lease.clone());
                continue;
            }
            if node.ended {
                self.heard.remove(&node.name);
                continue;
            }
            let heard = self.heard.entry(node.name.clone()).or_insert(Heard {
                generation: node.generation,
                beat: node.beat,
                since: now,
            });
            if (heard.generation, heard.beat) != (node.generation, node.beat) {
                *heard = Heard { generation: node.generation, beat: node.beat, since: now };
            }
            let since = heard.since;
            if now.saturating_sub(since) < self.dead_after(&node.name, node.generation) {
                alive.push(node.clone());
            } else {
                let store = self.sharing.store.clone();
                match self.renewing(store.fence(node.clone())).await? {
                    Ok(()) => {
                        let ended = NodeLease { generation: node.generation + 1, ended: true, ..node.clone() };
                        self.nodes.insert(node.name.clone(), ended);
                        self.heard.remove(&node.name);
                        tracing::warn!(node = %node.name, "a core node of this region has died: its shares are taken over");
                    }
                    Err(LeaseError::Lost) => {
                        // It has renewed, or another has ended it: the next look tells.
                        self.heard.remove(&node.name);
                        alive.push(node.clone());
                    }
                    Err(LeaseError::Store(error)) => {
                        tracing::warn!(node = %node.name, %error, "whether a node was fenced is not known");
                        alive.push(node.clone());
                    }
                }
            }
        }
        Ok(alive)
    }

    /// What another has taken since is not this node's, whatever it believed.
    fn drop_lost(&mut self) {
        let lost: Vec<Share> = {
            let owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
            self.held.iter().filter(|(share, epoch)| owners.of(**share).1 > **epoch).map(|(share, _)| *share).collect()
        };
        if !lost.is_empty() {
            lost.iter().for_each(|share| {
                self.held.remove(share);
            });
            tracing::warn!(shares = lost.len(), "shares of this region were taken by other nodes");
            self.shared.push(Input::Lose(lost.into_iter().flat_map(Share::slots).collect()));
        }
    }

    /// What the store says is this node's own and it does not hold: (share, epoch, whether another has given it). Given
    /// by another, it has an epoch of its own; left by an earlier life of this node, a new epoch must fence that.
    fn unheld(&self) -> Vec<(Share, u64, bool)> {
        let owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let own = Share::all().filter_map(|share| {
            let (owner, epoch) = owners.of(share);
            let mine = owner.is_some_and(|owner| **owner == *self.lease.name);
            (mine && self.held.get(&share) != Some(&epoch)).then_some((share, epoch))
        });
        let lived = |share| self.lived.as_ref().and_then(|lived| lived.get(&share)).copied().unwrap_or(0);
        own.map(|(share, epoch)| (share, epoch, epoch > lived(share))).collect()
    }

    /// Takes up what another has just given, which is nobody's meanwhile. In the first turn it can't be told from what an
    /// earlier life has left.
    async fn take_given(&mut self) -> Result<(), LeaseError> {
        if self.lived.is_none() {
            return Ok(());
        }
        let given = self.unheld().into_iter().filter(|(_, _, given)| *given).collect();
        self.take(given).await
    }

    /// What is to be this node's, by the plan: what nobody living owns, and what is its own and stays so.
    fn wanted(&self, plan: &Plan) -> Vec<(Share, u64, bool)> {
        let mut wanted = self.unheld();
        wanted.retain(|(share, ..)| !plan.give.contains_key(share));
        let owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let orphans = plan.take.iter().filter(|(_, to)| ***to == *self.lease.name);
        wanted.extend(orphans.map(|(share, _)| (*share, owners.of(*share).1, false)));
        wanted
    }

    /// Gives on what is this node's own in the store alone, and by the plan another's.
    async fn pass_on(&mut self, plan: &Plan) -> Result<(), LeaseError> {
        let to = |share: &Share| plan.give.get(share).map(ToString::to_string);
        let left: Vec<(Share, u64, String)> =
            self.unheld().into_iter().filter_map(|(share, epoch, _)| Some((share, epoch, to(&share)?))).collect();
        let until = self.shared.env.clock.now() + GIVE_FOR;
        for part in left.chunks(WRITES_AT_ONCE) {
            if self.shared.env.clock.now() > until {
                self.shared.look.notify_one(); // the rest after the lease
                break;
            }
            let store = self.sharing.store.clone();
            let writes = part.iter().map(|(share, epoch, to)| store.give(*share, *epoch, to.clone()));
            let written = self.renewing(futures_join(writes)).await?;
            self.note_given(part.iter().map(|(share, _, to)| (*share, to.clone())).zip(written))?;
        }
        Ok(())
    }

    /// What became of shares that were to be given to others; how many were.
    fn note_given(
        &mut self,
        written: impl Iterator<Item = ((Share, String), Result<u64, LeaseError>)>,
    ) -> Result<usize, LeaseError> {
        let mut given = Vec::new();
        let mut failed = Ok(());
        let wait_until = self.shared.env.clock.now() + TAKEN_WITHIN;
        for ((share, to), written) in written {
            match written {
                Ok(next) => {
                    let mut owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
                    owners.set(share, Some(to.as_str().into()), next);
                    self.given.insert(share, (to, next, wait_until));
                    given.push(share);
                }
                // Whoever has it then: that is read, and it is taken again if it is this node's.
                Err(LeaseError::Lost) => self.read_at = self.shared.env.clock.now(),
                Err(error) => failed = Err(error),
            }
        }
        if !given.is_empty() {
            tracing::info!(shares = given.len(), "shares of this region were given to other nodes");
        }
        let count = given.len();
        self.moved(given);
        failed.map(|()| count)
    }

    /// Takes shares: (which, its epoch, whether another has given it under that). Those of a node that died are many, and a
    /// database that is busy answers late: the lease is renewed meanwhile, and those in which something went on lately, as far
    /// as this node has to do with it, come first.
    async fn take(&mut self, mut wanted: Vec<(Share, u64, bool)>) -> Result<(), LeaseError> {
        {
            let active = self.shared.active.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.sort_by_key(|(share, ..)| std::cmp::Reverse(active.get(share).copied()));
        }
        for part in wanted.chunks(WRITES_AT_ONCE) {
            let mut gained = BTreeMap::new();
            let (store, name) = (self.sharing.store.clone(), self.lease.name.clone());
            let (store, name) = (&store, &name);
            let writes = part.iter().map(|(share, epoch, given)| async move {
                if *given {
                    return Ok((*share, *epoch));
                }
                let next = store.give(*share, *epoch, name.clone()).await;
                next.map(|next| (*share, next))
            });
            for done in self.renewing(futures_join(writes)).await? {
                match done {
                    Ok((share, epoch)) => {
                        gained.insert(share, epoch);
                    }
                    // Another was quicker: who is read.
                    Err(LeaseError::Lost) => self.read_at = self.shared.env.clock.now(),
                    Err(error) => {
                        self.gain(gained).await?;
                        return Err(error);
                    }
                }
            }
            self.gain(gained).await?;
        }
        Ok(())
    }

    async fn gain(&mut self, gained: BTreeMap<Share, u64>) -> Result<(), LeaseError> {
        if gained.is_empty() {
            return Ok(());
        }
        // What the store says is left to do is read under the new epochs.
        let store = self.sharing.store.clone();
        let todo = self.renewing(store.todo_in(gained.iter().map(|(s, e)| (*s, *e)).collect())).await??;
        let shares: Vec<Share> = gained.keys().copied().collect();
        self.agreement.mark(&*self.sharing.store, &shares).await?;
        let mut marks = BTreeMap::new();
        for region in &self.marked {
            let shares = start::marked_shares(&*self.sharing.store, *region, gained.keys().copied()).await?;
            marks.insert(*region, shares);
        }
        let slots = gained.iter().flat_map(|(share, epoch)| share.slots().map(|slot| (slot, *epoch))).collect();
        self.shared.push(Input::Gain(slots, todo, marks));
        {
            let mut owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
            for (share, epoch) in &gained {
                owners.set(*share, Some(self.lease.name.as_str().into()), *epoch);
            }
        }
        tracing::info!(shares = gained.len(), "shares of this region are this node's now");
        self.held.extend(gained.iter().map(|(share, epoch)| (*share, *epoch)));
        self.lived.get_or_insert_default().extend(gained.iter().map(|(share, epoch)| (*share, *epoch)));
        self.moved(gained.into_keys().collect());
        Ok(())
    }

    /// Gives away what is to be another's, a few shares at a time, and no more than is taken up.
    async fn give(&mut self, plan: &Plan) -> Result<(), LeaseError> {
        let until = self.shared.env.clock.now() + GIVE_FOR;
        let mut more = false;
        while self.were_taken(until).await? {
            more = self.give_some(plan).await?;
            if !more {
                break;
            }
        }
        if more {
            self.shared.look.notify_one();
        }
        Ok(())
    }

    /// Waits until what was given has been taken up, and takes up what is given to this node meanwhile. Whether more may be
    /// given before `until`.
    async fn were_taken(&mut self, until: Duration) -> Result<bool, LeaseError> {
        loop {
            let now = self.shared.env.clock.now();
            {
                let cores = self.shared.cores.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
                self.given.retain(|share, (to, epoch, waits)| {
                    // Whoever can't be heard is not waited for.
                    now < *waits && cores.contains_key(to) && taken.get(share).is_none_or(|taken| *taken < *epoch)
                });
            }
            if now >= until || self.given.is_empty() {
                return Ok(now < until);
            }
            let _in_time = tokio::time::timeout(until.saturating_sub(now), self.shared.look.notified()).await;
            self.take_given().await?;
        }
    }

    /// Whether some were given.
    async fn give_some(&mut self, plan: &Plan) -> Result<bool, LeaseError> {
        let mine = plan.give.iter().filter(|(share, _)| self.held.contains_key(share));
        let mine: Vec<(Share, String)> = mine.take(GIVE_AT_ONCE).map(|(share, to)| (*share, to.to_string())).collect();
        if mine.is_empty() {
            return Ok(false);
        }
        let slots: BTreeSet<Slot> = mine.iter().flat_map(|(share, _)| share.slots()).collect();
        let (tell, mut told) = oneshot::channel();
        self.shared.push(Input::Leave(slots, self.shared.env.clock.now() + LEAVE_WITHIN, tell));
        let mut lost = false;
        let left = loop {
            // Where it takes long, this node is not to be taken for dead.
            tokio::select! {
                left = &mut told => break left,
                () = tokio::time::sleep(RENEW_EVERY), if !lost => lost = self.renew().await == Err(LeaseError::Lost),
            }
        };
        if lost {
            return Err(LeaseError::Lost);
        }
        if left != Ok(true) {
            return Ok(false); // they are this node's as before
        }
        let held: Vec<(Share, String, u64)> =
            mine.into_iter().filter_map(|(share, to)| Some((share, to, self.held.remove(&share)?))).collect();
        let store = self.sharing.store.clone();
        let writes = held.iter().map(|(share, to, epoch)| store.give(*share, *epoch, to.clone()));
        let written = self.renewing(futures_join(writes)).await?;
        let given = self.note_given(held.into_iter().map(|(share, to, _)| (share, to)).zip(written))?;
        Ok(given > 0)
    }

    /// Tells the other nodes, the edges and the core task.
    fn moved(&self, shares: Vec<Share>) {
        if shares.is_empty() {
            return;
        }
        let told = {
            let owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
            owners.some_to_wire(shares.iter().copied())
        };
        self.shared.tell_cores(|| Body::Owners(told.clone()));
        self.shared.push(Input::Moved(shares));
    }
}

/// All of these, in order.
pub(super) async fn futures_join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pinned: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, done) in &mut pinned {
            if done.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    pinned.into_iter().filter_map(|(_, done)| done).collect()
}
