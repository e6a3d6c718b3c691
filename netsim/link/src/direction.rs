//! One direction of a link, as a machine.
//!
//! Problem: faults act on each other. A burst of losses behind a deep queue, an outage that lets the queue
//! stand, a duplicate of a corrupted packet: each has to mean one thing, or two runs of a scenario can't be
//! compared, and a checker can't say which fault hit which packet.
//!
//! Rule: a packet goes through these stations in this order, and each outcome is reported once.
//!
//! 1. *Entry*, at `send`: all its random numbers are fixed, by its number alone. Longer than the MTU: dropped.
//! 2. *Queue*: if the sender is busy or stalled it waits; no room: dropped. The packet that is leaving does not
//!    count. At the same nanosecond, packets leave before others enter.
//! 3. *Sender*: takes the next when it is free (`CoDel` may drop from the head here) and needs the time that
//!    the rate says. In an outage that stalls it takes none; one that has begun ends as planned.
//! 4. *Air*, when its last bit has left: in an outage that loses, or marked by chance, it is lost. So losses
//!    use up rate, as on a real radio link.
//! 5. *Way*: delay of that moment, jitter, and for those held back more. Unless overtaking is allowed, nobody
//!    arrives before an earlier one, except for packets held back and second copies, which are neither waited
//!    for nor wait. Corrupted ones are dropped where they arrive, by the checksum, unless they shall be seen.
//!
//! Why not decide a packet's whole fate when it is sent, as a fixed latency allows: an outage or a change of
//! the link that comes while it waits would come too late for it, and a fault that was taken back would still
//! hit. So what lies ahead is computed only up to `now`.
//!
//! The machine has no clock; whoever drives it calls [`Direction::poll`] until nothing comes, and again at
//! [`Direction::next_ns`]. Moments must not go back; earlier ones count as the latest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use crate::channel::{Channel, Mark};
use crate::codel::{Codel, Head, Tolerance};
use crate::dice::{Dice, Purpose, Roll, Way};
use crate::episodes::Cursor;
use crate::rate::Shaper;
use crate::spec::{Discipline, Outage, Spec, SpecError};

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output<P> {
    /// When, in nanoseconds since the world began.
    pub at_ns: u64,
    /// The packet's number on this direction, from 0.
    pub number: u64,
    /// When it was sent.
    pub sent_ns: u64,
    /// When its last bit left; `None` if it never did.
    pub left_ns: Option<u64>,
    /// Its length.
    pub bytes: u32,
    /// What became of it.
    pub fate: Fate,
    /// The packet.
    pub payload: P,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrived.
    Delivered,
    /// A second copy of it arrived.
    Copied,
    /// It arrived with flipped bits; [`flip`] makes them from this number.
    Corrupted(Roll),
    /// It did not arrive.
    Dropped(Cause),
}

/// Why a packet did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It is longer than the MTU, and the sender is told which that is.
    TooLong(u32),
    /// It is longer than the MTU, and the sender is not told.
    BlackHole,
    /// The queue had no room.
    QueueFull,
    /// It waited too long, and `CoDel` dropped it.
    Codel,
    /// It left during an outage.
    Outage,
    /// Chance, or the slot it left in.
    Loss,
    /// Bits flipped, and the checksum dropped it.
    Corrupt,
}

/// What a direction did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that entered.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that arrived; copies not included, corrupted ones included.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Second copies that arrived.
    pub copied: u64,
    /// Packets that arrived with flipped bits.
    pub corrupted: u64,
    /// Packets that did not arrive.
    pub dropped: BTreeMap<Cause, u64>,
    /// Of the dropped ones those that an outage of [`Direction::set_outage`] is to blame for: they left during one
    /// that loses, or found no room during one that stalls. Counted as it happens, not when it is polled.
    pub outage_lost: u64,
    /// Packets that stood in the queue during such an outage that stalls; once per outage. Counted as it happens.
    pub outage_waited: u64,
    /// Packets that were held back so that others overtake them. Counted as they leave.
    pub held_back: u64,
}

