//! Datagrams are sealed: whoever does not hold the deployment's key can neither read nor make one.
//!
//! ```text
//! version  region  key id  nonce                                 sealed
//! 1 byte   1       4       12: session 7, counter 5              payload, and a tag of 16
//! ```
//!
//! ChaCha20-Poly1305; all before the sealed part is authenticated with it. The key is derived by HKDF-SHA256 from
//! the deployment's gossip key, its name and the region, so a datagram of another deployment, or of another region,
//! does not open. The key id, derived likewise, only tells a wrong key from damage.
//!
//! A nonce must never repeat under one key, and all nodes of a region share theirs. So each start of a node draws
//! 56 random bits (its *session*) and counts from there: after 100,000 starts, two have drawn the same with a
//! probability of 10^-7, and the counter lasts longer than anyone's hardware. Random nonces alone would need 96
//! bits from the operating system for each datagram, and could not tell a replayed datagram from a new one: session
//! and counter do that as well (see `seen`).

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use tern_core::clock::Entropy;
use tern_core::ids::Region;

use super::limits::DATAGRAM_BYTES;

/// The only version there is.
pub const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const SESSION_BYTES: usize = 7;
const HEADER_BYTES: usize = 2 + KEY_ID_BYTES + NONCE_LEN;
const TAG_BYTES: usize = 16;
/// What sealing adds.
pub const SEAL_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Counters lie below this.
const COUNTER_END: u64 = 1 << 40;

/// The deployment's key for gossip.
#[derive(Clone, PartialEq, Eq)]
pub struct GossipKey([u8; 32]);

impl std::fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GossipKey(..)")
    }
}

struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> Result<[u8; N], Unspecified> {
    let mut out = [0; N];
    Salt::new(HKDF_SHA256, salt).extract(secret).expand(info, Bytes(N))?.fill(&mut out)?;
    Ok(out)
}

impl GossipKey {
    /// From 32 secret bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key that belongs to a deployment's receipt key. Nobody can go back from it: edges get it, and can still
    /// make no receipts.
    pub fn from_receipt_key(secret: &[u8; 32]) -> Option<Self> {
        expand(secret, b"tern gossip", &[b"gossip key"]).ok().map(Self)
    }

    /// The bytes, for the file that other nodes get.
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unopened {
    /// Too short or too long.
    Size,
    /// Of another version.
    Version,
    /// Of another region.
    Region,
    /// Sealed with another key: another deployment, or a node with the wrong key.
    Key,
    /// Forged or damaged.
    Forged,
}

/// What was sealed, and which of its sender's datagrams it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened<'a> {
    /// Of the sender's start.
    pub session: u64,
    /// Grows by one with each datagram of the session.
    pub counter: u64,
    /// What was sealed.
    pub payload: &'a [u8],
}

/// Seals and opens for one region.
pub(crate) struct Sealer {
    key: LessSafeKey,
    head: [u8; 2 + KEY_ID_BYTES],
    pub(super) session: u64,
    pub(super) counter: u64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("counter", &self.counter).finish_non_exhaustive()
    }
}

impl Sealer {
    /// A new session. Fails only where ring does, which it does for no input of these lengths.
    pub fn new(key: &GossipKey, deployment: &str, region: Region, rng: &Entropy) -> Result<Self, Unspecified> {
        let region_bytes = [region];
        let sealing: [u8; 32] = expand(&key.0, deployment.as_bytes(), &[b"seal 1", &region_bytes])?;
        let id: [u8; KEY_ID_BYTES] = expand(&key.0, deployment.as_bytes(), &[b"id 1", &region_bytes])?;
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &sealing)?);
        let mut head = [VERSION, region, 0, 0, 0, 0];
        head[2..].copy_from_slice(&id);
        Ok(Self { key, head, session: rng.u64() >> 8, counter: 0 })
    }

    /// Seals a payload. None: it is too large, or the session's counters are used up.
    pub fn seal(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.len() + SEAL_BYTES > DATAGRAM_BYTES || self.counter >= COUNTER_END {
            return None;
        }
        let mut nonce = [0; NONCE_LEN];
        nonce[..SESSION_BYTES].copy_from_slice(&self.session.to_be_bytes()[1..]);
        nonce[SESSION_BYTES..].copy_from_slice(&self.counter.to_be_bytes()[3..]);
        self.counter += 1;
        let mut out = Vec::with_capacity(payload.len() + SEAL_BYTES);
        out.extend_from_slice(&self.head);
        out.extend_from_slice(&nonce);
        let mut sealed = payload.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(&self.head), &mut sealed).ok()?;
        out.extend_from_slice(&sealed);
        Some(out)
    }

    /// Opens a datagram in place.
    pub fn open<'a>(&self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Unopened> {
        if datagram.len() <= SEAL_BYTES || datagram.len() > DATAGRAM_BYTES {
            return Err(Unopened::Size);
        }
        let (head, rest) = datagram.split_at_mut(self.head.len());
        if head[0] != VERSION {
            return Err(Unopened::Version);
        }
        if head[1] != self.head[1] {
            return Err(Unopened::Region);
        }
        if head[2..] != self.head[2..] {
            return Err(Unopened::Key);
        }
        let (nonce, sealed) = rest.split_at_mut(NONCE_LEN);
        let number = |bytes: &[u8]| bytes.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let (session, counter) = (number(&nonce[..SESSION_BYTES]), number(&nonce[SESSION_BYTES..]));
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unopened::Size)?;
        let payload = self.key.open_in_place(nonce, Aad::from(&*head), sealed).map_err(|_| Unopened::Forged)?;
        Ok(Opened { session, counter, payload })
    }
}

