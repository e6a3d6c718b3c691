//! A point for every country: where its people live, rather than its middle.
//!
//! The round trip to a country is that to its users, so each point lies near the centre of its population,
//! rounded to about 50 km; in very large countries it lies where most users are (Russia: the Volga; Canada:
//! the Great Lakes). No point is exact, and nothing but an estimate of distance is made of it.

use tern_core::ranking::{Country, Position};

/// Code (ISO 3166-1, and XK for Kosovo), degrees north, degrees east; ascending.
#[rustfmt::skip]
const CENTROIDS: [(&[u8; 2], f64, f64); 250] = [
    (b"AD", 42.5, 1.5), (b"AE", 24.8, 55.0), (b"AF", 34.5, 67.5), (b"AG", 17.1, -61.8),
    (b"AI", 18.2, -63.1), (b"AL", 41.2, 20.0), (b"AM", 40.2, 44.7), (b"AO", -10.5, 15.0),
    (b"AQ", -75.0, 0.0), (b"AR", -34.0, -61.5), (b"AS", -14.3, -170.7), (b"AT", 47.8, 14.8),
    (b"AU", -33.5, 147.0), (b"AW", 12.5, -70.0), (b"AX", 60.2, 20.0), (b"AZ", 40.4, 48.5),
    (b"BA", 44.2, 17.8), (b"BB", 13.2, -59.5), (b"BD", 23.8, 90.3), (b"BE", 50.8, 4.4),
    (b"BF", 12.4, -1.6), (b"BG", 42.7, 25.0), (b"BH", 26.1, 50.5), (b"BI", -3.3, 29.8),
    (b"BJ", 7.5, 2.4), (b"BL", 17.9, -62.8), (b"BM", 32.3, -64.8), (b"BN", 4.8, 114.8),
    (b"BO", -17.0, -66.0), (b"BQ", 12.2, -68.3), (b"BR", -19.0, -46.0), (b"BS", 25.0, -77.4),
    (b"BT", 27.4, 90.3), (b"BV", -54.4, 3.4), (b"BW", -23.8, 26.0), (b"BY", 53.5, 28.0),
    (b"BZ", 17.4, -88.5), (b"CA", 46.5, -80.0), (b"CC", -12.2, 96.8), (b"CD", -4.5, 21.5),
    (b"CF", 5.5, 18.8), (b"CG", -3.5, 14.5), (b"CH", 47.1, 8.1), (b"CI", 6.5, -4.9),
    (b"CK", -21.2, -159.8), (b"CL", -34.0, -71.2), (b"CM", 5.0, 11.0), (b"CN", 32.5, 113.5),
    (b"CO", 5.3, -74.6), (b"CR", 9.9, -84.1), (b"CU", 22.2, -79.6), (b"CV", 15.1, -23.6),
    (b"CW", 12.2, -69.0), (b"CX", -10.5, 105.6), (b"CY", 35.0, 33.2), (b"CZ", 49.8, 15.8),
    (b"DE", 51.0, 9.9), (b"DJ", 11.6, 43.0), (b"DK", 55.8, 10.8), (b"DM", 15.4, -61.4),
    (b"DO", 18.7, -70.1), (b"DZ", 36.0, 3.0), (b"EC", -1.5, -79.3), (b"EE", 59.1, 25.7),
    (b"EG", 30.2, 31.2), (b"EH", 25.5, -13.8), (b"ER", 15.2, 38.8), (b"ES", 40.0, -3.0),
    (b"ET", 9.0, 39.0), (b"FI", 61.3, 24.9), (b"FJ", -17.9, 178.2), (b"FK", -51.7, -58.5),
    (b"FM", 6.9, 158.2), (b"FO", 62.0, -6.8), (b"FR", 47.2, 2.6), (b"GA", 0.2, 10.2),
    (b"GB", 52.6, -1.6), (b"GD", 12.1, -61.7), (b"GE", 41.9, 43.8), (b"GF", 4.7, -52.8),
    (b"GG", 49.5, -2.6), (b"GH", 6.6, -1.0), (b"GI", 36.1, -5.4), (b"GL", 65.0, -51.0),
    (b"GM", 13.4, -16.2), (b"GN", 10.3, -11.5), (b"GP", 16.2, -61.5), (b"GQ", 2.5, 9.8),
    (b"GR", 38.7, 23.2), (b"GS", -54.3, -36.6), (b"GT", 14.9, -90.9), (b"GU", 13.5, 144.8),
    (b"GW", 12.0, -15.3), (b"GY", 6.6, -58.1), (b"HK", 22.3, 114.2), (b"HM", -53.1, 73.5),
    (b"HN", 14.7, -87.3), (b"HR", 45.3, 16.2), (b"HT", 18.8, -72.6), (b"HU", 47.3, 19.2),
    (b"ID", -6.5, 109.5), (b"IE", 53.2, -7.2), (b"IL", 32.0, 34.9), (b"IM", 54.2, -4.5),
    (b"IN", 22.5, 79.0), (b"IO", -7.3, 72.4), (b"IQ", 33.5, 44.3), (b"IR", 34.3, 51.5),
    (b"IS", 64.4, -21.3), (b"IT", 43.0, 11.8), (b"JE", 49.2, -2.1), (b"JM", 18.1, -77.2),
    (b"JO", 32.0, 36.0), (b"JP", 35.6, 137.5), (b"KE", -0.7, 36.6), (b"KG", 41.7, 73.8),
    (b"KH", 11.9, 105.0), (b"KI", 1.4, 173.0), (b"KM", -11.8, 43.4), (b"KN", 17.3, -62.7),
    (b"KP", 39.5, 126.5), (b"KR", 36.7, 127.6), (b"KW", 29.3, 47.9), (b"KY", 19.3, -81.3),
    (b"KZ", 47.0, 71.0), (b"LA", 17.8, 102.9), (b"LB", 33.9, 35.7), (b"LC", 13.9, -61.0),
    (b"LI", 47.2, 9.5), (b"LK", 7.1, 80.4), (b"LR", 6.5, -10.3), (b"LS", -29.4, 27.8),
    (b"LT", 55.2, 24.0), (b"LU", 49.7, 6.1), (b"LV", 56.9, 24.4), (b"LY", 32.3, 15.0),
    (b"MA", 33.3, -7.0), (b"MC", 43.7, 7.4), (b"MD", 47.1, 28.8), (b"ME", 42.6, 19.2),
    (b"MF", 18.1, -63.1), (b"MG", -19.0, 47.2), (b"MH", 7.1, 171.3), (b"MK", 41.8, 21.5),
    (b"ML", 13.3, -6.5), (b"MM", 19.5, 95.8), (b"MN", 47.8, 105.8), (b"MO", 22.2, 113.5),
    (b"MP", 15.2, 145.7), (b"MQ", 14.6, -61.0), (b"MR", 18.0, -14.5), (b"MS", 16.7, -62.2),
    (b"MT", 35.9, 14.4), (b"MU", -20.3, 57.5), (b"MV", 4.0, 73.5), (b"MW", -14.3, 34.6),
    (b"MX", 20.5, -100.5), (b"MY", 3.5, 103.0), (b"MZ", -18.0, 36.0), (b"NA", -20.5, 17.0),
    (b"NC", -22.0, 166.2), (b"NE", 13.6, 6.5), (b"NF", -29.0, 168.0), (b"NG", 9.0, 7.0),
    (b"NI", 12.4, -86.0), (b"NL", 52.1, 5.2), (b"NO", 60.5, 9.8), (b"NP", 27.6, 85.0),
    (b"NR", -0.5, 166.9), (b"NU", -19.1, -169.9), (b"NZ", -38.8, 175.0), (b"OM", 22.8, 58.0),
    (b"PA", 8.8, -79.8), (b"PE", -10.5, -76.5), (b"PF", -17.6, -149.5), (b"PG", -6.2, 145.5),
    (b"PH", 13.0, 122.0), (b"PK", 31.0, 71.8), (b"PL", 51.9, 19.4), (b"PM", 46.9, -56.3),
    (b"PN", -25.1, -130.1), (b"PR", 18.3, -66.3), (b"PS", 31.8, 35.0), (b"PT", 39.8, -8.5),
    (b"PW", 7.4, 134.5), (b"PY", -25.3, -57.0), (b"QA", 25.3, 51.4), (b"RE", -21.1, 55.5),
    (b"RO", 45.7, 25.2), (b"RS", 44.3, 20.8), (b"RU", 55.5, 46.0), (b"RW", -1.9, 30.0),
    (b"SA", 24.0, 44.5), (b"SB", -9.2, 160.0), (b"SC", -4.6, 55.5), (b"SD", 14.5, 32.0),
    (b"SE", 58.6, 15.3), (b"SG", 1.3, 103.8), (b"SH", -16.0, -5.7), (b"SI", 46.1, 14.8),
    (b"SJ", 78.2, 15.6), (b"SK", 48.7, 19.2), (b"SL", 8.3, -12.2), (b"SM", 43.9, 12.5),
    (b"SN", 14.5, -16.2), (b"SO", 3.5, 45.0), (b"SR", 5.7, -55.2), (b"SS", 7.0, 30.5),
    (b"ST", 0.3, 6.7), (b"SV", 13.7, -89.1), (b"SX", 18.0, -63.1), (b"SY", 35.0, 37.0),
    (b"SZ", -26.4, 31.4), (b"TC", 21.8, -72.0), (b"TD", 11.5, 16.5), (b"TF", -49.3, 69.2),
    (b"TG", 7.3, 1.0), (b"TH", 14.3, 101.0), (b"TJ", 38.5, 69.3), (b"TK", -9.2, -171.8),
    (b"TL", -8.7, 125.8), (b"TM", 38.3, 58.8), (b"TN", 36.0, 10.0), (b"TO", -21.1, -175.2),
    (b"TR", 39.2, 33.5), (b"TT", 10.5, -61.4), (b"TV", -8.5, 179.2), (b"TW", 24.3, 120.9),
    (b"TZ", -5.5, 35.8), (b"UA", 49.0, 31.8), (b"UG", 0.9, 32.4), (b"UM", 19.3, 166.6),
    (b"US", 38.5, -91.5), (b"UY", -34.4, -56.1), (b"UZ", 40.6, 68.0), (b"VA", 41.9, 12.5),
    (b"VC", 13.2, -61.2), (b"VE", 10.0, -67.5), (b"VG", 18.4, -64.6), (b"VI", 18.2, -64.9),
    (b"VN", 16.0, 106.5), (b"VU", -16.8, 168.0), (b"WF", -13.3, -176.2), (b"WS", -13.8, -171.9),
    (b"XK", 42.6, 20.9), (b"YE", 14.5, 44.8), (b"YT", -12.8, 45.2), (b"ZA", -27.8, 28.0),
    (b"ZM", -14.2, 28.3), (b"ZW", -18.7, 30.8),
];