impl Counts {
    /// Packets that did not arrive, for whatever cause.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// A packet with its numbers, waiting or leaving.
#[derive(Clone, Debug)]
struct Waiting<P> {
    number: u64,
    sent_ns: u64,
    bytes: u32,
    mark: Mark,
    payload: P,
}

/// An outcome that lies ahead; ordered by time, then by when it was known.
#[derive(Clone, Debug)]
struct Ahead<P> {
    serial: u64,
    output: Output<P>,
}

impl<P> Ahead<P> {
    fn key(&self) -> (u64, u64) {
        (self.output.at_ns, self.serial)
    }
}

impl<P> PartialEq for Ahead<P> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl<P> Eq for Ahead<P> {}
impl<P> PartialOrd for Ahead<P> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<P> Ord for Ahead<P> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// The streams of numbers that packets draw from, besides those of [`Channel`].
#[derive(Clone, Debug)]
struct Streams {
    jitter: Dice,
    copy_jitter: Dice,
    duplicate: Dice,
    reorder: Dice,
    corrupt: Dice,
}

/// One direction of a link. `P` is what the caller sends: bytes, or a number of its own.
#[derive(Clone, Debug)]
pub struct Direction<P> {
    key: (u64, String, Way),
    spec: Spec,
    now_ns: u64,
    serial: u64,
    streams: Streams,
    channel: Channel,
    shaper: Shaper,
    codel: Codel,
    fades: Cursor,
    outage: Option<Outage>,
    queue: VecDeque<Waiting<P>>,
    queue_bytes: u64,
    packet_bytes_max: u64,
    leaving: Option<(Waiting<P>, u64)>,
    free_ns: u64,
    /// The end of a fade that stalls, once the sender has met it.
    resume_ns: u64,
    floor_ns: u64,
    ahead: BinaryHeap<Reverse<Ahead<P>>>,
    counts: Counts,
}

impl<P: Clone> Direction<P> {
    /// A direction of the link of this name. Fails where the spec can't be run.
    pub fn new(seed: u64, link: &str, way: Way, spec: Spec) -> Result<Self, SpecError> {
        spec.check()?;
        let dice = |purpose| Dice::new(seed, link, way, purpose);
        Ok(Self {
            key: (seed, link.to_owned(), way),
            spec,
            now_ns: 0,
            serial: 0,
            streams: Streams {
                jitter: dice(Purpose::Jitter),
                copy_jitter: dice(Purpose::CopyJitter),
                duplicate: dice(Purpose::Duplicate),
                reorder: dice(Purpose::Reorder),
                corrupt: dice(Purpose::Corrupt),
            },
            channel: Channel::new(seed, link, way),
            shaper: Shaper::new(dice(Purpose::Rate)),
            codel: Codel::default(),
            fades: Cursor::new(dice(Purpose::Fades)),
            outage: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            packet_bytes_max: 0,
            leaving: None,
            free_ns: 0,
            resume_ns: 0,
            floor_ns: 0,
            ahead: BinaryHeap::new(),
            counts: Counts::default(),
        })
    }

    /// Sends a packet; returns its number. What becomes of it, [`Direction::poll`] tells.
    pub fn send(&mut self, now_ns: u64, bytes: u32, payload: P) -> u64 {
        self.advance(now_ns);
        let now_ns = self.now_ns;
        let number = self.counts.sent;
        self.counts.sent += 1;
        self.counts.sent_bytes += u64::from(bytes);
        let mark = self.channel.mark(&self.spec.loss, number);
        let packet = Waiting { number, sent_ns: now_ns, bytes, mark, payload };
        if let Some(mtu) = self.spec.mtu
            && bytes > mtu.bytes
        {
            let cause = if mtu.notice { Cause::TooLong(mtu.bytes) } else { Cause::BlackHole };
            self.drop_packet(packet, now_ns, None, cause);
            return number;
        }
        let waits = self.leaving.is_some() || !self.queue.is_empty() || self.stalled(now_ns).is_some();
        let queue = self.spec.queue;
        let full = self.queue_bytes.saturating_add(u64::from(bytes)) > queue.bytes
            || u32::try_from(self.queue.len()).is_ok_and(|packets| packets >= queue.packets);
        let stalls = self.outage == Some(Outage::Stalls);
        if waits && full {
            self.counts.outage_lost += u64::from(stalls);
            self.drop_packet(packet, now_ns, None, Cause::QueueFull);
            return number;
        }
        self.packet_bytes_max = self.packet_bytes_max.max(u64::from(bytes));
        self.queue_bytes += u64::from(bytes);
        self.queue.push_back(packet);
        self.counts.outage_waited += u64::from(stalls);
        self.advance(now_ns);
        number
    }

    /// The next outcome up to now, in the order of time.
    pub fn poll(&mut self, now_ns: u64) -> Option<Output<P>> {
        self.advance(now_ns);
        if self.ahead.peek()?.0.output.at_ns > self.now_ns {
            return None;
        }
        let Reverse(Ahead { output, .. }) = self.ahead.pop()?;
        let counts = &mut self.counts;
        match output.fate {
            Fate::Copied => counts.copied += 1,
            Fate::Dropped(cause) => *counts.dropped.entry(cause).or_default() += 1,
            Fate::Delivered | Fate::Corrupted(_) => {
                counts.delivered += 1;
                counts.delivered_bytes += u64::from(output.bytes);
                counts.corrupted += u64::from(matches!(output.fate, Fate::Corrupted(_)));
            }
        }
        Some(output)
    }

