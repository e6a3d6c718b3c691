//! Addresses of devices are where their places are, by the GeoIP data that dispatch uses.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::{IpAddr, Ipv4Addr};

use tern_ipconf::Geo;
use tern_netsim_scenario::BLOCKS;

#[test]
fn every_block_lies_in_its_country_as_a_whole() {
    let geo = Geo::shipped().unwrap();
    for (country, at, first) in BLOCKS {
        for offset in (0..65_536).step_by(61).chain([1, 2, 254, 65_535]) {
            let address = IpAddr::V4(Ipv4Addr::from(u32::from(first) + offset));
            let located = geo.locate(address);
            let found = located.country().map(|country| country.to_string());
            assert_eq!(found.as_deref(), Some(country), "{address}");
            assert!(located.is_public(), "{address}");
            let position = located.position().unwrap();
            let wanted = tern_core::ranking::Position::new(at.0, at.1).unwrap();
            let near = position.distance_km(wanted);
            assert!(near < 1500.0, "{country}: {near} km from where it is said to be");
        }
    }
}
