//! What a node says of itself and of what it sees, at `/status` of its admin listener, for `tern top` and other programs.
//!
//! All of it is as old as its sources: a second at most for links and members, three for edges of other regions.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tern_core::ids::Region;
use tern_ipconf::Seen;
use tern_replication::gossip::Member;

use crate::health::Health;
use crate::orders::desk::{Desk, Progress};
use crate::routes::TableStatus;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// `region`, `edge` or `ipconf`.
    pub role: String,
    /// Number of its region.
    pub region: Region,
    /// Name of its region.
    pub region_name: String,
    /// Of the program.
    pub version: String,
    /// `ready`, or why not.
    pub state: String,
    /// What does not keep it from being ready.
    pub notes: Vec<String>,
    /// Connections of its edge, if it has one.
    pub clients: Option<u32>,
    /// Messages that its core has sequenced since its start, if it has one.
    pub messages: Option<u64>,
    /// Pushes that its core has handed to edges since its start.
    pub pushes: Option<u64>,
    /// Its links to other regions.
    pub links: Vec<LinkStatus>,
    /// Regions that its store must still be compared with: it may lack what they hold.
    #[serde(default)]
    pub refilling: usize,
    /// Shares of its region that each core node has, where several share it.
    pub shares: Option<BTreeMap<String, u32>>,
    /// How its region's table of routes stands, if it is a core node.
    #[serde(default)]
    pub routes: Option<TableStatus>,
    /// Nodes that it gossips with.
    pub members: Vec<MemberStatus>,
    /// Edges that it knows of.
    pub edges: Vec<EdgeStatus>,
    /// Operators' orders, and how far they have got.
    pub orders: Vec<Progress>,
}

/// A link to another region.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The other region's number.
    pub region: Region,
    /// Its name.
    pub name: String,
    /// Where its core listens for nodes, as it is configured.
    pub at: String,
    /// Whether the link is up.
    pub connected: bool,
    /// Entries that it has not acked.
    pub unacked: u64,
    /// There may be more than that: not all logs were looked at.
    pub or_more: bool,
    /// Since it was heard.
    pub silence_ms: u64,
}

/// A node, as gossip has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Number of the region that it is configured for.
    pub region: Region,
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: String,
    /// `alive`, `suspect` or `down`.
    pub state: String,
    /// Where it is sent gossip: unless it is configured otherwise, its admin listener has the same port.
    pub at: SocketAddr,
}

/// An edge, as dispatch has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgeStatus {
    /// Number of its region.
    pub region: Region,
    /// That region's name.
    pub region_name: String,
    /// Its name.
    pub edge: String,
    /// Its connections.
    pub clients: u32,
    /// As many as it takes.
    pub capacity: u32,
    /// Of its processors, 0-1000.
    pub cpu_permille: u32,
    /// `listed`, or why not.
    pub standing: String,
    /// How old this is.
    pub age_ms: u64,
}

/// What a node says.
pub fn of(desk: &Desk, health: &Health) -> Status {
    let who = desk.who();
    let missing = health.not_ready();
    let state = if missing.is_empty() { "ready".to_owned() } else { missing.join("; ") };
    let seen = desk.seen();
    let counters = desk.counters();
    Status {
        state,
        notes: health.noted(),
        clients: desk.clients(),
        messages: counters.as_ref().map(|c| c.sequenced),
        pushes: counters.as_ref().map(|c| c.pushes),
        links: links(desk),
        refilling: desk.refilling(),
        shares: desk.shares(),
        routes: desk.routes(),
        members: desk.members().iter().map(member).collect(),
        edges: seen.iter().map(edge).collect(),
        orders: desk.all(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..who
    }
}

fn links(desk: &Desk) -> Vec<LinkStatus> {
    let stats = desk.links();
    let of = |(region, name, at): (Region, String, String)| {
        let peer = stats.get(&region)?;
        Some(LinkStatus {
            region,
            name,
            at,
            connected: peer.connected,
            unacked: peer.lag.entries,
            or_more: !peer.lag.whole,
            silence_ms: u64::try_from(peer.silence.as_millis()).unwrap_or(u64::MAX),
        })
    };
    desk.peers().into_iter().filter_map(of).collect()
}

fn member(member: &Member) -> MemberStatus {
    MemberStatus {
        region: member.id.region,
        name: member.id.name.to_string(),
        role: member.id.role.name().to_owned(),
        state: member.state.name().to_owned(),
        at: member.id.addr,
    }
}

fn edge(seen: &Seen) -> EdgeStatus {
    EdgeStatus {
        region: seen.region,
        region_name: seen.region_name.to_string(),
        edge: seen.edge.to_string(),
        clients: seen.connections.0,
        capacity: seen.connections.1,
        cpu_permille: seen.cpu_permille,
        standing: seen.standing.name().to_owned(),
        age_ms: u64::try_from(seen.age.as_millis()).unwrap_or(u64::MAX),
    }
}
