//! Error codes of the client wire. docs/PROTOCOL.md lists them for client authors; a test keeps both equal.

use crate::wire::v1;
use crate::wire::v1::error::Retry;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal, $retry:ident;)*) => {
        /// Why a request or a connection was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Code { $($(#[$doc])* $name = $value,)* }

        impl Code {
            /// All codes, ascending.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The stable name, as it appears in documents and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// What a client should do about it.
            pub const fn retry(self) -> Retry {
                match self { $(Code::$name => Retry::$retry,)* }
            }

            /// The code with this number.
            pub const fn from_u32(value: u32) -> Option<Code> {
                match value { $($value => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// Closed on purpose, nothing is wrong.
    Closed = 0, "closed", Here;
    /// A frame that is not a frame: bad length, bad protobuf, a value out of its range.
    BadFrame = 1, "bad_frame", Never;
    /// A frame above the limit.
    FrameTooLarge = 2, "frame_too_large", Never;
    /// No wire version in common.
    UnsupportedVersion = 3, "unsupported_version", Never;
    /// A frame that is not allowed at this moment, on this lane, or from this side.
    WrongMoment = 4, "wrong_moment", Never;
    /// No Hello in time.
    HelloTimeout = 5, "hello_timeout", Here;
    /// The token is not a token, or its signature is wrong.
    TokenInvalid = 6, "token_invalid", NewToken;
    /// The token has expired.
    TokenExpired = 7, "token_expired", NewToken;
    /// The token was signed by a key that this deployment does not know.
    TokenUnknownKey = 8, "token_unknown_key", NewToken;
    /// The token is for another deployment.
    TokenAudience = 9, "token_audience", NewToken;
    /// A body above the limit.
    BodyTooLarge = 10, "body_too_large", Never;
    /// An id that is empty, too long, or not UTF-8.
    BadId = 11, "bad_id", Never;
    /// The region does not know the conversation.
    UnknownConversation = 12, "unknown_conversation", Behind;
    /// The sender is not in the conversation.
    NotMember = 13, "not_member", Never;
    /// An earlier message of this install is missing.
    OutOfOrder = 14, "out_of_order", Here;
    /// This identity was used for another body: draw a new install id.
    IdentityConflict = 15, "identity_conflict", Never;
    /// The region lacks something the client has seen, or the client's clock is far ahead.
    Behind = 16, "behind", Behind;
    /// More sends than a user may make.
    RateLimited = 17, "rate_limited", Here;
    /// The store's disk is nearly full. Nothing was stored.
    StoreFull = 18, "store_full", Elsewhere;
    /// More work is waiting than the node takes. Nothing was stored.
    Overloaded = 19, "overloaded", Here;
    /// The edge can't reach the core of its region. Whether the request was done is not known.
    CoreUnreachable = 20, "core_unreachable", Elsewhere;
    /// The node is about to stop.
    Draining = 21, "draining", Elsewhere;
    /// A newer connection of the same install took over.
    Replaced = 22, "replaced", Never;
    /// More handshakes failed from this address block than are allowed.
    TooManyFailures = 23, "too_many_failures", Here;
    /// This conversation's log is damaged here.
    Damaged = 24, "damaged", Elsewhere;
    /// More devices than a user may have at once.
    TooManyDevices = 25, "too_many_devices", Never;
    /// A reference that was never defined, or out of range.
    BadReference = 26, "bad_reference", Never;
    /// Something failed here that should not. Nothing was acked.
    Internal = 27, "internal", Elsewhere;
    /// The application protocol offered by ALPN is none of ours.
    WrongProtocol = 28, "wrong_protocol", Never;
    /// The client reads too slowly, or not at all.
    TooSlow = 29, "too_slow", Here;
    /// The region's clock is far off the other regions'. Nothing was stored.
    ClockOff = 30, "clock_off", Elsewhere;
    /// The sender may not make this change.
    NotAllowed = 31, "not_allowed", Never;
    /// The group has as many members as are allowed.
    GroupFull = 32, "group_full", Never;
    /// A body of tern's own kinds that says nothing, or what can't be.
    BadChange = 33, "bad_change", Never;
    /// This device was removed by its user.
    Kicked = 34, "kicked", Never;
    /// The token was issued before its user's tokens were revoked.
    TokenRevoked = 35, "token_revoked", NewToken;
    /// The region was restored from a backup and has not yet taken over what it missed, erasures above all.
    Refilling = 36, "refilling", Elsewhere;
    /// The node of the region that had this is gone, and another takes its place. Whether it was done is not known.
    OwnerLost = 37, "owner_lost", Here;
    /// These messages are old and lie in an archive that can't be read at the moment. They are not lost.
    ArchiveUnavailable = 38, "archive_unavailable", Here;
}

/// A refusal, ready for the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct Refusal {
    /// What is wrong.
    pub code: Code,
    /// For a developer.
    pub message: String,
    /// Not before this many milliseconds; 0 = no advice.
    pub retry_after_ms: u32,
}

impl Refusal {
    /// A refusal without advice on time.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: 0 }
    }

    /// With advice on time.
    #[must_use]
    pub fn after_ms(mut self, ms: u32) -> Self {
        self.retry_after_ms = ms;
        self
    }

    /// As the frame's body.
    pub fn to_wire(&self) -> v1::Error {
        v1::Error {
            code: self.code as u32,
            message: self.message.clone(),
            retry_after_ms: self.retry_after_ms,
            retry: self.code.retry() as i32,
        }
    }
}
