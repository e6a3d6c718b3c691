//! A deployment and its clients, for measuring rankings per second.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{
    Client, Country, EdgeReport, Fleet, NETWORKS_MAX, NetworkPrefix, Policy, Position, Ranking, RttTable, SiteKey,
    Whence, rank,
};
use crate::ids::Region;

/// Cities with edges: number of the region, position.
const SITES: [(Region, f64, f64); 10] = [
    (1, 50.1, 8.7),
    (2, 39.0, -77.5),
    (3, 1.35, 103.8),
    (4, -23.5, -46.6),
    (5, 35.7, 139.7),
    (6, 19.1, 72.9),
    (7, -33.9, 151.2),
    (8, -26.2, 28.0),
    (9, 37.4, -122.1),
    (10, 51.5, -0.1),
];

/// Clients: country, position.
const CLIENTS: [(&str, f64, f64); 8] = [
    ("DE", 51.0, 10.0),
    ("BR", -19.0, -46.0),
    ("IN", 22.0, 79.0),
    ("JP", 36.0, 138.0),
    ("US", 38.5, -92.0),
    ("ZA", -28.0, 27.0),
    ("AU", -34.0, 147.0),
    ("GB", 52.5, -1.5),
];

/// Rankings between two rounds of reports, as if they were a second.
const RANKINGS_PER_REPORT: u64 = 1 << 16;

/// See [`bench_input`].
#[derive(Debug)]
pub struct BenchInput {
    fleet: Fleet,
    learned: RttTable,
    reports: Vec<EdgeReport>,
    clients: Vec<(Client<'static>, Policy)>,
    now: Duration,
    random: u64,
    rankings: u64,
}

/// A deployment of so many edges in up to ten regions, each region with two failure domains, and clients of
/// eight countries in 4,096 networks, half of which have measured a region.
pub fn bench_input(edges: usize) -> BenchInput {
    let now = Duration::from_secs(100);
    let reports: Vec<EdgeReport> = (0..edges).map(report).collect();
    let mut fleet = Fleet::new();
    for report in &reports {
        // Refused only above EDGES_MAX: the measurement then simply has fewer edges.
        let _refused = fleet.report(Duration::ZERO, report.clone()).is_err();
    }
    let mut learned = RttTable::new(NETWORKS_MAX);
    let clients = (0..4096_u32)
        .map(|i| {
            let (code, latitude, longitude) = CLIENTS[i as usize % CLIENTS.len()];
            let network = NetworkPrefix::of(IpAddr::V4(Ipv4Addr::from(0x0800_0000 + (i << 8))));
            let country = Country::new(code);
            if i % 2 == 0 {
                let (region, latitude, longitude) = SITES[i as usize % SITES.len()];
                let site = SiteKey::new(region, Position::new(latitude, longitude));
                learned.learn(now, network, Whence { country, asn: Some(i % 64) }, site, f64::from(20 + i % 200));
            }
            let position = Position::new(latitude, longitude);
            let client = Client { position, country, asn: Some(i % 64), network: Some(network), ..Client::default() };
            (client, Policy { list_max: super::LIST_MAX, home: 1, home_position: None, count: true })
        })
        .collect();
    let mut input = BenchInput { fleet, learned, reports, clients, now, random: 0x9e37_79b9_7f4a_7c15, rankings: 0 };
    input.report_all();
    input
}

fn report(i: usize) -> EdgeReport {
    let (region, latitude, longitude) = SITES[i % SITES.len()];
    let port = u16::try_from(i % 60_000).unwrap_or(0) + 1;
    EdgeReport {
        region,
        region_name: Arc::from(format!("r{region}")),
        edge: Arc::from(format!("r{region}-e{}", i / SITES.len())),
        addresses: vec![SocketAddr::from(([192, 0, 2, region], port))],
        connections: u32::try_from(i * 37 % 5_000).unwrap_or(0),
        capacity: 1_000_000,
        cpu_permille: 100,
        draining: false,
        age: Duration::ZERO,
        position: Position::new(latitude, longitude),
        generation: i as u64,
        failure_domain: Arc::from(if (i / SITES.len()).is_multiple_of(2) { "a" } else { "b" }),
    }
}

impl BenchInput {
    /// Ranks for the next client; every 65,536 rankings all edges report, as they do each second.
    pub fn rank_once(&mut self) -> Ranking {
        self.rankings += 1;
        if self.rankings.is_multiple_of(RANKINGS_PER_REPORT) {
            self.now += Duration::from_secs(1);
            self.report_all();
        }
        let (client, policy) = &self.clients[usize::try_from(self.rankings).unwrap_or(0) % self.clients.len()];
        let random = &mut self.random;
        rank(&mut self.fleet, &self.learned, client, policy, self.now, || {
            // xorshift64 (Marsaglia 2003)
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            *random
        })
    }

    fn report_all(&mut self) {
        for report in &self.reports {
            let _refused = self.fleet.report(self.now, report.clone()).is_err();
        }
    }
}
