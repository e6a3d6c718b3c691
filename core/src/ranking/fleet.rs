//! What edges said of themselves, and what was sent to them since.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::position::{Direction, Position};
use super::{EDGES_MAX, FORGOTTEN_AFTER, SILENT_AFTER, SLOW_START};
use crate::ids::Region;

/// A busy processor counts as load from here, in permille: below, it says more about the moment than about
/// the room that is left.
const CPU_COUNTS_FROM: u32 = 700;
/// What is to be forgotten is looked for this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Edges that are first seen this long after the first of all were there before this dispatcher: they report
/// once a second, and links need some time to come up. They are not new.
const SETTLES_IN: Duration = Duration::from_secs(5);
/// Share of its capacity with which a new edge starts.
const SLOW_START_FROM: f64 = 0.1;
/// An edge without any room is still drawn now and then, as if it had this part of its capacity left: its
/// processor may be less busy than it was a second ago, and it may be the only one.
const ROOM_LEAST: f64 = 0.001;

/// What an edge said of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeReport {
    /// Its region.
    pub region: Region,
    /// The region's name.
    pub region_name: Arc<str>,
    /// Its name, unique in the region.
    pub edge: Arc<str>,
    /// Where clients reach it; QUIC and TCP alike.
    pub addresses: Vec<SocketAddr>,
    /// Open connections.
    pub connections: u32,
    /// Connections it takes; 0 = none.
    pub capacity: u32,
    /// Of its processors, 0-1000.
    pub cpu_permille: u32,
    /// About to stop.
    pub draining: bool,
    /// How old this report was when it was handed over.
    pub age: Duration,
    /// Where it stands, if it knows.
    pub position: Option<Position>,
    /// Random per start of the edge.
    pub generation: u64,
    /// What fails together within a region: a rack, a zone, a provider.
    pub failure_domain: Arc<str>,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// It is the newest of its edge.
    Taken,
    /// A newer one was there already. Nothing changed.
    Older,
}

/// Why a report was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The table is full of edges that are alive.
    #[error("edge {edge} of region {region} is not listed: {EDGES_MAX} others are alive, and no more are kept")]
    TooMany {
        /// Its region.
        region: Region,
        /// Its name.
        edge: Arc<str>,
    },
    /// A later start of the same edge was seen.
    #[error(
        "edge {edge} of region {region} reports from a start that a later one replaced; the report is ignored. \
         If this goes on, two processes use one edge name: give each its own"
    )]
    Replaced {
        /// Its region.
        region: Region,
        /// Its name.
        edge: Arc<str>,
    },
}

/// Whether an edge may be listed, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It may.
    Listed,
    /// Not heard of for [`SILENT_AFTER`], or its link was closed.
    Silent,
    /// It said that it is about to stop.
    Draining,
    /// An operator took it out.
    Cordoned,
    /// An operator took its region out.
    RegionCordoned,
    /// It has as many connections as it takes.
    Full,
}

impl Standing {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Listed, Self::Silent, Self::Draining, Self::Cordoned, Self::RegionCordoned, Self::Full];

    /// As it stands in answers and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Silent => "silent",
            Self::Draining => "draining",
            Self::Cordoned => "cordoned",
            Self::RegionCordoned => "region_cordoned",
            Self::Full => "full",
        }
    }
}

/// An edge as it is remembered.
#[derive(Clone, Debug)]
pub struct Edge {
    report: EdgeReport,
    heard_at: Duration,
    new_since: Option<Duration>,
    replaced: Option<u64>,
    /// First ranks since the report was made: its numbers do not hold them yet.
    assigned: u32,
    gone: bool,
    cordoned: bool,
    region_cordoned: bool,
    pub(super) site: usize,
    pub(super) domain: usize,
}

impl Edge {
    /// Its newest report.
    pub fn report(&self) -> &EdgeReport {
        &self.report
    }

    /// How long ago that was made.
    pub fn age(&self, now: Duration) -> Duration {
        self.report.age.saturating_add(now.saturating_sub(self.heard_at))
    }

    /// Whether it was silent for [`SILENT_AFTER`], or its link was closed.
    pub fn is_silent(&self, now: Duration) -> bool {
        self.gone || self.age(now) >= SILENT_AFTER
    }

    /// Whether it may be listed.
    pub fn standing(&self, now: Duration) -> Standing {
        if self.is_silent(now) {
            Standing::Silent
        } else if self.cordoned {
            // What an operator wants comes before what follows from it.
            Standing::Cordoned
        } else if self.region_cordoned {
            Standing::RegionCordoned
        } else if self.report.draining {
            Standing::Draining
        } else if self.connections() >= self.report.capacity {
            Standing::Full
        } else {
            Standing::Listed
        }
    }

