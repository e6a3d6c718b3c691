//! How long a connection may be silent before a gateway on its way forgets it.
//!
//! *Problem.* A phone in a pocket pays for each wake-up of its radio, and a gateway that forgets the mapping of a silent
//! connection swallows what comes for it. How long it waits is 30 seconds here and an hour there, and nobody tells.
//!
//! *Rule.* In the foreground the beat is fixed. In the background it grows: after three beats that were answered the next
//! silence is longer, up to what the server allows; once one was too long, what was survived is used for a day. Then the
//! next lies half-way between the longest that was survived and the shortest that was not, until they are close. What is
//! used stays a little below. It is learned for each network, transport and family of addresses, and kept.
//!
//! Each beat asks the region to answer once more after the next silence. If that comes, the way in was open. A silence was
//! too long if it does not come although the beat after it is answered; if the edge sees the connection come from another
//! address afterwards; if what was sent meanwhile arrives only after the beat; or if the beat is never answered while a new
//! connection is made at once: if that fails as well, the network was gone, and the gateway is not to blame.
//!
//! *Why the simpler ways fail.* One interval for all: too short for most, too long for some. Blaming the gateway for
//! each lost connection: one ride in an elevator, and the phone beats every ten seconds for ever. Taking a beat that is
//! answered for a proof: the beat itself opens the way anew, and most gateways at home give it the old port. Searching
//! half-way at once: each step that is too long makes the phone deaf for a time.

use std::time::Duration;

use prost::Message;

use super::candidates::Transport;
use super::limits::{
    BEAT_FLOOR, BEAT_GAP, BEAT_MARGIN_MAX, BEAT_STEP, BEATS_STABLE, HEARTBEAT, HEARTBEAT_RANGE, LEARNED_FOR,
    LONGER_AFTER,
};

/// What was learned of silences on one transport and family, in seconds.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Learned {
    /// 0 = QUIC, 1 = TCP, 2 = HTTP/3.
    #[prost(uint32, tag = "1")]
    pub transport: u32,
    /// The family of addresses.
    #[prost(bool, tag = "2")]
    pub ipv6: bool,
    /// The longest silence that was survived; 0 = none.
    #[prost(uint32, tag = "3")]
    pub survived_s: u32,
    /// The shortest that was too long; 0 = none.
    #[prost(uint32, tag = "4")]
    pub too_long_s: u32,
    /// When the latter was learned, in milliseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
}

/// Which silences are learned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// By what.
    pub transport: Transport,
    /// Over which family.
    pub ipv6: bool,
}

impl Way {
    fn code(self) -> u32 {
        match self.transport {
            Transport::Quic => 0,
            // Its polls keep a gateway awake that would forget a silent one.
            Transport::Http3 => 2,
            _ => 1,
        }
    }

    /// Whether this was learned of it.
    pub fn is_of(self, learned: &Learned) -> bool {
        (self.code(), self.ipv6) == (learned.transport, learned.ipv6)
    }
}

/// The beat of one connection; see the module.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    way: Way,
    foreground: bool,
    fixed: Duration,
    /// In the background, at least and at most.
    range: (Duration, Duration),
    survived: Duration,
    too_long: Option<Duration>,
    learned_ms: u64,
    /// The silence that is being tried, and how often in a row it was survived.
    trying: Duration,
    beats: u32,
}

impl Heartbeat {
    /// As a server's Welcome asks for it (milliseconds; 0 = not told), and as this network was learned.
    pub fn new(way: Way, foreground: bool, told: (u32, u32, u32), learned: Option<&Learned>, wall_ms: u64) -> Self {
        let of = |ms: u32, default: Duration| if ms == 0 { default } else { Duration::from_millis(ms.into()) };
        let clamp = |time: Duration| time.clamp(HEARTBEAT_RANGE.0, HEARTBEAT_RANGE.1);
        let fixed = clamp(of(told.0, HEARTBEAT));
        let least = clamp(of(told.1, fixed));
        let most = clamp(of(told.2, HEARTBEAT_RANGE.1)).max(least);
        Self::of(way, foreground, fixed, (least, most), learned, wall_ms)
    }

