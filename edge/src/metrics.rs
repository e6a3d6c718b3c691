//! What an edge counts. No label names a user or an address.

use std::fmt::{self, Debug};
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tern_core::codes::Code;

/// What a TCP connection counts as while it speaks HTTP.
pub(crate) const HTTP: &str = "http";
/// Likewise a QUIC connection.
pub(crate) const HTTP3: &str = "http3";

type Label = [(&'static str, &'static str); 1];

/// Handles to an edge's metrics. Cheap to clone; clones count together.
#[derive(Clone, Default)]
pub struct EdgeMetrics {
    pub(crate) quic: Gauge,
    pub(crate) tcp: Gauge,
    pub(crate) ws: Gauge,
    pub(crate) poll: Gauge,
    /// TCP connections that speak HTTP, on their way to a WebSocket or carrying polls.
    pub(crate) http: Gauge,
    /// QUIC connections that speak HTTP/3.
    pub(crate) http3: Gauge,
    pub(crate) frames_in: Counter,
    pub(crate) frames_out: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) pushes_given_up: Counter,
    pub(crate) queue_bytes: Gauge,
    /// In readers and writers of connections; with `queue_bytes` this is what the edge's memory limit counts.
    pub(crate) buffer_bytes: Gauge,
    pub(crate) handshakes: Gauge,
    pub(crate) core_links: Gauge,
    pub(crate) retries: Counter,
    pub(crate) signals_dropped: Counter,
    pub(crate) lag: Gauge<f64, AtomicU64>,
    pub(crate) standing: Gauge<f64, AtomicU64>,
    pub(crate) shed: Gauge<f64, AtomicU64>,
    sends_refused: Family<Label, Counter>,
    handshakes_failed: Family<Label, Counter>,
    closed: Family<Label, Counter>,
}

impl Debug for EdgeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EdgeMetrics")
    }
}

impl EdgeMetrics {
    /// Makes the metrics and registers them as `tern_edge_*`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let connections = Family::<Label, Gauge>::default();
        let gauge = |transport| connections.get_or_create(&[("transport", transport)]).clone();
        let (quic, tcp, ws, poll) = (gauge("quic"), gauge("tcp"), gauge("ws"), gauge("poll"));
        let (http, http3) = (gauge(HTTP), gauge(HTTP3));
        registry.register(
            "tern_edge_open_connections",
            "Connections that are open, handshakes included; http and http3 are those that carry polls",
            connections,
        );
        registry.register("tern_edge_received_frames", "Frames read from clients", m.frames_in.clone());
        registry.register("tern_edge_sent_frames", "Frames written to clients", m.frames_out.clone());
        registry.register("tern_edge_received_bytes", "Bytes of frames read from clients", m.bytes_in.clone());
        registry.register("tern_edge_sent_bytes", "Bytes of frames written to clients", m.bytes_out.clone());
        registry.register(
            "tern_edge_given_up_pushes",
            "Pushes for which an Advance was sent",
            m.pushes_given_up.clone(),
        );
        registry.register("tern_edge_queue_bytes", "Bytes that wait to be written to clients", m.queue_bytes.clone());
        registry.register(
            "tern_edge_buffer_bytes",
            "Bytes read and not handled, or encoded and not written, of all connections",
            m.buffer_bytes.clone(),
        );
        registry.register(
            "tern_edge_pending_handshakes",
            "Connections without an accepted Hello",
            m.handshakes.clone(),
        );
        registry.register(
            "tern_edge_core_links",
            "Core nodes of the region that this edge can reach",
            m.core_links.clone(),
        );
        registry.register(
            "tern_edge_sent_retries",
            "QUIC handshakes that were told to prove their address first",
            m.retries.clone(),
        );
        registry.register("tern_edge_dropped_signals", "Signals that were dropped for load", m.signals_dropped.clone());
        registry.register("tern_edge_lag_seconds", "How long what clients send waits before it is read", m.lag.clone());
        registry.register(
            "tern_edge_standing_seconds",
            "How long messages wait from their arrival to their ack, the shortest of the last tenth of a second",
            m.standing.clone(),
        );
        registry.register(
            "tern_edge_refused_ratio",
            "Part of the conversations that are told to come back later",
            m.shed.clone(),
        );
        registry.register("tern_edge_refused_sends", "Sends that the edge refused, by code", m.sends_refused.clone());
        registry.register(
            "tern_edge_failed_handshakes",
            "Connections that ended before an accepted Hello, by code",
            m.handshakes_failed.clone(),
        );
        registry.register(
            "tern_edge_closed_connections",
            "Connections that the edge closed, by code",
            m.closed.clone(),
        );
        Self { quic, tcp, ws, poll, http, http3, ..m }
    }

    pub(crate) fn connections(&self, transport: &str) -> &Gauge {
        match transport {
            "quic" => &self.quic,
            "ws" => &self.ws,
            "poll" => &self.poll,
            HTTP => &self.http,
            HTTP3 => &self.http3,
            _ => &self.tcp,
        }
    }

    /// Connections that take a file descriptor each.
    pub(crate) fn descriptors(&self) -> i64 {
        self.tcp.get() + self.ws.get() + self.http.get()
    }

    /// Bytes that wait for and of all clients.
    pub(crate) fn memory_bytes(&self) -> usize {
        usize::try_from(self.queue_bytes.get().saturating_add(self.buffer_bytes.get())).unwrap_or(0)
    }

    pub(crate) fn send_refused(&self, code: Code) {
        self.sends_refused.get_or_create(&[("code", code.name())]).inc();
    }

    pub(crate) fn handshake_failed(&self, reason: &'static str) {
        self.handshakes_failed.get_or_create(&[("code", reason)]).inc();
    }

    pub(crate) fn closed(&self, code: Code) {
        self.closed.get_or_create(&[("code", code.name())]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_appears_under_its_name() {
        let mut registry = Registry::default();
        let metrics = EdgeMetrics::register(&mut registry);
        metrics.connections("quic").inc();
        for transport in ["tcp", "ws", "poll", HTTP, HTTP3] {
            metrics.connections(transport).inc_by(2);
        }
        assert_eq!(metrics.descriptors(), 6);
        metrics.send_refused(Code::RateLimited);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("tern_edge_open_connections{transport=\"quic\"} 1"), "{text}");
        for transport in ["tcp", "ws", "poll", "http", "http3"] {
            let line = format!("tern_edge_open_connections{{transport=\"{transport}\"}} 2");
            assert!(text.contains(&line), "{text}");
        }
        assert!(text.contains("tern_edge_refused_sends_total{code=\"rate_limited\"} 1"), "{text}");
        assert!(text.contains("tern_edge_queue_bytes 0"), "{text}");
    }
}