/// The region that a datagram says it is of, before anything is known of it.
pub(crate) fn region_of(datagram: &[u8]) -> Option<Region> {
    datagram.get(1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(key: u8, deployment: &str, region: u8, seed: u64) -> Sealer {
        Sealer::new(&GossipKey::new([key; 32]), deployment, region, &Entropy::seeded(seed)).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_for_the_same_region_of_the_same_deployment_only() {
        let mut from = sealer(7, "prod", 1, 1);
        let sealed = from.seal(b"news").unwrap();
        assert_eq!(sealed.len(), 4 + SEAL_BYTES);
        assert!(!sealed.windows(4).any(|w| w == b"news"));
        let open = |to: Sealer| to.open(&mut sealed.clone()).map(|o| (o.counter, o.payload.to_vec()));
        assert_eq!(open(sealer(7, "prod", 1, 2)), Ok((0, b"news".to_vec())));
        assert_eq!(open(sealer(7, "test", 1, 2)), Err(Unopened::Key));
        assert_eq!(open(sealer(8, "prod", 1, 2)), Err(Unopened::Key));
        assert_eq!(open(sealer(7, "prod", 2, 2)), Err(Unopened::Region));
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let mut from = sealer(7, "prod", 1, 1);
        let to = sealer(7, "prod", 1, 2);
        let sealed = from.seal(b"news of the day").unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(to.open(&mut changed).is_err(), "byte {at}");
            assert!(to.open(&mut sealed[..at].to_vec()).is_err(), "cut to {at}");
        }
        let mut version = sealed.clone();
        version[0] = 2;
        assert_eq!(to.open(&mut version), Err(Unopened::Version));
        let mut longer = sealed;
        longer.resize(DATAGRAM_BYTES + 1, 0);
        assert_eq!(to.open(&mut longer), Err(Unopened::Size));
    }

    #[test]
    fn no_two_datagrams_have_one_nonce() {
        let mut a = sealer(7, "prod", 1, 1);
        let mut b = sealer(7, "prod", 1, 2);
        let nonce = |sealed: Vec<u8>| sealed[6..18].to_vec();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            assert!(seen.insert(nonce(a.seal(b"x").unwrap())));
            assert!(seen.insert(nonce(b.seal(b"x").unwrap())));
        }
        a.counter = COUNTER_END;
        assert_eq!(a.seal(b"x"), None);
    }

    #[test]
    fn the_format_on_the_wire_stays() {
        let mut from = sealer(7, "prod", 1, 1);
        from.session = 0x0001_0203_0405_0607;
        from.counter = 0x0a;
        let hex: String = from.seal(b"news").unwrap().iter().map(|b| format!("{b:02x}")).collect();
        // As HKDF and ChaCha20-Poly1305 of another library have it.
        assert_eq!(hex, "010142e35d8501020304050607000000000a33fc430ac4eddbf5cc8e2bd0d0b2bca25bb6e320");
    }

    #[test]
    fn the_key_of_a_receipt_key_is_not_that_key() {
        let key = GossipKey::from_receipt_key(&[1; 32]).unwrap();
        assert_ne!(key.reveal(), &[1; 32]);
        assert_eq!(key, GossipKey::from_receipt_key(&[1; 32]).unwrap());
        assert!(!format!("{key:?}").contains(char::is_numeric));
    }
}
