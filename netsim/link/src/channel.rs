//! Which packets are lost by chance.
//!
//! Whether a packet is marked is decided when it enters, from its own numbers; whether it suffers for that, when
//! its last bit leaves: a packet that a full queue dropped has still moved the channel. Were the channel moved
//! only by packets that reach it, another queue length would give other bursts, and a scenario could not be cut
//! down. Slots are spans of time, so they judge by the moment at which the packet leaves.

use crate::dice::{Chance, Dice, Purpose, Roll, Way};
use crate::episodes::Cursor;
use crate::spec::Loss;

/// What a packet brings with it into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Chance spares it.
    Spared,
    /// It will be lost.
    Lost,
    /// It is lost if it leaves in a slot, and this number says so.
    BySlot(Roll),
}

/// The state of the losses of one direction.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    loss: Dice,
    change: Dice,
    bad: bool,
    slots: Cursor,
}

impl Channel {
    pub(crate) fn new(seed: u64, link: &str, way: Way) -> Self {
        let dice = |purpose| Dice::new(seed, link, way, purpose);
        Self {
            loss: dice(Purpose::Loss),
            change: dice(Purpose::Channel),
            bad: false,
            slots: Cursor::new(dice(Purpose::Slots)),
        }
    }

    /// Decides about a packet that enters.
    pub(crate) fn mark(&mut self, loss: &Loss, number: u64) -> Mark {
        let roll = self.loss.roll(number);
        let lost = match loss {
            Loss::None => false,
            Loss::Random(chance) => roll.hits(*chance),
            Loss::Bursts { to_bad, to_good, good, bad } => {
                let changes = if self.bad { *to_good } else { *to_bad };
                self.bad ^= self.change.roll(number).hits(changes);
                roll.hits(if self.bad { *bad } else { *good })
            }
            Loss::Slots(_) => return Mark::BySlot(roll),
        };
        if lost { Mark::Lost } else { Mark::Spared }
    }

    /// Whether a packet is lost whose last bit leaves now. Moments must not go back.
    pub(crate) fn loses(&mut self, loss: &Loss, mark: Mark, now_ns: u64) -> bool {
        match (mark, loss) {
            (Mark::Spared, _) => false,
            (Mark::Lost, _) => true,
            (Mark::BySlot(roll), Loss::Slots(slots)) => {
                let chance = self.slots.at(slots, now_ns).map_or(Chance::NEVER, |(chance, _)| *chance);
                roll.hits(chance)
            }
            // The link lost its slots while the packet waited.
            (Mark::BySlot(_), _) => false,
        }
    }

    /// The losses are others from now on; slots begin to be counted anew, from the world's beginning.
    pub(crate) fn replaced(&mut self, seed: u64, link: &str, way: Way) {
        self.slots = Cursor::new(Dice::new(seed, link, way, Purpose::Slots));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Amount;
    use crate::episodes::{Episode, Episodes};

    const PACKETS: u64 = 200_000;

    fn lost(loss: &Loss) -> Vec<bool> {
        let mut channel = Channel::new(1, "l", Way::Up);
        (0..PACKETS)
            .map(|number| {
                let mark = channel.mark(loss, number);
                channel.loses(loss, mark, number * 1_000_000)
            })
            .collect()
    }

    fn per_mille(lost: &[bool]) -> usize {
        lost.iter().filter(|lost| **lost).count() * 1000 / lost.len()
    }

    fn mean_burst_tenths(lost: &[bool]) -> usize {
        let bursts = lost.windows(2).filter(|two| !two[0] && two[1]).count();
        lost.iter().filter(|lost| **lost).count() * 10 / bursts
    }

    #[test]
    fn single_losses_and_bursts_have_their_share_and_length() {
        let single = lost(&Loss::Random(Chance::percent(5)));
        assert!((48..=52).contains(&per_mille(&single)));
        assert!((10..=11).contains(&mean_burst_tenths(&single)));
        let bursts = lost(&Loss::bursts(Chance::percent(5), 8));
        assert!((45..=55).contains(&per_mille(&bursts)), "{}", per_mille(&bursts));
        assert!((76..=84).contains(&mean_burst_tenths(&bursts)), "{}", mean_burst_tenths(&bursts));
        assert!(!lost(&Loss::None).contains(&true));
    }

    #[test]
    fn a_packet_more_or_less_does_not_change_what_becomes_of_the_others() {
        let loss = Loss::Random(Chance::percent(5));
        let all = lost(&loss);
        let mut channel = Channel::new(1, "l", Way::Up);
        for number in (0..PACKETS).step_by(3) {
            let mark = channel.mark(&loss, number);
            assert_eq!(mark == Mark::Lost, all[usize::try_from(number).unwrap()]);
        }
    }

    #[test]
    fn slots_lose_by_their_chance_and_nothing_outside() {
        let of = |gap, length, what| Episode { gap_ns: Amount::Fixed(gap), length_ns: Amount::Fixed(length), what };
        // One packet a millisecond: nine pass, ten are in a slot that loses half; then ten pass, one is lost.
        let loss = Loss::Slots(Episodes(vec![
            of(9_000_000, 10_000_000, Chance::percent(50)),
            of(10_000_000, 1_000_000, Chance::ALWAYS),
        ]));
        let lost = lost(&loss);
        let at = |phase: usize| {
            let hit = lost.iter().skip(phase).step_by(30).filter(|lost| **lost).count();
            hit * 100 / lost.iter().skip(phase).step_by(30).count()
        };
        assert!((0..9).chain(19..29).all(|phase| at(phase) == 0));
        assert!((9..19).all(|phase| (45..=55).contains(&at(phase))));
        assert_eq!(at(29), 100);
    }
}
