//! What connections are made to and by, and why they end.

use std::fmt;
use std::time::Duration;

use crate::wire::v1::error::Retry;

/// Numbers connections and attempts of one client, from 1.
pub type ConnNo = u64;

/// How frames travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// Three streams of one QUIC connection.
    Quic,
    /// One TLS stream over TCP.
    Tcp,
    /// A WebSocket, where only the web gets through.
    WebSocket,
    /// HTTP requests, where not even that does.
    Poll,
    /// The same over HTTP/3: where UDP gets through, but for the web alone, or TCP does not.
    Http3,
}

impl Transport {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::WebSocket => "ws",
            Self::Poll => "poll",
            Self::Http3 => "h3",
        }
    }

    /// Whether it looks like the web to those on the way.
    pub const fn is_web(self) -> bool {
        matches!(self, Self::WebSocket | Self::Poll | Self::Http3)
    }
}

/// An address of an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Name of the edge; empty where it is not known.
    pub edge: String,
    /// Name of its region; empty where it is not known.
    pub region: String,
    /// `host:port`, `v4:port` or `[v6]:port`.
    pub address: String,
    /// The name its certificate must have.
    pub server_name: String,
    /// Which transports it offers. Whoever offers QUIC offers HTTP/3 too, at the same port.
    pub quic: bool,
    /// See `quic`. Whoever offers it offers WebSockets and polls too: they share its port.
    pub tcp: bool,
    /// From the start of an attempt to its Welcome; that of HTTP/3, too.
    pub quic_timeout: Duration,
    /// Likewise, and that of WebSockets and polls.
    pub tcp_timeout: Duration,
}

impl Candidate {
    /// From the start of an attempt to its Welcome; `None`: it does not offer this transport.
    pub fn timeout(&self, transport: Transport) -> Option<Duration> {
        match transport {
            Transport::Quic | Transport::Http3 => self.quic.then_some(self.quic_timeout),
            Transport::Tcp | Transport::WebSocket | Transport::Poll => self.tcp.then_some(self.tcp_timeout),
        }
    }
}

/// Why an attempt or a connection ended, or is to be left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No route, TLS failed, the stream broke.
    Network(String),
    /// The machine is there and says that nothing listens (a refused connection): its process is gone. Or a gateway says so.
    NothingThere(String),
    /// Somebody answers there, and does not speak this protocol: what answers speaks for the web alone.
    Protocol(String),
    /// No Welcome in time.
    TimedOut,
    /// The other side refused or closed with a code.
    Refused {
        /// See [`crate::codes::Code`].
        code: u32,
        /// What the other side advises.
        retry: Retry,
        /// Not before this time.
        after: Duration,
        /// The other side's words.
        message: String,
    },
    /// An answer is awaited and nothing is heard.
    Silent,
    /// Requests stay unanswered, or the edge has lost its region.
    Stuck,
    /// Another install id is to be used, or the application asks for it.
    Renew,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(words) | Self::NothingThere(words) | Self::Protocol(words) => f.write_str(words),
            Self::TimedOut => f.write_str("no answer in time"),
            Self::Refused { code, message, .. } => {
                let name = crate::codes::Code::from_u32(*code).map_or("refused", crate::codes::Code::name);
                write!(f, "{name}: {message}")
            }
            Self::Silent => f.write_str("nothing was heard although an answer was due"),
            Self::Stuck => f.write_str("requests stay without an answer"),
            Self::Renew => f.write_str("to be made anew"),
        }
    }
}

/// A question to dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// Whom: index into the configured addresses.
    pub target: usize,
    /// Edges that failed.
    pub exclude: Vec<String>,
    /// Round trips to edges, as measured in this network.
    pub measured: Vec<(String, Duration)>,
    /// After so long without an answer it is given up.
    pub timeout: Duration,
}

/// What the engine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineOut {
    /// Connect and say Hello.
    Start {
        /// The attempt's number, and the connection's if it succeeds.
        conn: ConnNo,
        /// Where to.
        candidate: Candidate,
        /// By what.
        transport: Transport,
        /// Same for all attempts of a round.
        race: u64,
        /// Counts them.
        attempt: u32,
        /// The round trip in this network, where it is known from before.
        rtt: Option<Duration>,
    },
    /// Close it; nothing more is to be heard of it.
    Close(ConnNo),
    /// Ask a dispatch address.
    Dispatch(Asking),
    /// Get a token; `Engine::token_ready` when it is there.
    Token,
}
