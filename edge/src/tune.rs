//! What an operator may change while the edge runs.
//!
//! Everything else of [`EdgeConfig`] counts from the start on: it is in listeners, in certificates, or in what
//! the core and other nodes were told. What is here is looked up each time it is needed, so a change counts at
//! once: for connections that are open where it can, else for those that come.

use std::net::SocketAddr;
use std::time::Duration;

use tern_core::pacing::Rate;
use tern_core::wire::v1;

use crate::config::EdgeConfig;

/// See the fields of the same names of [`EdgeConfig`] and [`crate::EdgeLimits`].
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// Told with the next load report.
    pub advertise: Vec<SocketAddr>,
    /// Told with the next load report.
    pub failure_domain: String,
    /// Connections above it stay; new ones are refused.
    pub capacity: u32,
    /// Told to those who say Hello.
    pub heartbeat: Option<v1::Heartbeat>,
    /// Of connections that come.
    pub hello_timeout: Duration,
    /// Counts for all users at once; what they have used stays used.
    pub sends_per_second: u32,
    /// Likewise.
    pub sends_burst: u32,
    /// Likewise, for address blocks.
    pub failed_handshakes_per_second: u32,
    /// Likewise.
    pub failed_handshakes_burst: u32,
}

impl Tuning {
    /// What a configuration says.
    pub fn of(config: &EdgeConfig) -> Self {
        let limits = &config.limits;
        Self {
            advertise: config.advertise.clone(),
            failure_domain: config.failure_domain.clone(),
            capacity: config.capacity,
            heartbeat: config.heartbeat,
            hello_timeout: limits.hello_timeout,
            sends_per_second: limits.sends_per_second,
            sends_burst: limits.sends_burst,
            failed_handshakes_per_second: limits.failed_handshakes_per_second,
            failed_handshakes_burst: limits.failed_handshakes_burst,
        }
    }

    pub(crate) fn failed_handshakes(&self) -> Rate {
        Rate::new(self.failed_handshakes_per_second, self.failed_handshakes_burst)
    }
}
