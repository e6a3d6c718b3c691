//! The table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use redis::Cmd;
use tern_core::hlc;
use tern_core::ids::{InstallId, UserId};
use tern_core::store::BoxFut;
use tern_net::env::Env;
use tern_replication::routes::limits::{REMOVED_TTL, ROUTE_TTL};
use tern_replication::routes::{Change, Counts, Link, Listed, Outcome, Route, Routes, RoutesError};

use crate::keys::{Keys, from_hex, hex, parse, route_value};
use crate::limits::{MARK_TTL, REQUESTS_AT_ONCE, SCAN_KEYS};
use crate::metrics::RedisMetrics;
use crate::options::Options;
use crate::server::{Context, Server};
use crate::servers::{Range, Servers};
use crate::slots::slot_of;

/// A table of routes in Redis: one server, or a cluster.
#[derive(Debug)]
pub struct RedisRoutes {
    servers: Servers,
    keys: Keys,
    context: Arc<Context>,
    /// Tells the marks of this start from those of earlier ones.
    start: String,
    /// Parts of the table as they were last: by server, which start of it.
    parts: Mutex<BTreeMap<String, String>>,
}

impl RedisRoutes {
    /// Not connected yet: the first request does that.
    pub fn new(options: Options, env: Env) -> Self {
        let keys = Keys::new(&options.prefix);
        let start = hex(env.rng.u64());
        let context = Arc::new(Context { env, options, metrics: RedisMetrics::default() });
        Self { servers: Servers::new(context.clone()), keys, context, start, parts: Mutex::default() }
    }

    /// What it counts.
    pub fn metrics(&self) -> &RedisMetrics {
        &self.context.metrics
    }

    /// Connects to every server, and looks whether the table can be there: [`RoutesError::Unfit`] says what to change.
    /// How many servers hold it.
    pub async fn check(&self) -> Result<usize, RoutesError> {
        self.servers.look().await?;
        self.servers.check_whole()?;
        let servers = self.holders();
        for server in servers.values() {
            server.live(true).await?;
        }
        Ok(servers.len())
    }

    fn holders(&self) -> BTreeMap<String, Arc<Server>> {
        self.servers.ranges().into_iter().map(|range| (range.server.at.clone(), range.server)).collect()
    }

    async fn change(&self, change: Change) -> Result<Outcome, RoutesError> {
        let stamp = change.stamp();
        let before = hlc::from_ms(hlc::to_ms(stamp).saturating_sub(millis(REMOVED_TTL)));
        let key = self.keys.user(change.user().as_str());
        let function = match &change {
            Change::Put { .. } => "tern_routes_1_put",
            Change::Remove { .. } => "tern_routes_1_remove",
            Change::Announce { .. } => "tern_routes_1_announce",
        };
        let mut cmd = redis::cmd("FCALL");
        cmd.arg(function).arg(1).arg(&key).arg(hex(stamp)).arg(hex(before));
        cmd.arg(millis(ROUTE_TTL)).arg(millis(REMOVED_TTL));
        match &change {
            Change::Put { install, route, .. } | Change::Remove { install, route, .. } => {
                cmd.arg(install.as_str()).arg(route_value(route));
            }
            Change::Announce { routes, .. } => {
                for (install, route) in routes {
                    cmd.arg(install.as_str()).arg(route_value(route));
                }
            }
        }
        let answer: String = self.ask(&key, &cmd).await?;
        match answer.as_str() {
            "" => Ok(Outcome::Done),
            "other" => Ok(Outcome::Other),
            stamp => from_hex(stamp)
                .map(Outcome::Newer)
                .ok_or_else(|| RoutesError::Refused(format!("a function answers {stamp:?}: it is not tern's"))),
        }
    }

    async fn ask<T: redis::FromRedisValue>(&self, key: &str, cmd: &Cmd) -> Result<T, RoutesError> {
        self.servers.ask(slot_of(key.as_bytes()), cmd).await
    }

