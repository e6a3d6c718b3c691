//! What a client is made from.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tern_core::client::Candidate;
use tern_core::client::limits::{QUIC_TIMEOUT, TCP_TIMEOUT};
use tern_core::ids::UserId;
use tern_core::store::BoxFut;
use tern_net::proxy::HttpProxy;

/// A dispatch address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatchServer {
    /// `host:port`, `v4:port` or `[v6]:port`; HTTPS.
    pub address: String,
    /// The name its certificate must have.
    pub server_name: String,
}

/// An edge that is known without dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackEdge {
    /// `host:port`, `v4:port` or `[v6]:port`, for QUIC and TCP alike.
    pub address: String,
    /// The name its certificate must have.
    pub server_name: String,
    /// Its name, where it is known: lets it be recognized in lists.
    pub edge: String,
    /// Its region's name, likewise.
    pub region: String,
}

impl FallbackEdge {
    /// One of which only the address and the certificate's name are known.
    pub fn new(address: impl Into<String>, server_name: impl Into<String>) -> Self {
        Self { address: address.into(), server_name: server_name.into(), edge: String::new(), region: String::new() }
    }

    pub(crate) fn to_candidate(&self) -> Candidate {
        Candidate {
            edge: self.edge.clone(),
            region: self.region.clone(),
            address: self.address.clone(),
            server_name: self.server_name.clone(),
            quic: true,
            tcp: true,
            quic_timeout: QUIC_TIMEOUT,
            tcp_timeout: TCP_TIMEOUT,
        }
    }
}

/// A client's configuration.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Whose client: the subject of its tokens.
    pub user: UserId,
    /// Dispatch addresses of all regions; asked one after the other until one answers.
    pub dispatch: Vec<DispatchServer>,
    /// Edges to try without or beside what dispatch says.
    pub fallback_edges: Vec<FallbackEdge>,
    /// CA certificates that are trusted, as PEM; no others are.
    pub roots_pem: Vec<u8>,
    /// The name in the certificates of all edges from dispatch; `None` = `<edge>.<region>.tern.internal`.
    pub edge_name: Option<String>,
    /// An HTTP proxy that all TCP connections go through, those to dispatch as well. QUIC is tried past it.
    pub proxy: Option<HttpProxy>,
    /// Name and version of the application, for operators; at most 64 bytes.
    pub agent: String,
    /// This device as its user calls it, at most 64 bytes: the user's other devices list it by this name, and can
    /// remove it. Empty: it does not announce itself.
    pub device: String,
    /// How many events wait for whoever reads a subscription; what does not fit is dropped, and
    /// [`crate::Event::Lagged`] says so. [`crate::limits::EVENTS`] by default; 1 to [`crate::limits::EVENTS_MAX`]
    /// count. Memory for all of them is taken when the client opens.
    pub events: usize,
}

impl ClientConfig {
    /// Without any server: works offline only, until some are added.
    pub fn new(user: UserId) -> Self {
        Self {
            user,
            dispatch: Vec::new(),
            fallback_edges: Vec::new(),
            roots_pem: Vec::new(),
            edge_name: None,
            proxy: None,
            device: String::new(),
            events: crate::limits::EVENTS,
            agent: concat!("tern-client/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// No token was to be had now; it is asked for again after a pause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no token: {0}")]
pub struct TokenError(pub String);

/// Gets tokens: from the application's own server, as a rule.
pub trait TokenProvider: Send + Sync + fmt::Debug + 'static {
    /// A token for this client's user. `refused`: the one handed out last was refused, or is about to expire;
    /// a kept copy of it is of no use. Given up after `tern_core::client::limits::TOKEN_TIMEOUT`.
    fn token(&self, refused: bool) -> BoxFut<'_, Result<String, TokenError>>;
}

/// One token for ever.
#[derive(Clone)]
pub struct StaticToken(pub String);

impl fmt::Debug for StaticToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticToken(..)")
    }
}

impl TokenProvider for StaticToken {
    fn token(&self, _refused: bool) -> BoxFut<'_, Result<String, TokenError>> {
        let token = self.0.clone();
        Box::pin(async move { Ok(token) })
    }
}

/// Where the local store comes from.
pub(crate) enum StoreChoice {
    Directory(PathBuf),
    Given(Box<dyn crate::store::LocalStore>),
}

pub(crate) type Tokens = Arc<dyn TokenProvider>;