    /// When [`Direction::poll`] is to be called next, or something before it changes; `None`: nothing is ahead.
    pub fn next_ns(&self) -> Option<u64> {
        let outcome = self.ahead.peek().map(|next| next.0.output.at_ns);
        let leaves = self.leaving.as_ref().map(|(_, left_ns)| *left_ns);
        // A queue before a sender that is free stands in an outage; of those that end by themselves the end is
        // known.
        let resumes = (self.leaving.is_none() && !self.queue.is_empty() && self.outage != Some(Outage::Stalls))
            .then_some(self.free_ns.max(self.resume_ns).max(self.now_ns));
        [outcome, leaves, resumes].into_iter().flatten().min()
    }

    /// Begins an outage, or ends the one that was begun here. Those of the spec go on beside it.
    pub fn set_outage(&mut self, now_ns: u64, outage: Option<Outage>) {
        self.advance(now_ns);
        if self.outage == Some(Outage::Stalls) && outage != self.outage {
            self.free_ns = self.free_ns.max(self.now_ns);
        }
        if outage == Some(Outage::Stalls) && outage != self.outage {
            self.counts.outage_waited += u64::try_from(self.queue.len()).unwrap_or(u64::MAX);
        }
        self.outage = outage;
        self.advance(now_ns);
    }

    /// Changes the link. What waits goes on waiting, what is on its way arrives as it would have; random
    /// numbers go on where they were. Fails, and changes nothing, where the spec can't be run.
    pub fn set_spec(&mut self, now_ns: u64, spec: Spec) -> Result<(), SpecError> {
        spec.check()?;
        self.advance(now_ns);
        let (seed, link, way) = &self.key;
        self.channel.replaced(*seed, link, *way);
        self.shaper = Shaper::new(Dice::new(*seed, link, *way, Purpose::Rate));
        self.fades = Cursor::new(Dice::new(*seed, link, *way, Purpose::Fades));
        if self.resume_ns > self.now_ns {
            // It stood in a fade of the old spec, and goes on now.
            self.free_ns = self.free_ns.max(self.now_ns);
            self.resume_ns = 0;
        }
        self.spec = spec;
        self.advance(now_ns);
        Ok(())
    }

    /// What it is like now.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What it did so far; outcomes count once they were polled.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What waits: (packets, bytes). The packet that is leaving is not among them.
    pub fn queued(&self) -> (usize, u64) {
        (self.queue.len(), self.queue_bytes)
    }

    /// Packets whose outcome was not polled yet; copies are not counted.
    pub fn in_flight(&self) -> u64 {
        let ahead = self.ahead.iter().filter(|next| next.0.output.fate != Fate::Copied).count();
        let held = ahead + self.queue.len() + usize::from(self.leaving.is_some());
        u64::try_from(held).unwrap_or(u64::MAX)
    }

    /// The outage that holds now.
    pub fn outage(&mut self, now_ns: u64) -> Option<Outage> {
        self.advance(now_ns);
        let now_ns = self.now_ns;
        let fade = self.fade(now_ns).map(|(outage, _)| outage);
        // Both at once: what loses is worse.
        [self.outage, fade].into_iter().flatten().min()
    }

    fn fade(&mut self, now_ns: u64) -> Option<(Outage, u64)> {
        let fades = self.spec.fades.as_ref()?;
        self.fades.at(fades, now_ns).map(|(outage, until_ns)| (*outage, until_ns))
    }

    /// Until when the sender takes nothing. `u64::MAX`: nobody knows.
    fn stalled(&mut self, now_ns: u64) -> Option<u64> {
        match (self.outage, self.fade(now_ns)) {
            (Some(Outage::Stalls), _) => Some(u64::MAX),
            (_, Some((Outage::Stalls, until_ns))) => Some(until_ns),
            _ => None,
        }
    }

    /// Lets happen what happens up to now.
    fn advance(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        loop {
            if let Some((_, left_ns)) = self.leaving {
                if left_ns > self.now_ns {
                    return;
                }
                if let Some((packet, left_ns)) = self.leaving.take() {
                    self.leave(packet, left_ns);
                }
                if self.queue.is_empty() {
                    self.codel.emptied();
                }
                continue;
            }
            let Some(head) = self.queue.front() else { return };
            let start_ns = self.free_ns.max(self.resume_ns).max(head.sent_ns);
            if start_ns > self.now_ns {
                return;
            }
            match self.stalled(start_ns) {
                Some(u64::MAX) => return,
                Some(until_ns) => self.resume_ns = until_ns,
                None => self.take_next(start_ns),
            }
        }
    }