    /// Whether its capacity still counts for less than the whole.
    pub fn is_new(&self, now: Duration) -> bool {
        self.new_since.is_some_and(|at| now.saturating_sub(at) < SLOW_START)
    }

    /// Reported connections and those sent there since, over its capacity; or the busy processor, if that is
    /// more. 1 = full.
    pub fn load(&self) -> f64 {
        let load = f64::from(self.connections()) / f64::from(self.report.capacity.max(1));
        let cpu = self.report.cpu_permille.min(1000);
        if cpu < CPU_COUNTS_FROM { load } else { load.max(f64::from(cpu) / 1000.0) }
    }

    /// How many more connections it can take, as far as that is known: its free places, less as its processor
    /// gets busy, and a part of them while it is new. Never zero. Clients are shared out by it.
    pub(super) fn room(&self, now: Duration) -> f64 {
        let capacity = f64::from(self.report.capacity.max(1));
        let free = capacity - f64::from(self.connections());
        let idle = f64::from(1000 - self.report.cpu_permille.min(1000)) / f64::from(1000 - CPU_COUNTS_FROM);
        let part = match self.new_since.filter(|_| self.is_new(now)) {
            None => 1.0,
            Some(since) => {
                let part = now.saturating_sub(since).as_secs_f64() / SLOW_START.as_secs_f64();
                SLOW_START_FROM + (1.0 - SLOW_START_FROM) * part
            }
        };
        (free * idle.min(1.0) * part).max(capacity * ROOM_LEAST)
    }

    fn connections(&self) -> u32 {
        self.report.connections.saturating_add(self.assigned)
    }

    /// A newer report of the edge. Clients sent here after it was made are not in its numbers yet: their
    /// part is taken as the part of time.
    fn renew(&mut self, now: Duration, report: EdgeReport) {
        let since = self.age(now).as_millis().max(1);
        let after = report.age.as_millis().min(since);
        let rest = u128::from(self.assigned) * after / since;
        self.assigned = u32::try_from(rest).unwrap_or(u32::MAX);
        if report.generation != self.report.generation {
            self.replaced = Some(self.report.generation);
            self.new_since = Some(now);
            self.assigned = 0;
        }
        self.report = report;
        self.heard_at = now;
        self.gone = false;
    }
}

/// Edges that share an estimate: one region at one position, to a hundredth of a degree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteKey(u64);

impl SiteKey {
    /// The site of a region's edges at a position; None = somewhere. Region 0 is none.
    pub fn new(region: Region, position: Option<Position>) -> Self {
        let (latitude, longitude) = position.map_or((0, 0), Position::hundredths);
        let at = u64::from(latitude) << 16 | u64::from(longitude);
        Self(u64::from(region) << 32 | at)
    }

    /// Its region; 0 = this is no site.
    pub fn region(self) -> Region {
        Region::try_from(self.0 >> 32).unwrap_or(0)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub(super) key: SiteKey,
    pub(super) direction: Option<Direction>,
}

/// All edges that were heard of lately, ordered by (region, name).
#[derive(Debug, Default)]
pub struct Fleet {
    edges: Vec<Edge>,
    sites: Vec<Site>,
    /// Sites and domains are to be numbered again before the next ranking.
    renumber: bool,
    swept_at: Duration,
    cordoned_regions: BTreeSet<Region>,
    first_report_at: Option<Duration>,
    pub(super) scratch: super::choose::Scratch,
}

impl Fleet {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a report that was handed over at `now`.
    pub fn report(&mut self, now: Duration, report: EdgeReport) -> Result<Reported, ReportError> {
        if now.saturating_sub(self.swept_at) >= SWEEP_EVERY {
            self.forget(now);
        }
        let at = match self.find(report.region, &report.edge) {
            Ok(at) => at,
            Err(at) => return self.insert(now, at, report),
        };
        let edge = &mut self.edges[at];
        if edge.replaced == Some(report.generation) {
            return Err(ReportError::Replaced { region: report.region, edge: report.edge });
        }
        if report.age > edge.age(now) {
            return Ok(Reported::Older);
        }
        self.renumber |= edge.report.position != report.position || edge.report.failure_domain != report.failure_domain;
        edge.renew(now, report);
        Ok(Reported::Taken)
    }