    /// The same on the same connection in another network, of which this was learned.
    pub fn elsewhere(&self, learned: Option<&Learned>, wall_ms: u64) -> Self {
        Self::of(self.way, self.foreground, self.fixed, self.range, learned, wall_ms)
    }

    fn of(
        way: Way,
        foreground: bool,
        fixed: Duration,
        range: (Duration, Duration),
        learned: Option<&Learned>,
        wall_ms: u64,
    ) -> Self {
        let seconds = |s: u32| Duration::from_secs(s.into());
        let survived = learned.map_or(Duration::ZERO, |l| seconds(l.survived_s));
        let age_ms = |l: &Learned| u128::from(wall_ms.saturating_sub(l.at_ms));
        let holds = |l: &&Learned| l.too_long_s > 0 && age_ms(l) < LEARNED_FOR.as_millis();
        let bound = learned.filter(holds);
        let mut beat = Self {
            way,
            foreground,
            fixed,
            range,
            survived,
            too_long: bound.map(|l| seconds(l.too_long_s)),
            learned_ms: bound.map_or(0, |l| l.at_ms),
            trying: Duration::ZERO,
            beats: 0,
        };
        beat.trying = match beat.too_long {
            Some(bad) => beat.safe(bad),
            None => beat.allowed(survived.max(range.0)),
        };
        beat
    }

    /// Whether the user looks at the application.
    pub fn set_foreground(&mut self, foreground: bool) {
        self.foreground = foreground;
    }

    /// After so much silence a beat is due.
    pub fn interval(&self) -> Duration {
        if self.foreground { self.allowed(self.fixed) } else { self.trying }
    }

    /// No longer than what is known to be too long, less a margin, and than the server's bounds.
    fn allowed(&self, wanted: Duration) -> Duration {
        let bounded = self.too_long.map_or(wanted, |bad| wanted.min(bad - (bad / 8).min(BEAT_MARGIN_MAX)));
        bounded.min(self.range.1).max(BEAT_FLOOR)
    }

    /// After so much silence the way was open. True: something was learned.
    pub fn survived(&mut self, silence: Duration, wall_ms: u64) -> bool {
        let new = whole_seconds(silence) > whole_seconds(self.survived);
        self.survived = self.survived.max(silence);
        if self.foreground || silence < self.trying - self.trying / 8 {
            return new;
        }
        self.beats += 1;
        if self.beats >= BEATS_STABLE {
            self.beats = 0;
            let pause_ms = u64::try_from(LONGER_AFTER.as_millis()).unwrap_or(u64::MAX);
            let next = match self.too_long {
                Some(bad) if bad > self.survived + BEAT_GAP && wall_ms >= self.learned_ms.saturating_add(pause_ms) => {
                    self.survived + (bad - self.survived) / 2
                }
                Some(_) => self.trying,
                None => self.trying + BEAT_STEP,
            };
            // Never shorter for having succeeded.
            self.trying = self.allowed(next).max(self.trying.min(self.allowed(self.trying)));
        }
        new
    }

    /// After so much silence the way was closed.
    pub fn expired(&mut self, silence: Duration, wall_ms: u64) {
        self.too_long = Some(self.too_long.map_or(silence, |bad| bad.min(silence)));
        self.learned_ms = wall_ms;
        if self.survived >= silence {
            // It was survived once: another gateway, or one with less room.
            self.survived = silence * 2 / 3;
        }
        self.beats = 0;
        self.trying = self.safe(silence);
    }

    /// After a silence that was too long. What was survived is safe; but of somebody who chats, longer silences are not
    /// known. Many gateways take half a minute, and the first silence in the background is a minute long: less than half.
    fn safe(&self, too_long: Duration) -> Duration {
        let known = self.survived >= self.fixed - self.fixed / 8;
        let half = too_long / 2 - too_long / 16;
        self.allowed(if known { self.survived } else { self.survived.max(half) })
    }

    /// So long a silence was no trouble before; less than a step of the search is the same.
    pub fn has_survived(&self, silence: Duration) -> bool {
        self.survived >= silence - silence / 32
    }

