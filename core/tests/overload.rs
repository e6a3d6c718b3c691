//! Overload in virtual time: senders who do what an SDK does, a server that takes so many messages a millisecond,
//! one queue between them, and [`Pressure`] deciding who is refused. Nothing here is random.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tern_core::client::limits::WINDOW_PER_CONVERSATION;
use tern_core::ids::ConvId;
use tern_core::pressure::{Level, Pressure, refused};

/// Messages that the server takes in a millisecond.
const CAPACITY: f64 = 40.0;
/// What a refusal costs, in messages.
const REFUSAL: f64 = 0.1;
const SENDERS: u32 = 400;

fn conversation(i: u32) -> ConvId {
    let mut id = [7; 16];
    id[4..8].copy_from_slice(&i.to_be_bytes());
    ConvId(id)
}

/// One conversation's sender.
#[derive(Default)]
struct Sender {
    /// Messages in the outbox that are not on their way.
    queued: f64,
    in_flight: usize,
    wait_until: u64,
    /// It was told to come back, and what it sent since is not acked.
    probing: bool,
    /// Counts the times it was refused: what was sent before is refused, or out of order.
    refusals: u32,
}

struct Sent {
    sender: u32,
    refusals: u32,
    at: u64,
}

/// What a stretch of time showed.
#[derive(Debug, Default)]
struct Seen {
    waits: Vec<u64>,
    /// When each level was reached first.
    levels: BTreeMap<Level, u64>,
    longest_queue: usize,
    refused: usize,
}

impl Seen {
    fn p99(&self) -> u64 {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        waits.get(waits.len() * 99 / 100).copied().unwrap_or(0)
    }
}

struct Model {
    now: u64,
    pressure: Pressure,
    senders: Vec<Sender>,
    queue: VecDeque<Sent>,
    budget: f64,
}

impl Model {
    fn new() -> Self {
        let senders = (0..SENDERS).map(|_| Sender::default()).collect();
        Self { now: 1_000_000, pressure: Pressure::default(), senders, queue: VecDeque::new(), budget: 0.0 }
    }

    /// So many milliseconds of so many messages each; at most `window` un-acked of each sender.
    fn pass(&mut self, ms: u64, each_ms: f64, window: usize) -> Seen {
        let mut seen = Seen::default();
        for _ in 0..ms {
            self.now += 1;
            self.offer(each_ms / f64::from(SENDERS), window);
            seen.longest_queue = seen.longest_queue.max(self.queue.len());
            self.serve(&mut seen);
            self.pressure.roll(Duration::from_millis(self.now));
            seen.levels.entry(self.pressure.level()).or_insert(self.now);
        }
        seen
    }

    fn offer(&mut self, each: f64, window: usize) {
        for (i, s) in (0..).zip(&mut self.senders) {
            s.queued += each;
            let most = if s.probing { 1 } else { window };
            while self.now >= s.wait_until && s.queued >= 1.0 && s.in_flight < most {
                s.queued -= 1.0;
                s.in_flight += 1;
                self.queue.push_back(Sent { sender: i, refusals: s.refusals, at: self.now });
            }
        }
    }

    fn serve(&mut self, seen: &mut Seen) {
        self.budget = self.budget.min(0.0) + CAPACITY;
        while self.budget > 0.0
            && let Some(sent) = self.queue.pop_front()
        {
            let s = &mut self.senders[sent.sender as usize];
            if sent.refusals != s.refusals {
                self.budget -= REFUSAL;
                continue;
            }
            if let Some(ms) = refused(self.pressure.shed_permille(), self.now, conversation(sent.sender), false) {
                self.budget -= REFUSAL;
                seen.refused += 1;
                s.queued += s.in_flight as f64;
                (s.in_flight, s.probing, s.refusals) = (0, true, s.refusals + 1);
                s.wait_until = self.now + u64::from(ms);
                continue;
            }
            self.budget -= 1.0;
            s.in_flight -= 1;
            s.probing = false;
            let waited = self.now - sent.at;
            seen.waits.push(waited);
            self.pressure.sample(Duration::from_millis(self.now), Duration::from_millis(waited));
        }
    }

    /// The applications give up what is not on its way.
    fn give_up(&mut self) {
        self.senders.iter_mut().for_each(|s| s.queued = 0.0);
    }
}

/// A closed loop with 1,600 messages in flight in all: what the server carries, with its queue never empty.
fn at_full_load() -> Seen {
    let mut model = Model::new();
    model.pass(2_000, 1_000.0, 4);
    model.pass(4_000, 1_000.0, 4)
}

#[test]
fn at_three_times_the_load_who_is_taken_waits_no_more_than_twice_as_long_and_little_capacity_is_lost() {
    let full = at_full_load();
    assert_eq!(full.refused, 0, "full load is carried");
    for times in [1.5, 3.0, 10.0] {
        let mut model = Model::new();
        // Until outboxes are full: what is a little too much takes longer to fill them.
        model.pass(8_000, times * CAPACITY, WINDOW_PER_CONVERSATION);
        let seen = model.pass(8_000, times * CAPACITY, WINDOW_PER_CONVERSATION);
        assert!(seen.p99() <= 2 * full.p99(), "{times} times: {} ms, {} ms at full load", seen.p99(), full.p99());
        let taken = seen.waits.len() as f64 / (8_000.0 * CAPACITY);
        assert!(taken > 0.93, "{times} times: {taken} of what can be taken is taken");
    }
}

#[test]
fn signals_go_first_then_fan_outs_are_merged_then_sends_are_refused() {
    let mut model = Model::new();
    let calm = model.pass(1_000, 0.5 * CAPACITY, WINDOW_PER_CONVERSATION);
    assert_eq!(calm.levels.keys().copied().collect::<Vec<_>>(), [Level::Normal]);
    let seen = model.pass(2_000, 3.0 * CAPACITY, WINDOW_PER_CONVERSATION);
    let at = |level| seen.levels.get(&level).copied().unwrap_or(u64::MAX);
    assert!(at(Level::NoSignals) < at(Level::Merge) && at(Level::Merge) < at(Level::Shed), "{:?}", seen.levels);
    assert!(at(Level::Shed) < model.now, "all three are needed");
}

#[test]
fn a_burst_of_ten_times_for_ten_seconds_leaves_the_queue_bounded_and_is_forgotten_within_five() {
    let mut model = Model::new();
    let before = model.pass(4_000, 0.5 * CAPACITY, WINDOW_PER_CONVERSATION);
    let burst = model.pass(10_000, 10.0 * CAPACITY, WINDOW_PER_CONVERSATION);
    assert!(burst.longest_queue <= SENDERS as usize * WINDOW_PER_CONVERSATION);
    model.give_up();
    model.pass(5_000, 0.5 * CAPACITY, WINDOW_PER_CONVERSATION);
    let after = model.pass(4_000, 0.5 * CAPACITY, WINDOW_PER_CONVERSATION);
    assert_eq!((after.refused, model.pressure.level()), (0, Level::Normal));
    assert!(after.p99() <= before.p99() + 2, "{} ms, {} ms before", after.p99(), before.p99());
}
