//! What is given up under load, in which order, and who is told to come back.
//!
//! Problem: at three times the load that a node can carry, something must wait or be refused; if everything
//! waits a little, everything is late, and memory grows.
//!
//! Rule: the measure is how long Sends wait. Its minimum over a window tells a standing queue from a burst
//! (CoDel, RFC 8289, section 3). As it grows, first signals are dropped, then large groups are fanned out in
//! merged windows, then a part of the conversations is told to come back later; one step a window, so that what
//! costs people less has its chance first. The admitted part shrinks in proportion to what stands too long (who is
//! admitted fills a window, so what stands is proportional to it), not before the last step can be seen, and grows
//! slowly.
//!
//! Who is refused: conversations stand on a ring, by their ids. An arc of it is refused, and moves along the ring
//! with the wall clock, so that every edge and the core mean the same one. A conversation that its front reaches is
//! refused until its rear has passed, whatever its length is by then, so "come back in so many milliseconds" is a
//! promise: who comes then is admitted, all have equal shares of the time, and they come back one by one rather
//! than all at once. A conversation is refused as a whole: a sender whose third message is refused and whose
//! fourth is taken would get `out_of_order` for nothing. Groups are refused on an arc twice as long: one of their
//! messages costs as much as its members.
//!
//! Two of these machines are at work. An edge samples the whole way of a Send, from the moment at which its bytes
//! reached the machine to its ack, and refuses before anything was spent on it. The core hears from its edge how
//! much to give up ([`Pressure::told`]), and samples its own part of the way, in case that an edge is elsewhere.
//!
//! A few Sends in a window are no queue, however long they wait: for a conversation that is being handed over, or a disk that
//! stands still. Refusing somebody would not help them.
//!
//! Why simpler ways fail: a limit on the queue's length refuses bursts that a moment would have served; refusing
//! every n-th message breaks every conversation a little; drawing conversations anew every two seconds lets all of
//! those that are admitted begin at once, after a time in which nobody came.

use std::time::Duration;

use crate::ids::ConvId;

/// A window of measurement: several commits on a slow disk.
pub const WINDOW: Duration = Duration::from_millis(100);
/// In a window with fewer Sends nothing stands.
const QUEUE_MIN: u32 = 4;
/// Sends that all waited so long: signals are dropped.
pub const SIGNALS_ABOVE: Duration = Duration::from_millis(20);
/// Likewise: large fan-outs are merged.
pub const MERGE_ABOVE: Duration = Duration::from_millis(35);
/// Likewise: sends are refused, so that the rest waits so long: less than a person notices.
pub const SHED_ABOVE: Duration = Duration::from_millis(50);
/// The admitted part of the conversations shrinks to at least so many thousandths of itself at a time.
const SHRINK_MOST: u32 = 400;
/// And grows by so many thousandths of all a window while Sends wait less than [`SHED_ABOVE`]; twice that where they
/// wait less than half of it, and five times that where they hardly wait.
const GROW: u32 = 10;
/// At most so many thousandths of the conversations are refused.
const SHED_MOST: u32 = 950;
/// The refused arc moves once around in this time: nobody is refused for longer.
const TURN: Duration = Duration::from_secs(4);
/// Shortest advice to come back later: what was sent before it is read has arrived by then.
const RETRY_MS_MIN: u32 = 100;

/// How much is given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    #[default]
    Normal,
    /// Signals.
    NoSignals,
    /// And large groups wait for merged windows.
    Merge,
    /// And sends are refused.
    Shed,
}

impl Level {
    /// Of all, mildest first.
    pub const ALL: [Level; 4] = [Level::Normal, Level::NoSignals, Level::Merge, Level::Shed];

    fn of(waited: Duration) -> Self {
        match waited {
            w if w >= SHED_ABOVE => Level::Shed,
            w if w >= MERGE_ABOVE => Level::Merge,
            w if w >= SIGNALS_ABOVE => Level::NoSignals,
            _ => Level::Normal,
        }
    }

