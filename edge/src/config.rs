//! What an operator sets on an edge. Every default says why it is that.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tern_core::limits;
use tern_core::wire::v1;
use tern_net::quic::QuicParams;

/// One edge.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// Unique in its region.
    pub name: String,
    /// 1-255; which region it serves.
    pub region: u8,
    /// That region's name.
    pub region_name: String,
    /// Client address, UDP and TCP alike. Port 0 takes any port that is free for both.
    pub listen: SocketAddr,
    /// Further addresses, say of the other IP family; port 0 means the port of `listen`.
    pub listen_also: Vec<SocketAddr>,
    /// What clients are told to connect to. Empty: what is listened on.
    pub advertise: Vec<SocketAddr>,
    /// The deployment: tokens must carry it as `aud`.
    pub audience: String,
    /// Connections that dispatch may send here; a quarter more are taken before new ones are refused.
    pub capacity: u32,
    /// Edges with equal values may fail together (rack, provider, zone).
    pub failure_domain: String,
    /// Degrees, north positive.
    pub latitude: f64,
    /// Degrees, east positive.
    pub longitude: f64,
    /// How often clients are to send when idle. `None`: as the core says.
    pub heartbeat: Option<v1::Heartbeat>,
    /// GoAways per second of a drain: clients that come back elsewhere cost a handshake each there.
    pub drain_per_second: u32,
    /// Bounds.
    pub limits: EdgeLimits,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            name: "edge".into(),
            region: 1,
            region_name: "local".into(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            listen_also: Vec::new(),
            advertise: Vec::new(),
            audience: "tern".into(),
            capacity: 20_000,
            failure_domain: String::new(),
            latitude: 0.0,
            longitude: 0.0,
            heartbeat: None,
            drain_per_second: 1_000,
            limits: EdgeLimits::default(),
        }
    }
}

/// Bounds of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeLimits {
    /// From a connection's first packet to its Hello.
    pub hello_timeout: Duration,
    /// From a Hello to the core's answer. 5 s: then another edge is the better bet.
    pub open_timeout: Duration,
    /// Requests of one connection that wait for an answer.
    pub in_flight: u32,
    /// Of these, how many may be pulls. 4: each may be answered by megabytes, and clients pull four at a time.
    pub pulls_in_flight: usize,
    /// Frames that wait on one connection's message lane before pushes give way.
    pub queue_frames: usize,
    /// Bytes that wait there, likewise.
    pub queue_bytes: usize,
    /// A connection that takes nothing for so long while something waits is closed.
    pub too_slow: Duration,
    /// A connection from which nothing came for so long is closed: 2.5 of the longest heartbeats. QUIC has
    /// the same limit of its own; TCP would keep a dead peer for hours.
    pub idle_timeout: Duration,
    /// Sends per second and user.
    pub sends_per_second: u32,
    /// Sends at once and user.
    pub sends_burst: u32,
    /// Failed handshakes per second and address block (/24 or /56).
    pub failed_handshakes_per_second: u32,
    /// Failed handshakes at once and address block.
    pub failed_handshakes_burst: u32,
    /// After the core was not heard of for so long, its sessions are sent elsewhere.
    pub core_lost: Duration,
}

impl Default for EdgeLimits {
    fn default() -> Self {
        Self {
            hello_timeout: limits::HELLO_TIMEOUT,
            open_timeout: Duration::from_secs(5),
            in_flight: u32::try_from(limits::IN_FLIGHT).unwrap_or(u32::MAX),
            pulls_in_flight: 4,
            queue_frames: limits::QUEUE_FRAMES,
            queue_bytes: limits::QUEUE_BYTES,
            too_slow: Duration::from_secs(30),
            idle_timeout: QuicParams::edge().idle_timeout,
            sends_per_second: limits::SENDS_PER_SECOND,
            sends_burst: limits::SENDS_BURST,
            failed_handshakes_per_second: limits::FAILED_HANDSHAKES_PER_SECOND,
            failed_handshakes_burst: 2 * limits::FAILED_HANDSHAKES_PER_SECOND,
            core_lost: Duration::from_secs(5),
        }
    }
}
