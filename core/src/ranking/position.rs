//! Where clients and edges are: positions, countries, networks.

use std::fmt;
use std::net::IpAddr;

/// Mean radius of the earth in kilometres (IUGG).
const EARTH_KM: f64 = 6371.0;

/// A point on the earth, in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    latitude: f64,
    longitude: f64,
}

impl Position {
    /// Latitude -90 to 90, longitude -180 to 180; None for anything else.
    pub fn new(latitude: f64, longitude: f64) -> Option<Self> {
        let valid = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        valid.then_some(Self { latitude, longitude })
    }

    /// Degrees north.
    pub fn latitude(self) -> f64 {
        self.latitude
    }

    /// Degrees east.
    pub fn longitude(self) -> f64 {
        self.longitude
    }

    /// Great-circle distance in kilometres.
    pub fn distance_km(self, other: Self) -> f64 {
        self.direction().distance_km(other.direction())
    }

    pub(super) fn direction(self) -> Direction {
        let (sin_lat, cos_lat) = self.latitude.to_radians().sin_cos();
        let (sin_lon, cos_lon) = self.longitude.to_radians().sin_cos();
        Direction([cos_lat * cos_lon, cos_lat * sin_lon, sin_lat])
    }

    /// For use in a key: both as hundredths of a degree, counted from the south pole and the date line, never
    /// both 0 in a place where anyone lives.
    pub(super) fn hundredths(self) -> (u16, u16) {
        let of = |degrees: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 36,000 by construction")]
            let hundredths = (degrees * 100.0).round() as u16;
            hundredths
        };
        (of(self.latitude + 90.0), of(self.longitude + 180.0))
    }
}

/// A position as a unit vector: distances from it cost one square root and one arc sine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direction([f64; 3]);

impl Direction {
    pub(super) fn distance_km(self, other: Self) -> f64 {
        let chord = self.0.iter().zip(other.0).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        // By the chord, because the arc cosine of a product loses its precision at short distances.
        2.0 * EARTH_KM * (chord / 2.0).min(1.0).asin()
    }
}

/// A country by its ISO 3166-1 alpha-2 code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl Country {
    /// Two ASCII letters, in either case; None for anything else.
    pub fn new(code: &str) -> Option<Self> {
        match code.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Some(Self([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => None,
        }
    }

    /// The code, in capitals.
    pub fn as_bytes(&self) -> &[u8; 2] {
        &self.0
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{}", char::from(*b)))
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Clients that share a path: an IPv4 /24 or an IPv6 /48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkPrefix(u64);

impl NetworkPrefix {
    /// The network of an address; an IPv4 address written as IPv6 is IPv4.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(u32::from(v4) >> 8)),
            // The bit above the 48 tells the families apart.
            IpAddr::V6(v6) => {
                let [a, b, c, ..] = v6.segments();
                Self(1 << 48 | u64::from(a) << 32 | u64::from(b) << 16 | u64::from(c))
            }
        }
    }
}
