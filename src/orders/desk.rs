//! What operators ask of a running node about orders, over its admin listener: `POST /orders/leave` and `/orders/return`
//! give one, `GET /orders` shows all, and how far those who are to leave have got.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::ORIGIN;
use hyper::{HeaderMap, Method, Response, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tern_core::clock::Clock;
use tern_core::ids::Region;
use tern_core::node::Counters;
use tern_core::orders::{Order, PACE_MAX, Pace, Target};
use tern_core::ranking::Standing;
use tern_ipconf::{LoadTable, Seen};
use tern_replication::gossip::{GossipNode, LoadSource, Member};
use tern_replication::region::{PeerStats, Region as Core};

use super::Board;
use crate::admin;
use crate::config::scope::Role;
use crate::config::value::parse_duration;
use crate::node::Node;
use crate::operations::Operations;
use crate::reload::Reloader;
use crate::routes::TableStatus;
use crate::status::Status;
use crate::store::parameter;

/// See the module.
pub struct Desk {
    board: Arc<Board>,
    loads: Arc<LoadTable>,
    clock: Arc<dyn Clock>,
    role: Role,
    own: (Region, String, String),
    reload: Arc<Reloader>,
    shared: bool,
    /// What the node's own edge says, which is newer than what others have heard of it.
    edge: Option<LoadSource>,
    core: OnceLock<Arc<Core>>,
    gossip: OnceLock<Arc<GossipNode>>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("own", &self.own).finish_non_exhaustive()
    }
}

/// How far an order has got, as the asked node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Number of the region.
    pub region: Region,
    /// Its name, if it is known here.
    pub region_name: Option<String>,
    /// The node; none: all of the region.
    pub node: Option<String>,
    /// Whether clients are to leave, or may come back.
    pub leave: bool,
    /// When that was ordered, since 1970.
    pub at_ms: u64,
    /// How fast: "configured", "50/s" or "600s".
    pub pace: String,
    /// Edges that are concerned and heard of.
    pub edges: u32,
    /// Of those, the ones that send their clients away.
    pub leaving: u32,
    /// Clients that they have.
    pub clients: u64,
    /// Shares of a region that several core nodes share, which the node has not handed over yet.
    pub shares: Option<u32>,
    /// Conversations that some other region has not acked, where the asked node knows.
    pub backlog: Option<u64>,
    /// Nothing is left to do.
    pub done: bool,
}

/// An order as it was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ordered {
    /// Whether it was not so before.
    pub news: bool,
    /// What an operator should know besides.
    pub notes: Vec<String>,
    /// How far it has got.
    pub progress: Progress,
}

type Refused = (StatusCode, String);

impl Desk {
    /// `edge`: what the process's own edge says, if it has one.
    pub fn new(
        node: &Node,
        operations: &Operations,
        board: &Arc<Board>,
        loads: &Arc<LoadTable>,
        edge: Option<LoadSource>,
    ) -> Arc<Self> {
        Arc::new(Self {
            board: board.clone(),
            loads: loads.clone(),
            clock: node.env.clock.clone(),
            role: node.role,
            own: (node.region, node.region_name.clone(), node.name.clone()),
            reload: operations.reload.clone(),
            shared: node.settings.region_shared,
            edge,
            core: OnceLock::new(),
            gossip: OnceLock::new(),
        })
    }

    /// The region's core, once it has started.
    pub fn attach(&self, core: Arc<Core>) {
        if self.core.set(core).is_err() {
            tracing::error!("a core was attached twice");
        }
    }

    /// The node's part in the gossip, once it takes part.
    pub fn attach_gossip(&self, gossip: Arc<GossipNode>) {
        if self.gossip.set(gossip).is_err() {
            tracing::error!("gossip was attached twice");
        }
    }

    /// Which node this is, and nothing else.
    pub fn who(&self) -> Status {
        let (region, region_name, node) = self.own.clone();
        Status { node, role: self.role.name().to_owned(), region, region_name, ..Status::default() }
    }

