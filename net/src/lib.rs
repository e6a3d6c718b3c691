//! What real and simulated runs share: how a node or a client reaches the outside.
//!
//! Everything above this crate is handed an [`env::Env`] and touches the world through it alone: sockets,
//! two clocks, randomness, and a place to start tasks. The same edge, core or client therefore runs over the
//! machine's sockets or over an in-memory network in virtual time, and killing a simulated node ends every
//! task it had.
//!
//! Reading order:
//!
//! 1. [`mod@env`]: the traits, and the `Env` every node and client is handed.
//! 2. [`system`]: the real one: UDP with large buffers, TCP without delay, a clock that survives suspend.
//! 3. [`tls`]: identities from PEM, and the four TLS set-ups there are: clients and servers of the public
//!    side, and of the links between nodes (mutually authenticated). What they show can be replaced; [`x509`]
//!    reads what a certificate says, [`refusal`] why one was not accepted. [`secured`]: TLS to servers that are none of
//!    tern's.
//! 4. [`quic`]: quinn endpoints over any `Net`, with every random number drawn from the `Env`.
//!    [`reset`]: the key by which clients of a killed node learn of it. [`resume`]: sessions taken up again, and what is
//!    sent with the first packet. [`sounding`]: how long datagrams wait.
//! 5. [`frames`]: length-prefixed frames over streams, with reads that may be cancelled.
//! 6. [`http`]: HTTP/2 and HTTP/1.1 over any `Net`: one server loop and one connection, both with limits.
//!    [`http3`]: the same on a QUIC connection.
//! 7. [`websocket`]: those frames in the messages of a WebSocket, for both sides. [`proxy`]: TCP through an HTTP
//!    proxy. [`addresses`]: all addresses of a name, and the first good one of them.
//! 8. [`prefix`], [`forwarded`]: blocks of addresses, and who asks through trusted proxies.
//!
//! Invariants:
//!
//! - Nothing here knows what a frame means.
//! - Nothing above opens a socket, starts a task, reads a clock or draws a random number except through
//!   `Env`. What remains outside of it is tokio's timers, which simulation pauses.
//! - TLS is 1.3 only. Sessions are taken up again, and early data sent, over QUIC alone, with a ticket that is good
//!   once.
//! - No pool, no cache of names, no process-wide state: what a caller opened lives as long as he holds it.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod addresses;
pub mod congestion;
pub mod env;
pub mod forwarded;
pub mod frames;
pub mod http;
pub mod http3;
pub mod prefix;
pub mod proxy;
pub mod quic;
pub mod refusal;
pub mod reset;
pub mod resume;
pub mod secured;
pub mod sounding;
pub mod system;
pub mod tls;
pub mod websocket;
pub mod x509;

#[cfg(test)]
mod testing;
