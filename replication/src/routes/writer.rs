//! The task that keeps a table of routes as the connections of this core node are.
//!
//! Problem: the table is another machine's memory. It may be slow, stand still, be emptied by an operator, come back
//! with nothing or with what it knew ten minutes ago, or be replaced by a server that lacks the last second. A message
//! must not wait for any of that, and the table must be right again soon after.
//!
//! Rule: the core's task says what devices do ([`Table::moved`]), and never waits: the last word on each device lies in
//! a bounded room until the writer takes it. Where the room is full, words are dropped. Twice a second the writer asks
//! whether the table is kept. If not, and when words were dropped, it begins *anew*: each link gets a new generation, so
//! that nothing that is left in the table counts any more, and all that the core knows is announced, page by page, at a
//! pace. A user whose routes in the table are not what was expected (another node wrote them, with a clock that is
//! ahead) is announced again as a whole, if he is still this node's, and the own clock goes on from what it met there.
//!
//! This node never reads the table for itself, not at a takeover of slots either. Who is connected the edges say within
//! a moment of hearing of the new owner (`Resume`), and until then a connection can be told nothing, whatever a table
//! says of it: an edge takes orders only over the link that has resumed it. Presence has a grace that is longer. So what
//! the table knew would be used for nothing, or for telling that somebody is here who is not.
//!
//! Why simpler ways fail: a queue of all changes grows while the table is away; whoever writes again what he has
//! remembered of the table holds every route twice; removals alone can't undo what an old copy of the table brings back.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tern_core::clock::Clock;
use tern_core::hlc;
use tern_core::ids::{InstallId, UserId};
use tern_core::node::{ConnKey, DeviceMoved, EdgeId, Present};
use tern_core::store::BoxFut;
use tokio::sync::Notify;

use super::limits::{
    CHANGES_PER_WRITE, CHECK_EVERY, EDGE_BYTES, GENERATION_TTL, PAGE_EVERY, REFRESH_EVERY, RENEW_EVERY,
};
use super::waiting::{Said, Waiting};
use super::{Change, Link, Outcome, Route, Routes, RoutesError};

/// Who is here, as the core knows it.
pub trait Core: Send + Sync + 'static {
    /// Of users after one, [`PAGE_USERS`](super::limits::PAGE_USERS) of them looked at, and after whom to go on.
    /// `None`: it can't say now.
    fn after(&self, user: Option<UserId>) -> BoxFut<'_, Option<(Told, Option<UserId>)>>;
    /// Of these users. Those who are not this node's are left out.
    fn of(&self, users: Vec<UserId>) -> BoxFut<'_, Option<Told>>;
}

/// What the core tells: who is here, and when that was so (from [`Table::stamp`]).
#[derive(Clone, Debug)]
pub struct Told {
    /// By which all that was said earlier is older.
    pub stamp: u64,
    /// Users and their devices.
    pub users: Present,
}

/// How a table stands, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// All that this node knows is in the table.
    pub is_complete: bool,
    /// Why it can't be written; `None`: it can.
    pub problem: Option<String>,
    /// Changes that wait.
    pub waiting: u64,
    /// How often it was begun anew: at the start, and each time that it was found to be another one or lost words.
    pub rebuilds: u64,
    /// How long the last one took.
    pub rebuild_took: Duration,
    /// Changes written.
    pub written: u64,
    /// Changes that met a later one of another node.
    pub refused: u64,
    /// Requests that failed, each with all that it held.
    pub failures: u64,
    /// Words that there was no room for.
    pub dropped: u64,
}

/// What the core's task and the writer share; and the figures.
#[derive(Debug)]
pub struct Table {
    routes: Arc<dyn Routes>,
    node: String,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    wake: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: Waiting,
    links: BTreeMap<EdgeId, (Arc<Link>, u64)>,
    ended: Vec<(Arc<Link>, u64)>,
    /// The table has not been told of all generations.
    is_fresh: bool,
    /// Words were dropped.
    is_behind: bool,
    /// This node says nothing more.
    is_stopped: bool,
    /// The highest stamp that was given or met.
    stamp: u64,
    standing: Standing,
}

impl State {
    fn next_stamp(&mut self, wall_ms: u64) -> u64 {
        self.stamp = hlc::next(wall_ms, 0, self.stamp);
        self.stamp
    }

    fn route(&self, key: ConnKey) -> Option<Route> {
        let (link, generation) = self.links.get(&key.edge)?;
        Some(Route { link: link.clone(), generation: *generation, connection: key.conn })
    }

