//! Keeping a node's lease, and with it its shares of the region.
//!
//! One task per node. A few times a second it renews the lease, reads who else lives and who owns what, draws the plan of
//! [`tern_core::placement`], and carries out its own part: it takes what has no living owner and is to be its own, and
//! gives away what is to be another's, after all that was begun in it is over. What changed is told to the other nodes and
//! to the edges at once; the store is the truth.
//!
//! **A share that is given away** is nobody's until its new owner has read what is to be done in it. So what is given waits
//! for nothing else that the new owner does, and no more is given than it takes up: it says so to the former owner. Were
//! shares given as fast as the store takes the words, each of them would wait for all that were given before.
//!
//! **Who is dead.** A node whose beat stood still for [`DEAD_AFTER`] by this node's clock, while this node itself read and
//! renewed without a failure in all that time: so a store that does not answer kills nobody. Its generation is ended
//! first. A node counts its own lease from before it asked for it, and for [`LEASE`], which is shorter; so what it says on
//! the strength of it is said before another can have taken over.
//!
//! **A node that starts drained** says so with its first lease, so that nobody gives it anything; and what an earlier life
//! of it has left it gives on as it is, without a word to its core: whoever gets it takes it over as from the dead.
//!
//! **A name that two processes have.** Whoever starts looks first whether the name's beat moves; the two would otherwise
//! end each other's generations for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tern_core::ids::Region as RegionId;
use tern_core::leases::{LeaseError, NodeLease, SharedStore};
use tern_core::owners::CoreNode;
use tern_core::placement::{self, Candidate, Plan};
use tern_core::slots::{Share, Slot};
use tern_core::store::StoreError;
use tern_core::wire::node_v1::node_frame::Body;
use tokio::sync::oneshot;

use super::agreement::Agreement;
use super::core_task::Input;
use super::{Peer, Shared, cores, start};

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
/// Conditional writes under way at once.
const WRITES_AT_ONCE: usize = 16;
/// What the store says is left to do is looked at so often (R6).
const TODO_EVERY: Duration = Duration::from_secs(30);

/// How a node shares its region with others.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// What they share.
    pub store: Arc<dyn SharedStore>,
    /// Its part beside the others', at least 1.
    pub weight: u32,
    /// Where the others reach this node, if not where it listens.
    pub advertise: Option<SocketAddr>,
    /// It begins as one that is to have nothing, until [`Region::set_drained`] says otherwise.
    ///
    /// [`Region::set_drained`]: super::Region::set_drained
    pub drained: bool,
}

/// A beat, and since when it has stood still while everything else went well.
#[derive(Clone, Copy, Debug)]
struct Heard {
    generation: u64,
    beat: u64,
    since: Duration,
}

/// See the module.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    sharing: Sharing,
    lease: NodeLease,
    /// When the last renewal was asked for that this node got.
    renewed: Duration,
    heard: BTreeMap<String, Heard>,
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