    /// Connections of this process's own edge.
    pub fn clients(&self) -> Option<u32> {
        self.edge.as_ref().map(|edge| edge().connections)
    }

    /// What the core has counted.
    pub fn counters(&self) -> Option<Counters> {
        self.core.get().map(|core| core.counters())
    }

    /// Nodes of all clusters that this one takes part in, this one included.
    pub fn members(&self) -> Vec<Member> {
        self.gossip.get().map(|gossip| gossip.members().into_values().flatten().collect()).unwrap_or_default()
    }

    /// Regions that the configuration names, and where their cores listen for nodes.
    pub fn peers(&self) -> Vec<(Region, String, String)> {
        let settings = self.reload.settings();
        settings.peers.iter().map(|peer| (peer.region, peer.name.clone(), peer.addr.to_string())).collect()
    }

    /// Regions that this region's store must still be compared with.
    pub fn refilling(&self) -> usize {
        self.core.get().map_or(0, |core| core.refilling().0)
    }

    /// The edges that are known here, this process's own by what it says now.
    pub fn seen(&self) -> Vec<Seen> {
        let mut seen = self.loads.seen(self.clock.now());
        let Some(load) = self.edge.as_ref().map(|edge| edge()) else { return seen };
        let own = (self.own.0, load.edge.as_str());
        let at = seen.binary_search_by(|s| (s.region, &*s.edge).cmp(&own));
        let standing = match at {
            Ok(at) if !load.draining => seen[at].standing,
            _ if load.draining => Standing::Draining,
            _ => Standing::Listed,
        };
        let said = Seen {
            region: self.own.0,
            region_name: self.own.1.as_str().into(),
            edge: load.edge.as_str().into(),
            connections: (load.connections, load.capacity),
            cpu_permille: load.cpu_permille,
            draining: load.draining,
            standing,
            age: Duration::ZERO,
        };
        match at {
            Ok(at) => seen[at] = said,
            Err(at) => seen.insert(at, said),
        }
        seen
    }

    /// Names of regions, by number.
    pub fn regions(&self) -> BTreeMap<Region, String> {
        let mut known: BTreeMap<Region, String> =
            self.loads.seen(self.clock.now()).into_iter().map(|s| (s.region, s.region_name.to_string())).collect();
        known.extend(self.peers().into_iter().map(|(region, name, _)| (region, name)));
        known.insert(self.own.0, self.own.1.clone());
        known
    }

    /// Shares that each core node of this region has, where several share it.
    pub fn shares(&self) -> Option<BTreeMap<String, u32>> {
        self.shared.then(|| self.core.get().map(|core| core.shares())).flatten()
    }

    /// How the region's table of routes stands, where this is a core node.
    pub fn routes(&self) -> Option<TableStatus> {
        self.core.get().map(|core| TableStatus::of(core.routes_standing()))
    }

    /// Where this region's links stand.
    pub fn links(&self) -> BTreeMap<Region, PeerStats> {
        self.core.get().map(|core| core.peers()).unwrap_or_default()
    }

    fn region(&self, text: &str) -> Result<Region, Refused> {
        if let Ok(number) = text.parse::<u16>() {
            let region = Region::try_from(number).ok().filter(|region| *region != 0);
            return region.ok_or_else(|| bad(format!("region {number}: regions are 1 to 255")));
        }
        let known = self.regions();
        known.iter().find(|(_, name)| *name == text).map(|(region, _)| *region).ok_or_else(|| {
            let known: Vec<String> = known.iter().map(|(region, name)| format!("{name} ({region})")).collect();
            bad(format!(
                "no region {text:?} is known here; known are {}. One that is not may be given by its number",
                known.join(", ")
            ))
        })
    }

