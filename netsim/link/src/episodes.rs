//! Spans of time that come and go: lossy slots, and outages that a place or a speed brings with it.
//!
//! An episode is a gap, then a span; the next one's gap begins where the span ended. Lengths are drawn from
//! the stream of the direction, the k-th episode from the k-th number, so the k-th outage of a run is the
//! same whatever is sent meanwhile. Who asks goes forward in time: a cursor holds the current episode, so that
//! asking costs nothing while a run goes on for hours.

use crate::dice::{Amount, Dice};
use crate::limits::EPISODE_NS_MIN;

/// A gap and a span after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Episode<T> {
    /// How long nothing happens, in nanoseconds.
    pub gap_ns: Amount,
    /// How long it lasts then, in nanoseconds.
    pub length_ns: Amount,
    /// What happens.
    pub what: T,
}

/// Episodes one after the other; after the last the first comes again, with lengths drawn anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Episodes<T>(pub Vec<Episode<T>>);

impl<T> Episodes<T> {
    /// What is wrong with it, if something is.
    pub(crate) fn flaw(&self) -> Option<&'static str> {
        if self.0.is_empty() {
            return Some("there must be at least one");
        }
        if !self.0.iter().all(|one| one.gap_ns.is_sound() && one.length_ns.is_sound()) {
            return Some("bounds must ascend, and quantiles go from 0 to 1,000,000 parts per million");
        }
        let short = |one: &Episode<T>| one.gap_ns.least().saturating_add(one.length_ns.least()) < EPISODE_NS_MIN;
        self.0.iter().any(short).then_some("a gap and the span after it must take 1 ms at least")
    }
}

/// Where in time somebody is who asks about episodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    dice: Dice,
    /// Number of the current episode, counted from 0.
    number: u64,
    /// Its span: from, and until (not included). `None`: not drawn yet.
    span_ns: Option<(u64, u64)>,
}

impl Cursor {
    pub(crate) fn new(dice: Dice) -> Self {
        Self { dice, number: 0, span_ns: None }
    }

    /// What happens at a moment, and until when (not included). Moments must not go back.
    pub(crate) fn at<'e, T>(&mut self, episodes: &'e Episodes<T>, now_ns: u64) -> Option<(&'e T, u64)> {
        loop {
            let count = u64::try_from(episodes.0.len()).unwrap_or(u64::MAX);
            let index = usize::try_from(self.number.checked_rem(count)?).unwrap_or(0);
            let episode = episodes.0.get(index)?;
            let (from_ns, until_ns) = match self.span_ns {
                Some(span_ns) => span_ns,
                None => {
                    let span_ns = self.draw(episode, 0);
                    self.span_ns = Some(span_ns);
                    span_ns
                }
            };
            if now_ns < from_ns {
                return None;
            }
            if now_ns < until_ns {
                return Some((&episode.what, until_ns));
            }
            self.number += 1;
            let index = usize::try_from(self.number % count).unwrap_or(0);
            self.span_ns = Some(self.draw(episodes.0.get(index)?, until_ns));
        }
    }

    fn draw<T>(&self, episode: &Episode<T>, begin_ns: u64) -> (u64, u64) {
        let roll = self.dice.roll(self.number);
        let from_ns = begin_ns.saturating_add(episode.gap_ns.draw(roll));
        (from_ns, from_ns.saturating_add(episode.length_ns.draw(roll.next())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::{Purpose, Way};

    const MS: u64 = 1_000_000;

    #[test]
    fn episodes_follow_each_other_and_do_not_depend_on_how_often_one_asks() {
        let dice = Dice::new(3, "l", Way::Up, Purpose::Slots);
        fn of<T>(gap_ns: Amount, length_ns: Amount, what: T) -> Episode<T> {
            Episode { gap_ns, length_ns, what }
        }
        let fixed = Episodes(vec![
            of(Amount::Fixed(10 * MS), Amount::Fixed(2 * MS), 'a'),
            of(Amount::Fixed(0), Amount::Fixed(3 * MS), 'b'),
        ]);
        let mut cursor = Cursor::new(dice);
        let seen: String = (0..30).map(|ms| cursor.at(&fixed, ms * MS).map_or('.', |(what, _)| *what)).collect();
        assert_eq!(seen, "..........aabbb..........aabbb");

        let drawn = Episodes(vec![of(
            Amount::Uniform { low: MS, high: 9 * MS },
            Amount::Uniform { low: MS, high: 5 * MS },
            (),
        )]);
        assert_eq!(drawn.flaw(), None);
        let mut often = Cursor::new(dice);
        let every: Vec<bool> = (0..2000).map(|ms| often.at(&drawn, ms * MS).is_some()).collect();
        for start in [7, 500, 1999] {
            let mut once = Cursor::new(dice);
            assert_eq!(once.at(&drawn, start * MS).is_some(), every[usize::try_from(start).unwrap()]);
        }
        assert!(every.iter().any(|bad| *bad) && every.iter().any(|bad| !*bad));
    }

    #[test]
    fn episodes_without_duration_would_never_end_and_are_found_out() {
        let none = Episode { gap_ns: Amount::Fixed(0), length_ns: Amount::Fixed(0), what: () };
        assert!(Episodes(vec![none]).flaw().is_some());
        assert!(Episodes::<()>(vec![]).flaw().is_some());
    }
}
