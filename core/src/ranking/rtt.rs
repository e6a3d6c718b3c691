//! Round trips that clients measured, per network and per country.
//!
//! A network's average follows its newest samples; a country's moves slowly and takes at most one sample per
//! network in [`COUNTRY_EVERY_S`], so that one talkative (or lying) client does not speak for its country.
//! Both bend the estimate by distance and never the other way round, because databases of addresses err.

use std::collections::BTreeMap;
use std::time::Duration;

use super::position::{Country, NetworkPrefix};
use crate::ids::Region;

/// Samples above this are time-outs rather than round trips.
const SAMPLE_MS_MAX: f64 = 10_000.0;
/// Share of a new sample in a network's average, once that has a few.
const NETWORK_SHARE: f64 = 0.2;
/// Share of a new sample in a country's average, likewise.
const COUNTRY_SHARE: f64 = 0.02;
/// A network speaks for its country once in so many seconds.
const COUNTRY_EVERY_S: u32 = 10;
/// Regions remembered per network: a client measures the few edges it was given.
const REGIONS_PER_NETWORK: usize = 4;
/// So many samples of a network weigh as much as all that was known before.
const NETWORK_HALF: f64 = 2.0;
/// So many samples of a country weigh as much as the distance.
const COUNTRY_HALF: f64 = 8.0;
/// What is known loses half of its weight in a day of silence.
const HALF_LIFE_S: u32 = 86_400;

/// A moving average.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Average {
    ms: f64,
    at_s: u32,
    samples: u16,
    /// To which; 0 = to none yet.
    region: Region,
}

impl Average {
    fn take(&mut self, now_s: u32, ms: f64, share: f64) {
        // The first few are simply averaged.
        let share = share.max(1.0 / (f64::from(self.samples) + 1.0));
        self.ms += (ms - self.ms) * share;
        self.samples = self.samples.saturating_add(1);
        self.at_s = now_s;
    }

    /// The average and its weight against what was known before, 0 to 1.
    fn weighed(&self, now_s: u32, half: f64) -> (f64, f64) {
        let days = now_s.saturating_sub(self.at_s) / HALF_LIFE_S;
        let samples = f64::from(self.samples.checked_shr(days).unwrap_or(0));
        (self.ms, samples / (samples + half))
    }
}

#[derive(Clone, Debug, Default)]
struct Network {
    /// Least recently learned first is what eviction wants: the key of this record in `by_age`.
    tick: u64,
    country_at_s: Option<u32>,
    regions: [Average; REGIONS_PER_NETWORK],
}

/// What clients measured, for at most a fixed number of networks; the one that was silent for the longest
/// time makes room.
#[derive(Debug)]
pub struct RttTable {
    networks: BTreeMap<NetworkPrefix, Network>,
    by_age: BTreeMap<u64, NetworkPrefix>,
    countries: BTreeMap<(Country, Region), Average>,
    tick: u64,
    networks_max: usize,
}

/// What is known of one network, looked up once per ranking.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    table: &'a RttTable,
    network: Option<&'a Network>,
    country: Option<Country>,
    now_s: u32,
}

impl RttTable {
    /// Empty; remembers at most `networks_max` networks, see [`super::NETWORKS_MAX`].
    pub fn new(networks_max: usize) -> Self {
        Self {
            networks: BTreeMap::new(),
            by_age: BTreeMap::new(),
            countries: BTreeMap::new(),
            tick: 0,
            networks_max: networks_max.max(1),
        }
    }

    /// Networks that are remembered.
    pub fn len(&self) -> usize {
        self.networks.len()
    }

    /// Whether nothing was learned yet.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// A client in `network` measured `ms` to `region`. Returns whether it was learned: values that are no
    /// round trip are not.
    pub fn learn(
        &mut self,
        now: Duration,
        network: NetworkPrefix,
        country: Option<Country>,
        region: Region,
        ms: f64,
    ) -> bool {
        if !(ms > 0.0 && ms <= SAMPLE_MS_MAX) || region == 0 {
            return false;
        }
        let now_s = seconds(now);
        self.tick += 1;
        if !self.networks.contains_key(&network)
            && self.networks.len() >= self.networks_max
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.networks.remove(&oldest);
        }
        let record = self.networks.entry(network).or_default();
        self.by_age.remove(&record.tick);
        record.tick = self.tick;
        self.by_age.insert(self.tick, network);
        record.average_of(region).take(now_s, ms, NETWORK_SHARE);
        if let Some(country) = country
            && record.country_at_s.is_none_or(|at| now_s.saturating_sub(at) >= COUNTRY_EVERY_S)
        {
            record.country_at_s = Some(now_s);
            self.countries.entry((country, region)).or_default().take(now_s, ms, COUNTRY_SHARE);
        }
        true
    }

    pub(super) fn known(&self, now: Duration, network: Option<NetworkPrefix>, country: Option<Country>) -> Known<'_> {
        let network = network.and_then(|n| self.networks.get(&n));
        Known { table: self, network, country, now_s: seconds(now) }
    }
}

