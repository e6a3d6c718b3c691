//! The choice itself: estimates, the band, the wheel, the reserve.
//!
//! Among edges that are equally near, who is first? What one dispatcher hands out within a load period must be
//! in proportion to the edges' room, closely: drawn by chance alone, a small edge is a third above or below
//! its share. And what several dispatchers hand out, each of them asked seldom, must be so too: counting alone
//! begins with the largest edge everywhere.
//!
//! The rule: the edges of a band lie on a wheel, each with an arc as long as its room. The wheel starts
//! anywhere and turns by the golden section of itself for every client; who lies under the mark is first.
//! Wherever it started, each single turn is a fair draw by room, so that dispatchers who know nothing of each
//! other agree on nothing; and the marks of `n` turns are spread so evenly (an additive recurrence, of all
//! the one with the lowest discrepancy) that an arc has met its share of them to within one or two. Each band
//! has a wheel of its own, or the turns of one would be a random selection for the other. The ranks after the
//! first are drawn by chance, by room: of them few are ever connected to.
//!
//! Why not simpler: "two random choices, the less loaded one" can't give an edge more than twice its part of
//! the draws, so a large one among many small ones never fills; and it fills the emptiest edge first, which
//! every dispatcher sees as emptiest: the herd again. Counting what each edge got and taking the one that lags
//! most favours small edges wherever few clients come, because they can't have had half a client.

use std::fmt;
use std::time::Duration;

use super::fleet::{Fleet, Site, SiteKey, Standing};
use super::policies::Placed;
use super::position::{Country, Direction, NetworkPrefix, Position};
use super::rtt::{Known, RttTable, Whence};
use super::{BAND_MS, LIST_MAX};
use crate::ids::Region;

/// Round trip of a neighbour: access network and hand-overs.
const NEAR_MS: f64 = 5.0;
/// Light in glass needs 1 ms for 100 km and back; real paths are 1.5 to 2 times as long.
const MS_PER_KM: f64 = 1.75 / 100.0;
/// The band is at least this part of the best estimate.
const BAND_SHARE: f64 = 0.2;
/// Order of an edge of which nothing is known: as if it were an ocean away.
const UNKNOWN_MS: f64 = 150.0;
/// For clients of unknown place, order of the dispatching region: only what was measured to be near is nearer.
const HOME_MS: f64 = 20.0;
/// For them, other regions are so much farther than by their distance from the dispatching one: above the band.
const AWAY_MS: f64 = 40.0;
/// Wheels that are kept, 16 bytes each: some ten times as many as a deployment has bands.
const WHEELS: usize = 1024;
/// The golden section of a whole turn, which is 2^64.
const TURN: u64 = 0x9e37_79b9_7f4a_7c15;
/// The rank, counted from 0, that leaves the region: with the third attempt of a race, a second or so in.
const RESERVE_AT: usize = 2;

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Client<'a> {
    /// Where it is, as far as its address tells.
    pub position: Option<Position>,
    /// Its country, likewise.
    pub country: Option<Country>,
    /// Number of its provider's autonomous system, if known.
    pub asn: Option<u32>,
    /// Its network; None = what was learned of networks does not apply (loopback, private addresses).
    pub network: Option<NetworkPrefix>,
    /// What it measured itself, in milliseconds; the lowest of a site counts.
    pub measured: &'a [(SiteKey, f64)],
    /// Names of edges that it does not want. If no other is left, they are listed all the same.
    pub exclude: &'a [String],
    /// What operators want of it.
    pub placed: Placed<'a>,
}

/// How to rank.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// At most so many edges, 1 to [`LIST_MAX`].
    pub list_max: usize,
    /// The dispatching region: first for clients of unknown place.
    pub home: Region,
    /// Where that is, if known.
    pub home_position: Option<Position>,
    /// Whether the first rank counts as a connection on its way. Not for questions of the kind "what if".
    pub count: bool,
}

/// On what an estimate rests for the most part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RttSource {
    /// Measured by the client or its network.
    Measured,
    /// Measured by others of its provider in its country.
    Provider,
    /// Measured by others of its country.
    Country,
    /// Computed from the distance.
    Distance,
    /// Nothing: the place of client or edge is not known.
    Unknown,
}

impl RttSource {
    /// As it stands in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Provider => "provider",
            Self::Country => "country",
            Self::Distance => "distance",
            Self::Unknown => "unknown",
        }
    }
}

