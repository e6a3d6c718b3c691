//! The decision: an address and what the client says, to a list of edges.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tern_core::ids::Region;
use tern_core::limits::ID_BYTES;
use tern_core::ranking::{
    Choice, Client, Edge, EdgeReport, Fleet, LIST_MAX, NETWORKS_MAX, NetworkPrefix, Placed, Policies, Policy, Position,
    Ranking, RttTable, SiteKey, Standing, Whence, Who, rank,
};
use tern_net::env::Env;
use tern_net::forwarded::Caller;
use tern_net::prefix::IpPrefix;

use crate::api::{
    ClientView, DispatchAnswer, DispatchRequest, EdgeView, ExplainView, HealthView, HeartbeatView, NetworkKind,
    TimeoutsView, Transport, UnlistedView,
};
use crate::geo::{Geo, Located, Unplaced};
use crate::limits::{EXCLUDED, RETRY_AFTER_S, RTT_MS_MAX, RTT_SAMPLES, TTL_JITTER_PERCENT, TTL_S, UNLISTED};
use crate::load::LoadTable;
use crate::metrics::DispatchMetrics;
use crate::pace::{Pace, PaceConfig};

/// Assumed for time-outs where nothing is known of the round trip: another continent.
const UNKNOWN_RTT_MS: f64 = 150.0;
/// QUIC: handshake and Hello are two round trips, and a lost first packet costs two more and quinn's initial
/// time-out; below a second a busy phone fails good attempts, above four a user has given up.
const QUIC_TIMEOUT: Timeout = Timeout { fixed_ms: 600.0, per_rtt: 5.0, least_ms: 1_000, most_ms: 4_000 };
/// TCP: SYN, TLS and Hello are three round trips, and a lost SYN costs a second.
const TCP_TIMEOUT: Timeout = Timeout { fixed_ms: 1_500.0, per_rtt: 6.0, least_ms: 2_000, most_ms: 8_000 };
/// Mobile networks wake up, and queue: their attempts get more time.
const CELLULAR_FACTOR: f64 = 1.5;

/// What a dispatcher is told once.
#[derive(Clone, Debug)]
pub struct DispatchConfig {
    /// The region it runs in: first choice of clients that can't be placed.
    pub region: Region,
    /// Its name.
    pub region_name: String,
    /// Where that is, if the operator says.
    pub region_position: Option<Position>,
    /// Whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpPrefix>,
    /// Who, besides this machine itself, may ask "what if this were my address".
    pub operators: Vec<IpPrefix>,
    /// Edges in a list, 1 to 5.
    pub list_max: usize,
    /// Seconds for which a list is good, before jitter.
    pub ttl_s: u32,
    /// Networks whose round trips are remembered.
    pub networks_max: usize,
    /// How often one address may ask.
    pub pace: PaceConfig,
    /// What the certificates of edges say: `{edge}` and `{region}` stand for their names.
    pub edge_tls_name: String,
    /// What clients are told.
    pub heartbeat: HeartbeatView,
}

/// What an operator may change while a dispatcher runs; see the fields of [`DispatchConfig`].
#[derive(Clone, Debug)]
pub struct DispatchTuning {
    /// Whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpPrefix>,
    /// Who may ask "what if".
    pub operators: Vec<IpPrefix>,
    /// What clients are told.
    pub heartbeat: HeartbeatView,
}

impl DispatchConfig {
    /// Defaults for a region: no proxies, no operators but this machine.
    pub fn new(region: Region, region_name: impl Into<String>) -> Self {
        Self {
            region,
            region_name: region_name.into(),
            region_position: None,
            trusted_proxies: Vec::new(),
            operators: Vec::new(),
            list_max: LIST_MAX,
            ttl_s: TTL_S,
            networks_max: NETWORKS_MAX,
            pace: PaceConfig::default(),
            edge_tls_name: "{edge}.{region}.tern.internal".to_owned(),
            heartbeat: HeartbeatView::default(),
        }
    }
}