    fn routes(&self, devices: Vec<(InstallId, ConnKey)>) -> Vec<(InstallId, Route)> {
        devices.into_iter().filter_map(|(install, key)| Some((install, self.route(key)?))).collect()
    }
}

impl Table {
    /// For the core node of this name. Nothing is written before [`run`].
    pub fn new(routes: Arc<dyn Routes>, node: &str, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (state, wake, dropped) = (Mutex::default(), Notify::new(), AtomicU64::new(0));
        Arc::new(Self { routes, node: node.to_owned(), clock, state, wake, dropped })
    }

    /// The table itself, for tools.
    pub fn routes(&self) -> &Arc<dyn Routes> {
        &self.routes
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let state = self.state();
        let waiting = state.waiting.len() as u64;
        let dropped = self.dropped.load(Ordering::Relaxed);
        Standing { waiting, dropped, ..state.standing.clone() }
    }

    /// A link has come up. Before anything of its connections.
    pub fn edge_up(&self, edge: EdgeId, name: &str) {
        let mut state = self.state();
        let generation = state.next_stamp(self.clock.wall_ms());
        let name = name.char_indices().take_while(|(at, c)| at + c.len_utf8() <= EDGE_BYTES);
        let link = Link { node: self.node.clone(), number: edge, edge: name.map(|(_, c)| c).collect() };
        state.links.insert(edge, (Arc::new(link), generation));
        state.is_fresh = true;
    }

    /// A link is down, and with it all its connections: nothing more need be said of them.
    pub fn edge_down(&self, edge: EdgeId) {
        let mut state = self.state();
        if let Some(ended) = state.links.remove(&edge) {
            state.ended.push(ended);
            self.wake.notify_one();
        }
    }

    /// What devices have done, in order. Never waits.
    pub fn moved(&self, moved: Vec<DeviceMoved>) {
        let mut state = self.state();
        for one in moved {
            if !state.links.contains_key(&one.key.edge) {
                continue;
            }
            let stamp = state.next_stamp(self.clock.wall_ms());
            if !state.waiting.moved(one, stamp) {
                self.drop_words(&mut state, 1);
            }
        }
        if !state.waiting.is_empty() {
            self.wake.notify_one();
        }
    }

    /// A stamp for what the core tells now.
    pub fn stamp(&self) -> u64 {
        self.state().next_stamp(self.clock.wall_ms())
    }

    /// This node stops, and its connections are over: their routes end at once, if the table answers.
    pub async fn stop(&self) {
        let links: Vec<(Arc<Link>, u64)> = {
            let mut state = self.state();
            state.is_stopped = true;
            self.wake.notify_one();
            std::mem::take(&mut state.links).into_values().collect()
        };
        for (link, generation) in links {
            if let Err(error) = self.routes.end(link, generation).await {
                tracing::debug!(%error, "the routes of this node run out by themselves");
                return;
            }
        }
    }

    /// The writer ends, and nothing is said.
    #[cfg(test)]
    pub(super) fn die(&self) {
        self.state().is_stopped = true;
    }

