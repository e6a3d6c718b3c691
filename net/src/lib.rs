//! What real and simulated runs share: how a node or a client reaches the outside.
//!
//! Reading order: [`env`] (the `Env` every node and client is handed), then [`system`] (the real one),
//! [`tls`], [`quic`] (endpoints over any [`env::Net`]), [`frames`] (length-prefixed frames over streams),
//! [`http`] (one request over any `Net`).
//!
//! Invariants: nothing here knows what a frame means; nothing above opens a socket, starts a task or reads a
//! clock except through `Env`, so that killing a simulated node ends all it had.

pub mod env;
pub mod http;
