//! What a link must do, computed from the whole list of packets at once.

use tern_netsim_link::{
    Amount, Cause, Dice, Discipline, Episodes, Fate, Loss, Outage, Purpose, Rate, Roll, Spec, Trace, Way,
};

/// All that a run is made from.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub spec: Spec,
    /// (moment, bytes), in the order of sending.
    pub sent: Vec<(u64, u32)>,
    /// Outages that are set from outside, in ascending order, none at the moment of another's beginning or end or of a
    /// packet.
    pub set: Vec<Window<Outage>>,
}

pub const LINK: &str = "phone";
pub const WAY: Way = Way::Up;
/// No plan of these tests lasts longer.
pub const HORIZON_NS: u64 = 900_000_000_000;

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expected {
    pub at_ns: u64,
    pub number: u64,
    pub left_ns: Option<u64>,
    pub what: String,
}

impl Expected {
    fn new(at_ns: u64, number: u64, left_ns: Option<u64>, fate: Fate) -> Self {
        Self { at_ns, number, left_ns, what: format!("{fate:?}") }
    }

    /// It left, and was lost then.
    fn is_lost_in_air(&self) -> bool {
        self.what.contains("Outage") || self.what.contains("Loss")
    }
}

impl Plan {
    fn dice(&self, purpose: Purpose) -> Dice {
        Dice::new(self.seed, LINK, WAY, purpose)
    }

    /// Everything that must be reported, in the order of time and number.
    pub fn predict(&self) -> Vec<Expected> {
        let mut expected = Vec::new();
        let lost = self.lost_by_chance();
        let slots = match &self.spec.loss {
            Loss::Slots(slots) => windows(self.dice(Purpose::Slots), slots),
            _ => vec![],
        };
        let fades = self.fades();
        let mut latest_ns = 0;
        for (number, passage) in (0u64..).zip(self.passages()) {
            let left_ns = match passage {
                Passage::Dropped(at_ns, cause) => {
                    expected.push(Expected::new(at_ns, number, None, Fate::Dropped(cause)));
                    continue;
                }
                Passage::Left { left_ns, .. } => left_ns,
            };
            let mut drop = |cause| expected.push(Expected::new(left_ns, number, Some(left_ns), Fate::Dropped(cause)));
            if fades.iter().any(|w| w.what == Outage::Loses && w.contains(left_ns)) {
                drop(Cause::Outage);
                continue;
            }
            let chance = slots.iter().find(|w| w.contains(left_ns)).map(|w| w.what);
            if lost[number as usize] || chance.is_some_and(|chance| self.dice(Purpose::Loss).roll(number).hits(chance))
            {
                drop(Cause::Loss);
                continue;
            }
            let way_ns = |purpose| {
                let roll = self.dice(purpose).roll(number);
                let base = i128::from(self.spec.delay.now_ns(left_ns));
                left_ns + u64::try_from((base + i128::from(self.spec.delay.jitter.offset_ns(roll))).max(0)).unwrap()
            };
            let held_back = self.dice(Purpose::Reorder).roll(number).hits(self.spec.reorder.share);
            let mut at_ns = way_ns(Purpose::Jitter);
            if held_back {
                at_ns += self.spec.reorder.by_ns;
            } else if !self.spec.delay.overtaking {
                latest_ns = at_ns.max(latest_ns);
                at_ns = latest_ns;
            }
            let corrupt: Roll = self.dice(Purpose::Corrupt).roll(number);
            let fate = match (corrupt.hits(self.spec.corrupt.share), self.spec.corrupt.deliver) {
                (false, _) => Fate::Delivered,
                (true, false) => Fate::Dropped(Cause::Corrupt),
                (true, true) => Fate::Corrupted(corrupt.next()),
            };
            expected.push(Expected::new(at_ns, number, Some(left_ns), fate));
            if self.dice(Purpose::Duplicate).roll(number).hits(self.spec.duplicate) {
                expected.push(Expected::new(way_ns(Purpose::CopyJitter), number, Some(left_ns), Fate::Copied));
            }
        }
        expected.sort();
        expected
    }