/// The point of a country; None for codes that are none.
pub fn centroid(country: Country) -> Option<Position> {
    let at = CENTROIDS.binary_search_by(|(code, ..)| (*code).cmp(country.as_bytes())).ok()?;
    let (_, latitude, longitude) = CENTROIDS[at];
    Position::new(latitude, longitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_country_has_a_point_and_the_table_is_in_order() {
        assert!(CENTROIDS.windows(2).all(|w| w[0].0 < w[1].0));
        for (code, latitude, longitude) in CENTROIDS {
            let country = Country::new(std::str::from_utf8(code).unwrap()).unwrap();
            assert_eq!(centroid(country), Position::new(latitude, longitude));
            assert!(centroid(country).is_some(), "{country}");
        }
        assert_eq!(centroid(Country::new("ZZ").unwrap()), None);
    }

    #[test]
    fn points_lie_where_the_countries_are() {
        let near = |code: &str, latitude, longitude, km| {
            let point = centroid(Country::new(code).unwrap()).unwrap();
            point.distance_km(Position::new(latitude, longitude).unwrap()) < km
        };
        assert!(near("DE", 52.5, 13.4, 400.0), "Berlin");
        assert!(near("BR", -23.5, -46.6, 600.0), "Sao Paulo");
        assert!(near("JP", 35.7, 139.7, 300.0), "Tokyo");
        assert!(near("NZ", -36.8, 174.8, 300.0), "Auckland");
        assert!(near("FJ", -18.1, 178.4, 100.0), "Suva");
    }
}
