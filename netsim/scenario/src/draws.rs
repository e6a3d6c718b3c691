//! What a seed decides.
//!
//! Each number has a key of its own: the seed, the kind of thing, its id, and the field. So no number depends on
//! what else a scenario has, and a fault less changes no other. That is what makes cutting down possible.

use tern_netsim_link::Roll;
use tern_netsim_link::random::derive;

/// The numbers of one seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws {
    pub seed: u64,
}

impl Draws {
    /// The number of a field.
    pub fn roll(&self, kind: &str, id: &str, field: &str) -> Roll {
        Roll(derive(derive(derive(self.seed, kind, 0), id, 0), field, 0))
    }

    /// A value of a range, both ends included.
    pub fn within(&self, kind: &str, id: &str, field: &str, (low, high): (u64, u64)) -> u64 {
        if low == high { low } else { self.roll(kind, id, field).within(low, high) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_depends_on_its_own_key_alone() {
        let draws = Draws { seed: 1 };
        let one = draws.within("fault", "tunnel", "at", (0, u64::MAX - 1));
        assert_eq!(one, draws.within("fault", "tunnel", "at", (0, u64::MAX - 1)));
        for other in
            [draws.roll("fault", "tunnel", "for"), draws.roll("fault", "x", "at"), draws.roll("load", "tunnel", "at")]
        {
            assert_ne!(one, other.within(0, u64::MAX - 1));
        }
        assert_eq!(draws.within("a", "b", "c", (7, 7)), 7);
    }
}
