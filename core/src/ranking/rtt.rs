//! Round trips that clients measured, per network, per provider in a country, and per country.
//!
//! A network's average follows its newest samples; those of providers and countries move slowly and take at
//! most one sample per network and site in [`GROUP_EVERY_S`], so that one talkative (or lying) client does not
//! speak for all. They bend the estimate by distance and never the other way round, because databases of
//! addresses err.

use std::collections::BTreeMap;
use std::time::Duration;

use super::GROUPS_MAX;
use super::fleet::SiteKey;
use super::position::{Country, NetworkPrefix};

/// Samples above this are time-outs rather than round trips.
const SAMPLE_MS_MAX: f64 = 10_000.0;
/// Share of a new sample in a network's average, once that has a few.
const NETWORK_SHARE: f64 = 0.2;
/// Share of a new sample in a provider's or country's average, likewise.
const GROUP_SHARE: f64 = 0.02;
/// A network speaks for its provider and country, about one site, once in so many seconds.
const GROUP_EVERY_S: u32 = 10;
/// Sites remembered per network: a client measures the few edges it was given.
const SITES_PER_NETWORK: usize = 4;
/// So many samples of a network weigh as much as all that was known before.
const NETWORK_HALF: f64 = 2.0;
/// So many samples of a provider weigh as much as what is known of the country.
const PROVIDER_HALF: f64 = 4.0;
/// So many samples of a country weigh as much as the distance.
const COUNTRY_HALF: f64 = 8.0;
/// What is known loses half of its weight in a day of silence.
const HALF_LIFE_S: u32 = 86_400;

/// What is known of a client besides its network, and shared with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whence {
    /// Its country.
    pub country: Option<Country>,
    /// Its provider's autonomous system.
    pub asn: Option<u32>,
}

impl Whence {
    /// Keys of its groups, about one site: the country, and the provider in it. Autonomous system 0 is none.
    fn groups(self, site: SiteKey) -> [Option<GroupKey>; 2] {
        let country = self.country;
        let provider = self.asn.filter(|asn| *asn != 0);
        [country.map(|c| (c, 0, site)), country.zip(provider).map(|(c, asn)| (c, asn, site))]
    }
}

/// Country, autonomous system or 0 for the whole country, site.
type GroupKey = (Country, u32, SiteKey);

/// A moving average.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Average {
    ms: f32,
    at_s: u32,
    samples: u16,
}

impl Average {
    fn take(&mut self, now_s: u32, ms: f64, share: f64) {
        // The first few are simply averaged.
        let share = share.max(1.0 / (f64::from(self.samples) + 1.0));
        let before = f64::from(self.ms);
        #[expect(clippy::cast_possible_truncation, reason = "at most SAMPLE_MS_MAX; a microsecond does not matter")]
        let after = (before + (ms - before) * share) as f32;
        self.ms = after;
        self.samples = self.samples.saturating_add(1);
        self.at_s = now_s;
    }

    /// The average and its weight against what was known before, 0 to 1.
    fn weighed(&self, now_s: u32, half: f64) -> (f64, f64) {
        let days = now_s.saturating_sub(self.at_s) / HALF_LIFE_S;
        let samples = f64::from(self.samples.checked_shr(days).unwrap_or(0));
        (f64::from(self.ms), samples / (samples + half))
    }
}

/// What a network knows of a site.
#[derive(Clone, Copy, Debug, Default)]
struct ToSite {
    /// None where the site's region is 0.
    site: SiteKey,
    average: Average,
    /// When the network last spoke for its groups about this site; 0 = never.
    spoke_at_s: u32,
}

/// A map of bounded size; what was not written for the longest time makes room.
#[derive(Debug)]
struct Bounded<K, V> {
    map: BTreeMap<K, (u64, V)>,
    by_age: BTreeMap<u64, K>,
    tick: u64,
    most: usize,
}

impl<K: Ord + Copy, V: Default> Bounded<K, V> {
    fn new(most: usize) -> Self {
        Self { map: BTreeMap::new(), by_age: BTreeMap::new(), tick: 0, most: most.max(1) }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key).map(|(_, value)| value)
    }

    /// The value, which is now the youngest; a new one if there is none.
    fn touch(&mut self, key: K) -> &mut V {
        self.tick += 1;
        if self.map.len() >= self.most
            && !self.map.contains_key(&key)
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.map.remove(&oldest);
        }
        let (tick, value) = self.map.entry(key).or_default();
        self.by_age.remove(tick);
        *tick = self.tick;
        self.by_age.insert(self.tick, key);
        value
    }
}

