//! What an archive counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct ArchiveMetrics {
    pub(crate) moved_buckets: Counter,
    pub(crate) moved_entries: Counter,
    pub(crate) moved_bytes: Counter,
    pub(crate) rewritten: Counter,
    pub(crate) orphans: Counter,
    pub(crate) failed_passes: Counter,
    pub(crate) reads: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) cached_reads: Counter,
    pub(crate) failed_reads: Counter,
    pub(crate) damaged_reads: Counter,
    pub(crate) read_seconds: Histogram,
    pub(crate) cache_bytes: Gauge<u64, AtomicU64>,
    pub(crate) held_bytes: Gauge<u64, AtomicU64>,
    pub(crate) unwritten_erasures: Gauge<u64, AtomicU64>,
}

impl Default for ArchiveMetrics {
    fn default() -> Self {
        Self {
            moved_buckets: Counter::default(),
            moved_entries: Counter::default(),
            moved_bytes: Counter::default(),
            rewritten: Counter::default(),
            orphans: Counter::default(),
            failed_passes: Counter::default(),
            reads: Counter::default(),
            read_bytes: Counter::default(),
            cached_reads: Counter::default(),
            failed_reads: Counter::default(),
            damaged_reads: Counter::default(),
            // 1 ms (a file) to 33 s (an object store that is stalling).
            read_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            cache_bytes: Gauge::default(),
            held_bytes: Gauge::default(),
            unwritten_erasures: Gauge::default(),
        }
    }
}

impl ArchiveMetrics {
    /// Makes them part of what a registry shows. No labels.
    pub fn register(&self, registry: &mut Registry) {
        let counters = [
            ("tern_archive_moved_buckets", "Buckets of logs that were moved to the archive", &self.moved_buckets),
            ("tern_archive_moved_entries", "Entries that were moved to the archive", &self.moved_entries),
            ("tern_archive_moved_bytes", "Bytes of objects that were written for them", &self.moved_bytes),
            (
                "tern_archive_rewritten_objects",
                "Objects that were written anew, for an erasure or by a restored store",
                &self.rewritten,
            ),
            ("tern_archive_deleted_orphans", "Objects that no mark named and that were deleted", &self.orphans),
            ("tern_archive_failed_passes", "Passes of tiering that could not do all they had to", &self.failed_passes),
            ("tern_archive_reads", "Objects that were read", &self.reads),
            ("tern_archive_read_bytes", "Bytes of objects that were read", &self.read_bytes),
            ("tern_archive_cached_reads", "Reads of old entries that the cache answered", &self.cached_reads),
            ("tern_archive_failed_reads", "Reads that the archive did not answer, or not in time", &self.failed_reads),
            ("tern_archive_damaged_reads", "Objects that are missing, or not what was written", &self.damaged_reads),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "tern_archive_read_seconds",
            "How long the archive took to answer a read",
            self.read_seconds.clone(),
        );
        let gauges = [
            ("tern_archive_cache_bytes", "Objects in the cache", &self.cache_bytes),
            ("tern_archive_held_bytes", "Objects that this store's marks name, as of the last pass", &self.held_bytes),
            (
                "tern_archive_unwritten_erasures_count",
                "Erased bodies that are still in objects, as of the last pass; nobody is given them",
                &self.unwritten_erasures,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
    }
}
