//! Values about the table that says where a region's users are connected.

use super::Settings;
use super::value::{Raw, Value, wrong};

/// Where a region keeps who is connected where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutesKind {
    /// Each core node knows its own users, and nothing is written anywhere.
    Memory,
    /// All core nodes write what they know into Redis.
    Redis,
}

impl Value for RoutesKind {
    const SHAPE: &'static str = "\"memory\" or \"redis\"";

    fn from_raw(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) if text == "memory" => Ok(Self::Memory),
            Raw::Text(text) if text == "redis" => Ok(Self::Redis),
            Raw::Text(text) => Err(format!("is {text:?}, expected {}", Self::SHAPE)),
            _ => Err(wrong::<Self>(raw)),
        }
    }

    fn show(&self) -> Option<String> {
        match self {
            Self::Memory => "memory".to_owned().show(),
            Self::Redis => "redis".to_owned().show(),
        }
    }
}

impl Settings {
    /// What is wrong with the keys of the table, taken together: `problem` is told a key and what about it.
    pub(super) fn check_routes(&self, problem: &mut impl FnMut(&str, &str)) {
        if self.routes_kind != RoutesKind::Redis {
            return;
        }
        if self.routes_nodes.is_empty() {
            problem("routes.nodes", "is not set, and routes.kind is \"redis\": give its server, or some of a cluster");
        }
        if self.routes_password.is_some() && self.routes_password_file.is_some() {
            problem("routes.password", "and routes.password_file are both set: one of them is enough");
        }
        if self.routes_tls_cert.is_some() != self.routes_tls_key.is_some() {
            problem("routes.tls.cert", "and routes.tls.key belong together, and one of them is not set");
        }
        // Nobody who sets these means a connection in the clear.
        if self.routes_tls_ca.is_none() && (self.routes_tls_cert.is_some() || self.routes_tls_name.is_some()) {
            problem(
                "routes.tls.ca",
                "is not set, and routes.tls.cert or routes.tls.name is: without it there is no TLS",
            );
        }
        let prefix = self.routes_key_prefix();
        if !tern_redis::is_prefix(&prefix) {
            let what = "is no prefix of keys: give 1 to 64 characters of a-z, A-Z, 0-9 and \":._-\"";
            problem("routes.prefix", &format!("{prefix:?} {what}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_and_the_rest_is_refused() {
        for kind in [RoutesKind::Memory, RoutesKind::Redis] {
            let shown = kind.show().unwrap();
            assert_eq!(RoutesKind::from_text(shown.trim_matches('"')), Ok(kind));
        }
        assert!(RoutesKind::from_text("Redis").unwrap_err().contains("\"memory\" or \"redis\""));
        assert!(RoutesKind::from_raw(&Raw::Bool(true)).is_err());
    }
}
