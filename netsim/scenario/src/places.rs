//! Where regions stand, how far they are from each other, and which addresses people have there.
//!
//! Round trips between data centres of one large cloud, medians in ms (cloudping, November 2026). A scenario that
//! names its regions after them needs no paths. Addresses matter because dispatch places a client by its address:
//! each block here is one that the shipped GeoIP data puts into one country as a whole, so that a device of a place
//! is found near that place.

use std::net::Ipv4Addr;

/// A data centre: its short name, latitude and longitude in degrees.
pub(crate) const CLOUD: [(&str, (f64, f64)); 8] = [
    ("use1", (39.04, -77.49)),
    ("usw2", (45.84, -119.70)),
    ("sae1", (-23.55, -46.63)),
    ("euc1", (50.11, 8.68)),
    ("aps1", (19.08, 72.88)),
    ("apse1", (1.35, 103.82)),
    ("apne1", (35.68, 139.69)),
    ("apse2", (-33.87, 151.21)),
];

/// Round trips in ms, above the diagonal, in the order of [`CLOUD`].
const RTT_MS: [&[u64]; 7] = [
    &[64, 115, 93, 193, 220, 150, 200],
    &[175, 143, 222, 160, 98, 141],
    &[205, 302, 328, 259, 312],
    &[129, 160, 227, 251],
    &[64, 133, 155],
    &[71, 95],
    &[106],
];

/// Blocks of 65,536 addresses: the country's letters, a point in it, the first address.
pub const BLOCKS: [(&str, (f64, f64), Ipv4Addr); 12] = [
    ("US", (39.8, -95.0), Ipv4Addr::new(4, 32, 0, 0)),
    ("CA", (45.4, -75.7), Ipv4Addr::new(70, 80, 0, 0)),
    ("BR", (-20.0, -47.0), Ipv4Addr::new(177, 32, 0, 0)),
    ("DE", (50.9, 9.5), Ipv4Addr::new(91, 0, 0, 0)),
    ("GB", (52.5, -1.5), Ipv4Addr::new(86, 128, 0, 0)),
    ("FR", (47.5, 2.5), Ipv4Addr::new(86, 192, 0, 0)),
    ("ZA", (-28.0, 28.0), Ipv4Addr::new(41, 0, 0, 0)),
    ("IN", (21.0, 78.0), Ipv4Addr::new(49, 32, 0, 0)),
    ("SG", (1.35, 103.8), Ipv4Addr::new(151, 192, 0, 0)),
    ("KR", (37.0, 127.5), Ipv4Addr::new(112, 144, 0, 0)),
    ("JP", (36.0, 138.5), Ipv4Addr::new(126, 0, 0, 0)),
    ("AU", (-33.0, 148.0), Ipv4Addr::new(1, 128, 0, 0)),
];

/// Coordinates of a data centre.
pub(crate) fn cloud(name: &str) -> Option<(f64, f64)> {
    CLOUD.iter().find(|(known, _)| *known == name).map(|(_, at)| *at)
}

/// Round trip between two data centres, in nanoseconds.
pub(crate) fn cloud_rtt_ns(a: &str, b: &str) -> Option<u64> {
    let index = |name: &str| CLOUD.iter().position(|(known, _)| *known == name);
    let (a, b) = (index(a)?, index(b)?);
    let (low, high) = (a.min(b), a.max(b));
    let rtt_ms = RTT_MS.get(low)?.get(high.checked_sub(low + 1)?)?;
    Some(rtt_ms * 1_000_000)
}

/// The block of the country nearest to a point.
pub(crate) fn block_at(at: (f64, f64)) -> Ipv4Addr {
    let away = |to: (f64, f64)| {
        // Flat, with degrees of longitude as wide as they are there: near is all that is asked.
        let wide = at.0.to_radians().cos();
        let mut east = (at.1 - to.1).abs();
        if east > 180.0 {
            east = 360.0 - east;
        }
        (at.0 - to.0).powi(2) + (east * wide).powi(2)
    };
    let mut nearest = (f64::MAX, BLOCKS[0].2);
    for (_, to, block) in BLOCKS {
        if away(to) < nearest.0 {
            nearest = (away(to), block);
        }
    }
    nearest.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_data_centres_has_one_round_trip_both_ways() {
        for (i, (a, _)) in CLOUD.iter().enumerate() {
            for (j, (b, _)) in CLOUD.iter().enumerate() {
                assert_eq!(cloud_rtt_ns(a, b).is_some(), i != j, "{a} {b}");
                assert_eq!(cloud_rtt_ns(a, b), cloud_rtt_ns(b, a));
            }
        }
        assert_eq!(cloud_rtt_ns("euc1", "use1"), Some(93_000_000));
        assert_eq!(cloud_rtt_ns("apne1", "apse2"), Some(106_000_000));
    }

    #[test]
    fn a_point_gets_addresses_of_a_country_near_it() {
        assert_eq!(block_at((50.1, 8.7)), Ipv4Addr::new(91, 0, 0, 0));
        assert_eq!(block_at((1.35, 103.8)), Ipv4Addr::new(151, 192, 0, 0));
        assert_eq!(block_at((45.84, -119.7)), Ipv4Addr::new(4, 32, 0, 0));
        assert_eq!(block_at((-40.0, 179.0)), Ipv4Addr::new(1, 128, 0, 0));
    }
}
