//! How much of a stream may be on its way unacknowledged.
//!
//! Problem: smoltcp 0.12 sends all that it holds, whatever its congestion window says, and after a time-out sends all
//! of that again. On a link of 20 kbit/s a full buffer is half a minute of queue, and everything in it is sent several
//! times: a fall-back to TCP would look worse than it is.
//!
//! Rule: smoltcp is handed only as much as this window allows; the rest waits outside. The window is Reno's (RFC 5681):
//! slow start from ten segments, then one segment a round trip; halved once per flight that lost something, and two
//! segments after a time-out. Recovery ends when everything is acknowledged that was on its way when it began.
//!
//! A time-out that comes although acknowledgements do is smoltcp's habit of timing a flight from its first packet; it
//! says nothing of losses and does not count.

use crate::limits::{SEGMENT_BYTES, STREAM_SEND_BYTES};
use crate::segment::after;

/// The first window (RFC 6928).
const FIRST_BYTES: usize = 10 * SEGMENT_BYTES;
/// The least one.
const LEAST_BYTES: usize = 2 * SEGMENT_BYTES;

/// The window of one direction of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    bytes: usize,
    slow_start_until: usize,
    /// In recovery, until so much is acknowledged.
    recovers_at: Option<u32>,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { bytes: FIRST_BYTES, slow_start_until: usize::MAX, recovers_at: None }
    }

    /// Bytes that may be on their way.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many bytes were acknowledged, up to this number.
    pub(crate) fn acked(&mut self, bytes: usize, up_to: u32) {
        if let Some(recovers_at) = self.recovers_at {
            if after(recovers_at, up_to) {
                return;
            }
            self.recovers_at = None;
        }
        let more = if self.bytes < self.slow_start_until { bytes } else { SEGMENT_BYTES * bytes / self.bytes };
        self.bytes = (self.bytes + more).min(STREAM_SEND_BYTES);
    }

    /// Something of what is on its way is lost; `sent` is the number after the last byte of it.
    pub(crate) fn lost(&mut self, in_flight: usize, sent: u32) {
        if self.recovers_at.is_none() {
            self.shrink(in_flight, sent);
            self.bytes = self.slow_start_until;
        }
    }

    /// Nothing was acknowledged for so long that it is sent again.
    pub(crate) fn timed_out(&mut self, in_flight: usize, sent: u32) {
        self.shrink(in_flight, sent);
        self.bytes = LEAST_BYTES;
    }

    fn shrink(&mut self, in_flight: usize, sent: u32) {
        self.slow_start_until = (in_flight / 2).max(LEAST_BYTES);
        self.recovers_at = Some(sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_with_every_round_trip_until_something_is_lost_and_then_creeps() {
        let mut window = Window::new();
        window.acked(FIRST_BYTES, 1);
        assert_eq!(window.bytes(), 2 * FIRST_BYTES);
        window.lost(2 * FIRST_BYTES, 100);
        window.lost(2 * FIRST_BYTES, 200);
        assert_eq!(window.bytes(), FIRST_BYTES, "once per flight");
        window.acked(1000, 99);
        assert_eq!(window.bytes(), FIRST_BYTES, "not while it recovers");
        window.acked(FIRST_BYTES, 100);
        assert_eq!(window.bytes(), FIRST_BYTES + SEGMENT_BYTES);
        window.timed_out(FIRST_BYTES, 300);
        assert_eq!(window.bytes(), LEAST_BYTES);
        window.acked(FIRST_BYTES, 300);
        assert_eq!(window.bytes(), LEAST_BYTES + FIRST_BYTES, "slow start up to half of what it was");
        for _ in 0..1000 {
            window.acked(STREAM_SEND_BYTES, 300);
        }
        assert_eq!(window.bytes(), STREAM_SEND_BYTES);
    }
}