/// What clients measured, for at most a fixed number of networks and groups; what was silent for the longest
/// time makes room.
#[derive(Debug)]
pub struct RttTable {
    networks: Bounded<NetworkPrefix, [ToSite; SITES_PER_NETWORK]>,
    groups: Bounded<GroupKey, Average>,
}

/// What is known of one client, looked up once per ranking.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    table: &'a RttTable,
    network: Option<&'a [ToSite; SITES_PER_NETWORK]>,
    whence: Whence,
    now_s: u32,
}

impl RttTable {
    /// Empty; remembers at most `networks_max` networks, see [`super::NETWORKS_MAX`], and [`GROUPS_MAX`] groups.
    pub fn new(networks_max: usize) -> Self {
        Self { networks: Bounded::new(networks_max), groups: Bounded::new(GROUPS_MAX) }
    }

    /// Networks that are remembered.
    pub fn len(&self) -> usize {
        self.networks.map.len()
    }

    /// Whether nothing was learned yet.
    pub fn is_empty(&self) -> bool {
        self.networks.map.is_empty()
    }

    /// Averages of countries and of providers that are remembered.
    pub fn groups(&self) -> usize {
        self.groups.map.len()
    }

    /// A client in `network` measured `ms` to `site`. Returns whether it was learned: values that are no
    /// round trip are not.
    pub fn learn(&mut self, now: Duration, network: NetworkPrefix, whence: Whence, site: SiteKey, ms: f64) -> bool {
        if !(ms > 0.0 && ms <= SAMPLE_MS_MAX) || site.region() == 0 {
            return false;
        }
        // 0 is "never".
        let now_s = seconds(now).max(1);
        let to = to_site(self.networks.touch(network), site);
        to.average.take(now_s, ms, NETWORK_SHARE);
        if to.spoke_at_s == 0 || now_s.saturating_sub(to.spoke_at_s) >= GROUP_EVERY_S {
            to.spoke_at_s = now_s;
            for group in whence.groups(site).into_iter().flatten() {
                self.groups.touch(group).take(now_s, ms, GROUP_SHARE);
            }
        }
        true
    }

    pub(super) fn known(&self, now: Duration, network: Option<NetworkPrefix>, whence: Whence) -> Known<'_> {
        let network = network.and_then(|n| self.networks.get(&n));
        Known { table: self, network, whence, now_s: seconds(now) }
    }
}

