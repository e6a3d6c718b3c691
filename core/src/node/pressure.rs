//! What a node gives up under load, and in which order.
//!
//! Problem: at three times the load that a node can carry, something must wait or be refused; if everything
//! waits a little, everything is late, and memory grows.
//!
//! Rule: the measure is how long Sends have waited when their turn comes. Its minimum over a window tells a
//! standing queue from a burst (CoDel, RFC 8289, section 3). As it grows, first signals are dropped, then large
//! groups are fanned out in merged windows, then a part of the conversations is told to come back later. The
//! part grows window by window until the queue stands no more, and shrinks slowly. It is chosen by conversation,
//! for a while each: a sender whose third message is refused and whose fourth is taken would get `out_of_order`
//! for nothing. Sends to groups are refused at half the part that direct ones are spared from: one of them costs
//! as much as its members.
//!
//! Why simpler ways fail: a limit on the queue's length refuses bursts that a moment would have served; refusing
//! every n-th message breaks every conversation a little.

use std::time::Duration;

use crate::ids::ConvId;

/// A window of measurement: several commits on a slow disk.
pub const WINDOW: Duration = Duration::from_millis(100);
/// Sends that all waited so long: signals are dropped.
pub const SIGNALS_ABOVE: Duration = Duration::from_millis(20);
/// Likewise: large fan-outs are merged.
pub const MERGE_ABOVE: Duration = Duration::from_millis(40);
/// Likewise: sends are refused.
pub const SHED_ABOVE: Duration = Duration::from_millis(80);
/// What is refused grows by so many thousandths a window while the queue stands at [`SHED_ABOVE`].
const SHED_STEP: u32 = 60;
/// And shrinks by so many once it does not.
const SHED_BACK: u32 = 20;
/// At most so many thousandths of the conversations are refused.
const SHED_MOST: u32 = 950;
/// The choice of conversations changes so often: nobody is refused for long.
const ROTATE: Duration = Duration::from_secs(2);
/// Shortest advice to come back later; the longest is four times this.
const RETRY_MS: u32 = 500;

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

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    window_ends: Duration,
    lowest: Option<Duration>,
    level: Level,
    shed: u32,
    refused: u64,
}

impl Pressure {
    /// A Send had waited so long when it was its turn.
    pub(super) fn sample(&mut self, now: Duration, waited: Duration) {
        self.roll(now);
        self.lowest = Some(self.lowest.map_or(waited, |lowest| lowest.min(waited)));
    }

    fn roll(&mut self, now: Duration) {
        if now < self.window_ends {
            return;
        }
        // A window without any Send is one without a queue.
        let idle = now > self.window_ends + WINDOW;
        let lowest = self.lowest.take().filter(|_| !idle).unwrap_or_default();
        self.window_ends = now + WINDOW;
        if lowest >= SHED_ABOVE {
            let times = u32::try_from(lowest.as_millis() / SHED_ABOVE.as_millis()).unwrap_or(1).min(4);
            self.shed = (self.shed + SHED_STEP * times).min(SHED_MOST);
        } else if idle {
            self.shed = 0;
        } else {
            self.shed = self.shed.saturating_sub(SHED_BACK);
        }
        self.level = match lowest {
            _ if self.shed > 0 => Level::Shed,
            l if l >= MERGE_ABOVE => Level::Merge,
            l if l >= SIGNALS_ABOVE => Level::NoSignals,
            _ => Level::Normal,
        };
    }

    /// How much is given up now.
    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// Thousandths of the conversations that are refused.
    pub(super) fn shed_permille(&self) -> u32 {
        self.shed
    }

    /// Whether a Send is to come back later, and after how many milliseconds.
    pub(super) fn refuses(&mut self, now: Duration, conversation: ConvId, group: bool) -> Option<u32> {
        self.roll(now);
        if self.shed == 0 {
            return None;
        }
        let turn = now.as_millis() / ROTATE.as_millis();
        let drawn = mix(u64::from_be_bytes(first(&conversation.0)) ^ u64::try_from(turn).unwrap_or(0));
        let part = if group { (self.shed * 2).min(SHED_MOST) } else { self.shed };
        if drawn % 1000 >= u64::from(part) {
            return None;
        }
        self.refused += 1;
        let spread = u32::try_from(mix(drawn ^ self.refused) % u64::from(3 * RETRY_MS)).unwrap_or(0);
        Some(RETRY_MS + spread)
    }
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
    fn a_standing_queue_gives_up_signals_then_fan_outs_then_sends() {
        let mut pressure = Pressure::default();
        let mut now = Duration::from_secs(1);
        for (waited, level) in [(25, Level::NoSignals), (50, Level::Merge), (90, Level::Shed)] {
            now = stand(&mut pressure, now, 3, MS * waited);
            assert_eq!(pressure.level(), level);
        }
    }

    #[test]
    fn what_is_refused_grows_until_the_queue_stands_no_more_and_shrinks_after() {
        let mut pressure = Pressure::default();
        let now = stand(&mut pressure, Duration::from_secs(1), 20, 90 * MS);
        assert_eq!(pressure.shed_permille(), SHED_MOST);
        let refused = (0..1000).filter(|i| pressure.refuses(now, conversation(*i), false).is_some()).count();
        assert!((900..=1000).contains(&refused), "{refused} of 1000");
        let before = pressure.shed_permille();
        let now = stand(&mut pressure, now, 10, 5 * MS);
        assert!(pressure.shed_permille() < before - 100);
        pressure.sample(now + WINDOW * 5, MS);
        assert_eq!(pressure.shed_permille(), 0, "an idle node refuses nobody");
    }

    #[test]
    fn a_conversation_is_refused_as_a_whole_and_not_for_ever() {
        let mut pressure = Pressure::default();
        let now = stand(&mut pressure, Duration::from_secs(60), 6, 90 * MS);
        let verdict = |p: &mut Pressure, at, i| p.refuses(at, conversation(i), false).is_some();
        for i in 0..200 {
            assert_eq!(verdict(&mut pressure, now, i), verdict(&mut pressure, now, i));
        }
        let refused: Vec<u32> = (0..200).filter(|i| verdict(&mut pressure, now, *i)).collect();
        let mut later = now;
        for _ in 0..8 {
            for _ in 0..20 {
                later += WINDOW;
                pressure.sample(later, if pressure.shed_permille() < 300 { 90 * MS } else { 70 * MS });
            }
        }
        let still = refused.iter().filter(|i| verdict(&mut pressure, later, **i)).count();
        assert!(still < refused.len(), "others have their turn");
        let advice = pressure.refuses(now, conversation(refused[0]), true);
        assert!(advice.is_none_or(|ms| (RETRY_MS..4 * RETRY_MS).contains(&ms)));
    }
}