    /// The live generation of each link.
    async fn generations(&self, links: BTreeSet<Arc<Link>>) -> Result<BTreeMap<Arc<Link>, u64>, RoutesError> {
        let asked = links.into_iter().map(|link| async move {
            let key = self.keys.link(&link);
            let mut cmd = redis::cmd("GET");
            cmd.arg(&key);
            let live: Option<String> = self.ask(&key, &cmd).await?;
            Ok::<_, RoutesError>(live.and_then(|live| from_hex(&live)).map(|generation| (link, generation)))
        });
        let found: Vec<_> = stream::iter(asked).buffered(REQUESTS_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn read(&self, key: &str) -> Result<Vec<(Vec<u8>, u64, Route)>, RoutesError> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(key);
        let fields: BTreeMap<Vec<u8>, Vec<u8>> = self.ask(key, &cmd).await?;
        let routes = fields.into_iter().filter_map(|(install, value)| match parse(&value)? {
            (stamp, Some(route)) => Some((install, stamp, route)),
            (_, None) => None,
        });
        Ok(routes.collect())
    }

    async fn listed(&self, user: &UserId) -> Result<Vec<Listed>, RoutesError> {
        let routes = self.read(&self.keys.user(user.as_str())).await?;
        let live = self.generations(routes.iter().map(|(_, _, route)| route.link.clone()).collect()).await?;
        let listed = routes.into_iter().filter_map(|(install, stamp, route)| {
            let is_live = live.get(&route.link) == Some(&route.generation);
            Some(Listed { install: InstallId::from_bytes(&install).ok()?, route, stamp, is_live })
        });
        Ok(listed.collect())
    }

    async fn counted(&self) -> Result<Counts, RoutesError> {
        self.servers.look().await?;
        let mut counts = Counts::default();
        let mut live: BTreeMap<Arc<Link>, Option<u64>> = BTreeMap::new();
        for server in self.holders().values() {
            let mut cursor = 0_u64;
            loop {
                let mut cmd = redis::cmd("SCAN");
                cmd.arg(cursor).arg("MATCH").arg(self.keys.users()).arg("COUNT").arg(SCAN_KEYS);
                let page = server.ask::<(u64, Vec<String>)>(&cmd).await;
                let (next, keys) = page.map_err(|_| {
                    RoutesError::Unreachable(format!("the server at {} was not counted to its end", server.at))
                })?;
                self.count_users(keys, &mut live, &mut counts).await?;
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(counts)
    }

    async fn count_users(
        &self,
        keys: Vec<String>,
        live: &mut BTreeMap<Arc<Link>, Option<u64>>,
        counts: &mut Counts,
    ) -> Result<(), RoutesError> {
        // A scan may name a key twice, within a page as a rule.
        let keys: BTreeSet<String> = keys.into_iter().collect();
        let read = keys.into_iter().map(|key| async move { self.read(&key).await });
        let users: Vec<_> = stream::iter(read).buffered(REQUESTS_AT_ONCE).try_collect().await?;
        let links = users.iter().flatten().map(|(_, _, route)| route.link.clone());
        let unknown: BTreeSet<Arc<Link>> = links.filter(|link| !live.contains_key(link)).collect();
        let found = self.generations(unknown.clone()).await?;
        live.extend(unknown.into_iter().map(|link| (link.clone(), found.get(&link).copied())));
        for routes in users {
            let is_live = |route: &Route| live.get(&route.link) == Some(&Some(route.generation));
            let of_user = routes.iter().filter(|(_, _, route)| is_live(route)).count() as u64;
            counts.routes += of_user;
            counts.over += routes.len() as u64 - of_user;
            counts.users += u64::from(of_user > 0);
        }
        Ok(())
    }

    /// Leaves a mark in each part of the table. Whether all that were left before are there, on the same servers.
    async fn kept(&self) -> Result<bool, RoutesError> {
        // A server that was started anew is found by its run id, one that was emptied by its mark, and a part that has
        // gone to another server by both.
        self.servers.look().await?;
        let mut parts: BTreeMap<String, Vec<Range>> = BTreeMap::new();
        for range in self.servers.ranges() {
            parts.entry(range.server.at.clone()).or_default().push(range);
        }
        let marked = parts.into_iter().map(|(at, ranges)| async move {
            let has = |slot: u16| ranges.iter().any(|range| (range.first..=range.last).contains(&slot));
            let Some(key) = self.keys.mark(&self.context.options.node, has) else { return Ok(None) };
            let mut cmd = redis::cmd("SET");
            cmd.arg(&key).arg(&self.start).arg("PX").arg(millis(MARK_TTL)).arg("GET");
            let before: Option<String> = self.ask(&key, &cmd).await?;
            let Some(range) = ranges.first() else { return Ok(None) };
            let run_id = range.server.live(true).await?.info.run_id.clone();
            Ok::<_, RoutesError>(Some((at, run_id, before.as_deref() == Some(&self.start))))
        });
        let marked: Vec<_> = stream::iter(marked).buffered(REQUESTS_AT_ONCE).try_collect().await?;
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let is_kept = |(at, run_id, had_mark): &(String, String, bool)| *had_mark && parts.get(at) == Some(run_id);
        let kept = !marked.is_empty() && marked.iter().all(|part| part.as_ref().is_some_and(is_kept));
        *parts = marked.into_iter().flatten().map(|(at, run_id, _)| (at, run_id)).collect();
        Ok(kept)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Routes for RedisRoutes {
    fn write(&self, changes: Vec<Change>) -> BoxFut<'_, Vec<Result<Outcome, RoutesError>>> {
        let changes = changes.into_iter().map(|change| self.change(change));
        Box::pin(stream::iter(changes).buffered(REQUESTS_AT_ONCE).collect())
    }

    fn look_up(&self, user: UserId) -> BoxFut<'_, Result<Vec<Listed>, RoutesError>> {
        Box::pin(async move { self.listed(&user).await })
    }

    fn renew(&self, links: Vec<(Arc<Link>, u64)>, ttl: Duration) -> BoxFut<'_, Result<(), RoutesError>> {
        let renewed = links.into_iter().map(move |(link, generation)| async move {
            let key = self.keys.link(&link);
            let mut cmd = redis::cmd("SET");
            cmd.arg(&key).arg(hex(generation)).arg("PX").arg(millis(ttl));
            self.ask::<()>(&key, &cmd).await
        });
        Box::pin(stream::iter(renewed).buffered(REQUESTS_AT_ONCE).try_collect())
    }

    fn end(&self, link: Arc<Link>, generation: u64) -> BoxFut<'_, Result<bool, RoutesError>> {
        Box::pin(async move {
            let key = self.keys.link(&link);
            let mut cmd = redis::cmd("FCALL");
            cmd.arg("tern_routes_1_end").arg(1).arg(&key).arg(hex(generation));
            Ok(self.ask::<String>(&key, &cmd).await? == "ended")
        })
    }

    fn count(&self) -> BoxFut<'_, Result<Counts, RoutesError>> {
        Box::pin(self.counted())
    }

    fn is_kept(&self) -> BoxFut<'_, Result<bool, RoutesError>> {
        Box::pin(self.kept())
    }
}
