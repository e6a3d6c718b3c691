//! The pure machines of a client.
//!
//! [`Machine`] decides everything that a client does: what is sent when and where, what is kept, what the
//! application is told. It is handed what happened and `now`, and hands back [`Step`]s: first the changes of
//! what is kept, to be applied in one transaction, then effects, which may be carried out only after that.
//! It never reads a clock, a socket or a file, and draws randomness from the seed it was given alone.
//!
//! Reading order:
//!
//! 1. `data`: what is kept, and its changes ([`Op`], [`Image`]); [`Intervals`]: what is held of a log.
//! 2. `effects`, `machine`: what goes in and out; the struct, its inputs and its steps.
//! 3. `outbox`, `numbering`, `sending`, `stability`: own messages, from the first transmission until a second region has
//!    them.
//! 4. `receiving`, `pulling`: rows, pushes, pages; cursors and vectors; `comparing`: a region never visited.
//!    `facts`, `groups`, `settings`, `erasing`: what entries of tern's own kinds mean; `marks`: what was read;
//!    `typing`: who types.
//! 5. `session`: one connection: requests, probes, heartbeat; `pulse`: whether it is in doubt. `engine`, `connecting`:
//!    which connection; `trouble`: why none.
//! 6. [`Book`]: what a local store does with ops, in memory; the reference for every other store.
//!
//! Invariants:
//! - A cursor moves in the transaction that stores the heads it stands for, never before; and a head that is
//!   told and not held is pulled until it is held or a gap is recorded. So nothing slips under a cursor.
//! - A message that may have been transmitted never gets a second identity, unless the first is known to
//!   belong to another message.
//! - Everything on a connection is forgotten with it; what is kept is enough to do it again.

mod book;
mod candidates;
mod comparing;
mod connecting;
mod data;
mod diagnostics;
mod effects;
mod engine;
mod eras;
mod erasing;
mod facts;
mod groups;
mod heartbeat;
mod intervals;
mod lifecycle;
pub mod limits;
mod machine;
mod marks;
mod networks;
mod numbering;
mod outbox;
mod presence;
mod pulling;
mod pulse;
mod receiving;
mod saving;
mod sending;
mod session;
mod settings;
mod stability;
mod trouble;
mod typing;

pub use book::Book;
pub use candidates::{Asking, Candidate, ConnNo, Failure, Transport};
pub use data::{
    Change, ConversationImage, ConversationRecord, Image, Message, MessageId, MessageState, Op, OriginState, Outgoing,
    OutgoingRecord, Placed, choose_install, key_bytes, key_from_bytes, merge_copy,
};
pub use effects::{
    ConnectionState, DiscardRefused, Effect, Event, Hello, Outbound, SendRefused, Setup, Step, UnknownMessage,
};
pub use erasing::{EraseRefused, Erased};
pub use facts::{GroupInfo, MemberInfo};
pub use groups::{GroupOptions, GroupRefused};
pub use intervals::Intervals;
pub use machine::Machine;
pub use networks::{NetInfo, NetKind};
pub use presence::{Presence, TooManyWatched};
pub use saving::Saving;
pub use settings::{DeviceInfo, FOR_EVER, SetRefused};
pub use trouble::Trouble;

#[cfg(test)]
mod tests;