    /// How each packet came through the queue.
    fn passages(&self) -> Vec<Passage> {
        match self.spec.queue.discipline {
            Discipline::DropTail => self.recurrence(),
            Discipline::Codel { target_ns, interval_ns } => self.event_by_event(target_ns, interval_ns),
        }
    }

    /// Marked by chance, for every packet, whatever became of it.
    fn lost_by_chance(&self) -> Vec<bool> {
        let (loss, change) = (self.dice(Purpose::Loss), self.dice(Purpose::Channel));
        let mut is_bad = false;
        let mark = |number: u64| match &self.spec.loss {
            Loss::None | Loss::Slots(_) => false,
            Loss::Random(chance) => loss.roll(number).hits(*chance),
            Loss::Bursts { to_bad, to_good, good, bad } => {
                if is_bad {
                    is_bad = !change.roll(number).hits(*to_good);
                } else {
                    is_bad = change.roll(number).hits(*to_bad);
                }
                loss.roll(number).hits(if is_bad { *bad } else { *good })
            }
        };
        (0..self.sent.len() as u64).map(mark).collect()
    }

    /// Outages of the spec and those that are set.
    pub fn fades(&self) -> Vec<Window<Outage>> {
        let mut all = self.spec.fades.as_ref().map_or(vec![], |fades| windows(self.dice(Purpose::Fades), fades));
        all.extend(&self.set);
        all.sort_by_key(|window| window.from_ns);
        all
    }

    /// What must have been counted of packets that set outages hit, and of those held back: (lost, waited, held back).
    pub fn hits(&self) -> (u64, u64, u64) {
        let of = |what| self.set.iter().filter(move |window| window.what == what);
        let losing = |at_ns| of(Outage::Loses).any(|window| window.contains(at_ns));
        let (mut lost, mut waited, mut held_back) = (0, 0, 0);
        let arrives: Vec<u64> =
            self.predict().iter().filter(|one| !one.is_lost_in_air()).map(|one| one.number).collect();
        for (number, (passage, &(sent_ns, _))) in (0u64..).zip(self.passages().into_iter().zip(&self.sent)) {
            let waits_until = |until_ns: u64| {
                let stood = |window: &&Window<Outage>| sent_ns < window.until_ns && until_ns > window.from_ns;
                of(Outage::Stalls).filter(stood).count() as u64
            };
            match passage {
                Passage::Left { start_ns, left_ns } => {
                    waited += waits_until(start_ns);
                    lost += u64::from(losing(left_ns));
                    let back = self.dice(Purpose::Reorder).roll(number).hits(self.spec.reorder.share);
                    held_back += u64::from(back && arrives.contains(&number));
                }
                Passage::Dropped(at_ns, Cause::QueueFull) => {
                    lost += u64::from(of(Outage::Stalls).any(|window| window.contains(at_ns)));
                }
                Passage::Dropped(at_ns, Cause::Codel) => waited += waits_until(at_ns),
                Passage::Dropped(..) => {}
            }
        }
        (lost, waited, held_back)
    }

    fn too_long(&self, bytes: u32) -> Option<Cause> {
        let mtu = self.spec.mtu.filter(|mtu| bytes > mtu.bytes)?;
        Some(if mtu.notice { Cause::TooLong(mtu.bytes) } else { Cause::BlackHole })
    }

