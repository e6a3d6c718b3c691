//! Why there is no connection, for the application and for people.

use std::fmt;

use super::candidates::{Failure, Transport};
use crate::codes::Code;

/// Why the client waits before it connects again. What it has to send waits meanwhile, and is not lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The application had no token. It is asked again after a pause.
    NoToken {
        /// What the application said.
        message: String,
    },
    /// An edge refused the token. The application is asked for another one, less and less often.
    TokenRefused {
        /// See [`Code`]; one of those that ask for a new token.
        code: u32,
        /// The edge's words: where they speak of time, one of the two clocks is wrong.
        message: String,
    },
    /// There is nobody to connect to: neither the configuration nor dispatch names an edge.
    NoEdge {
        /// What dispatch answered last; empty where none is configured.
        message: String,
    },
    /// No edge took the connection, or none kept it.
    NoConnection {
        /// The address of the edge that said most about it.
        address: String,
        /// By what it was tried.
        transport: Transport,
        /// Why.
        failure: Failure,
    },
    /// The local store can't be written or read, so nothing can be acknowledged. It is tried again.
    Store {
        /// What is wrong with it, and what may be done.
        message: String,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToken { message } => write!(f, "there is no token: {message}"),
            Self::TokenRefused { code, message } => {
                let name = Code::from_u32(*code).map_or("refused", Code::name);
                write!(f, "the token is refused ({name}): {message}")
            }
            Self::NoEdge { message } if message.is_empty() => f.write_str("no edge is known, and no dispatch to ask"),
            Self::NoEdge { message } => write!(f, "no edge is known: {message}"),
            Self::Store { message } => write!(f, "the local store failed: {message}"),
            Self::NoConnection { address, transport, failure } => {
                write!(f, "{address} by {}: {failure}", transport.name())
            }
        }
    }
}

impl Failure {
    /// How much it tells of what is wrong.
    pub(super) fn says(&self) -> u8 {
        match self {
            Self::Refused { .. } => 2,
            Self::Network(_) | Self::NothingThere(_) | Self::Protocol(_) => 1,
            Self::TimedOut | Self::Silent | Self::Stuck | Self::Renew => 0,
        }
    }
}

/// The beginning of what a stranger says, of at most so many bytes.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= bytes).last();
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}