/// Good for 136 years of one clock.
fn seconds(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

/// A network's record of a site; a new one takes the place of an unused one, or of the one silent longest.
fn to_site(records: &mut [ToSite; SITES_PER_NETWORK], site: SiteKey) -> &mut ToSite {
    let at = records.iter().position(|r| r.site == site).unwrap_or_else(|| {
        let age = |i: &usize| (records[*i].site.region() != 0, records[*i].average.at_s);
        let at = (0..SITES_PER_NETWORK).min_by_key(age).unwrap_or(0);
        records[at] = ToSite { site, ..ToSite::default() };
        at
    });
    &mut records[at]
}

impl Known<'_> {
    /// Average and weight of the network's samples to a site.
    pub(super) fn by_network(&self, site: SiteKey) -> Option<(f64, f64)> {
        let record = self.network?.iter().find(|r| r.site == site)?;
        Some(record.average.weighed(self.now_s, NETWORK_HALF))
    }

    /// Average and weight of the samples of its provider's clients in its country.
    pub(super) fn by_provider(&self, site: SiteKey) -> Option<(f64, f64)> {
        let [_, key] = self.whence.groups(site);
        Some(self.table.groups.get(&key?)?.weighed(self.now_s, PROVIDER_HALF))
    }

    /// Average and weight of the country's samples to a site.
    pub(super) fn by_country(&self, site: SiteKey) -> Option<(f64, f64)> {
        let [key, _] = self.whence.groups(site);
        Some(self.table.groups.get(&key?)?.weighed(self.now_s, COUNTRY_HALF))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const AT_FIVE: Duration = Duration::from_secs(5);

    fn network(a: u8) -> NetworkPrefix {
        NetworkPrefix::of(std::net::IpAddr::from([8, 8, a, 1]))
    }

    fn site(region: u8) -> SiteKey {
        SiteKey::new(region, None)
    }

    fn german() -> Whence {
        Whence { country: Country::new("DE"), asn: None }
    }

    fn of_provider(asn: u32) -> Whence {
        Whence { asn: Some(asn), ..german() }
    }

    #[test]
    fn the_network_that_was_silent_longest_makes_room() {
        let mut table = RttTable::new(2);
        for a in [1, 2, 1, 3] {
            assert!(table.learn(AT_FIVE, network(a), Whence::default(), site(1), 20.0));
        }
        assert_eq!((table.len(), table.networks.by_age.len()), (2, 2));
        let known = |a| table.known(AT_FIVE, Some(network(a)), Whence::default()).by_network(site(1)).is_some();
        assert_eq!([1, 2, 3].map(known), [true, false, true]);
    }

    #[test]
    fn groups_are_bounded_too() {
        let mut table = RttTable { groups: Bounded::new(3), ..RttTable::new(100) };
        for asn in 1..=50 {
            table.learn(AT_FIVE, network(7), of_provider(asn), SiteKey::new(u8::try_from(asn).unwrap(), None), 20.0);
        }
        assert_eq!((table.groups(), table.groups.by_age.len()), (3, 3));
        assert!(table.known(AT_FIVE, None, of_provider(50)).by_provider(site(50)).is_some());
    }

    #[test]
    fn what_is_no_round_trip_is_not_learned() {
        let mut table = RttTable::new(10);
        for ms in [0.0, -1.0, f64::NAN, f64::INFINITY, 10_001.0] {
            assert!(!table.learn(Duration::ZERO, network(1), german(), site(1), ms), "{ms}");
        }
        assert!(!table.learn(Duration::ZERO, network(1), german(), site(0), 5.0), "no region has number 0");
        assert!(table.is_empty() && table.groups() == 0);
    }

    #[test]
    fn one_network_speaks_for_its_country_once_in_ten_seconds_about_each_site() {
        let mut table = RttTable::new(10);
        let now = Duration::from_secs(1);
        for _ in 0..100 {
            table.learn(now, network(1), german(), site(1), 9_000.0);
            table.learn(now, network(1), german(), site(2), 40.0);
        }
        for a in 2..6 {
            table.learn(now, network(a), german(), site(1), 20.0);
        }
        let known = table.known(now, None, german());
        let (ms, _) = known.by_country(site(1)).unwrap();
        assert!(ms < 2_000.0, "{ms}");
        let (ms, weight) = known.by_country(site(2)).unwrap();
        assert!((ms - 40.0).abs() < 0.01 && weight < 0.2, "the second site of a request is heard too, once");
    }

    #[test]
    fn providers_of_one_country_differ_and_are_told_apart() {
        let mut table = RttTable::new(1_000);
        for a in 0..50 {
            table.learn(AT_FIVE, network(a), of_provider(3320), site(1), 10.0);
            table.learn(AT_FIVE, network(100 + a), of_provider(6805), site(1), 80.0);
        }
        let of = |asn| table.known(AT_FIVE, None, of_provider(asn)).by_provider(site(1));
        assert!((of(3320).unwrap().0 - 10.0).abs() < 0.01 && (of(6805).unwrap().0 - 80.0).abs() < 0.01);
        assert!(of(3320).unwrap().1 > 0.9);
        assert!(of(1).is_none() && of(0).is_none());
        let (country, _) = table.known(AT_FIVE, None, german()).by_country(site(1)).unwrap();
        assert!((20.0..=70.0).contains(&country), "{country}");
    }

    #[test]
    fn more_samples_weigh_more_and_silence_less() {
        let mut table = RttTable::new(10);
        let weight = |t: &RttTable, day: u64| {
            let now = Duration::from_secs(day * u64::from(HALF_LIFE_S));
            t.known(now, Some(network(1)), Whence::default()).by_network(site(1)).unwrap().1
        };
        table.learn(Duration::ZERO, network(1), Whence::default(), site(1), 20.0);
        let one = weight(&table, 0);
        for _ in 0..20 {
            table.learn(Duration::ZERO, network(1), Whence::default(), site(1), 20.0);
        }
        assert!(one < 0.5 && weight(&table, 0) > 0.9);
        assert!(weight(&table, 3) < weight(&table, 0));
        assert!(weight(&table, 400) == 0.0, "a year of silence");
    }

    #[test]
    fn a_fifth_site_takes_the_place_of_the_one_silent_longest() {
        let mut table = RttTable::new(10);
        for (second, region) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 5)] {
            table.learn(Duration::from_secs(second), network(1), Whence::default(), site(region), 20.0);
        }
        let known = table.known(Duration::from_secs(6), Some(network(1)), Whence::default());
        let regions: Vec<u8> = (1..=5).filter(|r| known.by_network(site(*r)).is_some()).collect();
        assert_eq!(regions, [1, 3, 4, 5]);
    }
}
