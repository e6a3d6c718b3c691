//! The client of tern: a conversation that survives bad networks, dead edges and lost regions.
//!
//! ```no_run
//! # async fn example(roots_pem: Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use tern_client::{Client, ClientConfig, DispatchServer, Draft, StaticToken, UserId};
//!
//! let mut config = ClientConfig::new(UserId::new("alice")?);
//! config.roots_pem = roots_pem;
//! config.dispatch.push(DispatchServer { address: "127.0.0.1:7411".into(), server_name: "localhost".into() });
//! let client = Client::builder(config)
//!     .store("/var/lib/app/tern")
//!     .token_provider(Arc::new(StaticToken("...".into())))
//!     .build()?; // works offline
//! let conversation = client.direct(&UserId::new("bob")?)?;
//! let id = conversation.send(Draft::text("hi"))?; // on disk when it returns; never waits for the network
//! # drop(id);
//! # Ok(())
//! # }
//! ```
//!
//! Everything is decided by the machine in `tern_core::client`; this crate keeps what it says
//! ([`store`]), carries frames (`connection`, `dispatch`), and gives applications a shape to work with
//! ([`Client`], [`Conversation`], [`Event`]).
//!
//! Reading order: `client` (what an application sees), `group`, `settings` and `lifecycle` (the rest of it), `shared`
//! (machine, store and connections under one lock), `driver` (the task that ticks), `connection` (one task per
//! connection), `store`.
//!
//! Invariants:
//! - `send` has stored the message when it returns, and waits for nothing but the disk.
//! - An event is told after what it tells is durable. A process that dies at any point loses nothing that
//!   was told, and shows nothing twice when it starts again.
//! - A failed transaction is handled like a crash: the machine is built from the store anew.
//! - Nothing here reads a clock, draws randomness or starts a task but through its `Env`; with an `Env` of a
//!   simulation it runs in virtual time.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod client;
mod config;
mod connection;
mod dispatch;
mod driver;
mod events;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod lifecycle;
pub mod limits;
mod presence;
mod settings;
mod shared;
pub mod store;
mod unpacking;

pub use client::{
    BuildError, Builder, CallError, Client, Conversation, ConversationInfo, DiscardError, Draft, PaginateError,
    Paginated, RetryError, SendError, Snapshot, Unread,
};
pub use config::{ClientConfig, DispatchServer, FallbackEdge, StaticToken, TokenError, TokenProvider};
pub use events::{Event, Events};
pub use group::{Changed, GroupError};
pub use lifecycle::Pushed;
pub use presence::WatchError;
pub use settings::{DevicesError, EraseError, SetError};
pub use tern_core::client::{
    Change, ConnectionState, DeviceInfo, DiscardRefused, EraseRefused, Erased, FOR_EVER, Failure, GroupInfo,
    GroupOptions, GroupRefused, MemberInfo, Message, MessageId, MessageState, NetInfo, NetKind, Placed, Presence,
    Saving, SendRefused, SetRefused, TooManyWatched, Transport, Trouble, UnknownMessage,
};
pub use tern_core::ids::{ConvId, InstallId, UserId};
pub use tern_core::membership::Role;
pub use tern_net::env::Env;
pub use tern_net::proxy::HttpProxy;
