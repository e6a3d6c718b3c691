//! The servers that hold the table together, and which of them has what.
//!
//! The driver's own client for clusters opens its sockets itself, draws its own random numbers, and hides what this
//! table must know: that a server was started anew or replaced. So it is asked for single connections only, over the
//! environment's network, and where a key is stands here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::{Cmd, FromRedisValue, Value};
use tern_replication::routes::RoutesError;

use crate::limits::{REDIRECTS, SERVERS};
use crate::server::{Context, Failure, Server};
use crate::slots::SLOTS;

/// See the module.
#[derive(Debug)]
pub(crate) struct Servers {
    context: Arc<Context>,
    map: Mutex<Map>,
    is_stale: AtomicBool,
    /// One looks at a time.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Map {
    /// By `host:port`; those that hold nothing are asked for the map.
    servers: BTreeMap<String, Arc<Server>>,
    ranges: Vec<Range>,
    is_cluster: bool,
}

/// Slots that a server has.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub first: u16,
    pub last: u16,
    pub server: Arc<Server>,
}

/// What a cluster says: first and last slot, and the address of their master.
type Told = Vec<(u16, u16, String, u16)>;

impl Servers {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        let map = Mutex::default();
        Self { context, map, is_stale: AtomicBool::new(true), looking: tokio::sync::Mutex::default() }
    }

    /// The map is looked at again before the next request.
    pub(crate) fn is_stale(&self) {
        self.is_stale.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.map().is_cluster
    }

    /// Who has what now.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        self.map().ranges.clone()
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request about a key in a slot.
    pub(crate) async fn ask<T: FromRedisValue>(&self, slot: u16, cmd: &Cmd) -> Result<T, RoutesError> {
        let mut asks: Option<String> = None;
        for _ in 0..=REDIRECTS {
            let answer = match asks.take() {
                Some(to) => self.server(&to)?.asking(cmd).await,
                None => self.of(slot).await?.ask(cmd).await,
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Failure::Routes(error)) => {
                    if self.is_cluster() {
                        self.is_stale();
                    }
                    return Err(error);
                }
                Err(Failure::Ask(to)) => {
                    self.context.metrics.redirects.inc();
                    asks = Some(to);
                }
                Err(Failure::Moved(_)) => {
                    self.context.metrics.redirects.inc();
                    self.is_stale();
                }
            }
        }
        Err(RoutesError::Unreachable(format!("slot {slot} of the cluster is being moved")))
    }

    /// Who has a slot.
    async fn of(&self, slot: u16) -> Result<Arc<Server>, RoutesError> {
        if self.is_stale.load(Ordering::Relaxed) {
            self.look().await?;
        }
        let map = self.map();
        let range = map.ranges.iter().find(|range| (range.first..=range.last).contains(&slot));
        range.map(|range| range.server.clone()).ok_or_else(|| {
            RoutesError::Unreachable(format!(
                "no server of the cluster has slot {slot}; see `redis-cli --cluster check`"
            ))
        })
    }

    /// Asks who has what.
    pub(crate) async fn look(&self) -> Result<(), RoutesError> {
        let _others_wait = self.looking.lock().await;
        let (known, seeds) = {
            let mut map = self.map();
            for (host, port) in &self.context.options.nodes {
                let seed = Server::new(&self.context, host, *port);
                map.servers.entry(seed.at.clone()).or_insert(seed);
            }
            let holders: Vec<Arc<Server>> = map.ranges.iter().map(|range| range.server.clone()).collect();
            (holders, map.servers.values().cloned().collect::<Vec<_>>())
        };
        let mut failed = RoutesError::Unreachable("routes.nodes names no server".to_owned());
        for server in known.into_iter().chain(seeds) {
            match self.ask_for_map(&server).await {
                Ok(told) => {
                    self.is_stale.store(false, Ordering::Relaxed);
                    return self.take(&server, told);
                }
                // What an operator has to change says more than that another one is down.
                Err(error) if matches!(failed, RoutesError::Unfit(_)) => drop(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// `None`: it is no cluster.
    async fn ask_for_map(&self, server: &Server) -> Result<Option<Told>, RoutesError> {
        if !server.live(false).await?.info.is_cluster() {
            return Ok(None);
        }
        let mut cmd = redis::cmd("CLUSTER");
        cmd.arg("SLOTS");
        match server.ask_any::<Value>(&cmd).await {
            Ok(answer) => Ok(Some(parse(&answer, server).ok_or_else(|| {
                RoutesError::Refused(format!("the server at {} says of its slots what can't be", server.at))
            })?)),
            Err(Failure::Routes(error)) => Err(error),
            Err(Failure::Moved(to) | Failure::Ask(to)) => {
                Err(RoutesError::Refused(format!("the server at {} sends to {to} for its slots", server.at)))
            }
        }
    }

    fn take(&self, from: &Arc<Server>, told: Option<Told>) -> Result<(), RoutesError> {
        let nodes = &self.context.options.nodes;
        let mut map = self.map();
        map.is_cluster = told.is_some();
        let Some(told) = told else {
            if nodes.len() > 1 {
                return Err(RoutesError::Unfit(format!(
                    "routes.nodes names {} servers, and the one at {} is not of a cluster: name the one that is to hold \
                     the table, or make them a cluster",
                    nodes.len(),
                    from.at
                )));
            }
            map.ranges = vec![Range { first: 0, last: SLOTS - 1, server: from.clone() }];
            return Ok(());
        };
        let mut ranges: Vec<Range> = Vec::with_capacity(told.len());
        for (first, last, host, port) in told {
            let server = Server::new(&self.context, &host, port);
            let server = map.servers.entry(server.at.clone()).or_insert(server).clone();
            ranges.push(Range { first, last, server });
        }
        ranges.sort_by_key(|range| range.first);
        // Those that are gone are forgotten, but for what is configured.
        let seeds: Vec<String> =
            nodes.iter().map(|(host, port)| Server::new(&self.context, host, *port).at.clone()).collect();
        map.servers.retain(|at, _| seeds.contains(at) || ranges.iter().any(|range| range.server.at == *at));
        map.ranges = ranges;
        if map.servers.len() > SERVERS + nodes.len() {
            return Err(RoutesError::Unfit(format!("the cluster has more than {SERVERS} servers")));
        }
        Ok(())
    }

    /// Whether every slot has a server.
    pub(crate) fn check_whole(&self) -> Result<(), RoutesError> {
        let map = self.map();
        let mut next = 0;
        for range in &map.ranges {
            if range.first != next {
                break;
            }
            next = range.last + 1;
        }
        if next == SLOTS {
            return Ok(());
        }
        Err(RoutesError::Unfit(format!(
            "the cluster has no server for slot {next} and perhaps others: see `redis-cli --cluster check`, and give out all \
             slots with `redis-cli --cluster fix`"
        )))
    }

    /// A server that another one has named.
    fn server(&self, at: &str) -> Result<Arc<Server>, RoutesError> {
        let known = self.map().servers.get(at).cloned();
        known.map_or_else(
            || {
                let (host, port) = at.rsplit_once(':').unwrap_or((at, ""));
                let port = port.parse().map_err(|_| RoutesError::Refused(format!("{at:?} is no address")))?;
                Ok(Server::new(&self.context, host.trim_matches(['[', ']']), port))
            },
            Ok,
        )
    }
}

fn parse(answer: &Value, from: &Server) -> Option<Told> {
    let Value::Array(ranges) = answer else { return None };
    ranges.iter().map(|range| parse_range(range, from)).collect()
}

fn parse_range(range: &Value, from: &Server) -> Option<(u16, u16, String, u16)> {
    let Value::Array(parts) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else { return None };
    let [host, Value::Int(port), ..] = &master[..] else { return None };
    let host = match host {
        Value::BulkString(name) => String::from_utf8(name.clone()).ok()?,
        Value::SimpleString(name) => name.clone(),
        Value::Nil => String::new(),
        _ => return None,
    };
    // An unknown name stands for the one that was asked.
    let host = match host.as_str() {
        "" | "?" => from.at.rsplit_once(':')?.0.trim_matches(['[', ']']).to_owned(),
        _ => host,
    };
    let slot = |n: i64| u16::try_from(n).ok().filter(|n| *n < SLOTS);
    let (first, last) = (slot(*first)?, slot(*last)?);
    (first <= last).then_some((first, last, host, u16::try_from(*port).ok()?))
}
