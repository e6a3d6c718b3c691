//! Lookups in the shipped data, and files that operators name.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::IpAddr;
use std::sync::OnceLock;

use support::{Value, file, mmdb};
use tern_core::ranking::{Country, Position};
use tern_ipconf::{Geo, GeoError, Located, Unplaced};

fn shipped() -> &'static Geo {
    static GEO: OnceLock<Geo> = OnceLock::new();
    GEO.get_or_init(|| Geo::shipped().unwrap())
}

fn locate(geo: &Geo, address: &str) -> Located {
    geo.locate(address.parse::<IpAddr>().unwrap())
}

#[test]
fn a_country_has_an_address_and_one_that_is_none_has_none() {
    for country in ["DE", "JP", "BR", "TV", "VA"] {
        let country = Country::new(country).unwrap();
        let address = shipped().address_in(country).unwrap();
        assert_eq!(shipped().locate(address).country(), Some(country), "{address}");
    }
    assert_eq!(shipped().address_in(Country::new("ZZ").unwrap()), None);
}

#[test]
fn real_addresses_are_in_their_countries() {
    for (address, country) in [
        ("91.0.0.1", "DE"),
        ("2a01:4f8::1", "DE"),
        ("177.0.0.1", "BR"),
        ("2804:14c::1", "BR"),
        ("49.32.0.1", "IN"),
        ("2409:4000::1", "IN"),
        ("126.0.0.1", "JP"),
        ("2400:4050::1", "JP"),
        ("81.2.69.160", "GB"),
        ("8.8.8.8", "US"),
        ("202.96.128.86", "CN"),
        ("41.0.0.1", "ZA"),
        ("200.55.1.1", "AR"),
        ("13.54.0.1", "AU"),
        ("::ffff:91.0.0.1", "DE"),
    ] {
        let Located::At { country: found, position, exact, asn: None } = locate(shipped(), address) else {
            panic!("{address} is not placed")
        };
        assert_eq!(found, Country::new(country), "{address}");
        assert!(position.is_some() && !exact, "{address}: the country's point");
    }
}

#[test]
fn addresses_without_a_place_are_unknown_with_the_reason() {
    for (address, why) in [
        ("203.0.113.1", Unplaced::Documentation),
        ("192.0.2.7", Unplaced::Documentation),
        ("2001:db8::1", Unplaced::Documentation),
        ("10.0.0.1", Unplaced::Private),
        ("172.31.255.255", Unplaced::Private),
        ("192.168.1.1", Unplaced::Private),
        ("fd00::1", Unplaced::Private),
        ("127.0.0.1", Unplaced::Loopback),
        ("::1", Unplaced::Loopback),
        ("::ffff:127.0.0.1", Unplaced::Loopback),
        ("169.254.1.1", Unplaced::LinkLocal),
        ("fe80::1", Unplaced::LinkLocal),
        ("100.64.0.1", Unplaced::CarrierNat),
        ("0.0.0.0", Unplaced::Reserved),
        ("::", Unplaced::Reserved),
        ("224.0.0.1", Unplaced::Reserved),
        ("255.255.255.255", Unplaced::Reserved),
        ("ff02::1", Unplaced::Reserved),
        ("198.18.0.1", Unplaced::Reserved),
        ("4000::1", Unplaced::Reserved),
    ] {
        assert_eq!(locate(shipped(), address), Located::Unknown(why), "{address}");
        assert!(why.is_special());
    }
    // Neighbours of special blocks are public.
    for address in ["100.128.0.1", "172.32.0.1", "11.0.0.1", "192.0.3.1"] {
        assert!(locate(shipped(), address).is_public(), "{address}");
    }
}

fn city(latitude: f64, longitude: f64) -> Value {
    Value::Map(vec![
        ("city", Value::Text("Leipzig")),
        ("country_code", Value::Text("DE")),
        ("latitude", Value::Double(latitude)),
        ("longitude", Value::Double(longitude)),
    ])
}

fn nested(code: &'static str) -> Value {
    Value::Map(vec![
        ("country", Value::Map(vec![("geoname_id", Value::Uint(7)), ("iso_code", Value::Text(code))])),
        ("location", Value::Map(vec![("latitude", Value::Double(48.1)), ("longitude", Value::Double(11.6))])),
    ])
}

