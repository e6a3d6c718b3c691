//! The load table: what the edges of all regions last said of themselves.
//!
//! A cheap handle around [`Fleet`]. Whoever hears from an edge reports it here: the region's own edge, the
//! edge links, the region links. Who dispatches reads it; who talks to other regions takes
//! [`LoadTable::own_loads`] once a second. Nothing here survives the process, and nothing needs to: two
//! seconds after a start the table is whole again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tern_core::ids::Region;
use tern_core::limits::ID_BYTES;
use tern_core::ranking::{Edge, EdgeReport, Fleet, Position, ReportError, SILENT_AFTER, Standing};
use tern_core::wire::node_v1::EdgeLoad;

use crate::limits::{ADDRESSES_PER_EDGE, NAME_BYTES};

/// Why a report was not taken. The edge is listed by its last good one, while that is young enough.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A field that can't be.
    #[error("the load report of edge {edge:?} was ignored: {what}")]
    Bad {
        /// As the report names it.
        edge: String,
        /// Which field, and how it should be.
        what: String,
    },
    /// The table does not take it.
    #[error(transparent)]
    Refused(#[from] ReportError),
}

/// What edges said of themselves. Shared by reference; all calls are short and never wait for anything but
/// each other.
#[derive(Debug, Default)]
pub struct LoadTable {
    fleet: Mutex<Fleet>,
    cordons: Mutex<Cordons>,
}

/// Regions that are taken out, by the two ways that there are.
#[derive(Debug, Default)]
struct Cordons {
    configured: BTreeSet<Region>,
    ordered: BTreeSet<Region>,
}

/// An edge as the table has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Its region.
    pub region: Region,
    /// That region's name.
    pub region_name: Arc<str>,
    /// Its name.
    pub edge: Arc<str>,
    /// Connections that it has, and takes.
    pub connections: (u32, u32),
    /// Of its processors, 0-1000.
    pub cpu_permille: u32,
    /// Whether it says that it sends its clients away.
    pub draining: bool,
    /// Whether it is listed, and if not, why.
    pub standing: Standing,
    /// How old what it said is.
    pub age: Duration,
}

impl LoadTable {
    /// Empty.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Takes an edge's report; `now` is the clock of [`tern_net::env::Env`], and the report's `age_ms` is how
    /// old it was on arrival. Older reports than the one known, and those of a start that a later one has
    /// replaced, change nothing.
    pub fn report(&self, load: &EdgeLoad, now: Duration) -> Result<(), LoadError> {
        let report = report_of(load).map_err(|what| LoadError::Bad { edge: load.edge.clone(), what })?;
        self.fleet().report(now, report)?;
        Ok(())
    }

    /// The link to this start of an edge was closed: it is not listed until it reports again. Returns whether
    /// this start was the one known.
    pub fn remove(&self, region: Region, edge: &str, generation: u64) -> bool {
        self.fleet().remove(region, edge, generation)
    }

    /// Takes an edge out of this dispatcher's lists, or back in, whatever it reports. Returns whether it is
    /// known.
    pub fn set_cordoned(&self, region: Region, edge: &str, cordoned: bool) -> bool {
        self.fleet().set_cordoned(region, edge, cordoned)
    }

    /// Takes all edges of a region out of this dispatcher's lists, those heard of later too, or back in.
    /// Returns whether that changed anything.
    pub fn set_region_cordoned(&self, region: Region, cordoned: bool) -> bool {
        self.fleet().set_region_cordoned(region, cordoned)
    }

    /// Takes these regions out of this dispatcher's lists, by its configuration, and those back in that neither it nor an
    /// order names.
    pub fn cordon_regions(&self, regions: &[Region]) {
        let mut cordons = self.cordons();
        cordons.configured = regions.iter().copied().collect();
        self.cordon(&cordons);
    }

    /// The same by operators' orders.
    pub fn cordon_ordered(&self, regions: &[Region]) {
        let mut cordons = self.cordons();
        cordons.ordered = regions.iter().copied().collect();
        self.cordon(&cordons);
    }

    /// Regions that this dispatcher's configuration takes out.
    pub fn cordoned_by_configuration(&self) -> Vec<Region> {
        self.cordons().configured.iter().copied().collect()
    }

    fn cordon(&self, cordons: &Cordons) {
        let mut fleet = self.fleet();
        let wanted: BTreeSet<Region> = cordons.configured.union(&cordons.ordered).copied().collect();
        let lifted: Vec<Region> = fleet.cordoned_regions().filter(|r| !wanted.contains(r)).collect();
        for region in lifted {
            fleet.set_region_cordoned(region, false);
        }
        for region in wanted {
            fleet.set_region_cordoned(region, true);
        }
    }

