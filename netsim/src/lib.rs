//! Regions, edges and clients in one process, in virtual time.
//!
//! A [`world::World`] holds hosts, the links between them and every packet on its way. Each host is a node
//! ([`node::SimNode`]) that is handed the same [`tern_net::env::Env`] as a real one: sockets, clock,
//! randomness and tasks. So the code that runs here is the code that runs in production; only what lies
//! below `Net` differs. tokio's paused clock jumps from one timer to the next, and a minute of a cluster's
//! life takes about a second.
//!
//! Reading order: [`run`] (a runtime without I/O, on a thread of its own), [`world`] (hosts, the heap of
//! events and the one task that drives it), `path` (the way of a packet), [`links`] and [`pipes`] (who reaches whom,
//! and how late or how badly), [`access`] (devices: interfaces, NATs, hand-over; `portal`), [`packets`] (what was sent,
//! its shape, and what became of it), [`udp`] (datagrams), [`stream`] (TCP as applications see it; below it `tcp`,
//! `connection`, `congestion`, `segment`), [`net`] (both as a `Net`), [`node`] (tasks, clocks, kill and restart),
//! [`pki`] and [`token`] (certificates and tokens that are the same in every run), [`random`] (the process's
//! randomness, seeded), [`cluster`] (regions, wired), [`stage`] (a scenario, played), [`chaos`] (faults
//! for systems that are real). The model of a link with rate,
//! queue and faults is a crate of its own, `tern_netsim_link`: pure, with a reading order of its own.
//!
//! A run is repeatable: the same seed gives the same packets at the same moments, in every process. The
//! *shape* of a run is a hash over (time, from, to, protocol, length) of every packet; bytes are not part of
//! it, because the TLS library draws its own randomness. What keeps shapes equal:
//!
//! - nothing here reads a real clock or iterates over a map without order;
//! - every stream of random numbers is keyed by (seed, host, start), so that a host more or a fault less does
//!   not reshuffle the others;
//! - certificates are Ed25519, whose signatures have one length and one value;
//! - the binary that runs a simulation replaces the C function `getrandom` by [`random::fill`], which also
//!   makes hash maps of the libraries iterate alike. That function is the process's, so a process runs one
//!   seed, and the test that compares runs starts processes.
//!
//! Time moves in whole milliseconds, because tokio's timers do; links count in nanoseconds, and packets that
//! fall into the same millisecond are delivered in the order of their nanoseconds.
//!
//! Tests, from the inside out: `network`, `weak_links`, `access`, `tcp` and `ledger` (this crate alone), `regions` and
//! `storms` (cores with scripted edges), `phones` (client machines over pipes), `first_light`, `fallback`, `clients`
//! and `groups` (the SDK over everything); `speed` measures.
//! `TERN_STORMS=1000` runs as many seeds of a storm, `TERN_STORM_FIRST=198` begins there; a test whose name
//! ends in `_of_a_child` runs one seed by `TERN_NETSIM_SEED=198`, with logs by `TERN_NETSIM_LOG=debug` and all
//! packets in the file `TERN_NETSIM_PACKETS`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod access;
pub mod chaos;
pub mod cluster;
pub mod compare;
pub(crate) mod congestion;
pub(crate) mod connection;
pub mod cores;
pub(crate) mod devices;
pub mod limits;
pub mod links;
pub(crate) mod middlebox;
pub mod net;
pub mod node;
pub mod packets;
pub(crate) mod path;
pub mod pipes;
pub mod pki;
pub(crate) mod portal;
pub mod random;
pub mod real;
pub mod run;
pub(crate) mod segment;
pub mod stage;
pub mod stream;
pub mod tap;
pub(crate) mod tcp;
pub mod token;
pub mod udp;
pub mod world;
