//! Mutations from a seed: what libFuzzer does first, without its guidance, the same on every machine.

/// Inputs grow to this and no further.
pub const INPUT_BYTES: usize = 64 * 1024;
/// Bytes at which decoders turn: lengths, continuation bits, signs.
const EDGES: [u8; 9] = [0, 1, 2, 0x7f, 0x80, 0x81, 0xc0, 0xfe, 0xff];

/// xorshift64* (Vigna 2016).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Equal seeds give equal sequences.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`; 0 where that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { usize::try_from(self.draw() >> 33).unwrap_or(0) % bound }
    }

    fn byte(&mut self) -> u8 {
        self.draw().to_be_bytes()[0]
    }
}

/// One input made from those that there are.
pub fn mutate(random: &mut Random, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut out = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len());
        match random.below(10) {
            0 if !out.is_empty() => out[at] ^= 1 << random.below(8),
            1 if !out.is_empty() => out[at] = EDGES[random.below(EDGES.len())],
            2 if !out.is_empty() => out[at] = random.byte(),
            3 => out.truncate(at),
            4 => {
                // The head of one, the tail of another.
                let other = &inputs[random.below(inputs.len())];
                out.truncate(at);
                out.extend_from_slice(&other[random.below(other.len())..]);
            }
            5 => {
                let count = random.below(16) + 1;
                let bytes: Vec<u8> = (0..count).map(|_| random.byte()).collect();
                out.splice(at..at, bytes);
            }
            6 => {
                // A part once more, or many times.
                let part = out[at..(at + random.below(64) + 1).min(out.len())].to_vec();
                let times = if random.below(8) == 0 { 64 } else { 1 };
                out.splice(at..at, part.repeat(times));
            }
            7 if !out.is_empty() => {
                // A length that says more than there is.
                let length: &[u8] = match random.below(3) {
                    0 => &[0xff, 0xff, 0xff, 0xff, 0x0f],
                    1 => &[0x80, 0x80, 0x04],
                    _ => &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                };
                out.splice(at..=at, length.iter().copied());
            }
            8 => {
                let end = (at + random.below(32) + 1).min(out.len());
                out.drain(at..end);
            }
            _ => out.extend((0..random.below(32)).map(|_| random.byte())),
        }
    }
    out.truncate(INPUT_BYTES);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_inputs_others_do_not_and_none_grows_without_end() {
        let seeds = vec![vec![1, 2, 3], Vec::new(), vec![7; 50_000]];
        let run = |seed| {
            let mut random = Random::new(seed);
            (0..2_000).map(|_| mutate(&mut random, &seeds)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!(run(3).iter().all(|input| input.len() <= INPUT_BYTES));
    }
}
