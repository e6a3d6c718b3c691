//! Cubic with a floor, for clients.
//!
//! *Problem.* After an outage or a burst of losses Cubic allows two packets in flight. A phone that has one large message
//! under way then can't send a probe of ten bytes, and finds the end of an outage when the transport's own timer fires:
//! as late after its end as it was long.
//!
//! *Rule.* So many bytes may be in flight always, about what a new connection may send without having heard anything
//! (RFC 9002, 7.2); above it Cubic decides.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};

/// Bytes that may always be in flight: the probes of an outage of two minutes (8 KiB) beside two messages of 4 KiB, and what
/// is said in the dark (4 KiB); little more than a new connection may send (14,720).
pub const WINDOW_FLOOR: u64 = 20 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct FloorCubicConfig(Arc<CubicConfig>);

impl ControllerFactory for FloorCubicConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(FloorCubic(Arc::clone(&self.0).build(now, current_mtu)))
    }
}

struct FloorCubic(Box<dyn Controller>);

impl Controller for FloorCubic {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.0.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &quinn_proto::RttEstimator) {
        self.0.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.0.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.0.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.0.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.0.window().max(WINDOW_FLOOR)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self(self.0.clone_box()))
    }

    fn initial_window(&self) -> u64 {
        self.0.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a moment to count from; no time passes")]
    fn the_window_is_cubics_and_never_below_the_floor() {
        let now = Instant::now();
        let mut cubic = Arc::new(CubicConfig::default()).build(now, 1200);
        let mut floor = Arc::new(FloorCubicConfig::default()).build(now, 1200);
        assert_eq!(floor.window(), cubic.window().max(WINDOW_FLOOR));
        for n in 1..20 {
            let at = now + Duration::from_secs(n);
            cubic.on_congestion_event(at, at, true, 1200);
            floor.on_congestion_event(at, at, true, 1200);
        }
        assert!(cubic.window() < WINDOW_FLOOR);
        assert_eq!(floor.window(), WINDOW_FLOOR);
        assert_eq!(floor.clone_box().window(), WINDOW_FLOOR);
    }
}
