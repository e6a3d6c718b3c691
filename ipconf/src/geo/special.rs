//! Addresses that have no place on earth (IANA's registries of special-purpose addresses, RFC 6890).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address could not be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unplaced {
    /// This machine (127/8, ::1).
    Loopback,
    /// A private network (RFC 1918, fc00::/7).
    Private,
    /// One link (169.254/16, fe80::/10).
    LinkLocal,
    /// Behind a provider's translator (100.64/10, RFC 6598).
    CarrierNat,
    /// Reserved for documents (RFC 5737, RFC 3849, RFC 9637).
    Documentation,
    /// Multicast, unspecified, benchmarking, and blocks that are not assigned to anyone.
    Reserved,
    /// Public, but the database does not have it.
    NotFound,
    /// An IPv6 address, and a database of IPv4 only.
    NoIpv6,
    /// The database is damaged where this address would be.
    Damaged,
}

impl Unplaced {
    /// For answers and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::LinkLocal => "link_local",
            Self::CarrierNat => "carrier_nat",
            Self::Documentation => "documentation",
            Self::Reserved => "reserved",
            Self::NotFound => "not_found",
            Self::NoIpv6 => "no_ipv6_data",
            Self::Damaged => "damaged_data",
        }
    }

    /// Whether clients elsewhere may share this address with one another or with us, so that what one of
    /// them measured says nothing about the others.
    pub const fn is_special(self) -> bool {
        !matches!(self, Self::NotFound | Self::NoIpv6 | Self::Damaged)
    }
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What kind of special address this is; None for public ones. Expects a canonical address (no IPv4 written
/// as IPv6).
pub(super) fn special(address: IpAddr) -> Option<Unplaced> {
    match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

fn special_v4(a: Ipv4Addr) -> Option<Unplaced> {
    let [first, second, third, _] = a.octets();
    Some(match (first, second, third) {
        (127, ..) => Unplaced::Loopback,
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Unplaced::Private,
        (169, 254, _) => Unplaced::LinkLocal,
        (100, 64..=127, _) => Unplaced::CarrierNat,
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => Unplaced::Documentation,
        (0, ..) | (192, 0, 0) | (198, 18..=19, _) | (224..=255, ..) => Unplaced::Reserved,
        _ => return None,
    })
}

fn special_v6(a: Ipv6Addr) -> Option<Unplaced> {
    let [first, second, ..] = a.segments();
    Some(match (first, second) {
        _ if a.is_loopback() => Unplaced::Loopback,
        (0xfc00..=0xfdff, _) => Unplaced::Private,
        (0xfe80..=0xfebf, _) => Unplaced::LinkLocal,
        (0x2001, 0x0db8) | (0x3fff, 0..=0x0fff) => Unplaced::Documentation,
        // Only 2000::/3 is assigned to anyone.
        (0x2000..=0x3fff, _) => return None,
        _ => Unplaced::Reserved,
    })
}
