//! The dispatch API, version 1, as JSON; `proto.rs` turns the same values into protobuf and back. The client
//! SDK has types of its own; these are public so that both can be checked against each other.
//!
//! Unknown fields of a request are ignored, and clients are to ignore unknown fields of an answer: that is
//! how the API grows.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What a client may say; all of it is optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DispatchRequest {
    /// The network it is on.
    pub network: NetworkView,
    /// Round trips it measured, at most 50.
    pub rtt: Vec<RttSample>,
    /// Edges it does not want, at most 50; they are listed only if there is no other.
    pub exclude: Vec<String>,
    /// Who it is for, if its regions are a matter of who it is. Nothing is proved by it, and nothing but the list depends
    /// on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether to say why each edge has its rank.
    pub explain: bool,
    /// "What if this were my address": for operators only.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub as_address: Option<IpAddr>,
}

/// The network a client is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkView {
    /// What kind.
    pub kind: NetworkKind,
    /// Whether it is paid by volume.
    pub metered: bool,
}

/// Kinds of networks. One that this version does not know is `unknown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkKind {
    /// Wireless LAN.
    Wifi,
    /// A mobile network.
    Cellular,
    /// A cable.
    Wired,
    /// Not said.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A round trip that a client measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RttSample {
    /// To which edge.
    pub edge: String,
    /// Milliseconds, 0 to 60,000.
    pub ms: f64,
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DispatchAnswer {
    /// Seconds for which this list is good. Older lists are better than none.
    pub ttl_s: u32,
    /// The client as it was seen.
    pub client: ClientView,
    /// Best first.
    pub edges: Vec<EdgeView>,
    /// Until the edge says otherwise.
    pub heartbeat: HeartbeatView,
    /// Why others are not listed, at most 64: for operators who ask for explanations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlisted: Vec<UnlistedView>,
}

/// An edge that is known but not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlistedView {
    /// Its name.
    pub id: String,
    /// Its region's name.
    pub region: String,
    /// `silent`, `draining`, `cordoned`, `region_cordoned` or `full`; `excluded` where the request says so; `not_pinned`
    /// where an operator's policy pins the client to other regions.
    pub reason: String,
}

/// The client as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientView {
    /// Its address.
    pub address: IpAddr,
    /// Its country, ISO 3166-1 alpha-2.
    pub country: Option<String>,
    /// Why it could not be placed, if so: `loopback`, `private`, `not_found` ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unplaced: Option<String>,
}

/// An edge to try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgeView {
    /// Its name.
    pub id: String,
    /// Its region's name.
    pub region: String,
    /// What its certificate says.
    #[serde(default)]
    pub tls_name: String,
    /// Where it is, the same ports for all transports.
    pub addresses: Vec<SocketAddr>,
    /// What it speaks, in the order to try them.
    pub transports: Vec<Transport>,
    /// How long an attempt may take before it has failed.
    pub timeouts_ms: TimeoutsView,
    /// From 1.
    pub rank: u32,
    /// Why that rank, if asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explain: Option<ExplainView>,
}

/// Ways to reach an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP.
    Tcp,
    /// WebSocket.
    Ws,
    /// HTTP requests.
    Poll,
}

/// From the first packet to the edge's Welcome, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeoutsView {
    /// Over QUIC.
    pub quic: u32,
    /// Over TCP.
    pub tcp: u32,
}

/// Why an edge has its rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainView {
    /// Estimated round trip; null if nothing is known.
    pub rtt_ms: Option<f64>,
    /// `measured`, `provider`, `country`, `distance` or `unknown`.
    pub rtt_source: String,
    /// Connections over capacity, those on their way included.
    pub load: f64,
    /// In words: "12 ms by distance, load 0.10".
    pub reason: String,
}

/// How often to tell the edge that one is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatView {
    /// In the foreground.
    pub foreground_ms: u32,
    /// In the background, at first.
    pub background_ms_min: u32,
    /// In the background, at most, once the network has shown that it keeps silent connections.
    pub background_ms_max: u32,
}

impl Default for HeartbeatView {
    /// Translators on the way forget UDP after 30 s at the earliest, and many after 5 minutes.
    fn default() -> Self {
        Self { foreground_ms: 20_000, background_ms_min: 25_000, background_ms_max: 270_000 }
    }
}

/// The body of every answer that is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorView,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// For programs; stable.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Answer of `GET /v1/health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthView {
    /// `ok`, or `no_edges`.
    pub status: String,
    /// The dispatching region's name.
    pub region: String,
    /// Edges that are listed.
    pub edges_listed: u32,
    /// Edges that are remembered but not listed: silent, draining, cordoned or full.
    pub edges_unlisted: u32,
}
