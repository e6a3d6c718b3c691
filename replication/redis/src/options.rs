//! Where the table is, and whose part of it this is.

use std::fmt;
use std::time::Duration;

use tern_net::secured::Secured;

use crate::limits::REQUEST_TIMEOUT;

/// See the module. Showing it shows no password.
#[derive(Clone)]
pub struct Options {
    /// Servers (host, port): the one there is, or some of a cluster, which name the others.
    pub nodes: Vec<(String, u16)>,
    /// All keys begin with it; see [`crate::is_prefix`]. Regions and deployments that share servers have one each.
    pub prefix: String,
    /// The name of this core node.
    pub node: String,
    /// To log in by. Without a user it is the server's default one.
    pub user: Option<String>,
    /// Likewise.
    pub password: Option<String>,
    /// TLS, if the servers speak it.
    pub tls: Option<Secured>,
    /// What a request may take, connecting included.
    pub request_timeout: Duration,
}

impl Options {
    /// Without a login or TLS.
    pub fn new(nodes: Vec<(String, u16)>, prefix: &str, node: &str) -> Self {
        Self {
            nodes,
            prefix: prefix.to_owned(),
            node: node.to_owned(),
            user: None,
            password: None,
            tls: None,
            request_timeout: REQUEST_TIMEOUT,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("nodes", &self.nodes)
            .field("prefix", &self.prefix)
            .field("node", &self.node)
            .field("user", &self.user)
            .field("has_password", &self.password.is_some())
            .field("tls", &self.tls)
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}
