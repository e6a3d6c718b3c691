//! Blocks of addresses, as operators write them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// A block of addresses: "10.0.0.0/8", "2001:db8::/32", or one address. IPv4 addresses written as IPv6
/// (`::ffff:10.0.0.1`) are IPv4, both here and where one is looked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    /// As IPv6, IPv4 mapped; bits below the length are zero.
    bits: u128,
    /// Of 128.
    length: u32,
}

/// Why a text is no block of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The part before the slash is no address.
    #[error("{0:?} is not an IP address; write a block like 10.0.0.0/8 or 2001:db8::/32, or a single address")]
    Address(String),
    /// The part after the slash is no length.
    #[error("{0:?} has no valid length after the slash: 0 to 32 for IPv4, 0 to 128 for IPv6")]
    Length(String),
    /// The address has bits set below the length, so one of the two is not what was meant.
    #[error("{0:?} is an address within a block; the block itself is {1}")]
    HostBits(String, IpPrefix),
}

impl IpPrefix {
    /// Whether the address lies in the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        bits_of(address) & mask(self.length) == self.bits
    }
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn mask(length: u32) -> u128 {
    u128::MAX.checked_shl(128 - length).unwrap_or(0)
}

impl FromStr for IpPrefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let text = text.trim();
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Address(text.to_owned()))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => most,
            Some(l) => l.parse().ok().filter(|l| *l <= most).ok_or_else(|| PrefixError::Length(text.to_owned()))?,
        };
        let length = length + (128 - most);
        let bits = bits_of(address);
        let prefix = Self { bits: bits & mask(length), length };
        if prefix.bits == bits { Ok(prefix) } else { Err(PrefixError::HostBits(text.to_owned(), prefix)) }
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from(self.bits);
        match address.to_ipv4_mapped() {
            Some(v4) if self.length >= 96 => write!(f, "{v4}/{}", self.length - 96),
            _ => write!(f, "{address}/{}", self.length),
        }
    }
}

impl fmt::Debug for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_their_addresses_in_either_spelling() {
        let cases = [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "8.8.8.8", true),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::1", "127.0.0.1", false),
        ];
        for (prefix, address, inside) in cases {
            let prefix: IpPrefix = prefix.parse().unwrap();
            assert_eq!(prefix.contains(address.parse().unwrap()), inside, "{address} in {prefix}");
            assert_eq!(prefix.to_string().parse::<IpPrefix>().unwrap(), prefix);
        }
    }

    #[test]
    fn what_is_no_block_is_refused_with_the_reason() {
        for (text, says) in [
            ("", "is not an IP address"),
            ("10.0.0", "is not an IP address"),
            ("10.0.0.0/33", "0 to 32"),
            ("10.0.0.0/x", "0 to 32"),
            ("::1/129", "0 to 128"),
            ("10.1.2.3/8", "the block itself is 10.0.0.0/8"),
        ] {
            let error = text.parse::<IpPrefix>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
