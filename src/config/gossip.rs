//! Keys of the gossip between nodes.

use std::net::SocketAddr;

use super::Settings;
use super::value::{HostPort, Raw, Value};

/// Where a node of some region's gossip is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Which region's; unset: this one's.
    pub region: Option<u8>,
    /// Where.
    pub addr: HostPort,
}

impl std::str::FromStr for Seed {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once('@') {
            Some((region, addr)) => {
                let region = region.parse().ok().filter(|r| *r != 0).ok_or(())?;
                Ok(Self { region: Some(region), addr: addr.parse()? })
            }
            None => Ok(Self { region: None, addr: text.parse()? }),
        }
    }
}

impl Value for Seed {
    const SHAPE: &'static str = "host and port, such as \"192.0.2.1:7413\", with a region's number and @ before it \
        if that is not this node's, such as \"2@us.example.org:7423\"";

    fn from_raw(raw: &Raw) -> Result<Self, String> {
        let Raw::Text(text) = raw else { return Err(format!("is no text, expected {}", Self::SHAPE)) };
        text.parse().map_err(|()| format!("is {text:?}, expected {}", Self::SHAPE))
    }

    fn show(&self) -> Option<String> {
        let region = self.region.map_or_else(String::new, |region| format!("{region}@"));
        Some(toml::Value::String(format!("{region}{}", self.addr)).to_string())
    }
}

impl Settings {
    /// Where gossip is heard (UDP): beside the admin port, which is TCP.
    pub fn gossip_listen(&self) -> SocketAddr {
        self.listen_gossip.unwrap_or_else(|| SocketAddr::new(self.listen_ip, self.port_after(None, 3)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_name_a_region_or_mean_this_one() {
        let seeds = Vec::<Seed>::from_text("192.0.2.1:7413, 2@us.example.org:7423,3@[::1]:7433").unwrap();
        assert_eq!(seeds.iter().map(|s| s.region).collect::<Vec<_>>(), [None, Some(2), Some(3)]);
        assert_eq!(seeds.show().unwrap(), "[\"192.0.2.1:7413\", \"2@us.example.org:7423\", \"3@[::1]:7433\"]");
        for bad in ["0@a:1", "us@a:1", "256@a:1", "a", "a:0", "1@"] {
            assert!(Seed::from_text(bad).unwrap_err().contains("expected host and port"), "{bad}");
        }
    }
}
