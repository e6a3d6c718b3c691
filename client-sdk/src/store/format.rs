//! Values as bytes, where a column holds several. Golden bytes in the tests pin them.

use std::collections::{BTreeMap, BTreeSet};

use tern_core::client::{key_bytes, key_from_bytes};
use tern_core::ids::{Heads, Origin, Place, Seq};

/// Region, then era: 9 bytes.
pub(super) fn origin_bytes(origin: Origin) -> [u8; 9] {
    let mut out = [0; 9];
    out[0] = origin.region;
    out[1..].copy_from_slice(&origin.era.to_be_bytes());
    out
}

pub(super) fn origin_from(bytes: &[u8]) -> Option<Origin> {
    let (region, era) = bytes.split_first()?;
    Some(Origin { region: *region, era: u64::from_be_bytes(era.try_into().ok()?) })
}

/// Per origin its 9 bytes and 8 of the seq.
pub(super) fn heads_bytes(heads: &Heads) -> Vec<u8> {
    heads.iter().flat_map(|(o, s)| origin_bytes(*o).into_iter().chain(s.to_be_bytes())).collect()
}

pub(super) fn heads_from(bytes: &[u8]) -> Option<Heads> {
    let one = |c: &[u8]| Some((origin_from(&c[..9])?, u64::from_be_bytes(c[9..].try_into().ok()?)));
    bytes.len().is_multiple_of(17).then(|| bytes.chunks_exact(17).map(one).collect()).flatten()
}

/// Per origin its 9 bytes.
pub(super) fn origins_bytes(origins: &BTreeSet<Origin>) -> Vec<u8> {
    origins.iter().flat_map(|o| origin_bytes(*o)).collect()
}

pub(super) fn origins_from(bytes: &[u8]) -> Option<BTreeSet<Origin>> {
    bytes.len().is_multiple_of(9).then(|| bytes.chunks_exact(9).map(origin_from).collect()).flatten()
}

/// Per origin its 9 bytes, 8 of the seq, 25 of the copy's display key.
pub(super) fn places_bytes(places: &BTreeMap<Origin, (Seq, Place)>) -> Vec<u8> {
    let one = |(o, (s, k)): (&Origin, &(Seq, Place))| {
        origin_bytes(*o).into_iter().chain(s.to_be_bytes()).chain(key_bytes(*k))
    };
    places.iter().flat_map(one).collect()
}

pub(super) fn places_from(bytes: &[u8]) -> Option<BTreeMap<Origin, (Seq, Place)>> {
    let one = |c: &[u8]| {
        let seq = u64::from_be_bytes(c[9..17].try_into().ok()?);
        Some((origin_from(&c[..9])?, (seq, key_from_bytes(&c[17..])?)))
    };
    bytes.len().is_multiple_of(42).then(|| bytes.chunks_exact(42).map(one).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let origin = Origin { region: 2, era: 0x0102_0304_0506_0708 };
        let heads = Heads::from([(origin, 9)]);
        let mut expected = vec![2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(heads_bytes(&heads), expected);
        assert_eq!(heads_from(&expected), Some(heads));
        let key = Place { hlc: 0xa, origin, seq: 0xb };
        let places = BTreeMap::from([(origin, (9, key))]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0xa, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0xb]);
        assert_eq!(places_bytes(&places), expected);
        assert_eq!(places_from(&expected), Some(places));
        let tried = BTreeSet::from([origin]);
        assert_eq!(origins_bytes(&tried), expected[..9]);
        assert_eq!(origins_from(&expected[..9]), Some(tried));
        assert_eq!(origins_from(&[0; 8]), None);
        assert_eq!(heads_from(&[0; 16]), None);
        assert_eq!(places_from(&[0; 41]), None);
        assert_eq!(heads_from(&[]), Some(Heads::new()));
    }
}