    fn cordons(&self) -> MutexGuard<'_, Cordons> {
        // Sets that are replaced as a whole.
        self.cordons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All edges that are remembered, by (region, name).
    pub fn seen(&self, now: Duration) -> Vec<Seen> {
        let seen = |edge: &Edge| Seen {
            region: edge.report().region,
            region_name: edge.report().region_name.clone(),
            edge: edge.report().edge.clone(),
            connections: (edge.report().connections, edge.report().capacity),
            cpu_permille: edge.report().cpu_permille,
            draining: edge.report().draining,
            standing: edge.standing(now),
            age: edge.age(now),
        };
        self.fleet().edges().iter().map(seen).collect()
    }

    /// Regions that are taken out of this dispatcher's lists.
    pub fn cordoned_regions(&self) -> Vec<Region> {
        self.fleet().cordoned_regions().collect()
    }

    /// What the region tells others of its own edges: all that are not silent, in order of their names, with
    /// the age of what they said.
    pub fn own_loads(&self, region: Region, now: Duration) -> Vec<EdgeLoad> {
        let fleet = self.fleet();
        let own = fleet.edges().iter().filter(|e| e.report().region == region && !e.is_silent(now));
        own.map(|e| load_of(e, now)).collect()
    }

    pub(crate) fn fleet(&self) -> MutexGuard<'_, Fleet> {
        // A panic while it was held can't have left it half changed in a way that matters: reports come anew.
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report_of(load: &EdgeLoad) -> Result<EdgeReport, String> {
    let region = Region::try_from(load.region).ok().filter(|r| *r != 0);
    let region = region.ok_or_else(|| format!("region {}; regions are 1 to 255", load.region))?;
    text("edge", &load.edge, 1, ID_BYTES)?;
    text("region_name", &load.region_name, 1, NAME_BYTES)?;
    text("failure_domain", &load.failure_domain, 0, NAME_BYTES)?;
    if load.addresses.is_empty() || load.addresses.len() > ADDRESSES_PER_EDGE {
        return Err(format!("{} addresses; 1 to {ADDRESSES_PER_EDGE} are needed", load.addresses.len()));
    }
    let addresses = load.addresses.iter().map(|a| reachable(a)).collect::<Result<_, _>>()?;
    Ok(EdgeReport {
        region,
        region_name: Arc::from(load.region_name.as_str()),
        edge: Arc::from(load.edge.as_str()),
        addresses,
        connections: load.connections,
        capacity: load.capacity,
        cpu_permille: load.cpu_permille,
        draining: load.draining,
        age: Duration::from_millis(load.age_ms.into()),
        position: position(load.latitude, load.longitude),
        generation: load.generation,
        failure_domain: Arc::from(load.failure_domain.as_str()),
    })
}

fn text(field: &str, value: &str, least: usize, most: usize) -> Result<(), String> {
    if !(least..=most).contains(&value.len()) {
        return Err(format!("{field} has {} bytes; {least} to {most} are allowed", value.len()));
    }
    if value.chars().any(char::is_control) {
        return Err(format!("{field} has control characters"));
    }
    Ok(())
}

fn reachable(address: &str) -> Result<SocketAddr, String> {
    let parsed: SocketAddr = address.parse().map_err(|_| format!("address {address:?} is not IP:PORT"))?;
    if parsed.port() == 0 || parsed.ip().is_unspecified() || parsed.ip().is_multicast() {
        return Err(format!("address {address}: no client can reach that; report the address to connect to"));
    }
    Ok(parsed)
}

/// 0, 0 is what an edge sends that knows no position; nobody runs edges in the Gulf of Guinea.
fn position(latitude: f64, longitude: f64) -> Option<Position> {
    if latitude == 0.0 && longitude == 0.0 { None } else { Position::new(latitude, longitude) }
}

fn load_of(edge: &Edge, now: Duration) -> EdgeLoad {
    let report = edge.report();
    let age = edge.age(now).min(SILENT_AFTER);
    EdgeLoad {
        edge: report.edge.to_string(),
        region: report.region.into(),
        region_name: report.region_name.to_string(),
        addresses: report.addresses.iter().map(ToString::to_string).collect(),
        connections: report.connections,
        capacity: report.capacity,
        cpu_permille: report.cpu_permille,
        draining: report.draining,
        age_ms: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
        latitude: report.position.map_or(0.0, Position::latitude),
        longitude: report.position.map_or(0.0, Position::longitude),
        generation: report.generation,
        failure_domain: report.failure_domain.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(edge: &str) -> EdgeLoad {
        EdgeLoad {
            edge: edge.to_owned(),
            region: 1,
            region_name: "eu".to_owned(),
            addresses: vec!["192.0.2.1:7414".to_owned(), "[2001:db8::1]:7414".to_owned()],
            connections: 5,
            capacity: 100,
            cpu_permille: 20,
            draining: false,
            age_ms: 100,
            latitude: 50.1,
            longitude: 8.7,
            generation: 9,
            failure_domain: "a".to_owned(),
        }
    }

    #[test]
    fn own_loads_are_what_was_reported_with_its_age_until_it_is_silent() {
        let table = LoadTable::new();
        let at = Duration::from_secs(10);
        table.report(&load("eu-e2"), at).unwrap();
        table.report(&load("eu-e1"), at).unwrap();
        table.report(&EdgeLoad { region: 2, ..load("us-e1") }, at).unwrap();
        let told = table.own_loads(1, at + Duration::from_millis(400));
        assert_eq!(told, [EdgeLoad { age_ms: 500, ..load("eu-e1") }, EdgeLoad { age_ms: 500, ..load("eu-e2") }]);
        assert_eq!(table.own_loads(1, at + Duration::from_millis(2_900)), []);
        // A drain is told on; a closed link is not.
        table.report(&EdgeLoad { draining: true, ..load("eu-e2") }, at).unwrap();
        assert!(table.remove(1, "eu-e1", 9));
        let told = table.own_loads(1, at);
        assert_eq!(told, [EdgeLoad { draining: true, ..load("eu-e2") }]);
    }

    #[test]
    fn an_edge_dies_within_three_seconds_in_another_regions_table_too() {
        let (near, far) = (LoadTable::new(), LoadTable::new());
        let at = Duration::from_secs(10);
        near.report(&EdgeLoad { age_ms: 0, ..load("eu-e1") }, at).unwrap();
        // The near region goes on telling of the dead edge; the far one's clock is another.
        let offset = Duration::from_secs(5_000);
        for ms in (0..5_000).step_by(500) {
            let now = at + Duration::from_millis(ms);
            for told in near.own_loads(1, now) {
                far.report(&told, now + offset).unwrap();
            }
            let listed = !far.own_loads(1, now + offset).is_empty();
            assert_eq!(listed, ms < 3_000, "{ms} ms after the last report");
        }
    }

    #[test]
    fn exactly_the_regions_named_are_cordoned() {
        let table = LoadTable::new();
        for named in [&[1, 2][..], &[2, 3], &[2, 3, 3], &[]] {
            table.cordon_regions(named);
            let mut expected = named.to_vec();
            expected.dedup();
            assert_eq!(table.cordoned_regions(), expected);
        }
        table.cordon_regions(&[1, 2]);
        table.cordon_ordered(&[2, 3]);
        assert_eq!(table.cordoned_regions(), [1, 2, 3]);
        table.cordon_regions(&[]);
        assert_eq!((table.cordoned_regions(), table.cordoned_by_configuration()), (vec![2, 3], vec![]));
        table.report(&EdgeLoad { region: 3, ..load("ap-e1") }, Duration::ZERO).unwrap();
        table.cordon_ordered(&[3]);
        let seen = table.seen(Duration::ZERO);
        assert_eq!((seen[0].standing, seen[0].connections), (Standing::RegionCordoned, (5, 100)));
        table.cordon_ordered(&[]);
        assert_eq!(table.seen(Duration::ZERO)[0].standing, Standing::Listed);
    }

    #[test]
    fn reports_that_can_not_be_are_refused_and_say_why() {
        let table = LoadTable::new();
        let long = "x".repeat(65);
        let cases: Vec<(EdgeLoad, &str)> = vec![
            (EdgeLoad { region: 0, ..load("e") }, "regions are 1 to 255"),
            (EdgeLoad { region: 256, ..load("e") }, "regions are 1 to 255"),
            (load(""), "edge has 0 bytes"),
            (load(&long), "edge has 65 bytes"),
            (load("a\nb"), "control characters"),
            (EdgeLoad { region_name: String::new(), ..load("e") }, "region_name has 0 bytes"),
            (EdgeLoad { failure_domain: long.clone(), ..load("e") }, "failure_domain has 65 bytes"),
            (EdgeLoad { addresses: vec![], ..load("e") }, "0 addresses"),
            (EdgeLoad { addresses: vec!["192.0.2.1:1".to_owned(); 9], ..load("e") }, "9 addresses"),
            (EdgeLoad { addresses: vec!["edge.example:1".to_owned()], ..load("e") }, "is not IP:PORT"),
            (EdgeLoad { addresses: vec!["0.0.0.0:1".to_owned()], ..load("e") }, "no client can reach"),
            (EdgeLoad { addresses: vec!["192.0.2.1:0".to_owned()], ..load("e") }, "no client can reach"),
        ];
        for (bad, says) in cases {
            let error = table.report(&bad, Duration::ZERO).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(table.fleet().edges().is_empty());
    }

    #[test]
    fn a_position_that_is_none_is_none() {
        let table = LoadTable::new();
        for (i, (latitude, longitude)) in [(0.0, 0.0), (f64::NAN, 1.0), (91.0, 1.0)].into_iter().enumerate() {
            table.report(&EdgeLoad { latitude, longitude, ..load(&format!("e{i}")) }, Duration::ZERO).unwrap();
        }
        assert!(table.fleet().edges().iter().all(|e| e.report().position.is_none()));
        assert!(table.own_loads(1, Duration::ZERO).iter().all(|l| l.latitude == 0.0 && l.longitude == 0.0));
    }
}