    /// A first-in first-out queue without events: who leaves when follows from who left before. How full it was
    /// is counted from the beginnings of the others.
    fn recurrence(&self) -> Vec<Passage> {
        let fades = self.fades();
        let mut sender = Sender::new(self);
        let mut accepted: Vec<(u64, u64, u32)> = Vec::new();
        let mut passages = Vec::new();
        for &(at_ns, bytes) in &self.sent {
            if let Some(cause) = self.too_long(bytes) {
                passages.push(Passage::Dropped(at_ns, cause));
                continue;
            }
            let waiting: Vec<u32> = accepted.iter().filter(|one| one.0 > at_ns).map(|one| one.2).collect();
            let busy = accepted.last().is_some_and(|one| one.1 > at_ns) || stalled_until(&fades, at_ns) != at_ns;
            let waiting_bytes: u64 = waiting.iter().map(|bytes| u64::from(*bytes)).sum();
            let full = waiting.len() as u64 + 1 > u64::from(self.spec.queue.packets)
                || waiting_bytes + u64::from(bytes) > self.spec.queue.bytes;
            if busy && full {
                passages.push(Passage::Dropped(at_ns, Cause::QueueFull));
                continue;
            }
            let free_ns = accepted.last().map_or(0, |one| one.1);
            let start_ns = stalled_until(&fades, at_ns.max(free_ns));
            let left_ns = sender.finish_ns(start_ns, bytes);
            accepted.push((start_ns, left_ns, bytes));
            passages.push(Passage::Left { start_ns, left_ns });
        }
        passages
    }

    /// The same with `CoDel`, event by event, as the RFC's pseudo-code has it.
    fn event_by_event(&self, target_ns: u64, interval_ns: u64) -> Vec<Passage> {
        let fades = self.fades();
        let mut sender = Sender::new(self);
        let mut passages = vec![None; self.sent.len()];
        let mut rfc = Rfc8289 { target_ns, interval_ns, ..Rfc8289::default() };
        let mut coming = self.sent.iter().copied().enumerate().peekable();
        let mut free_at: Option<u64> = None;
        loop {
            let arrival = coming.peek().map(|(_, (at_ns, _))| *at_ns);
            // A sender that has a time at which it is free is asked then; before arrivals of that moment.
            let (now_ns, arrives) = match (free_at, arrival) {
                (Some(free_ns), Some(at_ns)) if free_ns <= at_ns => (free_ns, false),
                (Some(free_ns), None) => (free_ns, false),
                (_, Some(at_ns)) => (at_ns, true),
                (None, None) => break,
            };
            if arrives {
                let (number, (_, bytes)) = coming.next().unwrap();
                if let Some(cause) = self.too_long(bytes) {
                    passages[number] = Some(Passage::Dropped(now_ns, cause));
                    continue;
                }
                let waits = free_at.is_some() || stalled_until(&fades, now_ns) != now_ns;
                let full = rfc.queue.len() as u64 >= u64::from(self.spec.queue.packets)
                    || rfc.bytes() + u64::from(bytes) > self.spec.queue.bytes;
                if waits && full {
                    passages[number] = Some(Passage::Dropped(now_ns, Cause::QueueFull));
                    continue;
                }
                rfc.max_packet = rfc.max_packet.max(u64::from(bytes));
                rfc.queue.push((number, now_ns, bytes));
                if free_at.is_some() {
                    continue;
                }
            }
            let resume_ns = stalled_until(&fades, now_ns);
            if resume_ns != now_ns && !rfc.queue.is_empty() {
                free_at = Some(resume_ns);
                continue;
            }
            let leaves = rfc.dequeue(now_ns);
            for number in rfc.dropped.drain(..) {
                passages[number] = Some(Passage::Dropped(now_ns, Cause::Codel));
            }
            free_at = leaves.map(|(number, _, bytes)| {
                let left_ns = sender.finish_ns(now_ns, bytes);
                passages[number] = Some(Passage::Left { start_ns: now_ns, left_ns });
                left_ns
            });
        }
        passages.into_iter().map(Option::unwrap).collect()
    }
}

/// How a packet came through the queue.
#[derive(Clone, Copy, Debug)]
enum Passage {
    Left { start_ns: u64, left_ns: u64 },
    Dropped(u64, Cause),
}