    fn drop_words(&self, state: &mut State, words: u64) {
        self.dropped.fetch_add(words, Ordering::Relaxed);
        (state.is_behind, state.standing.is_complete) = (true, false);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A round through all that the core knows.
#[derive(Debug)]
struct Round {
    after: Option<UserId>,
    since: Duration,
    /// The table was begun anew with it.
    is_rebuild: bool,
}

struct Writer {
    table: Arc<Table>,
    core: Arc<dyn Core>,
    round: Option<Round>,
    check_at: Duration,
    renew_at: Duration,
    refresh_at: Duration,
    /// It answered when it was last asked for anything.
    is_up: bool,
}

/// Keeps the table, until the node stops or its environment ends.
pub async fn run(table: Arc<Table>, core: Arc<dyn Core>) {
    let now = table.clock.now();
    let mut writer = Writer {
        table: table.clone(),
        core,
        round: None,
        check_at: now,
        renew_at: now,
        refresh_at: now + REFRESH_EVERY,
        is_up: true,
    };
    while !table.state().is_stopped {
        if let Err(error) = writer.turn().await {
            writer.failed(&error);
        }
        let pause = writer.pause();
        tokio::select! {
            biased;
            () = table.wake.notified(), if writer.is_up => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Writer {
    fn pause(&self) -> Duration {
        let now = self.table.clock.now();
        let next = if self.is_up { self.check_at.min(self.renew_at).min(self.refresh_at) } else { self.check_at };
        let next = next.saturating_sub(now).max(Duration::from_millis(1));
        if self.is_up && self.round.is_some() { next.min(PAGE_EVERY) } else { next }
    }

    async fn turn(&mut self) -> Result<(), RoutesError> {
        let now = self.table.clock.now();
        if now >= self.check_at {
            self.check_at = now + CHECK_EVERY;
            let is_kept = self.table.routes.is_kept().await?;
            self.answered();
            if !is_kept {
                self.begin_anew("it is empty, or another one than before");
            }
        }
        if !self.is_up {
            return Ok(());
        }
        if std::mem::take(&mut self.table.state().is_behind) {
            self.begin_anew("more had changed than there was room for");
        }
        self.end_links().await?;
        self.renew(now).await?;
        // What comes meanwhile is for the next turn: two nodes that both take a user for theirs must not keep this one here.
        let words = self.table.state().waiting.len();
        for _ in 0..words.div_ceil(CHANGES_PER_WRITE) {
            self.write_words().await?;
        }
        if now >= self.refresh_at && self.round.is_none() {
            self.round = Some(Round { after: None, since: now, is_rebuild: false });
        }
        self.page().await?;
        let mut state = self.table.state();
        state.standing.is_complete = self.round.is_none() && !state.is_behind && state.waiting.is_empty();
        Ok(())
    }

    fn answered(&mut self) {
        self.is_up = true;
        if let Some(problem) = self.table.state().standing.problem.take() {
            tracing::info!(problem, "the table of routes can be written again");
        }
    }

    fn failed(&mut self, error: &RoutesError) {
        self.is_up = false;
        let what = error.to_string();
        let mut state = self.table.state();
        state.standing.failures += 1;
        state.standing.is_complete = false;
        if state.standing.problem.as_ref() != Some(&what) {
            tracing::warn!(
                problem = what,
                "the table of routes can't be written; messages do not need it, and what is missing is written later"
            );
            state.standing.problem = Some(what);
        }
    }

    /// Nothing in the table counts any more, and everything is announced.
    fn begin_anew(&mut self, why: &str) {
        let since = self.table.clock.now();
        self.round = Some(Round { after: None, since, is_rebuild: true });
        let mut state = self.table.state();
        let generation = state.next_stamp(self.table.clock.wall_ms());
        state.links.values_mut().for_each(|link| link.1 = generation);
        state.waiting.clear();
        (state.is_fresh, state.is_behind, state.standing.is_complete) = (true, false, false);
        state.standing.rebuilds += 1;
        tracing::info!(why, "the table of routes is written anew");
    }

    async fn end_links(&self) -> Result<(), RoutesError> {
        loop {
            let Some((link, generation)) = self.table.state().ended.last().cloned() else { return Ok(()) };
            self.table.routes.end(link.clone(), generation).await?;
            self.table.state().ended.retain(|(ended, _)| *ended != link);
        }
    }

    async fn renew(&mut self, now: Duration) -> Result<(), RoutesError> {
        let links: Vec<(Arc<Link>, u64)> = {
            let mut state = self.table.state();
            if now < self.renew_at && !state.is_fresh {
                return Ok(());
            }
            state.is_fresh = false;
            state.links.values().cloned().collect()
        };
        let renewed = self.table.routes.renew(links, GENERATION_TTL).await;
        match renewed {
            Ok(()) => self.renew_at = now + RENEW_EVERY,
            Err(_) => self.table.state().is_fresh = true,
        }
        renewed
    }

    /// Writes some of what waits.
    async fn write_words(&self) -> Result<(), RoutesError> {
        let taken = self.table.state().waiting.take(CHANGES_PER_WRITE);
        let wholes: Vec<UserId> = taken.iter().filter(|(_, said)| said.whole).map(|(user, _)| user.clone()).collect();
        let told = if wholes.is_empty() { None } else { Some(self.core.of(wholes).await) };
        // The core is busy, or its lease is over: it is asked again.
        let is_unanswered = matches!(told, Some(None));
        let mut sent: Vec<(UserId, Said)> = Vec::with_capacity(taken.len());
        let mut changes: Vec<Change> = Vec::with_capacity(taken.len());
        {
            let mut state = self.table.state();
            if let Some(Some(told)) = told {
                for (user, devices) in told.users {
                    sent.push((user.clone(), Said { whole: true, devices: BTreeMap::new() }));
                    changes.push(Change::Announce { user, stamp: told.stamp, routes: state.routes(devices) });
                }
            }
            for (user, said) in taken {
                if said.whole && is_unanswered {
                    if !state.waiting.put_back(user, said) {
                        self.table.drop_words(&mut state, 1);
                    }
                    continue;
                }
                // The announcement says it all.
                let words = if said.whole { BTreeMap::new() } else { said.devices };
                for (install, word) in words {
                    let Some(route) = state.route(word.key) else { continue };
                    let (user, stamp) = (user.clone(), word.stamp);
                    let one = Said { whole: false, devices: BTreeMap::from([(install.clone(), word)]) };
                    sent.push((user.clone(), one));
                    changes.push(match word.is_here {
                        true => Change::Put { user, stamp, install, route },
                        false => Change::Remove { user, stamp, install, route },
                    });
                }
            }
        }
        self.write(sent, changes).await
    }

    /// Writes changes; those that fail wait again as `sent` says.
    async fn write(&self, sent: Vec<(UserId, Said)>, changes: Vec<Change>) -> Result<(), RoutesError> {
        if changes.is_empty() {
            return Ok(());
        }
        let outcomes = self.table.routes.write(changes).await;
        let mut state = self.table.state();
        let mut failed = None;
        for ((user, said), outcome) in sent.into_iter().zip(outcomes) {
            let fits = match outcome {
                Ok(outcome) => {
                    state.standing.written += 1;
                    match outcome {
                        Outcome::Done => true,
                        Outcome::Newer(there) => {
                            state.stamp = state.stamp.max(there);
                            state.standing.refused += 1;
                            state.waiting.whole(user)
                        }
                        Outcome::Other => state.waiting.whole(user),
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    state.waiting.put_back(user, said)
                }
            };
            if !fits {
                self.table.drop_words(&mut state, 1);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Announces a page of the round.
    async fn page(&mut self) -> Result<(), RoutesError> {
        let Some(round) = &self.round else { return Ok(()) };
        let Some((told, next)) = self.core.after(round.after.clone()).await else { return Ok(()) };
        let (sent, changes) = {
            let mut state = self.table.state();
            let mut sent = Vec::with_capacity(told.users.len());
            let mut changes = Vec::with_capacity(told.users.len());
            for (user, devices) in told.users {
                state.waiting.announced(&user, told.stamp);
                sent.push((user.clone(), Said { whole: true, devices: BTreeMap::new() }));
                changes.push(Change::Announce { user, stamp: told.stamp, routes: state.routes(devices) });
            }
            (sent, changes)
        };
        self.write(sent, changes).await?;
        let now = self.table.clock.now();
        let Some(round) = self.round.as_mut() else { return Ok(()) };
        if next.is_some() {
            round.after = next;
            return Ok(());
        }
        let (took, is_rebuild) = (now.saturating_sub(round.since), round.is_rebuild);
        self.round = None;
        self.refresh_at = now + REFRESH_EVERY;
        if is_rebuild {
            self.table.state().standing.rebuild_took = took;
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(took_ms, "the table of routes has all that this node knows");
        }
        Ok(())
    }
}

/// Figures of a table, read when they are asked for.
#[derive(Debug)]
pub struct Collector(pub Arc<Table>);

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let standing = self.0.standing();
        for (name, help, value) in [
            ("tern_route_table_changes", "Changes written into the table of routes", standing.written),
            ("tern_route_table_changes_refused", "Those that met a later one of another node", standing.refused),
            ("tern_route_table_changes_dropped", "Changes that there was no room for", standing.dropped),
            ("tern_route_table_failures", "Times that the table of routes could not be written", standing.failures),
            ("tern_route_table_rebuilds", "Times that the table of routes was written anew", standing.rebuilds),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let complete = u64::from(standing.is_complete);
        for (name, help, value) in [
            ("tern_route_table_complete_count", "1: all that this node knows is in the table of routes", complete),
            ("tern_route_table_waiting_count", "Changes that wait for the table of routes", standing.waiting),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let took = ConstGauge::new(standing.rebuild_took.as_secs_f64());
        let help = "How long it took to write the table of routes anew, the last time";
        took.encode(encoder.encode_descriptor("tern_route_table_rebuild_seconds", help, None, took.metric_type())?)
    }
}