    fn insert(&mut self, now: Duration, at: usize, report: EdgeReport) -> Result<Reported, ReportError> {
        let mut at = at;
        if self.edges.len() >= EDGES_MAX {
            self.forget(now);
            // Then any silent one, the longest silent first.
            let oldest = (0..self.edges.len()).max_by_key(|i| self.edges[*i].age(now));
            match oldest {
                Some(i) if self.edges.len() >= EDGES_MAX && self.edges[i].standing(now) == Standing::Silent => {
                    self.edges.remove(i);
                }
                _ if self.edges.len() >= EDGES_MAX => {
                    return Err(ReportError::TooMany { region: report.region, edge: report.edge });
                }
                _ => {}
            }
            at = self.find(report.region, &report.edge).unwrap_or_else(|at| at);
        }
        let region_cordoned = self.cordoned_regions.contains(&report.region);
        let first_report = *self.first_report_at.get_or_insert(now);
        let edge = Edge {
            report,
            heard_at: now,
            new_since: (now.saturating_sub(first_report) >= SETTLES_IN).then_some(now),
            replaced: None,
            assigned: 0,
            gone: false,
            cordoned: false,
            region_cordoned,
            site: 0,
            domain: 0,
        };
        self.edges.insert(at, edge);
        self.renumber = true;
        Ok(Reported::Taken)
    }

    /// The link to this start of an edge was closed: it is not listed until it reports again. Returns
    /// whether it was known; an older start than the one known changes nothing.
    pub fn remove(&mut self, region: Region, edge: &str, generation: u64) -> bool {
        let Ok(at) = self.find(region, edge) else { return false };
        let edge = &mut self.edges[at];
        let same = edge.report.generation == generation;
        edge.gone |= same;
        same
    }

    /// Takes an edge out of the lists, or back in, whatever it reports. Returns whether it was known. An edge
    /// that is forgotten loses the mark.
    pub fn set_cordoned(&mut self, region: Region, edge: &str, cordoned: bool) -> bool {
        let Ok(at) = self.find(region, edge) else { return false };
        self.edges[at].cordoned = cordoned;
        true
    }

    /// Takes all edges of a region out of the lists, those that are heard of later too, or back in. Returns
    /// whether that changed anything.
    pub fn set_region_cordoned(&mut self, region: Region, cordoned: bool) -> bool {
        for edge in self.edges.iter_mut().filter(|e| e.report.region == region) {
            edge.region_cordoned = cordoned;
        }
        if cordoned { self.cordoned_regions.insert(region) } else { self.cordoned_regions.remove(&region) }
    }

    /// Regions that an operator took out.
    pub fn cordoned_regions(&self) -> impl Iterator<Item = Region> {
        self.cordoned_regions.iter().copied()
    }

    /// Drops what was silent for [`FORGOTTEN_AFTER`].
    pub fn forget(&mut self, now: Duration) {
        self.swept_at = now;
        let before = self.edges.len();
        self.edges.retain(|e| e.age(now) < FORGOTTEN_AFTER);
        self.renumber |= before != self.edges.len();
    }

    /// All that are remembered, by (region, name).
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// Whether some edge of a region may be listed.
    pub fn lists(&self, region: Region, now: Duration) -> bool {
        let from = self.edges.partition_point(|e| e.report.region < region);
        let here = self.edges[from..].iter().take_while(|e| e.report.region == region);
        here.into_iter().any(|e| e.standing(now) == Standing::Listed)
    }

    /// The site of the edge of this name; None if there is none, or one in each of several regions.
    pub fn site_of(&self, edge: &str) -> Option<SiteKey> {
        let mut found = None;
        let mut rest = &self.edges[..];
        while let Some(first) = rest.first() {
            let region = first.report.region;
            let (here, others) = rest.split_at(rest.partition_point(|e| e.report.region == region));
            if let Ok(at) = here.binary_search_by(|e| (*e.report.edge).cmp(edge)) {
                if found.is_some() {
                    return None;
                }
                found = Some(SiteKey::new(region, here[at].report.position));
            }
            rest = others;
        }
        found
    }

    pub(super) fn assign(&mut self, at: usize) {
        let edge = &mut self.edges[at];
        edge.assigned = edge.assigned.saturating_add(1);
    }

    /// Sites, numbered as the edges name them.
    pub(super) fn sites(&mut self) -> &[Site] {
        if std::mem::take(&mut self.renumber) {
            self.number();
        }
        &self.sites
    }

    fn number(&mut self) {
        self.sites.clear();
        let mut sites = BTreeMap::new();
        let mut domains = BTreeMap::new();
        for edge in &mut self.edges {
            let report = &edge.report;
            let key = SiteKey::new(report.region, report.position);
            edge.site = *sites.entry(key).or_insert_with(|| {
                let direction = report.position.map(Position::direction);
                self.sites.push(Site { key, direction });
                self.sites.len() - 1
            });
            let next = domains.len();
            edge.domain = *domains.entry((report.region, report.failure_domain.clone())).or_insert(next);
        }
    }

    fn find(&self, region: Region, edge: &str) -> Result<usize, usize> {
        self.edges.binary_search_by(|e| (e.report.region, &*e.report.edge).cmp(&(region, edge)))
    }
}
