//! The network of the real-time driver: the links of a scenario between real processes.
//!
//! What virtual time can't show is how the model's results compare with a real kernel's: its TCP, its timers, its
//! buffers; and programs that are not tern can't be put into it. So here each host is a network namespace, each
//! interface a TUN device in it, and one thread carries the packets between them, through the same pure machines
//! (`tern_netsim_link`) that virtual time uses. No packet scheduler or filter of the kernel is needed.
//!
//! Reading order: [`lab`] (all of it, for a driver), [`plan`] (what it is made of); [`fabric`] (the router's machine,
//! pure), with [`packet`] (IPv4), [`translator`] (NAT) and [`portal`] (captive portals) behind it; [`router`] (the
//! thread that drives it), [`decisions`] (what was decided, and deciding it again), [`lateness`] (whether the machine
//! kept up); then the kernel: [`kernel`] (the only unsafe code), [`netlink`] and [`namespace`] (a host), [`processes`]
//! and `leftovers` (what runs in it, and that nothing stays behind).
//!
//! Invariants: all decisions are the pure machines'; a packet is never delivered before its time; what is late is
//! measured; and after the end, whatever it was, nothing is left: no namespace, no device, no process, no directory.
//!
//! What is not here: IPv6 (switched off in the hosts), names (hosts are reached by address), times to live (the core
//! is one hop), packets that are larger than Ethernet's, and ways between two hosts that their plan gives no path.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod decisions;
pub mod error;
pub mod fabric;
pub mod kernel;
pub mod lab;
pub mod lateness;
mod leftovers;
pub mod limits;
pub mod namespace;
pub mod netlink;
pub mod packet;
pub mod plan;
pub mod portal;
pub mod processes;
pub mod router;
pub mod translator;

pub use decisions::{Decisions, replay};
pub use error::LabError;
pub use fabric::{AccessCounts, Fabric, Lost, PathCounts, Traffic};
pub use lab::Lab;
pub use lateness::Summary;
pub use plan::{Attached, HostPlan, LabPlan};
pub use processes::Process;