    /// The sender is free and takes the next packet.
    fn take_next(&mut self, start_ns: u64) {
        let packet = match self.spec.queue.discipline {
            Discipline::DropTail => self.pop(),
            Discipline::Codel { target_ns, interval_ns } => {
                let limits = Tolerance { target_ns, interval_ns, packet_bytes_max: self.packet_bytes_max };
                let mut codel = std::mem::take(&mut self.codel);
                let mut head = QueueHead { direction: self, taken: None, start_ns };
                codel.dequeue(start_ns, limits, &mut head);
                let taken = head.taken;
                self.codel = codel;
                taken
            }
        };
        let Some(packet) = packet else { return };
        let left_ns = self.shaper.finish_ns(&self.spec.rate, start_ns, packet.bytes);
        self.free_ns = left_ns;
        self.leaving = Some((packet, left_ns));
    }

    fn pop(&mut self) -> Option<Waiting<P>> {
        let packet = self.queue.pop_front()?;
        self.queue_bytes -= u64::from(packet.bytes);
        Some(packet)
    }

    /// A packet's last bit has left.
    fn leave(&mut self, packet: Waiting<P>, left_ns: u64) {
        let fade = self.fade(left_ns).map(|(outage, _)| outage);
        if self.outage == Some(Outage::Loses) || fade == Some(Outage::Loses) {
            self.counts.outage_lost += u64::from(self.outage == Some(Outage::Loses));
            self.drop_packet(packet, left_ns, Some(left_ns), Cause::Outage);
            return;
        }
        if self.channel.loses(&self.spec.loss, packet.mark, left_ns) {
            self.drop_packet(packet, left_ns, Some(left_ns), Cause::Loss);
            return;
        }
        let (number, spec) = (packet.number, &self.spec);
        let held_back = self.streams.reorder.roll(number).hits(spec.reorder.share);
        let way_ns = spec.delay.of_ns(left_ns, self.streams.jitter.roll(number));
        let mut at_ns = left_ns.saturating_add(way_ns);
        self.counts.held_back += u64::from(held_back);
        if held_back {
            at_ns = at_ns.saturating_add(spec.reorder.by_ns);
        } else if !spec.delay.overtaking {
            at_ns = at_ns.max(self.floor_ns);
            self.floor_ns = at_ns;
        }
        let corrupt = self.streams.corrupt.roll(number);
        let fate = match (corrupt.hits(spec.corrupt.share), spec.corrupt.deliver) {
            (false, _) => Fate::Delivered,
            (true, true) => Fate::Corrupted(corrupt.next()),
            (true, false) => Fate::Dropped(Cause::Corrupt),
        };
        let copy = self.streams.duplicate.roll(number).hits(spec.duplicate).then(|| {
            let way_ns = spec.delay.of_ns(left_ns, self.streams.copy_jitter.roll(number));
            (left_ns.saturating_add(way_ns), packet.payload.clone())
        });
        let Waiting { sent_ns, bytes, payload, .. } = packet;
        let output =
            |at_ns, fate, payload| Output { at_ns, number, sent_ns, left_ns: Some(left_ns), bytes, fate, payload };
        self.report(output(at_ns, fate, payload));
        if let Some((at_ns, payload)) = copy {
            self.report(output(at_ns, Fate::Copied, payload));
        }
    }

    fn drop_packet(&mut self, packet: Waiting<P>, at_ns: u64, left_ns: Option<u64>, cause: Cause) {
        let Waiting { number, sent_ns, bytes, payload, .. } = packet;
        self.report(Output { at_ns, number, sent_ns, left_ns, bytes, fate: Fate::Dropped(cause), payload });
    }

    fn report(&mut self, output: Output<P>) {
        self.serial += 1;
        self.ahead.push(Reverse(Ahead { serial: self.serial, output }));
    }
}

/// The queue of a direction, as `CoDel` sees it.
struct QueueHead<'d, P> {
    direction: &'d mut Direction<P>,
    taken: Option<Waiting<P>>,
    start_ns: u64,
}

impl<P: Clone> Head for QueueHead<'_, P> {
    fn take(&mut self, now_ns: u64) -> Option<(u64, u64)> {
        self.taken = self.direction.pop();
        let packet = self.taken.as_ref()?;
        Some((now_ns.saturating_sub(packet.sent_ns), self.direction.queue_bytes))
    }

    fn drop_taken(&mut self) {
        if let Some(packet) = self.taken.take() {
            self.direction.drop_packet(packet, self.start_ns, None, Cause::Codel);
        }
    }
}

/// Flips one to three bits of a packet, the same for the same number. An empty packet stays as it is.
pub fn flip(bytes: &mut [u8], mut roll: Roll) {
    let bits = u64::try_from(bytes.len()).unwrap_or(u64::MAX).saturating_mul(8);
    for _ in 0..=roll.below(3) {
        roll = roll.next();
        let bit = roll.below(bits);
        if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|index| bytes.get_mut(index)) {
            *byte ^= 1 << (bit % 8);
        }
    }
}

#[cfg(test)]
#[path = "direction_tests.rs"]
mod tests;