/// Why there is no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DispatchError {
    /// The request is none. Nothing was learned from it.
    #[error("{0}")]
    BadRequest(String),
    /// Someone asked "what if" who may not.
    #[error(
        "\"as\" is answered only to this machine and to addresses that the operator has listed; {0} is neither. \
         Leave it out to be answered for your own address"
    )]
    WhatIfForbidden(IpAddr),
    /// One address asks too often. Nothing was learned from the request.
    #[error(
        "too many requests came from {address}; the next is answered in {retry_after_s} s. If this is a proxy of \
         yours, list it in dispatch.trusted_proxies, so that its clients are told apart"
    )]
    TooOften {
        /// Who asks.
        address: IpAddr,
        /// When to ask again.
        retry_after_s: u32,
    },
    /// Nothing can be listed now.
    #[error(
        "no edge can be listed now ({}). Ask again in {retry_after_s} s, or ask another region", counts(.unlisted)
    )]
    NoEdges {
        /// How many are known that are silent, draining, cordoned, full.
        unlisted: Vec<(Standing, u32)>,
        /// When to ask again.
        retry_after_s: u32,
    },
}

fn counts(unlisted: &[(Standing, u32)]) -> String {
    let known: Vec<String> =
        unlisted.iter().filter(|(_, n)| *n > 0).map(|(s, n)| format!("{n} {}", s.name())).collect();
    if known.is_empty() { "none has reported".to_owned() } else { known.join(", ") }
}

struct Timeout {
    fixed_ms: f64,
    per_rtt: f64,
    least_ms: u32,
    most_ms: u32,
}

impl Timeout {
    fn for_rtt(&self, rtt_ms: f64, factor: f64) -> u32 {
        let ms = ((self.fixed_ms + self.per_rtt * rtt_ms) * factor).clamp(self.least_ms.into(), self.most_ms.into());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped between two u32")]
        let ms = ms.round() as u32;
        ms
    }
}

/// Answers "where should I connect?". One per process; shared by reference.
pub struct Dispatch {
    env: Env,
    pub(crate) config: DispatchConfig,
    tuning: ArcSwap<DispatchTuning>,
    geo: ArcSwap<Geo>,
    policies: ArcSwap<Policies>,
    loads: Arc<LoadTable>,
    learned: Mutex<RttTable>,
    pace: Mutex<Pace>,
    /// Second of the clock at which the gauges were last set.
    gauges_at_s: AtomicU64,
    pub(crate) metrics: DispatchMetrics,
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatch")
            .field("region", &self.config.region_name)
            .field("geo", &self.geo.load())
            .finish_non_exhaustive()
    }
}

impl Dispatch {
    /// Ready to answer; it lists what `loads` is told.
    pub fn new(
        env: Env,
        config: DispatchConfig,
        geo: Arc<Geo>,
        loads: Arc<LoadTable>,
        metrics: DispatchMetrics,
    ) -> Arc<Self> {
        let learned = Mutex::new(RttTable::new(config.networks_max));
        let pace = Mutex::new(Pace::new(config.pace));
        let gauges_at_s = AtomicU64::new(u64::MAX);
        let tuning = ArcSwap::from_pointee(DispatchTuning {
            trusted_proxies: config.trusted_proxies.clone(),
            operators: config.operators.clone(),
            heartbeat: config.heartbeat,
        });
        let geo = ArcSwap::new(geo);
        let policies = ArcSwap::default();
        Arc::new(Self { env, config, tuning, geo, policies, loads, learned, pace, gauges_at_s, metrics })
    }

    /// The database by which addresses are placed.
    pub fn geo(&self) -> Arc<Geo> {
        self.geo.load_full()
    }

    /// Places addresses by another database from now on.
    pub fn set_geo(&self, geo: Arc<Geo>) {
        self.geo.store(geo);
    }

    /// What operators want of every list from now on.
    pub fn set_policies(&self, policies: Policies) {
        self.policies.store(Arc::new(policies));
    }

    /// Places addresses by `new` if they are still placed by `old`; returns whether they were.
    pub(crate) fn swap_geo(&self, old: &Arc<Geo>, new: Arc<Geo>) -> bool {
        Arc::ptr_eq(&self.geo.compare_and_swap(old, new), old)
    }

