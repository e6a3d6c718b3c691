//! Controlled delay (`CoDel`, RFC 8289): drops from the head of a queue in which packets wait too long.
//!
//! A queue that fills and drains is good; one that stands only adds delay. So what is measured is not the length
//! but the wait of the packet that leaves: if that stays above `target` for an `interval`, one is dropped, the
//! next after interval / sqrt(2), then / sqrt(3) ..., until the wait is below. The square root is an integer
//! one of a shifted count, exact to 2^-16 of itself, so that every machine drops the same packets.
//!
//! This is section 5 of the RFC, where `maxpacket` is the longest packet seen. The RFC's sender calls dequeue
//! on an empty queue when it becomes idle, which ends the dropping; here that is [`Codel::emptied`].

/// The state of one queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Codel {
    /// When the wait will have been above target for an interval; `None`: it is below.
    first_above_ns: Option<u64>,
    drop_next_ns: u64,
    count: u64,
    last_count: u64,
    dropping: bool,
}

/// The queue as `CoDel` sees it.
pub(crate) trait Head {
    /// Takes the head: how long it waited, and the bytes that are left behind it.
    fn take(&mut self, now_ns: u64) -> Option<(u64, u64)>;
    /// Drops what was taken last.
    fn drop_taken(&mut self);
}

/// What is tolerated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    pub(crate) target_ns: u64,
    pub(crate) interval_ns: u64,
    /// A queue of one such packet is no queue.
    pub(crate) packet_bytes_max: u64,
}

impl Codel {
    /// Takes packets until one may leave. Whether there is one: the last that was taken.
    pub(crate) fn dequeue(&mut self, now_ns: u64, limits: Tolerance, queue: &mut impl Head) -> bool {
        let mut head = self.look(now_ns, limits, queue);
        if self.dropping {
            if head != Verdict::TooLate {
                self.dropping = false;
            }
            while self.dropping && now_ns >= self.drop_next_ns {
                queue.drop_taken();
                self.count += 1;
                head = self.look(now_ns, limits, queue);
                if head == Verdict::TooLate {
                    self.drop_next_ns = control_law(self.drop_next_ns, limits.interval_ns, self.count);
                } else {
                    self.dropping = false;
                }
            }
        } else if head == Verdict::TooLate {
            queue.drop_taken();
            head = self.look(now_ns, limits, queue);
            self.dropping = true;
            // If it was above not long ago, the rate of drops that was right then is a good start.
            let delta = self.count - self.last_count;
            let recent = now_ns.saturating_sub(self.drop_next_ns) < limits.interval_ns.saturating_mul(16);
            self.count = if delta > 1 && recent { delta } else { 1 };
            self.last_count = self.count;
            self.drop_next_ns = control_law(now_ns, limits.interval_ns, self.count);
        }
        head != Verdict::Empty
    }

    /// The sender is idle.
    pub(crate) fn emptied(&mut self) {
        self.first_above_ns = None;
        self.dropping = false;
    }

    fn look(&mut self, now_ns: u64, limits: Tolerance, queue: &mut impl Head) -> Verdict {
        let Some((waited_ns, bytes_behind)) = queue.take(now_ns) else {
            self.first_above_ns = None;
            return Verdict::Empty;
        };
        if waited_ns < limits.target_ns || bytes_behind <= limits.packet_bytes_max {
            self.first_above_ns = None;
            return Verdict::Leaves;
        }
        match self.first_above_ns {
            None => {
                self.first_above_ns = Some(now_ns.saturating_add(limits.interval_ns));
                Verdict::Leaves
            }
            Some(at_ns) if now_ns >= at_ns => Verdict::TooLate,
            Some(_) => Verdict::Leaves,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Empty,
    Leaves,
    TooLate,
}

/// The next drop: `interval / sqrt(count)` later.
fn control_law(from_ns: u64, interval_ns: u64, count: u64) -> u64 {
    let root = (u128::from(count) << 32).isqrt().max(1);
    let step = (u128::from(interval_ns) << 16) / root;
    from_ns.saturating_add(u64::try_from(step).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_come_closer_by_the_inverse_square_root() {
        let ms: Vec<u64> = [1, 2, 3, 4, 9, 100].map(|count| control_law(0, 100_000_000, count) / 1000).to_vec();
        assert_eq!(ms, [100_000, 70_711, 57_735, 50_000, 33_333, 10_000]);
    }

    /// A queue that never ends, of packets that each waited as long.
    struct Standing {
        waited_ns: u64,
        behind: u64,
        dropped: u64,
    }

    impl Head for Standing {
        fn take(&mut self, _: u64) -> Option<(u64, u64)> {
            Some((self.waited_ns, self.behind))
        }

        fn drop_taken(&mut self) {
            self.dropped += 1;
        }
    }

    const LIMITS: Tolerance = Tolerance { target_ns: 5_000_000, interval_ns: 100_000_000, packet_bytes_max: 1500 };

    #[test]
    fn a_standing_queue_is_dropped_from_after_an_interval_and_a_short_one_never() {
        let run = |waited_ms: u64, behind| {
            let (mut codel, mut queue) =
                (Codel::default(), Standing { waited_ns: waited_ms * 1_000_000, behind, dropped: 0 });
            let drops: Vec<u64> = (0..400)
                .filter(|ms| {
                    let before = queue.dropped;
                    assert!(codel.dequeue(ms * 1_000_000, LIMITS, &mut queue));
                    queue.dropped > before
                })
                .collect();
            drops
        };
        // 100, then + 100, + 70.7, + 57.7, + 50 (rounded up to the next packet).
        assert_eq!(run(6, 9000), [100, 200, 271, 329, 379]);
        assert_eq!(run(4, 9000), [0; 0], "below target");
        assert_eq!(run(6, 1500), [0; 0], "one packet is no queue");
    }
}