    /// The node of this name; in which region, if that is not said, is found out.
    fn node(&self, name: &str, region: Option<Region>) -> Result<Target, Refused> {
        let orders = self.board.orders();
        let seen = self.seen();
        let named = seen.iter().filter(|s| &*s.edge == name).map(|s| s.region);
        let ordered = orders.iter().filter(|(t, _)| t.node.as_deref() == Some(name)).map(|(t, _)| t.region);
        let mut found: Vec<Region> = named.chain(ordered).filter(|r| region.is_none_or(|of| of == *r)).collect();
        found.sort_unstable();
        found.dedup();
        match found[..] {
            [region] => Ok(Target::node(region, name)),
            [] => {
                let known: Vec<String> = seen.iter().map(|s| s.edge.to_string()).collect();
                Err(bad(format!("no node {name:?} is known here; known are {}", known.join(", "))))
            }
            _ => Err(bad(format!("there is a node {name:?} in each of the regions {found:?}: say which by --region"))),
        }
    }

    /// Gives an order; `force`: although nobody is left who could take the clients.
    fn order(&self, target: &Target, leave: bool, pace: Pace, force: bool) -> Result<Ordered, Refused> {
        if self.role == Role::Edge && target.region != self.own.0 {
            return Err(bad("an edge knows its own region only: ask a region or an ipconf".to_owned()));
        }
        if leave && !force {
            let elsewhere = self.seen().iter().any(|s| {
                let concerned = s.region == target.region && target.node.as_deref().is_none_or(|node| *node == *s.edge);
                s.standing == Standing::Listed && !concerned
            });
            if !elsewhere {
                return Err((
                    StatusCode::CONFLICT,
                    "nothing was ordered: as far as this node knows no other edge could take the clients. With --force \
                     they are sent away all the same"
                        .to_owned(),
                ));
            }
        }
        // Reading and writing files must not hold up the other tasks of this thread.
        let given = tokio::task::block_in_place(|| self.board.give(target, leave, pace));
        let (order, news) = given.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")))?;
        let mut notes = Vec::new();
        let sole = target.node.is_some() && *target == Target::node(self.own.0, &self.own.2);
        if leave && sole && self.role == Role::Region && !self.shared {
            notes.push(format!(
                "{} is the only core node of its region: its own edge is left, and goes on serving the region's other \
                 edges; to empty the region: tern drain --region {}",
                self.own.2, self.own.1
            ));
        }
        if !leave && target.node.is_none() && self.loads.cordoned_by_configuration().contains(&target.region) {
            notes.push(
                "the configuration of this dispatcher takes it out as well: dispatch.cordoned_regions".to_owned(),
            );
        }
        if !leave && target.node.is_some() && self.board.orders().leaves(&Target::region(target.region)).is_some() {
            notes.push("its region is cordoned as a whole: clients do not come before that is taken back".to_owned());
        }
        Ok(Ordered { news, notes, progress: self.progress(target, &order) })
    }

    fn progress(&self, target: &Target, order: &Order) -> Progress {
        let seen = self.seen();
        let mine = seen.iter().filter(|s| {
            let alive = s.standing != Standing::Silent;
            alive && s.region == target.region && target.node.as_deref().is_none_or(|node| *node == *s.edge)
        });
        let (mut edges, mut leaving, mut clients) = (0, 0, 0);
        for edge in mine {
            edges += 1;
            leaving += u32::from(edge.draining);
            clients += u64::from(edge.connections.0);
        }
        let own_region = target.region == self.own.0;
        let shares = match &target.node {
            Some(node) if own_region => self.shares().map(|all| all.get(&**node).copied().unwrap_or(0)),
            _ => None,
        };
        let backlog = (own_region && target.node.is_none() && self.core.get().is_some())
            .then(|| self.links().values().map(|peer| peer.backlog as u64).sum());
        let others_have = self.shares().is_some_and(|all| all.len() > 1);
        let done = if order.leave {
            leaving == edges && clients == 0 && (shares.unwrap_or(0) == 0 || !others_have) && backlog.unwrap_or(0) == 0
        } else {
            leaving == 0
        };
        Progress {
            region: target.region,
            region_name: self.regions().get(&target.region).cloned(),
            node: target.node.as_deref().map(str::to_owned),
            leave: order.leave,
            at_ms: order.at_ms,
            pace: show_pace(order.pace),
            edges,
            leaving,
            clients,
            shares,
            backlog,
            done,
        }
    }