    /// What can be changed while it runs, as it is now.
    pub fn tuning(&self) -> Arc<DispatchTuning> {
        self.tuning.load_full()
    }

    /// Changes it from the next request on.
    pub fn tune(&self, tuning: DispatchTuning) {
        self.tuning.store(Arc::new(tuning));
    }

    /// Counts a request of `caller`, or refuses it. This machine and operators may ask as often as they like:
    /// checks of health and measurements do.
    pub(crate) fn admit(&self, caller: Caller) -> Result<(), DispatchError> {
        if caller.address.is_loopback() || self.is_operator(caller) {
            return Ok(());
        }
        let taken = self.pace().take(caller.address, self.env.clock.now());
        taken.map_err(|wait| {
            // Some later and some at once: whoever waits here waits with others.
            let least = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
            let more = u32::try_from(self.env.rng.below(u64::from(RETRY_AFTER_S) + 1)).unwrap_or(0);
            DispatchError::TooOften { address: caller.address, retry_after_s: least.saturating_add(more) }
        })
    }

    /// The list for a client at `address`, which opened the connection itself. `request.as_address` is
    /// honoured for this machine and the configured operators.
    pub fn decide(&self, request: &DispatchRequest, address: IpAddr) -> Result<DispatchAnswer, DispatchError> {
        self.decide_for(request, Caller::direct(address))
    }

    /// The list for a caller as the proxies tell.
    pub fn decide_for(&self, request: &DispatchRequest, caller: Caller) -> Result<DispatchAnswer, DispatchError> {
        check(request)?;
        let address = match request.as_address {
            None => caller.address,
            Some(_) if !self.may_ask_what_if(caller) => return Err(DispatchError::WhatIfForbidden(caller.address)),
            Some(address) => address.to_canonical(),
        };
        let started = self.env.clock.now();
        if self.gauges_at_s.swap(started.as_secs(), Ordering::Relaxed) != started.as_secs() {
            self.refresh_metrics();
        }
        let located = self.geo.load().locate(address);
        if let Located::Unknown(why) = located {
            self.metrics.unplaced(why);
        }
        let what_if = request.as_address.is_some();

        let mut fleet = self.loads.fleet();
        let measured = self.measured(&fleet, request, located, what_if);
        let mut learned = self.learned();
        let network = located.is_public().then(|| NetworkPrefix::of(address));
        if !what_if {
            self.learn(&mut learned, request, &measured, network, located, started);
        }
        let policies = self.policies.load();
        // Who is told from others by nothing but an address keeps its region as long as it keeps that.
        let key = address.to_string();
        let who = Who { user: request.user.as_deref(), country: located.country(), key: key.as_bytes() };
        let placed = policies.place(&who, |region| fleet.lists(region, started));
        let client = Client {
            position: located.position(),
            country: located.country(),
            asn: located.asn(),
            network,
            measured: &measured,
            exclude: &request.exclude,
            placed,
        };
        let policy = Policy {
            list_max: self.config.list_max,
            home: self.config.region,
            home_position: self.config.region_position,
            count: !what_if,
        };
        let ranking = rank(&mut fleet, &learned, &client, &policy, started, || self.env.rng.u64());
        drop(learned);
        let edges = self.views(&fleet, &ranking, request, &placed);
        let explained = request.explain && self.may_ask_what_if(caller);
        let unlisted = if explained { unlisted(&fleet, &ranking, request, &placed, started) } else { Vec::new() };
        drop(fleet);

        let Some(first) = edges.first() else { return Err(self.no_edges(started)) };
        self.metrics.decided(self.env.clock.now().saturating_sub(started), &first.region);
        Ok(DispatchAnswer {
            ttl_s: self.ttl_s(),
            client: view_of(address, located),
            edges,
            heartbeat: self.tuning.load().heartbeat,
            unlisted,
        })
    }

    /// How many edges are listed, and how many are known but not.
    pub fn health(&self) -> HealthView {
        let counts = self.standings(self.env.clock.now());
        let of = |listed: bool| counts.iter().filter(|(s, _)| (*s == Standing::Listed) == listed).map(|(_, n)| n).sum();
        let edges_listed: u32 = of(true);
        HealthView {
            status: if edges_listed > 0 { "ok" } else { "no_edges" }.to_owned(),
            region: self.config.region_name.clone(),
            edges_listed,
            edges_unlisted: of(false),
        }
    }

