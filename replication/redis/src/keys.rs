//! Keys and values, as they lie in Redis; pinned by a test, for other programs read them.
//!
//! | Key | Value |
//! |---|---|
//! | `PREFIX:r:USER` | hash: install -> stamp (16 hex digits), then `+`, generation, connection (16 each) and the link, or `-` |
//! | `PREFIX:l:LINK` | the live generation of a link, 16 hex digits; runs out |
//! | `PREFIX:m:NODE:N` | by which a core node knows the table again |
//!
//! A link is `NODE/NUMBER/EDGE`.

use std::sync::Arc;

use tern_replication::routes::{Link, Route};

use crate::slots::slot_of;

/// The keys of a region.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(crate) fn user(&self, user: &str) -> String {
        format!("{}:r:{user}", self.prefix)
    }

    /// A pattern of all users' keys; the prefix has no characters that mean anything in one.
    pub(crate) fn users(&self) -> String {
        self.user("*")
    }

    pub(crate) fn link(&self, link: &Link) -> String {
        format!("{}:l:{link}", self.prefix)
    }

    /// The mark of a node in the part of the table that has slots for which `has` says so.
    pub(crate) fn mark(&self, node: &str, has: impl Fn(u16) -> bool) -> Option<String> {
        let marks = (0..=u16::MAX).map(|n| format!("{}:m:{node}:{n}", self.prefix));
        marks.into_iter().find(|key| has(slot_of(key.as_bytes())))
    }
}

/// Whether a prefix is one: what is in it means the same in a key, in a pattern, and for the slot.
pub fn is_prefix(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b":._-".contains(&b))
}

pub(crate) fn hex(number: u64) -> String {
    format!("{number:016x}")
}

pub(crate) fn from_hex(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

pub(crate) fn route_value(route: &Route) -> String {
    format!("{:016x}{:016x}{}", route.generation, route.connection, route.link)
}

/// The stamp, and the route unless it was removed. `None`: nothing of tern's.
pub(crate) fn parse(value: &[u8]) -> Option<(u64, Option<Route>)> {
    let text = std::str::from_utf8(value).ok()?;
    let stamp = from_hex(text.get(..16)?)?;
    match text.get(16..17)? {
        "-" => Some((stamp, None)),
        "+" => {
            let generation = from_hex(text.get(17..33)?)?;
            let connection = from_hex(text.get(33..49)?)?;
            let link = Arc::new(text.get(49..)?.parse().ok()?);
            Some((stamp, Some(Route { link, generation, connection })))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_stay_as_they_are() {
        let keys = Keys::new("tern:eu");
        let link = Link { node: "eu-n1".into(), number: 3, edge: "eu-e7".into() };
        assert_eq!(keys.user("alice"), "tern:eu:r:alice");
        assert_eq!(keys.link(&link), "tern:eu:l:eu-n1/3/eu-e7");
        assert_eq!(keys.mark("eu-n1", |_| true).unwrap(), "tern:eu:m:eu-n1:0");
        let route = Route { link: Arc::new(link), generation: 0xab, connection: 12 };
        let value = format!("{}+{}", hex(0x1234), route_value(&route));
        assert_eq!(value, "0000000000001234+00000000000000ab000000000000000ceu-n1/3/eu-e7");
        assert_eq!(parse(value.as_bytes()), Some((0x1234, Some(route))));
        assert_eq!(parse(b"0000000000001234-"), Some((0x1234, None)));
    }

    #[test]
    fn what_is_no_route_is_none() {
        let route = "00000000000000ab000000000000000ceu-n1/3/eu-e7";
        for bad in [
            "",
            "1234",
            "0000000000001234",
            "0000000000001234?",
            "000000000000123g-",
            "0000000000001234+",
            &format!("0000000000001234+{}", &route[..30]),
            "0000000000001234+00000000000000ab000000000000000ceu-n1/x/eu-e7",
            "0000000000001234+00000000000000ab000000000000000ceu-n1",
            "é00000000000001234-",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(parse(&[0xff; 60]), None);
    }

    #[test]
    fn a_mark_is_found_for_any_slot() {
        let keys = Keys::new("tern:eu");
        for slot in [0, 1, 8_191, 16_383] {
            let key = keys.mark("eu-n1", |s| s == slot).unwrap();
            assert_eq!(slot_of(key.as_bytes()), slot);
        }
    }

    #[test]
    fn a_prefix_has_no_characters_with_a_meaning() {
        assert!(is_prefix("tern:prod-1.eu_x"));
        for bad in ["", "a b", "{a}", "a*", "a?", "[a]", "a\\", "ä", &"x".repeat(65)] {
            assert!(!is_prefix(bad), "{bad}");
        }
    }
}
