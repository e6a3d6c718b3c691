//! What a table in Redis counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct RedisMetrics {
    pub(crate) request_seconds: Histogram,
    pub(crate) failures: Counter,
    pub(crate) connects: Counter,
    pub(crate) redirects: Counter,
}

impl Default for RedisMetrics {
    fn default() -> Self {
        Self {
            // 0.1 ms (on the same machine) to 1.6 s (longer than a request may take).
            request_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 15)),
            failures: Counter::default(),
            connects: Counter::default(),
            redirects: Counter::default(),
        }
    }
}

impl RedisMetrics {
    /// Makes them part of what a registry shows. No labels.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "tern_route_table_request_seconds",
            "Time of a request to Redis that was answered",
            self.request_seconds.clone(),
        );
        for (name, help, counter) in [
            (
                "tern_route_table_request_failures",
                "Requests that Redis did not carry out, or not in time",
                &self.failures,
            ),
            ("tern_route_table_connects", "Connections made to servers of Redis", &self.connects),
            ("tern_route_table_redirects", "Requests that a server of a cluster sent elsewhere", &self.redirects),
        ] {
            registry.register(name, help, counter.clone());
        }
    }

    /// Connections made.
    pub fn connects(&self) -> u64 {
        self.connects.get()
    }
}
