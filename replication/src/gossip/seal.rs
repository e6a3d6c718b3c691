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
//!
//! A deployment may have several keys ([`GossipKeys`]): the first seals, all open. So a key is replaced without a
//! moment in which two nodes can't read each other: the new one becomes the second on every node, then the first on
//! every node, then the old one goes. Session and counter go on: a datagram that was recorded under one key is no
//! newer under another.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use tern_core::clock::Entropy;
use tern_core::ids::Region;

use super::limits::{DATAGRAM_BYTES, KEYS_MAX};

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

    /// Eight digits by which people tell keys apart, and that tell nothing of it.
    pub fn fingerprint(&self) -> String {
        let print: [u8; 4] = expand(&self.0, b"tern gossip", &[b"fingerprint 1"]).unwrap_or_default();
        print.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes, for the file that other nodes get.
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The deployment's keys for gossip: the first seals, all open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipKeys(Vec<GossipKey>);

/// Why keys are none that can be used together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// None.
    #[error("there is no key")]
    None,
    /// Too many.
    #[error("there are {0} keys, and at most {KEYS_MAX} are taken: remove those that no node seals with any more")]
    TooMany(usize),
    /// One of them is there twice.
    #[error("key {0} is one of those before it: a rotation needs a new one")]
    Twice(usize),
}

impl GossipKeys {
    /// In this order.
    pub fn new(keys: Vec<GossipKey>) -> Result<Self, KeysError> {
        match keys.len() {
            0 => return Err(KeysError::None),
            count if count > KEYS_MAX => return Err(KeysError::TooMany(count)),
            _ => {}
        }
        match (1..keys.len()).find(|at| keys[..*at].contains(&keys[*at])) {
            Some(at) => Err(KeysError::Twice(at + 1)),
            None => Ok(Self(keys)),
        }
    }

    /// In their order, at least one.
    pub fn keys(&self) -> &[GossipKey] {
        &self.0
    }
}

impl From<GossipKey> for GossipKeys {
    fn from(key: GossipKey) -> Self {
        Self(vec![key])
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
    /// It was sealed with another key than this node seals with.
    pub by_other_key: bool,
    /// What was sealed.
    pub payload: &'a [u8],
}

/// What one key comes to for one region.
struct RegionKey {
    key: LessSafeKey,
    head: [u8; 2 + KEY_ID_BYTES],
}

impl RegionKey {
    fn new(key: &GossipKey, deployment: &str, region: Region) -> Result<Self, Unspecified> {
        let region_bytes = [region];
        let sealing: [u8; 32] = expand(&key.0, deployment.as_bytes(), &[b"seal 1", &region_bytes])?;
        let id: [u8; KEY_ID_BYTES] = expand(&key.0, deployment.as_bytes(), &[b"id 1", &region_bytes])?;
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &sealing)?);
        let mut head = [VERSION, region, 0, 0, 0, 0];
        head[2..].copy_from_slice(&id);
        Ok(Self { key, head })
    }
}

/// Seals and opens for one region.
pub(crate) struct Sealer {
    seals: RegionKey,
    /// Keys that only open.
    opens: Vec<RegionKey>,
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
    pub fn new(keys: &GossipKeys, deployment: &str, region: Region, rng: &Entropy) -> Result<Self, Unspecified> {
        let (seals, opens) = Self::expand(keys, deployment, region)?;
        Ok(Self { seals, opens, session: rng.u64() >> 8, counter: 0 })
    }

    /// Seals and opens with these from now on, in the same session.
    pub fn set_keys(&mut self, keys: &GossipKeys, deployment: &str, region: Region) -> Result<(), Unspecified> {
        (self.seals, self.opens) = Self::expand(keys, deployment, region)?;
        Ok(())
    }

