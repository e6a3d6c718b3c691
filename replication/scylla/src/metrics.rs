//! What a Scylla store counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct ScyllaMetrics {
    pub(crate) append_seconds: Histogram,
    pub(crate) entries: Counter,
    pub(crate) entry_bytes: Counter,
    pub(crate) puts: Counter,
    pub(crate) erased_entries: Counter,
    pub(crate) requests: Counter,
    pub(crate) failures: Counter,
    pub(crate) conditional: Counter,
    pub(crate) refused: Counter,
    pub(crate) unclear: Counter,
    pub(crate) takeovers: Counter,
    pub(crate) late_inserts: Counter,
    pub(crate) damaged_logs: Gauge<u64, AtomicU64>,
}

impl Default for ScyllaMetrics {
    fn default() -> Self {
        Self {
            // 0.5 ms (one datacenter at rest) to 16 s (longer than an append may take).
            append_seconds: Histogram::new(exponential_buckets(0.000_5, 2.0, 16)),
            entries: Counter::default(),
            entry_bytes: Counter::default(),
            puts: Counter::default(),
            erased_entries: Counter::default(),
            requests: Counter::default(),
            failures: Counter::default(),
            conditional: Counter::default(),
            refused: Counter::default(),
            unclear: Counter::default(),
            takeovers: Counter::default(),
            late_inserts: Counter::default(),
            damaged_logs: Gauge::default(),
        }
    }
}

impl ScyllaMetrics {
    /// Makes them part of what a registry shows. No labels.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "tern_store_append_seconds",
            "Time of a group of appends, from the call to its answer",
            self.append_seconds.clone(),
        );
        for (name, help, counter) in [
            ("tern_store_entries", "Entries decided", &self.entries),
            ("tern_store_entry_bytes", "Bytes of them in stored form", &self.entry_bytes),
            ("tern_store_puts", "Rows, todo rows, checkpoints and named values put", &self.puts),
            ("tern_store_erased_entries", "Entries whose body was erased", &self.erased_entries),
            ("tern_store_requests", "Requests sent to the database", &self.requests),
            ("tern_store_request_failures", "Requests that it did not carry out, or not in time", &self.failures),
            ("tern_store_conditional_writes", "Conditional writes", &self.conditional),
            ("tern_store_conditional_writes_refused", "Those whose condition did not hold", &self.refused),
            ("tern_store_conditional_writes_unclear", "Those of which nothing was heard", &self.unclear),
            ("tern_store_takeovers", "Conversations taken over from an earlier start or process", &self.takeovers),
            (
                "tern_store_late_inserts",
                "Batches that were decided, and inserted in the timeline only later",
                &self.late_inserts,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register("tern_store_damaged_logs_count", "Logs that are refused", self.damaged_logs.clone());
    }

    /// Conditional writes of which nothing was heard.
    pub fn unclear(&self) -> u64 {
        self.unclear.get()
    }

    /// Conversations taken over.
    pub fn takeovers(&self) -> u64 {
        self.takeovers.get()
    }
}