/// Why an edge has its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// As near as the nearest: drawn by room.
    Near,
    /// Farther than those, and next.
    Farther,
    /// The nearest outside the region of all before it.
    OtherRegion,
    /// The nearest outside the failure domain of all before it.
    OtherDomain,
}

/// One rank. Its `Display` is the reason for it: "12 ms by distance, load 0.10".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Index into [`Fleet::edges`], until the fleet changes.
    pub edge: usize,
    /// Estimated round trip in milliseconds; None = nothing is known.
    pub rtt_ms: Option<f64>,
    /// On what that rests.
    pub source: RttSource,
    /// Connections, including those on their way, over capacity.
    pub load: f64,
    /// Why here.
    pub why: Why,
    /// The edge is new and does not get its full share yet.
    pub new: bool,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.rtt_ms, self.source) {
            (Some(ms), RttSource::Measured) => write!(f, "{ms:.0} ms measured")?,
            (Some(ms), RttSource::Provider) => write!(f, "{ms:.0} ms measured at its provider")?,
            (Some(ms), RttSource::Country) => write!(f, "{ms:.0} ms measured in its country")?,
            (Some(ms), _) => write!(f, "{ms:.0} ms by distance")?,
            (None, _) => f.write_str("round trip unknown")?,
        }
        write!(f, ", load {:.2}", self.load)?;
        if self.new {
            f.write_str(", new")?;
        }
        f.write_str(match self.why {
            Why::Near => "",
            Why::Farther => ", farther",
            Why::OtherRegion => ", in case the region fails",
            Why::OtherDomain => ", in case the failure domain fails",
        })
    }
}

/// The ranked edges, best first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ranking {
    choices: [Option<Choice>; LIST_MAX],
    len: usize,
}

impl Ranking {
    /// In order of rank.
    pub fn iter(&self) -> impl Iterator<Item = &Choice> {
        self.choices.iter().flatten()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no edge could be listed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, choice: Choice) {
        if let Some(slot) = self.choices.get_mut(self.len) {
            *slot = Some(choice);
            self.len += 1;
        }
    }
}

/// Buffers that a ranking needs, kept so that it allocates nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    estimates: Vec<Estimate>,
    candidates: Vec<Candidate>,
    /// Where the wheels stand, by a hash of their edges; None = not started. Two bands that meet in one place
    /// are shared out less evenly, and no less fairly.
    wheels: Vec<Option<u64>>,
}

#[derive(Clone, Copy, Debug)]
struct Estimate {
    ms: Option<f64>,
    source: RttSource,
    by_distance: Option<f64>,
    /// By what edges are ordered; = `ms` where that is known.
    order_ms: f64,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    edge: usize,
    region: Region,
    domain: usize,
    site: usize,
    tier: Tier,
    order_ms: f64,
    room: f64,
}

/// What comes first whatever the estimates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Wanted,
    /// Outside of the region that a share gives to the client.
    AfterShare,
    /// Of a region of weight 0.
    Unwanted,
}

/// Who is as good as the best.
#[derive(Clone, Copy, Debug)]
struct Band {
    tier: Tier,
    up_to_ms: f64,
}

impl Band {
    fn has(&self, candidate: &Candidate) -> bool {
        candidate.tier == self.tier && candidate.order_ms <= self.up_to_ms
    }
}

/// Ranks the edges of `fleet` for `client`. `random` gives uniformly distributed numbers; one is drawn per
/// ranking. Equal arguments give equal answers.
pub fn rank(
    fleet: &mut Fleet,
    learned: &RttTable,
    client: &Client<'_>,
    policy: &Policy,
    now: Duration,
    mut random: impl FnMut() -> u64,
) -> Ranking {
    let mut scratch = std::mem::take(&mut fleet.scratch);
    estimate(fleet.sites(), learned, client, policy, now, &mut scratch.estimates);
    gather(fleet, &mut scratch, now, client.exclude, &client.placed);
    if scratch.candidates.is_empty() && !client.exclude.is_empty() {
        gather(fleet, &mut scratch, now, &[], &client.placed);
    }
    let ranking = draw(fleet, &mut scratch, policy, now, random());
    fleet.scratch = scratch;
    if policy.count
        && let Some(first) = ranking.iter().next()
    {
        fleet.assign(first.edge);
    }
    ranking
}

