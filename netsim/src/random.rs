//! The process's randomness, seeded.
//!
//! Libraries draw keys for their hash maps, and the runtime its own seed, from the C function `getrandom`.
//! A binary that runs simulations defines that function itself and calls [`fill`], see
//! `src/getrandom.rs`. The state is the process's because the function is: it is the one thing
//! that runs in one process share, which is why a process runs one seed.

use std::sync::atomic::{AtomicU64, Ordering};

pub use tern_netsim_link::random::derive;
use tern_netsim_link::random::{STEP, mix};

static STATE: AtomicU64 = AtomicU64::new(0);

/// Starts the process's randomness anew.
pub fn seed(seed: u64) {
    STATE.store(mix(seed), Ordering::SeqCst);
}

/// Starts the process's randomness from the system's: for a program that is no simulation, though it could run one.
pub fn seed_from_system() -> std::io::Result<()> {
    let mut drawn = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut drawn)?;
    seed(u64::from_le_bytes(drawn));
    Ok(())
}

/// How often randomness was drawn since it was seeded, in units of 8 bytes; tells whether the hook works.
pub fn drawn(seed: u64) -> u64 {
    let distance = STATE.load(Ordering::SeqCst).wrapping_sub(mix(seed));
    distance.wrapping_mul(STEP_INVERSE)
}

/// Fills `out` with the next numbers (`SplitMix64`). No cryptography: a simulation has no secrets.
pub fn fill(out: &mut [u8]) {
    for chunk in out.chunks_mut(8) {
        let state = STATE.fetch_add(STEP, Ordering::SeqCst).wrapping_add(STEP);
        chunk.copy_from_slice(&mix(state).to_le_bytes()[..chunk.len()]);
    }
}

/// STEP * STEP_INVERSE = 1 (mod 2^64), by Newton's iteration: each step doubles the valid bits.
const STEP_INVERSE: u64 = {
    let mut inverse = STEP;
    let mut i = 0;
    while i < 6 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(STEP.wrapping_mul(inverse)));
        i += 1;
    }
    inverse
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_drawn_is_counted_and_seeds_repeat() {
        seed(7);
        let (mut a, mut b) = ([0; 20], [0; 20]);
        fill(&mut a);
        assert_eq!(drawn(7), 3);
        seed(7);
        fill(&mut b);
        assert_eq!(a, b);
    }
}