    /// All orders, and how far they have got.
    pub fn all(&self) -> Vec<Progress> {
        self.board.orders().iter().map(|(target, order)| self.progress(target, order)).collect()
    }
}

fn bad(what: String) -> Refused {
    (StatusCode::BAD_REQUEST, what)
}

fn show_pace(pace: Pace) -> String {
    match pace {
        Pace::Configured => "configured".to_owned(),
        Pace::PerSecond(n) => format!("{n}/s"),
        Pace::Within(window) => crate::config::value::show_duration(window),
    }
}

/// A pace as it is typed: "50/s", or the time within which all are to have left.
pub fn parse_pace(text: &str) -> Result<Pace, String> {
    let expected = "expected clients a second of each edge, such as 50/s, or a time for all of them, such as 10m";
    if let Some(number) = text.strip_suffix("/s") {
        return match number.parse() {
            Ok(n @ 1..) => Ok(Pace::PerSecond(n)),
            _ => Err(expected.to_owned()),
        };
    }
    match parse_duration(text) {
        Some(window) if window > PACE_MAX => Err("a day is the longest that clients may take to leave".to_owned()),
        Some(window) if window.as_millis() > 0 => Ok(Pace::Within(window)),
        _ => Err(expected.to_owned()),
    }
}

/// Answers what the module says, to callers on the machine itself and to no browser's page.
pub fn answer(
    method: &Method,
    uri: &Uri,
    from: SocketAddr,
    headers: &HeaderMap,
    desk: Option<&Arc<Desk>>,
) -> Response<Full<Bytes>> {
    let say = |status, what: &str| admin::text(status, format!("{what}\n"));
    if !from.ip().to_canonical().is_loopback() || headers.contains_key(ORIGIN) {
        return say(StatusCode::FORBIDDEN, "this is answered on the machine itself only, and to no browser");
    }
    let Some(desk) = desk else {
        return say(StatusCode::SERVICE_UNAVAILABLE, "this node is starting: ask again when it is ready");
    };
    let query = uri.query().unwrap_or("");
    let leave = match (uri.path(), method) {
        ("/orders", &Method::GET) => return admin::json(StatusCode::OK, &serde_json::json!(desk.all())),
        ("/orders/leave", &Method::POST) => true,
        ("/orders/return", &Method::POST) => false,
        ("/orders" | "/orders/leave" | "/orders/return", _) => {
            return say(StatusCode::METHOD_NOT_ALLOWED, "GET /orders, POST /orders/leave and POST /orders/return");
        }
        _ => return say(StatusCode::NOT_FOUND, "here are /orders, /orders/leave and /orders/return"),
    };
    let ordered = || {
        let region = parameter(query, "region").map(|text| desk.region(&text)).transpose()?;
        let target = match (parameter(query, "node"), region) {
            (Some(node), region) => desk.node(&node, region)?,
            (None, Some(region)) => Target::region(region),
            (None, None) => return Err(bad("region=NAME or node=NAME is missing".to_owned())),
        };
        let pace = parameter(query, "pace").map(|text| parse_pace(&text)).transpose().map_err(bad)?;
        let force = parameter(query, "force").as_deref() == Some("true");
        desk.order(&target, leave, pace.unwrap_or_default(), force)
    };
    match ordered() {
        Ok(ordered) => admin::json(StatusCode::OK, &serde_json::json!(ordered)),
        Err((status, what)) => say(status, &what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_a_rate_or_a_time_and_nothing_else() {
        assert_eq!(parse_pace("50/s"), Ok(Pace::PerSecond(50)));
        assert_eq!(parse_pace("10m"), Ok(Pace::Within(Duration::from_secs(600))));
        for wrong in ["", "50", "0/s", "-1/s", "0s", "25h", "50/m"] {
            assert!(parse_pace(wrong).is_err(), "{wrong}");
        }
        assert_eq!(show_pace(Pace::PerSecond(50)), "50/s");
    }
}
