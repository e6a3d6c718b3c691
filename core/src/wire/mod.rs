//! The two wires: between clients and edges ([`v1`]), and between nodes ([`node_v1`]).
//!
//! [`codec`] cuts a stream into frames; [`compact`] gives short references to what repeats on a lane;
//! [`convert`] turns wire values into those of [`crate::ids`] and back, and checks them on the way; [`versions`] decides
//! which nodes of other versions are linked to.

pub mod codec;
pub mod compact;
pub mod convert;
pub mod node;
pub mod versions;

/// Client wire and dispatch, generated from `proto/tern/v1/client.proto` and `dispatch.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod v1 {
    include!("gen/tern.v1.rs");
}

/// Node wire, generated from `proto/tern/node/v1/node.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod node_v1 {
    include!("gen/tern.node.v1.rs");
}

/// ALPN of the client wire.
pub const ALPN_CLIENT: &[u8] = b"tern/1";
/// ALPN of the node wire.
pub const ALPN_NODE: &[u8] = b"tern-node/1";
/// Version of the client wire that this code speaks.
pub const VERSION: u32 = 1;
/// Version of the node wire that this code speaks.
pub const NODE_VERSION: u32 = 1;

/// The lanes of a connection, in order of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// QUIC stream 0.
    Control,
    /// QUIC stream 4.
    Message,
    /// QUIC stream 8, lowest priority.
    Bulk,
}

impl Lane {
    /// All, most urgent first.
    pub const ALL: [Lane; 3] = [Lane::Control, Lane::Message, Lane::Bulk];

    /// Index into arrays per lane.
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl v1::Frame {
    /// A frame.
    pub fn new(req: u32, body: v1::frame::Body) -> Self {
        Self { req, body: Some(body) }
    }

    /// The lane on which this frame may travel; `None` for those that may travel on any, and for empty ones.
    pub fn lane(&self) -> Option<Lane> {
        use v1::frame::Body as B;
        Some(match self.body.as_ref()? {
            B::Send(_)
            | B::Ack(_)
            | B::Push(_)
            | B::Advance(_)
            | B::Stable(_)
            | B::Signal(_)
            | B::Presence(_)
            | B::Define(_)
            | B::Mark(_)
            | B::Marked(_) => Lane::Message,
            B::PushAck(_)
            | B::Ping(_)
            | B::Pong(_)
            | B::Hello(_)
            | B::Welcome(_)
            | B::Commit(_)
            | B::GoAway(_)
            | B::Kick(_)
            | B::Token(_)
            | B::Network(_)
            | B::Watch(_)
            | B::Spread(_)
            | B::Unstable(_)
            | B::TokenTaken(_)
            | B::PullDevices(_)
            | B::Devices(_) => Lane::Control,
            B::PullRows(_)
            | B::Rows(_)
            | B::RowHashes(_)
            | B::Pull(_)
            | B::Page(_)
            | B::PullCells(_)
            | B::Cells(_)
            | B::PullEras(_)
            | B::Packed(_)
            | B::Eras(_) => Lane::Bulk,
            B::Error(_) => return None,
        })
    }
}