    /// Sets the gauges to what is known now. Decisions do so once a second; while nobody asks, a caller may do
    /// it before metrics are read.
    pub fn refresh_metrics(&self) {
        self.metrics.set_edges(&self.standings(self.env.clock.now()));
        let (networks, groups) = {
            let learned = self.learned();
            (learned.len(), learned.groups())
        };
        self.metrics.set_learned(networks, groups);
        let paced = {
            let mut pace = self.pace();
            pace.sweep(self.env.clock.now());
            pace.len()
        };
        self.metrics.set_paced(paced);
        self.metrics.set_geo(self.geo.load().built_s());
    }

    /// Only who runs this deployment may see it with other eyes: from this machine, unless through a proxy
    /// (whose clients would all seem to be this machine), or from an operator's address.
    fn may_ask_what_if(&self, caller: Caller) -> bool {
        let local = caller.direct && caller.address.is_loopback();
        local || self.is_operator(caller)
    }

    fn is_operator(&self, caller: Caller) -> bool {
        caller.trusted && self.tuning.load().operators.iter().any(|p| p.contains(caller.address))
    }

    /// The client's samples by site. A loopback client measures nothing that is far, and "what if" no one.
    fn measured(
        &self,
        fleet: &Fleet,
        request: &DispatchRequest,
        located: Located,
        what_if: bool,
    ) -> Vec<(SiteKey, f64)> {
        if what_if || located == Located::Unknown(Unplaced::Loopback) {
            return Vec::new();
        }
        request.rtt.iter().filter_map(|s| Some((fleet.site_of(&s.edge)?, s.ms))).collect()
    }

    fn learn(
        &self,
        learned: &mut RttTable,
        request: &DispatchRequest,
        measured: &[(SiteKey, f64)],
        network: Option<NetworkPrefix>,
        located: Located,
        now: Duration,
    ) {
        let mut taken = 0;
        if let Some(network) = network {
            let whence = Whence { country: located.country(), asn: located.asn() };
            for (site, ms) in measured {
                taken += u64::from(learned.learn(now, network, whence, *site, *ms));
            }
        }
        self.metrics.sampled(taken, request.rtt.len() as u64 - taken);
    }

    fn views(&self, fleet: &Fleet, ranking: &Ranking, request: &DispatchRequest, placed: &Placed<'_>) -> Vec<EdgeView> {
        let factor = if request.network.kind == NetworkKind::Cellular { CELLULAR_FACTOR } else { 1.0 };
        let ranked = (1..).zip(ranking.iter());
        ranked
            .map(|(rank, choice)| {
                let edge = &fleet.edges()[choice.edge];
                let name = self.tls_name(edge.report());
                let explain = request.explain.then(|| placed.explain(edge.report().region));
                edge_view(edge, name, choice, rank, factor, explain)
            })
            .collect()
    }

    fn tls_name(&self, edge: &EdgeReport) -> String {
        self.config.edge_tls_name.replace("{edge}", &edge.edge).replace("{region}", &edge.region_name)
    }

    fn ttl_s(&self) -> u32 {
        let jitter = self.config.ttl_s / 100 * TTL_JITTER_PERCENT;
        let by = u32::try_from(self.env.rng.below(u64::from(jitter) * 2 + 1)).unwrap_or(jitter);
        (self.config.ttl_s - jitter).saturating_add(by).max(1)
    }

    fn no_edges(&self, now: Duration) -> DispatchError {
        let mut unlisted = self.standings(now);
        unlisted.retain(|(s, _)| *s != Standing::Listed);
        let more = u32::try_from(self.env.rng.below(u64::from(RETRY_AFTER_S) + 1)).unwrap_or(0);
        DispatchError::NoEdges { unlisted, retry_after_s: RETRY_AFTER_S + more }
    }

    fn standings(&self, now: Duration) -> Vec<(Standing, u32)> {
        let mut counts = Standing::ALL.map(|s| (s, 0)).to_vec();
        for edge in self.loads.fleet().edges() {
            let standing = edge.standing(now);
            if let Some((_, n)) = counts.iter_mut().find(|(s, _)| *s == standing) {
                *n += 1;
            }
        }
        counts
    }

