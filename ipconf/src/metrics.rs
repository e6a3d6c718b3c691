//! What dispatch tells Prometheus: `tern_dispatch_*`. No label names a client.

use std::time::Duration;

use hyper::Version;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tern_core::ranking::Standing;

use crate::geo::Unplaced;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A list.
    Ok,
    /// A health answer.
    Health,
    /// A request that is none.
    BadRequest,
    /// "What if" by someone who may not ask it.
    Forbidden,
    /// No such path.
    NotFound,
    /// Another method than the path has.
    MethodNotAllowed,
    /// The body did not come in time.
    Timeout,
    /// The body is too large.
    TooLarge,
    /// An answer in a form that there is not.
    NotAcceptable,
    /// A body in a form that there is not.
    UnsupportedType,
    /// One address asks too often.
    TooOften,
    /// There is no edge to list.
    NoEdges,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Health => "health",
            Self::BadRequest => "bad_request",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::NotAcceptable => "not_acceptable",
            Self::UnsupportedType => "unsupported_type",
            Self::TooOften => "too_often",
            Self::NoEdges => "no_edges",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FormLabel {
    http: &'static str,
    encoding: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegionLabel {
    region: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StandingLabel {
    standing: &'static str,
}

/// The counters of one dispatcher. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct DispatchMetrics {
    requests: Family<OutcomeLabel, Counter>,
    decide: Histogram,
    assigned: Family<RegionLabel, Counter>,
    unplaced: Family<ReasonLabel, Counter>,
    samples_learned: Counter,
    samples_ignored: Counter,
    networks: Gauge,
    groups: Gauge,
    edges: Family<StandingLabel, Gauge>,
    lists: Family<FormLabel, Counter>,
    paced: Gauge,
    geo_built: Gauge,
    geo_files: Family<OutcomeLabel, Counter>,
}

impl DispatchMetrics {
    /// Makes the metrics and lists them in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            // 1 us to 16 ms.
            decide: Histogram::new(exponential_buckets(1e-6, 4.0, 8)),
            assigned: Family::default(),
            unplaced: Family::default(),
            samples_learned: Counter::default(),
            samples_ignored: Counter::default(),
            networks: Gauge::default(),
            groups: Gauge::default(),
            edges: Family::default(),
            lists: Family::default(),
            paced: Gauge::default(),
            geo_built: Gauge::default(),
            geo_files: Family::default(),
        };
        let r = registry.sub_registry_with_prefix("tern_dispatch");
        r.register("requests", "HTTP requests by how they ended", metrics.requests.clone());
        r.register_with_unit(
            "decide",
            "Time from a parsed request to its list, GeoIP lookup and ranking included",
            Unit::Seconds,
            metrics.decide.clone(),
        );
        r.register("assigned", "Lists by the region of their first edge", metrics.assigned.clone());
        r.register("unplaced", "Clients whose address could not be placed, by reason", metrics.unplaced.clone());
        r.register(
            "rtt_samples_learned",
            "Round trips that clients told and that were learned",
            metrics.samples_learned.clone(),
        );
        r.register(
            "rtt_samples_ignored",
            "Round trips that were not learned: of unknown edges, or from addresses that are not public",
            metrics.samples_ignored.clone(),
        );
        r.register("learned_networks", "Networks whose round trips are remembered", metrics.networks.clone());
        r.register(
            "learned_groups",
            "Averages that are remembered of countries and of providers in them",
            metrics.groups.clone(),
        );
        r.register("lists", "Lists by version of HTTP and by encoding", metrics.lists.clone());
        r.register("paced_addresses", "Addresses that asked of late and are counted", metrics.paced.clone());
        r.register_with_unit(
            "geoip_built",
            "When the GeoIP data in use was built, by its own word, since 1970",
            Unit::Seconds,
            metrics.geo_built.clone(),
        );
        r.register(
            "geoip_files",
            "GeoIP files that were seen in place of the one in use, by what became of them",
            metrics.geo_files.clone(),
        );
        r.register(
            "edges",
            "Edges that are remembered, by whether and why they are listed or not",
            metrics.edges.clone(),
        );
        metrics
    }

    pub(crate) fn ended(&self, outcome: Outcome) {
        self.requests.get_or_create(&OutcomeLabel { outcome: outcome.name() }).inc();
    }

    pub(crate) fn decided(&self, took: Duration, region: &str) {
        self.decide.observe(took.as_secs_f64());
        let label = RegionLabel { region: region.to_owned() };
        self.assigned.get_or_create(&label).inc();
    }

    pub(crate) fn unplaced(&self, why: Unplaced) {
        self.unplaced.get_or_create(&ReasonLabel { reason: why.name() }).inc();
    }

    pub(crate) fn sampled(&self, learned: u64, ignored: u64) {
        self.samples_learned.inc_by(learned);
        self.samples_ignored.inc_by(ignored);
    }

    pub(crate) fn set_learned(&self, networks: usize, groups: usize) {
        self.networks.set(i64::try_from(networks).unwrap_or(i64::MAX));
        self.groups.set(i64::try_from(groups).unwrap_or(i64::MAX));
    }

    pub(crate) fn listed(&self, http: Version, encoding: &'static str) {
        let http = if http == Version::HTTP_2 { "2" } else { "1" };
        self.lists.get_or_create(&FormLabel { http, encoding }).inc();
    }

    pub(crate) fn set_paced(&self, addresses: usize) {
        self.paced.set(i64::try_from(addresses).unwrap_or(i64::MAX));
    }

    pub(crate) fn set_geo(&self, built_s: u64) {
        self.geo_built.set(i64::try_from(built_s).unwrap_or(i64::MAX));
    }

    pub(crate) fn geo_file(&self, outcome: &'static str) {
        self.geo_files.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn set_edges(&self, counts: &[(Standing, u32)]) {
        for (standing, count) in counts {
            self.edges.get_or_create(&StandingLabel { standing: standing.name() }).set(i64::from(*count));
        }
    }
}