/// Why a node may not begin to share a region.
#[derive(Debug, thiserror::Error)]
pub enum SharingError {
    /// Its name is another's.
    #[error(
        "another process serves this region under the name \"{0}\": its lease is being renewed. Stop it, or give each \
         core node a name of its own (node.name)"
    )]
    Twice(String),
    /// It was told of fewer regions than another node.
    #[error(
        "core node \"{node}\" of this region is linked with region {region}, and \"peers\" of this node lacks it: what this node \
         took in would not be sent there. List it here, too; or, where it is to be removed, take it off the running nodes \
         first and let them read their configuration again (SIGHUP)"
    )]
    Behind {
        /// The other node.
        node: String,
        /// The region's number.
        region: RegionId,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<LeaseError> for SharingError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Lost => Self::Store(StoreError::Backend("another process was quicker".to_owned())),
            LeaseError::Store(error) => Self::Store(error),
        }
    }
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
        let alive = |nodes: Vec<NodeLease>| nodes.into_iter().find(|n| n.name == name).map(|n| (n.generation, n.beat));
        let before = alive(sharing.store.nodes().await?);
        if before.is_some() {
            tokio::time::sleep(RENEW_EVERY * 3).await;
            if alive(sharing.store.nodes().await?) != before {
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
        let (heard, held, given) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let renewed = shared.env.clock.now();
        Ok(Self { shared, sharing, lease, renewed, heard, held, lived: None, given, marked, agreement, todo_at })
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
                    LeaseError::Store(error) => {
                        tracing::warn!(%error, "this node's lease could not be renewed, or its region not be read; trying on");
                        // What was heard before is no sign of death any more.
                        self.heard.clear();
                    }
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
            tokio::select! {
                () = tokio::time::sleep(self.pause()) => {}
                () = self.shared.look.notified() => {}
                _ = stopping.changed() => {}
                _ = drained.changed() => {}
                _ = wanted.changed() => {}
            }
        }
    }

    /// How long to wait for the next turn: not longer than until a node whose beat stands still may be taken for dead.
    fn pause(&self) -> Duration {
        let now = self.shared.env.clock.now();
        let dead = self.heard.values().map(|heard| (heard.since + DEAD_AFTER).saturating_sub(now)).min();
        dead.map_or(RENEW_EVERY, |dead| dead.clamp(TURN_MIN, RENEW_EVERY))
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
        let asked = self.shared.env.clock.now();
        self.renew().await?;
        self.know_peers().await?;
        self.take_given().await?;
        let nodes = self.sharing.store.nodes().await?;
        let shares = self.sharing.store.shares().await?;
        let alive = self.look(&nodes).await;
        let mut changed = {
            let mut owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
            let mut changed = Vec::new();
            for lease in &shares {
                if owners.set(lease.share, Some(lease.node.as_str().into()), lease.epoch) {
                    changed.push(lease.share);
                }
            }
            for node in &alive {
                owners.node(&node.name, CoreNode { addr: node.addr, generation: node.generation });
            }
            let known: Vec<Arc<str>> = owners.nodes().keys().cloned().collect();
            for gone in known.iter().filter(|name| !nodes.iter().any(|n| n.name == ***name && !n.ended)) {
                owners.forget(gone);
            }
            changed
        };
        if self.lived.is_none() {
            let mine = shares.iter().filter(|lease| lease.node == self.lease.name);
            self.lived = Some(mine.map(|lease| (lease.share, lease.epoch)).collect());
        }
        let living = alive.iter().map(|node| node.name.clone());
        let owners = shares.iter().map(|lease| lease.node.clone());
        self.agree(living.chain(owners).collect()).await?;
        cores::keep(&self.shared, &alive);
        self.drop_lost();
        // What is this node's own is told once it is taken up.
        changed.retain(|share| !self.is_own(*share));
        self.moved(changed);
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
        if asked >= self.todo_at && !self.held.is_empty() {
            self.todo_at = asked + TODO_EVERY;
            let todo = self.sharing.store.todo_in(self.held.iter().map(|(s, e)| (*s, *e)).collect()).await?;
            self.shared.push(Input::TodoFound(todo));
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), LeaseError> {
        let asked = self.shared.env.clock.now();
        self.lease.beat += 1;
        self.sharing.store.renew(self.lease.clone()).await?;
        self.renewed = asked;
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
    async fn look(&mut self, nodes: &[NodeLease]) -> Vec<NodeLease> {
        let now = self.shared.env.clock.now();
        self.heard.retain(|name, _| nodes.iter().any(|n| n.name == *name));
        let mut alive = Vec::new();
        for node in nodes {
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
            if now.saturating_sub(heard.since) < DEAD_AFTER {
                alive.push(node.clone());
            } else {
                match self.sharing.store.fence(node.clone()).await {
                    Ok(()) => {
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
        alive
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

    /// By the last word of it.
    fn is_own(&self, share: Share) -> bool {
        let owners = self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.of(share).0.is_some_and(|owner| **owner == *self.lease.name)
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
            let store = &self.sharing.store;
            let written =
                futures_join(part.iter().map(|(share, epoch, to)| store.give(*share, *epoch, to.clone()))).await;
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
                // Whoever has it then: the next turn reads it, and takes it again if it is this node's.
                Err(LeaseError::Lost) => {}
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
    /// database that is busy answers late: the lease is renewed meanwhile.
    async fn take(&mut self, wanted: Vec<(Share, u64, bool)>) -> Result<(), LeaseError> {
        for part in wanted.chunks(WRITES_AT_ONCE) {
            if self.shared.env.clock.now() >= self.renewed + 2 * RENEW_EVERY {
                self.renew().await?;
            }
            let mut gained = BTreeMap::new();
            let (store, name) = (&self.sharing.store, &self.lease.name);
            let writes = part.iter().map(|(share, epoch, given)| async move {
                if *given {
                    return Ok((*share, *epoch));
                }
                let next = store.give(*share, *epoch, name.clone()).await;
                next.map(|next| (*share, next))
            });
            for done in futures_join(writes).await {
                match done {
                    Ok((share, epoch)) => {
                        gained.insert(share, epoch);
                    }
                    Err(LeaseError::Lost) => {} // another was quicker: the next turn reads who
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
        let todo = self.sharing.store.todo_in(gained.iter().map(|(s, e)| (*s, *e)).collect()).await?;
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
        let store = &self.sharing.store;
        let writes = held.iter().map(|(share, to, epoch)| store.give(*share, *epoch, to.clone()));
        let written = futures_join(writes).await;
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