    fn learned(&self) -> MutexGuard<'_, RttTable> {
        // Averages: a panic in between can't have made them wrong.
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        // Counts: a panic in between can have lost one.
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(request: &DispatchRequest) -> Result<(), DispatchError> {
    let bad = |what: String| Err(DispatchError::BadRequest(what));
    if request.rtt.len() > RTT_SAMPLES {
        return bad(format!("rtt has {} samples; at most {RTT_SAMPLES} are taken", request.rtt.len()));
    }
    if request.exclude.len() > EXCLUDED {
        return bad(format!("exclude has {} edges; at most {EXCLUDED} are taken", request.exclude.len()));
    }
    let ids = request.rtt.iter().map(|s| &s.edge).chain(&request.exclude);
    if let Some(id) = ids.into_iter().find(|id| id.is_empty() || id.len() > ID_BYTES) {
        return bad(format!("an edge id has {} bytes; 1 to {ID_BYTES} are allowed", id.len()));
    }
    if let Some(user) = request.user.as_ref().filter(|user| user.is_empty() || user.len() > ID_BYTES) {
        return bad(format!("user has {} bytes; 1 to {ID_BYTES} are allowed", user.len()));
    }
    if let Some(sample) = request.rtt.iter().find(|s| !(0.0..=RTT_MS_MAX).contains(&s.ms)) {
        return bad(format!("rtt to {:?} is {} ms; 0 to {RTT_MS_MAX} are allowed", sample.edge, sample.ms));
    }
    Ok(())
}

fn view_of(address: IpAddr, located: Located) -> ClientView {
    let unplaced = match located {
        Located::Unknown(why) => Some(why.name().to_owned()),
        Located::At { .. } => None,
    };
    ClientView { address, country: located.country().map(|c| c.to_string()), unplaced }
}

/// Edges that are known and not in the list, for another reason than its length.
fn unlisted(
    fleet: &Fleet,
    ranking: &Ranking,
    request: &DispatchRequest,
    placed: &Placed<'_>,
    now: Duration,
) -> Vec<UnlistedView> {
    let edges = fleet.edges().iter().enumerate().filter_map(|(at, edge)| {
        let report = edge.report();
        let reason = match edge.standing(now) {
            Standing::Listed if ranking.iter().any(|c| c.edge == at) => return None,
            Standing::Listed if !placed.allows(report.region) => "not_pinned",
            Standing::Listed if request.exclude.iter().any(|e| **e == *report.edge) => "excluded",
            Standing::Listed => return None,
            other => other.name(),
        };
        let (id, region) = (report.edge.to_string(), report.region_name.to_string());
        Some(UnlistedView { id, region, reason: reason.to_owned() })
    });
    edges.take(UNLISTED).collect()
}

/// `explain`: what policies have to say of it, if that was asked.
fn edge_view(
    edge: &Edge,
    tls_name: String,
    choice: &Choice,
    rank: u32,
    factor: f64,
    explain: Option<String>,
) -> EdgeView {
    let report = edge.report();
    let rtt_ms = choice.rtt_ms.unwrap_or(UNKNOWN_RTT_MS);
    EdgeView {
        id: report.edge.to_string(),
        region: report.region_name.to_string(),
        tls_name,
        addresses: report.addresses.clone(),
        transports: vec![Transport::Quic, Transport::Tcp, Transport::Ws, Transport::Poll],
        timeouts_ms: TimeoutsView {
            quic: QUIC_TIMEOUT.for_rtt(rtt_ms, factor),
            tcp: TCP_TIMEOUT.for_rtt(rtt_ms, factor),
        },
        rank,
        explain: explain.map(|policies| ExplainView {
            rtt_ms: choice.rtt_ms.map(|ms| rounded(ms, 10.0)),
            rtt_source: choice.source.name().to_owned(),
            load: rounded(choice.load, 1000.0),
            reason: if policies.is_empty() { choice.to_string() } else { format!("{choice}; {policies}") },
        }),
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}
