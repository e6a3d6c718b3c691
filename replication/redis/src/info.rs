//! What a server says of itself, and whether a table of routes can be in it.

use std::collections::BTreeMap;

use tern_replication::routes::RoutesError;

/// The least version: earlier ones have no functions.
const VERSION: u64 = 7;

/// Of the answer to `INFO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    /// Drawn anew at every start.
    pub run_id: String,
    version: String,
    mode: String,
    role: String,
    policy: String,
}

impl Info {
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let fields: BTreeMap<&str, &str> = lines.map(|(name, value)| (name, value.trim())).collect();
        let field = |name: &str| fields.get(name).copied().unwrap_or_default().to_owned();
        Self {
            run_id: field("run_id"),
            version: field("redis_version"),
            mode: field("redis_mode"),
            role: field("role"),
            policy: field("maxmemory_policy"),
        }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.mode == "cluster"
    }

    pub(crate) fn is_master(&self) -> bool {
        self.role == "master"
    }

    /// Whether it is anything that can be asked at all.
    pub(crate) fn check_kind(&self, at: &str) -> Result<(), RoutesError> {
        let unfit = |what: String| Err(RoutesError::Unfit(what));
        if self.mode == "sentinel" {
            return unfit(format!(
                "the server at {at} is a Sentinel, which holds no data: name the master in routes.nodes, by an address \
                 that follows it"
            ));
        }
        let major = self.version.split('.').next().and_then(|major| major.parse::<u64>().ok());
        if major.is_none_or(|major| major < VERSION) {
            let version = if self.version.is_empty() { "none" } else { &self.version };
            return unfit(format!(
                "the server at {at} says that it is Redis {version}, and the table of routes is kept by functions, which \
                 there are from {VERSION}.0 on: upgrade it, or set routes.kind = \"memory\""
            ));
        }
        Ok(())
    }

    /// Whether a part of the table can be in it.
    pub(crate) fn check_holder(&self, at: &str) -> Result<(), RoutesError> {
        if !self.is_master() {
            let what = format!(
                "the server at {at} is a replica, and can't be written: name its master in routes.nodes, by an address \
                 that follows it"
            );
            // In a cluster another one is the master by now.
            return Err(if self.is_cluster() { RoutesError::Unreachable(what) } else { RoutesError::Unfit(what) });
        }
        if self.policy != "noeviction" {
            let policy = &self.policy;
            return Err(RoutesError::Unfit(format!(
                "the server at {at} has maxmemory-policy {policy}, by which it would forget routes of its own accord: \
                 `CONFIG SET maxmemory-policy noeviction`, there and in its configuration file, or give the table a \
                 server of its own"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:a1b2\r\n\r\n# Memory\r\n\
                        maxmemory_policy:noeviction\r\n# Replication\r\nrole:master\r\n";

    fn refused(text: &str) -> String {
        let info = Info::parse(text);
        match info.check_kind("h:1").and_then(|()| info.check_holder("h:1")) {
            Err(RoutesError::Unfit(what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_that_can_hold_the_table_is_taken() {
        let info = Info::parse(TEXT);
        assert_eq!(info.check_kind("h:1").and_then(|()| info.check_holder("h:1")), Ok(()));
        assert!(info.is_master() && !info.is_cluster() && info.run_id == "a1b2");
        let valkey = Info::parse(&TEXT.replace("7.0.15", "10.1.0"));
        assert_eq!(valkey.check_kind("h:1"), Ok(()));
    }

    #[test]
    fn one_that_can_not_is_refused_with_what_to_change() {
        for (from, to, says) in [
            ("redis_version:7.0.15", "redis_version:6.2.14", "Redis 6.2.14"),
            ("redis_version:7.0.15", "", "Redis none"),
            ("redis_mode:standalone", "redis_mode:sentinel", "is a Sentinel"),
            ("role:master", "role:slave", "name its master in routes.nodes"),
            ("noeviction", "allkeys-lru", "maxmemory-policy allkeys-lru"),
            ("noeviction", "volatile-ttl", "CONFIG SET maxmemory-policy noeviction"),
        ] {
            let what = refused(&TEXT.replace(from, to));
            assert!(what.contains(says) && what.contains("h:1"), "{what}");
        }
    }

    #[test]
    fn a_replica_in_a_cluster_is_waited_for() {
        let info = Info::parse(&TEXT.replace("standalone", "cluster").replace("role:master", "role:slave"));
        assert!(info.is_cluster());
        assert!(matches!(info.check_holder("h:1"), Err(RoutesError::Unreachable(_))));
    }
}
