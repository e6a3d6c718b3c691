//! Figures of the gossip for Prometheus.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::driver::{Shared, Status};
use super::events::{Dropped, MemberState};

/// Reads what the driver last told.
#[derive(Debug)]
pub(crate) struct Collector(pub Arc<Shared>);

const STATES: [MemberState; 3] = [MemberState::Alive, MemberState::Suspect, MemberState::Down];

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let clusters: Vec<(String, Status)> =
            self.0.status().into_iter().map(|(region, status)| (region.to_string(), status)).collect();

        let help = "Members of the gossip of a region, this node included, by state";
        let mut family = encoder.encode_descriptor("tern_gossip_members_count", help, None, MetricType::Gauge)?;
        for (cluster, status) in &clusters {
            for state in STATES {
                let count = status.members.iter().filter(|member| member.state == state).count();
                let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&[("cluster", cluster.as_str()), ("state", state.name())])?)?;
            }
        }
        let help = "Datagrams of gossip that were not taken, by cause";
        let mut family = encoder.encode_descriptor("tern_gossip_datagrams_dropped", help, None, MetricType::Counter)?;
        for (cluster, status) in &clusters {
            for why in Dropped::ALL {
                let counter = ConstCounter::new(status.counters.dropped.get(&why).copied().unwrap_or(0));
                counter.encode(family.encode_family(&[("cluster", cluster.as_str()), ("cause", why.name())])?)?;
            }
        }
        let loads = |s: &Status| s.members.iter().filter(|member| member.load.is_some()).count();
        type Read<'a> = &'a dyn Fn(&Status) -> u64;
        let counters: [(&str, &str, Option<Unit>, Read<'_>); 9] = [
            ("tern_gossip_datagrams_received", "Datagrams of gossip that were taken", None, &|s| s.counters.received),
            ("tern_gossip_datagrams_other_key", "Datagrams that opened with another key than the first", None, &|s| {
                s.counters.by_other_key
            }),
            ("tern_gossip_datagrams_sent", "Datagrams of gossip that were sent", None, &|s| s.counters.sent),
            ("tern_gossip_sent", "Bytes of those", Some(Unit::Bytes), &|s| s.counters.sent_bytes),
            ("tern_gossip_suspicions", "Members that did not answer", None, &|s| s.counters.suspected),
            ("tern_gossip_downs", "Members that went down", None, &|s| s.counters.downs),
            ("tern_gossip_returns", "Times that this node was taken for dead", None, &|s| s.counters.returned),
            ("tern_gossip_bad_records", "Load records that could not be read", None, &|s| s.counters.bad_records),
            ("tern_gossip_errors", "Misuses of the membership protocol: a bug", None, &|s| s.counters.internal),
        ];
        for (name, help, unit, read) in counters {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (cluster, status) in &clusters {
                let counter = ConstCounter::new(read(status));
                counter.encode(family.encode_family(&[("cluster", cluster.as_str())])?)?;
            }
        }
        let gauges: [(&str, &str, Read<'_>); 3] = [
            ("tern_gossip_loads_count", "Nodes whose load is known", &|s| loads(s) as u64),
            ("tern_gossip_is_alone_count", "1 while this node knows no other", &|s| s.alone.into()),
            ("tern_gossip_is_replaced_count", "1 while another node has this one's name", &|s| s.replaced.into()),
        ];
        for (name, help, read) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (cluster, status) in &clusters {
                let gauge = ConstGauge::new(i64::try_from(read(status)).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&[("cluster", cluster.as_str())])?)?;
            }
        }
        let unsent = clusters.first().map_or(0, |(_, status)| status.unsent);
        let counter = ConstCounter::new(unsent);
        let help = "Datagrams of gossip that the socket did not take";
        counter.encode(encoder.encode_descriptor("tern_gossip_datagrams_unsent", help, None, counter.metric_type())?)
    }
}
