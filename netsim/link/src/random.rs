//! Random numbers by key: a seed for every purpose, and the mixer behind all of them.

/// The step of `SplitMix64`: 2^64 over the golden ratio.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A seed for a purpose: streams with different names or numbers have nothing in common.
pub fn derive(seed: u64, name: &str, number: u64) -> u64 {
    let mut hash = mix(seed ^ STEP);
    for byte in name.bytes() {
        hash = mix(hash ^ u64::from(byte));
    }
    mix(hash ^ mix(number))
}

/// The finalizer of `SplitMix64`: turns a counter into a random number.
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_seeds_differ_by_seed_name_and_number() {
        let all = [derive(1, "a", 0), derive(2, "a", 0), derive(1, "b", 0), derive(1, "a", 1), derive(1, "ab", 0)];
        let distinct: std::collections::BTreeSet<u64> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