fn opened(bytes: &[u8]) -> Result<Geo, GeoError> {
    let (_dir, path) = file(bytes);
    Geo::open(&path)
}

#[test]
fn flat_city_files_give_coordinates() {
    let geo = opened(&mmdb(4, "city", &[("0.0.0.0", 1, city(51.3, 12.4)), ("128.0.0.0", 1, city(91.0, 0.0))])).unwrap();
    let leipzig =
        Located::At { country: Country::new("DE"), position: Position::new(51.3, 12.4), exact: true, asn: None };
    assert_eq!(locate(&geo, "8.8.8.8"), leipzig);
    let Located::At { position: Some(_), exact: false, .. } = locate(&geo, "200.1.1.1") else {
        panic!("coordinates that can't be give way to the country's point")
    };
    assert_eq!(locate(&geo, "2a01:4f8::1"), Located::Unknown(Unplaced::NoIpv6));
    assert!(locate(&geo, "2a01:4f8::1").is_public());
    assert_eq!(geo.built_s(), 1_780_000_000);
}

#[test]
fn nested_files_are_read_and_what_a_record_lacks_is_lacking() {
    let name_only = Value::Map(vec![("country", Value::Text("Germany"))]);
    let code_as_text = Value::Map(vec![("country", Value::Text("fr"))]);
    let registered = Value::Map(vec![("registered_country", Value::Map(vec![("iso_code", Value::Text("IE"))]))]);
    let no_country = Value::Map(vec![(
        "location",
        Value::Map(vec![("latitude", Value::Double(1.0)), ("longitude", Value::Double(2.0))]),
    )]);
    let geo = opened(&mmdb(
        6,
        "GeoLite2-City",
        &[
            ("0.0.0.0", 2, nested("DE")),
            ("64.0.0.0", 3, name_only),
            ("96.0.0.0", 3, code_as_text),
            ("128.0.0.0", 3, registered),
            ("160.0.0.0", 3, no_country),
            ("2a01::", 16, nested("NL")),
        ],
    ))
    .unwrap();
    assert_eq!(locate(&geo, "8.8.8.8").position(), Position::new(48.1, 11.6));
    assert_eq!(locate(&geo, "2a01::1").country(), Country::new("NL"));
    assert_eq!(locate(&geo, "65.1.1.1"), Located::Unknown(Unplaced::NotFound));
    assert_eq!(locate(&geo, "97.1.1.1").country(), Country::new("FR"));
    assert_eq!(locate(&geo, "129.1.1.1").country(), Country::new("IE"));
    let Located::At { country: None, position: Some(_), exact: true, .. } = locate(&geo, "161.1.1.1") else {
        panic!("a place without a country is a place")
    };
    assert_eq!(locate(&geo, "193.1.1.1"), Located::Unknown(Unplaced::NotFound));
}

#[test]
fn a_file_that_can_not_be_used_is_named_with_what_to_do() {
    let missing = Geo::open("/nowhere/places.mmdb".as_ref()).unwrap_err();
    let whole = mmdb(4, "city", &[("0.0.0.0", 1, city(1.0, 2.0))]);
    let mut broken = whole.clone();
    // The records' data begins behind the tree and 16 zeros: make the map in it endless.
    broken[6 + 16] = 0xff;
    let asn = Value::Map(vec![("autonomous_system_number", Value::Uint(3320))]);
    let cases = [
        (missing, "/nowhere/places.mmdb", "Check the path"),
        (opened(b"").unwrap_err(), "places.mmdb", "download it again"),
        (opened(b"PK\x03\x04 no database").unwrap_err(), "places.mmdb", "download it again"),
        (opened(&whole[..whole.len() / 2]).unwrap_err(), "places.mmdb", "download it again"),
        (opened(&broken).unwrap_err(), "places.mmdb", "not a usable MaxMind DB"),
        (opened(&mmdb(4, "asn", &[("0.0.0.0", 1, asn)])).unwrap_err(), "places.mmdb", "Use a country or city database"),
        (Geo::open(std::env::temp_dir().as_path()).unwrap_err(), "GeoIP file", "Check the path"),
    ];
    for (error, file, says) in cases {
        let text = error.to_string();
        assert!(text.contains(file) && text.contains(says), "{text}");
    }
}