/// Estimates for every site.
fn estimate(
    sites: &[Site],
    learned: &RttTable,
    client: &Client<'_>,
    policy: &Policy,
    now: Duration,
    out: &mut Vec<Estimate>,
) {
    let whence = Whence { country: client.country, asn: client.asn };
    let known = learned.known(now, client.network, whence);
    let from = client.position.map(Position::direction);
    let home = policy.home_position.map(Position::direction);
    out.clear();
    out.extend(sites.iter().map(|site| {
        let by_distance = distance_ms(from, site);
        let (ms, source) = evidence(site, &known, by_distance, client.measured);
        let order_ms = ms.unwrap_or_else(|| match from {
            Some(_) => UNKNOWN_MS,
            None if site.key.region() == policy.home => HOME_MS,
            None => AWAY_MS + distance_ms(home, site).unwrap_or(UNKNOWN_MS),
        });
        Estimate { ms, source, by_distance, order_ms }
    }));
    add_access(out);
}

/// What was measured holds the client's own access network too, which distances do not. Where measurements
/// exceed their distances, the least excess is that of the access network, and belongs to every estimate by
/// distance: or a client on a bad network would be sent to whatever region it has not measured yet.
fn add_access(estimates: &mut [Estimate]) {
    let measured = |e: &&Estimate| matches!(e.source, RttSource::Measured | RttSource::Provider | RttSource::Country);
    let excess = estimates.iter().filter(measured).filter_map(|e| Some(e.ms? - e.by_distance?));
    let access_ms = excess.fold(f64::INFINITY, f64::min);
    if access_ms <= 0.0 || access_ms.is_infinite() {
        return;
    }
    for estimate in estimates.iter_mut().filter(|e| e.source == RttSource::Distance) {
        estimate.ms = estimate.ms.map(|ms| ms + access_ms);
        estimate.order_ms += access_ms;
    }
}

fn distance_ms(from: Option<Direction>, site: &Site) -> Option<f64> {
    Some(NEAR_MS + from?.distance_km(site.direction?) * MS_PER_KM)
}

/// Blends from the least to the most telling.
fn evidence(
    site: &Site,
    known: &Known<'_>,
    by_distance: Option<f64>,
    measured: &[(SiteKey, f64)],
) -> (Option<f64>, RttSource) {
    let mut ms = by_distance;
    let mut source = if ms.is_some() { RttSource::Distance } else { RttSource::Unknown };
    let mut blend = |value: f64, weight: f64, of: RttSource| {
        // Against nothing, the weakest evidence is all there is.
        if weight > 0.0 {
            ms = Some(ms.map_or(value, |before| before + (value - before) * weight));
            if weight >= 0.5 || source == RttSource::Unknown {
                source = of;
            }
        }
    };
    if let Some((average, weight)) = known.by_country(site.key) {
        blend(average, weight, RttSource::Country);
    }
    if let Some((average, weight)) = known.by_provider(site.key) {
        blend(average, weight, RttSource::Provider);
    }
    if let Some((average, weight)) = known.by_network(site.key) {
        blend(average, weight, RttSource::Measured);
    }
    let own = measured.iter().filter(|(key, _)| *key == site.key).map(|(_, ms)| *ms);
    // What the client itself measured needs no company.
    match own.min_by(f64::total_cmp) {
        Some(lowest) => (Some(lowest), RttSource::Measured),
        None => (ms, source),
    }
}

/// Edges that may be listed.
fn gather(fleet: &Fleet, scratch: &mut Scratch, now: Duration, exclude: &[String], placed: &Placed<'_>) {
    scratch.candidates.clear();
    for (at, edge) in fleet.edges().iter().enumerate() {
        let report = edge.report();
        if edge.standing(now) != Standing::Listed
            || exclude.iter().any(|e| **e == *report.edge)
            || !placed.allows(report.region)
        {
            continue;
        }
        let weight = placed.weight(report.region);
        let tier = match placed.first() {
            _ if weight == 0.0 => Tier::Unwanted,
            Some(first) if first != report.region => Tier::AfterShare,
            _ => Tier::Wanted,
        };
        scratch.candidates.push(Candidate {
            edge: at,
            region: report.region,
            domain: edge.domain,
            site: edge.site,
            tier,
            order_ms: scratch.estimates[edge.site].order_ms,
            room: edge.room(now) * if weight == 0.0 { 1.0 } else { weight },
        });
    }
}

