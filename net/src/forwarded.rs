//! Who asks: the connection's address, or what a trusted proxy says it is.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{FORWARDED, HeaderMap, HeaderName};

use crate::prefix::IpPrefix;

/// Hops of `X-Forwarded-For` that are looked at, from the right.
pub const FORWARDED_HOPS: usize = 16;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The client's address, canonical.
    pub address: IpAddr,
    /// Whether the client itself opened the connection, as far as can be seen: no proxy has left its mark.
    pub direct: bool,
    /// Whether all proxies that left a mark are trusted.
    pub trusted: bool,
}

impl Caller {
    /// A caller without proxies.
    pub fn direct(address: IpAddr) -> Self {
        Self { address: address.to_canonical(), direct: true, trusted: true }
    }

    /// By a connection and its request's headers. `X-Forwarded-For` counts only where the connection comes
    /// from a trusted proxy; then it is read from the right, since each proxy appends and only what trusted
    /// ones appended is true: the first address that is no trusted proxy is the client's.
    pub fn of(connection: IpAddr, headers: &HeaderMap, proxies: &[IpPrefix]) -> Self {
        let connection = connection.to_canonical();
        let trusted = |address: IpAddr| proxies.iter().any(|p| p.contains(address));
        let marked = headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(FORWARDED);
        if !trusted(connection) {
            return Self { address: connection, direct: !marked, trusted: !marked };
        }
        let values: Vec<&str> = headers.get_all(X_FORWARDED_FOR).iter().map(|v| v.to_str().unwrap_or("")).collect();
        let hops = values.iter().rev().flat_map(|v| v.rsplit(',')).map(str::trim).take(FORWARDED_HOPS);
        let mut address = connection;
        for hop in hops {
            // Beyond what can't be read, nothing can be trusted.
            let Some(hop) = hop_address(hop) else { break };
            address = hop;
            if !trusted(hop) {
                break;
            }
        }
        Self { address, direct: !marked, trusted: true }
    }
}

/// Some proxies add the port.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address: Option<IpAddr> = hop.parse().ok().or_else(|| hop.parse().ok().map(|a: SocketAddr| a.ip()));
    address.or_else(bracketed).map(|a| a.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(connection: &str, forwarded: &[&str]) -> Caller {
        let proxies: Vec<IpPrefix> = ["10.0.0.0/8", "2001:db8:1::/48"].map(|p| p.parse().unwrap()).to_vec();
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(X_FORWARDED_FOR, value.parse().unwrap());
        }
        Caller::of(connection.parse().unwrap(), &headers, &proxies)
    }

    #[test]
    fn the_rightmost_address_that_is_no_trusted_proxy_is_the_client() {
        let cases: [(&str, &[&str], &str); 13] = [
            ("10.0.0.1", &["8.8.8.8"], "8.8.8.8"),
            ("10.0.0.1", &["1.1.1.1, 8.8.8.8"], "8.8.8.8"),
            ("10.0.0.1", &["1.1.1.1, 8.8.8.8, 10.2.2.2"], "8.8.8.8"),
            ("10.0.0.1", &["1.1.1.1", "8.8.8.8", "10.2.2.2"], "8.8.8.8"),
            ("2001:db8:1::1", &["2a01:4f8::1"], "2a01:4f8::1"),
            ("10.0.0.1", &["[2a01:4f8::1]:443"], "2a01:4f8::1"),
            ("10.0.0.1", &["[2a01:4f8::1]"], "2a01:4f8::1"),
            ("10.0.0.1", &["8.8.8.8:1234"], "8.8.8.8"),
            ("::ffff:10.0.0.1", &["::ffff:8.8.8.8"], "8.8.8.8"),
            ("10.0.0.1", &["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
            ("10.0.0.1", &["8.8.8.8, unknown, 10.2.2.2"], "10.2.2.2"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
        ];
        for (connection, forwarded, address) in cases {
            let caller = caller(connection, forwarded);
            assert_eq!(caller.address, address.parse::<IpAddr>().unwrap(), "{connection} {forwarded:?}");
            assert!(caller.trusted && caller.direct == forwarded.is_empty());
        }
    }

    #[test]
    fn strangers_can_not_choose_their_address() {
        let caller = caller("8.8.8.8", &["91.0.0.1"]);
        assert_eq!(caller, Caller { address: "8.8.8.8".parse().unwrap(), direct: false, trusted: false });
    }

    #[test]
    fn a_long_chain_is_cut() {
        let chain = vec!["10.0.0.9"; 100].join(", ");
        assert_eq!(caller("10.0.0.1", &[&format!("8.8.8.8, {chain}")]).address, "10.0.0.9".parse::<IpAddr>().unwrap());
    }
}
