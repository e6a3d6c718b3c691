//! Time and randomness as they are handed to nodes and clients.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// The two readings every node and client has.
pub trait Clock: Send + Sync + Debug + 'static {
    /// Monotonic time since an arbitrary start. Goes on while the machine is suspended, where the platform
    /// can tell.
    fn now(&self) -> Duration;
    /// Milliseconds since 1970 by the machine's calendar clock, which may jump either way.
    fn wall_ms(&self) -> u64;
}

/// A source of random numbers, one per node or client: from the operating system in production, from a seed
/// in simulation.
#[derive(Debug)]
pub struct Entropy(Mutex<StdRng>);

impl Entropy {
    /// Seeded; equal seeds give equal sequences.
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    /// From 32 random bytes of the operating system.
    pub fn from_bytes(seed: [u8; 32]) -> Self {
        Self(Mutex::new(StdRng::from_seed(seed)))
    }

    /// A uniformly distributed number.
    pub fn u64(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }

    /// A number in `0..bound`; 0 where `bound` is 0. The bias is below 2^-32 for bounds below 2^32.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.u64() % bound }
    }

    /// Fills `out`.
    pub fn fill(&self, out: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(out);
    }
}