/// Good for 136 years of one clock.
fn seconds(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

impl Network {
    /// The average of a region; a new one takes the place of an unused one, or of the one silent longest.
    fn average_of(&mut self, region: Region) -> &mut Average {
        let at = self.regions.iter().position(|a| a.region == region).unwrap_or_else(|| {
            let at = (0..REGIONS_PER_NETWORK).min_by_key(|i| (self.regions[*i].region != 0, self.regions[*i].at_s));
            let at = at.unwrap_or(0);
            self.regions[at] = Average { region, ..Average::default() };
            at
        });
        &mut self.regions[at]
    }
}

impl Known<'_> {
    /// Average and weight of the network's samples to a region.
    pub(super) fn by_network(&self, region: Region) -> Option<(f64, f64)> {
        let average = self.network?.regions.iter().find(|a| a.region == region)?;
        Some(average.weighed(self.now_s, NETWORK_HALF))
    }

    /// Average and weight of the country's samples to a region.
    pub(super) fn by_country(&self, region: Region) -> Option<(f64, f64)> {
        let average = self.table.countries.get(&(self.country?, region))?;
        Some(average.weighed(self.now_s, COUNTRY_HALF))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn network(a: u8) -> NetworkPrefix {
        NetworkPrefix::of(std::net::IpAddr::from([8, 8, a, 1]))
    }

    #[test]
    fn the_network_that_was_silent_longest_makes_room() {
        let mut table = RttTable::new(2);
        let now = Duration::from_secs(5);
        for a in [1, 2, 1, 3] {
            assert!(table.learn(now, network(a), None, 1, 20.0));
        }
        assert_eq!((table.len(), table.by_age.len()), (2, 2));
        assert!(table.known(now, Some(network(1)), None).by_network(1).is_some());
        assert!(table.known(now, Some(network(2)), None).by_network(1).is_none());
        assert!(table.known(now, Some(network(3)), None).by_network(1).is_some());
    }

    #[test]
    fn what_is_no_round_trip_is_not_learned() {
        let mut table = RttTable::new(10);
        for ms in [0.0, -1.0, f64::NAN, f64::INFINITY, 10_001.0] {
            assert!(!table.learn(Duration::ZERO, network(1), Country::new("de"), 1, ms), "{ms}");
        }
        assert!(!table.learn(Duration::ZERO, network(1), None, 0, 5.0), "no region has number 0");
        assert!(table.is_empty());
    }

    #[test]
    fn one_network_speaks_for_its_country_once_in_ten_seconds() {
        let mut table = RttTable::new(10);
        let country = Country::new("DE");
        for _ in 0..100 {
            table.learn(Duration::from_secs(1), network(1), country, 1, 9_000.0);
        }
        for a in 2..6 {
            table.learn(Duration::from_secs(1), network(a), country, 1, 20.0);
        }
        let (ms, _) = table.known(Duration::from_secs(1), None, country).by_country(1).unwrap();
        assert!(ms < 2_000.0, "{ms}");
    }

    #[test]
    fn more_samples_weigh_more_and_silence_less() {
        let mut table = RttTable::new(10);
        let weight = |t: &RttTable, day: u64| {
            t.known(Duration::from_secs(day * u64::from(HALF_LIFE_S)), Some(network(1)), None).by_network(1).unwrap().1
        };
        table.learn(Duration::ZERO, network(1), None, 1, 20.0);
        let one = weight(&table, 0);
        for _ in 0..20 {
            table.learn(Duration::ZERO, network(1), None, 1, 20.0);
        }
        assert!(one < 0.5 && weight(&table, 0) > 0.9);
        assert!(weight(&table, 2) < weight(&table, 0));
        assert!(weight(&table, 400) == 0.0, "a year of silence");
    }

    #[test]
    fn a_fifth_region_takes_the_place_of_the_one_silent_longest() {
        let mut table = RttTable::new(10);
        for (second, region) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 5)] {
            table.learn(Duration::from_secs(second), network(1), None, region, 20.0);
        }
        let known = table.known(Duration::from_secs(6), Some(network(1)), None);
        let regions: Vec<u8> = (1..=5).filter(|r| known.by_network(*r).is_some()).collect();
        assert_eq!(regions, [1, 3, 4, 5]);
    }
}
