//! Which nodes of a region are there, and how loaded its edges are.
//!
//! The nodes of a region, and every `tern ipconf` that lists it, gossip over UDP: each probes another one every
//! second, news travel on the back of that, and a node that nobody reaches is declared dead within about seven
//! seconds, without any node that must be there for it. Loads travel the same way, once a second. All of it is for
//! scheduling and for operators. Nothing that must be right depends on it: who owns a slot, what is durable and who
//! is let in as a client are decided elsewhere, so a gossip that is wrong, or torn in two, sends clients to worse
//! places and loses no message.
//!
//! Reading order: [`identity`] (who takes part, and which of two starts of a name is the node), [`machine`] (the rules,
//! as a machine: datagrams, time and loads in, datagrams and events out), `wire` and `load` (formats), `membership`
//! (foca, set up), `seal` and `seen` (datagrams can be neither forged nor replayed), [`driver`] (one task with one
//! socket for all clusters of a process), `metrics`, [`limits`].
//!
//! Why not simpler: heartbeats to the region's process make that process the judge, and its death the death of
//! everyone; asking each region for its edges by HTTP, as was done before, needs its addresses, sees a dead edge only
//! when its load is old, and knows nothing while that one process restarts. Plain SWIM in turn knows neither
//! strangers nor restarts: see [`machine`].
//!
//! Invariants: no datagram is larger than [`limits::DATAGRAM_BYTES`], none is taken that was not sealed by this
//! deployment for this region, none is taken twice, and none costs a line of log.

pub mod driver;
pub mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod identity;
pub mod limits;
mod load;
pub mod machine;
mod membership;
mod metrics;
mod seal;
mod seen;
mod wire;

pub use driver::{GossipError, GossipKeysHandle, GossipNode, GossipSetup, LoadSource, Seed, Watcher};
pub use events::{Counters, Dropped, Event, Member, MemberState, Output};
pub use identity::{NodeId, NodeKey, Role};
pub use machine::{Gossip, GossipConfig};
pub use seal::{GossipKey, GossipKeys, KeysError};
