//! A table of routes in memory, for tests and simulation: what the one in Redis does, by a handle that clones share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tern_core::clock::Clock;
use tern_core::hlc;
use tern_core::ids::{InstallId, UserId};
use tern_core::store::BoxFut;

use super::limits::{INSTALLS_PER_USER, REMOVED_TTL};
use super::{Change, Counts, Link, Listed, Outcome, Route, Routes, RoutesError};

/// See the module. A clone is the same table as seen by another node.
#[derive(Clone, Debug)]
pub struct MemoryRoutes {
    table: Arc<Mutex<Table>>,
    clock: Arc<dyn Clock>,
    /// Which node this is, to tell its marks from others'.
    node: u64,
}

#[derive(Debug, Default)]
struct Table {
    users: BTreeMap<UserId, BTreeMap<InstallId, Cell>>,
    links: BTreeMap<Arc<Link>, (u64, Duration)>,
    /// Nodes that have asked whether it is kept.
    marks: BTreeSet<u64>,
    nodes: u64,
    /// Why it does not answer.
    down: Option<RoutesError>,
    writes: u64,
}

#[derive(Debug)]
struct Cell {
    stamp: u64,
    /// None: it was removed.
    route: Option<Route>,
}

impl MemoryRoutes {
    /// An empty table.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { table: Arc::default(), clock, node: 0 }
    }

    /// The same table as another node of the region has it.
    pub fn of_another_node(&self) -> Self {
        let mut table = self.table();
        table.nodes += 1;
        Self { table: self.table.clone(), clock: self.clock.clone(), node: table.nodes }
    }

    /// Forgets everything, as a server does that is flushed, or started anew with nothing on its disk.
    pub fn lose(&self) {
        let mut table = self.table();
        (table.users, table.links, table.marks) = Default::default();
    }

    /// From now on every request fails with this; None: no more.
    pub fn fail(&self, with: Option<RoutesError>) {
        self.table().down = with;
    }

    /// Changes that were handed to it, carried out or not.
    pub fn writes(&self) -> u64 {
        self.table().writes
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Table, Duration) -> T) -> Result<T, RoutesError> {
        let mut table = self.table();
        match &table.down {
            Some(error) => Err(error.clone()),
            None => Ok(ask(&mut table, self.clock.now())),
        }
    }
}

/// A change of one device; `None`: nothing is to be changed, and all is as it should be.
fn newer(cell: Option<&Cell>, stamp: u64, route: Option<&Route>) -> Option<Outcome> {
    let cell = cell?;
    if cell.stamp == stamp && cell.route.as_ref() == route {
        return Some(Outcome::Done);
    }
    (cell.stamp >= stamp).then_some(Outcome::Newer(cell.stamp))
}

fn write(table: &mut Table, change: Change) -> Outcome {
    let stamp = change.stamp();
    let devices = table.users.entry(change.user().clone()).or_default();
    let outcome = match change {
        Change::Put { install, route, .. } => match newer(devices.get(&install), stamp, Some(&route)) {
            Some(as_it_is) => return as_it_is,
            None => {
                devices.insert(install, Cell { stamp, route: Some(route) });
                Outcome::Done
            }
        },
        Change::Remove { install, route, .. } => {
            let cell = devices.get(&install);
            if let Some(as_it_is) = newer(cell, stamp, None) {
                return as_it_is;
            }
            if cell.is_some_and(|cell| cell.route.as_ref().is_some_and(|there| *there != route)) {
                return Outcome::Other;
            }
            devices.insert(install, Cell { stamp, route: None });
            Outcome::Done
        }
        Change::Announce { routes, .. } => {
            let mut highest = None;
            let mut refused = |outcome| {
                if let Outcome::Newer(there) = outcome {
                    highest = highest.max(Some(there));
                }
            };
            let named: BTreeSet<InstallId> = routes.iter().map(|(install, _)| install.clone()).collect();
            for (install, route) in routes {
                match newer(devices.get(&install), stamp, Some(&route)) {
                    Some(outcome) => refused(outcome),
                    None => drop(devices.insert(install, Cell { stamp, route: Some(route) })),
                }
            }
            for (_, cell) in devices.iter_mut().filter(|(i, cell)| !named.contains(*i) && cell.route.is_some()) {
                match newer(Some(cell), stamp, None) {
                    Some(outcome) => refused(outcome),
                    None => *cell = Cell { stamp, route: None },
                }
            }
            highest.map_or(Outcome::Done, Outcome::Newer)
        }
    };
    let before = hlc::from_ms(hlc::to_ms(stamp).saturating_sub(millis(REMOVED_TTL)));
    devices.retain(|_, cell| cell.route.is_some() || cell.stamp >= before);
    while devices.len() > INSTALLS_PER_USER {
        let oldest = devices.iter().min_by_key(|(install, cell)| (cell.stamp, *install));
        let Some(oldest) = oldest.map(|(install, _)| install.clone()) else { break };
        devices.remove(&oldest);
    }
    outcome
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Table {
    fn is_live(&self, now: Duration, route: &Route) -> bool {
        let live = self.links.get(&route.link);
        live.is_some_and(|(generation, until)| *generation == route.generation && now < *until)
    }
}

impl Routes for MemoryRoutes {
    fn write(&self, changes: Vec<Change>) -> BoxFut<'_, Vec<Result<Outcome, RoutesError>>> {
        self.table().writes += changes.len() as u64;
        let done = changes.into_iter().map(|change| self.with(|table, _| write(table, change))).collect();
        Box::pin(std::future::ready(done))
    }

    fn look_up(&self, user: UserId) -> BoxFut<'_, Result<Vec<Listed>, RoutesError>> {
        let listed = self.with(|table, now| {
            let devices = table.users.get(&user).into_iter().flatten();
            let listed = devices.filter_map(|(install, cell)| {
                let route = cell.route.clone()?;
                let is_live = table.is_live(now, &route);
                Some(Listed { install: install.clone(), route, stamp: cell.stamp, is_live })
            });
            listed.collect()
        });
        Box::pin(std::future::ready(listed))
    }

    fn renew(&self, links: Vec<(Arc<Link>, u64)>, ttl: Duration) -> BoxFut<'_, Result<(), RoutesError>> {
        let done = self.with(|table, now| {
            table.links.extend(links.into_iter().map(|(link, generation)| (link, (generation, now + ttl))));
        });
        Box::pin(std::future::ready(done))
    }

    fn end(&self, link: Arc<Link>, generation: u64) -> BoxFut<'_, Result<bool, RoutesError>> {
        let was = self.with(|table, now| {
            let live = table.links.get(&link).is_some_and(|live| live.0 == generation && now < live.1);
            if live {
                table.links.remove(&link);
            }
            live
        });
        Box::pin(std::future::ready(was))
    }

    fn count(&self) -> BoxFut<'_, Result<Counts, RoutesError>> {
        let counts = self.with(|table, now| {
            let mut counts = Counts::default();
            for devices in table.users.values() {
                let before = counts.routes;
                for route in devices.values().filter_map(|cell| cell.route.as_ref()) {
                    let live = table.is_live(now, route);
                    *(if live { &mut counts.routes } else { &mut counts.over }) += 1;
                }
                counts.users += u64::from(counts.routes > before);
            }
            counts
        });
        Box::pin(std::future::ready(counts))
    }

    fn is_kept(&self) -> BoxFut<'_, Result<bool, RoutesError>> {
        let kept = self.with(|table, _| !table.marks.insert(self.node));
        Box::pin(std::future::ready(kept))
    }
}