    fn expand(keys: &GossipKeys, deployment: &str, region: Region) -> Result<(RegionKey, Vec<RegionKey>), Unspecified> {
        let mut keys = keys.0.iter().map(|key| RegionKey::new(key, deployment, region));
        let seals = keys.next().unwrap_or(Err(Unspecified))?;
        Ok((seals, keys.collect::<Result<_, _>>()?))
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
        let RegionKey { key, head } = &self.seals;
        let mut out = Vec::with_capacity(payload.len() + SEAL_BYTES);
        out.extend_from_slice(head);
        out.extend_from_slice(&nonce);
        let mut sealed = payload.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from(head), &mut sealed).ok()?;
        out.extend_from_slice(&sealed);
        Some(out)
    }

    /// Opens a datagram in place.
    pub fn open<'a>(&self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Unopened> {
        if datagram.len() <= SEAL_BYTES || datagram.len() > DATAGRAM_BYTES {
            return Err(Unopened::Size);
        }
        let (head, rest) = datagram.split_at_mut(self.seals.head.len());
        if head[0] != VERSION {
            return Err(Unopened::Version);
        }
        if head[1] != self.seals.head[1] {
            return Err(Unopened::Region);
        }
        // Two keys of a deployment with one id: once in four thousand million pairs. Then the earlier one counts, and
        // what the other sealed is dropped as forged until one of them is gone.
        let by_first = head == self.seals.head;
        let by = if by_first { Some(&self.seals) } else { self.opens.iter().find(|key| head == key.head) };
        let RegionKey { key, .. } = by.ok_or(Unopened::Key)?;
        let (nonce, sealed) = rest.split_at_mut(NONCE_LEN);
        let number = |bytes: &[u8]| bytes.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let (session, counter) = (number(&nonce[..SESSION_BYTES]), number(&nonce[SESSION_BYTES..]));
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unopened::Size)?;
        let payload = key.open_in_place(nonce, Aad::from(&*head), sealed).map_err(|_| Unopened::Forged)?;
        Ok(Opened { session, counter, by_other_key: !by_first, payload })
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
        Sealer::new(&GossipKey::new([key; 32]).into(), deployment, region, &Entropy::seeded(seed)).unwrap()
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
    fn the_first_key_seals_and_all_open_through_a_rotation_in_any_order_of_nodes() {
        let keys = |numbers: &[u8]| {
            GossipKeys::new(numbers.iter().map(|number| GossipKey::new([*number; 32])).collect()).unwrap()
        };
        let with = |numbers: &[u8], seed| Sealer::new(&keys(numbers), "prod", 1, &Entropy::seeded(seed)).unwrap();
        let opens = |from: &mut Sealer, to: &Sealer| {
            let mut sealed = from.seal(b"news").unwrap();
            to.open(&mut sealed).map(|o| (o.payload.to_vec(), o.by_other_key)).map(|(payload, other)| {
                assert_eq!(payload, b"news");
                other
            })
        };
        // Nodes of two neighbouring steps read each other; of steps further apart they do not.
        let steps: [&[u8]; 4] = [&[1], &[1, 2], &[2, 1], &[2]];
        for (at, step) in steps.iter().enumerate() {
            for (beside, other) in steps.iter().enumerate() {
                let read = opens(&mut with(step, 1), &with(other, 2));
                if at.abs_diff(beside) <= 1 {
                    assert_eq!(read, Ok(step[0] != other[0]), "{step:?} to {other:?}");
                } else if !other.contains(&step[0]) {
                    assert_eq!(read, Err(Unopened::Key), "{step:?} to {other:?}");
                }
            }
        }
        // A change goes on in the same session, so that nothing is sealed twice under one nonce.
        let mut node = with(&[1], 1);
        let (session, _) = (node.session, node.seal(b"x").unwrap());
        node.set_keys(&keys(&[2, 1]), "prod", 1).unwrap();
        assert_eq!((node.session, node.counter), (session, 1));
        assert_eq!(opens(&mut node, &with(&[1], 2)), Err(Unopened::Key));
        assert_eq!(opens(&mut node, &with(&[2], 2)), Ok(false));
    }

    #[test]
    fn no_keys_too_many_and_one_key_twice_are_refused() {
        let keys = |numbers: &[u8]| GossipKeys::new(numbers.iter().map(|n| GossipKey::new([*n; 32])).collect());
        assert_eq!(keys(&[]), Err(KeysError::None));
        assert_eq!(keys(&[1, 2, 1]), Err(KeysError::Twice(3)));
        assert_eq!(keys(&[1, 2, 3, 4, 5]), Err(KeysError::TooMany(5)));
        assert_eq!(keys(&[1, 2, 3, 4]).unwrap().keys().len(), KEYS_MAX);
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
