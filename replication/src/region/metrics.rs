//! Figures of a region's core for Prometheus.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{RegionRoutes, Shared};

/// Reads the core's figures when it is asked.
pub(super) struct Collector(pub Arc<Shared>);

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.0.stats.get();
        let c = stats.counters;
        for (name, help, value) in [
            ("tern_core_messages_sequenced", "Messages sequenced in this region", c.sequenced),
            ("tern_core_sends_resent", "Sends answered from what was held", c.resends),
            ("tern_core_sends_refused", "Sends refused", c.refused),
            ("tern_core_entries_copied", "Entries taken from other regions", c.copies),
            ("tern_core_entries_duplicate", "Entries whose identity was held before", c.duplicates),
            ("tern_core_pushes", "Pushes handed to edges", c.pushes),
            (
                "tern_core_marks_returned",
                "Users whose read marks a region that lost some was told again",
                c.marks_returned,
            ),
            ("tern_core_signals", "Signals handed to edges", c.signals),
            ("tern_core_signals_dropped", "Signals dropped by a limit or under load", c.signals_dropped),
            ("tern_core_sends_shed", "Sends told to come back later, for load", c.shed),
            ("tern_core_fanouts_merged", "Fan-outs of large groups merged with a later one, under load", c.merged),
            ("tern_core_bodies_erased", "Bodies erased", c.erased),
            ("tern_core_entries_shipped", "Entries shipped to other regions", c.shipped),
            (
                "tern_refill_conversations_offered",
                "Conversations offered after a comparison of stores",
                c.refill_offers,
            ),
            ("tern_routes_resyncs", "Comparisons of routes that another core node had to make", stats.route_resyncs),
            ("tern_core_groups", "Groups of appends given to the store", stats.groups.0),
            ("tern_core_appends", "Appends in those groups", stats.groups.1),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let (conversations, users, connections, active) = stats.sizes;
        let links_up = stats.peers.values().filter(|p| p.connected).count();
        let backlog = stats.peers.values().map(|p| p.backlog).sum();
        let lag = stats.peers.values().map(|p| usize::try_from(p.lag.entries).unwrap_or(usize::MAX)).sum();
        for (name, help, value) in [
            ("tern_core_conversations_in_memory_count", "Conversations in memory", conversations),
            ("tern_core_users_in_memory_count", "Users in memory", users),
            ("tern_core_connections_count", "Client connections that the core knows", connections),
            ("tern_core_conversations_active_count", "Conversations with work left", active),
            ("tern_core_users_present_count", "Users present in this region", stats.routes.0),
            ("tern_core_users_elsewhere_count", "Users present in other regions", stats.routes.1),
            ("tern_refill_peers_count", "Peer regions that the store must still be compared with", stats.refilling.0),
            ("tern_eras_unsealed_count", "Former eras of this region that are not sealed yet", stats.eras.0),
            ("tern_eras_known_count", "Eras of all regions that are known", stats.eras.1),
            ("tern_link_peers_connected_count", "Peer regions that are linked", links_up),
            ("tern_link_unacked_entries_count", "Entries that a peer region has not acked, of 2000 logs at most", lag),
            ("tern_link_backlog_conversations_count", "Conversations that a peer region has not acked", backlog),
        ] {
            gauge(&mut encoder, name, help, value)?;
        }
        self.routes(&mut encoder)?;
        let silence = stats.peers.values().map(|p| p.silence.as_secs_f64()).fold(0.0, f64::max);
        let gauge = ConstGauge::new(silence);
        let help = "Longest silence of a peer region";
        gauge.encode(encoder.encode_descriptor("tern_link_silence_seconds", help, None, gauge.metric_type())?)
    }
}

impl Collector {
    /// What is known of the users of each other region.
    fn routes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Figure = fn(&RegionRoutes) -> u64;
        let stats = self.0.stats.get();
        let figures: [(&str, &str, Figure); 5] = [
            ("tern_routes_users_count", "Users present in another region", |r| r.users as u64),
            ("tern_routes_memory_bytes", "Memory that the routes of another region take", |r| r.bytes as u64),
            ("tern_routes_stale_count", "1: routes of another region are hints, nothing is heard of it", |r| {
                u64::from(r.is_stale)
            }),
            ("tern_routes_incomplete_count", "1: routes of another region are being compared", |r| {
                u64::from(!r.is_whole)
            }),
            ("tern_routes_shards_pulled_count", "256ths of the routes of another region told anew", |r| r.pulled),
        ];
        for (name, help, figure) in figures {
            let kind = prometheus_client::metrics::MetricType::Gauge;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (region, routes) in &stats.regions {
                let labels = [("region", region.to_string())];
                let value = i64::try_from(figure(routes)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}