/// Draws rank by rank.
fn draw(fleet: &Fleet, scratch: &mut Scratch, policy: &Policy, now: Duration, seed: u64) -> Ranking {
    let limit = policy.list_max.clamp(1, LIST_MAX);
    let mut random = SplitMix(seed);
    let mut ranking = Ranking::default();
    let nearest = band_of(&scratch.candidates, |_| true);
    // Region and domain of all ranks so far, while they are one.
    let (mut region, mut domain) = (None, None);
    while ranking.len() < limit && !scratch.candidates.is_empty() {
        let reserve = !ranking.is_empty() && ranking.len() == RESERVE_AT.min(limit - 1);
        let rest = &scratch.candidates;
        let pool = if reserve && region.is_some() && rest.iter().any(|c| Some(c.region) != region) {
            Some(Why::OtherRegion)
        } else if reserve && domain.is_some() && rest.iter().any(|c| Some(c.domain) != domain) {
            Some(Why::OtherDomain)
        } else {
            None
        };
        let (of_region, of_domain) = (region, domain);
        let in_pool = |c: &Candidate| match pool {
            Some(Why::OtherRegion) => Some(c.region) != of_region,
            Some(_) => Some(c.domain) != of_domain,
            None => true,
        };
        let band = band_of(rest, in_pool);
        let in_band = |c: &Candidate| in_pool(c) && band.has(c);
        let mark = match ranking.is_empty() && policy.count {
            true => turn(&mut scratch.wheels, rest.iter().filter(|c| in_band(c)), &mut random),
            false => random.next(),
        };
        let Some(at) = under(mark, rest, in_band) else { break };
        let chosen = scratch.candidates.swap_remove(at);
        if ranking.is_empty() {
            (region, domain) = (Some(chosen.region), Some(chosen.domain));
        }
        region = region.filter(|r| *r == chosen.region);
        domain = domain.filter(|d| *d == chosen.domain);
        let near = if nearest.has(&chosen) { Why::Near } else { Why::Farther };
        let estimate = scratch.estimates[chosen.site];
        let edge = &fleet.edges()[chosen.edge];
        ranking.push(Choice {
            edge: chosen.edge,
            rtt_ms: estimate.ms,
            source: estimate.source,
            load: edge.load(),
            why: pool.unwrap_or(near),
            new: edge.is_new(now),
        });
    }
    ranking
}

/// The band of the best of those in the pool.
fn band_of(candidates: &[Candidate], in_pool: impl Fn(&Candidate) -> bool) -> Band {
    let pool = || candidates.iter().filter(|c| in_pool(c));
    let tier = pool().map(|c| c.tier).min().unwrap_or(Tier::Wanted);
    let best = pool().filter(|c| c.tier == tier).map(|c| c.order_ms).fold(f64::INFINITY, f64::min);
    Band { tier, up_to_ms: best + BAND_MS.max(best * BAND_SHARE) }
}

/// Turns the wheel of these edges and returns where its mark is now.
fn turn<'a>(wheels: &mut Vec<Option<u64>>, band: impl Iterator<Item = &'a Candidate>, random: &mut SplitMix) -> u64 {
    // FNV-1a over the edges' places in the fleet.
    let hash = band.fold(0xcbf2_9ce4_8422_2325, |h: u64, c| (h ^ c.edge as u64).wrapping_mul(0x100_0000_01b3));
    wheels.resize(WHEELS, None);
    let at = usize::try_from(hash >> 32).unwrap_or(0) % WHEELS;
    let start = wheels[at].unwrap_or_else(|| random.next());
    wheels[at] = Some(start.wrapping_add(TURN));
    start
}

/// The index of the one of the band whose arc is under the mark; 2^64 is a whole turn.
fn under(mark: u64, candidates: &[Candidate], in_band: impl Fn(&Candidate) -> bool) -> Option<usize> {
    let band = || candidates.iter().enumerate().filter(|(_, c)| in_band(c));
    let whole: f64 = band().map(|(_, c)| c.room).sum();
    let mut rest = mark as f64 / 18_446_744_073_709_551_616.0 * whole;
    let mut last = None;
    for (at, candidate) in band() {
        last = Some(at);
        rest -= candidate.room;
        if rest < 0.0 {
            break;
        }
    }
    // Past the end by an error of rounding is the last one.
    last
}

/// A stream of random numbers from one (Steele, Lea, Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