    fn next(self) -> Self {
        match self {
            Level::Normal => Level::NoSignals,
            Level::NoSignals => Level::Merge,
            Level::Merge | Level::Shed => Level::Shed,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Pressure {
    window_ends: Duration,
    lowest: Option<Duration>,
    /// Sends of this window.
    seen: u32,
    /// The lowest wait of the last window.
    standing: Duration,
    level: Level,
    shed: u32,
    /// Before this the last step can't be seen: what stood then still stands.
    settled: Duration,
    /// What another machine gives up, and until when that counts.
    told: (Level, Duration),
}

impl Pressure {
    /// A Send has waited so long.
    pub fn sample(&mut self, now: Duration, waited: Duration) {
        self.roll(now);
        self.seen += 1;
        self.lowest = Some(self.lowest.map_or(waited, |lowest| lowest.min(waited)));
    }

    /// Looks whether a window has ended; for those who sample seldom. Whether one has.
    pub fn roll(&mut self, now: Duration) -> bool {
        if now < self.window_ends {
            return false;
        }
        // A window without any Send is one without a queue.
        let idle = now > self.window_ends + WINDOW;
        let stands = std::mem::take(&mut self.seen) >= QUEUE_MIN && !idle;
        let lowest = self.lowest.take().filter(|_| stands).unwrap_or_default();
        let windows = (now.saturating_sub(self.window_ends).as_millis() / WINDOW.as_millis()).clamp(1, 1000);
        self.window_ends = now + WINDOW;
        self.standing = lowest;
        let wanted = Level::of(lowest);
        if wanted == Level::Shed && self.level >= Level::Merge {
            if now >= self.settled {
                self.settled = now + lowest;
                let admitted = 1000 - self.shed;
                let fits = u128::from(admitted) * SHED_ABOVE.as_micros() / lowest.as_micros().max(1);
                let fits = u32::try_from(fits).unwrap_or(admitted).max(admitted * SHRINK_MOST / 1000);
                self.shed = (1000 - fits.min(admitted.saturating_sub(GROW))).min(SHED_MOST);
            }
        } else {
            let faster = match lowest {
                l if l < SHED_ABOVE / 8 => 5,
                l if l < SHED_ABOVE / 2 => 2,
                _ => 1,
            };
            let back = u32::try_from(windows).unwrap_or(1000) * GROW * faster;
            self.shed = self.shed.saturating_sub(back);
        }
        self.level = match wanted {
            _ if self.shed > 0 => Level::Shed,
            wanted if wanted > self.level => self.level.next(),
            wanted => wanted,
        };
        true
    }

    /// How much is given up now.
    pub fn level(&self) -> Level {
        self.level
    }

    /// What another machine gives up that sees more of the way: counts for a few windows.
    pub fn told(&mut self, now: Duration, level: Level) {
        self.told = (level, now + 4 * WINDOW);
    }

    /// How much is given up, with what was told. What is refused is refused by whoever measured.
    pub fn level_of_all(&self, now: Duration) -> Level {
        let told = if now < self.told.1 { self.told.0 } else { Level::Normal };
        self.level.max(told)
    }

    /// The shortest wait of the last window.
    pub fn standing(&self) -> Duration {
        self.standing
    }

    /// Thousandths of the conversations that are refused.
    pub fn shed_permille(&self) -> u32 {
        self.shed
    }

    /// Whether a Send is to come back later, and after how many milliseconds.
    pub fn refuses(&mut self, now: Duration, wall_ms: u64, conversation: ConvId, group: bool) -> Option<u32> {
        self.roll(now);
        refused(self.shed, wall_ms, conversation, group)
    }
}

/// Whether the arc of so many thousandths lies over a conversation, and for how many milliseconds more.
pub fn refused(permille: u32, wall_ms: u64, conversation: ConvId, group: bool) -> Option<u32> {
    if permille == 0 {
        return None;
    }
    let turn = u64::try_from(TURN.as_millis()).unwrap_or(1);
    let arc = u64::from(if group { (permille * 2).min(SHED_MOST) } else { permille }) * turn / 1000;
    // Places are counted in the milliseconds that the arc takes to them.
    let place = mix(u64::from_be_bytes(first(&conversation.0))) % turn;
    let ahead_of_rear = (place + turn - wall_ms % turn) % turn;
    let ms = u32::try_from(ahead_of_rear).unwrap_or(RETRY_MS_MIN).saturating_add(1);
    (ahead_of_rear < arc).then_some(ms.max(RETRY_MS_MIN))
}

fn first(id: &[u8; 16]) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&id[..8]);
    out
}

/// SplitMix64's finalizer (Steele, Lea, Flood, 2014): spreads what differs in few bits.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn conversation(i: u32) -> ConvId {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&i.to_be_bytes());
        ConvId(id)
    }

    /// Windows in which every Send waited so long.
    fn stand(pressure: &mut Pressure, from: Duration, windows: u32, waited: Duration) -> Duration {
        for i in 0..windows * 10 {
            pressure.sample(from + 10 * MS * i, waited);
        }
        from + WINDOW * windows
    }

    #[test]
    fn a_burst_that_drains_within_the_window_refuses_nobody() {
        let mut pressure = Pressure::default();
        for i in 0..100 {
            pressure.sample(MS * i * 10, if i % 10 == 0 { MS } else { 500 * MS });
        }
        assert_eq!(pressure.level(), Level::Normal);
    }

    #[test]
    fn a_few_sends_that_wait_are_no_queue() {
        let mut pressure = Pressure::default();
        for i in 0..60 {
            pressure.sample(Duration::from_secs(1) + 40 * MS * i, 800 * MS);
            assert_eq!(pressure.level(), Level::Normal);
        }
    }

    #[test]
    fn a_standing_queue_gives_up_signals_then_fan_outs_then_sends() {
        let mut pressure = Pressure::default();
        let mut now = Duration::from_secs(1);
        for (waited, level) in [(25, Level::NoSignals), (40, Level::Merge), (90, Level::Shed)] {
            now = stand(&mut pressure, now, 3, MS * waited);
            assert_eq!(pressure.level(), level);
        }
    }

    #[test]
    fn however_sudden_the_load_what_costs_less_is_given_up_a_window_earlier() {
        let mut pressure = Pressure::default();
        let mut seen = Vec::new();
        for i in 0..60 {
            pressure.sample(Duration::from_secs(1) + 10 * MS * i, 2_000 * MS);
            if seen.last() != Some(&pressure.level()) {
                seen.push(pressure.level());
            }
            assert_eq!(pressure.shed_permille() > 0, pressure.level() == Level::Shed);
        }
        assert_eq!(seen, Level::ALL);
    }

    #[test]
    fn what_is_refused_grows_until_the_queue_stands_no_more_and_shrinks_after() {
        let mut pressure = Pressure::default();
        let now = stand(&mut pressure, Duration::from_secs(1), 40, 150 * MS);
        assert_eq!(pressure.shed_permille(), SHED_MOST);
        let refused = (0..1000).filter(|i| pressure.refuses(now, 7, conversation(*i), false).is_some()).count();
        assert!((900..=1000).contains(&refused), "{refused} of 1000");
        let before = pressure.shed_permille();
        let now = stand(&mut pressure, now, 10, 5 * MS);
        assert!(pressure.shed_permille() <= before - 180);
        pressure.sample(now + WINDOW * 20, MS);
        assert_eq!(pressure.shed_permille(), 0, "an idle node refuses nobody");
    }

    #[test]
    fn the_admitted_part_shrinks_by_as_much_as_too_much_stands_and_not_twice_for_the_same_queue() {
        let mut pressure = Pressure::default();
        let mut now = stand(&mut pressure, Duration::from_secs(1), 3, 40 * MS);
        now = stand(&mut pressure, now, 1, 100 * MS);
        pressure.roll(now);
        assert_eq!(pressure.shed_permille(), 500, "twice as much stands as should");
        let mut steps = std::collections::BTreeSet::new();
        for _ in 0..8 {
            now = stand(&mut pressure, now, 1, 400 * MS);
            steps.insert(pressure.shed_permille());
        }
        assert!(steps.len() <= 4, "a step for each 400 ms: {steps:?}");
    }

    #[test]
    fn a_conversation_is_refused_as_a_whole_until_the_moment_it_is_told() {
        let began = 1_000_000;
        for i in 0..500 {
            let verdict = |at, permille| refused(permille, at, conversation(i), false);
            let Some(ms) = verdict(began, 600) else { continue };
            assert!((RETRY_MS_MIN..=4_000).contains(&ms));
            // Told a little more than its time, at most.
            for at in [0, 1, 2].map(|third| u64::from(ms - RETRY_MS_MIN) * third / 2) {
                assert!(verdict(began + at, 600).is_some(), "refused until then");
            }
            // Whatever the arc has grown to meanwhile, short of the whole ring.
            assert_eq!(verdict(began + u64::from(ms), 900), None, "and admitted when it comes back");
        }
    }

    #[test]
    fn everyone_has_the_same_share_of_the_time_and_they_come_back_one_by_one() {
        let taken = |i| (0..4_000).step_by(20).filter(|ms| refused(600, *ms, conversation(i), false).is_none()).count();
        for i in 0..200 {
            assert!((78..=82).contains(&taken(i)), "{} of 200", taken(i));
        }
        let back = |ms| (0..1_000).filter(|i| refused(600, ms, conversation(*i), false).is_none()).count();
        for ms in (0..4_000).step_by(100) {
            assert!((330..=470).contains(&back(ms)), "{} of 1000 are admitted", back(ms));
        }
        let group = (0..1_000).filter(|i| refused(300, 5, conversation(*i), true).is_some()).count();
        let direct = (0..1_000).filter(|i| refused(300, 5, conversation(*i), false).is_some()).count();
        assert!(group > direct + direct / 2, "groups are refused on a longer arc: {group}, {direct}");
    }

    #[test]
    fn what_another_machine_gives_up_counts_for_a_few_windows() {
        let mut pressure = Pressure::default();
        pressure.told(WINDOW, Level::Merge);
        assert_eq!(pressure.level_of_all(2 * WINDOW), Level::Merge);
        assert_eq!(pressure.level_of_all(6 * WINDOW), Level::Normal);
        assert_eq!(pressure.level(), Level::Normal);
    }
}
