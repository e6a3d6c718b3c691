//! Hashes of users, installs and routes: short, the same in all regions of a deployment, and not to be foreseen by
//! whoever chooses a name.
//!
//! SipHash-1-3 (Aumasson, Bernstein 2012; one round per word, three at the end), under a key that follows from the
//! deployment's salt. Clients choose the ids of their installs, and often those of their users: under a hash that is
//! known a few thousand names could be made to lie in one place.

use ring::digest::{Context, SHA256};

use crate::ids::InstallId;

/// Bits of a hash that stand for an install among those of one user, of whom there are at most ten: two of them agree
/// in one of six million million cases, and then end each other's connections.
pub const INSTALL_BITS: u32 = 48;

/// The key of a deployment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(u64, u64);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The key of the deployment that has this salt: the first 16 bytes of SHA-256 over "routes" and the salt, each
    /// with its length before it, as two little-endian numbers.
    pub fn of(salt: &[u8]) -> Self {
        let mut hash = Context::new(&SHA256);
        for part in [b"routes", salt] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finish();
        let (first, second) = digest.as_ref().split_at(8);
        Self(word(first), word(second))
    }

    /// What stands for an install among those of one user.
    pub fn install(&self, install: &InstallId) -> u64 {
        self.hash(install.as_str().as_bytes()) >> (u64::BITS - INSTALL_BITS)
    }

    /// SipHash-1-3 of the bytes.
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        let mut v = [
            self.0 ^ 0x736f_6d65_7073_6575,
            self.1 ^ 0x646f_7261_6e64_6f6d,
            self.0 ^ 0x6c79_6765_6e65_7261,
            self.1 ^ 0x7465_6462_7974_6573,
        ];
        let mut words = bytes.chunks_exact(8);
        for chunk in &mut words {
            let m = word(chunk);
            v[3] ^= m;
            round(&mut v);
            v[0] ^= m;
        }
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        let m = u64::from_le_bytes(last) | (bytes.len() as u64) << 56;
        v[3] ^= m;
        round(&mut v);
        v[0] ^= m;
        v[2] ^= 0xff;
        for _ in 0..3 {
            round(&mut v);
        }
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }
}

/// The first 8 bytes, little-endian; fewer count as if zeros followed.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_siphash_1_3() {
        // What the standard library's hasher, which is SipHash-1-3 under a key of zeros, says of the same bytes.
        use std::hash::{DefaultHasher, Hasher as _};
        let text: Vec<u8> = (0..64).collect();
        for end in 0..text.len() {
            let mut theirs = DefaultHasher::new();
            theirs.write(&text[..end]);
            assert_eq!(Key(0, 0).hash(&text[..end]), theirs.finish(), "{end} bytes");
        }
    }

    #[test]
    fn its_values_are_part_of_the_protocol_and_stay() {
        let key = Key::of(b"salt");
        let install = InstallId::new("phone").unwrap();
        assert_eq!((key.hash(b"alice"), key.install(&install)), GOLDEN);
        assert_ne!(Key::of(b"other").hash(b"alice"), GOLDEN.0);
        assert!(key.install(&install) < 1 << INSTALL_BITS);
    }

    const GOLDEN: (u64, u64) = (4_423_584_809_285_136_052, 155_486_586_686_296);
}