    /// What to keep.
    pub fn learned(&self) -> Learned {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        Learned {
            transport: self.way.code(),
            ipv6: self.way.ipv6,
            survived_s: seconds(self.survived),
            too_long_s: self.too_long.map_or(0, |bad| seconds(bad).max(1)),
            at_ms: self.learned_ms,
        }
    }

    /// Which silences these are.
    pub fn way(&self) -> Way {
        self.way
    }
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUIC: Way = Way { transport: Transport::Quic, ipv6: false };
    const TOLD: (u32, u32, u32) = (25_000, 60_000, 300_000);

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// A day in the background behind a gateway that forgets after `ttl`; beats, misses, and the last interval.
    fn day(beat: &mut Heartbeat, ttl: Duration, wall_ms: &mut u64) -> (u64, u64, Duration) {
        let (mut now, mut beats, mut misses) = (Duration::ZERO, 0, 0);
        while now < s(24 * 3600) {
            let silence = beat.interval();
            now += silence;
            *wall_ms += u64::try_from(silence.as_millis()).unwrap();
            beats += 1;
            if silence < ttl {
                beat.survived(silence, *wall_ms);
            } else {
                misses += 1;
                beat.expired(silence, *wall_ms);
            }
        }
        (beats, misses, beat.interval())
    }

    #[test]
    fn the_foreground_beat_is_fixed_and_gives_way_to_a_gateway_that_is_quicker() {
        let mut beat = Heartbeat::new(QUIC, true, TOLD, None, 0);
        assert_eq!(beat.interval(), s(25));
        for _ in 0..20 {
            beat.survived(s(25), 0);
        }
        assert_eq!(beat.interval(), s(25));
        beat.expired(s(25), 1);
        assert!(beat.interval() < s(25) && beat.interval() >= s(15));
    }

    #[test]
    fn behind_a_gateway_of_five_minutes_it_beats_less_than_fifteen_times_an_hour() {
        let (mut beat, mut wall_ms) = (Heartbeat::new(QUIC, false, TOLD, None, 0), 1);
        day(&mut beat, s(300), &mut wall_ms);
        let (beats, misses, interval) = day(&mut beat, s(300), &mut wall_ms);
        assert!(interval >= s(240) && interval < s(300), "{interval:?}");
        assert!(beats <= 24 * 15 && misses == 0, "{beats} beats, {misses} misses");
    }

    #[test]
    fn what_was_learned_is_kept_and_forgotten_after_a_week() {
        let mut beat = Heartbeat::new(QUIC, false, TOLD, None, 0);
        beat.survived(s(80), 0);
        beat.expired(s(120), 1000);
        let kept = beat.learned();
        assert!(QUIC.is_of(&kept) && !Way { ipv6: true, ..QUIC }.is_of(&kept));
        let again = Heartbeat::new(QUIC, false, TOLD, Some(&kept), 2000);
        assert!(again.interval() < s(120) && again.interval() >= s(80), "{:?}", again.interval());
        let week_ms = 8 * 24 * 3600 * 1000;
        let mut later = Heartbeat::new(QUIC, false, TOLD, Some(&kept), 1000 + week_ms);
        for _ in 0..40 {
            later.survived(later.interval(), 1000 + week_ms);
        }
        assert_eq!(later.interval(), s(300), "the gateway may be another one by now");
    }

    proptest! {
        #[test]
        fn any_gateway_is_learned_with_few_misses(ttl_s in 15u64..2000) {
            let (mut beat, mut wall_ms) = (Heartbeat::new(QUIC, false, TOLD, None, 0), 1);
            let (_, first, _) = day(&mut beat, s(ttl_s), &mut wall_ms);
            let (_, then, interval) = day(&mut beat, s(ttl_s), &mut wall_ms);
            prop_assert!(interval < s(ttl_s), "{interval:?}");
            prop_assert!(first <= 1 + u64::from(ttl_s < 27), "{first} on the first day");
            prop_assert!(then <= 1, "{then} on the next");
            prop_assert!(interval >= BEAT_FLOOR && interval <= s(300));
            prop_assert!(interval + s(60) >= s(ttl_s.min(300)) || interval * 3 >= s(ttl_s.min(300)) * 2, "{interval:?}");
        }
    }
}