/// A span of time in which something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<T> {
    pub from_ns: u64,
    pub until_ns: u64,
    pub what: T,
}

impl<T> Window<T> {
    pub fn contains(&self, at_ns: u64) -> bool {
        (self.from_ns..self.until_ns).contains(&at_ns)
    }
}

/// All windows up to the horizon.
fn windows<T: Copy>(dice: Dice, episodes: &Episodes<T>) -> Vec<Window<T>> {
    let mut all: Vec<Window<T>> = Vec::new();
    for (number, episode) in (0..).zip(episodes.0.iter().cycle()) {
        let end_ns = all.last().map_or(0, |window| window.until_ns);
        if end_ns > HORIZON_NS {
            break;
        }
        let roll = dice.roll(number);
        let from_ns = end_ns + episode.gap_ns.draw(roll);
        let until_ns = from_ns + episode.length_ns.draw(roll.next());
        all.push(Window { from_ns, until_ns, what: episode.what });
    }
    all
}

fn stalled_until(fades: &[Window<Outage>], at_ns: u64) -> u64 {
    let mut at_ns = at_ns;
    // Windows ascend, so one pass finds those that follow each other without a gap.
    for window in fades.iter().filter(|window| window.what == Outage::Stalls) {
        if window.contains(at_ns) {
            at_ns = window.until_ns;
        }
    }
    at_ns
}

/// How many bits, times nanoseconds a second, could leave from 0 up to the start of each span.
pub struct Capacity {
    spans: Vec<(u64, u64, u128)>,
}

impl Capacity {
    /// `None`: unlimited, or not told in bits a second.
    pub fn new(rate: &Rate, dice: Dice) -> Option<Self> {
        let mut starts: Vec<(u64, u64)> = match rate {
            Rate::Unlimited | Rate::Trace(_) => return None,
            Rate::Constant(bps) => vec![(0, *bps)],
            Rate::Steps(steps) => {
                let round: Vec<(u64, u64)> = steps.steps.iter().map(|step| (step.at_ns, step.value)).collect();
                let rounds = steps.repeat_ns.map_or(1, |period_ns| HORIZON_NS / period_ns + 1);
                let period_ns = steps.repeat_ns.unwrap_or(0);
                (0..rounds).flat_map(|n| round.iter().map(move |(at, bps)| (at + n * period_ns, *bps))).collect()
            }
            Rate::Drawn { span_ns, bps } => {
                (0..HORIZON_NS / span_ns).map(|n| (n * span_ns, Amount::draw(bps, dice.roll(n)))).collect()
            }
        };
        starts.sort_unstable();
        let mut spans: Vec<(u64, u64, u128)> = Vec::new();
        for (at_ns, bps) in starts {
            let before = spans.last().map_or(0, |(from, bps, sum)| sum + u128::from(*bps) * u128::from(at_ns - from));
            spans.push((at_ns, bps, before));
        }
        Some(Self { spans })
    }

    fn up_to(&self, at_ns: u64) -> u128 {
        let (from_ns, bps, before) = self.spans[self.spans.partition_point(|span| span.0 <= at_ns) - 1];
        before + u128::from(bps) * u128::from(at_ns - from_ns)
    }

    pub fn between(&self, from_ns: u64, until_ns: u64) -> u128 {
        self.up_to(until_ns) - self.up_to(from_ns)
    }
}

/// When bits leave, by bisection over capacities, or by emptying a list of opportunities.
struct Sender {
    capacity: Option<Capacity>,
    opportunities: Option<Vec<(u64, u32)>>,
}

impl Sender {
    fn new(plan: &Plan) -> Self {
        let capacity = Capacity::new(&plan.spec.rate, plan.dice(Purpose::Rate));
        let opportunities = match &plan.spec.rate {
            Rate::Trace(trace) => Some(opportunities(trace)),
            _ => None,
        };
        Self { capacity, opportunities }
    }

