//! What an embedded store counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    pub(super) commit_seconds: Histogram,
    pub(super) group_commands: Histogram,
    pub(super) entries: Counter,
    pub(super) entry_bytes: Counter,
    pub(super) puts: Counter,
    pub(super) erased_entries: Counter,
    pub(super) purges: Counter,
    pub(super) backups: Counter,
    pub(super) backup_bytes: Counter,
    pub(super) refused: Counter,
    pub(super) commits: Counter,
    pub(super) syncs: Counter,
    pub(super) disk_free_bytes: Gauge<u64, AtomicU64>,
    pub(super) disk_used_bytes: Gauge<u64, AtomicU64>,
    pub(super) damaged_logs: Gauge<u64, AtomicU64>,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            // 50 us (a fast disk) to 1.6 s (one that is stalling).
            commit_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            // 1 to 16,384 commands in one commit.
            group_commands: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            entries: Counter::default(),
            entry_bytes: Counter::default(),
            puts: Counter::default(),
            erased_entries: Counter::default(),
            purges: Counter::default(),
            backups: Counter::default(),
            backup_bytes: Counter::default(),
            refused: Counter::default(),
            commits: Counter::default(),
            syncs: Counter::default(),
            disk_free_bytes: Gauge::default(),
            disk_used_bytes: Gauge::default(),
            damaged_logs: Gauge::default(),
        }
    }
}

impl StoreMetrics {
    /// Makes them part of what a registry shows. No labels.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "tern_store_commit_seconds",
            "Time from the start of a group's commit until it is durable",
            self.commit_seconds.clone(),
        );
        registry.register(
            "tern_store_group_commands",
            "Appends and puts that were committed together",
            self.group_commands.clone(),
        );
        registry.register("tern_store_entries", "Entries decided", self.entries.clone());
        registry.register("tern_store_entry_bytes", "Bytes of them in stored form", self.entry_bytes.clone());
        registry.register("tern_store_puts", "Rows, todo rows, checkpoints and named values put", self.puts.clone());
        registry.register("tern_store_erased_entries", "Entries whose body was erased", self.erased_entries.clone());
        registry.register(
            "tern_store_purges",
            "Times that the entries were rewritten so that no file holds erased bodies",
            self.purges.clone(),
        );
        registry.register("tern_store_backups", "Backups and lists of erasures written", self.backups.clone());
        registry.register("tern_store_backup_bytes", "Bytes of them", self.backup_bytes.clone());
        registry.register("tern_store_refused_appends", "Appends of which nothing was written", self.refused.clone());
        registry.register("tern_store_commits", "Groups committed", self.commits.clone());
        registry.register("tern_store_syncs", "Forced writes", self.syncs.clone());
        registry.register(
            "tern_store_disk_free_bytes",
            "Free bytes on the store's disk, as last asked for",
            self.disk_free_bytes.clone(),
        );
        registry.register(
            "tern_store_disk_used_bytes",
            "Bytes that the store takes on its disk, journals included, as last asked for",
            self.disk_used_bytes.clone(),
        );
        registry.register("tern_store_damaged_logs", "Logs that are refused", self.damaged_logs.clone());
    }

    /// Entries decided since the store was opened.
    pub fn entries(&self) -> u64 {
        self.entries.get()
    }

    /// Forced writes since the store was opened.
    pub fn syncs(&self) -> u64 {
        self.syncs.get()
    }

    /// Commits of groups since the store was opened.
    pub fn commits(&self) -> u64 {
        self.commits.get()
    }
}
