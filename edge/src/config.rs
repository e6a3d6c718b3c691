//! What an operator sets on an edge. Every default says why it is that.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tern_core::limits;
use tern_core::wire::v1;
use tern_net::prefix::IpPrefix;
use tern_net::quic::QuicParams;
use tern_net::reset::ResetKey;
use tern_net::resume::Tickets;

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
    /// Web pages (`https://example.org`) whose scripts may connect by WebSocket or polls. Empty: those of any
    /// site, since tokens are in the Hello and no cookie is looked at. Clients that are no browsers name none.
    pub origins: Vec<String>,
    /// Load balancers that end TLS towards clients, or pass HTTP on: `X-Forwarded-For` counts from them alone, for
    /// WebSockets and polls. QUIC and the raw protocol over TCP have no such header; clients must reach them without a proxy.
    pub trusted_proxies: Vec<IpPrefix>,
    /// Kept over restarts, so that clients of an edge that was killed learn of it at once. `None`: one for
    /// this start.
    pub reset_key: Option<ResetKey>,
    /// With which clients on QUIC take sessions up again, and say Hello with their first packet.
    pub tickets: Arc<Tickets>,
    /// Bounds.
    pub limits: EdgeLimits,
}

/// Those of thirteen thousand handshakes: 14 MiB.
pub const TICKETS: u32 = 40_000;

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
            origins: Vec::new(),
            trusted_proxies: Vec::new(),
            reset_key: None,
            tickets: Tickets::new(TICKETS as usize),
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
    /// Clients of a lost edge come back to others at this rate: each is told over how long to spread it. 200 a second: a
    /// quarter of what one core of a small machine takes.
    pub return_per_second: u32,
    /// After the core was not heard of for so long, its sessions are sent elsewhere.
    pub core_lost: Duration,
    /// Likewise, after a core node said that it is stopped in order and comes back.
    pub core_restart: Duration,
    /// Handshakes under way whose address is proven, from the first packet to an accepted Hello. 2,048: over
    /// six thousand clients a second on links of 300 ms, and 256 MiB if all of them send their worst.
    pub handshakes: u32,
    /// Likewise, whose address may be forged (QUIC's first packets). With more, everyone proves his address
    /// first, which costs him a round trip.
    pub unproven_handshakes: u32,
    /// Likewise, of one address block.
    pub unproven_handshakes_per_block: u32,
    /// Handshakes per second and address block that are broken off without a Hello. Racing clients break off
    /// two of three, so this is far above the failed ones, and an accepted Hello from the block clears it.
    pub abandoned_handshakes_per_second: u32,
    /// Likewise, at once.
    pub abandoned_handshakes_burst: u32,
    /// Connections of one user to this edge: three for each of his devices, and two for races under way.
    pub connections_per_user: usize,
    /// TCP connections, each of which takes a file descriptor. The process sets it below what it may open, so
    /// that stores, links and log files never find none left.
    pub tcp_connections: u32,
    /// Bytes that may wait for and of all clients together. Above it new clients and pulls are refused with
    /// `overloaded`, pushes give way at once, and who is slow is closed after `pressed_timeout`.
    pub memory_bytes: usize,
    /// Takes the place of `too_slow` and `frame_timeout` above `memory_bytes`.
    pub pressed_timeout: Duration,
    /// From a frame's first byte to its last: a body of 64 KiB at 1 KiB/s, and no slower.
    pub frame_timeout: Duration,
    /// Frames per second that have no answer (acks of pushes, changes of network, fresh tokens and the like),
    /// for which nothing in flight is counted. Clients send about ten.
    pub notes_per_second: u32,
    /// Likewise, at once: 50 frames of `Unstable` when a client connects, and much room.
    pub notes_burst: u32,
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
            too_slow: Duration::from_secs(120),
            idle_timeout: QuicParams::edge().idle_timeout,
            sends_per_second: limits::SENDS_PER_SECOND,
            sends_burst: limits::SENDS_BURST,
            failed_handshakes_per_second: limits::FAILED_HANDSHAKES_PER_SECOND,
            failed_handshakes_burst: 2 * limits::FAILED_HANDSHAKES_PER_SECOND,
            return_per_second: 200,
            core_lost: Duration::from_secs(5),
            core_restart: Duration::from_secs(10),
            handshakes: 2_048,
            unproven_handshakes: 512,
            unproven_handshakes_per_block: 64,
            abandoned_handshakes_per_second: 100,
            abandoned_handshakes_burst: 500,
            connections_per_user: 3 * limits::DEVICES_PER_USER + 2,
            tcp_connections: u32::MAX,
            memory_bytes: 512 * 1024 * 1024,
            pressed_timeout: Duration::from_secs(2),
            frame_timeout: Duration::from_secs(60),
            notes_per_second: 200,
            notes_burst: 2_000,
        }
    }
}