    fn finish_ns(&mut self, start_ns: u64, bytes: u32) -> u64 {
        if let Some(opportunities) = &mut self.opportunities {
            let mut missing = bytes;
            for (at_ns, room) in opportunities.iter_mut().filter(|one| one.0 >= start_ns && one.1 > 0) {
                let taken = missing.min(*room);
                (*room, missing) = (*room - taken, missing - taken);
                if missing == 0 {
                    return *at_ns;
                }
            }
            panic!("the horizon is too near");
        }
        let Some(capacity) = &self.capacity else { return start_ns };
        let work = u128::from(bytes) * 8 * 1_000_000_000;
        let (mut low, mut high) = (start_ns, HORIZON_NS);
        while low < high {
            let middle = low + (high - low) / 2;
            if capacity.between(start_ns, middle) >= work {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

/// All opportunities of a trace up to a minute, by its text.
pub fn opportunities(trace: &Trace) -> Vec<(u64, u32)> {
    let lines = trace.lines_ms();
    let period_ms = *lines.last().unwrap();
    let rounds = 60_000 / period_ms + 1;
    let all = (0..rounds).flat_map(|round| lines.iter().map(move |ms| ((round * period_ms + ms) * 1_000_000, 1500)));
    all.collect()
}

/// Section 5 of RFC 8289, as it is written there.
#[derive(Default)]
struct Rfc8289 {
    target_ns: u64,
    interval_ns: u64,
    max_packet: u64,
    queue: Vec<(usize, u64, u32)>,
    dropped: Vec<usize>,
    first_above_time: u64,
    drop_next: u64,
    count: u64,
    lastcount: u64,
    dropping: bool,
}

impl Rfc8289 {
    fn bytes(&self) -> u64 {
        self.queue.iter().map(|one| u64::from(one.2)).sum()
    }

    fn dodequeue(&mut self, now: u64) -> (Option<(usize, u64, u32)>, bool) {
        if self.queue.is_empty() {
            self.first_above_time = 0;
            return (None, false);
        }
        let p = self.queue.remove(0);
        let sojourn = now - p.1;
        let mut ok_to_drop = false;
        if sojourn < self.target_ns || self.bytes() <= self.max_packet {
            self.first_above_time = 0;
        } else if self.first_above_time == 0 {
            self.first_above_time = now + self.interval_ns;
        } else if now >= self.first_above_time {
            ok_to_drop = true;
        }
        (Some(p), ok_to_drop)
    }

    fn dequeue(&mut self, now: u64) -> Option<(usize, u64, u32)> {
        let (mut p, mut ok) = self.dodequeue(now);
        if self.dropping {
            if !ok {
                self.dropping = false;
            }
            while now >= self.drop_next && self.dropping {
                self.dropped.extend(p.map(|p| p.0));
                self.count += 1;
                (p, ok) = self.dodequeue(now);
                if ok {
                    self.drop_next = self.control_law(self.drop_next, self.count);
                } else {
                    self.dropping = false;
                }
            }
        } else if ok {
            self.dropped.extend(p.map(|p| p.0));
            (p, _) = self.dodequeue(now);
            self.dropping = true;
            let delta = self.count - self.lastcount;
            self.count = 1;
            // As signed numbers: the next drop may still lie ahead.
            if delta > 1 && (now as i128 - self.drop_next as i128) < 16 * i128::from(self.interval_ns) {
                self.count = delta;
            }
            self.drop_next = self.control_law(now, self.count);
            self.lastcount = self.count;
        }
        p
    }

    /// The greatest step whose square times count does not exceed the interval's, in 2^-16 of a root: found by
    /// trying.
    fn control_law(&self, t: u64, count: u64) -> u64 {
        let mut root: u128 = 1 << 16;
        while (root + 1) * (root + 1) <= u128::from(count) << 32 {
            root += 1;
        }
        t + (u128::from(self.interval_ns) * 65_536 / root) as u64
    }
}
