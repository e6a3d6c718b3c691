//! The hybrid logical clock of a conversation (R5).
//!
//! Messages order by it, so it must never place an answer before what its sender had seen. It belongs to a
//! conversation, never to a node: a node-wide clock would let one fast clock drag every conversation with it.

use crate::mutants::{Mutant, on};

/// Bits of the counter below the milliseconds.
pub const COUNTER_BITS: u32 = 16;

/// The reading for a wall clock of `ms` since 1970, with its counter at 0.
pub const fn from_ms(ms: u64) -> u64 {
    ms << COUNTER_BITS
}

/// The milliseconds of a reading.
pub const fn to_ms(hlc: u64) -> u64 {
    hlc >> COUNTER_BITS
}

/// The reading for the next entry of a conversation: above everything that the sending device had seen in it
/// and above everything held here, copies of every origin included.
pub fn next(now_ms: u64, seen: u64, highest_here: u64) -> u64 {
    from_ms(now_ms).max(seen.saturating_add(1)).max(highest_here.saturating_add(1))
}

/// Whether a client's stamp is further ahead than clocks may be: such a send is answered `behind`, because
/// accepting it would drag the conversation into the future for everyone.
pub fn too_far_ahead(seen: u64, now_ms: u64, highest_here: u64, allowed_ms: u64) -> bool {
    to_ms(seen) > now_ms.max(to_ms(highest_here)).saturating_add(allowed_ms) && !on(Mutant::FutureStampTaken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_who_roams_to_a_region_50_ms_behind_stays_after_what_he_saw() {
        let seen_in_the_old_region = next(1_000_050, 0, 0);
        let given_by_the_new_region = next(1_000_000, seen_in_the_old_region, 0);
        assert!(given_by_the_new_region > seen_in_the_old_region);
    }

    #[test]
    fn a_region_ten_minutes_ahead_does_not_hide_later_answers_of_others() {
        let from_the_fast_region = next(1_600_000, 0, 0);
        let answer = next(1_000_000, 0, from_the_fast_region);
        assert!(answer > from_the_fast_region);
    }

    #[test]
    fn a_stamp_is_refused_only_beyond_both_the_clock_and_the_conversation() {
        assert!(too_far_ahead(from_ms(1_061_000), 1_000_000, 0, 60_000));
        assert!(!too_far_ahead(from_ms(1_061_000), 1_000_000, from_ms(1_050_000), 60_000));
        assert!(!too_far_ahead(from_ms(1_060_000), 1_000_000, 0, 60_000));
    }

    #[test]
    fn equal_milliseconds_are_told_apart_by_the_counter() {
        let first = next(5, 0, 0);
        assert_eq!(next(5, 0, first), first + 1);
        assert_eq!(to_ms(first + 1), 5);
    }
}
